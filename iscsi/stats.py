"""What a session's commands on one logical unit amount to: counts, bytes and latencies. Plain additions in the loop.

A latency is what the target took. Of a command on the plain path: from its PDU to its answer, time in a pause or for
solicited data included. Of a command on the fast path: that of the pass which answered it, from the pass's begin until
its answers were handed to the socket. One reading of the clock serves all commands of the pass, so a pass costs the
same whatever it answers; the first command of a long pass counts as late as its last.

Histograms have four buckets for each power of two of nanoseconds, so a percentile is at most a quarter above the truth.
"""

from __future__ import annotations

import enum
import math
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate
from operator import add, mul
from time import monotonic_ns


class Kind(enum.IntEnum):
    """What a command is, by its operation code (``kind_of``)."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    OTHER = 3


_KINDS = {
    **dict.fromkeys((0x08, 0x28, 0xA8, 0x88), Kind.READ),
    # WRITE 6 10 12 16, WRITE AND VERIFY 10 12 16, WRITE SAME 10 16, COMPARE AND WRITE, ORWRITE, WRITE ATOMIC
    **dict.fromkeys((0x0A, 0x2A, 0xAA, 0x8A, 0x2E, 0xAE, 0x8E, 0x41, 0x93, 0x89, 0x8B, 0x9C), Kind.WRITE),
    **dict.fromkeys((0x35, 0x91), Kind.FLUSH),
}


def kind_of(opcode: int) -> Kind:
    return _KINDS.get(opcode, Kind.OTHER)


@dataclass(slots=True)
class Tally:
    """Commands of one kind. ``latency``: how many fell into which bucket, up to the last that was filled; their sum is
    how many there were."""

    latency: list[int] = field(default_factory=list)
    bytes: int = 0

    @property
    def commands(self) -> int:
        return sum(self.latency)

    @property
    def nanoseconds(self) -> int:
        """Of all of them together: each counts with the middle of its bucket, an eighth from the truth at most."""
        return sum(map(mul, self.latency, _MIDDLES))

    def percentiles(self, *shares: float) -> list[int]:
        """For each, the nanoseconds within which that share of the commands was answered. There is one at least."""
        upto = list(accumulate(self.latency))
        return [bucket_end(bisect_left(upto, math.ceil(round(upto[-1] * share, 6)))) for share in shares]

    def below(self, *bits: int) -> list[int]:
        """For each, how many commands took less than ``2 ** bits`` nanoseconds."""
        upto = [0, *accumulate(self.latency)]
        return [upto[min(each + 1 << 2, len(upto) - 1)] for each in bits]

    def put(self, bucket: int, commands: int) -> None:
        """For the first command in a bucket beyond all others."""
        self.latency += [0] * (bucket + 1 - len(self.latency))
        self.latency[bucket] += commands

    def add(self, other: Tally) -> None:
        self.bytes += other.bytes
        mine, theirs = self.latency, other.latency
        mine += [0] * (len(theirs) - len(mine))
        mine[: len(theirs)] = map(add, mine, theirs)


class IoStats:
    """``fast`` and ``plain``: a tally for each ``Kind``, by the path on which commands were answered.

    ``errors``: answers other than GOOD, unit attentions excepted. ``pass_max``: the most that one pass answered.
    """

    __slots__ = ("_fast_reads", "_fast_writes", "aborted", "errors", "fast", "pass_max", "plain")

    def __init__(self) -> None:
        self.fast = [Tally() for _ in Kind]
        self.plain = [Tally() for _ in Kind]
        self.errors = self.aborted = self.pass_max = 0
        self._fast_reads, self._fast_writes = self.fast[Kind.READ], self.fast[Kind.WRITE]

    def count_pass(self, reads: int, read_bytes: int, writes: int, written_bytes: int, began: int) -> None:
        """What a pass that ``began`` at this ``monotonic_ns`` has answered on the fast path; costs it 0.24 us."""
        nanoseconds = monotonic_ns() - began
        bits = nanoseconds.bit_length()
        bucket = bits << 2 | nanoseconds << 3 >> bits & 3
        if reads:
            tally = self._fast_reads
            try:
                tally.latency[bucket] += reads
            except IndexError:
                tally.put(bucket, reads)
            tally.bytes += read_bytes
        if writes:
            tally = self._fast_writes
            try:
                tally.latency[bucket] += writes
            except IndexError:
                tally.put(bucket, writes)
            tally.bytes += written_bytes
        if reads + writes > self.pass_max:
            self.pass_max = reads + writes

    def count(self, kind: Kind, length: int, nanoseconds: int) -> None:
        """One command that was answered on the plain path."""
        tally = self.plain[kind]
        tally.put(bucket_of(nanoseconds), 1)
        tally.bytes += length

    def add(self, other: IoStats) -> None:
        """Take over what another has counted."""
        for kind in Kind:
            self.fast[kind].add(other.fast[kind])
            self.plain[kind].add(other.plain[kind])
        self.errors += other.errors
        self.aborted += other.aborted
        self.pass_max = max(self.pass_max, other.pass_max)

    def total(self, kind: Kind) -> Tally:
        """Both paths together; not to be changed."""
        if not self.fast[kind].latency:
            return self.plain[kind]
        tally = Tally()
        tally.add(self.fast[kind])
        tally.add(self.plain[kind])
        return tally

    @property
    def fast_commands(self) -> int:
        return sum(tally.commands for tally in self.fast)

    @property
    def plain_commands(self) -> int:
        return sum(tally.commands for tally in self.plain)


def bucket_of(nanoseconds: int) -> int:
    """The number of the bucket: ``bits`` is the power of two above, the two bits below the highest divide it."""
    bits = nanoseconds.bit_length()
    return bits << 2 | nanoseconds << 3 >> bits & 3


def bucket_end(bucket: int) -> int:
    """The first nanosecond that is above the bucket."""
    bits, quarter = divmod(bucket, 4)
    return (5 + quarter << bits) + 7 >> 3


_MIDDLES = tuple((bucket_end(max(0, bucket - 1)) + bucket_end(bucket)) // 2 for bucket in range(256))
"""Of the buckets up to 2 ** 63 nanoseconds."""
