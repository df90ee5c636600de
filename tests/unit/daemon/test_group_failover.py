"""A mirrored group that fails over: all members or none, from one instant, there and back, and after each crash."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from engine.api import MirrorTerms
from engine.errors import InvalidState, Superseded
from tests.support.engine import Engine, opened
from tests.support.link_proxy import LinkProxy
from tests.unit.daemon.test_failover import Two, copied_around_transactions, done, serving, through
from tests.unit.daemon.test_peers import LISTEN, MIB, _address, connected, content, fill, finished, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SIZE = 4 * MIB
MEMBERS = ("x", "y")
THERE = tuple(f"r.{name}" for name in MEMBERS)


@asynccontextmanager
async def two(tmp_path: Path, **terms) -> AsyncIterator[Two]:
    """Pools that are peers: ``a`` has the group ``g`` of ``x`` and ``y``, ``b`` its replica ``r``."""
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(opened(tmp_path / "a", peer=LISTEN))
        b = await stack.enter_async_context(opened(tmp_path / "b", peer=LISTEN))
        to_b = await stack.enter_async_context(LinkProxy.running(_address(b)))
        to_a = await stack.enter_async_context(LinkProxy.running(_address(a)))
        invitation = await b.api.peer_invite(name="a", address=to_b.address)
        await a.api.peer_add("b", invitation.code)
        await connected(a, "b")
        await connected(b, "a")
        await through(b, "a", to_a.address)
        for name in MEMBERS:
            await a.api.volume_create(name, SIZE, expose=True)
            await fill(a, name, 0)
        await a.api.group_create("g", list(MEMBERS))
        await done(a, await a.api.group_replica_create("g", "r", MirrorTerms(**terms), peer="b"))
        await until(lambda: all(b.replicas.incoming.named(name).facts for name in THERE))
        yield Two(a, b, to_b, to_a)


def disks(engine: Engine) -> tuple[str, ...]:
    """The members' volumes at that side."""
    return MEMBERS if engine.pool.path.name == "a" else THERE


def served(engine: Engine) -> list[bool]:
    return [serving(engine, name) for name in disks(engine)]


async def contents(engine: Engine) -> list[bytes]:
    return [await content(engine, name) for name in disks(engine)]


async def synchronized(engine: Engine) -> None:
    await until(lambda: engine.replicas.groups.info("r").copy_state == "Synchronized")


async def equal(pools: Two) -> None:
    async def is_so() -> bool:
        return await contents(pools.a) == await contents(pools.b)

    await until(is_so)


def holds_leases(engine: Engine) -> bool:
    failovers = engine.replicas.failovers
    return failovers.holds_lease(failovers._units.target_named("r", group=True))


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_group_is_handed_over_as_one_and_comes_back(tmp_path: Path, mode: str):
    async with two(tmp_path, mode=mode) as pools:
        a, b = pools.a, pools.b
        for name in MEMBERS:
            await fill(a, name, 2 * MIB)
        before, serials = await contents(a), [(await a.api.volume_show(name)).serial for name in MEMBERS]
        result = await done(b, await b.api.group_replica_failover("r"))
        assert [(each["volume"], each["serial"]) for each in result["members"]] == list(
            zip(THERE, serials, strict=True)
        )
        assert await contents(b) == before
        assert (served(a), served(b)) == ([False, False], [True, True])
        assert result == await done(b, await b.api.group_replica_failover("r")), "it is done already"
        for name in THERE:
            await fill(b, name, 3 * MIB)
        await synchronized(b)
        await done(b, await b.api.group_replica_failback("r"))
        assert (served(a), served(b)) == ([True, True], [False, False])
        assert (await a.api.group_replica_show("r")).source == "g", "the group that it was"
        await fill(a, "y", 0)
        await synchronized(a)
        await equal(pools)


async def test_within_the_leases_nothing_is_lost_and_the_old_sources_follow_by_themselves(tmp_path: Path):
    async with two(tmp_path, latency_budget_s=2.0) as pools:
        a, b = pools.a, pools.b
        await until(lambda: holds_leases(b))
        for name in MEMBERS:
            await fill(a, name, MIB)
        before = await contents(a)
        await until(lambda: holds_leases(b))
        pools.cut()
        result = await done(b, await b.api.group_replica_failover("r", fenced=True))
        assert result["lossless"]
        assert await contents(b) == before
        for name in THERE:
            await fill(b, name, 3 * MIB)
        pools.heal()
        await until(lambda: all(a.replicas.incoming.named(name) is not None for name in THERE))
        await done(b, await b.api.group_replica_failback("r"))
        await equal(pools)
        assert served(a) == [True, True]


