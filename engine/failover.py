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
* A source with several such mirrors is served when each of its peers has said that it has not taken its place.
* While a replica takes over, its source reaches it no more: no connection, no request, no facts.
* A recovery point serves to count from only if the one that was the source has it on record as complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine import lineage as lineages
from engine.catalog import MirrorRow
from engine.catalog_peers import PeerTargetRow
from engine.errors import EngineError, InUse, InvalidArgument, InvalidState, NotFound, PeerUnreachable, Superseded
from engine.failover_facts import SourceFacts
from engine.failover_plan import Told, Written, complete_until, meaning
from engine.lease import length_s, wait_s
from engine.lineage import LineageEntry
from engine.mirror_record import MirrorPolicy, MirrorRecord, RecoveryPoint, point_prefix
from engine.pool import uncancelled
from engine.replica_table import POLICY_KEY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engine.api import FailoverPlan
    from engine.exposure import Exposure
    from engine.jobs import Job
    from engine.mirror import Mirror
    from engine.peers.incoming import IncomingReplica
    from engine.peers.registry import Peers
    from engine.pool import Pool
    from engine.replicas import Replicas
    from engine.volume import Volume

log = logging.getLogger(__name__)

LOOK_S = 0.1
ASK_S = 2.0
"""How often a source asks its peer who is the disk, beside each time that there is a new connection."""

FOLLOW_S = 20.0
"""How long ``failback`` waits for the other side to connect and to follow."""

LAG_MAX_S = 1e10
"""What a peer says is longer is no lag."""

FAILED_OVER, PLANNED_KEY = "failed over", "planned"


@dataclass(slots=True)
class _Asked:
    """What is known of the other side of a mirror. ``points``: recovery points that count, once it follows."""

    session: object | None = None
    at: float = float("-inf")
    role: str = ""
    points: tuple[str, ...] = ()
    facts: str = ""


