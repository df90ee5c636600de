"""Commands that read and write the medium: literal CDBs, boundaries, atomicity, short and long data."""

import asyncio

import pytest

from iscsi.scsi.command import ScsiCommand
from tests.support.memory_device import MemoryDevice
from tests.support.scsi_host import (
    CONDITION_MET,
    GOOD,
    INVALID_FIELD_IN_CDB,
    INVALID_OPCODE,
    LBA_OUT_OF_RANGE,
    MISCOMPARE,
    NO_MEDIUM,
    WRONG_DATA_LENGTH,
    Host,
    disk,
)

BLOCKS = 4096
A, B = b"A" * 512, b"B" * 512


def rw(kind: str, lba: int, blocks: int, flags: int = 0) -> str:
    """A READ or WRITE CDB, ``kind`` being its operation code in hex."""
    opcode = int(kind, 16)
    group = opcode >> 5
    if group == 0:
        return f"{kind} {lba:06x} {blocks & 0xFF:02x} 00"
    if group == 4:
        return f"{kind} {flags:02x} {lba:016x} {blocks:08x} 00 00"
    if group == 5:
        return f"{kind} {flags:02x} {lba:08x} {blocks:08x} 00 00"
    return f"{kind} {flags:02x} {lba:08x} 00 {blocks:04x} 00"


READS = ("08", "28", "a8", "88")
WRITES = ("0a", "2a", "aa", "8a")


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(("read", "write"), list(zip(READS, WRITES, strict=True)))
async def test_what_was_written_is_read(read, write, fast):
    device = MemoryDevice(BLOCKS * 512, fast=fast)
    host = Host(disk(device=device))
    await host.send(rw(write, 5, 2), A + B)
    assert await host.data(rw(read, 4, 4)) == bytes(512) + A + B + bytes(512)
    assert device.data[5 * 512 : 7 * 512] == A + B


async def test_read_6_of_0_blocks_is_256_blocks():
    assert len(await Host(disk()).data("08 00 00 00 00 00")) == 256 * 512


@pytest.mark.parametrize(
    "kind", [*READS[1:], *WRITES[1:], "2f", "af", "8f", "2e", "ae", "8e", "8b", "34", "90", "35", "91"]
)
async def test_lbas_beyond_the_end_are_out_of_range_also_with_0_blocks(kind):
    host = Host(disk(BLOCKS))
    far = (1 << 63, (1 << 64) - 1) if int(kind, 16) >> 5 == 4 else (1 << 31, (1 << 32) - 1)
    for lba, blocks in ((BLOCKS - 1, 2), (BLOCKS, 1), (BLOCKS + 1, 0), *((lba, 0) for lba in far), (far[1], 2)):
        await host.send(rw(kind, lba, blocks), bytes(blocks * 512), LBA_OUT_OF_RANGE)


@pytest.mark.parametrize("kind", [*READS, *WRITES])
async def test_protection_information_is_refused(kind):
    if int(kind, 16) >> 5:
        await Host(disk()).send(rw(kind, 0, 1, 0x20), bytes(512), INVALID_FIELD_IN_CDB)


@pytest.mark.parametrize("kind", ["a8", "88"])
async def test_a_transfer_longer_than_the_maximum_is_an_invalid_field(kind):
    host = Host(disk(32768))
    assert len(await host.data(rw(kind, 0, 16384))) == 8 << 20
    result = await host.send(rw(kind, 0, 16385), expect=INVALID_FIELD_IN_CDB)
    assert result.sense[15:18] == bytes((0xC0, 0, 10 if kind == "88" else 6))


async def test_a_plain_write_takes_whole_blocks_of_what_was_announced():
    host = Host(disk())
    await host.send(rw("2a", 0, 2), A + A)
    result = await host.send(rw("2a", 0, 2), B + b"short")
    assert (await host.data(rw("28", 0, 2)), result.data_out_wanted) == (B + A, 1024)
    await host.send(rw("2a", 0, 1), A + B)
    assert await host.data(rw("28", 0, 2)) == A + A


