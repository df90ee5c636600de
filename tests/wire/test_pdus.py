"""Every PDU type against literal bytes, both ways, with a truncated and a corrupted variant beside each.

Vectors were laid out by hand from the figures of RFC 7143 sections 11.3 to 11.19; the words of a BHS are separated by
spaces, lines hold 16 bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import (
    AsyncEvent,
    LoginStatus,
    LogoutReason,
    LogoutResult,
    RejectReason,
    ResidualFlag,
    SnackType,
    Stage,
    TaskFunction,
    TaskResponse,
)
from iscsi.wire.pdu import REQUESTS, RESPONSES, Frame, Framer, decode
from iscsi.wire.requests import (
    DataOut,
    LoginRequest,
    LogoutRequest,
    NopOut,
    ScsiCommandPdu,
    SnackRequest,
    TaskManagementRequest,
    TextRequest,
)
from iscsi.wire.responses import (
    R2T,
    AsyncMessage,
    DataIn,
    LoginResponse,
    LogoutResponse,
    NopIn,
    Reject,
    ScsiResponsePdu,
    TaskManagementResponse,
    TextResponse,
)

if TYPE_CHECKING:
    from iscsi.wire.bhs import Pdu

PLAIN = Framer()
INVALID = RejectReason.INVALID_PDU_FIELD


class Vector(NamedTuple):
    """``spoil``: (offset, byte) that makes the PDU wrong, and ``answer``: what the refusal says."""

    pdu: Pdu
    wire: str
    spoil: tuple[int, int]
    answer: RejectReason | LoginStatus | None


VECTORS = [
    Vector(
        NopOut(itt=0x01020304, ttt=0xFFFFFFFF, cmd_sn=0x11, exp_stat_sn=0x12, data=b"ping!"),
        "40800000 00000005 00000000 00000000"
        "01020304 ffffffff 00000011 00000012"
        "00000000 00000000 00000000 00000000"
        "70696e6721 000000",
        (20, 0),  # a ping that is an answer, too
        INVALID,
    ),
    Vector(
        ScsiCommandPdu(
            itt=0x10,
            lun=0x0001_0000_0000_0000,
            cdb=bytes.fromhex("28000000080000001000000000000000"),
            cmd_sn=0x21,
            exp_stat_sn=0x22,
            edtl=8192,
            read=True,
        ),
        "01c10000 00000000 00010000 0000000000000010 00002000 00000021 0000002228000000 08000000 10000000 00000000",
        (1, 0x41),  # not final, although no data follows
        INVALID,
    ),
    Vector(
        ScsiCommandPdu(
            itt=0x11,
            lun=0,
            cdb=bytes(range(0x80, 0xA0)),
            cmd_sn=1,
            exp_stat_sn=2,
            edtl=1024,
            write=True,
            final=False,
            attribute=0,
            immediate=True,
            data=b"abcd",
        ),
        "41200000 05000004 00000000 00000000"
        "00000011 00000400 00000001 00000002"
        "80818283 84858687 88898a8b 8c8d8e8f"
        "00110100 90919293 94959697 98999a9b 9c9d9e9f"
        "61626364",
        (50, 3),  # an AHS of unknown type
        INVALID,
    ),
    Vector(
        ScsiCommandPdu(
            itt=0x12,
            lun=0,
            cdb=bytes(16),
            cmd_sn=1,
            exp_stat_sn=2,
            edtl=512,
            read=True,
            write=True,
            bidirectional_read_length=0x1000,
        ),
        "01e10000 02000000 00000000 00000000"
        "00000012 00000200 00000001 00000002"
        "00000000 00000000 00000000 00000000"
        "00050200 00001000",
        (49, 9),  # an AHS beyond the header's end
        INVALID,
    ),
    Vector(
        TaskManagementRequest(
            itt=0x30,
            function=TaskFunction.ABORT_TASK,
            lun=0,
            referenced_task_tag=0x10,
            cmd_sn=5,
            exp_stat_sn=6,
            ref_cmd_sn=4,
            exp_data_sn=7,
        ),
        "42810000 00000000 00000000 0000000000000030 00000010 00000005 0000000600000004 00000007 00000000 00000000",
        (7, 4),  # a data segment
        RejectReason.PROTOCOL_ERROR,
    ),
    Vector(
        LoginRequest(
            isid=bytes.fromhex("00023d000001"),
            tsih=0x0102,
            itt=0x40,
            cid=0x0506,
            cmd_sn=1,
            exp_stat_sn=2,
            csg=Stage.SECURITY,
            nsg=Stage.OPERATIONAL,
            transit=True,
            version_max=1,
            data=b"A=B\0",
        ),
        "43810100 00000004 00023d00 00010102"
        "00000040 05060000 00000001 00000002"
        "00000000 00000000 00000000 00000000"
        "413d4200",
        (1, 0x88),  # CSG 2 does not exist
        INVALID,
    ),
    Vector(
        TextRequest(itt=0x50, ttt=0x51, lun=0, cmd_sn=7, exp_stat_sn=8, final=False, continued=True, data=b"S=A\0B"),
        "04400000 00000005 00000000 00000000"
        "00000050 00000051 00000007 00000008"
        "00000000 00000000 00000000 00000000"
        "533d4100 42000000",
        (1, 0xC0),  # F and C
        INVALID,
    ),
    Vector(
        DataOut(
            itt=0x60, ttt=0x61, lun=0x0002_0000_0000_0000, exp_stat_sn=3, data_sn=4, buffer_offset=0x2000, data=b"x"
        ),
        "05800000 00000001 00020000 00000000"
        "00000060 00000061 00000000 00000003"
        "00000000 00000004 00002000 00000000"
        "78000000",
        (5, 0x10),  # longer than was declared
        None,
    ),
    Vector(
        LogoutRequest(itt=0x70, reason=LogoutReason.CLOSE_CONNECTION, cid=9, cmd_sn=1, exp_stat_sn=2),
        "46810000 00000000 00000000 0000000000000070 00090000 00000001 0000000200000000 00000000 00000000 00000000",
        (1, 0x83),  # reason 3 does not exist
        INVALID,
    ),
    Vector(
        SnackRequest(itt=0x80, kind=SnackType.STATUS, exp_stat_sn=3, beg_run=4, run_length=5),
        "10810000 00000000 00000000 0000000000000080 ffffffff 00000000 0000000300000000 00000000 00000004 00000005",
        (7, 1),  # a data segment
        RejectReason.PROTOCOL_ERROR,
    ),
    Vector(
        NopIn(itt=0xFFFFFFFF, ttt=0x91, lun=0, stat_sn=1, exp_cmd_sn=2, max_cmd_sn=3),
        "20800000 00000000 00000000 00000000ffffffff 00000091 00000001 0000000200000003 00000000 00000000 00000000",
        (16, 0),  # a ping that is an answer, too
        INVALID,
    ),
    Vector(
        ScsiResponsePdu(
            itt=0x10,
            status=2,
            stat_sn=1,
            exp_cmd_sn=2,
            max_cmd_sn=3,
            flags=ResidualFlag.UNDERFLOW,
            residual=0x200,
            exp_data_sn=4,
            data=b"\x00\x03\x70\x00\x05",
        ),
        "21820002 00000005 00000000 00000000"
        "00000010 00000000 00000001 00000002"
        "00000003 00000004 00000000 00000200"
        "0003700005 000000",
        (49, 4),  # more sense than data
        INVALID,
    ),
    Vector(
        TaskManagementResponse(
            itt=0x30, response=TaskResponse.FUNCTION_NOT_SUPPORTED, stat_sn=1, exp_cmd_sn=2, max_cmd_sn=3
        ),
        "22800500 00000000 00000000 0000000000000030 00000000 00000001 0000000200000003 00000000 00000000 00000000",
        (7, 1),  # a data segment
        RejectReason.PROTOCOL_ERROR,
    ),
    Vector(
        LoginResponse(
            isid=bytes.fromhex("00023d000001"),
            tsih=0x0102,
            itt=0x40,
            stat_sn=1,
            exp_cmd_sn=2,
            max_cmd_sn=3,
            status=LoginStatus.NOT_FOUND,
            csg=Stage.OPERATIONAL,
            nsg=Stage.FULL_FEATURE,
            transit=True,
        ),
        "23870000 00000000 00023d00 0001010200000040 00000000 00000001 0000000200000003 02030000 00000000 00000000",
        (1, 0xC7),  # T and C
        INVALID,
    ),
    Vector(
        TextResponse(itt=0x50, ttt=0x51, stat_sn=1, exp_cmd_sn=2, max_cmd_sn=3, final=False, data=b"A=B\0"),
        "24000000 00000004 00000000 00000000"
        "00000050 00000051 00000001 00000002"
        "00000003 00000000 00000000 00000000"
        "413d4200",
        (1, 0x80),  # final, with a TTT
        INVALID,
    ),
    Vector(
        DataIn(
            itt=0x10,
            exp_cmd_sn=2,
            max_cmd_sn=3,
            data_sn=4,
            buffer_offset=0x1000,
            status=0,
            stat_sn=1,
            flags=ResidualFlag.OVERFLOW,
            residual=7,
            data=b"data",
        ),
        "25850000 00000004 00000000 00000000"
        "00000010 ffffffff 00000001 00000002"
        "00000003 00000004 00001000 00000007"
        "64617461",
        (1, 0x05),  # status before the last PDU
        INVALID,
    ),
    Vector(
        LogoutResponse(
            itt=0x70,
            response=LogoutResult.CID_NOT_FOUND,
            stat_sn=1,
            exp_cmd_sn=2,
            max_cmd_sn=3,
            time2wait=2,
            time2retain=20,
        ),
        "26800100 00000000 00000000 0000000000000070 00000000 00000001 0000000200000003 00000000 00020014 00000000",
        (7, 1),  # a data segment
        RejectReason.PROTOCOL_ERROR,
    ),
    Vector(
        R2T(
            itt=0x60,
            ttt=0x61,
            lun=0x0002_0000_0000_0000,
            stat_sn=1,
            exp_cmd_sn=2,
            max_cmd_sn=3,
            r2t_sn=4,
            buffer_offset=0x2000,
            desired_length=0x4000,
        ),
        "31800000 00000000 00020000 0000000000000060 00000061 00000001 0000000200000003 00000004 00002000 00004000",
        (46, 0),  # asks for nothing
        INVALID,
    ),
    Vector(
        AsyncMessage(
            event=AsyncEvent.LOGOUT_REQUEST,
            stat_sn=1,
            exp_cmd_sn=2,
            max_cmd_sn=3,
            parameter1=4,
            parameter2=5,
            parameter3=6,
        ),
        "32800000 00000000 00000000 00000000ffffffff 00000000 00000001 0000000200000003 01000004 00050006 00000000",
        (5, 0x10),  # longer than was declared
        None,
    ),
    Vector(
        Reject(reason=RejectReason.PROTOCOL_ERROR, stat_sn=1, exp_cmd_sn=2, max_cmd_sn=3, data_sn=4, data=bytes(48)),
        "3f800400 00000030 00000000 00000000"
        "ffffffff 00000000 00000001 00000002"
        "00000003 00000004 00000000 00000000" + "00" * 48,
        (5, 0x10),  # longer than was declared
        None,
    ),
]

IDS = [f"{type(vector.pdu).__name__}-{n}" for n, vector in enumerate(VECTORS)]


def kinds_of(pdu: Pdu) -> dict[int, type[Pdu]]:
    return REQUESTS if pdu.OPCODE < 0x20 else RESPONSES


def cut(wire: bytes) -> Frame:
    frame = PLAIN.next(memoryview(wire))
    assert frame is not None
    assert frame.end == len(wire)
    return frame


@pytest.mark.parametrize("vector", VECTORS, ids=IDS)
def test_object_and_bytes_are_the_same(vector):
    wire = bytes.fromhex(vector.wire)
    assert PLAIN.encode(vector.pdu).hex(" ", 4) == wire.hex(" ", 4)
    assert decode(cut(wire), kinds_of(vector.pdu)) == vector.pdu


@pytest.mark.parametrize("vector", VECTORS, ids=IDS)
def test_a_truncated_pdu_is_not_there_yet(vector):
    wire = bytes.fromhex(vector.wire)
    for length in range(len(wire)):
        assert PLAIN.next(memoryview(wire)[:length]) is None
    for length in (0, 47):
        with pytest.raises(ProtocolError):
            type(vector.pdu).parse(wire[:length])


@pytest.mark.parametrize("vector", VECTORS, ids=IDS)
def test_a_corrupted_pdu_is_refused_with_its_answer(vector):
    wire = bytearray.fromhex(vector.wire)
    offset, byte = vector.spoil
    wire[offset] = byte
    wire += bytes(8)  # room for what the spoilt header may announce
    with pytest.raises(ProtocolError) as error:
        decode(PLAIN.next(memoryview(wire)), kinds_of(vector.pdu))
    assert error.value.answer is vector.answer


@pytest.mark.parametrize("vector", VECTORS, ids=IDS)
def test_a_pdu_is_described_in_one_line_without_its_data(vector):
    text = str(vector.pdu)
    assert text.startswith(type(vector.pdu).__name__)
    assert "\n" not in text
    assert "ping!" not in text


def test_there_is_a_vector_for_every_opcode():
    assert {vector.pdu.OPCODE for vector in VECTORS} == set(REQUESTS) | set(RESPONSES)


@pytest.mark.parametrize("vector", VECTORS, ids=IDS)
def test_another_types_bytes_are_not_parsed(vector):
    other = DataOut if not isinstance(vector.pdu, DataOut) else NopOut
    with pytest.raises(ProtocolError):
        other.parse(bytes.fromhex(vector.wire)[:48])


def test_an_unknown_opcode_is_not_supported():
    for kinds, opcode in ((REQUESTS, 0x07), (REQUESTS, 0x25), (RESPONSES, 0x01)):
        with pytest.raises(ProtocolError) as error:
            decode(cut(bytes([opcode]) + bytes(47)), kinds)
        assert error.value.answer is RejectReason.COMMAND_NOT_SUPPORTED


@pytest.mark.parametrize(
    "pdu",
    [
        ScsiCommandPdu(0xFFFFFFFF, 0, bytes(16), 1, 2),
        ScsiCommandPdu(1, 0, bytes(16), 1, 2, edtl=4, read=True, data=b"1234"),
        ScsiCommandPdu(1, 0, bytes(16), 1, 2, edtl=4, write=True, data=b"12345"),
        ScsiCommandPdu(1, 0, bytes(264), 1, 2),
        TaskManagementRequest(0xFFFFFFFF, 1, 1, 2),
        TextRequest(0xFFFFFFFF, 1, 2),
        DataOut(0xFFFFFFFF, 1, 2, 3, 4),
        LogoutRequest(0xFFFFFFFF, 0, 0, 1, 2),
        LoginRequest(bytes(6), 0, 1, 0, 0, 0, csg=1, nsg=0, transit=True),
        LoginRequest(bytes(6), 0, 1, 0, 0, 0, csg=0, nsg=1, transit=True, continued=True),
        ScsiResponsePdu(1, 0, flags=ResidualFlag.OVERFLOW | ResidualFlag.UNDERFLOW),
        DataIn(1, 0, 0, flags=ResidualFlag.OVERFLOW | ResidualFlag.UNDERFLOW),
        R2T(1, 0xFFFFFFFF, 0, 0, 512),
    ],
    ids=str,
)
def test_other_values_that_the_rfc_forbids(pdu):
    with pytest.raises(ProtocolError) as error:
        decode(cut(PLAIN.encode(pdu)), kinds_of(pdu))
    assert error.value.answer is INVALID


def test_a_nop_that_wants_no_answer_is_immediate():
    nop = NopOut(0xFFFFFFFF, 1, 2, immediate=False)
    with pytest.raises(ProtocolError) as error:
        decode(cut(PLAIN.encode(nop)), REQUESTS)
    assert error.value.answer is RejectReason.PROTOCOL_ERROR
