"""``engine.files`` in memory, with the crashes and faults of a real machine, from one seed.

What is modelled
    * A write, punch, truncation or allocation is visible at once (the page cache) and *pends* until ``sync_data``.
    * **Power loss**: each pending effect is applied, dropped, or torn into 512-byte sectors, superblocks and journal
      also within them (a host may read a page for the medium while it is written to); which of them, by
      one of several biased patterns (nothing, all, oldest, newest, one side of an offset, independent chance),
      because real caches write back in patterns and independent chance hardly ever loses exactly one region.
      The boot id changes.
    * **Kill**: what was issued stays in the page cache *and stays pending*: a later power loss may still take it.
      Of a write in progress a prefix of sectors arrives. The boot id stays.
    * **A failed sync** leaves the pending effects visible but clean: no later sync makes them durable (Linux).
    * A file created or removed is so after power loss only if its folder was synced.
    * Faults by rule (the nth write of a region fails), a disk quota, a longest file, bit flips. Of a write that finds
      no room, or fails by rule, a part may have been written before its error.
    * The lock: one writer, or readers.

What each structure of a volume file must survive
    ==================  =================================================================
    superblock slots    torn or lost writes of one slot; a flipped bit in one slot
    root stream, pages  lost or torn shadow writes of a checkpoint that did not finish
    journal             lost, torn and reordered records after the last commit record
    payload             old or new in each unflushed sector
    any structure       a flipped bit is *reported* (StoreCorrupt), never used
    ==================  =================================================================

What is not modelled
    * A sector (512 bytes) is written whole or not at all, but for what is below ``halves_below``; bytes that a write
      leaves as they were are never lost by it; a drive that lies about its flush is out of scope.
    * Data that the drive returned as synced does not rot by itself; misdirected writes.
    * The calls inside one worker job follow each other without the loop's work in between, but a crash may
      come between any two of them.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import AlreadyExists, EngineError, InUse, MediumError, NotFound, OutOfSpace
from tests.support.sim_loop import ProcessDied

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

PAGE = 65536
SECTOR = 512
HALVES_CHANCE = 0.5
_ZERO_PAGE = bytes(PAGE)


class SparseBytes:
    """Bytes with holes, in pages; copies share nothing."""

    __slots__ = ("pages", "size")

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = 0

    def copy(self) -> SparseBytes:
        other = SparseBytes()
        other.pages = {number: bytearray(page) for number, page in self.pages.items()}
        other.size = self.size
        return other

    def write(self, offset: int, data: bytes | memoryview) -> None:
        end = offset + len(data)
        position = 0
        while offset < end:
            number, inside = divmod(offset, PAGE)
            length = min(PAGE - inside, end - offset)
            page = self.pages.get(number)
            if page is None:
                page = self.pages[number] = bytearray(PAGE)
            page[inside : inside + length] = data[position : position + length]
            offset += length
            position += length
        self.size = max(self.size, end)

    def read_into(self, offset: int, view: memoryview) -> None:
        end = offset + len(view)
        position = 0
        while offset < end:
            number, inside = divmod(offset, PAGE)
            length = min(PAGE - inside, end - offset)
            page = self.pages.get(number)
            source = _ZERO_PAGE if page is None else page
            view[position : position + length] = memoryview(source)[inside : inside + length]
            offset += length
            position += length

    def read(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def punch(self, offset: int, length: int) -> None:
        end = min(offset + length, self.size)
        while offset < end:
            number, inside = divmod(offset, PAGE)
            step = min(PAGE - inside, end - offset)
            if step == PAGE:
                self.pages.pop(number, None)
            elif number in self.pages:
                self.pages[number][inside : inside + step] = bytes(step)
            offset += step

    def allocate(self, offset: int, length: int) -> None:
        for number in range(offset // PAGE, -(-(offset + length) // PAGE)):
            self.pages.setdefault(number, bytearray(PAGE))
        self.size = max(self.size, offset + length)

    def truncate(self, size: int) -> None:
        if size < self.size:
            self.punch(size, self.size - size)
            for number in [number for number in self.pages if number * PAGE >= size]:
                del self.pages[number]
        self.size = size


@dataclass(slots=True)
class Effect:
    """Something issued and not yet durable: ``data`` for a write, else ``length`` of a punch or a new size."""

    kind: str  # "write", "punch", "truncate", "allocate"
    offset: int
    length: int
    data: bytes = b""
    halves: bool = False
    """Of a torn write a sector may have any part."""

    def apply(self, image: SparseBytes) -> None:
        if self.kind == "write":
            image.write(self.offset, self.data)
        elif self.kind == "punch":
            image.punch(self.offset, self.length)
        elif self.kind == "allocate":
            image.allocate(self.offset, self.length)
        else:
            image.truncate(self.length)

    def apply_torn(self, image: SparseBytes, rng: random.Random) -> None:
        """Some of its sectors: a prefix, a suffix or any of them."""
        if self.kind in ("truncate", "allocate"):
            return
        sectors = _sectors(self.offset, self.length)
        cut = rng.randrange(len(sectors) + 1)
        pattern = rng.randrange(3)
        if pattern == 0:
            chosen = sectors[:cut]
        elif pattern == 1:
            chosen = sectors[cut:]
        else:
            chosen = [sector for sector in sectors if rng.random() < 0.5]
        for start, end in chosen:
            if self.kind == "write":
                image.write(start, self.data[start - self.offset : end - self.offset])
            else:
                image.punch(start, end - start)
        if self.halves and self.kind == "write":
            self._apply_parts(image, rng)

    def _apply_parts(self, image: SparseBytes, rng: random.Random) -> None:
        """Of some sectors some words, as of a page that was read for the medium while it was being written."""
        for start, end in _sectors(self.offset, self.length):
            if rng.random() < HALVES_CHANCE:
                first, last = sorted(rng.randrange(start, end + 1) for _ in range(2))
                image.write(first, self.data[first - self.offset : last - self.offset])


def _touches(effect: Effect, offset: int, length: int) -> bool:
    """Whether an effect that is not durable yet concerns a range."""
    if effect.kind == "truncate":
        return effect.length < offset + length
    return effect.offset < offset + length and offset < effect.offset + effect.length


def _sectors(offset: int, length: int) -> list[tuple[int, int]]:
    """The pieces of an extent that lie in different sectors of the medium."""
    end = offset + length
    edges = [offset, *range((offset // SECTOR + 1) * SECTOR, end, SECTOR), end]
    return list(itertools.pairwise(edges))


@dataclass(slots=True)
class Inode:
    """One file: as the process sees it, as the medium has it, and what lies between."""

    live: SparseBytes = field(default_factory=SparseBytes)
    durable: SparseBytes = field(default_factory=SparseBytes)
    pending: list[Effect] = field(default_factory=list)
    entry_durable: bool = False
    writer: SimBlockFile | None = None
    readers: int = 0

    def issue(self, effect: Effect) -> None:
        effect.apply(self.live)
        self.pending.append(effect)

    def settle(self) -> None:
        """A successful fdatasync."""
        for effect in self.pending:
            effect.apply(self.durable)
        self.pending.clear()


@dataclass(slots=True)
class Fault:
    """Fail the ``nth`` matching operation (1 is the next), then every later one too if ``forever``.

    ``where`` tells by (offset, length) whether an operation is meant; syncs are asked with (0, 0).
    """

    operation: str  # "write", "sync", "read", "punch", "allocate", "truncate"
    error: Callable[[], EngineError]
    nth: int = 1
    forever: bool = False
    where: Callable[[int, int], bool] = lambda offset, length: True
    hits: int = 0

    def strikes(self, operation: str, offset: int, length: int) -> bool:
        if operation != self.operation or not self.where(offset, length):
            return False
        self.hits += 1
        return self.hits == self.nth or (self.forever and self.hits > self.nth)


def eio() -> EngineError:
    return MediumError("simulated EIO")


def enospc() -> EngineError:
    return OutOfSpace("simulated ENOSPC")


class SimBlockFile:
    """One open simulated file."""

    key = None

    def __init__(self, system: SimFileSystem, path: Path, inode: Inode, *, writable: bool) -> None:
        self.path = path
        self._system = system
        self._inode = inode
        self._writable = writable
        self._open = True
        self._life = system.life

    def size(self) -> int:
        return self._inode.live.size

    def fileno(self) -> None:
        return None

    def read_into(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        if not self._step("read", offset, sum(map(len, buffers))):
            return
        for buffer in buffers:
            self._inode.live.read_into(offset, memoryview(buffer).cast("B"))
            offset += len(buffer)

    def read_now(self, view: memoryview, offset: int, /) -> bool:
        if self._life == self._system.life and self._system.rng.random() < self._system.cold_read_chance:
            return False
        self.read_into((view,), offset)
        return True

    def write(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        data = b"".join(buffers)
        effect = Effect("write", offset, len(data), data, halves=offset < self._system.halves_below)
        tear = functools.partial(self._tear, effect)
        if self._step("write", offset, len(data), on_death=tear, on_fault=tear):
            self._check_writable()
            try:
                self._reserve(offset, len(data))
            except OutOfSpace:
                self._write_short(effect)
                raise
            self._inode.issue(effect)

    def sync_data(self) -> None:
        if self._step("sync", 0, 0, on_fault=self._lose_some):
            self._inode.settle()

    def drop_cache(self, offset: int = 0, length: int = 0, /) -> None:
        if not self._step("drop_cache", offset, length):
            return
        if length:
            if not any(_touches(effect, offset, length) for effect in self._inode.pending):
                self._inode.live.write(offset, self._inode.durable.read(offset, length))
        else:
            assert not self._inode.pending, "dropping the cache would not drop these pages"
            self._inode.live = self._inode.durable.copy()
            self._system.cache_lies = False

    def punch(self, offset: int, length: int, /) -> None:
        if self._step("punch", offset, length):
            self._check_writable()
            self._inode.issue(Effect("punch", offset, length))

    def allocate(self, offset: int, length: int, /) -> None:
        if self._step("allocate", offset, length):
            self._check_writable()
            self._reserve(offset, length)
            self._inode.issue(Effect("allocate", offset, length))

    def truncate(self, size: int, /) -> None:
        if self._step("truncate", size, 0):
            self._check_writable()
            self._limit(size)
            self._inode.issue(Effect("truncate", 0, size))

    def close(self) -> None:
        if not self._open or self._life != self._system.life:
            return
        self._open = False
        if self._inode.writer is self:
            self._inode.writer = None
        elif not self._writable:
            self._inode.readers -= 1

    def _step(self, operation: str, offset: int, length: int, **hooks: Callable[[], None]) -> bool:
        """A handle of an earlier process does nothing: its owner is gone and only being collected."""
        return self._life == self._system.life and self._system.step(operation, offset, length, **hooks)

    def _check_writable(self) -> None:
        assert self._writable, f"{self.path} is open for reading only"
        assert self._open, f"{self.path} is closed"

    def _reserve(self, offset: int, length: int) -> None:
        """Raises OutOfSpace when new pages of this extent do not fit the quota."""
        quota = self._system.quota_bytes
        if length:
            self._limit(offset + length)
        if quota is None or length == 0:
            return
        pages = self._inode.live.pages
        new = sum(number not in pages for number in range(offset // PAGE, (offset + length - 1) // PAGE + 1))
        if new and self._system.used_bytes() + new * PAGE > quota:
            raise enospc()

    def _limit(self, size: int) -> None:
        """Raises OutOfSpace where the file would grow beyond the longest that may be."""
        longest = self._system.file_bytes_max
        if longest is not None and size > max(longest, self._inode.live.size):
            raise OutOfSpace("simulated EFBIG")

    def _write_short(self, effect: Effect) -> None:
        """Of a write without room, what went to pages that the file has already, up to the first that it has not."""
        end = effect.offset
        while end < effect.offset + effect.length and end // PAGE in self._inode.live.pages:
            end = (end // PAGE + 1) * PAGE
        length = min(effect.length, end - effect.offset)
        if length > 0:
            self._inode.issue(Effect("write", effect.offset, length, effect.data[:length]))

    def _tear(self, effect: Effect) -> None:
        """The process dies inside this write, or it fails there: a prefix of its sectors is in the page cache."""
        sectors = _sectors(effect.offset, effect.length)
        cut = self._system.rng.randrange(len(sectors) + 1)
        if cut:
            length = sectors[cut - 1][1] - effect.offset
            self._inode.issue(Effect("write", effect.offset, length, effect.data[:length]))

    def _lose_some(self) -> None:
        """A failed fdatasync: some effects made it, the others are clean in the cache and lost to the medium."""
        for effect in self._inode.pending:
            if self._system.rng.random() < 0.5:
                effect.apply(self._inode.durable)
        self._inode.pending.clear()
        self._system.cache_lies = True


class SimFileSystem:
    """The files of one simulated machine, over several lives of the process and the machine."""

    def __init__(self, rng: random.Random, *, cold_read_chance: float = 0.0) -> None:
        self.rng = rng
        self.cold_read_chance = cold_read_chance
        self.faults: list[Fault] = []
        self.struck: Counter[str] = Counter()
        """How often which call has failed by a rule."""
        self.quota_bytes: int | None = None
        self.file_bytes_max: int | None = None
        self.operations = 0
        self.counts: dict[str, int] = {}
        self.dead = False
        self.cache_lies = False
        """A sync has failed since the last power loss: the cache shows what the medium will never get."""
        self.halves_below = 0
        """At smaller offsets power loss tears a write within its sectors, too; in no other."""
        self.life = 1
        """Number of the process."""
        self.on_death: Callable[[], None] = lambda: None
        self._die_in: int | None = None
        self._die_where: Callable[[str, int], bool] = lambda operation, offset: True
        self._boot = 1
        self._files: dict[Path, Inode] = {}
        self._removed: dict[Path, Inode] = {}

    def closed_copy(self, path: Path) -> SimFileSystem:
        """Another machine of the same boot with this file, as it would be read now, and nobody using it."""
        other = SimFileSystem(random.Random(1))
        other._boot = self._boot
        image = self._files[path].live
        other._files[path] = Inode(image.copy(), image.copy(), entry_durable=True)
        return other

    # engine.files.FileSystem

    def create(self, path: Path, /) -> SimBlockFile:
        self.step("create", 0, 0)
        if path in self._files:
            raise AlreadyExists("file", str(path))
        inode = self._files[path] = Inode()
        inode.writer = SimBlockFile(self, path, inode, writable=True)
        return inode.writer

    def open(self, path: Path, /, *, writable: bool) -> SimBlockFile:
        self.step("open", 0, 0)
        inode = self._files.get(path)
        if inode is None:
            raise NotFound("file", str(path))
        if inode.writer is not None or (writable and inode.readers):
            raise InUse(f"{path} is in use")
        handle = SimBlockFile(self, path, inode, writable=writable)
        if writable:
            inode.writer = handle
        else:
            inode.readers += 1
        return handle

    def remove(self, path: Path, /) -> None:
        self.step("remove", 0, 0)
        inode = self._files.pop(path, None)
        if inode is None:
            raise NotFound("file", str(path))
        if inode.entry_durable:
            self._removed[path] = inode

    def sync_directory(self, path: Path, /) -> None:
        if self.step("sync_directory", 0, 0):
            for inode in self._files.values():
                inode.entry_durable = True
            self._removed.clear()

    def boot_id(self) -> str:
        return f"00000000-0000-4000-8000-{self._boot:012d}"

    # Driving.

    def exists(self, path: Path) -> bool:
        return path in self._files

    def used_bytes(self) -> int:
        return sum(len(inode.live.pages) for inode in self._files.values()) * PAGE

    def image(self, path: Path) -> SparseBytes:
        """What the process would read now."""
        return self._files[path].live

    def pending(self, path: Path) -> list[Effect]:
        return list(self._files[path].pending)

    def put(self, path: Path, inode: Inode) -> None:
        """A file as another machine has left it."""
        self._files[path] = inode

    def flip(self, path: Path, offset: int, mask: int = 1, *, cache_only: bool = False) -> None:
        """Rot: change the bits of ``mask`` in one byte, in the cache and on the medium."""
        inode = self._files[path]
        for image in (inode.live,) if cache_only else (inode.live, inode.durable):
            image.write(offset, bytes([image.read(offset, 1)[0] ^ mask]))

    def die_after(
        self, operations: int | None, where: Callable[[str, int], bool] = lambda operation, offset: True
    ) -> None:
        """End the process inside the file operation that is so many from now; None: not by itself.

        ``where`` tells by (operation, offset) which ones count.
        """
        self._die_in = operations
        self._die_where = where

    def step(
        self,
        operation: str,
        offset: int,
        length: int,
        on_death: Callable[[], None] | None = None,
        on_fault: Callable[[], None] | None = None,
    ) -> bool:
        """Count an operation, let it fail or die. False: the process is dead, do nothing."""
        if self.dead:
            return False
        self.operations += 1
        self.counts[operation] = self.counts.get(operation, 0) + 1
        for fault in self.faults:
            if fault.strikes(operation, offset, length):
                if on_fault is not None:
                    on_fault()
                error = fault.error()
                self.struck[f"{operation}: {error}"] += 1
                raise error
        if self._die_in is not None and self._die_where(operation, offset):
            self._die_in -= 1
            if self._die_in <= 0:
                if on_death is not None:
                    on_death()
                self.kill()
                raise ProcessDied
        return True

    def kill(self) -> None:
        """The process is gone; the page cache stays, and what pends goes on pending."""
        self.dead = True
        self._die_in = None
        self.on_death()

    def restart_process(self) -> None:
        """A new process on the same boot."""
        self.life += 1
        self.dead = False
        self._die_in = None
        self.on_death = lambda: None
        for inode in self._files.values():
            inode.writer = None
            inode.readers = 0

    def lose_power(self, pattern_name: str | None = None) -> str:
        """The machine is gone and comes back with what the medium has. Returns the pattern of the loss."""
        self.dead = True
        self.cache_lies = False
        self._boot += 1
        for path, inode in self._removed.items():
            if self.rng.random() < 0.5:
                self._files.setdefault(path, inode)
        self._removed.clear()
        fit = [item for item in _PATTERNS if pattern_name in (None, item.__name__.lstrip("_"))]
        pattern = self.rng.choice(fit)
        for path, inode in list(self._files.items()):
            if not inode.entry_durable and self.rng.random() < 0.5:
                del self._files[path]
                continue
            inode.entry_durable = True
            pattern(inode, self.rng)
            inode.pending.clear()
            inode.live = inode.durable.copy()
        self.restart_process()
        return pattern.__name__.lstrip("_")


def _nothing(inode: Inode, rng: random.Random) -> None:
    return None


def _everything(inode: Inode, rng: random.Random) -> None:
    for effect in inode.pending:
        effect.apply(inode.durable)


def _each_by_chance(inode: Inode, rng: random.Random) -> None:
    chance = rng.choice((0.1, 0.5, 0.9))
    for effect in inode.pending:
        _maybe(effect, inode, rng, chance)


def _oldest(inode: Inode, rng: random.Random) -> None:
    cut = rng.randrange(len(inode.pending) + 1)
    for effect in inode.pending[:cut]:
        effect.apply(inode.durable)
    if cut < len(inode.pending):
        inode.pending[cut].apply_torn(inode.durable, rng)


def _newest(inode: Inode, rng: random.Random) -> None:
    cut = rng.randrange(len(inode.pending) + 1)
    if cut:
        inode.pending[cut - 1].apply_torn(inode.durable, rng)
    for effect in inode.pending[cut:]:
        effect.apply(inode.durable)


def _all_but_one(inode: Inode, rng: random.Random) -> None:
    lost = rng.randrange(len(inode.pending)) if inode.pending else -1
    for position, effect in enumerate(inode.pending):
        if position != lost:
            effect.apply(inode.durable)
        elif rng.random() < 0.5:
            effect.apply_torn(inode.durable, rng)


def _all_torn(inode: Inode, rng: random.Random) -> None:
    for effect in inode.pending:
        effect.apply_torn(inode.durable, rng)


def _below_an_offset(inode: Inode, rng: random.Random) -> None:
    _by_side(inode, rng, below=True)


def _above_an_offset(inode: Inode, rng: random.Random) -> None:
    _by_side(inode, rng, below=False)


def _by_side(inode: Inode, rng: random.Random, *, below: bool) -> None:
    """Everything on one side of an offset, and some of the other side: regions are written back apart."""
    if not inode.pending:
        return
    border = rng.choice(inode.pending).offset
    other = rng.choice((0.0, 0.0, 0.3))
    for effect in inode.pending:
        _maybe(effect, inode, rng, 1.0 if (effect.offset <= border) == below else other)


def _maybe(effect: Effect, inode: Inode, rng: random.Random, chance: float) -> None:
    if rng.random() < chance:
        effect.apply(inode.durable)
    elif rng.random() < 0.3 * (chance > 0):
        effect.apply_torn(inode.durable, rng)


_PATTERNS = (
    _nothing,
    _everything,
    _each_by_chance,
    _each_by_chance,
    _oldest,
    _newest,
    _all_but_one,
    _all_torn,
    _below_an_offset,
    _above_an_offset,
)
