"""The catalogue's tables of mirrored groups; ``engine.catalog`` runs their transactions.

``mirror_groups``: mirrors of consistency groups, with the mirror engine's own record of all members. The members' rows
are in ``mirrors``; a member without its group's row was being made, and is forgotten at start.
``mirror_group_points``: at a target, the recovery point of a group that is complete here, as its source said; the row
is what makes it one (``engine.mirror_group``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3

    from engine.catalog_groups import Run

MIRROR_GROUP_SCHEMA = """
CREATE TABLE mirror_groups (
    name TEXT PRIMARY KEY, group_name TEXT NOT NULL, group_id TEXT NOT NULL, mode TEXT NOT NULL, peer TEXT,
    members TEXT NOT NULL, state TEXT NOT NULL);
CREATE TABLE mirror_group_points (
    group_id TEXT PRIMARY KEY, peer TEXT NOT NULL, name TEXT NOT NULL, guid TEXT NOT NULL, at REAL NOT NULL,
    members TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class MirrorGroupRow:
    """A mirrored group. ``group``: the consistency group it was made of; ``group_id``: by which its target knows it.

    ``members``: names of the members' replicas, in the group's order. ``peer``: where the targets are; None: here.
    """

    name: str
    group: str
    group_id: str
    mode: str
    peer: str | None
    members: tuple[str, ...]
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupPointRow:
    """The recovery point of a group that is complete here. ``members``: replica ids, each of which has it.

    ``at``: its instant at the source, in seconds since the epoch.
    """

    group_id: str
    peer: str
    name: str
    guid: str
    at: float
    members: tuple[str, ...]


class MirrorGroupTables:
    """See the module."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def all(self) -> list[MirrorGroupRow]:
        def work(database: sqlite3.Connection) -> list[MirrorGroupRow]:
            rows = database.execute(
                "SELECT name, group_name, group_id, mode, peer, members, state FROM mirror_groups ORDER BY name"
            )
            return [
                MirrorGroupRow(name, group, group_id, mode, peer, tuple(json.loads(members)), json.loads(state))
                for name, group, group_id, mode, peer, members, state in rows
            ]

        return await self._run(work)

    async def put(self, row: MirrorGroupRow) -> None:
        """Record a mirrored group or its new state."""
        await self._run(lambda database: put_mirror_group(database, row))

    async def remove(self, row: MirrorGroupRow) -> None:
        """The relation is over, for all members: one transaction."""

        def work(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM mirror_groups WHERE name = ?", (row.name,))
            database.executemany("DELETE FROM mirrors WHERE name = ?", [(name,) for name in row.members])

        await self._run(work)

    async def points(self) -> list[GroupPointRow]:
        def work(database: sqlite3.Connection) -> list[GroupPointRow]:
            rows = database.execute("SELECT group_id, peer, name, guid, at, members FROM mirror_group_points")
            return [
                GroupPointRow(group_id, peer, name, guid, at, tuple(json.loads(members)))
                for group_id, peer, name, guid, at, members in rows
            ]

        return await self._run(work)

    async def put_point(self, row: GroupPointRow) -> None:
        """This is the group's recovery point from now on."""
        await self._run(lambda database: put_group_point(database, row))

    async def remove_point(self, group_id: str) -> None:
        await self._run(
            lambda database: database.execute("DELETE FROM mirror_group_points WHERE group_id = ?", (group_id,))
        )


def put_mirror_group(database: sqlite3.Connection, row: MirrorGroupRow) -> None:
    """Within a transaction."""
    values = (row.name, row.group, row.group_id, row.mode, row.peer, json.dumps(row.members), json.dumps(row.state))
    database.execute("INSERT OR REPLACE INTO mirror_groups VALUES (?, ?, ?, ?, ?, ?, ?)", values)


def put_group_point(database: sqlite3.Connection, row: GroupPointRow) -> None:
    """Within a transaction."""
    values = (row.group_id, row.peer, row.name, row.guid, row.at, json.dumps(row.members))
    database.execute("INSERT OR REPLACE INTO mirror_group_points VALUES (?, ?, ?, ?, ?, ?)", values)
