"""One initiator's connection to a target's core, joined by bytes: no socket, no clock.

``Link`` logs in for real, feeds bytes to ``Connection`` (and its fast path, unless told not to), runs the work that it
asks for, and cuts the answers into PDUs.
"""

from __future__ import annotations

import asyncio
from struct import pack
from typing import TYPE_CHECKING

from iscsi.answers import Answers, ArenaPool
from iscsi.connection import Connection
from iscsi.fast_path import FastPath
from iscsi.scsi.lun import LogicalUnit, LunIdentity
from iscsi.session import SessionTable
from iscsi.target import Portal, Target, TargetRegistry
from iscsi.wire import requests
from iscsi.wire.opcodes import RESERVED_TAG, Stage
from iscsi.wire.pdu import RESPONSES, Framer, decode
from iscsi.wire.text_keys import parse_text, serialize_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.stores import BlockDevice
    from iscsi.wire.bhs import Pdu

INITIATOR = "iqn.2026-11.example:host"
TARGET = "iqn.2026-11.org.twinvol:disk"
LONE_CREDIT = 1 << 30
READ_10, READ_16, WRITE_10, WRITE_16 = 0x28, 0x88, 0x2A, 0x8A


def make_unit(device: BlockDevice, number: int = 1, **options) -> LogicalUnit:
    return LogicalUnit(device, LunIdentity(serial=f"{number:016x}", naa=0x3 << 60 | number), **options)


def make_registry(*units: LogicalUnit) -> TargetRegistry:
    """One target, the units at LUN 0, 1, ..."""
    registry = TargetRegistry()
    target = Target(TARGET)
    for lun, unit in enumerate(units):
        target.map_lun(lun, unit)
    registry.add(target)
    return registry


def cdb(opcode: int, lba: int, blocks: int, *, flags: int = 0) -> bytes:
    """A READ or WRITE of 10 or 16 bytes, padded to 16."""
    if opcode >= 0x80:
        return pack(">BBQIBB", opcode, flags, lba, blocks, 0, 0)
    return pack(">BBIBHB6x", opcode, flags, lba, 0, blocks, 0)


