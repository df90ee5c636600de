"""From a URL and a password to a finished mirror, knowing nothing of the array but the standard.

    python examples/wbem_mirror.py https://HOST:5989 --user USER --password-file FILE --ca-certs CA.pem

Profiles lead to the array, the array to its services and its pools, these to their capabilities; no name of an instance
is made here. What it needs is pywbem.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from pywbem import CIMInstance, CIMInstanceName, Uint16, Uint64, WBEMConnection, WBEMServer

VOLUME = Uint16(2)  # CreateOrModifyElementFromStoragePool.ElementType
MIRROR, SYNCHRONOUS, LOCAL = Uint16(6), Uint16(2), Uint16(2)  # SyncType, Mode; GetSupported... LocalOrRemote
SYNCHRONIZED = 4  # CIM_Synchronized.CopyState
RUNNING = (2, 3, 4, 5)  # CIM_ConcreteJob.JobState: New, Starting, Running, Suspended
POLL_S = 0.2


class Array:
    """The array behind a WBEM server: its system, what serves it, and where volumes are made."""

    def __init__(self, connection: WBEMConnection) -> None:
        self.connection = connection
        self.server = WBEMServer(connection)  # finds the Interop namespace by itself
        (profile,) = self.server.get_selected_profiles("SNIA", "Array")
        (self.system,) = connection.Associators(
            profile.path, AssocClass="CIM_ElementConformsToProfile", ResultClass="CIM_ComputerSystem"
        )
        self.configuration = self._service("CIM_StorageConfigurationService")
        self.replication = self._service("CIM_ReplicationService")
        pools = connection.Associators(self.system.path, AssocClass="CIM_HostedStoragePool")
        (self.pool,) = [pool for pool in pools if not pool["Primordial"]]

    def _service(self, class_name: str) -> CIMInstanceName:
        """The array's one service of that class."""
        (found,) = self.connection.AssociatorNames(
            self.system.path, AssocClass="CIM_HostedService", ResultClass=class_name
        )
        return found

    def mirrors(self) -> bool:
        """Whether it makes local synchronous mirrors, by its own words."""
        (capabilities,) = self.connection.AssociatorNames(
            self.replication, AssocClass="CIM_ElementCapabilities", ResultClass="CIM_ReplicationServiceCapabilities"
        )
        code, answer = self.connection.InvokeMethod(
            "ConvertSyncTypeToReplicationType", capabilities, SyncType=MIRROR, Mode=SYNCHRONOUS, LocalOrRemote=LOCAL
        )
        wanted = answer.get("SupportedReplicationTypes") if code == 0 else None
        return wanted in self.connection.GetInstance(capabilities)["SupportedReplicationTypes"]

    def volume(self, name: str, size_bytes: int) -> CIMInstanceName:
        """Make one in the pool."""
        code, answer = self.connection.InvokeMethod(
            "CreateOrModifyElementFromStoragePool",
            self.configuration,
            ElementName=name,
            ElementType=VOLUME,
            Size=Uint64(size_bytes),
            InPool=self.pool.path,
        )
        return self._made(code, answer, "TheElement")

    def mirror(self, source: CIMInstanceName, name: str) -> CIMInstance:
        """Make one of ``source``; the association, when the mirror is whole."""
        code, answer = self.connection.InvokeMethod(
            "CreateElementReplica",
            self.replication,
            ElementName=name,
            SyncType=MIRROR,
            Mode=SYNCHRONOUS,
            SourceElement=source,
        )
        target = self._made(code, answer, "TargetElement")
        (path,) = [
            each
            for each in self.connection.ReferenceNames(
                target, ResultClass="CIM_StorageSynchronized", Role="SyncedElement"
            )
            if each["SystemElement"].keybindings == source.keybindings
        ]
        while (association := self.connection.GetInstance(path))["CopyState"] != SYNCHRONIZED:
            print(f"  {association['PercentSynced']} %")
            time.sleep(POLL_S)
        return association

    def _made(self, code: int, answer: dict[str, CIMInstanceName], name: str) -> CIMInstanceName:
        """What a method has made: its output ``name``, or what its job says that it affects."""
        if code not in (0, 4096):
            raise SystemExit(f"the array answers {code}")
        job = answer.get("Job")
        while job is not None and (state := self.connection.GetInstance(job))["JobState"] in RUNNING:
            print(f"  job: {state['JobStatus']}, {state['PercentComplete']} %")
            time.sleep(POLL_S)
        if job is not None and state["ErrorCode"] != 0:
            raise SystemExit(f"the job ended with {state['ErrorCode']}: {state['ErrorDescription']}")
        if answer.get(name) is not None:
            return answer[name]
        return self.connection.AssociatorNames(
            job, AssocClass="CIM_AffectedJobElement", ResultClass="CIM_StorageVolume"
        )[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="https://HOST:5989")
    parser.add_argument("--user", required=True)
    parser.add_argument("--password-file", type=Path, required=True)
    parser.add_argument("--ca-certs", required=True, help="what signs the array's certificate")
    parser.add_argument("--name", default="ledger", help="of the volume that is made")
    parser.add_argument("--size", type=int, default=64 << 20, help="in bytes")
    given = parser.parse_args()
    password = given.password_file.read_text(encoding="utf-8").rstrip("\n")
    connection = WBEMConnection(given.url, (given.user, password), ca_certs=given.ca_certs, timeout=60)
    array = Array(connection)
    print(f"{array.server.brand} {array.server.version}: {array.system['ElementName']}")
    print(f"pool {array.pool['ElementName']}: {array.pool['RemainingManagedSpace']} bytes free")
    if not array.mirrors():
        raise SystemExit("it makes no local synchronous mirrors")
    source = array.volume(given.name, given.size)
    print(f"made {source['DeviceID']}")
    mirror = array.mirror(source, f"{given.name} mirror")
    print(f"mirrored to {mirror['SyncedElement']['DeviceID']}: CopyState {mirror['CopyState']}, Mode {mirror['Mode']}")


if __name__ == "__main__":
    main()
