"""RESERVE(6) and persistent reservations between several initiators."""

import asyncio

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.errors import OutOfSpace, StoreCorrupt
from iscsi.scsi.command import Status
from iscsi.scsi.it_nexus import ItNexus
from iscsi.scsi.reservations import MAX_REGISTRATIONS, PersistentReservations, Reservations, ReservationType
from iscsi.scsi.sense import Asc, CheckCondition, SenseKey
from iscsi.scsi.transport_id import TransportId, parse_transport_ids
from iscsi.target import is_plausible_name, normalize_name
from tests.support.memory_device import MemoryDevice
from tests.support.scsi_host import (
    GOOD,
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    PARAMETER_LIST_LENGTH_ERROR,
    RESERVATION_CONFLICT,
    Expect,
    Host,
    attention,
    disk,
    illegal,
)

READ = "28 00 00 00 00 00 00 00 01 00"
WRITE = "2a 00 00 00 00 00 00 00 01 00"
TEST_UNIT_READY = "00 00 00 00 00 00"
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_AND_IGNORE, MOVE = range(8)
ISIDS = st.binary(min_size=6, max_size=6)
SPEC_I_PT, ALL_TG_PT, APTPL = 0x08, 0x04, 0x01
WE, EA, WERO, EARO, WEAR, EAAR = 1, 3, 5, 6, 7, 8


async def prout(
    host: Host, action: int, key: int = 0, other: int = 0, kind: int = 0, *, flags: int = 0, expect: Expect = GOOD
) -> None:
    data = key.to_bytes(8, "big") + other.to_bytes(8, "big") + bytes((0, 0, 0, 0, flags, 0, 0, 0))
    await host.send(f"5f {action:02x} {kind:02x} 00 00 00 00 00 18 00", data, expect)


async def prin(host: Host, action: int) -> bytes:
    return await host.data(f"5e {action:02x} 00 00 00 00 00 20 00 00")


async def keys(host: Host) -> tuple[int, list[int]]:
    data = await prin(host, 0)
    assert int.from_bytes(data[4:8], "big") == len(data) - 8
    return int.from_bytes(data[:4], "big"), [int.from_bytes(data[at : at + 8], "big") for at in range(8, len(data), 8)]


async def hosts(count: int = 2, **options) -> list[Host]:
    """Initiators 1, 2, ... with a registration under the key of their number, but for the last, which has none."""
    lu = disk(**options)
    made = [Host(lu, number) for number in range(1, count + 2)]
    for number, host in enumerate(made[:-1], 1):
        await prout(host, REGISTER, 0, number)
    return made


async def may(host: Host) -> tuple[bool, bool]:
    """Whether a host may read and write; the fast path's slots must say the same."""
    readable, writable = [
        (await host.send(cdb, data, expect=None)).status == 0 for cdb, data in ((READ, b""), (WRITE, bytes(512)))
    ]
    assert (host.nexus.fast_device is not None, host.nexus.fast_writable) == (readable, writable)
    return readable, writable


# -- RESERVE(6)


async def test_reserve_6_excludes_the_others_until_released():
    lu = disk()
    one, two = Host(lu, 1), Host(lu, 2)
    for _ in range(2):
        await one.send("16 00 00 00 00 00")
    for cdb in ("16 00 00 00 00 00", TEST_UNIT_READY, READ, "1a 00 3f 00 ff 00", "5e 00 00 00 00 00 00 10 00 00"):
        await two.send(cdb, expect=RESERVATION_CONFLICT)
    for cdb in ("12 00 00 00 24 00", "03 00 00 00 12 00", "a0 00 00 00 00 00 00 00 10 00 00 00", "17 00 00 00 00 00"):
        await two.send(cdb)
    assert (await may(one), await may(two)) == ((True, True), (False, False))
    await one.send("17 00 00 00 00 00")
    assert await may(two) == (True, True)


