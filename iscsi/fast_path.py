"""READ, WRITE and Data-Out without an object per command: where the target's speed comes from.

One pass handles every complete PDU of one receive. What is usual is decoded by ``unpack_from`` into locals, read or
written by the device's ``try_read`` and ``try_write``, and answered behind the previous answer in an arena. What is
not usual goes, in its place in the stream, to ``Connection.receive_pdu``, which answers alike, byte for byte
(``tests/properties/test_fast_path.py``); so this file may decline anything and must never guess.

Commands that come in a burst differ in tag, number and LBA only, writes also in their data. Once two were looked at,
those behind them are compared as a whole, and read or written by the device together (``BurstSource`` and
``BurstTarget`` in ``engine.stores``). Measured without the device and the system calls, 4 KiB commands, in us, with 32
and 128 in a pass: 0.45 and 0.32 for a read, one by one 0.62 and 0.57; 0.54 and 0.43 for a write, one by one 0.76 and
0.87. With a volume's reads from the page cache 1.79 and 1.65, one by one 2.04 and 1.95; a volume's writes cost 0.4 us
less together. (Python 3.11.2 of Debian, without profile-guided optimisation; the smallest of 2,000 passes in turns, on
a machine with a load of 8.)

A pass by itself costs 2 us; with both digests, which are never looked at together, a command costs 2.6 us. The budget
is 1.5 us per command. What else the shape of this file brings: the header decoded into just the fields that are asked
0.25 us, the logical unit looked at once per run of commands to it 0.1, answers packed in eight fields instead of
thirteen 0.1. A frozen object per command would cost 0.9 us, a task per command 1.3-4.2 us (PERFORMANCE section 1).

Layouts: RFC 7143 sections 11.3 (SCSI Command), 11.4 (SCSI Response), 11.7 (Data-Out, Data-In), 11.8 (R2T).
"""

from __future__ import annotations

import functools
from struct import Struct
from time import monotonic_ns
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.units import KIB
from iscsi.answers import ARENA_BYTES, FIRST_FLUSH_BYTES, FLUSH_BYTES
from iscsi.scsi.command import Status
from iscsi.wire.digest import crc32c

if TYPE_CHECKING:
    from iscsi.answers import Answers
    from iscsi.connection import Connection
    from iscsi.scsi.lun import Nexus
    from iscsi.session import Session

MAX_FAST_READ_BYTES = 512 * KIB
"""Longest read answered here: with its headers it fits an arena at the smallest segment length."""

FEWEST_ALIKE = 4
"""Commands for which it pays to look at a burst as a whole (1.2 us, then 0.3 us less for each). With fewer it is not
tried again in the pass: reads and writes in turn then cost 0.08 us more each, else 0.25."""

SMALL_COMMAND_BYTES = 8 * KIB
"""What a command costs of a pass's credit at least."""

BHS_BYTES = 48
_U32 = 0xFFFFFFFF  # mask of serial numbers, and the tag that names nothing
_NOT_FAST = 0  # as a command's first word
_WRAP_GUARD = _U32 - 0x10000
"""From here on serial numbers are left to the plain path until they have wrapped, so that those here need no mask. A
receive buffer holds fewer commands than remain."""

# The first eight bytes of a command: opcode, flags, no AHS, the length of immediate data. Final, SIMPLE or untagged;
# others (ordered, immediate, bidirectional) are rare, and so are reserved bits that are set.
_READ_COMMANDS = frozenset((0x01C0 << 48, 0x01C1 << 48))
_WRITE_COMMANDS = frozenset((0x01A0_0000, 0x01A1_0000))  # the upper half
# The first two CDB bytes; of the flags only DPO (10h) may be set, which is advice.
_READ_10 = frozenset((0x2800, 0x2810))
_READ_16 = frozenset((0x8800, 0x8810))
_WRITE_10 = frozenset((0x2A00, 0x2A10))
_WRITE_16 = frozenset((0x8A00, 0x8A10))

