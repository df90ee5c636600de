"""Two pools that are peers, through the engine's API: enrolment, replicas, a link that breaks, and who is refused."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import random
import socket
import ssl
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from engine import replica_runs
from engine.api import MirrorTerms
from engine.errors import (
    AlreadyExists,
    InUse,
    InvalidArgument,
    InvalidState,
    NotFound,
    NotSupported,
    PeerUnreachable,
    PermissionDenied,
)
from engine.links.local import LocalLink
from engine.peers import server
from engine.peers.frames import MAX_HELLO_BYTES, FrameType, Kind, encode, encode_json, preamble
from engine.peers.identity import CURRENT, NEXT, Identity, check_certificate, client_context
from engine.peers.server import MAX_STRANGERS_OF_A_HOST
from engine.peers.serving import MAX_READING
from tests.support.engine import Engine, opened
from tests.support.link_proxy import LinkProxy
from tests.support.ports import free_address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MIB = 1 << 20
SIZE = 24 * MIB
LISTEN = "127.0.0.1:0"


def _address(engine: Engine) -> tuple[str, int]:
    host, port = engine.peer_address.rsplit(":", 1)
    return host, int(port)


@asynccontextmanager
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Engine, Engine, LinkProxy]]:
    """A source and a target that are peers; the source's way to the target leads through the proxy."""
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(opened(tmp_path / "source", peer=LISTEN))
        target = await stack.enter_async_context(opened(tmp_path / "target", peer=LISTEN))
        proxy = await stack.enter_async_context(LinkProxy.running(_address(target)))
        invitation = await target.api.peer_invite(name="source", address=proxy.address)
        await source.api.peer_add("target", invitation.code)
        await connected(source, "target")
        await source.api.volume_create("v", SIZE)
        yield source, target, proxy


async def until(condition) -> None:
    """Wait until ``condition()``, or what it returns when awaited, is true."""
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return
        await asyncio.sleep(0.01)


async def connected(engine: Engine, peer: str) -> None:
    async def is_connected() -> bool:
        return next(info.connected for info in await engine.api.peer_list() if info.name == peer)

    await until(is_connected)


async def fill(engine: Engine, volume: str, *offsets: int) -> None:
    for offset in offsets:
        await engine.pool.volume(volume).write(offset, memoryview(os.urandom(MIB)))


async def content(engine: Engine, volume: str) -> bytes:
    view = bytearray(engine.pool.volume(volume).size_bytes)
    await engine.pool.volume(volume).read(0, memoryview(view))
    return bytes(view)


def fingerprint_of_peer(engine: Engine, peer: str) -> str:
    return check_certificate(engine.peers.row(peer).certificate)


async def finished(engine: Engine, job):
    while job.state_number not in (7, 8, 10):
        job = await engine.api.job_wait(job.job, after_version=job.version)
    return job


async def served(engine: Engine, volume: str) -> None:
    """After a start its peer is asked first who is the disk."""
    await until(lambda: engine.pool.volume(volume).fence_reason is None)


async def synchronized(engine: Engine, name: str) -> None:
    await until(lambda: engine.replicas.info(name).copy_state == "Synchronized")


async def replica(source: Engine, name: str = "r", mode: str = "sync") -> None:
    job = await finished(source, await source.api.replica_create("v", name, MirrorTerms(mode), peer="target"))
    assert job.state == "Completed", job


async def test_both_sides_know_each_other_after_one_code(tmp_path: Path):
    async with pair(tmp_path) as (source, target, _):
        (there,) = await source.api.peer_list()
        (here,) = await target.api.peer_list()
        assert (there.name, here.name) == ("target", "source")
        assert here.address == source.peer_address
        await connected(target, "source")
        assert await source.api.peer_ping("target") > 0
        assert await target.api.peer_ping("source") > 0


async def test_a_replica_at_a_peer_follows_every_write(tmp_path: Path):
    async with pair(tmp_path) as (source, target, _):
        await fill(source, "v", 0, 5 * MIB, 23 * MIB)
        await replica(source)
        info = await source.api.replica_show("r")
        assert (info.source, info.target, info.peer, info.copy_state) == ("v", "target:r", "target", "Synchronized")
        volume = source.pool.volume("v")
        await volume.write(MIB, memoryview(os.urandom(4096)))
        await volume.write(2 * MIB + 512, memoryview(os.urandom(3 * MIB)), fua=True)
        await volume.discard(0, 65536)
        await volume.write_zeroes(5 * MIB, 4096)
        await volume.flush()
        assert await content(target, "r") == await content(source, "v")
        assert (await finished(source, await source.api.replica_verify("r"))).result["identical"]
        with pytest.raises(InUse):
            await target.api.volume_delete("r", force=True)
        with pytest.raises(InUse):
            await target.api.volume_resize("r", 2 * SIZE)
        assert target.pool.volume("r").read_only


