"""What a session is told, byte by byte, while an administrator resizes volumes, moves LUNs and pauses the target.

The initiator is made of literal bytes (``raw_iscsi``): fixed format sense data as in SPC-4 section 4.5.3, with the
additional sense codes of its annex F.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import CommandFailed
from tests.support.raw_iscsi import DATA_IN, SCSI_COMMAND, SCSI_RESPONSE, RawSession, pdu

if TYPE_CHECKING:
    from tests.support.daemon import Daemon

TEST_UNIT_READY = bytes(6)
READ_CAPACITY_10 = bytes.fromhex("25000000000000000000")
REPORT_LUNS = bytes.fromhex("a00000000000000001000000")
GOOD, CHECK_CONDITION = 0x00, 0x02
LUN_1 = bytes.fromhex("0001000000000000")


def unit_attention(code: str) -> bytes:
    return bytes.fromhex(f"70000600000000 0a 00000000 {code} 00000000")


def illegal_request(code: str) -> bytes:
    return bytes.fromhex(f"70000500000000 0a 00000000 {code} 00000000")


def send(session: RawSession, cdb: bytes, *, itt: int, read_bytes: int = 0, lun: bytes = bytes(8)) -> None:
    """A command whose answer is read by ``receive``."""
    tail = struct.pack(">III", read_bytes, session.cmd_sn, session.exp_stat_sn) + cdb.ljust(16, b"\0")
    session.send(pdu(SCSI_COMMAND, flags=0xC0 if read_bytes else 0x80, lun=lun, itt=itt, tail=tail))
    session.cmd_sn += 1


def receive(session: RawSession) -> tuple[int, int, bytes]:
    """ITT, status, and data or sense of the next answer."""
    answer = session.receive()
    assert answer.opcode in (DATA_IN, SCSI_RESPONSE), answer
    return int.from_bytes(answer.header[16:20], "big"), answer.header[3], answer.data[2 * (answer.opcode != DATA_IN) :]


def at_lun_1(session: RawSession, cdb: bytes, *, read_bytes: int = 0) -> tuple[int, bytes]:
    send(session, cdb, itt=0x51, read_bytes=read_bytes, lun=LUN_1)
    return receive(session)[1:]


def logged_in(daemon: Daemon, name: str) -> RawSession:
    session = RawSession(daemon.portal).login(f"iqn.2026-11.org.twinvol:{name}")
    assert session.command(TEST_UNIT_READY) == (CHECK_CONDITION, unit_attention("2900"))
    assert session.command(TEST_UNIT_READY) == (GOOD, b"")
    return session


def test_a_resize_is_told_once_to_every_session(daemon: Daemon):
    daemon.volume("disk", "1M")
    with logged_in(daemon, "disk") as one, logged_in(daemon, "disk") as other:
        assert one.command(READ_CAPACITY_10, read_bytes=8) == (GOOD, bytes.fromhex("000007ff 00000200"))
        daemon.run("volume", "resize", "disk", "--size", "2M")
        for session in (one, other):
            assert session.command(TEST_UNIT_READY) == (CHECK_CONDITION, unit_attention("2a09"))
            assert session.command(READ_CAPACITY_10, read_bytes=8) == (GOOD, bytes.fromhex("00000fff 00000200"))
        daemon.run("volume", "resize", "disk", "--size", "512K", "--shrink")
        assert one.command(TEST_UNIT_READY) == (CHECK_CONDITION, unit_attention("2a09"))
        read_beyond = bytes.fromhex("28000000040000000100")
        sense = bytes.fromhex(
            "f0000500000400 0a 00000000 2100 00000000"
        )  # INFORMATION: the first LBA that is not there
        assert one.command(read_beyond, read_bytes=512) == (CHECK_CONDITION, sense)


def test_a_lun_comes_and_goes(daemon: Daemon):
    daemon.volume("disk", "1M")
    daemon.run("volume", "create", "more", "--size", "2M")
    with logged_in(daemon, "disk") as session:
        assert at_lun_1(session, TEST_UNIT_READY) == (CHECK_CONDITION, illegal_request("2500"))
        daemon.run("target", "lun", "add", "disk", "more", "--lun", "1")
        assert session.command(TEST_UNIT_READY) == (CHECK_CONDITION, unit_attention("3f0e"))
        luns = "00000010 00000000 0000000000000000 0001000000000000"
        assert session.command(REPORT_LUNS, read_bytes=256) == (GOOD, bytes.fromhex(luns))
        assert at_lun_1(session, TEST_UNIT_READY) == (CHECK_CONDITION, unit_attention("2900"))
        capacity = bytes.fromhex("00000fff 00000200")
        assert at_lun_1(session, READ_CAPACITY_10, read_bytes=8) == (GOOD, capacity)

        daemon.run("target", "lun", "remove", "disk", "1", "--force")
        assert at_lun_1(session, READ_CAPACITY_10, read_bytes=8) == (CHECK_CONDITION, illegal_request("2500"))
        # REPORT LUNS is answered despite the unit attention, and settles it (SPC-4 section 6.33).
        luns = "00000008 00000000 0000000000000000"
        assert session.command(REPORT_LUNS, read_bytes=256) == (GOOD, bytes.fromhex(luns))
        assert session.command(TEST_UNIT_READY) == (GOOD, b"")


def test_commands_of_a_paused_target_wait_and_pings_do_not(daemon: Daemon):
    daemon.volume("disk", "1M")
    with logged_in(daemon, "disk") as session:
        daemon.run("target", "pause", "disk", "--timeout", "600")
        send(session, bytes.fromhex("28000000000000000100"), itt=0x61, read_bytes=512)  # READ(10)
        send(session, bytes.fromhex("35000000000000000000"), itt=0x62)  # SYNCHRONIZE CACHE(10)
        session.ping()  # asserts that nothing but its answer comes
        assert session.command(TEST_UNIT_READY) == (GOOD, b"")
        daemon.run("target", "resume", "disk")
        answers = {itt: (status, data) for itt, status, data in (receive(session), receive(session))}
        assert answers == {0x61: (GOOD, bytes(512)), 0x62: (GOOD, b"")}


def test_a_restart_ends_a_pause(daemon: Daemon):
    daemon.volume("disk", "1M")
    daemon.run("target", "pause", "disk", "--timeout", "600")
    assert daemon.stop() == 0
    with daemon.start(daemon.pool) as again, logged_in(again, "disk") as session:
        assert again.run("target", "show", "disk")["state"] == "ok"
        read = bytes.fromhex("28000000000000000100")
        assert session.command(read, read_bytes=512) == (GOOD, bytes(512))


def test_a_promoted_replica_is_the_same_disk(daemon: Daemon):
    serial, identification = bytes.fromhex("12018000ff00"), bytes.fromhex("12018300ff00")  # INQUIRY, VPD 80h and 83h
    write = bytes.fromhex("2a000000000700000100")  # WRITE(10), LBA 7
    read = bytes.fromhex("28000000000700000100")
    daemon.volume("disk", "1M")
    daemon.run("replica", "create", "disk", "own", "--mode", "sync")
    with logged_in(daemon, "disk") as session:
        before = [session.command(cdb, read_bytes=255) for cdb in (serial, identification)]
        assert before[0][0] == GOOD
        session.send(session.scsi(write, write=512, data=b"w" * 512))
        assert receive(session)[1] == GOOD
        with pytest.raises(CommandFailed) as refused:
            daemon.run("replica", "promote", "own")
        assert refused.value.code == 4  # it is in use
        info = daemon.run("replica", "promote", "own", "--force")
        assert (info["name"], info["target"], info["lun"]) == ("own", "iqn.2026-11.org.twinvol:disk", 0)
        assert session.command(TEST_UNIT_READY) == (CHECK_CONDITION, unit_attention("2900"))
        assert [session.command(cdb, read_bytes=255) for cdb in (serial, identification)] == before
        assert session.command(read, read_bytes=512) == (GOOD, b"w" * 512)
        session.send(session.scsi(write, write=512, data=b"x" * 512))
        assert receive(session)[1] == GOOD
    daemon.run("volume", "delete", "disk")
    with logged_in(daemon, "disk") as session:
        assert session.command(read, read_bytes=512) == (GOOD, b"x" * 512)
