"""Long work with progress, cancellation and a history.

A job is one coroutine, owned by the registry, reporting into a ``Job``. States are numbered as in DMTF's
CIM_ConcreteJob.JobState. A job's ``version`` grows with each visible change (progress at most ten times a
second, so that a watcher that polls by version is never flooded); ``wait`` returns when it has grown.

Jobs that ran when the process ended are shown afterwards as ended by an exception, "interrupted": the work itself
resumes from its own ledger under a new job, never by pretending that the old one went on.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

from engine.catalog import JOB_HISTORY_MAX, JobRow
from engine.errors import EngineError, InUse, InvalidState, JobCancelled, NotFound, StoreCorrupt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.api import JobInfo
    from engine.catalog import Catalog
    from engine.files import Clock

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 0.1
RATE_WINDOW_S = 5.0
"""The rate shown is that of about the last five seconds."""


class JobState(IntEnum):
    """CIM_ConcreteJob.JobState, the values in use."""

    NEW = 2
    RUNNING = 4
    SUSPENDED = 5
    COMPLETED = 7
    TERMINATED = 8
    EXCEPTION = 10

    @property
    def final(self) -> bool:
        return self in (JobState.COMPLETED, JobState.TERMINATED, JobState.EXCEPTION)


class Pausable(Protocol):
    """What a job rests by: ``engine.copy_job.CopyControl``, or what several of them rest by."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Reader:
    """What a job reads while it runs. ``job_id``: None until it has a number."""

    kind: str
    reads: str | None
    job_id: int | None = None


class Job:
    """One piece of long work, as its coroutine and its watchers see it. Loop thread only."""

    def __init__(self, row: JobRow, clock: Clock) -> None:
        self.job_id = row.job_id
        self.kind = row.kind
        self.subject = row.subject
        self.state = JobState(row.state)
        self.done_bytes = row.done_bytes
        self.total_bytes = row.total_bytes
        self.created_at = row.created_at
        self.finished_at = row.finished_at
        self.message = row.message
        self.error = row.error
        self.result = row.result
        self.rate_bytes_s = 0.0
        self.version = 1
        self.reader: _Reader | None = None
        self.control: Pausable | None = None
        """By what it can rest; the work sets it. None: it cannot."""
        self._clock = clock
        self._changed = asyncio.Event()
        self._begun = asyncio.Event()
        self._sample = (clock.monotonic(), row.done_bytes)
        self._shown_at = float("-inf")
        self._cancel_message: str | None = None
        self._task: asyncio.Task[None] | None = None
        self.on_change: Callable[[Job], None] | None = None

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the present rate; None when that is unknown."""
        if self.state is not JobState.RUNNING or not self.rate_bytes_s or not self.total_bytes:
            return None
        return max(0.0, (self.total_bytes - self.done_bytes) / self.rate_bytes_s)

    @property
    def cancelling(self) -> bool:
        """Whether its end was asked for by ``cancel``, not by the end of the daemon."""
        return self._cancel_message is not None

    def progress(self, done_bytes: int, total_bytes: int | None = None, message: str | None = None) -> None:
        """Report how far the work is; cheap enough to call for every chunk. Never goes backwards."""
        self.done_bytes = max(self.done_bytes, done_bytes)
        if total_bytes is not None:
            self.total_bytes = total_bytes
        if message is not None:
            self.message = message
        now = self._clock.monotonic()
        if now - self._shown_at < PROGRESS_INTERVAL_S:
            return
        since, done_then = self._sample
        if now > since:
            rate = (self.done_bytes - done_then) / (now - since)
            weight = min(1.0, (now - since) / RATE_WINDOW_S) if self.rate_bytes_s else 1.0
            self.rate_bytes_s += (rate - self.rate_bytes_s) * weight
            self._sample = (now, self.done_bytes)
        self._shown_at = now
        self._show()

    def suspend(self) -> None:
        """Rest, until ``resume``. Raises InvalidState: it does not run, or cannot rest."""
        if self.state is not JobState.RUNNING or self.control is None:
            raise InvalidState(f"job {self.job_id}", self.state.name.lower(), "a running copy")
        self.control.pause()
        self.state = JobState.SUSPENDED
        self.rate_bytes_s = 0.0
        self._show()

    def resume(self) -> None:
        """Raises InvalidState: it does not rest."""
        if self.state is not JobState.SUSPENDED:
            raise InvalidState(f"job {self.job_id}", self.state.name.lower(), "a suspended one")
        assert self.control is not None
        self.control.resume()
        self.state = JobState.RUNNING
        self._show()

    def tell(self) -> None:
        """Have watchers see what the work has put into ``result`` so far."""
        self._show()

    async def wait(self, after_version: int, timeout_s: float) -> None:
        """Return when ``version`` is above ``after_version``, the job is over, or the time is up."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.version <= after_version and not self.state.final:
                    await self._changed.wait()
        except TimeoutError:
            return

    def _show(self) -> None:
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()
        if self.on_change is not None:
            self.on_change(self)

    def _row(self) -> JobRow:
        return JobRow(
            self.job_id,
            self.kind,
            self.subject,
            int(self.state),
            self.done_bytes,
            self.total_bytes,
            self.created_at,
            self.finished_at,
            self.message,
            self.error,
            self.result,
        )


