"""The data process: one pool, served until SIGTERM.

Order at start: the pool's lock; every asked-for socket bound and listening (connections queue from here on); the
volume files; the mirrors; all targets with all their LUNs; only then iSCSI accepts. So an initiator that comes back
during a restart waits for its disks and never hears "target not found". What no login needs is imported and begun after
the ready line (``twinvol.administration``); so are the mirrors where the catalogue knows of none.

Order at stop: no new logins, sessions end and their commands settle; the management process; the API; jobs; mirrors;
then every family is checkpointed and closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.exposure import Exposure
from engine.files import real_env
from engine.pool import Pool
from engine.tokens import Tokens
from iscsi.selector import DirectSelector
from iscsi.server import IscsiServer
from iscsi.target import TargetRegistry
from twinvol import __version__, config, sockets, token
from twinvol.api import server as api_server
from twinvol.management_process import API, WBEM, WBEM_HTTP
from twinvol.wiring import IscsiExports

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from engine.files import StoreEnv
    from engine.replicas import Replicas
    from twinvol.config import Settings

log = logging.getLogger(__name__)

TRACE_VARIABLE = "TWINVOL_TRACE_FILES"

ASK_PEERS_S = 3.0
"""At a start, how long logins wait for peers that have to be asked who is the disk; then such disks are unavailable."""

SWITCH_INTERVAL_S = 0.0001
"""How long a worker thread may keep the interpreter from the loop (PERFORMANCE section 1, threads and the GIL)."""


@dataclass
class _Sockets:
    iscsi: list[socket.socket] = field(default_factory=list)
    portal_groups: list[int] = field(default_factory=list)  # the tag of each
    unix: socket.socket | None = None
    management: dict[str, socket.socket] = field(default_factory=dict)
    peer: socket.socket | None = None

    def open(self, pool: Path, settings: Settings) -> None:
        for portal in settings.iscsi:
            address, group = config.parse_portal(portal)
            self.iscsi.append(sockets.listen(address))
            self.portal_groups.append(group)
        asked = {API: settings.api, WBEM: settings.wbem, WBEM_HTTP: settings.wbem_http}
        for name, wanted in asked.items():
            if wanted is not None:
                self.management[name] = sockets.listen(wanted)
        if settings.api is not None:
            token.make(pool)
        if settings.peer is not None:
            self.peer = sockets.listen(settings.peer)
        self.unix = api_server.bind(pool)

    def close(self) -> None:
        for listener in [*self.iscsi, self.unix, *self.management.values(), self.peer]:
            if listener is not None:
                listener.close()


def run(pool: Path, settings: Settings) -> None:
    """Serve ``pool`` until SIGTERM or SIGINT. Raises EngineError when it cannot begin."""
    sockets.raise_descriptor_limit()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    selector = DirectSelector(settings.busy_poll_us / 1e6)
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(_serve(pool, settings, selector))


async def _serve(path: Path, settings: Settings, selector: DirectSelector) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    listening = _Sockets()
    async with contextlib.AsyncExitStack() as ending:
        ending.callback(listening.close)
        env = _traced(real_env(settings.workers))
        ending.push_async_callback(env.close)
        pool = await Pool.open(path, env, on_locked=lambda: listening.open(path, settings))
        ending.push_async_callback(pool.close)
        registry = TargetRegistry()
        iscsi = IscsiServer(registry, selector)
        portals = [sockets.bound_address(listener) for listener in listening.iscsi]
        tagged = list(zip(portals, listening.portal_groups, strict=True))
        exports = IscsiExports(
            registry,
            iscsi,
            tagged,
            pool.catalog.save_reservations,
            Tokens(env.clock),
            settings.algorithms(),
            pool.space,
        )
        ending.push_async_callback(exports.close)
        exposure = Exposure(pool, exports, settings.iqn_prefix)
        mirrors = await ending.enter_async_context(contextlib.AsyncExitStack())
        ending.push_async_callback(pool.jobs.close)
        replicas = await _begin_replicas(mirrors, pool) if await pool.catalog.knows_replication() else None
        await exposure.restore()
        await pool.integrity.start()
        administration = await ending.enter_async_context(contextlib.AsyncExitStack())  # ends when iSCSI has
        ending.push_async_callback(iscsi.stop)
        assert listening.unix is not None
        sockets_of_others = listening.unix, listening.management, listening.peer
        asks_first = replicas is not None and replicas.waits_for_peers
        if replicas is not None and asks_first:  # an initiator that comes back waits, instead of finding its disk
            begin = await asyncio.to_thread(_load_administration)  # unavailable for a moment
            await begin(administration, pool, exposure, replicas, *sockets_of_others)
            await replicas.peers_asked(ASK_PEERS_S)
        await iscsi.start(listening.iscsi, listening.portal_groups)
        _say_ready(portals, listening)
        await asyncio.to_thread(log.info, "ready: iSCSI at %s", ", ".join(portals))  # imports structlog
        if not asks_first:
            begin = await asyncio.to_thread(_load_administration)
            if replicas is None:
                replicas = await _begin_replicas(mirrors, pool)
            await begin(administration, pool, exposure, replicas, *sockets_of_others)
        gc.freeze()  # what is there now stays; a collection need not look at it again
        await stop.wait()
        log.info("stopping")
    log.info("stopped")


async def _begin_replicas(ending: contextlib.AsyncExitStack, pool: Pool) -> Replicas:
    """``ending`` ends them."""
    from engine.replicas import Replicas  # a sixth of what would be loaded before a login

    replicas = Replicas(pool, software=f"twinvol {__version__}")
    ending.push_async_callback(replicas.close)
    await replicas.restore()
    return replicas


def _traced(env: StoreEnv) -> StoreEnv:
    """``env``, with every change of a data file recorded if the environment asks for it (docs/testing.md)."""
    path = os.environ.get(TRACE_VARIABLE)
    if not path:
        return env
    from engine.file_trace import TracedFileSystem  # a test's business

    log.warning("every write is also recorded in %s (%s)", path, TRACE_VARIABLE)
    return replace(env, files=TracedFileSystem(env.files, Path(path)))


def _load_administration() -> Callable[..., Awaitable[None]]:
    from twinvol.administration import begin  # see there; and with it ``engine.replicas``

    return begin


def _address(listener: socket.socket | None) -> str | None:
    return None if listener is None else sockets.bound_address(listener)


def _say_ready(iscsi: list[str], listening: _Sockets) -> None:
    """The one line on stdout, which other programs wait for."""
    message = {
        "event": "ready",
        "iscsi": iscsi,
        "wbem": _address(listening.management.get(WBEM)),
        "wbem_http": _address(listening.management.get(WBEM_HTTP)),
        "api": _address(listening.management.get(API)),
        "peer": _address(listening.peer),
        "pid": os.getpid(),
    }
    print(json.dumps(message), flush=True)
