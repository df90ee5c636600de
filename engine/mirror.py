"""A mirror: pairing, states, operations, and what its mode makes of rounds.

``engine.mirror_round`` brings over what the target has not; ``engine.mirror_stream`` carries later writes while hosts
wait for them; ``engine.modes`` decides when. What the modes make of that:

    synchronous   rounds with a stream until it converges (REPLICATION section 5), then ``_watch``. What the target
                  does not take within the budget breaks the mirror; the source goes on, unless a failed copy is to
                  stop its hosts: then they are refused until it is synchronized again.
    asynchronous  a round whenever the cadence wants one (section 4), again and again. After a failure it tries again
                  by itself, for ever.
    adaptive      synchronous as long as the target keeps the latency budget, else asynchronous; back when the
                  hold-down time is over and the target has shown that it can follow.

*Synchronized* says for the first, and for an adaptive mirror, that the target has everything that was acknowledged.
For an asynchronous one it says that the target is one instant of the source not older than the RPO
(docs/decisions/0022).

Invariants:

* That the target has everything is recorded before it is claimed, and never restored from the record: each start
  begins with a round.
* A demotion is recorded before any host is acknowledged without the target (``MirrorStream``), and before that the
  target's lease is over (``engine.lease``): it has said that it claims nothing any more, or the lease was waited out.
* Nobody but the mirror writes to the target, unless it is fractured; until then its content is always some prefix
  of what the source acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Generic, TypeVar

from engine import proof
from engine.copy_state import CopyEvent, CopyMode, CopyState, SyncType, after
from engine.errors import EngineError, IntegrityError, InvalidState, TimedOut, WritesHeld
from engine.lease import SourceLease, length_s
from engine.links import LivePoint, MirrorLink
from engine.mirror_parts import MirrorRounds, MirrorTarget, Stream
from engine.mirror_record import MirrorPolicy, MirrorRecord
from engine.mirror_round import Rounds
from engine.mirror_standing import MirrorStanding
from engine.mirror_stream import MirrorStream, StreamMode
from engine.modes import Cadence, ModeSwitch, Promise

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
    from pathlib import Path

    from engine.copy_job import CopyControl
    from engine.copy_state import Standing
    from engine.files import StoreEnv
    from engine.links import Ack, LinkState
    from engine.mirror_record import RecoveryPoint
    from engine.mirror_round import Shipped
    from engine.stores import Extent, Frozen
    from engine.volume import Volume

log = logging.getLogger(__name__)

BRING_LOOK_S = 0.02
"""How often it is looked whether everything has been brought over."""

TIMER_ERROR_S = 0.001
"""A timer may end so much early."""

LATE_SHARE, DETECT_SHARE = 0.25, 0.75
"""Of the latency budget, where the target has a lease, which is half of it: after the first share of waiting nothing is
granted any more, so that after the second, when the mirror leaves, the lease is over. The rest is for the record."""

WATCH_SHARE = 0.05
WATCH_MIN_S, WATCH_MAX_S = 0.05, 10.0
"""How often the promise of an asynchronous mirror is looked at: in shares of the RPO, within these limits."""


def _nobody() -> Collection[str]:
    return ()


RoundsT = TypeVar("RoundsT", bound=MirrorRounds)
LinkT = TypeVar("LinkT", bound=MirrorTarget)
StreamT = TypeVar("StreamT", bound=Stream)


class MirrorRun(Generic[RoundsT, LinkT, StreamT]):
    """See the module: all but what a round is of, which ``Mirror`` and ``engine.mirror_group.GroupMirror`` add.

    Args:
        record: as saved last; a new one for a new mirror.
        save: makes the record durable; awaited before what the record says is acted on.
        tell: takes events (severity, text) for the administrator.
    """

    sync_type = SyncType.MIRROR

    def __init__(
        self,
        name: str,
        link: LinkT,
        rounds: RoundsT,
        env: StoreEnv,
        *,
        record: MirrorRecord,
        save: Callable[[], Awaitable[None]],
        tell: Callable[[str, str], None],
        mode: CopyMode,
        policy: MirrorPolicy,
    ) -> None:
        self.name = name
        self._what = f"replica {name}"
        self.link = link
        self.mode = mode
        self.policy = policy
        self._env = env
        self._record = record
        self._save = save
        self._rounds = rounds
        self._cadence = None if mode is CopyMode.SYNCHRONOUS else Cadence(self.policy.rpo_s)
        self._switch = ModeSwitch(self.policy.hold_down_s, self.policy.backlog_bytes)
        self._detect_s = self.policy.budget_s * (DETECT_SHARE if link.grants_lease else 1)
        self._lease = SourceLease(length_s(self.policy.budget_s) if link.grants_lease else 0.0, self._is_late)
        self._percent_floor = 0
        self._lost_rounds = 0
        self._stream: StreamT | None = None
        self._run_task: asyncio.Task[None] | None = None
        self._stopping: CopyEvent | None = None
        self._wake = asyncio.Event()  # ends a pause: to stop, or to go on at once
        self._retry = False
        self._ended = False
        self._closing = False
        self._lock = asyncio.Lock()  # one operation on the common point at a time
        self._standing = MirrorStanding(name, mode, env.clock, record.wanted, record.reason, tell)

    # --- what a round is of -------------------------------------------------------------------------------------------

    async def _round(self, state: LinkState, *, stream: bool) -> Shipped:
        """One round. ``stream``: of a mirror that is to become synchronous, with ``_stream`` from the flip on."""
        raise NotImplementedError

    async def _is_current(self, state: LinkState) -> bool:
        """See ``Rounds.is_current``."""
        raise NotImplementedError

    async def _mark_point(self, stream: StreamT, *, release: bool) -> None:
        """See ``Rounds.mark``."""
        raise NotImplementedError

    def _hold_hosts(self, reason: str) -> None:
        """From this step on no host writes anything."""
        raise NotImplementedError

    def _let_hosts_go(self) -> None:
        """As far as this mirror is concerned they write again."""
        raise NotImplementedError

    # --- what it is -----------------------------------------------------------------------------------------------

    @property
    def standing(self) -> Standing:
        return self._standing.present

    @property
    def common(self) -> str | None:
        """GUID of the recovery point that both sides have."""
        return self._record.common

    @property
    def points(self) -> Sequence[RecoveryPoint]:
        """Recovery points that are complete at the target, oldest first."""
        return self._record.points

    @property
    def rounds(self) -> int:
        return self._rounds.count

    @property
    def rounds_resumed(self) -> int:
        return self._rounds.resumed

    @property
    def written_bytes(self) -> int:
        """Written to the target in rounds."""
        return self._rounds.written_bytes

    @property
    def equal_bytes(self) -> int:
        """Found equal there in rounds, and so not written."""
        return self._rounds.equal_bytes

    @property
    def switches(self) -> int:
        """How often an adaptive mirror has become or stopped being synchronous."""
        return self._switch.switches

    @property
    def is_exact(self) -> bool:
        """Whether the target has everything that was acknowledged."""
        return self._standing.state is CopyState.SYNCHRONIZED and self.mode is not CopyMode.ASYNCHRONOUS

    @property
    def differs(self) -> bool:
        """Whether it was found that the two sides differ, and nobody has said ``resync`` since."""
        return self._standing.differs

    @property
    def percent_synced(self) -> int:
        """100 only when synchronized; within one resync it never falls."""
        if self._standing.state is CopyState.SYNCHRONIZED:
            return 100
        left, size = self._rounds.left, self._rounds.size_bytes
        if left is not None and size:
            self._percent_floor = max(self._percent_floor, min(99, 100 * (size - min(size, left[0])) // size))
        return self._percent_floor

    @property
    def progress_bytes(self) -> tuple[int, int]:
        """Of all rounds since the last start: done, and known to be to do."""
        return self._rounds.progress

    @property
    def lag_bytes(self) -> int:
        """What is known to be missing at the target: the rest of the round and the queue."""
        if self.is_exact:
            return 0
        left = self._rounds.left
        return (left[0] if left is not None else 0) + (self._stream.queue_bytes if self._stream is not None else 0)

    @property
    def lag_s(self) -> float | None:
        """Time since the instant that the target has, complete; 0 while it has everything, None when it has none."""
        if self.is_exact:
            return 0.0
        instant = self._rounds.instant
        return None if instant is None else max(0.0, self._env.clock.boottime() - instant)

    @property
    def rpo_s(self) -> float | None:
        """The promise. None: synchronous."""
        return None if self._cadence is None else self._cadence.rpo_s

    @property
    def promise(self) -> Promise | None:
        """How the RPO stands. None: there is none."""
        return None if self._cadence is None else self._cadence.promise

    @property
    def forecast_s(self) -> float | None:
        """What the lag will be at most before the next recovery point is complete. None: nothing to tell from."""
        instant = self._rounds.instant
        if self._cadence is None or self.is_exact or instant is None:
            return None
        left = self._rounds.left
        progress = 0.0 if left is None else 1 - left[0] / left[1]
        now = self._env.clock.boottime()
        return self._cadence.forecast(now, instant, started=self._rounds.started, progress=progress)

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
                        raise InvalidState(self._what, self._standing.text(), "Synchronized")
                    await self._standing.turned(self._run_task)
        except TimeoutError:
            raise TimedOut(f"{self._what} is not synchronized after {timeout_s:g} s: {self._standing.text()}") from None

    # --- operations -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin the first round, unless the administrator left the mirror fractured or suspended.

        Awaited before the source is served: a source that was synchronized when it ended is recorded as demoted
        before it acknowledges anything that the target does not have.
        """
        record = self._record
        record.held = record.held or (record.synchronized and self.policy.stops_host_io)
        if record.held:
            self._hold_hosts("begins again")
        if record.synchronized:
            self._lease.assume(self._now())
            await self._end_lease()
            record.synchronized = False
            await self._save()
        if record.wanted == "active":
            self._begin(CopyEvent.BEGIN if self._record.common is None else CopyEvent.RESYNC, "")

    async def fracture(self) -> None:
        """Let the target go its own way; changes are known by the common point. Hosts of the source do not notice."""
        await self._rest(CopyEvent.FRACTURE, "fractured")

    async def seal(self, reason: str) -> str:
        """Fracture at a common point of this very moment, and return its GUID. What the administrator wants stays on
        record: a restart begins a round.

        Raises InvalidState: it was not synchronous, or no such point could be taken.
        """
        before = self._record.common
        if not self.is_exact:
            raise InvalidState(self._what, self._standing.text(), "synchronous, Synchronized")
        await self._leave_in_order(CopyEvent.FRACTURE, reason)
        if self._record.common is None or self._record.common == before:
            await self.resync()
            raise InvalidState(self._what, "without a common point of this moment", "a link that holds")
        return self._record.common

    async def bring_all(self, reason: str) -> str:
        """Nobody writes to the source any more: bring over what is missing, and come to rest at a common point, whose
        GUID is returned. What the administrator wants stays on record.

        Raises InvalidState: the mirror does not run, or the target does not take it.
        """
        since = self._now()
        while not self.is_exact:
            instant = self._rounds.instant
            if instant is not None and instant >= since and self._cadence is not None:
                await self._leave_in_order(CopyEvent.FRACTURE, reason)
                assert self._record.common is not None
                return self._record.common
            if self._run_task is None or self._run_task.done() or self._standing.state is CopyState.BROKEN:
                raise InvalidState(self._what, self._standing.text(), "one that reaches its target")
            self._wake.set()
            await asyncio.sleep(BRING_LOOK_S)
        return await self.seal(reason)

    async def agree_on(self, guids: Collection[str]) -> None:
        """Count from the newest recovery point that is one of these; from none, if the other side has none of them."""
        assert self._run_task is None or self._run_task.done()
        known = [point for point in self._record.points if point.guid in guids]
        self._record.common = known[-1].guid if known else None
        self._record.points = tuple(known)
        self._record.round_source = self._record.round_base = None
        await self._save()

    async def fail_back(self) -> None:
        """Begin rounds to what was the source before the target took its place. What only that had is overwritten."""
        await self._go(CopyEvent.FAIL_BACK if self._standing.state is CopyState.FAILEDOVER else CopyEvent.RESYNC)

    @property
    def is_at_rest(self) -> bool:
        return self._run_task is None or self._run_task.done()

    @property
    def is_demoted(self) -> bool:
        """Whether hosts may have been acknowledged without the target, by the record."""
        return not self._record.synchronized

    async def suspend(self) -> None:
        """Stop the flow. A copy under way keeps what it has and goes on at ``resume``."""
        await self._rest(CopyEvent.SUSPEND, "suspended")

    async def resync(self) -> None:
        """Begin rounds again after a fracture or failure. Returns at once; see ``wait_synchronized``.

        A mirror that goes on by itself does so now: it tries again, or begins the next recovery point.
        """
        if self._cadence is not None and self._run_task is not None and not self._run_task.done():
            self._wake.set()
        else:
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
                raise InvalidState(self._what, self._standing.text(), "one that is at rest")
            try:
                yield
            finally:
                if not self._ended:
                    self._begin(CopyEvent.RESUME, "")

    @contextlib.asynccontextmanager
    async def _pinned_point(self) -> AsyncIterator[str]:
        """A common point that stays as long as it is looked at: while synchronized a new one, taken at the same place
        in the stream on both sides; else the last one. Raises InvalidState: there is none yet."""
        async with self._lock:
            if self._stream is not None and self._stream.mode is StreamMode.SYNC:
                await self._mark(self._stream)
            guid = self._record.common
            if guid is None:
                raise InvalidState(self._what, self._standing.text(), "a completed first copy")
            self._rounds.pinned.add(guid)
        try:
            yield guid
        finally:
            self._rounds.pinned.discard(guid)

    async def thin(self, limit_bytes: int) -> None:
        """See to it that the mirror holds back no more of the source's space; a target that is gone fills nothing."""
        freed = await self._rounds.thin(limit_bytes)
        if freed:
            text = f"{freed} bytes that the common point held are given back; changes are known by a note"
            self._standing.say("info", text)

    async def detach(self) -> None:
        """End the relation. The target keeps the last state it had: the source's own, if it was synchronized.

        The common points and anything half copied are removed. The object is of no use afterwards.
        """
        self._ended = True
        await self._stop(CopyEvent.FRACTURE, "detached")
        await self._rounds.forget()
        self._let_hosts_go()

    async def close(self) -> None:
        """The daemon ends: stop, and leave everything for the next start."""
        self._ended = self._closing = True
        await self._stop(CopyEvent.SUSPEND, "the daemon stops")

    # --- starting and stopping ----------------------------------------------------------------------------------------

    def _begin(self, event: CopyEvent, reason: str) -> None:
        self._rounds.begin()
        self._percent_floor = 0
        self._stopping = None
        self._standing.differs = False
        self._wake.set()  # the first round is due at once
        self._standing.turn(event, reason)
        self._run_task = asyncio.get_running_loop().create_task(self._run(), name=self._what)

    async def _go(self, event: CopyEvent) -> None:
        async with self._lock:
            after(self._standing.state, event, self._what)
            if self._run_task is not None and not self._run_task.done():
                raise InvalidState(self._what, self._standing.text(), "one that is at rest")
            self._record.wanted = "active"
            self._record.reason = ""
            await self._save()
            self._begin(event, "")

    async def _rest(self, event: CopyEvent, wanted: str) -> None:
        """Fracture or suspend, as the administrator wants."""
        await self._leave_in_order(event, f"{wanted} by the administrator", wanted)
        if self._record.held:
            self._record.held = False
            await self._save()
        self._let_hosts_go()

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
            self._standing.turn(event, reason)

    async def _stop(self, event: CopyEvent, reason: str) -> None:
        """Bring the run to its end at the next safe place; what was copied stays in staging and ledger."""
        task = self._run_task
        if task is None or task.done():
            return
        self._stopping = event
        self._wake.set()
        if self._stream is not None:
            self._stream.leave(reason, retry=False)
        self._rounds.stop()
        await asyncio.wait([task])

    async def _demoted(self, reason: str, retry: bool) -> None:
        """The stream leaves the synchronous state; returns once nobody claims it any more and that is durable.

        Raises WritesHeld, for those who wait, where a failed copy is to stop hosts.
        """
        was_exact = self._record.synchronized or self._record.held
        meant = self._stopping not in (None, CopyEvent.BREAK) and not self._closing  # the administrator's own doing
        stops = self.policy.stops_host_io and was_exact and not meant
        if stops:
            self._hold_hosts(reason)
        self._lease.stop()
        self._retry = retry and self._stopping is None
        if self._standing.state is CopyState.SYNCHRONIZED:
            self._percent_floor = 0
            if self._stopping is not None:
                self._standing.turn(self._stopping, reason, "error" if self._stopping is CopyEvent.BREAK else "info")
            elif retry or self.mode is CopyMode.ADAPTIVE:
                self._standing.turn(CopyEvent.RESYNC, reason, "warning")
            else:
                self._standing.turn(CopyEvent.BREAK, reason, "error")
        await self._end_lease()
        if self._is_replaced():
            return  # nobody is acknowledged any more: the target has taken the source's place
        self._record.synchronized, self._record.held = False, stops
        await self._save()
        if stops:
            raise WritesHeld(f"{self._what}, without which its source is not to be written, has no target: {reason}")

    def _is_replaced(self) -> bool:
        """Whether the target has, or may have, taken the source's place."""
        return False

    async def _end_lease(self) -> None:
        """Return when the target holds no lease: it says so, or it must be over."""
        self._lease.stop()
        if self._lease.over_at <= self._now():
            return
        with contextlib.suppress(EngineError, TimeoutError):
            async with asyncio.timeout(self._lease.over_at - self._now()):
                await self.link.demote()
                self._lease.released()
        # A timer counts no time of a suspend, and so ends later than the lease, never earlier.
        while self._lease.over_at > self._now():  # noqa: ASYNC110 - a clock
            await asyncio.sleep(self._lease.over_at - self._now() + TIMER_ERROR_S)

    def _is_late(self) -> bool:
        return self._stream is None or self._stream.oldest_wait_s > LATE_SHARE * self.policy.budget_s

    # --- what the mode makes of rounds --------------------------------------------------------------------------------

    async def _run(self) -> None:
        """From a start to the next stop."""
        watching = None
        if self._cadence is not None:
            watching = asyncio.get_running_loop().create_task(self._watch_promise(self._cadence))
        try:
            if self._cadence is None:
                await self._run_synchronous()
            else:
                await self._run_by_itself(self._cadence)
        finally:
            if watching is not None:
                watching.cancel()

    async def _run_synchronous(self) -> None:
        """Rounds until synchronized, then watch; again after a failure of the source's own."""
        while True:
            reason = await self._attempt(self._be_synchronous())
            if self._stopping is not None:
                return
            if not self._retry:
                if reason is not None and self._standing.state is CopyState.UNSYNCHRONIZED:
                    self._standing.turn(CopyEvent.BREAK, reason, "error")
                return
            self._retry = False

    async def _run_by_itself(self, cadence: Cadence) -> None:
        """Asynchronous rounds, and synchronous where the mode and the switch allow it; never giving up."""
        failures = 0
        while True:
            synchronous = self.mode is CopyMode.ADAPTIVE and self._switch.may_be_synchronous(self._now())
            reason = await self._attempt(self._be_synchronous() if synchronous else self._cycle(cadence))
            if self._stopping is not None:
                return
            if synchronous:
                hold_s = self._switch.left(self._now())
                text = f"asynchronous for {hold_s:g} s at least ({reason})"
                self._standing.say("warning", text)
                failures = 0  # the next round is due at once; it finds out whether the target is there
            elif reason is None:
                failures = 0
            else:
                failures += 1
                if self._standing.state is not CopyState.BROKEN:
                    self._standing.turn(CopyEvent.BREAK, reason, "error")
                pause_s = min(self.policy.retry_max_s, self.policy.retry_s * 2.0 ** min(failures - 1, 16))
                await self._pause(self._now() + pause_s)
                self._wake.set()  # what was due is due again, whatever the cadence says

    async def _attempt(self, work: Awaitable[None]) -> str | None:
        """Work over one connection, to its end. Returns why it did not do what it was for."""
        reason = None
        try:
            await work
        except Exception as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # what ended on the way raised something else in its place
                raise asyncio.CancelledError from error
            if not isinstance(error, EngineError):
                log.exception("%s broke by a mistake in twinvol", self._what)
            reason = str(error)
        had_stream = self._stream is not None
        reason = await self._end_stream(reason or "the round ended") or reason
        if reason is not None and not had_stream:
            await self.link.disconnect()
        return reason

    async def _be_synchronous(self) -> None:
        await self._synchronize()
        self._switch.returned(self._now())
        await self._watch()

    async def _cycle(self, cadence: Cadence) -> None:
        """Wait until the next recovery point is due, and bring it over, if it differs from the last one."""
        await self._pause(cadence.next_start(self._rounds.instant))
        self._rounds.go_on()
        state = await self.link.connect()
        self._reached()
        if not await self._is_current(state):
            shipped = await self._round(state, stream=False)
            if shipped.interval_s is not None:
                cadence.observe(shipped.interval_s, self._now() - shipped.instant)
            self._switch.shipped(shipped.changed_bytes)
        else:
            self._switch.shipped(0)
        lag_s = self.lag_s
        kept = lag_s is not None and lag_s <= cadence.rpo_s
        if self.mode is CopyMode.ASYNCHRONOUS and kept and self._standing.state is CopyState.UNSYNCHRONIZED:
            self._standing.turn(CopyEvent.CONVERGED, "")

    def _reached(self) -> None:
        """The target answers."""
        if self._standing.state is CopyState.BROKEN:
            self._standing.turn(CopyEvent.RESYNC, "the target answers again")

    async def _watch_promise(self, cadence: Cadence) -> None:
        """Compare lag and forecast with the RPO, all the time, whatever the rounds are doing. Until cancelled."""
        while True:
            await asyncio.sleep(min(WATCH_MAX_S, max(WATCH_MIN_S, WATCH_SHARE * cadence.rpo_s)))
            lag_s, forecast_s = self.lag_s, self.forecast_s
            if lag_s is None:
                continue
            told = cadence.judge(lag_s, forecast_s or 0.0)
            figures = f"lag {lag_s:.1f} s, forecast {forecast_s or 0.0:.1f} s, RPO {cadence.rpo_s:g} s"
            text = f"the RPO is {cadence.promise.value}: {figures}"
            severity = {Promise.KEPT: "info", Promise.AT_RISK: "warning", Promise.BROKEN: "error"}[cadence.promise]
            called_current = self._standing.state is CopyState.SYNCHRONIZED and self.mode is CopyMode.ASYNCHRONOUS
            if called_current and lag_s > cadence.rpo_s:
                self._percent_floor = 0
                self._standing.turn(CopyEvent.RESYNC, text, severity)
            elif told:
                self._standing.say(severity, text)

    async def _pause(self, until: float) -> None:
        """Return at that instant, or when the mirror is to stop or to go on at once."""
        left = until - self._now()
        if left <= 0:
            await asyncio.sleep(0)  # whatever follows may find nothing to wait for
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()
        if self._stopping is None:
            self._wake.clear()

    def _now(self) -> float:
        return self._env.clock.boottime()

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

    # --- becoming synchronous ----------------------------------------------------------------------------------------

    async def _synchronize(self) -> None:
        self._lost_rounds = 0
        for _ in range(self.policy.rounds_max):
            self._rounds.go_on()
            await self._end_stream("the next round begins")
            state = await self.link.connect()
            self._reached()
            await self._round(state, stream=True)
            stream = self._stream  # None: an interrupted round went on, whose point is older than any stream
            if stream is not None and await stream.converge():
                self._record.synchronized, self._record.held = True, False
                await self._save()
                if stream.mode is not StreamMode.SYNC:
                    raise InvalidState(self._what, "left", "synchronized")
                self._let_hosts_go()
                self._standing.turn(CopyEvent.CONVERGED, "")
                if self.link.grants_lease:
                    self._lease.begin()
                    self.link.serve_lease(self._lease)
                return
            self._lost_rounds += stream is not None
        lost = self._stream.reason if self._stream is not None else None
        raise InvalidState(
            self._what, f"behind after {self.policy.rounds_max} rounds ({lost})", "a target as fast as the writes"
        )

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

    async def _mark(self, stream: StreamT, then_leave: str | None = None) -> None:
        """A recovery point at one place in the stream, on both sides; it becomes C."""
        try:
            await self._mark_point(stream, release=then_leave is None)
        except BaseException as error:
            stream.leave(f"no common point could be taken: {error}", retry=False)
            raise
        if then_leave is not None:
            stream.leave(then_leave, retry=False)

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
        self._standing.differs = True
        # What is under way may still make a new common point of the one that differs: first its end, then none of them
        # may serve as a base any more.
        while self._run_task is not None and not self._run_task.done():
            await self._stop(CopyEvent.BREAK, str(error))
        self._record.common = self._record.round_source = self._record.round_base = None
        await self._save()
        if self._standing.state in (CopyState.UNSYNCHRONIZED, CopyState.SYNCHRONIZED):
            self._standing.turn(CopyEvent.BREAK, str(error), "error")


