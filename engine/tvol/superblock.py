"""Which superblock rules, and how a new one takes its place.

Both slots hold the same state: a new one is written to the first slot and synced, then to the second. So a torn write
leaves the other slot whole, and a slot that rots loses nothing. Whoever writes must not reuse anything that the old
state refers to before *both* are synced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import NotSupported, StoreCorrupt
from engine.tvol.layout import (
    KNOWN_FEATURES,
    KNOWN_READ_ONLY_FEATURES,
    MAX_JOURNAL_BYTES,
    SUPERBLOCK_OFFSETS,
    SUPERBLOCK_SIZE,
    LayoutError,
    Superblock,
)
from engine.units import CHUNK_SIZES

if TYPE_CHECKING:
    from engine.files import BlockFile


def read_superblock(file: BlockFile, *, writable: bool) -> Superblock:
    """The valid superblock with the highest sequence number.

    Raises StoreCorrupt (neither slot is valid, or its geometry makes no sense), NotSupported (a feature or version
    that this program does not know).
    """
    found: list[Superblock] = []
    reasons: list[str] = []
    for slot, offset in enumerate(SUPERBLOCK_OFFSETS):
        data = bytearray(SUPERBLOCK_SIZE)
        file.read_into((memoryview(data),), offset)
        try:
            found.append(Superblock.parse(bytes(data)))
        except LayoutError as error:
            reasons.append(f"slot {slot}: {error}")
    if not found:
        raise StoreCorrupt(f"superblock of {file.path}", "; ".join(reasons))
    best = max(found, key=lambda superblock: superblock.sequence)
    _check(best, file, writable=writable)
    return best


def _check(superblock: Superblock, file: BlockFile, *, writable: bool) -> None:
    unknown = superblock.incompatible & ~KNOWN_FEATURES
    if unknown:
        raise NotSupported(f"{file.path} uses features {unknown:#x} that this program does not know")
    not_to_write = superblock.read_only_compatible & ~KNOWN_READ_ONLY_FEATURES
    if writable and not_to_write:
        raise NotSupported(f"{file.path} uses features {not_to_write:#x}: it can only be opened for reading")
    ring = superblock.journal_chunks * superblock.chunk_bytes
    if superblock.chunk_bytes not in CHUNK_SIZES:
        raise StoreCorrupt(f"superblock of {file.path}", f"chunk size {superblock.chunk_bytes}")
    if not 0 < ring <= MAX_JOURNAL_BYTES or superblock.journal_offset >= ring:
        raise StoreCorrupt(f"superblock of {file.path}", f"journal of {ring} bytes, at {superblock.journal_offset}")


def heal_slots(file: BlockFile, superblock: Superblock) -> None:
    """Before anything is written after an open: what was read becomes what is durable, in both slots.

    A killed process may have left the ruling slot in the page cache only, with an older state on disk; or the other
    slot is older or rotten. Reusing what only that older state refers to would then not survive a power loss.
    """
    _sync_what_was_read(file)
    wanted = superblock.serialize()
    for slot, offset in enumerate(SUPERBLOCK_OFFSETS):
        data = bytearray(SUPERBLOCK_SIZE)
        file.read_into((memoryview(data),), offset)
        if data != wanted:
            write_slot(file, slot, superblock)
            _sync_healed_slot(file)


def _sync_what_was_read(file: BlockFile) -> None:
    file.sync_data()


def _sync_healed_slot(file: BlockFile) -> None:
    file.sync_data()


def write_slot(file: BlockFile, slot: int, superblock: Superblock) -> None:
    file.write((memoryview(superblock.serialize()),), SUPERBLOCK_OFFSETS[slot])
