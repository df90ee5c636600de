"""``EngineApi`` in the data process: names are checked here, work is done by the pool, the exposure and the jobs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.access_state import AccessState
from engine.api import (
    ChapInfo,
    CommandInfo,
    DeletionInfo,
    DeviceIoInfo,
    DiffInfo,
    EventInfo,
    JobInfo,
    PoolSpaceInfo,
    PruneInfo,
    ReplicaInfo,
    ScheduleInfo,
    ScrubInfo,
    SessionInfo,
    SnapshotInfo,
    SpaceInfo,
    StatusInfo,
    TargetInfo,
    VolumeInfo,
)
from engine.catalog import VolumeRow
from engine.changed_blocks import ChangedBlocks
from engine.clone import discard_interrupted, start_full_clone
from engine.encryption import check_source
from engine.errors import InUse, InvalidArgument, NotFound, NotSupported
from engine.flatten import start_flatten
from engine.group_api import GroupOperations
from engine.image_formats import RemoteDisks, absolute, open_source
from engine.interchange import interrupted_exports, start_export, start_import
from engine.jobs import Job, JobState
from engine.names import check_choice, check_chunk, check_name, check_size, is_view
from engine.pool_space import SpaceLimits, SpaceState
from engine.retention import Retention
from engine.root_job import start_root
from engine.sanitize import SanitizeState
from engine.schedules import Schedules
from engine.snapshots import Snapshots
from engine.space_report import (
    bytes_on_host,
    deletion_of,
    deletion_of_volume,
    limit_pool,
    named_snapshots,
    pool_space,
    volume_space,
)
from engine.upkeep import Upkeep
from engine.views import Views
from engine.volume import Identity

if TYPE_CHECKING:
    from engine.api import EngineApi
    from engine.catalog import LunRow
    from engine.errors import StoreFailed
    from engine.exposure import Exposure
    from engine.pool import DamagedFamily, Pool
    from engine.replicas import Replicas
    from engine.volume import Volume

EVENT_LIST_MAX = 10_000
JOB_WAIT_MAX_S = 60.0
SESSIONS_PER_TURN = 16
"""Sessions that are described in one turn of the loop: 2 ms."""


VOLUMES_PER_TURN = 16
"""Volumes that are described, or snapshots that are judged, in one turn of the loop: 2 ms."""


class LocalApi(GroupOperations):
    """See the module. ``version`` is the product's, for ``status``. ``remotes``: what opens disks of elsewhere."""

    def __init__(
        self,
        pool: Pool,
        exposure: Exposure,
        replicas: Replicas,
        *,
        version: str,
        remotes: RemoteDisks | None = None,
    ) -> None:
        self._pool = pool
        self._exposure = exposure
        self._replicas = replicas
        self._version = version
        self._remotes = remotes
        self._started_at = pool.env.clock.time()
        self._views = Views(pool, exposure)
        self._snapshots = Snapshots(pool, exposure, self._views)
        self._schedules = Schedules(pool, self._snapshots)
        self._changed_blocks = ChangedBlocks(pool)
        self.upkeep = Upkeep([self._views.expire, self._schedules.tick, self._changed_blocks.drop_idle])
        """To be run by whoever serves the pool."""

    # --- the whole --------------------------------------------------------------------------------------------

    async def status(self) -> StatusInfo:
        volumes = self._pool.volumes()
        files = {self._pool.file_of(volume) for volume in volumes}
        stored = await asyncio.to_thread(lambda: sum(map(bytes_on_host, files)))
        space = await pool_space(self._pool)
        reasons = [f"{family.path.name} is not served: {family.reason}" for family in self._pool.damaged()]
        reasons += [
            f"volume {volume.name} takes no writes: {failure}"
            for volume in volumes
            if (failure := self._pool.failure(volume)) is not None
        ]
        if self._pool.space.state is SpaceState.FULL:
            reasons.append("the pool is full: writes that need new space are refused (twinvol pool show)")
        reasons += self._exposure.reasons() + self._replicas.reasons()
        reasons += self._pool.groups.reasons() + self._schedules.reasons()
        reasons += self._pool.integrity.reasons()
        return StatusInfo(
            pool=str(self._pool.path),
            pid=os.getpid(),
            version=self._version,
            started_at=self._started_at,
            health="degraded" if reasons else "ok",
            reasons=reasons,
            interrupted_copies=self._pool.interrupted(),
            interrupted_exports=sorted(map(str, (await interrupted_exports(self._pool)).values())),
            iscsi=self._exposure.portals(),
            volumes=len(volumes),
            snapshots=sum(len(self._pool.snapshots(volume)) for volume in volumes),
            replicas=len(self._replicas.all()),
            targets=len(self._exposure.targets()),
            sessions=self._exposure.session_count(),
            jobs_running=sum(not job.state.final for job in self._pool.jobs.all()),
            provisioned_bytes=sum(volume.size_bytes for volume in volumes),
            stored_bytes=stored,
            total_bytes=space.host_total_bytes,
            free_bytes=space.host_free_bytes,
            space=space,
        )

    async def pool_space(self) -> PoolSpaceInfo:
        return await pool_space(self._pool)

    async def pool_limit(
        self, *, quota_bytes: int | None, reserve_bytes: int | None, warn_percent: int
    ) -> PoolSpaceInfo:
        await limit_pool(self._pool, SpaceLimits(quota_bytes, reserve_bytes, warn_percent))
        return await pool_space(self._pool)

    async def event_list(self, limit: int = 100) -> list[EventInfo]:
        rows = await self._pool.catalog.events(max(0, min(limit, EVENT_LIST_MAX)))
        return [EventInfo(row.at, row.severity, row.subject, row.text) for row in rows]

    # --- volumes ----------------------------------------------------------------------------------------------

    async def volume_create(
        self,
        name: str,
        size_bytes: int,
        *,
        chunk_bytes: int = 65536,
        physical_block_bytes: int = 4096,
        removable: bool = False,
        read_only: bool = False,
        write_cache: bool = True,
        expose: bool = False,
        key_source: str | None = None,
    ) -> VolumeInfo:
        if key_source is not None:
            check_source(key_source)
        row = VolumeRow(
            volume_id="",
            name=check_name("volume", name),
            file="",
            physical_block_bytes=check_choice("physical block size", physical_block_bytes, (512, 4096)),
            write_cache=write_cache,
            read_only=read_only,
            removable=removable,
        )
        check_size(size_bytes)
        check_chunk(chunk_bytes)
        if expose:
            self._exposure.require_exposable(name)
        volume = await self._pool.create_volume(row, size_bytes, chunk_bytes, key_source=key_source)
        if expose:
            await self._exposure.expose(volume)
        await self._event(f"volume {name}", f"created with {size_bytes} bytes")
        return self._volume_info(volume)

    async def volume_list(self) -> list[VolumeInfo]:
        infos = await self._volume_infos(self._pool.volumes())
        for family in self._pool.damaged():
            infos += _damaged_infos(family)
        return sorted(infos, key=lambda info: info.name)

    async def volume_show(self, name: str) -> VolumeInfo:
        for family in self._pool.damaged():
            for info in _damaged_infos(family):
                if info.name == name:
                    return info
        return self._volume_info(self._pool.volume(name))

    async def volume_rekey(self, name: str, key_source: str) -> VolumeInfo:
        check_source(key_source)
        volume = self._pool.volume(name)
        await self._pool.rekey(volume, key_source)
        await self._event(f"volume {name}", f"has its key from {key_source} now")
        return self._volume_info(volume)

    async def volume_resize(self, name: str, size_bytes: int, *, shrink: bool = False) -> VolumeInfo:
        volume = self._pool.volume(name)
        check_size(size_bytes)
        if size_bytes < volume.size_bytes and not shrink:
            raise InvalidArgument(
                f"volume {name} has {volume.size_bytes} bytes; making it smaller loses what lies beyond {size_bytes}:"
                " say --shrink if that is meant"
            )
        async with self._replicas.resizing(volume):
            await volume.resize(size_bytes)
        await self._event(f"volume {name}", f"resized to {size_bytes} bytes")
        return self._volume_info(volume)

    async def volume_delete(self, name: str, *, force: bool = False) -> None:
        for family in self._pool.damaged():
            if any(row.name == name for row in family.volumes):
                if not force:
                    self._pool.volume(name)  # raises what is wrong with it
                for row in family.volumes:
                    self._pool.groups.require_free(row.volume_id, row.name)
                await self._delete_damaged(family)
                return
        if name in self._pool.interrupted() and all(volume.name != name for volume in self._pool.volumes()):
            await discard_interrupted(self._pool, name)
            return
        volume = self._pool.volume(name)
        luns = self._check_volume_delete(volume, force=force)
        snapshots = self._pool.snapshots(volume)
        await self._changed_blocks.drop_of(volume)
        await self._snapshots.discard_views(volume)
        await self._exposure.withdraw(name, luns)
        for snapshot in snapshots:
            with contextlib.suppress(NotFound):  # somebody else has deleted it
                await volume.head.store.delete_snapshot(snapshot)
        await self._pool.delete_volume(volume)
        await self._exposure.forget([volume.volume_id, *(snapshot.guid for snapshot in snapshots)])
        await self._event(f"volume {name}", "deleted")

    def _check_volume_delete(self, volume: Volume, *, force: bool) -> list[LunRow]:
        """The LUNs that show the volume or a snapshot of it. Raises InUse: who holds it."""
        name = volume.name
        self._replicas.require_free(volume, "delete")
        self._pool.groups.require_free(volume.volume_id, name)
        self._pool.jobs.require_unread(name)
        self._snapshots.require_volume_deletable(volume, force=force)
        snapshots = self._pool.snapshots(volume)
        if snapshots and not force:
            names = ", ".join(snapshot.name for snapshot in snapshots[:8])
            raise InUse(f"volume {name} has snapshots ({names}); delete them first, or use --force")
        clones = self._pool.clones(volume)
        if clones:
            raise InUse(f"volume {name} has linked clones ({', '.join(clones)}); delete them first")
        luns = self._exposure.luns_of(volume.volume_id)
        for snapshot in snapshots:
            luns += self._exposure.luns_of(volume.volume_id, snapshot.guid)
        if not force:
            self._exposure.require_idle(luns, f"volume {name}", hint="use --force")
        return luns

    async def volume_delete_preview(self, name: str, *, force: bool = False) -> DeletionInfo:
        volume = self._pool.volume(name)
        self._check_volume_delete(volume, force=force)
        return await deletion_of_volume(self._pool, volume)

    async def _delete_damaged(self, family: DamagedFamily) -> None:
        for row in family.volumes:
            await self._exposure.withdraw(row.name, self._exposure.all_luns_of(row.volume_id))
        await self._pool.delete_damaged(family)
        await self._exposure.forget([row.volume_id for row in family.volumes])
        for row in family.volumes:
            await self._event(f"volume {row.name}", "its damaged file was deleted")

    async def volume_space(self, name: str) -> SpaceInfo:
        return await volume_space(self._pool, self._pool.volume(name))

    # --- snapshots and clones ---------------------------------------------------------------------------------

    async def snapshot_create(
        self, volume: str, name: str, *, expose: bool = False, description: str = ""
    ) -> SnapshotInfo:
        return await self._snapshots.create(volume, name, expose=expose, description=description)

    async def snapshot_list(self, volume: str) -> list[SnapshotInfo]:
        return await self._snapshots.all(volume)

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
        self._replicas.require_own_content(source)
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

    async def clone_create(self, source: str, snapshot: str | None, name: str, *, expose: bool = False) -> VolumeInfo:
        volume = self._pool.volume(source)
        self._pool.require_new(check_name("volume", name))
        if expose:
            self._exposure.require_exposable(name)
        if snapshot is None:
            await self._snapshots.create(source, name)
        clone = await self._pool.clone(volume, self._pool.snapshot(volume, snapshot or name), name)
        if expose:
            await self._exposure.expose(clone)
        await self._event(f"volume {name}", f"cloned from {source}@{snapshot or name}")
        return self._volume_info(clone)

    async def clone_copy(self, source: str, snapshot: str | None, name: str, *, expose: bool = False) -> JobInfo:
        volume = self._pool.volume(source)
        frozen = None if snapshot is None else self._pool.snapshot(volume, snapshot)
        self._pool.require_new(check_name("volume", name))
        if expose:
            self._exposure.require_exposable(name)

        async def when_whole(clone: Volume) -> None:
            if expose:
                await self._exposure.expose(clone)
            await self._event(f"volume {name}", f"fully cloned from {source}" + (f"@{snapshot}" if snapshot else ""))

        chunk_bytes = self._pool.chunk_bytes(volume)
        return _job_info(await start_full_clone(self._pool, volume, frozen, name, chunk_bytes, when_whole=when_whole))

    async def clone_flatten(self, name: str) -> JobInfo:
        volume = self._pool.volume(name)
        self._pool.jobs.require_unread(name)

        async def when_apart(origin: str) -> None:
            await self._event(f"volume {name}", f"flattened: it shares nothing with {origin} any more")

        return _job_info(await start_flatten(self._pool, volume, when_apart=when_apart))

    async def clone_list(self) -> list[VolumeInfo]:
        return await self._volume_infos([volume for volume in self._pool.volumes() if self._pool.row(volume).origin])

    # --- raw images and hash trees ----------------------------------------------------------------------------

    async def volume_import(
        self,
        source: str,
        name: str,
        *,
        format: str = "auto",
        chunk_bytes: int = 65536,
        expose: bool = False,
        secret: str | None = None,
    ) -> JobInfo:
        row = VolumeRow(volume_id="", name=check_name("volume", name), file="")
        check_chunk(chunk_bytes)
        self._pool.require_new(name)
        if expose:
            self._exposure.require_exposable(name)
        image, image_format = await open_source(self._remotes, source, format, secret)

        async def when_whole(volume: Volume) -> None:
            if expose:
                await self._exposure.expose(volume)
            await self._event(f"volume {name}", f"imported from {image.name}")

        return _job_info(await start_import(self._pool, image, image_format, row, chunk_bytes, when_whole=when_whole))

    async def volume_export(
        self, name: str, snapshot: str | None, path: str, *, format: str = "raw", replace: bool = False
    ) -> JobInfo:
        volume = self._pool.volume(name)
        point = None if snapshot is None else self._pool.snapshot(volume, snapshot)
        return _job_info(await start_export(self._pool, volume, point, absolute(path), format, replace_it=replace))

    async def volume_root(self, name: str, snapshot: str | None = None) -> JobInfo:
        volume = self._pool.volume(name)
        point = None if snapshot is None else self._pool.snapshot(volume, snapshot)
        return _job_info(await start_root(self._pool, volume, point))

    # --- integrity --------------------------------------------------------------------------------------------

    async def volume_scrub(self, name: str, *, rate_bytes_s: int | None = None) -> JobInfo:
        return _job_info(await self._pool.integrity.scrub(self._pool.volume(name), rate_bytes_s))

    async def volume_scrub_pause(self, name: str) -> ScrubInfo:
        await self._pool.integrity.pause(self._pool.volume(name))
        return await self.volume_scrub_show(name)

    async def volume_scrub_show(self, name: str) -> ScrubInfo:
        return self._pool.integrity.info(self._pool.volume(name))

    async def volume_digests(self, name: str, policy: str) -> ScrubInfo:
        await self._pool.integrity.set_policy(self._pool.volume(name), policy)
        await self._event(f"volume {name}", f"digests are made {'soon' if policy == 'always' else 'by scrubs'}")
        return await self.volume_scrub_show(name)

    # --- replicas ---------------------------------------------------------------------------------------------

    async def replica_create(self, source: str, name: str, *, mode: str = "sync") -> JobInfo:
        _check_mode(mode)
        volume = self._pool.volume(source)
        self._pool.require_new(check_name("volume", name))
        self._replicas.require_new(name)
        row = replace(self._pool.row(volume), name=name, read_only=False, origin="")
        key_source = self._pool.key_source(volume)  # what was encrypted stays so, with a data key of its own
        chunk_bytes = self._pool.chunk_bytes(volume)
        target = await self._pool.create_volume(row, volume.size_bytes, chunk_bytes, key_source=key_source)
        try:
            return _job_info(await self._replicas.add(name, volume, target))
        except BaseException:
            await self._pool.delete_volume(target)
            raise

    async def replica_attach(self, source: str, target: str, *, name: str | None = None, mode: str = "sync") -> JobInfo:
        _check_mode(mode)
        volume, other = self._pool.volume(source), self._pool.volume(target)
        self._exposure.require_idle(self._exposure.luns_of(other.volume_id), f"volume {target}", hint="take another")
        return _job_info(await self._replicas.add(check_name("replica", name or target), volume, other))

    async def replica_list(self) -> list[ReplicaInfo]:
        return self._replicas.all()

    async def replica_show(self, name: str) -> ReplicaInfo:
        return self._replicas.info(name)

    async def replica_pause(self, name: str) -> ReplicaInfo:
        return await self._replicas.pause(name)

    async def replica_resume(self, name: str) -> JobInfo:
        return _job_info(await self._replicas.resume(name))

    async def replica_fracture(self, name: str) -> ReplicaInfo:
        return await self._replicas.fracture(name)

    async def replica_resync(self, name: str) -> JobInfo:
        target = self._pool.volume(self._replicas.info(name).target)
        luns = self._exposure.luns_of(target.volume_id)
        self._exposure.require_idle(luns, f"volume {target.name}", hint="keep the replica fractured")
        return _job_info(await self._replicas.resync(name))

    async def replica_detach(self, name: str) -> None:
        for lun in self._exposure.standby_paths(self._replicas.target_id(name)):
            raise InUse(
                f"replica {name} is shown as a standby path of its source by target {lun.target};"
                f" remove that first: twinvol target lun remove {lun.target} {lun.lun}"
            )
        await self._replicas.detach(name)
        await self._event(f"replica {name}", "detached")

    async def replica_verify(self, name: str) -> JobInfo:
        return _job_info(await self._replicas.verify(name))

    # --- targets ----------------------------------------------------------------------------------------------

    async def target_create(
        self, name: str, *, initiators: list[str] | None = None, portal_groups: list[int] | None = None
    ) -> TargetInfo:
        return await self._exposure.create(name, initiators or (), portal_groups or ())

    async def target_bind(self, target: str, *, portal_groups: list[int]) -> TargetInfo:
        return await self._exposure.bind(target, portal_groups)

    async def target_list(self) -> list[TargetInfo]:
        return self._exposure.targets()

    async def target_show(self, name: str) -> TargetInfo:
        return self._exposure.target(name)

    async def target_delete(self, name: str, *, force: bool = False) -> None:
        await self._exposure.delete(name, force=force)

    async def target_lun_add(
        self,
        target: str,
        volume: str,
        *,
        snapshot: str | None = None,
        lun: int | None = None,
        initiators: list[str] | None = None,
        standby: bool = False,
    ) -> TargetInfo:
        shown = self._pool.volume(volume)
        frozen = None if snapshot is None else self._pool.snapshot(shown, snapshot)
        if standby and frozen is not None:
            raise InvalidArgument("a snapshot is no path to its volume: a standby path is a replica's")
        source = self._replicas.source_of(shown) if standby else None
        return await self._exposure.add_lun(target, shown, frozen, lun, initiators or (), source)

    async def target_lun_remove(self, target: str, lun: int, *, force: bool = False) -> TargetInfo:
        return await self._exposure.remove_lun(target, lun, force=force)

    async def target_lun_mask(self, target: str, lun: int, *, initiators: list[str]) -> TargetInfo:
        return await self._exposure.mask_lun(target, lun, initiators)

    async def target_access_state(self, target: str, state: str, *, lun: int | None = None) -> TargetInfo:
        info = await self._exposure.set_access_state(target, lun, AccessState.of(state))
        await self._event(f"target {info.name}", f"{'all LUNs' if lun is None else f'LUN {lun}'} set to {state}")
        return info

    async def target_activate(self, target: str, *, lun: int | None = None) -> TargetInfo:
        info = await self._exposure.activate(target, lun)
        await self._event(
            f"target {info.name}", "made the active way to its LUNs" if lun is None else f"LUN {lun} activated"
        )
        return info

    async def target_access(
        self, target: str, *, add: list[str], remove: list[str], admit_all: bool = False
    ) -> TargetInfo:
        return await self._exposure.change_access(target, add, remove, admit_all=admit_all)

    async def target_pause(self, name: str, *, timeout_s: float = 20.0) -> TargetInfo:
        info = await self._exposure.pause(name, timeout_s)
        await self._event(f"target {info.name}", f"paused for at most {timeout_s:g} s")
        return info

    async def target_resume(self, name: str) -> TargetInfo:
        info = self._exposure.resume(name)
        await self._event(f"target {info.name}", "resumed")
        return info

    async def target_chap_show(self, target: str | None) -> ChapInfo:
        return self._exposure.chap(target)

    async def target_chap_set(
        self,
        target: str | None,
        *,
        user: str | None = None,
        secret: str | None = None,
        mutual_user: str | None = None,
        mutual_secret: str | None = None,
    ) -> ChapInfo:
        info = await self._exposure.set_chap(target, _pair(user, secret), _pair(mutual_user, mutual_secret))
        named = " and ".join(name for name in (user, mutual_user) if name is not None)
        await self._event(_chap_subject(target), f"CHAP secret of {named} set")
        return info

    async def target_chap_remove(
        self, target: str | None, *, user: str | None = None, mutual: bool = False
    ) -> ChapInfo:
        info = await self._exposure.remove_chap(target, user, mutual=mutual)
        named = " and ".join(name for name in (user, "its own" if mutual else None) if name is not None)
        await self._event(_chap_subject(target), f"CHAP user {named} removed" if named else "CHAP switched off")
        return info

    async def target_record(self, name: str, last: int) -> TargetInfo:
        return self._exposure.record(name, last)

    async def command_list(self, target: str, *, tsih: int | None = None) -> list[CommandInfo]:
        return self._exposure.commands(target, tsih)

    async def io_list(self) -> list[DeviceIoInfo]:
        return self._exposure.io()

    async def session_list(self, target: str | None = None) -> list[SessionInfo]:
        found = []
        for session in self._exposure.sessions(target):
            found.append(session)
            if not len(found) % SESSIONS_PER_TURN:
                await asyncio.sleep(0)  # the data path goes on meanwhile
        return found

    # --- jobs -------------------------------------------------------------------------------------------------

    async def job_list(self) -> list[JobInfo]:
        return [_job_info(job) for job in self._pool.jobs.all()]

    async def job_show(self, job: int) -> JobInfo:
        return _job_info(self._pool.jobs.get(job))

    async def job_wait(self, job: int, *, after_version: int = 0, timeout_s: float = 30.0) -> JobInfo:
        found = self._pool.jobs.get(job)
        await found.wait(after_version, max(0.0, min(timeout_s, JOB_WAIT_MAX_S)))
        return _job_info(found)

    async def job_cancel(self, job: int) -> JobInfo:
        return _job_info(await self._pool.jobs.cancel(job))

    # --- inside -----------------------------------------------------------------------------------------------

    async def _event(self, subject: str, text: str, severity: str = "info") -> None:
        await self._pool.catalog.add_event(self._pool.env.clock.time(), severity, subject, text)

    async def _volume_infos(self, volumes: list[Volume]) -> list[VolumeInfo]:
        """Of those that are still there; the data path goes on meanwhile."""
        infos = []
        for number, volume in enumerate(volumes):
            if self._pool.find(volume.volume_id) is volume:
                infos.append(self._volume_info(volume))
            if not number % VOLUMES_PER_TURN:
                await asyncio.sleep(0)
        return infos

    def _volume_info(self, volume: Volume) -> VolumeInfo:
        row = self._pool.row(volume)
        luns = self._exposure.luns_of(volume.volume_id)
        state, reason = _volume_state(volume, self._pool.failure(volume))
        return VolumeInfo(
            name=volume.name,
            volume_id=volume.volume_id,
            size_bytes=volume.size_bytes,
            state=state,
            reason=reason,
            serial=volume.identity.serial,
            naa=f"{volume.identity.naa:016x}",
            physical_block_bytes=volume.physical_block_bytes,
            write_cache=volume.write_cache,
            read_only=volume.read_only,
            removable=volume.removable,
            snapshots=len(self._pool.snapshots(volume)),
            origin=row.origin or None,
            file=str(self._pool.file_of(volume)),
            target=luns[0].target if luns else None,
            lun=luns[0].lun if luns else None,
            encryption=self._pool.key_source(volume),
            digests=self._pool.integrity.policy(volume),
            bad_chunks=self._pool.store_of(volume).bad_chunks,
            verified_at=self._pool.integrity.verified_at(volume),
        )


