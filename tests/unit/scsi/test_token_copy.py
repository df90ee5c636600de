"""POPULATE TOKEN, RECEIVE ROD TOKEN INFORMATION and WRITE USING TOKEN, byte by byte (SBC-3, SPC-4 section 5.17.6)."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import MediumError
from engine.tokens import DEFAULT_INACTIVITY_S, MAX_INACTIVITY_S, Tokens
from engine.units import MIB
from engine.volume import Volume
from iscsi.scsi.command import ScsiCommand, Status
from iscsi.scsi.copy_manager import CopyManager
from iscsi.scsi.lun import LogicalUnit, LunIdentity
from iscsi.scsi.rod_token import RodToken
from iscsi.scsi.sense import SenseKey
from tests.support.memory_device import MemoryDevice
from tests.support.memory_store import MemoryStore
from tests.support.scsi_host import (
    GOOD,
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    INVALID_OPCODE,
    LBA_OUT_OF_RANGE,
    PARAMETER_LIST_LENGTH_ERROR,
    RESERVATION_CONFLICT,
    TARGET,
    WRITE_PROTECTED,
    Expect,
    Host,
    disk,
    illegal,
    sense_of,
)
from tests.unit.engine.test_tokens import HandClock

BLOCKS = 4096
NAA = (0x3000000000000001, 0x3000000000000002)
ZERO_TOKEN = bytes.fromhex("ffff0001 0000 01f8") + bytes(504)
UNKNOWN, EXPIRED, CANCELLED, DELETED = (illegal(code) for code in (0x2304, 0x2307, 0x2308, 0x2309))


class Array:
    """Two volumes in families of their own, as units of one server."""

    def __init__(self, **options) -> None:
        self.clock = HandClock()
        self.tokens = Tokens(self.clock)
        self.units: list[LogicalUnit] = []
        self.manager = CopyManager(self.tokens, lambda nexus: self.units)
        self.stores = MemoryStore(), MemoryStore()
        for store, naa in zip(self.stores, NAA, strict=True):
            volume = Volume(store.create_volume("v", BLOCKS * 512))
            self.units.append(LogicalUnit(volume, LunIdentity("s", naa), copy_manager=self.manager, **options))
        self.source, self.target = (Host(unit) for unit in self.units)

    async def fill(self) -> None:
        for number, unit in enumerate(self.units):
            data = b"".join(bytes((number + 1, block >> 8, block & 0xFF, 7)) * 128 for block in range(BLOCKS))
            await unit.device.write(0, memoryview(data))

    def content(self, number: int) -> bytes:
        return self.units[number].device.head.content(0, BLOCKS * 512)


def ranges(*extents: tuple[int, int]) -> bytes:
    return b"".join(lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(4) for lba, blocks in extents)


def populate_list(*extents: tuple[int, int], flags: int = 0, timeout: int = 0, kind: int = 0) -> bytes:
    tail = ranges(*extents)
    head = (14 + len(tail)).to_bytes(2, "big") + bytes((flags, 0)) + timeout.to_bytes(4, "big")
    return head + kind.to_bytes(4, "big") + bytes(2) + len(tail).to_bytes(2, "big") + tail


def write_list(token: bytes, *extents: tuple[int, int], flags: int = 0, offset: int = 0) -> bytes:
    tail = ranges(*extents)
    head = (534 + len(tail)).to_bytes(2, "big") + bytes((flags,)) + bytes(5) + offset.to_bytes(8, "big")
    return head + token + bytes(6) + len(tail).to_bytes(2, "big") + tail


async def populate(host: Host, *extents, list_id: int = 9, expect: Expect = GOOD, **options):
    data = populate_list(*extents, **options)
    return await host.send(f"83 10 00000000 {list_id:08x} {len(data):08x} 00 00", data, expect)


async def write(host: Host, token: bytes, *extents, list_id: int = 9, expect: Expect = GOOD, **options):
    data = write_list(token, *extents, **options)
    return await host.send(f"83 11 00000000 {list_id:08x} {len(data):08x} 00 00", data, expect)


async def information(host: Host, *, list_id: int = 9, allocation: int = 4096, expect: Expect = GOOD) -> bytes:
    return bytes((await host.send(f"84 07 {list_id:08x} 00000000 {allocation:08x} 00 00", expect=expect)).data_in)


async def token_of(host: Host, *extents, **options) -> bytes:
    await populate(host, *extents, **options)
    data = await information(host)
    return data[38:]


# -- a whole copy


async def test_literal_bytes_of_a_token_copy():
    array = Array()
    await array.fill()
    before = array.content(0)
    await array.source.send(
        "83 10 00000000 00000009 00000020 00 00",
        bytes.fromhex("001e 00 00 00000000 00000000 0000 0010 0000000000000010 00000008 00000000"),
    )
    told = await information(array.source)
    assert told[:38] == bytes.fromhex(
        "00000222 10 01 0000 fffffffe 00 00 00 f1 0000000000000008 0000 000000000000 00000202 0000"
    )
    token = told[38:]
    assert len(token) == 512
    await array.source.lu.device.write(16 * 512, memoryview(b"changed!" * 512))
    await array.target.send(
        "83 11 00000000 0000000a 00000228 00 00",
        bytes.fromhex("0226 00 0000000000 0000000000000000") + token + bytes(6) + b"\0\x10" + ranges((100, 8)),
    )
    assert array.content(1)[100 * 512 : 108 * 512] == before[16 * 512 : 24 * 512]
    assert await information(array.target, list_id=10) == bytes.fromhex(
        "00000020 11 01 0001 fffffffe 00 00 00 f1 0000000000000008 0000 000000000000 00000000"
    )


async def test_what_is_in_a_rod_token():
    array = Array()
    one, two = [await token_of(array.source, (16, 8), (0, 1)) for _ in range(2)]
    assert one[:8] == bytes.fromhex("00800000 0000 01f8")
    assert int.from_bytes(two[8:16], "big") == int.from_bytes(one[8:16], "big") + 1
    assert one[16:48] == bytes.fromhex("e4000000 01030008 3000000000000001 000000000000000000000000 00 000200")
    assert one[48:64] == (9 * 512).to_bytes(16, "big")
    assert one[64:96] == bytes(32)
    assert one[96:128] == bytes.fromhex("00000200 00 03 c000") + bytes(24)  # as READ CAPACITY(16) from byte 8 on
    name = TARGET.encode().ljust(32, b"\0")
    assert one[128:256] == (b"\x53\xa8\x00" + bytes((len(name),)) + name).ljust(128, b"\0")
    assert one[256:] != two[256:]
    assert len(set(one[256:])) > 64


def test_a_target_name_too_long_for_the_token_is_told_as_a_number():
    token = RodToken(0x800000, 1, NAA[0], 512, 512, bytes(8), "iqn.2026-11.org.twinvol:" + "x" * 199, b"s" * 256)
    assert token.pack()[128:132] == bytes.fromhex("51 a3 00 08")
    assert token.pack()[132] >> 4 == 3


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 90)), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 90)), min_size=1, max_size=5),
    st.integers(0, 300),
    st.booleans(),
)
async def test_any_ranges_from_any_offset(read, written, offset, same):
    """Against bytes: the token is the ranges one after the other, and the write takes it apart in the same way."""
    read = [(700 * number + lba, blocks) for number, (lba, blocks) in enumerate(read)]
    written = [(700 * number + lba, blocks) for number, (lba, blocks) in enumerate(written)]
    array = Array()
    await array.fill()
    rod = b"".join(array.content(0)[lba * 512 : (lba + blocks) * 512] for lba, blocks in read)
    token = await token_of(array.source, *read)
    host = array.source if same else array.target
    model = bytearray(array.content(0 if same else 1))
    if offset * 512 >= len(rod):
        await write(host, token, *written, offset=offset, expect=INVALID_FIELD_IN_PARAMETER_LIST)
        return
    left = rod[offset * 512 :]
    moved = 0
    for lba, blocks in written:
        part = left[: blocks * 512]
        model[lba * 512 : lba * 512 + len(part)] = part
        left = left[len(part) :]
        moved += len(part) // 512
    await write(host, token, *written, offset=offset)
    assert array.content(0 if same else 1) == model
    told = await information(host)
    whole = moved == sum(blocks for _, blocks in written)
    assert (told[5], int.from_bytes(told[16:24], "big")) == (1 if whole else 3, moved)


async def test_the_zero_token_gives_space_back():
    array = Array()
    await array.fill()
    await write(array.target, ZERO_TOKEN, (128, 256), (0, 1), offset=1 << 40)
    content = array.content(1)
    assert content[:512] == bytes(512)
    assert content[128 * 512 : 384 * 512] == bytes(256 * 512)
    assert content[512:514] == bytes((2, 0))
    assert (await information(array.target))[5] == 1


async def test_a_token_from_small_blocks_fills_up_large_ones():
    array = Array()
    await array.fill()
    device = MemoryDevice(64 * 4096)
    device.data[:] = b"x" * len(device.data)
    large = Host(LogicalUnit(device, LunIdentity("l", 3 << 60), logical_block=4096, copy_manager=array.manager))
    array.units.append(large.lu)
    token = await token_of(array.source, (0, 12))
    await write(large, token, (1, 3))
    assert device.data[4096 : 3 * 4096] == array.content(0)[: 12 * 512].ljust(2 * 4096, b"\0")
    assert device.data[3 * 4096 :] == b"x" * (61 * 4096)
    told = await information(large)
    assert (told[5], int.from_bytes(told[16:24], "big")) == (3, 2)


# -- POPULATE TOKEN


@pytest.mark.parametrize(
    ("data", "expect"),
    [
        (b"", GOOD),
        (populate_list((0, 1))[:15], PARAMETER_LIST_LENGTH_ERROR),
        (b"\0\x1d" + populate_list((0, 1))[2:], INVALID_FIELD_IN_PARAMETER_LIST),
        (populate_list((0, 1), timeout=MAX_INACTIVITY_S), GOOD),
        (populate_list((0, 1), timeout=MAX_INACTIVITY_S + 1), INVALID_FIELD_IN_PARAMETER_LIST),
        (populate_list((0, 1), kind=0x00010000), GOOD),  # RTV is zero
        (populate_list((0, 1), kind=0x00010000, flags=2), INVALID_FIELD_IN_PARAMETER_LIST),
        (populate_list((0, 1), kind=0xFFFF0001, flags=2), INVALID_FIELD_IN_PARAMETER_LIST),
        (populate_list((0, 1))[:14] + b"\0\x0f" + ranges((0, 1)), INVALID_FIELD_IN_PARAMETER_LIST),
        (populate_list((0, 1)) + b"rest", GOOD),
        (populate_list((0, 1), (BLOCKS, 1))[:-1], GOOD),  # a truncated descriptor is ignored
        (populate_list(*((0, 0),) * 128), GOOD),
        (populate_list(*((0, 0),) * 129), illegal(0x2608)),
        (populate_list((0, 10), (9, 1)), INVALID_FIELD_IN_PARAMETER_LIST),
        (populate_list((BLOCKS - 1, 2)), LBA_OUT_OF_RANGE),
        (populate_list((1 << 63, 1)), LBA_OUT_OF_RANGE),
    ],
)
async def test_fields_of_populate_token(data, expect):
    await Array().source.send(f"83 10 00000000 00000001 {len(data):08x} 00 00", data, expect)


@pytest.mark.parametrize(
    ("asked", "made"),
    [(0x800000, 0x800000), (0x800001, 0x800001), (0x800002, 0x800002), (0x80FFFF, 0x800002)],
)
async def test_the_rod_type_is_the_one_asked_for(asked, made):
    token = await token_of(Array().source, (0, 1), flags=2, kind=asked)
    assert int.from_bytes(token[:4], "big") == made


async def test_a_device_without_snapshots_has_no_tokens():
    await populate(Host(disk()), (0, 1), expect=INVALID_OPCODE)


async def test_too_many_tokens():
    array = Array()
    array.tokens._making["others"] = 256
    await populate(array.source, (0, 1), expect=illegal(0x550D))


async def test_a_snapshot_can_be_a_source():
    array = Array()
    await array.fill()
    frozen = await array.stores[0].snapshot(array.units[0].device.head, "s")
    array.units.append(LogicalUnit(frozen, LunIdentity("f", 3 << 60), copy_manager=array.manager, read_only=True))
    token = await token_of(Host(array.units[2]), (3, 2))
    await write(array.target, token, (0, 2))
    assert array.content(1)[:1024] == array.content(0)[3 * 512 : 5 * 512]
    assert len(array.stores[0].snapshots()) == 1


# -- RECEIVE ROD TOKEN INFORMATION


async def test_the_token_is_told_once():
    array = Array()
    await information(array.source, expect=INVALID_FIELD_IN_CDB)
    await populate(array.source, (0, 1))
    assert len(await information(array.source, allocation=100)) == 100
    assert len(await information(array.source)) == 550
    assert (await information(array.source))[32:] == bytes(4)
    await populate(array.source, (0, 1))
    assert await information(array.source, allocation=0) == b""
    assert (await information(array.source))[32:] == bytes(4)


async def test_list_identifiers_belong_to_their_nexus():
    array = Array()
    await populate(array.source, (0, 1))
    await information(Host(array.units[0], 2), expect=INVALID_FIELD_IN_CDB)
    await information(array.target, expect=INVALID_FIELD_IN_CDB)


# -- WRITE USING TOKEN


async def test_fields_of_write_using_token():
    array = Array()
    good = write_list(ZERO_TOKEN, (0, 1))
    for data, expect in (
        (b"", GOOD),
        (good[:535], PARAMETER_LIST_LENGTH_ERROR),
        (b"\x02\x25" + good[2:], INVALID_FIELD_IN_PARAMETER_LIST),
        (b"\x02\x27" + good[2:], INVALID_FIELD_IN_PARAMETER_LIST),
        (write_list(ZERO_TOKEN), INVALID_FIELD_IN_PARAMETER_LIST),
        (write_list(ZERO_TOKEN, *((0, 0),) * 129), illegal(0x2608)),
        (write_list(ZERO_TOKEN, (0, 2), (1, 1)), INVALID_FIELD_IN_PARAMETER_LIST),
        (write_list(ZERO_TOKEN, (BLOCKS, 1)), LBA_OUT_OF_RANGE),
        (write_list(ZERO_TOKEN[:6] + b"\x01\xf7" + bytes(504), (0, 1)), illegal(0x230A)),
        (write_list(b"\x00\x01\x00\x00" + ZERO_TOKEN[4:], (0, 1)), illegal(0x2301)),
        (write_list(b"\x00\x80\x00\x00" + ZERO_TOKEN[4:], (0, 1)), illegal(0x2305)),
    ):
        await array.target.send(f"83 11 00000000 00000001 {len(data):08x} 00 00", data, expect)


async def test_every_changed_byte_makes_a_token_unknown_or_worse():
    array = Array()
    token = await token_of(array.source, (0, 1))
    for at in range(512):
        changed = token[:at] + bytes((token[at] ^ 1,)) + token[at + 1 :]
        result = await write(array.target, changed, (0, 1), expect=None)
        assert sense_of(result)[0] is SenseKey.ILLEGAL_REQUEST
        assert sense_of(result)[1] in (0x2301, 0x2302, 0x2304, 0x2305, 0x230A)
    await write(array.target, token, (0, 1))


async def test_tokens_of_other_servers_and_earlier_runs():
    array, other = Array(), Array()
    mine = await token_of(other.source, (0, 1))  # the same unit as this server's, so it was made before a restart
    await write(array.target, mine, (0, 1), expect=UNKNOWN)
    foreign = RodToken(0x800000, 1, 4 << 60, 512, 512, bytes(8), "iqn.2026-11.org.example:x", b"s").pack()
    await write(array.target, foreign, (0, 1), expect=illegal(0x2302))


async def test_how_tokens_end():
    array = Array()
    token = await token_of(array.source, (0, 1))
    array.clock.now += DEFAULT_INACTIVITY_S
    await write(array.target, token, (0, 1), expect=EXPIRED)
    token = await token_of(array.source, (0, 1), timeout=MAX_INACTIVITY_S)
    array.clock.now += DEFAULT_INACTIVITY_S
    await write(array.target, token, (0, 1))
    await write(array.target, token, (0, 1), flags=2)
    await write(array.target, token, (0, 1), expect=DELETED)
    await array.tokens.settled()
    assert array.stores[0].snapshots() == []


async def test_a_failed_write_leaves_its_token():
    array = Array()
    token = await token_of(array.source, (0, 1))
    array.units[1].write_protection_changed(read_only=True)
    array.target.nexus.take_unit_attention()
    await write(array.target, token, (0, 1), flags=2, expect=WRITE_PROTECTED)
    array.units[1].write_protection_changed(read_only=False)
    array.target.nexus.take_unit_attention()
    await write(array.target, token, (0, 1), flags=2)


async def test_the_destinations_reservation_is_kept():
    array = Array()
    token = await token_of(array.source, (0, 1))
    await Host(array.units[1], 2).send("16 00 00 00 00 00")
    await write(array.target, token, (0, 1), expect=RESERVATION_CONFLICT)


async def test_errors_are_those_of_a_write():
    array = Array()
    token = await token_of(array.source, (0, 1))

    async def fail(operation, *_rest):
        if operation == "write":
            raise MediumError("broken")

    array.stores[1].pace = fail
    result = await write(array.target, token, (0, 1), expect=None)
    assert sense_of(result) == (SenseKey.MEDIUM_ERROR, 0x0C00)
    told = await information(array.target)
    assert (told[5], told[12], told[13], told[14]) == (0x02, Status.CHECK_CONDITION, 20, 18)
    assert told[32:50] == result.sense


# -- in the background


class Held(Array):
    """The destination's writes wait for ``gate``."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()
        self.writes = 0

        async def pace(operation, *_rest):
            self.writes += operation == "write"
            self.begun.set()
            await self.gate.wait()

        self.stores[1].pace = pace

    async def begin(self) -> bytes:
        await self.units[0].device.write(0, memoryview(b"b" * MIB))
        token = await token_of(self.source, (0, 2048))
        await write(self.target, token, (0, 2048), flags=3)  # DEL_TKN, IMMED
        await self.begun.wait()
        return token

    async def end(self) -> None:
        self.gate.set()
        for operation in self.manager.in_background():
            await operation.finished.wait()


