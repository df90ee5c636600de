"""The ordering test in every test run, and each rule of group operations removed in turn: some seed must notice.

``python -m tests.simulation.group_world --rounds 10000`` (``make sim-groups``) is the long run.
"""

import pytest

from tests.simulation.group_mutations import MUTATIONS, rounds_until_caught
from tests.simulation.group_world import run_seed


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, 41, 10))
def test_no_group_snapshot_has_a_later_write_without_the_earlier_one(first):
    for seed in range(first, first + 10):
        outcome = run_seed(seed)
        assert outcome.failure is None, (
            f"{outcome.failure}\nreplay: python -m tests.simulation.group_world --replay {seed}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_without_the_rule_some_seed_fails(name):
    rounds, failure = rounds_until_caught(name, seeds=120)
    assert failure is not None, f"{name} survived {rounds} group snapshots"
