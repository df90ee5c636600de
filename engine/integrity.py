"""Scrubs of a pool's volumes: runs that go on after a restart, their budget, what they found, the policy ``always``.

A *run* goes through a volume range by range; each that is done is recorded in the catalogue with the number of the run.
So a run that was paused, or ended with the daemon, goes on with the ranges that it has not done; and of each range it
is known when it was last verified. A run that the daemon's end interrupted begins again by itself with the next start.

Volumes under the policy ``always`` are looked at once a second: when their file was not written for ``QUIET_S``, or is
written all the time and was not gone through for ``LATEST_S``, what has no digest yet gets one. Nothing keeps a record
of writes for that: the file's modification time says it.

What is found is logged and recorded as an event, at most ``MAX_EVENTS`` of one run; a bad chunk is repaired from a
mirror's other side where that has the same bytes (the digest decides).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, IntegrityError, InUse, InvalidArgument, InvalidState
from engine.tvol.scrub import Found, ScrubCounts
from engine.units import MIB, align_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from engine.api import ScrubInfo, ScrubRange
    from engine.files import Clock
    from engine.jobs import Job
    from engine.pool import Pool
    from engine.stores import BlockDevice
    from engine.tvol.file import TvolFile
    from engine.tvol.scrub import Finding
    from engine.volume import Volume

log = logging.getLogger(__name__)

DEFAULT_RATE_BYTES_S = 100 * MIB
"""What a scrub reads at most, unless told otherwise: far below what a disk can, so that nobody notices."""
MAX_RATE_BYTES_S = 1 << 40
MAX_RANGES = 1024
"""Of a volume: rows of the catalogue, and of an answer."""
MAX_EVENTS = 100
QUIET_S = 10.0
LATEST_S = 600.0
TICK_S = 1.0
REPAIR_POINTS = 8
"""Recovery points of a mirror's other side that are asked for a chunk, the newest first."""

LAZY, ALWAYS = "lazy", "always"
NEVER, RUNNING, PAUSED, FINISHED, FAILED = "never", "running", "paused", "finished", "failed"


@dataclass(slots=True)
class _Record:
    """What the catalogue keeps of a volume's scrubs. ``counts``: of the last run."""

    policy: str = LAZY
    state: str = NEVER
    run: int = 0
    rate_bytes_s: int = DEFAULT_RATE_BYTES_S
    range_bytes: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    counts: dict[str, int] = field(default_factory=lambda: asdict(ScrubCounts()))

    @classmethod
    def of(cls, stored: dict[str, Any]) -> _Record:
        known = {name: stored[name] for name in cls.__slots__ if name in stored}
        return cls(**known)


class _Pace:
    """Keeps a budget: each piece waits until those before it have had their time."""

    def __init__(self, clock: Clock, rate_bytes_s: int, tell: Callable[[int], None]) -> None:
        self._clock = clock
        self._rate = rate_bytes_s
        self._tell = tell
        self._free_at = clock.monotonic()

    async def __call__(self, length: int) -> None:
        now = self._clock.monotonic()
        await asyncio.sleep(max(0.0, self._free_at - now))
        self._free_at = max(self._free_at, now) + length / self._rate
        self._tell(length)


