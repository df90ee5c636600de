"""twinvol beside tgtd in one run: ``make bench``, or ``python -m bench.side_by_side [--quick]``.

Three targets serve a volume of 1 GiB each that is hot in the page cache, from files in one folder: twinvol with one
snapshot of it, tgtd with its defaults, and tgtd tuned to what suits it best (one I/O thread, segments and first burst
of 256 KiB). The client has one core, all targets share another; only one of them is measured at a time. Rounds
alternate A B C, C B A ...; each round gives one ratio to each peer, the table shows the medians of the ratios. Beside
them runs the floor: a C program that makes a target's system calls and does nothing else (``floor.c``), so that a goal
which nobody could reach on this machine is told from one that twinvol misses. What no peer has (digests, idle
sessions, a clone in the background) is compared with twinvol itself in the same way.

The figure that varies least is the server's CPU per I/O, from the scheduler's own account. ``client`` is what the load
generator itself costs per I/O: 1,000,000 / that is the most that it could have asked for.

State of the page cache: every file is filled in 4 KiB writes and stays resident; small blocks are measured before
large ones, because ext4's large folios make later small writes several times dearer; what is dirty is written back
before each round. After the snapshot all of twinvol's volume is written once more before anything is measured, so that
no round depends on how many chunks those before it have already moved away from the snapshot; what a chunk's first
write costs has a row of its own, in which each round begins with a new snapshot.

Nothing is measured that is not also checked: each read checks the stamps of every sector it got, and each workload
that writes is followed by a pass over the whole volume which checks every byte.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.loadgen import BenchError, build
from bench.machine import RESULTS, ROOT, available_memory, busy_cpus, facts, two_cores
from bench.plot import svg
from bench.report import FLOOR, SUBJECT, Goal, Row, line, machine_text, markdown, to_json
from bench.rounds import (
    Client,
    Cloning,
    Figures,
    Results,
    alternate,
    idle_sessions,
    median_of,
    paired,
    pin,
    pooled_latency,
    settle_disk,
    snapshot,
    take_snapshot,
    time_to_login,
    user_us,
)
from bench.targets import Endpoint, floor, tgtd, twinvol, why_no_tgtd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GIB = 1 << 30
HOT_COPIES = 7
"""Volumes that have to fit the page cache: four, what a snapshot keeps of one, a clone, and what is being replaced."""
PEER, TUNED = "tgtd", "tgtd tuned"
SNAPSHOT = "before"
IDLE_SESSIONS = 64
MAX_USER_US, MAX_READY_S = 1.5, 0.3
DOCS = ROOT / "docs" / "benchmarks"


@dataclass(frozen=True, slots=True)
class Workload:
    """What a client asks for. ``wanted``: the least rates relative to tgtd's defaults and to tgtd tuned."""

    name: str
    verb: str
    block: int
    depth: int
    pattern: str = "random"
    sessions: int = 1
    wanted: tuple[float, float] = (0.0, 0.0)

    def options(self) -> dict[str, object]:
        return {"block": self.block, "depth": self.depth, "pattern": self.pattern, "sessions": self.sessions}


READ_4K_32 = Workload("4 KiB random read, depth 32", "read", 4096, 32, wanted=(3.0, 2.5))
WRITE_4K_32 = Workload("4 KiB random write, depth 32", "write", 4096, 32, wanted=(2.2, 1.8))
READ_256K = Workload("256 KiB sequential read, depth 8", "read", 262144, 8, "seq", wanted=(2.3, 2.2))
WRITE_256K = Workload("256 KiB sequential write, depth 8", "write", 262144, 8, "seq", wanted=(4.5, 1.8))

BESIDE_PEERS = (
    Workload("4 KiB random read, depth 1", "read", 4096, 1, wanted=(1.1, 1.0)),
    READ_4K_32,
    Workload("4 KiB random read, depth 128", "read", 4096, 128, wanted=(3.0, 2.5)),
    Workload("four clients, 4 KiB random read, depth 32", "read", 4096, 32, sessions=4, wanted=(2.5, 2.0)),
    Workload("4 KiB random write, depth 1", "write", 4096, 1, wanted=(1.1, 1.0)),
    WRITE_4K_32,
    Workload("64 KiB random read, depth 8", "read", 65536, 8, wanted=(2.2, 2.0)),
    READ_256K,
    WRITE_256K,
)
WANTED_CPU = {READ_4K_32: (0.2, 0.3), WRITE_4K_32: (0.3, 0.4)}
WITH_DIGESTS = {READ_4K_32: 1.3, WRITE_4K_32: 1.3, READ_256K: 2.0, WRITE_256K: 2.0}
BESIDE_CLONE = (
    Workload("4 KiB random read, depth 8", "read", 4096, 8),
    Workload("4 KiB random write, depth 8", "write", 4096, 8),
)


