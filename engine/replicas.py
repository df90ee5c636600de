"""The mirrors of a pool: made, kept across restarts, and shown.

A replica is a ``Mirror`` between two volumes of this pool, with a name. Its catalogue row holds the mirror's own
record; ``restore`` starts all of them before the sources are served, so that no source acknowledges anything before
its mirror knows (REPLICATION section 3). A mirror whose target is at a peer begins once the peers are there
(``begin_remote``); what has to be on record before its source is served is recorded by ``restore``.

A replica that is here for a source at a peer (``engine.peers.incoming``) is shown, too; what is done with it is said at
its source, but for ``detach``.

The target is write-protected for everybody but the mirror, except while the replica is fractured: then it is its
owner's, and the next resync overwrites what was written to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.catalog import MirrorRow
from engine.copy_job import CopyControl
from engine.copy_state import CopyMode, CopyState, ProgressStatus, label
from engine.disk_targets import DiskTargets
from engine.errors import (
    AlreadyExists,
    EngineError,
    IntegrityError,
    InUse,
    InvalidArgument,
    InvalidState,
    NotFound,
    NotSupported,
    PeerUnreachable,
)
from engine.failover_facts import SourceFacts
from engine.links.local import LocalLink
from engine.mirror import Mirror
from engine.mirror_record import MirrorPolicy, MirrorRecord, RecoveryPoint, point_prefix
from engine.modes import mode_of
from engine.peers.incoming import Incoming
from engine.peers.makings import PeerMakings
from engine.peers.outgoing import Outgoing
from engine.peers.rate import check_rate
from engine.pool_folder import LEDGER_SUFFIX, LEDGERS_NAME
from engine.pool_space import SpaceState
from engine.replica_groups import GROUP_KEY, POLICY_KEY, ReplicaGroups, require_single, trouble
from engine.units import GIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
    from pathlib import Path

    from engine.api import ReplicaInfo
    from engine.catalog_peers import PeerTargetRow
    from engine.copy_job import CopyProgress
    from engine.disk_targets import DiskOpener, DiskSecrets
    from engine.failover import Failovers
    from engine.jobs import Job
    from engine.links import MirrorLink
    from engine.links.disk import DiskLink
    from engine.links.peer import PeerLink
    from engine.mirror_group import GroupMirror
    from engine.mirror_terms import MirrorTerms
    from engine.peers.registry import Peers
    from engine.pool import Pool
    from engine.volume import Volume

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 0.2


PEERS_LOOK_S = 0.05

REMOTE_END_S = 10.0
"""At the end, what mirrors have asked of their peers is waited for so long."""

TEND_INTERVAL_S = 10.0
"""How often it is looked at what mirrors hold back: sums over the maps of their points."""

HELD_BACK_SHARE, HELD_BACK_MIN_BYTES = 0.25, 1 * GIB


def held_back_bytes_max(size_bytes: int) -> int:
    """What the common point of a mirror may hold back of its source's space: a quarter of its size, at least 1 GiB."""
    return max(HELD_BACK_MIN_BYTES, int(size_bytes * HELD_BACK_SHARE))


