"""Mirrors and their recovery points. See ``engine.api``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from engine.api.jobs import JobInfo
from engine.api.volumes import VolumeInfo
from engine.mirror_terms import USUAL, MirrorTerms


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """States are the DMTF value names of CIM_Synchronized; ``mode`` is sync, async or adaptive.

    ``exact``: the target has everything that was acknowledged. ``lag_seconds``: time since the instant that the target
    has, complete; 0 while it is exact, None when it has none. ``forecast_seconds``: the lag to be expected before the
    next recovery point is complete; ``promise`` (kept, at risk, broken): how that is with ``rpo_seconds``. None:
    synchronous, or nothing to tell from. ``point_at``: the instant of the newest recovery point; ``points``: how many
    there are. A state that is not Synchronized has a ``reason``, a ``since``, what it ``waits_for`` and the
    ``next_action``. Since the daemon's start: ``switches`` into and out of the synchronous state of an adaptive mirror,
    ``rounds``, ``resumed_rounds``, ``written_bytes`` to the target in rounds and ``identical_bytes`` found there.
    ``target_consistent``: the target is some instant of the source now; a disk without snapshots is not while a round
    writes it. ``host_io_stopped``: hosts write nothing now, because the copy failed and ``failed_copy_stops_host_io``.

    ``group``: the mirrored group that it is, or whose member it is: those have one state. ``members``: of a mirrored
    group, the names of its members' replicas. ``source_id``, ``target_id``: of the ends that are volumes here.
    """

    name: str
    source: str
    target: str
    mode: str
    sync_type: str
    copy_state: str
    progress_status: str
    percent_synced: int
    lag_seconds: float | None
    lag_bytes: int
    rpo_seconds: float | None
    peer: str | None
    reason: str
    since: float | None
    waits_for: str
    next_action: str
    exact: bool = False
    forecast_seconds: float | None = None
    promise: str | None = None
    latency_budget_seconds: float | None = None
    points: int = 0
    point_at: float | None = None
    switches: int = 0
    rounds: int = 0
    resumed_rounds: int = 0
    written_bytes: int = 0
    identical_bytes: int = 0
    target_consistent: bool = True
    source_id: str | None = None
    target_id: str | None = None
    group: str | None = None
    members: list[str] = field(default_factory=list)
    rate_bytes_s: int = 0
    failed_copy_stops_host_io: bool = False
    host_io_stopped: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaPointInfo:
    """A recovery point that is complete at a replica's target. ``created_at``: its instant at the source.

    ``target`` and ``lun``: where it is exposed, read-only.
    """

    replica: str
    guid: str
    created_at: float
    age_seconds: float
    target: str | None
    lun: int | None


class ReplicaApi(Protocol):
    """See ``engine.api``."""

    async def replica_create(
        self,
        source: str,
        name: str,
        terms: MirrorTerms = USUAL,
        *,
        peer: str | None = None,
    ) -> JobInfo:
        """Make a volume like the source, here or at ``peer``, and mirror the source to it. The job ends when it is
        Synchronized.

        Raises AlreadyExists, NotFound, InUse.
        """
        ...

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
        """As ``replica_create``, to an existing volume of the source's size, whose content is lost. Raises InUse.

        ``peer``: the volume is there, and was offered to us by ``peer_offer``; blocks that are equal are not sent.
        ``target`` may be the URL of any iSCSI LUN that is large enough, for sync and async; then ``name`` is needed.
        ``secret``: of the CHAP user in the URL; ``mutual_user`` and ``mutual_secret``: by which its target has to prove
        itself. Such a target has no recovery points and is no instant of the source while a round writes it.
        """
        ...

    async def replica_points(self, name: str) -> list[ReplicaPointInfo]:
        """Recovery points that are complete at the target, oldest first."""
        ...

    async def replica_expose(self, name: str, guid: str | None = None) -> ReplicaPointInfo:
        """Show a recovery point, by default the newest, read-only in a target of its own. It stays while shown."""
        ...

    async def replica_unexpose(self, name: str, guid: str, *, force: bool = False) -> ReplicaPointInfo:
        """Show it no more. Raises InUse: sessions are there (without ``force``)."""
        ...

    async def replica_limit(self, name: str, rate_bytes_s: int) -> ReplicaInfo:
        """Copies of this mirror send its peer at most so much, besides what the peer's own limit allows; 0: no limit.

        At once, and across restarts. Raises NotSupported: its target is not at a peer."""
        ...

    async def replica_list(self) -> list[ReplicaInfo]: ...

    async def replica_show(self, name: str) -> ReplicaInfo: ...

    async def replica_pause(self, name: str) -> ReplicaInfo:
        """Stop the flow; the target stays protected."""
        ...

    async def replica_resume(self, name: str) -> JobInfo: ...

    async def replica_fracture(self, name: str) -> ReplicaInfo:
        """Let the target go its own way, writable."""
        ...

    async def replica_resync(self, name: str) -> JobInfo:
        """Bring the target up to date by what changed. What was written to a fractured target is lost.

        An asynchronous replica begins its next recovery point at once, or tries again.
        Raises InUse: sessions are on the target.
        """
        ...

    async def replica_detach(self, name: str) -> None:
        """End the relation; the target stays, as a volume of its own."""
        ...

    async def replica_promote(self, name: str, *, force: bool = False) -> VolumeInfo:
        """The replica's volume takes the place of its source, as the disk that initiators know: identity, reservations,
        LUNs, schedule. The relation ends; the source stays, under another identity and shown by nobody.

        Raises InvalidState: it does not have all that the source has acknowledged. InUse: sessions (without ``force``),
        groups, other replicas or jobs use the source, or the replica is shown itself.
        """
        ...

    async def replica_verify(self, name: str) -> JobInfo:
        """Compare both sides by hash tree; the job's result has ``identical``, ``root`` and the ``proof`` document."""
        ...
