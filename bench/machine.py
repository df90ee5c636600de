"""What a figure was measured on: a figure without its machine and commit says nothing."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
BUILD = ROOT / "bench" / "build"


def cpu_model() -> str:
    """The processor's own name, or the architecture where /proc does not say."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def available_memory() -> int:
    """Bytes that could be taken without swapping, page cache included."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def busy_cpus(seconds: float = 1.0) -> float:
    """How many CPUs were at work in the next so many seconds, all processes together."""

    def sample() -> tuple[int, int]:
        with Path("/proc/stat").open(encoding="ascii") as file:
            ticks = [
                int(field) for field in file.readline().split()[1:9]
            ]  # user nice system idle iowait irq softirq steal
        return sum(ticks), ticks[3] + ticks[4]

    total, idle = sample()
    time.sleep(seconds)
    total_then, idle_then = sample()
    return (os.cpu_count() or 1) * (1 - (idle_then - idle) / max(1, total_then - total))


def two_cores() -> tuple[int, int] | None:
    """Two CPUs that this process may use and that are no siblings of one core, if there are such."""
    first, *others = sorted(os.sched_getaffinity(0))
    siblings = Path(f"/sys/devices/system/cpu/cpu{first}/topology/thread_siblings_list")
    same = siblings.read_text(encoding="ascii").strip() if siblings.exists() else ""
    taken: set[int] = set()
    for part in filter(None, same.split(",")):  # "0-1", or "0,32"
        low, _, high = part.partition("-")
        taken |= set(range(int(low), int(high or low) + 1))
    second = next((cpu for cpu in others if cpu not in taken), None)
    return None if second is None else (first, second)


def filesystem_of(path: Path) -> str:
    """Type of the file system that holds ``path`` (the longest mount point that is above it)."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, mount_point, fs_type, *_ = line.split()
        inside = path.resolve() == Path(mount_point) or Path(mount_point) in path.resolve().parents
        if inside and len(mount_point) >= len(best):
            best, kind = mount_point, fs_type
    return kind


def commit() -> str:
    """The commit of this tree, with ``+`` behind it when the tree differs from it."""
    described = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def facts(work: Path) -> dict[str, object]:
    """Machine, system and commit, for the head of a result file. ``work`` is where the volumes lie."""
    return {
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "filesystem": filesystem_of(work),
        "load_average": os.getloadavg()[0],
    }
