"""The load generator against targets that break the protocol: it ends with 3 and says why, whatever it is sent.

The target is a thread with a script: it takes logins and the two commands of the set-up as it should, and answers the
first READ with bytes given as they are on the wire (RFC 7143 section 11).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from bench.loadgen import TARGET_LOST, WRONG_BYTES, Loadgen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.client("loadgen")

BLOCKS = 131072  # of 512 bytes
READ_ITT, READ_STAT_SN = 0, 4  # two logins and two commands came before
NO_TAG = 0xFFFFFFFF
WINDOW = (10, 100)  # ExpCmdSN, MaxCmdSN


def pdu(opcode: int, flags: int, itt: int, stat_sn: int, tail: bytes = b"", *, ttt=0, status=0, data=b"") -> bytes:
    """A PDU from the target; ``tail``: the last 12 bytes of its header."""
    length = len(data).to_bytes(4, "big")
    head = struct.pack(">BBBB4s8xIIIII", opcode, flags, status >> 8, status & 0xFF, length, itt, ttt, stat_sn, *WINDOW)
    return head + tail.ljust(12, b"\0") + data


def data_in(*, itt=READ_ITT, stat_sn=READ_STAT_SN, data_sn=0, offset=0, data=bytes(4096), flags=0x81) -> bytes:
    return pdu(0x25, flags, itt, stat_sn, struct.pack(">II", data_sn, offset), ttt=NO_TAG, data=data)


def check_condition(sense: bytes) -> bytes:
    data = len(sense).to_bytes(2, "big") + sense
    return pdu(0x21, 0x80, READ_ITT, READ_STAT_SN, status=0x0002, data=data.ljust(len(data) + -len(data) % 4, b"\0"))


def receive(peer: socket.socket) -> bytes:
    """One PDU's header; its data is taken, too."""
    header = peer.recv(48, socket.MSG_WAITALL)
    length = int.from_bytes(header[5:8], "big")
    peer.recv(length + -length % 4, socket.MSG_WAITALL)
    return header


def converse(peer: socket.socket, answer: bytes) -> None:
    """Logins, TEST UNIT READY, READ CAPACITY(16); then ``answer`` to whatever comes."""
    for stage, flags in enumerate((0x81, 0x87)):
        receive(peer)
        peer.sendall(pdu(0x23, flags, 0, stage))
    receive(peer)
    peer.sendall(pdu(0x21, 0x80, 0, 2))
    receive(peer)
    capacity = struct.pack(">QI20x", BLOCKS - 1, 512)
    peer.sendall(pdu(0x25, 0x81, 0, 3, bytes(8), ttt=NO_TAG, data=capacity))
    receive(peer)
    peer.sendall(answer)


