"""Where peers connect: TLS in the loop for control and enrolment, in a thread each for bulk.

What somebody unknown can make this side hold: a descriptor, the buffers of one TLS handshake and one HELLO, for
``HANDSHAKE_S`` at most, ``MAX_STRANGERS`` times at most and ``MAX_STRANGERS_OF_A_HOST`` times from one address. Further
connections are closed at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from engine.errors import EngineError, PeerUnreachable, PermissionDenied
from engine.errors_json import error_to_json
from engine.files import ThreadWorkers
from engine.peers.bulk import BulkStream, tune
from engine.peers.bulk_target import BulkReceiver
from engine.peers.control import HANDSHAKE_S, FrameConnection
from engine.peers.frames import (
    HELLO_ONLY,
    PREAMBLE_BYTES,
    TO_TARGET,
    Frame,
    FrameError,
    FrameType,
    Kind,
    decode_json,
    encode_json,
    parse_preamble,
)
from engine.peers.identity import fingerprint_of
from engine.peers.serving import ControlSession, Keeper

if TYPE_CHECKING:
    import ssl

    from engine.files import StoreEnv
    from engine.peers.incoming import Incoming

log = logging.getLogger(__name__)

MAX_STRANGERS = 32
MAX_STRANGERS_OF_A_HOST = 8
MAX_BULK = 32
"""Bulk connections of all peers, each with a thread and 5 MiB."""

MAX_BULK_OF_A_PEER = 12
"""More than one makes; those that broke a moment ago may not be gone yet."""

COMPLAINTS, COMPLAINTS_S = 20, 10.0
BULK_WORKERS = 2
ACCEPT_PAUSE_S = 0.2
"""After the host refused to accept (no descriptor left)."""


class Gatekeeper(Keeper, Protocol):
    """Who is a peer. ``peer_with`` is also called from threads."""

    @property
    def context(self) -> ssl.SSLContext: ...
    def peer_with(self, fingerprint: str) -> str | None:
        """The name of the peer with that certificate."""
        ...

    async def greet(self, peer: str, fingerprint: str, hello: dict[str, Any]) -> dict[str, Any]:
        """A peer's HELLO at the beginning of a control connection; the answer to it. Raises EngineError."""
        ...

    async def enrol(self, hello: dict[str, Any], host: str) -> dict[str, Any]:
        """A stranger with an invitation. Raises PermissionDenied."""
        ...


