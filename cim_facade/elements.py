"""From references to what they refer to, and back: volumes, snapshots, synchronizations, groups, jobs.

Everything is asked of the engine by its id; a reference that leads nowhere is None. ``paths`` has the keys; here they
are joined with what is there.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from pywbem import CIMInstanceName

from cim_facade import synchronizations
from cim_facade.namespaces import STORAGE
from cim_facade.paths import VOLUME_CLASS
from cim_facade.synchronizations import Copy, GroupCopy
from cim_facade.value_maps import SyncType
from engine.api import ORDER_POINT
from engine.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cim_facade.context import View
    from engine.api import GroupInfo, GroupSnapshotInfo, JobInfo, PeerInfo, SnapshotInfo, VolumeInfo

JOB_CLASS = "MSISCSITARGET_ConcreteJob"
SYNCHRONIZED_CLASS = "MSISCSITARGET_StorageSynchronized"
GROUP_SYNCHRONIZED_CLASS = "MSISCSITARGET_GroupSynchronized"
GROUP_CLASS = "MSISCSITARGET_ReplicationGroup"
ENTITY_CLASS = "MSISCSITARGET_ReplicationEntity"
ACCESS_POINT_CLASS = "MSISCSITARGET_RemoteServiceAccessPoint"
PEER_SYSTEM_CLASS = "MSISCSITARGET_PeerSystem"

JOB, GROUP, ENTITY, PEER = "job", "group", "replica", "peer"
"""Kinds in an InstanceID."""


class Element(NamedTuple):
    """A volume, or one of its snapshots."""

    volume: VolumeInfo
    snapshot: SnapshotInfo | None = None

    @property
    def identity(self) -> str:
        return self.volume.volume_id if self.snapshot is None else self.snapshot.guid

    @property
    def snapshot_name(self) -> str | None:
        return None if self.snapshot is None else self.snapshot.name


async def find(view: View, path: CIMInstanceName) -> Element | None:
    """The element of a path in the storage namespace."""
    if path.classname.lower() != VOLUME_CLASS.lower():
        return None
    key = (await view.paths()).volume_key(path.keybindings)
    return None if key is None else await by_key(view, key.volume_id, key.snapshot_guid)


async def by_key(view: View, volume_id: str, guid: str | None) -> Element | None:
    volume = await view.volume(volume_id)
    if volume is None or guid is None:
        return None if volume is None else Element(volume)
    snapshot = await view.snapshot(volume_id, guid)
    return None if snapshot is None else Element(volume, snapshot)


# --- synchronizations -------------------------------------------------------------------------------------------


async def source_path(view: View, copy: Copy) -> CIMInstanceName:
    paths = await view.paths()
    if copy.source_at is not None:
        return paths.by_id(ENTITY_CLASS, ENTITY, copy.replica)
    return paths.volume(copy.source, copy.source_guid)


async def target_path(view: View, copy: Copy) -> CIMInstanceName:
    paths = await view.paths()
    if copy.target_at is not None:
        return paths.by_id(ENTITY_CLASS, ENTITY, copy.replica)
    if copy.sync_type is SyncType.SNAPSHOT:
        return paths.volume(copy.source, copy.target)
    return paths.volume(copy.target)


async def copy_path(view: View, copy: Copy | GroupCopy) -> CIMInstanceName:
    """Of the association."""
    if isinstance(copy, GroupCopy):
        paths = await view.paths()
        source = paths.volume(copy.source) if copy.of_element else paths.by_id(GROUP_CLASS, GROUP, copy.source)
        ends = source, paths.by_id(GROUP_CLASS, GROUP, copy.target_group)
        class_name = GROUP_SYNCHRONIZED_CLASS
    else:
        ends = await source_path(view, copy), await target_path(view, copy)
        class_name = SYNCHRONIZED_CLASS
    return view.path(STORAGE, class_name, SystemElement=ends[0], SyncedElement=ends[1])


async def copy_at(view: View, path: CIMInstanceName | None) -> Copy | GroupCopy | None:
    """The relation that an association's path stands for."""
    if path is None:
        return None
    source, target = path.keybindings.get("SystemElement"), path.keybindings.get("SyncedElement")
    if not isinstance(source, CIMInstanceName) or not isinstance(target, CIMInstanceName):
        return None
    if path.classname.lower() == GROUP_SYNCHRONIZED_CLASS.lower():
        guid = (await view.paths()).identity(GROUP, target.keybindings)
        for group in await synchronizations.group_copies(view):
            if group.target_group == guid and same(await copy_path(view, group), path):
                return group
        return None
    if path.classname.lower() != SYNCHRONIZED_CLASS.lower():
        return None
    copy = await copy_to(view, target)
    return copy if copy is not None and same(await copy_path(view, copy), path) else None


