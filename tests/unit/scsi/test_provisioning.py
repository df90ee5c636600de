"""UNMAP, WRITE SAME, GET LBA STATUS."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.stores import ExtentState
from tests.support.memory_device import MemoryDevice
from tests.support.scsi_host import (
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    LBA_OUT_OF_RANGE,
    PARAMETER_LIST_LENGTH_ERROR,
    WRONG_DATA_LENGTH,
    Host,
    disk,
)

A = b"A" * 512


async def unmap(host: Host, *extents: tuple[int, int], expect=None) -> None:
    descriptors = b"".join(lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(4) for lba, blocks in extents)
    length = len(descriptors)
    data = (length + 6).to_bytes(2, "big") + length.to_bytes(2, "big") + bytes(4) + descriptors
    kwargs = {} if expect is None else {"expect": expect}
    await host.send(f"42 00 00 00 00 00 00 {len(data):04x} 00", data, **kwargs)


def filled(blocks: int = 64) -> tuple[MemoryDevice, Host]:
    device = MemoryDevice(blocks * 512)
    device.data[:] = A * blocks
    device.states[:] = [ExtentState.DATA] * blocks
    return device, Host(disk(device=device))


async def test_unmapped_blocks_read_zero_at_any_alignment():
    device, host = filled()
    await unmap(host, (1, 3), (10, 0), (63, 1))
    assert device.data == A + bytes(3 * 512) + A * 59 + bytes(512)
    assert device.states[1] is ExtentState.HOLE


async def test_unmap_checks_everything_before_it_does_anything():
    device, host = filled()
    await unmap(host, (0, 1), (60, 5), expect=LBA_OUT_OF_RANGE)
    await unmap(host, (0, 1), (64, 0))
    assert device.data == bytes(512) + A * 63


@pytest.mark.parametrize(
    ("cdb", "data", "expect"),
    [
        ("42 01 00 00 00 00 00 00 18 00", bytes(24), INVALID_FIELD_IN_CDB),  # ANCHOR
        ("42 00 00 00 00 00 00 00 07 00", bytes(7), PARAMETER_LIST_LENGTH_ERROR),
        ("42 00 00 00 00 00 00 00 18 00", bytes(23), PARAMETER_LIST_LENGTH_ERROR),
        ("42 00 00 00 00 00 00 00 08 00", b"\x00\x16\x00\x10" + bytes(4), PARAMETER_LIST_LENGTH_ERROR),
        ("42 00 00 00 00 00 00 10 18 00", b"\x10\x16\x10\x10" + bytes(4116), INVALID_FIELD_IN_PARAMETER_LIST),
    ],
)
async def test_unmap_checks_its_list(cdb, data, expect):
    await Host(disk()).send(cdb, data, expect)


async def test_unmap_without_parameter_list_is_good():
    await Host(disk()).send("42 00 00 00 00 00 00 00 00 00")


def write_same(lba: int, blocks: int, flags: int = 0, *, long: bool) -> str:
    if long:
        return f"93 {flags:02x} {lba:016x} {blocks:08x} 00 00"
    return f"41 {flags:02x} {lba:08x} 00 {blocks:04x} 00"


@pytest.mark.parametrize("long", [False, True])
async def test_write_same_repeats_the_block(long):
    device = MemoryDevice(8192 * 512)
    host = Host(disk(device=device))
    await host.send(write_same(1, 5000, long=long), A)
    assert device.data == bytes(512) + A * 5000 + bytes(3191 * 512)
    assert max(call[2] for call in device.calls) <= 1 << 20


@pytest.mark.parametrize("long", [False, True])
async def test_write_same_of_zeroes_allocates_nothing_and_unmap_frees(long):
    device, host = filled()
    await host.send(write_same(0, 2, long=long), bytes(512))
    await host.send(write_same(2, 2, 0x08, long=long), bytes(512))
    await host.send(write_same(4, 1, 0x08, long=long), A)
    zero, hole, data = ExtentState.ZERO, ExtentState.HOLE, ExtentState.DATA
    assert device.states[:5] == [zero, zero, hole, hole, data]


async def test_write_same_16_without_data():
    device, host = filled()
    await host.send(write_same(0, 1, 0x09, long=True))
    assert device.data[:1024] == bytes(512) + A


@pytest.mark.parametrize("long", [False, True])
async def test_write_same_refuses(long):
    host = Host(disk(4096))
    await host.send(write_same(0, 0, long=long), A, INVALID_FIELD_IN_CDB)  # WSNZ
    await host.send(write_same(0, 1, 0x18, long=long), A, INVALID_FIELD_IN_CDB)  # ANCHOR
    await host.send(write_same(0, 1, 0x20, long=long), A, INVALID_FIELD_IN_CDB)  # WRPROTECT
    await host.send(write_same(4096, 1, long=long), A, LBA_OUT_OF_RANGE)
    await host.send(write_same(0, 1, 0x08, long=long), A + A, WRONG_DATA_LENGTH)
    await host.send(write_same(0, 1, long=long), A[:256], WRONG_DATA_LENGTH)


def get_lba_status(lba: int, allocation: int = 0xFFFF) -> str:
    return f"9e 12 {lba:016x} {allocation:08x} 00 00"


def statuses(data: bytes) -> list[tuple[int, int, int]]:
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    return [
        (int.from_bytes(data[at : at + 8], "big"), int.from_bytes(data[at + 8 : at + 12], "big"), data[at + 12])
        for at in range(8, len(data), 16)
    ]


async def test_get_lba_status_tells_mapped_from_deallocated():
    _, host = filled(64)
    await unmap(host, (8, 8))
    await host.send(write_same(0, 1, long=False), bytes(512))
    assert statuses(await host.data(get_lba_status(0))) == [(0, 8, 0), (8, 8, 1), (16, 48, 0)]
    assert statuses(await host.data(get_lba_status(9))) == [(9, 7, 1), (16, 48, 0)]
    assert len(await host.data(get_lba_status(0, 24))) == 24
    await host.send(get_lba_status(64), expect=LBA_OUT_OF_RANGE)
    await host.send(get_lba_status(1 << 63), expect=LBA_OUT_OF_RANGE)


@given(st.lists(st.sampled_from(list(ExtentState)), min_size=64, max_size=64), st.integers(0, 7))
async def test_a_4_kib_block_is_deallocated_only_as_a_whole(states, lba):
    device = MemoryDevice(64 * 512)
    device.states[:] = states
    host = Host(disk(device=device, logical_block=4096))
    expected = [all(state is ExtentState.HOLE for state in states[at * 8 : at * 8 + 8]) for at in range(8)]
    found: list[bool] = []
    end = lba
    for start, blocks, status in statuses(await host.data(get_lba_status(lba))):
        assert start == end
        end = start + blocks
        found += [status == 1] * blocks
    assert found == expected[lba:]


async def test_get_lba_status_looks_no_further_than_it_must():
    device = MemoryDevice(64 << 20)
    device.states[0] = ExtentState.DATA
    host = Host(disk(device=device))
    assert statuses(await host.data(get_lba_status(1, 24))) == [(1, 131071, 1)]
    device.calls.clear()
    assert statuses(await host.data(get_lba_status(0, 24))) == [(0, 1, 0)]
    assert device.calls == [("extents", 0, 1 << 20)]
