"""Run the crash simulation: ``python -m tests.simulation --seed 1 --crashes 10000``.

Lives run from the seed upwards until that many crashes have happened; then it says how often what was done to them.
Exit status 1 and the line that replays it at the first broken promise. ``--replay SEED`` runs one life and prints its
story; ``--mutations`` prints, for each rule of the store taken away, how many crashes it took until the simulation
noticed.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter

from tests.simulation.life import run_seed
from tests.simulation.mutations import MUTATIONS, REDUNDANT, crashes_until_caught
from tests.support.progress import Progress

BATCH = 64
"""Lives handed to the processes at a time."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first life's seed")
    parser.add_argument("--crashes", type=int, default=200, help="stop after so many crashes")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", type=int, metavar="SEED", help="one life, with its story")
    parser.add_argument("--mutation", choices=sorted(MUTATIONS), help="with this rule taken away")
    parser.add_argument("--mutations", action="store_true", help="the table of all of them")
    arguments = parser.parse_args()
    if arguments.replay is None:
        logging.disable(logging.ERROR)  # what the store says of the faults it meets, by the thousand
    if arguments.mutations:
        return mutation_table(arguments.seed, arguments.crashes, arguments.processes)
    if arguments.replay is not None:
        return replay(arguments.replay, arguments.mutation)
    return simulate(arguments.seed, arguments.crashes, arguments.processes)


def simulate(seed: int, crashes: int, processes: int) -> int:
    """Until ``crashes`` have been survived, or the first failure."""
    begun = time.monotonic()
    progress = Progress(crashes, "crashes")
    kills = losses = lives = operations = 0
    faults: Counter[str] = Counter()
    with multiprocessing.Pool(processes) as pool:
        for batch in itertools.count():
            first = seed + batch * BATCH
            for outcome in pool.imap(run_seed, range(first, first + BATCH)):
                if outcome.failure is not None:
                    print(f"FAILED after {kills + losses} crashes: seed {outcome.seed}: {outcome.failure}")
                    print(f"replay: python -m tests.simulation --replay {outcome.seed}")
                    return 1
                lives += 1
                kills += outcome.kills
                losses += outcome.power_losses
                operations += outcome.operations
                faults += outcome.faults
                progress.at(kills + losses)
            if kills + losses >= crashes:
                break
    seconds = time.monotonic() - begun
    print(
        f"{kills + losses} crashes survived ({kills} kills, {losses} power losses) in {lives} lives from seed {seed}; "
        f"{operations} file operations, {seconds:.0f} s"
    )
    for fault, times in sorted(faults.items()):
        print(f"{times:8} {fault}")
    return 0


def replay(seed: int, mutation: str | None) -> int:
    """One life and its story."""
    if mutation is not None:
        MUTATIONS[mutation].apply()
    outcome = run_seed(seed, verbose=True)
    for line in outcome.trace:
        print(line)
    print(outcome.failure or f"seed {seed} kept every promise: {outcome.crashes} crashes")
    return 0 if outcome.failure is None else 1


def mutation_table(seed: int, crashes: int, processes: int) -> int:
    """Every mutation, and after how many crashes it was caught."""
    missed = 0
    width = max(map(len, MUTATIONS))
    with multiprocessing.Pool(processes, maxtasksperchild=1) as pool:
        jobs = [(name, pool.apply_async(crashes_until_caught, (name, seed, crashes))) for name in MUTATIONS]
        for name, job in jobs:
            caught = job.get()
            missed += caught.failure is None
            told = f"{caught.crashes:6}  {caught.failure}" if caught.failure else f"NOT CAUGHT in {caught.crashes}"
            print(f"{name:{width}}  {told[:150]}", flush=True)
    print(f"{len(MUTATIONS) - missed} of {len(MUTATIONS)} caught, seeds from {seed}, at most {crashes} crashes each")
    for name, mutation in REDUNDANT.items():
        print(f"not expected to be caught: {name}: {mutation.rule}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
