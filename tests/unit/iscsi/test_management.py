"""Task management: what ends, who is told, what the answer waits for. Requests and responses are literal bytes."""

from __future__ import annotations

import asyncio

import pytest

from iscsi.management import MAX_PENDING
from iscsi.scsi.command import Status
from iscsi.session import SessionTable
from iscsi.target import Target
from iscsi.wire import requests
from iscsi.wire.opcodes import RejectReason
from tests.support.iscsi_link import INITIATOR, TARGET, Link, make_registry, make_unit
from tests.support.memory_device import MemoryDevice

BLOCKS = 4096
ABORT_TASK, ABORT_TASK_SET, CLEAR_ACA, CLEAR_TASK_SET, LUN_RESET, WARM_RESET, COLD_RESET, REASSIGN = range(1, 9)
QUERY_TASK = 9
COMPLETE, NO_TASK, NO_LUN, STILL_ALLEGIANT, NO_REASSIGNMENT, NOT_SUPPORTED = range(6)
TAG = 0xABCD0000  # of the functions themselves
NO_TAG = 0xFFFFFFFF


def pattern(blocks: int) -> bytes:
    return b"".join(number.to_bytes(8, "big") * 64 for number in range(blocks))


async def connect(registry, table=None, *, isid=1, **keys):
    link = Link(registry, table, isid=isid)
    await link.log_in(**keys)
    await link.clear_attention()
    return link


def word(value: int) -> bytes:
    return value.to_bytes(4, "big")


def function(link, code, task=NO_TAG, *, lun=0, cmd_sn=None, ref_cmd_sn=0, tag=TAG, immediate=True) -> bytes:
    """A Task Management Function Request (RFC 7143 section 11.5), byte by byte."""
    cmd_sn = link.cmd_sn if cmd_sn is None else cmd_sn
    if not immediate:
        link.cmd_sn += 1
    return (
        bytes((0x42 if immediate else 0x02, 0x80 | code, 0, 0, 0, 0, 0, 0))
        + lun.to_bytes(2, "big")
        + bytes(6)
        + word(tag)
        + word(task)
        + word(cmd_sn)
        + word(0)  # ExpStatSN
        + word(ref_cmd_sn)
        + bytes(12)  # ExpDataSN, reserved
    )


def answer(link) -> int:
    """The code in the one Task Management Function Response (section 11.6) that has come, its other bytes checked."""
    link.collect()
    raw = bytes(link.sent)
    session = link.connection.session
    assert raw[:2] == b"\x22\x80"
    assert raw[3:16] == bytes(13)
    assert raw[16:20] == word(TAG)
    assert raw[24:36] == word(link.connection.stat_sn - 1) + word(session.exp_cmd_sn) + word(session.max_cmd_sn)
    assert raw[36:] == bytes(12)
    link.sent.clear()
    return raw[2]


async def perform(link, code, task=NO_TAG, **fields) -> int:
    link.feed(function(link, code, task, **fields))
    await link.settle()
    return answer(link)


async def attention_of(link, lun=0) -> int | None:
    """ASC and ASCQ of the unit attention that the next command meets; None if it is GOOD."""
    (response,) = await link.exchange(link.read(0, 1, lun=lun))
    if response.status == Status.GOOD:
        return None
    assert response.sense[2] & 0xF == 0x6
    return int.from_bytes(response.sense[12:14], "big")


def one_disk(**options):
    device = MemoryDevice(BLOCKS * 512, **options)
    return make_registry(make_unit(device)), device


@pytest.mark.parametrize(
    ("code", "lun", "expected"),
    [
        (ABORT_TASK, 0, NO_TASK),
        (ABORT_TASK, 5, NO_LUN),
        (ABORT_TASK_SET, 0, COMPLETE),
        (ABORT_TASK_SET, 5, NO_LUN),
        (CLEAR_ACA, 0, NOT_SUPPORTED),
        (CLEAR_TASK_SET, 0, COMPLETE),
        (CLEAR_TASK_SET, 5, NO_LUN),
        (LUN_RESET, 0, COMPLETE),
        (LUN_RESET, 5, NO_LUN),
        (WARM_RESET, 0, COMPLETE),
        (REASSIGN, 0, NO_REASSIGNMENT),
        (QUERY_TASK, 0, NOT_SUPPORTED),
        (0, 0, NOT_SUPPORTED),
        (0x7F, 0, NOT_SUPPORTED),
    ],
)
@pytest.mark.parametrize("immediate", [True, False])
async def test_what_each_function_is_answered_with(code, lun, expected, immediate):
    link = await connect(one_disk()[0])
    assert await perform(link, code, lun=lun, immediate=immediate) == expected
    assert link.connection.session.exp_cmd_sn == link.cmd_sn


