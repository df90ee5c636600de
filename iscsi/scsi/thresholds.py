"""Logical block provisioning thresholds (SBC-4 section 4.7.3.7): hosts are warned before the pool is full.

One threshold, of the percentage that is left of what all units draw from: type 001b, armed decreasing, resource 03h.
It is crossed once, at a change of the pool's state, and then every nexus has a unit attention (SITUA = 0); so nothing
here runs with a command. Where it lies is the administrator's to say; hosts may only not want to hear of it (LBPERE
of the Read-Write Error Recovery mode page).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from engine.units import MIB

if TYPE_CHECKING:
    from iscsi.scsi.lun import LogicalUnit

_SET_BYTES = MIB
"""A threshold set, in which resources are counted."""
RANGE_PERCENT = 5
"""Threshold percentage of VPD B2h: the threshold is armed again when so much more is left."""
_DESCRIPTOR_AT = 16
"""Byte of the threshold descriptor in the mode page; also what the notification tells as INFORMATION."""
_ENABLED, _PERCENTAGE = 0x80, 1 << 3
_AVAILABLE_COUNT, _AVAILABLE_PERCENTAGE = 0x0001, 0x0003  # parameter codes of log page 0Ch, SBC-4 table 198
_NOT_DEDICATED = 2  # scope, SBC-4 table 199: other units draw from it, too
_BINARY_LIST = 0x03
NOTIFICATION_INFORMATION = _DESCRIPTOR_AT


class Resources(Protocol):
    """What thin units of a pool draw from (``engine.pool_space.PoolSpace``)."""

    @property
    def left_bytes(self) -> int:
        """May be negative: nothing is left."""
        ...

    @property
    def left_percent(self) -> int: ...
    @property
    def threshold_percent(self) -> int:
        """With less than this left hosts are warned."""
        ...


def exponent(lu: LogicalUnit) -> int:
    """A threshold set has 2 to the power of this logical blocks."""
    return _SET_BYTES.bit_length() - 1 - lu.block_shift


def mode_page(resources: Resources, *, changeable: bool) -> bytearray:
    """Logical Block Provisioning mode page, 1Ch/02h (SBC-4 section 6.5.9); nothing in it can be changed."""
    page = bytearray(_DESCRIPTOR_AT + 8)
    page[:4] = 0x40 | 0x1C, 0x02, 0, len(page) - 4
    if not changeable:
        page[_DESCRIPTOR_AT] = _ENABLED | _PERCENTAGE
        page[_DESCRIPTOR_AT + 1] = _AVAILABLE_PERCENTAGE
        page[_DESCRIPTOR_AT + 4 :] = resources.threshold_percent.to_bytes(4, "big")
    return page


def log_page(resources: Resources) -> bytes:
    """Parameters of the Logical Block Provisioning log page, 0Ch (SBC-4 section 6.4.5)."""
    sets = min(max(0, resources.left_bytes) // _SET_BYTES, 0xFFFF_FFFF)
    percent = max(0, resources.left_percent)
    return b"".join(
        code.to_bytes(2, "big") + bytes((_BINARY_LIST, 8)) + value + bytes((_NOT_DEDICATED, 0, 0, 0))
        for code, value in (
            (_AVAILABLE_COUNT, sets.to_bytes(4, "big")),
            (_AVAILABLE_PERCENTAGE, percent.to_bytes(2, "big") + bytes(2)),
        )
    )
