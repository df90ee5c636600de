"""``twinvol proof``: checks a proof document again, wherever a copy is."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engine.errors import EngineError, InvalidArgument
from engine.stores import Extent
from twinvol.api.frames import DaemonUnreachable
from twinvol.cli.command import Output, fail, json_option, volume_point
from twinvol.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from iscsi.initiator.disk import IscsiDisk


@click.group()
def cli() -> None:
    """Proof documents of replicas."""


@cli.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--volume", type=volume_point, metavar="NAME[@SNAPSHOT]", help="Of the pool.")
@click.option("--image", type=click.Path(dir_okay=False, path_type=Path), help="A raw file; needs no daemon.")
@click.option("--url", metavar="iscsi://[USER@]HOST[:PORT]/TARGET/LUN", help="Any LUN; needs no daemon.")
@click.option("--secret-file", type=click.Path(dir_okay=False, path_type=Path), help="Holds the CHAP secret of USER.")
@click.option("--pool", type=click.Path(file_okay=False, path_type=Path), envvar="TWINVOL_POOL", help="For --volume.")
@json_option
def check(
    file: Path,
    volume: tuple[str, str | None] | None,
    image: Path | None,
    url: str | None,
    secret_file: Path | None,
    pool: Path | None,
    as_json: bool,
) -> None:
    """Does the copy still hold what FILE proves? Ends with 9 when not."""
    from engine.proof_files import read_proof  # slow: numpy

    output = Output(as_json)
    if [volume, image, url].count(None) != 2:
        raise click.UsageError("say exactly one of --volume, --image and --url")
    if secret_file is not None and url is None:
        raise click.UsageError("--secret-file goes with --url")
    if volume is not None and pool is None:
        raise click.UsageError("--volume needs --pool DIR or TWINVOL_POOL")
    try:
        proof = asyncio.run(read_proof(file))
        if volume is not None and pool is not None:
            holder = "@".join(part for part in volume if part)
            root, size_bytes = asyncio.run(_of_volume(pool, output, volume))
        elif image is not None:
            holder, (root, size_bytes) = str(image), asyncio.run(_of_image(image))
        else:
            assert url is not None
            holder, root, size_bytes = asyncio.run(_of_url(url, secret_file))
    except (EngineError, DaemonUnreachable) as error:
        fail(output, error)
    holds = proof.identical and size_bytes == proof.size_bytes and root == proof.source.root == proof.target.root
    output.object(
        {
            "file": str(file),
            "holder": holder,
            "holds": holds,
            "root": root,
            "proven_root": proof.source.root,
            "size_bytes": size_bytes,
            "proven_size_bytes": proof.size_bytes,
        },
        f"{holder} {'holds' if holds else 'does NOT hold'} what {file} proves: root {root}, proven {proof.source.root}",
    )
    if not holds:
        sys.exit(ExitCode.MISMATCH)


async def _of_volume(pool: Path, output: Output, volume: tuple[str, str | None]) -> tuple[str, int]:
    from twinvol.api.client import open_api
    from twinvol.cli.job import outcome

    async with open_api(pool) as api:
        job = await outcome(api, output, await api.volume_root(volume[0], volume[1]))
    return job.result["root"], job.result["size_bytes"]


async def _of_image(path: Path) -> tuple[str, int]:
    from engine.image_device import RawImage
    from engine.proof import tree_of

    image = await RawImage.open(path)
    try:
        tree = await tree_of(image)
    finally:
        await image.close()
    return tree.root().hex(), tree.size_bytes


async def _of_url(url: str, secret_file: Path | None) -> tuple[str, str, int]:
    """The URL as it may be shown, root and size."""
    from engine.proof import tree_of
    from engine.secret_files import read_secret
    from iscsi.initiator import ChapCredentials, ChapIdentity, InitiatorError, IscsiUrl, connect
    from iscsi.wire.errors import ProtocolError

    where = IscsiUrl.parse(url)
    secret = where.secret if secret_file is None else await asyncio.to_thread(read_secret, secret_file)
    if (where.user is None) != (secret is None):
        raise InvalidArgument("a CHAP user in the URL and --secret-file come together")
    chap = None
    if where.user is not None and secret is not None:
        chap = ChapCredentials(ChapIdentity(where.user, secret.encode()))
    try:
        async with await connect(where.portal, where.target, where.lun, chap=chap) as disk:
            tree = await tree_of(_Remote(disk))
    except (InitiatorError, ProtocolError) as error:
        raise EngineError(f"{where}: {error}") from error
    return str(where), tree.root().hex(), tree.size_bytes


class _Remote:
    """A LUN as ``tree_of`` wants it; what it holds is not asked for, all of it is read."""

    def __init__(self, disk: IscsiDisk) -> None:
        self._disk = disk
        self.size_bytes = disk.size_bytes

    async def read(self, offset: int, view: memoryview, /) -> None:
        await self._disk.read_into(offset, view)

    async def extents(self, offset: int, length: int, /) -> list[Extent]:
        return [Extent(offset, length)]
