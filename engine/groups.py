"""Consistency groups: volumes that are frozen, cloned and rolled back together, at one instant.

A group has a name and members; a volume may be in several. A *group snapshot* is one snapshot of each member, of the
same name, taken at the same instant: it comes and goes as a whole. It stays what it is when members come and go.
``group_instant`` makes all of that crash-atomic; here are names, limits and what is refused.

Operations run one at a time, and to their end even if their caller goes away.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from engine.catalog_groups import GroupRow, GroupSnapshotRow
from engine.errors import AlreadyExists, EngineError, InUse, InvalidArgument, InvalidState, NotFound
from engine.group_instant import GroupInstants, find_point
from engine.names import check_name
from engine.stores import GroupStore

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

    from engine.api import GroupInfo, GroupSnapshotInfo
    from engine.pool import Pool
    from engine.stores import Frozen
    from engine.volume import Volume

    T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_MEMBERS = 64
"""Of a group. They flip in one turn of the loop, 0.1 ms each, and nobody is served meanwhile."""
MAX_GROUPS = 256
"""Of a pool."""
KEPT_PREFIX = "before-rollback-"
"""Of the group snapshot that has what a group rollback replaced."""


class Groups:
    """See the module. Owned by the pool, which calls ``restore`` when its files are open and before they are used."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._tables = pool.catalog.groups
        self._instants = GroupInstants(self._tables, _PoolMembers(pool), pool.env.clock)
        self._groups: dict[str, GroupRow] = {}
        self._snapshots: dict[str, GroupSnapshotRow] = {}
        self._points: dict[str, GroupSnapshotRow] = {}
        """By the guid of a member's snapshot."""
        self._going: set[str] = set()
        """Guids of members' snapshots whose group snapshot was deleted."""
        self._changing = asyncio.Lock()
        self._running: set[asyncio.Task[object]] = set()

    async def restore(self) -> None:
        """What was decided is completed, what was not is dropped."""
        for row in await self._instants.restore():
            self._keep(row)
        for row in await self._tables.group_snapshots():
            if row.doomed:  # a member could not lose its snapshot yet
                self._going.update(point.guid for point in row.points)
        self._groups = {row.name: row for row in await self._tables.groups()}

    async def close(self) -> None:
        """Wait for what is running."""
        while self._running:
            await asyncio.wait(self._running)

    # --- looking ----------------------------------------------------------------------------------------------

    def all(self) -> list[GroupInfo]:
        return [self._info(self._groups[name]) for name in sorted(self._groups)]

    def info(self, name: str) -> GroupInfo:
        """Raises NotFound."""
        return self._info(self._row(name))

    def snapshots(self, group: str) -> list[GroupSnapshotInfo]:
        """Oldest first. Raises NotFound."""
        self._row(group)
        return [self._snapshot_info(row) for row in self._snapshots.values() if row.group == group]

    def snapshot_row(self, group: str, name: str) -> GroupSnapshotRow:
        """Raises NotFound."""
        self._row(group)
        for row in self._snapshots.values():
            if (row.group, row.name) == (group, name):
                return row
        raise NotFound("group snapshot", f"{group}@{name}")

    def reasons(self) -> list[str]:
        """One line for each group, and for each group snapshot, that is not whole."""
        snapshots = map(self._snapshot_info, self._snapshots.values())
        lines = [f"group {info.name}: {info.reason}" for info in self.all() if info.reason]
        return lines + [f"group snapshot {info.group}@{info.name}: {info.reason}" for info in snapshots if info.reason]

    def group_of(self, guid: str) -> str | None:
        """GROUP@NAME of the group snapshot that a snapshot belongs to."""
        row = self._points.get(guid)
        return None if row is None else f"{row.group}@{row.name}"

    def is_going(self, guid: str) -> bool:
        """Whether a snapshot belongs to a group snapshot that was deleted: it exists for nobody."""
        return guid in self._going

    def require_single(self, snapshot: Frozen, what: str) -> None:
        """Raises InUse when a snapshot belongs to a group snapshot: those come and go as a whole."""
        row = self._points.get(snapshot.guid)
        if row is not None:
            raise InUse(
                f"{what} belongs to group snapshot {row.group}@{row.name};"
                f" delete that as a whole: twinvol group snapshot-delete {row.group} {row.name}"
            )

    def require_unheld(self, row: GroupSnapshotRow) -> None:
        """Raises InUse when a member's snapshot is held."""
        for point in row.points:
            volume = self._pool.find(point.volume_id)
            snapshot = None if volume is None else find_point(volume, point.guid)
            if volume is None or snapshot is None:
                continue
            holds = volume.head.store.notes.holds(snapshot)
            if holds:
                owners = ", ".join(hold.owner for hold in holds)
                raise InUse(f"snapshot {volume.name}@{snapshot.name} is held by {owners}")

    def require_free(self, volume_id: str, name: str) -> None:
        """Raises InUse when a volume is a member of a group, or has a snapshot that belongs to a group snapshot."""
        for group in self._groups.values():
            if volume_id in group.members:
                raise InUse(
                    f"volume {name} is in group {group.name}; take it out first:"
                    f" twinvol group remove {group.name} {name}"
                )
        for row in self._snapshots.values():
            if any(point.volume_id == volume_id for point in row.points):
                raise InUse(
                    f"volume {name} has a snapshot that belongs to group snapshot {row.group}@{row.name};"
                    f" delete that first: twinvol group snapshot-delete {row.group} {row.name}"
                )

    # --- groups -----------------------------------------------------------------------------------------------

    async def create(self, name: str, volumes: Sequence[str]) -> GroupInfo:
        """Raises AlreadyExists, NotFound, InvalidArgument (too many, one twice)."""
        check_name("group", name)

        async def work() -> GroupInfo:
            self._require_new(name)
            row = GroupRow(name, self._pool.env.clock.time(), _checked(self._ids(volumes)))
            await self._tables.add_group(row)
            self._groups[name] = row
            return self._info(row)

        return await self._run(work())

    async def of_exactly(self, name: str, volumes: Sequence[Volume]) -> str:
        """The name of a group of these volumes and no others; where there is none one is made, called ``name`` or like
        it. Raises InvalidArgument: there are too many."""
        ids = tuple(volume.volume_id for volume in volumes)
        for row in self._groups.values():
            if {*row.members} == {*ids}:
                return row.name
        free = next(each for n in itertools.count(1) if (each := name if n == 1 else f"{name}-{n}") not in self._groups)
        return (await self.create(free, [volume.name for volume in volumes])).name

    async def change(self, name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> GroupInfo:
        """Raises NotFound, InUse (it is in already), InvalidArgument (too many)."""

        async def work() -> GroupInfo:
            row = self._row(name)
            new = self._ids(add)
            for volume_id, volume in zip(new, add, strict=True):
                if volume_id in row.members:
                    raise InUse(f"volume {volume} is in group {name} already")
            gone = {self._member(row, volume) for volume in remove}
            members = tuple(each for each in (*row.members, *new) if each not in gone)
            changed = replace(row, members=_checked(members))
            await self._tables.set_members(changed)
            self._groups[name] = changed
            return self._info(changed)

        return await self._run(work())

    async def delete(self, name: str) -> None:
        """The volumes stay. Raises NotFound, InUse: it has snapshots."""

        async def work() -> None:
            self._row(name)
            names = [info.name for info in self.snapshots(name)]
            if names:
                raise InUse(f"group {name} has snapshots ({', '.join(names[:8])}); delete them first, or use --force")
            await self._tables.remove_group(name)
            del self._groups[name]

        await self._run(work())

    # --- group snapshots --------------------------------------------------------------------------------------

    async def snapshot(self, group: str, name: str) -> GroupSnapshotRow:
        """Freeze all members at one instant. Raises AlreadyExists, StoreCorrupt (a member is not served) and what
        ``GroupInstants.snapshot`` raises: then no member has it."""
        check_name("snapshot", name)

        async def work() -> GroupSnapshotRow:
            volumes = self._members(self._row(group))
            self._require_new_snapshot(group, name, volumes)
            for volume in volumes:
                volume.require_usable()
            row = await self._instants.snapshot(group, name, volumes)
            self._keep(row)
            return row

        return await self._run(work())

    async def delete_snapshot(self, row: GroupSnapshotRow) -> None:
        """Whoever uses a member's snapshot was asked before. Raises NotFound (it was deleted meanwhile)."""

        async def work() -> None:
            if row.guid not in self._snapshots:
                raise NotFound("group snapshot", f"{row.group}@{row.name}")
            self.require_unheld(row)  # once more, now that nothing waits before it is decided
            guids = {point.guid for point in row.points}

            def decided() -> None:
                del self._snapshots[row.guid]
                for guid in guids:
                    del self._points[guid]
                self._going.update(guids)

            try:
                await self._instants.delete(row, decided)
            except EngineError as error:
                if row.guid in self._snapshots:
                    raise
                log.error("group snapshot %s@%s: %s; the rest goes at the next start", row.group, row.name, error)
            else:
                self._going -= guids

        await self._run(work())

    async def roll_back(self, group: str, name: str) -> GroupSnapshotRow:
        """All members read as in a group snapshot; what they held is the group snapshot that is returned.

        Raises NotFound; InvalidState: the group has other members than the snapshot, or is the source of a mirror.
        """

        async def work() -> GroupSnapshotRow:
            row, target = self._row(group), self.snapshot_row(group, name)
            if set(row.members) != {point.volume_id for point in target.points}:
                raise InvalidState(f"group {group}", "not of the same members as its snapshot", "the same members")
            volumes = self._members(row)
            for volume, guid in ((self._pool.by_id(point.volume_id), point.guid) for point in target.points):
                if find_point(volume, guid) is None:
                    raise InvalidState(f"group snapshot {group}@{name}", "not complete", "a snapshot of every member")
                volume.require_usable()
            return await self._instants.roll_back(target, volumes, self._free_name(group, volumes), self._keep)

        return await self._run(work())

    async def clone(self, group: str, name: str, new: str) -> GroupInfo:
        """Linked clones NEW.MEMBER of all of a group snapshot, and the group NEW of them: all or nothing.

        Raises AlreadyExists, NotFound, InvalidArgument (a name that is too long), InvalidState (not complete).
        """

        async def work() -> GroupInfo:
            source = self.snapshot_row(group, name)
            self._require_new(new)
            names = {point.volume_id: f"{new}.{self._pool.name_of(point.volume_id)}" for point in source.points}
            for each in names.values():
                self._pool.require_new(check_name("volume", each))
            row = await self._instants.clone(source, names, new)
            self._groups[new] = row
            return self._info(row)

        return await self._run(work())

    def require_new_clone(self, group: str, new: str) -> None:
        """Raises what ``clone`` of the group as it is now would raise for the names."""
        check_name("group", new)
        self._require_new(new)
        for volume_id in self._row(group).members:
            self._pool.require_new(check_name("volume", f"{new}.{self._pool.name_of(volume_id)}"))

    # --- inside -----------------------------------------------------------------------------------------------

    async def _run(self, work: Coroutine[object, object, T]) -> T:
        """One at a time, and to its end."""

        async def alone() -> T:
            async with self._changing:
                return await work

        task = asyncio.create_task(alone())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    def _keep(self, row: GroupSnapshotRow) -> None:
        self._snapshots[row.guid] = row
        self._points |= dict.fromkeys((point.guid for point in row.points), row)

    def _row(self, name: str) -> GroupRow:
        row = self._groups.get(name)
        if row is None:
            raise NotFound("group", name)
        return row

    def _require_new(self, name: str) -> None:
        if name in self._groups:
            raise AlreadyExists("group", name)
        if len(self._groups) >= MAX_GROUPS:
            raise InvalidArgument(f"a pool has {MAX_GROUPS} groups at most")

    def _require_new_snapshot(self, group: str, name: str, volumes: Iterable[Volume]) -> None:
        if any((row.group, row.name) == (group, name) for row in self._snapshots.values()):
            raise AlreadyExists("group snapshot", f"{group}@{name}")
        for volume in volumes:
            self._pool.reserved.require_free("snapshot", name, volume.name)
            if any(snapshot.name == name for snapshot in self._pool.snapshots(volume)):
                raise AlreadyExists("snapshot", f"{volume.name}@{name}")

    def _free_name(self, group: str, volumes: Sequence[Volume]) -> str:
        taken = {snapshot.name for volume in volumes for snapshot in volume.head.store.snapshots(volume.volume_id)}
        taken |= {row.name for row in self._snapshots.values() if row.group == group}
        return next(name for n in range(1, len(taken) + 2) if (name := f"{KEPT_PREFIX}{n}") not in taken)

    def _ids(self, volumes: Sequence[str]) -> tuple[str, ...]:
        return tuple(self._pool.volume(name).volume_id for name in volumes)

    def _member(self, row: GroupRow, name: str) -> str:
        """The id of a member, which need not be served."""
        for volume_id in row.members:
            if self._pool.name_of(volume_id) == name:
                return volume_id
        raise NotFound(f"member of group {row.name}", name)

    def _members(self, row: GroupRow) -> list[Volume]:
        """Raises StoreCorrupt, NotFound: one is not served. InvalidState: there are none."""
        if not row.members:
            raise InvalidState(f"group {row.name}", "empty", "a member")
        return [self._pool.volume(self._pool.name_of(volume_id)) for volume_id in row.members]

    def _info(self, row: GroupRow) -> GroupInfo:
        from engine.api import GroupInfo  # late: see there

        missing = [volume_id for volume_id in row.members if self._pool.find(volume_id) is None]
        served = [volume for volume_id in row.members if (volume := self._pool.find(volume_id)) is not None]
        snapshots = sum(each.group == row.name for each in self._snapshots.values())
        return GroupInfo(
            name=row.name,
            created_at=row.created_at,
            members=[self._pool.name_of(volume_id) for volume_id in row.members],
            size_bytes=sum(volume.size_bytes for volume in served),
            snapshots=snapshots,
            state="degraded" if missing else "ok",
            reason=_not_served(map(self._pool.name_of, missing)),
            guid=row.guid,
        )

    def _snapshot_info(self, row: GroupSnapshotRow) -> GroupSnapshotInfo:
        from engine.api import GroupMember, GroupSnapshotInfo  # late: see there

        members, missing, gone, failed = [], [], [], False
        for point in row.points:
            volume, name = self._pool.find(point.volume_id), self._pool.name_of(point.volume_id)
            members.append(GroupMember(name, point.guid))
            if volume is None:
                missing.append(name)
            elif find_point(volume, point.guid) is None:
                gone.append(name)
                failed = failed or self._pool.failure(volume) is not None
        reason = _not_served(missing)
        if gone:
            waits = " until the daemon is started again, since the file takes no writes" if failed else ""
            reason = f"the snapshot of {', '.join(gone)} is not there{waits}" + (f"; {reason}" if reason else "")
        return GroupSnapshotInfo(
            group=row.group,
            name=row.name,
            guid=row.guid,
            created_at=row.created_at,
            members=members,
            state="ok" if reason is None else "incomplete",
            reason=reason,
        )


def _not_served(names: Iterable[str]) -> str | None:
    text = ", ".join(names)
    return f"not served: {text}" if text else None


def _checked(members: tuple[str, ...]) -> tuple[str, ...]:
    """Raises InvalidArgument."""
    if len(set(members)) < len(members):
        raise InvalidArgument("a volume is in a group once")
    if len(members) > MAX_MEMBERS:
        raise InvalidArgument(f"a group has {MAX_MEMBERS} members at most, not {len(members)}")
    return members


class _PoolMembers:
    """``group_instant.Members`` of a pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def stores(self) -> list[GroupStore]:
        return [store for store in self._pool.stores() if isinstance(store, GroupStore)]

    def find(self, volume_id: str) -> Volume | None:
        return self._pool.find(volume_id)

    def may_return(self, volume_id: str) -> bool:
        return any(row.volume_id == volume_id for family in self._pool.damaged() for row in family.volumes)

    async def make_clone(self, source: Volume, snapshot: Frozen, name: str, volume_id: str) -> Volume:
        return await self._pool.clone(source, snapshot, name, volume_id=volume_id)

    async def remove_clone(self, volume: Volume) -> None:
        await self._pool.delete_volume(volume)
