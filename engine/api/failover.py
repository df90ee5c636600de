"""Failing over between peers: what it would mean now, and doing it. See ``engine.api``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.api.jobs import JobInfo


@dataclass(frozen=True, slots=True)
class FailoverPlan:
    """What a failover of a replica that is here would lose now. Nothing is changed for it.

    ``reachable``: the source's daemon answers, so that a failover without flags loses nothing. ``lossless``: the
    replica holds a lease: it has everything that was acknowledged, whatever became of the source. ``point`` and
    ``point_at``: the newest recovery point; None: the first copy is not complete, and nothing can be failed over to.
    ``complete_until``: what was acknowledged before that instant (seconds since the epoch, by this side's clock) is
    there; ``age_seconds``: how long that is ago: hosts would lose what they wrote since, at most. ``missing_bytes``:
    written since then, as far as the source has said (``reported_at``); None: it has not. ``needs``: what the operator
    has to say for it to be done with an unreachable source.
    """

    replica: str
    volume: str
    source: str
    peer: str
    mode: str
    reachable: bool
    lossless: bool
    point: str | None
    point_at: float | None
    complete_until: float | None
    age_seconds: float | None
    missing_bytes: int | None
    reported_at: float | None
    needs: list[str]
    reason: str


class FailoverApi(Protocol):
    """See ``engine.api``."""

    async def replica_failover_plan(self, name: str) -> FailoverPlan:
        """What would be lost. Said to the side that holds the replica. Raises NotFound, InvalidState."""
        ...

    async def replica_failover(self, name: str, *, accept_loss: bool = False, fenced: bool = False) -> JobInfo:
        """Have the replica here be the disk, as initiators know it. Said to the side that holds the replica.

        Without flags its source hands it over, without loss. ``fenced``: the operator has seen to it that the source
        serves nobody. ``accept_loss``: acknowledged writes may be missing. Saying it again finds it done. The job's
        result has ``volume``, ``target``, ``lun``, ``serial``; of an unplanned one ``lossless`` and ``point``, too.
        Raises InvalidState: what is missing.
        """
        ...

    async def replica_failback(self, name: str) -> JobInfo:
        """Bring what was the source before up to date, by what differs, and hand the disk back to it.

        Raises InvalidState: it does not follow yet.
        """
        ...

    async def group_replica_failover_plan(self, name: str) -> FailoverPlan:
        """As ``replica_failover_plan``, of a mirrored group, which changes places as one."""
        ...

    async def group_replica_failover(self, name: str, *, accept_loss: bool = False, fenced: bool = False) -> JobInfo:
        """As ``replica_failover``, of all members of a mirrored group at once: from their content while all hold a
        lease, else from the group's complete recovery point. The job's result has ``members``, each with ``volume``,
        ``target``, ``lun``, ``serial``."""
        ...

    async def group_replica_failback(self, name: str) -> JobInfo:
        """As ``replica_failback``, of all members at once."""
        ...

    async def group_replica_resolve(self, name: str, *, serve: bool = False, give_way: bool = False) -> None:
        """As ``replica_resolve``, of all members at once."""
        ...

    async def replica_resolve(self, name: str, *, serve: bool = False, give_way: bool = False) -> None:
        """Decide for a volume that is not served because its replica has, or may have, taken its place: ``serve``: it
        is the disk, and another that says so has to stop; ``give_way``: it follows the other, and what only it has
        stays as the snapshot diverged-N. Raises InvalidState: it does not wait for a decision."""
        ...