async def test_the_target_shows_the_replica_as_its_source_says(tmp_path: Path):
    async with pair(tmp_path) as (source, target, proxy):
        await replica(source)
        await synchronized(target, "r")
        info = await target.api.replica_show("r")
        assert (info.source, info.target, info.peer) == ("source:v", "r", "source")
        with pytest.raises(InvalidState, match="its source"):
            await target.api.replica_pause("r")
        proxy.refuse = True
        proxy.cut()
        await until(lambda: target.replicas.info("r").copy_state == "Broken")
        assert "not connected" in target.replicas.info("r").reason


async def test_a_cut_link_breaks_the_mirror_and_it_comes_back_by_itself(tmp_path: Path):
    async with pair(tmp_path) as (source, target, proxy):
        await replica(source)
        proxy.refuse = True
        proxy.cut()
        await fill(source, "v", 3 * MIB)  # the host is not kept waiting for long, and gets no error
        assert (await source.api.replica_show("r")).copy_state == "Broken"
        assert (await source.api.status()).health == "degraded"
        await fill(source, "v", 7 * MIB)
        before = proxy.forward_bytes
        proxy.refuse = False
        await synchronized(source, "r")
        assert await content(target, "r") == await content(source, "v")
        assert proxy.forward_bytes - before < 6 * MIB, "only what changed was sent"


async def test_what_the_ledger_has_is_not_sent_again(tmp_path: Path):
    async with pair(tmp_path) as (source, target, proxy):
        await fill(source, "v", *range(0, SIZE, MIB))
        proxy.cut_after_bytes = 14 * MIB
        job = await source.api.replica_create("v", "r", peer="target")
        await finished(source, job)
        assert proxy.cuts == 1
        await synchronized(source, "r")
        assert await content(target, "r") == await content(source, "v")
        info = await source.api.replica_show("r")
        assert info.resumed_rounds == 1
        # At most the strips that were under way when it was cut, two of 4 MiB, were sent twice.
        assert proxy.forward_bytes < SIZE + 9 * MIB + MIB


async def test_a_mirror_has_a_limit_of_its_own(tmp_path: Path):
    """It takes no less time than the limit says, however fast the machine is; another mirror is not kept back."""
    async with pair(tmp_path) as (source, _, _):
        await replica(source)
        info = await source.api.replica_limit("r", 16 * MIB)
        assert info.rate_bytes_s == 16 * MIB
        await source.api.replica_fracture("r")
        await fill(source, "v", *range(0, SIZE, MIB))
        began = time.monotonic()
        await finished(source, await source.api.replica_resync("r"))
        assert time.monotonic() - began >= SIZE / (16 * MIB) - 0.25  # what was not used before is saved up for so long
        link = source.replicas.outgoing.link("r")
        assert link is not None
        assert link.client.bucket.rate_bytes_s == 0
        assert (await source.api.replica_limit("r", 0)).rate_bytes_s == 0
        with pytest.raises(InvalidArgument):
            await source.api.replica_limit("r", 1000)
        await finished(source, await source.api.replica_create("v", "here"))
        limited = MirrorTerms(rate_bytes_s=64 * MIB)
        await finished(source, await source.api.replica_create("v", "later", limited, peer="target"))
        assert (await source.api.replica_show("later")).rate_bytes_s == 64 * MIB
        link = source.replicas.outgoing.link("later")
        assert link is not None
        assert link.bucket.rate_bytes_s == 64 * MIB
        for refused in (
            source.api.replica_limit("here", MIB),
            source.api.replica_mode("here", limited),
            source.api.replica_create("v", "there", limited),
        ):
            with pytest.raises(NotSupported):
                await refused
        assert {volume.name for volume in await source.api.volume_list()} == {"v", "here"}


