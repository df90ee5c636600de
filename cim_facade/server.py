"""The CIM-XML listener (DSP0200 7): HTTP in front of the ``Facade``.

Everything is refused as early as it can be: a connection beyond the limits at once, before its TLS handshake (when all
are taken, one on which nobody has proven who he is gives way, of the place that has most of those); one that sends no
request within ``FIRST_REQUEST_S``, or leaves answers unread for ``SEND_S``; a request whose user is not known before
its body is read; a body that is too long or too slow; a document that is no request, with status 400 and the header
CIMError; and what the operation says, with status 200 and an ERROR. Before authentication a client makes this process
hold its headers and what its socket's reader has taken in, some 128 KiB.

A request of more than ``BIG_REQUEST_BYTES`` is read in a thread, its parameters, too; an answer longer than
``BUFFERED_BYTES`` is sent in chunks as it is made. If the engine then fails in the middle, the connection ends without
the last chunk: the client knows that it has not got all.

Without TLS only the machine itself is served, as administrator without a password, by explicit choice. So that no web
page in a browser there can do it, a request must call this machine by a loopback name and carry CIM's own headers.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import ipaddress
import logging
import math
import re
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web
from pywbem import CIM_ERR_FAILED, CIM_ERR_INVALID_PARAMETER, CIMClassName, CIMError

from cim_facade import answers, cimxml
from cim_facade.auth import LockedOut, Login, Overloaded, Users, parse_basic
from cim_facade.cimxml import RequestError
from cim_facade.context import User
from cim_facade.errors import cim_error
from cim_facade.guesses import place_of
from engine.errors import EngineError

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import AsyncGenerator, Coroutine, Iterator

    from cim_facade.cimxml import Request
    from cim_facade.dispatch import Facade

log = logging.getLogger(__name__)
_http_log = logging.getLogger(f"{__name__}.http")

MAX_CONNECTIONS = 256
MAX_CONNECTIONS_PER_ADDRESS = 64
MAX_REQUESTS, MAX_REQUESTS_OF_USER = 32, 16
"""Authenticated requests under way; the others are told to come again."""

MAX_BIG, MAX_BIG_OF_USER = 8, 4
"""Those of them that are longer than ``BIG_REQUEST_BYTES``: a tree of elements takes 24 MiB at most."""

HELD_S = 1.0
"""Who has guessed too often, or comes when too many wait, hears so only then: his connections are his rate."""

FIRST_REQUEST_S = 20.0
KEEP_ALIVE_S = 75.0
BODY_S = 20.0
SEND_S = 60.0
"""How long a client may leave answers unread, any and all of them, before its connection ends."""

ACCEPT_AGAIN_S = 1.0
"""After a connection could not be taken: for want of descriptors, mostly."""

STOP_S = 2.0
"""What requests under way have to end."""

TLS_HANDSHAKE_S = 20.0
BIG_REQUEST_BYTES = 8 << 10
"""Two thousand elements, the most that it can have, take 10 ms; a client's request has 1 to 3 KiB."""

BUFFERED_BYTES = 256 << 10
CHUNK_BYTES = 64 << 10
MAX_HEADER_BYTES = 4096
MAX_HEADERS = 24
READ_BYTES = 16 << 10

_HOST = re.compile(r"[A-Za-z0-9._-]{1,255}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?", re.ASCII)
_MAN = re.compile(r'\s*"?http://www\.dmtf\.org/cim/mapping/http/v1\.[01]"?\s*;\s*ns\s*=\s*(\d{2})\s*', re.ASCII)

Tls = Callable[[], Awaitable["ssl.SSLContext"]]
"""What the next connection is served with. It does not fail."""

CIM_TYPES = ("application/xml", "text/xml")


def _in_one_line(record: logging.LogRecord) -> bool:
    """What strangers send that is no HTTP is no error of this server: no traceback."""
    if record.exc_info:
        record.msg, record.args = "%s: %s", (record.getMessage(), record.exc_info[1])
        record.exc_info = None
    record.levelno, record.levelname = logging.INFO, "INFO"
    return True


