"""Asymmetric logical unit access: what each state serves, how states change, and who is told."""

import asyncio

import pytest

from engine.access_state import SETTABLE, AccessState
from engine.errors import InvalidState, MediumError
from iscsi.scsi.alua import TargetPortGroup, change_states
from iscsi.scsi.command import ScsiCommand, Status
from iscsi.scsi.dispatch import Availability
from iscsi.scsi.sense import SenseKey
from tests.support.memory_device import MemoryDevice
from tests.support.scsi_host import (
    GOOD,
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    PARAMETER_LIST_LENGTH_ERROR,
    Expect,
    Host,
    attention,
    disk,
)

READ = "28 00 00 00 00 00 00 00 01 00"
WRITE = "2a 00 00 00 00 00 00 00 01 00"
TEST_UNIT_READY = "00 00 00 00 00 00"
REPORT = "a3 0a 00 00 00 00 00 00 01 00 00 00"
REPORT_EXTENDED = "a3 2a 00 00 00 00 00 00 01 00 00 00"
OPTIMIZED, NON_OPTIMIZED, STANDBY, UNAVAILABLE = SETTABLE
TRANSITIONING = AccessState.TRANSITIONING


def not_ready(code: int) -> Expect:
    return Expect(Status.CHECK_CONDITION, SenseKey.NOT_READY, (code,))


CODES = {STANDBY: 0x040B, UNAVAILABLE: 0x040C, TRANSITIONING: 0x040A}


def two_ways(device: MemoryDevice | None = None) -> tuple[Host, Host]:
    """One unit, reached through two targets: group 5 with one port, group 9 with two."""
    lu = disk(device=device)
    lu.access.assign("iqn.2026-11.example:a", TargetPortGroup(5, lambda: {1: 0x41}))
    lu.access.assign("iqn.2026-11.example:b", TargetPortGroup(9, lambda: {1: 0x81, 7: 0x82}))
    return Host(lu, 1, target="iqn.2026-11.example:a"), Host(lu, 2, target="iqn.2026-11.example:b", tag=7)


async def set_groups(host: Host, groups: str, expect: Expect = GOOD, *, length: int | None = None) -> None:
    data = bytes.fromhex("00000000" + groups)
    await host.send(f"a4 0a 00 00 00 00 {len(data) if length is None else length:08x} 00 00", data, expect)


def fast(host: Host) -> tuple[bool, bool]:
    return host.nexus.fast_device is not None, host.nexus.fast_writable


async def test_the_groups_of_a_unit_in_literal_bytes():
    a, b = two_ways()
    groups = "00 8f 0005 00 00 00 01 0000 0041" + "00 8f 0009 00 00 00 02 0000 0081 0000 0082"
    for host in (a, b):
        assert await host.data(REPORT) == bytes.fromhex("0000001c" + groups)
        assert await host.data(REPORT_EXTENDED) == bytes.fromhex("00000020" + "10000000" + groups)
    assert await a.data("a3 0a 00 00 00 00 00 00 00 06 00 00") == bytes.fromhex("0000001c008f")
    await a.send("a3 4a 00 00 00 00 00 00 01 00 00 00", expect=INVALID_FIELD_IN_CDB)
    await change_states(a.lu, {5: NON_OPTIMIZED, 9: STANDBY})
    for host in (a, b):
        await host.send(REPORT, expect=attention(0x2A06))
    changed = "01 8f 0005 00 02 00 01 0000 0041" + "02 8f 0009 00 02 00 02 0000 0081 0000 0082"
    assert await b.data(REPORT) == bytes.fromhex("0000001c" + changed)


async def test_each_path_names_its_port_and_group():
    a, b = two_ways()
    for host, port, group in ((a, "00000041", "00000005"), (b, "00000082", "00000009")):
        page = await host.data("12 01 83 04 00 00")
        assert bytes.fromhex("51 94 00 04" + port + "51 95 00 04" + group) in page
    assert (await a.data("12 00 00 00 60 00"))[5] & 0x30 == 0x30  # TPGS = 11b


