"""Rules of mirrors of all modes, each removed: some seed of ``replica_world`` must notice.

Those of the stream and of the round that a synchronous mirror on one machine needs already are in
``mutations_of_streams.py``. ``replication_mutations.py`` prints the table of all.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from engine import mirror_round
from engine.copy_state import CopyEvent
from engine.errors import EngineError
from engine.lease import SourceLease, TargetLease
from engine.links.local import LocalLink
from engine.mirror import Mirror
from engine.mirror_figures import MirrorFigures
from engine.mirror_round import Rounds
from engine.mirror_stream import MirrorStream
from engine.modes import ModeSwitch
from engine.thinned_point import Note, merged
from tests.simulation.directed_replicas import LeaseWaitedOut, Slow, Stalled, TargetRefuses, Thinned
from tests.simulation.mirror_world import World, run
from tests.simulation.replica_world import ReplicaWorld

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    Mutation = Callable[[pytest.MonkeyPatch], None]


async def _nothing(*_) -> None:
    return


def _acknowledge_while_the_lease_is_held(patch) -> None:
    patch.setattr(Mirror, "_end_lease", _nothing)


def _start_without_waiting(patch) -> None:
    patch.setattr(SourceLease, "assume", lambda self, now: None)


def _count_from_receipt(patch) -> None:
    def granted(self, number):
        if any(asked == number for asked, _ in self._asked):
            self._until = asyncio.get_running_loop().time() + self.length_s

    patch.setattr(TargetLease, "granted", granted)


def _no_margin(patch) -> None:
    patch.setattr("engine.lease.wait_s", lambda length: length)


def _grant_on(patch) -> None:
    patch.setattr(SourceLease, "stop", lambda self: None)
    patch.setattr(SourceLease, "released", lambda self: None)
    patch.setattr(Mirror, "_is_late", lambda self: False)


def _grant_before_synchronized(patch) -> None:
    real_serve = Mirror._new_stream

    def new_stream(self, ack):
        self._lease.begin()
        self.link.serve_lease(self._lease)
        return real_serve(self, ack)

    patch.setattr(Mirror, "_new_stream", new_stream)


def _demoted_takes_late_answers(patch) -> None:
    def demoted(self):
        self._until = float("-inf")

    patch.setattr(TargetLease, "demoted", demoted)


def _any_acknowledgement_counts(patch) -> None:
    patch.setattr(MirrorStream, "_check", lambda self, ack: None)


def _lease_beyond_the_budget(patch) -> None:
    real = Mirror.__init__

    def init(self, *args, **options):
        real(self, *args, **options)
        self._detect_s = self.policy.budget_s

    patch.setattr(Mirror, "__init__", init)
    patch.setattr(Mirror, "_is_late", lambda self: False)


def _without_staging(patch) -> None:
    async def begin(self, base, size_bytes):
        head = self._target.head
        if head.size_bytes != size_bytes:
            await head.resize(size_bytes)
        return head

    async def commit(self, guid):
        await self._snapshot(guid)

    patch.setattr(LocalLink, "begin_staging", begin)
    patch.setattr(LocalLink, "commit_staging", commit)


def _lag_from_arrival(patch) -> None:
    real = Rounds.advance

    async def advance(self, point, instant):
        await real(self, point, self._env.clock.boottime())

    patch.setattr(Rounds, "advance", advance)


def _current_by_the_source_alone(patch) -> None:
    """Whatever differs is not looked for: the target has what it had."""

    async def is_current(self, state):
        common = self._common(state)
        if common is None or state.staging:
            return False
        self._instant = self._env.clock.boottime()
        return True

    patch.setattr(Rounds, "is_current", is_current)


def _thin_to_what_changed_last(patch) -> None:
    """A second note forgets what the first had."""

    async def noted_until(self, since, until):
        extents = [extent async for extent in self.source.head.store.changed(since, until)]
        return Note(self.record.common, until.guid, merged(extents))

    patch.setattr(Rounds, "_noted_until", noted_until)


def _any_note(patch) -> None:
    def since(self, common):
        return self.source_point(common) or (self.source_point(self._note.since) if self._note else None)

    patch.setattr(Rounds, "since", since)


def _note_without_what_was_cut_off(patch) -> None:
    async def noted_until(self, since, until):
        extents = [extent async for extent in self.source.head.store.changed(since, until)]
        extents += self._note.extents if since.guid != self.record.common else ()
        return Note(self.record.common, until.guid, merged(extents))

    patch.setattr(Rounds, "_noted_until", noted_until)


def _any_ledger(patch) -> None:
    patch.setattr("engine.ledger.LedgerKey.serialize", lambda self: b"one for all")
    patch.setattr(mirror_round.Ledger, "discard", _nothing)


def _resume_any_round(patch) -> None:
    def resumable(self, state):
        return self.source_point(self.record.round_source) if state.staging else None

    async def plan(self, source, common, *, resumed):
        self.record.round_base = common if resumed else self.record.round_base
        return await real(self, source, common, resumed=resumed)

    real = Rounds.plan
    patch.setattr(Rounds, "_resumable", resumable)
    patch.setattr(Rounds, "plan", plan)


def _percent_without_floor(patch) -> None:
    def percent(self):
        left, size = self._rounds.left, self._rounds.size_bytes
        return 0 if left is None else min(99, 100 * (size - min(size, left[0])) // size)

    patch.setattr(MirrorFigures, "percent_synced", property(percent))


def _synchronized_whatever_the_lag(patch) -> None:
    patch.setattr(MirrorFigures, "watch_promise", _nothing)


def _record_after_the_points_are_gone(patch) -> None:
    """The older points are deleted before the record says that there are newer ones."""
    real = Rounds.advance

    async def advance(self, point, instant):
        await self.link.keep_points({point.guid})
        await real(self, point, instant)

    patch.setattr(Rounds, "advance", advance)


def _give_up(patch) -> None:
    real = Mirror._run_by_itself

    async def once(self, cadence):
        turn = self._standing.turn

        def and_stop(event, reason, severity="info"):
            turn(event, reason, severity)
            if event is CopyEvent.BREAK:
                raise EngineError("no more")

        self._standing.turn = and_stop
        try:
            await real(self, cadence)
        except EngineError:
            return

    patch.setattr(Mirror, "_run_by_itself", once)


def _never_back(patch) -> None:
    patch.setattr(ModeSwitch, "shipped", lambda self, changed: None)


MUTATIONS: dict[str, Mutation] = {
    "acknowledge alone while the target holds the lease": _acknowledge_while_the_lease_is_held,
    "start without waiting for the lease": _start_without_waiting,
    "grant while leaving": _grant_on,
    "grant before it is synchronized": _grant_before_synchronized,
    "a delta goes to the target's head, not to staging": _without_staging,
    "lag from the arrival of a recovery point": _lag_from_arrival,
    "nothing is looked for that differs": _current_by_the_source_alone,
    "a ledger of another round counts": _any_ledger,
    "percent without its floor": _percent_without_floor,
    "points are deleted before the record says so": _record_after_the_points_are_gone,
    "an asynchronous mirror gives up": _give_up,
}


def _forget_what_changed_since(patch) -> None:
    """What the staging area has of the older instant is taken for the newer one's."""
    real = Rounds._move_on

    async def move_on(self, source, plan, common):
        newer, _ = await real(self, source, plan, common)
        return newer, replace(plan, written=True, moved=True)

    patch.setattr(Rounds, "_move_on", move_on)


