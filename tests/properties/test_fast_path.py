"""The fast path answers like the plain one, byte for byte; how bytes are cut into receives changes nothing.

The same random command stream goes to four targets: with and without fast path, over a device that always answers at
once and over one that always would block. What they send and what their devices hold must be the same. (Transfers that
go wrong are not among them: how much of such a write reaches the medium is nobody's promise.) A second
property feeds one stream whole and in pieces, a third feeds spoilt bytes: both paths say the same to them.
"""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hypothesis import example, given, settings
from hypothesis import strategies as st

from iscsi.stats import Kind
from iscsi.wire import requests, responses
from iscsi.wire.opcodes import RESERVED_TAG
from tests.support.iscsi_link import READ_10, READ_16, WRITE_10, WRITE_16, Link, cdb, make_registry, make_unit
from tests.support.memory_device import MemoryDevice

if TYPE_CHECKING:
    from iscsi.wire.bhs import Pdu

BLOCKS = 256
MAX_HELD = 262_144 + 2048  # one PDU of the longest data segment, its headers and digests

KEYS = st.fixed_dictionaries(
    {
        "InitialR2T": st.sampled_from(("Yes", "No")),
        "ImmediateData": st.sampled_from(("Yes", "No")),
        "MaxRecvDataSegmentLength": st.sampled_from(("512", "1000", "8192", "262144")),
        "MaxBurstLength": st.sampled_from(("512", "5000", "262144")),
        "FirstBurstLength": st.sampled_from(("512", "4096", "65536")),
        "HeaderDigest": st.sampled_from(("None", "CRC32C")),
        "DataDigest": st.sampled_from(("None", "CRC32C")),
    }
)


DEFAULT_KEYS = {"InitialR2T": "No", "ImmediateData": "Yes", "FirstBurstLength": "65536"}


@dataclass(frozen=True)
class Command:
    """A READ or WRITE, mostly a good one."""

    opcode: int
    lba: int
    blocks: int
    flags: int = 0
    lun: int = 0
    attribute: int = 1
    immediate: bool = False
    edtl_error: int = 0  # added to the right expected length
    cmd_sn_error: int = 0
    sent: int = 0  # immediate data, as far as it is allowed
    final: bool = True
    cuts: list[int] = field(default_factory=list)  # lengths of the Data-Out pieces, used round robin


def mostly(usual, *others):
    return st.one_of(st.just(usual), st.just(usual), st.just(usual), st.sampled_from(others))


COMMANDS = st.builds(
    Command,
    opcode=st.sampled_from((READ_10, READ_16, WRITE_10, WRITE_16)),
    lba=st.one_of(st.integers(0, BLOCKS), st.sampled_from((0xFFFFFFFF, 0))),
    blocks=st.one_of(st.integers(0, 40), st.just(1)),
    flags=mostly(0, 0x10, 0x08, 0x18, 0x20, 0x02),
    lun=mostly(0, 1),
    attribute=mostly(1, 0, 2, 3, 4),
    immediate=mostly(False, True),
    edtl_error=mostly(0, 512, -512, 100, 4096),
    cmd_sn_error=mostly(0, -1, 1000),
    sent=st.sampled_from((0, 512, 700, 4096, 1 << 20)),
    final=mostly(True, False),
    cuts=st.lists(st.sampled_from((512, 1024, 4096, 100, 1 << 18)), min_size=1, max_size=3),
)


