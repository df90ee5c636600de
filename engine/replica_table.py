"""Which replicas there are, and which volumes they hold: the rows of the catalogue, and what follows from them.

Invariants:

* A name is one replica's, whichever side of it is here. A volume is the target of one replica at most, and never of one
  while it is the source of another.
* A row is here before the catalogue has it, and until that has forgotten it: of one volume no two replicas are made.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from engine.copy_state import CopyMode
from engine.errors import AlreadyExists, EngineError, InUse, InvalidState, NotFound
from engine.failover_facts import SourceFacts
from engine.mirror_record import MirrorPolicy
from engine.modes import mode_of

if TYPE_CHECKING:
    from engine.catalog import MirrorRow
    from engine.catalog_mirror_groups import MirrorGroupRow
    from engine.peers.incoming import Incoming
    from engine.pool import Pool
    from engine.volume import Volume


GROUP_KEY = "group"
"""In the state of a member's row: the name of the mirrored group."""

POLICY_KEY = "policy"


def policy_of(row: MirrorRow | MirrorGroupRow) -> MirrorPolicy:
    """What was chosen when the mirror was made."""
    return MirrorPolicy.parse(row.state.get(POLICY_KEY, {}))


def require_single(row: MirrorRow) -> None:
    """Raises InvalidState: what is done to a member is done to its group."""
    group = row.state.get(GROUP_KEY)
    if group is not None:
        raise InvalidState(
            f"replica {row.name}",
            f"part of replica group {group}",
            f"to be said of that: twinvol group replica ... {group}",
        )


def replaces_content(mode: CopyMode) -> bool:
    """Whether a running mirror of that mode replaces its target's content as a matter of course."""
    return mode is not CopyMode.SYNCHRONOUS


