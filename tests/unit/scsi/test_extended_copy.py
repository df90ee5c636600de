"""EXTENDED COPY(LID1) and what RECEIVE COPY ... says of it, byte by byte (SPC-4 sections 6.5 and 6.21 to 6.25)."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.access_state import AccessState
from engine.errors import MediumError
from engine.files import SystemClock
from engine.stores import ExtentState
from engine.tokens import Tokens
from iscsi.scsi.alua import change_states
from iscsi.scsi.command import ScsiCommand, Status
from iscsi.scsi.copy_manager import CopyManager
from iscsi.scsi.lun import LogicalUnit, LunIdentity
from iscsi.scsi.sense import SenseKey
from tests.support.memory_device import MemoryDevice
from tests.support.scsi_host import (
    GOOD,
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    PARAMETER_LIST_LENGTH_ERROR,
    RESERVATION_CONFLICT,
    Expect,
    Host,
    illegal,
    sense_of,
)

SOURCE_NAA, TARGET_NAA = 0x3000000000000001, 0x3000000000000002
BLOCKS = 1200


def copy_aborted(code: int) -> Expect:
    return Expect(Status.CHECK_CONDITION, SenseKey.COPY_ABORTED, (code,))


NOT_REACHABLE = copy_aborted(0x0D02)
DEVICE_FAILURE = copy_aborted(0x0D01)


class Pair:
    """Two disks of one server; the host talks to the source."""

    def __init__(self, *, blocks: int = BLOCKS, **options) -> None:
        self.reached: list[LogicalUnit] = []
        manager = CopyManager(Tokens(SystemClock()), lambda nexus: self.reached)
        self.source, self.target = (
            LogicalUnit(MemoryDevice(blocks * 512), LunIdentity("s", naa), copy_manager=manager, **options)
            for naa in (SOURCE_NAA, TARGET_NAA)
        )
        self.reached[:] = [self.source, self.target]
        self.host = Host(self.source)
        for number, device in enumerate((self.source.device, self.target.device)):
            device.data[:] = b"".join(bytes((number + 1, block % 256)) * 256 for block in range(blocks))
            device.states[:] = [ExtentState.DATA] * blocks

    async def copy(self, data: bytes, expect: Expect | None = GOOD):
        return await self.host.send(f"83 00 {'00' * 8} {len(data):08x} 00 00", data, expect)


def cscd(naa: int, *, kind: int = 0xE4, byte_1: int = 0, block: int = 512) -> bytes:
    head = bytes((kind, byte_1, 0, 0)) + bytes.fromhex("01 03 00 08") + naa.to_bytes(8, "big") + bytes(12)
    return head + bytes(1) + block.to_bytes(3, "big")


def segment(source: int, target: int, blocks: int, read: int, write: int, *, flags: int = 0, kind: int = 2) -> bytes:
    return (
        bytes((kind, flags, 0, 0x18))
        + source.to_bytes(2, "big")
        + target.to_bytes(2, "big")
        + bytes(2)
        + blocks.to_bytes(2, "big")
        + read.to_bytes(8, "big")
        + write.to_bytes(8, "big")
    )


def parameters(*segments: bytes, cscds=None, list_id: int = 1, usage: int = 0, inline: int = 0) -> bytes:
    cscds = (cscd(SOURCE_NAA), cscd(TARGET_NAA)) if cscds is None else cscds
    head = bytes((list_id, usage << 3)) + (32 * len(cscds)).to_bytes(2, "big") + bytes(4)
    tail = b"".join(segments)
    return head + len(tail).to_bytes(4, "big") + inline.to_bytes(4, "big") + b"".join(cscds) + tail


async def test_literal_bytes_of_a_copy_between_two_units():
    pair = Pair()
    await pair.copy(
        bytes.fromhex(
            "21 20 0040 00000000 0000001c 00000000"
            "e4000000 01030008 3000000000000001 000000000000000000000000 00 000200"
            "e4000000 01030008 3000000000000002 000000000000000000000000 00 000200"
            "02 00 0018 0000 0001 0000 0003 0000000000000004 0000000000000064"
        )
    )
    target, source = pair.target.device.data, pair.source.device.data
    assert target[100 * 512 : 103 * 512] == source[4 * 512 : 7 * 512]
    assert target[99 * 512 : 99 * 512 + 2] == bytes((2, 99))
    assert target[103 * 512 : 103 * 512 + 2] == bytes((2, 103))


async def test_an_empty_parameter_list_copies_nothing():
    pair = Pair()
    before = bytes(pair.target.device.data)
    await pair.copy(b"")
    await pair.copy(parameters(cscds=()))
    await pair.copy(parameters(segment(0, 1, 0, 0, 0)))
    assert pair.target.device.data == before


async def test_the_receiving_unit_may_be_named_by_ffffh():
    pair = Pair()
    await pair.copy(parameters(segment(0xFFFF, 0, 1, 5, 6), cscds=(cscd(TARGET_NAA),)))
    assert pair.target.device.data[6 * 512 : 7 * 512] == pair.source.device.data[5 * 512 : 6 * 512]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 600), st.integers(0, 599), st.integers(0, 599)),
        max_size=6,
    )
)
async def test_any_segments_in_their_order_overlapping_or_not(segments):
    pair = Pair()
    model = [bytearray(pair.source.device.data), bytearray(pair.target.device.data)]
    for source, target, blocks, read, write in segments:
        held = model[source][read * 512 : (read + blocks) * 512]
        model[target][write * 512 : (write + blocks) * 512] = held
    await pair.copy(parameters(*(segment(*each) for each in segments)))
    assert [pair.source.device.data, pair.target.device.data] == model


@pytest.mark.parametrize(
    ("data", "expect"),
    [
        (bytes(15), PARAMETER_LIST_LENGTH_ERROR),
        (parameters(segment(0, 1, 1, 0, 0))[:-1], PARAMETER_LIST_LENGTH_ERROR),
        (parameters(segment(0, 1, 1, 0, 0))[:47], PARAMETER_LIST_LENGTH_ERROR),
        (parameters(list_id=1, usage=1), INVALID_FIELD_IN_PARAMETER_LIST),
        (parameters(list_id=1, usage=3), INVALID_FIELD_IN_PARAMETER_LIST),
        (parameters(inline=4) + bytes(4), illegal(0x260B)),
        (parameters(cscds=(cscd(SOURCE_NAA),) * 17), illegal(0x2606)),
        (parameters(*[segment(0, 1, 0, 0, 0)] * 65), illegal(0x2608)),
        (parameters(*[segment(0, 1, 0, 0, 0)] * 65, cscds=(cscd(SOURCE_NAA),) * 17), PARAMETER_LIST_LENGTH_ERROR),
        (parameters(cscds=(cscd(SOURCE_NAA, kind=0xE0),)), illegal(0x2607)),
        (parameters(segment(0, 1, 1, 0, 0, kind=0x03)), illegal(0x2609)),
        (parameters(segment(0, 1, 1, 0, 0).replace(b"\0\x18", b"\0\x14")), INVALID_FIELD_IN_PARAMETER_LIST),
        (b"\x01\x00\x00\x21" + bytes(12 + 33), INVALID_FIELD_IN_PARAMETER_LIST),
    ],
)
async def test_what_is_wrong_with_the_whole_list_copies_nothing(data, expect):
    pair = Pair()
    before = bytes(pair.target.device.data)
    await pair.copy(data, expect)
    assert pair.target.device.data == before


GOOD_SEGMENT = segment(0, 1, 1, 0, 0)


@pytest.mark.parametrize(
    ("data", "expect", "pointer"),
    [
        (parameters(GOOD_SEGMENT, segment(2, 1, 1, 0, 0)), copy_aborted(0x0804), "a0 0004"),
        (parameters(GOOD_SEGMENT, segment(0, 9, 1, 0, 0)), copy_aborted(0x0804), "a0 0006"),
        (parameters(GOOD_SEGMENT, segment(0, 0xC000, 1, 0, 0)), NOT_REACHABLE, "a0 0006"),
        (parameters(GOOD_SEGMENT, segment(0, 1, 2, BLOCKS - 1, 0)), copy_aborted(0x0000), "a0 000c"),
        (parameters(GOOD_SEGMENT, segment(0, 1, 2, 0, BLOCKS - 1)), copy_aborted(0x0000), "a0 0014"),
        (
            parameters(
                GOOD_SEGMENT, segment(2, 1, 1, 0, 0), cscds=[cscd(n) for n in (SOURCE_NAA, TARGET_NAA, 3 << 60)]
            ),
            NOT_REACHABLE,
            "80 0050",
        ),
        (
            parameters(
                segment(0, 0, 1, 0, 0), segment(0, 1, 1, 0, 0), cscds=(cscd(SOURCE_NAA), cscd(TARGET_NAA, byte_1=1))
            ),
            copy_aborted(0x0D03),
            "80 0030",
        ),
        (
            parameters(
                segment(0, 0, 1, 0, 0), segment(0, 1, 1, 0, 0), cscds=(cscd(SOURCE_NAA), cscd(TARGET_NAA, byte_1=0x20))
            ),
            NOT_REACHABLE,
            "80 0030",
        ),
        (
            parameters(
                segment(0, 0, 1, 0, 0), segment(0, 1, 1, 0, 0), cscds=(cscd(SOURCE_NAA), cscd(TARGET_NAA, block=4096))
            ),
            copy_aborted(0x2600),
            "80 004d",
        ),
    ],
)
async def test_what_is_wrong_with_a_segment_is_told_with_its_number_and_place(data, expect, pointer):
    pair = Pair()
    result = await pair.copy(data, expect)
    assert result.sense[8:12] == bytes((0, 0, 0, 1))
    assert result.sense[15:18] == bytes.fromhex(pointer)
    assert not result.sense[0] & 0x80  # no residual: nothing of the segment was written
    pair.source.mode.descriptor_sense = True
    result = await pair.copy(data, expect)
    assert bytes.fromhex(f"02 06 0000 {pointer} 00") in result.sense
    assert bytes.fromhex("01 0a 0000 0000 0001 00000000") in result.sense


async def test_lu_id_type_and_relative_port_are_ignored_and_the_block_length_may_be_left_out():
    pair = Pair()
    named = bytearray(cscd(TARGET_NAA, byte_1=0xC0, block=0))
    named[2:4] = b"\x12\x34"
    await pair.copy(parameters(GOOD_SEGMENT, cscds=(cscd(SOURCE_NAA), bytes(named))))


async def test_other_designators_name_no_unit():
    pair = Pair()
    for at, value in ((4, 2), (5, 0x13), (5, 0x02), (7, 16)):
        named = bytearray(cscd(TARGET_NAA))
        named[at] = value
        await pair.copy(parameters(GOOD_SEGMENT, cscds=(cscd(SOURCE_NAA), bytes(named))), NOT_REACHABLE)


async def test_units_with_other_blocks_take_whole_blocks_only():
    pair = Pair()
    big = LogicalUnit(MemoryDevice(64 * 4096), LunIdentity("b", TARGET_NAA), logical_block=4096)
    big.copy_manager = pair.source.copy_manager
    pair.reached[1] = big
    cscds = (cscd(SOURCE_NAA), cscd(TARGET_NAA, block=4096))
    await pair.copy(parameters(segment(0, 1, 16, 8, 3), cscds=cscds))
    assert big.device.data[3 * 4096 : 5 * 4096] == pair.source.device.data[8 * 512 : 24 * 512]
    await pair.copy(parameters(segment(0, 1, 1, 8, 0, flags=0x02), cscds=cscds))  # DC: counted in its blocks
    assert big.device.data[:4096] == pair.source.device.data[8 * 512 : 16 * 512]
    result = await pair.copy(parameters(segment(0, 1, 15, 0, 0), cscds=cscds), copy_aborted(0x260A))
    assert result.sense[15:18] == bytes.fromhex("a0 000a")


# -- who may


async def test_a_unit_that_the_initiator_may_not_use_is_not_reachable():
    pair = Pair()
    pair.reached.remove(pair.target)
    await pair.copy(parameters(GOOD_SEGMENT), NOT_REACHABLE)


async def test_write_protection_of_the_destination_is_forwarded():
    pair = Pair()
    pair.target.write_protection_changed(read_only=True)
    result = await pair.copy(parameters(GOOD_SEGMENT), DEVICE_FAILURE)
    assert result.sense[8:12] == bytes((0, 18, 0, 0))  # where the destination's status and sense begin
    assert result.sense[18] == Status.CHECK_CONDITION
    assert result.sense[19 + 2] == SenseKey.DATA_PROTECT
    assert result.sense[7] == len(result.sense) - 8
    pair.source.mode.descriptor_sense = True
    result = await pair.copy(parameters(GOOD_SEGMENT), DEVICE_FAILURE)
    assert bytes((0x0C, 20, 2, Status.CHECK_CONDITION, 0x70)) in result.sense
    await pair.copy(parameters(segment(1, 0, 1, 0, 0)))  # but it can be read


async def test_reservations_of_both_ends_are_kept():
    pair = Pair()
    reserve = "5f 01 01 00 00 00 00 00 18 00"  # write exclusive
    key = (7).to_bytes(8, "big") + bytes(16)
    other = Host(pair.target, 2)
    await other.send("5f 00 00 00 00 00 00 00 18 00", bytes(8) + key[:8] + bytes(8))
    await other.send(reserve, key)
    result = await pair.copy(parameters(GOOD_SEGMENT), DEVICE_FAILURE)
    assert (result.sense[9], result.sense[18]) == (18, Status.RESERVATION_CONFLICT)
    await pair.copy(parameters(segment(1, 0, 1, 0, 0)))
    mine = Host(pair.target)  # the same initiator's session with the destination registers
    await mine.send("5f 00 00 00 00 00 00 00 18 00", bytes(8) + key[:8] + bytes(8))
    await pair.copy(parameters(GOOD_SEGMENT), DEVICE_FAILURE)
    await other.send("5f 02 01 00 00 00 00 00 18 00", key)  # release
    await mine.send(reserve, key)
    await pair.copy(parameters(GOOD_SEGMENT))


async def test_the_command_itself_conflicts_with_a_reservation_of_the_receiving_unit():
    pair = Pair()
    await Host(pair.source, 2).send("16 00 00 00 00 00")
    await pair.copy(parameters(GOOD_SEGMENT), RESERVATION_CONFLICT)


async def test_a_unit_without_an_active_way_is_no_end():
    pair = Pair()
    mine = Host(pair.target)
    await change_states(pair.target, {1: AccessState.STANDBY})
    result = await pair.copy(parameters(GOOD_SEGMENT), DEVICE_FAILURE)
    assert SenseKey.NOT_READY in result.sense[18:]
    pair.target.detach(mine.nexus)  # nor when the initiator is not logged in by that way
    await pair.copy(parameters(GOOD_SEGMENT), DEVICE_FAILURE)
    await change_states(pair.target, {1: AccessState.ACTIVE_NON_OPTIMIZED})
    await pair.copy(parameters(GOOD_SEGMENT))


async def test_an_ejected_medium_is_no_source():
    pair = Pair(removable=True)
    pair.source.set_loaded(False, by=pair.host.nexus)
    result = await pair.copy(parameters(GOOD_SEGMENT), DEVICE_FAILURE)
    assert (result.sense[8], result.sense[19 + 2]) == (18, SenseKey.NOT_READY)


async def test_access_withdrawn_in_the_middle_ends_the_copy_there():
    pair = Pair(blocks=4096)
    started = pair.target.device
    original = started.write

    async def write(offset, data, *, fua=False):
        await original(offset, data, fua=fua)
        pair.reached.remove(pair.target)

    started.write = write
    result = await pair.copy(parameters(segment(0, 1, 2048, 0, 0)), NOT_REACHABLE)
    assert result.sense[0] & 0x80
    assert int.from_bytes(result.sense[3:7], "big") == 2048 - 1024  # blocks that are not in place
    assert started.data[1024 * 512 : 1024 * 512 + 2] == bytes((2, 0))


# -- errors of the devices


@pytest.mark.parametrize(("side", "name"), [("source", "read"), ("target", "write"), ("target", "flush")])
async def test_an_error_of_a_device_is_forwarded_from_its_end(side, name):
    pair = Pair(write_cache=name != "flush")
    getattr(pair, side).device.errors[name] = MediumError("broken")
    result = await pair.copy(parameters(GOOD_SEGMENT), DEVICE_FAILURE)
    assert result.sense[8 if side == "source" else 9] == 18
    assert result.sense[19 + 2] == SenseKey.MEDIUM_ERROR


async def test_without_write_cache_the_copy_is_on_the_medium_when_it_ends():
    pair = Pair(write_cache=False)
    await pair.copy(parameters(segment(0, 1, 600, 0, 0)))
    assert pair.target.device.calls[-1][0] == "flush"


# -- what is told of it


async def status(host: Host, list_id: int = 1, expect: Expect = GOOD) -> bytes:
    return bytes((await host.send(f"84 00 {list_id:02x} {'00' * 7} 00000400 00 00", expect=expect)).data_in)


async def details(host: Host, list_id: int = 1, expect: Expect = GOOD, allocation: int = 1024) -> bytes:
    cdb = f"84 04 {list_id:02x} {'00' * 7} {allocation:08x} 00 00"
    return bytes((await host.send(cdb, expect=expect)).data_in)


async def test_the_status_of_a_copy_is_told_once():
    pair = Pair()
    await status(pair.host, expect=INVALID_FIELD_IN_CDB)
    await pair.copy(parameters(segment(0, 1, 3, 0, 0), segment(1, 0, 2, 0, 0)))
    assert await status(pair.host, 2, INVALID_FIELD_IN_CDB) == b""
    assert await status(pair.host) == bytes.fromhex("00000008 01 0002 00 00000a00")
    await status(pair.host, expect=INVALID_FIELD_IN_CDB)


async def test_without_list_identifier_nobody_can_ask():
    pair = Pair()
    await pair.copy(parameters(GOOD_SEGMENT, list_id=0, usage=3))
    await status(pair.host, 0, INVALID_FIELD_IN_CDB)


async def test_an_operation_belongs_to_its_nexus():
    pair = Pair()
    await pair.copy(parameters(GOOD_SEGMENT))
    await status(Host(pair.source, 2), expect=INVALID_FIELD_IN_CDB)


async def test_failed_segment_details_are_the_sense_of_the_copy():
    pair = Pair()
    await pair.copy(parameters(GOOD_SEGMENT))
    assert await details(pair.host) == bytes(4)
    failed = await pair.copy(parameters(GOOD_SEGMENT, segment(0, 7, 1, 0, 0)), copy_aborted(0x0804))
    assert await status(pair.host) == bytes.fromhex("00000008 02 0002 00 00000200")
    told = await details(pair.host)
    assert told[:4] == (len(told) - 4).to_bytes(4, "big")
    assert told[4:56] == bytes(52)
    assert told[56:60] == bytes((Status.CHECK_CONDITION, 0, 0, len(failed.sense)))
    assert told[60:] == failed.sense
    await details(pair.host, expect=INVALID_FIELD_IN_CDB)


async def test_an_allocation_length_of_zero_discards_the_details():
    pair = Pair()
    await pair.copy(parameters(segment(0, 7, 1, 0, 0)), copy_aborted(0x0804))
    await details(pair.host, allocation=8)
    await details(pair.host, allocation=0)
    await details(pair.host, expect=INVALID_FIELD_IN_CDB)


async def test_no_data_is_held():
    pair = Pair()
    await pair.copy(parameters(GOOD_SEGMENT))
    assert await pair.host.data(f"84 01 01 {'00' * 7} 00000400 00 00") == bytes(4)


async def test_operating_parameters():
    assert await Pair().host.data(f"84 03 {'00' * 8} 00000400 00 00") == bytes.fromhex(
        "0000002a 01 000000 0010 0040 00000900 01fffe00 00000000 00000000 00000000 0000 0010 10 09 00 00 000000 02 02e4"
    )


async def test_only_the_latest_operations_are_known():
    pair = Pair()
    for list_id in range(70):
        await pair.copy(parameters(GOOD_SEGMENT, list_id=list_id))
    assert sorted(pair.host.nexus.copies) == list(range(6, 70))


async def test_a_reset_forgets_them():
    pair = Pair()
    await pair.copy(parameters(GOOD_SEGMENT))
    pair.source.reset()
    pair.host.nexus.take_unit_attention()
    await status(pair.host, expect=INVALID_FIELD_IN_CDB)


# -- in progress


class Slow(Pair):
    """The destination's writes wait for ``gate``; two pieces are copied."""

    def __init__(self) -> None:
        super().__init__(blocks=4096)
        self.gate = self.target.device.gate = asyncio.Event()
        self.aborted = False
        data = parameters(segment(0, 1, 2048, 0, 0))
        cdb = bytes.fromhex(f"83 00 {'00' * 8} {len(data):08x} 00 00")
        command = ScsiCommand(cdb, memoryview(data), 0, None, lambda: self.aborted)
        self.task = asyncio.create_task(self.source.execute(self.host.nexus, command))

    async def begun(self) -> None:
        await self.target.device.called.wait()

    def pieces(self) -> int:
        return sum(name == "write" for name, _, _ in self.target.device.calls)


