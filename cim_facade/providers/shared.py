"""What providers share: instances that are few and always there, associations that follow links, states as numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from cim_facade.provider import Association, Provider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pywbem import CIMInstance, CIMInstanceName

    from cim_facade.context import View
    from cim_facade.paths import Paths
    from cim_facade.provider import Keys


class State(NamedTuple):
    """How something is: OperationalStatus, HealthState, and in words. ``enabled``: EnabledState."""

    operational: int
    health: int
    status: str
    enabled: int = 2
    reason: str | None = None

    def properties(self) -> dict[str, Any]:
        """Of a CIM_ManagedSystemElement."""
        return {
            "OperationalStatus": [self.operational],
            "StatusDescriptions": [self.reason or self.status],
            "Status": self.status,
            "HealthState": self.health,
        }

    def enabled_properties(self) -> dict[str, Any]:
        """Of a CIM_EnabledLogicalElement."""
        return self.properties() | {"EnabledState": self.enabled, "RequestedState": 12, "EnabledDefault": 2}


OK = State(2, 5, "OK")


class ByInstanceId(Provider):
    """Instances with the key InstanceID of one ``kind`` (``cim_facade.paths``)."""

    kind: ClassVar[str]

    async def identities(self, view: View) -> list[str]:
        """The IDs of all of them."""
        raise NotImplementedError

    async def properties(self, view: View, identity: str) -> dict[str, Any] | None:
        """All but the key; None: there is no such instance."""
        raise NotImplementedError

    async def paths(self, view: View) -> AsyncIterator[CIMInstanceName]:
        paths = await view.paths()
        for identity in await self.identities(view):
            yield paths.by_id(self.class_name, self.kind, identity, self.namespace)

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        paths = await view.paths()
        for identity in await self.identities(view):
            properties = await self.properties(view, identity)
            if properties is not None:
                yield self._made(view, paths, identity, properties)

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        paths = await view.paths()
        identity = paths.identity(self.kind, keys)
        properties = None if identity is None else await self.properties(view, identity)
        return None if identity is None or properties is None else self._made(view, paths, identity, properties)

    def _made(self, view: View, paths: Paths, identity: str, properties: dict[str, Any]) -> CIMInstance:
        instance_id = paths.instance_id(self.kind, identity)
        return view.make(self.namespace, self.class_name, InstanceID=instance_id, **properties)


class Fixed(ByInstanceId):
    """Few instances that say the same at all times: ``table`` has their properties by ID."""

    table: ClassVar[dict[str, dict[str, Any]]]

    async def identities(self, view: View) -> list[str]:
        return list(self.table)

    async def properties(self, view: View, identity: str) -> dict[str, Any] | None:
        return self.table.get(identity)


class Links(Association):
    """An association that is found by following links from either end.

    ``follow`` leads from an instance of the first end to all of the second that belong to it, ``trace`` the other way;
    both are given the path of an instance that may not exist, and then lead nowhere.
    """

    def follow(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        raise NotImplementedError

    def trace(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        raise NotImplementedError

    async def values(self, view: View, first: CIMInstanceName, second: CIMInstanceName) -> dict[str, Any]:
        """Properties besides the ends."""
        return {}

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        here = path.copy()
        here.namespace, here.host = self.namespace, None
        forward = role == self.ends[0].role
        async for there in self.follow(view, here) if forward else self.trace(view, here):
            first, second = (here, there) if forward else (there, here)
            yield await self.between(view, first, second)

    async def between(self, view: View, first: CIMInstanceName, second: CIMInstanceName) -> CIMInstance:
        ends = {self.ends[0].role: first, self.ends[1].role: second}
        return view.make(self.namespace, self.class_name, **ends, **await self.values(view, first, second))


class Pairs(Links):
    """Links between few instances that are always there: ``pairs`` are all of them."""

    async def pairs(self, view: View) -> list[tuple[CIMInstanceName, CIMInstanceName]]:
        raise NotImplementedError

    async def follow(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        for first, second in await self.pairs(view):
            if first == path:
                yield second

    async def trace(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        for first, second in await self.pairs(view):
            if second == path:
                yield first