class Link:
    """An initiator's end. Its numbering follows what it sends; ``framer`` is what it sends with."""

    def __init__(
        self,
        registry: TargetRegistry,
        table: SessionTable | None = None,
        *,
        fast: bool = True,
        isid: int = 1,
        group: int = 1,
    ) -> None:
        self.registry = registry
        self.table = SessionTable() if table is None else table
        self.fast = fast
        self.isid = b"\x00\x02\x3d" + isid.to_bytes(3, "big")
        self.connection = Connection(
            registry, self.table, local=Portal("127.0.0.1", 3260, group), peer=("127.0.0.1", 50000), wake=lambda: None
        )
        self.sent = bytearray()  # by the target, not parsed yet
        self.raw = bytearray()  # all that the target sent
        self.pool = ArenaPool()
        self.answers = Answers(self.pool, self.connection.dirty, self._take, lambda: 0)
        self.fast_path: FastPath | None = None
        self.framer = Framer()
        self.parameters: dict[str, str] = {}
        self.cmd_sn = 1
        self.itt = 0
        self.rest = b""
        self.tasks: set[asyncio.Task[None]] = set()

    def _take(self, data: bytes | memoryview) -> int:
        self.sent += data
        self.raw += data
        return 0

    # -- the target's side

    def feed(self, data: bytes, credit: int = LONE_CREDIT) -> None:
        """Give bytes to the target, one pass. What it leaves is kept for the next call; work is started."""
        buffer = memoryview(bytearray(self.rest + data))
        position = 0
        if self.fast_path is None:
            position = self.connection.receive(buffer, 0, len(buffer))
            filled = self.answers.begin()
            for output in self.connection.take_output():
                filled = self.answers.put(filled, output)
            self.answers.end(filled)
        if self.fast_path is not None:
            position = self.fast_path.serve(buffer, 0, len(buffer), credit)
        self.rest = bytes(buffer[position:])
        buffer[:] = bytes(len(buffer))  # the receive buffer is somebody else's now
        self.start_work()

    def start_work(self) -> None:
        for work in self.connection.take_work():
            self.tasks.add(asyncio.get_running_loop().create_task(work))

    async def settle(self) -> None:
        """Run the target's work until none is left."""
        self.start_work()
        while self.tasks:
            await asyncio.wait(self.tasks)
            for task in self.tasks:
                await task
            self.tasks.clear()
            self.collect()
            self.start_work()
        self.collect()

    def collect(self) -> None:
        for output in self.connection.take_output():
            self._take(output)
        self.connection.output_left()

    # -- the initiator's side

    def received(self) -> list[Pdu]:
        """The PDUs that the target has sent since the last call; no incomplete one may remain."""
        self.collect()
        found = []
        view = memoryview(bytes(self.sent))
        position = 0
        while position < len(view):
            frame = self.framer.next(view, position)
            assert frame is not None, "the target sent part of a PDU"
            found.append(decode(frame, RESPONSES))
            position = frame.end
        self.sent.clear()
        return found

    async def exchange(self, *pdus: Pdu) -> list[Pdu]:
        """Send PDUs in one piece, let the target finish, return its answers."""
        self.feed(b"".join(map(self.framer.encode, pdus)))
        await self.settle()
        return self.received()

    async def log_in(self, *, session_type: str = "Normal", **keys: str) -> dict[str, str]:
        """One login request from the operational stage. Returns the target's keys."""
        asked = {"InitiatorName": INITIATOR, "SessionType": session_type}
        if session_type == "Normal":
            asked["TargetName"] = TARGET
        asked |= keys
        (response,) = await self.exchange(self.login_request(asked))
        assert response.status == 0
        self.parameters = parse_text(response.data)
        self.stat_sn = response.stat_sn
        self.framer = Framer(
            header_digest=self.parameters.get("HeaderDigest") == "CRC32C",
            data_digest=self.parameters.get("DataDigest") == "CRC32C",
            max_data_segment=1 << 23,
        )
        if self.fast and session_type == "Normal":
            assert self.connection.session is not None
            self.fast_path = FastPath(self.connection, self.connection.session, self.answers)
        return self.parameters

    def login_request(self, keys: dict[str, str], **fields) -> requests.LoginRequest:
        return requests.LoginRequest(
            **{
                "isid": self.isid,
                "tsih": 0,
                "itt": self.next_itt(),
                "cid": 0,
                "cmd_sn": self.cmd_sn,
                "exp_stat_sn": 0,
                "csg": Stage.OPERATIONAL,
                "nsg": Stage.FULL_FEATURE,
                "transit": True,
                "data": serialize_text(keys),
                **fields,
            }
        )

    def next_itt(self) -> int:
        self.itt += 1
        return self.itt

    def command(
        self, cdb: bytes, *, read: int = 0, write: int = 0, data: bytes = b"", lun: int = 0, immediate=False, **fields
    ) -> requests.ScsiCommandPdu:
        """The next SCSI command. ``read`` or ``write``: its expected data transfer length."""
        pdu = requests.ScsiCommandPdu(
            **{
                "itt": self.next_itt(),
                "lun": lun << 48,
                "cdb": cdb.ljust(16, b"\0"),
                "cmd_sn": self.cmd_sn,
                "exp_stat_sn": 0,
                "edtl": read or write,
                "read": bool(read),
                "write": bool(write),
                "immediate": immediate,
                "data": data,
                **fields,
            }
        )
        if not pdu.immediate:
            self.cmd_sn = self.cmd_sn + 1 & 0xFFFFFFFF
        return pdu

    def read(self, lba: int, blocks: int, opcode: int = READ_10, **fields) -> requests.ScsiCommandPdu:
        return self.command(cdb(opcode, lba, blocks), read=blocks * 512, **fields)

    def write(self, lba: int, data: bytes, opcode: int = WRITE_10, *, sent: int | None = None, **fields):
        """A write of whole blocks whose first ``sent`` bytes (default: all) go along as immediate data."""
        sent = len(data) if sent is None else sent
        return self.command(cdb(opcode, lba, len(data) // 512), write=len(data), data=data[:sent], **fields)

    def data_out(self, itt: int, data: bytes, offset: int, *, ttt: int = RESERVED_TAG, data_sn: int = 0, final=True):
        return requests.DataOut(itt, ttt, 0, data_sn, offset, final=final, data=data)

    async def clear_attention(self) -> None:
        """Take the unit attentions of a new session."""
        while (await self.exchange(self.command(bytes(6))))[0].status:
            pass


def data_of(pdus: Iterable[Pdu]) -> bytes:
    """The data of a read's Data-In PDUs."""
    return b"".join(bytes(pdu.data) for pdu in pdus)