async def test_without_leases_the_group_goes_on_from_its_complete_point_and_sources_with_news_wait(tmp_path: Path):
    async with two(tmp_path, latency_budget_s=0.5) as pools:
        a, b = pools.a, pools.b
        pools.cut()
        await fill(a, "x", 2 * MIB)  # one member has news that the other side has not
        await until(lambda: not holds_leases(b))
        alone = await contents(a)
        plan = await b.api.group_replica_failover_plan("r")
        (point,) = await b.api.group_replica_points("r")
        assert (plan.point, plan.needs) == (point.guid, ["--accept-loss", "--fenced"])
        with pytest.raises(InvalidState, match="--accept-loss"):
            await b.api.group_replica_failover("r", fenced=True)
        result = await done(b, await b.api.group_replica_failover("r", fenced=True, accept_loss=True))
        assert (result["lossless"], result["point"]) == (False, point.guid)
        await fill(b, "r.y", 3 * MIB)
        pools.heal()
        await until(lambda: served(a) == [False, False])
        await until(lambda: "resolve" in a.replicas.groups.info("r").reason)
        with pytest.raises(Superseded):
            await fill(a, "y", 0)
        with pytest.raises(InvalidState, match="resolve"):
            await a.api.group_replica_detach("r")
        await a.api.group_replica_resolve("r", give_way=True)
        for name, was in zip(MEMBERS, alone, strict=True):
            view = bytearray(SIZE)
            await a.pool.snapshot(a.pool.volume(name), "diverged-1").read(0, memoryview(view))
            assert bytes(view) == was
        await done(b, await b.api.group_replica_failback("r"))
        await equal(pools)


async def test_the_operator_keeps_the_old_sources_and_the_others_stop(tmp_path: Path):
    async with two(tmp_path, latency_budget_s=0.5) as pools:
        a, b = pools.a, pools.b
        pools.cut()
        await fill(a, "x", 2 * MIB)
        await done(b, await b.api.group_replica_failover("r", fenced=True, accept_loss=True))
        pools.heal()
        await until(lambda: "resolve" in a.replicas.groups.info("r").reason)
        await a.api.group_replica_resolve("r", serve=True)
        await until(lambda: all(served(a)))  # what the others said in that very moment is asked about once more
        alone = await contents(a)
        await until(lambda: served(b) == [False, False])
        await until(lambda: "resolve" in b.replicas.groups.info("r").reason)
        await b.api.group_replica_resolve("r", give_way=True)
        await synchronized(a)
        assert await contents(a) == alone == await contents(b)


async def test_a_member_by_itself_is_refused(tmp_path: Path):
    async with two(tmp_path) as pools:
        for said in ({}, {"fenced": True, "accept_loss": True}):
            with pytest.raises(InvalidState, match="twinvol group replica"):
                await pools.b.api.replica_failover("r.x", **said)
        job = await finished(pools.b, await pools.b.api.group_replica_failover("r"))
        assert job.state == "Completed"


async def test_a_kill_at_any_step_leaves_all_members_at_one_side(tmp_path: Path, monkeypatch):
    """Both pools as they lie there before and after each transaction of a planned failover, opened by other daemons."""
    copies: list[Path] = []
    async with two(tmp_path) as pools:
        expected = await contents(pools.a)

        copied_around_transactions(pools, tmp_path, monkeypatch, copies)
        await done(pools.b, await pools.b.api.group_replica_failover("r"))
        await synchronized(pools.b)
        monkeypatch.undo()
    assert len(copies) == 6, "released, taken over, followed: one transaction each, for all members"
    for path in copies:
        async with AsyncExitStack() as stack:
            a = await stack.enter_async_context(opened(path / "a", peer=LISTEN))
            b = await stack.enter_async_context(opened(path / "b", peer=LISTEN))
            assert not (any(served(a)) and any(served(b)))
            await through(a, "b", b.peer_address)
            await through(b, "a", a.peer_address)
            await until(lambda a=a, b=b: sorted([served(a), served(b)]) == [[False, False], [True, True]])
            if all(served(a)):
                await synchronized(a)
            await done(b, await b.api.group_replica_failover("r"))
            assert (served(a), served(b)) == ([False, False], [True, True])
            assert await contents(b) == expected


async def test_a_replica_and_a_replica_group_of_one_name_are_tended_each(tmp_path: Path):
    async with two(tmp_path) as pools:
        a = pools.a
        await a.api.volume_create("z", SIZE)
        await done(a, await a.api.replica_create("z", "r", peer="b"))
        assert a.replicas.outgoing.link("r") is not None
        assert a.replicas.link_of("r") not in a.replicas.groups.links_of("r")
        await a.api.group_replica_fracture("r")
        await until(lambda: not any(pools.b.pool.volume(name).read_only for name in THERE))
        assert pools.b.pool.volume("r").read_only, "another one was fractured"
        await a.api.group_replica_detach("r")
        assert a.replicas.outgoing.link("r") is not None, "the replica is tended no more"
        await a.api.replica_fracture("r")
        await until(lambda: not pools.b.pool.volume("r").read_only)
