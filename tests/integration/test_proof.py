"""A proof document, checked again by every kind of holder, by the commands that users type."""

import json
from pathlib import Path

import pytest

from engine.secret_files import write_secret
from tests.support.daemon import Daemon, twinvol


@pytest.fixture
def daemon(tmp_path: Path):
    with Daemon.start(tmp_path / "pool") as daemon:
        yield daemon


def test_a_proof_holds_for_every_copy_and_for_nothing_else(daemon, tmp_path):
    image = tmp_path / "image.raw"
    image.write_bytes(bytes(range(256)) * 4096 + bytes(4 << 20))
    daemon.run("volume", "import", "a", "--from", str(image), "--expose")
    daemon.run("replica", "create", "a", "b", "--mode", "sync")
    proof = tmp_path / "proof.json"
    made = daemon.run("replica", "proof", "b", "--out", str(proof))
    daemon.run("volume", "export", "b", "--to", str(tmp_path / "out.raw"))
    holders = (
        ("--volume", "a", "--pool", str(daemon.pool)),
        ("--volume", "b", "--pool", str(daemon.pool)),
        ("--image", str(tmp_path / "out.raw")),
        ("--url", daemon.url(daemon.run("volume", "show", "a"))),
    )
    for holder in holders:
        done = twinvol("proof", "check", str(proof), *holder, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["root"] == made["root"]
    with (tmp_path / "out.raw").open("r+b") as file:
        file.seek(5000)
        file.write(b"x")
    assert twinvol("proof", "check", str(proof), "--image", str(tmp_path / "out.raw")).returncode == 9
    assert twinvol("proof", "check", str(image), "--image", str(image)).returncode == 2
    assert twinvol("proof", "check", str(proof)).returncode == 2


def test_a_holder_behind_chap(daemon, tmp_path):
    proof, right, wrong, readable = (tmp_path / name for name in ("proof.json", "right", "wrong", "readable"))
    url = daemon.volume("a", "4M")
    daemon.run("replica", "create", "a", "b", "--mode", "sync")
    daemon.run("replica", "proof", "b", "--out", str(proof))
    write_secret(right, "correct horse 1")
    write_secret(wrong, "something else 2")
    write_secret(readable, "correct horse 1")
    readable.chmod(0o644)
    daemon.run("target", "chap", "set", "a", "--user", "alice", "--secret-file", str(right))
    alice = url.replace("iscsi://", "iscsi://alice@")

    def check(*holder: str) -> int:
        done = twinvol("proof", "check", str(proof), "--json", *holder)
        assert "correct horse" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.returncode

    assert check("--url", alice, "--secret-file", str(right)) == 0
    assert check("--url", alice.replace("alice", "alice%correct horse 1")) == 0
    assert check("--url", alice, "--secret-file", str(wrong)) == 1
    assert check("--url", url) == 1
    assert check("--url", alice) == 2, "a user without a secret"
    assert check("--url", url, "--secret-file", str(right)) == 2, "a secret without a user"
    assert check("--url", alice, "--secret-file", str(readable)) == 7
    assert check("--image", str(right), "--secret-file", str(right)) == 2
