"""What a host asks to learn what the unit is: INQUIRY, VPD, modes, LUNs, ports, supported commands."""

import pytest

from iscsi.stats import Kind
from tests.support.scsi_host import (
    GOOD,
    IDENTITY,
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    LBA_OUT_OF_RANGE,
    PARAMETER_LIST_LENGTH_ERROR,
    TARGET,
    WRITE_PROTECTED,
    Host,
    attention,
    disk,
    illegal,
)

WRITE = "2a 00 00 00 00 00 00 00 01 00"


async def vpd(host: Host, page: int) -> bytes:
    return await host.data(f"12 01 {page:02x} 10 00 00")


async def test_standard_inquiry():
    data = await Host(disk()).data("12 00 00 00 ff 00")
    assert data[:8] == bytes.fromhex("00 00 06 12 5b 38 10 02")
    assert data[8:36] == b"TWINVOL VIRTUAL-DISK    0001"
    assert data[58:66] == bytes.fromhex("00a0 0460 04c0 0960")
    assert len(data) == data[4] + 5
    assert (await Host(disk(removable=True)).data("12 00 00 00 ff 00"))[1] == 0x80


async def test_inquiry_is_cut_at_the_allocation_length():
    host = Host(disk())
    whole = await host.data("12 00 00 00 ff 00")
    for length in range(97):
        assert await host.data(f"12 00 00 00 {length:02x} 00") == whole[:length]


async def test_inquiry_refuses_a_page_code_without_evpd_and_unknown_pages():
    host = Host(disk())
    await host.send("12 00 83 00 ff 00", expect=INVALID_FIELD_IN_CDB)
    await host.send("12 01 b5 00 ff 00", expect=INVALID_FIELD_IN_CDB)
    await host.send("12 02 00 00 ff 00", expect=INVALID_FIELD_IN_CDB)


async def test_every_listed_vpd_page_is_there_and_says_its_length():
    host = Host(disk())
    pages = await vpd(host, 0)
    assert pages == bytes.fromhex("00 00 0009 00 80 83 86 87 8f b0 b1 b2")
    for page in pages[4:]:
        data = await vpd(host, page)
        assert data[:2] == bytes((0, page))
        assert int.from_bytes(data[2:4], "big") == len(data) - 4


async def test_serial_number_page():
    assert (await vpd(Host(disk()), 0x80))[4:] == b"0123456789abcdef"


def designators(page: bytes) -> list[tuple[int, int, int, bytes]]:
    """(code set, association, type, value) of each designation descriptor."""
    found, at = [], 4
    while at < len(page):
        length = page[at + 3]
        value = page[at + 4 : at + 4 + length]
        found.append((page[at] & 0x0F, page[at + 1] >> 4 & 3, page[at + 1] & 0x0F, value))
        at += 4 + length
    assert at == len(page)
    return found


async def test_device_identification_names_the_unit_the_port_and_the_target():
    found = designators(await vpd(Host(disk()), 0x83))
    unit = [designator for designator in found if designator[1] == 0]
    assert unit == [(1, 0, 3, bytes.fromhex("3123456789abcdef"))]  # see _device_identification for why no other
    assert (1, 1, 4, bytes((0, 0, 0, 1))) in found
    assert (1, 1, 5, bytes((0, 0, 0, 1))) in found
    names = {association: value for _, association, kind, value in found if kind == 8}
    assert set(names) == {1, 2}
    assert names[1].rstrip(b"\0") == f"{TARGET},t,0x0001".encode()
    assert names[2].rstrip(b"\0") == TARGET.encode()
    assert all(len(value) % 4 == 0 and value.endswith(b"\0") for value in names.values())


async def test_block_limits():
    data = await vpd(Host(disk()), 0xB0)
    assert len(data) == 64
    assert (data[4], data[5]) == (1, 255)
    fields = [int.from_bytes(data[at : at + 4], "big") for at in range(8, 36, 4)]
    assert fields == [16384, 2048, 0, 1 << 20, 256, 8, 0x80000000]
    assert int.from_bytes(data[6:8], "big") == 8
    assert int.from_bytes(data[36:44], "big") == 1 << 15


async def test_provisioning_page_of_a_thin_and_of_a_thick_unit():
    assert await vpd(Host(disk()), 0xB2) == bytes.fromhex("00 b2 0004 00 e4 02 00")
    assert await vpd(Host(disk(thin=False)), 0xB2) == bytes.fromhex("00 b2 0004 00 00 00 00")


