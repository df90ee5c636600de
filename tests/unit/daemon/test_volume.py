"""The order of effects of a write, and what happens in one step of the loop."""

import asyncio

import pytest

from engine.errors import InvalidState, MediumError, OutOfRange, WriteProtected
from engine.volume import Change, ChangeKind, Identity, Volume, VolumeEvent
from tests.support.memory_store import MemoryNode, MemoryStore

MIB = 1 << 20


class Tap:
    """A mirror that notes what it is told and answers when ``release`` is set."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.failed: list[int] = []
        self.flushes = 0
        self.release = asyncio.Event()
        self.release.set()

    def submit(self, change):
        self.changes.append(change)
        return None if self.release.is_set() else asyncio.ensure_future(self.release.wait())

    def source_failed(self, change, error):
        self.failed.append(change.sequence)

    def flush(self):
        self.flushes += 1
        return None if self.release.is_set() else asyncio.ensure_future(self.release.wait())


def made(**policies) -> tuple[Volume, MemoryNode]:
    head = MemoryStore().create_volume("v", MIB)
    return Volume(head, **policies), head


async def begun(coroutine) -> asyncio.Task:
    task = asyncio.create_task(coroutine)
    for _ in range(5):
        await asyncio.sleep(0)
    return task


def test_identity_follows_from_the_uuid_alone_and_is_of_naa_type_3():
    one, other = Identity.of("a"), Identity.of("b")
    assert one == Identity.of("a") != other
    assert one.naa >> 60 == 3
    assert len(one.serial) == 16


def test_the_fast_path_is_the_heads_own_methods_while_nothing_is_between():
    volume, head = made()
    assert volume.try_read == head.try_read
    assert volume.try_write == head.try_write
    assert volume.end_pass == head.end_pass
    assert volume.try_read_each is volume.try_write_each is None
    head.try_read_each = head.try_write_each = lambda *_: 1
    volume.rebind(head)
    assert volume.try_read_each == head.try_read_each
    assert volume.try_write_each == head.try_write_each


@pytest.mark.parametrize("policies", [{"read_only": True}, {"write_cache": False}])
def test_policies_that_must_see_writes_close_the_fast_path_for_writes(policies):
    volume, head = made(**policies)
    assert volume.try_write(0, memoryview(bytes(512))) is False
    assert volume.try_write_each is None
    assert volume.try_read == head.try_read


async def test_a_read_only_volume_refuses_every_kind_of_write():
    volume, _ = made(read_only=True)
    for attempt in (volume.write(0, memoryview(bytes(512))), volume.write_zeroes(0, 512), volume.discard(0, 512)):
        with pytest.raises(WriteProtected):
            await attempt


async def test_a_mirror_is_told_every_write_in_sequence_and_holds_back_its_acknowledgement():
    volume, head = made()
    tap = Tap()
    volume.attach(tap)
    assert volume.try_write(0, memoryview(bytes(512))) is False
    tap.release.clear()
    write = await begun(volume.write(0, memoryview(b"a" * 512), fua=True))
    assert head.content(0, 512) == b"a" * 512, "the source is written at the same time"
    assert not write.done()
    tap.release.set()
    await write
    await volume.write_zeroes(512, 512)
    await volume.discard(1024, 512)
    assert [(c.sequence, c.kind, c.offset, c.length, c.fua) for c in tap.changes] == [
        (1, ChangeKind.DATA, 0, 512, True),
        (2, ChangeKind.ZEROES, 512, 512, False),
        (3, ChangeKind.DISCARD, 1024, 512, False),
    ]


async def test_a_flush_waits_for_the_mirrors():
    volume, _ = made()
    tap = Tap()
    volume.attach(tap)
    tap.release.clear()
    flush = await begun(volume.flush())
    assert tap.flushes == 1
    assert not flush.done()
    tap.release.set()
    await flush


async def test_attach_and_snapshot_split_all_writes_in_two():
    volume, head = made()
    before = asyncio.create_task(volume.write(0, memoryview(b"1" * 512)))
    await asyncio.sleep(0)
    tap = Tap()
    volume.attach(tap)
    frozen = await head.store.snapshot(head, "s")
    await volume.write(512, memoryview(b"2" * 512))
    await before
    assert frozen.content(0, 1024) == b"1" * 512 + bytes(512)
    assert [change.offset for change in tap.changes] == [512]


async def test_a_write_beyond_the_end_is_refused_before_a_mirror_hears_of_it():
    volume, _ = made()
    tap = Tap()
    volume.attach(tap)
    for offset, length in ((MIB, 512), (-512, 512), (1, 512), (0, 100)):
        with pytest.raises(OutOfRange):
            await volume.write_zeroes(offset, length)
    assert tap.changes == []


async def test_a_failed_source_write_is_told_to_the_mirrors():
    volume, head = made()
    tap = Tap()
    volume.attach(tap)

    async def broken(operation, node, offset, length):
        raise MediumError("no")

    head.store.pace = broken
    with pytest.raises(MediumError):
        await volume.write(0, memoryview(bytes(512)))
    assert tap.failed == [1]


async def test_detached_mirrors_open_the_fast_path_again():
    volume, head = made()
    tap = Tap()
    volume.attach(tap)
    volume.detach(tap)
    assert volume.try_write == head.try_write


async def test_quiesced_waits_for_what_is_in_flight_and_holds_what_arrives():
    volume, head = made()
    going = asyncio.Event()

    async def slow(operation, node, offset, length):
        await going.wait()

    head.store.pace = slow
    first = await begun(volume.write(0, memoryview(b"1" * 512)))
    inside = asyncio.Event()
    leave = asyncio.Event()

    async def switch():
        async with volume.quiesced():
            inside.set()
            await leave.wait()

    switching = await begun(switch())
    second = await begun(volume.read(0, memoryview(bytearray(512))))
    assert not inside.is_set()
    assert volume.try_read(0, memoryview(bytearray(512))) is False
    assert volume.try_read_each is None
    going.set()
    await first
    await inside.wait()
    assert not second.done()
    leave.set()
    await switching
    await second
    assert volume.try_read == head.try_read


async def test_a_rebound_head_is_the_content_and_initiators_are_told():
    volume, head = made()
    told: list[VolumeEvent] = []
    unsubscribe = volume.subscribe(told.append)
    frozen = await head.store.snapshot(head, "s")
    await volume.write(0, memoryview(b"x" * 512))
    async with volume.quiesced():
        volume.rebind(await head.store.rollback(head, frozen))
    view = bytearray(512)
    await volume.read(0, memoryview(view))
    assert view == bytes(512)
    assert told == [VolumeEvent.CONTENT_REPLACED]
    await volume.resize(2 * MIB)
    assert told[-1] is VolumeEvent.RESIZED
    unsubscribe()
    await volume.resize(3 * MIB)
    assert len(told) == 2


async def test_mirrors_refuse_resize_and_rebind():
    volume, head = made()
    volume.attach(Tap())
    with pytest.raises(InvalidState):
        await volume.resize(2 * MIB)
    with pytest.raises(InvalidState):
        volume.rebind(head)


async def test_a_mirror_that_comes_while_a_resize_waits_refuses_it():
    volume, head = made()
    going = asyncio.Event()

    async def slow(operation, node, offset, length):
        await going.wait()

    head.store.pace = slow
    writing = await begun(volume.write(0, memoryview(b"1" * 512)))
    resizing = await begun(volume.resize(2 * MIB))
    volume.attach(Tap())
    going.set()
    await writing
    with pytest.raises(InvalidState):
        await resizing
    assert volume.size_bytes == MIB
