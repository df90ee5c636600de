"""What chance seldom meets with partial chunks, played on purpose (as ``directed.py``)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from engine.tvol.file import TvolFile
from tests.simulation.directed import CHUNK, PATH, HeldWorkers, _create, _process
from tests.support.sim_files import SimFileSystem
from tests.support.volume_oracle import Violation

if TYPE_CHECKING:
    from engine.files import StoreEnv

PAGE = 4096


def a_mask_that_grows_between_two_checkpoints() -> None:
    """The second has the page that was written after the first, though nothing else of the table has changed."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        head = store.volumes()[0]
        await head.write(0, memoryview(b"a" * CHUNK))
        await store.snapshot(head, "s")
        await head.write(0, memoryview(b"b" * PAGE))
        await store._core.checkpointer.run()
        await head.write(PAGE, memoryview(b"b" * PAGE))
        await store.close()
        store = await TvolFile.open(env, PATH)
        buffer = bytearray(2 * PAGE)
        await store.volumes()[0].read(0, memoryview(buffer))
        await store.close()
        if bytes(buffer) != b"b" * 2 * PAGE:
            raise Violation("a page that was written is not in the mask after reopening")

    _process(SimFileSystem(random.Random(1)), main)
