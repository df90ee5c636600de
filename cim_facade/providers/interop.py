"""The interop namespace: from a URL to the object manager, the namespaces, the profiles, and from these to the array.

What conforms to a profile is in the storage namespace; the association is in both, as a client may begin at either end.
ReferencedProfile goes SNIA's way: Antecedent is the profile that refers, Dependent the one that it refers to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from cim_facade.namespaces import INTEROP, STORAGE
from cim_facade.paths import (
    MANAGER_CLASS,
    MECHANISM_CLASS,
    NAMESPACE_CLASS,
    PROFILE_CLASS,
    SYSTEM_CLASS,
)
from cim_facade.provider import Association, End, Provider
from cim_facade.providers.indications import service_path
from cim_facade.providers.shared import OK, ByInstanceId, Links, Pairs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pywbem import CIMInstance, CIMInstanceName

    from cim_facade.context import View
    from cim_facade.paths import Paths
    from cim_facade.provider import Keys

DMTF, SNIA = 2, 11


class Profile(NamedTuple):
    """``central``: classes of the storage namespace whose instances conform to it. ``refers``: IDs of profiles."""

    name: str
    organization: int
    version: str
    central: tuple[str, ...] = ()
    refers: tuple[str, ...] = ()


PROFILES = {
    "smi-s": Profile("SMI-S", SNIA, "1.6.1"),
    "server": Profile("Server", SNIA, "1.6.1", refers=("registration", "indications")),
    "indications": Profile("Indications", DMTF, "1.2.2"),
    "registration": Profile("Profile Registration", DMTF, "1.0.0"),
    "array": Profile(
        "Array",
        SNIA,
        "1.6.1",
        (SYSTEM_CLASS,),
        ("registration", "block-services", "replication", "copy", "masking", "jobs", "iscsi-ports"),
    ),
    "block-services": Profile("Block Services", SNIA, "1.6.1", ("CIM_StoragePool",)),
    "replication": Profile("Replication Services", SNIA, "1.6.1", ("CIM_ReplicationService",)),
    "copy": Profile("Copy Services", SNIA, "1.6.1", ("CIM_StorageConfigurationService",)),
    "masking": Profile("Masking and Mapping", SNIA, "1.6.1", ("CIM_ControllerConfigurationService",)),
    "jobs": Profile("Job Control", SNIA, "1.5.0", ("CIM_ConcreteJob",)),
    "iscsi-ports": Profile("iSCSI Target Ports", SNIA, "1.6.1", ("CIM_iSCSIProtocolEndpoint",)),
}
"""Those that the facade follows, by ID; nobody has certified that."""


class Single(Provider):
    """A class with one instance, whose path is known."""

    namespace = INTEROP

    def path(self, paths: Paths) -> CIMInstanceName:
        raise NotImplementedError

    async def properties(self, view: View) -> dict[str, Any]:
        """All but the keys."""
        raise NotImplementedError

    async def paths(self, view: View) -> AsyncIterator[CIMInstanceName]:
        yield self.path(await view.paths())

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        path = self.path(await view.paths())
        yield view.make(self.namespace, self.class_name, **path.keybindings, **await self.properties(view))

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        path = self.path(await view.paths())
        same = len(keys) == len(path.keybindings) and all(keys.get(n) == v for n, v in path.keybindings.items())
        return await anext(self.instances(view)) if same else None


class ObjectManager(Single):
    """This server. pywbem takes ElementName for the brand, and the version out of Description."""

    class_name = MANAGER_CLASS

    def path(self, paths: Paths) -> CIMInstanceName:
        return paths.manager()

    async def properties(self, view: View) -> dict[str, Any]:
        version = (await view.pool_identity()).version
        return {
            "ElementName": "twinvol",
            "Description": f"twinvol WBEM server, Version {version}",
            "Started": True,
            "StartMode": "Automatic",
            "GatherStatisticalData": False,
            **OK.enabled_properties(),
        }


class Mechanism(Single):
    """CIM-XML over HTTPS with Basic authentication."""

    class_name = MECHANISM_CLASS

    def path(self, paths: Paths) -> CIMInstanceName:
        return paths.mechanism()

    async def properties(self, view: View) -> dict[str, Any]:
        return {
            "ElementName": "CIM-XML",
            "CommunicationMechanism": 2,  # CIM-XML
            "Version": "1.0",
            "CIMXMLProtocolVersion": 1,  # 1.0
            "CIMValidated": False,
            "FunctionalProfilesSupported": [2, 5, 6, 8],  # Basic Read, instances, associations, qualifiers
            "MultipleOperationsSupported": False,
            "AuthenticationMechanismsSupported": [3],  # Basic
            "AdvertiseTypes": [2],  # Not Advertised
            **OK.enabled_properties(),
        }


class Namespace(Provider):
    class_name = NAMESPACE_CLASS
    namespace = INTEROP

    async def paths(self, view: View) -> AsyncIterator[CIMInstanceName]:
        paths = await view.paths()
        for name in view.classes.namespaces:
            yield paths.cim_namespace(name)

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        async for path in self.paths(view):
            yield view.make(
                self.namespace,
                self.class_name,
                **path.keybindings,
                ElementName=path.keybindings["Name"],
                ClassInfo=1,  # Other
                DescriptionOfClassInfo="CIM schema 2.29, in part",
                ClassType=2,  # CIM
            )

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        async for found in self.instances(view):
            if all(keys.get(name) == value for name, value in found.path.keybindings.items()):
                return found if len(keys) == len(found.path.keybindings) else None
        return None


class RegisteredProfile(ByInstanceId):
    class_name = PROFILE_CLASS
    namespace = INTEROP
    kind = "profile"

    async def identities(self, view: View) -> list[str]:
        return list(PROFILES)

    async def properties(self, view: View, identity: str) -> dict[str, Any] | None:
        profile = PROFILES.get(identity)
        if profile is None:
            return None
        return {
            "ElementName": profile.name,
            "RegisteredOrganization": profile.organization,
            "RegisteredName": profile.name,
            "RegisteredVersion": profile.version,
            "AdvertiseTypes": [2],  # Not Advertised
        }


def profile_path(paths: Paths, identity: str) -> CIMInstanceName:
    return paths.by_id(PROFILE_CLASS, "profile", identity, INTEROP)


class NamespaceInManager(Pairs):
    class_name = "MSFTSM_NamespaceInManager"
    namespace = INTEROP
    ends = (End("Antecedent", "CIM_ObjectManager"), End("Dependent", "CIM_Namespace"))

    async def pairs(self, view: View) -> list[tuple[CIMInstanceName, CIMInstanceName]]:
        paths = await view.paths()
        return [(paths.manager(), paths.cim_namespace(name)) for name in view.classes.namespaces]


class CommMechanismForManager(Pairs):
    class_name = "MSFTSM_CommMechanismForManager"
    namespace = INTEROP
    ends = (End("Antecedent", "CIM_ObjectManager"), End("Dependent", "CIM_ObjectManagerCommunicationMechanism"))

    async def pairs(self, view: View) -> list[tuple[CIMInstanceName, CIMInstanceName]]:
        paths = await view.paths()
        return [(paths.manager(), paths.mechanism())]


class ReferencedProfile(Pairs):
    class_name = "MSFTSM_ReferencedProfile"
    namespace = INTEROP
    ends = (End("Antecedent", "CIM_RegisteredProfile"), End("Dependent", "CIM_RegisteredProfile"))

    async def pairs(self, view: View) -> list[tuple[CIMInstanceName, CIMInstanceName]]:
        paths = await view.paths()
        return [
            (profile_path(paths, identity), profile_path(paths, other))
            for identity, profile in PROFILES.items()
            for other in profile.refers
        ]


class ConformsInterop(Pairs):
    """Within interop: the object manager is the server; SNIA's profiles belong to the specification."""

    class_name = "MSFTSM_ElementConformsToProfile"
    namespace = INTEROP
    ends = (End("ConformantStandard", "CIM_RegisteredProfile"), End("ManagedElement", "CIM_ManagedElement"))

    async def pairs(self, view: View) -> list[tuple[CIMInstanceName, CIMInstanceName]]:
        paths = await view.paths()
        found = [
            (profile_path(paths, "server"), paths.manager()),
            (profile_path(paths, "indications"), service_path(paths)),
        ]
        for identity, profile in PROFILES.items():
            found.append((profile_path(paths, "registration"), profile_path(paths, identity)))
            if profile.organization == SNIA and identity != "smi-s":
                found.append((profile_path(paths, "smi-s"), profile_path(paths, identity)))
        return found


