"""SANITIZE (SBC-3 section 5.30) and what hosts learn of an operation; ``engine.sanitize`` does it.

An operation belongs to the unit, not to the command that asked for it: it goes on when that is aborted, through resets
and restarts. While it runs, other commands end with NOT READY, 04h/1Bh, and after a failure with MEDIUM ERROR, 31h/03h,
but for those of whose row in the table ``while_sanitizing`` says otherwise. CRYPTOGRAPHIC ERASE is not offered: nothing
is encrypted here.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from engine.errors import InvalidState
from engine.sanitize import Sanitizable, SanitizeMethod, SanitizeOrder, SanitizeState
from iscsi.scsi.command import ScsiResult
from iscsi.scsi.sbc import require_exactly
from iscsi.scsi.sense import (
    Asc,
    CheckCondition,
    Progress,
    Sense,
    SenseKey,
    illegal_request,
    invalid_cdb_field,
    invalid_parameter,
)

if TYPE_CHECKING:
    from engine.sanitize import Sanitizer
    from engine.stores import BlockDevice
    from iscsi.scsi.command import ScsiCommand
    from iscsi.scsi.lun import LogicalUnit, Nexus

_log = logging.getLogger(__name__)

_IMMED, _AUSE = 0x80, 0x20  # byte 1 of the CDB
_INVERT, _TEST, _COUNT = 0x80, 0x60, 0x1F  # byte 0 of the overwrite parameter list, SBC-3 table 92
_HEADER = 4  # bytes of it before the initialization pattern

_TOLD_AT_ONCE = 2
"""TEST UNIT READYs of a nexus that are told of an operation at once. Who goes on asking is told of its end when it
comes, or at the latest after ``_POLL_S``: polling in a loop costs nothing then, and ends without delay."""
_POLL_S = 10.0
_LOOK_S = 0.1
"""A command that waits for the end of an operation looks so often whether it was aborted."""


def can_sanitize(device: BlockDevice) -> bool:
    return sanitizer_of(device) is not None


def sanitizer_of(device: BlockDevice) -> Sanitizer | None:
    return device.sanitizer if isinstance(device, Sanitizable) else None


def state_sense(sanitizer: Sanitizer) -> Sense:
    """What tells of the operation that runs or has failed."""
    if sanitizer.state is SanitizeState.RUNNING:
        return Sense(SenseKey.NOT_READY, Asc.SANITIZE_IN_PROGRESS, Progress(sanitizer.progress))
    assert sanitizer.state is SanitizeState.FAILED
    return Sense(SenseKey.MEDIUM_ERROR, Asc.SANITIZE_COMMAND_FAILED)


async def poll(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> None:
    """TEST UNIT READY while an operation may be running. Raises what ``LogicalUnit.require_medium`` does."""
    sanitizer = lu.sanitizer
    if sanitizer is None or sanitizer.state is not SanitizeState.RUNNING:
        nexus.sanitize_polls = 0
    else:
        nexus.sanitize_polls += 1
        if nexus.sanitize_polls > _TOLD_AT_ONCE:
            await _end_of(sanitizer, command, _POLL_S)
    lu.require_medium()


async def _end_of(sanitizer: Sanitizer, command: ScsiCommand, limit_s: float = float("inf")) -> None:
    """Wait for the end of the operation, at most so long, and no longer than anybody wants the command."""
    clock = asyncio.get_running_loop().time
    until = clock() + limit_s
    while sanitizer.state is SanitizeState.RUNNING and not command.is_aborted() and clock() < until:
        await sanitizer.finished(min(_LOOK_S, until - clock()))


def parameter_list_length(lu: LogicalUnit, cdb: bytes) -> int:
    return int.from_bytes(cdb[7:9], "big")


async def overwrite(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """OVERWRITE: a pattern of at most a block fills each block, repeated and cut off at its end."""
    length = parameter_list_length(lu, command.cdb)
    if not _HEADER < length <= _HEADER + lu.logical_block:
        raise invalid_cdb_field(7)
    data = bytes(require_exactly(command, length))
    count, pattern_length = data[0] & _COUNT, int.from_bytes(data[2:4], "big")
    if data[0] & _TEST:
        raise invalid_parameter(0, 6)
    if not count:
        raise invalid_parameter(0, 4)
    if data[1]:
        raise invalid_parameter(1)
    if not 0 < pattern_length <= lu.logical_block or _HEADER + pattern_length != length:
        raise invalid_parameter(2)
    block = (data[_HEADER:] * -(-lu.logical_block // pattern_length))[: lu.logical_block]
    invert, unrestricted = bool(data[0] & _INVERT), bool(command.cdb[1] & _AUSE)
    order = SanitizeOrder(SanitizeMethod.OVERWRITE, block, count, invert, unrestricted)
    return await _sanitize(lu, nexus, command, order)


async def block_erase(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """BLOCK ERASE: all blocks are deallocated and read zero (WABEREQ = 01b)."""
    unrestricted = bool(command.cdb[1] & _AUSE)
    order = SanitizeOrder(SanitizeMethod.BLOCK_ERASE, unrestricted_exit=unrestricted)
    return await _sanitize(lu, nexus, command, order)


async def _sanitize(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand, order: SanitizeOrder) -> ScsiResult:
    """Begin when the writes that came before have ended; without IMMED wait for the end."""
    sanitizer = lu.sanitizer
    assert sanitizer is not None
    if sanitizer.restricted and order.unrestricted_exit:
        raise invalid_cdb_field(1, 5)  # after a failure in the restricted mode that mode stays (SBC-4 section 4.11.3)
    async with lu.write_order.hold(0, lu.blocks, exclusive=True):
        try:
            await sanitizer.start(order)
        except InvalidState as error:
            _log.warning("SANITIZE of %s refused: %s", nexus.it_nexus.initiator_port, error)
            raise illegal_request(Asc.COMMAND_SEQUENCE_ERROR) from error
    _log.warning("unit %s: %s for %s", lu.identity.serial, order.method.value, nexus.it_nexus.initiator_port)
    if not command.cdb[1] & _IMMED:
        await _end_of(sanitizer, command)
        if sanitizer.state is SanitizeState.FAILED:
            raise CheckCondition(state_sense(sanitizer))
    return ScsiResult()


async def exit_failure_mode(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """EXIT FAILURE MODE: granted where the operation that failed was asked for with AUSE. GOOD without a failure."""
    sanitizer = lu.sanitizer
    assert sanitizer is not None
    try:
        await sanitizer.give_up()
    except InvalidState:
        raise invalid_cdb_field(1, 4) from None
    return ScsiResult()
