"""Digests of frozen chunks, and which chunks are known to be bad (STORE section 5, decision 0019).

A digest is that of ``engine.hash_tree`` for the bytes of a chunk (``digest_of``), made while nobody could change them.

* A chunk with a digest is *immutable*: ``Births.view`` says FROZEN for it, so every head redirects the next write, as
  if a snapshot shared the chunk. So a digest is never stale, and a mismatch never a false alarm.
* A digest is made from frozen bytes only: ``hold`` freezes the chunk before it is read; the caller has seen to it that
  no write that was admitted before is still in flight to it.
* It is dropped when its chunk is freed, in the same step (``drop``, called by ``Births``), also while it is being made.
* A digest needs no journal record. It is durable with the checkpoint that captures it, whose first sync covers the
  chunk's own data; a crash before that loses the digest, and the chunk may be written in place again. What ends a
  digest (a chunk is freed) is in the journal anyway, and durable before the chunk is used again.
* A chunk marked bad stays so until it is freed or repaired; the mark is a journal record (``RecordType.MARK``).

In memory one bit for each chunk of the file (2 MiB per TiB), 12 bytes for each page of digests (192 KiB per TiB), and
a bounded cache: the digests themselves (256 MiB per TiB) stay in the file, 1024 to a page.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from xxhash import xxh3_64_intdigest as checksum64

from engine.tvol.layout import DIGEST_BYTES, DIGESTS_PER_PAGE, MAX_BAD_CHUNKS, PAGE_SIZE, LayoutError, PageRef

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from engine.files import BlockFile, Workers

    Words = npt.NDArray[np.uint32]
    Mask = npt.NDArray[np.bool_]
    Bits = npt.NDArray[np.uint8]

CACHE_PAGES = 128
"""Clean pages of digests kept in memory (2 MiB)."""
MAX_DIRTY_PAGES = 256
"""With so many changed ones (4 MiB) whoever makes digests asks for a checkpoint."""
REFS = np.dtype([("page", "<u4"), ("checksum", "<u8")])
"""As ``layout.PAGE_REF``: a million references are no objects."""
assert REFS.itemsize == 12
_CHUNKS_PER_BITS_PAGE = 8 * PAGE_SIZE


def digest_of(leaves: bytes) -> bytes:
    """A chunk's digest from those of its 64 KiB leaves: of one leaf that itself, of several their xxh3_128."""
    return leaves if len(leaves) == DIGEST_BYTES else xxhash.xxh3_128_digest(leaves)


