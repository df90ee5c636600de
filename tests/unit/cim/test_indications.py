"""Indications as pywbem sees them: WBEMSubscriptionManager makes subscriptions, WBEMListener receives."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import pywbem
from pywbem import (
    CIM_ERR_ACCESS_DENIED,
    CIM_ERR_ALREADY_EXISTS,
    CIM_ERR_FAILED,
    CIM_ERR_INVALID_PARAMETER,
    CIM_ERR_INVALID_QUERY,
    CIM_ERR_NO_SUCH_PROPERTY,
    CIM_ERR_NOT_FOUND,
    CIM_ERR_NOT_SUPPORTED,
    CIM_ERR_QUERY_LANGUAGE_NOT_SUPPORTED,
    CIM_ERR_TYPE_MISMATCH,
    CIMError,
    CIMInstance,
    CIMInstanceName,
    Uint16,
    Uint32,
    Uint64,
)

from cim_facade.auth import UsersFile
from cim_facade.namespaces import INTEROP, STORAGE, STORAGE_MANAGEMENT
from engine.api import MirrorTerms
from engine.errors import MediumError
from engine.links.local import LocalLink
from tests.support.cim_array import MIB, PASSWORD, Array, array, behind_the_facade
from tests.support.engine import opened
from tests.support.listener import Listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CREATED = "SELECT * FROM CIM_InstCreation WHERE SourceInstance ISA CIM_StorageVolume"
JOB_STATE = (
    "SELECT * FROM CIM_InstModification WHERE SourceInstance ISA CIM_ConcreteJob"
    " AND SourceInstance.CIM_ConcreteJob::JobState <> PreviousInstance.CIM_ConcreteJob::JobState"
)


class Manager:
    """pywbem's WBEMSubscriptionManager for one array; blocking work runs in threads."""

    def __init__(self, made: Array, name: str = "tests") -> None:
        self.array = made
        self.manager = pywbem.WBEMSubscriptionManager(name)
        self.server = ""

    async def begin(self) -> Manager:
        self.server = await asyncio.to_thread(self.manager.add_server, pywbem.WBEMServer(self.array.client))
        return self

    async def do(self, method: str, *arguments: Any, **options: Any) -> Any:
        return await asyncio.to_thread(getattr(self.manager, method), self.server, *arguments, **options)

    async def subscribe(self, url: str, *queries: str, namespaces: str | list[str] = STORAGE) -> list[CIMInstance]:
        """A destination, and a subscription to each query."""
        destination = await self.do("add_destination", url, destination_id="listener")
        made = []
        for number, query in enumerate(queries):
            added = await self.do("add_filter", namespaces, query, "DMTF:CQL", filter_id=f"f{number}")
            made += await self.do("add_subscriptions", added.path, destination.path)
        return made

    async def subscribe_to(self, url: str, *names: str) -> list[CIMInstance]:
        """... to filters that are there."""
        destination = await self.do("add_destination", url, destination_id="listener")
        filters = {each["Name"]: each.path for each in await self.do("get_all_filters")}
        made = []
        for name in names:
            made += await self.do("add_subscriptions", filters[name], destination.path)
        return made

    async def hurry(self) -> None:
        """Try again after a second."""
        await modify(self.array, (await self.service()).path, DeliveryRetryInterval=Uint32(1))

    async def service(self) -> CIMInstance:
        [found] = await self.array.all("CIM_IndicationService", INTEROP)
        return found


@asynccontextmanager
async def managed(path: Path) -> AsyncIterator[Manager]:
    async with array(path) as made:
        yield await Manager(made).begin()


async def modify(made: Array, path: CIMInstanceName, **values: Any) -> None:
    changed = CIMInstance(path.classname, properties=values)
    changed.path = path
    await asyncio.to_thread(made.client.ModifyInstance, changed, PropertyList=list(values))


async def refused(code: int, work: Any) -> str:
    with pytest.raises(CIMError) as caught:
        await work
    assert caught.value.status_code == code, caught.value
    return str(caught.value.status_description)


