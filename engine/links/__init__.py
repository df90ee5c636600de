"""The way from a mirror's source to its target: ``MirrorLink``, and what travels on it.

Rules that every link keeps:

* ``apply``, ``apply_in_order``, ``flush`` and ``mark`` take effect in the order in which their coroutines *take their
  first step*, as far as they overlap. Somebody who starts them as tasks, one after the other, has that order.
* No call waits for ever: a link finds out by itself that the other side is gone, and raises.
* An acknowledgement (``Ack``) says which opening of the target gave it, over which connection. The caller compares
  it with that of ``connect``: one of another incarnation or connection acknowledges nothing (REPLICATION section 2).
* A recovery point named by a GUID holds the same bytes on both sides or does not exist on the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from engine.lease import SourceLease
    from engine.stores import BlockDevice, Extent
    from engine.volume import ChangeKind


@dataclass(frozen=True, slots=True)
class Ack:
    """Who acknowledges: ``incarnation`` of the target's store, number of the ``connection``."""

    incarnation: int
    connection: int


@dataclass(frozen=True, slots=True)
class LinkState:
    """The target as found by ``connect``. ``points``: GUIDs of its recovery points; ``staging``: one is open."""

    ack: Ack
    points: Sequence[str]
    staging: bool


@dataclass(frozen=True, slots=True)
class MirrorWrite:
    """One write of the source on its way. ``data``: None unless ``kind`` is DATA."""

    sequence: int
    kind: ChangeKind
    offset: int
    length: int
    data: bytes | memoryview | None
    fua: bool
    atomic: bool = False


class MirrorLink(Protocol):
    """See the module. Everything may raise ``EngineError``; afterwards the caller runs the disconnect step."""

    @property
    def target_name(self) -> str: ...

    async def connect(self) -> LinkState:
        """Begin a connection. What an earlier one still has under way acknowledges nothing any more."""
        ...

    async def disconnect(self) -> None:
        """End the connection: return once nothing of it can reach the target any more."""
        ...

    # A round: a delta goes into a hidden staging area and replaces the target's content in one step.

    async def changed(self, older: str | None, newer: str | None) -> list[Extent]:
        """Ranges that differ between two points of the target. ``older`` None: empty; ``newer`` None: its head."""
        ...

    async def freeze_head(self, guid: str) -> None:
        """Keep the target's head as point ``guid``, to start a staging area from. It need not be a recovery point: what
        the head holds may be no instant of the source."""
        ...

    async def begin_staging(self, base: str | None, size_bytes: int) -> BlockDevice:
        """A new staging area that starts as the point ``base`` (None: empty); an open one is dropped."""
        ...

    async def resume_staging(self) -> BlockDevice:
        """The staging area that is open. Raises NotFound."""
        ...

    async def abort_staging(self) -> None:
        """Drop the staging area; also right when there is none."""
        ...

    async def commit_staging(self, guid: str) -> None:
        """Make the staging area the target's content and recovery point ``guid``, in one durable step."""
        ...

    # The stream.

    def apply_now(self, write: MirrorWrite, /) -> Ack | None:
        """Apply a write within this step of the loop; None: nothing was done, use ``apply``.

        Nothing may be waiting to take its first step in ``apply``: this write would overtake it.
        """
        ...

    async def apply(self, write: MirrorWrite, /) -> Ack:
        """Apply one write; several may be under way."""
        ...

    async def apply_in_order(self, writes: Sequence[MirrorWrite], /) -> Ack:
        """Apply writes strictly one after the other."""
        ...

    async def flush(self) -> Ack:
        """Everything acknowledged before the call is durable when it returns."""
        ...

    async def mark(self, guid: str) -> Ack:
        """Recovery point ``guid`` of the target as it is at this place in the stream."""
        ...

    # The lease (``engine.lease``).

    @property
    def grants_lease(self) -> bool:
        """Whether the target can outlive the source, and so may have to claim by itself that it has everything."""
        ...

    def serve_lease(self, lease: SourceLease, /) -> None:
        """From now on, when the target asks over the present connection: ``lease.grant`` in the step in which the
        answer is sent; False is no answer. ``lease`` itself knows when to stop. Only where ``grants_lease``."""
        ...

    async def demote(self) -> None:
        """The target claims nothing any more when this returns: it has dropped its lease and what it had asked for.

        Nothing durable is needed at the target, whose lease lives in RAM. Works without ``connect``: also for a source
        that has just started. Raises when the target did not say so; then the caller waits the lease out.
        """
        ...

    # Recovery points.

    async def point(self, guid: str) -> BlockDevice:
        """A recovery point for reading. Raises NotFound.

        It does not change, so reading it goes on through later connections of the mirror.
        """
        ...

    async def keep_points(self, guids: Collection[str]) -> None:
        """Delete every other recovery point that this mirror made, durably, but for those that somebody reads."""
        ...


@runtime_checkable
class LivePoint(Protocol):
    """What ``point`` returns where a target cannot keep one: the target itself, which may be written meanwhile."""

    async def end(self) -> list[Extent]:
        """Nobody reads it any more. What was written since the point, in whole leaves: that says nothing of it."""
        ...
