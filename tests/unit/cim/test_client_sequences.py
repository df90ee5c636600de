"""Whole conversations as known clients hold them, call by call, over HTTPS: the SMI-S client of Windows' storage
service, the driver of OpenStack's Cinder, and a user of the older model.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from pywbem import CIMInstance, CIMInstanceName, Uint16, Uint64, WBEMConnection

from cim_facade.namespaces import INTEROP, STORAGE
from tests.support.cim_array import MIB, array

if TYPE_CHECKING:
    from pathlib import Path

RUNNING = (2, 3, 4, 32767)
"""JobStates at which a client goes on polling; any other ends it."""
SYNCHRONIZED, DETACH = Uint16(4), Uint16(8)
SNAPSHOT, CLONE = Uint16(7), Uint16(8)
STARTED = 4096


def polled(client: WBEMConnection, job: CIMInstanceName) -> CIMInstance:
    while True:
        found = client.GetInstance(job, LocalOnly=False)
        if found["JobState"] not in RUNNING:
            return found
        time.sleep(0.02)


# --- the storage service of Windows ----------------------------------------------------------------------------


def hosted(client: WBEMConnection, system: CIMInstanceName, class_name: str) -> CIMInstanceName:
    [found] = client.AssociatorNames(system, AssocClass="CIM_HostedService", ResultClass=class_name)
    return found


def array_system(client: WBEMConnection) -> CIMInstanceName:
    """From Interop: the profile Array of SNIA, and the top-level system that conforms to it."""
    profiles = client.EnumerateInstances("CIM_RegisteredProfile", namespace=INTEROP)
    [profile] = [each for each in profiles if (each["RegisteredOrganization"], each["RegisteredName"]) == (11, "Array")]
    [system] = client.AssociatorNames(
        profile.path, AssocClass="CIM_ElementConformsToProfile", ResultClass="CIM_ComputerSystem"
    )
    return system


def usable_copy(client: WBEMConnection, system: CIMInstanceName, volume: CIMInstanceName, kind: Uint16) -> CIMInstance:
    """New-VirtualDiskSnapshot, New-VirtualDiskClone: always WaitForCopyState 4; the name is there when it is over.

    The association of source and copy, whose copy can be used.
    """
    name = f"copy of kind {kind}"
    code, out = client.InvokeMethod(
        "CreateElementReplica",
        hosted(client, system, "CIM_ReplicationService"),
        ElementName=name,
        SyncType=kind,
        SourceElement=volume,
        TargetPool=client.AssociatorNames(volume, AssocClass="CIM_AllocatedFromStoragePool")[0],
        WaitForCopyState=SYNCHRONIZED,
    )
    assert code in (0, STARTED)
    if code == STARTED:
        job = polled(client, out["Job"])
        assert (job["JobState"], job["ErrorCode"], job["OperationalStatus"]) == (7, 0, [2, 17])
    [relation] = client.References(volume, ResultClass="CIM_StorageSynchronized", Role="SystemElement")
    assert (relation["SyncType"], relation["CopyState"], relation["PercentSynced"]) == (kind, SYNCHRONIZED, 100)
    assert client.GetInstance(relation["SyncedElement"])["ElementName"] == name
    return relation


def volumes(client: WBEMConnection) -> list[str]:
    return [path["DeviceID"] for path in client.EnumerateInstanceNames("CIM_StorageVolume")]


def windows(client: WBEMConnection) -> None:
    system = array_system(client)
    configuration = hosted(client, system, "CIM_StorageConfigurationService")
    replication = hosted(client, system, "CIM_ReplicationService")
    [capabilities] = client.Associators(replication, AssocClass="CIM_ElementCapabilities")
    for number in (7, 11):  # Async Snapshot Local, Async Clone Local
        assert number in capabilities["SupportedReplicationTypes"]
        code, out = client.InvokeMethod(
            "GetSupportedWaitForCopyStates",
            capabilities.path,
            [("ReplicationType", Uint16(number)), ("MethodName", Uint16(2))],
        )
        assert (code, out["SupportedCopyStates"]) == (0, [SYNCHRONIZED])
    [volume] = client.AssociatorNames(system, AssocClass="CIM_SystemDevice", ResultClass="CIM_StorageVolume")

    def given_back(element: CIMInstanceName) -> None:
        code, out = client.InvokeMethod("ReturnToStoragePool", configuration, TheElement=element)
        assert code in (0, STARTED)
        if code == STARTED:
            assert polled(client, out["Job"])["ErrorCode"] == 0
        assert element["DeviceID"] not in volumes(client)

    snapshot = usable_copy(client, system, volume, SNAPSHOT)
    given_back(snapshot["SyncedElement"])

    clone = usable_copy(client, system, volume, CLONE)
    code, out = client.InvokeMethod(
        "ModifyReplicaSynchronization", replication, Operation=DETACH, Synchronization=clone.path
    )
    assert (code, "Job" in out) == (0, False)
    assert client.References(volume, ResultClass="CIM_StorageSynchronized") == []
    assert client.GetInstance(clone["SyncedElement"])["Usage"] == 2  # an independent volume
    given_back(clone["SyncedElement"])
    assert volumes(client) == [volume["DeviceID"]]


async def test_windows_makes_a_snapshot_and_a_clone_and_gives_them_back(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as made:
        await made.volume("v", 4 * MIB, b"\x17" * 4096)
        await asyncio.to_thread(windows, made.client)
        assert [each.name for each in await made.api.volume_list()] == ["v"]


# --- Cinder's driver ----------------------------------------------------------------------------------------------


class Cinder:
    """As a driver for OpenStack's Cinder does it: services by name and system, every code but 0 has a job, and the job
    tells how it went and what was made."""

    def __init__(self, client: WBEMConnection, system: str) -> None:
        self.client = client
        self.system = system

    def service(self, class_name: str) -> CIMInstanceName:
        """Of this array, in a namespace that is configured: the profiles are not looked at."""
        found = self.client.EnumerateInstanceNames(class_name)
        return next(each for each in found if each["SystemName"] == self.system)

    def invoked(self, class_name: str, method: str, **given: Any) -> dict[str, Any]:
        """Its outputs, when it is done. A code that is not 0 is taken for a job's."""
        code, out = self.client.InvokeMethod(method, self.service(class_name), **given)
        if code != 0:
            job = polled(self.client, out["Job"])
            code, text = job["ErrorCode"], job["ErrorDescription"]
            assert code == 0, text
        return dict(out)

    def created(self, name: str, size: int) -> CIMInstanceName:
        pools = self.client.Associators(
            CIMInstanceName(
                "MSFTSM_ComputerSystem",
                {"CreationClassName": "MSFTSM_ComputerSystem", "Name": self.system},
                namespace=STORAGE,
            ),
            ResultClass="CIM_StoragePool",
        )
        pool = next(each for each in pools if each["RemainingManagedSpace"] >= size and not each["Primordial"])
        out = self.invoked(
            "CIM_StorageConfigurationService",
            "CreateOrModifyElementFromStoragePool",
            ElementName=name,
            InPool=pool.path,
            ElementType=Uint16(2),
            Size=Uint64(size),
        )
        path: CIMInstanceName = out["TheElement"]
        return path

    def settings(self) -> CIMInstance:
        """What a clone is made with by default, but that it is a full copy: the instance is changed and sent back."""
        [capabilities] = self.client.AssociatorNames(
            self.service("CIM_ReplicationService"), ResultClass="CIM_ReplicationServiceCapabilities"
        )
        code, out = self.client.InvokeMethod(
            "GetDefaultReplicationSettingData", capabilities, ReplicationType=Uint16(10)
        )
        assert code == 0
        found: CIMInstance = out["DefaultInstance"]
        found["DesiredCopyMethodology"] = Uint16(3)
        return found

    def cloned(self, source: CIMInstanceName, name: str) -> CIMInstanceName:
        out = self.invoked(
            "CIM_ReplicationService",
            "CreateElementReplica",
            ElementName=name,
            SyncType=CLONE,
            SourceElement=source,
            ReplicationSettingData=self.settings(),
        )
        made = self.client.Associators(out["Job"], ResultClass="MSISCSITARGET_StorageVolume")
        target: CIMInstanceName = made[0].path  # what was made comes first
        assert made[0]["ElementName"] == name
        relation = self.relation(target)
        while self.client.GetInstance(relation, LocalOnly=False)["PercentSynced"] < 100:
            time.sleep(0.02)
        return target

    def relation(self, target: CIMInstanceName) -> CIMInstanceName:
        return self.client.ReferenceNames(target, ResultClass="CIM_StorageSynchronized", Role="SyncedElement")[0]

    def detached(self, target: CIMInstanceName) -> None:
        self.invoked(
            "CIM_ReplicationService",
            "ModifyReplicaSynchronization",
            Operation=DETACH,
            Synchronization=self.relation(target),
            Force=False,
        )


