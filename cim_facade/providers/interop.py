"""The interop namespace: which namespaces there are, and the object manager that serves them.

Profiles are not registered yet: CIM_RegisteredProfile has no instances.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cim_facade.namespaces import INTEROP
from cim_facade.paths import SYSTEM_CLASS
from cim_facade.provider import Association, End, Provider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pywbem import CIMInstance, CIMInstanceName

    from cim_facade.context import View
    from cim_facade.provider import Keys

MANAGER_CLASS = "TWINVOL_ObjectManager"
NAMESPACE_CLASS = "TWINVOL_Namespace"
CIM_SCHEMA_VERSION = "2.49"


async def _manager_keys(view: View) -> dict[str, Any]:
    identity = await view.pool_identity()
    return {
        "SystemCreationClassName": SYSTEM_CLASS,
        "SystemName": identity.pool_id,
        "CreationClassName": MANAGER_CLASS,
        "Name": f"twinvol:{identity.pool_id}",
    }


async def _namespace_keys(view: View, name: str) -> dict[str, Any]:
    manager = await _manager_keys(view)
    return {
        "SystemCreationClassName": manager["SystemCreationClassName"],
        "SystemName": manager["SystemName"],
        "ObjectManagerCreationClassName": MANAGER_CLASS,
        "ObjectManagerName": manager["Name"],
        "CreationClassName": NAMESPACE_CLASS,
        "Name": name,
    }


class _Few(Provider):
    """A few instances that are always there."""

    namespace = INTEROP

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        async for instance in self.instances(view):
            if instance.path.keybindings == keys:
                return instance
        return None


class ObjectManager(_Few):
    """This server. pywbem reads brand and version out of its texts."""

    class_name = MANAGER_CLASS

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        version = (await view.pool_identity()).version
        yield view.make(
            self.namespace,
            self.class_name,
            **await _manager_keys(view),
            ElementName=f"twinvol Version {version}",
            Description=f"twinvol WBEM server, Version {version}",
            OperationalStatus=[2],
            HealthState=5,
            EnabledState=2,
            Started=True,
            GatherStatisticalData=False,
        )


class Namespace(_Few):
    """Each namespace that is served, this one among them."""

    class_name = NAMESPACE_CLASS

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        for name in view.classes.namespaces:
            yield view.make(
                self.namespace,
                self.class_name,
                **await _namespace_keys(view, name),
                ElementName=name,
                ClassInfo=200,  # CIM 2.x
                ClassType=200,
                ClassTypeVersion=CIM_SCHEMA_VERSION,
            )


class NamespaceInManager(Association):
    """Every namespace is in the one object manager."""

    class_name = "TWINVOL_NamespaceInManager"
    namespace = INTEROP
    ends = (End("Antecedent", "CIM_ObjectManager"), End("Dependent", "CIM_Namespace"))

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        manager = view.path(INTEROP, MANAGER_CLASS, **await _manager_keys(view))
        for name in view.classes.namespaces:
            namespace = view.path(INTEROP, NAMESPACE_CLASS, **await _namespace_keys(view, name))
            if path == (manager if role == "Antecedent" else namespace):
                yield view.make(self.namespace, self.class_name, Antecedent=manager, Dependent=namespace)


PROVIDERS: tuple[Provider, ...] = (ObjectManager(), Namespace(), NamespaceInManager())
