"""Reads and writes of a descriptor that are not over before all bytes are through; ``OSError`` as it comes.

Apart from ``engine.files`` so that the copying process (``engine.copy_worker``) has them without importing the rest.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_BUFFERS = 1024
"""IOV_MAX of Linux."""
_SYNC_FILE_RANGE_WRITE = 2


def read_fully(fd: int, buffers: Sequence[memoryview], offset: int) -> None:
    """Fill all buffers; what lies beyond the end of the file is zero."""
    for first in range(0, len(buffers), MAX_BUFFERS):
        some = buffers[first : first + MAX_BUFFERS]
        wanted = sum(map(len, some))
        got = os.preadv(fd, some, offset)
        while got < wanted:
            rest = _after(some, got)
            more = os.preadv(fd, rest, offset + got)
            if not more:
                for view in rest:
                    view[:] = bytes(len(view))
                break
            got += more
        offset += wanted


def write_fully(fd: int, buffers: Sequence[memoryview], offset: int) -> None:
    """Write all of it."""
    for first in range(0, len(buffers), MAX_BUFFERS):
        some = buffers[first : first + MAX_BUFFERS]
        wanted = sum(map(len, some))
        done = os.pwritev(fd, some, offset)
        while done < wanted:
            done += os.pwritev(fd, _after(some, done), offset + done)
        offset += wanted


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Have the host begin to write a range to the medium, waiting for nothing but room in its queue.

    It promises nothing, so that an error is not told: a failure of the writing itself is what fdatasync reports.
    """
    _sync_file_range()(fd, offset, length, _SYNC_FILE_RANGE_WRITE)


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int]:
    """sync_file_range(2), which ``os`` has not; ctypes releases the GIL in the call."""
    import ctypes  # only who copies pays for the import

    call = ctypes.CDLL(None).sync_file_range
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


def _after(buffers: Sequence[memoryview], done: int) -> list[memoryview]:
    """What is left of ``buffers`` when their first ``done`` bytes are through."""
    rest = []
    for view in buffers:
        if done < len(view):
            rest.append(view[done:])
            done = 0
        else:
            done -= len(view)
    return rest
