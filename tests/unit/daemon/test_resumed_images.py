"""Imports and exports that end in their middle, and go on; and what must not go on."""

# ruff: noqa: ASYNC240 - blocking on purpose: nothing else is to run meanwhile.

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING

import pytest

from engine.copy_job import STRIP_BYTES
from engine.errors import AlreadyExists, InUse, NotSupported
from engine.unfinished import part_of
from engine.units import MIB
from tests.support.engine import HeldMover, opened
from tests.unit.daemon.test_interchange import done

if TYPE_CHECKING:
    from pathlib import Path

    from engine.api import JobInfo
    from engine.movers import Mover
    from tests.support.engine import Engine

SIZE = 48 * MIB
POLL_S = 0.02
STRIPS = SIZE // STRIP_BYTES // 3


def image_of(path: Path, seed: int = 1, *, start: int = 0) -> bytes:
    """A raw image with noise from ``start`` on."""
    data = bytes(start) + random.Random(seed).randbytes(SIZE - start)
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.seek(start)
        file.write(data[start:])
    return data


def in_the_middle(mover: Mover) -> Mover:
    """Copies get no further than this, until they are let go."""
    return HeldMover(mover, STRIPS)


def let_go(engine: Engine) -> None:
    mover = engine.pool.env.mover
    assert isinstance(mover, HeldMover)
    mover.let_go()


async def some_of(engine: Engine, job: JobInfo) -> JobInfo:
    """Return when the job, which is held in its middle, has recorded something."""
    while True:
        job = await engine.api.job_show(job.job)
        if job.done_bytes or job.finished_at is not None:
            break
        await asyncio.sleep(POLL_S)
    assert job.state == "Running"
    return job


async def first_shown(engine: Engine, job: JobInfo) -> int:
    """How far the job was when it had counted what it goes on with."""
    while not job.done_bytes and job.finished_at is None:
        job = await engine.api.job_wait(job.job, after_version=job.version)
    return job.done_bytes


async def content(engine: Engine, name: str) -> bytes:
    found = bytearray(SIZE)
    for at in range(0, SIZE, MIB):
        await engine.pool.volume(name).read(at, memoryview(found)[at : at + MIB])
    return bytes(found)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("**/*") if "part" in path.name or path.suffix == ".ledger")


