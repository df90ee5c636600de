"""The catalogue's tables of the pool's own identity and of known initiators; ``engine.catalog`` runs their
transactions."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

T = TypeVar("T")

INVENTORY_SCHEMA = """
CREATE TABLE pool (one INTEGER PRIMARY KEY CHECK (one = 1), pool_id TEXT NOT NULL);
CREATE TABLE initiators (name TEXT PRIMARY KEY, label TEXT NOT NULL);
"""


class _Run(Protocol):
    """``Catalog``'s way to run a transaction in its thread."""

    async def __call__(self, work: Callable[[sqlite3.Connection], T]) -> T: ...


class InventoryTables:
    """``run`` runs one transaction in the catalogue's thread; each method is one, durable when it returns."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    async def pool_id(self) -> str:
        """The pool's UUID; made when it is first asked for."""

        def work(database: sqlite3.Connection) -> str:
            database.execute("INSERT OR IGNORE INTO pool VALUES (1, ?)", (str(uuid.uuid4()),))
            (pool_id,) = database.execute("SELECT pool_id FROM pool").fetchone()
            return str(pool_id)

        return await self._run(work)

    async def initiators(self) -> dict[str, str]:
        """Labels by name, in the order of names."""
        return await self._run(lambda database: dict(database.execute("SELECT * FROM initiators ORDER BY name")))

    async def add_initiator(self, name: str, label: str) -> bool:
        """Whether it was not there yet."""
        return await self._run(
            lambda database: bool(
                database.execute("INSERT OR IGNORE INTO initiators VALUES (?, ?)", (name, label)).rowcount
            )
        )

    async def remove_initiator(self, name: str) -> bool:
        """Whether it was there."""
        query = "DELETE FROM initiators WHERE name = ?"
        return await self._run(lambda database: bool(database.execute(query, (name,)).rowcount))
