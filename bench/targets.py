"""The iSCSI targets that ``bench.side_by_side`` compares: started, given one volume each, stopped.

They are ordinary processes pinned to one core with all their threads; each serves one volume over loopback from a
file in the same folder. The third is no target but the system calls of one: ``floor.c`` says what it leaves out.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bench.loadgen import BenchError, build

if TYPE_CHECKING:
    from collections.abc import Iterator

START_TIMEOUT_S = 20.0
PROGRAM = [sys.executable, "-m", "twinvol"]


@dataclass(slots=True)
class Endpoint:
    """A running target with one volume. ``control``: port of a tgtd, for tgtadm."""

    name: str
    url: str
    backing: Path
    pids: list[int] = field(default_factory=list)
    control: str = ""
    pool: Path | None = None

    def sync(self) -> None:
        """Write the backing file back, so that no round pays for the one before it."""
        fd = os.open(self.backing, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def warm(self) -> None:
        """Have all of the backing file in the page cache: some hosts take back pages that were not used for a while."""
        piece = bytearray(1 << 20)
        with self.backing.open("rb", buffering=0) as file:
            while file.readinto(piece):
                pass


def free_port() -> int:
    """A TCP port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_control_port() -> int:
    """A tgtd control port (the suffix of its management socket's name, below 1024) that no tgtd has used."""
    for number in range(100, 1000):
        if not Path(f"/var/run/tgtd/socket.{number}").exists():
            return number
    raise BenchError("/var/run/tgtd is full of sockets of earlier runs")


def process_tree(pid: int) -> list[int]:
    """``pid`` and all its descendants, now."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            found += process_tree(int(child))
    return found


def stop(process: subprocess.Popen[Any]) -> None:
    """SIGTERM, then SIGKILL for one that does not listen (tgtd in the foreground does not)."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def why_no_tgtd() -> str | None:
    """The reason why tgtd cannot be measured here, or None."""
    if shutil.which("tgtd") is None or shutil.which("tgtadm") is None:
        return "tgtd is not installed (Debian: apt-get install tgt)"
    if os.geteuid() != 0:
        return "tgtd needs root"
    return None


@contextmanager
def tgtd(work: Path, name: str, size_bytes: int, cpu: int, *, tuned: bool = False) -> Iterator[Endpoint]:
    """tgtd with its defaults and ``rdwr`` backing store, under a control port and a portal of its own.

    Args:
        work: folder for the backing file and the log.
        tuned: the settings that suit tgtd best on this kind of load: one I/O thread, 256 KiB segments and bursts.
    """
    reason = why_no_tgtd()
    if reason:
        raise BenchError(reason)
    port = free_port()
    control = str(free_control_port())
    backing = work / f"{name}.raw"
    with backing.open("wb") as file:
        file.truncate(size_bytes)
    command = ["taskset", "-c", str(cpu), "tgtd", "-f", "-C", control, "--iscsi", f"portal=127.0.0.1:{port}"]
    command += ["--nr_iothreads", "1"] if tuned else []
    iqn = f"iqn.2026-11.org.twinvol.bench:{name}"

    def adm(*arguments: str) -> bool:
        done = subprocess.run(
            ["tgtadm", "-C", control, "--lld", "iscsi", *arguments], capture_output=True, text=True, check=False
        )
        return done.returncode == 0

    with (work / f"{name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not adm("--op", "show", "--mode", "target"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"tgtd did not start: {(work / f'{name}.log').read_text(encoding='utf-8')[-500:]}")
                time.sleep(0.05)
            ok = adm("--op", "new", "--mode", "target", "--tid", "1", "-T", iqn)
            ok &= adm("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", str(backing))
            ok &= adm("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
            for key in ("MaxRecvDataSegmentLength", "FirstBurstLength") if tuned else ():
                ok &= adm("--op", "update", "--mode", "target", "--tid", "1", "-n", key, "-v", "262144")
            if not ok:
                raise BenchError("tgtadm could not set up the target")
            yield Endpoint(name, f"iscsi://127.0.0.1:{port}/{iqn}/1", backing, [process.pid], control)
        finally:
            stop(process)
            for leftover in (f"socket.{control}", f"socket.{control}.lock"):
                Path("/var/run/tgtd", leftover).unlink(missing_ok=True)


@contextmanager
def floor(work: Path, name: str, size_bytes: int, cpu: int) -> Iterator[Endpoint]:
    """``bench/floor.c`` on a plain file."""
    backing = work / f"{name}.raw"
    with backing.open("wb") as file:
        file.truncate(size_bytes)
    command = ["taskset", "-c", str(cpu), str(build(("floor",))), str(backing)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        if not port:
            raise BenchError("bench/floor.c did not start")
        yield Endpoint(name, f"iscsi://127.0.0.1:{port}/iqn.2026-11.org.twinvol.bench:floor/0", backing, [process.pid])
    finally:
        process.communicate()  # which closes its stdin


def _ready(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """The daemon's ready line. Raises BenchError with the end of its log when it ends without one."""
    assert process.stdout is not None
    stdout: IO[str] = process.stdout
    for line in stdout:
        event: dict[str, Any] = json.loads(line)
        if event.get("event") == "ready":
            return event
    raise BenchError(f"twinvol serve ended before it was ready: {log.read_text(encoding='utf-8')[-1500:]}")


@contextmanager
def serving(pool: Path, log_path: Path, cpu: int, iscsi: str = "127.0.0.1:0") -> Iterator[subprocess.Popen[str]]:
    """``twinvol serve`` on ``pool``, started; its first line of stdout is not read yet."""
    serve = ["taskset", "-c", str(cpu), *PROGRAM, "serve", "--iscsi", iscsi, "--pool", str(pool)]
    with log_path.open("a", encoding="utf-8") as log:
        # As installed: with compiled modules kept, also where the shell says otherwise.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        process = subprocess.Popen(
            serve, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        try:
            yield process
        finally:
            stop(process)
            if process.stdout is not None:
                process.stdout.close()


def manage(pool: Path, *arguments: str) -> dict[str, Any]:
    """One ``twinvol`` command to the daemon of ``pool``; its answer. Raises BenchError with its complaint."""
    line = [*PROGRAM, *arguments, "--json", "--pool", str(pool)]
    made = subprocess.run(line, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise BenchError(f"twinvol {' '.join(arguments[:2])}: {made.stderr.strip()}")
    answer: dict[str, Any] = json.loads(made.stdout)
    return answer


@contextmanager
def twinvol(work: Path, name: str, size_bytes: int, cpu: int) -> Iterator[Endpoint]:
    """``twinvol serve`` on a new pool with its defaults, one exposed volume named ``bench``."""
    pool, log_path = work / f"{name}.pool", work / f"{name}.log"
    with serving(pool, log_path, cpu) as process:
        portal = _ready(process, log_path)["iscsi"][0]
        volume = manage(pool, "volume", "create", "bench", "--size", str(size_bytes), "--expose")
        (backing,) = sorted(pool.rglob("*.tvol"))
        url = f"iscsi://{portal}/{volume['target']}/{volume['lun']}"
        yield Endpoint(name, url, backing, process_tree(process.pid), pool=pool)
