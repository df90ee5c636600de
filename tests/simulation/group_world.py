"""The ordering test: group snapshots under writers that write to one member after the other, and crashes in between.

    python -m tests.simulation.group_world --seed 1 --rounds 10000      until so many group snapshots were taken
    python -m tests.simulation.group_world --replay SEED

One seed is a pool's life: two or three volume files with one to three members each, their real stores on simulated
files; ``engine.group_instant`` as the daemon runs it; the catalogue's real tables in an SQLite database whose
transactions happen at a seeded turn of the loop, whole or not at all. Its process dies inside any file operation, at
any turn, before or after a transaction, while opening; then it goes on on the same boot, or the machine has lost power.
Sometimes a file is missing at an opening, and back at the next; sometimes a sync fails.

What is checked
    * **Order.** Each writer numbers its writes and issues one only when the one before, on another member, was
      acknowledged. In a group snapshot, whatever the highest number of a writer is: every earlier one is there.
      What was acknowledged before the snapshot was asked for is in it; what was issued after it was there is not.
    * **All or nothing.** After any crash a group snapshot is there with all its members' snapshots or not at all; it is
      there if its call had returned, and never comes back once its deletion had. No file has a snapshot of no group.
    * What a group snapshot shows never changes.
    * **Rollback**: all members read as in the group snapshot, or all as before; what they held is a group snapshot.
    * **Clones** of a group snapshot exist with their group, all of them as it is, or not at all.
    * A file that is missing disturbs no other, and is in the same state as the others when it is back.
    * ``check`` finds files clean after crashes.

``group_mutations.py`` removes the rules one by one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import logging
import multiprocessing
import os
import random
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from engine.catalog_groups import GroupRow
from engine.errors import EngineError, MediumError, StoreFailed
from engine.files import StoreEnv
from engine.group_instant import GroupInstants, find_point
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from tests.simulation.group_machine import Catalogue, Era, Members, Outcome, Snap, Values
from tests.support.progress import Progress
from tests.support.sim_files import Fault, SimFileSystem, eio
from tests.support.sim_loop import ProcessDied, SimClock, SimLoop, SimWorkers
from tests.support.volume_oracle import Violation

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.catalog_groups import GroupSnapshotRow
    from engine.volume import Volume

CHUNK = 65536
SIZE = 6 * CHUNK
SLOT = 4096
SECTOR = 512
GROUP = "g"
SEED_NAME = "seed"
"""Of the snapshot that the further members of a family are clones of."""
SNAPSHOTS_MAX = 5
NOISE_AT = SIZE - CHUNK
CHECK_CHANCE = 0.35
"""Of a file after a crash; it takes as long as two group snapshots."""
PAUSES_S = (0, 0, 0.0005, 0.002)
"""What writers wait between two writes: 0 to 20 turns of the loop. A group snapshot takes some 20 to 400."""
NUMBER = struct.Struct("<Q")
BATCH = 16


class World:
    """One seed."""

    def __init__(self, seed: int, *, verbose: bool = False) -> None:
        self.rng = rng = random.Random(seed)
        self.outcome = Outcome(seed)
        self.verbose = verbose
        self.files = SimFileSystem(random.Random(rng.getrandbits(64)))
        self.catalogue = Catalogue()
        self.paths = [Path(f"/pool/volumes/f{number}.tvol") for number in range(rng.randint(2, 3))]
        self.member_ids: list[str] = []
        self.file_of: dict[str, Path] = {}
        self.missing: set[Path] = set()
        self.writers = rng.randint(1, 4)
        self.numbers = [0] * self.writers
        self.acked = [0] * self.writers
        self.snaps: dict[str, Snap] = {}
        self.names = itertools.count(1)
        self.era: Era
        self.rolling: Values | None = None
        """What a rollback under way makes of the members."""
        self.clones: dict[str, Snap] = {}
        """Groups of clones that there may or must be, by name."""
        self.certain_clones: set[str] = set()
        self.deleted_clones: set[str] = set()
        self.processes = rng.randint(2, 5)
        self.fail_sync = rng.random() < 0.1
        self.failed = False
        self.failures: list[Violation] = []

    def tell(self, line: str) -> None:
        if self.verbose:
            self.outcome.story.append(line)

    def run(self) -> Outcome:
        """Raises Violation and whatever else the engine should never raise."""
        assert not self._process(self._make)
        self._crash()
        for _ in range(self.processes):
            self.missing = {self.rng.choice(self.paths)} if self.rng.random() < 0.12 else set()
            self._process(self._without_a_file if self.missing else self._work)
            self._crash()
        self.missing = set()
        self._process(self._look)
        return self.outcome

    # --- processes and crashes --------------------------------------------------------------------------------

    def _process(self, main: Callable[[StoreEnv, SimLoop], object]) -> bool:
        """True: it died."""
        loop = SimLoop(turns_max=1_000_000)
        turns_max = self.rng.choice((1, 3, 12, 40))
        self.workers = SimWorkers(loop, random.Random(self.rng.getrandbits(64)), turns_max=turns_max, slow_chance=0.2)
        self.files.on_death = loop.die
        self.failed = False
        died = False
        try:
            loop.run_until_complete(main(StoreEnv(self.files, self.workers, SimClock(loop)), loop))
        except ProcessDied:
            died = True
        except (StoreFailed, MediumError):
            if not self.files.cache_lies:
                raise
        finally:
            self.files.kill()
            loop.close()
        if self.failures:
            raise self.failures[0]
        if loop.errors:
            raise Violation(f"the loop reported: {loop.errors[0]}")
        return died

    def _crash(self) -> None:
        lies = self.files.cache_lies
        if self.rng.random() < 0.6 or lies:
            pattern = self.files.lose_power()
            self.outcome.power_losses += 1
            self.tell(f"power lost: {pattern}")
        else:
            self.files.restart_process()
            self.outcome.kills += 1
            self.tell("killed")
        self.files.faults.clear()
        self.catalogue.die_in = None
        for path in self.paths:
            if self.rng.random() > CHECK_CHANCE:
                continue
            report = check_file(path, files=self.files)
            if report.damaged:
                raise Violation(f"check of {path}: " + "; ".join(map(str, report.findings[:5])))

    def _plan_death(self, loop: SimLoop, most: int) -> None:
        rng = self.rng
        way = rng.random()
        if way < 0.5:
            self.files.die_after(rng.randint(1, most))
        elif way < 0.75:
            self.catalogue.die_in, self.catalogue.die_after = rng.randint(1, 12), rng.random() < 0.5
        else:
            loop.call_after_turns(rng.randint(1, most), self.files.kill)

    async def _make(self, env: StoreEnv, loop: SimLoop) -> None:
        members = Members(self.file_of, self.missing)
        for number, path in enumerate(self.paths):
            store = await TvolFile.create(
                env, path, volume_name=f"v{number}", size_bytes=SIZE, chunk_bytes=CHUNK, journal_bytes=CHUNK
            )
            more = self.rng.randint(0, 2)
            if more:
                seed = await store.snapshot(store.volumes()[0], SEED_NAME)
                for count in range(more):
                    await store.clone(seed, f"v{number}.{count}")
            members.add(store)
            for head in store.volumes():
                self.member_ids.append(head.volume_id)
                self.file_of[head.volume_id] = path
        tables = self.catalogue.open(self.workers, self.files)
        await tables.add_group(GroupRow(GROUP, 0.0, tuple(self.member_ids)))
        for store in members.open:
            await store.close()

    async def _open(self, env: StoreEnv) -> None:
        """Open what is there, complete what was decided, and compare everything with what should be."""
        self.members = Members(self.file_of, self.missing)
        for path in self.paths:
            if path not in self.missing:
                self.members.add(await TvolFile.open(env, path))
        self.tables = self.catalogue.open(self.workers, self.files)
        self.instants = GroupInstants(self.tables, self.members, env.clock)
        rows = await self.instants.restore()
        await self._compare(rows)

    async def _work(self, env: StoreEnv, loop: SimLoop) -> None:
        rng = self.rng
        if self.fail_sync and rng.random() < 0.4:
            self.files.faults.append(Fault("sync", eio, nth=rng.randint(10, 150)))
        if rng.random() < 0.25:
            self._plan_death(loop, 60)
        await self._open(env)
        if self.failed:
            return
        if rng.random() < 0.9:
            self._plan_death(loop, rng.choice((300, 2000, 5000)))
        self.stop = False
        self.go = asyncio.Event()
        self.go.set()
        self.idle = [asyncio.Event() for _ in range(self.writers)]
        for idle in self.idle:
            idle.set()  # a rollback may come before any of them has begun
        tasks = [asyncio.ensure_future(self._writer(number)) for number in range(self.writers)]
        tasks += [asyncio.ensure_future(self._noise(volume)) for volume in self._volumes() if rng.random() < 0.5]
        try:
            for _ in range(rng.randint(3, 40)):
                if not self.failed and not self.files.dead:
                    await self._act()
        except StoreFailed:
            self.failed = True
        finally:
            self.stop = True
            self.go.set()
        await asyncio.gather(*tasks)
        if rng.random() < 0.3 and not self.failed:
            for store in self.members.open:
                await store.close()

    async def _without_a_file(self, env: StoreEnv, loop: SimLoop) -> None:
        self.tell(f"missing: {sorted(path.name for path in self.missing)}")
        if self.rng.random() < 0.3:
            self._plan_death(loop, 60)
        await self._open(env)
        for snap in list(self.snaps.values()):
            if self.rng.random() < 0.3:
                await self._delete(snap)

    async def _look(self, env: StoreEnv, loop: SimLoop) -> None:
        await self._open(env)
        for snap in list(self.snaps.values()):
            await self._read_snap(snap)

    def _volumes(self) -> list[Volume]:
        return [self.members.volumes[volume_id] for volume_id in self.member_ids]

    # --- writers ----------------------------------------------------------------------------------------------

    async def _writer(self, writer: int) -> None:
        rng = random.Random(self.rng.getrandbits(64))
        volumes = self._volumes()
        member = rng.randrange(len(volumes))
        try:
            while not self.stop and not self.files.dead:
                while not self.go.is_set():  # it may be cleared again before this task runs
                    await self.go.wait()
                self.idle[writer].clear()
                member = rng.choice([other for other in range(len(volumes)) if other != member])
                await self._one_write(rng, writer, member, volumes[member])
                self.idle[writer].set()
                if rng.random() < 0.6:
                    await asyncio.sleep(rng.choice(PAUSES_S))
        except (StoreFailed, MediumError):
            self.failed = True
        finally:
            self.idle[writer].set()

    async def _one_write(self, rng: random.Random, writer: int, member: int, volume: Volume) -> None:
        self.numbers[writer] += 1
        number = self.numbers[writer]
        self.era.log[writer].append((number, member))
        data = memoryview(NUMBER.pack(number) * (SLOT // NUMBER.size))
        offset = _slot(writer)
        if rng.random() < 0.3 and volume.try_write(offset, data):
            volume.end_pass()
        else:
            await volume.write(offset, data, fua=rng.random() < 0.05)
        if not self.files.dead:
            self.acked[writer] = number
        if rng.random() < 0.05:
            await volume.flush()

    async def _noise(self, volume: Volume) -> None:
        """Somebody who follows no order and knows of no rollback."""
        rng = random.Random(self.rng.getrandbits(64))
        with contextlib.suppress(StoreFailed, MediumError):
            while not self.stop and not self.files.dead:
                offset = NOISE_AT + rng.randrange(CHUNK // SECTOR) * SECTOR
                await volume.write(offset, memoryview(bytes([rng.randrange(256)]) * SECTOR))
                await asyncio.sleep(rng.choice(PAUSES_S))

    # --- what is done to the group ----------------------------------------------------------------------------

    async def _act(self) -> None:
        way = self.rng.random()
        whole = [snap for snap in self.snaps.values() if snap.certain and not snap.doomed]
        if len(self.snaps) >= SNAPSHOTS_MAX or (way < 0.12 and whole):
            await self._delete(self.rng.choice(whole))
        elif way < 0.22 and whole:
            await self._roll_back(self.rng.choice(whole))
        elif way < 0.28 and whole:
            await self._clone(self.rng.choice(whole))
        else:
            await self._snapshot()

    async def _snapshot(self) -> None:
        for _ in range(self.rng.randrange(8)):
            await asyncio.sleep(0)
        self.outcome.rounds += 1
        name = f"s{next(self.names)}"
        snap = self.snaps[name] = Snap(name, self.era, list(self.acked))
        self.tell(f"snapshot {name}, acknowledged {self.acked}")
        try:
            row = await self.instants.snapshot(GROUP, name, self._volumes())
        except StoreFailed:
            raise
        except EngineError:
            del self.snaps[name]
            raise
        if self.files.dead:
            return
        snap.row, snap.ceiling, snap.certain = row, list(self.numbers), True
        self.tell(f"snapshot {name} is there, issued {self.numbers}")
        if self.rng.random() < 0.6:
            await self._read_snap(snap)
            for _ in range(self.rng.randrange(60)):
                await asyncio.sleep(0)
            await self._read_snap(snap)  # a write that was still under way at the instant has ended

    async def _delete(self, snap: Snap) -> None:
        if any(source is snap for source in self.clones.values()):
            return
        snap.doomed = True
        self.tell(f"delete {snap.name}")
        assert snap.row is not None
        await self.instants.delete(snap.row)
        if not self.files.dead:
            del self.snaps[snap.name]

    async def _roll_back(self, snap: Snap) -> None:
        assert snap.row is not None
        await self._read_snap(snap)
        self.go.clear()  # the numbered writers stand still; the others go on
        for event in self.idle:
            await event.wait()
        if self.files.dead or self.failed:
            self.go.set()
            return
        name = f"k{next(self.names)}"
        kept = self.snaps[name] = Snap(name, self.era, list(self.acked), list(self.numbers))
        self.rolling = snap.values
        self.tell(f"roll back to {snap.name}, keeping {name}")
        row = await self.instants.roll_back(snap.row, self._volumes(), name)
        if self.files.dead:
            return
        kept.row, kept.certain = row, True
        found = await self._read(self._volumes())
        if not self.files.dead and found != snap.values:
            self._violated(f"rolled back to {snap.name} {snap.values}, the members hold {found}")
        self.rolling = None
        self._begin_era(found)
        self.go.set()

    async def _clone(self, snap: Snap) -> None:
        assert snap.row is not None
        if self.clones:
            await self._drop_clones()
            return
        await self._read_snap(snap)
        name = f"c{next(self.names)}"
        names = {volume_id: f"{name}.{number}" for number, volume_id in enumerate(self.member_ids)}
        self.clones[name] = snap
        self.tell(f"clone {snap.name} as {name}")
        await self.instants.clone(snap.row, names, name)
        if not self.files.dead:
            self.certain_clones.add(name)

    async def _drop_clones(self) -> None:
        """The group goes first: from then on nobody misses its volumes."""
        (name,) = self.clones
        (row,) = (row for row in await self.tables.groups() if row.name == name)
        self.certain_clones.discard(name)
        self.deleted_clones.add(name)
        await self.tables.remove_group(name)
        for volume_id in row.members:
            await self.members.remove_clone(self.members.volumes[volume_id])
        if not self.files.dead:
            del self.clones[name]
            self.deleted_clones.discard(name)

    # --- looking ----------------------------------------------------------------------------------------------

    async def _read(self, devices: list) -> Values:
        found: list[tuple[int, ...]] = []
        for writer in range(self.writers):
            row = []
            for device in devices:
                buffer = bytearray(SECTOR)
                await device.read(_slot(writer), memoryview(buffer))
                row.append(NUMBER.unpack_from(buffer)[0])
            found.append(tuple(row))
        return tuple(found)

    async def _read_snap(self, snap: Snap) -> None:
        """Compare a group snapshot with what may be in it, and with what it showed before."""
        assert snap.row is not None
        devices = []
        for point in snap.row.points:
            volume = self.members.find(point.volume_id)
            device = None if volume is None else find_point(volume, point.guid)
            if device is None and self._some_store_failed():
                return  # its file completes it when it is opened again
            if device is None:
                self._violated(f"group snapshot {snap.name} lacks the snapshot of a member")
            devices.append(device)
        values = await self._read(devices)
        if self.files.dead:
            return
        self.outcome.checked += 1
        if snap.values is not None and values != snap.values:
            self._violated(f"group snapshot {snap.name} showed {snap.values} and now {values}")
        snap.values = values
        for writer in range(self.writers):
            top = max((value for value in values[writer] if value >= snap.era.first[writer]), default=0)
            top = max(top, snap.era.first[writer] - 1)
            expected = snap.era.expected(writer, top)
            if values[writer] != expected:
                self._violated(f"{snap.name} has write {top} of writer {writer}: {values[writer]}, not {expected}")
            ceiling = snap.ceiling[writer] if snap.ceiling else top
            if not snap.floor[writer] <= top <= ceiling:
                self._violated(
                    f"{snap.name} ends with write {top} of writer {writer}, not within {snap.floor[writer]}-{ceiling}"
                )

    def _some_store_failed(self) -> bool:
        self.failed = self.failed or any(store.failed is not None for store in self.members.open)
        return self.failed

    def _violated(self, text: str) -> None:
        """Noted as well: whoever runs a task may swallow what it raises."""
        self.failures.append(Violation(text))
        raise self.failures[-1]

    def _begin_era(self, values: Values) -> None:
        self.era = Era(values, [number + 1 for number in self.numbers], [[] for _ in self.numbers])
        self.acked = list(self.numbers)

    async def _compare(self, rows: list[GroupSnapshotRow]) -> None:
        if self.files.dead:
            return
        self._compare_rows({row.name: row for row in rows})
        if self.missing:
            await self._compare_what_is_served(rows)
            return
        if self._some_store_failed():
            return  # what is left to do waits for the next opening
        left = [row.name for row in await self.tables.group_snapshots() if row.doomed]
        if left or await self.tables.group_rollbacks():
            self._violated(f"decisions are left: {left}, {await self.tables.group_rollbacks()}")
        await self._compare_what_is_served(rows)
        for snap in list(self.snaps.values()):
            await self._read_snap(snap)
        values = await self._read(self._volumes())
        if self.rolling is not None:
            self._compare_rollback(values)
        await self._compare_clones()
        if not self.files.dead:
            self._begin_era(values)

    def _compare_rows(self, rows: dict[str, GroupSnapshotRow]) -> None:
        for name, snap in list(self.snaps.items()):
            row = rows.get(name)
            if row is None:
                if snap.certain and not snap.doomed:
                    self._violated(f"group snapshot {name} is gone")
                del self.snaps[name]
            else:
                snap.row, snap.certain, snap.doomed = row, True, False
        if rows.keys() - self.snaps.keys():
            self._violated(f"group snapshots {rows.keys() - self.snaps.keys()} were deleted or never made")

    async def _compare_what_is_served(self, rows: list[GroupSnapshotRow]) -> None:
        """Every point of a file that is open is there, and nothing else."""
        wanted = {point.guid for row in rows for point in row.points}
        found = {s.guid for store in self.members.open for s in store.snapshots() if s.name != SEED_NAME}
        if found - wanted:
            self._violated(f"{len(found - wanted)} snapshots belong to no group snapshot")
        for row in rows:
            for point in row.points:
                if self.file_of[point.volume_id] not in self.missing and point.guid not in found:
                    self._violated(f"group snapshot {row.name} lacks the snapshot of a member")
        if any(store.prepared() for store in self.members.open):
            self._violated("a snapshot is left undecided")
        for volume in self.members.volumes.values():
            await volume.read(0, memoryview(bytearray(SECTOR)))

    def _compare_rollback(self, values: Values) -> None:
        """All as before, or all as in the snapshot. (Before is what was kept, if that came so far.)"""
        rolling, self.rolling = self.rolling, None
        kept = [snap for name, snap in self.snaps.items() if name.startswith("k") and snap.era is self.era]
        before = kept[-1].values if kept else None
        if values in (rolling, before) or before is None:
            return
        self._violated(f"rolling back {before} to {rolling} ended with {values}")

    async def _compare_clones(self) -> None:
        groups = {row.name: row for row in await self.tables.groups() if row.name != GROUP}
        extra = {volume_id for volume_id in self.members.volumes if volume_id not in self.member_ids}
        for name, row in groups.items():
            if name not in self.clones:
                self._violated(f"group {name} was deleted or never made")
            if not set(row.members) <= extra:
                self._violated(f"group {name} lacks one of its clones")
            extra -= set(row.members)
            clones = [self.members.volumes[volume_id] for volume_id in row.members]
            values = await self._read(clones)
            if not self.files.dead and values != self.clones[name].values:
                self._violated(f"the clones of {self.clones[name].values} hold {values}")
            self.certain_clones.add(name)
        for name in list(self.clones):
            if name in groups:
                continue
            if name in self.certain_clones:
                self._violated(f"group {name} is gone")
            if name not in self.deleted_clones and extra:
                self._violated(f"clones of {name} are there without their group")
            for volume_id in extra:  # the rest of a deletion
                await self.members.remove_clone(self.members.volumes[volume_id])
            if self.files.dead:
                return
            extra = set()
            del self.clones[name]
            self.deleted_clones.discard(name)
        if extra:
            self._violated("there are clones of nothing")


def _slot(writer: int) -> int:
    """Two writers share a chunk."""
    return (writer // 2) * CHUNK + (writer % 2) * 2 * SLOT


def run_seed(seed: int, *, verbose: bool = False) -> Outcome:
    """One life; never raises, tells in ``failure``."""
    logging.disable(logging.ERROR)
    world = World(seed, verbose=verbose)
    try:
        return world.run()
    except Exception as error:
        world.outcome.failure = f"{type(error).__name__}: {error}"
        if verbose:
            import traceback

            world.outcome.story += traceback.format_exc().splitlines()
        return world.outcome


def simulate(seed: int, rounds: int, processes: int) -> int:
    """Until so many group snapshots were taken, or the first broken promise."""
    begun = time.monotonic()
    progress = Progress(rounds, "group snapshots")
    totals = Outcome(seed)
    lives = 0
    with multiprocessing.Pool(processes) as pool:
        for batch in itertools.count():
            first = seed + batch * BATCH
            for outcome in pool.imap(run_seed, range(first, first + BATCH)):
                if outcome.failure is not None:
                    print(f"FAILED after {totals.rounds} rounds: seed {outcome.seed}: {outcome.failure}")
                    print(f"replay: python -m tests.simulation.group_world --replay {outcome.seed}")
                    return 1
                lives += 1
                totals.rounds += outcome.rounds
                totals.kills += outcome.kills
                totals.power_losses += outcome.power_losses
                totals.checked += outcome.checked
                progress.at(totals.rounds)
            if totals.rounds >= rounds:
                break
    print(
        f"{totals.rounds} group snapshots in order, read {totals.checked} times, over {totals.kills} kills and"
        f" {totals.power_losses} power losses in {lives} lives from seed {seed}; {time.monotonic() - begun:.0f} s"
    )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.group_world", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=500, help="stop after so many group snapshots")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", type=int, metavar="SEED", help="one life, with its story")
    arguments = parser.parse_args()
    if arguments.replay is None:
        return simulate(arguments.seed, arguments.rounds, arguments.processes)
    outcome = run_seed(arguments.replay, verbose=True)
    print("\n".join(outcome.story))
    print(outcome.failure or f"seed {outcome.seed} kept every promise: {outcome.rounds} rounds")
    return 0 if outcome.failure is None else 1


if __name__ == "__main__":
    sys.exit(main())
