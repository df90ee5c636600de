"""Raw images in and out."""

import random
from pathlib import Path

import pytest

from engine.errors import AlreadyExists, InvalidArgument, NotFound
from tests.support.engine import opened

MIB = 1 << 20
ROOT = "472919e6b7210e17489155d7a7bdd83a"
"""Of the image below; proofs of earlier versions must stay checkable."""


@pytest.fixture
async def engine(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        yield engine


async def done(engine, job):
    while job.finished_at is None:
        job = await engine.api.job_wait(job.job, after_version=job.version)
    assert job.state == "Completed", job.message
    return job


def sparse_image(path: Path, size: int) -> bytes:
    rng = random.Random(3)
    with path.open("wb") as file:
        file.truncate(size)
        for offset in (0, 3 * MIB + 4096, size - 1000):
            file.seek(offset)
            file.write(rng.randbytes(min(100_000, size - offset)))
    return path.read_bytes()


@pytest.mark.parametrize("size", [8 * MIB, 5 * MIB + 512, 4 * MIB + 100], ids=["chunks", "sectors", "odd"])
async def test_an_image_goes_in_and_comes_out_the_same_and_sparse(engine, tmp_path, size):
    image = tmp_path / "in.raw"
    data = sparse_image(image, size)
    job = await done(engine, await engine.api.volume_import(str(image), "v", expose=True))
    assert job.total_bytes < MIB, "holes are not read"
    info = await engine.api.volume_show("v")
    assert info.size_bytes == -(-size // 512) * 512
    assert info.target is not None
    assert (await engine.api.volume_space("v")).mapped_bytes < MIB
    out = tmp_path / "out.raw"
    exported = await done(engine, await engine.api.volume_export("v", None, str(out)))
    assert out.read_bytes() == data + bytes(-size % 512)
    assert out.stat().st_blocks * 512 < MIB
    assert exported.result["root"] == job.result["root"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.raw", "out.raw", "pool"]
    assert not engine.pool.volume("v").head.store.snapshots()


async def test_a_snapshot_is_exported_as_it_was(engine, tmp_path):
    await engine.api.volume_create("v", MIB)
    await engine.pool.volume("v").write(0, memoryview(b"old!" * 128))
    await engine.api.snapshot_create("v", "s")
    await engine.pool.volume("v").write(0, memoryview(b"new!" * 128))
    await done(engine, await engine.api.volume_export("v", "s", str(tmp_path / "s.raw")))
    assert (tmp_path / "s.raw").read_bytes()[:4] == b"old!"


async def test_an_existing_file_is_replaced_only_when_that_is_meant(engine, tmp_path):
    await engine.api.volume_create("v", MIB)
    out = tmp_path / "out.raw"
    out.write_bytes(b"precious")
    with pytest.raises(AlreadyExists):
        await engine.api.volume_export("v", None, str(out))
    assert out.read_bytes() == b"precious"
    await done(engine, await engine.api.volume_export("v", None, str(out), replace=True))
    assert out.read_bytes() == bytes(MIB)


async def test_what_cannot_be_is_refused_and_leaves_nothing(engine, tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "i").write_bytes(bytes(MIB))
    with pytest.raises(NotFound):
        await engine.api.volume_import(str(tmp_path / "missing"), "v")
    with pytest.raises(InvalidArgument):
        await engine.api.volume_import(str(tmp_path / "empty"), "v")
    with pytest.raises(InvalidArgument):
        await engine.api.volume_import("i", "v")
    with pytest.raises(InvalidArgument):
        await engine.api.volume_import(str(tmp_path / "i"), "No Name")
    await engine.api.volume_create("v", MIB)
    with pytest.raises(AlreadyExists):
        await engine.api.volume_import(str(tmp_path / "i"), "v")
    with pytest.raises(InvalidArgument):
        await engine.api.volume_export("v", None, str(tmp_path / "no" / "folder"))
    assert [v.name for v in await engine.api.volume_list()] == ["v"]


@pytest.mark.parametrize("chunk", [65536, 262144])
async def test_the_root_does_not_depend_on_chunks_or_on_stored_zeroes(engine, tmp_path, chunk):
    data = bytearray(random.Random(5).randbytes(3 * MIB + 65536))
    for start, end in ((65536, 131072), (MIB, MIB + 300_000), (2 * MIB, 2 * MIB + 262144)):
        data[start:end] = bytes(end - start)
    (tmp_path / "i").write_bytes(data)
    job = await done(engine, await engine.api.volume_import(str(tmp_path / "i"), "v", chunk_bytes=chunk))
    root = await done(engine, await engine.api.volume_root("v"))
    assert job.result["root"] == root.result["root"] == ROOT
    volume = engine.pool.volume("v")
    found = bytearray(len(data))
    await volume.read(0, memoryview(found))
    assert found == data
    await volume.write(65536, memoryview(bytes(65536)))
    assert (await done(engine, await engine.api.volume_root("v"))).result["root"] == ROOT
    await done(engine, await engine.api.clone_copy("v", None, "c"))
    assert (await done(engine, await engine.api.volume_root("c"))).result["root"] == ROOT
