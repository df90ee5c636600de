"""``twinvol group``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from twinvol.cli import group_replica
from twinvol.cli.command import Output, volume_point, with_api

if TYPE_CHECKING:
    from engine.api import EngineApi, GroupInfo, GroupSnapshotInfo


@click.group()
def cli() -> None:
    """Volumes that are frozen, cloned, rolled back and mirrored together, at one instant."""


cli.add_command(group_replica.cli)


@cli.command()
@click.argument("name")
@click.argument("volumes", metavar="VOLUME...", nargs=-1, required=True)
@with_api
async def create(api: EngineApi, output: Output, name: str, volumes: tuple[str, ...]) -> None:
    """Make a group of up to 64 volumes. A volume may be in several."""
    _group(output, await api.group_create(name, list(volumes)))


@cli.command()
@click.argument("name")
@click.argument("volumes", metavar="VOLUME...", nargs=-1, required=True)
@with_api
async def add(api: EngineApi, output: Output, name: str, volumes: tuple[str, ...]) -> None:
    """Take volumes in. Snapshots of the group that exist stay as they are."""
    _group(output, await api.group_add(name, list(volumes)))


@cli.command()
@click.argument("name")
@click.argument("volumes", metavar="VOLUME...", nargs=-1, required=True)
@with_api
async def remove(api: EngineApi, output: Output, name: str, volumes: tuple[str, ...]) -> None:
    """Take volumes out. Snapshots of the group that exist stay as they are."""
    _group(output, await api.group_remove(name, list(volumes)))


@cli.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Delete its snapshots too, and end the sessions on them.")
@with_api
async def delete(api: EngineApi, output: Output, name: str, force: bool) -> None:
    """Forget a group; its volumes stay."""
    await api.group_delete(name, force=force)
    output.done(f"group {name} is deleted")


@cli.command("list")
@with_api
async def list_(api: EngineApi, output: Output) -> None:
    """All groups."""
    output.list("groups", await api.group_list(), ["name", "members", "size_bytes", "snapshots", "state"])


@cli.command()
@click.argument("name")
@with_api
async def show(api: EngineApi, output: Output, name: str) -> None:
    """One group."""
    output.object(await api.group_show(name))


@cli.command()
@click.argument("name")
@click.argument("snapshot", metavar="SNAPSHOT")
@click.option("--expose", is_flag=True, help="Make a target VOLUME.snap.SNAPSHOT of each member's, read-only.")
@with_api
async def snapshot(api: EngineApi, output: Output, name: str, snapshot: str, expose: bool) -> None:
    """Freeze all members at one instant, as snapshot SNAPSHOT of each."""
    info = await api.group_snapshot_create(name, snapshot, expose=expose)
    _snapshot(output, info, f"group snapshot {name}@{snapshot}")


@cli.command("snapshot-list")
@click.argument("name")
@with_api
async def snapshot_list(api: EngineApi, output: Output, name: str) -> None:
    """The snapshots of a group, oldest first."""
    output.list("group_snapshots", await api.group_snapshot_list(name), ["name", "created_at", "state", "reason"])


@cli.command("snapshot-delete")
@click.argument("name")
@click.argument("snapshot", metavar="SNAPSHOT")
@click.option("--force", is_flag=True, help="End the sessions on the members' targets.")
@with_api
async def snapshot_delete(api: EngineApi, output: Output, name: str, snapshot: str, force: bool) -> None:
    """Delete a group snapshot, with the snapshots of its members."""
    await api.group_snapshot_delete(name, snapshot, force=force)
    output.done(f"group snapshot {name}@{snapshot} is deleted")


@cli.command()
@click.argument("name")
@click.argument("snapshot", metavar="SNAPSHOT")
@click.option("--force", is_flag=True, help="Replace the content under logged-in initiators.")
@with_api
async def rollback(api: EngineApi, output: Output, name: str, snapshot: str, force: bool) -> None:
    """Make all members what they were; what they are now stays as a group snapshot."""
    kept = await api.group_rollback(name, snapshot, force=force)
    _snapshot(
        output, kept, f"group {name} is as in snapshot {snapshot}; what it was is group snapshot {name}@{kept.name}"
    )


@cli.command()
@click.argument("source", type=volume_point, metavar="NAME[@SNAPSHOT]")
@click.argument("new", metavar="NEW")
@click.option("--expose", is_flag=True, help="Make a target of each clone's name.")
@with_api
async def clone(api: EngineApi, output: Output, source: tuple[str, str | None], new: str, expose: bool) -> None:
    """Make linked clones NEW.MEMBER of a group snapshot, or of one taken now and named NEW, and a group NEW of them."""
    _group(output, await api.group_clone(source[0], source[1], new, expose=expose))


def _group(output: Output, info: GroupInfo) -> None:
    output.object(info, f"group {info.name}: {', '.join(info.members)}")


def _snapshot(output: Output, info: GroupSnapshotInfo, text: str) -> None:
    lines = [f"  {member.volume}: {member.target} LUN {member.lun}" for member in info.members if member.target]
    output.object(info, "\n".join([text, *lines]))
