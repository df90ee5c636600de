"""``python -m tests.fuzz [HARNESS...] [--seed N] [--count N]``: run harnesses, each on seeds N, N+1, ..."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time

from tests.fuzz.harnesses import HARNESSES
from tests.fuzz.run import run_one


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the parsers of strangers' bytes.")
    parser.add_argument("harness", nargs="*", choices=[*HARNESSES, []], help="default: all of them")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, help="seeds for each harness")
    parser.add_argument("--seconds", type=float, default=60.0, help="without --count: how long, for all together")
    options = parser.parse_args()
    names = options.harness or list(HARNESSES)
    ends = time.monotonic() + options.seconds
    for done, seed in enumerate(itertools.count(options.seed)):
        if done == options.count or (options.count is None and time.monotonic() > ends):
            print(f"{done} seeds through {', '.join(names)}")
            return
        for name in names:
            asyncio.run(run_one(name, seed))


if __name__ == "__main__":
    main()
