"""The source's side of a peer: one control connection that is kept, and bulk connections as copies need them.

The control connection is made again whenever it is gone, with growing pauses and for ever; nothing that a mirror has
done is dropped for a peer that is away. Whoever asks while there is none gets ``PeerUnreachable`` with the reason. What
is under way when it breaks gets the same: what became of it is not known, and the next ``connect`` finds out.

Bulk connections belong to the peer, not to a mirror; a mirror uses at most two at a time of the eight there may be, so
a target that is slow for one leaves the way free for others.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from engine.errors import EngineError, PeerUnreachable, PermissionDenied
from engine.peers.bulk import unreachable
from engine.peers.bulk_source import BulkSender
from engine.peers.control import HANDSHAKE_S, FrameConnection
from engine.peers.frames import (
    HELLO_ONLY,
    TO_SOURCE,
    Frame,
    FrameError,
    FrameType,
    Kind,
    decode_json,
    encode_json,
    failure_of,
    preamble,
)
from engine.peers.identity import fingerprint_of, same
from engine.peers.rate import TokenBucket
from engine.peers.writes import decode_ack, decode_lease

if TYPE_CHECKING:
    import uuid
    from collections.abc import AsyncIterator, Callable

    from engine.links import Ack

T = TypeVar("T")

log = logging.getLogger(__name__)

PING_S, SILENCE_S = 5.0, 15.0
"""How often a quiet peer is asked whether it is there, and after how long without a word it is taken for gone."""

BACKOFF_S, BACKOFF_MAX_S = 0.2, 15.0
BULK_MAX = 8
BULK_PER_MIRROR = 2
BULK_KEEP_S = 30.0
"""An idle bulk connection is used again within this time; its other side closes it later than that."""


class PeerSettings(Protocol):
    """What a client needs to know of its peer at each attempt."""

    @property
    def name(self) -> str: ...
    @property
    def address(self) -> tuple[str, int]:
        """Raises PeerUnreachable: none is known."""
        ...

    @property
    def context(self) -> ssl.SSLContext: ...
    @property
    def pinned(self) -> list[str]:
        """Fingerprints, one of which the peer has."""
        ...

    def hello(self) -> dict[str, Any]:
        """What is told at the beginning of a control connection."""
        ...

    async def greeted(self, fingerprint: str, hello: dict[str, Any]) -> str | None:
        """The peer's answer to that, and the certificate that it showed. Returns the fingerprint of its next one, if
        it is to hear that we have that. Raises EngineError: the connection is of no use."""
        ...


class PeerClient:
    """See the module. ``connected``: called each time that there is a new control connection."""

    def __init__(self, settings: PeerSettings, connected: Callable[[], None]) -> None:
        self._settings = settings
        self._told = connected
        self._connection: FrameConnection | None = None
        self._why = "not connected yet"
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._numbers = itertools.count(1)
        self._task: asyncio.Task[None] | None = None
        self._again = asyncio.Event()
        self._tried = asyncio.Event()  # once: the first attempt to connect has ended, somehow
        self._bulk_idle: list[tuple[float, BulkSender]] = []
        self._bulk_used: set[BulkSender] = set()
        self._bulk_places = asyncio.Semaphore(BULK_MAX)
        self._threads = ThreadPoolExecutor(BULK_MAX, thread_name_prefix=f"peer-{settings.name}")
        self._pacing = threading.Lock()
        self.bucket = TokenBucket()
        self.sent_bytes = 0
        self.lessors: dict[uuid.UUID, Callable[[int], bool]] = {}
        """By replica: whether a target that asks for the lease over that connection of the mirror gets it."""

    # --- the control connection --------------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    @property
    def session(self) -> object | None:
        """Another object for each control connection; None: there is none."""
        return self._connection

    @property
    def why(self) -> str:
        """Why there is no connection."""
        return self._why

    def start(self, after_s: float = 0.0) -> None:
        """Connect, not before ``after_s``, and keep it so until ``close``."""
        self._task = asyncio.get_running_loop().create_task(self._keep(after_s), name=f"peer {self._settings.name}")

    async def close(self) -> None:
        """End everything; those who wait get PeerUnreachable."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._tried.set()
        self._lost(PeerUnreachable(f"peer {self._settings.name}: the connection was closed"))
        for bulk in [*self._bulk_used, *(each for _, each in self._bulk_idle)]:
            bulk.stream.wake()
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        for _, bulk in self._bulk_idle:
            bulk.stream.close()
        self._bulk_idle.clear()

    def reconnect(self) -> None:
        """Something about the peer has changed: begin a new connection now."""
        if self._connection is not None:
            self._connection.close(PeerUnreachable("a new connection is made"))
        self._drop_idle()
        self._again.set()

    async def request(self, op: str, **fields: Any) -> dict[str, Any]:
        """Ask the peer and return its answer, once the first attempt to connect to it has ended, which takes
        ``HANDSHAKE_S`` at most from when it is made. Raises what it answers, and PeerUnreachable."""
        if self._task is not None:
            await self._tried.wait()
        frame = await self._ask(FrameType.REQUEST, encode_json({"op": op, **fields}))
        if frame.type is not FrameType.ANSWER:
            raise self._misfit(frame)
        return decode_json(frame.payload)

    async def read(self, **fields: Any) -> bytes:
        """A request that is answered with bytes of a volume behind their digests."""
        frame = await self._ask(FrameType.REQUEST, encode_json({"op": "read", **fields}))
        if frame.type is not FrameType.DATA:
            raise self._misfit(frame)
        return frame.payload

    async def write(self, kind: FrameType, payload: bytes) -> Ack:
        """Send an APPLY or ORDERED frame; its acknowledgement."""
        frame = await self._ask(kind, payload)
        if frame.type is not FrameType.ACK:
            raise self._misfit(frame)
        return decode_ack(frame.payload)

    def tell(self, op: str, **fields: Any) -> None:
        """Ask without waiting; nobody hears of the answer. Without a connection nothing is sent."""
        if self._connection is not None:
            self._connection.send(FrameType.REQUEST, next(self._numbers), encode_json({"op": op, **fields}))

    async def ping(self) -> float:
        """Seconds that the peer took to answer."""
        started = time.monotonic()
        await self.request("ping")
        return time.monotonic() - started

    async def _ask(self, kind: FrameType, payload: bytes) -> Frame:
        # Up to the future there is no await: who asks first is sent first.
        connection = self._connection
        if connection is None:
            raise PeerUnreachable(f"peer {self._settings.name} is not connected: {self._why}")
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self.sent_bytes += len(payload)
        connection.send(kind, number, payload)
        try:
            frame: Frame = await future
        finally:
            self._waiting.pop(number, None)
        if frame.type is FrameType.FAILURE:
            raise failure_of(decode_json(frame.payload))
        return frame

    def _misfit(self, frame: Frame) -> FrameError:
        error = FrameError(f"peer {self._settings.name} answered with {frame.type.name}")
        if self._connection is not None:
            self._connection.close(error)
        return error

    def _take(self, frame: Frame) -> None:
        if frame.type is FrameType.LEASE:
            self._grant(frame)
            return
        future = self._waiting.get(frame.request)
        if future is not None and not future.done():
            future.set_result(frame)

    def _grant(self, frame: Frame) -> None:
        """Answer a target that asks for a lease, in the step in which it counts from; silence is a refusal."""
        replica, connection, _ = decode_lease(frame.payload)
        lessor = self.lessors.get(replica)
        if lessor is not None and self._connection is not None and lessor(connection):
            self._connection.send(FrameType.GRANT, 0, frame.payload)

    async def _keep(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        pause = BACKOFF_S
        while True:
            self._again.clear()
            try:
                connection = await self._connect()
            except (EngineError, OSError) as error:
                reason = f"no TLS: {error.reason or error}" if isinstance(error, ssl.SSLError) else str(error)
                if reason != self._why:
                    log.warning("peer %s: %s", self._settings.name, reason)
                self._why = reason
            except Exception:
                log.exception("connecting to peer %s failed by a mistake in twinvol", self._settings.name)
            else:
                if self._again.is_set():  # what it was made with has changed meanwhile
                    connection.abort(PeerUnreachable("a new connection is made"))
                    continue
                log.info("peer %s: connected", self._settings.name)
                pause = BACKOFF_S
                self._connection = connection
                self._tried.set()
                self._told()
                self._lost(await self._watch(connection))
            self._tried.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._again.wait()
            pause = min(pause * 2, BACKOFF_MAX_S)

    async def _connect(self) -> FrameConnection:
        """Raises EngineError, OSError."""
        loop, settings = asyncio.get_running_loop(), self._settings
        first: asyncio.Future[Frame] = loop.create_future()

        def take(frame: Frame) -> None:
            if first.done():
                self._take(frame)
            else:
                connection.allow(TO_SOURCE)
                first.set_result(frame)

        def ended(why: asyncio.Future[EngineError]) -> None:
            if not first.done():
                first.set_exception(why.result())
                first.exception()  # somebody waits for it, or has given up

        connection = FrameConnection(HELLO_ONLY, take)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await open_tls(connection, settings.address, Kind.CONTROL, settings.context)
                certificate = connection.certificate() or b""
                if not any(same(fingerprint_of(certificate), each) for each in settings.pinned):
                    raise PermissionDenied("the peer has another certificate than the one that is pinned")
                connection.send(FrameType.HELLO, 0, encode_json(settings.hello()))
                connection.ended.add_done_callback(ended)
                coming = await settings.greeted(fingerprint_of(certificate), decode_json((await first).payload))
                if coming is not None:
                    knows = encode_json({"op": "knows", "fingerprint": coming})
                    connection.send(FrameType.REQUEST, next(self._numbers), knows)
        except TimeoutError:
            connection.abort(PeerUnreachable("no answer"))
            raise PeerUnreachable(f"no answer within {HANDSHAKE_S:g} s") from None
        except BaseException:
            connection.abort(PeerUnreachable("given up"))
            raise
        return connection

    async def _watch(self, connection: FrameConnection) -> EngineError:
        """Until the connection is no more: keep it alive. Returns why it ended."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.wait([connection.ended], timeout=PING_S)
            if connection.ended.done():
                return connection.ended.result()
            quiet = loop.time() - connection.heard_at
            if quiet > SILENCE_S:
                connection.abort(PeerUnreachable(f"the peer has not answered for {quiet:.0f} s"))
            elif quiet > PING_S / 2:
                connection.send(FrameType.PING, next(self._numbers))

    def _lost(self, why: EngineError) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            log.warning("peer %s: %s", self._settings.name, why)
            self._why = str(why)
            connection.abort(why)
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(PeerUnreachable(f"peer {self._settings.name}: {why}"))
                future.exception()  # somebody waits for it, or has been cancelled
        self._drop_idle()

    # --- bulk connections --------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def bulk(self) -> AsyncIterator[BulkSender]:
        """A bulk connection for one strip. Whoever raises anything but what the peer answered has broken it."""
        async with self._bulk_places:
            sender = self._idle_bulk() or await self._open_bulk()
            self._bulk_used.add(sender)
            try:
                yield sender
            except (PeerUnreachable, FrameError, asyncio.CancelledError):
                sender.stream.close()
                raise
            except EngineError:
                self._bulk_idle.append((time.monotonic(), sender))
                raise
            except BaseException:
                sender.stream.close()
                raise
            else:
                self._bulk_idle.append((time.monotonic(), sender))
            finally:
                self._bulk_used.discard(sender)

    async def in_thread(self, call: Callable[[], T], wake: Callable[[], None]) -> T:
        """Run ``call`` in a thread of this peer's. Cancelled, it is woken, and has ended on return."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, call)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            wake()
            while not running.done():  # however often it is cancelled: the thread reads from the caller's places
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            if not running.cancelled():
                running.exception()
            raise

    def pace(self, size: int, *buckets: TokenBucket) -> None:
        """Wait, in a thread, until so many bytes may be sent."""
        with self._pacing:
            self.sent_bytes += size
            now = time.monotonic()
            wait = max(bucket.take(size, now) for bucket in (self.bucket, *buckets))
        if wait > 0:
            time.sleep(min(wait, SILENCE_S))

    def _idle_bulk(self) -> BulkSender | None:
        while self._bulk_idle:
            since, sender = self._bulk_idle.pop()
            if time.monotonic() - since < BULK_KEEP_S:
                return sender
            sender.stream.close()
        return None

    def _drop_idle(self) -> None:
        while self._bulk_idle:
            self._bulk_idle.pop()[1].stream.close()

    async def _open_bulk(self) -> BulkSender:
        settings = self._settings
        address, context, pinned = settings.address, settings.context, settings.pinned
        made: list[BulkSender] = []

        def wake() -> None:
            for sender in made:
                sender.stream.wake()

        try:
            return await self.in_thread(lambda: BulkSender.open(address, context, pinned, made.append), wake)
        except asyncio.CancelledError:
            for sender in made:  # it may have been ready when it was not wanted any more
                sender.stream.close()
            raise


async def open_tls(connection: FrameConnection, address: tuple[str, int], kind: Kind, context: ssl.SSLContext) -> None:
    """Connect, say what for, and shake hands. Raises PeerUnreachable, ssl.SSLError."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(*address, type=socket.SOCK_STREAM)
        family, socktype, protocol, _, target = found[0]
        sock = socket.socket(family, socktype | socket.SOCK_NONBLOCK, protocol)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, target)
            await loop.sock_sendall(sock, preamble(kind))
            await loop.create_connection(lambda: connection, sock=sock, ssl=context, server_hostname="")
        except BaseException:
            sock.close()
            raise
    except ssl.SSLError:
        raise
    except OSError as error:
        raise unreachable(error) from error
