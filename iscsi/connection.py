"""The sans-IO core of one connection: bytes in, bytes and work out. No socket, no clock, no task.

The shell (``server.py``) feeds ``receive`` with what arrived, sends what ``take_output`` returns, in order, and runs
the coroutines of ``take_work`` as tasks of their own. The fast path takes the usual READ and WRITE out of the stream
and gives the rest to ``receive_pdu``.

Phases: login (PDUs go to the login machine) -> waiting (the login is granted, but the session which it replaces still
has commands in its workers) -> full feature -> closing. A peer's mistake is a ``ProtocolError`` from a codec or from
here; ``receive_pdu`` turns it into the Reject that it names, or ends the connection. Nothing else leaves this class for
bytes of a peer.

Invariants: ``stat_sn`` is the StatSN of the next status. Output is in the order of StatSN. After ``closing`` is set
nothing is received; what was put out before is still to be sent.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Any, TypedDict

from engine.units import SECTOR_SIZE
from iscsi.commands import CommandFlow
from iscsi.login import TargetLogin
from iscsi.management import TaskManagement
from iscsi.negotiation import SessionParameters
from iscsi.scsi.it_nexus import ItNexus
from iscsi.scsi.sense import Asc
from iscsi.session import MAX_SESSIONS, Session, settle
from iscsi.text import TextExchange
from iscsi.wire import requests, responses
from iscsi.wire.bhs import MAX_AHS_BYTES, padding
from iscsi.wire.errors import ProtocolError
from iscsi.wire.lun import decode_lun, encode_lun
from iscsi.wire.opcodes import (
    BHS_SIZE,
    DIGEST_SIZE,
    IMMEDIATE_BIT,
    RESERVED_TAG,
    AsyncEvent,
    LoginStatus,
    LogoutReason,
    LogoutResult,
    Opcode,
    RejectReason,
)
from iscsi.wire.pdu import REQUESTS, Frame, Framer, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from engine.stores import BlockDevice
    from iscsi.scsi.lun import Nexus
    from iscsi.session import SessionTable
    from iscsi.target import Portal, TargetRegistry
    from iscsi.wire.bhs import Pdu

_log = logging.getLogger(__name__)

SILENT_TICKS_BEFORE_PING = 3
"""Ticks without a byte from the initiator after which it is pinged; see ``server.TICK_S``."""

SILENT_TICKS_BEFORE_DROP = 6
"""Ticks without a byte, despite the ping, after which the connection is dropped."""

MAX_LOGGED = 32
"""Lines of the log that a peer's requests may cause between two ticks: it must not be able to fill a disk with them."""

LOGOUT_REQUEST_S = 2
"""Seconds that an initiator is told it has, to log out (parameter 3 of the Async Message)."""

_U32 = 0xFFFFFFFF
_NUMBERED = (
    requests.NopOut,
    requests.ScsiCommandPdu,
    requests.TaskManagementRequest,
    requests.TextRequest,
    requests.LogoutRequest,
)
"""Requests that carry a CmdSN (RFC 7143 section 4.2.2.1)."""

_NUMBERED_OPCODES = frozenset(request.OPCODE for request in _NUMBERED)


class Numbers(TypedDict):
    """What every PDU of the target carries; see ``Connection.numbers``."""

    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int


