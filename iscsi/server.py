"""The asyncio shell of the target: sockets, timers, flow control. What is said on the wire is the core's business.

One receive buffer serves all connections of a server. It holds valid bytes only inside ``buffer_updated``; what is left
over (an incomplete PDU, or a backlog when a pass has spent its credit) is copied to the connection, and an incomplete
PDU is put in front of the buffer again when its next bytes are received, so that every PDU is seen in one piece. Of a
long PDU, whose bytes come in many receives over a real network, the rest is received into a buffer of the connection's
own instead, and nothing is copied twice.

Fairness: a pass serves ``CONTENDED_CREDIT`` of a connection, then the loop goes round. A connection that was also
the last one served may use ``LONE_CREDIT``: nobody is waiting, and breaking off costs a copy of the rest.

Back-pressure: while more than ``MAX_UNSENT_BYTES`` of answers wait for the peer, nothing is read from it, no backlog is
served and no queued command is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
from typing import TYPE_CHECKING, Any, cast

from engine.errors import EngineError
from engine.units import KIB, MIB
from iscsi.answers import MAX_UNSENT_BYTES, Answers, ArenaPool
from iscsi.connection import Connection
from iscsi.fast_path import FastPath
from iscsi.observation import describe
from iscsi.session import SessionTable, settle
from iscsi.target import DEFAULT_PORTAL_GROUP, Portal, TargetChange
from iscsi.wire.bhs import MAX_AHS_BYTES
from iscsi.wire.opcodes import BHS_SIZE
from iscsi.wire.pdu import DEFAULT_MAX_DATA_SEGMENT

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from iscsi.observation import SessionInfo
    from iscsi.selector import DirectSelector
    from iscsi.target import Address, Target, TargetRegistry

_log = logging.getLogger(__name__)
_NOTHING = memoryview(b"")

RECEIVE_BYTES = 2 * MIB + 64 * KIB
"""The shared receive buffer. 2 MiB need 1.6-1.8 times less CPU on 256 KiB writes than 512 KiB (PERFORMANCE section 1);
the rest is for the headers, so that eight such writes fit and none is cut in two."""

LOGIN_RECEIVE_BYTES = BHS_SIZE + MAX_AHS_BYTES + DEFAULT_MAX_DATA_SEGMENT
"""What is read at once of a peer that has not logged in, and all that is kept of it: one PDU with 8 KiB of text."""

LONG_REST_BYTES = 32 * KIB
"""From so many missing bytes on, a PDU is received to its end in a buffer of the connection's own."""

CONTENDED_CREDIT = 256 * KIB
LONE_CREDIT = 2 * MIB

LOGIN_TIMEOUT_S = 15.0
LOGOUT_GRACE_S = 2.0
"""How long a graceful stop waits for initiators to log out."""

CLOSE_TIMEOUT_S = 5.0
"""How long the last bytes of a connection may take to leave."""

TICK_S = 10.0
"""Interval of the keep-alive check; ``Connection.tick`` counts these."""

UNPACED = b"reno"
"""The congestion control towards an initiator on the same machine: there is nothing between that could congest, and
one that paces what it sends (BBR) costs a timer for each piece. Every kernel has this one and lets anybody use it.
(Measured in turns on a host whose default is BBR, CPU per I/O: 256 KiB reads 0.89, 64 KiB reads 0.92, 4 KiB reads at
depth 32 0.98 and at depth 1 0.97; a busy machine.)"""

BACKLOG = 256
"""Connections that wait to be accepted, for each portal."""

MAX_CONNECTIONS = 4096
MAX_CONNECTIONS_PER_ADDRESS = 512
RESERVED_DESCRIPTORS = 256
"""Descriptors that connections never take: volume files, workers, the listening sockets."""


