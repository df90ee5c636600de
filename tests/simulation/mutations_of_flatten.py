"""The rules of flattening (``engine/tvol/flatten.py``), each taken away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.tvol import flatten, layout
from engine.tvol import store as store_module
from engine.tvol.head import NativeHead
from engine.tvol.layout import RecordType
from tests.simulation.directed_flatten import (
    a_chunk_of_its_own_where_a_pass_expects_an_inherited_one,
    a_clone_that_still_inherits_and_its_origin_goes,
    a_merge_before_the_separation_is_durable,
    a_separated_clone_after_power_loss,
    a_slow_write_under_a_copy_and_a_flip,
    a_write_in_place_to_what_is_being_copied,
    a_write_over_what_is_being_copied,
)
from tests.simulation.mutation import Mutation
from tests.simulation.mutations_of_notes import NeverFlushes

if TYPE_CHECKING:
    from collections.abc import Callable


def _always(original):
    return lambda *arguments: True


def _whatever_the_floor(original):
    def is_as_read(self, number):
        self._floor = self._head.node.floor
        return original(self, number)

    return is_as_read


def _logged_only(original):
    def log(core, keeper, node):
        core.log(RecordType.SEPARATE, layout.NODE_ID.pack(node.id))

    return log


async def _nothing_is_inherited(core, node):
    return True


def _separated_without_a_flush(original):
    return lambda core, head, keeper: original(NeverFlushes(core), head, keeper)


FLATTEN: dict[str, Mutation] = {
    "copied-only-where-unchanged": Mutation(
        "a copy of what a clone inherits counts only where the clone has not written meanwhile",
        ((flatten._Lease, "_is_as_read", _always),),
    ),
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
    "copied-only-with-the-same-floor": Mutation(
        "it does not count where a merge has made what was inherited the clone's own",
        ((flatten._Lease, "_is_as_read", _whatever_the_floor),),
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
    "copied-only-where-unchanged": a_write_over_what_is_being_copied,
    "copied-only-where-no-write-is-under-way": a_slow_write_under_a_copy_and_a_flip,
    "copied-only-while-inherited": a_chunk_of_its_own_where_a_pass_expects_an_inherited_one,
    "separated-only-without-inheritance": a_clone_that_still_inherits_and_its_origin_goes,
    "copied-only-with-the-same-floor": a_write_in_place_to_what_is_being_copied,
    "separated-before-merged": a_merge_before_the_separation_is_durable,
    "separation-is-flushed": a_separated_clone_after_power_loss,
}
