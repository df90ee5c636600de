"""Joins the engine to the iSCSI initiator: any LUN, by URL, as a disk to import, or as the target of a mirror."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import TYPE_CHECKING

from engine.errors import (
    EngineError,
    InvalidArgument,
    MediumError,
    OutOfSpace,
    PeerUnreachable,
    PermissionDenied,
    WriteProtected,
)
from engine.migration import MovingSource
from engine.stores import Extent, ExtentState
from engine.units import MIB
from iscsi.initiator import (
    ChapCredentials,
    ChapIdentity,
    CommandFailed,
    ConnectionLost,
    InitiatorError,
    IscsiUrl,
    LoginRefused,
    TargetNotAuthentic,
    Wishes,
    connect,
)
from iscsi.scsi.sense import Asc, SenseKey
from iscsi.wire.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.disk_targets import DiskSecrets
    from iscsi.initiator import IscsiDisk

_DEVICE_IDENTIFICATION = 0x83

MIRROR_TIMEOUT_S = 20.0
"""For a login and for each command of a mirror: what takes longer is a disk that is gone."""

MIRROR_DEPTH = 16
LOGOUT_S = 1.0
ZEROES = bytes(MIB)


class IscsiDisks:
    """``engine.image_formats.RemoteDisks``."""

    def shown(self, url: str, /) -> str:
        return str(IscsiUrl.parse(url))

    def is_disk(self, url: str, /) -> bool:
        return url.lower().startswith("iscsi:")

    def disks(self, url: str, secrets: DiskSecrets, relation: str, /) -> MirrorDisks:
        """``engine.disk_targets.DiskOpener``."""
        where = IscsiUrl.parse(url)
        if where.secret is not None:
            raise InvalidArgument("a secret in the URL would be kept and shown; give it as a file")
        return MirrorDisks(where, _chap(where, secrets.secret, secrets.mutual), relation)

    async def open(self, url: str, secret: str | None, /) -> IscsiSource:
        where = IscsiUrl.parse(url)
        chap = _chap(where, secret or where.secret, None)
        with _told_as(str(where)):
            return IscsiSource(str(where), await connect(where.portal, where.target, where.lun, chap=chap))


class IscsiSource(MovingSource):
    """A LUN that is imported. Ended by ``close``."""

    def __init__(self, name: str, disk: IscsiDisk) -> None:
        super().__init__(name, disk.size_bytes, read_only=True)
        self._disk = disk

    @property
    def logical_sector_bytes(self) -> int:
        return self._disk.block_size

    async def identity(self) -> str:
        """What the disk calls itself (VPD page 83h) and its size; not what it holds, which may change."""
        with _told_as(self.name):
            await self._disk.refresh()
            page = await self._disk.vpd_page(_DEVICE_IDENTIFICATION)
        return f"{self.name} {page.hex()} {self._disk.size_bytes}"

    async def close(self) -> None:
        await self._disk.close()

    async def read(self, offset: int, view: memoryview, /) -> None:
        with _told_as(self.name):
            await self._disk.read_into(offset, view)

    async def extents(self, offset: int, length: int, /) -> list[Extent]:
        """What the target says it has no blocks for is a hole, where it also says that such blocks read zero."""
        with _told_as(self.name):
            return _extents(await self._disk.mapped(offset, length))


class MirrorDisks:
    """``engine.links.disk.Disks``: one LUN, the target of one mirror.

    ``relation``: the ISID follows from it, so that a login for writing reinstates the session that this mirror had
    before, in this process or another: the target ends its tasks first (RFC 7143 section 6.3.5).
    """

    def __init__(self, where: IscsiUrl, chap: ChapCredentials | None, relation: str) -> None:
        self.name = str(where)
        self._where = where
        self._chap = chap
        self._isid = b"\x80" + hashlib.sha256(relation.encode()).digest()[:5]  # type 'random' (section 11.12.5)

    async def open(self, *, writing: bool) -> MirrorDisk:
        where = self._where
        # A digest on the wire, wherever the target has one: what the stream carries is not read back.
        wishes = Wishes(header_digest="CRC32C,None", data_digest="CRC32C,None")
        with _told_as(self.name):
            disk = await connect(
                where.portal,
                where.target,
                where.lun,
                isid=self._isid if writing else None,
                wishes=wishes,
                chap=self._chap,
                depth=MIRROR_DEPTH,
                timeout_s=MIRROR_TIMEOUT_S,
            )
        try:
            with _told_as(self.name):
                page = await disk.vpd_page(_DEVICE_IDENTIFICATION)
        except BaseException:
            disk.drop()
            raise
        return MirrorDisk(self.name, disk, page.hex(), writing=writing)


class MirrorDisk:
    """``engine.links.disk.Disk``. ``identity``: what the disk calls itself (VPD page 83h)."""

    def __init__(self, name: str, disk: IscsiDisk, identity: str, *, writing: bool) -> None:
        self.identity = identity
        self._name = name
        self._disk = disk
        self._writing = writing
        self._resets = disk.resets
        self._writes_same = True

    @property
    def size_bytes(self) -> int:
        return self._disk.size_bytes

    @property
    def sector_bytes(self) -> int:
        return self._disk.block_size

    @property
    def is_open(self) -> bool:
        return self._disk.is_open

    async def read(self, offset: int, view: memoryview, /) -> None:
        with self._told():
            await self._disk.read_into(offset, view)

    async def write(self, offset: int, data: memoryview, /) -> None:
        with self._told():
            await self._disk.write(offset, data)

    async def write_zeroes(self, offset: int, length: int, /) -> None:
        """By WRITE SAME, after which the blocks read zero, deallocated or not (SBC-3); where the disk does not know it,
        block by block."""
        with self._told():
            if self._writes_same:
                try:
                    await self._disk.write_zeroes(offset, length)
                except CommandFailed as error:
                    if error.sense_key != SenseKey.ILLEGAL_REQUEST:
                        raise
                    self._writes_same = False
                else:
                    return
            for at in range(0, length, len(ZEROES)):
                await self._disk.write(offset + at, memoryview(ZEROES)[: min(len(ZEROES), length - at)])

    async def flush(self) -> None:
        with self._told():
            await self._disk.flush()

    async def extents(self, offset: int, length: int, /) -> list[Extent]:
        with self._told():
            return _extents(await self._disk.mapped(offset, length))

    async def close(self) -> None:
        """What is under way is given up. A session that only reads is logged out, if that is quick."""
        if not self._writing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOGOUT_S):
                    await self._disk.close()
        self._disk.drop()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        with _told_as(self._name):
            yield
        if self._disk.resets != self._resets:
            self._disk.drop()
            raise PeerUnreachable(f"{self._name} was reset: what it had not flushed may be lost")


def _chap(where: IscsiUrl, secret: str | None, mutual: tuple[str, str] | None) -> ChapCredentials | None:
    if (where.user is None) != (secret is None):
        raise InvalidArgument("a CHAP user in the URL and a secret come together")
    if where.user is None or secret is None:
        return None
    own = None if mutual is None else ChapIdentity(mutual[0], mutual[1].encode())
    return ChapCredentials(ChapIdentity(where.user, secret.encode()), own)


def _extents(found: list[tuple[int, int, bool]]) -> list[Extent]:
    return [Extent(at, count, ExtentState.DATA if mapped else ExtentState.HOLE) for at, count, mapped in found]


@contextlib.contextmanager
def _told_as(name: str) -> Iterator[None]:
    """An error of the initiator as the engine's."""
    try:
        yield
    except (LoginRefused, TargetNotAuthentic) as error:
        raise PermissionDenied(f"{name}: {error}") from error
    except ConnectionLost as error:
        raise PeerUnreachable(f"{name}: {error}") from error
    except CommandFailed as error:
        raise _failure(error)(f"{name}: {error}") from error
    except (InitiatorError, ProtocolError) as error:
        raise EngineError(f"{name}: {error}") from error


def _failure(error: CommandFailed) -> type[EngineError]:
    asc = error.asc << 8 | error.ascq
    if error.sense_key == SenseKey.DATA_PROTECT:
        return OutOfSpace if asc == Asc.SPACE_ALLOCATION_FAILED_WRITE_PROTECT else WriteProtected
    return MediumError if error.sense_key == SenseKey.MEDIUM_ERROR else EngineError
