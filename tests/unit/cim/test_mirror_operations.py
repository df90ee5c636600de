"""Operations on mirrors that are there: Restore from Replica, Reverse Roles, Reset To another mode, Abort."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cim_facade.namespaces import STORAGE_MANAGEMENT
from tests.support.cim_array import CONFIGURATION, MIB, REPLICATION, Array, array
from tests.unit.cim.test_peers import access_point, two

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pywbem import CIMInstance

SYNC = "MSISCSITARGET_StorageSynchronized"
THEN, NOW = b"\x41" * 4096, b"\x42" * 4096
ABORT, FRACTURE, RESYNC, RESTORE, TO_SYNC, TO_ASYNC, REVERSE, TO_ADAPTIVE = 2, 12, 14, 15, 17, 18, 20, 25
ABORTED, RESTORED = 12, 18


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Array]:
    async with array(tmp_path / "pool") as made:
        yield made


async def content(made: Array, name: str) -> bytes:
    found = bytearray(4096)
    await made.engine.pool.volume(name).read(0, memoryview(found))
    return bytes(found)


async def mirrored(made: Array, mode: int = 2, **more: Any) -> CIMInstance:
    """A volume v and its mirror r; their association."""
    source = await made.volume("v", data=THEN)
    given = {"SyncType": 6, "Mode": mode, "SourceElement": source, "ElementName": "r", "WaitForCopyState": 4} | more
    code, out = await made.call(REPLICATION, "CreateElementReplica", **given)
    assert code in (0, 4096)
    if code == 4096:
        assert (await made.ended(out["Job"]))["ErrorCode"] == 0
    return await made.get(out["Synchronization"])


async def operate(made: Array, relation: CIMInstance, operation: int, **more: Any) -> int:
    """The code; 0 when it began a job that ended well."""
    given = {"Operation": operation, "Synchronization": relation.path} | more
    code, out = await made.call(REPLICATION, "ModifyReplicaSynchronization", **given)
    if code == 4096:
        job = await made.ended(out["Job"])
        assert (job["JobState"], job["ErrorCode"]) == (7, 0), job["ErrorDescription"]
        return 0
    return code


async def test_a_source_is_restored_from_its_fractured_replica(made: Array) -> None:
    relation = await mirrored(made)
    assert await operate(made, relation, FRACTURE) == 0
    await made.engine.pool.volume("r").write(0, NOW)
    assert await operate(made, relation, RESTORE, WaitForCopyState=4) == 5  # it is not what a restore leads to
    assert await operate(made, relation, RESTORE, WaitForCopyState=RESTORED) == 0
    assert await content(made, "v") == NOW
    found = await made.get(relation.path)
    assert (found["CopyState"], found["SyncState"], found["PercentSynced"]) == (RESTORED, 11, 100)
    assert await operate(made, relation, RESYNC) == 0
    assert (await made.get(relation.path))["CopyState"] == 4


async def test_a_restore_is_a_job_of_its_source_and_in_the_older_model_too(made: Array) -> None:
    relation = await mirrored(made, mode=3)
    await made.engine.pool.volume("v").write(0, NOW)
    given = {"Operation": 5, "Synchronization": relation.path}
    code, out = await made.call(CONFIGURATION, "ModifySynchronization", **given)
    assert code == 4096
    job = await made.ended(out["Job"])
    assert (job["JobState"], job["ErrorCode"]) == (7, 0)
    assert await content(made, "v") == THEN  # the recovery point that the replica has


async def test_a_source_with_sessions_is_restored_by_force_only(made: Array) -> None:
    relation = await mirrored(made)
    shown = await made.api.target_create("shown")
    await made.api.target_lun_add("shown", "v")
    made.engine.exports.log_in(shown.name, "iqn.2026-11.org.example:host")
    assert await operate(made, relation, RESTORE) == 6
    assert await content(made, "v") == THEN
    assert (await made.get(relation.path))["CopyState"] == 4


async def test_a_mirror_is_kept_in_another_mode(made: Array) -> None:
    relation = await mirrored(made)
    for operation, mode, copy_type in ((TO_ASYNC, 3, 2), (TO_ADAPTIVE, 4, 2), (TO_SYNC, 2, 3), (TO_SYNC, 2, 3)):
        assert await operate(made, relation, operation) == 0
        found = await made.get(relation.path)
        assert (found["Mode"], found["CopyType"]) == (mode, copy_type)
    for operation, mode in ((11, 3), (10, 2)):  # Reset To Async, Reset To Sync
        given = {"Operation": operation, "Synchronization": relation.path}
        assert (await made.call(CONFIGURATION, "ModifySynchronization", **given))[0] == 0
        assert (await made.get(relation.path))["Mode"] == mode


async def test_ends_exchange_their_roles(made: Array) -> None:
    relation = await mirrored(made)
    assert await operate(made, relation, REVERSE) == 0
    (found,) = await made.all(SYNC)
    assert (found["SystemElement"], found["SyncedElement"]) == (relation["SyncedElement"], relation["SystemElement"])
    assert await operate(made, relation, REVERSE) == 5  # that association is gone
    assert await content(made, "r") == THEN


async def test_a_copy_is_aborted_and_begun_again(made: Array) -> None:
    relation = await mirrored(made, mode=3)
    assert await operate(made, relation, ABORT, WaitForCopyState=ABORTED) == 0
    found = await made.get(relation.path)
    assert (found["CopyState"], found["SyncMaintained"]) == (ABORTED, False)
    assert await operate(made, relation, ABORT) == 4  # there is nothing to give up
    await made.engine.pool.volume("v").write(0, NOW)
    assert await operate(made, relation, RESYNC) == 0
    assert (await made.get(relation.path))["CopyState"] == 4
    assert await content(made, "r") == NOW


async def test_what_is_said_to_one_mirror_at_a_time(made: Array) -> None:
    relation = await mirrored(made)
    source = await made.volume("w")
    given = {"SyncType": 6, "Mode": 2, "SourceElement": source, "WaitForCopyState": 4}
    _, out = await made.call(REPLICATION, "CreateElementReplica", **given)
    both = [relation.path, out["Synchronization"]]
    for operation in (RESTORE, REVERSE):
        given = {"Operation": operation, "Synchronization": both}
        assert (await made.call(REPLICATION, "ModifyListSynchronization", **given))[0] == 1
    given = {"Operation": TO_ASYNC, "Synchronization": both}
    assert (await made.call(REPLICATION, "ModifyListSynchronization", **given))[0] == 0
    assert [(await made.get(path))["Mode"] for path in both] == [3, 3]


async def test_the_other_model_restores_and_resets(made: Array) -> None:
    await mirrored(made)
    volumes = await made.all("MSFT_SMStorageVolume", STORAGE_MANAGEMENT)
    (source,) = [each.path for each in volumes if each["OtherIdentifyingInfo"] == ["v"]]
    for operation in (TO_ASYNC, FRACTURE):
        assert (await made.call(source, "SetReplicationRelationship", Operation=operation))[0] == 0
    await made.engine.pool.volume("r").write(0, NOW)
    code, out = await made.call(source, "SetReplicationRelationship", Operation=RESTORE)
    assert code == 4096
    assert (await made.ended(out["Job"]))["ErrorCode"] == 0
    assert await content(made, "v") == NOW
    assert (await made.call(source, "SetReplicationRelationship", Operation=TO_ADAPTIVE))[0] == 5  # 2 to 23


async def test_a_source_is_restored_from_its_replica_at_a_peer(tmp_path: Path) -> None:
    async with two(tmp_path) as (made, _):
        relation = await mirrored(made, mode=3, TargetAccessPoint=await access_point(made))
        await made.engine.pool.volume("v").write(0, NOW)
        assert await operate(made, relation, RESTORE) == 0
        assert await content(made, "v") == THEN
        assert (await made.api.volume_show("v")).size_bytes == MIB
