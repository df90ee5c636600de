"""One harness per parser: spoilt bytes are accepted, or refused by the one error that a peer may cause; nothing else.

A harness takes a random generator, makes its input from it, and raises whatever is wrong. It must depend on nothing
else, so that a seed replays it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from uuid import UUID

from engine.errors import InvalidArgument
from engine.links import MirrorWrite
from engine.peers import frames
from engine.peers.invitation import Invitation
from engine.peers.strips import Strip, encode_piece, parse_piece
from engine.peers.writes import decode_apply, decode_ordered, encode_apply, encode_ordered
from engine.volume import ChangeKind
from iscsi.chap import ChapAccess, ChapIdentity
from iscsi.initiator.chap import ChapCredentials
from iscsi.initiator.errors import LoginRefused, TargetNotAuthentic
from iscsi.initiator.login import InitiatorLogin
from iscsi.initiator.session import Command, InitiatorSession, parse_send_targets, send_targets
from iscsi.login import TargetLogin
from iscsi.negotiation import Responder, SessionParameters, Wishes
from iscsi.session import SessionTable
from iscsi.target import Target, TargetRegistry
from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import AsyncEvent, LoginStatus
from iscsi.wire.pdu import REQUESTS, RESPONSES, Framer, decode
from iscsi.wire.requests import DataOut, LoginRequest, LogoutRequest, NopOut, TaskManagementRequest, TextRequest
from iscsi.wire.responses import R2T, AsyncMessage, DataIn, LoginResponse, NopIn, ScsiResponsePdu, TextResponse
from iscsi.wire.text_keys import parse_text, serialize_text
from tests.fuzz.cim import cim_requests
from tests.fuzz.images import image_heads, vhdx
from tests.fuzz.mutations import mutate
from tests.support.iscsi_link import INITIATOR, READ_10, TARGET, WRITE_10, Link, cdb, make_registry, make_unit
from tests.support.memory_device import MemoryDevice

if TYPE_CHECKING:
    import random

    from iscsi.wire.bhs import Pdu

ISID = bytes.fromhex("800000000001")
PLAIN = Framer(max_data_segment=1 << 16)
OFFERS = serialize_text(
    {
        "InitiatorName": INITIATOR,
        "TargetName": TARGET,
        "SessionType": "Normal",
        "HeaderDigest": "CRC32C,None",
        "MaxBurstLength": "262144",
        "FirstBurstLength": "65536",
        "MaxRecvDataSegmentLength": "65536",
        "InitialR2T": "No",
        "ErrorRecoveryLevel": "0",
        "IFMarkInt": "2048~8192",
        "X-org.example.key": "value",
    }
)


def _stream(pdus: list[Pdu]) -> bytes:
    return b"".join(map(PLAIN.encode, pdus))


def _pdus(chance: random.Random, valid: list[Pdu], kinds: dict[int, type[Pdu]]) -> None:
    framer = Framer(chance.random() < 0.2, chance.random() < 0.2, 1 << 16)
    wire = memoryview(mutate(b"".join(map(framer.encode, valid)), chance))
    offset = 0
    with contextlib.suppress(ProtocolError):
        while (frame := framer.next(wire, offset)) is not None:
            offset = frame.end
            with contextlib.suppress(ProtocolError):
                pdu = decode(frame, kinds)
                assert str(pdu)
                assert kinds[frame.opcode].parse(*_parts(pdu)) == pdu, "a PDU that was taken can be sent again"
    assert offset <= len(wire)


def _parts(pdu: Pdu) -> tuple[bytes, bytes, bytes]:
    header = pdu.serialize()
    return header[:48], header[48:], bytes(pdu.payload)


async def requests(chance: random.Random) -> None:
    """PDUs as a target reads them."""
    link = Link(TargetRegistry())
    valid = [
        link.command(cdb(READ_10, 0, 8), read=4096),
        link.command(bytes(range(32)), write=8, data=b"12345678"),
        DataOut(2, 5, 1, 0, 512, data=bytes(20)),
        NopOut(3, 4, 5, data=b"ping"),
        TaskManagementRequest(4, 1, 2, 3),
        TextRequest(5, 6, 7, data=b"SendTargets=All\0"),
        LoginRequest(ISID, 0, 1, 0, 1, 1, csg=0, nsg=1, transit=True, data=OFFERS),
        LogoutRequest(6, 0, 0, 1, 2),
    ]
    _pdus(chance, valid, REQUESTS)


async def responses(chance: random.Random) -> None:
    """PDUs as an initiator reads them."""
    _pdus(chance, RESPONSES_OF_A_SESSION, RESPONSES)


RESPONSES_OF_A_SESSION: list[Pdu] = [
    DataIn(1, 0, 0, data=bytes(64), final=False, max_cmd_sn=20),
    DataIn(1, 1, 64, status=0, data=bytes(64), max_cmd_sn=20),
    R2T(2, 9, 0, 0, 128, max_cmd_sn=20),
    ScsiResponsePdu(2, 2, stat_sn=1, data=b"\0\4abcd", max_cmd_sn=20),
    NopIn(0xFFFFFFFF, 2, ttt=4, max_cmd_sn=20),
    TextResponse(3, 2, ttt=7, final=False, data=b"TargetName=iqn.a\0", max_cmd_sn=20),
    TextResponse(3, 3, data=b"TargetAddress=1.2.3.4:3260,1\0", max_cmd_sn=20),
    AsyncMessage(AsyncEvent.LOGOUT_REQUEST, 4, max_cmd_sn=20),
]


async def text(chance: random.Random) -> None:
    """Key=value text, and the answers to it."""
    spoilt = mutate(OFFERS, chance)
    with contextlib.suppress(ProtocolError):
        pairs = parse_text(spoilt)
        assert parse_text(serialize_text(pairs)) == pairs
        answers = Responder(discovery=chance.random() < 0.3).answer(pairs.items())
        assert len(serialize_text(answers)) <= 8192
    with contextlib.suppress(ProtocolError):
        parse_send_targets(spoilt)


async def target_login(chance: random.Random) -> None:
    """Login requests at a target."""
    registry = TargetRegistry()
    registry.add(Target(TARGET))
    login = TargetLogin(registry, lambda _: None)
    first = LoginRequest(ISID, 0, 1, 0, 1, 1, csg=0, nsg=1, transit=True, data=OFFERS[: chance.randrange(len(OFFERS))])
    second = LoginRequest(ISID, 0, 1, 0, 1, 2, csg=1, nsg=3, transit=True, data=OFFERS)
    wire = memoryview(mutate(_stream([first, second] * chance.randrange(1, 4)), chance))
    offset = 0
    with contextlib.suppress(ProtocolError):
        while (frame := Framer().next(wire, offset)) is not None:
            offset = frame.end
            answer = login.receive(frame)
            if answer is None:
                answer = login.grant(5, 6)
                assert answer.transit
            answer.check()
            assert (answer.status != LoginStatus.SUCCESS) is login.failed
            if login.failed or login.outcome is not None:
                return


async def target_chap(chance: random.Random) -> None:
    """Login requests at a target that requires CHAP: only the right secret lets anybody in."""
    registry = TargetRegistry()
    target = Target(TARGET)
    target.chap = ChapAccess({"alice": b"correct horse 1"}, ChapIdentity("array", b"battery staple 2"))
    registry.add(target)
    login = TargetLogin(registry, lambda _: None, random_bytes=bytes)
    texts = [
        OFFERS + b"AuthMethod=CHAP,None\0",
        b"CHAP_A=8,7,5\0",
        b"CHAP_N=alice\0CHAP_R=0x" + b"5a" * 32 + b"\0CHAP_I=1\0CHAP_C=0b" + b"AQID" * 4 + b"\0",
    ]
    lines: list[Pdu] = [
        LoginRequest(ISID, 0, 1, 0, 1, number, csg=0, nsg=chance.choice((1, 3)), transit=True, data=data)
        for number, data in enumerate(texts)
    ]
    wire = memoryview(mutate(_stream(lines), chance))
    offset = 0
    with contextlib.suppress(ProtocolError):
        while (frame := Framer().next(wire, offset)) is not None and not login.failed:
            offset = frame.end
            answer = login.receive(frame)
            assert answer is not None
            assert login.outcome is None
            answer.check()
            assert not answer.transit
            assert (answer.status != LoginStatus.SUCCESS) is login.failed


async def initiator_chap(chance: random.Random) -> None:
    """Login responses at an initiator that wants the target proven: only the right secret proves it."""
    chap = ChapCredentials(ChapIdentity("alice", b"correct horse 1"), ChapIdentity("array", b"battery staple 2"))
    login = InitiatorLogin(INITIATOR, TARGET, ISID, Wishes(), chap, bytes)
    login.first()
    texts = [
        b"TargetPortalGroupTag=1\0AuthMethod=CHAP\0",
        b"CHAP_A=7\0CHAP_I=9\0CHAP_C=0x" + b"a5" * 32 + b"\0",
        b"CHAP_N=array\0CHAP_R=0x" + b"5a" * 32 + b"\0",
    ]
    lines: list[Pdu] = [LoginResponse(ISID, 0, 0, number, 1, 1, csg=0, data=data) for number, data in enumerate(texts)]
    lines[-1] = LoginResponse(ISID, 0, 0, 2, 1, 1, csg=0, nsg=chance.choice((1, 3)), transit=True, data=texts[-1])
    wire = memoryview(mutate(_stream(lines), chance))
    offset = 0
    with contextlib.suppress(ProtocolError, LoginRefused, TargetNotAuthentic):
        while (frame := Framer().next(wire, offset)) is not None:
            offset = frame.end
            answer = decode(frame, RESPONSES)
            if not isinstance(answer, LoginResponse):
                return
            request = login.receive(answer)
            assert request is not None
            assert request.csg == 0


async def initiator_login(chance: random.Random) -> None:
    """Login responses at an initiator."""
    login = InitiatorLogin(INITIATOR, TARGET, ISID, Wishes())
    login.first()
    told = b"TargetPortalGroupTag=1\0AuthMethod=None\0"
    agreed = b"HeaderDigest=None\0MaxBurstLength=65536\0InitialR2T=Yes\0MaxRecvDataSegmentLength=8192\0"
    lines = [
        LoginResponse(ISID, 0, 0, 1, 1, 1, csg=0, nsg=1, transit=True, data=told),
        LoginResponse(ISID, 4, 0, 2, 1, 1, csg=1, nsg=3, transit=True, data=agreed),
    ]
    wire = memoryview(mutate(_stream(lines), chance))
    offset = 0
    with contextlib.suppress(ProtocolError, LoginRefused):
        while (frame := Framer().next(wire, offset)) is not None:
            offset = frame.end
            answer = decode(frame, RESPONSES)
            if not isinstance(answer, LoginResponse):
                return
            if login.receive(answer) is None:
                assert isinstance(login.parameters(), SessionParameters)
                return


async def initiator_session(chance: random.Random) -> None:
    """A target's PDUs in full feature phase, in pieces of any length."""
    session = InitiatorSession(SessionParameters(), cmd_sn=1, max_cmd_sn=9, exp_stat_sn=0)
    session.start(Command(0, bytes(16), data_in=memoryview(bytearray(128))))
    session.start(Command(0, bytes(16), data_out=memoryview(bytes(128))))
    session.start(send_targets())
    wire = mutate(_stream(RESPONSES_OF_A_SESSION), chance)
    pending = b""
    with contextlib.suppress(ProtocolError):
        while wire:
            length = chance.randrange(1, len(wire) + 1)
            pending, wire = pending + wire[:length], wire[length:]
            taken, _ = session.receive(memoryview(pending))
            pending = pending[taken:]
    assert session.data_to_send()


