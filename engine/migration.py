"""Importing a disk that somebody may still write to: passes over the whole source until one finds nothing to do.

The first copy reads every block once, at some moment. Each pass after it reads source and target anew and compares
their hash trees; what differs is copied again. When a pass finds no difference, every block was the same at two
readings, of which one was before that pass began and one after: unless something was changed and changed back, the
target is the source as it was *at the moment when the last pass began*, and all of it was read back from the target.

That needs no help of the source, and it cannot promise an end: a source that is written to all the time never holds
still. After ``PASSES`` the import fails, says so, and keeps what it has; stop the writers and ask again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.copy_job import CopyControl, CopyProgress, copy_extents
from engine.errors import InvalidState
from engine.image_device import ImageDevice
from engine.proof import tree_of

if TYPE_CHECKING:
    from engine.hash_tree import HashTree
    from engine.jobs import Job
    from engine.movers import Mover
    from engine.stores import BlockDevice

PASSES = 4


class MovingSource(ImageDevice):
    """A source that others may write to while it is imported."""


async def settle(source: MovingSource, target: BlockDevice, job: Job, *, mover: Mover) -> HashTree:
    """Compare and copy until a pass finds no difference; the hash tree of both sides then.

    Raises InvalidState: the source was still being written to in the last pass.
    """
    differing_bytes = 0
    for number in range(1, PASSES + 1):
        message = f"pass {number}: comparing" + (f", {differing_bytes} bytes had changed" if number > 1 else "")
        theirs, ours = await _trees(source, target, job, message, mover)
        differing = theirs.differing(ours)
        if not differing:
            return theirs
        differing_bytes = sum(extent.length for extent in differing)
        await copy_extents(source, target, differing, mover=mover)
    raise InvalidState(
        source.name,
        f"being written to: {differing_bytes} bytes differed in pass {PASSES}",
        "that its writers are stopped; ask again then, and it goes on with what it has",
    )


async def _trees(
    source: MovingSource, target: BlockDevice, job: Job, message: str, mover: Mover
) -> tuple[HashTree, HashTree]:
    done, total = job.done_bytes, job.total_bytes

    def report(progress: CopyProgress) -> None:
        job.progress(done + progress.done_bytes, total + progress.total_bytes, message)

    async with asyncio.TaskGroup() as group:
        theirs = group.create_task(tree_of(source, control=CopyControl(on_progress=report)))
        ours = group.create_task(tree_of(target, mover=mover))
    return theirs.result(), ours.result()
