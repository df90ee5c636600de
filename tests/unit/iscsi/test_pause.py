"""A paused target: commands wait and nothing fails; everything else is answered. Bytes in, bytes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from iscsi.scsi.command import Status
from iscsi.session import WINDOW, SessionTable
from iscsi.wire import requests, responses
from iscsi.wire.opcodes import LogoutReason, TaskFunction, TaskResponse
from tests.support.iscsi_link import TARGET, Link, make_registry, make_unit
from tests.support.memory_device import MemoryDevice

if TYPE_CHECKING:
    from iscsi.target import Target

BLOCKS = 4096


def pattern(blocks: int) -> bytes:
    return b"".join(number.to_bytes(8, "big") * 64 for number in range(1, blocks + 1))


async def connect(*, device_is_fast=True, fast=True) -> tuple[Link, MemoryDevice, Target]:
    """A logged-in link, its device and its target; sessions learn of the target's changes, as the server tells them."""
    device = MemoryDevice(BLOCKS * 512, fast=device_is_fast)
    table = SessionTable()
    registry = make_registry(make_unit(device))
    registry.subscribe(lambda *_: [session.connection.service_changed() for session in table])
    link = Link(registry, table, fast=fast)
    await link.log_in(InitialR2T="No")
    await link.clear_attention()
    target = registry.find(TARGET)
    assert target is not None
    return link, device, target


@pytest.fixture(params=[(True, True), (True, False), (False, False)], ids=["fast", "plain", "workers"])
async def linked(request):
    fast, device_is_fast = request.param
    return await connect(device_is_fast=device_is_fast, fast=fast)


async def test_a_paused_target_holds_commands_and_serves_them_in_order_afterwards(linked):
    link, device, target = linked
    target.pause()
    write, read = link.write(0, pattern(8)), link.read(0, 8)
    assert await link.exchange(write) == []
    assert await link.exchange(read) == []
    assert bytes(device.data[: 8 * 512]) == bytes(8 * 512), "nothing touches the device"
    target.resume()
    await link.settle()
    answers = link.received()
    assert {pdu.itt: pdu.status for pdu in answers} == {write.itt: Status.GOOD, read.itt: Status.GOOD}
    assert device.data[: 8 * 512] == pattern(8)
    (data_in,) = await link.exchange(link.read(0, 8))
    assert data_in.data == pattern(8)
    assert link.connection.session.max_cmd_sn == link.cmd_sn + WINDOW - 1


async def test_pings_life_signs_and_aborts_are_answered_while_paused(linked):
    link, device, target = linked
    target.pause()
    write = link.write(0, pattern(1))
    assert await link.exchange(write) == []
    (pong,) = await link.exchange(requests.NopOut(77, link.cmd_sn, 0, immediate=True, data=b"ping"))
    assert (type(pong), pong.data) == (responses.NopIn, b"ping")
    (ready,) = await link.exchange(link.command(bytes(6)))
    assert ready.status == Status.GOOD
    abort = requests.TaskManagementRequest(
        link.next_itt(), TaskFunction.ABORT_TASK, link.cmd_sn, 0, lun=0, referenced_task_tag=write.itt
    )
    link.cmd_sn += 1
    (done,) = await link.exchange(abort)
    assert done.response == TaskResponse.FUNCTION_COMPLETE
    target.resume()
    await link.settle()
    assert link.received() == []
    assert device.data[:512] == bytes(512), "an aborted command is never served"


async def test_a_paused_target_asks_for_no_data(linked):
    link, device, target = linked
    target.pause()
    write = link.write(0, pattern(32), sent=4096)
    assert await link.exchange(write) == []
    target.resume()
    await link.settle()
    (r2t,) = link.received()
    assert (r2t.buffer_offset, r2t.desired_length) == (4096, 12288)
    (done,) = await link.exchange(link.data_out(write.itt, pattern(32)[4096:], 4096, ttt=r2t.ttt))
    assert done.status == Status.GOOD
    assert device.data[: 32 * 512] == pattern(32)


async def test_a_solicited_burst_under_way_when_the_pause_begins_is_held(linked):
    link, device, target = linked
    data = pattern(32)
    write = link.write(0, data, sent=0)
    (r2t,) = await link.exchange(write)
    target.pause()
    assert await link.exchange(link.data_out(write.itt, data, 0, ttt=r2t.ttt)) == []
    assert bytes(device.data[: 32 * 512]) == bytes(32 * 512)
    target.resume()
    await link.settle()
    (done,) = link.received()
    assert done.status == Status.GOOD
    assert device.data[: 32 * 512] == data


async def test_who_logs_in_while_the_target_is_paused_is_held_too():
    link, _, target = await connect()
    target.pause()
    other = Link(link.registry, link.table, isid=2)
    await other.log_in(InitialR2T="No")
    await other.clear_attention()
    read = other.read(0, 1)
    assert await other.exchange(read) == []
    logout = requests.LogoutRequest(other.next_itt(), LogoutReason.CLOSE_SESSION, 0, other.cmd_sn, 0)
    (logged_out,) = await other.exchange(logout)
    assert logged_out.response == 0, "a held command does not hold up a logout"
    assert await link.exchange(link.read(0, 1)) == []
    target.resume()
    await link.settle()
    assert [pdu.status for pdu in link.received()] == [Status.GOOD]


async def test_commands_beyond_the_window_are_not_kept_while_paused(linked):
    link, _, target = linked
    target.pause()
    assert await link.exchange(*[link.read(number, 1) for number in range(WINDOW + 20)]) == []
    assert len(link.connection.session.tasks) == WINDOW
    target.resume()
    await link.settle()
    assert len(link.received()) == WINDOW
