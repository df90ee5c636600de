"""Images of volumes in other programs' formats: jobs that import and export them, by the one copy loop, verified.

* An import grows where nobody sees it (``engine.unfinished``) and appears when its last byte is verified and durable.
  Interrupted, it stays with its ledger, and asking for the same import again goes on; if the image has changed since,
  from the start. An image that changes *while* it is read fails the import.
* An export grows under a temporary name beside its own and gets its name, whole and durable, in one rename. The part
  and its ledger outlive a crash or a stop of the daemon, and so does the hidden snapshot that is taken when a volume,
  not one of its snapshots, is exported: asking for the same export again goes on. An error or a cancellation removes
  all three.
* Holes stay holes: what reads zero is neither read nor written.

Formats are ``engine.image_formats``; files go through ``engine.streams``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import aiofiles.os

from engine.copy_job import CopyControl, CopyOptions, CopyProgress, copy_extents
from engine.errors import AlreadyExists, InUse, InvalidArgument, InvalidState
from engine.image_device import RawImage
from engine.image_formats import EXPORT_FORMATS
from engine.ledger import Ledger, LedgerKey
from engine.migration import MovingSource, settle
from engine.names import EXPORT_PREFIX
from engine.qemu_img import Qcow2Image, convert, require_program
from engine.streams import StreamFile, translated
from engine.unfinished import SCRATCH_SUFFIX, begin_copy, part_of
from engine.vhdx.writer import Layout, VhdxTarget

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from engine.catalog import VolumeRow
    from engine.copy_job import CopyResult
    from engine.image_device import SourceImage
    from engine.jobs import Job
    from engine.pool import Pool, UnfinishedVolume
    from engine.stores import BlockDevice, Frozen
    from engine.volume import Volume


# --- import -------------------------------------------------------------------------------------------------------


async def start_import(
    pool: Pool,
    image: SourceImage,
    image_format: str,
    row: VolumeRow,
    chunk_bytes: int,
    *,
    when_whole: Callable[[Volume], Awaitable[None]],
) -> Job:
    """Begin to import an open image as a new volume; returns its job, which closes the image.

    Of ``row`` the name and the policies count. The job's result names the ``volume``, its ``root`` and ``format``.
    Raises AlreadyExists, OutOfSpace.
    """
    try:
        identity = await image.identity()
        about = f"{image_format}, chunks of {chunk_bytes}"

        def key_of(volume_id: str) -> LedgerKey:
            return LedgerKey(identity, about, volume_id, image.size_bytes)

        unfinished, ledger = await begin_copy(pool, row.name, image.size_bytes, chunk_bytes, key_of)
    except BaseException:
        await image.close()
        raise

    async def work(job: Job) -> dict[str, Any]:
        changed = False
        try:
            try:
                root = await _import(pool, image, unfinished, ledger, job)
                if changed := await image.identity() != identity:
                    raise InvalidState(image.name, "another image than when its import began", "one that nobody writes")
                await ledger.remove()
                volume = await pool.finish(unfinished, replace(row, origin=""))
            finally:
                await ledger.close()
                await image.close()
        except BaseException as error:
            cancelled = isinstance(error, asyncio.CancelledError) and job.cancelling
            await pool.abandon(unfinished, keep=not (cancelled or changed))
            raise
        await when_whole(volume)
        sector = image.logical_sector_bytes
        return {"volume": row.name, "root": root, "format": image_format, "logical_sector_bytes": sector}

    try:
        return await pool.jobs.start("import", f"{image.name} {row.name}", work)
    except BaseException:
        await image.close()
        await ledger.close()
        await pool.abandon(unfinished, keep=True)
        raise


async def _import(pool: Pool, image: SourceImage, unfinished: UnfinishedVolume, ledger: Ledger, job: Job) -> str:
    """Copy, verify, make durable; returns the root of the hash tree in hexadecimal."""
    if isinstance(image, Qcow2Image):
        await image.prepare(
            unfinished.path.with_suffix(SCRATCH_SUFFIX), lambda text: job.progress(job.done_bytes, message=text)
        )
    result = await _copy(pool, image, unfinished.head, ledger, job)
    if isinstance(image, MovingSource):
        tree = await settle(image, unfinished.head, job, mover=pool.env.mover)
        return tree.root().hex()
    return result.tree.root().hex()


# --- export -------------------------------------------------------------------------------------------------------


async def start_export(
    pool: Pool, volume: Volume, snapshot: Frozen | None, path: Path, image_format: str, *, replace_it: bool
) -> Job:
    """Begin to export a snapshot, or the volume as it is now; returns its job.

    The job's result has the ``path``, the ``root`` and the ``format``. Raises AlreadyExists: there is a file and
    ``replace_it`` is not given; InUse: another export writes it; InvalidArgument; NotSupported.
    """
    if image_format not in EXPORT_FORMATS:
        raise InvalidArgument(f"{image_format!r} is no format to export; say one of {', '.join(EXPORT_FORMATS)}")
    if image_format == "qcow2":
        require_program()
    if not await asyncio.to_thread(path.parent.is_dir):
        raise InvalidArgument(f"there is no folder {path.parent}")
    if not replace_it and await asyncio.to_thread(path.exists):
        raise AlreadyExists("file", str(path))
    if path in pool.exporting:
        raise InUse(f"{path} is being written by another export")
    pool.exporting.add(path)
    export = _Export(pool, volume, snapshot, path, image_format, replace_it=replace_it)

    async def work(job: Job) -> dict[str, Any]:
        try:
            return await export.run(job)
        finally:
            pool.exporting.discard(path)

    name = volume.name if snapshot is None else f"{volume.name}@{snapshot.name}"
    try:
        return await pool.jobs.start("export", f"{name} {path}", work, reads=name)
    except BaseException:
        pool.exporting.discard(path)
        raise


class _Export:
    """One export: what is made for it, and how that goes again."""

    def __init__(
        self, pool: Pool, volume: Volume, snapshot: Frozen | None, path: Path, image_format: str, *, replace_it: bool
    ) -> None:
        self._pool = pool
        self._volume = volume
        self._snapshot = snapshot
        self._path = path
        self._format = image_format
        self._replace_it = replace_it
        self._part = part_of(path)
        self._hidden = EXPORT_PREFIX + hashlib.sha256(bytes(path)).hexdigest()[:32]
        self._ledger_path = pool.ledgers / f"{self._hidden}.ledger"

    async def run(self, job: Job) -> dict[str, Any]:
        try:
            point = self._snapshot or await self._point()
            root = await self._write(point, job)
            if not self._replace_it and await aiofiles.os.path.exists(self._path):
                raise AlreadyExists("file", str(self._path))
            with translated(self._path):
                await aiofiles.os.replace(self._part, self._path)
            await self._sync_folder()
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError) or job.cancelling:
                await self._remove_all()
            raise
        await self._remove_all()
        return {"path": str(self._path), "root": root, "format": self._format}

    async def _point(self) -> Frozen:
        """The frozen point to export: that of an interrupted run where there is one, else a new one."""
        store = self._volume.head.store
        found = self._kept_point()
        if found is not None:
            if await aiofiles.os.path.exists(self._ledger_path):
                return found
            await store.delete_snapshot(found)
        self._volume.require_usable()
        return await store.snapshot(self._volume.head, self._hidden, hidden=True)

    def _kept_point(self) -> Frozen | None:
        for snapshot in self._volume.head.store.snapshots(self._volume.volume_id):
            if snapshot.hidden and snapshot.name == self._hidden:
                return snapshot
        return None

    async def _write(self, point: Frozen, job: Job) -> str:
        """The part, whole and durable; returns the root of what it holds."""
        layout = None
        if self._format.startswith("vhdx"):
            layout = await Layout.of(point, fixed=self._format == "vhdx-fixed")
        about = f"{self._format} {layout.digest()}" if layout is not None else self._format
        file, ledger = await self._open_part(point, layout.file_bytes if layout else point.size_bytes, about)
        try:
            target = (
                VhdxTarget(file, layout) if layout is not None else RawImage(file, point.size_bytes, read_only=False)
            )
            result = await _copy(self._pool, point, target, ledger, job)
            if isinstance(target, VhdxTarget):
                await target.finish()
        finally:
            await file.close()
            await ledger.close()
        if self._format == "qcow2":
            await self._to_qcow2(job)
        return result.tree.root().hex()

    async def _open_part(self, point: Frozen, size_bytes: int, about: str) -> tuple[StreamFile, Ledger]:
        """The part and its ledger: those of an interrupted run if they are of this export, else new ones.

        A ledger is of one file: its key names the inode. A new part is durably empty before its ledger begins.
        """
        if await aiofiles.os.path.exists(self._part) and await aiofiles.os.path.exists(self._ledger_path):
            file = await StreamFile.open(self._part, writable=True)
            ledger = await self._ledger(point, about, file)
            if ledger.done_bytes and await file.size() == size_bytes:
                return file, ledger
            await file.close()
            await ledger.remove()
        else:
            await Ledger.discard(self._pool.env.control_files, self._ledger_path)
        file = await StreamFile.create(self._part, size_bytes)
        try:
            await self._sync_folder()
            ledger = await self._ledger(point, about, file)
            await ledger.begin()  # by which the part is found after a crash
            return file, ledger
        except BaseException:
            await file.close()
            raise

    async def _ledger(self, point: Frozen, about: str, file: StreamFile) -> Ledger:
        found = await file.stat()
        key = LedgerKey(point.guid, f"{about} {found.st_dev}:{found.st_ino}", str(self._path), point.size_bytes)
        return await Ledger.open(self._pool.env.control_files, self._ledger_path, key)

    async def _to_qcow2(self, job: Job) -> None:
        """Make the raw part a qcow2 one, which is compared with it, and durable."""
        made = self._part.with_name(self._part.name + ".qcow2")
        try:
            await convert(self._part, "raw", made, "qcow2", lambda text: job.progress(job.done_bytes, message=text))
            file = await StreamFile.open(made, writable=True)
            try:
                await file.sync()
            finally:
                await file.close()
            with translated(self._part):
                await aiofiles.os.replace(made, self._part)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                await aiofiles.os.unlink(made)
            raise

    async def _remove_all(self) -> None:
        """The ledger first: it must never be beside a part that it is not about."""
        await Ledger.discard(self._pool.env.control_files, self._ledger_path)
        with contextlib.suppress(OSError):
            await aiofiles.os.unlink(self._part)
        if self._snapshot is None and (point := self._kept_point()) is not None:
            await self._volume.head.store.delete_snapshot(point)

    async def _sync_folder(self) -> None:
        folder = self._path.parent
        await self._pool.env.workers.run(lambda: self._pool.env.files.sync_directory(folder))


async def _copy(pool: Pool, source: BlockDevice, target: BlockDevice, ledger: Ledger, job: Job) -> CopyResult:
    def report(progress: CopyProgress) -> None:
        job.progress(progress.done_bytes, progress.total_bytes, "")

    return await copy_extents(
        source,
        target,
        ledger=ledger,
        options=CopyOptions(blank_target=True),
        control=CopyControl(on_progress=report),
        mover=pool.env.mover,
    )
