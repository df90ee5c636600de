"""Task management and offloaded copies: after the answer nothing that a copy does lands any more."""

from __future__ import annotations

import asyncio

import pytest

from engine.offload import PIECE_BYTES
from engine.stores import ExtentState
from iscsi.scsi.copy_manager import OperationStatus
from iscsi.wire.opcodes import TaskFunction, TaskResponse
from tests.support.iscsi_link import Link, make_registry, make_unit
from tests.support.memory_device import MemoryDevice
from tests.unit.iscsi.test_connection import management
from tests.unit.scsi.test_extended_copy import parameters, segment
from tests.unit.scsi.test_token_copy import ZERO_TOKEN, write_list

BLOCKS = 8 * PIECE_BYTES // 512
HALF = BLOCKS // 2


async def connect() -> tuple[Link, MemoryDevice]:
    """A link to a disk of 2 MiB of data whose writes wait for its gate."""
    device = MemoryDevice(BLOCKS * 512)
    device.data[:] = b"x" * len(device.data)
    device.states[:] = [ExtentState.DATA] * BLOCKS
    unit = make_unit(device)
    link = Link(make_registry(unit))
    await link.log_in(InitialR2T="No")
    await link.clear_attention()
    write, discard, gate = device.write, device.discard, asyncio.Event()
    reached = asyncio.Event()

    async def held(original, *arguments, **options):
        reached.set()
        await gate.wait()
        await original(*arguments, **options)

    device.write = lambda *arguments, **options: held(write, *arguments, **options)
    device.discard = lambda *arguments, **options: held(discard, *arguments, **options)
    link.unit, link.gate, link.reached = unit, gate, reached
    return link, device


def changes(device: MemoryDevice) -> int:
    return sum(name in ("write", "discard") for name, _, _ in device.calls)


def a_copy(link: Link):
    data = parameters(segment(0xFFFF, 0xFFFF, HALF, 0, HALF), cscds=())
    return link.command(bytes.fromhex(f"83 00 {'00' * 8} {len(data):08x} 00 00"), write=len(data), data=data)


@pytest.mark.parametrize(
    "function",
    [
        TaskFunction.ABORT_TASK,
        TaskFunction.ABORT_TASK_SET,
        TaskFunction.CLEAR_TASK_SET,
        TaskFunction.LOGICAL_UNIT_RESET,
        TaskFunction.TARGET_WARM_RESET,
    ],
)
async def test_an_extended_copy_ends_before_its_abort_is_answered(function):
    link, device = await connect()
    copy = a_copy(link)
    link.feed(link.framer.encode(copy))
    await link.reached.wait()
    link.feed(link.framer.encode(management(link, function, copy.itt)))
    await asyncio.sleep(0)
    assert link.received() == []
    link.gate.set()
    await link.settle()
    (answer,) = link.received()
    assert answer.response == TaskResponse.FUNCTION_COMPLETE
    assert changes(device) == 1


async def test_a_logical_unit_reset_ends_copies_in_the_background():
    link, device = await connect()
    device.data[:] = b"x" * len(device.data)
    data = write_list(ZERO_TOKEN, (0, 16), (32, 16), (64, 16), flags=1)
    write = link.command(bytes.fromhex(f"83 11 00000000 00000001 {len(data):08x} 00 00"), write=len(data), data=data)
    link.feed(link.framer.encode(write))
    await link.reached.wait()
    link.collect()
    (good,) = link.received()
    assert good.status == 0
    (operation,) = link.unit.copy_manager.in_background()
    link.feed(link.framer.encode(management(link, TaskFunction.LOGICAL_UNIT_RESET)))
    await asyncio.sleep(0)
    assert link.received() == []
    link.gate.set()
    await link.settle()
    (answer,) = link.received()
    assert answer.response == TaskResponse.FUNCTION_COMPLETE
    assert operation.status is OperationStatus.TERMINATED
    assert changes(device) == 1


async def test_a_session_that_is_lost_ends_its_copy():
    link, device = await connect()
    link.feed(link.framer.encode(a_copy(link)))
    await link.reached.wait()
    link.connection.lost()
    link.gate.set()
    await link.settle()
    assert changes(device) == 1
