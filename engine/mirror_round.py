"""One round of a mirror: what the source has and the target has not, brought over. Every mode uses it.

``Rounds.run`` is the route, top to bottom (REPLICATION section 5 steps 1 and 2, and all of section 4):

    1. flip     a recovery point S of the source; where the mirror is to become synchronous, a stream takes every later
                write from the same step of the loop on
    2. plan     where the staging area starts, and what differs from there
    3. copy     into the staging area of the target, hidden, verified chunk by chunk, noted in the ledger
    4. switch   in one durable step the staging area is the target's content and S a recovery point of both sides
    5. advance  S is the common point C; older points go, as far as nobody keeps them

The delta, by REPLICATION section 1, with C the common point (None: nothing in common):

    target head unchanged since C   staging starts as C                    changed(C .. S)
    target head written since C     staging starts as H, the head frozen   changed(C .. S) united with changed(C .. H)

Invariants:

* C is the GUID in the durable record, and it exists on both sides. It is recorded only after both sides have it
  durably and no write before it failed on either.
* An interrupted round is resumed only with its own S and base, from its own ledger: the round (S, base) is recorded
  after the staging area exists and before anything is copied to it, and the ledger is removed before the staging area
  is. So a ledger never speaks of another staging area.
* What C holds back of the source's space has a limit: then it is thinned (``engine.thinned_point``).
* Whoever reads the target's recovery points sees whole ones: nothing but ``switch`` makes one.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.copy_job import CopyControl, CopyOptions, copy_extents
from engine.errors import InvalidState, NotFound
from engine.ledger import Ledger, LedgerKey
from engine.mirror_record import RecoveryPoint, point_prefix, retained
from engine.mirror_stream import StreamMode
from engine.stores import Extent
from engine.thinned_point import Note, Notes, merged

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from pathlib import Path

    from engine.copy_job import CopyResult
    from engine.files import StoreEnv
    from engine.links import Ack, LinkState, MirrorLink
    from engine.mirror_record import MirrorPolicy, MirrorRecord
    from engine.mirror_stream import MirrorStream
    from engine.stores import BlockDevice, Frozen
    from engine.volume import Volume


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a round copies to, and what. ``written``: the target had changed by itself. ``moved``: what was brought
    over of an older instant is there, too."""

    staging: BlockDevice
    base: str | None
    extents: list[Extent]
    written: bool
    moved: bool = False


class _MovesOn(Exception):
    """The copy was ended so that the round goes on to a newer instant."""


@dataclass(frozen=True, slots=True)
class Shipped:
    """A complete round. ``instant``: of S, in seconds of ``Clock.boottime``; ``interval_s``: since the one before."""

    instant: float
    interval_s: float | None
    changed_bytes: int


