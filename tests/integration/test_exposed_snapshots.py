"""Exposed snapshots at a real initiator: write-protected, or as throw-away views; through kill -9."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from iscsi.initiator.disk import connect
from iscsi.initiator.errors import CommandFailed, InitiatorError
from tests.support.daemon import CommandFailed as CliFailed
from tests.support.daemon import Daemon, twinvol
from tests.support.generations import wait_until
from twinvol.api.client import open_api
from twinvol.cli.command import as_json

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from engine.api import EngineApi
    from iscsi.initiator.disk import IscsiDisk

MODE_SENSE_6_ALL = bytes.fromhex("1a 00 3f 00 ff 00")  # SPC-4 section 6.11: all pages, current values
WRITE_10_ONE_BLOCK = bytes.fromhex("2a 00 00000000 00 0001 00")
WP = 0x80  # SBC-3 section 6.5.1, device-specific parameter

pytestmark = pytest.mark.timeout(600)


async def disk_of(daemon: Daemon, exposed: dict[str, Any], prefix: str = "") -> IscsiDisk:
    host, _, port = daemon.portal.rpartition(":")
    return await connect((host, int(port)), exposed[prefix + "target"], exposed[prefix + "lun"])


async def test_a_snapshot_is_write_protected_and_a_view_of_it_is_not(daemon: Daemon):
    volume = daemon.run("volume", "create", "v", "--size", "4M", "--expose")
    async with await disk_of(daemon, volume) as disk:
        await disk.write(0, b"1" * 4096)
        daemon.run("snapshot", "create", "v", "s", "--description", "to be looked at")
        await disk.write(0, b"2" * 4096)
        shown = daemon.run("snapshot", "expose", "v", "s")
        async with await disk_of(daemon, shown) as snapshot:
            sense = (await snapshot.execute(MODE_SENSE_6_ALL, data_in_length=255)).data
            assert sense[2] & WP
            refused = await snapshot.execute(WRITE_10_ONE_BLOCK, data_out=bytes(512))
            assert (refused.status, refused.sense[2] & 0x0F, refused.sense[12:14]) == (2, 7, b"\x27\x00")
            assert await snapshot.read(0, 4096) == b"1" * 4096
            view = daemon.run("snapshot", "expose", "v", "s", "--writable")
            assert (view["target"], view["view_target"]) == (shown["target"], f"{volume['target']}.view.s")
            async with await disk_of(daemon, view, "view_") as writable:
                assert not (await writable.execute(MODE_SENSE_6_ALL, data_in_length=255)).data[2] & WP
                assert await writable.read(0, 4096) == b"1" * 4096
                await writable.write(0, b"3" * 4096)
                assert await writable.read(0, 4096) == b"3" * 4096
                assert await writable.vpd_page(0x83) != await snapshot.vpd_page(0x83)
                with pytest.raises(CliFailed, match="in use by"):
                    daemon.run("snapshot", "unexpose", "v", "s", "--writable")
                daemon.run("snapshot", "unexpose", "v", "s", "--writable", "--force")
                with pytest.raises((InitiatorError, CommandFailed)):
                    await writable.read(0, 4096)
            assert await snapshot.read(0, 4096) == b"1" * 4096
        assert await disk.read(0, 4096) == b"2" * 4096
    assert [each["name"] for each in daemon.run("volume", "list")["volumes"]] == ["v"]


def test_a_view_is_discarded_when_it_expires(daemon: Daemon):
    daemon.run("volume", "create", "v", "--size", "4M")
    daemon.run("snapshot", "create", "v", "s")
    made = daemon.run("snapshot", "expose", "v", "s", "--writable", "--for", "1s")
    assert made["view_expires_at"] > made["created_at"]
    wait_until(lambda: daemon.run("snapshot", "show", "v", "s")["view_target"] is None, "the view to expire")
    assert daemon.run("target", "list")["targets"] == []
    daemon.run("snapshot", "delete", "v", "s")


async def test_views_through_kill_9(tmp_path: Path):
    """The daemon is killed while views come and go: a view that is shown is whole, others are gone, files are clean."""
    rng = random.Random(9)
    pool = tmp_path / "pool"
    with Daemon.start(pool) as daemon:
        async with open_api(pool) as api:
            await api.volume_create("v", 4 << 20)
            await api.snapshot_create("v", "keep")
            kept = as_json(await api.snapshot_expose("v", "keep", writable=True))
        async with await disk_of(daemon, kept, "view_") as disk:
            await disk.write(8192, b"k" * 4096)
        daemon.kill()
    for _ in range(4):
        with Daemon.start(pool) as daemon:
            async with await disk_of(daemon, kept, "view_") as disk:
                assert await disk.read(8192, 4096) == b"k" * 4096
            async with open_api(pool) as api:
                listed = {each.name: each for each in await api.snapshot_list("v")}
                targets = {each.name for each in await api.target_list()}
                assert targets == {each.view_target for each in listed.values()} - {None}
                for name in sorted(listed.keys() - {"keep"}):
                    await api.snapshot_delete("v", name, force=True)
                for number in range(4):
                    await api.snapshot_create("v", f"s{number}")
                coming = [asyncio.create_task(come_and_go(api, f"s{number}")) for number in range(4)]
                await asyncio.wait(coming, timeout=rng.random() * 0.05)
                daemon.kill()
                await asyncio.gather(*coming, return_exceptions=True)
        checked = twinvol("check", str(pool / "volumes" / "v.tvol"))
        assert checked.returncode == 0, checked.stdout


async def come_and_go(api: EngineApi, name: str) -> None:
    while True:
        await api.snapshot_expose("v", name, writable=True)
        await api.snapshot_unexpose("v", name, writable=True)
