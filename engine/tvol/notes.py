"""What a file remembers of its snapshots beside their content: who holds them until when, and what they are for.

They are records of the file, not rows of the catalogue: a hold protects data, so it travels with the data, is there
when the catalogue is lost, and is asked in the step that would delete.

Rules kept here:

* A hold is journaled and flushed before it is promised; a checkpoint has every one.
* A snapshot with a valid hold is not deleted, neither alone nor with its volume. That is asked in the step that logs
  the DELETE (``require_free``), after everything that waits: a hold that was promised meanwhile counts.
* An expired hold is void, but stays until it is released or its snapshot goes: expiry is a matter of the clock
  (``engine.steady_clock``), and a clock may have been wrong.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from engine.errors import InUse, InvalidArgument, NotFound
from engine.stores import Hold
from engine.tvol.layout import MAX_NAME_BYTES, LayoutError, NodeFlag, RecordType, RootType
from engine.tvol.layout_notes import HoldRecord, NodeText

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from engine.steady_clock import SteadyClock
    from engine.stores import Frozen, Head
    from engine.tvol.core import Core
    from engine.tvol.device import NativeDevice, NativeSnapshot
    from engine.tvol.nodes import Node

MAX_HOLDS = 64
"""Of one snapshot, expired ones included."""
MAX_OWNER_BYTES = 256
MAX_DESCRIPTION_BYTES = MAX_NAME_BYTES


class Notes:
    """Holds and descriptions by node id: part of the state that the journal describes."""

    def __init__(self) -> None:
        self.holds: dict[int, dict[str, Hold]] = {}
        self.descriptions: dict[int, str] = {}
        self._records: list[tuple[RootType, bytes]] | None = None

    def apply(self, kind: RecordType, payload: bytes) -> None:
        """Do what a HOLD, RELEASE or DESCRIBE says, of a snapshot that exists. Raises LayoutError."""
        self._records = None
        if kind is RecordType.HOLD:
            self._hold(payload)
        elif kind is RecordType.DESCRIBE:
            self._describe(payload)
        else:
            self._release(payload)

    def _hold(self, payload: bytes) -> None:
        for found in HoldRecord.parse_all(payload):
            self.holds.setdefault(found.node, {})[found.owner] = Hold(found.owner, found.held_at, found.expires_at)

    def _release(self, payload: bytes) -> None:
        for found in NodeText.parse_all(payload):
            held = self.holds.get(found.node, {})
            if held.pop(found.text, None) is None:
                raise LayoutError(f"RELEASE of a hold that node {found.node} does not have")
            if not held:
                del self.holds[found.node]

    def _describe(self, payload: bytes) -> None:
        for found in NodeText.parse_all(payload):
            self.descriptions.pop(found.node, None)
            if found.text:
                self.descriptions[found.node] = found.text

    def forget(self, node_id: int) -> None:
        """The node is deleted."""
        held, described = self.holds.pop(node_id, None), self.descriptions.pop(node_id, None)
        if held is not None or described is not None:
            self._records = None

    @property
    def named(self) -> set[int]:
        """The nodes that something is remembered of."""
        return self.holds.keys() | self.descriptions.keys()

    def records(self) -> list[tuple[RootType, bytes]]:
        """The root stream's records; none for what is empty."""
        if self._records is None:
            holds = b"".join(_hold_record(node, hold) for node, held in self.holds.items() for hold in held.values())
            described = b"".join(NodeText(node, text).serialize() for node, text in self.descriptions.items())
            pairs = ((RootType.HOLDS, holds), (RootType.DESCRIPTIONS, described))
            self._records = [(kind, payload) for kind, payload in pairs if payload]
        return self._records

    def load(self, holds: Iterable[bytes], descriptions: Iterable[bytes]) -> None:
        """Take over what ``records`` made. Raises LayoutError."""
        for payload in holds:
            self._hold(payload)
        for payload in descriptions:
            self._describe(payload)


