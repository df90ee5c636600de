"""The catalogue's tables of relations, of free texts and of orders in progress; ``engine.catalog`` runs their
transactions.

``copy_orders`` has what a job that makes several copies is to make, from before its first step until it is over: after
a crash the job goes on, or takes back what it has made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

T = TypeVar("T")

RELATION_SCHEMA = """
CREATE TABLE element_names (guid TEXT PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE clone_relations (
    target_id TEXT PRIMARY KEY, source_id TEXT NOT NULL, kind TEXT NOT NULL, established_at REAL NOT NULL,
    source_guid TEXT);
CREATE TABLE group_relations (guid TEXT PRIMARY KEY, document TEXT NOT NULL);
CREATE TABLE copy_orders (job INTEGER PRIMARY KEY, document TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class CloneRow:
    """A full clone that is still related to its source. ``kind``: clone or token. ``source_guid``: of a snapshot."""

    target_id: str
    source_id: str
    kind: str
    established_at: float
    source_guid: str | None = None


class _Run(Protocol):
    """``Catalog``'s way to run a transaction in its thread."""

    async def __call__(self, work: Callable[[sqlite3.Connection], T]) -> T: ...


class RelationTables:
    """``run`` runs one transaction in the catalogue's thread; each method is one, durable when it returns."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    async def element_names(self) -> dict[str, str]:
        return await self._run(lambda database: dict(database.execute("SELECT guid, name FROM element_names")))

    async def put_element_name(self, guid: str, name: str | None) -> None:
        def work(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM element_names WHERE guid = ?", (guid,))
            if name is not None:
                database.execute("INSERT INTO element_names VALUES (?, ?)", (guid, name))

        await self._run(work)

    async def clones(self) -> list[CloneRow]:
        """Oldest first."""
        query = "SELECT target_id, source_id, kind, established_at, source_guid FROM clone_relations ORDER BY rowid"
        return await self._run(lambda database: [CloneRow(*row) for row in database.execute(query)])

    async def put_clone(self, row: CloneRow) -> None:
        values = (row.target_id, row.source_id, row.kind, row.established_at, row.source_guid)
        await self._run(
            lambda database: database.execute("INSERT OR REPLACE INTO clone_relations VALUES (?, ?, ?, ?, ?)", values)
        )

    async def remove_clone(self, target_id: str) -> None:
        query = "DELETE FROM clone_relations WHERE target_id = ?"
        await self._run(lambda database: database.execute(query, (target_id,)))

    async def groups(self) -> dict[str, dict[str, Any]]:
        """Documents by GUID, oldest first."""
        query = "SELECT guid, document FROM group_relations ORDER BY rowid"
        return await self._run(lambda db: {guid: json.loads(text) for guid, text in db.execute(query)})

    async def put_group(self, guid: str, document: dict[str, Any]) -> None:
        query = "INSERT OR REPLACE INTO group_relations VALUES (?, ?)"
        await self._run(lambda database: database.execute(query, (guid, json.dumps(document))))

    async def remove_group(self, guid: str) -> None:
        await self._run(lambda database: database.execute("DELETE FROM group_relations WHERE guid = ?", (guid,)))

    async def orders(self) -> dict[int, dict[str, Any]]:
        """What is to be made, by the number of the job, oldest first."""
        query = "SELECT job, document FROM copy_orders ORDER BY job"
        return await self._run(lambda db: {job: json.loads(text) for job, text in db.execute(query)})

    async def put_order(self, job: int, document: dict[str, Any]) -> None:
        query = "INSERT OR REPLACE INTO copy_orders VALUES (?, ?)"
        await self._run(lambda database: database.execute(query, (job, json.dumps(document))))

    async def remove_order(self, job: int) -> None:
        await self._run(lambda database: database.execute("DELETE FROM copy_orders WHERE job = ?", (job,)))
