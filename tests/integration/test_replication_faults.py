"""A few of each fault that a mirror must survive, with real daemons; the long run is by hand, see the module."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.integration.replication_faults import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_faults_of_a_synchronous_mirror(tmp_path: Path):
    seed = random.SystemRandom().randrange(1, 1 << 32)
    print(f"python -m tests.integration.replication_faults --seed {seed} --kills 2 --disconnects 5 --others 1")
    rows = await run(tmp_path, seed, kills=2, disconnects=5, others=1, modes=["sync"])
    assert not any(row.failures for row in rows.values())