class Digests:
    """The digests of a file's chunks. Loop thread only."""

    def __init__(self) -> None:
        self.bad: set[int] = set()
        """Chunks marked bad. The same object for ever: readers keep it."""
        self.held: set[int] = set()
        """Frozen to be digested; one that is freed meanwhile is taken out."""
        self.pages_needed = 0
        """Upper bound of what the next checkpoint writes of all this."""
        self.refs = np.zeros(0, REFS)
        """Where each page of digests was at the last checkpoint; page 0: it has none."""
        self.indexed = self.refs
        """``refs`` as they are stored,"""
        self.index: tuple[PageRef, ...] = ()
        """and where."""
        self.bits_pages: list[PageRef] = []
        self.dirty_bits: set[int] = set()
        self.dirty_refs = False
        self._bits: Bits = np.zeros(0, np.uint8)
        self._dirty: dict[int, bytearray] = {}
        self._writing: dict[int, bytes] = {}
        """Captured by the checkpoint under way: not where ``refs`` say before it has ended."""
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self.made = 0
        """How many there are."""

    @property
    def in_use(self) -> bool:
        return bool(len(self._bits))

    # --- loading ------------------------------------------------------------------------------------------------

    def load(self, bits: bytes, bits_pages: Iterable[PageRef], refs: bytes, index: tuple[PageRef, ...]) -> None:
        """Take over what a checkpoint left. The caller freezes what is digested, and sets ``bad``."""
        self._bits = np.frombuffer(bits, np.uint8).copy()
        self.bits_pages, self.index = list(bits_pages), index
        self.indexed = np.frombuffer(refs, REFS)
        self.refs = self.indexed.copy()
        self.made = len(self.digested())
        self._count()

    def digested(self) -> Words:
        """All chunks that have a digest, ascending."""
        return np.flatnonzero(np.unpackbits(self._bits, bitorder="little")).astype(np.uint32)

    # --- looking ------------------------------------------------------------------------------------------------

    def has(self, chunk: int) -> bool:
        at = chunk >> 3
        return at < len(self._bits) and bool(self._bits[at] >> (chunk & 7) & 1)

    def have(self, chunks: Words) -> Mask:
        if not len(self._bits):
            return np.zeros(len(chunks), bool)
        at = np.minimum(chunks >> 3, len(self._bits) - 1)
        found: Mask = (self._bits[at] >> (chunks & 7) & 1).astype(bool) & (chunks >> 3 < len(self._bits))
        return found

    def frozen(self, chunks: Words) -> Mask:
        """Which of these may not be written in place: for a digest, made or being made, or since they are bad."""
        found = self.have(chunks)
        for others in (self.held, self.bad):
            if others:
                found |= np.isin(chunks, np.fromiter(others, np.uint32, len(others)))
        return found

    async def prepare(self, file: BlockFile, workers: Workers, chunks: Iterable[int]) -> None:
        """Have the pages that hold (or will hold) the digests of these chunks in memory, for ``get`` and ``put`` in
        the same step: whoever waits after it asks ``at_hand``. Raises LayoutError, naming a page that does not verify:
        its digests have been dropped."""
        for page in sorted({chunk // DIGESTS_PER_PAGE for chunk in chunks}):
            if self._in_memory(page):
                if page in self._cache:
                    self._cache.move_to_end(page)  # what is read for the others must not displace it
                continue
            ref = self.refs[page]
            offset, wanted = int(ref["page"]) * PAGE_SIZE, int(ref["checksum"])
            data = await workers.run(lambda offset=offset: _read_page(file, offset))  # type: ignore[misc]
            if page in self._dirty or page in self._writing or int(self.refs[page]["page"]) * PAGE_SIZE != offset:
                continue  # somebody else was faster
            if checksum64(data) != wanted:
                lost = self.drop_page(page)
                raise LayoutError(f"digest page {page} does not verify: {lost} chunks have no digest any more")
            self._cache[page] = data
        while len(self._cache) > CACHE_PAGES:
            self._cache.popitem(last=False)

    def at_hand(self, chunks: Iterable[int]) -> bool:
        """Whether ``get`` and ``put`` may be called for all of these, in this step."""
        return all(self._in_memory(chunk // DIGESTS_PER_PAGE) for chunk in chunks)

    def _in_memory(self, page: int) -> bool:
        """Also of a page that there never was."""
        return page in self._dirty or page in self._writing or page in self._cache or not self._stored(page)

    def _stored(self, page: int) -> bool:
        return page < len(self.refs) and bool(self.refs[page]["page"])

    def get(self, chunk: int) -> bytes | None:
        """The digest of a chunk; None: it has none. Its page is in memory (``prepare``)."""
        if not self.has(chunk):
            return None
        page, at = chunk // DIGESTS_PER_PAGE, chunk % DIGESTS_PER_PAGE * DIGEST_BYTES
        data = self._dirty.get(page) or self._writing.get(page) or self._cache.get(page)
        assert data is not None, "the page of a digest was not prepared"
        return bytes(data[at : at + DIGEST_BYTES])

    # --- changing -----------------------------------------------------------------------------------------------

    def put(self, chunk: int, digest: bytes) -> None:
        """Give a held chunk its digest. Its page is in memory; room for a changed page was made."""
        page, at = chunk // DIGESTS_PER_PAGE, chunk % DIGESTS_PER_PAGE * DIGEST_BYTES
        data = self._dirty.get(page)
        if data is None:
            stored = self._writing.get(page) or self._cache.pop(page, None)
            assert stored is not None or not self._stored(page), "the page of a digest was not prepared"
            data = self._dirty[page] = bytearray(stored or PAGE_SIZE)
        data[at : at + DIGEST_BYTES] = digest
        self._extend_to(chunk + 1)
        if not self.has(chunk):
            self.made += 1
        self._bits[chunk >> 3] |= 1 << (chunk & 7)
        self.dirty_bits.add(chunk // _CHUNKS_PER_BITS_PAGE)
        self._count()

    def _extend_to(self, chunks: int) -> None:
        wanted = -(-chunks // _CHUNKS_PER_BITS_PAGE) * PAGE_SIZE
        if wanted > len(self._bits):
            self.dirty_bits.update(range(len(self._bits) // PAGE_SIZE, wanted // PAGE_SIZE))
            self._bits = np.pad(self._bits, (0, wanted - len(self._bits)))
        pages = -(-chunks // DIGESTS_PER_PAGE)
        if pages > len(self.refs):
            self.refs = np.concatenate([self.refs, np.zeros(pages - len(self.refs), REFS)])
            self.dirty_refs = True

    def drop(self, chunks: Words) -> None:
        """These chunks were freed: their digests and marks end."""
        if self.held:
            self.held.difference_update(chunks.tolist())
        if self.bad:
            self.bad.difference_update(chunks.tolist())
        mine = chunks[self.have(chunks)]
        if len(mine):
            self.made -= len(mine)
            np.bitwise_and.at(self._bits, mine >> 3, ~(np.uint8(1) << (mine & 7).astype(np.uint8)))
            self.dirty_bits.update(np.unique(mine // _CHUNKS_PER_BITS_PAGE).tolist())

    def drop_one(self, chunk: int) -> None:
        """The same for one chunk."""
        self.held.discard(chunk)
        self.bad.discard(chunk)
        if self.has(chunk):
            self.made -= 1
            self._bits[chunk >> 3] &= ~(1 << (chunk & 7)) & 0xFF
            self.dirty_bits.add(chunk // _CHUNKS_PER_BITS_PAGE)

    def drop_page(self, page: int) -> int:
        """Forget all digests of a page that cannot be read, but no mark; how many there were."""
        first = page * DIGESTS_PER_PAGE
        chunks = np.arange(first, first + DIGESTS_PER_PAGE, dtype=np.uint32)
        lost = chunks[self.have(chunks)]
        alive = set(lost.tolist())  # its chunks go on: marks stay, and what is being digested
        marked, held = self.bad & alive, self.held & alive
        self.drop(lost)
        self.bad |= marked
        self.held |= held
        self.refs[page] = (0, 0)
        self.dirty_refs = True
        self._count()
        return len(lost)

    def touch(self) -> None:
        """Have the next checkpoint write all bits anew."""
        self.dirty_bits.update(range(len(self._bits) // PAGE_SIZE))

    def mark(self, chunk: int, *, bad: bool) -> None:
        """What a MARK record says. Raises LayoutError when there are too many."""
        if not bad:
            self.bad.discard(chunk)
        elif len(self.bad) >= MAX_BAD_CHUNKS and chunk not in self.bad:
            raise LayoutError(f"more than {MAX_BAD_CHUNKS} chunks are marked bad")
        else:
            self.bad.add(chunk)

    # --- the checkpoint -----------------------------------------------------------------------------------------

    def _count(self) -> None:
        bits = len(self._bits) // PAGE_SIZE
        self.pages_needed = bits + len(self._dirty) + 1 + len(self.refs) * REFS.itemsize // PAGE_SIZE

    @property
    def dirty_pages(self) -> int:
        return len(self._dirty)

    def capture(self) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """The changed pages of bits, and of digests, for the checkpoint that begins now; ``written`` ends it."""
        bits = {
            page: self._bits[page * PAGE_SIZE : (page + 1) * PAGE_SIZE].tobytes() for page in sorted(self.dirty_bits)
        }
        self.dirty_bits.clear()
        self._writing = {page: bytes(data) for page, data in sorted(self._dirty.items())}
        self._dirty = {}
        self._count()
        return bits, self._writing

    def written(self) -> None:
        """The checkpoint's pages are where ``refs`` say."""
        for page, data in self._writing.items():
            if page not in self._dirty:
                self._cache[page] = data
        self._writing = {}
        while len(self._cache) > CACHE_PAGES:
            self._cache.popitem(last=False)


def _read_page(file: BlockFile, offset: int) -> bytes:
    data = bytearray(PAGE_SIZE)
    file.read_into((memoryview(data),), offset)
    return bytes(data)
