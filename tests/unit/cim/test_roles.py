"""Roles of a mirror between two pools change through CIM, at the side of the replica: planned, back, and refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cim_facade.namespaces import STORAGE_MANAGEMENT
from engine.api import MirrorTerms
from tests.support.cim_array import REPLICATION, array, behind_the_facade
from tests.unit.daemon.test_disk_targets import SIZE, an_array
from tests.unit.daemon.test_failover import known, two
from tests.unit.daemon.test_group_failover import synchronized as group_synchronized
from tests.unit.daemon.test_group_failover import two as group_of_two
from tests.unit.daemon.test_peers import MIB, content, fill, synchronized

if TYPE_CHECKING:
    from pathlib import Path

SYNC = "MSISCSITARGET_StorageSynchronized"


async def test_roles_are_reversed_and_given_back_through_cim(tmp_path: Path):
    async with two(tmp_path) as pools, behind_the_facade(pools.a) as a, behind_the_facade(pools.b) as b:

        async def modify(array, operation, **more):
            (sync,) = await array.all(SYNC)
            given = {"Operation": operation, "Synchronization": sync.path} | more
            code, out = await array.call(REPLICATION, "ModifyReplicaSynchronization", **given)
            return code, None if out["Job"] is None else (await array.ended(out["Job"]))["ErrorCode"]

        (here,) = await a.all(SYNC)
        (there,) = await b.all(SYNC)
        assert here["SystemElement"] == await a.path_of("v")
        assert there["SyncedElement"] == await b.path_of("r")
        assert (await a.get(here["SyncedElement"]))["ElementName"] == "r"  # what is at the peer is an entity
        assert (await b.get(there["SystemElement"]))["EntityID"] == "a:r"
        usages = [(await a.get(here["SystemElement"]))["Usage"], (await b.get(there["SyncedElement"]))["Usage"]]
        assert usages == [7, 9]  # Remote Replica Source, Remote Replica Target

        assert await modify(a, 20) == (1, None)  # the disk is there already
        expected = await content(pools.a, "v")
        assert await modify(b, 20) == (4096, 0)
        assert await content(pools.b, "r") == expected
        (there,) = await b.all(SYNC)
        assert there["SystemElement"] == await b.path_of("r")

        await fill(pools.b, "r", 2 * MIB)
        await synchronized(pools.b, "r")
        await known(pools.a)
        assert await modify(b, 11) == (4096, 0)
        (here,) = await a.all(SYNC)
        assert here["SystemElement"] == await a.path_of("v")
        assert not (await a.api.volume_show("v")).read_only


async def test_a_mirrored_group_changes_places_as_one_through_cim(tmp_path: Path):
    """Said to the pool of the replicas, which knows no relation of groups, as the list of all members."""
    async with group_of_two(tmp_path) as pools, behind_the_facade(pools.a) as a, behind_the_facade(pools.b) as b:

        async def modify(array, operation, count=2):
            paths = [each.path for each in await array.all(SYNC)][:count]
            given = {"Operation": operation, "Synchronization": paths}
            code, out = await array.call(REPLICATION, "ModifyListSynchronization", **given)
            return code, None if out["Job"] is None else (await array.ended(out["Job"]))["ErrorCode"]

        assert await modify(b, 20, count=1) == (1, None)  # one of two
        assert await modify(b, 12) == (1, None)
        assert await modify(a, 20) == (1, None)  # the disks are there already
        expected = [await content(pools.a, name) for name in ("x", "y")]
        assert await modify(b, 20) == (4096, 0)
        assert [await content(pools.b, name) for name in ("r.x", "r.y")] == expected
        assert {each["SystemElement"] for each in await b.all(SYNC)} == {await b.path_of("r.x"), await b.path_of("r.y")}
        await group_synchronized(pools.b)
        assert await modify(b, 11) == (4096, 0)
        assert {each["SystemElement"] for each in await a.all(SYNC)} == {await a.path_of("x"), await a.path_of("y")}


async def test_a_mirror_to_a_disk_of_elsewhere_has_ends_that_can_be_fetched(tmp_path):
    async with an_array() as disk, array(tmp_path / "pool") as made:
        await made.volume("v", SIZE)
        await made.api.replica_attach("v", disk.url(), MirrorTerms("async"), name="far")
        (relation,) = await made.all("MSISCSITARGET_StorageSynchronized")
        for end in ("SystemElement", "SyncedElement"):
            assert await made.get(relation[end])
        (entity,) = await made.all("MSISCSITARGET_ReplicationEntity")
        assert entity["ElementName"] == "far"
        for peer in await made.all("MSFT_SMReplicaPeer", STORAGE_MANAGEMENT):
            assert await made.get(peer.path)
        await made.api.replica_detach("far")
