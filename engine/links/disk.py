"""The link to a target that is one disk of elsewhere, without snapshots: any iSCSI LUN.

Fulfils ``engine.links.MirrorLink`` with an ``ActivityLog`` where other targets have recovery points. The disk itself is
the one copy there is:

* Its *points* are names of moments: the disk was that recovery point of the source, and the log knows where it may
  have been written since. ``changed`` returns those regions, never too few of them.
* The *staging area* is the disk. A round writes it in place: while one runs, and after one that was cut off, the disk
  is no instant of the source (``is_whole``). A round that went well makes it one again.
* Nobody but this link writes to the disk. We cannot keep others from it; ``release`` is to be called where they were
  let: then nothing is known any more, and the next round compares everything.

Rules:

* A region is marked durably before a write to it is submitted (``engine.activity_log``).
* A disk may do commands in any order, so of writes that overlap the next is submitted when the one before has ended.
* A disk that was reset has lost what it had not flushed: every call fails until the next ``connect``, which is another
  incarnation.
* What an earlier connection had under way has ended at the disk when ``connect`` returns: who opens the disk sees to
  that (a login with the same ISID reinstates the session, RFC 7143 section 6.3.5).
* Each opening looks whether it is the same disk. Another one, or one of another size, is compared whole, and a disk
  that is not the one that was attached is not written at all.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from engine.activity_log import ActivityLog
from engine.errors import InvalidState, NotFound, NotSupported, PeerUnreachable
from engine.hash_tree import LEAF_BYTES
from engine.image_device import ImageDevice
from engine.links import Ack, LinkState
from engine.stores import Extent, ExtentState
from engine.units import SECTOR_SIZE
from engine.volume import ChangeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from engine.control_files import ControlFiles
    from engine.lease import SourceLease
    from engine.links import MirrorWrite
    from engine.stores import BlockDevice


class Disk(Protocol):
    """A disk of elsewhere, open. Everything raises EngineError; after a reset of the disk everything does."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def sector_bytes(self) -> int: ...
    @property
    def is_open(self) -> bool:
        """False once it is known that nothing can be sent any more."""
        ...

    @property
    def identity(self) -> str:
        """What it calls itself; the same disk says the same each time. At most ``MAX_IDENTITY_BYTES``."""
        ...

    async def read(self, offset: int, view: memoryview, /) -> None: ...
    async def write(self, offset: int, data: memoryview, /) -> None: ...
    async def write_zeroes(self, offset: int, length: int, /) -> None:
        """The extent reads zero afterwards; the disk may give its space back."""
        ...

    async def flush(self) -> None: ...
    async def extents(self, offset: int, length: int, /) -> list[Extent]: ...
    async def close(self) -> None:
        """Send nothing more, and wait for nobody. Does not raise."""
        ...


class Disks(Protocol):
    """Opens the disk of one mirror."""

    @property
    def name(self) -> str:
        """For people and for the ledger: its URL, without secrets."""
        ...

    async def open(self, *, writing: bool) -> Disk:
        """Raises PeerUnreachable, PermissionDenied.

        ``writing``: when it returns, nothing of an earlier one opened so is under way at the disk any more.
        """
        ...


