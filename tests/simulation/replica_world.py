"""A mirror of any mode whose target is a machine of its own, behind a link that fails: all on one seed.

    python -m tests.simulation.replica_world --seed 1 --count 2000

Everything of ``mirror_world`` (hosts, faults of the stores, kills and power losses of the source, an administrator who
fractures, suspends, resyncs, resizes and verifies), and besides: the target's process and machine end and start by
themselves; the link is slow, loses messages, is cut and heals; the target asks for leases by a clock of another rate,
and holds them on while the source is dead, starts again, or is cut off.

What is checked beyond ``mirror_world``
    * A target that holds its lease has everything that any host was ever acknowledged.
    * A recovery point of the target is, at every moment, exactly what the source was at that point's instant.
    * The lag is the truth: the target has, in its newest recovery point, whatever was acknowledged that long ago.
    * An asynchronous mirror is called Synchronized only while its lag is within the RPO.
    * No write takes longer than the latency budget because of the target, and none fails because of it.
    * Within one resync, percent never falls.
    * After all faults have ended, every mirror comes to what it is for, and source and target are equal.

What is not modelled: several mirrors of one connection, wire corruption (digests end such a connection), bit rot,
promotion and failover.

``test_replicas.py`` removes the rules one by one; each must make some seed fail.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING

import numpy as np

from engine.copy_state import CopyMode, CopyState
from engine.errors import EngineError, InvalidState
from engine.lease import length_s
from engine.mirror import Mirror
from engine.mirror_record import MirrorPolicy, MirrorRecord, point_prefix
from engine.units import KIB
from engine.volume import Volume
from tests.simulation.mirror_world import CHECKED, LEDGER, SIZE, Violation, Witness, World, run
from tests.support.memory_store import MemoryStore
from tests.support.sim_link import SimLink, TargetMachine

if TYPE_CHECKING:
    from engine.stores import Frozen

PREFIX = point_prefix("m")
BUDGET_S = 0.1
SLACK_S = 0.02
"""For what is not the target's: recording a demotion, the source's own work, turns of the loop."""
RPO_S = 0.15
WATCHED_S = 0.06
"""So late it may be noticed that the RPO is broken."""
MODES = (CopyMode.SYNCHRONOUS, CopyMode.ASYNCHRONOUS, CopyMode.ADAPTIVE)


class ReplicaWorld(World):
    """See the module."""

    BUDGET_S = BUDGET_S
    SETTLE_S = 2.0
    MODULE = "tests.simulation.replica_world"

    def make(self) -> None:
        self.mode = self.rng.choice(MODES)
        self.policy = MirrorPolicy(
            budget_s=BUDGET_S,
            queue_bytes=96 * KIB,
            rounds_max=20,
            mark_interval_s=0.02,
            rpo_s=RPO_S,
            points_max=self.rng.randrange(1, 4),
            points_age_s=self.rng.choice((None, 0.3)),
            hold_down_s=0.01,
            retry_s=0.01,
            retry_max_s=0.05,
        )
        source, target = MemoryStore(), MemoryStore()
        source.create_volume("source", SIZE)
        target.create_volume("target", SIZE)
        self.machine = TargetMachine(target, PREFIX, length_s(BUDGET_S), self.rng)
        self.stores = {"source": source, "target": target}
        self.captured: dict[str, bytes] = {}
        self.percent = 0
        self.exact = self.points_seen = self.leased = self.lags_of_content = 0

    # --- lives ------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        store = self.stores["source"]
        store.pace, store.now = self.pace_of("source"), self.env.clock.time
        self.capture_snapshots(store)
        self.source = Volume(store.volumes()[0])
        self.witness = Witness(self.history)
        self.source.attach(self.witness)
        self.link = SimLink(self.machine, self.rng)
        self.link.switched = self.switched
        if not self.machine.up:
            self.machine.open()
        self.adopt_target()
        self.percent = 0
        self.mirror = Mirror(
            "m",
            self.source,
            self.link,
            self.env,
            LEDGER,
            record=MirrorRecord.parse(self.durable_record),
            save=self.save,
            tell=lambda severity, text: self.told(),
            mode=self.mode,
            policy=self.policy,
        )

    def adopt_target(self) -> None:
        """The target's process runs, in this loop."""
        self.machine.store.pace = self.pace_of("target")
        self.stores["target"] = self.machine.store
        self.target = self.machine.volume

    def capture_snapshots(self, store: MemoryStore) -> None:
        """Remember what each recovery point of the source is."""
        real = store.snapshot

        async def snapshot(head, name, **options) -> Frozen:
            frozen = await real(head, name, **options)
            self.captured[frozen.guid] = frozen.content(0, frozen.size_bytes)
            return frozen

        store.snapshot = snapshot

    def crash(self, power_loss: bool) -> None:
        """The source has ended. Its target goes on, or not."""
        self.stores["source"] = self.stores["source"].crash(self.rng, power_loss=power_loss)
        if self.machine.up and self.rng.random() < 0.6:
            lease = self.machine.lease
            self.machine.crash(power_loss=False)  # its calls of the dead loop end; nothing of it is lost
            self.machine.open()
            self.machine.lease = lease
        else:
            self.end_target()
        self.bury()
        if power_loss:
            self.files.lose_power()
        else:
            self.files.restart_process()

    def end_target(self) -> None:
        power_loss = self.rng.random() < 0.5
        if self.machine.up:
            self.machine.crash(power_loss=power_loss)
            self.consistent = self.consistent and not power_loss

    def switched(self) -> None:
        """The target's content is a recovery point: whole, whatever it was."""
        self.consistent = True

    def told(self) -> None:
        if not self.dead and self.mirror.standing.state is not CopyState.UNSYNCHRONIZED:
            self.percent = 0  # what begins after this is another resync
        self.exact += self.mirror.figures.is_exact
        if self.machine.up:
            super().told()

    # --- hosts ------------------------------------------------------------------------------------------------

    async def write(self) -> None:
        if self.trouble.get("source"):
            await super().write()
            return
        began, gate = self.loop.time(), self.source.is_quiesced
        await super().write()
        took = self.loop.time() - began
        if took > BUDGET_S + SLACK_S and not (gate or self.resizing):
            raise Violation(f"a write took {took:.3f} s, the budget is {BUDGET_S} s")
        self.check_claim()

    # --- oracles ----------------------------------------------------------------------------------------------

    def check_claim(self) -> None:
        if not self.machine.holds_lease(self.loop.time()):
            return
        self.leased += 1
        if (self.target_orders() < self.history.required(self.history.events + 1)).any():
            raise Violation("the target holds the lease, and misses an acknowledged write")

    def check_order(self) -> None:
        if self.machine.up:
            super().check_order()
        self.check_points()
        self.check_lag()
        self.check_percent()

    def check_points(self) -> None:
        store = self.machine.store
        there = {point.guid: point for point in store.snapshots()}
        for guid, point in there.items():
            if guid in self.captured and point.content(0, point.size_bytes) != self.captured[guid]:
                raise Violation("a recovery point of the target is not what the source was")
        for point in self.mirror.points:
            self.points_seen += 1
            if point.guid not in self.captured or point.guid not in there:
                raise Violation("a recovery point on record is none, or is not there")

    def check_lag(self) -> None:
        lag_s = self.mirror.figures.lag_s
        if lag_s is None or not self.machine.up:
            return
        state = self.mirror.standing.state
        if self.mode is CopyMode.ASYNCHRONOUS and state is CopyState.SYNCHRONIZED and lag_s > RPO_S + WATCHED_S:
            raise Violation(f"Synchronized with a lag of {lag_s:.3f} s and an RPO of {RPO_S} s")
        if self.mirror.figures.is_exact:
            return
        content = self.captured.get(self.mirror.common or "")
        if content is None:
            return
        self.check_complete(content, self.mirror.figures.point_lag_s)
        if self.mirror.figures.point_lag_s == lag_s:
            return
        if self.machine.store.incarnation == self.mirror.figures._incarnation:  # else the source has yet to hear of it
            self.lags_of_content += 1
            self.check_complete(self.content(self.target.head), lag_s)

    def check_complete(self, content: bytes, lag_s: float) -> None:
        """It has everything that is older than that."""
        before = self.loop.time() - lag_s - 1e-6  # instants in seconds since 1970 are no more exact
        needed = np.zeros(CHECKED, np.int64)
        for write in self.history.writes.values():
            if write.acked is not None and write.acked_at < before:
                part = needed[write.start : write.end]
                np.maximum(part, write.order, out=part)
        if (self.history.orders_of(content[:SIZE]) < needed).any():
            raise Violation(f"the lag is said to be {lag_s:.3f} s, and something older is missing")

    def check_percent(self) -> None:
        if self.mirror.standing.state is not CopyState.UNSYNCHRONIZED:
            return
        percent = self.mirror.figures.percent_synced
        if percent < self.percent:
            raise Violation(f"percent fell from {self.percent} to {percent} within a resync")
        self.percent = percent

    # --- what happens -----------------------------------------------------------------------------------------

    async def disturb(self) -> None:
        rng = self.rng
        match rng.randrange(16):
            case 0:
                self.end_target()
            case 1 | 2:
                self.start_target()
            case 3:
                self.link.cut = True
            case 4 | 5:
                self.link.cut, self.link.stalled, self.link.loss = False, False, 0.0
            case 6:
                self.link.loss = rng.choice((0.005, 0.05))
            case 7:
                self.link.delay_s = rng.choice((0.0001, 0.001, 0.01, BUDGET_S / 2))
            case 8:
                self.link.stalled = True
            case 9:
                self.link.stalled = False
            case _:
                with contextlib.suppress(EngineError):  # of a target that is away
                    await super().disturb()

    def start_target(self) -> None:
        if not self.machine.up:
            self.machine.open()
            self.adopt_target()

    async def resize(self) -> None:
        self.resizing = True
        try:
            await super().resize()
        finally:
            self.resizing = False

    resizing = False

    async def settle(self) -> None:
        self.start_target()
        self.link.cut, self.link.stalled, self.link.loss, self.link.delay_s = False, False, 0.0, 0.0002
        await super().settle()

    async def again(self) -> None:
        if self.mode is not CopyMode.SYNCHRONOUS and self.mirror.standing.state is CopyState.BROKEN:
            await asyncio.sleep(self.policy.retry_max_s)  # it has to do that by itself
        else:
            await super().again()

    async def verify(self) -> None:
        if self.mode is not CopyMode.ASYNCHRONOUS:
            await super().verify()
            return
        ended = self.loop.time()
        for _ in range(50):
            await self.settle()
            lag_s = self.mirror.figures.lag_s
            if lag_s is not None and self.loop.time() - lag_s > ended:
                break
            await asyncio.sleep(RPO_S / 4)
        else:
            raise Violation(f"the target never has what the source has: {self.mirror.standing}")
        self.check_order()
        self.check_equal()
        with contextlib.suppress(InvalidState):
            assert (await self.mirror.verify("simulation")).identical


def main() -> None:
    """Run many seeds, count what happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.replica_world")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    failures, totals = 0, dict.fromkeys(("exact", "leased", "points_seen", "verified", "lags_of_content"), 0)
    for seed in range(options.seed, options.seed + options.count):
        try:
            world = run(seed, ReplicaWorld)
        except Violation as violation:
            failures += 1
            print(f"seed {seed}: {violation}")
        else:
            for name in totals:
                totals[name] += getattr(world, name)
    print(f"{options.count} seeds, {failures} failed; " + ", ".join(f"{name} {n}" for name, n in totals.items()))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # what tasks of dead processes have to say
    random.seed(0)
    main()
