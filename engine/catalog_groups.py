"""The catalogue's tables of consistency groups; ``engine.catalog`` runs their transactions.

Whether a group operation happened is decided here and nowhere else (STORE section 4, ``engine.group_instant``): each
method is one transaction, durable when it returns, and exactly one of them is the commit of each kind of operation.

* ``group_points`` are the snapshots of a group snapshot, one of each member. While a file still has to lose its one
  after a deletion, the group snapshot stays as *doomed*: nobody sees it.
* ``group_rollbacks``: volumes that are to become one of their snapshots before anybody may write to them, and the
  snapshot that has what they held.
* ``group_clones``: volumes that are being made for a group and do not belong to anybody before it exists.
"""

from __future__ import annotations

import sqlite3
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from engine.errors import AlreadyExists

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

GROUP_SCHEMA = """
CREATE TABLE groups (name TEXT PRIMARY KEY, created_at REAL NOT NULL, guid TEXT NOT NULL UNIQUE);
CREATE TABLE group_members (
    name TEXT NOT NULL REFERENCES groups(name) ON DELETE CASCADE, volume_id TEXT NOT NULL,
    PRIMARY KEY (name, volume_id));
CREATE TABLE group_snapshots (
    guid TEXT PRIMARY KEY, group_name TEXT NOT NULL, name TEXT NOT NULL, created_at REAL NOT NULL,
    doomed INTEGER NOT NULL);
CREATE TABLE group_points (
    snapshot TEXT NOT NULL REFERENCES group_snapshots(guid) ON DELETE CASCADE, volume_id TEXT NOT NULL,
    guid TEXT NOT NULL UNIQUE, PRIMARY KEY (snapshot, volume_id));
CREATE TABLE group_rollbacks (volume_id TEXT PRIMARY KEY, guid TEXT NOT NULL, kept TEXT NOT NULL);
CREATE TABLE group_clones (volume_id TEXT PRIMARY KEY, source_id TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A group. ``members``: volume ids, in the order in which they came. ``guid``: of no other group, ever."""

    name: str
    created_at: float
    members: tuple[str, ...]
    guid: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass(frozen=True, slots=True)
class Point:
    """The snapshot ``guid`` of a volume."""

    volume_id: str
    guid: str


@dataclass(frozen=True, slots=True)
class GroupSnapshotRow:
    """A group snapshot. ``doomed``: it was deleted; ``points`` are those that still have to go."""

    guid: str
    group: str
    name: str
    created_at: float
    points: tuple[Point, ...]
    doomed: bool = False


@dataclass(frozen=True, slots=True)
class RollbackRow:
    """A volume that is to become its snapshot ``guid``; ``kept``: the one of it that was taken right before."""

    volume_id: str
    guid: str
    kept: str


@dataclass(frozen=True, slots=True)
class GroupCloneRow:
    """A volume that is being made, as a linked clone of ``source_id``."""

    volume_id: str
    source_id: str


class Run(Protocol):
    """How the catalogue runs a transaction."""

    async def __call__(self, work: Callable[[sqlite3.Connection], T], /) -> T: ...


