"""Sessions: command numbering, the tasks in progress, and the table of all sessions of a server.

Numbering (RFC 7143 section 4.2.2.1): one connection per session, so commands arrive in the order of their CmdSN.
``exp_cmd_sn`` is the next one. ``max_cmd_sn`` is the last that will be taken: ``WINDOW`` commands less those in
progress, so it advances with each answer and never goes back. A command outside of the window is ignored. A number
whose command was aborted before it came counts as received (section 11.6.1) and is passed over.

Order among the tasks of a session (SAM-5 section 8): SIMPLE ones have none. An ORDERED one starts when all that came
before it are answered, and none that came later starts before it is. HEAD OF QUEUE starts at once. While an ORDERED
task is there the fast path is off (``is_fast``).

While the target is paused its sessions are ``held``: their commands are taken and wait. None but ``LIFE_SIGNS`` starts
and no data is solicited, so what a session holds stays within its window and its unsolicited data. PDUs that are no
SCSI commands are served as always: a ping keeps the connection alive, an abort finds its task.

A task that runs is never torn from its worker: aborting one suppresses its answer, and whoever aborts waits for
``settle`` before telling the initiator, so that no stale write lands later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from engine.units import MIB
from iscsi.observation import Observation
from iscsi.room import Room, SharedRoom
from iscsi.scsi.limits import MAX_TRANSFER_BYTES
from iscsi.stranger_log import StrangerLog
from iscsi.wire.opcodes import TaskAttribute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from iscsi.chap import ChapIdentity
    from iscsi.connection import Connection
    from iscsi.scsi.lun import Nexus
    from iscsi.target import Target
    from iscsi.task import ScsiTask

WINDOW = 128
"""Commands of one session in progress at most."""

MAX_IMMEDIATE_TASKS = 16
"""Immediate commands in progress at most; they are outside of the window (RFC 7143 section 4.2.2.1)."""

MAX_RUNNING_BYTES = 32 * MIB
"""Data of one session's running commands at most; a single larger command runs alone. See ``room.py``."""

MAX_GATHERED_BYTES = 32 * MIB
"""Data gathered for commands of one session at most: further R2Ts wait, and a command whose unsolicited data would go
beyond it is answered TASK SET FULL. Streamed writes need none of it."""

MAX_SESSIONS = 1024
"""Sessions of one server."""

LIFE_SIGNS = frozenset((0x00, 0x03, 0x12, 0xA0))
"""TEST UNIT READY, REQUEST SENSE, INQUIRY, REPORT LUNS: what initiators ask to learn whether a path is alive and what
is there. They touch no medium, and are answered while the others are held, so that nobody gives the path up."""

_U32 = 0xFFFFFFFF


