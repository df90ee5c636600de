"""The crash simulation of the volume file: one seed is one file's whole life, with several crashes in it.

Each life makes a file with a tiny journal, lets several clients work on it at once, and ends the process inside
a random file operation, at a random turn of the loop, while opening, or while idle. Then the machine either
keeps its page cache (kill) or loses some of what was not synced (power loss, see ``tests.support.sim_files``).
The file is checked as it lies there, opened, read whole against the oracle, checked again, and goes on.

Oracle (``tests.support.volume_oracle``, ``tests.simulation.family``)
    * acknowledged survives a kill, and power loss where the write cache is off; flushed, FUA and structural calls
      that returned survive power loss;
    * every unflushed sector is old or new, never other;
    * a snapshot, once read, never changes; what was acknowledged before it is in it, what came after is not;
    * volumes, snapshots and staging areas exist exactly as promised; a commit of staging is all or nothing;
    * ``check`` is clean before and after every recovery, and the file can go on;
    * no scrub finds anything, and at every crash each chunk that has a digest holds what was digested;
    * one of two good superblock slots may rot at any power loss;
    * one flipped bit in any structure is found, and no byte is wrong without an error (``rot.py``);
    * a failed sync is sticky until the file is reopened, on the same boot too; any call of the host may fail, and the
      wall clock may be wrong (``host.py``); a full disk fails writes and damages nothing; when there is room again,
      writes succeed (``disk.py``).

Not checked: speed, how much of the unflushed survives, file systems that reorder below a sector.

``python -m tests.simulation --seed 1 --crashes 10000 --processes 2`` runs from a seed (``make sim``).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.encryption import Encryption
from engine.errors import MediumError, OutOfSpace, StoreFailed
from engine.files import StoreEnv
from engine.tvol import bulk, checkpoint, layout, map_changes, recovery
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.tvol.layout_encryption import EncryptionRecord
from engine.tvol.superblock import read_superblock
from tests.simulation.clients import MOODS, Client, read_all
from tests.simulation.disk import Disk
from tests.simulation.family import SECTOR, Family, Violation
from tests.simulation.host import Host
from tests.simulation.promises import decide
from tests.simulation.rot import Trial
from tests.support.sim_files import Fault, SimFileSystem, eio
from tests.support.sim_loop import Deadlock, ProcessDied, SimClock, SimLoop, SimWorkers
from tests.support.volume_oracle import Content, Windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATH = Path("/pool/volumes/family.tvol")
CHUNK = 65536
LEAF_SPAN = 4096 * CHUNK
CRASHES_PER_LIFE_MAX = 6
ROT_CHANCE = 0.1
TRIAL_CHANCE = 0.08
KEYED = Encryption(EncryptionRecord(bytes(16), 10, 1, 1, bytes(72), "file:/key"), bytes(range(64)))


class SimulationFailed(AssertionError):
    """One seed broke a promise; the message has the line that replays it."""


@dataclass(slots=True)
class Plan:
    """What a seed decides before its life begins."""

    rng: random.Random
    windows: Windows
    size_bytes: int
    crashes: int
    clients: int
    mood: str
    structural: float
    quota_chunks: int | None
    fail_sync: bool
    chunk_bytes: int
    write_through: float
    encryption: Encryption | None
    cached_leaves: int
    runs_from: tuple[int, int]
    """Longer ones are published, and replayed, as runs; of so few chunks that leases have them."""
    batch_pages: int
    """So many pages a checkpoint gathers; with few, much happens between the first that it writes and the last."""

    @classmethod
    def of(cls, seed: int) -> Plan:
        rng = random.Random(seed)
        if rng.random() < 0.7:
            size = rng.randrange(2, 14) * CHUNK + rng.choice((0, 0, 4096, SECTOR))
            windows = Windows(((0, size),))
        else:
            size = LEAF_SPAN + 8 * CHUNK
            windows = Windows(((0, 2 * CHUNK), (LEAF_SPAN - 2 * CHUNK, 4 * CHUNK), (size - CHUNK, CHUNK)))
        return cls(
            rng,
            windows,
            size,
            crashes=rng.randint(1, CRASHES_PER_LIFE_MAX),
            clients=rng.randint(1, 6),
            mood=rng.choice(("mixed", "mixed", "sharing", *MOODS)),
            structural=rng.choice((0.0, 0.05, 0.15, 0.3, 0.5)),
            quota_chunks=rng.randrange(40, 90) if rng.random() < 0.1 else None,
            fail_sync=rng.random() < 0.06,
            chunk_bytes=4 * CHUNK if len(windows.parts) == 1 and rng.random() < 0.15 else CHUNK,
            write_through=rng.choice((0.0, 0.0, 0.0, 0.3)),
            encryption=KEYED if rng.random() < 0.1 else None,
            cached_leaves=rng.choice((1, 1, 2, 64)),
            runs_from=random.Random(seed ^ 0x2B15).choice(((1, 1), (1, 32), (2, 1), (bulk.SHORT_RUN, 1))),
            batch_pages=random.Random(seed ^ 0xBA7C).choice((1, 1, 3, checkpoint.BATCH_PAGES)),
        )


@dataclass(slots=True)
class Outcome:
    """What one seed did."""

    seed: int
    crashes: int = 0
    kills: int = 0
    power_losses: int = 0
    operations: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """How often what was done to it."""
    failure: str | None = None
    trace: list[str] = field(default_factory=list)


class Life:
    """One seed."""

    def __init__(self, seed: int, *, verbose: bool = False) -> None:
        self.power_lost = False
        self.store: TvolFile | None = None
        self.plan = Plan.of(seed)
        self.rng = self.plan.rng
        self.files = SimFileSystem(
            random.Random(self.rng.getrandbits(64)), cold_read_chance=self.rng.choice((0.0, 0.2))
        )
        self.files.halves_below = (layout.JOURNAL_FIRST_CHUNK + 1) * self.plan.chunk_bytes
        self.family = Family()
        self.disk = Disk(seed if self.plan.quota_chunks is None else None, self.files)
        self.host = Host(seed, self.files, calm=self.plan.fail_sync or self.disk.kind is not None)
        self.outcome = Outcome(seed)
        if verbose:
            self.family.story = self.outcome.trace
        self.created = False
        self.clock: SimClock

    def run(self) -> Outcome:
        """Raises Violation and whatever else the store should never raise."""
        with _sizes(self.plan):
            return self._run()

    def _run(self) -> Outcome:
        while self.outcome.crashes < self.plan.crashes or not self.created:
            self._one_process()
        self._process(self._look_only)
        self._count_faults()
        return self.outcome

    def _count_faults(self) -> None:
        count = self.outcome.faults
        for call, times in self.files.struck.items():
            count[f"failed {call}"] += times
        count["wall clock set back"] += self.host.steps_back
        count[f"full disk: {self.disk.kind}"] += self.disk.kind is not None and self.outcome.crashes

    def _one_process(self) -> None:
        rng = self.rng
        self.files.faults.clear()
        self.store = None
        if self.created and self.plan.fail_sync:
            self.files.faults.append(Fault("sync", eio, nth=rng.randint(1, 40)))
        self.disk.size_bytes = self.plan.quota_chunks * CHUNK if self.plan.quota_chunks and self.created else None
        died = self._process(self._work if self.created else self._make)
        self.files.faults.clear()
        # After a failed sync the cache shows what the medium does not have, and nobody can tell what. A store that knew
        # has told its successor, which then has no more than after a power loss; one that died before has not.
        lies = self.files.cache_lies
        power = rng.random() < 0.65 or (lies and (self.store is None or not self.store._core.failed_sync_told))
        count = self.outcome.faults
        if power:
            pattern = self.files.lose_power()
            story = f"power lost, of what pended the medium has: {pattern}" + self._rot()
            count[f"power loss: {pattern}"] += self.created
        else:
            count["kill" + ", after a failed sync" * lies] += self.created
            story = "the process ended" + ", after a failed sync" * lies
            self.files.restart_process()
        if self.created:
            self.outcome.crashes += 1
            self.outcome.kills += not power
            self.outcome.power_losses += power
        self.family.tell(f"crash {self.outcome.crashes}: {'inside an operation' if died else 'idle'}; {story}")
        self.power_lost = power or lies
        self.family.crashed(power_lost=self.power_lost)
        if self.created:
            count["inside a file operation" if died else "between or after operations"] += 1
            self._check()
            if not self.files.cache_lies and self.rng.random() < TRIAL_CHANCE:
                trial = Trial(self.files, PATH, random.Random(self.rng.getrandbits(64)), lambda record: KEYED)
                count.update(f"one flipped bit: {kind}" for kind in trial.run())

    def _rot(self) -> str:
        """Sometimes one of two good superblock slots rots while the machine is off: the other is always enough."""
        if not self.created or self.rng.random() > ROT_CHANCE:
            return ""
        image = self.files.image(PATH)
        try:
            for offset in layout.SUPERBLOCK_OFFSETS:
                layout.Superblock.parse(image.read(offset, layout.SUPERBLOCK_SIZE))
        except layout.LayoutError:
            return ""  # the crash has torn one already
        slot = self.rng.randrange(2)
        self.files.flip(PATH, layout.SUPERBLOCK_OFFSETS[slot] + self.rng.randrange(layout.SUPERBLOCK_SIZE))
        self.outcome.faults["one flipped bit, left there: superblock"] += 1
        return f"; superblock {slot} rots"

    def _process(self, main: Callable[[SimLoop, StoreEnv], object]) -> bool:
        """Run one process. True: it died; False: it ended by itself."""
        loop = SimLoop()
        turns_max = self.rng.choice((1, 3, 12, 60))
        workers = SimWorkers(loop, random.Random(self.rng.getrandbits(64)), turns_max=turns_max, slow_chance=0.05)
        self.files.on_death = loop.die
        struck = self.files.struck.total()
        try:
            clock = self.clock = self.host.begin(loop, created=self.created)
            env = StoreEnv(self.files, workers, clock, cached_leaves=self.plan.cached_leaves)
            room = self.disk.room(workers)
            loop.run_until_complete(main(loop, env if room is None else replace(env, room=room)))
        except ProcessDied:
            return True
        except (StoreFailed, MediumError, OutOfSpace):
            if not self.files.cache_lies and self.files.struck.total() == struck:
                raise
        finally:
            self.files.kill()
            loop.close()
            self.outcome.operations = self.files.operations
        if loop.errors:
            raise Violation(f"the loop reported: {loop.errors[0]}")
        return False

    async def _make(self, loop: SimLoop, env: StoreEnv) -> None:
        plan = self.plan
        store = await TvolFile.create(
            env,
            PATH,
            volume_name="vol",
            size_bytes=plan.size_bytes,
            chunk_bytes=plan.chunk_bytes,
            journal_bytes=plan.chunk_bytes,
            encryption=plan.encryption,
        )
        self.created = True
        writer = next(self.family.writers)
        self.family.adopt(store.volumes()[0], plan.windows, Content(plan.windows.sectors, {writer: 1 << 62}), writer)
        await self._clients(loop, env.workers, store)

    async def _work(self, loop: SimLoop, env: StoreEnv) -> None:
        if self.rng.random() < 0.15:
            self._plan_death(loop)
        store = self.store = await TvolFile.open(env, PATH, unlock=lambda record: KEYED)
        await decide(store, self.family, self.rng)
        await self.family.found(store, read_all, durable=self.power_lost)
        await self._clients(loop, env.workers, store)

    async def _look_only(self, loop: SimLoop, env: StoreEnv) -> None:
        self.files.faults.clear()
        self.disk.size_bytes = None
        self.disk.widen()
        store = await TvolFile.open(env, PATH, unlock=lambda record: KEYED)
        await decide(store, self.family, self.rng)
        await self.family.found(store, read_all, durable=self.power_lost)
        await store.close()
        self._check()

    def _plan_death(self, loop: SimLoop) -> None:
        rng = self.rng
        way = rng.random()
        if way < 0.15:
            self.files.die_after(rng.randint(1, 6), where=_in_a_superblock)
        elif way < 0.75:
            self.files.die_after(rng.randint(1, rng.choice((20, 100, 400, 400, 2000))))
        else:
            loop.call_after_turns(rng.randint(1, 600), self.files.kill)

    async def _clients(self, loop: SimLoop, workers: SimWorkers, store: TvolFile) -> None:
        rng = self.rng
        for volume in self.family.volumes.values():
            if volume.head is not None and rng.random() < self.plan.write_through:
                volume.head.write_cache = False
                volume.write_through = True
        self._plan_death(loop)
        crowd = [
            Client(random.Random(rng.getrandbits(64)), store, self.family, self.files, workers, MOODS[self.plan.mood])
            for _ in range(self.plan.clients)
        ]
        steps = rng.randint(5, 80)
        users = [client.run(steps, structural=self.plan.structural) for client in crowd]
        await asyncio.gather(*users, self.disk.run(crowd[0]), self.host.run(self.clock))
        if rng.random() < 0.3:
            await _pages_are_counted(store)
        if rng.random() < 0.6:
            await store.close()

    def _check(self) -> None:
        report = check_file(PATH, files=self.files, data=True)
        if report.damaged:
            raise Violation("check: " + "; ".join(str(finding) for finding in report.findings[:5]))


async def _pages_are_counted(store: TvolFile) -> None:
    """The references to pages that the running store counts are those that the file has."""
    core = store._core
    await store.settled()
    try:
        await core.checkpointer.run()
    except OutOfSpace:
        return
    pages, times = _count_references(core)
    if dict(zip(pages.tolist(), times.tolist(), strict=True)) != core.pages.counted():
        raise Violation("the store counts references to pages that its file does not have, or the other way round")


def _count_references(core):
    loader = recovery._Loader(core.file, read_superblock(core.file, writable=True))
    loader.load()
    return loader.references.summed()


def _in_a_superblock(operation: str, offset: int) -> bool:
    return operation == "sync" or (operation == "write" and offset < 2 * layout.SUPERBLOCK_SIZE)


@contextlib.contextmanager
def _sizes(plan: Plan) -> Iterator[None]:
    """What is done in lots by the thousand in a real file is done in small ones."""
    before = bulk.SHORT_RUN, map_changes.RUN_CHUNKS, checkpoint.BATCH_PAGES
    (bulk.SHORT_RUN, map_changes.RUN_CHUNKS), checkpoint.BATCH_PAGES = plan.runs_from, plan.batch_pages
    try:
        yield
    finally:
        bulk.SHORT_RUN, map_changes.RUN_CHUNKS, checkpoint.BATCH_PAGES = before


def run_seed(seed: int, *, verbose: bool = False) -> Outcome:
    """One life; a broken promise is in ``failure``, with its trace."""
    life = Life(seed, verbose=verbose)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return life.run()
    except (Exception, Deadlock) as error:
        life.outcome.failure = f"{type(error).__name__}: {error}"
        return life.outcome
    finally:
        if seed % 50 == 0:
            gc.collect()
