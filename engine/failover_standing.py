"""Who is the disk: what two sides tell each other of it, and what a source makes of what it hears.

A part of ``engine.failover``, which has the rules. A *unit* is what changes places as one (``engine.failover_units``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine import lineage as lineages
from engine.catalog_mirror_groups import GroupPointRow
from engine.catalog_peers import PeerTargetRow
from engine.errors import EngineError, InvalidState, Superseded
from engine.failover_facts import SourceFacts
from engine.failover_plan import Told, Written
from engine.failover_units import NewTarget, SourceUnit, Units, members_of, told
from engine.mirror_record import MirrorRecord, point_prefix
from engine.pool import uncancelled
from engine.replica_table import POLICY_KEY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engine.exposure import Exposure
    from engine.failover_units import Member
    from engine.jobs import Job
    from engine.lineage import LineageEntry
    from engine.mirror import Mirror
    from engine.mirror_group import GroupMirror
    from engine.peers.incoming import IncomingReplica
    from engine.peers.registry import Peers
    from engine.pool import Pool
    from engine.replicas import Replicas
    from engine.volume import Volume

log = logging.getLogger(__name__)

LOOK_S = 0.1
ASK_S = 2.0
"""How often a source asks its peer who is the disk, beside each time that there is a new connection."""

LAG_MAX_S = 1e10
"""What a peer says is longer is no lag."""

FAILED_OVER, PLANNED_KEY = "failed over", "planned"


@dataclass(slots=True)
class Asked:
    """What is known of the other side of a unit. ``points``: recovery points that count, once it follows."""

    session: object | None = None
    at: float = float("-inf")
    role: str = ""
    points: tuple[str, ...] = ()
    facts: Sequence[str] = ()


class Standings:
    """See the module."""

    def __init__(self, pool: Pool, exposure: Exposure, replicas: Replicas) -> None:
        self._pool = pool
        self._exposure = exposure
        self._replicas = replicas
        self._units = Units(pool, replicas)
        self._peers: Peers | None = None
        self._lineages: dict[str, list[LineageEntry]] = {}
        self._heard: dict[str, list[LineageEntry]] = {}
        """By volume id: of the one that has taken its place."""
        self._asked: dict[str, Asked] = {}
        self._written: defaultdict[str, Written] = defaultdict(Written)
        self._fences: defaultdict[str, int] = defaultdict(int)
        """By volume id: how often it was fenced here."""
        self._cleared: set[str] = set()
        """Units whose peer has said, since their volumes were fenced for it, that it has not taken their place."""
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By unit: one change of who is the disk at a time. Nobody asks the other side with it, but ``give``."""
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    # --- its life ----------------------------------------------------------------------------------------------------

    async def begin(self, peers: Peers) -> None:
        """The peers are there: ask them, again and again."""
        self._peers = peers
        for unit in self._units.sources():
            for volume_id in unit.volume_ids:
                await self._know(volume_id)
        self._task = asyncio.get_running_loop().create_task(self._tend(), name="failovers")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _tend(self) -> None:
        while True:
            for unit in self._units.sources():
                try:
                    await self._look(unit)
                except EngineError as error:
                    log.debug("%s: %s", unit.what, error)
                except Exception:
                    log.exception("asking about %s failed by a mistake in twinvol", unit.what)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()

    async def _look(self, unit: SourceUnit) -> None:
        """Tell the other side what it needs to know, and ask it, where that is due."""
        assert self._peers is not None
        client = self._peers.client(unit.peer)
        asked = self._asked.setdefault(unit.key, Asked())
        now = asyncio.get_running_loop().time()
        if client.session is None:
            return
        if client.session is not asked.session:
            asked.facts = ()  # told again over each connection: the other side may have begun anew
        if client.session is not asked.session or now - asked.at >= ASK_S:
            asked.session, asked.at = client.session, now
            await self._ask(unit, asked)
        current = self._units.present(unit)
        if current is not None and asked.role == "replica" and not self._units.lead(current).fence_reason:
            await self._tell_facts(current, asked)

    # --- what the two sides tell each other --------------------------------------------------------------------------

    async def _ask(self, unit: SourceUnit, asked: Asked) -> None:
        """A source asks who is the disk."""
        mine = lineages.to_json(await self._know(unit.lead.source_id))
        fences, revoke = self._count(unit), self._fenced(unit) is not None
        answer = await self._request(unit, "standing", lineage=mine, revoke=revoke, **self._progress(unit))
        async with self._locks[unit.key]:
            present = self._units.present(unit)
            if present is None:
                return
            if fences != self._count(unit) and answer.get("role") not in ("source", "superseded"):
                asked.session, asked.role = None, ""  # asked before it was fenced: to be asked again
                return
            await self._answered(present, asked, answer)

    async def _answered(self, unit: SourceUnit, asked: Asked, answer: dict[str, Any]) -> None:
        asked.role = str(answer.get("role"))
        match asked.role:
            case "source" | "superseded":
                theirs = lineages.from_json(answer.get("lineage"))
                if not await self._hear(unit, theirs, members_of(answer), they_serve=asked.role == "source"):
                    asked.session = None  # it is another mirror now
                    return
                await self._serve(unit, run=False)  # it has to become a replica first
            case "replica":
                asked.points = tuple(str(guid) for guid in answer.get("points") or ())
                await self._serve(unit, run=True)
                await self._go_on_with(unit, asked)
            case "none":
                await self._serve(unit, run=True)

    async def standing(self, peer: str, message: dict[str, Any]) -> dict[str, Any]:
        """A source at a peer asks about its mirror to here. Whether it knows or not, who goes on is decided now."""
        key, members = str(message.get("replica")), members_of(message)
        theirs = lineages.from_json(message.get("lineage"))
        mine = self._units.source_of(peer, key)
        if mine is not None:
            known = self._lineages.get(mine.lead.source_id) or await self._know(mine.lead.source_id)
            if not lineages.goes_on(known, theirs, inherited=self._is_inherited(mine)):
                self._fence(mine, theirs)
            async with self._locks[key]:
                present = self._units.source_of(peer, key)
                if present is not None:
                    await self._hear(present, theirs, members, they_serve=not message.get("revoke"))
        async with self._locks[key]:
            return await self._my_standing(peer, key, members, message)

    async def _my_standing(
        self, peer: str, key: str, members: Sequence[Member], message: dict[str, Any]
    ) -> dict[str, Any]:
        unit = self._units.source_of(peer, key)
        if unit is not None:
            return {
                "role": "superseded" if unit.lead.source_id in self._heard else "source",
                "serves": self._fenced(unit) is None,
                "lineage": lineages.to_json(await self._know(unit.lead.source_id)),
                "members": told(self._units.members(unit)),
            }
        ids = [each.replica_id for each in members]
        target = self._units.target(peer, key, ids)
        if target is not None:
            for replica in target.replicas:
                if message.get("revoke"):
                    await replica.end()
                replica.told = _told(message, self._pool.env.clock.boottime())
            return {"role": "replica", "points": [each.guid for each in self._units.points(target)]}
        known = any(row.replica_id in ids for row in self._replicas.incoming.of_peer(peer))
        return {"role": "away" if known else "none"}

    async def facts(self, replica: IncomingReplica, text: str) -> None:
        """A source at a peer tells of itself."""
        facts = SourceFacts.parse(text)
        async with self._locks[replica.row.replica_id]:
            if self._replicas.incoming.replica_of(replica.row) is not replica:
                raise Superseded("the replica has been promoted: it is the disk now")
            if facts.device_id != self._pool.device_id(facts.volume_id):
                await self._pool.catalog.failover.names_device(facts.volume_id, facts.device_id)
                self._pool.identified({facts.volume_id: facts.device_id})
            await self._replicas.incoming.told(replica, facts)

    async def _tell_facts(self, unit: SourceUnit, asked: Asked) -> None:
        facts = await self._facts(unit)
        if facts != asked.facts:
            await self._send_facts(unit, facts)
            asked.facts = facts

    async def _send_facts(self, unit: SourceUnit, facts: Sequence[str]) -> None:
        assert self._peers is not None
        for row, text in zip(unit.rows, facts, strict=True):
            await self._peers.client(unit.peer).request("facts", replica=row.target_id, facts=text)

    async def _facts(self, unit: SourceUnit) -> list[str]:
        """Of each member."""
        return [await self._facts_of_volume(unit, volume) for volume in self._units.volumes(unit)]

    async def _facts_of_volume(self, unit: SourceUnit, volume: Volume) -> str:
        luns = self._exposure.luns_of(volume.volume_id)
        targets = [self._exposure.target(lun.target) for lun in luns]
        initiators = {name for target in targets for name in target.initiators}
        return SourceFacts(
            volume_id=volume.volume_id,
            device_id=volume.device_id,
            lineage=await self._know(volume.volume_id),
            may_fail_over=unit.policy.failover,
            policy=unit.state.get(POLICY_KEY, {}),
            port_groups=tuple(sorted(target.port_group for target in targets)),
            initiators=tuple(sorted(initiators)) if all(target.initiators for target in targets) else (),
            chap=any(target.chap.users for target in targets),
            mode=unit.mode,
        ).serialize()

    def _progress(self, unit: SourceUnit) -> dict[str, Any]:
        """What the target is told of what it lacks."""
        mirror, now = self._units.mirror(unit), self._pool.env.clock.boottime()
        written = [self._exposure.written_bytes(volume.device_id) for volume in self._units.volumes(unit)]
        known = self._written[unit.key]
        if all(each is not None for each in written):
            known.sample(now, sum(each for each in written if each is not None))
        lag_s = None if mirror is None else mirror.figures.point_lag_s  # what else is complete the target knows itself
        exact = mirror is not None and mirror.figures.is_exact
        missing = None if lag_s is None else 0 if exact else known.since(now - lag_s)
        return {"lag_s": lag_s, "missing_bytes": missing}

    # --- a source that hears of another ------------------------------------------------------------------------------

    async def _hear(
        self, unit: SourceUnit, theirs: list[LineageEntry], members: Sequence[Member], *, they_serve: bool
    ) -> bool:
        """The other side is, or was, a source as well. Whether this one goes on."""
        mine = await self._know(unit.lead.source_id)
        if lineages.goes_on(mine, theirs, inherited=self._is_inherited(unit)):
            return True
        self._fence(unit, theirs)
        newest, now = theirs[-1], self._pool.env.clock.time()
        await self._pool.catalog.failover.release(unit.volume_ids, newest.number, newest.guid, now)
        volumes = self._units.volumes(unit)
        for volume in volumes:
            await self._exposure.access.withhold(volume.device_id, str(volume.fence_reason))
        mirror = self._units.mirror(unit)
        demoted = not unit.record.synchronized if mirror is None else mirror.is_demoted
        if mirror is not None:
            await mirror.close()
        first = next((entry for entry in theirs if entry.number == mine[-1].number + 1), None)
        equal = first is not None and first.point is not None and await self._equal(volumes, first.point)
        alone = not self._units.others(unit)  # else others would be fed from what it follows
        if they_serve and alone and lineages.may_follow(mine, theirs, demoted=demoted, equals_point=lambda _: equal):
            await self._follow(unit, theirs, members)
        else:
            self._units.set_idle(unit, self._diverged(unit))
        return False

    def _fence(self, unit: SourceUnit, theirs: list[LineageEntry]) -> None:
        self._stop_serving(unit, f"its replica at peer {unit.peer} has taken its place")
        for volume_id in unit.volume_ids:
            self._heard[volume_id] = theirs

    def _stop_serving(self, unit: SourceUnit, why: str) -> int:
        """From this step on. Returns how often that has been, now."""
        for volume in self._units.volumes(unit):
            volume.fence(why)
            self._fences[volume.volume_id] += 1
        self._cleared.discard(unit.key)
        return self._count(unit)

    def _count(self, unit: SourceUnit) -> int:
        """How often any of its volumes was fenced."""
        return sum(self._fences[volume_id] for volume_id in unit.volume_ids)

    def _fenced(self, unit: SourceUnit) -> str | None:
        """Why its volumes are not served; None: all are."""
        return next((volume.fence_reason for volume in self._units.volumes(unit) if volume.fence_reason), None)

    def _unasked(self, unit: SourceUnit) -> list[str]:
        """Other relations of the same sources whose targets may have taken their place, as far as is known."""
        return [
            each.name for each in self._units.sharing(unit) if each.key not in self._cleared and each.policy.failover
        ]

    def is_cleared(self, key: str) -> bool:
        """Whether it is not because of that unit that its sources are not served."""
        return key in self._cleared

    def _diverged(self, unit: SourceUnit) -> str:
        return (
            f"diverged: peer {unit.peer} has promoted it, and this side may have acknowledged what is missing there;"
            f" {unit.command} resolve {unit.name} --yield (follow it; what is here stays as a snapshot) or --serve"
        )

    async def _equal(self, volumes: Sequence[Volume], guid: str) -> bool:
        """Whether the content of all volumes is that recovery point, by maps."""
        for volume in volumes:
            store = volume.head.store
            point = store.snapshot_with(volume.volume_id, guid)
            if point is None or point.size_bytes != volume.size_bytes:
                return False
            async for _ in store.changed(point, volume.head):
                return False
        return True

    async def _follow(self, unit: SourceUnit, theirs: Sequence[LineageEntry], members: Sequence[Member]) -> None:
        """Become the replica of the volumes that have taken the place of these."""
        self._units.require_endable(unit)
        there = {each.replica_id: each for each in members}
        if {row.target_id for row in unit.rows} != there.keys():
            raise InvalidState(unit.what, "without the other side's names", "an answer that has them")
        volumes, mine = self._units.volumes(unit), await self._know(unit.lead.source_id)
        device_ids = [volume.device_id for volume in volumes]
        targets = [
            PeerTargetRow(row.target_id, unit.peer, row.name, row.source_id, there[row.target_id].name, unit.mode)
            for row in unit.rows
        ]
        new = [entry for entry in theirs if entry.number > mine[-1].number]
        lines = {each: [*await self._know(each), *new] for each in unit.volume_ids}
        await self._end_others(unit)
        await self._units.stop(unit)
        unit = self._units.present(unit) or unit
        for row, volume in zip(unit.rows, volumes, strict=True):
            await self._drop_uncounted(volume, row.target_id, unit.record)
        target = NewTarget(tuple(targets), self._group_point(unit))
        sources = [there[row.target_id].volume_id for row in unit.rows]
        with self._units.deciding(unit):
            follow = self._pool.catalog.failover.follow(unit.rows, target, sources, lines, group=unit.group)
            ids = await uncancelled(follow)
        self._pool.identified(ids)
        self._lineages |= lines
        for volume_id in unit.volume_ids:
            self._heard.pop(volume_id, None)
        self._asked.pop(unit.key, None)
        self._units.now_replica(unit, target)
        for volume, device_id, source_id in zip(volumes, device_ids, sources, strict=True):
            await self._exposure.turn(volume, device_id, source_id)
            await self._exposure.access.release(device_id)
            volume.unfence()
        name = volumes[0].name if unit.group is None else f"of {unit.what}"
        await self._event(unit, "warning", f"volume {name} follows the one that is the disk at {unit.peer}")

    async def _end_others(self, unit: SourceUnit) -> None:
        """Other replicas of what follows from now on would be fed from a replica. They end, as volumes of their own."""
        for name in self._units.others(unit):
            await self._units.end(name)
            text = (
                f"replica {name} is detached: what it was fed from follows {unit.name} at peer {unit.peer}. To have it"
                " there again, by what differs: twinvol peer offer at its side, twinvol replica attach --peer there"
            )
            await self._event(unit, "warning", text)

    def _group_point(self, unit: SourceUnit) -> GroupPointRow | None:
        """The group's recovery point that this side has when it follows."""
        if unit.group is None or unit.record.common is None:
            return None
        guid, ids = unit.record.common, tuple(row.target_id for row in unit.rows)
        at = next((point.at for point in unit.record.points if point.guid == guid), 0.0)
        return GroupPointRow(unit.key, unit.peer, unit.name, guid, at, ids)

    async def _drop_uncounted(self, volume: Volume, replica_id: str, record: MirrorRecord) -> None:
        """What is no recovery point on record may not be what the other side has under its GUID."""
        store = volume.head.store
        counting = {point.guid for point in record.points} | {record.common}
        prefix = point_prefix(replica_id)
        for point in store.snapshots(volume.volume_id):
            if point.name.startswith(prefix) and point.guid not in counting:
                await store.delete_snapshot(point)

    async def _serve(self, unit: SourceUnit, *, run: bool) -> None:
        """This side is the disk, and may be used. ``run``: the other one is its target; else that claims nothing."""
        fences = self._count(unit)
        if self._unasked(unit):
            self._cleared.add(unit.key)
            if any(volume_id in self._heard for volume_id in unit.volume_ids):
                return
        elif self._fenced(unit) is not None:
            await self._pool.catalog.failover.revoke(unit.volume_ids)
            if fences == self._count(unit):
                for volume_id in unit.volume_ids:
                    self._heard.pop(volume_id, None)
        if run:
            await self._units.begin(unit)  # what the target may still claim is over when it returns
        else:
            await self._units.demote(unit)
        if fences != self._count(unit):
            return  # it has been heard meanwhile that another one goes on
        self._cleared.add(unit.key)
        if self._fenced(unit) is None or self._unasked(unit):
            return
        await self._offer(unit)
        mirror = self._units.mirror(unit)
        if run and mirror is not None and mirror.is_at_rest and unit.record.wanted == "active":
            await mirror.resync()

    async def _offer(self, unit: SourceUnit) -> None:
        """Its volumes are the disks: hosts may use them."""
        volumes = self._units.volumes(unit)
        for volume in volumes:
            volume.unfence()
        for volume in volumes:
            await self._exposure.access.release(volume.device_id)

    async def _go_on_with(self, unit: SourceUnit, asked: Asked) -> None:
        """The other side has become the replica of this one: after a planned exchange the mirror goes on by itself."""
        mirror = self._units.mirror(unit)
        if mirror is not None and unit.record.wanted == FAILED_OVER and unit.state.get(PLANNED_KEY):
            await self._go_back(unit, mirror, asked)

    async def _go_back(self, unit: SourceUnit, mirror: Mirror | GroupMirror, asked: Asked) -> None:
        """Rounds to what was the source begin, unless they have: an answer and an operator may say so at once."""
        if mirror.is_at_rest and unit.record.wanted == FAILED_OVER:
            await mirror.agree_on(asked.points)
        if mirror.is_at_rest:
            try:
                await mirror.fail_back()
            except InvalidState:
                if mirror.is_at_rest:
                    raise

    # --- for all parts -----------------------------------------------------------------------------------------------

    async def _know(self, volume_id: str) -> list[LineageEntry]:
        known = self._lineages.get(volume_id)
        if known is None:
            known = self._lineages[volume_id] = await self._pool.catalog.identities.lineage(volume_id)
        return known

    async def _request(self, unit: SourceUnit, op: str, **fields: Any) -> dict[str, Any]:
        assert self._peers is not None
        about = {"replica": unit.key, "members": told(self._units.members(unit))}
        return await self._peers.client(unit.peer).request(op, **about, **fields)

    def _is_inherited(self, unit: SourceUnit) -> bool:
        volume = self._units.lead(unit)
        return volume.device_id != volume.volume_id

    def superseded(self, peer: str, key: str) -> None:
        """The peer says that the target has taken the place of the source, in this step: nobody is acknowledged any
        more before it was asked. Where an operator has decided meanwhile no mirror runs that could hear it."""
        unit = self._units.source_of(peer, key)
        if unit is not None:
            self._stop_serving(unit, f"its replica at peer {peer} has taken its place")
            self._asked.pop(key, None)
            self._wake.set()

    async def _job(self, kind: str, name: str, work: Callable[[], Awaitable[dict[str, Any]]]) -> Job:
        async def run(_: Job) -> dict[str, Any]:
            return await work()

        return await self._pool.jobs.start(kind, name, run)

    async def _event(self, unit: SourceUnit, severity: str, text: str) -> None:
        await self._pool.catalog.add_event(self._pool.env.clock.time(), severity, unit.what, text)


def _told(message: dict[str, Any], now: float) -> Told:
    """What a source says of what its target lacks. Figures that are none are not known."""
    lag_s, missing = message.get("lag_s"), message.get("missing_bytes")
    return Told(
        now,
        float(lag_s) if isinstance(lag_s, int | float) and 0 <= lag_s < LAG_MAX_S else None,
        missing if isinstance(missing, int) and missing >= 0 else None,
    )
