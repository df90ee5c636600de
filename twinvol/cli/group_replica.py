"""``twinvol group replica``."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

from engine.errors import NotSupported
from twinvol.cli.command import Output, with_api
from twinvol.cli.job import finish, job_options
from twinvol.cli.replica import mirror_terms, terms_of

if TYPE_CHECKING:
    from engine.api import EngineApi, ReplicaInfo


@click.group("replica")
def cli() -> None:
    """Mirrors of groups: at their targets all members are of one instant."""


@cli.command()
@click.argument("group")
@click.argument("name")
@mirror_terms
@click.option("--peer", help="Make the volumes there, at another twinvol.")
@job_options
@with_api
async def create(
    api: EngineApi,
    output: Output,
    group: str,
    name: str,
    latency_budget: float | None,
    peer: str | None,
    no_wait: bool,
    progress: bool,
    **given: Any,
) -> None:
    """Make a volume NAME.MEMBER like each member of GROUP and keep them a mirror; waits until it is Synchronized."""
    if given.pop("failed_copy_stops_host_io", False):
        raise NotSupported("the hosts of a group are not stopped when its copy fails; mirror its volumes one by one")
    job = await api.group_replica_create(group, name, peer=peer, **terms_of(latency_budget, given))
    made = functools.partial(api.group_replica_show, name)
    await finish(api, output, job, no_wait=no_wait, progress=progress, made=made, text=_line)


@cli.command("list")
@with_api
async def list_(api: EngineApi, output: Output) -> None:
    """All mirrored groups."""
    columns = ["name", "source", "target", "mode", "copy_state", "percent_synced", "lag_seconds", "promise", "reason"]
    output.list("replicas", await api.group_replica_list(), columns)


@cli.command()
@click.argument("name")
@with_api
async def show(api: EngineApi, output: Output, name: str) -> None:
    """Everything about one mirrored group."""
    output.object(await api.group_replica_show(name))


@cli.command()
@click.argument("name")
@with_api
async def points(api: EngineApi, output: Output, name: str) -> None:
    """Recovery points of the whole group, oldest first; at the targets' side the one that they have, complete."""
    output.list("points", await api.group_replica_points(name), ["guid", "created_at", "age_seconds", "members"])


@cli.command()
@click.argument("name")
@with_api
async def pause(api: EngineApi, output: Output, name: str) -> None:
    """Stop the flow; the targets stay protected."""
    output.object(info := await api.group_replica_pause(name), _line(info))


@cli.command()
@click.argument("name")
@job_options
@with_api
async def resume(api: EngineApi, output: Output, name: str, no_wait: bool, progress: bool) -> None:
    """Let a paused group flow again; waits until it is Synchronized."""
    job, made = await api.group_replica_resume(name), functools.partial(api.group_replica_show, name)
    await finish(api, output, job, no_wait=no_wait, progress=progress, made=made, text=_line)


@cli.command()
@click.argument("name")
@with_api
async def fracture(api: EngineApi, output: Output, name: str) -> None:
    """Let the targets go their own way, writable, all from one instant on."""
    output.object(info := await api.group_replica_fracture(name), _line(info))


@cli.command()
@click.argument("name")
@job_options
@with_api
async def resync(api: EngineApi, output: Output, name: str, no_wait: bool, progress: bool) -> None:
    """Bring the targets up to date by what changed; what was written to them is lost."""
    job, made = await api.group_replica_resync(name), functools.partial(api.group_replica_show, name)
    await finish(api, output, job, no_wait=no_wait, progress=progress, made=made, text=_line)


@cli.command()
@click.argument("name")
@job_options
@with_api
async def verify(api: EngineApi, output: Output, name: str, no_wait: bool, progress: bool) -> None:
    """Compare all members at one instant, by hash tree. Ends with 9 when one differs."""

    def text(result: dict[str, Any]) -> str:
        return f"replica group {name}: both sides of {len(result['proofs'])} members are identical"

    await finish(api, output, await api.group_replica_verify(name), no_wait=no_wait, progress=progress, text=text)


@cli.command()
@click.argument("name")
@with_api
async def detach(api: EngineApi, output: Output, name: str) -> None:
    """End the relation; the targets stay as volumes of their own."""
    await api.group_replica_detach(name)
    output.done(f"replica group {name} is detached")


def _line(info: ReplicaInfo) -> str:
    return f"replica group {info.name}: {info.copy_state}" + (f" ({info.reason})" if info.reason else "")