async def test_a_write_in_the_background_is_told_of_until_it_ends():
    array = Held()
    token = await array.begin()
    assert await information(array.target) == bytes.fromhex(
        "00000020 11 12 0000 00000064 00 00 00 f1 0000000000000000 0000 000000000000 00000000"
    )
    await write(array.target, ZERO_TOKEN, (0, 1), expect=illegal(0x0016))
    await array.end()
    told = await information(array.target)
    assert (told[5], int.from_bytes(told[16:24], "big")) == (0x01, 2048)
    assert array.content(1)[:MIB] == b"b" * MIB
    await write(array.target, token, (0, 1), expect=DELETED)


async def test_it_survives_its_session_but_not_a_reset():
    array = Held()
    await array.begin()
    array.units[1].detach(array.target.nexus)
    await array.end()
    assert array.content(1)[:MIB] == b"b" * MIB

    array = Held()
    await array.begin()
    stop = asyncio.create_task(array.manager.stop(array.manager.in_background(array.units[1])))
    await asyncio.sleep(0)
    assert not stop.done()
    array.gate.set()
    await stop
    assert array.writes == 1
    told = await information(array.target)
    assert (told[5], told[12], told[14]) == (0x60, Status.TASK_ABORTED, 0)


async def test_copy_operation_abort_reaches_the_background():
    array = Held()
    await array.begin()
    abort = asyncio.create_task(array.target.send("83 1c 00000009 00000000 00000000 00 00"))
    await asyncio.sleep(0)
    array.gate.set()
    await abort
    assert array.writes == 1


