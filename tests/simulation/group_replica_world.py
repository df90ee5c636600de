"""A mirrored consistency group whose targets are machines behind links that fail, with the ordering test, on one seed.

    python -m tests.simulation.group_replica_world --seed 1 --count 1000

Two or three volumes, each with a target on a machine of its own behind a link of its own: they fail one by one, as they
would not even do at one peer. Each writer numbers its writes and issues one only when the one before, on another
member, was acknowledged. Modes, kills, power losses, lost messages, stalls and leases are those of ``replica_world``.

What is checked
    * **Order.** In each recovery point that the group's record has, and in the one that the target was told is
      complete, whatever the highest number of a writer is: every earlier one is there, on whatever member. What was
      acknowledged before the flip is in it; what was issued after it is not.
    * **Whole.** Every member's target has that point, with exactly the bytes that the source had; always, also between
      two members' switches and after any crash.
    * **Together.** From the moment at which the group has everything until the next switch, or a power loss of a
      target, what the members' targets hold is in order, whoever left the synchronous state and why.
    * While all targets hold their leases, they have everything that any host was acknowledged.
    * After all faults have ended the mirror comes to what it is for, and all members are equal.

``mutations_of_group_replicas.py`` removes the rules one by one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine.copy_state import CopyMode, CopyState
from engine.errors import EngineError, InvalidState, MediumError, StoreFailed
from engine.lease import length_s
from engine.mirror_group import GroupMirror, GroupRecord, Member
from engine.mirror_record import MirrorPolicy, point_prefix
from engine.units import KIB
from engine.volume import Volume
from tests.simulation.mirror_world import Violation, World, run
from tests.simulation.replica_world import BUDGET_S, MODES, RPO_S
from tests.support.memory_store import CHUNK, MemoryStore
from tests.support.sim_link import SimLink, TargetMachine

if TYPE_CHECKING:
    from engine.mirror_record import RecoveryPoint

SIZE = 6 * CHUNK
SECTOR = 512
NUMBER = struct.Struct("<Q")
NOISE_AT = 2 * CHUNK


@dataclass
class Era:
    """What writers did since the last look at everything: by writer, what each member's slot held before, and
    (number, member) of what was issued since."""

    base: list[list[int]]
    log: list[list[tuple[int, int]]]

    def expected(self, writer: int, top: int) -> list[int]:
        values = list(self.base[writer])
        for number, member in self.log[writer]:
            if number <= top:
                values[member] = number
        return values

    def check(self, values: list[list[int]], what: str) -> None:
        """``values``: by member, by writer."""
        for writer in range(len(self.log)):
            have = [slots[writer] for slots in values]
            if have != self.expected(writer, max(have)):
                raise Violation(f"{what}: of writer {writer} it has {have}, and not {self.expected(writer, max(have))}")


@dataclass
class Instant:
    """A flip: the source's snapshots of all members, and what had been acknowledged and issued then."""

    era: Era
    floor: list[int]
    ceiling: list[int]
    frozen: dict[int, object] = field(default_factory=dict)


