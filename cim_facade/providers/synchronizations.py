"""Both generations of synchronizations in one instance: MSISCSITARGET_StorageSynchronized and _GroupSynchronized.

One instance for each mirror, snapshot, and full clone that is not detached. What a relation is of, and how the older
properties follow from the newer, is in ``synchronizations`` and ``value_maps``.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pywbem import CIMDateTime, CIMInstanceName

from cim_facade import elements, synchronizations
from cim_facade.namespaces import STORAGE
from cim_facade.provider import Association, End, Provider
from cim_facade.value_maps import CopyState, SyncType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pywbem import CIMInstance

    from cim_facade.context import View
    from cim_facade.provider import Keys
    from cim_facade.synchronizations import Copy, GroupCopy

NOT_APPLICABLE_STATE = CopyState.NOT_APPLICABLE
"""RequestedCopyState where nothing is asked for that is not there yet."""


def point_in_time(seconds: float | None) -> CIMDateTime | None:
    """A time since the epoch as a CIM datetime in UTC; None where it is not known."""
    return None if seconds is None else CIMDateTime(datetime.fromtimestamp(seconds, UTC))


def interval(seconds: float | None) -> CIMDateTime | None:
    return None if seconds is None else CIMDateTime(timedelta(seconds=seconds))


def common_properties(copy: Copy) -> dict[str, Any]:
    """Of CIM_Synchronized, but the ends."""
    whole = copy.state is CopyState.SYNCHRONIZED
    return {
        "WhenSynced": point_in_time(copy.synchronized_at),
        "WhenSynchronized": point_in_time(copy.synchronized_at),
        "WhenEstablished": point_in_time(copy.established_at),
        "WhenActivated": point_in_time(copy.established_at),
        "WhenSuspended": point_in_time(copy.changed_at) if copy.state is CopyState.SUSPENDED else None,
        "SyncMaintained": copy.maintained,
        "CopyState": copy.state,
        "RequestedCopyState": CopyState.SYNCHRONIZED if copy.maintained and not whole else NOT_APPLICABLE_STATE,
        "SyncType": copy.sync_type,
        "Mode": copy.mode,
        "ProgressStatus": copy.progress,
        "PercentSynced": copy.percent,
        "RPO": interval(copy.rpo_s),
        "CopyRecoveryMode": 2 if copy.sync_type is SyncType.MIRROR and copy.mode != 2 else 3,
        "FailedCopyStopsHostIO": copy.stops_host_io,
    }


class StorageSynchronized(Association):
    """SystemElement is the source, SyncedElement the replica; at a peer it is a CIM_ReplicationEntity."""

    class_name = elements.SYNCHRONIZED_CLASS
    ends = (End("SystemElement", "CIM_ManagedElement"), End("SyncedElement", "CIM_ManagedElement"))

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        for copy in [*await synchronizations.mirrors(view), *await synchronizations.clones(view)]:
            yield await self.made(view, copy)
        for volume in await view.volumes():
            if volume.snapshots:
                for info in await synchronizations.snapshots_of(view, volume.name):
                    yield await self.made(view, synchronizations.of_snapshot(volume, info))

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        ends = [keys.get("SystemElement"), keys.get("SyncedElement")]
        if len(keys) != 2 or not all(isinstance(end, CIMInstanceName) for end in ends):
            return None
        copy = await elements.copy_at(view, CIMInstanceName(self.class_name, keybindings=dict(keys), namespace=STORAGE))
        return None if copy is None or not isinstance(copy, synchronizations.Copy) else await self.made(view, copy)

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        if role == "SyncedElement":
            copy = await elements.copy_to(view, path)
            if copy is not None:
                yield await self.made(view, copy)
            return
        for copy in await _from(view, path):
            yield await self.made(view, copy)

    async def made(self, view: View, copy: Copy) -> CIMInstance:
        return view.make(
            STORAGE,
            self.class_name,
            SystemElement=await elements.source_path(view, copy),
            SyncedElement=await elements.target_path(view, copy),
            CopyType=copy.copy_type,
            SyncState=copy.sync_state,
            ReplicaType=copy.replica_type,
            CopyPriority=0,
            CopyMethodology=copy.methodology,
            ReadOnly=3 if copy.sync_type is SyncType.SNAPSHOT or copy.maintained else None,
            **common_properties(copy),
        )


async def _from(view: View, path: CIMInstanceName) -> list[Copy]:
    """The copies of which an element is the source."""
    paths = await view.paths()
    if path.classname.lower() == elements.ENTITY_CLASS.lower():
        name = paths.identity(elements.ENTITY, path.keybindings)
        return [copy for copy in await synchronizations.mirrors(view) if copy.replica == name and copy.source_at]
    element = await elements.find(view, path)
    return [] if element is None else await synchronizations.copies_of(view, element.identity)


class GroupSynchronized(Association):
    """Of relations of groups, or of one element to the group of its copies."""

    class_name = elements.GROUP_SYNCHRONIZED_CLASS
    ends = (End("SystemElement", "CIM_ManagedElement"), End("SyncedElement", "CIM_ManagedElement"))

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        for group in await synchronizations.group_copies(view):
            yield await self.made(view, group)

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        for group in await synchronizations.group_copies(view):
            instance = await self.made(view, group)
            if elements.same(instance.path.keybindings[role], path):
                yield instance

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        if len(keys) != 2:
            return None
        wanted = CIMInstanceName(self.class_name, keybindings=dict(keys), namespace=STORAGE)
        copy = await elements.copy_at(view, wanted)
        return await self.made(view, copy) if isinstance(copy, synchronizations.GroupCopy) else None

    async def made(self, view: View, group: GroupCopy) -> CIMInstance:
        ends = (await elements.copy_path(view, group)).keybindings
        first = group.members[0]
        state = group.state
        return view.make(
            STORAGE,
            self.class_name,
            SystemElement=ends["SystemElement"],
            SyncedElement=ends["SyncedElement"],
            RelationshipName=group.info.name,
            ConsistencyEnabled=group.info.consistent,
            ConsistencyType=2 if group.info.consistent else None,
            ConsistencyState=3 if group.info.consistent else 2,
            ConsistencyStatus=2 if group.info.consistent else 4,
            **common_properties(first)
            | {
                "CopyState": state,
                "ProgressStatus": group.progress,
                "PercentSynced": group.percent,
                "WhenEstablished": point_in_time(group.info.established_at),
                "SyncMaintained": all(member.maintained for member in group.members),
                "RequestedCopyState": NOT_APPLICABLE_STATE,
            },
        )


class ReplicationEntity(Provider):
    """What a mirror has at a peer, its target or its source: nothing of this pool, but an end of an association."""

    class_name = elements.ENTITY_CLASS

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        for copy in await synchronizations.mirrors(view):
            if copy.is_remote:
                yield await self.made(view, copy)

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        name = (await view.paths()).identity(elements.ENTITY, keys)
        for copy in await synchronizations.mirrors(view):
            if copy.is_remote and copy.replica == name:
                return await self.made(view, copy)
        return None

    async def made(self, view: View, copy: Copy) -> CIMInstance:
        assert copy.replica is not None
        peer = copy.target_at or copy.source_at
        return view.make(
            STORAGE,
            self.class_name,
            InstanceID=(await view.paths()).instance_id(elements.ENTITY, copy.replica),
            ElementName=copy.replica,
            Type=4,
            EntityID=f"{peer}:{copy.replica}",
            Persistent=True,
            EnabledState=2 if copy.state is CopyState.SYNCHRONIZED else 5,
        )


PROVIDERS: tuple[Provider, ...] = (StorageSynchronized(), GroupSynchronized(), ReplicationEntity())
