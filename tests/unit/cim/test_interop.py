"""From interop to the array and back, by associations alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cim_facade.namespaces import INTEROP, STORAGE
from cim_facade.operations import Filters, Operations
from tests.support.cim_array import Array, array, classes, registry

if TYPE_CHECKING:
    from pathlib import Path

    from pywbem import CIMInstance, CIMInstanceName


async def neighbours(front: Array, path: CIMInstanceName, **filters: str) -> list[CIMInstance]:
    found = Operations(front.view(), classes(), registry()).associators(path, Filters(**filters))
    return [instance async for instance in found]


async def profile(front: Array, name: str) -> CIMInstance:
    (found,) = [each for each in await front.all("CIM_RegisteredProfile", INTEROP) if each["RegisteredName"] == name]
    return found


async def test_from_the_profile_to_a_volume_and_back(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        volume = await front.volume("disk")
        start = await profile(front, "Array")
        (system,) = await neighbours(front, start.path, assoc_class="CIM_ElementConformsToProfile",
                                     result_class="CIM_ComputerSystem")  # fmt: skip
        assert system.path.namespace == STORAGE
        (found,) = await neighbours(front, system.path, assoc_class="CIM_SystemDevice",
                                    result_class="CIM_StorageVolume")  # fmt: skip
        assert found.path == volume
        back = await neighbours(front, system.path, assoc_class="CIM_ElementConformsToProfile")
        assert [each.path for each in back] == [start.path]


async def test_an_array_refers_to_its_components(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        start = await profile(front, "Array")
        parts = await neighbours(front, start.path, assoc_class="CIM_ReferencedProfile", role="Antecedent")
        assert {"Block Services", "Replication Services", "Masking and Mapping"} <= {
            each["RegisteredName"] for each in parts
        }
        replication = await profile(front, "Replication Services")
        (scoping,) = await neighbours(front, replication.path, assoc_class="CIM_ReferencedProfile", role="Dependent")
        assert scoping.path == start.path
        (service,) = await neighbours(front, replication.path, result_class="CIM_Service")
        assert service.classname == "MSISCSITARGET_ReplicationService"


async def test_the_manager_has_every_namespace_and_says_its_version(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        (manager,) = await front.all("CIM_ObjectManager", INTEROP)
        assert manager["ElementName"] == "twinvol Version test"
        spaces = await neighbours(front, manager.path, assoc_class="CIM_NamespaceInManager")
        assert {each["Name"] for each in spaces} == set(classes().namespaces)
        (mechanism,) = await neighbours(front, manager.path, assoc_class="CIM_CommMechanismForManager")
        assert mechanism["CommunicationMechanism"] == 2
        (system,) = await neighbours(front, manager.path, assoc_class="CIM_HostedService")
        assert system.classname == "MSFTSM_ComputerSystem"
