"""The operations that everybody outside the engine uses, and the values they exchange.

``EngineApi`` has two implementations: ``engine.local_api.LocalApi`` in the data process, and ``twinvol.api.client``
over the pool's Unix socket. The command line, the management process and the CIM facade are written against the
protocol and know neither. All values are JSON values, lists of them, or frozen dataclasses of them, so that the
socket's client and server need nothing but the type hints below. Refusals are ``engine.errors``.

The rooms that build these values import them in the functions that do: making the classes takes 20 ms, and no login
needs one (``tests/unit/daemon/test_start.py``).

Names of volumes and snapshots: 1-64 of ``[a-z0-9.-]``, beginning with a letter or digit. Sizes are bytes, times are
seconds since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """``state``: ok, read-only, failed (a sync failed: STORE section 2), damaged (not served), or locked (not served
    for want of its key); ``reason`` says why.

    ``digests``: the policy, lazy or always. ``bad_chunks``: of its file, marked bad. ``verified_at``: since when scrubs
    know all of it to be good.

    ``target`` and ``lun``: where initiators find it first, when it is exposed. ``origin``: VOLUME@SNAPSHOT of a
    linked clone. ``file``: its family's file. ``encryption``: where the key of an encrypted one is.
    """

    name: str
    volume_id: str
    size_bytes: int
    state: str
    reason: str | None
    serial: str
    naa: str
    physical_block_bytes: int
    write_cache: bool
    read_only: bool
    removable: bool
    snapshots: int
    origin: str | None
    file: str
    target: str | None
    lun: int | None
    encryption: str | None = None
    digests: str = "lazy"
    bad_chunks: int = 0
    verified_at: float | None = None


@dataclass(frozen=True, slots=True)
class ScrubRange:
    """``verified_at``: when it was last gone through; None: never."""

    offset: int
    length: int
    verified_at: float | None


@dataclass(frozen=True, slots=True)
class ScrubInfo:
    """The last scrub of a volume, or the one under way: ``job``.

    ``state``: never, running, paused, finished or failed. ``policy``: lazy (scrubs make digests) or always (digests are
    made soon after data is written). Chunks are counted for the last run; ``file_digests`` and ``file_bad_chunks`` are
    of the whole family's file. ``verified_at``: the oldest time of ``ranges``; None: some were never gone through.
    """

    volume: str
    policy: str
    state: str
    job: int | None
    rate_bytes_s: int
    started_at: float | None
    finished_at: float | None
    verified_chunks: int
    new_digests: int
    bad_chunks: int
    repaired_chunks: int
    transient_chunks: int
    chunk_bytes: int
    file_digests: int
    file_bad_chunks: int
    verified_at: float | None
    ranges: list[ScrubRange]


@dataclass(frozen=True, slots=True)
class HoldInfo:
    """While it is valid its snapshot is not deleted. ``expires_at``: None for never."""

    owner: str
    held_at: float
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """``target`` and ``lun`` when it is exposed (read-only). ``scheduled``: a schedule made it, so retention may delete
    it. ``holds``: the valid ones. ``parent``: the snapshot that it goes back to. ``branch``: a rollback left it on the
    branch of this name; None: the volume as it is comes from it. ``view_...``: where its writable view is, if it has
    one, and when that is discarded. ``group``: GROUP@NAME of its group snapshot. The bytes are those of
    ``SnapshotSpace``; only lists have them.
    """

    volume: str
    name: str
    guid: str
    size_bytes: int
    created_at: float
    serial: str
    naa: str
    target: str | None
    lun: int | None
    description: str = ""
    scheduled: bool = False
    holds: list[HoldInfo] = field(default_factory=list)
    parent: str | None = None
    branch: str | None = None
    view_target: str | None = None
    view_lun: int | None = None
    view_expires_at: float | None = None
    mapped_bytes: int | None = None
    unique_bytes: int | None = None
    shared_bytes: int | None = None
    pinned_bytes: int | None = None
    reclaimable_bytes: int | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """``members``: names of volumes. ``state``: ok, or degraded with a ``reason``: a member is not served."""

    name: str
    created_at: float
    members: list[str]
    size_bytes: int
    snapshots: int
    state: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A member's part in a group snapshot: the snapshot ``guid`` of a volume, and where it is exposed."""

    volume: str
    guid: str
    target: str | None = None
    lun: int | None = None


