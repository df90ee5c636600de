"""Mirrors to a second daemon over loopback:  ``python -m bench.replication``.

``copy``: the first copy of a volume full of random data to a peer, verified chunk by chunk where it arrives, from the
job's begin to Synchronized; beside ``rsync --inplace --whole-file`` to a loopback rsync daemon (no encryption, no read
back), to a new file, as ours is, and over one that is in the page cache already; and beside the floors: a plain
blocking TLS send of the same bytes between two processes, which stores nothing, and one whose receiver writes them to a
new file. Sources are in the page cache. At the end of each both sides are compared by hash tree.

``delta``: see ``bench.delta``.

``write``: 4 KiB writes of one host at depth 1, to a volume without a mirror, with a synchronous one in the same pool,
and with one at a peer; medians of paired rounds. At the end the host reads back what it wrote, and both sides are
compared.

``async``: 20 MB/s of 4 KiB random writes offered to a volume without a mirror, and to one with an asynchronous one at a
peer and an RPO of 5 s, whose lag is looked at ten times a second: its longest 1 %, and that of the writes' latency. And
as many such writes as there can be, 32 at a time, with an RPO of 60 s: how many a second. Then as above.

The expected order of magnitude: the first copy is bound by TLS (0.3 CPU seconds a GiB on each side) and by reading,
writing and digesting (0.2 and 0.3); a write at a peer costs a round trip between two event loops, about 100 us.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import delta
from bench.loadgen import BenchError, Loadgen, Outcome, build, finish
from bench.machine import RESULTS, facts
from bench.rounds import pooled_latency
from bench.targets import PROGRAM, free_port, manage, process_tree, stop
from engine.peers.identity import Identity, enrolment_context, server_context
from engine.units import GIB, MIB
from twinvol.api.client import open_api

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PEER, TLS = "twinvol to a peer, verified", "plain TLS send, stores nothing"
TLS_STORED = "plain TLS send, to a new file"
RSYNC, RSYNC_OVER = "rsync --inplace, a new file", "rsync --inplace, over a cached file"
ALONE, HERE, THERE = "no mirror", "synchronous, same pool", "synchronous, at a peer"
WANTED = {RSYNC: 2.0, TLS: 0.5}
"""The first copy: at least so many times the speed of whom."""
WANTED_LATENCY = {HERE: 2.2, THERE: 4.0}
"""A write: at most so many times the latency of one without a mirror."""

_PIECE = 256 * 1024


@dataclass
class Pool:
    """One daemon."""

    path: Path
    process: subprocess.Popen[str]
    ready: dict[str, Any]

    def run(self, *arguments: str) -> dict[str, Any]:
        return manage(self.path, *arguments)


@contextmanager
def served(path: Path) -> Iterator[Pool]:
    """A daemon with a socket for peers."""
    command = [*PROGRAM, "serve", "--iscsi", "127.0.0.1:0", "--peer", "127.0.0.1:0", "--pool", str(path)]
    with path.with_suffix(".log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise BenchError(f"twinvol serve ended before it was ready; see {path.with_suffix('.log')}")
            yield Pool(path, process, json.loads(line))
        finally:
            stop(process)
            if process.stdout is not None:
                process.stdout.close()


@contextmanager
def peers(work: Path) -> Iterator[tuple[Pool, Pool]]:
    """Two daemons; the second is the first one's peer ``there``."""
    with served(work / "here") as here, served(work / "there") as there:
        code = there.run("peer", "invite")["code"]
        here.run("peer", "add", "there", "--code", code)
        while not here.run("peer", "list")["peers"][0]["connected"]:
            time.sleep(0.1)
        yield here, there


# --- the first copy ----------------------------------------------------------------------------------------------


def copy_to_peer(here: Pool, there: Pool, number: int) -> float:
    """Seconds of one first copy to a new volume, which goes again."""
    name = f"copy{number}"
    job = here.run("replica", "create", "disk", name, "--mode", "sync", "--peer", "there")
    if not here.run("replica", "verify", name)["identical"]:
        raise BenchError("the two sides differ")
    here.run("replica", "detach", name)
    there.run("volume", "delete", name)
    return float(job["finished_at"]) - float(job["created_at"])


