"""``twinvol snapshot``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from engine.api import each_snapshot
from twinvol.cli.command import Output, as_json, duration, instant, size_text, time_text, with_api
from twinvol.cli.diff import diff_options, print_diff

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.api import EngineApi, ScheduleInfo, SnapshotInfo

SPACE_COLUMNS = ["mapped_bytes", "unique_bytes", "shared_bytes", "pinned_bytes", "reclaimable_bytes"]


@click.group()
def cli() -> None:
    """Snapshots of volumes."""


def _line(info: SnapshotInfo) -> str:
    where = f", at {info.target} LUN {info.lun}" if info.target else ""
    if info.view_target:
        until = f" until {time_text(info.view_expires_at)}" if info.view_expires_at else ""
        where += f", a writable view at {info.view_target} LUN {info.view_lun}{until}"
    held = ", held by " + ", ".join(hold.owner for hold in info.holds) if info.holds else ""
    return f"snapshot {info.volume}@{info.name}{where}{held}"


@cli.command()
@click.argument("volume")
@click.argument("name")
@click.option("--expose", is_flag=True, help="Make a target VOLUME.snap.NAME with the snapshot as read-only LUN 0.")
@click.option("--description", default="", metavar="TEXT", help="What it is for.")
@with_api
async def create(api: EngineApi, output: Output, volume: str, name: str, expose: bool, description: str) -> None:
    """Freeze a volume as it is now."""
    info = await api.snapshot_create(volume, name, expose=expose, description=description)
    output.object(info, _line(info))


@cli.command("list")
@click.argument("volume")
@click.option("--space", is_flag=True, help="What each takes, instead of what it is.")
@with_api
async def list_(api: EngineApi, output: Output, volume: str, space: bool) -> None:
    """The snapshots of a volume, oldest first.

    FROM is the snapshot that each goes back to, BRANCH the branch that a rollback left it on ("-": the volume comes
    from it).
    """
    infos = await each_snapshot(api, volume)
    if output.json or space:
        output.list("snapshots", infos, ["name", "created_at", *SPACE_COLUMNS])
        return
    columns = ["name", "created_at", "reclaimable_bytes", "from", "branch", "made_by", "held_by", "target", "about"]
    output.list("snapshots", [_row(info) for info in infos], columns)


def _row(info: SnapshotInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "created_at": info.created_at,
        "reclaimable_bytes": info.reclaimable_bytes,
        "from": info.parent,
        "branch": info.branch,
        "made_by": "schedule" if info.scheduled else info.group or "hand",
        "held_by": [hold.owner for hold in info.holds],
        "target": [target for target in (info.target, info.view_target) if target],
        "about": info.description or None,
    }


@cli.command()
@click.argument("volume")
@click.argument("name")
@with_api
async def show(api: EngineApi, output: Output, volume: str, name: str) -> None:
    """Everything about one snapshot."""
    output.object(await api.snapshot_show(volume, name))


@cli.command()
@click.argument("volume")
@click.argument("name")
@click.argument("text")
@with_api
async def describe(api: EngineApi, output: Output, volume: str, name: str, text: str) -> None:
    """Say what a snapshot is for."""
    info = await api.snapshot_describe(volume, name, text)
    output.object(info, _line(info))


@cli.command()
@click.argument("volume")
@click.argument("name")
@click.argument("owner")
@click.option("--for", "for_s", type=duration, metavar="TIME", help="Until then: 90s, 30m, 12h, 7d, 2w.")
@click.option(
    "--until", type=instant, metavar="INSTANT", help="Until then: 2027-01-31T12:00, in UTC without an offset."
)
@with_api
async def hold(
    api: EngineApi, output: Output, volume: str, name: str, owner: str, for_s: float | None, until: float | None
) -> None:
    """Keep a snapshot from being deleted until OWNER releases it or the hold expires. Again: another expiry."""
    info = await api.snapshot_hold(volume, name, owner, expires_at=_expiry(for_s, until))
    output.object(info, _line(info))


def _expiry(for_s: float | None, until: float | None = None) -> float | None:
    if for_s is not None and until is not None:
        raise click.UsageError("say --for or --until, not both")
    return until if for_s is None else time.time() + for_s


@cli.command()
@click.argument("volume")
@click.argument("name")
@click.argument("owner")
@with_api
async def release(api: EngineApi, output: Output, volume: str, name: str, owner: str) -> None:
    """End OWNER's hold."""
    info = await api.snapshot_release(volume, name, owner)
    output.object(info, _line(info))