async def test_fua_goes_to_the_device():
    device = MemoryDevice(BLOCKS * 512)
    host = Host(disk(device=device))
    await host.send(rw("2a", 0, 1, 0x18), A)
    assert device.fua_writes == 1
    await host.data(rw("28", 0, 1, 0x08))
    assert ("flush", 0, 0) in device.calls


@pytest.mark.parametrize("kind", ["2f", "af", "8f"])
async def test_verify_compares_only_with_bytchk(kind):
    host = Host(disk())
    await host.send(rw("2a", 3, 2), A + B)
    await host.send(rw(kind, 3, 2, 0x02), A + B)
    await host.send(rw(kind, 3, 2, 0x06), A, MISCOMPARE)
    await host.send(rw(kind, 3, 1, 0x06), A)
    await host.send(rw(kind, 3, 2), B + B)
    result = await host.send(rw(kind, 3, 2, 0x02), A + b"B" * 500 + b"C" * 12, MISCOMPARE)
    assert result.sense[3:7] == (1012).to_bytes(4, "big")
    await host.send(rw(kind, 3, 2, 0x04), A + B, INVALID_FIELD_IN_CDB)
    await host.send(rw(kind, 3, 2, 0x02), A, WRONG_DATA_LENGTH)


@pytest.mark.parametrize("kind", ["2e", "ae", "8e"])
async def test_write_and_verify_is_durable_and_read_back(kind):
    device = MemoryDevice(BLOCKS * 512)
    host = Host(disk(device=device))
    await host.send(rw(kind, 1, 2, 0x02), A + B)
    assert device.fua_writes == 1
    assert [call[0] for call in device.calls] == ["write", "read"]
    assert await host.data(rw("28", 1, 2)) == A + B


def compare_and_write(lba: int, blocks: int) -> str:
    return f"89 00 {lba:016x} 000000 {blocks:02x} 00 00"


async def test_compare_and_write_writes_only_what_compares():
    host = Host(disk())
    await host.send(rw("2a", 0, 2), A + A)
    await host.send(compare_and_write(0, 2), A + A + B + B)
    result = await host.send(compare_and_write(0, 2), B + b"B" * 511 + b"x" + A + A, MISCOMPARE)
    assert result.sense[3:7] == (1023).to_bytes(4, "big")
    assert await host.data(rw("28", 0, 2)) == B + B


async def test_compare_and_write_takes_exactly_its_data():
    host = Host(disk())
    await host.send(compare_and_write(0, 0))
    await host.send(compare_and_write(0, 0), A + B, INVALID_FIELD_IN_CDB)
    await host.send(compare_and_write(0, 1), bytes(2048), WRONG_DATA_LENGTH)
    await host.send(compare_and_write(0, 2), bytes(1024), WRONG_DATA_LENGTH)
    await host.send(compare_and_write(0, 1), bytes(1024), WRONG_DATA_LENGTH, announced=2048)
    await host.send(compare_and_write(BLOCKS, 1), bytes(1024), LBA_OUT_OF_RANGE)


async def test_concurrent_compare_and_writes_of_a_counter_lose_no_step():
    lu = disk()
    hosts = [Host(lu, number) for number in range(1, 5)]
    start, done = asyncio.Event(), []

    async def step(host: Host) -> None:
        await start.wait()
        while True:
            old = await host.data(rw("28", 7, 1))
            new = (int.from_bytes(old[:8], "big") + 1).to_bytes(8, "big") + bytes(504)
            if not (await host.send(compare_and_write(7, 1), old + new, expect=None)).status:
                done.append(host)
                return

    async with asyncio.TaskGroup() as group:
        for host in hosts * 5:
            group.create_task(step(host))
        start.set()
    assert int.from_bytes((await hosts[0].data(rw("28", 7, 1)))[:8], "big") == len(done) == 20


