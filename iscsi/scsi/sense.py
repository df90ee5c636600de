"""Sense data (SPC-4 section 4.5) and the one place where the engine's errors become SCSI failures.

Inside this package a failing command raises ``CheckCondition``; ``LogicalUnit.execute`` turns it into a result, so
that nothing escapes to the transport.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from engine.errors import (
    EngineError,
    InvalidState,
    MediumError,
    NotSupported,
    OutOfRange,
    OutOfSpace,
    StoreCorrupt,
    StoreFailed,
    Superseded,
    WriteProtected,
    WritesHeld,
)


class SenseKey(enum.IntEnum):
    """SPC-4 table 46."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    MISCOMPARE = 0xE


class Asc(enum.IntEnum):
    """Additional sense code in the high byte, qualifier in the low one (SPC-4 annex F)."""

    NONE = 0x0000
    OPERATION_IN_PROGRESS = 0x0016
    NOT_READY_CAUSE_NOT_REPORTABLE = 0x0400
    NOT_READY_OPERATION_IN_PROGRESS = 0x0407
    SANITIZE_IN_PROGRESS = 0x041B
    ASYMMETRIC_ACCESS_STATE_TRANSITION = 0x040A
    TARGET_PORT_IN_STANDBY_STATE = 0x040B
    TARGET_PORT_IN_UNAVAILABLE_STATE = 0x040C
    UNREACHABLE_COPY_TARGET = 0x0804
    WRITE_ERROR = 0x0C00
    THIRD_PARTY_DEVICE_FAILURE = 0x0D01
    COPY_TARGET_DEVICE_NOT_REACHABLE = 0x0D02
    INCORRECT_COPY_TARGET_DEVICE_TYPE = 0x0D03
    INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT = 0x0E03
    UNRECOVERED_READ_ERROR = 0x1100
    PARAMETER_LIST_LENGTH_ERROR = 0x1A00
    MISCOMPARE_DURING_VERIFY = 0x1D00
    INVALID_COMMAND_OPERATION_CODE = 0x2000
    LBA_OUT_OF_RANGE = 0x2100
    UNSUPPORTED_TOKEN_TYPE = 0x2301
    REMOTE_TOKEN_USAGE_NOT_SUPPORTED = 0x2302
    TOKEN_UNKNOWN = 0x2304
    TOKEN_CORRUPT = 0x2305
    TOKEN_EXPIRED = 0x2307
    TOKEN_CANCELLED = 0x2308
    TOKEN_DELETED = 0x2309
    INVALID_TOKEN_LENGTH = 0x230A
    INVALID_FIELD_IN_CDB = 0x2400
    LOGICAL_UNIT_NOT_SUPPORTED = 0x2500
    INVALID_FIELD_IN_PARAMETER_LIST = 0x2600
    INVALID_RELEASE_OF_PERSISTENT_RESERVATION = 0x2604
    TOO_MANY_TARGET_DESCRIPTORS = 0x2606
    UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE = 0x2607
    TOO_MANY_SEGMENT_DESCRIPTORS = 0x2608
    UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE = 0x2609
    UNEXPECTED_INEXACT_SEGMENT = 0x260A
    INLINE_DATA_LENGTH_EXCEEDED = 0x260B
    WRITE_PROTECTED = 0x2700
    SPACE_ALLOCATION_FAILED_WRITE_PROTECT = 0x2707
    MEDIUM_MAY_HAVE_CHANGED = 0x2800
    POWER_ON_OCCURRED = 0x2900
    BUS_DEVICE_RESET_OCCURRED = 0x2903
    MODE_PARAMETERS_CHANGED = 0x2A01
    RESERVATIONS_PREEMPTED = 0x2A03
    RESERVATIONS_RELEASED = 0x2A04
    REGISTRATIONS_PREEMPTED = 0x2A05
    ASYMMETRIC_ACCESS_STATE_CHANGED = 0x2A06
    CAPACITY_DATA_CHANGED = 0x2A09
    COMMAND_SEQUENCE_ERROR = 0x2C00
    COMMANDS_CLEARED_BY_ANOTHER_INITIATOR = 0x2F00
    COMMANDS_CLEARED_BY_DEVICE_SERVER = 0x2F02
    SANITIZE_COMMAND_FAILED = 0x3103
    THIN_PROVISIONING_SOFT_THRESHOLD_REACHED = 0x3807
    SAVING_PARAMETERS_NOT_SUPPORTED = 0x3900
    MEDIUM_NOT_PRESENT = 0x3A00
    REPORTED_LUNS_DATA_HAS_CHANGED = 0x3F0E
    INTERNAL_TARGET_FAILURE = 0x4400
    MEDIUM_REMOVAL_PREVENTED = 0x5302
    INSUFFICIENT_REGISTRATION_RESOURCES = 0x5504
    INSUFFICIENT_RESOURCES_TO_CREATE_ROD = 0x550C
    INSUFFICIENT_RESOURCES_TO_CREATE_ROD_TOKEN = 0x550D
    SET_TARGET_PORT_GROUPS_COMMAND_FAILED = 0x670A


