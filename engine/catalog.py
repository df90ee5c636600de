"""The pool's catalogue: what the volume files do not know.

SQLite, WAL, synchronous=FULL, one file per pool; this module and ``catalog_*.py`` hold the project's only SQL. Targets,
access lists, policies, persistent reservations, mirrors, jobs and events are true here. Which volumes exist, their
identity and their sizes are true in the volume files (STORE section 4): ``replace_volumes`` rewrites those rows at each
opening of the pool, keeping the policies, and the rows serve to name what a damaged file held.

Every call runs in one dedicated thread, in the order of the calls: SQLite and its fsync never run in the loop, and
the connection has one owner. Each method is one transaction, durable when it returns.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from engine.access_state import AccessState
from engine.ballast import Ballast
from engine.catalog_changes import CHANGE_SCHEMA, ChangeTables
from engine.catalog_failover import FailoverTables
from engine.catalog_groups import GROUP_SCHEMA, GroupTables
from engine.catalog_identities import IDENTITY_SCHEMA, IdentityTables, forget_reservations
from engine.catalog_inventory import INVENTORY_SCHEMA, InventoryTables
from engine.catalog_mirror_groups import MIRROR_GROUP_SCHEMA, MirrorGroupTables
from engine.catalog_peers import PEER_SCHEMA, PeerTables, made
from engine.catalog_relations import RELATION_SCHEMA, RelationTables
from engine.catalog_schedules import SCHEDULE_SCHEMA, ScheduleTables, forget_volumes
from engine.catalog_scrubs import SCRUB_SCHEMA, ScrubTables, forget_scrubs
from engine.errors import AlreadyExists, EngineError, MediumError, NotSupported, OutOfSpace, StoreCorrupt
from engine.pool_space import SpaceLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

T = TypeVar("T")

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1

BALLAST_SUFFIX = ".ballast"
"""Beside the catalogue; see ``engine.ballast``."""

JOB_HISTORY_MAX = 1000
"""Jobs kept; the oldest finished ones go first."""

EVENT_HISTORY_MAX = 10_000
"""Events kept; the oldest go first."""

_HEADER_BYTES = 100
"""Of an SQLite database file."""

_REPLICATION_TABLES = (
    "mirrors",
    "ended_mirrors",
    "releases",
    "mirror_groups",
    "mirror_group_points",
    "peers",
    "peer_targets",
    "peer_offers",
    "peer_makings",
)

_SCHEMA = (
    """
CREATE TABLE volumes (
    volume_id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, file TEXT NOT NULL,
    physical_block INTEGER NOT NULL, write_cache INTEGER NOT NULL, read_only INTEGER NOT NULL,
    removable INTEGER NOT NULL, origin TEXT NOT NULL);
CREATE TABLE sanitizations (volume_id TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE space_limits (
    one INTEGER PRIMARY KEY CHECK (one = 1), quota INTEGER, reserve INTEGER, warn_percent INTEGER NOT NULL);
CREATE TABLE deletions (file TEXT PRIMARY KEY);
CREATE TABLE families (file TEXT PRIMARY KEY, family TEXT NOT NULL, incarnation INTEGER NOT NULL);
CREATE TABLE targets (name TEXT PRIMARY KEY, created_at REAL NOT NULL, port_group INTEGER NOT NULL UNIQUE);
CREATE TABLE luns (
    target TEXT NOT NULL REFERENCES targets(name) ON DELETE CASCADE, lun INTEGER NOT NULL,
    volume_id TEXT NOT NULL, snapshot_guid TEXT, standby_of TEXT, PRIMARY KEY (target, lun));
CREATE TABLE access_states (
    target TEXT NOT NULL REFERENCES targets(name) ON DELETE CASCADE, device_id TEXT NOT NULL, state INTEGER NOT NULL,
    PRIMARY KEY (target, device_id));
CREATE TABLE lun_masks (
    target TEXT NOT NULL, lun INTEGER NOT NULL, initiator TEXT NOT NULL, PRIMARY KEY (target, lun, initiator),
    FOREIGN KEY (target, lun) REFERENCES luns(target, lun) ON DELETE CASCADE);
CREATE TABLE target_portal_groups (
    target TEXT NOT NULL REFERENCES targets(name) ON DELETE CASCADE, tag INTEGER NOT NULL,
    PRIMARY KEY (target, tag));
CREATE TABLE access (
    target TEXT NOT NULL REFERENCES targets(name) ON DELETE CASCADE, initiator TEXT NOT NULL,
    PRIMARY KEY (target, initiator));
CREATE TABLE reservations (device_id TEXT PRIMARY KEY, document TEXT NOT NULL);
CREATE TABLE chap (
    target TEXT REFERENCES targets(name) ON DELETE CASCADE, user TEXT NOT NULL, file TEXT NOT NULL,
    mutual INTEGER NOT NULL, UNIQUE (target, mutual, user));
CREATE TABLE mirrors (
    name TEXT PRIMARY KEY, source_id TEXT NOT NULL, target_id TEXT NOT NULL, mode TEXT NOT NULL,
    state TEXT NOT NULL, peer TEXT, disk TEXT);
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, subject TEXT NOT NULL, state INTEGER NOT NULL,
    done_bytes INTEGER NOT NULL, total_bytes INTEGER NOT NULL, created_at REAL NOT NULL, finished_at REAL,
    message TEXT NOT NULL, error TEXT, result TEXT NOT NULL);
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, severity TEXT NOT NULL, subject TEXT NOT NULL,
    text TEXT NOT NULL);
