"""Raw images: importing a file as a volume, exporting a volume as a file. By the one copy loop, verified.

A raw image is a plain file whose byte n is the volume's byte n. Holes stay holes: they are found with SEEK_DATA on the
way in, and never written on the way out.

* An export grows under a temporary name beside its own and gets its name, whole and durable, in one rename. What an
  interrupted one leaves behind is removed by the next export to that name.
* An import grows where nobody sees it (``Pool.begin``) and appears when its last byte is verified and durable.

These are files of users, opened by their names; data files of the store are ``engine.files``' business. All blocking
calls happen in workers.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.copy_job import CopyControl, CopyOptions, CopyProgress, copy_extents
from engine.errors import AlreadyExists, InvalidArgument, NotFound, OutOfRange, WriteProtected
from engine.files import translate
from engine.stores import Extent, ExtentState
from engine.units import SECTOR_SIZE, align_up

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from engine.catalog import VolumeRow
    from engine.files import Workers
    from engine.jobs import Job
    from engine.pool import Pool
    from engine.stores import Frozen
    from engine.volume import Volume

HIDDEN_PREFIX = "export."
"""Of the snapshot that is taken when a volume, not one of its snapshots, is exported."""


def absolute(path: str) -> Path:
    """The path of an image. Raises InvalidArgument: a relative one would mean another file in the daemon."""
    found = Path(path)
    if not found.is_absolute():
        raise InvalidArgument(f"{path} is not an absolute path")
    return found


class RawImage:
    """A raw file as a ``BlockDevice`` for the copy loop; ``open`` and ``create`` make it.

    A file whose length is not whole sectors reads as if zeroes followed.
    """

    def __init__(self, path: Path, fd: int, size_bytes: int, workers: Workers, *, read_only: bool) -> None:
        self.size_bytes = size_bytes
        self.read_only = read_only
        self._path = path
        self._fd = fd
        self._workers = workers

    @classmethod
    async def open(cls, path: Path, workers: Workers) -> RawImage:
        """An existing file or block device, for reading. Raises NotFound, PermissionDenied, InvalidArgument."""

        def opened() -> tuple[int, int]:
            with _translated(path):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                with _translated(path):
                    size = os.lseek(fd, 0, os.SEEK_END)
                if not size:
                    raise InvalidArgument(f"{path} is empty: a volume has at least one sector")
            except BaseException:
                os.close(fd)
                raise
            return fd, align_up(size, SECTOR_SIZE)

        if not await workers.run(path.exists):
            raise NotFound("file", str(path))
        fd, size_bytes = await workers.run(opened)
        return cls(path, fd, size_bytes, workers, read_only=True)

    @classmethod
    async def create(cls, path: Path, size_bytes: int, workers: Workers) -> RawImage:
        """A new file of zeroes, all hole; one of that name is replaced. Raises OutOfSpace, PermissionDenied."""

        def created() -> int:
            with _translated(path):
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
                try:
                    os.ftruncate(fd, size_bytes)
                except BaseException:
                    os.close(fd)
                    raise
                return fd

        return cls(path, await workers.run(created), size_bytes, workers, read_only=False)

    async def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            await self._workers.run(lambda: os.close(fd))

    # --- engine.stores.BlockDevice and BulkSource -------------------------------------------------------------------

    def try_read(self, offset: int, view: memoryview, /) -> bool:
        return False

    def try_write(self, offset: int, data: memoryview, /) -> bool:
        return False

    def end_pass(self) -> None:
        """Nothing is ever written in the loop."""

    async def read(self, offset: int, view: memoryview, /) -> None:
        self._check(offset, len(view))
        await self._workers.run(lambda: self._read(offset, view))

    async def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        self._check(offset, len(data), writing=True)
        await self._workers.run(lambda: self._write(offset, data))
        if fua:
            await self.flush()

    async def write_zeroes(self, offset: int, length: int, /, *, fua: bool = False) -> None:
        """Only the copy loop writes here, and only to a new file, which reads zero already."""
        self._check(offset, length, writing=True)

    async def discard(self, offset: int, length: int, /) -> None:
        """As ``write_zeroes``."""
        self._check(offset, length, writing=True)

    async def flush(self) -> None:
        def sync() -> None:
            with _translated(self._path):
                os.fsync(self._fd)

        await self._workers.run(sync)

    async def extents(self, offset: int, length: int, /) -> list[Extent]:
        self._check(offset, length)
        return await self._workers.run(lambda: list(self._extents(offset, offset + length)))

    def lease_read(self, offset: int, length: int, /) -> _RawLease:
        self._check(offset, length)
        return _RawLease(self, offset)

    async def lease_write(self, offset: int, length: int, /) -> _RawLease | None:
        self._check(offset, length, writing=True)
        return _RawLease(self, offset)

    def read_at(self, offset: int, view: memoryview) -> None:
        """In a worker: fill ``view``; what is beyond the end of the file is zero."""
        self._read(offset, view)

    def write_at(self, offset: int, data: memoryview) -> None:
        """In a worker."""
        self._write(offset, data)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _check(self, offset: int, length: int, *, writing: bool = False) -> None:
        if writing and self.read_only:
            raise WriteProtected(f"{self._path} is open for reading")
        if offset < 0 or offset + length > self.size_bytes:
            raise OutOfRange(offset, length, self.size_bytes)

    def _read(self, offset: int, view: memoryview) -> None:
        done = 0
        with _translated(self._path):
            while done < len(view):
                count = os.preadv(self._fd, [view[done:]], offset + done)
                if not count:
                    view[done:] = bytes(len(view) - done)
                    return
                done += count

    def _write(self, offset: int, data: memoryview) -> None:
        done = 0
        with _translated(self._path):
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], offset + done)

    def _extents(self, at: int, end: int) -> Iterator[Extent]:
        while at < end:
            try:
                data = min(os.lseek(self._fd, at, os.SEEK_DATA), end)
            except OSError:
                # Nothing but a hole follows (ENXIO); or a file without SEEK_DATA, such as a device: all of it is data.
                data = end if self._knows_holes() else at
            if data > at:
                yield Extent(at, data - at, ExtentState.HOLE)
            if data >= end:
                return
            try:
                hole = min(os.lseek(self._fd, data, os.SEEK_HOLE), end)
            except OSError:
                hole = end
            hole = min(align_up(max(hole, data + 1), SECTOR_SIZE), end)
            yield Extent(data, hole - data)
            at = hole

    def _knows_holes(self) -> bool:
        try:
            os.lseek(self._fd, 0, os.SEEK_HOLE)
        except OSError:
            return False
        return True


class _RawLease:
    """A range of a raw file in a worker; what is written there is the file's content at once."""

    unit_bytes = SECTOR_SIZE
    place = None  # by ``read`` and ``write`` only

    def __init__(self, image: RawImage, offset: int) -> None:
        self._image = image
        self._offset = offset

    def read(self, at: int, view: memoryview, /) -> None:
        self._image.read_at(self._offset + at, view)

    def write(self, at: int, data: memoryview, /) -> None:
        self._image.write_at(self._offset + at, data)

    async def publish(self, written: object, /) -> None:
        """It is there already."""

    def release(self) -> None:
        """Nothing was held."""


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise translate(error, str(path)) from error


