"""The CIM facade in the management process: its listeners, users, certificate and classes, put together."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys
from typing import TYPE_CHECKING

from pywbem import CIMError

from cim_facade import repository
from cim_facade.audit import AUDIT_NAME, AuditLog
from cim_facade.auth import USERS_NAME, Users
from cim_facade.dispatch import Facade
from cim_facade.indications.export import TRUSTED_NAME
from cim_facade.indications.service import Indications
from cim_facade.registry import whole_registry
from cim_facade.server import CimServer
from engine.errors import EngineError
from twinvol import certificate
from twinvol.api.frames import DaemonUnreachable
from twinvol.sockets import bound_address

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from pathlib import Path

    from engine.api import EngineApi

log = logging.getLogger(__name__)

SWITCH_S = 0.0005
"""How long a thread beside the loop keeps the interpreter when the loop wants it: ten times as short as usual."""


async def start(
    ending: AsyncExitStack, pool: Path, api: EngineApi, https: socket.socket | None, http: socket.socket | None
) -> None:
    """Serve CIM-XML on these listening sockets, on which connections have queued since they were bound, and deliver
    indications, until ``ending`` ends."""
    classes = await asyncio.to_thread(repository.load, pool / repository.CACHE_NAME)
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()  # a hundred thousand objects that stay: looking through them again would hold the loop for 60 ms
    users = Users(pool / USERS_NAME)
    registry = whole_registry()
    facade = Facade(api, classes, registry, users, AuditLog(pool / AUDIT_NAME))
    trusted = pool / certificate.FOLDER / TRUSTED_NAME
    indications = Indications(api, classes, registry, trusted=trusted, unavailable=DaemonUnreachable)
    ending.push_async_callback(indications.close)
    try:
        await indications.start()
    except (ValueError, CIMError, EngineError) as error:
        log.error("nobody is told of anything: %s", error)
    else:
        facade.indications = indications
    server = CimServer(facade, users, DaemonUnreachable)
    ending.push_async_callback(server.close)
    if http is not None:
        await server.start(http, None)
        log.info("CIM-XML is up at http://%s", bound_address(http))
    if https is not None:
        try:
            served_with = certificate.ServerCertificate(pool, bound_address(https))
            await served_with.context()
        except (EngineError, OSError) as error:
            log.error("CIM-XML is not served over TLS: %s", error)
            https.shutdown(socket.SHUT_RDWR)  # nobody shall wait there: the data process has this socket, too
            https.close()
        else:
            await server.start(https, served_with.context)
            log.info("CIM-XML is up at https://%s", bound_address(https))
