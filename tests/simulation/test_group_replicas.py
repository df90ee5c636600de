"""Mirrored groups behind links that fail, in every test run; and each of their rules removed in turn."""

import pytest

from tests.simulation.group_replica_world import GroupReplicaWorld
from tests.simulation.mirror_world import run
from tests.simulation.mutations_of_group_replicas import MUTATIONS, notices

SEEDS = 120


def test_mirrored_groups_are_one_instant():
    worlds = [run(seed, GroupReplicaWorld) for seed in range(30)]
    assert len({world.mode for world in worlds}) == 3
    assert sum(world.exact for world in worlds) > len(worlds) // 2
    assert sum(world.leased for world in worlds) > len(worlds) // 4
    assert sum(world.points_seen for world in worlds) > len(worlds)


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_without_the_rule_some_seed_fails(mutation, monkeypatch):
    mutation(monkeypatch)
    assert any(notices(seed) for seed in range(SEEDS)), "no seed noticed that the rule is missing"
