"""PDUs that an initiator sends (RFC 7143 sections 11.3, 11.5, 11.7, 11.10, 11.12, 11.14, 11.16, 11.18).

One frozen dataclass per PDU type; its BHS layout stands before it. Fields carry the RFC's names. ``lun`` is the
eight-byte field as an integer (``iscsi.wire.lun``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from iscsi.wire.bhs import (
    CONTINUE,
    FINAL,
    Buffer,
    Pdu,
    first_byte,
    invalid_field,
    layout,
    lengths_word,
    parse_ahs,
    protocol_error,
    serialize_ahs,
)
from iscsi.wire.opcodes import IMMEDIATE_BIT, RESERVED_TAG, AhsType, Opcode, Stage

MAX_CDB_SIZE = 260  # SPC-4 section 4.3.3: a variable-length CDB has at most 8 + 252 bytes
ISID_SIZE = 6

_NOP_OUT = layout("QIIII16x")


@dataclass(frozen=True, slots=True)
class NopOut(Pdu):
    """Section 11.18: a ping, or the answer to the target's (then ``ttt`` is the target's and ``itt`` reserved)."""

    OPCODE: ClassVar[Opcode] = Opcode.NOP_OUT
    HAS_DATA: ClassVar[bool] = True

    itt: int
    cmd_sn: int
    exp_stat_sn: int
    ttt: int = RESERVED_TAG
    lun: int = 0
    immediate: bool = True
    data: Buffer = b""

    @classmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        op, _, _, _, _, lun, itt, ttt, cmd_sn, exp_stat_sn = _NOP_OUT.unpack(bhs)
        return cls(itt, cmd_sn, exp_stat_sn, ttt, lun, bool(op & IMMEDIATE_BIT), data)

    def serialize(self) -> bytes:
        head = (first_byte(self.OPCODE, self.immediate), FINAL, 0, 0, lengths_word(0, len(self.data)))
        return _NOP_OUT.pack(*head, self.lun, self.itt, self.ttt, self.cmd_sn, self.exp_stat_sn)

    def check(self) -> None:
        if self.itt == RESERVED_TAG and not self.immediate:
            raise protocol_error("a NOP-Out that wants no answer must be immediate")  # section 11.18.1
        if self.itt != RESERVED_TAG and self.ttt != RESERVED_TAG:
            raise invalid_field("a NOP-Out cannot be a ping and an answer at once")  # section 11.18.2


_SCSI_COMMAND = layout("QIIII16s")
_READ = 0x40
_WRITE = 0x20
_ATTRIBUTE_MASK = 0x07


@dataclass(frozen=True, slots=True)
class ScsiCommandPdu(Pdu):
    """Section 11.3. ``cdb``: 16 bytes, or more when an extended CDB AHS came (then without its padding).

    ``edtl``: Expected Data Transfer Length in bytes. ``data``: immediate data.
    """

    OPCODE: ClassVar[Opcode] = Opcode.SCSI_COMMAND
    HAS_DATA: ClassVar[bool] = True

    itt: int
    lun: int
    cdb: bytes
    cmd_sn: int
    exp_stat_sn: int
    edtl: int = 0
    read: bool = False
    write: bool = False
    final: bool = True
    attribute: int = 1
    immediate: bool = False
    bidirectional_read_length: int | None = None
    data: Buffer = b""

    @classmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        op, flags, _, _, _, lun, itt, edtl, cmd_sn, exp_stat_sn, cdb = _SCSI_COMMAND.unpack(bhs)
        bidirectional_read_length = None
        for kind, specific in parse_ahs(ahs):
            if kind == AhsType.EXTENDED_CDB:
                cdb += specific[1:]
            elif kind == AhsType.BIDIRECTIONAL_READ_LENGTH and len(specific) == 5:
                bidirectional_read_length = int.from_bytes(specific[1:], "big")
            else:
                raise invalid_field(f"AHS of type {kind} with {len(specific)} bytes")
        return cls(
            itt=itt,
            lun=lun,
            cdb=cdb,
            cmd_sn=cmd_sn,
            exp_stat_sn=exp_stat_sn,
            edtl=edtl,
            read=bool(flags & _READ),
            write=bool(flags & _WRITE),
            final=bool(flags & FINAL),
            attribute=flags & _ATTRIBUTE_MASK,
            immediate=bool(op & IMMEDIATE_BIT),
            bidirectional_read_length=bidirectional_read_length,
            data=data,
        )

    def serialize(self) -> bytes:
        ahs = b""
        if len(self.cdb) > 16:
            ahs += serialize_ahs(AhsType.EXTENDED_CDB, b"\0" + self.cdb[16:])
        if self.bidirectional_read_length is not None:
            specific = b"\0" + self.bidirectional_read_length.to_bytes(4, "big")
            ahs += serialize_ahs(AhsType.BIDIRECTIONAL_READ_LENGTH, specific)
        flags = self.attribute
        flags |= (FINAL if self.final else 0) | (_READ if self.read else 0) | (_WRITE if self.write else 0)
        head = (first_byte(self.OPCODE, self.immediate), flags, 0, 0, lengths_word(len(ahs), len(self.data)))
        words = (self.lun, self.itt, self.edtl, self.cmd_sn, self.exp_stat_sn)
        return _SCSI_COMMAND.pack(*head, *words, self.cdb[:16]) + ahs

    def check(self) -> None:
        if self.itt == RESERVED_TAG:
            raise invalid_field("a SCSI command needs an ITT")
        if len(self.cdb) > MAX_CDB_SIZE:
            raise invalid_field(f"a CDB has at most {MAX_CDB_SIZE} bytes")
        if not self.write and not self.final:
            raise invalid_field("F must be 1 when no data follows")  # section 11.3.1
        if len(self.data) > (self.edtl if self.write else 0):
            raise invalid_field("immediate data beyond the expected data transfer length")


_TASK_MANAGEMENT = layout("QIIIIII8x")
_FUNCTION_MASK = 0x7F


@dataclass(frozen=True, slots=True)
class TaskManagementRequest(Pdu):
    """Section 11.5."""

    OPCODE: ClassVar[Opcode] = Opcode.TASK_MANAGEMENT_REQUEST

    itt: int
    function: int
    cmd_sn: int
    exp_stat_sn: int
    lun: int = 0
    referenced_task_tag: int = RESERVED_TAG
    ref_cmd_sn: int = 0
    exp_data_sn: int = 0
    immediate: bool = True

    @classmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        op, flags, _, _, _, lun, itt, rtt, cmd_sn, exp_stat_sn, ref_cmd_sn, exp_data_sn = _TASK_MANAGEMENT.unpack(bhs)
        function = flags & _FUNCTION_MASK
        return cls(itt, function, cmd_sn, exp_stat_sn, lun, rtt, ref_cmd_sn, exp_data_sn, bool(op & IMMEDIATE_BIT))

    def serialize(self) -> bytes:
        head = (first_byte(self.OPCODE, self.immediate), FINAL | self.function, 0, 0, 0)
        tags = (self.lun, self.itt, self.referenced_task_tag)
        return _TASK_MANAGEMENT.pack(*head, *tags, self.cmd_sn, self.exp_stat_sn, self.ref_cmd_sn, self.exp_data_sn)

    def check(self) -> None:
        if self.itt == RESERVED_TAG:
            raise invalid_field("a task management request needs an ITT")


_LOGIN = layout("6sHIHxxII16x")
_STAGES = frozenset(Stage)


@dataclass(frozen=True, slots=True)
class LoginRequest(Pdu):
    """Section 11.12; always immediate. ``csg`` and ``nsg`` are ``Stage`` values, ``nsg`` only if ``transit``."""

    OPCODE: ClassVar[Opcode] = Opcode.LOGIN_REQUEST
    HAS_DATA: ClassVar[bool] = True

    isid: bytes
    tsih: int
    itt: int
    cid: int
    cmd_sn: int
    exp_stat_sn: int
    csg: int
    nsg: int = 0
    transit: bool = False
    continued: bool = False
    version_max: int = 0
    version_min: int = 0
    data: Buffer = b""

    @classmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        _, flags, version_max, version_min, _, isid, tsih, itt, cid, cmd_sn, exp_stat_sn = _LOGIN.unpack(bhs)
        return cls(
            isid=isid,
            tsih=tsih,
            itt=itt,
            cid=cid,
            cmd_sn=cmd_sn,
            exp_stat_sn=exp_stat_sn,
            csg=(flags >> 2) & 3,
            nsg=flags & 3,
            transit=bool(flags & FINAL),
            continued=bool(flags & CONTINUE),
            version_max=version_max,
            version_min=version_min,
            data=data,
        )

    def serialize(self) -> bytes:
        flags = (FINAL if self.transit else 0) | (CONTINUE if self.continued else 0) | self.csg << 2 | self.nsg
        lengths = lengths_word(0, len(self.data))
        head = (first_byte(self.OPCODE, True), flags, self.version_max, self.version_min, lengths)
        return _LOGIN.pack(*head, self.isid, self.tsih, self.itt, self.cid, self.cmd_sn, self.exp_stat_sn)

    def check(self) -> None:
        if self.csg not in _STAGES or self.csg == Stage.FULL_FEATURE:
            raise invalid_field(f"CSG {self.csg}")
        if self.transit and (self.nsg not in _STAGES or self.nsg <= self.csg):
            raise invalid_field(f"NSG {self.nsg} from CSG {self.csg}")
        if self.transit and self.continued:
            raise invalid_field("T must be 0 when C is 1")  # section 11.12.2


_TEXT = layout("QIIII16x")


@dataclass(frozen=True, slots=True)
class TextRequest(Pdu):
    """Section 11.10."""

    OPCODE: ClassVar[Opcode] = Opcode.TEXT_REQUEST
    HAS_DATA: ClassVar[bool] = True

    itt: int
    cmd_sn: int
    exp_stat_sn: int
    ttt: int = RESERVED_TAG
    lun: int = 0
    final: bool = True
    continued: bool = False
    immediate: bool = False
    data: Buffer = b""

    @classmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        op, flags, _, _, _, lun, itt, ttt, cmd_sn, exp_stat_sn = _TEXT.unpack(bhs)
        final, continued = bool(flags & FINAL), bool(flags & CONTINUE)
        return cls(itt, cmd_sn, exp_stat_sn, ttt, lun, final, continued, bool(op & IMMEDIATE_BIT), data)

    def serialize(self) -> bytes:
        flags = (FINAL if self.final else 0) | (CONTINUE if self.continued else 0)
        head = (first_byte(self.OPCODE, self.immediate), flags, 0, 0, lengths_word(0, len(self.data)))
        return _TEXT.pack(*head, self.lun, self.itt, self.ttt, self.cmd_sn, self.exp_stat_sn)

    def check(self) -> None:
        if self.itt == RESERVED_TAG:
            raise invalid_field("a text request needs an ITT")
        if self.final and self.continued:
            raise invalid_field("F must be 0 when C is 1")  # section 11.10.2


_DATA_OUT = layout("QII4xI4xII4x")


@dataclass(frozen=True, slots=True)
class DataOut(Pdu):
    """Section 11.7. ``ttt`` is the R2T's, or reserved for unsolicited data; ``buffer_offset`` in bytes."""

    OPCODE: ClassVar[Opcode] = Opcode.DATA_OUT
    HAS_DATA: ClassVar[bool] = True

    itt: int
    ttt: int
    exp_stat_sn: int
    data_sn: int
    buffer_offset: int
    lun: int = 0
    final: bool = True
    data: Buffer = b""

    @classmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        _, flags, _, _, _, lun, itt, ttt, exp_stat_sn, data_sn, buffer_offset = _DATA_OUT.unpack(bhs)
        return cls(itt, ttt, exp_stat_sn, data_sn, buffer_offset, lun, bool(flags & FINAL), data)

    def serialize(self) -> bytes:
        head = (self.OPCODE, FINAL if self.final else 0, 0, 0, lengths_word(0, len(self.data)))
        return _DATA_OUT.pack(*head, self.lun, self.itt, self.ttt, self.exp_stat_sn, self.data_sn, self.buffer_offset)

    def check(self) -> None:
        if self.itt == RESERVED_TAG:
            raise invalid_field("Data-Out needs an ITT")


