"""The asyncio shell over real sockets: flow control, fairness, limits, stopping. No test waits for a time to pass."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import random
import socket
import weakref
from contextlib import asynccontextmanager

import pytest

from engine.errors import StoreFailed
from engine.units import KIB, MIB
from iscsi import server as server_module
from iscsi.answers import MAX_UNSENT_BYTES
from iscsi.initiator import IscsiDisk, LoginRefused, connect, discover
from iscsi.selector import MAX_SPIN_S, DirectSelector
from iscsi.server import IscsiServer
from iscsi.stats import Kind
from iscsi.wire import requests, responses
from iscsi.wire.opcodes import AsyncEvent, LogoutReason, RejectReason, Stage
from iscsi.wire.pdu import RESPONSES, Framer, decode
from iscsi.wire.text_keys import serialize_text
from tests.support.iscsi_link import INITIATOR, TARGET, cdb, make_registry, make_unit
from tests.support.memory_device import MemoryDevice

SIZE = 4 * MIB


SELECTORS = weakref.WeakKeyDictionary()  # of the loops that serve sockets by themselves, as the daemon's does


def make_server(registry):
    return IscsiServer(registry, SELECTORS.get(asyncio.get_running_loop()))


class RecordingDevice(MemoryDevice):
    """Notes the order of fast reads and writes over all sessions."""

    def __init__(self):
        super().__init__(SIZE, fast=True)
        self.order = []
        self.fails = False

    def try_read(self, offset, view, /):
        self.order.append(offset)
        return super().try_read(offset, view)

    def end_pass(self):
        if self.fails:
            raise StoreFailed("the journal cannot be written")


class RawInitiator:
    """A socket, a login, and PDUs as the test wants them."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer
        self.cmd_sn = 1
        self.itt = 0

    @classmethod
    async def open(cls, address, *, isid=1, receive_bytes=None):
        sock = socket.socket()
        sock.setblocking(False)
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await asyncio.get_running_loop().sock_connect(sock, address)
        self = cls(*await asyncio.open_connection(sock=sock, limit=receive_bytes or 64 * KIB))
        self.isid = b"\x00\x02\x3d" + isid.to_bytes(3, "big")
        return self

    async def log_in(self, **keys):
        text = {
            "InitiatorName": INITIATOR,
            "TargetName": TARGET,
            "SessionType": "Normal",
            "MaxRecvDataSegmentLength": str(256 * KIB),
            "FirstBurstLength": str(256 * KIB),
        }
        stages = {"csg": Stage.OPERATIONAL, "nsg": Stage.FULL_FEATURE, "transit": True}
        self.send(requests.LoginRequest(self.isid, 0, 0, 0, 1, 0, data=serialize_text(text | keys), **stages))
        response = await self.receive()
        assert response.status == 0
        await self.command(bytes(6))  # takes the unit attention
        return self

    def send(self, *pdus):
        self.writer.write(b"".join(map(Framer().encode, pdus)))

    async def receive(self):
        header = await self.reader.readexactly(48)
        length = int.from_bytes(header[5:8], "big")
        data = await self.reader.readexactly(length + (-length & 3))
        framer = Framer(max_data_segment=1 << 20)
        return decode(framer.next(memoryview(header + data)), RESPONSES)

    def build(self, command, *, read=0, write=b""):
        self.itt += 1
        pdu = requests.ScsiCommandPdu(
            self.itt,
            0,
            command.ljust(16, b"\0"),
            self.cmd_sn,
            0,
            edtl=read or len(write),
            read=bool(read),
            write=bool(write),
            data=write,
        )
        self.cmd_sn += 1
        return pdu

    def read(self, lba, blocks):
        return self.build(cdb(0x28, lba, blocks), read=blocks * 512)

    async def command(self, command, **fields):
        self.send(self.build(command, **fields))
        return await self.receive()

    async def is_closed(self):
        try:
            while await self.reader.read(4096):
                pass
        except ConnectionResetError:
            pass
        return True

    async def close(self):
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class Serving:
    """A running server with one device, and the clients that were opened to it."""

    def __init__(self, device):
        self.device = device
        self.server = make_server(make_registry(make_unit(device)))
        self.clients = []

    async def open(self, **options):
        client = await RawInitiator.open(self.address, **options)
        self.clients.append(client)
        return client

    async def log_in(self, **options):
        return await (await self.open(**options)).log_in()


@asynccontextmanager
async def serving(device=None):
    self = Serving(device or RecordingDevice())
    (self.address,) = await self.server.start([("127.0.0.1", 0)])
    try:
        yield self
    finally:
        for client in self.clients:
            await client.close()
        await self.server.stop(graceful=False)


