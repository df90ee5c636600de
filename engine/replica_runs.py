"""The mirrors of a pool that run: made from their rows, kept across restarts, and those whose sides are exchanged.

A replica is a ``Mirror`` between a volume and its target, with a name; its row in the catalogue holds the mirror's own
record. ``restore`` starts all whose target is here before the sources are served, so that no source acknowledges
anything before its mirror knows (REPLICATION section 3). A mirror whose target is at a peer begins once the peers are
there (``begin_remote``), one to a disk of elsewhere once that can be opened (``begin_disks``).

Invariants:

* What has to be on record before a source is served is recorded by ``restore``, also for mirrors that begin later; a
  volume whose replica may have taken its place is fenced by then, until its peer was asked.
* No record of a mirror is written while the catalogue decides on the replica's end (``deciding``), nor after it.
* The target is write-protected for everybody but the mirror, except while the replica is fractured: then it is its
  owner's, and the next resync overwrites what was written to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.copy_state import CopyState
from engine.disk_targets import DiskTargets
from engine.errors import EngineError, InvalidState, NotFound
from engine.links.local import LocalLink
from engine.mirror import Mirror
from engine.mirror_record import MirrorRecord, RecoveryPoint, point_prefix
from engine.modes import mode_of
from engine.peers.incoming import Incoming
from engine.peers.makings import PeerMakings
from engine.peers.outgoing import Outgoing
from engine.pool_folder import LEDGER_SUFFIX, LEDGERS_NAME
from engine.replica_groups import ReplicaGroups
from engine.replica_table import GROUP_KEY, ReplicaTable, policy_of, require_single
from engine.restore import drop_interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from pathlib import Path

    from engine.catalog import MirrorRow
    from engine.catalog_peers import PeerTargetRow
    from engine.disk_targets import DiskOpener
    from engine.failover import Failovers
    from engine.links import MirrorLink
    from engine.links.disk import DiskLink
    from engine.links.peer import PeerLink
    from engine.mirror_group import GroupMirror
    from engine.peers.registry import Peers
    from engine.pool import Pool
    from engine.volume import Volume

log = logging.getLogger(__name__)

PEERS_LOOK_S = 0.05

REMOTE_END_S = 10.0
"""At the end, what mirrors have asked of their peers is waited for so long."""


class ReplicaRuns:
    """See the module."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._mirrors: dict[str, Mirror] = {}
        self._idle: dict[str, str] = {}
        self._deciding: set[str] = set()
        self._renewing: set[str] = set()
        self._events: set[asyncio.Task[None]] = set()
        self.is_shown: Callable[[str, str], bool] | None = None
        """Whether initiators see the snapshot of that GUID of the volume of that id. None: not known yet."""
        self.incoming = Incoming(pool)
        self.table = ReplicaTable(pool, self.incoming)
        self.outgoing = Outgoing()
        self.disks = DiskTargets(pool)
        self.makings = PeerMakings(pool.catalog.peers)
        self._peers: Peers | None = None
        self.groups = ReplicaGroups(pool, self)
        self.failovers: Failovers | None = None
        """Who decides which side of a mirror to a peer is the disk."""
        self.without_peers: str | None = None
        """Why peers are not served, where they should be."""
        pool.integrity.copies = self.table.counterparts

    # --- from start to end --------------------------------------------------------------------------------------------

    async def restore(self) -> None:
        """Start the mirrors of the catalogue. One whose volumes are not there waits, with its reason."""
        await self._drop_orphans()
        await self.incoming.restore()
        await self.makings.restore()
        released = await self._pool.catalog.failover.releases()
        for row in await self._pool.catalog.mirrors():
            self.table.rows[row.name] = row
            if GROUP_KEY in row.state:
                continue
            if row.peer is not None or row.disk is not None:
                self._hold_at_start(row)
            if row.peer is not None:
                self._idle[row.name] = "the peers are not there yet"
                await self._fence(row, row.source_id in released)
                continue
            if row.disk is not None:
                self._idle[row.name] = "what opens its disk is not there yet"
                await self._demote(row)
                continue
            try:
                source, target = self._pool.by_id(row.source_id), self._pool.by_id(row.target_id)
            except EngineError as error:
                log.error("replica %s does not run: %s", row.name, error)
                self._idle[row.name] = str(error)
                self.protect(row.name)
                continue
            self.local_mirror(row, source, target)
        sources = [self._pool.find(row.source_id) for row in self.table.rows.values()]
        await drop_interrupted(volume for volume in sources if volume is not None)
        # Each may have to wait until its target claims nothing any more.
        await asyncio.gather(self.groups.restore(released), *(mirror.start() for mirror in self._mirrors.values()))

    async def begin_remote(self, peers: Peers) -> None:
        """The peers are there: start the mirrors to them."""
        self._peers = peers
        peers.began = self._peer_began
        for row in self.remote_rows():
            if not self._is_fenced(row):
                await self._begin_remote(row, peers)
        await self.groups.begin_remote(peers)
        if self.failovers is not None:
            await self.failovers.begin(peers)

    async def begin_disks(self, opener: DiskOpener) -> None:
        """Disks of elsewhere can be opened: start the mirrors to them."""
        self.disks.begin(opener)
        for row in list(self.table.rows.values()):
            if row.disk is None:
                continue
            try:
                source = self._pool.by_id(row.source_id)
                mirror = self.disk_mirror(row, source, await self.disks.link_to(row, source))
            except EngineError as error:
                log.error("replica %s does not run: %s", row.name, error)
                self._idle[row.name] = str(error)
                continue
            self._idle.pop(row.name, None)
            await mirror.start()

    async def end_remote(self) -> None:
        """Stop the mirrors to peers, which end after this."""
        if self.failovers is not None:
            await self.failovers.close()
        await self.outgoing.close()
        remote = [mirror for name, mirror in self._mirrors.items() if self.table.rows[name].peer is not None]
        groups = self.groups.running(remote=True)
        closing = asyncio.gather(*(mirror.close() for mirror in remote), *(group.close() for group in groups))
        await asyncio.wait([closing], timeout=REMOTE_END_S)
        if not closing.done() and self._peers is not None:
            log.warning("a peer does not answer what was asked; its connections are ended")
            await self._peers.close()
        await closing

    async def close(self) -> None:
        """Stop all mirrors for the next start."""
        await self.disks.stop()
        closing = [mirror.close() for mirror in self._mirrors.values()]
        await asyncio.gather(*closing, *(group.close() for group in self.groups.running()))
        await self.disks.close()
        if self._events:
            await asyncio.wait(self._events)

    async def _drop_orphans(self) -> None:
        """Remove the recovery points of mirrors that ended right before a crash."""
        identities = self._pool.catalog.identities
        running = {row.name for row in await self._pool.catalog.mirrors()}
        for name in await identities.ended_mirrors():
            if name in running:
                continue  # another one of that name, which has points of its own by now
            try:
                for store in self._pool.stores():
                    for point in store.snapshots():
                        if point.hidden and point.name.startswith(point_prefix(name)):
                            await store.delete_snapshot(point)
            except EngineError as error:
                log.error("recovery points of replica %s, which has ended, stay until the next start: %s", name, error)
            else:
                await identities.forget_mirror(name)

    # --- the mirror of a row ------------------------------------------------------------------------------------------

    def running(self, name: str) -> Mirror:
        """Of a replica that is in no mirrored group. Raises NotFound; InvalidState: it is being promoted."""
        require_single(self.table.row(name))
        self._require_undecided(name)
        mirror = self._mirrors.get(name)
        if mirror is None:
            raise NotFound("running replica", name)
        return mirror

    def points(self, name: str) -> Sequence[RecoveryPoint]:
        """Recovery points that are complete at the target, oldest first."""
        arriving = self.incoming.named(name)
        if arriving is not None:
            return [RecoveryPoint(point.guid, point.created_at) for point in self.incoming.points(arriving)]
        mirror, row = self._mirrors.get(name), self.table.row(name)
        if row.disk is not None:
            return ()  # it has none: only what it is
        if GROUP_KEY in row.state:
            return self.groups.points(row.state[GROUP_KEY])
        return MirrorRecord.parse(row.state).points if mirror is None else mirror.points

    def _require_undecided(self, name: str) -> None:
        if name in self._deciding:
            raise InvalidState(f"replica {name}", "being promoted", "one that is not")
        if name in self._renewing:
            raise InvalidState(f"replica {name}", "being changed", "one that is not")

    def mirrors_of(self, source: Volume) -> list[Mirror | GroupMirror]:
        """All that run from that volume."""
        single = [mirror for mirror in self._mirrors.values() if mirror.source is source]
        return [*single, *self.groups.with_source(source)]

    def local_mirror(self, row: MirrorRow, source: Volume, target: Volume) -> Mirror:
        """Made, not started; nor are the next two."""
        link = LocalLink(target, point_prefix(row.name))
        mirror = self._mirrors[row.name] = self._mirror(row, source, link)
        self.protect(row.name)
        return mirror

    def disk_mirror(self, row: MirrorRow, source: Volume, link: DiskLink) -> Mirror:
        mirror = self._mirrors[row.name] = self._mirror(row, source, link)
        self.disks.add(mirror, link)
        return mirror

    def remote_mirror(self, row: MirrorRow, source: Volume, peers: Peers) -> Mirror:
        from engine.links.peer import PeerLink  # late: TLS, which a pool without peers does without

        assert row.peer is not None
        policy = policy_of(row)
        link = PeerLink(
            peers.client(row.peer),
            uuid.UUID(row.target_id),
            f"{row.peer}:{row.name}",
            self._pool.env.clock,
            may_fail_over=policy.failover,
        )
        link.bucket.rate_bytes_s = policy.rate_bytes_s
        link.superseded = lambda: self.superseded(str(row.peer), row.target_id)
        mirror = self._mirrors[row.name] = self._mirror(row, source, link, point_prefix(row.target_id))
        self.outgoing.add(row.name, mirror, [link], [source])
        return mirror

    def _mirror(self, row: MirrorRow, source: Volume, link: MirrorLink, prefix: str | None = None) -> Mirror:
        policy = policy_of(row)

        def in_use() -> list[str]:
            return [point.guid for point in self.points(row.name) if self.shows(row.target_id, point.guid)]

        async def save(record: MirrorRecord) -> None:
            if row.name in self._deciding or row.name not in self.table.rows:
                return
            present = self.table.rows[row.name]
            await self.table.put(replace(present, state=present.state | record.serialize()))

        return Mirror(
            row.name,
            source,
            link,
            self._pool.env,
            self.ledger_path(row.name),
            record=MirrorRecord.parse(row.state),
            save=save,
            tell=self.teller(row.name),
            mode=mode_of(row.mode),
            policy=policy,
            in_use=in_use,
            prefix=prefix,
        )

    def teller(self, name: str) -> Callable[[str, str], None]:
        def tell(severity: str, text: str) -> None:
            log.log(logging.ERROR if severity == "error" else logging.INFO, "%s", text)
            now = self._pool.env.clock.time()
            self._in_background(self._pool.catalog.add_event(now, severity, f"replica {name}", text))

        return tell

    def protect(self, name: str, *, taken_back: bool = False) -> None:
        """Whose the target's content is, and its write protection, by the state of the mirror or, where it does not
        run, by its record. ``taken_back``: it is the mirror's again."""
        row, mirror = self.table.rows[name], self._mirrors.get(name)
        target = self._pool.find(row.target_id)
        if target is None:
            return
        running = mirror or self.groups.mirror_of(row)
        if taken_back:
            is_fractured = False
        elif running is not None:
            is_fractured = running.standing.state is CopyState.FRACTURED
        else:
            is_fractured = MirrorRecord.parse(row.state).wanted == "fractured"
        target.content_owner = None if is_fractured else name
        target.set_read_only(not is_fractured or self._pool.row(target).read_only)

    def shows(self, target_id: str, guid: str) -> bool:
        """Whether initiators see a recovery point, as far as is known."""
        return self.is_shown is None or self.is_shown(target_id, guid)

    def ledger_path(self, name: str) -> Path:
        return self._pool.path / LEDGERS_NAME / (name + LEDGER_SUFFIX)

    @contextlib.contextmanager
    def deciding(self, name: str) -> Iterator[None]:
        """Inside, the catalogue decides on the end of a replica: nobody changes it, and no record of it comes later."""
        self._deciding.add(name)
        try:
            yield
        finally:
            self._deciding.discard(name)

    def is_being_decided(self, name: str) -> bool:
        """Whether somebody is within ``deciding`` for it."""
        return name in self._deciding

    @contextlib.contextmanager
    def renewing(self, name: str) -> Iterator[None]:
        """Inside, a mirror is put aside for another one of the same name (``renew``): nobody else changes it."""
        self._require_undecided(name)
        self._renewing.add(name)
        try:
            yield
        finally:
            self._renewing.discard(name)

    async def renew(self, row: MirrorRow) -> None:
        """Go on with a mirror as that row, which is durable, has it. The one that there was is put aside."""
        source = self._pool.by_id(row.source_id)
        self.table.rows[row.name] = row
        if row.peer is not None:
            mirror = self.remote_mirror(row, source, self.peers_of(row.peer))
        elif (disk := self.disks.link(row.name)) is not None:
            mirror = self.disk_mirror(row, source, disk)
        else:
            mirror = self.local_mirror(row, source, self._pool.by_id(row.target_id))
        await mirror.start()

    async def ended(self, name: str) -> None:
        """The relation is over, and the catalogue has recorded it; the target is a volume of its own."""
        mirror = self._mirrors.pop(name)
        self.table.forgotten(name)
        await mirror.detach()
        await self._pool.catalog.identities.forget_mirror(name)

    async def forget_row(self, name: str) -> None:
        """A member of a relation that was not made. What was made for it at a peer goes."""
        row = self.table.rows[name]
        if row.peer is not None:
            await self.makings.begin(row.target_id, row.peer)
            self.makings.failed(row.target_id, row.peer)
        await self._pool.catalog.remove_mirror(name)
        self.table.forgotten(name)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._events.add(task)
        task.add_done_callback(self._events.discard)

    # --- mirrors to peers, whose sides may be exchanged (``engine.failover``) -----------------------------------------

    @property
    def waits_for_peers(self) -> bool:
        """Whether a volume is not served before its peer was asked."""
        return any(self._is_fenced(row) for row in self.table.rows.values() if row.peer is not None)

    async def peers_asked(self, timeout_s: float) -> None:
        """Return when no volume waits for its peer any more, or the time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.waits_for_peers:  # noqa: ASYNC110 - several may change it, at the pace of the network
                    await asyncio.sleep(PEERS_LOOK_S)

    def peers_of(self, peer: str) -> Peers:
        """Raises NotFound: there are none, so not this one."""
        if self._peers is None:
            raise NotFound("peer", peer)
        return self._peers

    async def create_at_peer(
        self, name: str, source: Volume, peer: str, mode: str, *, existing: str | None = None
    ) -> str:
        """Make a volume like ``source`` at a peer, for a replica of that name; the id by which it is known there.

        Raises NotFound (no such peer), NotSupported, PeerUnreachable, and what the peer answers.
        """
        policies = self._pool.row(source)
        replica_id = str(uuid.uuid4())
        client = self.peers_of(peer).client(peer)
        await self.makings.begin(replica_id, peer)
        try:
            await client.request(
                "create" if existing is None else "attach",
                volume=existing,
                replica=replica_id,
                name=name,
                source=source.name,
                mode=mode,
                size_bytes=source.size_bytes,
                chunk_bytes=self._pool.chunk_bytes(source),
                physical_block_bytes=policies.physical_block_bytes,
                write_cache=policies.write_cache,
                removable=policies.removable,
                encrypted=self._pool.key_source(source) is not None,
            )
        except BaseException:
            self.makings.failed(replica_id, peer)
            raise
        return replica_id

    def remote_rows(self) -> list[MirrorRow]:
        return [row for row in self.table.rows.values() if row.peer is not None and GROUP_KEY not in row.state]

    def remote_row(self, name: str) -> MirrorRow | None:
        """Of the mirror of that name, if its target is at a peer."""
        row = self.table.rows.get(name)
        return row if row is not None and row.peer is not None else None

    def remote_row_of(self, peer: str, replica_id: str) -> MirrorRow | None:
        return next((row for row in self.remote_rows() if (row.peer, row.target_id) == (peer, replica_id)), None)

    def mirror_of(self, name: str) -> Mirror | None:
        return self._mirrors.get(name)

    def link_of(self, name: str) -> PeerLink:
        """Raises NotFound."""
        link = self.outgoing.link(name)
        if link is None:
            raise NotFound("running replica to a peer", name)
        return link

    def set_idle(self, name: str, why: str) -> None:
        """The mirror does not run, and says why."""
        self._idle[name] = why
        self.outgoing.remove(name)
        self._mirrors.pop(name, None)

    async def begin(self, name: str) -> None:
        """Run a mirror whose source is the disk; nothing to do if it runs. What its target claims is over on return."""
        if name not in self._mirrors and self._peers is not None:
            await self._begin_remote(self.table.rows[name], self._peers)

    async def demote(self, name: str) -> None:
        """Record that the target of a mirror that does not run has not everything; it claims nothing any more."""
        if name not in self._mirrors:
            await self._demote(self.table.rows[name])

    async def stop_remote(self, name: str) -> None:
        """Bring a mirror to rest as it is, for good."""
        mirror = self._mirrors.get(name)
        if mirror is not None:
            await mirror.close()

    def now_replica(self, name: str, target: PeerTargetRow) -> None:
        """The source of that mirror is a replica now; the catalogue has recorded it."""
        self.outgoing.remove(name)
        self._mirrors.pop(name, None)
        self._idle.pop(name, None)
        self.table.rows.pop(name)
        self.incoming.adopt(target)

    def now_member(self, row: MirrorRow, target: PeerTargetRow) -> None:
        """A replica is a member of a mirrored group here now (``ReplicaGroups.now_source``)."""
        self.incoming.give_up(target)
        self.table.rows[row.name] = row

    def superseded(self, peer: str, key: str) -> None:
        """The peer says, in this step, that a target there has taken the place of its source."""
        if self.failovers is not None:
            self.failovers.superseded(peer, key)

    def now_source(self, row: MirrorRow, target: PeerTargetRow, peers: Peers) -> None:
        """A replica is the source of that mirror now, which rests; the catalogue has recorded it."""
        self.incoming.give_up(target)
        self.table.rows[row.name] = row
        try:
            self.remote_mirror(row, self._pool.by_id(row.source_id), peers)
        except EngineError as error:
            self._idle[row.name] = str(error)

    async def _begin_remote(self, row: MirrorRow, peers: Peers) -> None:
        try:
            mirror = self.remote_mirror(row, self._pool.by_id(row.source_id), peers)
        except EngineError as error:
            log.error("replica %s does not run: %s", row.name, error)
            self._idle[row.name] = str(error)
            return
        self._idle.pop(row.name, None)
        await mirror.start()

    def _peer_began(self, peer: str) -> None:
        """There is a new client for a peer: it is one again, and its mirrors go on."""
        assert self._peers is not None
        self._in_background(self.groups.begin_remote(self._peers, peer))
        for name in self.table.at_peer(peer):
            if GROUP_KEY in self.table.rows[name].state:
                continue
            link = self.outgoing.link(name)
            if link is not None:
                link.client = self._peers.client(peer)
                continue
            if self._is_fenced(self.table.rows[name]) or self.failovers is not None:
                continue  # begun when the peer has been asked
            self._in_background(self._begin_remote(self.table.rows[name], self._peers))

    def _hold_at_start(self, row: MirrorRow) -> None:
        """What ``Mirror.start`` holds, from before its source is served."""
        record, policy = MirrorRecord.parse(row.state), policy_of(row)
        source = self._pool.find(row.source_id)
        if source is not None and policy.stops_host_io and (record.synchronized or record.held):
            source.hold_writes(row.name, f"replica {row.name}: begins again")

    async def _demote(self, row: MirrorRow) -> None:
        """What ``Mirror.start`` records before its source may be served, where the target never gets a lease."""
        record = MirrorRecord.parse(row.state)
        if record.synchronized:
            record.synchronized = False
            record.held = policy_of(row).stops_host_io
            await self.table.put(replace(row, state=row.state | record.serialize()))

    async def _fence(self, row: MirrorRow, released: bool) -> None:
        """At a start: a volume whose replica may have taken its place is not served before its peer was asked."""
        if released or policy_of(row).failover:
            with contextlib.suppress(NotFound):
                self._pool.by_id(row.source_id).fence(
                    f"peer {row.peer} has not been asked yet whether its replica {row.name} has taken its place;"
                    f" if you know that it has not: twinvol replica resolve {row.name} --serve"
                )
            self._idle[row.name] = "its peer has not been asked yet who is the disk"
        else:
            await self._demote(row)

    def _is_fenced(self, row: MirrorRow) -> bool:
        volume = self._pool.find(row.source_id)
        return volume is not None and volume.fence_reason is not None

    def is_cleared(self, key: str) -> bool:
        """Whether it is not because of that relation that its sources are not served."""
        return self.failovers is not None and self.failovers.is_cleared(key)
