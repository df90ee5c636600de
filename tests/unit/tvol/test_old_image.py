"""A file that version 1 wrote, kept as it was: whoever changes the format must still read it.

``data/version_1.tvol.xz`` was copied from under a running process: the last flush covers the fours, not the fives.
"""

import lzma
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.files import RealFileSystem, StoreEnv, SystemClock, ThreadWorkers
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.tvol.layout import Superblock

IMAGE = Path(__file__).parent / "data" / "version_1.tvol.xz"
SIZE = (1 << 20) + 3 * 512
KIB = 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "old.tvol"
    made.write_bytes(lzma.decompress(IMAGE.read_bytes()))
    return made


@dataclass
class Booted(RealFileSystem):
    """The host's files in a boot of one's choice."""

    boot: str

    def boot_id(self) -> str:
        return self.boot


async def content(device):
    data = bytearray(device.size_bytes)
    await device.read(0, memoryview(data))
    return bytes(data)


def test_check_finds_nothing_wrong(path):
    report = check_file(path)
    assert not report.findings
    assert report.replayable


@pytest.mark.parametrize("same_boot", [True, False])
async def test_what_was_flushed_is_there_and_the_rest_if_the_page_cache_survived(path, same_boot):
    boot = Superblock.parse(path.read_bytes()[:4096]).boot_id
    workers = ThreadWorkers(1)
    env = StoreEnv(Booted(boot if same_boot else "another"), workers, SystemClock())
    store = await TvolFile.open(env, path)
    first = b"1" * 256 * KIB
    second = b"1" * 64 * KIB + b"2" * 64 * KIB + bytes(128 * KIB)
    tail = (b"4" * 4 * KIB).ljust(64 * KIB, b"\0") + (b"5" * 4 * KIB if same_boot else b"")
    disk = (second.ljust(512 * KIB, b"\0") + tail).ljust(1024 * KIB, b"\0") + b"3" * 1536
    copy = first[: 4 * KIB] + b"c" * 512 + first[4 * KIB + 512 :]
    assert await content(store.volume("disk")) == disk
    assert await content(store.volume("copy")) == copy.ljust(SIZE, b"\0")
    assert [(s.name, s.guid) for s in store.snapshots()] == [("first", "guid-first"), ("second", "guid-second")]
    assert [await content(s) for s in store.snapshots()] == [first.ljust(SIZE, b"\0"), second.ljust(SIZE, b"\0")]
    staging = store.staging(store.volume("copy").volume_id)
    assert staging is not None
    assert await content(staging) == (b"s" * 4 * KIB).ljust(SIZE, b"\0")
    await store.close()
    assert not check_file(path).findings
    workers.close()
