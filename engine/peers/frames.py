"""Frames between peers: pure, no socket, loop or clock.

A connection begins with a *preamble* in the clear, eight bytes that say what it is for; all else is inside TLS 1.3:

    preamble   6s magic "TVPEER", B version, B kind ("C" control, "B" bulk, "E" enrolment)
    frame      2s magic "TV", B version, B type, I payload bytes, Q request; payload       (big-endian)

The first frame each way is a HELLO. ``request`` joins an answer to its question, and is 0 where there is none.

Invariants:

* A header is judged before a byte of its payload is waited for: unknown types and lengths above the type's own maximum
  end the connection. ``FrameDecoder`` holds at most one incomplete frame; what it may hold before the other side is
  known is ``MAX_HELLO_BYTES``.
* Bytes of volumes travel with their xxh3_128, one for each leaf of 64 KiB or less, whatever TLS adds.
"""

from __future__ import annotations

import enum
import json
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError
from engine.errors_json import error_from_json
from engine.hash_tree import DIGEST_BYTES, leaf_digests
from engine.units import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

VERSION = 1

_PREAMBLE = struct.Struct(">6sBB")
_PREAMBLE_MAGIC = b"TVPEER"
PREAMBLE_BYTES = _PREAMBLE.size

_HEADER = struct.Struct(">2sBBIQ")
_MAGIC = b"TV"
HEADER_BYTES = _HEADER.size

MAX_HELLO_BYTES = 8 * KIB
"""A certificate or two, and names."""

MAX_DATA_BYTES = 1 * MIB
"""Of a volume's bytes in one frame; what is longer travels in several."""


class FrameError(EngineError):
    """The other side does not speak this protocol: the connection ends."""


class Kind(enum.IntEnum):
    """What a connection is for."""

    CONTROL = ord("C")
    BULK = ord("B")
    ENROL = ord("E")


class FrameType(enum.IntEnum):
    """What a frame is; beside it who sends it."""

    HELLO = 1  # both, first
    REQUEST = 2  # source: JSON
    ANSWER = 3  # target: JSON
    FAILURE = 4  # target: JSON, an engine error
    PING = 5  # source
    PONG = 6  # target
    APPLY = 7  # source: one write
    ORDERED = 8  # source: writes to be applied strictly one after the other
    ACK = 9  # target: of APPLY and ORDERED
    DATA = 10  # target: bytes that were asked for
    LEASE = 11  # target: asks for the lease of a replica (``engine.lease``)
    GRANT = 12  # source: it has it; the payload of LEASE again
    STRIP = 16  # bulk, source: an extent of a staging area follows
    WANT = 17  # bulk, target: which leaves of it differ
    PIECE = 18  # bulk, source: bytes of it
    END = 19  # bulk, source: that was all of it


_LONGEST = {
    FrameType.HELLO: MAX_HELLO_BYTES,
    FrameType.REQUEST: 64 * KIB,
    FrameType.ANSWER: 256 * KIB,
    FrameType.FAILURE: 8 * KIB,
    FrameType.PING: 0,
    FrameType.PONG: 0,
    FrameType.APPLY: MAX_DATA_BYTES + KIB,
    FrameType.ORDERED: MAX_DATA_BYTES + 64 * KIB,
    FrameType.ACK: 16,
    FrameType.DATA: MAX_DATA_BYTES + KIB,
    FrameType.LEASE: 32,
    FrameType.GRANT: 32,
    FrameType.STRIP: 8 * KIB,
    FrameType.WANT: 17 * KIB,
    FrameType.PIECE: MAX_DATA_BYTES + KIB,
    FrameType.END: 0,
}
"""The longest payload of each type, in bytes."""

HELLO_ONLY = frozenset({FrameType.HELLO})
"""What may come before the other side is known."""

TO_TARGET = frozenset({FrameType.REQUEST, FrameType.PING, FrameType.APPLY, FrameType.ORDERED, FrameType.GRANT})
TO_SOURCE = frozenset(
    {FrameType.ANSWER, FrameType.FAILURE, FrameType.PONG, FrameType.ACK, FrameType.DATA, FrameType.LEASE}
)
BULK_TO_TARGET = frozenset({FrameType.STRIP, FrameType.PIECE, FrameType.END})
BULK_TO_SOURCE = frozenset({FrameType.WANT, FrameType.ANSWER, FrameType.FAILURE})


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. ``payload`` is the receiver's own."""

    type: FrameType
    request: int
    payload: bytes = b""


def preamble(kind: Kind) -> bytes:
    return _PREAMBLE.pack(_PREAMBLE_MAGIC, VERSION, kind)


