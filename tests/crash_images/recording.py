"""A real daemon under load, with every change of its files recorded, and what its clients saw, with the times.

The clients note an operation before they send it and again when it was answered. With the same clock in the trace that
tells, for each moment of the trace, what must have happened before it and what cannot have happened yet.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iscsi.initiator import IscsiUrl, connect
from tests.support.daemon import Daemon
from tests.support.volume_oracle import SECTOR, tagged
from twinvol.api.client import open_api

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engine.api import EngineApi
    from iscsi.initiator import IscsiDisk

SIZE = 4 << 20
VOLUME = "traced"
WRITERS = 4
MAX_SNAPSHOTS = 8
"""Of one life; those of earlier lives stay."""
TRACE_VARIABLE = "TWINVOL_TRACE_FILES"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a client did at ``time_ns``, or (``answered``) heard that it had been done.

    ``what``: write, zero, flush, snapshot, delete, clone, delete clone. ``number``: grows with each operation.
    """

    time_ns: int
    what: str
    number: int
    answered: bool
    start: int = 0
    end: int = 0
    writer: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Recording:
    """What ``record`` has made. ``kills``: lives of the daemon that ended by SIGKILL."""

    trace: Path
    volume_file: Path
    events: list[Event]
    kills: int


class _Notes:
    """Operations in the order in which they were begun."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._last = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def begin(self, what: str, **details: int | str) -> Callable[[], None]:
        """Note that an operation begins; call what comes back when it was answered."""
        self._last += 1
        for waiting in [waiting for waiting in self._waiting if waiting[0] <= self._last]:
            self._waiting.remove(waiting)
            if not waiting[1].done():
                waiting[1].set_result(None)
        fields = {"what": what, "number": self._last, **details}
        self.events.append(Event(time.monotonic_ns(), answered=False, **fields))  # type: ignore[arg-type]
        return lambda: self.events.append(Event(time.monotonic_ns(), answered=True, **fields))  # type: ignore[arg-type]

    @property
    def last(self) -> int:
        """The number of the operation that was begun last."""
        return self._last

    async def passed(self, count: int) -> None:
        """Wait until so many more were begun."""
        reached = asyncio.get_running_loop().create_future()
        self._waiting.append((self._last + count, reached))
        await reached


class _Writer:
    """Writes to a part of the volume that is its own, one command at a time, so that their order is certain."""

    def __init__(self, disk: IscsiDisk, notes: _Notes, rng: random.Random, writer: int) -> None:
        self._disk = disk
        self._notes = notes
        self._rng = rng
        self._writer = writer
        part = SIZE // SECTOR // WRITERS
        self._first, self._end = (writer - 1) * part, writer * part

    async def run(self, operations: int) -> None:
        for _ in range(operations):
            kind = self._rng.random()
            if kind < 0.12:
                done = self._notes.begin("flush")
                await self._disk.flush()
                done()
            elif kind < 0.17:
                await self._zero()
            else:
                await self._write()

    def _extent(self) -> tuple[int, int]:
        sectors = self._rng.choice((1, 7, 8, 8, 8, 8, 16, 64, 128, 200, 512))
        start = self._rng.randrange(self._first, self._end - sectors)
        if self._rng.random() < 0.8 and sectors >= 8:
            start -= start % 8
        return start, start + sectors

    async def _write(self) -> None:
        start, end = self._extent()
        done = self._notes.begin("write", start=start, end=end, writer=self._writer)
        await self._disk.write(start * SECTOR, tagged(self._notes.last, start, end - start, self._writer))
        done()

    async def _zero(self) -> None:
        start, end = self._extent()
        done = self._notes.begin("zero", start=start, end=end)
        await self._disk.write_zeroes(start * SECTOR, (end - start) * SECTOR)
        done()


async def _administrate(api: EngineApi, notes: _Notes, rng: random.Random, life: int) -> None:
    """Makes and deletes snapshots and linked clones of them, until it is cancelled."""
    kept: list[str] = []
    clones: list[tuple[str, str]] = []
    for number in itertools.count():
        await notes.passed(rng.randint(1, 60))
        kind = rng.random()
        if len(kept) < MAX_SNAPSHOTS and (kind < 0.5 or len(kept) < 2):
            name = f"s{life}-{number}"
            done = notes.begin("snapshot", name=name)
            await api.snapshot_create(VOLUME, name)
            done()
            kept.append(name)
        elif kind < 0.65 and len(clones) < 3:
            source, name = rng.choice(kept), f"c{life}-{number}"
            done = notes.begin("clone", name=f"{name}@{source}")
            await api.clone_create(VOLUME, source, name)
            done()
            clones.append((name, source))
        elif kind < 0.8 and clones:
            name, _ = clones.pop(rng.randrange(len(clones)))
            done = notes.begin("delete clone", name=name)
            await api.volume_delete(name)
            done()
        else:
            free = [name for name in kept if name not in {source for _, source in clones}]
            if free:
                name = rng.choice(free)
                kept.remove(name)
                done = notes.begin("delete", name=name)
                await api.snapshot_delete(VOLUME, name)
                done()


async def _life(daemon: Daemon, url: str, notes: _Notes, rng: random.Random, operations: int, life: int) -> None:
    """All clients at once, until the writers have done their part or the daemon has gone."""
    at = IscsiUrl.parse(url)
    async with open_api(daemon.pool) as api, await connect((at.host, at.port), at.target, at.lun) as disk:
        writers = [
            asyncio.create_task(_Writer(disk, notes, random.Random(rng.random()), number + 1).run(operations))
            for number in range(WRITERS)
        ]
        administrator = asyncio.create_task(_administrate(api, notes, rng, life))
        await asyncio.wait(writers, return_when=asyncio.FIRST_EXCEPTION)
        administrator.cancel()
        for ended in await asyncio.gather(*writers, administrator, return_exceptions=True):
            if isinstance(ended, Exception) and daemon.process.poll() is None:
                raise ended  # a daemon that lives has refused something


async def _kill_in_the_middle(daemon: Daemon, notes: _Notes, after: int) -> None:
    """SIGKILL to the daemon when so many more operations were begun."""
    await notes.passed(after)
    daemon.kill()


def record(folder: Path, *, seed: int, operations: int, kills: int) -> Recording:
    """Run a daemon on ``folder``, kill it ``kills`` times under load, stop it at the end.

    ``operations``: of each writer in each life.
    """
    rng = random.Random(seed)
    notes = _Notes()
    trace = folder / "trace"
    for life in range(kills + 1):
        with Daemon.start(folder / "pool", environment={TRACE_VARIABLE: str(trace)}) as daemon:
            url = daemon.volume(VOLUME, str(SIZE)) if not life else daemon.url(daemon.run("volume", "show", VOLUME))

            async def run(daemon: Daemon = daemon, url: str = url, life: int = life) -> None:
                tasks = [asyncio.create_task(_life(daemon, url, notes, rng, operations, life))]
                if life < kills:
                    after = rng.randint(operations, operations * (WRITERS - 1))
                    tasks.append(asyncio.create_task(_kill_in_the_middle(daemon, notes, after)))
                await asyncio.gather(*tasks)

            asyncio.run(run())
    (volume_file,) = (folder / "pool").rglob("*.tvol")
    return Recording(trace, volume_file, notes.events, kills)