_http_log.addFilter(_in_one_line)


class Refused(Exception):
    """The request ends with this HTTP answer."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class CimServer:
    """See the module. ``unavailable``: what calls raise while the engine cannot be reached; answered with 503."""

    def __init__(self, facade: Facade, users: Users, unavailable: type[Exception]) -> None:
        self._facade = facade
        self._users = users
        self._unavailable = unavailable
        self._connections = 0
        self._places: dict[str, int] = {}
        self._unproven: dict[str, dict[_Connection, None]] = {}  # by place, oldest first
        self._all = _UnderWay(MAX_REQUESTS, MAX_REQUESTS_OF_USER)
        self._big = _UnderWay(MAX_BIG, MAX_BIG_OF_USER)
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()  # that accept, and handshakes under way
        self._protocols: list[web.Server] = []

    async def start(self, listener: socket.socket, tls: Tls | None) -> None:
        """Accept on a listening socket. ``tls``: asked for each connection; without it whoever comes is an
        administrator."""
        protocol = web.Server(self._handler_of(secure=tls is not None))
        listener.setblocking(False)
        listener.listen()
        self._protocols.append(protocol)
        self._listeners.append(listener)
        self._own(self._accept(listener, protocol, tls))

    async def close(self) -> None:
        """Accept no more, end what is under way, close all enumerations."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for listener in self._listeners:
            listener.close()
        await asyncio.sleep(0)  # what has come in is begun
        for protocol in self._protocols:
            protocol.pre_shutdown()  # ends idle connections
            await protocol.shutdown(timeout=STOP_S)
        await self._facade.enumerations.close_all()
        self._facade.aside.close()

    # --- connections

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listener: socket.socket, protocol: web.Server, tls: Tls | None) -> None:
        """Take connections for ever. They are counted from here on, so that handshakes are no way around the limits.

        An address counts as the place that it is in: a host has 2**64 of IPv6.
        """
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0)  # sock_accept does not wait while connections queue: nothing else would run
            try:
                taken, peer = await loop.sock_accept(listener)
            except OSError as error:
                log.error("no connection can be taken: %s", error)
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            address = str(peer[0])
            place = place_of(address)
            there = self._places.get(place, 0)
            full = self._connections >= MAX_CONNECTIONS
            if there >= MAX_CONNECTIONS_PER_ADDRESS or (full and not self._make_room(place)):
                taken.close()
                continue
            self._connections += 1
            self._places[place] = there + 1
            connection = _Connection(protocol, Login(address), self._ended)
            self._unproven.setdefault(place, {})[connection] = None
            connection.beginning = self._own(self._begin(taken, connection, tls))
            connection.beginning.add_done_callback(functools.partial(_let_go, taken, connection))

    def _make_room(self, newcomer: str) -> bool:
        """End the oldest connection of the place that has most of those on which nobody has proven who he is."""
        greediest = max(self._unproven, key=lambda each: len(self._unproven[each]), default=newcomer)
        if len(self._unproven.get(greediest, ())) <= len(self._unproven.get(newcomer, ())):
            return False
        oldest = next(iter(self._unproven[greediest]))
        self._has_proven(oldest)  # it is over a little later: the next one to come is not told that it makes room
        oldest.abort()
        return True

    async def _begin(self, taken: socket.socket, connection: _Connection, tls: Tls | None) -> None:
        handshake = None if tls is None else TLS_HANDSHAKE_S
        loop = asyncio.get_running_loop()
        try:
            context = None if tls is None else await tls()
            await loop.connect_accepted_socket(lambda: connection, taken, ssl=context, ssl_handshake_timeout=handshake)
        except OSError as error:  # of TLS and time, too
            log.info("a connection was not begun: %s", error)

    def _ended(self, connection: _Connection) -> None:
        place = place_of(connection.login.address)
        self._connections -= 1
        self._places[place] -= 1
        if not self._places[place]:
            del self._places[place]
        self._has_proven(connection)

    def _has_proven(self, connection: _Connection) -> None:
        """Whose it is, or that it is over."""
        place = place_of(connection.login.address)
        of_place = self._unproven.get(place, {})
        of_place.pop(connection, None)
        if not of_place:
            self._unproven.pop(place, None)

    # --- requests

    def _handler_of(self, *, secure: bool) -> Callable[[web.BaseRequest], Any]:
        async def handler(request: web.BaseRequest) -> web.StreamResponse:
            assert isinstance(request.protocol, _Connection)
            request.protocol.has_asked()
            try:
                return await self._serve(request, secure)
            except Refused as refusal:
                return _plain(request, refusal.status, str(refusal), refusal.headers)
            except self._unavailable as error:
                return _plain(request, 503, str(error), {"Retry-After": "1"})

        return handler

    async def _serve(self, request: web.BaseRequest, secure: bool) -> web.StreamResponse:
        headers = _cim_headers(request)
        user = await self._authenticated(request, secure)
        if headers.get("CIMOperation", "").lower() != "methodcall":
            raise Refused(
                400, "a CIM request has the header CIMOperation: MethodCall", CIMError="unsupported-operation"
            )
        if request.content_type not in CIM_TYPES:
            raise Refused(415, "a CIM request has the Content-Type application/xml")
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refused(415, "no Content-Encoding is understood")
        with self._all.one_of(user.name):
            body = await _body(request)
            big = self._big.one_of(user.name) if len(body) > BIG_REQUEST_BYTES else contextlib.nullcontext()
            with big:
                return await self._answer(request, headers, body, user)

    async def _authenticated(self, request: web.BaseRequest, secure: bool) -> User:
        assert isinstance(request.protocol, _Connection)
        if not secure:
            if not _is_loopback(request.host):
                raise Refused(403, "without TLS this server answers to loopback names only")
            self._has_proven(request.protocol)
            return User("", administrator=True, secure=True, login=request.protocol.login)
        given = parse_basic(request.headers.get("Authorization", ""))
        if given is None:
            raise Refused(401, "send a user and a password", WWW_Authenticate='Basic realm="twinvol"')
        name, password = given
        try:
            role = await self._users.role(name, password, request.protocol.login)
        except LockedOut as error:
            await asyncio.sleep(HELD_S)
            raise Refused(429, str(error), Retry_After=f"{math.ceil(error.seconds)}") from None
        except Overloaded:
            await asyncio.sleep(HELD_S)
            raise Refused(503, "too many logins at once", Retry_After="1") from None
        except EngineError as error:
            log.error("nobody can log in: %s", error)
            raise Refused(503, "the users' file is not usable; see the log") from None
        if role is None:
            log.warning("wrong user or password from %s", request.remote)
            raise Refused(401, "wrong user or password", WWW_Authenticate='Basic realm="twinvol"')
        self._has_proven(request.protocol)
        return User(name, administrator=role == "admin", secure=True, login=request.protocol.login)

    async def _answer(
        self, request: web.BaseRequest, headers: dict[str, str], body: bytes, user: User
    ) -> web.StreamResponse:
        try:
            if len(body) > BIG_REQUEST_BYTES:
                asked = await self._facade.aside.read(cimxml.parse, body)
                asked.big = True
            else:
                asked = cimxml.parse(body)
            _check_headers(headers, asked)
        except RequestError as error:
            raise Refused(400, str(error), CIMError=error.kind) from None
        except CIMError as error:
            raise Refused(400, str(error), CIMError="request-not-valid") from None
        begin = answers.begin(asked.message_id, asked.name, extrinsic=asked.extrinsic)
        end = answers.end(extrinsic=asked.extrinsic)
        pieces = self._facade.answer(asked, user, _host(request))
        ready = begin
        async with contextlib.aclosing(pieces):
            try:
                async for piece in pieces:
                    ready += piece
                    if len(ready) > BUFFERED_BYTES:
                        break
                else:
                    return _document(request, ready + end)
            except self._unavailable:
                raise
            except Exception as error:
                return _document(request, begin + answers.error(_cim_error(error, asked)) + end)
            return await self._streamed(request, ready, pieces, end)

    async def _streamed(
        self, request: web.BaseRequest, ready: str, rest: AsyncGenerator[str, None], end: str
    ) -> web.StreamResponse:
        """Send what is ``ready``, and the ``rest`` as it is made."""
        response = web.StreamResponse(headers=_answer_headers(request))
        await response.prepare(request)
        try:
            async for piece in rest:
                ready += piece
                if len(ready) > CHUNK_BYTES:
                    await response.write(ready.encode())
                    ready = ""
            await response.write((ready + end).encode())
            await response.write_eof()
        except ConnectionError:
            log.info("a client did not take its answer")
        except Exception:
            log.exception("an answer ends in its middle")
            _abort(request)
        return response