class JobRegistry:
    """All jobs of a pool. Made by ``open``."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock
        self._jobs: dict[int, Job] = {}
        self._reading: list[_Reader] = []
        """Of the jobs that run, or are about to."""
        self._closing = False
        self._on_change: Callable[[Job], None] | None = None

    @classmethod
    async def open(cls, catalog: Catalog, clock: Clock) -> JobRegistry:
        """Load the history; what was running is recorded as interrupted. Raises StoreCorrupt."""
        registry = cls(catalog, clock)
        for row in await catalog.jobs():
            if row.state not in map(int, JobState):
                raise StoreCorrupt("the pool's catalogue", f"job {row.job_id} is in state {row.state}")
            job = Job(row, clock)
            registry._jobs[row.job_id] = job
            if not job.state.final:
                registry._end(job, JobState.EXCEPTION, "interrupted by the end of the daemon", "InvalidState")
                await catalog.save_job(job._row())
        return registry

    async def start(
        self, kind: str, subject: str, work: Callable[[Job], Awaitable[dict[str, Any]]], *, reads: str | None = None
    ) -> Job:
        """Begin ``work`` as a job. What it returns becomes the job's ``result`` (JSON values).

        ``reads``: VOLUME or VOLUME@SNAPSHOT that it reads and that must not go meanwhile; see ``require_unread``.

        It is ended by ``asyncio`` cancellation, never before its first step has run, and must then leave whatever it
        or its starter made either resumable or removed.
        """
        if self._closing:
            raise InvalidState("the daemon", "stopping", "a running one")
        now = self._clock.time()
        running = int(JobState.RUNNING)
        reader = _Reader(kind, reads)
        self._reading.append(reader)  # from this step on, not when its record is durable
        try:
            job_id = reader.job_id = await self._catalog.add_job(kind, subject, running, now)
        except BaseException:
            self._reading.remove(reader)
            raise
        job = Job(JobRow(job_id, kind, subject, running, 0, 0, now, None, "", None, {}), self._clock)
        self._jobs[job_id] = job
        while len(self._jobs) > JOB_HISTORY_MAX:
            oldest = next(iter(self._jobs))
            if not self._jobs[oldest].state.final:
                break
            del self._jobs[oldest]
        self._begin(job, reader, work)
        if self._on_change is not None:
            job.on_change = self._on_change
            self._on_change(job)
        return job

    async def go_on(self, job: Job, work: Callable[[Job], Awaitable[dict[str, Any]]]) -> None:
        """Begin anew, under its number, a job that the end of the daemon interrupted: all that it was for is known
        from elsewhere, and it is not over."""
        assert job.state.final
        job.state, job.message, job.error, job.finished_at = JobState.RUNNING, "", None, None
        await self._catalog.save_job(job._row())
        job.on_change = self._on_change
        reader = _Reader(job.kind, None, job.job_id)
        self._reading.append(reader)
        self._begin(job, reader, work)

    async def forget(self, job_id: int) -> None:
        """Take a job that is over out of the history, and those that were parts of it. Raises NotFound,
        InvalidState."""
        job = self.get(job_id)
        if not job.state.final:
            raise InvalidState(f"job {job_id}", job.state.name.lower(), "one that is over")
        parts = [self._jobs[part] for part in job.result.get("jobs", ()) if part in self._jobs]
        for each in (*(part for part in parts if part.state.final), job):
            if each._task is not None:
                await asyncio.wait([each._task])  # its end is being recorded
            self._jobs.pop(each.job_id, None)
            await self._catalog.remove_job(each.job_id)

    def _begin(self, job: Job, reader: _Reader, work: Callable[[Job], Awaitable[dict[str, Any]]]) -> None:
        job.reader = reader
        name = f"job {job.job_id} {job.kind} {job.subject}"
        job._task = asyncio.create_task(self._run(job, work), name=name)

    def watch(self, on_change: Callable[[Job], None] | None) -> None:
        """Have ``on_change`` told of each job that is new, and of each visible change of one; None: nobody."""
        self._on_change = on_change
        for job in self._jobs.values():
            job.on_change = on_change

    def get(self, job_id: int) -> Job:
        """Raises NotFound."""
        try:
            return self._jobs[job_id]
        except KeyError:
            raise NotFound("job", str(job_id)) from None

    def all(self) -> list[Job]:
        """Oldest first."""
        return list(self._jobs.values())

    def require_unread(self, what: str) -> None:
        """Raises InUse when a running job reads ``what``: a VOLUME or any snapshot of it, or a VOLUME@SNAPSHOT."""
        for reader in self._reading:
            if reader.reads is not None and what in (reader.reads, reader.reads.partition("@")[0]):
                if reader.job_id is None:
                    raise InUse(f"{what} is about to be read by a job ({reader.kind}); try again")
                raise InUse(
                    f"{what} is being read by job {reader.job_id} ({reader.kind});"
                    f" wait for it, or end it: twinvol job cancel {reader.job_id}"
                )

    async def cancel(self, job_id: int) -> Job:
        """Cancel a job and wait for its end. Raises NotFound; InvalidState when it is over already."""
        job = self.get(job_id)
        if job.state.final or job._task is None:
            raise InvalidState(f"job {job_id}", job.state.name.lower(), "a running one")
        await job._begun.wait()
        job._cancel_message = "cancelled"
        job._task.cancel()
        await asyncio.wait([job._task])
        return job

    async def close(self) -> None:
        """End all jobs; each is recorded as interrupted."""
        self._closing = True
        for job in self.all():
            if job._task is not None and not job._task.done():
                await job._begun.wait()
                job._task.cancel()
                await asyncio.wait([job._task])

    async def _run(self, job: Job, work: Callable[[Job], Awaitable[dict[str, Any]]]) -> None:
        try:
            job._begun.set()
            job.result = await work(job)
            job.done_bytes = max(job.done_bytes, job.total_bytes)
            self._end(job, JobState.COMPLETED, job.message, None)
        except asyncio.CancelledError:
            # Cancellation ends here: the task's owner is this registry, and it waits for the record below.
            if job._cancel_message is not None:
                self._end(job, JobState.TERMINATED, job._cancel_message, JobCancelled.__name__)
            else:
                self._end(job, JobState.EXCEPTION, "interrupted by the end of the daemon", InvalidState.__name__)
        except EngineError as error:
            self._end(job, JobState.EXCEPTION, str(error), type(error).__name__)
        except Exception as error:
            log.exception("job %d (%s %s) failed by a mistake in twinvol", job.job_id, job.kind, job.subject)
            self._end(job, JobState.EXCEPTION, f"internal error: {error!r}", type(error).__name__)
        await self._catalog.save_job(job._row())

    def _end(self, job: Job, state: JobState, message: str, error: str | None) -> None:
        job.state = state
        job.message = message
        job.error = error
        job.finished_at = self._clock.time()
        job.control = None
        if job.reader is not None:
            self._reading.remove(job.reader)
        log.info("job %d (%s %s) ended: %s %s", job.job_id, job.kind, job.subject, state.name.lower(), message)
        job._show()


def job_info(job: Job) -> JobInfo:
    """A job as users see it."""
    from engine.api import JobInfo  # late: see there

    return JobInfo(
        job=job.job_id,
        kind=job.kind,
        subject=job.subject,
        state=job.state.name.capitalize(),
        state_number=int(job.state),
        done_bytes=job.done_bytes,
        total_bytes=job.total_bytes,
        rate_bytes_s=job.rate_bytes_s if job.state is JobState.RUNNING else 0.0,
        eta_s=job.eta_s,
        created_at=job.created_at,
        finished_at=job.finished_at,
        message=job.message,
        error=job.error,
        result=job.result,
        version=job.version,
    )
