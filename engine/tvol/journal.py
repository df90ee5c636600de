"""The journal: a ring of checksummed records, each naming its predecessor's checksum.

A record is valid if it has the expected sequence number, the file's current incarnation, its predecessor's checksum
and a right checksum of its own; the first that is not ends the journal. Records are appended with a plain write: they
survive the process at once, and a power loss once a COMMIT that covers them is durable.

A COMMIT is two records, one behind the other, each in a sector that nobody writes to again. When a flush has returned
both are on the medium, so one that is not whole then has rotted, and the other one says what it was; that neither is
whole is what a power loss during the flush leaves, of which nobody was told (``docs/decisions/0032``). Nothing in a
record says which of the two it is: each names its predecessor's checksum, so of two that belong together each proves
the other.

``head`` is the position of the first record that the superblock in force still needs; space behind it is free.

Records are appended by the loop's thread, COMMITs by the worker that has just synced what they vouch for: so a flush
takes one way to a thread and back, and not two. A lock keeps them apart. Nobody else may write a COMMIT while one is
under way, since ``has_room`` leaves room for one.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from engine.errors import EngineError
from engine.tvol import layout
from engine.tvol.layout import COMMIT_ALIGNMENT, RECORD_UNIT, Record, RecordType
from engine.units import align_up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.files import BlockFile

COMMIT_ROOM = 2 * COMMIT_ALIGNMENT
"""What both copies of a COMMIT take at most."""


class Tip(NamedTuple):
    """Where the next record goes, as a superblock says it."""

    position: int
    offset: int
    """The position's place in the ring."""
    last_seq: int
    previous: int
    """Checksum of the last record."""


class Journal:
    """Appends records. Positions count bytes since the ring's start and never wrap; offsets are within the ring."""

    def __init__(
        self, file: BlockFile, start: int, ring_bytes: int, *, incarnation: int, offset: int, seq: int, previous: int
    ) -> None:
        self._file = file
        self._start = start
        self.ring_bytes = ring_bytes
        self.incarnation = incarnation
        self.position = offset
        self.head = offset
        self.next_seq = seq
        self.previous = previous
        self._lock = threading.Lock()
        self._ended = False
        """A record could not be written, or said that a sync has failed: nothing may follow."""

    @property
    def last_seq(self) -> int:
        return self.next_seq - 1

    @property
    def used(self) -> int:
        return self.position - self.head

    def has_room(self, length: int) -> bool:
        """Whether a record of ``length`` bytes fits wherever the ring's end falls, and a COMMIT after it."""
        return self.position - self.head + 2 * length + COMMIT_ROOM <= self.ring_bytes

    def can_ever_hold(self, length: int) -> bool:
        """Whether ``has_room`` of so much can be true: right after a checkpoint, beside what a pass may gather."""
        return 4 * length + COMMIT_ROOM <= self.ring_bytes

    def tip(self) -> Tip:
        """Where the journal ends now."""
        with self._lock:
            return Tip(self.position, self.position % self.ring_bytes, self.last_seq, self.previous)

    def append(self, kind: RecordType, payload: bytes) -> int:
        """Write a record; its sequence number. The caller has seen to the room. Raises MediumError."""
        with self._lock:
            return self._append(kind, payload, layout.record_length(len(payload)))

    def commit(self, covers: int) -> bool:
        """In a worker: write a COMMIT of everything up to ``covers``, and once more in a sector of its own.

        False: it was not written, for want of room or because the journal has ended. Raises MediumError.
        """
        with self._lock:
            if self._ended or self.used + COMMIT_ROOM > self.ring_bytes:
                return False
            self._write_commit(covers)
            self._write_commit_again(covers)
            return True

    def _write_commit(self, covers: int) -> None:
        length = _rest_of_sector(self.position % self.ring_bytes)
        self._append(RecordType.COMMIT, layout.COMMIT.pack(covers), length)

    def _write_commit_again(self, covers: int) -> None:
        """So that one is left when the other one rots."""
        self._write_commit(covers)

    def mark_failed(self) -> bool:
        """Say that a sync has failed, for whoever opens the file next. False: it could not be said on such a disk."""
        with self._lock, contextlib.suppress(EngineError):
            if self.used + 2 * RECORD_UNIT <= self.ring_bytes:
                self._append(RecordType.FAILED, b"", RECORD_UNIT)
                self._ended = True
                return True
        return False

    def _pad(self, length: int) -> None:
        rest = self.ring_bytes - self.position % self.ring_bytes
        if rest < length:
            self._write(RecordType.PAD, b"", rest)

    def _append(self, kind: RecordType, payload: bytes, length: int) -> int:
        assert self.position + length <= self.head + self.ring_bytes, "the journal is full"
        self._pad(length)
        return self._write(kind, payload, length)

    def _write(self, kind: RecordType, payload: bytes, length: int) -> int:
        seq = self.next_seq
        record, checksum = layout.pack_record(kind, seq, self.incarnation, self.previous, payload, length)
        try:
            self._file.write((record,), self._start + self.position % self.ring_bytes)
        except BaseException:
            self._ended = True
            raise
        self.position += length
        self.next_seq += 1
        self.previous = checksum
        return seq