@pytest.mark.parametrize("code", [ABORT_TASK, ABORT_TASK_SET, CLEAR_TASK_SET, LUN_RESET, WARM_RESET, COLD_RESET])
async def test_the_answer_waits_for_the_worker_and_the_task_stays_unanswered(code):
    registry, device = one_disk()
    link = await connect(registry)
    device.gate = asyncio.Event()
    write = link.write(0, pattern(8))
    link.feed(link.framer.encode(write))
    await device.called.wait()
    link.feed(function(link, code, write.itt))
    await asyncio.sleep(0)
    assert link.received() == [], "the write may still land"
    device.gate.set()
    await link.settle()
    assert bytes(device.data[:4096]) == pattern(8), "it landed before the answer"
    assert answer(link) == COMPLETE


@pytest.mark.parametrize("code", [ABORT_TASK, ABORT_TASK_SET, CLEAR_TASK_SET, LUN_RESET, WARM_RESET])
async def test_data_that_comes_after_the_answer_lands_nowhere(code):
    registry, device = one_disk(fast=True)
    link = await connect(registry, ImmediateData="No", InitialR2T="Yes")
    write = link.write(0, pattern(8), sent=0)
    (r2t,) = await link.exchange(write)
    assert await perform(link, code, write.itt) == COMPLETE
    assert await link.exchange(link.data_out(write.itt, pattern(8), 0, ttt=r2t.ttt)) == []
    assert bytes(device.data[:4096]) == bytes(4096)
    session = link.connection.session
    assert session.max_cmd_sn - session.exp_cmd_sn == 127, "the window is whole again"


async def test_abort_task_ends_that_task_alone():
    registry, device = one_disk()
    link = await connect(registry)
    device.gate = asyncio.Event()
    reads = [link.read(block, 1) for block in range(3)]
    link.feed(b"".join(map(link.framer.encode, reads)))
    await asyncio.sleep(0)
    link.feed(function(link, ABORT_TASK, reads[1].itt, ref_cmd_sn=reads[1].cmd_sn))
    device.gate.set()
    await link.settle()
    assert sorted(pdu.itt for pdu in link.received()) == sorted([reads[0].itt, reads[2].itt, TAG])


async def test_abort_task_names_the_lun_too():
    registry = make_registry(make_unit(MemoryDevice(4096)), make_unit(device := MemoryDevice(4096), 2))
    link = await connect(registry)
    await attention_of(link, lun=1)
    device.gate = asyncio.Event()
    read = link.read(0, 1, lun=1)
    link.feed(link.framer.encode(read))
    await asyncio.sleep(0)
    link.feed(function(link, ABORT_TASK, read.itt, lun=0))
    assert answer(link) == NO_TASK
    device.gate.set()
    await link.settle()
    assert [pdu.itt for pdu in link.received()] == [read.itt]


async def test_a_command_aborted_before_it_came_counts_as_received():
    """RFC 7143 section 11.6.1, case b: RefCmdSN is in the window and before the function's own CmdSN."""
    registry, device = one_disk(fast=True)
    link = await connect(registry)
    session = link.connection.session
    first = link.cmd_sn
    assert await perform(link, ABORT_TASK, 0x777, cmd_sn=first + 3, ref_cmd_sn=first + 1) == COMPLETE
    assert (session.exp_cmd_sn, session.is_fast()) == (first, False)
    (good,) = await link.exchange(link.read(0, 1))
    assert good.status == Status.GOOD
    assert session.exp_cmd_sn == first + 2, "the number is passed over"
    assert session.is_fast()
    late = link.write(0, pattern(1))
    assert late.cmd_sn == first + 1
    assert await link.exchange(late) == [], "the aborted command comes late: ignored"
    assert bytes(device.data[:512]) == bytes(512)
    assert await perform(link, ABORT_TASK, 0x778, cmd_sn=first + 3, ref_cmd_sn=first + 2) == COMPLETE
    assert session.exp_cmd_sn == first + 3
    assert session.max_cmd_sn == first + 3 + 127
    link.cmd_sn = first + 3
    (good,) = await link.exchange(link.read(0, 1))
    assert good.status == Status.GOOD


