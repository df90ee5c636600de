"""A fixed set of lives in every test run; ``make sim SEED= N=`` runs as many as wanted."""

import pytest

from tests.simulation.life import run_seed


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, 161, 20))
def test_lives_with_crashes_keep_every_promise(first):
    for seed in range(first, first + 20):
        outcome = run_seed(seed)
        assert outcome.failure is None, f"{outcome.failure}\nreplay: python -m tests.simulation --replay {seed}"
