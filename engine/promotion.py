"""Promotion: a replica of this pool takes the place of its source, as the disk that initiators know.

It gets the source's identity (serial, NAA), with it the persistent reservations, the LUNs with their masks and access
states, and the schedule. The source stays, as it was at that instant, under an identity of its own, and is shown by
nobody; the relation ends, or goes on the other way. So a linked clone leaves its family and stays the same disk.

The order, by REPLICATION section 6:

1. no initiator sees the source any more, and what ran for them has ended; nobody may write to it;
2. a common recovery point of both sides: nothing that was acknowledged is missing at the target;
3. one transaction of the catalogue: the source has released its identity, the target has taken it, with a new entry of
   the lineage. Before it everything is as it was, after it everything is promoted, whatever crashes;
4. the target is shown.

Between 1 and 4 initiators find no disk: with sessions on it promotion wants ``force``.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.errors import EngineError, InUse, InvalidState
from engine.mirror_record import MirrorRecord
from engine.pool import uncancelled

if TYPE_CHECKING:
    from engine.catalog import MirrorRow
    from engine.exposure import Exposure
    from engine.mirror import Mirror
    from engine.pool import Pool
    from engine.replicas import Replicas
    from engine.volume import Volume

log = logging.getLogger(__name__)


class Promotions:
    """See the module."""

    def __init__(self, pool: Pool, exposure: Exposure, replicas: Replicas) -> None:
        self._pool = pool
        self._exposure = exposure
        self._replicas = replicas

    async def promote(self, name: str, *, force: bool) -> Volume:
        """Returns the promoted volume.

        Raises NotFound; InvalidState: the replica does not have everything that the source has acknowledged. InUse: the
        source is used otherwise (groups, other replicas, jobs, sessions without ``force``), or the target is shown.
        """
        return await self._exchange(name, force=force, goes_on=False)

    async def reverse(self, name: str, *, force: bool) -> Volume:
        """As ``promote``, but the relation goes on the other way: the source is the replica from then on. Both sides
        have the recovery point that the mirror counts from, so nothing is copied for it."""
        return await self._exchange(name, force=force, goes_on=True)

    async def _exchange(self, name: str, *, force: bool, goes_on: bool) -> Volume:
        mirror, target = self._replicas.running(name), self._pool.by_id(self._replicas.table.target_id(name))
        source = mirror.source
        self._require_promotable(mirror, target, force=force)
        async with self._exposure.taken_over(source, target) as show:
            self._require_promotable(mirror, target, force=True)
            point = await self._seal(mirror)
            row = self._reversed(mirror, point) if goes_on else None
            try:
                with self._replicas.deciding(name):
                    decided = self._pool.catalog.identities.promote(
                        source.volume_id,
                        target.volume_id,
                        name,
                        point=point,
                        lossless=True,
                        at=self._pool.env.clock.time(),
                        goes_on=row,
                    )
                    ids = await uncancelled(decided)  # what the catalogue has is what this process goes by
            except BaseException:
                with contextlib.suppress(EngineError):  # the first error is the one to report
                    await mirror.resync()
                raise
            self._pool.identified(ids)
            show()
            if row is None:
                await self._end_relation(name)
            else:
                await self._go_on(mirror, target, row)
        return target

    def _reversed(self, mirror: Mirror, point: str) -> MirrorRow:
        """The relation with its ends exchanged; it counts from that point, which both have."""
        row = self._replicas.table.rows[mirror.name]
        points = tuple(each for each in mirror.points if each.guid == point)
        record = MirrorRecord(common=point, points=points)
        return replace(row, source_id=row.target_id, target_id=row.source_id, state=row.state | record.serialize())

    async def _go_on(self, mirror: Mirror, target: Volume, row: MirrorRow) -> None:
        await mirror.put_aside("its ends are exchanged")
        target.content_owner = None
        target.set_read_only(self._pool.row(target).read_only)
        await self._replicas.renew(row)

    def _require_promotable(self, mirror: Mirror, target: Volume, *, force: bool) -> None:
        source = mirror.source
        what = f"volume {source.name}"
        if not mirror.figures.is_exact:
            raise InvalidState(f"replica {mirror.name}", "without all that its source has", "synchronous, Synchronized")
        source.require_usable()
        self._replicas.table.require_only(mirror.name, source)
        self._pool.groups.require_free(source.volume_id, source.name)
        self._pool.groups.require_free(target.volume_id, target.name)
        self._pool.jobs.require_unread(source.name)
        wanted = (source.physical_block_bytes, source.removable)
        if (target.physical_block_bytes, target.removable) != wanted:
            raise InvalidState(f"volume {target.name}", "a disk of another kind", "the physical block of its source")
        points = [None, *(point.guid for point in self._replicas.points(mirror.name))]
        shown = [lun for guid in points for lun in self._exposure.luns_of(target.volume_id, guid)]
        if shown:
            raise InUse(f"replica {mirror.name} is shown by target {shown[0].target}; remove that LUN first")
        if not force:
            luns = self._exposure.luns_of(source.volume_id) + self._exposure.standby_paths(target.volume_id)
            self._exposure.require_idle(luns, what, hint="use --force to move it to the replica under them")

    async def _seal(self, mirror: Mirror) -> str:
        """The GUID of a recovery point that has all that was written; nothing is written any more."""
        source = mirror.source
        source.set_read_only(True)
        try:
            async with source.quiesced():
                pass  # what was admitted before has ended
            return await mirror.seal("promoted")
        finally:
            source.set_read_only(self._pool.row(source).read_only)

    async def _end_relation(self, name: str) -> None:
        try:
            await self._replicas.ended(name)
        except EngineError as error:
            log.error("replica %s is promoted, but its recovery points go at the next start only: %s", name, error)
