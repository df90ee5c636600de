"""The rules of group operations, each taken away: the ordering test must notice.

python -m tests.simulation.group_mutations      the table: after how many group snapshots each was caught
"""

from __future__ import annotations

import asyncio
import os
import sys
from multiprocessing import Pool

from engine.catalog_groups import GroupTables
from engine.group_instant import GroupInstants
from engine.tvol.group_store import GroupingStore
from tests.simulation.group_machine import Members
from tests.simulation.group_world import run_seed
from tests.simulation.mutation import MISFITS, Mutation

SEEDS_MAX = 400


def _left_out(target: object, attribute: str):
    """As ``left_out``, for a coroutine."""

    async def nothing(*arguments):
        return None

    return ((target, attribute, lambda original: nothing),)


def _first_store_only(original):
    def flip_all(self, stores, guids, name, flips):
        first = next(iter(stores))
        self.the_rest = (dict(list(stores.items())[1:]), guids, name, flips)
        original(self, {first: stores[first]}, guids, name, flips)

    return flip_all


def _the_rest_later(original):
    async def prepare(self, flips):
        stores, guids, name, all_flips = self.the_rest
        for _ in range(3):
            await asyncio.sleep(0)
        for store, members in stores.items():
            await store.prepare_flips(len(members))
            for volume in members:
                all_flips[store].append(store.flip(volume.head, name, guid=guids[volume.volume_id]))
        await original(self, flips)

    return prepare


def _after_the_commit(original):
    async def accept(self, promised):
        for store, snapshots in promised.items():
            flips = [flip for flip in self.unprepared[store] if flip.snapshot in snapshots]
            await store.prepare(flips)
        await original(self, promised)

    return accept


def _remembered(original):
    async def prepare(self, flips):
        self.unprepared = flips

    return prepare


def _members_first(original):
    async def delete(self, row, decided=None):
        for point in row.points:
            await self._delete_point(point)
        await self._decisions.doom_group_snapshot(row.guid)
        await self._decisions.remove_points([point.guid for point in row.points])

    return delete


def _not_recorded(original):
    async def nothing(self, values):
        return None

    return nothing


def _each_for_itself(original):
    async def roll_back(self, row, volumes, keep_as, kept_is_there=None):
        kept = await self.snapshot(row.group, keep_as, volumes)
        targets = {point.volume_id: point.guid for point in row.points}
        from engine.catalog_groups import RollbackRow

        rows = [RollbackRow(point.volume_id, targets[point.volume_id], point.guid) for point in kept.points]
        await self._decisions.begin_rollback(rows)
        await self._finish_rollback(rows)
        return kept

    return roll_back


def _nobody_returns(original):
    return lambda self, volume_id: False


MUTATIONS = {
    "one-callback": Mutation(
        "all members flip in one callback of the loop",
        (
            (GroupInstants, "_flip_all", _first_store_only),
            (GroupInstants, "_prepare", _the_rest_later),
        ),
    ),
    "prepare-before-commit": Mutation(
        "every file has promised its part before the catalogue decides",
        ((GroupInstants, "_prepare", _remembered), (GroupInstants, "_accept", _after_the_commit)),
    ),
    "promise-is-flushed": Mutation("a promise is durable before it counts", _left_out(GroupingStore, "_sync_promises")),
    "commit-before-accept": Mutation(
        "a group snapshot exists because the catalogue says so", ((GroupTables, "add_group_snapshot", _not_recorded),)
    ),
    "drop-undecided": Mutation(
        "what was promised and not decided on is dropped at open", _left_out(GroupInstants, "_forget")
    ),
    "complete-decided": Mutation("what was decided is completed at open", _left_out(GroupInstants, "_complete")),
    "doom-first": Mutation(
        "the catalogue decides on a deletion before a file loses anything", ((GroupInstants, "delete", _members_first),)
    ),
    "resume-deletions": Mutation("a deletion goes on at open", _left_out(GroupInstants, "_resume_deletions")),
    "rollback-is-decided": Mutation(
        "the catalogue decides on a rollback before a file changes", ((GroupTables, "begin_rollback", _not_recorded),)
    ),
    "resume-rollbacks": Mutation("a rollback goes on at open", _left_out(GroupInstants, "_resume_rollbacks")),
    "rollback-holds-writes": Mutation(
        "writes wait from before what is kept until after what replaces it",
        ((GroupInstants, "roll_back", _each_for_itself),),
    ),
    "clones-are-announced": Mutation(
        "clones are announced before they are made", ((GroupTables, "begin_clones", _not_recorded),)
    ),
    "missing-files-return": Mutation(
        "decisions are kept for a file that is missing", ((Members, "may_return", _nobody_returns),)
    ),
}


def rounds_until_caught(name: str, seed: int = 1, seeds: int = SEEDS_MAX) -> tuple[int, str | None]:
    """Group snapshots taken until a seed failed, and how; with None: none did."""
    rounds = 0
    with MUTATIONS[name].applied():
        for each in range(seed, seed + seeds):
            outcome = run_seed(each)
            rounds += outcome.rounds
            if outcome.failure is not None:
                assert not outcome.failure.startswith(MISFITS), f"{name} no longer fits: {outcome.failure}"
                return rounds, f"seed {each}: {outcome.failure}"
    return rounds, None


def main() -> int:
    missed = 0
    with Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        jobs = [(name, pool.apply_async(rounds_until_caught, (name,))) for name in MUTATIONS]
        for name, job in jobs:
            rounds, failure = job.get()
            missed += failure is None
            print(f"{name:26}{rounds:6}  {failure or 'NOT CAUGHT'}"[:170], flush=True)
    print(f"{len(MUTATIONS) - missed} of {len(MUTATIONS)} caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
