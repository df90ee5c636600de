"""Work beside the loop that takes longer than a request may hold it: reading big requests, and writing classes.

Each has one thread, and no more: Python runs one thread at a time, and at each hand-over the loop would wait for all
others. With four threads that read 2 MiB each, an answer of 5 ms took seconds. They are two so that a class is not
waited for behind what somebody else has sent.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Aside:
    """See the module."""

    def __init__(self) -> None:
        self._reading = ThreadPoolExecutor(1, "cim-reading")
        self._writing = ThreadPoolExecutor(1, "cim-writing")

    async def read(self, function: Callable[..., T], *arguments: object) -> T:
        """Call it in the thread that reads requests."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, function, *arguments)

    async def write(self, function: Callable[..., T], *arguments: object) -> T:
        """Call it in the thread that writes classes."""
        return await asyncio.get_running_loop().run_in_executor(self._writing, function, *arguments)

    def close(self) -> None:
        """Begin nothing more; what runs is not waited for."""
        for each in (self._reading, self._writing):
            each.shutdown(wait=False, cancel_futures=True)
