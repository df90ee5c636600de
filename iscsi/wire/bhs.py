"""What every PDU's header has in common: the Basic Header Segment's first words, AHSs, padding (RFC 7143 section 11.2).

A header is the 48-byte BHS and its AHSs. Bytes 4 to 7 are TotalAHSLength (in words) and DataSegmentLength (in
bytes, without padding); they travel here as one word. Each PDU class below ``Pdu`` has one ``struct.Struct``
for its BHS, made by ``layout``, which checks its size.

Reserved fields are sent as zero and ignored when received.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Self

from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import BHS_SIZE, IMMEDIATE_BIT, OPCODE_MASK, AhsType, Opcode, RejectReason

if TYPE_CHECKING:
    from collections.abc import Iterator

Buffer = bytes | bytearray | memoryview

MAX_DATA_SEGMENT = 0xFFFFFF  # 24 bits of DataSegmentLength
MAX_AHS_BYTES = 255 * 4  # 8 bits of TotalAHSLength, in words

FINAL = 0x80  # bit 0 of byte 1 in most PDUs; T in login
CONTINUE = 0x40

_LENGTHS = struct.Struct(">I")
_AHS_HEAD = struct.Struct(">HB")  # AHSLength (of what follows these three bytes), AHSType; section 11.2.2


def layout(body: str) -> struct.Struct:
    """The BHS of one PDU: opcode byte and three more, the lengths word, then ``body`` from byte 8 on."""
    made = struct.Struct(">BBBBI" + body)
    if made.size != BHS_SIZE:
        raise AssertionError(f"BHS layout {body} has {made.size} bytes")
    return made


def ahs_length(bhs: Buffer) -> int:
    """Bytes of additional header segments that follow this BHS."""
    return bhs[4] * 4


def data_length(bhs: Buffer) -> int:
    """DataSegmentLength: bytes of data, padding not counted."""
    return int(_LENGTHS.unpack_from(bhs, 4)[0]) & MAX_DATA_SEGMENT


def padding(length: int) -> int:
    """Bytes that fill ``length`` up to a whole word; section 11.2.3."""
    return -length & 3


def lengths_word(ahs_bytes: int, data_bytes: int) -> int:
    """Bytes 4 to 7 of a BHS. ``ahs_bytes`` is a whole number of words."""
    assert ahs_bytes % 4 == 0, ahs_bytes
    assert ahs_bytes <= MAX_AHS_BYTES, ahs_bytes
    assert data_bytes <= MAX_DATA_SEGMENT, data_bytes
    return ahs_bytes << 22 | data_bytes


def first_byte(opcode: Opcode, immediate: bool) -> int:
    """Byte 0 of a request."""
    return opcode | (IMMEDIATE_BIT if immediate else 0)


def invalid_field(message: str) -> ProtocolError:
    """The error for a field whose value RFC 7143 does not allow there."""
    return ProtocolError(message, RejectReason.INVALID_PDU_FIELD)


def protocol_error(message: str) -> ProtocolError:
    """The error for a PDU that must not come in this form or at this time."""
    return ProtocolError(message, RejectReason.PROTOCOL_ERROR)


def parse_ahs(ahs: Buffer) -> Iterator[tuple[int, bytes]]:
    """Walk additional header segments: AHSType, and the AHSLength bytes that follow it (section 11.2.2).

    The first of these is reserved in both types that exist.

    Raises:
        ProtocolError: a segment does not fit.
    """
    offset = 0
    while offset < len(ahs):
        if len(ahs) - offset < _AHS_HEAD.size:
            raise invalid_field("truncated AHS")
        length, kind = _AHS_HEAD.unpack_from(ahs, offset)
        start = offset + _AHS_HEAD.size
        end = start + length
        if length == 0 or end > len(ahs):
            raise invalid_field(f"AHS of type {kind} has an impossible length {length}")
        yield kind, bytes(ahs[start:end])
        offset = end + padding(end)


def serialize_ahs(kind: AhsType, specific: bytes) -> bytes:
    """One AHS, padded to whole words."""
    segment = _AHS_HEAD.pack(len(specific), kind) + specific
    return segment + bytes(padding(len(segment)))


@dataclass(frozen=True, slots=True)
class Pdu(ABC):
    """A PDU without its digests and padding.

    Subclasses have ``parse(bhs, ahs, data)`` (structure only), ``check()`` (values that the RFC forbids) and
    ``serialize()``. ``data``, where there is any, refers to the buffer it was parsed from: copy what must outlive it.
    """

    OPCODE: ClassVar[Opcode]
    HAS_DATA: ClassVar[bool] = False  # whether a data segment may come with it

    @classmethod
    def parse(cls, bhs: Buffer, ahs: Buffer = b"", data: Buffer = b"") -> Self:
        """Decode a BHS of this type with its AHSs and unpadded data.

        Raises:
            ProtocolError: the header is short, of another opcode, or does not fit ``ahs`` and ``data``.
        """
        if len(bhs) != BHS_SIZE:
            raise ProtocolError(f"a BHS has {BHS_SIZE} bytes, not {len(bhs)}", None)
        if bhs[0] & OPCODE_MASK != cls.OPCODE:
            raise ProtocolError(f"opcode {bhs[0] & OPCODE_MASK:#04x} is not {cls.OPCODE.name}", None)
        if ahs_length(bhs) != len(ahs) or data_length(bhs) != len(data):
            raise ProtocolError(f"{cls.OPCODE.name}: the header's lengths do not match what came", None)
        return cls._parse(bhs, ahs, data)

    @classmethod
    @abstractmethod
    def _parse(cls, bhs: Buffer, ahs: Buffer, data: Buffer) -> Self:
        """The object; lengths and opcode are checked."""

    @abstractmethod
    def serialize(self) -> bytes:
        """The header: BHS and AHSs. Data segment, padding and digests are added by ``iscsi.wire.pdu.Framer``."""

    def check(self) -> None:
        """Refuse values that the RFC forbids in a PDU of this type.

        Raises:
            ProtocolError: with the Reject reason that the RFC names.
        """

    @property
    def payload(self) -> Buffer:
        """The data segment: the field ``data`` of those PDUs that have one."""
        data: Buffer = getattr(self, "data", b"")
        return data

    def __str__(self) -> str:
        shown = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Buffer):
                value = value.hex() if field.name in {"cdb", "isid"} else f"{len(value)}B"
            elif isinstance(value, int) and not isinstance(value, bool) and value > 0xFFFF:
                value = f"{int(value):#x}"
            shown.append(f"{field.name}={value}")
        return f"{type(self).__name__}({' '.join(shown)})"
