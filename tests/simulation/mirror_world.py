"""A synchronous mirror under concurrent writes, faults, crashes and power losses, from one seed.

    python -m tests.simulation.mirror_world --seed 1 --count 2000 [--native]     as many seeds as wanted

What is checked
    * A write acknowledged while the mirror is Synchronized is at the target; a flush that returned then is durable
      there. So is everything that hosts flushed before, at the moment when the mirror becomes Synchronized.
    * While the *durable record* says Synchronized, or that hosts are held (a failed copy stops them, in every fourth
      seed), the target has everything that was acknowledged: a process that
      is killed there could fail over without loss.
    * At every moment the target's content is write-order consistent: if it has a write, it has everything that was
      acknowledged before that write was issued. (After a power loss only from the next switch on.)
    * After any crash and the next Synchronized, both sides are equal, of the same size, and ``verify`` says so.
    * While Synchronized, ``verify`` never finds a difference.

Two worlds: ``World`` has the stores in memory (faults, delays, and what is durable can be looked at); ``NativeWorld``
has two volume files on a simulated machine, whose process dies inside any file operation.

What is not modelled: a link that reorders or loses messages (the local one does not), bit rot, two mirrors of
one volume.

``test_mirror.py`` removes the rules one by one; each must make some seed fail.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import random
import struct
import sys
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.copy_state import CopyState
from engine.errors import EngineError, InvalidState, MediumError, StoreFailed, WritesHeld
from engine.files import StoreEnv
from engine.links.local import LocalLink
from engine.mirror import Mirror
from engine.mirror_record import MirrorPolicy, MirrorRecord, point_prefix
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.units import KIB, SECTOR_SIZE
from engine.volume import Volume
from tests.support.memory_store import CHUNK, MemoryStore
from tests.support.sim_control_files import SimControlFiles
from tests.support.sim_files import SimFileSystem
from tests.support.sim_loop import ProcessDied, SimClock, SimLoop, SimWorkers

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 20 * CHUNK + 1024
SECTORS = SIZE // SECTOR_SIZE
CHECKED = 16 * CHUNK // SECTOR_SIZE
"""Sectors below this only take data writes, so that each says who wrote it; discards go above."""

LEDGER = Path("/pool/ledgers/m")
TAG = struct.Struct("<QQ")
POLICY = MirrorPolicy(budget_s=0.05, queue_bytes=96 * KIB, rounds_max=20, mark_interval_s=0.02)


class Violation(AssertionError):
    pass


@dataclass
class Write:
    """One write of a host. ``order``: when it was admitted; ``issued`` and ``acked`` count events."""

    number: int
    start: int
    end: int
    order: int = 0
    issued: int = 0
    acked: int | None = None
    acked_at: float = 0.0


@dataclass
class History:
    """What hosts did since the last power loss."""

    writes: dict[int, Write] = field(default_factory=dict)
    events: int = 0
    orders: int = 0
    flushed: np.ndarray = field(default_factory=lambda: np.zeros(CHECKED, np.int64))

    def event(self) -> int:
        self.events += 1
        return self.events

    def required(self, before: int) -> np.ndarray:
        """The order that each sector must at least have, given everything acknowledged before an event."""
        needed = np.zeros(CHECKED, np.int64)
        for write in self.writes.values():
            if write.acked is not None and write.acked < before:
                part = needed[write.start : write.end]
                np.maximum(part, write.order, out=part)
        return needed

    def orders_of(self, content: bytes) -> np.ndarray:
        """The order of the write that each sector holds; 0 for one of before the last power loss."""
        numbers = np.frombuffer(content, np.uint64).reshape(-1, SECTOR_SIZE // 8)[:CHECKED, 0]
        known = {number: write.order for number, write in self.writes.items()}
        return np.array([known.get(int(n), 0) for n in numbers], np.int64)


class Witness:
    """A tap of its own on the source: learns the order in which writes are admitted."""

    def __init__(self, history: History) -> None:
        self.history = history

    def submit(self, change):
        if change.data is not None:
            write = self.history.writes.get(TAG.unpack_from(change.data)[0])
            if write is not None:
                self.history.orders += 1
                write.order = self.history.orders
                write.issued = self.history.event()

    def source_failed(self, change, error):
        return None

    def flush(self):
        return None


class World:
    """The machine over several lives."""

    BUDGET_S = POLICY.budget_s
    SETTLE_S = 10.0
    MODULE = "tests.simulation.mirror_world"

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.policy = replace(POLICY, stops_host_io=seed % 4 == 3)
        self.files = SimFileSystem(self.rng)
        self.history = History()
        self.numbers = 0
        self.make()
        self.durable_record: dict = MirrorRecord().serialize()
        self.consistent = True
        self.synchronized = 0
        self.verified = 0
        self.violations: list[Violation] = []
        self.boot()

    # The stores, in memory.

    def make(self) -> None:
        self.stores = {"source": MemoryStore(), "target": MemoryStore()}
        for name, store in self.stores.items():
            store.create_volume(name, SIZE)

    async def open_stores(self):
        for name, store in self.stores.items():
            store.pace = self.pace_of(name)
        return [store.volumes()[0] for store in self.stores.values()]

    def content(self, head, *, whole: bool = False) -> bytes:
        """What is always there, or all of it."""
        return head.content(0, head.size_bytes if whole else SIZE)

    def crash(self, power_loss: bool) -> None:
        """The process has ended; what is left of its stores."""
        self.stores = {name: s.crash(self.rng, power_loss=power_loss) for name, s in self.stores.items()}
        self.bury()
        if power_loss:
            self.files.lose_power()
        else:
            self.files.restart_process()

    def boot(self) -> None:
        """A new process."""
        rng = self.rng
        self.dead = self.ending = False
        self.saving = asyncio.Lock()
        self.loop = SimLoop(turns_max=400_000, start_s=self.loop.time() if hasattr(self, "loop") else 0.0)
        workers = SimWorkers(self.loop, rng)
        control = SimControlFiles(self.files, workers)
        self.env = StoreEnv(self.files, workers, SimClock(self.loop), control=control)
        self.trouble: dict[str, float] = {}
        self.pause = rng.choice((0.0, 0.0005, 0.002))

    def pace_of(self, side: str):
        async def pace(operation, node, offset, length):
            rng = self.rng
            trouble = self.trouble.get(side, 0.0)
            if rng.random() < 0.6:
                await asyncio.sleep(rng.random() * 0.001)
            if trouble and rng.random() < trouble:
                if side == "target" and rng.random() < 0.5:
                    await asyncio.sleep(self.BUDGET_S * 1.5)
                else:
                    raise MediumError(f"{side} fails at {offset}")

        return pace

    async def open(self) -> None:
        source, target = await self.open_stores()
        self.source, self.target = Volume(source), Volume(target, read_only=True)
        self.witness = Witness(self.history)
        self.source.attach(self.witness)
        self.mirror = Mirror(
            "m",
            self.source,
            LocalLink(self.target, point_prefix("m")),
            self.env,
            LEDGER,
            record=MirrorRecord.parse(self.durable_record),
            save=self.save,
            tell=lambda severity, text: self.told(),
            policy=self.policy,
        )

    async def save(self, record: MirrorRecord) -> None:
        values = record.serialize()
        async with self.saving:  # the catalogue takes its calls in order
            await asyncio.sleep(self.rng.random() * 0.001)
            if not self.dead:
                self.durable_record = values

    def told(self) -> None:
        if self.dead or not self.mirror.figures.is_exact:
            return
        self.synchronized += 1
        self.consistent = True
        try:
            self.check_durable("becoming synchronized")
        except Violation as violation:
            self.violations.append(violation)  # a mirror survives what its events' receiver raises

    # Hosts.

    async def host(self) -> None:
        rng = self.rng
        try:
            while not self.ending:
                if self.pause:
                    await asyncio.sleep(rng.random() * self.pause)
                choice = rng.random()
                if choice < 0.06:
                    await self.flush()
                elif choice < 0.12:
                    start = rng.randrange(CHECKED, SECTORS - 64)
                    change = self.source.discard if rng.random() < 0.5 else self.source.write_zeroes
                    await change(start * SECTOR_SIZE, rng.randrange(1, 64) * SECTOR_SIZE)
                else:
                    await self.write()
        except EngineError:
            return

    async def write(self) -> None:
        rng = self.rng
        self.numbers += 1
        number, sectors = self.numbers, rng.choice((1, 1, 2, 8, 33))
        start = rng.randrange(0, CHECKED - sectors)
        write = self.history.writes[number] = Write(number, start, start + sectors)
        payload = bytearray(TAG.pack(number, number) * (sectors * SECTOR_SIZE // TAG.size))
        try:
            await self.source.write(start * SECTOR_SIZE, memoryview(payload), fua=rng.random() < 0.1)
        except MediumError:
            return
        finally:
            payload[:] = b"\xee" * len(payload)  # the initiator's buffer is somebody else's now
        if self.dead:
            return
        write.acked, write.acked_at = self.history.event(), self.loop.time()
        if self.mirror.figures.is_exact:
            have = self.target_orders()[write.start : write.end]
            if (have < write.order).any():
                raise Violation(f"write {number} was acknowledged without the target")

    async def flush(self) -> None:
        before = self.history.required(self.history.event())
        exact = self.mirror.figures.is_exact
        await self.source.flush()
        np.maximum(self.history.flushed, before, out=self.history.flushed)
        if exact and self.mirror.figures.is_exact:
            self.check_durable("a flush")

    # Oracles.

    def target_orders(self) -> np.ndarray:
        return self.history.orders_of(self.content(self.target.head))

    def check_durable(self, when: str) -> None:
        store = self.stores["target"]
        head = store.volumes()[0]
        durable = store.durable[head]
        content = b"".join(
            durable.chunks[i].data if i in durable.chunks else bytes(CHUNK)
            for i in range(CHECKED * SECTOR_SIZE // CHUNK)
        )
        if (self.history.orders_of(content) < self.history.flushed).any():
            raise Violation(f"{when}: the target has not made durable what hosts flushed")

    def check_order(self) -> None:
        """The target is write-order consistent."""
        if not self.consistent:
            return
        have = self.target_orders()
        visible = {int(order) for order in np.unique(have) if order}
        issued = max((w.issued for w in self.history.writes.values() if w.order in visible), default=0)
        missing = np.nonzero(have < self.history.required(issued))[0]
        if len(missing):
            raise Violation(f"sector {missing[0]} of the target misses a write older than one it has")

    def check_claim(self) -> None:
        """What the durable record claims would be true after a kill now."""
        if self.durable_record["synchronized"] or self.durable_record["held"]:
            have = self.target_orders()
            if (have < self.history.required(self.history.events + 1)).any():
                raise Violation("the record says synchronized, and the target misses an acknowledged write")

    def check_equal(self) -> None:
        if self.source.size_bytes != self.target.size_bytes:
            raise Violation(f"the source has {self.source.size_bytes} bytes, the target {self.target.size_bytes}")
        if self.content(self.source.head, whole=True) != self.content(self.target.head, whole=True):
            raise Violation("source and target differ")

    # One life.

    async def life(self) -> None:
        rng = self.rng
        await self.open()
        await self.mirror.start()
        hosts = [asyncio.ensure_future(self.host()) for _ in range(rng.randrange(1, 4))]
        for _ in range(rng.randrange(4, 14)):
            await asyncio.sleep(rng.random() * rng.choice((0.001, 0.01, 0.05)))
            self.check_order()
            self.check_claim()
            await self.disturb()
            for host in hosts:
                if host.done() and not host.cancelled():
                    host.result()
            hosts = [h if not h.done() else asyncio.ensure_future(self.host()) for h in hosts]
        if rng.random() < 0.5:
            self.check_claim()
            return  # killed here
        self.trouble.clear()
        self.pause = 0.002
        await self.settle()
        if rng.random() < 0.5:
            for host in hosts:
                host.cancel()
        self.ending = True
        await asyncio.wait(hosts)
        await asyncio.sleep(0.01)
        await self.verify()

    async def verify(self) -> None:
        """Both sides are equal. ``Mirror.verify`` is also a barrier: what was held back has been sent then."""
        for _ in range(20):
            await self.settle()
            with contextlib.suppress(InvalidState):  # a late failure of before has ended the synchronous state
                document = await self.mirror.verify("simulation")
                assert document.identical
                if self.mirror.standing.state is CopyState.SYNCHRONIZED:
                    self.check_equal()
                    return
        raise Violation(f"never verified: {self.mirror.standing}")

    async def settle(self) -> None:
        """Bring the mirror to Synchronized, as an administrator would."""
        for _ in range(50):
            try:
                await self.mirror.wait_synchronized(timeout_s=self.SETTLE_S)
            except InvalidState:
                await self.again()
            else:
                return
        raise Violation(f"never synchronized: {self.mirror.standing}")

    async def again(self) -> None:
        try:
            if self.mirror.standing.state is CopyState.SUSPENDED:
                await self.mirror.resume()
            else:
                await self.mirror.resync()
        except InvalidState:
            return

    async def disturb(self) -> None:
        rng = self.rng
        try:
            match rng.randrange(10):
                case 0:
                    await self.mirror.fracture()
                case 1:
                    await self.mirror.suspend()
                case 2 | 3:
                    await self.again()
                case 4:
                    document = await self.mirror.verify("simulation")
                    self.verified += 1
                    if not document.identical:
                        raise Violation("verify found a difference")
                case 5:
                    self.trouble["target"] = rng.choice((0.01, 0.1))
                case 6:
                    self.trouble["source"] = rng.choice((0.005, 0.02))
                case 7:
                    self.trouble.clear()
                case 8:
                    await self.resize()
                case 9:
                    await self.mirror.thin(rng.choice((0, 0, 4 * CHUNK)))
        except (InvalidState, MediumError, StoreFailed, WritesHeld):
            return

    async def resize(self) -> None:
        """As an administrator resizes a mirrored volume; hosts use only what is always there."""
        async with self.mirror.interrupted("a resize"):
            self.source.detach(self.witness)
            if self.source.taps:
                raise Violation("a mirror at rest is still attached to its source")
            try:
                await self.source.resize(SIZE + self.rng.randrange(3 * CHUNK // SECTOR_SIZE) * SECTOR_SIZE)
            finally:
                self.source.attach(self.witness)
        size = self.source.size_bytes
        if size > SIZE:
            await self.source.write(size - SECTOR_SIZE, memoryview(bytes([self.rng.randrange(1, 256)]) * SECTOR_SIZE))

    def run(self) -> None:
        for _ in range(self.rng.randrange(1, 5)):
            with contextlib.suppress(ProcessDied):
                self.loop.run_until_complete(self.life())
            if self.violations:
                raise self.violations[0]
            unexpected = [c["exception"] for c in self.loop.errors if "exception" in c]
            if unexpected:
                raise unexpected[0]
            power_loss = self.rng.random() < 0.4
            self.crash(power_loss)
            if power_loss:
                self.history = History()
                self.consistent = False
            self.boot()

    def bury(self) -> None:
        """Let the dead process's tasks unwind, where they can reach nothing any more."""
        self.dead = True
        self.files.kill()

        async def unwind() -> None:
            while tasks := asyncio.all_tasks(self.loop) - {asyncio.current_task()}:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                for task in tasks:
                    if not task.cancelled():
                        task.exception()

        self.loop.run_until_complete(unwind())
        self.loop.close()