@pytest.mark.parametrize("state", [OPTIMIZED, NON_OPTIMIZED, STANDBY, UNAVAILABLE, TRANSITIONING])
async def test_what_is_served_in_each_state(state):
    """Every command of the table, with zeros for parameters: NOT READY exactly where its row says so."""
    a, b = two_ways()
    b.nexus.port_group.state = state
    b.lu.refresh_all()
    assert fast(a) == (True, True)
    assert fast(b) == (state.is_active,) * 2
    served = set()
    for spec in b.lu.commands:
        cdb = bytearray(16)
        cdb[0:2] = spec.opcode, spec.service_action or 0
        result = await b.lu.execute(b.nexus, ScsiCommand(bytes(cdb), memoryview(bytes(4096)), 4096))
        if state.is_active or not result.sense or result.sense[2] != SenseKey.NOT_READY:
            served.add(spec.name)
        else:
            not_ready(CODES[state]).check(result)
    always = {spec.name for spec in b.lu.commands if spec.available is Availability.ALWAYS}
    assert always == {
        "INQUIRY",
        "REPORT LUNS",
        "REPORT TARGET PORT GROUPS",
        "REQUEST SENSE",
        "SET TARGET PORT GROUPS",
    }
    if state.is_active:
        assert len(served) == len(list(b.lu.commands))
    elif state is STANDBY:
        assert {"MODE SENSE(6)", "READ CAPACITY(16)", "PERSISTENT RESERVE OUT: REGISTER"} < served
        assert not served & {"TEST UNIT READY", "READ(10)", "WRITE(16)", "UNMAP", "START STOP UNIT", "RESERVE(6)"}
    else:
        assert served == always


async def test_request_sense_tells_why_a_path_is_not_ready():
    _, b = two_ways()
    await change_states(b.lu, {9: UNAVAILABLE})
    b.nexus.take_unit_attention()
    assert (await b.data("03 00 00 00 12 00"))[2:14:10] == bytes((SenseKey.NOT_READY, 0x04))


async def test_set_target_port_groups_in_literal_bytes():
    a, b = two_ways()
    await set_groups(a, "02 00 0005" + "01 00 0009")
    await a.send(REPORT)  # who asked is not told
    await b.send(TEST_UNIT_READY, expect=attention(0x2A06))
    assert [group.state for group in a.lu.access] == [STANDBY, NON_OPTIMIZED]
    assert (await b.data(REPORT))[4 + 5] == 1  # status code: by SET TARGET PORT GROUPS
    assert (fast(a), fast(b)) == ((False, False), (True, True))
    await a.send(READ, expect=not_ready(0x040B))
    await set_groups(a, "00 00 0005")
    await b.send(TEST_UNIT_READY, expect=attention(0x2A06))
    await set_groups(a, "00 00 0005")  # no change, nothing to tell
    await b.send(TEST_UNIT_READY)
    await a.send(READ)


@pytest.mark.parametrize(
    ("groups", "length", "expect"),
    [
        ("", 0, GOOD),
        ("", 4, PARAMETER_LIST_LENGTH_ERROR),
        ("00 00 0005", 7, PARAMETER_LIST_LENGTH_ERROR),
        ("00 00 0005", 12, PARAMETER_LIST_LENGTH_ERROR),
        ("00 00 0005", 0x10000, PARAMETER_LIST_LENGTH_ERROR),
        ("00 00 0006", None, INVALID_FIELD_IN_PARAMETER_LIST),
        ("00 00 0005 00 00 0000", None, INVALID_FIELD_IN_PARAMETER_LIST),
        ("0f 00 0005", None, INVALID_FIELD_IN_PARAMETER_LIST),
        ("0e 00 0005", None, INVALID_FIELD_IN_PARAMETER_LIST),
        ("04 00 0005", None, INVALID_FIELD_IN_PARAMETER_LIST),
        ("12 00 0005", None, INVALID_FIELD_IN_PARAMETER_LIST),
    ],
)
async def test_a_wrong_parameter_list_changes_nothing(groups, length, expect):
    a, b = two_ways()
    await set_groups(a, groups, expect, length=length)
    assert [group.state for group in a.lu.access] == [OPTIMIZED, OPTIMIZED]
    await b.send(TEST_UNIT_READY)


async def test_the_keeper_decides():
    a, b = two_ways()
    answer: Exception | None = InvalidState("replica", "standby", "a failover")
    asked = []

    async def keeper(states, apply):
        asked.append(states)
        if answer is not None:
            raise answer
        await apply()

    a.lu.access.keeper = keeper
    await set_groups(a, "02 00 0009", INVALID_FIELD_IN_PARAMETER_LIST)
    answer = MediumError("no catalogue")
    await set_groups(a, "02 00 0009", Expect(Status.CHECK_CONDITION, SenseKey.HARDWARE_ERROR, (0x670A,)))
    assert fast(b) == (True, True)
    answer = None
    await set_groups(a, "02 00 0009")
    assert asked == [{9: STANDBY}] * 3
    assert fast(b) == (False, False)


