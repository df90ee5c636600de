"""Whole exchanges byte by byte, as they are on the wire: login, discovery, text, pings, digests, REPORT LUNS, refusals.

Nothing of ``iscsi/wire`` makes or reads these bytes. Offsets: RFC 7143 section 11; the figure beside each piece of a
header is the byte it begins at.
"""

from __future__ import annotations

import asyncio

import pytest

from iscsi.connection import SILENT_TICKS_BEFORE_PING
from iscsi.target import Portal, Target
from tests.support.iscsi_link import TARGET, Link, make_registry, make_unit
from tests.support.memory_device import MemoryDevice

NAMES = "InitiatorName=iqn.2026-11.example:host\0TargetName=iqn.2026-11.org.twinvol:disk\0SessionType=Normal\0"
DISCOVERY = "InitiatorName=iqn.2026-11.example:host\0SessionType=Discovery\0"
ISID = "00023d000001"


def pdu(header: str, text: str | bytes = b"") -> bytes:
    """A header in hexadecimal, in which LEN stands for the data segment's length, and the padded data segment."""
    data = text.encode() if isinstance(text, str) else text
    raw = bytes.fromhex(header.replace("LEN", f"{len(data):06x}"))
    assert len(raw) == 48
    return raw + data + bytes(-len(data) % 4)


def login_request(text: str, *, flags: str = "87", itt: str = "00000001") -> bytes:
    return pdu(f"43{flags}0000 00LEN {ISID}0000 {itt} 00000000 00000001 00000000" + "00" * 16, text)


def login_response(text: str, *, flags: str = "87", tsih: str = "0001", stat_sn: int = 0, window: int = 128) -> bytes:
    numbers = f"{stat_sn:08x} 00000001 {window:08x}"
    return pdu(f"23{flags}0000 00LEN {ISID}{tsih} 00000001 00000000 {numbers} 0000" + "00" * 10, text)


def refusal(status: str, *, stat_sn: int = 0) -> bytes:
    """A Login Response with a status: no flags, no data. Before full feature phase the window is empty."""
    return pdu(f"23000000 00LEN {ISID}0000 00000001 00000000 {stat_sn:08x} 00000001 00000001 {status}" + "00" * 10)


class Wire:
    """The initiator's end of the wire. Its CmdSN begins at 1, as the login says."""

    def __init__(self, *units, luns=()):
        registry = make_registry(*(units or [make_unit(MemoryDevice(1 << 20, fast=True))]))
        registry.portals = [Portal("10.0.0.1", 3260, 1), Portal("fd00::1", 3260, 2)]
        for number in luns:
            registry.find(TARGET).map_lun(number, make_unit(MemoryDevice(4096), 100 + number))
        self.registry = registry
        self.link = Link(registry)

    async def say(self, *pdus: bytes) -> bytes:
        """Send bytes; what comes back once the target has nothing left to do."""
        self.link.feed(b"".join(pdus))
        await self.link.settle()
        answer = bytes(self.link.sent)
        self.link.sent.clear()
        return answer

    async def log_in(self, text: str = NAMES) -> None:
        answer = await self.say(login_request(text))
        assert answer[:2] == b"\x23\x87"
        assert answer[36:38] == b"\0\0"


# -- login


async def test_a_login_as_linux_sends_it():
    offer = (
        "HeaderDigest=None\0DataDigest=None\0DefaultTime2Wait=2\0DefaultTime2Retain=0\0IFMarker=No\0OFMarker=No\0"
        "ErrorRecoveryLevel=0\0InitialR2T=No\0ImmediateData=Yes\0MaxBurstLength=16776192\0FirstBurstLength=262144\0"
        "MaxOutstandingR2T=1\0MaxConnections=1\0DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0"
        "MaxRecvDataSegmentLength=262144\0"
    )
    wire = Wire()
    security = login_request("AuthMethod=None\0" + NAMES, flags="81")
    assert await wire.say(security) == login_response(
        "TargetPortalGroupTag=1\0AuthMethod=None\0", flags="81", tsih="0000", window=1
    )
    assert await wire.say(login_request(offer)) == login_response(
        "HeaderDigest=None\0DataDigest=None\0DefaultTime2Wait=2\0DefaultTime2Retain=0\0IFMarker=No\0OFMarker=No\0"
        "ErrorRecoveryLevel=0\0InitialR2T=No\0ImmediateData=Yes\0MaxBurstLength=1048576\0MaxOutstandingR2T=1\0"
        "MaxConnections=1\0DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0FirstBurstLength=262144\0"
        "MaxRecvDataSegmentLength=262144\0",
        stat_sn=1,
    )


