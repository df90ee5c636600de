"""Payloads of the bulk connection: an extent of a staging area on its way; pure.

STRIP   16s replica, Q connection, Q offset, I length, B compare first; if so, the digests of its leaves
WANT    a bit for each leaf of the strip, lowest first, set where the target has something else
PIECE   Q offset, I length; the digests of its leaves; data, whole leaves (the last one of the volume may be short)
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from engine.hash_tree import DIGEST_BYTES, LEAF_BYTES
from engine.peers.frames import FrameError, digests_bytes
from engine.units import MIB

_STRIP = struct.Struct(">16sQQIB")
_PIECE = struct.Struct(">QI")

MAX_STRIP_BYTES = 4 * MIB
MAX_PIECE_BYTES = MIB // 4
PIECE_FIXED_BYTES = _PIECE.size


@dataclass(frozen=True, slots=True)
class Strip:
    """An extent that begins with a leaf. ``digests``: of its leaves where the target is to compare first; else None."""

    replica: uuid.UUID
    connection: int
    offset: int
    length: int
    digests: bytes | None = None

    def serialize(self) -> bytes:
        head = _STRIP.pack(self.replica.bytes, self.connection, self.offset, self.length, self.digests is not None)
        return head + (self.digests or b"")

    @classmethod
    def parse(cls, payload: bytes) -> Strip:
        """Raises FrameError."""
        if len(payload) < _STRIP.size:
            raise FrameError("a strip that is cut off")
        replica, connection, offset, length, compare = _STRIP.unpack_from(payload)
        digests = payload[_STRIP.size :]
        if offset % LEAF_BYTES or not 0 < length <= MAX_STRIP_BYTES or offset + length > 1 << 63:
            raise FrameError(f"a strip {offset}+{length}")
        if compare > 1 or len(digests) != (digests_bytes(length) if compare else 0):
            raise FrameError("a strip with other digests than it has leaves")
        return cls(uuid.UUID(bytes=replica), connection, offset, length, digests if compare else None)


def encode_want(mine: bytes, theirs: bytes) -> bytes:
    """The leaves whose digests differ."""
    assert len(mine) == len(theirs)
    wanted = 0
    for leaf in range(len(mine) // DIGEST_BYTES):
        at = leaf * DIGEST_BYTES
        if mine[at : at + DIGEST_BYTES] != theirs[at : at + DIGEST_BYTES]:
            wanted |= 1 << leaf
    return wanted.to_bytes(-(-len(mine) // DIGEST_BYTES // 8), "little")


def decode_want(payload: bytes, leaves: int) -> list[bool]:
    """Of each leaf whether it is wanted. Raises FrameError."""
    wanted = int.from_bytes(payload, "little")
    if len(payload) != -(-leaves // 8) or wanted >> leaves:
        raise FrameError("an answer about other leaves than were asked for")
    return [bool(wanted >> leaf & 1) for leaf in range(leaves)]


def encode_piece(offset: int, length: int, digests: bytes) -> bytes:
    """What stands before the data of a piece."""
    return _PIECE.pack(offset, length) + digests


def parse_piece(payload: bytes | memoryview, payload_bytes: int, strip: Strip) -> tuple[int, int]:
    """Offset and length of a piece, of which ``payload`` is the beginning. Raises FrameError."""
    if len(payload) < _PIECE.size:
        raise FrameError("a piece that is cut off")
    offset, length = _PIECE.unpack_from(payload)
    end = offset + length
    if offset % LEAF_BYTES or not 0 < length <= MAX_PIECE_BYTES or offset < strip.offset:
        raise FrameError(f"a piece {offset}+{length}")
    if end > strip.offset + strip.length or (length % LEAF_BYTES and end != strip.offset + strip.length):
        raise FrameError(f"a piece {offset}+{length} of a strip {strip.offset}+{strip.length}")
    if payload_bytes != _PIECE.size + digests_bytes(length) + length:
        raise FrameError(f"a piece of {length} bytes in a payload of {payload_bytes}")
    return offset, length
