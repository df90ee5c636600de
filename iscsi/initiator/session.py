"""The initiator's session in full feature phase: commands out, responses in (RFC 7143). No socket, no clock.

``start`` queues an exchange (a SCSI command, a text request, a logout); it goes out when the target's command window
allows. ``receive`` takes bytes and returns what is over. ``data_to_send`` returns what must be written, in order.

A write's data goes out in three parts (section 4.2.5.2): immediate with the command, unsolicited Data-Out up to
FirstBurstLength if InitialR2T is No, and the rest as R2Ts ask for it. The caller's buffers are used as they are: a
write's data must stay until the command is over, a read's view is filled while Data-In arrives.

Error recovery level 0: whatever cannot be understood raises ``ProtocolError``, and the connection is to be dropped.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from iscsi.initiator.errors import CommandRejected
from iscsi.wire import requests, responses
from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import BHS_SIZE, RESERVED_TAG, AsyncEvent, LogoutReason, ResidualFlag, ResponseCode
from iscsi.wire.pdu import RESPONSES, Framer, decode
from iscsi.wire.serial import in_window, serial_add, serial_lt
from iscsi.wire.text_keys import serialize_text

if TYPE_CHECKING:
    from iscsi.negotiation import SessionParameters
    from iscsi.wire.bhs import Buffer, Pdu

MAX_DISCOVERY_TEXT = 16 * 1024 * 1024
"""Bytes of SendTargets text that are taken from a target: about 100,000 targets."""

EMPTY = memoryview(b"")

TARGET_FAILURE_STATUS = 0x100
"""``Command.status`` when iSCSI itself reports a target failure (section 11.4.3): outside of SCSI's one byte."""


@dataclass(slots=True, eq=False)
class Exchange:
    """Something with an ITT that is not over yet. ``error`` is set when the target refused it."""

    itt: int = field(default=RESERVED_TAG, init=False)
    error: CommandRejected | None = field(default=None, init=False)


@dataclass(slots=True, eq=False)
class Command(Exchange):
    """A SCSI command. ``lun``: the eight-byte field. ``data_out`` and ``data_in``: the caller's buffers.

    When it is over: ``status``, ``sense``, and ``received`` bytes of ``data_in``. ``residual`` is positive for an
    underflow, negative for an overflow.
    """

    lun: int
    cdb: bytes
    data_out: memoryview = EMPTY
    data_in: memoryview = EMPTY
    status: int = field(default=0, init=False)
    sense: bytes = field(default=b"", init=False)
    residual: int = field(default=0, init=False)
    received: int = field(default=0, init=False)


@dataclass(slots=True, eq=False)
class TextExchange(Exchange):
    """A text negotiation. When it is over: ``answer``, the text of all its responses."""

    text: bytes
    answer: bytearray = field(default_factory=bytearray, init=False)


@dataclass(slots=True, eq=False)
class Logout(Exchange):
    """A logout of the session. When it is over: ``response`` (``LogoutResult``)."""

    response: int = field(default=0, init=False)


@dataclass(frozen=True, slots=True)
class LogoutRequested:
    """The target wants the session to end, within ``seconds`` (section 11.9.1)."""

    seconds: int


Event = Exchange | LogoutRequested
_Kind = TypeVar("_Kind", bound=Exchange)


