"""Logical block provisioning (SBC-3 section 4.7): UNMAP, WRITE SAME, GET LBA STATUS.

A device reads zero where it was discarded, so LBPRZ = 1 holds for any alignment. Nothing is ever anchored: ANCHOR is
refused, as SBC-3 asks when ANC_SUP is 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.stores import ExtentState
from engine.units import GIB, MIB
from iscsi.scsi import limits
from iscsi.scsi.command import ScsiResult
from iscsi.scsi.sbc import blocks_of, check_range, lba_of, require_exactly, write_blocks
from iscsi.scsi.sense import Asc, illegal_request, invalid_cdb_field, invalid_parameter

if TYPE_CHECKING:
    from iscsi.scsi.command import ScsiCommand
    from iscsi.scsi.lun import LogicalUnit, Nexus

_UNMAP, _ANCHOR, _NDOB = 0x08, 0x10, 0x01  # byte 1 of WRITE SAME, SBC-3 table 107
_WRITE_SAME_10, _WRITE_SAME_16 = 0x41, 0x93
_DESCRIPTOR = 16  # bytes of an UNMAP block descriptor and of an LBA status descriptor
_MAX_STATUS_DESCRIPTORS = 256
_STATUS_WINDOW_BYTES = 1 * MIB
"""GET LBA STATUS first looks this far: mostly one descriptor is asked for."""
_STATUS_REACH_BYTES = 4 * GIB
"""And never further than this in one command; the host asks again from where the answer ends."""
_MAPPED, _DEALLOCATED = 0, 1  # provisioning status, SBC-3 table 45


def write_same_bytes(lu: LogicalUnit, cdb: bytes) -> int:
    return 0 if cdb[0] == _WRITE_SAME_16 and cdb[1] & _NDOB else lu.logical_block


async def write_same(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """WRITE SAME(10/16) (SBC-3 sections 5.44, 5.45). A block of zeroes with UNMAP is a discard."""
    cdb = command.cdb
    lba, blocks = lba_of(cdb), blocks_of(cdb)
    if cdb[1] & _ANCHOR:
        raise invalid_cdb_field(1, 4)
    unmap = bool(cdb[1] & _UNMAP)
    if unmap and not lu.thin:
        raise invalid_cdb_field(1, 3)
    check_range(lu, lba, blocks)
    if not 0 < blocks <= limits.MAX_WRITE_SAME_BLOCKS:
        raise invalid_cdb_field(7 if cdb[0] == _WRITE_SAME_10 else 10)
    block = bytes(require_exactly(command, write_same_bytes(lu, cdb)))
    async with lu.write_order.hold(lba, blocks):
        offset, length = lba << lu.block_shift, blocks << lu.block_shift
        if block.strip(b"\0"):
            await _repeat(lu, lba, blocks, block)
        elif unmap:
            await lu.device.discard(offset, length)
        else:
            await lu.device.write_zeroes(offset, length, fua=not lu.mode.write_cache)
    return ScsiResult()


async def _repeat(lu: LogicalUnit, lba: int, blocks: int, block: bytes) -> None:
    piece = min(blocks, limits.PIECE_BYTES >> lu.block_shift)
    data = memoryview(block * piece)
    for start in range(0, blocks, piece):
        count = min(piece, blocks - start)
        await write_blocks(lu, lba + start, data[: count << lu.block_shift], fua=False)


def unmap_bytes(lu: LogicalUnit, cdb: bytes) -> int:
    return int.from_bytes(cdb[7:9], "big")


async def unmap(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """UNMAP (SBC-3 section 5.35). All descriptors are checked before the first has an effect."""
    extents = _unmap_descriptors(lu, command)
    if extents:
        first = min(lba for lba, _ in extents)
        end = max(lba + blocks for lba, blocks in extents)
        # One range for all: who waits for the writes that run must not slip through between two extents.
        async with lu.write_order.hold(first, end - first):
            for lba, blocks in extents:
                await lu.device.discard(lba << lu.block_shift, blocks << lu.block_shift)
    return ScsiResult()


def _unmap_descriptors(lu: LogicalUnit, command: ScsiCommand) -> list[tuple[int, int]]:
    length = unmap_bytes(lu, command.cdb)
    if length == 0:
        return []
    data = command.data_out[:length]
    if not 8 <= length == len(data):
        raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
    announced = int.from_bytes(data[2:4], "big")
    if announced > length - 8:
        raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
    count = announced // _DESCRIPTOR
    if count > limits.MAX_UNMAP_DESCRIPTORS:
        raise invalid_parameter(2)
    extents = []
    total = 0
    for at in range(8, 8 + count * _DESCRIPTOR, _DESCRIPTOR):
        lba = int.from_bytes(data[at : at + 8], "big")
        blocks = int.from_bytes(data[at + 8 : at + 12], "big")
        total += blocks
        check_range(lu, lba, blocks)
        if total > limits.MAX_UNMAP_BLOCKS:
            raise invalid_parameter(at + 8)
        if blocks:
            extents.append((lba, blocks))
    return extents


async def get_lba_status(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """GET LBA STATUS (SBC-3 section 5.4): merged extents from the starting LBA on, at least one."""
    cdb = command.cdb
    lba = lba_of(cdb)
    check_range(lu, lba, 1)
    allocation = int.from_bytes(cdb[10:14], "big")
    room = max(1, min(_MAX_STATUS_DESCRIPTORS, (allocation - 8) // _DESCRIPTOR))
    descriptors = b"".join(
        start.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes((status, 0, 0, 0))
        for start, blocks, status in (await _statuses(lu, lba, room))[:room]
    )
    data = (len(descriptors) + 4).to_bytes(4, "big") + bytes(4) + descriptors
    return ScsiResult(data_in=data[:allocation])


async def _statuses(lu: LogicalUnit, lba: int, enough: int) -> list[tuple[int, int, int]]:
    """(LBA, blocks, provisioning status) of the extents from ``lba``, neighbours of one status merged.

    Looks in windows of growing size until there are more than ``enough`` (so that those are whole), or far enough.
    """
    merged: list[tuple[int, int, int]] = []
    limit = min(lu.blocks, lba + (_STATUS_REACH_BYTES >> lu.block_shift))
    window = _STATUS_WINDOW_BYTES >> lu.block_shift
    while lba < limit and len(merged) <= enough:
        end = min(limit, lba + window)
        await _append_window(lu, lba, end, merged)
        lba = end
        window *= 4
    return merged


async def _append_window(lu: LogicalUnit, lba: int, end: int, merged: list[tuple[int, int, int]]) -> None:
    """A block is deallocated only if all of it is; extents are in 512-byte sectors, blocks may be longer."""
    shift = lu.block_shift
    at = lba
    for extent in await lu.device.extents(lba << shift, (end - lba) << shift):
        if extent.state is not ExtentState.HOLE:
            continue
        start, stop = -(-extent.offset >> shift), extent.end >> shift
        if start < stop:
            _append(merged, at, start, _MAPPED)
            _append(merged, start, stop, _DEALLOCATED)
            at = stop
    _append(merged, at, end, _MAPPED)


def _append(merged: list[tuple[int, int, int]], start: int, end: int, status: int) -> None:
    if start >= end:
        return
    if merged and merged[-1][2] == status:
        start, _, _ = merged.pop()
    merged.append((start, end - start, status))