def parse_preamble(data: bytes) -> Kind:
    """Raises FrameError: something else than a twinvol, or one of another version."""
    magic, version, kind = _PREAMBLE.unpack(data)
    if magic != _PREAMBLE_MAGIC:
        raise FrameError("not a twinvol peer")
    if version != VERSION:
        raise FrameError(f"a peer of protocol version {version}; this one speaks {VERSION}")
    try:
        return Kind(kind)
    except ValueError:
        raise FrameError(f"a peer's connection of the unknown kind {kind}") from None


def header(kind: FrameType, request: int, payload_bytes: int) -> bytes:
    """What stands before a payload that is sent by itself."""
    assert payload_bytes <= _LONGEST[kind]
    return _HEADER.pack(_MAGIC, VERSION, kind, payload_bytes, request)


def encode(kind: FrameType, request: int = 0, payload: bytes = b"") -> bytes:
    return header(kind, request, len(payload)) + payload


def parse_header(data: bytes | bytearray | memoryview, allowed: Collection[FrameType]) -> tuple[FrameType, int, int]:
    """Type, request and payload length. Raises FrameError."""
    magic, version, kind, length, request = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise FrameError("no frame begins here")
    if version != VERSION:
        raise FrameError(f"a frame of protocol version {version}; this side speaks {VERSION}")
    if kind not in allowed:
        raise FrameError(f"a frame of type {kind} has no place here")
    known = FrameType(kind)
    if length > _LONGEST[known]:
        raise FrameError(f"a {known.name} frame of {length} bytes; {_LONGEST[known]} is the most")
    return known, request, length


class FrameDecoder:
    """Bytes in, frames out. ``allowed``: the types that may come now; may be replaced between frames."""

    def __init__(self, allowed: Collection[FrameType]) -> None:
        self.allowed = allowed
        self._buffer = bytearray()

    def receive(self, data: bytes | memoryview) -> None:
        """Take what came. ``frames`` must be drained before the next call."""
        self._buffer += data

    def frames(self) -> Iterator[Frame]:
        """The complete frames, one by one, so that ``allowed`` may change in between. Raises FrameError."""
        at = 0
        try:
            while len(self._buffer) - at >= HEADER_BYTES:
                # A copy: a view that an error's traceback holds would keep the buffer from being cut.
                kind, request, length = parse_header(bytes(self._buffer[at : at + HEADER_BYTES]), self.allowed)
                end = at + HEADER_BYTES + length
                if len(self._buffer) < end:
                    break
                payload = bytes(memoryview(self._buffer)[at + HEADER_BYTES : end])
                at = end
                yield Frame(kind, request, payload)
        finally:
            del self._buffer[:at]

    @property
    def held_bytes(self) -> int:
        """Of an incomplete frame."""
        return len(self._buffer)


# --- payloads ----------------------------------------------------------------------------------------------------


def encode_json(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character: JSON can say it, and nothing can keep it."""


def decode_json(payload: bytes) -> dict[str, Any]:
    """Raises FrameError: not one JSON object."""
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a message that is no JSON: {error}") from None
    if not isinstance(message, dict):
        raise FrameError("a message that is no JSON object")
    return message


def text_of(message: dict[str, Any], key: str, longest: int = 255) -> str:
    """A text of a message. Raises FrameError."""
    value = message.get(key)
    if not isinstance(value, str) or len(value) > longest or _SURROGATE.search(value):
        raise FrameError(f"a message without a fitting {key}")
    return value


def printable(text: str) -> str:
    """What another side has said, for logs and terminals: one line, and nothing that a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text)[:1000]


def failure_of(message: dict[str, Any]) -> EngineError:
    """An error that another side has answered; its text is ``printable``."""
    error = error_from_json(message)
    error.args = (printable(str(error)),)
    return error


def optional_text(message: dict[str, Any], key: str, longest: int = 255) -> str | None:
    """A text of a message, or None."""
    return None if message.get(key) is None else text_of(message, key, longest)


def number_of(message: dict[str, Any], key: str, largest: int = (1 << 63) - 1) -> int:
    """A whole number from 0 to ``largest``. Raises FrameError."""
    value = message.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise FrameError(f"a message without a fitting {key}")
    return value


def flag_of(message: dict[str, Any], key: str) -> bool:
    """Raises FrameError."""
    value = message.get(key)
    if not isinstance(value, bool):
        raise FrameError(f"a message without a fitting {key}")
    return value


def digests_bytes(length: int) -> int:
    """How long the leaf digests of ``length`` bytes from a leaf's start are."""
    return -(-length // (64 * KIB)) * DIGEST_BYTES


def require_digests(data: memoryview, digests: bytes, what: str) -> None:
    """Raises FrameError: the bytes are not those that were sent."""
    if leaf_digests(data) != digests:
        raise FrameError(f"{what} came with other bytes than it was sent with")
