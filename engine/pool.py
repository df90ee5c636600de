"""A pool: one folder with volume files, the catalogue and a lock; everything in it that is open.

``engine.pool_folder`` says what lies where. Invariants:

* One process has a pool open (flock). The lock is taken before anything in the folder is read.
* A volume exists from the moment its file, or its node in a file, is durable; its catalogue row follows and is
  made again at the next opening when a crash came between.
* Names of volumes are unique in the pool. A file that repeats an identity or a name of another is not served.
* A family that does not open is kept with its reason and disturbs no other (``DamagedFamily``).
* Changes to the set of volumes run one at a time (``_changing``).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from engine.catalog import Catalog, VolumeRow
from engine.encryption import begin as begin_encryption
from engine.encryption import rewrap
from engine.errors import (
    AlreadyExists,
    EngineError,
    InUse,
    InvalidState,
    Locked,
    NotFound,
    StoreCorrupt,
)
from engine.groups import Groups
from engine.integrity import Integrity
from engine.jobs import JobRegistry
from engine.names import CLONE_PREFIX, HIDDEN_PREFIXES, is_view
from engine.pool_folder import (
    CATALOG_NAME,
    FILE_SUFFIX,
    LEDGER_SUFFIX,
    LEDGERS_NAME,
    NEW_FILE_BYTES,
    UNFINISHED_NAME,
    VOLUMES_NAME,
    open_when_free,
    remove_unfinished,
    take,
    watched_space,
)
from engine.sanitize import SPREAD_S, Sanitizer
from engine.sanitize_host import VolumeSanitizeHost, stop_sanitizing
from engine.stores import PurgingStore
from engine.tvol.file import TvolFile
from engine.unfinished import SCRATCH_SUFFIX, interrupted_exports
from engine.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping
    from pathlib import Path

    from engine.errors import StoreFailed
    from engine.files import StoreEnv
    from engine.pool_space import PoolSpace
    from engine.stores import Frozen, Head

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DamagedFamily:
    """A volume file that is not served. ``volumes``: those of the catalogue. ``locked``: its key is missing."""

    path: Path
    reason: str
    volumes: tuple[VolumeRow, ...]
    locked: bool = False


@dataclass(frozen=True, slots=True)
class UnfinishedVolume:
    """A volume that is being made; ``Pool.finish`` or ``Pool.abandon`` ends it. ``resumed``: it was begun earlier."""

    path: Path
    store: TvolFile
    head: Head
    resumed: bool

    @property
    def ledger_path(self) -> Path:
        return self.path.with_suffix(LEDGER_SUFFIX)


class Pool:
    """See the module. Made by ``open``; ended by ``close``."""

    def __init__(
        self, path: Path, env: StoreEnv, lock: int, catalog: Catalog, jobs: JobRegistry, space: PoolSpace
    ) -> None:
        self.path = path
        self.env = env
        self.catalog = catalog
        self.jobs = jobs
        self.space = space
        self._lock = lock
        self._stores: dict[str, TvolFile] = {}
        self._volumes: dict[str, Volume] = {}
        self._rows: dict[str, VolumeRow] = {}
        self._damaged: dict[str, DamagedFamily] = {}
        self._device_ids: dict[str, str] = {}
        """By volume id, where it is another."""
        self._unfinished: set[str] = set()
        self.groups = Groups(self)
        self.integrity = Integrity(self)
        self._changing = asyncio.Lock()
        self.exporting: set[Path] = set()
        """Where to exports are under way."""

    @classmethod
    async def open(cls, path: Path, env: StoreEnv, *, on_locked: Callable[[], None] = lambda: None) -> Pool:
        """Open the pool in ``path``, making it when the folder is missing or empty.

        ``on_locked`` is called once the pool is this process's, before its files are opened: the moment to bind
        sockets, so that clients wait in them during a recovery.

        Raises:
            InUse: another process has it open.
            InvalidArgument: the folder holds something else than a pool.
            PermissionDenied, StoreCorrupt, NotSupported: the folder or the catalogue cannot be used.
        """
        async with contextlib.AsyncExitStack() as undo:
            lock = await asyncio.to_thread(take, path, env)
            undo.callback(os.close, lock)
            on_locked()
            catalog = await Catalog.open(path / CATALOG_NAME)
            undo.push_async_callback(catalog.close)
            space = await watched_space(path / VOLUMES_NAME, env, catalog)
            undo.push_async_callback(space.stop)
            jobs = await JobRegistry.open(catalog, env.clock)
            pool = cls(path, replace(env, room=space), lock, catalog, jobs, space)
            undo.push_async_callback(pool._close_families)
            pool._device_ids = await catalog.identities.all()
            await pool._open_families()
            await pool.groups.restore()
            await pool._drop_leftovers()
            await pool._resume_sanitizing()
            undo.pop_all()
        return pool

    async def close(self) -> None:
        """End jobs, checkpoint and close every family, and give the pool free."""
        await self.jobs.close()
        await self.integrity.close()
        await self.groups.close()
        await self.space.stop()
        for volume in self._volumes.values():
            await stop_sanitizing(volume)
        async with self._changing:
            await self._close_families()
        await self.catalog.close()
        os.close(self._lock)

    async def _close_families(self) -> None:
        outcomes = await asyncio.gather(*(store.close() for store in self._stores.values()), return_exceptions=True)
        for name, outcome in zip(self._stores, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                log.error("closing %s: %s (its journal is replayed at the next start)", name, outcome)
        self._stores.clear()
        self._volumes.clear()

    @property
    def ledgers(self) -> Path:
        """The folder of the ledgers of copies whose target is not beside them."""
        return self.path / LEDGERS_NAME

    # --- looking ----------------------------------------------------------------------------------------------

    def volumes(self) -> list[Volume]:
        """The volumes that are served, by name."""
        return [self._volumes[name] for name in sorted(self._volumes) if not is_view(name)]

    def views(self) -> list[Volume]:
        """The writable views (``engine.views``), by name."""
        return [self._volumes[name] for name in sorted(self._volumes) if is_view(name)]

    def view(self, name: str) -> Volume | None:
        """The writable view of that name."""
        return self._volumes.get(name) if is_view(name) else None

    def clones(self, volume: Volume, snapshot: Frozen | None = None) -> list[str]:
        """Names of the linked clones of a volume's snapshots, or of one of them. They are in its file."""
        heads = self.store_of(volume).clones(volume.head if snapshot is None else snapshot)
        return sorted(head.name for head in heads if not is_view(head.name))

    def origin(self, volume: Volume) -> str | None:
        """What a volume was cloned from and still depends on, as VOLUME@SNAPSHOT. None: nothing."""
        return self.store_of(volume).origin(volume.head)

    def damaged(self) -> list[DamagedFamily]:
        return list(self._damaged.values())

    def interrupted(self) -> list[str]:
        """Names of the volumes whose making was interrupted and can go on."""
        folder = self.path / VOLUMES_NAME / UNFINISHED_NAME
        return sorted({path.stem for path in folder.glob("*" + FILE_SUFFIX)} - self._unfinished)

    def volume(self, name: str) -> Volume:
        """Raises NotFound; StoreCorrupt when its file is damaged."""
        volume = None if is_view(name) else self._volumes.get(name)
        if volume is not None:
            return volume
        for family in self._damaged.values():
            if any(row.name == name for row in family.volumes):
                if family.locked:
                    raise Locked(f"volume {name}: {family.reason}")
                raise StoreCorrupt(f"volume {name}", f"{family.reason} (twinvol check {family.path} says more)")
        raise NotFound("volume", name)

    def by_id(self, volume_id: str) -> Volume:
        """Raises NotFound."""
        for volume in self._volumes.values():
            if volume.volume_id == volume_id:
                return volume
        raise NotFound("volume", volume_id)

    def find(self, volume_id: str) -> Volume | None:
        """The volume with that id, if it is served."""
        row = self._rows.get(volume_id)
        return None if row is None else self._volumes[row.name]

    def name_of(self, volume_id: str) -> str:
        """The name of a volume, served or not; its id where nothing is known of it."""
        damaged = (row for family in self._damaged.values() for row in family.volumes)
        rows = (row for row in (*self._rows.values(), *damaged) if row.volume_id == volume_id)
        return next((row.name for row in rows), volume_id)

    def device_id(self, volume_id: str) -> str:
        """What initiators know a volume by, which need not be served."""
        return self._device_ids.get(volume_id, volume_id)

    def identified(self, device_ids: Mapping[str, str]) -> None:
        """Volumes have other device ids now; the catalogue has recorded it."""
        self._device_ids.update(device_ids)
        for volume_id, device_id in device_ids.items():
            self.by_id(volume_id).device_id = device_id

    def stores(self) -> list[TvolFile]:
        """The families that are open."""
        return list(self._stores.values())

    def row(self, volume: Volume) -> VolumeRow:
        """Raises NotFound: the volume was deleted meanwhile."""
        row = self._rows.get(volume.volume_id)
        if row is None:
            raise NotFound("volume", volume.name)
        return row

    def file_of(self, volume: Volume) -> Path:
        return self.path / VOLUMES_NAME / self.row(volume).file

    def key_source(self, volume: Volume) -> str | None:
        """Where the key of an encrypted volume is; None: it is not encrypted."""
        encryption = self._stores[self.row(volume).file].encryption
        return None if encryption is None else encryption.record.source

    async def rekey(self, volume: Volume, key_source: str) -> None:
        """Wrap the data key of the volume's family by another key. Raises as ``begin``; InvalidState: it has none."""
        store = self._stores[self.row(volume).file]
        encryption = store.encryption
        if encryption is None:
            raise InvalidState(f"volume {volume.name}", "not encrypted", "one that was made with a key")
        await store.rekey(await self.env.workers.run(lambda: rewrap(encryption, key_source)))

    def store_of(self, volume: Volume) -> TvolFile:
        return self._stores[self.row(volume).file]

    def bad_chunks(self) -> dict[Path, int]:
        """Of each file that has chunks marked bad, how many."""
        return {store.path: store.bad_chunks for store in self._stores.values() if store.bad_chunks}

    def chunk_bytes(self, volume: Volume) -> int:
        return self._stores[self.row(volume).file].chunk_bytes

    def failure(self, volume: Volume) -> StoreFailed | None:
        """Why the volume's file takes no writes any more; None while it does (STORE section 2)."""
        return self._stores[self.row(volume).file].failed

    def snapshots(self, volume: Volume) -> list[Frozen]:
        """Those that users see, oldest first."""
        found = volume.head.store.snapshots(volume.volume_id)
        return [each for each in found if not each.hidden and not self.groups.is_going(each.guid)]

    def snapshot(self, volume: Volume, name: str) -> Frozen:
        """Raises NotFound."""
        try:
            found = volume.head.store.snapshot_named(volume.volume_id, name)
        except NotFound:
            found = None
        if found is None or found.hidden or self.groups.is_going(found.guid):
            raise NotFound("snapshot", f"{volume.name}@{name}")
        return found

    def has_snapshot(self, volume: Volume, name: str) -> bool:
        """Whether users see one of this name."""
        try:
            self.snapshot(volume, name)
        except NotFound:
            return False
        return True

    # --- changing ---------------------------------------------------------------------------------------------

    async def create_volume(
        self, row: VolumeRow, size_bytes: int, chunk_bytes: int, *, key_source: str | None = None
    ) -> Volume:
        """Make an empty volume in a family of its own. Of ``row`` the name and the policies count.

        Raises as ``begin``.
        """
        unfinished = await self.begin(row.name, size_bytes, chunk_bytes, key_source=key_source)
        try:
            return await self.finish(unfinished, row)
        except BaseException:
            await self.abandon(unfinished)
            raise

    async def begin(
        self, name: str, size_bytes: int, chunk_bytes: int, *, resume: bool = False, key_source: str | None = None
    ) -> UnfinishedVolume:
        """Begin a volume that nobody sees until ``finish``. ``resume``: go on with an earlier one that has a ledger.

        ``key_source``: encrypt it with a key from there (``engine.encryption``); the caller has checked its form.

        Raises AlreadyExists, OutOfSpace, InvalidArgument; NotFound, PermissionDenied, NotSupported: there is no key.
        """
        async with self._changing:
            self.require_new(name)
            if (self.path / VOLUMES_NAME / (name + FILE_SUFFIX)).exists():
                raise AlreadyExists("volume file", name + FILE_SUFFIX)
            path = self._unfinished_path(name)
            store = await self._resume(path, name, size_bytes) if resume else None
            resumed = store is not None
            if store is None:
                await self.space.measure()
                self.space.require(NEW_FILE_BYTES, f"volume {name}")
                encryption = None
                if key_source is not None:
                    encryption = await self.env.workers.run(functools.partial(begin_encryption, key_source))
                await self.env.workers.run(lambda: remove_unfinished(path))
                store = await TvolFile.create(
                    self.env,
                    path,
                    volume_name=name,
                    size_bytes=size_bytes,
                    chunk_bytes=chunk_bytes,
                    encryption=encryption,
                )
                await self.space.measure()  # what it has taken was granted by nobody
            self._unfinished.add(name)
            (head,) = store.volumes()
            return UnfinishedVolume(path, store, head, resumed)

    async def finish(self, unfinished: UnfinishedVolume, row: VolumeRow) -> Volume:
        """Publish a volume: from here on it exists. Of ``row`` the policies count.

        A cancellation comes too late for it and is taken back: half of it would leave a file that no volume has.
        """
        return await _uncancelled(self._finish(unfinished, row))

    async def _finish(self, unfinished: UnfinishedVolume, row: VolumeRow) -> Volume:
        async with self._changing:
            name = unfinished.head.name
            path = self.path / VOLUMES_NAME / (name + FILE_SUFFIX)
            await self.env.workers.run(lambda: unfinished.path.rename(path))
            await self.env.workers.run(lambda: self.env.files.sync_directory(path.parent))
            unfinished.store.renamed(path)
            row = replace(row, volume_id=unfinished.head.volume_id, name=name, file=path.name)
            await self.catalog.put_volume(row)
            self._unfinished.discard(name)
            self._stores[path.name] = unfinished.store
            return self._add(unfinished.head, row)

    async def abandon(self, unfinished: UnfinishedVolume, *, keep: bool = False) -> None:
        """Give up a volume that was begun. ``keep``: leave what is there for a later ``begin`` to resume."""
        await unfinished.store.close()
        if not keep:
            await self.env.workers.run(lambda: remove_unfinished(unfinished.path))
        self._unfinished.discard(unfinished.head.name)

    async def begin_file(self, name: str, needed_bytes: int) -> Path:
        """Begin a family whose file somebody else makes: where. ``finish_file`` or ``abandon_file`` ends it.

        Raises AlreadyExists, OutOfSpace: so many bytes do not fit.
        """
        async with self._changing:
            self.require_new(name)
            if (self.path / VOLUMES_NAME / (name + FILE_SUFFIX)).exists():
                raise AlreadyExists("volume file", name + FILE_SUFFIX)
            await self.space.measure()
            self.space.require(needed_bytes, f"volume {name}")
            path = self._unfinished_path(name)
            await self.env.workers.run(lambda: remove_unfinished(path))
            self._unfinished.add(name)
            return path

    async def finish_file(self, name: str) -> list[Volume]:
        """Publish the volumes of a closed file that was begun. Raises AlreadyExists: a name of one is taken."""
        return await _uncancelled(self._finish_file(name))

    async def _finish_file(self, name: str) -> list[Volume]:
        async with self._changing:
            made, path = self._unfinished_path(name), self.path / VOLUMES_NAME / (name + FILE_SUFFIX)
            store = await TvolFile.open(self.env, made)
            try:
                for head in store.volumes():
                    if head.name != name:
                        self.require_new(head.name)
                await self.env.workers.run(lambda: made.rename(path))
            except BaseException:
                await store.close()
                raise
            await self.env.workers.run(lambda: self.env.files.sync_directory(path.parent))
            store.renamed(path)
            self._unfinished.discard(name)
            self._stores[path.name] = store
            rows = [VolumeRow(volume_id=head.volume_id, name=head.name, file=path.name) for head in store.volumes()]
            volumes = [self._add(head, row) for head, row in zip(store.volumes(), rows, strict=True)]
            for row in rows:
                await self.catalog.put_volume(row)
            await self.space.measure()  # what it has taken was granted by nobody
            return volumes

    async def abandon_file(self, name: str) -> None:
        """Give up a file that was begun and is closed."""
        path = self._unfinished_path(name)
        await self.env.workers.run(lambda: remove_unfinished(path))
        self._unfinished.discard(name)

    def _unfinished_path(self, name: str) -> Path:
        return self.path / VOLUMES_NAME / UNFINISHED_NAME / (name + FILE_SUFFIX)

    async def clone(self, source: Volume, snapshot: Frozen, name: str, *, volume_id: str | None = None) -> Volume:
        """A linked clone, in the source's family and with its policies. ``volume_id``: a new UUID."""
        async with self._changing:
            self.require_new(name)
            origin = self.row(source)
            head = await self._stores[origin.file].clone(snapshot, name, volume_id=volume_id)
            row = replace(
                origin,
                volume_id=head.volume_id,
                name=name,
                read_only=False,
                origin=f"{source.name}@{snapshot.name}",
            )
            volume = self._add(head, row)
            await self.catalog.put_volume(row)
            return volume

    async def rollback(self, volume: Volume, snapshot: Frozen) -> None:
        """The volume reads as ``snapshot``; whoever arrives meanwhile waits.

        Raises InvalidState: it has mirrors; InUse: it is the target of one.
        """
        async with self._changing, volume.quiesced():
            if volume.taps:  # asked for here: one may have come while this waited
                now = "the source of a running mirror"
                raise InvalidState(f"volume {volume.name}", now, "its mirrors fractured first")
            volume.require_own_content()
            volume.rebind(await volume.head.store.rollback(volume.head, snapshot))

    def is_alone(self, volume: Volume) -> bool:
        """Whether the volume is all that users have in its file, which then goes with it. Views go with it, too."""
        store = self._stores[self.row(volume).file]
        of_others = [each for each in store.snapshots() if not each.hidden and each.volume_id != volume.volume_id]
        heads = [head.volume_id for head in store.volumes() if not is_view(head.name)]
        return heads == [volume.volume_id] and not of_others

    async def delete_volume(self, volume: Volume) -> None:
        """Delete a volume whose exposure and snapshots are gone. Raises InUse: the store says who holds it, or that
        it has got a snapshot meanwhile."""
        async with self._changing:
            row = self.row(volume)
            store = self._stores[row.file]
            alone = [head.volume_id for head in store.volumes()] == [volume.volume_id]
            users_own = [each for each in store.snapshots() if not each.hidden and not self.groups.is_going(each.guid)]
            late = [each.name for each in users_own if each.volume_id == volume.volume_id]
            if alone and late:  # a family without a volume would be left
                raise InUse(f"volume {volume.name} has got snapshots meanwhile ({', '.join(late[:8])}); try again")
            await stop_sanitizing(volume)
            if alone and not users_own:
                # The last of its family: the file goes as a whole.
                await self.catalog.begin_deletion(row.file)
                self._forget(volume)
                del self._stores[row.file]
                try:
                    await store.close()
                except EngineError as error:
                    log.warning("closing %s, which is deleted: %s", row.file, error)
                await self._delete_file(row.file)
            else:
                await store.delete_volume(volume.head)
                self._forget(volume)
                await self.catalog.remove_volume(volume.volume_id)

    def _forget(self, volume: Volume) -> None:
        del self._volumes[volume.name]
        del self._rows[volume.volume_id]

    async def discard_interrupted(self, name: str) -> None:
        """Remove what is there of a volume whose making was interrupted. Raises NotFound."""
        async with self._changing:
            if name not in self.interrupted():
                raise NotFound("volume", name)
            path = self._unfinished_path(name)
            await self.env.workers.run(lambda: remove_unfinished(path))

    async def delete_damaged(self, family: DamagedFamily) -> None:
        """Remove a damaged file, and with it all that it held. Raises NotFound."""
        async with self._changing:
            if self._damaged.get(family.path.name) is not family:
                raise NotFound("damaged file", family.path.name)  # somebody else has removed it
            await self.catalog.begin_deletion(family.path.name)
            await self._delete_file(family.path.name)
            del self._damaged[family.path.name]

    # --- inside -----------------------------------------------------------------------------------------------

    def require_new(self, name: str) -> None:
        """Raises AlreadyExists when a volume has that name."""
        known = {row.name for family in self._damaged.values() for row in family.volumes}
        if name in self._volumes or name in known or name in self._unfinished:
            raise AlreadyExists("volume", name)

    async def _resume(self, path: Path, name: str, size_bytes: int) -> TvolFile | None:
        """The unfinished file at ``path`` when it is what is wanted; None when it is not or does not open."""
        ledger = path.with_suffix(LEDGER_SUFFIX)
        if not await self.env.workers.run(lambda: path.exists() and ledger.exists()):
            return None
        try:
            store = await open_when_free(self.env, path)
        except EngineError as error:
            log.warning("not resuming %s: %s", path, error)
            return None
        if [(head.name, head.size_bytes) for head in store.volumes()] == [(name, size_bytes)]:
            return store
        await store.close()
        return None

    def _add(self, head: Head, row: VolumeRow) -> Volume:
        volume = Volume(
            head,
            physical_block_bytes=row.physical_block_bytes,
            read_only=row.read_only,
            write_cache=row.write_cache,
            removable=row.removable,
        )
        if isinstance(head.store, PurgingStore):
            host = VolumeSanitizeHost(volume, self.catalog, self.env)
            volume.sanitizer = Sanitizer(volume, host, name=volume.name, spread_s=SPREAD_S)
        volume.device_id = self.device_id(volume.volume_id)
        self._volumes[volume.name] = volume
        self._rows[volume.volume_id] = row
        return volume

    async def _delete_file(self, file: str) -> None:
        """Finish a deletion that the catalogue has as begun."""
        path = self.path / VOLUMES_NAME / file
        with contextlib.suppress(NotFound):
            await self.env.workers.run(lambda: self.env.files.remove(path))
        await self.env.workers.run(lambda: self.env.files.sync_directory(path.parent))
        await self.catalog.finish_deletion(file)

    async def _open_families(self) -> None:
        """Open every file; those of the catalogue first, so that of two with one identity the known one is served."""
        for file in await self.catalog.deletions():
            await self._delete_file(file)
        rows = await self.catalog.volumes()
        folder = self.path / VOLUMES_NAME
        for leftover in (folder / UNFINISHED_NAME).glob("*" + FILE_SUFFIX):
            if not leftover.with_suffix(LEDGER_SUFFIX).exists():
                log.warning("removing %s, whose making was interrupted", leftover)
                leftover.unlink()
        for scratch in (folder / UNFINISHED_NAME).glob("*" + SCRATCH_SUFFIX):
            scratch.unlink()
        files = {path.name for path in folder.glob("*" + FILE_SUFFIX)}
        known = {row.file for row in rows}
        order = sorted(files & known) + sorted(files - known)
        opened = await asyncio.gather(
            *(open_when_free(self.env, folder / file) for file in order), return_exceptions=True
        )
        for file, outcome in zip(order, opened, strict=True):
            if isinstance(outcome, BaseException):
                if not isinstance(outcome, EngineError):
                    raise outcome
                self._keep_damaged(file, str(outcome), rows, locked=isinstance(outcome, Locked))
                continue
            clash = self._clash(outcome)
            if clash is not None:
                await outcome.close()
                self._keep_damaged(file, clash, rows)
                continue
            self._stores[file] = outcome
            for head in outcome.volumes():
                remembered = next((row for row in rows if row.volume_id == head.volume_id), None)
                default = VolumeRow(volume_id=head.volume_id, name=head.name, file=file)
                self._add(
                    head, replace(remembered or default, name=head.name, file=file, origin=outcome.origin(head) or "")
                )
        for file in known - files:
            self._keep_damaged(file, f"{folder / file} is missing", rows)
        kept = [row for family in self._damaged.values() for row in family.volumes]
        families = {file: (store.family_id, store.incarnation) for file, store in self._stores.items()}
        for file in await self.catalog.replace_volumes([*self._rows.values(), *kept], families):
            told = "older than when the pool had it last: a copy of then was put in its place, without what came since"
            log.warning("%s is %s", file, told)
            await self.catalog.add_event(self.env.clock.time(), "warning", file, told)

    async def _drop_leftovers(self) -> None:
        """Remove what the engine kept for something that a crash ended: points of its own, views that nobody sees."""
        kept = {*await interrupted_exports(self), *(CLONE_PREFIX + name for name in self.interrupted())}
        for store in self._stores.values():
            for snapshot in store.snapshots():
                if snapshot.hidden and snapshot.name.startswith(HIDDEN_PREFIXES) and snapshot.name not in kept:
                    with _put_off(f"{store.path.name}: removing {snapshot.name}"):
                        await store.delete_snapshot(snapshot)
        shown = {lun.volume_id for target in await self.catalog.targets() for lun in target.luns}
        for view in self.views():
            if view.volume_id not in shown:
                with _put_off(f"removing the view {view.name}"):
                    await self.delete_volume(view)

    async def _resume_sanitizing(self) -> None:
        """What was interrupted begins again; a record of a volume that is gone for good is of no use."""
        for volume_id, record in (await self.catalog.sanitizations()).items():
            for volume in self._volumes.values():
                if volume.volume_id == volume_id and volume.sanitizer is not None:
                    volume.sanitizer.resume(record)

    def _clash(self, store: TvolFile) -> str | None:
        """Why a family may not be served beside those that are; None when it may."""
        for head in store.volumes():
            if head.volume_id in self._rows:
                return (
                    f"it holds the same volume as {self._rows[head.volume_id].file}: a copy of that file"
                    f" (twinvol volume import NAME --from {store.path} --new-identity makes it another one)"
                )
            if head.name in self._volumes:
                return f"its volume {head.name} has the name of another"
        return None

    def _keep_damaged(self, file: str, reason: str, rows: list[VolumeRow], *, locked: bool = False) -> None:
        log.error("not serving %s: %s", file, reason)
        held = tuple(row for row in rows if row.file == file and row.volume_id not in self._rows)
        self._damaged[file] = DamagedFamily(self.path / VOLUMES_NAME / file, reason, held, locked)


@contextlib.contextmanager
def _put_off(what: str) -> Iterator[None]:
    """What one family refuses now is done at the next opening; the others are served."""
    try:
        yield
    except EngineError as error:
        log.error("%s is put off to the next start: %s", what, error)


async def _uncancelled(work: Coroutine[object, object, T]) -> T:
    """What ``work`` returns or raises, whoever wants it to end meanwhile."""
    running = asyncio.ensure_future(work)
    while not running.done():
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            assert current is not None
            current.uncancel()
    return running.result()
