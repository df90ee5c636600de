"""A file system on mirrors between two daemons, as Linux in the initiator VM sees it. See ``test_initiator_vm.py``."""

from __future__ import annotations

import random
import shlex
import sys
from typing import TYPE_CHECKING

import pytest

from tests.integration import flapping_link
from tests.integration.vm import run_scenario
from tests.support.daemon import PROGRAM
from tests.support.vm_peers import SCENARIOS, Peers

if TYPE_CHECKING:
    from pathlib import Path

HOST = [sys.executable, "-m", "tests.integration.vm_host"]
RPO_S = 8

pytestmark = [pytest.mark.client("initiator-vm"), pytest.mark.slow, pytest.mark.timeout(420)]


def host_command(name: str, *words: str) -> tuple[str, str]:
    return "--host-cmd", f"{name}={shlex.join(words)}"


def test_a_file_system_on_an_asynchronous_replica_is_not_older_than_the_rpo(tmp_path: Path):
    with Peers.running(tmp_path) as peers:
        shown = peers.run("source", "volume", "create", "v", "--size", "128M", "--expose")["target"]
        mode = ("--mode", "async", "--rpo", f"{RPO_S}s")
        peers.run("source", "replica", "create", "v", "r", *mode, "--peer", "target")
        while peers.run("target", "replica", "failover", "r", "--plan")["reported_at"] is None:
            continue  # its source tells of itself with the first question
        path = peers.run("target", "target", "create", "path")["name"]
        peers.run("target", "target", "lun", "add", "path", "r", "--standby")
        source, target = str(peers.pool("source")), str(peers.pool("target"))
        lose = ("--fenced", "--accept-loss")
        summary = run_scenario(
            str(SCENARIOS / "async_failover.sh"),
            peers.portals["source"],
            tmp_path,
            *("--portal", peers.portals["target"], "--target", shown, "--target", path, "--env", f"RPO={RPO_S}"),
            *host_command("state", *HOST, "state", source, "r"),
            *host_command("kill", *HOST, "kill", source),
            *host_command("plan", *HOST, "plan", target, "r"),
            *host_command("failover", *PROGRAM, "replica", "failover", "r", *lose, "--pool", target),
        )
        print(summary["results"])


async def test_every_recovery_point_of_an_adaptive_mirror_under_a_flapping_link_is_clean(tmp_path: Path):
    seed = random.SystemRandom().randrange(1, 1 << 32)
    print(f"python -m tests.integration.flapping_link --seed {seed} --seconds 12")
    found = await flapping_link.run(tmp_path, seed, 12.0)
    print(found.table())
    assert found.clean == found.points
    assert found.clean