async def test_small_changes_travel_as_the_blocks_that_they_are(tmp_path: Path):
    async with pair(tmp_path) as (source, target, proxy):
        await fill(source, "v", *range(0, SIZE, MIB))
        await replica(source)
        await source.api.replica_fracture("r")
        volume = source.pool.volume("v")
        for offset in range(0, SIZE, 256 * 1024):  # in 96 leaves
            await volume.write(offset + 8192, memoryview(os.urandom(4096)))
        await volume.write(SIZE - 512, memoryview(os.urandom(512)))
        before = proxy.forward_bytes
        assert (await finished(source, await source.api.replica_resync("r"))).state == "Completed"
        assert proxy.forward_bytes - before < 97 * 4096 * 1.25
        assert await content(target, "r") == await content(source, "v")
        assert (await finished(source, await source.api.replica_verify("r"))).result["identical"]


@pytest.mark.parametrize(("seed", "chunk_bytes"), [(1, 65536), (2, 65536), (3, 262144)])
async def test_any_changes_on_both_sides_end_equal(tmp_path: Path, seed: int, chunk_bytes: int):
    """Writes, zeroes and discards of any sectors; the end of the volume is within a block."""
    rng = random.Random(seed)
    size = 4 * MIB + 3 * 65536 + 1536
    async with pair(tmp_path) as (source, target, _):
        await source.api.volume_create("w", size, chunk_bytes=chunk_bytes)

        async def change(volume) -> None:
            for _ in range(rng.randrange(1, 40)):
                length = min(rng.choice((512, 4096, 65536, 300_032)), size)
                offset = rng.randrange((size - length) // 512 + 1) * 512
                match rng.randrange(4):
                    case 0:
                        await volume.discard(offset, length)
                    case 1:
                        await volume.write_zeroes(offset, length)
                    case _:
                        await volume.write(offset, memoryview(rng.randbytes(length)))
            await volume.write(size - 512, memoryview(rng.randbytes(512)))

        await change(source.pool.volume("w"))
        job = await finished(source, await source.api.replica_create("w", "x", peer="target"))
        assert job.state == "Completed", job
        for number in range(4):
            await source.api.replica_fracture("x")
            await change(source.pool.volume("w"))
            if number % 2:
                await change(target.pool.volume("x"))
            assert (await finished(source, await source.api.replica_resync("x"))).state == "Completed"
            assert await content(target, "x") == await content(source, "w")
        assert (await finished(source, await source.api.replica_verify("x"))).result["identical"]


async def test_without_a_common_point_only_the_blocks_that_differ_travel(tmp_path: Path):
    """What was found to differ has no common point any more: the two sides are compared by hash tree."""
    async with pair(tmp_path) as (source, target, proxy):
        await fill(source, "v", *range(0, SIZE, MIB))
        await replica(source)
        for offset in (0, 5 * MIB + 4096, SIZE - 4096):  # behind the mirror's back
            await target.pool.volume("r").head.write(offset, memoryview(os.urandom(4096)))
        await target.pool.volume("r").head.write(9 * MIB, memoryview(os.urandom(MIB)))
        assert (await finished(source, await source.api.replica_verify("r"))).state == "Exception"
        before = proxy.forward_bytes
        assert (await finished(source, await source.api.replica_resync("r"))).state == "Completed"
        assert proxy.forward_bytes - before < MIB + 128 * 1024
        assert await content(target, "r") == await content(source, "v")
        info = await source.api.replica_show("r")
        assert info.identical_bytes == SIZE - MIB - 3 * 4096


async def test_a_first_copy_gets_on_over_a_link_that_breaks_again_and_again(tmp_path: Path):
    async with pair(tmp_path) as (source, target, proxy):
        await fill(source, "v", *range(0, SIZE, MIB))
        proxy.cut_after_bytes = proxy.cut_again_bytes = 5 * MIB
        await source.api.replica_create("v", "r", peer="target")
        await synchronized(source, "r")
        assert proxy.cuts > 3
        assert await content(target, "r") == await content(source, "v")


async def test_a_stalled_link_holds_a_write_back_no_longer_than_the_budget(tmp_path: Path):
    async with pair(tmp_path) as (source, target, proxy):
        job = await source.api.replica_create("v", "r", MirrorTerms(latency_budget_s=0.2), peer="target")
        await finished(source, job)
        proxy.stall()
        await fill(source, "v", MIB)
        info = await source.api.replica_show("r")
        assert info.copy_state == "Broken"
        assert "0.15 s" in info.reason, "the rest of the budget is for the end of the target's lease"
        proxy.resume()
        await synchronized(source, "r")
        assert await content(target, "r") == await content(source, "v")


def holds_lease(target: Engine, name: str) -> bool:
    row = target.replicas.incoming.named(name)
    assert row is not None
    replica = target.replicas.incoming.replica_of(row)
    assert replica is not None
    return replica.lease.held(target.pool.env.clock.boottime())


async def test_the_target_holds_a_lease_while_it_is_synchronous_and_the_source_waits_for_its_end(tmp_path: Path):
    async with pair(tmp_path) as (source, target, proxy):
        await finished(
            source, await source.api.replica_create("v", "r", MirrorTerms(latency_budget_s=1.0), peer="target")
        )
        await until(lambda: holds_lease(target, "r"))
        proxy.stall()
        await fill(source, "v", MIB)
        assert not holds_lease(target, "r"), "a host was acknowledged without the target"
        proxy.resume()
        await synchronized(source, "r")
        await until(lambda: holds_lease(target, "r"))
        await source.api.replica_fracture("r")
        assert not holds_lease(target, "r"), "DEMOTE was acknowledged"


async def test_an_asynchronous_replica_never_holds_a_lease(tmp_path: Path):
    async with pair(tmp_path) as (source, target, _):
        await replica(source, mode="async")
        await synchronized(source, "r")
        assert not source.replicas.running("r").figures.is_exact
        assert not holds_lease(target, "r")


async def test_the_target_restarts_and_the_mirror_goes_on(tmp_path: Path):
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(opened(tmp_path / "source", peer=LISTEN))
        address = free_address()
        async with opened(tmp_path / "target", peer=address) as target:
            code = (await target.api.peer_invite(name="source")).code
            await source.api.peer_add("target", code)
            await connected(source, "target")
            await source.api.volume_create("v", SIZE)
            await replica(source)
        await fill(source, "v", MIB)
        assert (await source.api.replica_show("r")).copy_state == "Broken"
        async with opened(tmp_path / "target", peer=address) as target:
            await synchronized(source, "r")
            assert await content(target, "r") == await content(source, "v")
            assert target.pool.volume("r").read_only


async def test_the_source_restarts_and_the_mirror_goes_on(tmp_path: Path):
    async with opened(tmp_path / "target", peer=LISTEN) as target:
        code = (await target.api.peer_invite(name="source")).code
        async with opened(tmp_path / "source", peer=LISTEN) as source:
            await source.api.peer_add("target", code)
            await connected(source, "target")
            await source.api.volume_create("v", SIZE)
            await replica(source)
        async with opened(tmp_path / "source", peer=LISTEN) as source:
            await served(source, "v")
            await fill(source, "v", MIB)
            await synchronized(source, "r")
            assert await content(target, "r") == await content(source, "v")


async def test_many_mirrors_share_a_connection(tmp_path: Path):
    async with pair(tmp_path) as (source, target, proxy):
        before = proxy.connections
        for number in range(4):
            await source.api.volume_create(f"v{number}", SIZE)
            await fill(source, f"v{number}", MIB * number)
        jobs = [await source.api.replica_create(f"v{n}", f"r{n}", peer="target") for n in range(4)]
        for job in jobs:
            assert (await finished(source, job)).state == "Completed"
        for number in range(4):
            assert await content(target, f"r{number}") == await content(source, f"v{number}")
        assert proxy.connections - before <= 8, "bulk connections only"


async def test_asynchronous_mirrors_go_to_peers_too(tmp_path: Path):
    async with pair(tmp_path) as (source, target, _):
        await fill(source, "v", MIB)
        job = await source.api.replica_create("v", "r", MirrorTerms("async", rpo_s=1.0), peer="target")
        assert (await finished(source, job)).state == "Completed"
        await fill(source, "v", 9 * MIB)
        expected = await content(source, "v")

        async def has_arrived() -> bool:
            return await content(target, "r") == expected

        await until(has_arrived)
        points = await target.api.replica_points("r")
        shown = await target.api.replica_expose("r", points[-1].guid)
        assert shown.target is not None


async def test_fracture_gives_the_target_to_its_users_and_resync_takes_it_back(tmp_path: Path):
    async with pair(tmp_path) as (source, target, _):
        await replica(source)
        await source.api.replica_fracture("r")
        assert not target.pool.volume("r").read_only
        await fill(target, "r", 2 * MIB)
        await fill(source, "v", 4 * MIB)
        assert (await finished(source, await source.api.replica_resync("r"))).state == "Completed"
        assert target.pool.volume("r").read_only
        assert await content(target, "r") == await content(source, "v")


async def test_detach_leaves_an_ordinary_volume(tmp_path: Path):
    async with pair(tmp_path) as (source, target, _):
        await fill(source, "v", MIB)
        await replica(source)
        expected = await content(source, "v")
        await source.api.replica_detach("r")
        await until(lambda: target.replicas.incoming.named("r") is None)
        assert await content(target, "r") == expected
        await fill(target, "r", 0)
        assert target.pool.volume("r").head.store.snapshots() == []
        assert source.pool.volume("v").head.store.snapshots() == []
        await source.api.peer_remove("target")


async def test_detaching_from_a_peer_that_is_away_ends_it_here_and_later_there(tmp_path: Path):
    async with pair(tmp_path) as (source, target, proxy):
        await replica(source)
        proxy.refuse = True
        proxy.cut()
        await until(lambda: source.replicas.info("r").copy_state == "Broken")
        await source.api.replica_detach("r")
        assert source.pool.volume("v").head.store.snapshots() == []
        assert target.pool.volume("r").read_only
        await target.api.replica_detach("r")
        assert not target.pool.volume("r").read_only


async def test_names_that_are_taken_there_are_refused(tmp_path: Path):
    async with pair(tmp_path) as (source, target, _):
        await target.api.volume_create("taken", MIB)
        with pytest.raises(AlreadyExists):
            await source.api.replica_create("v", "taken", peer="target")
        assert await source.api.replica_list() == []
        assert await target.api.replica_list() == []
        with pytest.raises(NotFound):
            await source.api.replica_create("v", "r", peer="nobody")


async def test_a_peer_reaches_nothing_but_its_own_replicas(tmp_path: Path):
    async with pair(tmp_path) as (source, target, _):
        await target.api.volume_create("private", SIZE)
        await replica(source)
        client = source.peers.client("target")
        private = target.pool.volume("private").volume_id
        with pytest.raises(InUse, match="cascade"):
            await target.api.replica_attach("r", "private")
        for op in ("connect", "abort_staging", "detach"):
            with pytest.raises(NotFound):
                await client.request(op, replica=private, connection=0)
        with pytest.raises(NotFound):
            await client.read(replica=private, point=None, offset=0, length=4096)


async def test_a_replica_is_not_mirrored_on(tmp_path: Path):
    """What a mirror writes is not seen by another mirror of its target, which would call itself Synchronized."""
    async with pair(tmp_path) as (source, target, _):
        await replica(source)
        await finished(source, await source.api.replica_create("v", "here"))
        with pytest.raises(InUse, match="cascade"):
            await source.api.replica_create("here", "there", peer="target")
        with pytest.raises(InUse, match="cascade"):
            await target.api.replica_create("r", "on")
        with pytest.raises(InUse, match="cascade"):
            await target.api.replica_create("r", "back", peer="source")
        assert [info.name for info in await target.api.volume_list()] == ["r"]


async def test_long_answers_are_made_a_few_at_a_time(tmp_path: Path, monkeypatch):
    async with pair(tmp_path) as (source, target, _):
        await fill(source, "v", 0)
        await replica(source)
        (point,) = source.replicas.points("r")
        client, names = (
            source.peers.client("target"),
            {"replica": source.replicas.table.target_id("r"), "point": point.guid},
        )
        session = target.peers._server._sessions["source"]
        entered, go_on, point_of = [0], asyncio.Event(), LocalLink.point

        async def held(link, guid):
            entered[0] += 1
            await go_on.wait()
            return await point_of(link, guid)

        monkeypatch.setattr(LocalLink, "point", held)
        reads = [asyncio.create_task(client.read(**names, offset=0, length=MIB)) for _ in range(4 * MAX_READING)]
        await until(lambda: len(session._tasks) >= len(reads))
        await client.ping()  # other requests are answered meanwhile
        assert entered == [MAX_READING]
        go_on.set()
        found = await asyncio.gather(*reads)
        assert {len(data) for data in found} == {MIB + 16 * 16}


async def test_a_source_ends_though_its_target_never_answers(tmp_path: Path, monkeypatch):
    """Its process is there, and says so; its disk is not."""
    monkeypatch.setattr(replica_runs, "REMOTE_END_S", 0.01)
    mended, abort = asyncio.Event(), LocalLink.abort_staging

    async def stuck(link):
        await mended.wait()
        await abort(link)

    async with opened(tmp_path / "target", peer=LISTEN) as target:
        async with opened(tmp_path / "source", peer=LISTEN) as source:
            await source.api.peer_add("target", (await target.api.peer_invite()).code)
            await connected(source, "target")
            await source.api.volume_create("v", SIZE)
            monkeypatch.setattr(LocalLink, "abort_staging", stuck)
            await source.api.replica_create("v", "r", peer="target")
            await until(lambda: source.replicas.running("r").figures.rounds)
        mended.set()


async def test_a_late_request_of_an_old_connection_is_refused(tmp_path: Path):
    async with pair(tmp_path) as (source, _target, _):
        await replica(source)
        link = source.replicas.outgoing.link("r")
        assert link is not None
        old = link._connection
        await source.api.replica_pause("r")
        await source.api.replica_resume("r")
        await synchronized(source, "r")
        with pytest.raises(InvalidState):
            await link.client.request("flush", replica=str(link.replica_id), connection=old)


async def test_a_code_is_good_once_and_not_for_ever(tmp_path: Path):
    async with AsyncExitStack() as stack:
        one, two, three = [
            await stack.enter_async_context(opened(tmp_path / name, peer=LISTEN)) for name in ("one", "two", "three")
        ]
        code = (await one.api.peer_invite()).code
        await two.api.peer_add("one", code)
        with pytest.raises(PermissionDenied):
            await three.api.peer_add("one", code)
        await one.api.peer_remove((await one.api.peer_list())[0].name)
        expired = (await one.api.peer_invite(lifetime_s=1e-6)).code
        with pytest.raises(PermissionDenied):
            await three.api.peer_add("one", expired)
        with pytest.raises(InvalidArgument):
            await three.api.peer_add("one", "tv1.nonsense")
        with pytest.raises(InvalidArgument, match="itself"):
            await one.api.peer_add("me", (await one.api.peer_invite()).code)


async def test_enrolling_again_after_a_lost_answer_finds_it_done(tmp_path: Path):
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(opened(tmp_path / n, peer=LISTEN)) for n in ("one", "two")]
        code = (await one.api.peer_invite(name="two")).code
        await two.api.peer_add("one", code)
        await two.api.peer_remove("one")  # as if the answer had never come
        await two.api.peer_add("one", code)
        assert len(await one.api.peer_list()) == 1
        await connected(two, "one")