async def test_a_copy_in_progress_is_told_as_such_and_its_identifier_is_taken():
    pair = Slow()
    await pair.begun()
    assert (await status(pair.host))[4:8] == bytes.fromhex("00 0001 00")
    await details(pair.host, expect=INVALID_FIELD_IN_CDB)
    await pair.copy(parameters(GOOD_SEGMENT), illegal(0x0016))
    word = await pair.host.data("84 05 00000001 00000000 00000400 00 00")
    assert word[4:6] == bytes((0x00, 0x11))
    pair.gate.set()
    assert (await pair.task).status == Status.GOOD
    assert pair.target.device.data[: 2048 * 512] == pair.source.device.data[: 2048 * 512]
    word = await pair.host.data("84 05 00000001 00000000 00000400 00 00")
    assert word == bytes.fromhex("0000001c 00 01 0002 fffffffe 00 00 00 00 0000000000100000 0001 000000000000")


async def test_an_aborted_command_writes_no_further_piece():
    pair = Slow()
    await pair.begun()
    pair.aborted = True
    pair.gate.set()
    await pair.task
    assert pair.pieces() == 1
    assert (await pair.host.data("84 05 00000001 00000000 00000400 00 00"))[4:6] == bytes((0x00, 0x60))


async def test_copy_operation_abort_ends_the_command_and_waits_for_its_last_piece():
    pair = Slow()
    await pair.begun()
    abort = asyncio.create_task(pair.host.send("83 1c 00000001 00000000 00000000 00 00"))
    await asyncio.sleep(0)
    assert not abort.done()
    pair.gate.set()
    await abort
    assert sense_of(await pair.task) == (SenseKey.COPY_ABORTED, 0x2F02)
    assert pair.pieces() == 1
    await pair.host.send("83 1c 00000001 00000000 00000000 00 00", expect=INVALID_FIELD_IN_CDB)