def _hold_record(node_id: int, hold: Hold) -> bytes:
    return HoldRecord(node_id, hold.owner, hold.held_at, hold.expires_at).serialize()


class NativeNotes:
    """``engine.stores.SnapshotNotes`` of an open file.

    ``sealed``: the snapshot of this store that a device is; raises NotFound. ``device``: the same for any device.
    ``of``: the device of a live node.
    """

    def __init__(
        self,
        core: Core,
        clock: SteadyClock,
        sealed: Callable[[Frozen], NativeSnapshot],
        device: Callable[[Frozen | Head], NativeDevice],
        of: Callable[[int], NativeSnapshot],
    ) -> None:
        self._core = core
        self._notes = core.family.notes
        self._clock = clock
        self._sealed = sealed
        self._device = device
        self._of = of

    def parent(self, device: Frozen | Head, /) -> Frozen | None:
        above = self._device(device).node.parent
        while above is not None and (not above.live or above.flags & (NodeFlag.UNSEALED | NodeFlag.PREPARED)):
            above = above.parent
        return None if above is None else self._of(above.id)

    def is_scheduled(self, snapshot: Frozen, /) -> bool:
        return bool(self._sealed(snapshot).node.flags & NodeFlag.SCHEDULED)

    def description(self, snapshot: Frozen, /) -> str:
        return self._notes.descriptions.get(self._sealed(snapshot).node_id, "")

    async def describe(self, snapshot: Frozen, text: str, /) -> None:
        if len(text.encode()) > MAX_DESCRIPTION_BYTES:
            raise InvalidArgument(f"a description has at most {MAX_DESCRIPTION_BYTES} bytes")
        await self._core.make_room(reserved=True)
        await self._log(RecordType.DESCRIBE, self._sealed(snapshot).node, text)

    def holds(self, snapshot: Frozen, /) -> list[Hold]:
        return self._valid(self._sealed(snapshot).node)

    def _valid(self, node: Node) -> list[Hold]:
        held = self._notes.holds.get(node.id)
        if not held:
            return []
        return [held[owner] for owner in sorted(held) if not self._clock.has_reached(held[owner].expires_at)]

    async def hold(self, snapshot: Frozen, owner: str, expires_at: float | None, /) -> Hold:
        if not 0 < len(owner.encode()) <= MAX_OWNER_BYTES or not owner.isprintable():
            raise InvalidArgument(f"the owner of a hold is named in 1 to {MAX_OWNER_BYTES} printable bytes")
        now = self._core.env.clock.time()
        if expires_at is not None and not now < expires_at < math.inf:
            raise InvalidArgument("the expiry of a hold is an instant to come")
        await self._core.make_room(reserved=True)
        node = self._sealed(snapshot).node
        held = self._notes.holds.get(node.id, {})
        if owner not in held and len(held) >= MAX_HOLDS:
            raise InvalidArgument(f"snapshot {node.name!r} has {len(held)} holds, as many as it may; release one")
        hold = Hold(owner, now, expires_at)
        self._core.log(RecordType.HOLD, _hold_record(node.id, hold))
        await self._core.flush()
        return hold

    async def release(self, snapshot: Frozen, owner: str, /) -> None:
        await self._core.make_room(reserved=True)
        node = self._sealed(snapshot).node
        if owner not in self._notes.holds.get(node.id, {}):
            raise NotFound("hold of the snapshot", owner)
        await self._log(RecordType.RELEASE, node, owner)

    async def _log(self, kind: RecordType, node: Node, text: str) -> None:
        self._core.log(kind, NodeText(node.id, text).serialize())
        await self._core.flush()

    def require_free(self, nodes: Iterable[Node]) -> None:
        """Raises InUse, naming the owners, when one of the nodes has a valid hold."""
        for node in nodes:
            holds = self._valid(node)
            if holds:
                owners = ", ".join(hold.owner for hold in holds)
                raise InUse(f"snapshot {node.name!r} is held by {owners}; it stays until that is released or expires")