async def test_a_removed_peer_does_not_come_back_by_the_code_that_it_used(tmp_path: Path):
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(opened(tmp_path / n, peer=LISTEN)) for n in ("one", "two")]
        code = (await one.api.peer_invite(name="two")).code
        await two.api.peer_add("one", code)
        await one.api.peer_remove("two")
        await two.api.peer_remove("one")
        with pytest.raises(PermissionDenied, match="used"):
            await two.api.peer_add("one", code)
        assert await one.api.peer_list() == []


async def test_a_peer_that_is_removed_while_it_is_greeted_is_not_served(tmp_path: Path):
    async with pair(tmp_path) as (source, target, _):
        await connected(target, "source")
        greet, removed = target.peers.greet, asyncio.Event()

        async def greet_and_remove(peer, fingerprint, hello):
            answer = await greet(peer, fingerprint, hello)
            if not removed.is_set():
                await target.api.peer_remove(peer)
                removed.set()
            return answer

        target.peers.greet = greet_and_remove
        connect = source.peers.client("target")._connect
        source.peers.client("target")._task.cancel()  # it tries once, by this test
        with suppress(PermissionDenied, PeerUnreachable):
            (await connect()).abort(PeerUnreachable("the test is over"))
        assert removed.is_set()
        assert not target.peers.is_served("source")


