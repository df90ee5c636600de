"""The log of a VHDX file, and its replay in memory: the file itself is never changed by a reader.

A log is a circle of entries in 4 KiB sectors. An entry carries descriptors of pages that are to be overwritten or
zeroed, and their content. Only metadata goes through it: BAT, sector bitmaps, the metadata region, region tables.

``Replay.of`` takes the log's bytes and finds the *active sequence*: entries with the header's log GUID whose sequence
numbers go up by one, of which the last one's tail is in the sequence; of several the one that ends with the highest
number. What its entries say, from that tail to the head, is the file's content from then on: ``Replay.apply`` lays it
over whatever was read.

Limits, so that a made-up log costs no more than reading it a few times: its length, and how many bytes of it are
checksummed (entries of an honest log do not overlap).
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import NotSupported, StoreCorrupt
from engine.units import KIB, MIB
from engine.vhdx.layout import MAX_FILE_BYTES, REGION_TABLE_OFFSETS, Header, crc32c

if TYPE_CHECKING:
    import uuid

SECTOR = 4 * KIB
MAX_LOG_BYTES = 64 * MIB
"""Writers make logs of 1 MiB; a longer one than this is read only when it is empty."""
CHECKSUMMED_MAX = 4
"""Bytes of entries that are checksummed, as a multiple of the log's length."""

_ENTRY = struct.Struct("<4sIIIQII16sQQ")
_DESCRIPTOR = struct.Struct("<4s4s8sQQ")  # of a zero descriptor the third field is its length
_DATA_SECTOR = struct.Struct("<4sI4084sI")
assert (_ENTRY.size, _DESCRIPTOR.size, _DATA_SECTOR.size) == (64, 32, SECTOR)
_FIRST_DESCRIPTORS = (SECTOR - _ENTRY.size) // _DESCRIPTOR.size
_MORE_DESCRIPTORS = SECTOR // _DESCRIPTOR.size


@dataclass(frozen=True, slots=True)
class Page:
    """4 KiB that are to be at ``offset`` of the file."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Zeroes:
    """A range of the file that is to read zero."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry. ``tail``: where in the log the oldest entry lies that is still needed. Offsets are of the file.

    ``flushed_bytes``: the file was that long, durably, when the entry was written; ``last_bytes``: it is after replay.
    """

    sequence: int
    tail: int
    guid: uuid.UUID
    flushed_bytes: int
    last_bytes: int
    changes: tuple[Page | Zeroes, ...] = ()

    @property
    def length(self) -> int:
        pages = sum(isinstance(change, Page) for change in self.changes)
        return (_descriptor_sectors(len(self.changes)) + pages) * SECTOR

    def serialize(self) -> bytes:
        head = bytearray(_descriptor_sectors(len(self.changes)) * SECTOR)
        _ENTRY.pack_into(
            head, 0, b"loge", 0, self.length, self.tail, self.sequence, len(self.changes), 0,
            self.guid.bytes_le, self.flushed_bytes, self.last_bytes,
        )  # fmt: skip
        sectors = []
        for index, change in enumerate(self.changes):
            at = _ENTRY.size + index * _DESCRIPTOR.size
            if isinstance(change, Zeroes):
                length = change.length.to_bytes(8, "little")
                _DESCRIPTOR.pack_into(head, at, b"zero", bytes(4), length, change.offset, self.sequence)
                continue
            data = change.data
            _DESCRIPTOR.pack_into(head, at, b"desc", data[-4:], data[:8], change.offset, self.sequence)
            sectors.append(_DATA_SECTOR.pack(b"data", self.sequence >> 32, data[8:-4], self.sequence & 0xFFFFFFFF))
        raw = bytearray(bytes(head) + b"".join(sectors))
        raw[4:8] = crc32c(raw).to_bytes(4, "little")
        return bytes(raw)


def _descriptor_sectors(count: int) -> int:
    return 1 + -(-max(0, count - _FIRST_DESCRIPTORS) // _MORE_DESCRIPTORS)


class _Circle:
    """The log's bytes, read round the end."""

    def __init__(self, log: bytes | memoryview) -> None:
        self._log = memoryview(log)
        self.length = len(log)
        self.left = CHECKSUMMED_MAX * len(log)

    def read(self, at: int, length: int) -> bytes:
        """``length`` is at most the log's."""
        at %= self.length
        first = bytes(self._log[at : at + length])
        return first + bytes(self._log[: length - len(first)])

    def spend(self, length: int) -> None:
        """Raises StoreCorrupt: more has been checksummed than an honest log makes necessary."""
        self.left -= length
        if self.left < 0:
            raise StoreCorrupt("log", "holds entries that overlap")


def _entry_at(circle: _Circle, at: int, guid: uuid.UUID) -> LogEntry | None:
    """The valid entry that begins at ``at``, or None: torn, stale or none at all."""
    signature, checksum, length, tail, sequence, count, _, entry_guid, flushed, last = _ENTRY.unpack(
        circle.read(at, _ENTRY.size)
    )
    if signature != b"loge" or entry_guid != guid.bytes_le or not sequence:
        return None
    sectors = _descriptor_sectors(count)
    if length % SECTOR or tail % SECTOR or tail >= circle.length or not sectors * SECTOR <= length <= circle.length:
        return None
    circle.spend(length)
    raw = bytearray(circle.read(at, length))
    raw[4:8] = bytes(4)
    if crc32c(raw) != checksum:
        return None
    changes: list[Page | Zeroes] = []
    data_at = sectors * SECTOR
    for index in range(count):
        kind, last4, first8, offset, number = _DESCRIPTOR.unpack_from(raw, _ENTRY.size + index * _DESCRIPTOR.size)
        if number != sequence or offset % SECTOR:
            return None
        if kind == b"zero":
            changes.append(Zeroes(offset, int.from_bytes(first8, "little")))
            continue
        if kind != b"desc" or data_at + SECTOR > length:
            return None
        mark, high, body, low = _DATA_SECTOR.unpack_from(raw, data_at)
        if mark != b"data" or (high << 32 | low) != sequence:
            return None
        changes.append(Page(offset, first8 + body + last4))
        data_at += SECTOR
    return LogEntry(sequence, tail, guid, flushed, last, tuple(changes)) if data_at == length else None


