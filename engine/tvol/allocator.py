"""Which free chunks may be used now, and when a freed one becomes free (STORE section 3).

A freed chunk passes through these stages, and only in this order:

1. *deferred*: freed by a journal record that is not durable yet, or seen by a read or write that was in flight when
   it was freed. Nobody touches it.
2. *dirty*: free, content unknown. A whole-chunk write may take it; a partial write must zero the rest first. All free
   chunks below the durable end start here when a file is opened.
3. *blank*: punched in this incarnation, or never below the end of the file, so that nothing of before is in it. A punch
   that is not durable yet is enough: the fdatasync before the commit of whatever uses the chunk next covers the punch
   as well. It reads zero, but not in an encrypted file, whose holes hold no ciphertext: ``holes_read_zero``.

A chunk whose space the host must give is taken only while the pool has room for it (``engine.room``).

Chunks are handed out in ascending order where possible, so that sequential writes lie contiguously.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import EngineError, OutOfSpace
from engine.room import BOUNDLESS
from engine.tvol.layout import BIRTH_FREE, MAX_CHUNKS
from engine.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.files import BlockFile
    from engine.room import Room
    from engine.tvol.births import Births

RELEASE_CHUNKS = 1 << 11
"""Let go of in one turn of the loop (0.02 ms)."""
_GROW_BYTES, _GROW_SHARE = 16 * MIB, 8
"""The file's size grows by so much, or by an eighth of it (no space is taken): a read near the end of the file must not
come short. While somebody writes much to the file a change of its size waits for his writes (0.8 ms)."""

_GRANT_BYTES = 16 * MIB
"""What the room is asked for at a time."""


class Allocator:
    """The pools of free chunks and the end of the file."""

    def __init__(
        self,
        file: BlockFile,
        births: Births,
        chunk_bytes: int,
        room: Room = BOUNDLESS,
        *,
        holes_read_zero: bool = True,
    ) -> None:
        self.holes_read_zero = holes_read_zero
        """Whether a blank chunk reads zero: not that of an encrypted file."""
        self._file = file
        self._room = room
        self._granted = 0
        """Chunks that may still be taken from the host, while the room's epoch is ``_epoch``."""
        self._epoch = room.epoch
        self._births = births
        self._chunk_bytes = chunk_bytes
        self._file_chunks = file.size() // chunk_bytes
        self.end = births.count
        """The first chunk that was never used."""
        self._deferred: deque[tuple[int, int, int, array[int]]] = deque()
        """Record, operation, the ticket to thaw with or 0 for freed chunks, the chunks."""
        self._dirty: array[int] = array("I", births.with_birth(BIRTH_FREE)[::-1].tobytes())
        """Descending, so that ``pop`` hands out ascending numbers; the same for ``_blank``."""
        self._blank: array[int] = array("I")
        self.cleaning = 0
        """Free chunks that somebody is punching or zeroing: nobody may take them."""
        self.stays_dirty = False
        """The host cannot punch: dirty chunks end only by being used, so that they come before new ones."""

    def take(self, *, whole: bool) -> tuple[int, bool]:
        """A free chunk, and whether it is blank. ``whole``: the caller overwrites all of it, so that a dirty one
        will do. Raises OutOfSpace when the file may grow no more.

        The host holds the space of a dirty chunk; that of the others it must give, and the room is asked.
        """
        if self._dirty and (whole or not self._blank or not self._is_granted()):
            return self._dirty.pop(), False
        if not self._is_granted():
            raise self._room.refusal(self._file.path)
        self._granted -= 1
        if self._blank:
            return self._blank.pop(), True
        return self.extend(1), True

    def take_blank(self) -> int:
        """A blank one, new rather than one that will be punched soon; or 0. Raises as ``take``."""
        if (self.stays_dirty and self._dirty) or not self._is_granted():
            return 0
        self._granted -= 1
        if self._blank:
            return self._blank.pop()
        if self.end >= min(self._file_chunks, MAX_CHUNKS):
            return self.extend(1)
        self.end += 1
        self._births.extend_to(self.end)
        return self.end - 1

    def take_whole(self, count: int) -> list[int]:
        """So many free chunks, to be overwritten whole. Raises OutOfSpace, taking none."""
        taken: list[int] = []
        try:
            while len(taken) < count:
                if self._dirty or self._blank or not self._is_granted():
                    taken.append(self.take(whole=True)[0])
                else:
                    more = min(count - len(taken), self._granted)
                    first = self.extend(more)
                    self._granted -= more
                    taken.extend(range(first, first + more))
        except EngineError:
            self.give_back(taken)
            raise
        return taken

    def _is_granted(self) -> bool:
        """Whether one more chunk may be taken from the host; asks for a run of them when there is none left."""
        room = self._room
        if self._granted and self._epoch == room.epoch:
            return True
        self._granted = room.grant(_GRANT_BYTES, self._chunk_bytes) // self._chunk_bytes
        self._epoch = room.epoch
        return self._granted > 0

    def extend(self, count: int) -> int:
        """The first of ``count`` chunks that were never used."""
        first = self.end
        if first + count > MAX_CHUNKS:
            raise OutOfSpace(f"{self._file.path} has {MAX_CHUNKS} chunks, the most that the format allows")
        if first + count > self._file_chunks:
            self._file_chunks = self._grow_file(first + count)
        self.end += count
        self._births.extend_to(self.end)
        return first

    def _grow_file(self, chunks: int) -> int:
        """Make the file so long, or longer; how long it is. Raises OutOfSpace."""
        try:
            wanted = chunks + max(_GROW_BYTES // self._chunk_bytes, chunks // _GROW_SHARE)
            self._file.truncate(wanted * self._chunk_bytes)
        except OutOfSpace:  # the host's longest file: up to there, then
            wanted = chunks
            self._file.truncate(wanted * self._chunk_bytes)
        return wanted

    def give_back(self, chunks: Iterable[int]) -> None:
        """Chunks that were taken and not published; something may have been written to them."""
        self._dirty.extend(chunks)

    def retract(self, first: int, count: int) -> None:
        """Undo ``extend``, nothing having been written: attempts on a full disk must not make the file ever longer."""
        if self.end == first + count:
            self.end = first
            self._births.cut(first)
        else:
            self.give_back(range(first + count - 1, first - 1, -1))

    def defer(self, seq: int, last_operation: int, chunks: array[int]) -> None:
        """Chunks freed by record ``seq``, while operations up to ``last_operation`` may be using them."""
        self._deferred.append((seq, last_operation, 0, chunks))

    def defer_thaw(self, seq: int, last_operation: int, ticket: int, chunks: array[int]) -> None:
        """Chunks whose last slot was freed by record ``seq``: to be written in place they wait as long as to be free,
        since after a power loss the slot may be back, and a reader in flight may have come through it."""
        self._deferred.append((seq, last_operation, ticket, chunks))

    @property
    def has_deferred(self) -> bool:
        return bool(self._deferred)

    def release(self, durable_seq: int, oldest_operation: int | None, limit: int = RELEASE_CHUNKS) -> int:
        """Let go of deferred chunks whose record is durable and whose users have ended; how many. When it is ``limit``
        or more, there may be others."""
        released = 0
        while self._deferred and released < limit:
            seq, operation, ticket, chunks = self._deferred[0]
            if seq > durable_seq or (oldest_operation is not None and oldest_operation <= operation):
                break
            self._deferred.popleft()
            if ticket:
                self._births.thaw(ticket, np.frombuffer(chunks, np.uint32))
            else:
                self._dirty.frombytes(_descending(chunks))
            released += len(chunks)
        return released

    def next_dirty(self, limit: int) -> array[int]:
        """Take up to ``limit`` dirty chunks out, to punch them; ``cleaned`` must follow."""
        at = max(0, len(self._dirty) - limit)
        chunks = self._dirty[at:]
        del self._dirty[at:]
        self.cleaning += len(chunks)
        return chunks

    def cleaned(self, chunks: array[int], *, zero: bool) -> None:
        """Chunks of ``next_dirty`` may be taken again. ``zero``: they read zero now."""
        self.cleaning -= len(chunks)
        (self._blank if zero else self._dirty).frombytes(_descending(chunks))

    @property
    def free_count(self) -> int:
        """Chunks that may be used now."""
        return len(self._dirty) + len(self._blank)

    @property
    def has_unused(self) -> bool:
        """Whether chunks of which the host still holds the space are free, or soon will be."""
        return bool(self._deferred or self._dirty or self.cleaning)

    @property
    def deferred_count(self) -> int:
        """Chunks that were freed and are not to be used yet."""
        return sum(len(chunks) for _, _, ticket, chunks in self._deferred if not ticket)

    @property
    def dirty_count(self) -> int:
        return len(self._dirty)


def _descending(chunks: array[int]) -> bytes:
    return np.sort(np.frombuffer(chunks, np.uint32))[::-1].tobytes()


def runs(chunks: array[int], longest: int) -> list[tuple[int, int]]:
    """(first, count) of the runs of consecutive numbers, each at most ``longest``, ascending."""
    if not chunks:
        return []
    ordered = np.sort(np.frombuffer(chunks, np.uint32))
    breaks = np.flatnonzero(np.diff(ordered) != 1) + 1
    return [
        (int(part[at]), min(longest, len(part) - at))
        for part in np.split(ordered, breaks)
        for at in range(0, len(part), longest)
    ]