async def test_an_impostor_at_the_address_does_not_get_the_secret(tmp_path: Path):
    async with AsyncExitStack() as stack:
        one, two, impostor = [
            await stack.enter_async_context(opened(tmp_path / n, peer=LISTEN)) for n in ("one", "two", "impostor")
        ]
        code = (await one.api.peer_invite()).code
        await impostor.api.peer_invite()  # has an identity of its own
        with pytest.raises(PermissionDenied, match="who made the invitation"):
            await two.api.peer_add("one", code, address=impostor.peer_address)
        assert await impostor.api.peer_list() == []
        await two.api.peer_add("one", code)


async def test_a_removed_peer_is_cut_off_at_once(tmp_path: Path):
    async with pair(tmp_path) as (source, target, _):
        await replica(source)
        with pytest.raises(InUse):
            await target.api.peer_remove("source")
        with pytest.raises(InUse):
            await source.api.peer_remove("target")
        await target.api.peer_remove("source", force=True)
        await until(lambda: source.replicas.info("r").copy_state == "Broken")
        with pytest.raises(PeerUnreachable):
            await source.api.peer_ping("target")
        await fill(source, "v", MIB)


@pytest.mark.parametrize("restarted", [False, True], ids=["at once", "after a restart"])
async def test_mirrors_to_a_peer_that_was_removed_go_on_when_it_is_a_peer_again(tmp_path: Path, restarted: bool):
    async with AsyncExitStack() as stack:
        target = await stack.enter_async_context(opened(tmp_path / "target", peer=LISTEN))
        source = await stack.enter_async_context(opened(tmp_path / "source", peer=LISTEN))
        await source.api.peer_add("target", (await target.api.peer_invite(name="source")).code)
        await connected(source, "target")
        await source.api.volume_create("v", SIZE)
        await replica(source)
        await source.api.peer_remove("target", force=True)
        await fill(source, "v", MIB)
        if restarted:
            await stack.aclose()
            target = await stack.enter_async_context(opened(tmp_path / "target", peer=LISTEN))
            source = await stack.enter_async_context(opened(tmp_path / "source", peer=LISTEN))
            assert (await source.api.replica_show("r")).copy_state == "Invalid"
        else:
            assert (await source.api.replica_show("r")).copy_state == "Broken"
        await source.api.peer_add("target", (await target.api.peer_invite()).code)
        await synchronized(source, "r")
        assert await content(target, "r") == await content(source, "v")


