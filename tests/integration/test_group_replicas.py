"""A group mirrored between two real daemons, writes to one member after the other, and ``kill -9`` in between.

Each write is issued when the one before, on the other volume, was acknowledged. In the recovery point that the target
has, whatever the last write there is: every earlier one is there, too.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

import pytest

from iscsi.initiator.disk import connect
from tests.integration.test_peers import MIB, Side, _pair, until

if TYPE_CHECKING:
    from pathlib import Path

MEMBERS = ("a", "b")
BLOCK = 4096
BLOCKS = 64
NUMBER = struct.Struct("<Q")


async def _disk(side: Side, target: str, lun: int = 0):
    host, port = side.daemon.portal.rsplit(":", 1)
    return await connect((host, int(port)), target, lun)


async def _write_on(side: Side, written: list[int]) -> None:
    """Write number n to member n % 2, block n // 2, one after the other, until the connection ends."""
    disks = [await _disk(side, f"iqn.2026-11.org.twinvol:{name}") for name in MEMBERS]
    async with disks[0], disks[1]:
        while True:
            number = written[-1] + 1 if written else 0
            block = number // 2 % BLOCKS
            await disks[number % 2].write(block * BLOCK, NUMBER.pack(number + 1) * (BLOCK // NUMBER.size))
            written.append(number)


async def _are_written(writer: asyncio.Task[None], written: list[int], count: int) -> None:
    while len(written) < count:
        assert not writer.done(), writer.exception()
        await asyncio.sleep(0.01)


async def _numbers(side: Side, member: str, guid: str) -> list[int]:
    """What each block of a member holds in a recovery point, as an initiator sees it; 0: nothing."""
    shown = await asyncio.to_thread(side.run, "replica", "expose", f"r.{member}", guid)
    async with await _disk(side, shown["target"], shown["lun"]) as disk:
        data = await disk.read(0, BLOCKS * BLOCK)
    await asyncio.to_thread(side.run, "replica", "unexpose", f"r.{member}", guid, "--force")
    return [NUMBER.unpack_from(data, at)[0] for at in range(0, BLOCKS * BLOCK, BLOCK)]


def _expected(top: int, member: int) -> list[int]:
    """Of all writes up to the one that wrote ``top``."""
    found = [0] * BLOCKS
    for number in range(top):
        if number % 2 == member:
            found[number // 2 % BLOCKS] = number + 1
    return found


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_kill_9_of_the_source_leaves_one_instant_of_all_members(tmp_path: Path, mode: str):
    async with _pair(tmp_path) as (source, target, _):
        for name in MEMBERS:
            await asyncio.to_thread(source.run, "volume", "create", name, "--size", str(8 * MIB), "--expose")
        await asyncio.to_thread(source.run, "group", "create", "g", *MEMBERS)
        terms = ["--mode", mode, "--peer", "target"] + ([] if mode == "sync" else ["--rpo", "1s"])
        await asyncio.to_thread(source.run, "group", "replica", "create", "g", "r", *terms)
        first = (await asyncio.to_thread(target.run, "group", "replica", "points", "r"))["points"][0]["guid"]
        written: list[int] = []
        writer = asyncio.create_task(_write_on(source, written))
        await _are_written(writer, written, 300)
        if mode == "async":  # a point with some of the writes
            await until(target, "group", "replica", "points", "r", is_there=lambda a: a["points"][0]["guid"] != first)
        else:
            await asyncio.to_thread(source.run, "group", "replica", "verify", "r")  # takes a point at once
        await _are_written(writer, written, 600)
        await asyncio.to_thread(source.kill)
        await asyncio.wait([writer])
        assert writer.exception() is not None  # its connection ended
        (point,) = (await asyncio.to_thread(target.run, "group", "replica", "points", "r"))["points"]
        assert point["members"] == ["r.a", "r.b"]
        have = [await _numbers(target, name, point["guid"]) for name in MEMBERS]
        top = max(map(max, have))
        assert top > 0
        assert have == [_expected(top, member) for member in range(len(MEMBERS))]
        await asyncio.to_thread(source.start)
        await until(source, "group", "replica", "show", "r", is_there=lambda info: info["copy_state"] == "Synchronized")
        assert (await asyncio.to_thread(source.run, "group", "replica", "verify", "r"))["identical"]