class GroupReplicaWorld(World):
    """See the module."""

    BUDGET_S = BUDGET_S
    SETTLE_S = 2.0
    MODULE = "tests.simulation.group_replica_world"

    def make(self) -> None:
        rng = self.rng
        self.mode = rng.choice(MODES)
        self.count = rng.randrange(2, 4)
        self.policy = MirrorPolicy(
            budget_s=BUDGET_S,
            queue_bytes=self.count * 96 * KIB,
            rounds_max=20,
            mark_interval_s=0.02,
            rpo_s=RPO_S,
            points_max=rng.randrange(1, 3),
            hold_down_s=0.01,
            retry_s=0.01,
            retry_max_s=0.05,
        )
        self.names = [f"r.v{number}" for number in range(self.count)]
        self.sources_of = [MemoryStore() for _ in self.names]
        self.machines = []
        for number, store in enumerate(self.sources_of):
            store.create_volume(f"v{number}", SIZE)
            target = MemoryStore()
            target.create_volume(f"t{number}", SIZE)
            prefix = point_prefix(self.names[number])
            self.machines.append(TargetMachine(target, prefix, length_s(BUDGET_S), rng))
        self.durable_group = GroupRecord.new(self.count).serialize()
        self.writers = 3
        self.issued = [0] * self.writers
        self.acked = [0] * self.writers
        self.era = Era([[0] * self.count for _ in range(self.writers)], [[] for _ in range(self.writers)])
        self.instants: dict[str, Instant] = {}
        self.told_point: str | None = None
        """What the target was told last, durably."""
        self.in_order = False
        """Whether what the targets hold is in order."""
        self.points_seen = self.exact = self.leased = 0

    # --- lives ------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        self.sources = []
        self.links = []
        for number, store in enumerate(self.sources_of):
            store.pace, store.now = self.pace_of("source"), self.env.clock.time
            self.watch_flips(store, number)
            self.sources.append(Volume(store.volumes()[0]))
            link = SimLink(self.machines[number], self.rng)
            link.switched = self.switched
            self.links.append(link)
            if not self.machines[number].up:
                self.machines[number].open()
        self.adopt()
        members = [
            Member(name, source, link, Path(f"/pool/ledgers/{name}"))
            for name, source, link in zip(self.names, self.sources, self.links, strict=True)
        ]
        self.mirror = GroupMirror(
            "r",
            members,
            self.env,
            record=GroupRecord.parse(self.durable_group),
            save=self.save_group,
            tell=lambda severity, text: self.told(),
            mode=self.mode,
            policy=self.policy,
            in_use=lambda: (),
            completed=self.completed,
        )
        self.rebase()

    def rebase(self) -> None:
        """A new process: what the slots hold now is what counts on."""
        base = [self.values(store.volumes()[0]) for store in self.sources_of]
        self.era = Era(
            [[base[member][writer] for member in range(self.count)] for writer in range(self.writers)],
            [[] for _ in range(self.writers)],
        )
        self.acked = [max(slots) for slots in self.era.base]
        self.in_order = False

    def adopt(self) -> None:
        for machine in self.machines:
            machine.store.pace = self.pace_of("target")

    def watch_flips(self, store: MemoryStore, number: int) -> None:
        real = type(store).flip

        def flip(head, name, *, guid=None, hidden=False):
            made = real(store, head, name, guid=guid, hidden=hidden)
            known = self.instants.get(guid)
            if known is None:
                known = self.instants[guid] = Instant(self.era, list(self.acked), list(self.issued))
            known.frozen[number] = made.snapshot
            return made

        store.flip = flip

    async def save_group(self, record: GroupRecord) -> None:
        values = record.serialize()
        async with self.saving:
            await asyncio.sleep(self.rng.random() * 0.001)
            if not self.dead:
                self.durable_group = values

    async def completed(self, point: RecoveryPoint) -> None:
        await self.links[0]._call(lambda _: asyncio.sleep(0))
        if not self.dead:
            self.told_point = point.guid

    def told(self) -> None:
        if self.dead or not self.mirror.figures.is_exact:
            return
        self.exact += 1
        self.in_order = True
        with contextlib.suppress(StoreFailed):
            try:
                self.check_heads()
            except Violation as violation:
                self.violations.append(violation)

    def switched(self) -> None:
        self.in_order = False

    def crash(self, power_loss: bool) -> None:
        self.sources_of = [store.crash(self.rng, power_loss=power_loss) for store in self.sources_of]
        together = self.rng.random() < 0.5
        for machine in self.machines:
            if together and machine.up:
                lease = machine.lease
                machine.crash(power_loss=False)
                machine.open()
                machine.lease = lease
            elif machine.up:
                self.end_target(machine)
        self.bury()
        if power_loss:
            self.files.lose_power()
        else:
            self.files.restart_process()

    def end_target(self, machine: TargetMachine) -> None:
        power_loss = self.rng.random() < 0.5
        if machine.up:
            machine.crash(power_loss=power_loss)
            self.in_order = self.in_order and not power_loss

    # --- hosts ------------------------------------------------------------------------------------------------

    async def host(self) -> None:
        """A writer of its own, by the number of those that run."""
        writer = self.free.pop()
        rng = self.rng
        try:
            while not self.ending:
                if self.pause:
                    await asyncio.sleep(rng.random() * self.pause)
                await self.write_next(writer)
        except EngineError:
            return
        finally:
            self.free.append(writer)

    async def write_next(self, writer: int) -> None:
        rng = self.rng
        member = rng.randrange(self.count)
        source = self.sources[member]
        if rng.random() < 0.3:  # what costs a round something, and says nothing
            sectors = rng.choice((1, 9, 100))
            at = NOISE_AT + rng.randrange((SIZE - NOISE_AT) // SECTOR - sectors) * SECTOR
            with contextlib.suppress(MediumError):
                await source.write(at, memoryview(rng.randbytes(16) * (sectors * SECTOR // 16)))
            return
        if rng.random() < 0.05:
            await source.flush()
        self.issued[writer] += 1
        number = self.issued[writer]
        self.era.log[writer].append((number, member))
        data = NUMBER.pack(number) + bytes(SECTOR - NUMBER.size)
        while True:  # one that failed is asked for again: nothing later may be issued without it
            try:
                await source.write(writer * SECTOR, memoryview(data))
            except MediumError:
                continue
            break
        if self.dead:
            return
        self.acked[writer] = number
        if (
            self.mirror.figures.is_exact
            and self.in_order
            and self.values(self.machines[member].store.volumes()[0])[writer] < number
        ):
            raise Violation(f"write {number} of writer {writer} was acknowledged without the target")
        self.check_claim()

    # --- oracles ----------------------------------------------------------------------------------------------

    def values(self, node) -> list[int]:
        """By writer, the number in its slot."""
        content = node.content(0, self.writers * SECTOR)
        return [NUMBER.unpack_from(content, writer * SECTOR)[0] for writer in range(self.writers)]

    def heads(self) -> list[list[int]]:
        return [self.values(machine.store.volumes()[0]) for machine in self.machines]

    def check_heads(self) -> None:
        if self.in_order and all(machine.up for machine in self.machines):
            self.era.check(self.heads(), "what the targets hold")

    def check_claim(self) -> None:
        if not all(machine.holds_lease(self.loop.time()) for machine in self.machines):
            return
        self.leased += 1
        for writer in range(self.writers):
            have = max(slots[writer] for slots in self.heads())
            if have < self.acked[writer]:
                raise Violation(f"all targets hold leases, and miss write {self.acked[writer]} of writer {writer}")

    def check_order(self) -> None:
        self.check_heads()
        guids = {point.guid for point in self.mirror.points}
        self.points_seen += len(guids)
        for guid in guids | ({self.told_point} if self.told_point else set()):
            self.check_point(guid)

    def check_point(self, guid: str) -> None:
        instant = self.instants.get(guid)
        if instant is None:
            raise Violation("a recovery point of the group that nobody took")
        values = []
        for number, machine in enumerate(self.machines):
            point = next((each for each in machine.store.snapshots() if each.guid == guid), None)
            if point is None:
                raise Violation(f"a recovery point of the group is not at the target of member {number}")
            if point.content(0, SIZE) != instant.frozen[number].content(0, SIZE):
                raise Violation(f"a recovery point of member {number} is not what the source was")
            values.append(self.values(point))
        instant.era.check(values, "a recovery point of the group")
        for writer in range(self.writers):
            top = max(slots[writer] for slots in values)
            if not instant.floor[writer] <= top <= instant.ceiling[writer]:
                raise Violation(
                    f"a point has {top} of writer {writer}; acknowledged {instant.floor}, issued {instant.ceiling}"
                )

    def check_equal(self) -> None:
        for store, machine in zip(self.sources_of, self.machines, strict=True):
            if store.volumes()[0].content(0, SIZE) != machine.store.volumes()[0].content(0, SIZE):
                raise Violation("source and target of a member differ")

    # --- what happens -----------------------------------------------------------------------------------------

    async def life(self) -> None:
        self.free = list(range(self.writers))
        await super().life()

    async def disturb(self) -> None:
        rng = self.rng
        link, machine = rng.choice(self.links), rng.choice(self.machines)
        match rng.randrange(18):
            case 0:
                self.end_target(machine)
            case 1 | 2:
                self.start_targets()
            case 3:
                link.cut = True
            case 4 | 5:
                self.heal()
            case 6:
                link.loss = rng.choice((0.005, 0.05))
            case 7:
                link.delay_s = rng.choice((0.0001, 0.001, 0.01, BUDGET_S / 2))
            case 8:
                link.stalled = True
            case 9:
                link.stalled = False
            case _:
                with contextlib.suppress(EngineError):
                    await self.administer()

    async def administer(self) -> None:
        rng = self.rng
        match rng.randrange(8):
            case 0:
                await self.mirror.fracture()
            case 1:
                await self.mirror.suspend()
            case 2 | 3:
                await self.again()
            case 4:
                for document in await self.mirror.verify("simulation"):
                    self.verified += 1
                    if not document.identical:
                        raise Violation("verify found a difference")
            case 5:
                self.trouble["target"] = rng.choice((0.01, 0.1))
            case 6:
                self.trouble.clear()
            case 7:
                await self.mirror.thin(rng.choice((0, 4 * CHUNK)))

    def start_targets(self) -> None:
        for machine in self.machines:
            if not machine.up:
                machine.open()
        self.adopt()

    def heal(self) -> None:
        for link in self.links:
            link.cut, link.stalled, link.loss = False, False, 0.0

    async def settle(self) -> None:
        self.start_targets()
        self.heal()
        for link in self.links:
            link.delay_s = 0.0002
        await super().settle()

    async def again(self) -> None:
        if self.mode is not CopyMode.SYNCHRONOUS and self.mirror.standing.state is CopyState.BROKEN:
            await asyncio.sleep(self.policy.retry_max_s)
        else:
            await super().again()

    async def verify(self) -> None:
        ended = self.loop.time()
        for _ in range(50):
            await self.settle()
            with contextlib.suppress(InvalidState, EngineError):
                for document in await self.mirror.verify("simulation"):
                    if not document.identical:
                        raise Violation("verify found a difference at the end")
                lag_s = self.mirror.figures.lag_s
                if lag_s is not None and self.loop.time() - lag_s > ended:
                    self.check_order()
                    self.check_equal()
                    return
            await asyncio.sleep(RPO_S / 4)
        raise Violation(f"the targets never have what the sources have: {self.mirror.standing}")


def main() -> None:
    """Run many seeds, count what happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.group_replica_world")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    failures, totals = 0, dict.fromkeys(("exact", "leased", "points_seen", "verified"), 0)
    for seed in range(options.seed, options.seed + options.count):
        try:
            world = run(seed, GroupReplicaWorld)
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
