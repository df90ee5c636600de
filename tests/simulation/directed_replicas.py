"""Scenes for rules of mirrors that seeds of ``mirror_world`` and ``replica_world`` seldom put to the test.

Each plays one course of events on purpose, with the worlds' own checks. ``mutations_of_replicas.py`` removes the rules.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

from engine.copy_state import CopyMode, CopyState
from engine.errors import EngineError
from engine.lease import RATE_ERROR, length_s
from tests.simulation.mirror_world import World
from tests.simulation.replica_world import PREFIX, RPO_S, ReplicaWorld
from tests.support.memory_store import CHUNK
from tests.support.sim_link import TargetMachine


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


class Leased(ReplicaWorld):
    """A synchronous mirror, again and again with a target that holds a lease: long ones, of which 1 % can be seen."""

    scenes = 0

    def make(self) -> None:
        super().make()
        self.policy = replace(self.policy, budget_s=1.0)
        self.machine = TargetMachine(self.stores["target"], PREFIX, length_s(1.0), self.rng)

    async def write(self) -> None:
        await World.write(self)
        self.check_claim()

    async def life(self) -> None:
        self.mode = CopyMode.SYNCHRONOUS
        self.pause = 0.001
        self.trouble = {"source": 0.0, "target": 0.0}
        self.machine.rate = 1 - RATE_ERROR * 0.99  # it holds its leases for as long as a clock may be wrong
        await self.open()
        await self.mirror.start()
        for _ in range(4):
            self.link.stalled, self.link.delay_s = False, self.rng.choice((0.0001, 0.004))
            self.trouble["target"] = 0.0
            await self.settle()
            while not self.machine.holds_lease(self.loop.time()):  # noqa: ASYNC110 - another machine's
                await asyncio.sleep(0.001)
            await self.scene()
            self.scenes += 1

    async def scene(self) -> None:
        raise NotImplementedError

    async def write_on(self, seconds: float) -> None:
        ends = self.loop.time() + seconds
        while self.loop.time() < ends:
            with contextlib.suppress(EngineError):
                await self.write()
            await asyncio.sleep(0.004)


class LeaseWaitedOut(Leased):
    """Nobody can tell the target to claim nothing any more."""

    async def scene(self) -> None:
        await asyncio.sleep(self.rng.random() * self.machine.lease_s)
        self.link.stalled = True
        await self.write_on(2 * self.machine.lease_s)


class TargetRefuses(Leased):
    """The target is told so at once, and answers to what it has asked for are still on their way."""

    async def scene(self) -> None:
        await asyncio.sleep(self.rng.random() * self.machine.lease_s)
        self.trouble["target"] = 1.0
        await self.write_on(2 * self.machine.lease_s)
