"""Rounds of a bench: contenders take turns, and everything is decided on pairs of one turn.

What a round returns is the load generator's line of JSON (``Figures``). Between rounds the disk is given time to write
back, so that no round pays for the one before it.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import threading
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from bench.loadgen import BenchError, Loadgen, finish
from bench.targets import Endpoint, free_port, manage, serving
from engine.errors import EngineError, InvalidState
from twinvol.api.client import open_api

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from engine.api import EngineApi

Figures = dict[str, Any]
Results = dict[str, list[Figures]]
"""By contender, one for each round, in the order of the rounds."""

FINAL_JOB_STATES = frozenset({7, 8, 10})
READY_LIMIT_S = 20


class Client:
    """The load generator on its own core, with one ledger per endpoint."""

    def __init__(self, program: Path, work: Path, cpu: int) -> None:
        self.program = program
        self._work = work
        self._cpu = cpu

    def generator(self, endpoint: Endpoint) -> Loadgen:
        ledger = self._work / f"{endpoint.name}.ledger"
        return Loadgen(self.program, endpoint.url, ledger, cpu=self._cpu, cpu_of=tuple(endpoint.pids))

    def run(self, endpoint: Endpoint, verb: str, **options: object) -> Figures:
        """One run against ``endpoint``. Raises BenchError on wrong bytes or a lost target."""
        outcome = self.generator(endpoint).run(verb, **options)
        if outcome.code != 0:
            raise BenchError(f"{endpoint.name}: {verb}: {outcome.explain()}")
        return outcome.figures


def alternate(contenders: Mapping[str, Callable[[int], Figures]], rounds: int) -> Results:
    """A B C, C B A, A B C ...: each contender is called once in a round, with the round's number."""
    results: Results = {name: [] for name in contenders}
    for number in range(rounds):
        order = list(contenders.items())
        for name, run in order if number % 2 == 0 else reversed(order):
            results[name].append(run(number))
    return results


def median_of(results: Results, key: str) -> dict[str, float]:
    """The median of one figure for each contender."""
    return {name: statistics.median(float(f[key]) for f in figures) for name, figures in results.items()}


def paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The median of the ratios of pairs, and the smallest and the largest."""
    ratios = [a / b if b else float("inf") for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(ratios), (min(ratios), max(ratios))


def pooled_latency(figures: Sequence[Figures]) -> dict[str, float]:
    """Percentiles over all rounds of a contender, in us, from their histograms."""
    counts: defaultdict[float, int] = defaultdict(int)
    for one in figures:
        for bucket_us, count in one["histogram_us"]:
            counts[bucket_us] += count
    total = sum(counts.values())
    found = {"max": max((float(one["latency_us"]["max"]) for one in figures), default=0.0)}
    for name, fraction in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)):
        seen = 0
        for bucket_us in sorted(counts):
            seen += counts[bucket_us]
            if seen > fraction * total:
                found[name] = bucket_us
                break
    return found


def user_us(figures: Sequence[Figures]) -> float:
    """User CPU of the server per I/O, over all rounds: clock ticks are too coarse for one."""
    return sum(float(f["server_user_s"]) for f in figures) * 1e6 / max(1, sum(int(f["ios"]) for f in figures))


@contextmanager
def idle_sessions(client: Client, endpoint: Endpoint, count: int) -> Iterator[None]:
    """So many logged-in sessions beside the busy one, which do nothing."""
    command = [str(client.program), "idle", endpoint.url, "--sessions", str(count)]
    idle = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert idle.stdout is not None
    try:
        if not idle.stdout.readline().startswith('{"sessions"'):
            raise BenchError(f"idle sessions: {finish(idle).explain()}")
        yield
    finally:
        outcome = finish(idle)  # which closes its stdin
    if outcome.code != 0:
        raise BenchError(f"idle sessions: {outcome.explain()}")


class Cloning:
    """Full clones of a snapshot, one after another in the background, from start to end of a ``with``."""

    def __init__(self, endpoint: Endpoint, source: tuple[str, str]) -> None:
        assert endpoint.pool is not None
        self._pool = endpoint.pool
        self._source = source
        self._stop = threading.Event()
        self._copying = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work()))
        self._error = ""
        self.copied_bytes = 0

    def __enter__(self) -> Cloning:
        self._thread.start()
        self._copying.wait(30)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error and kind is None:
            raise BenchError(f"full clone: {self._error}")

    async def _work(self) -> None:
        try:
            async with open_api(self._pool) as api:
                while not self._stop.is_set():
                    await self._one(api)
        except EngineError as error:
            self._error = str(error)
        finally:
            self._copying.set()

    async def _one(self, api: EngineApi) -> None:
        job = await api.clone_copy(*self._source, "background")
        self._copying.set()
        while job.state_number not in FINAL_JOB_STATES:
            if self._stop.is_set():
                with suppress(InvalidState):  # it has ended meanwhile
                    await api.job_cancel(job.job)
                job = await api.job_show(job.job)
            else:
                job = await api.job_wait(job.job, after_version=job.version, timeout_s=0.2)
        self.copied_bytes += job.done_bytes
        if "background" in [volume.name for volume in await api.volume_list()]:
            await api.volume_delete("background", force=True)
        elif job.error is not None and not self._stop.is_set():
            raise EngineError(job.message)


def time_to_login(client: Client, endpoint: Endpoint, cpu: int, log: Path) -> float:
    """Seconds from the start of ``twinvol serve`` on an existing pool to the first login that it grants."""
    assert endpoint.pool is not None
    portal = f"127.0.0.1:{free_port()}"
    rest = endpoint.url.split("/", 3)[3]
    generator = Loadgen(client.program, f"iscsi://{portal}/{rest}", log)
    login = generator.start("login", seconds=READY_LIMIT_S)
    started = time.monotonic()
    with serving(endpoint.pool, log, cpu, portal):
        outcome = finish(login)
    if outcome.code != 0:
        raise BenchError(f"no login after {READY_LIMIT_S} s: {outcome.explain()}")
    return float(outcome.figures["monotonic_s"]) - started


def settle_disk(endpoints: Sequence[Endpoint]) -> None:
    """Write back what the rounds before left dirty."""
    for endpoint in endpoints:
        endpoint.sync()


def take_snapshot(endpoint: Endpoint, name: str) -> None:
    """A snapshot of the bench's volume, as its user would take it."""
    assert endpoint.pool is not None
    manage(endpoint.pool, "snapshot", "create", "bench", name)


@contextmanager
def snapshot(endpoint: Endpoint, name: str) -> Iterator[None]:
    """A snapshot for a while."""
    assert endpoint.pool is not None
    take_snapshot(endpoint, name)
    yield
    manage(endpoint.pool, "snapshot", "delete", "bench", name)


def pin(cpu: int) -> None:
    """This process, and those that it starts without saying otherwise, on one core."""
    os.sched_setaffinity(0, {cpu})
