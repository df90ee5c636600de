"""The catalogue's tables of peers; ``engine.catalog`` runs their transactions.

``peers``: who is trusted, by certificate. ``peer_invitations``: codes that are not used yet, or were used a moment ago,
so that an enrolment whose answer was lost can be repeated. ``peer_targets``: the volumes here that are replicas of
volumes at peers.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import AlreadyExists, NotFound, PermissionDenied

if TYPE_CHECKING:
    from engine.catalog_groups import Run

PEER_SCHEMA = """
CREATE TABLE peers (
    name TEXT PRIMARY KEY, certificate TEXT NOT NULL UNIQUE, next_certificate TEXT, address TEXT,
    added_at REAL NOT NULL, told TEXT, rate INTEGER NOT NULL DEFAULT 0, key_source TEXT);
CREATE TABLE peer_invitations (
    secret_hash TEXT PRIMARY KEY, name TEXT, expires_at REAL NOT NULL, used_by TEXT);
CREATE TABLE peer_targets (
    replica_id TEXT PRIMARY KEY, peer TEXT NOT NULL, name TEXT NOT NULL UNIQUE, volume_id TEXT NOT NULL,
    source TEXT NOT NULL, mode TEXT NOT NULL, facts TEXT NOT NULL DEFAULT '', whole_on TEXT NOT NULL DEFAULT '',
    made INTEGER NOT NULL DEFAULT 0);
