"""The mirror of a consistency group: several volumes whose targets are one instant of all of them.

Its states, modes and promises are those of one mirror (``engine.mirror_run``); a round, a mark, a stream and the way to
the target are of all members at once (REPLICATION sections 1 to 5, with STORE section 4 for the instant):

    flip      all members in one step of the loop, under one GUID; the streams of all begin in the same step
    plan,     each member by itself, into its own staging area and ledger (``engine.mirror_round``)
    copy
    switch    when *all* are whole: each member's target, one after the other
    advance   the record says that the point is complete, the target is told so, and only then do older ones go

Invariants:

* **A group's recovery point is complete or does not exist.** It exists because the record says so (and, at a peer, the
  row there), which is written when every member's target has it. Until then the one before stays whole on all sides.
  A crash between two members' switches shows nothing torn: the older point is still the group's, and the next round
  switches the rest.
* **An interrupted round goes on for all members or for none**: with one GUID, those who have switched wait for the
  others; one that has lost its part makes all begin anew.
* **All leave in one step.** The stream of a member that cannot go on takes the others with it in the step in which it
  leaves, before anybody is acknowledged. So what the targets hold then is one instant, and stays so. Hosts are
  acknowledged alone only after the one record of the group is durable, and after every member's target has dropped its
  lease.
* The group has everything only while every member has.
* Marks hold all streams in the step in which all sources flip.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from engine.errors import EngineError, InvalidState, NotSupported, TimedOut
from engine.ledger import Ledger
from engine.mirror import compared
from engine.mirror_group_links import GroupLink, GroupState, GroupStream, run_all
from engine.mirror_operations import MirrorOperations
from engine.mirror_record import MirrorPolicy, MirrorRecord, RecoveryPoint, retained
from engine.mirror_round import Rounds, Shipped
from engine.mirror_stream import MirrorStream, StreamMode
from engine.stores import GroupStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
    from pathlib import Path

    from engine import proof
    from engine.copy_job import CopyControl
    from engine.copy_state import CopyMode
    from engine.files import StoreEnv
    from engine.links import LinkState, MirrorLink
    from engine.stores import Flip, Frozen
    from engine.volume import Volume

T = TypeVar("T")

FLIP_TRIES = 100
"""Rounds of making room in one file after the other."""


@dataclass(frozen=True, slots=True)
class Member:
    """One volume of a mirrored group. ``name``: of its own replica, which the target knows it by. ``prefix``: of the
    names of the source's recovery points; by default it follows from the name."""

    name: str
    source: Volume
    link: MirrorLink
    ledger_path: Path
    prefix: str | None = None


@dataclass(slots=True)
class GroupRecord:
    """What a mirrored group knows across restarts: of the whole, and of each member's part of the round."""

    group: MirrorRecord = field(default_factory=MirrorRecord)
    members: list[MirrorRecord] = field(default_factory=list)

    @classmethod
    def new(cls, members: int) -> GroupRecord:
        return cls(MirrorRecord(), [MirrorRecord() for _ in range(members)])

    def serialize(self) -> dict[str, Any]:
        return {"group": self.group.serialize(), "members": [record.serialize() for record in self.members]}

    @classmethod
    def parse(cls, values: dict[str, Any]) -> GroupRecord:
        return cls(MirrorRecord.parse(values["group"]), [MirrorRecord.parse(each) for each in values["members"]])