class Session:
    """One session, normal or discovery. The fast path works on its public slots directly."""

    __slots__ = (
        "_executing",
        "_gathering",
        "_immediate",
        "_leaving",
        "_ordered",
        "_passed_over",
        "_queue",
        "_soliciting",
        "_withheld",
        "chap_proof",
        "chap_user",
        "connection",
        "ended",
        "exp_cmd_sn",
        "heir",
        "held",
        "initiator_name",
        "isid",
        "max_cmd_sn",
        "nexuses",
        "observed",
        "portal_group",
        "running",
        "target",
        "tasks",
        "tsih",
    )

    def __init__(
        self,
        connection: Connection,
        *,
        initiator_name: str,
        isid: bytes,
        tsih: int,
        target: Target | None,
        portal_group: int,
        exp_cmd_sn: int,
        chap_user: str | None = None,
        chap_proof: ChapIdentity | None = None,
        table: SessionTable | None = None,
    ) -> None:
        """``target`` is None for a discovery session. ``portal_group``: its tag. ``exp_cmd_sn``: the CmdSN that follows
        the login's. ``chap_user``: as whom it was proven, if it had to be; ``chap_proof``: by what. ``table``: of the
        server, with whose other sessions it shares the room for data."""
        self.connection = connection
        self.initiator_name = initiator_name
        self.isid = isid
        self.tsih = tsih
        self.target = target
        self.portal_group = portal_group
        self.chap_user = chap_user
        self.chap_proof = chap_proof
        self.exp_cmd_sn = exp_cmd_sn
        self.max_cmd_sn = exp_cmd_sn + WINDOW - 1 & _U32
        self.nexuses: dict[int, Nexus] = {}
        self.tasks: dict[int, ScsiTask] = {}
        # In the logical unit's hands; aborted ones too, which are no longer in ``tasks``.
        self.running: set[ScsiTask] = set()
        self.observed = Observation()
        self.ended = asyncio.Event()  # all its commands have left their workers, and it is no longer in the table
        self.heir: Connection | None = None  # goes on with this session, and takes over the nexuses when it ends
        self.held = target is not None and target.paused
        if target is not None:
            self.observed.record(target.recorded)
        self._immediate = 0
        self._ordered = 0
        self._passed_over: set[int] = set()  # numbers in the window, beyond ``exp_cmd_sn``; at most WINDOW
        self._queue: deque[ScsiTask] = deque()
        self._executing = Room(MAX_RUNNING_BYTES, SharedRoom() if table is None else table.executing)
        self._gathering = Room(MAX_GATHERED_BYTES, SharedRoom() if table is None else table.gathering)
        self._soliciting: set[ScsiTask] = set()  # those that may have all their data
        self._leaving: list[ScsiTask] = []  # answered, and their data waits to be sent
        self._withheld: deque[ScsiTask] = deque()

    def __str__(self) -> str:
        user = "" if self.chap_user is None else f" as {self.chap_user}"
        return f"session {self.tsih} of {self.initiator_name}{user} at {self.connection.peer_address}"

    def distinct_nexuses(self) -> list[Nexus]:
        """Each nexus once, however its LUN is written."""
        return list({id(nexus): nexus for nexus in self.nexuses.values()}.values())

    def part(self) -> None:
        """I_T nexus loss: leave all logical units."""
        for nexus in self.distinct_nexuses():
            nexus.lu.detach(nexus)
        self.nexuses.clear()

    # -- numbering

    def is_fast(self) -> bool:
        """Whether the fast path may take the next command: the window is open, its numbers follow one another, and no
        order is asked for."""
        return self.exp_cmd_sn != self.max_cmd_sn + 1 & _U32 and not self._ordered and not self._passed_over

    def in_window(self, cmd_sn: int) -> bool:
        """Serial arithmetic of RFC 7143 section 4.2.2.1: ExpCmdSN <= CmdSN <= MaxCmdSN."""
        return (cmd_sn - self.exp_cmd_sn & _U32) <= (self.max_cmd_sn - self.exp_cmd_sn & _U32) < WINDOW

    def advance(self) -> None:
        """A numbered command was taken."""
        self.exp_cmd_sn = self.exp_cmd_sn + 1 & _U32
        while self.exp_cmd_sn in self._passed_over:
            self._passed_over.remove(self.exp_cmd_sn)
            self.exp_cmd_sn = self.exp_cmd_sn + 1 & _U32
            self.answered()

    def pass_over(self, cmd_sn: int) -> None:
        """A number in the window counts as received, and its command as answered; should it come, it is ignored."""
        if cmd_sn == self.exp_cmd_sn:
            self.advance()
            self.answered()
        else:
            self._passed_over.add(cmd_sn)

    def is_passed_over(self, cmd_sn: int) -> bool:
        return cmd_sn in self._passed_over

    def answered(self) -> None:
        """A numbered command that took no task is answered: the window moves on."""
        self.max_cmd_sn = self.max_cmd_sn + 1 & _U32

    # -- tasks

    def takes_immediate(self) -> bool:
        return self._immediate < MAX_IMMEDIATE_TASKS

    def add(self, task: ScsiTask) -> None:
        """A command begins. Its ITT must be free."""
        assert task.itt not in self.tasks
        self.tasks[task.itt] = task
        self.observed.depth(len(self.tasks))
        if task.immediate:
            self._immediate += 1
        if task.attribute == TaskAttribute.ORDERED:
            self._ordered += 1

    def retire(self, task: ScsiTask) -> None:
        """A command is over, answered or aborted."""
        del self.tasks[task.itt]
        if task.immediate:
            self._immediate -= 1
        else:
            self.answered()
        if task.attribute == TaskAttribute.ORDERED:
            self._ordered -= 1
        self._gathering.give_back(task)
        self._soliciting.discard(task)

    def enqueue(self, task: ScsiTask) -> None:
        """All of its data is here: it may run when ``startable`` says so."""
        if task.attribute == TaskAttribute.HEAD_OF_QUEUE:
            self._queue.appendleft(task)
        else:
            self._queue.append(task)

    @property
    def has_waiting(self) -> bool:
        """Whether any task waits to run, or for room for its data."""
        return bool(self._queue or self._withheld)

    def startable(self) -> Iterator[ScsiTask]:
        """Take the tasks that may start now out of the queue. The caller runs each."""
        for _ in range(len(self._queue)):
            task = self._queue.popleft()
            if task.aborted:
                continue
            if self._may_start(task):
                self.running.add(task)
                yield task
            else:
                self._queue.append(task)

    def _may_start(self, task: ScsiTask) -> bool:
        if self.held and task.cdb[0] not in LIFE_SIGNS:
            return False
        if self._ordered and task.attribute != TaskAttribute.HEAD_OF_QUEUE:
            for earlier in self.tasks.values():
                if earlier is task:
                    break
                if TaskAttribute.ORDERED in (task.attribute, earlier.attribute):
                    return False
        # Of what it asks for; the logical unit refuses longer transfers.
        return self._executing.take(task, min(task.expected, MAX_TRANSFER_BYTES))

    def stop(self, task: ScsiTask) -> None:
        """A running task has left its worker."""
        self.running.discard(task)
        self._executing.give_back(task)
        task.finished.set()

    def abort(self, task: ScsiTask) -> None:
        """No answer for this one. If it runs, it stays in ``running`` until ``settle`` is through; else it is gone."""
        task.aborted = True
        self.retire(task)
        self.observed.aborted(task)

    # -- room for data

    def leaves(self, task: ScsiTask, length: int) -> None:
        """A finished task's answer has so many bytes of data: they take its room until ``output_left``."""
        self._executing.take(task, length, anyway=True)
        self._leaving.append(task)

    def output_left(self) -> bool:
        """All answers are with the transport, and it takes more. True if that has made room for tasks that wait."""
        if not self._leaving:
            return False
        for task in self._leaving:
            self._executing.give_back(task)
        self._leaving.clear()
        return self.has_waiting

    def may_gather(self, task: ScsiTask, length: int) -> bool:
        """Whether there is room for so many bytes of unsolicited data."""
        return self._gathering.take(task, length)

    def gathers(self, task: ScsiTask) -> None:
        """A task has begun to gather what it was to stream; what was asked for comes, whether there is room or not."""
        self._gathering.take(task, task.burst_end - task.streamed, anyway=True)

    def may_solicit(self, task: ScsiTask) -> bool:
        """Whether there is room to gather the rest of a task's data; if not, ``unwithheld`` gives it back later."""
        if self.held:
            self._withheld.append(task)
            return False
        if task.streams:
            return True
        # One may always have its rest: tasks that hold a first burst each must not wait for one another.
        if self._gathering.take(task, task.wanted - task.streamed, anyway=not self._soliciting):
            self._soliciting.add(task)
            return True
        self._withheld.append(task)
        return False

    def unwithheld(self) -> Iterator[ScsiTask]:
        """Tasks whose data there is room for now; the caller sends their R2Ts."""
        for _ in range(len(self._withheld)):
            task = self._withheld.popleft()
            if not task.aborted and self.may_solicit(task):
                yield task


