"""End to end, by CIM alone but for the peers' first handshake: a volume made, exposed and mirrored to a peer, written
by a real initiator, failed over when its pool is gone, and read back there."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from pywbem import Uint16, Uint64

from tests.integration.test_cim_model import MIB, compare, connected, convert, service
from tests.support.daemon import Daemon

if TYPE_CHECKING:
    from pathlib import Path

    import pywbem
    from pywbem import CIMInstanceName

SERVED = ("--peer", "127.0.0.1:0", "--wbem-http", "127.0.0.1:0")


def exposed_at(client: pywbem.WBEMConnection, volume: CIMInstanceName) -> str:
    """The URL of the one LUN that shows a volume."""
    (unit,) = client.References(volume, ResultClass="CIM_ProtocolControllerForUnit")
    view = unit["Antecedent"]
    (port,) = client.AssociatorNames(view, AssocClass="CIM_SAPAvailableForElement")
    (portal,) = client.Associators(port, AssocClass="CIM_BindsTo")
    return f"iscsi://{portal['Name']}/{client.GetInstance(view)['Name']}/{int(unit['DeviceNumber'], 16)}"


def finished(client: pywbem.WBEMConnection, code: int, out: dict[str, object]) -> None:
    assert code in (0, 4096)
    if code == 4096:
        job = client.GetInstance(out["Job"])
        while job["JobState"] in (2, 3, 4):
            job = client.GetInstance(out["Job"])
        assert (job["JobState"], job["ErrorCode"]) == (7, 0), job["ErrorDescription"]


@pytest.mark.client("qemu-iscsi")
def test_a_mirror_to_a_peer_takes_over(tmp_path: Path) -> None:
    size = 8 * MIB
    image = tmp_path / "image"
    image.write_bytes(os.urandom(size))
    with Daemon.start(tmp_path / "here", *SERVED) as here, Daemon.start(tmp_path / "there", *SERVED) as there:
        code = tmp_path / "code"
        code.write_text(there.run("peer", "invite", "here", "--address", there.ready["peer"])["code"])
        code.chmod(0o600)
        here.run("peer", "add", "there", "--code-file", str(code))
        client, other = connected(here), connected(there)
        number, made = client.InvokeMethod(
            "CreateOrModifyElementFromStoragePool",
            service(client, "CIM_StorageConfigurationService"),
            ElementName="Ledger",
            ElementType=Uint16(2),
            Size=Uint64(size),
        )
        assert number == 0
        volume = made["TheElement"]
        name = client.GetInstance(volume)["Name"]
        number, _ = client.InvokeMethod(
            "ExposePaths",
            service(client, "CIM_ControllerConfigurationService"),
            LUNames=[name],
            InitiatorPortIDs=[""],
            DeviceAccesses=[Uint16(2)],
        )
        assert number == 0
        (peer,) = client.EnumerateInstanceNames("CIM_RemoteServiceAccessPoint")
        number, out = client.InvokeMethod(
            "CreateElementReplica",
            service(client, "CIM_ReplicationService"),
            ElementName="Mirror",
            SyncType=Uint16(6),
            Mode=Uint16(2),
            SourceElement=volume,
            TargetAccessPoint=peer,
            WaitForCopyState=Uint16(4),
        )
        finished(client, number, out)
        (replica_name,) = [each["name"] for each in here.run("replica", "list")["replicas"]]
        while not there.run("replica", "failover", replica_name, "--plan")["reported_at"]:
            time.sleep(0.1)  # the source tells what a failover needs to know
        convert(image, exposed_at(client, volume))
        here.kill()
        (synchronized,) = other.EnumerateInstanceNames("CIM_StorageSynchronized")
        replica = synchronized["SyncedElement"]
        number, out = other.InvokeMethod(
            "ModifyReplicaSynchronization",
            service(other, "CIM_ReplicationService"),
            Operation=Uint16(10),
            Synchronization=synchronized,
            Force=True,
        )
        finished(other, number, out)
        assert other.GetInstance(replica)["Name"] == name  # to hosts it is the same disk
        compare(image, exposed_at(other, replica))
