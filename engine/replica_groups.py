"""The mirrored groups of a pool: made, kept across restarts, and shown. A part of ``engine.replicas``.

Each member has a row of its own among the replicas, so that everything that holds for an end of a replica holds for it;
what is done is done to the group (``engine.mirror_group``). The group's row makes the relation: it is written after the
members' rows, and goes with them in one transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.catalog import MirrorRow
from engine.catalog_mirror_groups import MirrorGroupRow
from engine.errors import AlreadyExists, EngineError, InUse, InvalidState, NotFound, PeerUnreachable
from engine.lease import length_s, wait_s
from engine.links.local import LocalLink
from engine.mirror_group import GroupMirror, GroupRecord, Member
from engine.mirror_record import MirrorPolicy, RecoveryPoint, point_prefix
from engine.modes import mode_of
from engine.names import check_name
from engine.replica_info import info_at_rest, mirror_info, trouble
from engine.replica_table import GROUP_KEY, POLICY_KEY, policy_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from engine.api import ReplicaInfo
    from engine.links import MirrorLink
    from engine.links.peer import PeerLink
    from engine.mirror_terms import MirrorTerms
    from engine.peers.registry import Peers
    from engine.pool import Pool
    from engine.replica_runs import ReplicaRuns
    from engine.volume import Volume

log = logging.getLogger(__name__)


class ReplicaGroups:
    """See the module. ``replicas``: whose part this is."""

    def __init__(self, pool: Pool, replicas: ReplicaRuns) -> None:
        self._replicas = replicas
        self._pool = pool
        self._tables = pool.catalog.mirror_groups
        self._rows: dict[str, MirrorGroupRow] = {}
        self._mirrors: dict[str, GroupMirror] = {}
        self._idle: dict[str, str] = {}
        self._links: dict[str, list[PeerLink]] = {}

    # --- from start to end ------------------------------------------------------------------------------------------

    async def restore(self, released: Collection[str] = ()) -> None:
        """Start those of the catalogue; members that belong to none were being made when the daemon ended.

        ``released``: ids of volumes that have given their identities away.
        """
        self._rows = {row.name: row for row in await self._tables.all()}
        known = {name for row in self._rows.values() for name in row.members}
        for member in list(self._replicas.table.rows.values()):
            if GROUP_KEY in member.state and member.name not in known:
                await self._replicas.forget_row(member.name)
        remote = []
        for row in list(self._rows.values()):
            if row.peer is not None:
                self._idle[row.name] = "the peers are not there yet"
                ids = {member.source_id for member in self._members(row)}
                if policy_of(row).failover or ids & {*released}:
                    self._fence(row)
                else:
                    remote.append(row)
                continue
            try:
                self._begin(row, [self._local_link(member) for member in self._members(row)])
            except EngineError as error:
                self._keep_idle(row, error)
            for name in row.members:
                self._replicas.protect(name)
        # Each may have to wait until its targets claim nothing any more.
        await asyncio.gather(*(self._demote(row) for row in remote), *(m.start() for m in self._mirrors.values()))

    async def begin_remote(self, peers: Peers, peer: str | None = None) -> None:
        """The peers are there, or one of them is again."""
        for row in list(self._rows.values()):
            if row.peer is None or peer not in (None, row.peer):
                continue
            if row.name in self._mirrors:
                for link in self._links[row.name]:
                    link.client = peers.client(row.peer)
            elif not self.is_fenced(row) and (peer is None or self._replicas.failovers is None):
                await self._start_at_peer(row, peers)  # else begun when the peer has been asked

    async def _start_at_peer(self, row: MirrorGroupRow, peers: Peers) -> None:
        try:
            mirror = self._begin_at_peer(row, peers)
        except EngineError as error:
            self._keep_idle(row, error)
        else:
            self._idle.pop(row.name, None)
            await mirror.start()

    def running(self, *, remote: bool | None = None) -> list[GroupMirror]:
        """Those that run: all, or those to peers, or those here."""
        return [
            mirror
            for name, mirror in self._mirrors.items()
            if remote is None or (self._rows[name].peer is not None) is remote
        ]

    def _keep_idle(self, row: MirrorGroupRow, error: EngineError) -> None:
        log.error("replica group %s does not run: %s", row.name, error)
        self._idle[row.name] = str(error)

    async def _demote(self, row: MirrorGroupRow) -> None:
        """As ``Replicas`` does it for a single one: what its targets may still hold is waited for."""
        record = GroupRecord.parse(row.state)
        if record.group.synchronized:
            policy = policy_of(row)
            await asyncio.sleep(wait_s(length_s(policy.budget_s)))
            record.group.synchronized = False
            await self._put(replace(row, state=row.state | record.serialize()))

    # --- groups at peers, whose sides may be exchanged (``engine.failover``) ----------------------------------------

    def remote_rows(self) -> list[MirrorGroupRow]:
        return [row for row in self._rows.values() if row.peer is not None]

    def running_mirror(self, name: str) -> GroupMirror | None:
        return self._mirrors.get(name)

    def links_of(self, name: str) -> Sequence[PeerLink]:
        """Raises NotFound."""
        if name not in self._links:
            raise NotFound("running replica group to a peer", name)
        return self._links[name]

    def set_idle(self, name: str, why: str) -> None:
        """The mirror does not run, and says why."""
        self._replicas.outgoing.remove(f"group {name}")
        self._mirrors.pop(name, None)
        self._links.pop(name, None)
        self._idle[name] = why

    async def begin(self, name: str, peers: Peers) -> None:
        """Run a mirror whose sources are the disks; nothing to do if it runs. What its targets claim is over on
        return."""
        if name not in self._mirrors:
            await self._start_at_peer(self._rows[name], peers)

    async def demote(self, name: str) -> None:
        """Record that the targets of a mirror that does not run have not everything; they claim nothing any more."""
        if name not in self._mirrors:
            await self._demote(self._rows[name])

    def now_replica(self, name: str) -> None:
        """The sources are replicas now; the catalogue has recorded it."""
        self._replicas.outgoing.remove(f"group {name}")
        for index in (self._rows, self._mirrors, self._links, self._idle):
            index.pop(name, None)

    def now_source(self, row: MirrorGroupRow, peers: Peers) -> None:
        """Replicas are the sources of that mirror now, which rests; the catalogue has recorded it."""
        self._rows[row.name] = row
        try:
            self._begin_at_peer(row, peers)
        except EngineError as error:
            self._keep_idle(row, error)

    def is_fenced(self, row: MirrorGroupRow) -> bool:
        found = [self._pool.find(member.source_id) for member in self._members(row)]
        return any(volume is not None and volume.fence_reason is not None for volume in found)

    def _fence(self, row: MirrorGroupRow) -> None:
        """At a start: volumes whose replicas may have taken their places are not served before the peer was asked."""
        for member in self._members(row):
            volume = self._pool.find(member.source_id)
            if volume is not None:
                volume.fence(
                    f"peer {row.peer} has not been asked yet whether its replica group {row.name} has taken its place;"
                    f" if you know that it has not: twinvol group replica resolve {row.name} --serve"
                )
        self._idle[row.name] = "its peer has not been asked yet who is the disk"

    # --- looking ----------------------------------------------------------------------------------------------------

    def all(self) -> list[ReplicaInfo]:
        return [self.info(name) for name in sorted(self._rows)]

    def names(self) -> list[str]:
        return sorted(self._rows)

    def reasons(self) -> list[str]:
        """As ``Replicas.reasons``."""
        lines = [f"replica group {name} does not run: {why}" for name, why in self._idle.items()]
        return lines + [
            line for name, mirror in self._mirrors.items() for line in trouble(f"replica group {name}", mirror)
        ]

    def info(self, name: str) -> ReplicaInfo:
        """Of the whole. Raises NotFound."""
        row = self._row(name)
        target = name if row.peer is None else f"{row.peer}:{name}"
        return replace(self._info(row), name=name, source=row.group, target=target, members=list(row.members))

    def member_info(self, row: MirrorRow) -> ReplicaInfo:
        """Of a member's replica: the group's state, which is its own."""
        source, target = self._replicas.table.name_of(row.source_id), self._replicas.table.name_of(row.target_id)
        if row.peer is not None:
            target = f"{row.peer}:{row.name}"
        return replace(self._info(self._row(row.state[GROUP_KEY])), name=row.name, source=source, target=target)

    def _info(self, row: MirrorGroupRow) -> ReplicaInfo:
        """Of the relation, with no name and no ends yet."""
        mirror = self._mirrors.get(row.name)
        if mirror is None:
            return replace(info_at_rest(row.mode, row.peer, self._idle.get(row.name, "")), group=row.name)
        info = mirror_info(mirror, row.mode, row.peer)
        return replace(
            info, next_action=info.next_action.replace("twinvol replica ", "twinvol group replica "), group=row.name
        )

    def points(self, name: str) -> Sequence[RecoveryPoint]:
        """Recovery points that all members' targets have, oldest first. Raises NotFound."""
        row, mirror = self._row(name), self._mirrors.get(name)
        return GroupRecord.parse(row.state).group.points if mirror is None else mirror.points

    def get(self, name: str) -> GroupMirror:
        """Raises NotFound."""
        self._row(name)
        mirror = self._mirrors.get(name)
        if mirror is None:
            raise NotFound("running replica group", name)
        return mirror

    def mirror_of(self, row: MirrorRow) -> GroupMirror | None:
        """Of a member's row, if it runs."""
        return self._mirrors.get(row.state.get(GROUP_KEY, ""))

    def members(self, name: str) -> tuple[str, ...]:
        """Names of the members' replicas. Raises NotFound."""
        return self._row(name).members

    def with_source(self, volume: Volume) -> Iterator[GroupMirror]:
        for mirror in self._mirrors.values():
            if any(member.source is volume for member in mirror.members):
                yield mirror

    def require_unmirrored(self, group: str) -> None:
        """Raises InUse: its members are those of a relation."""
        for row in self._rows.values():
            if row.group == group:
                raise InUse(
                    f"group {group} is mirrored by {row.name}; detach that first:"
                    f" twinvol group replica detach {row.name}"
                )

    def require_new(self, name: str) -> None:
        self._pool.reserved.require_free("replica group", name)
        if name in self._rows or self._replicas.incoming.group_point(name) is not None:
            raise AlreadyExists("replica group", name)

    # --- changing ---------------------------------------------------------------------------------------------------

    async def add(self, name: str, group: str, peer: str | None, terms: MirrorTerms) -> GroupMirror:
        """Mirror a group to new volumes NAME.VOLUME, here or at a peer; it is started when this returns.

        Raises AlreadyExists, NotFound, NotSupported, InUse, and what the peer answers: then nothing is left of it.
        """
        check_name("replica group", name)
        self.require_new(name)
        volumes = [self._pool.volume(each) for each in self._pool.groups.info(group).members]
        names = [check_name("replica", f"{name}.{volume.name}") for volume in volumes]
        for volume, member in zip(volumes, names, strict=True):
            self._replicas.table.require_new(member)
            self._replicas.table.require_no_target(volume)
        row = MirrorGroupRow(name, group, str(uuid.uuid4()), terms.mode, peer, tuple(names))
        state = GroupRecord.new(len(names)).serialize() | {POLICY_KEY: MirrorPolicy.of(terms).serialize()}
        made: list[MirrorRow] = []
        try:
            for volume, member in zip(volumes, names, strict=True):
                target_id = await self._make_target(volume, member, terms.mode, peer)
                made.append(MirrorRow(member, volume.volume_id, target_id, terms.mode, {GROUP_KEY: name}, peer))
                await self._replicas.table.put(made[-1])
                self._replicas.protect(member)
            await self._put(replace(row, state=state))
        except BaseException:
            await self._undo(made)
            raise
        if peer is None:
            mirror = self._begin(row, [self._local_link(member) for member in made])
        else:
            mirror = self._begin_at_peer(row, self._replicas.peers_of(peer))
        await mirror.start()
        return mirror

    async def _make_target(self, volume: Volume, name: str, mode: str, peer: str | None) -> str:
        """The id of the new target, at a peer that of the replica."""
        if peer is not None:
            return await self._replicas.create_at_peer(name, volume, peer, mode)
        self._pool.require_new(name)
        like = replace(self._pool.row(volume), name=name, read_only=False, origin="")
        key_source, chunk_bytes = self._pool.key_source(volume), self._pool.chunk_bytes(volume)
        made = await self._pool.create_volume(like, volume.size_bytes, chunk_bytes, key_source=key_source)
        return made.volume_id

    async def _undo(self, made: Sequence[MirrorRow]) -> None:
        """The making failed: no relation, and no volume; at a peer as soon as that is there (``PeerMakings``)."""
        for row in made:
            with contextlib.suppress(EngineError):
                await self._replicas.forget_row(row.name)
                if row.peer is None:
                    await self._pool.delete_volume(self._pool.by_id(row.target_id))

    async def rest(self, name: str, *, fractured: bool) -> None:
        """Fracture or suspend."""
        mirror = self.get(name)
        await (mirror.fracture() if fractured else mirror.suspend())
        await self._protect(name, fractured=fractured)

    async def resync(self, name: str) -> GroupMirror:
        """Raises InUse: initiators have a member's target."""
        mirror = self.get(name)
        await self._protect(name, fractured=False)
        try:
            await mirror.resync()
        finally:
            for member in self._row(name).members:
                self._replicas.protect(member)
        return mirror

    async def _protect(self, name: str, *, fractured: bool) -> None:
        """Whose the targets are: here by the mirror's state, at a peer as it is told."""
        for member in self._row(name).members:
            self._replicas.protect(member, taken_back=not fractured)
        if name in self._links:
            with contextlib.suppress(PeerUnreachable):  # then it is told when it is there again
                await self._replicas.outgoing.report(f"group {name}", fractured=fractured)

    async def detach(self, name: str) -> None:
        """End the relation; the targets stay as they are, volumes of their own."""
        row, mirror = self._row(name), self._mirrors.get(name)
        if row.peer is not None and self.is_fenced(row) and not self._replicas.is_cleared(row.group_id):
            raise InvalidState(
                f"replica group {name}",
                "in doubt about who is the disk",
                f"twinvol group replica resolve {name} --serve or --yield",
            )
        links = self._links.get(name, [])
        for link in links:
            link.given_up = link.given_up or not link.client.is_connected
        if mirror is not None:
            await mirror.detach()
        self._replicas.outgoing.remove(f"group {name}")
        for link in links:
            with contextlib.suppress(EngineError):
                await link.ask("detach", connection=None)
        await self._tables.remove(row)
        for index in (self._rows, self._mirrors, self._links, self._idle):
            index.pop(name, None)
        for member in row.members:
            self._replicas.table.forgotten(member)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _begin(self, row: MirrorGroupRow, links: Sequence[MirrorLink]) -> GroupMirror:
        row = self._rows[row.name]
        members = [
            Member(
                member.name,
                self._pool.by_id(member.source_id),
                link,
                self._replicas.ledger_path(member.name),
                None if row.peer is None else point_prefix(member.target_id),  # the same on both sides
            )
            for member, link in zip(self._members(row), links, strict=True)
        ]
        policy = policy_of(row)

        def in_use() -> list[str]:
            targets = [member.target_id for member in self._members(row)]
            guids = [point.guid for point in self.points(row.name)]
            return [guid for guid in guids if any(self._replicas.shows(target, guid) for target in targets)]

        async def save(record: GroupRecord) -> None:
            present = self._rows.get(row.name)
            if present is not None and not self._replicas.is_being_decided(f"group {row.name}"):
                await self._put(replace(present, state=present.state | record.serialize()))

        async def completed(point: RecoveryPoint) -> None:
            peer_links = self._links.get(row.name)
            if peer_links:
                ids = [str(link.replica_id) for link in peer_links]
                at_us = int(point.at * 1e6)
                await peer_links[0].client.request(
                    "group_point", group=row.group_id, name=row.name, guid=point.guid, at_us=at_us, replicas=ids
                )

        mirror = GroupMirror(
            row.name,
            members,
            self._pool.env,
            record=GroupRecord.parse(row.state),
            save=save,
            tell=self._replicas.teller(row.name),
            mode=mode_of(row.mode),
            policy=policy,
            in_use=in_use,
            completed=completed,
        )
        self._mirrors[row.name] = mirror
        return mirror

    def _begin_at_peer(self, row: MirrorGroupRow, peers: Peers) -> GroupMirror:
        from engine.links.peer import PeerLink  # late: TLS, which a pool without peers does without

        assert row.peer is not None
        client, clock, policy = peers.client(row.peer), self._pool.env.clock, policy_of(row)
        links = [
            PeerLink(
                client,
                uuid.UUID(member.target_id),
                f"{row.peer}:{member.name}",
                clock,
                may_fail_over=policy.failover,
            )
            for member in self._members(row)
        ]
        for link in links:
            link.superseded = lambda: self._replicas.superseded(str(row.peer), row.group_id)
        self._links[row.name] = links
        mirror = self._begin(row, links)
        self._replicas.outgoing.add(f"group {row.name}", mirror, links, [member.source for member in mirror.members])
        return mirror

    def _local_link(self, member: MirrorRow) -> LocalLink:
        return LocalLink(self._pool.by_id(member.target_id), point_prefix(member.name))

    def _members(self, row: MirrorGroupRow) -> list[MirrorRow]:
        return [self._replicas.table.rows[name] for name in row.members]

    async def _put(self, row: MirrorGroupRow) -> None:
        await self._tables.put(row)
        self._rows[row.name] = row

    def _row(self, name: str) -> MirrorGroupRow:
        row = self._rows.get(name)
        if row is None:
            raise NotFound("replica group", name)
        return row
