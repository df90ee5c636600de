"""What a daemon has loaded when it accepts its first login: each of these modules makes every restart longer."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import ROOT, CommandFailed, Daemon, twinvol

# Serves a pool as ``twinvol serve`` does, and instead of the ready line says what is loaded, and ends.
SERVE = """
import json, os, sys
import twinvol.cli.serve
from twinvol import daemon

def say_loaded(*_):
    print(json.dumps(sorted(sys.modules)), flush=True)
    os._exit(0)

daemon._say_ready = say_loaded
twinvol.cli.serve.cli(["--iscsi", "127.0.0.1:0", "--pool", sys.argv[1]])
"""

NOT_BEFORE_READY = frozenset(
    {
        # dependencies, and parts of the standard library that cost milliseconds
        *("aiofiles", "aiohttp", "cryptography", "prometheus_client", "pydantic", "rich", "structlog"),
        *("tempfile", "tomllib", "unittest", "email", "http", "xml"),
        # what only administration needs
        *(
            "engine.api",
            "engine.local_api",
            "twinvol.observed",
            "engine.interchange",
            "engine.image_formats",
            "engine.qemu_img",
        ),
        *(
            "engine.streams",
            "engine.vhdx",
            "engine.clone",
            "engine.flatten",
            "engine.changed_blocks",
            "engine.schedules",
        ),
        *(
            "engine.peers.registry",
            "engine.links.peer",
            "iscsi.initiator",
            "twinvol.administration",
            "twinvol.api.methods",
            "twinvol.management",
        ),
        # and mirrors, which this pool has none of
        *("engine.replicas", "engine.mirror", "engine.mirror_group", "engine.disk_targets", "engine.peers.incoming"),
    }
)


def test_what_no_login_needs_is_not_loaded_before_the_ready_line(tmp_path: Path):
    with Daemon.start(tmp_path / "pool") as daemon:
        daemon.volume("v", "1M")
        daemon.stop()
    served = subprocess.run(
        [sys.executable, "-c", SERVE, str(tmp_path / "pool")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert served.returncode == 0, served.stderr
    loaded = set(json.loads(served.stdout))
    assert "iscsi.fast_path" in loaded
    assert loaded & NOT_BEFORE_READY == set()


def test_a_damaged_key_costs_the_peers_and_not_the_disks(tmp_path: Path):
    with Daemon.start(tmp_path / "pool", "--peer", "127.0.0.1:0") as daemon:
        daemon.volume("v", "1M")
        assert daemon.stop() == 0
    (tmp_path / "pool" / "peers" / "identity.pem").write_text("rotten")
    with Daemon.start(tmp_path / "pool", "--peer", "127.0.0.1:0") as daemon:
        status = json.loads(twinvol("status", "--json", "--pool", str(daemon.pool)).stdout)
        assert status["health"] == "degraded"
        assert [reason for reason in status["reasons"] if "identity.pem holds no certificate" in reason]
        host, _, port = daemon.ready["peer"].rpartition(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), 10)
        with pytest.raises(CommandFailed, match="peers"):
            daemon.run("peer", "list")
        (target,) = daemon.run("target", "list")["targets"]
        assert [lun["state"] for lun in target["luns"]] == ["ok"]
        assert daemon.stop() == 0
