"""The links of a mirrored group's members as one, and their streams as one. See ``engine.mirror_group``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from engine.errors import InvalidState
from engine.links import LinkState
from engine.mirror_stream import StreamMode

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

    from engine.lease import SourceLease
    from engine.links import MirrorLink
    from engine.mirror_stream import MirrorStream

T = TypeVar("T")

_IN_ORDER = (StreamMode.QUEUE, StreamMode.DRAIN, StreamMode.CATCH_UP, StreamMode.HELD, StreamMode.SYNC)


@dataclass(frozen=True, slots=True)
class GroupState(LinkState):
    """As ``LinkState``, of all. ``points``: those that every member's target has; ``staging``: some member has one."""

    members: tuple[LinkState, ...] = ()


class GroupLink:
    """The ways to the targets of all members. Fulfils ``engine.mirror_parts.MirrorTarget``."""

    def __init__(self, name: str, links: Sequence[MirrorLink]) -> None:
        self.target_name = name
        self._links = links

    @property
    def grants_lease(self) -> bool:
        return any(link.grants_lease for link in self._links)

    async def connect(self) -> GroupState:
        states = await run_all(link.connect() for link in self._links)
        common = set(states[0].points).intersection(*(state.points for state in states))
        return GroupState(states[0].ack, sorted(common), any(state.staging for state in states), tuple(states))

    async def disconnect(self) -> None:
        await run_all(link.disconnect() for link in self._links)

    def serve_lease(self, lease: SourceLease, /) -> None:
        for link in self._links:
            if link.grants_lease:
                link.serve_lease(lease)

    async def demote(self) -> None:
        await run_all(link.demote() for link in self._links)


class GroupStream:
    """The streams of all members, which live and leave together. Fulfils ``engine.mirror_parts.Stream``."""

    def __init__(self, streams: Sequence[MirrorStream]) -> None:
        self.closed = asyncio.Event()
        self._streams = streams
        for stream in streams:
            stream.leaving = self._one_leaves
        self._ending = asyncio.get_running_loop().create_task(self._until_closed())

    @property
    def mode(self) -> StreamMode:
        """Of the one that is least far."""
        modes = {stream.mode for stream in self._streams}
        if len(modes) == 1:
            return modes.pop()
        if modes & {StreamMode.LEAVING, StreamMode.CLOSED}:
            return StreamMode.LEAVING
        return next(mode for mode in _IN_ORDER if mode in modes)

    @property
    def lost(self) -> bool:
        return any(stream.lost for stream in self._streams)

    @property
    def reason(self) -> str | None:
        return next((stream.reason for stream in self._streams if stream.reason is not None), None)

    @property
    def written_bytes(self) -> int:
        return sum(stream.written_bytes for stream in self._streams)

    @property
    def queue_bytes(self) -> int:
        return sum(stream.queue_bytes for stream in self._streams)

    @property
    def oldest_wait_s(self) -> float:
        return max(stream.oldest_wait_s for stream in self._streams)

    async def converge(self) -> bool:
        """See ``MirrorStream``: True when it is so of all."""
        return all(await run_all(stream.converge() for stream in self._streams)) and self.mode is StreamMode.SYNC

    def hold(self) -> None:
        """From this step on new writes to any member wait here."""
        if self.mode is not StreamMode.SYNC:
            raise InvalidState("the group's stream", self.mode.value, StreamMode.SYNC.value)
        for stream in self._streams:
            stream.hold()

    async def drained(self) -> None:
        await run_all(stream.drained() for stream in self._streams)
        if self.mode is not StreamMode.HELD:
            raise InvalidState("the group's stream", self.mode.value, StreamMode.HELD.value)

    def release(self) -> None:
        for stream in self._streams:
            stream.release()

    async def finished(self) -> None:
        await run_all(stream.finished() for stream in self._streams)

    def leave(self, reason: str, *, retry: bool) -> None:
        for stream in self._streams:
            stream.leave(reason, retry=retry)

    def _one_leaves(self, reason: str, retry: bool) -> None:
        """In the step in which one of them does: nothing is sent for any member any more."""
        self.leave(reason, retry=retry)

    async def _until_closed(self) -> None:
        for stream in self._streams:
            await stream.closed.wait()
        self.closed.set()


async def run_all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all, wait for all, and raise what the first of them raised."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    done: list[T] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        done.append(outcome)
    return done