class GroupRounds:
    """Rounds of all members as one. Fulfils ``engine.mirror_parts.MirrorRounds``.

    Args:
        record: this keeps ``common``, ``round_source`` and ``points`` of the group; members keep their ``round_base``.
        completed: tells the target, durably, that a recovery point of the group is complete there.
    """

    def __init__(
        self,
        name: str,
        members: Sequence[Rounds],
        env: StoreEnv,
        policy: MirrorPolicy,
        *,
        record: MirrorRecord,
        save: Callable[[], Awaitable[None]],
        in_use: Callable[[], Collection[str]],
        completed: Callable[[RecoveryPoint], Awaitable[None]],
    ) -> None:
        self.members = members
        self.count = 0
        self.resumed = 0
        self.started: float | None = None
        self.pinned: set[str] = set()
        for member in members:
            member.pinned = self.pinned
        self._what = f"replica group {name}"
        self._env = env
        self._policy = policy
        self._record = record
        self._save = save
        self._in_use = in_use
        self._completed = completed
        self._told: str | None = None
        """The point that the target was told of."""
        self._instant: float | None = None
        self._stopped = False
        self._busy = asyncio.Lock()

    # --- what it is -----------------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        return sum(member.size_bytes for member in self.members)

    @property
    def written_bytes(self) -> int:
        return sum(member.written_bytes for member in self.members)

    @property
    def equal_bytes(self) -> int:
        return sum(member.equal_bytes for member in self.members)

    @property
    def instant(self) -> float | None:
        """See ``Rounds``."""
        if self._instant is None:
            newest = next((point for point in self._record.points if point.guid == self._record.common), None)
            if newest is not None:
                self._instant = self.members[0].boot_instant(newest.at)
        return self._instant

    @property
    def progress(self) -> tuple[int, int]:
        parts = [member.progress for member in self.members]
        return sum(done for done, _ in parts), sum(total for _, total in parts)

    @property
    def left(self) -> tuple[int, int] | None:
        parts = [part for member in self.members if (part := member.left) is not None]
        return (sum(left for left, _ in parts), sum(total for _, total in parts)) if parts else None

    # --- driven by the mirror ---------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._stopped = False
        for member in self.members:
            member.begin()

    def stop(self) -> None:
        self._stopped = True
        for member in self.members:
            member.stop()

    def go_on(self) -> None:
        """Raises InvalidState after ``stop``."""
        if self._stopped:
            raise InvalidState(self._what, "stopping", "running")

    async def run(
        self, state: GroupState, new_streams: Callable[[GroupState], Sequence[MirrorStream]] | None
    ) -> Shipped:
        """One round of all. ``new_streams``: as ``Rounds.run``."""
        async with self._busy:
            return await self._run(state, new_streams)

    async def _run(
        self, state: GroupState, new_streams: Callable[[GroupState], Sequence[MirrorStream]] | None
    ) -> Shipped:
        self.count += 1
        commons, before = await self._commons(state), self.instant
        points = self._resumable(state)
        resumed = points is not None
        if points is None:
            await self._each(member.drop_staging() for member in self.members)
            points = await self._flip(None if new_streams is None else lambda: new_streams(state))
            self._record.round_source = points[0].guid
        else:
            self.resumed += 1
            self.started = self.members[0].boot_instant(points[0].created_at)
        instant = self.started
        assert instant is not None
        guid = points[0].guid
        # Those who have switched already when the round before was interrupted have nothing left to do.
        parts = [
            (member, point, common)
            for member, point, common, there in zip(self.members, points, commons, state.members, strict=True)
            if guid not in there.points
        ]
        try:
            sizes: list[int] = await self._each(
                self._bring(member, point, common, resumed) for member, point, common in parts
            )
            await self._switch([member for member, _, _ in parts], guid)
            await self._advance(guid, points[0].created_at, instant)
            for member in self.members:
                await Ledger.discard(self._env.control_files, member.ledger_path)
        finally:
            self.started = None
        known = before is not None and all(common is not None for common in commons)
        return Shipped(instant, instant - before if known and before is not None else None, sum(sizes))

    async def is_current(self, state: GroupState) -> bool:
        """See ``Rounds.is_current``: nothing differs at any member from the group's own point. One that has switched to
        a point which the others have not may differ from nothing, and the group has none such to show."""
        async with self._busy:
            now = self._env.clock.boottime()
            commons = await self._commons(state)
            for member, there, common in zip(self.members, state.members, commons, strict=True):
                if not await member.is_current_since(common, there):
                    return False
            if self._told != self._record.common:
                await self._finish()
            self._instant = now
            return True

    async def mark(self, stream: GroupStream, *, release: bool) -> None:
        """See ``Rounds.mark``: at one place in the streams of all."""
        async with self._busy:
            await run_all(member.source.flush() for member in self.members)
            await self._make_room()
            guid, instant = str(uuid.uuid4()), self._env.clock.boottime()
            stream.hold()
            flips = await self._flipped(guid)
            follow = asyncio.get_running_loop().create_task(self._mark_targets(stream, guid, release=release))
            try:
                points = await self._seal(flips)
                await follow
            except BaseException:
                await asyncio.wait([follow])
                if not follow.cancelled():
                    follow.exception()  # the first error is the one to report
                raise
            if stream.mode is not (StreamMode.SYNC if release else StreamMode.HELD):
                raise InvalidState(self._what, stream.mode.value, "synchronous")
            await self._advance(guid, points[0].created_at, instant)

    async def _mark_targets(self, stream: GroupStream, guid: str, *, release: bool) -> None:
        await stream.drained()
        await run_all(member.link.mark(guid) for member in self.members)
        if release:
            stream.release()

    async def thin(self, limit_bytes: int) -> int:
        """See ``Rounds.thin``; the limit is of all together."""
        if self._busy.locked():
            return 0
        async with self._busy:
            return sum([await member.thin(limit_bytes // len(self.members)) for member in self.members])

    async def forget(self) -> None:
        for member in self.members:
            await member.forget()

    async def give_up(self) -> None:
        """See ``Rounds.give_up``."""
        async with self._busy:
            self._record.round_source = None
            for member in self.members:
                await member.give_up()

    # --- the parts of a round, in their order -------------------------------------------------------------------------

    async def _commons(self, state: GroupState) -> list[str | None]:
        """C, of each member: None where one of its sides has it no more."""
        record, switched = self._record, self._record.round_source
        for member in self.members:
            await member.read_note()
        if switched is not None and switched != record.common and switched in state.points:
            points = [member.source_point(switched) for member in self.members]
            if points[0] is not None and all(points):
                record.common = switched  # the last round's switches were durable, its record was not
                record.points += (RecoveryPoint(switched, points[0].created_at),)
                self._instant = None
        for member in self.members:
            member.record.common = record.common
        return [
            record.common if record.common in there.points and member.since(record.common) is not None else None
            for member, there in zip(self.members, state.members, strict=True)
        ]

    def _resumable(self, state: GroupState) -> list[Frozen] | None:
        """The interrupted round's points, if every member has its part of that round, or has switched to it."""
        guid = self._record.round_source
        if guid is None or guid == self._record.common:
            return None
        found = []
        for member, there in zip(self.members, state.members, strict=True):
            point, base = member.source_point(guid), member.record.round_base
            is_open = there.staging and member.record.round_source == guid and (base is None or base in there.points)
            if point is None or not (guid in there.points or is_open):
                return None
            found.append(point)
        return found

    async def _flip(self, new_streams: Callable[[], Sequence[MirrorStream]] | None) -> list[Frozen]:
        """S of all, and in the same step of the loop the streams of all later writes."""
        for member in self.members:
            member.source.require_usable()
        await self._make_room()
        self.go_on()
        if new_streams is not None:
            for member, stream in zip(self.members, new_streams(), strict=True):
                member.source.attach(stream)
        self.started = self._env.clock.boottime()
        return await self._seal(await self._flipped(str(uuid.uuid4())))

    async def _make_room(self) -> None:
        """Return in the step of the loop in which every file has room for its members' flips, and none's content is
        being replaced."""
        stores = self._by_store()
        for _ in range(FLIP_TRIES):
            for member in self.members:
                while member.source.is_quiesced:
                    await member.source.resumed()
            for store, members in stores.items():
                await store.prepare_flips(len(members))
            quiet = not any(member.source.is_quiesced for member in self.members)
            if quiet and all(store.ready_to_flip(len(members)) for store, members in stores.items()):
                return
        raise TimedOut("the members' journals have no room at the same time; try again when less is written")

    async def _flipped(self, guid: str) -> dict[GroupStore, list[Flip]]:
        """The instant: nothing is awaited before all members have flipped. Raises what the first refusal is."""
        flips: dict[GroupStore, list[Flip]] = {}
        try:
            for store, members in self._by_store().items():
                flips[store] = []
                for member in members:
                    name = member.point_name(guid)
                    flips[store].append(store.flip(member.source.head, name, guid=guid, hidden=True))
        except EngineError:
            await self._drop(flips)
            raise
        return flips

    async def _seal(self, flips: dict[GroupStore, list[Flip]]) -> list[Frozen]:
        """The points of all members, durably; in the members' order."""
        try:
            await run_all(store.prepare(made) for store, made in flips.items())
        except BaseException:
            await self._drop(flips)
            raise
        found = {}
        for store, made in flips.items():
            await store.accept([flip.snapshot for flip in made])
            found.update({flip.snapshot.volume_id: flip.snapshot for flip in made})
        await run_all(member.source.head.flush() for member in self.members)
        return [found[member.source.volume_id] for member in self.members]

    async def _drop(self, flips: dict[GroupStore, list[Flip]]) -> None:
        for store, made in flips.items():
            try:
                await store.drop([flip.snapshot for flip in made])
            except EngineError:
                continue  # it does so when it is opened again

    def _by_store(self) -> dict[GroupStore, list[Rounds]]:
        stores: dict[GroupStore, list[Rounds]] = {}
        for member in self.members:
            store = member.source.head.store
            if not isinstance(store, GroupStore):
                raise NotSupported(f"volume {member.source.name} is in a store that cannot be part of a group")
            stores.setdefault(store, []).append(member)
        return stores

    async def _bring(self, member: Rounds, point: Frozen, common: str | None, resumed: bool) -> int:
        self.go_on()
        return await member.copy(point, await member.plan(point, common, resumed=resumed))

    async def _switch(self, members: Sequence[Rounds], guid: str) -> None:
        self.go_on()
        await run_all(member.link.commit_staging(guid) for member in members)

    async def _advance(self, guid: str, at: float, instant: float) -> None:
        """The point is on all sides of all members, durably and the same."""
        record, now = self._record, self._env.clock.time()
        record.common = guid
        record.round_source = None
        for member in self.members:
            member.record.common = guid
            member.record.round_source = member.record.round_base = None
        busy = self._in_use()
        points = (*(point for point in record.points if point.guid != guid), RecoveryPoint(guid, at))
        stay = retained(points, self._policy, now)
        record.points = tuple(point for point in points if point in stay or point.guid in busy)
        self._instant = instant
        await self._save()
        await self._finish()

    async def _finish(self) -> None:
        """The target hears that the common point is complete; then older ones go."""
        record = self._record
        newest = next((point for point in record.points if point.guid == record.common), None)
        if newest is not None:
            await self._completed(newest)
        keep = {point.guid for point in record.points} | self.pinned
        for member in self.members:
            await member.link.keep_points(keep)
            await member.keep_source_points({str(record.common), *self.pinned})
            await member.drop_note()
        self._told = record.common

    async def _each(self, calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """One for each member, all at once. The first that fails ends the others at their next safe place."""
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(call) for call in calls]
        if not tasks:
            return []
        try:
            done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            failed = next((task for task in done if task.exception() is not None), None)
            if rest:
                for member in self.members:
                    member.stop()
                await asyncio.wait(rest)
                if not self._stopped:
                    for member in self.members:
                        member.proceed()
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            raise
        for task in rest:
            task.exception()
        if failed is not None:
            failed.result()
        return [task.result() for task in tasks]


class GroupMirror(MirrorOperations[GroupRounds, GroupLink, GroupStream]):
    """See the module.

    Args:
        members: in the group's order; they share the queue of ``policy`` in equal parts.
        record, save: as of ``MirrorRun``, for all.
        completed: see ``GroupRounds``.
    """

    content_counts = False

    def __init__(
        self,
        name: str,
        members: Sequence[Member],
        env: StoreEnv,
        *,
        record: GroupRecord,
        save: Callable[[GroupRecord], Awaitable[None]],
        tell: Callable[[str, str], None],
        mode: CopyMode,
        policy: MirrorPolicy,
        in_use: Callable[[], Collection[str]],
        completed: Callable[[RecoveryPoint], Awaitable[None]],
    ) -> None:
        async def saved() -> None:
            await save(record)

        self._share = replace(policy, queue_bytes=policy.queue_bytes // len(members))
        parts = [
            Rounds(
                each.name,
                each.source,
                each.link,
                env,
                each.ledger_path,
                self._share,
                record=own,
                save=saved,
                in_use=in_use,
                prefix=each.prefix,
            )
            for each, own in zip(members, record.members, strict=True)
        ]
        rounds = GroupRounds(
            name, parts, env, policy, record=record.group, save=saved, in_use=in_use, completed=completed
        )
        link = GroupLink(name, [member.link for member in members])
        super().__init__(name, link, rounds, env, record=record.group, save=saved, tell=tell, mode=mode, policy=policy)
        self.members = members
        self._demotion: asyncio.Task[None] | None = None

    async def verify(self, software: str, *, control: CopyControl | None = None) -> list[proof.Proof]:
        """As ``Mirror.verify``: a proof for each member, all of one instant."""
        documents = []
        async with self._pinned_point() as guid:
            for member, rounds in zip(self.members, self._rounds.members, strict=True):
                point = rounds.source_point(guid)
                if point is None:
                    raise InvalidState(self._what, self._standing.text(), "a completed first copy")
                sides = member.source.name, point, member.link
                document, differing = await compared(member.name, guid, sides, self._env, software, control)
                documents.append(document)
                if differing:
                    await self._mismatch(document, differing)
        return documents

    async def agree_on(self, guids: Collection[str]) -> None:
        for member in self._rounds.members:
            member.record.round_source = member.record.round_base = None
        await super().agree_on(guids)

    def _is_replaced(self) -> bool:
        return any(member.source.fence_reason is not None for member in self.members)

    async def _round(self, state: LinkState, *, stream: bool) -> Shipped:
        assert isinstance(state, GroupState)
        return await self._rounds.run(state, self._new_streams if stream else None)

    def _hold_hosts(self, reason: str) -> None:
        for member in self.members:
            member.source.hold_writes(self.name, f"replica {self.name}: {reason}")

    def _let_hosts_go(self) -> None:
        for member in self.members:
            member.source.let_writes_go(self.name)

    async def _is_current(self, state: LinkState) -> bool:
        assert isinstance(state, GroupState)
        return await self._rounds.is_current(state)

    async def _mark_point(self, stream: GroupStream, *, release: bool) -> None:
        await self._rounds.mark(stream, release=release)

    def _new_streams(self, state: GroupState) -> Sequence[MirrorStream]:
        self._demotion = None
        paced = self._lost_rounds >= self.policy.unpaced_rounds
        streams = [
            MirrorStream(
                member.source,
                member.link,
                there.ack,
                budget_s=self._detect_s,
                demote=self._demoted_together,
                queue_bytes=self._share.queue_bytes,
                allowance=rounds.allowance if paced else None,
            )
            for member, rounds, there in zip(self.members, self._rounds.members, state.members, strict=True)
        ]
        self._stream = GroupStream(streams)
        return streams

    async def _demoted_together(self, reason: str, retry: bool) -> None:
        """One demotion for all members' streams, which leave in one step."""
        if self._demotion is None:
            self._demotion = asyncio.get_running_loop().create_task(self._demoted(reason, retry))
        await asyncio.shield(self._demotion)