def _rest_of_sector(offset: int) -> int:
    return align_up(offset + RECORD_UNIT, COMMIT_ALIGNMENT) - offset


def scan(ring: memoryview, offset: int, seq: int, incarnation: int, previous: int) -> Iterator[tuple[Record, int]]:
    """The valid records from ``offset`` on, PADs included, each with the ring offset behind it. A copy of a COMMIT that
    does not verify is among them when the other one does."""
    read = 0
    first: Record | None = None
    """The first copy of a COMMIT whose second one is next."""
    while read < len(ring):
        record = layout.parse_record(ring, offset, seq, incarnation, previous)
        if record is None:
            record = _by_its_copy(ring, offset, seq, incarnation, previous, first)
        if record is None:
            return
        first = record if record.type == RecordType.COMMIT and first is None else None
        read += record.length
        offset = (offset + record.length) % len(ring)
        seq += 1
        previous = record.checksum
        yield record, offset


def _by_its_copy(
    ring: memoryview, offset: int, seq: int, incarnation: int, previous: int, first: Record | None
) -> Record | None:
    """The COMMIT that stood at ``offset``, or has not got there, if it has another copy: ``first`` is before it, or it
    is the first one itself, and the one behind names its checksum."""
    length = _rest_of_sector(offset)
    behind = (offset + length) % len(ring)
    if first is not None:
        payload = first.payload
    else:
        at = behind + layout.RECORD_HEADER.size
        payload = bytes(ring[at : at + layout.COMMIT.size])
    _, checksum = layout.pack_record(RecordType.COMMIT, seq, incarnation, previous, payload, length)
    if first is None:
        second = layout.parse_record(ring, behind, seq + 1, incarnation, checksum)
        if second is None or second.type != RecordType.COMMIT or second.payload != payload:
            return None
    return Record(RecordType.COMMIT, seq, checksum, length, payload)


def later_commit(ring: memoryview, end_seq: int, incarnation: int) -> tuple[int, int] | None:
    """Behind record ``end_seq``, at which the chain ended, the valid COMMIT that covers most: its number, and up to
    which record.

    It was written when what it covers was durable, whatever became of the records in between. If it covers
    ``end_seq``, the chain was not cut by a crash: a durable record has rotted, and going on would silently lose what a
    flush promised.
    """
    words = np.frombuffer(ring, "<u4").reshape(-1, RECORD_UNIT // 4)
    found: tuple[int, int] | None = None
    for unit in np.flatnonzero(words[:, 2] == layout.RECORD_MAGIC).tolist():
        header: tuple[int, ...] = layout.RECORD_HEADER.unpack_from(ring, unit * RECORD_UNIT)
        kind, seq, previous = header[2], header[6], header[9]
        if kind != RecordType.COMMIT or seq <= end_seq:
            continue
        record = layout.parse_record(ring, unit * RECORD_UNIT, seq, incarnation, previous)
        if record is not None and (found is None or seq > found[0]):
            found = seq, int(layout.unpack_fields(layout.COMMIT, record.payload)[0])
    return found