class Initiator:
    """Plays commands to one target; what it does depends on the commands and the target's answers alone."""

    def __init__(self, *, fast: bool, device_is_fast: bool) -> None:
        self.device = MemoryDevice(BLOCKS * 512, fast=device_is_fast)
        self.link = Link(make_registry(make_unit(self.device)), fast=fast)

    async def log_in(self, keys: dict[str, str], cmd_sn: int = 1) -> None:
        self.link.cmd_sn = cmd_sn
        agreed = await self.link.log_in(**keys)
        await self.link.clear_attention()
        self.first_burst = int(agreed["FirstBurstLength"])
        self.immediate_data = agreed["ImmediateData"] == "Yes"
        self.unsolicited = agreed["InitialR2T"] == "No"

    def build(self, command: Command) -> tuple[requests.ScsiCommandPdu, bytes]:
        """The command's PDU and all of its data."""
        is_write = command.opcode in (WRITE_10, WRITE_16)
        edtl = max(0, command.blocks * 512 + command.edtl_error)
        data = bytes((command.lba + at) & 0xFF for at in range(edtl)) if is_write else b""
        sent = min(command.sent, self.first_burst, edtl) if is_write and self.immediate_data else 0
        lba = command.lba & 0xFFFFFFFF
        pdu = self.link.command(
            cdb(command.opcode, lba, command.blocks, flags=command.flags),
            **({"write": edtl} if is_write else {"read": edtl}),
            data=data[:sent],
            lun=command.lun,
            attribute=command.attribute,
            immediate=command.immediate,
            final=command.final or not self.unsolicited or sent >= min(self.first_burst, len(data)),
        )
        if command.cmd_sn_error:
            pdu = requests.ScsiCommandPdu(
                **{name: getattr(pdu, name) for name in pdu.__slots__}
                | {"cmd_sn": pdu.cmd_sn + command.cmd_sn_error & 0xFFFFFFFF}
            )
            self.link.cmd_sn = self.link.cmd_sn - (not pdu.immediate) & 0xFFFFFFFF
        return pdu, data

    def data_out(self, pdu, data: bytes, command: Command, start: int, end: int, ttt: int) -> list[requests.DataOut]:
        pieces = []
        at = start
        while at < end:
            stop = min(at + command.cuts[len(pieces) % len(command.cuts)], end)
            piece = self.link.data_out(pdu.itt, data[at:stop], at, ttt=ttt, data_sn=len(pieces), final=stop == end)
            pieces.append(piece)
            at = stop
        return pieces

    async def play(self, command: Command) -> None:
        pdu, data = self.build(command)
        answers = await self.link.exchange(pdu)
        if not pdu.final:
            end = min(self.first_burst, len(data))
            for piece in self.data_out(pdu, data, command, len(pdu.data), end, RESERVED_TAG):
                answers += await self.link.exchange(piece)
        while answers and isinstance(answers[-1], responses.R2T):
            r2t = answers[-1]
            end = r2t.buffer_offset + r2t.desired_length
            answers = []
            for piece in self.data_out(pdu, data, command, r2t.buffer_offset, end, r2t.ttt):
                answers += await self.link.exchange(piece)


async def play_everywhere(keys: dict[str, str], commands: list[Command], cmd_sn: int = 1) -> None:
    outcomes = []
    for fast, device_is_fast in ((True, True), (False, True), (True, False), (False, False)):
        initiator = Initiator(fast=fast, device_is_fast=device_is_fast)
        await initiator.log_in(keys, cmd_sn)
        for command in commands:
            if not initiator.link.connection.closing:
                await initiator.play(command)
        session = initiator.link.connection.session
        stats = session.observed.past
        stats.add(next(iter(session.nexuses.values())).stats)
        counters = [(stats.total(kind).commands, stats.total(kind).bytes) for kind in Kind], stats.errors, stats.aborted
        assert not session.tasks
        outcomes.append((bytes(initiator.link.raw), bytes(initiator.device.data), counters))
    for other in outcomes[1:]:
        assert other == outcomes[0]


@settings(max_examples=150, deadline=None)
@given(KEYS, st.lists(COMMANDS, min_size=1, max_size=8))
def test_fast_and_plain_path_answer_alike(keys, commands):
    asyncio.run(play_everywhere(keys, commands))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(COMMANDS, min_size=4, max_size=8),
    st.builds(int.__sub__, st.sampled_from((1 << 32, 0xFFFF0000, 0xFFFF0000 - 128)), st.integers(1, 6)),
)
def test_serial_numbers_wrap_alike(commands, cmd_sn):
    """Around 2^32, and where the fast path leaves off until they have wrapped."""
    asyncio.run(play_everywhere(DEFAULT_KEYS, commands, cmd_sn))


async def play_in_pieces(commands: list[Command], cuts: list[int], credit: int) -> None:
    outcomes = []
    for whole in (True, False):
        initiator = Initiator(fast=True, device_is_fast=True)
        await initiator.log_in(DEFAULT_KEYS)
        stream = b""
        for command in commands:
            pdu, data = initiator.build(command)
            stream += initiator.link.framer.encode(pdu)
            if not pdu.final:
                end = min(initiator.first_burst, len(data))
                pieces = initiator.data_out(pdu, data, command, len(pdu.data), end, RESERVED_TAG)
                stream += b"".join(map(initiator.link.framer.encode, pieces))
        if whole:
            initiator.link.feed(stream)
        else:
            at = number = 0
            while at < len(stream):
                length = cuts[number % len(cuts)]
                initiator.link.feed(stream[at : at + length], credit)
                at += length
                number += 1
            while initiator.link.fast_path.more:
                initiator.link.feed(b"", credit)
        await initiator.link.settle()
        outcomes.append((bytes(initiator.link.raw), bytes(initiator.device.data)))
    assert outcomes[0] == outcomes[1]


