"""The data process's hold on the copying process: starts it when there is something to copy, asks it, does without it.

Invariants:

* It is started on demand, when ``START_AFTER_BYTES`` were asked for, again after it died, and ended by ``close`` or,
  however this process ends, by the end of its stream (``engine.copy_worker`` says what it does).
* A request is answered, or the stream has ended: then the process is gone with all its threads, and no write of it is
  under way any more. The strip is then done again, by threads of this process; so nothing is lost by its death.
* At most ``MAX_ASKED`` requests are under way: neither side's queue grows.
* While this process' loop has much to do, strips are moved in small parts (``engine.strips``): its hosts then wait less
  for a processor that both share.

Files that the host does not know (simulated ones), extents in too many segments and a machine that does not let
it start have their strips done by the threads as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.machinery
import logging
import marshal
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from engine.copy_worker import DIFFERS, FAILED, MAX_FILES, MAX_MESSAGE_BYTES
from engine.errors import IntegrityError
from engine.files import translate
from engine.stores import Extent
from engine.strips import LARGE_PART_BYTES, SMALL_PART_BYTES, Moved
from engine.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.files import BlockFile, Workers
    from engine.movers import Mover
    from engine.stores import ReadLease, WriteLease

log = logging.getLogger(__name__)

MAX_ASKED = 4
"""Strips that wait in the socket or are in work there."""

START_AFTER_BYTES = 8 * MIB
"""So much is done by threads first: a small copy is over before an interpreter would have started (60 ms)."""

MAX_DEATHS = 8
"""So often it is started again; then the threads do it alone."""


BUSY_SHARE = 0.15
"""Of a processor: what the loop takes from it when it counts as busy, but for what the strips cost it."""

STRIP_S = 0.0006
"""What a strip of 4 MiB costs the loop's thread: leased, asked for, published, recorded. (Measured: 0.5 ms.)"""

LOAD_WINDOW_S = 0.05
"""Over so long at least the share is taken."""


class LoopLoad:
    """Whether the loop's thread has much to do beside the strips of copies."""

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, used: Callable[[], float] = time.thread_time
    ) -> None:
        self._monotonic = monotonic
        self._used = used
        self._since = monotonic()
        self._used_then = used()
        self._strips = 0
        self._is_busy = False

    def is_busy(self) -> bool:
        """In the last window that is over. To be asked once for each strip, in that thread."""
        now = self._monotonic()
        self._strips += 1
        if (elapsed := now - self._since) >= LOAD_WINDOW_S:
            used = self._used()
            self._is_busy = used - self._used_then - self._strips * STRIP_S > BUSY_SHARE * elapsed
            self._since, self._used_then, self._strips = now, used, 0
        return self._is_busy


