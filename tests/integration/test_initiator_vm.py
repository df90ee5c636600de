"""Linux's own initiator (open-iscsi, iscsi_tcp, sd) in a small virtual machine, against a running daemon.

Each scenario is a script of ``../shared/initiator_vm`` or of ``scenarios``; it overwrites the volumes it is given and
checks what a kernel would notice: file systems, digests, snapshots mounted beside their origin, a target that is
killed under I/O. The guest is emulated where there is no KVM, which is most of the time these tests take.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.secret_files import write_secret
from tests.integration import vm_host
from tests.integration.test_kill9 import check_files
from tests.integration.vm import run_scenario
from tests.support.clients import alua_guest_cache
from tests.support.daemon import PROGRAM, Daemon, twinvol
from tests.support.ports import free_address
from tests.support.snapshot_churn import SnapshotChurn

SCENARIOS = Path(__file__).parent / "scenarios"
"""Scenarios of this repository's own."""

pytestmark = [pytest.mark.client("initiator-vm"), pytest.mark.slow, pytest.mark.timeout(420)]


def iqn(url: str) -> str:
    return url.split("/")[3]


def test_login_mkfs_mount_trim_and_verify_after_a_new_login(daemon: Daemon, tmp_path: Path):
    url = daemon.volume("disk", "512M")
    run_scenario("login_mkfs_mount", daemon.portal, tmp_path, "--target", iqn(url))


def test_what_sg_tools_and_the_kernel_read_and_sanitize(daemon: Daemon, tmp_path: Path):
    disk, removable = daemon.volume("disk", "64M"), daemon.volume("removable", "64M", "--removable")
    limits = ("--quota", "1G", "--reserve", "0", "--warn-percent", "1")
    low = shlex.join([sys.executable, "-m", "twinvol", "pool", "set", *limits, "--pool", str(daemon.pool)])
    options = ["--target", iqn(disk), "--target", iqn(removable), "--host-cmd", f"low={low}"]
    run_scenario(str(SCENARIOS / "sg_tools.sh"), daemon.portal, tmp_path, *options)


def test_an_ext4_striped_over_two_luns_survives_in_every_group_snapshot(daemon: Daemon, tmp_path: Path):
    first, second = daemon.volume("left", "96M"), daemon.volume("right", "96M")
    daemon.run("group", "create", "striped", "left", "right")
    take = shlex.join([sys.executable, "-m", "tests.integration.vm_host", "group", str(daemon.pool), "striped"])
    run_scenario(
        str(SCENARIOS / "striped_group.sh"),
        daemon.portal,
        tmp_path,
        *("--target", iqn(first), "--target", iqn(second), "--host-cmd", f"snapshot={take}"),
    )
    assert {info["state"] for info in daemon.run("group", "snapshot-list", "striped")["group_snapshots"]} == {"ok"}
    daemon.run("group", "delete", "striped", "--force")
    assert daemon.run("snapshot", "list", "left")["snapshots"] == []


CHAP = {"user": "alice", "secret": "correct horse 1", "mutual-user": "array", "mutual-secret": "battery staple 2"}
CHAP_OPTIONS = [
    *("--chap-user", CHAP["user"], "--chap-secret", CHAP["secret"]),
    *("--mutual-user", CHAP["mutual-user"], "--mutual-secret", CHAP["mutual-secret"]),
]


def require_chap(daemon: Daemon, work: Path, *whose: str) -> None:
    """Have a target, or discovery, ask for CHAP, with a secret of the target's own."""
    files = []
    for user, secret in (("user", "secret"), ("mutual-user", "mutual-secret")):
        path = work / f"{secret}-of-{'-'.join(whose)}"
        write_secret(path, CHAP[secret])
        files += [f"--{user}", CHAP[user], f"--{secret}-file", str(path)]
    daemon.run("target", "chap", "set", *whose, *files)


def test_chap_and_mutual_chap_right_and_wrong(daemon: Daemon, tmp_path: Path):
    url = daemon.volume("disk", "64M")
    require_chap(daemon, tmp_path, "disk")
    summary = run_scenario("chap", daemon.portal, tmp_path, "--target", iqn(url), *CHAP_OPTIONS)
    assert summary["results"]["mutual"] == "yes"
    log = daemon.log.read_text()
    assert "wrong secret of CHAP user 'alice'" in log
    assert "no CHAP user 'alicex'" in log
    assert not any(secret in log for secret in (CHAP["secret"], CHAP["mutual-secret"]))


