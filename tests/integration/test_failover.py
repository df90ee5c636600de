"""Two real daemons that fail over: planned, after ``kill -9`` of the source under writes, and back.

A host that talks iSCSI writes blocks that say which write they are; what it was told is written has to be at the disk,
wherever that is then.
"""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from iscsi.initiator.disk import connect
from tests.integration.test_kill9 import check_files
from tests.integration.test_peers import MIB, Side, _pair, _volume, until, verified

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from iscsi.initiator.disk import IscsiDisk

BUDGET_MS = "20000"
"""So long that the lease, half of it, is still there after the source was killed, on any machine."""


async def replica(source: Side, mode: str, *options: str) -> None:
    create = ("replica", "create", "v", "r", "--mode", mode, "--peer", "target", *options)
    await asyncio.to_thread(source.run, *create)


async def known(target: Side) -> None:
    """The replica's side has been told by its source what it needs."""
    await until(
        target, "replica", "failover", "r", "--plan", is_there=lambda plan: plan["reported_at"] and plan["reachable"]
    )


@asynccontextmanager
async def disk_of(side: Side, target: str) -> AsyncIterator[IscsiDisk]:
    host, port = side.daemon.portal.rsplit(":", 1)
    async with await connect((host, int(port)), target, 0) as disk:
        yield disk


async def write_some(disk: IscsiDisk, chance: random.Random, count: int) -> dict[int, bytes]:
    """What was acknowledged last, by offset."""
    written = {}
    for number in range(count):
        at = chance.randrange(16 * MIB // 4096) * 4096
        data = os.urandom(8) + bytes([number % 256]) * 4088
        await disk.write(at, data)
        written[at] = data
    return written


async def check(side: Side, target: str, written: dict[int, bytes]) -> None:
    async with disk_of(side, target) as disk:
        for at, data in written.items():
            assert await disk.read(at, 4096) == data


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_planned_failover_and_back_with_writes_in_between(tmp_path: Path, mode: str):
    chance = random.Random(1)
    async with _pair(tmp_path) as (source, target, _):
        await _volume(source)
        at_source = "iqn.2026-11.org.twinvol:v"
        await replica(source, mode)
        await known(target)
        async with disk_of(source, at_source) as disk:
            written = await write_some(disk, chance, 64)
        serial = source.run("volume", "show", "v")["serial"]
        taken = await asyncio.to_thread(target.run, "replica", "failover", "r")
        assert (taken["volume"], taken["serial"], taken["lun"]) == ("r", serial, 0)
        await check(target, taken["target"], written)
        async with disk_of(target, taken["target"]) as disk:
            written |= await write_some(disk, chance, 64)
        await asyncio.to_thread(target.run, "replica", "failback", "r", timeout_s=120.0)
        await check(source, at_source, written)
        await until(source, "replica", "show", "r", is_there=lambda info: info["copy_state"] == "Synchronized")
        await verified(source, target)


@pytest.mark.slow
async def test_kill_9_of_a_synchronous_source_then_failover_loses_nothing_and_back(tmp_path: Path):
    """Within the lease the operator has to say only that the source is gone; it follows when it comes back."""
    chance = random.Random(2)
    async with _pair(tmp_path) as (source, target, _):
        await _volume(source)
        await replica(source, "sync", "--latency-budget", BUDGET_MS)
        await known(target)
        await until(target, "replica", "failover", "r", "--plan", is_there=lambda plan: plan["lossless"])
        async with disk_of(source, "iqn.2026-11.org.twinvol:v") as disk:
            written = await write_some(disk, chance, 200)
            source.kill()
        plan = await asyncio.to_thread(target.run, "replica", "failover", "r", "--plan")
        assert (plan["lossless"], plan["needs"]) == (True, ["--fenced"])
        taken = await asyncio.to_thread(target.run, "replica", "failover", "r", "--fenced")
        assert taken["lossless"]
        await check(target, taken["target"], written)
        async with disk_of(target, taken["target"]) as disk:
            written |= await write_some(disk, chance, 100)
        source.start()
        await until(
            source, "replica", "show", "r", is_there=lambda info: info["peer"] == "target" and info["target"] == "v"
        )
        await asyncio.to_thread(target.run, "replica", "failback", "r", timeout_s=120.0)
        await check(source, "iqn.2026-11.org.twinvol:v", written)
        await until(source, "replica", "show", "r", is_there=lambda info: info["copy_state"] == "Synchronized")
        await verified(source, target)
    check_files(tmp_path / "source")
    check_files(tmp_path / "target")
