"""The verified copy against what people use to copy and check an image:  ``python -m bench.copy_engine``.

1 GiB in the page cache, onto a target that exists. Everybody ends with a copy that is known to be equal and written
back (fdatasync): twinvol by reading back and comparing hashes as it goes, the others by a second program
(``qemu-img compare``, ``cmp``); rsync compares checksums of what it sent, not of what it wrote. Rounds alternate; CPU
is that of all processes.

The expected order of magnitude: memory bandwidth for reads, twice that for the write; about 0.2 to 0.6 CPU seconds a
GiB. The plain-file baseline is ``dd`` alone, which verifies nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.machine import RESULTS, facts
from engine.copy_job import copy_extents
from engine.files import real_env
from engine.tvol.file import TvolFile
from engine.units import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

COPIERS: dict[str, tuple[str, ...]] = {
    "dd (verifies nothing)": ("dd if={source} of={target} bs=1M conv=notrunc,fdatasync status=none",),
    "dd + cmp": ("dd if={source} of={target} bs=1M conv=notrunc,fdatasync status=none", "cmp {source} {target}"),
    "qemu-img convert + compare": (
        "qemu-img convert -n -W -m 8 -f raw -O raw {source} {target}",
        "sync -d {target}",
        "qemu-img compare -f raw -F raw {source} {target}",
    ),
    # Whole, or it would find the target of the round before equal and write nothing.
    "rsync (in transit only)": ("rsync --inplace --whole-file --ignore-times --fsync {source} {target}",),
}


@dataclass(frozen=True, slots=True)
class Round:
    """One copy: wall clock and CPU in seconds."""

    seconds: float
    cpu_seconds: float


def _cpu() -> float:
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def timed(copy: Callable[[], object]) -> Round:
    """One call of ``copy``, measured."""
    os.sync()
    cpu, started = _cpu(), time.perf_counter()
    copy()
    return Round(time.perf_counter() - started, _cpu() - cpu)


class TwinvolCopy:
    """A snapshot in one volume file, copied again and again onto the volume of another."""

    def __init__(self, work: Path, size_bytes: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._size = size_bytes
        env = self._env = real_env()
        make = TvolFile.create
        self._source = self._run(make(env, work / "source.tvol", volume_name="source", size_bytes=size_bytes))
        self._target = self._run(make(env, work / "target.tvol", volume_name="target", size_bytes=size_bytes))
        head = self._source.volumes()[0]
        with (work / "source.raw").open("rb") as image:
            for offset in range(0, size_bytes, MIB):
                self._run(head.write(offset, memoryview(image.read(MIB))))
        self._frozen = self._run(self._source.snapshot(head, "still"))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(coroutine)

    def copy(self) -> None:
        """One verified copy, durable at its end."""
        result = self._run(copy_extents(self._frozen, self._target.volumes()[0], mover=self._env.mover))
        assert result.progress.done_bytes == self._size

    def close(self) -> None:
        self._run(self._source.close())
        self._run(self._target.close())
        self._run(self._env.close())
        self._loop.close()


def outside(commands: tuple[str, ...], work: Path) -> Callable[[], None]:
    """The commands of one peer as a function."""
    lines = [c.format(source=work / "source.raw", target=work / "target.raw").split() for c in commands]

    def run() -> None:
        for line in lines:
            subprocess.run(line, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    return run


def main() -> int:
    """Print the table, write the result file."""
    parser = argparse.ArgumentParser(prog="python -m bench.copy_engine", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2 rounds of 256 MiB: a look, not a result")
    parser.add_argument("--rounds", type=int, default=7, help="rounds (7)")
    parser.add_argument("--size", type=int, default=GIB, help="bytes (1 GiB)")
    parser.add_argument("--work", type=Path, default=None, help="folder for the files (a temporary one)")
    parser.add_argument("--out", type=Path, default=None, help="result file (bench/results/...)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.size = 2, 256 * MIB
    with tempfile.TemporaryDirectory(prefix="twinvol-bench-", dir=options.work) as folder:
        work = Path(folder)
        (work / "source.raw").write_bytes(b"".join(os.urandom(MIB) for _ in range(options.size // MIB)))
        (work / "target.raw").write_bytes(bytes(options.size))
        machine = facts(work)
        ours = TwinvolCopy(work, options.size)
        copiers: dict[str, Callable[[], None]] = {"twinvol, verified": ours.copy}
        for name, commands in COPIERS.items():
            absent = [c.split()[0] for c in commands if shutil.which(c.split()[0]) is None]
            if absent:
                print(f"{name}: left out, {absent[0]} is not installed")
            else:
                copiers[name] = outside(commands, work)
        rounds: dict[str, list[Round]] = {name: [] for name in copiers}
        for copy in copiers.values():  # first touch of a file's pages is several times slower
            copy()
        for number in range(options.rounds):
            order = list(copiers.items())
            for name, copy in order if number % 2 == 0 else reversed(order):
                rounds[name].append(timed(copy))
        ours.close()
    mib = options.size / MIB
    own = statistics.median(r.seconds for r in rounds["twinvol, verified"])
    print(f"{'':28} {'MiB/s':>8} {'CPU s/GiB':>10} {'twinvol is':>11}")
    for name, runs in rounds.items():
        seconds, cpu = statistics.median(r.seconds for r in runs), statistics.median(r.cpu_seconds for r in runs)
        print(f"{name:28} {mib / seconds:8.0f} {cpu / (options.size / GIB):10.2f} {seconds / own:10.2f}x")
    out = options.out or RESULTS / f"copy_engine-{str(machine['commit']).rstrip('+')}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "bench": "copy_engine",
        "machine": machine,
        "size_bytes": options.size,
        "rounds": {name: [asdict(r) for r in runs] for name, runs in rounds.items()},
    }
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"result in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
