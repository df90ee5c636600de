"""Handing the disk over, planned, by the source: a part of ``engine.failover``, which has the rules."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Any

from engine import lineage as lineages
from engine.errors import EngineError, InvalidState, NotFound
from engine.failover_standing import Standings
from engine.failover_units import members_of
from engine.lineage import LineageEntry

if TYPE_CHECKING:
    from engine.failover_units import SourceUnit
    from engine.mirror import Mirror
    from engine.mirror_group import GroupMirror


class HandingOver(Standings):
    """See the module."""

    async def hand_over(self, peer: str, key: str) -> dict[str, Any]:
        """A peer wants its replica, or its replica group, to be the disk: see ``give``."""
        unit = self._units.source_of(peer, key)
        if unit is None:
            raise NotFound("mirror to this peer", key)
        await self._give(unit)
        return {}

    async def give(self, name: str, *, group: bool = False) -> None:
        """Hand the disk over to the replica at the peer, without loss, and follow it; all members of a group at once.

        Raises InvalidState (this side is fenced, too), InUse: nothing has changed. What the peer answers,
        PeerUnreachable: nobody knows; this side stays unavailable until it has been asked.
        """
        unit = self._units.source(name, group=group)
        if unit is None:
            raise NotFound("replica to a peer", name)
        await self._give(unit)

    async def _give(self, unit: SourceUnit) -> None:
        async with self._locks[unit.key]:
            mirror = self._units.running(unit)
            self._require_givable(unit)
            # Who has just become a replica may not have heard yet what it needs to take over.
            await self._send_facts(unit, await self._facts(unit))
            why, fences = f"it is handed over to peer {unit.peer}", self._count(unit)
            try:
                for volume in self._units.volumes(unit):
                    await self._exposure.access.withhold(volume.device_id, why)
                point = await self._seal(unit, mirror)
                if fences != self._count(unit):
                    raise InvalidState(unit.what, f"the disk, as peer {unit.peer} says", "one that is none yet")
                fences = self._stop_serving(unit, why)
                entry = await self._released(unit, point)
            except BaseException:
                await self._take_back(unit, mirror, fences)
                raise
            answer = await self._told_to_take_over(unit, point, entry)
            theirs = [*await self._know(unit.lead.source_id), entry]
            await self._follow(self._units.present(unit) or unit, theirs, members_of(answer))

    def _require_givable(self, unit: SourceUnit) -> None:
        if not unit.policy.failover:
            raise InvalidState(unit.what, "made with --no-failover", "one that may fail over")
        self._units.require_endable(unit)
        for volume in self._units.volumes(unit):
            if volume.fence_reason is not None:  # the target of another mirror of it may be the disk
                raise InvalidState(unit.what, f"not served ({volume.fence_reason})", "the disk")
            volume.require_usable()
            if unit.group is None:
                self._pool.groups.require_free(volume.volume_id, volume.name)
            self._pool.jobs.require_unread(volume.name)

    async def _seal(self, unit: SourceUnit, mirror: Mirror | GroupMirror) -> str:
        """The GUID of a recovery point that is all that was acknowledged, of all members."""
        volumes = self._units.volumes(unit)
        try:
            for volume in volumes:
                volume.set_read_only(True)
            for volume in volumes:
                async with volume.quiesced():
                    pass  # what was admitted before has ended
            return await mirror.bring_all("handed over")
        finally:
            for volume in volumes:
                volume.set_read_only(self._pool.row(volume).read_only)

    async def _released(self, unit: SourceUnit, point: str) -> LineageEntry:
        """The identity is released, durably, to that entry; the target can be told so over a connection of its own."""
        now = self._pool.env.clock.time()
        number = 1 + max([(await self._know(volume_id))[-1].number for volume_id in unit.volume_ids])
        entry = LineageEntry(number, str(uuid.uuid4()), now, point, lossless=True)
        for link in self._units.links(unit):
            await link.connect()
        await self._pool.catalog.failover.release(unit.volume_ids, entry.number, entry.guid, now)
        return entry

    async def _told_to_take_over(self, unit: SourceUnit, point: str, entry: LineageEntry) -> dict[str, Any]:
        connections = [link.connection for link in self._units.links(unit)]
        told = {"point": point, "entry": lineages.to_json([entry]), "connections": connections}
        try:
            return await self._request(unit, "promote", **told)
        except BaseException:  # whatever it says, it may have taken over: it is asked, and until then nobody serves
            self._asked.pop(unit.key, None)
            self._wake.set()
            raise

    async def _take_back(self, unit: SourceUnit, mirror: Mirror | GroupMirror, fences: int) -> None:
        """``fences``: as known when it was decided to hand it over: who has heard since that another one goes on does
        not serve."""
        if fences == self._count(unit):
            await self._pool.catalog.failover.revoke(unit.volume_ids)
        if fences != self._count(unit):
            self._asked.pop(unit.key, None)
            self._wake.set()
            return
        self._cleared.add(unit.key)
        await self._offer(unit)
        with contextlib.suppress(EngineError):  # the first error is the one to report
            await mirror.resync()