def active_sequence(log: bytes | memoryview, guid: uuid.UUID) -> list[LogEntry]:
    """The entries to replay, oldest first. Raises StoreCorrupt: there are none, so the log says nothing usable."""
    circle = _Circle(log)
    found = {at: entry for at in range(0, circle.length, SECTOR) if (entry := _entry_at(circle, at, guid))}
    follows = {at: _after(at, entry, found, circle.length) for at, entry in found.items()}
    starts = found.keys() - set(follows.values())
    best: list[LogEntry] = []
    for start in starts:
        places, at = [start], follows[start]
        while at is not None:
            places.append(at)
            at = follows[at]
        head = found[places[-1]]
        if head.tail in places and (not best or head.sequence > best[-1].sequence):
            best = [found[place] for place in places[places.index(head.tail) :]]
    if not best:
        raise StoreCorrupt("log", "is marked as in use and holds no valid sequence of entries")
    return best


def _after(at: int, entry: LogEntry, found: dict[int, LogEntry], log_length: int) -> int | None:
    """Where the entry is that continues this one. Sequence numbers grow, so following them ends."""
    place = (at + entry.length) % log_length
    other = found.get(place)
    return place if other is not None and other.sequence == entry.sequence + 1 else None


@dataclass(slots=True)
class Replay:
    """What a log says of the file: ``apply`` lays it over what was read. ``file_bytes``: as long is the file then."""

    pages: dict[int, bytes] = field(default_factory=dict)
    file_bytes: int = 0
    _places: list[int] = field(default_factory=list)
    _zero_starts: list[int] = field(default_factory=list)
    _zero_ends: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, log: bytes | memoryview, header: Header, file_bytes: int) -> Replay:
        """Raises StoreCorrupt: no valid entries; the file is shorter than they say; they write where they may not."""
        if len(log) > MAX_LOG_BYTES:
            raise NotSupported(f"a VHDX log of {len(log)} bytes that is to be replayed")
        entries = active_sequence(log, header.log_guid)
        flushed = max(entry.flushed_bytes for entry in entries)
        if flushed > file_bytes:
            raise StoreCorrupt("log", f"was written when the file had {flushed} bytes; it has {file_bytes}: cut off")
        if entries[-1].last_bytes > MAX_FILE_BYTES:
            raise StoreCorrupt("log", f"makes the file {entries[-1].last_bytes} bytes long")
        replay = cls(file_bytes=max(file_bytes, entries[-1].last_bytes))
        log_end = header.log_offset + header.log_length
        for entry in reversed(entries):  # the newest first: what it says stands
            for change in reversed(entry.changes):
                end = change.offset + (SECTOR if isinstance(change, Page) else change.length)
                if change.offset < REGION_TABLE_OFFSETS[0] or (change.offset < log_end and end > header.log_offset):
                    raise StoreCorrupt("log", f"writes to {change.offset}, to a header or to itself")
                if end > replay.file_bytes or end % SECTOR:
                    raise StoreCorrupt("log", f"writes to {change.offset} and on, beyond the file or in part of a page")
                replay._take(change, end)
        replay._places = sorted(replay.pages)
        return replay

    @property
    def is_empty(self) -> bool:
        """Whether the file is as it lies there."""
        return not self.pages and not self._zero_starts

    def apply(self, offset: int, view: memoryview) -> None:
        """Correct ``view``, which was read from ``offset`` of the file."""
        end = offset + len(view)
        index = bisect_right(self._zero_ends, offset)
        while index < len(self._zero_starts) and self._zero_starts[index] < end:
            start, stop = max(offset, self._zero_starts[index]), min(end, self._zero_ends[index])
            view[start - offset : stop - offset] = bytes(stop - start)
            index += 1
        for place in self._places[bisect_right(self._places, offset - SECTOR) : bisect_left(self._places, end)]:
            start, stop = max(offset, place), min(end, place + SECTOR)
            view[start - offset : stop - offset] = self.pages[place][start - place : stop - place]

    def _take(self, change: Page | Zeroes, end: int) -> None:
        """Note a change unless a newer one covers it. Zeroes cover pages of older entries only."""
        if isinstance(change, Page):
            index = bisect_right(self._zero_starts, change.offset) - 1
            if change.offset not in self.pages and (index < 0 or self._zero_ends[index] <= change.offset):
                self.pages[change.offset] = change.data
            return
        if not change.length:
            return
        first = bisect_left(self._zero_ends, change.offset)
        last = bisect_right(self._zero_starts, end)
        if first < last:
            start, end = min(change.offset, self._zero_starts[first]), max(end, self._zero_ends[last - 1])
        else:
            start = change.offset
        self._zero_starts[first:last] = [start]
        self._zero_ends[first:last] = [end]
