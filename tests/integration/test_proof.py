"""A proof document, checked again by every kind of holder, by the commands that users type."""

import json
from pathlib import Path

import pytest

from engine.secret_files import write_secret
from tests.integration import vm_host
from tests.support.daemon import Daemon, twinvol
from tests.support.vm_peers import Peers


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


def test_a_proof_is_checked_on_the_other_side_and_refused_after_one_flipped_bit(tmp_path: Path):
    """Of the document, wherever it is; of the copy, once nobody watches."""
    data, proof = b"A leaf of its own. " * 3000, tmp_path / "proof.json"
    image = tmp_path / "image.raw"
    image.write_bytes(data + bytes((4 << 20) - len(data)))
    with Peers.running(tmp_path) as peers:
        peers.run("source", "volume", "import", "v", "--from", str(image))
        peers.run("source", "replica", "create", "v", "r", "--mode", "sync", "--peer", "target")
        peers.run("source", "replica", "proof", "r", "--out", str(proof))
        target = peers.pool("target")

        def check(document: Path = proof) -> int:
            done = twinvol("proof", "check", str(document), "--volume", "r", "--pool", str(target))
            assert "Traceback" not in done.stderr
            return done.returncode

        assert check() == 0
        text, flipped = proof.read_bytes(), tmp_path / "flipped.json"
        for at in (text.index(b'"root"') + 12, len(text) // 2, len(text) - 20):
            flipped.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
            assert check(flipped) in (2, 9), f"byte {at}"

        vm_host.run("kill", peers.pool("source"))
        vm_host.run("kill", target)
        (file,) = (target / "volumes").glob("r.tvol")
        with file.open("r+b") as copy:
            at = copy.read().index(data[:64]) + 5
            copy.seek(at)
            copy.write(bytes([data[5] ^ 0x10]))
        vm_host.run("start", target, peers.portals["target"], "--peer", peers.addresses["target"])
        assert check() == 9