class DiskLink:
    """See the module.

    Args:
        log_path: of the activity log.
        source_size: bytes of the source; the disk may be larger, and what is beyond is not touched.
    """

    def __init__(self, disks: Disks, files: ControlFiles, log_path: Path, source_size: Callable[[], int]) -> None:
        self._disks = disks
        self._files = files
        self._log_path = log_path
        self._source_size = source_size
        self._log: ActivityLog | None = None
        self._log_read = False
        self._reading = asyncio.Lock()
        self._disk: Disk | None = None
        self._probed: Disk | None = None
        self._connection = 0
        self._under_way: list[_Write] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._written = bytearray()
        """A byte for each leaf: whether it may have been written since the newest point."""
        self._verifying: list[bytearray] = []
        """As ``_written``, for those who verify the disk: also of what has become a newer point meanwhile."""

    @property
    def target_name(self) -> str:
        return self._disks.name

    @property
    def is_whole(self) -> bool:
        """Whether the disk is some instant of the source, as far as its log says."""
        return self._log is not None and bool(self._log.points) and self._log.staging_bytes is None

    @property
    def is_connected(self) -> bool:
        return self._disk is not None and self._disk.is_open

    async def probe(self) -> Disk:
        """The disk, for a look at it; it serves the next ``connect``. Raises what keeps it from being opened."""
        await self._drop_probed()
        self._probed = await self._disks.open(writing=True)
        return self._probed

    # --- connections ------------------------------------------------------------------------------------------------

    async def connect(self) -> LinkState:
        disk, self._probed = self._probed, None
        try:
            await self.disconnect()
        except BaseException:
            if disk is not None:
                await disk.close()
            raise
        if disk is None or not disk.is_open:
            disk = await self._disks.open(writing=True)
        try:
            log = await self._log_of(disk)
        except BaseException:
            await disk.close()
            raise
        self._disk = disk
        self._connection += 1
        points = [*log.points, *([log.frozen] if log.frozen is not None else [])]
        return LinkState(self._ack(), points, log.staging_bytes is not None)

    async def disconnect(self) -> None:
        self._connection += 1
        disk, self._disk = self._disk, None
        await self._drop_probed()
        if disk is not None:
            await disk.close()
        await self._idle.wait()

    async def close(self) -> None:
        """Nobody uses the link any more; what it knows stays for the next start."""
        await self.disconnect()
        if self._log is not None:
            await self._log.close()

    async def release(self) -> None:
        """Somebody else may write to the disk, or has: nothing is known of it any more, durably."""
        log = await self._the_log()
        if log is not None:
            await log.abort_staging()
            await log.keep_points(())

    # --- a round ------------------------------------------------------------------------------------------------------

    async def changed(self, older: str | None, newer: str | None) -> list[Extent]:
        """Never too little. The head is the disk, and so is every point by now: ``newer`` makes no difference."""
        log = await self._the_log()
        end = max(self._source_size(), 0 if log is None else log.staging_bytes or 0)
        if older is None:
            return [Extent(0, end)] if end else []
        if log is None or older not in log.points:
            raise NotFound("recovery point", older)
        known = min(log.points.values())
        beyond = [Extent(known, end - known)] if known < end else []
        return [extent for extent in log.marked() if extent.offset < known] + beyond

    async def freeze_head(self, guid: str) -> None:
        await self._require_log().freeze(guid)

    async def begin_staging(self, base: str | None, size_bytes: int) -> BlockDevice:
        """As the disk is, which the caller knows from ``changed``."""
        log, disk = self._require_log(), self._require_disk()
        if base is not None and base not in (*log.points, log.frozen):
            raise NotFound("recovery point", base)
        if size_bytes > disk.size_bytes:
            raise InvalidState(
                f"disk {self.target_name}", f"{disk.size_bytes} bytes long", f"{size_bytes} bytes: enlarge it there"
            )
        await log.begin_staging(size_bytes)
        return _InPlace(self, disk, size_bytes)

    async def resume_staging(self) -> BlockDevice:
        size_bytes = self._require_log().staging_bytes
        if size_bytes is None:
            raise NotFound("staging area", self.target_name)
        return _InPlace(self, self._require_disk(), size_bytes)

    async def abort_staging(self) -> None:
        log = await self._the_log()
        if log is not None:
            await log.abort_staging()

    async def commit_staging(self, guid: str) -> None:
        size_bytes = self._require_log().staging_bytes
        if size_bytes is None:
            raise NotFound("staging area", self.target_name)
        await self._require_disk().flush()
        await self._add_point(guid, size_bytes)

    # --- the stream ---------------------------------------------------------------------------------------------------

    def apply_now(self, write: MirrorWrite, /) -> Ack | None:
        return None

    async def apply(self, write: MirrorWrite, /) -> Ack:
        ack, disk = self._ack(), self._require_disk()
        mine = _Write(write.offset, write.offset + write.length)
        before = [other.ended for other in self._under_way if other.start < mine.end and mine.start < other.end]
        self._under_way.append(mine)
        self._idle.clear()
        try:
            for ended in before:
                await ended.wait()
            await self.submit(disk, write.kind, write.offset, write.length, write.data, host=True)
            if write.fua:
                await disk.flush()
        finally:
            mine.ended.set()
            self._under_way.remove(mine)
            if not self._under_way:
                self._idle.set()
        return ack

    async def apply_in_order(self, writes: Sequence[MirrorWrite], /) -> Ack:
        ack = self._ack()
        for write in writes:
            await self.apply(write)
        return ack

    async def flush(self) -> Ack:
        ack = self._ack()
        await self._require_disk().flush()
        return ack

    async def mark(self, guid: str) -> Ack:
        """Nothing is under way, and nothing is sent meanwhile."""
        ack = self._ack()
        await self._require_disk().flush()
        await self._add_point(guid, self._source_size())
        return ack

    async def submit(
        self, disk: Disk, kind: ChangeKind, offset: int, length: int, data: bytes | memoryview | None, *, host: bool
    ) -> None:
        """Mark, and only then write."""
        if not length:
            return
        await self._require_log().mark(offset, length, host=host)
        if disk is not self._disk:  # it took until another connection began, whose writes are younger
            raise PeerUnreachable(f"the connection to {self.target_name} has ended")
        first, end = offset // LEAF_BYTES, -(-(offset + length) // LEAF_BYTES)
        for leaves in (self._written, *self._verifying):
            leaves[first:end] = b"\1" * (end - first)
        if kind is ChangeKind.DATA:
            assert data is not None
            await disk.write(offset, memoryview(data))
        else:
            await disk.write_zeroes(offset, length)

    # --- the lease: a disk claims nothing by itself -------------------------------------------------------------------

    @property
    def grants_lease(self) -> bool:
        return False

    def serve_lease(self, lease: SourceLease, /) -> None:
        raise AssertionError("nobody asks for a lease here")

    async def demote(self) -> None:
        return

    # --- points -------------------------------------------------------------------------------------------------------

    async def point(self, guid: str) -> BlockDevice:
        """The disk, read over a connection of its own; it is a ``LivePoint``.

        Raises NotFound: it is not known what was written since that point.
        """
        log = await self._the_log()
        if log is None or log.newest != guid or log.staging_bytes is not None:
            raise NotFound("recovery point", guid)
        size_bytes, written = log.points[guid], bytearray(self._written)
        self._verifying.append(written)
        try:
            return _AsItIs(self, await self._disks.open(writing=False), size_bytes, written)
        except BaseException:
            self.verified(written)
            raise

    def verified(self, written: bytearray) -> None:
        """Nobody needs to know any more what is written from now on."""
        self._verifying[:] = [each for each in self._verifying if each is not written]

    async def keep_points(self, guids: Collection[str]) -> None:
        log = await self._the_log()
        if log is not None:
            await log.keep_points(guids)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _ack(self) -> Ack:
        if self._disk is None:
            raise PeerUnreachable(f"there is no connection to {self.target_name}")
        return Ack(self._connection, self._connection)

    def _require_disk(self) -> Disk:
        if self._disk is None:
            raise PeerUnreachable(f"there is no connection to {self.target_name}")
        return self._disk

    def _require_log(self) -> ActivityLog:
        if self._log is None:
            raise InvalidState(f"the activity log of {self.target_name}", "not there", "one of a connected disk")
        return self._log

    async def _the_log(self) -> ActivityLog | None:
        async with self._reading:
            if not self._log_read:
                self._have(await ActivityLog.open(self._files, self._log_path))
        return self._log

    def _have(self, log: ActivityLog | None) -> None:
        self._log, self._log_read = log, True
        if log is not None:
            self._written = bytearray(-(-log.size_bytes // LEAF_BYTES))
            for extent in log.marked():  # when, the log does not say
                first, end = extent.offset // LEAF_BYTES, -(-extent.end // LEAF_BYTES)
                self._written[first:end] = b"\1" * (end - first)

    async def _add_point(self, guid: str, size_bytes: int) -> None:
        """The disk is ``guid``, durably, and nothing is under way."""
        await self._require_log().add_point(guid, size_bytes)
        self._written = bytearray(len(self._written))

    async def _log_of(self, disk: Disk) -> ActivityLog:
        """Raises NotSupported, InvalidState: this is not the disk that was attached."""
        if disk.sector_bytes != SECTOR_SIZE:
            raise NotSupported(f"{self.target_name} has blocks of {disk.sector_bytes} bytes; {SECTOR_SIZE} are needed")
        log = await self._the_log()
        if log is not None and log.disk != disk.identity:
            raise InvalidState(
                f"disk {self.target_name}",
                "another disk than the one that was attached",
                "the same; detach the replica and attach it anew if this one is to be overwritten",
            )
        if log is None or log.size_bytes != disk.size_bytes:
            if log is not None:
                await log.close()
            log = await ActivityLog.begin(self._files, self._log_path, disk.identity, disk.size_bytes)
            self._have(log)
        return log

    async def _drop_probed(self) -> None:
        disk, self._probed = self._probed, None
        if disk is not None:
            await disk.close()


class _Write:
    """A write of the stream that has not ended."""

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.ended = asyncio.Event()


class _InPlace(ImageDevice):
    """The disk as a round's staging area."""

    def __init__(self, link: DiskLink, disk: Disk, size_bytes: int) -> None:
        super().__init__(link.target_name, size_bytes, read_only=False)
        self._link = link
        self._disk = disk

    async def read(self, offset: int, view: memoryview, /) -> None:
        await self._disk.read(offset, view)

    async def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        await self._link.submit(self._disk, ChangeKind.DATA, offset, len(data), data, host=False)
        if fua:
            await self._disk.flush()

    async def write_zeroes(self, offset: int, length: int, /, *, fua: bool = False) -> None:
        await self.discard(offset, length)
        if fua:
            await self._disk.flush()

    async def discard(self, offset: int, length: int, /) -> None:
        """What the disk has no blocks for reads zero already."""
        for extent in await self._disk.extents(offset, length):
            if extent.state is ExtentState.DATA:
                await self._link.submit(self._disk, ChangeKind.ZEROES, extent.offset, extent.length, None, host=False)

    async def extents(self, offset: int, length: int, /) -> list[Extent]:
        return await self._disk.extents(offset, length)

    async def flush(self) -> None:
        await self._disk.flush()


class _AsItIs(ImageDevice):
    """The disk while it is verified. ``written``: as of ``DiskLink``, and what was written since it was opened."""

    def __init__(self, link: DiskLink, disk: Disk, size_bytes: int, written: bytearray) -> None:
        super().__init__(link.target_name, size_bytes, read_only=True)
        self._written = written
        self._link = link
        self._disk = disk

    async def read(self, offset: int, view: memoryview, /) -> None:
        await self._disk.read(offset, view)

    async def extents(self, offset: int, length: int, /) -> list[Extent]:
        return await self._disk.extents(offset, length)

    async def end(self) -> list[Extent]:
        """See ``engine.links.LivePoint``."""
        self._link.verified(self._written)
        await self._disk.close()
        found: list[Extent] = []
        at = self._written.find(1)
        while at >= 0 and at * LEAF_BYTES < self.size_bytes:
            end = self._written.find(0, at)
            stop = self.size_bytes if end < 0 else min(end * LEAF_BYTES, self.size_bytes)
            found.append(Extent(at * LEAF_BYTES, stop - at * LEAF_BYTES))
            at = -1 if end < 0 else self._written.find(1, end)
        return found
