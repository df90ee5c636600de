"""CDBs that the initiator sends and what comes back (SPC-4 section 6, SBC-3 section 5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from iscsi.initiator.errors import CommandFailed
from iscsi.wire.lun import decode_lun

_READ_WRITE_16 = struct.Struct(">BBQIBB")  # READ(16), WRITE(16), SYNCHRONIZE CACHE(16), WRITE SAME(16)
_UNMAP_HEAD = struct.Struct(">HHI")
_UNMAP_DESCRIPTOR = struct.Struct(">QII")

_LBA_STATUS = struct.Struct(">QIB3x")
_NOT_MAPPED = (1, 2)  # provisioning status: deallocated, anchored

TEST_UNIT_READY = bytes(6).ljust(16, b"\0")
READ_CAPACITY_LENGTH = 32
BLOCK_LIMITS_LENGTH = 64
LBA_STATUS_LENGTH = 8 + 16 * 1024
"""The most descriptors that are asked for at a time."""
REPORT_LUNS_LENGTH = 8 + 8 * 256

_FUA = 0x08
_UNMAP_BIT = 0x08  # of WRITE SAME
SERVICE_ACTION_IN_16 = 0x9E


def _block_command(opcode: int, flags: int, lba: int, blocks: int) -> bytes:
    return _READ_WRITE_16.pack(opcode, flags, lba, blocks, 0, 0)


def read16(lba: int, blocks: int) -> bytes:
    return _block_command(0x88, 0, lba, blocks)


def write16(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    return _block_command(0x8A, _FUA if fua else 0, lba, blocks)


def synchronize_cache16() -> bytes:
    """Of the whole medium."""
    return _block_command(0x91, 0, 0, 0)


def write_same16(lba: int, blocks: int, *, unmap: bool = False) -> bytes:
    """``unmap``: the target may deallocate instead of writing, if the block is zero."""
    return _block_command(0x93, _UNMAP_BIT if unmap else 0, lba, blocks)


def unmap(lba: int, blocks: int) -> tuple[bytes, bytes]:
    """CDB and parameter list for one extent."""
    descriptor = _UNMAP_DESCRIPTOR.pack(lba, blocks, 0)
    parameters = _UNMAP_HEAD.pack(6 + len(descriptor), len(descriptor), 0) + descriptor
    return b"\x42" + bytes(6) + len(parameters).to_bytes(2, "big") + bytes(7), parameters


def inquiry(page: int | None, length: int) -> bytes:
    """Standard INQUIRY data, or a vital product data page."""
    return bytes((0x12, page is not None, page or 0)) + length.to_bytes(2, "big") + bytes(11)


def read_capacity16() -> bytes:
    return bytes((SERVICE_ACTION_IN_16, 0x10)) + bytes(8) + READ_CAPACITY_LENGTH.to_bytes(4, "big") + bytes(2)


def get_lba_status(lba: int) -> bytes:
    """SBC-3 section 5.6, GET LBA STATUS(16)."""
    return (
        bytes((SERVICE_ACTION_IN_16, 0x12)) + lba.to_bytes(8, "big") + LBA_STATUS_LENGTH.to_bytes(4, "big") + bytes(2)
    )


def report_luns() -> bytes:
    return b"\xa0" + bytes(5) + REPORT_LUNS_LENGTH.to_bytes(4, "big") + bytes(6)


@dataclass(frozen=True, slots=True)
class Capacity:
    """READ CAPACITY(16) data. ``thin``: LBPME, whether UNMAP may be used. ``reads_zero``: LBPRZ, what is not mapped."""

    blocks: int
    block_size: int
    physical_block_size: int
    thin: bool
    reads_zero: bool = False

    @classmethod
    def parse(cls, data: bytes) -> Capacity:
        last, size = struct.unpack_from(">QI", data)
        return cls(last + 1, size, size << (data[13] & 0x0F), bool(data[14] & 0x80), bool(data[14] & 0x40))


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """VPD page B0h, in blocks; 0 where the target reports no limit."""

    max_transfer: int
    max_unmap: int
    max_write_same: int

    @classmethod
    def parse(cls, data: bytes) -> BlockLimits:
        data = data.ljust(BLOCK_LIMITS_LENGTH, b"\0")
        (max_transfer,) = struct.unpack_from(">I", data, 8)
        (max_unmap,) = struct.unpack_from(">I", data, 20)
        (max_write_same,) = struct.unpack_from(">Q", data, 36)
        return cls(max_transfer, max_unmap, max_write_same)


@dataclass(frozen=True, slots=True)
class InquiryData:
    """Standard INQUIRY data, as far as it is of use."""

    device_type: int
    removable: bool
    vendor: str
    product: str
    revision: str

    @classmethod
    def parse(cls, data: bytes) -> InquiryData:
        data = data.ljust(36, b" ")
        vendor, product, revision = (
            data[start:end].decode("ascii", "replace").strip() for start, end in _INQUIRY_TEXTS
        )
        return cls(data[0] & 0x1F, bool(data[1] & 0x80), vendor, product, revision)


_INQUIRY_TEXTS = ((8, 16), (16, 32), (32, 36))


def parse_luns(data: bytes) -> list[int]:
    """LUNs of a REPORT LUNS answer; forms that we cannot address are left out."""
    length = min(int.from_bytes(data[:4], "big"), len(data) - 8)
    fields = (int.from_bytes(data[at : at + 8], "big") for at in range(8, 8 + length - length % 8, 8))
    return [lun for lun in map(decode_lun, fields) if lun is not None]


def parse_lba_status(data: bytes) -> list[tuple[int, int, bool]]:
    """(LBA, blocks, whether they are mapped) for each descriptor of a GET LBA STATUS answer."""
    length = min(int.from_bytes(data[:4], "big") + 4, len(data))
    found = (_LBA_STATUS.unpack_from(data, at) for at in range(8, length - _LBA_STATUS.size + 1, _LBA_STATUS.size))
    return [(lba, blocks, status & 0x0F not in _NOT_MAPPED) for lba, blocks, status in found]


def failure(opcode: int, status: int, sense: bytes) -> CommandFailed:
    """The error for a command that ended with ``status``; sense in fixed or descriptor format (SPC-4 section 4.5)."""
    key = asc = ascq = 0
    if len(sense) >= 14 and sense[0] & 0x7F in (0x70, 0x71):
        key, asc, ascq = sense[2] & 0x0F, sense[12], sense[13]
    elif len(sense) >= 4 and sense[0] & 0x7F in (0x72, 0x73):
        key, asc, ascq = sense[1] & 0x0F, sense[2], sense[3]
    return CommandFailed(opcode, status, key, asc, ascq)