def test_chap_by_each_hash_with_digests_and_in_discovery(daemon: Daemon, tmp_path: Path):
    url = daemon.volume("disk", "64M")
    require_chap(daemon, tmp_path, "disk")
    require_chap(daemon, tmp_path, "--discovery")
    run_scenario(str(SCENARIOS / "chap_algorithms.sh"), daemon.portal, tmp_path, "--target", iqn(url), *CHAP_OPTIONS)


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
    """The daemon is killed twice while the guest writes and snapshots come and go: of the guest's disk, and of a group
    of it and two others, one of them in its family. The guest's file system must not notice more than a pause."""
    portal = free_address()
    pool = tmp_path / "pool"
    host = [sys.executable, "-m", "tests.integration.vm_host"]
    try:
        vm_host.run("start", pool, portal)

        def run(*arguments: str) -> dict[str, Any]:
            done = twinvol(*arguments, "--json", "--pool", str(pool))
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        target = run("volume", "create", "disk", "--size", "512M", "--expose")["target"]
        run("volume", "create", "other", "--size", "64M")
        run("snapshot", "create", "disk", "empty")
        run("clone", "create", "disk@empty", "sibling")
        run("group", "create", "all", "disk", "other", "sibling")
        with SnapshotChurn(pool, "disk", "all", seed=1) as churn:
            run_scenario(
                "restart_under_io",
                portal,
                tmp_path,
                *("--target", target),
                *("--host-cmd", f"stop={shlex.join([*host, 'kill', str(pool)])}"),
                *("--host-cmd", f"start={shlex.join([*host, 'start', str(pool), portal])}"),
            )
        asyncio.run(churn.check())
        assert len(churn.volumes.made) > 2
        assert len(churn.groups.made) > 2
        print(
            f"{len(churn.volumes.made)} snapshots, {len(churn.groups.made)} of the group,"
            f" {churn.interrupted} calls interrupted"
        )
    finally:
        vm_host.run("kill", pool)
    check_files(pool)


def test_a_resize_a_pause_and_luns_that_come_and_go_under_a_mounted_file_system(daemon: Daemon, tmp_path: Path):
    url = daemon.volume("disk", "256M")
    daemon.run("snapshot", "create", "disk", "before")
    daemon.run("volume", "create", "more", "--size", "64M")

    def command(name: str, *arguments: str) -> tuple[str, str]:
        return "--host-cmd", f"{name}={shlex.join([*PROGRAM, *arguments, '--pool', str(daemon.pool)])}"

    run_scenario(
        str(SCENARIOS / "live_changes.sh"),
        daemon.portal,
        tmp_path,
        *("--target", iqn(url), "--env", f"GROWN={512 << 20}", "--env", f"ADDED={64 << 20}"),
        *command("grow", "volume", "resize", "disk", "--size", "512M"),
        *command("pause", "target", "pause", "disk"),
        *command("resume", "target", "resume", "disk"),
        *command("add", "target", "lun", "add", "disk", "more", "--lun", "1"),
        *command("remove", "target", "lun", "remove", "disk", "1", "--force"),
    )
    assert daemon.run("volume", "show", "disk")["size_bytes"] == 512 << 20
    assert daemon.run("target", "show", "disk")["state"] == "ok"
    assert daemon.stop() == 0
    for volume_file in daemon.pool.rglob("*.tvol"):
        checked = twinvol("check", str(volume_file))
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_two_paths_are_one_disk_and_two_nexuses_for_reservations(tmp_path: Path):
    with Daemon.start(tmp_path / "pool", "--iscsi", "127.0.0.1:0") as daemon:
        url = daemon.volume("disk", "256M")
        first, second = daemon.ready["iscsi"]
        options = ("--portal", second, "--target", iqn(url))
        summary = run_scenario("multipath_persistent_reservation", first, tmp_path, *options)
    assert summary["results"]["persistent_reservation"] == "yes"
    assert summary["results"]["wwid_a"] == summary["results"]["wwid_b"]


def test_reservations_with_aptpl_survive_kill_9(tmp_path: Path):
    portal = free_address()
    pool = tmp_path / "pool"
    host = shlex.join([sys.executable, "-m", "tests.integration.vm_host"])
    try:
        vm_host.run("start", pool, portal)
        made = twinvol("volume", "create", "disk", "--size", "64M", "--expose", "--json", "--pool", str(pool))
        assert made.returncode == 0, made.stderr
        restart = f"restart={host} kill {shlex.quote(str(pool))} && {host} start {shlex.quote(str(pool))} {portal}"
        target = json.loads(made.stdout)["target"]
        run_scenario(str(SCENARIOS / "aptpl_restart.sh"), portal, tmp_path, "--target", target, "--host-cmd", restart)
    finally:
        vm_host.run("kill", pool)


