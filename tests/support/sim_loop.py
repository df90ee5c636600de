"""A deterministic asyncio loop without threads, sockets or wall clock, and the workers and clock that go with it.

Time is counted in *turns*: one turn runs every callback that was ready at its start, in order, as asyncio does.
Workers' calls take effect at a seeded turn and report at a later one, so that completions overtake each other
and the loop's own work, as with a real pool. A timer fires when its second has come on the virtual clock, which
jumps ahead when nothing else is left to do. One seed therefore fixes everything.

A ``ProcessDied`` raised by a simulated file ends the loop at once: no callback runs after it, tasks stay as they
are, as after ``kill -9``.

What comes from outside and is no ``Exception`` (a test's time limit raises one wherever the program happens to be) ends
the run as it is: were it left with the callback or task that it struck, all who wait for that one would wait for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import itertools
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine
    from typing import Any

TURN_SECONDS = 1e-4
"""What one turn takes on the virtual clock."""
MAX_FORGOTTEN_TASKS = 1000
MAX_CLOSES = 50
SLOW_CALL_FACTOR = 10


class ProcessDied(BaseException):
    """The simulated process ended inside a file operation; nothing may run after it."""


class Deadlock(AssertionError):
    """The awaited task is not done and nothing is left that could wake it."""


class SimLoop(asyncio.AbstractEventLoop):
    """The part of an event loop that code without sockets and subprocesses needs."""

    def __init__(self, *, turns_max: int = 200_000, start_s: float = 0.0) -> None:
        self.turn = 0
        self.turns_max = turns_max
        self.dead = False
        self.errors: list[dict[str, Any]] = []
        self._ready: deque[asyncio.Handle] = deque()
        self._at_turn: list[tuple[int, int, asyncio.Handle]] = []
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = itertools.count()
        self._time = start_s
        self._closed = False
        self._running = False
        self._outside: BaseException | None = None
        """What struck a callback and is no Exception."""
        self._tasks: list[asyncio.Task[Any]] = []

    # What asyncio's tasks, futures and locks call.

    def time(self) -> float:
        return self._time

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def call_soon(self, callback, *args, context=None):
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(self, delay, callback, *args, context=None):
        return self.call_at(self._time + delay, callback, *args, context=context)

    def call_at(self, when, callback, *args, context=None):
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._order), handle))
        return handle

    def call_after_turns(self, turns: int, callback: Callable[..., object], *args: object) -> None:
        """Run ``callback`` in the turn that is ``turns`` from now (at least one)."""
        handle = asyncio.Handle(callback, args, self, contextvars.copy_context())
        heapq.heappush(self._at_turn, (self.turn + max(1, turns), next(self._order), handle))

    def _timer_handle_cancelled(self, handle) -> None:
        return None

    def create_future(self):
        return asyncio.Future(loop=self)

    def create_task(self, coro, *, name=None, context=None):
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        if len(self._tasks) > MAX_FORGOTTEN_TASKS:
            self._tasks = [other for other in self._tasks if not other.done()]
        self._tasks.append(task)
        return task

    def call_exception_handler(self, context) -> None:
        if self.dead:
            return
        error = context.get("exception")
        if error is not None and not isinstance(error, Exception):
            self._outside = self._outside or error
        self.errors.append(context)

    def default_exception_handler(self, context) -> None:
        self.call_exception_handler(context)

    # Driving.

    def run_until_complete(self, coro: Coroutine[Any, Any, Any]) -> Any:
        """Run until ``coro`` is done. Raises ProcessDied, Deadlock, or what ``coro`` raised."""
        task = self.create_task(coro)
        self._running = True
        asyncio._set_running_loop(self)
        try:
            while not task.done():
                self._one_turn()
        finally:
            asyncio._set_running_loop(None)
            self._running = False
        if task.cancelled():
            self._raise_what_ended_tasks()
        return task.result()

    def die(self) -> None:
        """The process is gone: nothing runs any more."""
        self.dead = True

    def close(self) -> None:
        """End every task where it stands, as the end of a process does. The files must be dead already, since the
        tasks' ``finally`` clauses run."""
        self.dead = True
        asyncio._set_running_loop(self)
        try:
            while self._tasks:
                _end(self._tasks.pop().get_coro())
        finally:
            asyncio._set_running_loop(None)
        self._closed = True
        self._ready.clear()
        self._at_turn.clear()
        self._timers.clear()

    def _one_turn(self) -> None:
        if not self._ready:
            self._wait()
        self.turn += 1
        self._time += TURN_SECONDS
        if self.turn > self.turns_max:
            raise Deadlock(f"not done after {self.turns_max} turns")
        while self._at_turn and self._at_turn[0][0] <= self.turn:
            self._ready.append(heapq.heappop(self._at_turn)[2])
        while self._timers and self._timers[0][0] <= self._time:
            self._ready.append(heapq.heappop(self._timers)[2])
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()
            if self.dead:
                raise ProcessDied
            if self._outside is not None:
                raise self._outside

    def _wait(self) -> None:
        """Nothing is ready: go to the turn, or else to the second, of the next event."""
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        if self._at_turn:
            self.turn = max(self.turn, self._at_turn[0][0] - 1)
        elif self._timers:
            self._time = max(self._time, self._timers[0][0])
        else:
            self._raise_what_ended_tasks()
            raise Deadlock(f"nothing is left to run; errors: {self.errors}; waiting: {self._waiting()}")

    def _raise_what_ended_tasks(self) -> None:
        """A task that was struck from outside wakes nobody, or cancels who waits."""
        for task in self._tasks:
            error = task.exception() if task.done() and not task.cancelled() else None
            if error is not None and not isinstance(error, Exception):
                raise error

    def _waiting(self) -> list[str]:
        """Who waits, and where."""
        return [f"{task.get_name()}: {_innermost(task.get_coro())}" for task in self._tasks if not task.done()]


