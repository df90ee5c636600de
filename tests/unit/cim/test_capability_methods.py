"""What the capabilities say is what the methods do."""

from __future__ import annotations

import pytest
from pywbem import Uint16

from cim_facade.methods.capabilities import TYPES, is_done
from cim_facade.namespaces import STORAGE_MANAGEMENT
from cim_facade.value_maps import SyncType
from tests.support.cim_array import MIB, REPLICATION, array

CAPABILITIES = "MSISCSITARGET_ReplicationServiceCapabilities"
BY_TYPE = (
    "ConvertReplicationTypeToSyncType",
    "GetSupportedCopyStates",
    "GetSupportedGroupCopyStates",
    "GetSupportedFeatures",
    "GetSupportedGroupFeatures",
    "GetSupportedConsistency",
    "GetDefaultConsistency",
    "GetSupportedOperations",
    "GetSupportedGroupOperations",
    "GetSupportedListOperations",
    "GetSupportedSettingsDefineStateOperations",
    "GetSupportedThinProvisioningFeatures",
    "GetDefaultReplicationSettingData",
)


@pytest.fixture
async def made(tmp_path):
    async with array(tmp_path / "pool") as made:
        yield made


async def capabilities(made):
    (found,) = await made.all(CAPABILITIES)
    return found.path


async def test_every_type_is_answered_or_refused(made):
    path = await capabilities(made)
    supported = (await made.get(path))["SupportedReplicationTypes"]
    assert supported == [number for number, kind in TYPES.items() if number < 14 and is_done(kind)]
    for number in (None, 0, 1, 14, 25, 32768, *range(2, 14)):
        expected = 0 if number in supported else 1 if number in range(2, 14) else 5
        for method in BY_TYPE:
            assert (await made.call(path, method, ReplicationType=number))[0] == expected, (method, number)
    assert (await made.call(path, "GetDefaultGroupPersistency"))[1]["DefaultGroupPersistency"] == 2


async def test_types_are_converted_both_ways(made):
    path = await capabilities(made)
    for number, kind in TYPES.items():
        given = {"SyncType": kind.sync_type, "Mode": kind.mode, "LocalOrRemote": kind.locality}
        code, out = await made.call(path, "ConvertSyncTypeToReplicationType", **given)
        if number >= 14:
            assert code == 5
        elif is_done(kind):
            assert (code, out["SupportedReplicationTypes"]) == (0, number)
            code, out = await made.call(path, "ConvertReplicationTypeToSyncType", ReplicationType=number)
            assert (code, dict(out.items())) == (0, given)
        else:
            assert code == 1
    assert (await made.call(path, "ConvertSyncTypeToReplicationType", SyncType=7, Mode=2))[0] == 5


async def test_the_default_settings_can_be_sent_back(made):
    path = await capabilities(made)
    source = await made.volume("v", data=b"x" * 4096)
    for number, sync_type in ((3, 6), (6, 7), (10, 8)):
        code, out = await made.call(path, "GetDefaultReplicationSettingData", ReplicationType=number)
        assert code == 0
        settings = out["DefaultInstance"]
        values = (await made.call(path, "GetSupportedReplicationSettingData", ReplicationType=number, PropertyName=3))[
            1
        ]
        for methodology in values["SupportedValues"]:
            settings["DesiredCopyMethodology"] = Uint16(methodology)
            given = {"SyncType": sync_type, "SourceElement": source, "WaitForCopyState": 4}
            code, _ = await made.call(REPLICATION, "CreateElementReplica", **given, ReplicationSettingData=settings)
            assert code == 0, methodology


async def test_what_can_be_waited_for_can_be_waited_for(made):
    path = await capabilities(made)
    source = await made.volume("v", data=b"x" * 4096)
    for number, sync_type in ((2, 6), (6, 7), (10, 8)):
        given = {"ReplicationType": number, "MethodName": 2}
        states = (await made.call(path, "GetSupportedWaitForCopyStates", **given))[1]["SupportedCopyStates"]
        for state in range(2, 19):
            given = {"SyncType": sync_type, "Mode": 2, "SourceElement": source, "WaitForCopyState": state}
            code, _ = await made.call(REPLICATION, "CreateElementReplica", **given)
            assert code == (0 if state in states else 5), (number, state)
    given = {"ReplicationType": 2, "MethodName": 4}
    assert (await made.call(path, "GetSupportedWaitForCopyStates", **given))[1]["SupportedCopyStates"] == [
        4,
        6,
        9,
        12,
        18,
    ]
    given = {"ReplicationType": 2, "MethodName": 1}
    assert (await made.call(path, "GetSupportedWaitForCopyStates", **given))[0] == 5


