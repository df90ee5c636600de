"""Flattening: a linked clone gets its own, verified copy of all that it shares with its origin, and leaves it.

Its snapshots, and clones of those, leave with it: what several of them share with the origin is copied once, and they
go on sharing it (``engine/tvol/adoption.py``).

One job of the copy loop, over and over until nothing is shared: what the clone's users write meanwhile is theirs, and
what could not be taken in one pass is in the next. The volume file's map is the ledger: a piece counts when it is
published there and flushed, so that after a crash, a stop or a cancellation the same command goes on with the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.api import FlattenInfo
from engine.copy_job import CopyControl, CopyOptions, CopyProgress, copy_extents
from engine.errors import InvalidState, NotSupported, OutOfRange
from engine.hash_tree import HashTree
from engine.stores import SeparableStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engine.jobs import Job
    from engine.pool import Pool
    from engine.stores import BlockDevice, Extent
    from engine.volume import Volume


class _MapRecord:
    """``engine.ledger.Record`` of a copy that the map itself records: only counts."""

    def __init__(self) -> None:
        self.tree = HashTree(0)
        self.done_bytes = 0

    def is_done(self, offset: int, length: int) -> bool:
        return False

    async def record(self, ranges: Sequence[tuple[Extent, bytes]]) -> None:
        self.complete(ranges)

    def complete(self, ranges: Sequence[tuple[Extent, bytes]]) -> None:
        self.done_bytes += sum(extent.length for extent, _ in ranges)


async def start_flatten(pool: Pool, volume: Volume, *, when_apart: Callable[[str], Awaitable[None]]) -> Job:
    """Begin to flatten a linked clone; returns its job. ``when_apart`` is called with the origin that it has left.

    The job's result: ``volume``, ``copied_bytes``. Raises InvalidState (no clone), NotSupported.
    """
    store, origin = _clone(volume)
    volume.require_usable()

    async def work(job: Job) -> dict[str, Any]:
        copied = 0
        while not await store.separate(volume.head):
            shared = await store.inherited(volume.head)
            if shared is not None:
                copied = await _copy(pool, volume, shared, job, copied)
        await when_apart(origin)
        return {"volume": volume.name, "copied_bytes": copied}

    return await pool.jobs.start("flatten", volume.name, work, reads=volume.name)


async def flatten_preview(pool: Pool, volume: Volume) -> FlattenInfo:
    """What flattening would copy now. Raises as ``start_flatten``."""
    store, origin = _clone(volume)
    shared = await store.inherited(volume.head)
    copied = 0 if shared is None else shared.inherited_bytes
    return FlattenInfo(volume.name, origin, copied, [snapshot.name for snapshot in pool.snapshots(volume)])


def _clone(volume: Volume) -> tuple[SeparableStore, str]:
    """The store of a linked clone, and what it was cloned from."""
    store = volume.head.store
    if not isinstance(store, SeparableStore):
        raise NotSupported(f"volume {volume.name} is in a store that cannot flatten clones")
    origin = store.origin(volume.head)
    if origin is None:
        raise InvalidState(f"volume {volume.name}", "a volume of its own", "a linked clone")
    return store, origin


async def _copy(pool: Pool, volume: Volume, shared: BlockDevice, job: Job, before: int) -> int:
    """One pass. Returns the bytes copied in this one and those ``before``."""

    def report(progress: CopyProgress) -> None:
        job.progress(before + progress.done_bytes, before + progress.total_bytes)

    control = CopyControl(on_progress=report)
    try:
        await copy_extents(
            shared,
            shared,
            ledger=_MapRecord(),
            options=CopyOptions(blank_target=True),
            control=control,
            mover=pool.env.mover,
        )
    except OutOfRange:
        if volume.size_bytes >= shared.size_bytes:
            raise
    return before + control.progress.done_bytes
