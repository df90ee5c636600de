"""Restoring the source of a mirror from its replica: the source is rolled to what the target holds, by what differs.

A round the other way, into a staging area of the *source*; hosts see what was there or all of the recovery point:

    1. rest     the mirror is fractured, on record: whatever crashes, nothing overwrites the target by itself
    2. plan     the recovery point P of the target, and what differs from it: with C the common point, the staging area
                starts as C and gets what differs at the target between C and P. What hosts wrote since C is not copied:
                it is left behind. Without C the staging area starts as the head is, and everything is compared
    3. copy     into the staging area, verified chunk by chunk
    4. switch   what the source was stays as snapshot ``before-rollback-N``; the staging area is its content, and P a
                recovery point of both sides
    5. record   P is the common point, the mirror is Restored: ``resync`` goes on from there

Where P is C nothing is copied at all. A crash before 4 leaves the source as it was, and a staging area that the next
start or the next attempt drops; one after it leaves the source restored and the mirror Fractured.
"""

from __future__ import annotations

import contextlib
import itertools
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.copy_job import CopyControl, CopyOptions, copy_extents
from engine.copy_state import CopyState
from engine.errors import InvalidState, NotFound, NotSupported
from engine.links.local import LocalLink
from engine.mirror_record import RecoveryPoint
from engine.stores import Extent
from engine.thinned_point import merged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from engine.api import RestorePlan
    from engine.copy_job import CopyProgress
    from engine.exposure import Exposure
    from engine.jobs import Job
    from engine.links import LinkState, MirrorLink
    from engine.mirror import Mirror
    from engine.mirror_round import Rounds
    from engine.pool import Pool
    from engine.replicas import Replicas
    from engine.stores import Frozen, Head
    from engine.volume import Volume

KEPT_AS = "before-rollback-"
"""And a number: what the source was. The store calls it so where it rolls back itself."""


@dataclass(frozen=True, slots=True)
class _Delta:
    """``base``: the snapshot of the source that the staging area starts as; None: as the head is. ``extents``: what to
    bring over there. ``lost``: what of the source's present content is not in the point, at most."""

    base: Frozen | None
    extents: Sequence[Extent]
    lost: Sequence[Extent]


