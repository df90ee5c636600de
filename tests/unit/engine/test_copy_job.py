import random
from pathlib import Path

import pytest

from engine.copy_job import CopyControl, CopyOptions, copy_extents, whole_leaves
from engine.errors import IntegrityError, InvalidArgument, MediumError
from engine.files import real_env
from engine.hash_tree import LEAF_BYTES
from engine.ledger import Ledger, LedgerKey
from engine.proof import tree_of
from engine.stores import Extent
from engine.tvol.file import TvolFile
from engine.units import GIB, KIB, MIB
from tests.support.memory_store import MemoryNode, MemoryStore

SIZE = 6 * MIB + 512


async def frozen_source(seed: int = 1, writes: int = 12) -> MemoryNode:
    rng = random.Random(seed)
    store = MemoryStore()
    head = store.create_volume("source", SIZE)
    for _ in range(writes):
        length = rng.randrange(1, 600) * 512
        offset = rng.randrange(0, (SIZE - length) // 512) * 512
        await head.write(offset, memoryview(rng.randbytes(length)))
    await head.write_zeroes(2 * MIB, 256 * KIB)  # stored zeroes
    return await store.snapshot(head, "s")


def blank_target() -> MemoryNode:
    return MemoryStore().create_volume("target", SIZE)


async def test_a_copy_is_equal_durable_and_says_its_root():
    source, target = await frozen_source(), blank_target()
    result = await copy_extents(source, target, options=CopyOptions(blank_target=True))
    assert target.content(0, SIZE) == source.content(0, SIZE)
    assert target.store.durable[target].chunks == target.chunks
    again = await copy_extents(source, blank_target())
    assert result.tree.root() == again.tree.root()
    assert 2 * MIB // LEAF_BYTES not in target.chunks, "stored zeroes are not written"


async def test_holes_and_zeroes_clear_what_the_target_held():
    source, target = await frozen_source(), blank_target()
    await target.write(0, memoryview(b"\xaa" * SIZE))
    await copy_extents(source, target)
    assert target.content(0, SIZE) == source.content(0, SIZE)


async def test_only_the_planned_extents_are_touched():
    source, target = await frozen_source(), blank_target()
    await copy_extents(source, target, [Extent(MIB + 512, 512), Extent(SIZE - 512, 512)])
    expected = bytearray(SIZE)
    for start, end in ((MIB, MIB + LEAF_BYTES), (SIZE - 512, SIZE)):
        expected[start:end] = source.content(start, end - start)
    assert target.content(0, SIZE) == expected


async def test_compare_first_writes_only_what_differs():
    source, target = await frozen_source(), blank_target()
    await copy_extents(source, target)
    await target.write(512, memoryview(b"x" * 512))
    control = CopyControl()
    result = await copy_extents(source, target, options=CopyOptions(compare_first=True), control=control)
    assert target.content(0, SIZE) == source.content(0, SIZE)
    assert control.progress.written_bytes <= 256 * KIB
    assert control.progress.equal_bytes > 0
    assert result.progress.done_bytes == result.progress.total_bytes


class Counting:
    """A device that counts how often it is asked for its extents."""

    def __init__(self, device) -> None:
        self.device = device
        self.asked = []

    def __getattr__(self, name):
        return getattr(self.device, name)

    async def extents(self, offset, length):
        self.asked.append((offset, length))
        return await self.device.extents(offset, length)


async def test_the_cost_of_a_copy_follows_the_data_and_not_the_size():
    size = 16 * GIB
    source, target = MemoryStore().create_volume("s", size), MemoryStore().create_volume("t", size)
    places = (0, 5 * GIB, 5 * GIB + 70 * MIB, 15 * GIB, size - 512)
    for place in places:
        await source.write(place, memoryview(b"d" * 512))
    counting = Counting(source)
    copied = await copy_extents(counting, target, options=CopyOptions(blank_target=True))
    assert copied.progress.written_bytes == len(places) * LEAF_BYTES
    assert all(target.content(place, 512) == b"d" * 512 for place in places)
    assert copied.progress.zero_bytes == size - len(places) * LEAF_BYTES
    assert len(counting.asked) < 100, "256 in each of two goes, were each of 64 MiB"
    counted, copying = counting.asked[: len(counting.asked) // 2], counting.asked[len(counting.asked) // 2 :]
    assert counted == copying
    assert [offset for offset, _ in counted] == [0, *(offset + length for offset, length in counted[:-1])]


async def test_of_a_strip_only_the_units_that_differ_are_written(tmp_path):
    env, size, rng = real_env(2), 2 * MIB, random.Random(3)
    files = [await TvolFile.create(env, tmp_path / f"{name}.tvol", volume_name=name, size_bytes=size) for name in "ab"]
    source, target = (file.volumes()[0] for file in files)
    data = rng.randbytes(size)
    for head in (source, target):
        await head.write(0, memoryview(data))
    await target.write(5 * LEAF_BYTES, memoryview(b"x" * 512))
    await target.write(6 * LEAF_BYTES, memoryview(b"x" * 512))
    await source.write(31 * LEAF_BYTES, memoryview(bytes(LEAF_BYTES)))
    frozen = await files[0].snapshot(source, "s")
    for expected, mover in (((2, 1, 29), env.mover), ((0, 0, 32), None)):
        copied = await copy_extents(frozen, target, options=CopyOptions(compare_first=True), mover=mover)
        done = copied.progress
        assert (done.written_bytes, done.zero_bytes, done.equal_bytes) == tuple(n * LEAF_BYTES for n in expected)
        assert copied.tree.root() == (await tree_of(target)).root() == (await tree_of(frozen)).root()
    for file in files:
        await file.close()
    await env.close()


class Corrupting:
    """A target that loses a bit of one sector."""

    def __init__(self, node: MemoryNode, offset: int) -> None:
        self.node = node
        self.offset = offset

    def __getattr__(self, name):
        return getattr(self.node, name)

    async def write(self, offset, data, *, fua=False):
        payload = bytearray(data)
        if offset <= self.offset < offset + len(payload):
            payload[self.offset - offset] ^= 1
        await self.node.write(offset, memoryview(payload), fua=fua)


async def test_a_target_that_returns_other_bytes_ends_the_copy_with_both_digests(tmp_path: Path):
    source, target = await frozen_source(writes=60), blank_target()
    env = real_env()
    key = LedgerKey(source.guid, "", "t", SIZE)
    ledger = await Ledger.open(env.control_files, tmp_path / "l", key)
    data = next(e for e in await source.extents(0, SIZE) if e.state.value == "data" and e.length > 512)
    with pytest.raises(IntegrityError) as caught:
        await copy_extents(source, Corrupting(target, data.offset + 5), ledger=ledger)
    assert caught.value.offset == data.offset
    assert caught.value.expected != caught.value.actual
    assert not ledger.is_done(data.offset, 512), "what did not verify is copied again"
    result = await copy_extents(source, target, ledger=ledger)
    assert target.content(0, SIZE) == source.content(0, SIZE)
    await ledger.remove()
    assert result.tree.root() == (await copy_extents(source, blank_target())).tree.root()


async def test_a_resumed_copy_reads_nothing_again_that_was_recorded(tmp_path: Path):
    source, target = await frozen_source(writes=60), blank_target()
    env = real_env()
    key = LedgerKey(source.guid, "", "t", SIZE)
    ledger = await Ledger.open(env.control_files, tmp_path / "l", key)
    writes: list[int] = []

    async def fail_late(operation, node, offset, length):
        if operation == "write":
            writes.append(offset)
            if len(writes) == 12:
                raise MediumError("the target fails")

    target.store.pace = fail_late
    first = CopyControl()
    with pytest.raises(MediumError):
        await copy_extents(source, target, ledger=ledger, control=first)
    await ledger.close()

    done_before = ledger.done_bytes
    assert done_before > 0
    ledger = await Ledger.open(env.control_files, tmp_path / "l", key)
    assert ledger.done_bytes == done_before
    writes.clear()
    second = CopyControl()
    seen: list[int] = []
    second.on_progress = lambda progress: seen.append(progress.done_bytes)
    target.store.pace = MemoryStore().pace
    result = await copy_extents(source, target, ledger=ledger, control=second)
    assert second.progress.resumed_bytes == done_before
    assert seen == sorted(seen)
    assert seen[0] == done_before
    assert seen[-1] == result.progress.total_bytes
    third = CopyControl()
    source.store.pace = target.store.pace = fail_late
    await copy_extents(source, target, ledger=ledger, control=third)
    assert third.progress.resumed_bytes == third.progress.total_bytes
    assert writes == []
    await ledger.remove()


async def test_a_smaller_target_is_refused():
    with pytest.raises(InvalidArgument):
        await copy_extents(await frozen_source(), MemoryStore().create_volume("small", MIB))


def test_extents_are_widened_to_leaves_and_merged():
    assert whole_leaves([Extent(LEAF_BYTES * 3, 512), Extent(0, 512), Extent(LEAF_BYTES - 512, 1024)], SIZE) == [
        Extent(0, 2 * LEAF_BYTES),
        Extent(3 * LEAF_BYTES, LEAF_BYTES),
    ]
    assert whole_leaves([Extent(SIZE - 512, 512)], SIZE) == [Extent(SIZE - 512, 512)]


async def interrupted_by_a_power_loss(seed: int, tmp_path: Path) -> tuple[bytes, bytes]:
    """A copy that fails half way, its target losing power, and the copy that goes on: what both sides hold then."""
    source, target = await frozen_source(seed, writes=60), blank_target()
    rng, env = random.Random(seed), real_env()
    path, key = tmp_path / f"ledger-{seed}", LedgerKey(source.guid, "", "t", SIZE)
    left = [rng.randrange(2, 14)]

    async def fail_late(operation, node, offset, length):
        left[0] -= operation == "write"
        if left[0] < 0 and operation == "write":
            raise MediumError("the machine goes down")

    target.store.pace = fail_late
    ledger = await Ledger.open(env.control_files, path, key)
    with pytest.raises(MediumError):
        await copy_extents(source, target, ledger=ledger)
    await ledger.close()
    again = target.store.crash(rng, power_loss=True).volumes()[0]
    ledger = await Ledger.open(env.control_files, path, key)
    await copy_extents(source, again, ledger=ledger)
    await ledger.remove()
    return source.content(0, SIZE), again.content(0, SIZE)


async def test_what_a_ledger_holds_is_at_the_target_after_a_power_loss(tmp_path: Path):
    for seed in range(12):
        expected, found = await interrupted_by_a_power_loss(seed, tmp_path)
        assert found == expected, f"seed {seed}"


async def test_recording_before_the_targets_flush_would_lose_data(tmp_path: Path, monkeypatch):
    async def no_flush(self):
        return

    monkeypatch.setattr(MemoryNode, "flush", no_flush)
    outcomes = [await interrupted_by_a_power_loss(seed, tmp_path) for seed in range(12)]
    assert any(found != expected for expected, found in outcomes)
