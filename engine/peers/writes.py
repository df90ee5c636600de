"""Writes of a mirror's stream as payloads of APPLY and ORDERED frames, and their acknowledgements; pure.

APPLY      16s replica, Q connection, one write
ORDERED    16s replica, Q connection, H writes, the writes
a write    Q sequence, Q offset, I length, B kind, B flags (1 FUA, 2 atomic), I data bytes; digests; data
ACK        Q incarnation, Q connection
LEASE      16s replica, Q connection, Q number of the question; GRANT the same
"""

from __future__ import annotations

import struct
import uuid
from typing import TYPE_CHECKING

from engine.hash_tree import leaf_digests
from engine.links import Ack, MirrorWrite
from engine.peers.frames import MAX_DATA_BYTES, FrameError, digests_bytes, require_digests
from engine.volume import ChangeKind

if TYPE_CHECKING:
    from collections.abc import Sequence

_TO = struct.Struct(">16sQ")
_COUNT = struct.Struct(">H")
_WRITE = struct.Struct(">QQIBBI")
_ACK = struct.Struct(">QQ")
_LEASE = struct.Struct(">16sQQ")

_KINDS = (ChangeKind.DATA, ChangeKind.ZEROES, ChangeKind.DISCARD)
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}
_FUA, _ATOMIC = 1, 2

MAX_WRITES = 256
"""In one ORDERED frame."""


def encode_apply(replica: uuid.UUID, connection: int, write: MirrorWrite) -> bytes:
    """``write``: at most ``MAX_DATA_BYTES`` of data."""
    return b"".join([_TO.pack(replica.bytes, connection), *_parts(write)])


def encode_ordered(replica: uuid.UUID, connection: int, writes: Sequence[MirrorWrite]) -> bytes:
    """``writes``: at most ``MAX_WRITES``, with ``MAX_DATA_BYTES`` together."""
    assert len(writes) <= MAX_WRITES
    parts: list[bytes | memoryview] = [_TO.pack(replica.bytes, connection), _COUNT.pack(len(writes))]
    for write in writes:
        parts += _parts(write)
    return b"".join(parts)


def decode_apply(payload: bytes) -> tuple[uuid.UUID, int, MirrorWrite]:
    """Raises FrameError."""
    replica, connection = _to(payload)
    write, end = _parse(payload, _TO.size)
    _require_end(payload, end)
    return replica, connection, write


def decode_ordered(payload: bytes) -> tuple[uuid.UUID, int, list[MirrorWrite]]:
    """Raises FrameError."""
    replica, connection = _to(payload)
    at = _TO.size + _COUNT.size
    if len(payload) < at:
        raise FrameError("writes that are cut off")
    (count,) = _COUNT.unpack_from(payload, _TO.size)
    if count > MAX_WRITES:
        raise FrameError(f"{count} writes in one frame; {MAX_WRITES} is the most")
    writes = []
    for _ in range(count):
        write, at = _parse(payload, at)
        writes.append(write)
    _require_end(payload, at)
    return replica, connection, writes


def encode_ack(ack: Ack) -> bytes:
    return _ACK.pack(ack.incarnation, ack.connection)


def decode_ack(payload: bytes) -> Ack:
    """Raises FrameError."""
    if len(payload) != _ACK.size:
        raise FrameError("an acknowledgement of another length")
    return Ack(*_ACK.unpack(payload))


def _parts(write: MirrorWrite) -> list[bytes | memoryview]:
    flags = (_FUA if write.fua else 0) | (_ATOMIC if write.atomic else 0)
    kind, data = _NUMBERS[write.kind], write.data
    size = 0 if data is None else len(data)
    assert size <= MAX_DATA_BYTES
    head = _WRITE.pack(write.sequence, write.offset, write.length, kind, flags, size)
    return [head] if data is None else [head, leaf_digests(memoryview(data)), data]


def _to(payload: bytes) -> tuple[uuid.UUID, int]:
    if len(payload) < _TO.size:
        raise FrameError("a write that is cut off")
    replica, connection = _TO.unpack_from(payload)
    return uuid.UUID(bytes=replica), connection


def _parse(payload: bytes, at: int) -> tuple[MirrorWrite, int]:
    """A write and where the next one begins."""
    if len(payload) - at < _WRITE.size:
        raise FrameError("a write that is cut off")
    sequence, offset, length, number, flags, size = _WRITE.unpack_from(payload, at)
    if number >= len(_KINDS) or flags & ~(_FUA | _ATOMIC):
        raise FrameError(f"a write of the unknown kind {number} or with unknown flags {flags:#x}")
    kind = _KINDS[number]
    if size != (length if kind is ChangeKind.DATA else 0) or size > MAX_DATA_BYTES:
        raise FrameError(f"a write of {length} bytes with {size} bytes of data")
    data: memoryview | None = None
    at += _WRITE.size
    if kind is ChangeKind.DATA:
        begin = at + digests_bytes(size)
        end = begin + size
        if len(payload) < end:
            raise FrameError("a write that is cut off")
        data = memoryview(payload)[begin:end]
        require_digests(data, payload[at:begin], f"the write at {offset}")
        at = end
    return MirrorWrite(sequence, kind, offset, length, data, bool(flags & _FUA), bool(flags & _ATOMIC)), at


def _require_end(payload: bytes, end: int) -> None:
    if end != len(payload):
        raise FrameError(f"{len(payload) - end} bytes behind the last write")


def encode_lease(replica: uuid.UUID, connection: int, number: int) -> bytes:
    return _LEASE.pack(replica.bytes, connection, number)


def decode_lease(payload: bytes) -> tuple[uuid.UUID, int, int]:
    """Raises FrameError."""
    if len(payload) != _LEASE.size:
        raise FrameError("a lease that is cut off")
    replica, connection, number = _LEASE.unpack(payload)
    return uuid.UUID(bytes=replica), connection, number
