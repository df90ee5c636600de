"""``twinvol replica``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.errors import InvalidState
from engine.secret_files import read_secret
from twinvol.cli.command import Output, size, size_text, with_api
from twinvol.cli.failover import add_failover
from twinvol.cli.failover import of_replicas as failover_of_replicas
from twinvol.cli.job import finish, job_options, outcome
from twinvol.cli.mirror_verbs import add_verbs, finish_with, mirror_terms, of_replicas
from twinvol.cli.replica_change import COMMANDS as CHANGE_COMMANDS

if TYPE_CHECKING:
    from engine.api import EngineApi, MirrorTerms


_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def cli() -> None:
    """Mirrors of volumes."""


add_verbs(cli, of_replicas)


@cli.command()
@click.argument("source")
@click.argument("name")
@click.option("--peer", help="Make it there, at another twinvol.")
@job_options
@with_api
@mirror_terms
async def create(
    api: EngineApi, output: Output, source: str, name: str, peer: str | None, terms: MirrorTerms, **how: bool
) -> None:
    """Make a volume NAME like SOURCE and keep it a mirror; waits until it is Synchronized."""
    job = await api.replica_create(source, name, terms, peer=peer)
    await finish_with(of_replicas(api), api, output, name, job, **how)


@cli.command()
@click.argument("source")
@click.argument("target")
@click.option("--name", help="By default the target's name; a disk needs one.")
@click.option("--peer", help="TARGET is a volume there, which it has offered to this pool.")
@click.option("--secret-file", type=_FILE, help="Holds the CHAP secret of USER, for iscsi://USER@HOST/TARGET/LUN.")
@click.option("--mutual-user", help="What the disk's target proves itself as.")
@click.option("--mutual-secret-file", type=_FILE, help="Holds the secret of that.")
@job_options
@with_api
@mirror_terms
async def attach(
    api: EngineApi,
    output: Output,
    source: str,
    target: str,
    name: str | None,
    peer: str | None,
    secret_file: Path | None,
    mutual_user: str | None,
    mutual_secret_file: Path | None,
    terms: MirrorTerms,
    **how: bool,
) -> None:
    """Keep TARGET a mirror of SOURCE; what it holds is lost.

    TARGET is a volume, or the URL of any iSCSI LUN, iscsi://[USER@]HOST[:PORT]/TARGET-NAME/LUN: that has no recovery
    points, is no instant of SOURCE while it is brought up to date, and nobody else may write to it.
    """
    job = await api.replica_attach(
        source,
        target,
        terms,
        name=name,
        peer=peer,
        secret=await _secret(secret_file),
        mutual_user=mutual_user,
        mutual_secret=await _secret(mutual_secret_file),
    )
    await finish_with(of_replicas(api), api, output, name or target, job, **how)


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


add_failover(cli, failover_of_replicas, "twinvol replica")
for _command in CHANGE_COMMANDS:
    cli.add_command(_command)


async def _secret(file: Path | None) -> str | None:
    return None if file is None else await asyncio.to_thread(read_secret, file)
