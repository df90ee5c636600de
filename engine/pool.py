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
from engine.pool_volumes import DamagedFamily, PoolVolumes
from engine.sanitize_host import stop_sanitizing
from engine.tvol.file import TvolFile
from engine.unfinished import SCRATCH_SUFFIX, interrupted_exports

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from engine.files import StoreEnv
    from engine.pool_space import PoolSpace
    from engine.stores import Frozen, Head
    from engine.volume import Volume

T = TypeVar("T")

log = logging.getLogger(__name__)


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


class Pool(PoolVolumes):
    """See the module. Made by ``open``; ended by ``close``."""

    def __init__(
        self, path: Path, env: StoreEnv, lock: int, catalog: Catalog, jobs: JobRegistry, space: PoolSpace
    ) -> None:
        super().__init__(path, env, catalog)
        self.jobs = jobs
        self.space = space
        self._lock = lock
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
        self._sorted = None

    @property
    def ledgers(self) -> Path:
        """The folder of the ledgers of copies whose target is not beside them."""
        return self.path / LEDGERS_NAME

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
        return await uncancelled(self._finish(unfinished, row))

    async def _finish(self, unfinished: UnfinishedVolume, row: VolumeRow) -> Volume:
        async with self._changing:
            name = unfinished.head.name
            path = self.path / VOLUMES_NAME / (name + FILE_SUFFIX)
            await self.env.workers.run(lambda: unfinished.path.rename(path))
            await self.env.workers.run(lambda: self.env.files.sync_directory(path.parent))
            unfinished.store.renamed(path)
            row = replace(row, volume_id=unfinished.head.volume_id, name=name, file=path.name)
            try:
                await self.catalog.put_volume(row)
            except BaseException:
                await self.env.workers.run(lambda: path.rename(unfinished.path))
                unfinished.store.renamed(unfinished.path)
                raise
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
        return await uncancelled(self._finish_file(name))

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
            rows = [VolumeRow(volume_id=head.volume_id, name=head.name, file=path.name) for head in store.volumes()]
            try:
                await self.env.workers.run(lambda: self.env.files.sync_directory(path.parent))
                for row in rows:
                    await self.catalog.put_volume(row)
            except BaseException:
                await store.close()
                await self.env.workers.run(lambda: path.rename(made))
                with contextlib.suppress(EngineError):  # the first error is the one to report
                    for row in rows:
                        await self.catalog.remove_volume(row.volume_id)
                raise
            store.renamed(path)
            self._unfinished.discard(name)
            self._stores[path.name] = store
            volumes = [self._add(head, row) for head, row in zip(store.volumes(), rows, strict=True)]
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

    async def rekey(self, volume: Volume, key_source: str) -> None:
        """Wrap the data key of the volume's family by another key. Raises as ``begin``; InvalidState: it has none."""
        store = self._stores[self.row(volume).file]
        encryption = store.encryption
        if encryption is None:
            raise InvalidState(f"volume {volume.name}", "not encrypted", "one that was made with a key")
        await store.rekey(await self.env.workers.run(lambda: rewrap(encryption, key_source)))

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
            self._tell_volume(volume, "going")
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


async def uncancelled(work: Coroutine[object, object, T]) -> T:
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
