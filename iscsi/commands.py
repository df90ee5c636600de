"""SCSI commands on the plain path: command PDU -> task -> R2T and Data-Out -> logical unit -> Data-In and Response.

Readable before fast. The fast path does the same for the usual READ and WRITE and must answer alike, byte for byte;
rules of both are stated here: GOOD of a read that returned data travels in its last Data-In (RFC 7143 section
11.7.3), Data-In segments are whole sectors and end at burst boundaries, one R2T is outstanding per task.

What goes wrong with a command's data (RFC 7143 section 11.4.7.2) ends that command with the sense named there; its
later Data-Out finds no task and is dropped.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.errors import EngineError
from iscsi.scsi.command import ScsiCommand, ScsiResult, Status
from iscsi.scsi.limits import MAX_TRANSFER_BYTES
from iscsi.scsi.lun import execute_absent
from iscsi.scsi.sense import SenseKey
from iscsi.task import ScsiTask
from iscsi.wire import requests, responses
from iscsi.wire.opcodes import RESERVED_TAG, ResidualFlag

if TYPE_CHECKING:
    from iscsi.connection import Connection
    from iscsi.session import Session

_MAX_RESIDUAL = 0xFFFFFFFF  # what the field can say; a WRITE(16) may ask for more

# Sense of failed transfers, RFC 7143 section 11.4.7.2: sense key ABORTED COMMAND with these ASC/ASCQ.
_UNEXPECTED_UNSOLICITED_DATA = 0x0C0C
_INCORRECT_AMOUNT_OF_DATA = 0x0C0D
_PROTOCOL_SERVICE_CRC_ERROR = 0x4705


def transfer_failure(asc: int) -> bytes:
    """Fixed format sense data, ABORTED COMMAND."""
    return bytes((0x70, 0, SenseKey.ABORTED_COMMAND, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc >> 8, asc & 0xFF, 0, 0, 0, 0))


class CommandFlow:
    """The SCSI commands of one connection in full feature phase of a normal session."""

    def __init__(self, connection: Connection, session: Session) -> None:
        self._connection = connection
        self._session = session
        self._last_ttt = 0

    # -- from the initiator

    def begin(self, command: requests.ScsiCommandPdu) -> None:
        """A command that is next by its CmdSN, or immediate. Its ITT is free."""
        session = self._session
        connection = self._connection
        nexus = connection.nexus(command.lun)
        if nexus is None:
            self._begin_absent(command)
            return
        task = ScsiTask(
            nexus,
            command.itt,
            command.lun,
            command.cdb,
            attribute=command.attribute,
            immediate=command.immediate,
            is_read=command.read,
            is_write=command.write,
            expected=command.edtl,
        )
        session.add(task)
        if task.is_write:
            task.consider_streaming()
            if not task.streams:
                asked = nexus.lu.data_out_length(task.cdb)
                task.wanted = min(task.expected, asked) if asked <= MAX_TRANSFER_BYTES else 0
        data = command.data
        first_burst = min(connection.first_burst_bytes, task.expected)
        if len(data) > connection.max_immediate_bytes or (not command.final and connection.initial_r2t):
            self._fail(task, _UNEXPECTED_UNSOLICITED_DATA)
            return
        task.burst_end = len(data) if command.final else first_burst
        if task.burst_end and not task.streams and not session.may_gather(task, task.burst_end):
            self._answer(task, ScsiResult(Status.TASK_SET_FULL))
            return
        if data:
            self._take(task, memoryview(data))
        if command.final:
            self._burst_is_over(task)

    def data_out(self, data_out: requests.DataOut) -> None:
        """A piece of a command's data; none of our business if the command is over (RFC 7143 section 11.5.1)."""
        task = self._session.tasks.get(data_out.itt)
        if task is None:
            return
        end = data_out.buffer_offset + len(data_out.data)
        if data_out.ttt != task.ttt or data_out.data_sn != task.data_sn or data_out.buffer_offset != task.received:
            # A lost or repeated piece. At error recovery level 0 nothing can be asked for again.
            self._connection.note("%s: Data-Out out of order: %s", task, data_out)
            self._fail(task, _PROTOCOL_SERVICE_CRC_ERROR)
            return
        if end > task.burst_end or (data_out.final and task.ttt != RESERVED_TAG and end < task.burst_end):
            self._fail(task, _INCORRECT_AMOUNT_OF_DATA)
            return
        self._take(task, memoryview(data_out.data))
        task.data_sn += 1
        if data_out.final:
            self._burst_is_over(task)
        elif end == task.burst_end:
            self._fail(task, _INCORRECT_AMOUNT_OF_DATA)  # the burst is full and yet not final

    # -- data

    def _take(self, task: ScsiTask, data: memoryview) -> None:
        """A piece in order: into the device if the task streams, else gathered."""
        nexus = task.nexus
        device = nexus.fast_device
        if task.streams and nexus.fast_writable and device is not None and not len(data) & (1 << nexus.block_shift) - 1:
            try:
                done = device.try_write(task.offset + task.received, data)
            except EngineError:
                done = False  # met again, and worded, when the rest is written by the logical unit
            if done:
                if device not in self._connection.dirty:
                    self._connection.dirty.append(device)
                task.received += len(data)
                task.streamed += len(data)
                return
        if task.streams:
            self._session.gathers(task)
        task.gather(data)

    def _burst_is_over(self, task: ScsiTask) -> None:
        if task.received < task.wanted:
            if self._session.may_solicit(task):
                self._solicit(task)
        elif task.streams and task.wanted:
            self._answer(task, ScsiResult(data_out_wanted=task.wanted))
        else:
            self._session.enqueue(task)
            self.start()

    def _solicit(self, task: ScsiTask) -> None:
        """Ask for the next burst."""
        connection = self._connection
        length = min(connection.burst_bytes, task.wanted - task.received)
        self._last_ttt = (self._last_ttt + 1) % RESERVED_TAG
        task.ttt = self._last_ttt
        task.data_sn = 0
        task.burst_end = task.received + length
        connection.send(
            responses.R2T(
                lun=task.lun,
                itt=task.itt,
                ttt=task.ttt,
                r2t_sn=task.r2t_sn,
                buffer_offset=task.received,
                desired_length=length,
                **connection.numbers(),
            )
        )
        task.r2t_sn += 1

    def _fail(self, task: ScsiTask, asc: int) -> None:
        self._answer(task, ScsiResult(Status.CHECK_CONDITION, sense=transfer_failure(asc)))

    # -- running

    def start(self) -> None:
        """Ask for the data that there is room for now, and hand every task that may start to the shell."""
        for task in self._session.unwithheld():
            self._solicit(task)
        if self._connection.may_start:
            for task in self._session.startable():
                self._connection.add_work(self._run(task))

    async def _run(self, task: ScsiTask) -> None:
        session = self._session
        task.runner = asyncio.current_task()
        try:
            if task.nexus in session.nexuses.values():
                result = await task.nexus.lu.execute(task.nexus, task.command())
            else:  # no longer shown since the command began
                result = execute_absent(task.command(), self._connection.luns())
        finally:
            session.stop(task)
        if not task.aborted:
            if task.streamed:
                result.data_out_wanted = task.expected
            self._answer(task, result)
        elif session.has_waiting:
            self.start()

    def _begin_absent(self, command: requests.ScsiCommandPdu) -> None:
        """A LUN that maps to nothing: answered at once, its data ignored."""
        if not command.immediate:
            self._session.answered()
        limit = command.edtl if command.read else 0
        scsi = ScsiCommand(command.cdb, memoryview(b""), limit)
        result = execute_absent(scsi, self._connection.luns())
        self._respond(command.itt, command.read, command.write, command.edtl, result)

    # -- to the initiator

    def _answer(self, task: ScsiTask, result: ScsiResult) -> None:
        session = self._session
        session.retire(task)
        length = 0
        if result.status == Status.GOOD:
            length = min(len(result.data_in) if task.is_read else result.data_out_wanted, task.expected)
        session.observed.answered(task, result.status, result.sense, length=length)
        self._respond(task.itt, task.is_read, task.is_write, task.expected, result)
        if task.is_read and result.data_in:
            session.leaves(task, min(len(result.data_in), task.expected))
        if session.has_waiting:
            self.start()

    def _respond(self, itt: int, is_read: bool, is_write: bool, expected: int, result: ScsiResult) -> None:
        """Data-In and status. Residuals: RFC 7143 section 11.4.5."""
        connection = self._connection
        data = memoryview(result.data_in)
        if not is_write:
            actual = len(data)
        elif result.status == Status.GOOD or result.data_out_wanted:
            actual = result.data_out_wanted
        else:
            actual = expected  # no residual is known for what was refused
        flags = ResidualFlag.OVERFLOW if actual > expected else ResidualFlag.UNDERFLOW if actual < expected else 0
        residual = min(abs(actual - expected), _MAX_RESIDUAL)
        sent = data[:expected] if is_read else data[:0]
        done = data_sn = 0
        while done < len(sent):
            in_burst = connection.burst_bytes - done % connection.burst_bytes
            piece = sent[done : done + min(connection.segment_bytes, in_burst)]
            is_last = done + len(piece) == len(sent)
            carries_status = is_last and result.status == Status.GOOD
            numbers = connection.status_numbers() if carries_status else connection.numbers()
            if not carries_status:
                numbers["stat_sn"] = 0  # reserved then (RFC 7143 section 11.7.4)
            connection.send(
                responses.DataIn(
                    itt=itt,
                    data_sn=data_sn,
                    buffer_offset=done,
                    data=piece,
                    final=is_last or len(piece) == in_burst,
                    status=Status.GOOD if carries_status else None,
                    flags=flags if carries_status else 0,
                    residual=residual if carries_status else 0,
                    **numbers,
                )
            )
            if carries_status:
                return
            done += len(piece)
            data_sn += 1
        sense = result.sense
        connection.send(
            responses.ScsiResponsePdu(
                itt=itt,
                status=result.status,
                flags=flags,
                residual=residual,
                exp_data_sn=data_sn,
                data=len(sense).to_bytes(2, "big") + sense if sense else b"",
                **connection.status_numbers(),
            )
        )
