"""The simulation of a mirror to a disk without snapshots in every test run, and each of its rules removed in turn."""

from __future__ import annotations

import pytest

from engine.errors import EngineError
from tests.simulation.disk_world import run
from tests.simulation.mutations_of_disks import MUTATIONS


def test_a_mirror_to_a_disk_keeps_its_promises():
    worlds = [run(seed) for seed in range(30)]
    assert sum(world.synchronized for world in worlds) > len(worlds) * 2 // 3
    assert sum(world.verified for world in worlds) > len(worlds) // 4


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_without_the_rule_some_seed_fails(mutation, monkeypatch):
    mutation(monkeypatch)
    for seed in range(300):
        try:
            run(seed)
        except (AssertionError, EngineError):
            return
    pytest.fail("no seed noticed that the rule is missing")