async def test_a_late_command_of_a_number_not_yet_reached_is_ignored_as_well():
    link = await connect(one_disk(fast=True)[0])
    first = link.cmd_sn
    assert await perform(link, ABORT_TASK, 0x777, cmd_sn=first + 3, ref_cmd_sn=first + 1) == COMPLETE
    assert await link.exchange(link.read(0, 1, cmd_sn=first + 1)) == []
    link.cmd_sn = first
    (good,) = await link.exchange(link.read(0, 1))
    assert good.status == Status.GOOD


@pytest.mark.parametrize("ref", [-1, -100, 3, 128, 1 << 31])
async def test_a_number_outside_of_the_window_or_not_before_the_function_names_no_task(ref):
    """Case c; and an immediate task's abort carries the function's own CmdSN."""
    link = await connect(one_disk()[0])
    now = link.cmd_sn
    assert await perform(link, ABORT_TASK, 0x777, cmd_sn=now + 3, ref_cmd_sn=now + ref & 0xFFFFFFFF) == NO_TASK
    assert link.connection.session.exp_cmd_sn == now


async def test_a_flood_of_aborts_ahead_keeps_the_window():
    link = await connect(one_disk(fast=True)[0])
    first = link.cmd_sn
    for number in [*range(1, 127), *range(1, 127)]:
        assert await perform(link, ABORT_TASK, 0x777, cmd_sn=first + 127, ref_cmd_sn=first + number) == COMPLETE
    session = link.connection.session
    assert session.max_cmd_sn - session.exp_cmd_sn == 127
    (good,) = await link.exchange(link.read(0, 1))
    assert good.status == Status.GOOD
    assert session.exp_cmd_sn == first + 127
    assert session.max_cmd_sn - session.exp_cmd_sn == 127


async def test_functions_that_wait_are_bounded():
    registry, device = one_disk()
    link = await connect(registry)
    device.gate = asyncio.Event()
    link.feed(link.framer.encode(link.write(0, pattern(1))))
    await device.called.wait()
    for tag in range(MAX_PENDING):
        link.feed(function(link, ABORT_TASK_SET, tag=tag))
    await asyncio.sleep(0)
    assert link.received() == []
    link.feed(function(link, ABORT_TASK_SET, tag=MAX_PENDING))
    (reject,) = link.received()
    assert reject.reason == RejectReason.TOO_MANY_IMMEDIATE_COMMANDS
    device.gate.set()
    await link.settle()
    assert sorted(pdu.itt for pdu in link.received()) == list(range(MAX_PENDING))
    assert await perform(link, ABORT_TASK_SET) == COMPLETE


async def several():
    """Two sessions of one target, one of a second target with the same disk, one of a third with another disk."""
    shared, alone = make_unit(MemoryDevice(BLOCKS * 512)), make_unit(MemoryDevice(BLOCKS * 512), 2)
    registry, table = make_registry(shared), SessionTable()
    for name, unit in (("-second", shared), ("-third", alone)):
        target = Target(TARGET + name)
        target.map_lun(0, unit)
        registry.add(target)
    links = [
        await connect(registry, table, isid=isid, TargetName=TARGET + name)
        for isid, name in enumerate(("", "", "-second", "-third"), 1)
    ]
    return shared, links


