"""What a mirror is told and what it remembers: its policy, and its record across restarts."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engine import mirror_terms as terms
from engine.copy_state import CopyMode
from engine.mirror_stream import QUEUE_BYTES_MAX
from engine.units import MIB

if TYPE_CHECKING:
    from engine.mirror_terms import MirrorTerms


@dataclass(frozen=True, slots=True)
class MirrorPolicy:
    """What is kept of ``MirrorTerms``, with the usual for what was not chosen, and what nobody chooses.

    ``budget_s``: a host waits at most this long for the target before the mirror leaves the synchronous state.
    ``rounds_max``: rounds that may overflow before the mirror gives up and says so. ``mark_interval_s``: how often the
    common point moves forward while synchronized; until then it holds back the space of what was overwritten.
    ``unpaced_rounds``: so many rounds may overflow before hosts are held back, each write by at most ``budget_s``, so
    that the next ones do not.

    ``rpo_s``: asynchronous, the promise. ``points_max`` and ``points_age_s``: recovery points that stay at the target,
    the newest counted, and for how long (None: no limit of age); the newest stays always. ``hold_down_s``,
    ``backlog_bytes``: adaptive, see ``engine.modes.ModeSwitch``. ``retry_s``, ``retry_max_s``: the first and the
    longest pause before an asynchronous or adaptive mirror tries again after a failure; it never gives up.
    ``rate_bytes_s``: what copies send to a peer at most; 0: no limit.
    ``stops_host_io``: synchronous, CIM's FailedCopyStopsHostIO: once synchronized, hosts write nothing that the target
    does not get; when it fails they are refused until it is synchronized again, or the administrator decides.
    ``failover``: a target at a peer may take the source's place; then the source asks it first after each start.
    """

    budget_s: float = 5.0
    queue_bytes: int = QUEUE_BYTES_MAX
    rounds_max: int = 8
    mark_interval_s: float = 60.0
    unpaced_rounds: int = 2
    rpo_s: float = 30.0
    points_max: int = 1
    points_age_s: float | None = None
    hold_down_s: float = 30.0
    backlog_bytes: int = 64 * MIB
    failover: bool = True
    stops_host_io: bool = False
    retry_s: float = 1.0
    retry_max_s: float = 30.0
    rate_bytes_s: int = 0

    def check(self) -> MirrorPolicy:
        """Itself, if it makes sense: a peer may have sent anything. Raises InvalidArgument."""
        terms.RPO.check(self.rpo_s)
        terms.POINTS.check(self.points_max)
        terms.POINTS_AGE.check(self.points_age_s)
        terms.LATENCY_BUDGET.check(self.budget_s)
        terms.HOLD_DOWN.check(self.hold_down_s)
        terms.BACKLOG.check(self.backlog_bytes)
        return self

    @classmethod
    def of(cls, chosen: MirrorTerms) -> MirrorPolicy:
        return replace(cls().with_terms(chosen), failover=chosen.failover)

    def with_terms(self, chosen: MirrorTerms) -> MirrorPolicy:
        """The same, but for what was chosen. Whether a target may fail over is decided when the mirror is made."""
        values: dict[str, Any] = {
            "rpo_s": chosen.rpo_s,
            "points_max": chosen.points,
            "points_age_s": chosen.points_age_s,
            "budget_s": chosen.latency_budget_s,
            "backlog_bytes": chosen.backlog_bytes,
            "hold_down_s": chosen.hold_down_s,
            # Kept by whoever stays synchronous and says nothing of it: nobody loses this promise unasked.
            "stops_host_io": chosen.failed_copy_stops_host_io
            or (self.stops_host_io and chosen.copy_mode is CopyMode.SYNCHRONOUS),
            "rate_bytes_s": chosen.rate_bytes_s,
        }
        return replace(self, **{name: value for name, value in values.items() if value is not None})

    def serialize(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> MirrorPolicy:
        return cls(**{name: values[name] for name in cls.__slots__ if name in values})


@dataclass(frozen=True, slots=True)
class RecoveryPoint:
    """One that is complete at the target. ``at``: its instant at the source, in seconds since the epoch."""

    guid: str
    at: float


def retained(points: tuple[RecoveryPoint, ...], policy: MirrorPolicy, now: float) -> tuple[RecoveryPoint, ...]:
    """Those that stay, oldest first: the newest, and of the others what the limits of count and age allow."""
    youngest = points[-policy.points_max :]
    if policy.points_age_s is None:
        return youngest
    old = now - policy.points_age_s
    return tuple(point for point in youngest if point.at >= old or point is points[-1])


@dataclass(slots=True)
class MirrorRecord:
    """What a mirror knows across restarts. ``wanted``: active, fractured, suspended or aborted, as the administrator
    said; restored: its source has got what its target held; failed over: its source was its target, and what was the
    source has not come back yet.

    ``held``: hosts may write nothing (``MirrorPolicy.stops_host_io``), so the target has all that was acknowledged.
    ``points``: recovery points at the target, oldest first; the newest is the common point, if there is one.
    """

    wanted: str = "active"
    synchronized: bool = False
    common: str | None = None
    round_source: str | None = None
    round_base: str | None = None
    reason: str = ""
    held: bool = False
    points: tuple[RecoveryPoint, ...] = ()

    def serialize(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__slots__}
        return values | {"points": [[point.guid, point.at] for point in self.points]}

    @classmethod
    def parse(cls, values: dict[str, Any]) -> MirrorRecord:
        known = {name: values[name] for name in cls.__slots__ if name in values}
        return cls(**known | {"points": tuple(RecoveryPoint(guid, at) for guid, at in known.get("points", ()))})


def point_prefix(mirror_name: str) -> str:
    """The beginning of the names of a mirror's recovery points; short enough to leave room for a GUID."""
    return f"mirror-{hashlib.sha256(mirror_name.encode()).hexdigest()[:12]}"
