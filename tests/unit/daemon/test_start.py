"""What a daemon has loaded when it accepts its first login: each of these modules makes every restart longer."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.daemon import ROOT, Daemon

# Serves a pool as ``twinvol serve`` does, and instead of the ready line says what is loaded, and ends.
SERVE = """
import json, os, sys
import twinvol.cli.serve
from twinvol import daemon

def say_loaded(iscsi, api, peer):
    print(json.dumps(sorted(sys.modules)), flush=True)
    os._exit(0)

daemon._say_ready = say_loaded
twinvol.cli.serve.cli(["--iscsi", "127.0.0.1:0", "--pool", sys.argv[1]])
"""

NOT_BEFORE_READY = frozenset(
    {
        # dependencies, and parts of the standard library that cost milliseconds
        *("aiofiles", "aiohttp", "cryptography", "prometheus_client", "pydantic", "rich", "structlog"),
        *("numpy.ma", "numpy.testing", "tempfile", "tomllib", "unittest", "email", "http", "xml"),
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
