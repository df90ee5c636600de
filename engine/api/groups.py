"""Consistency groups. See ``engine.api``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """``members``: names of volumes. ``state``: ok, or degraded with a ``reason``: a member is not served. ``guid``: of
    no other group, ever."""

    name: str
    created_at: float
    members: list[str]
    size_bytes: int
    snapshots: int
    state: str
    reason: str | None
    guid: str = ""


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A member's part in a group snapshot: the snapshot ``guid`` of a volume, and where it is exposed."""

    volume: str
    guid: str
    target: str | None = None
    lun: int | None = None


@dataclass(frozen=True, slots=True)
class GroupSnapshotInfo:
    """``name`` is also that of the members' snapshots. ``state``: ok, or incomplete with a ``reason``."""

    group: str
    name: str
    guid: str
    created_at: float
    members: list[GroupMember]
    state: str
    reason: str | None


class GroupApi(Protocol):
    """See ``engine.api``."""

    async def group_create(self, name: str, volumes: list[str]) -> GroupInfo:
        """Make a consistency group of up to 64 volumes; a volume may be in several. Raises AlreadyExists, NotFound."""
        ...

    async def group_add(self, name: str, volumes: list[str]) -> GroupInfo:
        """Raises InUse: one is in it already. Group snapshots that exist stay as they are."""
        ...

    async def group_remove(self, name: str, volumes: list[str]) -> GroupInfo:
        """Raises NotFound: one is not in it. Group snapshots that exist stay as they are."""
        ...

    async def group_delete(self, name: str, *, force: bool = False) -> None:
        """The volumes stay. Raises InUse: it has snapshots; ``force`` deletes them by force."""
        ...

    async def group_list(self) -> list[GroupInfo]: ...

    async def group_show(self, name: str) -> GroupInfo: ...

    async def group_snapshot_create(self, group: str, name: str, *, expose: bool = False) -> GroupSnapshotInfo:
        """Freeze all members at one instant: a snapshot ``name`` of each. It exists as a whole or not at all.

        ``expose`` makes a target of each member's snapshot. Raises AlreadyExists, StoreCorrupt (one is not served).
        """
        ...

    async def group_snapshot_list(self, group: str) -> list[GroupSnapshotInfo]:
        """Oldest first."""
        ...

    async def group_snapshot_delete(self, group: str, name: str, *, force: bool = False) -> None:
        """Delete it with its members' snapshots. Raises InUse: sessions (``force`` ends them), clones, holds, jobs."""
        ...

    async def group_rollback(self, group: str, name: str, *, force: bool = False) -> GroupSnapshotInfo:
        """All members read as in the group snapshot; what they were is the group snapshot that is returned.

        Raises InUse: sessions are on a member; ``force`` does it under them, with a unit attention. Raises
        InvalidState: the group has other members than its snapshot, or one is the source of a mirror.
        """
        ...

    async def group_clone(self, group: str, snapshot: str | None, name: str, *, expose: bool = False) -> GroupInfo:
        """A group ``name`` of linked clones NAME.MEMBER of a group snapshot, or of one made now and named after it.

        All of them exist, or none.
        """
        ...