class Rounds:
    """See the module.

    Args:
        record: the mirror's; this keeps ``common``, ``round_*`` and ``points`` of it.
        save: makes the record durable.
        in_use: GUIDs of recovery points that somebody reads at the target, so that they stay.
        prefix: of the names of the source's recovery points; by default it follows from ``name``.
    """

    def __init__(
        self,
        name: str,
        source: Volume,
        link: MirrorLink,
        env: StoreEnv,
        ledger_path: Path,
        policy: MirrorPolicy,
        *,
        record: MirrorRecord,
        save: Callable[[], Awaitable[None]],
        in_use: Callable[[], Collection[str]],
        prefix: str | None = None,
    ) -> None:
        self.count = 0
        self.resumed = 0
        self.written_bytes = 0
        self.equal_bytes = 0
        self.pinned: set[str] = set()
        """GUIDs that must stay on both sides for now."""
        self.started: float | None = None
        """The instant of the round that is under way."""
        self._what = f"replica {name}"
        self.source = source
        self.link = link
        self._env = env
        self.ledger_path = ledger_path
        self._policy = policy
        self.record = record
        self._save = save
        self._in_use = in_use
        self._prefix = prefix or point_prefix(name)
        self._control = CopyControl()
        self._finished_bytes = 0
        self._copying: asyncio.Task[CopyResult] | None = None
        self._stopped = False
        self._may_move_on = False
        """Whether a round is under way that no stream has begun with."""
        self._moves_on = False
        self._instant: float | None = None
        self._notes = Notes(env.control_files, ledger_path)
        self._note: Note | None = None
        self._noted = False
        """Whether ``_note`` is what the files have."""
        self._busy = asyncio.Lock()
        """Held while the common point is used or changed."""

    # --- what it is -----------------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """Of what is mirrored."""
        return self.source.size_bytes

    @property
    def common(self) -> str | None:
        return self.record.common

    @property
    def instant(self) -> float | None:
        """Of the last recovery point that is complete at the target, in seconds of ``Clock.boottime``."""
        if self._instant is None and self.record.common is not None:
            newest = next((point for point in self.record.points if point.guid == self.record.common), None)
            if newest is not None:
                self._instant = self.boot_instant(newest.at)
        return self._instant

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes of all rounds since ``begin``: done, and known to be to do."""
        progress = self._control.progress
        return self._finished_bytes + progress.done_bytes, self._finished_bytes + progress.total_bytes

    @property
    def left(self) -> tuple[int, int] | None:
        """Bytes of the copy that is under way: still to do, and in all. None: there is none."""
        progress = self._control.progress
        if self._copying is None or not progress.total_bytes:
            return None
        return progress.total_bytes - progress.done_bytes, progress.total_bytes

    def allowance(self) -> int:
        """Bytes that hosts may have queued by now: three quarters of the queue, in step with the copy."""
        progress = self._control.progress
        moved = progress.written_bytes + progress.equal_bytes + progress.zero_bytes
        return self._policy.queue_bytes * 3 // 4 * moved // max(1, moved, progress.total_bytes)

    # --- driven by the mirror ---------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Rounds may run from now on."""
        self._stopped = False
        self._finished_bytes = 0
        self._control = CopyControl()

    def stop(self) -> None:
        """End the round that is under way at the next safe place; what was copied stays in staging and ledger."""
        self._stopped = True
        if self._copying is not None and not self._copying.cancelling():  # twice would cut off what it still records
            self._copying.cancel()

    def proceed(self) -> None:
        """As if ``stop`` had not been said; what it has ended stays ended."""
        self._stopped = False

    def go_on(self) -> None:
        """Raises InvalidState after ``stop``."""
        if self._stopped:
            raise InvalidState(self._what, "stopping", "running")

    async def run(self, state: LinkState, new_stream: Callable[[Ack], MirrorStream] | None = None) -> Shipped:
        """One round, over a connection that has just begun.

        Args:
            state: what ``connect`` found.
            new_stream: makes the stream of the writes after S. Not called when an interrupted round goes on: its S
                is older than any stream.
        """
        async with self._busy:
            return await self._run(state, new_stream)

    async def _run(self, state: LinkState, new_stream: Callable[[Ack], MirrorStream] | None) -> Shipped:
        self.count += 1
        await self.read_note()
        common, before = self._common(state), self.instant
        source = self._resumable(state)
        resumed = source is not None
        if source is None:
            await self.drop_staging()
            source = await self._flip(None if new_stream is None else lambda: new_stream(state.ack))
        else:
            self.resumed += 1
            self.started = self.boot_instant(source.created_at)
        instant = self.started
        assert instant is not None
        try:
            plan = await self.plan(source, common, resumed=resumed)
            self._may_move_on = new_stream is None or resumed
            changed_bytes = None
            while changed_bytes is None:
                try:
                    changed_bytes = await self.copy(source, plan)
                except _MovesOn:
                    source, plan = await self._move_on(source, plan, common)
                    instant = self.started
                    assert instant is not None
            await self.link.commit_staging(source.guid)
            await self.advance(source, instant)
            await Ledger.discard(self._env.control_files, self.ledger_path)
        finally:
            self.started = None
            self._may_move_on = False
        return Shipped(instant, None if common is None or before is None else instant - before, changed_bytes)

    async def is_current(self, state: LinkState) -> bool:
        """Whether the target still has what the source has, with no round to resume. If so, the common point stands
        for the instant of this call as well: no copy is needed to say so."""
        async with self._busy:
            await self.read_note()
            now = self._env.clock.boottime()
            if not await self.is_current_since(self._common(state), state):
                return False
            self._instant = now
            return True

    async def is_current_since(self, common: str | None, state: LinkState) -> bool:
        """Whether neither side differs from that common point."""
        point = self.source_point(common)
        if common is None or point is None or state.staging or point.size_bytes != self.source.size_bytes:
            return False
        if await self.link.changed(common, None):
            return False
        async for _ in self.source.head.store.changed(point, self.source.head):
            return False
        return True

    async def mark(self, stream: MirrorStream, *, release: bool) -> None:
        """A recovery point without a round, at one place in the stream of a synchronous mirror.

        The source's is taken in the step in which the stream begins to hold new writes; the target's when all before
        have arrived, and none after is sent until it is durable. It counts only if none of the writes before it
        failed on either side. Raises what the stores and the link raise, and InvalidState: the stream has left.

        Args:
            release: let the stream go on; else it holds, and the caller lets it leave.
        """
        async with self._busy:
            await self._mark(stream, release=release)

    async def _mark(self, stream: MirrorStream, *, release: bool) -> None:
        await self.source.flush()  # here and at the target, so that little is left to do while hosts wait
        guid = str(uuid.uuid4())
        await self.source.head.store.prepare_flip()
        head, instant = self.source.head, self._env.clock.boottime()
        stream.hold()
        follow = asyncio.get_running_loop().create_task(self._mark_target(stream, guid, release=release))
        try:
            # Still the step of ``hold``: the snapshot has exactly the writes that the stream did not hold back.
            point = await head.store.snapshot(head, self.point_name(guid), guid=guid, hidden=True)
            await follow
        except BaseException:
            await asyncio.wait([follow])
            if not follow.cancelled():
                follow.exception()  # the first error is the one to report
            raise
        if stream.mode is not (StreamMode.SYNC if release else StreamMode.HELD):
            raise InvalidState(self._what, stream.mode.value, "synchronous")
        await self.advance(point, instant)

    async def _mark_target(self, stream: MirrorStream, guid: str, *, release: bool) -> None:
        await stream.drained()
        await self.link.mark(guid)
        if release:
            stream.release()

    async def advance(self, point: Frozen, instant: float) -> None:
        """``point`` is on both sides, durably and the same: it is C now, and older points go."""
        record, now = self.record, self._env.clock.time()
        record.common = point.guid
        record.round_source = record.round_base = None
        busy = self._in_use()
        points = (*(p for p in record.points if p.guid != point.guid), RecoveryPoint(point.guid, point.created_at))
        stay = retained(points, self._policy, now)
        record.points = tuple(p for p in points if p in stay or p.guid in busy)
        self._instant = instant
        await self._save()
        await self.link.keep_points({p.guid for p in record.points} | self.pinned)
        await self.keep_source_points({point.guid, *self.pinned})
        await self.drop_note()

    async def drop_note(self) -> None:
        """There is a newer common point than the one that was thinned."""
        if self._note is not None:
            self._note = None
            await self._notes.remove()

    async def thin(self, limit_bytes: int) -> int:
        """See to it that this mirror's points hold no more than ``limit_bytes`` of the source's space.

        Not while a mark uses them. What an interrupted round has not brought over is forgotten if need be; one that is
        under way moves on to a newer instant. Returns the bytes that come back; 0: none, or none yet.
        """
        head, record = self.source.head, self.record
        if self._busy.locked():
            if self._may_move_on and self._copying is not None and not self.pinned:
                held = await head.store.freed_by(self._own_points())
                if held > limit_bytes and self._copying is not None and self._may_move_on:
                    self._moves_on = True
                    self._copying.cancel()
            return 0
        async with self._busy:
            await self.read_note()
            mine = [p for p in self._own_points() if p.guid not in self.pinned]
            held = await head.store.freed_by(mine) if mine else 0
            since = self.since(record.common)
            if held <= limit_bytes:
                return 0
            record.round_source = record.round_base = None
            await self._save()
            keep = set()
            if since is not None:
                guid = str(uuid.uuid4())
                point = await head.store.snapshot(head, self.point_name(guid), guid=guid, hidden=True)
                note = await self._noted_until(since, point)
                await self._notes.write(note)
                self._note = note
                keep.add(guid)
            await self.keep_source_points(keep | self.pinned)
            return held

    async def forget(self) -> None:
        """The relation ends: remove everything half copied, and the recovery points."""
        await self.drop_staging()
        await self.link.keep_points(())
        await self.keep_source_points(set())
        await self._notes.remove()

    async def give_up(self) -> None:
        """What an interrupted round has brought is worth nothing any more."""
        async with self._busy:
            self.record.round_source = self.record.round_base = None
            await self._save()
            await self.drop_staging()

    async def restored(self, point: RecoveryPoint) -> None:
        """The source is that recovery point now, which is on both sides; the record is saved with it."""
        async with self._busy:
            record = self.record
            record.common, record.round_source, record.round_base = point.guid, None, None
            record.points = (*(each for each in record.points if each.guid != point.guid), point)
            self._instant = None
            await self._save()
            await self.keep_source_points({point.guid, *self.pinned})
            await self.drop_note()

    # --- the parts of a round, in their order -------------------------------------------------------------------------

    async def drop_staging(self) -> None:
        await Ledger.discard(self._env.control_files, self.ledger_path)
        await self.link.abort_staging()

    async def _flip(self, new_stream: Callable[[], MirrorStream] | None) -> Frozen:
        """S, and in the same step of the loop the stream of all later writes."""
        guid = str(uuid.uuid4())
        self.source.require_usable()
        await self.source.head.store.prepare_flip()
        while self.source.is_quiesced:  # its content is being replaced, behind every stream's back
            await self.source.resumed()
            await self.source.head.store.prepare_flip()
        self.go_on()  # a stream that was told to leave before it is attached would stay attached for ever
        # One step of the loop: S has every write before it, the stream every one after.
        if new_stream is not None:
            self.source.attach(new_stream())
        self.started = self._env.clock.boottime()
        head = self.source.head
        return await head.store.snapshot(head, self.point_name(guid), guid=guid, hidden=True)

    async def plan(self, source: Frozen, common: str | None, *, resumed: bool) -> Plan:
        store = self.source.head.store
        since = self.since(common)
        extents = [extent async for extent in store.changed(since, source)]
        if since is not None and since.guid != common and self._note is not None:
            extents += [extent for extent in self._note.extents if extent.offset < source.size_bytes]
        if resumed:
            base = self.record.round_base
            staging = await self.link.resume_staging()
        else:
            base = common
            if await self.link.changed(common, None):
                base = str(uuid.uuid4())
                await self.link.freeze_head(base)
            staging = await self.link.begin_staging(base, source.size_bytes)
            self.record.round_source, self.record.round_base = source.guid, base
            await self._save()
        written = [] if base == common else await self.link.changed(common, base)
        extents += [extent for extent in written if extent.offset < source.size_bytes]
        return Plan(staging, base, extents, bool(written))

    async def _move_on(self, source: Frozen, plan: Plan, common: str | None) -> tuple[Frozen, Plan]:
        """A target that is slow, but there, would pin what the source overwrites since C and S for as long as the round
        takes. So the round goes on to a newer instant: what it has brought over stays in the staging area, and is
        compared, not sent again, where it was not overwritten since. S and C are given back, C by a note.

        What the staging area may have that the newer instant has not is in changed(S .. newer): the note has that, too.
        A first copy has no C for a note to speak of: after a restart it begins anew.
        """
        self._moves_on = False
        newer = await self._flip(None)
        if newer.size_bytes != source.size_bytes:
            raise InvalidState(self._what, "resized within a round", "of one size")
        since_then = [extent async for extent in self.source.head.store.changed(source, newer)]
        since = self.since(common)
        if since is not None:
            note = await self._noted_until(since, source)
            note = Note(note.common, newer.guid, merged([*note.extents, *since_then]))
            await self._notes.write(note)
            self._note = note
        await Ledger.discard(self._env.control_files, self.ledger_path)
        self.record.round_source = None if since is None else newer.guid
        await self._save()
        await self.keep_source_points({newer.guid, *self.pinned})
        extents = list(merged([*plan.extents, *since_then]))
        return newer, Plan(plan.staging, plan.base, extents, written=True, moved=True)

    async def copy(self, source: Frozen, plan: Plan) -> int:
        """The delta to ``source``, verified and durable in the staging area; how much it was."""
        key = LedgerKey(source.guid, plan.base or "", self.link.target_name, source.size_bytes)
        ledger = await Ledger.open(self._env.control_files, self.ledger_path, key)
        self._control = CopyControl()
        options = CopyOptions(blank_target=plan.base is None and not plan.moved, compare_first=plan.written)
        try:
            self.go_on()
            self._copying = asyncio.get_running_loop().create_task(
                copy_extents(
                    source,
                    plan.staging,
                    plan.extents,
                    ledger=ledger,
                    options=options,
                    control=self._control,
                    mover=self._env.mover,
                )
            )
            await asyncio.wait([self._copying])
            if self._copying.cancelled():
                if self._moves_on and not self._stopped:
                    raise _MovesOn
                raise InvalidState(self._what, "stopping", "running")
            progress = self._copying.result().progress
        finally:
            self._copying = None
            await ledger.close()
        self.written_bytes += progress.written_bytes
        self.equal_bytes += progress.equal_bytes
        self._finished_bytes += progress.total_bytes
        self._control = CopyControl()
        return progress.total_bytes

    # --- the common point ---------------------------------------------------------------------------------------------

    def _common(self, state: LinkState) -> str | None:
        """C, if both sides still have it."""
        record = self.record
        switched = self.source_point(record.round_source)
        if switched is not None and switched.guid in state.points and switched.guid != record.common:
            record.common = switched.guid  # the last round's switch was durable, its record was not
            record.points += (RecoveryPoint(switched.guid, switched.created_at),)
            self._instant = None
        common = record.common
        return common if common in state.points and self.since(common) is not None else None

    def since(self, common: str | None) -> Frozen | None:
        """The snapshot of the source that changes since C are counted from: C, or what it was thinned to."""
        point = self.source_point(common)
        if point is None and self._note is not None and self._note.common == common:
            point = self.source_point(self._note.since)
        return point

    async def read_note(self) -> None:
        """Have the note whose snapshot is there, if there is one."""
        if not self._noted:
            self._note = await self._notes.read(lambda note: self.source_point(note.since) is not None)
            self._noted = True

    async def _noted_until(self, since: Frozen, until: Frozen) -> Note:
        """What has changed since C, up to a snapshot that is there."""
        common, earlier = self.record.common, self._note
        assert common is not None
        extents = [extent async for extent in self.source.head.store.changed(since, until)]
        if until.size_bytes < since.size_bytes:  # what was cut off may be there again, empty, in a later one
            extents.append(Extent(until.size_bytes, since.size_bytes - until.size_bytes))
        if since.guid != common:
            assert earlier is not None
            extents += earlier.extents
        return Note(common, until.guid, merged(extents))

    def _resumable(self, state: LinkState) -> Frozen | None:
        """The interrupted round's S, if its staging area, base and S itself are still there."""
        record = self.record
        if not state.staging or record.round_source is None or record.round_source in state.points:
            return None
        if record.round_base is not None and record.round_base not in state.points:
            return None
        return self.source_point(record.round_source)

    def point_name(self, guid: str) -> str:
        return f"{self._prefix}.{guid}"

    def source_point(self, guid: str | None) -> Frozen | None:
        """A recovery point of the source."""
        head = self.source.head
        return None if guid is None else head.store.snapshot_with(head.volume_id, guid)

    async def keep_source_points(self, guids: Collection[str]) -> None:
        """Delete every other recovery point that this mirror made at the source."""
        head = self.source.head
        for point in self._own_points():
            if point.guid not in guids:
                try:
                    await head.store.delete_snapshot(point)
                except NotFound:
                    continue  # the other mirror of this name's beginning was faster

    def _own_points(self) -> list[Frozen]:
        head = self.source.head
        return [point for point in head.store.snapshots(head.volume_id) if point.name.startswith(self._prefix)]

    def boot_instant(self, wall: float) -> float:
        """When that was by the clock that nobody sets; what lies in the future of the wall clock was just now."""
        clock = self._env.clock
        return clock.boottime() - max(0.0, clock.time() - wall)
