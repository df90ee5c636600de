"""``twinvol replica restore|reverse|set|abort``: what is done to a mirror that is there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from twinvol.cli.command import Output, size_text, with_api
from twinvol.cli.job import finish, job_options
from twinvol.cli.mirror_verbs import mirror_terms, of_replicas

if TYPE_CHECKING:
    from engine.api import EngineApi, RestorePlan
    from engine.mirror_terms import MirrorTerms


@click.command()
@click.argument("name")
@click.argument("guid", required=False)
@click.option("--plan", is_flag=True, help="Only say what would be copied, which way, and what would be left behind.")
@click.option("--force", is_flag=True, help="Even under sessions: their disk has another content then.")
@job_options
@with_api
async def restore(
    api: EngineApi,
    output: Output,
    name: str,
    guid: str | None,
    plan: bool,
    force: bool,
    no_wait: bool,
    progress: bool,
) -> None:
    """Roll the source of replica NAME to what that holds, by what differs; what it was stays as a snapshot.

    By default to the newest recovery point, or to what a fractured replica holds. The replica rests then until resync.
    """
    if plan:
        info = await api.replica_restore_plan(name, guid)
        output.object(info, _plan(info))
        return
    job = await api.replica_restore(name, guid, force=force)

    def text(result: dict[str, Any]) -> str:
        return (
            f"the source of replica {name} is recovery point {result['point']} now, {result['copied_bytes']} bytes were"
            f" copied for it; what it was is snapshot {result['kept_as']}"
        )

    await finish(api, output, job, no_wait=no_wait, progress=progress, text=text)


@click.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Even under sessions: they see the disk go and come back.")
@with_api
async def reverse(api: EngineApi, output: Output, name: str, force: bool) -> None:
    """Exchange source and target of a replica here: the target is the disk (serial, NAA, LUNs) that the source was."""
    info = await api.replica_reverse(name, force=force)
    output.object(info, f"replica {name}: {info.source} is the disk, {info.target} follows it")


@click.command("set")
@click.argument("name")
@with_api
@mirror_terms
async def set_(api: EngineApi, output: Output, name: str, terms: MirrorTerms) -> None:
    """Keep a mirror in another mode, or by other terms; what is not given stays as it is."""
    output.object(info := await api.replica_mode(name, terms), of_replicas(api).line(info))


@click.command()
@click.argument("name")
@with_api
async def abort(api: EngineApi, output: Output, name: str) -> None:
    """Give up the copy that is under way, and what it has brought; the target stays what it was."""
    output.object(info := await api.replica_abort(name), of_replicas(api).line(info))


COMMANDS = (restore, reverse, set_, abort)


def _plan(info: RestorePlan) -> str:
    if info.point is None or info.point_at is None:
        what = "what the fractured replica holds"
    else:
        what = f"recovery point {info.point} of {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(info.point_at))}"
    lines = [f"{info.direction}: {info.source} would be {what}"]
    how = "everything is compared, there is no common recovery point" if info.compares_all else "by what differs"
    lines.append(f"to be copied: at most {size_text(info.copied_bytes)} ({how})")
    lines.append(f"written since then, and left behind as a snapshot: at most {size_text(info.lost_bytes)}")
    return "\n".join(lines)