class InitiatorSession:
    """One session with one connection."""

    def __init__(self, parameters: SessionParameters, *, cmd_sn: int, max_cmd_sn: int, exp_stat_sn: int) -> None:
        """
        Args:
            parameters: what login settled.
            cmd_sn: of the first command. max_cmd_sn, exp_stat_sn: from the last login response.
        """
        self.parameters = parameters
        digests = (parameters.header_digest, parameters.data_digest)
        self.framer_in = Framer(*digests, parameters.max_recv_data_segment_length)
        self._framer_out = Framer(*digests, parameters.max_send_data_segment_length)
        self._cmd_sn = cmd_sn
        self._max_cmd_sn = max_cmd_sn
        self._exp_stat_sn = exp_stat_sn
        self._last_itt = 0
        self._exchanges: dict[int, Exchange] = {}
        self._waiting: deque[Exchange] = deque()
        self._output: list[Buffer] = []
        self._events: list[Event] = []

    def start(self, exchange: Exchange) -> None:
        """Begin an exchange; it waits while the command window is closed."""
        self._waiting.append(exchange)
        self._send_waiting()

    def data_to_send(self) -> list[Buffer]:
        """Take the bytes that are to be written now."""
        output, self._output = self._output, []
        return output

    def receive(self, buffer: memoryview) -> tuple[int, list[Event]]:
        """Take all complete PDUs of ``buffer``.

        Returns:
            How many bytes were taken, and what is over or asked for. The rest must be passed again, with more behind.

        Raises:
            ProtocolError: drop the connection.
        """
        offset = 0
        while (frame := self.framer_in.next(buffer, offset)) is not None:
            offset = frame.end
            self._dispatch(decode(frame, RESPONSES))
        self._send_waiting()
        events, self._events = self._events, []
        return offset, events

    # -- out

    def _send_waiting(self) -> None:
        while self._waiting and in_window(self._cmd_sn, self._cmd_sn, self._max_cmd_sn):
            exchange = self._waiting.popleft()
            exchange.itt = self._free_itt()
            self._exchanges[exchange.itt] = exchange
            match exchange:
                case Command():
                    self._send_command(exchange)
                case TextExchange():
                    request = requests.TextRequest(exchange.itt, self._cmd_sn, self._exp_stat_sn, data=exchange.text)
                    self._send(request)
                case Logout():
                    reason = LogoutReason.CLOSE_SESSION
                    self._send(
                        requests.LogoutRequest(
                            exchange.itt, reason, 0, self._cmd_sn, self._exp_stat_sn, immediate=False
                        )
                    )
            self._cmd_sn = serial_add(self._cmd_sn, 1)

    def _send(self, pdu: Pdu) -> None:
        self._output += self._framer_out.parts(pdu)

    def _free_itt(self) -> int:
        while True:
            self._last_itt = serial_add(self._last_itt, 1)
            if self._last_itt != RESERVED_TAG and self._last_itt not in self._exchanges:
                return self._last_itt

    def _send_command(self, command: Command) -> None:
        parameters = self.parameters
        length = len(command.data_out)
        first_burst = min(length, parameters.first_burst_length)
        immediate = min(first_burst, parameters.max_send_data_segment_length) if parameters.immediate_data else 0
        unsolicited = 0 if parameters.initial_r2t else first_burst - immediate
        self._send(
            requests.ScsiCommandPdu(
                itt=command.itt,
                lun=command.lun,
                cdb=command.cdb,
                cmd_sn=self._cmd_sn,
                exp_stat_sn=self._exp_stat_sn,
                edtl=length or len(command.data_in),
                read=bool(command.data_in),
                write=bool(length),
                final=not unsolicited,
                data=command.data_out[:immediate],
            )
        )
        if unsolicited:
            self._send_data(command, RESERVED_TAG, immediate, unsolicited)

    def _send_data(self, command: Command, ttt: int, offset: int, length: int) -> None:
        """One sequence of Data-Out PDUs."""
        end = offset + length
        data_sn = 0
        while offset < end:
            piece = min(end - offset, self.parameters.max_send_data_segment_length)
            self._send(
                requests.DataOut(
                    itt=command.itt,
                    ttt=ttt,
                    exp_stat_sn=self._exp_stat_sn,
                    data_sn=data_sn,
                    buffer_offset=offset,
                    lun=command.lun,
                    final=offset + piece == end,
                    data=command.data_out[offset : offset + piece],
                )
            )
            offset += piece
            data_sn += 1

    # -- in

    def _dispatch(self, pdu: Pdu) -> None:
        match pdu:
            case responses.DataIn():
                self._data_in(pdu)
            case responses.ScsiResponsePdu():
                self._response(pdu)
            case responses.R2T():
                self._r2t(pdu)
            case responses.NopIn():
                self._nop_in(pdu)
            case responses.TextResponse():
                self._text(pdu)
            case responses.LogoutResponse():
                self._logged_out(pdu)
            case responses.AsyncMessage():
                self._async_message(pdu)
            case responses.Reject():
                self._reject(pdu)
            case _:
                raise ProtocolError(f"{pdu.OPCODE.name} was not asked for", None)

    def _numbered(self, pdu: responses.ResponsePdu) -> None:
        """A PDU with a StatSN of its own: the next in line, or something was lost."""
        if pdu.stat_sn != self._exp_stat_sn:
            raise ProtocolError(f"StatSN {pdu.stat_sn:#x}, expected {self._exp_stat_sn:#x}", None)
        self._exp_stat_sn = serial_add(pdu.stat_sn, 1)
        self._window(pdu)

    def _window(self, pdu: responses.ResponsePdu) -> None:
        """Take the command window (section 4.2.2.1): it never goes back."""
        if serial_lt(self._max_cmd_sn, pdu.max_cmd_sn):
            self._max_cmd_sn = pdu.max_cmd_sn

    def _find(self, itt: int, kind: type[_Kind]) -> _Kind:
        exchange = self._exchanges.get(itt)
        if not isinstance(exchange, kind):
            raise ProtocolError(f"ITT {itt:#x} is no {kind.__name__} in progress", None)
        return exchange

    def _over(self, exchange: Exchange) -> None:
        del self._exchanges[exchange.itt]
        self._events.append(exchange)

    def _data_in(self, pdu: responses.DataIn) -> None:
        command = self._find(pdu.itt, Command)
        end = pdu.buffer_offset + len(pdu.data)
        if pdu.buffer_offset != command.received or end > len(command.data_in):
            raise ProtocolError(f"Data-In {pdu.buffer_offset}+{len(pdu.data)} after {command.received}", None)
        command.data_in[pdu.buffer_offset : end] = pdu.data
        command.received = end
        if pdu.status is None:
            self._window(pdu)
            return
        self._numbered(pdu)
        command.status = pdu.status
        command.residual = _signed_residual(pdu.flags, pdu.residual)
        self._over(command)

    def _response(self, pdu: responses.ScsiResponsePdu) -> None:
        self._numbered(pdu)
        command = self._find(pdu.itt, Command)
        command.status = pdu.status if pdu.response == ResponseCode.COMPLETED else TARGET_FAILURE_STATUS
        command.sense = pdu.sense
        command.residual = _signed_residual(pdu.flags, pdu.residual)
        self._over(command)

    def _r2t(self, pdu: responses.R2T) -> None:
        self._window(pdu)
        command = self._find(pdu.itt, Command)
        if pdu.buffer_offset + pdu.desired_length > len(command.data_out):
            raise ProtocolError(f"R2T for {pdu.buffer_offset}+{pdu.desired_length}", None)
        self._send_data(command, pdu.ttt, pdu.buffer_offset, pdu.desired_length)

    def _nop_in(self, pdu: responses.NopIn) -> None:
        if pdu.itt != RESERVED_TAG:
            raise ProtocolError("answer to a ping that was never sent", None)
        self._window(pdu)  # its StatSN is the next one, and not used up (section 11.19.2)
        if pdu.ttt != RESERVED_TAG:
            self._send(requests.NopOut(RESERVED_TAG, self._cmd_sn, self._exp_stat_sn, pdu.ttt, pdu.lun))

    def _text(self, pdu: responses.TextResponse) -> None:
        self._numbered(pdu)
        exchange = self._find(pdu.itt, TextExchange)
        exchange.answer += pdu.data
        if len(exchange.answer) > MAX_DISCOVERY_TEXT:
            raise ProtocolError(f"more than {MAX_DISCOVERY_TEXT} bytes of text", None)
        if pdu.final:
            self._over(exchange)
        else:  # the rest is asked for under the target's tag; immediate, as its turn has come (section 11.10)
            more = requests.TextRequest(pdu.itt, self._cmd_sn, self._exp_stat_sn, pdu.ttt, pdu.lun, immediate=True)
            self._send(more)

    def _logged_out(self, pdu: responses.LogoutResponse) -> None:
        self._numbered(pdu)
        logout = self._find(pdu.itt, Logout)
        logout.response = pdu.response
        self._over(logout)

    def _async_message(self, pdu: responses.AsyncMessage) -> None:
        self._numbered(pdu)
        if pdu.event in (AsyncEvent.CONNECTION_DROP, AsyncEvent.SESSION_DROP):
            raise ProtocolError(f"the target drops the connection: {AsyncEvent(pdu.event).name}", None)
        if pdu.event == AsyncEvent.LOGOUT_REQUEST:
            self._events.append(LogoutRequested(pdu.parameter3))

    def _reject(self, pdu: responses.Reject) -> None:
        self._numbered(pdu)
        itt = int.from_bytes(pdu.data[16:20], "big") if len(pdu.data) >= BHS_SIZE else RESERVED_TAG
        exchange = self._find(itt, Exchange)
        exchange.error = CommandRejected(pdu.reason)
        self._over(exchange)


def _signed_residual(flags: int, residual: int) -> int:
    return -residual if flags & ResidualFlag.OVERFLOW else residual


def parse_send_targets(answer: bytes | bytearray) -> list[tuple[str, list[str]]]:
    """Target names with their addresses, from a SendTargets answer (appendix C). Keys repeat, so it is no mapping.

    Raises:
        ProtocolError: an address before any name, or no UTF-8.
    """
    found: list[tuple[str, list[str]]] = []
    try:
        items = answer.decode("utf-8").split("\0")
    except UnicodeDecodeError:
        raise ProtocolError("SendTargets answer is not UTF-8", None) from None
    for item in items:
        key, _, value = item.partition("=")
        if key == "TargetName":
            found.append((value, []))
        elif key == "TargetAddress":
            if not found:
                raise ProtocolError("TargetAddress before any TargetName", None)
            found[-1][1].append(value)
    return found


def send_targets(which: str = "All") -> TextExchange:
    """The exchange that asks for targets (section 13.3)."""
    return TextExchange(serialize_text({"SendTargets": which}))