class NativeWorld(World):
    """Two volume files on one simulated machine."""

    PATHS = (Path("/pool/volumes/source.tvol"), Path("/pool/volumes/target.tvol"))

    def make(self) -> None:
        self.created = False

    async def open_stores(self):
        if not self.created:
            for path in self.PATHS:
                store = await TvolFile.create(
                    self.env, path, volume_name=path.stem, size_bytes=SIZE, journal_bytes=2 * CHUNK
                )
                await store.close()
            self.created = True
        stores = [await TvolFile.open(self.env, path) for path in self.PATHS]
        if self.rng.random() < 0.6:
            self.files.die_after(self.rng.randint(1, self.rng.choice((50, 400, 3000))))
        return [store.volumes()[0] for store in stores]

    def content(self, head, *, whole: bool = False) -> bytes:
        _have_map(head)
        data = bytearray(head.size_bytes if whole else SIZE)
        view = memoryview(data)
        for offset in range(0, len(data), CHUNK):
            assert head.try_read(offset, view[offset : offset + CHUNK])
        return bytes(data)

    def check_durable(self, when: str) -> None:
        """Of a file only a power loss shows it."""

    def boot(self) -> None:
        super().boot()
        self.files.on_death = self.loop.die

    def crash(self, power_loss: bool) -> None:
        self.bury()
        if power_loss:
            self.files.lose_power()
        else:
            self.files.restart_process()
        for path in self.PATHS if self.created else ():
            report = check_file(path, files=self.files)
            if report.damaged:
                raise Violation(f"check: {report.findings[:3]}")

    def bury(self) -> None:
        self.dead = True
        self.files.kill()
        self.loop.close()

    def forget(self) -> None:
        """Let go of what tasks of the last process hold, and are held by: they are collected now, or in some test."""
        del self.loop, self.env
        for name in ("source", "target", "mirror", "witness"):
            self.__dict__.pop(name, None)


