"""A real ``twinvol serve`` as a child process, and the command line as its clients use it.

Blocking on purpose: a test that talks to it over asyncio does so on its own loop, and the daemon is another process.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = [sys.executable, "-m", "twinvol"]
ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 90.0


class CommandFailed(AssertionError):
    """A ``twinvol`` command ended with another exit code than 0."""

    def __init__(self, arguments: tuple[str, ...], code: int, stderr: str) -> None:
        super().__init__(f"twinvol {' '.join(arguments)}: exit {code}: {stderr.strip()}")
        self.code = code
        self.stderr = stderr


def twinvol(*arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run one command from the repository's root, whatever its exit code."""
    command = [*PROGRAM, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout_s)


@dataclass
class Daemon:
    """One running daemon. ``ready`` is its ready line; ``log`` is where its stderr goes."""

    pool: Path
    process: subprocess.Popen[str]
    ready: dict[str, Any]
    log: Path

    @staticmethod
    def command(pool: Path, *arguments: str, iscsi: str = "127.0.0.1:0") -> list[str]:
        """The command line that serves ``pool``."""
        return [*PROGRAM, "serve", "--iscsi", iscsi, *arguments, "--pool", str(pool)]

    @classmethod
    def start(
        cls, pool: Path, *arguments: str, iscsi: str = "127.0.0.1:0", environment: dict[str, str] | None = None
    ) -> Daemon:
        """Start one on ``pool`` and wait for its ready line. AssertionError with its log when there is none.

        ``environment``: added to this process' own.
        """
        log = pool.with_name(pool.name + ".log")
        command = cls.command(pool, *arguments, iscsi=iscsi)
        with log.open("a", encoding="utf-8") as stderr:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **(environment or {})},
            )
        try:
            return cls(pool, process, _wait_ready(process, log), log)
        except BaseException:
            process.kill()
            process.wait()
            raise

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        self._close()

    def _close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()

    @property
    def portal(self) -> str:
        """``host:port`` of its first iSCSI portal."""
        return str(self.ready["iscsi"][0])

    def kill(self) -> None:
        """SIGKILL to the daemon's main process, as ``kill -9 PID`` does; returns when it is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._close()

    def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        code = self.process.wait(timeout_s)
        self._close()
        return code

    def run(self, *arguments: str, timeout_s: float = 120.0) -> dict[str, Any]:
        """One command with ``--json`` against this pool; its answer. Raises CommandFailed."""
        done = twinvol(*arguments, "--json", "--pool", str(self.pool), timeout_s=timeout_s)
        if done.returncode != 0:
            raise CommandFailed(arguments, done.returncode, done.stderr)
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
        return answer

    def url(self, exposed: dict[str, Any]) -> str:
        """The ``iscsi://`` URL of what ``run`` answered for something made with ``--expose``."""
        return f"iscsi://{self.portal}/{exposed['target']}/{exposed['lun']}"

    def volume(self, name: str, size: str, *options: str) -> str:
        """Create and expose a volume; its ``iscsi://`` URL."""
        return self.url(self.run("volume", "create", name, "--size", size, "--expose", *options))


def _wait_ready(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    assert process.stdout is not None
    deadline = time.monotonic() + READY_TIMEOUT_S
    while (left := deadline - time.monotonic()) > 0:
        readable, _, _ = select.select([process.stdout], [], [], left)
        if not readable:
            break
        line = process.stdout.readline()
        if not line:
            break
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "ready":
            return event
    tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
    raise AssertionError(f"no ready line from pid {process.pid} (exit {process.poll()}); its log ends:\n{tail}")