async def target_connection(chance: random.Random) -> None:
    """An initiator's PDUs in full feature phase, through the fast and the slow path, in pieces of any length."""
    device = MemoryDevice(1 << 16, fast=chance.random() < 0.5)
    link = Link(make_registry(make_unit(device)), fast=chance.random() < 0.5)
    await link.log_in(ImmediateData="Yes", InitialR2T="No")
    written = link.command(cdb(WRITE_10, 8, 2), write=1024, data=bytes(512), final=False)
    valid = [
        link.command(bytes(6)),
        link.command(bytes(6)),
        link.command(cdb(READ_10, 0, 8), read=4096),
        written,
        DataOut(written.itt, 0xFFFFFFFF, 0, 0, 512, data=bytes(512)),
        link.command(cdb(WRITE_10, 16, 8), write=4096, final=True),
        NopOut(link.next_itt(), link.cmd_sn, 0, data=b"ping"),
        TaskManagementRequest(
            link.next_itt(), chance.randrange(1, 10), link.cmd_sn, 0, referenced_task_tag=written.itt
        ),
        TextRequest(link.next_itt(), link.cmd_sn, 0, data=b"SendTargets=\0", immediate=True),
        LogoutRequest(link.next_itt(), 0, 0, link.cmd_sn, 0),
    ]
    if chance.random() < 0.3:
        chance.shuffle(valid)
    wire = mutate(_stream(valid), chance)
    while wire and not link.connection.closing:
        length = chance.randrange(1, len(wire) + 1)
        link.feed(wire[:length])
        wire = wire[length:]
    await link.settle()
    for answer in link.received():
        answer.check()


