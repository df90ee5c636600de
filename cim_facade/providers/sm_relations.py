"""Associations of the storage management model: what is a copy of what, what is in what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cim_facade import elements, sm_objects, synchronizations
from cim_facade.namespaces import STORAGE_MANAGEMENT
from cim_facade.paths import POOL_ID, device_id
from cim_facade.provider import Association, End, Provider
from cim_facade.providers import jobs
from cim_facade.providers.synchronizations import common_properties
from cim_facade.providers.volumes import disks
from cim_facade.value_maps import CopyState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from enum import IntEnum

    from pywbem import CIMInstance, CIMInstanceName

    from cim_facade.context import View
    from cim_facade.synchronizations import Copy, GroupCopy

_VOLUME = sm_objects.CLASSES[sm_objects.VOLUME]
_PEER = sm_objects.CLASSES[sm_objects.PEER_VOLUME]
_GROUP = sm_objects.CLASSES[sm_objects.GROUP]
_SYSTEM = sm_objects.CLASSES[sm_objects.SYSTEM]
_POOL = sm_objects.CLASSES[sm_objects.POOL]
_JOB = sm_objects.CLASSES[sm_objects.JOB]
_CAPABILITIES = sm_objects.CLASSES[sm_objects.CAPABILITIES]


def spelled(value: IntEnum | None) -> str | None:
    """A value in words, for the Description beside it."""
    return None if value is None else value.name.replace("_", " ").capitalize()


def sm_properties(copy: Copy) -> dict[str, Any]:
    """Of MSFT_SMSynchronizedBase: CopyState ends with Not Applicable there."""
    common = common_properties(copy)
    for absent in ("RPO", "CopyRecoveryMode", "FailedCopyStopsHostIO"):
        del common[absent]
    state = min(copy.state, CopyState.NOT_APPLICABLE)
    return common | {
        "CopyState": state,
        "CopyStateDescription": copy.reason or spelled(copy.state),
        "SyncTypeDescription": spelled(copy.sync_type),
        "ModeDescription": spelled(copy.mode),
        "ProgressStatusDescription": spelled(copy.progress),
        "CopyType": copy.copy_type,
        "CopyTypeDescription": spelled(copy.copy_type),
    }


def sm_storage_properties(copy: Copy) -> dict[str, Any]:
    """Of MSFT_SMStorageSynchronizedBase."""
    return sm_properties(copy) | {
        "ReplicaType": copy.replica_type,
        "ReplicaTypeDescription": spelled(copy.replica_type),
        "SyncState": copy.sync_state,
        "SyncStateDescription": spelled(copy.sync_state),
        "CopyPriority": 0,
        "CopyPriorityDescription": "Not Managed",
        "CopyMethodology": copy.methodology,
        "CopyMethodologyDescription": spelled(copy.methodology),
        "RecoveryPointObjective": None if copy.rpo_s is None else round(copy.rpo_s),
    }


class SmAssociation(Association):
    namespace = STORAGE_MANAGEMENT

    def made(self, view: View, first: CIMInstanceName, second: CIMInstanceName, **values: Any) -> CIMInstance:
        ends = {self.ends[0].role: first, self.ends[1].role: second}
        return view.make(self.namespace, self.class_name, **ends, **values)


async def _sources(view: View, path: CIMInstanceName) -> list[Copy]:
    """Copies of a volume."""
    element = await sm_objects.find_volume(view, path)
    return [] if element is None else await synchronizations.copies_of(view, element.identity)


async def _copy_of(view: View, path: CIMInstanceName) -> Copy | None:
    """The copy whose target a volume, or a replica peer, is."""
    found = await sm_objects.read(view, path, sm_objects.VOLUME, sm_objects.PEER_VOLUME, sm_objects.PEER_REMOTE)
    if found is None:
        return None
    kind = sm_objects.PEER_VOLUME if found[0] == sm_objects.VOLUME else found[0]
    return await sm_objects.copy_of_peer(view, kind, found[1])


class SmStorageSynchronized(SmAssociation):
    """Source and target that are both here."""

    class_name = "MSFT_SMStorageSynchronized"
    ends = (End("SourceStorageVolume", _VOLUME), End("TargetStorageVolume", _VOLUME))

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        if role == "SourceStorageVolume":
            copies = await _sources(view, path)
        else:
            copy = await _copy_of(view, path)
            copies = [] if copy is None else [copy]
        for copy in copies:
            if not copy.is_remote:
                source = await sm_objects.source_volume_path(view, copy)
                target = await sm_objects.path(view, sm_objects.VOLUME, sm_objects.target_device_id(copy))
                yield self.made(view, source, target, **sm_storage_properties(copy))


class SmVolumeToReplicaPeer(SmAssociation):
    """Source, and where its copy is."""

    class_name = "MSFT_SMStorageVolumeToReplicaPeer"
    ends = (End("Parent", _VOLUME), End("Child", _PEER))

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        if role == "Parent":
            copies = await _sources(view, path)
        else:
            copy = await _copy_of(view, path)
            copies = [] if copy is None else [copy]
        for copy in copies:
            if copy.source_at is None:
                source = await sm_objects.source_volume_path(view, copy)
                peer = await sm_objects.target_peer_path(view, copy)
                yield self.made(view, source, peer, **sm_storage_properties(copy))


class SmGroupToReplicaPeer(SmAssociation):
    class_name = "MSFT_SMReplicationGroupToReplicaPeer"
    ends = (End("Parent", _GROUP), End("Child", _PEER))

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        for group in await synchronizations.group_copies(view):
            if group.of_element or not group.members:
                continue
            parent = await sm_objects.path(view, sm_objects.GROUP, group.source)
            child = await sm_objects.path(view, sm_objects.PEER_GROUP, group.target_group)
            if elements.same(parent if role == "Parent" else child, path):
                yield self.made(view, parent, child, **self._values(group))

    def _values(self, group: GroupCopy) -> dict[str, Any]:
        return sm_properties(group.members[0]) | {
            "CopyState": min(group.state, CopyState.NOT_APPLICABLE),
            "CopyStateDescription": spelled(group.state),
            "ProgressStatus": group.progress,
            "PercentSynced": group.percent,
            "RelationshipName": group.info.name,
            "ConsistencyEnabled": group.info.consistent,
            "ConsistencyType": 2 if group.info.consistent else None,
            "ConsistencyState": 3 if group.info.consistent else 2,
            "ConsistencyStatus": 2 if group.info.consistent else 4,
        }


class SmGroupToVolume(SmAssociation):
    class_name = "MSFT_SMReplicationGroupToStorageVolume"
    ends = (End("Parent", _GROUP), End("Child", _VOLUME))

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        for group in await elements.groups(view):
            parent = await sm_objects.path(view, sm_objects.GROUP, group.guid)
            if role == "Parent" and not elements.same(parent, path):
                continue
            for volume_id, guid in group.members:
                child = await sm_objects.path(view, sm_objects.VOLUME, device_id(volume_id, guid))
                if role == "Parent" or elements.same(child, path):
                    yield self.made(view, parent, child)


class SmJobToVolume(SmAssociation):
    """The volumes that a job makes, then those that it reads."""

    class_name = "MSFT_SMJobToStorageVolume"
    ends = (End("Job", _JOB), End("AffectedStorageVolume", _VOLUME))

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        for job in await jobs.shown(view):
            of_job = await sm_objects.path(view, sm_objects.JOB, job.job)
            if role == "Job" and not elements.same(of_job, path):
                continue
            for affected, _ in await jobs.affected(view, job):
                element = await elements.find(view, affected)
                if element is not None:
                    volume = await sm_objects.volume_path(view, element)
                    if role == "Job" or elements.same(volume, path):
                        yield self.made(view, of_job, volume)


class _Tree(SmAssociation):
    """One parent, and all of a class below it."""

    async def parent(self, view: View) -> CIMInstanceName:
        return await sm_objects.path(view, sm_objects.SYSTEM, sm_objects.LOCAL)

    def children(self, view: View) -> AsyncIterator[CIMInstanceName]:
        raise NotImplementedError

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        parent = await self.parent(view)
        if role == self.ends[0].role:
            if elements.same(parent, path):
                async for child in self.children(view):
                    yield self.made(view, parent, child)
            return
        for provider in view.providers(self.namespace, path.classname):
            if await provider.instance(view, path.keybindings) is not None and await self.is_child(view, path):
                yield self.made(view, parent, path)

    async def is_child(self, view: View, path: CIMInstanceName) -> bool:
        return True


class SmPoolToVolume(_Tree):
    class_name = "MSFT_SMPoolToVolume"
    ends = (End("Parent", _POOL), End("Child", _VOLUME))

    async def parent(self, view: View) -> CIMInstanceName:
        return await sm_objects.path(view, sm_objects.POOL, POOL_ID)

    async def children(self, view: View) -> AsyncIterator[CIMInstanceName]:
        async for disk in disks(view):
            guid = None if disk.snapshot is None else disk.snapshot.guid
            yield await sm_objects.path(view, sm_objects.VOLUME, device_id(disk.volume.volume_id, guid))


class SmSystemToPool(_Tree):
    class_name = "MSFT_SMSystemToPool"
    ends = (End("Parent", _SYSTEM), End("Child", _POOL))

    async def children(self, view: View) -> AsyncIterator[CIMInstanceName]:
        yield await sm_objects.path(view, sm_objects.POOL, POOL_ID)


class SmSystemToReplicaPeer(_Tree):
    """Systems that copies can go to."""

    class_name = "MSFT_SMSystemToReplicaPeer"
    ends = (End("Parent", _SYSTEM), End("Child", _PEER))

    async def children(self, view: View) -> AsyncIterator[CIMInstanceName]:
        yield await sm_objects.path(view, sm_objects.PEER_SYSTEM, sm_objects.LOCAL)
        for peer in await elements.peers(view):
            yield await sm_objects.path(view, sm_objects.PEER_SYSTEM, sm_objects.peer_key(peer))

    async def is_child(self, view: View, path: CIMInstanceName) -> bool:
        return await sm_objects.read(view, path, sm_objects.PEER_SYSTEM) is not None


class SmSystemToCapabilities(_Tree):
    class_name = "MSFT_SMSystemToReplicationCapabilities"
    ends = (End("Parent", _SYSTEM), End("Child", _CAPABILITIES))

    async def children(self, view: View) -> AsyncIterator[CIMInstanceName]:
        yield await sm_objects.path(view, sm_objects.CAPABILITIES, sm_objects.LOCAL)


class SmSystemToGroup(_Tree):
    class_name = "MSFT_SMSystemToReplicationGroup"
    ends = (End("Parent", _SYSTEM), End("Child", _GROUP))

    async def children(self, view: View) -> AsyncIterator[CIMInstanceName]:
        for group in await elements.groups(view):
            yield await sm_objects.path(view, sm_objects.GROUP, group.guid)


PROVIDERS: tuple[Provider, ...] = (
    SmStorageSynchronized(),
    SmVolumeToReplicaPeer(),
    SmGroupToReplicaPeer(),
    SmGroupToVolume(),
    SmJobToVolume(),
    SmPoolToVolume(),
    SmSystemToPool(),
    SmSystemToReplicaPeer(),
    SmSystemToCapabilities(),
    SmSystemToGroup(),
)