async def test_unknown_obsolete_inadmissible_and_irrelevant_keys():
    wire = Wire()
    odd = "X-com.example=1\0IFMarkInt=2048~8192\0MaxBurstLength=1\0MaxOutstandingR2T=00\0InitialR2T=perhaps\0"
    assert await wire.say(login_request(NAMES + odd)) == login_response(
        "TargetPortalGroupTag=1\0X-com.example=NotUnderstood\0IFMarkInt=Reject\0MaxBurstLength=Reject\0"
        "MaxOutstandingR2T=Reject\0InitialR2T=Reject\0MaxRecvDataSegmentLength=262144\0"
    )
    wire = Wire()
    assert await wire.say(login_request(DISCOVERY + "MaxConnections=1\0TaskReporting=FastAbort\0")) == login_response(
        "MaxConnections=Irrelevant\0TaskReporting=Irrelevant\0MaxRecvDataSegmentLength=262144\0"
    )


async def test_login_text_over_three_pdus():
    wire = Wire()
    text = NAMES + "ImmediateData=No\0"
    for piece in (text[:7], text[7:100]):
        expected = login_response("", flags="04", tsih="0000", window=1, stat_sn=0 if piece == text[:7] else 1)
        assert await wire.say(login_request(piece, flags="44")) == expected
    assert await wire.say(login_request(text[100:])) == login_response(
        "TargetPortalGroupTag=1\0ImmediateData=No\0MaxRecvDataSegmentLength=262144\0", stat_sn=2
    )


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (NAMES + "ImmediateData=No\0ImmediateData=No\0", "0200"),  # a key twice
        (NAMES + "SendTargets=All\0", "0200"),  # belongs to full feature phase
        (NAMES + "TargetAlias=mine\0", "0200"),  # is the target's
        (NAMES + "MaxRecvDataSegmentLength=511\0", "0200"),
        ("TargetName=iqn.2026-11.org.twinvol:disk\0", "0207"),  # no InitiatorName
        ("InitiatorName=iqn.2026-11.example:host\0", "0207"),  # no TargetName
        (NAMES.replace(":disk", ":nothing"), "0203"),
        (NAMES.replace("Normal", "Other"), "0209"),
        ("no pair", "0200"),
    ],
)
async def test_refused_logins(text, status):
    wire = Wire()
    assert await wire.say(login_request(text)) == refusal(status)
    assert wire.link.connection.closing


# -- discovery and text


async def test_discovery_tells_every_target_and_every_way_to_it():
    wire = Wire()
    wire.registry.add(Target("iqn.2026-11.org.twinvol:another", portal_groups=[1]))
    wire.registry.add(Target("iqn.2026-11.org.twinvol:elsewhere", portal_groups=[2]))
    await wire.log_in(DISCOVERY)
    ask = pdu("04800000 00LEN" + "00" * 8 + "0000000a ffffffff 00000001 00000001" + "00" * 16, "SendTargets=All\0")
    assert await wire.say(ask) == pdu(
        "24800000 00LEN" + "00" * 8 + "0000000a ffffffff 00000001 00000002 00000081" + "00" * 12,
        "TargetName=iqn.2026-11.org.twinvol:another\0TargetAddress=127.0.0.1:3260,1\0"
        "TargetAddress=10.0.0.1:3260,1\0"
        "TargetName=iqn.2026-11.org.twinvol:disk\0TargetAddress=127.0.0.1:3260,1\0TargetAddress=10.0.0.1:3260,1\0"
        "TargetAddress=[fd00::1]:3260,2\0",
    )


async def test_text_with_the_c_bit_both_ways():
    wire = Wire()
    await wire.log_in(DISCOVERY + "MaxRecvDataSegmentLength=512\0")
    for number in range(6):
        wire.registry.add(Target(f"iqn.2026-11.org.twinvol:{'x' * 100}-{number}"))
    first = pdu("04400000 00LEN" + "00" * 8 + "0000000a ffffffff 00000001 00000001" + "00" * 16, "SendTarg")
    assert await wire.say(first) == pdu(  # F and C clear, a Target Transfer Tag: go on
        "24000000 00LEN" + "00" * 8 + "0000000a 00000001 00000001 00000002 00000081" + "00" * 12
    )
    last = pdu("04800000 00LEN" + "00" * 8 + "0000000a 00000001 00000002 00000002" + "00" * 16, "ets=All\0")
    text, cmd_sn, answer = b"", 2, await wire.say(last)
    while answer[1] == 0x40:  # C
        assert answer[5:8] == b"\0\x02\0", "512 bytes, as was declared"
        assert answer[20:24] == b"\0\0\0\x01"
        text += answer[48:560]
        cmd_sn += 1
        more = f"0000000a 00000001 {cmd_sn:08x} {cmd_sn:08x}"
        answer = await wire.say(pdu("04800000 00LEN" + "00" * 8 + more + "00" * 16))
    assert (answer[1], answer[20:24]) == (0x80, b"\xff\xff\xff\xff")
    text += answer[48 : 48 + int.from_bytes(answer[5:8], "big")]
    assert text.count(b"TargetName=") == 7
    assert text.count(b"TargetAddress=") == 7 * 3