def cinder(client: WBEMConnection, system: str) -> None:
    driver = Cinder(client, system)
    first, second = driver.created("volume-1", 4 * MIB), driver.created("volume-2", 4 * MIB)
    copy = driver.cloned(first, "volume-3")
    driver.detached(copy)
    assert client.ReferenceNames(first, ResultClass="CIM_StorageSynchronized") == []

    out = driver.invoked("CIM_ReplicationService", "CreateGroup", GroupName="consistency-group")
    group = out["ReplicationGroup"]
    driver.invoked("CIM_ReplicationService", "AddMembers", ReplicationGroup=group, Members=[first, second])
    out = driver.invoked(
        "CIM_ReplicationService",
        "CreateGroupReplica",
        RelationshipName="cgsnapshot",
        SyncType=SNAPSHOT,
        SourceGroup=group,
        WaitForCopyState=SYNCHRONIZED,
    )
    assert len(client.Associators(out["TargetGroup"], ResultClass="CIM_StorageVolume")) == 2
    driver.invoked(
        "CIM_ReplicationService",
        "ModifyReplicaSynchronization",
        Operation=Uint16(19),  # Return To ResourcePool
        Synchronization=out["Synchronization"],
    )
    driver.invoked("CIM_ReplicationService", "RemoveMembers", ReplicationGroup=group, Members=[second])
    driver.invoked("CIM_ReplicationService", "DeleteGroup", ReplicationGroup=group, RemoveElements=True)
    driver.invoked("CIM_StorageConfigurationService", "ReturnElementsToStoragePool", TheElements=[first, second, copy])