async def test_an_interrupted_import_goes_on_when_asked_again(tmp_path: Path):
    data = image_of(tmp_path / "i")
    async with opened(tmp_path / "pool", in_the_middle) as engine:
        job = await some_of(engine, await engine.api.volume_import(str(tmp_path / "i"), "v"))
    async with opened(tmp_path / "pool") as engine:
        assert (await engine.api.status()).interrupted_copies == ["v"]
        again = await engine.api.volume_import(str(tmp_path / "i"), "v")
        assert await first_shown(engine, again) >= job.done_bytes, "what the ledger has is not copied again"
        await done(engine, again)
        assert await content(engine, "v") == data
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("changed", ["image", "chunk", "another"])
async def test_an_import_of_something_else_begins_from_the_start(tmp_path: Path, changed: str):
    """Of other content, with holes where the first one had data: nothing of the first may shine through."""
    image_of(tmp_path / "i")
    async with opened(tmp_path / "pool", in_the_middle) as engine:
        await some_of(engine, await engine.api.volume_import(str(tmp_path / "i"), "v"))
    name = "another" if changed == "another" else "i"
    data = image_of(tmp_path / name, 2, start=SIZE // 2) if changed != "chunk" else (tmp_path / "i").read_bytes()
    async with opened(tmp_path / "pool") as engine:
        chunk = 262144 if changed == "chunk" else 65536
        await done(engine, await engine.api.volume_import(str(tmp_path / name), "v", chunk_bytes=chunk))
        assert await content(engine, "v") == data


async def test_an_import_is_not_gone_on_with_by_a_clone_of_the_same_name(tmp_path: Path):
    image_of(tmp_path / "i")
    async with opened(tmp_path / "pool", in_the_middle) as engine:
        await engine.api.volume_create("empty", SIZE)
        await some_of(engine, await engine.api.volume_import(str(tmp_path / "i"), "v"))
    async with opened(tmp_path / "pool") as engine:
        await done(engine, await engine.api.clone_copy("empty", None, "v"))
        assert await content(engine, "v") == bytes(SIZE)


async def test_an_image_that_changes_while_it_is_read_fails_the_import(tmp_path: Path):
    image_of(tmp_path / "i")
    async with opened(tmp_path / "pool", in_the_middle) as engine:
        job = await some_of(engine, await engine.api.volume_import(str(tmp_path / "i"), "v"))
        os.utime(tmp_path / "i", ns=(1, 1))
        let_go(engine)
        while job.finished_at is None:
            job = await engine.api.job_wait(job.job, after_version=job.version)
        assert (job.state, job.error) == ("Exception", "InvalidState")
        assert "nobody writes" in job.message
        assert await engine.api.volume_list() == []
        assert (await engine.api.status()).interrupted_copies == []


async def test_a_cancelled_import_leaves_nothing(tmp_path: Path):
    image_of(tmp_path / "i")
    async with opened(tmp_path / "pool", in_the_middle) as engine:
        job = await some_of(engine, await engine.api.volume_import(str(tmp_path / "i"), "v"))
        assert (await engine.api.job_cancel(job.job)).state == "Terminated"
        assert list((tmp_path / "pool").glob("**/v.*")) == []
        await engine.api.volume_create("v", MIB)


async def filled(engine: Engine, name: str = "v") -> bytes:
    await engine.api.volume_create(name, SIZE)
    data = random.Random(3).randbytes(SIZE)
    for at in range(0, SIZE, MIB):
        await engine.pool.volume(name).write(at, memoryview(data)[at : at + MIB])
    return data


@pytest.mark.parametrize("image_format", ["raw", "vhdx", "vhdx-fixed"])
async def test_an_interrupted_export_goes_on_with_the_same_instant(tmp_path: Path, image_format: str):
    out = tmp_path / "out"
    async with opened(tmp_path / "pool", in_the_middle) as engine:
        data = await filled(engine)
        job = await some_of(engine, await engine.api.volume_export("v", None, str(out), format=image_format))
        with pytest.raises(InUse):
            await engine.api.volume_export("v", None, str(out))
    async with opened(tmp_path / "pool") as engine:
        assert not out.exists()
        assert (await engine.api.status()).interrupted_exports == [str(out)]
        await engine.pool.volume("v").write(0, memoryview(b"later" * 1024).cast("B")[:4096])
        again = await engine.api.volume_export("v", None, str(out), format=image_format)
        assert await first_shown(engine, again) >= job.done_bytes
        await done(engine, again)
        await done(engine, await engine.api.volume_import(str(out), "w"))
        assert await content(engine, "w") == data
        assert (await engine.api.status()).interrupted_exports == []
        assert engine.pool.volume("v").head.store.snapshots() == []
    assert left_in(tmp_path) == []


async def test_an_export_in_another_format_begins_from_the_start(tmp_path: Path):
    out = tmp_path / "out"
    async with opened(tmp_path / "pool", in_the_middle) as engine:
        data = await filled(engine)
        await engine.api.snapshot_create("v", "s")
        await some_of(engine, await engine.api.volume_export("v", "s", str(out), format="vhdx"))
    async with opened(tmp_path / "pool") as engine:
        await done(engine, await engine.api.volume_export("v", "s", str(out)))
        assert out.read_bytes() == data
    assert left_in(tmp_path) == []


async def test_a_part_that_is_another_file_now_is_not_gone_on_with(tmp_path: Path):
    out = tmp_path / "out"
    async with opened(tmp_path / "pool", in_the_middle) as engine:
        data = await filled(engine)
        await some_of(engine, await engine.api.volume_export("v", None, str(out)))
    part = part_of(out)
    (tmp_path / "keep").write_bytes(b"")  # so that the inode is not used again
    part.rename(tmp_path / "old")
    part.write_bytes(bytes(SIZE))
    async with opened(tmp_path / "pool") as engine:
        await done(engine, await engine.api.volume_export("v", None, str(out)))
        assert out.read_bytes() == data


async def test_an_export_whose_part_is_gone_is_forgotten_with_its_snapshot(tmp_path: Path):
    out = tmp_path / "out"
    async with opened(tmp_path / "pool", in_the_middle) as engine:
        await filled(engine)
        await some_of(engine, await engine.api.volume_export("v", None, str(out)))
    part_of(out).unlink()
    async with opened(tmp_path / "pool") as engine:
        assert engine.pool.volume("v").head.store.snapshots() == []
        assert (await engine.api.status()).interrupted_exports == []
    assert left_in(tmp_path) == []


async def test_a_cancelled_export_leaves_nothing(tmp_path: Path):
    out = tmp_path / "out"
    async with opened(tmp_path / "pool", in_the_middle) as engine:
        await filled(engine)
        job = await some_of(engine, await engine.api.volume_export("v", None, str(out), format="vhdx"))
        assert (await engine.api.job_cancel(job.job)).state == "Terminated"
        assert engine.pool.volume("v").head.store.snapshots() == []
        assert [path.name for path in tmp_path.iterdir()] == ["pool"]
    assert left_in(tmp_path) == []


async def test_a_file_that_comes_while_an_export_runs_is_not_replaced(tmp_path: Path):
    out = tmp_path / "out"
    async with opened(tmp_path / "pool", in_the_middle) as engine:
        await filled(engine)
        job = await some_of(engine, await engine.api.volume_export("v", None, str(out)))
        out.write_bytes(b"precious")
        let_go(engine)
        while job.finished_at is None:
            job = await engine.api.job_wait(job.job, after_version=job.version)
        assert job.error == AlreadyExists.__name__
        assert out.read_bytes() == b"precious"
    assert left_in(tmp_path) == []


async def test_without_qemu_img_qcow2_is_not_supported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "i").write_bytes(b"QFI\xfb" + bytes(508))
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", MIB)
        with pytest.raises(NotSupported, match="qemu-img"):
            await engine.api.volume_import(str(tmp_path / "i"), "w")
        with pytest.raises(NotSupported, match="qemu-img"):
            await engine.api.volume_export("v", None, str(tmp_path / "out"), format="qcow2")


async def test_a_disk_too_large_for_vhdx_is_not_supported(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", (64 << 40) + 262144, chunk_bytes=262144)
        job = await engine.api.volume_export("v", None, str(tmp_path / "out"), format="vhdx")
        while job.finished_at is None:
            job = await engine.api.job_wait(job.job, after_version=job.version)
        assert (job.error, "64 TiB" in job.message) == ("NotSupported", True)
    assert left_in(tmp_path) == []
