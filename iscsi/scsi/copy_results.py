"""Questions about copy operations, and their end on demand: RECEIVE COPY ..., RECEIVE ROD TOKEN INFORMATION, COPY
OPERATION ABORT (SPC-4 sections 6.3 and 6.20 to 6.26).

No segment that is supported holds data for the initiator, so RECEIVE COPY DATA is always empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iscsi.scsi import limits
from iscsi.scsi.command import ScsiResult, Status
from iscsi.scsi.copy_manager import OperationStatus
from iscsi.scsi.extended_copy import BLOCK_TO_BLOCK, IDENTIFICATION_DESCRIPTOR, SERVICE_ACTION
from iscsi.scsi.sense import invalid_cdb_field

if TYPE_CHECKING:
    from iscsi.scsi.command import ScsiCommand
    from iscsi.scsi.copy_manager import CopyOperation
    from iscsi.scsi.lun import LogicalUnit, Nexus

SUPPORTED_DESCRIPTORS = bytes((BLOCK_TO_BLOCK, IDENTIFICATION_DESCRIPTOR))

_BYTES, _KIBIBYTES, _BLOCKS = 0x00, 0x01, 0xF1  # TRANSFER COUNT UNITS, SPC-4 table 251
_IN_PROGRESS, _WITHOUT_ERRORS, _WITH_ERRORS = 0, 1, 2  # COPY COMMAND STATUS, SPC-4 table 254
_NEXT_QUESTION_MS = 100
_NO_MORE_QUESTIONS = 0xFFFFFFFE


def _truncated(data: bytes, cdb: bytes) -> ScsiResult:
    return ScsiResult(data_in=data[: int.from_bytes(cdb[10:14], "big")])


def _known(nexus: Nexus, list_id: int) -> CopyOperation:
    operation = nexus.copies.get(list_id)
    if operation is None:
        raise invalid_cdb_field(2)
    return operation


def _known_by_byte(nexus: Nexus, cdb: bytes) -> CopyOperation:
    return _known(nexus, cdb[2])


def _known_by_word(nexus: Nexus, cdb: bytes) -> CopyOperation:
    return _known(nexus, int.from_bytes(cdb[2:6], "big"))


# -- with a list identifier of one byte


async def receive_copy_status_1(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """SPC-4 section 6.25. What is known of an operation that is over is told once."""
    operation = _known_by_byte(nexus, command.cdb)
    units, count = _BYTES, operation.moved_bytes
    if count >> 32:
        units, count = _KIBIBYTES, count >> 10
    status = _WITHOUT_ERRORS if operation.status in _SUCCESS else _WITH_ERRORS
    if operation.in_progress:
        status = _IN_PROGRESS
    elif operation.result.status == Status.GOOD:
        del nexus.copies[command.cdb[2]]  # a failure is kept for RECEIVE COPY FAILURE DETAILS
    data = (8).to_bytes(4, "big") + bytes((status,)) + operation.segments.to_bytes(2, "big")
    return _truncated(data + bytes((units,)) + count.to_bytes(4, "big"), command.cdb)


_SUCCESS = (OperationStatus.COMPLETED, OperationStatus.PARTIAL)


async def receive_copy_data_1(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """SPC-4 section 6.21."""
    if _known_by_byte(nexus, command.cdb).in_progress:
        raise invalid_cdb_field(2)
    return _truncated(bytes(4), command.cdb)


async def receive_copy_failure_details(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """SPC-4 section 6.23. Forgotten once it was told whole."""
    operation = _known_by_byte(nexus, command.cdb)
    if operation.in_progress:
        raise invalid_cdb_field(2)
    if operation.result.status == Status.GOOD:
        return _truncated(bytes(4), command.cdb)
    sense = operation.result.sense
    data = bytes(52) + bytes((operation.result.status, 0)) + len(sense).to_bytes(2, "big") + sense
    told = _truncated(len(data).to_bytes(4, "big") + data, command.cdb)
    if len(told.data_in) == 4 + len(data) or not told.data_in:
        del nexus.copies[command.cdb[2]]
    return told


async def receive_copy_operating_parameters(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """SPC-4 section 6.22."""
    data = bytearray(44)
    data[4] = 0x01  # SNLID: a command without a list identifier is taken
    data[8:10] = limits.MAX_CSCD_DESCRIPTORS.to_bytes(2, "big")
    data[10:12] = limits.MAX_SEGMENT_DESCRIPTORS.to_bytes(2, "big")
    data[12:16] = limits.MAX_DESCRIPTOR_LIST_BYTES.to_bytes(4, "big")
    data[16:20] = (limits.MAX_SEGMENT_BLOCKS << lu.block_shift).to_bytes(4, "big")
    data[34:36] = limits.MAX_COPIES.to_bytes(2, "big")
    data[36] = limits.MAX_COPIES
    data[37] = lu.block_shift
    data[43] = len(SUPPORTED_DESCRIPTORS)
    data += SUPPORTED_DESCRIPTORS
    data[0:4] = (len(data) - 4).to_bytes(4, "big")
    return _truncated(bytes(data), command.cdb)


# -- with a list identifier of four bytes


async def receive_copy_status_4(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """SPC-4 section 6.24."""
    return _truncated(_with_length(_status(_known_by_word(nexus, command.cdb))), command.cdb)


async def receive_rod_token_information(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """SPC-4 section 6.26, with SBC-3's meaning of the transfer count. The token is forgotten once it was told whole."""
    operation = _known_by_word(nexus, command.cdb)
    descriptors = bytes(2) + operation.token if operation.token else b""
    data = _with_length(_status(operation) + len(descriptors).to_bytes(4, "big") + descriptors)
    told = _truncated(data, command.cdb)
    if operation.token and (len(told.data_in) == len(data) or not told.data_in):
        operation.token = b""
    return told


def _with_length(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _status(operation: CopyOperation) -> bytes:
    """The shared third-party copy status header without its length (SPC-4 table 248)."""
    sense = b"" if operation.in_progress else operation.result.sense
    field = sense.ljust(-(-len(sense) // 4) * 4, b"\0")
    delay = _NEXT_QUESTION_MS if operation.in_progress else _NO_MORE_QUESTIONS
    units, count = _BLOCKS, operation.moved_bytes >> operation.lu.block_shift
    if operation.service_action == SERVICE_ACTION:
        units, count = _BYTES, operation.moved_bytes
    return (
        bytes((operation.service_action, operation.status))
        + (operation.steps & 0xFFFF).to_bytes(2, "big")
        + delay.to_bytes(4, "big")
        + bytes((0 if operation.in_progress else operation.result.status, len(field), len(sense), units))
        + count.to_bytes(8, "big")
        + operation.segments.to_bytes(2, "big")
        + bytes(6)
        + field
    )


async def copy_operation_abort(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """SPC-4 section 6.3: ends when the operation writes no more."""
    operation = _known_by_word(nexus, command.cdb)
    if not operation.in_progress:
        raise invalid_cdb_field(2)
    await lu.copy_manager.stop((operation,))
    return ScsiResult()