async def test_report_luns_lists_what_the_session_may_see():
    lu = disk()
    host = Host(lu)
    lu.detach(host.nexus)
    host.nexus = lu.attach(host.it_nexus, lambda: (0, 1, 300))
    data = await host.data("a0 00 00 00 00 00 00 00 01 00 00 00")
    assert data == bytes.fromhex("00000018 00000000 0000000000000000 0001000000000000 412c000000000000")
    assert await host.data("a0 00 01 00 00 00 00 00 01 00 00 00") == bytes(8)
    await host.send("a0 00 03 00 00 00 00 00 01 00 00 00", expect=INVALID_FIELD_IN_CDB)


async def test_report_target_port_groups():
    host = Host(disk())
    group = "00 8f 0001 00 00 00 01 00000001"
    assert await host.data("a3 0a 00 00 00 00 00 00 01 00 00 00") == bytes.fromhex("0000000c" + group)
    assert await host.data("a3 2a 00 00 00 00 00 00 01 00 00 00") == bytes.fromhex("00000010 10000000" + group)


# -- supported commands


def rsoc(option: int, opcode: int = 0, action: int = 0) -> str:
    return f"a3 0c {option:02x} {opcode:02x} {action:04x} 0000ffff 00 00"


async def test_all_supported_commands_are_reported_and_each_alone():
    host = Host(disk())
    data = await host.data(rsoc(0))
    assert int.from_bytes(data[:4], "big") == len(data) - 4 == 8 * len(list(host.lu.commands))
    for at in range(4, len(data), 8):
        opcode, action, length = data[at], int.from_bytes(data[at + 2 : at + 4], "big"), data[at + 7]
        if data[at + 5] & 1:
            one = await host.data(rsoc(2, opcode, action))
            assert one[5] & 0x1F == action
            await host.send(rsoc(1, opcode), expect=INVALID_FIELD_IN_CDB)
        else:
            one = await host.data(rsoc(1, opcode))
            await host.send(rsoc(2, opcode), expect=INVALID_FIELD_IN_CDB)
        assert one[:5] == bytes((0, 3, 0, length, opcode))
        assert len(one) == 4 + length
        assert await host.data(rsoc(3, opcode, action)) == one


async def test_unsupported_commands_are_reported_as_such():
    host = Host(disk())
    assert await host.data(rsoc(1, 0xC0)) == bytes.fromhex("00 01 0000")
    assert await host.data(rsoc(2, 0x9E, 0x1F)) == bytes.fromhex("00 01 0000")
    assert await host.data(rsoc(3, 0x28, 1)) == bytes.fromhex("00 01 0000")
    await host.send(rsoc(4), expect=INVALID_FIELD_IN_CDB)


async def test_timeouts_come_when_asked_for():
    data = await Host(disk()).data(rsoc(0x81, 0x28))
    assert data[1] == 0x83
    assert data[14:] == bytes.fromhex("000a") + bytes(10)


async def test_usage_data_says_dpo_and_fua():
    assert (await Host(disk()).data(rsoc(1, 0x2A)))[5] == 0x18


async def test_task_management_functions():
    assert await Host(disk()).data("a3 0d 00 00 00 00 00 00 00 ff 00 00") == bytes.fromhex("d8 00 00 00")


async def test_an_unknown_service_action_is_an_invalid_field():
    result = await Host(disk()).send("9e 1f 00 00 00 00 00 00 00 00 00 00 00 20 00 00", expect=INVALID_FIELD_IN_CDB)
    assert result.sense[15:18] == bytes.fromhex("cc 0001")


# -- modes


async def test_mode_sense_6_returns_all_pages_behind_a_block_descriptor():
    data = await Host(disk(4096)).data("1a 00 3f 00 ff 00")
    assert data[:12] == bytes.fromhex("43 00 10 08 00001000 00 000200")
    pages = data[12:]
    assert pages[:2] == bytes.fromhex("01 0a")
    assert pages[12:15] == bytes.fromhex("08 12 04")
    assert pages[32:36] == bytes.fromhex("0a 0a 00 10")
    assert pages[44:46] == bytes.fromhex("1c 0a")
    assert len(data) == data[0] + 1