@pytest.fixture
def target() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """Start a target that treats its one connection as the function says, then closes it; returns its URL."""
    with contextlib.ExitStack() as stack:

        def start(treat: Callable[[socket.socket], None]) -> str:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def serve() -> None:
                peer, _ = listener.accept()
                with peer, contextlib.suppress(OSError):  # reset by the client, or already gone: ENOTCONN of shutdown
                    treat(peer)
                    peer.shutdown(socket.SHUT_WR)
                    while peer.recv(65536):
                        pass

            thread = threading.Thread(target=serve)
            thread.start()
            stack.callback(thread.join, 30)
            return f"iscsi://127.0.0.1:{listener.getsockname()[1]}/iqn.2026-11.example:bad/0"

        yield start


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "the target closed the connection"),
        (data_in()[:1000], "the target closed the connection"),
        (data_in(stat_sn=READ_STAT_SN + 1), "StatSN 00000005 where 00000004 was due"),
        (data_in(itt=7), "a PDU of opcode 25 for task 00000007, which is none of ours"),
        (data_in(itt=0x7FFFFFFF), "for task 7fffffff, which is none of ours"),
        (data_in(data_sn=1), "Data-In with DataSN 1, offset 0, length 4096"),
        (data_in(offset=512), "Data-In with DataSN 0, offset 512, length 4096"),
        (data_in(data=bytes(8192)), "length 8192 where DataSN 0 and offset 0 of 4096 were due"),
        (data_in(data=bytes(512)), "GOOD for a command that moved 512 of 4096 bytes"),
        (data_in(data=bytes(100), flags=0x80), "Data-In that cuts a sector in two"),
        (b"\x25\x81\0\0\0\x10\0\0" + bytes(40), "a data segment of 1048576 bytes; 262144 were declared"),
        (pdu(0x21, 0x80, READ_ITT, READ_STAT_SN), "GOOD for a command that moved 0 of 4096 bytes"),
        (pdu(0x21, 0x80, READ_ITT, READ_STAT_SN, status=0x0100), "iSCSI response 01"),
        (pdu(0x21, 0x80, READ_ITT, READ_STAT_SN, status=0x0008), "status 08"),
        (check_condition(bytes.fromhex("70000300000000 0a 00000000 1100 0000 0000")), "sense key 3, asc/ascq 1100"),
        (check_condition(bytes.fromhex("7203110000000000")), "sense key 3, asc/ascq 1100"),
        (  # little space is left: no failure, the command is sent once more, and that one is refused
            check_condition(bytes.fromhex("72063807 00000000"))
            + pdu(0x21, 0x80, READ_ITT, READ_STAT_SN + 1, status=0x0008),
            "status 08",
        ),
        (check_condition(b""), "sense key 0, asc/ascq 0000"),
        (pdu(0x31, 0x80, READ_ITT, 0, struct.pack(">III", 0, 0, 4096), ttt=1), "R2T for offset 0, length 4096 of 4096"),
        (pdu(0x3F, 0x80, NO_TAG, READ_STAT_SN, status=0x0400, data=bytes(48)), "Reject, reason 04"),
        (pdu(0x32, 0x80, NO_TAG, READ_STAT_SN, b"\x01"), "asynchronous message 1: the target ends the session"),
        (pdu(0x3E, 0x80, 1, READ_STAT_SN), "a PDU of opcode 3e, which no target sends now"),
        (bytes(48), "StatSN 00000000 where 00000004 was due"),
    ],
)
def test_a_breach_ends_the_run_with_its_reason(
    loadgen_program: Path, tmp_path: Path, target, answer: bytes, reason: str
):
    url = target(lambda peer: converse(peer, answer))
    outcome = Loadgen(loadgen_program, url, tmp_path / "ledger").run("read", seconds=5)
    assert outcome.code == TARGET_LOST, outcome.explain()
    assert reason in outcome.figures["failure"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "the target closed the connection"),
        (pdu(0x23, 0x00, 0, 0, bytes.fromhex("0201")), "refused with status 0201"),
        (pdu(0x21, 0x80, 0, 0), "login: answered by opcode 21"),
        (b"\x23\x81\0\0\0\xff\xff\xff" + bytes(40), "login: answered by opcode 23 with 16777215 bytes"),
        (b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n", "login: answered by opcode 48"),
        (pdu(0x23, 0x00, 0, 0) * 20, "login: not at its end after 16 steps"),
    ],
)
def test_a_login_that_does_not_succeed(loadgen_program: Path, tmp_path: Path, target, answer: bytes, reason: str):
    def treat(peer: socket.socket) -> None:
        receive(peer)
        peer.sendall(answer)

    outcome = Loadgen(loadgen_program, target(treat), tmp_path / "ledger").run("read", seconds=5)
    assert (outcome.code, outcome.figures) == (TARGET_LOST, {"failure": "login"})
    assert reason in outcome.stderr


def test_a_ping_is_answered_and_a_good_answer_taken_in_any_pieces(loadgen_program: Path, tmp_path: Path, target):
    """Data-In in two segments after a NOP-In, byte by byte; the ledger then says that the zeroes are wrong."""
    ping = pdu(0x20, 0x80, NO_TAG, READ_STAT_SN, ttt=0x1234)
    halves = data_in(data=bytes(2048), flags=0) + data_in(data=bytes(2048), data_sn=1, offset=2048)
    heard: list[bytes] = []

    def treat(peer: socket.socket) -> None:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        converse(peer, b"")
        for at in range(len(ping + halves)):
            peer.sendall((ping + halves)[at : at + 1])
        heard.extend((receive(peer), receive(peer)))
        peer.sendall(pdu(0x26, 0x80, 0, READ_STAT_SN + 1))

    url = target(treat)
    ledger = tmp_path / "ledger"
    ledger.write_bytes(struct.pack("<II", 1, 1) * (BLOCKS // 8))  # every granule was written once
    outcome = Loadgen(loadgen_program, url, ledger).run("read", seconds=0.000001)
    assert outcome.code == WRONG_BYTES, outcome.explain()
    assert outcome.figures["wrong_sectors"] == 8
    nop_out, logout = heard
    assert (nop_out[0], nop_out[20:24]) == (0x40, bytes.fromhex("00001234"))
    assert logout[:2] == b"\x46\x80"
