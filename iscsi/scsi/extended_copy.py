"""EXTENDED COPY(LID1), block device to block device (SPC-4 section 6.5; parameter list: sections 6.4.3 to 6.4.6).

The lengths and types of the whole parameter list are checked first; what fails there is ILLEGAL REQUEST, and nothing
was copied. Then the segments are copied in order. What fails in a segment is COPY ABORTED with its number, a pointer
to what is wrong and, if an end of the copy refused, what it answered (section 5.17.7.4); segments before it are done.

Within a segment the ranges may overlap: the destination receives what the source held before. All units have blocks of
one length; a segment that would leave a part of a block over is refused whatever its CAT and PAD bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import EngineError
from iscsi.scsi import limits
from iscsi.scsi.command import ScsiResult, Status
from iscsi.scsi.copy_manager import NOT_REACHABLE, CopyEnd, CopyRequest, EndFailed
from iscsi.scsi.sense import (
    Asc,
    CheckCondition,
    CopySide,
    Effect,
    FieldPointer,
    Forwarded,
    SegmentPointer,
    Sense,
    SenseKey,
    illegal_request,
    invalid_parameter,
    sense_for,
)

if TYPE_CHECKING:
    from iscsi.scsi.command import ScsiCommand
    from iscsi.scsi.copy_manager import CopyOperation
    from iscsi.scsi.lun import LogicalUnit, Nexus

SERVICE_ACTION = 0x00

IDENTIFICATION_DESCRIPTOR = 0xE4  # CSCD descriptor type, SPC-4 table 131
BLOCK_TO_BLOCK = 0x02  # segment descriptor type, SPC-4 table 146
RECEIVING_UNIT = 0xFFFF  # CSCD descriptor ID, SPC-4 table 148
_NULL_UNITS = (0xC000, 0xC001)

_HEADER, _CSCD, _SEGMENT = 16, 32, 28  # bytes
_NUL = 0x20  # byte 1 of a CSCD descriptor: SPC-3's null device, obsolete since
_BINARY, _UNIT_NAA, _NAA_BYTES = 1, 0x03, 8  # of a designator, SPC-4 section 7.8.6.1
_DC = 0x02  # byte 1 of a segment descriptor


@dataclass(frozen=True, slots=True)
class _Segment:
    """A block to block segment descriptor (SPC-4 section 6.4.6.4) and its number."""

    number: int
    data: bytes

    def field(self, start: int, end: int) -> int:
        return int.from_bytes(self.data[start:end], "big")


@dataclass(frozen=True, slots=True)
class _ParameterList:
    list_id: int | None
    cscds: list[bytes]
    segments: list[_Segment]


def parameter_list_length(lu: LogicalUnit, cdb: bytes) -> int:
    return int.from_bytes(cdb[10:14], "big")


async def extended_copy(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    if not parameter_list_length(lu, command.cdb):
        return ScsiResult()
    parameters = _parse(bytes(command.data_out))

    async def work(operation: CopyOperation) -> None:
        for segment in parameters.segments:
            operation.segments += 1
            await _SegmentCopy(nexus, parameters.cscds, segment, operation).run()
        operation.wanted_bytes = operation.moved_bytes

    return await lu.copy_manager.run(nexus, CopyRequest(parameters.list_id, SERVICE_ACTION), command.is_aborted, work)


# -- the parameter list


def _parse(data: bytes) -> _ParameterList:
    if len(data) < _HEADER:
        raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
    list_id = _list_identifier(data)
    cscd_bytes = int.from_bytes(data[2:4], "big")
    segment_bytes = int.from_bytes(data[8:12], "big")
    end = _HEADER + cscd_bytes + segment_bytes
    if end > len(data) or end > _HEADER + limits.MAX_DESCRIPTOR_LIST_BYTES:
        raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
    if any(data[12:16]):
        raise illegal_request(Asc.INLINE_DATA_LENGTH_EXCEEDED)
    if cscd_bytes % _CSCD:
        raise invalid_parameter(2)
    if cscd_bytes // _CSCD > limits.MAX_CSCD_DESCRIPTORS:
        raise illegal_request(Asc.TOO_MANY_TARGET_DESCRIPTORS)
    first_segment = _HEADER + cscd_bytes
    cscds = [data[at : at + _CSCD] for at in range(_HEADER, first_segment, _CSCD)]
    for number, cscd in enumerate(cscds):
        if cscd[0] != IDENTIFICATION_DESCRIPTOR:
            raise _unsupported(Asc.UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE, _HEADER + number * _CSCD)
    return _ParameterList(list_id, cscds, _segments(data, first_segment, end))


def _list_identifier(data: bytes) -> int | None:
    """SPC-4 table 129. Nothing is held but what the RECEIVE COPY commands return, so 10b is as good as 00b."""
    usage = data[1] >> 3 & 0x03
    if usage == 0b01:
        raise invalid_parameter(1, 4)
    if usage != 0b11:
        return data[0]
    if data[0]:
        raise invalid_parameter(0)
    return None


def _segments(data: bytes, at: int, end: int) -> list[_Segment]:
    found: list[_Segment] = []
    while at < end:
        if len(found) == limits.MAX_SEGMENT_DESCRIPTORS:
            raise illegal_request(Asc.TOO_MANY_SEGMENT_DESCRIPTORS)
        if data[at] != BLOCK_TO_BLOCK:
            raise _unsupported(Asc.UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE, at)
        if at + _SEGMENT > end:
            raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
        if int.from_bytes(data[at + 2 : at + 4], "big") != _SEGMENT - 4:
            raise invalid_parameter(at + 2)
        found.append(_Segment(len(found), data[at : at + _SEGMENT]))
        at += _SEGMENT
    return found


def _unsupported(asc: Asc, at: int) -> CheckCondition:
    return CheckCondition(Sense(SenseKey.ILLEGAL_REQUEST, asc, FieldPointer(at, in_cdb=False)))


# -- a segment


class _SegmentCopy:
    """The copy of one segment."""

    def __init__(self, nexus: Nexus, cscds: list[bytes], segment: _Segment, operation: CopyOperation) -> None:
        self._nexus = nexus
        self._cscds = cscds
        self._segment = segment
        self._operation = operation
        self._blocks = 0  # to be written, and their length
        self._block_bytes = 1
        self._moved = 0

    async def run(self) -> None:
        """Raises ``CheckCondition`` with COPY ABORTED."""
        segment = self._segment
        source = self._end(4)
        target = self._end(6)
        count = segment.field(10, 12)
        length = count << (target if segment.data[1] & _DC else source).lu.block_shift
        if length % source.lu.logical_block or length % target.lu.logical_block:
            raise self._wrong(Asc.UNEXPECTED_INEXACT_SEGMENT, 10)
        read_lba, write_lba = segment.field(12, 20), segment.field(20, 28)
        if read_lba + (length >> source.lu.block_shift) > source.lu.blocks:
            raise self._wrong(Asc.NONE, 12)
        if write_lba + (length >> target.lu.block_shift) > target.lu.blocks:
            raise self._wrong(Asc.NONE, 20)
        self._blocks, self._block_bytes = length >> target.lu.block_shift, target.lu.logical_block
        before = self._operation.moved_bytes

        def progress(done: int) -> None:
            self._moved = done
            self._operation.advance(before + done)
            self._require_readable(source)

        self._require_readable(source)
        try:
            target.require(Effect.WRITE)
            await source.lu.copy_manager.offload.copy(
                source.lu.device,
                read_lba << source.lu.block_shift,
                target.lu.device,
                write_lba << target.lu.block_shift,
                length,
                hold=target.hold,
                progress=progress,
            )
            await target.settle()
        except EndFailed as failure:
            raise self._refused(CopySide.DESTINATION, failure) from failure
        except EngineError as error:
            raise self._refused(CopySide.SOURCE, EndFailed(sense_for(error, Effect.READ))) from error

    # -- its ends

    def _end(self, at: int) -> CopyEnd:
        """The end whose CSCD descriptor ID is at this byte of the segment descriptor."""
        number = self._segment.field(at, at + 2)
        if number == RECEIVING_UNIT:
            return CopyEnd(self._nexus.lu, self._nexus)
        if number in _NULL_UNITS:
            raise self._wrong(NOT_REACHABLE.asc, at)
        if number >= len(self._cscds):
            raise self._wrong(Asc.UNREACHABLE_COPY_TARGET, at)
        return self._identified(number)

    def _identified(self, number: int) -> CopyEnd:
        """The unit that an identification descriptor names (SPC-4 section 6.4.5.6). LU ID TYPE is ignored."""
        cscd = self._cscds[number]
        if cscd[1] & 0x1F:
            raise self._wrong_cscd(Asc.INCORRECT_COPY_TARGET_DEVICE_TYPE, number)
        unit = None
        if not cscd[1] & _NUL:
            unit = _find(self._nexus, cscd[4:28])
        if unit is None:
            raise self._wrong_cscd(NOT_REACHABLE.asc, number)
        block = int.from_bytes(cscd[29:32], "big")
        if block not in (0, unit.logical_block):
            raise self._wrong_cscd(Asc.INVALID_FIELD_IN_PARAMETER_LIST, number, 29)
        return CopyEnd(unit, self._nexus)

    # -- its failures

    def _require_readable(self, source: CopyEnd) -> None:
        try:
            source.require(Effect.READ)
        except EndFailed as failure:
            raise self._refused(CopySide.SOURCE, failure) from failure

    def _wrong(self, asc: Asc, byte: int) -> CheckCondition:
        """An error in the segment descriptor."""
        return self._aborted(asc, SegmentPointer(byte, in_segment=True))

    def _wrong_cscd(self, asc: Asc, number: int, byte: int = 0) -> CheckCondition:
        return self._aborted(asc, SegmentPointer(_HEADER + number * _CSCD + byte, in_segment=False))

    def _aborted(self, asc: Asc, pointer: SegmentPointer) -> CheckCondition:
        return CheckCondition(Sense(SenseKey.COPY_ABORTED, asc, pointer, segment=self._segment.number))

    def _refused(self, side: CopySide, failure: EndFailed) -> CheckCondition:
        """An end answered with a failure. The residual is told in blocks of the destination, if any was written."""
        at = 4 if side is CopySide.SOURCE else 6
        number = self._segment.field(at, at + 2)
        pointer = SegmentPointer(at, in_segment=True)
        if number != RECEIVING_UNIT:
            pointer = SegmentPointer(_HEADER + number * _CSCD, in_segment=False)
        if failure.sense is NOT_REACHABLE:
            asc, forwarded = NOT_REACHABLE.asc, None
        else:
            asc, forwarded = Asc.THIRD_PARTY_DEVICE_FAILURE, _forwarded(side, failure)
        return CheckCondition(
            Sense(
                SenseKey.COPY_ABORTED,
                asc,
                pointer,
                information=self._blocks - self._moved // self._block_bytes if self._moved else None,
                segment=self._segment.number,
                forwarded=forwarded,
            )
        )


def _forwarded(side: CopySide, failure: EndFailed) -> Forwarded:
    if failure.sense is None:
        return Forwarded(side, Status.RESERVATION_CONFLICT)
    return Forwarded(side, Status.CHECK_CONDITION, failure.sense.serialize())


def _find(nexus: Nexus, designator: bytes) -> LogicalUnit | None:
    """Among the units that the initiator may use, the one whose VPD page 83h has this designator."""
    code_set, kind, length = designator[0] & 0x0F, designator[1] & 0x3F, designator[3]
    if (code_set, kind, length) != (_BINARY, _UNIT_NAA, _NAA_BYTES):
        return None
    naa = int.from_bytes(designator[4 : 4 + _NAA_BYTES], "big")
    for unit in nexus.lu.copy_manager.reach(nexus):
        if unit.identity.naa == naa:
            return unit
    return None
