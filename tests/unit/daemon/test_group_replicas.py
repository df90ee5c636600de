"""Mirrored groups through the engine's API: made, shown, fractured, across restarts, here and at a peer."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

import pytest

from engine.api import MirrorTerms
from engine.catalog import MirrorRow
from engine.errors import AlreadyExists, InUse, InvalidState, NotFound, NotSupported, OutOfSpace, PeerUnreachable
from engine.mirror_terms import USUAL
from tests.support.engine import opened
from tests.unit.daemon.test_peers import LISTEN, connected, content, fill, finished, pair, served, until

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
SIZE = 8 * MIB


async def group(engine, *names: str) -> None:
    for name in names:
        await engine.api.volume_create(name, SIZE)
        await fill(engine, name, 0, 3 * MIB)
    await engine.api.group_create("g", list(names))


async def mirrored(engine, terms=USUAL, **options) -> None:
    job = await finished(engine, await engine.api.group_replica_create("g", "r", terms, **options))
    assert job.state == "Completed", job


async def synchronized(engine) -> None:
    async def is_so() -> bool:
        return (await engine.api.group_replica_show("r")).copy_state == "Synchronized"

    await until(is_so)


async def equal(source, target) -> bool:
    return all([await content(target, f"r.{name}") == await content(source, name) for name in ("a", "b")])


@pytest.mark.parametrize("mode", ["sync", "async", "adaptive"])
async def test_a_group_is_mirrored_as_one(tmp_path: Path, mode: str):
    async with opened(tmp_path / "pool") as engine:
        await group(engine, "a", "b")
        await mirrored(engine, MirrorTerms(mode, rpo_s=None if mode == "sync" else 1.0))
        info = await engine.api.group_replica_show("r")
        assert (info.source, info.group, info.members, info.copy_state) == ("g", "r", ["r.a", "r.b"], "Synchronized")
        assert [each.name for each in await engine.api.group_replica_list()] == ["r"]
        members = await engine.api.replica_list()
        assert [(each.name, each.source, each.group) for each in members] == [("r.a", "a", "r"), ("r.b", "b", "r")]
        assert {each.copy_state for each in members} == {"Synchronized"}
        await fill(engine, "a", 5 * MIB)
        await fill(engine, "b", 6 * MIB)

        async def has_arrived() -> bool:
            return await equal(engine, engine)

        await until(has_arrived)
        job = await finished(engine, await engine.api.group_replica_verify("r"))
        assert job.result["identical"]
        assert len(job.result["proofs"]) == 2
        (point,) = await engine.api.group_replica_points("r")
        assert [shown.guid for shown in await engine.api.replica_points("r.a")] == [point.guid]
        shown = await engine.api.replica_expose("r.b", point.guid)
        assert shown.target is not None
        with pytest.raises(InUse, match="unexpose"):
            await engine.api.group_replica_detach("r")
        await engine.api.replica_unexpose("r.b", point.guid)
        await engine.api.group_replica_detach("r")
        assert await engine.api.replica_list() == []
        await fill(engine, "r.a", 0)


async def test_what_is_done_to_a_member_is_done_to_its_group(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await group(engine, "a", "b")
        await mirrored(engine)
        for call in ("replica_pause", "replica_resync", "replica_detach", "replica_promote", "replica_verify"):
            with pytest.raises(InvalidState, match="replica group r"):
                await getattr(engine.api, call)("r.a")
        with pytest.raises(InUse, match="mirrored by r"):
            await engine.api.group_remove("g", ["a"])
        with pytest.raises(InUse, match="mirrored by r"):
            await engine.api.group_delete("g")
        with pytest.raises(InUse):
            await engine.api.volume_delete("a", force=True)
        with pytest.raises(AlreadyExists):
            await engine.api.group_replica_create("g", "r")
        with pytest.raises(NotSupported):
            await engine.api.group_replica_create("g", "s", MirrorTerms(failed_copy_stops_host_io=True))
        with pytest.raises(NotFound):
            await engine.api.group_replica_create("nobody", "s")
        with pytest.raises(NotFound):
            await engine.api.group_replica_show("s")


async def test_nothing_is_left_of_a_group_whose_name_is_taken(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await group(engine, "a", "b")
        await engine.api.volume_create("r.b", SIZE)
        with pytest.raises(AlreadyExists):
            await engine.api.group_replica_create("g", "r")
        assert await engine.api.replica_list() == []
        assert [info.name for info in await engine.api.volume_list()] == ["a", "b", "r.b"]


@pytest.mark.parametrize("peer", [None, "target"])
async def test_nothing_is_left_of_a_group_of_which_a_member_is_not_recorded(tmp_path: Path, monkeypatch, peer):
    async with pair(tmp_path) as (source, target, _):
        await group(source, "a", "b")
        put_mirror = source.pool.catalog.put_mirror

        async def put(row) -> None:
            if row.name == "r.b":
                raise OutOfSpace("no room for a row")
            await put_mirror(row)

        monkeypatch.setattr(source.pool.catalog, "put_mirror", put)
        with pytest.raises(OutOfSpace):
            await source.api.group_replica_create("g", "r", peer=peer)
        assert await source.api.replica_list() == []
        assert [info.name for info in await source.api.volume_list()] == ["a", "b", "v"]

        async def is_gone() -> bool:
            await source.replicas.tend()
            return not await target.api.volume_list()

        await until(is_gone)


async def test_a_fracture_keeps_one_instant_and_a_resync_takes_the_targets_back(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await group(engine, "a", "b")
        await mirrored(engine)
        info = await engine.api.group_replica_fracture("r")
        assert info.copy_state == "Fractured"
        await fill(engine, "r.a", 2 * MIB)
        await fill(engine, "b", 4 * MIB)
        assert (await finished(engine, await engine.api.group_replica_resync("r"))).state == "Completed"
        assert await equal(engine, engine)
        assert engine.pool.volume("r.a").read_only
        await engine.api.group_replica_pause("r")
        await fill(engine, "a", 7 * MIB)
        assert (await finished(engine, await engine.api.group_replica_resume("r"))).state == "Completed"
        assert await equal(engine, engine)


async def test_a_member_that_is_resized_takes_its_target_along(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await group(engine, "a", "b")
        await mirrored(engine)
        await engine.api.volume_resize("a", 2 * SIZE)
        await engine.pool.volume("a").write(2 * SIZE - 4096, memoryview(os.urandom(4096)))
        await synchronized(engine)
        assert await equal(engine, engine)


async def test_a_mirrored_group_goes_on_after_a_restart(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await group(engine, "a", "b")
        await mirrored(engine)
    async with opened(tmp_path / "pool") as engine:
        await fill(engine, "a", 5 * MIB)
        await synchronized(engine)
        assert await equal(engine, engine)
        assert (await engine.api.group_replica_show("r")).written_bytes <= 2 * MIB


async def test_members_without_their_group_are_forgotten_at_start(tmp_path: Path):
    """The daemon ended between the members' rows and the group's."""
    async with opened(tmp_path / "pool") as engine:
        await group(engine, "a", "b")
        await mirrored(engine)
        await engine.api.group_replica_pause("r")
        row = engine.replicas.groups._rows["r"]
        await engine.pool.catalog._run(lambda db: db.execute("DELETE FROM mirror_groups WHERE name = ?", (row.name,)))
    async with opened(tmp_path / "pool") as engine:
        assert await engine.api.replica_list() == []
        assert not engine.pool.volume("r.a").read_only


async def test_a_group_at_a_peer_tells_it_which_point_is_whole(tmp_path: Path):
    async with pair(tmp_path) as (source, target, proxy):
        await group(source, "a", "b")
        await mirrored(source, peer="target")
        assert await equal(source, target)
        (point,) = await target.api.group_replica_points("r")
        assert point.members == ["r.a", "r.b"]
        assert point.guid == (await source.api.group_replica_points("r"))[0].guid
        for member in point.members:
            assert point.guid in [shown.guid for shown in await target.api.replica_points(member)]
        proxy.refuse = True
        proxy.cut()
        await fill(source, "a", 5 * MIB)
        assert (await source.api.group_replica_show("r")).copy_state == "Broken"
        proxy.refuse = False
        await synchronized(source)
        assert await equal(source, target)
        (later,) = await target.api.group_replica_points("r")
        assert later.guid != point.guid
        await source.api.group_replica_detach("r")
        with pytest.raises(NotFound):
            await target.api.group_replica_points("r")
        assert await target.api.replica_list() == []


async def test_a_group_at_a_peer_goes_on_after_restarts_of_either_side(tmp_path: Path):
    async with opened(tmp_path / "target", peer=LISTEN) as target:
        code, address = (await target.api.peer_invite(name="source")).code, target.peer_address
        async with opened(tmp_path / "source", peer=LISTEN) as source:
            await source.api.peer_add("target", code)
            await connected(source, "target")
            await group(source, "a", "b")
            await mirrored(source, MirrorTerms("async", rpo_s=1.0), peer="target")
            before = (await target.api.group_replica_points("r"))[0].guid
        async with opened(tmp_path / "source", peer=LISTEN) as source:
            await served(source, "b")
            await fill(source, "b", 5 * MIB)

            async def has_arrived() -> bool:
                return await equal(source, target)

            await until(has_arrived)
    async with opened(tmp_path / "target", peer=address) as target:
        (point,) = await target.api.group_replica_points("r")
        assert point.guid != before


@pytest.mark.parametrize("crashed", [False, True])
async def test_nothing_is_left_at_a_peer_of_a_group_that_was_not_made(tmp_path: Path, crashed: bool):
    async with pair(tmp_path) as (source, target, _):
        await group(source, "a", "b")
        if crashed:  # between the members' rows and the group's
            source_id, replicas = source.pool.volume("a").volume_id, source.replicas
            target_id = await replicas.create_at_peer("r.a", source.pool.volume("a"), "target", "sync")
            await replicas.table.put(MirrorRow("r.a", source_id, target_id, "sync", {"group": "r"}, "target"))
            await replicas.groups.restore()
        else:
            await target.api.volume_create("r.b", SIZE)
            with pytest.raises(AlreadyExists):
                await source.api.group_replica_create("g", "r", peer="target")
        assert await source.api.replica_list() == []

        async def is_gone() -> bool:
            await source.replicas.tend()
            return "r.a" not in [info.name for info in await target.api.volume_list()]

        await until(is_gone)
        assert await target.api.replica_list() == []
        assert await source.pool.catalog.peers.makings() == {}


async def test_a_member_is_not_failed_over_by_itself(tmp_path: Path):
    """Neither by asking its source nor by force: the others would be of another instant. It goes on being mirrored."""
    async with pair(tmp_path) as (source, target, _):
        await group(source, "a", "b")
        await mirrored(source, peer="target")
        for said in ({}, {"fenced": True}, {"fenced": True, "accept_loss": True}):
            with pytest.raises(InvalidState, match="replica group r"):
                await target.api.replica_failover("r.a", **said)
        with pytest.raises(InvalidState, match="replica group r"):
            await target.api.replica_failover_plan("r.a")
        await fill(source, "a", 5 * MIB)
        await synchronized(source)
        await until(lambda: equal(source, target))


async def test_a_point_of_some_members_is_none_of_the_group_though_nothing_differs(tmp_path: Path):
    """The round is interrupted when one member has switched, and the other's part, which brings nothing, is lost."""
    async with opened(tmp_path / "pool") as engine:
        await group(engine, "a", "b")
        await mirrored(engine, MirrorTerms("async", rpo_s=1.0))
        await engine.api.group_replica_pause("r")
        await fill(engine, "a", 5 * MIB)
        (before,) = await engine.api.group_replica_points("r")
        link = engine.replicas.groups.get("r").members[1].link
        real = link.commit_staging

        async def lost(_guid: str) -> None:
            await link.abort_staging()
            link.commit_staging = real
            raise PeerUnreachable("the target's power failed")

        link.commit_staging = lost
        await engine.api.group_replica_resume("r")
        await until(lambda: link.commit_staging == real)
        await synchronized(engine)
        *_, point = await engine.api.group_replica_points("r")
        assert point.guid != before.guid
        assert await equal(engine, engine)