class Bench:
    """The running targets, the client, and what was measured so far."""

    def __init__(self, client: Client, endpoints: dict[str, Endpoint], options: argparse.Namespace) -> None:
        self.client = client
        self.endpoints = endpoints
        self.rounds: int = options.rounds
        self.seconds: float = options.seconds
        self.results: dict[str, Results] = {}

    @property
    def subject(self) -> Endpoint:
        return self.endpoints[SUBJECT]

    def fill(self) -> None:
        """Every volume full and known; twinvol's with a snapshot, and written once more."""
        for endpoint in self.endpoints.values():
            self.client.run(endpoint, "fill", block=4096, depth=32)
        take_snapshot(self.subject, SNAPSHOT)
        self.client.run(self.subject, "fill", block=4096, depth=32)
        for endpoint in self.endpoints.values():
            self.client.run(endpoint, "verify")

    def one_round(
        self, workload: Workload, endpoint: Endpoint, number: int, seconds: float, **login: object
    ) -> Figures:
        settle_disk(list(self.endpoints.values()))
        endpoint.warm()
        options = {
            **workload.options(),
            **login,
            "seconds": seconds,
            "warmup": min(0.3, seconds / 3),
            "seed": number + 1,
        }
        return self.client.run(endpoint, workload.verb, **options)

    def check(self, workload: Workload, *endpoints: Endpoint) -> None:
        if workload.verb == "write":
            for endpoint in endpoints:
                self.client.run(endpoint, "verify")

    def keep(self, row: str, results: Results) -> None:
        """Every round for the result file, but for the histograms."""
        self.results[row] = {
            name: [{key: value for key, value in one.items() if key != "histogram_us"} for one in figures]
            for name, figures in results.items()
        }

    # -- the rows

    def beside_peers(self, workload: Workload) -> Iterator[Row]:
        """One workload against all targets: its rate, and where wanted the server's CPU and its user part."""

        def run(endpoint: Endpoint) -> Callable[[int], Figures]:
            return lambda number: self.one_round(workload, endpoint, number, self.seconds)

        results = alternate({name: run(endpoint) for name, endpoint in self.endpoints.items()}, self.rounds)
        self.check(workload, *self.endpoints.values())
        self.keep(workload.name, results)
        cpu_us = median_of(results, "server_us_per_io")
        yield Row(
            workload.name,
            "IO/s",
            median_of(results, "iops"),
            [
                ratio_goal(results, "iops", peer, wanted)
                for peer, wanted in zip((PEER, TUNED), workload.wanted, strict=True)
            ],
            cpu_us,
            median_of(results, "client_us_per_io")[SUBJECT],
            {name: pooled_latency(figures) for name, figures in results.items()},
        )
        if workload not in WANTED_CPU:
            return
        goals = [
            ratio_goal(results, "server_us_per_io", peer, wanted, at_most=True)
            for peer, wanted in zip((PEER, TUNED), WANTED_CPU[workload], strict=True)
        ]
        yield Row(f"server CPU per I/O, {workload.name}", "us", cpu_us, goals)
        user = {name: user_us(figures) for name, figures in results.items()}
        yield Row(f"user CPU per I/O, {workload.name}", "us", user, [Goal("", MAX_USER_US, user[SUBJECT], True)])

    def digests(self, workload: Workload) -> Iterator[Row]:
        """Server CPU per I/O with data digests, and without."""

        def run(digests: str) -> Callable[[int], Figures]:
            seconds = self.seconds / 2
            return lambda number: self.one_round(workload, self.subject, number, seconds, digests=digests)

        name = f"CPU with data digests, {workload.name}"
        results = alternate({"with": run("data"), "without": run("none")}, self.rounds)
        self.check(workload, self.subject)
        self.keep(name, results)
        key = "server_us_per_io"
        goal = ratio_goal(results, key, "without", WITH_DIGESTS[workload], ours="with", at_most=True)
        yield Row(name, "us", median_of(results, key), [goal])

    def beside_idle(self) -> Iterator[Row]:
        """The rate of one busy session, with idle ones beside it and alone."""
        name = f"one busy session beside {IDLE_SESSIONS} idle ones"

        def run(count: int) -> Callable[[int], Figures]:
            def one(number: int) -> Figures:
                with idle_sessions(self.client, self.subject, count) if count else nullcontext():
                    return self.one_round(READ_4K_32, self.subject, number, self.seconds)

            return one

        results = alternate({"beside": run(IDLE_SESSIONS), "alone": run(0)}, self.rounds)
        self.keep(name, results)
        goal = ratio_goal(results, "iops", "alone", 0.95, ours="beside")
        yield Row(name, "IO/s", median_of(results, "iops"), [goal], median_of(results, "server_us_per_io"))

    def after_snapshot(self) -> Iterator[Row]:
        """Writes that redirect: each round in the second after a snapshot, and long after one. Nothing is wanted."""
        name = f"right after a snapshot, {WRITE_4K_32.name}"
        seconds = self.seconds / 2

        def after(number: int) -> Figures:
            settle_disk([self.subject])
            with snapshot(self.subject, f"round{number}"):
                options = {**WRITE_4K_32.options(), "seconds": seconds, "seed": number + 1}
                return self.client.run(self.subject, WRITE_4K_32.verb, **options)

        def later(number: int) -> Figures:
            return self.one_round(WRITE_4K_32, self.subject, number, seconds)

        results = alternate({"after": after, "later": later}, max(3, self.rounds - 2))
        self.check(WRITE_4K_32, self.subject)
        self.keep(name, results)
        yield Row(name, "IO/s", median_of(results, "iops"), cpu_us=median_of(results, "server_us_per_io"))

    def beside_clone(self, workload: Workload) -> Iterator[Row]:
        """p99 of the foreground while full clones are made, and while none is."""
        name = f"p99 while a full clone copies, {workload.name}"

        def cloning(number: int) -> Figures:
            with Cloning(self.subject, ("bench", SNAPSHOT)) as clones:
                figures = self.one_round(workload, self.subject, number, self.seconds)
            os.sync()
            return {**figures, "cloned_bytes": clones.copied_bytes}

        def alone(number: int) -> Figures:
            return self.one_round(workload, self.subject, number, self.seconds)

        results = alternate({"cloning": cloning, "alone": alone}, max(3, self.rounds - 2))
        self.check(workload, self.subject)
        self.keep(name, results)
        p99 = {who: [float(f["latency_us"]["p99"]) for f in figures] for who, figures in results.items()}
        ratio, spread = paired(p99["cloning"], p99["alone"])
        values = {who: statistics.median(times) for who, times in p99.items()}
        latency = {who: pooled_latency(figures) for who, figures in results.items()}
        yield Row(name, "us", values, [Goal("alone", 3.0, ratio, True, spread)], latency_us=latency)


