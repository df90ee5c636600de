"""What the engine needs from the machine: files, worker threads and time, as protocols with their real ones.

The only module that calls ``os`` on data files, and the only place where ``OSError`` becomes an engine error.
Simulated implementations live in ``tests/support``; everything else in the engine gets these by constructor.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import os
import queue
import resource
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from engine.errors import (
    AlreadyExists,
    EngineError,
    InUse,
    MediumError,
    NotFound,
    NotSupported,
    OutOfSpace,
    PermissionDenied,
)
from engine.file_calls import read_fully, write_fully
from engine.movers import ThreadMover
from engine.room import BOUNDLESS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.control_files import ControlFiles
    from engine.movers import Mover
    from engine.room import Room

T = TypeVar("T")


class BlockFile(Protocol):
    """One open data file. Methods block unless said otherwise; ``fd``-level order is the caller's business."""

    path: Path

    @property
    def key(self) -> bytes | None:
        """By which bytes are encrypted on their way in and out (``engine.tvol.cipher``): whoever reads or writes at
        ``fileno`` needs it. None: they are not."""
        ...

    def size(self) -> int: ...
    def fileno(self) -> int | None:
        """The host's descriptor, for another process to work on the same open file. None: it is no file of the host."""
        ...

    def read_into(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        """Fill all buffers; what lies beyond the end of the file, or in a hole, is zero."""
        ...

    def read_now(self, view: memoryview, offset: int, /) -> bool:
        """Fill ``view`` from the page cache: False when that would block or came short."""
        ...

    def write(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        """Write all of it. Raises OutOfSpace, MediumError."""
        ...

    def sync_data(self) -> None:
        """fdatasync. Raises MediumError; the caller makes that sticky."""
        ...

    def drop_cache(self, offset: int = 0, length: int = 0, /) -> None:
        """Have later reads of a range (length 0: up to the end) come from the medium, as far as the host does it. What
        was written must be synced before."""
        ...

    def punch(self, offset: int, length: int, /) -> None:
        """Give a range back to the host; it reads zero afterwards. The size of the file does not change.

        Raises NotSupported where the host's file system cannot.
        """
        ...

    def allocate(self, offset: int, length: int, /) -> None:
        """Reserve space so that a later write there cannot meet OutOfSpace. The file grows to hold it."""
        ...

    def truncate(self, size: int, /) -> None: ...
    def close(self) -> None: ...


class FileSystem(Protocol):
    """Makes and opens data files."""

    def create(self, path: Path, /) -> BlockFile:
        """A new empty file, locked for this process. Raises AlreadyExists."""
        ...

    def open(self, path: Path, /, *, writable: bool) -> BlockFile:
        """Raises NotFound, InUse (another opener has it for writing), PermissionDenied."""
        ...

    def remove(self, path: Path, /) -> None: ...
    def sync_directory(self, path: Path, /) -> None:
        """fsync of a directory: names made or removed in it are durable afterwards."""
        ...

    def boot_id(self) -> str:
        """Identity of this boot: the page cache of an earlier process survives only within it."""
        ...


class Workers(Protocol):
    """A bounded pool of threads for calls that release the GIL."""

    async def run(self, call: Callable[[], T], /) -> T:
        """Run ``call`` in a thread. A cancelled caller gets its CancelledError only when the call has ended, so
        that nobody takes its buffers or its place in the file while it still runs."""
        ...

    async def run_each(self, *calls: Callable[[], object]) -> None:
        """Run calls one after the other in one thread, up to the first that raises, without asking the loop between
        them: each of them must bear what the loop does meanwhile."""
        ...


class Clock(Protocol):
    """Time, injected so that tests need no sleep."""

    def monotonic(self) -> float: ...
    def boottime(self) -> float:
        """CLOCK_BOOTTIME: goes on through a suspend."""
        ...

    def preemptions(self) -> int:
        """How often the calling thread has lost its processor without waiting for anything."""
        ...

    def time(self) -> float:
        """Seconds since the epoch."""
        ...


@dataclass(frozen=True, slots=True)
class HostSpace:
    """A file system's size, and what is free in it to this user; and what a pool's volume files take of it."""

    total_bytes: int
    free_bytes: int
    used_bytes: int


@dataclass(frozen=True, slots=True)
class StoreEnv:
    """The machine as a store sees it.

    ``copier``: moves the bytes of copies, where something better than ``workers`` is there for what no initiator
    waits for. ``control``: opens ledgers; where none are kept, None. ``room``: asked before a file takes more space.
    """

    files: FileSystem
    workers: Workers
    clock: Clock
    copier: Mover | None = None
    control: ControlFiles | None = None
    room: Room = BOUNDLESS
    cached_leaves: int = 1024
    """Map leaves (16 KiB each) of snapshots that one open file keeps in memory: 256 GiB of them at 64 KiB chunks."""

    @property
    def control_files(self) -> ControlFiles:
        """Where ledgers are."""
        assert self.control is not None
        return self.control

    @property
    def mover(self) -> Mover:
        """Who moves and digests the bytes of whole volumes."""
        return self.copier or ThreadMover(self.workers)

    async def close(self) -> None:
        """End what was started for copies. Nothing is being copied any more."""
        await self.mover.close()


# --- the real ones ----------------------------------------------------------------------------------------------

_SPACE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
COPY_THREADS, COPY_NICENESS = 2, 5
"""Of the threads that copy where the copying process cannot: the loop gets the processor before them.

Measured with 4 KiB reads at depth 8 beside a full clone, on one core, p99 in ms: niceness 0 5.0, 5 3.9, 10 3.3, 19 1.7,
SCHED_IDLE 0.6. But a thread that others keep from the processor while it holds the interpreter's lock keeps the loop as
well. Beside four busy programs on two cores, longest time without an answer in ms: niceness 0 80, 5 80, 10 330,
19 1500, SCHED_IDLE 2700."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_preadv = os.preadv
_pwrite = os.pwrite
_NOWAIT = os.RWF_NOWAIT
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2


def translate(error: OSError, what: str) -> EngineError:
    """The engine's error for ``error``; ``what`` says what was tried on which file."""
    text = f"{what}: {error.strerror or error}"
    if error.errno in _SPACE_ERRORS:
        return OutOfSpace(text)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(text)
    return MediumError(text)


class RealFile:
    """A ``BlockFile`` over a descriptor that this object owns."""

    key = None

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._nowait = self._probe_nowait()

    def _probe_nowait(self) -> bool:
        """Whether this file system takes RWF_NOWAIT (tmpfs does not); without it ``read_now`` always declines."""
        try:
            os.preadv(self._fd, [bytearray(1)], 0, os.RWF_NOWAIT)
        except OSError as error:
            return error.errno == errno.EAGAIN
        return True

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def fileno(self) -> int | None:
        return self._fd

    def read_into(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        try:
            read_fully(self._fd, buffers, offset)
        except OSError as error:
            raise translate(error, f"reading {self.path} at {offset}") from error

    def read_now(self, view: memoryview, offset: int, /) -> bool:
        try:
            return self._nowait and _preadv(self._fd, (view,), offset, _NOWAIT) == len(view)
        except OSError:  # EAGAIN; a real error comes back from the blocking read that follows
            return False

    def write(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        try:
            if len(buffers) == 1 and _pwrite(self._fd, buffers[0], offset) == len(buffers[0]):
                return  # the fast tier's case, 0.4 us cheaper than the loop below; a short write starts again there
            write_fully(self._fd, buffers, offset)
        except OSError as error:
            raise translate(error, f"writing {self.path} at {offset}") from error

    def sync_data(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise MediumError(f"fdatasync of {self.path}: {error.strerror}") from error

    def drop_cache(self, offset: int = 0, length: int = 0, /) -> None:
        try:
            os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise translate(error, f"posix_fadvise of {self.path}") from error

    def punch(self, offset: int, length: int, /) -> None:
        self._fallocate(_FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length)

    def allocate(self, offset: int, length: int, /) -> None:
        try:
            self._fallocate(0, offset, length)
        except NotSupported:  # then writing is what takes the space
            zeroes = memoryview(bytes(length))
            self.write((zeroes,), offset)

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        code = _fallocate_call()(self._fd, mode, offset, length)
        if code == errno.EOPNOTSUPP:
            raise NotSupported(f"the file system of {self.path} has no fallocate mode {mode}")
        if code:
            raise translate(OSError(code, os.strerror(code)), f"fallocate {mode} of {self.path} at {offset}+{length}")

    def truncate(self, size: int, /) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise translate(error, f"truncating {self.path} to {size}") from error

    def close(self) -> None:
        fd, self._fd = self._fd, -1  # a late call fails, and does not reach a file that got the same number
        os.close(fd)


@functools.cache
def _fallocate_call() -> Callable[[int, int, int, int], int]:
    """fallocate(2) through libc, since ``os`` has only posix_fallocate; ctypes releases the GIL in the call."""
    import ctypes  # only a process that opens a data file pays for the import

    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.fallocate64 if hasattr(libc, "fallocate64") else libc.fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

    def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
        """0 or the errno."""
        return 0 if call(fd, mode, offset, length) == 0 else ctypes.get_errno()

    return fallocate


class RealFileSystem:
    """Files of the host. A lock (flock) on the open file keeps a second writer out, in this process too."""

    def create(self, path: Path, /) -> BlockFile:
        return self._open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, fcntl.LOCK_EX)

    def open(self, path: Path, /, *, writable: bool) -> BlockFile:
        if writable:
            return self._open(path, os.O_RDWR, fcntl.LOCK_EX)
        return self._open(path, os.O_RDONLY, fcntl.LOCK_SH)

    def _open(self, path: Path, flags: int, lock: int) -> BlockFile:
        try:
            fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise NotFound("file", str(path)) from None
        except FileExistsError:
            raise AlreadyExists("file", str(path)) from None
        except OSError as error:
            raise translate(error, f"opening {path}") from error
        try:
            fcntl.flock(fd, lock | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno == errno.EWOULDBLOCK:
                raise InUse(f"{path} is open elsewhere; close it there first") from None
            raise translate(error, f"locking {path}") from error
        return RealFile(path, fd)

    def remove(self, path: Path, /) -> None:
        try:
            path.unlink()
        except FileNotFoundError:
            raise NotFound("file", str(path)) from None
        except OSError as error:
            raise translate(error, f"removing {path}") from error

    def sync_directory(self, path: Path, /) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise translate(error, f"fsync of directory {path}") from error

    def boot_id(self) -> str:
        try:
            return _BOOT_ID.read_text().strip()
        except OSError:
            return str(uuid.uuid4())  # unknown: never equal to an earlier one, so unsynced records are not trusted


def measure_space(folder: Path, pattern: str) -> HostSpace:
    """Of the file system that ``folder`` is in, and of the files below it whose names match. Raises MediumError."""
    try:
        host = os.statvfs(folder)
        used = 0
        for path in folder.rglob(pattern):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                used += path.stat().st_blocks * 512
    except OSError as error:
        raise translate(error, f"measuring the space of {folder}") from error
    return HostSpace(host.f_frsize * host.f_blocks, host.f_frsize * host.f_bavail, used)


class _Job:
    """A call that a thread makes, and whoever waits for it in a loop."""

    __slots__ = ("_call", "_loop", "done", "ended")

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[object] = self._loop.create_future()
        self.ended = False

    async def still_running(self) -> None:
        """After a cancellation: until the call has ended, whatever comes of it."""
        while not self.ended:
            self.done = self._loop.create_future()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await self.done

    def do(self) -> None:
        """In the thread."""
        result, error = None, None
        try:
            result = self._call()
        except BaseException as caught:  # it is the waiting one's, whatever it is
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
            self._loop.call_soon_threadsafe(self._end, result, error)

    def _end(self, result: object, error: BaseException | None) -> None:
        self.ended = True
        if self.done.done():
            return  # cancelled
        if error is None:
            self.done.set_result(result)
        else:
            self.done.set_exception(error)
            self.done.exception()  # taken, should the waiting one be cancelled in this turn of the loop


class ThreadWorkers:
    """``Workers`` over threads of its own, started when needed.

    Not an executor: there and back costs 15 us instead of 36, without its futures of both worlds.
    """

    def __init__(self, threads: int = 8, *, niceness: int = 0) -> None:
        """``niceness``: added to the process' own; on Linux each thread has one."""
        self._most = threads
        self._niceness = niceness
        self._running = 0
        """Calls that were handed over and have not ended."""
        self._threads: list[threading.Thread] = []
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()

    async def run(self, call: Callable[[], T], /) -> T:
        job = _Job(call)
        self._running += 1
        try:
            if len(self._threads) < min(self._running, self._most):
                self._start_one()
            self._jobs.put(job)
            return cast("T", await job.done)
        except asyncio.CancelledError:
            await job.still_running()
            raise
        finally:
            self._running -= 1

    async def run_each(self, *calls: Callable[[], object]) -> None:
        def run() -> None:
            for call in calls:
                call()

        await self.run(run)

    def _start_one(self) -> None:
        name = f"twinvol-copy-{len(self._threads)}" if self._niceness else f"twinvol-io-{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._threads:
                raise MediumError(f"{name} does not start: {error}") from error
            return  # the host has no more: those that there are do it
        self._threads.append(thread)

    def _work(self) -> None:
        if self._niceness:
            own = os.getpriority(os.PRIO_PROCESS, 0)
            nice = own + self._niceness  # at most 19: the kernel cuts it
            with contextlib.suppress(OSError):  # some sandboxes forbid it
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        while (job := self._jobs.get()) is not None:
            job.do()
            del job  # what it holds is not kept until the next one comes

    def close(self) -> None:
        """Wait for what was handed over and end the threads."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()


class SystemClock:
    """The host's clocks."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    def boottime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def preemptions(self) -> int:
        return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def real_env(threads: int = 8) -> StoreEnv:
    """The host's files, ``threads`` worker threads, the host's clock, and a copying process that starts on demand."""
    from engine.control_files import AioControlFiles  # which need this module
    from engine.copy_process import CopyProcess

    workers, standing_in = ThreadWorkers(threads), ThreadWorkers(COPY_THREADS, niceness=COPY_NICENESS)
    return StoreEnv(
        RealFileSystem(), workers, SystemClock(), CopyProcess(ThreadMover(standing_in), workers), AioControlFiles()
    )
