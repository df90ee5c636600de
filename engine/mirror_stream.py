"""The stream of a mirror: every write of the source after an instant, in sequence, to the target.

The middle part of REPLICATION section 5; ``engine.mirror_run`` drives it. Its modes, in their order:

    QUEUE     hosts are acknowledged locally; writes wait here, copied, at most ``queue_bytes``
    DRAIN     the queue is applied strictly in sequence, one write after the other
    CATCH_UP  the queue is short: from sequence q on hosts wait for the target; below q still strictly in sequence
    SYNC      all below q is applied: writes go to the target at once and concurrently; hosts wait
    HELD      for a marker: new writes wait here (and their hosts) until those under way have ended on the target
    LEAVING   nothing more is sent; nobody is acknowledged without the target until the demotion is durably recorded
    CLOSED

Invariants:

* Every applied prefix of the queue is write-order consistent, because nothing overtakes in DRAIN and CATCH_UP.
* In SYNC, HELD and LEAVING a host is acknowledged only by an ``Ack`` of this stream's incarnation and connection, or
  after ``demote`` has returned.
* A stream whose queue overflowed, or of which the source refused a write, is of no more use: it drops everything at
  once and is ``lost``. What it carried can be derived from its starting point. ``reason`` says why a stream ended.
* A host waits for the target no longer than ``budget_s`` plus the time of recording the demotion.

A source that is written faster than it can be copied would overflow every queue. With an ``allowance`` the stream is
*paced*: in QUEUE and DRAIN hosts are held back, each write for at most ``budget_s``, so that the queue fills no faster
than the round advances, and is refilled at half the speed at which it is drained.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import EngineError, InvalidState
from engine.links import MirrorWrite
from engine.units import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from engine.links import Ack, MirrorLink
    from engine.volume import Change, Volume

QUEUE_BYTES_MAX = 64 * MIB
"""Data that waits in RAM while hosts are acknowledged locally."""

QUEUE_WRITES_MAX = 65536
"""Entries that wait; discards have no data and still take room."""

CATCH_UP_BYTES = 1 * MIB
"""Below this the rest of the queue is applied while hosts wait: a few milliseconds."""

PACE_SLACK_BYTES = 256 * KIB
"""So much may always be submitted before anybody is held back."""

PACE_INTERVAL_S = 0.002
"""How often those held back are looked at."""

BATCH_BYTES = 1 * MIB
BATCH_WRITES = 64
"""One hand-over to the link in DRAIN."""


class StreamMode(enum.Enum):
    QUEUE = "queue"
    DRAIN = "drain"
    CATCH_UP = "catch up"
    SYNC = "sync"
    HELD = "held"
    LEAVING = "leaving"
    CLOSED = "closed"


@dataclass(eq=False, slots=True)
class _Waiting:
    """A host's wait: a write or flush that the target has not acknowledged."""

    future: asyncio.Future[None]
    since: float


