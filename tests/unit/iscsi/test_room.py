"""Room for data of commands in progress: shared by all sessions, and never denied to a session's one task."""

from __future__ import annotations

import asyncio

import pytest

from iscsi import room
from iscsi.room import Room, SharedRoom
from iscsi.scsi.command import Status
from iscsi.session import SessionTable
from iscsi.wire import responses
from tests.support.iscsi_link import WRITE_10, Link, cdb, make_registry, make_unit
from tests.support.memory_device import MemoryDevice

BLOCKS = 4096
FUA = 0x08


def test_a_session_has_its_limit_and_one_task_may_exceed_it():
    mine = Room(100, SharedRoom())
    assert mine.take("a", 500)
    assert not mine.take("b", 1)
    mine.give_back("a")
    mine.give_back("a")
    assert mine.take("b", 60)
    assert not mine.take("c", 50)
    assert mine.take("c", 40)
    assert mine.take("b", 10), "less is always possible"
    assert mine.take("c", 90)
    assert mine.take("d", 50, anyway=True)


def test_all_sessions_have_theirs_together(monkeypatch):
    monkeypatch.setattr(room, "MAX_SHARED_BYTES", 100)
    shared = SharedRoom()
    greedy, good = Room(1000, shared), Room(1000, shared)
    assert greedy.take("a", 100)
    assert good.take("x", 20), "its only one"
    assert not good.take("y", 1)
    greedy.give_back("a")
    assert good.take("y", 80)
    for name in "xy":
        good.give_back(name)
    assert shared.held == 0


def fua_write(link, lba, blocks, *, sent=0, **fields):
    """A write that is gathered: FUA does not stream. ``sent``: bytes of immediate data."""
    command = cdb(WRITE_10, lba, blocks, flags=FUA)
    return link.command(command, write=blocks * 512, data=b"x" * sent, **fields)


async def connect(registry, table, isid, **keys):
    link = Link(registry, table, isid=isid)
    await link.log_in(**keys)
    await link.clear_attention()
    return link


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(room, "MAX_SHARED_BYTES", 64 * 512)


async def test_sessions_that_keep_data_leave_each_other_one_command(small):
    device = MemoryDevice(BLOCKS * 512)
    registry, table = make_registry(make_unit(device)), SessionTable()
    keys = {"ImmediateData": "No", "InitialR2T": "Yes"}
    greedy, good = await connect(registry, table, 1, **keys), await connect(registry, table, 2, **keys)
    asked = await greedy.exchange(*(fua_write(greedy, 0, 32) for _ in range(10)))
    assert len(asked) == 2, "64 blocks are all there is"
    writes = [fua_write(good, 100 + number, 1) for number in range(5)]
    (r2t,) = await good.exchange(*writes)
    for write in writes:
        assert r2t.itt == write.itt
        response, *more = await good.exchange(good.data_out(write.itt, b"y" * 512, 0, ttt=r2t.ttt))
        assert response.status == Status.GOOD
        r2t = more[0] if more else None
    assert r2t is None
    assert bytes(device.data[100 * 512 : 105 * 512]) == b"y" * 5 * 512
    greedy.connection.lost()
    await greedy.settle()
    assert table.gathering.held == 0
    assert len(await good.exchange(*(fua_write(good, 0, 16) for _ in range(10)))) == 4


async def test_unsolicited_data_without_room_is_answered_task_set_full(small):
    registry, table = make_registry(make_unit(MemoryDevice(BLOCKS * 512))), SessionTable()
    link = await connect(registry, table, 1, InitialR2T="No", FirstBurstLength="16384")
    answers = await link.exchange(*(fua_write(link, 0, 64, sent=512, final=False) for _ in range(4)))
    assert [(type(pdu), pdu.status) for pdu in answers] == [(responses.ScsiResponsePdu, Status.TASK_SET_FULL)] * 2


async def test_commands_that_hold_a_first_burst_each_do_not_wait_for_one_another(small):
    """Both fill the shared room with their first bursts and want more: one may go on, then the other."""
    device = MemoryDevice(BLOCKS * 512)
    registry, table = make_registry(make_unit(device)), SessionTable()
    link = await connect(registry, table, 1, InitialR2T="No", FirstBurstLength="16384")
    writes = [fua_write(link, lba, 64, sent=512, final=False) for lba in (0, 64)]
    assert await link.exchange(*writes) == []
    (r2t,) = await link.exchange(*(link.data_out(write.itt, b"y" * 15872, 512) for write in writes))
    assert r2t.itt == writes[0].itt
    response, r2t = await link.exchange(link.data_out(writes[0].itt, b"y" * 16384, 16384, ttt=r2t.ttt))
    assert (response.itt, response.status, r2t.itt) == (writes[0].itt, Status.GOOD, writes[1].itt)
    (response,) = await link.exchange(link.data_out(writes[1].itt, b"y" * 16384, 16384, ttt=r2t.ttt))
    assert response.status == Status.GOOD
    assert table.gathering.held == table.executing.held == 0


async def test_answers_that_have_not_left_keep_their_room(small):
    """Reads by workers: no more are executed than the peer takes the answers of."""
    device = MemoryDevice(BLOCKS * 512)
    registry, table = make_registry(make_unit(device)), SessionTable()
    link = await connect(registry, table, 1)
    link.feed(b"".join(link.framer.encode(link.read(block * 32, 32)) for block in range(6)))
    for running in list(link.tasks):
        await running
    link.start_work()
    await asyncio.sleep(0)
    assert len(device.calls) == 2, "64 blocks are all there is, and they are on their way out"
    assert table.executing.held == 64 * 512
    await link.settle()
    assert sum(pdu.status == Status.GOOD for pdu in link.received()) == 6
    assert table.executing.held == 0