async def test_mode_sense_10_with_long_lbas_and_without_descriptor():
    host = Host(disk(4096, read_only=True))
    data = await host.data("5a 10 08 00 00 00 00 00 ff 00")
    assert data[:24] == bytes.fromhex("002a 00 90 01 00 0010 0000000000001000 00000000 00000200")
    data = await host.data("5a 08 08 00 00 00 00 00 ff 00")
    assert data[:11] == bytes.fromhex("001a 00 90 00 00 0000 08 12 04")


async def test_changeable_default_and_saved_pages():
    host = Host(disk())
    assert (await host.data("1a 08 48 00 ff 00"))[4:7] == bytes.fromhex("08 12 04")
    assert (await host.data("1a 08 4a 00 ff 00"))[4:] == bytes.fromhex("0a 0a 04 00 08 00 00 00 00 00 00 00")
    assert (await host.data("1a 08 88 00 ff 00"))[6] == 4
    await host.send("1a 08 c8 00 ff 00", expect=illegal(0x3900))
    await host.send("1a 08 02 00 ff 00", expect=INVALID_FIELD_IN_CDB)
    await host.send("1a 08 08 01 ff 00", expect=INVALID_FIELD_IN_CDB)


def control_page(host_flags: int = 0, swp: int = 0) -> bytes:
    return bytes((0x0A, 0x0A, host_flags, 0x10, swp, 0, 0, 0, 0xFF, 0xFF, 0, 0))


async def test_software_write_protect():
    lu = disk()
    host, other = Host(lu, 1), Host(lu, 2)
    await host.send("15 10 00 00 10 00", bytes(4) + control_page(swp=8))
    assert not host.nexus.fast_writable
    await host.send(WRITE, bytes(512), WRITE_PROTECTED)
    assert (await host.data("1a 08 0a 00 ff 00"))[2:9] == bytes.fromhex("90 00 0a 0a 00 10 08")
    await other.send("00 00 00 00 00 00", expect=attention(0x2A01))
    await host.send("15 10 00 00 10 00", bytes(4) + control_page())
    await host.send(WRITE, bytes(512), GOOD)
    assert host.nexus.fast_writable


async def test_descriptor_sense():
    host = Host(disk(4096))
    await host.send("55 10 00 00 00 00 00 00 14 00", bytes(8) + control_page(4))
    out_of_range = "88 00 0000000000001000 00000001 00 00"
    result = await host.send(out_of_range, expect=LBA_OUT_OF_RANGE)
    assert result.sense == bytes.fromhex("72 05 21 00 000000 0c 000a8000 0000000000001000")
    host.lu.reset()
    host.nexus.take_unit_attention()
    assert (await host.send(out_of_range, expect=LBA_OUT_OF_RANGE)).sense[0] & 0x7F == 0x70


async def test_the_write_cache_can_be_switched_off_and_is_told():
    host = Host(disk())
    page = bytes.fromhex("08 12") + bytes(18)
    await host.send("15 10 00 00 18 00", bytes(4) + page)
    assert (await host.data("1a 08 08 00 ff 00"))[6] == 0
    assert not host.nexus.fast_writable
    assert host.lu.device.calls == [("flush", 0, 0)]
    await host.send(WRITE, bytes(512))
    assert host.lu.device.fua_writes == 1


@pytest.mark.parametrize(
    ("cdb", "data", "expect"),
    [
        ("15 00 00 00 10 00", bytes(4) + control_page(), INVALID_FIELD_IN_CDB),  # PF = 0
        ("15 11 00 00 10 00", bytes(4) + control_page(), INVALID_FIELD_IN_CDB),  # SP = 1
        ("15 10 00 00 0c 00", bytes(4) + control_page()[:8], PARAMETER_LIST_LENGTH_ERROR),
        ("15 10 00 00 03 00", bytes(3), PARAMETER_LIST_LENGTH_ERROR),
        ("15 10 00 00 10 00", bytes(4) + control_page()[:5], PARAMETER_LIST_LENGTH_ERROR),
        ("15 10 00 00 10 00", bytes(4) + control_page(2), INVALID_FIELD_IN_PARAMETER_LIST),
        ("15 10 00 00 06 00", bytes(4) + b"\x02\x0a", INVALID_FIELD_IN_PARAMETER_LIST),
        ("15 10 00 00 0c 00", bytes((0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 2, 0)), INVALID_FIELD_IN_PARAMETER_LIST),
        ("15 10 00 00 0c 00", bytes((0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 4, 0)), INVALID_FIELD_IN_PARAMETER_LIST),
        ("15 10 00 00 0c 00", bytes((0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 2, 0)), GOOD),
        ("15 10 00 00 00 00", b"", GOOD),
    ],
)
async def test_mode_select_checks_its_list(cdb, data, expect):
    host = Host(disk())
    await host.send(cdb, data, expect)
    assert host.nexus.fast_writable


