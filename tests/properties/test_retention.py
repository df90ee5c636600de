"""What a retention keeps: the rules, and what no clock may change."""

import datetime
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidArgument
from engine.names import check_name
from engine.retention import (
    DAY_S,
    HOUR_S,
    WEEK_S,
    Point,
    Retention,
    check_interval,
    is_due,
    judge,
    name_at,
    slot_of,
    slot_start,
)

NOON = datetime.datetime(2026, 11, 21, 12, 0, 0, tzinfo=datetime.UTC).timestamp()  # a Saturday

numbers = st.integers(0, 6)
retentions = st.builds(
    lambda *counts: Retention(*counts) if any(counts) else Retention(1), numbers, numbers, numbers, numbers
)
instants = st.floats(0, 4e9) | st.integers(0, 400).map(lambda quarter: NOON + quarter * HOUR_S / 4)


@st.composite
def histories(draw, *, ordered=False, bound=True):
    times = draw(st.lists(instants, max_size=60))
    return [
        Point(f"s{number}", at, draw(st.integers(0, 5)) > 0, "held" if bound and draw(st.integers(0, 9)) == 0 else "")
        for number, at in enumerate(sorted(times) if ordered else times)
    ]


def kept(points, retention, **options):
    stays = {verdict.name for verdict in judge(points, retention, **options) if verdict.stays}
    return [point for point in points if point.name in stays]


@given(histories(), retentions, st.booleans())
def test_every_snapshot_is_judged_once_and_has_a_reason_to_stay(points, retention, manual):
    verdicts = judge(points, retention, manual=manual)
    assert [verdict.name for verdict in verdicts] == [point.name for point in points]
    assert all(verdict.stays == bool(verdict.reasons) for verdict in verdicts)


@given(histories(), retentions)
def test_what_users_made_or_what_is_bound_stays(points, retention):
    stays = kept(points, retention)
    assert all(point in stays for point in points if point.bound or not point.scheduled)


@given(histories(), retentions, st.booleans())
def test_the_ones_made_last_stay_whatever_their_clocks_say(points, retention, manual):
    judged = [point for point in points if manual or point.scheduled]
    stays = kept(points, retention, manual=manual)
    assert all(point in stays for point in judged[len(judged) - retention.keep_last :] if retention.keep_last)
    assert all(point in stays for point in judged[-1:])


@given(histories(bound=False), retentions)
def test_no_more_stay_than_the_rules_say(points, retention):
    judged = [point for point in points if point.scheduled]
    stays = [point for point in kept(points, retention) if point.scheduled]
    most = retention.keep_last + retention.hourly + retention.daily + retention.weekly
    assert len(stays) <= most
    for length, count in ((HOUR_S, retention.hourly), (DAY_S, retention.daily), (WEEK_S, retention.weekly)):
        slots = {slot_of(point.created_at, length) for point in judged}
        assert len({slot_of(point.created_at, length) for point in stays}) >= min(count, len(slots))


@given(histories(), retentions, st.booleans())
def test_judging_what_stayed_again_takes_nothing_more(points, retention, manual):
    stays = kept(points, retention, manual=manual)
    assert kept(stays, retention, manual=manual) == stays


@given(histories(ordered=True, bound=False), retentions)
def test_pruning_after_each_snapshot_ends_as_pruning_once(points, retention):
    stays = []
    for point in points:
        stays = kept([*stays, point], retention)
    assert stays == kept(points, retention)


@given(histories(), retentions, numbers)
def test_keeping_more_never_loses_one(points, retention, more):
    wider = Retention(
        retention.keep_last + more, retention.hourly + more, retention.daily + more, retention.weekly + more
    )
    assert set(kept(points, retention)) <= set(kept(points, wider))


@given(histories(), retentions, st.integers(-50, 50))
def test_a_clock_that_is_whole_weeks_off_changes_nothing(points, retention, weeks):
    moved = [
        Point(each.name, float(int(each.created_at) + weeks * WEEK_S), each.scheduled, each.bound) for each in points
    ]
    whole = [Point(each.name, float(int(each.created_at)), each.scheduled, each.bound) for each in points]
    assert judge(moved, retention) == judge(whole, retention)


@given(histories(ordered=True, bound=False), retentions, st.floats(4.1e9, 9e9))
def test_one_snapshot_from_a_wrong_future_takes_one_place_at_most_of_each_rule(points, retention, future):
    wrong = [*points[:-1], Point("wrong", future, True), *points[-1:]]
    lost = {point.name for point in kept(points, retention)} - {point.name for point in kept(wrong, retention)}
    assert len(lost) <= 4


def test_an_ordinary_week():
    points = [Point(f"h{hour}", NOON - (200 - hour) * HOUR_S, True) for hour in range(201)]
    verdicts = {each.name: each.reasons for each in judge(points, Retention(2, 4, 3, 2)) if each.stays}
    assert verdicts == {
        "h67": ["weekly"],  # Sunday 23:00
        "h163": ["daily"],  # Thursday 23:00
        "h187": ["daily"],  # Friday 23:00
        "h197": ["hourly"],
        "h198": ["hourly"],
        "h199": ["last", "hourly"],
        "h200": ["last", "hourly", "daily", "weekly"],
    }


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (-1, 1, 1, 1), (100_001, 0, 0, 0)])
def test_retentions_that_make_no_sense(counts):
    with pytest.raises(InvalidArgument):
        Retention(*counts)


@pytest.mark.parametrize("interval", [0, 59, 367 * DAY_S])
def test_intervals_that_make_no_sense(interval):
    with pytest.raises(InvalidArgument):
        check_interval(interval)


@given(st.floats(0, 1e11), st.integers(60, WEEK_S))
def test_an_instant_lies_in_its_slot(instant, interval):
    slot = slot_of(instant, interval)
    assert slot_start(slot, interval) <= instant < slot_start(slot + 1, interval)


def test_slots_begin_with_hours_days_and_weeks():
    monday = datetime.datetime(2026, 11, 16, tzinfo=datetime.UTC).timestamp()
    assert slot_start(slot_of(NOON, WEEK_S), WEEK_S) == monday
    assert slot_start(slot_of(NOON + 61, 15 * 60), 15 * 60) == NOON
    assert slot_start(slot_of(NOON, DAY_S), DAY_S) == NOON - DAY_S / 2


@pytest.mark.parametrize(
    ("last", "now", "due"), [(7, 7, False), (7, 8, True), (7, 900, True), (7, 6, False), (7, 5, True), (7, -900, True)]
)
def test_when_a_schedule_is_due(last, now, due):
    assert is_due(last, now) is due


@given(st.floats(0, 2.5e11), st.integers(0, 5))
def test_names_are_times_within_the_rules_for_names(instant, clashes):
    taken = set()
    for _ in range(clashes + 1):
        name = name_at(instant, taken)
        assert name not in taken
        assert re.fullmatch(r"auto-\d{4}-\d\d-\d\d-\d{6}(-\d)?", check_name("snapshot", name))
        taken.add(name)
    assert name_at(NOON, ()) == "auto-2026-11-21-120000"
