"""Logical block provisioning thresholds in literal bytes (SBC-4 sections 4.7.3.7, 6.4.5, 6.5.9)."""

import dataclasses

import pytest

from engine.units import GIB, MIB
from tests.support.scsi_host import GOOD, INVALID_FIELD_IN_CDB, Host, attention, disk, illegal

READ = "28 00 00000000 00 0001 00"
MODE_PAGE = "5c 02 0014 00" + "00" * 11 + "88 03 0000 00000014"


@dataclasses.dataclass
class Pool:
    left_bytes: int = 10 * GIB
    left_percent: int = 37
    threshold_percent: int = 20


async def test_the_page_of_the_threshold_and_its_set_size():
    host = Host(disk(resources=Pool()))
    assert (await host.data("1a 08 1c 02 ff 00"))[4:] == bytes.fromhex(MODE_PAGE)
    assert (await host.data("5a 08 1c 02 00 00 00 00 ff 00"))[8:] == bytes.fromhex(MODE_PAGE)
    assert (await host.data("1a 08 1c ff ff 00"))[4:] == bytes.fromhex("1c 0a" + "00" * 10 + MODE_PAGE)
    assert (await host.data("1a 08 5c 02 ff 00"))[4:] == bytes.fromhex("5c 02 0014" + "00" * 20), "nothing to change"
    assert (await host.data("1a 08 3f 00 ff 00"))[4:].count(bytes.fromhex("5c02")) == 0, "a subpage is not of all pages"
    assert (await host.data("1a 08 3f ff ff 00")).endswith(bytes.fromhex(MODE_PAGE))
    assert await host.data("12 01 b2 00 ff 00") == bytes.fromhex("00 b2 0004 0b e4 02 05"), "sets of 2^11 blocks"
    large = Host(disk(resources=Pool(), logical_block=4096))
    assert await large.data("12 01 b2 00 ff 00") == bytes.fromhex("00 b2 0004 08 e4 02 05")


async def test_the_log_page_says_what_is_left():
    pool = Pool()
    host = Host(disk(resources=pool))
    assert await host.data("4d 00 40 00 00 0000 0100 00") == bytes.fromhex("00 00 0003 00 0c 19")
    page = await host.data("4d 00 4c 00 00 0000 0100 00")
    assert page == bytes.fromhex("0c 00 0018 0001 03 08 00002800 02 000000  0003 03 08 0025 0000 02 000000")
    pool.left_bytes, pool.left_percent = -5 * MIB, 0
    page = await host.data("4d 00 4c 00 00 0000 0100 00")
    assert page == bytes.fromhex("0c 00 0018 0001 03 08 00000000 02 000000  0003 03 08 0000 0000 02 000000")


@pytest.mark.parametrize("options", [{}, {"resources": Pool(), "thin": False}])
async def test_a_unit_without_a_pool_has_none_of_it(options):
    lu = disk(**options)
    host = Host(lu)
    await host.send("1a 08 1c 02 ff 00", expect=INVALID_FIELD_IN_CDB)
    await host.send("4d 00 4c 00 00 0000 0100 00", expect=INVALID_FIELD_IN_CDB)
    assert (await host.data("1a 08 01 00 ff 00"))[4:] == bytes.fromhex("01 0a" + "00" * 10)
    lu.soft_threshold_reached()
    lu.thresholds_changed()
    await host.send(READ, expect=GOOD)


async def test_every_nexus_is_told_once_and_is_fast_again_afterwards():
    lu = disk(resources=Pool())
    hosts = [Host(lu, 1), Host(lu, 2)]
    lu.soft_threshold_reached()
    lu.soft_threshold_reached()
    for host in hosts:
        assert host.nexus.fast_device is None, "the plain path reports it"
        result = await host.send(READ, expect=attention(0x3807))
        assert result.sense == bytes.fromhex("f0 00 06 00000010 0a 00000000 38 07 00 000000"), (
            "byte 16 of the mode page"
        )
        assert host.nexus.fast_device is lu.device
        await host.send(READ, expect=GOOD)


async def test_a_host_may_not_want_to_hear_of_it():
    lu = disk(resources=Pool())
    host, other = Host(lu, 1), Host(lu, 2)
    page = (await host.data("1a 08 01 00 ff 00"))[4:]
    assert page == bytes.fromhex("01 0a 00 00 00 00 00 80 00 00 00 00"), "LBPERE"
    assert (await host.data("1a 08 41 00 ff 00"))[4:] == page, "which may be changed"
    await host.send("15 10 00 00 10 00", bytes(4) + bytes.fromhex("01 0a") + bytes(10))
    await other.send(READ, expect=attention(0x2A01))
    lu.soft_threshold_reached()
    await host.send(READ, expect=GOOD)
    await other.send(READ, expect=GOOD)


async def test_a_page_that_is_sent_back_as_it_was_is_taken_and_another_threshold_refused():
    host = Host(disk(resources=Pool()))
    page = bytes.fromhex(MODE_PAGE)
    await host.send("15 10 00 00 1c 00", bytes(4) + page, expect=GOOD)
    other = page[:-1] + b"\x15"
    result = await host.send("15 10 00 00 1c 00", bytes(4) + other, expect=illegal(0x2600))
    assert result.sense[15:18] == bytes.fromhex("88 001b")
    await host.send("15 10 00 00 07 00", bytes(4) + page[:3], expect=illegal(0x1A00))
    await host.send("15 10 00 00 1b 00", bytes(4) + page[:-1], expect=illegal(0x1A00))


async def test_another_threshold_is_told_as_changed_mode_parameters():
    pool = Pool()
    lu = disk(resources=pool)
    host = Host(lu)
    pool.threshold_percent = 10
    lu.thresholds_changed()
    await host.send(READ, expect=attention(0x2A01))
    assert (await host.data("1a 08 1c 02 ff 00"))[-4:] == bytes.fromhex("0000000a")
