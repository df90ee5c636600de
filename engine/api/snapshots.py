"""Snapshots, their retention, and what changed between them. See ``engine.api``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from engine.api.volumes import DeletionInfo, VolumeInfo


@dataclass(frozen=True, slots=True)
class HoldInfo:
    """While it is valid its snapshot is not deleted. ``expires_at``: None for never."""

    owner: str
    held_at: float
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """``target`` and ``lun`` when it is exposed (read-only). ``scheduled``: a schedule made it, so retention may delete
    it. ``holds``: the valid ones. ``parent``: the snapshot that it goes back to. ``branch``: a rollback left it on the
    branch of this name; None: the volume as it is comes from it. ``view_...``: where its writable view is, if it has
    one, and when that is discarded. ``group``: GROUP@NAME of its group snapshot. The bytes are those of
    ``SnapshotSpace``; only lists have them.
    """

    volume: str
    name: str
    guid: str
    size_bytes: int
    created_at: float
    serial: str
    naa: str
    target: str | None
    lun: int | None
    description: str = ""
    scheduled: bool = False
    holds: list[HoldInfo] = field(default_factory=list)
    parent: str | None = None
    branch: str | None = None
    view_target: str | None = None
    view_lun: int | None = None
    view_expires_at: float | None = None
    mapped_bytes: int | None = None
    unique_bytes: int | None = None
    shared_bytes: int | None = None
    pinned_bytes: int | None = None
    reclaimable_bytes: int | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class PrunedInfo:
    """A snapshot that pruning looked at. ``reasons``: the rules by which it stays (last, hourly, daily, weekly), and
    what binds it."""

    name: str
    created_at: float
    stays: bool
    reasons: list[str]


SNAPSHOT_PAGE = 5000
"""Snapshots in one page at most: some 4 MiB over the socket."""


@dataclass(frozen=True, slots=True)
class SnapshotPage:
    """``cursor``: where the next page begins; None behind the last snapshot."""

    snapshots: list[SnapshotInfo]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class PruneInfo:
    """``freed_bytes``: what comes back, or (``dry_run``) would, in whole chunks; as ``DeletionInfo``."""

    volume: str
    dry_run: bool
    freed_bytes: int
    snapshots: list[PrunedInfo]


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """Every ``interval_s`` a volume has a snapshot made, and what the retention does not keep is pruned. ``problem``:
    why its last turn failed, or why the volume is not served."""

    volume: str
    interval_s: int
    keep_last: int
    hourly: int
    daily: int
    weekly: int
    next_at: float
    problem: str | None


@dataclass(frozen=True, slots=True)
class ExtentInfo:
    """``state``: data, zero (zeroes were written) or hole (never written, or discarded). ``digests``, of
    data and when they were asked for: the xxh3_128 of each 64 KiB of it, the last of what is left. Such extents are cut
    at multiples of 1 MiB."""

    offset: int
    length: int
    state: str = "data"
    digests: list[str] | None = None


@dataclass(frozen=True, slots=True)
class DiffInfo:
    """Extents that changed between two points of one volume, in order, and the size of the newer one.

    ``next_offset``: ask again from there, with the ``point`` if there is one; None: that was all.
    """

    volume: str
    older: str | None
    newer: str | None
    extents: list[ExtentInfo]
    changed_bytes: int
    next_offset: int | None
    point: str | None = None
    size_bytes: int = 0


class SnapshotApi(Protocol):
    """See ``engine.api``."""

    async def snapshot_create(
        self, volume: str, name: str, *, expose: bool = False, description: str = ""
    ) -> SnapshotInfo: ...

    async def snapshot_list(self, volume: str) -> list[SnapshotInfo]:
        """All of them, oldest first. Over the socket not more than fit into one answer: ``snapshot_page``."""
        ...

    async def snapshot_page(self, volume: str, cursor: str | None = None, limit: int = SNAPSHOT_PAGE) -> SnapshotPage:
        """Some of them, oldest first, from the beginning or from where a page before ended; ``each_snapshot`` follows.

        What is there all the while is in one page; what comes or goes meanwhile may be in one. Raises InvalidArgument:
        a cursor that is none, or a limit that is not 1 to SNAPSHOT_PAGE.
        """
        ...

    async def snapshot_show(self, volume: str, name: str) -> SnapshotInfo: ...

    async def snapshot_describe(self, volume: str, name: str, text: str) -> SnapshotInfo: ...

    async def snapshot_hold(
        self, volume: str, name: str, owner: str, *, expires_at: float | None = None
    ) -> SnapshotInfo:
        """Keep a snapshot from being deleted until ``expires_at``, or until ``owner`` releases it. Holding again
        replaces the owner's expiry."""
        ...

    async def snapshot_release(self, volume: str, name: str, owner: str) -> SnapshotInfo:
        """Raises NotFound: the owner has no hold."""
        ...

    async def snapshot_expose(
        self, volume: str, name: str, *, writable: bool = False, expires_at: float | None = None
    ) -> SnapshotInfo:
        """Show a snapshot, write-protected, at a target VOLUME.snap.NAME; or (``writable``) make a throw-away view of
        it and show that at VOLUME.view.NAME, until it is unexposed or expires. Raises AlreadyExists."""
        ...

    async def snapshot_unexpose(
        self, volume: str, name: str, *, writable: bool = False, force: bool = False
    ) -> SnapshotInfo:
        """End the exposure; what was written to a view is lost. Raises NotFound; InUse: sessions (``force`` ends
        them)."""
        ...

    async def snapshot_prune(
        self,
        volume: str,
        *,
        keep_last: int = 0,
        hourly: int = 0,
        daily: int = 0,
        weekly: int = 0,
        manual: bool = False,
        dry_run: bool = False,
    ) -> PruneInfo:
        """Delete the scheduled snapshots (``manual``: all alike) that a retention does not keep: the newest
        ``keep_last``, and the newest of each of so many hours, days and weeks. Without one it is the schedule's.

        Raises InvalidArgument: there is no schedule either.
        """
        ...

    async def schedule_set(
        self, volume: str, interval_s: int, *, keep_last: int = 0, hourly: int = 0, daily: int = 0, weekly: int = 0
    ) -> ScheduleInfo:
        """Snapshots from now on, named by their time in UTC, and their retention; replaces what there was."""
        ...

    async def schedule_list(self) -> list[ScheduleInfo]: ...

    async def schedule_remove(self, volume: str) -> None: ...

    async def snapshot_delete(self, volume: str, name: str, *, force: bool = False) -> None:
        """Raises InUse: it is held, clones come from it, or (``force`` ends those) sessions are on its target or it has
        a writable view."""
        ...

    async def snapshot_delete_preview(self, volume: str, names: list[str], *, force: bool = False) -> DeletionInfo:
        """What deleting these snapshots, all together, would give back. A name may be a range: ``a%b``, ``a%``, ``%b``,
        from the older to the newer. Raises NotFound, and what ``snapshot_delete`` would raise for each."""
        ...

    async def snapshot_rollback(self, volume: str, name: str, *, force: bool = False) -> VolumeInfo:
        """The volume reads as the snapshot from now on; what it was stays as a snapshot.

        Raises InUse: sessions are on the volume. ``force`` does it under them, with a unit attention.
        """
        ...

    async def snapshot_diff(
        self,
        volume: str,
        older: str | None,
        newer: str | None,
        *,
        offset: int = 0,
        limit: int = 10_000,
        digests: bool = False,
        point: str | None = None,
    ) -> DiffInfo:
        """What changed from ``older`` (None: from nothing) to ``newer`` (None: to the volume at the instant of the
        first page), a page of at most ``limit`` extents from ``offset`` on. ``digests``: with those of the data.

        Raises NotFound: a snapshot is gone, or the ``point`` of the first page, since nobody asked for five minutes.
        """
        ...


async def each_snapshot(api: SnapshotApi, volume: str) -> list[SnapshotInfo]:
    """All snapshots of a volume, oldest first, however many there are."""
    found, cursor = [], None
    while True:
        page = await api.snapshot_page(volume, cursor)
        found += page.snapshots
        cursor = page.cursor
        if cursor is None:
            return found
