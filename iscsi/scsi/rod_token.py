"""The 512 bytes of a ROD token (SPC-4 section 5.17.6.5; device type specific data: SBC-3). Pure.

0    ROD TYPE, ROD TOKEN LENGTH                 96   of READ CAPACITY(16): block lengths, provisioning
8    COPY MANAGER ROD TOKEN IDENTIFIER         128   TARGET DEVICE DESCRIPTOR
16   CREATOR LOGICAL UNIT DESCRIPTOR           256   EXTENDED ROD TOKEN DATA: random
48   NUMBER OF BYTES REPRESENTED
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass

ROD_TOKEN_BYTES = 512
ROD_TOKEN_LENGTH = 0x01F8  # what follows the header

_CREATOR = b"\xe4\x00\x00\x00\x01\x03\x00\x08"  # identification descriptor: binary, unit, NAA, 8 bytes
_TARGET_DEVICE_BYTES = 128
_TARGET_NAME = b"\x53\xa8\x00"  # iSCSI, UTF-8; PIV, target device, SCSI name string (SPC-4 section 7.8.6.1)
_TARGET_NAA = b"\x51\xa3\x00"


class RodType(enum.IntEnum):
    """SPC-4 table 110; the last one is of SBC-3."""

    POINT_IN_TIME_DEFAULT = 0x00800000
    POINT_IN_TIME_CHANGE_VULNERABLE = 0x00800001
    POINT_IN_TIME_PERSISTENT = 0x00800002
    POINT_IN_TIME_ANY = 0x0080FFFF
    BLOCK_DEVICE_ZERO = 0xFFFF0001


TOKEN_TYPES = (
    RodType.POINT_IN_TIME_DEFAULT,
    RodType.POINT_IN_TIME_CHANGE_VULNERABLE,
    RodType.POINT_IN_TIME_PERSISTENT,
)
"""Of the tokens that are made here. All three are the same: a snapshot holds the data for the token's lifetime."""


@dataclass(frozen=True, slots=True)
class RodToken:
    """A point in time copy ROD token.

    ``capacity``: bytes 8 to 15 of the creator's READ CAPACITY(16) data. ``secret``: at most 256 bytes.
    """

    rod_type: int
    identifier: int
    naa: int
    block_bytes: int
    length: int
    capacity: bytes
    target_name: str
    secret: bytes

    def pack(self) -> bytes:
        data = bytearray(ROD_TOKEN_BYTES)
        data[0:4] = self.rod_type.to_bytes(4, "big")
        data[6:8] = ROD_TOKEN_LENGTH.to_bytes(2, "big")
        data[8:16] = self.identifier.to_bytes(8, "big")
        data[16:24] = _CREATOR
        data[24:32] = self.naa.to_bytes(8, "big")
        data[45:48] = self.block_bytes.to_bytes(3, "big")
        data[48:64] = self.length.to_bytes(16, "big")
        data[96:104] = self.capacity
        data[128:256] = _target_device(self.target_name)
        data[256 : 256 + len(self.secret)] = self.secret
        return bytes(data)


def rod_type(image: bytes) -> int:
    return int.from_bytes(image[0:4], "big")


def is_whole(image: bytes) -> bool:
    """Whether the ROD TOKEN LENGTH is that of the tokens here."""
    return int.from_bytes(image[6:8], "big") == ROD_TOKEN_LENGTH


def is_well_formed(image: bytes) -> bool:
    """Whether what has to be in every token that was made here is there."""
    return image[16:24] == _CREATOR and not any(image[4:6]) and not any(image[64:96])


def identifier(image: bytes) -> int:
    return int.from_bytes(image[8:16], "big")


def creator(image: bytes) -> int:
    """The NAA identifier of the unit whose copy manager made the token."""
    return int.from_bytes(image[24:32], "big")


def _target_device(name: str) -> bytes:
    """The SCSI target device by its name, or by a number made of it when the name is too long for the field."""
    value = name.encode() + b"\0"
    value = value.ljust(-(-len(value) // 4) * 4, b"\0")
    head = _TARGET_NAME
    if len(value) > _TARGET_DEVICE_BYTES - 4:
        digest = hashlib.sha256(name.encode()).hexdigest()
        head, value = _TARGET_NAA, bytes.fromhex("3" + digest[:15])
    return (head + bytes((len(value),)) + value).ljust(_TARGET_DEVICE_BYTES, b"\0")