"""
    + GROUP_SCHEMA
    + SCHEDULE_SCHEMA
    + MIRROR_GROUP_SCHEMA
    + SCRUB_SCHEMA
    + IDENTITY_SCHEMA
    + PEER_SCHEMA
    + RELATION_SCHEMA
    + INVENTORY_SCHEMA
    + CHANGE_SCHEMA
)


@dataclass(frozen=True, slots=True)
class VolumeRow:
    """A volume and its policies.

    ``file``: name of its family's file within the pool's ``volumes`` folder. ``origin``: what it was cloned from,
    as VOLUME@SNAPSHOT; empty otherwise.
    """

    volume_id: str
    name: str
    file: str
    physical_block_bytes: int = 4096
    write_cache: bool = True
    read_only: bool = False
    removable: bool = False
    origin: str = ""


@dataclass(frozen=True, slots=True)
class LunRow:
    """A volume, or one of its snapshots, under a number of a target.

    ``initiators``: the only ones that see it; empty: all that the target admits. ``standby_of``: it is shown as a path
    to the disk of this volume, whose replica it is. ``identity``: the device id of that volume, where it is not its own
    (``engine.catalog_identities``).
    """

    target: str
    lun: int
    volume_id: str
    snapshot_guid: str | None = None
    initiators: Sequence[str] = ()
    standby_of: str | None = None
    identity: str | None = None

    @property
    def device_id(self) -> str:
        """The device id or snapshot GUID that the identity follows from which initiators see."""
        return self.snapshot_guid or self.identity or self.standby_of or self.volume_id

    @property
    def initial_state(self) -> AccessState:
        """The access state until another is set."""
        return AccessState.ACTIVE_OPTIMIZED if self.standby_of is None else AccessState.STANDBY


@dataclass(frozen=True, slots=True)
class TargetRow:
    """An iSCSI target. An empty access list admits every initiator; without portal groups it is in all.

    ``port_group``: the number of the target port group that its ports are, unique in the pool.
    """

    name: str
    created_at: float
    luns: Sequence[LunRow] = ()
    initiators: Sequence[str] = ()
    portal_groups: Sequence[int] = ()
    port_group: int = 1


@dataclass(frozen=True, slots=True)
class ChapRow:
    """A CHAP user of a target, or of discovery (``target`` None), and the file within ``secrets`` that has its secret.

    ``mutual``: it is the target itself, as it proves itself to initiators.
    """

    target: str | None
    user: str
    file: str
    mutual: bool = False


@dataclass(frozen=True, slots=True)
class DiskRow:
    """A disk of elsewhere. ``url`` has no secret; the files hold those of CHAP, ours and the one that proves the disk's
    target, which calls itself ``mutual_user``."""

    url: str
    secret_file: str | None = None
    mutual_user: str | None = None
    mutual_file: str | None = None

    @property
    def files(self) -> list[str]:
        """Of secrets."""
        return [file for file in (self.secret_file, self.mutual_file) if file is not None]


@dataclass(frozen=True, slots=True)
class MirrorRow:
    """A mirror. ``state`` is the mirror engine's own durable record.

    ``peer``: where the target is, and then ``target_id`` is the replica id by which it is known there. ``disk``: the
    target is that one, and ``target_id`` a UUID of the relation. Neither: it is the volume of that id in this pool.
    """

    name: str
    source_id: str
    target_id: str
    mode: str
    state: dict[str, Any] = field(default_factory=dict)
    peer: str | None = None
    disk: DiskRow | None = None


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job as last recorded. ``error``: class name of the engine error that ended it; its text is ``message``."""

    job_id: int
    kind: str
    subject: str
    state: int
    done_bytes: int
    total_bytes: int
    created_at: float
    finished_at: float | None
    message: str
    error: str | None
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EventRow:
    """Something that somebody may want to know later. ``severity``: info, warning or error."""

    event_id: int
    at: float
    severity: str
    subject: str
    text: str


