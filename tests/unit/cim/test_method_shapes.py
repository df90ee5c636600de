"""What is wrong in shape is a CIM error before anything is done; what comes at the same time is kept apart."""

from __future__ import annotations

import asyncio

import pytest
from pywbem import CIMError, CIMInstanceName, CIMParameter, NocaseDict, Uint16, Uint32, WBEMConnection

from cim_facade.auth import UsersFile
from cim_facade.namespaces import STORAGE
from tests.support.cim_array import CONFIGURATION, REPLICATION, array, registry
from tests.support.cim_array import classes as all_classes

INVALID_PARAMETER, NOT_FOUND, ACCESS_DENIED, METHOD_NOT_FOUND = 4, 6, 2, 17


@pytest.fixture
async def made(tmp_path):
    async with array(tmp_path / "pool") as made:
        yield made


async def refused(made, path, method, *params, client: WBEMConnection | None = None):
    with pytest.raises(CIMError) as error:
        await asyncio.to_thread((client or made.client).InvokeMethod, method, path, list(params))
    return error.value.status_code


async def test_shapes_that_are_wrong_are_cim_errors(made):
    source = await made.volume("v")
    service, older = await made.service(), await made.service(CONFIGURATION)
    kind = CIMParameter("SyncType", "uint16", value=Uint16(7))
    one = CIMParameter("SourceElement", "reference", value=source, reference_class="CIM_LogicalElement")
    many = CIMParameter("SourceElements", "reference", value=[source], is_array=True)
    for method, params in (
        ("CreateListReplica", [kind, one]),  # there is no such parameter
        ("CreateListReplica", [kind, many, CIMParameter("Consistency", "uint16", value=Uint16(2))]),  # of DMTF 2.49
        ("CreateListReplica", [kind, CIMParameter("SourceElements", "reference", value=source)]),  # no array
        ("CreateListReplica", [CIMParameter("SyncType", "string", value="many"), many]),
        ("CreateListReplica", [CIMParameter("SyncType", "uint32", value=Uint32(1 << 20)), many]),
        ("CreateGroupReplica", [kind, CIMParameter("SourceGroup", "reference", value=source)]),  # no group
        ("CreateGroupReplica", [kind, one, CIMParameter("Job", "reference", value=source)]),  # an output
        ("CreateListReplica", [kind, many, CIMParameter("ReplicationSettingData", "string", value="<nothing")]),
    ):
        assert await refused(made, service, method, *params) == INVALID_PARAMETER, method
    other = CIMInstanceName("MSISCSITARGET_StorageVolume", source.keybindings, namespace="root/nowhere")
    elsewhere = CIMParameter("SourceElement", "reference", value=other)
    copy_type = CIMParameter("CopyType", "uint16", value=Uint16(4))
    assert await refused(made, older, "CreateReplica", elsewhere, copy_type) == INVALID_PARAMETER
    assert await refused(made, older, "CreateEverything") == METHOD_NOT_FOUND
    nobody = service.copy()
    nobody.keybindings["Name"] = "nobody"
    assert await refused(made, nobody, "CreateListReplica", kind, many) == NOT_FOUND
    assert await made.api.snapshot_list("v") == []
    assert await made.api.job_list() == []


async def test_a_reader_asks_and_changes_nothing(made):
    source = await made.volume("v")
    UsersFile(made.users).add("guest", "reader", "battery staple")
    guest = WBEMConnection(
        made.client.url, ("guest", "battery staple"), default_namespace=STORAGE, ca_certs=made.client.ca_certs
    )
    guest.session.trust_env = False
    service = await made.service()
    code, _ = await asyncio.to_thread(guest.InvokeMethod, "GetReplicationRelationships", service)
    assert code == 0
    kind = CIMParameter("SyncType", "uint16", value=Uint16(7))
    one = CIMParameter("SourceElement", "reference", value=source)
    assert await refused(made, service, "CreateElementReplica", kind, one, client=guest) == ACCESS_DENIED
    await asyncio.to_thread(guest.close)
    assert await made.api.snapshot_list("v") == []


async def test_calls_at_the_same_time_get_names_of_their_own(made):
    source = await made.volume("v")
    handler = registry().method(all_classes(), STORAGE, REPLICATION, "CreateElementReplica")

    async def snapshot():
        params = NocaseDict(SyncType=7, SourceElement=source, ElementName="Same")
        return (await handler(made.view(), await made.service(), params))[0]

    assert await asyncio.gather(*(snapshot() for _ in range(8))) == [0] * 8
    names = {info.name for info in await made.api.snapshot_list("v")}
    assert names == {"same", *(f"same-{number}" for number in range(2, 9))}


async def test_a_source_that_is_being_deleted(made):
    """Each answers by its code; what is there afterwards is whole."""
    source = await made.volume("v", data=b"x" * 4096)
    handler = registry().method(all_classes(), STORAGE, REPLICATION, "CreateElementReplica")

    async def clone(sync_type):
        params = NocaseDict(SyncType=sync_type, SourceElement=source, WaitForCopyState=4)
        return (await handler(made.view(), await made.service(), params))[0]

    async def delete():
        try:
            await made.api.volume_delete("v", force=True)
        except Exception as error:
            return type(error).__name__
        return None

    answers = await asyncio.gather(clone(8), delete(), clone(7), delete(), clone(8))
    assert {answer for answer in answers if isinstance(answer, int)} <= {0, 4, 5, 6}
    assert {answer for answer in answers if isinstance(answer, str)} <= {"InUse", "NotFound"}
    left = {info.name for info in await made.api.volume_list()}
    assert left <= {"v", "v-clone", "v-clone-2"}
    assert (await made.api.status()).interrupted_copies == []
    await made.all("MSISCSITARGET_StorageSynchronized")