async def test_reserve_6_ends_with_a_reset_and_with_the_session():
    lu = disk()
    one, two = Host(lu, 1), Host(lu, 2)
    await one.send("16 00 00 00 00 00")
    lu.reset()
    one.nexus.take_unit_attention()
    two.nexus.take_unit_attention()
    await two.send("16 00 00 00 00 00")
    lu.detach(two.nexus)
    assert await may(one) == (True, True)


async def test_reserve_6_conflicts_with_registrations():
    one, stranger = await hosts(1)
    await one.send("16 00 00 00 00 00", expect=RESERVATION_CONFLICT)
    await stranger.send("17 00 00 00 00 00", expect=RESERVATION_CONFLICT)


# -- registrations


async def test_register_needs_the_existing_key():
    one, stranger = await hosts(1)
    assert await keys(one) == (1, [1])
    await prout(one, REGISTER, 2, 3, expect=RESERVATION_CONFLICT)
    await prout(one, REGISTER, 1, 3)
    await prout(stranger, REGISTER, 1, 3, expect=RESERVATION_CONFLICT)
    assert await keys(one) == (2, [3])
    await prout(one, REGISTER, 3, 0)
    assert await keys(one) == (3, [])
    await prout(one, REGISTER, 0, 0)
    assert await keys(one) == (3, [])


async def test_register_and_ignore_existing_key_needs_none():
    one, _ = await hosts(1)
    await prout(one, REGISTER_AND_IGNORE, 77, 5)
    assert await keys(one) == (2, [5])
    await prout(one, REGISTER_AND_IGNORE, 77, 0)
    assert (await keys(one))[1] == []


async def test_aptpl_is_refused_where_nothing_is_kept():
    one, _ = await hosts(1)
    await prout(one, REGISTER, 1, 2, flags=APTPL, expect=INVALID_FIELD_IN_PARAMETER_LIST)
    assert await keys(one) == (1, [1])


async def test_the_parameter_list_has_24_bytes():
    host = Host(disk())
    await host.send("5f 00 00 00 00 00 00 00 17 00", bytes(23), PARAMETER_LIST_LENGTH_ERROR)
    await host.send("5f 00 00 00 00 00 00 00 19 00", bytes(25), PARAMETER_LIST_LENGTH_ERROR)
    await host.send("5f 00 00 00 00 00 00 00 18 00", bytes(23), PARAMETER_LIST_LENGTH_ERROR)


async def test_registrations_are_bounded():
    lu = disk()
    for number in range(MAX_REGISTRATIONS):
        host = Host(lu, number % 256)
        host.nexus.it_nexus = type(host.it_nexus)(f"iqn.2026-11.example:{number}", bytes(6), "iqn.2026-11.example:t")
        await prout(host, REGISTER, 0, 1)
    await prout(Host(lu, 1), REGISTER, 0, 1, expect=illegal(0x5504))


async def test_registrations_survive_the_session_and_a_reset():
    one, two, _ = await hosts(2)
    lu = one.lu
    await prout(one, RESERVE, 1, kind=EA)
    lu.reset()
    lu.detach(one.nexus)
    two.nexus.take_unit_attention()
    assert await may(two) == (False, False)
    one.nexus = lu.attach(one.it_nexus)
    one.nexus.take_unit_attention()
    assert await may(one) == (True, True)


# -- reservations


@pytest.mark.parametrize(
    ("kind", "registrant", "stranger"),
    [
        (WE, (True, False), (True, False)),
        (EA, (False, False), (False, False)),
        (WERO, (True, True), (True, False)),
        (EARO, (True, True), (False, False)),
        (WEAR, (True, True), (True, False)),
        (EAAR, (True, True), (False, False)),
    ],
)
async def test_who_may_do_what(kind, registrant, stranger):
    one, two, third = await hosts(2)
    await prout(one, RESERVE, 1, kind=kind)
    assert [await may(host) for host in (one, two, third)] == [(True, True), registrant, stranger]
    await third.send(TEST_UNIT_READY)
    await third.send("35 00 00 00 00 00 00 00 00 00", expect=RESERVATION_CONFLICT)
    key = 0 if kind in (WEAR, EAAR) else 1
    assert (await prin(two, 1))[8:] == key.to_bytes(8, "big") + bytes((0, 0, 0, 0, 0, kind, 0, 0))
    await prout(one, RELEASE, 1, kind=kind)
    assert len(await prin(third, 1)) == 8
    two.nexus.take_unit_attention()
    assert [await may(host) for host in (one, two, third)] == [(True, True)] * 3


