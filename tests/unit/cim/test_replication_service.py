"""CreateListReplica and CreateGroupReplica (methods.md sections 3, 4, 6, 8, 9), CreateElementReplica, and the rest."""

from __future__ import annotations

import asyncio

import pytest
from pywbem import CIMDateTime, CIMInstance, CIMProperty, NocaseDict, cimvalue

from cim_facade import context
from cim_facade.methods import making
from cim_facade.methods.requests import element_names
from cim_facade.namespaces import STORAGE
from cim_facade.providers import jobs
from engine.api import each_volume
from engine.errors import EngineError, InUse, OutOfSpace, TimedOut
from tests.support.cim_array import CONFIGURATION, MIB, REPLICATION, array, registry
from tests.support.cim_array import classes as all_classes
from tests.support.engine import HeldMover

DATA = b"\x5a" * 4096
SYNC, GROUP_SYNC = "MSISCSITARGET_StorageSynchronized", "MSISCSITARGET_GroupSynchronized"


@pytest.fixture
async def made(tmp_path):
    async with array(tmp_path / "pool") as made:
        yield made


async def content(made, name):
    found = bytearray(4096)
    await made.engine.pool.volume(name).read(0, memoryview(found))
    return bytes(found)


async def volumes(made, *names, **options):
    return [await made.volume(name, **options) for name in names]


def typed(name, value):
    """A property of setting data in the type of the class."""
    declared = all_classes().get(STORAGE, "CIM_ReplicationSettingData").properties[name]
    return CIMProperty(name, cimvalue(value, declared.type), type=declared.type)


def rsd(**values):
    return CIMInstance("CIM_ReplicationSettingData", properties=[typed(*item) for item in values.items()])


async def make_list(made, **given):
    return await made.call(REPLICATION, "CreateListReplica", **given)


async def make_group(made, **given):
    return await made.call(REPLICATION, "CreateGroupReplica", **given)


# --- declarations -----------------------------------------------------------------------------------------------

LIST = [
    ("ElementNames", "string", True, None),
    ("SyncType", "uint16", False, None),
    ("Mode", "uint16", False, None),
    ("SourceElements", "reference", True, "CIM_LogicalElement"),
    ("SourceAccessPoint", "reference", False, "CIM_ServiceAccessPoint"),
    ("TargetElements", "reference", True, "CIM_LogicalElement"),
    ("TargetAccessPoint", "reference", False, "CIM_ServiceAccessPoint"),
    ("ReplicationSettingData", "string", False, None),
    ("Job", "reference", False, "CIM_ConcreteJob"),
    ("Synchronizations", "reference", True, "CIM_Synchronized"),
    ("TargetSettingGoal", "reference", False, "CIM_SettingData"),
    ("TargetPool", "reference", False, "CIM_ResourcePool"),
    ("WaitForCopyState", "uint16", False, None),
]
GROUP = [
    ("RelationshipName", "string", False, None),
    ("SyncType", "uint16", False, None),
    ("Mode", "uint16", False, None),
    ("SourceGroup", "reference", False, "CIM_ReplicationGroup"),
    ("SourceElement", "reference", False, "CIM_LogicalElement"),
    ("SourceAccessPoint", "reference", False, "CIM_ServiceAccessPoint"),
    ("TargetGroup", "reference", False, "CIM_ReplicationGroup"),
    ("TargetElementCount", "uint64", False, None),
    ("TargetAccessPoint", "reference", False, "CIM_ServiceAccessPoint"),
    ("Consistency", "uint16", False, None),
    ("ReplicationSettingData", "string", False, None),
    ("Job", "reference", False, "CIM_ConcreteJob"),
    ("Synchronization", "reference", False, "CIM_Synchronized"),
    ("TargetSettingGoal", "reference", False, "CIM_SettingData"),
    ("TargetPool", "reference", False, "CIM_ResourcePool"),
    ("WaitForCopyState", "uint16", False, None),
]


@pytest.mark.parametrize(
    ("name", "parameters", "outputs"),
    [
        ("CreateListReplica", LIST, ["TargetElements", "Job", "Synchronizations"]),
        ("CreateGroupReplica", GROUP, ["TargetGroup", "Job", "Synchronization"]),
    ],
)
def test_the_declarations_are_those_of_the_pages(name, parameters, outputs):
    method = all_classes().get(STORAGE, REPLICATION).methods[name]
    found = [(p.name, p.type, p.is_array, p.reference_class) for p in method.parameters.values()]
    assert found == parameters
    assert [p.name for p in method.parameters.values() if "Out" in p.qualifiers] == outputs
    assert method.parameters["ReplicationSettingData"].embedded_object == "instance"
    codes = dict(zip(method.qualifiers["ValueMap"].value, method.qualifiers["Values"].value, strict=True))
    assert (codes["0"], codes["2"], codes["6"]) == ("Completed with No Error", "Unknown", "In Use")
    assert codes["4096"] == "Method Parameters Checked - Job Started"


@pytest.mark.parametrize(
    ("error", "code"), [(EngineError("odd"), 2), (TimedOut("late"), 3), (OutOfSpace("full"), 4), (InUse("it is"), 6)]
)
async def test_what_the_engine_refuses_has_its_code(made, monkeypatch, error, code):
    sources = await volumes(made, "a", "b")
    (target,) = await volumes(made, "x")
    group = await group_of(made, "g", sources)

    async def failing(*_, **__):
        raise error

    for name in ("snapshot_create", "group_snapshot_create", "replica_attach"):
        monkeypatch.setattr(made.api, name, failing)
    assert await make_list(made, SyncType=7, SourceElements=sources) == (code, {})
    assert await make_group(made, SyncType=7, SourceGroup=group, Consistency=3) == (code, {})
    assert await make_group(made, SyncType=7, SourceGroup=group, Consistency=2) == (code, {})
    given = {"SourceElement": sources[0], "TargetElement": target, "CopyType": 3}
    assert await made.call(CONFIGURATION, "AttachReplica", **given) == (code, {})
    assert await made.api.group_relation_list() == []
    assert await made.api.snapshot_list("a") == []


