"""MSFT_SMStorageVolume.CreateReplica (methods.md section 2) and its company, in root/microsoft/windows/storage/sm."""

from __future__ import annotations

import pytest
from pywbem import CIMInstance, CIMInstanceName, Uint16

from cim_facade.auth import UsersFile
from cim_facade.context import User, View
from cim_facade.methods import making
from cim_facade.methods.requests import Refused
from cim_facade.methods.sm_answering import check_credentials
from cim_facade.namespaces import STORAGE_MANAGEMENT
from engine.errors import EngineError, OutOfSpace, PermissionDenied, TimedOut
from tests.support.cim_array import MIB, array, behind_the_facade, registry
from tests.support.cim_array import classes as all_classes
from tests.support.engine import opened
from tests.unit.daemon.test_peers import connected

DATA = b"\x3c" * 4096
VOLUME, PEER = "MSFT_SMStorageVolume", "MSFT_SMReplicaPeer"


@pytest.fixture
async def made(tmp_path):
    async with array(tmp_path / "pool") as made:
        yield made


async def content(made, name):
    found = bytearray(4096)
    await made.engine.pool.volume(name).read(0, memoryview(found))
    return bytes(found)


async def volume(made, name, **options):
    """Make one; its path in this namespace."""
    await made.volume(name, **options)
    return await of(made, name)


async def of(made, name):
    for each in await made.all(VOLUME, STORAGE_MANAGEMENT):
        if each["OtherIdentifyingInfo"] == [name]:
            return each.path
    raise AssertionError(name)


async def system(made, name="local"):
    for each in await made.all(PEER, STORAGE_MANAGEMENT):
        if each["PeerObjectType"] == 32770 and each["PeerSystemName"] == name:
            return each.path
    raise AssertionError(name)


async def create(made, source, **given):
    return await made.call(source, "CreateReplica", **given)


async def relations(made, path, class_name="MSFT_SMStorageVolumeToReplicaPeer", role="Parent"):
    return await made.references(path, class_name, role)


def test_the_declaration_is_that_of_the_page():
    method = all_classes().get(STORAGE_MANAGEMENT, VOLUME).methods["CreateReplica"]
    found = [(p.name, p.type, p.reference_class, p.embedded_object) for p in method.parameters.values()]
    assert found == [
        ("ElementName", "string", None, None),
        ("SyncType", "uint16", None, None),
        ("Mode", "uint16", None, None),
        ("TargetStorageSystem", "reference", "MSFT_SMReplicaPeer", None),
        ("TargetStorageVolume", "reference", "MSFT_SMStorageVolume", None),
        ("TargetStoragePool", "reference", "MSFT_SMPool", None),
        ("RecoveryPointObjective", "uint32", None, None),
        ("ReplicationSettings", "string", None, "instance"),
        ("TargetReplicaPeer", "reference", "MSFT_SMReplicaPeer", None),
        ("username", "string", None, None),
        ("password", "string", None, None),
        ("Job", "reference", "MSFT_SMJob", None),
        ("ExtendedStatus", "string", None, "instance"),
    ]
    outs = [p.name for p in method.parameters.values() if "Out" in p.qualifiers]
    assert outs == ["TargetStorageVolume", "TargetReplicaPeer", "Job", "ExtendedStatus"]
    codes = dict(zip(method.qualifiers["ValueMap"].value, method.qualifiers["Values"].value, strict=True))
    assert codes == {
        "0": "Success",
        "1": "Not Supported",
        "2": "Unspecified Error",
        "3": "Timeout",
        "4": "Failed",
        "5": "Invalid Parameter",
        "8": "Object Not Found",
        "4096": "Method Parameters Checked - Job Started",
        "40001": "Access denied",
        "40002": "There are not enough resources to complete the operation.",
        "40003": "Cache out of date",
    }


