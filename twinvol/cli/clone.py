"""``twinvol clone``."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

from twinvol.cli.command import Output, volume_point, with_api
from twinvol.cli.job import finish, job_options
from twinvol.cli.volume import volume_line

if TYPE_CHECKING:
    from engine.api import EngineApi


@click.group()
def cli() -> None:
    """Writable copies."""


@cli.command()
@click.argument("source", type=volume_point, metavar="SOURCE[@SNAPSHOT]")
@click.argument("name")
@click.option("--full", is_flag=True, help="Copy and verify everything, into a family of its own.")
@click.option("--expose", is_flag=True, help="Make a target of its name with the clone as LUN 0.")
@job_options
@with_api
async def create(
    api: EngineApi,
    output: Output,
    source: tuple[str, str | None],
    name: str,
    full: bool,
    expose: bool,
    no_wait: bool,
    progress: bool,
) -> None:
    """Make a linked clone of SOURCE@SNAPSHOT at once; without a snapshot, of one taken now and named as the clone."""
    if full:
        job = await api.clone_copy(source[0], source[1], name, expose=expose)
        made = functools.partial(api.volume_show, name)
        await finish(api, output, job, no_wait=no_wait, progress=progress, made=made, text=volume_line)
        return
    info = await api.clone_create(source[0], source[1], name, expose=expose)
    output.object(info, volume_line(info))


@cli.command()
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Copy nothing; say how much it would be.")
@job_options
@with_api
async def flatten(api: EngineApi, output: Output, name: str, dry_run: bool, no_wait: bool, progress: bool) -> None:
    """Copy all that the linked clone NAME and its snapshots share with its origin, verified, and cut the tie.

    What several of them share is copied once. It stays in use meanwhile. Interrupted or cancelled, the same command
    goes on with the rest.
    """
    if dry_run:
        info = await api.clone_flatten_preview(name)
        output.object(info, f"{name} would leave {info.origin} with {info.copied_bytes} bytes copied")
        return
    job = await api.clone_flatten(name)
    await finish(api, output, job, no_wait=no_wait, progress=progress, text=_outcome)


def _outcome(result: dict[str, Any]) -> str:
    return f"{result['volume']} depends on no other volume"


@cli.command("list")
@with_api
async def list_(api: EngineApi, output: Output) -> None:
    """The linked clones."""
    output.list("clones", await api.clone_list(), ["name", "origin", "size_bytes", "state", "target", "lun"])
