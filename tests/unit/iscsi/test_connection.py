"""The connection's core, bytes in and bytes out: commands, data transfer, numbering, task management, bad input."""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise

import pytest

from engine.errors import MediumError
from iscsi.connection import MAX_LOGGED
from iscsi.scsi.command import Status
from iscsi.scsi.sense import Asc
from iscsi.session import WINDOW, SessionTable
from iscsi.target import Portal
from iscsi.wire import requests, responses
from iscsi.wire.opcodes import (
    RESERVED_TAG,
    AsyncEvent,
    LoginStatus,
    LogoutReason,
    RejectReason,
    ResidualFlag,
    TaskFunction,
    TaskResponse,
)
from iscsi.wire.pdu import Framer
from iscsi.wire.text_keys import parse_text
from tests.support.iscsi_link import INITIATOR, READ_16, TARGET, WRITE_16, Link, cdb, data_of, make_registry, make_unit
from tests.support.memory_device import MemoryDevice

BLOCKS = 4096
SENSE_KEY_AND_CODE = slice(2, 14)


def pattern(blocks: int, seed: int = 1) -> bytes:
    return b"".join(((seed << 32) + number).to_bytes(8, "big") * 64 for number in range(blocks))


async def connect(*, device_is_fast=True, fast=True, table=None, registry=None, isid=1, **keys):
    """A logged-in link and its device."""
    device = MemoryDevice(BLOCKS * 512, fast=device_is_fast)
    link = Link(registry or make_registry(make_unit(device)), table, fast=fast, isid=isid)
    await link.log_in(**({"InitialR2T": "No"} | keys))
    await link.clear_attention()
    return link, device


@pytest.fixture(params=[(True, True), (True, False), (False, False)], ids=["fast", "plain", "workers"])
async def linked(request):
    """A link and its device: on the fast path, on the plain one, and with a device that always would block."""
    fast, device_is_fast = request.param
    return await connect(device_is_fast=device_is_fast, fast=fast)


def management(link, function, itt=RESERVED_TAG, lun=0):
    return requests.TaskManagementRequest(
        link.next_itt(), function, link.cmd_sn, 0, lun=lun << 48, referenced_task_tag=itt
    )


def sense_code(pdu) -> tuple[int, int]:
    return pdu.sense[2] & 0xF, int.from_bytes(pdu.sense[12:14], "big")


# -- reading and writing


async def test_what_is_written_is_read_back(linked):
    link, device = linked
    data = pattern(8)
    (response,) = await link.exchange(link.write(100, data))
    assert isinstance(response, responses.ScsiResponsePdu)
    assert response.status == Status.GOOD
    assert device.data[100 * 512 : 108 * 512] == data
    (data_in,) = await link.exchange(link.read(100, 8, READ_16))
    assert data_in.status == Status.GOOD
    assert data_in.data == data


async def test_numbers_go_up_by_one_per_command_and_status(linked):
    link, _ = linked
    first, second = await link.exchange(link.read(0, 1), link.write(1, pattern(1)))
    assert second.stat_sn == first.stat_sn + 1
    assert link.connection.session.exp_cmd_sn == link.cmd_sn
    assert link.connection.session.max_cmd_sn == link.cmd_sn + WINDOW - 1


async def test_a_long_read_is_cut_at_segments_and_bursts():
    link, device = await connect(MaxRecvDataSegmentLength="8192", MaxBurstLength="20480")
    device.data[: 100 * 512] = pattern(100)
    answers = await link.exchange(link.read(0, 100))
    assert data_of(answers) == pattern(100)
    assert [len(pdu.data) for pdu in answers] == [8192, 8192, 4096, 8192, 8192, 4096, 8192, 2048]
    assert [pdu.final for pdu in answers] == [False, False, True, False, False, True, False, True]
    assert [pdu.data_sn for pdu in answers] == list(range(8))
    assert [pdu.status for pdu in answers] == [None] * 7 + [Status.GOOD]


async def test_a_read_beyond_the_end_is_refused(linked):
    link, _ = linked
    (response,) = await link.exchange(link.read(BLOCKS - 1, 2))
    assert sense_code(response) == (0x5, 0x2100)


async def test_residuals_of_a_read(linked):
    link, _ = linked
    (less,) = await link.exchange(link.command(cdb(0x28, 0, 1), read=1024))
    assert (less.flags, less.residual, len(less.data)) == (ResidualFlag.UNDERFLOW, 512, 512)
    (more,) = await link.exchange(link.command(cdb(0x28, 0, 2), read=512))
    assert (more.flags, more.residual, len(more.data)) == (ResidualFlag.OVERFLOW, 512, 512)


async def test_a_device_error_becomes_sense(linked):
    link, device = linked
    device.errors["read"] = MediumError("bad spot")
    (response,) = await link.exchange(link.read(0, 1))
    assert sense_code(response) == (0x3, 0x1100)
    device.errors = {"write": MediumError("bad spot")}
    (response,) = await link.exchange(link.write(0, pattern(1)))
    assert sense_code(response) == (0x3, 0x0C00)