@dataclass(frozen=True, slots=True)
class FieldPointer:
    """Where an ILLEGAL REQUEST is (SPC-4 section 4.5.2.4.2): a byte, and a bit when the field is not whole bytes."""

    byte: int
    bit: int | None = None
    in_cdb: bool = True

    def serialize(self) -> bytes:
        """The three sense-key specific bytes."""
        first = 0x80 | (0x40 if self.in_cdb else 0)
        if self.bit is not None:
            first |= 0x08 | self.bit
        return bytes((first, self.byte >> 8 & 0xFF, self.byte & 0xFF))


@dataclass(frozen=True, slots=True)
class SegmentPointer:
    """Where a COPY ABORTED is (SPC-4 section 4.5.2.4.5): a byte of the parameter list, or of the segment descriptor."""

    byte: int
    in_segment: bool

    def serialize(self) -> bytes:
        return bytes((0xA0 if self.in_segment else 0x80, self.byte >> 8 & 0xFF, self.byte & 0xFF))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long operation is, of a NOT READY or NO SENSE (SPC-4 section 4.5.2.4.4): 0 to 1."""

    fraction: float

    def serialize(self) -> bytes:
        return b"\x80" + min(0xFFFF, int(self.fraction * 0x10000)).to_bytes(2, "big")


class CopySide(enum.IntEnum):
    """Whose sense data a copy manager forwards: SOURCE field, SPC-4 section 4.5.2.7."""

    SOURCE = 1
    DESTINATION = 2


@dataclass(frozen=True, slots=True)
class Forwarded:
    """Status and sense that an end of a copy answered with (SPC-4 section 4.5.2.7)."""

    side: CopySide
    status: int
    sense: bytes = b""


@dataclass(frozen=True, slots=True)
class Sense:
    """One failure or attention. ``information``: an LBA or an offset, as the command's standard says.

    ``segment``: the number of the segment descriptor that a copy failed in, and ``forwarded`` why.
    """

    key: SenseKey
    asc: Asc = Asc.NONE
    field: FieldPointer | SegmentPointer | Progress | None = None
    information: int | None = None
    segment: int | None = None
    forwarded: Forwarded | None = None

    def serialize(self, *, descriptor: bool = False) -> bytes:
        """Sense data in fixed format, or in descriptor format when the Control page's D_SENSE is set."""
        return self._descriptor_format() if descriptor else self._fixed_format()

    def _fixed_format(self) -> bytes:
        data = bytearray(18)
        data[0] = 0x70
        if self.information is not None and self.information < 1 << 32:
            data[0] |= 0x80
            data[3:7] = self.information.to_bytes(4, "big")
        data[2] = self.key
        data[12:14] = self.asc.to_bytes(2, "big")
        if self.field is not None:
            data[15:18] = self.field.serialize()
        if self.segment is not None:
            data[10:12] = self.segment.to_bytes(2, "big")
        if self.forwarded is not None:
            data[7 + self.forwarded.side] = len(data)  # where its status and sense begin (SPC-4 section 5.17.7.4)
            data += bytes((self.forwarded.status,)) + self.forwarded.sense
        data[7] = len(data) - 8
        return bytes(data)

    def _descriptor_format(self) -> bytes:
        descriptors = b""
        if self.information is not None:
            descriptors += b"\x00\x0a\x80\x00" + self.information.to_bytes(8, "big")
        if self.field is not None:
            descriptors += b"\x02\x06\x00\x00" + self.field.serialize() + b"\x00"
        if self.segment is not None:
            descriptors += b"\x01\x0a\x00\x00\x00\x00" + self.segment.to_bytes(2, "big") + bytes(4)
        if self.forwarded is not None:
            forwarded = self.forwarded
            descriptors += bytes((0x0C, len(forwarded.sense) + 2, forwarded.side, forwarded.status)) + forwarded.sense
        return bytes((0x72, self.key, self.asc >> 8, self.asc & 0xFF, 0, 0, 0, len(descriptors))) + descriptors


