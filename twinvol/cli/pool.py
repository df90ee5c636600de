"""``twinvol pool``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from twinvol.cli.command import Output, size, size_text, with_api

if TYPE_CHECKING:
    from engine.api import EngineApi, PoolSpaceInfo


@click.group()
def cli() -> None:
    """The pool's limits on space."""


@cli.command()
@with_api
async def show(api: EngineApi, output: Output) -> None:
    """The quota, the reserve, and how near they are."""
    info = await api.pool_space()
    output.object(info, space_line(info))


@cli.command("set")
@click.option("--quota", type=size, help="The most that the volume files may take on the host.")
@click.option("--no-quota", is_flag=True, help="As much as there is.")
@click.option("--reserve", type=size, help="What they leave free there.")
@click.option("--default-reserve", is_flag=True, help="A 64th of the file system, at most 256 MiB.")
@click.option("--warn-percent", type=click.IntRange(1, 100), help="From how much on the pool is low on space.")
@with_api
async def set_(
    api: EngineApi,
    output: Output,
    quota: int | None,
    no_quota: bool,
    reserve: int | None,
    default_reserve: bool,
    warn_percent: int | None,
) -> None:
    """Change limits; what is not named stays. They hold at once."""
    if (no_quota and quota is not None) or (default_reserve and reserve is not None):
        raise click.UsageError("say a size, or that there is none to say, not both")
    now = await api.pool_space()
    if quota is None and not no_quota:
        quota = now.quota_bytes
    if reserve is None and not default_reserve:
        reserve = now.reserve_bytes if now.reserve_is_set else None
    info = await api.pool_limit(quota_bytes=quota, reserve_bytes=reserve, warn_percent=warn_percent or now.warn_percent)
    output.object(info, space_line(info))


def space_line(info: PoolSpaceInfo) -> str:
    """The pool's space in a line."""
    quota = "no quota" if info.quota_bytes is None else f"quota {size_text(info.quota_bytes)}"
    return (
        f"space {info.state}: {size_text(info.used_bytes)} used, {size_text(info.left_bytes)} left;"
        f" {quota}, reserve {size_text(info.reserve_bytes)}, warning at {info.warn_percent}%"
    )
