"""LOG SENSE (SPC-4 section 6.7) and its pages: those that have something true to tell of this kind of disk.

There is no temperature, no wear, no corrected error here; what the disks below know they tell the host's administrator.
Nothing is saved or can be set. The one threshold that there is is a mode page (``thresholds``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iscsi.scsi import thresholds
from iscsi.scsi.command import ScsiResult
from iscsi.scsi.sense import invalid_cdb_field
from iscsi.stats import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from iscsi.scsi.command import ScsiCommand
    from iscsi.scsi.lun import LogicalUnit, Nexus

_SUPPORTED, _PROVISIONING, _STATISTICS = 0x00, 0x0C, 0x19
_ALL_SUBPAGES = 0xFF
_CUMULATIVE = 1  # page control, SPC-4 table 217
_SPF = 0x40
_BINARY_LIST = 0x03  # FORMAT AND LINKING of a parameter that is a list of numbers
_INTERVAL_EXPONENT, _INTERVAL = 6, 1  # times are told in units of 1 * 10**-6 s


def _parameter(code: int, value: bytes) -> bytes:
    return code.to_bytes(2, "big") + bytes((_BINARY_LIST, len(value))) + value


def _statistics(lu: LogicalUnit) -> bytes:
    """General Statistics and Performance (SPC-4 section 7.3.9): what all initiators together have done, since the unit
    is shown. Command priority is not supported, so the weighted fields are 0. So is idle time, which is not measured;
    but sg_logs (sg3-utils 1.46) reads no page without it."""
    stats = lu.stats()
    reads, writes = stats.total(Kind.READ), stats.total(Kind.WRITE)
    numbers = (
        reads.commands,
        writes.commands,
        writes.bytes >> lu.block_shift,
        reads.bytes >> lu.block_shift,
        reads.nanoseconds // 1000,
        writes.nanoseconds // 1000,
        0,
        0,
    )
    interval = _INTERVAL_EXPONENT.to_bytes(4, "big") + _INTERVAL.to_bytes(4, "big")
    activity = b"".join(number.to_bytes(8, "big") for number in numbers)
    return _parameter(1, activity) + _parameter(2, bytes(8)) + _parameter(3, interval)


def _provisioning(lu: LogicalUnit) -> bytes:
    assert lu.resources is not None
    return thresholds.log_page(lu.resources)


_PAGES: dict[int, Callable[[LogicalUnit], bytes]] = {
    _SUPPORTED: lambda lu: bytes(_pages_of(lu)),
    _PROVISIONING: _provisioning,
    _STATISTICS: _statistics,
}


def _pages_of(lu: LogicalUnit) -> list[int]:
    return [page for page in _PAGES if page != _PROVISIONING or lu.resources is not None]


def _pages_and_subpages(lu: LogicalUnit) -> bytes:
    """The list of page 00h, subpage FFh."""
    named = sorted([(page, 0) for page in _pages_of(lu)] + [(_SUPPORTED, _ALL_SUBPAGES)])
    return b"".join(bytes(each) for each in named)


async def log_sense(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    cdb = command.cdb
    control, page, subpage = cdb[2] >> 6, cdb[2] & 0x3F, cdb[3]
    if page not in _pages_of(lu):
        raise invalid_cdb_field(2, 5)
    if page == _SUPPORTED and subpage == _ALL_SUBPAGES:
        header, payload = bytes((_SPF | page, subpage)), _pages_and_subpages(lu)
    elif subpage:
        raise invalid_cdb_field(3)
    elif page != _SUPPORTED and control != _CUMULATIVE:
        raise invalid_cdb_field(2, 7)
    else:
        header, payload = bytes((page, 0)), _PAGES[page](lu)
    allocation = int.from_bytes(cdb[7:9], "big")
    return ScsiResult(data_in=(header + len(payload).to_bytes(2, "big") + payload)[:allocation])
