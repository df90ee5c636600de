"""What is a copy of what, as both models show it: mirrors, snapshots, full clones that are not detached, and groups.

An *element* is known by an id: that of a volume, the GUID of a snapshot, or, at a peer, the name of the replica. A
``Copy`` is a relation of two of them; a ``GroupCopy`` one of several pairs. Both are computed at each request from what
``EngineApi`` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from cim_facade.value_maps import (
    MODES,
    CopyMethodology,
    CopyState,
    CopyType,
    Mode,
    ProgressStatus,
    ReplicaType,
    SyncState,
    SyncType,
    copy_state,
    copy_type,
    progress_status,
    sync_state,
)
from engine.api import each_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from cim_facade.context import View
    from engine.api import GroupRelationInfo, PairInfo, RelationInfo, ReplicaInfo, SnapshotInfo, VolumeInfo

Info = TypeVar("Info")

KINDS = {
    "mirror": SyncType.MIRROR,
    "snapshot": SyncType.SNAPSHOT,
    "clone": SyncType.CLONE,
    "token": SyncType.TOKENIZED_CLONE,
}
"""As the engine says them."""


@dataclass(frozen=True, slots=True)
class Copy:
    """``source`` and ``target``: ids of elements. ``source_at``, ``target_at``: the peer where it is, if at one, or
    the URL of a disk of elsewhere, which is known by the name of the replica, too.

    ``established_at``, ``synchronized_at``: None where nobody knows. ``rpo_s``: of asynchronous mirrors.
    ``replica``: the mirror's name; ``mirrored_group``: that of the mirrored group that it is a member of.
    ``volume``: the name of a snapshot's volume, ``snapshot`` its own. ``source_guid``: the snapshot of ``source`` that
    a clone was made of.
    """

    sync_type: SyncType
    source: str
    target: str
    state: CopyState = CopyState.SYNCHRONIZED
    progress: ProgressStatus = ProgressStatus.COMPLETED
    percent: int = 100
    mode: Mode | None = None
    source_at: str | None = None
    target_at: str | None = None
    established_at: float | None = None
    synchronized_at: float | None = None
    changed_at: float | None = None
    rpo_s: float | None = None
    reason: str = ""
    replica: str | None = None
    volume: str | None = None
    snapshot: str | None = None
    group_snapshot: str | None = None
    mirrored_group: str | None = None
    stops_host_io: bool = False
    source_guid: str | None = None

    @property
    def source_element(self) -> str:
        """The id of the element that it is a copy of."""
        return self.source_guid or self.source

    @property
    def copy_type(self) -> CopyType:
        return copy_type(self.sync_type, self.mode)

    @property
    def sync_state(self) -> SyncState:
        return sync_state(self.sync_type, self.state, self.progress)

    @property
    def is_remote(self) -> bool:
        return self.source_at is not None or self.target_at is not None

    @property
    def maintained(self) -> bool:
        """SyncMaintained: a mirror that flows, or would by itself."""
        return self.sync_type is SyncType.MIRROR and self.state in (
            CopyState.INITIALIZED,
            CopyState.UNSYNCHRONIZED,
            CopyState.SYNCHRONIZED,
        )

    @property
    def replica_type(self) -> ReplicaType:
        return ReplicaType.AFTER_DELTA if self.sync_type is SyncType.SNAPSHOT else ReplicaType.FULL_COPY

    @property
    def methodology(self) -> CopyMethodology:
        if self.sync_type is SyncType.SNAPSHOT:
            return CopyMethodology.REDIRECT_ON_WRITE
        return CopyMethodology.INCREMENTAL_COPY if self.sync_type is SyncType.MIRROR else CopyMethodology.FULL_COPY


@dataclass(frozen=True, slots=True)
class GroupCopy:
    """A relation of groups, or of one source to several targets; it has ``members``. ``target_group``: a GUID.
    ``source``: a group's GUID, or (``of_element``) an element's id."""

    info: GroupRelationInfo
    sync_type: SyncType
    source: str
    of_element: bool
    target_group: str
    members: list[Copy]

    @property
    def guid(self) -> str:
        return self.info.guid

    @property
    def state(self) -> CopyState:
        states = {member.state for member in self.members}
        return states.pop() if len(states) == 1 else CopyState.MIXED

    @property
    def progress(self) -> ProgressStatus:
        found = {member.progress for member in self.members}
        return found.pop() if len(found) == 1 else ProgressStatus.MIXED

    @property
    def percent(self) -> int:
        return min((member.percent for member in self.members), default=100)


# --- by the kinds of copies -------------------------------------------------------------------------------------


async def replicas(view: View) -> list[ReplicaInfo]:
    return await view.once("replicas", view.api.replica_list)


async def clone_relations(view: View) -> list[RelationInfo]:
    return await view.once("relations", view.api.relation_list)


async def group_relations(view: View) -> list[GroupRelationInfo]:
    return await view.once("group relations", view.api.group_relation_list)


async def snapshots_of(view: View, volume: str) -> list[SnapshotInfo]:
    """Oldest first. None of a volume that is not served."""

    async def ask() -> list[SnapshotInfo]:
        info = (await view.volumes_named([volume])).get(volume)
        if info is None or not info.snapshots:
            return []
        return await each_snapshot(view.api, volume)

    return await view.once(f"snapshots of {volume}", ask)


async def mirrors(view: View) -> list[Copy]:
    async def ask() -> list[Copy]:
        return await _each(view, mirror_of, await replicas(view))

    return await view.once("mirrors", ask)


async def _each(view: View, made: Callable[[Info], Copy], infos: list[Info]) -> list[Copy]:
    """There may be thousands."""
    found = []
    for info in infos:
        found.append(made(info))
        await view.breathe()
    return found


def mirror_of(info: ReplicaInfo) -> Copy:
    def element(volume_id: str | None, text: str) -> tuple[str, str | None]:
        """Its id, and where it is, if not here."""
        return (info.name, info.peer or text) if volume_id is None else (volume_id, None)

    source, source_at = element(info.source_id, info.source)
    target, target_at = element(info.target_id, info.target)
    mode = MODES[info.mode]
    state = copy_state(info.copy_state)
    return Copy(
        sync_type=SyncType.MIRROR,
        source=source,
        target=target,
        state=state,
        progress=progress_status(info.progress_status),
        percent=100 if state in (CopyState.SYNCHRONIZED, CopyState.RESTORED) else info.percent_synced,
        mode=mode,
        source_at=source_at,
        target_at=target_at,
        synchronized_at=info.point_at,
        changed_at=info.since,
        rpo_s=0.0 if mode is Mode.SYNCHRONOUS else info.rpo_seconds,
        reason=info.reason,
        replica=info.name,
        mirrored_group=info.group,
        stops_host_io=info.failed_copy_stops_host_io,
    )


async def clones(view: View) -> list[Copy]:
    async def ask() -> list[Copy]:
        return await _each(view, clone_of, await clone_relations(view))

    return await view.once("clones", ask)


def clone_of(info: RelationInfo) -> Copy:
    return Copy(
        sync_type=KINDS[info.kind],
        source=info.source_id,
        target=info.target_id,
        established_at=info.established_at,
        synchronized_at=info.established_at,
        source_guid=info.source_guid,
    )


def of_snapshot(volume: VolumeInfo, info: SnapshotInfo) -> Copy:
    return Copy(
        sync_type=SyncType.SNAPSHOT,
        source=volume.volume_id,
        target=info.guid,
        established_at=info.created_at,
        synchronized_at=info.created_at,
        volume=volume.name,
        snapshot=info.name,
        group_snapshot=info.group,
    )


# --- looking up -------------------------------------------------------------------------------------------------


async def copies_of(view: View, element: str) -> list[Copy]:
    """Those that have the element as their source."""
    found = [*(await _by_source(view)).get(element, ())]
    volume = await view.volume(element)
    if volume is not None:
        found += [of_snapshot(volume, info) for info in await snapshots_of(view, volume.name)]
    return found


async def copy_into(view: View, element: str, *, volume: str | None = None) -> Copy | None:
    """The one that has the element as its target. ``volume``: the name of the volume whose snapshot it is."""
    if volume is not None:
        source = (await view.volumes_named([volume])).get(volume)
        found = [info for info in await snapshots_of(view, volume) if info.guid == element]
        return of_snapshot(source, found[0]) if source is not None and found else None
    mirror = (await mirrors_by_end(view)).get(element)
    return mirror if mirror is not None and mirror.target == element else (await _clones_by_target(view)).get(element)


async def _by_source(view: View) -> dict[str, list[Copy]]:
    """Mirrors and clones."""

    async def index() -> dict[str, list[Copy]]:
        found: dict[str, list[Copy]] = {}
        for copy in (*await mirrors(view), *await clones(view)):
            found.setdefault(copy.source_element, []).append(copy)
            await view.breathe()
        return found

    return await view.once("copies by source", index)


async def mirrors_by_end(view: View) -> dict[str, Copy]:
    """By their names, and by the ids of their targets."""

    async def index() -> dict[str, Copy]:
        found: dict[str, Copy] = {}
        for copy in await mirrors(view):
            for key in (copy.target, copy.replica or ""):
                found.setdefault(key, copy)
            await view.breathe()
        return found

    return await view.once("mirrors by end", index)


async def _clones_by_target(view: View) -> dict[str, Copy]:
    """A volume is the clone of one."""

    async def index() -> dict[str, Copy]:
        found: dict[str, Copy] = {}
        for copy in await clones(view):
            found[copy.target] = copy
            await view.breathe()
        return found

    return await view.once("clones by target", index)


async def all_copies(view: View) -> list[Copy]:
    found = [*await mirrors(view), *await clones(view)]
    for volume in await view.volumes():
        if volume.snapshots:
            found += [of_snapshot(volume, info) for info in await snapshots_of(view, volume.name)]
            await view.breathe()
    return found


async def group_copies(view: View) -> list[GroupCopy]:
    async def ask() -> list[GroupCopy]:
        found = []
        for info in await group_relations(view):
            found.append(await group_copy(view, info))
            await view.breathe()
        return [group for group in found if group.members]  # else its pairs are related no more, one by one

    return await view.once("group copies", ask)


async def group_copy(view: View, info: GroupRelationInfo) -> GroupCopy:
    kind = KINDS[info.kind]
    found = [await _copy_of_pair(view, kind, pair) for pair in info.pairs]
    members = [copy for copy in found if copy is not None]
    return GroupCopy(
        info=info,
        sync_type=kind,
        source=info.source,
        of_element=await view.volume(info.source) is not None,
        target_group=info.target_group or info.guid,
        members=members,
    )


async def _copy_of_pair(view: View, kind: SyncType, pair: PairInfo) -> Copy | None:
    """The copy that a pair is; None: it was detached."""
    if kind is SyncType.SNAPSHOT:
        volume, snapshot = await view.volume(pair.source_id), await view.snapshot(pair.source_id, pair.target)
        return None if volume is None or snapshot is None else of_snapshot(volume, snapshot)
    if kind is SyncType.MIRROR:  # its ends change when it fails over
        return (await mirrors_by_end(view)).get(pair.target)
    clone = (await _clones_by_target(view)).get(pair.target)
    return clone if clone is not None and clone.source == pair.source_id else None