# --- lists ------------------------------------------------------------------------------------------------------


async def test_a_list_of_snapshots_in_the_order_of_its_sources(made):
    sources = await volumes(made, "b", "a", "c")
    code, out = await make_list(made, SyncType=7, SourceElements=sources, ElementNames=["First"], WaitForCopyState=4)
    assert (code, out["Job"]) == (0, None)
    found = [(await made.get(path)) for path in out["Synchronizations"]]
    assert [each["SystemElement"] for each in found] == sources
    assert [each["SyncedElement"] for each in found] == out["TargetElements"]
    assert [info.name for info in await made.api.snapshot_list("b")] == ["first"]
    assert [info.name for info in await made.api.snapshot_list("c")] == ["c-snapshot"]
    assert list((await made.api.element_name_list()).values()) == ["First"]


async def test_a_list_of_clones_is_a_job_unless_it_is_waited_for(made):
    sources = await volumes(made, "a", "b", data=DATA)
    code, out = await make_list(made, SyncType=8, SourceElements=sources, ElementNames=["x"])
    assert code == 4096
    job = await made.ended(out["Job"])
    assert (job["JobState"], job["ErrorCode"]) == (7, 0)
    made_of_job = await made.references(out["Job"], "MSISCSITARGET_AffectedJobElement", "AffectingElement")
    created = [each["AffectedElement"] for each in made_of_job if each["ElementEffects"] == [5]]
    assert created == [await made.path_of("x"), await made.path_of("b-clone")]
    code, out = await make_list(made, SyncType=8, SourceElements=sources, WaitForCopyState=4)
    assert (code, out["Job"]) == (0, None)
    assert len(out["TargetElements"]) == 2
    (sync,) = [
        each
        for each in await made.references(sources[0], SYNC, "SystemElement")
        if each["SyncedElement"] == out["TargetElements"][0]
    ]
    assert (sync["SyncType"], sync["CopyType"], sync["SyncState"], sync["PercentSynced"]) == (8, 4, 14, 100)


async def test_a_list_of_mirrors_onto_existing_targets(made):
    sources, targets = await volumes(made, "a", "b", data=DATA), await volumes(made, "x", "y")
    code, out = await make_list(
        made, SyncType=6, Mode=2, SourceElements=sources, TargetElements=targets, WaitForCopyState=4
    )
    assert (code, out["TargetElements"]) == (0, targets)
    assert [(await made.get(path))["Mode"] for path in out["Synchronizations"]] == [2, 2]
    assert await content(made, "y") == DATA


async def test_a_mirror_that_is_waited_for_until_it_flows_only(made):
    (source,) = await volumes(made, "a", data=DATA)
    code, out = await make_list(made, SyncType=6, SourceElements=[source], WaitForCopyState=3)
    assert (code, out["Job"]) == (0, None)
    assert (await made.get(out["Synchronizations"][0]))["Mode"] == 3  # NULL: asynchronous