async def copy_to(view: View, target: CIMInstanceName) -> Copy | None:
    """The relation whose target an element is."""
    paths = await view.paths()
    if target.classname.lower() == ENTITY_CLASS.lower():
        name = paths.identity(ENTITY, target.keybindings)
        found = [copy for copy in await synchronizations.mirrors(view) if copy.replica == name and copy.target_at]
        return found[0] if found else None
    element = await find(view, target)
    if element is None:
        return None
    if element.snapshot is not None:
        return synchronizations.of_snapshot(element.volume, element.snapshot)
    return await synchronizations.copy_into(view, element.identity)


def same(one: CIMInstanceName, other: CIMInstanceName) -> bool:
    """Whether two paths are of one instance: hosts, and the namespaces of references that name none, do not count."""
    return _normal(one) == _normal(other)


def has_twice(paths: list[CIMInstanceName]) -> bool:
    """Whether two of them are the same."""
    return len({_normal(path) for path in paths}) < len(paths)


def _normal(path: CIMInstanceName) -> tuple[Any, ...]:
    keys = {
        name.lower(): _normal(value) if isinstance(value, CIMInstanceName) else value
        for name, value in path.keybindings.items()
    }
    return (path.classname.lower(), tuple(sorted(keys.items(), key=lambda item: item[0])))


# --- what a call has made ---------------------------------------------------------------------------------------


async def made(view: View, copies: list[dict[str, Any]]) -> list[CIMInstanceName]:
    """Paths of the targets that are there by now, in order. ``copies``: of a job's result."""
    return [await target_path(view, copy) for copy in await made_copies(view, copies)]


async def made_synchronizations(view: View, copies: list[dict[str, Any]]) -> list[CIMInstanceName]:
    """Of those that have an association: not all stay related to their source."""
    there = await made_copies(view, copies)
    related = [copy for copy in there if await copy_to(view, await target_path(view, copy)) is not None]
    return [await copy_path(view, copy) for copy in related]


async def made_copies(view: View, copies: list[dict[str, Any]]) -> list[Copy]:
    """Those that are there; a clone that has no association is one here, too."""
    found = []
    for each in copies:
        if "guid" in each:
            found.append(Copy(SyncType.SNAPSHOT, each["source_id"], each["guid"]))
        elif "replica" in each:
            mirror = (await synchronizations.mirrors_by_end(view)).get(each["replica"])
            if mirror is not None and mirror.replica == each["replica"]:
                found.append(mirror)
        elif "target_id" in each:
            source_guid = each.get("source_guid")
            found.append(Copy(SyncType.CLONE, each["source_id"], each["target_id"], source_guid=source_guid))
    return found


# --- jobs and groups --------------------------------------------------------------------------------------------


async def job_path(view: View, job: int | None) -> CIMInstanceName | None:
    return None if job is None else (await view.paths()).by_id(JOB_CLASS, JOB, job)


async def find_job(view: View, path: CIMInstanceName) -> JobInfo | None:
    text = (await view.paths()).identity(JOB, path.keybindings)
    return None if text is None else await job_numbered(view, text)


async def job_numbered(view: View, text: str) -> JobInfo | None:
    if not text.isdecimal() or len(text) > 18 or str(int(text)) != text:
        return None
    try:
        return await view.api.job_show(int(text))
    except NotFound:
        return None


class Group(NamedTuple):
    """A group as the models show it: one of the engine's, one of its group snapshots, or the targets of a relation.

    ``members``: ids of elements by (volume id, GUID of its snapshot or None); of mirrors at a peer names of replicas.
    """

    guid: str
    name: str
    created_at: float
    members: list[tuple[str, str | None]]
    group: GroupInfo | None = None
    snapshot: GroupSnapshotInfo | None = None
    remote: tuple[str, ...] = ()


async def groups(view: View) -> list[Group]:
    return await view.once("groups", lambda: _groups(view))


