"""When a schedule takes a snapshot, what it is called, and which snapshots a retention keeps: pure functions.

Time is UTC, cut into *slots* of the schedule's interval from a Monday at midnight on, so that an interval that divides
an hour, a day or a week begins with it. Daylight saving does not exist here.

A retention keeps the newest ``keep_last`` snapshots, and of each of the newest so many hours, days and weeks *that
have a snapshot* the newest one. "Newest" is the order in which they were made, which the store knows, never a
comparison of clocks; and nothing is compared with the present. So whatever the clock did while snapshots were made, the
ones made last stay, one from a wrong future takes one place at most in each rule, and a pool that was switched off for
a year loses nothing when it comes back.
"""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

HOUR_S = 3600
DAY_S = 24 * HOUR_S
WEEK_S = 7 * DAY_S
FIRST_MONDAY = 4 * DAY_S
"""Seconds since the epoch, which was a Thursday."""
MIN_INTERVAL_S = 60
MAX_INTERVAL_S = 366 * DAY_S
MAX_KEPT = 100_000
NAME_PREFIX = "auto-"


@dataclass(frozen=True, slots=True)
class Retention:
    """How many snapshots stay by each rule. Raises InvalidArgument where none would."""

    keep_last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0

    def __post_init__(self) -> None:
        numbers = (self.keep_last, self.hourly, self.daily, self.weekly)
        if not all(0 <= number <= MAX_KEPT for number in numbers):
            raise InvalidArgument(f"a retention keeps 0 to {MAX_KEPT} snapshots by each rule")
        if not any(numbers):
            raise InvalidArgument("a retention that keeps nothing makes no sense; say how many are to stay")


@dataclass(frozen=True, slots=True)
class Point:
    """A snapshot as a retention sees it. ``bound``: why it cannot go, in words; empty when it can."""

    name: str
    created_at: float
    scheduled: bool
    bound: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a snapshot stays, and by which rules."""

    name: str
    stays: bool
    reasons: list[str] = field(default_factory=list)


def judge(points: Sequence[Point], retention: Retention, *, manual: bool = False) -> list[Verdict]:
    """What stays of a volume's snapshots, in the order of their making (oldest first), and why.

    Snapshots that users made stay, unless ``manual``: then the rules are for all alike.
    """
    judged = [manual or point.scheduled for point in points]
    newest_first = [index for index in reversed(range(len(points))) if judged[index]]
    reasons: dict[int, list[str]] = {index: [] for index in newest_first}
    for index in newest_first[: retention.keep_last]:
        reasons[index].append("last")
    for word, length_s, count in (
        ("hourly", HOUR_S, retention.hourly),
        ("daily", DAY_S, retention.daily),
        ("weekly", WEEK_S, retention.weekly),
    ):
        for index in _newest_of_each(newest_first, lambda i: slot_of(points[i].created_at, length_s), count):  # noqa: B023
            reasons[index].append(word)
    verdicts = []
    for index, point in enumerate(points):
        why = list(reasons[index]) if judged[index] else ["made by hand"]
        if point.bound:
            why.append(point.bound)
        verdicts.append(Verdict(point.name, bool(why), why))
    return verdicts


def _newest_of_each(newest_first: Sequence[int], slot: Callable[[int], int], count: int) -> list[int]:
    """The newest of each of the ``count`` slots that come first."""
    found: dict[int, int] = {}
    for index in newest_first:
        if len(found) == count:
            break
        found.setdefault(slot(index), index)
    return list(found.values())


def slot_of(instant: float, interval_s: int) -> int:
    """The number of the slot that an instant lies in."""
    return math.floor((instant - FIRST_MONDAY) / interval_s) if math.isfinite(instant) else 0


def slot_start(slot: int, interval_s: int) -> float:
    """Seconds since the epoch."""
    return float(FIRST_MONDAY + slot * interval_s)


def is_due(last: int, now: int) -> bool:
    """Whether a schedule is to take a snapshot in slot ``now`` after one in slot ``last``.

    However many slots were missed, it is one. A clock that was put back a little does not repeat a slot; one that was
    put back by more than a slot was wrong before, and must not silence the schedule until it is there again.
    """
    return now > last or now < last - 1


def name_at(instant: float, taken: Collection[str]) -> str:
    """The name of a scheduled snapshot: auto-2026-11-21-093000, in UTC; with a number behind it when it is taken."""
    stamp = datetime.datetime.fromtimestamp(instant, datetime.UTC).strftime(NAME_PREFIX + "%Y-%m-%d-%H%M%S")
    if stamp not in taken:
        return stamp
    return next(name for number in range(2, len(taken) + 3) if (name := f"{stamp}-{number}") not in taken)


def check_interval(interval_s: int) -> int:
    """``interval_s`` when a schedule may have it. Raises InvalidArgument."""
    if not MIN_INTERVAL_S <= interval_s <= MAX_INTERVAL_S:
        raise InvalidArgument(f"a schedule's interval is {MIN_INTERVAL_S} seconds to {MAX_INTERVAL_S // DAY_S} days")
    return interval_s
