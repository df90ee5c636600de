"""A VHDX disk as a device: one file, or a differencing file with its parents, found and verified.

Where parents may be: in the folder of the file that is imported, or below it, after symbolic links are resolved. A
locator is a text from whoever made the file; it may name any file of the machine, and must not have it read. Tried are
the locator's relative path, then the file names of its absolute paths beside the child.

A parent is accepted when its data write GUID is one that the child recorded: it has not changed since. Size and sector
size are the child's; a chain has at most ``MAX_DEPTH`` files and none twice.
"""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

from engine.errors import NotFound, StoreCorrupt
from engine.image_device import ImageDevice
from engine.stores import Extent, ExtentState
from engine.vhdx.image import PARENT, ZERO, Run, VhdxFile

if TYPE_CHECKING:
    from engine.vhdx.layout import ParentLocator

MAX_DEPTH = 64


class VhdxImage(ImageDevice):
    """See the module. Made by ``open``; ended by ``close``."""

    def __init__(self, chain: list[VhdxFile]) -> None:
        super().__init__(str(chain[0].path), chain[0].disk.size_bytes, read_only=True)
        self.chain = chain

    @classmethod
    async def open(cls, path: Path) -> VhdxImage:
        """Raises as ``VhdxFile.open``; NotFound names the paths where a parent was looked for."""
        folder = (await asyncio.to_thread(path.resolve)).parent
        chain = [await VhdxFile.open(path)]
        try:
            seen = {await _place(chain[0])}
            while chain[-1].disk.has_parent:
                if len(chain) == MAX_DEPTH:
                    raise StoreCorrupt(str(path), f"has more than {MAX_DEPTH - 1} parents")
                chain.append(await _parent_of(chain[-1], folder))
                if (place := await _place(chain[-1])) in seen:
                    raise StoreCorrupt(str(path), f"has {chain[-1].path} twice among its parents")
                seen.add(place)
        except BaseException:
            for each in chain:
                await each.close()
            raise
        return cls(chain)

    async def close(self) -> None:
        for each in self.chain:
            await each.close()

    @property
    def logical_sector_bytes(self) -> int:
        return self.chain[0].disk.logical_sector_bytes

    async def identity(self) -> str:
        """See ``StreamFile.identity``; of all files of the chain."""
        return "; ".join([await each.file.identity() for each in self.chain])

    async def read(self, offset: int, view: memoryview, /) -> None:
        self.check(offset, len(view))
        for level, run in await self._resolve(offset, len(view)):
            part = view[run.offset - offset : run.end - offset]
            if run.at == ZERO:
                part[:] = bytes(run.length)
            else:
                await self.chain[level].read_into(run.at, part)

    async def extents(self, offset: int, length: int, /) -> list[Extent]:
        self.check(offset, length)
        found: list[Extent] = []
        for level, run in await self._resolve(offset, length):
            if run.at == ZERO:
                _add(found, Extent(run.offset, run.length, ExtentState.HOLE))
                continue
            one = self.chain[level]
            if not one.replay.is_empty:
                _add(found, Extent(run.offset, run.length))  # the host's holes are not the last word
                continue
            for part in await one.file.extents(run.at, run.length):
                _add(found, Extent(run.offset + part.offset - run.at, part.length, part.state))
        return found

    async def _resolve(self, offset: int, length: int) -> list[tuple[int, Run]]:
        """Which file of the chain has each part of a range, in order, without gaps."""
        settled: list[tuple[int, Run]] = []
        pending = [(offset, length)]
        for level, one in enumerate(self.chain):
            asked, pending = pending, []
            for start, count in asked:
                for run in await one.runs(start, count):
                    if run.at == PARENT:
                        pending.append((run.offset, run.length))
                    else:
                        settled.append((level, run))
        assert not pending
        return sorted(settled, key=lambda each: each[1].offset)


def _add(extents: list[Extent], extent: Extent) -> None:
    if extents and extents[-1].state is extent.state:
        extents[-1] = Extent(extents[-1].offset, extents[-1].length + extent.length, extent.state)
    else:
        extents.append(extent)


async def _place(one: VhdxFile) -> tuple[int, int]:
    found = await one.file.stat()
    return found.st_dev, found.st_ino


async def _parent_of(child: VhdxFile, folder: Path) -> VhdxFile:
    assert child.locator is not None
    locator = child.locator
    path = await asyncio.to_thread(_find, child.path, locator, folder)
    parent = await VhdxFile.open(path)
    try:
        if parent.header.data_write_guid not in locator.linkages():
            raise StoreCorrupt(
                str(child.path),
                f"was made on a parent with the data write GUID {locator.linkages()[0]};"
                f" {path} has {parent.header.data_write_guid}: it was changed since, or is another disk",
            )
        for what, mine, others in (
            ("bytes", child.disk.size_bytes, parent.disk.size_bytes),
            ("bytes in a logical sector", child.disk.logical_sector_bytes, parent.disk.logical_sector_bytes),
        ):
            if mine != others:
                raise StoreCorrupt(str(child.path), f"has {mine} {what}, its parent {path} {others}")
    except BaseException:
        await parent.close()
        raise
    return parent


def _find(child: Path, locator: ParentLocator, folder: Path) -> Path:
    """In a worker: the parent's real path. Raises NotFound, naming what was tried."""
    tried = []
    for wanted in _candidates(child, locator):
        try:
            found = wanted.resolve()
            inside = found.is_relative_to(folder)
            if inside and stat.S_ISREG(found.stat().st_mode):
                return found
            tried.append(str(wanted) if inside else f"{wanted} (not looked at: it is outside of {folder})")
        except (OSError, RuntimeError, ValueError):  # missing; a loop of links; a path that cannot be
            tried.append(str(wanted))
    raise NotFound(f"parent of {child}", ", ".join(tried) or ", ".join(locator.pairs.values()))


def _candidates(child: Path, locator: ParentLocator) -> list[Path]:
    found = []
    relative = PureWindowsPath(locator.pairs.get("relative_path", ""))
    if relative.parts and not relative.anchor:
        found.append(child.parent.joinpath(*relative.parts))
    for key in ("volume_path", "absolute_win32_path"):
        name = PureWindowsPath(locator.pairs.get(key, "")).name
        if name and (path := child.parent / name) not in found:
            found.append(path)
    return found
