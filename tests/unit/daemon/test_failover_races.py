"""Failovers that meet something else in the same moment: an answer that is old, an operator of the other side, a source
that still talks, a third pool."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from engine.errors import InvalidState, NotFound, PeerUnreachable
from engine.lineage import LineageEntry
from engine.mirror_terms import MirrorTerms
from tests.support.engine import opened
from tests.unit.daemon.test_failover import cut_and_failed_over, done, serving, two
from tests.unit.daemon.test_peers import LISTEN, MIB, connected, content, fill, finished, until

if TYPE_CHECKING:
    from pathlib import Path


async def held_answer(failovers, monkeypatch):
    """The next answer to ``standing`` stays on its way until the second event is set; the first one says that it is."""
    real, on_its_way, arrive = failovers._request, asyncio.Event(), asyncio.Event()

    async def request(unit, op, **fields):
        answer = await real(unit, op, **fields)
        if op == "standing" and not on_its_way.is_set():
            on_its_way.set()
            await arrive.wait()
        return answer

    monkeypatch.setattr(failovers, "_request", request)
    return on_its_way, arrive


async def test_an_answer_from_before_the_release_does_not_take_it_back(tmp_path: Path, monkeypatch):
    async with two(tmp_path) as pools:
        a, b = pools.a, pools.b
        on_its_way, arrive = await held_answer(a.replicas.failovers, monkeypatch)
        await on_its_way.wait()
        failovers = a.replicas.failovers
        request = failovers._request

        async def lost(unit, op, **fields):
            answer = await request(unit, op, **fields)
            if op == "promote":
                pools.cut()
                raise PeerUnreachable("the answer was lost")
            return answer

        monkeypatch.setattr(failovers, "_request", lost)
        with pytest.raises(PeerUnreachable):
            await a.replicas.failovers.give("r")
        assert serving(b, "r")
        assert not serving(a, "v")
        served = []
        unfence = a.pool.volume("v").unfence
        monkeypatch.setattr(a.pool.volume("v"), "unfence", lambda: (served.append(serving(b, "r")), unfence()))
        arrive.set()
        for _ in range(20):
            await asyncio.sleep(0)
        await a.replicas.failovers._know(a.pool.volume("v").volume_id)
        await a.pool.catalog.failover.releases()
        await a.pool.catalog.failover.releases()
        assert not served, "an old answer has lifted the fence while the other side is the disk"
        pools.heal()
        await until(lambda: a.replicas.incoming.named("r") is not None)


async def test_handing_over_does_not_end_a_fence_that_another_one_is_the_reason_of(tmp_path: Path, monkeypatch):
    """The operator of the other side forces it in the middle."""
    async with two(tmp_path) as pools:
        a = pools.a
        volume = a.pool.volume("v")
        mine = await a.replicas.failovers._know(volume.volume_id)
        theirs = [*mine, LineageEntry(mine[-1].number + 1, "11111111-1111-4111-8111-111111111111", 1.0, None, True)]
        mirror = a.replicas.running("r")
        unit = a.replicas.failovers._units.source("r")
        assert unit is not None

        async def bring_all(reason):
            a.replicas.failovers._fence(unit, theirs)  # as ``standing`` does, in the step in which it is heard
            raise InvalidState("replica r", "out of reach", "one that is not")

        monkeypatch.setattr(mirror, "bring_all", bring_all)
        with pytest.raises(InvalidState):
            await a.replicas.failovers.give("r")
        assert volume.fence_reason is not None, "it serves, and another one does as well"


async def test_what_the_source_tells_while_it_is_replaced_does_not_make_a_replica_again(tmp_path: Path, monkeypatch):
    async with two(tmp_path) as pools:
        b = pools.b
        replica = b.replicas.incoming.replica_of(b.replicas.incoming.named("r"))
        assert replica is not None
        facts = replica.row.facts.replace('"chap": false', '"chap": true')
        tables, told = b.pool.catalog.failover, []
        take_over = tables.take_over

        async def taking_over(*args, **kwargs):
            told.append(asyncio.ensure_future(b.replicas.failovers.facts(replica, facts)))
            told.append(asyncio.ensure_future(b.replicas.incoming.protect(replica, fractured=True)))
            with pytest.raises(InvalidState):
                await replica.connect()
            with pytest.raises(InvalidState), replica.working(None):
                pass
            return await take_over(*args, **kwargs)

        monkeypatch.setattr(tables, "take_over", taking_over)
        pools.cut()
        await done(b, await b.api.replica_failover("r", fenced=True, accept_loss=True))
        await asyncio.wait(told)
        assert b.replicas.incoming.named("r") is None
        assert await b.pool.catalog.peers.targets() == []


async def test_a_replica_that_somebody_looks_at_is_not_rolled_back_for_a_failover_that_is_refused(tmp_path: Path):
    async with two(tmp_path) as pools:
        a, b = pools.a, pools.b
        await fill(a, "v", 9 * MIB)
        before = await content(b, "r")
        pools.cut()
        replica = b.replicas.incoming.replica_of(b.replicas.incoming.named("r"))
        assert replica is not None
        await b.replicas.incoming._change(replica, whole_on="another boot")  # its power was lost since
        await b.api.target_create("look")
        await b.api.target_lun_add("look", "r")
        job = await finished(b, await b.api.replica_failover("r", fenced=True, accept_loss=True))
        assert "remove that LUN first" in job.message
        assert await content(b, "r") == before


async def test_what_users_wrote_to_a_fractured_replica_is_not_promoted(tmp_path: Path):
    async with two(tmp_path) as pools:
        a, b = pools.a, pools.b
        expected = await content(a, "v")
        await a.api.replica_fracture("r")
        await until(lambda: not b.pool.volume("r").read_only)
        await fill(b, "r", 9 * MIB)
        pools.cut()
        result = await done(b, await b.api.replica_failover("r", fenced=True, accept_loss=True))
        assert not result["lossless"]
        assert await content(b, "r") == expected


async def test_of_two_replicas_one_answers_and_the_other_is_the_disk(tmp_path: Path):
    """Three pools: what the third one answers says nothing of the second one."""
    async with two(tmp_path) as pools, opened(tmp_path / "c", peer=LISTEN) as c:
        a, b = pools.a, pools.b
        invitation = await c.api.peer_invite(name="a", address=c.peer_address)
        await a.api.peer_add("c", invitation.code)
        await connected(a, "c")
        await done(a, await a.api.replica_create("v", "r2", peer="c"))
        volume = a.pool.volume("v")
        served = []
        unfence = volume.unfence
        await cut_and_failed_over(pools)
        volume.unfence = lambda: (served.append(serving(b, "r")), unfence())
        pools.heal()
        await until(lambda: volume.volume_id in a.replicas.failovers._heard)
        unit = a.replicas.failovers._units.source("r2")
        third = a.replicas.failovers._asked[unit.key]
        for _ in range(2):  # it is asked again
            at, third.session = third.at, None
            a.replicas.failovers._wake.set()
            await until(lambda at=at: third.at != at and third.session is not None)
        await a.replicas.failovers._ask(unit, third)
        assert not served, "the source serves, and its other replica is the disk"
        assert not serving(a, "v")
        assert a.replicas.remote_row("r") is not None, "it does not follow by itself with another one to feed"
        await a.api.replica_resolve("r", give_way=True)
        assert a.replicas.incoming.named("r") is not None
        assert a.replicas.remote_row("r2") is None, "nothing is fed from what follows"
        assert c.replicas.incoming.named("r2") is None
        assert serving(b, "r")


async def test_a_source_in_doubt_does_not_hand_over_what_another_replica_may_be_the_disk_of(tmp_path: Path):
    """After a restart one peer has answered, so that its mirror runs; the other one may be the disk, unheard."""
    async with two(tmp_path) as pools, opened(tmp_path / "c", peer=LISTEN) as c:
        a, b = pools.a, pools.b
        invitation = await c.api.peer_invite(name="a", address=c.peer_address)
        await a.api.peer_add("c", invitation.code)
        await connected(a, "c")
        await connected(c, "a")
        await done(a, await a.api.replica_create("v", "r2", peer="c"))
        await known_facts(c, "r2")
        pools.cut()
        await done(b, await b.api.replica_failover("r", fenced=True, accept_loss=True))
        failovers, volume = a.replicas.failovers, a.pool.volume("v")
        failovers._stop_serving(failovers._units.source("r"), "its peers have not been asked yet")  # as after a start
        with pytest.raises(InvalidState):
            await failovers.give("r2")
        assert serving(b, "r")
        assert volume.fence_reason is not None, "a refusal has lifted the fence: two are the disk"
        await finished(c, await c.api.replica_failover("r2"))
        assert volume.fence_reason is not None
        assert c.replicas.incoming.named("r2") is not None, "two are the disk"


async def test_other_terms_do_not_bring_back_a_mirror_whose_source_follows_meanwhile(tmp_path: Path, monkeypatch):
    async with two(tmp_path) as pools:
        a, b = pools.a, pools.b
        failovers = a.replicas.failovers
        follow, at_it, go_on = failovers._follow, asyncio.Event(), asyncio.Event()

        async def follows(*args):
            at_it.set()
            await go_on.wait()
            await follow(*args)

        monkeypatch.setattr(failovers, "_follow", follows)
        job = await b.api.replica_failover("r")
        await at_it.wait()
        change = asyncio.create_task(a.api.replica_mode("r", MirrorTerms("async")))
        await asyncio.wait([change], timeout=0.05)  # it has got as far as it can
        go_on.set()
        with pytest.raises((InvalidState, NotFound)):
            await change
        await done(b, job)
        assert a.replicas.remote_row("r") is None, "a replica is the source of what it follows"
        assert await a.pool.catalog.mirrors() == []
        assert serving(b, "r")


async def test_a_fenced_source_takes_no_other_terms(tmp_path: Path):
    async with two(tmp_path) as pools:
        failovers = pools.a.replicas.failovers
        failovers._stop_serving(failovers._units.source("r"), "its peers have not been asked yet")
        with pytest.raises(InvalidState, match="asked"):
            await pools.a.api.replica_mode("r", MirrorTerms("async"))
        assert pools.a.replicas.info("r").mode == "sync"


async def known_facts(engine, name: str) -> None:
    await until(lambda: bool(engine.replicas.incoming.named(name).facts))


async def test_of_two_replicas_one_is_handed_the_disk_and_the_other_attached_there_by_what_differs(tmp_path: Path):
    async with two(tmp_path) as pools, opened(tmp_path / "c", peer=LISTEN) as c:
        a, b = pools.a, pools.b
        for engine, name in ((a, "a"), (b, "b")):
            invitation = await c.api.peer_invite(name=name, address=c.peer_address)
            await engine.api.peer_add("c", invitation.code)
            await connected(engine, "c")
        await done(a, await a.api.replica_create("v", "r2", peer="c"))
        expected = await content(a, "v")
        await done(b, await b.api.replica_failover("r"))
        assert serving(b, "r")
        assert not serving(a, "v")
        assert a.replicas.remote_row("r2") is None, "nothing is fed from what follows"
        assert c.replicas.incoming.named("r2") is None
        assert await content(c, "r2") == expected
        await fill(b, "r", 9 * MIB)
        await c.api.peer_offer("b", "r2")
        await done(b, await b.api.replica_attach("r", "r2", peer="c"))
        assert await content(c, "r2") == await content(b, "r")
        assert b.replicas.info("r2").written_bytes <= 2 * MIB, "what is equal is not sent"
        await until(lambda: b.replicas.info("r").copy_state == "Synchronized")
        assert await content(a, "v") == await content(b, "r")


async def test_two_that_wait_for_a_decision_do_not_wait_for_each_other_nor_both_yield(tmp_path: Path, monkeypatch):
    async with two(tmp_path) as pools:
        a, b = pools.a, pools.b
        await cut_and_failed_over(pools)
        for engine, name in ((a, "v"), (b, "r")):
            monkeypatch.setattr(engine.replicas.failovers, "_look", nothing)
            engine.pool.volume(name).fence("waits")
        pools.heal()
        await connected(a, "b")
        await connected(b, "a")
        both = [engine.api.replica_resolve("r", give_way=True) for engine in (a, b)]
        found = await asyncio.wait_for(asyncio.gather(*both, return_exceptions=True), 20)
        assert [type(each) for each in found] == [InvalidState, InvalidState]


async def nothing(_row):
    return None