class Restores:
    """See the module."""

    def __init__(self, pool: Pool, exposure: Exposure, replicas: Replicas) -> None:
        self._pool = pool
        self._exposure = exposure
        self._replicas = replicas

    async def plan(self, name: str, guid: str | None) -> RestorePlan:
        """What a restore would bring over, and what would be left behind. Nothing is changed for it.

        Raises NotFound (no such replica or point), InvalidState, NotSupported.
        """
        from engine.api import RestorePlan  # late: see there

        mirror = self._require_restorable(name)
        async with mirror.held_still() as at_rest, contextlib.AsyncExitStack() as stack:
            state = await stack.enter_async_context(_connected(mirror.link)) if at_rest else None
            point = self._point(mirror, guid)
            delta = await self._delta(mirror, point, state)
        target = mirror.link.target_name
        return RestorePlan(
            replica=name,
            source=mirror.source.name,
            target=target,
            direction=f"{target} -> {mirror.source.name}",
            point=None if point is None else point.guid,
            point_at=None if point is None else point.at,
            copied_bytes=sum(extent.length for extent in delta.extents),
            lost_bytes=sum(extent.length for extent in delta.lost),
            compares_all=delta.base is None,
        )

    async def restore(self, name: str, guid: str | None, *, force: bool) -> Job:
        """Roll the source to that recovery point of its replica; by default to what a fractured target holds, else to
        the newest one.

        Raises as ``plan``; InUse: initiators use the source, without ``force``.
        """
        mirror = self._require_restorable(name)
        point = self._point(mirror, guid)
        if not force:
            luns = self._exposure.luns_of(mirror.source.volume_id)
            what = f"volume {mirror.source.name}"
            self._exposure.require_idle(luns, what, hint="use --force to replace its content under them")
        return await self._pool.jobs.start(
            "restore", name, lambda job: self._run(job, mirror, point, newest=guid is None)
        )

    # --- the steps --------------------------------------------------------------------------------------------------

    async def _run(self, job: Job, mirror: Mirror, point: RecoveryPoint | None, *, newest: bool) -> dict[str, Any]:
        """``point`` None: what the fractured target holds. ``newest``: or a newer one, if coming to rest makes one."""
        source, copied_bytes = mirror.source, 0
        try:
            with mirror.pinned(None if point is None else point.guid):
                async with mirror.restoring(f"{source.name} is restored from {mirror.link.target_name}") as rounds:
                    async with _connected(mirror.link) as state:
                        if point is None:
                            point = await self._frozen(mirror)
                        elif newest:
                            point = mirror.points[-1]
                        there = rounds.source_point(point.guid)
                        if there is None:
                            delta = await self._delta(mirror, point, state)
                            copied_bytes = await self._copy(job, mirror, point, delta)
                    kept = await self._switch(mirror, rounds, point, there)
                    await mirror.restored(point)
        finally:
            self._replicas.protect(mirror.name)
        return {"replica": mirror.name, "point": point.guid, "copied_bytes": copied_bytes, "kept_as": kept}

    async def _frozen(self, mirror: Mirror) -> RecoveryPoint:
        """What a fractured target holds at this instant."""
        guid = str(uuid.uuid4())
        await mirror.link.freeze_head(guid)
        return RecoveryPoint(guid, self._pool.env.clock.time())

    async def _copy(self, job: Job, mirror: Mirror, point: RecoveryPoint, delta: _Delta) -> int:
        """Bytes that were written, into the staging area of the source."""
        source, link = mirror.source, LocalLink(mirror.source, "")
        taken = await mirror.link.point(point.guid)
        if taken.size_bytes != source.size_bytes:
            what = f"recovery point {point.guid} of {taken.size_bytes} bytes"
            raise InvalidState(what, "of another size", f"{source.size_bytes} bytes: resize {source.name} first")
        await link.abort_staging()
        staging = await self._begin_staging(source, delta.base)
        options = CopyOptions(compare_first=delta.base is None)

        def report(progress: CopyProgress) -> None:
            job.progress(progress.done_bytes, progress.total_bytes)

        try:
            copied = await copy_extents(
                taken,
                staging,
                delta.extents,
                options=options,
                control=CopyControl(on_progress=report),
                mover=self._pool.env.mover,
            )
        except BaseException:
            await link.abort_staging()
            raise
        return copied.progress.written_bytes

    async def _begin_staging(self, source: Volume, base: Frozen | None) -> Head:
        store = source.head.store
        if base is not None:
            return await store.begin_staging(source.head, base)
        guid = str(uuid.uuid4())  # it holds nothing by itself, and goes at once
        now = await store.snapshot(source.head, f"restore.{guid}", guid=guid, hidden=True)
        try:
            return await store.begin_staging(source.head, now)
        finally:
            await store.delete_snapshot(now)

    async def _switch(self, mirror: Mirror, rounds: Rounds, point: RecoveryPoint, there: Frozen | None) -> str:
        """The name of the snapshot that has what the source was."""
        source = mirror.source
        async with contextlib.AsyncExitStack() as stack:
            for other in self._replicas.mirrors_of(source):
                if other is not mirror:
                    await stack.enter_async_context(other.interrupted("its source is restored"))
            await stack.enter_async_context(source.quiesced())
            if source.taps:
                raise InvalidState(f"volume {source.name}", "the source of a running mirror", "its mirrors at rest")
            source.require_own_content()
            store = source.head.store
            taken = {each.name for each in store.snapshots(source.volume_id)}
            kept = next(name for n in itertools.count(1) if (name := f"{KEPT_AS}{n}") not in taken)
            if there is not None:
                head = await store.rollback(source.head, there)
            else:
                staging = store.staging(source.volume_id)
                assert staging is not None
                await store.snapshot(source.head, kept)
                head, _ = await store.commit_staging(staging, rounds.point_name(point.guid), guid=point.guid)
            source.rebind(head)
        return kept

    # --- what differs -----------------------------------------------------------------------------------------------

    async def _delta(self, mirror: Mirror, point: RecoveryPoint | None, state: LinkState | None) -> _Delta:
        """``point`` None: what the target holds now. ``state``: of the target; None: it is connected by the mirror."""
        source, common = mirror.source, mirror.common
        base = mirror.source_point(common)
        if common is None or base is None or (state is not None and common not in state.points):
            whole = [Extent(0, source.size_bytes)]
            return _Delta(None, whole, whole)
        written = [extent async for extent in source.head.store.changed(base, source.head)]
        if point is None:
            return _Delta(base, merged(await mirror.link.changed(common, None)), written)
        if point.guid == common:
            return _Delta(base, (), written)
        differs = await mirror.link.changed(point.guid, common)
        return _Delta(base, merged(differs), merged([*written, *differs]))

    def _point(self, mirror: Mirror, guid: str | None) -> RecoveryPoint | None:
        """By default what the target holds: the newest one, or None where its owner may have written to it.

        Raises NotFound.
        """
        if guid is None:
            return None if mirror.standing.state is CopyState.FRACTURED else mirror.points[-1]
        for point in mirror.points:
            if point.guid == guid:
                return point
        raise NotFound(f"recovery point of replica {mirror.name}", guid)

    def _require_restorable(self, name: str) -> Mirror:
        mirror = self._replicas.running(name)
        source = mirror.source
        if self._replicas.disks.link(name) is not None:
            raise NotSupported(
                f"the target of replica {name} is a disk of elsewhere, which keeps no recovery points:"
                f" detach it, and import it (twinvol volume import)"
            )
        if not mirror.points:
            raise InvalidState(f"replica {name}", "without a complete recovery point", "a completed first copy")
        source.require_usable()
        source.require_own_content()
        if source.fence_reason is not None:
            raise InvalidState(f"volume {source.name}", f"not served ({source.fence_reason})", "the disk")
        return mirror


@contextlib.asynccontextmanager
async def _connected(link: MirrorLink) -> AsyncIterator[LinkState]:
    state = await link.connect()
    try:
        yield state
    finally:
        await link.disconnect()


async def drop_interrupted(sources: Iterable[Volume]) -> None:
    """At a start: what restores had copied when they were ended. A source is no target, so it has no other staging
    area."""
    for source in sources:
        await LocalLink(source, "").abort_staging()
