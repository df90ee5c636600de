"""The catalogue's tables of scrubs; ``engine.catalog`` runs their transactions.

``scrubs``: of each volume that has one, the record of its last run and its policy, as ``engine.integrity`` writes it.
``scrub_ranges``: when each range of a volume was last gone through, and by which run: so a run that was interrupted
goes on where it was, whatever the clock does.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3

    from engine.catalog_groups import Run

SCRUB_SCHEMA = """
CREATE TABLE scrubs (volume_id TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE scrub_ranges (
    volume_id TEXT NOT NULL, number INTEGER NOT NULL, run INTEGER NOT NULL, verified_at REAL NOT NULL,
    PRIMARY KEY (volume_id, number));
"""


class ScrubTables:
    """See the module."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def records(self) -> dict[str, dict[str, Any]]:
        """By volume id."""

        def work(database: sqlite3.Connection) -> dict[str, dict[str, Any]]:
            rows = database.execute("SELECT volume_id, record FROM scrubs")
            return {volume_id: json.loads(record) for volume_id, record in rows}

        return await self._run(work)

    async def put(self, volume_id: str, record: dict[str, Any]) -> None:
        text = json.dumps(record)
        await self._run(
            lambda database: database.execute("INSERT OR REPLACE INTO scrubs VALUES (?, ?)", (volume_id, text))
        )

    async def ranges(self) -> dict[str, dict[int, tuple[int, float]]]:
        """(run, time) of each range that was gone through, by its number, by volume id."""

        def work(database: sqlite3.Connection) -> dict[str, dict[int, tuple[int, float]]]:
            found: dict[str, dict[int, tuple[int, float]]] = {}
            for volume_id, number, run, verified_at in database.execute("SELECT * FROM scrub_ranges"):
                found.setdefault(volume_id, {})[number] = (run, verified_at)
            return found

        return await self._run(work)

    async def range_done(self, volume_id: str, number: int, run: int, at: float, record: dict[str, Any]) -> None:
        """A range was gone through; the run's record with it."""
        text = json.dumps(record)

        def work(database: sqlite3.Connection) -> None:
            row = (volume_id, number, run, at)
            database.execute("INSERT OR REPLACE INTO scrub_ranges VALUES (?, ?, ?, ?)", row)
            database.execute("INSERT OR REPLACE INTO scrubs VALUES (?, ?)", (volume_id, text))

        await self._run(work)

    async def forget_ranges(self, volume_id: str) -> None:
        """Ranges of another size are used from now on."""
        await self._run(lambda database: database.execute("DELETE FROM scrub_ranges WHERE volume_id = ?", (volume_id,)))


def forget_scrubs(database: sqlite3.Connection, gone: str, value: str) -> None:
    """Volumes are gone: ``gone`` is what stands behind ``volume_id`` in the condition, with one parameter."""
    for table in ("scrub_ranges", "scrubs"):
        database.execute(f"DELETE FROM {table} WHERE volume_id {gone}", (value,))
