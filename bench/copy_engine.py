"""The verified copy against what people use to copy and check an image:  ``python -m bench.copy_engine``.

``full``: 1 GiB in the page cache, onto a target that exists. ``sparse``: 8 GiB with 400 MiB of data in pieces of
1 MiB, into a new target each time.

Each copy is timed twice: until all bytes are copied (and compared, by who does that), which is a matter of the page
cache, and until they are written back (fdatasync), which is a matter of the disk. twinvol reads back and compares
hashes as it goes; the others need a second program for that (``qemu-img compare``, ``cmp``), or verify nothing and say
so; rsync compares checksums of what it sent, not of what it wrote. Clones, imports and mirrors keep a ledger by
which they are resumed, and flush for it as they go: a row of its own.

Rounds alternate, and ratios are medians over pairs of one round. CPU is that of all processes, the copying process of
twinvol included, and of the writing back as far as it is theirs. At the end the bytes of every target are compared with
the source's.

The expected order of magnitude: memory bandwidth for reads, twice that for the write; about 0.2 to 0.6 CPU seconds a
GiB. The plain-file baseline is ``dd`` alone, which verifies nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.loadgen import BenchError
from bench.machine import RESULTS, facts
from engine.copy_job import CopyControl, CopyOptions, CopyProgress, copy_extents
from engine.files import real_env
from engine.ledger import Ledger, LedgerKey
from engine.proof import tree_of
from engine.tvol.file import TvolFile
from engine.units import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

OURS = "twinvol, verified"
WITH_LEDGER = "twinvol, verified, resumable"
CONVERT = "qemu-img convert -W -m 8"
CONVERT_COMPARE = "qemu-img convert -W -m 8, compare"
CONVERT_PLAIN = "qemu-img convert"
COMPARE = "qemu-img compare -f raw -F raw {source} {target}"
FULL_PEERS: dict[str, tuple[str, ...]] = {
    "dd": ("dd if={source} of={target} bs=1M conv=notrunc status=none",),
    "dd, cmp": ("dd if={source} of={target} bs=1M conv=notrunc status=none", "cmp {source} {target}"),
    CONVERT_PLAIN: ("qemu-img convert -n -f raw -O raw {source} {target}",),
    CONVERT: ("qemu-img convert -n -W -m 8 -f raw -O raw {source} {target}",),
    CONVERT_COMPARE: ("qemu-img convert -n -W -m 8 -f raw -O raw {source} {target}", COMPARE),
    # Whole, or it would find the target of the round before equal and write nothing.
    "rsync --inplace --whole-file": ("rsync --inplace --whole-file --ignore-times {source} {target}",),
}
SPARSE_PEERS: dict[str, tuple[str, ...]] = {
    "cp --sparse=auto": ("cp --sparse=auto {source} {target}",),
    CONVERT_PLAIN: ("qemu-img convert -f raw -O raw {source} {target}",),
    CONVERT: ("qemu-img convert -W -m 8 -f raw -O raw {source} {target}",),
    CONVERT_COMPARE: ("qemu-img convert -W -m 8 -f raw -O raw {source} {target}", COMPARE),
}
WRITE_BACK = "sync -d {target}"
WANTED = {"full": {CONVERT: 0.9, CONVERT_COMPARE: 1.7}, "sparse": {CONVERT_PLAIN: 5.0, CONVERT: 5.0}}
"""At least so many times the speed of whom."""

SPARSE_BYTES, SPARSE_DATA_BYTES = 8 * GIB, 400 * MIB


Copy = Callable[[], float]
"""Makes one copy, written back when it returns; returns ``time.perf_counter()`` of when all bytes were copied."""


@dataclass(frozen=True, slots=True)
class Round:
    """One copy in seconds: until it is copied, until it is written back, and of CPU."""

    copied: float
    written_back: float
    cpu: float


@dataclass(slots=True)
class Contest:
    """Who copies ``data_bytes``, and how they did."""

    name: str
    data_bytes: int
    copiers: dict[str, Copy]
    prepare: Callable[[], None]
    """What is done before each copy and not measured."""
    rounds: dict[str, list[Round]] = field(default_factory=dict)

    def run(self, rounds: int, cpu: Callable[[], float]) -> None:
        """Everybody in turn, in alternating order, after one copy each that does not count: the first touch of a
        file's pages is several times slower."""
        self.rounds = {name: [] for name in self.copiers}
        for copy in self.copiers.values():
            self.prepare()
            copy()
        for number in range(rounds):
            order = list(self.copiers.items())
            for name, copy in order if number % 2 == 0 else reversed(order):
                self.prepare()
                self.rounds[name].append(timed(copy, cpu))

    def lines(self) -> list[str]:
        """The table, and what is wanted of it: medians, and of the others how much slower than twinvol they are."""
        mib = self.data_bytes / MIB
        lines = [
            f"{self.name + ', ' + format(mib, '.0f') + ' MiB of data':36} {'copied':>8}  twinvol is"
            f" {'written back':>14}  twinvol is {'CPU s/GiB':>10}"
        ]
        ours = self.rounds[OURS]
        for name, runs in self.rounds.items():
            copied = statistics.median(run.copied for run in runs)
            back = statistics.median(run.written_back for run in runs)
            cpu = statistics.median(run.cpu for run in runs) / (self.data_bytes / GIB)
            ratios = (
                statistics.median(run.copied / our.copied for run, our in zip(runs, ours, strict=True)),
                statistics.median(run.written_back / our.written_back for run, our in zip(runs, ours, strict=True)),
            )
            wanted = WANTED[self.name].get(name)
            goal = f"  wanted: {wanted}x" if wanted else ""
            rates = f"{mib / copied:8.0f} {ratios[0]:10.2f}x {mib / back:14.0f} {ratios[1]:10.2f}x"
            lines.append(f"{name:36} {rates} {cpu:10.2f}{goal}")
        return lines


