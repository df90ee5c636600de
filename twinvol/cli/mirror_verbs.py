"""What is said alike of a replica and of a mirrored group: the options of a new one, and the verbs of every one."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from engine.mirror_terms import MirrorTerms
from engine.modes import MODES
from twinvol.cli.command import Output, duration, size, with_api
from twinvol.cli.job import finish, job_options

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.api import EngineApi, JobInfo, ReplicaInfo

_COLUMNS = ["name", "source", "target", "mode", "copy_state", "percent_synced", "lag_seconds", "promise", "reason"]

_OPTIONS = (
    click.option("--mode", type=click.Choice([*MODES]), required=True),
    click.option("--rpo", "rpo_s", type=duration, metavar="TIME", help="async, adaptive: lose no more than that."),
    click.option("--points", type=int, help="Recovery points that stay at the target (default 1: the newest)."),
    click.option("--points-age", "points_age_s", type=duration, metavar="TIME", help="None older, but the newest."),
    click.option(
        "--latency-budget",
        "latency_budget_ms",
        type=click.FloatRange(min=0),
        metavar="MS",
        help="Hosts wait no longer for the target.",
    ),
    click.option("--backlog", "backlog_bytes", type=size, metavar="SIZE", help="adaptive: synchronous again below."),
    click.option("--failed-copy-stops-host-io", is_flag=True, help="sync: no target, no writes."),
    click.option("--hold-down", "hold_down_s", type=duration, metavar="TIME", help="adaptive: and not before."),
    click.option(
        "--rate", "rate_bytes_s", type=size, metavar="SIZE", help="With --peer: copies send no more a second."
    ),
    click.option("--failover/--no-failover", default=True, help="It may take its source's place (default)."),
)


def mirror_terms(function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """The options of a new mirror, handed on as ``terms``. To stand below ``with_api``, which tells of refusals."""

    @functools.wraps(function)
    async def body(*args: Any, latency_budget_ms: float | None, **given: Any) -> None:
        terms = {name: given.pop(name) for name in MirrorTerms.__slots__ if name in given}
        terms["latency_budget_s"] = None if latency_budget_ms is None else latency_budget_ms / 1000
        await function(*args, terms=MirrorTerms(**terms), **given)

    decorated: Callable[..., Awaitable[None]] = body
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


class Verbs(NamedTuple):
    """Of ``EngineApi``, for one kind of mirrors. ``what``: a word for one."""

    what: str
    list: Callable[[], Awaitable[list[ReplicaInfo]]]
    show: Callable[[str], Awaitable[ReplicaInfo]]
    pause: Callable[[str], Awaitable[ReplicaInfo]]
    fracture: Callable[[str], Awaitable[ReplicaInfo]]
    resume: Callable[[str], Awaitable[JobInfo]]
    resync: Callable[[str], Awaitable[JobInfo]]
    detach: Callable[[str], Awaitable[None]]

    def line(self, info: ReplicaInfo) -> str:
        return f"{self.what} {info.name}: {info.copy_state}" + (f" ({info.reason})" if info.reason else "")


def of_replicas(api: EngineApi) -> Verbs:
    return Verbs(
        "replica",
        api.replica_list,
        api.replica_show,
        api.replica_pause,
        api.replica_fracture,
        api.replica_resume,
        api.replica_resync,
        api.replica_detach,
    )


def of_groups(api: EngineApi) -> Verbs:
    return Verbs(
        "replica group",
        api.group_replica_list,
        api.group_replica_show,
        api.group_replica_pause,
        api.group_replica_fracture,
        api.group_replica_resume,
        api.group_replica_resync,
        api.group_replica_detach,
    )


async def finish_with(verbs: Verbs, api: EngineApi, output: Output, name: str, job: JobInfo, **how: bool) -> None:
    """Wait as the options say, and answer with what the mirror is then."""
    made = functools.partial(verbs.show, name)
    await finish(api, output, job, no_wait=how["no_wait"], progress=how["progress"], made=made, text=verbs.line)


def add_verbs(cli: click.Group, verbs_of: Callable[[EngineApi], Verbs]) -> None:
    """``list``, ``show``, and what changes the state of one."""

    @cli.command("list")
    @with_api
    async def list_(api: EngineApi, output: Output) -> None:
        """All of them."""
        output.list("replicas", await verbs_of(api).list(), _COLUMNS)

    @cli.command()
    @click.argument("name")
    @with_api
    async def show(api: EngineApi, output: Output, name: str) -> None:
        """Everything about one."""
        output.object(await verbs_of(api).show(name))

    @cli.command()
    @click.argument("name")
    @with_api
    async def pause(api: EngineApi, output: Output, name: str) -> None:
        """Stop the flow; the target stays protected."""
        verbs = verbs_of(api)
        output.object(info := await verbs.pause(name), verbs.line(info))

    @cli.command()
    @click.argument("name")
    @job_options
    @with_api
    async def resume(api: EngineApi, output: Output, name: str, **how: bool) -> None:
        """Let a paused one flow again; waits until it is Synchronized."""
        verbs = verbs_of(api)
        await finish_with(verbs, api, output, name, await verbs.resume(name), **how)

    @cli.command()
    @click.argument("name")
    @with_api
    async def fracture(api: EngineApi, output: Output, name: str) -> None:
        """Let the target go its own way, writable; changes on both sides are known. Those of a group are of one
        instant."""
        verbs = verbs_of(api)
        output.object(info := await verbs.fracture(name), verbs.line(info))

    @cli.command()
    @click.argument("name")
    @job_options
    @with_api
    async def resync(api: EngineApi, output: Output, name: str, **how: bool) -> None:
        """Bring the target up to date by what changed; what was written to it is lost."""
        verbs = verbs_of(api)
        await finish_with(verbs, api, output, name, await verbs.resync(name), **how)

    @cli.command()
    @click.argument("name")
    @with_api
    async def detach(api: EngineApi, output: Output, name: str) -> None:
        """End the relation; the target stays as a volume of its own."""
        verbs = verbs_of(api)
        await verbs.detach(name)
        output.done(f"{verbs.what} {name} is detached")
