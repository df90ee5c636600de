"""One run of a mirror, from a start to the next stop: what its mode makes of rounds.

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
* Nothing of an old connection reaches the target once the next one begins (``_end_stream``).

What is said to a mirror is in ``engine.mirror_operations``, what it shows of itself in ``engine.mirror_figures``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Generic, TypeVar

from engine.copy_state import CopyEvent, CopyMode, CopyState, SyncType
from engine.errors import EngineError, InvalidState, WritesHeld
from engine.lease import SourceLease, length_s
from engine.mirror_figures import MirrorFigures
from engine.mirror_parts import MirrorRounds, MirrorTarget, Stream
from engine.mirror_standing import MirrorStanding
from engine.mirror_stream import StreamMode
from engine.modes import Cadence, ModeSwitch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engine.copy_state import Standing
    from engine.files import StoreEnv
    from engine.links import LinkState
    from engine.mirror_record import MirrorPolicy, MirrorRecord, RecoveryPoint
    from engine.mirror_round import Shipped

log = logging.getLogger(__name__)

TIMER_ERROR_S = 0.001
"""A timer may end so much early."""

LATE_SHARE, DETECT_SHARE = 0.25, 0.75
"""Of the latency budget, where the target has a lease, which is half of it: after the first share of waiting nothing is
granted any more, so that after the second, when the mirror leaves, the lease is over. The rest is for the record."""


RoundsT = TypeVar("RoundsT", bound=MirrorRounds)
LinkT = TypeVar("LinkT", bound=MirrorTarget)
StreamT = TypeVar("StreamT", bound=Stream)


class MirrorRun(Generic[RoundsT, LinkT, StreamT]):
    """See the module: all but what a round is of, which ``Mirror`` and ``GroupMirror`` add.

    Args:
        record: as saved last; a new one for a new mirror.
        save: makes the record durable; awaited before what the record says is acted on.
        tell: takes events (severity, text) for the administrator.
    """

    sync_type = SyncType.MIRROR
    content_counts = True
    """Whether a failover may take what the target holds beside its recovery points, unless it has lost power."""

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
        self.figures = MirrorFigures(mode, rounds, self._standing, self._cadence, env.clock, self._queued)

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
    def switches(self) -> int:
        """How often an adaptive mirror has become or stopped being synchronous."""
        return self._switch.switches

    @property
    def differs(self) -> bool:
        """Whether it was found that the two sides differ, and nobody has said ``resync`` since."""
        return self._standing.differs

    def _queued(self) -> int:
        return 0 if self._stream is None else self._stream.queue_bytes

    # --- starting and stopping ----------------------------------------------------------------------------------------

    def _begin(self, event: CopyEvent, reason: str) -> None:
        self._rounds.begin()
        self.figures.begin()
        self._stopping = None
        self._standing.differs = False
        self._wake.set()  # the first round is due at once
        self._standing.turn(event, reason)
        self._run_task = asyncio.get_running_loop().create_task(self._run(), name=self._what)

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
            self.figures.begin()
            if was_exact and self.content_counts:
                self.figures.left()
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
            watching = asyncio.get_running_loop().create_task(self.figures.watch_promise(self._cadence))
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
        self._reached(state)
        if not await self._is_current(state):
            shipped = await self._round(state, stream=False)
            if shipped.interval_s is not None:
                cadence.observe(shipped.interval_s, self._now() - shipped.instant)
            self._switch.shipped(shipped.changed_bytes)
        else:
            self._switch.shipped(0)
        lag_s = self.figures.lag_s
        kept = lag_s is not None and lag_s <= cadence.rpo_s
        if self.mode is CopyMode.ASYNCHRONOUS and kept and self._standing.state is CopyState.UNSYNCHRONIZED:
            self._standing.turn(CopyEvent.CONVERGED, "")

    def _reached(self, state: LinkState) -> None:
        """The target answers."""
        self.figures.reached(state.ack.incarnation)
        if self._standing.state is CopyState.BROKEN:
            self._standing.turn(CopyEvent.RESYNC, "the target answers again")

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
            self._reached(state)
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
