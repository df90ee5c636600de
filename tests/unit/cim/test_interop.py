"""From interop to the array and back, by associations alone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from pywbem import CIM_ERR_INVALID_PARAMETER, CIMError

from cim_facade.namespaces import INTEROP, STORAGE
from cim_facade.operations import Filters, Operations
from cim_facade.providers.interop import PROFILES
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
        assert manager["ElementName"] == "twinvol"
        assert manager["Description"].endswith("Version test")
        spaces = await neighbours(front, manager.path, assoc_class="CIM_NamespaceInManager")
        assert {each["Name"] for each in spaces} == set(classes().namespaces)
        (mechanism,) = await neighbours(front, manager.path, assoc_class="CIM_CommMechanismForManager")
        assert mechanism["CommunicationMechanism"] == 2
        (system,) = await neighbours(front, manager.path, assoc_class="CIM_HostedService")
        assert system.classname == "MSFTSM_ComputerSystem"


async def test_every_profile_leads_to_what_conforms_to_it(tmp_path: Path) -> None:
    """By the association and by the method; what the method answers is what the association leads to."""
    wanted = {
        "SMI-S": "MSFTSM_RegisteredProfile",
        "Server": "MSFTSM_ObjectManager",
        "Profile Registration": "MSFTSM_RegisteredProfile",
        "Array": "MSFTSM_ComputerSystem",
        "Block Services": "MSISCSITARGET_StoragePool",
        "Replication Services": "MSISCSITARGET_ReplicationService",
        "Copy Services": "MSISCSITARGET_StorageConfigurationService",
        "Masking and Mapping": "MSISCSITARGET_ControllerConfigurationService",
        "Job Control": "MSISCSITARGET_ConcreteJob",
        "Indications": "CIM_IndicationService",
        "iSCSI Target Ports": "MSISCSITARGET_iSCSIProtocolEndpoint",
    }
    assert set(wanted) == {each.name for each in PROFILES.values()}
    async with array(tmp_path / "pool") as front:
        await front.api.volume_create("disk", 1 << 20, expose=True)
        await front.api.clone_copy("disk", None, "copy")
        for name, class_name in wanted.items():
            start = await profile(front, name)
            found = await neighbours(front, start.path, assoc_class="CIM_ElementConformsToProfile",
                                     role="ConformantStandard", result_class=class_name)  # fmt: skip
            assert found, name
            code, out = await front.call(start.path, "GetCentralInstances")
            assert (code, out["CentralInstances"]) == (0, [each.path for each in found])


async def test_a_result_class_of_another_namespace(tmp_path: Path) -> None:
    """From a profile in interop to what only the storage namespace has; what no namespace has is refused."""
    async with array(tmp_path / "pool") as front:
        start = await profile(front, "Block Services")
        pools = await asyncio.to_thread(front.client.AssociatorNames, start.path, ResultClass="CIM_StoragePool")
        assert len(pools) == 2
        with pytest.raises(CIMError) as refused:
            await asyncio.to_thread(front.client.AssociatorNames, start.path, ResultClass="CIM_Nothing")
        assert refused.value.status_code == CIM_ERR_INVALID_PARAMETER
