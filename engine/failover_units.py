"""What changes places as one when it fails over: the mirror of a volume, or all members of a mirrored group.

Both sides know a unit by its ``key``, a UUID: the replica's id, or the group's. Its *lead* is its first member, whose
lineage stands for the unit's: entries are given to all members at once, in one transaction, with one number and GUID.

A recovery point of a group counts only when all members have it, and a row says so (``engine.mirror_group``): it is the
only one that a unit of several members goes on from.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.catalog_mirror_groups import GroupPointRow, MirrorGroupRow
from engine.errors import InUse, InvalidArgument, InvalidState, NotFound
from engine.mirror_group import GroupRecord
from engine.mirror_record import MirrorPolicy, MirrorRecord
from engine.replica_table import GROUP_KEY, POLICY_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.catalog import MirrorRow
    from engine.catalog_peers import PeerTargetRow
    from engine.links.peer import PeerLink
    from engine.mirror import Mirror
    from engine.mirror_group import GroupMirror
    from engine.peers.incoming import IncomingReplica
    from engine.peers.registry import Peers
    from engine.pool import Pool
    from engine.replicas import Replicas
    from engine.stores import Frozen
    from engine.volume import Volume

MEMBERS_MAX = 64
_ID_MAX, _NAME_MAX = 64, 64


@dataclass(frozen=True, slots=True)
class Member:
    """How one side tells the other of a member: ``replica_id`` is the same on both, the volume is its own."""

    replica_id: str
    volume_id: str
    name: str


class _Unit:
    """How a unit is spoken of."""

    __slots__ = ()
    name: str
    group: object | None

    @property
    def what(self) -> str:
        return f"replica {self.name}" if self.group is None else f"replica group {self.name}"

    @property
    def command(self) -> str:
        return "twinvol replica" if self.group is None else "twinvol group replica"


@dataclass(frozen=True, slots=True)
class SourceUnit(_Unit):
    """A relation to a peer whose source is here. ``group``: None of a single replica."""

    key: str
    peer: str
    name: str
    mode: str
    rows: tuple[MirrorRow, ...]
    group: MirrorGroupRow | None

    @property
    def lead(self) -> MirrorRow:
        return self.rows[0]

    @property
    def volume_ids(self) -> tuple[str, ...]:
        return tuple(row.source_id for row in self.rows)

    @property
    def state(self) -> dict[str, Any]:
        return self.lead.state if self.group is None else self.group.state

    @property
    def policy(self) -> MirrorPolicy:
        return MirrorPolicy.parse(self.state.get(POLICY_KEY, {}))

    @property
    def record(self) -> MirrorRecord:
        """Of the whole."""
        return MirrorRecord.parse(self.state) if self.group is None else GroupRecord.parse(self.state).group


@dataclass(frozen=True, slots=True)
class TargetUnit(_Unit):
    """A relation whose replicas are all here, and served. ``group``: None of a single replica."""

    key: str
    peer: str
    name: str
    replicas: tuple[IncomingReplica, ...]
    group: GroupPointRow | None

    @property
    def lead(self) -> IncomingReplica:
        return self.replicas[0]


class Units:
    """Both kinds of relations, looked at and changed alike."""

    def __init__(self, pool: Pool, replicas: Replicas) -> None:
        self._pool = pool
        self._replicas = replicas

    # --- whose source is here ---------------------------------------------------------------------------------------

    def sources(self) -> list[SourceUnit]:
        single = [_single(row) for row in self._replicas.remote_rows()]
        return single + [self._of_group(row) for row in self._replicas.groups.remote_rows()]

    def source(self, name: str, *, group: bool = False) -> SourceUnit | None:
        named = (unit for unit in self.sources() if unit.name == name and (unit.group is not None) is group)
        return next(named, None)

    def source_of(self, peer: str, key: str) -> SourceUnit | None:
        return next((unit for unit in self.sources() if (unit.peer, unit.key) == (peer, key)), None)

    def present(self, unit: SourceUnit) -> SourceUnit | None:
        """As it is by now; None: its source is not here any more."""
        return self.source_of(unit.peer, unit.key)

    def volumes(self, unit: SourceUnit) -> list[Volume]:
        """Raises NotFound, InvalidState: one is not served."""
        return [self._pool.by_id(volume_id) for volume_id in unit.volume_ids]

    def lead(self, unit: SourceUnit) -> Volume:
        return self._pool.by_id(unit.lead.source_id)

    def members(self, unit: SourceUnit) -> list[Member]:
        return [Member(row.target_id, row.source_id, self._pool.by_id(row.source_id).name) for row in unit.rows]

    def mirror(self, unit: SourceUnit) -> Mirror | GroupMirror | None:
        if unit.group is not None:
            return self._replicas.groups.running_mirror(unit.name)
        return self._replicas.mirror_of(unit.name)

    def running(self, unit: SourceUnit) -> Mirror | GroupMirror:
        """Raises NotFound."""
        return self._replicas.running(unit.name) if unit.group is None else self._replicas.groups.get(unit.name)

    def links(self, unit: SourceUnit) -> Sequence[PeerLink]:
        """Raises NotFound."""
        if unit.group is None:
            return [self._replicas.link_of(unit.name)]
        return self._replicas.groups.links_of(unit.name)

    def sharing(self, unit: SourceUnit) -> list[SourceUnit]:
        """Other relations to peers from one of the same volumes."""
        return [each for each in self.sources() if each.key != unit.key and {*each.volume_ids} & {*unit.volume_ids}]

    def others(self, unit: SourceUnit) -> list[str]:
        """Names of other replicas that have one of the volumes at one of their ends."""
        mine, volumes = {row.name for row in unit.rows}, {*unit.volume_ids}
        rows = self._replicas.table.rows.values()
        return sorted(row.name for row in rows if row.name not in mine and volumes & {row.source_id, row.target_id})

    def require_endable(self, unit: SourceUnit) -> None:
        """Raises InUse: another relation of its sources cannot end with what they are now: it is a group's."""
        for name in self.others(unit):
            group = self._replicas.table.rows[name].state.get(GROUP_KEY)
            if group is not None:
                raise InUse(
                    f"a source of {unit.what} is mirrored by replica group {group}, too; detach that first:"
                    f" twinvol group replica detach {group}"
                )

    async def end(self, name: str) -> None:
        """A replica whose source is one no more: nothing feeds it from now on, and its side is told, if it answers."""
        await self._replicas.detach(name, superseded=True)

    def set_idle(self, unit: SourceUnit, why: str) -> None:
        if unit.group is None:
            self._replicas.set_idle(unit.name, why)
        else:
            self._replicas.groups.set_idle(unit.name, why)

    async def begin(self, unit: SourceUnit) -> None:
        if unit.group is None:
            await self._replicas.begin(unit.name)
        else:
            await self._replicas.groups.begin(unit.name, self._replicas.peers_of(unit.peer))

    async def demote(self, unit: SourceUnit) -> None:
        if unit.group is None:
            await self._replicas.demote(unit.name)
        else:
            await self._replicas.groups.demote(unit.name)

    async def stop(self, unit: SourceUnit) -> None:
        mirror = self.mirror(unit)
        if mirror is not None:
            await mirror.close()

    @contextlib.contextmanager
    def deciding(self, unit: SourceUnit) -> Iterator[None]:
        """See ``Replicas.deciding``."""
        names = [row.name for row in unit.rows] if unit.group is None else [f"group {unit.name}"]
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(self._replicas.deciding(name))
            yield

    def _of_group(self, row: MirrorGroupRow) -> SourceUnit:
        assert row.peer is not None
        rows = tuple(self._replicas.table.rows[name] for name in row.members)
        return SourceUnit(row.group_id, row.peer, row.name, row.mode, rows, row)

    # --- whose replicas are here ------------------------------------------------------------------------------------

    def target(self, peer: str, key: str, replica_ids: Sequence[str]) -> TargetUnit | None:
        """The replicas of a peer's relation, if all of them are here and served."""
        incoming = self._replicas.incoming
        found = [incoming.known(peer, replica_id) for replica_id in replica_ids]
        replicas = tuple(replica for replica in found if replica is not None)
        if len(replicas) != len(replica_ids) or not replicas:
            return None
        if replica_ids == [key]:
            return TargetUnit(key, peer, replicas[0].row.name, replicas, None)
        point = incoming.group_with(key)
        if point is None or point.peer != peer:
            point = GroupPointRow(key, peer, "", "", 0.0, tuple(replica_ids))
        return TargetUnit(key, peer, point.name, replicas, point)

    def target_named(self, name: str, *, group: bool) -> TargetUnit:
        """Raises NotFound; InvalidState: it is part of a group, or one of the group's volumes is not served."""
        incoming = self._replicas.incoming
        if not group:
            row = incoming.named(name)
            replica = None if row is None else incoming.replica_of(row)
            if row is None or replica is None:
                raise NotFound("replica for a peer", name)
            of_group = incoming.group_of(row.replica_id)
            if of_group is not None:
                raise InvalidState(
                    f"replica {name}",
                    f"part of replica group {of_group.name}, whose others would be of another instant",
                    f"to be said of that: twinvol group replica ... {of_group.name}",
                )
            return TargetUnit(row.replica_id, row.peer, name, (replica,), None)
        point = incoming.group_point(name)
        if point is None:
            raise NotFound("replica group for a peer with a complete recovery point", name)
        found = self.target(point.peer, point.group_id, list(point.members))
        if found is None:
            raise InvalidState(f"replica group {name}", "with members that are not served", "a whole one")
        return found

    def is_target(self, unit: TargetUnit) -> bool:
        """Whether it is that still."""
        incoming = self._replicas.incoming
        return all(incoming.replica_of(each.row) is each for each in unit.replicas)

    def points(self, unit: TargetUnit) -> list[Frozen]:
        """Recovery points of the lead that are those of the unit, oldest first."""
        found = self._replicas.incoming.points(unit.lead.row)
        return found if unit.group is None else [point for point in found if point.guid == unit.group.guid]

    # --- exchanged: the catalogue has recorded it ------------------------------------------------------------------

    def now_replica(self, unit: SourceUnit, target: NewTarget) -> None:
        if unit.group is None:
            self._replicas.now_replica(unit.name, target.rows[0])
            return
        self._replicas.groups.now_replica(unit.name)
        for row, made in zip(unit.rows, target.rows, strict=True):
            self._replicas.now_replica(row.name, made)
        if target.point is not None:
            self._replicas.incoming.adopt_group(target.point)

    def now_source(self, new: SourceUnit, target: TargetUnit, peers: Peers) -> None:
        if new.group is None:
            self._replicas.now_source(new.lead, target.lead.row, peers)
            return
        self._replicas.incoming.give_up_group(new.key)
        for row, replica in zip(new.rows, target.replicas, strict=True):
            self._replicas.now_member(row, replica.row)
        self._replicas.groups.now_source(new.group, peers)


@dataclass(frozen=True, slots=True)
class NewTarget:
    """What a source becomes. ``point``: of a group, that its members have."""

    rows: tuple[PeerTargetRow, ...]
    point: GroupPointRow | None


def members_of(message: dict[str, Any]) -> list[Member]:
    """As the other side tells them. Raises InvalidArgument."""
    rows = message.get("members")
    if not isinstance(rows, list) or not 0 < len(rows) <= MEMBERS_MAX:
        raise InvalidArgument("a message without fitting members")
    found = []
    for row in rows:
        match row:
            case [str(replica_id), str(volume_id), str(name)] if (
                0 < len(replica_id) <= _ID_MAX and 0 < len(volume_id) <= _ID_MAX and 0 < len(name) <= _NAME_MAX
            ):
                found.append(Member(replica_id, volume_id, name))
            case _:
                raise InvalidArgument("a message without fitting members")
    return found


def told(members: Sequence[Member]) -> list[list[str]]:
    """For the other side."""
    return [[each.replica_id, each.volume_id, each.name] for each in members]


def _single(row: MirrorRow) -> SourceUnit:
    assert row.peer is not None
    return SourceUnit(row.target_id, row.peer, row.name, row.mode, (row,), None)
