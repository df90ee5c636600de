"""The other end of ``tests/support/probe``: figures of a daemon's processes."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.units import MIB

HERE = Path(__file__).resolve().parent / "probe"
ANSWER_S = 60.0


@dataclass(frozen=True)
class Figures:
    """Of one process at rest. ``what``: data or management."""

    what: str
    tasks: int
    threads: int
    fds: int
    rss_mib: float
    objects: int
    traced_mib: float


def environment(folder: Path, *, traced: bool = False) -> dict[str, str]:
    """For a daemon whose processes are to answer. ``folder``: for their sockets; its path has to be short."""
    found = {"TWINVOL_PROBE": str(folder), "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    return found | ({"PYTHONTRACEMALLOC": "1"} if traced else {})


def look(folder: Path) -> list[Figures]:
    """The data process and the management process, whichever of those in ``folder`` are alive."""
    found = []
    for path in folder.iterdir():
        try:
            answer = _ask(path)
        except (ConnectionError, FileNotFoundError, json.JSONDecodeError):
            path.unlink(missing_ok=True)  # it has ended
            continue
        what = {"serve": "data", "twinvol.management": "management"}
        name = next((what[word] for word in answer["argv"] if word in what), None)
        if name is not None:
            numbers = {key: answer[key] for key in ("tasks", "threads", "fds", "objects")}
            mib = {"rss_mib": answer["rss_bytes"] / MIB, "traced_mib": answer["traced_bytes"] / MIB}
            found.append(Figures(name, **numbers, **mib))
    return sorted(found, key=lambda each: each.what)


def _ask(path: Path) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(ANSWER_S)
        client.connect(str(path))
        client.sendall(b"?\n")
        with client.makefile("rb") as stream:
            answer: dict[str, Any] = json.loads(stream.readline())
    return answer
