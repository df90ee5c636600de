"""Crash images of a real daemon's run; ``python -m tests.crash_images`` makes more of them."""

from __future__ import annotations

from itertools import islice

import pytest

from engine.file_trace import Kind, Record, read_trace
from tests.crash_images.images import images
from tests.crash_images.recording import Recording, record
from tests.support.volume_oracle import Violation

IMAGES = 60
SEED = 1


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return record(tmp_path_factory.mktemp("traced"), seed=SEED, operations=80, kills=1)


def test_every_image_keeps_what_was_promised(recording: Recording):
    for moment, seed, examine in images(recording, IMAGES, SEED):
        try:
            examine()
        except Violation as violation:
            pytest.fail(f"record {moment} of {recording.trace}, image {seed}: {violation}")


def test_a_daemon_that_forgot_its_syncs_would_be_caught(recording: Recording):
    """Every third sync of the same run is taken for one that never was."""
    syncs = [record.number for record in read_trace(recording.trace) if record.kind is Kind.SYNC]
    forgotten = set(islice(syncs, 0, None, 3))

    def believed(record: Record) -> bool:
        return record.number not in forgotten

    def examine_all() -> None:
        for _, _, examine in images(recording, 10 * IMAGES, SEED, believed=believed):
            examine()

    with pytest.raises(Violation):
        examine_all()


def test_a_trace_that_was_cut_off_ends_at_its_last_whole_record(recording: Recording, tmp_path):
    whole = list(read_trace(recording.trace))
    cut = tmp_path / "trace"
    cut.write_bytes(recording.trace.read_bytes()[:-1])
    assert list(read_trace(cut)) == whole[:-1]
