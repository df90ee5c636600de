"""The copying process: moves and digests strips for the data process, which it is started by (``engine.copy_process``).

    data process --- one request a strip: segments of open files, and their descriptors (SCM_RIGHTS) ---> here
    data process <-- one answer: digests, what was written, zero, equal; or the error ------------------ here

Its standard input is a Unix socket (SOCK_SEQPACKET); a request is one datagram, so several lanes wait at one socket.

Invariants:

* It keeps nothing from one strip to the next: descriptors are closed before the answer leaves, keys of encrypted files
  come with each request, and whoever has no answer may do the strip again. So it may die at any moment.
* It ends with its parent: at the end of the stream at once, whatever it is at. Until then the descriptors keep the
  parent's locks on the files, so that nobody else takes them while a write may still land.
* Its lanes run when nothing else wants the processor (SCHED_IDLE, and so the idle I/O class). **But no one writes to a
  file at that priority**: a write holds the file's lock in the kernel, and who is kept from the processor with it keeps
  the data process from that file. (Measured beside four busy programs on two cores, longest 4 KiB write in ms while
  256 KiB pieces are written to the same file: niceness 0 37, 5 108, 19 940, SCHED_IDLE 1060 to 2460.) So each lane has
  a thread of ordinary priority that does its writes, in calls of at most 256 KiB, and sleeps in between.

It imports little: it is there 60 ms after it was asked for.
"""

from __future__ import annotations

import marshal
import os
import signal
import socket
import sys
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

from engine.errors import IntegrityError
from engine.file_calls import read_fully, start_writeback, write_fully
from engine.stores import Extent
from engine.stores.place import Place, ReadWrite
from engine.strips import Buffers, digest_strip, move_strip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LANES = 2
"""Strips in work at once: as many as there were copying threads; more gain nothing on few processors."""

MAX_MESSAGE_BYTES = 48 * 1024
"""Longest request: three extents of 1 MiB in pages of 4 KiB, each page somewhere else, fit."""

MAX_FILES = 3
"""Source, what is there already, target."""

DONE, DIFFERS, FAILED = 0, 1, 2
"""How an answer begins, after the request's number."""


class CallFailed(Exception):
    """A call on a file failed. ``file``: which descriptor of the request."""

    def __init__(self, verb: str, file: int, position: int, error: OSError) -> None:
        super().__init__(verb, file, position, error.errno or 0, error.strerror or "")


class _Writer:
    """Writes for one lane, in a thread of ordinary priority: made before the lanes give way."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._outcomes: SimpleQueue[Exception | None] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def run(self, call: Callable[[], None]) -> None:
        """Wait for ``call``, made in that thread; raises what it raises."""
        self._calls.put(call)
        error = self._outcomes.get()
        if error is not None:
            raise error

    def _run(self) -> None:
        while True:
            call = self._calls.get()
            try:
                call()
            except Exception as error:
                self._outcomes.put(error)
            else:
                self._outcomes.put(None)


class _File:
    """``engine.stores.place.ReadWrite`` over the descriptor ``number`` of a request."""

    def __init__(self, number: int, fd: int) -> None:
        self._number = number
        self._fd = fd

    def read_into(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        try:
            read_fully(self._fd, buffers, offset)
        except OSError as error:
            raise CallFailed("reading", self._number, offset, error) from error

    def write(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        try:
            write_fully(self._fd, buffers, offset)
        except OSError as error:
            raise CallFailed("writing", self._number, offset, error) from error

    def begin_writeback(self, offset: int, length: int) -> None:
        start_writeback(self._fd, offset, length)


def _deciphered(file: _File, key: bytes | None) -> ReadWrite:
    if key is None:
        return file
    from engine.tvol.cipher import EncryptedBytes  # its library takes 30 ms to import, and few need it

    return EncryptedBytes(file, key)


class _Target(Place[ReadWrite]):
    """A place in ``file`` with the unit in which it may be written, and a thread that does it."""

    __slots__ = ("_raw", "_writer", "unit_bytes")

    def __init__(self, place: Place[ReadWrite], raw: _File, unit_bytes: int, writer: _Writer) -> None:
        super().__init__(place.file, place.segments)
        self.unit_bytes = unit_bytes
        self._raw = raw
        self._writer = writer

    def write(self, at: int, data: memoryview, /) -> None:
        self._writer.run(lambda: super(_Target, self).write(at, data))

    def written(self) -> None:
        """All of it was: have the host begin to write it to the medium, so that the next flush finds little to do."""
        self._writer.run(self._begin_writeback)

    def _begin_writeback(self) -> None:
        for _, size, position in self.segments:
            self._raw.begin_writeback(position, size)


class _Lane:
    """Serves one request after the other until the stream ends, and with it the process."""

    def __init__(self, link: socket.socket, writer: _Writer) -> None:
        self._link = link
        self._writer = writer
        self._buffers = Buffers()

    def serve(self) -> None:
        try:
            while True:
                message, fds, _, _ = socket.recv_fds(self._link, MAX_MESSAGE_BYTES, MAX_FILES)
                if not message:
                    os._exit(0)
                try:
                    answer = self._answer(message, fds)
                finally:
                    for fd in fds:
                        os.close(fd)
                self._link.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)  # a mistake: the parent does this strip itself

    def _answer(self, message: bytes, fds: list[int]) -> bytes:
        number, offset, length, part_bytes, unit_bytes, extents, keys = marshal.loads(message)
        files = [_File(file, fd) for file, fd in enumerate(fds)]
        places = [
            Place(_deciphered(file, key), segments) for file, key, segments in zip(files, keys, extents, strict=True)
        ]
        try:
            if not unit_bytes:
                return marshal.dumps((number, DONE, digest_strip(length, places[0], self._buffers)))
            source, *present, to = places
            target = _Target(to, files[-1], unit_bytes, self._writer)
            there = present[0] if present else None
            moved = move_strip(Extent(offset, length), source, there, target, self._buffers, part_bytes)
            if moved.written:
                target.written()
        except CallFailed as failure:
            return marshal.dumps((number, FAILED, *failure.args))
        except IntegrityError as error:
            return marshal.dumps((number, DIFFERS, error.offset, error.length, error.expected, error.actual))
        zeroes, written = ([(e.offset, e.length) for e in each] for each in (moved.zeroes, moved.written))
        return marshal.dumps((number, DONE, moved.digests, zeroes, written, moved.equal_bytes))


def give_way() -> None:
    """This thread, and those that it starts, run when nobody else wants the processor."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:  # some sandboxes forbid it
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def main() -> None:
    """Serve at standard input until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # meant for the parent, whose end is what ends this process
    link = socket.socket(fileno=0)
    lanes = [_Lane(link, _Writer()) for _ in range(LANES)]
    give_way()
    for lane in lanes[1:]:
        threading.Thread(target=lane.serve, daemon=True).start()
    lanes[0].serve()


if __name__ == "__main__":
    main()
