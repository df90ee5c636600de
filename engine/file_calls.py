"""Reads and writes of a descriptor that are not over before all bytes are through; ``OSError`` as it comes.

Apart from ``engine.files`` so that the copying process (``engine.copy_worker``) has them without importing the rest.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_BUFFERS = 1024
"""IOV_MAX of Linux."""


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