@pytest.mark.parametrize("asked", ["SendTargets=All\0", "SendTargets=iqn.2026-11.org.twinvol:other\0"])
async def test_a_normal_session_hears_of_its_own_target_only(asked):
    wire = Wire()
    await wire.log_in()
    ask = "44800000 00LEN" + "00" * 8 + "0000000a ffffffff 00000001 00000001" + "00" * 16
    answer = "24800000 00LEN" + "00" * 8 + "0000000a ffffffff {:08x} 00000001 00000080" + "00" * 12
    assert await wire.say(pdu(ask, asked)) == pdu(answer.format(1), "SendTargets=Reject\0")
    told = await wire.say(pdu(ask, "SendTargets=\0"))
    assert told[48:].startswith(b"TargetName=iqn.2026-11.org.twinvol:disk\0TargetAddress=127.0.0.1:3260,1\0")
    again = await wire.say(pdu(ask, "SendTargets=iqn.2026-11.org.twinvol:DISK\0"))
    assert again == renumbered(told, 3)


def renumbered(raw: bytes, stat_sn: int) -> bytes:
    """The same PDU with this StatSN."""
    return raw[:24] + stat_sn.to_bytes(4, "big") + raw[28:]


# -- pings


async def test_a_ping_and_its_answer():
    wire = Wire()
    await wire.log_in()
    ping = pdu("40800000 00LEN 0001000000000000 00000007 ffffffff 00000001 00000001" + "00" * 16, b"ping!")
    assert await wire.say(ping) == pdu(
        "20800000 00LEN 0001000000000000 00000007 ffffffff 00000001 00000001 00000080" + "00" * 12, b"ping!"
    )
    numbered = pdu("00800000 00LEN" + "00" * 8 + "00000008 ffffffff 00000001 00000002" + "00" * 16)
    assert await wire.say(numbered) == pdu(
        "20800000 00LEN" + "00" * 8 + "00000008 ffffffff 00000002 00000002 00000081" + "00" * 12
    )


async def test_the_targets_own_ping():
    wire = Wire()
    await wire.log_in()
    for _ in range(SILENT_TICKS_BEFORE_PING):
        wire.link.connection.tick()
    assert await wire.say() == pdu(
        "20800000 00LEN" + "00" * 8 + "ffffffff 00000001 00000001 00000001 00000080" + "00" * 12
    )
    answer = pdu("40800000 00LEN" + "00" * 8 + "ffffffff 00000001 00000001 00000001" + "00" * 16)
    assert await wire.say(answer) == b""


# -- digests