@dataclass(frozen=True, slots=True)
class GroupSnapshotInfo:
    """``name`` is also that of the members' snapshots. ``state``: ok, or incomplete with a ``reason``."""

    group: str
    name: str
    guid: str
    created_at: float
    members: list[GroupMember]
    state: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class SnapshotSpace:
    """Bytes in whole chunks, as ``engine.stores.Space`` defines them: of ``mapped_bytes``, what this snapshot alone has
    (unique) and what others have, too (shared); what the volume itself has no longer (pinned); what comes back if this
    snapshot alone is deleted now (reclaimable)."""

    name: str
    mapped_bytes: int
    unique_bytes: int
    shared_bytes: int
    pinned_bytes: int
    reclaimable_bytes: int


@dataclass(frozen=True, slots=True)
class FamilySpaceInfo:
    """The chunks of a volume file, each counted once: see ``engine.stores.FamilySpace``."""

    used_bytes: int
    pending_bytes: int
    free_bytes: int
    unpunched_bytes: int
    metadata_bytes: int


@dataclass(frozen=True, slots=True)
class SpaceInfo:
    """Bytes in whole chunks. ``pinned_bytes``: what comes back if all of its snapshots are deleted now;
    ``reclaimable_bytes``: if the volume is deleted with them. ``file_bytes``: what the family's file takes on the host.
    """

    name: str
    size_bytes: int
    mapped_bytes: int
    unique_bytes: int
    shared_bytes: int
    pinned_bytes: int
    reclaimable_bytes: int
    file_bytes: int
    snapshots: list[SnapshotSpace]
    family: FamilySpaceInfo


@dataclass(frozen=True, slots=True)
class DeletionInfo:
    """What deleting ``snapshots``, and with them the volume, would give back: ``freed_bytes`` in whole chunks, beyond
    what is coming back anyway. The host gets as much, less what was never written of these chunks.

    ``removed_file_bytes``: the volume's file goes as a whole, and the host gets so much; None: it stays.
    """

    volume: str
    snapshots: list[str]
    freed_bytes: int
    removed_file_bytes: int | None


@dataclass(frozen=True, slots=True)
class FlattenInfo:
    """What flattening a linked clone would copy, in whole chunks; its ``snapshots`` leave the origin with it."""

    volume: str
    origin: str
    copied_bytes: int
    snapshots: list[str]


@dataclass(frozen=True, slots=True)
class PrunedInfo:
    """A snapshot that pruning looked at. ``reasons``: the rules by which it stays (last, hourly, daily, weekly), and
    what binds it."""

    name: str
    created_at: float
    stays: bool
    reasons: list[str]


SNAPSHOT_PAGE = 5000
"""Snapshots in one page at most: some 4 MiB over the socket."""


@dataclass(frozen=True, slots=True)
class SnapshotPage:
    """``cursor``: where the next page begins; None behind the last snapshot."""

    snapshots: list[SnapshotInfo]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class PruneInfo:
    """``freed_bytes``: what comes back, or (``dry_run``) would, in whole chunks; as ``DeletionInfo``."""

    volume: str
    dry_run: bool
    freed_bytes: int
    snapshots: list[PrunedInfo]


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """Every ``interval_s`` a volume has a snapshot made, and what the retention does not keep is pruned. ``problem``:
    why its last turn failed, or why the volume is not served."""

    volume: str
    interval_s: int
    keep_last: int
    hourly: int
    daily: int
    weekly: int
    next_at: float
    problem: str | None


@dataclass(frozen=True, slots=True)
class ExtentInfo:
    """``state``: data, zero (zeroes were written) or hole (never written, or discarded). ``digests``, of
    data and when they were asked for: the xxh3_128 of each 64 KiB of it, the last of what is left. Such extents are cut
    at multiples of 1 MiB."""

    offset: int
    length: int
    state: str = "data"
    digests: list[str] | None = None


@dataclass(frozen=True, slots=True)
class DiffInfo:
    """Extents that changed between two points of one volume, in order, and the size of the newer one.

    ``next_offset``: ask again from there, with the ``point`` if there is one; None: that was all.
    """

    volume: str
    older: str | None
    newer: str | None
    extents: list[ExtentInfo]
    changed_bytes: int
    next_offset: int | None
    point: str | None = None
    size_bytes: int = 0


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


