"""The engine's changes in their order, as indications: read once for everybody, and in pages for who is behind."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from pywbem import CIMError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cim_facade.indications.events import Event, Events
    from engine.api import ChangeInfo, EngineApi

log = logging.getLogger(__name__)

PAGE = 32
WAIT_S = 50.0
FOR_EVER = (1 << 62) - 1
"""Behind every number."""


class Entry(NamedTuple):
    """What came of the change with this number. ``lost``: so many before it are not known."""

    number: int
    events: tuple[Event, ...]
    lost: int = 0


class Feed:
    """See the module. ``newest``: the number of the last change that ``entries`` has given; ``heard``: of the last one
    that its reader is through with, which takes several turns of the loop."""

    def __init__(self, api: EngineApi, events: Events) -> None:
        self._api = api
        self._events = events
        self.newest = self.heard = 0

    async def now(self) -> int:
        """The number of the last change that there is."""
        return (await self._api.change_list(FOR_EVER)).newest

    async def entries(self) -> AsyncIterator[Entry]:
        """Those behind ``newest``, as they come, for ever."""
        while True:
            page = await self._api.change_list(self.newest, limit=PAGE, timeout_s=WAIT_S)
            for change in page.changes:
                entry = await self._entry(change, self.newest)
                self.newest = change.number
                yield entry
                self.heard = change.number

    async def page(self, position: int) -> list[Entry]:
        """The next ones behind ``position``."""
        found = []
        for change in (await self._api.change_list(position, limit=PAGE)).changes:
            found.append(await self._entry(change, position))
            position = change.number
        return found

    async def _entry(self, change: ChangeInfo, before: int) -> Entry:
        lost = change.number - before - 1
        if change.kind == "lost":
            return Entry(change.number, (), lost + int((change.after or {}).get("count", 1)))
        try:
            return Entry(change.number, tuple(await self._events.of(change)), lost)
        except CIMError as error:
            log.error("change %d cannot be told: %s", change.number, error)
            return Entry(change.number, (), lost + 1)
