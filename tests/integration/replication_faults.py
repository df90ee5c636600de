"""The faults that a mirror must survive, on two real daemons and a link that misbehaves, from one seed.

    python -m tests.integration.replication_faults --seed 1 --kills 500 --disconnects 100

prints a table: what was done, how often, what was checked after each, and what failed. One after the other, for each
mode of a mirror to a peer: ``kill -9`` of either side or both, under writes and between them; links that are cut,
stall or refuse; bits that are spoilt on the way; a target without room; rot in the target's file; garbage from
strangers. Before all that, a first copy whose link is cut again and again.

After each fault the mirror must be Synchronized again by itself, within ``RECOVERY_S``; then

    content   ``replica verify`` says that both sides are identical
    host      every block that a host was told is written reads back at the source; one in flight is old or new
    files     after a kill: ``twinvol check`` on every file of that pool
    told      while the fault lasts the state says why

Not played here, because a process cannot do it to a host without root: a clock that jumps, and power loss. Those are
``tests/simulation/replica_world.py`` and ``tests/crash_images``. Certificates and endless frames have a test each in
``tests/unit/daemon/test_peers.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine.api import MirrorTerms
from engine.errors import EngineError, PeerUnreachable
from iscsi.initiator import InitiatorError
from iscsi.initiator.disk import IscsiDisk, connect
from iscsi.wire.errors import ProtocolError
from tests.integration.test_kill9 import check_files
from tests.support.daemon import Daemon
from tests.support.link_proxy import LinkProxy
from tests.support.ports import free_address
from twinvol.api.client import open_api
from twinvol.api.frames import DaemonUnreachable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from engine.api import EngineApi, JobInfo, ReplicaInfo

MIB = 1 << 20
SIZE = 32 * MIB
BLOCK = 4096
CUT_BYTES = 5 * MIB // 4
RECOVERY_S = 120.0
IQN = "iqn.2026-11.org.twinvol:v"
MODES = {"sync": {}, "async": {"rpo_s": 1.0}, "adaptive": {"rpo_s": 2.0, "hold_down_s": 0.5}}
LOST = (InitiatorError, ProtocolError, EngineError, DaemonUnreachable, OSError)


@dataclass
class Row:
    """One line of the table."""

    count: int = 0
    checks: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    longest_s: float = 0.0


class Side:
    """A daemon that comes back at its own address."""

    def __init__(self, pool: Path) -> None:
        self.pool = pool
        self.address = free_address()
        self.daemon: Daemon | None = None

    async def start(self) -> None:
        self.daemon = await asyncio.to_thread(Daemon.start, self.pool, "--peer", self.address)

    async def kill(self) -> None:
        assert self.daemon is not None
        await asyncio.to_thread(self.daemon.kill)
        await asyncio.to_thread(check_files, self.pool)

    @contextlib.asynccontextmanager
    async def api(self) -> AsyncIterator[EngineApi]:
        """Once it answers: the socket is there a moment after the disks."""
        while True:
            try:
                async with open_api(self.pool) as api:
                    await api.peer_list()
                    yield api
                    return
            except DaemonUnreachable:
                assert self.daemon is not None
                assert self.daemon.process.poll() is None, "the daemon ended by itself"
                await asyncio.sleep(0.05)


class Faults:
    """See the module."""

    def __init__(self, seed: int, source: Side, target: Side, proxy: LinkProxy) -> None:
        self.rng = random.Random(seed)
        self.source = source
        self.target = target
        self.proxy = proxy
        self.rows: dict[str, Row] = {}
        self.written: dict[int, set[bytes]] = {}
        """What each block may hold: what a host was told is there, and what it was not told about since."""
        self.mode = ""

    # --- hosts ------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def disk(self, iqn: str = IQN) -> AsyncIterator[IscsiDisk]:
        assert self.source.daemon is not None
        host, port = self.source.daemon.portal.rsplit(":", 1)
        async with await connect((host, int(port)), iqn, 0) as disk:
            yield disk

    async def write(self, until: Callable[[int], bool]) -> None:
        """Write blocks here and there, four at a time, until ``until(blocks written)``, or the daemon is gone."""
        done = 0

        async def lane(disk) -> None:
            nonlocal done
            while not until(done):
                at = self.rng.randrange(SIZE // BLOCK)
                if at in busy:
                    continue
                busy.add(at)
                data = os.urandom(BLOCK)
                self.written.setdefault(at, {bytes(BLOCK)}).add(data)
                await disk.write(at * BLOCK, data)
                self.written[at] = {data}
                busy.discard(at)
                done += 1

        busy: set[int] = set()
        with contextlib.suppress(*LOST):
            async with self.disk() as disk:
                results = await asyncio.gather(*(lane(disk) for _ in range(4)), return_exceptions=True)
                for result in results:
                    if isinstance(result, BaseException) and not isinstance(result, LOST):
                        raise result

    async def host_check(self) -> None:
        async with self.disk() as disk:
            for at, allowed in sorted(self.written.items()):
                data = await disk.read(at * BLOCK, BLOCK)
                assert data in allowed, f"block {at} does not hold what a host was told is written"
                self.written[at] = {data}

    # --- what holds after each ----------------------------------------------------------------------------------------

    async def shown(self, is_so: Callable[[ReplicaInfo], object], limit_s: float = RECOVERY_S, name: str = "r") -> None:
        """Ask for the replica until it is so."""
        deadline = time.monotonic() + limit_s
        async with self.source.api() as api:
            while not is_so(info := await api.replica_show(name)):
                assert time.monotonic() < deadline, f"still {info.copy_state}: {info.reason}"
                await asyncio.sleep(0.05)

    async def verified(self, name: str = "r") -> None:
        """Raises PeerUnreachable."""
        async with self.source.api() as api:
            if self.mode != "sync":
                await ended(api, await api.replica_resync(name))
            job = await ended(api, await api.replica_verify(name))
            if job.error == "PeerUnreachable":
                raise PeerUnreachable(job.message)
            assert job.state == "Completed", f"verify: {job.message}"
            assert job.result["identical"]

    async def recovered(self) -> None:
        deadline = time.monotonic() + RECOVERY_S
        while True:
            await self.shown(lambda info: info.copy_state == "Synchronized")
            try:
                await self.verified()
                break
            except PeerUnreachable:  # an asynchronous mirror is Synchronized within its RPO, whoever is away
                assert time.monotonic() < deadline, "the peer is not reached again"
                await asyncio.sleep(0.1)
        await self.host_check()

    async def fault(
        self,
        name: str,
        work: Callable[[], Awaitable[None]],
        *checks: str,
        recovered: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """One fault, and what must hold after it."""
        row = self.rows.setdefault(f"{name}, {self.mode}", Row())
        row.count += 1
        row.checks |= {"content", "host", *checks}
        started = began = time.monotonic()
        try:
            await work()
            began = time.monotonic()
            async with asyncio.timeout(RECOVERY_S + 60):
                await (recovered or self.recovered)()
        except (AssertionError, TimeoutError, *LOST) as error:
            row.failures.append(f"{type(error).__name__}: {error}")
            raise
        finally:
            ended_at = time.monotonic()
            row.longest_s = max(row.longest_s, ended_at - began)
            told = f"{began - started:.1f} s, recovery {ended_at - began:.1f} s"
            print(f"{name}, {self.mode}, number {row.count}: {told}", file=sys.stderr, flush=True)

    # --- the faults ---------------------------------------------------------------------------------------------------

    async def kill(self, *sides: Side) -> None:
        wanted = self.rng.randrange(1, 120)
        killed = asyncio.Event()
        writing = asyncio.ensure_future(self.write(lambda done: done >= wanted or killed.is_set()))
        if self.rng.random() < 0.5:
            await writing  # between writes
        else:
            await asyncio.sleep(0)  # within them
        for side in sides:
            await side.kill()
        killed.set()
        await writing
        for side in self.rng.sample(sides, len(sides)):
            await side.start()

    async def cut(self) -> None:
        self.proxy.cut_after_bytes = self.rng.randrange(1, 400_000)
        await self.write(lambda done: done >= 200)
        self.proxy.cut_after_bytes = None
        self.proxy.cut()

    async def stall(self) -> None:
        writing = asyncio.ensure_future(self.write(lambda done: done >= 200))
        self.proxy.stall()
        await writing  # hosts wait no longer than the budget, and then go on
        self.proxy.resume()
        self.proxy.cut()

    async def spoil(self) -> None:
        self.proxy.spoil_next = True
        await self.write(lambda done: done >= 50)
        self.proxy.spoil_next = False

    async def refuse(self) -> None:
        """The target cannot be reached for a while; the state says so."""
        self.proxy.refuse = True
        self.proxy.cut()
        await self.write(lambda done: done >= 50)
        await self.shown(lambda info: info.reason or (info.lag_seconds or 0) > 0)
        self.proxy.refuse = False

    async def full(self) -> None:
        async with self.target.api() as api:
            used = (await api.pool_space()).used_bytes
            await api.pool_limit(quota_bytes=used, reserve_bytes=0, warn_percent=90)
        await self.write(lambda done: done >= 200)
        async with self.target.api() as api:
            await api.pool_limit(quota_bytes=None, reserve_bytes=None, warn_percent=90)

    async def rot(self) -> None:
        """A bit of the target's file flips while nobody has it open; ``verify`` finds it, ``resync`` mends it."""
        await self.target.kill()
        (path,) = (self.target.pool / "volumes").glob("r.tvol")
        at = next(at for at in sorted(self.written) if any(any(data) for data in self.written[at]))
        (data,) = self.written[at]
        content = await asyncio.to_thread(path.read_bytes)
        place = content.index(data)
        await asyncio.to_thread(flip, path, place + self.rng.randrange(BLOCK))
        await self.target.start()
        await self.shown(lambda info: info.copy_state == "Synchronized")
        async with self.source.api() as api:
            job = await ended(api, await api.replica_verify("r"))
            assert job.state == "Exception", "the flipped bit was not found"
            assert "differ" in (await api.replica_show("r")).reason
            await api.replica_resync("r")

    async def garbage(self) -> None:
        host, port = self.target.address.rsplit(":", 1)
        for data in (os.urandom(4096), b"\x16\x03\x01" + b"\xff" * 70000, b"GET / HTTP/1.1\r\n\r\n", b""):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(host, int(port))
                writer.write(data)
                await writer.drain()
                writer.close()
        await self.write(lambda done: done >= 50)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


