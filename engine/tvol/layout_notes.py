"""On-disk structures of holds and descriptions (``notes.py``): pure, as ``layout.py``, whose errors they raise."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.tvol.layout import NODE_ID, LayoutError, pack_text, unpack_fields, unpack_text

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOLD = struct.Struct("<Idd")
"""snapshot, time of the hold, time of its expiry (infinity: none); text: owner."""
assert _HOLD.size == 20


@dataclass(frozen=True, slots=True)
class HoldRecord:
    """The payload of a HOLD record, and an entry of the HOLDS root record. ``expires_at``: None for never."""

    node: int
    owner: str
    held_at: float
    expires_at: float | None

    def serialize(self) -> bytes:
        expires_at = math.inf if self.expires_at is None else self.expires_at
        return _HOLD.pack(self.node, self.held_at, expires_at) + pack_text(self.owner)

    @classmethod
    def parse_all(cls, data: bytes) -> Iterator[HoldRecord]:
        """Each of them, one behind the other. Raises LayoutError."""
        at = 0
        while at < len(data):
            node, held_at, expires_at = unpack_fields(_HOLD, data[at : at + _HOLD.size])
            (owner,), at = unpack_text(data, at + _HOLD.size, 1)
            if not math.isfinite(held_at) or not (math.isfinite(expires_at) or expires_at == math.inf):
                raise LayoutError(f"a hold of node {node} has no time")
            yield cls(node, owner, held_at, None if math.isinf(expires_at) else expires_at)


@dataclass(frozen=True, slots=True)
class NodeText:
    """The payload of RELEASE (the owner) and DESCRIBE, and an entry of the DESCRIPTIONS root record."""

    node: int
    text: str

    def serialize(self) -> bytes:
        return NODE_ID.pack(self.node) + pack_text(self.text)

    @classmethod
    def parse_all(cls, data: bytes) -> Iterator[NodeText]:
        """Each of them, one behind the other. Raises LayoutError."""
        at = 0
        while at < len(data):
            (node,) = unpack_fields(NODE_ID, data[at : at + NODE_ID.size])
            (text,), at = unpack_text(data, at + NODE_ID.size, 1)
            yield cls(node, text)