def _innermost(coro: Any) -> str:
    """What a coroutine waits for, as far as coroutines wait for each other, and the line."""
    while getattr(coro, "cr_await", None) is not None and hasattr(coro.cr_await, "cr_frame"):
        coro = coro.cr_await
    frame = getattr(coro, "cr_frame", None)
    return f"{coro.__qualname__}, line {frame.f_lineno if frame else 0}, for {getattr(coro, 'cr_await', None)}"


def _end(coro: Any) -> None:
    """End a coroutine where it stands, through all the waits in its ``finally`` clauses; what they raise does not
    matter now. ``close`` would leave what it awaits behind, half ended, wherever that waits once more."""
    for _ in range(MAX_CLOSES):
        try:
            coro.throw(ProcessDied())
        except BaseException:
            return
    coro.close()


class SimWorkers:
    """The pool of ``engine.files.Workers``: each call happens at a seeded turn and reports at a later one.

    ``slow_chance``: how often one is ten times slower, so that many others overtake it.
    """

    def __init__(self, loop: SimLoop, rng: random.Random, *, turns_max: int = 6, slow_chance: float = 0.0) -> None:
        self._loop = loop
        self._rng = rng
        self._turns_max = turns_max
        self._slow_chance = slow_chance

    async def run(self, call):
        future = self._loop.create_future()
        delay = self._rng.randrange(self._turns_max) if self._rng.random() < 0.7 else 0
        if self._slow_chance and self._rng.random() < self._slow_chance:
            delay *= SLOW_CALL_FACTOR
        self._loop.call_after_turns(delay, self._take_effect, call, future)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():  # as the real pool: the caller's buffers are in use until the call has ended
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            if not future.cancelled():
                future.exception()
            raise

    async def run_each(self, *calls):
        """Others may do anything between two of them, as beside a thread."""
        for call in calls:
            await self.run(call)

    def _take_effect(self, call, future) -> None:
        try:
            result, error = call(), None
        except ProcessDied:
            self._loop.die()
            return
        except Exception as caught:
            result, error = None, caught
        self._loop.call_after_turns(self._rng.randrange(self._turns_max), self._report, future, result, error)

    def _report(self, future, result, error) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)


class SimClock:
    """``engine.files.Clock`` on the loop's virtual time."""

    EPOCH = 1_790_000_000.0

    def __init__(self, loop: SimLoop, skew: float = 0.0) -> None:
        self._loop = loop
        self.skew = skew
        """Seconds by which the wall clock is wrong; may be set at any time."""

    def monotonic(self) -> float:
        return self._loop.time()

    def boottime(self) -> float:
        return self._loop.time()

    def time(self) -> float:
        return self.EPOCH + self._loop.time() + self.skew

    def preemptions(self) -> int:
        return 0
