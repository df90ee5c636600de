"""What the ordering test of group snapshots (``group_world.py``) runs on, and what it remembers.

The catalogue's real tables in an SQLite database whose transactions happen at a seeded turn of the loop, whole or not
at all; the volumes that are open; the writers' history and the group snapshots as they should be.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.catalog_groups import GROUP_SCHEMA, GroupTables
from engine.tvol.file import TvolFile
from engine.volume import Volume
from tests.support.sim_loop import ProcessDied

if TYPE_CHECKING:
    from pathlib import Path

    from engine.catalog_groups import GroupSnapshotRow
    from engine.stores import Frozen
    from tests.support.sim_files import SimFileSystem
    from tests.support.sim_loop import SimWorkers

Values = tuple[tuple[int, ...], ...]
"""By writer, by member: the number of the write that its slot holds."""


@dataclass
class Era:
    """The writers' history between two moments at which everything was looked at: openings and rollbacks."""

    base: Values
    first: list[int]
    log: list[list[tuple[int, int]]]
    """By writer: (number, member) of what was issued."""

    def expected(self, writer: int, top: int) -> tuple[int, ...]:
        """What the members' slots hold when ``top`` is the last write there is."""
        values = list(self.base[writer])
        for number, member in self.log[writer]:
            if number <= top:
                values[member] = number
        return tuple(values)


@dataclass
class Snap:
    """A group snapshot as it should be. ``certain``: its call has returned; ``doomed``: its deletion was asked for."""

    name: str
    era: Era
    floor: list[int]
    ceiling: list[int] | None = None
    row: GroupSnapshotRow | None = None
    certain: bool = False
    doomed: bool = False
    values: Values | None = None


@dataclass
class Outcome:
    seed: int
    rounds: int = 0
    kills: int = 0
    power_losses: int = 0
    checked: int = 0
    """Group snapshots that were read and compared."""
    failure: str | None = None
    story: list[str] = field(default_factory=list)

    @property
    def crashes(self) -> int:
        return self.kills + self.power_losses


class Catalogue:
    """The real tables. Transactions are whole; the process may die right before or right after one."""

    def __init__(self) -> None:
        self.database = sqlite3.connect(":memory:", check_same_thread=False)
        self.database.execute("PRAGMA foreign_keys = ON")
        self.database.executescript(GROUP_SCHEMA)
        self.die_in: int | None = None
        self.die_after = False

    def open(self, workers: SimWorkers, files: SimFileSystem) -> GroupTables:
        async def run(work):
            return await workers.run(lambda: self._transaction(work, files))

        return GroupTables(run)

    def _transaction(self, work, files: SimFileSystem):
        if files.dead:
            raise ProcessDied
        dies = False
        if self.die_in is not None:
            self.die_in -= 1
            dies = self.die_in <= 0
        if dies and not self.die_after:
            self._die(files)
        with self.database:
            result = work(self.database)
        if dies:
            self._die(files)
        return result

    def _die(self, files: SimFileSystem) -> None:
        self.die_in = None
        files.kill()
        raise ProcessDied


class Members:
    """``engine.group_instant.Members`` over the files that are open now."""

    def __init__(self, file_of: dict[str, Path], missing: set[Path]) -> None:
        self.file_of = file_of
        self.missing = missing
        self.open: list[TvolFile] = []
        self.volumes: dict[str, Volume] = {}

    def add(self, store: TvolFile) -> None:
        self.open.append(store)
        for head in store.volumes():
            self.volumes[head.volume_id] = Volume(head)

    def stores(self) -> list[TvolFile]:
        return self.open

    def find(self, volume_id: str) -> Volume | None:
        return self.volumes.get(volume_id)

    def may_return(self, volume_id: str) -> bool:
        return volume_id not in self.volumes and self.file_of.get(volume_id) in self.missing

    async def make_clone(self, source: Volume, snapshot: Frozen, name: str, volume_id: str) -> Volume:
        store = source.head.store
        assert isinstance(store, TvolFile)
        head = await store.clone(snapshot, name, volume_id=volume_id)
        self.volumes[volume_id] = made = Volume(head)
        return made

    async def remove_clone(self, volume: Volume) -> None:
        await volume.head.store.delete_volume(volume.head)
        del self.volumes[volume.volume_id]
