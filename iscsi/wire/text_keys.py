"""Text of login and text PDUs: NUL-terminated key=value pairs (RFC 7143 section 6.1).

Pairs keep their order: it matters where one key's answer depends on another. Values are passed on as text; what
they mean is negotiation's affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import RejectReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from iscsi.wire.bhs import Buffer

MAX_TEXT_BYTES = 8192  # most text of one exchange that a peer can make us hold; the default data segment, section 13.12
MAX_KEY_BYTES = 63  # section 6.1, key-name
MAX_PAIRS = 64  # twice the keys that exist; NotUnderstood to all of them still fits one login response

_KEY_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-+@_#")


def _malformed(message: str) -> ProtocolError:
    return ProtocolError(message, RejectReason.PROTOCOL_ERROR)


def parse_text(text: Buffer) -> dict[str, str]:
    """The pairs of a complete text (all PDUs of a C-bit sequence joined), in order.

    A missing last NUL is forgiven; so are empty pairs, which some initiators append as padding.

    Raises:
        ProtocolError: too long, not UTF-8, no ``=``, a bad key name, or a key twice (section 6.2).
    """
    if len(text) > MAX_TEXT_BYTES:
        raise _malformed(f"{len(text)} bytes of text, at most {MAX_TEXT_BYTES} are taken")
    try:
        decoded = bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("text is not UTF-8") from None
    pairs: dict[str, str] = {}
    for item in decoded.split("\0"):
        if not item:
            continue
        key, equals, value = item.partition("=")
        if not equals or not key or len(key) > MAX_KEY_BYTES or not _KEY_CHARACTERS.issuperset(key):
            raise _malformed("text item is no key=value pair")
        if key in pairs:
            raise _malformed(f"key {key} came twice")
        if len(pairs) == MAX_PAIRS:
            raise _malformed(f"more than {MAX_PAIRS} keys")
        pairs[key] = value
    return pairs


def serialize_text(pairs: Mapping[str, str] | Iterable[tuple[str, str]]) -> bytes:
    """The data segment for ``pairs``. Unlike a mapping, an iterable may repeat a key (SendTargets does)."""
    items = pairs.items() if hasattr(pairs, "items") else pairs
    return b"".join(f"{key}={value}\0".encode() for key, value in items)
