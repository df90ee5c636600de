"""Masking and mapping: targets, who sees which of their LUNs, their ports, and who is known.

A target is a view: a protocol controller with its LUNs, and a privilege of the initiators that it admits. A LUN that it
shows to some initiators only is a view of its own. Where everybody is admitted the subject is the initiator without a
name (SMI-S calls that a default view). A standby path to a disk is shown as a LUN that nobody may access.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from cim_facade.paths import CONTROLLER_CLASS, PORT_CLASS, PORTAL_CLASS, VOLUME_CLASS, controller_id, read_controller_id
from cim_facade.provider import End, Provider
from cim_facade.providers.shared import OK, ByInstanceId, Links, State
from cim_facade.providers.system import CONTROLLER_CONFIGURATION, HARDWARE_ID_MANAGEMENT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pywbem import CIMInstance, CIMInstanceName

    from cim_facade.context import View
    from cim_facade.paths import ControllerKey, PortKey
    from cim_facade.provider import Keys
    from engine.api import LunInfo, TargetInfo

HARDWARE_ID_CLASS = "MSISCSITARGET_StorageHardwareID"
PRIVILEGE_CLASS = "MSISCSITARGET_AuthorizedPrivilege"
ANYBODY = "any"
"""ID of the initiator without a name, who stands for all; no iSCSI name."""


class Shelf(NamedTuple):
    """A view of a target: ``lun`` is that of a LUN with initiators of its own."""

    target: TargetInfo
    lun: int | None

    @property
    def luns(self) -> list[LunInfo]:
        if self.lun is None:
            return [lun for lun in self.target.luns if not lun.initiators]
        return [lun for lun in self.target.luns if lun.lun == self.lun]

    @property
    def initiators(self) -> list[str]:
        """Those that see it; empty: all, if it ``is_default``, else nobody that the target admits."""
        admitted = self.target.initiators
        if self.lun is None:
            return admitted
        masked = [name for lun in self.luns for name in lun.initiators]
        return [name for name in masked if name in admitted] if admitted else masked

    @property
    def is_default(self) -> bool:
        """Whether everybody sees it."""
        return self.lun is None and not self.target.initiators

    @property
    def subjects(self) -> list[str]:
        """IDs of hardware IDs."""
        return [ANYBODY] if self.is_default else self.initiators


def shelves_of(target: TargetInfo) -> list[Shelf]:
    """The views of a target."""
    return [Shelf(target, None), *(Shelf(target, lun.lun) for lun in target.luns if lun.initiators)]


async def all_shelves(view: View) -> list[Shelf]:
    return [shelf for target in await view.targets() for shelf in shelves_of(target)]


async def find_shelf(view: View, key: ControllerKey | None) -> Shelf | None:
    target = None if key is None else await view.target(key.target)
    if key is None or target is None:
        return None
    return next((shelf for shelf in shelves_of(target) if shelf.lun == key.lun), None)


class ProtocolController(Provider):
    class_name = CONTROLLER_CLASS

    async def paths(self, view: View) -> AsyncIterator[CIMInstanceName]:
        paths = await view.paths()
        for shelf in await all_shelves(view):
            yield paths.controller(shelf.target.name, shelf.lun)

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        for shelf in await all_shelves(view):
            yield await self._made(view, shelf)

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        shelf = await find_shelf(view, (await view.paths()).controller_key(keys))
        return None if shelf is None else await self._made(view, shelf)

    async def _made(self, view: View, shelf: Shelf) -> CIMInstance:
        target = shelf.target
        state = OK if target.state == "ok" else State(11, 5, "OK", enabled=9, reason="paused")  # In Service, Quiesce
        return view.make(
            self.namespace,
            self.class_name,
            **(await view.paths()).controller(target.name, shelf.lun).keybindings,
            ElementName=target.name if shelf.lun is None else f"{target.name} LUN {shelf.lun}",
            Name=target.name,
            NameFormat=3,  # iSCSI Name
            MaxUnitsControlled=0,  # no limit
            **state.enabled_properties(),
        )


class ProtocolControllerForUnit(Links):
    """From each view to what it shows."""

    class_name = "MSISCSITARGET_ProtocolControllerForUnit"
    ends = (End("Antecedent", "CIM_ProtocolController"), End("Dependent", "CIM_LogicalDevice"))

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        """A volume may be several LUNs of one target, so an association is of a LUN, not of two ends: the lowest of a
        view is shown."""
        paths = await view.paths()
        seen = set()
        for shelf, lun in await self._found(view, path, role):
            if lun.state != "ok" and not await _is_there(view, lun):
                continue
            ends = (controller_id(shelf.target.name, shelf.lun), lun.volume_id, lun.snapshot_guid)
            if ends in seen:
                continue
            seen.add(ends)
            yield view.make(
                self.namespace,
                self.class_name,
                Antecedent=paths.controller(shelf.target.name, shelf.lun),
                Dependent=paths.volume(lun.volume_id, lun.snapshot_guid),
                DeviceNumber=f"{lun.lun:x}",
                **await _access(view, lun),
            )

    async def _found(self, view: View, path: CIMInstanceName, role: str) -> list[tuple[Shelf, LunInfo]]:
        paths = await view.paths()
        if role == "Antecedent":
            shelf = await find_shelf(view, paths.controller_key(path.keybindings))
            return [] if shelf is None else [(shelf, lun) for lun in shelf.luns]
        key = paths.volume_key(path.keybindings) if path.classname == VOLUME_CLASS else None
        if key is None:
            return []
        found = []
        for shown in await view.api.volume_luns(key.volume_id):
            lun = shown.lun
            target = await view.target(shown.target)
            if target is not None and (lun.volume_id, lun.snapshot_guid) == key:
                found.append((Shelf(target, lun.lun if lun.initiators else None), lun))
        return found


async def _is_there(view: View, lun: LunInfo) -> bool:
    """Whether what a LUN that is not served should show is known."""
    if lun.snapshot_guid is not None:
        return await view.snapshot(lun.volume_id, lun.snapshot_guid) is not None
    return await view.volume(lun.volume_id) is not None


async def _access(view: View, lun: LunInfo) -> dict[str, Any]:
    """DeviceAccess and AccessState of a LUN."""
    if lun.standby:
        return {"DeviceAccess": 4, "AccessState": 3}  # No Access, Inactive
    active = lun.access.startswith("active") and lun.state == "ok"
    volume = await view.volume(lun.volume_id)
    read_only = lun.snapshot_guid is not None or (volume is not None and volume.read_only)
    return {"DeviceAccess": 3 if read_only else 2, "AccessState": 2 if active else 3}


# --- who ------------------------------------------------------------------------------------------------------------


class StorageHardwareID(ByInstanceId):
    """Initiators: those that were made known, that a target names, or that are logged in."""

    class_name = HARDWARE_ID_CLASS
    kind = "initiator"

    async def identities(self, view: View) -> list[str]:
        found = {shelf_subject for shelf in await all_shelves(view) for shelf_subject in shelf.subjects}
        found |= {name for target in await view.targets() for lun in target.luns for name in lun.initiators}
        return sorted(found | (await view.initiators()).keys() | await view.logged_in())

    async def properties(self, view: View, identity: str) -> dict[str, Any] | None:
        if identity not in await view.once("hardware ids", lambda: self._all(view)):
            return None
        anybody = identity == ANYBODY
        label = (await view.initiators()).get(identity, "")
        return {
            "ElementName": "Everybody" if anybody else label or identity,
            "StorageID": "" if anybody else identity,
            "IDType": 5,  # iSCSI Name
            "CurrentlyAuthenticated": identity in await view.logged_in(),
        }

    async def _all(self, view: View) -> set[str]:
        return set(await self.identities(view))


class AuthorizedPrivilege(ByInstanceId):
    """That those who are admitted to a view may read and write."""

    class_name = PRIVILEGE_CLASS
    kind = "privilege"

    async def identities(self, view: View) -> list[str]:
        return [controller_id(shelf.target.name, shelf.lun) for shelf in await all_shelves(view)]

    async def properties(self, view: View, identity: str) -> dict[str, Any] | None:
        if await find_shelf(view, read_controller_id(identity)) is None:
            return None
        return {
            "ElementName": identity,
            "PrivilegeGranted": True,
            "Activities": [5, 6],  # Read, Write
            "RepresentsAuthorizationRights": False,
        }


async def _privileged_shelf(view: View, path: CIMInstanceName) -> Shelf | None:
    identity = (await view.paths()).identity("privilege", path.keybindings)
    return await find_shelf(view, read_controller_id(identity))


class AuthorizedTarget(Links):
    """From each privilege to its view."""

    class_name = "MSISCSITARGET_AuthorizedTarget"
    ends = (End("Privilege", "CIM_AuthorizedPrivilege"), End("TargetElement", "CIM_ManagedElement"))

    async def follow(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        shelf = await _privileged_shelf(view, path)
        if shelf is not None:
            yield (await view.paths()).controller(shelf.target.name, shelf.lun)

    async def trace(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        if path.classname != CONTROLLER_CLASS:
            return
        paths = await view.paths()
        shelf = await find_shelf(view, paths.controller_key(path.keybindings))
        if shelf is not None:
            yield paths.by_id(PRIVILEGE_CLASS, "privilege", controller_id(shelf.target.name, shelf.lun))


class AuthorizedSubject(Links):
    """From each privilege to the initiators that have it."""

    class_name = "MSISCSITARGET_AuthorizedSubject"
    ends = (End("Privilege", "CIM_AuthorizedPrivilege"), End("PrivilegedElement", "CIM_ManagedElement"))

    async def follow(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        shelf = await _privileged_shelf(view, path)
        if shelf is not None:
            for subject in shelf.subjects:
                yield (await view.paths()).by_id(HARDWARE_ID_CLASS, "initiator", subject)

    async def trace(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        if path.classname != HARDWARE_ID_CLASS:
            return
        paths = await view.paths()
        subject = paths.identity("initiator", path.keybindings)
        for shelf in [] if subject is None else await all_shelves(view):
            if subject in shelf.subjects:
                yield paths.by_id(PRIVILEGE_CLASS, "privilege", controller_id(shelf.target.name, shelf.lun))


class ServiceDependency(Links):
    """From the service that manages them to views, or to initiators."""

    class_name = "MSISCSITARGET_ConcreteDependency"
    ends = (End("Antecedent", "CIM_ManagedElement"), End("Dependent", "CIM_ManagedElement"))
    managed = ((CONTROLLER_CONFIGURATION, CONTROLLER_CLASS), (HARDWARE_ID_MANAGEMENT, HARDWARE_ID_CLASS))

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        paths = await view.paths()
        for service, _ in self.managed:
            async for found in self.references(view, paths.service(service), "Antecedent"):
                yield found

    async def follow(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        paths = await view.paths()
        for service, class_name in self.managed:
            if path == paths.service(service):
                for provider in view.providers(self.namespace, class_name):
                    async for found in provider.paths(view):
                        yield found

    async def trace(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        for service, class_name in self.managed:
            if path.classname == class_name:
                for provider in view.providers(self.namespace, class_name):
                    if await provider.instance(view, path.keybindings) is not None:
                        yield (await view.paths()).service(service)


# --- ports ----------------------------------------------------------------------------------------------------------


async def port_tags(view: View, target: TargetInfo) -> list[int]:
    """The portal groups through which a target is reached."""
    every = sorted({portal.portal_group for portal in await view.portals()})
    return [tag for tag in every if not target.portal_groups or tag in target.portal_groups]


async def find_port(view: View, key: PortKey | None) -> TargetInfo | None:
    """The target of a port."""
    target = None if key is None else await view.target(key.target)
    if key is None or target is None or key.portal_group not in await port_tags(view, target):
        return None
    return target


class TargetPort(Provider):
    """A target in one portal group, which is a SCSI target port (RFC 7143 section 4.4.1)."""

    class_name = PORT_CLASS

    async def paths(self, view: View) -> AsyncIterator[CIMInstanceName]:
        paths = await view.paths()
        for target in await view.targets():
            for tag in await port_tags(view, target):
                yield paths.port(target.name, tag)

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        async for path in self.paths(view):
            yield self._made(view, path)

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        paths = await view.paths()
        key = paths.port_key(keys)
        if key is None or await find_port(view, key) is None:
            return None
        return self._made(view, paths.port(key.target, key.portal_group))

    def _made(self, view: View, path: CIMInstanceName) -> CIMInstance:
        return view.make(
            self.namespace,
            self.class_name,
            **path.keybindings,
            ElementName=path.keybindings["Name"],
            NameFormat="iSCSI Name",
            ProtocolIFType=1,  # Other
            OtherTypeDescription="iSCSI",
            ConnectionType=7,  # iSCSI
            Role=3,  # Target
            Identifier=path.keybindings["Name"].rpartition(",0x")[2],
            **OK.enabled_properties(),
        )


class Portal(Provider):
    """An address where iSCSI is listened for."""

    class_name = PORTAL_CLASS

    async def paths(self, view: View) -> AsyncIterator[CIMInstanceName]:
        paths = await view.paths()
        for portal in await view.portals():
            yield paths.portal(portal.address)

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        async for path in self.paths(view):
            yield self._made(view, path)

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        paths = await view.paths()
        address = paths.scoped_key(PORTAL_CLASS, "Name", keys)
        known = any(portal.address == address for portal in await view.portals())
        return self._made(view, paths.portal(address)) if known and address is not None else None

    def _made(self, view: View, path: CIMInstanceName) -> CIMInstance:
        address = path.keybindings["Name"]
        return view.make(
            self.namespace,
            self.class_name,
            **path.keybindings,
            ElementName=address,
            NameFormat="HOST:PORT",
            PortNumber=int(address.rpartition(":")[2]),
            ProtocolIFType=4111,  # TCP
            **OK.enabled_properties(),
        )


class SAPAvailableForElement(Links):
    """From each port to the views of its target."""

    class_name = "MSISCSITARGET_SAPAvailableForElement"
    ends = (End("AvailableSAP", "CIM_ServiceAccessPoint"), End("ManagedElement", "CIM_ManagedElement"))

    async def follow(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        if path.classname != PORT_CLASS:
            return
        paths = await view.paths()
        target = await find_port(view, paths.port_key(path.keybindings))
        for shelf in [] if target is None else shelves_of(target):
            yield paths.controller(shelf.target.name, shelf.lun)

    async def trace(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        if path.classname != CONTROLLER_CLASS:
            return
        paths = await view.paths()
        shelf = await find_shelf(view, paths.controller_key(path.keybindings))
        for tag in [] if shelf is None else await port_tags(view, shelf.target):
            assert shelf is not None
            yield paths.port(shelf.target.name, tag)


class BindsTo(Links):
    """From each portal to the ports that it leads to."""

    class_name = "MSISCSITARGET_BindsTo"
    ends = (End("Antecedent", "CIM_ProtocolEndpoint"), End("Dependent", "CIM_ServiceAccessPoint"))

    async def follow(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        if path.classname != PORTAL_CLASS:
            return
        paths = await view.paths()
        for portal in await view.portals():
            if path != paths.portal(portal.address):
                continue
            for target in await view.targets():
                if portal.portal_group in await port_tags(view, target):
                    yield paths.port(target.name, portal.portal_group)

    async def trace(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        if path.classname != PORT_CLASS:
            return
        paths = await view.paths()
        key = paths.port_key(path.keybindings)
        if key is None or await find_port(view, key) is None:
            return
        for portal in await view.portals():
            if portal.portal_group == key.portal_group:
                yield paths.portal(portal.address)


PROVIDERS = (
    ProtocolController(),
    ProtocolControllerForUnit(),
    StorageHardwareID(),
    AuthorizedPrivilege(),
    AuthorizedTarget(),
    AuthorizedSubject(),
    ServiceDependency(),
    TargetPort(),
    Portal(),
    SAPAvailableForElement(),
    BindsTo(),
)
