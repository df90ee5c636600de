"""What has changed in a pool, recorded for watchers in the order in which it happened.

The rooms say what happens by the hooks that ``Changes.attach`` sets: volumes that come and go, snapshots of the stores,
jobs, relations, and, for mirrors, the events that the catalogue is given. While nobody watches, a hook is one look at a
flag. A change is noted synchronously, with what the thing was and is, and recorded by one task, all that have come
meanwhile in one transaction: a write never waits for that, and a crash loses what was noted in its last moments.

Of mirrors and unfinished jobs the state last told is recorded with the change. At a start it is compared with what is
there, so that a change over a restart is told, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from engine.api.changes import CHANGE_PAGE, CHANGE_WAIT_MAX_S, ChangeInfo, ChangePage
from engine.catalog_changes import ChangeRow, Told
from engine.errors import EngineError, InvalidArgument, NotFound
from engine.jobs import job_info
from engine.names import is_view
from engine.volume import Identity

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from engine.api import GroupRelationInfo, JobInfo, RelationInfo, ReplicaInfo, VolumeInfo
    from engine.catalog_changes import Document
    from engine.jobs import Job
    from engine.pool import Pool
    from engine.relations import Relations
    from engine.replicas import Replicas
    from engine.stores import Frozen
    from engine.volume import Volume

log = logging.getLogger(__name__)

PENDING_MAX = 10_000
"""Changes that wait to be recorded, while the catalogue takes none; more are counted as lost."""

RETRY_S = 1.0
PERCENT_STEP = 10
"""A job's progress is told in steps of so many percent."""

WATCHERS_MAX = 8
MIRROR_SUBJECT, MIRROR_GROUP_SUBJECT = "replica ", "replica group "

_JOB_DETAILS_MAX = 64