async def test_a_rotation_changes_the_certificate_under_running_mirrors(tmp_path: Path):
    async with pair(tmp_path) as (source, target, _):
        await replica(source)
        for engine, peer, other in ((source, "source", target), (target, "target", source)):
            fingerprint = await engine.api.peer_rotate()
            folder = engine.pool.path / "peers"
            await until(lambda folder=folder: not (folder / NEXT).exists())
            assert Identity.load(folder / CURRENT).fingerprint == fingerprint
            await until(lambda other=other, peer=peer, wanted=fingerprint: fingerprint_of_peer(other, peer) == wanted)
            await connected(source, "target")
            await synchronized(source, "r")
        await fill(source, "v", MIB)
        assert await content(target, "r") == await content(source, "v")


async def test_a_stranger_with_a_certificate_of_his_own_is_refused(tmp_path: Path):
    async with pair(tmp_path) as (_, target, _proxy):
        stranger = Identity.make(tmp_path / "stranger" / CURRENT)
        pinned = Identity.load(target.pool.path / "peers" / CURRENT).certificate
        context = client_context(stranger, pinned)

        def attempt(kind: Kind) -> bytes:
            with socket.create_connection(_address(target), 10) as sock:
                sock.sendall(preamble(kind))
                with contextlib.suppress(ssl.SSLError, ConnectionError), context.wrap_socket(sock) as tls:
                    tls.sendall(encode(FrameType.HELLO, 0, encode_json({})))
                    return tls.recv(1)
                return b""

        for kind in (Kind.CONTROL, Kind.BULK):
            assert await asyncio.to_thread(attempt, kind) == b""


GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"TVPEER\x02C" + bytes(64),  # another version
    b"TVPEER\x01Z" + bytes(64),  # an unknown kind
    b"TVPEER\x01C" + b"\x00" * 4096,  # no TLS
    b"TVPEER\x01B" + b"\x16\x03\x01\xff\xff" + b"\xff" * 4096,  # a broken handshake
    b"TVPEE",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
async def test_garbage_ends_its_connection_and_nothing_else(tmp_path: Path, garbage: bytes):
    async with opened(tmp_path / "pool", peer=LISTEN) as engine:
        reader, writer = await asyncio.open_connection(*_address(engine))
        writer.write(garbage)
        writer.write_eof()
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        await engine.api.peer_invite()


async def test_an_endless_hello_is_refused_at_its_header(tmp_path: Path):
    async with opened(tmp_path / "pool", peer=LISTEN) as engine:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

        def attempt() -> bytes:
            with socket.create_connection(_address(engine), 10) as sock:
                sock.sendall(preamble(Kind.ENROL))
                with context.wrap_socket(sock) as tls:
                    head = encode(FrameType.HELLO)[:4] + (MAX_HELLO_BYTES + 1).to_bytes(4, "big") + bytes(8)
                    tls.sendall(head)
                    return tls.recv(1)

        with suppress(ssl.SSLError, ConnectionError):
            assert await asyncio.to_thread(attempt) == b""


