"""What one request sees of the engine: asked at first need, then kept, so that one answer does not contradict itself.

A view lives as long as its request (a pulled enumeration as long as its context). Nothing here is scanned for one
object: look-ups by name or id ask the engine for that one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from cim_facade.auth import Login
from cim_facade.paths import Paths
from engine.api import each_volume
from engine.errors import EngineError, InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection

    from pywbem import CIMInstance, CIMInstanceName

    from cim_facade.auth import Users
    from cim_facade.indications.service import Indications
    from cim_facade.provider import Provider
    from cim_facade.registry import Registry
    from cim_facade.repository import ClassRepository
    from engine.api import (
        EngineApi,
        PoolIdentity,
        PoolSpaceInfo,
        PortalInfo,
        ReplicaInfo,
        SessionInfo,
        SnapshotInfo,
        StatusInfo,
        TargetInfo,
        VolumeInfo,
    )

T = TypeVar("T")

FEW = 64
"""Volumes that are looked up one by one, rather than all at once."""

SLICE_S = 0.005
"""How long a request may keep the loop (DESIGN: no handler holds its loop for more than 10 ms)."""


@dataclass(frozen=True, slots=True)
class User:
    """Who asks. ``secure``: the connection is encrypted or does not leave the machine. ``login``: the connection's."""

    name: str
    administrator: bool
    secure: bool
    login: Login = field(default_factory=Login, compare=False)


