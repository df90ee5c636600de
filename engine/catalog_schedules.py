"""The catalogue's tables of schedules and writable views; ``engine.catalog`` runs their transactions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from engine.retention import Retention

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

T = TypeVar("T")

SCHEDULE_SCHEMA = """
CREATE TABLE schedules (
    volume_id TEXT PRIMARY KEY, interval_s INTEGER NOT NULL, keep_last INTEGER NOT NULL, hourly INTEGER NOT NULL,
    daily INTEGER NOT NULL, weekly INTEGER NOT NULL, last_slot INTEGER NOT NULL);
CREATE TABLE views (volume_id TEXT PRIMARY KEY, expires_at REAL);
"""


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """When a volume is to have snapshots, and which of them stay.

    ``last_slot``: the slot (``engine.retention``) that the last one was taken in, or that it was set in.
    """

    volume_id: str
    interval_s: int
    retention: Retention
    last_slot: int


class _Run(Protocol):
    """``Catalog``'s way to run a transaction in its thread."""

    async def __call__(self, work: Callable[[sqlite3.Connection], T]) -> T: ...


class ScheduleTables:
    """``run`` runs one transaction in the catalogue's thread; each method is one, durable when it returns."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    async def all(self) -> list[ScheduleRow]:
        def work(database: sqlite3.Connection) -> list[ScheduleRow]:
            rows = database.execute("SELECT * FROM schedules ORDER BY volume_id")
            return [ScheduleRow(row[0], row[1], Retention(*row[2:6]), row[6]) for row in rows]

        return await self._run(work)

    async def put(self, row: ScheduleRow) -> None:
        keep = row.retention
        values = (row.volume_id, row.interval_s, keep.keep_last, keep.hourly, keep.daily, keep.weekly, row.last_slot)
        await self._run(
            lambda database: database.execute("INSERT OR REPLACE INTO schedules VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        )

    async def taken(self, volume_id: str, slot: int) -> None:
        """A schedule has had its turn in this slot."""
        await self._run(
            lambda database: database.execute(
                "UPDATE schedules SET last_slot = ? WHERE volume_id = ?", (slot, volume_id)
            )
        )

    async def remove(self, volume_id: str) -> bool:
        """Whether there was one."""
        return await self._run(
            lambda database: database.execute("DELETE FROM schedules WHERE volume_id = ?", (volume_id,)).rowcount > 0
        )

    async def views(self) -> dict[str, float | None]:
        """The writable views by volume id, and when each is to be discarded."""
        return await self._run(lambda database: dict(database.execute("SELECT volume_id, expires_at FROM views")))

    async def put_view(self, volume_id: str, expires_at: float | None) -> None:
        await self._run(
            lambda database: database.execute("INSERT OR REPLACE INTO views VALUES (?, ?)", (volume_id, expires_at))
        )


def forget_volumes(database: sqlite3.Connection, where: str, arguments: tuple[str, ...]) -> None:
    """Within a transaction: volumes are gone. ``where``: a condition on ``volume_id``."""
    for table in ("schedules", "views"):
        database.execute(f"DELETE FROM {table} WHERE volume_id {where}", arguments)