# -- start, stop, load, eject


async def test_stop_flushes_and_a_fixed_disk_stays_ready():
    host = Host(disk())
    await host.send("1b 00 00 00 00 00")
    assert host.lu.device.calls == [("flush", 0, 0)]
    await host.send("00 00 00 00 00 00")
    await host.send("1b 00 00 00 02 00", expect=INVALID_FIELD_IN_CDB)
    await host.send("1b 00 00 00 30 00")


async def test_removal_is_prevented_by_any_nexus_until_it_allows_or_ends():
    lu = disk(removable=True)
    one, two = Host(lu, 1), Host(lu, 2)
    await one.send("1e 00 00 00 01 00")
    for action in ("02", "03"):
        await two.send(f"1b 00 00 00 {action} 00", expect=illegal(0x5302))
    lu.detach(one.nexus)
    await two.send("1b 00 00 00 02 00")


async def test_identity_must_be_locally_assigned():
    with pytest.raises(AssertionError):
        type(IDENTITY)(serial="1", naa=0x5123456789ABCDEF)


# -- LOG SENSE


async def test_the_list_of_log_pages():
    host = Host(disk())
    assert await host.data("4d 00 40 00 00 0000 0100 00") == bytes.fromhex("00 00 0002 00 19")
    assert await host.data("4d 00 40 ff 00 0000 0100 00") == bytes.fromhex("40 ff 0006 0000 00ff 1900")
    assert await host.data("4d 00 40 00 00 0000 0003 00") == bytes.fromhex("00 00 00")


async def test_general_statistics_tell_what_all_initiators_have_done():
    lu = disk()
    host, gone = Host(lu, 1), Host(lu, 2)
    host.nexus.stats.count(Kind.READ, 8 * 512, 3_000_000)
    gone.nexus.stats.count(Kind.READ, 2 * 512, 3_000_000)
    gone.nexus.stats.count(Kind.WRITE, 5 * 512, 1)
    lu.detach(gone.nexus)
    page = await host.data("4d 00 59 00 00 0000 0100 00")
    assert page[:8] == bytes.fromhex("19 00 005c 0001 03 40")
    numbers = [int.from_bytes(page[at : at + 8], "big") for at in range(8, 72, 8)]
    assert numbers[:4] == [2, 1, 5, 10]
    assert 6000 * 7 / 8 < numbers[4] < 6000 * 9 / 8  # microseconds
    assert numbers[5:] == [0, 0, 0]
    assert page[72:] == bytes.fromhex("0002 03 08 0000000000000000  0003 03 08 00000006 00000001")


@pytest.mark.parametrize("cdb", ["4d 00 4d 00", "4d 00 59 01", "4d 00 19 00", "4d 00 d9 00", "4d 01 40 00"])
async def test_other_log_pages_thresholds_and_saving_are_refused(cdb):
    await Host(disk()).send(f"{cdb} 00 0000 0100 00", expect=INVALID_FIELD_IN_CDB)


async def test_extended_inquiry_and_mode_page_policy():
    host = Host(disk())
    assert await vpd(host, 0x86) == bytes.fromhex("00 86 003c 00 07 01") + bytes(57)
    assert await vpd(host, 0x87) == bytes.fromhex("00 87 0004 3f ff 00 00")


@pytest.mark.parametrize("opcode", ["04", "3e", "3f", "9e 11", "9f 11", "07", "3b", "3c", "4c", "7f"])
async def test_commands_that_are_not_supported(opcode):
    """FORMAT UNIT, READ LONG and WRITE LONG 10 and 16, REASSIGN BLOCKS, WRITE and READ BUFFER, LOG SELECT, 32 bytes."""
    await Host(disk()).send((opcode.replace(" ", "") + "00" * 16)[:32], expect=illegal(0x2000, 0x2400))
