"""Linux's own initiator (open-iscsi, iscsi_tcp, sd) in a small virtual machine, against a running daemon.

Each scenario is a script of ``../shared/initiator_vm``; it overwrites the volumes it is given and checks what a kernel
would notice: file systems, digests, snapshots mounted beside their origin, a target that is killed under I/O. The
guest is emulated where there is no KVM, which is most of the time these tests take.
"""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration import vm_host
from tests.support.clients import INITIATOR_VM
from tests.support.daemon import ROOT, Daemon, twinvol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.client("initiator-vm"), pytest.mark.slow, pytest.mark.timeout(420)]

GUEST_TIMEOUT_S = 300


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon.start(tmp_path / "pool") as running:
        yield running


def run_scenario(name: str, portal: str, work: Path, *options: str) -> dict[str, Any]:
    """Run one scenario to its end; its summary. AssertionError with the failed checks and the end of the console."""
    console = work / f"{name}.console"
    command = [str(INITIATOR_VM), "--no-skip", "--portal", portal, "--log", str(console)]
    command += ["--timeout", str(GUEST_TIMEOUT_S), *options, name]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1:] or ["{}"]
    summary: dict[str, Any] = json.loads(last[0])
    if done.returncode != 0 or summary.get("status") != "passed":
        tail = console.read_text(encoding="utf-8", errors="replace")[-4000:] if console.exists() else ""
        pytest.fail(
            f"scenario {name}: {summary.get('status')} {summary.get('reason')}; failed checks:"
            f" {summary.get('failed_checks')}\n{done.stderr[-3000:]}\n--- console ends ---\n{tail}"
        )
    assert summary["checks_passed"] > 0
    return summary


def iqn(url: str) -> str:
    return url.split("/")[3]


def test_login_mkfs_mount_trim_and_verify_after_a_new_login(daemon: Daemon, tmp_path: Path):
    url = daemon.volume("disk", "512M")
    run_scenario("login_mkfs_mount", daemon.portal, tmp_path, "--target", iqn(url))


def test_header_and_data_digests_in_all_combinations(daemon: Daemon, tmp_path: Path):
    url = daemon.volume("disk", "128M")
    run_scenario("digests", daemon.portal, tmp_path, "--target", iqn(url))


def test_xfs_on_two_luns_written_at_the_same_time(daemon: Daemon, tmp_path: Path):
    first, second = daemon.volume("first", "512M"), daemon.volume("second", "512M")
    run_scenario("xfs_two_luns", daemon.portal, tmp_path, "--target", iqn(first), "--target", iqn(second))


def test_snapshots_taken_under_the_guest_mount_and_compare(daemon: Daemon, tmp_path: Path):
    url = daemon.volume("disk", "512M")
    take = shlex.join([sys.executable, "-m", "tests.integration.vm_host", "snapshot", str(daemon.pool), "disk"])
    run_scenario("snapshot_mount", daemon.portal, tmp_path, "--target", iqn(url), "--host-cmd", f"snapshot={take}")


def test_kill_9_under_io_loses_nothing_that_was_fsynced(tmp_path: Path):
    """The daemon is killed twice while the guest writes; the guest's file system must not notice more than a pause."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        portal = f"127.0.0.1:{probe.getsockname()[1]}"
    pool = tmp_path / "pool"
    host = [sys.executable, "-m", "tests.integration.vm_host"]
    try:
        vm_host.start(pool, portal)
        made = twinvol("volume", "create", "disk", "--size", "512M", "--expose", "--json", "--pool", str(pool))
        assert made.returncode == 0, made.stderr
        run_scenario(
            "restart_under_io",
            portal,
            tmp_path,
            *("--target", json.loads(made.stdout)["target"]),
            *("--host-cmd", f"stop={shlex.join([*host, 'kill', str(pool)])}"),
            *("--host-cmd", f"start={shlex.join([*host, 'start', str(pool), portal])}"),
        )
    finally:
        vm_host.kill(pool)
    (volume_file,) = pool.rglob("*.tvol")
    checked = twinvol("check", str(volume_file))
    assert checked.returncode == 0, checked.stdout + checked.stderr