class View:
    """See the module. ``api``, ``user`` and ``classes`` are for whoever answers the request."""

    def __init__(
        self,
        api: EngineApi,
        user: User,
        classes: ClassRepository,
        registry: Registry,
        users: Users | None = None,
    ) -> None:
        """``users``: who verifies a password that is a parameter; None: nobody can."""
        self.users = users
        self.indications: Indications | None = None
        self.api = api
        self.user = user
        self.classes = classes
        self._registry = registry
        self._kept: dict[str, Any] = {}
        self._since = time.monotonic()

    async def breathe(self) -> None:
        """Let others run if this request has run for long. The operations do so between any two instances."""
        if time.monotonic() - self._since > SLICE_S:
            await asyncio.sleep(0)
            self._since = time.monotonic()

    async def once(self, what: str, ask: Callable[[], Awaitable[T]]) -> T:
        """What ``ask`` answered when this request first wanted ``what``."""
        if what not in self._kept:
            self._kept[what] = await ask()
        kept: T = self._kept[what]
        return kept

    def remember(self, what: str, value: object) -> None:
        """That ``once`` answers this for ``what``: for looking at a state that is past."""
        self._kept[what] = value

    def forget(self) -> None:
        """Ask again from now on: a method has changed something."""
        self._kept.clear()

    def make(self, namespace: str, class_name: str, **values: Any) -> CIMInstance:
        """An instance with its path, typed as its class says; ``Shape.make``. Properties that are left out have the
        class's default, or are NULL."""
        return self.classes.shape(namespace, class_name).make(namespace, values)

    def path(self, namespace: str, class_name: str, **keys: Any) -> CIMInstanceName:
        """The path of an instance of ``class_name``, of all its keys."""
        return self.classes.shape(namespace, class_name).path(namespace, keys)

    async def paths(self) -> Paths:
        """What makes and reads the names of instances."""

        async def ask() -> Paths:
            return Paths((await self.pool_identity()).pool_id)

        return await self.once("paths", ask)

    async def pool_identity(self) -> PoolIdentity:
        return await self.once("pool identity", self.api.pool_identity)

    async def pool_space(self) -> PoolSpaceInfo:
        return await self.once("pool space", self.api.pool_space)

    async def status(self) -> StatusInfo:
        return await self.once("status", self.api.status)

    async def volumes(self) -> list[VolumeInfo]:
        """All of them, in the engine's order."""
        return await self.once("volumes", lambda: each_volume(self.api))

    async def volumes_by_name(self) -> dict[str, VolumeInfo]:
        async def index() -> dict[str, VolumeInfo]:
            return {volume.name: volume for volume in await self.volumes()}

        return await self.once("volumes by name", index)

    async def volumes_by_id(self) -> dict[str, VolumeInfo]:
        async def index() -> dict[str, VolumeInfo]:
            return {volume.volume_id: volume for volume in await self.volumes()}

        return await self.once("volumes by id", index)

    async def volume(self, volume_id: str) -> VolumeInfo | None:
        """The volume with that id."""

        async def ask() -> VolumeInfo | None:
            if "volumes" in self._kept:
                return (await self.volumes_by_id()).get(volume_id)
            with contextlib.suppress(NotFound):
                return await self.api.volume_find(volume_id)
            return None

        return await self.once(f"volume {volume_id}", ask)

    async def volumes_named(self, names: Collection[str]) -> dict[str, VolumeInfo]:
        """Those of these names that there are, by name: few are asked for one by one."""
        if "volumes" in self._kept or len(names) > FEW:
            everything = await self.volumes_by_name()
            return {name: everything[name] for name in names if name in everything}
        found = {}
        for name in names:
            info = await self._volume_named(name)
            if info is not None:
                found[name] = info
        return found

    async def _volume_named(self, name: str) -> VolumeInfo | None:
        async def ask() -> VolumeInfo | None:
            with contextlib.suppress(NotFound):
                return await self.api.volume_show(name)
            return None

        return await self.once(f"volume called {name}", ask)

    async def snapshots(self, volume: VolumeInfo) -> AsyncIterator[SnapshotInfo]:
        """Those of a volume, oldest first; none of one that is not served."""
        cursor = None
        while True:
            try:
                page = await self.api.snapshot_page(volume.name, cursor)
            except EngineError:  # deleted meanwhile, or not served any more
                return
            for snapshot in page.snapshots:
                self._kept[f"snapshot {snapshot.guid}"] = snapshot
                yield snapshot
            cursor = page.cursor
            if cursor is None:
                return

    async def snapshot(self, volume_id: str, guid: str) -> SnapshotInfo | None:
        """The snapshot of a volume with that GUID."""

        async def ask() -> SnapshotInfo | None:
            with contextlib.suppress(NotFound):
                return await self.api.snapshot_find(volume_id, guid)
            return None

        return await self.once(f"snapshot {guid}", ask)

    async def all_allocated(self) -> dict[str, int]:
        """What volumes map, in bytes, by id."""
        return await self.once("allocated", self.api.volume_allocated)

    async def allocated(self, volume_id: str) -> int:
        """What one volume maps, in bytes."""
        if "allocated" in self._kept:
            return (await self.all_allocated()).get(volume_id, 0)
        return (await self.api.volume_allocated([volume_id])).get(volume_id, 0)

    async def element_name(self, guid: str) -> str | None:
        """The free text by which a volume (its id), a snapshot or a group (their GUIDs) is called, if there is one."""
        return (await self.element_names([guid])).get(guid)

    async def element_names(self, guids: list[str]) -> dict[str, str]:
        """The free texts of those that have one: all at once, while all volumes are gone through."""
        if "volumes" in self._kept or len(guids) > FEW:
            return await self.once("element names", self.api.element_name_list)
        return await self.once(f"element names {guids}", lambda: self.api.element_name_list(guids))

    async def targets(self) -> list[TargetInfo]:
        """All of them, by name."""
        return await self.once("targets", self.api.target_list)

    async def target(self, name: str) -> TargetInfo | None:
        """The target with that iSCSI name."""

        async def index() -> dict[str, TargetInfo]:
            return {target.name: target for target in await self.targets()}

        async def ask() -> TargetInfo | None:
            if "targets" in self._kept:
                return (await self.once("targets by name", index)).get(name)
            with contextlib.suppress(NotFound, InvalidArgument):
                found = await self.api.target_show(name)
                return found if found.name == name else None  # it may have been given a short name
            return None

        return await self.once(f"target {name}", ask)

    async def portals(self) -> list[PortalInfo]:
        return await self.once("portals", self.api.portal_list)

    async def initiators(self) -> dict[str, str]:
        """Labels of those that were made known, by name."""

        async def ask() -> dict[str, str]:
            return {each.name: each.label for each in await self.api.initiator_list()}

        return await self.once("initiators", ask)

    async def sessions(self) -> dict[str, SessionInfo]:
        """By their IDs: target, tag of the portal group, ISID and TSIH are no other's."""

        async def ask() -> dict[str, SessionInfo]:
            found = await self.api.session_list()
            return {f"{each.target},{each.portal_group},{each.isid},{each.tsih}": each for each in found}

        return await self.once("sessions", ask)

    async def logged_in(self) -> set[str]:
        """Names of initiators."""
        return {session.initiator for session in (await self.sessions()).values()}

    async def replicas(self) -> list[ReplicaInfo]:
        return await self.once("replicas", self.api.replica_list)

    async def replica_usages(self) -> dict[str, int]:
        """StorageExtent.Usage of volumes that mirrors use, by name."""

        async def ask() -> dict[str, int]:
            usages: dict[str, int] = {}
            for replica in await self.replicas():
                if replica.peer is not None:  # one of its ends is a volume here
                    usages.setdefault(replica.source, 7)
                    usages.setdefault(replica.target, 9)
                else:
                    usages.setdefault(replica.source, 6)
                    usages[replica.target] = 8 if replica.target not in usages else 10
            return usages

        return await self.once("usages", ask)

    def providers(self, namespace: str, class_name: str) -> list[Provider]:
        """Of a class and its subclasses."""
        return self._registry.under(self.classes, namespace, class_name)

    def is_a(self, path: CIMInstanceName, class_name: str) -> bool:
        """Whether an instance of that path is one of the class, or a subclass."""
        return self.classes.is_a(path.namespace, path.classname, class_name)
