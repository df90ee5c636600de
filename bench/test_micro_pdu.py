"""PDU codec. Expected: about a microsecond for parse or serialize; CRC32C of 4 KiB well under one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iscsi.wire.digest import digest
from iscsi.wire.opcodes import Opcode
from iscsi.wire.pdu import Framer
from iscsi.wire.requests import NopOut, ScsiCommandPdu

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

# A READ(10) of eight blocks, tagged 0x11, as literal bytes (RFC 7143 section 11.3).
READ_10 = bytes.fromhex("01c00000 00000000 0000000000000000 00000011 00001000 00000007 00000003") + bytes.fromhex(
    "28000000 10000000 08000000 00000000"
)


def test_parse_a_scsi_command(benchmark: BenchmarkFixture) -> None:
    assert READ_10[0] == Opcode.SCSI_COMMAND
    parsed = benchmark(ScsiCommandPdu.parse, READ_10)
    assert parsed.serialize() == READ_10


def test_serialize_a_scsi_command(benchmark: BenchmarkFixture) -> None:
    parsed = ScsiCommandPdu.parse(READ_10)
    assert benchmark(parsed.serialize) == READ_10


def test_frame_a_burst_of_32_commands(benchmark: BenchmarkFixture) -> None:
    framer, burst = Framer(), memoryview(READ_10 * 32)

    def frame_all() -> int:
        count = 0
        for offset in range(0, len(burst), len(READ_10)):
            count += framer.next(burst, offset) is not None
        return count

    assert benchmark(frame_all) == 32


def test_nop_out_round_trip(benchmark: BenchmarkFixture) -> None:
    nop = bytes.fromhex("40800000 00000000 0000000000000000 00000077 ffffffff 00000001 00000001") + bytes(16)
    assert benchmark(lambda: NopOut.parse(nop).serialize()) == nop


def test_crc32c_of_4_kib(benchmark: BenchmarkFixture) -> None:
    assert len(benchmark(digest, bytes(4096))) == 4
