"""A CIM server in this process over a small world of its own, and the same world in pywbem's mock.

The schema has what the operations must tell apart: a hierarchy with overridden properties, an association whose ends
are of different classes, one within a class, one below another, methods of all parameter types.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pywbem
import pywbem_mock
from pywbem import CIM_ERR_NOT_SUPPORTED, CIMError, CIMInstance, CIMInstanceName, Uint16, Uint64

from cim_facade import repository
from cim_facade.auth import Users
from cim_facade.context import User
from cim_facade.dispatch import Facade
from cim_facade.provider import Association, End, Keys, Provider
from cim_facade.registry import Registry
from cim_facade.repository import ClassRepository, compile_schema
from cim_facade.server import CimServer

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Iterable

    from cim_facade.context import View
    from engine.api import EngineApi

NS = "root/test"
ADMIN = User("joe", administrator=True, secure=True)
READER = User("ann", administrator=False, secure=True)

MOF = """
[Abstract] class T_Element { string Caption; [MaxLen(64)] string ElementName; };
class T_Setting : T_Element { [Key] string InstanceID; uint8 Level; string Names[]; };
class T_System : T_Element { [Key] string Name; uint16 States[]; };
class T_Device : T_Element {
    [Key] string SystemName; [Key] uint16 Number; uint64 Size = 512; boolean Ready; datetime Made;
    [Override("ElementName"), MaxLen(32)] string ElementName;
    uint32 Resize([In] uint64 Size, [In(false), Out] uint64 Was);
};
class T_Disk : T_Device { string Serial; real64 Load; [EmbeddedInstance("T_Setting")] string Setting; };
class T_Tape : T_Device { sint8 Slot; };
[Association] class T_Dependency { [Key] T_Element REF Antecedent; [Key] T_Element REF Dependent; };
[Association] class T_SystemDevice : T_Dependency {
    [Override("Antecedent")] T_System REF Antecedent; [Override("Dependent")] T_Device REF Dependent; uint8 Bay;
};
[Association] class T_Copy : T_Dependency {
    [Override("Antecedent")] T_Disk REF Antecedent; [Override("Dependent")] T_Disk REF Dependent; uint16 State;
};
class T_Service : T_Element {
    [Key] string Name;
    uint32 Act(
        [In] string Text, [In] uint8 Small, [In] sint64 Large, [In] boolean Flag, [In] datetime When, [In] real32 Part,
        [In] char16 Letter, [In] T_Device REF Device, [In] T_Disk REF Disks[], [In] uint16 Numbers[],
        [In, EmbeddedInstance("T_Setting")] string Setting, [In, EmbeddedInstance("T_Setting")] string Settings[],
        [In, Out] T_Device REF Kept, [In(false), Out] string Told, [In(false), Out] T_Disk REF Found[],
        [In(false), Out, EmbeddedInstance("T_Setting")] string Made
    );
    uint32 Missing();
    string GetName();
    [Static] uint32 Reset();
};
"""


def classes() -> ClassRepository:
    sources = {"qualifiers": repository.schema_sources()["qualifiers"], "test": MOF}
    return ClassRepository(*compile_schema(sources, {NS: ("qualifiers", "test"), "root/other": ("qualifiers",)}))


CLASSES = classes()


def make(class_name: str, **values: Any) -> CIMInstance:
    return CLASSES.shape(NS, class_name).make(NS, values)


class Stored(Provider):
    """Instances that are simply there."""

    namespace = NS

    def __init__(self, class_name: str, instances: Iterable[CIMInstance]) -> None:
        self.class_name = class_name  # type: ignore[misc]
        self.there = {each.path: each for each in instances}

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        for each in self.there.values():
            yield each.copy()

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        found = self.there.get(CIMInstanceName(self.class_name, keybindings=dict(keys), namespace=NS))
        return None if found is None else found.copy()

    async def delete(self, view: View, path: CIMInstanceName) -> None:
        del self.there[path]

    async def modify(self, view: View, instance: CIMInstance, properties: list[str] | None) -> None:
        stored = self.there[instance.path]
        for name, each in instance.properties.items():
            if properties is None or name.lower() in {wanted.lower() for wanted in properties}:
                stored[name] = each.value

    async def create(self, view: View, instance: CIMInstance) -> CIMInstanceName:
        if self.class_name != "T_Tape":
            raise CIMError(CIM_ERR_NOT_SUPPORTED, "tapes only")
        made = CLASSES.shape(NS, self.class_name).make(NS, dict(instance.items()))
        self.there[made.path] = made
        return made.path


class StoredAssociation(Association):
    """Association instances that are simply there, indexed by both ends."""

    namespace = NS

    def __init__(self, class_name: str, ends: tuple[End, End], instances: Iterable[CIMInstance]) -> None:
        self.class_name = class_name  # type: ignore[misc]
        self.ends = ends  # type: ignore[misc]
        self._by_end: dict[tuple[str, CIMInstanceName], list[CIMInstance]] = defaultdict(list)
        for each in instances:
            for end in ends:
                self._by_end[end.role, each[end.role]].append(each)

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        for each in self._by_end.get((role, path), ()):
            yield each.copy()


def world(disks: int = 7) -> list[CIMInstance]:
    """Two systems; disks in one of them, each but the first a copy of the one before; a tape in the other."""
    setting = CIMInstance("T_Setting", properties={"InstanceID": "s", "Names": ["a", None, "<&>"]})
    systems = [make("T_System", Name=name, States=[Uint16(2), Uint16(5)], Caption=None) for name in ("one", 'two "&<é')]
    made = [
        make("T_Disk", SystemName="one", Number=number, Serial=f"serial {number}", Ready=number % 2 == 0, Load=0.5)
        for number in range(disks)
    ]
    made[0]["Setting"] = setting
    made[1]["Size"] = Uint64(2**64 - 1)
    tape = make("T_Tape", SystemName='two "&<é', Number=0, Slot=-1, ElementName="line\r\nbreak\t")
    links = [make("T_SystemDevice", Antecedent=systems[0].path, Dependent=each.path, Bay=1) for each in made]
    links.append(make("T_SystemDevice", Antecedent=systems[1].path, Dependent=tape.path, Bay=None))
    copies = [
        make("T_Copy", Antecedent=one.path, Dependent=other.path, State=4) for one, other in itertools.pairwise(made)
    ]
    service = make("T_Service", Name="svc")
    return [*systems, *made, tape, *links, *copies, service]


async def act(view: View, path: CIMInstanceName, params: Any) -> tuple[int, dict[str, Any]]:
    """Answers what it was given."""
    told = ",".join(f"{name}={value!r}" for name, value in sorted(params.items()))
    return 4096, {"Told": told, "Kept": params.get("Kept"), "Found": params.get("Disks"), "Made": params.get("Setting")}


async def get_name(view: View, path: CIMInstanceName, params: Any) -> tuple[Any, dict[str, Any]]:
    return path.keybindings["Name"], {}


async def reset(view: View, path: CIMInstanceName, params: Any) -> tuple[int, dict[str, Any]]:
    return 0, {}


METHODS = {
    ("T_Service", "Act"): act,
    ("T_Service", "GetName"): get_name,
    ("T_Service", "Reset"): reset,
}

_ENDS = {
    "T_SystemDevice": (End("Antecedent", "T_System"), End("Dependent", "T_Device")),
    "T_Copy": (End("Antecedent", "T_Disk"), End("Dependent", "T_Disk")),
}


def registry(instances: list[CIMInstance]) -> Registry:
    """Of ``instances``, and the methods above."""
    by_class: dict[str, list[CIMInstance]] = defaultdict(list)
    for each in instances:
        by_class[each.classname].append(each)
    providers = [
        StoredAssociation(name, _ENDS[name], found) if name in _ENDS else Stored(name, found)
        for name, found in by_class.items()
    ]
    return Registry(providers, METHODS)


def facade(instances: list[CIMInstance] | None = None) -> Facade:
    return Facade(cast("EngineApi", None), CLASSES, registry(world() if instances is None else instances))


def mock(instances: list[CIMInstance]) -> pywbem_mock.FakedWBEMConnection:
    """The same classes and instances in pywbem's own server."""
    connection = pywbem_mock.FakedWBEMConnection(default_namespace=NS)
    connection.compile_mof_string(repository.schema_sources()["qualifiers"] + MOF, namespace=NS)
    whole = [each.copy() for each in instances]
    for each in whole:
        CLASSES.shape(NS, each.classname).complete(each)
    connection.add_cimobjects(whole, namespace=NS)
    return connection


@contextlib.asynccontextmanager
async def served(
    made: Facade, *, users: Path | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, CimServer]]:
    """HOST:PORT of ``made`` on loopback, and the server."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    server = CimServer(made, Users(users if users is not None else _NOWHERE), ConnectionAbortedError)

    async def served_with() -> ssl.SSLContext:
        assert tls is not None
        return tls

    await server.start(listener, None if tls is None else served_with)
    try:
        yield "{}:{}".format(*listener.getsockname()), server
    finally:
        await server.close()


_NOWHERE = Path("/nonexistent/users")


def client(address: str, **options: Any) -> pywbem.WBEMConnection:
    """Blocking: for threads beside the server's loop."""
    return pywbem.WBEMConnection(f"http://{address}", default_namespace=NS, timeout=30, **options)