class Catalog:
    """See the module. Made by ``open``."""

    def __init__(self, database: sqlite3.Connection, thread: ThreadPoolExecutor, ballast: Ballast) -> None:
        self._ballast = ballast
        self._database = database
        self._thread = thread
        self.groups = GroupTables(self._run)
        self.schedules = ScheduleTables(self._run)
        self.mirror_groups = MirrorGroupTables(self._run)
        self.scrubs = ScrubTables(self._run)
        self.identities = IdentityTables(self._run)
        self.peers = PeerTables(self._run)
        self.relations = RelationTables(self._run)
        self.inventory = InventoryTables(self._run)
        self.failover = FailoverTables(self._run)
        self.changes = ChangeTables(self._run)
        self.on_event: Callable[[str], None] | None = None
        """Told the subject of each event."""

    @classmethod
    async def open(cls, path: Path) -> Catalog:
        """Open the catalogue, making it when missing.

        Raises:
            StoreCorrupt: the file is no catalogue or damaged.
            NotSupported: a newer twinvol made it.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="catalog")
        try:
            database = await asyncio.get_running_loop().run_in_executor(thread, _connect, path)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        catalog = cls(database, thread, Ballast(path.with_suffix(BALLAST_SUFFIX)))
        await catalog.restock()
        return catalog

    async def close(self) -> None:
        try:
            await self._run(lambda database: database.execute("PRAGMA wal_checkpoint(TRUNCATE)"))
        except EngineError as error:  # nothing is missing, it is in the other file; what came before is the one to tell
            log.warning("closing the pool's catalogue: %s", error)
        finally:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._database.close)
            self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def transaction() -> T:
            try:
                with self._database:
                    return work(self._database)
            except sqlite3.OperationalError as error:
                code = getattr(error, "sqlite_errorcode", None)  # None: the module's own, of text that is none
                if code is None:
                    raise StoreCorrupt("the pool's catalogue", str(error)) from error
                full = code == sqlite3.SQLITE_FULL
                if full and self._ballast.give_up():
                    return transaction()
                kind = OutOfSpace if full else MediumError
                raise kind(f"the pool's catalogue cannot be written: {error}") from error
            except ValueError as error:  # text that is none, or no JSON; a number that stands for nothing
                raise StoreCorrupt("the pool's catalogue", str(error)) from error
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                    raise
                raise StoreCorrupt("the pool's catalogue", str(error)) from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, transaction)

    async def restock(self) -> None:
        """There is space again: keep some for the next time that there is none."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._ballast.make)

    def owed_bytes(self) -> int:
        """What of the host's free space is no volume's, because the catalogue may need it."""
        return self._ballast.missing_bytes()

    # --- volumes ----------------------------------------------------------------------------------------------

    async def volumes(self) -> list[VolumeRow]:
        def work(database: sqlite3.Connection) -> list[VolumeRow]:
            rows = database.execute("SELECT * FROM volumes ORDER BY name")
            return [VolumeRow(r[0], r[1], r[2], r[3], bool(r[4]), bool(r[5]), bool(r[6]), r[7]) for r in rows]

        return await self._run(work)

    async def put_volume(self, row: VolumeRow) -> None:
        await self._run(lambda database: _put_volume(database, row))

    async def replace_volumes(
        self, rows: Sequence[VolumeRow], families: Mapping[str, tuple[str, int]] = MappingProxyType({})
    ) -> list[str]:
        """Make exactly these the known volumes: what the files say, joined with the policies known before.

        ``families``: identity and incarnation of files that were just opened for writing. Returns those of them that
        are older than when that was done last: copies of then.
        """

        def work(database: sqlite3.Connection) -> list[str]:
            database.execute("DELETE FROM volumes")
            for row in rows:
                _put_volume(database, row)
            known = {row[0]: (row[1], row[2]) for row in database.execute("SELECT * FROM families")}
            values = ((file, family, incarnation) for file, (family, incarnation) in families.items())
            database.executemany("INSERT OR REPLACE INTO families VALUES (?, ?, ?)", values)
            nothing = ("", 0)
            return [
                file
                for file, (family, incarnation) in families.items()
                if known.get(file, nothing)[0] == family and known[file][1] >= incarnation
            ]

        return await self._run(work)

    async def sanitizations(self) -> dict[str, str]:
        """The records of sanitize operations that have not ended well, by volume."""
        return await self._run(lambda database: dict(database.execute("SELECT volume_id, record FROM sanitizations")))

    async def put_sanitization(self, volume_id: str, record: str | None) -> None:
        """Keep the record of a volume's sanitize operation; None: forget it."""

        def work(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM sanitizations WHERE volume_id = ?", (volume_id,))
            if record is not None:
                database.execute("INSERT INTO sanitizations VALUES (?, ?)", (volume_id, record))

        await self._run(work)

    async def space_limits(self) -> SpaceLimits:
        """The pool's quota and reserve."""
        query = "SELECT quota, reserve, warn_percent FROM space_limits"
        row = await self._run(lambda database: database.execute(query).fetchone())
        return SpaceLimits() if row is None else SpaceLimits(*row)

    async def put_space_limits(self, limits: SpaceLimits) -> None:
        values = (limits.quota_bytes, limits.reserve_bytes, limits.warn_percent)
        await self._run(
            lambda database: database.execute("INSERT OR REPLACE INTO space_limits VALUES (1, ?, ?, ?)", values)
        )

    async def begin_deletion(self, file: str) -> None:
        """A family's file is to go: from here on it will, whatever crashes."""
        await self._run(lambda database: database.execute("INSERT OR REPLACE INTO deletions VALUES (?)", (file,)))

    async def finish_deletion(self, file: str) -> None:
        """The file is gone: forget its volumes, the LUNs that showed them and their reservations."""

        def work(database: sqlite3.Connection) -> None:
            held = "(SELECT volume_id FROM volumes WHERE file = ?)"
            database.execute(f"DELETE FROM luns WHERE volume_id IN {held}", (file,))
            for (volume_id,) in database.execute("SELECT volume_id FROM volumes WHERE file = ?", (file,)).fetchall():
                forget_reservations(database, volume_id)
            database.execute(f"DELETE FROM sanitizations WHERE volume_id IN {held}", (file,))
            forget_volumes(database, f"IN {held}", (file,))
            forget_scrubs(database, f"IN {held}", file)
            database.execute("DELETE FROM volumes WHERE file = ?", (file,))
            database.execute("DELETE FROM deletions WHERE file = ?", (file,))
            database.execute("DELETE FROM families WHERE file = ?", (file,))

        await self._run(work)

    async def deletions(self) -> list[str]:
        """Files whose deletion began and is not recorded as finished."""
        return await self._run(lambda database: [row[0] for row in database.execute("SELECT file FROM deletions")])

    async def remove_volume(self, volume_id: str) -> None:
        """Forget a volume, the LUNs that showed it or its snapshots, and its reservations."""

        def work(database: sqlite3.Connection) -> None:
            forget_reservations(database, volume_id)
            database.execute("DELETE FROM luns WHERE volume_id = ?", (volume_id,))
            database.execute("DELETE FROM sanitizations WHERE volume_id = ?", (volume_id,))
            forget_volumes(database, "= ?", (volume_id,))
            forget_scrubs(database, "= ?", volume_id)
            database.execute("DELETE FROM volumes WHERE volume_id = ?", (volume_id,))

        await self._run(work)

    # --- targets ----------------------------------------------------------------------------------------------

    async def targets(self) -> list[TargetRow]:
        """Oldest first."""

        def work(database: sqlite3.Connection) -> list[TargetRow]:
            masks: dict[tuple[str, int], list[str]] = {}
            for name, lun, initiator in database.execute("SELECT * FROM lun_masks ORDER BY initiator"):
                masks.setdefault((name, lun), []).append(initiator)
            luns: dict[str, list[LunRow]] = {}
            for row in database.execute(
                "SELECT target, lun, luns.volume_id, snapshot_guid, standby_of, device_id FROM luns"
                " LEFT JOIN identities ON identities.volume_id = COALESCE(standby_of, luns.volume_id) ORDER BY lun"
            ):
                luns.setdefault(row[0], []).append(
                    LunRow(row[0], row[1], row[2], row[3], tuple(masks.get(row[:2], ())), row[4], row[5])
                )
            groups: dict[str, list[int]] = {}
            for name, tag in database.execute("SELECT target, tag FROM target_portal_groups ORDER BY tag"):
                groups.setdefault(name, []).append(tag)
            access: dict[str, list[str]] = {}
            for target, initiator in database.execute("SELECT target, initiator FROM access ORDER BY initiator"):
                access.setdefault(target, []).append(initiator)
            return [
                TargetRow(
                    name,
                    created_at,
                    tuple(luns.get(name, ())),
                    tuple(access.get(name, ())),
                    tuple(groups.get(name, ())),
                    port_group,
                )
                for name, created_at, port_group in database.execute("SELECT * FROM targets ORDER BY rowid")
            ]

        return await self._run(work)

    async def add_target(self, row: TargetRow) -> None:
        """A target with its LUNs and access list. Raises AlreadyExists."""

        def work(database: sqlite3.Connection) -> None:
            try:
                database.execute("INSERT INTO targets VALUES (?, ?, ?)", (row.name, row.created_at, row.port_group))
            except sqlite3.IntegrityError as error:
                raise AlreadyExists("target", row.name) from error
            for lun in row.luns:
                _insert_lun(database, lun)
            for initiator in row.initiators:
                database.execute("INSERT INTO access VALUES (?, ?)", (row.name, initiator))
            for tag in row.portal_groups:
                database.execute("INSERT INTO target_portal_groups VALUES (?, ?)", (row.name, tag))

        await self._run(work)

    async def remove_target(self, name: str) -> None:
        await self._run(lambda database: database.execute("DELETE FROM targets WHERE name = ?", (name,)))

    async def add_lun(self, row: LunRow) -> None:
        """Raises AlreadyExists: the target has that LUN."""

        def work(database: sqlite3.Connection) -> None:
            try:
                _insert_lun(database, row)
            except sqlite3.IntegrityError as error:
                raise AlreadyExists("LUN", f"{row.target} {row.lun}") from error

        await self._run(work)

    async def remove_lun(self, target: str, lun: int) -> None:
        await self._run(
            lambda database: database.execute("DELETE FROM luns WHERE target = ? AND lun = ?", (target, lun))
        )

    async def set_access(self, target: str, initiators: Sequence[str]) -> None:
        """Replace the access list of a target."""

        def work(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM access WHERE target = ?", (target,))
            for initiator in initiators:
                database.execute("INSERT INTO access VALUES (?, ?)", (target, initiator))

        await self._run(work)

    async def chap(self) -> list[ChapRow]:
        """All of them; those of one target by name, the mutual one last."""

        def work(database: sqlite3.Connection) -> list[ChapRow]:
            rows = database.execute("SELECT target, user, file, mutual FROM chap ORDER BY target, mutual, user")
            return [ChapRow(row[0], row[1], row[2], bool(row[3])) for row in rows]

        return await self._run(work)

    async def set_chap(self, target: str | None, rows: Sequence[ChapRow]) -> None:
        """Replace those of a target, or of discovery."""

        def work(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM chap WHERE target IS ?", (target,))
            for row in rows:
                database.execute("INSERT INTO chap VALUES (?, ?, ?, ?)", (row.target, row.user, row.file, row.mutual))

        await self._run(work)

    async def set_portal_groups(self, target: str, tags: Sequence[int]) -> None:
        """Replace the portal groups of a target."""

        def work(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM target_portal_groups WHERE target = ?", (target,))
            for tag in tags:
                database.execute("INSERT INTO target_portal_groups VALUES (?, ?)", (target, tag))

        await self._run(work)

    async def set_mask(self, target: str, lun: int, initiators: Sequence[str]) -> None:
        """Replace the initiators that see a LUN."""

        def work(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM lun_masks WHERE target = ? AND lun = ?", (target, lun))
            for initiator in initiators:
                database.execute("INSERT INTO lun_masks VALUES (?, ?, ?)", (target, lun, initiator))

        await self._run(work)

    # --- asymmetric access ------------------------------------------------------------------------------------

    async def access_states(self) -> dict[tuple[str, str], AccessState]:
        """States that were set, by target and device."""
        return await self._run(
            lambda database: {
                (target, device_id): AccessState(state)
                for target, device_id, state in database.execute("SELECT target, device_id, state FROM access_states")
            }
        )

    async def set_access_states(self, states: Mapping[tuple[str, str], AccessState]) -> None:
        """All of them, or none. A target that is gone meanwhile has no state."""

        def work(database: sqlite3.Connection) -> None:
            for (target, device_id), state in states.items():
                database.execute(
                    "INSERT OR REPLACE INTO access_states SELECT name, ?, ? FROM targets WHERE name = ?",
                    (device_id, int(state), target),
                )

        await self._run(work)

    async def forget_access_state(self, target: str, device_id: str) -> None:
        await self._run(
            lambda database: database.execute(
                "DELETE FROM access_states WHERE target = ? AND device_id = ?", (target, device_id)
            )
        )

    # --- persistent reservations ------------------------------------------------------------------------------

    async def reservations(self) -> dict[str, str]:
        """What is to survive power loss, by volume id or snapshot GUID. The text is the SCSI side's own."""
        return await self._run(
            lambda database: dict(database.execute("SELECT device_id, document FROM reservations").fetchall())
        )

    async def save_reservations(self, device_id: str, document: str | None) -> None:
        """Replace a device's document; None: it has none any more."""

        def work(database: sqlite3.Connection) -> None:
            if document is None:
                database.execute("DELETE FROM reservations WHERE device_id = ?", (device_id,))
            else:
                database.execute("INSERT OR REPLACE INTO reservations VALUES (?, ?)", (device_id, document))

        await self._run(work)

    # --- mirrors ----------------------------------------------------------------------------------------------

    async def knows_replication(self) -> bool:
        """Whether there is anything to begin, or to tidy up, that mirrors and peers have left here."""
        some = " OR ".join(f"EXISTS (SELECT 1 FROM {table})" for table in _REPLICATION_TABLES)
        return await self._run(lambda database: bool(database.execute(f"SELECT {some}").fetchone()[0]))

    async def mirrors(self) -> list[MirrorRow]:
        def work(database: sqlite3.Connection) -> list[MirrorRow]:
            rows = database.execute(
                "SELECT name, source_id, target_id, mode, state, peer, disk FROM mirrors ORDER BY name"
            )
            found = []
            for name, source_id, target_id, mode, state, peer, disk in rows:
                where = None if disk is None else DiskRow(**json.loads(disk))
                found.append(MirrorRow(name, source_id, target_id, mode, json.loads(state), peer, where))
            return found

        return await self._run(work)

    async def put_mirror(self, row: MirrorRow) -> None:
        """Record a mirror or its new state."""
        disk = None if row.disk is None else json.dumps(dataclasses.asdict(row.disk))
        values = (row.name, row.source_id, row.target_id, row.mode, json.dumps(row.state), row.peer, disk)

        def work(database: sqlite3.Connection) -> None:
            database.execute("INSERT OR REPLACE INTO mirrors VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            if row.peer is not None:
                made(database, row.target_id)

        await self._run(work)

    async def remove_mirror(self, name: str) -> None:
        await self._run(lambda database: database.execute("DELETE FROM mirrors WHERE name = ?", (name,)))

    # --- jobs -------------------------------------------------------------------------------------------------

    async def add_job(self, kind: str, subject: str, state: int, created_at: float) -> int:
        """Record a new job; returns its number. Removes what exceeds the history."""

        def work(database: sqlite3.Connection) -> int:
            cursor = database.execute(
                "INSERT INTO jobs (kind, subject, state, done_bytes, total_bytes, created_at, message, result)"
                " VALUES (?, ?, ?, 0, 0, ?, '', '{}')",
                (kind, subject, state, created_at),
            )
            job_id = cursor.lastrowid
            assert job_id is not None
            database.execute("DELETE FROM jobs WHERE finished_at IS NOT NULL AND id <= ?", (job_id - JOB_HISTORY_MAX,))
            return job_id

        return await self._run(work)

    async def save_job(self, row: JobRow) -> None:
        values = (
            row.state,
            row.done_bytes,
            row.total_bytes,
            row.finished_at,
            row.message,
            row.error,
            json.dumps(row.result),
            row.job_id,
        )
        await self._run(
            lambda database: database.execute(
                "UPDATE jobs SET state = ?, done_bytes = ?, total_bytes = ?, finished_at = ?, message = ?,"
                " error = ?, result = ? WHERE id = ?",
                values,
            )
        )

    async def remove_job(self, job_id: int) -> None:
        await self._run(lambda database: database.execute("DELETE FROM jobs WHERE id = ?", (job_id,)))

    async def jobs(self) -> list[JobRow]:
        """All recorded jobs, oldest first."""

        def work(database: sqlite3.Connection) -> list[JobRow]:
            rows = database.execute(
                "SELECT id, kind, subject, state, done_bytes, total_bytes, created_at, finished_at, message, error,"
                " result FROM jobs ORDER BY id"
            )
            return [JobRow(*[*row[:10], json.loads(row[10])]) for row in rows]

        return await self._run(work)

    # --- events -----------------------------------------------------------------------------------------------

    async def add_event(self, at: float, severity: str, subject: str, text: str) -> None:
        def work(database: sqlite3.Connection) -> None:
            cursor = database.execute(
                "INSERT INTO events (at, severity, subject, text) VALUES (?, ?, ?, ?)", (at, severity, subject, text)
            )
            assert cursor.lastrowid is not None
            database.execute("DELETE FROM events WHERE id <= ?", (cursor.lastrowid - EVENT_HISTORY_MAX,))

        if self.on_event is not None:
            self.on_event(subject)
        await self._run(work)

    async def events(self, limit: int) -> list[EventRow]:
        """The newest ``limit`` events, oldest of them first."""

        def work(database: sqlite3.Connection) -> list[EventRow]:
            rows = database.execute("SELECT * FROM events ORDER BY id DESC LIMIT ?", (limit,)).fetchall()
            return [EventRow(*row) for row in reversed(rows)]

        return await self._run(work)


def _connect(path: Path) -> sqlite3.Connection:
    if path.exists() and 0 < path.stat().st_size < _HEADER_BYTES:
        raise StoreCorrupt(str(path), "it is cut off")  # SQLite would begin it anew
    # check_same_thread stays on: the connection is made and used in the catalogue's thread only.
    database = sqlite3.connect(path)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise NotSupported(f"{path} has schema {version}, made by a newer twinvol; this one knows {SCHEMA_VERSION}")
        if version == 0:
            database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise StoreCorrupt(str(path), found)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # SQLite cites what it cannot read as it stands there
        database.close()
        raise StoreCorrupt(str(path), str(error)) from error
    except BaseException:
        database.close()
        raise
    return database


def _put_volume(database: sqlite3.Connection, row: VolumeRow) -> None:
    try:
        database.execute(
            "INSERT INTO volumes VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (volume_id) DO UPDATE SET"
            " name = excluded.name, file = excluded.file, physical_block = excluded.physical_block,"
            " write_cache = excluded.write_cache, read_only = excluded.read_only, removable = excluded.removable,"
            " origin = excluded.origin",
            (
                row.volume_id,
                row.name,
                row.file,
                row.physical_block_bytes,
                row.write_cache,
                row.read_only,
                row.removable,
                row.origin,
            ),
        )
    except sqlite3.IntegrityError as error:
        raise AlreadyExists("volume", row.name) from error


def _insert_lun(database: sqlite3.Connection, row: LunRow) -> None:
    values = (row.target, row.lun, row.volume_id, row.snapshot_guid, row.standby_of)
    database.execute("INSERT INTO luns VALUES (?, ?, ?, ?, ?)", values)
    for initiator in row.initiators:
        database.execute("INSERT INTO lun_masks VALUES (?, ?, ?)", (row.target, row.lun, initiator))
