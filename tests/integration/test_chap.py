"""Foreign initiators that have to prove who they are: QEMU and libiscsi's tools, with the right secret and without.

The kernel's own initiator is in ``test_initiator_vm.py``.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from engine.secret_files import write_secret
from tests.support.daemon import twinvol

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemon import Daemon


SECRET, WRONG, MUTUAL = "correct horse 1", "something else 2", "battery staple 3"


@dataclass
class Disk:
    """A volume behind CHAP for ``alice``, and for ``finder`` in discovery; secret files of both kinds."""

    daemon: Daemon
    url: str
    right: Path
    wrong: Path

    @property
    def target(self) -> str:
        return self.url.split("/")[3]

    def opts(self, secret: Path, **more: str) -> list[str]:
        """What QEMU's programs are told."""
        options = {"driver": "iscsi", "transport": "tcp", "portal": self.daemon.portal, "target": self.target}
        options |= {"lun": "0", "user": "alice", "password-secret": "chap"} | more
        joined = ",".join(f"{key}={value}" for key, value in options.items())
        return ["--object", f"secret,id=chap,file={secret}", "--image-opts", joined]

    def with_user(self, user: str, secret: str, url: str | None = None) -> str:
        return (url or self.url).replace("iscsi://", f"iscsi://{user}%{secret}@")


@pytest.fixture
def disk(daemon: Daemon, tmp_path: Path) -> Disk:
    files = {}
    for name, secret in (("right", SECRET), ("wrong", WRONG), ("mutual", MUTUAL)):
        files[name] = tmp_path / name
        write_secret(files[name], secret)
    url = daemon.volume("disk", "64M")
    mutual = ("--mutual-user", "array", "--mutual-secret-file", str(files["mutual"]))
    daemon.run("target", "chap", "set", "disk", "--user", "alice", "--secret-file", str(files["right"]), *mutual)
    return Disk(daemon, url, files["right"], files["wrong"])


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def succeeds(*command: str, **environment: str) -> str:
    done = run(*command, **environment)
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def fails(*command: str, **environment: str) -> str:
    done = run(*command, **environment)
    assert done.returncode != 0, f"{command}: succeeded\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.client("qemu-iscsi")
@pytest.mark.parametrize("digest", ["none", "crc32c"])
def test_qemu_reads_and_writes_with_the_secret(disk: Disk, digest: str):
    options = disk.opts(disk.right, **{"header-digest": digest})
    assert "virtual size: 64 MiB" in succeeds("qemu-img", "info", *options)
    succeeds("qemu-io", *options, "-c", "write -P 0x5a 1M 8M", "-c", "flush")
    assert "verification failed" not in succeeds("qemu-io", *options, "-c", "read -P 0x5a 1M 8M")


@pytest.mark.client("qemu-iscsi")
def test_qemu_is_refused_without_it(disk: Disk):
    fails("qemu-img", "info", *disk.opts(disk.wrong))
    fails("qemu-img", "info", *disk.opts(disk.right, user="mallory"))
    fails("qemu-img", "info", disk.url)
    lines = [line for line in disk.daemon.log.read_text().splitlines() if "refused" in line]
    assert [line.rstrip('"').rpartition(": ")[2] for line in lines] == [
        "wrong secret of CHAP user 'alice'",
        "no CHAP user 'mallory'",
        "CHAP is required and was not offered",
    ]
    assert all("127.0.0.1:" in line and disk.target in line for line in lines)
    assert SECRET not in disk.daemon.log.read_text()
    assert WRONG not in disk.daemon.log.read_text()


@pytest.mark.client("iscsi-ls")
def test_libiscsi_tools_with_and_without_the_secret(disk: Disk):
    good = disk.with_user("alice", SECRET)
    assert "TWINVOL" in succeeds("iscsi-inq", good).upper()
    assert "67108864" in succeeds("iscsi-readcapacity16", good).replace(" ", "")
    assert (
        "TWINVOL"
        in succeeds("iscsi-inq", disk.url.replace("iscsi://", "iscsi://alice@"), LIBISCSI_CHAP_PASSWORD=SECRET).upper()
    )
    for user, secret in (("alice", WRONG), ("mallory", SECRET)):
        fails("iscsi-inq", disk.with_user(user, secret))
    fails("iscsi-inq", disk.url)


@pytest.mark.client("iscsi-ls")
def test_libiscsi_proves_the_target(disk: Disk):
    def mutual(secret: str) -> dict[str, str]:
        return {"LIBISCSI_CHAP_TARGET_USERNAME": "array", "LIBISCSI_CHAP_TARGET_PASSWORD": secret}

    good = disk.with_user("alice", SECRET)
    assert "TWINVOL" in succeeds("iscsi-inq", good, **mutual(MUTUAL)).upper()
    fails("iscsi-inq", good, **mutual(WRONG))


@pytest.mark.client("iscsi-ls")
def test_discovery_has_its_own_secret(disk: Disk):
    portal = f"iscsi://{disk.daemon.portal}"
    assert disk.target in succeeds("iscsi-ls", portal)
    finder = ("--user", "finder", "--secret-file", str(disk.wrong))
    disk.daemon.run("target", "chap", "set", "--discovery", *finder)
    assert disk.target in succeeds("iscsi-ls", disk.with_user("finder", WRONG, portal))
    fails("iscsi-ls", portal)
    fails("iscsi-ls", disk.with_user("alice", SECRET, portal))


@pytest.mark.client("iscsi-ls")
def test_what_was_set_outlives_kill_9(disk: Disk):
    portal = disk.daemon.portal
    disk.daemon.kill()
    with type(disk.daemon).start(disk.daemon.pool, iscsi=portal):
        assert "TWINVOL" in succeeds("iscsi-inq", disk.with_user("alice", SECRET)).upper()
        fails("iscsi-inq", disk.with_user("alice", WRONG))
        fails("iscsi-inq", disk.url)


@pytest.mark.client("iscsi-ls")
def test_a_secret_file_that_others_may_read_locks_out_until_it_is_set_again(disk: Disk):
    portal, pool = disk.daemon.portal, disk.daemon.pool
    assert disk.daemon.stop() == 0
    for file in (pool / "secrets").iterdir():
        file.chmod(0o644)
    with type(disk.daemon).start(pool, iscsi=portal) as again:
        fails("iscsi-inq", disk.with_user("alice", SECRET))
        fails("iscsi-inq", disk.url)
        status = twinvol("status", "--json", "--pool", str(pool))
        assert (status.returncode, "chmod 600" in status.stdout) == (10, True)
        again.run("target", "chap", "set", "disk", "--user", "alice", "--secret-file", str(disk.right))
        assert "TWINVOL" in succeeds("iscsi-inq", disk.with_user("alice", SECRET)).upper()
