"""A pool in process behind the CIM facade, and pywbem before it, over HTTPS with a password."""

from __future__ import annotations

import asyncio
import atexit
import shutil
import socket
import tempfile
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pywbem import CIMInstance, CIMInstanceName, CIMParameter, NocaseDict, WBEMConnection, cimvalue

from cim_facade import repository
from cim_facade.auth import Users, UsersFile
from cim_facade.context import User, View
from cim_facade.dispatch import Facade
from cim_facade.indications.export import TRUSTED_NAME
from cim_facade.indications.service import Indications
from cim_facade.namespaces import STORAGE
from cim_facade.registry import whole_registry
from cim_facade.server import CimServer
from tests.support.engine import opened
from twinvol import certificate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cim_facade.registry import Registry
    from cim_facade.repository import ClassRepository
    from tests.support.engine import Engine

NAME, PASSWORD = "operator", "a long password"
MIB = 1 << 20

REPLICATION = "MSISCSITARGET_ReplicationService"
CONFIGURATION = "MSISCSITARGET_StorageConfigurationService"


@cache
def classes() -> ClassRepository:
    return repository.load()


@cache
def registry() -> Registry:
    return whole_registry()


ADMINISTRATOR = User("admin", administrator=True, secure=True)


class Outputs(NocaseDict):
    """Output parameters by name; one that has no value is None."""

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name) if name in self else None


class Array:
    """``engine`` behind the facade, and ``client``, pywbem, before it over HTTPS. ``users``: the facade's file."""

    def __init__(self, engine: Engine, client: WBEMConnection, users: Path) -> None:
        self.engine = engine
        self.api = engine.api
        self.client = client
        self.users = users

    def view(self) -> View:
        """For looking at what is there beside what clients see."""
        return View(self.api, ADMINISTRATOR, classes(), registry())

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

    async def call(self, where: str | CIMInstanceName, method: str, **given: Any) -> tuple[int, Outputs]:
        """The method of a service, or of the instance at a path, over HTTPS. Parameters get the types of the class;
        the code and the outputs are checked to be of it. Outputs that are NULL are None."""
        path = await self.service(where) if isinstance(where, str) else where
        declared = classes().get(path.namespace, path.classname).methods[method]
        params = [_parameter(declared.parameters[name], value) for name, value in given.items()]
        code, outputs = await asyncio.to_thread(self.client.InvokeMethod, method, path, params)
        values = declared.qualifiers["ValueMap"].value
        assert any(text == str(int(code)) or _within(int(code), text) for text in values), code
        for name in outputs:
            assert declared.parameters[name].qualifiers["Out"].value, name
        return int(code), Outputs((name, _bare(value)) for name, value in outputs.items() if value is not None)

    async def handled(self, class_name: str, method: str, **given: Any) -> int:
        """The code of a service's method, run in process: for what pywbem does not send, such as NULL in an array."""
        path, view = await self.service(class_name), self.view()
        handler = registry().method(classes(), path.namespace, path.classname, method)
        assert handler is not None
        declared = classes().get(path.namespace, path.classname).methods[method].parameters
        params = {name: _parameter(declared[name], value).value for name, value in given.items()}
        return int((await handler(view, path, NocaseDict(params)))[0])

    async def get(self, path: CIMInstanceName) -> CIMInstance:
        return await asyncio.to_thread(self.client.GetInstance, path)

    async def all(self, class_name: str, namespace: str = STORAGE) -> list[CIMInstance]:
        found = await asyncio.to_thread(self.client.EnumerateInstances, class_name, namespace)
        for each in found:
            each.path = _bare(each.path)
        return found

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


def _parameter(declared: CIMParameter, value: Any) -> CIMParameter:
    """With a value in the type of the class."""
    if isinstance(value, list | tuple):
        value = [None if each is None else cimvalue(each, declared.type) for each in value]
    elif value is not None and not isinstance(value, CIMInstance):
        value = cimvalue(value, declared.type)
    return CIMParameter(
        declared.name,
        declared.type,
        value=value,
        is_array=declared.is_array,
        reference_class=declared.reference_class,
        embedded_object=declared.embedded_object,
    )


def _bare(value: Any) -> Any:
    """Paths without the host that the client wrote into them."""
    if isinstance(value, list):
        return [_bare(each) for each in value]
    if isinstance(value, CIMInstanceName):
        value.host = None
        for each in value.keybindings.values():
            _bare(each)
    return value


def _within(code: int, text: str) -> bool:
    low, _, high = text.partition("..")
    return bool(high) and int(low) <= code <= int(high)


@cache
def _folder() -> Path:
    """Where the certificate of this run is, and a users file: making them takes a tenth of a second."""
    folder = Path(tempfile.mkdtemp(prefix="cim-array-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    UsersFile(folder / "users.json").add(NAME, "admin", PASSWORD)
    return folder


@asynccontextmanager
async def behind_the_facade(engine: Engine) -> AsyncIterator[Array]:
    """An engine that is open, served over HTTPS on loopback."""
    users = engine.pool.path / "users.json"
    shutil.copy(_folder() / "users.json", users)
    verified = Users(users)
    facade = Facade(engine.api, classes(), registry(), verified)
    facade.indications = Indications(engine.api, classes(), registry(), trusted=engine.pool.path / TRUSTED_NAME)
    await facade.indications.start()
    server = CimServer(facade, verified, ConnectionAbortedError)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    address = "{}:{}".format(*listener.getsockname())
    served_with = certificate.ServerCertificate(_folder(), address)
    await served_with.context()
    await server.start(listener, served_with.context)
    trusted = str(_folder() / certificate.FOLDER / certificate.CA)
    client = WBEMConnection(
        f"https://{address}", (NAME, PASSWORD), default_namespace=STORAGE, ca_certs=trusted, timeout=60
    )
    client.session.trust_env = False  # else REQUESTS_CA_BUNDLE would count, not what is trusted here
    try:
        yield Array(engine, client, users)
    finally:
        await asyncio.to_thread(client.close)
        await server.close()
        await facade.indications.close()


@asynccontextmanager
async def array(path: Path, **options: Any) -> AsyncIterator[Array]:
    async with opened(path, **options) as engine, behind_the_facade(engine) as made:
        yield made