async def test_a_read_modify_write_command_shuts_the_fast_path_of_all_nexuses_and_waits_for_overlapping_writes():
    device = MemoryDevice(BLOCKS * 512)
    lu = disk(device=device)
    one, two = Host(lu, 1), Host(lu, 2)
    device.gate = asyncio.Event()
    write = asyncio.create_task(one.send(rw("2a", 0, 1), A))
    await asyncio.sleep(0)
    atomic = asyncio.create_task(two.send(compare_and_write(0, 1), A + B))
    elsewhere = asyncio.create_task(two.send(rw("2a", 100, 1), B))
    await asyncio.sleep(0)
    assert [call for call in device.calls if call[0] == "read"] == []
    assert not one.nexus.fast_writable
    assert one.nexus.fast_device is device
    behind = asyncio.create_task(one.send(rw("2a", 0, 1), A))
    device.gate.set()
    await asyncio.gather(write, atomic, elsewhere, behind)
    assert one.nexus.fast_writable
    assert [call for call in device.calls if call[1] == 0] == [
        ("write", 0, 512),
        ("read", 0, 512),
        ("write", 0, 512),
        ("write", 0, 512),
    ]
    assert await one.data(rw("28", 0, 1)) == A


async def test_a_cancelled_command_leaves_the_range_free():
    device = MemoryDevice(BLOCKS * 512)
    lu = disk(device=device)
    host = Host(lu)
    device.gate = asyncio.Event()
    first = asyncio.create_task(host.send(rw("2a", 0, 1), A))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(host.send(compare_and_write(0, 1), A + B))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    device.gate.set()
    await first
    assert host.nexus.fast_writable
    await host.send(compare_and_write(0, 1), A + B)


async def test_orwrite_sets_bits():
    host = Host(disk())
    await host.send(rw("2a", 0, 1), bytes((0x0F,)) * 512)
    await host.send(rw("8b", 0, 1), bytes((0x30,)) * 512)
    assert await host.data(rw("28", 0, 1)) == bytes((0x3F,)) * 512
    await host.send(rw("8b", 0, 1), bytes(1024), WRONG_DATA_LENGTH)


async def test_prefetch_fits():
    await Host(disk()).send(rw("34", 0, 8), expect=CONDITION_MET)
    await Host(disk()).send(rw("90", 0, 8), expect=CONDITION_MET)


async def test_synchronize_cache_flushes():
    device = MemoryDevice(BLOCKS * 512)
    host = Host(disk(device=device))
    await host.send("35 00 00 00 00 00 00 00 00 00")
    await host.send(rw("91", 0, 0, 0x02))
    assert device.calls == [("flush", 0, 0)] * 2


async def test_read_capacity_of_a_thin_4_kib_disk():
    host = Host(disk(BLOCKS))
    assert await host.data("25 00 00 00 00 00 00 00 00 00") == bytes.fromhex("00000fff 00000200")
    data = await host.data("9e 10 00 00 00 00 00 00 00 00 00 00 00 20 00 00")
    assert data == bytes.fromhex("0000000000000fff 00000200 00 03 c000") + bytes(16)
    assert await host.data("9e 10 00 00 00 00 00 00 00 00 00 00 00 05 00 00") == data[:5]


async def test_read_capacity_of_a_plain_512_byte_disk():
    host = Host(disk(BLOCKS, physical_block=512, thin=False))
    data = await host.data("9e 10 00 00 00 00 00 00 00 00 00 00 00 20 00 00")
    assert data[12:16] == bytes(4)


async def test_defect_lists_are_empty():
    host = Host(disk())
    assert await host.data("37 00 1d 00 00 00 00 00 ff 00") == bytes.fromhex("00 1d 0000")
    assert await host.data("b7 1d 00 00 00 00 00 00 00 ff 00 00") == bytes.fromhex("00 1d 0000 00000000")