async def test_failures_in_the_background_are_told_when_asked():
    array = Held()
    await array.begin()
    array.units[1].write_protection_changed(read_only=True)
    array.target.nexus.take_unit_attention()
    await array.end()
    told = await information(array.target)
    assert (told[5], told[12]) == (0x02, Status.CHECK_CONDITION)
    assert told[34] == SenseKey.DATA_PROTECT


async def test_closing_ends_background_copies_and_tokens():
    array = Held()
    await array.begin()
    await token_of(array.source, (0, 1))
    array.gate.set()
    await array.manager.close()
    assert array.manager.in_background() == []
    assert array.stores[0].snapshots() == []


async def test_an_aborted_command_writes_no_further_piece():
    array = Held()
    await array.units[0].device.write(0, memoryview(b"b" * MIB))
    token = await token_of(array.source, (0, 2048))
    data = write_list(token, (0, 2048))
    aborted = False
    cdb = bytes.fromhex(f"83 11 00000000 00000009 {len(data):08x} 00 00")
    command = ScsiCommand(cdb, memoryview(data), 0, None, lambda: aborted)
    task = asyncio.create_task(array.units[1].execute(array.target.nexus, command))
    await array.begun.wait()
    aborted = True
    array.gate.set()
    await task
    assert array.writes == 1


