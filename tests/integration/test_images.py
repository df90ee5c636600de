"""Images against other programs: what is exported is read by qemu-img and libvhdi, what qemu-img made is imported."""

# ruff: noqa: ASYNC221, ASYNC240 - blocking on purpose: nothing else is to run meanwhile.

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from engine.errors import NotFound, NotSupported, StoreCorrupt
from engine.units import GIB, KIB, MIB
from engine.vhdx.chain import VhdxImage
from engine.vhdx.layout import BlockState
from engine.vhdx.log import LogEntry, Page
from tests.integration.test_qemu import run
from tests.support.clients import SYSTEM_PYTHON
from tests.support.daemon import twinvol
from tests.support.engine import opened
from tests.support.vhdx_files import BAT_AT, Block, MadeVhdx
from tests.unit.engine.test_vhdx import chain, noise

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from engine.api import JobInfo
    from tests.support.daemon import Daemon
    from tests.support.engine import Engine

pytestmark = pytest.mark.client("qemu-img")

SIZE = 40 * MIB + 512
FULL = BlockState.FULLY_PRESENT

READ_WITH_LIBVHDI = """
import pyvhdi, sys
chain = []
for path in sys.argv[1:]:
    one = pyvhdi.file()
    one.open(path)
    if chain:
        chain[-1].set_parent(one)
    chain.append(one)
size = chain[0].get_media_size()
at = 0
while at < size:
    data = chain[0].read_buffer_at_offset(min(1 << 20, size - at), at)
    sys.stdout.buffer.write(data)
    at += len(data)
"""


READ_PLACES_WITH_LIBVHDI = """
import pyvhdi, sys
disk = pyvhdi.file()
disk.open(sys.argv[1])
for place in sys.argv[2:]:
    sys.stdout.buffer.write(disk.read_buffer_at_offset(512, int(place)))
"""


def read_places_with_libvhdi(path: Path, places: Iterable[int]) -> bytes:
    """A sector at each of these places."""
    command = [SYSTEM_PYTHON, "-c", READ_PLACES_WITH_LIBVHDI, str(path), *map(str, places)]
    return subprocess.run(command, capture_output=True, check=True).stdout


def read_with_libvhdi(*paths: Path) -> bytes:
    """The disk as libvhdi reads it; a differencing file with its parents behind it."""
    command = [SYSTEM_PYTHON, "-c", READ_WITH_LIBVHDI, *map(str, paths)]
    return subprocess.run(command, capture_output=True, check=True).stdout


class Images:
    """Imports and exports of a pool in this process, to their ends."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.api = engine.api

    async def put(self, name: str, offset: int, data: bytes) -> None:
        """Write to a volume."""
        await self._engine.pool.volume(name).write(offset, memoryview(data))

    async def take(self, name: str, path: Path) -> dict[str, Any]:
        """Import; the job's result with the volume's size."""
        result = await self._end(await self.api.volume_import(str(path), name))
        return {**result, "size_bytes": (await self.api.volume_show(name)).size_bytes}

    async def give(self, name: str, path: Path, image_format: str = "raw") -> dict[str, Any]:
        """Export; the job's result."""
        volume, _, snapshot = name.partition("@")
        return await self._end(await self.api.volume_export(volume, snapshot or None, str(path), format=image_format))

    async def _end(self, job: JobInfo) -> dict[str, Any]:
        while job.finished_at is None:
            job = await self.api.job_wait(job.job, after_version=job.version)
        assert job.state == "Completed", job.message
        return job.result


