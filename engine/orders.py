"""Several copies made as one job, by the operations of ``EngineApi`` that make one each.

Invariants:

* What every copy is called is decided, and recorded with the order, before the first step, and nobody else gets these
  names until the order is over (``engine.reserved_names``). After the end of the daemon the job goes on under its
  number: what is there by its name was made by it, and what is not is made; but a mirror that was begun, and a copy
  onto an existing volume that was whole, are recorded, and not begun again: somebody may have taken them over since.
* An order that stops at an error, or is cancelled, takes back what it has made; what it did to the content of volumes
  that existed before, it cannot; and a mirror that somebody has fractured, detached, restored from, reversed or failed
  over meanwhile is his. One that goes on at errors takes back the copy that failed, and fails if all did.
* A clone of a snapshot is of the one that was there when it was ordered, not of another that is called so by then.
* A job that rests (``job_suspend``) begins nothing, and its copies rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from engine.api.relations import ORDER_MAX, CopyOrder, GroupOrder, GroupRelationInfo, PairInfo
from engine.errors import AlreadyExists, EngineError, InUse, InvalidArgument, InvalidState, NotFound, NotSupported
from engine.errors_json import error_from_json
from engine.jobs import JobState
from engine.mirror_terms import ASYNCHRONOUS, USUAL
from engine.mirror_wait import Rest, of_group, of_replica, until_synchronized
from engine.names import NAME_MAX, SUFFIX_CHARACTERS, made_names
from engine.relations import RELATION_PREFIX, check_element_name, new_guid, order_point
from engine.token_clone import start_token_clone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.jobs import Job
    from engine.local_api import LocalApi
    from engine.mirror_terms import MirrorTerms
    from engine.pool import Pool
    from engine.relations import Relations

log = logging.getLogger(__name__)

JOB_KIND = "copies"
KINDS = ("snapshot", "clone", "token", "mirror")
TAKEN_OVER = ("Detached", "Fractured", "Failedover", "Restored")
"""States of a mirror that it gets into by nobody's order but a user's."""


class Orders:
    """See the module."""

    def __init__(self, api: LocalApi, pool: Pool, relations: Relations) -> None:
        self._api = api
        self._pool = pool
        self._relations = relations

    async def restore(self) -> None:
        """Go on with the orders that the end of the daemon interrupted."""
        tables = self._pool.catalog.relations
        for job_id, document in (await tables.orders()).items():
            names = _names_of(document)
            self._pool.reserved.add(names)
            try:
                job = self._pool.jobs.get(job_id)
                run = _Order(self._api, self._pool, self._relations, document, resumed=True)
            except NotFound as error:  # a source was deleted, or the job is not in the history any more
                log.error("job %d does not go on: %s", job_id, error)
                await tables.remove_order(job_id)
                self._pool.reserved.remove(names)
                continue
            except EngineError as error:  # a source is not served: perhaps after the next start
                log.error("job %d does not go on: %s", job_id, error)
                continue
            await self._pool.jobs.go_on(job, self._work_of(run))

    async def make(
        self, orders: list[CopyOrder], group: GroupOrder | None, *, at_once: bool, on_error: str, until: str
    ) -> Job:
        """See ``EngineApi.copies_make``."""
        if not 0 < len(orders) <= ORDER_MAX:
            raise InvalidArgument(f"an order has 1 to {ORDER_MAX} copies, not {len(orders)}")
        if on_error not in ("stop", "continue") or until not in ("associated", "synchronized"):
            raise InvalidArgument(f"on_error is {on_error!r}, until {until!r}")
        for order in orders:
            await self._check(order)
        self._check_group(orders, group, at_once=at_once)
        named = self._named(orders, group)
        document: dict[str, Any] = {
            "orders": [asdict(order) for order in named],
            "source_guids": [_snapshot_guid(self._pool, order) for order in named],
            "group": None if group is None else asdict(group) | {"guid": new_guid()},
            "at_once": order_point() if at_once else None,  # by which name
            "on_error": on_error,
            "until": until,
        }
        run = _Order(self._api, self._pool, self._relations, document)
        names = _names_of(document)
        self._pool.reserved.add(names)
        subject = " ".join(dict.fromkeys(order.source for order in named))
        try:
            return await self._pool.jobs.start(JOB_KIND, subject, self._work_of(run))
        except BaseException:
            self._pool.reserved.remove(names)
            raise

    async def follow(self, verb: str, names: list[str]) -> Job:
        """See ``EngineApi.mirrors_follow``."""
        if verb not in ("resync", "resume") or not 0 < len(names) <= ORDER_MAX:
            raise InvalidArgument(f"{verb!r} of {len(names)} replicas")
        begin = self._api.replica_resync if verb == "resync" else self._api.replica_resume
        parts = [(await begin(name)).job for name in names]
        rest = Rest()
        percent = dict.fromkeys(names, 0)

        async def work(job: Job) -> dict[str, Any]:
            job.control = rest
            job.result = {"replicas": names, "jobs": parts}
            job.progress(0, 100 * len(names))

            def tell(name: str, of: int) -> None:
                percent[name] = of
                job.progress(sum(percent.values()))

            try:
                for name in names:
                    await until_synchronized(of_replica(self._api), rest, name, functools.partial(tell, name))
                    tell(name, 100)
            except asyncio.CancelledError:
                if job.cancelling:
                    for name in names:
                        with contextlib.suppress(EngineError):  # it is at rest, or gone
                            await self._api.replica_pause(name)
                raise
            return job.result

        return await self._pool.jobs.start(verb, " ".join(names), work)

    def _work_of(self, run: _Order) -> Any:
        async def work(job: Job) -> dict[str, Any]:
            tables = self._pool.catalog.relations
            kept = False
            names = _names_of(run.document)
            try:
                with self._pool.reserved.taking(names):
                    await tables.put_order(job.job_id, run.document)
                    return await run.work(job)
            except asyncio.CancelledError:
                kept = not job.cancelling  # the daemon ends: the next one goes on
                raise
            finally:
                if not kept:
                    await asyncio.shield(tables.remove_order(job.job_id))
                    self._pool.reserved.remove(names)

        return work

    # --- what is refused at once --------------------------------------------------------------------------------

    async def _check(self, order: CopyOrder) -> None:
        if order.kind not in KINDS:
            raise InvalidArgument(f"{order.kind!r} is no kind of copy: {', '.join(KINDS)}")
        for text in (order.element_name, order.relation_name):
            if text is not None:
                check_element_name(text)
        source = self._pool.volume(order.source)
        source.require_usable()
        if order.snapshot is not None:
            self._pool.snapshot(source, order.snapshot)
            if order.kind != "clone" or order.target is not None:
                raise NotSupported(
                    f"of a snapshot ({order.source}@{order.snapshot}) full clones are made, nothing else"
                )
        if order.kind == "mirror" and order.peer is None:
            for info in await self._api.replica_list():
                if order.source == info.target:
                    raise InUse(f"volume {order.source} is itself the target of a replica; a cascade is not supported")
        if order.target is None:
            return
        if order.kind in ("snapshot", "token") or order.peer is not None:
            raise NotSupported(f"a {order.kind} cannot be made in a volume that exists")
        target = self._pool.volume(order.target)
        if target is source:
            raise InvalidArgument(f"volume {order.source} cannot be a copy of itself")
        if target.size_bytes < source.size_bytes:
            raise InvalidArgument(
                f"volume {target.name} has {target.size_bytes} bytes, less than its source ({source.size_bytes})"
            )
        self._api.require_copy_target(target, order.terms.mode if order.kind == "mirror" else None)

    def _check_group(self, orders: list[CopyOrder], group: GroupOrder | None, *, at_once: bool) -> None:
        kinds = {order.kind for order in orders}
        if len(kinds) > 1:
            raise InvalidArgument("the copies of one order are of one kind")
        if at_once and (kinds & {"snapshot", "mirror"} or any(order.target or order.snapshot for order in orders)):
            raise NotSupported("only new clones of volumes are made of one instant here; for snapshots take a group")
        if group is None:
            return
        check_element_name(group.name)
        if group.target_group is not None:
            self._pool.groups.info(group.target_group)
        if not group.consistent:
            return
        onto = any(order.target for order in orders)
        if not kinds <= {"snapshot", "mirror"} or group.source_group is None or onto:
            raise NotSupported("one instant of a group is there for snapshots and new mirrors; say at_once for clones")
        if [order.source for order in orders] != self._pool.groups.info(group.source_group).members:
            raise InvalidArgument(f"the copies are not of the members of group {group.source_group}")

    # --- names --------------------------------------------------------------------------------------------------

    def _named(self, orders: list[CopyOrder], group: GroupOrder | None) -> list[CopyOrder]:
        """Each with the name of what it makes."""
        if group is not None and group.consistent and orders[0].kind == "mirror":
            longest = max(len(order.source) for order in orders)  # it is NAME.MEMBER
            text = group.name[: max(1, NAME_MAX - SUFFIX_CHARACTERS - longest)]
            name = next(name for name in made_names(text) if self._is_free_for_group(name, orders))
            return [replace(order, name=f"{name}.{order.source}") for order in orders]
        if group is not None and group.consistent:
            volumes = [self._pool.volume(order.source) for order in orders]
            taken = {snapshot.name for volume in volumes for snapshot in self._pool.snapshots(volume)}
            taken |= {info.name for info in self._pool.groups.snapshots(group.source_group or "")}
            name = next(
                name
                for name in made_names(group.name)
                if name not in taken and all((order.source, name) not in self._pool.reserved for order in orders)
            )
            return [replace(order, name=name) for order in orders]
        named: list[CopyOrder] = []
        for order in orders:
            text = order.element_name or order.relation_name or f"{order.source}-{order.kind}"
            scope = order.source if order.kind == "snapshot" else ""
            used = {other.name for other in named if (other.source if other.kind == "snapshot" else "") == scope}
            name = next(name for name in made_names(text) if name not in used and self._is_free(order, scope, name))
            named.append(replace(order, name=name))
        return named

    def _is_free_for_group(self, name: str, orders: list[CopyOrder]) -> bool:
        """Whether a mirrored group, and all its members, can be called so."""
        names = [name, *(f"{name}.{order.source}" for order in orders)]
        if any(len(each) > NAME_MAX for each in names):
            raise InvalidArgument(f"{names[-1]} is too long for a name")
        try:
            for each in names:
                self._pool.require_new(each)
                self._api.require_new_replica(each)
        except AlreadyExists:
            return False
        return True

    def _is_free(self, order: CopyOrder, scope: str, name: str) -> bool:
        if order.kind == "snapshot":
            if (scope, name) in self._pool.reserved:
                return False
            volume = self._pool.volume(order.source)
            return all(snapshot.name != name for snapshot in self._pool.snapshots(volume))
        try:
            self._pool.require_new(name)
            self._api.require_new_replica(name)
        except AlreadyExists:
            return False
        return name not in self._pool.interrupted()


def _snapshot_guid(pool: Pool, order: CopyOrder) -> str | None:
    """Of the snapshot that is copied, which another one may be called as later. Raises NotFound."""
    return None if order.snapshot is None else pool.snapshot(pool.volume(order.source), order.snapshot).guid


def _size_of(pool: Pool, order: CopyOrder) -> int:
    """Of what is copied. Raises NotFound."""
    source = pool.volume(order.source)
    return source.size_bytes if order.snapshot is None else pool.snapshot(source, order.snapshot).size_bytes


def _group_of(document: dict[str, Any]) -> str | None:
    """The name of the mirrored group that an order makes, if it makes one."""
    group, first = document["group"], document["orders"][0]
    if group is None or not group["consistent"] or first["kind"] != "mirror" or first["name"] is None:
        return None
    return str(first["name"]).removesuffix(f".{first['source']}")


def _names_of(document: dict[str, Any]) -> set[tuple[str, str]]:
    """What an order makes, as ``engine.reserved_names`` has it."""
    names = {
        (str(order["source"]) if order["kind"] == "snapshot" else "", str(order["name"]))
        for order in document["orders"]
    }
    group = _group_of(document)
    return names if group is None else names | {("", group)}


class _Order:
    """One order at work."""

    def __init__(
        self, api: LocalApi, pool: Pool, relations: Relations, document: dict[str, Any], *, resumed: bool = False
    ) -> None:
        self._api = api
        self._pool = pool
        self._relations = relations
        self.document = document
        self._resumed = resumed
        self._orders = [CopyOrder.parse(values) for values in document["orders"]]
        self._group: dict[str, Any] | None = document["group"]
        self._mirrored = _group_of(document)
        self._made: list[dict[str, Any]] = [{} for _ in self._orders]
        self._own = set(range(len(self._orders))) if resumed else set[int]()
        """Whose names are this order's: what is there by them is taken back if need be."""
        self._sizes = [_size_of(pool, order) for order in self._orders]
        self._done = [0] * len(self._orders)
        self._rest = Rest()
        self._child: Job | None = None

    async def work(self, job: Job) -> dict[str, Any]:
        job.control = self._rest
        for made, order, guid in zip(self._made, self._orders, self.document["source_guids"], strict=True):
            made["source_id"] = self._pool.volume(order.source).volume_id
            if guid is not None:
                made["source_guid"] = guid
        job.result = {"copies": [dict(made) for made in self._made], "jobs": []}
        job.progress(0, sum(self._sizes))
        point: str | None = self.document["at_once"] or None
        try:
            if point is not None:
                await self._freeze(point)
            await self._make_all(job, point)
            if self._group is not None:
                await self._relate_group(job)
        except asyncio.CancelledError:
            if job.cancelling:
                await asyncio.shield(self._undo_all(job, point))
            raise
        except EngineError:
            await self._undo_all(job, point)
            raise
        if point is not None:
            await self._thaw(point)
        failed = [made for made in self._made if "error" in made]
        if failed:
            job.message = f"{len(failed)} of {len(self._made)} copies failed: {failed[0]['message']}"
        return job.result | {"copies": self._made}

    async def _make_all(self, job: Job, point: str | None) -> None:
        if self._group is not None and self._group["consistent"]:
            await (self._mirror_group(job) if self._mirrored is not None else self._snapshot_group())
        for number, order in enumerate(self._orders):
            await self._guarded(job, number, self._begin(job, number, order))
        self._say_begun(job, all(order.kind in ("snapshot", "mirror") for order in self._orders))
        for number, order in enumerate(self._orders):
            if "error" not in self._made[number]:
                await self._guarded(job, number, self._finish(job, number, order, point))
                await self._call_relation(self._made[number], order)
                self._tell(job, number, self._sizes[number])
        if all("error" in made for made in self._made):
            first = self._made[0]
            raise error_from_json({"type": first["error"], "message": first["message"]})

    def _say_begun(self, job: Job, begun: bool) -> None:
        """Show what there is by now."""
        job.result["copies"] = [dict(made) for made in self._made]
        if begun:
            job.result["begun"] = True
        job.tell()

    async def _guarded(self, job: Job, number: int, step: Any) -> None:
        try:
            await step
        except EngineError as error:
            if self.document["on_error"] == "stop" or self._mirrored is not None:  # its members are made as one
                raise
            if number not in await self._taken_over():
                await self._undo(job, number)
            self._made[number] |= {"error": type(error).__name__, "message": str(error)}

    def _tell(self, job: Job, number: int, done_bytes: int) -> None:
        self._done[number] = max(self._done[number], done_bytes)
        job.progress(sum(self._done))

    # --- one copy -----------------------------------------------------------------------------------------------

    async def _record(self, job: Job, what: str, *numbers: int) -> None:
        """``what`` is true of these copies, also after the end of the daemon."""
        self.document[what] = [*self.document.get(what, ()), *numbers]
        await self._pool.catalog.relations.put_order(job.job_id, self.document)

    def _is(self, what: str, number: int) -> bool:
        return number in self.document.get(what, ())

    async def _begin(self, job: Job, number: int, order: CopyOrder) -> None:
        """What is over in an instant: a snapshot, and that a mirror exists."""
        await self._rest.going.wait()
        made, name = self._made[number], order.name or ""
        if order.kind == "snapshot" and "guid" not in made:
            try:
                info = await self._api.snapshot_create(order.source, name)
            except AlreadyExists:
                if not self._resumed:
                    raise
                info = await self._api.snapshot_show(order.source, name)
            made["guid"] = info.guid
            await self._call(info.guid, order.element_name)
        elif order.kind == "mirror" and "replica" not in made:
            await self._begin_mirror(job, number, order.terms)
            made["replica"] = name
            if order.peer is None:
                made["target_id"] = self._pool.volume(order.target or name).volume_id
                if order.target is None:
                    await self._call(made["target_id"], order.element_name)

    async def _finish(self, job: Job, number: int, order: CopyOrder, point: str | None) -> None:
        made, name = self._made[number], order.name or ""
        match order.kind:
            case "mirror":
                if self.document["until"] == "synchronized" and (self._mirrored is None or number == 0):
                    await self._synchronized(job, number, self._mirrored or name)
            case "clone" if order.target is not None:
                # Its first round is a verified copy of one instant; where initiators could see it, that is at the end.
                shown = self._api.is_shown(self._pool.volume(order.target))
                if not self._is("whole", number):
                    await self._begin_mirror(job, number, USUAL if shown else ASYNCHRONOUS)
                    self._say_begun(job, True)
                    await self._synchronized(job, number, name)
                    await self._record(job, "whole", number)
                with contextlib.suppress(NotFound):  # it may have been before the end of the daemon
                    await self._api.replica_detach(name)
                made["target_id"] = self._pool.volume(order.target).volume_id
            case "clone" | "token":
                if not self._resumed or all(volume.name != name for volume in self._pool.volumes()):
                    async with self._making(number):
                        await self._copy(job, number, order, point)
                made["target_id"] = self._pool.volume(name).volume_id
                await self._call(made["target_id"], order.element_name)
        if order.kind in ("clone", "token") and order.related:
            await self._relations.relate(order.kind, made["source_id"], made["target_id"], made.get("source_guid"))

    async def _copy(self, job: Job, number: int, order: CopyOrder, point: str | None) -> None:
        await self._rest.going.wait()
        source, name, made_of = self._pool.volume(order.source), order.name or "", self._made[number].get("source_guid")
        if order.kind == "token":
            child = await start_token_clone(self._pool, source, name)
        else:
            if _snapshot_guid(self._pool, order) != made_of:
                raise NotFound("snapshot", f"{order.source}@{made_of}")
            point = order.snapshot or point
            child = self._pool.jobs.get((await self._api.clone_copy(order.source, point, name)).job)
        job.result["jobs"].append(child.job_id)
        self._child = child
        self._say_begun(job, True)
        version = 0
        while not child.state.final:
            await child.wait(version, 1.0)
            version = child.version
            self._tell(job, number, self._sizes[number] * child.done_bytes // max(1, child.total_bytes))
            with contextlib.suppress(InvalidState):  # it is where it is to be, or over
                (child.resume if self._rest.going.is_set() else child.suspend)()
        self._child = None
        if child.state is not JobState.COMPLETED:
            raise error_from_json({"type": child.error, "message": child.message})

    @contextlib.asynccontextmanager
    async def _making(self, *numbers: int) -> AsyncIterator[None]:
        """Inside, copies are made by their names, unless somebody had begun to when the names were chosen.

        A volume without the mirror that it was made for is one that the end of the daemon left: it is made anew.
        """
        if self._resumed:
            for order in (self._orders[number] for number in numbers):
                if order.kind == "mirror" and order.target is None and order.peer is None:
                    with contextlib.suppress(NotFound):
                        await self._api.volume_delete(order.name or "", force=True)
        self._own.update(numbers)
        try:
            yield
        except AlreadyExists:
            if not self._resumed:
                self._own.difference_update(numbers)
            raise

    async def _begin_mirror(self, job: Job, number: int, terms: MirrorTerms) -> None:
        order = self._orders[number]
        name = order.name or ""
        if self._is("begun", number):
            return
        if not self._resumed or all(info.name != name for info in await self._api.replica_list()):
            async with self._making(number):
                await self._make_mirror(order, name, terms)
        await self._record(job, "begun", number)

    async def _make_mirror(self, order: CopyOrder, name: str, terms: MirrorTerms) -> None:
        if order.target is None:
            await self._api.replica_create(order.source, name, terms, peer=order.peer)
            return
        source, target = self._pool.volume(order.source), self._pool.volume(order.target)
        if target.size_bytes != source.size_bytes:  # its content is lost anyway
            await self._api.volume_resize(order.target, source.size_bytes, shrink=True)
        await self._api.replica_attach(order.source, order.target, terms, name=name)

    async def _synchronized(self, job: Job, number: int, name: str) -> None:
        size = self._sizes[number]
        verbs = of_group(self._api) if name == self._mirrored else of_replica(self._api)
        await until_synchronized(verbs, self._rest, name, lambda of: self._tell(job, number, size * of // 100))

    async def _call_relation(self, made: dict[str, Any], order: CopyOrder) -> None:
        target = made.get("target_id") or made.get("guid") or made.get("replica")
        if target is not None:
            await self._call(RELATION_PREFIX + target, order.relation_name)

    async def _call(self, guid: str, element_name: str | None) -> None:
        if element_name is not None:
            await self._relations.set_element_name(guid, element_name)

    # --- instants and groups --------------------------------------------------------------------------------------

    async def _freeze(self, point: str) -> None:
        """A snapshot of all sources at one instant, for clones to be made of."""
        with contextlib.suppress(AlreadyExists):
            await self._api.group_create(point, list(dict.fromkeys(order.source for order in self._orders)))
        with contextlib.suppress(AlreadyExists):
            await self._api.group_snapshot_create(point, point)

    async def _thaw(self, point: str) -> None:
        with contextlib.suppress(NotFound):
            await self._api.group_delete(point, force=True)

    async def _mirror_group(self, job: Job) -> None:
        assert self._group is not None
        assert self._mirrored is not None
        first, group = self._orders[0], self._group["source_group"]
        numbers = range(len(self._orders))
        if not self._is("begun", 0):
            if not self._resumed or all(info.name != self._mirrored for info in await self._api.group_replica_list()):
                async with self._making(*numbers):
                    await self._api.group_replica_create(group, self._mirrored, first.terms, peer=first.peer)
            await self._record(job, "begun", *numbers)
        for made, order in zip(self._made, self._orders, strict=True):
            made["replica"] = order.name
        for made, order in zip(self._made, self._orders, strict=True):
            if order.peer is None:
                made["target_id"] = self._pool.volume(order.name or "").volume_id
                await self._call(made["target_id"], order.element_name)

    async def _snapshot_group(self) -> None:
        assert self._group is not None
        group, name = self._group["source_group"], self._orders[0].name or ""
        try:
            await self._api.group_snapshot_create(group, name)
        except AlreadyExists:
            if not self._resumed:
                raise
        info = next(info for info in await self._api.group_snapshot_list(group) if info.name == name)
        self._group["snapshot"] = info.guid
        guids = {member.volume: member.guid for member in info.members}
        for made, order in zip(self._made, self._orders, strict=True):
            made["guid"] = guids[order.source]
            await self._call(made["guid"], order.element_name)
        await self._call(info.guid, self._group["name"])

    async def _relate_group(self, job: Job) -> None:
        group = self._group
        assert group is not None
        whole = [(made, order) for made, order in zip(self._made, self._orders, strict=True) if "error" not in made]
        volumes = [self._pool.by_id(made["target_id"]).name for made, _ in whole if "target_id" in made]
        target = group.get("snapshot")
        if group["target_group"] is not None:
            target = self._pool.groups.info(group["target_group"]).guid
        elif len(volumes) == len(whole):
            target = await self._target_group(group["name"], volumes)
        source = whole[0][0]["source_id"]
        if group["source_group"] is not None:
            source = self._pool.groups.info(group["source_group"]).guid
        first = self._orders[0]
        info = GroupRelationInfo(
            guid=group["guid"],
            name=group["name"],
            kind=first.kind,
            mode=first.terms.mode if first.kind == "mirror" else None,
            source=source,
            target_group=target,
            consistent=group["consistent"] or bool(self.document["at_once"]),
            established_at=self._pool.env.clock.time(),
            pairs=[PairInfo(m["source_id"], m.get("target_id") or m.get("guid") or m["replica"]) for m, _ in whole],
        )
        if first.kind == "mirror" or first.related:
            await self._relations.relate_groups(info)
            job.result["group"] = info.guid
        job.result["target_group"] = target

    async def _target_group(self, text: str, volumes: list[str]) -> str:
        for info in self._pool.groups.all():
            if self._resumed and info.members == volumes:
                return info.guid
        taken = {info.name for info in self._pool.groups.all()}
        info = await self._api.group_create(next(name for name in made_names(text) if name not in taken), volumes)
        await self._call(info.guid, text)
        return info.guid

    # --- taking back ----------------------------------------------------------------------------------------------

    async def _undo_all(self, job: Job, point: str | None) -> None:
        if self._group is not None and "snapshot" in self._group:
            with contextlib.suppress(EngineError):
                await self._api.group_snapshot_delete(self._group["source_group"], self._orders[0].name or "")
        left = await self._taken_over()
        if self._mirrored is not None and self._own and not left:
            with contextlib.suppress(EngineError):
                await self._api.group_replica_detach(self._mirrored)
        for number in range(len(self._orders)):
            if number in left:
                log.warning("job %d: %s stays: it was taken over", job.job_id, self._orders[number].name)
            else:
                await self._undo(job, number)
        if point is not None:
            await self._thaw(point)

    async def _taken_over(self) -> set[int]:
        """Numbers of the mirrors that were begun, and that somebody has done something else with since."""
        found = {info.name: info for info in await self._api.replica_list()}

        def is_ours(made: dict[str, Any], order: CopyOrder) -> bool:
            info = found.get(order.name or "")  # with its roles reversed, what it was made into is the disk
            return info is not None and info.copy_state not in TAKEN_OVER and info.source == order.source

        return {
            number
            for number, (made, order) in enumerate(zip(self._made, self._orders, strict=True))
            if "replica" in made and not is_ours(made, order)
        }

    async def _undo(self, job: Job, number: int) -> None:
        """Remove what a copy has made. What cannot be removed is said in the log, and stays."""
        made, order = self._made[number], self._orders[number]
        name = order.name or ""
        try:
            if self._child is not None and not self._child.state.final:
                await self._pool.jobs.cancel(self._child.job_id)
                self._child = None
            is_own = number in self._own
            if is_own and any(info.name == name for info in await self._api.replica_list()):
                await self._api.replica_detach(name)
            if order.kind == "snapshot" and "guid" in made:
                with contextlib.suppress(NotFound):
                    await self._api.snapshot_delete(order.source, name, force=True)
            elif is_own and order.target is None and order.kind != "snapshot" and order.peer is None:
                with contextlib.suppress(NotFound):
                    await self._api.volume_delete(name, force=True)
        except EngineError as error:
            log.error("job %d: %s, which it has begun, stays: %s", job.job_id, name, error)
        for key in ("guid", "target_id", "replica"):
            identity = made.pop(key, None)
            if identity is not None and order.target is None:
                await self._relations.set_element_name(identity, None)
                await self._relations.set_element_name(RELATION_PREFIX + identity, None)
