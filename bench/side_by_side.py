"""twinvol against tgtd in one run: ``make bench``, or ``python -m bench.side_by_side [--quick]``.

Both targets serve a volume that is hot in the page cache, from files in one folder. The client has one core, both
targets share another; only one of them is measured at a time. Rounds alternate A B B A, each pair gives one ratio,
the table shows the medians of the ratios. The figure to decide on is server CPU per I/O (from the scheduler's own
account): it varies by a few per cent where rates vary with everything else the machine does. ``client us/IO`` says
what the load generator itself costs: 1,000,000 / that is the most that it could have asked for.

Nothing is measured that is not also checked: each read checks the stamps of every sector it got, and each workload
that writes is followed by a pass over the whole volume which checks every byte.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.loadgen import BenchError, Loadgen, build
from bench.machine import RESULTS, facts
from bench.targets import Endpoint, tgtd, twinvol, why_no_tgtd

SERVER_CPU, CLIENT_CPU = 0, 1
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the table. ``wanted_rate`` and ``wanted_cpu``: the ratios that the project holds itself to."""

    name: str
    command: str
    block: int
    depth: int
    pattern: str = "random"
    wanted_rate: float | None = None
    wanted_cpu: float | None = None


# Small blocks first: the volume is filled in 4 KiB writes, and large transfers must not change how the page cache
# holds it before the small ones were measured (ext4's large folios make later small writes several times dearer).
WORKLOADS = (
    Workload("4 KiB random read, depth 1", "read", 4096, 1),
    Workload("4 KiB random read, depth 32", "read", 4096, 32, wanted_rate=2.0, wanted_cpu=0.35),
    Workload("4 KiB random read, depth 128", "read", 4096, 128),
    Workload("4 KiB random write, depth 1", "write", 4096, 1),
    Workload("4 KiB random write, depth 32", "write", 4096, 32, wanted_rate=1.8, wanted_cpu=0.35),
    Workload("64 KiB random read, depth 8", "read", 65536, 8),
    Workload("256 KiB sequential read, depth 8", "read", 262144, 8, "seq", wanted_rate=2.0),
    Workload("256 KiB sequential write, depth 8", "write", 262144, 8, "seq", wanted_rate=3.0),
)


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of one workload. ``rate_ratio`` and ``cpu_ratio`` are subject / peer, of paired rounds."""

    workload: str
    peer_iops: float
    subject_iops: float
    rate_ratio: float
    rate_spread: tuple[float, float]
    peer_cpu_us: float
    subject_cpu_us: float
    cpu_ratio: float
    subject_client_us: float
    wanted_rate: float | None
    wanted_cpu: float | None

    @property
    def reached(self) -> bool:
        """Whether the wanted ratios, where there are any, came out."""
        rate_ok = self.wanted_rate is None or self.rate_ratio >= self.wanted_rate
        return rate_ok and (self.wanted_cpu is None or self.cpu_ratio <= self.wanted_cpu)


class Client:
    """The load generator on its own core, with one ledger per endpoint."""

    def __init__(self, program: Path, work: Path) -> None:
        self._program = program
        self._work = work

    def run(self, endpoint: Endpoint, command: str, **options: object) -> dict[str, Any]:
        """One run against ``endpoint``; its figures. Raises BenchError on wrong bytes or a lost target."""
        ledger = self._work / f"{endpoint.name}.ledger"
        generator = Loadgen(self._program, endpoint.url, ledger, cpu=CLIENT_CPU, cpu_of=tuple(endpoint.pids))
        outcome = generator.run(command, **options)
        if outcome.code != 0:
            raise BenchError(f"{endpoint.name}: {command}: {outcome.explain()}")
        return outcome.figures


def measure(
    client: Client, workload: Workload, peer: Endpoint, subject: Endpoint, pairs: int, seconds: float
) -> tuple[Row, list[dict[str, Any]]]:
    """Alternating rounds of one workload; the medians, and every round for the result file."""
    rounds: list[dict[str, Any]] = []
    for pair in range(pairs):
        order = (peer, subject) if pair % 2 == 0 else (subject, peer)
        for endpoint in order:
            if workload.command == "write":
                endpoint.sync()
            result = client.run(
                endpoint,
                workload.command,
                block=workload.block,
                depth=workload.depth,
                pattern=workload.pattern,
                seconds=seconds,
                warmup=min(0.4, seconds / 3),
                seed=pair + 1,
            )
            rounds.append({"target": endpoint.name, "pair": pair, **result})
    if workload.command == "write":
        for endpoint in (peer, subject):
            client.run(endpoint, "verify")
    a = [r for r in rounds if r["target"] == peer.name]
    b = [r for r in rounds if r["target"] == subject.name]
    rates = [y["iops"] / x["iops"] for x, y in zip(a, b, strict=True)]
    costs = [y["server_us_per_io"] / x["server_us_per_io"] for x, y in zip(a, b, strict=True)]
    median = statistics.median
    row = Row(
        workload=workload.name,
        peer_iops=median(x["iops"] for x in a),
        subject_iops=median(y["iops"] for y in b),
        rate_ratio=median(rates),
        rate_spread=(min(rates), max(rates)),
        peer_cpu_us=median(x["server_us_per_io"] for x in a),
        subject_cpu_us=median(y["server_us_per_io"] for y in b),
        cpu_ratio=median(costs),
        subject_client_us=median(y["client_us_per_io"] for y in b),
        wanted_rate=workload.wanted_rate,
        wanted_cpu=workload.wanted_cpu,
    )
    return row, rounds


def header(peer: str, subject: str) -> str:
    """The columns' names."""
    cpu = f"{'CPU us':>7} {'CPU us':>7} {'CPU':>5} {'client us':>9}"
    return f"{'per second and per I/O':34} {peer[:8]:>8} {subject[:8]:>8} {'rate':>6} {'(spread)':>11} {cpu}"