async def becomes_degraded(made: Array, subscription: CIMInstanceName) -> None:
    """Its listener was tried, and was not there."""
    while True:
        if (await made.get(subscription))["SubscriptionState"] == 3:
            return
        await asyncio.sleep(0.02)


async def received(listener: Listener, *classes: str) -> CIMInstance:
    return await asyncio.to_thread(listener.next, lambda each: not classes or each.classname in classes)


# --- each kind of event -----------------------------------------------------------------------------------------


async def test_volumes_come_and_go(tmp_path: Path):
    with Listener() as listener:
        async with managed(tmp_path) as manager:
            made = manager.array
            await manager.subscribe_to(
                listener.url, "SNIA:Block Services:VolumeCreation", "SNIA:Block Services:VolumeDeletion"
            )
            path = await made.volume("v")
            created = await received(listener)
            assert created.classname == "CIM_InstCreation"
            shown = created["SourceInstance"]
            live = await made.get(path)
            assert dict(shown) == dict(live)
            assert created["SourceInstanceModelPath"] == path.to_wbem_uri(format="standard")
            assert created["IndicationFilterName"] == "SNIA:Block Services:VolumeCreation"
            assert created["IndicationTime"] is not None
            snapshot = await made.api.snapshot_create("v", "s")
            assert (await received(listener))["SourceInstance"]["Caption"] == "v@s"
            await made.api.volume_delete("v", force=True)
            gone = [(await received(listener))["SourceInstance"] for _ in "vs"]
            assert [each["Caption"] for each in gone] == ["v@s", "v"]
            assert gone[0]["DeviceID"].endswith(snapshot.guid.replace("-", ""))


async def test_jobs_from_their_beginning_to_their_end(tmp_path: Path):
    with Listener() as listener:
        async with managed(tmp_path) as manager:
            made = manager.array
            await made.volume("v")
            await manager.subscribe_to(
                listener.url,
                "SNIA:Job Control:JobCreation",
                "SNIA:Job Control:JobStateChange",
                "SNIA:Job Control:JobSuccess",
            )
            source = await made.path_of("v")
            code, out = await made.call("MSISCSITARGET_ReplicationService", "CreateElementReplica",
                                        SyncType=8, SourceElement=source)  # fmt: skip
            assert code == 4096
            key = out["Job"]["InstanceID"]

            def of_job(each: CIMInstance) -> bool:
                return each["SourceInstance"]["InstanceID"] == key

            begun = await asyncio.to_thread(listener.next, of_job)
            assert (begun.classname, begun["SourceInstance"]["JobState"]) == ("CIM_InstCreation", 4)
            ended = await asyncio.to_thread(listener.next, of_job)
            assert (ended.classname, ended["PreviousInstance"]["JobState"]) == ("CIM_InstModification", 4)
            assert ended["SourceInstance"]["JobState"] == 7
            succeeded = await asyncio.to_thread(listener.next, of_job)
            assert succeeded["IndicationFilterName"] == "SNIA:Job Control:JobSuccess"
            assert succeeded["SourceInstance"]["OperationalStatus"] == [2, 17]