@cli.command()
@click.argument("volume")
@click.argument("name")
@click.option("--writable", is_flag=True, help="A throw-away view at VOLUME.view.NAME: writes are lost with it.")
@click.option("--for", "for_s", type=duration, metavar="TIME", help="With --writable: discard it then: 30m, 12h, 7d.")
@with_api
async def expose(api: EngineApi, output: Output, volume: str, name: str, writable: bool, for_s: float | None) -> None:
    """Make a target VOLUME.snap.NAME with the snapshot as read-only LUN 0, or a writable view of it."""
    if for_s is not None and not writable:
        raise click.UsageError("--for is for a --writable view")
    info = await api.snapshot_expose(volume, name, writable=writable, expires_at=_expiry(for_s))
    output.object(info, _line(info))


@cli.command()
@click.argument("volume")
@click.argument("name")
@click.option("--writable", is_flag=True, help="Discard its writable view.")
@click.option("--force", is_flag=True, help="End the sessions on its target.")
@with_api
async def unexpose(api: EngineApi, output: Output, volume: str, name: str, writable: bool, force: bool) -> None:
    """End the exposure of a snapshot, or of its writable view, which is discarded."""
    info = await api.snapshot_unexpose(volume, name, writable=writable, force=force)
    output.object(info, _line(info))


@cli.command()
@click.argument("volume")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--force", is_flag=True, help="End the sessions on its target, and discard its writable view.")
@click.option("--branch", is_flag=True, help="All of the branch that NAME is on.")
@click.option("--dry-run", is_flag=True, help="Delete nothing; say what would come back.")
@with_api
async def delete(
    api: EngineApi, output: Output, volume: str, names: tuple[str, ...], force: bool, branch: bool, dry_run: bool
) -> None:
    """Delete snapshots and their exposure. A%B are those from A to B, A% and %B those from A and up to B.

    Nothing is deleted unless all of them may be.
    """
    wanted = await _branch_of(api, volume, names) if branch else list(names)
    info = await api.snapshot_delete_preview(volume, wanted, force=force)
    if dry_run:
        output.object(info, f"{len(info.snapshots)} snapshots: {size_text(info.freed_bytes)} would come back")
        return
    for name in info.snapshots:
        await api.snapshot_delete(volume, name, force=force)
    output.done("\n".join(f"snapshot {volume}@{name} is deleted" for name in info.snapshots))


async def _branch_of(api: EngineApi, volume: str, names: tuple[str, ...]) -> list[str]:
    """The snapshots of the branches that these are on."""
    infos = [await api.snapshot_show(volume, name) for name in names]
    for info in infos:
        if info.branch is None:
            raise click.UsageError(f"{volume}@{info.name} is on no branch: the volume as it is comes from it")
    branches = {info.branch for info in infos}
    return [info.name for info in await each_snapshot(api, volume) if info.branch in branches]


@cli.command()
@click.argument("volume")
@click.argument("name")
@click.option("--force", is_flag=True, help="Replace the content under logged-in initiators.")
@with_api
async def rollback(api: EngineApi, output: Output, volume: str, name: str, force: bool) -> None:
    """Make the volume what it was; what it is now stays as a snapshot."""
    info = await api.snapshot_rollback(volume, name, force=force)
    output.object(info, f"volume {volume} is as in snapshot {name}")