async def settle(tasks: Iterable[ScsiTask]) -> None:
    """Return when none of these running tasks touches the medium any more."""
    for task in tasks:
        await task.finished.wait()


class SessionTable:
    """All sessions of a server. Finds the one that a login reinstates, and those that share a target."""

    def __init__(self) -> None:
        self.executing = SharedRoom()
        self.gathering = SharedRoom()
        self.strangers = StrangerLog()
        self._sessions: dict[int, Session] = {}
        self._last_tsih = 0

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, tsih: int) -> Session | None:
        return self._sessions.get(tsih)

    def new_tsih(self) -> int:
        """A free, nonzero TSIH. The caller has checked that the table is not full."""
        while True:
            self._last_tsih = self._last_tsih % 0xFFFF + 1
            if self._last_tsih not in self._sessions:
                return self._last_tsih

    def add(self, session: Session) -> None:
        self._sessions[session.tsih] = session

    def remove(self, session: Session) -> None:
        """Forget a session; harmless when it is gone already."""
        if self._sessions.get(session.tsih) is session:
            del self._sessions[session.tsih]

    def same_nexus(self, initiator_name: str, isid: bytes, target: Target, portal_group: int) -> Session | None:
        """The session of this I_T nexus, of which there is at most one (the ISID rule, RFC 7143 section 4.4.3).

        A login of the same initiator port to the same target port replaces it (section 6.3.5).
        """
        for session in self._sessions.values():
            if (
                session.target is target
                and session.portal_group == portal_group
                and session.isid == isid
                and session.initiator_name == initiator_name
            ):
                return session
        return None

    def tasks_of(self, matches: Callable[[ScsiTask], bool]) -> list[tuple[Session, ScsiTask]]:
        """All tasks in progress, of any session, for which ``matches`` is true."""
        return [(session, task) for session in self for task in session.tasks.values() if matches(task)]

    def running(self, matches: Callable[[ScsiTask], bool]) -> list[ScsiTask]:
        """The running tasks among them, and those that were aborted before and still run."""
        return [task for session in self for task in session.running if matches(task)]
