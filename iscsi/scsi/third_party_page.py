"""VPD page 8Fh, Third-party Copy (SPC-4 section 7.8.17; block device ROD token limits: SBC-3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.tokens import DEFAULT_INACTIVITY_S, LIFETIME_S, MAX_INACTIVITY_S
from iscsi.scsi import limits
from iscsi.scsi.copy_results import SUPPORTED_DESCRIPTORS
from iscsi.scsi.extended_copy import RECEIVING_UNIT
from iscsi.scsi.rod_token import TOKEN_TYPES, RodType

if TYPE_CHECKING:
    from iscsi.scsi.lun import LogicalUnit

_THIRD_PARTY_COPY_OUT, _THIRD_PARTY_COPY_IN = 0x83, 0x84
_TOKEN_IN, _TOKEN_OUT = 0x02, 0x01  # byte 4 of a ROD type descriptor, SPC-4 table 657


def third_party_copy(lu: LogicalUnit) -> bytes:
    """The page without its header: descriptors in the order of their types."""
    return b"".join(
        (
            _descriptor(0x0000, _token_limits(lu)),
            _descriptor(0x0001, _supported_commands(lu)),
            _descriptor(0x0004, _parameter_data()),
            _descriptor(0x0008, bytes((len(SUPPORTED_DESCRIPTORS),)) + SUPPORTED_DESCRIPTORS),
            _descriptor(0x000C, _word(2) + _word(RECEIVING_UNIT)),
            _descriptor(0x0106, _token_features(lu)),
            _descriptor(0x0108, _rod_types()),
            _descriptor(0x8001, _general_copy_operations(lu)),
        )
    )


def _descriptor(kind: int, data: bytes) -> bytes:
    """Its whole length is a multiple of four."""
    data = data.ljust(-(-len(data) // 4) * 4, b"\0")
    return _word(kind) + _word(len(data)) + data


def _word(value: int) -> bytes:
    return value.to_bytes(2, "big")


def _token_limits(lu: LogicalUnit) -> bytes:
    blocks = limits.MAX_TOKEN_TRANSFER_BYTES >> lu.block_shift
    return (
        bytes(6)
        + _word(limits.MAX_RANGE_DESCRIPTORS)
        + MAX_INACTIVITY_S.to_bytes(4, "big")
        + DEFAULT_INACTIVITY_S.to_bytes(4, "big")
        + blocks.to_bytes(8, "big")
        + blocks.to_bytes(8, "big")  # optimal: the longer, the better
    )


def _supported_commands(lu: LogicalUnit) -> bytes:
    listed = b""
    for opcode in (_THIRD_PARTY_COPY_OUT, _THIRD_PARTY_COPY_IN):
        actions = bytes(spec.service_action or 0 for spec in lu.commands if spec.opcode == opcode)
        listed += bytes((opcode, len(actions))) + actions
    return bytes((len(listed),)) + listed


def _parameter_data() -> bytes:
    return (
        bytes(4)
        + _word(limits.MAX_CSCD_DESCRIPTORS)
        + _word(limits.MAX_SEGMENT_DESCRIPTORS)
        + limits.MAX_DESCRIPTOR_LIST_BYTES.to_bytes(4, "big")
        + bytes(16)  # no inline data
    )


def _token_features(lu: LogicalUnit) -> bytes:
    """REMOTE TOKENS 0: only tokens of this server."""
    block_rod = (
        bytes(2)
        + _word(0x2C)
        + bytes(2)
        + _word(lu.physical_block >> lu.block_shift)  # optimal granularity
        + limits.MAX_TOKEN_TRANSFER_BYTES.to_bytes(8, "big")  # maximum, then optimal for a command and a range
        + limits.MAX_TOKEN_TRANSFER_BYTES.to_bytes(8, "big") * 3
        + bytes(8)
    )
    return (
        bytes(12)
        + LIFETIME_S.to_bytes(4, "big")  # minimum and maximum are the same
        + LIFETIME_S.to_bytes(4, "big")
        + MAX_INACTIVITY_S.to_bytes(4, "big")
        + bytes(18)
        + _word(len(block_rod))
        + block_rod
    )


def _rod_types() -> bytes:
    made = [(kind, _TOKEN_IN | _TOKEN_OUT) for kind in TOKEN_TYPES]
    descriptors = b"".join(
        kind.to_bytes(4, "big") + bytes((use,)) + bytes(59)
        for kind, use in (*made, (RodType.BLOCK_DEVICE_ZERO, _TOKEN_IN))
    )
    return bytes(2) + _word(len(descriptors)) + descriptors


def _general_copy_operations(lu: LogicalUnit) -> bytes:
    return (
        limits.MAX_COPIES.to_bytes(4, "big") * 2
        + (limits.MAX_SEGMENT_BLOCKS << lu.block_shift).to_bytes(4, "big")
        + bytes((lu.block_shift, 0))
        + bytes(18)
    )