async def test_a_stranger_who_says_a_byte_now_and_then_is_cut_off(tmp_path: Path, monkeypatch):
    """As a bulk connection, which a blocking socket serves."""
    monkeypatch.setattr(server, "HANDSHAKE_S", 0.5)
    async with opened(tmp_path / "one", peer=LISTEN) as engine:
        await engine.api.peer_invite()
        reader, writer = await asyncio.open_connection(*_address(engine))
        writer.write(preamble(Kind.BULK) + bytes((22, 3, 1, 255, 0)))  # a TLS record of 65280 bytes begins
        with suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b"\0")
                await writer.drain()
                await asyncio.sleep(0.02)
                with suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(100), 0.02)
        writer.close()


async def test_strangers_of_one_address_are_counted(tmp_path: Path):
    async with opened(tmp_path / "pool", peer=LISTEN) as engine:
        held = [await asyncio.open_connection(*_address(engine)) for _ in range(MAX_STRANGERS_OF_A_HOST)]
        reader, writer = await asyncio.open_connection(*_address(engine))
        with suppress(ConnectionError):
            assert await reader.read() == b"", "one more is closed at once"
        for _, each in [*held, (reader, writer)]:
            each.close()


async def test_spoilt_bytes_on_the_way_are_found_and_sent_again(tmp_path: Path):
    async with pair(tmp_path) as (source, target, proxy):
        await replica(source)
        proxy.spoil_next = True
        await fill(source, "v", MIB)
        await synchronized(source, "r")
        assert await content(target, "r") == await content(source, "v")


async def test_a_full_target_breaks_the_mirror_and_it_goes_on_when_there_is_room(tmp_path: Path):
    async with pair(tmp_path) as (source, target, _):
        await fill(source, "v", *range(0, SIZE, MIB))
        space = await target.api.pool_space()
        limit = space.used_bytes + 12 * MIB
        await target.api.pool_limit(quota_bytes=limit, reserve_bytes=None, warn_percent=99)
        job = await finished(source, await source.api.replica_create("v", "r", peer="target"))
        assert job.state != "Completed"
        info = await source.api.replica_show("r")
        assert info.copy_state == "Broken"
        assert info.reason
        await fill(source, "v", 0)  # the source goes on
        await target.api.pool_limit(quota_bytes=None, reserve_bytes=None, warn_percent=99)
        await synchronized(source, "r")
        assert await content(target, "r") == await content(source, "v")


async def test_a_replica_that_its_target_gave_up_is_broken_with_the_reason(tmp_path: Path):
    async with pair(tmp_path) as (source, target, _):
        await replica(source)
        await target.api.replica_detach("r")
        await fill(source, "v", MIB)
        info = await source.api.replica_show("r")
        assert info.copy_state == "Broken"
        assert "replica for this peer" in info.reason
        await source.api.replica_detach("r")
        assert source.pool.volume("v").head.store.snapshots() == []
        assert not target.pool.volume("r").read_only


async def test_a_limit_slows_copies_down_and_stays(tmp_path: Path):
    async with pair(tmp_path) as (source, _target, _):
        with pytest.raises(InvalidArgument):
            await source.api.peer_limit("target", 1000)
        info = await source.api.peer_limit("target", 8 * MIB)
        assert info.rate_bytes_s == 8 * MIB
        await fill(source, "v", *range(0, 12 * MIB, MIB))
        started = time.monotonic()
        await replica(source)
        assert time.monotonic() - started > 1.0, "12 MiB at 8 MiB a second, less what was saved up"
