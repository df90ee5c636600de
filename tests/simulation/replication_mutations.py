"""The mutation table of REPLICATION's rules:  ``python -m tests.simulation.replication_mutations``.

Each rule is removed in turn; the simulation must notice within so many seeds from ``--seed`` on, or in the scene that
plays what the rule is for. Printed is how many seeds it took, and what was noticed. Exit status 1: one was missed.

A mutation that does not fit the code any more proves nothing: what Python itself raises for it (a name, an attribute,
an argument that is not there) ends the table, also where the engine survives it with a line in its log.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import multiprocessing
import os
import random
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from engine.errors import EngineError
from tests.simulation import (
    disk_world,
    failover_world,
    mirror_world,
    mutations_of_disks,
    mutations_of_failover,
    mutations_of_group_replicas,
    mutations_of_replicas,
    mutations_of_streams,
)
from tests.simulation.group_replica_world import GroupReplicaWorld
from tests.simulation.mirror_world import World
from tests.simulation.replica_world import ReplicaWorld

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEEDS = 300
MISFITS = (TypeError, NameError, AttributeError)


@dataclass(frozen=True, slots=True)
class Rule:
    """``play``: one seed, which raises what is noticed. ``scene``: its name, where it is not by chance."""

    part: str
    mutation: Callable[[pytest.MonkeyPatch], None]
    play: Callable[[int], object]
    scene: str = ""


def rules() -> dict[str, Rule]:
    """All of them, by name."""
    found: dict[str, Rule] = {}

    def add(name: str, rule: Rule) -> None:
        assert name not in found, name
        found[name] = rule

    for name, mutation in mutations_of_streams.MUTATIONS.items():
        add(name, Rule("streams and rounds", mutation, _mirrors(World)))
    for name, mutation in mutations_of_disks.MUTATIONS.items():
        add(name, Rule("targets without snapshots", mutation, disk_world.run))
    for name, mutation in mutations_of_replicas.MUTATIONS.items():
        add(f"{name}, all modes" if name in found else name, Rule("modes and leases", mutation, _mirrors(ReplicaWorld)))
    for name, (mutation, kind, _) in mutations_of_replicas.DIRECTED.items():
        add(name, Rule("modes and leases", mutation, _mirrors(kind), kind.__name__))
    for name, (mutation, test) in mutations_of_replicas.LITERAL.items():
        add(name, Rule("modes and leases", mutation, _case(test), test.rpartition("::")[2]))
    for name, mutation in mutations_of_group_replicas.MUTATIONS.items():
        add(name, Rule("groups", mutation, _mirrors(GroupReplicaWorld)))
    for name, (mutation, disk) in mutations_of_failover.MUTATIONS.items():
        add(f"{name}, failing over" if name in found else name, Rule("failover", mutation, _disks(disk)))
    for name, (mutation, disk) in mutations_of_failover.DIRECTED.items():
        add(name, Rule("failover", mutation, _disks(disk), disk.__name__))
    return found


def _mirrors(kind: type[World]) -> Callable[[int], object]:
    return lambda seed: mirror_world.run(seed, kind)


def _disks(kind: type[failover_world.FailoverWorld]) -> Callable[[int], object]:
    return lambda seed: failover_world.run(seed, kind)


def _case(test: str) -> Callable[[int], object]:
    """A literal case of the unit tests."""

    def play(_: int) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as told:
            code = pytest.main(["-q", "-x", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist", test])
        assert code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), told.getvalue()
        if code is pytest.ExitCode.TESTS_FAILED:
            raise AssertionError(f"fails: {test.rpartition('::')[2]}")

    return play


class Misfit(Exception):
    """The mutation is of other code than there is."""


class _Watching(logging.Handler):
    """Notes what the engine survives though it is a mistake in a program."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.misfit: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, MISFITS):
            self.misfit = error


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Raises Misfit at the end."""
    log, watching = logging.getLogger("engine"), _Watching()
    log.addHandler(watching)
    log.propagate = False
    try:
        yield
    except MISFITS as error:
        raise Misfit(repr(error)) from error
    finally:
        log.removeHandler(watching)
        log.propagate = True
        if watching.misfit is not None:
            raise Misfit(repr(watching.misfit)) from watching.misfit


def seeds_until_noticed(name: str, seed: int, count: int) -> tuple[int, str]:
    """How many seeds it took, and what was noticed: nothing in so many where that is empty. Raises Misfit."""
    rule = rules()[name]
    with pytest.MonkeyPatch.context() as patch:
        rule.mutation(patch)
        for number in range(count):
            try:
                with watched():
                    rule.play(seed + number)
            except (AssertionError, EngineError) as error:
                return number + 1, str(error).partition("\n")[0] or repr(error.__cause__ or error)
    return count, ""


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.replication_mutations")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--count", type=int, default=SEEDS, help="seeds within which each must be noticed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rule", default=None, help="one of them")
    options = parser.parse_args()
    random.seed(0)
    begun, missed, all_rules = time.monotonic(), 0, rules()
    names = [name for name in all_rules if options.rule in (None, name)]
    width = max(map(len, names))
    with multiprocessing.Pool(options.processes, maxtasksperchild=1) as pool:
        jobs = [(name, pool.apply_async(seeds_until_noticed, (name, options.seed, options.count))) for name in names]
        for name, job in jobs:
            took, what = job.get()
            missed += not what
            how = f"scene {all_rules[name].scene}: " if all_rules[name].scene else ""
            print(f"{name:{width}}  {took:4}  {how}{what or 'NOT NOTICED'}"[:170], flush=True)
    seconds = time.monotonic() - begun
    noticed = f"{len(names) - missed} of {len(names)} noticed"
    print(f"{noticed} within {options.count} seeds from {options.seed}; {seconds:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
