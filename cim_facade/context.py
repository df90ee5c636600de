"""What one request sees of the engine: asked at first need, then kept, so that one answer does not contradict itself.

A view lives as long as its request (a pulled enumeration as long as its context). Nothing here is scanned for one
object: look-ups by name or id ask the engine for that one.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from cim_facade.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pywbem import CIMInstance, CIMInstanceName

    from cim_facade.provider import Provider
    from cim_facade.registry import Registry
    from cim_facade.repository import ClassRepository
    from engine.api import EngineApi, PoolIdentity, PoolSpaceInfo, StatusInfo, VolumeInfo

T = TypeVar("T")

SLICE_S = 0.005
"""How long a request may keep the loop (DESIGN: no handler holds its loop for more than 10 ms)."""


@dataclass(frozen=True, slots=True)
class User:
    """Who asks. ``secure``: the connection is encrypted or does not leave the machine."""

    name: str
    administrator: bool
    secure: bool


class View:
    """See the module. ``api``, ``user`` and ``classes`` are for whoever answers the request."""

    def __init__(self, api: EngineApi, user: User, classes: ClassRepository, registry: Registry) -> None:
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
        return await self.once("volumes", self.api.volume_list)

    async def volumes_by_name(self) -> dict[str, VolumeInfo]:
        async def index() -> dict[str, VolumeInfo]:
            return {volume.name: volume for volume in await self.volumes()}

        return await self.once("volumes by name", index)

    async def volumes_by_id(self) -> dict[str, VolumeInfo]:
        async def index() -> dict[str, VolumeInfo]:
            return {volume.volume_id: volume for volume in await self.volumes()}

        return await self.once("volumes by id", index)

    def providers(self, namespace: str, class_name: str) -> list[Provider]:
        """Of a class and its subclasses."""
        return self._registry.under(self.classes, namespace, class_name)

    def is_a(self, path: CIMInstanceName, class_name: str) -> bool:
        """Whether an instance of that path is one of the class, or a subclass."""
        return self.classes.is_a(path.namespace, path.classname, class_name)