@dataclass(frozen=True, slots=True)
class PeerInvitation:
    """``code``: a secret until it is used."""

    code: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """Another twinvol. ``address``: where it listens; None: it only connects to us. ``fingerprint``: SHA-256 of its
    certificate. ``connected``: we are, to it; ``connects_to_us``: it is, to us. ``rate_bytes_s``: what copies send it
    at most; 0: no limit. ``sent_bytes``: to it, by mirrors, since the start. ``replicas``: of volumes here, at the
    peer; ``replicas_here``: of volumes there. ``reason``: why we are not connected.
    """

    name: str
    address: str | None
    fingerprint: str
    connected: bool
    connects_to_us: bool
    added_at: float
    rate_bytes_s: int
    sent_bytes: int
    replicas: list[str]
    replicas_here: list[str]
    reason: str


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


@dataclass(frozen=True, slots=True)
class LunInfo:
    """``initiators``: the only ones that see it; empty: all that the target admits. ``access``: the asymmetric access
    state in which it is offered. ``standby``: a replica, shown as a standby path of its source's disk."""

    lun: int
    volume: str
    snapshot: str | None
    size_bytes: int
    serial: str
    state: str
    initiators: list[str]
    access: str
    standby: bool


@dataclass(frozen=True, slots=True)
class ChapInfo:
    """Whether logins must authenticate by CHAP, and as whom; never a secret.

    ``mutual_user``: what the target calls itself to initiators that ask for its proof. ``reasons``: users that are
    locked out because their secret cannot be read.
    """

    required: bool
    users: list[str]
    mutual_user: str | None
    reasons: list[str]


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """``initiators``: the access list; empty admits all. ``portal_groups``: tags of those through which it is reached;
    empty: all. ``portals``: the addresses of these groups. ``port_group``: the number of its target port group.
    ``state``: ok, or paused, until ``resumes_at`` at most."""

    name: str
    portals: list[str]
    portal_groups: list[int]
    port_group: int
    luns: list[LunInfo]
    initiators: list[str]
    chap: ChapInfo
    sessions: int
    state: str = "ok"
    resumes_at: float | None = None
    recorded: int = 0


LATENCY_BOUNDS_US = tuple(2**bits / 1000 for bits in range(14, 34, 2))
"""Upper bounds of ``IoInfo.latency_counts``: 16 us to 4.3 s, each four times the one before."""


@dataclass(frozen=True, slots=True)
class IoInfo:
    """Commands of one ``kind``: read, write, flush or other. Latencies are the target's own; percentiles are upper
    bounds, at most a quarter above the truth; None without commands.

    ``total_us``: of all commands together, within an eighth. ``latency_counts``: how many commands took less than each
    of ``LATENCY_BOUNDS_US``.
    """

    kind: str
    commands: int
    bytes: int
    total_us: float
    p50_us: float | None
    p99_us: float | None
    max_us: float | None
    latency_counts: list[int]


@dataclass(frozen=True, slots=True)
class LunIoInfo:
    lun: int
    errors: int
    io: list[IoInfo]


