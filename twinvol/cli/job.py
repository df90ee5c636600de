"""``twinvol job``, and the waiting for jobs that other commands start."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from twinvol.cli.command import SCHEMA, Output, as_json, with_api
from twinvol.cli.exit_codes import exit_code_for_job

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from engine.api import EngineApi, JobInfo

FINAL = frozenset({7, 8, 10})
"""CIM_ConcreteJob.JobState: Completed, Terminated, Exception."""


@click.group()
def cli() -> None:
    """Long work."""


@cli.command("list")
@with_api
async def list_(api: EngineApi, output: Output) -> None:
    """Jobs, oldest first."""
    columns = ["job", "kind", "subject", "state", "done_bytes", "total_bytes", "message"]
    output.list("jobs", await api.job_list(), columns)


@cli.command()
@click.argument("job", type=int)
@with_api
async def show(api: EngineApi, output: Output, job: int) -> None:
    """One job."""
    output.object(await api.job_show(job))


@cli.command()
@click.argument("job", type=int)
@click.option("--progress", is_flag=True, help="With --json: a line for each step.")
@with_api
async def wait(api: EngineApi, output: Output, job: int, progress: bool) -> None:
    """Wait for the end of a job, and end with its exit code."""
    await finish(api, output, await api.job_show(job), no_wait=False, progress=progress)


@cli.command()
@click.argument("job", type=int)
@with_api
async def cancel(api: EngineApi, output: Output, job: int) -> None:
    """End a job."""
    info = await api.job_cancel(job)
    output.object(info, f"job {job} is {info.state.lower()}")


def job_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--no-wait`` and ``--progress``, of every command that starts a job."""
    function = click.option("--progress", is_flag=True, help="With --json: a line for each step.")(function)
    return click.option("--no-wait", is_flag=True, help="Print the job and return.")(function)


async def finish(
    api: EngineApi,
    output: Output,
    job: JobInfo,
    *,
    no_wait: bool,
    progress: bool,
    made: Callable[[], Awaitable[Any]] | None = None,
    text: Callable[[Any], str] | None = None,
) -> None:
    """Wait for ``job`` with a progress bar, print its result, and exit with its code when it failed.

    ``made``: asks for what the job made, whose fields the answer has too. ``text``: the line for people about that, or
    about the job's result where nothing was made.
    """
    if no_wait:
        output.object({"job": job.job}, f"job {job.job}")
        return
    job = await outcome(api, output, job, progress=progress)
    thing = job.result if made is None else await made()
    line = f"job {job.job} ({job.kind} {job.subject}): {job.state}" if text is None else text(thing)
    output.object({**as_json(job), **job.result, **as_json(thing), "exit_code": 0}, line)


async def outcome(api: EngineApi, output: Output, job: JobInfo, *, progress: bool = False) -> JobInfo:
    """Wait for ``job`` with a progress bar; exits with its code when it failed."""
    with _bar(job) if not output.json and sys.stderr.isatty() else contextlib.nullcontext() as advance:
        while job.state_number not in FINAL:
            job = await api.job_wait(job.job, after_version=job.version)
            if advance is not None:
                advance(job)
            if output.json and progress:
                output.line({"schema": SCHEMA, "event": "progress", **as_json(job)})
    code = exit_code_for_job(job.error)
    if code:
        click.echo(f"twinvol: job {job.job}: {job.message}", err=True)
        output.object(
            {**as_json(job), "exit_code": int(code)}, f"job {job.job} ({job.kind} {job.subject}): {job.state}"
        )
        sys.exit(code)
    return job


@contextlib.contextmanager
def _bar(job: JobInfo) -> Iterator[Callable[[JobInfo], None]]:
    from rich.console import Console  # slow; only for people who wait
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(f"{job.kind} {job.subject}", total=job.total_bytes or None, completed=job.done_bytes)
        yield lambda now: shown.update(task, total=now.total_bytes or None, completed=now.done_bytes)