# --- jobs -----------------------------------------------------------------------------------------------------------


async def start_import(
    pool: Pool,
    path: Path,
    row: VolumeRow,
    chunk_bytes: int,
    *,
    when_whole: Callable[[Volume], Awaitable[None]],
) -> Job:
    """Begin to import the raw image at ``path``, which must not change meanwhile, as a new volume; returns its job.

    Of ``row`` the name and the policies count. The job's result names the ``volume`` and its ``root``. Raises
    NotFound, InvalidArgument, AlreadyExists, OutOfSpace, PermissionDenied.
    """
    image = await RawImage.open(path, pool.env.workers)
    try:
        unfinished = await pool.begin(row.name, image.size_bytes, chunk_bytes)
    except BaseException:
        await image.close()
        raise

    async def work(job: Job) -> dict[str, Any]:
        try:
            root = await _copy(pool, image, unfinished.head, job)
            volume = await pool.finish(unfinished, replace(row, origin=""))
        except BaseException:
            await pool.abandon(unfinished)
            raise
        finally:
            await image.close()
        await when_whole(volume)
        return {"volume": row.name, "root": root}

    try:
        return await pool.jobs.start("import", f"{path} {row.name}", work)
    except BaseException:
        await image.close()
        await pool.abandon(unfinished)
        raise


async def start_export(pool: Pool, volume: Volume, snapshot: Frozen | None, path: Path, *, replace_it: bool) -> Job:
    """Begin to export a snapshot, or the volume as it is now, as a raw image; returns its job.

    The job's result has the ``path`` and the ``root``. Raises AlreadyExists: there is a file and ``replace_it`` is
    not given; InvalidArgument: there is no such folder.
    """
    workers, store = pool.env.workers, volume.head.store
    if not await workers.run(path.parent.is_dir):
        raise InvalidArgument(f"there is no folder {path.parent}")
    if not replace_it and await workers.run(path.exists):
        raise AlreadyExists("file", str(path))
    part = path.with_name(f".{path.name}.twinvol-part")

    async def work(job: Job) -> dict[str, Any]:
        if snapshot is None:
            volume.require_usable()
        point = snapshot or await store.snapshot(volume.head, f"{HIDDEN_PREFIX}{job.job_id}", hidden=True)
        try:
            image = await RawImage.create(part, point.size_bytes, workers)
            try:
                root = await _copy(pool, point, image, job)
            finally:
                await image.close()
            await workers.run(lambda: _publish(pool, part, path))
        except BaseException:
            await workers.run(lambda: part.unlink(missing_ok=True))
            raise
        finally:
            if snapshot is None:
                await store.delete_snapshot(point)
        return {"path": str(path), "root": root}

    name = volume.name if snapshot is None else f"{volume.name}@{snapshot.name}"
    return await pool.jobs.start("export", f"{name} {path}", work, reads=name)


async def _copy(pool: Pool, source: RawImage | Frozen, target: Any, job: Job) -> str:
    def report(progress: CopyProgress) -> None:
        job.progress(progress.done_bytes, progress.total_bytes)

    result = await copy_extents(
        source,
        target,
        options=CopyOptions(blank_target=True),
        control=CopyControl(on_progress=report),
        mover=pool.env.mover,
    )
    return result.tree.root().hex()


def _publish(pool: Pool, part: Path, path: Path) -> None:
    with _translated(path):
        part.replace(path)
    pool.env.files.sync_directory(path.parent)
