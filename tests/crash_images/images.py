"""What a crash at some moment of a recorded run may have left in the volume file, and whether that is good enough.

The trace is played up to a moment. What a sync covered that had ended by then is on the medium for certain; of
everything else any part may be there: all, nothing, the oldest, the newest, single ones, torn ones
(``SimFileSystem.lose_power``). The image is checked by ``twinvol check``'s code, opened by the store, read whole,
written to, and checked again. The events of the clients up to that moment say what must be in it:

    * power loss: what was acknowledged before a flush began that was answered; a snapshot or clone that was answered,
      with everything that had been acknowledged before it was asked for; none whose deletion was answered;
    * kill: everything acknowledged;
    * every sector of a volume, snapshot or clone is that, or what a later operation wrote that had begun; nothing else.

The same module that judges the simulation judges here (``tests.support.volume_oracle``). Another judge has a file
system in the volume (``filesystem.py``).
"""

from __future__ import annotations

import bisect
import os
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine.file_trace import Kind, Record, read_trace
from engine.files import StoreEnv
from engine.tvol import layout
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.units import CHUNK_SIZES
from tests.crash_images.recording import SECTOR, SIZE, VOLUME, WRITERS, Event, Recording
from tests.simulation.clients import read_all
from tests.support.sim_files import Effect, Inode, SimFileSystem, SparseBytes
from tests.support.sim_loop import SimClock, SimLoop, SimWorkers
from tests.support.volume_oracle import Content, Violation, Windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from engine.stores import Frozen, Head

    Floors = tuple[np.ndarray, np.ndarray]

IMAGE = Path("/pool/volumes/image.tvol")
HALVES_BELOW = CHUNK_SIZES[0] * layout.JOURNAL_FIRST_CHUNK + layout.DEFAULT_JOURNAL_BYTES
"""Superblocks and journal: a power loss tears what is written there within sectors, too."""
WINDOWS = Windows(((0, SIZE),))
SECTORS = SIZE // SECTOR
_CHANGES = {Kind.WRITE: "write", Kind.PUNCH: "punch", Kind.ALLOCATE: "allocate", Kind.TRUNCATE: "truncate"}


@dataclass(slots=True)
class _Pending:
    """An operation that no sync has covered. ``ended``: it returned, so a sync that begins now covers it."""

    effect: Effect
    ended: bool = False


