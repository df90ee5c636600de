"""Images against models: chains against their content, logs against writes in their order, what is written against what
is read."""

from __future__ import annotations

import asyncio
import random
import tempfile
import uuid
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.copy_job import CopyOptions, copy_extents
from engine.image_device import RawImage
from engine.streams import StreamFile
from engine.units import KIB, MIB
from engine.vhdx.chain import VhdxImage
from engine.vhdx.layout import BlockState, Header
from engine.vhdx.log import SECTOR, LogEntry, Page, Replay, Zeroes
from engine.vhdx.writer import Layout, VhdxTarget
from tests.support.memory_device import MemoryDevice
from tests.support.vhdx_files import Block, MadeVhdx

GUID = uuid.UUID(int=5)
BLOCKS = 3


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


# --- chains -------------------------------------------------------------------------------------------------------

runs_of_sectors = st.lists(st.tuples(st.integers(0, 2047), st.sampled_from([1, 2, 7, 64, 1500])), max_size=4)
"""First sector and how many."""


@st.composite
def chains(draw: st.DrawFn) -> MadeVhdx:
    """The top of a chain of up to four files, in any states."""
    sector = draw(st.sampled_from([512, 4096]))
    size = BLOCKS * MIB - draw(st.integers(0, 20)) * sector
    below: MadeVhdx | None = None
    for level in range(draw(st.integers(1, 4))):
        made = MadeVhdx(size, MIB, sector, parent=below, pairs={"relative_path": f"{level - 1}.vhdx"})
        for number in range(BLOCKS):
            states = [s for s in BlockState if below is not None or s != BlockState.PARTIALLY_PRESENT]
            state = draw(st.sampled_from(states))
            runs = draw(runs_of_sectors) if state == BlockState.PARTIALLY_PRESENT else []
            here = {s for first, count in runs for s in range(first, first + count) if s < MIB // sector}
            data = noise(level * 10 + number, MIB) if state >= BlockState.FULLY_PRESENT else b""
            made.blocks[number] = Block(state, data, frozenset(here))
        below = made
    assert below is not None
    return below


@settings(max_examples=40)
@given(chains(), st.lists(st.tuples(st.integers(0, 6000), st.integers(1, 3000)), max_size=4))
def test_any_range_of_any_chain_reads_as_the_model_says(top: MadeVhdx, ranges: list[tuple[int, int]]):
    with tempfile.TemporaryDirectory() as folder:
        files = []
        one: MadeVhdx | None = top
        while one is not None:
            files.append(one)
            one = one.parent
        for level, each in enumerate(reversed(files)):
            each.write(Path(folder) / f"{level}.vhdx")
        content = top.content()
        asyncio.run(check_ranges(Path(folder) / f"{len(files) - 1}.vhdx", content, [(0, len(content)), *ranges]))


async def check_ranges(path: Path, content: bytes, ranges: list[tuple[int, int]]) -> None:
    image = await VhdxImage.open(path)
    try:
        for first, count in ranges:
            at = min(first * 512, len(content) - 512)
            length = min(count * 512, len(content) - at)
            found = bytearray(length)
            await image.read(at, memoryview(found))
            assert found == content[at : at + length]
            assert sum(extent.length for extent in await image.extents(at, length)) == length
    finally:
        await image.close()


# --- logs ---------------------------------------------------------------------------------------------------------

BASE, PAGES = 4 * MIB, 12


def page(number: int, seed: int) -> Page:
    return Page(BASE + number * SECTOR, noise(seed, SECTOR))


def zeroes(number: int, count: int) -> Zeroes:
    return Zeroes(BASE + number * SECTOR, min(count, PAGES - number) * SECTOR)


numbers = st.integers(0, PAGES - 1)
changes = st.lists(st.builds(page, numbers, st.integers()) | st.builds(zeroes, numbers, st.integers(0, 6)), max_size=5)


@given(st.lists(changes, min_size=1, max_size=6), st.integers(0, 255), st.integers(0, 5), st.data())
def test_a_replay_is_the_changes_in_their_order(
    batches: list[list[Page | Zeroes]], start: int, tail: int, data: st.DataObject
):
    log, at, places = bytearray(MIB), start * SECTOR, []
    for number, batch in enumerate(batches):
        places.append(at)
        oldest = places[min(tail, number)]
        entry = LogEntry(number + 1, oldest, GUID, 0, 8 * MIB, tuple(batch)).serialize()
        for offset in range(0, len(entry), SECTOR):
            place = (at + offset) % MIB
            log[place : place + SECTOR] = entry[offset : offset + SECTOR]
        at = (at + len(entry)) % MIB
    model = bytearray(noise(1, PAGES * SECTOR))
    found = bytes(model)
    for change in (change for batch in batches[min(tail, len(batches) - 1) :] for change in batch):
        place = change.offset - BASE
        new = change.data if isinstance(change, Page) else bytes(change.length)
        model[place : place + len(new)] = new
    replay = Replay.of(log, Header(1, GUID, GUID, GUID, MIB, MIB), 8 * MIB)
    first = data.draw(st.integers(0, PAGES * SECTOR - 1))
    last = data.draw(st.integers(first, PAGES * SECTOR))
    view = bytearray(found[first:last])
    replay.apply(BASE + first, memoryview(view))
    assert view == model[first:last]


# --- writing ------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    st.integers(1, 12 * MIB // 512),
    st.lists(st.tuples(st.integers(0, 12 * MIB // 512), st.sampled_from([1, 100, 128, 2048, 5000])), max_size=5),
    st.booleans(),
)
def test_what_is_written_reads_back(sectors: int, ranges: list[tuple[int, int]], fixed: bool):
    asyncio.run(check_written(sectors * 512, ranges, fixed))


async def check_written(size: int, ranges: list[tuple[int, int]], fixed: bool) -> None:
    source = MemoryDevice(size)
    for first, count in ranges:
        length = min(count * 512, size - first * 512)
        if length > 0:
            await source.write(first * 512, memoryview(noise(first, length)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.vhdx"
        layout = await Layout.of(source, fixed=fixed)
        file = await StreamFile.create(path, layout.file_bytes)
        try:
            target = VhdxTarget(file, layout)
            await copy_extents(source, target, options=CopyOptions(blank_target=True))
            await target.finish()
        finally:
            await file.close()
        await check_ranges(path, bytes(source.data), [(0, size // 512)])
        assert (
            path.stat().st_blocks * 512
            <= sum(-(-count * 512 // (64 * KIB)) + 1 for _, count in ranges) * 64 * KIB + MIB
        )


@given(st.binary(max_size=3000), st.integers(0, 3000), st.integers(0, 9))
def test_a_raw_image_reads_as_its_bytes_and_zeroes(data: bytes, start: int, count: int):
    async def check() -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "i"
            path.write_bytes(data + b"x")
            image = await RawImage.open(path)
            try:
                whole = (data + b"x").ljust(image.size_bytes, b"\0")
                assert image.size_bytes % 512 == 0
                at = min(start // 512 * 512, image.size_bytes)
                found = bytearray(min(count * 512, image.size_bytes - at))
                await image.read(at, memoryview(found))
                assert found == whole[at : at + len(found)]
            finally:
                await image.close()

    asyncio.run(check())
