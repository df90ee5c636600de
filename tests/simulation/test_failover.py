"""Two machines that are one disk, in every test run; and each rule of failing over removed in turn."""

import pytest

from tests.simulation.directed_failover import (
    AnswerLost,
    GroupReplaced,
    HandedOver,
    HeadFrozen,
    LeaseLeft,
    PowerLost,
    Told,
)
from tests.simulation.failover_world import FailoverWorld, GroupWorld, Planned, PowerLoss, run
from tests.simulation.mutations_of_failover import DIRECTED, MUTATIONS, notices

SEEDS = 120


@pytest.mark.parametrize("kind", [FailoverWorld, Planned, PowerLoss])
def test_one_machine_at_a_time_is_the_disk_and_nothing_is_lost_silently(kind):
    worlds = [run(seed, kind) for seed in range(12)]
    # The runs get where the promises are made.
    assert sum(world.counts["writes"] for world in worlds) > 1000
    assert sum(world.counts["followed"] for world in worlds) > 3


def test_a_mirrored_group_changes_places_as_one():
    worlds = [run(seed, GroupWorld) for seed in range(100, 106)]
    assert sum(world.counts["writes"] for world in worlds) > 500
    assert sum(world.counts["followed"] for world in worlds) > 1


@pytest.mark.parametrize(("mutation", "kind"), MUTATIONS.values(), ids=MUTATIONS.keys())
def test_without_the_rule_some_seed_fails(mutation, kind, monkeypatch):
    mutation(monkeypatch)
    assert any(notices(seed, kind) for seed in range(SEEDS)), "no seed noticed that the rule is missing"


@pytest.mark.parametrize("scene", [HandedOver, AnswerLost, Told, PowerLost, HeadFrozen, GroupReplaced, LeaseLeft])
def test_scenes_hold_and_come_to_what_they_are_for(scene):
    assert sum(run(seed, scene).counted for seed in range(5)) > 3


@pytest.mark.parametrize(("mutation", "scene"), DIRECTED.values(), ids=DIRECTED.keys())
def test_without_the_rule_its_scene_fails(mutation, scene, monkeypatch):
    mutation(monkeypatch)
    assert any(notices(seed, scene) for seed in range(20))
