"""Failing over between two pools that are peers, through the engine's API: planned, forced, back, two that serve."""

from __future__ import annotations

import shutil
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from engine.access_state import AccessState
from engine.api import MirrorTerms
from engine.errors import InvalidState, Superseded
from engine.failover import Failovers
from tests.support.engine import PREFIX, Engine, opened
from tests.support.link_proxy import LinkProxy
from tests.unit.daemon.test_peers import (
    LISTEN,
    MIB,
    SIZE,
    _address,
    connected,
    content,
    fill,
    finished,
    holds_lease,
    served,
    synchronized,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


class Two:
    """Two pools, each the other's peer over a proxy of its own. ``a`` has the disk ``v``, ``b`` its replica ``r``."""

    def __init__(self, a: Engine, b: Engine, to_b: LinkProxy, to_a: LinkProxy) -> None:
        self.a = a
        self.b = b
        self.to_b = to_b
        self.to_a = to_a

    def cut(self) -> None:
        for proxy in (self.to_a, self.to_b):
            proxy.refuse = True
            proxy.cut()

    def heal(self) -> None:
        for proxy in (self.to_a, self.to_b):
            proxy.refuse = False


@asynccontextmanager
async def two(tmp_path: Path, mode: str = "sync", **terms) -> AsyncIterator[Two]:
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
        await a.api.volume_create("v", SIZE)
        await a.api.target_create("v")
        await a.api.target_lun_add("v", "v")
        await fill(a, "v", 0, 5 * MIB)
        job = await finished(a, await a.api.replica_create("v", "r", MirrorTerms(mode, **terms), peer="b"))
        assert job.state == "Completed", job
        await known(b)
        yield Two(a, b, to_b, to_a)


async def through(engine: Engine, peer: str, address: str) -> None:
    """Reach a peer by another address."""
    row = replace(engine.peers.row(peer), address=address)
    await engine.peers._put(row)
    engine.peers.client(peer).reconnect()
    await connected(engine, peer)


async def known(engine: Engine) -> None:
    """The replica's side knows its source well enough to take its place."""

    def is_known() -> bool:
        row = engine.replicas.incoming.named("r")
        return row is not None and row.facts != ""

    await until(is_known)


async def done(engine: Engine, job):
    job = await finished(engine, job)
    assert job.state == "Completed", job
    return job.result


def state_of(engine: Engine, device_id: str) -> set[AccessState]:
    return {state for (device, _), state in engine.exports.states.items() if device == device_id}


async def test_a_planned_failover_moves_the_disk_without_loss_and_back(tmp_path: Path):
    async with two(tmp_path) as pools:
        a, b = pools.a, pools.b
        await fill(a, "v", 7 * MIB)
        before, expected = await a.api.volume_show("v"), await content(a, "v")
        result = await done(b, await b.api.replica_failover("r"))
        assert (result["volume"], result["serial"], result["lun"]) == ("r", before.serial, 0)
        assert result["target"] == f"{PREFIX}:r"
        assert await content(b, "r") == expected
        device = b.pool.volume("r").device_id
        assert state_of(a, device) == {AccessState.STANDBY}
        assert state_of(b, device) == {AccessState.ACTIVE_OPTIMIZED}
        assert a.pool.volume("v").read_only
        assert {group for (_, group) in a.exports.states}.isdisjoint({group for (_, group) in b.exports.states})
        await fill(b, "r", 2 * MIB)
        await synchronized(b, "r")
        assert await content(a, "v") == await content(b, "r")
        await known(a)
        result = await done(b, await b.api.replica_failback("r"))
        assert result == {"volume": "r", "peer": "a"}
        after = await a.api.volume_show("v")
        assert (after.serial, after.target, after.read_only) == (before.serial, before.target, False)
        assert state_of(a, device) == {AccessState.ACTIVE_OPTIMIZED}
        assert state_of(b, device) == {AccessState.STANDBY}
        await fill(a, "v", 9 * MIB)
        await synchronized(a, "r")
        assert await content(a, "v") == await content(b, "r")


async def test_what_a_new_replica_needs_to_take_over_comes_with_the_handing_over(tmp_path: Path, monkeypatch):
    async def nothing(*_):
        pass

    async with two(tmp_path) as pools:
        a, b = pools.a, pools.b
        monkeypatch.setattr(Failovers, "_tell_facts", nothing)  # it had no time for that
        await done(b, await b.api.replica_failover("r"))
        await synchronized(b, "r")
        assert a.replicas.incoming.named("r").facts == ""
        await done(b, await b.api.replica_failback("r"))
        await fill(a, "v", 9 * MIB)
        await synchronized(a, "r")
        assert await content(a, "v") == await content(b, "r")


async def test_a_forced_failover_needs_what_only_the_operator_knows(tmp_path: Path):
    async with two(tmp_path, latency_budget_s=1.0) as pools:
        b = pools.b
        await until(lambda: holds_lease(b, "r"))
        pools.cut()
        plan = await b.api.replica_failover_plan("r")
        assert plan.point is not None
        await until(lambda: not holds_lease(b, "r"))
        plan = await b.api.replica_failover_plan("r")
        assert (plan.lossless, plan.reachable, plan.needs) == (False, False, ["--accept-loss", "--fenced"])
        assert plan.age_seconds is not None
        for flags in ({"accept_loss": True}, {"fenced": True}):
            with pytest.raises(InvalidState, match=r"--fenced|--accept-loss"):
                await b.api.replica_failover("r", **flags)
        job = await finished(b, await b.api.replica_failover("r"))
        assert "--fenced" in job.message
        assert b.pool.volume("r").read_only, "nothing has changed"


async def cut_and_failed_over(pools: Two) -> None:
    """``a`` could not be asked: ``b`` is the disk because the operator said so."""
    pools.cut()
    await done(pools.b, await pools.b.api.replica_failover("r", accept_loss=True, fenced=True))


async def test_an_old_source_without_news_of_its_own_follows_by_itself(tmp_path: Path):
    async with two(tmp_path, latency_budget_s=2.0) as pools:
        a, b = pools.a, pools.b
        await until(lambda: holds_lease(b, "r"))
        pools.cut()
        result = await done(b, await b.api.replica_failover("r", fenced=True))
        assert result["lossless"]
        await fill(b, "r", 3 * MIB)
        pools.heal()
        await until(lambda: a.replicas.incoming.named("r") is not None)
        assert (await b.api.replica_show("r")).copy_state == "Failedover"
        await done(b, await b.api.replica_failback("r"))
        assert await content(a, "v") == await content(b, "r")
        await served(a, "v")
        await fill(a, "v", 4 * MIB)


async def test_a_source_that_went_on_alone_is_stopped_and_waits_for_a_decision(tmp_path: Path):
    async with two(tmp_path, latency_budget_s=0.5) as pools:
        a, b = pools.a, pools.b
        pools.cut()
        await fill(a, "v", 2 * MIB)  # acknowledged without the target
        alone = await content(a, "v")
        await cut_and_failed_over(pools)
        await fill(b, "r", 3 * MIB)
        pools.heal()
        await until(lambda: a.pool.volume("v").fence_reason is not None)
        with pytest.raises(Superseded):
            await fill(a, "v", 0)
        device = b.pool.volume("r").device_id
        await until(lambda: state_of(a, device) == {AccessState.UNAVAILABLE})
        await until(lambda: "resolve" in a.replicas.info("r").reason)
        assert a.replicas.incoming.named("r") is None, "nothing is overwritten without being asked"
        with pytest.raises(InvalidState, match="resolve"):
            await a.api.replica_detach("r")
        await a.api.replica_resolve("r", give_way=True)
        kept = a.pool.snapshot(a.pool.volume("v"), "diverged-1")
        view = bytearray(SIZE)
        await kept.read(0, memoryview(view))
        assert bytes(view) == alone
        await done(b, await b.api.replica_failback("r"))
        assert await content(a, "v") == await content(b, "r")
        await served(a, "v")


async def test_the_operator_keeps_the_old_source_and_the_other_stops(tmp_path: Path):
    async with two(tmp_path, latency_budget_s=0.5) as pools:
        a, b = pools.a, pools.b
        pools.cut()
        await fill(a, "v", 2 * MIB)
        await cut_and_failed_over(pools)
        pools.heal()
        await until(lambda: "resolve" in a.replicas.info("r").reason)
        await a.api.replica_resolve("r", serve=True)
        await served(a, "v")  # what the other one said in that very moment is asked about once more
        await fill(a, "v", 6 * MIB)
        alone = await content(a, "v")
        await until(lambda: b.pool.volume("r").fence_reason is not None)
        await until(lambda: "resolve" in b.replicas.info("r").reason)
        await b.api.replica_resolve("r", give_way=True)
        await until(lambda: b.replicas.incoming.named("r") is not None)
        await synchronized(a, "r")
        assert await content(b, "r") == alone == await content(a, "v")


async def test_after_a_restart_a_source_is_not_served_before_its_peer_was_asked(tmp_path: Path):
    async with AsyncExitStack() as stack:
        b = await stack.enter_async_context(opened(tmp_path / "b", peer=LISTEN))
        async with opened(tmp_path / "a", peer=LISTEN) as a:
            await a.api.peer_add("b", (await b.api.peer_invite(name="a")).code)
            await connected(a, "b")
            await a.api.volume_create("v", SIZE, expose=True)
            await finished(a, await a.api.replica_create("v", "r", peer="b"))
            device = a.pool.volume("v").device_id
        to_nowhere = await stack.enter_async_context(LinkProxy.running(("127.0.0.1", 1)))
        async with opened(tmp_path / "a") as a:  # without peers
            assert state_of(a, device) == {AccessState.UNAVAILABLE}
            with pytest.raises(Superseded, match="resolve r --serve"):
                await fill(a, "v", 0)
        del to_nowhere
        async with opened(tmp_path / "a", peer=LISTEN) as a:
            await served(a, "v")
            await until(lambda: state_of(a, device) == {AccessState.ACTIVE_OPTIMIZED})
            await synchronized(a, "r")


async def test_an_asynchronous_replica_gets_the_rest_before_it_is_the_disk(tmp_path: Path):
    async with two(tmp_path, mode="async", rpo_s=60.0) as pools:
        a, b = pools.a, pools.b
        await fill(a, "v", 7 * MIB, 8 * MIB)
        plan = await b.api.replica_failover_plan("r")
        assert plan.reachable
        assert not plan.lossless
        expected = await content(a, "v")
        await done(b, await b.api.replica_failover("r"))
        assert await content(b, "r") == expected
        await fill(b, "r", 0)
        await synchronized(b, "r")
        await done(b, await b.api.replica_failback("r"))
        assert await content(a, "v") == await content(b, "r") != expected


def serving(engine: Engine, volume: str) -> bool:
    """Whether a host could write to the disk there."""
    found = engine.pool.volume(volume)
    return found.fence_reason is None and not found.read_only


def decided(sides: tuple[tuple[Engine, str], ...]) -> Callable[[], bool]:
    return lambda: sum(serving(*side) for side in sides) == 1


def copied_around_transactions(pools: Two, folder: Path, monkeypatch: pytest.MonkeyPatch, copies: list[Path]) -> None:
    """From now on both pools are copied before and after each transaction of a failover."""

    def copied(run):
        async def copying(work):
            for when in ("before", "after"):
                copies.append(folder / f"crash-{len(copies)}")
                for name in ("a", "b"):
                    shutil.copytree(folder / name, copies[-1] / name, ignore=shutil.ignore_patterns("*.sock"))
                if when == "before":
                    found = await run(work)
            return found

        return copying

    for engine in (pools.a, pools.b):
        tables = engine.pool.catalog.failover
        monkeypatch.setattr(tables, "_run", copied(tables._run))


async def test_a_kill_at_any_step_leaves_one_disk_and_the_command_can_be_said_again(tmp_path: Path, monkeypatch):
    """Both pools as they lie there before and after each transaction of a planned failover, opened by other daemons."""
    copies: list[Path] = []
    async with two(tmp_path) as pools:
        expected = await content(pools.a, "v")

        copied_around_transactions(pools, tmp_path, monkeypatch, copies)
        await done(pools.b, await pools.b.api.replica_failover("r"))
        await until(lambda: pools.b.replicas.info("r").copy_state == "Synchronized")
        monkeypatch.undo()
    assert len(copies) == 6, "released, taken over, followed"
    for path in copies:
        async with AsyncExitStack() as stack:
            a = await stack.enter_async_context(opened(path / "a", peer=LISTEN))
            b = await stack.enter_async_context(opened(path / "b", peer=LISTEN))
            assert not (serving(a, "v") and serving(b, "r"))
            await through(a, "b", b.peer_address)
            await through(b, "a", a.peer_address)
            await until(decided(((a, "v"), (b, "r"))))
            if serving(a, "v"):
                await synchronized(a, "r")
            await done(b, await b.api.replica_failover("r"))
            assert serving(b, "r")
            assert not serving(a, "v")
            assert await content(b, "r") == expected


async def test_the_replica_is_a_standby_path_that_becomes_the_way_to_the_disk(tmp_path: Path):
    async with two(tmp_path) as pools:
        a, b = pools.a, pools.b
        await b.api.target_create("path")
        await b.api.target_lun_add("path", "r", standby=True)
        device = a.pool.volume("v").device_id
        assert state_of(b, device) == {AccessState.STANDBY}
        assert {number for (_, number) in a.exports.states}.isdisjoint({number for (_, number) in b.exports.states})
        result = await done(b, await b.api.replica_failover("r"))
        assert (result["target"], result["lun"]) == (f"{PREFIX}:path", 0)
        assert state_of(b, device) == {AccessState.ACTIVE_OPTIMIZED}
        again = await done(b, await b.api.replica_failover("r"))
        assert again == result, "it is done already"


async def test_without_failover_a_source_is_served_at_once_and_its_replica_never_takes_its_place(tmp_path: Path):
    async with two(tmp_path, failover=False) as pools:
        b = pools.b
        assert not holds_lease(b, "r")
        for flags in ({}, {"accept_loss": True, "fenced": True}):
            job = await finished(b, await b.api.replica_failover("r", **flags))
            assert "--no-failover" in job.message