class Conforms(Links):
    """From each profile to its central instances, in the storage namespace."""

    ends = (End("ConformantStandard", "CIM_RegisteredProfile"), End("ManagedElement", "CIM_ManagedElement"))
    end_namespace: ClassVar[str | None] = INTEROP
    class_name = "MSFTSM_ElementConformsToProfileEx"

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace  # type: ignore[misc]  # the same in both

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        paths = await view.paths()
        if role == self.ends[0].role:
            identity = paths.identity("profile", path.keybindings)
            for class_name in PROFILES[identity].central if identity in PROFILES else ():
                for provider in view.providers(STORAGE, class_name):
                    async for found in provider.paths(view):
                        yield await self.between(view, profile_path(paths, str(identity)), found)
            return
        here = path.copy()
        here.namespace, here.host = STORAGE, None
        for identity, profile in PROFILES.items():
            for class_name in profile.central:
                if view.is_a(here, class_name) and await _is_there(view, here):
                    yield await self.between(view, profile_path(paths, identity), here)


async def _is_there(view: View, path: CIMInstanceName) -> bool:
    for provider in view.providers(STORAGE, path.classname):
        if provider.class_name.lower() == path.classname.lower():
            return await provider.instance(view, path.keybindings) is not None
    return False


class HostedInInterop(Pairs):
    """From the system, in the storage namespace, to what of it is in interop."""

    namespace = INTEROP
    end_namespace: ClassVar[str | None] = STORAGE

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        at = self.ends[0].role == role
        for first, second in await self.pairs(view):
            if path == (first if at else second):
                yield await self.between(view, first, second)


class HostedService(HostedInInterop):
    class_name = "MSFTSM_HostedService"
    ends = (End("Antecedent", "CIM_System"), End("Dependent", "CIM_Service"))

    async def pairs(self, view: View) -> list[tuple[CIMInstanceName, CIMInstanceName]]:
        paths = await view.paths()
        return [(paths.system(), service) for service in (paths.manager(), service_path(paths))]


class HostedAccessPoint(HostedInInterop):
    class_name = "MSFTSM_HostedAccessPoint"
    ends = (End("Antecedent", "CIM_System"), End("Dependent", "CIM_ServiceAccessPoint"))

    async def pairs(self, view: View) -> list[tuple[CIMInstanceName, CIMInstanceName]]:
        paths = await view.paths()
        return [(paths.system(), paths.mechanism())]


CONFORMING: tuple[Association, ...] = (ConformsInterop(), Conforms(INTEROP))
"""What leads from a profile to its central instances."""

PROVIDERS = (
    ObjectManager(),
    Mechanism(),
    Namespace(),
    RegisteredProfile(),
    NamespaceInManager(),
    CommMechanismForManager(),
    ReferencedProfile(),
    *CONFORMING,
    Conforms(STORAGE),
    HostedService(),
    HostedAccessPoint(),
)
