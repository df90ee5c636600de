"""Crash images of a real daemon with a journaled file system in its volume."""

from __future__ import annotations

import random
import subprocess
from itertools import islice

import pytest

from engine.file_trace import Kind, Record, read_trace
from tests.crash_images.filesystem import MKFS, SIZE, Image, Mounted, record_filesystem
from tests.crash_images.images import images
from tests.support.volume_oracle import Violation

IMAGES = 16
SEED = 1

pytestmark = pytest.mark.client("mkfs.ext4")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory):
    return record_filesystem(tmp_path_factory.mktemp("traced"), seed=SEED, files=4, kills=1)


def test_every_image_is_mounted_and_has_its_files(recording):
    made, contents = recording
    for moment, seed, examine in images(made, IMAGES, SEED, promises=Mounted(contents)):
        try:
            examine()
        except Violation as violation:
            pytest.fail(f"record {moment} of {made.trace}, image {seed}: {violation}")


def test_a_daemon_that_forgot_its_syncs_would_be_caught(recording):
    """Two of three syncs of the same run are taken for ones that never were."""
    made, contents = recording
    syncs = [record.number for record in read_trace(made.trace) if record.kind is Kind.SYNC]
    kept = set(islice(syncs, 0, None, 3))

    def believed(record: Record) -> bool:
        return record.kind is not Kind.SYNC or record.number in kept

    def examine_all() -> None:
        for _, _, examine in images(made, 10 * IMAGES, SEED, promises=Mounted(contents), believed=believed):
            examine()

    with pytest.raises(Violation):
        examine_all()


def test_the_judge_sees_a_transaction_that_is_not_whole(tmp_path):
    """Committed, with one block of it lost: the tools notice, or the file is not what it was."""
    (tmp_path / "made").mkdir()
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    subprocess.run([*MKFS, str(path)], check=True, capture_output=True)
    image = Image(tmp_path / "made", path.read_bytes())
    data = random.Random(1).randbytes(30_000)
    whole = image.with_transaction("a", data)
    found = Image(tmp_path / "made", whole)
    found.recover()
    found.check()
    assert found.files(["a", "b"]) == {"a": data}
    lost = bytearray(whole)
    at = whole.index(data[4096:8192])
    lost[at : at + 4096] = bytes(4096)
    image.content = bytes(lost)
    try:
        image.recover()
        image.check()
    except Violation:
        return
    assert image.files(["a"]) != {"a": data}
