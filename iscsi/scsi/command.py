"""What passes between the iSCSI transport and the SCSI device server (SAM-5 execute-command, narrowed).

The transport gathers Data-Out, calls ``LogicalUnit.execute`` and turns the result into Data-In, residuals and
a SCSI Response. SCSI failures are values, never exceptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Status(IntEnum):
    """SAM-5 section 5.3.1, table 35."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


def _never() -> bool:
    return False


@dataclass(slots=True)
class ScsiCommand:
    """One command as the transport hands it over.

    ``cdb``: the CDB bytes (16, or longer with an AHS). ``data_out``: everything the initiator sent for it, at
    most its expected data transfer length; valid until ``execute`` returns. ``data_in_limit``: how many
    bytes the initiator will take (expected data transfer length of a read), 0 without R bit.
    ``data_out_expected``: the expected data transfer length of a write, where the transport gathered less than that
    because the CDB wants no more; None when ``data_out`` is all. ``is_aborted``: a command that takes long asks from
    time to time whether anybody still wants it; who aborted it waits for its end.
    """

    cdb: bytes
    data_out: memoryview
    data_in_limit: int
    data_out_expected: int | None = None
    is_aborted: Callable[[], bool] = _never


@dataclass(slots=True)
class ScsiResult:
    """Outcome of a command.

    ``data_in``: everything the command returns (the transport truncates to the initiator's limit and reports the
    residual). ``data_out_wanted``: bytes the CDB asks for in the other direction (for the write residual).
    """

    status: int = Status.GOOD
    data_in: bytes | memoryview = b""
    sense: bytes = b""
    data_out_wanted: int = 0