# -- data from the initiator


async def test_a_write_is_solicited_in_bursts():
    link, device = await connect(MaxBurstLength="16384", FirstBurstLength="4096", InitialR2T="Yes")
    data = pattern(80)
    write = link.write(5, data, WRITE_16, sent=4096)
    (r2t,) = await link.exchange(write)
    sent = 4096
    for number in range(3):
        assert isinstance(r2t, responses.R2T)
        assert (r2t.r2t_sn, r2t.buffer_offset) == (number, sent)
        assert r2t.desired_length == min(16384, len(data) - sent)
        end = sent + r2t.desired_length
        pieces = [
            link.data_out(
                write.itt, data[at : min(at + 5120, end)], at, ttt=r2t.ttt, data_sn=sn, final=at + 5120 >= end
            )
            for sn, at in enumerate(range(sent, end, 5120))
        ]
        (r2t,) = await link.exchange(*pieces)
        sent = end
    assert isinstance(r2t, responses.ScsiResponsePdu)
    assert r2t.status == Status.GOOD
    assert device.data[5 * 512 : 85 * 512] == data


async def test_unsolicited_data_follows_without_being_asked_for(linked):
    link, device = linked
    data = pattern(32)
    write = link.write(0, data, sent=4096, final=False)
    pieces = [
        link.data_out(write.itt, data[4096:8192], 4096, data_sn=0, final=False),
        link.data_out(write.itt, data[8192:], 8192, data_sn=1),
    ]
    (response,) = await link.exchange(write, *pieces)
    assert response.status == Status.GOOD
    assert device.data[: len(data)] == data


async def test_pieces_that_are_no_whole_blocks_are_gathered(linked):
    link, device = linked
    data = pattern(4)
    write = link.write(7, data, sent=512, final=False)
    cuts = [512, 700, 1024, 1500, 2048]
    pieces = [
        link.data_out(write.itt, data[a:b], a, data_sn=sn, final=b == 2048) for sn, (a, b) in enumerate(pairwise(cuts))
    ]
    (response,) = await link.exchange(write, *pieces)
    assert response.status == Status.GOOD
    assert device.data[7 * 512 : 11 * 512] == data


async def test_a_device_that_blocks_half_way_gets_the_rest_from_a_worker():
    link, device = await connect()
    data = pattern(8)
    write = link.write(0, data, sent=2048, final=False)
    assert await link.exchange(write) == []
    device.fast = False
    (response,) = await link.exchange(link.data_out(write.itt, data[2048:], 2048))
    assert response.status == Status.GOOD
    assert (response.flags, response.residual) == (0, 0)
    assert device.data[:4096] == data
    assert ("write", 2048, 2048) in device.calls


async def test_an_error_half_way_is_the_commands_status():
    link, device = await connect()
    write = link.write(0, pattern(8), sent=2048, final=False)
    await link.exchange(write)
    device.errors["write"] = MediumError("bad spot")
    (response,) = await link.exchange(link.data_out(write.itt, pattern(4), 2048))
    assert sense_code(response) == (0x3, 0x0C00)
    assert not link.connection.session.tasks


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"data_sn": 27}, 0x4705),
        ({"offset": 1024}, 0x4705),
        ({"ttt": 99}, 0x4705),
        ({"data": bytes(8192)}, 0x0C0D),
        ({"data": bytes(512)}, 0x0C0D),
    ],
    ids=["DataSN", "offset", "tag", "too much", "too little"],
)
async def test_wrong_data_out_fails_its_command_and_nothing_else(change, code):
    link, _ = await connect(InitialR2T="Yes", ImmediateData="No")
    write = link.write(0, pattern(8), sent=0)
    (r2t,) = await link.exchange(write)
    fields = {"data": pattern(8), "offset": 0, "ttt": r2t.ttt, "data_sn": 0} | change
    (response,) = await link.exchange(link.data_out(write.itt, **fields))
    assert sense_code(response) == (0xB, code)
    assert await link.exchange(link.data_out(write.itt, pattern(8), 0, ttt=r2t.ttt)) == []  # too late: dropped
    (good,) = await link.exchange(link.read(0, 1))
    assert good.status == Status.GOOD


async def test_immediate_data_that_was_not_agreed_fails_the_command():
    link, _ = await connect(ImmediateData="No")
    (response,) = await link.exchange(link.write(0, pattern(1)))
    assert sense_code(response) == (0xB, 0x0C0C)


async def test_a_write_with_fua_is_durable_before_it_is_answered(linked):
    link, device = linked
    data = pattern(1)
    (response,) = await link.exchange(link.command(cdb(0x2A, 3, 1, flags=0x08), write=512, data=data))
    assert response.status == Status.GOOD
    assert device.fua_writes == 1


