"""Commands that read and write the medium (SBC-3 section 5), for the initiators and sizes that the fast path leaves.

Order of effects of every write: the range is held in ``write_order``, the device is awaited, only then GOOD. With the
write cache off a write is a FUA write. Plain writes take the whole blocks that the initiator sent, if it announced
less than the CDB asks for (the transport reports the residual); commands that must not be done by halves refuse that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.stores import AtomicTarget
from iscsi.scsi import limits
from iscsi.scsi.command import ScsiResult, Status
from iscsi.scsi.sense import (
    Asc,
    CheckCondition,
    Sense,
    SenseKey,
    illegal_request,
    invalid_cdb_field,
)

if TYPE_CHECKING:
    from engine.stores import BlockDevice
    from iscsi.scsi.command import ScsiCommand
    from iscsi.scsi.lun import LogicalUnit, Nexus

_FUA = 0x08  # byte 1 of READ, WRITE and their kind
_BYTCHK_SHIFT, _BYTCHK_MASK = 1, 0x03  # byte 1 of VERIFY and WRITE AND VERIFY
_MEDIUM_ONLY, _COMPARE, _COMPARE_ONE_BLOCK = 0, 1, 3  # BYTCHK, SBC-3 table 133

_LENGTH_FIELD = {0: (4, 5), 1: (7, 9), 2: (7, 9), 4: (10, 14), 5: (6, 10)}
"""Where a CDB has its transfer length, by the group in its operation code's top bits (SPC-4 section 4.2.5)."""


# -- fields


def lba_of(cdb: bytes) -> int:
    group = cdb[0] >> 5
    if group == 0:
        return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF
    return int.from_bytes(cdb[2:10] if group == 4 else cdb[2:6], "big")


def blocks_of(cdb: bytes) -> int:
    group = cdb[0] >> 5
    start, end = _LENGTH_FIELD[group]
    blocks = int.from_bytes(cdb[start:end], "big")
    return 256 if group == 0 and not blocks else blocks  # READ(6), WRITE(6): 0 means 256


def check_range(lu: LogicalUnit, lba: int, blocks: int) -> None:
    """Raises LOGICAL BLOCK ADDRESS OUT OF RANGE with the first bad LBA in the information field."""
    if lba + blocks > lu.blocks:
        raise illegal_request(Asc.LBA_OUT_OF_RANGE, information=max(lba, lu.blocks))


def _extent(lu: LogicalUnit, cdb: bytes) -> tuple[int, int]:
    """LBA and number of blocks, within the medium and the maximum transfer length."""
    lba, blocks = lba_of(cdb), blocks_of(cdb)
    check_range(lu, lba, blocks)
    if blocks > limits.MAX_TRANSFER_BYTES >> lu.block_shift:
        raise invalid_cdb_field(_LENGTH_FIELD[cdb[0] >> 5][0])
    return lba, blocks


def transfer_bytes(lu: LogicalUnit, cdb: bytes) -> int:
    return blocks_of(cdb) << lu.block_shift


def verify_bytes(lu: LogicalUnit, cdb: bytes) -> int:
    check = cdb[1] >> _BYTCHK_SHIFT & _BYTCHK_MASK
    if check == _COMPARE_ONE_BLOCK:
        return lu.logical_block if blocks_of(cdb) else 0
    return transfer_bytes(lu, cdb) if check == _COMPARE else 0


def compare_and_write_bytes(lu: LogicalUnit, cdb: bytes) -> int:
    return 2 * cdb[13] << lu.block_shift


def require_exactly(command: ScsiCommand, wanted: int) -> memoryview:
    """The whole data of a command that must not be done by halves (SPC-4 annex F, 0Eh/03h)."""
    expected = len(command.data_out) if command.data_out_expected is None else command.data_out_expected
    if expected != wanted or len(command.data_out) < wanted:
        raise illegal_request(Asc.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT)
    return command.data_out[:wanted]


def miscompare(offset: int) -> CheckCondition:
    """``offset``: of the first byte that differs, in the data sent (SBC-3 section 5.3)."""
    return CheckCondition(Sense(SenseKey.MISCOMPARE, Asc.MISCOMPARE_DURING_VERIFY, information=offset))


