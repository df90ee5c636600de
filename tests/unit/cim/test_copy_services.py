"""CIM_StorageConfigurationService.CreateReplica and AttachReplica (methods.md sections 1 and 5), and their company."""

from __future__ import annotations

import pytest
from pywbem import CIMInstanceName

from cim_facade.namespaces import STORAGE
from engine.errors import EngineError, OutOfSpace, TimedOut
from tests.support.cim_array import CONFIGURATION, MIB, array
from tests.support.cim_array import classes as all_classes

DATA = b"\xa5" * 4096


@pytest.fixture
async def made(tmp_path):
    async with array(tmp_path / "pool") as made:
        yield made


async def content(made, name):
    found = bytearray(4096)
    await made.engine.pool.volume(name).read(0, memoryview(found))
    return bytes(found)


def test_the_declarations_are_those_of_the_pages():
    service = all_classes().get(STORAGE, CONFIGURATION)
    create = service.methods["CreateReplica"]
    assert create.return_type == "uint32"
    assert [(p.name, p.type, p.reference_class) for p in create.parameters.values()] == [
        ("ElementName", "string", None),
        ("Job", "reference", "CIM_ConcreteJob"),
        ("SourceElement", "reference", "CIM_LogicalElement"),
        ("TargetElement", "reference", "CIM_LogicalElement"),
        ("TargetSettingGoal", "reference", "CIM_StorageSetting"),
        ("TargetPool", "reference", "CIM_StoragePool"),
        ("CopyType", "uint16", None),
    ]
    assert [p.name for p in create.parameters.values() if "Out" in p.qualifiers] == ["Job", "TargetElement"]
    attach = service.methods["AttachReplica"]
    assert [(p.name, p.type, p.reference_class) for p in attach.parameters.values()] == [
        ("Job", "reference", "CIM_ConcreteJob"),
        ("SourceElement", "reference", "CIM_ManagedElement"),
        ("TargetElement", "reference", "CIM_ManagedElement"),
        ("CopyType", "uint16", None),
    ]
    codes = attach.qualifiers["Values"].value
    assert codes[2] == "Unspecified Error"
    assert create.qualifiers["Values"].value[2] == "Unknown"
    for method in (create, attach):
        values = dict(zip(method.qualifiers["ValueMap"].value, method.qualifiers["Values"].value, strict=True))
        assert values["0"] == "Job Completed with No Error"
        assert values["6"] == "In Use"
        assert values["4096"] == "Method Parameters Checked - Job Started"
        assert "4097" not in values


@pytest.mark.parametrize("copy_type", [0, 1, 6, 7, 32767, 32768, 65535, None])
async def test_copy_types_that_are_none(made, copy_type):
    source = await made.volume("v")
    assert await made.call(CONFIGURATION, "CreateReplica", SourceElement=source, CopyType=copy_type) == (5, {})
    assert len(await made.api.volume_list()) == 1


async def test_unsync_assoc_is_a_snapshot_at_once_with_its_name_and_its_association(made):
    source = await made.volume("v", data=DATA)
    code, out = await made.call(
        CONFIGURATION, "CreateReplica", ElementName="Monday, 7 pm", SourceElement=source, CopyType=4
    )
    assert (code, out["Job"]) == (0, None)
    (sync,) = await made.references(source, "MSISCSITARGET_StorageSynchronized", "SystemElement")
    assert sync["SyncedElement"] == out["TargetElement"]
    assert (sync["CopyType"], sync["SyncState"]) == (4, 11)
    assert (sync["SyncType"], sync["Mode"], sync["CopyState"], sync["PercentSynced"]) == (7, None, 4, 100)
    assert (sync["ReplicaType"], sync["CopyMethodology"], sync["SyncMaintained"]) == (4, 11, False)
    assert sync["WhenSynced"] is not None
    assert "Monday, 7 pm" in (await made.api.element_name_list()).values()
    assert await made.all("MSISCSITARGET_ConcreteJob") == []  # 0: there is no job instance
    assert (await made.get(sync.path)).path == sync.path


