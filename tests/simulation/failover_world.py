"""Two machines that are one disk: failovers, partitions, kills, losses of power, clocks of other rates, from one seed.

    python -m tests.simulation.failover_world --seed 1 --count 500

``tests.support.failover_site`` says what of it is real. A host writes wherever the disk is offered to it, one numbered
block after the other. An operator hands over, forces a failover (what is fenced has ended: its power is off), fails
back, resolves what waits for a decision, cuts and mends the link, and starts what has ended; the operator never lies.

What is checked
    * At no moment both machines offer the disk.
    * A replica that holds a lease has everything that was acknowledged.
    * A failover that is said to be without loss, and a planned one, loses nothing that was acknowledged.
    * One that accepts loss has everything that was acknowledged before the instant that ``--plan`` said.
    * What an old source alone had acknowledged is not overwritten without a decision of the operator.
    * After all faults have ended one machine offers the disk, the other one follows, and both are equal.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
import struct
import warnings
from typing import TYPE_CHECKING

from engine.catalog import MirrorRow
from engine.catalog_mirror_groups import MirrorGroupRow
from engine.catalog_peers import PeerTargetRow
from engine.errors import EngineError, InvalidState, NotFound
from engine.links import peer as peer_links
from engine.mirror_group import GroupRecord
from engine.mirror_record import MirrorPolicy, MirrorRecord
from engine.replica_table import GROUP_KEY, POLICY_KEY
from engine.units import KIB
from tests.simulation.mirror_world import Violation
from tests.support.failover_site import NAMES, Network, SimPeerLink, Site, SiteLoop

if TYPE_CHECKING:
    from engine.failover_units import Units

BLOCK = 4096
BLOCKS = 24
SIZE = 8 * 65536
TAG = struct.Struct("<Q")
BUDGET_S = 0.2
RPO_S = 1.0
CLOCK_SLACK_S = 0.2
"""Between the instants of two machines: rates, and what is under way."""


class FailoverWorld:
    """See the module. ``ACTIONS``: of ``disturb``. ``MODE``: None: any."""

    ACTIONS = tuple(range(12))
    MODE: str | None = None
    VOLUMES = 1
    """More: members of a mirrored group; each block of the disk is on another one than the block before."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.loop = SiteLoop(turns_max=3_000_000)
        self.network = Network(self.rng)
        self.sites = [Site(number, self.loop, self.network, self.rng, SIZE, self.VOLUMES) for number in range(2)]
        for site, other in zip(self.sites, reversed(self.sites), strict=True):
            site.other = other
        self.mode = self.MODE or self.rng.choice(("sync", "sync", "async", "adaptive"))
        self.number = 0
        self.acked: dict[int, tuple[int, float]] = {}
        """By block: the last number acknowledged in this history of the disk, and when."""
        self.log: dict[int, list[int]] = {}
        """By block: all numbers acknowledged in this history."""
        self.acked_at: list[dict[int, int]] = [{}, {}]
        """By machine: what it acknowledged since it became the disk or followed."""
        self.counts = dict.fromkeys(("planned", "lossless", "lossy", "failback", "resolved", "followed", "writes"), 0)
        self.over = False
        self.violations: list[Violation] = []
        self.promoted: dict[int, int] = {}
        """What the disk held by block when it changed places last."""

    # --- what the disk holds -----------------------------------------------------------------------------------------

    def numbers(self, site: Site) -> list[int]:
        data = [site.content(member) for member in range(self.VOLUMES)]
        return [
            TAG.unpack_from(data[block % self.VOLUMES], block // self.VOLUMES * BLOCK)[0] for block in range(BLOCKS)
        ]

    @property
    def kind(self) -> dict[str, bool]:
        """What is said with each command."""
        return {"group": self.VOLUMES > 1}

    def check_one(self) -> None:
        if self.violations:
            raise self.violations[0]
        if all(site.offers() for site in self.sites):
            raise Violation("both machines offer the disk")
        for site in self.sites:
            self.check_lease(site)

    def check_lease(self, site: Site) -> None:
        if not site.is_up or not site.is_ready:
            return
        with contextlib.suppress(NotFound, InvalidState):
            if site.failovers.holds_lease(site.failovers._units.target_named("r", **self.kind)):
                self.require(site, "holds the lease")

    def require(
        self,
        site: Site,
        what: str,
        before: float = float("inf"),
        acked: dict[int, tuple[int, float]] | None = None,
    ) -> None:
        """``acked``: by default what still counts, which is without what was accepted to be lost."""
        have = self.numbers(site)
        for block, (number, at) in (self.acked if acked is None else acked).items():
            if at < before and have[block] < number:
                raise Violation(f"{site.name} {what}, and block {block} has write {have[block]}, not {number}")

    # --- the host ----------------------------------------------------------------------------------------------------

    async def host(self) -> None:
        while not self.over:
            await asyncio.sleep(self.rng.random() * 0.01)
            usable = [site for site in self.sites if site.is_usable()]
            if usable:
                await self.write(usable[0])

    async def write(self, site: Site) -> None:
        self.number += 1
        number, block = self.number, self.rng.randrange(BLOCKS)
        life = site.life
        data = memoryview(TAG.pack(number) + bytes(BLOCK - TAG.size))
        site.writing += 1
        volume = site.members[block % self.VOLUMES]
        task = site.spawn(volume.write(block // self.VOLUMES * BLOCK, data))
        try:
            await asyncio.wait([task])
        finally:
            site.writing = max(0, site.writing - 1)
        if task.cancelled() or task.exception() is not None or life is None or life.over:
            return
        self.counts["writes"] += 1
        self.acked[block] = number, self.loop.time()
        self.acked_at[site.number][block] = number
        self.log.setdefault(block, []).append(number)
        self.check_one()

    # --- the operator ------------------------------------------------------------------------------------------------

    async def disturb(self) -> None:
        rng = self.rng
        match rng.choice(self.ACTIONS):
            case 0:
                self.network.cut = True
            case 1 | 2:
                self.network.cut = False
            case 3:
                site = rng.choice(self.sites)
                site.end(power_loss=rng.random() < 0.3 and not site.is_usable())
            case 12:
                for site in self.sites:
                    if self.is_replica(site):
                        site.end(power_loss=True)
                        await self.start(site)
            case 4 | 5 | 6:
                await self.start(rng.choice(self.sites))
            case 7:
                await self.fail_over(rng.choice(self.sites), planned=True)
            case 8:
                await self.fail_over(rng.choice(self.sites), planned=False)
            case 9:
                await self.fail_back(rng.choice(self.sites))
            case 10:
                await self.resolve(rng.choice(self.sites))
            case 11:
                self.network.delay_s = rng.choice((0.0001, 0.001, 0.01))

    async def start(self, site: Site) -> None:
        if not site.is_up:
            await site.start()

    async def done(self, site: Site, call) -> dict | None:
        """What a job of that machine's API returns; None: it was refused, or the machine ended."""

        async def run():
            job = await call
            await asyncio.wait([job.ended])
            return job.ended.result()

        try:
            task = site.spawn(run())
        except EngineError:
            call.close()
            return None
        await asyncio.wait([task], timeout=5.0)
        if not task.done():
            return None
        if task.cancelled() or isinstance(task.exception(), EngineError):
            return None
        return task.result()  # raises what is nobody's answer

    def is_replica(self, site: Site) -> bool:
        if not site.is_up or not site.is_ready:
            return False
        incoming = site.replicas.incoming
        return (incoming.named("r") if self.VOLUMES == 1 else incoming.group_point("r")) is not None

    async def fail_over(self, site: Site, *, planned: bool) -> None:
        if not self.is_replica(site):
            return
        if planned:
            if (
                await self.done(site, site.failovers.fail_over("r", accept_loss=False, fenced=False, **self.kind))
                is not None
            ):
                self.counts["planned"] += 1
            return
        site.other.end(power_loss=False)  # fenced
        await asyncio.sleep(self.rng.random() * BUDGET_S * self.rng.choice((0.1, 2)))
        if not self.is_replica(site):
            return
        planned_at = self.loop.time()
        plan, acked = site.failovers.plan("r", **self.kind), dict(self.acked)
        accept_loss = self.rng.random() < 0.6
        result = await self.done(site, site.failovers.fail_over("r", accept_loss=accept_loss, fenced=True, **self.kind))
        if result is None or "lossless" not in result:
            return
        if result["lossless"]:
            self.counts["lossless"] += 1
            return
        self.counts["lossy"] += 1
        if plan.age_seconds is not None and self.clock_is_known:
            until = planned_at - plan.age_seconds - CLOCK_SLACK_S
            self.require(site, "was said to be complete until then", until, acked)

    @property
    def clock_is_known(self) -> bool:
        """Whether the wall clocks agree: the plan of a replica that has heard nothing goes by the source's."""
        return abs(self.sites[0].clock.ahead_s - self.sites[1].clock.ahead_s) < CLOCK_SLACK_S / 2

    async def fail_back(self, site: Site) -> None:
        if site.is_usable() and await self.done(site, site.failovers.fail_back("r", **self.kind)) is not None:
            self.counts["failback"] += 1

    async def resolve(self, site: Site) -> None:
        """The operator knows which machine is the disk: where one is, or was last, the other one gives way."""
        if not site.is_up or not site.is_ready or site.fenced() is None:
            return
        if site.failovers._units.source("r", **self.kind) is None:
            return
        serve = not site.other.is_usable() and not site.other.is_up and self.last_disk is site
        if not serve and not site.other.is_usable():
            return
        if await self.decided(site, serve):
            self.counts["resolved"] += 1

    last_disk: Site | None = None

    async def decided(self, site: Site, serve: bool) -> bool:
        try:
            task = site.spawn(site.failovers.resolve("r", serve=serve, give_way=not serve, **self.kind))
        except EngineError:
            return False
        self.giving_way = None if serve else site
        await asyncio.wait([task], timeout=5.0)
        self.giving_way = None
        return task.done() and not task.cancelled() and task.exception() is None

    giving_way: Site | None = None

    # --- what happens inside, as it happens --------------------------------------------------------------------------

    def watch(self, site: Site) -> None:
        """Look at each exchange of roles in the step in which it happens."""
        units: Units = site.failovers._units
        follow, lead = units.now_replica, units.now_source

        def now_replica(unit, target):
            if self.giving_way is not site:
                self.seen(self.check_followed, site)
            self.counts["followed"] += 1
            follow(unit, target)

        def now_source(new, target, peers):
            lead(new, target, peers)
            self.seen(self.took_over, site)

        units.now_replica, units.now_source = now_replica, now_source

    def mirror(self, site: Site):
        if self.VOLUMES > 1:
            return site.replicas.groups.running_mirror("r")
        return site.replicas.mirror_of("r")

    def seen(self, check, site: Site) -> None:
        """In a step of the machine's own, which would take what is raised for an answer of its peer's."""
        try:
            check(site)
        except Violation as violation:
            self.violations.append(violation)

    def check_followed(self, site: Site) -> None:
        for block, number in self.acked_at[site.number].items():
            if self.promoted.get(block, 0) < number:
                raise Violation(f"{site.name} follows, and its write {number} of block {block} is nowhere else")
        self.acked_at[site.number] = {}

    def took_over(self, site: Site) -> None:
        have = self.numbers(site)
        self.promoted = dict(enumerate(have))
        lineage = site.failovers._lineages[site.volume.volume_id]
        if lineage[-1].lossless:
            self.require(site, "took over without loss")
        else:  # what is missing was accepted
            self.check_order(site, have)
            self.acked = {block: (min(number, have[block]), at) for block, (number, at) in self.acked.items()}
            self.log = {block: [n for n in numbers if n <= have[block]] for block, numbers in self.log.items()}
        self.last_disk = site
        self.acked_at[site.number] = {}

    def check_order(self, site: Site, have: list[int]) -> None:
        """The host writes one block after the other: what it has, it has with all before."""
        newest = max(have)
        for block, numbers in self.log.items():
            if any(have[block] < number <= newest for number in numbers):
                raise Violation(f"{site.name} took over a content that was none: {newest}, not block {block}")

    # --- a run -------------------------------------------------------------------------------------------------------

    async def life(self) -> None:
        a, b = self.sites
        for site in self.sites:
            start = site._start

            async def started(start=start, site=site):
                await start()
                self.watch(site)

            site._start = started
            await site.start()
        self.last_disk = a
        b.exposure.standby = True
        await asyncio.wait_for(a.spawn(self.make_mirror()), 30)
        host = asyncio.ensure_future(self.host())
        for _ in range(self.rng.randrange(6, 18)):
            await asyncio.sleep(self.rng.random() * self.rng.choice((0.02, 0.2, 1.0)))
            self.check_one()
            await self.disturb()
            if host.done():
                host.result()
        await self.settle()
        self.over = True
        await host
        self.check_one()
        disk = next(site for site in self.sites if site.is_usable())
        self.require(disk, "is the disk")
        await self.equal(disk)

    async def make_mirror(self) -> None:
        await make_mirror(*self.sites, self.mode)

    async def settle(self) -> None:
        """All faults end; the operator decides what has to be decided."""
        self.network.cut, self.network.delay_s = False, 0.0002
        for round_number in range(60):
            for site in self.sites:
                await self.start(site)
            await asyncio.sleep(0.3)
            self.check_one()
            if any(s.is_usable() and self.is_replica(s.other) for s in self.sites):
                return
            waiting = [site for site in self.sites if site.fenced() is not None]
            if any(site.is_usable() for site in self.sites):
                for site in waiting:
                    await self.decided(site, serve=False)
            elif round_number > 8 and self.last_disk in waiting:
                await self.decided(self.last_disk, serve=True)
        states = [(s.volume.fence_reason, s.exposure.standby, s.replicas._idle, self.is_replica(s)) for s in self.sites]
        raise Violation(f"nobody is the disk with the other one its replica: {states}")

    async def equal(self, disk: Site) -> None:
        for _ in range(60):
            mirror = self.mirror(disk)
            if mirror is not None:
                with contextlib.suppress(EngineError):
                    if mirror.is_at_rest:
                        await self.done(disk, disk.failovers.fail_back("r", **self.kind))
                        disk = next((site for site in self.sites if site.is_usable()), disk)
                    await asyncio.sleep(RPO_S)
                    if self.numbers(disk) == self.numbers(disk.other) and not mirror.is_at_rest:
                        return
            await asyncio.sleep(0.2)
            disk = next((site for site in self.sites if site.is_usable()), disk)
        mirror = self.mirror(disk)
        raise Violation(f"the two never become equal: {None if mirror is None else mirror.standing}")

    def run(self) -> None:
        try:
            self.loop.run_until_complete(self.life())
        finally:
            for site in self.sites:
                if site.life is not None:
                    site.life.over = True
            self.loop.close()
            if self.violations:
                raise self.violations[0]


def policy() -> MirrorPolicy:
    return MirrorPolicy(
        budget_s=BUDGET_S,
        queue_bytes=256 * KIB,
        rounds_max=20,
        mark_interval_s=0.1,
        rpo_s=RPO_S,
        hold_down_s=0.05,
        retry_s=0.02,
        retry_max_s=0.1,
    )


async def make_mirror(a: Site, b: Site, mode: str) -> None:
    """``a`` has the disk, ``b`` its replica ``r``."""
    replica_id = "11111111-1111-4111-8111-111111111111"
    target = PeerTargetRow(replica_id, NAMES[0], "r", b.volume.volume_id, "a", mode)
    await b.catalog.peers.put_target(target)
    b.replicas.incoming.adopt(target)
    b.exposure.standby = True
    state = MirrorRecord().serialize() | {POLICY_KEY: policy().serialize()}
    row = MirrorRow("r", a.volume.volume_id, replica_id, mode, state, NAMES[1])
    await a.catalog.put_mirror(row)
    a.replicas.table.rows["r"] = row
    await a.replicas.begin("r")
    await a.replicas.running("r").wait_synchronized(20)
    while not target_facts(b):  # noqa: ASYNC110 - another machine's
        await asyncio.sleep(0.05)


def target_facts(b: Site) -> bool:
    row = b.replicas.incoming.named("r")
    return row is not None and row.facts != ""


class GroupWorld(FailoverWorld):
    """The members of a mirrored group: one after the other is written, and they change places as one."""

    VOLUMES = 3

    async def make_mirror(self) -> None:
        a, b = self.sites
        ids = [f"{number:08}-1111-4111-8111-111111111111" for number in range(self.VOLUMES)]
        names, group_id = tuple(f"r.{number}" for number in range(self.VOLUMES)), "99999999-1111-4111-8111-111111111111"
        for replica_id, name, volume in zip(ids, names, b.members, strict=True):
            target = PeerTargetRow(replica_id, NAMES[0], name, volume.volume_id, volume.name, self.mode)
            await b.catalog.peers.put_target(target)
            b.replicas.incoming.adopt(target)
        for replica_id, name, volume in zip(ids, names, a.members, strict=True):
            row = MirrorRow(name, volume.volume_id, replica_id, self.mode, {GROUP_KEY: "r"}, NAMES[1])
            await a.catalog.put_mirror(row)
            a.replicas.table.rows[name] = row
        state = GroupRecord.new(self.VOLUMES).serialize() | {POLICY_KEY: policy().serialize()}
        group = MirrorGroupRow("r", "g", group_id, self.mode, NAMES[1], names, state)
        await a.replicas.groups._put(group)
        await a.replicas.groups.begin("r", a)
        await a.replicas.groups.get("r").wait_synchronized(20)
        while not all(b.replicas.incoming.named(name).facts for name in names):  # noqa: ASYNC110 - another machine's
            await asyncio.sleep(0.05)


class Planned(FailoverWorld):
    """The disk goes to and fro under an asynchronous mirror."""

    ACTIONS = (1, 7, 7, 9)
    MODE = "async"


class PowerLoss(FailoverWorld):
    """The replica of a synchronous mirror loses power, and has to take over."""

    ACTIONS = (0, 1, 5, 8, 12, 12)
    MODE = "sync"


def run(seed: int, kind: type[FailoverWorld] = FailoverWorld) -> FailoverWorld:
    """One seed. Raises Violation, with the line that replays it."""
    world = kind(seed)
    real, peer_links.PeerLink = peer_links.PeerLink, SimPeerLink
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tasks of dead processes never end
            world.run()
    except AssertionError as error:
        replay = f"python -m tests.simulation.failover_world --seed {seed} --count 1"
        raise Violation(f"{error}\nreplay: {replay}") from error
    finally:
        peer_links.PeerLink = real
    return world


def main() -> None:
    """Run many seeds, count what happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.failover_world")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--group", action="store_true", help="members of a mirrored group, not one volume")
    options = parser.parse_args()
    failures, totals = 0, {}
    for seed in range(options.seed, options.seed + options.count):
        try:
            world = run(seed, GroupWorld if options.group else FailoverWorld)
        except Violation as violation:
            failures += 1
            print(f"seed {seed}: {violation}")
        else:
            for name, count in world.counts.items():
                totals[name] = totals.get(name, 0) + count
    print(f"{options.count} seeds, {failures} failed; " + ", ".join(f"{name} {n}" for name, n in totals.items()))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # what tasks of dead processes have to say
    main()
