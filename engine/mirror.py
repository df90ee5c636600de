"""A synchronous mirror: pairing, rounds, resync, fracture, verification.

What the source has and the target has not is brought over in *rounds* (REPLICATION section 5):

    1. a recovery point S of the source, and in the same step of the loop a ``MirrorStream`` for every later write
    2. the delta to S goes into a hidden staging area of the target, verified chunk by chunk; then S becomes the
       target's content and a recovery point of both sides in one durable step
    3. the stream applies its queue strictly in sequence, hosts begin to wait for the target, a target flush covers
       everything before that: Synchronized
    4. a stream that overflowed meanwhile is dropped; S is the common point, and the next round begins

The delta, by REPLICATION section 1, with C the common point (None: nothing in common):

    target head unchanged since C   staging starts as C                    changed(C .. S)
    target head written since C     staging starts as H, the head frozen   changed(C .. S) united with changed(C .. H)

Invariants:

* C is the GUID in the durable record, and it exists on both sides. It is recorded only after both sides have it
  durably and no write before it failed on either.
* Synchronized is recorded before it is claimed, and never restored from the record: each start begins with a round.
* A demotion is recorded before any host is acknowledged without the target (``MirrorStream``).
* The ledger of a staging area is removed before the staging area is; the round (S, base, C) is recorded after the
  staging area exists and before anything is copied to it. So a ledger never speaks of another staging area.
* Nobody but the mirror writes to the target, unless it is fractured; until then its content is always some prefix
  of what the source acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from typing import TYPE_CHECKING, Any

from engine import proof
from engine.copy_job import CopyControl, CopyOptions, copy_extents
from engine.copy_state import CopyEvent, CopyMode, CopyState, ProgressStatus, Standing, SyncType, after, label
from engine.errors import EngineError, IntegrityError, InvalidState, NotFound, TimedOut
from engine.ledger import Ledger, LedgerKey
from engine.mirror_record import MirrorPolicy, MirrorRecord, point_prefix
from engine.mirror_stream import MirrorStream, StreamMode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from engine.files import StoreEnv
    from engine.links import LinkState, MirrorLink
    from engine.stores import Extent, Frozen
    from engine.volume import Volume

log = logging.getLogger(__name__)


class Mirror:
    """See the module.

    Args:
        source: the volume that hosts write.
        link: to the target.
        ledger_path: where the ledger of a round is kept.
        record: as saved last; a new one for a new mirror.
        save: makes a record durable; awaited before what the record says is acted on.
        tell: takes events (severity, text) for the administrator.
    """

    sync_type = SyncType.MIRROR
    mode = CopyMode.SYNCHRONOUS

    def __init__(
        self,
        name: str,
        source: Volume,
        link: MirrorLink,
        env: StoreEnv,
        ledger_path: Path,
        *,
        record: MirrorRecord,
        save: Callable[[MirrorRecord], Awaitable[None]],
        tell: Callable[[str, str], None],
        policy: MirrorPolicy | None = None,
    ) -> None:
        self.name = name
        self.source = source
        self.link = link
        self.policy = policy or MirrorPolicy()
        self.rounds = 0
        self.written_bytes = 0
        self._env = env
        self._ledger_path = ledger_path
        self._record = record
        self._save_record = save
        self._tell = tell
        self._prefix = point_prefix(name)
        self._control = CopyControl()
        self._percent_floor = 0
        self._finished_bytes = 0
        self._lost_rounds = 0
        self._stream: MirrorStream | None = None
        self._copying: asyncio.Task[Any] | None = None
        self._run_task: asyncio.Task[None] | None = None
        self._stopping: CopyEvent | None = None
        self._retry = False
        self._ended = False
        self._lock = asyncio.Lock()  # one operation on the common point at a time
        self._pinned: set[str] = set()
        self._changed = asyncio.Event()
        self._standing = self._first_standing()

    # --- what it is -----------------------------------------------------------------------------------------------

    @property
    def standing(self) -> Standing:
        return self._standing

    @property
    def common(self) -> str | None:
        """GUID of the recovery point that both sides have."""
        return self._record.common

    @property
    def percent_synced(self) -> int:
        """100 only when synchronized; within one resync it never falls."""
        if self._standing.state is CopyState.SYNCHRONIZED:
            return 100
        progress, size = self._control.progress, self.source.size_bytes
        if self._copying is not None and size and progress.total_bytes:
            left = min(size, progress.total_bytes - progress.done_bytes)
            self._percent_floor = max(self._percent_floor, min(99, 100 * (size - left) // size))
        return self._percent_floor

    @property
    def progress_bytes(self) -> tuple[int, int]:
        """Of all rounds since the last start: done, and known to be to do."""
        progress, finished = self._control.progress, self._finished_bytes
        return finished + progress.done_bytes, finished + progress.total_bytes

    @property
    def lag_bytes(self) -> int:
        """What is known to be missing at the target: the rest of the round and the queue."""
        if self._standing.state is CopyState.SYNCHRONIZED:
            return 0
        done, total = self.progress_bytes
        return total - done + (self._stream.queue_bytes if self._stream is not None else 0)

    @property
    def lag_s(self) -> float | None:
        """Age of the last complete recovery point; 0 while synchronized, None when there is none."""
        if self._standing.state is CopyState.SYNCHRONIZED:
            return 0.0
        point = self._source_point(self._record.common)
        return None if point is None else max(0.0, self._env.clock.time() - point.created_at)

    async def wait_synchronized(self, timeout_s: float | None = None) -> None:
        """Return when the mirror is synchronized.

        Raises:
            InvalidState: it came to rest in another state.
            TimedOut: the time is up.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while self._standing.state is not CopyState.SYNCHRONIZED:
                    if self._run_task is None or self._run_task.done():
                        raise InvalidState(self._what, self._state_text(), "Synchronized")
                    changed = self._changed
                    turned = asyncio.ensure_future(changed.wait())
                    try:
                        await asyncio.wait([turned, self._run_task], return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        turned.cancel()
        except TimeoutError:
            raise TimedOut(f"{self._what} is not synchronized after {timeout_s:g} s: {self._state_text()}") from None

    # --- operations -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin the first round, unless the administrator left the mirror fractured or suspended.

        Awaited before the source is served: a source that was synchronized when it ended is recorded as demoted
        before it acknowledges anything that the target does not have.
        """
        if self._record.synchronized:
            self._record.synchronized = False
            await self._save()
        if self._record.wanted == "active":
            self._begin(CopyEvent.BEGIN if self._record.common is None else CopyEvent.RESYNC, "")

    async def fracture(self) -> None:
        """Let the target go its own way; changes are known by the common point. Hosts of the source do not notice."""
        await self._rest(CopyEvent.FRACTURE, "fractured")

    async def suspend(self) -> None:
        """Stop the flow. A copy under way keeps what it has and goes on at ``resume``."""
        await self._rest(CopyEvent.SUSPEND, "suspended")

    async def resync(self) -> None:
        """Begin rounds again after a fracture or failure. Returns at once; see ``wait_synchronized``."""
        await self._go(CopyEvent.RESYNC)

    async def resume(self) -> None:
        """Begin rounds again after ``suspend``."""
        await self._go(CopyEvent.RESUME)

    @contextlib.asynccontextmanager
    async def interrupted(self, reason: str) -> AsyncIterator[None]:
        """Inside, the target hears of nothing; afterwards a round brings it what it missed. No-op while at rest.

        What the administrator wants stays on record: a restart in between begins a round as well.
        """
        if self._run_task is None or self._run_task.done():
            yield
            return
        await self._leave_in_order(CopyEvent.SUSPEND, reason)
        async with self._lock:
            if not self._run_task.done():
                raise InvalidState(self._what, self._state_text(), "one that is at rest")
            try:
                yield
            finally:
                if not self._ended:
                    self._begin(CopyEvent.RESUME, "")

    async def verify(self, software: str, *, control: CopyControl | None = None) -> proof.Proof:
        """Compare a recovery point of the source with the same one of the target, by hash tree.

        While synchronized both sides take a new one at the same place in the stream; else the last common point is
        compared. The mirror breaks when they differ.

        Raises:
            InvalidState: there is no common point yet.
        """
        async with self._lock:
            if self._stream is not None and self._stream.mode is StreamMode.SYNC:
                await self._mark(self._stream)
            guid = self._record.common
            point = self._source_point(guid)
            if guid is None or point is None:
                raise InvalidState(self._what, self._state_text(), "a completed first copy")
            self._pinned.add(guid)
        try:
            target = await self.link.point(guid)
            mover = self._env.mover
            trees = [await proof.tree_of(side, control=control, mover=mover) for side in (point, target)]
        finally:
            self._pinned.discard(guid)
        sides = [
            (name, guid, point.created_at, tree)
            for name, tree in zip((self.source.name, self.link.target_name), trees, strict=True)
        ]
        document, differing = proof.compare(
            self.name, sides[0], sides[1], checked_at=self._env.clock.time(), software=software
        )
        if differing:
            await self._mismatch(document, differing)
        return document

    async def detach(self) -> None:
        """End the relation. The target keeps the last state it had: the source's own, if it was synchronized.

        The common points and anything half copied are removed. The object is of no use afterwards.
        """
        self._ended = True
        await self._stop(CopyEvent.FRACTURE, "detached")
        await Ledger.discard(self._env.control_files, self._ledger_path)
        await self.link.abort_staging()
        await self.link.keep_points(())
        await self._keep_source_points(set())

    async def close(self) -> None:
        """The daemon ends: stop, and leave everything for the next start."""
        self._ended = True
        await self._stop(CopyEvent.SUSPEND, "the daemon stops")

    # --- states -----------------------------------------------------------------------------------------------------

    @property
    def _what(self) -> str:
        return f"replica {self.name}"

    def _state_text(self) -> str:
        standing = self._standing
        return label(standing.state) + (f" ({standing.reason})" if standing.reason else "")

    def _first_standing(self) -> Standing:
        now = self._env.clock.time()
        match self._record.wanted:
            case "fractured":
                return self._resting(CopyState.FRACTURED, ProgressStatus.REQUIRES_RESYNC, self._record.reason)
            case "suspended":
                return self._resting(CopyState.SUSPENDED, ProgressStatus.DORMANT, self._record.reason)
        return Standing(CopyState.INITIALIZED, ProgressStatus.INITIALIZING, now, "not started yet", "its start")

    def _resting(self, state: CopyState, progress: ProgressStatus, reason: str) -> Standing:
        verb = "resume" if state is CopyState.SUSPENDED else "resync"
        return Standing(
            state,
            progress,
            self._env.clock.time(),
            reason,
            "the administrator",
            f"twinvol replica {verb} {self.name}",
        )

    def _turn(self, event: CopyEvent, reason: str, severity: str = "info") -> None:
        """Go through the table; say it to the administrator and to whoever waits."""
        state, progress = after(self._standing.state, event, self._what)
        if state is CopyState.SYNCHRONIZED:
            self._standing = Standing(state, progress, self._env.clock.time())
        elif state is CopyState.UNSYNCHRONIZED:
            waits = "the copy to catch up with the writes"
            self._standing = Standing(state, progress, self._env.clock.time(), reason or "copying", waits, "wait")
        else:
            self._standing = self._resting(state, progress, reason)
        self._tell(severity, f"{self._what}: {self._state_text()}")
        self._changed.set()
        self._changed = asyncio.Event()

    async def _save(self) -> None:
        await self._save_record(self._record)

    # --- starting and stopping ----------------------------------------------------------------------------------------

    def _begin(self, event: CopyEvent, reason: str) -> None:
        self._percent_floor = 0
        self._finished_bytes = 0
        self._control = CopyControl()
        self._stopping = None
        self._turn(event, reason)
        self._run_task = asyncio.get_running_loop().create_task(self._run(), name=self._what)

    async def _go(self, event: CopyEvent) -> None:
        async with self._lock:
            after(self._standing.state, event, self._what)
            if self._run_task is not None and not self._run_task.done():
                raise InvalidState(self._what, self._state_text(), "one that is at rest")
            self._record.wanted = "active"
            self._record.reason = ""
            await self._save()
            self._begin(event, "")

    async def _rest(self, event: CopyEvent, wanted: str) -> None:
        """Fracture or suspend, as the administrator wants."""
        await self._leave_in_order(event, f"{wanted} by the administrator", wanted)

    async def _leave_in_order(self, event: CopyEvent, reason: str, wanted: str | None = None) -> None:
        """Come to rest so that the common point is this very moment. ``wanted``: for the record, if that changes."""
        after(self._standing.state, event, self._what)
        async with self._lock:
            stream = self._stream
            if wanted is not None:
                self._record.wanted = wanted
                self._record.reason = reason
            if stream is not None and stream.mode is StreamMode.SYNC:
                self._stopping = event
                with contextlib.suppress(EngineError):  # the older common point serves as well; the event is told
                    await self._mark(stream, then_leave=reason)
        await self._stop(event, reason)
        await self._save()
        if self._standing.state is not after(CopyState.UNSYNCHRONIZED, event, self._what)[0]:
            self._turn(event, reason)

    async def _stop(self, event: CopyEvent, reason: str) -> None:
        """Bring the run to its end at the next safe place; what was copied stays in staging and ledger."""
        task = self._run_task
        if task is None or task.done():
            return
        self._stopping = event
        if self._stream is not None:
            self._stream.leave(reason, retry=False)
        if self._copying is not None:
            self._copying.cancel()
        await asyncio.wait([task])

    async def _demoted(self, reason: str, retry: bool) -> None:
        """The stream leaves the synchronous state; returns once that is durable."""
        self._record.synchronized = False
        self._retry = retry and self._stopping is None
        if self._standing.state is CopyState.SYNCHRONIZED:
            if self._stopping is not None:
                self._turn(self._stopping, reason)
            elif retry:
                self._turn(CopyEvent.RESYNC, reason, "warning")
            else:
                self._turn(CopyEvent.BREAK, reason, "error")
        await self._save()

    async def _run(self) -> None:
        """Rounds until synchronized, then watch; again after a failure of the source's own."""
        while True:
            try:
                await self._synchronize()
                await self._watch()
            except Exception as error:
                if not isinstance(error, EngineError):
                    log.exception("%s broke by a mistake in twinvol", self._what)
                reason = await self._end_stream(str(error)) or str(error)
                if self._stopping is None and not self._retry and self._standing.state is CopyState.UNSYNCHRONIZED:
                    self._turn(CopyEvent.BREAK, reason, "error")
            await self._end_stream("the round ended")
            if self._stopping is not None or not self._retry:
                return
            self._retry = False

    async def _end_stream(self, reason: str) -> str | None:
        """The disconnect step: afterwards nothing of the old connection reaches the target.

        Returns why the stream left, if it did so by itself.
        """
        stream, self._stream = self._stream, None
        if stream is None:
            return None
        stream.leave(reason, retry=False)
        await stream.finished()
        await self.link.disconnect()
        return stream.reason

    # --- rounds -------------------------------------------------------------------------------------------------------

    async def _synchronize(self) -> None:
        self._lost_rounds = 0
        for _ in range(self.policy.rounds_max):
            self._go_on()
            stream = await self._round()
            if stream is not None and await stream.converge():
                self._record.synchronized = True
                await self._save()
                if stream.mode is not StreamMode.SYNC:
                    raise InvalidState(self._what, "left", "synchronized")
                self._turn(CopyEvent.CONVERGED, "")
                return
            self._lost_rounds += stream is not None
        lost = self._stream.reason if self._stream is not None else None
        raise InvalidState(
            self._what, f"behind after {self.policy.rounds_max} rounds ({lost})", "a target as fast as the writes"
        )

    async def _round(self) -> MirrorStream | None:
        """Steps 1 and 2. Returns the stream since S; None when S is older than any stream (a resumed round)."""
        await self._end_stream("the next round begins")
        state = await self.link.connect()
        self.rounds += 1
        common = self._common(state)
        source = self._resumable(state)
        resumed = source is not None
        if source is None:
            await Ledger.discard(self._env.control_files, self._ledger_path)
            await self.link.abort_staging()
            guid = str(uuid.uuid4())
            self._stream = MirrorStream(
                self.source,
                self.link,
                state.ack,
                budget_s=self.policy.budget_s,
                demote=self._demoted,
                queue_bytes=self.policy.queue_bytes,
                allowance=None if self._lost_rounds < self.policy.unpaced_rounds else self._allowance,
            )
            self.source.require_usable()
            await self.source.head.store.prepare_flip()
            while self.source.is_quiesced:  # its content is being replaced, behind every stream's back
                await self.source.resumed()
                await self.source.head.store.prepare_flip()
            self._go_on()  # a stream that was told to leave before it is attached would stay attached for ever
            # One step of the loop: S has every write before it, the stream every one after.
            self.source.attach(self._stream)
            head = self.source.head
            source = await head.store.snapshot(head, f"{self._prefix}.{guid}", guid=guid, hidden=True)
        await self._ship(source, common, resumed=resumed)
        await self.link.commit_staging(source.guid)
        await self._advance(source.guid)
        await Ledger.discard(self._env.control_files, self._ledger_path)
        return self._stream

    async def _ship(self, source: Frozen, common: str | None, *, resumed: bool) -> None:
        """The delta to ``source``, verified, into the target's staging area."""
        store = self.source.head.store
        extents = [extent async for extent in store.changed(self._source_point(common), source)]
        if resumed:
            base = self._record.round_base
            staging = await self.link.resume_staging()
        else:
            base = common
            if await self.link.changed(common, None):
                base = str(uuid.uuid4())
                await self.link.freeze_head(base)
            staging = await self.link.begin_staging(base, source.size_bytes)
            self._record.round_source, self._record.round_base = source.guid, base
            await self._save()
        written = [] if base == common else await self.link.changed(common, base)
        extents += [extent for extent in written if extent.offset < source.size_bytes]
        key = LedgerKey(source.guid, base or "", self.link.target_name, source.size_bytes)
        ledger = await Ledger.open(self._env.control_files, self._ledger_path, key)
        self._control = CopyControl()
        options = CopyOptions(blank_target=base is None, compare_first=bool(written))
        try:
            self._go_on()
            self._copying = asyncio.get_running_loop().create_task(
                copy_extents(
                    source,
                    staging,
                    extents,
                    ledger=ledger,
                    options=options,
                    control=self._control,
                    mover=self._env.mover,
                )
            )
            await asyncio.wait([self._copying])
            if self._copying.cancelled():
                raise InvalidState(self._what, "stopping", "running")
            progress = self._copying.result().progress
            self.written_bytes += progress.written_bytes
            self._finished_bytes += progress.total_bytes
            self._control = CopyControl()
        finally:
            self._copying = None
            await ledger.close()

    def _allowance(self) -> int:
        """Bytes that hosts may have queued by now: three quarters of the queue, in step with the copy."""
        progress = self._control.progress
        moved = progress.written_bytes + progress.equal_bytes + progress.zero_bytes
        return self.policy.queue_bytes * 3 // 4 * moved // max(1, moved, progress.total_bytes)

    def _go_on(self) -> None:
        if self._stopping is not None:
            raise InvalidState(self._what, "stopping", "running")

    def _common(self, state: LinkState) -> str | None:
        """C, if both sides still have it."""
        record = self._record
        if record.round_source in state.points and self._source_point(record.round_source) is not None:
            record.common = record.round_source  # the last round's switch was durable, its record was not
        common = record.common
        if common is None or common not in state.points or self._source_point(common) is None:
            return None
        return common

    def _resumable(self, state: LinkState) -> Frozen | None:
        """The interrupted round's S, if its staging area, base and S itself are still there."""
        record = self._record
        if not state.staging or record.round_source is None or record.round_source in state.points:
            return None
        if record.round_base is not None and record.round_base not in state.points:
            return None
        return self._source_point(record.round_source)

    async def _advance(self, guid: str) -> None:
        """``guid`` is on both sides, durably and the same: it is C now, and older points go."""
        self._record.common = guid
        self._record.round_source = self._record.round_base = None
        await self._save()
        keep = {guid, *self._pinned}
        await self.link.keep_points(keep)
        await self._keep_source_points(keep)

    # --- while synchronized ----------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Until the stream leaves; now and then the common point moves forward."""
        stream = self._stream
        assert stream is not None
        marked = stream.written_bytes
        while not stream.closed.is_set():
            try:
                async with asyncio.timeout(self.policy.mark_interval_s):
                    await stream.closed.wait()
            except TimeoutError:
                if stream.written_bytes == marked:
                    continue
                marked = stream.written_bytes
                async with self._lock:
                    if stream.mode is StreamMode.SYNC:
                        await self._mark(stream)

    async def _mark(self, stream: MirrorStream, then_leave: str | None = None) -> None:
        """A recovery point at one place in the stream, on both sides; it becomes C.

        The source's is taken in the step in which the stream begins to hold new writes; the target's when all before
        have arrived, and none after is sent until it is durable. It counts only if none of the writes before it
        failed on either side.
        """
        await self.source.flush()  # here and at the target, so that little is left to do while hosts wait
        guid = str(uuid.uuid4())
        await self.source.head.store.prepare_flip()
        head = self.source.head
        stream.hold()
        follow = asyncio.get_running_loop().create_task(self._mark_target(stream, guid, release=then_leave is None))
        try:
            # Still the step of ``hold``: the snapshot has exactly the writes that the stream did not hold back.
            await head.store.snapshot(head, f"{self._prefix}.{guid}", guid=guid, hidden=True)
            await follow
        except BaseException as error:
            await asyncio.wait([follow])
            if not follow.cancelled():
                follow.exception()  # the first error is the one to report
            stream.leave(f"no common point could be taken: {error}", retry=False)
            raise
        if stream.mode is not (StreamMode.SYNC if then_leave is None else StreamMode.HELD):
            raise InvalidState(self._what, self._state_text(), "Synchronized")
        await self._advance(guid)
        if then_leave is not None:
            stream.leave(then_leave, retry=False)

    async def _mark_target(self, stream: MirrorStream, guid: str, *, release: bool) -> None:
        await stream.drained()
        await self.link.mark(guid)
        if release:
            stream.release()

    async def _mismatch(self, document: proof.Proof, differing: list[Extent]) -> None:
        first = differing[0]
        error = IntegrityError(
            f"{self._what}: {document.differing_bytes} bytes differ",
            first.offset,
            first.length,
            document.source.root,
            document.target.root,
        )
        log.error("%s", error)
        self._record.common = None  # neither side may serve as a base any more
        if self._stream is not None:
            self._stream.leave(str(error), retry=False)
            await self._stream.closed.wait()
        else:
            await self._save()
            self._turn(CopyEvent.BREAK, str(error), "error")

    # --- recovery points of the source --------------------------------------------------------------------------------

    def _source_point(self, guid: str | None) -> Frozen | None:
        if guid is None:
            return None
        head = self.source.head
        for point in head.store.snapshots(head.volume_id):
            if point.guid == guid:
                return point
        return None

    async def _keep_source_points(self, guids: set[str]) -> None:
        head = self.source.head
        for point in head.store.snapshots(head.volume_id):
            if point.name.startswith(self._prefix) and point.guid not in guids:
                try:
                    await head.store.delete_snapshot(point)
                except NotFound:
                    log.debug("%s: point %s is gone already", self._what, point.guid)
