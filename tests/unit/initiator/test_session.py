"""The initiator's session, driven by a scripted target: PDUs in, bytes out."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi.initiator.errors import CommandRejected
from iscsi.initiator.session import (
    TARGET_FAILURE_STATUS,
    Command,
    InitiatorSession,
    Logout,
    LogoutRequested,
    parse_send_targets,
    send_targets,
)
from iscsi.negotiation import SessionParameters
from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import RESERVED_TAG, AsyncEvent, RejectReason, ResidualFlag
from iscsi.wire.pdu import REQUESTS, Framer, decode
from iscsi.wire.requests import DataOut, LogoutRequest, NopOut, ScsiCommandPdu, TextRequest
from iscsi.wire.responses import (
    R2T,
    AsyncMessage,
    DataIn,
    LogoutResponse,
    NopIn,
    Reject,
    ScsiResponsePdu,
    TextResponse,
)

CDB = bytes(range(16))
PARAMETERS = SessionParameters(
    initial_r2t=False, max_send_data_segment_length=1024, first_burst_length=2048, max_burst_length=4096
)


class Script:
    """A session and the target's lines."""

    def __init__(self, window: int = 8, **changes):
        self.parameters = dataclasses.replace(PARAMETERS, **changes)
        self.session = InitiatorSession(self.parameters, cmd_sn=1, max_cmd_sn=window, exp_stat_sn=100)
        self.window = window

    def start(self, exchange):
        """Start an exchange; the PDUs that go out."""
        self.session.start(exchange)
        return self.sent()

    def sent(self):
        stream = memoryview(b"".join(self.session.data_to_send()))
        framer = Framer(self.parameters.header_digest, self.parameters.data_digest, 1 << 23)
        found, offset = [], 0
        while offset < len(stream):
            frame = framer.next(stream, offset)
            found.append(decode(frame, REQUESTS))
            offset = frame.end
        return found

    def say(self, *pdus, window=None):
        """Feed PDUs of the target; what is over."""
        stream = b"".join(
            self.session.framer_in.encode(dataclasses.replace(pdu, max_cmd_sn=window or self.window)) for pdu in pdus
        )
        taken, events = self.session.receive(memoryview(stream))
        assert taken == len(stream)
        return events


def test_a_read_is_filled_piece_by_piece():
    script = Script()
    view = memoryview(bytearray(6))
    command = Command(5 << 48, CDB, data_in=view)
    assert script.start(command) == [ScsiCommandPdu(1, 5 << 48, CDB, 1, 100, edtl=6, read=True)]
    assert script.say(DataIn(1, 0, 0, final=False, data=b"abc")) == []
    assert script.say(DataIn(1, 1, 3, status=0, stat_sn=100, data=b"def")) == [command]
    assert (bytes(view), command.status, command.received, command.residual) == (b"abcdef", 0, 6, 0)


def test_a_read_may_end_short_with_a_residual():
    script = Script()
    command = Command(0, CDB, data_in=memoryview(bytearray(6)))
    script.start(command)
    last = DataIn(1, 0, 0, status=0, stat_sn=100, flags=ResidualFlag.UNDERFLOW, residual=4, data=b"ab")
    assert script.say(last) == [command]
    assert (command.received, command.residual) == (2, 4)


def test_a_failure_brings_its_sense():
    script = Script()
    command = Command(0, CDB)
    script.start(command)
    assert script.say(ScsiResponsePdu(1, 2, stat_sn=100, data=b"\0\3xyz")) == [command]
    assert (command.status, command.sense) == (2, b"xyz")
    refused = Command(0, CDB)
    script.start(refused)
    script.say(ScsiResponsePdu(2, 0, stat_sn=101, response=1, flags=ResidualFlag.OVERFLOW, residual=3))
    assert (refused.status, refused.residual) == (TARGET_FAILURE_STATUS, -3)


def test_a_write_goes_out_immediate_then_unsolicited_then_as_asked():
    script = Script()
    data = bytes(range(256)) * 12  # 3072 bytes: a first burst of 2048, and 1024 more
    command = Command(0, CDB, data_out=memoryview(data))
    assert script.start(command) == [
        ScsiCommandPdu(1, 0, CDB, 1, 100, edtl=3072, write=True, final=False, data=data[:1024]),
        DataOut(1, RESERVED_TAG, 100, 0, 1024, final=True, data=data[1024:2048]),
    ]
    assert script.say(R2T(1, 0x77, 0, 2048, 1024)) == []
    assert script.sent() == [DataOut(1, 0x77, 100, 0, 2048, final=True, data=data[2048:])]
    assert script.say(ScsiResponsePdu(1, 0, stat_sn=100)) == [command]


@pytest.mark.parametrize(
    ("changes", "immediate", "unsolicited"),
    [
        ({"immediate_data": False, "initial_r2t": True}, 0, []),
        ({"immediate_data": True, "initial_r2t": True}, 1024, []),
        ({"immediate_data": False, "initial_r2t": False}, 0, [(0, 1024, False), (1024, 1024, True)]),
        ({"first_burst_length": 512}, 512, []),
        ({"max_send_data_segment_length": 8192}, 2048, []),
    ],
)
def test_each_combination_of_unasked_data(changes, immediate, unsolicited):
    command, *more = Script(**changes).start(Command(0, CDB, data_out=memoryview(bytes(3072))))
    assert (len(command.data), command.final, command.edtl) == (immediate, not unsolicited, 3072)
    assert [(pdu.buffer_offset, len(pdu.data), pdu.final) for pdu in more] == unsolicited
    assert [pdu.data_sn for pdu in more] == list(range(len(more)))


