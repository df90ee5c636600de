"""Offloaded copies against a bytearray: every range, every overlap, holes, refusals."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import MediumError
from engine.offload import PIECE_BYTES, Offload
from engine.stores import ExtentState
from tests.support.memory_device import MemoryDevice

SECTOR = 512
SECTORS = 3 * PIECE_BYTES // SECTOR + 7


def filled(seed: int) -> MemoryDevice:
    """Runs of data, of zeroes that were written, and of holes."""
    device = MemoryDevice(SECTORS * SECTOR)
    states = (ExtentState.DATA, ExtentState.HOLE, ExtentState.ZERO, ExtentState.DATA)
    for sector in range(SECTORS):
        state = states[(sector * 2654435761 + seed * 40503 >> 16 >> 6) % 4]
        device.states[sector] = state
        if state is ExtentState.DATA:
            device.data[sector * SECTOR : (sector + 1) * SECTOR] = bytes((sector % 251 + 1,)) * SECTOR
    return device


@asynccontextmanager
async def free(_offset, _length):
    yield


@settings(max_examples=60, deadline=None)
@given(st.integers(0, SECTORS - 1), st.integers(0, SECTORS - 1), st.integers(1, SECTORS), st.booleans(), st.integers())
async def test_the_target_receives_what_the_source_held(start, at, sectors, same, seed):
    sectors = min(sectors, SECTORS - start, SECTORS - at)
    source = filled(seed)
    target = source if same else filled(seed + 1)
    expected = bytearray(target.data)
    expected[at * SECTOR : (at + sectors) * SECTOR] = source.data[start * SECTOR : (start + sectors) * SECTOR]
    told: list[int] = []
    await Offload().copy(source, start * SECTOR, target, at * SECTOR, sectors * SECTOR, hold=free, progress=told.append)
    assert target.data == expected
    assert told == sorted(told)
    assert told[-1] == sectors * SECTOR


async def test_what_reads_zero_is_not_moved():
    source, target = MemoryDevice(PIECE_BYTES), MemoryDevice(PIECE_BYTES)
    source.states[8:16] = [ExtentState.ZERO] * 8
    target.data[:] = b"x" * PIECE_BYTES
    target.states[:] = [ExtentState.DATA] * len(target.states)
    await Offload().copy(source, 0, target, 0, PIECE_BYTES, hold=free, progress=lambda done: None)
    assert target.states == source.states
    assert not any(name in ("read", "write") for name, _, _ in source.calls + target.calls)


async def test_pieces_are_small_and_end_where_the_targets_chunks_do():
    source, target = MemoryDevice(4 * PIECE_BYTES), MemoryDevice(4 * PIECE_BYTES)
    source.states[:] = [ExtentState.DATA] * len(source.states)
    await Offload().copy(source, 0, target, 65536, 2 * PIECE_BYTES, hold=free, progress=lambda done: None)
    writes = [(offset, length) for name, offset, length in target.calls if name == "write"]
    assert writes == [(65536, PIECE_BYTES - 65536), (PIECE_BYTES, PIECE_BYTES), (2 * PIECE_BYTES, 65536)]


async def test_progress_ends_a_copy_and_a_hold_refuses_it():
    source, target = MemoryDevice(4 * PIECE_BYTES), MemoryDevice(4 * PIECE_BYTES)
    source.data[:] = b"s" * len(source.data)
    source.states[:] = [ExtentState.DATA] * len(source.states)

    def enough(_done: int) -> None:
        raise asyncio.QueueFull

    with pytest.raises(asyncio.QueueFull):
        await Offload().copy(source, 0, target, 0, 4 * PIECE_BYTES, hold=free, progress=enough)
    assert target.data == b"s" * PIECE_BYTES + bytes(3 * PIECE_BYTES)

    @asynccontextmanager
    async def refuse(offset, _length):
        if offset:
            raise asyncio.QueueFull
        yield

    with pytest.raises(asyncio.QueueFull):
        await Offload().copy(source, 0, target, 0, 4 * PIECE_BYTES, hold=refuse, progress=lambda done: None)
    assert target.data[PIECE_BYTES:] == bytes(3 * PIECE_BYTES)


async def test_errors_of_both_devices_come_out():
    source, target = MemoryDevice(PIECE_BYTES), MemoryDevice(PIECE_BYTES)
    source.states[:] = [ExtentState.DATA] * len(source.states)
    for device, name in ((source, "read"), (target, "write")):
        device.errors[name] = MediumError("broken")
        with pytest.raises(MediumError):
            await Offload().copy(source, 0, target, 0, PIECE_BYTES, hold=free, progress=lambda done: None)


async def test_zero_gives_space_back():
    device = filled(1)
    await Offload().zero(device, SECTOR, 9 * SECTOR, hold=free, progress=lambda done: None)
    assert device.states[1:10] == [ExtentState.HOLE] * 9
    assert device.data[SECTOR : 10 * SECTOR] == bytes(9 * SECTOR)
