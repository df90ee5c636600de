"""The operations on snapshots and their schedules in the data process: a part of ``engine.local_api.LocalApi``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.api import SNAPSHOT_PAGE
from engine.api_part import VOLUMES_PER_TURN, ApiPart
from engine.retention import Retention
from engine.space_report import deletion_of, named_snapshots

if TYPE_CHECKING:
    from engine.api import DeletionInfo, DiffInfo, PruneInfo, ScheduleInfo, SnapshotInfo, SnapshotPage, VolumeInfo
    from engine.changed_blocks import ChangedBlocks
    from engine.schedules import Schedules
    from engine.snapshots import Snapshots


class SnapshotOperations(ApiPart):
    """See the module."""

    _snapshots: Snapshots
    _schedules: Schedules
    _changed_blocks: ChangedBlocks

    async def snapshot_create(
        self, volume: str, name: str, *, expose: bool = False, description: str = ""
    ) -> SnapshotInfo:
        return await self._snapshots.create(volume, name, expose=expose, description=description)

    async def snapshot_list(self, volume: str) -> list[SnapshotInfo]:
        return await self._snapshots.all(volume)

    async def snapshot_page(self, volume: str, cursor: str | None = None, limit: int = SNAPSHOT_PAGE) -> SnapshotPage:
        return await self._snapshots.page(volume, cursor, limit)

    async def snapshot_show(self, volume: str, name: str) -> SnapshotInfo:
        return await self._snapshots.one(volume, name)

    async def snapshot_describe(self, volume: str, name: str, text: str) -> SnapshotInfo:
        return await self._snapshots.describe(volume, name, text)

    async def snapshot_hold(
        self, volume: str, name: str, owner: str, *, expires_at: float | None = None
    ) -> SnapshotInfo:
        return await self._snapshots.hold(volume, name, owner, expires_at)

    async def snapshot_release(self, volume: str, name: str, owner: str) -> SnapshotInfo:
        return await self._snapshots.release(volume, name, owner)

    async def snapshot_expose(
        self, volume: str, name: str, *, writable: bool = False, expires_at: float | None = None
    ) -> SnapshotInfo:
        return await self._snapshots.expose(volume, name, writable=writable, expires_at=expires_at)

    async def snapshot_unexpose(
        self, volume: str, name: str, *, writable: bool = False, force: bool = False
    ) -> SnapshotInfo:
        return await self._snapshots.unexpose(volume, name, writable=writable, force=force)

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
        if keep_last or hourly or daily or weekly:
            retention = Retention(keep_last, hourly, daily, weekly)
        else:
            retention = await self._schedules.retention_of(volume)
        return await self._snapshots.prune(volume, retention, manual=manual, dry_run=dry_run)

    async def schedule_set(
        self, volume: str, interval_s: int, *, keep_last: int = 0, hourly: int = 0, daily: int = 0, weekly: int = 0
    ) -> ScheduleInfo:
        return await self._schedules.set(volume, interval_s, Retention(keep_last, hourly, daily, weekly))

    async def schedule_list(self) -> list[ScheduleInfo]:
        return await self._schedules.all()

    async def schedule_remove(self, volume: str) -> None:
        await self._schedules.remove(volume)

    async def snapshot_delete(self, volume: str, name: str, *, force: bool = False) -> None:
        await self._snapshots.delete(volume, name, force=force)

    async def snapshot_delete_preview(self, volume: str, names: list[str], *, force: bool = False) -> DeletionInfo:
        source = self._pool.volume(volume)
        snapshots = named_snapshots(self._pool, source, names)
        for number, snapshot in enumerate(snapshots):
            self._snapshots.require_deletable(source, snapshot, force=force)
            if not number % VOLUMES_PER_TURN:
                await asyncio.sleep(0)
        return await deletion_of(source, snapshots)

    async def snapshot_rollback(self, volume: str, name: str, *, force: bool = False) -> VolumeInfo:
        source = self._pool.volume(volume)
        snapshot = self._pool.snapshot(source, name)
        source.require_own_content()
        if not force:
            luns = self._exposure.luns_of(source.volume_id)
            self._exposure.require_idle(luns, f"volume {volume}", hint="use --force to replace its content under them")
        await self._pool.rollback(source, snapshot)
        await self._event(f"volume {volume}", f"rolled back to {name}")
        return self._volume_info(source)

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
        return await self._changed_blocks.page(
            volume, older, newer, offset=offset, limit=limit, digests=digests, point=point
        )
