"""Offloaded copies inside one family: chunks are shared, only edges move, and nobody can tell by reading."""

from __future__ import annotations

from contextlib import asynccontextmanager

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.offload import SHARE_LIVE_BYTES, Offload
from engine.units import MIB
from engine.volume import Volume
from tests.support.memory_store import CHUNK, MemoryStore

SIZE = 2 * SHARE_LIVE_BYTES + 4 * CHUNK


class Family:
    """Two volumes of one family, full of data that differs everywhere."""

    def __init__(self, *, share_unit: int = CHUNK) -> None:
        self.store = MemoryStore(share_unit=share_unit)
        self.one, self.two = (Volume(self.store.create_volume(name, SIZE)) for name in ("one", "two"))
        self.written = 0

        async def pace(operation, _node, _offset, length):
            self.written += length if operation == "write" else 0

        self.store.pace = pace

    async def fill(self) -> None:
        for number, volume in enumerate((self.one, self.two)):
            data = b"".join((number * SIZE + at).to_bytes(8, "big") * 64 for at in range(0, SIZE, 512))
            await volume.write(0, memoryview(data))
        self.written = 0

    async def copy(self, source, start, target, at, length) -> list[int]:
        told: list[int] = []
        await Offload().copy(source, start, target, at, length, hold=free, progress=told.append)
        return told


@asynccontextmanager
async def free(_offset, _length):
    yield


def content(device) -> bytes:
    return getattr(device, "head", device).content(0, SIZE)


def shared_chunks(one, two) -> int:
    return sum(chunk is two.head.chunks.get(index) for index, chunk in one.head.chunks.items())


@settings(max_examples=60, deadline=None)
@given(
    st.booleans(),
    st.booleans(),
    st.integers(0, SIZE // CHUNK - 1),
    st.integers(0, SIZE // CHUNK - 1),
    st.sampled_from((0, 512, CHUNK - 512)),
    st.sampled_from((0, 0, 0, 512)),
    st.integers(1, SIZE // 512),
)
async def test_whatever_is_shared_reads_as_a_copy(frozen, same, start, at, within, shift, sectors):
    family = Family()
    await family.fill()
    source = await family.store.snapshot(family.one.head, "s") if frozen else family.one
    target = family.one if same else family.two
    start, at = start * CHUNK + within, at * CHUNK + within + shift
    length = min(sectors * 512, SIZE - start, SIZE - at)
    if length <= 0:
        return
    model = bytearray(content(target))
    model[at : at + length] = content(source)[start : start + length]
    told = await family.copy(source, start, target, at, length)
    assert content(target) == model
    assert told == sorted(told)
    assert told[-1] == length
    assert len(family.store.snapshots()) == frozen


async def test_only_the_edges_move():
    family = Family()
    await family.fill()
    frozen = await family.store.snapshot(family.one.head, "s")
    await family.copy(frozen, 512, family.two, CHUNK + 512, 5 * CHUNK)
    assert shared_chunks(family.one, family.two) == 0  # in other places
    assert [family.two.head.chunks[index + 1] is frozen.chunks[index] for index in range(1, 5)] == [True] * 4
    assert family.written == 4 * CHUNK + CHUNK  # the length shared, and two edges


async def test_a_live_volume_is_frozen_for_large_copies_only():
    family = Family()
    await family.fill()
    await family.copy(family.one, 0, family.two, 0, SHARE_LIVE_BYTES - CHUNK)
    assert shared_chunks(family.one, family.two) == 0
    await family.copy(family.one, 0, family.two, 0, SHARE_LIVE_BYTES)
    assert shared_chunks(family.one, family.two) == SHARE_LIVE_BYTES // CHUNK
    assert family.store.snapshots() == []


async def test_data_moves_where_it_cannot_be_shared():
    family, other = Family(), Family(share_unit=0)
    await family.fill()
    frozen = await family.store.snapshot(family.one.head, "s")
    await family.copy(frozen, 0, other.two, 0, MIB)  # another family
    assert other.two.head.content(0, MIB) == frozen.content(0, MIB)
    await family.copy(frozen, 0, family.two, 512, MIB)  # not in step
    assert shared_chunks(family.one, family.two) == 0
    assert family.two.head.content(512, MIB) == frozen.content(0, MIB)


async def test_a_mirrored_volume_gets_data_so_that_its_mirror_does():
    family = Family()
    await family.fill()
    frozen = await family.store.snapshot(family.one.head, "s")
    seen: list[tuple[int, int]] = []

    class Tap:
        def submit(self, change):
            seen.append((change.offset, change.length))

    family.two.attach(Tap())
    await family.copy(frozen, 0, family.two, 0, MIB)
    assert sum(length for _, length in seen) == MIB
    assert shared_chunks(family.one, family.two) == 0


async def test_what_the_store_has_no_room_to_share_is_moved():
    family = Family()
    await family.fill()
    frozen = await family.store.snapshot(family.one.head, "s")
    family.store.share_room = 3 * CHUNK
    told = await family.copy(frozen, 0, family.two, 0, 8 * CHUNK)
    assert family.two.head.content(0, 8 * CHUNK) == frozen.content(0, 8 * CHUNK)
    assert shared_chunks(family.one, family.two) == 3
    assert told[0] == 3 * CHUNK
    assert told[-1] == 8 * CHUNK
