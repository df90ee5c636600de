"""A real daemon mirrors to somebody else's LUN: tgtd, and another twinvol with CHAP. ``kill -9`` of either side under
writes, and within a first copy; afterwards every byte of both sides is compared."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import socket
import subprocess
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.targets import free_control_port, why_no_tgtd
from tests.integration.test_peers import MIB, Side, _host, _side, synchronized, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SIZE = 32 * MIB
START_S = 30.0
SECRET = "correct horse 1"


class Tgtd:
    """A tgtd with one LUN over a file, that can be killed and started again where it was."""

    def __init__(self, folder: Path) -> None:
        self.backing = folder / "disk.raw"
        with self.backing.open("wb") as file:
            file.truncate(SIZE)
            file.write(os.urandom(MIB))
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.url = f"iscsi://127.0.0.1:{self.port}/iqn.2026-11.org.example:disk/1"
        self._log = (folder / "tgtd.log").open("w", encoding="utf-8")
        self.start()

    def start(self) -> None:
        self._control = str(free_control_port())
        command = ["tgtd", "-f", "-C", self._control, "--iscsi", f"portal=127.0.0.1:{self.port}"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + START_S
        while not self._adm("--op", "show", "--mode", "target"):
            assert self.process.poll() is None, "tgtd ended"
            assert time.monotonic() < deadline, "tgtd did not start"
            time.sleep(0.05)
        new = ("--op", "new", "--tid", "1")
        assert self._adm(*new, "--mode", "target", "-T", "iqn.2026-11.org.example:disk")
        assert self._adm(*new, "--mode", "logicalunit", "--lun", "1", "-b", str(self.backing))
        assert self._adm("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for leftover in (f"socket.{self._control}", f"socket.{self._control}.lock"):
            Path("/var/run/tgtd", leftover).unlink(missing_ok=True)

    def close(self) -> None:
        self.kill()
        self._log.close()

    def _adm(self, *arguments: str) -> bool:
        command = ["tgtadm", "-C", self._control, "--lld", "iscsi", *arguments]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextmanager
def _tgtd(folder: Path) -> Iterator[Tgtd]:
    if reason := why_no_tgtd():
        pytest.skip(reason)
    target = Tgtd(folder)
    try:
        yield target
    finally:
        target.close()


@asynccontextmanager
async def _mirrored(tmp_path: Path, mode: str, *options: str) -> AsyncIterator[tuple[Side, Tgtd]]:
    """A daemon with a volume of which tgtd's LUN is, or becomes, the mirror."""
    with _side(tmp_path / "source") as source, _tgtd(tmp_path) as target:
        await asyncio.to_thread(source.run, "volume", "create", "v", "--size", str(SIZE), "--expose")
        async with _host(source) as disk:
            for at in range(0, SIZE // 2, MIB):
                await disk.write(at, os.urandom(MIB))
        await asyncio.to_thread(
            source.run, "replica", "attach", "v", target.url, "--name", "r", "--mode", mode, *options
        )
        yield source, target


async def equal(source: Side, backing: Path) -> None:
    """Every byte of the file is the volume's."""
    async with _host(source) as disk:
        content = await disk.read(0, SIZE)
    assert await asyncio.to_thread(backing.read_bytes) == content


async def written(source: Side, rng: random.Random, count: int) -> dict[int, bytes]:
    """Writes that a host was told are written."""
    done = {}
    async with _host(source) as disk:
        for _ in range(count):
            at, data = rng.randrange(SIZE // 4096) * 4096, os.urandom(4096)
            await disk.write(at, data)
            done[at] = data
    return done


@pytest.mark.client("tgtd")
async def test_what_hosts_write_is_at_tgtd_after_kill_9_of_either_side(tmp_path: Path):
    rng = random.Random(7)
    async with _mirrored(tmp_path, "sync") as (source, target):
        await equal(source, target.backing)
        for killed in ("tgtd", "daemon", "both"):
            expected = await written(source, rng, 100)
            content = await asyncio.to_thread(target.backing.read_bytes)
            assert all(content[at : at + 4096] == data for at, data in expected.items())
            async with _host(source) as disk:
                some = asyncio.Event()
                writing = asyncio.ensure_future(_keep_writing(disk, rng, some))
                await some.wait()
                if killed != "daemon":
                    await asyncio.to_thread(target.kill)
                if killed != "tgtd":
                    await asyncio.to_thread(source.kill)
                writing.cancel()
                await asyncio.wait([writing])
            if killed == "tgtd":
                await written(source, rng, 20)  # the host gets no error
            else:
                await asyncio.to_thread(source.start)
            if killed != "daemon":
                await asyncio.to_thread(target.start)
            await synchronized(source)
            await equal(source, target.backing)
        assert (await asyncio.to_thread(source.run, "replica", "verify", "r"))["identical"]


async def _keep_writing(disk, rng: random.Random, some: asyncio.Event) -> None:
    """Until it is cancelled, or its daemon killed; ``some`` is set after 20."""
    for number in itertools.count():
        await disk.write(rng.randrange(SIZE // 4096) * 4096, os.urandom(4096))
        if number == 20:
            some.set()


@pytest.mark.client("tgtd")
async def test_a_first_copy_to_tgtd_goes_on_where_it_was(tmp_path: Path):
    async with _mirrored(tmp_path, "sync", "--no-wait") as (source, target):
        await until(source, "replica", "show", "r", is_there=lambda info: info["percent_synced"] > 0)
        await asyncio.to_thread(target.kill)
        await asyncio.to_thread(source.kill)
        await asyncio.to_thread(target.start)
        await asyncio.to_thread(source.start)
        await synchronized(source)
        await equal(source, target.backing)


@pytest.mark.client("tgtd")
async def test_an_asynchronous_mirror_to_tgtd_follows(tmp_path: Path):
    async with _mirrored(tmp_path, "async", "--rpo", "2s") as (source, target):
        await written(source, random.Random(8), 100)
        await asyncio.to_thread(source.kill)
        await asyncio.to_thread(source.start)
        await until(source, "replica", "show", "r", is_there=lambda info: info["lag_seconds"] is not None)
        await asyncio.to_thread(source.run, "replica", "resync", "r")
        await asyncio.to_thread(source.run, "replica", "pause", "r")
        await equal(source, target.backing)


async def test_another_twinvol_with_chap_is_a_disk_too(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text(SECRET, encoding="utf-8")
    secret.chmod(0o600)
    with _side(tmp_path / "source") as source, _side(tmp_path / "target") as target:
        await asyncio.to_thread(source.run, "volume", "create", "v", "--size", str(SIZE), "--expose")
        await written(source, random.Random(9), 100)
        await asyncio.to_thread(target.run, "volume", "create", "v", "--size", str(SIZE), "--expose")
        iqn = "iqn.2026-11.org.twinvol:v"
        chap = ["target", "chap", "set", iqn, "--user", "alice", "--secret-file", str(secret)]
        await asyncio.to_thread(target.run, *chap)
        portal = target.daemon.portal
        arguments = ["replica", "attach", "v", f"iscsi://alice@{portal}/{iqn}/0", "--name", "r", "--mode", "sync"]
        await asyncio.to_thread(source.run, *arguments, "--secret-file", str(secret))
        await written(source, random.Random(10), 100)
        roots = [(await asyncio.to_thread(side.run, "volume", "root", "v"))["root"] for side in (source, target)]
        assert roots[0] == roots[1]
        sessions = (await asyncio.to_thread(target.run, "target", "sessions"))["sessions"]
        assert {(one["header_digest"], one["data_digest"]) for one in sessions} == {(True, True)}
        proof = tmp_path / "proof.json"
        await asyncio.to_thread(source.run, "replica", "proof", "r", "--out", str(proof))
        await asyncio.to_thread(target.run, "proof", "check", str(proof), "--volume", "v")