USUAL = st.builds(
    Command,
    opcode=st.sampled_from((READ_10, READ_16, WRITE_10, WRITE_16)),
    lba=st.integers(0, BLOCKS - 40),
    blocks=st.integers(1, 40),
    sent=st.sampled_from((512, 4096, 1 << 20)),
    final=st.just(False),
    cuts=st.lists(st.sampled_from((512, 1024, 4096)), min_size=1, max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(USUAL, min_size=1, max_size=6),
    st.lists(st.sampled_from((1, 3, 47, 48, 49, 1000, 4096, 70_000)), min_size=1, max_size=4),
    st.sampled_from((1, 8192, 1 << 30)),
)
@example([Command(READ_10, 0, 1), Command(WRITE_10, 0, 1, sent=512)], [1], 1)
def test_how_bytes_are_cut_into_receives_changes_nothing(commands, cuts, credit):
    asyncio.run(play_in_pieces(commands, cuts, credit))


async def play_burst(
    opcode: int,
    extents: list[tuple[int, int]],
    changes: list[tuple[int, int, int]],
    declined: set[int],
    credit: int | None,
) -> tuple[bytes, bytes, list[int]]:
    """What is answered to commands that come in one receive, or (``credit`` None) one by one; what the device holds
    then, and the bytes counted.

    ``extents``: LBA and how many blocks more than two. ``changes``: (command, byte, value). ``declined``: LBAs.
    """
    initiator = Initiator(fast=True, device_is_fast=True)
    initiator.device.data[:] = bytes(at * 7 % 251 for at in range(BLOCKS * 512))
    initiator.device.declined = {lba * 512 for lba in declined}
    await initiator.log_in(DEFAULT_KEYS)
    link = initiator.link
    commands = [initiator.build(Command(opcode, lba, 2 + more, sent=4096))[0] for lba, more in extents]
    pieces = [bytearray(link.framer.encode(command)) for command in commands]
    for number, byte, value in changes:
        pieces[number % len(pieces)][byte] = value
    if credit is None:
        for piece in pieces:
            link.feed(bytes(piece))
    else:
        link.feed(b"".join(pieces), credit)
        while link.fast_path is not None and link.fast_path.more:
            link.feed(b"", credit)
    await link.settle()
    stats = next(iter(link.connection.session.nexuses.values())).stats
    return bytes(link.raw), bytes(initiator.device.data), [stats.total(kind).bytes for kind in Kind]


ALIKE = st.lists(st.tuples(st.integers(0, BLOCKS), st.sampled_from((0, 0, 0, 0, 0, 0, 0, 1))), min_size=5, max_size=40)
EIGHT = [(0, 0)] * 8
SPOILT = st.lists(  # opcode, flags, LUN, ITT, expected length, CmdSN, CDB: each may not be what it was before
    st.tuples(
        st.integers(0, 40),
        st.sampled_from((0, 1, 7, 9, 16, 17, 18, 19, 20, 22, 23, 24, 27, 32, 33, 34, 37, 38, 39, 40, 41, 42, 47)),
        st.sampled_from((0, 1, 2, 0x10, 0xC1, 0xFF)),
    ),
    max_size=2,
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from((READ_10, READ_10, READ_16, WRITE_10, WRITE_10, WRITE_16)),
    ALIKE,
    SPOILT,
    st.sets(st.integers(0, BLOCKS - 1), max_size=40),
    st.sampled_from((8192, 40_000, 150_000, 1 << 30)),
)
@example(READ_10, EIGHT, [(5, 32, 0x88)], set(), 1 << 30)  # READ (16) among READ (10)
@example(READ_16, EIGHT, [(5, 37, 1)], set(), 1 << 30)  # from block 2^32 on
@example(READ_10, EIGHT, [(5, at, 0xFF) for at in range(16, 20)], set(), 1 << 30)  # the tag that names nothing
@example(READ_10, EIGHT, [(5, 27, 0)], set(), 1 << 30)  # a CmdSN that was there before
@example(READ_10, EIGHT, [(5, 36, 0xFF)], set(), 1 << 30)  # beyond the end
@example(READ_10, EIGHT, [(5, 40, 1)], set(), 1 << 30)  # fewer blocks than are expected
@example(READ_10, EIGHT, [(5, 22, 8)], set(), 1 << 30)  # more bytes expected than blocks
@example(READ_10, EIGHT, [(5, 33, 0x08)], set(), 1 << 30)  # FUA
@example(READ_10, EIGHT, [(5, 9, 1)], set(), 1 << 30)  # another LUN, which is not there
@example(READ_10, [(lba, 0) for lba in range(20)], [], {7}, 1 << 30)
@example(WRITE_10, EIGHT, [(5, 32, 0x8A)], set(), 1 << 30)
@example(WRITE_16, EIGHT, [(5, 37, 1)], set(), 1 << 30)
@example(WRITE_10, EIGHT, [(5, at, 0xFF) for at in range(16, 20)], set(), 1 << 30)
@example(WRITE_10, EIGHT, [(5, 27, 0)], set(), 1 << 30)
@example(WRITE_10, EIGHT, [(5, 36, 0xFF)], set(), 1 << 30)
@example(WRITE_10, EIGHT, [(5, 40, 1)], set(), 1 << 30)
@example(WRITE_10, EIGHT, [(5, 22, 8)], set(), 1 << 30)
@example(WRITE_10, EIGHT, [(5, 33, 0x08)], set(), 1 << 30)
@example(WRITE_10, EIGHT, [(5, 9, 1)], set(), 1 << 30)
@example(WRITE_10, EIGHT, [(5, 1, 0x20)], set(), 1 << 30)  # not final: Data-Out is to follow
@example(WRITE_10, [(lba, 0) for lba in range(20)], [], {7}, 1 << 30)
def test_a_burst_is_answered_as_one_by_one(opcode, extents, changes, declined, credit):
    """However many of it the device serves at once, and wherever one is not like the others."""
    burst, singly = (asyncio.run(play_burst(opcode, extents, changes, declined, each)) for each in (credit, None))
    assert burst == singly


async def play_garbage(
    keys: dict[str, str], changes: list[tuple[int, int]], commands: list[Command], tail: bytes, *, fast: bool
) -> tuple[list[Pdu], bool]:
    """What the target says to a spoilt stream, and whether it closes then.

    A command's PDU is sent when the one before it is done with, so that the answers have one order; the command window
    is left out of them, because a spoilt length can still join two.
    """
    initiator = Initiator(fast=fast, device_is_fast=True)
    await initiator.log_in(keys)
    pieces = [initiator.link.framer.encode(initiator.build(command)[0]) for command in commands]
    stream = bytearray(b"".join(pieces))
    for where, value in changes:
        stream[where % len(stream)] = value
    position = 0
    for piece in [*map(len, pieces), 0]:
        if not initiator.link.connection.closing:
            initiator.link.feed(bytes(stream[position : position + piece] if piece else tail))
        assert len(initiator.link.rest) <= MAX_HELD
        await initiator.link.settle()
        position += piece
    answers = initiator.link.received()  # well-formed PDUs and nothing else
    said = [dataclasses.replace(pdu, exp_cmd_sn=0, max_cmd_sn=0) for pdu in answers]
    return said, initiator.link.connection.closing


@settings(max_examples=300, deadline=None)
@example(DEFAULT_KEYS, [(38, 0x40)], [Command(READ_10, 0, 1)], b"")  # reserved bits beside the group number
@example(DEFAULT_KEYS, [(46, 0x40)], [Command(READ_16, 0, 1)], b"")
@example(DEFAULT_KEYS, [(42, 1)], [Command(WRITE_16, 0, 1, sent=512)], b"")  # 16 Mi blocks: a residual of 33 bits
@given(
    KEYS,
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=8),
    st.lists(USUAL, min_size=1, max_size=4),
    st.binary(max_size=300),
)
def test_any_bytes_are_answered_or_end_the_connection_on_both_paths_alike(keys, changes, commands, tail):
    fast, plain = (asyncio.run(play_garbage(keys, changes, commands, tail, fast=fast)) for fast in (True, False))
    assert fast == plain
