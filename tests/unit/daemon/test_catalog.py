"""The catalogue keeps what it was told, and refuses what is not one."""

import sqlite3
from pathlib import Path

import pytest

from engine.catalog import EVENT_HISTORY_MAX, Catalog, LunRow, MirrorRow, TargetRow, VolumeRow
from engine.errors import AlreadyExists, NotSupported, OutOfSpace, StoreCorrupt


async def test_rows_survive_reopening(tmp_path: Path):
    path = tmp_path / "catalog.sqlite"
    volume = VolumeRow("id-1", "v", "v.tvol", 512, False, True, True, "w@s")
    luns = (LunRow("iqn.x:v", 0, "id-1"), LunRow("iqn.x:v", 3, "id-1", "guid", ("iqn.h", "iqn.i")))
    target = TargetRow("iqn.x:v", 5.0, luns, ("iqn.i",), (2, 7))
    mirror = MirrorRow("m", "id-1", "id-2", "sync", {"common": "guid", "n": 3})
    catalog = await Catalog.open(path)
    await catalog.put_volume(volume)
    await catalog.add_target(target)
    await catalog.put_mirror(mirror)
    await catalog.add_event(1.0, "info", "volume v", "created")
    await catalog.close()
    catalog = await Catalog.open(path)
    assert await catalog.volumes() == [volume]
    assert await catalog.targets() == [target]
    assert await catalog.mirrors() == [mirror]
    assert [event.text for event in await catalog.events(5)] == ["created"]
    await catalog.close()


async def test_removing_a_volume_or_target_removes_what_hangs_on_it(tmp_path: Path):
    catalog = await Catalog.open(tmp_path / "catalog.sqlite")
    await catalog.put_volume(VolumeRow("id-1", "v", "v.tvol"))
    await catalog.add_target(
        TargetRow("iqn.x:a", 1.0, (LunRow("iqn.x:a", 0, "id-1", None, ("iqn.i",)),), ("iqn.i",), (3,))
    )
    await catalog.remove_volume("id-1")
    assert (await catalog.targets())[0].luns == ()
    await catalog.remove_target("iqn.x:a")
    await catalog.add_target(TargetRow("iqn.x:a", 1.0))
    assert await catalog.targets() == [TargetRow("iqn.x:a", 1.0)]
    await catalog.add_lun(LunRow("iqn.x:a", 0, "id-1"))
    assert (await catalog.targets())[0].luns == (LunRow("iqn.x:a", 0, "id-1"),), "the old LUN's mask is gone with it"
    with pytest.raises(AlreadyExists):
        await catalog.add_target(TargetRow("iqn.x:a", 1.0))
    await catalog.close()


async def test_two_volumes_may_not_have_one_name(tmp_path: Path):
    catalog = await Catalog.open(tmp_path / "catalog.sqlite")
    await catalog.put_volume(VolumeRow("id-1", "v", "v.tvol"))
    with pytest.raises(AlreadyExists):
        await catalog.put_volume(VolumeRow("id-2", "v", "w.tvol"))
    await catalog.close()


async def test_events_are_bounded(tmp_path: Path):
    catalog = await Catalog.open(tmp_path / "catalog.sqlite")
    for number in range(3):
        await catalog.add_event(float(number), "info", "s", str(number))
    assert [event.text for event in await catalog.events(2)] == ["1", "2"]
    assert EVENT_HISTORY_MAX > 2
    await catalog.close()


async def test_a_damaged_catalogue_and_a_newer_one_are_told_apart(tmp_path: Path):
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(b"this is no database, it is a letter" * 100)
    with pytest.raises(StoreCorrupt):
        await Catalog.open(path)
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(NotSupported):
        await Catalog.open(path)


async def test_a_full_disk_takes_the_ballast_before_it_takes_a_transaction(tmp_path: Path):
    """SQLite's own limit on pages stands for the disk: the same error, SQLITE_FULL."""
    catalog = await Catalog.open(tmp_path / "catalog.sqlite")
    ballast = tmp_path / "catalog.ballast"
    assert ballast.stat().st_blocks * 512 >= 4 << 20
    await catalog._run(lambda database: database.execute("PRAGMA max_page_count = 1"))
    with pytest.raises(OutOfSpace):
        await catalog.add_event(1.0, "info", "pool", "x" * 100_000)
    assert not ballast.exists()
    await catalog._run(lambda database: database.execute("PRAGMA max_page_count = 1000000"))
    await catalog.add_event(1.0, "info", "pool", "there is space again")
    await catalog.restock()
    assert ballast.exists()
    assert [event.text for event in await catalog.events(5)] == ["there is space again"]
    await catalog.close()


async def test_whatever_replication_has_left_in_a_table_is_known_of(tmp_path: Path):
    """Also what a mirror that has ended has left: somebody has to tidy it up."""
    path = tmp_path / "catalog.sqlite"
    catalog = await Catalog.open(path)
    assert not await catalog.knows_replication()
    await catalog.close()
    database = sqlite3.connect(path)
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    of_replication = [name for name in tables if any(word in name for word in ("mirror", "peer", "release"))]
    assert len(of_replication) == 10
    for table in of_replication:
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
        places = ", ".join("?" * len(columns))
        database.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", list(range(len(columns))))
        database.commit()
        catalog = await Catalog.open(path)
        assert await catalog.knows_replication() == (table != "peer_invitations"), table
        await catalog.close()
        database.execute(f"DELETE FROM {table}")
        database.commit()
    database.close()
