"""Another pool as the target of everything that can go to one: through access points, and as a replica peer."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from cim_facade import guesses
from cim_facade.auth import USERS_NAME, UsersFile
from cim_facade.namespaces import STORAGE_MANAGEMENT
from tests.support.cim_array import NAME, PASSWORD, REPLICATION, Array, behind_the_facade
from tests.support.engine import opened
from tests.unit.daemon.test_peers import connected, until
from twinvol.peer_users import peer_users

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pywbem import CIMInstanceName

    from tests.support.engine import Engine

SYSTEM = "MSISCSITARGET_PeerSystem"
TO_PEER = "MSFT_SMStorageVolumeToReplicaPeer"
GROUP_SYNC = "MSISCSITARGET_GroupSynchronized"


@asynccontextmanager
async def two(path: Path) -> AsyncIterator[tuple[Array, Engine]]:
    """A pool behind the facade, and its peer, which it calls there."""
    async with (
        opened(path / "here", peer="127.0.0.1:0") as here,
        opened(path / "there", peer="127.0.0.1:0") as there,
        behind_the_facade(here) as made,
    ):
        code = (await there.api.peer_invite(name="here")).code
        await here.api.peer_add("there", code, address=there.peer_address)
        await connected(here, "there")
        yield made, there


async def access_point(made: Array) -> CIMInstanceName:
    (point,) = await made.all("MSISCSITARGET_RemoteServiceAccessPoint")
    return point.path


async def test_a_peer_is_a_system_that_can_be_asked_for(tmp_path: Path):
    async with two(tmp_path) as (made, _):
        (system,) = await made.all(SYSTEM)
        assert (system["ElementName"], system["EnabledState"], system["OperationalStatus"]) == ("there", 2, [2])
        for options in (None, 2):
            code, out = await made.call(REPLICATION, "GetPeerSystems", Options=options)
            assert (code, out["Systems"]) == (0, [system.path])
        assert (await made.call(REPLICATION, "GetPeerSystems", Options=9))[0] == 5
        (own,) = await made.all("MSFTSM_ComputerSystem")
        for asked in (None, own.path, system.path):
            code, out = await made.call(REPLICATION, "GetServiceAccessPoints", System=asked)
            assert (code, out["ServiceAccessPoints"]) == (0, [await access_point(made)])


async def test_a_peer_that_is_gone_is_no_reachable_one(tmp_path: Path):
    async with two(tmp_path) as (made, there):
        await there.api.peer_remove("here")

        async def is_lost() -> bool:
            return not any(peer.connected or peer.connects_to_us for peer in await made.api.peer_list())

        await until(is_lost)
        code, out = await made.call(REPLICATION, "GetPeerSystems", Options=2)
        assert (code, out["Systems"]) == (0, [])
        assert len((await made.call(REPLICATION, "GetPeerSystems"))[1]["Systems"]) == 1
        (system,) = await made.all(SYSTEM)
        assert (system["EnabledState"], system["OperationalStatus"]) == (6, [13])


async def test_an_element_a_list_and_a_group_go_to_a_peer(tmp_path: Path):
    async with two(tmp_path) as (made, there):
        sources = [await made.volume(name, data=b"\x11" * 4096) for name in "abcd"]
        point = {"SyncType": 6, "TargetAccessPoint": await access_point(made)}
        code, out = await made.call(
            REPLICATION, "CreateElementReplica", SourceElement=sources[0], ElementName="one", **point
        )
        assert code == 4096
        assert (await made.ended(out["Job"]))["ErrorCode"] == 0
        assert (await made.get(out["Synchronization"]))["CopyState"] == 4
        code, out = await made.call(
            REPLICATION, "CreateListReplica", SourceElements=sources[1:2], ElementNames=["two"], **point
        )
        assert code == 4096
        assert (await made.ended(out["Job"]))["ErrorCode"] == 0
        code, out = await made.call(REPLICATION, "CreateGroup", GroupName="g", Members=sources[2:])
        code, out = await made.call(
            REPLICATION,
            "CreateGroupReplica",
            SourceGroup=out["ReplicationGroup"],
            RelationshipName="both",
            Consistency=3,
            Mode=3,
            **point,
        )
        assert code == 4096
        assert (await made.ended(out["Job"]))["ErrorCode"] == 0
        (relation,) = await made.all(GROUP_SYNC)
        assert (relation["CopyState"], relation["ConsistencyEnabled"]) == (4, True)
        names = {info.name for info in await there.api.volume_list()}
        assert names == {"one", "two", "both.c", "both.d"}
        # what cannot go there: copies of an instant, and existing volumes
        for sync_type in (7, 8):
            given = point | {"SyncType": sync_type}
            assert (await made.call(REPLICATION, "CreateElementReplica", SourceElement=sources[0], **given))[0] == 1
        given = point | {"SourceElement": sources[0], "TargetElement": sources[1]}
        assert (await made.call(REPLICATION, "CreateElementReplica", **given))[0] == 1


async def test_sources_are_here_and_access_points_are_there(tmp_path: Path):
    """SourceAccessPoint is Not Supported; one that leads nowhere is an Invalid Parameter, as target and as source."""
    async with two(tmp_path) as (made, _):
        source = await made.volume("v")
        point = await access_point(made)
        nowhere = point.copy()
        nowhere.keybindings["Name"] = "elsewhere"
        for method, given in (
            ("CreateElementReplica", {"SourceElement": source}),
            ("CreateListReplica", {"SourceElements": [source]}),
            ("CreateGroupReplica", {"SourceElement": source}),
        ):
            for name, path, code in (
                ("SourceAccessPoint", point, 1),
                ("SourceAccessPoint", nowhere, 5),
                ("TargetAccessPoint", nowhere, 5),
            ):
                assert (await made.call(REPLICATION, method, SyncType=6, **given, **{name: path}))[0] == code
        assert await made.api.replica_list() == []


async def test_credentials_are_those_of_the_peers_users(tmp_path: Path):
    """Towards a peer its own users count, not this pool's; wrong ones lock this pool out there; nobody writes them."""
    async with two(tmp_path) as (made, there):
        await made.volume("v")
        (source,) = [each.path for each in await made.all("MSFT_SMStorageVolume", STORAGE_MANAGEMENT)]
        peers = await made.all("MSFT_SMReplicaPeer", STORAGE_MANAGEMENT)
        (peer,) = [each.path for each in peers if each["PeerSystemName"] == "there"]

        async def code(username: str, password: str) -> int:
            given = {"SyncType": 6, "Mode": 2, "TargetStorageSystem": peer}
            answer, out = await made.call(source, "CreateReplica", **given, username=username, password=password)
            if answer == 4096:
                assert (await made.ended(out["Job"]))["ErrorCode"] == 0
            return answer

        assert await code("far", "far and wide") == 1  # a pool without users cannot be asked
        users = UsersFile(there.pool.path / USERS_NAME)
        users.add("far", "admin", "far and wide")
        users.add("guest", "reader", "battery staple")
        there.peers.users = peer_users(there.pool.path)
        assert await code(NAME, PASSWORD) == 40001  # an administrator here
        assert await code("guest", "battery staple") == 40001
        assert await code("far", "x" * 300) == 40001
        assert await there.api.volume_list() == []
        assert await code("far", "far and wide") == 4096
        (child,) = [each["Child"] for each in await made.references(source, TO_PEER, "Parent")]
        given = {"Operation": 12, "TargetStorageVolume": child, "username": "far"}
        assert (await made.call(source, "SetReplicationRelationship", **given, password="wrong one"))[0] == 40001
        assert (await made.call(source, "SetReplicationRelationship", **given, password="far and wide"))[0] == 0
        for _ in range(guesses.OF_NAME_HERE):
            await code("far", "wrong one")
        assert await code("far", "far and wide") == 40001  # locked out, from here
        said = str([await made.api.job_list(), await made.api.event_list(), await there.api.event_list()])
        assert "far and wide" not in said


async def test_a_group_of_the_other_model_goes_to_a_peer(tmp_path: Path):
    async with two(tmp_path) as (made, there):
        for name in "ab":
            await made.volume(name)
        volumes = [each.path for each in await made.all("MSFT_SMStorageVolume", STORAGE_MANAGEMENT)]
        (system,) = await made.all("MSFT_SMSystem", STORAGE_MANAGEMENT)
        code, out = await made.call(system.path, "CreateReplicationGroup", FriendlyName="g", StorageElements=volumes)
        assert code == 0
        peers = await made.all("MSFT_SMReplicaPeer", STORAGE_MANAGEMENT)
        (peer,) = [each.path for each in peers if each["PeerSystemName"] == "there"]
        group = out["CreatedReplicationGroup"]
        code, out = await made.call(
            group, "CreateReplica", RelationshipName="far", SyncType=6, Mode=2, TargetStorageSystem=peer
        )
        assert code == 4096
        assert (await made.ended(out["Job"]))["ErrorCode"] == 0
        assert len(await there.api.volume_list()) == 2
        (relation,) = await made.references(group, "MSFT_SMReplicationGroupToReplicaPeer", "Parent")
        assert relation["CopyState"] == 4