class IscsiServer:
    """An iSCSI target node listening on any number of portals.

    ``registry`` says which targets there are and who may use them; it may change at any time.
    """

    def __init__(self, registry: TargetRegistry, selector: DirectSelector | None = None) -> None:
        """``selector``: that of the event loop, if it has one that can serve sockets by itself."""
        self.registry = registry
        self.selector = selector
        self.table = SessionTable()
        self.arenas = ArenaPool()
        self.receive_buffer = memoryview(bytearray(RECEIVE_BYTES))
        self.last_served: _Shell | None = None
        self._shells: set[_Shell] = set()
        self._by_address: dict[str, int] = {}
        self._max_connections = MAX_CONNECTIONS
        self._listeners: list[asyncio.Server] = []
        self._ticker: asyncio.TimerHandle | None = None
        self._unsubscribe: Callable[[], None] = lambda: None
        self._stopping = False

    async def start(
        self, portals: Sequence[Address | socket.socket], portal_groups: Sequence[int] = ()
    ) -> list[Address]:
        """Accept on each (host, port), port 0 picks one, or on sockets that listen already. Returns their addresses.

        ``portal_groups``: the tag of each portal's group; when empty, all are in the default one.

        Raises OSError if one cannot be bound; then none is listened on.
        """
        self._max_connections = min(MAX_CONNECTIONS, _raise_descriptor_limit() - RESERVED_DESCRIPTORS)
        bound: list[Portal] = []
        try:
            for at, group in zip(portals, portal_groups or (DEFAULT_PORTAL_GROUP,) * len(portals), strict=True):
                listener = await self._listen(at, group)
                for sock in listener.sockets:
                    host, port = sock.getsockname()[:2]
                    bound.append(Portal(host, port, group))
        except OSError:
            await self.stop(graceful=False)
            raise
        self._unsubscribe = self.registry.subscribe(self._target_changed)
        self._tick()
        self.registry.portals += bound
        return [(portal.host, portal.port) for portal in bound]

    async def _listen(self, at: Address | socket.socket, group: int) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        if isinstance(at, socket.socket):
            listener = await loop.create_server(lambda: _Shell(self, group), sock=at, backlog=BACKLOG)
        else:
            listener = await loop.create_server(lambda: _Shell(self, group), *at, backlog=BACKLOG)
        self._listeners.append(listener)
        return listener

    async def stop(self, *, graceful: bool = True) -> None:
        """Listen no more and end every session. ``graceful``: ask the initiators to log out first, and wait a little.

        Returns when no command of any session touches a device any more.
        """
        self._stopping = True
        for listener in self._listeners:
            listener.close()
        if self._ticker is not None:
            self._ticker.cancel()
        self._unsubscribe()
        self.table.strangers.tick()
        shells = list(self._shells)
        if graceful and shells:
            for shell in shells:
                shell.request_logout()
            closed = [asyncio.ensure_future(shell.closed.wait()) for shell in shells if shell.is_logged_in]
            if closed:
                await asyncio.wait(closed, timeout=LOGOUT_GRACE_S)
            for waiter in closed:
                waiter.cancel()
        for shell in shells:
            shell.close()
        for shell in shells:
            await shell.closed.wait()
            await shell.settle()
        self._listeners.clear()

    async def dropped(self) -> None:
        """Return when no command of a session that lost its right to its target, or of a LUN that is no longer shown,
        touches a device any more."""
        for shell in [shell for shell in self._shells if shell.is_dropped]:
            await shell.closed.wait()
            await shell.settle()
        for session in self.table:
            shown = list(session.nexuses.values())
            await settle([task for task in session.running if task.nexus not in shown])

    async def quiesced(self, target: Target) -> None:
        """Return when no command that was running at ``target`` touches a device any more. It is paused."""
        for session in self.table:
            if session.target is target:
                await settle(list(session.running))

    def sessions(self, target: Target | None = None) -> list[SessionInfo]:
        """Everybody who is logged in, or at one target."""
        return [describe(session) for session in self.table if target in (None, session.target)]

    def admit(self, shell: _Shell, address: str) -> bool:
        """A connection was accepted: may it stay?"""
        held = self._by_address.get(address, 0)
        if self._stopping or len(self._shells) >= self._max_connections or held >= MAX_CONNECTIONS_PER_ADDRESS:
            refusal = "connection from %s refused: %d open, %d of them its own"
            self.table.strangers.write(logging.WARNING, refusal, address, len(self._shells), held)
            return False
        self._shells.add(shell)
        self._by_address[address] = held + 1
        return True

    def release(self, shell: _Shell, address: str) -> None:
        """A connection that was admitted is closed."""
        self._shells.discard(shell)
        if self.last_served is shell:
            self.last_served = None
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def _target_changed(self, target: Target, change: TargetChange) -> None:
        """The registry changed: sessions that lost their right end, the others learn of new LUNs."""
        for session in self.table:
            if session.target is not target:
                continue
            if change is TargetChange.REMOVED or not target.serves(session.initiator_name, session.portal_group):
                session.connection.expel()
            elif change is TargetChange.LUNS:
                session.connection.luns_changed()
            elif change is TargetChange.SERVICE:
                session.connection.service_changed()

    def _tick(self) -> None:
        self._ticker = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        self.table.strangers.tick()
        for shell in list(self._shells):
            shell.tick()


