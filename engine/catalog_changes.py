"""The catalogue's tables of changes that somebody watches, and of records that are kept for the management process;
``engine.catalog`` runs their transactions.

``changes`` has what has happened, numbered without gaps as long as nothing is deleted; ``watchers`` how far each has
dealt with it; ``told`` the last state that was told of what changes again and again, so that after a restart what has
changed meanwhile can be told. ``kept_records`` are documents whose content is their owner's business.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

T = TypeVar("T")

CHANGE_HISTORY_MAX = 10_000
"""Changes kept; the oldest go first, whether somebody still wants them or not."""

CHANGE_SCHEMA = """
CREATE TABLE changes (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL, verb TEXT NOT NULL,
    subject TEXT NOT NULL, before TEXT, after TEXT);
CREATE TABLE watchers (name TEXT PRIMARY KEY, position INTEGER NOT NULL);
CREATE TABLE told (kind TEXT NOT NULL, subject TEXT NOT NULL, document TEXT NOT NULL, PRIMARY KEY (kind, subject));
CREATE TABLE kept_records (
    kind TEXT NOT NULL, name TEXT NOT NULL, document TEXT NOT NULL, PRIMARY KEY (kind, name));
"""

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """``number`` 0: not recorded yet. ``verb``: created, modified or deleted."""

    number: int
    at: float
    kind: str
    verb: str
    subject: str
    before: Document | None
    after: Document | None


@dataclass(frozen=True, slots=True)
class Told:
    """What was told last of something; ``document`` None: nothing is to be remembered of it any more."""

    kind: str
    subject: str
    document: Document | None


class _Run(Protocol):
    """``Catalog``'s way to run a transaction in its thread."""

    async def __call__(self, work: Callable[[sqlite3.Connection], T]) -> T: ...


class ChangeTables:
    """``run`` runs one transaction in the catalogue's thread; each method is one, durable when it returns."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    # --- changes ----------------------------------------------------------------------------------------------

    async def add(self, rows: Sequence[ChangeRow], told: Sequence[Told]) -> int:
        """Record changes in their order; the number of the last one."""
        values = [(row.at, row.kind, row.verb, row.subject, _text(row.before), _text(row.after)) for row in rows]
        gone = [(each.kind, each.subject) for each in told if each.document is None]
        kept = [(each.kind, each.subject, _text(each.document)) for each in told if each.document is not None]

        def work(database: sqlite3.Connection) -> int:
            database.executemany(
                "INSERT INTO changes (at, kind, verb, subject, before, after) VALUES (?, ?, ?, ?, ?, ?)", values
            )
            database.executemany("DELETE FROM told WHERE kind = ? AND subject = ?", gone)
            database.executemany("INSERT OR REPLACE INTO told VALUES (?, ?, ?)", kept)
            newest = _newest(database)
            database.execute("DELETE FROM changes WHERE number <= ?", (newest - CHANGE_HISTORY_MAX,))
            return newest

        return await self._run(work)

    async def newest(self) -> int:
        """The number of the last change that there ever was; 0: there was none."""
        return await self._run(_newest)

    async def after(self, number: int, limit: int) -> list[ChangeRow]:
        """The first ``limit`` of those behind ``number``, in their order."""

        def work(database: sqlite3.Connection) -> list[ChangeRow]:
            rows = database.execute("SELECT * FROM changes WHERE number > ? ORDER BY number LIMIT ?", (number, limit))
            return [ChangeRow(n, at, k, v, s, _document(b), _document(a)) for n, at, k, v, s, b, a in rows]

        return await self._run(work)

    async def told(self) -> list[Told]:
        return await self._run(
            lambda database: [
                Told(kind, subject, json.loads(text))
                for kind, subject, text in database.execute("SELECT kind, subject, document FROM told")
            ]
        )

    # --- watchers ---------------------------------------------------------------------------------------------

    async def watchers(self) -> dict[str, int]:
        """Positions by name."""
        return await self._run(lambda database: dict(database.execute("SELECT name, position FROM watchers")))

    async def put_watcher(self, name: str, position: int) -> None:
        """It has dealt with everything up to ``position``; what nobody wants any more goes."""

        def work(database: sqlite3.Connection) -> None:
            database.execute("INSERT OR REPLACE INTO watchers VALUES (?, ?)", (name, position))
            database.execute("DELETE FROM changes WHERE number <= (SELECT min(position) FROM watchers)")

        await self._run(work)

    async def remove_watcher(self, name: str) -> None:
        def work(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM watchers WHERE name = ?", (name,))
            if database.execute("SELECT count(*) FROM watchers").fetchone()[0] == 0:
                database.execute("DELETE FROM changes")
                database.execute("DELETE FROM told")

        await self._run(work)

    # --- kept records -----------------------------------------------------------------------------------------

    async def records(self, kind: str) -> dict[str, str]:
        """Documents by name, as texts."""
        query = "SELECT name, document FROM kept_records WHERE kind = ? ORDER BY name"
        return await self._run(lambda database: dict(database.execute(query, (kind,))))

    async def put_records(self, kind: str, documents: dict[str, str | None], most: int) -> bool:
        """Replace these documents; None: it goes. False: there would be more than ``most``, and nothing is changed."""

        def work(database: sqlite3.Connection) -> bool:
            names = [(kind, name) for name in documents]
            database.executemany("DELETE FROM kept_records WHERE kind = ? AND name = ?", names)
            added = [(kind, name, text) for name, text in documents.items() if text is not None]
            query = "SELECT count(*) FROM kept_records WHERE kind = ?"
            if added and database.execute(query, (kind,)).fetchone()[0] + len(added) > most:
                database.rollback()
                return False
            database.executemany("INSERT INTO kept_records VALUES (?, ?, ?)", added)
            return True

        return await self._run(work)


def _newest(database: sqlite3.Connection) -> int:
    row = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'changes'").fetchone()
    return 0 if row is None else int(row[0])


def _text(document: Document | None) -> str | None:
    return None if document is None else json.dumps(document)


def _document(text: str | None) -> Document | None:
    return None if text is None else dict(json.loads(text))
