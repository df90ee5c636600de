"""``twinvol serve`` as a process: the ready line, stopping, restarting, a second daemon, and what survives kill -9."""

import asyncio
import json
import os
import signal
import socket
import stat
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.support.daemon import CommandFailed, Daemon, twinvol
from tests.support.ports import free_address
from twinvol.cli.command import SCHEMA

MIB = 1 << 20


def test_the_ready_line_has_every_key_and_true_addresses(tmp_path: Path):
    with Daemon.start(tmp_path / "pool") as daemon:
        assert daemon.ready == {
            "event": "ready",
            "iscsi": [daemon.portal],
            "wbem": None,
            "wbem_http": None,
            "api": None,
            "peer": None,
            "pid": daemon.process.pid,
        }
        host, port = daemon.portal.rsplit(":", 1)
        socket.create_connection((host, int(port)), timeout=5).close()


def test_several_portals_and_ipv6(tmp_path: Path):
    with Daemon.start(tmp_path / "pool", "--iscsi", "[::1]:0,7") as daemon:
        four, six = daemon.ready["iscsi"]
        assert four.startswith("127.0.0.1:")
        assert six.startswith("[::1]:")
        socket.create_connection(("::1", int(six.rsplit(":", 1)[1])), timeout=5).close()
        assert daemon.run("target", "create", "t")["portals"] == [four, six]
        assert daemon.run("target", "bind", "t", "7")["portals"] == [six]
        with pytest.raises(CommandFailed, match="no portal is in portal group 2"):
            daemon.run("target", "bind", "t", "2")
        daemon.stop()
    with Daemon.start(tmp_path / "pool") as daemon:
        assert daemon.run("target", "show", "t")["portal_groups"] == [7]
        assert daemon.run("target", "show", "t")["portals"] == [], "the binding stays; the group has no portal now"
        degraded = twinvol("status", "--json", "--pool", str(daemon.pool))
        assert (degraded.returncode, "no portal is in portal group 7" in degraded.stdout) == (10, True)
        assert daemon.run("target", "bind", "t", "--all")["portals"] == [daemon.portal]
        assert daemon.run("status")["health"] == "ok"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(tmp_path: Path, number):
    with Daemon.start(tmp_path / "pool") as daemon:
        daemon.volume("v", "1M")
        daemon.process.send_signal(number)
        assert daemon.process.wait(60) == 0
        assert daemon.process.stdout.read() == "", "only the ready line goes to stdout"
        code = twinvol("check", str(tmp_path / "pool" / "volumes" / "v.tvol"), "--json")
        answer = json.loads(code.stdout)
        assert (code.returncode, answer["schema"], answer["state"], answer["replayable"]) == (0, SCHEMA, "clean", False)


def test_state_survives_kill_9_on_the_same_port(tmp_path: Path):
    pool = tmp_path / "pool"
    portal = free_address()
    with Daemon.start(pool, iscsi=portal) as daemon:
        volume = daemon.run("volume", "create", "v", "--size", "1M", "--expose")
        snapshot = daemon.run("snapshot", "create", "v", "s", "--expose")
        listed = daemon.run("snapshot", "list", "v")
        connection = socket.create_connection(portal.rsplit(":", 1), timeout=5)
        daemon.kill()
        connection.close()
    with Daemon.start(pool, iscsi=portal) as daemon:
        assert daemon.portal == portal
        again = daemon.run("volume", "show", "v")
        assert again == {**volume, "snapshots": 1}
        assert daemon.run("snapshot", "list", "v") == listed
        assert [target["name"] for target in daemon.run("target", "list")["targets"]] == [
            volume["target"],
            snapshot["target"],
        ]


def test_a_second_daemon_on_the_pool_ends_with_4_naming_the_first(tmp_path: Path):
    pool = tmp_path / "pool"
    with Daemon.start(pool) as daemon:
        second = twinvol("serve", "--iscsi", "127.0.0.1:0", "--pool", str(pool))
        assert second.returncode == 4
        assert str(daemon.process.pid) in second.stderr
        assert second.stdout == ""
        daemon.run("status")


