"""A synchronous mirror to a disk without snapshots, with its activity log, from one seed.

    python -m tests.simulation.disk_world --seed 1 --count 2000          as many seeds as wanted

``mirror_world.World`` with another target: a disk that carries out commands in any order, has a cache that power loss
empties, fails, is slow, goes and comes back, by itself or together with the source. While the mirror is fractured its
owner writes to it. The log is a file on the source's simulated machine: at a power loss each write of it that was not
synced is there, not there, or torn.

What is checked beside what ``mirror_world`` says
    * The disk is write-order consistent whenever the link says that it is whole; while a round runs it is not.
    * ``verify`` has no false alarms while hosts write: what was written meanwhile is told as unverified.
    * After every crash of either side, and the next Synchronized, both sides are equal: nothing that differs was
      outside of the marked regions.

``test_disk.py`` removes the rules of ``engine.activity_log`` and ``engine.links.disk`` one by one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
from pathlib import Path

from engine import activity_log as log
from engine.copy_state import CopyState
from engine.errors import EngineError, InvalidState
from engine.links.disk import DiskLink
from engine.mirror import Mirror
from engine.mirror_record import MirrorRecord
from engine.units import KIB, SECTOR_SIZE
from engine.volume import Volume
from tests.simulation.mirror_world import CHECKED, LEDGER, POLICY, SIZE, Violation, Witness, World
from tests.simulation.mirror_world import run as run_world
from tests.support.memory_store import CHUNK, MemoryStore
from tests.support.sim_disk import SimDisk

LOG = Path("/pool/ledgers/m.activity")
REGION_BYTES = 2 * KIB
"""Small, so that few writes share one."""


class DiskWorld(World):
    """See the module."""

    MODULE = "tests.simulation.disk_world"

    def make(self) -> None:
        self.stores = {"source": MemoryStore()}
        self.stores["source"].create_volume("source", SIZE)
        self.disk = SimDisk(SIZE + 4 * CHUNK, self.rng)
        self.resets_seen = 0

    async def open(self) -> None:
        self.disk.up, self.disk.trouble, self.disk.slow_s = True, 0.0, 0.0
        (source,) = await self.open_stores()
        self.source = Volume(source)
        self.witness = Witness(self.history)
        self.source.attach(self.witness)
        self.link = DiskLink(self.disk, self.env.control_files, LOG, lambda: self.source.size_bytes)
        self.mirror = Mirror(
            "m",
            self.source,
            self.link,
            self.env,
            LEDGER,
            record=MirrorRecord.parse(self.durable_record),
            save=self.save,
            tell=lambda severity, text: self.told(),
            policy=self.policy,
        )

    def crash(self, power_loss: bool) -> None:
        self.rng.random()
        super().crash(power_loss)
        if power_loss and self.rng.random() < 0.5:
            self.disk.lose_power()

    # Oracles.

    def target_orders(self):
        return self.history.orders_of(bytes(self.disk.cache[:SIZE]))

    def check_durable(self, when: str) -> None:
        have = self.history.orders_of(bytes(self.disk.durable[: CHECKED * SECTOR_SIZE]))
        if (have < self.history.flushed).any():
            raise Violation(f"{when}: the disk has not made durable what hosts flushed")

    def check_order(self) -> None:
        if self.resets_seen != self.disk.resets:
            self.resets_seen, self.consistent = self.disk.resets, False
        if self.link.is_whole:
            super().check_order()

    def check_claim(self) -> None:
        """A disk that has lost its cache was not known to when the record was made."""
        if self.resets_seen == self.disk.resets and self.consistent:
            super().check_claim()

    def check_equal(self) -> None:
        if self.content(self.source.head, whole=True) != self.disk.cache[: self.source.size_bytes]:
            raise Violation("source and disk differ")

    # What happens.

    async def life(self) -> None:
        """After a crash often without hosts at first: they would write over what differs. Then often a short one, which
        ends while the mirror is synchronous."""
        rng = self.rng
        if rng.random() < 0.8:
            await self.open()
            await self.mirror.start()
            await self.settle()
            self.check_equal()
            if rng.random() < 0.6:
                hosts = [asyncio.ensure_future(self.host()) for _ in range(rng.randrange(1, 4))]
                await asyncio.sleep(rng.random() * 2 * POLICY.mark_interval_s)
                self.check_claim()
                self.hosts = hosts  # killed here
                return
            await self.mirror.close()
            await self.link.close()
            self.source.detach(self.witness)
        await super().life()

    def run(self) -> None:
        for _ in range(self.rng.randrange(1, 4)):
            super().run()

    async def settle(self) -> None:
        self.disk.up, self.disk.trouble, self.disk.slow_s = True, 0.0, 0.0
        await super().settle()

    async def again(self) -> None:
        if self.mirror.standing.state is CopyState.FRACTURED:
            await self.link.release()
        with contextlib.suppress(EngineError):
            await super().again()

    async def fracture(self) -> None:
        """Its owner writes to it."""
        await self.mirror.fracture()
        await self.link.release()
        self.consistent = False
        for _ in range(self.rng.randrange(3)):
            data = self.rng.randbytes(SECTOR_SIZE * self.rng.randrange(1, 40))
            self.disk.put(self.rng.randrange(SIZE // SECTOR_SIZE - 40) * SECTOR_SIZE, data, whole=True)

    async def disturb(self) -> None:
        rng, disk = self.rng, self.disk
        try:
            match rng.randrange(16):
                case 0:
                    disk.lose_power()
                case 1:
                    disk.up = False
                case 2 | 3:
                    disk.up, disk.trouble, disk.slow_s = True, 0.0, 0.0
                    await self.again()
                case 4:
                    disk.trouble = rng.choice((0.01, 0.05))
                case 5:
                    disk.slow_s = rng.choice((0.005, 2 * self.BUDGET_S))
                case 6:
                    await self.fracture()
                case 7 | 8:
                    document = await self.mirror.verify("simulation")
                    self.verified += 1
                    if not document.identical:
                        raise Violation("verify found a difference")
                case _:
                    if rng.randrange(10):  # no other kind of fracture
                        await super().disturb()
        except (EngineError, InvalidState):
            return


def run(seed: int) -> DiskWorld:
    """One seed. Raises Violation, with the line that replays it."""
    usual = log.REGION_BYTES, log.HYSTERESIS
    log.REGION_BYTES, log.HYSTERESIS = REGION_BYTES, seed % 3
    try:
        return run_world(seed, DiskWorld)
    finally:
        log.REGION_BYTES, log.HYSTERESIS = usual


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.disk_world")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    failures = synchronized = verified = commands = 0
    for seed in range(options.seed, options.seed + options.count):
        try:
            world = run(seed)
        except Violation as violation:
            failures += 1
            print(violation)
        else:
            synchronized += world.synchronized
            verified += world.verified
            commands += world.disk.commands
    print(
        f"{options.count} seeds, {failures} failed; {synchronized} times synchronized, {verified} verified under load,"
        f" {commands} commands"
    )


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # what tasks of dead processes have to say
    main()
