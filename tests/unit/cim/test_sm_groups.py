"""Groups in root/microsoft/windows/storage/sm: made, copied as one, and taken apart."""

from __future__ import annotations

import pytest
from pywbem import CIMInstance, Uint16

from cim_facade.namespaces import STORAGE_MANAGEMENT
from tests.support.cim_array import array

SM = STORAGE_MANAGEMENT
TO_PEER = "MSFT_SMReplicationGroupToReplicaPeer"


@pytest.fixture
async def made(tmp_path):
    async with array(tmp_path / "pool") as made:
        for name in "abxy":
            await made.volume(name, data=name.encode() * 4096)
        yield made


async def volumes(made):
    return {each["OtherIdentifyingInfo"][0]: each.path for each in await made.all("MSFT_SMStorageVolume", SM)}


async def group_of(made, name, members):
    (system,) = await made.all("MSFT_SMSystem", SM)
    code, out = await made.call(system.path, "CreateReplicationGroup", FriendlyName=name, StorageElements=members)
    assert code == 0
    return out["CreatedReplicationGroup"]


async def test_a_group_and_its_members(made):
    paths = await volumes(made)
    group = await group_of(made, "Data Base", [paths["b"], paths["a"]])
    assert (await made.get(group))["DisplayName"] == "Data Base"

    async def call(method, **given):
        return (await made.call(group, method, **given))[0]

    assert await call("AddMembers", StorageObjects=[paths["x"], paths["a"]]) == 0
    assert (await made.api.group_show("data-base")).members == ["b", "a", "x"]
    members = await made.references(group, "MSFT_SMReplicationGroupToStorageVolume", "Parent")
    assert [each["Child"] for each in members] == [paths["b"], paths["a"], paths["x"]]
    assert await call("RemoveMembers", StorageObjects=[paths["x"]]) == 0
    assert await call("RemoveMembers", StorageObjects=[paths["x"]]) == 8
    assert await call("SetFriendlyName", FriendlyName="Other") == 0
    assert await call("SetFriendlyName", FriendlyName=None) == 5
    assert (await made.get(group))["DisplayName"] == "Other"
    assert await call("CreateReplica", SyncType=7, RelationshipName="Night") == 0
    assert await call("Delete") == 48000
    assert await call("RemoveMembers", StorageObjects=[paths["a"]]) == 4
    (relation,) = await made.references(group, TO_PEER, "Parent")
    assert (relation["RelationshipName"], relation["SyncType"], relation["ConsistencyEnabled"]) == ("Night", 7, True)
    assert (await made.get(relation["Child"]))["PeerObjectType"] == 32769
    assert await call("SetReplicationRelationship", Operation=19, TargetGroup=relation["Child"]) == 0
    assert await made.references(group, TO_PEER, "Parent") == []
    assert await call("Delete") == 0
    assert await made.all("MSFT_SMReplicationGroup", SM) == []


async def test_the_settings_of_groups_are_those_of_all(made):
    group = await group_of(made, "g", [(await volumes(made))["a"]])
    code, out = await made.call(group, "GetReplicationSettings")
    settings = out["ReplicationSettings"]
    assert (code, settings["TargetElementSupplier"], settings["ThinProvisioningPolicy"]) == (0, 4, 7)

    async def kept(**wanted):
        given = CIMInstance("MSFT_SMReplicationSettings", {name: Uint16(value) for name, value in wanted.items()})
        return (await made.call(group, "SetReplicationSettings", ReplicationSettings=given))[0]

    assert (await made.call(group, "SetReplicationSettings", ReplicationSettings=settings))[0] == 0
    assert await kept(TargetElementSupplier=2) == 1
    assert await kept(ThinProvisioningPolicy=3) == 1
    assert await kept(ThinProvisioningPolicy=8) == 5
    assert (await made.call(group, "SetReplicationSettings", ReplicationSettings=None))[0] == 5


@pytest.mark.parametrize(("sync_type", "onto"), [(8, False), (6, True), (9, False)])
async def test_a_group_is_copied(made, sync_type, onto):
    paths = await volumes(made)
    group = await group_of(made, "g", [paths["a"], paths["b"]])
    target = await group_of(made, "t", [paths["x"], paths["y"]])
    given = {"TargetGroupObject": target} if onto else {}
    code, out = await made.call(group, "CreateReplica", SyncType=sync_type, RelationshipName="Copy", **given)
    assert code == 4096
    assert (await made.ended(out["Job"]))["ErrorCode"] == 0
    (relation,) = await made.references(group, TO_PEER, "Parent")
    assert (relation["SyncType"], relation["CopyState"], relation["PercentSynced"]) == (sync_type, 4, 100)
    copies = ["x", "y"] if onto else ["copy-1", "copy-2"]
    found = [info.name for info in await made.api.volume_list()]
    assert all(name in found for name in copies)
    assert (await made.call(group, "SetReplicationRelationship", Operation=8))[0] == 0


async def test_what_cannot_be_copied(made):
    paths = await volumes(made)
    group = await group_of(made, "g", [paths["a"], paths["b"]])
    small = await group_of(made, "one", [paths["x"]])
    empty = await group_of(made, None, None)

    async def call(**given):
        return (await made.call(group, "CreateReplica", **given))[0]

    assert await call(SyncType=5) == 5
    assert await call(SyncType=8, Mode=9) == 5
    assert await call(SyncType=8, TargetGroupObject=small) == 5
    assert (await made.call(empty, "CreateReplica", SyncType=7))[0] == 5
    gone = group.copy()
    gone.keybindings["ObjectId"] += "0"
    assert await call(SyncType=8, TargetGroupObject=gone) == 8
    assert await call(SyncType=6, Mode=2, RecoveryPointObjective=5) == 5
    assert (await made.call(group, "SetReplicationRelationship", Operation=8))[0] == 5
    assert (await made.call(group, "SetReplicationRelationship", Operation=24))[0] == 5
    assert await made.api.group_relation_list() == []