def test_an_r2t_is_answered_by_a_sequence_of_segments():
    script = Script(immediate_data=False, initial_r2t=True)
    script.start(Command(0, CDB, data_out=memoryview(bytes(4096))))
    script.say(R2T(1, 5, 0, 512, 2560))
    pieces = [(pdu.ttt, pdu.data_sn, pdu.buffer_offset, len(pdu.data), pdu.final) for pdu in script.sent()]
    assert pieces == [(5, 0, 512, 1024, False), (5, 1, 1536, 1024, False), (5, 2, 2560, 512, True)]


def test_commands_wait_for_the_window():
    script = Script(window=2)
    commands = [Command(0, CDB) for _ in range(4)]
    for command in commands:
        script.session.start(command)
    assert [pdu.cmd_sn for pdu in script.sent()] == [1, 2]
    assert script.say(ScsiResponsePdu(1, 0, stat_sn=100), window=3) == [commands[0]]
    assert [pdu.cmd_sn for pdu in script.sent()] == [3]
    script.say(NopIn(RESERVED_TAG, stat_sn=101), window=2)
    assert script.sent() == [], "the window never goes back"
    script.say(NopIn(RESERVED_TAG, stat_sn=101), window=4)
    assert [pdu.exp_stat_sn for pdu in script.sent()] == [101]


def test_a_ping_of_the_target_is_answered():
    script = Script()
    assert script.say(NopIn(RESERVED_TAG, stat_sn=100, ttt=9, lun=3)) == []
    assert script.sent() == [NopOut(RESERVED_TAG, 1, 100, 9, 3)]


def test_targets_are_asked_for_until_the_answer_ends():
    script = Script()
    question = send_targets()
    assert script.start(question) == [TextRequest(1, 1, 100, data=b"SendTargets=All\0")]
    more = TextResponse(1, 100, ttt=4, final=False, continued=True, data=b"TargetName=iqn.a\0TargetAddr")
    assert script.say(more) == []
    assert script.sent() == [TextRequest(1, 2, 101, 4, immediate=True)]
    assert script.say(TextResponse(1, 101, data=b"ess=1.2.3.4:3260,1\0")) == [question]
    assert parse_send_targets(question.answer) == [("iqn.a", ["1.2.3.4:3260,1"])]


def test_logging_out():
    script = Script()
    assert script.say(AsyncMessage(AsyncEvent.LOGOUT_REQUEST, 100, parameter3=10)) == [LogoutRequested(10)]
    logout = Logout()
    assert script.start(logout) == [LogoutRequest(1, 0, 0, 1, 101, immediate=False)]
    assert script.say(LogoutResponse(1, 101, response=0)) == [logout]


def test_a_rejected_command_is_over():
    script = Script()
    command = Command(0, CDB)
    (sent,) = script.start(command)
    reject = Reject(RejectReason.INVALID_PDU_FIELD, 100, data=sent.serialize())
    assert script.say(reject) == [command]
    assert isinstance(command.error, CommandRejected)
    assert command.error.reason == RejectReason.INVALID_PDU_FIELD


@pytest.mark.parametrize(
    "pdu",
    [
        DataIn(1, 0, 4, data=b"ab"),  # out of order
        DataIn(1, 0, 0, data=bytes(9)),  # more than was asked for
        DataIn(2, 0, 0, data=b"ab"),  # of nothing
        DataIn(1, 0, 0, status=0, stat_sn=101, data=b"ab"),  # a StatSN was skipped
        ScsiResponsePdu(1, 0, stat_sn=99),
        ScsiResponsePdu(7, 0, stat_sn=100),
        R2T(1, 5, 0, 0, 512),  # for a read
        TextResponse(1, 100),
        LogoutResponse(1, 100),
        NopIn(1, 100),
        Reject(RejectReason.PROTOCOL_ERROR, 100, data=bytes(48)),
        AsyncMessage(AsyncEvent.SESSION_DROP, 100),
    ],
    ids=str,
)
def test_what_ends_the_connection(pdu):
    script = Script()
    script.start(Command(0, CDB, data_in=memoryview(bytearray(8))))
    with pytest.raises(ProtocolError):
        script.say(pdu)


@pytest.mark.parametrize("digests", [False, True])
def test_bytes_one_by_one_give_the_same_as_all_at_once(digests):
    script = Script(header_digest=digests, data_digest=digests)
    view = memoryview(bytearray(6))
    command = Command(0, CDB, data_in=view)
    script.start(command)
    pdus = [DataIn(1, 0, 0, data=b"abcde", final=False), DataIn(1, 1, 5, status=0, stat_sn=100, data=b"f")]
    stream = b"".join(map(script.session.framer_in.encode, pdus))
    pending, events = b"", []
    for position in range(len(stream)):
        pending += stream[position : position + 1]
        taken, found = script.session.receive(memoryview(pending))
        pending = pending[taken:]
        events += found
    assert events == [command]
    assert bytes(view) == b"abcdef"


@given(st.binary(max_size=200))
def test_garbage_is_incomplete_or_a_protocol_error(garbage):
    session = InitiatorSession(PARAMETERS, cmd_sn=1, max_cmd_sn=8, exp_stat_sn=0)
    session.start(Command(0, CDB, data_in=memoryview(bytearray(64))))
    try:
        taken, _ = session.receive(memoryview(garbage))
    except ProtocolError:
        return
    assert taken <= len(garbage)


@pytest.mark.parametrize("answer", [b"TargetAddress=1.2.3.4:1,1\0", b"TargetName=\xff\0"])
def test_send_targets_answers_that_make_no_sense(answer):
    with pytest.raises(ProtocolError):
        parse_send_targets(answer)