DIRECTED: dict[str, tuple[Mutation, type[World], int]] = {
    "an adaptive mirror never comes back": (_never_back, Stalled, 12),
    "the lease is waited for beyond the budget": (_lease_beyond_the_budget, Stalled, 12),
    "synchronized whatever the lag is": (_synchronized_whatever_the_lag, Stalled, 12),
    "a second note forgets what the first had": (_thin_to_what_changed_last, Thinned, 120),
    "a note does not have what was cut off": (_note_without_what_was_cut_off, Thinned, 120),
    "what changed since is forgotten when a round moves on": (_forget_what_changed_since, Slow, 40),
    "the target counts the lease from receipt": (_count_from_receipt, LeaseWaitedOut, 20),
    "no margin for the clocks": (_no_margin, LeaseWaitedOut, 20),
    "a demoted target takes late answers": (_demoted_takes_late_answers, TargetRefuses, 20),
}
"""Seeds notice them seldom; ``directed_replicas.py`` has a scene for each, which some of so many seeds fail."""

_CASES = "tests/unit/engine/test_mirror_rules.py::test_"

LITERAL: dict[str, tuple[Mutation, str]] = {
    "a note of another common point counts": (_any_note, f"{_CASES}a_note_of_another_common_point_counts_for_nothing"),
    "an acknowledgement of another connection counts": (
        _any_acknowledgement_counts,
        f"{_CASES}an_acknowledgement_of_another_connection_or_incarnation_counts_for_nothing",
    ),
    "a round with another base goes on": (
        _resume_any_round,
        f"{_CASES}an_interrupted_round_goes_on_only_from_its_own_base",
    ),
}
"""Which no seed meets; each with the literal case that fails."""


def notices(seed: int, kind: type[World] = ReplicaWorld) -> bool:
    """Whether this seed fails."""
    try:
        run(seed, kind)
    except (AssertionError, EngineError):
        return True
    return False