async def ended(api: EngineApi, job: JobInfo) -> JobInfo:
    while job.finished_at is None:
        job = await api.job_wait(job.job, after_version=job.version)
    return job


@contextlib.asynccontextmanager
async def pair(folder: Path, seed: int) -> AsyncIterator[Faults]:
    """Two daemons that are peers; the source has a volume ``v``."""
    source, target = Side(folder / "source"), Side(folder / "target")
    try:
        await source.start()
        await target.start()
        host, port = target.address.rsplit(":", 1)
        async with LinkProxy.running((host, int(port))) as proxy, source.api() as ours, target.api() as theirs:
            invitation = await theirs.peer_invite(name="source", address=proxy.address)
            await ours.peer_add("target", invitation.code)
            await ours.volume_create("v", SIZE, expose=True)
            yield Faults(seed, source, target, proxy)
    finally:
        for side in (source, target):
            if side.daemon is not None:
                with side.daemon:
                    pass


async def first_copy(faults: Faults, disconnects: int) -> None:
    """A link that is cut that often during one first copy, of a volume of its own; what has arrived is not sent again.

    Strips become as small as a link needs that breaks again and again, ``MAX_PIECE_BYTES``, two at a time; so each cut
    comes after more than they are, and the copy gets on.
    """
    proxy, size = faults.proxy, 16 * MIB + disconnects * CUT_BYTES // 2
    faults.mode = "sync"
    async with faults.source.api() as api:
        await api.volume_create("w", size, expose=True)
    async with faults.disk(IQN[:-1] + "w") as disk:
        for offset in range(0, size, MIB):
            await disk.write(offset, os.urandom(min(MIB, size - offset)))
    before, cuts = proxy.forward_bytes, proxy.cuts
    if disconnects:
        proxy.cut_again_bytes = proxy.cut_after_bytes = CUT_BYTES

    async def work() -> None:
        async with faults.source.api() as api:
            await api.replica_create("w", "first", peer="target")
        await faults.shown(
            lambda info: proxy.cuts - cuts >= disconnects or info.copy_state == "Synchronized",
            RECOVERY_S + 10 * disconnects,
            "first",
        )
        proxy.cut_after_bytes = proxy.cut_again_bytes = None
        assert proxy.cuts - cuts >= disconnects, "the copy was done before the link was cut that often"

    async def recovered() -> None:
        await faults.shown(lambda info: info.copy_state == "Synchronized", name="first")
        await faults.verified("first")

    await faults.fault("first copy, link cut again and again", work, recovered=recovered)
    told = f"{(proxy.forward_bytes - before) / MIB:.1f} MiB over the link for {size / MIB:.1f} MiB"
    print(f"first copy: {proxy.cuts - cuts} cuts, {told}", flush=True)
    async with faults.source.api() as api, faults.target.api() as theirs:
        await api.replica_detach("first")
        await api.volume_delete("w")
        await theirs.volume_delete("first")
        await api.replica_create("v", "r", peer="target")
        await faults.shown(lambda info: info.copy_state == "Synchronized")


