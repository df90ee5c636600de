"""A common point whose data was given back: what has changed since it, as a set, and a newer snapshot to go on from.

The common point C of a mirror holds back the space of everything that the source overwrites. With a target that is
gone, that would fill the source. So when it holds too much, C is *thinned*: a snapshot T is taken, changed(C .. T) is
noted in a file, and C is deleted. Then changed(C .. S) is within the note united with changed(T .. S), for every later
S, and T, which holds nothing yet, can be thinned in its turn.

Invariants:

* A note speaks of everything up to its own snapshot: it is made of maps, after T is there; of C's or of the note and
  the snapshot that C was thinned to before.
* C, or the snapshot before, is deleted only after the note is durable. Until then what was there before still serves.
* A note counts for its own C only, and only while its T exists. Without either the mirror has no common point, and
  compares or copies everything.
* A thinned point is no base of a staging area and is never shown: the target's own copy is (REPLICATION section 1).

There are two places for notes; a new one is written where the present one is not.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import google_crc32c

from engine.errors import NotFound
from engine.stores import Extent
from engine.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from engine.control_files import ControlFiles

SUFFIXES = (".changed-a", ".changed-b")

EXTENTS_MAX = 1 << 20
"""More are joined over the gaps between them: what is copied for nothing costs less than a note without end."""

PAYLOAD_BYTES_MAX = 32 * MIB
"""A length above this is damage."""

_HEADER = struct.Struct("<4sHHIII")
_MAGIC, _VERSION = b"TVCN", 1
_EXTENT = struct.Struct("<QQ")
_GUID_MAX = 64


@dataclass(frozen=True, slots=True)
class Note:
    """``common``: the point that was thinned. ``since``: GUID of the snapshot to go on from. ``extents``: what had
    changed in between, merged, in order."""

    common: str
    since: str
    extents: tuple[Extent, ...]

    def serialize(self) -> bytes:
        names = f"{self.common}\0{self.since}\0".encode()
        extents = b"".join(_EXTENT.pack(extent.offset, extent.length) for extent in self.extents)
        payload = zlib.compress(names + extents, 1)
        checksum = int(google_crc32c.value(payload))
        return _HEADER.pack(_MAGIC, _VERSION, 0, len(payload), len(names) + len(extents), checksum) + payload

    @classmethod
    def parse(cls, data: bytes) -> Note | None:
        """None: no whole note."""
        if len(data) < _HEADER.size:
            return None
        magic, version, _, length, unpacked, checksum = _HEADER.unpack_from(data)
        payload = data[_HEADER.size : _HEADER.size + length]
        known = (magic, version) == (_MAGIC, _VERSION) and unpacked <= 2 * _GUID_MAX + EXTENTS_MAX * _EXTENT.size
        if not known or len(payload) != length or int(google_crc32c.value(payload)) != checksum:
            return None
        content = zlib.decompressobj().decompress(payload, unpacked)
        common, since, extents = content.split(b"\0", 2)
        found = tuple(Extent(offset, size) for offset, size in _EXTENT.iter_unpack(extents))
        return cls(common.decode(), since.decode(), found)


def merged(extents: Iterable[Extent]) -> tuple[Extent, ...]:
    """In order, without gaps of nothing or overlaps, at most ``EXTENTS_MAX``."""
    gap = 0
    found = _joined(sorted(extents, key=lambda extent: extent.offset), gap)
    while len(found) > EXTENTS_MAX:
        gap = max(MIB, 2 * gap)
        found = _joined(found, gap)
    return tuple(found)


def _joined(extents: Iterable[Extent], gap: int) -> list[Extent]:
    found: list[Extent] = []
    for extent in extents:
        if found and extent.offset <= found[-1].end + gap:
            end = max(found[-1].end, extent.end)
            found[-1] = Extent(found[-1].offset, end - found[-1].offset)
        else:
            found.append(Extent(extent.offset, extent.length))
    return found


class Notes:
    """The notes of one mirror. ``path``: its ledger's; notes lie beside it."""

    def __init__(self, files: ControlFiles, path: Path) -> None:
        self._files = files
        self._paths = [path.with_name(path.name + suffix) for suffix in SUFFIXES]
        self._present = 0

    async def read(self, is_of_use: Callable[[Note], bool]) -> Note | None:
        """A whole one that is of use; after a crash while one was written both may be."""
        for number, path in enumerate(self._paths):
            note = await self._read(path)
            if note is not None and is_of_use(note):
                self._present = number
                return note
        return None

    async def write(self, note: Note) -> None:
        """Durable when it returns; the one before is still there, too."""
        other = 1 - self._present
        await self._remove(self._paths[other])
        file = await self._files.create(self._paths[other])
        try:
            await file.write(0, note.serialize())
            await file.sync()
        finally:
            await file.close()
        await self._files.sync_directory(self._paths[other].parent)
        self._present = other

    async def remove(self) -> None:
        """Forget all."""
        for path in self._paths:
            await self._remove(path)

    async def _read(self, path: Path) -> Note | None:
        try:
            file = await self._files.open(path, writable=False)
        except NotFound:
            return None
        try:
            size = await file.size()
            return None if size > _HEADER.size + PAYLOAD_BYTES_MAX else Note.parse(await file.read(0, size))
        finally:
            await file.close()

    async def _remove(self, path: Path) -> None:
        try:
            await self._files.remove(path)
        except NotFound:
            return