@pytest.fixture
async def images(tmp_path: Path) -> AsyncIterator[Images]:
    async with opened(tmp_path / "pool") as engine:
        yield Images(engine)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A sparse raw image: data at its beginning and end, across block boundaries, and single sectors."""
    path = tmp_path / "image.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for at, length in (
            (0, 100_000),
            (2 * MIB - 4096, 8192),
            (9 * MIB + 512, 512),
            (17 * MIB, 5 * MIB),
            (SIZE - 512, 512),
        ):
            file.seek(at)
            file.write(random.Random(at).randbytes(length))
    return path


def identical(raw: Path, other: Path, image_format: str) -> None:
    assert "Images are identical" in run("qemu-img", "compare", "-f", "raw", "-F", image_format, raw, other)


def stored(path: Path) -> int:
    return path.stat().st_blocks * 512


# --- export -------------------------------------------------------------------------------------------------------


@pytest.mark.client("libvhdi")
@pytest.mark.parametrize(("image_format", "kind"), [("vhdx", "Dynamic"), ("vhdx-fixed", "Fixed")])
async def test_exported_vhdx_is_what_qemu_and_libvhdi_read(
    images: Images, image: Path, tmp_path: Path, image_format: str, kind: str
):
    imported = await images.take("v", image)
    made = tmp_path / "out.vhdx"
    exported = await images.give("v", made, image_format)
    assert exported["root"] == imported["root"]
    assert "No errors were found" in run("qemu-img", "check", "-f", "vhdx", made)
    info = json.loads(run("qemu-img", "info", "-f", "vhdx", "--output=json", made))
    assert (info["virtual-size"], info["cluster-size"]) == (SIZE, 2 * MIB)
    identical(image, made, "vhdx")
    text = run("vhdiinfo", made)
    assert f"Disk type\t\t: {kind}" in text
    assert f"({SIZE} bytes)" in text
    assert "Bytes per sector\t: 512 bytes" in text
    assert read_with_libvhdi(made) == image.read_bytes()
    assert stored(made) < stored(image) + MIB, "holes stay holes"
    again = await images.take("again", made)
    assert (again["root"], again["format"], again["size_bytes"]) == (imported["root"], "vhdx", SIZE)


@pytest.mark.client("libvhdi")
async def test_a_large_disk_is_exported_with_large_blocks(images: Images, tmp_path: Path):
    """From a TiB on the blocks have 32 MiB; what is read at a few places is right, up to the last sector."""
    size, places = 1025 * GIB, (0, 513 * GIB + 64 * KIB, 1025 * GIB - 64 * KIB)
    await images.api.volume_create("large", size)
    for number, place in enumerate(places, 1):
        await images.put("large", place, bytes([number]) * 64 * KIB)
    made = tmp_path / "large.vhdx"
    await images.give("large", made, "vhdx")
    assert "No errors were found" in run("qemu-img", "check", "-f", "vhdx", made)
    info = json.loads(run("qemu-img", "info", "-f", "vhdx", "--output=json", made))
    assert (info["virtual-size"], info["cluster-size"]) == (size, 32 * MIB)
    for number, place in enumerate(places, 1):
        reads = f"read -P {number} {place} 64k", f"read -P 0 {(place + 64 * KIB) % size if number < 3 else 64 * KIB} 4k"
        told = run("qemu-io", "-r", "-f", "vhdx", *(word for read in reads for word in ("-c", read)), made)
        assert "Pattern verification failed" not in told
    assert f"({size} bytes)" in run("vhdiinfo", made)
    assert read_places_with_libvhdi(made, places) == b"".join(bytes([number]) * 512 for number in (1, 2, 3))
    assert stored(made) < 8 * MIB, "the table of blocks, and what was written"


async def test_qemu_writes_to_an_exported_file_and_it_is_read_again(images: Images, image: Path, tmp_path: Path):
    await images.take("v", image)
    made = tmp_path / "out.vhdx"
    await images.give("v", made, "vhdx")
    writes = ("write -P 0xab 30M 4k", "write -P 0xcd 1M 3M", "write -P 0xef 39M 64k")
    for path, image_format in ((made, "vhdx"), (image, "raw")):
        run("qemu-io", "-f", image_format, *(word for write in writes for word in ("-c", write)), path)
    await images.take("changed", made)
    await images.give("changed", tmp_path / "changed.raw")
    identical(image, tmp_path / "changed.raw", "raw")


async def test_a_snapshot_goes_out_as_qcow2_and_comes_back(images: Images, image: Path, tmp_path: Path):
    imported = await images.take("v", image)
    await images.api.snapshot_create("v", "s")
    made = tmp_path / "out.qcow2"
    exported = await images.give("v@s", made, "qcow2")
    assert exported["root"] == imported["root"]
    run("qemu-img", "check", "-f", "qcow2", made)
    identical(image, made, "qcow2")
    again = await images.take("again", made)
    assert (again["root"], again["format"]) == (imported["root"], "qcow2")
    assert sorted(path.name for path in tmp_path.iterdir() if "part" in path.name) == []


# --- import -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
@pytest.mark.parametrize("block", ["1M", "8M", "256M"])
async def test_vhdx_that_qemu_made_is_imported(images: Images, image: Path, tmp_path: Path, subformat: str, block: str):
    made, options = tmp_path / "in.vhdx", f"subformat={subformat},block_size={block},log_size=4M"
    run("qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", options, image, made)
    imported = await images.take("v", made)
    assert imported["format"] == "vhdx"
    await images.give("v", tmp_path / "out.raw")
    identical(image, tmp_path / "out.raw", "raw")
    assert stored(tmp_path / "out.raw") <= stored(image) + MIB


async def test_vhdx_that_qemu_wrote_to_and_never_closed_is_imported(images: Images, tmp_path: Path):
    """QEMU ends within its write: whatever its log holds then is replayed."""
    made, ours = tmp_path / "in.vhdx", tmp_path / "copy.vhdx"
    run("qemu-img", "create", "-f", "vhdx", "-o", "block_size=1M", made, "64M")
    writes = [word for at in range(12) for word in ("-c", f"write -P {at + 1} {at * 5}M 3M")]
    command = ["qemu-io", "-f", "vhdx", *writes, "-c", "abort", str(made)]
    assert subprocess.run(command, capture_output=True, check=False).returncode < 0
    shutil.copy(made, ours)
    await images.take("v", ours)
    await images.give("v", tmp_path / "out.raw")
    run("qemu-img", "check", "-r", "all", "-f", "vhdx", made)
    identical(tmp_path / "out.raw", made, "vhdx")


def dirty() -> MadeVhdx:
    """A valid log with two entries that the table does not have yet: both blocks appear by its replay."""
    guid = uuid.UUID(int=77)
    made = MadeVhdx(8 * MIB, log_guid=guid)
    made.blocks = {0: Block(FULL, noise(0)), 5: Block(FULL, noise(5))}
    made.entries = {0: 0, 5: 0}
    at, size = {0: 4 * MIB, 5: 5 * MIB}, 6 * MIB

    def page(**present: int) -> bytes:
        table = [at[number] | FULL if f"b{number}" in present else 0 for number in range(512)]
        return b"".join(entry.to_bytes(8, "little") for entry in table)

    made.log = [
        LogEntry(3, 0, guid, size, size, (Page(BAT_AT, page(b0=1)),)),
        LogEntry(4, 0, guid, size, size, (Page(BAT_AT, page(b0=1, b5=1)),)),
    ]
    return made


async def test_a_dirty_log_is_replayed_to_the_bytes_that_qemu_replays_it_to(images: Images, tmp_path: Path):
    made = dirty().write(tmp_path / "dirty.vhdx")
    before = made.read_bytes()
    asked = subprocess.run(["qemu-img", "check", "-f", "vhdx", made], capture_output=True, text=True, check=False)
    assert "needs to be replayed" in asked.stderr, "QEMU takes it for a log in use, too"
    await images.take("v", made)
    assert made.read_bytes() == before
    await images.give("v", tmp_path / "out.raw")
    run("qemu-img", "check", "-r", "all", "-f", "vhdx", made)
    identical(tmp_path / "out.raw", made, "vhdx")
    assert (tmp_path / "out.raw").read_bytes() == noise(0) + bytes(4 * MIB) + noise(5) + bytes(2 * MIB)


@pytest.mark.client("libvhdi")
@pytest.mark.parametrize("sector", [512, 4096])
async def test_a_differencing_chain_reads_as_libvhdi_reads_it(tmp_path: Path, sector: int):
    """But for blocks in state 1 to 3, of which libvhdi asks the parent: those are made full ones here."""
    top = chain(tmp_path, sector)
    one: MadeVhdx | None = top
    for name in ("top", "parent", "base"):
        assert one is not None
        for block in one.blocks.values():
            if block.state in (BlockState.UNDEFINED, BlockState.ZERO, BlockState.UNMAPPED):
                block.state, block.data = FULL, bytes(MIB)
        one.write(tmp_path / f"{name}.vhdx")
        one = one.parent
    image = await VhdxImage.open(tmp_path / "top.vhdx")
    data = bytearray(image.size_bytes)
    await image.read(0, memoryview(data))
    await image.close()
    assert data == top.content()
    assert data == read_with_libvhdi(*(tmp_path / f"{name}.vhdx" for name in ("top", "parent", "base")))


async def test_a_differencing_chain_is_imported_as_one_disk(images: Images, tmp_path: Path):
    top = chain(tmp_path)
    imported = await images.take("v", tmp_path / "top.vhdx")
    assert imported["size_bytes"] == top.size_bytes
    await images.give("v", tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == top.content()
    (tmp_path / "base.vhdx").unlink()
    with pytest.raises(NotFound, match=r"parent of .*parent\.vhdx is called .*base\.vhdx"):
        await images.take("w", tmp_path / "top.vhdx")


# --- what qemu-img does not see -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "seen_by_qemu"),
    [
        (100 * MIB | FULL, True),
        (BAT_AT | FULL, True),
        (0 | FULL, False),
        (4 * MIB | FULL, False),
        (BlockState.PARTIALLY_PRESENT | 5 * MIB, False),
        (4, False),
        (5 * MIB | FULL | 8, False),
    ],
    ids=["end of file", "BAT", "headers", "two at one place", "partial without parent", "state 4", "reserved bits"],
)
async def test_damage_is_refused_whether_qemu_sees_it_or_not(
    images: Images, tmp_path: Path, entry: int, seen_by_qemu: bool
):
    made = MadeVhdx(4 * MIB, blocks={0: Block(FULL, noise(0)), 1: Block(FULL, noise(1))}, entries={1: entry})
    path = made.write(tmp_path / "d.vhdx")
    checked = subprocess.run(["qemu-img", "check", "-f", "vhdx", path], capture_output=True, check=False)
    assert (checked.returncode != 0) == seen_by_qemu
    with pytest.raises(StoreCorrupt, match=re.escape(f"{path}: ")):
        await images.take("v", path)
    assert await images.api.volume_list() == []


@pytest.mark.parametrize(
    ("create", "what"),
    [
        (["-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2"], "backing file"),
        (["-f", "qcow2", "-o", "data_file=data.raw"], "another file"),
        (["-f", "vmdk"], "VMDK"),
        (["-f", "vpc"], "VHD"),
        (["-f", "vdi"], "VDI"),
    ],
)
async def test_what_is_not_supported_is_refused(images: Images, tmp_path: Path, create: list[str], what: str):
    def made(*arguments: str) -> None:
        subprocess.run(["qemu-img", "create", "-q", *arguments], cwd=tmp_path, check=True, capture_output=True)

    made("-f", "qcow2", "base.qcow2", "1M")
    made(*create, "image", "1M")
    with pytest.raises(NotSupported, match=what):
        await images.take("v", tmp_path / "image")


def test_exit_codes(daemon: Daemon, tmp_path: Path):
    def code(name: str) -> int:
        pool = str(daemon.pool)
        return twinvol("volume", "import", "v", "--from", str(tmp_path / name), "--pool", pool).returncode

    chain(tmp_path)
    (tmp_path / "base.vhdx").unlink()
    MadeVhdx(4 * MIB, entries={1: 4}).write(tmp_path / "damaged")
    run("qemu-img", "create", "-f", "vmdk", tmp_path / "other", "1M")
    assert [code(name) for name in ("nothing", "top.vhdx", "damaged", "other")] == [3, 3, 9, 6]
    assert daemon.run("volume", "list")["volumes"] == []


async def test_blocks_of_64_kib_that_are_zero_are_not_stored(images: Images, tmp_path: Path):
    """A fixed file that is full of zeroes: what is written there as zeroes becomes holes."""
    with (tmp_path / "zeroes.raw").open("wb") as file:
        file.write(bytes(8 * MIB))
        file.write(noise(1, 64 * KIB))
    await images.take("v", tmp_path / "zeroes.raw")
    assert (await images.api.volume_space("v")).mapped_bytes == 64 * KIB
