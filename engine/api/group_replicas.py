"""Mirrors of consistency groups. See ``engine.api``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.api.jobs import JobInfo
from engine.api.replicas import ReplicaInfo
from engine.mirror_terms import USUAL, MirrorTerms


@dataclass(frozen=True, slots=True)
class GroupPointInfo:
    """A recovery point of a mirrored group: one instant of all members, complete at all their targets.

    ``created_at``: that instant, at the source. ``members``: the replicas, each of which has a recovery point ``guid``.
    """

    replica: str
    guid: str
    created_at: float
    age_seconds: float
    members: list[str]


class GroupReplicaApi(Protocol):
    """See ``engine.api``. Each member is a replica, too (``ReplicaInfo.group``), and shows the group's state."""

    async def group_replica_create(
        self,
        group: str,
        name: str,
        terms: MirrorTerms = USUAL,
        *,
        peer: str | None = None,
    ) -> JobInfo:
        """Make a volume NAME.MEMBER like each member of a group, here or at ``peer``, and mirror the group to them: the
        targets are one instant of all. The job ends when it is Synchronized.

        Raises AlreadyExists, NotFound, InUse; NotSupported: a failed copy stops nobody's writes to a group.
        """
        ...

    async def group_replica_list(self) -> list[ReplicaInfo]: ...

    async def group_replica_show(self, name: str) -> ReplicaInfo: ...

    async def group_replica_points(self, name: str) -> list[GroupPointInfo]:
        """Recovery points of the whole group, oldest first; at the side of the targets the one that it may use now."""
        ...

    async def group_replica_pause(self, name: str) -> ReplicaInfo: ...

    async def group_replica_resume(self, name: str) -> JobInfo: ...

    async def group_replica_fracture(self, name: str) -> ReplicaInfo:
        """Let the targets go their own way, writable, from one instant of all on."""
        ...

    async def group_replica_resync(self, name: str) -> JobInfo:
        """Bring the targets up to date by what changed. What was written to fractured targets is lost."""
        ...

    async def group_replica_verify(self, name: str) -> JobInfo:
        """Compare all members at one instant. The job's result has the ``proofs``; it fails when one differs."""
        ...

    async def group_replica_detach(self, name: str) -> None:
        """End the relation; the targets stay, as volumes of their own. Raises InUse: a recovery point is exposed."""
        ...
