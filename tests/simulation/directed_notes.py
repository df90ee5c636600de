"""Holds and a wall clock that is wrong, played on purpose (as ``directed.py``)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from engine.errors import InUse
from tests.simulation.directed import CHUNK, _create, _process
from tests.support.sim_files import SimFileSystem
from tests.support.sim_loop import SimClock
from tests.support.volume_oracle import Violation

if TYPE_CHECKING:
    from engine.files import StoreEnv
    from tests.simulation.directed import HeldWorkers

DAY_S = 86400.0


def a_hold_and_a_step_of_the_wall_clock() -> None:
    """It lasts as long as it was promised, whatever the wall clock says meanwhile."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        await store.volumes()[0].write(0, memoryview(b"a" * CHUNK))
        snapshot = await store.snapshot(store.volumes()[0], "held")
        await store.notes.hold(snapshot, "backup", env.clock.time() + DAY_S)
        assert isinstance(env.clock, SimClock)
        env.clock.skew = 365 * DAY_S
        try:
            await store.delete_snapshot(snapshot)
        except InUse:
            return
        raise Violation("a hold has ended by a step of the wall clock")

    _process(SimFileSystem(random.Random(1)), main)