def _raise_descriptor_limit() -> int:
    """Take all descriptors the system grants; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class _Shell(asyncio.BufferedProtocol):
    """One TCP connection: carries bytes between the transport and ``Connection``, and runs what the core wants run.

    ``_rest`` is what was received and not served: an incomplete PDU, or with ``_has_backlog`` also complete ones; then
    the transport's reading is paused. While ``_long_end`` is set, ``_rest`` is empty and ``_long`` has the first
    ``_long_filled`` bytes of a PDU that ends there.
    """

    def __init__(self, server: IscsiServer, portal_group: int) -> None:
        self._server = server
        self._portal_group = portal_group
        self._loop = asyncio.get_running_loop()
        self._rest = _NOTHING
        self._has_backlog = False
        self._long = _NOTHING
        self._long_filled = 0
        self._long_end = 0
        self._fast: FastPath | None = None
        self._fd = -1
        """The socket, where a selector of ours serves it: then bytes need not go through the transport."""
        self._unsent = 0
        """Bytes that waited in the transport when last asked. All that waits there has come through ``_send``."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._login_timer: asyncio.TimerHandle | None = None
        self._is_admitted = False
        self._is_woken = False
        self.closed = asyncio.Event()

    @property
    def is_logged_in(self) -> bool:
        return self._connection.session is not None

    @property
    def is_dropped(self) -> bool:
        return self._connection.dropped

    # -- transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        local = transport.get_extra_info("sockname")
        self._address = peer[0] if peer else "?"
        self._connection = Connection(
            self._server.registry,
            self._server.table,
            local=Portal(local[0], local[1], self._portal_group),
            peer=(peer or ("?", 0))[:2],
            wake=self._wake,
        )
        self._answers = Answers(
            self._server.arenas, self._connection.dirty, self._send, self._transport.get_write_buffer_size
        )
        if not self._server.admit(self, self._address):
            self._transport.abort()
            return
        self._is_admitted = True
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if peer is not None and peer[0] == local[0]:
            with contextlib.suppress(OSError):  # the host's default will do
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, UNPACED)
        self._transport.set_write_buffer_limits(high=MAX_UNSENT_BYTES, low=MAX_UNSENT_BYTES // 4)
        self._login_timer = self._loop.call_later(LOGIN_TIMEOUT_S, self._login_timed_out)
        if self._server.selector is not None:
            self._fd = sock.fileno()
            self._server.selector.serve[self._fd] = self._receive

    def _receive(self) -> bool:
        """What the transport does when there is something to receive. False: let it; it knows ends and errors."""
        is_plain = bool(self._long_end or self._rest) or self._fast is None
        buffer = self.get_buffer(-1) if is_plain else self._server.receive_buffer
        try:
            received = os.readv(self._fd, (buffer,))
        except OSError:
            return False
        if not received:
            return False
        try:
            if is_plain:
                self.buffer_updated(received)
            else:
                self._serve(buffer, received)
        except Exception:
            self._abort_after_error()
        return True

    def _send(self, data: memoryview | bytes) -> int:
        """Send what the socket takes, and have the transport send the rest; returns how many bytes wait there."""
        if self._unsent:
            self._unsent = self._transport.get_write_buffer_size()
        if not self._unsent and self._fd >= 0:
            try:
                sent = os.write(self._fd, data)
            except OSError:
                sent = 0  # the transport meets it again: it waits, or knows that the connection has ended
            if sent == len(data):
                return 0
            data = data[sent:]
        self._transport.write(data)
        self._unsent = self._transport.get_write_buffer_size()
        return self._unsent

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._long_end:
            return self._long[self._long_filled : self._long_end]
        buffer = self._server.receive_buffer
        held = len(self._rest)
        if not held and self._fast is not None:
            return buffer
        buffer[:held] = self._rest
        return buffer[held : RECEIVE_BYTES if self.is_logged_in else LOGIN_RECEIVE_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        if self._long_end:
            self._connection.silent_ticks = 0
            self._long_filled += nbytes
            if self._long_filled == self._long_end:
                self._long_end = 0
                self._serve(self._long, self._long_filled, is_own=True)
            return
        held = len(self._rest)
        self._rest = _NOTHING
        self._serve(self._server.receive_buffer, held + nbytes)

    def pause_writing(self) -> None:
        self._answers.paused = True
        self._connection.may_start = False
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._answers.paused = False
        self._connection.resume()
        self._wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._login_timer is not None:
            self._login_timer.cancel()
        if self._server.selector is not None:
            self._server.selector.serve.pop(self._fd, None)
            self._fd = -1  # soon somebody else's
        if self._is_admitted:
            self._server.release(self, self._address)
        self._rest = _NOTHING
        self._fast = None
        self._connection.lost()
        self._follow_up()
        if exc is not None and self.is_logged_in:
            _log.info("connection from %s lost: %s", self._address, exc)
        self.closed.set()

    # -- passes

    def _serve(self, buffer: memoryview, end: int, *, is_own: bool = False) -> None:
        """Serve ``buffer[:end]``. ``is_own``: it is this connection's backlog, not the shared buffer."""
        connection = self._connection
        server = self._server
        credit = LONE_CREDIT if server.last_served is self else CONTENDED_CREDIT
        server.last_served = self
        connection.silent_ticks = 0
        position = 0
        more = False
        try:
            if self._fast is None:
                position = connection.receive(buffer, position, end)
                self._send_output()
                self._note_login()
            if self._fast is not None and not connection.closing:
                position = self._fast.serve(buffer, position, end, credit)
                more = self._fast.more
                if position == end and not self._fast.went_aside:
                    return
        except EngineError as error:
            # ``end_pass`` failed: what it was to journal is not acknowledged, so nothing more may be said here.
            _log.error("connection from %s dropped, its last answers unsent: %s", self._address, error)
            self._transport.abort()
            return
        if position < end or more or connection.is_waiting:
            self._keep(buffer[position:end], more or connection.is_waiting, is_own=is_own)
        self._follow_up()

    def _keep(self, rest: memoryview, has_backlog: bool, *, is_own: bool) -> None:
        """Keep what a pass has left: an incomplete PDU, or complete ones too; then nothing is read meanwhile."""
        if rest and not has_backlog and self._is_long(rest):
            self._receive_long(rest)
        else:
            self._rest = rest if is_own or not rest else memoryview(bytes(rest))
        if has_backlog:
            self._has_backlog = True
            self._transport.pause_reading()
            if not self._answers.paused and not self._connection.is_waiting:
                self._loop.call_soon(self._look_at_backlog)

    def _is_long(self, rest: memoryview) -> bool:
        return self.is_logged_in and self._connection.missing(rest) >= LONG_REST_BYTES

    def _receive_long(self, rest: memoryview) -> None:
        """Have the rest of an incomplete PDU received right behind its beginning."""
        if not self._long:
            self._long = memoryview(bytearray(self._connection.max_pdu_bytes))
        self._long[: len(rest)] = rest
        self._long_filled = len(rest)
        self._long_end = len(rest) + self._connection.missing(rest)

    def _serve_backlog(self) -> None:
        """Go on where a pass broke off, or read again if nothing is left."""
        if self._transport.is_closing() or self._answers.paused or self._connection.is_waiting:
            return
        if self._has_backlog:
            self._has_backlog = False
            rest, self._rest = self._rest, _NOTHING
            self._serve(rest, len(rest), is_own=True)
        if not self._has_backlog and not self._answers.paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def _note_login(self) -> None:
        connection = self._connection
        if connection.session is None or self._login_timer is None:
            return
        self._login_timer.cancel()
        self._login_timer = None
        if connection.session.target is not None:
            self._fast = FastPath(connection, connection.session, self._answers)

    def _send_output(self) -> None:
        output = self._connection.take_output()
        if output and not self._transport.is_closing():
            self._send(b"".join(output))

    def _wake(self) -> None:
        """Look soon, once for all commands that finish in this round of the loop: their answers leave in one send."""
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        """The core has something for us, outside of a pass."""
        self._is_woken = False
        if self.closed.is_set():
            return
        try:
            self._send_output()
            self._note_login()
            self._follow_up()
            self._serve_backlog()
        except Exception:
            self._abort_after_error()

    def _look_at_backlog(self) -> None:
        try:
            self._serve_backlog()
        except Exception:
            self._abort_after_error()

    def _abort_after_error(self) -> None:
        """Ours, not the peer's; without this the connection would stay, and never be served again."""
        _log.exception("connection from %s dropped: internal error", self._address)
        self._transport.abort()

    def _follow_up(self) -> None:
        """After a pass or a finished command: start what the core wants started, close if it is done."""
        if not self._answers.paused:
            self._connection.output_left()
        for work in self._connection.take_work():
            task = self._loop.create_task(self._run(work))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._connection.dropped:
            self._send_output()
            if self._transport.get_write_buffer_size():
                self._transport.abort()
            else:
                self._transport.close()
        elif self._connection.closing and not self._transport.is_closing():
            self._transport.close()
            # Closed when all is sent; a peer that takes nothing does not hold the connection for ever.
            self._loop.call_later(CLOSE_TIMEOUT_S, self._transport.abort)

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            # Ours, not the peer's. What it was to answer stays unanswered, so the initiator must find out at once.
            _log.exception("connection from %s dropped: internal error", self._address)
            self._connection.drop()
        self._wake()

    # -- the server's calls

    def tick(self) -> None:
        """Keep-alive and house-keeping, every ``TICK_S``."""
        try:
            if self._connection.silent_ticks and not self._long_end and not self._has_backlog:
                self._long = _NOTHING
            self._connection.tick()
            self._answers.reclaim()
            self._send_output()
            self._follow_up()
        except Exception:
            self._abort_after_error()

    def request_logout(self) -> None:
        self._connection.request_logout()
        self._send_output()

    def close(self) -> None:
        self._transport.abort()

    async def settle(self) -> None:
        """Return when all that was started for this connection is over."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _login_timed_out(self) -> None:
        self._server.table.strangers.write(
            logging.INFO, "connection from %s did not log in within %g s", self._address, LOGIN_TIMEOUT_S
        )
        self._transport.abort()
