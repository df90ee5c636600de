"""Full clones: a verified copy of a frozen point in a family of its own, made by the one copy loop as a job.

The copy grows where nobody sees it (``Pool.begin``) and appears, whole, when the last byte is verified and durable.
Interrupted by a crash, a stop or an error, it stays with its ledger, and asking for the same clone again goes on where
it stopped. Cancelled, or discarded after an interruption, it is removed.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.copy_job import CopyControl, CopyOptions, CopyProgress, copy_extents
from engine.ledger import Ledger, LedgerKey

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.jobs import Job
    from engine.pool import Pool, UnfinishedVolume
    from engine.stores import Frozen
    from engine.volume import Volume

HIDDEN_PREFIX = "full-clone."
"""Of the snapshot that is taken when a volume, not one of its snapshots, is cloned; it goes when the clone is whole."""


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
    size_bytes = source.size_bytes if snapshot is None else snapshot.size_bytes
    key_source = pool.key_source(source)  # what was encrypted stays so, with a data key of its own
    unfinished = await pool.begin(name, size_bytes, chunk_bytes, resume=True, key_source=key_source)

    async def work(job: Job) -> dict[str, Any]:
        frozen = snapshot
        try:
            if frozen is None:
                frozen = await _point(source, HIDDEN_PREFIX + name, resumed=unfinished.resumed)
            root = await _copy(pool, frozen, unfinished, job)
            clone = await pool.finish(unfinished, replace(pool.row(source), read_only=False, origin=""))
        except BaseException as error:
            cancelled = isinstance(error, asyncio.CancelledError) and job.cancelling
            await pool.abandon(unfinished, keep=not cancelled)
            if cancelled and snapshot is None and frozen is not None:
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
        await pool.abandon(unfinished, keep=True)
        raise


async def discard_interrupted(pool: Pool, name: str) -> None:
    """Remove what an interrupted copy called ``name`` left: its file, and the point that it was made of."""
    await pool.discard_interrupted(name)
    for volume in pool.volumes():
        for snapshot in volume.head.store.snapshots(volume.volume_id):
            if snapshot.hidden and snapshot.name == HIDDEN_PREFIX + name:
                await volume.head.store.delete_snapshot(snapshot)


async def _point(source: Volume, name: str, *, resumed: bool) -> Frozen:
    """The frozen point to copy: of a resumed copy the one it began with, else a new hidden one."""
    store = source.head.store
    for snapshot in store.snapshots(source.volume_id):
        if snapshot.name == name:
            if resumed:
                return snapshot
            await store.delete_snapshot(snapshot)
    source.require_usable()
    return await store.snapshot(source.head, name, hidden=True)


async def _copy(pool: Pool, frozen: Frozen, unfinished: UnfinishedVolume, job: Job) -> str:
    """Copy, verify, make durable; returns the root of the hash tree in hexadecimal."""
    files, workers = pool.env.files, pool.env.workers
    key = LedgerKey(frozen.guid, "", unfinished.head.volume_id, frozen.size_bytes)
    ledger = await Ledger.open(files, workers, unfinished.ledger_path, key)
    try:

        def report(progress: CopyProgress) -> None:
            job.progress(progress.done_bytes, progress.total_bytes)

        control = CopyControl(on_progress=report)
        options = CopyOptions(blank_target=True)
        result = await copy_extents(
            frozen, unfinished.head, ledger=ledger, options=options, control=control, mover=pool.env.mover
        )
    except BaseException:
        await ledger.close()
        raise
    await ledger.remove()
    return result.tree.root().hex()
