"""Peers that break every rule, against a real daemon, while another initiator works on undisturbed beside them.

The good host writes, reads back and compares all the time, on a disk of its own; each attack has to leave it working,
and to hurt none but the session that attacks. The daemon's resident memory is read after every attack and stays within
``MAX_GROWTH_MIB`` of where it began. Figures: ``pytest -s``.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import struct
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iscsi.initiator.disk import connect
from tests.support.raw_iscsi import (
    LOGIN_RESPONSE,
    LOGOUT,
    NOP_IN,
    NOP_OUT,
    R2T,
    REJECT,
    SCSI_COMMAND,
    SCSI_RESPONSE,
    TASK_MANAGEMENT,
    TEXT,
    RawSession,
    data_out,
    login_pdu,
    pdu,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.daemon import Daemon

MIB = 1 << 20
MAX_GROWTH_MIB = 576
"""What all attacks together may make the daemon hold. Twice 128 MiB are what all sessions share for data of commands in
progress, gathered and executed (``iscsi.room.MAX_SHARED_BYTES``); one command of each session comes on top, and what
the connections have received in part or not yet sent."""

MAX_LOG_BYTES = MIB  # some lines for each of 2,500 connections, however much they do wrong
GOOD_IOS = 20  # that the good host has to complete after each attack
GOOD_TIMEOUT_S = 60.0
GOOD, CHECK_CONDITION, TASK_SET_FULL = 0x00, 0x02, 0x28


class GoodHost(threading.Thread):
    """Writes 64 KiB with a number of its own, reads it back, compares, and so on round its disk."""

    def __init__(self, portal: str, target: str) -> None:
        super().__init__(name="good host")
        host, _, port = portal.rpartition(":")
        self._portal = host, int(port)
        self._target = target
        self._changed = threading.Condition()
        self._stop_asked = False
        self.ios = 0
        self.longest_s = 0.0  # of a write and its read, since it was last set to 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._work())
        except BaseException as error:
            with self._changed:
                self.error = error
                self._changed.notify_all()

    async def _work(self) -> None:
        async with await connect(self._portal, self._target) as disk:
            while not self._stop_asked:
                offset = self.ios % 256 * 65536
                data = self.ios.to_bytes(8, "big") * 8192
                begun = time.monotonic()
                await disk.write(offset, data)
                assert await disk.read(offset, len(data)) == data, "the good host reads something else than it wrote"
                with self._changed:
                    self.ios += 2
                    self.longest_s = max(self.longest_s, time.monotonic() - begun)
                    self._changed.notify_all()

    def goes_on(self) -> None:
        """Return when some more of its commands are done. AssertionError if they are not, or it failed."""
        with self._changed:
            wanted = self.ios + GOOD_IOS
            assert self._changed.wait_for(lambda: self.ios >= wanted or self.error, GOOD_TIMEOUT_S), "it stands still"
            assert self.error is None, f"the good host failed: {self.error!r}"

    def stop(self) -> None:
        self._stop_asked = True
        self.join(GOOD_TIMEOUT_S)
        assert not self.is_alive()
        assert self.error is None, f"the good host failed: {self.error!r}"


@dataclass
class Scene:
    """The daemon, its victim target, and an address of its own for each attack (connections are capped per address)."""

    daemon: Daemon
    target: str
    reset_target: str  # whose disk is reset again and again, which ends the commands of all its initiators
    connections: ExitStack = field(default_factory=ExitStack)
    attacks: int = 0

    def open(self, *, number: int = 0, **options) -> RawSession:
        source = f"127.{1 + self.attacks}.{number // 400}.1"
        return self.connections.enter_context(RawSession(self.daemon.portal, source=source, **options))

    def log_in(
        self, *, number: int = 0, target: str = "", extra: str = "", isid: bytes | None = None, **options
    ) -> RawSession:
        session = self.open(number=number, **options).login(target or self.target, extra=extra, isid=isid)
        while session.command(b"\0", itt=0xFFFF)[0] != GOOD:  # TEST UNIT READY takes the unit attentions
            pass
        return session

    def rss_mib(self) -> float:
        pages = int(Path(f"/proc/{self.daemon.process.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / MIB


def read_10(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", 0x28, 0, lba, 0, blocks, 0)


def write_10(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, 0x08 if fua else 0, lba, 0, blocks, 0)


def write_16(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    return struct.pack(">BBQIBB", 0x8A, 0x08 if fua else 0, lba, blocks, 0, 0)


def expect(session: RawSession, opcode: int, itt: int | None = None) -> bytes:
    """The next PDU's header; it has to be this one."""
    answer = session.receive()
    assert answer.opcode == opcode, f"opcode {answer.opcode:#04x}, {answer.header.hex(' ', 4)}"
    assert itt is None or answer.header[16:20] == struct.pack(">I", itt)
    return answer.header