async def test_leaving_an_active_state_waits_for_writes_and_serves_nothing_meanwhile():
    device = MemoryDevice(1 << 20)
    a, _ = two_ways(device)
    device.gate = asyncio.Event()
    write = asyncio.create_task(a.send(WRITE, bytes(512)))
    await asyncio.sleep(0)
    change = asyncio.create_task(change_states(a.lu, {5: STANDBY, 9: OPTIMIZED}))
    await asyncio.sleep(0)
    assert a.nexus.port_group.state is TRANSITIONING
    assert fast(a) == (False, False)
    await a.send(READ, expect=not_ready(0x040A))
    assert (await a.data(REPORT))[4] == TRANSITIONING
    assert not change.done()
    device.gate.set()
    await change
    assert write.done()
    await a.send(READ, expect=attention(0x2A06))
    await a.send(READ, expect=not_ready(0x040B))


async def test_leaving_an_active_state_waits_for_every_extent_of_an_unmap():
    device = MemoryDevice(1 << 20)
    a, _ = two_ways(device)
    gates = [asyncio.Event(), asyncio.Event()]
    done = []

    async def discard(offset: int, length: int) -> None:
        await gates[len(done)].wait()
        done.append((offset, length))

    device.discard = discard
    extents = b"".join(lba.to_bytes(8, "big") + (1).to_bytes(4, "big") + bytes(4) for lba in (8, 64))
    data = (len(extents) + 6).to_bytes(2, "big") + len(extents).to_bytes(2, "big") + bytes(4) + extents
    unmap = asyncio.create_task(a.send(f"42 00 00 00 00 00 00 00 {len(data):02x} 00", data))
    await asyncio.sleep(0)
    change = asyncio.create_task(change_states(a.lu, {5: STANDBY, 9: OPTIMIZED}))
    gates[0].set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not change.done()
    gates[1].set()
    await change
    assert done == [(8 * 512, 512), (64 * 512, 512)]
    await unmap


async def test_becoming_active_waits_for_nothing():
    device = MemoryDevice(1 << 20)
    a, b = two_ways(device)
    await change_states(a.lu, {9: STANDBY})
    device.gate = asyncio.Event()
    write = asyncio.create_task(a.send(WRITE, bytes(512), expect=None))
    await asyncio.sleep(0)
    await change_states(a.lu, {9: OPTIMIZED})
    device.gate.set()
    await write
    b.nexus.take_unit_attention()
    await b.send(READ)


async def test_reservations_bind_all_paths():
    """One table of registrations for the unit: full status names the port of each."""
    a, b = two_ways()
    register = "5f 00 00 00 00 00 00 00 18 00"
    await a.send(register, bytes(15) + b"\x01" + bytes(8))
    await b.send(register, bytes(15) + b"\x02" + bytes(8))
    full = await a.data("5e 03 00 00 00 00 00 04 00 00")
    ports = []
    at = 8
    while at < len(full):
        ports.append(int.from_bytes(full[at + 18 : at + 20], "big"))
        at += 24 + int.from_bytes(full[at + 20 : at + 24], "big")
    assert ports == [0x41, 0x82]


async def test_all_target_ports_registers_through_every_portal_group_of_the_target():
    _, b = two_ways()
    register = "5f 00 00 00 00 00 00 00 18 00"
    await b.send(register, bytes(15) + b"\x02" + bytes((0, 0, 0, 0, 0x04, 0, 0, 0)))
    assert sorted(who.portal_group_tag for who in b.lu.reservations.persistent.registrations) == [1, 7]
    await b.send(register, bytes(7) + b"\x02" + bytes(7) + b"\x03" + bytes(8))  # this port alone
    conflict = Expect(Status.RESERVATION_CONFLICT)
    await b.send(register, bytes(7) + b"\x03" + bytes(12) + b"\x04" + bytes(3), conflict)  # the other has key 2
    ignore = "5f 06 00 00 00 00 00 00 18 00"
    await b.send(ignore, bytes(20) + b"\x04" + bytes(3))
    assert not b.lu.reservations.persistent.registrations


async def test_a_move_names_the_port_by_its_relative_identifier():
    a, b = two_ways()
    await a.send("5f 00 00 00 00 00 00 00 18 00", bytes(15) + b"\x01" + bytes(8))
    await a.send("5f 01 01 00 00 00 00 00 18 00", bytes(7) + b"\x01" + bytes(16))
    name = b"iqn.2026-11.example:host2,i,0x00023d000002\0\0"
    move = bytes.fromhex("0000000000000001 0000000000000002 00 02 0082 00000030 45 00 002c") + name
    assert len(move) == 72
    wrong = move[:18] + b"\0\x83" + move[20:]
    await a.send("5f 07 00 00 00 00 00 00 48 00", wrong, INVALID_FIELD_IN_PARAMETER_LIST)
    await a.send("5f 07 00 00 00 00 00 00 48 00", move)
    assert b.lu.reservations.persistent.holder == b.it_nexus
