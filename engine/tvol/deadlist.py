"""What was killed in a node but is still referenced by an older snapshot, in buckets by birth.

Deleting a snapshot and saying what a delete would give back are sums over buckets, not scans. A bucket only grows, or
leaves or is replaced as a whole, so a checkpoint captures one by its length.
"""

from __future__ import annotations

import itertools
from array import array
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from engine.tvol.layout import WORDS_PER_PAGE, LayoutError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from engine.tvol.layout import PageRef

    Part = tuple[array[int], int, int]
    """Words of an array, from the first number up to the second."""


class Deadlist:
    """Chunks by birth generation."""

    __slots__ = ("buckets", "dirty", "pages")

    def __init__(self) -> None:
        self.buckets: dict[int, array[int]] = {}
        self.dirty = True
        """Changed since a checkpoint captured it."""
        self.pages: tuple[PageRef, ...] = ()
        """Its pages in the last checkpoint; of no meaning while dirty."""

    def add(self, birth: int, chunk: int) -> None:
        bucket = self.buckets.get(birth)
        if bucket is None:
            bucket = self.buckets[birth] = array("I")
        bucket.append(chunk)
        self.dirty = True

    def extend(self, birth: int, chunks: Iterable[int]) -> None:
        self.buckets.setdefault(birth, array("I")).extend(chunks)
        self.dirty = True

    def count_above(self, generation: int) -> int:
        return sum(len(bucket) for birth, bucket in self.buckets.items() if birth > generation)

    def counts(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """The births of the buckets and how many entries each has, in no order."""
        births = np.fromiter(self.buckets, np.uint32, len(self.buckets))
        return births, np.fromiter(map(len, self.buckets.values()), np.int64, len(self.buckets))

    def take_above(self, generation: int) -> list[array[int]]:
        """Remove and return the buckets born after ``generation``, oldest first."""
        births = sorted(birth for birth in self.buckets if birth > generation)
        self.dirty = self.dirty or bool(births)
        return [self.buckets.pop(birth) for birth in births]

    def remove(self, birth: int, claims: npt.NDArray[np.uint32]) -> None:
        """These are none of the list any more; the bucket becomes another array, since a checkpoint may have captured
        it. Linear in its length. Raises LayoutError: they are not all in it."""
        bucket = np.array(self.buckets.get(birth, array("I")), np.uint32)
        kept = bucket[~np.isin(bucket, claims)]
        if len(bucket) - len(kept) != len(claims):
            raise LayoutError(f"a deadlist has not all of {len(claims)} claims born in {birth}")
        del self.buckets[birth]
        if len(kept):
            self.buckets[birth] = array("I", kept.tobytes())
        self.dirty = True

    def absorb(self, other: Deadlist) -> None:
        """Take over the entries of the node that is merged into this one's."""
        for birth, bucket in other.buckets.items():
            self.extend(birth, bucket)

    def capture(self) -> list[tuple[int, array[int], int]]:
        """(birth, bucket, length) of each bucket now, by birth; later appends do not change what this means."""
        return [(birth, bucket, len(bucket)) for birth, bucket in sorted(self.buckets.items())]

    def words(self) -> int:
        """Length of the stored stream in uint32."""
        return sum(2 + len(bucket) for bucket in self.buckets.values())


class ReclaimQueue:
    """Claims of merged nodes that are still to be freed, in order. A queued array never changes, so a checkpoint
    captures the queue by its parts."""

    __slots__ = ("_arrays", "_count", "_taken")

    def __init__(self) -> None:
        self._arrays: deque[array[int]] = deque()
        self._taken = 0
        """Of the first array."""
        self._count = 0

    def __len__(self) -> int:
        """Claims that wait."""
        return self._count

    def append(self, claims: array[int]) -> None:
        if claims:
            self._arrays.append(claims)
            self._count += len(claims)

    def take(self, count: int) -> array[int]:
        """The first so many, or all, however they are cut into arrays."""
        found: array[int] = array("I")
        while self._arrays and len(found) < count:
            first, start = self._arrays[0], self._taken
            self._taken = min(len(first), start + count - len(found))
            found += first[start : self._taken]
            if self._taken == len(first):
                self._arrays.popleft()
                self._taken = 0
        self._count -= len(found)
        return found

    def parts(self) -> list[Part]:
        """All that waits."""
        starts = itertools.chain((self._taken,), itertools.repeat(0))
        return [(each, start, len(each)) for each, start in zip(self._arrays, starts, strict=False)]


def pack_buckets(captured: list[tuple[int, array[int], int]]) -> Iterator[bytes]:
    """The pages of the stream of uint32 that is stored: (birth, count) of each bucket, then the entries."""
    head = array("I")
    for birth, _, length in captured:
        head.extend((birth, length))
    yield from word_pages([(head, 0, len(head)), *((bucket, 0, length) for _, bucket, length in captured)])


def word_pages(parts: Iterable[Part]) -> Iterator[bytes]:
    """What the words of all parts make one behind the other, cut into pages."""
    page = array("I")
    for words, start, end in parts:
        at = start
        while at < end:
            step = min(WORDS_PER_PAGE - len(page), end - at)
            page += words[at : at + step]
            at += step
            if len(page) == WORDS_PER_PAGE:
                yield page.tobytes()
                page = array("I")
    if page:
        yield page.tobytes()


def unpack_buckets(stream: array[int], count: int) -> Deadlist:
    """The reverse. Raises ValueError when the counts do not add up."""
    dead = Deadlist()
    at = 2 * count
    if at > len(stream):
        raise ValueError(f"{count} buckets in {len(stream)} words")
    for number in range(count):
        birth, length = stream[2 * number], stream[2 * number + 1]
        dead.buckets[birth] = stream[at : at + length]
        at += length
    if at != len(stream):
        raise ValueError(f"{count} buckets hold {at} words, not {len(stream)}")
    dead.dirty = False
    return dead