async def test_reserve_conflicts_and_repeats():
    one, two, third = await hosts(2)
    await prout(third, RESERVE, 0, kind=WE, expect=RESERVATION_CONFLICT)
    await prout(one, RESERVE, 2, kind=WE, expect=RESERVATION_CONFLICT)
    await prout(one, RESERVE, 1, kind=WE)
    await prout(one, RESERVE, 1, kind=WE)
    await prout(one, RESERVE, 1, kind=EA, expect=RESERVATION_CONFLICT)
    await prout(two, RESERVE, 2, kind=WE, expect=RESERVATION_CONFLICT)
    await prout(two, RELEASE, 2, kind=WE)
    await prout(one, RELEASE, 1, kind=EA, expect=illegal(0x2604))
    assert (await keys(one))[0] == 2
    await prout(one, RESERVE, 1, kind=2, expect=INVALID_FIELD_IN_CDB)
    await prout(one, RESERVE, 1, kind=0x11, expect=INVALID_FIELD_IN_CDB)


@pytest.mark.parametrize(("kind", "told"), [(WE, False), (EA, False), (WERO, True), (EARO, True), (WEAR, True)])
async def test_a_release_is_told_to_the_other_registrants_of_shared_types(kind, told):
    one, two, third = await hosts(2)
    await prout(one, RESERVE, 1, kind=kind)
    await prout(one, RELEASE, 1, kind=kind)
    await one.send(TEST_UNIT_READY)
    await two.send(TEST_UNIT_READY, expect=attention(0x2A04) if told else GOOD)
    await third.send(TEST_UNIT_READY)


async def test_unregistering_the_holder_releases():
    one, two, _ = await hosts(2)
    await prout(one, RESERVE, 1, kind=WERO)
    await prout(one, REGISTER, 1, 0)
    await two.send(TEST_UNIT_READY, expect=attention(0x2A04))
    assert len(await prin(two, 1)) == 8


async def test_all_registrants_hold_until_the_last_unregisters():
    one, two, _ = await hosts(2)
    await prout(one, RESERVE, 1, kind=WEAR)
    await prout(one, REGISTER, 1, 0)
    assert len(await prin(two, 1)) == 24
    await prout(two, REGISTER, 2, 0)
    assert len(await prin(two, 1)) == 8


async def test_clear_removes_everything_and_tells_the_others():
    one, two, third = await hosts(2)
    await prout(one, RESERVE, 1, kind=EA)
    await prout(third, CLEAR, 0, expect=RESERVATION_CONFLICT)
    await prout(two, CLEAR, 2)
    await one.send(TEST_UNIT_READY, expect=attention(0x2A03))
    assert await keys(one) == (3, [])
    assert [await may(host) for host in (one, two, third)] == [(True, True)] * 3


# -- preempting


async def test_preempt_takes_the_reservation_over():
    one, two, _ = await hosts(2)
    await prout(one, RESERVE, 1, kind=WERO)
    await prout(two, PREEMPT, 2, 1, kind=EA)
    assert await keys(one) == (3, [2])  # what the pending unit attention tells can be looked up
    await one.send(TEST_UNIT_READY, expect=attention(0x2A05))
    assert await keys(two) == (3, [2])
    assert (await prin(two, 1))[8:16] == (2).to_bytes(8, "big")
    assert [await may(host) for host in (one, two)] == [(False, False), (True, True)]


