"""What does a WBEM client cost hosts?  ``python -m bench.cim_beside_iscsi``

One daemon with ``--volumes`` volumes. A host reads and writes 4 KiB at random at depth 16, in rounds that alternate:
nobody else there; and a WBEM client (pywbem, over loopback HTTP, in a process of its own) that enumerates all volumes
again and again. Wanted: the client lowers the host's operations a second by no more than the share of all cores that it
and the management process take meanwhile, and a tenth. What the data process spends on being asked is a cost of the
client and no part of that share. At the end the host reads back what it wrote.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pywbem

from bench.loadgen import BenchError, Loadgen, build
from bench.machine import RESULTS, facts
from bench.targets import PROGRAM, manage, process_tree, stop
from cim_facade.namespaces import STORAGE
from cim_facade.paths import VOLUME_CLASS
from engine.units import MIB
from twinvol.api.client import open_api

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.synchronize import Event

ALLOWANCE = 0.10
_TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def served(pool: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The data process's id, and what its line says."""
    command = [*PROGRAM, "serve", "--iscsi", "127.0.0.1:0", "--wbem-http", "127.0.0.1:0", "--pool", str(pool)]
    with pool.with_suffix(".log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        with process.stdout:
            try:
                line = process.stdout.readline()
                if not line:
                    raise BenchError(f"twinvol serve ended before it was ready; see {pool.with_suffix('.log')}")
                yield process.pid, json.loads(line)
            finally:
                stop(process)


async def fill(pool: Path, count: int) -> None:
    async with open_api(pool) as api:
        for number in range(count):
            await api.volume_create(f"v{number}", MIB)


def enumerate_on(address: str, begin: Event, end: Event) -> None:
    """The client: enumerates between ``begin`` and ``end``."""
    connection = pywbem.WBEMConnection(f"http://{address}", default_namespace=STORAGE, timeout=60)
    connection.EnumerateInstanceNames("CIM_ComputerSystem")
    begin.set()
    while not end.is_set():
        connection.EnumerateInstances(VOLUME_CLASS)


def cpu_s(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def loaded(generator: Loadgen, verb: str, **options: Any) -> float:
    """Operations a second."""
    outcome = generator.run(verb, **options)
    if outcome.code != 0:
        raise BenchError(f"{verb}: {outcome.explain()}")
    return float(outcome.figures["iops"])


def beside(generator: Loadgen, address: str, management: list[int], how: dict[str, Any]) -> tuple[float, float]:
    """Operations a second beside the client, and the share of all cores that it and the management process took."""
    spawn = multiprocessing.get_context("spawn")
    begin, end = spawn.Event(), spawn.Event()
    client = spawn.Process(target=enumerate_on, args=(address, begin, end))
    client.start()
    try:
        begin.wait()
        assert client.pid is not None
        pids = [*management, client.pid]
        before, began = cpu_s(pids), time.monotonic()
        found = loaded(generator, **how)
        return found, (cpu_s(pids) - before) / (time.monotonic() - began) / (os.cpu_count() or 1)
    finally:
        end.set()
        client.join()


def measure(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    pool = work / "pool"
    with served(pool) as (pid, ready):
        asyncio.run(fill(pool, options.volumes))
        made = manage(pool, "volume", "create", "host", "--size", "256M", "--expose")
        url = f"iscsi://{ready['iscsi'][0]}/{made['target']}/{made['lun']}"
        generator = Loadgen(build(), url, work / "ledger")
        loaded(generator, "fill")
        pywbem.WBEMConnection(f"http://{ready['wbem_http']}").EnumerateClassNames(STORAGE)  # it is up
        management = [each for each in process_tree(pid) if each != pid]
        rounds: dict[str, list[float]] = {}
        for number in range(2 * options.rounds):
            verb = ("write", "read")[number % 2]
            how: dict[str, Any] = {"verb": verb, "block": 4096, "depth": 16, "seconds": options.seconds}
            alone = loaded(generator, **how)
            there, share = beside(generator, ready["wbem_http"], management, how)
            rounds.setdefault(f"{verb}, lost", []).append(1 - there / alone)
            rounds.setdefault(f"{verb}, share", []).append(share)
            print(f"{verb}: {alone:.0f}/s alone, {there:.0f}/s beside, share {share:.2f}", flush=True)
        loaded(generator, "verify")
    for verb in ("write", "read"):
        lost, share = (statistics.median(rounds[f"{verb}, {what}"]) for what in ("lost", "share"))
        goal = "met" if lost <= share + ALLOWANCE else "missed"
        print(f"{verb}: {lost:.1%} lost, {share + ALLOWANCE:.1%} allowed: {goal}")
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cim_beside_iscsi", description=__doc__.split("\n")[0])
    parser.add_argument("--volumes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        results = {"machine": facts(RESULTS), **vars(options), "rounds": measure(Path(work), options)}
    (RESULTS / "cim_beside_iscsi.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"written: {RESULTS / 'cim_beside_iscsi.json'}", file=sys.stderr)


if __name__ == "__main__":
    main()