def tail(session: RawSession, *, ttt: int = 0xFFFFFFFF, cmd_sn: int | None = None) -> bytes:
    """Bytes 20 on of NOP-Out, Text and Task Management."""
    return struct.pack(">III", ttt, session.cmd_sn if cmd_sn is None else cmd_sn, session.exp_stat_sn)


# -- the attacks: each says what it sent


def half_pdus(scene: Scene) -> str:
    """Every kind of PDU begun and never finished; the connections stay."""
    whole = login_pdu(scene.target)
    for length in range(1, len(whole), 7):
        scene.open().send(whole[:length])
    for number in range(100):
        session = scene.log_in(number=number, extra="FirstBurstLength=262144\0")
        write = session.scsi(write_10(0, 512), write=262144, data=bytes(262144))
        session.send(write[: 100_000 + number])
    return "100 sessions with half a 256 KiB write each, 40 half logins"


def endless_text(scene: Scene) -> str:
    login = scene.open()
    begun = bytearray(login_pdu(scene.target))
    begun[1] = 0x44  # no T, but C: more of the text is to come, CSG 1
    sent = 0
    while True:
        login.send(bytes(begun))
        sent += len(begun)
        answer = login.receive()
        assert answer.opcode == LOGIN_RESPONSE
        if answer.header[36:38] != b"\0\0":
            break
    assert answer.header[36:38] == b"\x02\x00"
    assert sent < 16384
    assert login.is_closed()
    session = scene.log_in()
    ttt, rejected = 0xFFFFFFFF, 0
    for _ in range(200):
        request = pdu(0x40 | TEXT, flags=0x40, itt=7, tail=tail(session, ttt=ttt), data=b"X" * 4000)
        session.send(request)
        answer = session.receive()
        session.exp_stat_sn += 1
        rejected += answer.opcode == REJECT
        ttt = 0xFFFFFFFF if answer.opcode == REJECT else int.from_bytes(answer.header[20:24], "big")
    assert rejected >= 60
    session.ping()
    return f"a login text without end, and one in full feature phase: {rejected} rejects"


def wrong_numbers(scene: Scene) -> str:
    session = scene.log_in()
    for cmd_sn in (session.cmd_sn - 1, session.cmd_sn + 1000, session.cmd_sn + (1 << 31)):
        stray = struct.pack(">III", 512, cmd_sn & 0xFFFFFFFF, 0) + read_10(0, 1).ljust(16, b"\0")
        for itt in range(1000):
            session.send(pdu(SCSI_COMMAND, flags=0xC0, itt=itt, tail=stray))
    session.ping()  # ignored, all of them
    gap = struct.pack(">III", 512, session.cmd_sn + 1, 0) + read_10(0, 1).ljust(16, b"\0")
    session.send(pdu(SCSI_COMMAND, flags=0xC0, tail=gap))
    assert session.is_closed()
    return "3,000 commands outside of the window, ignored; a gap in CmdSN, which ends the session"


def wrong_data(scene: Scene) -> str:
    """Data-Out that is late, early, twice, too much, for nobody."""
    session = scene.log_in(extra="InitialR2T=Yes\0ImmediateData=No\0")
    blocks, length = 16, 8192
    spoilt: list[Callable[[int], bytes]] = [
        lambda ttt: data_out(1, bytes(length), 0, ttt=ttt, data_sn=1),  # wrong DataSN
        lambda ttt: data_out(1, bytes(length), 512, ttt=ttt),  # wrong offset
        lambda ttt: data_out(1, bytes(length), 0, ttt=ttt + 1),  # wrong tag
        lambda ttt: data_out(1, bytes(length + 512), 0, ttt=ttt),  # beyond what was asked for
        lambda ttt: data_out(1, bytes(512), 0, ttt=ttt),  # final too early
        lambda ttt: (  # overlapping
            data_out(1, bytes(4096), 0, ttt=ttt, final=False) + data_out(1, bytes(6144), 2048, ttt=ttt, data_sn=1)
        ),
    ]
    for spoil in spoilt:
        session.send(session.scsi(write_10(0, blocks), write=length, itt=1))
        ttt = int.from_bytes(expect(session, R2T, 1)[20:24], "big")
        session.send(spoil(ttt) + data_out(1, bytes(512), 0, ttt=ttt) * 50)  # the rest finds no task
        assert expect(session, SCSI_RESPONSE, 1)[3] == CHECK_CONDITION
        session.exp_stat_sn += 1
    for itt in range(2000):
        session.send(data_out(itt + 100, bytes(4096), 0))
    session.ping()
    return "six kinds of wrong Data-Out, each failing its command; 2,300 Data-Outs without a command, dropped"