def ratio_goal(
    results: Results, key: str, against: str, wanted: float, *, ours: str = SUBJECT, at_most: bool = False
) -> Goal:
    """What is wanted of the median of the paired ratios of one figure."""
    figures = {who: [float(f[key]) for f in found] for who, found in results.items()}
    ratio, spread = paired(figures[ours], figures[against])
    least = paired(figures[FLOOR], figures[against])[0] if FLOOR in figures else None
    return Goal(against, wanted, ratio, at_most, spread, least)


def ready_row(client: Client, subject: Endpoint, rounds: int, cpu: int, log: Path) -> Row:
    """How soon a target is ready. The daemon must not be running."""
    times = [time_to_login(client, subject, cpu, log) for _ in range(rounds)]
    median = statistics.median(times)
    spread = (min(times), max(times))
    goal = Goal("", MAX_READY_S, median, True, spread)
    return Row(READY_STEP, "s", {SUBJECT: median}, [goal])


Step = tuple[str, "Callable[[Bench], Iterator[Row]]"]
READY_STEP = "ready for logins after twinvol serve starts"


def plan() -> list[Step]:
    """What is measured, in this order; the names are what ``--only`` looks at."""
    small = [w for w in BESIDE_PEERS if w.block == 4096]
    large = [w for w in BESIDE_PEERS if w.block > 4096]
    return [
        *((w.name, partial(Bench.beside_peers, workload=w)) for w in small),
        ("idle sessions", Bench.beside_idle),
        *((f"digests, {w.name}", partial(Bench.digests, workload=w)) for w in WITH_DIGESTS if w in small),
        *((w.name, partial(Bench.beside_peers, workload=w)) for w in large),
        *((f"digests, {w.name}", partial(Bench.digests, workload=w)) for w in WITH_DIGESTS if w in large),
        *((f"clone in the background, {w.name}", partial(Bench.beside_clone, workload=w)) for w in BESIDE_CLONE),
        (f"right after a snapshot, {WRITE_4K_32.name}", Bench.after_snapshot),
    ]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.side_by_side", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds of 0.5 s, into bench/results: a look, no result")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each row (7)")
    parser.add_argument("--seconds", type=float, default=1.6, help="length of a round (1.6)")
    parser.add_argument("--size", type=int, default=GIB, help="bytes of each volume (1 GiB)")
    names = "; ".join(name for name, _ in plan())
    parser.add_argument("--only", default="", help=f"rows whose name contains this: {names}; {READY_STEP}")
    parser.add_argument("--gate", action="store_true", help="exit 1 when a wanted figure does not come out")
    parser.add_argument("--work", type=Path, default=None, help="folder for the volumes (a temporary one)")
    parser.add_argument("--out", type=Path, default=None, help="folder for JSON, SVG and Markdown (docs/benchmarks)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 2, 0.5
    if options.out is None:
        options.out = RESULTS if options.quick or options.only else DOCS
    return options


def measure(
    options: argparse.Namespace, work: Path, server_cpu: int, client_cpu: int
) -> tuple[dict[str, Any], list[Row], dict[str, Results]]:
    """Everything, from the start of the targets to their end; prints each row as it comes."""
    client = Client(build(), work, client_cpu)
    version = subprocess.run(["tgtd", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    head = {
        "machine": {**facts(work), "busy_cpus": round(busy_cpus(), 2), "tgtd": f"tgtd {version}"},
        "settings": {"rounds": options.rounds, "seconds": options.seconds, "size_bytes": options.size},
    }
    print(machine_text(head), flush=True)
    rows: list[Row] = []

    def add(new: Row) -> None:
        rows.append(new)
        print(line(new), flush=True)

    with ExitStack() as stack:
        size = options.size
        subject = stack.enter_context(twinvol(work, SUBJECT, size, server_cpu))
        peer = stack.enter_context(tgtd(work, "tgtd", size, server_cpu))
        tuned = stack.enter_context(tgtd(work, "tuned", size, server_cpu, tuned=True))
        least = stack.enter_context(floor(work, "floor", size, server_cpu))
        bench = Bench(client, {SUBJECT: subject, PEER: peer, TUNED: tuned, FLOOR: least}, options)
        bench.fill()
        for name, step in plan():
            if options.only not in name:
                continue
            try:
                for row in step(bench):
                    add(row)
            except BenchError as error:
                add(Row(name, error=str(error)))
    if options.only in READY_STEP:
        try:
            add(ready_row(client, subject, options.rounds, server_cpu, work / "ready.log"))
        except BenchError as error:
            add(Row(READY_STEP, error=str(error)))
    return head, rows, bench.results


def main() -> int:
    """Run it. 0; 1 when a row could not be measured or, with --gate, a figure was not reached; 2 when it cannot run."""
    options = arguments()
    cores = two_cores()
    reason = why_no_tgtd() or ("needs two cores, one for the client and one for the servers" if cores is None else None)
    if available_memory() < HOT_COPIES * options.size:
        reason = f"needs {HOT_COPIES * options.size / GIB:.1f} GiB of memory to keep every volume in the page cache"
    if cores is None or reason:
        print(f"bench: not run: {reason}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the targets would outlive it
    server_cpu, client_cpu = cores
    pin(client_cpu)
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twinvol-bench-")))
        head, rows, results = measure(options, work, server_cpu, client_cpu)
    options.out.mkdir(parents=True, exist_ok=True)
    files = {
        "side_by_side.json": to_json(head, rows, results),
        "side_by_side.svg": svg(head, rows),
        "side_by_side.md": markdown(head, rows, "side_by_side.svg"),
    }
    for name, text in files.items():
        (options.out / name).write_text(text, encoding="utf-8")
    missed = [row.name for row in rows if not row.reached]
    print(f"bytes verified; {', '.join(files)} in {options.out}")
    print(f"NOT REACHED: {'; '.join(missed)}" if missed else "every wanted figure was reached")
    return 1 if any(row.error for row in rows) or (options.gate and missed) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(2)
