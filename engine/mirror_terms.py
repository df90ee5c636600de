"""What whoever makes a mirror may choose of it: one value from the command line and CIM to the engine.

A value that exists makes sense: what is out of bounds, or contradicts the mode, is refused where it is made, in the
process that was told so, and again where the socket hands it in. ``engine.mirror_record.MirrorPolicy`` is what the
engine keeps of it, with the usual for whatever was not chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from engine.copy_state import CopyMode
from engine.errors import InvalidArgument
from engine.modes import mode_of
from engine.peers.rate import check_rate
from engine.units import MIB


class Limit(NamedTuple):
    """Between which values something may be."""

    what: str
    low: float
    high: float
    unit: str

    def check(self, value: float | None) -> None:
        """None was not chosen. Raises InvalidArgument."""
        if value is not None and not self.low <= value <= self.high:
            raise InvalidArgument(f"{self.what} is {value:g}; it may be {self.low:g} to {self.high:g} {self.unit}")


RPO = Limit("the RPO", 1.0, 30 * 86_400.0, "seconds")
POINTS = Limit("the number of recovery points", 1, 1000, "points")
POINTS_AGE = Limit("the age of recovery points", 0, 1000 * 365 * 86_400.0, "seconds")
LATENCY_BUDGET = Limit("the latency budget", 0.001, 60.0, "seconds")
HOLD_DOWN = Limit("the hold-down time", 0, 86_400.0, "seconds")
BACKLOG = Limit("the backlog limit", MIB, 1 << 40, "bytes")


@dataclass(frozen=True, slots=True)
class MirrorTerms:
    """How a mirror is to be kept. None: as usual.

    ``mode``: sync, async or adaptive. ``rpo_s``: the promise of the latter two. ``points`` and ``points_age_s``:
    recovery points that stay at the target, the newest counted. ``latency_budget_s``: hosts wait no longer for the
    target. ``backlog_bytes`` and ``hold_down_s``: adaptive, when it may be synchronous again (``engine.modes``).
    ``failed_copy_stops_host_io``: synchronous; from Synchronized on hosts write nothing that the target does not get:
    without it they are refused (NOT READY, they try again) until it is Synchronized again, or the mirror is paused,
    fractured or detached. ``failover``: a replica at a peer may take the source's place; then that asks it first after
    each start. ``rate_bytes_s``: what copies send that peer at most, from the first one on; 0: no limit.

    Raises InvalidArgument.
    """

    mode: str = "sync"
    rpo_s: float | None = None
    points: int | None = None
    points_age_s: float | None = None
    latency_budget_s: float | None = None
    backlog_bytes: int | None = None
    hold_down_s: float | None = None
    failed_copy_stops_host_io: bool = False
    failover: bool = True
    rate_bytes_s: int | None = None

    def __post_init__(self) -> None:
        RPO.check(self.rpo_s)
        POINTS.check(self.points)
        POINTS_AGE.check(self.points_age_s)
        LATENCY_BUDGET.check(self.latency_budget_s)
        BACKLOG.check(self.backlog_bytes)
        HOLD_DOWN.check(self.hold_down_s)
        check_rate(self.rate_bytes_s or 0)
        if self.copy_mode is CopyMode.SYNCHRONOUS and self.rpo_s is not None:
            raise InvalidArgument(
                "a synchronous mirror has no RPO: nothing that was acknowledged is missing at its target"
            )
        if self.copy_mode is not CopyMode.SYNCHRONOUS and self.failed_copy_stops_host_io:
            raise InvalidArgument(
                "a failed copy can stop the hosts of a synchronous mirror only: others fall behind anyway"
            )

    @property
    def copy_mode(self) -> CopyMode:
        return mode_of(self.mode)


USUAL, ASYNCHRONOUS = MirrorTerms(), MirrorTerms("async")