async def test_unsync_unassoc_is_a_full_copy_without_an_association(made):
    source = await made.volume("v", data=DATA)
    code, out = await made.call(CONFIGURATION, "CreateReplica", ElementName="Copy", SourceElement=source, CopyType=5)
    assert code == 4096
    job = await made.ended(out["Job"])
    assert (job["JobState"], job["ErrorCode"], job["PercentComplete"]) == (7, 0, 100)
    assert job["OperationalStatus"] == [2, 17]
    assert await content(made, "copy") == DATA
    assert await made.references(source, "MSISCSITARGET_StorageSynchronized", "SystemElement") == []
    targets = await made.references(out["Job"], "MSISCSITARGET_AffectedJobElement", "AffectingElement")
    assert targets[0]["AffectedElement"] == await made.path_of("copy")
    assert targets[0]["ElementEffects"] == [5]
    assert [each["AffectedElement"] for each in targets[1:]] == [source]


@pytest.mark.parametrize(("copy_type", "mode"), [(2, 3), (3, 2)])
async def test_sync_and_async_are_mirrors(made, copy_type, mode):
    source = await made.volume("v", data=DATA)
    code, out = await made.call(
        CONFIGURATION, "CreateReplica", ElementName="m", SourceElement=source, CopyType=copy_type
    )
    assert code == 4096
    assert out["TargetElement"] == await made.path_of("m")
    assert (await made.ended(out["Job"]))["ErrorCode"] == 0
    (sync,) = await made.references(source, "MSISCSITARGET_StorageSynchronized", "SystemElement")
    assert (sync["CopyType"], sync["SyncState"]) == (copy_type, 6)
    assert (sync["SyncType"], sync["Mode"], sync["CopyState"]) == (6, mode, 4)
    assert sync["SyncMaintained"]
    (back,) = await made.references(out["TargetElement"], "MSISCSITARGET_StorageSynchronized", "SyncedElement")
    assert back.path == sync.path


async def test_without_a_name_the_system_makes_one(made):
    source = await made.volume("v")
    for _ in range(2):
        assert (await made.call(CONFIGURATION, "CreateReplica", SourceElement=source, CopyType=4))[0] == 0
    assert [info.name for info in await made.api.snapshot_list("v")] == ["v-snapshot", "v-snapshot-2"]


@pytest.mark.parametrize("name", ["", "  ", "x" * 257, "a\nb", "a\u200b"])
async def test_names_that_nothing_can_have(made, name):
    source = await made.volume("v")
    given = {"ElementName": name, "SourceElement": source, "CopyType": 4}
    assert await made.call(CONFIGURATION, "CreateReplica", **given) == (5, {})
    assert await made.api.snapshot_list("v") == []


async def test_references_that_lead_nowhere_are_invalid_parameters(made):
    source = await made.volume("v")
    gone = source.copy()
    gone.keybindings["DeviceID"] = "0" * 8
    odd = CIMInstanceName("MSISCSITARGET_StorageVolume", {"DeviceID": "1"}, namespace=STORAGE)
    for path in (None, gone, await made.service(), odd):
        assert await made.call(CONFIGURATION, "CreateReplica", SourceElement=path, CopyType=4) == (5, {})
        assert await made.call(
            CONFIGURATION, "AttachReplica", SourceElement=source, TargetElement=path, CopyType=5
        ) == (5, {})
    nowhere = CIMInstanceName("MSISCSITARGET_StoragePool", {"InstanceID": "x"}, namespace=STORAGE)
    given = {"SourceElement": source, "CopyType": 4, "TargetPool": nowhere}
    assert await made.call(CONFIGURATION, "CreateReplica", **given) == (5, {})


@pytest.mark.parametrize(
    ("copy_type", "sync_type", "related"), [(2, 6, True), (3, 6, True), (4, 8, True), (5, None, False)]
)
async def test_attach_takes_an_existing_element(made, copy_type, sync_type, related):
    source = await made.volume("v", data=DATA)
    target = await made.volume("w", size=2 * MIB)
    code, out = await made.call(
        CONFIGURATION, "AttachReplica", SourceElement=source, TargetElement=target, CopyType=copy_type
    )
    assert code == 4096
    job = await made.ended(out["Job"])
    assert (job["JobState"], job["ErrorDescription"]) == (7, "")
    assert len(await made.api.volume_list()) == 2  # no element is created
    assert (await made.api.volume_show("w")).size_bytes == MIB  # exported at the source's size
    found = await made.references(source, "MSISCSITARGET_StorageSynchronized", "SystemElement")
    assert [(each["SyncType"], each["CopyType"]) for each in found] == ([(sync_type, copy_type)] if related else [])
    if sync_type != 6:
        assert await content(made, "w") == DATA