CREATE TABLE peer_offers (volume_id TEXT PRIMARY KEY, peer TEXT NOT NULL);
CREATE TABLE peer_makings (replica_id TEXT PRIMARY KEY, peer TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class PeerRow:
    """A pool that is trusted. Certificates are PEM; ``next_certificate``: what it will have after its rotation.

    ``address``: HOST:PORT where it listens; None: it only connects to us. ``told``: the fingerprint of ours that it
    knows, if we are to have another soon. ``rate_bytes_s``: how much is sent to it at most; 0: no limit.
    ``key_source``: where the key is for replicas of its encrypted volumes here; None: there are none.
    """

    name: str
    certificate: str
    next_certificate: str | None
    address: str | None
    added_at: float
    told: str | None = None
    rate_bytes_s: int = 0
    key_source: str | None = None


@dataclass(frozen=True, slots=True)
class PeerTargetRow:
    """A volume here that is the replica of a volume of ``peer``. ``volume_id`` is empty while it is being made.

    ``name``: the replica's, and the volume's when it was made. ``source``: what its source is called there.
    ``facts``: what the source has told for a failover (``engine.failover_facts``), JSON; empty: nothing yet.
    ``whole_on``: the boot of this machine on which its content was last replaced by a whole one, or empty: after a loss
    of power, and in a volume that was a source before, only recovery points are whole.
    ``made``: 1: the volume was made for it; any other one was there before, and is never deleted for the peer.
    """

    replica_id: str
    peer: str
    name: str
    volume_id: str
    source: str
    mode: str
    facts: str = ""
    whole_on: str = ""
    made: int = 0

    def values(self) -> tuple[str | int, ...]:
        return (
            self.replica_id,
            self.peer,
            self.name,
            self.volume_id,
            self.source,
            self.mode,
            self.facts,
            self.whole_on,
            self.made,
        )


_PEER = "name, certificate, next_certificate, address, added_at, told, rate, key_source"


class PeerTables:
    """See the module."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def all(self) -> list[PeerRow]:
        return await self._run(
            lambda database: [PeerRow(*row) for row in database.execute(f"SELECT {_PEER} FROM peers ORDER BY name")]
        )

    async def put(self, row: PeerRow) -> None:
        """Add a peer, or replace the one of its name. Raises AlreadyExists: its certificate is another peer's."""
        await self._run(lambda database: _put(database, row))

    async def remove(self, name: str) -> None:
        await self._run(lambda database: database.execute("DELETE FROM peers WHERE name = ?", (name,)))

    async def invite(self, secret_hash: str, name: str | None, expires_at: float, now: float) -> None:
        """Keep an invitation; those that have expired go."""

        def work(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM peer_invitations WHERE expires_at <= ?", (now,))
            database.execute("INSERT INTO peer_invitations VALUES (?, ?, ?, NULL)", (secret_hash, name, expires_at))

        await self._run(work)

    async def enrol(self, secret_hash: str, fingerprint: str, row: PeerRow, now: float) -> PeerRow:
        """Use an invitation for the peer with this certificate, and add that under the name that the invitation has,
        or ``row`` has. Saying it again with the same certificate finds it done, until that peer is removed.

        Raises PermissionDenied: no such invitation, expired, or used by another or one that was removed. AlreadyExists:
        the name is taken.
        """

        def work(database: sqlite3.Connection) -> PeerRow:
            found = database.execute(
                "SELECT name, used_by FROM peer_invitations WHERE secret_hash = ? AND expires_at > ?",
                (secret_hash, now),
            ).fetchone()
            known = database.execute(f"SELECT {_PEER} FROM peers WHERE certificate = ?", (row.certificate,)).fetchone()
            mine = found is not None and (found[1] is None or (found[1] == fingerprint and known is not None))
            if not mine:
                raise PermissionDenied("the invitation was used already, has expired, or was never made here")
            invited = PeerRow(found[0] or row.name, row.certificate, None, row.address, row.added_at)
            if known is None:
                if database.execute("SELECT 1 FROM peers WHERE name = ?", (invited.name,)).fetchone():
                    raise AlreadyExists("peer", invited.name)
                _put(database, invited)
            database.execute(
                "UPDATE peer_invitations SET used_by = ? WHERE secret_hash = ?", (fingerprint, secret_hash)
            )
            return invited if known is None else PeerRow(*known)

        return await self._run(work)

    async def targets(self) -> list[PeerTargetRow]:
        rows = await self._run(
            lambda database: database.execute(
                "SELECT replica_id, peer, name, volume_id, source, mode, facts, whole_on, made FROM peer_targets"
                " ORDER BY name"
            ).fetchall()
        )
        return [PeerTargetRow(*row) for row in rows]

    async def put_target(self, row: PeerTargetRow) -> None:
        await self._run(
            lambda database: database.execute(
                "INSERT OR REPLACE INTO peer_targets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row.values()
            )
        )

    async def offers(self) -> dict[str, str]:
        """Id -> peer of the volumes here that a peer may make replicas of its own."""
        return await self._run(
            lambda database: dict(database.execute("SELECT volume_id, peer FROM peer_offers").fetchall())
        )

    async def put_offer(self, volume_id: str, peer: str | None) -> None:
        """Offer a volume to a peer, to no other; None: to nobody."""

        def work(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM peer_offers WHERE volume_id = ?", (volume_id,))
            if peer is not None:
                database.execute("INSERT INTO peer_offers VALUES (?, ?)", (volume_id, peer))

        await self._run(work)

    async def makings(self) -> dict[str, str]:
        """Replica id -> peer of what was asked for there, and is no mirror."""
        return await self._run(
            lambda database: dict(database.execute("SELECT replica_id, peer FROM peer_makings").fetchall())
        )

    async def begin_making(self, replica_id: str, peer: str) -> None:
        """Also right when it is recorded already."""
        row = replica_id, peer
        await self._run(lambda database: database.execute("INSERT OR IGNORE INTO peer_makings VALUES (?, ?)", row))

    async def end_making(self, replica_id: str) -> None:
        await self._run(lambda database: made(database, replica_id))

    async def remove_target(self, replica_id: str) -> None:
        await self._run(
            lambda database: database.execute("DELETE FROM peer_targets WHERE replica_id = ?", (replica_id,))
        )


def made(database: sqlite3.Connection, replica_id: str) -> None:
    """The mirror whose replica has that id is recorded in this transaction."""
    database.execute("DELETE FROM peer_makings WHERE replica_id = ?", (replica_id,))


def _put(database: sqlite3.Connection, row: PeerRow) -> None:
    trust = (row.certificate, row.next_certificate, row.address, row.added_at, row.told)
    values = (*trust, row.rate_bytes_s, row.key_source)
    try:
        changed = database.execute(
            "UPDATE peers SET certificate = ?, next_certificate = ?, address = ?, added_at = ?, told = ?, rate = ?,"
            " key_source = ? WHERE name = ?",
            (*values, row.name),
        )
        if not changed.rowcount:
            database.execute(f"INSERT INTO peers ({_PEER}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (row.name, *values))
    except sqlite3.IntegrityError as error:
        raise AlreadyExists("peer with this certificate", row.name) from error


def require_peer(rows: dict[str, PeerRow], name: str) -> PeerRow:
    """Raises NotFound."""
    row = rows.get(name)
    if row is None:
        raise NotFound("peer", name)
    return row
