"""The operations on groups in the data process: a part of ``engine.local_api.LocalApi``.

What is exposed, and who uses it, is asked here, before ``engine.groups`` does the work.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.api_part import ApiPart
from engine.errors import EngineError, InUse, NotFound
from engine.group_instant import find_point

if TYPE_CHECKING:
    from engine.api import GroupInfo, GroupMember, GroupSnapshotInfo
    from engine.catalog import LunRow
    from engine.catalog_groups import GroupSnapshotRow
    from engine.stores import Frozen
    from engine.volume import Volume


class GroupOperations(ApiPart):
    """See the module."""

    async def group_create(self, name: str, volumes: list[str]) -> GroupInfo:
        info = await self._pool.groups.create(name, volumes)
        await self._group_event(name, f"created of {', '.join(volumes)}")
        return info

    async def group_add(self, name: str, volumes: list[str]) -> GroupInfo:
        self._replicas.groups.require_unmirrored(name)
        info = await self._pool.groups.change(name, add=volumes)
        await self._group_event(name, f"{', '.join(volumes)} added")
        return info

    async def group_remove(self, name: str, volumes: list[str]) -> GroupInfo:
        self._replicas.groups.require_unmirrored(name)
        info = await self._pool.groups.change(name, remove=volumes)
        await self._group_event(name, f"{', '.join(volumes)} removed")
        return info

    async def group_delete(self, name: str, *, force: bool = False) -> None:
        self._replicas.groups.require_unmirrored(name)
        names = [info.name for info in self._pool.groups.snapshots(name)] if force else []
        for each in names:  # all of them before the first one goes
            self._require_deletable(self._pool.groups.snapshot_row(name, each), force=True)
        for each in names:
            await self.group_snapshot_delete(name, each, force=True)
        await self._pool.groups.delete(name)
        await self._group_event(name, "deleted")

    async def group_list(self) -> list[GroupInfo]:
        return self._pool.groups.all()

    async def group_show(self, name: str) -> GroupInfo:
        return self._pool.groups.info(name)

    async def group_snapshot_create(self, group: str, name: str, *, expose: bool = False) -> GroupSnapshotInfo:
        if expose:
            for member in self._pool.groups.info(group).members:
                self._exposure.require_exposable(member, name)
        row = await self._pool.groups.snapshot(group, name)
        if expose:
            for volume, snapshot in self._frozen(row):
                await self._exposure.expose(volume, snapshot)
        await self._group_event(group, f"snapshot {name} created")
        return self._group_snapshot(row)

    async def group_snapshot_list(self, group: str) -> list[GroupSnapshotInfo]:
        return [self._with_targets(info) for info in self._pool.groups.snapshots(group)]

    async def group_snapshot_delete(self, group: str, name: str, *, force: bool = False) -> None:
        row = self._pool.groups.snapshot_row(group, name)
        self._require_deletable(row, force=force)
        members = self._frozen(row)
        for volume, snapshot in members:
            for view in self._views.of(volume, snapshot):
                await self._views.withdraw(view)
            await self._exposure.withdraw(volume.name, self._exposure.luns_of(volume.volume_id, snapshot.guid))
        await self._pool.groups.delete_snapshot(row)
        await self._exposure.forget([point.guid for point in row.points])
        await self._group_event(group, f"snapshot {name} deleted")

    async def group_rollback(self, group: str, name: str, *, force: bool = False) -> GroupSnapshotInfo:
        members = [self._pool.volume(member) for member in self._pool.groups.info(group).members]
        for volume in members:
            volume.require_own_content()
        if not force:
            luns = [lun for volume in members for lun in self._exposure.luns_of(volume.volume_id)]
            self._exposure.require_idle(luns, f"group {group}", hint="use --force to replace its content under them")
        kept = await self._pool.groups.roll_back(group, name)
        await self._group_event(group, f"rolled back to {name}; what it was is {kept.name}")
        return self._group_snapshot(kept)

    async def group_clone(self, group: str, snapshot: str | None, name: str, *, expose: bool = False) -> GroupInfo:
        self._pool.groups.require_new_clone(group, name)
        if expose:
            for member in self._pool.groups.info(group).members:
                self._exposure.require_exposable(f"{name}.{member}")
        made = None if snapshot is not None else await self._pool.groups.snapshot(group, name)
        try:
            info = await self._pool.groups.clone(group, snapshot or name, name)
        except BaseException:
            if made is not None:  # it was taken for the clones
                with contextlib.suppress(NotFound, InUse):  # somebody else has found it meanwhile
                    await self._pool.groups.delete_snapshot(made)
            raise
        if made is not None:
            await self._group_event(group, f"snapshot {name} created")
        for member in info.members if expose else ():
            await self._exposure.expose(self._pool.volume(member))
        await self._group_event(name, f"cloned from {group}@{snapshot or name}")
        return info

    # --- inside -----------------------------------------------------------------------------------------------

    def _require_deletable(self, row: GroupSnapshotRow, *, force: bool) -> None:
        """Raises InUse: who uses a member's snapshot. ``force`` is for sessions and views only."""
        luns: list[LunRow] = []
        views: list[Volume] = []
        self._pool.groups.require_unheld(row)
        for volume, snapshot in self._frozen(row):
            label = f"{volume.name}@{snapshot.name}"
            self._pool.jobs.require_unread(label)
            clones = self._pool.clones(volume, snapshot)
            if clones:
                raise InUse(f"snapshot {label} has linked clones ({', '.join(clones)}); delete them first")
            luns += self._exposure.luns_of(volume.volume_id, snapshot.guid)
            views += self._views.of(volume, snapshot)
        if views and not force:
            raise InUse(f"there are writable views ({', '.join(view.name for view in views)}); unexpose them first")
        if not force:
            self._exposure.require_idle(luns, f"group snapshot {row.group}@{row.name}", hint="use --force")

    async def _group_event(self, group: str, text: str) -> None:
        await self._pool.catalog.add_event(self._pool.env.clock.time(), "info", f"group {group}", text)

    def _frozen(self, row: GroupSnapshotRow) -> list[tuple[Volume, Frozen]]:
        """The members' snapshots that are there."""
        volumes = [(self._pool.find(point.volume_id), point.guid) for point in row.points]
        found = [(volume, find_point(volume, guid)) for volume, guid in volumes if volume is not None]
        return [(volume, snapshot) for volume, snapshot in found if snapshot is not None]

    def _group_snapshot(self, row: GroupSnapshotRow) -> GroupSnapshotInfo:
        infos = self._pool.groups.snapshots(row.group)
        return next(self._with_targets(info) for info in infos if info.guid == row.guid)

    def _with_targets(self, info: GroupSnapshotInfo) -> GroupSnapshotInfo:
        return replace(info, members=[self._with_target(member) for member in info.members])

    def _with_target(self, member: GroupMember) -> GroupMember:
        try:
            luns = self._exposure.luns_of(self._pool.volume(member.volume).volume_id, member.guid)
        except EngineError:  # it is not served
            return member
        return replace(member, target=luns[0].target, lun=luns[0].lun) if luns else member
