"""The job that digests a volume or snapshot: its result is the root of the hash tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.copy_job import CopyControl, CopyProgress
from engine.names import ROOT_PREFIX
from engine.proof import tree_of

if TYPE_CHECKING:
    from engine.jobs import Job
    from engine.pool import Pool
    from engine.stores import Frozen
    from engine.volume import Volume


async def start_root(pool: Pool, volume: Volume, snapshot: Frozen | None) -> Job:
    """Begin to digest a snapshot, or the volume as it is now; the job's result has ``root`` and ``size_bytes``."""

    async def work(job: Job) -> dict[str, Any]:
        def report(progress: CopyProgress) -> None:
            job.progress(progress.done_bytes, progress.total_bytes)

        store = volume.head.store
        if snapshot is None:
            volume.require_usable()
        point = snapshot or await store.snapshot(volume.head, f"{ROOT_PREFIX}{job.job_id}", hidden=True)
        try:
            control = CopyControl(on_progress=report)
            tree = await tree_of(point, control=control, mover=pool.env.mover)
        finally:
            if snapshot is None:
                await store.delete_snapshot(point)
        return {"volume": volume.name, "root": tree.root().hex(), "size_bytes": tree.size_bytes}

    subject = volume.name if snapshot is None else f"{volume.name}@{snapshot.name}"
    return await pool.jobs.start("digest", subject, work, reads=subject)