@pytest.mark.parametrize("mode", [None, 2, 3, 4])
async def test_a_snapshot_takes_any_mode_and_no_time(made, mode):
    source = await volume(made, "v", data=DATA)
    code, out = await create(
        made, source, ElementName="Nightly", SyncType=7, Mode=mode, TargetStorageSystem=await system(made)
    )
    assert (code, out.get("Job")) == (0, None)
    target = await made.get(out["TargetStorageVolume"])
    assert (target["IsSnapshot"], target["Usage"], target["Access"]) == (True, 12, 1)
    peer = await made.get(out["TargetReplicaPeer"])
    assert (peer["PeerObjectType"], peer["PeerSystemName"], peer["Identifier"]) == (4, "local", "Nightly")
    assert peer["PeerObjectId"] == target["ObjectId"]
    (relation,) = await relations(made, source)
    assert relation["Child"] == out["TargetReplicaPeer"]
    assert (relation["SyncType"], relation["CopyState"], relation["CopyType"]) == (7, 4, 4)
    (relation,) = await relations(made, source, "MSFT_SMStorageSynchronized", "SourceStorageVolume")
    assert relation["TargetStorageVolume"] == out["TargetStorageVolume"]


@pytest.mark.parametrize(("sync_type", "name"), [(8, "clone"), (9, "token")])
async def test_clones_are_jobs(made, sync_type, name):
    source = await volume(made, "v", data=DATA)
    code, out = await create(made, source, SyncType=sync_type)
    assert code == 4096
    job = await made.ended(out["Job"])
    assert (job["JobState"], job["ErrorCode"], job["PercentComplete"]) == (7, 0, 100)
    assert await content(made, f"v-{name}") == DATA
    (relation,) = await relations(made, source)
    assert (relation["SyncType"], relation["SyncState"], relation["CopyMethodology"]) == (sync_type, 14, 3)
    affected = await relations(made, out["Job"], "MSFT_SMJobToStorageVolume", "Job")
    assert [each["AffectedStorageVolume"] for each in affected] == [await of(made, f"v-{name}"), source]


@pytest.mark.parametrize(("mode", "shown"), [(None, 3), (2, 2), (3, 3), (4, 4)])
async def test_mirrors_in_their_modes(made, mode, shown):
    source = await volume(made, "v", data=DATA)
    code, out = await create(made, source, ElementName="Two rooms", SyncType=6, Mode=mode)
    assert code == 4096
    assert out["TargetStorageVolume"] == await of(made, "two-rooms")
    await made.ended(out["Job"])
    (relation,) = await relations(made, source)
    assert (relation["Mode"], relation["CopyState"], relation["SyncMaintained"]) == (shown, 4, True)
    assert relation["RecoveryPointObjective"] == (0 if shown == 2 else 30)
    # the name is that of the relationship, not of the element
    assert (await made.get(out["TargetReplicaPeer"]))["Identifier"] == "Two rooms"
    assert (await made.get(out["TargetStorageVolume"]))["DisplayName"] == "two-rooms"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"SyncType": None}, 5),
        ({"SyncType": 0}, 5),
        ({"SyncType": 5}, 5),
        ({"SyncType": 10}, 5),
        ({"SyncType": 32768}, 5),
        ({"Mode": 0}, 5),
        ({"Mode": 1}, 5),
        ({"Mode": 5}, 5),
        ({"Mode": 32768}, 5),
        ({"ElementName": ""}, 5),
        ({"Mode": 2, "RecoveryPointObjective": 10}, 5),
        ({"RecoveryPointObjective": 4294967295}, 5),
    ],
)
async def test_values_that_are_refused(made, given, code):
    source = await volume(made, "v")
    answer, out = await create(made, source, **({"SyncType": 6} | given))
    assert answer == code
    assert out["ExtendedStatus"]["StatusCode"] == code
    assert out["ExtendedStatus"]["SMMessage"]
    assert len(await made.api.volume_list()) == 1
    assert await made.all("MSFT_SMJob", STORAGE_MANAGEMENT) == []


async def test_the_recovery_point_objective_is_in_seconds_and_only_of_mirrors(made):
    source = await volume(made, "v", data=DATA)
    _, out = await create(made, source, SyncType=6, Mode=3, RecoveryPointObjective=15)
    await made.ended(out["Job"])
    assert (await made.api.replica_list())[0].rpo_seconds == 15
    assert (await create(made, source, SyncType=6, Mode=2, RecoveryPointObjective=0))[0] == 4096
    assert (await create(made, source, SyncType=7, Mode=2, RecoveryPointObjective=15))[0] == 0