async def test_operations_that_are_named_are_not_refused_as_unsupported(made):
    path = await capabilities(made)
    source = await made.volume("v", data=b"x" * 4096)
    for number, sync_type in ((2, SyncType.MIRROR), (6, SyncType.SNAPSHOT), (10, SyncType.CLONE)):
        known = (await made.call(path, "GetSupportedOperations", ReplicationType=number))[1]["SupportedOperations"]
        given = {"SyncType": sync_type, "Mode": 2, "SourceElement": source, "WaitForCopyState": 4}
        _, out = await made.call(REPLICATION, "CreateElementReplica", **given)
        for operation in range(2, 28):
            if operation not in known:
                given = {"Operation": operation, "Synchronization": out["Synchronization"]}
                assert (await made.call(REPLICATION, "ModifyReplicaSynchronization", **given))[0] == 1


async def test_roles_change_and_sources_are_restored_one_by_one(made):
    path = await capabilities(made)
    roles = {10, 11, 15, 20}  # Failover, Failback, Restore from Replica, Reverse Roles
    for number, own, state in ((2, {15, 20}, False), (4, roles, True), (5, roles, True)):  # here; at a peer
        for method, name in (
            ("GetSupportedOperations", "SupportedOperations"),
            ("GetSupportedGroupOperations", "SupportedGroupOperations"),
            ("GetSupportedListOperations", "SupportedListOperations"),
        ):
            found = (await made.call(path, method, ReplicationType=number))[1][name]
            assert roles & {*found} == (own if method == "GetSupportedOperations" else set())
        found = (await made.call(path, "GetSupportedCopyStates", ReplicationType=number))[1]["SupportedCopyStates"]
        assert (10 in found) is state


async def test_limits_and_settings(made):
    path = await capabilities(made)
    for component, expected in ((2, (0, 256)), (3, (0, 64)), (4, (0, 64)), (5, (7, None)), (9, (0, 1)), (1, (5, None))):
        given = {"ReplicationType": 10, "Component": component}
        code, out = await made.call(path, "GetSupportedMaximum", **given)
        assert (code, out.get("MaxValue")) == expected
    for name in (None, 1, 16):
        given = {"ReplicationType": 10, "PropertyName": name}
        assert (await made.call(path, "GetSupportedReplicationSettingData", **given))[0] == 5
    for kind, values in ((2, [2, 3]), (4, [2, 3]), (3, [2]), (10, [2])):
        given = {"ReplicationType": kind, "PropertyName": 10}  # FailedCopyStopsHostIO
        assert (await made.call(path, "GetSupportedReplicationSettingData", **given))[1]["SupportedValues"] == values
    for name in range(2, 16):
        given = {"ReplicationType": 10, "PropertyName": name}
        assert (await made.call(path, "GetSupportedReplicationSettingData", **given))[0] == 0


async def test_what_two_elements_can_be_to_each_other(made):
    path = await capabilities(made)
    small, large = await made.volume("small"), await made.volume("large", size=2 * MIB)
    code, out = await made.call(path, "GetSynchronizationSupported", LocalElement=small, OtherElement=large)
    assert (code, out["SyncTypes"], out["LocalElementRole"]) == (0, [6, 6, 8], [2, 2, 2])
    code, out = await made.call(path, "GetSynchronizationSupported", LocalElement=large, OtherElement=small)
    assert (code, out["SyncTypes"], out["LocalElementRole"]) == (0, [6, 6, 8], [3, 3, 3])
    assert (await made.call(path, "GetSynchronizationSupported", LocalElement=large))[0] == 5
    assert (await made.call(path, "GetSupportedConnectionFeatures"))[0] == 5


async def test_the_other_namespace(made):
    (found,) = await made.all("MSFT_SMReplicationCapabilities", STORAGE_MANAGEMENT)
    assert found["SupportedReplicationTypes"] == [number for number, kind in sorted(TYPES.items()) if is_done(kind)]
    for number in (None, 1, 26, *TYPES):
        expected = 0 if number in found["SupportedReplicationTypes"] else 1 if number in TYPES else 5
        for method in (
            "GetSupportedCopyStates",
            "GetSupportedFeatures",
            "GetSupportedGroupCopyStates",
            "GetSupportedGroupFeatures",
            "GetSupportedGroupOperations",
            "GetSupportedOperations",
        ):
            assert (await made.call(found.path, method, ReplicationType=number))[0] == expected, (method, number)
    code, out = await made.call(found.path, "GetRecoveryPointData", ReplicationType=3)
    assert (code, out["DefaultRecoveryPoint"], out["RecoveryPointIndicator"]) == (0, 30, 0)
    assert (await made.call(found.path, "GetRecoveryPointData", ReplicationType=2))[1]["RecoveryPointValues"] == [0]
    assert (await made.call(found.path, "GetRecoveryPointData", ReplicationType=6))[0] == 7
