"""Replication groups and what is in them.

A group is one of the engine's; or one of its group snapshots, which is the target group of that copy; or the targets
of a relation that nothing else keeps together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cim_facade import elements
from cim_facade.namespaces import STORAGE
from cim_facade.provider import Association, End, Provider
from cim_facade.value_maps import SyncType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pywbem import CIMInstance, CIMInstanceName

    from cim_facade.context import View
    from cim_facade.elements import Group
    from cim_facade.provider import Keys

SERVICE_CLASS = "MSISCSITARGET_ReplicationService"


class ReplicationGroup(Provider):
    """Groups stay until they are deleted, also when they are empty."""

    class_name = elements.GROUP_CLASS

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        for group in await elements.groups(view):
            yield await self._made(view, group)

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        guid = (await view.paths()).identity(elements.GROUP, keys)
        for group in await elements.groups(view):
            if group.guid == guid:
                return await self._made(view, group)
        return None

    async def _made(self, view: View, group: Group) -> CIMInstance:
        sources = [SyncType.MIRROR, SyncType.SNAPSHOT, SyncType.CLONE]
        return view.make(
            STORAGE,
            self.class_name,
            InstanceID=(await view.paths()).instance_id(elements.GROUP, group.guid),
            ElementName=group.name,
            Persistent=True,
            DeleteOnEmptyElement=group.group is None,
            DeleteOnUnassociated=group.group is None,
            ConsistentPointInTime=group.group is not None or group.snapshot is not None,
            ReservedAs=4 if group.group is not None else 3,
            SupportedSyncTypes=sources if group.group is not None else [],
        )


class OrderedMemberOfCollection(Association):
    """In the group's order, which is that in which members came."""

    class_name = "MSISCSITARGET_OrderedMemberOfCollection"
    ends = (End("Collection", elements.GROUP_CLASS), End("Member", "CIM_ManagedElement"))

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        paths = await view.paths()
        for group in await elements.groups(view):
            collection = paths.by_id(elements.GROUP_CLASS, elements.GROUP, group.guid)
            if role == "Collection" and not elements.same(collection, path):
                continue
            for number, member in enumerate(await elements.member_paths(view, group), 1):
                if role == "Collection" or elements.same(member, path):
                    yield view.make(
                        STORAGE, self.class_name, Collection=collection, Member=member, AssignedSequence=number
                    )


class _OfTheSystem(Association):
    """What ties every group to one instance."""

    other: str

    async def one(self, view: View) -> CIMInstanceName:
        raise NotImplementedError

    def ends_of(self, one: CIMInstanceName, group: CIMInstanceName) -> dict[str, CIMInstanceName]:
        raise NotImplementedError

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        paths, one = await view.paths(), await self.one(view)
        if role == self.other and not elements.same(one, path):
            return
        for group in await elements.groups(view):
            collection = paths.by_id(elements.GROUP_CLASS, elements.GROUP, group.guid)
            if role == self.other or elements.same(collection, path):
                yield view.make(STORAGE, self.class_name, **self.ends_of(one, collection))


class HostedCollection(_OfTheSystem):
    class_name = "MSISCSITARGET_HostedCollection"
    ends = (End("Antecedent", "CIM_System"), End("Dependent", elements.GROUP_CLASS))
    other = "Antecedent"

    async def one(self, view: View) -> CIMInstanceName:
        return (await view.paths()).system()

    def ends_of(self, one: CIMInstanceName, group: CIMInstanceName) -> dict[str, CIMInstanceName]:
        return {"Antecedent": one, "Dependent": group}


class ServiceAffectsElement(_OfTheSystem):
    class_name = "MSISCSITARGET_ServiceAffectsElement"
    ends = (End("AffectingElement", SERVICE_CLASS), End("AffectedElement", elements.GROUP_CLASS))
    other = "AffectingElement"

    async def one(self, view: View) -> CIMInstanceName:
        return (await view.paths()).service(SERVICE_CLASS)

    def ends_of(self, one: CIMInstanceName, group: CIMInstanceName) -> dict[str, CIMInstanceName]:
        return {"AffectingElement": one, "AffectedElement": group}


PROVIDERS: tuple[Provider, ...] = (
    ReplicationGroup(),
    OrderedMemberOfCollection(),
    HostedCollection(),
    ServiceAffectsElement(),
)
