"""The lease's rules one by one; all together, with delays, losses and crashes, in tests/simulation/replica_world.py."""

import pytest

from engine.lease import ASKED_MAX, RATE_ERROR, SourceLease, TargetLease, length_s, wait_s


def test_a_target_holds_what_it_asked_for_from_its_own_question_on():
    target = TargetLease(2.0)
    number = target.ask(100.0)
    assert not target.held(100.0)
    target.granted(number)  # however late the answer is
    assert target.held(101.999)
    assert not target.held(102.0)


def test_an_older_answer_shortens_nothing():
    target = TargetLease(2.0)
    first, second = target.ask(100.0), target.ask(101.0)
    target.granted(second)
    target.granted(first)
    assert target.held(102.9)


def test_the_source_waits_longer_than_the_slowest_target_clock_holds_it():
    source, target = SourceLease(2.0), TargetLease(2.0)
    source.begin()
    target.granted(target.ask(0.0))
    assert source.grant(0.0)
    source_rate, target_rate = 1 + RATE_ERROR, 1 - RATE_ERROR
    true_end_at_target = 2.0 / target_rate
    assert source.over_at / source_rate >= true_end_at_target - 1e-9
    assert wait_s(length_s(1.0)) == pytest.approx(0.5), "half the budget"


def test_nothing_is_granted_before_it_is_synchronous_after_it_stops_or_while_a_host_waits():
    late = [False]
    source = SourceLease(2.0, lambda: late[0])
    assert not source.grant(1.0)
    source.begin()
    assert source.grant(2.0)
    late[0] = True
    assert not source.grant(3.0)
    late[0] = False
    assert source.grant(4.0)
    over_at = source.over_at
    source.stop()
    assert not source.grant(5.0)
    assert source.over_at == over_at
    source.released()
    assert source.over_at < 0


def test_a_demoted_target_takes_no_answer_that_was_on_its_way():
    target = TargetLease(2.0)
    number = target.ask(1.0)
    target.demoted()
    target.granted(number)
    assert not target.held(1.5)


def test_a_source_that_starts_waits_a_full_lease():
    source = SourceLease(2.0)
    source.assume(50.0)
    assert source.over_at == 50.0 + wait_s(2.0)


def test_questions_that_nobody_answers_do_not_pile_up():
    target = TargetLease(2.0)
    first = target.ask(0.0)
    for second in range(ASKED_MAX):
        target.ask(float(second))
    target.granted(first)
    assert not target.held(0.0)
