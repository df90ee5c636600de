"""A logical unit of a remote target as a disk: ``connect`` and ``IscsiDisk``; ``discover`` finds targets.

Long reads and writes are cut into commands of at most ``MAX_COMMAND_BYTES``, several of which are under way at once.
There is no reconnecting: a caller that wants it connects again. Cancelling a command, or its timing out, ends the
connection, because the target may still send to or take from its buffers.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import OutOfRange
from iscsi.initiator import commands
from iscsi.initiator.errors import CommandFailed, ConnectionLost, InitiatorError, ShortTransfer
from iscsi.initiator.link import Link, open_link
from iscsi.initiator.login import InitiatorLogin
from iscsi.initiator.session import EMPTY, Command, parse_send_targets, send_targets
from iscsi.negotiation import Wishes
from iscsi.scsi.command import Status
from iscsi.scsi.sense import SenseKey
from iscsi.wire.errors import ProtocolError
from iscsi.wire.lun import encode_lun

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from iscsi.initiator.chap import ChapCredentials
    from iscsi.negotiation import SessionParameters

DEFAULT_INITIATOR_NAME = "iqn.2026-11.org.twinvol:initiator"
MAX_COMMAND_BYTES = 256 * 1024
"""One command's data; with our data segment length one PDU in either direction."""

DEFAULT_DEPTH = 8
"""Commands of one long read or write that are under way at once."""

COMMAND_TIMEOUT_S = 60.0
MAX_UNIT_ATTENTIONS = 16
"""Unit attentions that a command is repeated for: each reports something new since the last command."""

_VPD_SUPPORTED_PAGES, _VPD_BLOCK_LIMITS = 0x00, 0xB0
_INQUIRY_LENGTH = 255
_POWER_ON_OR_RESET = 0x29


