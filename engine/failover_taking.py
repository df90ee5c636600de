"""Taking the place of the source, by its replica: a part of ``engine.failover``, which has the rules."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Any

from engine import lineage as lineages
from engine.catalog import MirrorRow
from engine.catalog_mirror_groups import MirrorGroupRow
from engine.errors import EngineError, InUse, InvalidState, PeerUnreachable
from engine.failover_facts import SourceFacts
from engine.failover_plan import complete_until, meaning
from engine.failover_standing import FAILED_OVER, PLANNED_KEY, Standings
from engine.failover_units import SourceUnit, members_of, told
from engine.lineage import LineageEntry
from engine.mirror_group import GroupRecord
from engine.mirror_record import MirrorRecord, RecoveryPoint
from engine.pool import uncancelled
from engine.replica_table import GROUP_KEY, POLICY_KEY

if TYPE_CHECKING:
    from engine.api import FailoverPlan
    from engine.failover_units import TargetUnit
    from engine.jobs import Job
    from engine.peers.incoming import IncomingReplica
    from engine.volume import Volume


class TakingOver(Standings):
    """See the module."""

    async def promote(self, peer: str, message: dict[str, Any]) -> dict[str, Any]:
        """The source has released the disk to this replica, which has all of it in that recovery point."""
        key, connections = str(message.get("replica")), message.get("connections")
        (entry,) = lineages.from_json(message.get("entry"))
        async with self._locks[key]:
            unit = self._asked_for(peer, key, message)
            if not isinstance(connections, list) or len(connections) != len(unit.replicas):
                raise InvalidState(unit.what, "told to take over without its connections", "told over each")
            for replica, connection in zip(unit.replicas, connections, strict=True):
                with replica.working(int(connection)):
                    if entry.point is None or await replica.link.changed(entry.point, None):
                        raise InvalidState(unit.what, "another content than the point", "the same")
            async with contextlib.AsyncExitStack() as stack:
                for replica in unit.replicas:
                    await stack.enter_async_context(replica.taken())
                new = await self._take_over(unit, entry, planned=True)
        return {"members": told(self._units.members(new))}

    def _asked_for(self, peer: str, key: str, message: dict[str, Any]) -> TargetUnit:
        ids = [each.replica_id for each in members_of(message)]
        unit = self._units.target(peer, key, ids)
        if unit is None:
            for replica_id in ids:
                self._replicas.incoming.get(peer, replica_id)  # raises what it is
            raise InvalidState(f"replica {key}", "not served", "one that is")
        return unit

    # --- as the operator says ----------------------------------------------------------------------------------------

    async def fail_over(self, name: str, *, accept_loss: bool, fenced: bool, group: bool = False) -> Job:
        """Have the replica here be the disk. Without flags its source hands it over. The job's result says what was.

        Raises InvalidState: what is missing for that, in words for the operator.
        """
        done = self._units.source(name, group=group)
        if done is not None and PLANNED_KEY in done.state:  # it has taken over before
            return await self._job("failover", name, lambda: self._show_again(done))
        unit = self._units.target_named(name, group=group)
        if not (accept_loss or fenced):
            return await self._job("failover", name, lambda: self._ask_for_it(unit))
        self.require_forced(unit, accept_loss=accept_loss, fenced=fenced)
        return await self._job("failover", name, lambda: self._force(unit, accept_loss=accept_loss))

    def _facts_of(self, unit: TargetUnit) -> list[SourceFacts]:
        """Raises InvalidState: without them nobody can take over."""
        found = [SourceFacts.parse(replica.row.facts) for replica in unit.replicas if replica.row.facts]
        if len(found) < len(unit.replicas) or not all(facts.may_fail_over for facts in found):
            raise InvalidState(unit.what, "not known well enough, or made with --no-failover", "a source")
        return found

    def require_forced(self, unit: TargetUnit, *, accept_loss: bool, fenced: bool) -> None:
        """Raises InvalidState: the operator has not said what nobody else can know."""
        if not fenced:
            raise InvalidState(
                unit.what,
                f"unable to know whether its source at peer {unit.peer} still serves hosts",
                "--fenced, if you have seen to it that it does not",
            )
        if not accept_loss and not self.holds_lease(unit):
            raise InvalidState(
                unit.what,
                "without a lease, so that acknowledged writes may be missing",
                f"--accept-loss ({unit.command} failover {unit.name} --plan says what)",
            )

    def holds_lease(self, unit: TargetUnit) -> bool:
        """Whether it has everything that was acknowledged, whatever its source does: every member."""
        now = self._pool.env.clock.boottime()
        return all(replica.lease.held(now) for replica in unit.replicas)

    def _is_whole(self, unit: TargetUnit) -> bool:
        """Whether the content is write-order consistent, beside the recovery points. Of a group it is so only while
        all hold their leases: between two switches, or while queues are sent, members are of different instants."""
        whole = all(self._replicas.incoming.is_whole(replica.row) for replica in unit.replicas)
        return whole and (unit.group is None or self.holds_lease(unit))

    async def _ask_for_it(self, unit: TargetUnit) -> dict[str, Any]:
        assert self._peers is not None
        try:
            await self._peers.client(unit.peer).request("hand_over", replica=unit.key)
        except PeerUnreachable as error:
            raise InvalidState(
                f"the source of {unit.what}",
                f"out of reach ({error})",
                "--fenced, and --accept-loss where writes may be missing"
                f" ({unit.command} failover {unit.name} --plan says what)",
            ) from error
        taken = self._units.source_of(unit.peer, unit.key)
        if taken is None:
            raise InvalidState(unit.what, "not promoted", "what its source has answered")
        return await self._show_again(taken)

    async def _force(self, unit: TargetUnit, *, accept_loss: bool) -> dict[str, Any]:
        async with self._locks[unit.key]:
            if not self._units.is_target(unit):
                raise InvalidState(unit.what, "no replica any more", "one that is")
            facts = self._facts_of(unit)  # a refusal does not cut its source off
            for replica in unit.replicas:
                self._require_unshown(replica.volume)
            async with contextlib.AsyncExitStack() as stack:
                for replica in unit.replicas:
                    await stack.enter_async_context(replica.taken())
                # Nothing of the source arrives any more: what it lacks it will lack.
                lossless = self.holds_lease(unit) and self._is_whole(unit)
                if not lossless and not accept_loss:
                    raise InvalidState(unit.what, "without a lease since a moment ago", "--accept-loss")
                point = await self._sealed(unit, content=lossless or unit.group is None)
                number = 1 + max(each.lineage[-1].number for each in facts)
                now = self._pool.env.clock.time()
                entry = LineageEntry(number, str(uuid.uuid4()), now, point, lossless)
                new = await self._take_over(unit, entry, planned=False)
        self._wake.set()
        return await self._show_again(new) | {"lossless": lossless, "point": point}

    def _require_unshown(self, volume: Volume) -> None:
        """Raises InUse. Also before its content is changed for it."""
        for lun in self._exposure.luns_of(volume.volume_id):
            raise InUse(f"volume {volume.name} is shown as another disk by target {lun.target}; remove that LUN first")

    async def _sealed(self, unit: TargetUnit, *, content: bool) -> str:
        """The recovery point that the unit goes on from; its content is that afterwards. ``content``: what it holds
        now may count, where that is whole."""
        points = self._units.points(unit)
        if not points:
            raise InvalidState(unit.what, "without a complete recovery point", "its first copy to be complete")
        newest = points[-1].guid
        changed = [bool(await replica.link.changed(newest, None)) for replica in unit.replicas]
        fractured = any(replica.fractured for replica in unit.replicas)
        if any(changed) and content and self._is_whole(unit) and not fractured:
            guid = str(uuid.uuid4())
            for replica in unit.replicas:  # nobody writes any more: it is one instant of all
                await replica.link.mark(guid)
            return guid
        for replica, differs in zip(unit.replicas, changed, strict=True):
            if differs:
                await self._roll_back(replica, newest)
        return newest

    async def _roll_back(self, replica: IncomingReplica, guid: str) -> None:
        """What it holds stays, as a snapshot."""
        volume = replica.volume
        point = volume.head.store.snapshot_with(volume.volume_id, guid)
        if point is None:
            raise InvalidState(f"replica {replica.row.name}", f"without the recovery point {guid}", "one that has it")
        async with volume.quiesced():
            volume.rebind(await volume.head.store.rollback(volume.head, point))

    async def _take_over(self, unit: TargetUnit, entry: LineageEntry, *, planned: bool) -> SourceUnit:
        """See ``engine.failover``. Nothing of the source arrives any more."""
        facts = [SourceFacts.parse(replica.row.facts) for replica in unit.replicas]
        for replica in unit.replicas:
            self._require_unshown(replica.volume)
            with contextlib.suppress(EngineError):
                await replica.link.abort_staging()
        volumes = ""
        if unit.group is not None:
            volumes = await self._pool.groups.of_exactly(unit.name, [replica.volume for replica in unit.replicas])
        new = self._new_source(unit, facts[0], entry, volumes, planned=planned)
        lines = [[*each.lineage, entry] for each in facts]
        sides = list(zip((replica.row for replica in unit.replicas), facts, lines, new.rows, strict=True))
        ids = await uncancelled(self._pool.catalog.failover.take_over(sides, group=new.group))
        self._pool.identified(ids)
        self._lineages |= dict(zip(new.volume_ids, lines, strict=True))
        assert self._peers is not None
        self._units.now_source(new, unit, self._peers)
        for replica, fact in zip(unit.replicas, facts, strict=True):
            await self._exposure.turn(replica.volume, fact.device_id, None)
            await self._show(new, replica.volume, fact)
        how = "as handed over" if planned else f"unplanned, {'without loss' if entry.lossless else 'accepting loss'}"
        name = f"volume {unit.lead.volume.name} is the disk" if unit.group is None else f"{unit.what} is the disks"
        await self._event(new, "warning", f"{name} now, {how}")
        return new

    def _new_source(
        self, unit: TargetUnit, facts: SourceFacts, entry: LineageEntry, volumes: str, *, planned: bool
    ) -> SourceUnit:
        """What the relation is from now on, at this side. It counts from what both sides have on record. ``volumes``:
        the name of the consistency group that its volumes are, if they are one."""
        lead = unit.lead.row
        reason = f"it was the replica of {lead.source if unit.group is None else unit.name} at peer {unit.peer}"
        points = tuple(RecoveryPoint(each.guid, each.created_at) for each in self._units.points(unit))
        if unit.group is not None and entry.point is not None and all(each.guid != entry.point for each in points):
            points = (*points, RecoveryPoint(entry.point, entry.at))
        record = MirrorRecord(wanted=FAILED_OVER, reason=reason, points=points)
        record.common = points[-1].guid if points else None
        kept = {POLICY_KEY: facts.policy, PLANNED_KEY: planned}
        mode = facts.mode or lead.mode
        if unit.group is None:
            state = record.serialize() | kept
            row = MirrorRow(lead.name, unit.lead.volume.volume_id, lead.replica_id, mode, state, unit.peer)
            return SourceUnit(unit.key, unit.peer, lead.name, mode, (row,), None)
        rows = tuple(
            MirrorRow(each.row.name, each.row.volume_id, each.row.replica_id, mode, {GROUP_KEY: unit.name}, unit.peer)
            for each in unit.replicas
        )
        members = [MirrorRecord(common=record.common) for _ in rows]
        state = GroupRecord(record, members).serialize() | kept
        names = tuple(row.name for row in rows)
        group = MirrorGroupRow(unit.name, volumes, unit.key, mode, unit.peer, names, state)
        return SourceUnit(unit.key, unit.peer, unit.name, mode, rows, group)

    async def _show(self, unit: SourceUnit, volume: Volume, facts: SourceFacts) -> None:
        """Show the disk, unless that is done already, or would need secrets that only the old side has."""
        if self._exposure.luns_of(volume.volume_id) or not facts.port_groups:
            return
        if facts.chap:
            text = f"volume {volume.name} is not shown: its targets asked for CHAP; make one here that does"
            await self._event(unit, "error", text)
            return
        await self._exposure.expose_to(volume, facts.initiators, facts.port_groups)

    async def _show_again(self, unit: SourceUnit) -> dict[str, Any]:
        shown = [self._shown(volume) for volume in self._units.volumes(unit)]
        return shown[0] if unit.group is None else {"members": shown}

    def _shown(self, volume: Volume) -> dict[str, Any]:
        luns = self._exposure.luns_of(volume.volume_id)
        return {
            "volume": volume.name,
            "target": luns[0].target if luns else None,
            "lun": luns[0].lun if luns else None,
            "serial": volume.identity.serial,
        }

    # --- what it would mean ------------------------------------------------------------------------------------------

    def plan(self, name: str, *, group: bool = False) -> FailoverPlan:
        """See ``engine.api.failover``. Raises NotFound."""
        from engine.api import FailoverPlan  # late: see there

        clock = self._pool.env.clock
        unit = self._units.target_named(name, group=group)
        row = unit.lead.row
        lossless, boot, wall = self.holds_lease(unit), clock.boottime(), clock.time()
        # Without leases a group goes on from its point, whatever its members hold and their source has said of that.
        points, heard = self._units.points(unit), unit.lead.told if unit.group is None or lossless else None
        point_at = points[-1].created_at if points else None
        if unit.group is not None and points:
            point_at = unit.group.at
        until = complete_until(wall=wall, boot=boot, exact_until=self._exact_until(unit), told=heard, point_at=point_at)
        reachable = self._peers is not None and self._peers.reaches(unit.peer)
        missing_bytes = None if heard is None else heard.missing_bytes
        needs = ["--fenced"] if lossless else ["--accept-loss", "--fenced"]
        return FailoverPlan(
            replica=name,
            volume=unit.lead.volume.name if unit.group is None else unit.name,
            source=f"{unit.peer}:{row.source if unit.group is None else unit.name}",
            peer=unit.peer,
            mode=row.mode,
            reachable=reachable,
            lossless=lossless,
            point=points[-1].guid if points else None,
            point_at=point_at,
            complete_until=until if points else None,
            age_seconds=None if until is None or not points else max(0.0, wall - until),
            missing_bytes=0 if lossless else missing_bytes,
            reported_at=None if heard is None else wall - (boot - heard.at),
            needs=needs if points else [],
            reason=meaning(reachable=reachable, lossless=lossless, has_point=bool(points)),
        )

    def _exact_until(self, unit: TargetUnit) -> float | None:
        """Until when its content is known to have been everything, as long as that is what would be promoted."""
        instants = [replica.exact_until for replica in unit.replicas]
        if not self._is_whole(unit) or None in instants:
            return None
        return min(instant for instant in instants if instant is not None)
