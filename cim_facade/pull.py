"""Open enumerations (DSP0200 5.3.2.24): results that a client pulls a piece at a time.

An enumeration is the generator that makes the results, stopped where the client stopped: what it holds is what its
``View`` has seen, not the results. It ends when all was pulled, when it is closed, or when nothing was asked of it for
its timeout. It belongs to the user who opened it. There are at most ``MAX_OPEN``, of one user ``MAX_OPEN_PER_USER``.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any

from pywbem import (
    CIM_ERR_INVALID_ENUMERATION_CONTEXT,
    CIM_ERR_INVALID_OPERATION_TIMEOUT,
    CIM_ERR_SERVER_LIMITS_EXCEEDED,
    CIMError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

MAX_OPEN = 128
MAX_OPEN_PER_USER = 32
MAX_OBJECTS = 1000
"""In one answer, whatever more a client asks for: it may always get fewer (DSP0200 5.3.2.24.4)."""

DEFAULT_TIMEOUT_S = 60
MAX_TIMEOUT_S = 3600


class Enumeration:
    """``kind``: what it yields, paths or instances. Made by ``Enumerations.open``."""

    def __init__(self, owner: tuple[str, str], kind: str, items: AsyncGenerator[Any, None], timeout_s: int) -> None:
        self.owner = owner
        self.kind = kind
        self.timeout_s = timeout_s
        self.context = secrets.token_urlsafe(18)
        self.timer: asyncio.TimerHandle | None = None
        self.busy = asyncio.Lock()  # two pulls at once are answered one after the other
        self._items = items
        self._ahead: list[Any] = []

    async def take(self, most: int) -> tuple[list[Any], bool]:
        """Up to so many, and whether that was all."""
        taken, self._ahead = self._ahead[:most], self._ahead[most:]
        async for item in _some(self._items, most + 1 - len(taken) - len(self._ahead)):
            (taken if len(taken) < most else self._ahead).append(item)
        return taken, not self._ahead

    async def close(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        await self._items.aclose()


async def _some(items: AsyncGenerator[Any, None], most: int) -> AsyncGenerator[Any, None]:
    """The next so many; ``items`` can be gone on with later."""
    for _ in range(most):
        try:
            yield await anext(items)
        except StopAsyncIteration:
            return


class Enumerations:
    """All that are open. See the module."""

    def __init__(self) -> None:
        self._open: dict[str, Enumeration] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._open)

    async def open(
        self, owner: tuple[str, str], kind: str, items: AsyncGenerator[Any, None], timeout_s: int | None, most: int
    ) -> tuple[list[Any], str | None]:
        """The first ``most`` items, and the context for the next ones; None: that was all.

        ``owner``: the user's name and the namespace. What ``items`` raises before the first item is raised here.
        """
        timeout_s = DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise CIMError(CIM_ERR_INVALID_OPERATION_TIMEOUT, f"OperationTimeout is 1 to {MAX_TIMEOUT_S} seconds")
        mine = sum(each.owner[0] == owner[0] for each in self._open.values())
        if len(self._open) >= MAX_OPEN or mine >= MAX_OPEN_PER_USER:
            raise CIMError(CIM_ERR_SERVER_LIMITS_EXCEEDED, f"{mine} enumerations are open; close them")
        opened = Enumeration(owner, kind, items, timeout_s)
        self._open[opened.context] = opened  # counts from here on, but nobody knows its context yet
        return await self._take(opened, most)

    async def pull(self, owner: tuple[str, str], kind: str, context: str, most: int) -> tuple[list[Any], str | None]:
        """The next ``most`` items; None for a context: that was all."""
        return await self._take(self._find(owner, context, kind), most)

    async def close(self, owner: tuple[str, str], context: str) -> None:
        """End an enumeration before its end."""
        await self._end(self._find(owner, context, None))

    async def close_all(self) -> None:
        for each in list(self._open.values()):
            await self._end(each)
        if self._closing:
            await asyncio.wait(self._closing)

    def _find(self, owner: tuple[str, str], context: str, kind: str | None) -> Enumeration:
        found = self._open.get(context)
        if found is None or found.owner != owner or kind not in (None, found.kind):
            raise CIMError(
                CIM_ERR_INVALID_ENUMERATION_CONTEXT,
                "there is no such enumeration: it has ended, has expired, or was opened otherwise",
            )
        return found

    async def _take(self, each: Enumeration, most: int) -> tuple[list[Any], str | None]:
        async with each.busy:
            if each.timer is not None:
                each.timer.cancel()
            if self._open.get(each.context) is not each:
                raise CIMError(CIM_ERR_INVALID_ENUMERATION_CONTEXT, "the enumeration has ended")
            done = True  # an error ends it, too
            try:
                items, done = await each.take(min(most, MAX_OBJECTS))
            finally:
                if done:
                    del self._open[each.context]
                    await each.close()
                else:
                    loop = asyncio.get_running_loop()
                    each.timer = loop.call_later(each.timeout_s, self._expire, each)
        return items, None if done else each.context

    async def _end(self, each: Enumeration) -> None:
        async with each.busy:
            if self._open.pop(each.context, None) is not None:
                await each.close()

    def _expire(self, each: Enumeration) -> None:
        task = asyncio.get_running_loop().create_task(self._end(each))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
