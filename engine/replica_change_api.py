"""Restoring, reversing, other modes and aborting in the data process: a part of ``engine.local_api.LocalApi``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.jobs import job_info
from engine.mirror_changes import keep_otherwise
from engine.replica_api import ReplicaOperations

if TYPE_CHECKING:
    from engine.api import JobInfo, ReplicaInfo, RestorePlan
    from engine.failover import Failovers
    from engine.mirror_terms import MirrorTerms
    from engine.restore import Restores


class ReplicaChangeOperations(ReplicaOperations):
    """See the module."""

    _restores: Restores
    _failovers: Failovers

    async def replica_restore_plan(self, name: str, guid: str | None = None) -> RestorePlan:
        return await self._restores.plan(name, guid)

    async def replica_restore(self, name: str, guid: str | None = None, *, force: bool = False) -> JobInfo:
        job = await self._restores.restore(name, guid, force=force)
        await self._event(f"replica {name}", "its source is restored from it, as the administrator has said")
        return job_info(job)

    async def replica_reverse(self, name: str, *, force: bool = False) -> ReplicaInfo:
        volume = await self._promotions.reverse(name, force=force)
        await self._event(f"replica {name}", f"reversed: the disk is volume {volume.name} now")
        return self._replicas.info(name)

    async def replica_mode(self, name: str, terms: MirrorTerms) -> ReplicaInfo:
        info = self._replicas.info(name)
        if info.peer is None and info.target_id is not None:
            self._require_unshown(self._pool.by_id(info.target_id), terms.copy_mode)
        async with self._failovers.settled(name):
            await keep_otherwise(self._replicas, name, terms)
        await self._event(f"replica {name}", f"{terms.mode} from now on")
        return self._replicas.info(name)

    async def replica_abort(self, name: str) -> ReplicaInfo:
        await self._replicas.running(name).abort()
        return self._replicas.info(name)
