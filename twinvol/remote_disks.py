"""Joins the engine's imports to the iSCSI initiator: any LUN, by URL, as a disk to read from."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from engine.errors import EngineError, InvalidArgument, PermissionDenied
from engine.migration import MovingSource
from engine.stores import Extent, ExtentState
from iscsi.initiator import (
    ChapCredentials,
    ChapIdentity,
    InitiatorError,
    IscsiUrl,
    LoginRefused,
    TargetNotAuthentic,
    connect,
)
from iscsi.wire.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iscsi.initiator import IscsiDisk

_DEVICE_IDENTIFICATION = 0x83


class IscsiDisks:
    """``engine.image_formats.RemoteDisks``."""

    def shown(self, url: str, /) -> str:
        return str(IscsiUrl.parse(url))

    async def open(self, url: str, secret: str | None, /) -> IscsiSource:
        where = IscsiUrl.parse(url)
        secret = secret or where.secret
        if (where.user is None) != (secret is None):
            raise InvalidArgument("a CHAP user in the URL and a secret come together")
        chap = None
        if where.user is not None and secret is not None:
            chap = ChapCredentials(ChapIdentity(where.user, secret.encode()))
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
            found = await self._disk.mapped(offset, length)
        return [Extent(at, count, ExtentState.DATA if mapped else ExtentState.HOLE) for at, count, mapped in found]


@contextlib.contextmanager
def _told_as(name: str) -> Iterator[None]:
    """An error of the initiator as the engine's."""
    try:
        yield
    except (LoginRefused, TargetNotAuthentic) as error:
        raise PermissionDenied(f"{name}: {error}") from error
    except (InitiatorError, ProtocolError) as error:
        raise EngineError(f"{name}: {error}") from error
