"""A pool behind the CIM facade, in process: handlers and providers are asked as the operations ask them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from pywbem import CIMInstance, CIMInstanceName, NocaseDict, cimtype, cimvalue

from cim_facade import repository
from cim_facade.context import User, View
from cim_facade.namespaces import STORAGE
from cim_facade.operations import Operations
from cim_facade.registry import whole_registry
from tests.support.engine import opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cim_facade.auth import Users
    from cim_facade.registry import Registry
    from tests.support.engine import Engine

MIB = 1 << 20

REPLICATION = "MSISCSITARGET_ReplicationService"
CONFIGURATION = "MSISCSITARGET_StorageConfigurationService"


@cache
def classes():
    return repository.load()


@cache
def registry() -> Registry:
    return whole_registry()


ADMINISTRATOR = User("admin", administrator=True, secure=True)


class Array:
    """``engine`` behind the facade. Each call is a request of its own, by ``user``."""

    def __init__(self, engine: Engine, user: User = ADMINISTRATOR) -> None:
        self.engine = engine
        self.api = engine.api
        self.user = user
        self.users: Users | None = None

    def view(self) -> View:
        return View(self.api, self.user, classes(), registry(), self.users)

    async def volume(self, name: str, size: int = MIB, data: bytes = b"") -> CIMInstanceName:
        """Make one; its path."""
        info = await self.api.volume_create(name, size)
        if data:
            await self.engine.pool.volume(name).write(0, data)
        return (await self.view().paths()).volume(info.volume_id)

    async def path_of(self, name: str) -> CIMInstanceName:
        return (await self.view().paths()).volume((await self.api.volume_show(name)).volume_id)

    async def service(self, class_name: str = REPLICATION) -> CIMInstanceName:
        return (await self.view().paths()).service(class_name)

    async def call(self, where: str | CIMInstanceName, method: str, **given: Any) -> tuple[int, NocaseDict]:
        """The method of a service, or of the instance at a path. Parameters get the types of the class; outputs are
        checked to be of it."""
        path = await self.service(where) if isinstance(where, str) else where
        declared = classes().get(path.namespace, path.classname).methods[method]
        params = NocaseDict()
        for name, value in given.items():
            parameter = declared.parameters[name]
            assert "In" not in parameter.qualifiers or parameter.qualifiers["In"].value, name
            params[name] = value if value is None else _typed(value, parameter.type)
        view = self.view()
        handler = registry().method(classes(), path.namespace, path.classname, method)
        assert handler is not None, f"{method} has no handler"
        code, outputs = await handler(view, path, params)
        values = set(declared.qualifiers["ValueMap"].value)
        assert str(int(code)) in values or any(_within(int(code), text) for text in values), code
        found = NocaseDict()
        for name, value in outputs.items():
            parameter = declared.parameters[name]
            assert parameter.qualifiers["Out"].value, name
            if value is not None:
                for each in value if isinstance(value, list) else [value]:
                    assert cimtype(cimvalue(each, parameter.type)) == parameter.type or parameter.embedded_object
            found[name] = value
        return int(code), found

    async def get(self, path: CIMInstanceName) -> CIMInstance:
        return await Operations(self.view(), classes(), registry()).get_instance(path)

    async def all(self, class_name: str, namespace: str = STORAGE) -> list[CIMInstance]:
        found = Operations(self.view(), classes(), registry()).enumerate_instances(namespace, class_name)
        return [instance async for instance in found]

    async def references(self, path: CIMInstanceName, assoc_class: str, role: str) -> list[CIMInstance]:
        """The association's instances whose end ``role`` is ``path``."""
        found = registry().of(path.namespace, assoc_class).references(self.view(), path, role)
        return [instance async for instance in found]

    async def ended(self, job: CIMInstanceName) -> CIMInstance:
        """The job when it is over."""
        while True:
            found = await self.get(job)
            if found["JobState"] not in (2, 3, 4, 5, 32767):
                return found
            await asyncio.sleep(0.01)


def _typed(value: Any, kind: str) -> Any:
    if isinstance(value, list | tuple):
        return [None if each is None else _typed(each, kind) for each in value]
    return value if isinstance(value, CIMInstance) else cimvalue(value, kind)


def _within(code: int, text: str) -> bool:
    low, _, high = text.partition("..")
    return bool(high) and int(low) <= code <= int(high)


@asynccontextmanager
async def array(path, **options) -> AsyncIterator[Array]:
    async with opened(path, **options) as engine:
        yield Array(engine)
