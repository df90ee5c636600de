"""A snapshot as the source of a copy: what it held then, in a volume of its own, by every method that makes one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cim_facade.namespaces import STORAGE_MANAGEMENT
from tests.support.cim_array import CONFIGURATION, MIB, REPLICATION, Array, array

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pywbem import CIMInstance, CIMInstanceName

SYNC = "MSISCSITARGET_StorageSynchronized"
THEN, NOW = b"\x31" * 4096, b"\x32" * 4096


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Array]:
    async with array(tmp_path / "pool") as made:
        yield made


async def frozen(made: Array, name: str = "v") -> CIMInstanceName:
    """A snapshot of a volume that has been written to, and made larger, since."""
    volume = await made.volume(name, data=THEN)
    code, out = await made.call(CONFIGURATION, "CreateReplica", SourceElement=volume, CopyType=4)
    assert code == 0
    await made.engine.pool.volume(name).write(0, NOW)
    await made.api.volume_resize(name, 2 * MIB)
    snapshot: CIMInstanceName = out["TargetElement"]
    return snapshot


async def content(made: Array, path: CIMInstanceName) -> bytes:
    info = await made.api.volume_find(path["DeviceID"])
    assert info.size_bytes == MIB
    found = bytearray(4096)
    await made.engine.pool.volume(info.name).read(0, memoryview(found))
    return bytes(found)


async def targets(made: Array, job: CIMInstanceName) -> list[CIMInstanceName]:
    """What a job has made; then comes what it was made of."""
    assert (await made.ended(job))["ErrorCode"] == 0
    found = await made.references(job, "MSISCSITARGET_AffectedJobElement", "AffectingElement")
    return [each["AffectedElement"] for each in found]


async def relations(made: Array, snapshot: CIMInstanceName) -> list[CIMInstance]:
    return await made.references(snapshot, SYNC, "SystemElement")


async def test_a_replica_without_association_of_the_older_model(made: Array) -> None:
    snapshot = await frozen(made)
    code, out = await made.call(CONFIGURATION, "CreateReplica", SourceElement=snapshot, CopyType=5)
    assert code == 4096
    target, source = await targets(made, out["Job"])
    assert source == snapshot
    assert await content(made, target) == THEN
    assert await relations(made, snapshot) == []


async def test_a_clone_stays_associated_to_its_snapshot(made: Array) -> None:
    snapshot = await frozen(made)
    given = {"SyncType": 8, "SourceElement": snapshot, "ElementName": "of then", "WaitForCopyState": 4}
    code, out = await made.call(REPLICATION, "CreateElementReplica", **given)
    assert (code, out["Job"]) == (0, None)
    assert await content(made, out["TargetElement"]) == THEN
    (relation,) = await relations(made, snapshot)
    assert relation.path == out["Synchronization"]
    assert (relation["SyncedElement"], relation["SyncType"], relation["CopyState"]) == (out["TargetElement"], 8, 4)
    (back,) = await made.references(out["TargetElement"], SYNC, "SyncedElement")
    assert back["SystemElement"] == snapshot

    async def operate(operation: int) -> int:
        given = {"Operation": operation, "Synchronization": relation.path}
        return (await made.call(REPLICATION, "ModifyReplicaSynchronization", **given))[0]

    assert [await operate(number) for number in (14, 15)] == [1, 1]  # a snapshot never changes
    assert await operate(8) == 0
    assert await relations(made, snapshot) == []


async def test_a_relation_ends_with_its_snapshot(made: Array, tmp_path: Path) -> None:
    snapshot = await frozen(made)
    given = {"SyncType": 8, "SourceElement": snapshot, "WaitForCopyState": 4}
    _, out = await made.call(REPLICATION, "CreateElementReplica", **given)
    assert len(await made.api.relation_list()) == 1
    assert (await made.call(CONFIGURATION, "ReturnToStoragePool", TheElement=snapshot))[0] == 0
    assert await made.references(out["TargetElement"], SYNC, "SyncedElement") == []
    assert await content(made, out["TargetElement"]) == THEN


async def test_it_is_remembered_across_a_restart(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as made:
        snapshot = await frozen(made)
        given = {"SyncType": 8, "SourceElement": snapshot, "WaitForCopyState": 4}
        _, out = await made.call(REPLICATION, "CreateElementReplica", **given)
    async with array(tmp_path / "pool") as made:
        assert (await made.get(out["Synchronization"]))["SystemElement"] == snapshot


async def test_a_list_of_snapshots_and_volumes(made: Array) -> None:
    snapshot, volume = await frozen(made), await made.volume("w", data=NOW)
    given = {"SyncType": 8, "SourceElements": [snapshot, volume], "WaitForCopyState": 4}
    code, out = await made.call(REPLICATION, "CreateListReplica", **given)
    assert code == 0
    first, second = [await made.get(path) for path in out["Synchronizations"]]
    assert (first["SystemElement"], second["SystemElement"]) == (snapshot, volume)
    assert [await content(made, path) for path in out["TargetElements"]] == [THEN, NOW]
    given["SourceElements"] = [snapshot, snapshot]
    assert (await made.call(REPLICATION, "CreateListReplica", **given))[0] == 5


async def test_the_other_model(made: Array) -> None:
    await frozen(made)
    volumes = await made.all("MSFT_SMStorageVolume", STORAGE_MANAGEMENT)
    (snapshot,) = [each.path for each in volumes if each["IsSnapshot"]]
    code, out = await made.call(snapshot, "CreateReplica", SyncType=8)
    assert code == 4096
    assert (await made.ended(out["Job"]))["ErrorCode"] == 0
    (relation,) = await made.references(snapshot, "MSFT_SMStorageSynchronized", "SourceStorageVolume")
    (peer,) = await made.references(snapshot, "MSFT_SMStorageVolumeToReplicaPeer", "Parent")
    given = {"Operation": 8, "TargetStorageVolume": peer["Child"]}
    assert (await made.call(snapshot, "SetReplicationRelationship", **given))[0] == 0
    target = await made.get(relation["TargetStorageVolume"])
    assert (target["NumberOfBlocks"], target["IsSnapshot"]) == (MIB // 512, False)
    assert (await made.call(snapshot, "CreateClone", ElementName="second"))[0] == 4096
    assert [(await made.call(snapshot, "CreateReplica", SyncType=number))[0] for number in (6, 7, 9)] == [1, 1, 1]


async def test_what_is_made_of_volumes_only(made: Array) -> None:
    snapshot, other = await frozen(made), await made.volume("w", size=4 * MIB)
    for copy_type in (2, 3, 4):
        assert (await made.call(CONFIGURATION, "CreateReplica", SourceElement=snapshot, CopyType=copy_type))[0] == 1
    for copy_type in (2, 3, 4, 5):
        given = {"SourceElement": snapshot, "TargetElement": other, "CopyType": copy_type}
        assert (await made.call(CONFIGURATION, "AttachReplica", **given))[0] == 1
    for sync_type in (6, 7):
        given = {"SourceElement": snapshot, "SyncType": sync_type}
        assert (await made.call(REPLICATION, "CreateElementReplica", **given))[0] == 1
    given = {"SourceElement": snapshot, "SyncType": 8, "TargetElementCount": 2}
    assert (await made.call(REPLICATION, "CreateGroupReplica", **given))[0] == 1
    assert len(await made.api.volume_list()) == 2
