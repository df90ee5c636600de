"""An ext4 on an adaptive mirror whose link to the target flaps.

    python -m tests.integration.flapping_link --seconds 180

The guest of the initiator VM writes, syncs, renames and removes files on the source (``scenarios/write_on.sh``), while
the link to the peer is cut, stalls, and refuses, from one seed. Every recovery point that comes at the target is shown
there, read through iSCSI, and looked at as after a power loss: the journal is replayed, and then ``e2fsck -f -n`` may
find nothing. Printed is how many there were, the log of switches, and how long writes took. No write may fail, and at
the end the mirror is synchronous again by itself, and verified.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine.api import MirrorTerms
from engine.errors import EngineError
from iscsi.initiator.disk import connect
from tests.integration.replication_faults import ended
from tests.integration.vm import run_scenario
from tests.support.link_proxy import LinkProxy
from tests.support.vm_peers import SCENARIOS, Peers
from twinvol.api.client import open_api

if TYPE_CHECKING:
    from engine.api import EngineApi, IoInfo, ReplicaPointInfo

MIB = 1 << 20
SIZE = 48 * MIB
SETTLED_S = 120.0
TERMS = MirrorTerms("adaptive", rpo_s=2.0, points=16, latency_budget_s=0.5, hold_down_s=1.0)
EXT4_MAGIC = b"\x53\xef"


@dataclass
class Found:
    """What a run saw. ``writes``: as the source counts them."""

    points: int = 0
    clean: int = 0
    flaps: int = 0
    switches: list[str] = field(default_factory=list)
    writes: IoInfo | None = None
    files: int = 0

    def table(self) -> str:
        assert self.writes is not None
        p50, p99, most = ((us or 0.0) / 1000 for us in (self.writes.p50_us, self.writes.p99_us, self.writes.max_us))
        return "\n".join(
            [
                *self.switches,
                f"{self.flaps} times the link failed; {self.points} recovery points, {self.clean} found clean",
                f"{self.files} files; {self.writes.commands} writes: p50 {p50:.1f} ms, p99 {p99:.1f} ms,"
                f" max {most:.1f} ms",
            ]
        )


class Flapping:
    """See the module."""

    def __init__(self, seed: int, peers: Peers, proxy: LinkProxy, ours: EngineApi, theirs: EngineApi) -> None:
        self.rng = random.Random(seed)
        self.peers, self.proxy, self.ours, self.theirs = peers, proxy, ours, theirs
        self.found = Found()
        self.mounted = peers.folder / "mounted"
        self.enough = peers.folder / "enough"
        self.over = False

    async def flap(self) -> None:
        """For ever."""
        rng, proxy = self.rng, self.proxy
        while True:
            await asyncio.sleep(rng.uniform(0.5, 4))
            match rng.randrange(3):
                case 0:
                    proxy.cut()
                case 1:
                    proxy.stall()
                    await asyncio.sleep(rng.uniform(0.2, 2))
                case 2:
                    proxy.refuse = True
                    proxy.cut()
                    await asyncio.sleep(rng.uniform(0.5, 2))
            self.mend()
            self.found.flaps += 1

    def mend(self) -> None:
        self.proxy.refuse = False
        self.proxy.resume()
        self.proxy.cut()

    async def check_points(self) -> None:
        """Each that comes, until it is over. Only a file system that was mounted before it can be clean."""
        seen: set[str] = set()
        while not self.over:
            mounted_at = self.mounted.stat().st_mtime if self.mounted.exists() else float("inf")
            for point in await self.theirs.replica_points("r"):
                if point.guid not in seen and point.created_at > mounted_at:
                    seen.add(point.guid)
                    await self.check_point(point)
            await asyncio.sleep(0.1)

    async def check_point(self, point: ReplicaPointInfo) -> None:
        try:
            shown = await self.theirs.replica_expose("r", point.guid)
        except EngineError:
            return  # it has gone meanwhile, as newer ones came
        self.found.points += 1
        image = self.peers.folder / "point.img"
        host, port = self.peers.portals["target"].rsplit(":", 1)
        assert shown.target is not None
        assert shown.lun is not None
        async with await connect((host, int(port)), shown.target, shown.lun) as disk:
            with image.open("wb") as file:
                for offset in range(0, SIZE, MIB):
                    file.write(await disk.read(offset, MIB))
        await self.theirs.replica_unexpose("r", point.guid, force=True)
        told = await asyncio.to_thread(after_a_power_loss, image)
        assert not told, f"the recovery point {point.guid} is not clean: {told}"
        self.found.clean += 1

    async def watch_switches(self) -> None:
        """The log of what the source says of the mirror, until it is over."""
        last = 0.0
        while not self.over:
            for event in await self.ours.event_list(limit=50):
                if event.at > last and "r" in event.subject.split():
                    last = event.at
                    when = time.strftime("%H:%M:%S", time.gmtime(event.at))
                    self.found.switches.append(f"{when} {event.severity}: {event.text}")
            await asyncio.sleep(0.5)

    async def run(self, seconds: float) -> Found:
        made = await self.ours.volume_create("v", SIZE, expose=True)
        assert made.target is not None
        await ended(self.ours, await self.ours.replica_create("v", "r", TERMS, peer="target"))
        commands = {
            "mounted": f"touch {self.mounted}",
            "enough": f"until test -e {self.enough}; do sleep 0.2; done",
        }
        options = [word for name, line in commands.items() for word in ("--host-cmd", f"{name}={line}")]
        options += ["--target", made.target, "--timeout", str(int(seconds) + 300)]
        scenario = str(SCENARIOS / "write_on.sh")
        guest = asyncio.ensure_future(
            asyncio.to_thread(run_scenario, scenario, self.peers.portals["source"], self.peers.folder, *options)
        )
        while not self.mounted.exists() and not guest.done():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)
        watchers = [asyncio.ensure_future(each()) for each in (self.flap, self.check_points, self.watch_switches)]
        done, _ = await asyncio.wait([guest, *watchers], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        watchers[0].cancel()
        await asyncio.wait([watchers[0]])
        self.mend()
        self.enough.touch()
        summary = await guest
        for each in done - {guest}:
            each.result()
        self.found.files = int(summary["results"]["files_written"])
        await self.settled()
        self.over = True
        await asyncio.gather(*watchers[1:])
        (io,) = [io for io in await self.ours.io_list() if io.volume == "v" and io.snapshot is None]
        (self.found.writes,) = [kind for kind in io.io if kind.kind == "write"]
        return self.found

    async def settled(self) -> None:
        """Synchronous again, by itself, and the same."""
        async with asyncio.timeout(SETTLED_S):
            while (await self.ours.replica_show("r")).copy_state != "Synchronized":  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            job = await ended(self.ours, await self.ours.replica_verify("r"))
        assert job.state == "Completed", job.message


def after_a_power_loss(image: Path) -> str:
    """Replay the journal and look at all; what is not as it should be."""
    with image.open("rb") as file:
        file.seek(1024 + 56)
        if file.read(2) != EXT4_MAGIC:
            return "no file system"
    for options in (["-y", "-E", "journal_only"], ["-f", "-n"]):
        done = subprocess.run(["e2fsck", *options, str(image)], capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1) or (done.returncode and options[0] == "-f"):
            return done.stdout + done.stderr
    return ""


async def run(folder: Path, seed: int, seconds: float) -> Found:
    """All of it. Raises AssertionError at the first recovery point that is not clean."""
    if shutil.which("e2fsck") is None:
        raise FileNotFoundError("no e2fsck (Debian: apt-get install e2fsprogs)")
    with Peers.running(folder, joined=False) as peers:
        host, port = peers.addresses["target"].rsplit(":", 1)
        async with (
            LinkProxy.running((host, int(port))) as proxy,
            open_api(peers.pool("source")) as ours,
            open_api(peers.pool("target")) as theirs,
        ):
            invitation = await theirs.peer_invite(name="source", address=proxy.address)
            await ours.peer_add("target", invitation.code)
            return await Flapping(seed, peers, proxy, ours, theirs).run(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.integration.flapping_link")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 1 << 32))
    parser.add_argument("--seconds", type=float, default=180.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flapping-link-") as folder:
        found = asyncio.run(run(Path(folder), options.seed, options.seconds))
    print(found.table())
    print(f"seed {options.seed}, {options.seconds:g} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