async def run(
    folder: Path, seed: int, *, kills: int, disconnects: int, others: int, modes: list[str]
) -> dict[str, Row]:
    """All of it. Raises at the first failure, after printing the table."""
    async with pair(folder, seed) as faults:
        try:
            await first_copy(faults, disconnects)
            sides = faults.source, faults.target
            for number, mode in enumerate(modes):
                faults.mode = mode
                async with faults.source.api() as api:
                    if mode != "sync":
                        await api.replica_detach("r")
                        async with faults.target.api() as theirs:
                            await theirs.volume_delete("r")
                        await ended(
                            api, await api.replica_create("v", "r", MirrorTerms(mode, **MODES[mode]), peer="target")
                        )
                for kill in range(kills * (number + 1) // len(modes) - kills * number // len(modes)):
                    who = (sides[:1], sides[1:], sides)[kill % 3]
                    name = ("source", "target", "both")[kill % 3]
                    await faults.fault(f"kill -9 of {name}", lambda who=who: faults.kill(*who), "files")
                for work in (faults.cut, faults.stall, faults.spoil, faults.refuse, faults.full, faults.garbage):
                    for _ in range(others):
                        await faults.fault(NAMES[work.__name__], work, *(["told"] if work == faults.refuse else []))
                if others and mode == "sync":
                    await faults.fault("rot at the target", faults.rot, "told", "files")
        finally:
            print(table(faults.rows, seed))
        return faults.rows


NAMES = {
    "cut": "link cut",
    "stall": "link stalls",
    "spoil": "a bit spoilt on the way",
    "refuse": "target not reachable",
    "full": "target without room",
    "garbage": "garbage from strangers",
}


def table(rows: dict[str, Row], seed: int) -> str:
    lines = ["| fault | times | checked after each | longest recovery | failed |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        checks = ", ".join(sorted(row.checks))
        lines.append(f"| {name} | {row.count} | {checks} | {row.longest_s:.1f} s | {'; '.join(row.failures) or '0'} |")
    kills = sum(row.count for name, row in rows.items() if name.startswith("kill"))
    return "\n".join(
        [*lines, "", f"seed {seed}; {kills} kills, {sum(row.count for row in rows.values())} faults in all"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.integration.replication_faults")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 1 << 32))
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--disconnects", type=int, default=100)
    parser.add_argument("--others", type=int, default=10, help="how often each of the other faults, in each mode")
    parser.add_argument("--modes", default="sync,async,adaptive")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="replication-faults-") as folder:
        rows = asyncio.run(
            run(
                Path(folder),
                options.seed,
                kills=options.kills,
                disconnects=options.disconnects,
                others=options.others,
                modes=options.modes.split(","),
            )
        )
    return 1 if any(row.failures for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
