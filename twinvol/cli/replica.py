"""``twinvol replica``."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.errors import InvalidArgument, InvalidState
from engine.secret_files import read_secret
from twinvol.cli.command import Output, duration, size, size_text, with_api
from twinvol.cli.failover import COMMANDS as FAILOVER_COMMANDS
from twinvol.cli.job import finish, job_options, outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.api import EngineApi, ReplicaInfo


_FILE = click.Path(dir_okay=False, path_type=Path)


def mirror_terms(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that ``create`` and ``attach`` share: how the mirror is to be kept."""
    options = [
        click.option("--mode", type=click.Choice(["sync", "async", "adaptive"]), required=True),
        click.option("--rpo", "rpo_s", type=duration, metavar="TIME", help="async, adaptive: lose no more than that."),
        click.option("--points", type=int, help="Recovery points that stay at the target (default 1: the newest)."),
        click.option("--points-age", "points_age_s", type=duration, metavar="TIME", help="None older, but the newest."),
        click.option(
            "--latency-budget", type=click.FloatRange(min=0), metavar="MS", help="Hosts wait no longer for the target."
        ),
        click.option(
            "--backlog", "backlog_bytes", type=size, metavar="SIZE", help="adaptive: synchronous again below."
        ),
        click.option("--failed-copy-stops-host-io", is_flag=True, help="sync: no target, no writes."),
        click.option("--hold-down", "hold_down_s", type=duration, metavar="TIME", help="adaptive: and not before."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def terms_of(latency_budget: float | None, given: dict[str, Any]) -> dict[str, Any]:
    """What was given, as ``EngineApi`` wants it."""
    if given["mode"] == "sync" and given["rpo_s"] is not None:
        raise InvalidArgument("a synchronous mirror has no RPO: nothing that was acknowledged is missing at its target")
    budget_s = None if latency_budget is None else latency_budget / 1000
    return {name: value for name, value in (given | {"latency_budget_s": budget_s}).items() if value is not None}


@click.group()
def cli() -> None:
    """Mirrors of volumes."""


@cli.command()
@click.argument("source")
@click.argument("name")
@mirror_terms
@click.option("--peer", help="Make it there, at another twinvol.")
@click.option("--failover/--no-failover", default=True, help="With --peer: NAME may take its place (default).")
@job_options
@with_api
async def create(
    api: EngineApi,
    output: Output,
    source: str,
    name: str,
    latency_budget: float | None,
    peer: str | None,
    failover: bool,
    no_wait: bool,
    progress: bool,
    **given: Any,
) -> None:
    """Make a volume NAME like SOURCE and keep it a mirror; waits until it is Synchronized."""
    job = await api.replica_create(source, name, peer=peer, failover=failover, **terms_of(latency_budget, given))
    made = functools.partial(api.replica_show, name)
    await finish(api, output, job, no_wait=no_wait, progress=progress, made=made, text=_line)


@cli.command()
@click.argument("source")
@click.argument("target")
@mirror_terms
@click.option("--name", help="By default the target's name; a disk needs one.")
@click.option("--peer", help="TARGET is a volume there, which it has offered to this pool.")
@click.option("--secret-file", type=_FILE, help="Holds the CHAP secret of USER, for iscsi://USER@HOST/TARGET/LUN.")
@click.option("--mutual-user", help="What the disk's target proves itself as.")
@click.option("--mutual-secret-file", type=_FILE, help="Holds the secret of that.")
@job_options
@with_api
async def attach(
    api: EngineApi,
    output: Output,
    source: str,
    target: str,
    latency_budget: float | None,
    name: str | None,
    peer: str | None,
    secret_file: Path | None,
    mutual_user: str | None,
    mutual_secret_file: Path | None,
    no_wait: bool,
    progress: bool,
    **given: Any,
) -> None:
    """Keep TARGET a mirror of SOURCE; what it holds is lost.

    TARGET is a volume, or the URL of any iSCSI LUN, iscsi://[USER@]HOST[:PORT]/TARGET-NAME/LUN: that has no recovery
    points, is no instant of SOURCE while it is brought up to date, and nobody else may write to it.
    """
    job = await api.replica_attach(
        source,
        target,
        name=name,
        peer=peer,
        secret=await _secret(secret_file),
        mutual_user=mutual_user,
        mutual_secret=await _secret(mutual_secret_file),
        **terms_of(latency_budget, given),
    )
    made = functools.partial(api.replica_show, name or target)
    await finish(api, output, job, no_wait=no_wait, progress=progress, made=made, text=_line)


@cli.command()
@click.argument("name")
@with_api
async def points(api: EngineApi, output: Output, name: str) -> None:
    """Recovery points that are complete at the target, oldest first."""
    columns = ["guid", "created_at", "age_seconds", "target", "lun"]
    output.list("points", await api.replica_points(name), columns)


@cli.command()
@click.argument("name")
@click.argument("guid", required=False)
@with_api
async def expose(api: EngineApi, output: Output, name: str, guid: str | None) -> None:
    """Show a recovery point, by default the newest, read-only in a target of its own; replication goes on."""
    info = await api.replica_expose(name, guid)
    output.object(info, f"recovery point {info.guid} of replica {name}: {info.target} LUN {info.lun}")


@cli.command()
@click.argument("name")
@click.argument("guid")
@click.option("--force", is_flag=True, help="End the sessions that are there.")
@with_api
async def unexpose(api: EngineApi, output: Output, name: str, guid: str, force: bool) -> None:
    """Show a recovery point no more."""
    output.object(await api.replica_unexpose(name, guid, force=force), f"recovery point {guid} is not exposed any more")


@cli.command("list")
@with_api
async def list_(api: EngineApi, output: Output) -> None:
    """All replicas."""
    columns = ["name", "source", "target", "mode", "copy_state", "percent_synced", "lag_seconds", "promise", "reason"]
    output.list("replicas", await api.replica_list(), columns)


@cli.command()
@click.argument("name")
@with_api
async def show(api: EngineApi, output: Output, name: str) -> None:
    """Everything about one replica."""
    output.object(await api.replica_show(name))


@cli.command()
@click.argument("name")
@click.argument("rate", type=size)
@with_api
async def limit(api: EngineApi, output: Output, name: str, rate: int) -> None:
    """Copies of this mirror send its peer at most RATE bytes a second; 0 is no limit."""
    info = await api.replica_limit(name, rate)
    output.object(info, f"replica {name}: " + (f"at most {size_text(rate)}/s" if rate else "no limit"))


@cli.command()
@click.argument("name")
@with_api
async def pause(api: EngineApi, output: Output, name: str) -> None:
    """Stop the flow; the target stays protected."""
    output.object(info := await api.replica_pause(name), _line(info))


@cli.command()
@click.argument("name")
@job_options
@with_api
async def resume(api: EngineApi, output: Output, name: str, no_wait: bool, progress: bool) -> None:
    """Let a paused replica flow again; waits until it is Synchronized."""
    made = functools.partial(api.replica_show, name)
    await finish(api, output, await api.replica_resume(name), no_wait=no_wait, progress=progress, made=made, text=_line)


@cli.command()
@click.argument("name")
@with_api
async def fracture(api: EngineApi, output: Output, name: str) -> None:
    """Let the target go its own way, writable; changes on both sides are known."""
    output.object(info := await api.replica_fracture(name), _line(info))


@cli.command()
@click.argument("name")
@job_options
@with_api
async def resync(api: EngineApi, output: Output, name: str, no_wait: bool, progress: bool) -> None:
    """Bring the target up to date by what changed; what was written to it is lost."""
    made = functools.partial(api.replica_show, name)
    await finish(api, output, await api.replica_resync(name), no_wait=no_wait, progress=progress, made=made, text=_line)


@cli.command()
@click.argument("name")
@with_api
async def detach(api: EngineApi, output: Output, name: str) -> None:
    """End the relation; the target stays as a volume of its own."""
    await api.replica_detach(name)
    output.done(f"replica {name} is detached")


@cli.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Even under sessions: they see the disk go and come back.")
@with_api
async def promote(api: EngineApi, output: Output, name: str, force: bool) -> None:
    """Have the replica's volume take the place of its source, as the same disk (serial, NAA, LUNs, reservations).

    The relation ends. The source stays as it was then, under another identity, and no target shows it.
    """
    info = await api.replica_promote(name, force=force)
    output.object(info, f"{info.name} is now the disk with serial {info.serial}")


@cli.command()
@click.argument("name")
@job_options
@with_api
async def verify(api: EngineApi, output: Output, name: str, no_wait: bool, progress: bool) -> None:
    """Compare both sides by hash tree. Ends with 9 when they differ."""
    job = await api.replica_verify(name)

    def text(result: dict[str, Any]) -> str:
        left = result["unverified_bytes"]
        text = f"replica {name}: both sides are identical, root {result['root']}"
        return text + (f"; {left} bytes were written meanwhile and are not compared" if left else "")

    await finish(api, output, job, no_wait=no_wait, progress=progress, text=text)


@cli.command()
@click.argument("name")
@click.option("--out", type=_FILE, required=True, help="The document's file.")
@with_api
async def proof(api: EngineApi, output: Output, name: str, out: Path) -> None:
    """Verify, and write a document that proves it and can be checked again elsewhere."""
    from engine.proof_files import write_proof  # slow: numpy

    job = await outcome(api, output, await api.replica_verify(name))
    if job.result["unverified_bytes"]:
        raise InvalidState(
            f"replica {name}",
            f"being written: {job.result['unverified_bytes']} bytes of its target could not be compared",
            f"a target at rest: twinvol replica pause {name}",
        )
    await write_proof(out, job.result["proof"])
    fields = {key: job.result[key] for key in ("identical", "root", "size_bytes")}
    output.object({"replica": name, "file": str(out), **fields}, f"replica {name}: proof of {fields['root']} in {out}")


for _command in FAILOVER_COMMANDS:
    cli.add_command(_command)


async def _secret(file: Path | None) -> str | None:
    return None if file is None else await asyncio.to_thread(read_secret, file)


def _line(info: ReplicaInfo) -> str:
    return f"replica {info.name}: {info.copy_state}" + (f" ({info.reason})" if info.reason else "")