async def test_null_in_an_array(made):
    """pywbem cannot send it; a NULL name is the system's to make, a NULL element is none."""
    assert element_names(["First", None], 3) == ["First", None, None]
    handler = registry().method(all_classes(), STORAGE, REPLICATION, "CreateListReplica")
    (source,) = await volumes(made, "a")
    params = NocaseDict(SyncType=7, SourceElements=[source, None])
    assert await handler(made.view(), await made.service(), params) == (5, {})


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"SyncType": None}, 5),
        ({"SyncType": 0}, 5),
        ({"SyncType": 5}, 5),
        ({"SyncType": 9}, 5),
        ({"SyncType": 0x7FFF}, 5),
        ({"SyncType": 0x8000}, 5),
        ({"Mode": 0}, 5),
        ({"Mode": 1}, 5),
        ({"Mode": 4}, 5),
        ({"Mode": 0x8000}, 5),
        ({"SourceElements": None}, 5),
        ({"SourceElements": []}, 5),
        ({"SourceElements": ["a", "a"]}, 5),
        ({"ElementNames": ["1", "2", "3"]}, 5),
        ({"ElementNames": [""]}, 5),
        ({"WaitForCopyState": 0}, 5),
        ({"WaitForCopyState": 2}, 5),
        ({"WaitForCopyState": 8}, 5),
        ({"TargetElements": ["x"]}, 5),
        ({"TargetElements": ["x", "y"], "SyncType": 7}, 1),
        ({"TargetElements": ["x", "a"], "SyncType": 8}, 5),
        ({"TargetElements": ["x", "x"], "SyncType": 8}, 5),
        ({"TargetElements": ["x", "small"], "SyncType": 8}, 5),
        ({"TargetElements": []}, 5),
    ],
)
async def test_lists_that_are_refused_and_nothing_begins(made, given, code):
    paths = dict(zip("abxy", await volumes(made, "a", "b", "x", "y"), strict=True))
    paths["small"] = await made.volume("small", size=MIB // 2)
    asked = {"SyncType": 8, "SourceElements": ["a", "b"]} | given
    for name in ("SourceElements", "TargetElements"):
        if asked.get(name):
            asked[name] = [None if each is None else paths[each] for each in asked[name]]
    assert await make_list(made, **asked) == (code, {})
    assert await made.api.job_list() == []
    assert len(await made.api.volume_list()) == 5


async def test_pool_and_goal_exclude_existing_targets_and_must_be_there(made):
    (source, target) = await volumes(made, "a", "b")
    somewhere = (await made.view().paths()).pool()
    asked = {"SyncType": 8, "SourceElements": [source]}
    assert (await make_list(made, **asked, TargetElements=[target], TargetPool=somewhere))[0] == 5
    gone = somewhere.copy()
    gone.keybindings["InstanceID"] = "nowhere"
    assert (await make_list(made, **asked, TargetPool=gone))[0] == 5


async def test_unequal_lists_go_by_their_setting(made):
    sources, targets = await volumes(made, "a", "b"), await volumes(made, "x", "y", "z")
    asked = {"SyncType": 8, "WaitForCopyState": 4}
    more = {"SourceElements": sources, "TargetElements": targets[:1]}
    fewer = {"SourceElements": sources[:1], "TargetElements": targets}
    for action, given, code in ((2, more, 5), (4, more, 5), (3, more, 0), (2, fewer, 5), (3, fewer, 5), (4, fewer, 0)):
        data = rsd(UnequalListsAction=action)
        answer, out = await make_list(made, **asked, **given, ReplicationSettingData=data)
        assert answer == code, (action, given)
        assert code or out["TargetElements"] == targets[:1]


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({}, 0),
        ({"ElementName": "any", "InstanceID": "any"}, 0),
        ({"DesiredCopyMethodology": 2}, 0),
        ({"DesiredCopyMethodology": 3}, 0),
        ({"DesiredCopyMethodology": 6}, 1),
        ({"DesiredCopyMethodology": 12}, 5),
        ({"Pairing": 3}, 0),
        ({"Pairing": 4}, 1),
        ({"Pairing": 9}, 5),
        ({"TargetElementSupplier": 2}, 0),
        ({"TargetElementSupplier": 1}, 1),
        ({"TargetElementSupplier": 5}, 5),
        ({"ThinProvisioningPolicy": 5}, 0),
        ({"ThinProvisioningPolicy": 3}, 1),
        ({"ThinProvisioningPolicy": 1}, 5),
        ({"OnGroupOrListError": 2}, 0),
        ({"OnGroupOrListError": 4}, 5),
        ({"ConsistentPointInTime": True}, 0),
        ({"CopyPriority": 0}, 0),
        ({"CopyPriority": 4}, 1),
        ({"DesiredRPO": CIMDateTime("00000000000015.000000:000")}, 0),
        ({"DesiredRPO": CIMDateTime("20260101000000.000000+000")}, 5),
        ({"Multihop": 2}, 1),
        ({"FailedCopyStopsHostIO": True}, 1),
        ({"AutoDelete": True}, 1),
        ({"MaximumSkew": 5}, 1),
        ({"DeltaUpdateBlocks": 5}, 1),
        ({"ReadOnly": 3}, 1),
        ({"StorageCompressionPolicy": 7}, 0),
    ],
)
async def test_setting_data_is_honoured_or_refused_never_ignored(made, values, code):
    sources = await volumes(made, "a", "b", data=DATA)
    answer, _ = await make_list(
        made, SyncType=8, SourceElements=sources, WaitForCopyState=4, ReplicationSettingData=rsd(**values)
    )
    assert answer == code
    assert len(await made.api.volume_list()) == (4 if code == 0 else 2)


async def test_a_failed_copy_stops_hosts_where_that_is_asked_for(made):
    """FailedCopyStopsHostIO, of synchronous mirrors; later it cannot be changed by the way."""
    sources = await volumes(made, "a", "b")
    given = {"SourceElements": sources, "SyncType": 6, "WaitForCopyState": 4}
    wanted = rsd(FailedCopyStopsHostIO=True)
    assert (await make_list(made, **given, Mode=3, ReplicationSettingData=wanted))[0] == 1
    code, out = await make_list(made, **given, Mode=2, ReplicationSettingData=wanted)
    assert code == 0
    assert [info.failed_copy_stops_host_io for info in await made.api.replica_list()] == [True, True]
    relation = out["Synchronizations"][0]
    assert (await made.get(relation))["FailedCopyStopsHostIO"] is True
    for settings in (wanted, rsd(DesiredRPO=CIMDateTime("00000000000015.000000:000"))):
        given = {"Operation": 12, "Synchronization": relation, "ReplicationSettingData": settings}
        assert (await made.call(REPLICATION, "ModifyReplicaSynchronization", **given))[0] in (1, 5)
    assert (await made.get(relation))["CopyState"] == 4
    (group, *_) = [(await made.call(REPLICATION, "CreateGroup", Members=sources))[1]["ReplicationGroup"]]
    given = {"SourceGroup": group, "SyncType": 6, "Mode": 2, "Consistency": 3, "ReplicationSettingData": wanted}
    assert (await make_group(made, **given))[0] == 1


async def test_a_list_that_stops_leaves_nothing_and_one_that_continues_what_it_could(made):
    sources = await volumes(made, "a", "b", "c")
    real = made.api.snapshot_create

    async def failing(volume, name, **options):
        if volume == "b":
            raise InUse("not now")
        return await real(volume, name, **options)

    made.api.snapshot_create = failing
    asked = {"SyncType": 7, "SourceElements": sources}
    assert await make_list(made, **asked) == (6, {})
    assert [await made.api.snapshot_list(name) for name in "abc"] == [[], [], []]
    code, out = await make_list(made, **asked, ReplicationSettingData=rsd(OnGroupOrListError=2))
    assert (code, len(out["TargetElements"]), len(out["Synchronizations"])) == (0, 2, 2)
    assert [len(await made.api.snapshot_list(name)) for name in "abc"] == [1, 0, 1]