def _have_map(head) -> None:
    """Have a head's map in memory, as its first reader would: ``try_read`` declines what is not."""
    found, source = head.node.map, head._core.maps._source
    if not found.loaded:
        found.load(source.leaves(tuple(found.tops), found.count))
    for leaf in found.leaves:
        if not leaf.resident:
            leaf.hold(source.entries(leaf))


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """What coroutines of dead processes say when they are collected is heard by nobody."""
    heard, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = heard


def run(seed: int, kind: type[World] = World) -> World:
    """One seed. Raises Violation, with the line that replays it."""
    world = kind(seed)
    try:
        with warnings.catch_warnings(), _unheard():
            warnings.simplefilter("ignore")  # tasks of dead processes never end
            world.run()
            world.bury()
            if kind is NativeWorld:
                world.forget()
                gc.collect()
    except AssertionError as error:
        world.bury()
        native = " --native" if kind is NativeWorld else ""
        replay = f"python -m {kind.MODULE} --seed {seed} --count 1{native}"
        raise Violation(f"{error}\nreplay: {replay}") from error
    return world


def main() -> None:
    """Run many seeds, count what happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mirror_world")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--native", action="store_true")
    options = parser.parse_args()
    worlds = failures = synchronized = verified = 0
    for seed in range(options.seed, options.seed + options.count):
        worlds += 1
        try:
            world = run(seed, NativeWorld if options.native else World)
        except Violation as violation:
            failures += 1
            print(violation)
        else:
            synchronized += world.synchronized
            verified += world.verified
    print(f"{worlds} seeds, {failures} failed; {synchronized} times synchronized, {verified} verified under load")


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # what tasks of dead processes have to say
    main()
