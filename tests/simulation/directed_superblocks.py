"""Power losses and kills around the two superblock slots, played on purpose (as ``directed.py``)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from typing import TYPE_CHECKING

from engine.tvol import layout
from tests.simulation.directed import CHUNK, PATH, _create, _look_for_a, _process, _turns, named
from tests.support.sim_files import SimFileSystem
from tests.support.sim_loop import ProcessDied

if TYPE_CHECKING:
    from engine.files import StoreEnv
    from tests.simulation.directed import HeldWorkers


def both_superblock_slots_torn() -> None:
    """Power is lost when the second slot has been written, not synced: one of the two is whole whatever is torn."""
    for seed in range(20):
        files = SimFileSystem(random.Random(seed))

        async def main(env: StoreEnv, workers: HeldWorkers) -> None:
            store = await _create(env)
            await store.volumes()[0].write(0, memoryview(b"a" * CHUNK), fua=True)
            workers.meant = named("_sync_second_superblock")
            closing = asyncio.ensure_future(store.close())
            await _turns(300)
            assert workers.held, "closing makes no checkpoint"
            assert not closing.done()

        _process(files, main)
        files.lose_power("all_torn")
        _process(files, _look_for_a)


def a_superblock_that_only_the_page_cache_has() -> None:
    """A kill leaves it there, unsynced. The next opening is cut off by a power loss, which has taken it, but not what
    the opening wrote where the older state, which rules again, has its pages."""
    for seed, syncs in itertools.product(range(6), range(1, 4)):
        files = SimFileSystem(random.Random(seed))

        async def main(env: StoreEnv, workers: HeldWorkers) -> None:
            store = await _create(env)
            head = store.volumes()[0]
            await head.write(0, memoryview(b"a" * CHUNK), fua=True)
            await store._core.checkpointer.run()
            await head.write(CHUNK, memoryview(b"b" * CHUNK))
            workers.meant = named("_sync_first_superblock")
            checkpointing = asyncio.ensure_future(store._core.checkpointer.run())
            await _turns(300)
            assert workers.held, "no checkpoint"
            assert not checkpointing.done()

        _process(files, main)
        files.restart_process()
        files.die_after(syncs, where=lambda operation, offset: operation == "sync")
        with contextlib.suppress(ProcessDied):
            _process(files, _look_for_a)
        files.lose_power("above_an_offset")
        _process(files, _look_for_a)


def a_first_slot_that_rots_after_the_next_checkpoint_began() -> None:
    """The second one is enough: the pages that it refers to were not written over."""
    for seed in range(12):
        files = SimFileSystem(random.Random(seed))

        async def main(env: StoreEnv, workers: HeldWorkers) -> None:
            store = await _create(env)
            head = store.volumes()[0]
            await head.write(0, memoryview(b"a" * CHUNK), fua=True)
            for index in (1, 2):
                await store._core.checkpointer.run()
                await head.write(index * CHUNK, memoryview(b"b" * CHUNK))
            workers.meant = named("_sync_pages_before_superblock")
            checkpointing = asyncio.ensure_future(store._core.checkpointer.run())
            await _turns(300)
            assert workers.held, "no checkpoint"
            assert not checkpointing.done()

        _process(files, main)
        files.lose_power("above_an_offset")
        files.flip(PATH, layout.SUPERBLOCK_OFFSETS[0] + 100)
        _process(files, _look_for_a)