class PeerServer:
    """See the module. Serves ``listener``, which it closes."""

    def __init__(self, listener: socket.socket, gate: Gatekeeper, incoming: Incoming, env: StoreEnv) -> None:
        self._listener = listener
        self._gate = gate
        self._incoming = incoming
        self._env = env
        self._workers = ThreadWorkers(BULK_WORKERS)
        self._task: asyncio.Task[None] | None = None
        self._strangers: dict[str, int] = {}
        self._complaints: deque[float] = deque()
        self._greeting: set[asyncio.Task[None]] = set()
        self._sessions: dict[str, ControlSession] = {}
        self._bulk: dict[socket.socket, str | None] = {}
        self._threads: set[threading.Thread] = set()
        self._threads_ended = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._accept(), name="peers")

    async def close(self) -> None:
        """End all connections; nothing of a peer touches a volume any more when it returns."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._listener.close()
        for task in self._greeting:
            task.cancel()
        if self._greeting:
            await asyncio.wait(self._greeting)
        for waker in self._bulk:
            _wake(waker)
        sessions = list(self._sessions.values())
        for session in sessions:
            session.close(PeerUnreachable("the daemon stops"))
        for session in sessions:
            await session.finished()
        while self._threads:
            self._threads_ended.clear()
            await self._threads_ended.wait()

    def is_connected(self, peer: str) -> bool:
        """Whether it has a control connection to us."""
        return peer in self._sessions

    def drop(self, peer: str, why: str) -> None:
        """End the connections of a peer."""
        session = self._sessions.pop(peer, None)
        if session is not None:
            session.close(PermissionDenied(why))
        for waker, name in list(self._bulk.items()):
            if name == peer:
                _wake(waker)

    # --- strangers -------------------------------------------------------------------------------------------------

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(self._listener)
            except OSError as error:
                log.warning("accepting a peer: %s", error)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            host = str(address[0])
            of_host = self._strangers.get(host, 0)
            if of_host >= MAX_STRANGERS_OF_A_HOST or sum(self._strangers.values()) >= MAX_STRANGERS:
                self._complain("too many connections from %s that have not said who they are; one was closed", host)
                sock.close()
                continue
            self._strangers[host] = of_host + 1
            task = loop.create_task(self._greet(sock, host))
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    def _complain(self, text: str, *facts: object) -> None:
        """Log what a stranger does: at most ``COMPLAINTS`` lines in ``COMPLAINTS_S``, whoever does how much of it."""
        now = asyncio.get_running_loop().time()
        while self._complaints and self._complaints[0] <= now - COMPLAINTS_S:
            self._complaints.popleft()
        if len(self._complaints) < COMPLAINTS:
            self._complaints.append(now)
            log.warning(text, *facts)

    def _known(self, host: str) -> None:
        left = self._strangers[host] - 1
        if left:
            self._strangers[host] = left
        else:
            del self._strangers[host]

    async def _greet(self, sock: socket.socket, host: str) -> None:
        with contextlib.ExitStack() as ending:
            ending.callback(sock.close)
            known = ending.enter_context(contextlib.ExitStack())
            known.callback(self._known, host)
            try:
                async with asyncio.timeout(HANDSHAKE_S):
                    kind = parse_preamble(await _exactly(sock, PREAMBLE_BYTES))
                    if kind is Kind.BULK:
                        self._start_bulk(sock, host)
                        known.pop_all()  # the thread says so
                    else:
                        await self._greet_control(sock, host, kind)
                ending.pop_all()  # the socket is somebody's
            except TimeoutError:
                self._complain("somebody at %s did not say who they are in time", host)
            except (EngineError, OSError) as error:
                self._complain("a connection from %s was refused: %s", host, error)
            except Exception:
                log.exception("a connection from %s failed by a mistake in twinvol", host)
            known.close()

    async def _greet_control(self, sock: socket.socket, host: str, kind: Kind) -> None:
        loop = asyncio.get_running_loop()
        first: asyncio.Future[Frame] = loop.create_future()
        session: ControlSession | None = None

        def take(frame: Frame) -> None:
            if not first.done():
                connection.allow(frozenset())  # nothing may follow before the answer
                first.set_result(frame)
            elif session is not None:
                session.take(frame)

        def ended(why: asyncio.Future[EngineError]) -> None:
            if not first.done():
                first.set_exception(why.result())
                first.exception()

        connection = FrameConnection(HELLO_ONLY, take)
        connection.ended.add_done_callback(ended)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(
                lambda: connection, sock, ssl=self._gate.context, ssl_handshake_timeout=HANDSHAKE_S
            )
            certificate = connection.certificate()
            hello = decode_json((await first).payload)
            if kind is Kind.ENROL:
                await self._enrol(connection, hello, host)
                return
            fingerprint = fingerprint_of(certificate or b"")
            peer = self._gate.peer_with(fingerprint)
            if peer is None:
                raise PermissionDenied("it showed no certificate of a peer")
            answer = await self._gate.greet(peer, fingerprint, hello)
            if self._gate.peer_with(fingerprint) != peer:
                raise PermissionDenied("it was removed meanwhile")
        except BaseException:
            connection.abort(PeerUnreachable("refused"))
            raise
        session = ControlSession(connection, peer, self._incoming, self._env, self._gate)
        older = self._sessions.get(peer)
        if older is not None:
            older.close(PeerUnreachable("the peer has made a new connection"))
        self._sessions[peer] = session
        connection.ended.add_done_callback(lambda why: self._ended(peer, session, why.result()))
        connection.allow(TO_TARGET)
        connection.send(FrameType.HELLO, 0, encode_json(answer))
        log.info("peer %s: connected from %s", peer, host)

    async def _enrol(self, connection: FrameConnection, hello: dict[str, Any], host: str) -> None:
        try:
            answer = await self._gate.enrol(hello, host)
        except EngineError as error:
            self._complain("an enrolment from %s was refused: %s", host, error)
            answer = {"error": error_to_json(error)}
        connection.send(FrameType.HELLO, 0, encode_json(answer))
        connection.close()

    def _ended(self, peer: str, session: ControlSession, why: EngineError) -> None:
        log.info("peer %s: its connection ended: %s", peer, why)
        if self._sessions.get(peer) is session:
            del self._sessions[peer]

    # --- bulk ------------------------------------------------------------------------------------------------------

    def _start_bulk(self, sock: socket.socket, host: str) -> None:
        """Hand the socket to a thread, which says when it is no stranger's any more."""
        sock.setblocking(True)
        loop = asyncio.get_running_loop()
        waker = sock.dup()
        self._bulk[waker] = None

        def ended() -> None:
            self._bulk.pop(waker, None)
            waker.close()
            self._threads.discard(thread)
            self._threads_ended.set()

        def run() -> None:
            with contextlib.ExitStack() as stranger:
                stranger.callback(loop.call_soon_threadsafe, self._known, host)
                try:
                    self._serve_bulk(sock, waker, host, loop, stranger)
                finally:
                    loop.call_soon_threadsafe(ended)

        thread = threading.Thread(target=run, name="peer-bulk", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _serve_bulk(
        self,
        sock: socket.socket,
        waker: socket.socket,
        host: str,
        loop: asyncio.AbstractEventLoop,
        stranger: contextlib.ExitStack,
    ) -> None:
        """A bulk connection from its TLS handshake to its end: in its thread. ``stranger`` ends when it is known."""
        peer: str | None = None
        with contextlib.ExitStack() as ending:
            ending.callback(sock.close)
            try:
                sock.settimeout(HANDSHAKE_S)  # of the whole handshake, however it comes
                tune(sock)
                tls = self._gate.context.wrap_socket(sock, server_side=True)
                ending.callback(tls.close)
                fingerprint = fingerprint_of(tls.getpeercert(binary_form=True) or b"")
                peer = self._gate.peer_with(fingerprint)
                if peer is None:
                    raise PermissionDenied("it showed no certificate of a peer")
                names = list(self._bulk.values())
                if len(names) - names.count(None) >= MAX_BULK or names.count(peer) >= MAX_BULK_OF_A_PEER:
                    raise PermissionDenied("there are too many bulk connections already")
                self._bulk[waker] = peer
                if self._gate.peer_with(fingerprint) != peer:  # who is removed from here on is found by ``drop``
                    raise PermissionDenied("it was removed meanwhile")
                stranger.close()
                stream = BulkStream(tls)
                ending.callback(stream.close)
                _, _, length = stream.read_header(HELLO_ONLY, idle_s=HANDSHAKE_S)
                stream.read(length)
                stream.send(FrameType.HELLO, 0, encode_json({}))
                BulkReceiver(stream, peer, self._incoming, self._workers, loop).run()
            except PeerUnreachable:
                log.debug("a bulk connection of peer %s ended", peer)
            except (EngineError, OSError) as error:
                loop.call_soon_threadsafe(self._complain, "a bulk connection of %s ended: %s", peer or host, error)
            except Exception:
                log.exception("a bulk connection of %s failed by a mistake in twinvol", peer or host)


async def _exactly(sock: socket.socket, size: int) -> bytes:
    """Raises FrameError: it ended before."""
    data = b""
    while len(data) < size:
        more = await asyncio.get_running_loop().sock_recv(sock, size - len(data))
        if not more:
            raise FrameError("it ended before it said what it is for")
        data += more
    return data


def _wake(waker: socket.socket) -> None:
    with contextlib.suppress(OSError):
        waker.shutdown(socket.SHUT_RDWR)