async def test_the_desired_rpo_is_the_mirrors(made):
    (source,) = await volumes(made, "a")
    data = rsd(DesiredRPO=CIMDateTime("00000000000015.000000:000"))
    asked = {"SyncType": 6, "SourceElements": [source], "ReplicationSettingData": data}
    assert (await make_list(made, **asked, Mode=2))[0] == 5
    code, out = await make_list(made, **asked, Mode=3, WaitForCopyState=4)
    assert code == 0
    sync = await made.get(out["Synchronizations"][0])
    assert sync["RPO"] == CIMDateTime("00000000000015.000000:000")
    assert (await made.api.replica_list())[0].rpo_seconds == 15


# --- waiting and jobs -------------------------------------------------------------------------------------------


@pytest.fixture
async def held(tmp_path):
    """An array whose copies are held after their first strip: (array, release)."""
    movers = []

    def hold(mover):
        movers.append(HeldMover(mover, 1))
        return movers[-1]

    async with array(tmp_path / "pool", hold=hold) as made:
        await made.volume("big", size=64 * MIB)
        for at in range(0, 64, 2):
            await made.engine.pool.volume("big").write(at * MIB, b"y" * MIB)
        yield made, movers[0]
        movers[0].let_go()


async def test_the_call_waits_so_long_and_then_answers_with_the_job(held, monkeypatch):
    made, mover = held
    monkeypatch.setattr(making, "CALL_WAIT_S", 0.05)
    source = await made.path_of("big")
    code, out = await make_list(
        made, SyncType=8, SourceElements=[source], ElementNames=["Big copy"], WaitForCopyState=4
    )
    assert code == 4096
    job = await made.get(out["Job"])
    assert (job["JobState"], job["ErrorCode"], job["OperationalStatus"]) == (4, 0, [2])
    assert 0 <= job["PercentComplete"] < 100
    assert (await made.call(out["Job"], "GetError"))[1]["Error"] is None
    affected = await made.references(out["Job"], "MSISCSITARGET_AffectedJobElement", "AffectingElement")
    assert [each["AffectedElement"] for each in affected] == [source]
    owners = await made.references(out["Job"], "MSISCSITARGET_OwningJobElement", "OwnedElement")
    assert owners[0]["OwningElement"] == await made.service()
    assert len(await made.all("MSISCSITARGET_ConcreteJob")) == 1  # not the one that copies beside it
    mover.let_go()
    ended = await made.ended(out["Job"])
    assert (ended["JobState"], ended["PercentComplete"], ended["OperationalStatus"]) == (7, 100, [2, 17])
    assert ended["TimeBeforeRemoval"] == CIMDateTime("00000000000500.000000:000")
    affected = await made.references(out["Job"], "MSISCSITARGET_AffectedJobElement", "AffectingElement")
    assert affected[0]["AffectedElement"] == await made.path_of("big-copy")
    jobs = await made.references(await made.path_of("big-copy"), "MSISCSITARGET_AffectedJobElement", "AffectedElement")
    assert [each["AffectingElement"] for each in jobs] == [out["Job"]]


async def test_a_jobs_state_is_changed_and_the_copy_follows(held):
    made, mover = held
    _, out = await make_list(made, SyncType=8, SourceElements=[await made.path_of("big")])
    await mover.holding.wait()

    async def change(state, **more):
        return (await made.call(out["Job"], "RequestStateChange", RequestedState=state, **more))[0]

    for state in (None, 0, 1, 7, 40000):
        assert await change(state) == 5
    assert await change(6) == 1
    assert await change(3, TimeoutPeriod=CIMDateTime("00000000000015.000000:000")) == 4098
    assert await change(2) == 4097
    assert await change(3) == 0
    assert (await made.get(out["Job"]))["JobState"] == 5
    assert await change(3) == 4097
    assert await change(2) == 0
    assert (await made.get(out["Job"]))["JobState"] == 4
    assert await change(4) == 0
    ended = await made.ended(out["Job"])
    assert (ended["JobState"], ended["ErrorCode"], ended["OperationalStatus"]) == (8, 4, [6, 17])
    assert [info.name for info in await made.api.volume_list()] == ["big"]
    code, out_of_error = await made.call(out["Job"], "GetError")
    assert (code, out_of_error["Error"]["MessageID"]) == (0, "JobCancelled")
    assert len((await made.call(out["Job"], "GetErrors"))[1]["Errors"]) == 1
    assert (await made.call(out["Job"], "KillJob", DeleteOnKill=True))[0] == 0
    assert await made.all("MSISCSITARGET_ConcreteJob") == []


async def test_a_job_survives_the_daemon_and_goes_five_minutes_after_its_end(tmp_path, monkeypatch):
    movers = []

    def hold(mover):
        movers.append(HeldMover(mover, 1))
        return movers[-1]

    async with array(tmp_path / "pool", hold=hold) as made:
        await made.volume("big", size=64 * MIB)
        for at in range(0, 64, 2):
            await made.engine.pool.volume("big").write(at * MIB, b"y" * MIB)
        _, out = await make_list(made, SyncType=8, SourceElements=[await made.path_of("big")])
        await movers[0].holding.wait()
    async with array(tmp_path / "pool") as made:
        ended = await made.ended(out["Job"])
        assert (ended["JobState"], ended["ErrorCode"]) == (7, 0)
        assert len(await made.all(SYNC)) == 1
    async with array(tmp_path / "pool") as made:
        assert (await made.get(out["Job"]))["JobState"] == 7
        now = jobs.time.time()
        monkeypatch.setattr(jobs.time, "time", lambda: now + 301)
        assert await made.all("MSISCSITARGET_ConcreteJob") == []