async def test_preempt_of_a_registrant_only_removes_it():
    one, two, third = await hosts(2)
    await prout(third, REGISTER, 0, 2)
    await prout(one, RESERVE, 1, kind=EARO)
    await prout(one, PREEMPT, 1, 2, kind=WE)
    assert await keys(one) == (4, [1])
    assert (await prin(one, 1))[21] == EARO
    for host in (two, third):
        await host.send(TEST_UNIT_READY, expect=attention(0x2A05))


async def test_preempt_without_victim_conflicts_and_key_0_is_for_all_registrants_only():
    one, two, _ = await hosts(2)
    await prout(one, PREEMPT, 1, 9, kind=WE, expect=RESERVATION_CONFLICT)
    await prout(one, PREEMPT, 1, 0, kind=WE, expect=INVALID_FIELD_IN_PARAMETER_LIST)
    await prout(two, RESERVE, 2, kind=EAAR)
    await prout(one, PREEMPT, 1, 0, kind=WE)
    assert await keys(one) == (3, [1])
    assert (await prin(one, 1))[8:] == (1).to_bytes(8, "big") + bytes((0, 0, 0, 0, 0, WE, 0, 0))


async def test_a_changed_type_is_told_to_the_remaining_registrants():
    one, two, third = await hosts(2)
    await prout(third, REGISTER, 0, 3)
    await prout(one, RESERVE, 1, kind=WERO)
    await prout(two, PREEMPT, 2, 1, kind=EARO)
    await third.send(TEST_UNIT_READY, expect=attention(0x2A04))


async def test_a_registrant_may_remove_its_own_registration_by_preempting_its_key():
    one, two, _ = await hosts(2)
    await prout(two, PREEMPT, 2, 2, kind=WE)
    assert await keys(one) == (3, [1])
    await two.send(TEST_UNIT_READY)


async def test_preempting_oneself_changes_the_type_and_keeps_the_registration():
    one, _, _ = await hosts(2)
    await prout(one, RESERVE, 1, kind=WE)
    await prout(one, PREEMPT, 1, 1, kind=EA)
    assert (await keys(one))[1] == [1, 2]
    assert (await prin(one, 1))[21] == EA


async def test_preempt_and_abort_answers_after_the_victims_commands_have_ended():
    device = MemoryDevice(1 << 20)
    one, two, _ = await hosts(2, device=device)
    order: list[str] = []
    device.gate = asyncio.Event()
    write = asyncio.create_task(one.send(WRITE, bytes(512)))
    await asyncio.sleep(0)

    async def abort() -> None:
        await write
        order.append("aborted")

    one.nexus.abort_tasks = abort
    preempt = asyncio.create_task(prout(two, PREEMPT_AND_ABORT, 2, 1, EA))
    preempt.add_done_callback(lambda _: order.append("answered"))
    await asyncio.sleep(0)
    assert one.nexus.fast_device is None or not one.nexus.fast_writable
    device.gate.set()
    await preempt
    await asyncio.sleep(0)
    assert order == ["aborted", "answered"]


# -- move, status