def first_difference(left: bytearray, right: memoryview) -> int:
    """Index of the first byte that differs. They are of equal length and not equal."""
    low, high = 0, len(left)
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low


# -- the medium


async def read_blocks(lu: LogicalUnit, lba: int, blocks: int) -> bytearray:
    """A bytearray, because it compares with a memoryview by memcmp, which two memoryviews do not."""
    data = bytearray(blocks << lu.block_shift)
    offset = lba << lu.block_shift
    if blocks and not lu.device.try_read(offset, memoryview(data)):
        await lu.device.read(offset, memoryview(data))
    return data


async def write_blocks(lu: LogicalUnit, lba: int, data: memoryview, *, fua: bool) -> None:
    if data:
        await lu.device.write(lba << lu.block_shift, data, fua=fua or not lu.mode.write_cache)


async def read(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """READ(6/10/12/16). FUA: what the write cache holds for the range goes to the medium first (SBC-3 table 65)."""
    cdb = command.cdb
    lba, blocks = _extent(lu, cdb)
    if cdb[0] >> 5 and cdb[1] & _FUA:
        await lu.device.flush()
    return ScsiResult(data_in=memoryview(await read_blocks(lu, lba, blocks)))


async def write(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """WRITE(6/10/12/16)."""
    cdb = command.cdb
    lba, blocks = _extent(lu, cdb)
    data = _whole_blocks(lu, command, blocks)
    async with lu.write_order.hold(lba, blocks):
        await write_blocks(lu, lba, data, fua=bool(cdb[0] >> 5 and cdb[1] & _FUA))
    return ScsiResult()


def _whole_blocks(lu: LogicalUnit, command: ScsiCommand, blocks: int) -> memoryview:
    length = min(len(command.data_out), blocks << lu.block_shift)
    return command.data_out[: length - length % lu.logical_block]


async def write_and_verify(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """WRITE AND VERIFY(10/12/16): durable first (SBC-3 section 5.43), then read back, compared with BYTCHK = 01b."""
    cdb = command.cdb
    lba, blocks = _extent(lu, cdb)
    check = cdb[1] >> _BYTCHK_SHIFT & _BYTCHK_MASK
    if check not in (_MEDIUM_ONLY, _COMPARE):
        raise invalid_cdb_field(1, 2)
    data = _whole_blocks(lu, command, blocks)
    async with lu.write_order.hold(lba, blocks, exclusive=True):
        await write_blocks(lu, lba, data, fua=True)
        found = await read_blocks(lu, lba, len(data) >> lu.block_shift)
    if check == _COMPARE and found != data:
        raise miscompare(first_difference(found, data))
    return ScsiResult()


async def verify(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """VERIFY(10/12/16), in pieces."""
    cdb = command.cdb
    check = cdb[1] >> _BYTCHK_SHIFT & _BYTCHK_MASK
    if check not in (_MEDIUM_ONLY, _COMPARE, _COMPARE_ONE_BLOCK):
        raise invalid_cdb_field(1, 2)
    lba, blocks = _extent(lu, cdb)
    data = require_exactly(command, verify_bytes(lu, cdb)) if check else memoryview(b"")
    piece = limits.PIECE_BYTES >> lu.block_shift
    same = memoryview(bytes(data) * min(piece, blocks)) if check == _COMPARE_ONE_BLOCK else data
    for start in range(0, blocks, piece):
        found = await read_blocks(lu, lba + start, min(piece, blocks - start))
        at = start << lu.block_shift
        wanted = data[at : at + len(found)] if check == _COMPARE else same[: len(found)]
        if check and found != wanted:
            raise miscompare(at + first_difference(found, wanted))
    return ScsiResult()


def writes_atomically(device: BlockDevice) -> bool:
    return isinstance(device, AtomicTarget) and device.atomic_write_bytes > 0


async def write_atomic(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """WRITE ATOMIC(16) (SBC-4): after a power loss all of it is there, or nothing. No atomic boundary."""
    cdb = command.cdb
    lba, blocks = _extent(lu, cdb)
    if blocks > lu.max_atomic_blocks:
        raise invalid_cdb_field(12)
    data = require_exactly(command, blocks << lu.block_shift)
    if data:
        assert isinstance(lu.device, AtomicTarget)
        fua = bool(cdb[1] & _FUA) or not lu.mode.write_cache
        async with lu.write_order.hold(lba, blocks):
            await lu.device.write_atomic(lba << lu.block_shift, data, fua=fua)
    return ScsiResult()


async def compare_and_write(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """COMPARE AND WRITE (SBC-3 section 5.3): nothing else writes the range between the comparison and the write."""
    cdb = command.cdb
    lba, blocks = lba_of(cdb), cdb[13]
    check_range(lu, lba, blocks)
    if not blocks:
        if command.data_out or command.data_out_expected:
            raise invalid_cdb_field(13)
        return ScsiResult()
    length = blocks << lu.block_shift
    data = require_exactly(command, 2 * length)
    async with lu.write_order.hold(lba, blocks, exclusive=True):
        found = await read_blocks(lu, lba, blocks)
        if found != data[:length]:
            raise miscompare(first_difference(found, data[:length]))
        await write_blocks(lu, lba, data[length:], fua=bool(cdb[1] & _FUA))
    return ScsiResult()


async def or_write(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """ORWRITE(16) (SBC-3 section 5.10): the medium becomes what it was OR the data."""
    cdb = command.cdb
    lba, blocks = _extent(lu, cdb)
    data = require_exactly(command, blocks << lu.block_shift)
    async with lu.write_order.hold(lba, blocks, exclusive=True):
        found = await read_blocks(lu, lba, blocks)
        merged = int.from_bytes(found, "big") | int.from_bytes(data, "big")
        await write_blocks(lu, lba, memoryview(merged.to_bytes(len(found), "big")), fua=bool(cdb[1] & _FUA))
    return ScsiResult()


async def prefetch(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """PRE-FETCH(10/16): the host's page cache is the cache, so there is nothing to do; CONDITION MET says it fits."""
    lba, blocks = lba_of(command.cdb), blocks_of(command.cdb)
    check_range(lu, lba, blocks)
    return ScsiResult(Status.CONDITION_MET)


async def synchronize_cache(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """SYNCHRONIZE CACHE(10/16): the whole device whatever the range. IMMED is waited for: nobody can be told later."""
    lba, blocks = lba_of(command.cdb), blocks_of(command.cdb)
    check_range(lu, lba, blocks)
    await lu.device.flush()
    return ScsiResult()


async def read_capacity_10(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    last = min(lu.blocks - 1, 0xFFFFFFFF)
    return ScsiResult(data_in=last.to_bytes(4, "big") + lu.logical_block.to_bytes(4, "big"))


async def read_capacity_16(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    return ScsiResult(data_in=capacity_16(lu)[: int.from_bytes(command.cdb[10:14], "big")])


def capacity_16(lu: LogicalUnit) -> bytes:
    """SBC-3 section 5.18.2: LBPPBE, lowest aligned LBA 0; LBPME and LBPRZ when thin."""
    data = bytearray(32)
    data[0:8] = (lu.blocks - 1).to_bytes(8, "big")
    data[8:12] = lu.logical_block.to_bytes(4, "big")
    data[13] = (lu.physical_block // lu.logical_block).bit_length() - 1
    data[14] = 0xC0 if lu.thin else 0
    return bytes(data)


async def read_defect_data_10(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """SBC-3 section 5.20: both lists are empty, in whatever format was asked for."""
    cdb = command.cdb
    header = bytes((0, cdb[2] & 0x1F, 0, 0))
    return ScsiResult(data_in=header[: int.from_bytes(cdb[7:9], "big")])


async def read_defect_data_12(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    cdb = command.cdb
    header = bytes((0, cdb[1] & 0x1F)) + bytes(6)
    return ScsiResult(data_in=header[: int.from_bytes(cdb[6:10], "big")])