async def test_synchronizations_of_every_kind(tmp_path: Path):
    """Created, changed in both generations, deleted; of snapshots, mirrors, clones and groups."""
    with Listener() as listener:
        async with managed(tmp_path) as manager:
            made = manager.array
            await made.volume("v")
            copies = "SNIA:Replication Services:"
            names = ["SynchronizationCreation", "SynchronizationDeletion", "SynchronizationStateChange"]
            await manager.subscribe_to(
                listener.url, *(f"{copies}{name}" for name in (*names, "GroupSynchronizationCreation"))
            )
            snapshot = await made.api.snapshot_create("v", "s")
            found = (await received(listener))["SourceInstance"]
            assert (found["SyncType"], found["CopyType"], found["CopyState"], found["SyncState"]) == (7, 4, 4, 11)
            await made.api.snapshot_delete("v", "s")
            gone = await received(listener, "CIM_InstDeletion")
            assert snapshot.guid.replace("-", "") in gone["SourceInstance"]["SyncedElement"]["DeviceID"]

            job = await made.api.replica_create("v", "m")
            assert (await received(listener, "CIM_InstCreation"))["SourceInstance"]["SyncType"] == 6

            def becomes(state: int) -> Any:
                def wanted(each: CIMInstance) -> bool:
                    return each.classname == "CIM_InstModification" and each["SourceInstance"]["CopyState"] == state

                return asyncio.to_thread(listener.next, wanted)

            await made.api.job_wait(job.job, after_version=1 << 30, timeout_s=60)
            synchronized = await becomes(4)
            assert synchronized["SourceInstance"]["SyncState"] == 6
            assert synchronized["PreviousInstance"]["CopyState"] != 4
            await made.api.replica_fracture("m")
            fractured = await becomes(6)
            assert (fractured["PreviousInstance"]["CopyState"], fractured["SourceInstance"]["SyncState"]) == (4, 13)
            await made.api.replica_detach("m")
            assert (await received(listener, "CIM_InstDeletion"))["SourceInstance"]["SyncType"] == 6

            code, _ = await made.call(
                "MSISCSITARGET_ReplicationService", "CreateListReplica", SyncType=8,
                SourceElements=[await made.path_of("v")], ElementNames=["c"],
            )  # fmt: skip
            assert code == 4096
            clone = await received(listener, "CIM_InstCreation")
            while clone["SourceInstance"]["SyncType"] != 8:  # a clone is made of a snapshot
                clone = await received(listener, "CIM_InstCreation")
            await made.api.group_create("g", ["v"])
            [group] = await made.all("CIM_ReplicationGroup")
            await made.call(
                "MSISCSITARGET_ReplicationService", "CreateGroupReplica", SyncType=7, SourceGroup=group.path
            )
            grouped = await received(listener, "CIM_InstCreation")
            while grouped["SourceInstance"].classname != "MSISCSITARGET_GroupSynchronized":
                grouped = await received(listener, "CIM_InstCreation")


async def test_an_adaptive_mirror_switches(tmp_path: Path):
    """That becomes an alert about the association."""
    with Listener() as listener:
        async with managed(tmp_path) as manager:
            made = manager.array
            await made.volume("v")
            await manager.subscribe_to(listener.url, "TWINVOL:Mirrors:ModeSwitch")
            job = await made.api.replica_create("v", "m", MirrorTerms(mode="adaptive"))
            await made.api.job_wait(job.job, after_version=1 << 30, timeout_s=60)
            switched = await received(listener, "CIM_AlertIndication")
            assert (switched["MessageID"], switched["OwningEntity"]) == ("TVOL2", "twinvol")
            assert switched["MessageArguments"] == ["m", "synchronous"]
            assert "MSISCSITARGET_StorageSynchronized" in switched["AlertingManagedElement"]


async def test_the_alarm_of_a_promise_and_that_it_is_kept_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def cut(_: LocalLink) -> None:
        raise MediumError("the way to the target is cut")

    with Listener() as listener:
        async with managed(tmp_path) as manager:
            made = manager.array
            await made.volume("v")
            await manager.subscribe_to(listener.url, "TWINVOL:Mirrors:RecoveryPointObjective")
            job = await made.api.replica_create("v", "m", MirrorTerms("async", rpo_s=1.0))
            await made.api.job_wait(job.job, after_version=1 << 30, timeout_s=60)

            def says(promise: str) -> Any:
                return asyncio.to_thread(listener.next, lambda each: each["MessageArguments"][2] == promise)

            with monkeypatch.context() as patch:
                patch.setattr(LocalLink, "connect", cut)
                await made.engine.pool.volume("v").write(0, b"x" * 4096)
                alarm = await says("broken")
                assert (alarm["MessageID"], alarm["AlertType"], alarm["PerceivedSeverity"]) == ("TVOL1", 3, 6)
                assert alarm["MessageArguments"][0] == "m"
            cleared = await says("kept")
            assert (cleared["PerceivedSeverity"], cleared["ProbableCause"]) == (2, 59)  # Previous Alert Cleared