@dataclass(frozen=True, slots=True)
class DiscoveredTarget:
    """One target of a SendTargets answer; ``addresses`` as the target wrote them: ``host:port,tag``."""

    name: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended. ``residual``: positive for an underflow, negative for an overflow, in bytes."""

    status: int
    sense: bytes
    data: bytes
    residual: int


def _isid() -> bytes:
    """An ISID of type 'random' (section 11.12.5): a session of its own, which replaces none."""
    return b"\x80" + secrets.token_bytes(5)


async def connect(
    portal: tuple[str, int],
    target: str,
    lun: int = 0,
    *,
    initiator_name: str = DEFAULT_INITIATOR_NAME,
    isid: bytes | None = None,
    wishes: Wishes | None = None,
    chap: ChapCredentials | None = None,
    depth: int = DEFAULT_DEPTH,
    timeout_s: float = COMMAND_TIMEOUT_S,
) -> IscsiDisk:
    """Log in to a target and look at one of its logical units.

    Args:
        portal: host and port.
        isid: six bytes; a second login with the same one replaces the session of the first.
        wishes: what to negotiate, digests for instance.
        chap: who we are, if the target wants it proven, and who it must prove to be.
        depth: commands of one read or write that may be under way at once.
        timeout_s: for the login, and for each command; a command that takes longer ends the connection.

    Raises:
        LoginRefused, TargetNotAuthentic, ConnectionLost, ProtocolError: there is no session.
        CommandFailed: there is, but the logical unit does not answer as a disk.
    """
    wishes = wishes or Wishes()
    login = InitiatorLogin(initiator_name, target, isid or _isid(), wishes, chap)
    link = await _log_in(portal, login, wishes, timeout_s)
    disk = IscsiDisk(link, target, lun, depth=depth, timeout_s=timeout_s)
    try:
        await disk.refresh()
    except BaseException:
        link.drop(ConnectionLost("the logical unit is of no use"))
        raise
    return disk


async def discover(
    portal: tuple[str, int],
    *,
    initiator_name: str = DEFAULT_INITIATOR_NAME,
    chap: ChapCredentials | None = None,
    timeout_s: float = COMMAND_TIMEOUT_S,
) -> list[DiscoveredTarget]:
    """Ask a portal for the targets that this initiator may use (SendTargets).

    Raises:
        LoginRefused, TargetNotAuthentic, ConnectionLost, ProtocolError.
    """
    wishes = Wishes()
    link = await _log_in(portal, InitiatorLogin(initiator_name, None, _isid(), wishes, chap), wishes, timeout_s)
    try:
        question = send_targets()
        async with asyncio.timeout(timeout_s):
            await link.run(question)
        return [DiscoveredTarget(name, tuple(found)) for name, found in parse_send_targets(question.answer)]
    except TimeoutError:
        raise ConnectionLost(f"no SendTargets answer within {timeout_s} s") from None
    finally:
        await _leave(link, timeout_s)


async def _log_in(portal: tuple[str, int], login: InitiatorLogin, wishes: Wishes, timeout_s: float) -> Link:
    try:
        async with asyncio.timeout(timeout_s):
            return await open_link(*portal, login, wishes.max_recv_data_segment_length)
    except TimeoutError:
        raise ConnectionLost(f"no login within {timeout_s} s") from None


async def _leave(link: Link, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await link.log_out()
    except TimeoutError:
        link.drop(ConnectionLost("no answer to logout"))


class IscsiDisk:
    """A remote disk. Offsets and lengths are bytes, in whole blocks. Made by ``connect``; ``close`` logs out."""

    def __init__(self, link: Link, target: str, lun: int, *, depth: int, timeout_s: float) -> None:
        self._link = link
        self._lun = encode_lun(lun)
        self._depth = depth
        self._timeout_s = timeout_s
        self._capacity = commands.Capacity(0, 512, 512, thin=False)
        self._limits = commands.BlockLimits(0, 0, 0)
        self._tells_status = True
        self.target = target
        self.lun = lun
        self.resets = 0
        """Unit attentions 29h so far: the disk was powered on or reset, and what it had not flushed may be lost."""

    async def __aenter__(self) -> IscsiDisk:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def size_bytes(self) -> int:
        """As of the last ``refresh``."""
        return self._capacity.blocks * self._capacity.block_size

    @property
    def block_size(self) -> int:
        return self._capacity.block_size

    @property
    def physical_block_size(self) -> int:
        return self._capacity.physical_block_size

    @property
    def is_thin(self) -> bool:
        """Whether ``discard`` may be used."""
        return self._capacity.thin

    @property
    def parameters(self) -> SessionParameters:
        """What login settled."""
        return self._link.parameters

    @property
    def is_open(self) -> bool:
        """Whether commands can still be sent; False after the target asked us to leave."""
        return self._link.is_open

    # -- commands

    async def execute(self, cdb: bytes, *, data_out: bytes | memoryview = b"", data_in_length: int = 0) -> Outcome:
        """Send one command as it is and tell how it ended; unit attentions are the caller's.

        Raises:
            ConnectionLost, CommandRejected.
        """
        data_in = memoryview(bytearray(data_in_length))
        command = await self._run(cdb, memoryview(data_out), data_in)
        return Outcome(command.status, command.sense, bytes(data_in[: command.received]), command.residual)

    async def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view``.

        Raises:
            OutOfRange: not whole blocks within the disk.
            CommandFailed, ShortTransfer, CommandRejected, ConnectionLost.
        """

        async def one(start: int, end: int) -> None:
            cdb = commands.read16((offset + start) // self.block_size, (end - start) // self.block_size)
            command = await self._must(cdb, data_in=view[start:end])
            if command.received != end - start:
                raise ShortTransfer(f"READ of {end - start} bytes returned {command.received}")

        self._check(offset, len(view))
        await self._in_pieces(len(view), self._max_transfer(), one)

    async def read(self, offset: int, length: int) -> bytes:
        """As ``read_into``, into new bytes."""
        data = bytearray(length)
        await self.read_into(offset, memoryview(data))
        return bytes(data)

    async def write(self, offset: int, data: bytes | memoryview, *, fua: bool = False) -> None:
        """Write; ``data`` must not change meanwhile. ``fua``: on stable storage when this returns.

        Raises: as ``read_into``.
        """
        view = memoryview(data)

        async def one(start: int, end: int) -> None:
            lba, blocks = (offset + start) // self.block_size, (end - start) // self.block_size
            await self._must(commands.write16(lba, blocks, fua=fua), data_out=view[start:end])

        self._check(offset, len(view))
        await self._in_pieces(len(view), self._max_transfer(), one)

    async def flush(self) -> None:
        """Everything written before is on stable storage when this returns."""
        await self._must(commands.synchronize_cache16())

    async def discard(self, offset: int, length: int) -> None:
        """UNMAP an extent."""

        async def one(start: int, end: int) -> None:
            lba, blocks = (offset + start) // self.block_size, (end - start) // self.block_size
            cdb, parameters = commands.unmap(lba, blocks)
            await self._must(cdb, data_out=memoryview(parameters))

        self._check(offset, length)
        await self._in_pieces(length, (self._limits.max_unmap or 0x10000) * self.block_size, one)

    async def write_zeroes(self, offset: int, length: int) -> None:
        """WRITE SAME of a zero block; the target may deallocate."""
        block = memoryview(bytes(self.block_size))

        async def one(start: int, end: int) -> None:
            lba, blocks = (offset + start) // self.block_size, (end - start) // self.block_size
            await self._must(commands.write_same16(lba, blocks, unmap=self.is_thin), data_out=block)

        self._check(offset, length)
        await self._in_pieces(length, (self._limits.max_write_same or 0x8000) * self.block_size, one)

    async def mapped(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """Which parts of a range the target has blocks for: (offset, length, mapped), in order, without gaps.

        Unmapped are only those that read zero. A target that does not tell (GET LBA STATUS) has everything mapped.

        Raises: as ``read_into``.
        """
        self._check(offset, length)
        found: list[tuple[int, int, bool]] = []
        at, end = offset, offset + length
        while at < end:
            for stop, mapped in await self._lba_status(at, end):
                if found and found[-1][2] == mapped:
                    found[-1] = (found[-1][0], stop - found[-1][0], mapped)
                else:
                    found.append((at, stop - at, mapped))
                at = stop
        return found

    async def _lba_status(self, at: int, end: int) -> list[tuple[int, bool]]:
        """One answer, from ``at`` on: (where a part ends, whether it is mapped), at least one part."""
        size = self.block_size
        if not (self._capacity.thin and self._capacity.reads_zero and self._tells_status):
            return [(end, True)]
        try:
            answer = await self._ask(commands.get_lba_status(at // size), commands.LBA_STATUS_LENGTH)
        except CommandFailed as error:
            if error.sense_key != SenseKey.ILLEGAL_REQUEST:
                raise
            self._tells_status = False
            return [(end, True)]
        parts = []
        for lba, blocks, mapped in commands.parse_lba_status(answer):
            if lba * size > at or (lba + blocks) * size <= at:
                break  # not what follows: no more of this is believed
            at = min((lba + blocks) * size, end)
            parts.append((at, mapped))
            if at == end:
                break
        return parts or [(end, True)]

    async def test_unit_ready(self) -> None:
        """Raises CommandFailed when the medium is not there."""
        await self._must(commands.TEST_UNIT_READY)

    async def inquiry(self) -> commands.InquiryData:
        """Standard INQUIRY data."""
        return commands.InquiryData.parse(await self._ask(commands.inquiry(None, _INQUIRY_LENGTH), _INQUIRY_LENGTH))

    async def vpd_page(self, page: int) -> bytes:
        """A vital product data page with its four-byte header."""
        return await self._ask(commands.inquiry(page, _INQUIRY_LENGTH), _INQUIRY_LENGTH)

    async def report_luns(self) -> list[int]:
        """The LUNs of this target that we may use."""
        return commands.parse_luns(await self._ask(commands.report_luns(), commands.REPORT_LUNS_LENGTH))

    async def refresh(self) -> None:
        """Read capacity and limits again, after a resize for instance."""
        answer = await self._ask(commands.read_capacity16(), commands.READ_CAPACITY_LENGTH)
        if len(answer) < commands.READ_CAPACITY_LENGTH:
            raise ShortTransfer(f"READ CAPACITY(16) returned {len(answer)} bytes")
        self._capacity = commands.Capacity.parse(answer)
        if _VPD_BLOCK_LIMITS in (await self.vpd_page(_VPD_SUPPORTED_PAGES))[4:]:
            self._limits = commands.BlockLimits.parse(await self.vpd_page(_VPD_BLOCK_LIMITS))

    def drop(self) -> None:
        """Close at once. Commands under way fail here; whether the target carries them out is not known."""
        self._link.drop(ConnectionLost("given up"))

    async def close(self) -> None:
        """Log out and close. Does not raise if the connection is gone."""
        await _leave(self._link, self._timeout_s)

    # -- how they are carried out

    def _check(self, offset: int, length: int) -> None:
        size = self.block_size
        if offset < 0 or length < 0 or offset % size or length % size or offset + length > self.size_bytes:
            raise OutOfRange(offset, length, self.size_bytes)

    def _max_transfer(self) -> int:
        limit = self._limits.max_transfer * self.block_size
        return min(MAX_COMMAND_BYTES, limit) if limit else MAX_COMMAND_BYTES

    async def _in_pieces(self, length: int, piece: int, one: Callable[[int, int], Awaitable[None]]) -> None:
        """Call ``one(start, end)`` for consecutive pieces of a range, ``depth`` at a time; the first error ends it."""
        if length <= piece:
            if length:
                await one(0, length)
            return
        starts = iter(range(0, length, piece))
        errors: list[Exception] = []

        async def work() -> None:
            for start in starts:
                try:
                    await one(start, min(start + piece, length))
                except (InitiatorError, ProtocolError) as error:
                    errors.append(error)
                if errors:  # whatever is under way ends by itself, for its buffers are in use
                    return

        await asyncio.gather(*(work() for _ in range(min(self._depth, -(-length // piece)))))
        if errors:
            raise errors[0]

    async def _ask(self, cdb: bytes, length: int) -> bytes:
        data_in = memoryview(bytearray(length))
        command = await self._must(cdb, data_in=data_in)
        return bytes(data_in[: command.received])

    async def _must(self, cdb: bytes, *, data_out: memoryview = EMPTY, data_in: memoryview = EMPTY) -> Command:
        """Run a command until it is GOOD; repeated while it reports unit attentions.

        Raises:
            CommandFailed: any other status.
        """
        for _ in range(MAX_UNIT_ATTENTIONS):
            command = await self._run(cdb, data_out, data_in)
            if command.status == Status.GOOD:
                return command
            error = commands.failure(cdb[0], command.status, command.sense)
            if error.sense_key != SenseKey.UNIT_ATTENTION:
                raise error
            self.resets += error.asc == _POWER_ON_OR_RESET
        raise error

    async def _run(self, cdb: bytes, data_out: memoryview, data_in: memoryview) -> Command:
        command = Command(self._lun, cdb, data_out, data_in)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._link.run(command)
        except TimeoutError:
            # Its buffers are still the session's: only the end of the connection gives them back.
            self._link.drop(ConnectionLost(f"no answer to command {cdb[0]:#04x} within {self._timeout_s} s"))
            raise ConnectionLost(f"no answer to command {cdb[0]:#04x} within {self._timeout_s} s") from None
        except asyncio.CancelledError:
            self._link.drop(ConnectionLost("a command was cancelled"))
            raise
        return command