_LOGOUT = layout("8xIHxxII16x")


@dataclass(frozen=True, slots=True)
class LogoutRequest(Pdu):
    """Section 11.14. ``reason`` is a ``LogoutReason``; ``cid`` counts unless the whole session closes."""

    OPCODE: ClassVar[Opcode] = Opcode.LOGOUT_REQUEST

    itt: int
    reason: int
    cid: int
    cmd_sn: int
    exp_stat_sn: int
    immediate: bool = True

    @classmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        op, flags, _, _, _, itt, cid, cmd_sn, exp_stat_sn = _LOGOUT.unpack(bhs)
        return cls(itt, flags & _FUNCTION_MASK, cid, cmd_sn, exp_stat_sn, bool(op & IMMEDIATE_BIT))

    def serialize(self) -> bytes:
        head = (first_byte(self.OPCODE, self.immediate), FINAL | self.reason, 0, 0, 0)
        return _LOGOUT.pack(*head, self.itt, self.cid, self.cmd_sn, self.exp_stat_sn)

    def check(self) -> None:
        if self.itt == RESERVED_TAG:
            raise invalid_field("a logout request needs an ITT")
        if self.reason > 2:
            raise invalid_field(f"logout reason {self.reason}")


_SNACK = layout("QII4xI8xII")
_TYPE_MASK = 0x0F


@dataclass(frozen=True, slots=True)
class SnackRequest(Pdu):
    """Section 11.16; meaningful from error recovery level 1 on, so answered with a Reject here."""

    OPCODE: ClassVar[Opcode] = Opcode.SNACK_REQUEST

    itt: int
    kind: int
    exp_stat_sn: int
    beg_run: int
    run_length: int
    ttt: int = RESERVED_TAG
    lun: int = 0

    @classmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        _, flags, _, _, _, lun, itt, ttt, exp_stat_sn, beg_run, run_length = _SNACK.unpack(bhs)
        return cls(itt, flags & _TYPE_MASK, exp_stat_sn, beg_run, run_length, ttt, lun)

    def serialize(self) -> bytes:
        head = (self.OPCODE, FINAL | self.kind, 0, 0, 0)
        return _SNACK.pack(*head, self.lun, self.itt, self.ttt, self.exp_stat_sn, self.beg_run, self.run_length)
