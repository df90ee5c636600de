"""The rules of one file's part in a group snapshot (``engine/tvol/group_store.py``), each taken away.

Those of the group itself are in ``group_mutations.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.tvol.group_store import GroupingStore
from tests.simulation.directed_groups import a_dropped_flip_over_a_slow_write, a_promise_over_a_slow_write
from tests.simulation.mutation import Mutation

if TYPE_CHECKING:
    from collections.abc import Callable


def _not_waited_for(original):
    async def at_once(self, waited_for):
        return

    return at_once


GROUPS: dict[str, Mutation] = {
    "dropped-after-its-writes": Mutation(
        "a flipped snapshot is dropped when the writes of its epoch have ended",
        ((GroupingStore, "_late_writes_have_ended", _not_waited_for),),
    ),
    "promised-after-its-writes": Mutation(
        "a promise waits for the last write of the old epoch",
        ((GroupingStore, "_old_epoch_has_ended", _not_waited_for),),
    ),
}

DIRECTED_GROUPS: dict[str, Callable[[], None]] = {
    "dropped-after-its-writes": a_dropped_flip_over_a_slow_write,
    "promised-after-its-writes": a_promise_over_a_slow_write,
}
