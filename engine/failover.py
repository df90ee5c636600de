"""Failing over between peers: who of two volumes is the disk, and how that changes (REPLICATION sections 3 and 6).

Of a mirror to a peer, one side has a row in ``mirrors`` (it is the *source*, and the disk) and the other one in
``peer_targets`` (it is the *replica*). Failing over exchanges that: in one transaction at each side.

    hand over    planned, by the source: no host writes any more; the target gets what is missing, in one common point;
                 the release to the next lineage entry is recorded; the target takes over; the source follows it
    take over    by the replica: its content is sealed as a recovery point, one transaction gives it lineage, identity
                 and the mirror back, then it is shown. Unplanned, it does so by itself, where the operator has said
                 that the source is fenced, and accepts what may be missing
    follow       an old source becomes the replica of the volume that has taken its place: by itself where it has
                 nothing that was acknowledged and is missing there (``lineage.may_follow``), else when told ``resolve``

Rules:

* A source with a mirror that may fail over is not served after a start until its peer was asked. With an unreachable
  peer it stays unavailable until ``resolve`` says that it goes on.
* Who hears that another one goes on (``lineage.goes_on``) is fenced in that step of the loop: what runs is not
  acknowledged any more. That is recorded before anything else is done.
* A release is recorded before the target is asked to take over. Without its answer the source stays fenced until it has
  asked: the question ends the connection over which it might still be told to.
* An answer, or a step that was begun, from before a fence does not lift it: what was asked then has not ended the
  connection over which the target may be told to take over, and knows nothing of who has done so since.
* Who is fenced hands nothing over, and a refusal to does not lift the fence.
* Other terms for a mirror are not put on record while its source changes places: the record would bring it back.
* A source with several such mirrors is served when each of its peers has said that it has not taken its place.
* While a replica takes over, its source reaches it no more: no connection, no request, no facts.
* A mirrored group changes places as one: its members are fenced in one step, released, taken over and turned into
  replicas in one transaction each, and go on from one recovery point of all. What is not known to be of one instant is
  never served: content that no lease covers gives way to the group's complete point.
* A recovery point serves to count from only if the one that was the source has it on record as complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import TYPE_CHECKING, Any

from engine import lineage as lineages
from engine.errors import InvalidArgument, InvalidState, PeerUnreachable
from engine.failover_handing import HandingOver
from engine.failover_standing import LOOK_S, Asked
from engine.failover_taking import TakingOver
from engine.failover_units import members_of
from engine.lease import length_s, wait_s
from engine.lineage import LineageEntry
from engine.pool import uncancelled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.exposure import Exposure
    from engine.failover_units import SourceUnit
    from engine.jobs import Job
    from engine.pool import Pool
    from engine.replicas import Replicas

FOLLOW_S = 20.0
"""How long ``failback`` waits for the other side to connect and to follow."""


class Failovers(HandingOver, TakingOver):
    """See the module: also failing back, and what an operator decides."""

    def __init__(self, pool: Pool, exposure: Exposure, replicas: Replicas) -> None:
        super().__init__(pool, exposure, replicas)
        replicas.failovers = self
        replicas.incoming.failovers = self
        replicas.incoming.is_promoted = self._is_promoted

    @contextlib.asynccontextmanager
    async def settled(self, name: str) -> AsyncIterator[None]:
        """Inside, the source of that replica stays what it is: nobody takes its place, and it follows nobody.

        Raises InvalidState: it is fenced, or is the source no more. A replica here changes places with nobody.
        """
        unit = self._units.source(name)
        if unit is None:
            yield
            return
        async with self._locks[unit.key]:
            present = self._units.present(unit)
            reason = "the disk no more" if present is None else self._fenced(present)
            if reason is not None:
                raise InvalidState(f"the source of replica {name}", reason, "the disk")
            yield

    async def fail_back(self, name: str, *, group: bool = False) -> Job:
        """Bring what was the source up to date, and hand the disk back to it."""
        unit = self._units.source(name, group=group)
        if unit is None:
            raise InvalidState(f"replica {name}", "not the disk here", "to be said at the side that is the disk")
        mirror = self._units.running(unit)

        async def work() -> dict[str, Any]:
            if mirror.is_at_rest:
                asked = await self._follower(unit)
                await self._go_back(unit, mirror, asked)
            await mirror.wait_synchronized()
            await self.give(name, group=group)
            volume = self._pool.by_id(unit.lead.source_id).name
            return {"volume": volume if unit.group is None else unit.name, "peer": unit.peer}

        return await self._job("failback", name, work)

    async def _follower(self, unit: SourceUnit) -> Asked:
        """The other side, once it follows. One that came back a moment ago is waited for.

        Raises InvalidState: it does not follow, or is out of reach.
        """
        asked, why = self._asked.setdefault(unit.key, Asked()), ""
        deadline = asyncio.get_running_loop().time() + FOLLOW_S
        while True:
            try:
                await self._ask(unit, asked)
                why = asked.role
            except PeerUnreachable as error:
                why = str(error)
            if asked.role == "replica" and why == asked.role:
                return asked
            if asked.role == "superseded" or asyncio.get_running_loop().time() > deadline:
                wanted = f"one that follows ({unit.peer}: {unit.command} show {unit.name})"
                raise InvalidState(f"the other side of {unit.what}", f"no replica: {why}", wanted)
            await asyncio.sleep(LOOK_S)

    # --- what an operator decides ------------------------------------------------------------------------------------

    async def resolve(self, name: str, *, serve: bool, give_way: bool, group: bool = False) -> None:
        """An operator decides for what is not served: it goes on, or it follows the other side; a group as one."""
        if serve == give_way:
            raise InvalidArgument("say one of --serve and --yield")
        unit = self._units.source(name, group=group)
        if unit is None:
            raise InvalidState(f"replica {name}", "no source here", "to be said where its volume waits")
        answer: dict[str, Any] = {}
        if give_way:  # asked without the lock: the other side may be asking as well
            known = await self._know(unit.lead.source_id)
            answer = await self._request(unit, "standing", lineage=lineages.to_json(known))
        async with self._locks[unit.key]:
            if self._fenced(unit) is None:
                raise InvalidState(unit.what, "served", "one that waits for a decision")
            unit = self._units.present(unit) or unit
            if serve:
                await self._decide_for(unit)
            else:
                await self._give_way(unit, answer)

    async def _decide_for(self, unit: SourceUnit) -> None:
        fences = self._count(unit)
        await self._units.stop(unit)
        self._units.set_idle(unit, f"peer {unit.peer} is to follow first, or to be asked")
        unit = self._units.present(unit) or unit
        for each in (unit, *self._units.sharing(unit)):
            if self._units.mirror(each) is None:
                await self._outwait(each)
        released, numbers = await self._pool.catalog.failover.releases(), [0]
        for volume_id in unit.volume_ids:
            heard = self._heard.get(volume_id, [])
            numbers += [(await self._know(volume_id))[-1].number, released.get(volume_id, (0, ""))[0]]
            numbers += [entry.number for entry in heard[-1:]]
        entry = LineageEntry(max(numbers) + 1, str(uuid.uuid4()), self._pool.env.clock.time(), None, lossless=False)
        if fences != self._count(unit):
            raise InvalidState(f"peer {unit.peer}", "the disk, as it has said meanwhile", "a decision that knows it")
        await uncancelled(self._pool.catalog.failover.go_on(unit.volume_ids, entry))
        for volume_id in unit.volume_ids:
            self._lineages[volume_id] = [*await self._know(volume_id), entry]
        if fences != self._count(unit):
            return  # heard in this very moment: who goes on is decided by what is on record
        for volume_id in unit.volume_ids:
            self._heard.pop(volume_id, None)
        await self._offer(unit)
        await self._event(unit, "warning", f"{unit.what} goes on as the disk, as the operator has said")

    async def _outwait(self, unit: SourceUnit) -> None:
        """Return when the target of a mirror that does not run claims nothing any more, and that is recorded."""
        if not unit.record.synchronized:
            return
        over_at = self._pool.env.clock.boottime() + wait_s(length_s(unit.policy.budget_s))
        while (left := over_at - self._pool.env.clock.boottime()) > 0:  # noqa: ASYNC110 - a clock
            await asyncio.sleep(left)
        await self._units.demote(unit)

    async def _give_way(self, unit: SourceUnit, answer: dict[str, Any]) -> None:
        """``answer``: of the peer, asked who is the disk."""
        if answer.get("role") != "source" or not answer.get("serves"):
            was = "waiting for a decision as well" if answer.get("role") == "source" else f"{answer.get('role')}"
            raise InvalidState(f"peer {unit.peer}", was, "the disk itself")
        theirs = lineages.from_json(answer.get("lineage"))
        volumes = self._units.volumes(unit)
        taken = {each.name for volume in volumes for each in self._pool.snapshots(volume)}
        number = next(n for n in range(1, len(taken) + 2) if f"diverged-{n}" not in taken)
        for volume in volumes:
            await volume.head.store.snapshot(volume.head, f"diverged-{number}")
        await self._follow(unit, theirs, members_of(answer))

    def _is_promoted(self, peer: str, replica_id: str) -> bool:
        return any(
            unit.peer == peer and any(row.target_id == replica_id for row in unit.rows)
            for unit in self._units.sources()
        )