async def target_sessions(chance: random.Random) -> None:
    """Several initiators of one target at once: they share units, come back by every kind of login, reset, vanish.

    When all are gone nothing of them may be left: no session, no nexus, no room taken.
    """
    units = [make_unit(MemoryDevice(1 << 16, fast=chance.random() < 0.5), number) for number in (1, 2)]
    registry, table = make_registry(*units), SessionTable()
    links: list[Link] = []
    everybody: list[Link] = []
    for _ in range(chance.randrange(4, 40)):
        for link in everybody:
            link.start_work()
        if not links or chance.random() < 0.25:
            links.append(_newcomer(chance, registry, table))
            everybody.append(links[-1])
            continue
        link = chance.choice(links)
        match chance.randrange(8):
            case 0:
                _end(links, link)
            case 1:
                registry.find(TARGET).mask_lun(chance.randrange(2), chance.choice(([INITIATOR], ["iqn.x"], None)))
                for other in links:
                    other.connection.luns_changed()
            case 2:
                await asyncio.sleep(0)
            case 3:
                link.connection.tick()
            case _ if not link.connection.closing:
                link.feed(mutate(link.framer.encode(_request(chance, link)), chance))
                await asyncio.sleep(0)
        for gone in [link for link in links if link.connection.closing]:
            _end(links, gone)
    while links:
        _end(links, links[0])
    await _run_out(everybody)
    assert len(table) == 0
    assert [unit.nexuses for unit in units] == [[], []]
    assert table.gathering.held == table.executing.held == 0