async def test_a_command_with_too_much_data_is_refused_without_asking_for_it(linked):
    link, _ = linked
    (response,) = await link.exchange(link.command(cdb(WRITE_16, 0, 1 << 20), write=512 << 20))
    assert response.status == Status.CHECK_CONDITION


# -- numbering


async def test_commands_outside_of_the_window_are_ignored(linked):
    link, _ = linked
    for cmd_sn in (link.cmd_sn - 1, link.cmd_sn + WINDOW, link.cmd_sn + 1000):
        assert await link.exchange(link.read(0, 1, cmd_sn=cmd_sn)) == []
        link.cmd_sn -= 1
    assert not link.connection.closing


async def test_the_window_closes_when_commands_pile_up_and_opens_again():
    link, device = await connect(device_is_fast=False)
    device.gate = asyncio.Event()
    reads = [link.read(0, 1) for _ in range(WINDOW)]
    link.feed(b"".join(map(link.framer.encode, reads)))
    session = link.connection.session
    assert session.max_cmd_sn == session.exp_cmd_sn - 1
    link.feed(link.framer.encode(link.read(0, 1)))  # one too many: ignored
    assert len(session.tasks) == WINDOW
    device.gate.set()
    await link.settle()
    answers = link.received()
    assert len(answers) == WINDOW
    maximum = [pdu.max_cmd_sn for pdu in answers]
    assert maximum == sorted(maximum)
    assert session.max_cmd_sn == session.exp_cmd_sn + WINDOW - 1


async def test_a_gap_in_the_numbering_ends_the_connection(linked):
    link, _ = linked
    link.cmd_sn += 1
    assert await link.exchange(link.read(0, 1)) == []
    assert link.connection.closing


async def test_serial_numbers_wrap(linked):
    link, _ = linked
    session = link.connection.session
    session.exp_cmd_sn, session.max_cmd_sn, link.connection.stat_sn = 0xFFFFFFFE, WINDOW - 3, 0xFFFFFFFF
    link.cmd_sn = 0xFFFFFFFE
    answers = [pdu for _ in range(4) for pdu in await link.exchange(link.read(0, 1))]
    assert [pdu.stat_sn for pdu in answers] == [0xFFFFFFFF, 0, 1, 2]
    assert [pdu.exp_cmd_sn for pdu in answers] == [0xFFFFFFFF, 0, 1, 2]


async def test_a_task_tag_in_use_is_rejected():
    link, _ = await connect(ImmediateData="No", InitialR2T="Yes")
    write = link.write(0, pattern(8), sent=0)
    await link.exchange(write)
    (reject,) = await link.exchange(link.read(0, 1, itt=write.itt))
    assert reject.reason == RejectReason.TASK_IN_PROGRESS
    (good,) = await link.exchange(link.read(0, 1))
    assert good.status == Status.GOOD


async def test_an_ordered_command_waits_for_those_before_it_and_holds_those_after_it():
    link, device = await connect(device_is_fast=False)
    device.gate = asyncio.Event()
    commands = [link.read(0, 1), link.read(1, 1, attribute=2), link.read(2, 1)]
    link.feed(b"".join(map(link.framer.encode, commands)))
    await asyncio.sleep(0)
    assert [call[1] for call in device.calls] == [0]
    device.gate.set()
    await link.settle()
    assert [pdu.itt for pdu in link.received()] == [command.itt for command in commands]