async def test_the_other_model_tells_of_its_own_objects(tmp_path: Path):
    with Listener() as listener:
        async with managed(tmp_path) as manager:
            made = manager.array
            query = "SELECT SourceInstance FROM CIM_InstCreation WHERE SourceInstance ISA MSFT_SMStorageVolume"
            await manager.subscribe(listener.url, query, namespaces=STORAGE_MANAGEMENT)
            await made.volume("v")
            created = await received(listener)
            assert created["SourceInstance"]["DisplayName"] == "v"
            own = {"IndicationIdentifier", "IndicationFilterName", "SequenceContext", "SequenceNumber"}
            assert set(created) == {"SourceInstance", *own}


# --- delivery ---------------------------------------------------------------------------------------------------


async def test_an_outage_of_the_listener_loses_nothing(tmp_path: Path):
    """In order, numbered without a gap, of one context."""
    listener = Listener()
    async with managed(tmp_path) as manager:
        made = manager.array
        await manager.hurry()
        [subscription] = await manager.subscribe(listener.url, CREATED)
        listener.start()
        await made.volume("v0")
        first = await received(listener)
        listener.stop()
        for number in range(1, 5):
            await made.volume(f"v{number}")
        await becomes_degraded(made, subscription.path)
        listener.start()
        try:
            rest = [await received(listener) for _ in range(4)]
        finally:
            listener.stop()
        assert [each["SourceInstance"]["Caption"] for each in rest] == ["v1", "v2", "v3", "v4"]
        assert [each["SequenceNumber"] for each in (first, *rest)] == [0, 1, 2, 3, 4]
        assert {each["SequenceContext"] for each in rest} == {first["SequenceContext"]}


async def test_a_restart_goes_on_where_it_was(tmp_path: Path):
    """Subscriptions, settings and what was not delivered are there again; the sequence goes on."""
    listener = Listener()
    async with managed(tmp_path) as manager:
        await manager.hurry()
        await manager.subscribe(listener.url, CREATED)
        listener.start()
        await manager.array.volume("a")
        first = await received(listener)
        listener.stop()
        await manager.array.volume("b")
    async with opened(tmp_path) as engine:
        await engine.api.volume_create("c", MIB)  # while nobody delivers
        async with behind_the_facade(engine) as made:
            manager = await Manager(made).begin()
            assert (await manager.service())["DeliveryRetryInterval"] == 1
            assert len(await manager.do("get_owned_subscriptions")) == 1
            with listener:
                rest = [await received(listener) for _ in "bc"]
    assert [each["SourceInstance"]["Caption"] for each in rest] == ["b", "c"]
    assert [each["SequenceNumber"] for each in rest] == [1, 2]
    assert rest[0]["SequenceContext"] == first["SequenceContext"]


async def test_https_by_trust_and_by_fingerprint(tmp_path: Path):
    """The certificate must be trusted, or be the very one that the destination names."""
    key, certificate, fingerprint = _certificate(tmp_path)
    pool = tmp_path / "pool"
    pool.mkdir()
    with Listener(key, certificate) as listener:
        async with managed(pool) as manager:
            made = manager.array
            await manager.hurry()
            [subscription] = await manager.subscribe(listener.url, CREATED)
            await made.volume("a")
            await becomes_degraded(made, subscription.path)
            assert listener.waiting == 0
            (pool / "listeners.crt").write_bytes(certificate.read_bytes())
            assert (await received(listener))["SourceInstance"]["Caption"] == "a"
            await manager.do("remove_subscriptions", subscription.path)

            pinned = "TWINVOL_PinnedListenerDestination"
            values = {"Name": "pinned", "Destination": listener.url, "CertificateFingerprint": "00" * 32}
            path = await create(made, pinned, **values)
            [added] = await manager.do("get_owned_filters")
            await create(made, "CIM_IndicationSubscription", Filter=added.path, Handler=path)
            await made.volume("b")
            [wrong] = await made.all("CIM_IndicationSubscription", INTEROP)
            await becomes_degraded(made, wrong.path)
            await modify(made, path, CertificateFingerprint=fingerprint)
            assert (await received(listener))["SourceInstance"]["Caption"] == "b"


