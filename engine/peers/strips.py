"""Payloads of the bulk connection: an extent of a staging area on its way; pure.

STRIP   16s replica, Q connection, Q offset, I length, B compare first; if so, the digests of its leaves
WANT    a bit for each leaf of the strip, lowest first, set where the target has something else; then a bit for each,
        set where it tells what: the digests of that leaf's blocks of 4 KiB follow, leaf after leaf
PIECE   Q offset, I length; a digest for each 64 KiB of it or less; data: whole leaves, or whole blocks where the target
        was asked first (the last one of the volume may be short)
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from engine.hash_tree import BLOCK_BYTES, DIGEST_BYTES, LEAF_BYTES
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


Wants = list[bytes | None]
"""For each leaf of a strip: None, the target has it; or the digests of what it has there in blocks of 4 KiB, which are
none where it has nothing."""


def encode_want(wants: Wants) -> bytes:
    """See the module."""
    wanted = sum(1 << leaf for leaf, there in enumerate(wants) if there is not None)
    told = sum(1 << leaf for leaf, there in enumerate(wants) if there)
    size = -(-len(wants) // 8)
    bits = wanted.to_bytes(size, "little") + told.to_bytes(size, "little")
    return bits + b"".join([there for there in wants if there])


def decode_want(payload: bytes, length: int) -> Wants:
    """What is wanted of a strip of ``length`` bytes. Raises FrameError."""
    leaves = -(-length // LEAF_BYTES)
    size = -(-leaves // 8)
    wanted, told = (int.from_bytes(payload[at : at + size], "little") for at in (0, size))
    if len(payload) < 2 * size or wanted >> leaves or told & ~wanted:
        raise FrameError("an answer about other leaves than were asked for")
    wants: Wants = [b"" if wanted >> leaf & 1 else None for leaf in range(leaves)]
    at = 2 * size
    for leaf in range(leaves):
        if told >> leaf & 1:
            blocks = -(-min(LEAF_BYTES, length - leaf * LEAF_BYTES) // BLOCK_BYTES)
            wants[leaf] = payload[at : at + blocks * DIGEST_BYTES]
            at += blocks * DIGEST_BYTES
    if at != len(payload):
        raise FrameError("an answer with other digests than it has blocks")
    return wants


def encode_piece(offset: int, length: int, digests: bytes) -> bytes:
    """What stands before the data of a piece."""
    return _PIECE.pack(offset, length) + digests


def parse_piece(payload: bytes | memoryview, payload_bytes: int, strip: Strip) -> tuple[int, int]:
    """Offset and length of a piece, of which ``payload`` is the beginning. Raises FrameError."""
    if len(payload) < _PIECE.size:
        raise FrameError("a piece that is cut off")
    offset, length = _PIECE.unpack_from(payload)
    end = offset + length
    unit = LEAF_BYTES if strip.digests is None else BLOCK_BYTES
    if offset % unit or not 0 < length <= MAX_PIECE_BYTES or offset < strip.offset:
        raise FrameError(f"a piece {offset}+{length}")
    if end > strip.offset + strip.length or (length % unit and end != strip.offset + strip.length):
        raise FrameError(f"a piece {offset}+{length} of a strip {strip.offset}+{strip.length}")
    if payload_bytes != _PIECE.size + digests_bytes(length) + length:
        raise FrameError(f"a piece of {length} bytes in a payload of {payload_bytes}")
    return offset, length