def wrong_digests(scene: Scene) -> str:
    """Digests that do not match: RFC 7143 section 7.8."""
    for key, sound in (("HeaderDigest", False), ("DataDigest", True)):
        for _ in range(20):
            session = scene.open().login(scene.target, extra=f"{key}=CRC32C\0")
            ping = pdu(0x40 | NOP_OUT, itt=5, tail=tail(session), data=b"ping")
            session.send(
                ping[:48] + b"\xba\xad\xf0\x0d" + ping[48:] if key == "HeaderDigest" else ping + b"\xba\xad\xf0\x0d"
            )
            if sound:
                assert expect(session, REJECT)[2] == 0x02
            assert session.is_closed()
    return "20 wrong header digests, closed; 20 wrong data digests, rejected and closed"


def silent_connections(scene: Scene) -> str:
    half = login_pdu(scene.target)[:47]
    for number in range(1000):
        scene.open(number=number).send(half)
    return "1,000 connections that never log in"


def slow_readers(scene: Scene) -> str:
    """Each asks for 128 reads of 1 MiB and reads nothing."""
    for number in range(32):
        session = scene.log_in(number=number, receive_bytes=4096, extra="MaxRecvDataSegmentLength=262144\0")
        asked = [session.scsi(read_10(0, 2048), read=MIB, itt=itt) for itt in range(128)]
        session.sock.settimeout(0.2)
        with suppress(TimeoutError):
            session.send(b"".join(asked))
    return "32 sessions that read nothing, 4 GiB of reads outstanding"


def floods(scene: Scene) -> str:
    """As much as the target takes within a moment of what costs the sender little; nobody reads the answers."""
    kinds: list[Callable[[RawSession], bytes]] = [
        lambda s: pdu(0x40 | NOP_OUT, itt=1, tail=tail(s), data=bytes(4096)),
        lambda s: pdu(0x40 | TASK_MANAGEMENT, flags=0x85, itt=2, tail=tail(s)),  # LOGICAL UNIT RESET
        lambda s: pdu(0x40 | TASK_MANAGEMENT, flags=0x82, itt=2, tail=tail(s)),  # ABORT TASK SET
        lambda s: pdu(0x40 | SCSI_COMMAND, flags=0x80, itt=3, tail=struct.pack(">III", 0, s.cmd_sn, 0) + bytes(16)),
        lambda s: pdu(0x40 | TEXT, itt=4, tail=tail(s), data=b"SendTargets=\0"),
        lambda s: pdu(0x40 | 0x1C, itt=5, tail=tail(s)),
        lambda s: pdu(0x10, itt=6),  # SNACK
        lambda s: pdu(0x40 | LOGOUT, flags=0x82, itt=7, tail=tail(s, ttt=0)),  # for recovery: refused
        lambda s: data_out(8, bytes(8192), 0),
    ]
    sent = 0
    for number, kind in enumerate(kinds):
        session = scene.log_in(number=number, target=scene.reset_target if number == 1 else "")
        burst = kind(session) * 256
        session.sock.settimeout(0.1)
        with suppress(TimeoutError):
            for _ in range(40):
                session.send(burst)
                sent += 256
    return f"{len(kinds)} floods at once, {sent:,} PDUs taken"


def login_storm(scene: Scene) -> str:
    """One initiator port again and again, each time ending its old session; then many that stay."""
    isid = b"\x80\x12\x34\x56\x78\x9a"
    for _ in range(200):
        scene.log_in(isid=isid)
    for number in range(300):
        scene.open(number=400 + number).login(scene.target)
    return "200 reinstatements of one session, 300 more sessions"


def solicited(session: RawSession) -> list[tuple[int, int, int]]:
    """ITT, TTT and offset of the R2Ts that have come, up to the answer of a ping."""
    session.send(pdu(0x40 | NOP_OUT, itt=0x7777, tail=tail(session)))
    found = []
    while (answer := session.receive()).opcode != NOP_IN:
        assert answer.opcode == R2T, f"opcode {answer.opcode:#04x}"
        found.append(struct.unpack(">II16xI", answer.header[16:24] + answer.header[24:40] + answer.header[40:44]))
    session.exp_stat_sn += 1
    return found


