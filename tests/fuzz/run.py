"""Run one harness on one seed; a failure names the command that replays it."""

from __future__ import annotations

import random

from tests.fuzz.harnesses import HARNESSES


async def run_one(name: str, seed: int) -> None:
    """Raises whatever the harness found, with a note of how to see it again."""
    try:
        await HARNESSES[name](random.Random(f"{name} {seed}"))
    except Exception as error:
        error.add_note(f"replay: python -m tests.fuzz {name} --seed {seed} --count 1")
        raise
