"""PDUs that a target sends (RFC 7143 sections 11.4, 11.6 to 11.9, 11.11, 11.13, 11.15, 11.17, 11.19).

One frozen dataclass per PDU type; its BHS layout stands before it. Every one carries ``exp_cmd_sn`` and
``max_cmd_sn``, the command window (section 4.2.2.1). Those and ``stat_sn`` may be left for whoever sends the PDU:
``dataclasses.replace`` puts them in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from iscsi.wire.bhs import (
    CONTINUE,
    FINAL,
    Buffer,
    Pdu,
    invalid_field,
    layout,
    lengths_word,
)
from iscsi.wire.opcodes import RESERVED_TAG, LoginStatus, LogoutResult, Opcode, ResidualFlag, ResponseCode, Stage

_NOP_IN = layout("QIIIII12x")


@dataclass(frozen=True, slots=True)
class NopIn(Pdu):
    """Section 11.19: the answer to a ping, or the target's own (then ``itt`` is reserved)."""

    OPCODE: ClassVar[Opcode] = Opcode.NOP_IN
    HAS_DATA: ClassVar[bool] = True

    itt: int
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    ttt: int = RESERVED_TAG
    lun: int = 0
    data: Buffer = b""

    @classmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        _, _, _, _, _, lun, itt, ttt, stat_sn, exp_cmd_sn, max_cmd_sn = _NOP_IN.unpack(bhs)
        return cls(itt, stat_sn, exp_cmd_sn, max_cmd_sn, ttt, lun, data)

    def serialize(self) -> bytes:
        head = (self.OPCODE, FINAL, 0, 0, lengths_word(0, len(self.data)))
        return _NOP_IN.pack(*head, self.lun, self.itt, self.ttt, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn)

    def check(self) -> None:
        if self.itt != RESERVED_TAG and self.ttt != RESERVED_TAG:
            raise invalid_field("a NOP-In cannot be a ping and an answer at once")  # section 11.19.1


_SCSI_RESPONSE = layout("8xIIIIIIII")


@dataclass(frozen=True, slots=True)
class ScsiResponsePdu(Pdu):
    """Section 11.4. ``data``: SenseLength (two bytes), sense, response data; ``residual`` in bytes under ``flags``."""

    OPCODE: ClassVar[Opcode] = Opcode.SCSI_RESPONSE
    HAS_DATA: ClassVar[bool] = True

    itt: int
    status: int
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    response: int = ResponseCode.COMPLETED
    flags: int = 0
    residual: int = 0
    bidirectional_residual: int = 0
    exp_data_sn: int = 0
    snack_tag: int = 0
    data: Buffer = b""

    @classmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        _, flags, response, status, _, itt, snack, stat_sn, exp_cmd_sn, max_cmd_sn, data_sn, bidi, residual = (
            _SCSI_RESPONSE.unpack(bhs)
        )
        return cls(
            itt=itt,
            status=status,
            stat_sn=stat_sn,
            exp_cmd_sn=exp_cmd_sn,
            max_cmd_sn=max_cmd_sn,
            response=response,
            flags=flags & 0x1E,
            residual=residual,
            bidirectional_residual=bidi,
            exp_data_sn=data_sn,
            snack_tag=snack,
            data=data,
        )

    def serialize(self) -> bytes:
        head = (self.OPCODE, FINAL | self.flags, self.response, self.status, lengths_word(0, len(self.data)))
        numbers = (self.itt, self.snack_tag, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn, self.exp_data_sn)
        return _SCSI_RESPONSE.pack(*head, *numbers, self.bidirectional_residual, self.residual)

    def check(self) -> None:
        both = ResidualFlag.OVERFLOW | ResidualFlag.UNDERFLOW
        if self.flags & both == both:
            raise invalid_field("a residual is an overflow or an underflow")
        if self.data and (len(self.data) < 2 or len(self.sense) != int.from_bytes(self.data[:2], "big")):
            raise invalid_field("SenseLength exceeds the data segment")

    @property
    def sense(self) -> bytes:
        """The sense data, empty when none came."""
        length = int.from_bytes(self.data[:2], "big")
        return bytes(self.data[2 : 2 + length])


_TASK_MANAGEMENT = layout("8xI4xIII12x")


@dataclass(frozen=True, slots=True)
class TaskManagementResponse(Pdu):
    """Section 11.6. ``response`` is a ``TaskResponse``."""

    OPCODE: ClassVar[Opcode] = Opcode.TASK_MANAGEMENT_RESPONSE

    itt: int
    response: int
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0

    @classmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        _, _, response, _, _, itt, stat_sn, exp_cmd_sn, max_cmd_sn = _TASK_MANAGEMENT.unpack(bhs)
        return cls(itt, response, stat_sn, exp_cmd_sn, max_cmd_sn)

    def serialize(self) -> bytes:
        head = (self.OPCODE, FINAL, self.response, 0, 0)
        return _TASK_MANAGEMENT.pack(*head, self.itt, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn)


_LOGIN = layout("6sHI4xIIIH10x")