@contextmanager
def rsync_daemon(work: Path) -> Iterator[str]:
    """The URL of a module of a loopback rsync daemon."""
    if shutil.which("rsync") is None:
        raise BenchError("no rsync (Debian: apt-get install rsync)")
    folder, port = work / "rsync", free_port()
    folder.mkdir(exist_ok=True)
    config = work / "rsyncd.conf"
    config.write_text(
        f"use chroot = no\nuid = {os.getuid()}\ngid = {os.getgid()}\n"
        f"port = {port}\naddress = 127.0.0.1\npid file = {work}/rsyncd.pid\n"
        f"[copy]\npath = {folder}\nread only = no\n",
        encoding="utf-8",
    )
    process = subprocess.Popen(["rsync", "--daemon", "--no-detach", f"--config={config}"], stdin=subprocess.DEVNULL)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except ConnectionError:
                time.sleep(0.05)
        yield f"rsync://127.0.0.1:{port}/copy/image"
    finally:
        process.terminate()
        process.wait()


def copy_by_rsync(image: Path, url: str, gone: Path | None = None) -> float:
    """Whole, or it would find the target of the round before equal and write nothing. ``gone``: it is removed first."""
    if gone is not None:
        gone.unlink(missing_ok=True)
    started = time.monotonic()
    command = ["rsync", "--inplace", "--whole-file", "--ignore-times", str(image), url]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def send_by_tls(image: Path, identity: Identity, stored: Path | None = None) -> float:
    """Seconds until the last byte has arrived in another process. ``stored``: and is in this new file."""
    if stored is not None:
        stored.unlink(missing_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = os.fork()
        if not child:
            _receive(listener, identity, image.stat().st_size, stored)
        sock = socket.create_connection(listener.getsockname())
        with enrolment_context().wrap_socket(sock) as tls, image.open("rb", buffering=0) as file:
            buffer = memoryview(bytearray(_PIECE))
            started = time.monotonic()
            while size := file.readinto(buffer):
                tls.sendall(buffer[:size])
            if tls.recv(1) != b"x":
                raise BenchError("the receiver did not get everything")
            seconds = time.monotonic() - started
        os.waitpid(child, 0)
    return seconds


def _receive(listener: socket.socket, identity: Identity, size: int, stored: Path | None) -> None:
    """The other process of ``send_by_tls``."""
    file = None if stored is None else os.open(stored, os.O_WRONLY | os.O_CREAT)
    sock, _ = listener.accept()
    with server_context(identity, "").wrap_socket(sock, server_side=True) as tls:
        buffer, left = memoryview(bytearray(_PIECE)), size
        while left and (got := tls.recv_into(buffer)):
            if file is not None:
                os.pwrite(file, buffer[:got], size - left)
            left -= got
        tls.sendall(b"x" if not left else b"-")
    os._exit(0)


def random_image(work: Path, size: int) -> Path:
    image = work / "image.raw"
    with image.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    return image


def copies(work: Path, here: Pool, there: Pool, size: int, rounds: int) -> dict[str, list[float]]:
    """MiB/s of each contender, by rounds that alternate."""
    image = random_image(work, size)
    here.run("volume", "import", "disk", "--from", str(image))
    identity = Identity.make(work / "tls" / "identity.pem")
    found: dict[str, list[float]] = {PEER: [], RSYNC: [], RSYNC_OVER: [], TLS: [], TLS_STORED: []}
    with rsync_daemon(work) as url:
        copy_by_rsync(image, url)  # the target exists, as in every later round
        contenders: dict[str, Callable[[int], float]] = {
            PEER: lambda number: copy_to_peer(here, there, number),
            RSYNC: lambda _: copy_by_rsync(image, url, work / "rsync" / "image"),
            RSYNC_OVER: lambda _: copy_by_rsync(image, url),
            TLS: lambda _: send_by_tls(image, identity),
            TLS_STORED: lambda _: send_by_tls(image, identity, work / "stored"),
        }
        for number in range(rounds):
            order = list(contenders.items())
            for name, contender in order if number % 2 == 0 else reversed(order):
                found[name].append(size / MIB / contender(number))
    here.run("volume", "delete", "disk")
    return found


# --- writes --------------------------------------------------------------------------------------------------------


def writes(work: Path, here: Pool, size: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Median latency in us of 4 KiB writes at depth 1, by rounds that alternate."""
    program = build()
    generators: dict[str, Loadgen] = {}
    for name, volume in ((ALONE, "alone"), (HERE, "near"), (THERE, "far")):
        made = here.run("volume", "create", volume, "--size", str(size), "--expose")
        url = f"iscsi://{here.ready['iscsi'][0]}/{made['target']}/{made['lun']}"
        ledger = work / f"{volume}.ledger"
        generators[name] = Loadgen(program, url, ledger, cpu_of=tuple(process_tree(here.process.pid)))
        _loaded(generators[name], "fill")
    here.run("replica", "create", "near", "near-copy", "--mode", "sync")
    here.run("replica", "create", "far", "far-copy", "--mode", "sync", "--peer", "there")
    found: dict[str, list[float]] = {name: [] for name in generators}
    for number in range(rounds):
        order = list(generators.items())
        for name, generator in order if number % 2 == 0 else reversed(order):
            figures = _loaded(generator, "write", block=4096, depth=1, seconds=seconds)
            found[name].append(pooled_latency([figures])["p50"])
    for generator in generators.values():
        _loaded(generator, "verify")
    for name in ("near-copy", "far-copy"):
        if here.run("replica", "show", name)["copy_state"] != "Synchronized":
            raise BenchError(f"{name} did not stay synchronized")
        if not here.run("replica", "verify", name)["identical"]:
            raise BenchError(f"the two sides of {name} differ")
    return found


OFFERED, SATURATED = "20 MB/s offered, RPO 5 s", "as many as there can be, RPO 60 s"
OFFERED_PER_S = 20_000_000 // 4096
WANTED_LAG_S, WANTED_P99, WANTED_SHARE = 5.0, 2.0, 0.5


@dataclass
class Asynchronous:
    """Of a volume alone and of a mirrored one, by rounds: p99 in us of offered writes; a second, of saturating ones."""

    p99_us: list[tuple[float, float]]
    rates: list[tuple[float, float]]
    lags_s: list[float]


def asynchronous(work: Path, here: Pool, size: int, rounds: int, seconds: float) -> Asynchronous:
    """Both rows of asynchronous mirrors."""
    program, found = build(), Asynchronous([], [], [])
    generators = []
    for volume in ("async-alone", "async-far"):
        made = here.run("volume", "create", volume, "--size", str(size), "--expose")
        url = f"iscsi://{here.ready['iscsi'][0]}/{made['target']}/{made['lun']}"
        generators.append(Loadgen(program, url, work / f"{volume}.ledger"))
        _loaded(generators[-1], "fill")
    here.run("replica", "create", "async-far", "async-copy", "--mode", "async", "--rpo", "5s", "--peer", "there")
    alone, far = generators
    for number in range(rounds):
        p99: dict[Loadgen, float] = {}
        for generator in (alone, far) if number % 2 == 0 else (far, alone):
            running = generator.start("write", block=4096, depth=1, rate=OFFERED_PER_S, seconds=seconds)
            if generator is far:
                found.lags_s += asyncio.run(lags(here, "async-copy", running))
            p99[generator] = pooled_latency([_figures(finish(running))])["p99"]
        found.p99_us.append((p99[alone], p99[far]))
    here.run("replica", "detach", "async-copy")
    here.run("replica", "create", "async-far", "async-second", "--mode", "async", "--rpo", "60s", "--peer", "there")
    for number in range(rounds):
        rates: dict[Loadgen, float] = {}
        for generator in (alone, far) if number % 2 == 0 else (far, alone):
            figures = _loaded(generator, "write", block=4096, depth=32, seconds=seconds)
            rates[generator] = figures["ios"] / figures["seconds"]
        found.rates.append((rates[alone], rates[far]))
    for generator in generators:
        _loaded(generator, "verify")
    here.run("replica", "resync", "async-second")
    if not here.run("replica", "verify", "async-second")["identical"]:
        raise BenchError("the two sides of async-second differ")
    return found


async def lags(here: Pool, name: str, running: subprocess.Popen[str]) -> list[float]:
    """The lag of a mirror, ten times a second, while something runs."""
    found = []
    async with open_api(here.path) as api:
        while running.poll() is None:
            lag_s = (await api.replica_show(name)).lag_seconds
            if lag_s is None:
                raise BenchError(f"{name} has no lag: nothing is complete")
            found.append(lag_s)
            await asyncio.sleep(0.1)
    return found


def report_asynchronous(found: Asynchronous) -> None:
    print("\nasynchronous mirror at a peer, 4 KiB random writes")
    lag_s = sorted(found.lags_s)[len(found.lags_s) * 99 // 100]
    p99 = statistics.median(far / alone for alone, far in found.p99_us)
    share = statistics.median(far / alone for alone, far in found.rates)
    far_us = statistics.median(far for _, far in found.p99_us)
    rate = statistics.median(far for _, far in found.rates)
    print(f"  {OFFERED:<34} lag p99 {lag_s:.1f} s   wanted {WANTED_LAG_S:g} s: {_verdict(lag_s <= WANTED_LAG_S)}")
    print(f"  {'':<34} write p99 {far_us:.0f} us   {p99:.2f}x   wanted {WANTED_P99:g}x: {_verdict(p99 <= WANTED_P99)}")
    verdict = _verdict(share >= WANTED_SHARE)
    print(f"  {SATURATED:<34} {rate:.0f} a second   {share:.2f}x   wanted {WANTED_SHARE:g}x: {verdict}")


def _verdict(reached: bool) -> str:
    return "yes" if reached else "no"


def _loaded(generator: Loadgen, verb: str, **options: object) -> dict[str, Any]:
    return _figures(generator.run(verb, **options))


def _figures(outcome: Outcome) -> dict[str, Any]:
    if outcome.code != 0:
        raise BenchError(outcome.explain())
    return outcome.figures


# --- the whole -----------------------------------------------------------------------------------------------------


def report(title: str, unit: str, found: dict[str, list[float]], ours: str, wanted: dict[str, float]) -> None:
    """A line for each contender: its median, and how ``ours`` stands to it, by medians of pairs."""
    print(f"\n{title}")
    for name, values in found.items():
        line = f"  {name:<32} {statistics.median(values):>9.0f} {unit}"
        if name != ours:
            pairs = [a / b for a, b in zip(found[ours], values, strict=True)]
            ratio = statistics.median(pairs)
            line += f"   {ratio:5.2f}x ({min(pairs):.2f} to {max(pairs):.2f})" + _goal(wanted.get(name), ratio)
        print(line)


def _goal(wanted: float | None, ratio: float) -> str:
    return "" if wanted is None else f"   wanted {wanted:g}x: {'yes' if ratio >= wanted else 'no'}"


def measure(work: Path, options: argparse.Namespace, results: dict[str, dict[str, Any]]) -> None:
    """All tables that are asked for; each is printed when it is there."""
    if options.only in (None, "delta"):
        image = random_image(work, options.size)
        with rsync_daemon(work) as url:
            copy_by_rsync(image, url)
            changed = delta.deltas(work, served, image, url, options.rounds)
        results["delta"] = {kind: [asdict(row) for row in rows] for kind, rows in changed.items()}
        delta.report(changed)
        results["cuts"] = cut = dict(zip(("cuts", "bytes", "sent"), delta.with_cuts(work, served, image), strict=True))
        again = (cut["sent"] - cut["bytes"]) / MIB
        print(f"\na first copy cut {cut['cuts']} times: {cut['bytes'] / MIB:.0f} MiB, and {again:.1f} MiB beyond them")
    if options.only == "delta":
        return
    with peers(work) as (here, there):
        if options.only in (None, "copy"):
            results["copy MiB/s"] = found = copies(work, here, there, options.size, options.rounds)
            report("first copy", "MiB/s", found, PEER, WANTED)
        if options.only in (None, "async"):
            rows = asynchronous(work, here, 256 * MIB, options.rounds, max(10.0, options.seconds))
            results["async"] = asdict(rows)
            report_asynchronous(rows)
        if options.only in (None, "write"):
            results["write us"] = found = writes(work, here, 64 * MIB, options.rounds, options.seconds)
            # How much longer a mirrored write takes: the mirrored ones over the one alone.
            print("\n4 KiB writes at depth 1")
            for name, values in found.items():
                ratio = statistics.median([a / b for a, b in zip(values, found[ALONE], strict=True)])
                goal = WANTED_LATENCY.get(name)
                told = "" if goal is None else f"   wanted {goal:g}x: {'yes' if ratio <= goal else 'no'}"
                print(f"  {name:<32} {statistics.median(values):>9.0f} us   {ratio:5.2f}x{told}")


def main() -> int:
    """Print the tables, write the result file."""
    parser = argparse.ArgumentParser(prog="python -m bench.replication", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2 short rounds of 256 MiB: a look, not a result")
    parser.add_argument("--rounds", type=int, default=7, help="rounds (7)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of writes in a round (2)")
    parser.add_argument("--size", type=int, default=GIB, help="bytes of the first copy (1 GiB)")
    parser.add_argument("--only", choices=("copy", "delta", "write", "async"), default=None, help="one of the tables")
    parser.add_argument("--work", type=Path, default=None, help="folder for the files (a temporary one)")
    parser.add_argument("--out", type=Path, default=None, help="result file (bench/results/...)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.size, options.seconds = 2, 256 * MIB, 1.0
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="twinvol-bench-", dir=options.work) as folder:
        work = Path(folder)
        machine = facts(work)
        try:
            measure(work, options, results)
        except BenchError as error:
            print(f"bench.replication: {error}", file=sys.stderr)
            return 1
    out = options.out or RESULTS / f"replication-{str(machine['commit']).rstrip('+')}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    document = {"bench": "replication", "machine": machine, "size_bytes": options.size, "rounds": results}
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"\nbytes verified; result in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