# -- what is said of all that


async def test_third_party_copy_page():
    data = await Array().source.data("12 01 8f 04 00 00")
    head = bytes.fromhex(
        "00 8f 01f4"
        "0000 0020 000000000000 0080 00000258 0000003c 0000000000800000 0000000000800000"
        "0001 0010 0e 83 04 00 10 11 1c 84 06 00 01 03 04 05 07 00"
        "0004 001c 00000000 0010 0040 00000900 00000000 000000000000000000000000"
        "0008 0004 02 02 e4 00"
        "000c 0004 0002 ffff"
        "0106 005c 000000000000000000000000 00000e10 00000e10 00000258"
        "000000000000000000000000000000000000 0030"
        "00 00 002c 0000 0008 0000000100000000 0000000100000000 0000000100000000 0000000100000000 0000000000000000"
    )
    assert data[: len(head)] == head
    types = data[len(head) : len(head) + 4 + 4 + 4 * 64]
    assert types[:8] == bytes.fromhex("0108 0104 0000 0100")
    assert [types[at : at + 5].hex() for at in range(8, len(types), 64)] == [
        "0080000003",
        "0080000103",
        "0080000203",
        "ffff000102",
    ]
    assert data[len(head) + len(types) :] == bytes.fromhex("8001 0020 00000010 00000010 01fffe00 09 00" + "00" * 18)


async def test_operation_codes_are_reported():
    host = Array().source
    for opcode, actions in ((0x83, (0x00, 0x10, 0x11, 0x1C)), (0x84, (0x00, 0x01, 0x03, 0x04, 0x05, 0x07))):
        for action in range(0x20):
            data = await host.data(f"a3 0c 02 {opcode:02x} {action:04x} 00000100 00 00")
            assert (data[1] & 0x07 == 3) == (action in actions)
            if action not in actions:
                await host.send(f"{opcode:02x} {action:02x} {'00' * 14}", expect=INVALID_FIELD_IN_CDB)
