"""``twinvol volume``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from twinvol.cli.command import Output, as_json, size, size_text, time_text, volume_point, with_api
from twinvol.cli.diff import diff_options, print_diff
from twinvol.cli.job import finish, job_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.api import EngineApi, ScrubInfo, VolumeInfo


def _image(text: str) -> str:
    """A URL as it is; a file by its absolute path, which means the same to the daemon."""
    return text if "://" in text else str(Path(text).absolute())


F = TypeVar("F", bound="Callable[..., Any]")


def key_options(command: F) -> F:
    """Where the key of an encrypted volume is. The daemon reads it, now and at each start."""
    credential = click.option("--key-credential", metavar="NAME", help="Encrypt: key in this systemd credential.")
    file = click.option(
        "--key-file", type=click.Path(path_type=Path), metavar="FILE", help="Encrypt: key in this file, of mode 0600."
    )
    return file(credential(command))


def key_source(file: Path | None, credential: str | None) -> str | None:
    """As the API wants it; None: no encryption."""
    if file is not None and credential is not None:
        raise click.UsageError("--key-file or --key-credential, not both")
    if file is not None:
        return f"file:{file.absolute()}"
    return None if credential is None else f"credential:{credential}"


@click.group()
def cli() -> None:
    """Volumes."""


@cli.command()
@click.argument("name")
@click.option("--size", type=size, required=True, help="Bytes, or with K, M, G, T.")
@click.option("--expose", is_flag=True, help="Make a target of its name with the volume as LUN 0.")
@click.option("--chunk", type=size, default="64K", show_default=True, help="64K or 256K.")
@click.option("--physical-block", type=size, default="4096", show_default=True, help="512 or 4096.")
@click.option("--removable", is_flag=True, help="Tell initiators that the medium is removable.")
@click.option("--read-only", is_flag=True, help="Refuse writes.")
@click.option("--write-cache", type=click.Choice(["on", "off"]), default="on", show_default=True)
@key_options
@with_api
async def create(
    api: EngineApi,
    output: Output,
    name: str,
    size: int,
    expose: bool,
    chunk: int,
    physical_block: int,
    removable: bool,
    read_only: bool,
    write_cache: str,
    key_file: Path | None,
    key_credential: str | None,
) -> None:
    """Make an empty volume."""
    info = await api.volume_create(
        name,
        size,
        chunk_bytes=chunk,
        physical_block_bytes=physical_block,
        removable=removable,
        read_only=read_only,
        write_cache=write_cache == "on",
        expose=expose,
        key_source=key_source(key_file, key_credential),
    )
    output.object(info, volume_line(info))


@cli.command()
@click.argument("name")
@key_options
@with_api
async def rekey(api: EngineApi, output: Output, name: str, key_file: Path | None, key_credential: str | None) -> None:
    """Give an encrypted volume, and all of its family, another key. Its data stays as it is."""
    source = key_source(key_file, key_credential)
    if source is None:
        raise click.UsageError("say --key-file FILE or --key-credential NAME")
    output.object(await api.volume_rekey(name, source), f"volume {name} has its key from {source} now")


@cli.command("list")
@with_api
async def list_(api: EngineApi, output: Output) -> None:
    """All volumes."""
    output.list("volumes", await api.volume_list(), ["name", "size_bytes", "state", "snapshots", "target", "lun"])


@cli.command()
@click.argument("name")
@with_api
async def show(api: EngineApi, output: Output, name: str) -> None:
    """Everything about one volume."""
    output.object(await api.volume_show(name))


@cli.command()
@click.argument("name")
@click.option("--size", type=size, required=True, help="The new size.")
@click.option("--shrink", is_flag=True, help="Allow a smaller size; what lies beyond is lost.")
@with_api
async def resize(api: EngineApi, output: Output, name: str, size: int, shrink: bool) -> None:
    """Change the size; initiators are told."""
    info = await api.volume_resize(name, size, shrink=shrink)
    output.object(info, volume_line(info))


@cli.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="End its sessions and delete its snapshots too.")
@click.option("--dry-run", is_flag=True, help="Delete nothing; say what would come back.")
@with_api
async def delete(api: EngineApi, output: Output, name: str, force: bool, dry_run: bool) -> None:
    """Delete a volume and its exposure."""
    if dry_run:
        info = await api.volume_delete_preview(name, force=force)
        whole = info.removed_file_bytes
        file = "" if whole is None else f"; its file goes, and the host gets {size_text(whole)}"
        output.object(info, f"volume {name}: {size_text(info.freed_bytes)} would come back{file}")
        return
    await api.volume_delete(name, force=force)
    output.done(f"volume {name} is deleted")


@cli.command()
@click.argument("name")
@click.option(
    "--rate", type=size, help="Bytes per second that it reads at most, kept for the next ones; at first 100M."
)
@click.option("--pause", is_flag=True, help="End the one under way; the next goes on with it.")
@click.option("--status", is_flag=True, help="Only show the last one, and when each range was verified.")
@click.option("--digests", type=click.Choice(["lazy", "always"]), help="Only say when digests are made.")
@job_options
@with_api
async def scrub(
    api: EngineApi,
    output: Output,
    name: str,
    rate: int | None,
    pause: bool,
    status: bool,
    digests: str | None,
    no_wait: bool,
    progress: bool,
) -> None:
    """Compare what the volume and its snapshots hold with its digests, and make those that are missing."""
    if pause + status + (digests is not None) + (rate is not None) > 1:
        raise click.UsageError("one of --rate, --pause, --status and --digests")
    if pause:
        output.object(info := await api.volume_scrub_pause(name), scrub_line(info))
    elif status:
        output.object(info := await api.volume_scrub_show(name), scrub_line(info))
    elif digests is not None:
        output.object(info := await api.volume_digests(name, digests), scrub_line(info))
    else:
        job = await api.volume_scrub(name, rate_bytes_s=rate)
        await finish(api, output, job, no_wait=no_wait, progress=progress, text=_scrub_result)


def scrub_line(info: ScrubInfo) -> str:
    """The last scrub in some lines."""
    since = (
        "not all of it verified yet" if info.verified_at is None else f"verified since {time_text(info.verified_at)}"
    )
    counts = f"{info.verified_chunks} chunks right, {info.new_digests} new digests, {info.bad_chunks} bad"
    lines = [
        f"volume {info.volume}: {since}; digests {info.policy}",
        f"last scrub: {info.state}; {counts}, {info.repaired_chunks} repaired, {info.transient_chunks} wrong in memory",
    ]
    if info.file_bad_chunks:
        lines.append(f"its file has {info.file_bad_chunks} chunks marked bad")
    return "\n".join(lines)


def _scrub_result(result: dict[str, Any]) -> str:
    return (
        f"volume {result['volume']}: {result['verified']} chunks right, {result['made']} new digests,"
        f" {result['bad']} bad, {result['repaired']} repaired"
    )


@cli.command()
@click.argument("name")
@with_api
async def space(api: EngineApi, output: Output, name: str) -> None:
    """What the volume and its snapshots take."""
    info = await api.volume_space(name)
    if output.json:
        output.object(info)
        return
    columns = ["name", "mapped_bytes", "unique_bytes", "shared_bytes", "pinned_bytes", "reclaimable_bytes"]
    snapshots = [{**as_json(each), "name": f"{name}@{each.name}"} for each in info.snapshots]
    output.list("space", [as_json(info), *snapshots], columns)
    family = info.family
    click.echo(
        f"size {size_text(info.size_bytes)}; its file takes {size_text(info.file_bytes)} on the host. The family has"
        f" {size_text(family.used_bytes)} in use, {size_text(family.pending_bytes)} coming back,"
        f" {size_text(family.free_bytes)} free ({size_text(family.unpunched_bytes)} not given back to the host yet),"
        f" {size_text(family.metadata_bytes)} of metadata."
    )


@cli.command("import")
@click.argument("name")
@click.option(
    "--from", "source", required=True, metavar="FILE|URL", help="An image, or iscsi://[USER@]HOST/TARGET/LUN."
)
@click.option("--format", type=click.Choice(["auto", "raw", "vhdx", "qcow2"]), default="auto", show_default=True)
@click.option("--secret-file", type=click.Path(dir_okay=False, path_type=Path), help="Holds the CHAP secret of USER.")
@click.option("--chunk", type=size, default="64K", show_default=True, help="64K or 256K.")
@click.option("--new-identity", is_flag=True, help="Take in a copy of a volume file: its volumes become other ones.")
@click.option("--expose", is_flag=True, help="Make a target of its name with the volume as LUN 0.")
@job_options
@with_api
async def import_(
    api: EngineApi,
    output: Output,
    name: str,
    source: str,
    format: str,
    secret_file: Path | None,
    chunk: int,
    new_identity: bool,
    expose: bool,
    no_wait: bool,
    progress: bool,
) -> None:
    """Make a volume of an image or of a LUN, sparse and verified. Said again after an interruption, it goes on."""
    from engine.secret_files import read_secret

    if secret_file is not None and "://" not in source:
        raise click.UsageError("--secret-file goes with a URL")
    secret = None if secret_file is None else read_secret(secret_file)
    if new_identity:
        job = await api.volume_import(source, name, expose=expose, new_identity=True)
        await finish(api, output, job, no_wait=no_wait, progress=progress, text=_taken_in)
        return
    job = await api.volume_import(source, name, format=format, chunk_bytes=chunk, expose=expose, secret=secret)
    made = functools.partial(api.volume_show, name)
    await finish(api, output, job, no_wait=no_wait, progress=progress, made=made, text=volume_line)


def _taken_in(result: dict[str, Any]) -> str:
    return f"{', '.join(result['volumes'])} taken in under new identities"


@cli.command()
@click.argument("source", type=volume_point, metavar="NAME[@SNAPSHOT]")
@click.option("--to", "path", required=True, type=click.Path(dir_okay=False, resolve_path=True), metavar="FILE")
@click.option("--format", type=click.Choice(["raw", "vhdx", "vhdx-fixed", "qcow2"]), default="raw", show_default=True)
@click.option("--force", is_flag=True, help="Replace a file of that name.")
@job_options
@with_api
async def export(
    api: EngineApi,
    output: Output,
    source: tuple[str, str | None],
    path: str,
    format: str,
    force: bool,
    no_wait: bool,
    progress: bool,
) -> None:
    """Write a volume or snapshot to an image, sparse and verified. Said again after an interruption, it goes on."""
    job = await api.volume_export(source[0], source[1], path, format=format, replace=force)

    def text(result: dict[str, Any]) -> str:
        return f"{path}: {result['format']}, root {result['root']}"

    await finish(api, output, job, no_wait=no_wait, progress=progress, text=text)


@cli.command()
@click.argument("source", type=volume_point, metavar="NAME[@SNAPSHOT]")
@job_options
@with_api
async def root(api: EngineApi, output: Output, source: tuple[str, str | None], no_wait: bool, progress: bool) -> None:
    """The root of the hash tree: sixteen bytes that stand for size and content."""
    job = await api.volume_root(source[0], source[1])
    await finish(api, output, job, no_wait=no_wait, progress=progress, text=lambda result: str(result["root"]))


@cli.command()
@click.argument("source", type=volume_point, metavar="NAME[@SNAPSHOT]")
@click.option("--from", "older", metavar="SNAPSHOT", help="What changed since; without it, what is allocated.")
@diff_options
@with_api
async def diff(
    api: EngineApi, output: Output, source: tuple[str, str | None], older: str | None, digests: bool, progress: bool
) -> None:
    """Extents that are allocated in a volume as it is now, or in a snapshot; or those that changed."""
    await print_diff(api, output, source[0], older, source[1], digests=digests, lines=progress)


def volume_line(info: VolumeInfo) -> str:
    """A volume in a line."""
    origin = f", clone of {info.origin}" if info.origin else ""
    where = f", at {info.target} LUN {info.lun}" if info.target else ""
    return f"volume {info.name}: {size_text(info.size_bytes)}{origin}{where}"
