"""The catalogue's tables of identities and lineages; ``engine.catalog`` runs their transactions.

Initiators know a disk by its *device id*, from which ``engine.volume.Identity`` follows. It is its volume's own id, but
where a row here says otherwise: a promoted volume has that of the one that it was a replica of, which got another one
in the same transaction. So at no instant, whatever crashes, two volumes have one. Such a row outlives its volume: where
the file of one that gave its identity away comes back, the identity is still given away.

The *lineage* of a volume is a list of (number, GUID): its making, and each promotion (REPLICATION section 6). Equal
numbers with different GUIDs are diverged.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Protocol, TypeVar

from engine.lineage import LineageEntry

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from engine.catalog import MirrorRow

T = TypeVar("T")

IDENTITY_SCHEMA = """
CREATE TABLE identities (volume_id TEXT PRIMARY KEY, device_id TEXT NOT NULL UNIQUE);
CREATE TABLE lineages (
    volume_id TEXT NOT NULL, number INTEGER NOT NULL, guid TEXT NOT NULL, at REAL NOT NULL, point TEXT,
    lossless INTEGER NOT NULL, PRIMARY KEY (volume_id, number));
CREATE TABLE releases (
    volume_id TEXT PRIMARY KEY, number INTEGER NOT NULL, guid TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE ended_mirrors (name TEXT PRIMARY KEY);
"""

DEVICE_OF = "COALESCE((SELECT device_id FROM identities WHERE volume_id = ?1), ?1)"


class _Run(Protocol):
    """``Catalog``'s way to run a transaction in its thread."""

    async def __call__(self, work: Callable[[sqlite3.Connection], T]) -> T: ...


class IdentityTables:
    """``run`` runs one transaction in the catalogue's thread; each method is one, durable when it returns."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    async def all(self) -> dict[str, str]:
        """Device ids by volume id, of those volumes that have another than their own."""
        return await self._run(lambda database: dict(database.execute("SELECT volume_id, device_id FROM identities")))

    async def lineage(self, volume_id: str) -> list[LineageEntry]:
        """Oldest first; at least the volume's making."""
        return await self._run(lambda database: lineage_of(database, volume_id))

    async def released(self, volume_id: str) -> tuple[int, str] | None:
        """The lineage entry that a volume gave its identity to, if it did."""
        query = "SELECT number, guid FROM releases WHERE volume_id = ?"
        return await self._run(lambda database: database.execute(query, (volume_id,)).fetchone())

    async def promote(
        self,
        source_id: str,
        target_id: str,
        mirror: str,
        *,
        point: str,
        lossless: bool,
        at: float,
        goes_on: MirrorRow | None = None,
    ) -> dict[str, str]:
        """The target takes the place of the source: its identity and with it its reservations, its LUNs and schedule;
        its lineage and one entry more. The source has released them, and gets an identity of its own. The mirror
        goes on as that row, or is none any more, but for its recovery points (``ended_mirrors``). Returns the new
        device ids by volume id.
        """

        def work(database: sqlite3.Connection) -> dict[str, str]:
            (device_id,) = database.execute(f"SELECT {DEVICE_OF}", (source_id,)).fetchone()
            ids = {source_id: str(uuid.uuid4()), target_id: device_id}
            database.executemany("DELETE FROM identities WHERE volume_id = ?", [(each,) for each in ids])
            database.executemany("INSERT INTO identities VALUES (?, ?)", list(ids.items()))
            lineage = lineage_of(database, source_id)
            new = LineageEntry(lineage[-1].number + 1, str(uuid.uuid4()), at, point, lossless)
            put_lineage(database, source_id, lineage)
            put_lineage(database, target_id, [*lineage, new])
            released = (source_id, new.number, new.guid, at)
            database.execute("INSERT OR REPLACE INTO releases VALUES (?, ?, ?, ?)", released)
            database.execute("DELETE FROM releases WHERE volume_id = ?", (target_id,))
            _move_luns(database, source_id, target_id)
            database.execute("DELETE FROM schedules WHERE volume_id = ?", (target_id,))
            database.execute("UPDATE schedules SET volume_id = ? WHERE volume_id = ?", (target_id, source_id))
            if goes_on is not None:
                put_mirror(database, goes_on)
            else:
                database.execute("DELETE FROM mirrors WHERE name = ?", (mirror,))
                database.execute("INSERT OR REPLACE INTO ended_mirrors VALUES (?)", (mirror,))
            return ids

        return await self._run(work)

    async def ended_mirrors(self) -> list[str]:
        """Names of mirrors that are none any more, whose recovery points are still to be removed."""
        return await self._run(lambda database: [row[0] for row in database.execute("SELECT name FROM ended_mirrors")])

    async def forget_mirror(self, name: str) -> None:
        """Nothing is left of it."""
        await self._run(lambda database: database.execute("DELETE FROM ended_mirrors WHERE name = ?", (name,)))


def forget_reservations(database: sqlite3.Connection, volume_id: str) -> None:
    """Within a transaction: the reservations of a volume, by whatever identity, end with it."""
    database.execute(f"DELETE FROM reservations WHERE device_id = {DEVICE_OF}", (volume_id,))


def lineage_of(database: sqlite3.Connection, volume_id: str) -> list[LineageEntry]:
    query = "SELECT number, guid, at, point, lossless FROM lineages WHERE volume_id = ? ORDER BY number"
    rows = database.execute(query, (volume_id,)).fetchall()
    found = [LineageEntry(row[0], row[1], row[2], row[3], bool(row[4])) for row in rows]
    return found or [LineageEntry(1, volume_id, 0.0, None, lossless=True)]


def put_lineage(database: sqlite3.Connection, volume_id: str, lineage: list[LineageEntry]) -> None:
    database.execute("DELETE FROM lineages WHERE volume_id = ?", (volume_id,))
    rows = [(volume_id, each.number, each.guid, each.at, each.point, each.lossless) for each in lineage]
    database.executemany("INSERT INTO lineages VALUES (?, ?, ?, ?, ?, ?)", rows)


def put_mirror(database: sqlite3.Connection, row: MirrorRow) -> None:
    values = (row.name, row.source_id, row.target_id, row.mode, json.dumps(row.state), row.peer)
    columns = "name, source_id, target_id, mode, state, peer"
    database.execute(f"INSERT OR REPLACE INTO mirrors ({columns}) VALUES (?, ?, ?, ?, ?, ?)", values)


def _move_luns(database: sqlite3.Connection, source_id: str, target_id: str) -> None:
    """Those that showed the source show the target, and so do the standby paths that it was."""
    database.execute(
        "UPDATE luns SET volume_id = ? WHERE volume_id = ? AND snapshot_guid IS NULL AND standby_of IS NULL",
        (target_id, source_id),
    )
    database.execute("UPDATE luns SET standby_of = NULL WHERE volume_id = ? AND standby_of = ?", (target_id, source_id))
