"""Nexuses, unit attentions, the fast path's slots, and what every command has in common."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import MediumError, OutOfSpace, StoreFailed
from iscsi.scsi import lun
from iscsi.scsi.command import ScsiCommand, ScsiResult, Status
from iscsi.scsi.lun import execute_absent
from iscsi.scsi.sense import Asc, SenseKey
from tests.support.memory_device import MemoryDevice
from tests.support.scsi_host import (
    GOOD,
    INVALID_FIELD_IN_CDB,
    INVALID_OPCODE,
    LBA_OUT_OF_RANGE,
    WRITE_PROTECTED,
    Expect,
    Host,
    attention,
    disk,
    illegal,
    sense_of,
)

TEST_UNIT_READY = "00 00 00 00 00 00"
READ_10_ONE_BLOCK = "28 00 00 00 00 00 00 00 01 00"
WRITE_10_ONE_BLOCK = "2a 00 00 00 00 00 00 00 01 00"
SYNCHRONIZE_CACHE = "35 00 00 00 00 00 00 00 00 00"


async def test_a_new_nexus_first_hears_power_on_once():
    host = Host(disk(), clear_attention=False)
    await host.send(TEST_UNIT_READY, expect=attention(0x2900))
    await host.send(TEST_UNIT_READY)


async def test_inquiry_and_report_luns_neither_report_nor_clear_a_unit_attention():
    host = Host(disk(), clear_attention=False)
    await host.send("12 00 00 00 24 00")
    await host.send("a0 00 00 00 00 00 00 00 00 10 00 00")
    await host.send(TEST_UNIT_READY, expect=attention(0x2900))


async def test_report_luns_settles_a_changed_inventory():
    host = Host(disk())
    host.nexus.establish_unit_attention(Asc.REPORTED_LUNS_DATA_HAS_CHANGED)
    assert host.nexus.fast_device is None
    await host.send("a0 00 00 00 00 00 00 00 00 10 00 00")
    assert host.nexus.fast_device is not None
    await host.send(TEST_UNIT_READY)


async def test_request_sense_returns_a_unit_attention_as_data_and_clears_it():
    host = Host(disk(), clear_attention=False)
    assert await host.data("03 00 00 00 ff 00") == bytes.fromhex("70000600000000 0a 00000000 2900 00000000")
    await host.send(TEST_UNIT_READY)


async def test_an_unknown_operation_code_leaves_the_unit_attention_pending():
    host = Host(disk(), clear_attention=False)
    await host.send("c0 00 00 00 00 00", expect=INVALID_OPCODE)
    await host.send(TEST_UNIT_READY, expect=attention(0x2900))


async def test_the_fast_path_opens_when_the_unit_attention_was_reported():
    lu = disk(4096)
    host = Host(lu, clear_attention=False)
    assert (host.nexus.fast_device, host.nexus.fast_writable) == (None, False)
    await host.send(TEST_UNIT_READY, expect=attention(0x2900))
    assert host.nexus.fast_device is lu.device
    assert host.nexus.fast_writable
    assert (host.nexus.blocks, host.nexus.block_shift) == (4096, 9)


async def test_a_resize_is_told_to_every_nexus_and_reaches_read_capacity():
    lu = disk(4096)
    one, two = Host(lu, 1), Host(lu, 2)
    lu.device.resize(8192 * 512)
    lu.capacity_changed()
    assert one.nexus.fast_device is None
    for host in (one, two):
        await host.send(TEST_UNIT_READY, expect=attention(0x2A09))
        assert await host.data("25 00 00 00 00 00 00 00 00 00") == bytes.fromhex("00001fff 00000200")
        assert host.nexus.blocks == 8192


async def test_replaced_content_means_that_the_medium_may_have_changed():
    lu = disk()
    host = Host(lu)
    other = MemoryDevice(1024 * 512)
    lu.content_replaced(other)
    await host.send(TEST_UNIT_READY, expect=attention(0x2800))
    assert (host.nexus.fast_device, host.nexus.blocks) == (other, 1024)


async def test_a_reset_is_told_to_every_nexus():
    lu = disk()
    one, two = Host(lu, 1), Host(lu, 2)
    lu.reset()
    for host in (one, two):
        await host.send(TEST_UNIT_READY, expect=attention(0x2903))


async def test_too_many_unit_attentions_become_power_on():
    host = Host(disk())
    for asc in list(Asc)[:9]:
        host.nexus.establish_unit_attention(asc)
    await host.send(TEST_UNIT_READY, expect=attention(0x2900))
    await host.send(TEST_UNIT_READY)


async def test_a_read_only_unit_refuses_writes_and_keeps_the_fast_path_for_reads():
    host = Host(disk(read_only=True))
    assert host.nexus.fast_device is not None
    assert not host.nexus.fast_writable
    await host.send(WRITE_10_ONE_BLOCK, bytes(512), WRITE_PROTECTED)
    await host.send(READ_10_ONE_BLOCK)


async def test_without_write_cache_every_write_is_durable_and_slow():
    device = MemoryDevice(1 << 20)
    host = Host(disk(device=device, write_cache=False))
    assert host.nexus.fast_device is device
    assert not host.nexus.fast_writable
    await host.send(WRITE_10_ONE_BLOCK, bytes(512))
    assert device.fua_writes == 1


@pytest.mark.parametrize(
    ("operation", "error", "cdb", "key", "code"),
    [
        ("write", OutOfSpace("full"), WRITE_10_ONE_BLOCK, SenseKey.DATA_PROTECT, 0x2707),
        ("write", MediumError("bad"), WRITE_10_ONE_BLOCK, SenseKey.MEDIUM_ERROR, 0x0C00),
        ("write", StoreFailed("sync failed"), WRITE_10_ONE_BLOCK, SenseKey.DATA_PROTECT, 0x2700),
        ("read", MediumError("bad"), READ_10_ONE_BLOCK, SenseKey.MEDIUM_ERROR, 0x1100),
        ("flush", StoreFailed("sync failed"), SYNCHRONIZE_CACHE, SenseKey.MEDIUM_ERROR, 0x0C00),
    ],
)
async def test_engine_errors_have_their_sense(operation, error, cdb, key, code):
    device = MemoryDevice(1 << 20)
    device.errors[operation] = error
    data = bytes(512) if operation == "write" else b""
    await Host(disk(device=device)).send(cdb, data, Expect(Status.CHECK_CONDITION, key, (code,)))


async def test_a_bad_field_is_pointed_at():
    host = Host(disk())
    # READ(10) with RDPROTECT = 001b: byte 1, highest wrong bit 5
    result = await host.send("28 20 00 00 00 00 00 00 01 00", expect=INVALID_FIELD_IN_CDB)
    assert result.sense[15:18] == bytes.fromhex("cd 0001")


async def test_an_lba_out_of_range_is_named_in_the_information_field():
    host = Host(disk(4096))
    result = await host.send("28 00 00 00 0f ff 00 00 02 00", expect=LBA_OUT_OF_RANGE)
    assert (result.sense[0], result.sense[3:7]) == (0xF0, bytes.fromhex("00001000"))


async def test_a_lun_that_is_not_there_answers_inquiry_and_report_luns():
    def send(cdb: str) -> ScsiResult:
        return execute_absent(ScsiCommand(bytes.fromhex(cdb), memoryview(b""), 255), (0, 3))

    assert bytes(send("12 00 00 00 ff 00").data_in)[:4] == bytes.fromhex("7f 00 06 12")
    inventory = bytes(send("a0 00 00 00 00 00 00 00 00 ff 00 00").data_in)
    assert inventory == bytes.fromhex("00000010 00000000 0000000000000000 0003000000000000")
    illegal(0x2500).check(send(TEST_UNIT_READY))
    illegal(0x2500).check(send("12 01 00 00 ff 00"))
    assert bytes(send("03 00 00 00 ff 00").data_in)[2] == SenseKey.ILLEGAL_REQUEST


async def test_data_out_length_is_what_the_cdb_asks_for():
    lu = disk()
    for cdb, length in (
        (WRITE_10_ONE_BLOCK, 512),
        ("0a 00 00 00 00 00", 256 * 512),
        ("89 00 00 00 00 00 00 00 00 00 00 00 00 02 00 00", 4 * 512),
        ("93 01 00 00 00 00 00 00 00 00 00 00 10 00 00 00", 0),
        ("42 00 00 00 00 00 00 00 18 00", 24),
        ("5f 00 00 00 00 00 00 00 18 00", 24),
        (READ_10_ONE_BLOCK, 0),
        ("c0", 0),
    ):
        assert lu.data_out_length(bytes.fromhex(cdb)) == length


@given(cdb=st.binary(min_size=0, max_size=24), data=st.binary(max_size=64), removable=st.booleans())
async def test_any_cdb_gets_a_result_and_never_an_internal_failure(cdb, data, removable):
    host = Host(disk(64, removable=removable))
    result = await host.lu.execute(host.nexus, ScsiCommand(cdb, memoryview(data), 512))
    assert result.status in (Status.GOOD, Status.CHECK_CONDITION, Status.CONDITION_MET, Status.RESERVATION_CONFLICT)
    assert sense_of(result)[0] is not SenseKey.HARDWARE_ERROR
    assert (result.status == Status.CHECK_CONDITION) == bool(result.sense)


async def test_detach_ends_what_the_nexus_could_do():
    lu = disk()
    one, two = Host(lu, 1), Host(lu, 2)
    await one.send("16 00 00 00 00 00")
    assert two.nexus.fast_device is None
    lu.detach(one.nexus)
    assert one.nexus.fast_device is None
    assert two.nexus.fast_device is lu.device
    await two.send(READ_10_ONE_BLOCK, expect=GOOD)


async def test_failures_of_a_full_disk_do_not_fill_the_log(caplog, monkeypatch):
    now = 100.0
    monkeypatch.setattr(lun, "monotonic", lambda: now)
    device = MemoryDevice(4096)
    host = Host(disk(device=device))
    device.errors["write"] = OutOfSpace("the host's disk is full")
    for _ in range(1000):
        await host.send(WRITE_10_ONE_BLOCK, bytes(512), expect=None)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"unit {host.lu.identity.serial}: opcode 2Ah failed: the host's disk is full"] * 16
    now += lun.FAILURES_S
    await host.send(WRITE_10_ONE_BLOCK, bytes(512), expect=None)
    assert caplog.records[-2].getMessage() == f"unit {host.lu.identity.serial}: 1000 commands have failed"
    assert len(caplog.records) == 18