def transport_id(name: str) -> bytes:
    padded = name.encode() + b"\0"
    padded = padded.ljust(max(20, -(-len(padded) // 4) * 4), b"\0")
    return b"\x45\0" + len(padded).to_bytes(2, "big") + padded


async def move(host: Host, key: int, new_key: int, name: bytes, *, unregister: bool = False, expect=GOOD) -> None:
    data = key.to_bytes(8, "big") + new_key.to_bytes(8, "big") + bytes((0, 2 * unregister, 0, 1))
    data += len(name).to_bytes(4, "big") + name
    await host.send(f"5f 07 00 00 00 {len(data):08x} 00", data, expect)


async def test_register_and_move_hands_the_reservation_over():
    one, two, third = await hosts(2)
    await prout(one, RESERVE, 1, kind=EA)
    name = transport_id(third.it_nexus.initiator_port)
    await move(two, 2, 9, name, expect=RESERVATION_CONFLICT)
    await move(one, 1, 0, name, expect=INVALID_FIELD_IN_PARAMETER_LIST)
    await move(one, 1, 9, b"\x05" + name[1:], expect=INVALID_FIELD_IN_PARAMETER_LIST)
    await move(one, 1, 9, transport_id("no port"), expect=INVALID_FIELD_IN_PARAMETER_LIST)
    await move(one, 1, 9, transport_id(one.it_nexus.initiator_port), expect=INVALID_FIELD_IN_PARAMETER_LIST)
    await move(one, 1, 9, name, unregister=True)
    assert (await keys(third))[1] == [2, 9]
    assert [await may(host) for host in (one, third)] == [(False, False), (True, True)]


async def test_full_status_names_every_registrant_and_the_holder():
    one, _, _ = await hosts(2)
    await prout(one, RESERVE, 1, kind=WE)
    data = await prin(one, 3)
    assert int.from_bytes(data[4:8], "big") == len(data) - 8
    name = transport_id("iqn.2026-11.example:host1,i,0x00023d000001")
    first = (1).to_bytes(8, "big") + bytes((0, 0, 0, 0, 1, WE, 0, 0, 0, 0, 0, 1)) + len(name).to_bytes(4, "big") + name
    assert data[8 : 8 + len(first)] == first
    assert data[8 + len(first) :][12:14] == bytes(2)


async def test_reading_reservations_reports_other_unit_attentions():
    host = Host(disk(), clear_attention=False)
    await host.send("5e 00 00 00 00 00 00 20 00 00", expect=attention(0x2900))


async def test_capabilities_say_whether_reservations_survive_power_loss():
    """SPEC_I_PT and ALL_TG_PT always; APTPL where something keeps it, and whether it is on."""
    assert await prin(Host(disk()), 2) == bytes.fromhex("0008 0c 80 ea01 0000")
    host = Host(disk(reservations=Reservations(None, Shelf().save)))
    assert await prin(host, 2) == bytes.fromhex("0008 0d 80 ea01 0000")
    await prout(host, REGISTER, 0, 1, flags=APTPL)
    assert await prin(host, 2) == bytes.fromhex("0008 0d 81 ea01 0000")


async def test_unknown_service_actions_are_invalid():
    host = Host(disk())
    for action in range(4, 32):
        await host.send(f"5e {action:02x} 00 00 00 00 00 20 00 00", expect=INVALID_FIELD_IN_CDB)
    for action in range(8, 32):  # 08h: REPLACE LOST RESERVATION
        await host.send(f"5f {action:02x} 00 00 00 00 00 00 18 00", bytes(24), INVALID_FIELD_IN_CDB)


# -- SPEC_I_PT, ALL_TG_PT


async def specify(host: Host, key: int, new_key: int, ports: bytes, *, flags: int = SPEC_I_PT, expect=GOOD) -> None:
    data = key.to_bytes(8, "big") + new_key.to_bytes(8, "big") + bytes((0, 0, 0, 0, flags, 0, 0, 0))
    data += len(ports).to_bytes(4, "big") + ports
    await host.send(f"5f 00 00 00 00 {len(data):08x} 00", data, expect)


async def test_spec_i_pt_registers_the_named_ports_from_literal_bytes():
    lu = disk()
    one, two, three = (Host(lu, number) for number in (1, 2, 3))
    parameters = bytes.fromhex(
        "0000000000000000 00000000000000aa 00000000 08 000000"  # no key, key AAh, obsolete, SPEC_I_PT
        "00000060"  # 96 bytes of TransportIDs:
        "45 00 002c"  # format 01b, iSCSI; an initiator port
    )
    parameters += b"iqn.2026-11.example:host2,i,0x00023d000002\0\0"
    parameters += bytes.fromhex("45 00 002c") + b"iqn.2026-11.example:host9,i,0x00023d000009\0\0"
    assert len(parameters) == 124
    await one.send("5f 00 00 00 00 0000007c 00", parameters)
    assert await keys(one) == (1, [0xAA] * 3)
    await prout(two, RESERVE, 0xAA, kind=WE)
    assert [await may(host) for host in (one, two, three)] == [(True, False), (True, True), (True, False)]


async def test_spec_i_pt_with_an_initiator_device_means_its_ports_that_are_logged_in():
    one, two, stranger = await hosts(2)
    device = b"\x05\0\0\x1c" + b"iqn.2026-11.example:host2\0\0\0"
    await specify(stranger, 0, 7, device)
    assert (await keys(one))[1] == [1, 2, 7]  # host 2 was registered, and keeps its key
    await prout(two, REGISTER, 2, 0)
    await prout(stranger, REGISTER, 7, 0)
    await specify(stranger, 0, 7, device)
    assert (await keys(one))[1] == [1, 7, 7]
    await prout(stranger, REGISTER, 7, 0)
    unknown = b"\x05\0\0\x1c" + b"iqn.2026-11.example:host8\0\0\0"
    await specify(stranger, 0, 7, unknown, expect=INVALID_FIELD_IN_PARAMETER_LIST)
    assert (await keys(one))[1] == [1, 7]


async def test_spec_i_pt_is_for_a_nexus_that_is_not_registered_and_for_register_alone():
    one, two, _ = await hosts(2)
    name = transport_id("iqn.2026-11.example:host9,i,0x00023d000009")
    await specify(one, 1, 5, name, expect=INVALID_FIELD_IN_PARAMETER_LIST)
    await specify(one, 1, 0, b"", expect=INVALID_FIELD_IN_PARAMETER_LIST)
    for action in (RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_AND_IGNORE):
        await prout(two, action, 2, 1, WE, flags=SPEC_I_PT, expect=INVALID_FIELD_IN_PARAMETER_LIST)
    assert await keys(one) == (2, [1, 2])


@pytest.mark.parametrize(
    "ports",
    [
        b"\x45",
        b"\x45\0\0\x14" + b"iqn.2026-11.example\0"[:-1],
        b"\x45\0\xff\xff" + bytes(20),
        b"\x85\0\0\x14" + b"iqn.2026-11.example\0",
        b"\x00\0\0\x14" + bytes(20),
        b"\x45\0\0\x14" + b"iqn.2026-11.example\0",
        b"\x05\0\0\x14" + b"iqn.\xff\xff2026-11.exam\0\0",
        b"\x05\0\0\x14" + bytes(20),
        b"\x05\0\0\x18" + "iqn.a\uff0ci\uff0c0x00023d000001".encode()[:23] + b"\0",
        b"\x05\0\0\xd4" + "\ufdfa".encode() * 70 + b"\0\0",
    ],
)
async def test_a_transport_id_that_is_none_is_refused(ports):
    host = Host(disk())
    await specify(host, 0, 5, ports, expect=INVALID_FIELD_IN_PARAMETER_LIST)
    assert await keys(host) == (0, [])


async def test_the_length_of_the_transport_ids_must_be_right():
    host = Host(disk())
    name = transport_id("iqn.2026-11.example:host9,i,0x00023d000009")
    data = bytes(8) + bytes(7) + b"\1" + bytes((0, 0, 0, 0, SPEC_I_PT, 0, 0, 0)) + len(name).to_bytes(4, "big") + name
    for length in (24, 27, len(data) - 4):
        await host.send(f"5f 00 00 00 00 {length:08x} 00", data, PARAMETER_LIST_LENGTH_ERROR)
    huge = data[:24] + (1 << 20).to_bytes(4, "big") + bytes(1 << 20)
    await host.send(f"5f 00 00 00 00 {len(huge):08x} 00", huge, PARAMETER_LIST_LENGTH_ERROR)


async def test_more_ports_than_can_be_registered_register_nobody():
    host = Host(disk())
    ports = [transport_id(f"iqn.2026-11.example:h{number},i,0x{number:012x}") for number in range(MAX_REGISTRATIONS)]
    await specify(host, 0, 5, b"".join(ports), expect=illegal(0x5504))
    assert await keys(host) == (0, [])
    await specify(host, 0, 5, b"".join(ports[1:]))
    assert len((await keys(host))[1]) == MAX_REGISTRATIONS


# -- APTPL


class Shelf:
    """Where a unit's reservations are kept: each document in turn."""

    def __init__(self) -> None:
        self.documents: list[str | None] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None

    async def save(self, document: str | None) -> None:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.documents.append(document)


async def after_power_loss(lu, shelf: Shelf, *numbers: int) -> list[Host]:
    """The same hosts at a unit that knows what the shelf holds."""
    lu = disk(reservations=Reservations(shelf.documents[-1] if shelf.documents else None, shelf.save))
    return [Host(lu, number) for number in numbers]


@pytest.mark.parametrize("kind", [WE, EA, WERO, EARO, WEAR, EAAR])
async def test_with_aptpl_everything_survives_but_the_generation(kind):
    shelf = Shelf()
    one, two, _ = await hosts(2, reservations=Reservations(None, shelf.save))
    assert shelf.documents == []
    await prout(one, REGISTER, 1, 0xFFFFFFFFFFFFFFFF, flags=APTPL)
    await prout(one, RESERVE, 0xFFFFFFFFFFFFFFFF, kind=kind)
    before, rights = await prin(one, 3), [await may(host) for host in (one, two)]
    one, two, stranger = await after_power_loss(one.lu, shelf, 1, 2, 3)
    assert await prin(one, 3) == bytes(4) + before[4:]
    assert [await may(host) for host in (one, two)] == rights
    await prout(stranger, REGISTER, 0, 3, flags=APTPL)
    await prout(stranger, RESERVE, 3, kind=WE, expect=RESERVATION_CONFLICT)
    await prout(two, PREEMPT_AND_ABORT, 2, 0 if kind in (WEAR, EAAR) else 0xFFFFFFFFFFFFFFFF, EA)
    one, two = await after_power_loss(two.lu, shelf, 1, 2)
    assert [await may(host) for host in (one, two)] == [(False, False), (True, True)]
    await prout(two, CLEAR, 2)
    assert shelf.documents[-1] is None
    assert await keys((await after_power_loss(two.lu, shelf, 1))[0]) == (0, [])


async def test_the_latest_registration_decides_whether_everything_survives():
    shelf = Shelf()
    one, two, _ = await hosts(2, reservations=Reservations(None, shelf.save))
    await prout(one, REGISTER, 1, 1, flags=APTPL)
    assert shelf.documents[-1] is not None
    await prout(two, REGISTER, 2, 2)
    assert shelf.documents[-1] is None
    await prout(two, REGISTER_AND_IGNORE, 0, 2, flags=APTPL)
    assert shelf.documents[-1] is not None
    await prout(one, RESERVE, 1, kind=EA, flags=ALL_TG_PT)  # flags of registrations mean nothing here
    assert '"type": 3' in shelf.documents[-1]


async def test_a_move_carries_aptpl_too():
    shelf = Shelf()
    one, _ = await hosts(1, reservations=Reservations(None, shelf.save))
    await prout(one, RESERVE, 1, kind=WE)
    name = transport_id("iqn.2026-11.example:host2,i,0x00023d000002")
    data = bytes(7) + b"\1" + bytes(7) + b"\2" + bytes((0, 3, 0, 1)) + len(name).to_bytes(4, "big") + name
    await one.send(f"5f 07 00 00 00 {len(data):08x} 00", data)
    one, two = await after_power_loss(one.lu, shelf, 1, 2)
    assert [await may(host) for host in (one, two)] == [(True, False), (True, True)]


async def test_nobody_sees_a_change_before_it_is_durable():
    shelf = Shelf()
    one, two, _ = await hosts(2, reservations=Reservations(None, shelf.save))
    await prout(one, REGISTER, 1, 1, flags=APTPL)
    shelf.gate.clear()
    preempt = asyncio.create_task(prout(two, PREEMPT, 2, 1, kind=EA))
    later = asyncio.create_task(prout(one, RESERVE, 1, kind=EA, expect=RESERVATION_CONFLICT))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not preempt.done()
    assert (await keys(one))[1] == [1, 2]
    assert await may(one) == (True, True)
    shelf.gate.set()
    await preempt
    await later
    assert (await keys(two))[1] == [2]


async def test_a_nexus_that_goes_while_its_reserve_waits_holds_nothing():
    shelf = Shelf()
    lu = disk(reservations=Reservations(None, shelf.save))
    going, other = Host(lu, 1), Host(lu, 2)
    shelf.gate.clear()
    clearing = asyncio.create_task(prout(other, REGISTER, 0, 2, flags=APTPL))
    await asyncio.sleep(0)
    reserving = asyncio.create_task(going.send("16 00 00 00 00 00", expect=RESERVATION_CONFLICT))
    await asyncio.sleep(0)
    lu.detach(going.nexus)
    shelf.failure = OutOfSpace("no room")  # so that nobody is registered
    shelf.gate.set()
    await asyncio.gather(clearing, return_exceptions=True)
    await reserving
    assert lu.reservations.legacy_holder is None
    assert await may(other) == (True, True)


async def test_what_cannot_be_made_durable_has_not_happened():
    shelf = Shelf()
    one, two, _ = await hosts(2, reservations=Reservations(None, shelf.save))
    await prout(one, REGISTER, 1, 1, flags=APTPL)
    before = await prin(one, 3)
    shelf.failure = OutOfSpace("full")
    await prout(two, PREEMPT, 2, 1, kind=EA, expect=Expect(Status.CHECK_CONDITION, SenseKey.DATA_PROTECT, (0x2707,)))
    assert await prin(one, 3) == before
    await one.send(TEST_UNIT_READY)
    shelf.failure = None
    await prout(two, PREEMPT, 2, 1, kind=EA)
    assert (await keys(two))[1] == [2]
    assert '"iqn.2026-11.example:host1"' not in shelf.documents[-1]


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "{}",
        '{"type": 9, "holder": null, "registrations": []}',
        '{"type": 1, "holder": 0, "registrations": []}',
        '{"type": null, "holder": null, "registrations": [{"initiator": "a"}]}',
    ],
)
def test_a_document_that_cannot_be_understood_is_refused(document):
    with pytest.raises(StoreCorrupt):
        Reservations(document)


@given(
    st.dictionaries(
        st.builds(
            ItNexus, st.text(min_size=1), st.binary(min_size=6, max_size=6), st.text(min_size=1), st.integers(1, 65535)
        ),
        st.integers(1, (1 << 64) - 1),
        min_size=1,
    ),
    st.sampled_from([None, *ReservationType]),
)
def test_what_is_kept_comes_back(registrations, kind):
    state = PersistentReservations(registrations, through_power_loss=True)
    if kind is not None:
        state.reserve(next(iter(registrations)), kind)
    again = PersistentReservations.parse(state.serialize())
    assert again == state
    assert list(again.registrations) == list(registrations)


@given(st.binary(max_size=64))
def test_any_bytes_are_transport_ids_or_are_refused(data):
    found, refusal = [], None
    try:
        found = parse_transport_ids(memoryview(data), 0)
    except CheckCondition as refused:
        refusal = refused.sense.asc
    assert refusal in (None, Asc.INVALID_FIELD_IN_PARAMETER_LIST)
    assert parse_transport_ids(memoryview(b"".join(each.serialize() for each in found)), 0) == found


@given(st.text(st.characters(codec="utf-8", exclude_characters=",\0"), min_size=1, max_size=50), st.none() | ISIDS)
def test_transport_ids_survive_the_wire(name, isid):
    name = normalize_name(name)
    assume(is_plausible_name(name))
    port = TransportId(name, isid)
    assert parse_transport_ids(memoryview(b"xx" + port.serialize()), 2) == [port]
