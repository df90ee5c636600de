"""Looking up by what never changes, and known initiators."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from engine.api import VOLUME_PAGE, each_volume
from engine.errors import AlreadyExists, InUse, InvalidArgument, NotFound
from tests.support.engine import opened

if TYPE_CHECKING:
    from pathlib import Path

HOST = "iqn.2026-11.org.example:host"


async def test_a_pool_keeps_its_id(tmp_path: Path) -> None:
    async with opened(tmp_path / "pool") as engine:
        first = await engine.api.pool_identity()
        assert first == await engine.api.pool_identity()
        assert str(uuid.UUID(first.pool_id)) == first.pool_id
    (tmp_path / "pool").rename(tmp_path / "moved")
    async with opened(tmp_path / "moved") as engine:
        assert (await engine.api.pool_identity()).pool_id == first.pool_id


async def test_volumes_and_snapshots_are_found_by_id(tmp_path: Path) -> None:
    async with opened(tmp_path / "pool") as engine:
        volume = await engine.api.volume_create("disk", 1 << 20, expose=True)
        snapshot = await engine.api.snapshot_create("disk", "one", expose=True)
        assert await engine.api.volume_find(volume.volume_id) == await engine.api.volume_show("disk")
        assert (await engine.api.snapshot_find(volume.volume_id, snapshot.guid)).name == "one"
        luns = await engine.api.volume_luns(volume.volume_id)
        assert [(each.target, each.lun.volume_id, each.lun.snapshot_guid) for each in luns] == [
            (volume.target, volume.volume_id, None),
            (snapshot.target, volume.volume_id, snapshot.guid),
        ]
        await engine.api.snapshot_delete("disk", "one", force=True)
        with pytest.raises(NotFound):
            await engine.api.snapshot_find(volume.volume_id, snapshot.guid)
        with pytest.raises(NotFound):
            await engine.api.volume_find(snapshot.guid)


async def test_volumes_come_in_pages_by_name(tmp_path: Path) -> None:
    async with opened(tmp_path / "pool") as engine:
        assert await each_volume(engine.api) == []
        for number in (3, 1, 4, 0, 2):
            await engine.api.volume_create(f"disk-{number}", 1 << 20)
        first = await engine.api.volume_page(limit=2)
        assert [volume.name for volume in first.volumes] == ["disk-0", "disk-1"]
        await engine.api.volume_delete("disk-1")  # where the next page begins
        await engine.api.volume_delete("disk-2")
        second = await engine.api.volume_page(first.cursor, 2)
        assert ([volume.name for volume in second.volumes], second.cursor) == (["disk-3", "disk-4"], None)
        assert await each_volume(engine.api) == await engine.api.volume_list()
        for limit in (0, VOLUME_PAGE + 1):
            with pytest.raises(InvalidArgument):
                await engine.api.volume_page(limit=limit)


async def test_an_initiator_is_known_until_it_is_removed(tmp_path: Path) -> None:
    async with opened(tmp_path / "pool") as engine:
        await engine.api.initiator_add(HOST.upper(), "the first host")
        with pytest.raises(AlreadyExists):
            await engine.api.initiator_add(HOST)
        with pytest.raises(InvalidArgument):
            await engine.api.initiator_add("no iSCSI name")
        with pytest.raises(InvalidArgument):
            await engine.api.initiator_add(HOST + "2", "two\nlines")
        await engine.api.target_create("shelf", initiators=[HOST])
        with pytest.raises(InUse):
            await engine.api.initiator_remove(HOST)
    async with opened(tmp_path / "pool") as engine:
        assert [(each.name, each.label) for each in await engine.api.initiator_list()] == [(HOST, "the first host")]
        await engine.api.target_delete("shelf")
        await engine.api.initiator_remove(HOST)
        with pytest.raises(NotFound):
            await engine.api.initiator_remove(HOST)
