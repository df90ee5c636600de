"""The rules of shared chunks (``engine/tvol/claims.py``, ``births.py``), each taken away."""

from __future__ import annotations

import numpy as np

from engine.tvol import store as store_module
from engine.tvol.allocator import Allocator
from engine.tvol.births import Births
from engine.tvol.claims import Claims
from engine.tvol.core import Core
from engine.tvol.layout import RecordType
from tests.simulation.mutation import Mutation, at_once, left_out


def _slots_are_not_counted(original):
    return lambda self, chunks: self._freeze(chunks) if self._slots is not None else original(self, chunks)


def _own_claim_was_the_last(original):
    def free(self, chunks):
        slots, self._slots = self._slots, None
        try:
            return original(self, chunks)
        finally:
            self._slots = slots

    return free


def _last_slot_was_the_last_claim(original):
    def remove_slots(self, chunks):
        freed, kept = original(self, chunks)
        return np.concatenate([freed, self.free(kept)]), kept[:0]

    return remove_slots


def _share_is_not_journaled(original):
    def log(self, kind, payload):
        if kind is not RecordType.SHARE:
            return original(self, kind, payload)
        self.end_pass()
        self.family.apply(kind, payload)
        self._stamp_freed()
        return self.last_change_seq

    return log


def _shared_is_not_frozen_at_open(original):
    def init(self, *arguments):
        original(self, *arguments)
        self.births._guard[:] = self.births._store

    return init


def _thaw_when_unshared(original):
    return lambda self, seq, last_operation, ticket, chunks: self._births.thaw(ticket, np.frombuffer(chunks, np.uint32))


def _thaw_under_its_users(original):
    return lambda self, seq, last_operation, ticket, chunks: original(self, seq, -1, ticket, chunks)


def _any_ticket_thaws(original):
    def thaw(self, ticket, chunks):
        self._guard[chunks] = self._store[chunks].view(np.int32)

    return thaw


def _source_may_be_gone(original):
    async def share(core, source, *extent):
        node = source()
        return await original(core, lambda: node, *extent)

    return share


SHARING: dict[str, Mutation] = {
    "shared-is-frozen": Mutation(
        "a chunk that a slot names is never written in place",
        left_out(Births, "_freeze"),
    ),
    "shared-is-frozen-at-open": Mutation(
        "what is shared is frozen again when a file is opened",
        ((Claims, "__init__", _shared_is_not_frozen_at_open),),
    ),
    "slots-are-counted": Mutation(
        "each slot counts as a claim on its chunk",
        ((Births, "add_slots", _slots_are_not_counted),),
    ),
    "chunk-outlives-its-own-claim": Mutation(
        "a chunk whose own claim ends stays as long as a slot names it",
        ((Births, "free", _own_claim_was_the_last),),
    ),
    "chunk-outlives-its-slots": Mutation(
        "a chunk whose last slot ends stays as long as a map names it",
        ((Births, "remove_slots", _last_slot_was_the_last_claim),),
    ),
    "share-is-journaled": Mutation(
        "a share is journaled before it is acknowledged",
        ((Core, "log", _share_is_not_journaled),),
    ),
    "slots-in-the-checkpoint": Mutation(
        "a checkpoint has every slot that changed",
        left_out(Claims, "_touch"),
    ),
    "thaw-after-durable": Mutation(
        "a chunk that loses its last slot is written in place only when the loss is durable",
        ((Allocator, "defer_thaw", _thaw_when_unshared),),
    ),
    "thaw-waits-for-its-users": Mutation(
        "a chunk that loses its last slot is written in place only when those who read it through the slot have ended",
        ((Allocator, "defer_thaw", _thaw_under_its_users),),
    ),
    "thaw-by-its-own-ticket": Mutation(
        "a chunk that was shared again meanwhile stays frozen",
        ((Births, "thaw", _any_ticket_thaws),),
    ),
    "source-asked-for-each-batch": Mutation(
        "a batch is shared only from a snapshot that is still there",
        ((store_module, "share", _source_may_be_gone),),
    ),
    "feature-before-first-share": Mutation(
        "before the first share the superblock refuses programs that do not know it",
        ((Core, "begin_sharing", at_once),),
    ),
}
