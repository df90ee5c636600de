"""``kill -9`` of the daemon while group snapshots are taken under ordered writers: the ordering test, for real.

Each writer writes to the two members in turn, over iSCSI, and issues a write only when the one before, on the other
member, was acknowledged. Group snapshots are taken and deleted meanwhile; the daemon is killed with one of these calls
in flight. The next daemon's group snapshots are there as a whole or not at all, and none has a later write without the
earlier one; the members themselves have everything that was acknowledged.

``TWINVOL_KILL9_ROUNDS`` (5) sets the number of rounds, ``TWINVOL_KILL9_SEED`` their course; ``make kill9`` runs 200.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from iscsi.initiator import IscsiUrl, connect
from iscsi.initiator.errors import InitiatorError
from tests.integration.test_kill9 import check_files
from tests.support.daemon import Daemon
from twinvol.api.client import open_api
from twinvol.api.frames import DaemonUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engine.api import EngineApi, GroupSnapshotInfo
    from iscsi.initiator import IscsiDisk

ROUNDS = int(os.environ.get("TWINVOL_KILL9_ROUNDS", "5"))
SEED = int(os.environ.get("TWINVOL_KILL9_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
WRITERS = 4
SNAPSHOTS_MAX = 4
REACH_LIMIT_S = 60
MEMBERS = ("left", "right")
BLOCK = 4096
NUMBER = struct.Struct("<Q")
GONE = (InitiatorError, OSError)
"""What an initiator says whose target was killed."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + 30 * ROUNDS)]


