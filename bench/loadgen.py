"""The load generator ``loadgen.c``: built where it is used, run as a child, its line of JSON read.

Used by the benchmarks and, because it remembers which writes were acknowledged, by the integration tests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine import BUILD

SOURCE = Path(__file__).parent
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")
SOURCES = ("loadgen", "initiator", "login", "figures", "crc32c")

OK, WRONG_BYTES, USAGE, TARGET_LOST = 0, 1, 2, 3
"""Exit codes of the program."""


class BenchError(Exception):
    """Something that a benchmark needs is missing or failed; the message says what."""


def build(names: tuple[str, ...] = SOURCES) -> Path:
    """The compiled program, made anew when it is older than its sources. Raises BenchError, naming what is missing.

    ``names``: of its sources, without ``.c``; the first is also the program's.
    """
    sources = [SOURCE / f"{name}.c" for name in names]
    program = BUILD / names[0]
    newest = max(path.stat().st_mtime for path in (*sources, *SOURCE.glob("*.h")))
    if program.exists() and program.stat().st_mtime > newest:
        return program
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise BenchError("no C compiler (Debian: apt-get install gcc libc6-dev)")
    BUILD.mkdir(parents=True, exist_ok=True)
    fresh = BUILD / f"{names[0]}.{os.getpid()}"  # several test processes may build at once: the last rename wins
    made = subprocess.run([compiler, *FLAGS, "-o", fresh, *sources], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise BenchError(f"bench/{names[0]}.c does not build (Debian: gcc libc6-dev):\n{made.stderr}")
    fresh.replace(program)
    return program


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: exit code, the figures it printed (empty when it never connected), its complaints."""

    code: int
    figures: dict[str, Any]
    stderr: str

    def explain(self) -> str:
        """One line for an error message."""
        return f"loadgen ended with {self.code}: {self.figures.get('failure')} {self.stderr.strip()}"


@dataclass(frozen=True, slots=True)
class Loadgen:
    """The program with what stays the same between runs. ``ledger`` carries the generations from run to run."""

    program: Path
    url: str
    ledger: Path
    cpu: int | None = None
    cpu_of: tuple[int, ...] = ()

    def command(self, verb: str, **options: object) -> list[str]:
        """The command line of one run: ``flush_every=8`` becomes ``--flush-every 8``."""
        line = [str(self.program), verb, self.url, "--ledger", str(self.ledger)]
        line += ["--cpu", str(self.cpu)] if self.cpu is not None else []
        for name, value in options.items():
            line += [f"--{name.replace('_', '-')}", str(value)]
        for pid in self.cpu_of:
            line += ["--cpu-of", str(pid)]
        return line

    def start(self, verb: str, **options: object) -> subprocess.Popen[str]:
        """Start a run and leave it; ``finish`` waits for it."""
        return subprocess.Popen(
            self.command(verb, **options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, verb: str, **options: object) -> Outcome:
        """One run to its end."""
        return finish(self.start(verb, **options))


def finish(process: subprocess.Popen[str]) -> Outcome:
    """Wait for a run that was started."""
    stdout, stderr = process.communicate()
    return Outcome(process.returncode, json.loads(stdout) if stdout.strip() else {}, stderr)
