"""``check --repair``: each structure rotten in turn is mended on a copy, or refused and left as it was."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from engine.errors import AlreadyExists, StoreCorrupt
from engine.tvol import layout
from engine.tvol.check import check_file
from engine.tvol.check_image import Findings, Loader
from engine.tvol.file import TvolFile
from engine.tvol.repair import repair_file
from engine.units import KIB, MIB
from tests.support.made_volumes import used_pages
from tests.unit.tvol.test_scrub import CHUNK, fill, pattern, read, scrub

PAGE = layout.PAGE_SIZE


@pytest.fixture
def env(env):
    return dataclasses.replace(env, copier=None)


@pytest.fixture
async def made(env, path):
    """A closed file with snapshots, a clone, a deadlist, shared chunks, partial chunks over both kinds, and digests."""
    store = await TvolFile.create(env, path, volume_name="v", size_bytes=16 * MIB, journal_bytes=256 * KIB)
    head = store.volume("v")
    await fill(head, 0, 40)
    a = await store.snapshot(head, "a")
    await fill(head, 10, 10, version=1)
    await store.snapshot(head, "b")
    await fill(head, 15, 10, version=2)
    await store.share(a, 0, head, 100 * CHUNK, 4 * CHUNK)
    clone = await store.clone(a, "c")
    await fill(clone, 0, 3, version=3)
    for index in (5, 12, 17, 20, 101):
        await head.write(index * CHUNK + 8 * KIB, memoryview(b"p" * 4096))
    await store.snapshot(head, "d")
    for index in (5, 17, 30):
        await head.write(index * CHUNK + 16 * KIB, memoryview(b"q" * 4096))
    await fill(head, 12, 1, version=4)
    await clone.write(7 * CHUNK, memoryview(b"r" * 4096))
    assert store._core.family.claims.partials.count == 7
    await scrub(store)
    await store.close()
    assert check_file(path, data=True).findings == []
    return path


async def contents(env, path) -> dict[str, bytes]:
    store = await TvolFile.open(env, path)
    try:
        found = {}
        for device in [*store.volumes(), *store.snapshots()]:
            found[device.name] = b"".join([await read(device, index) for index in range(110)])
        return found
    finally:
        await store.close()


def image(env, path):
    file = env.files.open(path, writable=False)
    try:
        found = Loader(file, Findings()).load()
        used_pages(found)
        return found
    finally:
        file.close()


def rot(path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def page_of(env, path, wanted: str) -> int:
    """A page that is used as ``wanted`` says."""
    return next(page for page, where in used_pages(image(env, path)).items() if wanted in where)


@pytest.mark.parametrize("wanted", ["births", "deadlist", "digest page", "bits of digests", "superblock"])
async def test_what_the_rest_of_the_file_says_is_mended_and_the_original_kept(env, made, wanted):
    before = await contents(env, made)
    rot(made, 700 if wanted == "superblock" else page_of(env, made, wanted) * PAGE + 40)
    damaged = hashlib.sha256(made.read_bytes()).digest()
    if wanted != "superblock":
        assert check_file(made).damaged
    repaired = await repair_file(env, made)
    assert hashlib.sha256(repaired.original.read_bytes()).digest() == damaged
    assert check_file(made, data=True).findings == []
    assert await contents(env, made) == before
    assert check_file(made).findings == []
    assert not made.with_name(made.name + ".repair").exists()


@pytest.mark.parametrize(
    "wanted", ["map leaf", "map top", "root stream", "root index", "slots", "index of digests", "partial"]
)
async def test_what_has_the_only_word_is_refused_and_the_file_left_alone(env, made, wanted):
    rot(made, page_of(env, made, wanted) * PAGE + 40)
    damaged = made.read_bytes()
    with pytest.raises(StoreCorrupt):
        await repair_file(env, made)
    assert made.read_bytes() == damaged
    assert sorted(each.name for each in made.parent.iterdir()) == [made.name]


async def test_a_clean_file_is_not_touched_and_an_earlier_original_not_overwritten(env, made):
    assert await repair_file(env, made) is None
    rot(made, page_of(env, made, "births") * PAGE + 40)
    original = made.with_name(made.name + ".damaged")
    original.write_bytes(b"kept")
    with pytest.raises(AlreadyExists):
        await repair_file(env, made)
    assert original.read_bytes() == b"kept"


async def test_writes_after_a_repair_of_births_redirect_what_snapshots_see(env, made):
    before = await contents(env, made)
    rot(made, page_of(env, made, "births") * PAGE + 40)
    await repair_file(env, made)
    store = await TvolFile.open(env, made)
    try:
        await fill(store.volume("v"), 0, 40, version=9)
        for name in ("a", "b"):
            snapshot = next(each for each in store.snapshots() if each.name == name)
            data = b"".join([await read(snapshot, index) for index in range(110)])
            assert data == before[name]
        assert await read(store.volume("v"), 5) == pattern(5, 9)
    finally:
        await store.close()
    assert check_file(made, data=True).findings == []
    assert np.count_nonzero(image(env, made).births == layout.BIRTH_FREE) < 40