class Connection:
    """One connection to an initiator. See the module."""

    def __init__(
        self,
        registry: TargetRegistry,
        table: SessionTable,
        *,
        local: Portal,
        peer: tuple[str, int],
        wake: Callable[[], None],
    ) -> None:
        """
        Args:
            registry: targets and who may use them.
            table: the server's sessions.
            local: the portal that was reached. peer: the other end's address.
            wake: called when there is output or work, or ``closing`` is set, while the shell is not in a call of this
                connection: it then has to look, soon.
        """
        self.peer_address = f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
        self.session: Session | None = None
        self.stat_sn = 0
        self.closing = False
        self.dropped = False
        self.is_waiting = False
        self.may_start = True  # cleared by the shell while the peer does not take its answers
        self.silent_ticks = 0
        self.dirty: list[BlockDevice] = []  # written in this pass, not yet journalled: ``Answers`` sees to it
        # What the login settled; the fast path reads these.
        self.is_intact = True
        self.header_digest = False
        self.data_digest = False
        self.max_immediate_bytes = 0
        self.segment_bytes = 0
        self.burst_bytes = 0
        self.first_burst_bytes = 0
        self.initial_r2t = True
        self._registry = registry
        self._table = table
        self.local = local
        self._wake = wake
        self._framer = Framer()
        self._framer_out = Framer()
        self.cid = 0
        self._login = TargetLogin(registry, table.get, portal_group=local.group)
        self.parameters = SessionParameters()
        self._text = TextExchange(self, registry, local)
        self._frame: Frame | None = None
        self._output: list[bytes] = []
        self._work: list[Coroutine[Any, Any, None]] = []
        self._last_ttt = 0
        self._ping_ttt = RESERVED_TAG
        self._inherited: Session | None = None
        self._logged = 0
        self._commands: CommandFlow | None = None
        self._management: TaskManagement | None = None

    # -- for the shell and the fast path

    def receive(self, buffer: memoryview, position: int, end: int) -> int:
        """Handle the complete PDUs of ``buffer[position:end]``. Returns where the first incomplete one begins.

        Stops early when the login completes (the fast path takes over), while ``is_waiting``, and when ``closing``.
        """
        while not self.closing and not self.is_waiting:
            logging_in = self.session is None
            size = self.frame(buffer, position, end)
            if not size:
                break
            self.receive_pdu(buffer, position)
            position += size
            if logging_in and self.session is not None:
                break
        return position

    def frame(self, buffer: memoryview, position: int, end: int) -> int:
        """Bytes of the PDU at ``position``; 0 if it is incomplete, or its header digest or length ends the connection.

        ``is_intact`` tells whether its data digest was right.
        """
        try:
            self._frame = self._framer.next(buffer[:end], position)
        except ProtocolError as error:
            self._refuse(error, b"")
            return 0
        if self._frame is None:
            return 0
        self.is_intact = self._frame.data_digest_ok
        return self._frame.end - position

    @property
    def max_pdu_bytes(self) -> int:
        """The longest PDU that may come."""
        framer = self._framer
        return BHS_SIZE + MAX_AHS_BYTES + 2 * DIGEST_SIZE + framer.max_data_segment + padding(framer.max_data_segment)

    def missing(self, rest: memoryview) -> int:
        """Bytes that an incomplete PDU still needs; 0 as long as its header is incomplete itself."""
        if len(rest) < BHS_SIZE:
            return 0
        try:
            return self._framer.size(rest[:BHS_SIZE]) - len(rest)
        except ProtocolError:
            return 0  # ``frame`` ends the connection

    def receive_pdu(self, buffer: memoryview, position: int) -> None:
        """Handle the PDU at ``position``, for which ``frame`` has just returned its size."""
        frame = self._frame
        assert frame is not None
        try:
            if self.session is None:
                self._log_in(frame)
                return
            request = decode(frame, REQUESTS)
            if self._is_next(request):
                self._handle(request)
        except ProtocolError as error:
            self._take_number_of(frame)
            self._refuse(error, frame.header)

    def take_output(self) -> list[bytes]:
        """What is to be sent now, in order."""
        output = self._output
        if output:
            self._output = []
        return output

    def take_work(self) -> list[Coroutine[Any, Any, None]]:
        """What is to be run now. Each ends with its output queued."""
        work = self._work
        if work:
            self._work = []
        return work

    def tick(self) -> None:
        """Time passes: ping a silent initiator, drop one that does not answer."""
        self.silent_ticks += 1
        self._logged = 0
        if self.session is not None:
            self.session.observed.mark(self.all_nexuses())
        if self.session is None or self.closing:
            return
        if self.silent_ticks >= SILENT_TICKS_BEFORE_DROP:
            _log.warning("%s is silent and answers no ping: dropped", self.session)
            self.close()
        elif self.silent_ticks >= SILENT_TICKS_BEFORE_PING and self._ping_ttt == RESERVED_TAG:
            self._last_ttt = (self._last_ttt + 1) % RESERVED_TAG
            self._ping_ttt = self._last_ttt
            self.send(responses.NopIn(RESERVED_TAG, ttt=self._ping_ttt, **self.numbers()))

    def resume(self) -> None:
        """The peer takes its answers again: go on with the commands that waited for that."""
        self.may_start = True
        if self.session is not None:
            self.session.output_left()
        self.go_on()

    def output_left(self) -> None:
        """What was put out is with the transport, and the peer takes it."""
        if self.session is not None and self.session.output_left():
            self.go_on()

    def go_on(self) -> None:
        """Tasks are gone that others waited for."""
        if self._commands is not None and not self.closing:
            self._commands.start()
            self._wake()

    def request_logout(self) -> None:
        """The target is going down: ask the initiator to log out (RFC 7143 section 11.9.1)."""
        if self.session is not None and not self.closing:
            event = AsyncEvent.LOGOUT_REQUEST
            self.send(responses.AsyncMessage(event, parameter3=LOGOUT_REQUEST_S, **self.status_numbers()))

    def close(self) -> None:
        """Send what is queued, and nothing after it."""
        self.closing = True
        self._wake()

    def expel(self) -> None:
        """The initiator has lost its right to the target: say that the session ends, and end it."""
        if self.session is not None and not self.closing:
            event = AsyncEvent.SESSION_DROP  # parameters 2 and 3: the times to wait and to retain, both 0
            self.send(responses.AsyncMessage(event, **self.status_numbers()))
        self.drop()

    def drop(self) -> None:
        """End at once: what the peer does not take now, it does not get."""
        self.dropped = True
        self.close()

    def lost(self) -> None:
        """The connection is gone: end its session once its commands have left their workers (I_T nexus loss)."""
        self.closing = True
        self._output.clear()
        session = self.session
        if session is not None:
            for task in list(session.tasks.values()):
                session.abort(task)
            self._work.append(self._bury(session))

    # -- for commands and task management

    def note(self, message: str, *args: object) -> None:
        """Log what the peer did, unless it does such things all the time. ``message`` is for ``%`` with ``args``."""
        if self.session is None:
            self._table.strangers.write(logging.INFO, "%s: " + message, self.peer_address, *args)
            return
        self._logged += 1
        if self._logged <= MAX_LOGGED:
            _log.info("%s: " + message, self.session, *args)
        if self._logged == MAX_LOGGED:
            _log.info("%s: more of the like is not logged for now", self.session)

    def send(self, pdu: Pdu) -> None:
        """Queue a PDU. Its numbers were taken by ``numbers`` or ``status_numbers`` just before."""
        self._output.append(self._framer_out.encode(pdu))

    def numbers(self) -> Numbers:
        """StatSN (not used up by this PDU), ExpCmdSN and MaxCmdSN."""
        session = self.session
        assert session is not None
        return {"stat_sn": self.stat_sn, "exp_cmd_sn": session.exp_cmd_sn, "max_cmd_sn": session.max_cmd_sn}

    def status_numbers(self) -> Numbers:
        """The same for a PDU that carries a status: the next one has another StatSN (RFC 7143 section 4.2.2.2)."""
        numbers = self.numbers()
        self.stat_sn = self.stat_sn + 1 & _U32
        return numbers

    def add_work(self, work: Coroutine[Any, Any, None]) -> None:
        """Have the shell run something that waits."""
        self._work.append(work)

    def nexus(self, field: int) -> Nexus | None:
        """The nexus that a PDU's LUN field addresses; None if nothing is there (any more)."""
        session = self.session
        assert session is not None
        assert session.target is not None
        lun = decode_lun(field)
        unit = None if lun is None else session.target.unit_for(session.initiator_name, lun)
        known = session.nexuses.get(field)
        if known is not None and known.lu is unit:
            return known
        if known is not None:
            self._detach(field)
        if unit is None:
            return None
        nexus = next((held for held in session.nexuses.values() if held.lu is unit), None)
        if nexus is None:
            port = ItNexus(session.initiator_name, session.isid, session.target.name, session.portal_group)
            nexus = unit.attach(port, self.luns)
            self._adopt(nexus)
        session.nexuses[field] = nexus
        return nexus

    def _adopt(self, nexus: Nexus) -> None:
        """This connection answers for the nexus."""
        nexus.luns = self.luns
        nexus.abort_tasks = functools.partial(self._abort_tasks_of, nexus)
        nexus.chap_proof = None if self.session is None else self.session.chap_proof
        self._bind(nexus)

    def all_nexuses(self) -> list[Nexus]:
        """Each nexus of the session once."""
        session = self.session
        return [] if session is None else session.distinct_nexuses()

    def luns(self) -> list[int]:
        """What this session may see now."""
        session = self.session
        return [] if session is None or session.target is None else session.target.luns_for(session.initiator_name)

    def luns_changed(self) -> None:
        """The target's LUN map or a mask changed: meet what is new, part from what is gone, tell the initiator.

        One whose own LUNs are the same as before hears nothing.
        """
        session = self.session
        if session is None or session.target is None:
            return
        before = {decode_lun(field): nexus.lu for field, nexus in session.nexuses.items()}
        if before == {lun: session.target.unit_for(session.initiator_name, lun) for lun in self.luns()}:
            return
        for field in list(session.nexuses):
            self.nexus(field)
        for nexus in self.all_nexuses():
            nexus.establish_unit_attention(Asc.REPORTED_LUNS_DATA_HAS_CHANGED)
        self._attach_all()

    def service_changed(self) -> None:
        """The target was paused or resumed, or its commands are recorded from now on, or no longer."""
        session = self.session
        if session is None or session.target is None:
            return
        session.held = session.target.paused
        session.observed.record(session.target.recorded)
        for nexus in self.all_nexuses():
            self._bind(nexus)
        if not session.held:
            self.go_on()

    def _bind(self, nexus: Nexus) -> None:
        """Whether the nexus's commands may take the fast path at all."""
        assert self.session is not None
        nexus.plain_only = self.session.held or self.session.observed.recorder is not None
        nexus.lu.refresh(nexus)

    def _attach_all(self) -> None:
        for lun in self.luns():
            self.nexus(encode_lun(lun))

    # -- login

    def _log_in(self, frame: Frame) -> None:
        login = self._login
        response = login.receive(frame)
        if response is not None:
            self.send(response)
            self.closing = login.failed
            if login.failed:
                self._log_refusal()
        elif self._replaced() is None:
            self._begin_session()
        else:
            self.is_waiting = True
            self._work.append(self._replace_session())

    def _log_refusal(self) -> None:
        self._table.strangers.write(logging.WARNING, "login from %s refused: %s", self.peer_address, self._login.why)

    def _replaced(self) -> Session | None:
        """The session that this login replaces (RFC 7143 section 6.3.5)."""
        outcome = self._login.outcome
        assert outcome is not None
        if outcome.target is None:
            return None
        return self._table.same_nexus(outcome.initiator_name, outcome.isid, outcome.target, self.local.group)

    async def _replace_session(self) -> None:
        """End the old session and begin the new one when none of the old one's commands touches a medium any more."""
        outcome = self._login.outcome
        assert outcome is not None
        while not self.closing and (old := self._replaced()) is not None:
            _log.info("%s is replaced by a login from %s", old, self.peer_address)
            old.heir = self if old.tsih == outcome.tsih else None  # the last login wins
            old.connection.drop()
            await old.ended.wait()
        self.is_waiting = False
        if not self.closing:
            self._begin_session(self._inherited)
        elif self._inherited is not None:
            self._inherited.part()

    def _begin_session(self, continued: Session | None = None) -> None:
        """Enter the full feature phase. ``continued``: the session whose connection this one replaces (RFC 7143
        section 6.3.4): its numbering, its TSIH and its nexuses go on, its tasks are gone."""
        outcome = self._login.outcome
        assert outcome is not None
        status = self._why_not(continued)
        if status is not None:
            if continued is not None:
                continued.part()
            self.send(self._login.refuse(status))
            self.closing = True
            self._log_refusal()
            return
        session = Session(
            self,
            initiator_name=outcome.initiator_name,
            isid=outcome.isid,
            tsih=outcome.tsih or self._table.new_tsih(),
            target=outcome.target,
            portal_group=self.local.group,
            exp_cmd_sn=outcome.exp_cmd_sn if continued is None else continued.exp_cmd_sn,
            chap_user=outcome.chap_user,
            chap_proof=outcome.chap_proof,
            table=self._table,
        )
        self.send(self._login.grant(session.tsih, session.max_cmd_sn))
        self.session = session
        self.stat_sn = outcome.stat_sn
        self.cid = outcome.cid
        self._table.add(session)
        self.settle_on(outcome.parameters)
        if session.target is not None:
            self._commands = CommandFlow(self, session)
            self._management = TaskManagement(self, session, self._table)
            if continued is not None:
                session.nexuses = continued.nexuses
                for nexus in self.all_nexuses():
                    self._adopt(nexus)
            self._attach_all()
        _log.info("%s begins", session)

    def _why_not(self, continued: Session | None) -> LoginStatus | None:
        """What has changed since the login's first text that forbids its session now."""
        outcome = self._login.outcome
        assert outcome is not None
        target = outcome.target
        if target is not None and self._registry.find(target.name) is not target:
            return LoginStatus.TARGET_REMOVED
        if target is not None and not target.serves(outcome.initiator_name, self.local.group):
            return LoginStatus.AUTHORIZATION_FAILURE
        if outcome.tsih and (continued is None or self._table.get(outcome.tsih) is not None):
            return LoginStatus.SESSION_DOES_NOT_EXIST
        return LoginStatus.OUT_OF_RESOURCES if len(self._table) >= MAX_SESSIONS else None

    # -- full feature phase

    def settle_on(self, parameters: SessionParameters) -> None:
        """Take over what was negotiated."""
        self.parameters = parameters
        self.header_digest = parameters.header_digest
        self.data_digest = parameters.data_digest
        # Whole sectors, so that each piece can be read by itself; both are 512 at least.
        self.burst_bytes = parameters.max_burst_length & -SECTOR_SIZE
        self.segment_bytes = min(parameters.max_send_data_segment_length & -SECTOR_SIZE, self.burst_bytes)
        self.first_burst_bytes = parameters.first_burst_length
        if parameters.immediate_data:
            self.max_immediate_bytes = min(self.first_burst_bytes, parameters.max_recv_data_segment_length)
        self.initial_r2t = parameters.initial_r2t
        self._framer = Framer(
            header_digest=self.header_digest,
            data_digest=self.data_digest,
            max_data_segment=parameters.max_recv_data_segment_length,
        )
        self._framer_out = Framer(header_digest=self.header_digest, data_digest=self.data_digest)

    def _is_next(self, request: Pdu) -> bool:
        """Check and count a request's CmdSN (RFC 7143 section 4.2.2.1). False: outside of the window, to be ignored."""
        session = self.session
        assert session is not None
        if not isinstance(request, _NUMBERED) or request.immediate:
            return True
        if not session.in_window(request.cmd_sn) or session.is_passed_over(request.cmd_sn):
            return False
        if request.cmd_sn != session.exp_cmd_sn:
            # With one connection nothing that was skipped can still come.
            raise ProtocolError(f"CmdSN {request.cmd_sn}, expected {session.exp_cmd_sn}", None)
        session.advance()
        if request.OPCODE != Opcode.SCSI_COMMAND:
            session.answered()
        return True

    def _take_number_of(self, frame: Frame) -> None:
        """A request was refused: it has used up its CmdSN all the same, or the session would wait for it for ever."""
        session = self.session
        bhs = frame.bhs
        if session is None or frame.opcode not in _NUMBERED_OPCODES or bhs[0] & IMMEDIATE_BIT:
            return
        if int.from_bytes(bhs[24:28], "big") == session.exp_cmd_sn and session.in_window(session.exp_cmd_sn):
            session.advance()
            session.answered()

    def _handle(self, request: Pdu) -> None:
        match request:
            case requests.DataOut() if self._commands is not None:
                self._commands.data_out(request)
            case requests.ScsiCommandPdu() if self._commands is not None:
                self._begin(request)
            case requests.NopOut():
                self._nop(request)
            case requests.TaskManagementRequest() if self._management is not None:
                self._management.begin(request)
            case requests.TextRequest():
                self._text.handle(request)
            case requests.LogoutRequest():
                self._log_out(request)
            case requests.SnackRequest():
                raise ProtocolError("SNACK needs error recovery level 1", RejectReason.SNACK_REJECT)
            case _:
                raise ProtocolError(f"{request.OPCODE.name} in this phase", RejectReason.PROTOCOL_ERROR)

    def _begin(self, command: requests.ScsiCommandPdu) -> None:
        session = self.session
        assert session is not None
        assert self._commands is not None
        if command.itt in session.tasks:
            raise ProtocolError(f"ITT {command.itt:#x} is in use", RejectReason.TASK_IN_PROGRESS)
        if command.immediate and not session.takes_immediate():
            raise ProtocolError("too many immediate commands", RejectReason.TOO_MANY_IMMEDIATE_COMMANDS)
        self._commands.begin(command)

    def _nop(self, nop: requests.NopOut) -> None:
        if nop.itt != RESERVED_TAG:
            data = bytes(nop.data[: self.segment_bytes])
            self.send(responses.NopIn(nop.itt, data=data, lun=nop.lun, **self.status_numbers()))
        elif nop.ttt == self._ping_ttt:
            self._ping_ttt = RESERVED_TAG

    def _log_out(self, request: requests.LogoutRequest) -> None:
        """Answer once no command touches a medium any more, then close (RFC 7143 section 11.15)."""
        session = self.session
        assert session is not None
        if request.reason == LogoutReason.REMOVE_FOR_RECOVERY:
            result = LogoutResult.RECOVERY_NOT_SUPPORTED
        elif request.reason == LogoutReason.CLOSE_CONNECTION and request.cid != self.cid:
            result = LogoutResult.CID_NOT_FOUND
        else:
            result = LogoutResult.CLOSED
        if result != LogoutResult.CLOSED:
            self.send(responses.LogoutResponse(request.itt, response=result, **self.status_numbers()))
            return
        for task in list(session.tasks.values()):
            session.abort(task)
        self.is_waiting = True
        self._work.append(self._finish_logout(session, request))

    async def _finish_logout(self, session: Session, request: requests.LogoutRequest) -> None:
        await settle(list(session.running))
        self.send(responses.LogoutResponse(request.itt, **self.status_numbers()))
        self.close()

    def _detach(self, field: int) -> None:
        """A LUN is no longer shown. Its running commands still finish; those not begun find nothing there.

        A unit that is shown at another LUN as well stays the same nexus: what it has reserved stays reserved.
        """
        assert self.session is not None
        nexus = self.session.nexuses.pop(field)
        if nexus not in self.session.nexuses.values():
            self.session.observed.past.add(nexus.stats)
            nexus.lu.detach(nexus)

    async def _abort_tasks_of(self, nexus: Nexus) -> None:
        """What PREEMPT AND ABORT awaits; a command that preempts its own nexus does not wait for itself."""
        assert self.session is not None
        caller = asyncio.current_task()
        for task in list(self.session.tasks.values()):
            if task.nexus is nexus and task.runner is not caller:
                self.session.abort(task)
        self.go_on()
        await settle([task for task in self.session.running if task.nexus is nexus and task.runner is not caller])

    async def _bury(self, session: Session) -> None:
        await settle(list(session.running))
        heir = session.heir
        if heir is None or heir.closing:
            session.part()
        else:
            heir._inherited = session
        self._table.remove(session)
        session.ended.set()
        _log.info("%s has ended", session)

    def _refuse(self, error: ProtocolError, header: bytes) -> None:
        """Answer a peer's mistake as the error says; see ``ProtocolError.answer``."""
        self.note("%s", error)
        if isinstance(error.answer, RejectReason) and self.session is not None:
            self.send(responses.Reject(error.answer, data=header, **self.status_numbers()))
            if error.answer != RejectReason.DATA_DIGEST_ERROR:
                return
            # At error recovery level 0 the data is lost, and with it the session (RFC 7143 section 7.8).
        self.closing = True