async def test_a_round_that_failed_is_tried_again_long_before_the_next_is_due(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await group(engine, "a", "b")
        await mirrored(engine, MirrorTerms("async", rpo_s=3600.0))
        await engine.api.group_replica_pause("r")
        await fill(engine, "a", 5 * MIB)
        link = engine.replicas.groups.get("r").members[1].link
        real = link.connect

        async def unreachable() -> None:
            link.connect = real
            raise PeerUnreachable("not yet")

        link.connect = unreachable
        await engine.api.group_replica_resume("r")
        await until(lambda: link.connect == real)
        await synchronized(engine)
        assert await equal(engine, engine)


async def test_a_peer_cannot_tell_of_more_groups_than_it_has_replicas(tmp_path: Path):
    async with pair(tmp_path) as (source, target, _):
        await group(source, "a", "b")
        await mirrored(source, peer="target")
        (point,) = await target.api.group_replica_points("r")
        ids = [row.target_id for row in source.replicas.table.rows.values()]
        client = source.peers.client("target")
        for replicas in (ids, ids[:1], [str(uuid.uuid4())]):
            told = {"group": str(uuid.uuid4()), "name": "s", "guid": point.guid, "at_us": 1, "replicas": replicas}
            with pytest.raises((InvalidState, NotFound)):
                await client.request("group_point", **told)
        with pytest.raises(NotFound):
            await target.api.group_replica_points("s")
        assert len(await target.pool.catalog.mirror_groups.points()) == 1
