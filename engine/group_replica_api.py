"""The operations on mirrored groups in the data process: a part of ``engine.local_api.LocalApi``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.api_part import ApiPart
from engine.errors import IntegrityError, InUse, NotSupported
from engine.jobs import job_info
from engine.mirror_terms import USUAL, MirrorTerms
from engine.modes import mode_of
from engine.replica_table import replaces_content

if TYPE_CHECKING:
    from engine.api import GroupPointInfo, JobInfo, ReplicaInfo
    from engine.jobs import Job
    from engine.replica_groups import ReplicaGroups


class GroupReplicaOperations(ApiPart):
    """See the module."""

    async def group_replica_create(
        self,
        group: str,
        name: str,
        terms: MirrorTerms = USUAL,
        *,
        peer: str | None = None,
    ) -> JobInfo:
        if terms.failed_copy_stops_host_io:
            raise NotSupported(
                "the hosts of a group are not stopped when its copy fails; mirror its volumes one by one"
            )
        if terms.rate_bytes_s:
            raise NotSupported("copies of a mirrored group are limited by its peer's limit only: twinvol peer limit")
        mirror = await self._mirrored.add(name, group, peer, terms)
        await self._event(f"replica group {name}", f"made of group {group}")
        return job_info(await self._replicas.synchronizing(mirror, "replica"))

    async def group_replica_list(self) -> list[ReplicaInfo]:
        return self._mirrored.all()

    async def group_replica_show(self, name: str) -> ReplicaInfo:
        return self._mirrored.info(name)

    async def group_replica_points(self, name: str) -> list[GroupPointInfo]:
        from engine.api import GroupPointInfo  # late: see there

        now = self._pool.env.clock.time()
        arrived = self._replicas.incoming.group_point(name)
        if arrived is not None:
            members = self._replicas.incoming.names_of(arrived.members)
            return [GroupPointInfo(name, arrived.guid, arrived.at, max(0.0, now - arrived.at), members)]
        members = list(self._mirrored.members(name))
        return [
            GroupPointInfo(name, point.guid, point.at, max(0.0, now - point.at), members)
            for point in self._mirrored.points(name)
        ]

    async def group_replica_pause(self, name: str) -> ReplicaInfo:
        await self._mirrored.rest(name, fractured=False)
        return self._mirrored.info(name)

    async def group_replica_resume(self, name: str) -> JobInfo:
        mirror = self._mirrored.get(name)
        await mirror.resume()
        return job_info(await self._replicas.synchronizing(mirror, "resume"))

    async def group_replica_fracture(self, name: str) -> ReplicaInfo:
        await self._mirrored.rest(name, fractured=True)
        return self._mirrored.info(name)

    async def group_replica_resync(self, name: str) -> JobInfo:
        for member in self._mirrored.members(name):
            luns = self._exposure.luns_of(self._replicas.table.target_id(member))
            self._exposure.require_idle(luns, f"volume {member}", hint="keep the group fractured")
            if luns and replaces_content(mode_of(self._mirrored.info(name).mode)):
                raise InUse(f"volume {member} is shown by target {luns[0].target}, and its content would be replaced")
        return job_info(await self._replicas.synchronizing(await self._mirrored.resync(name), "resync"))

    async def group_replica_verify(self, name: str) -> JobInfo:
        mirror = self._mirrored.get(name)

        async def work(job: Job) -> dict[str, Any]:
            del job
            proofs = await mirror.verify(self._replicas.software)
            for proof in proofs:
                if not proof.identical:
                    roots = proof.source.root, proof.target.root
                    raise IntegrityError(f"replica group {name}", 0, proof.differing_bytes, *roots)
            return {"identical": True, "proofs": [proof.serialize() for proof in proofs]}

        return job_info(await self._pool.jobs.start("verify", name, work))

    async def group_replica_detach(self, name: str) -> None:
        for member in self._mirrored.members(name):
            target_id = self._replicas.table.target_id(member)
            for point in self._mirrored.points(name):
                for lun in self._exposure.luns_of(target_id, point.guid):
                    raise InUse(
                        f"a recovery point of replica {member} is shown by target {lun.target};"
                        f" unexpose it first: twinvol replica unexpose {member} {point.guid}"
                    )
            for lun in self._exposure.standby_paths(target_id):
                raise InUse(
                    f"replica {member} is shown as a standby path of its source by target {lun.target};"
                    f" remove that first: twinvol target lun remove {lun.target} {lun.lun}"
                )
        await self._mirrored.detach(name)
        await self._event(f"replica group {name}", "detached")

    @property
    def _mirrored(self) -> ReplicaGroups:
        return self._replicas.groups
