"""Full clones: a verified copy of a frozen point in a family of its own, made by the one copy loop as a job.

The copy grows where nobody sees it (``engine.unfinished``) and appears, whole, when the last byte is verified and
durable. Interrupted by a crash, a stop or an error, it stays with its ledger, and asking for the same clone again goes
on where it stopped. Cancelled, or discarded after an interruption, it is removed.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.copy_job import CopyControl, CopyOptions, CopyProgress, copy_extents
from engine.ledger import LedgerKey
from engine.names import CLONE_PREFIX
from engine.unfinished import begin_copy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.jobs import Job
    from engine.ledger import Ledger
    from engine.pool import Pool, UnfinishedVolume
    from engine.stores import Frozen
    from engine.volume import Volume


async def start_full_clone(
    pool: Pool,
    source: Volume,
    snapshot: Frozen | None,
    name: str,
    chunk_bytes: int,
    *,
    when_whole: Callable[[Volume], Awaitable[None]],
) -> Job:
    """Begin a full clone of ``snapshot``, or of ``source`` as it is now; returns its job.

    The job's result names the ``volume`` and the ``root`` of its hash tree. Raises AlreadyExists, OutOfSpace.
    """
    frozen = snapshot or await _point(pool, source, CLONE_PREFIX + name, resumable=name in pool.interrupted())

    def key_of(volume_id: str) -> LedgerKey:
        return LedgerKey(frozen.guid, "", volume_id, frozen.size_bytes)

    try:
        key_source = pool.key_source(source)  # what was encrypted stays so, with a data key of its own
        unfinished, ledger = await begin_copy(pool, name, frozen.size_bytes, chunk_bytes, key_of, key_source=key_source)
    except BaseException:
        if snapshot is None and name not in pool.interrupted():
            await source.head.store.delete_snapshot(frozen)
        raise

    async def work(job: Job) -> dict[str, Any]:
        try:
            root = await _copy(pool, frozen, unfinished, ledger, job)
            clone = await pool.finish(unfinished, replace(pool.row(source), read_only=False, origin=""))
        except BaseException as error:
            cancelled = isinstance(error, asyncio.CancelledError) and job.cancelling
            await pool.abandon(unfinished, keep=not cancelled)
            if cancelled and snapshot is None:
                await source.head.store.delete_snapshot(frozen)
            raise
        if snapshot is None:
            await source.head.store.delete_snapshot(frozen)
        await when_whole(clone)
        return {"volume": name, "root": root}

    reads = source.name if snapshot is None else f"{source.name}@{snapshot.name}"
    try:
        return await pool.jobs.start("clone", f"{source.name} {name}", work, reads=reads)
    except BaseException:
        await ledger.close()
        await pool.abandon(unfinished, keep=True)
        raise


async def discard_interrupted(pool: Pool, name: str) -> None:
    """Remove what an interrupted copy called ``name`` left: its file, and the point that it was made of."""
    await pool.discard_interrupted(name)
    for volume, snapshot in _points(pool, CLONE_PREFIX + name):
        await volume.head.store.delete_snapshot(snapshot)


async def _point(pool: Pool, source: Volume, name: str, *, resumable: bool) -> Frozen:
    """The frozen point to copy: that of an interrupted copy of this source where there is one, else a new hidden one.

    Points of that name that nothing can go on with go.
    """
    kept = None
    for volume, snapshot in _points(pool, name):
        if volume is source and resumable:
            kept = snapshot
        else:
            await volume.head.store.delete_snapshot(snapshot)
    if kept is not None:
        return kept
    source.require_usable()
    return await source.head.store.snapshot(source.head, name, hidden=True)


def _points(pool: Pool, name: str) -> list[tuple[Volume, Frozen]]:
    return [
        (volume, snapshot)
        for volume in pool.volumes()
        for snapshot in volume.head.store.snapshots(volume.volume_id)
        if snapshot.hidden and snapshot.name == name
    ]


async def _copy(pool: Pool, frozen: Frozen, unfinished: UnfinishedVolume, ledger: Ledger, job: Job) -> str:
    """Copy, verify, make durable; returns the root of the hash tree in hexadecimal."""

    def report(progress: CopyProgress) -> None:
        job.progress(progress.done_bytes, progress.total_bytes)

    control = job.control = CopyControl(on_progress=report)
    options = CopyOptions(blank_target=True)
    try:
        result = await copy_extents(
            frozen, unfinished.head, ledger=ledger, options=options, control=control, mover=pool.env.mover
        )
    except BaseException:
        await ledger.close()
        raise
    await ledger.remove()
    return result.tree.root().hex()