async def _run_out(links: list[Link]) -> None:
    """Run all work of all links, which may wait for one another's, until none is left."""
    while True:
        for link in links:
            link.collect()
            link.start_work()
        going = {task for link in links for task in link.tasks if not task.done()}
        if not going:
            return
        async with asyncio.timeout(20):
            await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)


def _end(links: list[Link], link: Link) -> None:
    """The socket is closed, as the shell sees to when the core is ``closing``."""
    links.remove(link)
    link.connection.lost()
    link.start_work()


def _newcomer(chance: random.Random, registry: TargetRegistry, table: SessionTable) -> Link:
    """A connection that logs in as a new session, in place of another, or with a session's TSIH; or fails to."""
    link = Link(registry, table, isid=chance.randrange(1, 4), fast=False)
    names = {"InitiatorName": INITIATOR, "TargetName": TARGET, "InitialR2T": chance.choice(("Yes", "No"))}
    tsih = chance.choice([0, 0, *(session.tsih for session in table)])
    if tsih:
        del names["InitialR2T"]
    request = link.framer.encode(link.login_request(names, tsih=tsih))
    link.feed(request if chance.random() < 0.8 else mutate(request, chance))
    return link


def _request(chance: random.Random, link: Link) -> Pdu:
    """Something that an initiator may say in full feature phase."""
    session = link.connection.session
    link.cmd_sn = 1 if session is None else session.exp_cmd_sn
    itt = chance.randrange(1, 6)
    lun = chance.randrange(3)
    match chance.randrange(7):
        case 0:
            return link.command(cdb(READ_10, 0, 8), read=4096, itt=itt, lun=lun)
        case 1:
            flags = chance.choice((0, 0x08))
            return link.command(cdb(WRITE_10, 0, 8, flags=flags), write=4096, data=bytes(512), itt=itt, lun=lun)
        case 2:
            return DataOut(itt, chance.choice((0xFFFFFFFF, 1, 2)), 0, 0, 512, data=bytes(chance.choice((512, 3584))))
        case 3:
            tags = {"referenced_task_tag": chance.randrange(1, 6), "ref_cmd_sn": link.cmd_sn + chance.randrange(3)}
            code = chance.randrange(1, 9)
            return TaskManagementRequest(link.next_itt(), code, link.cmd_sn + chance.randrange(4), 0, lun << 48, **tags)
        case 4:
            return NopOut(itt, link.cmd_sn, 0, immediate=chance.random() < 0.5)
        case 5:
            return TextRequest(
                itt, link.cmd_sn, 0, data=b"SendTargets=\0", continued=chance.random() < 0.3, final=False
            )
        case _:
            return LogoutRequest(itt, chance.randrange(3), chance.randrange(2), link.cmd_sn, 0)


