"""``TvolFile``: one volume file, open; the native ``VolumeStore``. Here: creating, opening and closing it.

To open a file for writing: replay (``recovery.py``), then a checkpoint under the next incarnation. Only when that is
durable in both superblock slots is anything appended to the journal: the old records are void from then on.
"""

from __future__ import annotations

import functools
import logging
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.encryption import unlock
from engine.errors import AlreadyExists, InvalidArgument, OutOfSpace, StoreCorrupt, StoreFailed
from engine.tvol import layout
from engine.tvol.allocator import Allocator
from engine.tvol.births import Births
from engine.tvol.checkpoint import Checkpointer
from engine.tvol.chunk_map import ChunkMap
from engine.tvol.core import Core
from engine.tvol.group_store import GroupingStore
from engine.tvol.head import check_size
from engine.tvol.journal import Journal
from engine.tvol.layout import (
    BIRTH_METADATA,
    DEFAULT_JOURNAL_BYTES,
    JOURNAL_FIRST_CHUNK,
    MAX_JOURNAL_BYTES,
    MIN_JOURNAL_BYTES,
    LayoutError,
    NodeKind,
    PageRef,
)
from engine.tvol.nodes import Node
from engine.tvol.pages import MARGIN, PageChanges, PagePool
from engine.tvol.recovery import Recovered, metadata_chunks, recover
from engine.tvol.store import check_name
from engine.tvol.superblock import heal_slots
from engine.tvol.tree import Family
from engine.units import CHUNK_SIZES, KIB

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engine.encryption import Encryption
    from engine.files import BlockFile, StoreEnv
    from engine.tvol.layout_encryption import EncryptionRecord
    from engine.tvol.recovery import Mender

_LOG = logging.getLogger(__name__)
ZEROING_BYTES = 16 * KIB
"""The journal is made with writes of so much. The host keeps a write's pages together (folios, up to 4 MiB), and a
record costs more the longer they are: 0.6 us after writes of 256 KiB, 1.4 after 1 MiB, 0.4 after these."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What ``show`` tells of a volume file."""

    path: Path
    family_id: str
    chunk_bytes: int
    journal_bytes: int
    incarnation: int
    generation: int
    nodes: int
    chunks: int
    """Chunks up to the end of the file."""
    free_chunks: int
    metadata_bytes: int
    replayed_records: int
    """Journal records applied at open."""
    dropped_records: int
    """Records found at open that no flush had covered before a power loss."""


@dataclass(frozen=True, slots=True)
class _Origin:
    """What an open file takes over from the superblock that it was loaded from."""

    family_id: bytes
    sequence: int
    references: PageChanges
    rewritten: tuple[PageRef, ...]
    root_pages: int