# first eight bytes, LUN, ITT, expected length, CmdSN, and of a 10-byte CDB: bytes 0-1, LBA, group, blocks, control
_COMMAND = Struct(">QQIII4xHIBHB6x")
# of a 16-byte CDB, from its LBA on: LBA, blocks, group, control
_CDB_16 = Struct(">QIBB")
_CDB_16_AT = 34
# opcode+flags, AHS length+data length, LUN, ITT, TTT, DataSN, buffer offset
_DATA_OUT = Struct(">H2xIQII12xII4x")
# opcode+flags+response+status, data length, ITT, TTT or SNACK tag, StatSN, ExpCmdSN, MaxCmdSN
_ANSWER = Struct(">II8xIIIII12x")
# the same with DataSN and buffer offset
_DATA_IN_PIECE = Struct(">II8xIIIIIII4x")
_DIGEST = Struct("<I")
# A READ (10) by what others of a burst have in common with it: opcode to LUN, (ITT,) expected length, (CmdSN,)
# CDB bytes 0-1, (LBA,) rest of the CDB.
_ALIKE = Struct(">16sI4sI4x2sI10s")
# its answer: opcode to LUN, which all have alike; ITT, TTT, StatSN, ExpCmdSN, MaxCmdSN
_ALIKE_ANSWER = Struct(">16sIIIII12x")
_ALIKE_ANSWER_HEAD = Struct(">II8x")
assert _ALIKE.size == _ALIKE_ANSWER.size == BHS_BYTES
assert _COMMAND.size == _DATA_OUT.size == _ANSWER.size == _DATA_IN_PIECE.size == BHS_BYTES
assert _CDB_16_AT + _CDB_16.size == BHS_BYTES

_DATA_IN = 0x2500_0000
_DATA_IN_FINAL = 0x2580_0000
_DATA_IN_STATUS = 0x2581_0000  # final, and the SCSI status GOOD is in it (phase collapse, section 11.7.3)
_RESPONSE = 0x2180_0000
_OPCODE_DATA_OUT = 0x05
_FINAL = 0x80
_MAX_DATA_LENGTH = 0xFFFFFF  # above it an AHS is announced in the same word
_ANSWER_ROOM = BHS_BYTES + 4