class Medium:
    """One file of the trace: what is durable for certain, and what is not."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._file = 0
        self._durable = SparseBytes()
        self._pending: dict[int, _Pending] = {}
        self._covered: dict[int, list[int]] = {}
        self.boot_id = ""

    def play(self, record: Record) -> None:
        """The next record of the trace."""
        if record.kind is Kind.START:
            self.boot_id = record.data.decode("ascii")
            self._file = 0
            self._covered.clear()
            for pending in self._pending.values():  # nobody is left who could still be in the middle of one
                pending.ended = True
        elif record.kind is Kind.OPEN:
            if Path(os.fsdecode(record.data)).name == self._name:  # it is made under its name, in another folder
                self._file = record.file
        elif record.file != self._file:
            return
        elif record.kind in _CHANGES:
            effect = Effect(_CHANGES[record.kind], record.offset, record.length, record.data)
            self._pending[record.number] = _Pending(effect)
        elif record.kind is Kind.SYNC:
            self._covered[record.number] = [number for number, pending in self._pending.items() if pending.ended]
        elif record.ends in self._covered:
            for number in self._covered.pop(record.ends) if record.kind is Kind.DONE else ():
                self._pending.pop(number).effect.apply(self._durable)
        elif record.ends in self._pending:
            self._pending[record.ends].ended = True

    @property
    def exists(self) -> bool:
        return self._file != 0

    def after_power_loss(self) -> Inode:
        """The medium, and what the cache had."""
        pending = [replace(p.effect, halves=p.effect.offset < HALVES_BELOW) for p in self._pending.values()]
        return Inode(self._live(), self._durable.copy(), pending, entry_durable=True)

    def after_kill(self, rng: random.Random) -> Inode:
        """The page cache; operations that had not returned are in it, or not, or in part."""
        live = self._durable.copy()
        for pending in self._pending.values():
            if pending.ended or rng.random() < 0.5:
                pending.effect.apply(live)
            elif rng.random() < 0.5:
                pending.effect.apply_torn(live, rng)
        return Inode(live, live.copy(), [], entry_durable=True)

    def _live(self) -> SparseBytes:
        live = self._durable.copy()
        for pending in self._pending.values():
            pending.effect.apply(live)
        return live


@dataclass(slots=True)
class _Thing:
    """A snapshot or clone. It must be there while ``certain``; it may be while it is in the table at all."""

    content: Content
    certain: bool = False


@dataclass(slots=True)
class Promises:
    """What the clients know at a moment."""

    content: Content = field(default_factory=lambda: Content(SECTORS, dict.fromkeys(range(1, WRITERS + 1), 0)))
    snapshots: dict[str, _Thing] = field(default_factory=dict)
    clones: dict[str, _Thing] = field(default_factory=dict)
    flushing: dict[int, Floors] = field(default_factory=dict)
    number: int = 0

    def play(self, event: Event) -> None:
        """The next event. A daemon that was killed never answers; what it was asked then stays possible for ever."""
        self.number = max(self.number, event.number)
        if event.what in ("write", "zero"):
            self._written(event)
        elif event.what == "flush":
            if event.answered:
                self.content.flushed(self.flushing.pop(event.number))
            else:
                self.flushing[event.number] = self.content.flushing()
        elif event.what == "snapshot":
            self._snapshot(event)
        elif event.what == "clone":
            name, _, source = event.name.partition("@")
            if event.answered:
                self.clones[name].certain = True
            else:
                self.clones[name] = _Thing(self.snapshots[source].content)
        else:
            things = self.snapshots if event.what == "delete" else self.clones
            if event.answered:
                del things[event.name]
            else:
                things[event.name].certain = False

    def _written(self, event: Event) -> None:
        if event.answered:
            value = event.number if event.what == "write" else 0
            self.content.acknowledged(event.start, event.end, event.number, value=value)
        elif event.what == "write":
            self.content.lineage[event.writer] = event.number
        else:
            self.content.zeroing(event.start, event.end, event.number)

    def _snapshot(self, event: Event) -> None:
        """It is taken between question and answer: what was acknowledged before is in it, what begins after is not."""
        if not event.answered:
            self.snapshots[event.name] = _Thing(self.content.frozen_at(event.number))
            return
        snapshot = self.snapshots[event.name]
        snapshot.certain = True
        self._close(snapshot.content)

    def _close(self, content: Content) -> None:
        """Nothing that begins from now on can be in a snapshot's content."""
        content.ceiling = self.number
        content.lineage = dict(self.content.lineage)
        content.zeroed = self.content.zeroed.copy()

    async def judge(self, store: TvolFile, *, power_lost: bool) -> None:
        """Raises Violation."""
        self._settle()
        heads = {head.name: head for head in store.volumes()}
        volume = heads.pop(VOLUME, None)
        if volume is None:
            raise Violation("the volume is gone")
        content = self.content
        floor = (content.durable_base, content.durable_floor) if power_lost else content.floor_of(0, SECTORS)
        content.verify(await read_all(volume, WINDOWS), 0, floor, "the volume")
        await _match({item.name: item for item in store.snapshots()}, self.snapshots, "snapshot")
        await _match(heads, self.clones, "clone")

    def _settle(self) -> None:
        """Snapshots that nobody has answered could have been taken just now."""
        for snapshot in self.snapshots.values():
            if not snapshot.certain and snapshot.content.ceiling < self.number:
                self._close(snapshot.content)


class Judge(Protocol):
    """What is known at a moment, and what must be in an image therefore."""

    def play(self, event: Event) -> None:
        """The next event."""
        ...

    async def judge(self, store: TvolFile, *, power_lost: bool) -> None:
        """Raises Violation."""
        ...