async def test_an_existing_target_makes_the_pool_be_ignored(made):
    source, target = await volume(made, "v", data=DATA), await volume(made, "w", size=2 * MIB)
    nowhere = CIMInstanceName("MSFT_SMPool", {"ObjectId": "x"}, namespace=STORAGE_MANAGEMENT)
    given = {"SyncType": 8, "TargetStorageVolume": target, "TargetStoragePool": nowhere}
    code, out = await create(made, source, **given)
    assert code == 4096
    assert (await made.ended(out["Job"]))["ErrorCode"] == 0
    assert await content(made, "w") == DATA
    del given["TargetStorageVolume"]
    assert (await create(made, source, **given))[0] == 8
    (pool,) = await made.all("MSFT_SMPool", STORAGE_MANAGEMENT)
    assert (await create(made, source, SyncType=7, TargetStoragePool=pool.path))[0] == 0


async def test_references_that_lead_nowhere_and_targets_that_cannot_be(made):
    source = await volume(made, "v")
    small = await volume(made, "small", size=MIB // 2)
    taken = await volume(made, "taken")
    gone = source.copy()
    gone.keybindings["ObjectId"] += "0"
    assert (await create(made, source, SyncType=8, TargetStorageVolume=gone))[0] == 8
    assert (await create(made, source, SyncType=8, TargetStorageVolume=small))[0] == 5
    assert (await create(made, source, SyncType=7, TargetStorageVolume=small))[0] == 1
    assert (await create(made, source, SyncType=9, TargetStorageVolume=taken))[0] == 1
    _, out = await create(made, source, SyncType=6, Mode=2, TargetStorageVolume=taken)
    await made.ended(out["Job"])
    code, out = await create(made, source, SyncType=8, TargetStorageVolume=taken)
    assert (code, "replica" in out["ExtendedStatus"]["SMMessage"]) == (4, True)  # in use: there is no code 6
    system_gone = await system(made)
    system_gone.keybindings["ObjectId"] += "x"
    assert (await create(made, source, SyncType=7, TargetStorageSystem=system_gone))[0] == 8
    peers = await made.all(PEER, STORAGE_MANAGEMENT)
    of_volume = next(each.path for each in peers if each["PeerObjectType"] == 4)
    assert (await create(made, source, SyncType=7, TargetStorageSystem=of_volume))[0] == 5


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"TargetElementSupplier": 2}, 0),
        ({"TargetElementSupplier": 4, "ThinProvisioningPolicy": 7}, 0),
        ({"TargetElementSupplier": 1}, 1),
        ({"TargetElementSupplier": 5}, 5),
        ({"TargetElementSupplier": 9}, 5),
        ({"ThinProvisioningPolicy": 3}, 1),
        ({"ThinProvisioningPolicy": 1}, 5),
    ],
)
async def test_the_replication_settings(made, values, code):
    source = await volume(made, "v")
    properties = {name: Uint16(value) for name, value in values.items()}
    settings = CIMInstance("MSFT_SMReplicationSettings", properties=properties)
    assert (await create(made, source, SyncType=7, ReplicationSettings=settings))[0] == code


async def test_a_username_and_password_are_those_of_an_administrator(made):
    source = await volume(made, "v")
    UsersFile(made.users).add("root", "admin", "correct horse")
    UsersFile(made.users).add("guest", "reader", "battery staple")

    async def code(**given):
        return (await create(made, source, SyncType=7, **given))[0]

    assert await code(username="root", password="correct horse") == 0
    assert await code(username="root", password="wrong one") == 40001
    assert await code(username="nobody", password="correct horse") == 40001
    assert await code(username="guest", password="battery staple") == 40001
    assert await code(username="root") == 5
    assert await code(password="correct horse") == 5
    assert len(await made.api.snapshot_list("v")) == 1
    said = str([await made.api.job_list(), await made.api.event_list()])
    assert "correct horse" not in said


async def test_a_password_is_taken_over_https_only(made):
    await volume(made, "v")
    view = View(made.api, User("admin", administrator=True, secure=False), all_classes(), registry())
    given = {"username": "root", "password": "correct horse"}
    with pytest.raises(Refused, match="HTTPS") as refused:
        await check_credentials(view, given)
    assert refused.value.code == 40001