async def test_attach_refuses_what_cannot_be_a_target(made):
    source = await made.volume("v")
    small = await made.volume("small", size=MIB // 2)
    other = await made.volume("other")

    async def attach(target, copy_type=3):
        return (
            await made.call(
                CONFIGURATION, "AttachReplica", SourceElement=source, TargetElement=target, CopyType=copy_type
            )
        )[0]

    assert await attach(small) == 5
    assert await attach(source) == 5
    assert await attach(other, 9) == 5
    assert await attach(other) == 4096
    assert await attach(other) == 6  # it is a replica already
    _, out = await made.call(CONFIGURATION, "CreateReplica", SourceElement=source, CopyType=4)
    assert await attach(out["TargetElement"]) == 1  # a snapshot is no volume of its own


async def test_a_target_that_somebody_is_logged_in_to_is_in_use(made):
    source = await made.volume("v", data=DATA)
    shown = await made.api.volume_create("shown", 2 * MIB, expose=True)
    target = await made.path_of("shown")
    asked = {"SourceElement": source, "TargetElement": target, "CopyType": 5}
    made.engine.exports.log_in(shown.target, "iqn.2026-11.org.example:host")
    assert await made.call(CONFIGURATION, "AttachReplica", **asked) == (6, {})
    made.engine.exports.logged_in.clear()
    assert await made.call(CONFIGURATION, "AttachReplica", **(asked | {"CopyType": 2})) == (6, {})
    assert (await made.api.volume_show("shown")).size_bytes == 2 * MIB  # nothing has begun
    code, out = await made.call(CONFIGURATION, "AttachReplica", **asked)
    assert code == 4096
    assert (await made.ended(out["Job"]))["ErrorDescription"] == ""
    assert await content(made, "shown") == DATA
    after = await made.api.volume_show("shown")
    assert (after.size_bytes, after.target) == (MIB, shown.target)


async def test_what_the_engine_refuses_has_its_code(made, monkeypatch):
    source = await made.volume("v")
    for error, code in ((OutOfSpace("full"), 4), (TimedOut("late"), 3), (EngineError("odd"), 2)):

        async def failing(*_, error=error, **__):
            raise error

        monkeypatch.setattr(made.api, "snapshot_create", failing)
        assert await made.call(CONFIGURATION, "CreateReplica", SourceElement=source, CopyType=4) == (code, {})
        assert await made.all("MSISCSITARGET_ConcreteJob") == []
    assert await made.api.snapshot_list("v") == []


async def test_the_older_operations(made):
    source = await made.volume("v", data=DATA)
    target = await made.volume("w")
    _, out = await made.call(CONFIGURATION, "AttachReplica", SourceElement=source, TargetElement=target, CopyType=3)
    await made.ended(out["Job"])
    (sync,) = await made.references(source, "MSISCSITARGET_StorageSynchronized", "SystemElement")

    async def modify(operation, path=sync.path):
        return await made.call(CONFIGURATION, "ModifySynchronization", Operation=operation, Synchronization=path)

    async def states():
        found = await made.get(sync.path)
        return found["CopyState"], found["SyncState"]

    for number in (None, 0, 1, 14, 40000):
        assert (await modify(number))[0] == 5
    for number, code in ((6, 1), (7, 1), (11, 0), (10, 0)):  # Prepare, Unprepare, Reset To Async, Reset To Sync
        assert (await modify(number))[0] == code
    assert (await modify(3))[0] == 0
    assert await states() == (6, 13)
    code, out = await modify(4)
    assert code == 4096
    await made.ended(out["Job"])
    assert await states() == (4, 6)
    assert (await modify(8))[0] == 0
    assert await states() == (9, 9)
    code, out = await modify(9)
    assert code == 4096
    await made.ended(out["Job"])
    assert (await modify(2))[0] == 0
    assert (await modify(2))[0] == 5  # there is no association any more
    assert await made.api.replica_list() == []