@dataclass(frozen=True, slots=True)
class LoginResponse(Pdu):
    """Section 11.13. ``status`` is a ``LoginStatus``: class and detail as one number."""

    OPCODE: ClassVar[Opcode] = Opcode.LOGIN_RESPONSE
    HAS_DATA: ClassVar[bool] = True

    isid: bytes
    tsih: int
    itt: int
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    status: int = LoginStatus.SUCCESS
    csg: int = Stage.SECURITY
    nsg: int = 0
    transit: bool = False
    continued: bool = False
    version_max: int = 0
    version_active: int = 0
    data: Buffer = b""

    @classmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        _, flags, version_max, active, _, isid, tsih, itt, stat_sn, exp_cmd_sn, max_cmd_sn, status = _LOGIN.unpack(bhs)
        return cls(
            isid=isid,
            tsih=tsih,
            itt=itt,
            stat_sn=stat_sn,
            exp_cmd_sn=exp_cmd_sn,
            max_cmd_sn=max_cmd_sn,
            status=status,
            csg=(flags >> 2) & 3,
            nsg=flags & 3,
            transit=bool(flags & FINAL),
            continued=bool(flags & CONTINUE),
            version_max=version_max,
            version_active=active,
            data=data,
        )

    def serialize(self) -> bytes:
        flags = (FINAL if self.transit else 0) | (CONTINUE if self.continued else 0) | self.csg << 2 | self.nsg
        head = (self.OPCODE, flags, self.version_max, self.version_active, lengths_word(0, len(self.data)))
        numbers = (self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn, self.status)
        return _LOGIN.pack(*head, self.isid, self.tsih, self.itt, *numbers)

    def check(self) -> None:
        if self.transit and self.continued:
            raise invalid_field("T must be 0 when C is 1")  # section 11.13.2


_TEXT = layout("QIIIII12x")


@dataclass(frozen=True, slots=True)
class TextResponse(Pdu):
    """Section 11.11. ``ttt`` is reserved when ``final``, else what the next request of the exchange must carry."""

    OPCODE: ClassVar[Opcode] = Opcode.TEXT_RESPONSE
    HAS_DATA: ClassVar[bool] = True

    itt: int
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    ttt: int = RESERVED_TAG
    lun: int = 0
    final: bool = True
    continued: bool = False
    data: Buffer = b""

    @classmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        _, flags, _, _, _, lun, itt, ttt, stat_sn, exp_cmd_sn, max_cmd_sn = _TEXT.unpack(bhs)
        final, continued = bool(flags & FINAL), bool(flags & CONTINUE)
        return cls(itt, stat_sn, exp_cmd_sn, max_cmd_sn, ttt, lun, final, continued, data)

    def serialize(self) -> bytes:
        flags = (FINAL if self.final else 0) | (CONTINUE if self.continued else 0)
        head = (self.OPCODE, flags, 0, 0, lengths_word(0, len(self.data)))
        return _TEXT.pack(*head, self.lun, self.itt, self.ttt, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn)

    def check(self) -> None:
        if self.final and (self.continued or self.ttt != RESERVED_TAG):
            raise invalid_field("a final text response has C 0 and no TTT")  # sections 11.11.1, 11.11.4


_DATA_IN = layout("QIIIIIIII")
_ACKNOWLEDGE = 0x40
_STATUS = 0x01
_RESIDUAL_MASK = ResidualFlag.OVERFLOW | ResidualFlag.UNDERFLOW


@dataclass(frozen=True, slots=True)
class DataIn(Pdu):
    """Section 11.7. ``status`` is the command's SCSI status when this PDU carries it (S bit), else None.

    Without status, ``stat_sn`` and ``residual`` are reserved.
    """

    OPCODE: ClassVar[Opcode] = Opcode.DATA_IN
    HAS_DATA: ClassVar[bool] = True

    itt: int
    data_sn: int
    buffer_offset: int
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    status: int | None = None
    flags: int = 0
    residual: int = 0
    final: bool = True
    acknowledge: bool = False
    ttt: int = RESERVED_TAG
    lun: int = 0
    data: Buffer = b""

    @classmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        _, flags, _, status, _, lun, itt, ttt, stat_sn, exp_cmd_sn, max_cmd_sn, data_sn, offset, residual = (
            _DATA_IN.unpack(bhs)
        )
        return cls(
            itt=itt,
            exp_cmd_sn=exp_cmd_sn,
            max_cmd_sn=max_cmd_sn,
            data_sn=data_sn,
            buffer_offset=offset,
            status=status if flags & _STATUS else None,
            stat_sn=stat_sn,
            flags=flags & _RESIDUAL_MASK,
            residual=residual,
            final=bool(flags & FINAL),
            acknowledge=bool(flags & _ACKNOWLEDGE),
            ttt=ttt,
            lun=lun,
            data=data,
        )

    def serialize(self) -> bytes:
        flags = self.flags | (FINAL if self.final else 0) | (_ACKNOWLEDGE if self.acknowledge else 0)
        flags |= 0 if self.status is None else _STATUS
        head = (self.OPCODE, flags, 0, self.status or 0, lengths_word(0, len(self.data)))
        numbers = (self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn, self.data_sn)
        return _DATA_IN.pack(*head, self.lun, self.itt, self.ttt, *numbers, self.buffer_offset, self.residual)

    def check(self) -> None:
        if self.status is not None and not self.final:
            raise invalid_field("status comes with the final Data-In only")  # section 11.7.3
        if self.flags & _RESIDUAL_MASK == _RESIDUAL_MASK:
            raise invalid_field("a residual is an overflow or an underflow")