class CopyProcess:
    """``Mover`` by a process of its own.

    Args:
        threads: does what the process cannot.
        workers: start it and wait for its end.
    """

    def __init__(self, threads: Mover, workers: Workers) -> None:
        self._threads = threads
        self._workers = workers
        self._link: socket.socket | None = None
        self._pid = 0
        self._starting = asyncio.Lock()
        self._room = asyncio.Semaphore(MAX_ASKED)
        self._load = LoopLoad()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._last_number = 0
        self._asked_bytes = 0
        self._deaths = 0
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The running process; None before it was started."""
        return self._pid or None

    async def digest(self, length: int, source: ReadLease, /) -> bytes:
        answer = await self._ask(Extent(0, length), 0, [source])
        if answer is None:
            return await self._threads.digest(length, source)
        (digests,) = answer
        return bytes(digests)

    async def move(self, strip: Extent, source: ReadLease, present: ReadLease | None, to: WriteLease, /) -> Moved:
        leases = [source, to] if present is None else [source, present, to]
        answer = await self._ask(strip, to.unit_bytes, leases)
        if answer is None:
            return await self._threads.move(strip, source, present, to)
        digests, zeroes, written, equal_bytes = answer
        return Moved(digests, [Extent(*each) for each in zeroes], [Extent(*each) for each in written], equal_bytes)

    async def close(self) -> None:
        """End the process and wait for its end; nobody asks it any more."""
        self._closed = True
        async with self._starting:
            if self._link is not None:
                self._ended()
            await self._reap()

    # --- asking -------------------------------------------------------------------------------------------------

    async def _ask(self, strip: Extent, unit_bytes: int, leases: Sequence[ReadLease | WriteLease]) -> Any:
        """What the process answers; None when it cannot be asked or died. Raises what went wrong with the files."""
        files: list[BlockFile] = []
        extents = []
        for lease in leases:
            if lease.place is None or lease.place.file.fileno() is None:
                return None
            files.append(lease.place.file)
            extents.append(lease.place.segments)
        async with self._room:
            self._last_number += 1
            number = self._last_number
            keys = [file.key for file in files]
            part_bytes = SMALL_PART_BYTES if self._load.is_busy() else LARGE_PART_BYTES
            message = marshal.dumps((number, strip.offset, strip.length, part_bytes, unit_bytes, extents, keys))
            if len(message) > MAX_MESSAGE_BYTES or not await self._running(strip.length):
                return None
            answered = self._send(number, message, files)
            if answered is None:
                return None
            status, *answer = await _whole(answered)
        if status == FAILED:
            verb, file, position, code, text = answer
            raise translate(OSError(code, text), f"{verb} {files[file].path} at {position}")
        if status == DIFFERS:
            raise IntegrityError("copy target", *answer)
        return answer if status is not None else None

    def _send(self, number: int, message: bytes, files: list[BlockFile]) -> asyncio.Future[Any] | None:
        assert self._link is not None
        assert len(files) <= MAX_FILES
        fds = [fd for file in files if (fd := file.fileno()) is not None]
        try:
            socket.send_fds(self._link, [message], fds, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:  # it is gone, or the host's limit of descriptors in flight is reached
            log.info("the copying process cannot be asked: %s", error)
            return None
        answered = self._asked[number] = asyncio.get_running_loop().create_future()
        return answered

    def _readable(self) -> None:
        """Answers have come, or the end of the stream."""
        assert self._link is not None
        for _ in range(MAX_ASKED):
            try:
                message = self._link.recv(MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self._died()
                return
            number, *answer = marshal.loads(message)
            self._asked.pop(number).set_result(answer)

    # --- its life -----------------------------------------------------------------------------------------------

    async def _running(self, length: int) -> bool:
        self._asked_bytes += length
        if self._asked_bytes <= START_AFTER_BYTES:
            return False
        async with self._starting:
            if self._link is None and not self._closed and self._deaths < MAX_DEATHS:
                await self._reap()
                await self._start()
            return self._link is not None

    async def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._pid = await self._workers.run(lambda: _spawn(theirs.fileno()))
        except OSError as error:
            log.warning("the copying process does not start, threads copy instead: %s", error)
            self._deaths = MAX_DEATHS
            ours.close()
            return
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._link = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._readable)

    def _died(self) -> None:
        self._deaths += 1
        log.warning("the copying process %d has died; what it was at is done again", self._pid)
        self._ended()

    def _ended(self) -> None:
        """Nothing more comes from it: whoever waits does without."""
        assert self._link is not None
        asyncio.get_running_loop().remove_reader(self._link.fileno())
        self._link.close()
        self._link = None
        asked, self._asked = self._asked, {}
        for answered in asked.values():
            answered.set_result([None])

    async def _reap(self) -> None:
        """Take note of the end of a process whose stream has ended."""
        pid, self._pid = self._pid, 0
        if pid:
            await self._workers.run(lambda: _wait(pid))


def _spawn(stdin: int) -> int:
    """Start it, with ``stdin``."""
    command = [sys.executable, "-S", "-s", "-P", "-m", "engine.copy_worker"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(_import_folders())}
    return os.posix_spawn(
        sys.executable, command, environment, file_actions=[(os.POSIX_SPAWN_DUP2, stdin, 0)], setsigmask=[]
    )


def _import_folders() -> list[str]:
    """Where it finds this package, xxhash and cryptography: where this process does."""
    folders = {str(Path(__file__).parents[1]): None, str(Path(xxhash.__file__).parents[1]): None}
    for name in ("cryptography", "_cffi_backend"):  # for encrypted files
        # Not importlib.util.find_spec(): that refuses a module which another thread is just importing.
        found = importlib.machinery.PathFinder.find_spec(name)
        if found is not None and found.origin is not None:
            folders[str(Path(found.origin).parents[found.submodule_search_locations is not None])] = None
    return list(folders)


def _wait(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # it has nothing to lose
    with contextlib.suppress(ChildProcessError):  # somebody who waits for all children was first
        os.waitpid(pid, 0)


async def _whole(answered: asyncio.Future[Any]) -> Any:
    """The answer. Who is cancelled hears of it only then: until then the process may write."""
    try:
        return await asyncio.shield(answered)
    except asyncio.CancelledError:
        while not answered.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([answered])
        raise
