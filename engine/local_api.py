"""``EngineApi`` in the data process: names are checked here, work is done by the pool, the exposure and the jobs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from engine.api import (
    VOLUME_PAGE,
    DeletionInfo,
    EventInfo,
    FlattenInfo,
    JobInfo,
    PoolSpaceInfo,
    SpaceInfo,
    StatusInfo,
    VolumeInfo,
    VolumePage,
)
from engine.catalog import VolumeRow
from engine.change_api import ChangeOperations
from engine.changed_blocks import ChangedBlocks
from engine.changes import Changes
from engine.clone import discard_interrupted, start_full_clone
from engine.encryption import check_source
from engine.errors import InUse, InvalidArgument, NotFound
from engine.failover import Failovers
from engine.failover_api import FailoverOperations
from engine.flatten import flatten_preview, start_flatten
from engine.group_api import GroupOperations
from engine.group_replica_api import GroupReplicaOperations
from engine.image_api import ImageOperations
from engine.inventory_api import InventoryOperations
from engine.jobs import job_info
from engine.names import check_choice, check_chunk, check_name, check_size
from engine.orders import Orders
from engine.peer_api import PeerOperations
from engine.pool_space import SpaceLimits, SpaceState
from engine.promotion import Promotions
from engine.relation_api import RelationOperations
from engine.relations import Relations
from engine.replica_change_api import ReplicaChangeOperations
from engine.restore import Restores
from engine.schedules import Schedules
from engine.snapshot_api import SnapshotOperations
from engine.snapshots import Snapshots
from engine.space_report import (
    bytes_on_host,
    deletion_of_volume,
    limit_pool,
    pool_space,
    volume_space,
)
from engine.target_api import TargetOperations
from engine.unfinished import interrupted_exports
from engine.upkeep import Upkeep
from engine.views import Views

if TYPE_CHECKING:
    from engine.api import EngineApi
    from engine.catalog import LunRow
    from engine.exposure import Exposure
    from engine.image_formats import RemoteDisks
    from engine.peers.registry import Peers
    from engine.pool import Pool
    from engine.pool_volumes import DamagedFamily
    from engine.replicas import Replicas
    from engine.volume import Volume

EVENT_LIST_MAX = 10_000
JOB_WAIT_MAX_S = 60.0


class LocalApi(
    SnapshotOperations,
    GroupOperations,
    ImageOperations,
    TargetOperations,
    ReplicaChangeOperations,
    GroupReplicaOperations,
    FailoverOperations,
    RelationOperations,
    PeerOperations,
    InventoryOperations,
    ChangeOperations,
):
    """See the module. ``version`` is the product's, for ``status``. ``remotes``: what opens disks of elsewhere.
    ``peers``: None where nobody serves them."""

    def __init__(
        self,
        pool: Pool,
        exposure: Exposure,
        replicas: Replicas,
        *,
        version: str,
        remotes: RemoteDisks | None = None,
        peers: Peers | None = None,
    ) -> None:
        self._pool = pool
        self._exposure = exposure
        self._replicas = replicas
        self._peers = peers
        replicas.is_shown = lambda volume_id, guid: bool(exposure.luns_of(volume_id, guid))
        replicas.incoming.is_shown = replicas.is_shown
        exposure.port_groups_elsewhere = replicas.table.port_groups_elsewhere
        replicas.incoming.require_unused = lambda volume: exposure.require_idle(
            exposure.luns_of(volume.volume_id), f"volume {volume.name}", hint="keep the replica fractured"
        )
        replicas.incoming.require_attachable = self._require_attachable
        self._version = version
        self._remotes = remotes
        self._started_at = pool.env.clock.time()
        self._views = Views(pool, exposure)
        self._promotions = Promotions(pool, exposure, replicas)
        self._restores = Restores(pool, exposure, replicas)
        self._failovers = Failovers(pool, exposure, replicas)
        self._relations = Relations(pool.catalog.relations, pool.env.clock)
        self._orders = Orders(self, pool, self._relations)
        self._changes = Changes(pool, replicas, self._relations, self._volume_info)
        self._snapshots = Snapshots(pool, exposure, self._views)
        self._schedules = Schedules(pool, self._snapshots)
        self._changed_blocks = ChangedBlocks(pool)
        self.upkeep = Upkeep([self._views.expire, self._schedules.tick, self._changed_blocks.drop_idle, replicas.tend])
        """To be run by whoever serves the pool."""

    def _require_attachable(self, volume: Volume) -> None:
        """Raises InUse: no peer may make it a replica now."""
        self._replicas.table.require_free(volume, "make it a replica")
        self._pool.groups.require_free(volume.volume_id, volume.name)
        for lun in self._exposure.luns_of(volume.volume_id):
            raise InUse(f"volume {volume.name} is shown by target {lun.target}; remove that LUN first")

    # --- the whole --------------------------------------------------------------------------------------------

    async def status(self) -> StatusInfo:
        files = {self._pool.file_of(volume) for volume in self._pool.volumes()}
        stored = await asyncio.to_thread(lambda: sum(map(bytes_on_host, files)))
        space = await pool_space(self._pool)
        exports = await interrupted_exports(self._pool)
        volumes = self._pool.volumes()  # from here on nothing waits: none of them goes
        reasons = self._reasons()
        return StatusInfo(
            pool=str(self._pool.path),
            pid=os.getpid(),
            version=self._version,
            started_at=self._started_at,
            health="degraded" if reasons else "ok",
            reasons=reasons,
            interrupted_copies=self._pool.interrupted(),
            interrupted_exports=sorted(map(str, exports.values())),
            iscsi=self._exposure.portals(),
            volumes=len(volumes),
            snapshots=sum(len(self._pool.snapshots(volume)) for volume in volumes),
            replicas=len(self._replicas.all()),
            targets=self._exposure.target_count(),
            sessions=self._exposure.session_count(),
            jobs_running=sum(not job.state.final for job in self._pool.jobs.all()),
            provisioned_bytes=sum(volume.size_bytes for volume in volumes),
            stored_bytes=stored,
            total_bytes=space.host_total_bytes,
            free_bytes=space.host_free_bytes,
            space=space,
        )

    def _reasons(self) -> list[str]:
        """Why the pool is degraded."""
        volumes = self._pool.volumes()
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
        return reasons

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
            infos += self._damaged_infos(family)
        return sorted(infos, key=lambda info: info.name)

    async def volume_page(self, cursor: str | None = None, limit: int = VOLUME_PAGE) -> VolumePage:
        if not 1 <= limit <= VOLUME_PAGE:
            raise InvalidArgument(f"a page has 1 to {VOLUME_PAGE} volumes, not {limit}")
        begin = "" if cursor is None else cursor  # the last name of the page before
        infos = await self._volume_infos(self._pool.volumes_behind(begin, limit + 1))
        for family in self._pool.damaged():
            infos += [info for info in self._damaged_infos(family) if info.name > begin]
        infos.sort(key=lambda info: info.name)
        return VolumePage(infos[:limit], infos[limit - 1].name if len(infos) > limit else None)

    async def volume_show(self, name: str) -> VolumeInfo:
        for family in self._pool.damaged():
            for info in self._damaged_infos(family):
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
        await self._exposure.forget([volume.device_id, *(snapshot.guid for snapshot in snapshots)])
        await self._event(f"volume {name}", "deleted")

    def _check_volume_delete(self, volume: Volume, *, force: bool) -> list[LunRow]:
        """The LUNs that show the volume or a snapshot of it. Raises InUse: who holds it."""
        name = volume.name
        self._replicas.table.require_free(volume, "delete")
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
        await self._exposure.forget([self._pool.device_id(row.volume_id) for row in family.volumes])
        for row in family.volumes:
            await self._event(f"volume {row.name}", "its damaged file was deleted")

    async def volume_space(self, name: str) -> SpaceInfo:
        return await volume_space(self._pool, self._pool.volume(name))

    # --- clones ------------------------------------------------------------------------------------------------

    async def clone_create(self, source: str, snapshot: str | None, name: str, *, expose: bool = False) -> VolumeInfo:
        volume = self._pool.volume(source)
        self._pool.require_new(check_name("volume", name))
        if expose:
            self._exposure.require_exposable(name)
        if snapshot is None:
            await self._snapshots.create(source, name)
        frozen = self._pool.snapshot(volume, snapshot or name)
        try:
            clone = await self._pool.clone(volume, frozen, name)
        except BaseException:
            if snapshot is None:  # it was taken for the clone
                with contextlib.suppress(NotFound, InUse):  # somebody else has found it meanwhile
                    await volume.head.store.delete_snapshot(frozen)
            raise
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
        return job_info(await start_full_clone(self._pool, volume, frozen, name, chunk_bytes, when_whole=when_whole))

    async def clone_flatten(self, name: str) -> JobInfo:
        volume = self._pool.volume(name)
        self._pool.jobs.require_unread(name)

        async def when_apart(origin: str) -> None:
            await self._event(f"volume {name}", f"flattened: it shares nothing with {origin} any more")

        return job_info(await start_flatten(self._pool, volume, when_apart=when_apart))

    async def clone_flatten_preview(self, name: str) -> FlattenInfo:
        return await flatten_preview(self._pool, self._pool.volume(name))

    async def clone_list(self) -> list[VolumeInfo]:
        return await self._volume_infos([volume for volume in self._pool.volumes() if self._pool.origin(volume)])

    # --- jobs -------------------------------------------------------------------------------------------------

    async def job_list(self) -> list[JobInfo]:
        return [job_info(job) for job in self._pool.jobs.all()]

    async def job_show(self, job: int) -> JobInfo:
        return job_info(self._pool.jobs.get(job))

    async def job_wait(self, job: int, *, after_version: int = 0, timeout_s: float = 30.0) -> JobInfo:
        found = self._pool.jobs.get(job)
        await found.wait(after_version, max(0.0, min(timeout_s, JOB_WAIT_MAX_S)))
        return job_info(found)

    async def job_cancel(self, job: int) -> JobInfo:
        return job_info(await self._pool.jobs.cancel(job))

    async def job_suspend(self, job: int) -> JobInfo:
        found = self._pool.jobs.get(job)
        found.suspend()
        return job_info(found)

    async def job_resume(self, job: int) -> JobInfo:
        found = self._pool.jobs.get(job)
        found.resume()
        return job_info(found)

    async def job_forget(self, job: int) -> None:
        await self._pool.jobs.forget(job)


if TYPE_CHECKING:

    def _is_the_engine_api(api: LocalApi) -> EngineApi:
        return api