class Failovers:
    """See the module."""

    def __init__(self, pool: Pool, exposure: Exposure, replicas: Replicas) -> None:
        self._pool = pool
        self._exposure = exposure
        self._replicas = replicas
        self._peers: Peers | None = None
        self._lineages: dict[str, list[LineageEntry]] = {}
        self._heard: dict[str, list[LineageEntry]] = {}
        self._asked: dict[str, _Asked] = {}
        self._written: defaultdict[str, Written] = defaultdict(Written)
        self._fences: defaultdict[str, int] = defaultdict(int)
        """By volume id: how often it was fenced here."""
        self._cleared: set[str] = set()
        """Mirrors whose peer has said, since its volume was fenced for it, that it has not taken its place."""
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By replica id: one change of who is the disk at a time. Nobody asks the other side with it, but ``give``."""
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        replicas.failovers = self
        replicas.incoming.failovers = self
        replicas.incoming.is_promoted = self._is_promoted

    # --- its life ----------------------------------------------------------------------------------------------------

    async def begin(self, peers: Peers) -> None:
        """The peers are there: ask them, again and again."""
        self._peers = peers
        for row in self._replicas.remote_rows():
            await self._know(row.source_id)
        self._task = asyncio.get_running_loop().create_task(self._tend(), name="failovers")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _tend(self) -> None:
        while True:
            for row in self._replicas.remote_rows():
                try:
                    await self._look(row)
                except EngineError as error:
                    log.debug("replica %s: %s", row.name, error)
                except Exception:
                    log.exception("asking about replica %s failed by a mistake in twinvol", row.name)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()

    async def _look(self, row: MirrorRow) -> None:
        """Tell the other side what it needs to know, and ask it, where that is due."""
        assert self._peers is not None
        assert row.peer is not None
        client = self._peers.client(row.peer)
        asked = self._asked.setdefault(row.name, _Asked())
        now = asyncio.get_running_loop().time()
        if client.session is None:
            return
        if client.session is not asked.session:
            asked.facts = ""  # told again over each connection: the other side may have begun anew
        if client.session is not asked.session or now - asked.at >= ASK_S:
            asked.session, asked.at = client.session, now
            await self._ask(row, asked)
        current = self._replicas.remote_row(row.name)
        if current is not None and asked.role == "replica" and not self._volume(current).fence_reason:
            await self._tell_facts(current, asked)

    # --- what the two sides tell each other --------------------------------------------------------------------------

    async def _ask(self, row: MirrorRow, asked: _Asked) -> None:
        """A source asks who is the disk."""
        volume, mine = self._volume(row), lineages.to_json(await self._know(row.source_id))
        fences, revoke = self._fences[row.source_id], bool(volume.fence_reason)
        answer = await self._request(row, "standing", lineage=mine, revoke=revoke, **self._progress(row))
        async with self._locks[row.target_id]:
            if self._replicas.remote_row_of(str(row.peer), row.target_id) is None:
                return
            if fences != self._fences[row.source_id] and answer.get("role") not in ("source", "superseded"):
                asked.session, asked.role = None, ""  # asked before it was fenced: to be asked again
                return
            await self._answered(row, asked, answer)

    async def _answered(self, row: MirrorRow, asked: _Asked, answer: dict[str, Any]) -> None:
        asked.role = str(answer.get("role"))
        match asked.role:
            case "source" | "superseded":
                theirs = lineages.from_json(answer.get("lineage"))
                where = str(answer.get("volume_id")), str(answer.get("name"))
                if not await self._hear(row, theirs, where, they_serve=asked.role == "source"):
                    asked.session = None  # it is another mirror now
                    return
                await self._serve(row, run=False)  # it has to become a replica first
            case "replica":
                asked.points = tuple(str(guid) for guid in answer.get("points") or ())
                await self._serve(row, run=True)
                await self._go_on_with(row, asked)
            case "none":
                await self._serve(row, run=True)

    async def standing(self, peer: str, message: dict[str, Any]) -> dict[str, Any]:
        """A source at a peer asks about its mirror to here. Whether it knows or not, who goes on is decided now."""
        replica_id = str(message.get("replica"))
        theirs = lineages.from_json(message.get("lineage"))
        mine = self._replicas.remote_row_of(peer, replica_id)
        if mine is not None:
            volume = self._volume(mine)
            known = self._lineages.get(mine.source_id) or await self._know(mine.source_id)
            if not lineages.goes_on(known, theirs, inherited=self._is_inherited(volume)):
                self._fence(volume, mine, theirs)
            async with self._locks[replica_id]:
                where = str(message.get("volume_id")), str(message.get("name"))
                if self._replicas.remote_row_of(peer, replica_id) is not None:
                    await self._hear(mine, theirs, where, they_serve=not message.get("revoke"))
        async with self._locks[replica_id]:
            return await self._my_standing(peer, replica_id, message)

    async def _my_standing(self, peer: str, replica_id: str, message: dict[str, Any]) -> dict[str, Any]:
        row = self._replicas.remote_row_of(peer, replica_id)
        if row is not None:
            volume = self._volume(row)
            return {
                "role": "superseded" if row.source_id in self._heard else "source",
                "serves": volume.fence_reason is None,
                "lineage": lineages.to_json(await self._know(row.source_id)),
                "volume_id": row.source_id,
                "name": volume.name,
            }
        replica = self._replicas.incoming.known(peer, replica_id)
        if replica is not None:
            if message.get("revoke"):
                await replica.end()
            replica.told = _told(message, self._pool.env.clock.boottime())
            return {"role": "replica", "points": [each.guid for each in self._replicas.incoming.points(replica.row)]}
        target = next((each for each in self._replicas.incoming.of_peer(peer) if each.replica_id == replica_id), None)
        return {"role": "none" if target is None else "away"}

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

    async def _tell_facts(self, row: MirrorRow, asked: _Asked) -> None:
        facts = await self._facts(row)
        if facts != asked.facts:
            await self._request(row, "facts", facts=facts)
            asked.facts = facts

    async def _facts(self, row: MirrorRow) -> str:
        volume = self._volume(row)
        luns = self._exposure.luns_of(volume.volume_id)
        targets = [self._exposure.target(lun.target) for lun in luns]
        initiators = {name for target in targets for name in target.initiators}
        return SourceFacts(
            volume_id=volume.volume_id,
            device_id=volume.device_id,
            lineage=await self._know(row.source_id),
            may_fail_over=self._may_fail_over(row),
            policy=row.state.get(POLICY_KEY, {}),
            port_groups=tuple(sorted(target.port_group for target in targets)),
            initiators=tuple(sorted(initiators)) if all(target.initiators for target in targets) else (),
            chap=any(target.chap.users for target in targets),
            mode=row.mode,
        ).serialize()

    # --- a source that hears of another ------------------------------------------------------------------------------

    async def _hear(
        self, row: MirrorRow, theirs: list[LineageEntry], where: tuple[str, str], *, they_serve: bool
    ) -> bool:
        """The other side is, or was, a source as well. Whether this one goes on."""
        volume = self._volume(row)
        mine = await self._know(row.source_id)
        if lineages.goes_on(mine, theirs, inherited=self._is_inherited(volume)):
            return True
        self._fence(volume, row, theirs)
        await self._pool.catalog.failover.release(
            row.source_id, theirs[-1].number, theirs[-1].guid, self._pool.env.clock.time()
        )
        await self._exposure.access.withhold(volume.device_id, str(volume.fence_reason))
        mirror = self._replicas.mirror_of(row.name)
        demoted = MirrorRecord.parse(row.state).synchronized is False if mirror is None else mirror.is_demoted
        if mirror is not None:
            await mirror.close()
        first = next((entry for entry in theirs if entry.number == mine[-1].number + 1), None)
        equal = first is not None and first.point is not None and await self._equals(volume, first.point)
        alone = self._replicas.table.is_only(row.name, volume)  # else others would be fed from what it follows
        if they_serve and alone and lineages.may_follow(mine, theirs, demoted=demoted, equals_point=lambda _: equal):
            await self._follow(row, theirs, where)
        else:
            self._replicas.set_idle(row.name, self._diverged(row))
        return False

    def _fence(self, volume: Volume, row: MirrorRow, theirs: list[LineageEntry]) -> None:
        self._stop_serving(volume, row, f"its replica at peer {row.peer} has taken its place")
        self._heard[row.source_id] = theirs

    def _stop_serving(self, volume: Volume, row: MirrorRow, why: str) -> int:
        """From this step on. Returns how often that has been, now."""
        volume.fence(why)
        self._cleared.discard(row.name)
        self._fences[row.source_id] += 1
        return self._fences[row.source_id]

    def _unasked(self, row: MirrorRow) -> list[str]:
        """Other mirrors of the same source whose targets may have taken its place, as far as is known."""
        others = [each for each in self._replicas.remote_rows() if each.source_id == row.source_id]
        return [
            each.name for each in others if each.name not in {row.name, *self._cleared} and self._may_fail_over(each)
        ]

    def is_cleared(self, name: str) -> bool:
        """Whether it is not because of that mirror that its source is not served."""
        return name in self._cleared

    def _diverged(self, row: MirrorRow) -> str:
        return (
            f"diverged: peer {row.peer} has promoted it, and this side may have acknowledged what is missing there;"
            f" twinvol replica resolve {row.name} --yield (follow it; what is here stays as a snapshot) or --serve"
        )

    async def _equals(self, volume: Volume, guid: str) -> bool:
        """Whether the volume's content is that recovery point, by maps."""
        store = volume.head.store
        point = store.snapshot_with(volume.volume_id, guid)
        if point is None or point.size_bytes != volume.size_bytes:
            return False
        async for _ in store.changed(point, volume.head):
            return False
        return True

    async def _follow(self, row: MirrorRow, theirs: Sequence[LineageEntry], where: tuple[str, str]) -> None:
        """Become the replica of the volume (its id and name) that has taken this one's place."""
        assert row.peer is not None
        volume, (their_id, their_name) = self._volume(row), where
        self._replicas.table.require_only(row.name, volume)
        if not their_id or not their_name:
            raise InvalidState(f"replica {row.name}", "without the other side's name", "an answer that has it")
        device_id = volume.device_id
        target = PeerTargetRow(row.target_id, row.peer, row.name, row.source_id, their_name, row.mode)
        await self._replicas.stop_remote(row.name)
        await self._drop_uncounted(volume, self._replicas.remote_row(row.name) or row)
        with self._replicas.deciding(row.name):
            ids = await uncancelled(self._pool.catalog.failover.follow(row.name, target, their_id, list(theirs)))
        self._pool.identified(ids)
        self._lineages[row.source_id] = list(theirs)
        self._heard.pop(row.source_id, None)
        self._asked.pop(row.name, None)
        self._replicas.now_replica(row.name, target)
        await self._exposure.turn(volume, device_id, their_id)
        await self._exposure.access.release(device_id)
        volume.unfence()
        await self._event(row.name, "warning", f"volume {volume.name} follows the one that is the disk at {row.peer}")

    async def _drop_uncounted(self, volume: Volume, row: MirrorRow) -> None:
        """What is no recovery point on record may not be what the other side has under its GUID."""
        record, store = MirrorRecord.parse(row.state), volume.head.store
        counting = {point.guid for point in record.points} | {record.common}
        prefix = point_prefix(row.target_id)
        for point in store.snapshots(volume.volume_id):
            if point.name.startswith(prefix) and point.guid not in counting:
                await store.delete_snapshot(point)

    async def _serve(self, row: MirrorRow, *, run: bool) -> None:
        """This side is the disk, and may be used. ``run``: the other one is its target; else that claims nothing."""
        volume, fences = self._volume(row), self._fences[row.source_id]
        if self._unasked(row):
            self._cleared.add(row.name)
            if row.source_id in self._heard:
                return
        elif volume.fence_reason is not None:
            await self._pool.catalog.failover.revoke(row.source_id)
            if fences == self._fences[row.source_id]:
                self._heard.pop(row.source_id, None)
        if run:
            await self._replicas.begin(row.name)  # what the target may still claim is over when it returns
        else:
            await self._replicas.demote(row.name)
        if fences != self._fences[row.source_id]:
            return  # it has been heard meanwhile that another one goes on
        self._cleared.add(row.name)
        if volume.fence_reason is None or self._unasked(row):
            return
        volume.unfence()
        await self._exposure.access.release(volume.device_id)
        mirror = self._replicas.mirror_of(row.name)
        if run and mirror is not None and mirror.is_at_rest and MirrorRecord.parse(row.state).wanted == "active":
            await mirror.resync()

    async def _go_on_with(self, row: MirrorRow, asked: _Asked) -> None:
        """The other side has become the replica of this one: after a planned exchange the mirror goes on by itself."""
        mirror = self._replicas.mirror_of(row.name)
        if mirror is not None and row.state.get("wanted") == FAILED_OVER and row.state.get(PLANNED_KEY):
            await self._go_back(row, mirror, asked)

    async def _go_back(self, row: MirrorRow, mirror: Mirror, asked: _Asked) -> None:
        """Rounds to what was the source begin, unless they have: an answer and an operator may say so at once."""
        if mirror.is_at_rest and row.state.get("wanted") == FAILED_OVER:
            await mirror.agree_on(asked.points)
        if mirror.is_at_rest:
            try:
                await mirror.fail_back()
            except InvalidState:
                if mirror.is_at_rest:
                    raise

    # --- handing over, planned ---------------------------------------------------------------------------------------

    async def hand_over(self, peer: str, replica_id: str) -> dict[str, Any]:
        """A peer wants its replica to be the disk: see ``give``."""
        row = self._replicas.remote_row_of(peer, replica_id)
        if row is None:
            raise NotFound("mirror to this peer", replica_id)
        await self.give(row.name)
        return {}

    async def give(self, name: str) -> None:
        """Hand the disk over to the replica at the peer, without loss, and follow it.

        Raises InvalidState, InUse: nothing has changed. What the peer answers, PeerUnreachable: nobody knows; this side
        stays unavailable until it has been asked.
        """
        row = self._replicas.remote_row(name)
        if row is None:
            raise NotFound("replica to a peer", name)
        async with self._locks[row.target_id]:
            mirror = self._replicas.running(name)
            self._require_givable(row, mirror)
            # Who has just become a replica may not have heard yet what it needs to take over.
            await self._request(row, "facts", facts=await self._facts(row))
            volume = mirror.source
            why, fences = f"it is handed over to peer {row.peer}", self._fences[row.source_id]
            await self._exposure.access.withhold(volume.device_id, why)
            try:
                point = await self._seal(mirror)
                if fences != self._fences[row.source_id]:
                    raise InvalidState(f"replica {name}", f"the disk, as peer {row.peer} says", "one that is none yet")
                fences = self._stop_serving(volume, row, why)
                entry = await self._released(row, point)
            except BaseException:
                await self._take_back(row, mirror, fences)
                raise
            try:
                answer = await self._replicas.link_of(name).ask("promote", point=point, entry=lineages.to_json([entry]))
            except BaseException:  # whatever it says, it may have taken over: it is asked, and until then nobody serves
                self._asked.pop(name, None)
                self._wake.set()
                raise
            theirs = [*await self._know(row.source_id), entry]
            await self._follow(row, theirs, (str(answer.get("volume_id")), str(answer.get("name"))))

    def _require_givable(self, row: MirrorRow, mirror: Mirror) -> None:
        source = mirror.source
        source.require_usable()
        if not self._may_fail_over(row):
            raise InvalidState(f"replica {row.name}", "made with --no-failover", "one that may fail over")
        self._replicas.table.require_only(row.name, source)
        self._pool.groups.require_free(source.volume_id, source.name)
        self._pool.jobs.require_unread(source.name)

    async def _seal(self, mirror: Mirror) -> str:
        source = mirror.source
        source.set_read_only(True)
        try:
            async with source.quiesced():
                pass  # what was admitted before has ended
            return await mirror.bring_all("handed over")
        finally:
            source.set_read_only(self._pool.row(source).read_only)

    async def _released(self, row: MirrorRow, point: str) -> LineageEntry:
        """The identity is released, durably, to that entry; the target can be told so over a connection of its own."""
        mine, now = await self._know(row.source_id), self._pool.env.clock.time()
        entry = LineageEntry(mine[-1].number + 1, str(uuid.uuid4()), now, point, lossless=True)
        await self._replicas.link_of(row.name).connect()
        await self._pool.catalog.failover.release(row.source_id, entry.number, entry.guid, now)
        return entry

    async def _take_back(self, row: MirrorRow, mirror: Mirror, fences: int) -> None:
        """``fences``: as known when it was decided to hand it over: who has heard since that another one goes on does
        not serve."""
        volume = mirror.source
        if fences == self._fences[row.source_id]:
            await self._pool.catalog.failover.revoke(row.source_id)
        if fences != self._fences[row.source_id]:
            self._asked.pop(row.name, None)
            self._wake.set()
            return
        volume.unfence()
        self._cleared.add(row.name)
        await self._exposure.access.release(volume.device_id)
        with contextlib.suppress(EngineError):  # the first error is the one to report
            await mirror.resync()

    async def promote(self, replica: IncomingReplica, connection: int, message: dict[str, Any]) -> dict[str, Any]:
        """The source has released the disk to this replica, which has all of it in that recovery point."""
        (entry,) = lineages.from_json(message.get("entry"))
        point = entry.point
        async with self._locks[replica.row.replica_id]:
            with replica.working(connection):
                if point is None or await replica.link.changed(point, None):
                    raise InvalidState(f"replica {replica.row.name}", "another content than the point", "the same")
            async with replica.taken():
                volume = await self._take_over(replica, entry, planned=True)
        return {"volume_id": volume.volume_id, "name": volume.name}

    # --- taking over -------------------------------------------------------------------------------------------------

    async def fail_over(self, name: str, *, accept_loss: bool, fenced: bool) -> Job:
        """Have the replica here be the disk. Without flags its source hands it over. The job's result says what was.

        Raises InvalidState: what is missing for that, in words for the operator.
        """
        row = self._replicas.incoming.named(name)
        done = self._replicas.remote_row(name)
        if row is None and done is not None and PLANNED_KEY in done.state:  # it has taken over before
            return await self._job("failover", name, lambda: self._show_again(done))
        replica = self._single(name)
        if not (accept_loss or fenced):
            return await self._job("failover", name, lambda: self._ask_for_it(replica.row))
        self.require_forced(replica, accept_loss=accept_loss, fenced=fenced)
        return await self._job("failover", name, lambda: self._force(replica, accept_loss=accept_loss))

    def _single(self, name: str) -> IncomingReplica:
        """The replica here that may be the disk by itself. Raises NotFound; InvalidState: it is one of a group."""
        incoming = self._replicas.incoming
        row = incoming.named(name)
        replica = None if row is None else incoming.replica_of(row)
        if row is None or replica is None:
            raise NotFound("replica for a peer", name)
        group = incoming.group_of(row.replica_id)
        if group is not None:
            raise InvalidState(
                f"replica {name}",
                f"part of replica group {group.name}, whose others would be of another instant",
                f"a replica of its own; what the group has is told by: twinvol group replica points {group.name}",
            )
        return replica

    def _facts_of(self, replica: IncomingReplica) -> SourceFacts:
        """Raises InvalidState: without them nobody can take over."""
        facts = SourceFacts.parse(replica.row.facts) if replica.row.facts else None
        if facts is None or not facts.may_fail_over:
            name = replica.row.name
            raise InvalidState(f"replica {name}", "not known well enough, or made with --no-failover", "a source")
        return facts

    def require_forced(self, replica: IncomingReplica, *, accept_loss: bool, fenced: bool) -> None:
        """Raises InvalidState: the operator has not said what nobody else can know."""
        row = replica.row
        if not fenced:
            raise InvalidState(
                f"replica {row.name}",
                f"unable to know whether its source at peer {row.peer} still serves hosts",
                "--fenced, if you have seen to it that it does not",
            )
        if not accept_loss and not self.holds_lease(replica):
            raise InvalidState(
                f"replica {row.name}",
                "without a lease, so that acknowledged writes may be missing",
                f"--accept-loss (twinvol replica failover {row.name} --plan says what)",
            )

    def holds_lease(self, replica: IncomingReplica) -> bool:
        """Whether it has everything that was acknowledged, whatever its source does."""
        return replica.lease.held(self._pool.env.clock.boottime())

    async def _ask_for_it(self, row: PeerTargetRow) -> dict[str, Any]:
        assert self._peers is not None
        try:
            await self._peers.client(row.peer).request("hand_over", replica=row.replica_id)
        except PeerUnreachable as error:
            raise InvalidState(
                f"the source of replica {row.name}",
                f"out of reach ({error})",
                "--fenced, and --accept-loss where writes may be missing"
                f" (twinvol replica failover {row.name} --plan says what)",
            ) from error
        taken = self._replicas.remote_row(row.name)
        if taken is None:
            raise InvalidState(f"replica {row.name}", "not promoted", "what its source has answered")
        return await self._show_again(taken)

    async def _force(self, replica: IncomingReplica, *, accept_loss: bool) -> dict[str, Any]:
        name = replica.row.name
        async with self._locks[replica.row.replica_id]:
            if self._replicas.incoming.replica_of(replica.row) is not replica:
                raise InvalidState(f"replica {name}", "no replica any more", "one that is")
            facts = self._facts_of(replica)  # a refusal does not cut its source off
            self._require_unshown(replica.volume)
            async with replica.taken():
                # Nothing of the source arrives any more: what it lacks it will lack.
                lossless = self.holds_lease(replica) and self._replicas.incoming.is_whole(replica.row)
                if not lossless and not accept_loss:
                    raise InvalidState(f"replica {name}", "without a lease since a moment ago", "--accept-loss")
                point = await self._sealed(replica)
                now = self._pool.env.clock.time()
                entry = LineageEntry(facts.lineage[-1].number + 1, str(uuid.uuid4()), now, point, lossless)
                await self._take_over(replica, entry, planned=False)
        self._wake.set()
        row = self._replicas.remote_row(name)
        assert row is not None
        return await self._show_again(row) | {"lossless": lossless, "point": point}

    def _require_unshown(self, volume: Volume) -> None:
        """Raises InUse. Also before its content is changed for it."""
        for lun in self._exposure.luns_of(volume.volume_id):
            raise InUse(f"volume {volume.name} is shown as another disk by target {lun.target}; remove that LUN first")

    async def _sealed(self, replica: IncomingReplica) -> str:
        """The recovery point that the replica goes on from; its content is that afterwards."""
        row, volume = replica.row, replica.volume
        points = self._replicas.incoming.points(row)
        if not points:
            raise InvalidState(
                f"replica {row.name}", "without a complete recovery point", "its first copy to be complete"
            )
        newest = points[-1]
        if await replica.link.changed(newest.guid, None):
            if self._replicas.incoming.is_whole(row) and not replica.fractured:
                guid = str(uuid.uuid4())
                await replica.link.mark(guid)
                return guid
            async with volume.quiesced():  # what it holds stays, as a snapshot
                volume.rebind(await volume.head.store.rollback(volume.head, newest))
        return newest.guid

    async def _take_over(self, replica: IncomingReplica, entry: LineageEntry, *, planned: bool) -> Volume:
        """See the module. Nothing of the source arrives any more."""
        row, volume = replica.row, replica.volume
        facts = SourceFacts.parse(row.facts)
        self._require_unshown(volume)
        with contextlib.suppress(EngineError):
            await replica.link.abort_staging()
        points = tuple(RecoveryPoint(each.guid, each.created_at) for each in self._replicas.incoming.points(row))
        reason = f"it was the replica of {row.source} at peer {row.peer}"
        record = MirrorRecord(wanted=FAILED_OVER, reason=reason, points=points)
        record.common = points[-1].guid if points else None
        state = record.serialize() | {POLICY_KEY: facts.policy, PLANNED_KEY: planned}
        mirror = MirrorRow(row.name, volume.volume_id, row.replica_id, row.mode, state, row.peer)
        lineage = [*facts.lineage, entry]
        tables = self._pool.catalog.failover
        ids = await uncancelled(tables.take_over(row, facts.volume_id, facts.device_id, lineage, mirror))
        self._pool.identified(ids)
        self._lineages[volume.volume_id] = lineage
        assert self._peers is not None
        self._replicas.now_source(mirror, row, self._peers)
        await self._exposure.turn(volume, facts.device_id, None)
        await self._show(mirror, facts)
        how = "as handed over" if planned else f"unplanned, {'without loss' if entry.lossless else 'accepting loss'}"
        await self._event(row.name, "warning", f"volume {volume.name} is the disk now, {how}")
        return volume

    async def _show(self, row: MirrorRow, facts: SourceFacts) -> None:
        """Show the disk, unless that is done already, or would need secrets that only the old side has."""
        volume = self._volume(row)
        if self._exposure.luns_of(volume.volume_id) or not facts.port_groups:
            return
        if facts.chap:
            text = f"volume {volume.name} is not shown: its targets asked for CHAP; make one here that does"
            await self._event(row.name, "error", text)
            return
        await self._exposure.expose_to(volume, facts.initiators, facts.port_groups)

    async def _show_again(self, row: MirrorRow) -> dict[str, Any]:
        volume = self._volume(row)
        luns = self._exposure.luns_of(volume.volume_id)
        return {
            "volume": volume.name,
            "target": luns[0].target if luns else None,
            "lun": luns[0].lun if luns else None,
            "serial": volume.identity.serial,
        }

    # --- what it would mean ------------------------------------------------------------------------------------------

    def plan(self, name: str) -> FailoverPlan:
        """See ``engine.api.failover``. Raises NotFound."""
        from engine.api import FailoverPlan  # late: see there

        incoming, clock = self._replicas.incoming, self._pool.env.clock
        replica = self._single(name)
        row = replica.row
        points, told = incoming.points(row), replica.told
        point_at = points[-1].created_at if points else None
        lossless, boot, wall = self.holds_lease(replica), clock.boottime(), clock.time()
        exact_until = replica.exact_until if incoming.is_whole(row) else None
        until = complete_until(wall=wall, boot=boot, exact_until=exact_until, told=told, point_at=point_at)
        reachable = self._peers is not None and self._peers.reaches(row.peer)
        missing_bytes = None if told is None else told.missing_bytes
        needs = ["--fenced"] if lossless else ["--accept-loss", "--fenced"]
        return FailoverPlan(
            replica=name,
            volume=replica.volume.name,
            source=f"{row.peer}:{row.source}",
            peer=row.peer,
            mode=row.mode,
            reachable=reachable,
            lossless=lossless,
            point=points[-1].guid if points else None,
            point_at=point_at,
            complete_until=until if points else None,
            age_seconds=None if until is None or not points else max(0.0, wall - until),
            missing_bytes=0 if lossless else missing_bytes,
            reported_at=None if told is None else wall - (boot - told.at),
            needs=needs if points else [],
            reason=meaning(reachable=reachable, lossless=lossless, has_point=bool(points)),
        )

    def _progress(self, row: MirrorRow) -> dict[str, Any]:
        """What the target is told of what it lacks."""
        mirror, now = self._replicas.mirror_of(row.name), self._pool.env.clock.boottime()
        written = self._exposure.written_bytes(self._volume(row).device_id)
        known = self._written[row.name]
        if written is not None:
            known.sample(now, written)
        lag_s = None if mirror is None else mirror.figures.lag_s
        missing = (
            None if lag_s is None else 0 if mirror is not None and mirror.figures.is_exact else known.since(now - lag_s)
        )
        return {"lag_s": lag_s, "missing_bytes": missing}

    # --- failing back, resolving -------------------------------------------------------------------------------------

    async def fail_back(self, name: str) -> Job:
        """Bring what was the source up to date, and hand the disk back to it."""
        row = self._replicas.remote_row(name)
        if row is None:
            raise InvalidState(f"replica {name}", "not the disk here", "to be said at the side that is the disk")
        mirror = self._replicas.running(name)

        async def work() -> dict[str, Any]:
            if mirror.is_at_rest:
                asked = await self._follower(row)
                await self._go_back(row, mirror, asked)
            await mirror.wait_synchronized()
            await self.give(name)
            return {"volume": mirror.source.name, "peer": row.peer}

        return await self._job("failback", name, work)

    async def _follower(self, row: MirrorRow) -> _Asked:
        """The other side, once it follows. One that came back a moment ago is waited for.

        Raises InvalidState: it does not follow, or is out of reach.
        """
        asked, why = self._asked.setdefault(row.name, _Asked()), ""
        deadline = asyncio.get_running_loop().time() + FOLLOW_S
        while True:
            try:
                await self._ask(row, asked)
                why = asked.role
            except PeerUnreachable as error:
                why = str(error)
            if asked.role == "replica" and why == asked.role:
                return asked
            if asked.role == "superseded" or asyncio.get_running_loop().time() > deadline:
                wanted = f"one that follows ({row.peer}: twinvol replica show {row.name})"
                raise InvalidState(f"the other side of replica {row.name}", f"no replica: {why}", wanted)
            await asyncio.sleep(LOOK_S)

    async def resolve(self, name: str, *, serve: bool, give_way: bool) -> None:
        """An operator decides for a volume that is not served: it goes on, or it follows the other side."""
        if serve == give_way:
            raise InvalidArgument("say one of --serve and --yield")
        row = self._replicas.remote_row(name)
        if row is None:
            raise InvalidState(f"replica {name}", "no source here", "to be said where its volume waits")
        answer: dict[str, Any] = {}
        if give_way:  # asked without the lock: the other side may be asking as well
            answer = await self._request(row, "standing", lineage=lineages.to_json(await self._know(row.source_id)))
        async with self._locks[row.target_id]:
            volume = self._volume(row)
            if volume.fence_reason is None:
                raise InvalidState(f"volume {volume.name}", "served", "one that waits for a decision")
            if serve:
                await self._decide_for(row)
            else:
                await self._give_way(self._replicas.remote_row(name) or row, answer)

    async def _decide_for(self, row: MirrorRow) -> None:
        volume, fences = self._volume(row), self._fences[row.source_id]
        await self._replicas.stop_remote(row.name)
        self._replicas.set_idle(row.name, f"peer {row.peer} is to follow first, or to be asked")
        row = self._replicas.remote_row(row.name) or row
        for each in [each for each in self._replicas.remote_rows() if each.source_id == row.source_id]:
            if self._replicas.mirror_of(each.name) is None:
                await self._outwait(each)
        mine, heard = await self._know(row.source_id), self._heard.get(row.source_id, [])
        released = (await self._pool.catalog.failover.releases()).get(row.source_id, (0, ""))
        number = max(mine[-1].number, released[0], heard[-1].number if heard else 0) + 1
        entry = LineageEntry(number, str(uuid.uuid4()), self._pool.env.clock.time(), None, lossless=False)
        if fences != self._fences[row.source_id]:
            raise InvalidState(f"peer {row.peer}", "the disk, as it has said meanwhile", "a decision that knows it")
        await uncancelled(self._pool.catalog.failover.go_on(row.source_id, entry))
        self._lineages[row.source_id] = [*mine, entry]
        if fences != self._fences[row.source_id]:
            return  # heard in this very moment: who goes on is decided by what is on record
        self._heard.pop(row.source_id, None)
        volume.unfence()
        await self._exposure.access.release(volume.device_id)
        await self._event(row.name, "warning", f"volume {volume.name} goes on as the disk, as the operator has said")

    async def _outwait(self, row: MirrorRow) -> None:
        """Return when the target of a mirror that does not run claims nothing any more, and that is recorded."""
        if not MirrorRecord.parse(row.state).synchronized:
            return
        policy = MirrorPolicy.parse(row.state.get(POLICY_KEY, {}))
        over_at = self._pool.env.clock.boottime() + wait_s(length_s(policy.budget_s))
        while (left := over_at - self._pool.env.clock.boottime()) > 0:  # noqa: ASYNC110 - a clock
            await asyncio.sleep(left)
        await self._replicas.demote(row.name)

    async def _give_way(self, row: MirrorRow, answer: dict[str, Any]) -> None:
        """``answer``: of the peer, asked who is the disk."""
        if answer.get("role") != "source" or not answer.get("serves"):
            was = "waiting for a decision as well" if answer.get("role") == "source" else f"{answer.get('role')}"
            raise InvalidState(f"peer {row.peer}", was, "the disk itself")
        theirs = lineages.from_json(answer.get("lineage"))
        volume = self._volume(row)
        store, taken = volume.head.store, {each.name for each in self._pool.snapshots(volume)}
        number = next(n for n in range(1, len(taken) + 2) if f"diverged-{n}" not in taken)
        await store.snapshot(volume.head, f"diverged-{number}")
        await self._follow(row, theirs, (str(answer.get("volume_id")), str(answer.get("name"))))

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _know(self, volume_id: str) -> list[LineageEntry]:
        known = self._lineages.get(volume_id)
        if known is None:
            known = self._lineages[volume_id] = await self._pool.catalog.identities.lineage(volume_id)
        return known

    async def _request(self, row: MirrorRow, op: str, **fields: Any) -> dict[str, Any]:
        assert self._peers is not None
        assert row.peer is not None
        about = {"replica": row.target_id, "volume_id": row.source_id, "name": self._volume(row).name}
        return await self._peers.client(row.peer).request(op, **about, **fields)

    def _volume(self, row: MirrorRow) -> Volume:
        return self._pool.by_id(row.source_id)

    def _is_inherited(self, volume: Volume) -> bool:
        return volume.device_id != volume.volume_id

    def superseded(self, name: str) -> None:
        """The peer says that the target has taken the place of the source, in this step: nobody is acknowledged any
        more before it was asked. Where an operator has decided meanwhile no mirror runs that could hear it."""
        row = self._replicas.remote_row(name)
        if row is not None:
            self._stop_serving(self._volume(row), row, f"its replica at peer {row.peer} has taken its place")
            self._asked.pop(name, None)
            self._wake.set()

    def _is_promoted(self, peer: str, replica_id: str) -> bool:
        return self._replicas.remote_row_of(peer, replica_id) is not None

    def _may_fail_over(self, row: MirrorRow) -> bool:
        return MirrorPolicy.parse(row.state.get(POLICY_KEY, {})).failover

    async def _job(self, kind: str, name: str, work: Callable[[], Awaitable[dict[str, Any]]]) -> Job:
        async def run(_: Job) -> dict[str, Any]:
            return await work()

        return await self._pool.jobs.start(kind, name, run)

    async def _event(self, name: str, severity: str, text: str) -> None:
        await self._pool.catalog.add_event(self._pool.env.clock.time(), severity, f"replica {name}", text)


def _told(message: dict[str, Any], now: float) -> Told:
    """What a source says of what its target lacks. Figures that are none are not known."""
    lag_s, missing = message.get("lag_s"), message.get("missing_bytes")
    return Told(
        now,
        float(lag_s) if isinstance(lag_s, int | float) and 0 <= lag_s < LAG_MAX_S else None,
        missing if isinstance(missing, int) and missing >= 0 else None,
    )
