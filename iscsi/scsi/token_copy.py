"""Token copy: POPULATE TOKEN and WRITE USING TOKEN (SBC-3; RODs and ROD tokens: SPC-4 section 5.17.6).

POPULATE TOKEN freezes the unit at one instant, whatever the ranges, and so is done at once; IMMED makes no difference
but that failures are then told by RECEIVE ROD TOKEN INFORMATION. WRITE USING TOKEN checks its parameter list and its
token before the command ends, also with IMMED, and then writes the ranges in order. DEL_TKN deletes the token once all
is written, so that what failed can be done again.

A ROD token is a capability: who has it may write its data to any unit that he may write, in any target of this server.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import InUse, InvalidState, NotFound, OutOfSpace, StoreFailed, TokenFault, TokenInvalid
from engine.stores import Extent
from engine.tokens import DEFAULT_INACTIVITY_S, MAX_INACTIVITY_S
from iscsi.scsi import limits, rod_token
from iscsi.scsi.command import ScsiResult
from iscsi.scsi.copy_manager import CopyEnd, CopyRequest, EndFailed, refusal
from iscsi.scsi.rod_token import ROD_TOKEN_BYTES, TOKEN_TYPES, RodToken, RodType
from iscsi.scsi.sbc import capacity_16, check_range
from iscsi.scsi.sense import Asc, illegal_request, invalid_parameter

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.tokens import Token
    from iscsi.scsi.command import ScsiCommand
    from iscsi.scsi.copy_manager import CopyOperation
    from iscsi.scsi.lun import LogicalUnit, Nexus

POPULATE_TOKEN = 0x10
WRITE_USING_TOKEN = 0x11

_RTV, _DEL_TKN, _IMMED = 0x02, 0x02, 0x01  # byte 2 of the parameter lists
_POPULATE_HEADER = 16  # bytes before the range descriptors
_WRITE_TOKEN = 16  # where the ROD token is
_WRITE_RANGES_LENGTH = 534
_WRITE_HEADER = 536
_RANGE = 16  # bytes of a block device range descriptor

_FAULTS: dict[str, Asc] = {
    TokenFault.UNKNOWN: Asc.TOKEN_UNKNOWN,
    TokenFault.EXPIRED: Asc.TOKEN_EXPIRED,
    TokenFault.CANCELLED: Asc.TOKEN_CANCELLED,
    TokenFault.DELETED: Asc.TOKEN_DELETED,
}


def parameter_list_length(lu: LogicalUnit, cdb: bytes) -> int:
    return int.from_bytes(cdb[10:14], "big")


def _list_identifier(cdb: bytes) -> int:
    return int.from_bytes(cdb[6:10], "big")


# -- POPULATE TOKEN


async def populate_token(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """A token for ranges of the unit, which RECEIVE ROD TOKEN INFORMATION hands out."""
    if not parameter_list_length(lu, command.cdb):
        return ScsiResult()
    data = bytes(command.data_out)
    if len(data) < _POPULATE_HEADER:
        raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
    if int.from_bytes(data[0:2], "big") < 0x1E:
        raise invalid_parameter(0)
    inactivity_s = int.from_bytes(data[4:8], "big") or DEFAULT_INACTIVITY_S
    if inactivity_s > MAX_INACTIVITY_S:
        raise invalid_parameter(4)
    kind = _wanted_type(data)
    ranges = _ranges(lu, data, 14, _POPULATE_HEADER)
    wanted = sum(extent.length for extent in ranges)

    async def work(operation: CopyOperation) -> None:
        operation.token = await _issue(lu, nexus, ranges, kind, inactivity_s)
        operation.moved_bytes = wanted

    request = CopyRequest(
        _list_identifier(command.cdb), POPULATE_TOKEN, wanted_bytes=wanted, immediate=bool(data[2] & _IMMED)
    )
    return await lu.copy_manager.run(nexus, request, command.is_aborted, work)


def _wanted_type(data: bytes) -> RodType:
    if not data[2] & _RTV:
        return RodType.POINT_IN_TIME_DEFAULT
    kind = rod_token.rod_type(data[8:12])
    if kind == RodType.POINT_IN_TIME_ANY:
        return RodType.POINT_IN_TIME_PERSISTENT
    if kind not in TOKEN_TYPES:
        raise invalid_parameter(8)
    return RodType(kind)


async def _issue(lu: LogicalUnit, nexus: Nexus, ranges: list[Extent], kind: RodType, inactivity_s: int) -> bytes:
    def represent(token: Token) -> bytes:
        return RodToken(
            rod_type=kind,
            identifier=token.identifier,
            naa=lu.identity.naa,
            block_bytes=lu.logical_block,
            length=token.length,
            capacity=capacity_16(lu)[8:16],
            target_name=nexus.it_nexus.target_name,
            secret=token.secret,
        ).pack()

    try:
        token = await lu.copy_manager.tokens.issue(
            lu.device,
            ranges,
            owner=nexus.it_nexus.initiator_name,
            inactivity_s=inactivity_s,
            represent=represent,
        )
    except InUse:
        raise illegal_request(Asc.INSUFFICIENT_RESOURCES_TO_CREATE_ROD_TOKEN) from None
    except OutOfSpace:
        raise illegal_request(Asc.INSUFFICIENT_RESOURCES_TO_CREATE_ROD) from None
    return token.representation


# -- WRITE USING TOKEN


@dataclass(frozen=True, slots=True)
class _Write:
    """A checked WRITE USING TOKEN. ``token`` None: zeroes. ``offset``: of the token, in bytes."""

    token: Token | None
    offset: int
    ranges: list[Extent]
    delete: bool

    @property
    def length(self) -> int:
        return sum(extent.length for extent in self.ranges)


async def write_using_token(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """The data of a token, or zeroes, into ranges of the unit."""
    if not parameter_list_length(lu, command.cdb):
        return ScsiResult()
    data = bytes(command.data_out)
    write = _parse_write(lu, nexus, data)
    end = CopyEnd(lu, nexus)

    async def work(operation: CopyOperation) -> None:
        try:
            if write.token is None:
                await _write_zeroes(end, write, operation)
            else:
                with lu.copy_manager.tokens.using(write.token):
                    await _write_token(end, write, write.token, operation)
            await end.settle()
        except EndFailed as failure:
            raise refusal(failure) from failure
        if write.delete and write.token is not None:
            lu.copy_manager.tokens.delete(write.token)

    request = CopyRequest(
        _list_identifier(command.cdb), WRITE_USING_TOKEN, wanted_bytes=write.length, immediate=bool(data[2] & _IMMED)
    )
    return await lu.copy_manager.run(nexus, request, command.is_aborted, work)


def _parse_write(lu: LogicalUnit, nexus: Nexus, data: bytes) -> _Write:
    if len(data) < _WRITE_HEADER:
        raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
    announced = int.from_bytes(data[0:2], "big")
    ranges_bytes = int.from_bytes(data[_WRITE_RANGES_LENGTH:_WRITE_HEADER], "big")
    if announced < 0x226 or announced != ranges_bytes + _WRITE_RANGES_LENGTH:
        raise invalid_parameter(0)
    image = data[_WRITE_TOKEN : _WRITE_TOKEN + ROD_TOKEN_BYTES]
    if not rod_token.is_whole(image):
        raise illegal_request(Asc.INVALID_TOKEN_LENGTH)
    ranges = _ranges(lu, data, _WRITE_RANGES_LENGTH, _WRITE_HEADER)
    delete = bool(data[2] & _DEL_TKN)
    if rod_token.rod_type(image) == RodType.BLOCK_DEVICE_ZERO:
        return _Write(None, 0, ranges, delete)
    token = _redeem(nexus, image)
    offset = int.from_bytes(data[8:16], "big") << lu.block_shift
    if offset >= token.length:
        raise invalid_parameter(8)
    return _Write(token, offset, ranges, delete)


def _redeem(nexus: Nexus, image: bytes) -> Token:
    """The errors and their order: SPC-4 section 5.17.6.5.2.3."""
    if rod_token.rod_type(image) not in TOKEN_TYPES:
        raise illegal_request(Asc.UNSUPPORTED_TOKEN_TYPE)
    if not rod_token.is_well_formed(image):
        raise illegal_request(Asc.TOKEN_CORRUPT)
    manager = nexus.lu.copy_manager
    try:
        return manager.tokens.redeem(rod_token.identifier(image), image)
    except TokenInvalid as invalid:
        creators = {unit.identity.naa for unit in manager.reach(nexus)}
        if invalid.fault == TokenFault.UNKNOWN and rod_token.creator(image) not in creators:
            raise illegal_request(Asc.REMOTE_TOKEN_USAGE_NOT_SUPPORTED) from None
        raise illegal_request(_FAULTS[invalid.fault]) from None


async def _write_zeroes(end: CopyEnd, write: _Write, operation: CopyOperation) -> None:
    offload, done = end.lu.copy_manager.offload, 0
    for extent in write.ranges:
        await offload.zero(
            end.lu.device,
            extent.offset,
            extent.length,
            hold=end.hold,
            progress=_after(operation, done),
        )
        done += extent.length


async def _write_token(end: CopyEnd, write: _Write, token: Token, operation: CopyOperation) -> None:
    """Whole blocks as far as the token reaches; what its last block lacks is zero."""
    manager, done = end.lu.copy_manager, 0
    for extent in write.ranges:
        at = extent.offset
        for start, length in token.read_from(write.offset + done, extent.length):
            try:
                await manager.offload.copy(
                    token.point,
                    start,
                    end.lu.device,
                    at,
                    length,
                    hold=end.hold,
                    progress=_after(operation, done),
                )
            except (InvalidState, NotFound, StoreFailed):
                manager.tokens.cancel(token)  # its volume or snapshot was deleted
                raise illegal_request(Asc.TOKEN_CANCELLED) from None
            at += length
            done += length
        rest = -(at - extent.offset) % end.lu.logical_block
        if rest:
            async with end.hold(at - at % end.lu.logical_block, end.lu.logical_block):
                await end.lu.device.write_zeroes(at, rest)
            operation.advance(done + rest)
        if at < extent.end:
            return


def _after(operation: CopyOperation, before: int) -> Callable[[int], None]:
    return lambda moved: operation.advance(before + moved)


# -- both


def _ranges(lu: LogicalUnit, data: bytes, length_at: int, start: int) -> list[Extent]:
    """The block device range descriptors, in bytes. Incomplete ones are ignored."""
    announced = int.from_bytes(data[length_at : length_at + 2], "big")
    if announced < _RANGE:
        raise invalid_parameter(length_at)
    count = min(announced, len(data) - start) // _RANGE
    if count > limits.MAX_RANGE_DESCRIPTORS:
        raise illegal_request(Asc.TOO_MANY_SEGMENT_DESCRIPTORS)
    found: list[Extent] = []
    for at in range(start, start + count * _RANGE, _RANGE):
        lba = int.from_bytes(data[at : at + 8], "big")
        blocks = int.from_bytes(data[at + 8 : at + 12], "big")
        check_range(lu, lba, blocks)
        if blocks:
            found.append(Extent(lba << lu.block_shift, blocks << lu.block_shift))
    if sum(extent.length for extent in found) > limits.MAX_TOKEN_TRANSFER_BYTES:
        raise invalid_parameter(start + 8)
    ordered = sorted(found, key=lambda extent: extent.offset)
    if any(earlier.end > later.offset for earlier, later in itertools.pairwise(ordered)):
        raise invalid_parameter(start)
    return found
