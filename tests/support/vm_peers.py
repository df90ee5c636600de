"""Two daemons that are peers, for scenarios of the initiator VM: at addresses that they keep when they start again."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.secret_files import write_secret
from tests.integration import vm_host
from tests.integration.test_kill9 import check_files
from tests.support.daemon import twinvol
from tests.support.ports import free_address

if TYPE_CHECKING:
    from collections.abc import Iterator

SCENARIOS = Path(__file__).parents[1] / "integration" / "scenarios"


class Peers:
    """Two daemons, ``source`` and ``target``; made by ``running``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.portals = {name: free_address() for name in ("source", "target")}
        self.addresses = {name: free_address() for name in ("source", "target")}

    def pool(self, name: str) -> Path:
        return self.folder / name

    def run(self, name: str, *arguments: str) -> dict[str, Any]:
        done = twinvol(*arguments, "--json", "--pool", str(self.pool(name)), timeout_s=120.0)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    @classmethod
    @contextlib.contextmanager
    def running(cls, folder: Path, *, joined: bool = True) -> Iterator[Peers]:
        """``joined``: the second one is the first one's peer ``target``."""
        peers = cls(folder)
        try:
            for name, portal in peers.portals.items():
                vm_host.run("start", peers.pool(name), portal, "--peer", peers.addresses[name])
            if joined:
                file = folder / "code"
                write_secret(file, peers.run("target", "peer", "invite", "source")["code"])
                peers.run("source", "peer", "add", "target", "--code-file", str(file))
            yield peers
        finally:
            for name in peers.portals:
                vm_host.run("kill", peers.pool(name))
        for name in peers.portals:
            check_files(peers.pool(name))