@pytest.mark.parametrize("code", [LUN_RESET, WARM_RESET])
async def test_a_reset_is_told_to_every_nexus_of_the_unit_and_to_no_other(code):
    _, links = await several()
    links[1].connection.nexus(0).prevents_removal = True
    assert await perform(links[0], code) == COMPLETE
    assert [await attention_of(link) for link in links] == [0x2903, 0x2903, 0x2903, None]
    assert [await attention_of(link) for link in links] == [None] * 4
    assert not links[1].connection.nexus(0).prevents_removal


async def test_clear_task_set_tells_those_that_lost_a_task():
    unit, links = await several()
    unit.device.gate = asyncio.Event()
    for link in links[1:3]:
        link.feed(link.framer.encode(link.read(0, 1)))
    await asyncio.sleep(0)
    links[0].feed(function(links[0], CLEAR_TASK_SET))
    await asyncio.sleep(0)
    assert links[0].received() == []
    unit.device.gate.set()
    for link in links:
        await link.settle()
    assert answer(links[0]) == COMPLETE
    assert [link.received() for link in links[1:]] == [[], [], []], "no answer for what was ended (TAS=0)"
    assert [await attention_of(link) for link in links] == [None, 0x2F00, 0x2F00, None]


async def test_abort_task_set_leaves_the_others_tasks_alone():
    unit, links = await several()
    unit.device.gate = asyncio.Event()
    reads = [link.read(0, 1) for link in links[:2]]
    for link, read in zip(links, reads, strict=False):
        link.feed(link.framer.encode(read))
    await asyncio.sleep(0)
    links[0].feed(function(links[0], ABORT_TASK_SET))
    unit.device.gate.set()
    for link in links[:2]:
        await link.settle()
    assert answer(links[0]) == COMPLETE
    assert [pdu.itt for pdu in links[1].received()] == [reads[1].itt]
    assert await attention_of(links[1]) is None


async def test_a_cold_reset_ends_the_targets_sessions_and_no_others():
    _, links = await several()
    assert await perform(links[0], COLD_RESET) == COMPLETE
    assert [link.connection.closing for link in links] == [True, True, False, False]
    assert [await attention_of(link) for link in links[2:]] == [0x2903, None]


async def test_a_reset_does_not_reach_a_lun_that_is_masked_from_who_asks():
    registry, table = make_registry(make_unit(MemoryDevice(4096)), make_unit(MemoryDevice(4096), 2)), SessionTable()
    registry.find(TARGET).mask_lun(1, [INITIATOR + "-other"])
    mine = await connect(registry, table, isid=1)
    other = await connect(registry, table, isid=2, InitiatorName=INITIATOR + "-other")
    await attention_of(other, lun=1)
    assert await perform(mine, WARM_RESET) == COMPLETE
    assert await perform(mine, LUN_RESET, lun=1) == NO_LUN
    assert (await attention_of(other), await attention_of(other, lun=1)) == (0x2903, None)


async def test_a_discovery_session_has_no_task_management():
    link = Link(one_disk()[0])
    await link.log_in(session_type="Discovery")
    link.feed(function(link, ABORT_TASK_SET))
    (reject,) = link.received()
    assert reject.reason == RejectReason.PROTOCOL_ERROR


async def test_logout_during_io_answers_when_no_command_touches_the_medium():
    registry, device = one_disk()
    link = await connect(registry)
    device.gate = asyncio.Event()
    link.feed(link.framer.encode(link.write(0, pattern(1))) + link.framer.encode(link.read(8, 1)))
    await device.called.wait()
    # Logout Request (section 11.14): immediate, reason 0 (close the session), ITT, CID 0, CmdSN, ExpStatSN.
    logout = b"\x46\x80" + bytes(14) + word(TAG) + bytes(4) + word(link.cmd_sn) + bytes(20)
    link.feed(logout + link.framer.encode(requests.NopOut(9, link.cmd_sn, 0)))
    await asyncio.sleep(0)
    assert link.received() == []
    device.gate.set()
    await link.settle()
    raw = bytes(link.sent)
    assert len(raw) == 48, "the commands stay unanswered, what came behind the logout is not served"
    assert raw[:4] == b"\x26\x80\x00\x00", "Logout Response: closed"
    assert raw[16:20] == word(TAG)
    assert raw[40:44] == bytes(4), "Time2Wait and Time2Retain"
    assert link.connection.closing
