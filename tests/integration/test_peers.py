"""Two real daemons that are peers: a first copy, writes of a host, ``kill -9`` of either side, and a link that is cut.

After each, both sides have one hash root (``replica verify``), and what a host was told is written is at the target.
"""

from __future__ import annotations

import asyncio
import os
import random
import stat
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import pytest

from iscsi.initiator.disk import connect
from tests.integration.test_kill9 import check_files
from tests.support.daemon import CommandFailed, Daemon, twinvol
from tests.support.link_proxy import LinkProxy
from tests.support.ports import free_address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

MIB = 1 << 20
SIZE = 64 * MIB
KILLS = 2


class Side:
    """A daemon that can be killed and started again where it was."""

    def __init__(self, pool: Path) -> None:
        self.pool = pool
        self.address = free_address()
        self.daemon = self._start()

    def _start(self) -> Daemon:
        return Daemon.start(self.pool, "--peer", self.address)

    def kill(self) -> None:
        self.daemon.kill()
        check_files(self.pool)

    def start(self) -> None:
        self.daemon = self._start()

    def run(self, *arguments: str, timeout_s: float = 60.0):
        return self.daemon.run(*arguments, timeout_s=timeout_s)


@contextmanager
def _side(pool: Path) -> Iterator[Side]:
    side = Side(pool)
    try:
        yield side
    finally:
        with side.daemon:
            pass


@asynccontextmanager
async def _pair(tmp_path: Path) -> AsyncIterator[tuple[Side, Side, LinkProxy]]:
    """The source's way to the target leads through the proxy; the code goes by a file."""
    with _side(tmp_path / "source") as source, _side(tmp_path / "target") as target:
        host, port = target.address.rsplit(":", 1)
        async with LinkProxy.running((host, int(port))) as proxy:
            code = target.run("peer", "invite", "source", "--address", proxy.address)["code"]
            file = tmp_path / "code"
            file.write_text(code, encoding="utf-8")
            file.chmod(0o600)
            await asyncio.to_thread(source.run, "peer", "add", "target", "--code-file", str(file))
            await until(source, "peer", "list", is_there=lambda answer: answer["peers"][0]["connected"])
            yield source, target, proxy


async def until(side: Side, *arguments: str, is_there) -> None:
    """Ask again until it is so."""
    while not is_there(await asyncio.to_thread(side.run, *arguments)):  # noqa: ASYNC110 - it is another process
        await asyncio.sleep(0.1)


async def synchronized(side: Side) -> None:
    await until(side, "replica", "show", "r", is_there=lambda info: info["copy_state"] == "Synchronized")


async def verified(source: Side, target: Side) -> None:
    """Both sides have one root: as the source says, and as the target does by itself."""
    answer = await asyncio.to_thread(source.run, "replica", "verify", "r")
    assert answer["identical"]
    root = (await asyncio.to_thread(target.run, "volume", "root", "r"))["root"]
    assert root == answer["root"]


@asynccontextmanager
async def _host(side: Side):
    host, port = side.daemon.portal.rsplit(":", 1)
    async with await connect((host, int(port)), "iqn.2026-11.org.twinvol:v", 0) as disk:
        yield disk


