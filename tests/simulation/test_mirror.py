"""The mirror's simulation in every test run, and each of its rules removed in turn: some seed must notice."""

from __future__ import annotations

import pytest

from tests.simulation.mirror_world import NativeWorld, World, run
from tests.simulation.mutations_of_replicas import notices
from tests.simulation.mutations_of_streams import MUTATIONS


@pytest.mark.parametrize("kind", [World, NativeWorld])
def test_a_synchronous_mirror_keeps_its_promises(kind):
    worlds = [run(seed, kind) for seed in range(30)]
    # The runs get where the promises are made; on the native store, with its maps to be read, half as often.
    assert sum(world.synchronized for world in worlds) > len(worlds) * 2 // 3
    assert sum(world.verified for world in worlds) > len(worlds) // 4


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_without_the_rule_some_seed_fails(mutation, monkeypatch):
    mutation(monkeypatch)
    assert any(notices(seed, World) for seed in range(200)), "no seed noticed that the rule is missing"
