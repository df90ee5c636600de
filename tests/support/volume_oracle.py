"""What a volume may hold after a crash: for every sector, one certain value and a set of possible later ones.

Every write carries a number that grows with each call anywhere in the family, and fills each of its sectors with
(number, sector address, writer). A sector read back therefore names the write that made it.

``Content`` keeps two floors per sector:

* the *cached* floor: the last acknowledged operation (in the order of the calls). It survives the process.
* the *durable* floor: the last one covered by a returned flush, FUA or snapshot. It survives power loss.

A sector may hold the value at its floor, or that of any later operation on it: nothing older, nothing foreign,
nothing torn inside. Between different sectors no order is demanded, as no disk promises one.

An *atomic* write is seen whole or not at all, by every read and after every crash: where one of its sectors shows it,
each of the others shows it, or a later operation.

A sector that refers to another's data (``sharing``) holds what was written elsewhere: its value then is a *token* of
(number, address it was written at), and may stand there only as one that a share promised.

Not checked here: how many of several unflushed writes survive; that is quality, not correctness.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

SECTOR = 512
ELSEWHERE = 40
"""Bits of a token below the address, if the value was written at another address than the sector's own."""
_WORDS = SECTOR // 8
NO_LIMIT = 1 << 62


class Violation(AssertionError):
    """The store holds something that no order of the acknowledged operations explains."""


