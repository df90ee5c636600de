"""Changes for watchers, and kept records, in the data process: a part of ``engine.local_api.LocalApi``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.api import CHANGE_PAGE, RECORD_BYTES_MAX, RECORDS_MAX
from engine.api_part import ApiPart
from engine.errors import InvalidArgument

if TYPE_CHECKING:
    from engine.api import ChangePage
    from engine.changes import Changes

NAME_MAX = 1024


class ChangeOperations(ApiPart):
    """See the module."""

    _changes: Changes

    async def restore_changes(self) -> None:
        """To be called once everything else is restored: what has changed over the restart is told."""
        await self._changes.restore()

    async def close_changes(self) -> None:
        """Record what is noted; to be called when nothing changes any more."""
        await self._changes.close()

    async def change_watch(self, watcher: str) -> int:
        return await self._changes.watch(_checked("watcher", watcher))

    async def change_unwatch(self, watcher: str) -> None:
        await self._changes.unwatch(watcher)

    async def change_list(self, after: int, *, limit: int = CHANGE_PAGE, timeout_s: float = 0.0) -> ChangePage:
        return await self._changes.page(after, limit, timeout_s)

    async def change_done(self, watcher: str, position: int) -> None:
        await self._changes.done(watcher, position)

    async def record_list(self, kind: str) -> dict[str, str]:
        return await self._pool.catalog.changes.records(kind)

    async def record_put(self, kind: str, documents: dict[str, str | None]) -> None:
        _checked("kind", kind)
        for name, text in documents.items():
            _checked("name", name)
            if text is not None and len(text.encode()) > RECORD_BYTES_MAX:
                raise InvalidArgument(f"record {name} is longer than {RECORD_BYTES_MAX} bytes")
        if not await self._pool.catalog.changes.put_records(kind, documents, RECORDS_MAX):
            raise InvalidArgument(f"there are {RECORDS_MAX} records of kind {kind} already")


def _checked(what: str, name: str) -> str:
    if not 0 < len(name) <= NAME_MAX or not name.isprintable():
        raise InvalidArgument(f"a {what} is 1-{NAME_MAX} printable characters")
    return name