# --- groups -----------------------------------------------------------------------------------------------------


async def group_of(made, name, members):
    code, out = await made.call(REPLICATION, "CreateGroup", GroupName=name, Members=members)
    assert code == 0
    return out["ReplicationGroup"]


async def test_a_group_of_snapshots_holds_one_instant(made):
    members = await volumes(made, "b", "a")
    source = await group_of(made, "Data Base", members)
    code, out = await make_group(made, RelationshipName="Night", SyncType=7, SourceGroup=source, Consistency=3)
    assert (code, out["Job"]) == (0, None)
    relation = await made.get(out["Synchronization"])
    assert (relation["SystemElement"], relation["SyncedElement"]) == (source, out["TargetGroup"])
    assert (relation["RelationshipName"], relation["SyncType"], relation["CopyState"]) == ("Night", 7, 4)
    assert (relation["ConsistencyEnabled"], relation["ConsistencyType"], relation["ConsistencyState"]) == (True, 2, 3)
    targets = await made.references(out["TargetGroup"], "MSISCSITARGET_OrderedMemberOfCollection", "Collection")
    syncs = [await made.references(each["Member"], SYNC, "SyncedElement") for each in targets]
    assert [found["SystemElement"] for (found,) in syncs] == members
    assert [each["AssignedSequence"] for each in targets] == [1, 2]
    assert len(await made.api.group_snapshot_list("data-base")) == 1
    assert (await made.get(source))["ElementName"] == "Data Base"


async def test_names_of_targets_are_numbered_from_one(made):
    (source,) = await volumes(made, "a", data=DATA)
    code, out = await make_group(
        made, RelationshipName="Copy", SyncType=8, SourceElement=source, TargetElementCount=3, WaitForCopyState=4
    )
    assert (code, out["Job"]) == (0, None)
    names = await made.api.element_name_list()
    found = [info for info in await made.api.volume_list() if info.name != "a"]
    assert [names[info.volume_id] for info in found] == ["Copy_1", "Copy_2", "Copy_3"]
    relation = await made.get(out["Synchronization"])
    assert relation["SystemElement"] == source
    members = await made.references(out["TargetGroup"], "MSISCSITARGET_OrderedMemberOfCollection", "Collection")
    assert [each["Member"] for each in members] == [await made.path_of(f"copy-{n}") for n in (1, 2, 3)]
    snapshots, out = await make_group(made, SyncType=7, SourceElement=source, TargetElementCount=2)
    assert snapshots == 0
    members = await made.references(out["TargetGroup"], "MSISCSITARGET_OrderedMemberOfCollection", "Collection")
    assert len(members) == 2


@pytest.mark.parametrize(("values", "consistent"), [(None, True), ({}, False), ({"ConsistentPointInTime": True}, True)])
async def test_the_settings_of_a_group_override_its_default(made, values, consistent):
    group = await group_of(made, "g", await volumes(made, "a", "b"))
    settings = None if values is None else rsd(**values)
    code, out = await make_group(made, SyncType=7, SourceGroup=group, ReplicationSettingData=settings)
    assert (code, (await made.get(out["Synchronization"]))["ConsistencyEnabled"]) == (0, consistent)


async def test_pool_and_goal_exclude_an_existing_group(made):
    source = await group_of(made, "s", await volumes(made, "a"))
    target = await group_of(made, "t", await volumes(made, "x"))
    (pool,) = [each.path for each in await made.all("MSISCSITARGET_StoragePool") if not each["Primordial"]]
    (goal,) = [each.path for each in await made.all("MSISCSITARGET_StorageSetting")]
    for more in ({"TargetPool": pool}, {"TargetSettingGoal": goal}):
        given = {"SyncType": 8, "SourceGroup": source, **more}
        assert (await make_group(made, TargetGroup=target, **given))[0] == 5
        code, out = await make_group(made, WaitForCopyState=4, **given)
        assert (code, out["Job"]) == (0, None)


