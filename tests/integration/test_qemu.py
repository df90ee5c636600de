"""QEMU's own iSCSI initiator (libiscsi): a real ext4 image to a LUN and back, bench and qemu-io against it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemon import Daemon

pytestmark = pytest.mark.client("qemu-iscsi")

SIZE = 64 << 20


def run(*command: str | Path) -> str:
    """Run a program; its output. Fails the test with both streams when it ends with another code than 0."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An ext4 file system with this repository's own sources in it."""
    path = tmp_path / "tree.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    run("mkfs.ext4", "-q", "-F", "-d", ROOT / "engine", path)
    return path


@pytest.mark.client("mkfs.ext4")
def test_a_real_image_goes_to_a_lun_and_back_unchanged(daemon: Daemon, image: Path, tmp_path: Path):
    url = daemon.volume("disk", str(SIZE))
    back = tmp_path / "back.img"
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, url)
    assert "Images are identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, url)
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", url, back)
    assert back.stat().st_size == SIZE
    run("cmp", image, back)
    run("e2fsck", "-f", "-n", back)


@pytest.mark.client("mkfs.ext4")
def test_an_image_survives_a_restart_of_the_daemon(daemon: Daemon, image: Path, tmp_path: Path):
    url = daemon.volume("disk", str(SIZE))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, url)
    assert daemon.stop() == 0
    with type(daemon).start(daemon.pool, iscsi=daemon.portal) as again:
        assert again.portal == daemon.portal
        assert "Images are identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, url)


def test_an_image_copied_from_lun_to_lun_with_many_requests_at_once(daemon: Daemon, tmp_path: Path):
    source, target = daemon.volume("source", str(SIZE)), daemon.volume("target", str(SIZE))
    run("qemu-io", "-f", "raw", "-c", "write -P 0x5a 1M 20M", "-c", "write -P 0xa5 33M 7M", "-c", "flush", source)
    run("qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", source, target)
    assert "Images are identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, target)


def test_qemu_io_reads_back_patterns_zeroes_and_discards(daemon: Daemon):
    url = daemon.volume("disk", str(SIZE))
    run(
        *("qemu-io", "-f", "raw", "-d", "unmap", "-c", "write -P 0x11 0 2M", "-c", "write -P 0x22 512 3584"),
        *("-c", "write -z 1M 64k", "-c", "discard 1536k 256k", "-c", "flush", url),
    )
    checks = ("read -P 0x11 0 512", "read -P 0x22 512 3584", "read -P 0x11 4k 1020k", "read -P 0 1M 64k")
    output = run("qemu-io", "-f", "raw", *(word for check in checks for word in ("-c", check)), url)
    assert "Pattern verification failed" not in output


@pytest.mark.parametrize("options", [("-w",), ("-w", "--flush-interval=64"), ()], ids=["write", "flush", "read"])
def test_qemu_img_bench_runs(daemon: Daemon, options: tuple[str, ...]):
    url = daemon.volume("disk", str(SIZE))
    output = run("qemu-img", "bench", "-f", "raw", "-c", "2000", "-d", "32", "-s", "4096", *options, url)
    assert "Run completed in" in output
