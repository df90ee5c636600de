"""What a pool says of files that are not what it left: damaged, exchanged, old, cut off, or another pool's."""

import contextlib
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from engine.errors import EngineError, StoreCorrupt
from tests.support.engine import opened

MIB = 1 << 20


async def made(pool: Path) -> dict[str, str]:
    """A pool with two volumes and what hangs on them; serials by name."""
    async with opened(pool) as engine:
        serials = {}
        for name in ("left", "right"):
            serials[name] = (await engine.api.volume_create(name, MIB, expose=True)).serial
            await put(engine, name, name.encode())
            await engine.api.snapshot_create(name, "s")
        await engine.api.snapshot_hold("left", "s", "backup")
        return serials


async def put(engine, name: str, text: bytes) -> None:
    await engine.pool.volume(name).write(0, memoryview(text.ljust(512)))
    await engine.pool.volume(name).flush()


async def text(engine, name: str) -> bytes:
    data = bytearray(512)
    await engine.pool.volume(name).read(0, memoryview(data))
    return bytes(data).rstrip()


async def test_volume_files_that_changed_places_are_what_they_were(tmp_path: Path):
    pool = tmp_path / "pool"
    serials = await made(pool)
    left, right = (pool / "volumes" / f"{name}.tvol" for name in serials)
    left.rename(tmp_path / "l")
    right.rename(left)
    (tmp_path / "l").rename(right)
    async with opened(pool) as engine:
        for name, serial in serials.items():
            assert await text(engine, name) == name.encode()
            assert (await engine.api.volume_show(name)).serial == serial
        assert (await engine.api.status()).reasons == []


async def test_an_older_copy_of_a_volume_file_is_served_and_told(tmp_path: Path):
    pool = tmp_path / "pool"
    await made(pool)
    file = pool / "volumes" / "left.tvol"
    shutil.copy(file, tmp_path / "old")
    async with opened(pool) as engine:
        await put(engine, "left", b"newer")
        assert not [event for event in await engine.api.event_list() if "older" in event.text]
    shutil.copy(tmp_path / "old", file)
    for _ in ("found", "told before"):
        async with opened(pool) as engine:
            assert await text(engine, "left") == b"left"
            (event,) = [event for event in await engine.api.event_list() if "older" in event.text]
            assert (event.severity, event.subject) == ("warning", "left.tvol")


@pytest.mark.parametrize("length", [0, 1, 4095, 70_000])
async def test_a_volume_file_that_is_cut_off_is_damaged_and_the_others_are_served(tmp_path: Path, length: int):
    pool = tmp_path / "pool"
    await made(pool)
    with (pool / "volumes" / "left.tvol").open("r+b") as file:
        file.truncate(length)
    async with opened(pool) as engine:
        assert (await engine.api.volume_show("left")).state == "damaged"
        assert await text(engine, "right") == b"right"
        assert (await engine.api.status()).health == "degraded"


async def test_flipped_bits_in_the_structures_of_a_volume_file_are_told_or_do_no_harm(tmp_path: Path):
    pool = tmp_path / "pool"
    await made(pool)
    file = pool / "volumes" / "left.tvol"
    whole = file.read_bytes()
    rng = random.Random(5)
    for _ in range(20):
        spoilt = bytearray(whole)
        for _ in range(3):
            spoilt[rng.choice((rng.randrange(8192), rng.randrange(len(whole))))] ^= 1 << rng.randrange(8)
        file.write_bytes(spoilt)
        async with opened(pool) as engine:
            info = await engine.api.volume_show("left")
            assert info.state in ("ok", "damaged")
            assert await text(engine, "right") == b"right"
            if info.state == "damaged":
                assert "left.tvol" in info.reason


@pytest.mark.parametrize("length", [1, 100, 4095, 4096, 8192, 20_000])
async def test_a_catalogue_that_is_cut_off_is_refused_by_name(tmp_path: Path, length: int):
    pool = tmp_path / "pool"
    await made(pool)
    with (pool / "catalog.sqlite").open("r+b") as file:
        file.truncate(length)
    with pytest.raises(StoreCorrupt, match=r"catalog\.sqlite"):
        async with opened(pool):
            pass


async def test_flipped_bits_in_the_catalogue_are_refused_or_do_no_harm_to_volumes(tmp_path: Path):
    pool = tmp_path / "pool"
    await made(pool)
    catalog = pool / "catalog.sqlite"
    whole = catalog.read_bytes()
    rng = random.Random(6)
    refused = 0
    for _ in range(30):
        spoilt = bytearray(whole)
        for _ in range(8):
            spoilt[rng.choice((rng.randrange(4096), rng.randrange(len(whole))))] ^= 1 << rng.randrange(8)
        catalog.write_bytes(spoilt)
        for beside in ("-wal", "-shm"):
            catalog.with_name(catalog.name + beside).unlink(missing_ok=True)
        try:
            async with opened(pool) as engine:
                assert await text(engine, "left") == b"left"
                await engine.api.event_list()
                await engine.api.target_list()
        except EngineError:
            refused += 1
    assert refused


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE jobs SET state = 1",
        "UPDATE jobs SET result = '{'",
        "UPDATE mirrors SET state = 'no JSON'",
        "UPDATE mirrors SET mode = CAST(x'ff' AS TEXT)",
        "UPDATE targets SET name = CAST(x'ff' AS TEXT) WHERE name LIKE '%left'",
    ],
)
async def test_values_in_the_catalogue_that_cannot_be_are_refused(tmp_path: Path, change: str):
    pool = tmp_path / "pool"
    await made(pool)
    async with opened(pool) as engine:
        await engine.api.replica_create("left", "replica")
    with contextlib.closing(sqlite3.connect(pool / "catalog.sqlite")) as database, database:
        assert database.execute(change).rowcount
    with pytest.raises(StoreCorrupt, match="catalogue"):
        async with opened(pool):
            pass


async def test_the_catalogue_of_another_pool_takes_no_volume_away(tmp_path: Path):
    pool, other = tmp_path / "pool", tmp_path / "other"
    serials = await made(pool)
    async with opened(other) as engine:
        await engine.api.volume_create("theirs", MIB, expose=True)
    shutil.copy(other / "catalog.sqlite", pool / "catalog.sqlite")
    async with opened(pool) as engine:
        infos = {info.name: info for info in await engine.api.volume_list()}
        assert {name: info.state for name, info in infos.items()} == {"left": "ok", "right": "ok", "theirs": "damaged"}
        assert "missing" in infos["theirs"].reason
        assert {name: infos[name].serial for name in serials} == serials
        with pytest.raises(EngineError, match="held by backup"):
            await engine.api.snapshot_delete("left", "s")


async def test_an_old_catalogue_finds_what_was_made_since_and_says_what_is_gone(tmp_path: Path):
    pool = tmp_path / "pool"
    await made(pool)
    shutil.copy(pool / "catalog.sqlite", tmp_path / "old")
    async with opened(pool) as engine:
        await engine.api.volume_create("later", MIB)
        await engine.api.volume_delete("right", force=True)
    shutil.copy(tmp_path / "old", pool / "catalog.sqlite")
    async with opened(pool) as engine:
        infos = {info.name: info.state for info in await engine.api.volume_list()}
        assert infos == {"left": "ok", "later": "ok", "right": "damaged"}
