"""The rules of flattening (``engine/tvol/flatten.py``), each taken away, and one of all copies by leases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import strips
from engine.tvol import adoption, flatten, layout
from engine.tvol import store as store_module
from engine.tvol.head import NativeHead
from engine.tvol.layout import RecordType
from tests.simulation.directed_flatten import (
    a_chunk_of_its_own_where_a_pass_expects_an_inherited_one,
    a_clone_that_leaves_with_its_snapshots,
    a_clone_that_still_inherits_and_its_origin_goes,
    a_clone_that_was_flattened_in_part_and_its_snapshot_goes,
    a_large_chunk_that_is_zero_in_its_first_half,
    a_merge_before_the_separation_is_durable,
    a_separated_clone_after_power_loss,
    a_slow_write_under_a_copy_and_a_flip,
    a_zero_chunk_under_a_partial_one,
)
from tests.simulation.mutation import Mutation, nothing
from tests.simulation.mutations_of_notes import NeverFlushes

if TYPE_CHECKING:
    from collections.abc import Callable


def _always(original):
    return lambda *arguments: True


async def _no_zeroes(core, chunk):
    return


def _logged_only(original):
    def log(core, keeper, node):
        core.log(RecordType.SEPARATE, layout.NODE_ID.pack(node.id))

    return log


async def _nothing_is_inherited(core, node):
    return True


def _parts_of_any_size(original):
    return lambda part_bytes, unit: part_bytes


def _separated_without_a_flush(original):
    return lambda core, head, keeper: original(NeverFlushes(core), head, keeper)


FLATTEN: dict[str, Mutation] = {
    "copied-only-where-no-write-is-under-way": Mutation(
        "it does not count where a write is under way",
        ((NativeHead, "may_redirect", _always),),
    ),
    "copied-only-while-inherited": Mutation(
        "a copy of what a clone inherits does not count where the clone has a chunk of its own by now",
        ((flatten, "_is_inherited", _always),),
    ),
    "separated-only-without-inheritance": Mutation(
        "a clone leaves its origin only when it inherits nothing",
        ((flatten, "_inherits_nothing", lambda original: _nothing_is_inherited),),
    ),
    "copied-in-the-whole-tree": Mutation(
        "a copy takes the place of what was inherited in the bases of partial chunks, too",
        ((adoption, "_replace_bases", nothing),),
    ),
    "copies-reach-the-deadlists": Mutation(
        "the deadlist of a node that had killed what was copied names the copy",
        ((adoption, "_mend_deadlist", nothing),),
    ),
    "readers-of-snapshots-are-told": Mutation(
        "nobody goes by what a snapshot's leaf was before a copy",
        ((adoption, "_tell_readers", nothing),),
    ),
    "zero-bases-are-written": Mutation(
        "a chunk of zeroes under a partial one is written",
        ((flatten, "zero_chunk", lambda original: _no_zeroes),),
    ),
    "units-lie-in-one-part": Mutation(
        "a unit of a copy's target is judged, and written, as a whole",
        ((strips, "_whole_units", _parts_of_any_size),),
    ),
    "separated-before-merged": Mutation(
        "a node that a separation left with one child is merged when the separation is durable",
        ((flatten, "_log_separation", _logged_only),),
    ),
    "separation-is-flushed": Mutation(
        "a separation is durable when it is told",
        ((store_module, "separate", _separated_without_a_flush),),
    ),
}

DIRECTED_FLATTEN: dict[str, Callable[[], None]] = {
    "copied-only-where-no-write-is-under-way": a_slow_write_under_a_copy_and_a_flip,
    "copied-only-while-inherited": a_chunk_of_its_own_where_a_pass_expects_an_inherited_one,
    "separated-only-without-inheritance": a_clone_that_still_inherits_and_its_origin_goes,
    "copied-in-the-whole-tree": a_clone_that_leaves_with_its_snapshots,
    "copies-reach-the-deadlists": a_clone_that_was_flattened_in_part_and_its_snapshot_goes,
    "readers-of-snapshots-are-told": a_clone_that_leaves_with_its_snapshots,
    "zero-bases-are-written": a_zero_chunk_under_a_partial_one,
    "units-lie-in-one-part": a_large_chunk_that_is_zero_in_its_first_half,
    "separated-before-merged": a_merge_before_the_separation_is_durable,
    "separation-is-flushed": a_separated_clone_after_power_loss,
}
