"""Scenes for rules of failing over that seeds of ``failover_world`` seldom put to the test.

Each plays one course of events on purpose, with the worlds' own checks; what is random is how long things take.
``mutations_of_failover.py`` removes the rules.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.simulation.failover_world import BLOCKS, FailoverWorld, GroupWorld
from tests.support.failover_site import NAMES

if TYPE_CHECKING:
    from tests.support.failover_site import Site


class Scene(FailoverWorld):
    """Two machines, of which ``a`` has the disk and ``b`` its replica; then ``scene``."""

    MODE = "async"
    counted = 0
    """Scenes that came to what they are for."""

    async def life(self) -> None:
        a, b = self.sites
        for site in self.sites:
            site.clock.ahead_s = 0.0
            await site.start()
            self.watch(site)
        self.last_disk = a
        b.exposure.standby = True
        await asyncio.wait_for(a.spawn(self.make_mirror()), 30)
        await self.scene()
        self.over = True

    async def scene(self) -> None:
        raise NotImplementedError

    async def write_some(self, count: int) -> None:
        for _ in range(count):
            await self.write(self.sites[0])

    async def lose(self, site: Site) -> None:
        """The operator accepts a loss, as often as it takes."""
        while not self.counts["lossy"] and self.is_replica(site):
            await self.fail_over(site, planned=False)


class HandedOver(Scene):
    """What was written since the last recovery point comes along."""

    async def scene(self) -> None:
        await self.write_some(self.rng.randrange(1, BLOCKS))
        await self.fail_over(self.sites[1], planned=True)
        self.counted += self.counts["planned"]
        self.check_one()


class AnswerLost(Scene):
    """The target takes over, and the source never hears of it."""

    async def scene(self) -> None:
        a, b = self.sites
        await self.write_some(3)
        real = b.failovers.promote

        async def promote(*arguments):
            found = await real(*arguments)
            self.network.cut = True
            return found

        b.failovers.promote = promote
        asking = asyncio.ensure_future(self.fail_over(b, planned=True))
        for _ in range(200):
            await asyncio.sleep(0.01)
            self.check_one()
        await asking
        self.counted += b.is_usable() and not a.is_usable()


class Told(Scene):
    """A round takes long over a slow link, and what was written meanwhile is missing; the plan says so."""

    async def scene(self) -> None:
        a, b = self.sites
        self.network.delay_s = 0.1
        ends = self.loop.time() + 4 + 2 * self.rng.random()
        while self.loop.time() < ends:
            await self.write_some(1)
            await asyncio.sleep(0.01)
        self.network.cut = True
        await self.write_some(BLOCKS)
        await self.lose(b)
        self.counted += self.counts["lossy"] > 0
        assert not a.is_up


class PowerLost(Scene):
    """The source ends, and then the replica of a synchronous mirror loses power with writes that nobody has flushed."""

    MODE = "sync"

    async def scene(self) -> None:
        a, b = self.sites
        await self.write_some(3 * BLOCKS)
        a.end(power_loss=False)
        b.end(power_loss=True)
        await b.start()
        self.watch(b)
        await self.lose(b)
        self.counted += self.counts["lossy"] > 0


class HeadFrozen(Scene):
    """The replica has lost power; a round has begun from what is left of its content, and goes no further."""

    MODE = "sync"

    async def scene(self) -> None:
        a, b = self.sites
        await self.write_some(3 * BLOCKS)
        b.end(power_loss=True)
        self.network.delay_s = 0.005
        await b.start()
        self.watch(b)
        for _ in range(1000):  # unless nothing was lost
            if any(".head." in point.name for point in b.volume.head.store.snapshots()):
                break
            await asyncio.sleep(0.001)
        self.network.cut = True
        a.end(power_loss=False)
        await self.lose(b)
        self.counted += self.counts["lossy"] > 0


class GroupReplaced(Scene, GroupWorld):
    """The sources of a group hear over their mirror that its targets have taken their place."""

    MODE = "sync"

    async def scene(self) -> None:
        a, _ = self.sites
        await self.write_some(BLOCKS)
        unit = a.failovers._units.source("r", group=True)
        assert unit is not None
        a.failovers.superseded(NAMES[1], unit.key)
        self.counted += 1
        assert not a.offers(), "a member is served, and another one has taken its place"


class LeaseLeft(Scene, GroupWorld):
    """One member's lease is over, as its link goes first; what was acknowledged since may be missing there."""

    MODE = "sync"

    async def scene(self) -> None:
        _, b = self.sites
        await self.write_some(BLOCKS)
        unit = b.failovers._units.target_named("r", group=True)
        for _ in range(100):
            if b.failovers.holds_lease(unit):
                break
            await asyncio.sleep(0.02)
        self.counted += b.failovers.holds_lease(unit)
        unit.replicas[-1].lease.demoted()
        assert not b.failovers.holds_lease(unit), "a group is said to have everything without one member's lease"
        assert not b.failovers._is_whole(unit), "members of different instants are taken for one content"
