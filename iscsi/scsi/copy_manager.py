"""The copy manager (SPC-4 section 5.17): copy operations from their start to the last question about them.

One for all logical units of a server: a copy reads and writes any unit that its initiator could read and write itself.
``CopyEnd`` is that rule; it is checked anew for each piece, so that a preempted reservation, a withdrawn access or a
removed LUN ends the copy there, and each piece is written inside the target unit's ``write_order``: whoever waits
there for earlier writes waits for the piece too.

An operation in the foreground is the work of its command. One in the background (IMMED) ends with a reset of its
unit, its unit's removal or the server; not with its session, whose questions it then only loses.

Operations are known to one nexus of one logical unit by a list identifier, at most ``limits.MAX_KNOWN_COPIES`` of
them: those in progress, and as many of the latest ones as there is room for.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.offload import Offload
from iscsi.scsi import limits
from iscsi.scsi.command import ScsiResult, Status
from iscsi.scsi.dispatch import Availability
from iscsi.scsi.sense import (
    Asc,
    CheckCondition,
    Effect,
    ReservationConflict,
    Sense,
    SenseKey,
    illegal_request,
    sense_for,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from engine.tokens import Tokens
    from iscsi.scsi.lun import LogicalUnit, Nexus

    Reach = Callable[[Nexus], Iterable[LogicalUnit]]
    Work = Callable[["CopyOperation"], Awaitable[None]]

NOT_REACHABLE = Sense(SenseKey.COPY_ABORTED, Asc.COPY_TARGET_DEVICE_NOT_REACHABLE)
_STOPPED = Sense(SenseKey.COPY_ABORTED, Asc.COMMANDS_CLEARED_BY_DEVICE_SERVER)
_WRITE_PROTECTED = Sense(SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)


class OperationStatus(enum.IntEnum):
    """COPY OPERATION STATUS, SPC-4 table 249."""

    COMPLETED = 0x01
    FAILED = 0x02
    PARTIAL = 0x03  # without errors, of a part of the ROD token
    FOREGROUND = 0x11
    BACKGROUND = 0x12
    TERMINATED = 0x60


_IN_PROGRESS = (OperationStatus.FOREGROUND, OperationStatus.BACKGROUND)


@dataclass(eq=False, slots=True)
class CopyOperation:
    """One third-party copy command and what became of it.

    ``moved_bytes`` are in place at their destinations, in the order of the command. ``wanted_bytes``: what the command
    asks for. ``segments``: those begun. ``token``: the ROD token that it made.
    """

    lu: LogicalUnit
    initiator: str
    service_action: int
    status: OperationStatus
    is_aborted: Callable[[], bool]
    moved_bytes: int = 0
    wanted_bytes: int = 0
    segments: int = 0
    steps: int = 0
    token: bytes = b""
    result: ScsiResult = field(default_factory=ScsiResult)
    stopping: bool = False  # somebody wants it to end
    stopped: bool = False  # and so it did
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def in_progress(self) -> bool:
        return self.status in _IN_PROGRESS

    def advance(self, moved_bytes: int) -> None:
        """So much is in place in all. Raises ``CheckCondition`` when the operation is to end here."""
        self.moved_bytes = moved_bytes
        self.steps += 1
        if self.stopping or self.is_aborted():
            self.stopped = True
            raise CheckCondition(_STOPPED)


@dataclass(frozen=True, slots=True)
class CopyRequest:
    """How to run an operation. ``list_id`` None: nobody will ask for it."""

    list_id: int | None
    service_action: int
    wanted_bytes: int = 0
    immediate: bool = False


def own_unit_only(nexus: Nexus) -> Iterable[LogicalUnit]:
    return (nexus.lu,)


class CopyManager:
    """See the module. ``reach`` lists the units that the initiator of a nexus may use."""

    def __init__(self, tokens: Tokens, reach: Reach = own_unit_only) -> None:
        self.tokens = tokens
        self.reach = reach
        self.offload = Offload()
        self._active: set[CopyOperation] = set()
        self._tasks: set[asyncio.Task[ScsiResult]] = set()

    async def run(self, nexus: Nexus, request: CopyRequest, is_aborted: Callable[[], bool], work: Work) -> ScsiResult:
        """Do ``work`` as a copy operation of ``nexus``: to its end, or begin it only if the request is immediate."""
        initiator = nexus.it_nexus.initiator_name
        own = sum(operation.initiator == initiator for operation in self._active)
        if own >= limits.MAX_COPIES or len(self._active) >= limits.MAX_COPIES_OF_ALL:
            return ScsiResult(Status.TASK_SET_FULL)
        status = OperationStatus.BACKGROUND if request.immediate else OperationStatus.FOREGROUND
        operation = CopyOperation(
            nexus.lu,
            initiator,
            request.service_action,
            status,
            _never if request.immediate else is_aborted,
            wanted_bytes=request.wanted_bytes,
        )
        if request.list_id is not None:
            _remember(nexus, request.list_id, operation)
        self._active.add(operation)
        if not request.immediate:
            return await self._carry_out(operation, work)
        task = asyncio.create_task(self._carry_out(operation, work), name="copy in the background")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return ScsiResult()

    async def _carry_out(self, operation: CopyOperation, work: Work) -> ScsiResult:
        async def whole() -> ScsiResult:
            await work(operation)
            return ScsiResult()

        try:
            result = await operation.lu.outcome(whole(), f"copy {operation.service_action:02X}h", Effect.READ)
            if operation.stopped:
                operation.status = OperationStatus.TERMINATED
                operation.result = ScsiResult(Status.TASK_ABORTED)
            else:
                operation.status = _outcome(operation, result)
                operation.result = result
            return result
        finally:
            operation.is_aborted = _never  # it may hold the command and its data
            self._active.discard(operation)
            operation.finished.set()

    async def stop(self, operations: Iterable[CopyOperation]) -> None:
        """Return when none of these writes any more."""
        ending = [operation for operation in operations if operation in self._active]
        for operation in ending:
            operation.stopping = True
        for operation in ending:
            await operation.finished.wait()

    async def ended(self, lu: LogicalUnit) -> None:
        """Return when the operations of a unit that run in the background now are over."""
        for operation in self.in_background(lu):
            await operation.finished.wait()

    def in_background(self, lu: LogicalUnit | None = None) -> list[CopyOperation]:
        """Operations that no command waits for: of one unit, or all."""
        background = [each for each in self._active if each.status is OperationStatus.BACKGROUND]
        return [operation for operation in background if lu is None or operation.lu is lu]

    async def close(self) -> None:
        """End what runs in the background, then the tokens. No more commands come."""
        await self.stop(self.in_background())
        await self.tokens.close()


def _never() -> bool:
    return False


def _remember(nexus: Nexus, list_id: int, operation: CopyOperation) -> None:
    """Raises OPERATION IN PROGRESS when the identifier is taken (SPC-4 section 5.17.4.2)."""
    known = nexus.copies
    earlier = known.pop(list_id, None)
    if earlier is not None and earlier.in_progress:
        known[list_id] = earlier
        raise illegal_request(Asc.OPERATION_IN_PROGRESS)
    known[list_id] = operation
    for each in [each for each, old in known.items() if not old.in_progress]:
        if len(known) <= limits.MAX_KNOWN_COPIES:
            break
        del known[each]


def _outcome(operation: CopyOperation, result: ScsiResult) -> OperationStatus:
    if result.status != Status.GOOD:
        return OperationStatus.FAILED
    whole = operation.moved_bytes == operation.wanted_bytes
    return OperationStatus.COMPLETED if whole else OperationStatus.PARTIAL


class EndFailed(Exception):
    """An end of a copy refused: ``sense`` is what it would have answered; None for a reservation conflict."""

    def __init__(self, sense: Sense | None) -> None:
        super().__init__("reservation conflict" if sense is None else f"{sense.key.name} {sense.asc:04X}h")
        self.sense = sense


class CopyEnd:
    """A logical unit as source or destination of a copy that ``nexus`` asked for."""

    __slots__ = ("_nexus", "lu")

    def __init__(self, lu: LogicalUnit, nexus: Nexus) -> None:
        self.lu = lu
        self._nexus = nexus

    def require(self, effect: Effect) -> None:
        """Raises ``EndFailed``: with ``NOT_REACHABLE`` if the initiator may not use the unit (any more)."""
        lu = self.lu
        if not any(unit is lu for unit in lu.copy_manager.reach(self._nexus)):
            raise EndFailed(NOT_REACHABLE)
        own = [nexus for nexus in lu.nexuses if nexus.it_nexus.initiator_name == self._nexus.it_nexus.initiator_name]
        groups = [nexus.port_group for nexus in own] or list(lu.access)
        try:
            if not any(group.state.is_active for group in groups):
                for group in groups:
                    group.require(Availability.ACTIVE)
            lu.require_medium()
        except CheckCondition as failure:
            raise EndFailed(failure.sense) from None
        # A reservation, or its lack, is that of any nexus which the initiator has with the unit.
        if all(lu.reservations.forbid(nexus, effect) for nexus in {self._nexus, *own}):
            raise EndFailed(None)
        if effect is Effect.WRITE and lu.write_protected:
            raise EndFailed(_WRITE_PROTECTED)

    @contextlib.asynccontextmanager
    async def hold(self, offset: int, length: int) -> AsyncIterator[None]:
        """Around a change of these bytes."""
        shift = self.lu.block_shift
        first, end = offset >> shift, -(-(offset + length) >> shift)
        async with self.lu.write_order.hold(first, end - first):
            self.require(Effect.WRITE)
            try:
                yield
            except EngineError as error:
                raise EndFailed(sense_for(error, Effect.WRITE)) from error

    async def settle(self) -> None:
        """What was written is as durable as the unit promises: with the write cache off, on the medium."""
        if not self.lu.mode.write_cache:
            try:
                await self.lu.device.flush()
            except EngineError as error:
                raise EndFailed(sense_for(error, Effect.FLUSH)) from error


def refusal(failure: EndFailed) -> Exception:
    """The failure of a command whose own unit is the end that refused."""
    return ReservationConflict() if failure.sense is None else CheckCondition(failure.sense)