class GroupTables:
    """See the module."""

    def __init__(self, run: Run) -> None:
        self._run = run

    # --- groups -----------------------------------------------------------------------------------------------

    async def groups(self) -> list[GroupRow]:
        """By name."""

        def work(database: sqlite3.Connection) -> list[GroupRow]:
            members: dict[str, list[str]] = {}
            for name, volume_id in database.execute("SELECT name, volume_id FROM group_members ORDER BY rowid"):
                members.setdefault(name, []).append(volume_id)
            rows = database.execute("SELECT name, created_at, guid FROM groups ORDER BY name")
            return [GroupRow(name, created_at, tuple(members.get(name, ())), guid) for name, created_at, guid in rows]

        return await self._run(work)

    async def add_group(self, row: GroupRow) -> None:
        """A group with its members; those of them that were being made for it are whole now. Raises AlreadyExists."""

        def work(database: sqlite3.Connection) -> None:
            try:
                database.execute("INSERT INTO groups VALUES (?, ?, ?)", (row.name, row.created_at, row.guid))
            except sqlite3.IntegrityError as error:
                raise AlreadyExists("group", row.name) from error
            _insert_members(database, row)
            database.executemany("DELETE FROM group_clones WHERE volume_id = ?", [(each,) for each in row.members])

        await self._run(work)

    async def set_members(self, row: GroupRow) -> None:
        def work(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM group_members WHERE name = ?", (row.name,))
            _insert_members(database, row)

        await self._run(work)

    async def remove_group(self, name: str) -> None:
        await self._run(lambda database: database.execute("DELETE FROM groups WHERE name = ?", (name,)))

    # --- group snapshots --------------------------------------------------------------------------------------

    async def group_snapshots(self) -> list[GroupSnapshotRow]:
        """Oldest first, doomed ones included."""

        def work(database: sqlite3.Connection) -> list[GroupSnapshotRow]:
            points: dict[str, list[Point]] = {}
            for snapshot, volume_id, guid in database.execute(
                "SELECT snapshot, volume_id, guid FROM group_points ORDER BY rowid"
            ):
                points.setdefault(snapshot, []).append(Point(volume_id, guid))
            rows = database.execute(
                "SELECT guid, group_name, name, created_at, doomed FROM group_snapshots ORDER BY rowid"
            )
            return [GroupSnapshotRow(r[0], r[1], r[2], r[3], tuple(points.get(r[0], ())), bool(r[4])) for r in rows]

        return await self._run(work)

    async def add_group_snapshot(self, row: GroupSnapshotRow) -> None:
        """The commit of a group snapshot: from here on it exists."""

        def work(database: sqlite3.Connection) -> None:
            database.execute(
                "INSERT INTO group_snapshots VALUES (?, ?, ?, ?, 0)", (row.guid, row.group, row.name, row.created_at)
            )
            database.executemany(
                "INSERT INTO group_points VALUES (?, ?, ?)",
                [(row.guid, point.volume_id, point.guid) for point in row.points],
            )

        await self._run(work)

    async def doom_group_snapshot(self, guid: str) -> None:
        """The commit of its deletion: from here on it does not exist."""
        await self._run(
            lambda database: database.execute("UPDATE group_snapshots SET doomed = 1 WHERE guid = ?", (guid,))
        )

    async def remove_points(self, guids: Sequence[str]) -> None:
        """These are gone; a doomed group snapshot goes with its last one."""

        def work(database: sqlite3.Connection) -> None:
            database.executemany("DELETE FROM group_points WHERE guid = ?", [(guid,) for guid in guids])
            database.execute(
                "DELETE FROM group_snapshots WHERE doomed AND guid NOT IN (SELECT snapshot FROM group_points)"
            )

        await self._run(work)

    # --- group rollbacks and clones ---------------------------------------------------------------------------

    async def group_rollbacks(self) -> list[RollbackRow]:
        """What was decided and is not known to be done."""
        return await self._run(
            lambda database: [
                RollbackRow(*row) for row in database.execute("SELECT volume_id, guid, kept FROM group_rollbacks")
            ]
        )

    async def begin_rollback(self, rows: Sequence[RollbackRow]) -> None:
        """The commit of a group rollback: from here on it happens."""
        values = [(row.volume_id, row.guid, row.kept) for row in rows]
        await self._run(
            lambda database: database.executemany("INSERT OR REPLACE INTO group_rollbacks VALUES (?, ?, ?)", values)
        )

    async def end_rollback(self, volume_ids: Sequence[str]) -> None:
        """These are rolled back."""
        values = [(volume_id,) for volume_id in volume_ids]
        await self._run(
            lambda database: database.executemany("DELETE FROM group_rollbacks WHERE volume_id = ?", values)
        )

    async def group_clones(self) -> list[GroupCloneRow]:
        """Volumes whose group does not exist (yet)."""
        return await self._run(
            lambda database: [
                GroupCloneRow(*row) for row in database.execute("SELECT volume_id, source_id FROM group_clones")
            ]
        )

    async def begin_clones(self, rows: Sequence[GroupCloneRow]) -> None:
        """These volumes are going to be made; ``add_group`` with them as members is the commit."""
        values = [(row.volume_id, row.source_id) for row in rows]
        await self._run(lambda database: database.executemany("INSERT INTO group_clones VALUES (?, ?)", values))

    async def end_clones(self, volume_ids: Sequence[str]) -> None:
        """These are gone."""
        values = [(volume_id,) for volume_id in volume_ids]
        await self._run(lambda database: database.executemany("DELETE FROM group_clones WHERE volume_id = ?", values))


def _insert_members(database: sqlite3.Connection, row: GroupRow) -> None:
    database.executemany(
        "INSERT INTO group_members VALUES (?, ?)", [(row.name, volume_id) for volume_id in row.members]
    )
