"""The replicas that this pool holds for peers: which volumes those are, and what their sources may do with them.

A peer may ask only about volumes that were made here as replicas for it; a request names one by its replica id, a UUID
that the source chose. What a source asks is done by a ``LocalLink`` to the volume, so a target on a peer is what a
target beside its source is.

Invariants:

* Every request of the stream and of a round carries the connection number that ``connect`` gave; another number is
  refused. ``connect`` first waits until nothing that an earlier connection began touches the volume any more, so an
  acknowledgement that comes late belongs to nobody, and so does a write (REPLICATION section 2).
* A replica is write-protected for everybody but its source, also across restarts, unless its source has fractured it.
* The row is durable before the volume is made, and has its id before the source hears of it: a crash in between leaves
  a row without a volume, which the source's next attempt completes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.errors import AlreadyExists, EngineError, InvalidArgument, InvalidState, NotFound, NotSupported, Superseded
from engine.lease import TargetLease
from engine.links.local import LocalLink, is_recovery_point
from engine.mirror_record import point_prefix
from engine.names import check_choice, check_chunk, check_name, check_size

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from engine.catalog import VolumeRow
    from engine.catalog_mirror_groups import GroupPointRow
    from engine.catalog_peers import PeerTargetRow
    from engine.failover import Failovers
    from engine.failover_facts import SourceFacts
    from engine.failover_plan import Told
    from engine.links import Ack, LinkState, MirrorWrite
    from engine.pool import Pool
    from engine.stores import Frozen, Head
    from engine.volume import Volume

log = logging.getLogger(__name__)

MAX_REPLICAS = 1024
"""That one peer may have here."""


class IncomingReplica:
    """One volume that a peer's mirror writes. ``report``: what its source last said of the mirror, and when."""

    def __init__(self, row: PeerTargetRow, volume: Volume) -> None:
        self.row = row
        self.volume = volume
        self.fractured = False
        self.changing = asyncio.Lock()
        self.told: Told | None = None
        """What its source said last of what is missing here."""
        self.exact_until: float | None = None
        """Until when it is known to have had everything that was acknowledged, in seconds since the epoch."""
        self.report: dict[str, Any] = {}
        self.reported_at: float | None = None
        self.prefix = point_prefix(row.replica_id)
        self.lease = TargetLease(0.0)
        """What it may claim without asking its source; in RAM only."""
        self._link = LocalLink(volume, self.prefix)
        self._connection = 0
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._connecting = asyncio.Lock()
        self._taken = False

    @property
    def link(self) -> LocalLink:
        return self._link

    async def connect(self) -> LinkState:
        """See ``MirrorLink``. What an earlier connection began has ended when it returns."""
        async with self._connecting:
            self._require_not_taken()
            self._connection = 0
            self.lease.demoted()  # its source begins with a round: it is not synchronous any more
            await self._idle.wait()
            state = await self._link.connect()
            self._connection = state.ack.connection
            return state

    def disconnect(self, connection: int) -> None:
        """Requests of that connection are refused from now on."""
        if connection == self._connection:
            self._connection = 0

    async def end(self) -> None:
        """No connection from now on; nothing of one touches the volume any more when it returns."""
        async with self._connecting:
            self._connection = 0
            await self._idle.wait()

    @contextlib.asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Inside, as in ``end``; and its source connects no more, and asks for nothing. After an error it may again."""
        self._taken = True
        try:
            await self.end()
            async with self.changing:
                pass  # what is written of its row has been; and from now on nothing is
            yield
        except BaseException:
            self._taken = False
            raise

    @property
    def is_taken(self) -> bool:
        """Whether it takes the place of its source, or has."""
        return self._taken

    def _require_not_taken(self) -> None:
        if self._taken:
            raise InvalidState(f"replica {self.row.name}", "taking the place of its source", "one that does not")

    def lend(self, connection: int, length_s: float) -> TargetLease:
        """The lease that may be asked for from now on, as long as ``is_asking``. Raises InvalidState."""
        self._require(connection)
        self.lease = TargetLease(length_s)
        return self.lease

    def is_asking(self, lease: TargetLease, connection: int) -> bool:
        return lease is self.lease and connection == self._connection

    def apply_now(self, connection: int, write: MirrorWrite) -> Ack | None:
        """See ``MirrorLink``."""
        self._require(connection)
        return self._link.apply_now(write)

    @contextlib.contextmanager
    def working(self, connection: int | None) -> Iterator[None]:
        """Inside, something of a connection touches the volume. Raises InvalidState: it is not the present one.

        ``connection`` None: of any.
        """
        self._require_not_taken()
        if connection is not None:
            self._require(connection)
        self._under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    def _require(self, connection: int) -> None:
        if not connection or connection != self._connection:
            raise InvalidState(f"replica {self.row.name}", f"at connection {self._connection}", f"{connection}")

    def staging(self) -> Head:
        """Raises NotFound."""
        head = self.volume.head
        staging = head.store.staging(head.volume_id)
        if staging is None:
            raise NotFound("staging area", self.row.name)
        return staging


class Incoming:
    """See the module. By replica id."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._rows: dict[str, PeerTargetRow] = {}
        self._replicas: dict[str, IncomingReplica] = {}
        self._group_points: dict[str, GroupPointRow] = {}
        self._making = asyncio.Lock()
        self.require_unused: Callable[[Volume], None] = lambda _volume: None
        """Raises InUse: initiators have the volume."""
        self.is_taken: Callable[[str], bool] = lambda _name: False
        """Whether a replica of this pool's own has the name."""
        self._offers: dict[str, str] = {}
        self.require_attachable: Callable[[Volume], None] = lambda _volume: None
        """Raises InUse: the volume is shown, in a group, or an end of a replica."""
        self.key_for: Callable[[str], str | None] = lambda _peer: None
        """Where the key is for replicas of a peer's encrypted volumes."""
        self.is_shown: Callable[[str, str], bool] = lambda _volume_id, _guid: False
        """Whether initiators see the snapshot of that GUID of the volume of that id."""
        self.failovers: Failovers | None = None
        """Who decides which side is the disk."""
        self.is_promoted: Callable[[str, str], bool] = lambda _peer, _replica_id: False
        """Whether that replica for that peer has taken the place of its source."""

    async def restore(self) -> None:
        """Find the volumes again, and protect them."""
        self._offers = await self._pool.catalog.peers.offers()
        self._group_points = {row.group_id: row for row in await self._pool.catalog.mirror_groups.points()}
        for row in await self._pool.catalog.peers.targets():
            self._rows[row.replica_id] = row
            self._found(row)

    def all(self) -> list[PeerTargetRow]:
        return sorted(self._rows.values(), key=lambda row: row.name)

    def named(self, name: str) -> PeerTargetRow | None:
        """The row of the replica of that name."""
        return next((row for row in self._rows.values() if row.name == name), None)

    def replica_of(self, row: PeerTargetRow) -> IncomingReplica | None:
        """None: its volume is not served."""
        return self._replicas.get(row.replica_id)

    def of_volume(self, volume_id: str) -> PeerTargetRow | None:
        return next((row for row in self._rows.values() if row.volume_id == volume_id), None)

    def of_peer(self, peer: str) -> list[PeerTargetRow]:
        return [row for row in self._rows.values() if row.peer == peer]

    def get(self, peer: str, replica_id: str) -> IncomingReplica:
        """The replica that a peer asks about. Raises NotFound (also for another peer's), InvalidState."""
        row = self._rows.get(replica_id)
        if self.is_promoted(peer, replica_id):
            raise Superseded("the replica has been promoted: it is the disk now")
        if row is None or row.peer != peer:
            raise NotFound("replica for this peer", replica_id)
        replica = self._replicas.get(replica_id) or self._found(row)
        if replica is None or self._pool.find(row.volume_id) is not replica.volume:
            self._replicas.pop(replica_id, None)
            raise InvalidState(f"the volume of replica {row.name}", "gone or not served", "one that is served")
        return replica

    def known(self, peer: str, replica_id: str) -> IncomingReplica | None:
        """A replica of that peer, if its volume is served."""
        replica = self._replicas.get(replica_id)
        return replica if replica is not None and replica.row.peer == peer else None

    def points(self, row: PeerTargetRow) -> list[Frozen]:
        """The recovery points of a replica, oldest first."""
        replica = self._replicas.get(row.replica_id)
        if replica is None:
            return []
        found = replica.volume.head.store.snapshots(row.volume_id)
        return [point for point in found if is_recovery_point(point.name, replica.prefix)]

    def group_point(self, name: str) -> GroupPointRow | None:
        """The recovery point of a peer's mirrored group that is complete here: what a failover of the group takes."""
        return next((row for row in self._group_points.values() if row.name == name), None)

    def group_of(self, replica_id: str) -> GroupPointRow | None:
        """Of the group that a replica is a member of, as far as it has had one."""
        return next((row for row in self._group_points.values() if replica_id in row.members), None)

    def group_with(self, group_id: str) -> GroupPointRow | None:
        return self._group_points.get(group_id)

    def adopt_group(self, row: GroupPointRow) -> None:
        """Volumes here are the replicas of a group from now on; the catalogue has recorded it."""
        self._group_points[row.group_id] = row

    def give_up_group(self, group_id: str) -> None:
        """They are none any more; the catalogue has recorded it."""
        self._group_points.pop(group_id, None)

    def names_of(self, replica_ids: Iterable[str]) -> list[str]:
        return [self._rows[each].name for each in replica_ids if each in self._rows]

    async def complete_group(self, row: GroupPointRow) -> None:
        """A group's recovery point is complete, as its source says: durably, if all its members have it.

        Raises InvalidState: one has not, or is another group's; NotFound: one is not this peer's, or the group is
        another's.
        """
        known = self._group_points.get(row.group_id)
        if known is not None and known.peer != row.peer:
            raise NotFound("group for this peer", row.group_id)
        for replica_id in row.members:
            replica = self.get(row.peer, replica_id)
            group = self.group_of(replica_id)
            if group is not None and group.group_id != row.group_id:  # so there are no more groups than replicas
                raise InvalidState(f"replica {replica.row.name}", f"of replica group {group.name}", f"of {row.name}")
            if all(point.guid != row.guid for point in self.points(replica.row)):
                raise InvalidState(f"replica {replica.row.name}", f"without the point {row.guid}", "one that has it")
        await self._pool.catalog.mirror_groups.put_point(row)
        self._group_points[row.group_id] = row

    def kept_points(self, row: PeerTargetRow) -> list[str]:
        """GUIDs of those that initiators see, and of its group's: they stay, whatever the source says."""
        group = self.group_of(row.replica_id)
        shown = [point.guid for point in self.points(row) if self.is_shown(row.volume_id, point.guid)]
        return shown if group is None else [*shown, group.guid]

    def unit_bytes(self, replica: IncomingReplica) -> int:
        """Whole units of so many bytes are written without reading anything first."""
        return self._pool.chunk_bytes(replica.volume)

    async def create(
        self, row: PeerTargetRow, policies: VolumeRow, size_bytes: int, chunk_bytes: int, *, encrypted: bool = False
    ) -> Volume:
        """Make the volume of a replica for ``row.peer``; done already when it is said again with the same id.

        ``encrypted``: its source is, so it gets a data key of its own, wrapped by the key that is set for the peer.

        Raises AlreadyExists (a volume or replica has the name), InvalidArgument, OutOfSpace. NotSupported: no key is
        set. NotFound, PermissionDenied: it is not to be had.
        """
        key_source = self.key_for(row.peer) if encrypted else None
        if encrypted and key_source is None:
            raise NotSupported(
                f"volume {row.source} is encrypted, and no key is set for replicas of it here; its administrator says:"
                f" twinvol peer key {row.peer} file:/PATH"
            )
        check_name("replica", row.name)
        check_size(size_bytes)
        check_chunk(chunk_bytes)
        check_choice("physical block size", policies.physical_block_bytes, (512, 4096))
        async with self._making:
            known = self._rows.get(row.replica_id)
            if known is not None:
                if known.peer != row.peer:
                    raise AlreadyExists("replica", row.replica_id)
                if known.volume_id:
                    return self.get(row.peer, row.replica_id).volume
            elif self.named(row.name) is not None or self.is_taken(row.name):
                raise AlreadyExists("replica", row.name)
            if len(self.of_peer(row.peer)) >= MAX_REPLICAS:
                raise InvalidArgument(f"there are {MAX_REPLICAS} replicas for this peer already")
            if known is None:
                self._pool.require_new(row.name)
                await self._put(row)
            volume = None
            try:
                volume = await self._pool.create_volume(policies, size_bytes, chunk_bytes, key_source=key_source)
                made = replace(row, volume_id=volume.volume_id, made=1)
                await self._put(made)
            except BaseException:
                try:
                    if volume is not None:
                        await self._pool.delete_volume(volume)
                finally:
                    await self._forget(row.replica_id)
                raise
            self._found(made)
            return volume

    async def offer(self, peer: str, volume: Volume, *, withdraw: bool) -> None:
        """A peer may make this volume the replica of one of its own, which overwrites it; durable on return.

        ``withdraw``: it may not any more; a replica that is there stays. Raises NotFound: it was not offered to it.
        """
        if withdraw and self._offers.get(volume.volume_id) != peer:
            raise NotFound(f"offer to peer {peer}", volume.name)
        await self._pool.catalog.peers.put_offer(volume.volume_id, None if withdraw else peer)
        if withdraw:
            del self._offers[volume.volume_id]
        else:
            self._offers[volume.volume_id] = peer

    def offered(self, peer: str) -> list[str]:
        """Names of the volumes that are offered to a peer."""
        found = [self._pool.find(volume_id) for volume_id, to in self._offers.items() if to == peer]
        return sorted(volume.name for volume in found if volume is not None)

    async def attach(
        self, row: PeerTargetRow, name: str, like: VolumeRow, size_bytes: int, *, encrypted: bool
    ) -> Volume:
        """Make the volume ``name``, which was offered to ``row.peer``, a replica for it. What it holds is overwritten.

        Raises NotFound (no such volume, or it was not offered), AlreadyExists, InvalidArgument (another size or block),
        NotSupported (not encrypted, and its source is), InUse.
        """
        check_name("replica", row.name)
        async with self._making:
            if row.replica_id in self._rows:
                return self.get(row.peer, row.replica_id).volume
            if self.named(row.name) is not None or self.is_taken(row.name):
                raise AlreadyExists("replica", row.name)
            volume = next((each for each in self._pool.volumes() if each.name == name), None)
            if volume is None or self._offers.get(volume.volume_id) != row.peer:
                raise NotFound("volume that is offered to this peer", name)
            self.require_attachable(volume)
            if volume.size_bytes != size_bytes:
                raise InvalidArgument(f"volume {name} has {volume.size_bytes} bytes there, the source {size_bytes}")
            if (volume.physical_block_bytes, volume.removable) != (like.physical_block_bytes, like.removable):
                raise InvalidArgument(f"volume {name} is a disk of another kind: its physical block or removability")
            if encrypted and self._pool.key_source(volume) is None:
                raise NotSupported(f"volume {row.source} is encrypted, and {name} there is not")
            made = replace(row, volume_id=volume.volume_id)
            await self._put(made)
            self._found(made)
            return volume

    async def protect(self, replica: IncomingReplica, *, fractured: bool) -> None:
        """As its source says: this pool's users may write it while it is fractured. Raises InUse: they still do."""
        if replica.fractured and not fractured:
            self.require_unused(replica.volume)
        replica.fractured = fractured
        self._protect(replica)
        if fractured and replica.row.whole_on:  # what it will hold is its users'; the next switch replaces it
            await self._change(replica, whole_on="")

    async def detach(self, row: PeerTargetRow) -> None:
        """The volume is its own from now on, with what it holds. What was half copied goes."""
        replica = self._replicas.get(row.replica_id)
        if replica is not None:
            await replica.end()
            with contextlib.suppress(EngineError):
                await replica.link.abort_staging()
                await replica.link.keep_points(())
            replica.volume.content_owner = None
            replica.volume.set_read_only(self._pool.row(replica.volume).read_only)
        await self._forget(row.replica_id)

    async def abandon(self, peer: str, replica_id: str) -> None:
        """No mirror comes of what ``create`` made: its volume goes. Nothing to do when there is none.

        Raises InvalidState: it has been a whole copy. InUse: somebody uses it.
        """
        async with self._making:  # ``create`` may still be at it, for a connection that is gone
            row = self._rows.get(replica_id)
            if row is None or row.peer != peer:
                return
            if row.volume_id and not row.made:  # it was there before
                await self.detach(row)
                return
            volume = self._pool.find(row.volume_id)
            replica = self._replicas.get(replica_id)
            if volume is not None and replica is not None:
                if self.points(row):
                    raise InvalidState(f"replica {row.name}", "a whole copy", "one that never was")
                self.require_unused(volume)
                await replica.end()
                await replica.link.abort_staging()
                await self._pool.delete_volume(volume)
            await self._forget(replica_id)

    async def told(self, replica: IncomingReplica, facts: SourceFacts) -> None:
        """What a source says of itself for a failover; durable on return."""
        text = facts.serialize()
        if replica.row.facts != text:
            await self._change(replica, facts=text, mode=facts.mode or replica.row.mode)

    async def switched(self, replica: IncomingReplica) -> None:
        """The content was replaced by a whole one: it may be shown, as long as no power is lost."""
        boot = self._pool.env.files.boot_id()
        if replica.row.whole_on != boot:
            await self._change(replica, whole_on=boot)

    def is_whole(self, row: PeerTargetRow) -> bool:
        """Whether the volume's content, beside its recovery points, is write-order consistent."""
        return row.whole_on == self._pool.env.files.boot_id()

    async def _change(self, replica: IncomingReplica, **fields: Any) -> None:
        async with replica.changing:
            if replica.is_taken:
                return  # or the row would be there again when it is none any more
            row = replace(replica.row, **fields)
            await self._put(row)
            replica.row = row

    def adopt(self, row: PeerTargetRow) -> None:
        """A volume here is a replica from now on; the catalogue has recorded it."""
        self._rows[row.replica_id] = row
        self._found(row)

    def give_up(self, row: PeerTargetRow) -> None:
        """It is none any more; the catalogue has recorded it."""
        self._rows.pop(row.replica_id, None)
        replica = self._replicas.pop(row.replica_id, None)
        if replica is not None:
            replica.volume.content_owner = None
            replica.volume.set_read_only(self._pool.row(replica.volume).read_only)

    def _found(self, row: PeerTargetRow) -> IncomingReplica | None:
        volume = self._pool.find(row.volume_id) if row.volume_id else None
        if volume is None:
            return None
        replica = self._replicas[row.replica_id] = IncomingReplica(row, volume)
        self._protect(replica)
        return replica

    def _protect(self, replica: IncomingReplica) -> None:
        volume = replica.volume
        volume.content_owner = None if replica.fractured else replica.row.name
        volume.set_read_only(not replica.fractured or self._pool.row(volume).read_only)

    async def _put(self, row: PeerTargetRow) -> None:
        await self._pool.catalog.peers.put_target(row)
        self._rows[row.replica_id] = row

    async def _forget(self, replica_id: str) -> None:
        group = self.group_of(replica_id)
        if group is not None:  # it has no whole point any more
            await self._pool.catalog.mirror_groups.remove_point(group.group_id)
            del self._group_points[group.group_id]
        await self._pool.catalog.peers.remove_target(replica_id)
        self._rows.pop(replica_id, None)
        self._replicas.pop(replica_id, None)