def _certificate(folder: Path) -> tuple[Path, Path, str]:
    """A key, a certificate of its own for 127.0.0.1, and its SHA-256 with colons."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "listener")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(private, hashes.SHA256())
    )
    key, certificate = folder / "listener.key", folder / "listener.crt"
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return key, certificate, made.fingerprint(hashes.SHA256()).hex(":").upper()


async def test_a_listener_that_is_away_for_too_long(tmp_path: Path):
    """What then becomes of a subscription is its own policy, or the service's."""
    async with managed(tmp_path) as manager:
        made = manager.array
        await manager.hurry()
        nobody = Listener().url
        removed, disabled, ignored = await manager.subscribe(nobody, CREATED, CREATED, JOB_STATE)
        await modify(made, removed.path, OnFatalErrorPolicy=Uint16(4), FailureTriggerTimeInterval=Uint64(0))
        await modify(made, disabled.path, OnFatalErrorPolicy=Uint16(3), FailureTriggerTimeInterval=Uint64(0))
        await modify(made, ignored.path, OnFatalErrorPolicy=Uint16(2), FailureTriggerTimeInterval=Uint64(0))
        await made.volume("v")
        wanted = {disabled.path["Filter"]["Name"]: 4, ignored.path["Filter"]["Name"]: 3}
        while True:
            there = await made.all("CIM_IndicationSubscription", INTEROP)
            if {each["Filter"]["Name"]: each["SubscriptionState"] for each in there} == wanted:
                break
            await asyncio.sleep(0.02)


# --- the objects ------------------------------------------------------------------------------------------------


async def create(made: Array, class_name: str, **values: Any) -> CIMInstanceName:
    path: CIMInstanceName = await asyncio.to_thread(
        made.client.CreateInstance, CIMInstance(class_name, properties=values), namespace=INTEROP
    )
    return path


async def test_what_a_subscription_manager_does(tmp_path: Path):
    async with managed(tmp_path) as manager:
        made = manager.array
        [subscription] = await manager.subscribe("http://127.0.0.1:5990", CREATED)
        again = await Manager(made).begin()  # another program of the same name finds what it owns
        assert [each.path for each in await again.do("get_owned_subscriptions")] == [subscription.path]
        assert len(await again.do("get_owned_destinations")) == len(await again.do("get_owned_filters")) == 1
        [destination] = await manager.do("get_all_destinations")
        assert (destination["Destination"], destination["PersistenceType"]) == ("http://127.0.0.1:5990", 3)
        assert destination["SystemCreationClassName"] == "MSFTSM_ComputerSystem"
        text = await refused(CIM_ERR_FAILED, asyncio.to_thread(made.client.DeleteInstance, destination.path))
        assert "1 subscriptions" in text
        await refused(CIM_ERR_FAILED, asyncio.to_thread(made.client.DeleteInstance, subscription.path["Filter"]))
        await refused(
            CIM_ERR_ALREADY_EXISTS,
            create(made, "CIM_IndicationSubscription", Filter=subscription["Filter"], Handler=subscription["Handler"]),
        )
        [service] = await made.all("CIM_IndicationService", INTEROP)
        [capabilities] = await asyncio.to_thread(
            made.client.Associators, service.path, AssocClass="CIM_ElementCapabilities"
        )
        assert capabilities["MaxActiveSubscriptions"] == 1000
        assert capabilities["SubscriptionsPersisted"] is True
        affected = await asyncio.to_thread(made.client.AssociatorNames, service.path, "CIM_ServiceAffectsElement")
        assert {each.keybindings["Name"] for each in affected} >= {destination["Name"]}
        await manager.do("remove_subscriptions", subscription.path)
        await manager.do("remove_destinations", destination.path)
        await asyncio.to_thread(manager.manager.remove_server, manager.server)
        assert await made.all("CIM_ListenerDestination", INTEROP) == []
        assert all(":Job" in each["Name"] or each["Name"].startswith(("SNIA:", "TWINVOL:"))
                   for each in await made.all("CIM_IndicationFilter", INTEROP))  # fmt: skip


