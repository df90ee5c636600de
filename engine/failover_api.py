"""The operations of failing over in the data process: a part of ``engine.local_api.LocalApi``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.api_part import ApiPart
from engine.jobs import job_info

if TYPE_CHECKING:
    from engine.api import FailoverPlan, JobInfo
    from engine.failover import Failovers


class FailoverOperations(ApiPart):
    """See the module."""

    _failovers: Failovers

    async def replica_failover_plan(self, name: str) -> FailoverPlan:
        return self._failovers.plan(name)

    async def replica_failover(self, name: str, *, accept_loss: bool = False, fenced: bool = False) -> JobInfo:
        return job_info(await self._failovers.fail_over(name, accept_loss=accept_loss, fenced=fenced))

    async def replica_failback(self, name: str) -> JobInfo:
        return job_info(await self._failovers.fail_back(name))

    async def group_replica_failover_plan(self, name: str) -> FailoverPlan:
        return self._failovers.plan(name, group=True)

    async def group_replica_failover(self, name: str, *, accept_loss: bool = False, fenced: bool = False) -> JobInfo:
        return job_info(await self._failovers.fail_over(name, accept_loss=accept_loss, fenced=fenced, group=True))

    async def group_replica_failback(self, name: str) -> JobInfo:
        return job_info(await self._failovers.fail_back(name, group=True))

    async def group_replica_resolve(self, name: str, *, serve: bool = False, give_way: bool = False) -> None:
        await self._failovers.resolve(name, serve=serve, give_way=give_way, group=True)

    async def replica_resolve(self, name: str, *, serve: bool = False, give_way: bool = False) -> None:
        await self._failovers.resolve(name, serve=serve, give_way=give_way)
