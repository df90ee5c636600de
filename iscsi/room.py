"""Room for the data of commands in progress: how much a session holds, within what all sessions of a server may hold.

One task of a session may always hold its data. So every session gets on whatever the others keep, and the bound is:
``MAX_SHARED_BYTES``, and one command of each session beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.units import MIB

if TYPE_CHECKING:
    from iscsi.task import ScsiTask

MAX_SHARED_BYTES = 128 * MIB
"""Bytes that the tasks of all sessions hold together, of each kind: gathered from initiators, and being executed."""


class SharedRoom:
    """What all sessions of a server hold of one kind."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = 0


class Room:
    """What the tasks of one session hold of one kind; at most ``limit`` bytes, but for a single task."""

    __slots__ = ("_held", "_limit", "_of", "_shared")

    def __init__(self, limit: int, shared: SharedRoom) -> None:
        self._limit = limit
        self._shared = shared
        self._of: dict[ScsiTask, int] = {}
        self._held = 0

    def take(self, task: ScsiTask, length: int, *, anyway: bool = False) -> bool:
        """Have ``task`` hold ``length`` bytes in all. False, and nothing changes, when there is no room.

        ``anyway``: there has to be.
        """
        had = self._of.get(task, 0)
        grown = length - had
        is_lone = self._held == had
        is_full = self._held + grown > self._limit or self._shared.held + grown > MAX_SHARED_BYTES
        if grown > 0 and is_full and not is_lone and not anyway:
            return False
        self._of[task] = length
        self._held += grown
        self._shared.held += grown
        return True

    def give_back(self, task: ScsiTask) -> None:
        """It holds nothing any more; harmless if it never did."""
        had = self._of.pop(task, 0)
        self._held -= had
        self._shared.held -= had