def unfinished_writes(scene: Scene) -> str:
    """Writes of 8 MiB that the target has to keep until they are whole (FUA), and the last MiB never comes."""
    piece, held, asked = bytes(262144), 0, 0
    for number in range(16):
        session = scene.log_in(number=number, extra="ImmediateData=No\0InitialR2T=Yes\0MaxBurstLength=1048576\0")
        write = write_16(0, 16384, fua=True)
        session.send(b"".join(session.scsi(write, write=8 * MIB, itt=itt) for itt in range(64)))
        asked += 64
        for _ in range(7):
            for itt, ttt, offset in solicited(session):
                for at in range(4):
                    more = data_out(itt, piece, offset + at * len(piece), ttt=ttt, data_sn=at, final=at == 3)
                    session.send(more)
                    held += len(piece)
        solicited(session)
    return f"{asked} writes of 8 MiB without their last MiB; {held // MIB} MiB of them were asked for"


def unfinished_first_bursts(scene: Scene) -> str:
    """The same with data that comes without being asked for: TASK SET FULL where there is no room."""
    refused = 0
    for number in range(12):
        session = scene.log_in(number=number, extra="InitialR2T=No\0FirstBurstLength=262144\0MaxBurstLength=1048576\0")
        write = write_16(0, 1024, fua=True)
        for itt in range(100):
            session.send(session.scsi(write, write=524288, data=bytes(262144 - 512), itt=itt, flags=0))
        session.send(pdu(0x40 | NOP_OUT, itt=0x7777, tail=tail(session)))
        while (answer := session.receive()).opcode != NOP_IN:
            assert (answer.opcode, answer.header[3]) == (SCSI_RESPONSE, TASK_SET_FULL)
            refused += 1
    return f"1,200 writes of 256 KiB unsolicited data each and never the rest; {refused} of them TASK SET FULL"


def garbage(scene: Scene) -> str:
    """Random bytes, and commands with random bytes in their headers, in full feature phase."""
    chance = random.Random(7)
    for number in range(200):
        session = scene.log_in(number=number)
        stream = bytearray(b"".join(session.scsi(read_10(block, 1), read=512, itt=block) for block in range(20)))
        for _ in range(chance.randrange(1, 9)):
            stream[chance.randrange(len(stream))] = chance.randrange(256)
        session.send(bytes(stream) + chance.randbytes(chance.randrange(500)))
    return "200 sessions with spoilt commands and random bytes"


ATTACKS = (
    endless_text,
    wrong_numbers,
    wrong_data,
    wrong_digests,
    garbage,
    half_pdus,
    silent_connections,
    floods,
    login_storm,
    slow_readers,
    unfinished_writes,
    unfinished_first_bursts,
)


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_hostile_peers_hurt_nobody_but_themselves(daemon: Daemon):
    """All that an attack opened stays open beside the next attacks: the target meets them together."""
    good_target = daemon.volume("good", "16M").split("/")[3]
    scene = Scene(daemon, *(daemon.volume(name, "64M").split("/")[3] for name in ("victim", "reset")))
    good = GoodHost(daemon.portal, good_target)
    good.start()
    with scene.connections:
        try:
            good.goes_on()
            at_first = highest = scene.rss_mib()
            print(f"\nresident before: {at_first:.0f} MiB")
            for attack in ATTACKS:
                scene.attacks += 1
                begun = time.monotonic()
                told = attack(scene)
                good.goes_on()
                resident = scene.rss_mib()
                highest = max(highest, resident)
                print(
                    f"{attack.__name__:24} {time.monotonic() - begun:4.1f} s, resident {resident:4.0f} MiB, good I/Os"
                    f" {good.ios:6} (longest {good.longest_s * 1000:4.0f} ms): {told}"
                )
                good.longest_s = 0.0
                assert resident - at_first < MAX_GROWTH_MIB
            assert daemon.run("status")
        finally:
            good.stop()
    with RawSession(daemon.portal).login(scene.target) as session:
        session.ping()
    print(f"most resident: {highest:.0f} MiB; the good host: {good.ios} I/Os")
    log = daemon.log.read_text(encoding="utf-8")
    assert "Traceback" not in log
    assert "internal error" not in log
    assert len(log) < MAX_LOG_BYTES
    assert daemon.stop() == 0