def test_a_port_in_use_ends_with_4(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = twinvol("serve", "--iscsi", f"127.0.0.1:{taken.getsockname()[1]}", "--pool", str(tmp_path / "pool"))
    assert done.returncode == 4
    assert "in use" in done.stderr


def test_more_portal_groups_than_a_target_has_ports_end_with_2(tmp_path: Path):
    portals = [word for tag in range(17) for word in ("--iscsi", f"127.0.0.1:0,{tag}")]
    refused = twinvol("serve", "--pool", str(tmp_path / "pool"), *portals)
    assert (refused.returncode, "16 portal groups" in refused.stderr) == (2, True), refused.stderr


def test_a_folder_with_other_files_ends_with_2(tmp_path: Path):
    (tmp_path / "letter.txt").write_text("dear")
    done = twinvol("serve", "--iscsi", "127.0.0.1:0", "--pool", str(tmp_path))
    assert (done.returncode, "no pool" in done.stderr) == (2, True)


def test_check_of_a_file_in_use_ends_with_4(tmp_path: Path):
    with Daemon.start(tmp_path / "pool") as daemon:
        file = daemon.run("volume", "create", "v", "--size", "1M")["file"]
        assert twinvol("check", file).returncode == 4


def test_the_configuration_file_is_overridden_by_the_command_line(tmp_path: Path):
    config = tmp_path / "twinvol.toml"
    config.write_text('iqn_prefix = "iqn.2026-11.org.example"\niscsi = ["127.0.0.1:1"]\nworkers = 2\n')
    with Daemon.start(tmp_path / "pool", "--config", str(config)) as daemon:
        assert daemon.run("volume", "create", "v", "--size", "1M", "--expose")["target"] == "iqn.2026-11.org.example:v"
    for text in ("workers = 0", "worker = 1", "iscsi = 'x'", "[", 'iqn_prefix = "x"'):
        config.write_text(text)
        done = twinvol("serve", "--config", str(config), "--pool", str(tmp_path / "other"))
        assert done.returncode == 2, text
        assert done.stderr


def test_errors_reach_scripts(tmp_path: Path):
    with Daemon.start(tmp_path / "pool") as daemon:
        with pytest.raises(CommandFailed) as failed:
            daemon.run("volume", "show", "nothing")
        assert failed.value.code == 3


def test_a_proof_is_checked_again_over_iscsi(tmp_path: Path):
    out = tmp_path / "proof.json"
    with Daemon.start(tmp_path / "pool") as daemon:
        daemon.volume("v", "4M")
        daemon.run("replica", "create", "v", "r", "--mode", "sync")
        daemon.run("replica", "proof", "r", "--out", str(out))
        point = daemon.run("snapshot", "create", "r", "s", "--expose")
        assert twinvol("proof", "check", str(out), "--url", daemon.url(point)).returncode == 0
        other = daemon.volume("other", "4M", "--read-only")
        assert twinvol("proof", "check", str(out), "--url", other).returncode == 0, "empty as well"
        assert twinvol("proof", "check", str(out), "--url", daemon.volume("larger", "8M")).returncode == 9
        assert twinvol("proof", "check", str(out), "--url", other + "1").returncode == 1


class Http:
    """The management process's API."""

    def __init__(self, daemon: Daemon) -> None:
        self.base = f"http://{daemon.ready['api']}"
        self.token = (daemon.pool / "api.token").read_text().strip()

    def get(self, path: str, token: str | None = None) -> tuple[int, str]:
        request = urllib.request.Request(
            self.base + path, headers={"Authorization": f"Bearer {self.token if token is None else token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


def test_the_management_process_serves_status_volumes_and_metrics_to_bearers_of_the_token(tmp_path: Path):
    with Daemon.start(tmp_path / "pool", "--api", "127.0.0.1:0") as daemon:
        daemon.run("volume", "create", "v", "--size", "1M")
        http = Http(daemon)
        assert stat.S_IMODE((daemon.pool / "api.token").stat().st_mode) == 0o600
        code, body = http.get("/v1/status")
        assert (code, json.loads(body)["health"]) == (200, "ok")
        assert json.loads(http.get("/v1/volumes")[1])["volumes"][0]["name"] == "v"
        assert 'twinvol_volume_size_bytes{volume="v"} 1.048576e+06' in http.get("/metrics")[1]
        assert http.get("/v1/status", token="wrong")[0] == 401
        assert http.get("/nothing")[0] == 404


def management_pid(daemon: Daemon) -> int:
    main = daemon.process.pid
    children = [
        int(pid) for task in Path(f"/proc/{main}/task").iterdir() for pid in (task / "children").read_text().split()
    ]
    (pid,) = children
    return pid


def test_a_crash_of_the_management_process_does_not_hurt_the_data_process(tmp_path: Path):
    with Daemon.start(tmp_path / "pool", "--api", "127.0.0.1:0") as daemon:
        http = Http(daemon)
        assert http.get("/v1/status")[0] == 200
        os.kill(management_pid(daemon), signal.SIGKILL)
        daemon.run("status")
        assert http.get("/v1/status")[0] == 200, "connections queue until it is back"
        assert daemon.stop() == 0


def test_the_management_process_ends_with_a_killed_data_process(tmp_path: Path):
    with Daemon.start(tmp_path / "pool", "--api", "127.0.0.1:0") as daemon:
        assert Http(daemon).get("/v1/status")[0] == 200
        child = os.pidfd_open(management_pid(daemon))
        try:
            daemon.kill()

            async def ended():
                gone = asyncio.Event()
                asyncio.get_running_loop().add_reader(child, gone.set)
                async with asyncio.timeout(20):
                    await gone.wait()
                asyncio.get_running_loop().remove_reader(child)

            asyncio.run(ended())
        finally:
            os.close(child)