class _Files(SimFileSystem):
    """The machine on which an image is opened."""

    def __init__(self, rng: random.Random, boot_id: str) -> None:
        super().__init__(rng)
        self._real_boot_id = boot_id
        self.power_lost = False

    def boot_id(self) -> str:
        return super().boot_id() if self.power_lost else self._real_boot_id


def examine(medium: Medium, promises: Judge, seed: int, *, power_lost: bool) -> str:
    """Make one image, and hold it to its promises. Returns how it was made. Raises Violation."""
    rng = random.Random(seed)
    files = _Files(rng, medium.boot_id)
    files.power_lost = power_lost
    if power_lost:
        files.put(IMAGE, medium.after_power_loss())
        made = f"power loss, of what pended the medium has: {files.lose_power()}"
    else:
        files.put(IMAGE, medium.after_kill(rng))
        made = "kill"
    _check(files, "before it was opened")
    loop = SimLoop()
    env = StoreEnv(files, SimWorkers(loop, random.Random(rng.random())), SimClock(loop))
    try:
        loop.run_until_complete(_open_and_read(env, promises, power_lost=power_lost))
    finally:
        loop.close()
    _check(files, "after it was used again")
    return made


def _check(files: SimFileSystem, when: str) -> None:
    report = check_file(IMAGE, files=files)
    if report.damaged:
        raise Violation(f"check {when}: " + "; ".join(str(finding) for finding in report.findings[:5]))


async def _open_and_read(env: StoreEnv, promises: Judge, *, power_lost: bool) -> None:
    store = await TvolFile.open(env, IMAGE)
    await promises.judge(store, power_lost=power_lost)
    volume = store.volume(VOLUME)
    await volume.write(0, memoryview(b"\x55" * SECTOR))
    await volume.flush()
    await store.close()


async def _match(found: dict[str, Head] | dict[str, Frozen], promised: dict[str, _Thing], what: str) -> None:
    for name, thing in promised.items():
        if thing.certain and name not in found:
            raise Violation(f"{what} {name} is gone")
    for name, item in found.items():
        if name not in promised:
            raise Violation(f"{what} {name} exists, but was deleted or never made")
        content = promised[name].content
        content.verify(await read_all(item, WINDOWS), 0, content.floor_of(0, SECTORS), f"{what} {name}")


def moments(records: list[Record], count: int, rng: random.Random) -> list[int]:
    """Numbers of records at which to crash: anywhere, but half of them around syncs and writes of superblocks."""
    telling = [r.number for r in records if r.kind is Kind.SYNC or (r.kind is Kind.WRITE and r.offset < 1 << 16)]
    ends = [record.number for record in records if record.kind is Kind.DONE and record.ends in set(telling)]
    near = [number + rng.randint(0, 2) for number in (*telling, *ends)]
    chosen = [rng.choice(near) if rng.random() < 0.5 else rng.choice(records).number for _ in range(count)]
    return sorted(min(number, records[-1].number) for number in chosen)


def images(
    recording: Recording,
    count: int,
    seed: int,
    *,
    promises: Judge | None = None,
    believed: Callable[[Record], bool] = lambda record: True,
) -> Iterator[tuple[int, int, Callable[[], str]]]:
    """``count`` images of a recorded run, in the order of the moments: (record, seed, examine it).

    ``promises``: who judges them. ``believed``: records that it refuses are played as if they had not happened.
    """
    rng = random.Random(seed)
    records = list(read_trace(recording.trace))
    medium, promises = Medium(recording.volume_file), promises or Promises()
    times = [event.time_ns for event in recording.events]
    played = heard = 0
    made = next(record.number for record in records if recording.events[0].time_ns < record.time_ns)
    for moment in moments(records[made:], count, rng):
        while played < moment:
            if believed(records[played]):
                medium.play(records[played])
            played += 1
        known = bisect.bisect_left(times, records[moment].time_ns)
        for event in recording.events[heard:known]:
            promises.play(event)
        heard = max(heard, known)
        own = rng.getrandbits(32)
        yield moment, own, lambda own=own: examine(medium, promises, own, power_lost=own % 4 != 0)