async def test_cinder_makes_clones_and_groups_and_removes_them(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as made:
        system = (await made.api.pool_identity()).pool_id
        await asyncio.to_thread(cinder, made.client, system)
        assert await made.api.volume_list() == []
        assert await made.api.group_list() == []


# --- the older model ------------------------------------------------------------------------------------------------


def copy_services(client: WBEMConnection, volume: CIMInstanceName) -> None:
    """CreateReplica, the job's elements, Fracture, Resync, Detach, ReturnToStoragePool."""
    [service] = client.EnumerateInstanceNames("CIM_StorageConfigurationService")
    code, out = client.InvokeMethod(
        "CreateReplica", service, ElementName="older", SourceElement=volume, CopyType=Uint16(3)
    )
    assert code == STARTED
    assert polled(client, out["Job"])["ErrorCode"] == 0
    target = client.AssociatorNames(out["Job"], AssocClass="CIM_AffectedJobElement")[0]
    assert target["DeviceID"] == out["TargetElement"]["DeviceID"]
    [relation] = client.ReferenceNames(volume, ResultClass="CIM_StorageSynchronized")
    for operation, state in ((3, 13), (4, 6)):  # Fracture: Fractured; Resync: Synchronized
        code, out = client.InvokeMethod(
            "ModifySynchronization", service, Operation=Uint16(operation), Synchronization=relation
        )
        assert code in (0, STARTED)
        if code == STARTED:
            assert polled(client, out["Job"])["ErrorCode"] == 0
        assert client.GetInstance(relation)["SyncState"] == state
    code, _ = client.InvokeMethod("ModifySynchronization", service, Operation=Uint16(2), Synchronization=relation)
    assert code == 0
    code, _ = client.InvokeMethod("ReturnToStoragePool", service, TheElement=target)
    assert code == 0


async def test_the_older_model_from_its_replica_to_its_return(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as made:
        volume = await made.volume("v", data=b"\x21" * 4096)
        await asyncio.to_thread(copy_services, made.client, volume)
        assert [each.name for each in await made.api.volume_list()] == ["v"]
