"""``kill -9`` of the daemon under an offloaded copy: what it had told of the copy is there, the files check clean, and
nothing is left of its token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from iscsi.initiator.disk import connect
from iscsi.scsi.sense import SenseKey
from tests.integration.test_kill9 import check_files
from tests.support.daemon import Daemon
from tests.unit.daemon.test_offloaded_copy import GOOD, send, token_of, told, write_token

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
SIZE = 128 * MIB
TOLD_ENOUGH = SIZE // 512 // 8


async def disk(daemon: Daemon, name: str):
    host, port = daemon.portal.rsplit(":", 1)
    return await connect((host, int(port)), f"iqn.2026-11.org.twinvol:{name}", 0)


def content(at: int) -> bytes:
    return at.to_bytes(8, "big") * (MIB // 8)


@pytest.mark.parametrize("family", ["another", "the same"])
async def test_what_was_told_of_a_copy_survives(tmp_path: Path, family: str):
    pool = tmp_path / "pool"
    with Daemon.start(pool) as daemon:
        daemon.volume("one", str(SIZE))
        if family == "another":
            daemon.volume("two", str(SIZE))
        else:
            daemon.run("snapshot", "create", "one", "empty")
            daemon.run("clone", "create", "one@empty", "two", "--expose")
        async with await disk(daemon, "one") as source:
            for at in range(0, SIZE, MIB):
                await source.write(at, content(at))
            token = await token_of(source, SIZE // 512)
        target = await disk(daemon, "two")
        assert await write_token(target, token, SIZE // 512, flags=1) == GOOD
        blocks = 0
        while blocks < TOLD_ENOUGH:
            asked = await send(target, "84 07 00000002 00000000 00000400 00 00", allocation=1024)
            assert told(asked) == GOOD
            blocks = int.from_bytes(asked.data[16:24], "big")
        daemon.kill()
    check_files(pool)
    with Daemon.start(pool) as daemon:
        assert [each["name"] for each in daemon.run("snapshot", "list", "one")["snapshots"]] == (
            ["empty"] if family == "the same" else []
        )
        async with await disk(daemon, "two") as target:
            for at in range(0, blocks * 512 - MIB + 1, MIB):
                assert await target.read(at, MIB) == content(at)
            assert await write_token(target, token, 1) == (SenseKey.ILLEGAL_REQUEST, 0x2304)
    check_files(pool)
