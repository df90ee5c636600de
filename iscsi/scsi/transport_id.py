"""TransportIDs of iSCSI (SPC-4 section 7.6.4.6): how PERSISTENT RESERVE parameter data names initiator ports.

Four bytes of header, then a UTF-8 name that ends with a NUL and is filled with NULs to a multiple of four bytes, twenty
at least. Format 01b is an initiator *port*: ``NAME,i,0xISID``. Format 00b is an initiator *device*, all of whose ports
are meant: ``NAME``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from iscsi.scsi.sense import invalid_parameter
from iscsi.target import is_plausible_name, normalize_name

HEADER_BYTES = 4
MAX_TRANSPORT_ID_BYTES = 256
"""An iSCSI name of 223 bytes, ",i,0x", 12 digits and the padding, behind the header."""

_ISCSI = 0x05
_PORT_FORMAT = 0x40  # FORMAT CODE 01b, in its place in byte 0
_PORT = re.compile(rb"([^,\0]{1,223}),i,0x([0-9a-fA-F]{12})\0+")
_DEVICE = re.compile(rb"([^,\0]{1,223})\0+")
_MIN_NAME_BYTES = 20


@dataclass(frozen=True, slots=True)
class TransportId:
    """``isid`` is None where all ports of the initiator device are meant."""

    initiator_name: str
    isid: bytes | None

    def serialize(self) -> bytes:
        text = self.initiator_name if self.isid is None else f"{self.initiator_name},i,0x{self.isid.hex()}"
        name = text.encode() + b"\0"
        name = name.ljust(max(_MIN_NAME_BYTES, -(-len(name) // 4) * 4), b"\0")
        header = bytes((_ISCSI | (0 if self.isid is None else _PORT_FORMAT), 0))
        return header + len(name).to_bytes(2, "big") + name


def parse_transport_ids(parameters: memoryview, start: int) -> list[TransportId]:
    """The TransportIDs that fill ``parameters`` from ``start`` on; names are normalized.

    Raises INVALID FIELD IN PARAMETER LIST, pointing at what is wrong.
    """
    found = []
    at = start
    while at < len(parameters):
        first = parameters[at]
        if first & ~_PORT_FORMAT != _ISCSI:
            raise invalid_parameter(at)
        end = at + HEADER_BYTES + int.from_bytes(parameters[at + 2 : at + HEADER_BYTES], "big")
        if at + HEADER_BYTES > len(parameters) or end > len(parameters):
            raise invalid_parameter(at + 2)
        form = _PORT if first & _PORT_FORMAT else _DEVICE
        match = form.fullmatch(bytes(parameters[at + HEADER_BYTES : end]))
        if match is None:
            raise invalid_parameter(at + HEADER_BYTES)
        try:
            name = normalize_name(match[1].decode())
        except UnicodeDecodeError:
            raise invalid_parameter(at + HEADER_BYTES) from None
        if not is_plausible_name(name):
            raise invalid_parameter(at + HEADER_BYTES)
        found.append(TransportId(name, bytes.fromhex(match[2].decode()) if form is _PORT else None))
        at = end
    return found
