"""The load generator's own initiator against twinvol and against tgtd, in every way of moving data that they know.

Its digests, segments and sequence numbers are checked by targets that do not share its code; what it reads back it
checks byte by byte.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bench.loadgen import OK, TARGET_LOST, USAGE, WRONG_BYTES, Loadgen, finish
from bench.targets import tgtd, why_no_tgtd
from tests.support.daemon import Daemon

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 32 << 20

pytestmark = pytest.mark.client("loadgen")


@pytest.fixture(scope="module", params=["twinvol", pytest.param("tgtd", marks=pytest.mark.client("tgtd"))])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A volume of one of the two targets. tgtd takes segments of 8 KiB, twinvol of 256 KiB."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "tgtd":
        if reason := why_no_tgtd():
            pytest.skip(reason)
        with tgtd(folder, "disk", SIZE, cpu=0) as endpoint:
            yield endpoint.url
    else:
        with Daemon.start(folder / "pool") as daemon:
            yield daemon.volume("disk", str(SIZE))


@pytest.fixture(scope="module")
def ledger(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the volume has to hold, over all tests of a target."""
    return tmp_path_factory.mktemp("ledger") / "ledger"


@pytest.mark.parametrize(
    "login",
    [
        {},
        {"digests": "both"},
        {"digests": "header", "crc": "portable"},
        {"digests": "data", "segment": 4096, "sessions": 3},
        {"initial_r2t": "yes"},
        {"immediate_data": "no", "first_burst": 65536, "max_burst": 131072},
        {"immediate_data": "no", "initial_r2t": "yes", "first_burst": 8192, "max_burst": 8192, "digests": "both"},
        {"first_burst": 512, "max_burst": 512},
        {"cdb": 10, "sessions": 8},
    ],
    ids=lambda login: " ".join(f"{name}={value}" for name, value in login.items()) or "as it is",
)
def test_every_way_of_moving_data(loadgen_program: Path, url: str, ledger: Path, login: dict[str, object]):
    generator = Loadgen(loadgen_program, url, ledger)
    for verb, options in (
        ("fill", {}),
        ("write", {"block": 65536, "pattern": "mixed", "depth": 8, "seconds": 0.2, "flush_every": 50}),
        ("verify", {}),
        ("read", {"depth": 32, "seconds": 0.1}),
    ):
        outcome = generator.run(verb, **options, **login)
        assert outcome.code == OK, outcome.explain()
        figures = outcome.figures
        assert figures["ios"] == sum(count for _, count in figures["histogram_us"]) > 0
        assert (figures["failure"], figures["wrong_sectors"]) == (None, 0)


def test_wrong_bytes_are_noticed(loadgen_program: Path, url: str, tmp_path: Path):
    generator = Loadgen(loadgen_program, url, tmp_path / "ledger")
    assert generator.run("fill").code == OK
    claimed = np.fromfile(generator.ledger, dtype=np.uint32).reshape(-1, 2)
    claimed[[1, 4000]] = 9  # as if nine writes of these two granules had been acknowledged
    claimed.tofile(generator.ledger)
    verified = generator.run("verify")
    assert (verified.code, verified.figures["wrong_sectors"]) == (WRONG_BYTES, 16)
    assert "sector 8: expected generation 9..9" in verified.stderr
    assert generator.run("read", depth=32, seconds=0.5, span=4 << 20).code == WRONG_BYTES


def test_idle_sessions_stay_until_they_are_told(loadgen_program: Path, url: str, tmp_path: Path):
    command = [str(loadgen_program), "idle", url, "--sessions", "16"]
    idle = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert idle.stdout is not None
    assert idle.stdout.readline() == '{"sessions": 16}\n'
    assert Loadgen(loadgen_program, url, tmp_path / "ledger").run("fill").code == OK
    assert idle.poll() is None
    assert finish(idle).code == OK  # which closes its stdin


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda url: url.replace("iscsi://", "http://"), USAGE),
        (lambda url: url.replace("iscsi://", "iscsi://user%secret@"), USAGE),
        (lambda url: url.replace(".bench:", ".nobody:").replace("twinvol:disk", "twinvol:nobody"), TARGET_LOST),
        (lambda url: url.rpartition("/")[0] + "/9", USAGE),
    ],
    ids=["scheme", "credentials", "no such target", "no such LUN"],
)
def test_a_wrong_url_is_refused(loadgen_program: Path, url: str, tmp_path: Path, spoil, code: int):
    assert Loadgen(loadgen_program, spoil(url), tmp_path / "ledger").run("read").code == code
