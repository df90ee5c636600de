"""The catalogue's transactions of failing over between pools; ``engine.catalog`` runs them.

A volume with a mirror to a peer is the disk as long as it has no row in ``releases``: with one it has given the
identity away, or heard that another has it, and is not served. Each method is one transaction: before it a side is what
it was, after it what it is to be, whatever crashes.

In ``identities`` the id of a volume at a peer may have a row: then the disk that is shown here as a standby path is
that volume's.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from engine.catalog_identities import DEVICE_OF, lineage_of, put_lineage, put_mirror

if TYPE_CHECKING:
    import sqlite3

    from engine.catalog import MirrorRow
    from engine.catalog_groups import Run
    from engine.catalog_peers import PeerTargetRow
    from engine.lineage import LineageEntry


class FailoverTables:
    """See the module."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def releases(self) -> dict[str, tuple[int, str]]:
        """By volume id: the lineage entry that it gave its identity to."""
        query = "SELECT volume_id, number, guid FROM releases"
        return await self._run(lambda database: {row[0]: (row[1], row[2]) for row in database.execute(query)})

    async def release(self, volume_id: str, number: int, guid: str, at: float) -> None:
        """The volume has given its identity to that entry: from now on it is not served."""
        values = (volume_id, number, guid, at)
        await self._run(
            lambda database: database.execute("INSERT OR REPLACE INTO releases VALUES (?, ?, ?, ?)", values)
        )

    async def revoke(self, volume_id: str) -> None:
        """Nobody has taken it: the volume has it again."""
        await self._run(lambda database: database.execute("DELETE FROM releases WHERE volume_id = ?", (volume_id,)))

    async def go_on(self, volume_id: str, entry: LineageEntry) -> None:
        """The operator has said that this volume is the disk."""

        def work(database: sqlite3.Connection) -> None:
            lineage = lineage_of(database, volume_id)
            if lineage[-1].guid != entry.guid:
                put_lineage(database, volume_id, [*lineage, entry])
            database.execute("DELETE FROM releases WHERE volume_id = ?", (volume_id,))

        await self._run(work)

    async def take_over(
        self, replica: PeerTargetRow, source_id: str, device_id: str, lineage: list[LineageEntry], mirror: MirrorRow
    ) -> dict[str, str]:
        """A replica here becomes the disk that its source at a peer was; ``mirror`` is what it has to that from now on.

        Its standby paths become ways to itself. ``lineage``: with the new entry. Returns device ids by volume id.
        """

        def work(database: sqlite3.Connection) -> dict[str, str]:
            volume_id = replica.volume_id
            _give(database, device_id, volume_id, gone=source_id)
            put_lineage(database, volume_id, lineage)
            database.execute("DELETE FROM releases WHERE volume_id = ?", (volume_id,))
            database.execute("DELETE FROM access_states WHERE device_id = ?", (device_id,))
            database.execute(
                "UPDATE luns SET standby_of = NULL WHERE volume_id = ? AND standby_of IS NOT NULL", (volume_id,)
            )
            database.execute("DELETE FROM peer_targets WHERE replica_id = ?", (replica.replica_id,))
            put_mirror(database, mirror)
            return {volume_id: device_id}

        return await self._run(work)

    async def follow(
        self, mirror_name: str, replica: PeerTargetRow, source_id: str, lineage: list[LineageEntry]
    ) -> dict[str, str]:
        """A volume here becomes the replica of the one at a peer that has taken its place, ``source_id``.

        Ways to it become standby paths to that. It gets an identity of its own. Returns device ids by volume id.
        """

        def work(database: sqlite3.Connection) -> dict[str, str]:
            volume_id = replica.volume_id
            (device_id,) = database.execute(f"SELECT {DEVICE_OF}", (volume_id,)).fetchone()
            own = str(uuid.uuid4())
            _give(database, device_id, source_id, gone=volume_id)
            database.execute("INSERT INTO identities VALUES (?, ?)", (volume_id, own))
            put_lineage(database, volume_id, lineage)
            database.execute("DELETE FROM releases WHERE volume_id = ?", (volume_id,))
            database.execute("DELETE FROM access_states WHERE device_id = ?", (device_id,))
            database.execute(
                "UPDATE luns SET standby_of = ? WHERE volume_id = ? AND snapshot_guid IS NULL AND standby_of IS NULL",
                (source_id, volume_id),
            )
            database.execute("DELETE FROM mirrors WHERE name = ?", (mirror_name,))
            _put_target(database, replica)
            return {volume_id: own, source_id: device_id}

        return await self._run(work)

    async def names_device(self, volume_id: str, device_id: str) -> None:
        """The disk of that volume, at a peer, is known by this device id: for standby paths to it."""

        def work(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM identities WHERE volume_id = ?", (volume_id,))
            if device_id != volume_id:
                database.execute("INSERT OR IGNORE INTO identities VALUES (?, ?)", (volume_id, device_id))

        await self._run(work)


def _give(database: sqlite3.Connection, device_id: str, volume_id: str, *, gone: str) -> None:
    """That volume has the device id, and nobody else; ``gone`` has none on record."""
    database.execute("DELETE FROM identities WHERE device_id = ? OR volume_id IN (?, ?)", (device_id, volume_id, gone))
    if volume_id != device_id:
        database.execute("INSERT INTO identities VALUES (?, ?)", (volume_id, device_id))


def _put_target(database: sqlite3.Connection, row: PeerTargetRow) -> None:
    database.execute("INSERT OR REPLACE INTO peer_targets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row.values())