@pytest.mark.parametrize("sync_type", [6, 8])
async def test_a_group_to_an_existing_group(made, sync_type):
    source = await group_of(made, "s", await volumes(made, "a", "b", data=DATA))
    target = await group_of(made, "t", await volumes(made, "x", "y"))
    code, out = await make_group(
        made, SyncType=sync_type, SourceGroup=source, TargetGroup=target, WaitForCopyState=4, Consistency=2
    )
    assert (code, out["TargetGroup"]) == (0, target)
    assert await content(made, "y") == DATA
    relation = await made.get(out["Synchronization"])
    assert (relation["SyncType"], relation["CopyState"], relation["ConsistencyEnabled"]) == (sync_type, 4, False)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({}, 5),
        ({"SourceGroup": "s", "SourceElement": "a"}, 5),
        ({"SourceGroup": "s", "TargetGroup": "t", "TargetElementCount": 2}, 5),
        ({"SourceGroup": "s", "TargetElementCount": 2}, 5),
        ({"SourceElement": "a", "TargetElementCount": 0}, 5),
        ({"SourceElement": "a", "TargetElementCount": 1 << 40}, 5),
        ({"SourceGroup": "s", "Consistency": 0}, 5),
        ({"SourceGroup": "s", "Consistency": 4}, 5),
        ({"SourceGroup": "s", "Consistency": 0x8000}, 5),
        ({"SourceGroup": "s", "SyncType": 9}, 5),
        ({"SourceGroup": "s", "Mode": 4}, 5),
        ({"SourceGroup": "s", "RelationshipName": ""}, 5),
        ({"SourceGroup": "s", "TargetGroup": "one", "SyncType": 8}, 5),
        ({"SourceGroup": "empty"}, 5),
        ({"SourceGroup": "gone"}, 5),
        ({"SourceGroup": "s", "TargetGroup": "t", "SyncType": 7}, 1),
        ({"SourceGroup": "s", "TargetGroup": "t", "SyncType": 6, "Consistency": 3}, 1),
        ({"SourceGroup": "s", "TargetGroup": "t", "SyncType": 8, "Consistency": 3}, 1),
        ({"SourceGroup": "s", "WaitForCopyState": 8}, 5),
    ],
)
async def test_groups_that_are_refused_and_nothing_begins(made, given, code):
    paths = dict(zip("abxy", await volumes(made, "a", "b", "x", "y"), strict=True))
    paths["s"] = await group_of(made, "s", [paths["a"], paths["b"]])
    paths["t"] = await group_of(made, "t", [paths["x"], paths["y"]])
    paths["one"] = await group_of(made, "one", [paths["y"]])
    paths["empty"] = await group_of(made, "empty", None)
    paths["gone"] = paths["s"].copy()
    paths["gone"].keybindings["InstanceID"] += "x"
    asked = {"SyncType": 7} | given
    for name in ("SourceGroup", "TargetGroup", "SourceElement"):
        if name in asked:
            asked[name] = paths[asked[name]]
    assert await make_group(made, **asked) == (code, {})
    assert await made.api.job_list() == []
    assert await made.api.group_relation_list() == []


async def test_mirrors_whose_targets_are_one_instant(made):
    source = await group_of(made, "s", await volumes(made, "a", "b", data=DATA))
    given = {"SyncType": 6, "Mode": 2, "SourceGroup": source, "Consistency": 3, "RelationshipName": "Twin"}
    code, out = await make_group(made, **given, WaitForCopyState=4)
    assert (code, out["Job"]) == (0, None)
    relation = await made.get(out["Synchronization"])
    assert (relation["SyncType"], relation["CopyState"], relation["ConsistencyEnabled"]) == (6, 4, True)
    members = await made.references(out["TargetGroup"], "MSISCSITARGET_OrderedMemberOfCollection", "Collection")
    assert [(await made.get(each["Member"]))["ElementName"] for each in members] == ["Twin_1", "Twin_2"]
    (mirrored,) = await made.api.group_replica_list()
    assert mirrored.name == "twin"

    async def modify(path, operation, **more):
        given = {"Operation": operation, "Synchronization": path} | more
        return (await made.call(REPLICATION, "ModifyReplicaSynchronization", **given))[0]

    (member,) = await made.references(await made.path_of("a"), SYNC, "SystemElement")
    assert await modify(member.path, 12) == 1  # members have one state
    for operation, state, more in ((12, 6, {}), (14, 4, {"WaitForCopyState": 4}), (22, 9, {})):
        assert await modify(relation.path, operation, **more) == 0
        assert (await made.get(relation.path))["CopyState"] == state
    assert await modify(relation.path, 10) == 1
    code, out = await make_group(made, **given | {"RelationshipName": "Other"}, WaitForCopyState=4)
    both = {"Operation": 14, "Synchronization": [relation.path, out["Synchronization"]], "WaitForCopyState": 4}
    assert (await made.call(REPLICATION, "ModifyListSynchronization", **both))[0] == 1  # one Job is not that of both
    assert (await made.call(REPLICATION, "ModifyListSynchronization", **both | {"Operation": 8}))[0] == 5
    del both["WaitForCopyState"]
    assert (await made.call(REPLICATION, "ModifyListSynchronization", **both | {"Operation": 8}))[0] == 0
    assert await made.all(SYNC) == []
    assert len(await made.api.volume_list()) == 6


async def test_a_group_from_elements(made):
    members = await volumes(made, "a", "b")
    given = {"SyncType": 7, "SourceElements": members, "SourceGroupName": "Both"}
    code, out = await made.call(REPLICATION, "CreateGroupReplicaFromElements", **given, Consistency=3)
    assert (code, out["SourceGroupName"]) == (0, "Both")
    assert (await made.api.group_show("both")).members == ["a", "b"]
    code, _ = await made.call(REPLICATION, "CreateGroupReplicaFromElements", **given, Consistency=7)
    assert code == 5
    assert [info.name for info in await made.api.group_list()] == ["both"]  # nothing half made


async def test_groups_are_made_changed_and_deleted(made):
    a, b = await volumes(made, "a", "b")
    group = await group_of(made, None, None)
    assert (await made.get(group))["ElementName"] == "group"

    async def call(method, **given):
        return (await made.call(REPLICATION, method, ReplicationGroup=group, **given))[0]

    assert await call("AddMembers", Members=[b, a]) == 0
    assert await call("AddMembers", Members=[a]) == 0  # being in it already is no error
    assert await call("AddMembers", Members=None) == 5
    hosted = await made.references(group, "MSISCSITARGET_HostedCollection", "Dependent")
    assert len(hosted) == 1
    assert await call("DeleteGroup") == 6
    await make_group(made, SyncType=7, SourceGroup=group)
    assert await call("RemoveMembers", Members=[a]) == 6
    assert await call("DeleteGroup", RemoveElements=True) == 7
    (relation,) = await made.all(GROUP_SYNC)
    code, _ = await made.call(REPLICATION, "ModifyReplicaSynchronization", Operation=19, Synchronization=relation.path)
    assert code == 0
    assert await made.all(GROUP_SYNC) == []
    assert await made.all(SYNC) == []
    assert await call("RemoveMembers", Members=[a]) == 0
    assert await call("RemoveMembers", Members=[a]) == 8
    assert await call("DeleteGroup", RemoveElements=True) == 0
    assert await call("AddMembers", Members=[a]) == 7
    assert await call("RemoveMembers", Members=[a]) == 7
    assert await call("DeleteGroup") == 5
    assert len(await made.api.volume_list()) == 2
    for more in ({"Persistent": False}, {"DeleteOnEmptyElement": True}, {"DeleteOnUnassociated": True}):
        assert (await made.call(REPLICATION, "CreateGroup", **more))[0] == 1