class Twinvol:
    """A snapshot in one volume file, copied to the volume of another: the same one again, or a new one each time."""

    def __init__(self, work: Path, image: Path, *, new_target: bool) -> None:
        self._loop = asyncio.new_event_loop()
        self._env = real_env()
        self._path = work / f"{image.stem}-target.tvol"
        self._new_target = new_target
        self._size = image.stat().st_size
        self._source = self._run(self._make(work / f"{image.stem}-source.tvol"))
        self._target: TvolFile | None = self._run(self._make(self._path))
        self._run(self._fill(image))
        self._frozen = self._run(self._source.snapshot(self._source.volumes()[0], "still"))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(coroutine)

    def _make(self, path: Path) -> Coroutine[Any, Any, TvolFile]:
        return TvolFile.create(self._env, path, volume_name=path.stem, size_bytes=self._size)

    async def _fill(self, image: Path) -> None:
        head, fd = self._source.volumes()[0], os.open(image, os.O_RDONLY)
        try:
            at = 0
            while at < self._size:
                try:
                    at = os.lseek(fd, at, os.SEEK_DATA)
                except OSError:  # nothing but a hole follows
                    break
                at -= at % MIB
                await head.write(at, memoryview(os.pread(fd, MIB, at)))
                at += MIB
        finally:
            os.close(fd)

    def copy(self) -> float:
        """One verified copy."""
        return self._run(self._copy(None))

    def copy_with_ledger(self) -> float:
        """One that could be resumed: what was recorded is written back before the next part is."""
        return self._run(self._copy_recorded())

    def drop_target(self) -> None:
        """The next copy makes a new one."""
        if self._target is not None:
            self._run(self._target.close())
            self._path.unlink()
            self._target = None

    async def _copy_recorded(self) -> float:
        key = LedgerKey(self._frozen.guid, "", str(self._path), self._size)
        ledger = await Ledger.open(self._env.control_files, self._path.with_suffix(".ledger"), key)
        try:
            return await self._copy(ledger)
        finally:
            await ledger.remove()

    async def _copy(self, ledger: Ledger | None) -> float:
        if self._target is None:
            self._target = await self._make(self._path)
        copied = 0.0

        def progress(now: CopyProgress) -> None:
            nonlocal copied
            if now.done_bytes == now.total_bytes:
                copied = time.perf_counter()

        await copy_extents(
            self._frozen,
            self._target.volumes()[0],
            ledger=ledger,
            options=CopyOptions(blank_target=self._new_target),
            control=CopyControl(on_progress=progress),
            mover=self._env.mover,
        )
        return copied

    def cpu(self) -> float:
        """CPU seconds that the copying process has used so far; it is no child that was waited for yet."""
        mover = self._env.mover
        pid = getattr(mover, "pid", None)
        if pid is None:
            return 0.0
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def verify(self) -> None:
        """Compare all bytes of both. Raises BenchError."""
        assert self._target is not None
        roots = {self._run(tree_of(device)).root() for device in (self._frozen, self._target.volumes()[0])}
        if len(roots) != 1:
            raise BenchError("the copy is not equal to its source")

    def close(self) -> None:
        self._run(self._source.close())
        self.drop_target()
        self._run(self._env.close())
        self._loop.close()