async def test_compare_and_write_waits_for_the_piece_and_sees_it_whole():
    pair = Slow()
    await pair.begun()
    other = Host(pair.target, 2)
    copied = bytes(pair.source.device.data[600 * 512 : 601 * 512])
    swap = asyncio.create_task(other.send(f"89 00 {600:016x} 000000 01 00 00", copied + b"N" * 512))
    await asyncio.sleep(0)
    assert pair.target.write_order.exclusive_count == 1
    pair.gate.set()
    await swap
    assert (await pair.task).status == Status.GOOD
    assert pair.target.device.data[600 * 512 : 601 * 512] == b"N" * 512
    assert pair.target.device.data[601 * 512 : 2048 * 512] == pair.source.device.data[601 * 512 : 2048 * 512]


async def test_only_so_many_copies_of_one_initiator_run_at_once():
    pair = Pair(blocks=4096)
    gate = pair.target.device.gate = asyncio.Event()
    other = Host(pair.source, 2)

    def begin(host: Host, number: int):
        data = parameters(GOOD_SEGMENT, list_id=number)
        return asyncio.create_task(host.send(f"83 00 {'00' * 8} {len(data):08x} 00 00", data, None))

    running = [begin(pair.host, number) for number in range(17)]
    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    running.append(begin(other, 0))
    gate.set()
    results = [(await task).status for task in running]
    assert results == [Status.GOOD] * 16 + [Status.TASK_SET_FULL, Status.GOOD]
