"""Room for volume files to grow: what a store asks before it takes space of the host that it has not had before.

Asked is for runs of chunks, never for a command: an allocator spends what it was granted without looking anywhere. A
grant is void as soon as the ``epoch`` it was made in has passed. What needs no space asks nothing: writes in place,
discards, deletions, snapshots, metadata (which lives on the reserve, see ``engine.pool_space``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from engine.errors import OutOfSpace


class Room(Protocol):
    """All methods are called from the loop's thread."""

    epoch: int
    """Number of the measurement that grants go by; it changes when a new one begins."""

    def grant(self, wanted: int, unit: int, /) -> int:
        """Up to ``wanted`` bytes that may be taken from the host now, in whole units; 0 when there is no room."""
        ...

    def refusal(self, path: object, /) -> OutOfSpace:
        """Why there is none, for whoever wanted to write to ``path``."""
        ...

    async def measure(self) -> bool:
        """Look again how much room there is; whether there may be some now."""
        ...


class Boundless:
    """The host's file system alone says when it is full."""

    epoch = 0

    def grant(self, wanted: int, unit: int, /) -> int:
        return wanted

    def refusal(self, path: object, /) -> OutOfSpace:
        raise AssertionError("nothing is ever refused")

    async def measure(self) -> bool:
        return False


BOUNDLESS = Boundless()