class ReplicaTable:
    """See the module. ``incoming``: the replicas that are here for sources at peers."""

    def __init__(self, pool: Pool, incoming: Incoming) -> None:
        self.rows: dict[str, MirrorRow] = {}
        """Of the replicas whose sources are here, by name."""
        self._pool = pool
        self._incoming = incoming
        incoming.is_taken = lambda name: name in self.rows

    # --- by name ------------------------------------------------------------------------------------------------------

    def require_new(self, name: str) -> None:
        """Raises AlreadyExists when a replica has that name, or is about to."""
        self._pool.reserved.require_free("replica", name)
        if name in self.rows or self._incoming.named(name) is not None:
            raise AlreadyExists("replica", name)

    def row(self, name: str) -> MirrorRow:
        """Of a replica whose source is here. Raises NotFound; InvalidState: it is here for a peer."""
        row = self.rows.get(name)
        if row is None:
            arriving = self._incoming.named(name)
            if arriving is not None:
                raise InvalidState(f"replica {name}", f"here for peer {arriving.peer}", "to be said at its source")
            raise NotFound("replica", name)
        return row

    def target_id(self, name: str) -> str:
        """The id of a replica's volume; one that no volume of this pool has when it is at a peer. Raises NotFound."""
        arriving = self._incoming.named(name)
        if arriving is not None:
            return arriving.volume_id
        return self.row(name).target_id

    def target_name(self, row: MirrorRow) -> str:
        """As users see it."""
        if row.disk is not None:
            return row.disk.url
        return self.name_of(row.target_id) if row.peer is None else f"{row.peer}:{row.name}"

    def name_of(self, volume_id: str) -> str:
        """Of a volume; its id, where it is not there."""
        try:
            return self._pool.by_id(volume_id).name
        except NotFound:
            return volume_id

    def at_peer(self, peer: str) -> list[str]:
        """Names of the replicas whose targets are there."""
        return sorted(row.name for row in self.rows.values() if row.peer == peer)

    # --- by volume ----------------------------------------------------------------------------------------------------

    def counterparts(self, volume_id: str) -> list[Volume]:
        """The other sides of the mirrors that a volume is in."""
        found = []
        for row in self.rows.values():
            if volume_id in (row.source_id, row.target_id):
                other = row.target_id if volume_id == row.source_id else row.source_id
                with contextlib.suppress(EngineError):  # a volume whose file is damaged has nothing to offer
                    found.append(self._pool.by_id(other))
        return found

    def source_of(self, volume: Volume) -> str:
        """The id of the volume whose replica this is. Raises InvalidState: it is none."""
        for row in self.rows.values():
            if row.target_id == volume.volume_id:
                return row.source_id
        arriving = self._incoming.of_volume(volume.volume_id)
        if arriving is not None and arriving.facts:
            return SourceFacts.parse(arriving.facts).volume_id
        raise InvalidState(f"volume {volume.name}", "no replica", "the target of a replica, to be a path to its source")

    def port_groups_elsewhere(self) -> set[int]:
        """Target port groups by which peers show disks whose replicas are here: the same disk may be shown here."""
        return {
            number for row in self._incoming.all() if row.facts for number in SourceFacts.parse(row.facts).port_groups
        }

    def require_steady(self, volume: Volume) -> None:
        """Raises InUse when a running replica replaces the volume's content again and again."""
        owner = volume.content_owner
        if owner is not None and replaces_content(mode_of(self._mode(owner))):
            raise InUse(
                f"volume {volume.name} is the target of replica {owner}, which replaces its content with each recovery"
                f" point; show one of these: twinvol replica expose {owner}"
            )

    def require_free(self, volume: Volume, verb: str) -> None:
        """Raises InUse when a replica has the volume at one of its ends."""
        arriving = self._incoming.of_volume(volume.volume_id)
        if arriving is not None:
            raise InUse(
                f"volume {volume.name} is the replica of {arriving.source} at peer {arriving.peer}; to {verb} it,"
                f" detach that first: twinvol replica detach {arriving.name}"
            )
        for row in self.rows.values():
            if volume.volume_id in (row.source_id, row.target_id):
                end = "source" if volume.volume_id == row.source_id else "target"
                raise InUse(
                    f"volume {volume.name} is the {end} of replica {row.name}; to {verb} it,"
                    f" detach that first: twinvol replica detach {row.name}"
                )

    def require_no_target(self, source: Volume) -> None:
        """Raises InUse: a mirror writes the volume, and no other would see that."""
        is_target = any(row.target_id == source.volume_id for row in self.rows.values())
        if is_target or self._incoming.of_volume(source.volume_id) is not None:
            raise InUse(f"volume {source.name} is itself the target of a replica; a cascade is not supported")

    def require_only(self, name: str, source: Volume) -> None:
        """Raises InUse when another replica than that one has the volume at one of its ends."""
        for row in self.rows.values():
            if source.volume_id in (row.source_id, row.target_id) and row.name != name:
                raise InUse(
                    f"volume {source.name} is an end of replica {row.name}, too; detach that first:"
                    f" twinvol replica detach {row.name}"
                )

    def is_only(self, name: str, source: Volume) -> bool:
        """Whether no other replica than that one has the volume at one of its ends."""
        return not any(
            source.volume_id in (row.source_id, row.target_id) and row.name != name for row in self.rows.values()
        )

    def require_no_replica(self, volume: Volume) -> None:
        """Raises InUse: the volume has the size of its source."""
        arriving = self._incoming.of_volume(volume.volume_id)
        if arriving is not None:
            raise InUse(f"volume {volume.name} is a replica for peer {arriving.peer}; resize its source there")
        for row in self.rows.values():
            if row.target_id == volume.volume_id:
                raise InUse(
                    f"volume {volume.name} is the target of replica {row.name}; resize its source, or detach it first"
                )

    # --- changes ------------------------------------------------------------------------------------------------------

    async def add(self, row: MirrorRow, source: Volume) -> None:
        """Record a new one. Raises AlreadyExists, InUse, and what the catalogue raises: then it is not there."""
        self.require_new(row.name)
        self.require_no_target(source)
        self.rows[row.name] = row
        try:
            await self._pool.catalog.put_mirror(row)
        except BaseException:
            del self.rows[row.name]
            raise

    async def put(self, row: MirrorRow) -> None:
        """Record what has changed, or a member of a mirrored group."""
        self.rows[row.name] = row
        await self._pool.catalog.put_mirror(row)

    def forgotten(self, name: str) -> None:
        """The relation is over, and so is its record; the target is a volume of its own."""
        row = self.rows.pop(name)
        target = self._pool.find(row.target_id)
        if target is not None:
            target.content_owner = None
            target.set_read_only(self._pool.row(target).read_only)

    def _mode(self, name: str) -> str:
        arriving = self._incoming.named(name)
        return self.row(name).mode if arriving is None else arriving.mode
