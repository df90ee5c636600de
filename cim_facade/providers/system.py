"""The system, its services, and what is hosted by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cim_facade.paths import SYSTEM_CLASS
from cim_facade.provider import End, Provider
from cim_facade.providers.shared import OK, Links, State
from cim_facade.providers.synchronizations import point_in_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pywbem import CIMInstance, CIMInstanceName

    from cim_facade.context import View
    from cim_facade.provider import Keys

STORAGE_CONFIGURATION = "MSISCSITARGET_StorageConfigurationService"
REPLICATION = "MSISCSITARGET_ReplicationService"
CONTROLLER_CONFIGURATION = "MSISCSITARGET_ControllerConfigurationService"
HARDWARE_ID_MANAGEMENT = "MSISCSITARGET_StorageHardwareIDManagementService"
ISCSI_CONFIGURATION = "MSISCSITARGET_iSCSIConfigurationService"

SERVICES = {
    STORAGE_CONFIGURATION: "Storage configuration",
    REPLICATION: "Replication",
    CONTROLLER_CONFIGURATION: "Masking and mapping",
    HARDWARE_ID_MANAGEMENT: "Initiators",
    ISCSI_CONFIGURATION: "iSCSI targets",
}
"""Class and ElementName of each."""

NAMED_BY_UUID = "Other"


class ComputerSystem(Provider):
    """The pool, seen as an array."""

    class_name = SYSTEM_CLASS

    async def paths(self, view: View) -> AsyncIterator[CIMInstanceName]:
        yield (await view.paths()).system()

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        identity, reasons = await view.pool_identity(), await view.api.pool_reasons()
        yield view.make(
            self.namespace,
            self.class_name,
            CreationClassName=SYSTEM_CLASS,
            Name=identity.pool_id,
            NameFormat=NAMED_BY_UUID,
            ElementName=identity.path.rstrip("/").rpartition("/")[2],
            Caption="twinvol",
            Description=f"twinvol {identity.version}, pool {identity.path}",
            OtherIdentifyingInfo=[identity.path],
            IdentifyingDescriptions=["Path of the pool"],
            Dedicated=[3, 15],  # Storage, Block Server
            ResetCapability=5,  # Not Implemented
            PowerManagementCapabilities=[1],  # Not Supported
            TimeOfLastStateChange=point_in_time(identity.started_at),
            **_health(reasons).enabled_properties(),
        )

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        if not (await view.paths()).is_system(keys):
            return None
        return await anext(self.instances(view))


def _health(reasons: list[str]) -> State:
    return State(3, 10, "Degraded", reason="; ".join(reasons)) if reasons else OK


class Service(Provider):
    """The one instance of a class of services."""

    def __init__(self, class_name: str, element_name: str) -> None:
        self.class_name = class_name  # type: ignore[misc]  # one class for all of them
        self._element_name = element_name

    async def paths(self, view: View) -> AsyncIterator[CIMInstanceName]:
        yield (await view.paths()).service(self.class_name)

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        yield await self._made(view)

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        name = (await view.paths()).scoped_key(self.class_name, "Name", keys)
        return await self._made(view) if name == self.class_name else None

    async def _made(self, view: View) -> CIMInstance:
        return view.make(
            self.namespace,
            self.class_name,
            **(await view.paths()).scope(self.class_name),
            Name=self.class_name,
            ElementName=self._element_name,
            Started=True,
            StartMode="Automatic",
            **OK.enabled_properties(),
        )


class Hosted(Links):
    """From the system to everything of some classes that lives in it; back from each to the system."""

    hosted: tuple[str, ...]
    """Classes of what is hosted."""

    async def follow(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        if not (await view.paths()).is_system(path.keybindings):
            return
        for class_name in self.hosted:
            for provider in view.providers(self.namespace, class_name):
                async for found in provider.paths(view):
                    yield found

    async def trace(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        if await self.exists(view, path):
            yield (await view.paths()).system()

    async def exists(self, view: View, path: CIMInstanceName) -> bool:
        """Whether something hosted has that path."""
        for class_name in self.hosted:
            for provider in view.providers(self.namespace, class_name):
                if provider.class_name.lower() == path.classname.lower():
                    return await provider.instance(view, path.keybindings) is not None
        return False


class HostedService(Hosted):
    class_name = "MSISCSITARGET_HostedService"
    ends = (End("Antecedent", "CIM_System"), End("Dependent", "CIM_Service"))
    hosted = tuple(SERVICES)


class HostedAccessPoint(Hosted):
    class_name = "MSISCSITARGET_HostedAccessPoint"
    ends = (End("Antecedent", "CIM_System"), End("Dependent", "CIM_ServiceAccessPoint"))
    hosted = ("CIM_ServiceAccessPoint",)


class HostedStoragePool(Hosted):
    class_name = "MSISCSITARGET_HostedStoragePool"
    ends = (End("GroupComponent", "CIM_System"), End("PartComponent", "CIM_StoragePool"))
    hosted = ("CIM_StoragePool",)


class SystemDevice(Hosted):
    class_name = "MSISCSITARGET_SystemDevice"
    ends = (End("GroupComponent", "CIM_System"), End("PartComponent", "CIM_LogicalDevice"))
    hosted = ("CIM_LogicalDevice",)


PROVIDERS = (
    ComputerSystem(),
    *(Service(class_name, element_name) for class_name, element_name in SERVICES.items()),
    HostedService(),
    HostedAccessPoint(),
    HostedStoragePool(),
    SystemDevice(),
)