def _check_mode(mode: str) -> None:
    if mode in ("async", "adaptive"):
        raise NotSupported(f"{mode} mirrors are not supported yet; use --mode sync")
    if mode != "sync":
        raise InvalidArgument(f"{mode!r} is no mode; say sync, async or adaptive")


def _damaged_infos(family: DamagedFamily) -> list[VolumeInfo]:
    """What is known of the volumes of a file that is not served."""
    infos = []
    for row in [row for row in family.volumes if not is_view(row.name)]:
        identity = Identity.of(row.volume_id)
        infos.append(
            VolumeInfo(
                name=row.name,
                volume_id=row.volume_id,
                size_bytes=0,
                state="locked" if family.locked else "damaged",
                reason=family.reason,
                serial=identity.serial,
                naa=f"{identity.naa:016x}",
                physical_block_bytes=row.physical_block_bytes,
                write_cache=row.write_cache,
                read_only=row.read_only,
                removable=row.removable,
                snapshots=0,
                origin=row.origin or None,
                file=str(family.path),
                target=None,
                lun=None,
            )
        )
    return infos


def _job_info(job: Job) -> JobInfo:
    return JobInfo(
        job=job.job_id,
        kind=job.kind,
        subject=job.subject,
        state=job.state.name.capitalize(),
        state_number=int(job.state),
        done_bytes=job.done_bytes,
        total_bytes=job.total_bytes,
        rate_bytes_s=job.rate_bytes_s if job.state is JobState.RUNNING else 0.0,
        eta_s=job.eta_s,
        created_at=job.created_at,
        finished_at=job.finished_at,
        message=job.message,
        error=job.error,
        result=job.result,
        version=job.version,
    )


if TYPE_CHECKING:

    def _is_the_engine_api(api: LocalApi) -> EngineApi:
        return api


def _chap_subject(target: str | None) -> str:
    return "discovery" if target is None else f"target {target}"


def _pair(name: str | None, secret: str | None) -> tuple[str, str] | None:
    """A CHAP name with its secret, or neither. Raises InvalidArgument."""
    if name is None and secret is None:
        return None
    if name is None or secret is None:
        raise InvalidArgument("a CHAP name and its secret come together")
    return name, secret


def _volume_state(volume: Volume, failure: StoreFailed | None) -> tuple[str, str | None]:
    """Its state, and the reason where it is not an ordinary one."""
    if failure:
        return "failed", str(failure)
    sanitizer = volume.sanitizer
    if sanitizer is not None and sanitizer.state is SanitizeState.RUNNING:
        return "sanitizing", f"{sanitizer.progress:.0%} done"
    if sanitizer is not None and sanitizer.state is SanitizeState.FAILED:
        return "sanitize-failed", "until a SANITIZE succeeds initiators are refused; the log says what was wrong"
    return ("read-only" if volume.read_only else "ok"), None