def line(row: Row) -> str:
    """One row as text; ``<`` marks a wanted ratio that did not come out."""
    wanted = f"  >= {row.wanted_rate:g}x" if row.wanted_rate else ""
    wanted += f", CPU <= {row.wanted_cpu:g}x" if row.wanted_cpu else ""
    low, high = row.rate_spread
    return (
        f"{row.workload:34} {row.peer_iops:8.0f} {row.subject_iops:8.0f} {row.rate_ratio:5.2f}x "
        f"{low:5.2f}-{high:5.2f} {row.peer_cpu_us:7.1f} {row.subject_cpu_us:7.1f} {row.cpu_ratio:4.2f}x "
        f"{row.subject_client_us:9.1f}{wanted}{'' if row.reached else '   < NOT REACHED'}"
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.side_by_side", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="2 pairs of 0.5 s: a look, not a result")
    parser.add_argument("--pairs", type=int, default=8, help="paired rounds of each workload (8)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a round (2)")
    parser.add_argument("--size", type=int, default=GIB, help="bytes of the volume (1 GiB)")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument(
        "--subject", choices=("twinvol", "tgtd"), default="twinvol", help="tgtd: proves the method (1.0x)"
    )
    parser.add_argument("--tuned-peer", action="store_true", help="tgtd with its best settings, not its defaults")
    parser.add_argument("--gate", action="store_true", help="exit 1 when a wanted ratio does not come out")
    parser.add_argument("--work", type=Path, default=None, help="folder for the volumes (a temporary one)")
    parser.add_argument("--out", type=Path, default=None, help="result file (bench/results/...)")
    return parser.parse_args()


def main() -> int:
    """Run it; 0, or 1 with --gate and a ratio not reached, or 2 when it cannot run here."""
    options = arguments()
    if options.quick:
        options.pairs, options.seconds = 2, 0.5
    reason = why_no_tgtd()
    if reason:
        print(f"bench: not run: {reason}", file=sys.stderr)
        return 2
    if (os.cpu_count() or 1) < 2:
        print("bench: not run: needs two cores, one for the client and one for the server", file=sys.stderr)
        return 2
    workloads = [w for w in WORKLOADS if options.only in w.name]
    rows: list[Row] = []
    rounds: dict[str, list[dict[str, Any]]] = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the targets would outlive it
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twinvol-bench-")))
        client = Client(build(), work)
        peer = stack.enter_context(tgtd(work, "tgtd", options.size, SERVER_CPU, tuned=options.tuned_peer))
        if options.subject == "twinvol":
            subject = stack.enter_context(twinvol(work, "twinvol", options.size, SERVER_CPU))
        else:
            subject = stack.enter_context(tgtd(work, "tgtd-again", options.size, SERVER_CPU, tuned=options.tuned_peer))
        machine = facts(work)
        print(f"{subject.name} against {peer.name}{' (tuned)' if options.tuned_peer else ''}: {machine}", flush=True)
        for endpoint in (peer, subject):
            client.run(endpoint, "fill", block=4096, depth=32)
            client.run(endpoint, "verify")
        print(header(peer.name, subject.name))
        for workload in workloads:
            row, rounds[workload.name] = measure(client, workload, peer, subject, options.pairs, options.seconds)
            rows.append(row)
            print(line(row), flush=True)
    document = {
        "bench": "side_by_side",
        "machine": machine,
        "subject": subject.name,
        "peer": peer.name,
        "peer_tuned": options.tuned_peer,
        "size_bytes": options.size,
        "pairs": options.pairs,
        "seconds": options.seconds,
        "rows": [asdict(row) for row in rows],
        "rounds": rounds,
    }
    out = options.out or RESULTS / f"side_by_side-{str(machine['commit']).rstrip('+')}-{subject.name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"every byte verified; result in {out}")
    return 1 if options.gate and not all(row.reached for row in rows) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(2)
