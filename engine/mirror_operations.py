"""What is said to a mirror: by its administrator, by whoever fails it over, and by the daemon as it begins and ends.

Invariants:

* One operation on the common point at a time (``_lock``).
* What the administrator wants stays on record across restarts. What else brings a mirror to rest, a resize, a failover
  or the end of the daemon, does not change it: the next start begins a round.
* A mirror that comes to rest while it is synchronized does so at a common point of this very moment, if the link holds.
* Two sides that were found to differ have no common point any more, and the mirror rests until the administrator says
  ``resync``.
* Nobody but the mirror writes to the target, unless it is fractured; until then its content is always some prefix of
  what the source acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from engine.copy_state import CopyEvent, CopyState, after
from engine.errors import EngineError, IntegrityError, InvalidState, TimedOut
from engine.mirror_run import LinkT, MirrorRun, RoundsT, StreamT
from engine.mirror_stream import StreamMode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from engine.proof import Proof
    from engine.stores import Extent

log = logging.getLogger(__name__)

BRING_LOOK_S = 0.02
"""How often it is looked whether everything has been brought over."""


class MirrorOperations(MirrorRun[RoundsT, LinkT, StreamT]):
    """See the module."""

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
        if not self.figures.is_exact:
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
        while not self.figures.is_exact:
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

    async def abort(self) -> None:
        """Give up the copy that is under way, and what it has brought so far; the target stays what it was.

        Raises InvalidState: none is under way.
        """
        if self.figures.is_exact:
            raise InvalidState(self._what, self._standing.text(), "one that is copying")
        await self._rest(CopyEvent.ABORT, "aborted")
        async with self._lock:
            with contextlib.suppress(EngineError):  # the next round drops it, as it is not on record any more
                await self._rounds.give_up()

    async def put_aside(self, reason: str) -> None:
        """Come to rest for good: another object goes on with the record."""
        if not self.is_at_rest:
            await self._leave_in_order(CopyEvent.SUSPEND, reason)
        self._ended = True

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

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _go(self, event: CopyEvent) -> None:
        async with self._lock:
            after(self._standing.state, event, self._what)
            if self._ended or not self.is_at_rest:
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

    async def _mismatch(self, document: Proof, differing: list[Extent]) -> None:
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