Harness = Callable[["random.Random"], Awaitable[None]]
PEER_STREAM = b"".join(
    [
        frames.encode(frames.FrameType.REQUEST, 1, b'{"op":"connect","replica":"0"}'),
        frames.encode(
            frames.FrameType.APPLY,
            2,
            encode_apply(UUID(int=1), 3, MirrorWrite(4, ChangeKind.DATA, 4096, 512, b"d" * 512, fua=True)),
        ),
        frames.encode(
            frames.FrameType.ORDERED,
            3,
            encode_ordered(UUID(int=1), 3, [MirrorWrite(5, ChangeKind.DISCARD, 0, 65536, None, fua=False)] * 3),
        ),
        frames.encode(frames.FrameType.PING),
    ]
)
PEER_PARSERS: dict[frames.FrameType, Callable[[bytes], object]] = {
    frames.FrameType.REQUEST: frames.decode_json,
    frames.FrameType.APPLY: decode_apply,
    frames.FrameType.ORDERED: decode_ordered,
}


async def peer_frames(chance: random.Random) -> None:
    """A control connection between peers: the stream, cut anywhere, and what its frames hold."""
    decoder = frames.FrameDecoder(frames.TO_TARGET)
    wire = mutate(PEER_STREAM, chance)
    with contextlib.suppress(frames.FrameError):
        while wire:
            size = chance.randrange(1, 2048)
            decoder.receive(wire[:size])
            wire = wire[size:]
            for frame in decoder.frames():
                with contextlib.suppress(frames.FrameError):
                    PEER_PARSERS.get(frame.type, bytes)(frame.payload)
    assert decoder.held_bytes <= 2 * len(PEER_STREAM) + 4096


async def peer_strips(chance: random.Random) -> None:
    """A bulk connection between peers: what announces a strip and its pieces; and an invitation's code."""
    strip = Strip(UUID(int=1), 2, 65536, 131072, bytes(range(32)))
    with contextlib.suppress(frames.FrameError):
        taken = Strip.parse(mutate(strip.serialize(), chance))
        assert Strip.parse(taken.serialize()) == taken
    head = mutate(encode_piece(65536, 65536, bytes(16)), chance)
    with contextlib.suppress(frames.FrameError):
        offset, length = parse_piece(head, len(head) + 65536, strip)
        assert strip.offset <= offset < offset + length <= strip.offset + strip.length
    with contextlib.suppress(InvalidArgument):
        Invitation.parse(mutate(Invitation("h:1", "ab" * 32, bytes(16)).code().encode(), chance).decode("latin-1"))


HARNESSES: dict[str, Harness] = {
    harness.__name__: harness
    for harness in (
        requests,
        responses,
        text,
        target_login,
        target_chap,
        initiator_login,
        initiator_chap,
        initiator_session,
        target_connection,
        target_sessions,
        vhdx,
        image_heads,
        peer_frames,
        peer_strips,
        cim_requests,
    )
}
