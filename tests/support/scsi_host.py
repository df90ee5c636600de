"""A host that sends CDBs to a logical unit, and expectations as (status, sense key, allowed additional sense codes)."""

from __future__ import annotations

from dataclasses import dataclass

from iscsi.scsi.command import ScsiCommand, ScsiResult, Status
from iscsi.scsi.it_nexus import ItNexus
from iscsi.scsi.lun import LogicalUnit, LunIdentity
from iscsi.scsi.sense import SenseKey
from tests.support.memory_device import MemoryDevice

IDENTITY = LunIdentity(serial="0123456789abcdef", naa=0x3123456789ABCDEF)
TARGET = "iqn.2026-11.org.twinvol:disk"


@dataclass(frozen=True)
class Expect:
    """An outcome. ``codes``: the ASC/ASCQ pairs (high byte ASC) any of which will do."""

    status: Status = Status.GOOD
    key: SenseKey | None = None
    codes: tuple[int, ...] = ()

    def check(self, result: ScsiResult) -> None:
        assert (result.status, *sense_of(result)[:1]) == (self.status, self.key)
        if self.codes:
            assert sense_of(result)[1] in self.codes


GOOD = Expect()
CONDITION_MET = Expect(Status.CONDITION_MET)
RESERVATION_CONFLICT = Expect(Status.RESERVATION_CONFLICT)


def illegal(*codes: int) -> Expect:
    return Expect(Status.CHECK_CONDITION, SenseKey.ILLEGAL_REQUEST, codes)


INVALID_FIELD_IN_CDB = illegal(0x2400)
INVALID_FIELD_IN_PARAMETER_LIST = illegal(0x2600)
INVALID_OPCODE = illegal(0x2000)
LBA_OUT_OF_RANGE = illegal(0x2100)
PARAMETER_LIST_LENGTH_ERROR = illegal(0x1A00)
WRONG_DATA_LENGTH = illegal(0x0E03)
MISCOMPARE = Expect(Status.CHECK_CONDITION, SenseKey.MISCOMPARE, (0x1D00,))
WRITE_PROTECTED = Expect(Status.CHECK_CONDITION, SenseKey.DATA_PROTECT, (0x2700,))
NO_MEDIUM = Expect(Status.CHECK_CONDITION, SenseKey.NOT_READY, (0x3A00, 0x3A01, 0x3A02))


def attention(code: int) -> Expect:
    return Expect(Status.CHECK_CONDITION, SenseKey.UNIT_ATTENTION, (code,))


def sense_of(result: ScsiResult) -> tuple[SenseKey | None, int]:
    """Sense key and ASC/ASCQ, from either format; (None, 0) without sense."""
    sense = result.sense
    if not sense:
        return None, 0
    if sense[0] & 0x7F == 0x72:
        return SenseKey(sense[1] & 0x0F), int.from_bytes(sense[2:4], "big")
    return SenseKey(sense[2] & 0x0F), int.from_bytes(sense[12:14], "big")


class Host:
    """One initiator's session with a logical unit."""

    def __init__(
        self, lu: LogicalUnit, number: int = 1, *, target: str = TARGET, tag: int = 1, clear_attention: bool = True
    ) -> None:
        self.lu = lu
        self.it_nexus = ItNexus(f"iqn.2026-11.example:host{number}", bytes((0, 2, 0x3D, 0, 0, number)), target, tag)
        self.nexus = lu.attach(self.it_nexus)
        if clear_attention:
            self.nexus.take_unit_attention()

    async def send(self, cdb: str, data: bytes = b"", expect: Expect | None = GOOD, *, announced: int | None = None):
        """Execute the CDB given in hex (spaces allowed), check the outcome (None: any), return the result."""
        command = ScsiCommand(bytes.fromhex(cdb), memoryview(data), 1 << 24, announced)
        result = await self.lu.execute(self.nexus, command)
        if expect is not None:
            expect.check(result)
        return result

    async def data(self, cdb: str) -> bytes:
        """The data that a good command returns."""
        return bytes((await self.send(cdb)).data_in)


def disk(blocks: int = 4096, *, device: MemoryDevice | None = None, **options) -> LogicalUnit:
    """A logical unit of that many 512-byte blocks."""
    return LogicalUnit(device or MemoryDevice(blocks * 512), IDENTITY, **options)