def tagged(number: int, first_sector: int, sectors: int, writer: int) -> bytes:
    """The bytes of one write."""
    words = np.empty((sectors, _WORDS // 4, 4), dtype=np.uint64)
    words[:, :, 0] = number
    words[:, :, 1] = np.arange(first_sector, first_sector + sectors, dtype=np.uint64)[:, None]
    words[:, :, 2] = writer
    words[:, :, 3] = words[:, :, 0] ^ (words[:, :, 1] << np.uint64(20)) ^ np.uint64(0xA5A5A5A5A5A5A5A5)
    return words.tobytes()


def moved(tokens: np.ndarray, start: int, to: int) -> np.ndarray:
    """Tokens of sectors from ``start`` on as tokens of the sectors from ``to`` on."""
    here = np.arange(start, start + len(tokens), dtype=np.uint64)
    there = np.arange(to, to + len(tokens), dtype=np.uint64)
    number, address = _parts(tokens, here)
    return _token(number, address, there)


def _parts(tokens: np.ndarray, here: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    far = tokens >> np.uint64(ELSEWHERE)
    return tokens & np.uint64((1 << ELSEWHERE) - 1), np.where(far > 0, far - np.uint64(1), here)


def _token(number: np.ndarray, address: np.ndarray, here: np.ndarray) -> np.ndarray:
    far = (address + np.uint64(1)) << np.uint64(ELSEWHERE)
    return np.where((number == 0) | (address == here), number, number | far)


@dataclass(frozen=True, slots=True)
class Share:
    """One operation that may have made sectors from ``start`` on hold these tokens."""

    number: int
    start: int
    tokens: np.ndarray


@dataclass(slots=True)
class Content:
    """The candidates of each sector of one device, addressed from 0 without its gaps (see ``Windows``)."""

    sectors: int
    lineage: dict[int, int]
    """Which writers' numbers may appear here: writer -> highest number (of this device itself: no limit)."""
    cached_base: np.ndarray = field(init=False)
    cached_floor: np.ndarray = field(init=False)
    durable_base: np.ndarray = field(init=False)
    durable_floor: np.ndarray = field(init=False)
    zeroed: np.ndarray = field(init=False)
    """Number of the latest operation that zeroed the sector or might have."""
    shared: np.ndarray = field(init=False)
    """The same of a share: what the sector shows may have been written elsewhere."""
    atomic: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Atomic writes: number -> (first sector, end). One table for a content and all that it becomes."""
    ceiling: int = NO_LIMIT
    """Operations numbered above it are not in here: the number at which a snapshot was taken."""
    shares: list[Share] = field(default_factory=list)
    """Those that are not certain either way."""

    def __post_init__(self) -> None:
        for name in ("cached_base", "cached_floor", "durable_base", "durable_floor", "zeroed", "shared"):
            setattr(self, name, np.zeros(self.sectors, dtype=np.uint64))

    def frozen_at(self, number: int) -> Content:
        """A snapshot taken now: what was acknowledged is in it, what is under way may be, what follows is not."""
        lineage = {writer: min(limit, number) for writer, limit in self.lineage.items()}
        other = Content(self.sectors, lineage, self.atomic)
        other.cached_base = self.cached_base.copy()
        other.cached_floor = self.cached_floor.copy()
        other.durable_base = self.cached_base.copy()
        other.durable_floor = self.cached_floor.copy()
        other.zeroed = self.zeroed.copy()
        other.shared = self.shared.copy()
        other.ceiling = number
        other.shares = [share for share in self.shares if share.number <= number]
        return other

    def heir(self, writer: int, number: int) -> Content:
        """A writable device that starts as what this one is at this number."""
        other = self.frozen_at(number)
        other.lineage[writer] = NO_LIMIT
        other.ceiling = NO_LIMIT
        return other

    def resized(self, sectors: int, number: int) -> Content:
        """With more or fewer sectors; new ones are zero for certain."""
        other = Content(sectors, dict(self.lineage), self.atomic)
        keep = min(sectors, self.sectors)
        for name in ("cached_base", "cached_floor", "durable_base", "durable_floor", "zeroed", "shared"):
            getattr(other, name)[:keep] = getattr(self, name)[:keep]
        for name in ("cached_floor", "durable_floor"):
            getattr(other, name)[keep:] = number
        other.zeroed[keep:] = number
        other.ceiling = self.ceiling
        other.shares = [
            Share(share.number, share.start, share.tokens[: max(0, sectors - share.start)]) for share in self.shares
        ]
        return other

    def zeroing(self, start: int, end: int, number: int) -> None:
        """A zeroing operation was called (or a discard that may zero)."""
        self.zeroed[start:end] = number

    def sharing(self, start: int, tokens: np.ndarray, number: int) -> None:
        """A share of data that is there already was called."""
        self.shares.append(Share(number, start, tokens))
        self.shared[start : start + len(tokens)] = number

    def acknowledged(
        self, start: int, end: int, number: int, *, value: int | np.ndarray, durable: bool = False
    ) -> None:
        end = min(end, self.sectors)
        _raise_floor(self.cached_base[start:end], self.cached_floor[start:end], number, value)
        if durable:
            _raise_floor(self.durable_base[start:end], self.durable_floor[start:end], number, value)

    def flushing(self) -> tuple[np.ndarray, np.ndarray]:
        """What a flush called now will make durable."""
        return self.cached_base.copy(), self.cached_floor.copy()

    def flushed(self, captured: tuple[np.ndarray, np.ndarray]) -> None:
        base, floor = captured
        keep = min(len(base), self.sectors)
        newer = floor[:keep] > self.durable_floor[:keep]
        self.durable_base[:keep][newer] = base[:keep][newer]
        self.durable_floor[:keep][newer] = floor[:keep][newer]

    def floor_of(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """The cached floor as it is now, for a read that begins now."""
        return self.cached_base[start:end].copy(), self.cached_floor[start:end].copy()

    def verify(
        self, data: bytes | bytearray | memoryview, start: int, floor: tuple[np.ndarray, np.ndarray], what: str
    ) -> np.ndarray:
        """The values of the sectors in ``data``. Raises Violation unless each may stand there above ``floor``."""
        base, number = floor
        words = np.frombuffer(data, dtype=np.uint64).reshape(-1, _WORDS // 4, 4)
        first = words[:, 0, :]
        address = np.arange(start, start + len(first), dtype=np.uint64)
        values = _token(first[:, 0], first[:, 1], address)
        self._need((words == first[:, None, :]).all(axis=(1, 2)), values, start, what, "is torn inside a sector", base)
        written = values != 0
        seal = first[:, 0] ^ (first[:, 1] << np.uint64(20)) ^ np.uint64(0xA5A5A5A5A5A5A5A5)
        right = np.where(written, first[:, 3] == seal, (first == 0).all(axis=1))
        self._need(right, values, start, what, "holds bytes that were never written", base)
        limit = np.zeros(len(values), dtype=np.uint64)
        for writer, highest in self.lineage.items():
            limit[first[:, 2] == writer] = min(highest, self.ceiling)
        later_zero = self.zeroed[start : start + len(values)]
        zero_ok = ~written & (later_zero > number)
        here = values < np.uint64(1 << ELSEWHERE)  # what was written elsewhere is here only through a share
        later_ok = written & here & (values > number) & (values <= limit)
        self._need(
            (values == base) | zero_ok | later_ok | self._shared(values, start, number),
            values,
            start,
            what,
            "holds a value that may not be there",
            base,
        )
        self._verify_atomic(values, start, what)
        return values

    def _verify_atomic(self, values: np.ndarray, start: int, what: str) -> None:
        for number in set(values.tolist()) & self.atomic.keys():
            first, end = self.atomic[number]
            part = values[max(0, first - start) : end - start]
            zeroed = self.zeroed[max(first, start) : start + len(values)][: len(part)]
            shared = self.shared[max(first, start) : start + len(values)][: len(part)]
            torn = (part < number) & ((part != 0) | (zeroed < number)) & (shared < number)
            if not ((part == number) & (shared < number)).any():
                continue  # what is here of it was written elsewhere
            if torn.any():
                raise Violation(
                    f"{what}: atomic write {number} of sectors {first}..{end - 1} is torn: "
                    f"{int(torn.sum())} sectors hold what was there before"
                )

    def _shared(self, values: np.ndarray, start: int, floor: np.ndarray) -> np.ndarray:
        """Which of these a share above the floor may have put there."""
        good = np.zeros(len(values), dtype=bool)
        for share in self.shares:
            low, high = max(start, share.start), min(start + len(values), share.start + len(share.tokens))
            if low < high:
                here = slice(low - start, high - start)
                tokens = share.tokens[low - share.start : high - share.start]
                good[here] |= (values[here] == tokens) & (share.number > floor[here])
        return good

    def _need(self, good, values, start: int, what: str, message: str, base) -> None:
        if good.all():
            return
        at = int(np.argmin(good))
        bad = int((~good).sum())
        raise Violation(
            f"{what}: sector {start + at} {message}: found write {int(values[at])}, certain is {int(base[at])}; "
            f"{bad} such sectors"
        )

    def crashed(self, *, power_lost: bool) -> None:
        """From now on only what survives is certain."""
        if power_lost:
            self.cached_base = self.durable_base.copy()
            self.cached_floor = self.durable_floor.copy()

    def observed(self, values: np.ndarray, number: int, *, durable: bool) -> None:
        """All sectors were read when nothing was under way: these values stay until a later operation."""
        self.cached_base = values.copy()
        self.cached_floor = np.full(self.sectors, number, dtype=np.uint64)
        if durable:
            self.shares = [share for share in self.shares if share.number > number]
            self.durable_base = values.copy()
            self.durable_floor = self.cached_floor.copy()


def _raise_floor(base: np.ndarray, floor: np.ndarray, number: int, value: int | np.ndarray) -> None:
    newer = floor < number
    base[newer] = value if isinstance(value, int) else value[: len(base)][newer]
    floor[newer] = number


@dataclass(frozen=True, slots=True)
class Windows:
    """The parts of a large device that a test uses, as (offset, length) in bytes, seen as one small device.

    They lie where the store's structures change: the start, both sides of a map leaf's border, the end.
    """

    parts: tuple[tuple[int, int], ...]

    @property
    def sectors(self) -> int:
        return sum(length for _, length in self.parts) // SECTOR

    def within(self, sector: int, count: int) -> list[tuple[int, int, int]]:
        """Split a range of the small device: (sector there, offset in the real device, length in bytes)."""
        pieces = []
        begin = 0
        for offset, length in self.parts:
            size = length // SECTOR
            low, high = max(sector, begin), min(sector + count, begin + size)
            if low < high:
                pieces.append((low, offset + (low - begin) * SECTOR, (high - low) * SECTOR))
            begin += size
        return pieces
