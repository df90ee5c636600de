"""What is done to a mirror that is there: restore its source, exchange its ends, keep it otherwise, give up a copy.

See ``engine.api``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.api.jobs import JobInfo
from engine.api.replicas import ReplicaInfo
from engine.mirror_terms import MirrorTerms


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a restore of a source from its replica would do now. Nothing is changed for it.

    ``direction``: TARGET -> SOURCE. ``point`` and ``point_at`` (its instant at the source, seconds since the epoch):
    the recovery point that the source would be; None: what the fractured target holds. ``copied_bytes``: to be brought
    over, at most. ``lost_bytes``: of the source's present content, written since that instant, at most; it stays as a
    snapshot of the source. ``compares_all``: there is no common recovery point, so both sides are read in whole.
    """

    replica: str
    source: str
    target: str
    direction: str
    point: str | None
    point_at: float | None
    copied_bytes: int
    lost_bytes: int
    compares_all: bool


class ReplicaChangeApi(Protocol):
    """See ``engine.api``."""

    async def replica_restore_plan(self, name: str, guid: str | None = None) -> RestorePlan:
        """What ``replica_restore`` would do. Raises as that, but for InUse."""
        ...

    async def replica_restore(self, name: str, guid: str | None = None, *, force: bool = False) -> JobInfo:
        """Roll the source to what its replica holds, by what differs, verified: to the recovery point ``guid``; by
        default to what a fractured target holds, else to the newest one. The replica is Restored then, and rests until
        ``replica_resync``; what the source was stays as its snapshot before-rollback-N. The job's result has ``point``,
        ``copied_bytes``, ``kept_as``.

        Said at the source's side. Raises InvalidState (no complete recovery point), NotFound, NotSupported (the target
        is a disk of elsewhere), InUse: sessions are on the source, without ``force``.
        """
        ...

    async def replica_reverse(self, name: str, *, force: bool = False) -> ReplicaInfo:
        """Source and target of a replica here exchange their roles: the target is the disk that initiators know, with
        its identity, reservations, LUNs and schedule; the source is its replica from then on, of the same name and
        mode. Nothing is copied for it.

        Raises as ``replica_promote``. NotSupported: its target is at a peer (see ``replica_failover``).
        """
        ...

    async def replica_mode(self, name: str, terms: MirrorTerms) -> ReplicaInfo:
        """Keep a mirror otherwise from now on, also across restarts; what was not chosen stays as it is. One that runs
        begins anew by what differs; hosts do not notice.

        Raises InvalidArgument, NotSupported, and InUse: the target is shown, and would be replaced again and again.
        """
        ...

    async def replica_abort(self, name: str) -> ReplicaInfo:
        """Give up the copy that is under way, and what it has brought so far: the target stays what it was, and the
        replica is Aborted until ``replica_resync``. Raises InvalidState: it is not copying."""
        ...
