"""The eight-byte LUN field (SAM-5 section 4.7, RFC 7143 section 11.2.1.7), kept as one big-endian 64-bit integer.

Single-level structures only: peripheral device addressing on bus 0 for LUN 0 to 255, flat space addressing for
256 to 16383. Both forms of a small LUN are understood; the first is sent.
"""

from __future__ import annotations

MAX_LUN = 0x3FFF  # flat space addressing has 14 bits

_PERIPHERAL = 0b00
_FLAT = 0b01


def encode_lun(lun: int) -> int:
    """The field for ``lun`` (0..MAX_LUN), as Linux and libiscsi expect it.

    Raises:
        ValueError: ``lun`` is out of range (our own mistake, not a peer's).
    """
    if not 0 <= lun <= MAX_LUN:
        raise ValueError(f"LUN {lun} is not within 0..{MAX_LUN}")
    method = _PERIPHERAL if lun < 256 else _FLAT
    return (method << 62) | (lun << 48)


def decode_lun(field: int) -> int | None:
    """The LUN that ``field`` (64 bits) addresses, or None for a form no logical unit here can have."""
    if field & 0xFFFF_FFFF_FFFF:
        return None
    first = field >> 48
    match first >> 14:
        case 0b01:
            return first & MAX_LUN
        case 0b00 if first < 256:  # bus 0
            return first
        case _:
            return None
