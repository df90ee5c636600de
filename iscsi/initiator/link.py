"""The initiator's asyncio shell: one TCP connection that carries a login and then a session.

What is received is parsed in place: one buffer, in which an incomplete PDU stays at the front until the rest is there.
Commands of one turn of the loop go out by one write.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from iscsi.initiator.errors import ConnectionLost, InitiatorError
from iscsi.initiator.login import FIRST_CMD_SN, InitiatorLogin
from iscsi.initiator.session import Event, Exchange, InitiatorSession, Logout, LogoutRequested
from iscsi.wire.errors import ProtocolError
from iscsi.wire.pdu import RESPONSES, Framer, decode
from iscsi.wire.responses import LoginResponse

if TYPE_CHECKING:
    from iscsi.negotiation import SessionParameters

_log = logging.getLogger(__name__)

HEADROOM_BYTES = 64 * 1024
"""Room in the receive buffer beyond two of the longest PDUs: headers, digests, small responses."""


class Link(asyncio.BufferedProtocol):
    """One connection. Use ``open_link``."""

    def __init__(self, login: InitiatorLogin, max_recv_data_segment_length: int) -> None:
        self._login = login
        self._loop = asyncio.get_running_loop()
        self._logged_in: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._session: InitiatorSession | None = None
        self._buffer = memoryview(bytearray(2 * max_recv_data_segment_length + HEADROOM_BYTES))
        self._filled = 0
        self._waiters: dict[Exchange, asyncio.Future[None]] = {}
        self._flush_is_due = False
        self._error: Exception | None = None
        self._leave: asyncio.Task[None] | None = None

    @property
    def parameters(self) -> SessionParameters:
        """What login settled."""
        assert self._session is not None
        return self._session.parameters

    @property
    def is_open(self) -> bool:
        return self._error is None and self._leave is None

    async def login(self) -> None:
        """Return once the full feature phase is reached.

        Raises:
            LoginRefused, TargetNotAuthentic, ProtocolError, ConnectionLost: it was not; the connection is closed.
        """
        await self._logged_in

    async def run(self, exchange: Exchange) -> None:
        """Carry out one exchange; return when it is over.

        Raises:
            ConnectionLost: before it was.
            CommandRejected: the target refused its PDU.
        """
        if self._error is not None or (self._leave is not None and not isinstance(exchange, Logout)):
            raise ConnectionLost("the connection is closed") from self._error
        assert self._session is not None
        waiter = self._loop.create_future()
        self._waiters[exchange] = waiter
        try:
            self._session.start(exchange)
            if not self._flush_is_due:
                self._flush_is_due = True
                self._loop.call_soon(self._flush)
            await waiter
        finally:
            self._waiters.pop(exchange, None)
        if exchange.error is not None:
            raise exchange.error

    async def log_out(self) -> None:
        """End the session in good order and close the connection, if it is not gone already."""
        if self._leave is None:
            self._leave = self._loop.create_task(self._log_out())
        await asyncio.shield(self._leave)
        await self._closed

    async def _log_out(self) -> None:
        try:
            if self._waiters:  # what is under way is answered first
                await asyncio.wait(list(self._waiters.values()))
            await self.run(Logout())
        except InitiatorError as error:  # the session ends in either case
            _log.info("no logout: %s", error)
        finally:
            self.drop(ConnectionLost("logged out"))

    def drop(self, error: Exception) -> None:
        """Close the connection at once. Whoever waits gets ``ConnectionLost`` (a login: ``error`` itself)."""
        if self._error is not None:
            return
        self._error = error
        if self._transport is not None:
            self._transport.abort() if self._waiters else self._transport.close()
        if not self._logged_in.done():
            self._logged_in.set_exception(error)
        for waiter in self._waiters.values():
            if not waiter.done():
                lost = ConnectionLost(f"connection lost: {error}")
                lost.__cause__ = error
                waiter.set_exception(lost)

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(Framer().encode(self._login.first()))

    def connection_lost(self, exc: Exception | None) -> None:
        self.drop(exc or ConnectionLost("the target closed the connection"))
        if not self._closed.done():
            self._closed.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        try:
            taken = self._take(self._buffer[: self._filled])
        except Exception as error:
            # Refusals of a login and ProtocolError are expected here; anything else must not leave waiters hanging.
            if isinstance(error, ProtocolError):
                _log.warning("the target broke the protocol: %s", error)
            self.drop(error)
            return
        rest = self._filled - taken
        if taken and rest:
            self._buffer[:rest] = self._buffer[taken : self._filled]
        self._filled = rest

    def _take(self, received: memoryview) -> int:
        """Handle the complete PDUs; how many bytes they were."""
        taken = 0
        while self._session is None:
            frame = Framer().next(received, taken)
            if frame is None:
                return taken
            taken = frame.end
            self._advance_login(decode(frame, RESPONSES))
        if self._error is not None:
            return taken
        session_taken, events = self._session.receive(received[taken:])
        for event in events:
            self._settle(event)
        self._flush()
        return taken + session_taken

    def _advance_login(self, response: object) -> None:
        if not isinstance(response, LoginResponse):
            raise ProtocolError("something else than a login response", None)
        request = self._login.receive(response)
        if request is not None:
            assert self._transport is not None
            self._transport.write(Framer().encode(request))
            return
        self._session = InitiatorSession(
            self._login.parameters(),
            cmd_sn=FIRST_CMD_SN,
            max_cmd_sn=self._login.max_cmd_sn,
            exp_stat_sn=self._login.exp_stat_sn,
        )
        self._logged_in.set_result(None)

    def _settle(self, event: Event) -> None:
        if isinstance(event, LogoutRequested):
            if self._leave is None:
                self._leave = self._loop.create_task(self._log_out())
            return
        waiter = self._waiters.get(event)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _flush(self) -> None:
        self._flush_is_due = False
        if self._session is not None and self._transport is not None and self._error is None:
            output = self._session.data_to_send()
            if output:
                self._transport.writelines(output)


async def open_link(host: str, port: int, login: InitiatorLogin, max_recv_data_segment_length: int) -> Link:
    """Connect and log in.

    Raises:
        ConnectionLost: nobody answers there, or the connection broke during login.
        LoginRefused: by the target.
        TargetNotAuthentic: by us.
        ProtocolError: what answers is no iSCSI target.
    """
    loop = asyncio.get_running_loop()
    try:
        transport, link = await loop.create_connection(lambda: Link(login, max_recv_data_segment_length), host, port)
    except OSError as error:
        raise ConnectionLost(f"cannot connect to {host} port {port}: {error}") from error
    try:
        await link.login()
    except BaseException as error:
        transport.abort()
        if isinstance(error, OSError):
            raise ConnectionLost(f"connection lost during login: {error}") from error
        raise
    return link