async def test_predefined_filters_stay_as_they_are(tmp_path: Path):
    async with array(tmp_path) as made:
        filters = await made.all("CIM_IndicationFilter", INTEROP)
        assert len(filters) >= 15
        for each in filters:
            assert re.fullmatch(r"(SNIA|TWINVOL):[A-Za-z ]+:[A-Za-z]+", each["Name"])
        path = filters[0].path
        await refused(CIM_ERR_NOT_SUPPORTED, asyncio.to_thread(made.client.DeleteInstance, path))
        await refused(CIM_ERR_NOT_SUPPORTED, modify(made, path, Query=CREATED))


@pytest.mark.parametrize(
    ("code", "class_name", "values"),
    [
        (CIM_ERR_INVALID_QUERY, "CIM_IndicationFilter", {"Query": "SELECT", "QueryLanguage": "WQL"}),
        (CIM_ERR_QUERY_LANGUAGE_NOT_SUPPORTED, "CIM_IndicationFilter", {"Query": CREATED, "QueryLanguage": "SQL"}),
        (CIM_ERR_INVALID_PARAMETER, "CIM_IndicationFilter", {"QueryLanguage": "WQL"}),
        (CIM_ERR_INVALID_PARAMETER, "CIM_IndicationFilter",
         {"Query": CREATED, "QueryLanguage": "WQL", "SourceNamespaces": ["root/none"]}),
        (CIM_ERR_INVALID_PARAMETER, "CIM_IndicationFilter",
         {"Query": CREATED, "QueryLanguage": "WQL", "Name": "x" * 257}),
        (CIM_ERR_NOT_SUPPORTED, "CIM_IndicationFilter",
         {"Query": CREATED, "QueryLanguage": "WQL", "TemplateVariable": ["x"]}),
        (CIM_ERR_INVALID_PARAMETER, "CIM_IndicationFilter", {"Nothing": "x"}),
        (CIM_ERR_INVALID_PARAMETER, "CIM_IndicationFilter", {"Query": ["x"]}),
        (CIM_ERR_INVALID_PARAMETER, "CIM_ListenerDestinationCIMXML", {"Destination": "ftp://host"}),
        (CIM_ERR_INVALID_PARAMETER, "CIM_ListenerDestinationCIMXML", {"Destination": "http://user:word@host:1"}),
        (CIM_ERR_INVALID_PARAMETER, "CIM_ListenerDestinationCIMXML", {"Destination": "http://host:0"}),
        (CIM_ERR_INVALID_PARAMETER, "CIM_ListenerDestinationCIMXML", {"Destination": "file:///etc/passwd"}),
        (CIM_ERR_INVALID_PARAMETER, "CIM_ListenerDestinationCIMXML", {}),
        (CIM_ERR_NOT_SUPPORTED, "CIM_ListenerDestinationCIMXML", {"Destination": "http://h", "Protocol": Uint16(3)}),
        (CIM_ERR_INVALID_PARAMETER, "TWINVOL_PinnedListenerDestination", {"Destination": "https://host"}),
        (CIM_ERR_INVALID_PARAMETER, "TWINVOL_PinnedListenerDestination",
         {"Destination": "http://host", "CertificateFingerprint": "00" * 32}),
        (CIM_ERR_INVALID_PARAMETER, "CIM_IndicationSubscription", {}),
        (CIM_ERR_NOT_SUPPORTED, "CIM_IndicationService", {"Name": "another"}),
        (CIM_ERR_NOT_SUPPORTED, "CIM_ListenerDestination", {"Name": "abstract"}),
    ],
    ids=str,
)  # fmt: skip
async def test_what_cannot_be_created(tmp_path: Path, code: int, class_name: str, values: dict[str, Any]):
    async with array(tmp_path) as made:
        await refused(code, create(made, class_name, **values))
        assert await made.all("CIM_ListenerDestination", INTEROP) == []


