"""Rot of a life's file while nobody has it open: one flipped bit in a structure chosen by its kind.

A trial works on copies of the file; the life goes on with the sound one. What has to hold of the spoilt copy:

* ``check`` calls it damaged, and names the page, the record or the chunk; of two good superblocks, or copies of a
  COMMIT, it notes one, and everything is read;
* it is refused (StoreCorrupt, NotSupported, MediumError), or it opens and every chunk of every device, read in pieces,
  is what the sound copy has, or a MEDIUM ERROR; no volume and no snapshot is missing;
* the same again after it was open for writing: nothing is made worse, or silently right;
* of payload that has a digest, a scrub finds the chunk before that.

Not tried: payload without a digest, which nothing can vouch for (docs/decisions/0019); more than one flipped bit.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import MediumError, NotSupported, StoreCorrupt, StoreFailed
from engine.files import StoreEnv
from engine.stores import ExtentState
from engine.tvol import journal, layout
from engine.tvol.check import CheckReport, Severity, _Checker, check_file
from engine.tvol.check_image import Findings, Image, Loader
from engine.tvol.file import TvolFile
from tests.support.sim_loop import SimClock, SimLoop, SimWorkers
from tests.support.volume_oracle import Violation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engine.stores import Frozen, Head
    from engine.tvol.scrub import Finding
    from tests.support.sim_files import SimFileSystem

REFUSED = (StoreCorrupt, NotSupported, MediumError, StoreFailed)
KINDS = {
    "root": ("root index", "root stream"),
    "nodes": ("nodes, page",),
    "map top": ("map top",),
    "map leaf": ("map leaf",),
    "births": ("births",),
    "deadlist": ("deadlist",),
    "reclaim queue": ("reclaim queue",),
    "slots": ("slots",),
    "partial chunks": ("partial chunks",),
    "digests": ("digest page", "bits of digests", "index of digests"),
}
"""The structures that are pages: how the checker names them."""
TWICE = ("superblock", "commit", "last commit")
"""What is there twice, so that one is enough."""
BITS = 3
"""Tried in one trial."""
JOURNAL_WEIGHT = 2
USED_CHANCE = 0.8
"""How often it is a byte that is not zero: most of most pages is not used."""
Place = tuple[int, int, str]
"""(offset, bytes, how the checker names it)."""
NOWHERE: Place = (0, 0, "")
UNNAMED = "not named"
"""What the checker need not name."""
EMPTY_CHUNKS = 8
"""So many chunks that hold nothing are read too."""

Content = dict[tuple[str, int], bytes]
"""(device, chunk) -> what it reads as; of every device an entry for chunk -1, which says how large it is."""


class Trial:
    """One bit. ``unlock``: as ``TvolFile.open``."""

    def __init__(self, files: SimFileSystem, path: Path, rng: random.Random, unlock: Callable) -> None:
        self._files = files
        self._path = path
        self._rng = rng
        self._unlock = unlock
        self._digested: list[int] = []
        """Chunks that have a digest once the file is open."""

    def run(self) -> list[str]:
        """What rotted, each time in a sound copy. Raises Violation."""
        expected = self._content(self._files.closed_copy(self._path), scrub=False)
        places = self._places(self._files.closed_copy(self._path))
        kinds = [*sorted(places), *(["journal"] * JOURNAL_WEIGHT if "journal" in places else [])]
        chosen = [self._rng.choice(kinds) for _ in range(BITS)]
        for kind in chosen:
            self._one_bit(kind, *self._rng.choice(places[kind]), expected)
        return chosen

    def _one_bit(self, kind: str, offset: int, length: int, named: str, expected: Content) -> None:
        spoilt = self._files.closed_copy(self._path)
        at = offset + self._rng.randrange(length)
        used = np.flatnonzero(np.frombuffer(spoilt.image(self._path).read(offset, length), np.uint8))
        if len(used) and self._rng.random() < USED_CHANCE:
            at = offset + int(self._rng.choice(used))
        spoilt.flip(self._path, at, 1 << self._rng.randrange(8))
        what = f"rot in {kind} ({named.strip()}), byte {at - offset}"
        self._checked(spoilt, kind, named, what)
        for opening in ("opened", "opened again"):
            try:
                found = self._content(spoilt, scrub=kind == "digested data", like=expected)
            except REFUSED:
                if kind in TWICE or kind == "digested data":
                    raise
                continue
            _compare(expected, found, f"{what}, {opening}")

    def _places(self, files: SimFileSystem) -> dict[str, list[Place]]:
        """Of everything that there is of each kind."""
        file = files.open(self._path, writable=False)
        findings = Findings()
        loader = Loader(file, findings)
        image = loader.load()
        assert image is not None
        _Checker(image, findings, CheckReport(str(self._path))).structures(loader)  # maps and deadlists are looked at
        file.close()
        raw = files.image(self._path)
        places: dict[str, list[Place]] = {
            kind: [
                (page * layout.PAGE_SIZE, layout.PAGE_SIZE, f"page {page} ")
                for page, use in image.uses.items()
                if any(part in use for part in parts)
            ]
            for kind, parts in KINDS.items()
        }
        try:
            found = [layout.Superblock.parse(raw.read(at, layout.SUPERBLOCK_SIZE)) for at in layout.SUPERBLOCK_OFFSETS]
        except layout.LayoutError:
            pass  # a crash has torn one of them: the other one is all there is
        else:
            # After a crash between the two, the first one has what only its checkpoint has made durable, and nobody
            # was told of; the second one does not have it.
            if found[0].sequence == found[1].sequence:
                slots = enumerate(layout.SUPERBLOCK_OFFSETS)
                places["superblock"] = [(at, layout.SUPERBLOCK_SIZE, f"superblock {slot}") for slot, at in slots]
        places["journal"], places["commit"] = _journal_places(image, raw.read)
        places["last commit"] = places["commit"][-2:]
        chunk_bytes = image.superblock.chunk_bytes
        places["digested data"] = [(chunk * chunk_bytes, chunk_bytes, f"chunk {chunk}") for chunk in self._digested]
        return {kind: found for kind, found in places.items() if found}

    def _checked(self, files: SimFileSystem, kind: str, named: str, what: str) -> None:
        report = check_file(self._path, files=files, data=True)
        severity = Severity.NOTE if kind in TWICE else Severity.DAMAGE
        if named == UNNAMED:
            return
        if kind == "digested data" and report.counts["committed_records"] + report.counts["soft_records"]:
            return  # the journal may free it
        if not any(named in f"{item} " and item.severity is severity for item in report.findings):
            raise Violation(f"{what}: check does not name it: {[str(item) for item in report.findings[:5]]}")

    def _content(self, files: SimFileSystem, *, scrub: bool, like: Content | None = None) -> Content:
        """Open for writing, perhaps scrub, read everything, close. ``like``: what has to be read."""
        loop = SimLoop()
        env = StoreEnv(files, SimWorkers(loop, random.Random(1), turns_max=1), SimClock(loop))
        try:
            found = loop.run_until_complete(self._read(env, scrub=scrub, like=like))
            if loop.errors:
                raise Violation(f"the loop reported: {loop.errors[0]}")
            return found
        finally:
            files.kill()
            loop.close()
            files.restart_process()

    async def _read(self, env: StoreEnv, *, scrub: bool, like: Content | None) -> Content:
        store = await TvolFile.open(env, self._path, unlock=self._unlock)
        if scrub:
            await _scrub(store)
        if like is None:
            digests = store._core.family.births.digests
            self._digested = sorted(set(digests.digested().tolist()) - digests.bad)
        unit, found = store.chunk_bytes, Content()
        for name, device in _devices(store):
            found[name, -1] = device.size_bytes.to_bytes(8, "little")
            if like is None:
                chunks = await _interesting(device, unit)
            else:
                chunks = [chunk for other, chunk in like if other == name and chunk >= 0]
            for chunk in chunks:
                buffer = bytearray(min(unit, device.size_bytes - chunk * unit))
                try:
                    await device.read(chunk * unit, memoryview(buffer))
                except MediumError:
                    continue  # told, not wrong
                found[name, chunk] = bytes(buffer)
        await store.close()
        return found


def _devices(store: TvolFile) -> list[tuple[str, Head | Frozen]]:
    devices: list[tuple[str, Head | Frozen]] = [(f"volume {head.volume_id}", head) for head in store.volumes()]
    for head in store.volumes():
        staging = store.staging(head.volume_id)
        if staging is not None:
            devices.append((f"staging of {head.volume_id}", staging))
    devices += [(f"snapshot {frozen.guid}", frozen) for frozen in store.snapshots()]
    return devices


async def _interesting(device: Head | Frozen, unit: int) -> list[int]:
    """All chunks with data, and some without."""
    data: list[int] = []
    empty: list[int] = []
    for extent in await device.extents(0, device.size_bytes):
        first, end = extent.offset // unit, -(-extent.end // unit)
        if extent.state is ExtentState.DATA:
            data.extend(range(first, end))
        else:
            empty.extend(range(first, min(end, first + EMPTY_CHUNKS)))
    return data + empty[:EMPTY_CHUNKS]


async def _scrub(store: TvolFile) -> None:
    async def pace(length: int) -> None:
        await asyncio.sleep(0)

    findings: list[Finding] = []
    staging = [area for head in store.volumes() if (area := store.staging(head.volume_id)) is not None]
    for head in [*store.volumes(), *staging]:
        end = -(-store.scrub_bytes(head) // store.chunk_bytes)
        await store.scrubber(head, pace=pace, report=findings.append).run(0, end)


def _journal_places(image: Image, read: Callable[[int, int], bytes]) -> tuple[list[Place], list[Place]]:
    """The records that the last COMMIT covers, and both copies of each COMMIT of which the crash has left both."""
    superblock = image.superblock
    begin = layout.JOURNAL_FIRST_CHUNK * superblock.chunk_bytes
    ring = memoryview(read(begin, superblock.journal_chunks * superblock.chunk_bytes))
    chain = superblock.journal_offset, superblock.journal_seq, superblock.incarnation, superblock.journal_previous
    covered: list[Place] = []
    commits: list[Place] = []
    waiting: list[tuple[int, Place]] = []
    first: Place | None = None
    previous = superblock.journal_previous
    for record, behind in journal.scan(ring, *chain):
        at = (behind - record.length) % len(ring)
        is_whole = layout.parse_record(ring, at, record.seq, superblock.incarnation, previous) is not None
        previous = record.checksum
        place = begin + at, record.length, "journal"
        if record.type != layout.RecordType.COMMIT:
            waiting.append((record.seq, place))
        elif first is None:
            first = place if is_whole else NOWHERE
            covers = int(layout.COMMIT.unpack(record.payload)[0])
            covered += [found for seq, found in waiting if seq <= covers]
            waiting = [found for found in waiting if found[0] > covers]  # they came while the data was being synced
        else:
            if is_whole and first is not NOWHERE:
                commits += [first, place]
            first = None
    if commits:  # behind the last one there may be nothing that proves it
        commits[-1] = *commits[-1][:2], UNNAMED
    return covered, commits


def _compare(expected: Content, found: Content, what: str) -> None:
    if {key for key in expected if key[1] < 0} != {key for key in found if key[1] < 0}:
        raise Violation(f"{what}: other volumes or snapshots than before")
    for (name, chunk), data in found.items():
        if expected[name, chunk] != data:
            raise Violation(f"{what}: chunk {chunk} of {name} reads other bytes, without an error")
