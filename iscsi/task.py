"""A SCSI command in progress: gathering of its Data-Out by RFC 7143 section 4.2.5.2, and its way to the logical unit.

Commands that the fast path answers at once never become a task. A task is in ``Session.tasks`` under its ITT from
its command PDU until its response, in these stages:

    gathering (immediate, unsolicited, solicited data) -> queued -> running (``LogicalUnit.execute``) -> answered

Where the data goes: a plain WRITE *streams*: each piece that arrives in order and in whole blocks is handed to the
device's ``try_write`` and never kept. The first piece that cannot go that way, and all that follow, are gathered; at
the end they are written by a WRITE(16) of their own for the rest of the range. Everything else gathers from the start.

Invariants: ``received`` bytes have arrived, in order; of these the first ``streamed`` are in the device and the rest in
``data``. At most one burst is outstanding: it ends at ``burst_end``, its next piece has ``data_sn`` and carries ``ttt``
(``RESERVED_TAG`` for unsolicited data).
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import TYPE_CHECKING

from iscsi.scsi.command import ScsiCommand
from iscsi.scsi.limits import MAX_TRANSFER_BYTES
from iscsi.wire.opcodes import RESERVED_TAG, TaskAttribute

if TYPE_CHECKING:
    from iscsi.scsi.lun import Nexus

_WRITE_10 = 0x2A
_WRITE_12 = 0xAA
_WRITE_16 = 0x8A
_DPO = 0x10


class ScsiTask:
    """One command. See the module for its stages and invariants."""

    __slots__ = (
        "aborted",
        "attribute",
        "burst_end",
        "cdb",
        "data",
        "data_sn",
        "expected",
        "finished",
        "immediate",
        "is_read",
        "is_write",
        "itt",
        "lun",
        "nexus",
        "offset",
        "r2t_sn",
        "received",
        "runner",
        "started",
        "streamed",
        "streams",
        "ttt",
        "wanted",
    )

    def __init__(
        self,
        nexus: Nexus,
        itt: int,
        lun: int,
        cdb: bytes,
        *,
        attribute: int,
        immediate: bool,
        is_read: bool,
        is_write: bool,
        expected: int,
    ) -> None:
        """``lun``: the eight bytes of the PDU as a number. ``expected``: expected data transfer length in bytes."""
        self.nexus = nexus
        self.itt = itt
        self.lun = lun
        self.cdb = cdb
        self.attribute = attribute
        self.immediate = immediate
        self.is_read = is_read
        self.is_write = is_write
        self.expected = expected
        self.data = bytearray()
        self.received = 0
        self.streamed = 0
        self.burst_end = 0
        self.data_sn = 0
        self.r2t_sn = 0
        self.ttt = RESERVED_TAG
        self.offset = 0
        self.streams = False
        self.wanted = expected if is_write else 0  # how much of it is asked for; the CDB may want less
        self.aborted = False
        self.runner: asyncio.Task[None] | None = None
        self.started = monotonic_ns()
        self.finished = asyncio.Event()

    def __str__(self) -> str:
        return f"itt={self.itt:08x} lun={self.lun >> 48:04x} opcode={self.cdb[0]:02x}"

    def consider_streaming(self) -> None:
        """Decide whether the data may go to the device piece by piece.

        It may for a WRITE without flags whose length is the expected one, in range, on a nexus that writes fast.
        """
        cdb = self.cdb
        nexus = self.nexus
        if cdb[0] == _WRITE_10:
            lba, blocks, control = int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[7:9], "big"), cdb[9]
        elif cdb[0] == _WRITE_12:
            lba, blocks, control = int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[6:10], "big"), cdb[11]
        elif cdb[0] == _WRITE_16:
            lba, blocks, control = int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big"), cdb[15]
        else:
            return
        if (
            nexus.fast_writable
            and not cdb[1] & ~_DPO
            and not control
            and self.attribute in (TaskAttribute.UNTAGGED, TaskAttribute.SIMPLE)
            and not self.is_read
            and 0 < self.expected == blocks << nexus.block_shift <= MAX_TRANSFER_BYTES
            and lba + blocks <= nexus.blocks
        ):
            self.offset = lba << nexus.block_shift
            self.streams = True

    def gather(self, data: memoryview) -> None:
        """Keep a piece. Nothing streams after it."""
        self.streams = False
        self.data += data
        self.received += len(data)

    def command(self) -> ScsiCommand:
        """What is left for the logical unit to do, once all data is here."""
        cdb = self.cdb
        if self.streamed:
            shift = self.nexus.block_shift
            lba = (self.offset + self.streamed) >> shift
            blocks = len(self.data) >> shift
            cdb = bytes((_WRITE_16, cdb[1])) + lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + b"\0\0"
        announced = self.expected if self.wanted < self.expected and self.is_write else None
        limit = self.expected if self.is_read else 0
        return ScsiCommand(cdb, memoryview(self.data)[: self.wanted], limit, announced, lambda: self.aborted)
