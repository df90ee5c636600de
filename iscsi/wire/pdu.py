"""Whole PDUs: opcode to class, framing with padding and digests, encoding (RFC 7143 section 11.2).

``Framer.next`` cuts one PDU out of a buffer or says that more bytes are needed; ``decode`` turns it into an object;
``encode`` is the way back. This is the slow path: the target's fast path decodes READ, WRITE and Data-Out by itself.

Every PDU of a connection is framed with the same ``Framer``; digests apply from the first PDU after login
(section 6.2), so login has ``Framer()`` and the full feature phase one made from what was negotiated.
"""

from __future__ import annotations

from dataclasses import dataclass

from iscsi.wire import requests, responses
from iscsi.wire.bhs import Buffer, Pdu, ahs_length, data_length, padding, protocol_error
from iscsi.wire.digest import digest
from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import BHS_SIZE, DIGEST_SIZE, OPCODE_MASK, RejectReason

DEFAULT_MAX_DATA_SEGMENT = 8192  # MaxRecvDataSegmentLength until it is declared; section 13.12

REQUESTS: dict[int, type[Pdu]] = {
    kind.OPCODE: kind
    for kind in (
        requests.NopOut,
        requests.ScsiCommandPdu,
        requests.TaskManagementRequest,
        requests.LoginRequest,
        requests.TextRequest,
        requests.DataOut,
        requests.LogoutRequest,
        requests.SnackRequest,
    )
}

RESPONSES: dict[int, type[Pdu]] = {
    kind.OPCODE: kind
    for kind in (
        responses.NopIn,
        responses.ScsiResponsePdu,
        responses.TaskManagementResponse,
        responses.LoginResponse,
        responses.TextResponse,
        responses.DataIn,
        responses.LogoutResponse,
        responses.R2T,
        responses.AsyncMessage,
        responses.Reject,
    )
}


@dataclass(frozen=True, slots=True)
class Frame:
    """One PDU's parts, as views of the buffer it was cut from. ``end`` is the offset of the next PDU there."""

    bhs: memoryview
    ahs: memoryview
    data: memoryview
    end: int
    data_digest_ok: bool = True

    @property
    def opcode(self) -> int:
        return self.bhs[0] & OPCODE_MASK

    @property
    def header(self) -> bytes:
        """A copy of BHS and AHSs, as a Reject returns them."""
        return bytes(self.bhs) + bytes(self.ahs)


@dataclass(frozen=True, slots=True)
class Framer:
    """How PDUs lie in one direction of a connection.

    ``max_data_segment``: the receiver's MaxRecvDataSegmentLength in bytes.
    """

    header_digest: bool = False
    data_digest: bool = False
    max_data_segment: int = DEFAULT_MAX_DATA_SEGMENT

    def size(self, bhs: Buffer) -> int:
        """Bytes of the whole PDU that begins with ``bhs``, padding and digests included.

        Raises:
            ProtocolError: its data segment is longer than was declared; the connection cannot be kept in step
                without reading it, so it ends.
        """
        length = data_length(bhs)
        if length > self.max_data_segment:
            raise ProtocolError(f"data segment of {length} bytes, at most {self.max_data_segment} were declared", None)
        total = BHS_SIZE + ahs_length(bhs) + (DIGEST_SIZE if self.header_digest else 0)
        if length:
            total += length + padding(length) + (DIGEST_SIZE if self.data_digest else 0)
        return total

    def next(self, buffer: memoryview, offset: int = 0) -> Frame | None:
        """Cut the PDU at ``offset``, or None while it is incomplete.

        Raises:
            ProtocolError: too long, or a wrong header digest (section 7.8): the connection ends.
        """
        if len(buffer) - offset < BHS_SIZE:
            return None
        bhs = buffer[offset : offset + BHS_SIZE]
        end = offset + self.size(bhs)
        header_end = offset + BHS_SIZE + ahs_length(bhs)
        start = header_end
        if self.header_digest:
            start += DIGEST_SIZE
            if len(buffer) < start:
                return None
            if buffer[header_end:start] != digest(buffer[offset:header_end]):
                raise ProtocolError("header digest error", None)
        if len(buffer) < end:
            return None
        length = data_length(bhs)
        data_ok = True
        if length and self.data_digest:
            data_ok = buffer[end - DIGEST_SIZE : end] == digest(buffer[start : end - DIGEST_SIZE])
        return Frame(bhs, buffer[offset + BHS_SIZE : header_end], buffer[start : start + length], end, data_ok)

    def encode(self, pdu: Pdu) -> bytes:
        """The bytes of ``pdu`` on the wire. Its data must fit the receiver; that is the caller's promise."""
        return b"".join(self.parts(pdu))

    def parts(self, pdu: Pdu) -> list[Buffer]:
        """The same bytes in pieces, the data segment not copied: for a sender that joins or gathers them itself."""
        header = pdu.serialize()
        data = pdu.payload
        parts: list[Buffer] = [header]
        if self.header_digest:
            parts.append(digest(header))
        if data:
            parts.append(data)
            if fill := padding(len(data)):
                parts.append(bytes(fill))
            if self.data_digest:
                parts.append(digest(b"".join((data, bytes(fill))) if fill else data))
        return parts


def decode(frame: Frame, kinds: dict[int, type[Pdu]]) -> Pdu:
    """The object in ``frame``, checked. ``kinds``: ``REQUESTS`` at a target, ``RESPONSES`` at an initiator.

    Raises:
        ProtocolError: unknown opcode, impossible values, or a wrong data digest.
    """
    kind = kinds.get(frame.opcode)
    if kind is None:
        raise ProtocolError(f"opcode {frame.opcode:#04x}", RejectReason.COMMAND_NOT_SUPPORTED)
    if not frame.data_digest_ok:
        raise ProtocolError("data digest error", RejectReason.DATA_DIGEST_ERROR)  # section 7.8
    if frame.data and not kind.HAS_DATA:
        raise protocol_error(f"{kind.OPCODE.name} has no data segment")
    pdu = kind.parse(frame.bhs, frame.ahs, frame.data)
    pdu.check()
    return pdu
