"""What can be seen of a session while it works: who it is, what was negotiated, what it has done, what it does now.

``Observation`` is told of each command of the plain path; those of the fast path are counted by its passes
(``IoStats.count_pass``). A recorded session keeps its last commands; for that all of them take the plain path.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from time import monotonic_ns
from typing import TYPE_CHECKING

from iscsi.scsi.command import Status
from iscsi.scsi.sense import is_unit_attention
from iscsi.stats import IoStats, Kind, kind_of
from iscsi.target import format_address
from iscsi.wire.lun import decode_lun

if TYPE_CHECKING:
    from collections.abc import Iterable

    from iscsi.negotiation import SessionParameters
    from iscsi.scsi.lun import Nexus
    from iscsi.session import Session
    from iscsi.task import ScsiTask


@dataclass(frozen=True, slots=True)
class CommandRecord:
    """A command that is over. ``at``: when it came, in seconds since the epoch. ``status`` None: it was aborted."""

    at: float
    lun: int | None
    cdb: bytes
    length: int
    status: int | None
    sense: bytes
    nanoseconds: int


@dataclass(frozen=True, slots=True)
class Moved:
    """READs and WRITEs up to an instant of ``monotonic_ns``; of ``since``: within a time."""

    nanoseconds: int
    reads: int = 0
    read_bytes: int = 0
    writes: int = 0
    written_bytes: int = 0

    def since(self, earlier: Moved) -> Moved:
        return Moved(
            self.nanoseconds - earlier.nanoseconds,
            self.reads - earlier.reads,
            self.read_bytes - earlier.read_bytes,
            self.writes - earlier.writes,
            self.written_bytes - earlier.written_bytes,
        )


class Observation:
    """Of one session. ``past``: what it did with logical units that it sees no longer."""

    __slots__ = ("_marks", "began", "past", "recorder", "tasks_max")

    def __init__(self) -> None:
        self.began = monotonic_ns()
        self.past = IoStats()
        self.tasks_max = 0
        self.recorder: deque[CommandRecord] | None = None
        self._marks = Moved(self.began), Moved(self.began)

    def depth(self, tasks: int) -> None:
        """So many commands are in progress on the plain path."""
        if tasks > self.tasks_max:
            self.tasks_max = tasks

    def answered(self, task: ScsiTask, status: int, sense: bytes = b"", *, length: int) -> None:
        """A command of the plain path is answered; ``length`` bytes of data went either way."""
        nanoseconds = monotonic_ns() - task.started
        stats = task.nexus.stats
        stats.count(kind_of(task.cdb[0]), length, nanoseconds)
        if status not in (Status.GOOD, Status.CONDITION_MET) and not is_unit_attention(sense):
            stats.errors += 1
        if self.recorder is not None:
            self._remember(task, status, sense, length, nanoseconds)

    def aborted(self, task: ScsiTask) -> None:
        """A command was ended without an answer."""
        task.nexus.stats.aborted += 1
        if self.recorder is not None:
            self._remember(task, None, b"", 0, monotonic_ns() - task.started)

    def record(self, last: int) -> None:
        """Remember so many commands from now on, beginning with those remembered already; 0: none."""
        self.recorder = deque(self.recorder or (), maxlen=last) if last else None

    def _remember(self, task: ScsiTask, status: int | None, sense: bytes, length: int, nanoseconds: int) -> None:
        assert self.recorder is not None
        at = time.time() - nanoseconds / 1e9
        self.recorder.append(CommandRecord(at, decode_lun(task.lun), task.cdb, length, status, sense, nanoseconds))

    def mark(self, nexuses: Iterable[Nexus]) -> None:
        """Now and then: ``recent`` reaches back to the mark before the last one."""
        self._marks = self._marks[1], self._moved(nexuses)

    def recent(self, nexuses: Iterable[Nexus]) -> Moved:
        return self._moved(nexuses).since(self._marks[0])

    def _moved(self, nexuses: Iterable[Nexus]) -> Moved:
        totals = [0, 0, 0, 0]
        for stats in (self.past, *(nexus.stats for nexus in nexuses)):
            for tallies in (stats.fast, stats.plain):
                for at, kind in ((0, Kind.READ), (2, Kind.WRITE)):
                    totals[at] += tallies[kind].commands
                    totals[at + 1] += tallies[kind].bytes
        return Moved(monotonic_ns(), *totals)


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One logged-in session, as it is now. ``target`` is None for discovery.

    ``depth_max``: the most commands that it had in progress, as far as the target saw: waiting on the plain path, or
    answered by one pass. ``recent``: what it moved within the last one or two ticks of the server, or since its login.
    ``stats`` and ``luns`` are live, only to be read. ``commands``: the last ones, oldest first, if they are recorded.
    """

    tsih: int
    initiator_name: str
    chap_user: str | None
    isid: str
    address: str
    portal: str
    portal_group: int
    target: str | None
    parameters: SessionParameters
    age_s: float
    held: bool
    in_flight: int
    depth_max: int
    recent: Moved
    stats: IoStats
    luns: dict[int, IoStats]
    commands: list[CommandRecord] | None


def describe(session: Session) -> SessionInfo:
    connection, observed = session.connection, session.observed
    nexuses = connection.all_nexuses()
    if len(nexuses) == 1 and not observed.past.fast_commands + observed.past.plain_commands:
        stats = nexuses[0].stats
    else:
        stats = IoStats()
        for part in (observed.past, *(nexus.stats for nexus in nexuses)):
            stats.add(part)
    luns: dict[int, IoStats] = {}
    for field, nexus in session.nexuses.items():
        lun = decode_lun(field)
        if lun is not None:
            luns[lun] = nexus.stats
    return SessionInfo(
        tsih=session.tsih,
        initiator_name=session.initiator_name,
        chap_user=session.chap_user,
        isid=session.isid.hex(),
        address=connection.peer_address,
        portal=format_address(connection.local[:2]),
        portal_group=session.portal_group,
        target=None if session.target is None else session.target.name,
        parameters=connection.parameters,
        age_s=(monotonic_ns() - observed.began) / 1e9,
        held=session.held,
        in_flight=len(session.tasks),
        depth_max=max(observed.tasks_max, stats.pass_max),
        recent=observed.recent(nexuses),
        stats=stats,
        luns=dict(sorted(luns.items())),
        commands=None if observed.recorder is None else list(observed.recorder),
    )