class MirrorStream:
    """See the module. Fulfils ``engine.volume.WriteTap``.

    Args:
        ack: of this connection, as ``connect`` returned it.
        budget_s: how long a host may wait for the target.
        demote: durably records that the mirror leaves the synchronous state, with the reason; awaited before
            anybody is acknowledged without the target. ``retry``: a new round may begin by itself.
        allowance: bytes that hosts may have submitted by now, given how far the round is; None: no pacing.
    """

    def __init__(
        self,
        source: Volume,
        link: MirrorLink,
        ack: Ack,
        *,
        budget_s: float,
        demote: Callable[[str, bool], Coroutine[None, None, None]],
        queue_bytes: int = QUEUE_BYTES_MAX,
        catch_up_bytes: int = CATCH_UP_BYTES,
        allowance: Callable[[], int] | None = None,
    ) -> None:
        self.mode = StreamMode.QUEUE
        self.lost = False
        self.reason: str | None = None
        self.written_bytes = 0
        self._source = source
        self._link = link
        self._ack = ack
        self._budget_s = budget_s
        self._demote = demote
        self._queue_bytes_max = queue_bytes
        self._catch_up_bytes = catch_up_bytes
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[MirrorWrite, _Waiting | None]] = deque()
        self._queue_bytes = 0
        self._waiting: dict[_Waiting, None] = {}
        self._under_way = 0
        self._unstarted = 0  # tasks of ``_apply`` that have not taken their first step
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._allowance = allowance
        self._submitted_bytes = 0
        self._drain_from = 0
        self._drained_bytes = 0
        self._held_back: deque[tuple[int, _Waiting]] = deque()
        self._pace_timer: asyncio.TimerHandle | None = None
        self._left: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.closed = asyncio.Event()
        self.leaving: Callable[[str, bool], None] | None = None
        """Called in the step in which the stream leaves, with reason and ``retry``: others that leave with it."""

    @property
    def oldest_wait_s(self) -> float:
        """How long the host that has waited longest for the target does so."""
        oldest = next(iter(self._waiting), None)
        return 0.0 if oldest is None else self._loop.time() - oldest.since

    @property
    def queue_bytes(self) -> int:
        return self._queue_bytes

    # --- engine.volume.WriteTap: one step of the loop each ---------------------------------------------------------

    def submit(self, change: Change, /) -> Awaitable[None] | None:
        if self.mode is StreamMode.LEAVING:
            return self._until_left()
        if self.mode is StreamMode.CLOSED:
            return None
        self.written_bytes += change.length
        if self.mode is StreamMode.SYNC and not self._unstarted and self._apply_now(change):
            return self._until_left()
        # From here on it is kept longer than the initiator's buffer may be ours, so it is copied.
        data = None if change.data is None else bytes(change.data)
        write = MirrorWrite(change.sequence, change.kind, change.offset, change.length, data, change.fua, change.atomic)
        if self.mode is StreamMode.SYNC:
            waiting = self._wait()
            self._start(write, waiting)
            return waiting.future
        if self.mode in (StreamMode.QUEUE, StreamMode.DRAIN):
            self._push(write, None)
            if self._queue_bytes > self._queue_bytes_max or len(self._queue) > QUEUE_WRITES_MAX:
                self._lose(f"more than {self._queue_bytes_max} bytes were written while the copy ran")
                return None
            return self._pace()
        waiting = self._wait()
        self._push(write, waiting)
        return waiting.future

    def source_failed(self, change: Change, error: BaseException, /) -> None:
        reason = f"the source did not take a write at {change.offset}: {error}"
        if self.mode in (StreamMode.QUEUE, StreamMode.DRAIN):
            self._lose(reason)
        else:
            self.leave(reason, retry=True)

    def flush(self) -> Awaitable[None] | None:
        if self.mode is StreamMode.LEAVING:
            return self._until_left()
        if self.mode not in (StreamMode.CATCH_UP, StreamMode.SYNC, StreamMode.HELD):
            return None
        waiting = self._wait()
        self._spawn(self._flush(waiting))
        return waiting.future

    # --- driven by the mirror ----------------------------------------------------------------------------------

    async def converge(self) -> bool:
        """Apply the queue and become synchronous; the target's content must be this stream's starting point.

        Returns False when the stream was lost meanwhile (``lost``). Raises what the link raises, and
        ``InvalidState`` when the stream left in the last steps. On True, everything below the sequence at which
        hosts began to wait is durable at the target, and the mirror may be called synchronized as soon as that is
        recorded.
        """
        if self._is_lost():
            return False
        self._staying(StreamMode.QUEUE)
        self.mode = StreamMode.DRAIN
        self._drain_from = self._submitted_bytes
        while not self._is_lost():
            if self.mode is StreamMode.DRAIN and self._queue_bytes <= self._catch_up_bytes:
                self.mode = StreamMode.CATCH_UP
                self._let_go()
            batch = self._next_batch()
            if not batch:
                break
            self._check(await self._link.apply_in_order(batch))
        if self._is_lost():
            return False
        self._staying(StreamMode.CATCH_UP)
        self._go_on()
        self._check(await self._link.flush())
        self._staying(StreamMode.SYNC)
        return True

    def hold(self) -> None:
        """From this step on new writes wait here."""
        self._staying(StreamMode.SYNC)
        self.mode = StreamMode.HELD
        self._idle.clear()
        if not self._under_way:
            self._idle.set()

    async def drained(self) -> None:
        """Wait until the target has taken all that was sent before ``hold``. InvalidState if the stream left."""
        while self._under_way and self.mode is StreamMode.HELD:
            self._idle.clear()
            await self._idle.wait()
        self._staying(StreamMode.HELD)

    def release(self) -> None:
        """Send what was held, and go on."""
        self._staying(StreamMode.HELD)
        self._go_on()

    async def finished(self) -> None:
        """Wait until nothing of this stream can reach the target any more. The stream is closed, or closing."""
        await self.closed.wait()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def leave(self, reason: str, *, retry: bool) -> None:
        """Send nothing more, record the demotion, and only then acknowledge hosts without the target.

        In QUEUE and DRAIN nobody waits and nothing is recorded: the stream is just lost.
        """
        if self.mode in (StreamMode.QUEUE, StreamMode.DRAIN):
            self._lose(reason)
        if self.mode in (StreamMode.LEAVING, StreamMode.CLOSED):
            return
        self.mode = StreamMode.LEAVING
        self.reason = reason
        self._left = self._loop.create_future()
        self._queue.clear()
        self._queue_bytes = 0
        self._idle.set()
        if self.leaving is not None:
            self.leaving(reason, retry)
        self._spawn(self._demote(reason, retry)).add_done_callback(self._demoted)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _until_left(self) -> Awaitable[None] | None:
        """What one host waits for while the stream leaves: it may give up waiting, and the others wait on."""
        return None if self._left is None else asyncio.shield(self._left)

    def _push(self, write: MirrorWrite, waiting: _Waiting | None) -> None:
        self._queue.append((write, waiting))
        size = 0 if write.data is None else write.length
        self._queue_bytes += size
        self._submitted_bytes += size

    def _pace(self) -> Awaitable[None] | None:
        """What a host has to wait for so that the queue does not grow faster than allowed."""
        if self._allowance is None or self._submitted_bytes <= self._allowed_bytes():
            return None
        waiting = _Waiting(self._loop.create_future(), self._loop.time())
        self._held_back.append((self._submitted_bytes, waiting))
        if self._pace_timer is None:
            self._pace_timer = self._loop.call_later(PACE_INTERVAL_S, self._let_go)
        return waiting.future

    def _allowed_bytes(self) -> int:
        if self.mode is StreamMode.QUEUE and self._allowance is not None:
            return self._allowance() + PACE_SLACK_BYTES
        if self.mode is StreamMode.DRAIN:
            return self._drain_from + self._drained_bytes // 2 + PACE_SLACK_BYTES
        return self._submitted_bytes

    def _let_go(self) -> None:
        """Answer those held back who may go on by now, or have waited long enough."""
        self._pace_timer = None
        allowed, long_ago = self._allowed_bytes(), self._loop.time() - self._budget_s
        while self._held_back and (self._held_back[0][0] <= allowed or self._held_back[0][1].since <= long_ago):
            _, waiting = self._held_back.popleft()
            if not waiting.future.done():
                waiting.future.set_result(None)
        if self._held_back:
            self._pace_timer = self._loop.call_later(PACE_INTERVAL_S, self._let_go)

    def _next_batch(self) -> list[MirrorWrite]:
        """The next writes for whom nobody waits."""
        batch: list[MirrorWrite] = []
        size = 0
        while self._queue and self._queue[0][1] is None and size < BATCH_BYTES and len(batch) < BATCH_WRITES:
            write, _ = self._queue.popleft()
            if write.data is not None:
                self._queue_bytes -= write.length
                self._drained_bytes += write.length
            size += write.length
            batch.append(write)
        return batch

    def _go_on(self) -> None:
        """Into SYNC: what waits here goes to the target, in order, concurrently."""
        self.mode = StreamMode.SYNC
        while self._queue:
            write, waiting = self._queue.popleft()
            assert waiting is not None
            self._start(write, waiting)
        self._queue_bytes = 0

    def _apply_now(self, change: Change) -> bool:
        """Send a write within this step, where the link can. True: it is there, or the stream is leaving."""
        write = MirrorWrite(
            change.sequence, change.kind, change.offset, change.length, change.data, change.fua, change.atomic
        )
        try:
            ack = self._link.apply_now(write)
            if ack is not None:
                self._check(ack)
        except EngineError as error:
            self.leave(f"target {self._link.target_name}: {error}", retry=False)
            return True
        return ack is not None

    def _start(self, write: MirrorWrite, waiting: _Waiting) -> None:
        # A task for each write, in order: the link's calls begin in the order of the tasks.
        self._under_way += 1
        self._unstarted += 1
        self._spawn(self._apply(write, waiting))

    async def _apply(self, write: MirrorWrite, waiting: _Waiting) -> None:
        self._unstarted -= 1
        try:
            self._check(await self._link.apply(write))
        except EngineError as error:
            self.leave(f"target {self._link.target_name}: {error}", retry=False)
        else:
            self._release(waiting)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _flush(self, waiting: _Waiting) -> None:
        try:
            self._check(await self._link.flush())
        except EngineError as error:
            self.leave(f"target {self._link.target_name}: {error}", retry=False)
        else:
            self._release(waiting)

    def _is_lost(self) -> bool:
        return self.lost

    def _check(self, ack: Ack) -> None:
        if ack != self._ack:
            raise InvalidState("the link", f"at {ack}", f"an acknowledgement of {self._ack}")

    def _staying(self, mode: StreamMode) -> None:
        if self.mode is not mode:
            raise InvalidState("the mirror's stream", self.mode.value, mode.value)

    def _wait(self) -> _Waiting:
        waiting = _Waiting(self._loop.create_future(), self._loop.time())
        self._waiting[waiting] = None
        if self._timer is None:
            self._timer = self._loop.call_later(self._budget_s, self._check_budget)
        return waiting

    def _release(self, waiting: _Waiting) -> None:
        self._waiting.pop(waiting, None)
        if not waiting.future.done():
            waiting.future.set_result(None)

    def _check_budget(self) -> None:
        self._timer = None
        oldest = next(iter(self._waiting), None)
        if oldest is None or self.mode in (StreamMode.LEAVING, StreamMode.CLOSED):
            return
        left = oldest.since + self._budget_s - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._check_budget)
            return
        self.leave(f"target {self._link.target_name} did not answer within {self._budget_s:g} s", retry=False)

    def _lose(self, reason: str) -> None:
        self.lost = True
        self.reason = reason
        self._close()

    def _demoted(self, record: asyncio.Task[None]) -> None:
        """The demotion is recorded. If it could not be, nobody may be acknowledged: the record still calls the
        target current."""
        if record.cancelled():
            self._close(InvalidState("the mirror's stream", "cut off", "recorded as left"))
        else:
            self._close(record.exception())

    def _close(self, failure: BaseException | None = None) -> None:
        self.mode = StreamMode.CLOSED
        self._queue.clear()
        self._queue_bytes = 0
        if self in self._source.taps:
            self._source.detach(self)
        if self._timer is not None:
            self._timer.cancel()
        self._let_go()
        futures = [waiting.future for waiting in self._waiting] + ([self._left] if self._left is not None else [])
        self._waiting.clear()
        for future in futures:
            if future.done():
                continue
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(failure)
                future.exception()  # somebody may wait for it, or nobody
        self.closed.set()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