class _UnderWay:
    """How many requests there are, of all users and of each."""

    def __init__(self, most: int, most_of_user: int) -> None:
        self._most, self._most_of_user = most, most_of_user
        self._of: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def one_of(self, user: str) -> Iterator[None]:
        """One more while the block runs. Raises Refused."""
        if self._of.total() >= self._most or self._of[user] >= self._most_of_user:
            raise Refused(503, "too many requests are under way", Retry_After="1")
        self._of[user] += 1
        try:
            yield
        finally:
            self._of[user] -= 1
            if not self._of[user]:
                del self._of[user]


class _Connection(web.RequestHandler):
    """aiohttp's connection, with limits to how long a client may keep it without a request, or without reading.

    ``login``: what it has proven. ``beginning``: the task that begins it. ``ended`` is called once, when it is over.
    """

    __slots__ = ("_ended", "_silence", "_unread", "beginning", "login")

    def __init__(self, manager: web.Server, login: Login, ended: Callable[[_Connection], None]) -> None:
        super().__init__(
            manager,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEP_ALIVE_S,
            access_log=None,  # type: ignore[arg-type]  # what it is by default has another type
            logger=_http_log,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
            auto_decompress=False,
            lingering_time=2.0,
            read_bufsize=READ_BYTES,
        )
        self.login = login
        self.beginning: asyncio.Task[None] | None = None
        self._ended: Callable[[_Connection], None] | None = ended
        self._silence: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        self._silence = asyncio.get_running_loop().call_later(FIRST_REQUEST_S, transport.abort)

    def has_asked(self) -> None:
        """A request has come."""
        if self._silence is not None:
            self._silence.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        assert self.transport is not None
        self._unread = asyncio.get_running_loop().call_later(SEND_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.end()

    def end(self) -> None:
        for timer in (self._silence, self._unread):
            if timer is not None:
                timer.cancel()
        if self._ended is not None:
            self._ended(self)
            self._ended = None

    def abort(self) -> None:
        """End it at once, also in its handshake."""
        if self.transport is not None:
            self.transport.abort()
        elif self.beginning is not None:
            self.beginning.cancel()


def _cim_error(error: Exception, asked: Request) -> CIMError:
    if isinstance(error, CIMError):
        return error
    if isinstance(error, RequestError):  # in a value: the request as such was understood
        return CIMError(CIM_ERR_INVALID_PARAMETER, str(error))
    if isinstance(error, EngineError):
        return cim_error(error)
    log.error("%s failed", asked.name, exc_info=error)
    return CIMError(CIM_ERR_FAILED, "an internal error; the log of the server has it")


def _cim_headers(request: web.BaseRequest) -> dict[str, str]:
    """The headers that begin with CIM, without the prefix that M-POST gives them (RFC 2774, DSP0200 7.3.2)."""
    prefix = ""
    if request.method == "M-POST":
        man = _MAN.fullmatch(request.headers.get("Man", ""))
        if man is None:
            raise Refused(510, "an M-POST here has the header Man: http://www.dmtf.org/cim/mapping/http/v1.0 ; ns=NN")
        prefix = f"{man[1]}-"
    elif request.method != "POST":
        raise Refused(405, "CIM requests are POSTed", Allow="POST, M-POST")
    wanted = ("CIMOperation", "CIMMethod", "CIMObject", "CIMProtocolVersion")
    found = {name: request.headers.get(prefix + name) for name in wanted}
    return {name: value for name, value in found.items() if value is not None}


def _check_headers(headers: dict[str, str], asked: Request) -> None:
    """That the headers say what the body does (DSP0200 7.3.3). Raises RequestError."""
    if not headers.get("CIMProtocolVersion", "1.0").startswith("1."):
        raise RequestError("unsupported-protocol-version", "the protocol's version is 1.x")
    method = urllib.parse.unquote(headers.get("CIMMethod", "")).strip()
    if method.lower() != asked.name.lower():
        raise RequestError("header-mismatch", f"CIMMethod is {method[:200]!r}, the request {asked.name[:200]!r}")
    named = urllib.parse.unquote(headers.get("CIMObject", "")).strip().strip("/").lower()
    wanted = asked.namespace.strip("/").lower()
    if asked.target is not None:
        wanted = f"{wanted}:{asked.target.classname.lower()}"
        if not isinstance(asked.target, CIMClassName):
            named = named[: len(wanted)] if named[len(wanted) :].startswith(".") else named
    if named != wanted:
        raise RequestError("header-mismatch", f"CIMObject is {named[:200]!r}, the request's {wanted[:200]!r}")


async def _body(request: web.BaseRequest) -> bytes:
    if (request.content_length or 0) > cimxml.MAX_REQUEST_BYTES:
        raise Refused(413, f"a request has at most {cimxml.MAX_REQUEST_BYTES} bytes")
    parts: list[bytes] = []
    length = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.content.iter_any():
                length += len(part)
                if length > cimxml.MAX_REQUEST_BYTES:
                    raise Refused(413, f"a request has at most {cimxml.MAX_REQUEST_BYTES} bytes")
                parts.append(part)
    except TimeoutError:
        raise Refused(408, f"the request was not there within {BODY_S:.0f} s") from None
    except (web.PayloadAccessError, web.RequestPayloadError):
        raise Refused(400, "the body is not what its headers say", CIMError="request-not-well-formed") from None
    return b"".join(parts)


def _let_go(taken: socket.socket, connection: _Connection, _beginning: asyncio.Task[None]) -> None:
    """Of one that was not begun, also when its task was cancelled before its first step; others say when they end."""
    if connection.transport is None:
        taken.close()
        connection.end()


def _abort(request: web.BaseRequest) -> None:
    """End the connection so that the client cannot take its answer for whole."""
    if request.transport is not None:
        request.transport.abort()


def _document(request: web.BaseRequest, text: str) -> web.Response:
    return web.Response(body=text.encode(), headers=_answer_headers(request))


def _answer_headers(request: web.BaseRequest) -> dict[str, str]:
    headers = {"Content-Type": 'application/xml; charset="utf-8"', "Server": "twinvol", "Cache-Control": "no-cache"}
    if request.method == "M-POST":
        prefix = _MAN.fullmatch(request.headers["Man"])
        assert prefix is not None
        return {
            **headers,
            "Ext": "",
            "Man": f"http://www.dmtf.org/cim/mapping/http/v1.0 ; ns={prefix[1]}",
            f"{prefix[1]}-CIMOperation": "MethodResponse",
        }
    return {**headers, "CIMOperation": "MethodResponse"}


def _plain(request: web.BaseRequest, status: int, text: str, headers: dict[str, str]) -> web.Response:
    """A refusal. What is left of its request is not waited for."""
    clean = "".join(character if character.isprintable() else "?" for character in text[:1000])
    response = web.Response(status=status, text=clean + "\n", headers={**headers, "Server": "twinvol"})
    if not request.content.is_eof():
        response.force_close()
    return response


def _host(request: web.BaseRequest) -> str:
    """How the client calls this server: the host in the paths of its answers."""
    return request.host if _HOST.fullmatch(request.host) else "localhost"


def _is_loopback(host: str) -> bool:
    if not _HOST.fullmatch(host):
        return False
    try:
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:  # another name, or brackets around what is no address
        return False