@pytest.mark.client("initiator-vm-alua")
def test_multipath_follows_the_access_states_and_a_replica_is_a_standby_path(daemon: Daemon, tmp_path: Path):
    """One disk by three targets; the states of the first two change places under a writer."""
    daemon.volume("disk", "256M")
    daemon.run("replica", "create", "disk", "copy", "--mode", "sync")
    targets = [daemon.run("target", "show", "disk")["name"]]
    for name, volume, options in (("second", "disk", []), ("third", "copy", ["--standby"])):
        targets.append(daemon.run("target", "create", name)["name"])
        daemon.run("target", "lun", "add", name, volume, *options)
    daemon.run("target", "alua", "set", "second", "standby")

    def activate(name: str, target: str) -> tuple[str, str]:
        command = [*PROGRAM, "target", "alua", "activate", target, "--pool", str(daemon.pool)]
        return "--host-cmd", f"{name}={shlex.join(command)}"

    run_scenario(
        str(SCENARIOS / "alua_standby.sh"),
        daemon.portal,
        tmp_path,
        *("--cache-dir", str(alua_guest_cache())),
        *(word for target in targets for word in ("--target", target)),
        *activate("swap", "second"),
        *activate("back", "disk"),
    )
    assert daemon.run("replica", "show", "copy")["copy_state"] == "Synchronized"


@pytest.mark.client("initiator-vm-alua")
def test_multipath_goes_on_when_the_source_is_killed_and_its_replica_at_a_peer_becomes_the_disk(tmp_path: Path):
    """Two daemons, one disk: the guest's file system notices a pause, and every file that was synced is there."""
    portals = {name: free_address() for name in ("source", "target", "source-peer", "target-peer")}
    pools = {name: tmp_path / name for name in ("source", "target")}
    host = [sys.executable, "-m", "tests.integration.vm_host"]

    def run(name: str, *arguments: str) -> dict[str, Any]:
        done = twinvol(*arguments, "--json", "--pool", str(pools[name]), timeout_s=120.0)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def command(name: str, *words: str) -> tuple[str, str]:
        return "--host-cmd", f"{name}={shlex.join(words)}"

    def started(name: str) -> list[str]:
        return [*host, "start", str(pools[name]), portals[name], "--peer", portals[f"{name}-peer"]]

    try:
        for name in pools:
            vm_host.run(*started(name)[len(host) :])
        file = tmp_path / "code"
        write_secret(file, run("target", "peer", "invite", "source")["code"])
        run("source", "peer", "add", "target", "--code-file", str(file))
        shown = run("source", "volume", "create", "v", "--size", "256M", "--expose")["target"]
        # So long that the lease, half of it, is still there after the kill, on a slow machine, too.
        budget = ("--latency-budget", "60000")
        run("source", "replica", "create", "v", "r", "--mode", "sync", "--peer", "target", *budget)
        while run("target", "replica", "failover", "r", "--plan")["reported_at"] is None:
            continue  # its source tells of itself with the first question
        path = run("target", "target", "create", "path")["name"]
        run("target", "target", "lun", "add", "path", "r", "--standby")
        target = ["--pool", str(pools["target"])]
        run_scenario(
            str(SCENARIOS / "failover.sh"),
            portals["source"],
            tmp_path,
            *("--cache-dir", str(alua_guest_cache()), "--portal", portals["target"]),
            *("--target", shown, "--target", path),
            *command("kill", *host, "kill", str(pools["source"])),
            *command("failover", *PROGRAM, "replica", "failover", "r", "--fenced", *target),
            *command("start", *started("source")),
            *command("failback", *PROGRAM, "replica", "failback", "r", *target),
        )
        assert run("source", "replica", "show", "r")["source"] == "v"
    finally:
        for pool in pools.values():
            vm_host.run("kill", pool)
    for pool in pools.values():
        check_files(pool)


def test_offloaded_copies_by_sg3_utils(daemon: Daemon, tmp_path: Path):
    """Between two volumes of one family, so that what the store shares is read by a kernel."""
    first = daemon.volume("disk", "64M")
    daemon.run("snapshot", "create", "disk", "empty")
    daemon.run("clone", "create", "disk@empty", "other", "--expose")
    second = iqn(first).replace(":disk", ":other")
    run_scenario(
        str(SCENARIOS / "extended_copy.sh"), daemon.portal, tmp_path, "--target", iqn(first), "--target", second
    )
    assert [each["name"] for each in daemon.run("snapshot", "list", "disk")["snapshots"]] == ["empty"]