class FastPath:
    """The fast path of one connection in full feature phase.

    Invariant between passes: all sequence numbers are in the session and the connection; nothing is kept here but
    what the login has settled.
    """

    __slots__ = (
        "_answers",
        "_connection",
        "_data_digest",
        "_header_digest",
        "_session",
        "more",
        "went_aside",
    )

    def __init__(self, connection: Connection, session: Session, answers: Answers) -> None:
        self._connection = connection
        self._session = session
        self._answers = answers
        self._header_digest = 4 if connection.header_digest else 0
        self._data_digest = 4 if connection.data_digest else 0
        self.more = False
        self.went_aside = False
        """Whether the last pass did more than answer commands: only then has the connection work, or come to an end."""

    def serve(self, buffer: memoryview, position: int, end: int, credit: int) -> int:
        """Answer the complete PDUs of ``buffer[position:end]``, in order.

        Longer than a screen on purpose: a call per command would cost a third of the whole.

        Args:
            credit: bytes to serve in this pass; a small command counts as ``SMALL_COMMAND_BYTES``.

        Returns where it stopped: before an incomplete PDU, or, with ``more`` set, because credit ran out or the reader
        stalls. Raises what ``end_pass`` raises: then nothing of it was sent, and the connection must be dropped.
        """
        connection = self._connection
        session = self._session
        answers = self._answers
        unpack = _COMMAND.unpack_from
        pack = _ANSWER.pack_into
        read_commands, write_commands = _READ_COMMANDS, _WRITE_COMMANDS
        read_10, read_16, write_10, write_16 = _READ_10, _READ_16, _WRITE_10, _WRITE_16
        small, no_tag = SMALL_COMMAND_BYTES, _U32
        nexuses = session.nexuses
        tasks = session.tasks
        segment = connection.segment_bytes
        header_digest = self._header_digest
        data_digest = self._data_digest
        max_immediate = connection.max_immediate_bytes
        digests = header_digest or data_digest
        head = BHS_BYTES + header_digest
        last = end - head
        dirty = answers.dirty
        filled = answers.begin()
        output = connection.take_output()
        for data in output:  # of commands that ended since the last pass: earlier StatSNs
            filled = answers.put(filled, data)
        went_aside = bool(output)
        arena = answers.arena
        exp_cmd_sn = session.exp_cmd_sn
        max_cmd_sn = session.max_cmd_sn
        stat_sn = connection.stat_sn
        is_open = self._is_open()
        first_before = length_before = -1  # of the last small command
        in_bursts = True  # until commands of several kinds were met
        at_lun = blocks_end = shift = -1  # the logical unit of the command before, and what is asked of it each time
        nexus = device = read_each = write_each = None
        if answers.paused:
            credit = 0
        flush_at = credit - FIRST_FLUSH_BYTES
        reads = read_bytes = writes = written_bytes = 0  # of the logical unit at hand, since the last ``count_pass``
        began = monotonic_ns()

        while position <= last and credit > 0:
            first, lun, itt, expected, cmd_sn, cdb_head, lba, group, blocks, control = unpack(buffer, position)
            if header_digest and not _matches(buffer, position, position + BHS_BYTES):
                first = _NOT_FAST  # wrong, or behind an AHS
            if lun != at_lun:
                at_lun = lun
                if nexus is not None and (reads or writes):
                    nexus.stats.count_pass(reads, read_bytes, writes, written_bytes, began)
                    reads = read_bytes = writes = written_bytes = 0
                nexus = nexuses.get(lun)
                device = None if nexus is None else nexus.fast_device
                if nexus is not None and device is not None:
                    shift = nexus.block_shift
                    blocks_end = nexus.blocks
                    try_read = device.try_read
                    read_each = getattr(device, "try_read_each", None)
                    try_write = device.try_write
                    write_each = getattr(device, "try_write_each", None)
                else:
                    blocks_end = -1  # declines every command

            if first in read_commands:
                if cdb_head not in read_10:
                    lba, blocks, group, control = _CDB_16.unpack_from(buffer, position + _CDB_16_AT)
                    if cdb_head not in read_16:
                        blocks = 0
                if (
                    cmd_sn == exp_cmd_sn
                    and blocks > 0
                    and lba + blocks <= blocks_end
                    and expected == (length := blocks << shift)
                    and is_open
                    and not control
                    and not group
                    and itt != no_tag
                    and not (tasks and itt in tasks)
                ):
                    if length <= segment:
                        start = filled + head
                        stop = start + length
                        if stop + data_digest > ARENA_BYTES:
                            filled = answers.make_room(filled, head + length + data_digest)
                            arena = answers.arena
                            start = filled + head
                            stop = start + length
                        try:
                            done = try_read(lba << shift, arena[start:stop])
                        except EngineError:
                            done = False  # the plain path meets it again and words the sense
                        if done:
                            exp_cmd_sn += 1
                            max_cmd_sn += 1
                            pack(arena, filled, _DATA_IN_STATUS, length, itt, no_tag, stat_sn, exp_cmd_sn, max_cmd_sn)
                            if digests:
                                self._seal(arena, filled, length)
                                stop += data_digest
                            stat_sn += 1
                            filled = stop
                            position += head
                            reads += 1
                            read_bytes += length
                            cost = length if length > small else small
                            credit -= cost
                            if (
                                in_bursts
                                and first == first_before
                                and length == length_before
                                and read_each is not None
                                and cdb_head in read_10
                                and not (digests or tasks)
                            ):
                                most = min(
                                    (end - position) // BHS_BYTES,
                                    (credit - max(0, flush_at) + cost - 1) // cost,
                                    (ARENA_BYTES - filled) // (BHS_BYTES + length),
                                )
                                numbers = stat_sn, exp_cmd_sn, max_cmd_sn
                                alike = 0
                                if most >= FEWEST_ALIKE:
                                    offsets = self._take_alike(
                                        buffer, position, most, filled, (0, length), shift, blocks_end - blocks, numbers
                                    )
                                    if offsets:
                                        alike = read_each(offsets, arena[filled + head :], head + length, length)
                                    in_bursts = alike >= FEWEST_ALIKE
                                if alike:
                                    stat_sn += alike
                                    exp_cmd_sn += alike
                                    max_cmd_sn += alike
                                    filled += alike * (head + length)
                                    position += alike * head
                                    reads += alike
                                    read_bytes += alike * length
                                    credit -= alike * cost
                            first_before, length_before = first, length
                            if credit <= flush_at:
                                filled = answers.flush(filled)
                                flush_at = credit - FLUSH_BYTES
                                if answers.paused:
                                    break
                            continue

                    elif length <= MAX_FAST_READ_BYTES:
                        filled = answers.make_room(filled, 2 * length)  # never more headers than data
                        arena = answers.arena
                        numbers = stat_sn, exp_cmd_sn + 1, max_cmd_sn + 1
                        assert nexus is not None
                        stop = self._read_in_segments(nexus, lba, length, itt, filled, numbers)
                        if stop:
                            stat_sn += 1
                            exp_cmd_sn, max_cmd_sn = numbers[1:]
                            filled = stop
                            position += head
                            reads += 1
                            read_bytes += length
                            credit -= length
                            if credit <= flush_at:
                                filled = answers.flush(filled)
                                flush_at = credit - FLUSH_BYTES
                            if answers.paused:
                                break
                            continue

            elif first >> 32 in write_commands:
                if cdb_head not in write_10:
                    lba, blocks, group, control = _CDB_16.unpack_from(buffer, position + _CDB_16_AT)
                    if cdb_head not in write_16:
                        blocks = 0
                # Without an AHS and with everything as immediate data, the low word is the length.
                if (
                    cmd_sn == exp_cmd_sn
                    and blocks > 0
                    and lba + blocks <= blocks_end
                    and expected == (length := blocks << shift) == first & 0xFFFFFFFF
                    and is_open
                    and not control
                    and not group
                    and itt != no_tag
                    and not (tasks and itt in tasks)
                    and nexus is not None
                    and nexus.fast_writable
                ):
                    start = position + head
                    stop = start + length
                    if stop + data_digest > end and length <= max_immediate:
                        break
                    try:
                        done = (
                            length <= max_immediate
                            and (not data_digest or _matches(buffer, start, stop))
                            and try_write(lba << shift, buffer[start:stop])
                        )
                    except EngineError:
                        done = False
                    if done:
                        assert device is not None
                        if device not in dirty:
                            dirty.append(device)
                        if filled + _ANSWER_ROOM > ARENA_BYTES:
                            filled = answers.make_room(filled, _ANSWER_ROOM)
                            arena = answers.arena
                        exp_cmd_sn += 1
                        max_cmd_sn += 1
                        pack(arena, filled, _RESPONSE, 0, itt, 0, stat_sn, exp_cmd_sn, max_cmd_sn)
                        if digests:
                            self._seal(arena, filled, 0)
                        stat_sn += 1
                        filled += head
                        position = stop + data_digest
                        writes += 1
                        written_bytes += length
                        cost = length if length > small else small
                        credit -= cost
                        if (
                            in_bursts
                            and first == first_before
                            and write_each is not None
                            and cdb_head in write_10
                            and not (digests or tasks)
                        ):
                            most = min(
                                (end - position) // (BHS_BYTES + length),
                                (credit - max(0, flush_at) + cost - 1) // cost,
                                (ARENA_BYTES - filled) // BHS_BYTES,
                            )
                            numbers = stat_sn, exp_cmd_sn, max_cmd_sn
                            alike = 0
                            if most >= FEWEST_ALIKE:
                                offsets = self._take_alike(
                                    buffer, position, most, filled, (length, 0), shift, blocks_end - blocks, numbers
                                )
                                if offsets:
                                    alike = write_each(offsets, buffer[position + head :], head + length, length)
                                in_bursts = alike >= FEWEST_ALIKE
                            if alike:
                                stat_sn += alike
                                exp_cmd_sn += alike
                                max_cmd_sn += alike
                                filled += alike * head
                                position += alike * (head + length)
                                writes += alike
                                written_bytes += alike * length
                                credit -= alike * cost
                        first_before, length_before = first, length
                        if credit <= flush_at:
                            filled = answers.flush(filled)
                            flush_at = credit - FLUSH_BYTES
                            if answers.paused:
                                break
                        continue

            # Data-Out, and whatever the above did not answer.
            went_aside = True
            session.exp_cmd_sn = exp_cmd_sn
            session.max_cmd_sn = max_cmd_sn
            connection.stat_sn = stat_sn
            size = connection.frame(buffer, position, end)
            if not size:
                break
            is_data_out = first >> 56 == _OPCODE_DATA_OUT and connection.is_intact
            if not is_data_out or (after := self._data_out(buffer, position, filled)) < 0:
                connection.receive_pdu(buffer, position)
                after = filled
                for data in connection.take_output():
                    after = answers.put(after, data)
            filled = after
            arena = answers.arena
            exp_cmd_sn = session.exp_cmd_sn
            max_cmd_sn = session.max_cmd_sn
            stat_sn = connection.stat_sn
            is_open = self._is_open()
            at_lun = -1  # what stands between a command and its medium may have changed,
            segment = connection.segment_bytes  # and a text request may have changed this
            position += size
            credit -= size if size > small else small
            if connection.closing or connection.is_waiting or answers.paused:
                break

        self.more = position <= last and (credit <= 0 or answers.paused)
        session.exp_cmd_sn = exp_cmd_sn
        session.max_cmd_sn = max_cmd_sn
        connection.stat_sn = stat_sn
        if went_aside:
            for data in connection.take_output():
                filled = answers.put(filled, data)
        answers.end(filled)
        self.went_aside = went_aside
        if nexus is not None and (reads or writes):
            nexus.stats.count_pass(reads, read_bytes, writes, written_bytes, began)
        return position

    def _take_alike(
        self,
        buffer: memoryview,
        position: int,
        most: int,
        filled: int,
        data: tuple[int, int],
        shift: int,
        last_lba: int,
        numbers: tuple[int, int, int],
    ) -> list[int]:
        """Put the answers' headers for the commands behind a READ (10) or WRITE (10) that differ from it in tag, number
        and LBA only.

        So all that was asked of the first need not be asked again: 0.2 us a command instead of 0.5. Returns the offsets
        of these commands on the device; an answer counts when its data was read or written.

        Args:
            position: where the first, which was answered, ends. No digests, and no tasks.
            most: so many commands are there, may be served, and have room at ``filled``.
            data: bytes behind each command, and behind each answer.
            last_lba: where a command of that length may begin.
            numbers: StatSN, ExpCmdSN and MaxCmdSN, which count on with each answer.
        """
        arena, no_tag = self._answers.arena, _U32
        pack = _ALIKE_ANSWER.pack_into
        sent, answered = data
        command = _alike_with_data(sent)
        if answered:
            snack_tag, answer = no_tag, _ALIKE_ANSWER_HEAD.pack(_DATA_IN_STATUS, answered)
        else:
            snack_tag, answer = 0, _ALIKE_ANSWER_HEAD.pack(_RESPONSE, 0)
        step = BHS_BYTES + answered
        same_head, _, same_expected, _, same_cdb, _, same_rest = command.unpack_from(buffer, position - command.size)
        stat_sn, exp_cmd_sn, max_cmd_sn = numbers
        offsets: list[int] = []
        commands = buffer[position : position + most * command.size]
        for head, itt, expected, cmd_sn, cdb, lba, rest in command.iter_unpack(commands):
            if (
                cmd_sn != exp_cmd_sn
                or head != same_head
                or expected != same_expected
                or cdb != same_cdb
                or rest != same_rest
                or lba > last_lba
                or itt == no_tag
            ):
                break
            exp_cmd_sn += 1
            max_cmd_sn += 1
            pack(arena, filled, answer, itt, snack_tag, stat_sn, exp_cmd_sn, max_cmd_sn)
            stat_sn += 1
            filled += step
            offsets.append(lba << shift)
        return offsets

    def _is_open(self) -> bool:
        """Whether the next command may be answered here: the session lets it, and no serial number is about to wrap."""
        session = self._session
        last = max(session.exp_cmd_sn, session.max_cmd_sn, self._connection.stat_sn)
        return last < _WRAP_GUARD and session.is_fast()

    def _read_in_segments(
        self, nexus: Nexus, lba: int, length: int, itt: int, filled: int, numbers: tuple[int, int, int]
    ) -> int:
        """A read longer than one Data-In may be. Returns where the answer ends, or 0 if the device would block.

        ``numbers``: StatSN, ExpCmdSN and MaxCmdSN of the answer. There is room for it at ``filled``.
        """
        device = nexus.fast_device
        assert device is not None
        segment = self._connection.segment_bytes
        burst = self._connection.burst_bytes
        arena = self._answers.arena
        offset = lba << nexus.block_shift
        stat_sn, exp_cmd_sn, max_cmd_sn = numbers
        done = data_sn = 0
        while done < length:
            in_burst = burst - done % burst
            piece = min(segment, in_burst, length - done)
            start = filled + BHS_BYTES + self._header_digest
            try:
                if not device.try_read(offset + done, arena[start : start + piece]):
                    return 0
            except EngineError:
                return 0
            is_last = done + piece == length
            word = _DATA_IN_STATUS if is_last else _DATA_IN_FINAL if piece == in_burst else _DATA_IN
            status = stat_sn if is_last else 0
            _DATA_IN_PIECE.pack_into(
                arena, filled, word, piece, itt, _U32, status, exp_cmd_sn, max_cmd_sn, data_sn, done
            )
            self._seal(arena, filled, piece)
            done += piece
            data_sn += 1
            filled = start + piece + self._data_digest
        return filled

    def _data_out(self, buffer: memoryview, position: int, filled: int) -> int:
        """Write what one Data-Out brings for a streamed write; answer the command if it was the last.

        Returns where the answers end now, or -1 to leave the PDU to the plain path: whatever is out of order, not
        whole blocks, needs another R2T or would block.
        """
        word, length, _, itt, ttt, data_sn, offset = _DATA_OUT.unpack_from(buffer, position)
        task = self._session.tasks.get(itt)
        if task is None or not task.streams or length > _MAX_DATA_LENGTH:
            return -1
        nexus = task.nexus
        is_last = offset + length == task.expected
        if (
            ttt != task.ttt
            or data_sn != task.data_sn
            or offset != task.received
            or offset + length > task.burst_end
            or length & (1 << nexus.block_shift) - 1
            or not length
            or (word & _FINAL != 0) != (offset + length == task.burst_end)
            or (word & _FINAL and not is_last)
            or not nexus.fast_writable
        ):
            return -1
        device = nexus.fast_device
        assert device is not None
        start = position + BHS_BYTES + self._header_digest
        try:
            if not device.try_write(task.offset + offset, buffer[start : start + length]):
                return -1
        except EngineError:
            return -1
        answers = self._answers
        if device not in answers.dirty:
            answers.dirty.append(device)
        task.received += length
        task.streamed += length
        task.data_sn += 1
        if not is_last:
            return filled
        if filled + _ANSWER_ROOM > ARENA_BYTES:
            filled = answers.make_room(filled, _ANSWER_ROOM)
        session = self._session
        session.retire(task)
        session.observed.answered(task, Status.GOOD, length=task.expected)
        stat_sn = self._connection.stat_sn
        _ANSWER.pack_into(answers.arena, filled, _RESPONSE, 0, itt, 0, stat_sn, session.exp_cmd_sn, session.max_cmd_sn)
        self._seal(answers.arena, filled, 0)
        self._connection.stat_sn = stat_sn + 1 & _U32
        return filled + BHS_BYTES + self._header_digest

    def _seal(self, arena: memoryview, start: int, length: int) -> None:
        """Put the negotiated digests on the answer at ``start``; its data is ``length`` bytes, whole words."""
        data = start + BHS_BYTES + self._header_digest
        if self._header_digest:
            _DIGEST.pack_into(arena, start + BHS_BYTES, crc32c(arena[start : start + BHS_BYTES]))
        if self._data_digest and length:
            _DIGEST.pack_into(arena, data + length, crc32c(arena[data : data + length]))


@functools.lru_cache(maxsize=16)
def _alike_with_data(length: int) -> Struct:
    return Struct(f"{_ALIKE.format}{length}x")


def _matches(buffer: memoryview, start: int, end: int) -> bool:
    """Whether the digest of these bytes follows them."""
    return crc32c(buffer[start:end]) == int(_DIGEST.unpack_from(buffer, end)[0])
