"""When recovery points begin, what is forecast, when a mirror may be synchronous again: on a simulated clock."""

import random

import pytest

from engine.mirror_record import MirrorPolicy, RecoveryPoint, retained
from engine.modes import HEADROOM, HOLD_DOWN_DOUBLINGS, SHORTEST, STEADY_FACTOR, Cadence, ModeSwitch, Promise


def run(cadence: Cadence, *, fixed_s: float, share: float, rounds: int, jitter: float = 0.0, seed: int = 1):
    """A mirror whose rounds take ``fixed_s`` and so much of the interval that they bring over.

    Returns the lags in the moments before a recovery point was complete, and the intervals.
    """
    rng, now, last = random.Random(seed), 1000.0, 1000.0
    lags, intervals = [], []
    for _ in range(rounds):
        begin = max(now, cadence.next_start(last))
        duration = (fixed_s + share * (begin - last)) * (1 + jitter * rng.random())
        now = begin + duration
        lags.append(now - last)
        intervals.append(begin - last)
        cadence.observe(begin - last, duration)
        last = begin
    return lags, intervals


@pytest.mark.parametrize(("fixed_s", "share"), [(0.01, 0.0), (0.5, 0.0), (0.05, 0.3), (0.1, 0.8), (1.5, 0.2)])
def test_the_promise_is_kept_wherever_it_can_be(fixed_s, share):
    lags, intervals = run(Cadence(5.0), fixed_s=fixed_s, share=share, rounds=200, jitter=0.2)
    assert max(lags) <= 5.0
    assert sum(intervals) / len(intervals) >= 0.4, "and not by rounds without end"


def test_recovery_points_come_as_seldom_as_the_promise_allows():
    _, intervals = run(Cadence(30.0), fixed_s=0.2, share=0.01, rounds=50)
    assert min(intervals[1:]) > 30 * HEADROOM * 0.9, "each one costs snapshots on both sides"


def test_a_target_that_cannot_follow_is_foreseen_and_told_once():
    cadence, now, last = Cadence(5.0), 0.0, 0.0
    told = []
    for _ in range(6):
        begin = max(now, cadence.next_start(last))
        forecast = cadence.forecast(begin, last, started=begin)
        if cadence.judge(begin - last, forecast):
            told.append(cadence.promise)
        now = begin + 1.6 * (begin - last)
        if cadence.judge(now - last, now - last):
            told.append(cadence.promise)
        cadence.observe(begin - last, now - begin)
        last = begin
    assert told == [Promise.BROKEN] or told == [Promise.AT_RISK, Promise.BROKEN]
    assert cadence.forecast(now, last) > 5.0


def test_a_round_under_way_is_judged_by_its_own_speed():
    cadence = Cadence(10.0)
    cadence.observe(4.0, 1.0)
    assert cadence.forecast(100.0, 96.0, started=100.0) == pytest.approx(5.0)
    assert cadence.forecast(102.0, 96.0, started=100.0, progress=0.2) == pytest.approx(14.0), "2 s for a fifth"
    assert cadence.judge(6.0, 14.0)
    assert cadence.promise is Promise.AT_RISK


def test_an_alarm_ends_with_some_distance():
    cadence = Cadence(10.0)
    steps = [(11.0, 0.0), (9.5, 0.0), (9.5, 0.0), (8.0, 8.0), (8.0, 9.5), (8.0, 8.0)]
    promises = []
    for lag, forecast in steps:
        cadence.judge(lag, forecast)
        promises.append(cadence.promise)
    kept, broken = Promise.KEPT, Promise.BROKEN
    assert promises == [broken, broken, broken, kept, kept, kept]


def test_the_first_recovery_point_is_due_at_once():
    assert Cadence(30.0).next_start(None) < 0


def test_rounds_slower_than_the_promise_do_not_become_a_closed_loop():
    """The source may hold still from then on: then each next one is over at once."""
    cadence = Cadence(1.0)
    cadence.observe(0.4, 3.0)
    assert cadence.next_start(100.0) == 100.0 + SHORTEST


def test_a_switch_starts_out_allowed_and_holds_down_twice_as_long_each_time():
    switch, now = ModeSwitch(10.0, 100), 50.0
    assert switch.may_be_synchronous(now)
    held = []
    for _ in range(HOLD_DOWN_DOUBLINGS + 3):
        switch.returned(now)
        held.append(switch.left(now))
        switch.shipped(0)
        assert not switch.may_be_synchronous(now + held[-1] - 0.001)
        now += held[-1]
        assert switch.may_be_synchronous(now)
    assert held[:3] == [10, 20, 40]
    assert max(held) == held[-1] == 10 * 2**HOLD_DOWN_DOUBLINGS
    switch.returned(now)
    assert switch.left(now + STEADY_FACTOR * 10) == 10, "it has been steady"
    assert switch.switches == 2 * (HOLD_DOWN_DOUBLINGS + 4)


def test_a_switch_waits_for_a_round_that_was_short():
    switch = ModeSwitch(0.0, 100)
    switch.returned(1.0)
    switch.left(2.0)
    assert not switch.may_be_synchronous(1000.0), "nothing has shown that the target can follow"
    switch.shipped(101)
    assert not switch.may_be_synchronous(1000.0)
    switch.shipped(100)
    assert switch.may_be_synchronous(1000.0)


def test_recovery_points_stay_within_count_and_age_and_the_newest_always():
    points = tuple(RecoveryPoint(str(n), 100.0 * n) for n in range(6))

    def guids(policy: MirrorPolicy, now: float) -> str:
        return "".join(point.guid for point in retained(points, policy, now))

    assert guids(MirrorPolicy(), 500.0) == "5"
    assert guids(MirrorPolicy(points_max=3), 500.0) == "345"
    assert guids(MirrorPolicy(points_max=9, points_age_s=150.0), 500.0) == "45"
    assert guids(MirrorPolicy(points_max=9, points_age_s=1.0), 9000.0) == "5"
