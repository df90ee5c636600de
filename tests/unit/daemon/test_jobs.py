"""Jobs: states, progress, waiting, cancelling, and what a restart makes of them."""

import asyncio
from pathlib import Path

import pytest

from engine.catalog import Catalog
from engine.errors import IntegrityError, InvalidState, NotFound
from engine.jobs import Job, JobRegistry, JobState


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    boottime = time = monotonic


@pytest.fixture
async def catalog(tmp_path: Path):
    catalog = await Catalog.open(tmp_path / "catalog.sqlite")
    yield catalog
    await catalog.close()


async def ended(job: Job) -> Job:
    while not job.state.final:
        await job.wait(job.version, 10)
    return job


async def test_a_job_reports_its_progress_result_and_rate(catalog):
    clock = Clock()
    registry = await JobRegistry.open(catalog, clock)

    async def work(job: Job):
        job.progress(0, 1000)
        for done in (100, 200, 300):
            clock.now += 1
            job.progress(done)
        seen.append((job.rate_bytes_s, job.eta_s))
        return {"root": "abc"}

    seen: list[tuple[float, float | None]] = []
    job = await ended(await registry.start("copy", "v", work))
    assert seen == [(100.0, 7.0)]
    assert (job.state, job.done_bytes, job.result, job.error) == (JobState.COMPLETED, 1000, {"root": "abc"}, None)
    await registry.close()


async def test_progress_never_goes_backwards_and_is_shown_at_most_ten_times_a_second(catalog):
    clock = Clock()
    registry = await JobRegistry.open(catalog, clock)

    async def work(job: Job):
        job.progress(500, 1000)
        first = job.version
        job.progress(400)
        clock.now += 0.05
        job.progress(600)
        assert (job.done_bytes, job.version) == (600, first)
        clock.now += 0.06
        job.progress(610)
        assert job.version == first + 1
        return {}

    assert (await ended(await registry.start("copy", "v", work))).state is JobState.COMPLETED


async def test_an_engine_error_ends_the_job_with_its_name_and_text(catalog):
    registry = await JobRegistry.open(catalog, Clock())

    async def work(job: Job):
        raise IntegrityError("v", 0, 512, "aa", "bb")

    job = await ended(await registry.start("copy", "v", work))
    assert (job.state, job.error) == (JobState.EXCEPTION, "IntegrityError")
    assert "expected aa" in job.message


async def test_cancelling_ends_a_job_once(catalog):
    registry = await JobRegistry.open(catalog, Clock())
    job = await registry.start("copy", "v", lambda job: asyncio.get_running_loop().create_future())
    assert (await registry.cancel(job.job_id)).state is JobState.TERMINATED
    with pytest.raises(InvalidState):
        await registry.cancel(job.job_id)
    with pytest.raises(NotFound):
        registry.get(4711)


async def test_waiting_ends_with_the_time(catalog):
    registry = await JobRegistry.open(catalog, Clock())
    job = await registry.start("copy", "v", lambda job: asyncio.get_running_loop().create_future())
    await job.wait(job.version, 0)
    assert job.state is JobState.RUNNING
    await registry.close()
    assert job.state is JobState.EXCEPTION


async def test_history_survives_and_what_ran_is_called_interrupted(catalog):
    registry = await JobRegistry.open(catalog, Clock())

    async def work(job: Job):
        return {"n": 1}

    done = await ended(await registry.start("copy", "v", work))
    await registry.start("copy", "w", lambda job: asyncio.get_running_loop().create_future())
    await registry.close()
    # A process that is killed leaves its jobs running in the catalogue.
    killed = await catalog.add_job("copy", "x", int(JobState.RUNNING), 1.0)
    again = await JobRegistry.open(catalog, Clock())
    states = {job.subject: (job.state, job.message) for job in again.all()}
    assert states["v"] == (JobState.COMPLETED, "")
    assert states["w"][0] is states["x"][0] is JobState.EXCEPTION
    assert "interrupted" in states["x"][1]
    assert again.get(done.job_id).result == {"n": 1}
    assert again.get(killed).error == "InvalidState"