class Changes:
    """See the module. Loop thread only. ``describe`` makes a volume's ``VolumeInfo``."""

    def __init__(
        self, pool: Pool, replicas: Replicas, relations: Relations, describe: Callable[[Volume], VolumeInfo]
    ) -> None:
        self._pool = pool
        self._replicas = replicas
        self._relations = relations
        self._describe = describe
        self._tables = pool.catalog.changes
        self._watchers: dict[str, int] = {}
        self._newest = 0
        self._told: dict[tuple[str, str], Document] = {}
        self._going: dict[str, Document] = {}
        """Volumes whose deletion has begun, as they were."""
        self._pending: list[ChangeRow] = []
        self._pending_told: dict[tuple[str, str], Told] = {}
        self._lost = 0
        self._stale: set[str] = set()
        """Names of mirrors of which an event has come, or of their groups."""
        self._recorded = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writing = False
        self._looking = False
        self._closing = asyncio.Event()

    # --- watching ---------------------------------------------------------------------------------------------

    async def restore(self) -> None:
        """Go on for those who watched before the restart: to be called once all is there."""
        self._watchers = await self._tables.watchers()
        self._newest = await self._tables.newest()
        self._attach()
        if not self._watchers:
            return
        for each in await self._tables.told():
            assert each.document is not None
            self._told[each.kind, each.subject] = each.document
        self._begin()

    def _attach(self) -> None:
        self._pool.on_volume = self._volume
        self._pool.on_snapshot = self._snapshot
        self._pool.jobs.watch(self._job)
        self._relations.on_change = self._relation
        self._pool.catalog.on_event = self._event

    def _begin(self) -> None:
        """Tell what differs from what was told: of a first watcher nothing was, and that is no change."""
        for job in self._pool.jobs.all():
            self._job(job)
        numbers = {str(job.job_id) for job in self._pool.jobs.all()}
        for key in [key for key in self._told if key[0] == "job" and key[1] not in numbers]:
            self._forget(key)
        self._stale = {info.name for info in self._replicas.all()}
        self._stale |= {subject for kind, subject in self._told if kind == "replica"}
        self._look_at_mirrors()

    async def watch(self, name: str) -> int:
        """See ``ChangeApi.change_watch``."""
        if name in self._watchers:
            return self._watchers[name]
        if len(self._watchers) >= WATCHERS_MAX:
            raise InvalidArgument(f"{WATCHERS_MAX} watch already")
        position = await self._tables.newest()
        await self._tables.put_watcher(name, position)
        first = not self._watchers
        self._watchers[name] = position
        if first:
            self._told = {("replica", info.name): _mirror_document(info) for info in self._replicas.all()}
            for job in self._pool.jobs.all():
                if not job.state.final:
                    self._told["job", str(job.job_id)] = asdict(job_info(job))
            self._pending_told = {key: Told(*key, document) for key, document in self._told.items()}
            self._write_soon()
        return position

    async def unwatch(self, name: str) -> None:
        self._watchers.pop(name, None)
        await self._tables.remove_watcher(name)
        if not self._watchers:
            self._told.clear()

    async def done(self, name: str, position: int) -> None:
        if name not in self._watchers:
            raise NotFound("watcher", name)
        self._watchers[name] = position
        await self._tables.put_watcher(name, position)

    async def page(self, after: int, limit: int, timeout_s: float) -> ChangePage:
        """See ``ChangeApi.change_list``."""
        if not 1 <= limit <= CHANGE_PAGE:
            raise InvalidArgument(f"a page has 1 to {CHANGE_PAGE} changes")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(timeout_s, CHANGE_WAIT_MAX_S)):
                while self._newest <= after:
                    await self._recorded.wait()
        newest = self._newest
        rows = await self._tables.after(after, limit) if newest > after else []
        infos = [ChangeInfo(r.number, r.at, r.kind, r.verb, r.subject, r.before, r.after) for r in rows]
        return ChangePage(newest, infos)

    async def close(self) -> None:
        """Record what is noted; what the catalogue does not take now is lost. Nothing changes any more."""
        self._pool.on_volume = self._pool.on_snapshot = None
        self._pool.jobs.watch(None)
        self._relations.on_change = self._pool.catalog.on_event = None
        self._closing.set()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # --- what the rooms say -----------------------------------------------------------------------------------

    def _volume(self, volume: Volume, verb: str) -> None:
        if not self._watchers or is_view(volume.name):
            return
        if verb == "going":
            self._going[volume.volume_id] = asdict(self._describe(volume))
        elif verb == "created":
            self._note("volume", verb, volume.volume_id, asdict(self._describe(volume)))
        elif volume.volume_id in self._going:
            self._note("volume", verb, volume.volume_id, self._going.pop(volume.volume_id))
            for relation in self._relations.recorded(volume.volume_id):
                self._relation(relation, "deleted")

    def _snapshot(self, snapshot: Frozen, verb: str) -> None:
        if not self._watchers or snapshot.hidden:
            return
        volume = self._pool.find(snapshot.volume_id)
        if volume is None or is_view(volume.name):
            return
        identity = Identity.of(snapshot.guid)
        document = {
            "volume_id": snapshot.volume_id,
            "volume": volume.name,
            "name": snapshot.name,
            "guid": snapshot.guid,
            "size_bytes": snapshot.size_bytes,
            "created_at": snapshot.created_at,
            "serial": identity.serial,
            "naa": f"{identity.naa:016x}",
            "target": None,
            "lun": None,
            "of": asdict(self._describe(volume)),
        }
        self._note("snapshot", verb, snapshot.guid, document)

    def _job(self, job: Job) -> None:
        if not self._watchers:
            return
        key = ("job", str(job.job_id))
        told = self._told.get(key)
        if told is None and job.state.final:
            return  # over before anybody watched
        info = job_info(job)
        if told is not None and _visible(told) == _visible(asdict_flat(info)):
            return
        document = asdict(info)
        self._put("job", "created" if told is None else "modified", key[1], told, document)
        if job.state.final:
            self._forget(key)
        else:
            self._remember(key, document)

    def _relation(self, info: RelationInfo | GroupRelationInfo, verb: str) -> None:
        if not self._watchers:
            return
        document = asdict(info)
        if "guid" in document:
            self._note("group", verb, document["guid"], document)
        else:
            self._note("clone", verb, document["target_id"], document)

    def _event(self, subject: str) -> None:
        if not self._watchers or not subject.startswith(MIRROR_SUBJECT):
            return
        prefix = MIRROR_GROUP_SUBJECT if subject.startswith(MIRROR_GROUP_SUBJECT) else MIRROR_SUBJECT
        self._stale.add(subject.removeprefix(prefix))
        if not self._looking:
            self._looking = True
            self._own(self._look())

    async def _look(self) -> None:
        """At mirrors, in the next turn of the loop: what the event is about has happened then."""
        await asyncio.sleep(0)
        self._looking = False
        self._look_at_mirrors()

    def _look_at_mirrors(self) -> None:
        names, self._stale = self._stale, set()
        members = {s for (kind, s), document in self._told.items() if kind == "replica" and document["group"] in names}
        for name in sorted(names | members):
            self._look_at_mirror(name, names | members)

    def _look_at_mirror(self, name: str, seen: set[str]) -> None:
        key = ("replica", name)
        told = self._told.get(key)
        try:
            info = self._replicas.info(name)
        except NotFound:
            if told is not None:
                self._put("replica", "deleted", name, told, None)
                self._forget(key)
            return
        for member in info.members:
            if member not in seen:
                self._look_at_mirror(member, seen)
        document = _mirror_document(info)
        if told is None or any(document[field] != told[field] for field in _MIRROR_FIELDS):
            self._put("replica", "created" if told is None else "modified", name, told, document)
            self._remember(key, document)

    # --- recording --------------------------------------------------------------------------------------------

    def _note(self, kind: str, verb: str, subject: str, document: Document) -> None:
        """Of something that comes and goes."""
        if verb == "created":
            self._put(kind, verb, subject, None, document)
        else:
            self._put(kind, verb, subject, document, None)

    def _put(self, kind: str, verb: str, subject: str, before: Document | None, after: Document | None) -> None:
        if len(self._pending) >= PENDING_MAX:
            self._lost += 1
        else:
            self._pending.append(ChangeRow(0, self._pool.env.clock.time(), kind, verb, subject, before, after))
        self._write_soon()

    def _remember(self, key: tuple[str, str], document: Document) -> None:
        self._told[key] = document
        self._pending_told[key] = Told(*key, document)

    def _forget(self, key: tuple[str, str]) -> None:
        self._told.pop(key, None)
        self._pending_told[key] = Told(*key, None)

    def _write_soon(self) -> None:
        if not self._writing:
            self._writing = True
            self._own(self._write())

    async def _write(self) -> None:
        try:
            while self._pending or self._pending_told or self._lost:
                rows, told, lost = self._pending, self._pending_told, self._lost
                if lost:
                    now = self._pool.env.clock.time()
                    rows = [*rows, ChangeRow(0, now, "lost", "created", "", None, {"count": lost})]
                self._pending, self._pending_told, self._lost = [], {}, 0
                try:
                    self._newest = await self._tables.add(rows, list(told.values()))
                except EngineError as error:
                    log.error("%d changes cannot be recorded for their watchers: %s", len(rows), error)
                    if self._closing.is_set():
                        return
                    room = PENDING_MAX - len(self._pending)
                    kept = [row for row in rows if row.kind != "lost"]
                    self._pending = kept[:room] + self._pending
                    self._pending_told = told | self._pending_told
                    self._lost += lost + max(0, len(kept) - room)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._closing.wait(), RETRY_S)
                    continue
                self._recorded.set()
                self._recorded = asyncio.Event()
        finally:
            self._writing = False

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_MIRROR_FIELDS = ("copy_state", "progress_status", "mode", "source", "target", "peer", "group", "promise", "switches")
"""What of a mirror is a change that is told; the rest moves all the time."""


def _mirror_document(info: ReplicaInfo) -> Document:
    return asdict(info)


def _visible(job: Document) -> tuple[Any, ...]:
    total = job["total_bytes"]
    percent = 100 * job["done_bytes"] // total // PERCENT_STEP if total else 0
    return job["state_number"], percent, job["error"]


def asdict_flat(info: JobInfo) -> Document:
    """The fields that ``_visible`` wants, without copying the job's result: this is asked ten times a second."""
    return {name: getattr(info, name) for name in ("state_number", "total_bytes", "done_bytes", "error")}