def is_unit_attention(sense: bytes) -> bool:
    """Whether sense data, of either format, reports a unit attention."""
    return len(sense) > 2 and sense[1 if sense[0] & 0x7E == 0x72 else 2] & 0xF == SenseKey.UNIT_ATTENTION


class CheckCondition(Exception):
    """A command ends with CHECK CONDITION and this sense. Never leaves the package."""

    def __init__(self, sense: Sense) -> None:
        super().__init__(f"{sense.key.name} {sense.asc:04X}h")
        self.sense = sense


class ReservationConflict(Exception):
    """A command ends with RESERVATION CONFLICT. Never leaves the package."""


def illegal_request(asc: Asc, *, information: int | None = None) -> CheckCondition:
    return CheckCondition(Sense(SenseKey.ILLEGAL_REQUEST, asc, information=information))


def invalid_cdb_field(byte: int, bit: int | None = None) -> CheckCondition:
    """``byte``: first byte of the refused field; ``bit``: its highest bit, unless it is whole bytes."""
    return CheckCondition(Sense(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB, FieldPointer(byte, bit)))


def invalid_parameter(byte: int, bit: int | None = None) -> CheckCondition:
    """The same for a field of the parameter list."""
    pointer = FieldPointer(byte, bit, in_cdb=False)
    return CheckCondition(Sense(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_PARAMETER_LIST, pointer))


class Effect(enum.Enum):
    """What a command does to the medium: decides sense for an engine error and what a reservation forbids."""

    NONE = "none"
    READ = "read"
    WRITE = "write"
    FLUSH = "flush"


INTERNAL_FAILURE = Sense(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE)
_UNREADABLE = Sense(SenseKey.MEDIUM_ERROR, Asc.UNRECOVERED_READ_ERROR)
_UNWRITABLE = Sense(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR)
_WRITE_PROTECTED = Sense(SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)

_SENSE_BY_ERROR: tuple[tuple[type[EngineError], Sense], ...] = (
    (OutOfRange, Sense(SenseKey.ILLEGAL_REQUEST, Asc.LBA_OUT_OF_RANGE)),
    (OutOfSpace, Sense(SenseKey.DATA_PROTECT, Asc.SPACE_ALLOCATION_FAILED_WRITE_PROTECT)),
    (WriteProtected, _WRITE_PROTECTED),
    (NotSupported, Sense(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_COMMAND_OPERATION_CODE)),
    # Initiators try again: Linux for six times the command's time limit, and only then reports an error.
    (WritesHeld, Sense(SenseKey.NOT_READY, Asc.NOT_READY_OPERATION_IN_PROGRESS)),
    (Superseded, Sense(SenseKey.NOT_READY, Asc.TARGET_PORT_IN_UNAVAILABLE_STATE)),
    (InvalidState, Sense(SenseKey.NOT_READY, Asc.NOT_READY_CAUSE_NOT_REPORTABLE)),
)
_SENSE_BY_EFFECT: dict[tuple[type[EngineError], Effect], Sense] = {
    (MediumError, Effect.READ): _UNREADABLE,
    (MediumError, Effect.WRITE): _UNWRITABLE,
    (MediumError, Effect.FLUSH): _UNWRITABLE,
    (StoreCorrupt, Effect.READ): _UNREADABLE,
    (StoreCorrupt, Effect.WRITE): _UNWRITABLE,
    (StoreCorrupt, Effect.FLUSH): _UNWRITABLE,
    # After a failed sync (STORE section 2): nothing is written any more, a flush cannot be honoured, reads go on.
    (StoreFailed, Effect.READ): _UNREADABLE,
    (StoreFailed, Effect.WRITE): _WRITE_PROTECTED,
    (StoreFailed, Effect.FLUSH): _UNWRITABLE,
}


def sense_for(error: EngineError, effect: Effect) -> Sense:
    """The sense of an engine error met by a command of that effect; HARDWARE ERROR for what has no better word."""
    for kind, sense in _SENSE_BY_ERROR:
        if isinstance(error, kind):
            return sense
    for (kind, when), sense in _SENSE_BY_EFFECT.items():
        if when is effect and isinstance(error, kind):
            return sense
    return INTERNAL_FAILURE
