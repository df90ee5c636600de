"""A record of everything that a process does to its data files, to build from it what a crash might have left.

``TracedFileSystem`` stands before the real one and appends a record for each operation that changes a file before the
operation is carried out, and a second one when it has returned. Nothing is changed by tracing, and nothing decided:
what a crash at some record may leave is the reader's business (``tests/crash_images``). Reads are not recorded.

Invariants
    * An operation's BEGIN is in the trace before its effect can be in the file; its END only after it returned.
    * Records are in the order in which they happened, over all threads: one lock, one ``write`` for each record. They
      outlive the process (not the machine: a trace is read on the machine that made it).
    * A sync that ended covers what had ended before it began, and nothing else is claimed of it.

For diagnosis and tests only: each byte written is written twice, and a write costs a lock and a second system call.
"""

from __future__ import annotations

import enum
import os
import threading
import time
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING

from engine.errors import EngineError, OutOfSpace
from engine.files import translate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from engine.files import BlockFile, FileSystem

_HEAD = Struct("<BxHIQQQ")
"""Kind, file, the BEGIN that an END ends, offset, length, CLOCK_MONOTONIC in ns. A WRITE's or OPEN's bytes follow."""


class Kind(enum.IntEnum):
    """What a record tells. ``START``: a new process begins; nothing of the ones before it runs any more."""

    START = 1
    OPEN = 2
    WRITE = 3
    PUNCH = 4
    ALLOCATE = 5
    TRUNCATE = 6
    SYNC = 7
    DONE = 8
    FAILED = 9


@dataclass(frozen=True, slots=True)
class Record:
    """One record. ``number`` counts from 0; ``ends`` is the number of the operation that a DONE or FAILED ends.

    ``data``: the bytes of a WRITE, the path of an OPEN, the boot id of a START.
    """

    number: int
    kind: Kind
    file: int
    ends: int
    offset: int
    length: int
    time_ns: int
    data: bytes


def read_trace(path: Path) -> Iterator[Record]:
    """All whole records of a trace; a last one that was cut off by a kill is left out."""
    with path.open("rb") as file:
        number = 0
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            kind, which, ends, offset, length, time_ns = _HEAD.unpack(head)
            carries = kind in (Kind.WRITE, Kind.OPEN, Kind.START)
            data = file.read(length) if carries else b""
            if carries and len(data) < length:
                return
            yield Record(number, Kind(kind), which, ends, offset, length, time_ns, data)
            number += 1


class _Trace:
    """The file of records, shared by all traced files of a process. Begun anew by each; earlier ones stay in front."""

    def __init__(self, path: Path, boot_id: str) -> None:
        count = sum(1 for _ in read_trace(path)) if path.exists() else 0
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._lock = threading.Lock()
        self._next = count
        self._files = 0
        self.append(Kind.START, data=(boot_id.encode("ascii"),))

    def opened(self, path: Path) -> int:
        """The number of a file that was opened."""
        with self._lock:
            self._files += 1
            number = self._files
        self.append(Kind.OPEN, number, data=(bytes(path),))
        return number

    def append(
        self, kind: Kind, file: int = 0, offset: int = 0, length: int = 0, *, ends: int = 0, data: Sequence[bytes] = ()
    ) -> int:
        """One record; its number."""
        length = sum(map(len, data)) if data else length
        with self._lock:
            head = _HEAD.pack(kind, file, ends, offset, length, time.monotonic_ns())
            record = head + b"".join(data)
            try:
                whole = os.write(self._fd, record) == len(record)
            except OSError as error:
                raise translate(error, "writing the trace of files") from error
            if not whole:  # the next record would be read as the rest of this one
                raise OutOfSpace("the trace of files could not be written whole")
            number = self._next
            self._next += 1
        return number


class TracedFileSystem:
    """``inner``, with every change of its files recorded at ``path``."""

    def __init__(self, inner: FileSystem, path: Path) -> None:
        self._inner = inner
        self._trace = _Trace(path, inner.boot_id())
        self.remove = inner.remove
        self.sync_directory = inner.sync_directory
        self.boot_id = inner.boot_id

    def create(self, path: Path, /) -> BlockFile:
        return _TracedFile(self._inner.create(path), self._trace)

    def open(self, path: Path, /, *, writable: bool) -> BlockFile:
        file = self._inner.open(path, writable=writable)
        return _TracedFile(file, self._trace) if writable else file


class _TracedFile:
    """One open file."""

    key = None

    def __init__(self, inner: BlockFile, trace: _Trace) -> None:
        self.path = inner.path
        self._inner = inner
        self._trace = trace
        self._number = trace.opened(inner.path)
        self.size = inner.size
        self.read_into = inner.read_into
        self.read_now = inner.read_now
        self.drop_cache = inner.drop_cache
        self.close = inner.close

    def fileno(self) -> int | None:
        """None: what another process did to the file would not be in the trace."""
        return None

    def write(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        data = [bytes(buffer) for buffer in buffers]
        self._do(Kind.WRITE, lambda: self._inner.write(buffers, offset), offset, data=data)

    def sync_data(self) -> None:
        self._do(Kind.SYNC, self._inner.sync_data)

    def punch(self, offset: int, length: int, /) -> None:
        self._do(Kind.PUNCH, lambda: self._inner.punch(offset, length), offset, length)

    def allocate(self, offset: int, length: int, /) -> None:
        self._do(Kind.ALLOCATE, lambda: self._inner.allocate(offset, length), offset, length)

    def truncate(self, size: int, /) -> None:
        self._do(Kind.TRUNCATE, lambda: self._inner.truncate(size), 0, size)

    def _do(
        self, kind: Kind, call: Callable[[], None], offset: int = 0, length: int = 0, data: Sequence[bytes] = ()
    ) -> None:
        number = self._trace.append(kind, self._number, offset, length, data=data)
        try:
            call()
        except EngineError:
            self._trace.append(Kind.FAILED, self._number, ends=number)
            raise
        self._trace.append(Kind.DONE, self._number, ends=number)