async def test_an_initiator_reads_what_it_wrote_and_is_counted():
    async with serving() as target:
        disk = await connect(target.address, TARGET)
        assert isinstance(disk, IscsiDisk)
        data = bytes(range(256)) * 4 * KIB
        await disk.write(64 * KIB, data)
        assert await disk.read(64 * KIB, len(data)) == data
        (session,) = target.server.sessions()
        assert (session.target, session.stats.total(Kind.WRITE).bytes) == (TARGET, len(data))
        assert session.stats.total(Kind.READ).bytes == len(data)
        await disk.close()


async def test_discovery_tells_the_address_that_was_reached():
    async with serving() as target:
        (found,) = await discover(target.address)
        assert found.name == TARGET
        assert found.addresses == ("{}:{},1".format(*target.address),)


async def test_a_stalled_reader_holds_a_bounded_number_of_answers_and_nobody_else():
    async with serving() as target:
        target.device.data[:] = bytes(range(256)) * (SIZE // 256)
        stalled = await target.log_in(receive_bytes=4096)
        stalled.writer.transport.pause_reading()
        other = await target.log_in(isid=2)
        stalled.send(*(stalled.read(0, 512) for _ in range(100)))  # 25 MiB of answers
        await stalled.writer.drain()
        for _ in range(5):  # each a round trip: whatever could be served meanwhile was served
            assert (await other.command(cdb(0x28, 8, 8), read=4096)).data == target.device.data[4096:8192]
        served = target.device.order.count(0) * 256 * KIB
        kernel = 16 * MIB  # what a socket may hold, by far
        assert served <= MAX_UNSENT_BYTES + kernel
        assert served < 100 * 256 * KIB
        stalled.writer.transport.resume_reading()
        for _ in range(100):
            answer = await stalled.receive()
            assert answer.data == target.device.data[: 256 * KIB]


async def test_answers_to_a_slow_reader_leave_in_the_order_of_their_numbers():
    """Of the fast path and of the plain one, some sent at once, some when the socket takes more."""
    rng = random.Random(8)
    async with serving() as target:
        target.device.data[:] = rng.randbytes(SIZE)
        slow = await target.log_in(receive_bytes=4096)
        asked, numbers = {}, []

        async def receive():
            answer = await slow.receive()
            lba, blocks = asked.pop(answer.itt)
            assert answer.data == target.device.data[lba * 512 : (lba + blocks) * 512]
            numbers.append(answer.stat_sn)

        for _ in range(6):
            for _ in range(rng.randrange(1, 16)):
                blocks = rng.choice((8, 8, 128, 512))
                lba = rng.randrange(SIZE // 512 - blocks)
                plain = rng.random() < 0.2  # with FUA, which the fast path leaves alone
                slow.send(slow.build(cdb(0x28, lba, blocks, flags=8 * plain), read=blocks * 512))
                asked[slow.itt] = lba, blocks
            await slow.writer.drain()
            for _ in range(rng.randrange(len(asked) + 1)):
                await receive()
        while asked:
            await receive()
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@pytest.mark.parametrize(("host", "is_unpaced"), [("127.0.0.1", True), ("127.0.0.2", False)])
async def test_nothing_is_paced_for_an_initiator_of_the_same_address(host, is_unpaced):
    with socket.socket() as fresh:
        default = fresh.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    async with serving() as target:
        initiator = RawInitiator(*await asyncio.open_connection(*target.address, local_addr=(host, 0)))
        initiator.isid = b"\x00\x02\x3d\x00\x00\x01"
        target.clients.append(initiator)
        await initiator.log_in()
        (shell,) = target.server._shells
        sock = shell._transport.get_extra_info("socket")
        found = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        assert found.rstrip(b"\0") == (b"reno" if is_unpaced else default.rstrip(b"\0"))


async def test_what_waits_for_a_slow_reader_is_not_overtaken_when_the_socket_has_room_again():
    async with serving() as target:
        target.device.data[:] = bytes(range(256)) * (SIZE // 256)
        slow = await target.log_in()
        slow.writer.transport.pause_reading()
        fd = slow.writer.get_extra_info("socket").fileno()
        (shell,) = target.server._shells
        asked = 0
        while not shell._transport.get_write_buffer_size():
            slow.send(slow.read(0, 512))
            asked += 1
            await asyncio.sleep(0)
        received = bytearray()

        def take():
            with contextlib.suppress(BlockingIOError):
                while True:
                    received.extend(os.read(fd, MIB))

        take()  # now the socket has room, and its server does not know
        os.write(fd, Framer().encode(slow.read(0, 8)))
        wanted = asked * (48 + 256 * KIB) + 48 + 4 * KIB
        while len(received) < wanted:
            await asyncio.sleep(0)
            take()
        framer, at = Framer(max_data_segment=MIB), 0
        for number in range(asked + 1):
            length = int.from_bytes(received[at + 5 : at + 8], "big")
            answer = decode(framer.next(memoryview(received)[at : at + 48 + length]), RESPONSES)
            assert answer.itt == slow.itt - asked + number
            at += 48 + length


async def test_a_flood_of_one_session_does_not_starve_another():
    async with serving() as target:
        flood = await target.log_in()
        other = await target.log_in(isid=2)
        target.device.order.clear()
        flood.send(*(flood.read(0, 512) for _ in range(120)))
        other.send(other.read(8, 8))
        for _ in range(120):
            await flood.receive()
        await other.receive()
        assert target.device.order.index(4096) < 60


async def test_an_answer_is_not_sent_when_its_write_could_not_be_journalled():
    async with serving() as target:
        writer = await target.log_in()
        reader = await target.log_in(isid=2)
        target.device.fails = True
        writer.send(writer.build(cdb(0x2A, 0, 1), write=bytes(512)))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await writer.receive()
        target.device.fails = False
        assert (await reader.command(cdb(0x28, 0, 1), read=512)).status == 0
        assert len(target.server.sessions()) == 1


async def test_bytes_that_come_one_by_one_are_understood():
    async with serving() as target:
        slow = await target.open()
        await slow.log_in()
        for byte in Framer().encode(slow.read(0, 1)):
            slow.writer.write(bytes((byte,)))
            await slow.writer.drain()
            await asyncio.sleep(0)
        assert (await slow.receive()).status == 0


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n" * 4, b"\x16\x03\x01" + bytes(100), b"\xff" * 100_000])
async def test_garbage_before_login_closes_that_connection_only(garbage):
    async with serving() as target:
        good = await target.log_in()
        bad = await target.open()
        bad.writer.write(garbage)
        assert await bad.is_closed()
        assert (await good.command(cdb(0x28, 0, 1), read=512)).status == 0


async def test_a_bad_pdu_is_rejected_and_the_session_goes_on():
    async with serving() as target:
        raw = await target.log_in()
        raw.writer.write(bytes((0x1F, 0x80)) + bytes(46))
        assert (await raw.receive()).reason == RejectReason.COMMAND_NOT_SUPPORTED
        assert (await raw.command(cdb(0x28, 0, 1), read=512)).status == 0


async def test_who_does_not_log_in_is_closed(monkeypatch):
    monkeypatch.setattr(server_module, "LOGIN_TIMEOUT_S", 0.01)
    async with serving() as target:
        idle = await target.open()
        assert await idle.is_closed()


async def test_connections_of_one_address_are_limited(monkeypatch):
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS_PER_ADDRESS", 1)
    async with serving() as target:
        first = await target.log_in()
        assert await (await target.open()).is_closed()
        assert (await first.command(cdb(0x28, 0, 1), read=512)).status == 0


async def test_a_graceful_stop_asks_for_logout_and_ends_when_all_have_gone():
    async with serving() as target:
        raw = await target.log_in()
        stopping = asyncio.create_task(target.server.stop())
        message = await raw.receive()
        assert (message.OPCODE, message.event) == (responses.AsyncMessage.OPCODE, AsyncEvent.LOGOUT_REQUEST)
        raw.send(requests.LogoutRequest(99, LogoutReason.CLOSE_SESSION, 0, raw.cmd_sn, 0))
        assert isinstance(await raw.receive(), responses.LogoutResponse)
        assert await raw.is_closed()
        await stopping
        assert target.server.sessions() == []


async def test_a_stop_waits_for_the_commands_in_their_workers():
    device = MemoryDevice(SIZE)
    async with serving(device) as target:
        raw = await target.log_in()
        target.device.gate = asyncio.Event()
        raw.send(raw.build(cdb(0x2A, 0, 1), write=b"\1" * 512))
        await target.device.called.wait()
        stopping = asyncio.create_task(target.server.stop(graceful=False))
        assert await raw.is_closed()
        assert not stopping.done()
        target.device.gate.set()
        await stopping
        assert target.device.data[:512] == b"\1" * 512


async def test_a_target_that_is_removed_loses_its_sessions():
    async with serving() as target:
        raw = await target.log_in()
        target.server.registry.remove(TARGET)
        assert (await raw.receive()).event == AsyncEvent.SESSION_DROP
        assert await raw.is_closed()
        await target.server.dropped()
        assert target.server.sessions() == []
        with pytest.raises(LoginRefused):
            await connect(target.address, TARGET)


async def test_both_ip_versions_are_served():
    server = make_server(make_registry(make_unit(RecordingDevice())))
    try:
        addresses = await server.start([("127.0.0.1", 0), ("::1", 0)])
    except OSError:
        pytest.skip("no IPv6 here")
    for address in addresses:
        disk = await connect(address, TARGET)
        assert await disk.read(0, 512) == bytes(512)
        await disk.close()
    await server.stop(graceful=False)


async def test_nothing_listens_when_one_address_cannot_be_bound():
    async with serving() as target:
        second = make_server(make_registry())
        with pytest.raises(OSError, match="in use"):
            await second.start([("127.0.0.1", 0), target.address])


async def test_a_login_replaces_a_session_that_reads_nothing_any_more():
    async with serving() as target:
        dead = await target.log_in(receive_bytes=4096)
        dead.writer.transport.pause_reading()
        dead.send(*(dead.read(0, 512) for _ in range(100)))
        await dead.writer.drain()
        other = await target.log_in(isid=2)
        await other.command(cdb(0x28, 8, 8), read=4096)  # the dead one's answers are stuck by now
        again = await target.log_in()
        assert (await again.command(cdb(0x28, 0, 1), read=512)).status == 0
        assert len(target.server.sessions()) == 2


async def test_sessions_over_a_device_that_blocks_go_through_workers():
    async with serving(MemoryDevice(SIZE)) as target:
        disk = await connect(target.address, TARGET)
        data = bytes(range(256)) * 8 * KIB
        await disk.write(0, data)
        assert await disk.read(0, len(data)) == data
        await disk.flush()
        await disk.close()


@pytest.mark.parametrize("device_is_fast", [True, False], ids=["fast", "workers"])
async def test_long_pdus_in_pieces_of_any_length_arrive_whole(device_is_fast):
    chance = random.Random(7)
    device = MemoryDevice(SIZE, fast=device_is_fast)
    async with serving(device) as target:
        raw = await target.log_in()
        expected = bytearray(SIZE)
        stream = b""
        for number in range(24):
            length = chance.choice((512, 40 * KIB, 128 * KIB, 256 * KIB))
            offset = chance.randrange((SIZE - length) // 512) * 512
            data = chance.randbytes(length)
            expected[offset : offset + length] = data
            stream += Framer().encode(raw.build(cdb(0x2A, offset // 512, length // 512), write=data))
            if number % 3 == 2 or not device_is_fast:  # workers may finish in any order: one at a time
                while stream:
                    piece = chance.choice((1, 47, 1448, 20_000, 70_000, 300_000))
                    raw.writer.write(stream[:piece])
                    await raw.writer.drain()
                    stream = stream[piece:]
                    await asyncio.sleep(0)
                for _ in range(3 if device_is_fast else 1):
                    assert (await raw.receive()).status == 0
        assert device.data == expected


async def test_a_pass_that_fails_drops_its_connection_and_nobody_else():
    async with serving() as target:
        broken, good = await target.log_in(), await target.log_in(isid=2)
        target.device.try_read = None  # an error of ours
        broken.send(broken.read(0, 1))
        assert await broken.is_closed()
        del target.device.try_read
        assert (await good.command(cdb(0x28, 0, 1), read=512)).status == 0


async def test_a_backlog_whose_pass_fails_drops_its_connection_and_nobody_else():
    async with serving() as target:
        broken, good = await target.log_in(), await target.log_in(isid=2)
        served = []

        def try_read(offset, view):
            served.append(offset)
            assert len(served) <= 64, "an error of ours, long after the first pass"
            return MemoryDevice.try_read(target.device, offset, view)

        target.device.try_read = try_read
        broken.send(*(broken.read(0, 128) for _ in range(120)))
        assert await broken.is_closed()
        del target.device.try_read
        assert (await good.command(cdb(0x28, 0, 1), read=512)).status == 0
        assert len(target.server.sessions()) == 1


async def test_an_error_of_ours_at_a_tick_stops_nobody_elses_clock():
    async with serving() as target:
        broken, good = await target.log_in(), await target.log_in(isid=2)
        first, second = list(target.server.table)
        first.connection.tick = None  # an error of ours
        target.server._tick()
        assert await broken.is_closed()
        assert second.connection.silent_ticks == 1
        assert (await good.command(cdb(0x28, 0, 1), read=512)).status == 0


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(value, id=name.removeprefix("test_"))
        for name, value in list(globals().items())
        if name.startswith("test_") and inspect.iscoroutinefunction(value) and not inspect.signature(value).parameters
    ],
)
@pytest.mark.parametrize("spin_s", [0, MAX_SPIN_S], ids=["sleeping", "busy polling"])
def test_the_same_under_a_loop_that_serves_sockets_by_itself(scenario, spin_s):
    def loop():
        made = asyncio.SelectorEventLoop(selector := DirectSelector(spin_s))
        SELECTORS[made] = selector
        return made

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())
        assert not SELECTORS[runner.get_loop()].serve
