"""Mirrors of all modes behind a link that fails, in every test run; and each of their rules removed in turn."""

import asyncio
from dataclasses import replace

import pytest

from engine.copy_state import CopyMode, CopyState
from engine.mirror_round import Rounds
from tests.simulation.mirror_world import World, run
from tests.simulation.mutations_of_replicas import DIRECTED, MUTATIONS, THINNED, notices
from tests.simulation.replica_world import RPO_S, ReplicaWorld
from tests.support.memory_store import CHUNK

SEEDS = 300


def test_mirrors_of_all_modes_keep_their_promises():
    worlds = [run(seed, ReplicaWorld) for seed in range(40)]
    # The runs get where the promises are made.
    assert len({world.mode for world in worlds}) == 3
    assert sum(world.exact for world in worlds) > len(worlds) // 2
    assert sum(world.leased for world in worlds) > len(worlds) // 4
    assert sum(world.points_seen for world in worlds) > len(worlds)


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_without_the_rule_some_seed_fails(mutation, monkeypatch):
    mutation(monkeypatch)
    assert any(notices(seed) for seed in range(SEEDS)), "no seed noticed that the rule is missing"


class Stalled(ReplicaWorld):
    """The target stops answering, and nobody is told."""

    async def life(self) -> None:
        self.pause = 0.001
        self.trouble = {"source": 0.0, "target": 0.0}
        await self.open()
        await self.mirror.start()
        await self.write()
        await self.mirror.wait_synchronized(timeout_s=10)
        self.link.stalled = True
        for _ in range(3):
            await self.write()
            self.check_order()
        await asyncio.sleep(RPO_S * 2)
        self.check_order()
        assert not self.mirror.figures.is_exact
        if self.mode is CopyMode.SYNCHRONOUS:
            assert self.mirror.standing.state is CopyState.BROKEN
        await self.settle()
        await self.verify()


def test_a_target_that_stalls_costs_a_write_no_more_than_the_budget_and_is_not_called_current():
    assert {run(seed, Stalled).mode for seed in range(12)} == set(CopyMode)


@pytest.mark.parametrize("mutation", DIRECTED.values(), ids=DIRECTED.keys())
def test_without_the_rule_a_stalled_target_is_too_slow_called_current_or_given_up(mutation, monkeypatch):
    mutation(monkeypatch)
    assert any(notices(seed, Stalled) for seed in range(12))


class Thinned(World):
    """The target is away for long, and what its common point holds back is given back again and again."""

    async def life(self) -> None:
        rng = self.rng
        self.pause = 0.001
        await self.open()
        await self.mirror.start()
        for _ in range(rng.randrange(1, 4)):
            await self.settle()
            await self.mirror.fracture()
            for _ in range(rng.randrange(1, 4)):
                self.ending = False
                host = asyncio.ensure_future(self.host())
                await asyncio.sleep(rng.random() * 0.01)
                if rng.random() < 0.6:
                    await self.resize()
                await self.mirror.thin(0)
                self.ending = True
                await host
                if rng.random() < 0.1:
                    return  # killed here
            await self.again()
            await self.verify()
        self.thinned = True

    thinned = False


def test_what_changed_is_known_without_the_data_of_the_common_point():
    worlds = [run(seed, Thinned) for seed in range(30)]
    assert sum(world.thinned for world in worlds) > 20


class Slow(ReplicaWorld):
    """The target of an asynchronous mirror takes longer for a round than the source may hold back for."""

    moved = 0

    async def life(self) -> None:
        self.mode = CopyMode.ASYNCHRONOUS
        self.pause = 0.0005
        await self.open()
        rounds = self.mirror._rounds
        real = rounds._move_on

        async def move_on(*arguments):
            self.moved += 1
            return await real(*arguments)

        rounds._move_on = move_on
        await self.mirror.start()
        await self.settle()
        self.link.delay_s = 0.003
        host = asyncio.ensure_future(self.host())
        for _ in range(60):
            await asyncio.sleep(self.rng.random() * 0.03)
            await self.mirror.thin(4 * CHUNK)
            self.check_order()
        self.ending = True
        await host
        await self.verify()


def test_a_slow_target_pins_no_more_than_it_may_and_gets_on():
    worlds = [run(seed, Slow) for seed in range(4)]
    assert sum(world.moved for world in worlds) > 4
    assert sum(world.points_seen for world in worlds) > 4


def _forget_what_changed_since(patch) -> None:
    """What the staging area has of the older instant is taken for the newer one's."""
    real = Rounds._move_on

    async def move_on(self, source, plan, common):
        newer, _ = await real(self, source, plan, common)
        return newer, replace(plan, written=True, moved=True)

    patch.setattr(Rounds, "_move_on", move_on)


def test_without_what_changed_since_the_newer_instant_would_be_none(monkeypatch):
    _forget_what_changed_since(monkeypatch)
    assert any(notices(seed, Slow) for seed in range(40))


@pytest.mark.parametrize("mutation", THINNED.values(), ids=THINNED.keys())
def test_without_the_rule_a_change_is_missed_after_thinning(mutation, monkeypatch):
    mutation(monkeypatch)
    assert any(notices(seed, Thinned) for seed in range(120))
