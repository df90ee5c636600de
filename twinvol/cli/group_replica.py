"""``twinvol group replica``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from twinvol.cli.command import Output, with_api
from twinvol.cli.failover import add_failover
from twinvol.cli.failover import of_groups as failover_of_groups
from twinvol.cli.job import finish, job_options
from twinvol.cli.mirror_verbs import add_verbs, finish_with, mirror_terms, of_groups

if TYPE_CHECKING:
    from engine.api import EngineApi, MirrorTerms


@click.group("replica")
def cli() -> None:
    """Mirrors of groups: at their targets all members are of one instant."""


add_verbs(cli, of_groups)
add_failover(cli, failover_of_groups, "twinvol group replica")


@cli.command()
@click.argument("group")
@click.argument("name")
@click.option("--peer", help="Make the volumes there, at another twinvol.")
@job_options
@with_api
@mirror_terms
async def create(
    api: EngineApi, output: Output, group: str, name: str, peer: str | None, terms: MirrorTerms, **how: bool
) -> None:
    """Make a volume NAME.MEMBER like each member of GROUP and keep them a mirror; waits until it is Synchronized."""
    job = await api.group_replica_create(group, name, terms, peer=peer)
    await finish_with(of_groups(api), api, output, name, job, **how)


@cli.command()
@click.argument("name")
@with_api
async def points(api: EngineApi, output: Output, name: str) -> None:
    """Recovery points of the whole group, oldest first; at the targets' side the one that they have, complete."""
    output.list("points", await api.group_replica_points(name), ["guid", "created_at", "age_seconds", "members"])


@cli.command()
@click.argument("name")
@job_options
@with_api
async def verify(api: EngineApi, output: Output, name: str, no_wait: bool, progress: bool) -> None:
    """Compare all members at one instant, by hash tree. Ends with 9 when one differs."""

    def text(result: dict[str, Any]) -> str:
        return f"replica group {name}: both sides of {len(result['proofs'])} members are identical"

    await finish(api, output, await api.group_replica_verify(name), no_wait=no_wait, progress=progress, text=text)