async def test_head_of_queue_overtakes_an_ordered_command():
    link, device = await connect(device_is_fast=False)
    device.gate = asyncio.Event()
    commands = [link.read(0, 1), link.read(1, 1, attribute=2), link.read(2, 1, attribute=3)]
    link.feed(b"".join(map(link.framer.encode, commands)))
    await asyncio.sleep(0)
    assert [call[1] // 512 for call in device.calls] == [0, 2]
    device.gate.set()
    await link.settle()
    assert len(link.received()) == 3


# -- the rest of full feature phase


async def test_a_ping_comes_back_with_its_data():
    link, _ = await connect()
    ping = requests.NopOut(link.next_itt(), link.cmd_sn, 0, data=b"hello")
    (pong,) = await link.exchange(ping)
    assert (pong.itt, pong.ttt, bytes(pong.data)) == (ping.itt, RESERVED_TAG, b"hello")


async def test_a_silent_initiator_is_pinged_and_dropped_only_if_it_does_not_answer():
    link, _ = await connect()
    for _ in range(3):
        link.connection.tick()
    (ping,) = link.received()
    assert (ping.itt, ping.stat_sn) == (RESERVED_TAG, link.connection.stat_sn)
    await link.exchange(requests.NopOut(RESERVED_TAG, link.cmd_sn, 0, ttt=ping.ttt))
    link.connection.silent_ticks = 0  # as the shell does with every byte that comes
    for _ in range(5):
        link.connection.tick()
    assert len(link.received()) == 1
    link.connection.tick()
    assert link.connection.closing


async def test_discovery_sends_the_targets_and_takes_no_command():
    link = Link(make_registry(make_unit(MemoryDevice(4096))))
    await link.log_in(session_type="Discovery")
    text = requests.TextRequest(link.next_itt(), link.cmd_sn, 0, data=b"SendTargets=All\0", immediate=True)
    (response,) = await link.exchange(text)
    assert response.final
    assert parse_text(response.data) == {"TargetName": TARGET, "TargetAddress": "127.0.0.1:3260,1"}
    (reject,) = await link.exchange(link.read(0, 1))
    assert reject.reason == RejectReason.PROTOCOL_ERROR


async def test_text_in_several_pdus_both_ways():
    registry = make_registry(make_unit(MemoryDevice(4096)))
    link = Link(registry)
    await link.log_in(session_type="Discovery", MaxRecvDataSegmentLength="512")
    registry.portals = [Portal("10.0.0.1", port) for port in range(3260, 3300)]
    (first,) = await link.exchange(
        requests.TextRequest(
            link.next_itt(), link.cmd_sn, 0, data=b"SendTar", final=False, continued=True, immediate=True
        )
    )
    assert (first.final, bytes(first.data)) == (False, b"")
    text = b""
    ask = b"gets=All\0"
    while True:
        (part,) = await link.exchange(
            requests.TextRequest(link.itt, link.cmd_sn, 0, ttt=first.ttt, data=ask, immediate=True)
        )
        text += bytes(part.data)
        ask = b""
        assert len(part.data) <= 512
        if part.final:
            break
    assert text.count(b"TargetAddress=") == 41


async def test_logout_waits_for_the_commands_then_closes():
    link, device = await connect(device_is_fast=False)
    device.gate = asyncio.Event()
    link.feed(link.framer.encode(link.write(0, pattern(1))))
    await asyncio.sleep(0)
    link.feed(
        link.framer.encode(requests.LogoutRequest(link.next_itt(), LogoutReason.CLOSE_SESSION, 0, link.cmd_sn, 0))
    )
    await asyncio.sleep(0)
    assert link.received() == []
    device.gate.set()
    await link.settle()
    (response,) = link.received()
    assert isinstance(response, responses.LogoutResponse)
    assert link.connection.closing


async def test_a_shutdown_asks_for_logout():
    link, _ = await connect()
    link.connection.request_logout()
    (message,) = link.received()
    assert message.event == AsyncEvent.LOGOUT_REQUEST


async def test_a_login_replaces_the_old_session_when_its_commands_are_done():
    table = SessionTable()
    device = MemoryDevice(BLOCKS * 512)
    registry = make_registry(make_unit(device))
    old, _ = await connect(table=table, registry=registry)
    device.gate = asyncio.Event()
    old.feed(old.framer.encode(old.write(0, pattern(1))))
    await asyncio.sleep(0)
    new = Link(registry, table)
    logging_in = asyncio.create_task(new.log_in())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert old.connection.dropped
    old.connection.lost()
    assert not logging_in.done()
    device.gate.set()
    await old.settle()
    await logging_in
    assert [session.connection for session in table] == [new.connection]


async def reinstate(old, registry, table, **fields):
    """A new connection's login that goes on with the session of ``old``: its link, and the TSIH."""
    new = Link(registry, table)
    tsih = old.connection.session.tsih
    request = new.login_request(
        {"InitiatorName": INITIATOR, "TargetName": TARGET, "DataDigest": "CRC32C"},
        **{"tsih": tsih, "cmd_sn": old.cmd_sn, **fields},
    )
    new.feed(new.framer.encode(request))
    await asyncio.sleep(0)
    return new, tsih


async def test_a_connection_is_replaced_and_its_session_goes_on():
    device = MemoryDevice(BLOCKS * 512)
    registry, table = make_registry(make_unit(device)), SessionTable()
    old, _ = await connect(registry=registry, table=table, MaxBurstLength="8192")
    session = old.connection.session
    nexus = old.connection.nexus(0)
    device.gate = asyncio.Event()
    old.feed(old.framer.encode(old.write(0, pattern(1))))
    await device.called.wait()
    nexus.establish_unit_attention(Asc.MODE_PARAMETERS_CHANGED)

    new, tsih = await reinstate(old, registry, table)
    assert old.connection.dropped
    assert new.received() == [], "no answer while a command of the old connection is with the medium"
    device.gate.set()
    old.connection.lost()
    await old.settle()
    await new.settle()
    (response,) = new.received()
    assert (response.status, response.tsih, response.exp_cmd_sn) == (0, tsih, old.cmd_sn)
    assert [held.tsih for held in table] == [tsih]
    assert new.connection.session is not session
    assert new.connection.nexus(0) is nexus, "no nexus was lost"
    assert (new.connection.burst_bytes, new.connection.data_digest) == (8192, True)
    new.cmd_sn = old.cmd_sn
    new.framer = Framer(data_digest=True)
    (attention,) = await new.exchange(new.read(0, 1))
    assert sense_code(attention) == (0x6, 0x2A01), "not the power on of a new nexus"
    (data_in,) = await new.exchange(new.read(0, 1))
    assert data_in.data == pattern(1)
    new.connection.lost()
    await new.settle()
    assert nexus.lu.nexuses == []


async def test_a_session_that_ended_meanwhile_cannot_be_gone_on_with():
    registry, table = make_registry(make_unit(MemoryDevice(4096))), SessionTable()
    old, _ = await connect(registry=registry, table=table)
    new = Link(registry, table)
    names = {"InitiatorName": INITIATOR, "TargetName": TARGET}
    tsih = old.connection.session.tsih
    new.feed(new.framer.encode(new.login_request(names, tsih=tsih, transit=False, nsg=0)))
    old.connection.lost()
    await old.settle()
    new.feed(new.framer.encode(new.login_request({}, tsih=tsih)))
    assert [pdu.status for pdu in new.received()] == [0, LoginStatus.SESSION_DOES_NOT_EXIST]


async def test_a_login_that_dies_while_it_waits_leaves_no_nexus_behind():
    device = MemoryDevice(BLOCKS * 512)
    registry, table = make_registry(make_unit(device)), SessionTable()
    old, _ = await connect(registry=registry, table=table)
    lu = old.connection.nexus(0).lu
    device.gate = asyncio.Event()
    old.feed(old.framer.encode(old.read(0, 1)))
    await device.called.wait()
    new, _ = await reinstate(old, registry, table)
    new.connection.lost()
    device.gate.set()
    old.connection.lost()
    await old.settle()
    await new.settle()
    assert (lu.nexuses, len(table)) == ([], 0)


async def test_of_logins_that_wait_the_dead_one_ends_nobody():
    """Found by fuzzing: a login whose connection was gone went on to replace the session that had come meanwhile."""
    device = MemoryDevice(BLOCKS * 512)
    registry, table = make_registry(make_unit(device)), SessionTable()
    old, _ = await connect(registry=registry, table=table)
    device.gate = asyncio.Event()
    old.feed(old.framer.encode(old.read(0, 1)))
    await device.called.wait()
    alive, dead = Link(registry, table), Link(registry, table)
    for link in (alive, dead):
        link.feed(link.framer.encode(link.login_request({"InitiatorName": INITIATOR, "TargetName": TARGET})))
        await asyncio.sleep(0)
    dead.connection.lost()
    device.gate.set()
    old.connection.lost()
    await old.settle()
    await dead.settle()
    await alive.settle()
    (response,) = alive.received()
    assert response.status == 0
    assert [session.connection for session in table] == [alive.connection]
    assert not alive.connection.closing


async def test_a_login_that_lost_its_right_on_the_way_is_refused():
    for spoil, status in (
        (lambda registry: registry.remove(TARGET), LoginStatus.TARGET_REMOVED),
        (lambda registry: registry.find(TARGET).admit(["iqn.2026-11.example:x"]), LoginStatus.AUTHORIZATION_FAILURE),
        (lambda registry: registry.find(TARGET).bind([7]), LoginStatus.AUTHORIZATION_FAILURE),
    ):
        registry = make_registry(make_unit(MemoryDevice(4096)))
        link = Link(registry)
        names = {"InitiatorName": INITIATOR, "TargetName": TARGET}
        link.feed(link.framer.encode(link.login_request(names, transit=False, nsg=0)))
        spoil(registry)
        link.feed(link.framer.encode(link.login_request({})))
        assert [pdu.status for pdu in link.received()] == [0, status]


async def test_who_loses_the_right_to_a_target_is_told_that_the_session_ends():
    link, _ = await connect()
    link.connection.expel()
    (message,) = link.received()
    assert isinstance(message, responses.AsyncMessage)
    assert message.event == AsyncEvent.SESSION_DROP
    assert link.connection.dropped


async def test_a_refused_text_request_ends_its_exchange():
    link, _ = await connect()
    first = requests.TextRequest(7, link.cmd_sn, 0, final=False, continued=True, data=b"SendTar")
    (answer,) = await link.exchange(first)
    assert (answer.data, answer.final, answer.continued) == (b"", False, False)
    more = requests.TextRequest(7, link.cmd_sn + 1, 0, ttt=answer.ttt, final=False, continued=True, data=b"x" * 8186)
    (reject,) = await link.exchange(more)
    assert reject.reason == RejectReason.OUT_OF_RESOURCES
    again = requests.TextRequest(7, link.cmd_sn + 2, 0, ttt=answer.ttt, data=b"gets=\0")
    (reject,) = await link.exchange(again)
    assert reject.reason == RejectReason.INVALID_PDU_FIELD
    (answer,) = await link.exchange(requests.TextRequest(8, link.cmd_sn + 3, 0, data=b"SendTargets=\0"))
    assert answer.data == f"TargetName={TARGET}\0TargetAddress=127.0.0.1:3260,1\0".encode()


async def test_the_same_initiator_port_has_a_session_through_each_portal_group():
    table = SessionTable()
    registry = make_registry(make_unit(MemoryDevice(BLOCKS * 512)))
    links = [Link(registry, table, group=group) for group in (1, 2)]
    for link in links:
        await link.log_in()
    assert [link.parameters["TargetPortalGroupTag"] for link in links] == ["1", "2"]
    assert len(table) == 2, "two I_T nexuses: the ISID rule is about one target port"
    nexuses = [link.connection.nexus(0) for link in links]
    assert [nexus.it_nexus.target_port for nexus in nexuses] == [f"{TARGET},t,0x0001", f"{TARGET},t,0x0002"]


async def test_a_target_is_not_found_through_a_portal_group_that_it_is_not_in():
    registry = make_registry(make_unit(MemoryDevice(BLOCKS * 512)))
    registry.find(TARGET).bind([2])
    link = Link(registry, group=1)
    link.feed(link.framer.encode(link.login_request({"InitiatorName": INITIATOR, "TargetName": TARGET})))
    (response,) = link.received()
    assert response.status == LoginStatus.NOT_FOUND


async def test_a_lun_that_is_not_there_answers_inquiry_and_refuses_the_rest():
    link, _ = await connect()
    (inquiry,) = await link.exchange(link.command(bytes.fromhex("120000002400"), read=36, lun=3))
    assert inquiry.data[0] == 0x7F
    (refused,) = await link.exchange(link.read(0, 1, lun=3))
    assert sense_code(refused) == (0x5, 0x2500)


async def test_a_masked_lun_is_not_there_and_a_change_is_told_to_whom_it_concerns():
    registry = make_registry(make_unit(MemoryDevice(4096)), make_unit(MemoryDevice(4096), 2))
    target = registry.find(TARGET)
    table = SessionTable()
    mine, others = Link(registry, table, isid=1), Link(registry, table, isid=2)
    target.mask_lun(1, [INITIATOR.upper()])
    for link, name in ((mine, INITIATOR), (others, INITIATOR + "-other")):
        await link.log_in(InitiatorName=name)
        await link.clear_attention()
    await mine.exchange(mine.command(bytes(6), lun=1))
    (report,) = await others.exchange(others.command(bytes.fromhex("a0000000000000000010"), read=16))
    assert bytes(report.data) == bytes.fromhex("00000008 00000000 0000000000000000")
    (refused,) = await others.exchange(others.read(0, 1, lun=1))
    assert sense_code(refused) == (0x5, 0x2500)
    (inquiry,) = await others.exchange(others.command(bytes.fromhex("120000002400"), read=36, lun=1))
    assert inquiry.data[0] == 0x7F

    target.mask_lun(1, [INITIATOR + "-third"])
    for link in (mine, others):
        link.connection.luns_changed()
    (attention,) = await mine.exchange(mine.read(0, 1))
    assert sense_code(attention) == (0x6, 0x3F0E)
    (refused,) = await mine.exchange(mine.read(0, 1, lun=1))
    assert sense_code(refused) == (0x5, 0x2500)
    (data_in,) = await others.exchange(others.read(0, 1))
    assert data_in.status == Status.GOOD, "its own LUNs are the same as before"

    target.mask_lun(1, None)
    others.connection.luns_changed()
    (attention,) = await others.exchange(others.read(0, 1))
    assert sense_code(attention) == (0x6, 0x3F0E)
    (attention,) = await others.exchange(others.read(0, 1, lun=1))
    assert sense_code(attention) == (0x6, 0x2900)


async def test_luns_come_and_go_under_a_session():
    link, _ = await connect()
    target = link.registry.find(TARGET)
    target.map_lun(1, make_unit(MemoryDevice(4096, fast=True), 2))
    link.connection.luns_changed()
    (attention,) = await link.exchange(link.read(0, 1))
    assert sense_code(attention) == (0x6, 0x3F0E)
    for _ in range(2):
        (answer,) = await link.exchange(link.read(0, 1, lun=1))
    assert answer.status == Status.GOOD
    target.unmap_lun(1)
    link.connection.luns_changed()
    (refused,) = await link.exchange(link.read(0, 1, lun=1))
    assert sense_code(refused) == (0x5, 0x2500)


async def test_a_unit_that_loses_one_of_two_luns_keeps_its_nexus_and_its_reservation():
    link, _ = await connect()
    target = link.registry.find(TARGET)
    (unit,) = target.luns.values()
    target.map_lun(1, unit)
    link.connection.luns_changed()
    (attention,) = await link.exchange(link.read(0, 1, lun=1))
    assert sense_code(attention) == (0x6, 0x3F0E)
    (reserved,) = await link.exchange(link.command(bytes.fromhex("160000000000"), lun=1))
    assert reserved.status == Status.GOOD
    nexus = link.connection.nexus(0)
    target.unmap_lun(0)
    link.connection.luns_changed()
    assert unit.nexuses == [nexus]
    assert unit.reservations.legacy_holder is nexus
    (attention,) = await link.exchange(link.read(0, 1, lun=1))
    assert sense_code(attention) == (0x6, 0x3F0E), "and no power on"
    target.unmap_lun(1)
    link.connection.luns_changed()
    assert unit.nexuses == []
    assert unit.reservations.legacy_holder is None


# -- digests


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("keys", [{"HeaderDigest": "CRC32C"}, {"DataDigest": "CRC32C"}], ids=["header", "data"])
async def test_digests_are_sent_and_checked(keys, fast):
    link, device = await connect(fast=fast, **keys)
    data = pattern(8)
    (response,) = await link.exchange(link.write(0, data))
    assert response.status == Status.GOOD
    assert device.data[:4096] == data
    assert data_of(await link.exchange(link.read(0, 8))) == data


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
async def test_a_wrong_data_digest_is_rejected_and_ends_the_session(fast):
    link, device = await connect(fast=fast, DataDigest="CRC32C")
    sent = bytearray(link.framer.encode(link.write(0, pattern(1))))
    sent[60] ^= 1
    link.feed(bytes(sent))
    (reject,) = link.received()
    assert reject.reason == RejectReason.DATA_DIGEST_ERROR
    assert link.connection.closing
    assert bytes(device.data[:512]) == bytes(512)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
async def test_a_wrong_header_digest_ends_the_connection_without_a_word(fast):
    link, _ = await connect(fast=fast, HeaderDigest="CRC32C")
    sent = bytearray(link.framer.encode(link.read(0, 1)))
    sent[20] ^= 1
    link.feed(bytes(sent))
    assert link.received() == []
    assert link.connection.closing


# -- bad input


async def test_an_unknown_opcode_is_rejected_with_its_header():
    link, _ = await connect()
    header = bytes((0x0B, 0x80)) + bytes(46)
    link.feed(header)
    (reject,) = link.received()
    assert reject.reason == RejectReason.COMMAND_NOT_SUPPORTED
    assert bytes(reject.data) == header
    (good,) = await link.exchange(link.read(0, 1))
    assert good.status == Status.GOOD


async def test_snack_is_rejected():
    link, _ = await connect()
    (reject,) = await link.exchange(requests.SnackRequest(link.next_itt(), 0, 0, 0, 1))
    assert reject.reason == RejectReason.SNACK_REJECT


async def test_a_peer_cannot_fill_the_log(caplog):
    caplog.set_level(logging.INFO)
    link, _ = await connect()
    snack = link.framer.encode(requests.SnackRequest(0, 1, 0, 0, 0))
    link.feed(snack * 1000)
    assert len(link.received()) == 1000
    about = [record.getMessage() for record in caplog.records if "SNACK" in record.getMessage()]
    assert len(about) == MAX_LOGGED
    assert caplog.messages[-1].endswith("more of the like is not logged for now")
    link.connection.tick()
    link.feed(snack)
    assert "SNACK" in caplog.messages[-1]


async def test_a_data_segment_longer_than_declared_ends_the_connection():
    link, _ = await connect()
    link.feed(bytes((0x01, 0xA1, 0, 0, 0, 0x05, 0, 0)) + bytes(40))
    assert link.connection.closing


async def test_a_refused_command_uses_up_its_number():
    link, _ = await connect()
    (reject,) = await link.exchange(link.command(cdb(0x28, 0, 1), read=512, itt=RESERVED_TAG))
    assert reject.reason == RejectReason.INVALID_PDU_FIELD
    (good,) = await link.exchange(link.read(0, 1))
    assert good.status == Status.GOOD


async def test_too_many_immediate_commands_are_rejected():
    link, _ = await connect(ImmediateData="No", InitialR2T="Yes")
    writes = [link.write(0, pattern(1), sent=0, immediate=True) for _ in range(17)]
    answers = await link.exchange(*writes)
    assert isinstance(answers[-1], responses.Reject)
    assert answers[-1].reason == RejectReason.TOO_MANY_IMMEDIATE_COMMANDS


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n" * 10, bytes(48), b"\xff" * 300, b"\x43" + b"\xff" * 100])
async def test_garbage_before_login_ends_the_connection(garbage):
    link = Link(make_registry(make_unit(MemoryDevice(4096))))
    link.feed(garbage)
    assert link.connection.closing
    assert link.connection.session is None


# -- what waits, and what follows it


async def test_nothing_behind_a_logout_is_done(linked):
    link, device = linked
    logout = requests.LogoutRequest(link.next_itt(), LogoutReason.CLOSE_SESSION, 0, link.cmd_sn, 0)
    (response,) = await link.exchange(logout, link.write(0, pattern(1)))
    assert isinstance(response, responses.LogoutResponse)
    assert bytes(device.data[:512]) == bytes(512)


async def test_solicited_data_waits_for_room_and_an_abort_makes_it():
    link, _ = await connect(device_is_fast=False, ImmediateData="No", InitialR2T="Yes")
    writes = [link.command(cdb(WRITE_16, 0, 16384, flags=0x08), write=8 << 20) for _ in range(5)]  # FUA: gathered
    answers = await link.exchange(*writes)
    assert [pdu.itt for pdu in answers] == [write.itt for write in writes[:4]]
    ended = await link.exchange(management(link, TaskFunction.ABORT_TASK, writes[0].itt))
    assert {type(pdu) for pdu in ended} == {responses.TaskManagementResponse, responses.R2T}
    assert link.connection.session.tasks.keys() == {write.itt for write in writes[1:]}


async def test_aborting_an_ordered_command_lets_the_others_go_on():
    link, device = await connect(device_is_fast=False)
    device.gate = asyncio.Event()
    commands = [link.read(0, 1), link.read(1, 1, attribute=2), link.read(2, 1)]
    link.feed(b"".join(map(link.framer.encode, commands)))
    await asyncio.sleep(0)
    link.feed(link.framer.encode(management(link, TaskFunction.ABORT_TASK, commands[1].itt)))
    await asyncio.sleep(0)
    assert [call[1] // 512 for call in device.calls] == [0, 2]
    device.gate.set()
    await link.settle()
    assert [pdu.itt for pdu in link.received() if isinstance(pdu, responses.DataIn)] == [
        commands[0].itt,
        commands[2].itt,
    ]


async def test_an_aborted_write_that_still_runs_is_waited_for_by_reset_and_by_the_next_login():
    table = SessionTable()
    device = MemoryDevice(BLOCKS * 512)
    registry = make_registry(make_unit(device))
    old, _ = await connect(table=table, registry=registry)
    other, _ = await connect(table=table, registry=registry, isid=2)
    device.gate = asyncio.Event()
    write = old.write(0, pattern(1))
    old.feed(old.framer.encode(write))
    await asyncio.sleep(0)
    old.feed(old.framer.encode(management(old, TaskFunction.ABORT_TASK, write.itt)))
    other.feed(other.framer.encode(management(other, TaskFunction.LOGICAL_UNIT_RESET)))
    old.connection.lost()
    new = Link(registry, table)
    logging_in = asyncio.create_task(new.log_in())
    for _ in range(5):
        await asyncio.sleep(0)
    assert other.received() == []
    assert not logging_in.done()
    device.gate.set()
    await old.settle()
    await other.settle()
    await logging_in
    (response,) = other.received()
    assert response.response == TaskResponse.FUNCTION_COMPLETE


async def test_a_lun_that_goes_lets_its_running_commands_finish_and_refuses_the_others():
    link, device = await connect(device_is_fast=False, ImmediateData="No", InitialR2T="Yes")
    device.gate = asyncio.Event()
    running = link.read(0, 1)
    gathering = link.write(0, pattern(1), sent=0)
    link.feed(b"".join(map(link.framer.encode, (running, gathering))))
    await asyncio.sleep(0)
    (r2t,) = link.received()
    link.registry.find(TARGET).unmap_lun(0)
    link.connection.luns_changed()
    device.gate.set()
    link.feed(link.framer.encode(link.data_out(gathering.itt, pattern(1), 0, ttt=r2t.ttt)))
    await link.settle()
    answers = {pdu.itt: pdu for pdu in link.received()}
    assert answers[running.itt].status == Status.GOOD
    assert sense_code(answers[gathering.itt]) == (0x5, 0x2500)
    assert bytes(device.data[:512]) == bytes(512)


async def test_a_new_segment_length_holds_for_the_command_right_behind_it(linked):
    link, _ = linked
    text = requests.TextRequest(link.next_itt(), link.cmd_sn, 0, data=b"MaxRecvDataSegmentLength=512\0", immediate=True)
    answers = await link.exchange(text, link.read(0, 3))
    assert [len(pdu.data) for pdu in answers[1:]] == [512, 512, 512]


async def test_a_command_that_ends_between_two_passes_keeps_its_place_in_statsn_order():
    """Its answer has a StatSN before those of the next pass, and leaves before them (RFC 7143 section 4.2.2.2)."""
    link, device = await connect()
    device.gate = asyncio.Event()
    link.feed(link.framer.encode(link.command(bytes([0x35]))))  # SYNCHRONIZE CACHE(10), which waits for the device
    await device.called.wait()
    device.gate.set()
    await asyncio.wait(link.tasks)  # it has ended; nobody has taken its answer yet
    link.feed(link.framer.encode(link.read(0, 8)))
    flushed, read = link.received()
    assert (type(flushed), type(read)) == (responses.ScsiResponsePdu, responses.DataIn)
    assert read.stat_sn == flushed.stat_sn + 1
