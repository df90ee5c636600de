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
from engine.catalog_mirror_groups import put_group_point, put_mirror_group

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from engine.catalog import MirrorRow
    from engine.catalog_groups import Run
    from engine.catalog_mirror_groups import MirrorGroupRow
    from engine.catalog_peers import PeerTargetRow
    from engine.failover_facts import SourceFacts
    from engine.failover_units import NewTarget
    from engine.lineage import LineageEntry

    Taken = tuple[PeerTargetRow, SourceFacts, list[LineageEntry], MirrorRow]


class FailoverTables:
    """See the module."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def releases(self) -> dict[str, tuple[int, str]]:
        """By volume id: the lineage entry that it gave its identity to."""
        query = "SELECT volume_id, number, guid FROM releases"
        return await self._run(lambda database: {row[0]: (row[1], row[2]) for row in database.execute(query)})

    async def release(self, volume_ids: Sequence[str], number: int, guid: str, at: float) -> None:
        """The volumes have given their identities to that entry: from now on they are not served."""
        values = [(volume_id, number, guid, at) for volume_id in volume_ids]
        await self._run(
            lambda database: database.executemany("INSERT OR REPLACE INTO releases VALUES (?, ?, ?, ?)", values)
        )

    async def revoke(self, volume_ids: Sequence[str]) -> None:
        """Nobody has taken them: the volumes have them again."""
        values = [(volume_id,) for volume_id in volume_ids]
        await self._run(lambda database: database.executemany("DELETE FROM releases WHERE volume_id = ?", values))

    async def go_on(self, volume_ids: Sequence[str], entry: LineageEntry) -> None:
        """The operator has said that these volumes are the disks."""

        def work(database: sqlite3.Connection) -> None:
            for volume_id in volume_ids:
                lineage = lineage_of(database, volume_id)
                if lineage[-1].guid != entry.guid:
                    put_lineage(database, volume_id, [*lineage, entry])
                database.execute("DELETE FROM releases WHERE volume_id = ?", (volume_id,))

        await self._run(work)

    async def take_over(self, sides: Sequence[Taken], *, group: MirrorGroupRow | None = None) -> dict[str, str]:
        """Replicas here become the disks that their sources at a peer were. Of each: its row, what its source has told,
        its lineage with the new entry, and what it has to the peer from now on. ``group``: they are one mirrored group.

        Standby paths become ways to themselves. Returns device ids by volume id.
        """

        def work(database: sqlite3.Connection) -> dict[str, str]:
            ids: dict[str, str] = {}
            for replica, facts, lineage, mirror in sides:
                _take_over(database, replica, facts, lineage)
                put_mirror(database, mirror)
                ids[replica.volume_id] = facts.device_id
            if group is not None:
                database.execute("DELETE FROM mirror_group_points WHERE group_id = ?", (group.group_id,))
                put_mirror_group(database, group)
            return ids

        return await self._run(work)

    async def follow(
        self,
        mirrors: Sequence[MirrorRow],
        target: NewTarget,
        source_ids: Sequence[str],
        lineages: dict[str, list[LineageEntry]],
        *,
        group: MirrorGroupRow | None = None,
    ) -> dict[str, str]:
        """Volumes here become the replicas of those at a peer that have taken their place, ``source_ids``; ``group``:
        they were one mirrored group.

        Ways to them become standby paths to those. They get identities of their own. Returns device ids by volume id.
        """

        def work(database: sqlite3.Connection) -> dict[str, str]:
            ids: dict[str, str] = {}
            for mirror, replica, source_id in zip(mirrors, target.rows, source_ids, strict=True):
                ids |= _follow(database, replica, source_id, lineages[replica.volume_id])
                database.execute("DELETE FROM mirrors WHERE name = ?", (mirror.name,))
                _put_target(database, replica)
            if group is not None:
                database.execute("DELETE FROM mirror_groups WHERE name = ?", (group.name,))
            if target.point is not None:
                put_group_point(database, target.point)
            return ids

        return await self._run(work)

    async def names_device(self, volume_id: str, device_id: str) -> None:
        """The disk of that volume, at a peer, is known by this device id: for standby paths to it."""

        def work(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM identities WHERE volume_id = ?", (volume_id,))
            if device_id != volume_id:
                database.execute("INSERT OR IGNORE INTO identities VALUES (?, ?)", (volume_id, device_id))

        await self._run(work)


def _take_over(
    database: sqlite3.Connection, replica: PeerTargetRow, facts: SourceFacts, lineage: list[LineageEntry]
) -> None:
    volume_id = replica.volume_id
    _give(database, facts.device_id, volume_id, gone=facts.volume_id)
    put_lineage(database, volume_id, lineage)
    database.execute("DELETE FROM releases WHERE volume_id = ?", (volume_id,))
    database.execute("DELETE FROM access_states WHERE device_id = ?", (facts.device_id,))
    database.execute("UPDATE luns SET standby_of = NULL WHERE volume_id = ? AND standby_of IS NOT NULL", (volume_id,))
    database.execute("DELETE FROM peer_targets WHERE replica_id = ?", (replica.replica_id,))


def _follow(
    database: sqlite3.Connection, replica: PeerTargetRow, source_id: str, lineage: list[LineageEntry]
) -> dict[str, str]:
    volume_id, own = replica.volume_id, str(uuid.uuid4())
    (device_id,) = database.execute(f"SELECT {DEVICE_OF}", (volume_id,)).fetchone()
    _give(database, device_id, source_id, gone=volume_id)
    database.execute("INSERT INTO identities VALUES (?, ?)", (volume_id, own))
    put_lineage(database, volume_id, lineage)
    database.execute("DELETE FROM releases WHERE volume_id = ?", (volume_id,))
    database.execute("DELETE FROM access_states WHERE device_id = ?", (device_id,))
    database.execute(
        "UPDATE luns SET standby_of = ? WHERE volume_id = ? AND snapshot_guid IS NULL AND standby_of IS NULL",
        (source_id, volume_id),
    )
    return {volume_id: own, source_id: device_id}


def _give(database: sqlite3.Connection, device_id: str, volume_id: str, *, gone: str) -> None:
    """That volume has the device id, and nobody else; ``gone`` has none on record."""
    database.execute("DELETE FROM identities WHERE device_id = ? OR volume_id IN (?, ?)", (device_id, volume_id, gone))
    if volume_id != device_id:
        database.execute("INSERT INTO identities VALUES (?, ?)", (volume_id, device_id))


def _put_target(database: sqlite3.Connection, row: PeerTargetRow) -> None:
    database.execute("INSERT OR REPLACE INTO peer_targets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row.values())
