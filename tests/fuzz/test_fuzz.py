"""A short run of every harness; ``python -m tests.fuzz`` runs them for as long as you like."""

import pytest

from tests.fuzz.harnesses import HARNESSES
from tests.fuzz.run import run_one

COUNT = 150


@pytest.mark.parametrize("name", HARNESSES)
async def test_harness(name):
    for seed in range(COUNT):
        await run_one(name, seed)
