"""``twinvol peer``: invitations are secrets until they are used, so they also come from files and stdin."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engine.peers.invitation import MAX_CODE_CHARS
from engine.secret_files import read_secret
from twinvol.cli.command import Output, duration, size, size_text, time_text, with_api

if TYPE_CHECKING:
    from engine.api import EngineApi, PeerInfo


@click.group()
def cli() -> None:
    """Other twinvols that hold replicas of volumes here, or have some here."""


@cli.command()
@click.argument("name", required=False)
@click.option("--address", metavar="HOST:PORT", help="Where the peer finds this daemon, if not where it listens.")
@click.option("--expires", "lifetime_s", type=duration, default="1h", show_default=True, metavar="TIME")
@with_api
async def invite(api: EngineApi, output: Output, name: str | None, address: str | None, lifetime_s: float) -> None:
    """Print a one-time code by which another twinvol becomes a peer, called NAME here. It is a secret till then."""
    made = await api.peer_invite(name=name, address=address, lifetime_s=lifetime_s)
    output.object(made, made.code)
    if not output.json:
        click.echo(f"good once, until {time_text(made.expires_at)}", err=True)


@cli.command()
@click.argument("name")
@click.argument("address", required=False, metavar="[HOST:PORT]")
@click.option("--code", help="What invite printed. Others on this machine may see it in the list of processes.")
@click.option("--code-file", type=click.Path(dir_okay=False, allow_dash=True), help="Has the code; - for stdin.")
@with_api
async def add(
    api: EngineApi, output: Output, name: str, address: str | None, code: str | None, code_file: str | None
) -> None:
    """Become the peer of who made the code, called NAME here; HOST:PORT, if that is not where the code says."""
    if (code is None) == (code_file is None):
        raise click.UsageError("say either --code-file or --code")
    if code_file == "-":
        code = await asyncio.to_thread(sys.stdin.readline, MAX_CODE_CHARS + 2)
    elif code_file is not None:
        code = await asyncio.to_thread(read_secret, Path(code_file))
    assert code is not None
    info = await api.peer_add(name, code.strip(), address=address)
    output.object(info, f"peer {name} at {info.address}: fingerprint {info.fingerprint}")


@cli.command("list")
@with_api
async def list_(api: EngineApi, output: Output) -> None:
    """All peers."""
    columns = ["name", "address", "connected", "connects_to_us", "replicas", "replicas_here", "reason"]
    output.list("peers", await api.peer_list(), columns)


@cli.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Also with replicas, which break.")
@with_api
async def remove(api: EngineApi, output: Output, name: str, force: bool) -> None:
    """Trust a peer no longer; its connections end at once."""
    await api.peer_remove(name, force=force)
    output.done(f"peer {name} is trusted no longer")


@cli.command()
@click.argument("name")
@with_api
async def ping(api: EngineApi, output: Output, name: str) -> None:
    """Whether a peer answers, and how soon."""
    seconds = await api.peer_ping(name)
    output.object({"name": name, "seconds": seconds}, f"peer {name} answered in {seconds * 1000:.2f} ms")


@cli.command()
@with_api
async def rotate(api: EngineApi, output: Output) -> None:
    """Replace this pool's key and certificate; the old ones serve until every peer knows the new."""
    fingerprint = await api.peer_rotate()
    output.object({"fingerprint": fingerprint}, f"the new certificate is {fingerprint}")


@cli.command()
@click.argument("name")
@click.argument("rate", type=size)
@with_api
async def limit(api: EngineApi, output: Output, name: str, rate: int) -> None:
    """Copies send a peer at most RATE bytes a second; 0 is no limit."""
    output.object(info := await api.peer_limit(name, rate), _rate(info))


@cli.command()
@click.argument("name")
@click.argument("source", metavar="file:/PATH|credential:NAME|none")
@with_api
async def key(api: EngineApi, output: Output, name: str, source: str) -> None:
    """Where the key is for replicas of a peer's encrypted volumes here; none: they are refused."""
    info = await api.peer_key(name, None if source == "none" else source)
    text = "are refused" if info.key_source is None else f"have their key from {info.key_source}"
    output.object(info, f"peer {name}: new replicas of its encrypted volumes {text}")


@cli.command()
@click.argument("name")
@click.argument("volume")
@click.option("--withdraw", is_flag=True, help="Not any more; a replica that is there stays.")
@with_api
async def offer(api: EngineApi, output: Output, name: str, volume: str, withdraw: bool) -> None:
    """A peer may attach VOLUME as the replica of a volume of its own; what VOLUME holds is lost then."""
    info = await api.peer_offer(name, volume, withdraw=withdraw)
    output.object(info, f"peer {name} may attach: {', '.join(info.offers) or 'nothing'}")


def _rate(info: PeerInfo) -> str:
    return f"peer {info.name}: " + (f"at most {size_text(info.rate_bytes_s)}/s" if info.rate_bytes_s else "no limit")
