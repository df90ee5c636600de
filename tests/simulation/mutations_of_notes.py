"""The rules of holds (``engine/tvol/notes.py``), each taken away."""

from __future__ import annotations

import copy

from engine.tvol.core import Core
from engine.tvol.layout import RecordType
from engine.tvol.notes import NativeNotes, Notes
from tests.simulation.mutation import Mutation, left_out


def _holds_are_not_journaled(original):
    def log(self, kind, payload):
        if kind not in (RecordType.HOLD, RecordType.RELEASE):
            return original(self, kind, payload)
        self.end_pass()
        self.family.apply(kind, payload)
        return self.last_change_seq

    return log


def _no_records(original):
    return lambda self: []


class NeverFlushes:
    """A store's core whose flush returns at once."""

    def __init__(self, core):
        self._core = core

    def __getattr__(self, name):
        return getattr(self._core, name)

    async def flush(self):
        return


def _promised_before_the_flush(original):
    async def hold(self, snapshot, owner, expires_at):
        hasty = copy.copy(self)
        hasty._core = NeverFlushes(self._core)
        return await original(hasty, snapshot, owner, expires_at)

    return hold


NOTES: dict[str, Mutation] = {
    "held-is-not-deleted": Mutation(
        "a snapshot with a valid hold is not deleted",
        left_out(NativeNotes, "require_free"),
    ),
    "hold-is-journaled": Mutation(
        "a hold is journaled before it is promised",
        ((Core, "log", _holds_are_not_journaled),),
    ),
    "hold-is-flushed": Mutation(
        "a hold is flushed before it is promised",
        ((NativeNotes, "hold", _promised_before_the_flush),),
    ),
    "holds-in-the-checkpoint": Mutation(
        "a checkpoint has every hold",
        ((Notes, "records", _no_records),),
    ),
}