def crc32c(data: bytes) -> bytes:
    """CRC32C bit by bit, least significant byte first (RFC 7143 section 13.1)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return (crc ^ 0xFFFFFFFF).to_bytes(4, "little")


def digested(raw: bytes, *, header: bool, data: bool) -> bytes:
    """A PDU with its digests; that of the data covers the padding."""
    return (
        raw[:48] + (crc32c(raw[:48]) if header else b"") + raw[48:] + (crc32c(raw[48:]) if data and raw[48:] else b"")
    )


PING = pdu("40800000 00LEN" + "00" * 8 + "00000007 ffffffff 00000001 00000001" + "00" * 16, b"ping!")
PONG = pdu("20800000 00LEN" + "00" * 8 + "00000007 ffffffff 00000001 00000001 00000080" + "00" * 12, b"ping!")


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("data", [False, True])
async def test_digests(header, data):
    assert crc32c(bytes(32)).hex() == "aa36918a", "RFC 7143 appendix A"
    wire = Wire()
    await wire.log_in(
        NAMES + f"HeaderDigest={'CRC32C' if header else 'None'}\0DataDigest={'CRC32C' if data else 'None'}\0"
    )
    assert await wire.say(digested(PING, header=header, data=data)) == digested(PONG, header=header, data=data)


async def test_a_wrong_data_digest_is_told_and_ends_the_session():
    wire = Wire()
    await wire.log_in(NAMES + "DataDigest=CRC32C\0")
    rejected = pdu("3f800200 00LEN" + "00" * 8 + "ffffffff 00000000 00000001 00000001 00000080" + "00" * 12, PING[:48])
    assert await wire.say(PING + b"\0\0\0\0") == digested(rejected, header=False, data=True)
    assert wire.link.connection.closing


async def test_a_wrong_header_digest_ends_the_session_without_a_word():
    wire = Wire()
    await wire.log_in(NAMES + "HeaderDigest=CRC32C\0")
    assert await wire.say(PING[:48] + b"\0\0\0\0" + PING[48:]) == b""
    assert wire.link.connection.closing


# -- refusals


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (
            "10800000 00LEN" + "00" * 8 + "00000001 ffffffff 00000000" + "00" * 20,
            "03",
        ),  # SNACK at error recovery level 0
        ("5c800000 00LEN" + "00" * 8 + "00000001" + "00" * 28, "05"),  # an opcode that no RFC has
        ("20800000 00LEN" + "00" * 8 + "00000001" + "00" * 28, "05"),  # a target's
        (
            "43870000 00LEN" + ISID + "0000 00000001 00000000 00000001" + "00" * 20,
            "04",
        ),  # a login in full feature phase
        ("40800000 00LEN" + "00" * 8 + "00000001 00000002 00000001" + "00" * 20, "09"),  # a ping and an answer at once
        ("44c00000 00LEN" + "00" * 8 + "00000001 ffffffff 00000001" + "00" * 20, "09"),  # text with F and C
        ("44800000 00LEN" + "00" * 8 + "00000001 00000055 00000001" + "00" * 20, "09"),  # no such text exchange
        ("46830000 00LEN" + "00" * 8 + "00000001 00000000 00000001" + "00" * 20, "09"),  # no such logout reason
    ],
)
async def test_rejects(bad, reason):
    wire = Wire()
    await wire.log_in()
    raw = pdu(bad)
    assert await wire.say(raw) == pdu(
        f"3f80{reason}00 00LEN" + "00" * 8 + "ffffffff 00000000 00000001 00000001 00000080" + "00" * 12, raw
    )
    assert await wire.say(PING) == renumbered(PONG, 2), "the session goes on"


# -- what a target says unasked


async def test_asynchronous_messages():
    """Section 11.9: byte 36 is the event; the parameters follow."""
    wire = Wire()
    await wire.log_in()
    wire.link.connection.request_logout()
    assert await wire.say() == pdu(
        "32800000 00LEN" + "00" * 8 + "ffffffff 00000000 00000001 00000001 00000080 01000000 00000002 00000000"
    )
    wire.link.connection.expel()
    assert await wire.say() == pdu(
        "32800000 00LEN" + "00" * 8 + "ffffffff 00000000 00000002 00000001 00000080 03000000 00000000 00000000"
    )


# -- REPORT LUNS


def command(cdb: str, itt: int, length: int) -> bytes:
    return pdu(f"01c10000 00LEN {'00' * 8} {itt:08x} {length:08x} {itt:08x} 00000001" + cdb.ljust(32, "0"))


async def test_report_luns_on_any_lun_with_every_allocation_length():
    wire = Wire(luns=(1, 255, 256, 0x3FFF))
    await wire.log_in()
    inventory = bytes.fromhex(
        "00000028 00000000"
        "0000000000000000 0001000000000000 00ff000000000000 4100000000000000 7fff000000000000"  # flat space from 256 on
    )
    for number, (length, select) in enumerate([(4096, 0), (16, 0), (8, 2), (4096, 1)], 1):
        told = bytes(8) if select == 1 else inventory[:length]  # 1: well known logical units only
        answer = await wire.say(command(f"a000{select:02x}000000{length:08x}", number, length))
        flags = "83" if len(told) < length else "81"  # final with status; underflow
        assert answer == pdu(
            f"25{flags}0000 00LEN {'00' * 8} {number:08x} ffffffff {number:08x} {number + 1:08x} {128 + number:08x}"
            f" 00000000 00000000 {length - len(told):08x}",
            told,
        )


async def test_logout_is_answered_and_nothing_after_it():
    wire = Wire()
    await wire.log_in()
    logout = pdu("46800000 00LEN" + "00" * 8 + "0000000c 00000000 00000001 00000001" + "00" * 16)
    assert await wire.say(logout, PING) == pdu(
        "26800000 00LEN" + "00" * 8 + "0000000c 00000000 00000001 00000001 00000080" + "00" * 12
    )
    await asyncio.sleep(0)
    assert wire.link.connection.closing
