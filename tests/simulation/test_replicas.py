"""Mirrors of all modes behind a link that fails, in every test run; and each of their rules removed in turn."""

import pytest

from engine.copy_state import CopyMode
from tests.simulation.directed_replicas import LeaseWaitedOut, Slow, Stalled, TargetRefuses, Thinned
from tests.simulation.mirror_world import run
from tests.simulation.mutations_of_replicas import DIRECTED, MUTATIONS, notices
from tests.simulation.replica_world import ReplicaWorld

SEEDS = 300


def test_mirrors_of_all_modes_keep_their_promises():
    worlds = [run(seed, ReplicaWorld) for seed in range(40)]
    # The runs get where the promises are made.
    assert len({world.mode for world in worlds}) == 3
    assert sum(world.exact for world in worlds) > len(worlds) // 2
    assert sum(world.leased for world in worlds) > len(worlds) // 4
    assert sum(world.lags_of_content for world in worlds) > len(worlds) // 4
    assert sum(world.points_seen for world in worlds) > len(worlds)


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_without_the_rule_some_seed_fails(mutation, monkeypatch):
    mutation(monkeypatch)
    assert any(notices(seed) for seed in range(SEEDS)), "no seed noticed that the rule is missing"


def test_a_target_that_stalls_costs_a_write_no_more_than_the_budget_and_is_not_called_current():
    assert {run(seed, Stalled).mode for seed in range(12)} == set(CopyMode)


def test_what_changed_is_known_without_the_data_of_the_common_point():
    worlds = [run(seed, Thinned) for seed in range(30)]
    assert sum(world.thinned for world in worlds) > 20


def test_a_slow_target_pins_no_more_than_it_may_and_gets_on():
    worlds = [run(seed, Slow) for seed in range(4)]
    assert sum(world.moved for world in worlds) > 4
    assert sum(world.points_seen for world in worlds) > 4


@pytest.mark.parametrize(("mutation", "scene", "seeds"), DIRECTED.values(), ids=DIRECTED.keys())
def test_without_the_rule_its_scene_fails(mutation, scene, seeds, monkeypatch):
    mutation(monkeypatch)
    assert any(notices(seed, scene) for seed in range(seeds))


@pytest.mark.parametrize("scene", [LeaseWaitedOut, TargetRefuses])
def test_scenes_of_the_lease_hold(scene):
    assert sum(run(seed, scene).scenes for seed in range(2)) > 4