def timed(copy: Copy, cpu: Callable[[], float]) -> Round:
    """One copy, measured. ``cpu``: of processes that are not waited for."""
    os.sync()

    def used() -> float:
        usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
        return cpu() + sum(usage.ru_utime + usage.ru_stime for usage in usages)

    cpu_seconds, started = used(), time.perf_counter()
    copied = copy()
    return Round(copied - started, time.perf_counter() - started, used() - cpu_seconds)


def outside(commands: tuple[str, ...], source: Path, target: Path) -> Copy:
    """The commands of one peer as a function."""
    *lines, last = [command.format(source=source, target=target).split() for command in (*commands, WRITE_BACK)]

    def run() -> float:
        for line in lines:
            subprocess.run(line, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        copied = time.perf_counter()
        subprocess.run(last, check=True)
        return copied

    return run


def contest(name: str, image: Path, data_bytes: int, peers: dict[str, tuple[str, ...]], rounds: int) -> Contest:
    """Measure one table. Raises BenchError when a copy turns out to be wrong."""
    target = image.with_name(f"{image.stem}-target.raw")
    ours = Twinvol(image.parent, image, new_target=name == "sparse")
    anew = name == "sparse"

    def prepare() -> None:
        if anew:
            ours.drop_target()
            target.unlink(missing_ok=True)

    made = Contest(name, data_bytes, {OURS: ours.copy, WITH_LEDGER: ours.copy_with_ledger}, prepare)
    for peer, commands in peers.items():
        absent = [c.split()[0] for c in commands if shutil.which(c.split()[0]) is None]
        if absent:
            print(f"{peer}: left out, {absent[0]} is not installed")
        else:
            made.copiers[peer] = outside(commands, image, target)
    made.run(rounds, ours.cpu)
    for peer in made.copiers:
        prepare()
        made.copiers[peer]()
        if peer in (OURS, WITH_LEDGER):
            ours.verify()
        elif subprocess.run(["cmp", "-s", image, target], check=False).returncode:
            raise BenchError(f"{peer}: {target.name} is not equal to its source")
    ours.close()
    print("\n".join(made.lines()), flush=True)
    return made


def make_images(work: Path, size_bytes: int, sparse_bytes: int, data_bytes: int) -> tuple[Path, Path]:
    """The full source with a target of its size, and the sparse source."""
    full, sparse = work / "full.raw", work / "sparse.raw"
    with full.open("wb") as file:
        for _ in range(size_bytes // MIB):
            file.write(os.urandom(MIB))
    (work / "full-target.raw").write_bytes(bytes(size_bytes))
    with sparse.open("wb") as file:
        file.truncate(sparse_bytes)
        for place in sorted(random.Random(8).sample(range(sparse_bytes // MIB), data_bytes // MIB)):
            file.seek(place * MIB)
            file.write(os.urandom(MIB))
    return full, sparse


def main() -> int:
    """Print the tables, write the result file."""
    parser = argparse.ArgumentParser(prog="python -m bench.copy_engine", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2 rounds of 256 MiB and 1 GiB: a look, not a result")
    parser.add_argument("--rounds", type=int, default=7, help="rounds (7)")
    parser.add_argument("--size", type=int, default=GIB, help="bytes of the full copy (1 GiB)")
    parser.add_argument("--only", choices=("full", "sparse"), default=None, help="one of the tables")
    parser.add_argument("--work", type=Path, default=None, help="folder for the files (a temporary one)")
    parser.add_argument("--out", type=Path, default=None, help="result file (bench/results/...)")
    options = parser.parse_args()
    sparse_bytes, data_bytes = SPARSE_BYTES, SPARSE_DATA_BYTES
    if options.quick:
        options.rounds, options.size = 2, 256 * MIB
        sparse_bytes, data_bytes = SPARSE_BYTES // 8, SPARSE_DATA_BYTES // 8
    contests = []
    with tempfile.TemporaryDirectory(prefix="twinvol-bench-", dir=options.work) as folder:
        work = Path(folder)
        machine = facts(work)
        full, sparse = make_images(work, options.size, sparse_bytes, data_bytes)
        if options.only != "sparse":
            contests.append(contest("full", full, options.size, FULL_PEERS, options.rounds))
        if options.only != "full":
            contests.append(contest("sparse", sparse, data_bytes, SPARSE_PEERS, options.rounds))
    out = options.out or RESULTS / f"copy_engine-{str(machine['commit']).rstrip('+')}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    rounds = {each.name: {who: [asdict(r) for r in runs] for who, runs in each.rounds.items()} for each in contests}
    document = {"bench": "copy_engine", "machine": machine, "size_bytes": options.size, "rounds": rounds}
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"bytes verified; result in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
