"""Pauses at any place among commands of any shape: each command is answered once and well, and does what it should."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.scsi.command import Status
from iscsi.session import WINDOW, SessionTable
from iscsi.wire import responses
from tests.support.iscsi_link import TARGET, Link, make_registry, make_unit
from tests.support.memory_device import MemoryDevice

BLOCKS_EACH = 16
COMMANDS_MAX = 12


@dataclass(frozen=True)
class Step:
    """A command at an LBA of its own, or a change of the target. ``sent``: how much of a write goes along at once."""

    what: str
    blocks: int = 1
    sent: int = 0


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(("read", "write", "write", "pause", "resume", "record")),
        st.integers(1, BLOCKS_EACH),
        st.sampled_from((0, 512, 700, 4096)),
    ),
    min_size=2,
    max_size=COMMANDS_MAX,
)


class Host:
    """Sends commands and what is solicited; keeps what it wrote and what was answered."""

    def __init__(self, link: Link, device: MemoryDevice) -> None:
        self.link = link
        self.device = device
        self.pieces: dict[int, bytes] = {}
        self.expected = bytearray(device.data)
        self.answers: dict[int, list[int]] = {}
        self.sent: list[int] = []

    async def command(self, number: int, step: Step) -> None:
        lba = number * BLOCKS_EACH
        if step.what == "read":
            pdu = self.link.read(lba, step.blocks)
        else:
            data = bytes((number + 1, step.blocks)) * (256 * step.blocks)
            self.expected[lba * 512 : lba * 512 + len(data)] = data
            pdu = self.link.write(lba, data, sent=min(step.sent, len(data)))
            self.pieces[pdu.itt] = data
        self.sent.append(pdu.itt)
        await self.take(await self.link.exchange(pdu))

    async def take(self, answers) -> None:
        """Note what came, and send the data that was asked for."""
        for pdu in answers:
            if isinstance(pdu, responses.R2T):
                end = pdu.buffer_offset + pdu.desired_length
                data = self.pieces[pdu.itt][pdu.buffer_offset : end]
                piece = self.link.data_out(pdu.itt, data, pdu.buffer_offset, ttt=pdu.ttt)
                await self.take(await self.link.exchange(piece))
            elif pdu.status is not None:
                self.answers.setdefault(pdu.itt, []).append(pdu.status)


async def play(steps: list[Step], *, fast: bool, device_is_fast: bool) -> None:
    device = MemoryDevice(COMMANDS_MAX * BLOCKS_EACH * 512, fast=device_is_fast)
    table = SessionTable()
    registry = make_registry(make_unit(device))
    registry.subscribe(lambda *_: [session.connection.service_changed() for session in table])
    link = Link(registry, table, fast=fast)
    await link.log_in(InitialR2T="No", FirstBurstLength="4096", MaxBurstLength="4096")
    await link.clear_attention()
    target = registry.find(TARGET)
    host = Host(link, device)
    for number, step in enumerate(steps):
        before = bytes(device.data)
        match step.what:
            case "pause":
                target.pause()
            case "resume":
                target.resume()
            case "record":
                target.record(0 if target.recorded else 5)
            case _:
                await host.command(number, step)
        await link.settle()
        await host.take(link.received())
        assert not target.paused or bytes(device.data) == before, "a paused target leaves its devices alone"
    target.resume()
    await link.settle()
    await host.take(link.received())
    assert host.answers == {itt: [Status.GOOD] for itt in host.sent}
    assert device.data == host.expected
    session = link.connection.session
    assert not session.tasks
    assert session.max_cmd_sn == link.cmd_sn + WINDOW - 1
    assert session.observed.past.aborted == 0


@settings(max_examples=150, deadline=None)
@given(STEPS, st.sampled_from(((True, True), (False, True), (False, False))))
def test_commands_around_pauses_are_answered_once_and_do_what_they_should(steps, kind):
    asyncio.run(play(steps, fast=kind[0], device_is_fast=kind[1]))