class Integrity:
    """See the module."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.copies: Callable[[str], Sequence[Volume]] = lambda _: ()
        """The other sides of a volume's mirrors; set by whoever keeps them."""
        self._records: dict[str, _Record] = {}
        self._done: dict[str, dict[int, tuple[int, float]]] = {}
        """By volume, by number of the range: the run that went through it last, and when."""
        self._jobs: dict[str, Job] = {}
        self._beginning = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None
        self._seen: dict[str, _Seen] = {}
        self._events: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Go on with what the end of the daemon interrupted."""
        for volume_id, stored in (await self._pool.catalog.scrubs.records()).items():
            self._records[volume_id] = _Record.of(stored)
        self._done = await self._pool.catalog.scrubs.ranges()
        for volume in self._pool.volumes():
            if self._record(volume).state == RUNNING:
                await self._begin(volume)
        self._keeper = asyncio.create_task(self._keep(), name="digests")

    async def close(self) -> None:
        """The jobs have ended."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        if self._events:
            await asyncio.wait(self._events)

    # --- looking ----------------------------------------------------------------------------------------------

    def reasons(self) -> list[str]:
        """One line for each file with bad chunks."""
        return [
            f"{path.name} has {bad} bad chunk{'s' if bad > 1 else ''}: reading them is a MEDIUM ERROR until they are"
            " repaired or overwritten (twinvol volume scrub)"
            for path, bad in self._pool.bad_chunks().items()
        ]

    def policy(self, volume: Volume) -> str:
        """``lazy`` or ``always``."""
        record = self._records.get(volume.volume_id)
        return LAZY if record is None else record.policy

    def ranges(self, volume: Volume) -> list[ScrubRange]:
        """When each range was last verified; of a volume that never was scrubbed, none."""
        from engine.api import ScrubRange  # late: see there

        size, step = self._store(volume).scrub_bytes(volume.head), self._record(volume).range_bytes
        done = self._done.get(volume.volume_id, {})
        offsets = range(0, size, step) if step else ()
        return [ScrubRange(at, min(step, size - at), done.get(at // step, (0, None))[1]) for at in offsets]

    def verified_at(self, volume: Volume) -> float | None:
        """Since when all of it is known to be good: the oldest of its ranges' times. None: some never were."""
        if volume.volume_id not in self._done:
            return None
        times = [each.verified_at for each in self.ranges(volume)]
        known = [at for at in times if at is not None]
        return min(known) if known and len(known) == len(times) else None

    def info(self, volume: Volume) -> ScrubInfo:
        from engine.api import ScrubInfo  # late: see there

        record, store = self._record(volume), self._store(volume)
        job = self._jobs.get(volume.volume_id)
        return ScrubInfo(
            volume=volume.name,
            policy=record.policy,
            state=record.state,
            job=None if job is None else job.job_id,
            rate_bytes_s=record.rate_bytes_s,
            started_at=record.started_at,
            finished_at=record.finished_at,
            verified_chunks=record.counts["verified"],
            new_digests=record.counts["made"],
            bad_chunks=record.counts["bad"],
            repaired_chunks=record.counts["repaired"],
            transient_chunks=record.counts["transient"],
            chunk_bytes=store.chunk_bytes,
            file_digests=store.digested_chunks,
            file_bad_chunks=store.bad_chunks,
            verified_at=self.verified_at(volume),
            ranges=self.ranges(volume),
        )

    # --- runs -------------------------------------------------------------------------------------------------

    async def scrub(self, volume: Volume, rate_bytes_s: int | None) -> Job:
        """Begin a run, or go on with one that was paused. Raises InUse: one is under way."""
        async with self._beginning:
            return await self._scrub(volume, rate_bytes_s)

    async def _scrub(self, volume: Volume, rate_bytes_s: int | None) -> Job:
        record = self._record(volume)
        if volume.volume_id in self._jobs:
            raise InUse(f"volume {volume.name} is being scrubbed by job {self._jobs[volume.volume_id].job_id}")
        volume.require_usable()
        if rate_bytes_s is not None:
            if not 0 < rate_bytes_s <= MAX_RATE_BYTES_S:
                raise InvalidArgument(f"a rate is 1 to {MAX_RATE_BYTES_S} bytes per second, not {rate_bytes_s}")
            record = replace(record, rate_bytes_s=rate_bytes_s)
        if record.state not in (PAUSED, RUNNING, FAILED):
            record = replace(record, run=record.run + 1, counts=asdict(ScrubCounts()))
            record.started_at, record.finished_at = self._pool.env.clock.time(), None
        await self._keep_record(volume, replace(record, state=RUNNING))
        return await self._begin(volume)

    async def pause(self, volume: Volume) -> None:
        """End the run for now; ``scrub`` goes on with it. Raises InvalidState: none is under way."""
        job = self._jobs.get(volume.volume_id)
        if job is None:
            raise InvalidState(f"volume {volume.name}", "not being scrubbed", "a scrub under way")
        await self._pool.jobs.cancel(job.job_id)

    async def set_policy(self, volume: Volume, policy: str) -> None:
        """Raises InvalidArgument."""
        if policy not in (LAZY, ALWAYS):
            raise InvalidArgument(f"{policy!r} is no policy for digests; say {LAZY} or {ALWAYS}")
        record = self._record(volume)
        record.policy = policy  # in place: a run that is under way goes on to write this record
        await self._keep_record(volume, record)

    async def _begin(self, volume: Volume) -> Job:
        async def work(job: Job) -> dict[str, Any]:
            try:
                return await self._run(volume, job)
            except asyncio.CancelledError:
                if job.cancelling:
                    await self._keep_record(volume, replace(self._record(volume), state=PAUSED))
                raise
            except IntegrityError:
                raise  # it has gone through everything
            except EngineError:
                await self._keep_record(volume, replace(self._record(volume), state=FAILED))
                raise
            finally:
                self._jobs.pop(volume.volume_id, None)

        job = self._jobs[volume.volume_id] = await self._pool.jobs.start("scrub", volume.name, work, reads=volume.name)
        return job

    async def _run(self, volume: Volume, job: Job) -> dict[str, Any]:
        catalog = self._pool.catalog.scrubs
        store, record = self._store(volume), self._record(volume)
        size_bytes = store.scrub_bytes(volume.head)
        range_bytes = _range_bytes(size_bytes, store.chunk_bytes)
        if record.range_bytes != range_bytes:
            record.range_bytes = range_bytes
            self._done.pop(volume.volume_id, None)
            await catalog.forget_ranges(volume.volume_id)
        done = self._done.setdefault(volume.volume_id, {})
        count = -(-size_bytes // range_bytes)
        todo = [number for number in range(count) if done.get(number, (0, 0.0))[0] != record.run]
        begun = size_bytes - sum(min(range_bytes, size_bytes - n * range_bytes) for n in todo)
        job.progress(begun, size_bytes)
        within = 0
        told = 0

        def read(length: int) -> None:
            nonlocal within
            within = min(range_bytes, within + length)
            job.progress(min(size_bytes, begun + within))

        bad: dict[int, Finding] = {}

        def report(finding: Finding) -> None:
            nonlocal told
            told += 1
            self._found(volume, finding, quiet=told > MAX_EVENTS)
            if finding.found in (Found.BAD, Found.UNREADABLE):
                bad[finding.chunk] = finding
            elif finding.found is Found.MAP_LOST:
                bad[-1 - finding.offset] = finding
            elif finding.found is Found.REPAIRED:
                bad.pop(finding.chunk, None)

        before = record.counts
        pace = _Pace(self._pool.env.clock, record.rate_bytes_s, read)
        scrubber = store.scrubber(
            volume.head, pace=pace, report=report, repair=_Copies(lambda volume_id: self.copies(volume_id))
        )
        for number in todo:
            within = 0
            first = number * range_bytes // store.chunk_bytes
            end = -(-min((number + 1) * range_bytes, size_bytes) // store.chunk_bytes)
            if first < end:
                await scrubber.run(first, end)
            begun = min(size_bytes, begun + range_bytes)
            job.progress(begun)
            record.counts = {name: before.get(name, 0) + value for name, value in asdict(scrubber.counts).items()}
            at = self._pool.env.clock.time()
            done[number] = (record.run, at)
            await catalog.range_done(volume.volume_id, number, record.run, at, asdict(record))
        record.state, record.finished_at = FINISHED, self._pool.env.clock.time()
        await self._keep_record(volume, record)
        for first_bad in bad.values():
            where = f"{len(bad)} places of volume {volume.name} have rotted, the first in {first_bad.node}"
            raise IntegrityError(where, first_bad.offset, store.chunk_bytes, first_bad.expected, first_bad.actual)
        return {"volume": volume.name, **record.counts}

    # --- the policy always ------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for volume in self._pool.volumes():
                here = self._pool.find(volume.volume_id) is volume
                if here and self.policy(volume) == ALWAYS and volume.volume_id not in self._jobs:
                    try:
                        await self._look(volume)
                    except EngineError as error:
                        log.warning("volume %s: digests are put off: %s", volume.name, error)
                    except Exception:
                        log.exception("volume %s: a mistake in twinvol while making digests", volume.name)

    async def _look(self, volume: Volume) -> None:
        """Give what has no digest one, if this is the time."""
        path, now = self._pool.file_of(volume), self._pool.env.clock.monotonic()
        changed = await asyncio.to_thread(lambda: path.stat().st_mtime_ns)
        seen = self._seen.setdefault(volume.volume_id, _Seen(changed, now, now))
        if changed != seen.changed:
            seen.changed, seen.since = changed, now
        quiet = now - seen.since >= QUIET_S and seen.digested != changed
        if not quiet and (now - seen.passed_at < LATEST_S or seen.digested == changed):
            return
        await self.digest_new(volume)
        seen.passed_at = self._pool.env.clock.monotonic()
        seen.digested = await asyncio.to_thread(lambda: path.stat().st_mtime_ns) if quiet else 0

    async def digest_new(self, volume: Volume) -> int:
        """Make the digests that are missing; how many."""
        store = self._store(volume)
        pace = _Pace(self._pool.env.clock, self._record(volume).rate_bytes_s, lambda length: None)
        scrubber = store.scrubber(
            volume.head, pace=pace, report=lambda finding: self._found(volume, finding), make_only=True
        )
        await scrubber.run(0, -(-store.scrub_bytes(volume.head) // store.chunk_bytes))
        return scrubber.counts.made

    # --- inside -----------------------------------------------------------------------------------------------

    def _record(self, volume: Volume) -> _Record:
        return self._records.get(volume.volume_id) or _Record()

    async def _keep_record(self, volume: Volume, record: _Record) -> None:
        self._records[volume.volume_id] = record
        await self._pool.catalog.scrubs.put(volume.volume_id, asdict(record))

    def _store(self, volume: Volume) -> TvolFile:
        return self._pool.store_of(volume)

    def _found(self, volume: Volume, finding: Finding, *, quiet: bool = False) -> None:
        severity, text = _TEXTS[finding.found]
        where = f"{finding.node} at byte {finding.offset} (chunk {finding.chunk})"
        line = text.format(where=where, text=finding.text)
        log.log(
            logging.ERROR if severity == "error" else logging.WARNING,
            "volume %s: %s; digest %s, expected %s", volume.name, line, finding.actual or "-", finding.expected or "-",
        )  # fmt: skip
        if not quiet:
            clock = self._pool.env.clock
            task = asyncio.create_task(
                self._pool.catalog.add_event(clock.time(), severity, f"volume {volume.name}", line)
            )
            self._events.add(task)
            task.add_done_callback(self._events.discard)


_TEXTS = {
    Found.TRANSIENT: ("warning", "{where} was wrong in the host's memory and is right on the medium"),
    Found.BAD: ("error", "{where} has rotted: it is marked bad, and reading it is a MEDIUM ERROR"),
    Found.UNREADABLE: ("error", "{where} cannot be read by the host: it is marked bad"),
    Found.UNREADABLE_UNKNOWN: ("error", "{where} cannot be read by the host; it has no digest"),
    Found.REPAIRED: ("info", "{where} was bad and has been repaired from a copy"),
    Found.MAP_LOST: ("error", "{text}: what it maps cannot be read"),
    Found.DIGESTS_LOST: ("error", "{text}; they are made anew from what the chunks hold now"),
}


@dataclass(slots=True)
class _Seen:
    """What is known of the writes to a volume's file, for the policy ``always``."""

    changed: int
    """Modification time, ns."""
    since: float
    """Monotonic time at which it was first seen."""
    passed_at: float
    digested: int = 0
    """The modification time up to which everything has a digest."""


class _Copies:
    """The other sides of mirrors as ``engine.tvol.scrub.RepairSource``."""

    def __init__(self, copies: Callable[[str], Sequence[Volume]]) -> None:
        self._copies = copies

    async def offers(self, volume_id: str, offset: int, length: int, /) -> AsyncIterator[bytes]:
        for volume in self._copies(volume_id):
            points = list(volume.head.store.snapshots(volume.volume_id))[: -REPAIR_POINTS - 1 : -1]
            devices: list[BlockDevice] = [volume.head, *points]
            for device in devices:
                data = bytearray(length)
                there = min(length, device.size_bytes - offset)
                if there <= 0:
                    continue
                try:
                    await device.read(offset, memoryview(data)[:there])
                except EngineError:
                    continue  # this one does not have it: another may
                yield bytes(data)


def _range_bytes(size_bytes: int, chunk_bytes: int) -> int:
    """Whole map leaves, so many that there are ``MAX_RANGES`` ranges at most."""
    leaf = 4096 * chunk_bytes
    return align_up(-(-size_bytes // MAX_RANGES), leaf)