class TvolFile(GroupingStore):
    """One volume file, open. Made by ``create`` and ``open``."""

    def __init__(self, core: Core, family_id: bytes) -> None:
        super().__init__(core)
        self._family_id = family_id
        self._recovered: Recovered | None = None

    # --- creating, opening, closing -----------------------------------------------------------------------------

    @classmethod
    async def create(
        cls,
        env: StoreEnv,
        path: Path,
        *,
        volume_name: str,
        size_bytes: int,
        chunk_bytes: int = CHUNK_SIZES[0],
        journal_bytes: int = DEFAULT_JOURNAL_BYTES,
        volume_id: str | None = None,
        encryption: Encryption | None = None,
    ) -> TvolFile:
        """Make a file with one empty volume, durably, and return it open for writing.

        Args: ``size_bytes``: whole sectors, up to 2^30 chunks. ``journal_bytes``: whole chunks, 64 KiB to 1 GiB.
        Raises InvalidArgument, AlreadyExists, OutOfSpace. A file that a crash left half made has no superblock:
        opening it raises StoreCorrupt.
        """
        if chunk_bytes not in CHUNK_SIZES:
            raise InvalidArgument(f"chunk size {chunk_bytes} is not one of {CHUNK_SIZES}")
        if journal_bytes % chunk_bytes or not MIN_JOURNAL_BYTES <= journal_bytes <= MAX_JOURNAL_BYTES:
            raise InvalidArgument(f"a journal has {MIN_JOURNAL_BYTES} to {MAX_JOURNAL_BYTES} bytes in whole chunks")
        check_size(size_bytes, chunk_bytes)
        check_name(volume_name)
        file = await env.workers.run(lambda: env.files.create(path))
        try:
            journal_chunks = journal_bytes // chunk_bytes
            await env.workers.run(lambda: _write_zeroes(file, JOURNAL_FIRST_CHUNK * chunk_bytes, journal_bytes))
            reserved = np.full(JOURNAL_FIRST_CHUNK + journal_chunks, BIRTH_METADATA, np.uint32)
            family = Family(Births(reserved), chunk_bytes)
            family.births.extend_to(len(reserved))
            family.births.pages.touch_all(range(family.births.page_count()))
            node = Node(
                1,
                NodeKind.HEAD,
                ChunkMap.empty(family.chunk_count(size_bytes)),
                size_bytes=size_bytes,
                volume_id=volume_id or str(uuid.uuid4()),
            )
            node.name, node.created_at = volume_name, env.clock.time()
            family.add(node, None)
            family.encryption = None if encryption is None else encryption.record
            journal = Journal(
                file,
                JOURNAL_FIRST_CHUNK * chunk_bytes,
                journal_bytes,
                incarnation=1,
                offset=0,
                seq=1,
                previous=0,
            )
            origin = _Origin(uuid.uuid4().bytes, 0, PageChanges(), (), 1)
            store = await cls._start(env, file, family, journal, origin, encryption)
        except BaseException:
            await env.workers.run(file.close)
            await env.workers.run(lambda: env.files.remove(path))
            raise
        try:
            await env.workers.run(lambda: cls._sync_directory_after_create(env, path))
        except BaseException:
            await store.close()
            await env.workers.run(lambda: env.files.remove(path))
            raise
        return store

    @staticmethod
    def _sync_directory_after_create(env: StoreEnv, path: Path) -> None:
        """The file's name is durable before anybody is told that the volume exists."""
        env.files.sync_directory(path.parent)

    @classmethod
    async def open(
        cls,
        env: StoreEnv,
        path: Path,
        *,
        writable: bool = True,
        unlock: Callable[[EncryptionRecord], Encryption] = unlock,
        mender: Mender | None = None,
    ) -> TvolFile:
        """Open a file: replay its journal and, to write, make that durable under the next incarnation.

        ``mender``: for a repair (``engine.tvol.repair``).
        ``unlock``: gets the key of an encrypted one, in a worker; what it raises is raised, and nothing was written.

        Raises NotFound, InUse, StoreCorrupt (where and why), NotSupported, OutOfSpace, MediumError.
        """
        file = await env.workers.run(lambda: env.files.open(path, writable=writable))
        try:
            boot_id = env.files.boot_id()
            found = await env.workers.run(lambda: recover(file, boot_id, writable=writable, mender=mender))
            superblock, family = found.superblock, found.family
            record, encryption = family.encryption, None
            if record is not None:
                encryption = await env.workers.run(functools.partial(unlock, record))
            journal = Journal(
                file,
                JOURNAL_FIRST_CHUNK * superblock.chunk_bytes,
                superblock.journal_chunks * superblock.chunk_bytes,
                incarnation=superblock.incarnation + writable,
                offset=found.journal_offset,
                seq=found.next_seq,
                previous=found.previous,
            )
            origin = _Origin(
                superblock.family,
                superblock.sequence,
                found.references,
                found.rewritten,
                superblock.root_length // layout.PAGE_SIZE + 1,
            )
            if writable:
                end = family.births.count * superblock.chunk_bytes
                await env.workers.run(lambda: heal_slots(file, superblock))
                await env.workers.run(lambda: file.truncate(end))
                store = await cls._start(env, file, family, journal, origin, encryption)
            else:
                store = cls._assemble(env, file, family, journal, origin, encryption)
                store._core.fail(StoreFailed(f"{path} is open for reading only"))
            store._recovered = found
        except BaseException:
            await env.workers.run(file.close)
            raise
        if found.replayed or found.dropped:
            _LOG.info("%s: %d records replayed, %d unflushed ones dropped", path, found.replayed, found.dropped)
        return store

    @classmethod
    def _assemble(
        cls,
        env: StoreEnv,
        file: BlockFile,
        family: Family,
        journal: Journal,
        origin: _Origin,
        encryption: Encryption | None,
    ) -> TvolFile:
        journal_chunks = journal.ring_bytes // family.chunk_bytes
        try:
            pages = PagePool(family, metadata_chunks(family, journal_chunks), origin.references, origin.root_pages)
        except LayoutError as error:
            raise StoreCorrupt(str(file.path), str(error)) from error
        family.claims.forget_freed()  # free like all the rest once the opening checkpoint is durable
        allocator = Allocator(file, family.births, family.chunk_bytes, env.room, holes_read_zero=encryption is None)
        core = Core(env, file, family, journal, allocator, pages, encryption)
        core.checkpointer = Checkpointer(
            core,
            family_id=origin.family_id,
            sequence=origin.sequence,
            boot_id=env.files.boot_id(),
            journal_chunks=journal_chunks,
            rewritten=origin.rewritten,
        )
        return cls(core, origin.family_id)

    @classmethod
    async def _start(
        cls,
        env: StoreEnv,
        file: BlockFile,
        family: Family,
        journal: Journal,
        origin: _Origin,
        encryption: Encryption | None,
    ) -> TvolFile:
        """Assemble, then make the state durable under the journal's incarnation: only now is there a journal."""
        store = cls._assemble(env, file, family, journal, origin, encryption)
        core = store._core
        try:
            await store._widen_reserve()
            await core.checkpointer.run()
            core.is_open = True
        except BaseException as error:
            core.fail(f"it could not be opened: {error!r}")
            await core.checkpointer.idle()  # nothing may still write when the caller closes the file
            raise
        store._housekeeper.wake()
        return store

    async def _widen_reserve(self) -> None:
        core = self._core
        missing = MARGIN * 2 - core.pages.headroom()
        if missing <= 0:
            return
        try:
            await self._reserve_pages(missing)
        except OutOfSpace:
            if core.pages.headroom() < 0:
                raise
            _LOG.warning("%s: the disk is full; only what needs no space will work", core.path)

    async def _reserve_pages(self, pages: int) -> None:
        """Metadata chunks for the opening checkpoint, which is the record of them."""
        core = self._core
        count = -(-pages * layout.PAGE_SIZE // core.chunk_bytes) + 1
        first = core.allocator.extend(count)
        offset, length = first << core.chunk_shift, count << core.chunk_shift
        try:
            await core.env.workers.run(lambda: core.file.allocate(offset, length))
        except OutOfSpace:
            core.allocator.retract(first, count)
            raise
        for chunk in range(first, first + count):
            core.family.births.set(chunk, BIRTH_METADATA)
        core.pages.add_chunks(first, count)

    @property
    def encryption(self) -> Encryption | None:
        """How the file's payload is encrypted; None: it is not."""
        return self._core.encryption

    async def rekey(self, encryption: Encryption) -> None:
        """Keep the data key wrapped as ``encryption`` has it, durably.

        What the file held of the earlier wrapping may still be found in free pages until they are used again.
        """
        core = self._core
        assert core.encryption is not None
        assert core.encryption.key == encryption.key
        core.check()
        core.encryption, core.family.encryption = encryption, encryption.record
        await core.checkpointer.run()

    async def become_another(self, name_of: Callable[[str], str]) -> None:
        """Give the family, its volumes and its snapshots new identities, durably, and the volumes the names that
        ``name_of`` makes of theirs. What the engine made for itself goes: hidden and promised snapshots, staging areas,
        and volumes to which ``name_of`` gives no name.

        Nobody uses the store yet, and it is to be closed afterwards; a crash leaves a file that is neither the old nor
        the new one. Raises AlreadyExists (a name twice), InUse (a hidden snapshot is held), StoreFailed, OutOfSpace.
        """
        core, family = self._core, self._core.family
        for volume in self.volumes():
            staging = self.staging(volume.volume_id)
            if staging is not None:
                await self.abort_staging(staging)
        await self.drop(self.prepared())
        for snapshot in [each for each in self.snapshots() if each.hidden]:
            await self.delete_snapshot(snapshot)
        names = {volume.node_id: name_of(volume.name) for volume in self.volumes()}
        for volume in [each for each in self.volumes() if not names[each.node_id]]:
            await self.delete_volume(volume)
            del names[volume.node_id]
        if len(set(names.values())) < len(names):
            raise AlreadyExists("volume", ", ".join(sorted(names.values())))
        await self.settled()
        ids: dict[str, str] = {}
        for node in family.nodes.values():
            node.volume_id = ids.setdefault(node.volume_id, str(uuid.uuid4()))
            node.guid = str(uuid.uuid4()) if node.guid else ""
            node.name = names.get(node.id, node.name)
            family.touch(node)
        self._family_id = uuid.uuid4().bytes
        core.checkpointer.rename_family(self._family_id)
        await core.checkpointer.run()

    @property
    def family_id(self) -> str:
        """Identity of the file: the same in every copy of it."""
        return str(uuid.UUID(bytes=self._family_id))

    def info(self) -> FileInfo:
        core, found = self._core, self._recovered
        return FileInfo(
            path=core.path,
            family_id=self.family_id,
            chunk_bytes=core.chunk_bytes,
            journal_bytes=core.journal.ring_bytes,
            incarnation=self.incarnation,
            generation=core.family.generation,
            nodes=len(core.family.nodes),
            chunks=core.family.births.count,
            free_chunks=core.allocator.free_count,
            metadata_bytes=core.pages.chunk_count * core.chunk_bytes,
            replayed_records=found.replayed if found else 0,
            dropped_records=found.dropped if found else 0,
        )


def _write_zeroes(file: BlockFile, offset: int, length: int) -> None:
    """The journal is written, not punched: appending to it can then not meet a full disk."""
    piece = memoryview(bytes(ZEROING_BYTES))
    for at in range(0, length, len(piece)):
        file.write((piece[: length - at],), offset + at)