# --- one element, and afterwards --------------------------------------------------------------------------------


async def test_the_form_that_clients_use(made):
    (source,) = await volumes(made, "a", data=DATA)
    given = {"SyncType": 7, "SourceElement": source, "ElementName": "snap1", "WaitForCopyState": 4}
    code, out = await made.call(REPLICATION, "CreateElementReplica", **given)
    assert (code, out["Job"]) == (0, None)
    sync = await made.get(out["Synchronization"])
    assert (sync["SyncedElement"], sync["CopyState"]) == (out["TargetElement"], 4)

    async def modify(operation, path, **more):
        given = {"Operation": operation, "Synchronization": path} | more
        return await made.call(REPLICATION, "ModifyReplicaSynchronization", **given)

    await made.engine.pool.volume("a").write(0, b"z" * 4096)
    assert (await modify(15, sync.path))[0] == 0
    assert await content(made, "a") == DATA
    assert (await modify(8, sync.path))[0] == 1
    assert (await modify(19, sync.path))[0] == 0
    assert (await modify(19, sync.path))[0] == 5

    code, out = await made.call(
        REPLICATION, "CreateElementReplica", SyncType=8, SourceElement=source, WaitForCopyState=4
    )
    assert code == 0
    clone = out["Synchronization"]
    await made.engine.pool.volume("a").write(0, b"n" * 4096)
    code, _ = await modify(14, clone, WaitForCopyState=4)
    assert code == 0
    assert await content(made, "a-clone") == b"n" * 4096
    await made.engine.pool.volume("a").write(0, b"o" * 4096)
    code, _ = await modify(15, clone, WaitForCopyState=4)
    assert code == 0
    assert await content(made, "a") == b"n" * 4096
    for number, code in ((None, 5), (1, 5), (28, 5), (2, 1), (10, 1), (12, 1), (19, 1), (26, 1)):
        assert (await modify(number, clone))[0] == code
    assert (await modify(8, clone, WaitForCopyState=4))[0] == 5
    assert (await modify(8, clone, Force=True))[0] == 0
    assert await made.all(SYNC) == [
        each for each in await made.all(SYNC) if each["SyncType"] == 7
    ]  # only what the restore has kept


async def test_mirrors_are_split_resynchronized_suspended_and_detached(made):
    (source,) = await volumes(made, "a", data=DATA)
    given = {"SyncType": 6, "Mode": 2, "SourceElement": source, "WaitForCopyState": 4}
    code, out = await made.call(REPLICATION, "CreateElementReplica", **given)
    assert code == 0
    sync = out["Synchronization"]

    async def modify(operation, **more):
        given = {"Operation": operation, "Synchronization": sync} | more
        return (await made.call(REPLICATION, "ModifyReplicaSynchronization", **given))[0]

    async def states():
        found = await made.get(sync)
        return found["CopyState"], found["SyncState"], found["SyncMaintained"]

    assert await states() == (4, 6, True)
    assert await modify(21) == 0
    assert await states() == (6, 13, False)
    assert await modify(14, WaitForCopyState=3) == 5
    assert await modify(14, WaitForCopyState=4) == 0
    assert await states() == (4, 6, True)
    assert await modify(22, WaitForCopyState=9) == 0
    assert await states() == (9, 9, False)
    assert await modify(16, WaitForCopyState=4) == 0
    assert await modify(12) == 0
    assert await modify(12) == 4  # what the state does not allow
    assert await modify(9) == 0
    assert await made.all(SYNC) == []
    assert len(await made.api.volume_list()) == 2


async def test_a_list_of_synchronizations_is_of_one_kind(made):
    sources = await volumes(made, "a", "b", data=DATA)
    _, mirrors = await make_list(made, SyncType=6, Mode=2, SourceElements=sources, WaitForCopyState=4)
    _, shots = await make_list(made, SyncType=7, SourceElements=sources)

    async def modify(operation, paths, **more):
        given = {"Operation": operation, "Synchronization": paths} | more
        return await made.call(REPLICATION, "ModifyListSynchronization", **given)

    both = mirrors["Synchronizations"]
    assert (await modify(12, [both[0], shots["Synchronizations"][0]]))[0] == 5
    assert (await modify(12, []))[0] == 5
    assert (await modify(12, [both[0], both[0]]))[0] == 5
    assert (await modify(3, both))[0] == 5
    assert (await modify(12, both))[0] == 0
    code, out = await modify(14, both)
    assert code == 4096
    assert (await made.ended(out["Job"]))["ErrorCode"] == 0
    affected = await made.references(out["Job"], "MSISCSITARGET_AffectedJobElement", "AffectingElement")
    assert [each["AffectedElement"] for each in affected] == mirrors["TargetElements"]
    assert (await modify(8, both))[0] == 0
    assert (await modify(19, shots["Synchronizations"]))[0] == 0
    assert await made.all(SYNC) == []