@cli.command()
@click.argument("volume")
@click.argument("older")
@click.argument("newer", required=False)
@diff_options
@with_api
async def diff(
    api: EngineApi, output: Output, volume: str, older: str, newer: str | None, digests: bool, progress: bool
) -> None:
    """Extents that changed from snapshot OLDER to snapshot NEWER, or to the volume as it is now."""
    await print_diff(api, output, volume, older, newer, digests=digests, lines=progress)


def _retention_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for name, what in (("weekly", "weeks"), ("daily", "days"), ("hourly", "hours")):
        text = f"The newest of each of the last N {what} that have one."
        function = click.option(f"--{name}", type=click.IntRange(0), default=0, metavar="N", help=text)(function)
    text = "The newest N."
    return click.option("--keep-last", type=click.IntRange(0), default=0, metavar="N", help=text)(function)


@cli.command()
@click.argument("volume")
@_retention_options
@click.option("--manual", is_flag=True, help="Judge those that were made by hand, too; otherwise they stay.")
@click.option("--dry-run", is_flag=True, help="Delete nothing; say what would go, what stays and why.")
@with_api
async def prune(
    api: EngineApi,
    output: Output,
    volume: str,
    keep_last: int,
    hourly: int,
    daily: int,
    weekly: int,
    manual: bool,
    dry_run: bool,
) -> None:
    """Delete the scheduled snapshots that are not to be kept; without numbers by the rules of the schedule."""
    info = await api.snapshot_prune(
        volume, keep_last=keep_last, hourly=hourly, daily=daily, weekly=weekly, manual=manual, dry_run=dry_run
    )
    if output.json:
        output.object(info)
        return
    gone, back = ("would go", "would come") if dry_run else ("deleted", "come")
    rows = [
        {**as_json(each), "outcome": "stays" if each.stays else gone, "why": each.reasons} for each in info.snapshots
    ]
    output.list("snapshots", rows, ["name", "created_at", "outcome", "why"])
    count = sum(not each.stays for each in info.snapshots)
    click.echo(f"{count} {gone}, {len(rows) - count} stay; {size_text(info.freed_bytes)} {back} back")


@cli.group()
def schedule() -> None:
    """Snapshots by the clock, and how long they stay."""


@schedule.command("set")
@click.argument("volume")
@click.option("--every", type=duration, required=True, metavar="TIME", help="15m, 1h, 1d, 1w.")
@_retention_options
@with_api
async def schedule_set(
    api: EngineApi, output: Output, volume: str, every: float, keep_last: int, hourly: int, daily: int, weekly: int
) -> None:
    """Have snapshots made of a volume, and those pruned that are not to be kept."""
    info = await api.schedule_set(volume, round(every), keep_last=keep_last, hourly=hourly, daily=daily, weekly=weekly)
    output.object(info, _schedule_line(info))


def _schedule_line(info: ScheduleInfo) -> str:
    rules = {"last": info.keep_last, "hourly": info.hourly, "daily": info.daily, "weekly": info.weekly}
    kept = ", ".join(f"{count} {rule}" for rule, count in rules.items() if count)
    return f"volume {info.volume}: every {info.interval_s} s, next at {time_text(info.next_at)}; {kept} stay"


@schedule.command("list")
@with_api
async def schedule_list(api: EngineApi, output: Output) -> None:
    """The schedules of all volumes."""
    columns = ["volume", "interval_s", "keep_last", "hourly", "daily", "weekly", "next_at", "problem"]
    output.list("schedules", await api.schedule_list(), columns)


@schedule.command("remove")
@click.argument("volume")
@with_api
async def schedule_remove(api: EngineApi, output: Output, volume: str) -> None:
    """Make no more; what was made stays."""
    await api.schedule_remove(volume)
    output.done(f"volume {volume} has no schedule any more")