_LOGOUT = layout("8xI4xIII4xHH4x")


@dataclass(frozen=True, slots=True)
class LogoutResponse(Pdu):
    """Section 11.15. ``time2wait`` and ``time2retain`` in seconds."""

    OPCODE: ClassVar[Opcode] = Opcode.LOGOUT_RESPONSE

    itt: int
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    response: int = LogoutResult.CLOSED
    time2wait: int = 0
    time2retain: int = 0

    @classmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        _, _, response, _, _, itt, stat_sn, exp_cmd_sn, max_cmd_sn, time2wait, time2retain = _LOGOUT.unpack(bhs)
        return cls(itt, stat_sn, exp_cmd_sn, max_cmd_sn, response, time2wait, time2retain)

    def serialize(self) -> bytes:
        head = (self.OPCODE, FINAL, self.response, 0, 0)
        numbers = (self.itt, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn)
        return _LOGOUT.pack(*head, *numbers, self.time2wait, self.time2retain)


_R2T = layout("QIIIIIIII")


@dataclass(frozen=True, slots=True)
class R2T(Pdu):
    """Section 11.8: the target asks for ``desired_length`` bytes from ``buffer_offset`` on."""

    OPCODE: ClassVar[Opcode] = Opcode.R2T

    itt: int
    ttt: int
    r2t_sn: int
    buffer_offset: int
    desired_length: int
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    lun: int = 0

    @classmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        _, _, _, _, _, lun, itt, ttt, stat_sn, exp_cmd_sn, max_cmd_sn, r2t_sn, offset, length = _R2T.unpack(bhs)
        return cls(itt, ttt, r2t_sn, offset, length, stat_sn, exp_cmd_sn, max_cmd_sn, lun)

    def serialize(self) -> bytes:
        numbers = (self.itt, self.ttt, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn, self.r2t_sn)
        return _R2T.pack(self.OPCODE, FINAL, 0, 0, 0, self.lun, *numbers, self.buffer_offset, self.desired_length)

    def check(self) -> None:
        if self.ttt == RESERVED_TAG or self.desired_length == 0:
            raise invalid_field("an R2T has a TTT and asks for at least one byte")  # sections 11.8.3, 11.8.4


_ASYNC = layout("QI4xIIIBBHHH4x")


@dataclass(frozen=True, slots=True)
class AsyncMessage(Pdu):
    """Section 11.9. For ``AsyncEvent.SCSI`` the data segment is SenseLength and sense."""

    OPCODE: ClassVar[Opcode] = Opcode.ASYNC_MESSAGE
    HAS_DATA: ClassVar[bool] = True

    event: int
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    lun: int = 0
    vendor_code: int = 0
    parameter1: int = 0
    parameter2: int = 0
    parameter3: int = 0
    data: Buffer = b""

    @classmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        _, _, _, _, _, lun, _, stat_sn, exp_cmd_sn, max_cmd_sn, event, vendor, p1, p2, p3 = _ASYNC.unpack(bhs)
        return cls(event, stat_sn, exp_cmd_sn, max_cmd_sn, lun, vendor, p1, p2, p3, data)

    def serialize(self) -> bytes:
        head = (self.OPCODE, FINAL, 0, 0, lengths_word(0, len(self.data)))
        numbers = (self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn, self.event, self.vendor_code)
        parameters = (self.parameter1, self.parameter2, self.parameter3)
        return _ASYNC.pack(*head, self.lun, RESERVED_TAG, *numbers, *parameters)


_REJECT = layout("8xI4xIIII8x")


@dataclass(frozen=True, slots=True)
class Reject(Pdu):
    """Section 11.17. ``data`` is the header of the PDU that was refused."""

    OPCODE: ClassVar[Opcode] = Opcode.REJECT
    HAS_DATA: ClassVar[bool] = True

    reason: int
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    data_sn: int = 0
    data: Buffer = b""

    @classmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        _, _, reason, _, _, _, stat_sn, exp_cmd_sn, max_cmd_sn, data_sn = _REJECT.unpack(bhs)
        return cls(reason, stat_sn, exp_cmd_sn, max_cmd_sn, data_sn, data)

    def serialize(self) -> bytes:
        head = (self.OPCODE, FINAL, self.reason, 0, lengths_word(0, len(self.data)))
        return _REJECT.pack(*head, RESERVED_TAG, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn, self.data_sn)


ResponsePdu = (
    NopIn
    | ScsiResponsePdu
    | TaskManagementResponse
    | LoginResponse
    | TextResponse
    | DataIn
    | LogoutResponse
    | R2T
    | AsyncMessage
    | Reject
)