async def _groups(view: View) -> list[Group]:
    everything = await view.api.group_list()
    shots = {info.name: await view.api.group_snapshot_list(info.name) for info in everything if info.snapshots}
    inside = {name for info in everything for name in info.members}
    inside |= {member.volume for each in shots.values() for shot in each for member in shot.members}
    volumes = await view.volumes_named(inside)
    relations = await synchronizations.group_relations(view)
    guids = [info.guid for info in everything] + [shot.guid for each in shots.values() for shot in each]
    names = await view.element_names(guids + [relation.guid for relation in relations])
    found = []
    for info in everything:
        if ORDER_POINT.fullmatch(info.name):  # of an order in progress, which freezes its sources by it
            continue
        members = [(volumes[name].volume_id, None) for name in info.members if name in volumes]
        found.append(Group(info.guid, names.get(info.guid, info.name), info.created_at, [*members], group=info))
        for shot in shots.get(info.name, ()):
            there = [member for member in shot.members if member.volume in volumes]  # one may have left the group
            points = [(volumes[member.volume].volume_id, member.guid) for member in there]
            name = names.get(shot.guid, f"{info.name}@{shot.name}")
            found.append(Group(shot.guid, name, shot.created_at, [*points], snapshot=shot))
    for relation in relations:
        if relation.target_group is not None:
            continue
        targets: list[tuple[str, str | None]] = []
        remote = []
        for pair in relation.pairs:
            if relation.kind == "snapshot":
                targets.append((pair.source_id, pair.target))
            elif relation.kind == "mirror" and await view.volume(pair.target) is None:
                remote.append(pair.target)
            else:
                targets.append((pair.target, None))
        name = names.get(relation.guid, relation.name)
        found.append(Group(relation.guid, name, relation.established_at, targets, remote=tuple(remote)))
    return found


async def group_at(view: View, path: CIMInstanceName) -> Group | None:
    guid = (await view.paths()).identity(GROUP, path.keybindings)
    return next((group for group in await groups(view) if group.guid == guid), None)


async def member_paths(view: View, group: Group) -> list[CIMInstanceName]:
    """In the group's order."""
    paths = await view.paths()
    local = [paths.volume(volume_id, guid) for volume_id, guid in group.members]
    return local + [paths.by_id(ENTITY_CLASS, ENTITY, name) for name in group.remote]


async def group_relation(view: View, guid: str | None) -> GroupCopy | None:
    return next((group for group in await synchronizations.group_copies(view) if group.guid == guid), None)


async def make_group(view: View, text: str | None, members: list[str]) -> Group:
    """A group of volumes called ``text``, or by a name that the system makes. It has a name that the engine allows."""
    taken = {info.name for info in await view.api.group_list()}
    name = next(name for name in engine_names(text or "group") if name not in taken and not ORDER_POINT.fullmatch(name))
    info = await view.api.group_create(name, members)
    if text is not None and text != name:
        await view.api.element_name_set(info.guid, text)
    view.forget()
    return next(group for group in await groups(view) if group.guid == info.guid)


_FOREIGN = re.compile(r"[^a-z0-9.-]+")
_STEM_MAX = 56
"""Characters of a name, so that a number has room behind them: the engine allows 64."""


def engine_names(text: str) -> Iterator[str]:
    """Names that the engine allows after a free text: the nearest one, then with numbers."""
    stem = _FOREIGN.sub("-", text.lower()).strip(".-")[:_STEM_MAX].strip(".-") or "group"
    yield stem
    for number in itertools.count(2):
        yield f"{stem}-{number}"


# --- peers ------------------------------------------------------------------------------------------------------


async def peer_at(view: View, path: CIMInstanceName) -> str | None:
    """The name of the peer that an access point stands for."""
    paths = await view.paths()
    if path.classname.lower() != ACCESS_POINT_CLASS.lower():
        return None
    name = paths.scoped_key(ACCESS_POINT_CLASS, "Name", path.keybindings)
    return name if any(peer.name == name for peer in await peers(view)) else None


async def peers(view: View) -> list[PeerInfo]:
    """None, where nobody serves peers."""

    async def ask() -> list[PeerInfo]:
        with contextlib.suppress(NotFound):
            return await view.api.peer_list()
        return []

    return await view.once("peers", ask)


def is_reachable(peer: PeerInfo) -> bool:
    return peer.connected or peer.connects_to_us


async def peer_of(view: View, copies: Iterable[Copy]) -> str | None:
    """The name of the peer where the other ends of mirrors are; None: they are here, or at a disk of elsewhere."""
    there = {copy.target_at or copy.source_at for copy in copies}
    return next((peer.name for peer in await peers(view) if peer.name in there), None)


async def peer_system_path(view: View, peer: str) -> CIMInstanceName:
    name = (await view.paths()).instance_id(PEER, peer)
    return view.path(STORAGE, PEER_SYSTEM_CLASS, CreationClassName=PEER_SYSTEM_CLASS, Name=name)


async def peer_of_system(view: View, path: CIMInstanceName) -> PeerInfo | None:
    """The peer that a system is."""
    for peer in await peers(view):
        if same(await peer_system_path(view, peer.name), path):
            return peer
    return None


async def access_point_path(view: View, peer: str) -> CIMInstanceName:
    keys = (await view.paths()).scope(ACCESS_POINT_CLASS)
    return view.path(STORAGE, ACCESS_POINT_CLASS, **keys, Name=peer)
