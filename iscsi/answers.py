"""The way out of a connection: arenas in which a pass puts its answers, and what must happen before they leave.

* Answers of a pass leave only after ``end_pass`` of every device that the pass has written.
* An arena is filled from its start again, or given to somebody else, only when none of its bytes waits in the
  transport: asyncio's newer transports keep a view of what the kernel did not take, not a copy.
* Bytes leave in the order in which they were put.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.units import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.stores import BlockDevice

_NOTHING = memoryview(b"")

ARENA_BYTES = MIB
"""Room for the answers of a pass. Only what a pass fills is ever touched, usually the first 128 KiB."""

FIRST_FLUSH_BYTES = 128 * KIB
"""When a pass has served so much (small commands count as in its credit), its first answers leave: the initiator is
busy with them while the rest is served. With all answers of a pass in one piece the two take turns, and both sleep:
4 KiB reads at depth 32 then come at 0.65 times the rate."""

FLUSH_BYTES = 512 * KIB
"""From then on answers leave when so much more was served: a reader that was woken finds the others there, since waking
it costs more than sending. (Measured against 128 KiB: 64 KiB reads at depth 8 have 1.28 times the rate at 0.73 of the
CPU, 16 KiB at depth 32 1.43 at 0.70, 4 KiB the same.)
"""

POOLED_ARENAS = 16
"""Spare arenas that are kept; further ones are made when needed and forgotten."""

MAX_UNSENT_BYTES = MIB
"""Answers waiting in the transport from which on no more commands of the connection are served."""


class ArenaPool:
    """Spare arenas, shared by all connections of a server."""

    def __init__(self) -> None:
        self._spare: list[memoryview] = []

    def take(self) -> memoryview:
        return self._spare.pop() if self._spare else memoryview(bytearray(ARENA_BYTES))

    def give(self, arena: memoryview) -> None:
        """Take back an arena of which no byte is waiting to be sent."""
        if len(self._spare) < POOLED_ARENAS:
            self._spare.append(arena)


class Answers:
    """One connection's way out: the arena that is being filled, and what must happen before its bytes leave.

    Between passes it has an arena only while bytes of it wait in the transport; ``sent`` is 0 when none does.

    While something is unsent, filling goes on behind it, so a reader that stalls holds two or three arenas, however
    small its answers are.
    """

    __slots__ = ("_full", "_pool", "_send", "_unsent", "arena", "dirty", "paused", "sent")

    def __init__(
        self,
        pool: ArenaPool,
        dirty: list[BlockDevice],
        send: Callable[[memoryview | bytes], int],
        unsent: Callable[[], int],
    ) -> None:
        """
        Args:
            dirty: where the connection notes the devices that its pass has written.
            send: takes bytes to the transport, now or later; returns ``unsent``.
            unsent: how many bytes wait in the transport.
        """
        self._pool = pool
        self._send = send
        self._unsent = unsent
        self._full: list[memoryview] = []  # arenas before this one, with bytes still waiting
        self.arena = _NOTHING
        self.sent = 0
        self.dirty = dirty
        self.paused = False  # the transport has more than enough: set and cleared by its flow control

    def begin(self) -> int:
        """A pass begins. Returns where in ``arena`` to put its first answer."""
        if not self.arena:
            self.arena = self._pool.take()
        elif not self._unsent():
            self._rewind()
        return self.sent

    def flush(self, filled: int) -> int:
        """Send what was put up to ``filled``; returns where to go on.

        Raises what ``end_pass`` raises, having sent nothing.
        """
        if self.dirty:
            for device in self.dirty:
                device.end_pass()
            self.dirty.clear()
        if filled > self.sent:
            if self._send(self.arena[self.sent : filled]):
                self.sent = filled
            elif self.sent or self._full:
                self._rewind()
        return self.sent

    def make_room(self, filled: int, length: int) -> int:
        """Flush, and have room for ``length`` bytes at the returned place."""
        filled = self.flush(filled)
        if filled + length > ARENA_BYTES:
            self._full.append(self.arena)
            self.arena = self._pool.take()
            self.sent = filled = 0
        return filled

    def put(self, filled: int, data: bytes) -> int:
        """Queue bytes made elsewhere behind what is there; long ones are sent by themselves."""
        if len(data) > FLUSH_BYTES:
            filled = self.flush(filled)
            self._send(data)
            return filled
        if filled + len(data) > ARENA_BYTES:
            filled = self.make_room(filled, len(data))
        self.arena[filled : filled + len(data)] = data
        return filled + len(data)

    def end(self, filled: int) -> None:
        """The pass is over: send everything."""
        self.flush(filled)
        if not self.sent and not self._full:
            self._pool.give(self.arena)
            self.arena = _NOTHING

    def reclaim(self) -> None:
        """Give back what has left meanwhile. Called from time to time."""
        if self.arena and not self._unsent():
            self._rewind()
            self._pool.give(self.arena)
            self.arena = _NOTHING

    def _rewind(self) -> None:
        """No byte is waiting: everything may be filled again."""
        self.sent = 0
        while self._full:
            self._pool.give(self._full.pop())