class Mirror(MirrorRun[Rounds, MirrorLink, MirrorStream]):
    """A mirror of one volume.

    Args:
        source: the volume that hosts write.
        link: to the target.
        ledger_path: where the ledger of a round is kept.
        in_use: GUIDs of recovery points of the target that somebody reads; those stay.
        prefix: of the names of the source's recovery points; by default it follows from ``name``.
    """

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
        mode: CopyMode = CopyMode.SYNCHRONOUS,
        policy: MirrorPolicy | None = None,
        in_use: Callable[[], Collection[str]] = _nobody,
        prefix: str | None = None,
    ) -> None:
        policy = policy or MirrorPolicy()

        async def saved() -> None:
            await save(record)

        rounds = Rounds(
            name, source, link, env, ledger_path, policy, record=record, save=saved, in_use=in_use, prefix=prefix
        )
        super().__init__(name, link, rounds, env, record=record, save=saved, tell=tell, mode=mode, policy=policy)
        self.source = source

    async def verify(self, software: str, *, control: CopyControl | None = None) -> proof.Proof:
        """Compare a recovery point of the source with the same one of the target, by hash tree.

        While synchronized both sides take a new one at the same place in the stream; else the last common point is
        compared. The mirror breaks when they differ.

        Raises:
            InvalidState: there is no common point yet.
        """
        async with self._pinned_point() as guid:
            point = self._rounds.source_point(guid)
            if point is None:
                raise InvalidState(self._what, self._standing.text(), "a completed first copy")
            sides = self.source.name, point, self.link
            document, differing = await compared(self.name, guid, sides, self._env, software, control)
        if differing:
            await self._mismatch(document, differing)
        return document

    def _is_replaced(self) -> bool:
        return self.source.fence_reason is not None

    async def _round(self, state: LinkState, *, stream: bool) -> Shipped:
        return await self._rounds.run(state, self._new_stream if stream else None)

    def _hold_hosts(self, reason: str) -> None:
        self.source.hold_writes(self.name, f"replica {self.name}: {reason}")

    def _let_hosts_go(self) -> None:
        self.source.let_writes_go(self.name)

    async def _is_current(self, state: LinkState) -> bool:
        return await self._rounds.is_current(state)

    async def _mark_point(self, stream: MirrorStream, *, release: bool) -> None:
        await self._rounds.mark(stream, release=release)

    def _new_stream(self, ack: Ack) -> MirrorStream:
        self._stream = MirrorStream(
            self.source,
            self.link,
            ack,
            budget_s=self._detect_s,
            demote=self._demoted,
            queue_bytes=self.policy.queue_bytes,
            allowance=None if self._lost_rounds < self.policy.unpaced_rounds else self._rounds.allowance,
        )
        return self._stream


async def compared(
    name: str,
    guid: str,
    sides: tuple[str, Frozen, MirrorLink],
    env: StoreEnv,
    software: str,
    control: CopyControl | None,
) -> tuple[proof.Proof, list[Extent]]:
    """A recovery point of a source, of that name, and the same one of its target, compared by hash tree."""
    source_name, point, link = sides
    target = await link.point(guid)
    unverified: list[Extent] = []
    try:
        trees = [await proof.tree_of(side, control=control, mover=env.mover) for side in (point, target)]
    finally:
        if isinstance(target, LivePoint):
            unverified = await target.end()
    ours = source_name, guid, point.created_at, trees[0]
    theirs = link.target_name, guid, point.created_at, trees[1]
    now = env.clock.time()
    return proof.compare(name, ours, theirs, checked_at=now, software=software, unverified=unverified)