async def test_every_other_code(made, monkeypatch):
    source = await volume(made, "v")
    for error, code in (
        (OutOfSpace("full"), 40002),
        (PermissionDenied("no"), 40001),
        (TimedOut("late"), 3),
        (EngineError("odd"), 2),
    ):

        async def failing(*_, error=error, **__):
            raise error

        monkeypatch.setattr(made.api, "snapshot_create", failing)
        answer, out = await create(made, source, SyncType=7)
        assert (answer, out["ExtendedStatus"]["SMMessage"]) == (code, str(error))


async def test_peers(tmp_path):
    async with (
        opened(tmp_path / "here", peer="127.0.0.1:0") as here,
        opened(tmp_path / "there", peer="127.0.0.1:0") as there,
        behind_the_facade(here) as made,
    ):
        code = (await there.api.peer_invite(name="here")).code
        await made.api.peer_add("there", code, address=there.peer_address)
        await connected(here, "there")
        source = await volume(made, "v", data=DATA)
        peer = await system(made, "there")
        answer, out = await create(made, source, SyncType=6, Mode=3, ElementName="Far", TargetStorageSystem=peer)
        assert (answer, out.get("TargetStorageVolume")) == (4096, None)
        assert (await made.ended(out["Job"]))["ErrorCode"] == 0
        target = await made.get(out["TargetReplicaPeer"])
        assert (target["PeerSystemName"], target["PeerObjectType"], target["Identifier"]) == ("there", 4, "Far")
        (relation,) = await relations(made, source)
        assert (relation["Child"], relation["CopyState"]) == (out["TargetReplicaPeer"], 4)
        assert await relations(made, source, "MSFT_SMStorageSynchronized", "SourceStorageVolume") == []
        assert (await create(made, source, SyncType=8, TargetStorageSystem=peer))[0] == 1
        other = peer.copy()
        other.keybindings["ObjectId"] = other["ObjectId"][:-16] + "0" * 16
        assert (await create(made, source, SyncType=6, TargetStorageSystem=other))[0] == 40003
        for operation, state in ((12, 6), (8, None)):
            given = {"Operation": operation, "TargetStorageVolume": out["TargetReplicaPeer"]}
            assert (await made.call(source, "SetReplicationRelationship", **given))[0] == 0
            assert [each["CopyState"] for each in await relations(made, source)] == ([] if state is None else [state])
        assert (await made.call(source, "SetReplicationRelationship", **given))[0] == 8


async def test_snapshots_clones_and_their_end(made):
    source = await volume(made, "v", data=DATA)
    code, out = await made.call(source, "CreateSnapshot", ElementName="One")
    assert code == 0
    snapshot = out["TargetStorageVolume"]
    assert (await made.get(snapshot))["DisplayName"] == "One"
    code, out = await made.call(source, "CreateClone", ElementName="Two")
    assert code == 4096
    await made.ended(out["Job"])
    assert (await made.call(source, "SetReplicationRelationship", Operation=8))[0] == 5  # which of the two?
    assert (await made.call(source, "SetReplicationRelationship", Operation=None))[0] == 5
    assert (await made.call(source, "SetReplicationRelationship", Operation=24))[0] == 5
    assert (await made.call(source, "Delete"))[0] == 4
    assert (await made.call(snapshot, "Delete"))[0] == 0
    assert (await made.call(source, "SetReplicationRelationship", Operation=8))[0] == 0
    assert await relations(made, source) == []
    assert (await made.call(await of(made, "two"), "Delete"))[0] == 0
    assert (await made.call(source, "Delete"))[0] == 0
    assert await made.api.volume_list() == []
    assert making.CALL_WAIT_S == 10


async def test_every_object_can_be_fetched_and_every_reference_leads_somewhere(made):
    source = await volume(made, "v", data=DATA)
    for sync_type in (6, 7, 8):
        _, out = await create(made, source, SyncType=sync_type)
        if out.get("Job") is not None:
            await made.ended(out["Job"])
    seen = 0
    for each in all_classes().all(STORAGE_MANAGEMENT):
        for instance in await made.all(each.classname, STORAGE_MANAGEMENT):
            seen += 1
            assert (await made.get(instance.path)).path == instance.path
            for value in instance.path.keybindings.values():
                if isinstance(value, CIMInstanceName):
                    await made.get(value)
    assert seen > 20