async def test_what_can_be_modified_and_what_not(tmp_path: Path):
    async with managed(tmp_path) as manager:
        made = manager.array
        service = await manager.service()
        await modify(made, service.path, DeliveryRetryAttempts=Uint16(7), SubscriptionRemovalAction=Uint16(4))
        assert (await manager.service())["DeliveryRetryAttempts"] == 7
        await refused(CIM_ERR_INVALID_PARAMETER, modify(made, service.path, SubscriptionRemovalAction=Uint16(9)))
        await refused(CIM_ERR_NOT_SUPPORTED, modify(made, service.path, FilterCreationEnabled=False))
        await refused(CIM_ERR_NO_SUCH_PROPERTY, modify(made, service.path, Nothing="x"))
        await refused(CIM_ERR_TYPE_MISMATCH, modify(made, service.path, DeliveryRetryAttempts="7"))
        [subscription] = await manager.subscribe("http://127.0.0.1:5990", CREATED)
        filter_path, handler = subscription["Filter"], subscription["Handler"]
        await modify(made, filter_path, Query=JOB_STATE)
        assert (await made.get(filter_path))["Query"] == JOB_STATE
        await refused(CIM_ERR_INVALID_QUERY, modify(made, filter_path, Query="SELECT"))
        await modify(made, handler, Destination="https://127.0.0.1:5991")
        assert (await made.get(handler))["Destination"] == "https://127.0.0.1:5991"
        await refused(CIM_ERR_INVALID_PARAMETER, modify(made, handler, Name="other"))
        await modify(made, subscription.path, SubscriptionState=Uint16(4), SubscriptionDuration=Uint64(1000))
        found = await made.get(subscription.path)
        assert (found["SubscriptionState"], found["SubscriptionDuration"]) == (4, 1000)
        await modify(made, subscription.path, SubscriptionState=Uint16(2))
        await refused(CIM_ERR_NOT_SUPPORTED, modify(made, subscription.path, RepeatNotificationPolicy=Uint16(3)))
        volume = await made.volume("v")
        await refused(CIM_ERR_NOT_SUPPORTED, modify(made, volume, ElementName="other"))
        handler.keybindings["Name"] = "none"
        await refused(CIM_ERR_NOT_FOUND, asyncio.to_thread(made.client.DeleteInstance, handler))


async def test_readers_see_and_change_nothing(tmp_path: Path):
    async with managed(tmp_path) as manager:
        made = manager.array
        [subscription] = await manager.subscribe("http://127.0.0.1:5990", CREATED)
        UsersFile(made.users).add("ann", "reader", PASSWORD)
        reader = pywbem.WBEMConnection(made.client.url, ("ann", PASSWORD), ca_certs=made.client.ca_certs)
        reader.session.trust_env = False
        made.client = reader
        try:
            assert [each.path for each in await made.all("CIM_IndicationSubscription", INTEROP)] == [subscription.path]
            await refused(CIM_ERR_ACCESS_DENIED, create(made, "CIM_ListenerDestinationCIMXML", Destination="http://h"))
            await refused(CIM_ERR_ACCESS_DENIED, asyncio.to_thread(reader.DeleteInstance, subscription.path))
            await refused(CIM_ERR_ACCESS_DENIED, modify(made, subscription.path, SubscriptionState=Uint16(4)))
        finally:
            await asyncio.to_thread(reader.close)
