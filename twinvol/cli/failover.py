"""``failover``, ``failback`` and ``resolve`` of ``twinvol replica`` and ``twinvol group replica``."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from engine.errors import InvalidArgument
from twinvol.cli.command import Output, with_api
from twinvol.cli.job import finish, job_options

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.api import EngineApi, FailoverPlan, JobInfo


class Sayings(NamedTuple):
    """Of ``EngineApi``, for one kind of mirrors."""

    plan: Callable[[str], Awaitable[FailoverPlan]]
    fail_over: Callable[..., Awaitable[JobInfo]]
    fail_back: Callable[[str], Awaitable[JobInfo]]
    resolve: Callable[..., Awaitable[None]]


def of_replicas(api: EngineApi) -> Sayings:
    return Sayings(api.replica_failover_plan, api.replica_failover, api.replica_failback, api.replica_resolve)


def of_groups(api: EngineApi) -> Sayings:
    return Sayings(
        api.group_replica_failover_plan,
        api.group_replica_failover,
        api.group_replica_failback,
        api.group_replica_resolve,
    )


def add_failover(cli: click.Group, sayings_of: Callable[[EngineApi], Sayings], command: str) -> None:
    """``failover``, ``failback`` and ``resolve``. ``command``: what is typed before them."""

    @cli.command()
    @click.argument("name")
    @click.option("--plan", is_flag=True, help="Only say what would be lost now.")
    @click.option("--accept-loss", is_flag=True, help="Writes that were acknowledged may be missing.")
    @click.option("--fenced", is_flag=True, help="The source serves nobody: you have seen to that.")
    @job_options
    @with_api
    async def failover(
        api: EngineApi,
        output: Output,
        name: str,
        plan: bool,
        accept_loss: bool,
        fenced: bool,
        no_wait: bool,
        progress: bool,
    ) -> None:
        """Have NAME, which is here, be the disk that its source is (serial, NAA); all members of a group at once.

        Without flags the source hands it over, without loss. Where that cannot be reached, nobody but you knows whether
        it still serves hosts: say --fenced. It becomes the replica when it comes back.
        """
        if plan:
            info = await sayings_of(api).plan(name)
            output.object(info, _plan(info, command))
            return
        job = await sayings_of(api).fail_over(name, accept_loss=accept_loss, fenced=fenced)
        await finish(api, output, job, no_wait=no_wait, progress=progress, text=_taken)

    @cli.command()
    @click.argument("name")
    @job_options
    @with_api
    async def failback(api: EngineApi, output: Output, name: str, no_wait: bool, progress: bool) -> None:
        """Bring what was the source before a failover up to date, and hand the disk back to it, without loss."""
        text = functools.partial(_given, name)
        job = await sayings_of(api).fail_back(name)
        await finish(api, output, job, no_wait=no_wait, progress=progress, text=text)

    @cli.command()
    @click.argument("name")
    @click.option("--serve", is_flag=True, help="This side is the disk; another one that says so has to stop.")
    @click.option(
        "--yield", "give_way", is_flag=True, help="Follow the other side; what only this one has is a snapshot."
    )
    @with_api
    async def resolve(api: EngineApi, output: Output, name: str, serve: bool, give_way: bool) -> None:
        """Decide for what is not served because its replica has, or may have, taken its place."""
        if serve == give_way:
            raise InvalidArgument("say one of --serve and --yield")
        await sayings_of(api).resolve(name, serve=serve, give_way=give_way)
        output.done(f"{name}: {'this side is the disk' if serve else 'this side follows the other'}")


def _taken(result: dict[str, Any]) -> str:
    if "members" in result:
        return "\n".join(_taken(member) for member in result["members"])
    where = f"{result['target']} LUN {result['lun']}" if result["target"] else "no target yet"
    return f"volume {result['volume']} is the disk with serial {result['serial']} now, shown by {where}"


def _given(name: str, result: dict[str, Any]) -> str:
    return f"{name}: the disk is at peer {result['peer']} again, and {result['volume']} follows it"


def _plan(info: FailoverPlan, command: str) -> str:
    lines = [f"replica {info.replica} of {info.source}: {info.reason}"]
    if info.complete_until is not None:
        instant = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.complete_until))
        lines.append(f"complete until {instant}, {info.age_seconds or 0:.1f} s ago (recovery point {info.point})")
    if info.missing_bytes is not None:
        lines.append(f"written since then, as far as the source has said: at most {info.missing_bytes} bytes")
    if info.needs:
        lines.append(f"without its source: {command} failover {info.replica} {' '.join(info.needs)}")
    return "\n".join(lines)
