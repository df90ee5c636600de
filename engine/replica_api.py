"""The operations on replicas in the data process: a part of ``engine.local_api.LocalApi``.

A round of an asynchronous or adaptive mirror replaces the target's whole content, so nobody may have the target itself
mounted while one runs: it is shown by its recovery points, each of which stays what it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from engine.api import ReplicaPointInfo
from engine.api_part import ApiPart
from engine.disk_targets import DiskSecrets
from engine.errors import InUse, InvalidArgument, NotFound, NotSupported
from engine.jobs import job_info
from engine.mirror_terms import USUAL, MirrorTerms
from engine.modes import mode_of
from engine.names import check_name
from engine.replica_table import replaces_content

if TYPE_CHECKING:
    from engine.api import JobInfo, ReplicaInfo, VolumeInfo
    from engine.copy_state import CopyMode
    from engine.promotion import Promotions
    from engine.stores import Frozen
    from engine.volume import Volume


class ReplicaOperations(ApiPart):
    """See the module."""

    _promotions: Promotions

    async def replica_create(
        self,
        source: str,
        name: str,
        terms: MirrorTerms = USUAL,
        *,
        peer: str | None = None,
    ) -> JobInfo:
        volume = self._pool.volume(source)
        if peer is not None:
            return job_info(await self._replicas.making.at_peer(check_name("volume", name), volume, peer, terms))
        self._pool.require_new(check_name("volume", name))
        self._replicas.table.require_new(name)
        row = replace(self._pool.row(volume), name=name, read_only=False, origin="")
        key_source = self._pool.key_source(volume)  # what was encrypted stays so, with a data key of its own
        chunk_bytes = self._pool.chunk_bytes(volume)
        target = await self._pool.create_volume(row, volume.size_bytes, chunk_bytes, key_source=key_source)
        try:
            return job_info(await self._replicas.making.here(name, volume, target, terms))
        except BaseException:
            if target.content_owner is None:  # else the relation is there, and can be detached
                await self._pool.delete_volume(target)
            raise

    async def replica_attach(
        self,
        source: str,
        target: str,
        terms: MirrorTerms = USUAL,
        *,
        name: str | None = None,
        peer: str | None = None,
        secret: str | None = None,
        mutual_user: str | None = None,
        mutual_secret: str | None = None,
    ) -> JobInfo:
        volume = self._pool.volume(source)
        if self._replicas.disks.is_disk(target):
            if name is None:
                raise InvalidArgument("a replica whose target is a disk of elsewhere needs a name of its own")
            if (mutual_user is None) != (mutual_secret is None):
                raise InvalidArgument("a mutual user and a mutual secret come together")
            if terms.points is not None or terms.points_age_s is not None:
                raise NotSupported("a disk of elsewhere keeps no recovery points")
            mutual = None if mutual_user is None or mutual_secret is None else (mutual_user, mutual_secret)
            secrets = DiskSecrets(secret, mutual)
            name = check_name("replica", name)
            return job_info(await self._replicas.making.on_disk(name, volume, target, secrets, terms))
        if (secret, mutual_user, mutual_secret) != (None, None, None):
            raise InvalidArgument("secrets go with the URL of a disk")
        if peer is not None:
            name, existing = check_name("replica", name or target), check_name("volume", target)
            job = await self._replicas.making.at_peer(name, volume, peer, terms, existing=existing)
            return job_info(job)
        other = self._pool.volume(target)
        self._exposure.require_idle(self._exposure.luns_of(other.volume_id), f"volume {target}", hint="take another")
        self._require_unshown(other, terms.copy_mode)
        name = check_name("replica", name or target)
        return job_info(await self._replicas.making.here(name, volume, other, terms))

    async def replica_limit(self, name: str, rate_bytes_s: int) -> ReplicaInfo:
        info = await self._replicas.limit(name, rate_bytes_s)
        await self._event(f"replica {name}", f"at most {rate_bytes_s} bytes a second" if rate_bytes_s else "no limit")
        return info

    async def replica_list(self) -> list[ReplicaInfo]:
        return self._replicas.all()

    async def replica_show(self, name: str) -> ReplicaInfo:
        return self._replicas.info(name)

    async def replica_pause(self, name: str) -> ReplicaInfo:
        return await self._replicas.pause(name)

    async def replica_resume(self, name: str) -> JobInfo:
        return job_info(await self._replicas.resume(name))

    async def replica_fracture(self, name: str) -> ReplicaInfo:
        return await self._replicas.fracture(name)

    async def replica_resync(self, name: str) -> JobInfo:
        info = self._replicas.info(name)
        if info.peer is not None or self._replicas.disks.link(name) is not None:
            return job_info(await self._replicas.resync(name))
        target = self._pool.volume(info.target)
        luns = self._exposure.luns_of(target.volume_id)
        self._exposure.require_idle(luns, f"volume {target.name}", hint="keep the replica fractured")
        self._require_unshown(target, mode_of(info.mode))
        return job_info(await self._replicas.resync(name))

    async def replica_detach(self, name: str) -> None:
        target_id = self._replicas.table.target_id(name)
        for lun in self._exposure.standby_paths(target_id):
            raise InUse(
                f"replica {name} is shown as a standby path of its source by target {lun.target};"
                f" remove that first: twinvol target lun remove {lun.target} {lun.lun}"
            )
        for point in self._replicas.points(name):
            for lun in self._exposure.luns_of(target_id, point.guid):
                raise InUse(
                    f"a recovery point of replica {name} is shown by target {lun.target};"
                    f" unexpose it first: twinvol replica unexpose {name} {point.guid}"
                )
        await self._replicas.detach(name)
        await self._event(f"replica {name}", "detached")

    async def replica_promote(self, name: str, *, force: bool = False) -> VolumeInfo:
        source = self._replicas.info(name).source
        peer = self._replicas.info(name).peer
        if peer is not None:
            raise NotSupported(f"replica {name} is between this pool and peer {peer}: it cannot be promoted yet")
        if self._replicas.disks.link(name) is not None:
            raise NotSupported(f"the target of replica {name} is a disk of elsewhere: detach it, and use it there")
        volume = await self._promotions.promote(name, force=force)
        await self._event(f"volume {volume.name}", f"promoted: the disk that {source} was is this volume now")
        return self._volume_info(volume)

    async def replica_verify(self, name: str) -> JobInfo:
        return job_info(await self._replicas.verify(name))

    # --- recovery points --------------------------------------------------------------------------------------

    async def replica_points(self, name: str) -> list[ReplicaPointInfo]:
        return [self._point_info(name, point.guid, point.at) for point in self._replicas.points(name)]

    async def replica_expose(self, name: str, guid: str | None = None) -> ReplicaPointInfo:
        target, point = self._point(name, guid)
        if not self._exposure.luns_of(target.volume_id, point.guid):
            await self._exposure.expose(target, point)
            await self._event(f"replica {name}", f"recovery point {point.guid} exposed")
        return self._shown_point(name, point.guid)

    async def replica_unexpose(self, name: str, guid: str, *, force: bool = False) -> ReplicaPointInfo:
        target, point = self._point(name, guid)
        luns = self._exposure.luns_of(target.volume_id, point.guid)
        if not luns:
            raise NotFound("exposed recovery point", guid)
        if not force:
            self._exposure.require_idle(luns, f"recovery point {guid}", hint="use --force")
        info = self._shown_point(name, point.guid)
        await self._exposure.withdraw(target.name, luns)
        return replace(info, target=None, lun=None)

    def _point(self, name: str, guid: str | None) -> tuple[Volume, Frozen]:
        """A recovery point of a replica, by default the newest. Raises NotFound."""
        points = self._replicas.points(name)
        if guid is None and points:
            guid = points[-1].guid
        target = self._pool.by_id(self._replicas.table.target_id(name))
        found = None
        if any(point.guid == guid for point in points) and guid is not None:
            found = target.head.store.snapshot_with(target.volume_id, guid)
        if found is None:
            raise NotFound("recovery point", guid or f"of replica {name}")
        return target, found

    def _shown_point(self, name: str, guid: str) -> ReplicaPointInfo:
        for point in self._replicas.points(name):
            if point.guid == guid:
                return self._point_info(name, guid, point.at)
        raise NotFound("recovery point", guid)

    def _point_info(self, name: str, guid: str, at: float) -> ReplicaPointInfo:
        luns = self._exposure.luns_of(self._replicas.table.target_id(name), guid)
        return ReplicaPointInfo(
            replica=name,
            guid=guid,
            created_at=at,
            age_seconds=max(0.0, self._pool.env.clock.time() - at),
            target=luns[0].target if luns else None,
            lun=luns[0].lun if luns else None,
        )

    def _require_unshown(self, target: Volume, mode: CopyMode) -> None:
        """Raises InUse: initiators would see the content replaced under them."""
        if replaces_content(mode):
            for lun in self._exposure.luns_of(target.volume_id):
                raise InUse(
                    f"volume {target.name} is shown by target {lun.target}, and an asynchronous mirror replaces its"
                    f" content again and again; remove that LUN first: twinvol target lun remove {lun.target} {lun.lun}"
                )