class Replicas:
    """See the module. ``software`` is named in proofs."""

    def __init__(self, pool: Pool, *, software: str) -> None:
        self._pool = pool
        self.software = software
        self._mirrors: dict[str, Mirror] = {}
        self._rows: dict[str, MirrorRow] = {}
        self._idle: dict[str, str] = {}
        self._deciding: set[str] = set()
        self._events: set[asyncio.Task[None]] = set()
        self._tend_at = float("-inf")
        self.is_shown: Callable[[str, str], bool] | None = None
        """Whether initiators see the snapshot of that GUID of the volume of that id. None: not known yet."""
        self.incoming = Incoming(pool)
        self.incoming.is_taken = lambda name: name in self._rows
        self.outgoing = Outgoing()
        self.disks = DiskTargets(pool)
        self.makings = PeerMakings(pool.catalog.peers)
        self._peers: Peers | None = None
        self.groups = ReplicaGroups(pool, self)
        self.failovers: Failovers | None = None
        """Who decides which side of a mirror to a peer is the disk."""
        self.without_peers: str | None = None
        """Why peers are not served, where they should be."""
        pool.integrity.copies = self.counterparts

    async def restore(self) -> None:
        """Start the mirrors of the catalogue. One whose volumes are not there waits, with its reason."""
        await self._drop_orphans()
        await self.incoming.restore()
        await self.makings.restore()
        released = await self._pool.catalog.failover.releases()
        for row in await self._pool.catalog.mirrors():
            self._rows[row.name] = row
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
            link = LocalLink(target, point_prefix(row.name))
            self._mirrors[row.name] = self._mirror(row, source, link)
            self.protect(row.name)
        # Each may have to wait until its target claims nothing any more.
        await asyncio.gather(self.groups.restore(), *(mirror.start() for mirror in self._mirrors.values()))

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
        for row in list(self._rows.values()):
            if row.disk is None:
                continue
            try:
                source = self._pool.by_id(row.source_id)
                mirror = self._disk_mirror(row, source, await self.disks.link_to(row, source))
            except EngineError as error:
                log.error("replica %s does not run: %s", row.name, error)
                self._idle[row.name] = str(error)
                continue
            self._idle.pop(row.name, None)
            await mirror.start()

    def _disk_mirror(self, row: MirrorRow, source: Volume, link: DiskLink) -> Mirror:
        mirror = self._mirrors[row.name] = self._mirror(row, source, link)
        self.disks.add(mirror, link)
        return mirror

    async def _begin_remote(self, row: MirrorRow, peers: Peers) -> None:
        try:
            mirror = self._remote_mirror(row, self._pool.by_id(row.source_id), peers)
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
        for name in self.at_peer(peer):
            if GROUP_KEY in self._rows[name].state:
                continue
            link = self.outgoing.link(name)
            if link is not None:
                link.client = self._peers.client(peer)
                continue
            if self._is_fenced(self._rows[name]) or self.failovers is not None:
                continue  # begun when the peer has been asked
            task = asyncio.ensure_future(self._begin_remote(self._rows[name], self._peers))
            self._events.add(task)
            task.add_done_callback(self._events.discard)

    async def end_remote(self) -> None:
        """Stop the mirrors to peers, which end after this."""
        if self.failovers is not None:
            await self.failovers.close()
        await self.outgoing.close()
        remote = [mirror for name, mirror in self._mirrors.items() if self._rows[name].peer is not None]
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

    def counterparts(self, volume_id: str) -> list[Volume]:
        """The other sides of the mirrors that a volume is in."""
        found = []
        for row in self._rows.values():
            if volume_id in (row.source_id, row.target_id):
                other = row.target_id if volume_id == row.source_id else row.source_id
                with contextlib.suppress(EngineError):  # a volume whose file is damaged has nothing to offer
                    found.append(self._pool.by_id(other))
        return found

    # --- looking ----------------------------------------------------------------------------------------------

    def all(self) -> list[ReplicaInfo]:
        return [self.info(name) for name in sorted({*self._rows, *(row.name for row in self.incoming.all())})]

    def reasons(self) -> list[str]:
        """One line for each replica that does not do what it is for, and was not told so by its owner."""
        lines = [] if self.without_peers is None else [f"peers are not served: {self.without_peers}"]
        lines += [f"replica {name} does not run: {why}" for name, why in self._idle.items()]
        for name, mirror in self._mirrors.items():
            lines += trouble(f"replica {name}", mirror)
        return lines + self.groups.reasons()

    def info(self, name: str) -> ReplicaInfo:
        """Raises NotFound."""
        arriving = self.incoming.named(name)
        if arriving is not None:
            return replace(self._incoming_info(arriving), target_id=arriving.volume_id)
        row = self._row(name)
        target_id = row.target_id if row.peer is None and row.disk is None else None
        return replace(self._info(row), source_id=row.source_id, target_id=target_id)

    def _info(self, row: MirrorRow) -> ReplicaInfo:
        from engine.api import ReplicaInfo  # late: see there

        name = row.name
        mirror = self._mirrors.get(name)
        if GROUP_KEY in row.state:
            return self.groups.member_info(row)
        if mirror is None:
            return ReplicaInfo(
                name=name,
                source=self.name_of(row.source_id),
                target=self._target_name(row),
                mode=row.mode,
                sync_type="Mirror",
                copy_state=label(CopyState.INVALID),
                progress_status=label(ProgressStatus.UNKNOWN),
                percent_synced=0,
                lag_seconds=None,
                lag_bytes=0,
                rpo_seconds=None,
                peer=row.peer,
                reason=self._idle.get(name, ""),
                since=None,
                waits_for="its volumes",
                next_action="twinvol status",
            )
        standing, disk = mirror.standing, self.disks.link(name)
        return ReplicaInfo(
            name=name,
            source=mirror.source.name,
            target=mirror.link.target_name,
            mode=row.mode,
            sync_type=label(mirror.sync_type),
            copy_state=label(standing.state),
            progress_status=label(standing.progress),
            percent_synced=mirror.figures.percent_synced,
            lag_seconds=mirror.figures.lag_s,
            lag_bytes=mirror.figures.lag_bytes,
            rpo_seconds=mirror.figures.rpo_s,
            peer=row.peer,
            reason=standing.reason,
            since=standing.since,
            waits_for=standing.waits_for,
            next_action=standing.next_action,
            exact=mirror.figures.is_exact,
            forecast_seconds=mirror.figures.forecast_s,
            promise=None if mirror.figures.promise is None else mirror.figures.promise.value,
            latency_budget_seconds=None if mirror.mode is CopyMode.ASYNCHRONOUS else mirror.policy.budget_s,
            points=0 if disk is not None else len(mirror.points),
            point_at=mirror.points[-1].at if mirror.points else None,
            target_consistent=disk is None or disk.is_whole,
            failed_copy_stops_host_io=mirror.policy.stops_host_io,
            host_io_stopped=mirror.source.is_held_by(name),
            switches=mirror.switches,
            rounds=mirror.figures.rounds,
            resumed_rounds=mirror.figures.rounds_resumed,
            written_bytes=mirror.figures.written_bytes,
            identical_bytes=mirror.figures.equal_bytes,
            rate_bytes_s=MirrorPolicy.parse(row.state.get(POLICY_KEY, {})).rate_bytes_s,
        )

    def _incoming_info(self, row: PeerTargetRow) -> ReplicaInfo:
        """As its source said last, if that is there."""
        from engine.api import ReplicaInfo  # late: see there

        replica = self.incoming.replica_of(row)
        connected = self._peers is not None and self._peers.is_served(row.peer)
        report = replica.report if replica is not None and connected else {}
        points = self.incoming.points(row)
        newest = points[-1].created_at if points else None
        if replica is None:
            reason = "its volume is not served"
        elif report:
            reason = str(report["reason"])
        else:
            reason = f"peer {row.peer}, where its source is, is not connected"
        return ReplicaInfo(
            name=row.name,
            source=f"{row.peer}:{row.source}",
            target=self.name_of(row.volume_id),
            mode=row.mode,
            sync_type="Mirror",
            copy_state=report.get("copy_state", label(CopyState.BROKEN)),
            progress_status=report.get("progress_status", label(ProgressStatus.UNKNOWN)),
            percent_synced=report.get("percent_synced", 0),
            lag_seconds=None if newest is None else max(0.0, self._pool.env.clock.time() - newest),
            lag_bytes=0,
            rpo_seconds=None,
            peer=row.peer,
            reason=reason,
            since=None if replica is None else replica.reported_at,
            waits_for="" if report else "its source",
            next_action=f"twinvol replica show {row.name}, at peer {row.peer}",
            points=len(points),
            point_at=newest,
        )

    @property
    def waits_for_peers(self) -> bool:
        """Whether a volume is not served before its peer was asked."""
        return any(self._is_fenced(row) for row in self.remote_rows())

    async def peers_asked(self, timeout_s: float) -> None:
        """Return when no volume waits for its peer any more, or the time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.waits_for_peers:  # noqa: ASYNC110 - several may change it, at the pace of the network
                    await asyncio.sleep(PEERS_LOOK_S)

    # --- mirrors to peers, whose sides may be exchanged (``engine.failover``) ----------------------------------------

    def remote_rows(self) -> list[MirrorRow]:
        return [row for row in self._rows.values() if row.peer is not None and GROUP_KEY not in row.state]

    def remote_row(self, name: str) -> MirrorRow | None:
        """Of the mirror of that name, if its target is at a peer."""
        row = self._rows.get(name)
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
            await self._begin_remote(self._rows[name], self._peers)

    async def demote(self, name: str) -> None:
        """Record that the target of a mirror that does not run has not everything; it claims nothing any more."""
        if name not in self._mirrors:
            await self._demote(self._rows[name])

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
        self._rows.pop(name)
        self.incoming.adopt(target)

    def now_source(self, row: MirrorRow, target: PeerTargetRow, peers: Peers) -> None:
        """A replica is the source of that mirror now, which rests; the catalogue has recorded it."""
        self.incoming.give_up(target)
        self._rows[row.name] = row
        try:
            self._remote_mirror(row, self._pool.by_id(row.source_id), peers)
        except EngineError as error:
            self._idle[row.name] = str(error)

    async def _fence(self, row: MirrorRow, released: bool) -> None:
        """At a start: a volume whose replica may have taken its place is not served before its peer was asked."""
        policy = MirrorPolicy.parse(row.state.get(POLICY_KEY, {}))
        if released or policy.failover:
            with contextlib.suppress(NotFound):
                self._pool.by_id(row.source_id).fence(
                    f"peer {row.peer} has not been asked yet whether its replica {row.name} has taken its place;"
                    f" if you know that it has not: twinvol replica resolve {row.name} --serve"
                )
            self._idle[row.name] = "its peer has not been asked yet who is the disk"
        elif not policy.failover:
            await self._demote(row)

    def _is_fenced(self, row: MirrorRow) -> bool:
        volume = self._pool.find(row.source_id)
        return volume is not None and volume.fence_reason is not None

    def _is_cleared(self, name: str) -> bool:
        return self.failovers is not None and self.failovers.is_cleared(name)

    def at_peer(self, peer: str) -> list[str]:
        """Names of the replicas whose targets are there."""
        return sorted(row.name for row in self._rows.values() if row.peer == peer)

    def points(self, name: str) -> Sequence[RecoveryPoint]:
        """Recovery points that are complete at the target, oldest first."""
        arriving = self.incoming.named(name)
        if arriving is not None:
            return [RecoveryPoint(point.guid, point.created_at) for point in self.incoming.points(arriving)]
        mirror, row = self._mirrors.get(name), self._row(name)
        if row.disk is not None:
            return ()  # it has none: only what it is
        if GROUP_KEY in row.state:
            return self.groups.points(row.state[GROUP_KEY])
        return MirrorRecord.parse(row.state).points if mirror is None else mirror.points

    def require_free(self, volume: Volume, verb: str) -> None:
        """Raises InUse when a replica has the volume at one of its ends."""
        arriving = self.incoming.of_volume(volume.volume_id)
        if arriving is not None:
            raise InUse(
                f"volume {volume.name} is the replica of {arriving.source} at peer {arriving.peer}; to {verb} it,"
                f" detach that first: twinvol replica detach {arriving.name}"
            )
        for row in self._rows.values():
            if volume.volume_id in (row.source_id, row.target_id):
                end = "source" if volume.volume_id == row.source_id else "target"
                raise InUse(
                    f"volume {volume.name} is the {end} of replica {row.name}; to {verb} it,"
                    f" detach that first: twinvol replica detach {row.name}"
                )

    @contextlib.asynccontextmanager
    async def resizing(self, volume: Volume) -> AsyncIterator[None]:
        """Inside, the volume may be resized. Its replicas stand aside and get the size with the next round.

        Raises InUse: it is the target of a replica.
        """
        arriving = self.incoming.of_volume(volume.volume_id)
        if arriving is not None:
            raise InUse(f"volume {volume.name} is a replica for peer {arriving.peer}; resize its source there")
        for row in self._rows.values():
            if row.target_id == volume.volume_id:
                raise InUse(
                    f"volume {volume.name} is the target of replica {row.name}; resize its source, or detach it first"
                )
        async with contextlib.AsyncExitStack() as stack:
            for mirror in [mirror for mirror in self._mirrors.values() if mirror.source is volume]:
                await stack.enter_async_context(mirror.interrupted("its source is resized"))
            for group in list(self.groups.with_source(volume)):
                await stack.enter_async_context(group.interrupted("a member is resized"))
            yield

    def replaces_content(self, mode: CopyMode) -> bool:
        """Whether a running mirror of that mode replaces its target's content as a matter of course."""
        return mode is not CopyMode.SYNCHRONOUS

    def require_steady(self, volume: Volume) -> None:
        """Raises InUse when a running replica replaces the volume's content again and again."""
        owner = volume.content_owner
        if owner is not None and self.replaces_content(mode_of(self.info(owner).mode)):
            raise InUse(
                f"volume {volume.name} is the target of replica {owner}, which replaces its content with each recovery"
                f" point; show one of these: twinvol replica expose {owner}"
            )

    def running(self, name: str) -> Mirror:
        """Raises NotFound."""
        return self._get(name)

    def require_only(self, name: str, source: Volume) -> None:
        """Raises InUse when another replica than that one has the volume at one of its ends."""
        for row in self._rows.values():
            if source.volume_id in (row.source_id, row.target_id) and row.name != name:
                raise InUse(
                    f"volume {source.name} is an end of replica {row.name}, too; detach that first:"
                    f" twinvol replica detach {row.name}"
                )

    def is_only(self, name: str, source: Volume) -> bool:
        """Whether no other replica than that one has the volume at one of its ends."""
        return not any(
            source.volume_id in (row.source_id, row.target_id) and row.name != name for row in self._rows.values()
        )

    def target_id(self, name: str) -> str:
        """The id of a replica's volume; one that no volume of this pool has when it is at a peer. Raises NotFound."""
        arriving = self.incoming.named(name)
        if arriving is not None:
            return arriving.volume_id
        return self._row(name).target_id

    def port_groups_elsewhere(self) -> set[int]:
        """Target port groups by which peers show disks whose replicas are here: the same disk may be shown here."""
        return {
            number for row in self.incoming.all() if row.facts for number in SourceFacts.parse(row.facts).port_groups
        }

    def source_of(self, volume: Volume) -> str:
        """The id of the volume whose replica this is. Raises InvalidState: it is none."""
        for row in self._rows.values():
            if row.target_id == volume.volume_id:
                return row.source_id
        arriving = self.incoming.of_volume(volume.volume_id)
        if arriving is not None and arriving.facts:
            return SourceFacts.parse(arriving.facts).volume_id
        raise InvalidState(f"volume {volume.name}", "no replica", "the target of a replica, to be a path to its source")

    # --- changing ---------------------------------------------------------------------------------------------

    async def add(self, name: str, source: Volume, target: Volume, terms: MirrorTerms) -> Job:
        """Make ``target`` a mirror of ``source``; what it held is lost. The job ends when synchronized.

        Raises AlreadyExists, InUse (the target is an end of another replica), InvalidArgument (sizes differ).
        """
        self.require_new(name)
        if source is target:
            raise InvalidArgument(f"volume {source.name} cannot be a replica of itself")
        self.require_free(target, "make it a target")
        self.require_no_target(source)
        if source.size_bytes != target.size_bytes:
            raise InvalidArgument(
                f"volume {target.name} has {target.size_bytes} bytes, the source {source.size_bytes}: resize it first"
            )
        row = MirrorRow(name, source.volume_id, target.volume_id, terms.mode, _new_state(terms))
        self._rows[name] = row
        target.content_owner = name
        try:
            await self._pool.catalog.put_mirror(row)
        except BaseException:
            del self._rows[name]
            target.content_owner = None
            raise
        mirror = self._mirrors[name] = self._mirror(row, source, LocalLink(target, point_prefix(name)))
        self.protect(name)
        try:
            await mirror.start()
            return await self.synchronizing(mirror, "replica")
        except BaseException:
            with contextlib.suppress(EngineError):  # the first error is the one to report
                await self.detach(name)
            raise

    async def add_remote(
        self,
        name: str,
        source: Volume,
        peer: str,
        terms: MirrorTerms,
        *,
        existing: str | None = None,
    ) -> Job:
        """Make a volume ``name`` at a peer, and mirror ``source`` to it. The job ends when synchronized.

        ``existing``: mirror it to that volume of the peer's instead, which was offered to us (``peer offer``).

        Raises AlreadyExists, NotFound (no such peer), PeerUnreachable, and what the peer answers.
        """
        self.require_new(name)
        peers = self.peers_of(peer)
        self.require_no_target(source)
        replica_id = await self.create_at_peer(name, source, peer, terms.mode, existing=existing)
        row = MirrorRow(name, source.volume_id, replica_id, terms.mode, _new_state(terms), peer)
        try:
            self.require_new(name)
            self.require_no_target(source)
            self._rows[name] = row
            await self._pool.catalog.put_mirror(row)
        except BaseException:
            if self._rows.get(name) is row:
                del self._rows[name]
            self.makings.failed(replica_id, peer)
            raise
        mirror = self._remote_mirror(row, source, peers)
        await mirror.start()
        return await self.synchronizing(mirror, "replica")

    async def add_disk(self, name: str, source: Volume, url: str, secrets: DiskSecrets, terms: MirrorTerms) -> Job:
        """Keep a disk of elsewhere a mirror of ``source``; what it held is lost. The job ends when synchronized.

        Raises AlreadyExists, InUse, InvalidArgument (too small, or a volume of this pool), NotSupported (adaptive), and
        what keeps the disk from being opened: PeerUnreachable, PermissionDenied.
        """
        self.require_new(name)
        self.require_no_target(source)
        if terms.copy_mode is CopyMode.ADAPTIVE:
            raise NotSupported(
                "an adaptive mirror is consistent at every moment, which a disk without snapshots is not"
            )
        disk = await self.disks.row(url, secrets)
        row = MirrorRow(name, source.volume_id, str(uuid.uuid4()), terms.mode, _new_state(terms), disk=disk)
        link = None
        try:
            link = await self.disks.link_to(row, source)
            await self.disks.require_fit(link, source)
            self.require_new(name)
            self.require_no_target(source)
            self._rows[name] = row
            await self._pool.catalog.put_mirror(row)
        except BaseException:
            if self._rows.get(name) is row:
                del self._rows[name]
            if link is not None:
                await link.close()
            await self.disks.forget(disk)
            raise
        mirror = self._disk_mirror(row, source, link)
        await mirror.start()
        return await self.synchronizing(mirror, "replica")

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

    def peers_of(self, peer: str) -> Peers:
        """Raises NotFound: there are none, so not this one."""
        if self._peers is None:
            raise NotFound("peer", peer)
        return self._peers

    def require_no_target(self, source: Volume) -> None:
        """Raises InUse: a mirror writes the volume, and no other would see that."""
        is_target = any(row.target_id == source.volume_id for row in self._rows.values())
        if is_target or self.incoming.of_volume(source.volume_id) is not None:
            raise InUse(f"volume {source.name} is itself the target of a replica; a cascade is not supported")

    def require_new(self, name: str) -> None:
        """Raises AlreadyExists when a replica has that name, or is about to."""
        self._pool.reserved.require_free("replica", name)
        if name in self._rows or self.incoming.named(name) is not None:
            raise AlreadyExists("replica", name)

    async def fracture(self, name: str) -> ReplicaInfo:
        mirror = self._get(name)
        await mirror.fracture()
        self.protect(name)
        await self._release_disk(name)
        if self.outgoing.link(name) is not None:
            with contextlib.suppress(PeerUnreachable):  # then it is told when it is there again
                await self.outgoing.report(name, fractured=True)
        return self.info(name)

    async def pause(self, name: str) -> ReplicaInfo:
        await self._get(name).suspend()
        return self.info(name)

    async def resume(self, name: str) -> Job:
        mirror = self._get(name)
        await mirror.resume()
        return await self.synchronizing(mirror, "resume")

    async def resync(self, name: str) -> Job:
        """Bring the target up to date by what changed. What was written to a fractured target is lost."""
        mirror = self._get(name)
        if self.outgoing.link(name) is not None:
            await self.outgoing.report(name, fractured=False)
        elif self._rows[name].disk is not None:
            if mirror.standing.state is CopyState.FRACTURED:
                await self._release_disk(name)
        else:
            target = self._pool.by_id(self._rows[name].target_id)
            target.set_read_only(True)
            target.content_owner = name
        try:
            await mirror.resync()
        finally:
            self.protect(name)
        return await self.synchronizing(mirror, "resync")

    async def limit(self, name: str, rate_bytes_s: int) -> ReplicaInfo:
        """See ``EngineApi.replica_limit``."""
        self._get(name)
        row, link = self._rows[name], self.outgoing.link(name)
        if link is None:
            raise NotSupported(f"replica {name} is not at a peer: nothing of it is sent anywhere")
        check_rate(rate_bytes_s)
        policy = MirrorPolicy.parse(row.state.get(POLICY_KEY, {}))
        limited = replace(policy, rate_bytes_s=rate_bytes_s)
        self._rows[name] = row = replace(row, state=row.state | {POLICY_KEY: limited.serialize()})
        await self._pool.catalog.put_mirror(row)
        link.bucket.rate_bytes_s = rate_bytes_s
        return self.info(name)

    async def _release_disk(self, name: str) -> None:
        """Its users may write to it, or have."""
        link = self.disks.link(name)
        if link is not None:
            await link.release()

    async def tend(self) -> None:
        """To be called now and then: no mirror holds back more of its source's space than it may, and none at all
        while the pool is short of space."""
        if self._peers is not None:
            await self.makings.tend(self._peers)
        now = self._pool.env.clock.boottime()
        if now < self._tend_at:
            return
        self._tend_at = now + TEND_INTERVAL_S
        short = self._pool.space.state is not SpaceState.OK
        for mirror in list(self._mirrors.values()):
            await mirror.thin(0 if short else held_back_bytes_max(mirror.source.size_bytes))
        for group in self.groups.running():
            await group.thin(0 if short else held_back_bytes_max(sum(m.source.size_bytes for m in group.members)))

    async def detach(self, name: str) -> None:
        """End the relation; the target stays as it is, a volume of its own."""
        arriving = self.incoming.named(name)
        if arriving is not None:
            await self.incoming.detach(arriving)
            return
        row = self._row(name)
        require_single(row)
        self._require_undecided(name)
        if row.peer is not None and self._is_fenced(row) and not self._is_cleared(name):
            raise InvalidState(
                f"replica {name}",
                "in doubt about who is the disk",
                f"twinvol replica resolve {name} --serve or --yield",
            )
        mirror, link = self._mirrors.get(name), self.outgoing.link(name)
        if link is not None and not link.client.is_connected:
            link.given_up = True
        self.disks.let_be(name)
        if mirror is not None:
            await mirror.detach()
        if link is not None:
            self.outgoing.remove(name)
            with contextlib.suppress(EngineError):  # its volume stays protected there until it is detached there, too
                await link.ask("detach", connection=None)
        await self._pool.catalog.remove_mirror(name)
        self._mirrors.pop(name, None)
        self._idle.pop(name, None)
        del self._rows[name]
        if row.disk is not None:
            await self.disks.remove(name)
            await self.disks.forget(row.disk)
        with contextlib.suppress(NotFound):
            target = self._pool.by_id(row.target_id)
            target.content_owner = None
            target.set_read_only(self._pool.row(target).read_only)

    @contextlib.contextmanager
    def deciding(self, name: str) -> Iterator[None]:
        """Inside, the catalogue decides on the end of a replica: nobody changes it, and no record of it comes later."""
        self._deciding.add(name)
        try:
            yield
        finally:
            self._deciding.discard(name)

    async def ended(self, name: str) -> None:
        """The relation is over, and the catalogue has recorded it; the target is a volume of its own."""
        mirror, row = self._mirrors.pop(name), self._rows.pop(name)
        target = self._pool.by_id(row.target_id)
        target.content_owner = None
        target.set_read_only(self._pool.row(target).read_only)
        await mirror.detach()
        await self._pool.catalog.identities.forget_mirror(name)

    async def verify(self, name: str) -> Job:
        """Compare both sides by hash tree. The job's result has the ``proof`` document."""
        mirror = self._get(name)

        async def work(job: Job) -> dict[str, Any]:
            document = await mirror.verify(self.software, control=_reporting(job))
            if not document.identical:
                raise IntegrityError(
                    f"replica {name}", 0, document.differing_bytes, document.source.root, document.target.root
                )
            return {
                "identical": True,
                "root": document.source.root,
                "size_bytes": document.size_bytes,
                "unverified_bytes": document.unverified_bytes,
                "proof": document.serialize(),
            }

        return await self._pool.jobs.start("verify", name, work)

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

    # --- for mirrored groups, whose members have rows here ----------------------------------------------------------

    @property
    def rows(self) -> Mapping[str, MirrorRow]:
        return self._rows

    async def put_row(self, row: MirrorRow) -> None:
        """Record a member. Where that fails, ``forget_row`` is to follow."""
        self._rows[row.name] = row
        await self._pool.catalog.put_mirror(row)

    async def forget_row(self, name: str) -> None:
        """A member of a relation that was not made. What was made for it at a peer goes."""
        row = self._rows[name]
        if row.peer is not None:
            await self.makings.begin(row.target_id, row.peer)
            self.makings.failed(row.target_id, row.peer)
        await self._pool.catalog.remove_mirror(name)
        self.forgotten(name)

    def forgotten(self, name: str) -> None:
        """The relation is over, and so is its record; the target is a volume of its own."""
        row = self._rows.pop(name)
        target = self._pool.find(row.target_id)
        if target is not None:
            target.content_owner = None
            target.set_read_only(self._pool.row(target).read_only)

    def ledger_path(self, name: str) -> Path:
        return self._pool.path / LEDGERS_NAME / (name + LEDGER_SUFFIX)

    def shows(self, target_id: str, guid: str) -> bool:
        """Whether initiators see a recovery point, as far as is known."""
        return self.is_shown is None or self.is_shown(target_id, guid)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._events.add(task)
        task.add_done_callback(self._events.discard)

    # --- inside -----------------------------------------------------------------------------------------------

    def _remote_mirror(self, row: MirrorRow, source: Volume, peers: Peers) -> Mirror:
        from engine.links.peer import PeerLink  # late: TLS, which a pool without peers does without

        assert row.peer is not None
        policy = MirrorPolicy.parse(row.state.get(POLICY_KEY, {}))
        link = PeerLink(
            peers.client(row.peer),
            uuid.UUID(row.target_id),
            f"{row.peer}:{row.name}",
            self._pool.env.clock,
            may_fail_over=policy.failover,
        )
        link.bucket.rate_bytes_s = policy.rate_bytes_s
        link.superseded = lambda: None if self.failovers is None else self.failovers.superseded(row.name)
        mirror = self._mirrors[row.name] = self._mirror(row, source, link, point_prefix(row.target_id))
        self.outgoing.add(mirror, [link], [source])
        return mirror

    def _hold_at_start(self, row: MirrorRow) -> None:
        """What ``Mirror.start`` holds, from before its source is served."""
        record, policy = MirrorRecord.parse(row.state), MirrorPolicy.parse(row.state.get(POLICY_KEY, {}))
        source = self._pool.find(row.source_id)
        if source is not None and policy.stops_host_io and (record.synchronized or record.held):
            source.hold_writes(row.name, f"replica {row.name}: begins again")

    async def _demote(self, row: MirrorRow) -> None:
        """What ``Mirror.start`` records before its source may be served, where the target never gets a lease."""
        record = MirrorRecord.parse(row.state)
        if record.synchronized:
            record.synchronized = False
            record.held = MirrorPolicy.parse(row.state.get(POLICY_KEY, {})).stops_host_io
            self._rows[row.name] = saved = replace(row, state=row.state | record.serialize())
            await self._pool.catalog.put_mirror(saved)

    def _mirror(self, row: MirrorRow, source: Volume, link: MirrorLink, prefix: str | None = None) -> Mirror:
        policy = MirrorPolicy.parse(row.state.get(POLICY_KEY, {}))

        def in_use() -> list[str]:
            guids = [point.guid for point in self.points(row.name)]
            shown = self.is_shown
            return guids if shown is None else [guid for guid in guids if shown(row.target_id, guid)]

        async def save(record: MirrorRecord) -> None:
            if row.name in self._deciding or row.name not in self._rows:
                return
            present = self._rows[row.name]
            saved = self._rows[row.name] = replace(present, state=present.state | record.serialize())
            await self._pool.catalog.put_mirror(saved)

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
            task = asyncio.ensure_future(self._pool.catalog.add_event(now, severity, f"replica {name}", text))
            self._events.add(task)
            task.add_done_callback(self._events.discard)

        return tell

    def protect(self, name: str, *, taken_back: bool = False) -> None:
        """Whose the target's content is, and its write protection, by the state of the mirror or, where it does not
        run, by its record. ``taken_back``: it is the mirror's again."""
        row, mirror = self._rows[name], self._mirrors.get(name)
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

    async def synchronizing(self, mirror: Mirror | GroupMirror, kind: str) -> Job:
        """A job that ends when ``mirror`` is synchronized, or at rest in another state."""

        async def work(job: Job) -> dict[str, Any]:
            waiting = asyncio.create_task(mirror.wait_synchronized())
            try:
                while not waiting.done():
                    await asyncio.wait([waiting], timeout=PROGRESS_INTERVAL_S)
                    job.progress(*mirror.figures.progress_bytes)
                waiting.result()
            finally:
                waiting.cancel()
            return {
                "replica": mirror.name,
                "rounds": mirror.figures.rounds,
                "written_bytes": mirror.figures.written_bytes,
            }

        return await self._pool.jobs.start(kind, mirror.name, work)

    def _require_undecided(self, name: str) -> None:
        if name in self._deciding:
            raise InvalidState(f"replica {name}", "being promoted", "one that is not")

    def _get(self, name: str) -> Mirror:
        require_single(self._row(name))
        self._require_undecided(name)
        mirror = self._mirrors.get(name)
        if mirror is None:
            raise NotFound("running replica", name)
        return mirror

    def _row(self, name: str) -> MirrorRow:
        row = self._rows.get(name)
        if row is None:
            arriving = self.incoming.named(name)
            if arriving is not None:
                raise InvalidState(f"replica {name}", f"here for peer {arriving.peer}", "to be said at its source")
            raise NotFound("replica", name)
        return row

    def _target_name(self, row: MirrorRow) -> str:
        if row.disk is not None:
            return row.disk.url
        return self.name_of(row.target_id) if row.peer is None else f"{row.peer}:{row.name}"

    def name_of(self, volume_id: str) -> str:
        try:
            return self._pool.by_id(volume_id).name
        except NotFound:
            return volume_id


def _new_state(terms: MirrorTerms) -> dict[str, Any]:
    return MirrorRecord().serialize() | {POLICY_KEY: MirrorPolicy.of(terms).serialize()}


def _reporting(job: Job) -> CopyControl:
    def report(progress: CopyProgress) -> None:
        job.progress(progress.done_bytes, progress.total_bytes)

    return CopyControl(on_progress=report)
