"""Task management functions (RFC 7143 sections 4.2.3, 11.5 and 11.6; SAM-5 section 7).

Each ends some tasks, waits until none of them touches the medium any more, does its deed, and only then answers: after
the answer no write of an ended task can land. Ended tasks get no SCSI Response (TAS=0); other initiators that lost
tasks learn it by a unit attention. An initiator resets only the logical units that it sees.

Data that was asked for is not waited for, though section 4.2.3.3 has it so: Linux' initiator sends none after its
request (FastAbort), and what others still send finds no task and is dropped.

REASSIGN needs error recovery level 2 and is refused; so are CLEAR ACA, as no ACA is ever established, and the queries
of RFC 7144.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iscsi.scsi.sense import Asc
from iscsi.session import settle
from iscsi.wire import responses
from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import RejectReason, TaskFunction, TaskResponse
from iscsi.wire.serial import serial_lt

if TYPE_CHECKING:
    from collections.abc import Callable

    from iscsi.connection import Connection
    from iscsi.scsi.lun import LogicalUnit, Nexus
    from iscsi.session import Session, SessionTable
    from iscsi.task import ScsiTask
    from iscsi.wire import requests

MAX_PENDING = 16
"""Functions of one session that wait for workers; a further one is refused."""

_OF_A_UNIT = frozenset(
    (
        TaskFunction.ABORT_TASK,
        TaskFunction.ABORT_TASK_SET,
        TaskFunction.CLEAR_TASK_SET,
        TaskFunction.LOGICAL_UNIT_RESET,
    )
)
_OF_THE_TARGET = frozenset((TaskFunction.TARGET_WARM_RESET, TaskFunction.TARGET_COLD_RESET))


class TaskManagement:
    """Task management of one session."""

    def __init__(self, connection: Connection, session: Session, table: SessionTable) -> None:
        self._connection = connection
        self._session = session
        self._table = table
        self._pending = 0

    def begin(self, request: requests.TaskManagementRequest) -> None:
        """End the tasks that are there now; answer at once, or when the last of them has left its worker.

        Raises:
            ProtocolError: too many wait already.
        """
        if self._pending >= MAX_PENDING:
            raise ProtocolError("too many task management functions", RejectReason.TOO_MANY_IMMEDIATE_COMMANDS)
        if self._is_ahead_of_its_task(request):
            self._session.pass_over(request.ref_cmd_sn)
            self._conclude(request, TaskResponse.FUNCTION_COMPLETE, [])
            return
        nexus = None
        units: list[LogicalUnit] = []
        if request.function in _OF_THE_TARGET:
            units = list({id(nexus.lu): nexus.lu for nexus in self._connection.all_nexuses()}.values())
        elif request.function in _OF_A_UNIT:
            nexus = self._connection.nexus(request.lun)
            if nexus is not None and request.function == TaskFunction.LOGICAL_UNIT_RESET:
                units = [nexus.lu]
        response = self._check(request, nexus)
        running = []
        if response == TaskResponse.FUNCTION_COMPLETE:
            matches = self._matcher(request, nexus, units)
            # Those that were aborted before and still run are waited for as well.
            running = self._table.running(matches)
            self._end(self._table.tasks_of(matches), tell=not units)
        if running or any(unit.copy_manager.in_background(unit) for unit in units):
            self._pending += 1
            self._connection.add_work(self._conclude_later(request, response, units, running))
        else:
            self._conclude(request, response, units)

    def _check(self, request: requests.TaskManagementRequest, nexus: Nexus | None) -> TaskResponse:
        """What the function will be answered with."""
        if request.function in _OF_THE_TARGET:
            return TaskResponse.FUNCTION_COMPLETE
        if request.function == TaskFunction.TASK_REASSIGN:
            return TaskResponse.REASSIGNMENT_NOT_SUPPORTED
        if request.function not in _OF_A_UNIT:
            return TaskResponse.FUNCTION_NOT_SUPPORTED
        if nexus is None:
            return TaskResponse.LUN_DOES_NOT_EXIST
        if request.function == TaskFunction.ABORT_TASK:
            task = self._session.tasks.get(request.referenced_task_tag)
            if task is None or task.nexus is not nexus:
                return TaskResponse.TASK_DOES_NOT_EXIST
        return TaskResponse.FUNCTION_COMPLETE

    def _is_ahead_of_its_task(self, request: requests.TaskManagementRequest) -> bool:
        """ABORT TASK of a command that has not come, by a number that it may still have (section 11.6.1, case b)."""
        return (
            request.function == TaskFunction.ABORT_TASK
            and request.referenced_task_tag not in self._session.tasks
            and self._session.in_window(request.ref_cmd_sn)
            and serial_lt(request.ref_cmd_sn, request.cmd_sn)
        )

    def _matcher(
        self, request: requests.TaskManagementRequest, nexus: Nexus | None, units: list[LogicalUnit]
    ) -> Callable[[ScsiTask], bool]:
        """Which tasks the function ends."""
        if request.function == TaskFunction.ABORT_TASK:
            the_one = self._session.tasks[request.referenced_task_tag]
            return lambda task: task is the_one
        if request.function == TaskFunction.ABORT_TASK_SET:
            return lambda task: task.nexus is nexus
        if nexus is not None and request.function == TaskFunction.CLEAR_TASK_SET:
            unit = nexus.lu
            return lambda task: task.nexus.lu is unit
        return lambda task: task.nexus.lu in units

    def _end(self, victims: list[tuple[Session, ScsiTask]], *, tell: bool) -> None:
        """Abort tasks. ``tell``: other sessions that lost some get the unit attention 2Fh/00h."""
        bereaved = set()
        for session, task in victims:
            session.abort(task)
            if session is not self._session:
                bereaved.add(task.nexus)
        if tell:
            for nexus in bereaved:
                nexus.establish_unit_attention(Asc.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR)
        for connection in {session.connection for session, _ in victims}:
            connection.go_on()

    async def _conclude_later(
        self,
        request: requests.TaskManagementRequest,
        response: TaskResponse,
        units: list[LogicalUnit],
        running: list[ScsiTask],
    ) -> None:
        await settle(running)
        for unit in units:
            await unit.copy_manager.stop(unit.copy_manager.in_background(unit))
        self._pending -= 1
        self._conclude(request, response, units)

    def _conclude(
        self, request: requests.TaskManagementRequest, response: TaskResponse, units: list[LogicalUnit]
    ) -> None:
        for unit in units:
            unit.reset()
        self._connection.note("task management function %d: %s", request.function, response.name)
        numbers = self._connection.status_numbers()
        self._connection.send(responses.TaskManagementResponse(request.itt, response, **numbers))
        if request.function == TaskFunction.TARGET_COLD_RESET:
            for session in self._table:
                if session.target is self._session.target:
                    session.connection.close()
