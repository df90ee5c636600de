"""The self-check of the CIM model as a client makes it: pywbem against a served pool, before and after a restart."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import pywbem
from pywbem import CIMInstanceName, Uint16, Uint64

from tests.support.daemon import Daemon

if TYPE_CHECKING:
    from pathlib import Path

NAMESPACE = "root/cimv2/storage/iscsitarget"
HOST = "iqn.2026-11.org.example:host"
MIB = 1 << 20


def connected(daemon: Daemon) -> pywbem.WBEMConnection:
    return pywbem.WBEMConnection(
        f"http://{daemon.ready['wbem_http']}", default_namespace=NAMESPACE, use_pull_operations=True, timeout=120
    )


def service(client: pywbem.WBEMConnection, class_name: str) -> CIMInstanceName:
    (path,) = client.EnumerateInstanceNames(class_name)
    return path


def furnish(client: pywbem.WBEMConnection) -> None:
    """Through CIM only: two volumes, a snapshot, a clone, a group; one volume behind a target."""

    def call(where: str, method: str, **given: Any) -> dict[str, Any]:
        code, out = client.InvokeMethod(method, service(client, where), **given)
        assert code in (0, 4096), (method, code)
        return out

    configuration, replication = "CIM_StorageConfigurationService", "CIM_ReplicationService"
    volumes = [
        call(
            configuration,
            "CreateOrModifyElementFromStoragePool",
            ElementName=name,
            ElementType=Uint16(2),
            Size=Uint64(4 * MIB),
        )["TheElement"]
        for name in ("Ledger", "Archive")
    ]
    call(replication, "CreateElementReplica", SyncType=Uint16(7), SourceElement=volumes[0], ElementName="Monday")
    call(
        replication,
        "CreateElementReplica",
        SyncType=Uint16(8),
        SourceElement=volumes[0],
        ElementName="Copy",
        WaitForCopyState=Uint16(4),
    )
    call(replication, "CreateGroup", GroupName="Both", Members=volumes)
    call(
        "CIM_ControllerConfigurationService",
        "ExposePaths",
        LUNames=[client.GetInstance(volumes[1])["Name"]],
        InitiatorPortIDs=[HOST],
        DeviceAccesses=[Uint16(2)],
    )


def everything(client: pywbem.WBEMConnection) -> list[pywbem.CIMInstance]:
    found = []
    for name in client.EnumerateClassNames(DeepInheritance=False):
        found += client.IterEnumerateInstances(name, MaxObjectCount=7)
    return found


def check(client: pywbem.WBEMConnection, instances: list[pywbem.CIMInstance]) -> None:
    """Each instance is found by its path, and each association from what its references lead to."""
    paths = {local(instance.path) for instance in instances}
    assert len(paths) == len(instances)
    for instance in instances:
        assert client.GetInstance(instance.path).classname == instance.classname
        for each in instance.properties.values():
            if isinstance(each.value, CIMInstanceName) and each.value.namespace != NAMESPACE:
                assert client.GetInstance(each.value)
            elif isinstance(each.value, CIMInstanceName):
                assert local(each.value) in paths, (instance.path, each.name)
                back = client.ReferenceNames(each.value, ResultClass=instance.classname, Role=each.name)
                assert local(instance.path) in {local(path) for path in back}


def local(path: CIMInstanceName) -> CIMInstanceName:
    """Without the host, also in its keys."""
    copy = path.copy()
    copy.host = None
    for name, value in copy.keybindings.items():
        if isinstance(value, CIMInstanceName):
            copy.keybindings[name] = local(value)
    return copy


def test_every_reference_and_every_key(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    with Daemon.start(pool, "--wbem-http", "127.0.0.1:0") as daemon:
        client = connected(daemon)
        furnish(client)
        before = everything(client)
        check(client, before)
        names = {instance["ElementName"] for instance in before if instance.classname.endswith("_StorageVolume")}
        assert names == {"Ledger", "Archive", "Monday", "Copy"}
        assert daemon.stop() == 0
    with Daemon.start(pool, "--wbem-http", "127.0.0.1:0") as daemon:
        client = connected(daemon)
        after = {local(instance.path) for instance in everything(client)}
        gone = {local(instance.path) for instance in before} - after
        assert all("TCPProtocolEndpoint" in str(path) for path in gone), gone  # it listens at another port now


@pytest.mark.client("qemu-iscsi")
def test_a_disk_made_exposed_and_frozen_by_cim_for_a_real_initiator(tmp_path: Path) -> None:
    """What qemu-img writes to a volume is what it reads from its snapshot, though it has written more meanwhile."""
    size = 8 * MIB
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(os.urandom(size))
    second.write_bytes(os.urandom(size))
    with Daemon.start(tmp_path / "pool", "--wbem-http", "127.0.0.1:0") as daemon:
        client = connected(daemon)

        def expose(volume: CIMInstanceName, access: int) -> str:
            code, out = client.InvokeMethod(
                "ExposePaths",
                service(client, "CIM_ControllerConfigurationService"),
                LUNames=[client.GetInstance(volume)["Name"]],
                InitiatorPortIDs=[""],
                DeviceAccesses=[Uint16(access)],
            )
            assert code == 0
            (view,) = out["ProtocolControllers"]
            (unit,) = client.References(view, ResultClass="CIM_ProtocolControllerForUnit")
            (port,) = client.AssociatorNames(view, AssocClass="CIM_SAPAvailableForElement")
            (portal,) = client.Associators(port, AssocClass="CIM_BindsTo")
            lun = int(unit["DeviceNumber"], 16)
            return f"iscsi://{portal['Name']}/{client.GetInstance(view)['Name']}/{lun}"

        code, made = client.InvokeMethod(
            "CreateOrModifyElementFromStoragePool",
            service(client, "CIM_StorageConfigurationService"),
            ElementName="Disk",
            ElementType=Uint16(2),
            Size=Uint64(size),
        )
        assert code == 0
        disk = expose(made["TheElement"], access=2)
        convert(first, disk)
        code, out = client.InvokeMethod(
            "CreateElementReplica",
            service(client, "CIM_ReplicationService"),
            SyncType=Uint16(7),
            SourceElement=made["TheElement"],
            ElementName="Frozen",
        )
        assert code == 0
        frozen = expose(out["TargetElement"], access=3)
        convert(second, disk)
        compare(first, frozen)
        compare(second, disk)


def convert(image: Path, url: str) -> None:
    subprocess.run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, url], check=True)


def compare(image: Path, url: str) -> None:
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", image, url], check=True)