async def test_an_ejected_medium_answers_nothing_but_questions_about_the_unit():
    lu = disk(removable=True)
    host, other = Host(lu, 1), Host(lu, 2)
    await host.send("1b 00 00 00 02 00")
    assert host.nexus.fast_device is None
    for cdb in ("00 00 00 00 00 00", rw("28", 0, 1), rw("2f", 0, 1), rw("35", 0, 0), "25" + " 00" * 9, rw("34", 0, 1)):
        await host.send(cdb, expect=NO_MEDIUM)
    await host.send("12 00 00 00 24 00")
    await host.send("1b 00 00 00 03 00")
    await host.send("00 00 00 00 00 00", expect=GOOD)
    assert other.nexus.unit_attentions
    assert host.nexus.fast_device is lu.device


async def test_data_buffers_are_not_kept_after_the_command():
    host = Host(disk())
    buffer = bytearray(A)
    await host.lu.execute(
        host.nexus, ScsiCommand(bytes.fromhex(rw("2a", 0, 1).replace(" ", "")), memoryview(buffer), 0)
    )
    buffer[:] = B
    assert await host.data(rw("28", 0, 1)) == A


# -- WRITE ATOMIC(16)


async def test_write_atomic_is_one_atomic_write_of_the_device():
    device = MemoryDevice(BLOCKS * 512)
    host = Host(disk(device=device))
    await host.send("9c 00 0000000000000003 0000 0002 00 00", A + B)
    assert device.data[3 * 512 : 5 * 512] == A + B
    assert device.calls == [("write_atomic", 3 * 512, 1024)]
    assert device.fua_writes == 0
    await host.send("9c 18 0000000000000003 0000 0001 3f 00", B)
    assert device.fua_writes == 1
    assert device.data[3 * 512 : 5 * 512] == B + B


async def test_write_atomic_is_durable_at_once_without_a_write_cache():
    device = MemoryDevice(BLOCKS * 512)
    await Host(disk(device=device, write_cache=False)).send("9c 00 0000000000000000 0000 0001 00 00", A)
    assert device.fua_writes == 1


async def test_write_atomic_takes_what_block_limits_say_and_no_more():
    device = MemoryDevice(BLOCKS * 512)
    host = Host(disk(device=device))
    limits = await host.data("12 01 b0 00 40 00")
    assert limits[44:64] == bytes.fromhex("00000200 00000000 00000000 00000000 00000000")  # 512 blocks, no alignment
    await host.send("9c 00 0000000000000001 0000 0200 00 00", A * 512)
    await host.send("9c 00 0000000000000001 0000 0201 00 00", A * 513, INVALID_FIELD_IN_CDB)
    await host.send("9c 00 0000000000000000 0008 0008 00 00", A * 8, INVALID_FIELD_IN_CDB)  # an atomic boundary
    assert len(device.calls) == 1


@pytest.mark.parametrize(("lba", "blocks"), [(BLOCKS - 1, 2), (BLOCKS, 1), (BLOCKS + 1, 0), ((1 << 64) - 1, 1)])
async def test_write_atomic_beyond_the_end(lba, blocks):
    await Host(disk(BLOCKS)).send(f"9c 00 {lba:016x} 0000 {blocks:04x} 00 00", A * blocks, LBA_OUT_OF_RANGE)


async def test_write_atomic_of_nothing_and_of_less_than_announced():
    device = MemoryDevice(BLOCKS * 512)
    host = Host(disk(device=device))
    await host.send("9c 00 0000000000000000 0000 0000 00 00")
    await host.send("9c 00 0000000000000000 0000 0002 00 00", A, WRONG_DATA_LENGTH)
    for protect in range(1, 8):
        await host.send(f"9c {protect << 5:02x} 0000000000000000 0000 0001 00 00", A, INVALID_FIELD_IN_CDB)
    assert device.calls == []


async def test_a_device_without_atomic_writes_does_not_offer_them():
    device = MemoryDevice(BLOCKS * 512)
    device.atomic_write_bytes = 0
    host = Host(disk(device=device))
    await host.send("9c 00 0000000000000000 0000 0001 00 00", A, INVALID_OPCODE)
    assert (await host.data("12 01 b0 00 40 00"))[44:48] == bytes(4)
    assert await host.data("a3 0c 01 9c 0000 00000100 00 00") == bytes.fromhex("00 01 0000")