@dataclass
class Account:
    """What writers and clients were told. Write ``n`` of a writer goes to member ``n % 2``."""

    issued: list[int] = field(default_factory=lambda: [0] * WRITERS)
    acked: list[int] = field(default_factory=lambda: [0] * WRITERS)
    floors: dict[str, list[int]] = field(default_factory=dict)
    """By group snapshot: what had been acknowledged when it was asked for."""
    ceilings: dict[str, list[int]] = field(default_factory=dict)
    """What had been issued once it was there; only of those that must be."""
    doomed: set[str] = field(default_factory=set)
    """Whose deletion was asked for."""
    gone: set[str] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def reaches(self, condition: Callable[[], bool]) -> None:
        """Wait until what writers and clients were told makes ``condition`` true."""
        async with asyncio.timeout(REACH_LIMIT_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


async def disk_at(daemon: Daemon, target: str) -> IscsiDisk:
    return await connect(IscsiUrl.parse(f"iscsi://{daemon.portal}/{target}/0").portal, target)


async def write_in_turn(disks: list[IscsiDisk], writer: int, account: Account) -> None:
    with contextlib.suppress(*GONE):
        while True:
            account.issued[writer] = number = account.issued[writer] + 1
            await disks[number % 2].write(writer * 2 * BLOCK, NUMBER.pack(number) * (BLOCK // NUMBER.size))
            account.acked[writer] = number
            account.changed.set()


async def come_and_go(api: EngineApi, rng: random.Random, account: Account, prefix: str) -> None:
    """Group snapshots are taken and deleted until the daemon is gone."""
    count = 0
    with contextlib.suppress(DaemonUnreachable):
        while True:
            there = sorted(account.ceilings.keys() - account.doomed)
            if len(there) >= SNAPSHOTS_MAX or (there and rng.random() < 0.3):
                name = rng.choice(there)
                account.doomed.add(name)
                await api.group_snapshot_delete("pair", name)
                account.gone.add(name)
            else:
                name, count = f"{prefix}{count}", count + 1
                account.floors[name] = list(account.acked)
                await api.group_snapshot_create("pair", name)
                account.ceilings[name] = list(account.issued)
                account.changed.set()


def in_order(values: list[list[int]], floor: list[int], ceiling: list[int], what: str) -> None:
    """``values``: by member, by writer. The highest number's predecessor is on the other member."""
    for writer in range(WRITERS):
        left, right = values[0][writer], values[1][writer]
        top = max(left, right)
        assert left % 2 == 0, (what, writer, left)
        assert min(left, right) == max(top - 1, 0), f"{what}: writer {writer} has {left} and {right}"
        assert floor[writer] <= top <= ceiling[writer], f"{what}: writer {writer}: {top} not in its bounds"


async def numbers_at(daemon: Daemon, target: str) -> list[int]:
    disk = await disk_at(daemon, target)
    try:
        return [NUMBER.unpack_from(await disk.read(writer * 2 * BLOCK, BLOCK))[0] for writer in range(WRITERS)]
    finally:
        await disk.close()


async def look(daemon: Daemon, api: EngineApi, account: Account, targets: list[str]) -> int:
    """Everything after a restart; returns the group snapshots there are."""
    found = {info.name: info for info in await api.group_snapshot_list("pair")}
    missing = account.ceilings.keys() - account.doomed - found.keys()
    assert not missing, f"{missing} are gone"
    assert not found.keys() & account.gone
    for member in MEMBERS:
        listed = {snapshot.name: snapshot.group for snapshot in await api.snapshot_list(member)}
        assert listed == {name: f"pair@{name}" for name in found}, "members without their group snapshot, or less"
    for info in found.values():
        assert (info.state, info.reason) == ("ok", None)
        await look_into(daemon, api, account, info)
    in_order([await numbers_at(daemon, target) for target in targets], account.acked, account.issued, "the members")
    return len(found)


async def look_into(daemon: Daemon, api: EngineApi, account: Account, info: GroupSnapshotInfo) -> None:
    values = []
    for member in info.members:
        shown = await api.target_create(f"look.{member.volume}")
        await api.target_lun_add(shown.name, member.volume, snapshot=info.name)
        values.append(await numbers_at(daemon, shown.name))
        await api.target_delete(shown.name, force=True)
    in_order(values, account.floors[info.name], account.ceilings.get(info.name, account.issued), info.name)


async def until_killed(daemon: Daemon, account: Account, targets: list[str], rng: random.Random, number: int) -> None:
    """Writers, group snapshots, and the kill: at a moment that the account reaches, whatever runs then."""
    disks = [await disk_at(daemon, target) for target in targets]
    writers = [asyncio.create_task(write_in_turn(disks, writer, account)) for writer in range(WRITERS)]
    async with open_api(daemon.pool) as api:
        client = asyncio.create_task(come_and_go(api, rng, account, f"r{number}-"))
        snapshots, writes = len(account.ceilings) + rng.randint(1, 8), rng.randrange(20)
        await account.reaches(lambda: len(account.ceilings) >= snapshots)
        reached = sum(account.acked)
        await account.reaches(lambda: sum(account.acked) >= reached + writes)
        daemon.kill()
        await asyncio.gather(client, *writers)
    for disk in disks:
        with contextlib.suppress(*GONE):
            await disk.close()


async def test_group_snapshots_taken_around_a_kill_are_whole_and_in_order(tmp_path: Path):
    print(f"replay: TWINVOL_KILL9_SEED={SEED} TWINVOL_KILL9_ROUNDS={ROUNDS} pytest {__name__.replace('.', '/')}.py")
    rng, account, pool = random.Random(SEED), Account(), tmp_path / "pool"
    with Daemon.start(pool) as daemon:
        targets = [daemon.run("volume", "create", name, "--size", "1M", "--expose")["target"] for name in MEMBERS]
        daemon.run("group", "create", "pair", *MEMBERS)
    for number in range(ROUNDS):
        with Daemon.start(pool) as daemon:
            await until_killed(daemon, account, targets, rng, number)
        check_files(pool)
        with Daemon.start(pool) as daemon:
            async with open_api(pool) as api:
                there = await look(daemon, api, account, targets)
            for writer in range(WRITERS):  # a write in flight at the kill may have arrived
                account.issued[writer] = account.acked[writer] = account.issued[writer] + account.issued[writer] % 2
            await level(daemon, account, targets)
        print(f"round {number + 1}: {len(account.ceilings)} taken, {there} there, {sum(account.acked)} writes")


async def level(daemon: Daemon, account: Account, targets: list[str]) -> None:
    """Both members have the writers' last numbers, so that the next round begins in order."""
    for member, target in enumerate(targets):
        disk = await disk_at(daemon, target)
        for writer, last in enumerate(account.acked):
            number = last if last % 2 == member else last - 1
            if number > 0:
                await disk.write(writer * 2 * BLOCK, NUMBER.pack(number) * (BLOCK // NUMBER.size))
        await disk.close()
