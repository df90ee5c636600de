"""The rules of digests and bad chunks (``engine/tvol/digests.py``, ``scrub.py``, ``payload.py``), each taken away."""

from __future__ import annotations

import numpy as np

from engine.tvol.births import Births
from engine.tvol.checkpoint import Checkpointer
from engine.tvol.core import Core
from engine.tvol.digests import Digests
from engine.tvol.head import NativeHead
from engine.tvol.layout import RecordType
from engine.tvol.payload import Payload
from engine.tvol.scrub import Scrubber
from engine.tvol.store import NativeStore
from tests.simulation.mutation import Mutation, left_out


def _never_frozen(original):
    return lambda self, chunks: np.zeros(len(chunks), bool)


def _in_place_whoever_writes(original):
    async def still(self, first, last):
        return first << self._shift < self.size_bytes

    return still


def _sealed_or_not(original):
    async def sealed(self, node):
        return

    return sealed


def _held_although_freed(original):
    def drop(self, chunks):
        held = set(self.held)
        original(self, chunks)
        self.held |= held

    return drop


def _one_held_although_freed(original):
    def drop_one(self, chunk):
        held = chunk in self.held
        original(self, chunk)
        if held:
            self.held.add(chunk)

    return drop_one


def _drops_are_not_stored(original):
    def drop(self, chunks):
        dirty = set(self.dirty_bits)
        original(self, chunks)
        self.dirty_bits = dirty

    return drop


def _mark_in_memory_only(original):
    def log(self, kind, payload):
        if kind is not RecordType.MARK:
            return original(self, kind, payload)
        self.family.apply(kind, payload)
        return self.last_change_seq

    return log


def _marks_are_left_out(original):
    def capture(self):
        found = original(self)
        found.bad = ()
        return found

    return capture


def _nothing_is_bad(original):
    return lambda self, position, length: None


def _read_from_the_cache(original):
    async def read_medium(self, chunk):
        return (await self._read([chunk]))[chunk]

    return read_medium


def _any_bytes_repair(original):
    async def heal(self, node, index, chunk, expected):
        size = self._core.chunk_bytes
        async for data in self._repair.offers(self._head.volume_id, 0, size):
            await self._core.env.workers.run(lambda data=data: self._core.file.write((memoryview(data),), chunk * size))
        await self._mark(chunk, bad=False)

    return heal


def _as_far_as_the_volume(original):
    return lambda self, head: head.size_bytes


DIGESTS: dict[str, Mutation] = {
    "digested-is-immutable": Mutation(
        "a chunk with a digest is never written in place",
        left_out(Births, "_freeze_to_digest"),
    ),
    "digested-is-immutable-after-opening": Mutation(
        "what has a digest is frozen again when a file is opened",
        left_out(Births, "freeze_digested"),
    ),
    "digest-of-frozen-bytes": Mutation(
        "a part of a head is digested only when no write that was admitted before is in flight there",
        ((NativeHead, "still", _in_place_whoever_writes),),
    ),
    "digest-of-sealed-snapshots": Mutation(
        "a snapshot is digested only when its old epoch has ended",
        ((Scrubber, "_sealed", _sealed_or_not),),
    ),
    "digest-dropped-when-freed": Mutation(
        "the digest of a chunk ends when it is freed",
        left_out(Births, "_drop_digests"),
    ),
    "digest-dropped-while-made": Mutation(
        "a chunk that is freed while it is digested gets no digest",
        ((Digests, "drop", _held_although_freed), (Digests, "drop_one", _one_held_although_freed)),
    ),
    "thaw-spares-digests": Mutation(
        "a chunk that loses its last slot but has a digest stays frozen",
        ((Digests, "frozen", _never_frozen),),
    ),
    "ended-digests-in-the-checkpoint": Mutation(
        "a checkpoint has every digest that ended",
        ((Digests, "drop", _drops_are_not_stored),),
    ),
    "mark-is-journaled": Mutation(
        "a chunk found bad is still marked after a crash",
        ((Core, "log", _mark_in_memory_only), (Checkpointer, "_capture", _marks_are_left_out)),
    ),
    "marks-in-the-checkpoint": Mutation(
        "a checkpoint has every mark",
        ((Checkpointer, "_capture", _marks_are_left_out),),
    ),
    "bad-is-refused": Mutation(
        "reads of a bad chunk are refused, also to copy the rest of it",
        ((Payload, "_first_bad", _nothing_is_bad),),
    ),
    "bad-is-refused-at-once": Mutation(
        "devices that exist look for bad chunks from the first mark on",
        left_out(NativeStore, "_rebind"),
    ),
    "the-medium-is-asked": Mutation(
        "only what the medium confirms is marked",
        ((Scrubber, "_read_medium", _read_from_the_cache),),
    ),
    "repair-by-digest": Mutation(
        "a chunk is repaired with the bytes of its digest only",
        ((Scrubber, "_heal", _any_bytes_repair),),
    ),
    "scrub-goes-to-the-end": Mutation(
        "a scrub of a volume goes to the end of the largest of its snapshots",
        ((NativeStore, "scrub_bytes", _as_far_as_the_volume),),
    ),
}
