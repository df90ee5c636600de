"""The rules about space (``engine/pool_space.py``, ``engine/tvol/allocator.py``, ``pages.py``), each taken away."""

from __future__ import annotations

from engine.pool_space import PoolSpace
from engine.tvol import core as core_module
from engine.tvol.allocator import Allocator
from engine.tvol.core import Core
from engine.tvol.tree import Family
from tests.simulation.directed_space import (
    a_full_disk_that_snapshots_wear_down,
    a_grant_from_before_the_last_measurement,
    a_map_that_outgrows_the_metadata,
    a_quota_that_is_kept,
    a_write_right_after_a_deletion,
    writers_beside_each_other,
)
from tests.simulation.mutation import Mutation


def _granted_without_asking(original):
    return lambda self: True


def _grants_last(original):
    def is_granted(self):
        if self._granted:
            self._epoch = self._room.epoch
        return original(self)

    return is_granted


def _grants_do_not_count(original):
    def grant(self, wanted, unit):
        given = original(self, wanted, unit)
        self._given -= given
        return given

    return grant


def _old_operation(original):
    return lambda self, operation: operation


def _waiting_ones_change(original):
    def changing(self):
        yield from original(self)
        yield from self.deleted.values()

    return changing


def _none(original):
    return 0


def _runs_are_not_journaled(original):
    return lambda self, node, first, count, entry: self.family.set_run(node, first, count, entry)


def _runs_end_nothing(original):
    def put(self, node, number, places, values, *, drop=False):
        kill, self.kill_many = self.kill_many, lambda node, entries: None
        try:
            original(self, node, number, places, values, drop=drop)
        finally:
            self.kill_many = kill

    return put


SPACE: dict[str, Mutation] = {
    "runs-are-journaled": Mutation(
        "what a lease publishes as a run is journaled before it is acknowledged",
        ((Core, "publish_run", _runs_are_not_journaled),),
    ),
    "runs-end-what-was-there": Mutation(
        "what a run takes the place of is freed, or goes to the deadlist", ((Family, "_put", _runs_end_nothing),)
    ),
    "quota-is-asked": Mutation(
        "a chunk whose space the host must give is taken only while the pool has room",
        ((Allocator, "_is_granted", _granted_without_asking),),
    ),
    "grants-count": Mutation(
        "what was granted counts as used until a measurement shows it",
        ((PoolSpace, "grant", _grants_do_not_count),),
    ),
    "grants-end": Mutation(
        "what was granted and not spent is void at the next measurement",
        ((Allocator, "_is_granted", _grants_last),),
    ),
    "waiting-write-holds-nothing": Mutation(
        "a write that waits for space does not keep it from coming back",
        ((Core, "renewed", _old_operation),),
    ),
    "margin-of-writes": Mutation(
        "writes leave pages for what gives space back",
        ((core_module, "MARGIN", _none),),
    ),
    "waiting-deletions-claim-nothing": Mutation(
        "what is deleted and waits for its merge claims no page of a checkpoint",
        ((Family, "changing", _waiting_ones_change),),
    ),
    "deletions-are-patient": Mutation(
        "a deletion on a full disk waits for pages that others took before it",
        ((core_module, "GIVING_TRIES", _none),),
    ),
}

DIRECTED_SPACE = {
    "quota-is-asked": a_quota_that_is_kept,
    "grants-count": writers_beside_each_other,
    "grants-end": a_grant_from_before_the_last_measurement,
    "waiting-write-holds-nothing": a_write_right_after_a_deletion,
    "margin-of-writes": a_map_that_outgrows_the_metadata,
    "waiting-deletions-claim-nothing": a_full_disk_that_snapshots_wear_down,
    "deletions-are-patient": a_full_disk_that_snapshots_wear_down,
}
