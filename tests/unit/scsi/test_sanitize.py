"""SANITIZE: what is refused, what the medium holds afterwards, what everybody is told meanwhile and after a failure."""

import asyncio

import pytest

from engine.errors import MediumError
from engine.sanitize import Sanitizer, SanitizeState
from engine.stores import ExtentState
from iscsi.scsi.command import ScsiCommand, Status
from iscsi.scsi.sense import SenseKey
from tests.support.memory_device import MemoryDevice
from tests.support.sanitize_host import SanitizeHost
from tests.support.scsi_host import (
    GOOD,
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    INVALID_OPCODE,
    RESERVATION_CONFLICT,
    WRITE_PROTECTED,
    WRONG_DATA_LENGTH,
    Expect,
    Host,
    disk,
    illegal,
)

BLOCKS = 4096
SIZE = BLOCKS * 512
BLOCK_ERASE = "48 02 0000000000 0000 00"
BLOCK_ERASE_NOW = "48 82 0000000000 0000 00"
EXIT_FAILURE_MODE = "48 1f 0000000000 0000 00"
READ = "28 00 00000000 00 0001 00"
WRITE = "2a 00 00000000 00 0001 00"
TEST_UNIT_READY = "00 00 00 00 00 00"
IN_PROGRESS = Expect(Status.CHECK_CONDITION, SenseKey.NOT_READY, (0x041B,))
FAILED = Expect(Status.CHECK_CONDITION, SenseKey.MEDIUM_ERROR, (0x3103,))
SEQUENCE_ERROR = illegal(0x2C00)


class Bench:
    """A disk full of data with a sanitizer, and two hosts."""

    def __init__(self, **options) -> None:
        self.device = MemoryDevice(SIZE)
        self.device.data[:] = b"d" * SIZE
        self.device.states = [ExtentState.DATA] * BLOCKS
        self.around = SanitizeHost()
        self.sanitizer = self.device.sanitizer = Sanitizer(self.device, self.around, spread_s=0)
        self.lu = disk(device=self.device, **options)
        self.around.on_change = self.lu.refresh_all
        self.host, self.other = Host(self.lu, 1), Host(self.lu, 2)

    def hold(self) -> asyncio.Event:
        """From now on the device does nothing until the event is set."""
        self.device.gate = asyncio.Event()
        return self.device.gate


def overwrite(pattern: bytes, count: int = 1, flags: int = 0, cdb_flags: int = 0) -> tuple[str, bytes]:
    data = bytes((flags | count, 0)) + len(pattern).to_bytes(2, "big") + pattern
    return f"48 {cdb_flags | 0x01:02x} 0000000000 {len(data):04x} 00", data


async def test_block_erase_deallocates_everything_and_purges_before_and_after():
    bench = Bench()
    await bench.host.send(BLOCK_ERASE)
    assert bench.device.data == bytes(SIZE)
    assert set(bench.device.states) == {ExtentState.HOLE}
    assert bench.around.purges == 2
    first, last = bench.around.records
    assert first is not None
    assert last is None
    await bench.host.send(READ)


@pytest.mark.parametrize("length", [1, 4, 256, 512])
async def test_overwrite_fills_every_block_with_the_pattern(length):
    bench = Bench()
    pattern = bytes(range(1, 256))[:length].ljust(length, b"\xee")
    await bench.host.send(*overwrite(pattern))
    assert bench.device.data == (pattern * 512)[:512] * BLOCKS


@pytest.mark.parametrize(("count", "first"), [(1, b"\x0f"), (2, b"\xf0"), (3, b"\x0f")])
async def test_inverted_passes_end_with_the_pattern_itself(count, first):
    bench = Bench()
    gate = bench.hold()
    seen = []
    write = bench.device.write

    async def watched(offset, data, /, *, fua=False):
        if offset == 0:
            seen.append(bytes(data[:1]))
        await write(offset, data, fua=fua)

    bench.device.write = watched
    gate.set()
    await bench.host.send(*overwrite(b"\x0f" * 512, count, flags=0x80))
    assert (seen[0], seen[-1], len(seen)) == (first, b"\x0f", count)


