"""The initiator's disk against our own target over loopback, in one loop; the medium is in memory."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from engine.errors import OutOfRange
from engine.stores import ExtentState
from iscsi.initiator import CommandFailed, ConnectionLost, LoginRefused, Wishes, connect, discover
from iscsi.server import IscsiServer
from iscsi.wire.errors import ProtocolError
from tests.support.iscsi_link import TARGET, make_registry, make_unit
from tests.support.memory_device import MemoryDevice

SIZE = 4 << 20


@contextlib.asynccontextmanager
async def serving(*devices: MemoryDevice):
    """A target with these devices as LUN 0, 1, ...; yields its portal and the server."""
    server = IscsiServer(make_registry(*(make_unit(device, number) for number, device in enumerate(devices))))
    ((host, port),) = await server.start([("127.0.0.1", 0)])
    try:
        yield (host, port), server
    finally:
        await server.stop(graceful=False)


def pattern(length: int, seed: int = 1) -> bytes:
    return bytes((seed * 7 + n * 31 + (n >> 9)) & 0xFF for n in range(length))


WISHES = {
    "default": Wishes(),
    "digests": Wishes(header_digest="CRC32C", data_digest="CRC32C"),
    "all solicited": Wishes(initial_r2t=True, immediate_data=False, max_burst_length=16384, max_outstanding_r2t=1),
    "unsolicited": Wishes(immediate_data=False, first_burst_length=32768),
    "short segments": Wishes(max_recv_data_segment_length=4096, header_digest="CRC32C"),
}


@pytest.mark.parametrize("fast", [False, True], ids=["slow", "fast"])
@pytest.mark.parametrize("wishes", WISHES.values(), ids=WISHES.keys())
async def test_what_is_written_is_read_back(wishes, fast):
    device = MemoryDevice(SIZE, fast=fast)
    async with serving(device) as (portal, _), await connect(portal, TARGET, wishes=wishes) as disk:
        assert (disk.size_bytes, disk.block_size, disk.is_thin) == (SIZE, 512, True)
        for offset, length in [(0, 512), (512, 8192), (65536, 1 << 20), (SIZE - 700 * 512, 700 * 512)]:
            data = pattern(length, offset // 512)
            await disk.write(offset, data)
            assert bytes(device.data[offset : offset + length]) == data
            assert await disk.read(offset, length) == data
        await disk.flush()
        assert await disk.read(0, 0) == b""


async def test_the_other_commands():
    device = MemoryDevice(SIZE)
    async with serving(device, MemoryDevice(1 << 20)) as (portal, server), await connect(portal, TARGET) as disk:
        await disk.test_unit_ready()
        assert await disk.report_luns() == [0, 1]
        assert (await disk.inquiry()).vendor == "TWINVOL"
        assert (await disk.vpd_page(0x80))[4:].strip() == b"0" * 16
        await disk.write(0, b"\1" * 65536, fua=True)
        await disk.write_zeroes(0, 4096)
        assert device.data[:4097] == bytes(4096) + b"\1"
        await disk.discard(4096, 61440)
        assert not any(device.data)
        assert device.states[8] is ExtentState.HOLE
        device.resize(2 * SIZE)
        server.registry.find(TARGET).luns[0].capacity_changed()
        await disk.refresh()
        assert disk.size_bytes == 2 * SIZE


async def test_a_lun_beyond_255_is_addressed_flat():
    high = MemoryDevice(1 << 20)
    async with serving(MemoryDevice(SIZE)) as (portal, server):
        server.registry.find(TARGET).map_lun(300, make_unit(high, 2))
        async with await connect(portal, TARGET, 300) as disk:
            assert await disk.report_luns() == [0, 300]
            await disk.write(512, b"\5" * 512)
            assert await disk.read(0, 1024) == bytes(512) + b"\5" * 512
    assert high.data[512] == 5


async def test_errors_have_types():
    device = MemoryDevice(SIZE)
    async with serving(device) as (portal, _):
        with pytest.raises(LoginRefused):
            await connect(portal, TARGET + "x")
        with pytest.raises(CommandFailed) as error:
            await connect(portal, TARGET, 5)
        assert (error.value.sense_key, error.value.asc) == (5, 0x25)
        with pytest.raises(ProtocolError, match="HeaderDigest"):
            await connect(portal, TARGET, wishes=Wishes(header_digest="SHA3"))
        async with await connect(portal, TARGET) as disk:
            for offset, length in [(SIZE, 512), (1, 512), (0, 511), (-512, 512), (SIZE - 512, 1024)]:
                with pytest.raises(OutOfRange):
                    await disk.read(offset, length)
            outcome = await disk.execute(b"\x88" + SIZE.to_bytes(9, "big") + b"\0\0\0\1\0\0", data_in_length=512)
            assert (outcome.status, outcome.data) == (2, b"")
            assert await disk.read(0, 512) == bytes(512), "the session lives on"


async def test_an_error_in_one_piece_ends_a_long_write_but_not_the_session():
    device = MemoryDevice(SIZE, read_only=True)
    async with serving(device) as (portal, _), await connect(portal, TARGET) as disk:
        with pytest.raises(CommandFailed) as error:
            await disk.write(0, bytes(SIZE))
        assert error.value.sense_key == 7
        assert await disk.read(0, SIZE) == bytes(SIZE)


async def test_discovery():
    async with serving(MemoryDevice(SIZE)) as (portal, _):
        (found,) = await discover(portal)
        assert found.name == TARGET
        assert found.addresses == (f"{portal[0]}:{portal[1]},1",)


async def test_nobody_there():
    async with serving(MemoryDevice(SIZE)) as (portal, _):
        pass
    with pytest.raises(ConnectionLost):
        await connect(portal, TARGET)


async def test_a_server_that_stops_in_good_order_is_followed():
    async with serving(MemoryDevice(SIZE)) as (portal, server):
        disk = await connect(portal, TARGET)
        await server.stop()
        assert not disk.is_open
        with pytest.raises(ConnectionLost):
            await disk.read(0, 512)
        await disk.close()


async def test_a_lost_connection_fails_what_is_in_progress():
    started = asyncio.Event()

    class Device(MemoryDevice):
        async def read(self, offset, view):
            started.set()
            await super().read(offset, view)

    device = Device(SIZE)
    async with serving(device) as (portal, server):
        disk = await connect(portal, TARGET)
        device.gate = asyncio.Event()
        reading = asyncio.create_task(disk.read(0, SIZE))
        await started.wait()
        stopping = asyncio.create_task(server.stop(graceful=False))
        with pytest.raises(ConnectionLost):
            await reading
        device.gate.set()
        await stopping
        await disk.close()


async def test_a_command_that_takes_too_long_ends_the_connection():
    device = MemoryDevice(SIZE)
    async with serving(device) as (portal, _):
        disk = await connect(portal, TARGET, timeout_s=2.0)  # its login takes part in it, on a busy machine too
        device.gate = asyncio.Event()
        with pytest.raises(ConnectionLost):
            await disk.read(0, 512)
        assert not disk.is_open
        device.gate.set()


async def test_a_cancelled_command_ends_the_connection():
    device = MemoryDevice(SIZE)
    async with serving(device) as (portal, _):
        disk = await connect(portal, TARGET)
        device.gate = asyncio.Event()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await disk.read(0, SIZE)
        assert not disk.is_open
        device.gate.set()


async def test_a_disk_that_shrank_says_so():
    device = MemoryDevice(SIZE)
    async with serving(device) as (portal, server), await connect(portal, TARGET) as disk:
        device.resize(SIZE // 2)
        server.registry.find(TARGET).luns[0].capacity_changed()
        with pytest.raises(CommandFailed) as error:
            await disk.read(SIZE // 2, 512)
        assert error.value.asc == 0x21
        await disk.refresh()
        assert disk.size_bytes == SIZE // 2


async def test_the_same_isid_replaces_the_session():
    async with serving(MemoryDevice(SIZE)) as (portal, _):
        isid = b"\x80\0\0\0\0\1"
        first = await connect(portal, TARGET, isid=isid)
        async with await connect(portal, TARGET, isid=isid) as second:
            assert await second.read(0, 512) == bytes(512)
            with pytest.raises(ConnectionLost):
                await first.read(0, 512)


@pytest.mark.parametrize(
    ("reply", "error", "timeout_s"),
    [(b"", ConnectionLost, 0.2), (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(100), ProtocolError, 60.0)],
    ids=["silent", "another protocol"],
)
async def test_what_is_no_target(reply, error, timeout_s):
    done = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readexactly(48)
            writer.write(reply)
            await reader.read()  # until the initiator gives up, which it may have done before it said anything
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        done.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        with pytest.raises(error):
            await connect(server.sockets[0].getsockname()[:2], TARGET, timeout_s=timeout_s)
        await done.wait()
