"""Snapshots by schedule, and their retention. ``engine.retention`` has the rules; this asks them and does it.

A schedule has had its turn when its slot is recorded in the catalogue, which happens *before* the snapshot is made: a
daemon that dies in between has missed one, and does not make two. However long it was away, it makes one when it is
back. What fails is told as an event and in ``status``, and tried again in the next slot. Only pruning after a scheduled
snapshot, or by a user, deletes: a schedule that stands still loses nothing.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.api import ScheduleInfo
from engine.catalog_schedules import ScheduleRow
from engine.errors import EngineError, InvalidArgument, NotFound
from engine.retention import Retention, check_interval, is_due, name_at, slot_of, slot_start

if TYPE_CHECKING:
    from engine.pool import Pool
    from engine.snapshots import Snapshots
    from engine.volume import Volume

log = logging.getLogger(__name__)


class Schedules:
    """See the module."""

    def __init__(self, pool: Pool, snapshots: Snapshots) -> None:
        self._pool = pool
        self._snapshots = snapshots
        self._problems: dict[str, str] = {}
        """By volume id: why its last turn failed."""

    async def set(self, volume: str, interval_s: int, retention: Retention) -> ScheduleInfo:
        """Give a volume a schedule, or another one. Its first turn is in the next slot."""
        source = self._pool.volume(volume)
        now = self._pool.env.clock.time()
        row = ScheduleRow(source.volume_id, check_interval(interval_s), retention, slot_of(now, interval_s))
        await self._pool.catalog.schedules.put(row)
        await self._event(source, "info", f"scheduled every {interval_s} s")
        return self._info(source.name, row)

    async def all(self) -> list[ScheduleInfo]:
        """By name of the volume; those of volumes that are not served too, with the reason."""
        rows = {row.volume_id: row for row in await self._pool.catalog.schedules.all()}
        infos = [
            self._info(volume.name, rows[volume.volume_id])
            for volume in self._pool.volumes()
            if volume.volume_id in rows
        ]
        infos += [
            replace(self._info(each.name, rows[each.volume_id]), problem=f"not served: {family.reason}")
            for family in self._pool.damaged()
            for each in family.volumes
            if each.volume_id in rows
        ]
        return sorted(infos, key=lambda info: info.volume)

    async def remove(self, volume: str) -> None:
        """What it made stays, and is no longer pruned by itself."""
        source = self._pool.volume(volume)
        if not await self._pool.catalog.schedules.remove(source.volume_id):
            raise NotFound("schedule of the volume", volume)
        self._problems.pop(source.volume_id, None)
        await self._event(source, "info", "its schedule removed")

    async def retention_of(self, volume: str) -> Retention:
        """Raises InvalidArgument: the volume has no schedule."""
        volume_id = self._pool.volume(volume).volume_id
        for row in await self._pool.catalog.schedules.all():
            if row.volume_id == volume_id:
                return row.retention
        raise InvalidArgument(f"volume {volume} has no schedule; say what is to stay, such as --keep-last 7")

    def reasons(self) -> list[str]:
        """One line for each schedule whose last turn failed."""
        return [
            f"the schedule of volume {volume.name} failed: {self._problems[volume.volume_id]}"
            for volume in self._pool.volumes()
            if volume.volume_id in self._problems
        ]

    async def tick(self) -> None:
        """Do what is due now."""
        volumes = {volume.volume_id: volume for volume in self._pool.volumes()}
        for row in await self._pool.catalog.schedules.all():
            slot = slot_of(self._pool.env.clock.time(), row.interval_s)
            if row.volume_id in volumes and is_due(row.last_slot, slot):
                await self._pool.catalog.schedules.taken(row.volume_id, slot)
                await self._turn(volumes[row.volume_id], row)

    async def _turn(self, volume: Volume, row: ScheduleRow) -> None:
        taken = {snapshot.name for snapshot in volume.head.store.snapshots(volume.volume_id)}
        name = name_at(self._pool.env.clock.time(), taken)
        try:
            await self._snapshots.create(volume.name, name, scheduled=True)
            await self._snapshots.prune(volume.name, row.retention, manual=False, dry_run=False)
        except EngineError as error:
            log.warning("the schedule of volume %s failed: %s", volume.name, error)
            self._problems[volume.volume_id] = str(error)
            await self._event(volume, "warning", f"its schedule failed: {error}")
        else:
            self._problems.pop(volume.volume_id, None)

    def _info(self, volume: str, row: ScheduleRow) -> ScheduleInfo:
        keep = row.retention
        return ScheduleInfo(
            volume=volume,
            interval_s=row.interval_s,
            keep_last=keep.keep_last,
            hourly=keep.hourly,
            daily=keep.daily,
            weekly=keep.weekly,
            next_at=slot_start(row.last_slot + 1, row.interval_s),
            problem=self._problems.get(row.volume_id),
        )

    async def _event(self, volume: Volume, severity: str, text: str) -> None:
        now = self._pool.env.clock.time()
        await self._pool.catalog.add_event(now, severity, f"volume {volume.name}", text)