async def _volume(source: Side) -> None:
    await asyncio.to_thread(source.run, "volume", "create", "v", "--size", str(SIZE), "--expose")
    async with _host(source) as disk:
        for at in range(0, SIZE // 2, MIB):
            await disk.write(at, os.urandom(MIB))


async def _replica(source: Side, mode: str = "sync") -> None:
    await asyncio.to_thread(source.run, "replica", "create", "v", "r", "--mode", mode, "--peer", "target")


async def test_a_first_copy_and_the_writes_after_it(tmp_path: Path):
    async with _pair(tmp_path) as (source, target, _):
        await _volume(source)
        await _replica(source)
        async with _host(source) as disk:
            for at in range(0, 8 * MIB, 65536):
                await disk.write(at + 4096, os.urandom(4096))
            await disk.flush()
        await verified(source, target)
        pool = tmp_path / "source"
        assert stat.S_IMODE((pool / "peers" / "identity.pem").stat().st_mode) == 0o600
        with pytest.raises(CommandFailed, match="replica"):
            target.run("volume", "delete", "r")


@pytest.mark.slow
async def test_kill_9_of_the_target_under_writes(tmp_path: Path):
    async with _pair(tmp_path) as (source, target, _):
        await _volume(source)
        await _replica(source)
        async with _host(source) as disk:
            for number in range(KILLS):
                for at in range(0, 4 * MIB, 65536):
                    await disk.write(at, os.urandom(4096))
                target.kill()
                for at in range(4 * MIB, 6 * MIB, 65536):
                    await disk.write(at, bytes([number]) * 4096)  # the host gets no error
                target.start()
                await synchronized(source)
                await verified(source, target)


@pytest.mark.slow
async def test_kill_9_of_the_source_under_writes(tmp_path: Path):
    chance = random.Random(4)
    async with _pair(tmp_path) as (source, target, _):
        await _volume(source)
        await _replica(source)
        for number in range(KILLS):
            async with _host(source) as disk:
                written = []
                for _ in range(chance.randrange(20, 200)):
                    at = chance.randrange(SIZE // 4096) * 4096
                    data = os.urandom(8) + bytes([number]) * 4088
                    await disk.write(at, data)
                    written.append((at, data))
                source.kill()
            source.start()
            await synchronized(source)
            await verified(source, target)
            last = dict(written)
            async with _host(source) as disk:
                for at, data in last.items():
                    assert await disk.read(at, 4096) == data


@pytest.mark.slow
async def test_a_first_copy_over_a_link_that_is_cut_and_sides_that_are_killed(tmp_path: Path):
    async with _pair(tmp_path) as (source, target, proxy):
        await _volume(source)
        proxy.cut_after_bytes = 8 * MIB
        await asyncio.to_thread(
            source.run, "replica", "create", "v", "r", "--mode", "sync", "--peer", "target", "--no-wait"
        )
        await until_cut(proxy)
        source.kill()
        source.start()
        proxy.cut_after_bytes = 8 * MIB
        await until_cut(proxy)
        target.kill()
        target.start()
        await synchronized(source)
        await verified(source, target)
        # 32 MiB, and what was under way at three ends: two strips of 4 MiB each, and what waited for the ledger.
        assert proxy.forward_bytes < 32 * MIB + 3 * 24 * MIB


async def until_cut(proxy: LinkProxy) -> None:
    while proxy.cut_after_bytes is not None:  # noqa: ASYNC110 - what ends it is counted in bytes
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("killed", [("source",), ("target",), ("source", "target")], ids="+".join)
async def test_kill_9_within_a_first_copy_sends_nothing_again_that_had_arrived(tmp_path: Path, killed):
    data_bytes = SIZE // 2
    async with _pair(tmp_path) as (source, target, proxy):
        await _volume(source)
        before = proxy.forward_bytes
        proxy.stall_after_bytes = before + data_bytes * 3 // 4
        await asyncio.to_thread(
            source.run, "replica", "create", "v", "r", "--mode", "sync", "--peer", "target", "--no-wait"
        )
        await proxy.stalled.wait()
        sides = [{"source": source, "target": target}[name] for name in killed]
        for side in sides:
            await asyncio.to_thread(side.kill)
        proxy.cut()
        proxy.resume()
        for side in reversed(sides):
            await asyncio.to_thread(side.start)
        await synchronized(source)
        # Of two strips of 4 MiB a part was on its way; everything else was there, flushed or not, recorded or not.
        assert proxy.forward_bytes - before < data_bytes + 2 * 4 * MIB + MIB
        info = await asyncio.to_thread(source.run, "replica", "show", "r")
        assert info["resumed_rounds"] >= 1
        await verified(source, target)


def test_a_code_is_taken_from_stdin_and_never_told(tmp_path: Path):
    with _side(tmp_path / "one") as one:
        done = twinvol("peer", "add", "x", "--code", "tv1.secretsecretsecret", "--pool", str(one.pool))
        assert done.returncode == 2
        assert "secretsecret" not in done.stderr + done.stdout
        assert "secretsecret" not in one.daemon.log.read_text(encoding="utf-8")