@dataclass(frozen=True, slots=True)
class DeviceIoInfo:
    """What all initiators together have done with a volume, or a snapshot of it, since the daemon shows it."""

    volume: str
    snapshot: str | None
    fast_commands: int
    plain_commands: int
    errors: int
    aborted: int
    io: list[IoInfo]


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A full-feature session of an initiator. ``isid``: 12 hexadecimal digits. ``portal_group``: tag of the group
    through which it came. ``chap_user``: as whom it logged in, where CHAP was required then. Counters since its login.

    ``state``: ok, or paused with its target. ``depth_max``: the most commands in progress that the target saw at once.
    ``errors``: answers other than GOOD, unit attentions excepted. Rates (``..._s``) are means over ``recent_seconds``.
    ``luns``: ``io`` for each LUN that it sees now; ``io`` itself is of all.
    """

    target: str
    portal_group: int
    initiator: str
    isid: str
    tsih: int
    address: str
    reads: int
    read_bytes: int
    writes: int
    written_bytes: int
    chap_user: str | None = None
    portal: str = ""
    state: str = "ok"
    logged_in_at: float = 0.0
    header_digest: bool = False
    data_digest: bool = False
    max_recv_data_segment_bytes: int = 0
    max_send_data_segment_bytes: int = 0
    max_burst_bytes: int = 0
    first_burst_bytes: int = 0
    initial_r2t: bool = True
    immediate_data: bool = True
    in_flight: int = 0
    depth_max: int = 0
    fast_commands: int = 0
    plain_commands: int = 0
    errors: int = 0
    aborted: int = 0
    recent_seconds: float = 0.0
    reads_s: float = 0.0
    read_bytes_s: float = 0.0
    writes_s: float = 0.0
    written_bytes_s: float = 0.0
    io: list[IoInfo] = field(default_factory=list)
    luns: list[LunIoInfo] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CommandInfo:
    """A recorded command that is over. ``at``: when it came. ``cdb`` and ``sense`` are hexadecimal; ``length``: bytes
    of data, either way.

    ``status``: the SCSI status, None if it was aborted. ``lba``: for the commands that have one.
    """

    at: float
    tsih: int
    initiator: str
    lun: int | None
    name: str
    cdb: str
    lba: int | None
    length: int
    status: int | None
    sense: str
    latency_us: float


@dataclass(frozen=True, slots=True)
class JobInfo:
    """``state`` and ``state_number``: CIM_ConcreteJob.JobState. ``version`` grows with each visible change.

    ``error``: name of the engine error that ended it; its text is ``message``. ``result``: what the work yields.
    """

    job: int
    kind: str
    subject: str
    state: str
    state_number: int
    done_bytes: int
    total_bytes: int
    rate_bytes_s: float
    eta_s: float | None
    created_at: float
    finished_at: float | None
    message: str
    error: str | None
    result: dict[str, Any]
    version: int


@dataclass(frozen=True, slots=True)
class EventInfo:
    """``severity``: info, warning or error."""

    at: float
    severity: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class PoolSpaceInfo:
    """The pool's limits and how near they are. ``state``: ok, low (from ``warn_percent`` of what may be used) or full.

    ``quota_bytes``: the most that the volume files may take on the host; None: as much as there is. ``reserve_bytes``:
    what they leave free there; the default, unless ``reserve_is_set``. ``used_bytes``: what they take. ``left_bytes``:
    what volumes may still take.
    """

    state: str
    quota_bytes: int | None
    reserve_bytes: int
    reserve_is_set: bool
    warn_percent: int
    used_bytes: int
    left_bytes: int
    host_total_bytes: int
    host_free_bytes: int


@dataclass(frozen=True, slots=True)
class StatusInfo:
    """``health``: ok, or degraded with ``reasons``. ``free_bytes``: what the host's file system has left.

    ``interrupted_copies``: names of volumes whose copy was interrupted; asking for the same copy goes on with it,
    ``volume_delete`` discards it. ``interrupted_exports``: where to exports were interrupted; asking for the same one
    goes on with it, and cancelling that discards it.
    """

    pool: str
    pid: int
    version: str
    started_at: float
    health: str
    reasons: list[str]
    interrupted_copies: list[str]
    interrupted_exports: list[str]
    iscsi: list[str]
    volumes: int
    snapshots: int
    replicas: int
    targets: int
    sessions: int
    jobs_running: int
    provisioned_bytes: int
    stored_bytes: int
    total_bytes: int
    free_bytes: int
    space: PoolSpaceInfo


class EngineApi(Protocol):
    """See the module. Every method may raise ``EngineError``; what is named below is what callers tell apart."""

    async def status(self) -> StatusInfo: ...
    async def pool_space(self) -> PoolSpaceInfo: ...
    async def pool_limit(
        self, *, quota_bytes: int | None, reserve_bytes: int | None, warn_percent: int
    ) -> PoolSpaceInfo:
        """Set the limits of the pool; they hold at once, and stay. ``quota_bytes`` None: no quota; ``reserve_bytes``
        None: the default. Raises InvalidArgument."""
        ...

    async def event_list(self, limit: int = 100) -> list[EventInfo]:
        """The newest events, oldest of them first."""
        ...

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
        """Make an empty volume. ``expose`` also makes a target of its name with the volume as LUN 0.

        Raises InvalidArgument, AlreadyExists, OutOfSpace.
        """
        ...

    async def volume_list(self) -> list[VolumeInfo]: ...
    async def volume_show(self, name: str) -> VolumeInfo: ...
    async def volume_rekey(self, name: str, key_source: str) -> VolumeInfo:
        """Another key for an encrypted volume and all of its family. Raises InvalidState: it is not encrypted."""
        ...

    async def volume_resize(self, name: str, size_bytes: int, *, shrink: bool = False) -> VolumeInfo:
        """Change the size; making it smaller loses what lies beyond and needs ``shrink``."""
        ...

    async def volume_delete(self, name: str, *, force: bool = False) -> None:
        """Delete a volume and its exposure. Raises InUse: sessions, snapshots or linked clones hold it.

        ``force`` ends the sessions and deletes the snapshots; linked clones hold it always. Of a volume whose copy was
        interrupted, what is there is removed.
        """
        ...

    async def volume_delete_preview(self, name: str, *, force: bool = False) -> DeletionInfo:
        """What ``volume_delete`` would give back; raises what it would raise."""
        ...

    async def volume_scrub(self, name: str, *, rate_bytes_s: int | None = None) -> JobInfo:
        """Verify the chunks of a volume and its snapshots that have digests, and make those that are missing.

        Goes on with a scrub that was paused. ``rate_bytes_s``: what it reads at most; kept for the next ones.
        Raises InUse: one is under way.
        """
        ...

    async def volume_scrub_pause(self, name: str) -> ScrubInfo:
        """End the scrub under way; the next one goes on with it. Raises InvalidState: none is."""
        ...

    async def volume_scrub_show(self, name: str) -> ScrubInfo: ...
    async def volume_digests(self, name: str, policy: str) -> ScrubInfo:
        """``always``: data gets a digest soon after it was written; ``lazy``: scrubs make them."""
        ...

    async def volume_space(self, name: str) -> SpaceInfo: ...

    async def snapshot_create(
        self, volume: str, name: str, *, expose: bool = False, description: str = ""
    ) -> SnapshotInfo: ...
    async def snapshot_list(self, volume: str) -> list[SnapshotInfo]:
        """All of them, oldest first. Over the socket not more than fit into one answer: ``snapshot_page``."""
        ...

    async def snapshot_page(self, volume: str, cursor: str | None = None, limit: int = SNAPSHOT_PAGE) -> SnapshotPage:
        """Some of them, oldest first, from the beginning or from where a page before ended; ``each_snapshot`` follows.

        What is there all the while is in one page; what comes or goes meanwhile may be in one. Raises InvalidArgument:
        a cursor that is none, or a limit that is not 1 to SNAPSHOT_PAGE.
        """
        ...

    async def snapshot_show(self, volume: str, name: str) -> SnapshotInfo: ...
    async def snapshot_describe(self, volume: str, name: str, text: str) -> SnapshotInfo: ...
    async def snapshot_hold(
        self, volume: str, name: str, owner: str, *, expires_at: float | None = None
    ) -> SnapshotInfo:
        """Keep a snapshot from being deleted until ``expires_at``, or until ``owner`` releases it. Holding again
        replaces the owner's expiry."""
        ...

    async def snapshot_release(self, volume: str, name: str, owner: str) -> SnapshotInfo:
        """Raises NotFound: the owner has no hold."""
        ...

    async def snapshot_expose(
        self, volume: str, name: str, *, writable: bool = False, expires_at: float | None = None
    ) -> SnapshotInfo:
        """Show a snapshot, write-protected, at a target VOLUME.snap.NAME; or (``writable``) make a throw-away view of
        it and show that at VOLUME.view.NAME, until it is unexposed or expires. Raises AlreadyExists."""
        ...

    async def snapshot_unexpose(
        self, volume: str, name: str, *, writable: bool = False, force: bool = False
    ) -> SnapshotInfo:
        """End the exposure; what was written to a view is lost. Raises NotFound; InUse: sessions (``force`` ends
        them)."""
        ...

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
        """Delete the scheduled snapshots (``manual``: all alike) that a retention does not keep: the newest
        ``keep_last``, and the newest of each of so many hours, days and weeks. Without one it is the schedule's.

        Raises InvalidArgument: there is no schedule either.
        """
        ...

    async def schedule_set(
        self, volume: str, interval_s: int, *, keep_last: int = 0, hourly: int = 0, daily: int = 0, weekly: int = 0
    ) -> ScheduleInfo:
        """Snapshots from now on, named by their time in UTC, and their retention; replaces what there was."""
        ...

    async def schedule_list(self) -> list[ScheduleInfo]: ...
    async def schedule_remove(self, volume: str) -> None: ...
    async def snapshot_delete(self, volume: str, name: str, *, force: bool = False) -> None:
        """Raises InUse: it is held, clones come from it, or (``force`` ends those) sessions are on its target or it has
        a writable view."""
        ...

    async def snapshot_delete_preview(self, volume: str, names: list[str], *, force: bool = False) -> DeletionInfo:
        """What deleting these snapshots, all together, would give back. A name may be a range: ``a%b``, ``a%``, ``%b``,
        from the older to the newer. Raises NotFound, and what ``snapshot_delete`` would raise for each."""
        ...

    async def snapshot_rollback(self, volume: str, name: str, *, force: bool = False) -> VolumeInfo:
        """The volume reads as the snapshot from now on; what it was stays as a snapshot.

        Raises InUse: sessions are on the volume. ``force`` does it under them, with a unit attention.
        """
        ...

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
        """What changed from ``older`` (None: from nothing) to ``newer`` (None: to the volume at the instant of the
        first page), a page of at most ``limit`` extents from ``offset`` on. ``digests``: with those of the data.

        Raises NotFound: a snapshot is gone, or the ``point`` of the first page, since nobody asked for five minutes.
        """
        ...

    async def clone_create(self, source: str, snapshot: str | None, name: str, *, expose: bool = False) -> VolumeInfo:
        """A linked clone of a snapshot; without one, of a snapshot made now and named after the clone."""
        ...

    async def clone_copy(self, source: str, snapshot: str | None, name: str, *, expose: bool = False) -> JobInfo:
        """Begin a full, verified clone in a family of its own. It appears when it is whole."""
        ...

    async def clone_list(self) -> list[VolumeInfo]:
        """The linked clones."""
        ...

    async def clone_flatten(self, name: str) -> JobInfo:
        """Begin to give a linked clone its own, verified copy of what it shares with its origin, which it then leaves
        with its snapshots. Raises InvalidState (no clone).
        """
        ...

    async def clone_flatten_preview(self, name: str) -> FlattenInfo:
        """What ``clone_flatten`` would copy now. Raises InvalidState (no clone)."""
        ...

    async def group_create(self, name: str, volumes: list[str]) -> GroupInfo:
        """Make a consistency group of 1 to 64 volumes; a volume may be in several. Raises AlreadyExists, NotFound."""
        ...

    async def group_add(self, name: str, volumes: list[str]) -> GroupInfo:
        """Raises InUse: one is in it already. Group snapshots that exist stay as they are."""
        ...

    async def group_remove(self, name: str, volumes: list[str]) -> GroupInfo:
        """Raises NotFound: one is not in it. Group snapshots that exist stay as they are."""
        ...

    async def group_delete(self, name: str, *, force: bool = False) -> None:
        """The volumes stay. Raises InUse: it has snapshots; ``force`` deletes them by force."""
        ...

    async def group_list(self) -> list[GroupInfo]: ...
    async def group_show(self, name: str) -> GroupInfo: ...
    async def group_snapshot_create(self, group: str, name: str, *, expose: bool = False) -> GroupSnapshotInfo:
        """Freeze all members at one instant: a snapshot ``name`` of each. It exists as a whole or not at all.

        ``expose`` makes a target of each member's snapshot. Raises AlreadyExists, StoreCorrupt (one is not served).
        """
        ...

    async def group_snapshot_list(self, group: str) -> list[GroupSnapshotInfo]:
        """Oldest first."""
        ...

    async def group_snapshot_delete(self, group: str, name: str, *, force: bool = False) -> None:
        """Delete it with its members' snapshots. Raises InUse: sessions (``force`` ends them), clones, holds, jobs."""
        ...

    async def group_rollback(self, group: str, name: str, *, force: bool = False) -> GroupSnapshotInfo:
        """All members read as in the group snapshot; what they were is the group snapshot that is returned.

        Raises InUse: sessions are on a member; ``force`` does it under them, with a unit attention. Raises
        InvalidState: the group has other members than its snapshot, or one is the source of a mirror.
        """
        ...

    async def group_clone(self, group: str, snapshot: str | None, name: str, *, expose: bool = False) -> GroupInfo:
        """A group ``name`` of linked clones NAME.MEMBER of a group snapshot, or of one made now and named after it.

        All of them exist, or none.
        """
        ...

    async def volume_import(
        self,
        source: str,
        name: str,
        *,
        format: str = "auto",
        chunk_bytes: int = 65536,
        expose: bool = False,
        secret: str | None = None,
        new_identity: bool = False,
    ) -> JobInfo:
        """A new volume from an image at an absolute path on the daemon's machine, or from a LUN (``iscsi://...``).

        ``format``: raw, vhdx, qcow2, or auto: by what the file begins with; it says nothing of a LUN. ``secret``: of
        the CHAP user in the URL. ``new_identity``: the source is a closed volume file; a copy of its family is taken
        in, with all snapshots, under other identities; of several volumes each is called NAME.VOLUME.

        The volume appears when it is whole. The job's result has ``root``, the root of its hash tree, ``format`` and
        ``logical_sector_bytes`` of the source. Asking again after an interruption goes on with it.

        Raises NotFound (also of a parent: the text names the paths tried), StoreCorrupt (the image breaks its format),
        NotSupported (it needs something unknown, or qcow2 without ``qemu-img``).
        """
        ...

    async def volume_export(
        self, name: str, snapshot: str | None, path: str, *, format: str = "raw", replace: bool = False
    ) -> JobInfo:
        """An image of a snapshot, or of the volume as it is now, at the absolute path ``path``.

        ``format``: raw, vhdx (dynamic), vhdx-fixed, qcow2. The file appears when it is whole. The job's result has
        ``root``. Asking again after an interruption goes on with it. Raises AlreadyExists without ``replace``.
        """
        ...

    async def volume_root(self, name: str, snapshot: str | None = None) -> JobInfo:
        """The root of the hash tree of a snapshot, or of the volume as it is now: ``root`` of the job's result."""
        ...

    async def replica_create(
        self,
        source: str,
        name: str,
        *,
        mode: str = "sync",
        rpo_s: float | None = None,
        points: int | None = None,
        points_age_s: float | None = None,
        latency_budget_s: float | None = None,
        backlog_bytes: int | None = None,
        hold_down_s: float | None = None,
        peer: str | None = None,
    ) -> JobInfo:
        """Make a volume like the source, here or at ``peer``, and mirror the source to it. The job ends when it is
        Synchronized.

        ``mode``: sync, async or adaptive. ``rpo_s``: the promise of the latter two. ``points`` and ``points_age_s``:
        recovery points that stay at the target, the newest counted. ``latency_budget_s``: hosts wait no longer for the
        target. ``backlog_bytes`` and ``hold_down_s``: adaptive, when it may be synchronous again (``engine.modes``).
        Raises InvalidArgument.
        """
        ...

    async def replica_attach(
        self,
        source: str,
        target: str,
        *,
        name: str | None = None,
        mode: str = "sync",
        rpo_s: float | None = None,
        points: int | None = None,
        points_age_s: float | None = None,
        latency_budget_s: float | None = None,
        backlog_bytes: int | None = None,
        hold_down_s: float | None = None,
    ) -> JobInfo:
        """As ``replica_create``, to an existing volume of the source's size, whose content is lost. Raises InUse."""
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

    async def peer_invite(
        self, *, name: str | None = None, address: str | None = None, lifetime_s: float = 3600.0
    ) -> PeerInvitation:
        """A one-time code by which another pool becomes a peer, called ``name`` here (by default after its
        certificate). ``address``: where it finds us, by default where we listen. Raises InvalidState: we do not.
        """
        ...

    async def peer_add(self, name: str, code: str, *, address: str | None = None) -> PeerInfo:
        """Become the peer of the pool that made the code; each trusts the other from now on.

        Raises PermissionDenied: the code was used or has expired, or somebody else answers. PeerUnreachable.
        """
        ...

    async def peer_list(self) -> list[PeerInfo]: ...
    async def peer_remove(self, name: str, *, force: bool = False) -> None:
        """Trust a peer no longer. Raises InUse: there are replicas (``force``: they break)."""
        ...

    async def peer_ping(self, name: str) -> float:
        """Seconds until it answered. Raises PeerUnreachable."""
        ...

    async def peer_rotate(self) -> str:
        """Begin to replace our key and certificate; ends by itself once all peers know. The new fingerprint."""
        ...

    async def peer_limit(self, name: str, rate_bytes_s: int) -> PeerInfo:
        """What copies send to a peer at most, in bytes a second, at least 1 MiB; 0: no limit. Stays."""
        ...

    async def target_create(
        self, name: str, *, initiators: list[str] | None = None, portal_groups: list[int] | None = None
    ) -> TargetInfo:
        """An empty target. ``name``: an iSCSI name, or the part of it behind the pool's prefix."""
        ...

    async def target_list(self) -> list[TargetInfo]: ...
    async def target_show(self, name: str) -> TargetInfo: ...
    async def target_delete(self, name: str, *, force: bool = False) -> None:
        """Raises InUse: it has sessions; ``force`` ends them."""
        ...

    async def target_bind(self, target: str, *, portal_groups: list[int]) -> TargetInfo:
        """Have a target reached through these portal groups only; through all, when empty. Other sessions are ended.

        Raises InvalidArgument: no portal is in such a group.
        """
        ...

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
        """Show a volume or snapshot as a LUN, by default the lowest free one; to these initiators only, when given.

        ``standby``: the volume is a replica, shown as a standby path of its source: with the source's identity, never
        read or written. Raises InvalidState: it is no replica.
        """
        ...

    async def target_lun_remove(self, target: str, lun: int, *, force: bool = False) -> TargetInfo: ...
    async def target_lun_mask(self, target: str, lun: int, *, initiators: list[str]) -> TargetInfo:
        """Show a LUN to these initiators only; to all that the target admits, when empty. Others lose it at once."""
        ...

    async def target_access_state(self, target: str, state: str, *, lun: int | None = None) -> TargetInfo:
        """Offer a LUN's disk, by default all of the target's, as active-optimized, active-non-optimized, standby or
        unavailable. Returns when no write that the old state admitted runs.

        Raises InvalidState: a replica's standby path cannot be active.
        """
        ...

    async def target_activate(self, target: str, *, lun: int | None = None) -> TargetInfo:
        """Make a target active-optimized for a LUN's disk, by default all that it shows, and whatever other target is
        active for it standby, in one step. Raises InvalidState as ``target_access_state``.
        """
        ...

    async def target_access(
        self, target: str, *, add: list[str], remove: list[str], admit_all: bool = False
    ) -> TargetInfo:
        """Change the access list. Sessions that it no longer admits are ended.

        A target without a list admits everybody: ``admit_all`` clears it; removing its last entry is refused.
        """
        ...

    async def target_pause(self, name: str, *, timeout_s: float = 20.0) -> TargetInfo:
        """Hold the commands of a target, without errors at its initiators, for ``timeout_s`` at most.

        Returns when none of its initiators' commands touches a volume; said again, the time begins anew. The pause
        ends with the daemon. Raises TimedOut: what was running did not end in time.
        """
        ...

    async def target_resume(self, name: str) -> TargetInfo:
        """Raises InvalidState: it is not paused, or its pause has ended by itself."""
        ...

    async def target_chap_show(self, target: str | None) -> ChapInfo:
        """CHAP of a target's sessions, or (None) of discovery."""
        ...

    async def target_chap_set(
        self,
        target: str | None,
        *,
        user: str | None = None,
        secret: str | None = None,
        mutual_user: str | None = None,
        mutual_secret: str | None = None,
    ) -> ChapInfo:
        """Add or replace a user, or what proves the target to initiators; CHAP is required from the next login on.

        Each name comes with its secret. Sessions that exist stay.

        Raises InvalidArgument: a name or secret that may not be, or a secret for both directions.
        """
        ...

    async def target_chap_remove(
        self, target: str | None, *, user: str | None = None, mutual: bool = False
    ) -> ChapInfo:
        """Remove one user (not the last), or the mutual secret; with neither named all: CHAP is required no longer."""
        ...

    async def target_record(self, name: str, last: int) -> TargetInfo:
        """Remember the last so many commands of each of the target's sessions; 0 ends that. Ends with the daemon.

        Recorded sessions leave the fast path, which costs most of their speed at small commands.
        """
        ...

    async def command_list(self, target: str, *, tsih: int | None = None) -> list[CommandInfo]:
        """The recorded commands of all sessions of a target or of one, oldest first. Raises InvalidState: none are."""
        ...

    async def io_list(self) -> list[DeviceIoInfo]:
        """What initiators have done with each volume and snapshot that is shown."""
        ...

    async def session_list(self, target: str | None = None) -> list[SessionInfo]: ...

    async def job_list(self) -> list[JobInfo]: ...
    async def job_show(self, job: int) -> JobInfo: ...
    async def job_wait(self, job: int, *, after_version: int = 0, timeout_s: float = 30.0) -> JobInfo:
        """The job once its version is above ``after_version``, it is over, or the time is up."""
        ...

    async def job_cancel(self, job: int) -> JobInfo:
        """Cancel and wait for its end. Raises InvalidState: it is over."""
        ...


async def each_snapshot(api: EngineApi, volume: str) -> list[SnapshotInfo]:
    """All snapshots of a volume, oldest first, however many there are."""
    found, cursor = [], None
    while True:
        page = await api.snapshot_page(volume, cursor)
        found += page.snapshots
        cursor = page.cursor
        if cursor is None:
            return found
