"""``twinvol snapshot``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from twinvol.cli.command import SCHEMA, Output, as_json, size_text, with_api

if TYPE_CHECKING:
    from engine.api import EngineApi


@click.group()
def cli() -> None:
    """Snapshots of volumes."""


@cli.command()
@click.argument("volume")
@click.argument("name")
@click.option("--expose", is_flag=True, help="Make a target VOLUME.snap.NAME with the snapshot as read-only LUN 0.")
@with_api
async def create(api: EngineApi, output: Output, volume: str, name: str, expose: bool) -> None:
    """Freeze a volume as it is now."""
    info = await api.snapshot_create(volume, name, expose=expose)
    where = f", at {info.target} LUN {info.lun}" if info.target else ""
    output.object(info, f"snapshot {info.volume}@{info.name}{where}")


@cli.command("list")
@click.argument("volume")
@with_api
async def list_(api: EngineApi, output: Output, volume: str) -> None:
    """The snapshots of a volume, oldest first."""
    columns = [
        "name",
        "created_at",
        "mapped_bytes",
        "unique_bytes",
        "shared_bytes",
        "pinned_bytes",
        "reclaimable_bytes",
    ]
    output.list("snapshots", await api.snapshot_list(volume), [*columns, "target", "lun"])


@cli.command()
@click.argument("volume")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--force", is_flag=True, help="End the sessions on its target.")
@click.option("--dry-run", is_flag=True, help="Delete nothing; say what would come back.")
@with_api
async def delete(
    api: EngineApi, output: Output, volume: str, names: tuple[str, ...], force: bool, dry_run: bool
) -> None:
    """Delete snapshots and their exposure. A%B are those from A to B, A% and %B those from A and up to B.

    Nothing is deleted unless all of them may be.
    """
    info = await api.snapshot_delete_preview(volume, list(names), force=force)
    if dry_run:
        output.object(info, f"{len(info.snapshots)} snapshots: {size_text(info.freed_bytes)} would come back")
        return
    for name in info.snapshots:
        await api.snapshot_delete(volume, name, force=force)
    output.done("\n".join(f"snapshot {volume}@{name} is deleted" for name in info.snapshots))


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
@with_api
async def diff(api: EngineApi, output: Output, volume: str, older: str, newer: str | None) -> None:
    """Extents that changed from snapshot OLDER to snapshot NEWER, or to the volume as it is."""
    extents = []
    offset: int | None = 0
    while offset is not None:
        page = await api.snapshot_diff(volume, older, newer, offset=offset)
        extents += page.extents
        offset = page.next_offset
    changed = sum(extent.length for extent in extents)
    if output.json:
        points = {"volume": volume, "older": older, "newer": newer, "changed_bytes": changed}
        output.line({"schema": SCHEMA, **points, "extents": [as_json(extent) for extent in extents]})
        return
    output.list("extents", extents, ["offset", "length"])
    click.echo(f"{len(extents)} extents, {size_text(changed)} changed")