async def test_zeroes_are_written_where_data_is_and_nowhere_else():
    bench = Bench()
    await bench.device.discard(SIZE // 2, SIZE // 2)
    bench.device.calls.clear()
    await bench.host.send(*overwrite(bytes(512)))
    assert bench.device.data == bytes(SIZE)
    written = [call for call in bench.device.calls if call[0] == "write"]
    assert written == [("write", 0, SIZE // 2)]


@pytest.mark.parametrize(
    ("data", "expect"),
    [
        ("", INVALID_FIELD_IN_CDB),
        ("01 00 00 01", INVALID_FIELD_IN_CDB),  # no pattern
        ("01 00 02 01" + "aa" * 513, INVALID_FIELD_IN_CDB),  # more than a block
        ("00 00 00 01 aa", INVALID_FIELD_IN_PARAMETER_LIST),  # no pass
        ("01 01 00 01 aa", INVALID_FIELD_IN_PARAMETER_LIST),
        ("21 00 00 01 aa", INVALID_FIELD_IN_PARAMETER_LIST),  # TEST
        ("01 00 00 00 aa", INVALID_FIELD_IN_PARAMETER_LIST),
        ("01 00 00 02 aa", INVALID_FIELD_IN_PARAMETER_LIST),
    ],
)
async def test_bad_parameters_erase_nothing(data, expect):
    bench = Bench()
    parameters = bytes.fromhex(data)
    await bench.host.send(f"48 01 0000000000 {len(parameters):04x} 00", parameters, expect)
    assert bench.device.data == b"d" * SIZE
    assert bench.around.records == []


async def test_bad_cdbs_erase_nothing():
    bench = Bench()
    for cdb in (
        "48 02 0000000000 0008 00",  # block erase takes no parameters
        "48 1f 0000000000 0008 00",
        "48 42 0000000000 0000 00",  # ZNR
        "48 02 0100000000 0000 00",
        "48 02 0000000000 0000 04",  # NACA
        "48 03 0000000000 0000 00",  # cryptographic erase
        "48 00 0000000000 0000 00",
    ):
        await bench.host.send(cdb, bytes(8), INVALID_FIELD_IN_CDB)
    cdb, data = overwrite(b"\xaa" * 4)
    await bench.host.send(cdb, data[:-1], WRONG_DATA_LENGTH)
    assert bench.device.data == b"d" * SIZE


async def test_what_forbids_writing_forbids_sanitizing():
    bench = Bench(read_only=True)
    await bench.host.send(BLOCK_ERASE, expect=WRITE_PROTECTED)
    bench = Bench()
    await bench.other.send("16 00 00 00 00 00")
    await bench.host.send(BLOCK_ERASE, expect=RESERVATION_CONFLICT)


async def test_a_device_that_cannot_be_sanitized_does_not_offer_it():
    host = Host(disk(BLOCKS))
    await host.send(BLOCK_ERASE, expect=INVALID_OPCODE)
    assert (await host.data("12 01 b1 00 40 00"))[7] == 0
    assert (await Bench().host.data("12 01 b1 00 40 00"))[7] == 0x40


async def test_data_that_something_else_keeps_is_not_said_to_be_erased():
    bench = Bench()
    bench.around.kept_by = "snapshot monday"
    await bench.host.send(BLOCK_ERASE, expect=SEQUENCE_ERROR)
    assert bench.device.data == b"d" * SIZE
    await bench.host.send(READ)


async def test_meanwhile_others_are_refused_and_told_how_far_it_is():
    bench = Bench()
    gate = bench.hold()
    await bench.host.send(BLOCK_ERASE_NOW)
    assert bench.host.nexus.fast_device is None
    for cdb in (TEST_UNIT_READY, READ, WRITE, "1b 01 00 00 01 00", "1a 00 3f 00 ff 00", BLOCK_ERASE, EXIT_FAILURE_MODE):
        await bench.other.send(cdb, bytes(512), IN_PROGRESS)
    for cdb in ("12 00 00 00 ff 00", "a0 00 00 000000 00000100 0000", "4d 00 40 00 00 00 00 01 00 00"):
        await bench.other.send(cdb)
    bench.sanitizer.progress = 0.25
    assert await bench.other.data("03 00 00 00 ff 00") == bytes.fromhex(
        "70 00 02 00000000 0a 00000000 04 1b 00 80 4000"
    )
    gate.set()
    await bench.sanitizer.finished()
    await bench.other.send(READ)
    assert bench.device.data == bytes(SIZE)


async def test_who_asks_for_the_third_time_is_told_when_it_is_over():
    bench = Bench()
    gate = bench.hold()
    await bench.host.send(BLOCK_ERASE_NOW)
    await bench.host.send(TEST_UNIT_READY, expect=IN_PROGRESS)
    await bench.host.send(TEST_UNIT_READY, expect=IN_PROGRESS)
    third = asyncio.ensure_future(bench.host.send(TEST_UNIT_READY))
    await asyncio.sleep(0)
    assert not third.done()
    gate.set()
    GOOD.check(await third)


async def test_an_aborted_command_does_not_hold_its_aborter_up_and_the_operation_goes_on():
    bench = Bench()
    gate = bench.hold()
    aborted = []
    command = ScsiCommand(bytes.fromhex(BLOCK_ERASE), memoryview(b""), 0, None, lambda: bool(aborted))
    running = asyncio.ensure_future(bench.lu.execute(bench.host.nexus, command))
    await bench.device.called.wait()
    aborted.append(True)
    await running
    bench.lu.reset()
    bench.other.nexus.take_unit_attention()
    await bench.other.send(TEST_UNIT_READY, expect=IN_PROGRESS)
    gate.set()
    await bench.sanitizer.finished()
    assert bench.device.data == bytes(SIZE)


async def test_a_write_that_waited_for_its_turn_does_not_land_in_the_middle():
    bench = Bench()
    gate = bench.hold()
    earlier = asyncio.ensure_future(bench.other.send(WRITE, b"1" * 512))
    await bench.device.called.wait()
    bench.around.gate = asyncio.Event()
    sanitize = asyncio.ensure_future(bench.host.send(BLOCK_ERASE_NOW))
    await asyncio.sleep(0)
    later = asyncio.ensure_future(bench.other.send(WRITE, b"2" * 512, IN_PROGRESS))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(earlier, sanitize, later)
    bench.around.gate.set()
    await bench.sanitizer.finished()
    assert bench.device.data == bytes(SIZE)


async def fail(bench: Bench, flags: int) -> None:
    bench.device.errors["discard"] = MediumError("the disk is gone")
    await bench.host.send(f"48 {flags | 0x02:02x} 0000000000 0000 00", expect=FAILED)
    bench.device.errors.clear()


async def test_after_a_failure_only_another_success_makes_the_unit_usable():
    bench = Bench()
    await fail(bench, 0)
    for cdb in (TEST_UNIT_READY, READ, WRITE):
        await bench.other.send(cdb, bytes(512), FAILED)
    await bench.other.send("12 00 00 00 ff 00")
    assert (await bench.other.data("03 00 00 00 ff 00"))[2::10][:2] == bytes((3, 0x31))
    await bench.host.send(EXIT_FAILURE_MODE, expect=INVALID_FIELD_IN_CDB)
    await bench.host.send("48 22 0000000000 0000 00", expect=INVALID_FIELD_IN_CDB)  # AUSE, after one without
    await bench.host.send(BLOCK_ERASE)
    await bench.other.send(READ)


async def test_a_failure_of_an_unrestricted_operation_can_be_left():
    bench = Bench()
    await fail(bench, 0x20)
    await bench.host.send(EXIT_FAILURE_MODE)
    await bench.other.send(READ)
    assert bench.around.records[-1] is None
    await bench.host.send(EXIT_FAILURE_MODE)


async def test_a_snapshot_that_came_in_between_fails_the_operation():
    bench = Bench()
    gate = bench.hold()
    await bench.host.send(BLOCK_ERASE_NOW)
    bench.around.kept_by = "snapshot tuesday"
    gate.set()
    await bench.sanitizer.finished()
    assert bench.sanitizer.state is SanitizeState.FAILED


@pytest.mark.parametrize("failed", [False, True])
async def test_what_was_recorded_is_taken_up_again(failed):
    bench = Bench()
    if failed:
        await fail(bench, 0x20)
    else:
        bench.hold()
        await bench.host.send(BLOCK_ERASE_NOW)
        await bench.sanitizer.stop()
    record = bench.around.records[-1]
    assert record is not None
    again = Bench()
    again.sanitizer.resume(record)
    if failed:
        await again.host.send(READ, expect=FAILED)
        await again.host.send(EXIT_FAILURE_MODE)
    else:
        await again.host.send(READ, expect=IN_PROGRESS)
        await again.sanitizer.finished()
        assert again.device.data == bytes(SIZE)
    await again.host.send(READ)
