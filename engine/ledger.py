"""The crash-safe record of what a copy has already verified, so that nothing recorded is sent twice.

A file of records, only ever appended to, until the copy is complete and the file is removed:

    record = magic, type, payload length, checksum; payload
    the first record says what is copied (``LedgerKey``), every other one lists verified ranges with their digests

Invariants:

* A checksum covers the payload *and the checksum of the record before it*, so a record left behind by an earlier
  use of the same bytes never continues a newer chain. Reading stops at the first record that does not verify.
* ``record`` is called only with ranges that the target has made durable **before** the call: a range that is found
  in a ledger is at the target, whatever crashed since.
* Its file is made with the first record (or by ``begin``), not before: a copy that is over by then has none, and its
  last interval is recorded by nobody (``complete``). Whoever uses the copy removes the ledger.
* A ledger counts only for its own key: same source instant, same base, same target and the same staging area. Any
  other file in its place is removed, durably, before a new one is begun. Whoever discards the target's staging area
  removes the ledger first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import google_crc32c

from engine.errors import NotFound
from engine.hash_tree import DIGEST_BYTES, LEAF_BYTES, HashTree
from engine.units import MIB, align_up

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from engine.control_files import ControlFile, ControlFiles
    from engine.stores import Extent

INTERVAL_BYTES = 64 * MIB
"""At most this much is copied between two records; after a power loss at most this much is copied again."""

MAX_PAYLOAD_BYTES = 16 * MIB
"""A length above this is damage, not a record: an interval of 64 KiB leaves needs 1/4096 of its size."""

_HEADER = struct.Struct("<4sHHII")
_MAGIC = b"TVLG"
_KEY, _RANGES = 1, 2
_RANGE = struct.Struct("<QI")
_KEY_FIXED = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class LedgerKey:
    """What exactly is copied where.

    ``source``: GUID of the frozen source. ``base``: GUID of the point that the target's staging area started as, or
    empty. ``target``: identity of the target volume (for a file: its path). ``size_bytes``: of the source.
    """

    source: str
    base: str
    target: str
    size_bytes: int

    def serialize(self) -> bytes:
        return _KEY_FIXED.pack(self.size_bytes) + "\0".join((self.source, self.base, self.target)).encode()

    @classmethod
    def parse(cls, payload: bytes) -> LedgerKey:
        """Of a record whose checksum was right."""
        (size_bytes,) = _KEY_FIXED.unpack_from(payload)
        source, base, target = payload[_KEY_FIXED.size :].decode().split("\0")
        return cls(source, base, target, size_bytes)


class Record(Protocol):
    """Where a copy notes what is verified and durable at its target."""

    tree: HashTree
    done_bytes: int

    def is_done(self, offset: int, length: int) -> bool:
        """Whether a leaf-aligned range need not be copied again."""
        ...

    async def record(self, ranges: Sequence[tuple[Extent, bytes]]) -> None:
        """Note ranges with the digests of their leaves."""
        ...

    def complete(self, ranges: Sequence[tuple[Extent, bytes]]) -> None:
        """As ``record`` for the last ones, not durably: the copy is at its target, and this record has served."""
        ...


class Ledger:
    """See the module. Made by ``Ledger.open``.

    ``tree`` holds the digests of everything recorded; ``done_bytes`` is how much that is.
    """

    def __init__(self, files: ControlFiles, path: Path, key: LedgerKey) -> None:
        self.path = path
        self.key = key
        self.tree = HashTree(key.size_bytes)
        self.done_bytes = 0
        self.resumed = False
        self._files = files
        self._file: ControlFile | None = None
        self._done = bytearray(self.tree.leaves)
        self._end = 0
        self._chain = 0

    @classmethod
    async def open(cls, files: ControlFiles, path: Path, key: LedgerKey) -> Ledger:
        """Continue the ledger at ``path`` if it is this key's, else remove what is there, durably."""
        ledger = cls(files, path, key)
        try:
            await ledger._open()
        except BaseException:
            await ledger.close()
            raise
        return ledger

    @classmethod
    async def discard(cls, files: ControlFiles, path: Path) -> None:
        """Remove whatever ledger is at ``path``, durably. Also right when there is none."""
        try:
            await files.remove(path)
        except NotFound:
            return
        await files.sync_directory(path.parent)

    @classmethod
    async def key_at(cls, files: ControlFiles, path: Path) -> LedgerKey | None:
        """Whose ledger is at ``path``; None: nobody's."""
        try:
            file = await files.open(path, writable=False)
        except NotFound:
            return None
        try:
            magic, kind, _, length, checksum = _HEADER.unpack(await file.read(0, _HEADER.size))
            if magic != _MAGIC or kind != _KEY or length > MAX_PAYLOAD_BYTES:
                return None
            payload = await file.read(_HEADER.size, length)
            return LedgerKey.parse(payload) if checksum == _checksum(0, kind, payload) else None
        finally:
            await file.close()

    def is_done(self, offset: int, length: int) -> bool:
        """Whether all leaves of a range are recorded."""
        first, end = offset // LEAF_BYTES, align_up(offset + length, LEAF_BYTES) // LEAF_BYTES
        return self._done.find(0, first, end) < 0

    async def record(self, ranges: Sequence[tuple[Extent, bytes]]) -> None:
        """Append verified ranges and return once they are durable.

        Args:
            ranges: leaf-aligned ranges, each with the digests of its leaves. The target has made them durable.
        """
        if not ranges:
            return
        await self.begin()
        payload = _payload(ranges)
        await self._append(_RANGES, payload)
        self._take(payload)

    def complete(self, ranges: Sequence[tuple[Extent, bytes]]) -> None:
        """See ``Record``."""
        self._take(_payload(ranges))

    async def begin(self) -> None:
        """Have a file, durably, though nothing is recorded yet."""
        if self._file is None:
            self._file = await self._files.create(self.path)
            await self._append(_KEY, self.key.serialize())
            await self._files.sync_directory(self.path.parent)

    async def remove(self) -> None:
        """The copy is complete, or given up: close the file and remove it, durably."""
        await self.close()
        await Ledger.discard(self._files, self.path)

    async def close(self) -> None:
        """Close the file, which stays for the next attempt."""
        file, self._file = self._file, None
        if file is not None:
            await file.close()

    async def _open(self) -> None:
        """Read what is there."""
        try:
            self._file = await self._files.open(self.path, writable=True)
        except NotFound:
            return
        if await self._read(self._file):
            self.resumed = True
        else:
            await self.remove()

    async def _read(self, file: ControlFile) -> bool:
        """Take over every valid record. False if this is not a ledger of this key."""
        size, first = await file.size(), True
        while self._end + _HEADER.size <= size:
            magic, kind, _, length, checksum = _HEADER.unpack(await file.read(self._end, _HEADER.size))
            if magic != _MAGIC or length > MAX_PAYLOAD_BYTES or self._end + _HEADER.size + length > size:
                break
            payload = await file.read(self._end + _HEADER.size, length)
            if checksum != _checksum(self._chain, kind, payload):
                break
            if first and (kind != _KEY or payload != self.key.serialize()):
                return False
            if kind == _RANGES:
                self._take(payload)
            first = False
            self._chain = checksum
            self._end += _HEADER.size + length
        return not first

    async def _append(self, kind: int, payload: bytes) -> None:
        """Durably. One that is cancelled or fails leaves nothing that the next one does not write over."""
        assert self._file is not None
        assert len(payload) <= MAX_PAYLOAD_BYTES
        checksum = _checksum(self._chain, kind, payload)
        record = _HEADER.pack(_MAGIC, kind, 0, len(payload), checksum) + payload
        await self._file.write(self._end, record)
        await self._file.sync()
        self._chain = checksum
        self._end += len(record)

    def _take(self, payload: bytes) -> None:
        at = 0
        while at < len(payload):
            offset, length = _RANGE.unpack_from(payload, at)
            at += _RANGE.size
            self.tree.put(offset, payload[at : at + length])
            at += length
            first, end = offset // LEAF_BYTES, offset // LEAF_BYTES + length // DIGEST_BYTES
            self.done_bytes += self._done.count(0, first, end) * LEAF_BYTES
            if end == self.tree.leaves and not self._done[-1]:
                self.done_bytes -= -self.key.size_bytes % LEAF_BYTES  # the last leaf is short
            self._done[first:end] = b"\1" * (end - first)


def _payload(ranges: Sequence[tuple[Extent, bytes]]) -> bytes:
    return b"".join([_RANGE.pack(extent.offset, len(digests)) + digests for extent, digests in ranges])


def _checksum(chain: int, kind: int, payload: bytes) -> int:
    return int(google_crc32c.value(struct.pack("<IHI", chain, kind, len(payload)) + payload))
