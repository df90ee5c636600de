"""Targets, LUNs, sessions and what they do. See ``engine.api``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class LunInfo:
    """``initiators``: the only ones that see it; empty: all that the target admits. ``access``: the asymmetric access
    state in which it is offered. ``standby``: a replica, shown as a standby path of its source's disk. What is shown
    has the ``volume_id``, and if it is a snapshot the ``snapshot_guid``."""

    lun: int
    volume: str
    snapshot: str | None
    size_bytes: int
    serial: str
    state: str
    initiators: list[str]
    access: str
    standby: bool
    volume_id: str = ""
    snapshot_guid: str | None = None


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


class TargetApi(Protocol):
    """See ``engine.api``."""

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