async def test_relationships_are_found_by_their_filters(made):
    sources = await volumes(made, "a", "b", data=DATA)
    await make_list(made, SyncType=6, Mode=2, SourceElements=sources[:1], WaitForCopyState=4)
    await make_list(made, SyncType=7, SourceElements=sources)
    await make_group(made, SyncType=7, SourceElement=sources[0], TargetElementCount=2)

    async def count(**given):
        code, out = await made.call(REPLICATION, "GetReplicationRelationships", **given)
        code_too, embedded = await made.call(REPLICATION, "GetReplicationRelationshipInstances", **given)
        assert code == code_too
        if code:
            return code
        assert len(out["Synchronizations"]) == len(embedded["Synchronizations"])
        return [len(out["Synchronizations"])]

    assert await count() == [6]
    assert await count(Type=2) == [5]
    assert await count(Type=3) == [1]
    assert await count(SyncType=6) == [1]
    assert await count(Mode=2) == [1]
    assert await count(Locality=3) == [0]
    assert await count(CopyState=4, Locality=2) == [6]
    assert await count(CopyState=6) == [0]
    for wrong in ({"Type": 4}, {"SyncType": 5}, {"Mode": 7}, {"Locality": 1}, {"CopyState": 99}):
        assert await count(**wrong) == 5


async def test_what_could_be_a_target(made):
    source = await made.volume("a", size=MIB)
    await made.volume("small", size=MIB // 2)
    large = await made.volume("large", size=2 * MIB)
    given = {"SourceElement": source, "SyncType": 8}
    code, out = await made.call(REPLICATION, "GetAvailableTargetElements", **given)
    assert (code, out["Candidates"]) == (0, [large])
    code, out = await made.call(REPLICATION, "GetAvailableTargetElements", SourceElement=source, SyncType=7)
    assert (code, out["Candidates"]) == (0, [])
    assert (await made.call(REPLICATION, "GetAvailableTargetElements", SourceElement=source))[0] == 5
    assert await made.call(REPLICATION, "GetPeerSystems") == (0, {"Systems": []})
    assert await made.call(REPLICATION, "GetServiceAccessPoints") == (0, {"ServiceAccessPoints": []})
    assert (await made.call(REPLICATION, "CreateSynchronizationAspect", SyncType=7))[0] == 1


# --- what others do meanwhile -----------------------------------------------------------------------------------


async def test_a_relation_of_groups_whose_pairs_were_detached_one_by_one_is_none(made):
    (source,) = await volumes(made, "a", data=DATA)
    _, out = await make_group(made, SyncType=8, SourceElement=source, TargetElementCount=2, WaitForCopyState=4)
    assert out["Synchronization"] is not None
    for relation in await made.all(SYNC):
        given = {"Operation": 8, "Synchronization": relation.path}
        assert (await made.call(REPLICATION, "ModifyReplicaSynchronization", **given))[0] == 0
    assert await made.all(GROUP_SYNC) == []
    code, out = await made.call(REPLICATION, "GetReplicationRelationships")
    assert (code, out["Synchronizations"] or []) == (0, [])


@pytest.mark.parametrize("sync_type", [6, 8])
async def test_a_relation_whose_groups_are_gone_refers_to_none_of_them(made, sync_type):
    """The command line knows nothing of relations."""
    a, b = await volumes(made, "a", "b", data=DATA)
    group = await group_of(made, "g", [a, b])
    await make_group(made, SyncType=sync_type, SourceGroup=group, RelationshipName="copies", WaitForCopyState=4)
    await made.api.group_delete("copies")
    (relation,) = await made.all(GROUP_SYNC)
    for end in ("SystemElement", "SyncedElement"):
        assert await made.get(relation[end])
    members = await made.references(relation["SyncedElement"], "MSISCSITARGET_OrderedMemberOfCollection", "Collection")
    assert [(await made.get(each["Member"]))["ElementName"] for each in members] == ["copies_1", "copies_2"]
    await made.api.group_delete("g")
    assert await made.all(GROUP_SYNC) == []
    assert len(await made.all(SYNC)) == 2


@pytest.mark.parametrize("name", ["order-7", "order-" + "0123456789abcdef" * 2])
async def test_a_group_may_be_called_anything(made, name):
    (source,) = await volumes(made, "a")
    group = await group_of(made, name, [source])
    assert (await made.get(group))["ElementName"] == name


async def test_only_the_pool_that_volumes_are_made_of_is_a_target_pool(made):
    (source,) = await volumes(made, "a")
    for pool in await made.all("MSISCSITARGET_StoragePool"):
        code, _ = await made.call(
            REPLICATION, "CreateElementReplica", SyncType=7, SourceElement=source, TargetPool=pool.path
        )
        assert code == (5 if pool["Primordial"] else 0)


async def test_the_neighbours_of_one_volume_cost_no_look_at_all_of_them(made, monkeypatch):
    """However many mirrors there are."""
    looks = []

    async def look(api):
        looks.append(api)
        return await each_volume(api)

    (source,) = await volumes(made, "a")
    for number in range(context.FEW // 2 + 1):
        await volumes(made, f"s{number}", f"t{number}")
        await made.api.replica_attach(f"s{number}", f"t{number}")
    monkeypatch.setattr(context, "each_volume", look)
    code, _ = await made.call(REPLICATION, "CreateElementReplica", SyncType=7, SourceElement=source)
    for path in (source, await made.path_of("t3")):
        found = await asyncio.to_thread(made.client.References, path, ResultClass="CIM_StorageSynchronized")
        assert len(found) == 1
    assert (code, looks) == (0, [])
