"""The proof of the proof: each rule of the store taken away in turn must make the simulation fail.

A mutation replaces one method of the store by one that leaves a single step out or turns two of them round, and
nothing else. ``crashes_until_caught`` says how many crashes the simulation needed to notice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import StoreFailed
from engine.tvol import file as file_module
from engine.tvol import layout, recovery
from engine.tvol.allocator import Allocator
from engine.tvol.checkpoint import Checkpointer
from engine.tvol.core import Core
from engine.tvol.epoch import Epoch
from engine.tvol.fast_write import FAST_WRITE_BYTES, NEVER
from engine.tvol.head import NativeHead
from engine.tvol.housekeeping import Housekeeper
from engine.tvol.journal import Journal
from engine.tvol.layout import FIRST_CHUNK_ENTRY, NodeFlag, RecordType
from engine.tvol.plan import Planner
from engine.tvol.store import NativeStore
from engine.tvol.tree import Family
from tests.simulation.directed import (
    a_chunk_reused_while_a_node_is_reclaimed,
    a_chunk_shared_again_while_it_thaws,
    a_failed_sync_and_a_reopening_on_the_same_boot,
    a_flush_without_room_for_its_commit,
    a_journal_overrun_during_a_checkpoint,
    a_merge_before_the_deletion_is_durable,
    a_share_that_comes_back,
    a_shared_chunk_written_after_opening,
    a_slow_reader_of_a_freed_chunk,
    a_slow_reader_of_a_shared_chunk,
    a_source_deleted_while_it_is_shared,
    a_table_that_changes_while_it_is_written,
    a_write_over_an_own_chunk_and_a_shared_one,
    an_atomic_write_ended_anywhere,
    two_flips_over_a_slow_write,
    two_syncs_at_once_of_which_one_fails,
)
from tests.simulation.directed_maps import a_rotten_leaf, two_writes_and_a_flip_before_the_map_is_loaded
from tests.simulation.directed_notes import a_hold_and_a_step_of_the_wall_clock
from tests.simulation.directed_partials import (
    a_base_that_is_freed_before_its_partial_chunk,
    a_mask_that_grows_between_two_checkpoints,
)
from tests.simulation.directed_rot import (
    a_bad_chunk_through_kill_and_power_loss,
    a_chunk_freed_while_it_is_digested,
    a_digested_chunk_loses_its_last_slot,
    a_repair_from_a_copy_that_differs,
    a_snapshot_digested_over_a_slow_write,
    a_snapshot_that_is_larger_than_its_volume_rots,
    an_acknowledged_write_rots_before_a_restart,
    bad_memory_of_the_host,
)
from tests.simulation.directed_superblocks import (
    a_first_slot_that_rots_after_the_next_checkpoint_began,
    a_superblock_that_only_the_page_cache_has,
    both_superblock_slots_torn,
)
from tests.simulation.life import run_seed
from tests.simulation.mutation import MISFITS, Mutation, at_once, left_out
from tests.simulation.mutations_of_digests import DIGESTS
from tests.simulation.mutations_of_flatten import DIRECTED_FLATTEN, FLATTEN
from tests.simulation.mutations_of_groups import DIRECTED_GROUPS, GROUPS
from tests.simulation.mutations_of_maps import MAPS
from tests.simulation.mutations_of_notes import NOTES
from tests.simulation.mutations_of_partials import PARTIALS
from tests.simulation.mutations_of_rot import ROT
from tests.simulation.mutations_of_sharing import SHARING
from tests.simulation.mutations_of_space import DIRECTED_SPACE, SPACE
from tests.simulation.mutations_of_trees import TREES
from tests.support.sim_files import SimBlockFile, SimFileSystem
from tests.support.volume_oracle import Violation

if TYPE_CHECKING:
    from collections.abc import Callable

NEVER_USED = 1 << 62


@dataclass(frozen=True, slots=True)
class Caught:
    """How a mutation ended."""

    name: str
    crashes: int
    failure: str | None


def crashes_until_caught(name: str, seed: int, crashes_max: int) -> Caught:
    """Run lives with the rule taken away until one breaks a promise."""
    crashes = 0
    with MUTATIONS[name].applied():
        if name in DIRECTED:
            try:
                DIRECTED[name]()
            except Violation as error:
                return Caught(name, 1, f"directed: {error}")
        while crashes < crashes_max:
            outcome = run_seed(seed)
            crashes += outcome.crashes
            if outcome.failure is not None:
                assert not outcome.failure.startswith(MISFITS), f"{name} no longer fits: {outcome.failure}"
                return Caught(name, crashes, outcome.failure)
            seed += 1
    return Caught(name, crashes, None)


# --- how a step is taken away -----------------------------------------------------------------------------------------


def _boot_is_believed(original):
    def heal_slots(file, superblock):
        if superblock.boot_id == recovery.NO_BOOT:
            file.sync_data()
            file.drop_cache()

    return heal_slots


def _commit_covers_everything(original):
    def write_commit_record(self, covers):
        self.journal.commit(self.journal.last_seq)

    return write_commit_record


def _flush_without_first_sync_if_map_is_durable(original):
    async def commit_group(self):
        self.end_pass()
        if self.last_change_seq > self.durable_seq:
            await original(self)

    return commit_group


def _flush_joins_the_running_group(original):
    async def flush(self):
        self.end_pass()
        if self._flusher is not None:
            await self.idle()
            self.check()
        else:
            await original(self)

    return flush


def _publish_before_the_data_is_written(original):
    async def write_piece(self, admission, offset, data, *, redirect=False):
        core = self._core
        await core.make_room()
        await self.ready(admission.epoch, offset, len(data))
        plan = self._planner.plan(admission.epoch.node, offset, data, redirect=redirect)
        core.publish_planned(admission.epoch.node, plan.published, together=redirect)
        core.end_pass()
        await core.env.workers.run(lambda: plan.carry_out(core))

    return write_piece


def _fast_tier_keeps_its_first_floor(original):
    """A flip does not tell the fast tier that its chunks are shared now."""

    def refresh(self):
        original(self)
        if not (self._closed or self._gate or self._core.failed):
            self._first = getattr(self, "_first", self._floor)
            self._floor = self._first

    return refresh


def _bursts_in_place_whatever_snapshots_there_are(original):
    def try_write_each(self, *burst):
        if (floor := self._floor) == NEVER:
            return original(self, *burst)
        self._floor = 0
        try:
            return original(self, *burst)
        finally:
            self._floor = max(floor, self._floor)

    return try_write_each


def _runs_in_place_wherever_their_later_chunks_are(original):
    def is_own_run(self, index, entry, length):
        entries = [self.node.map.lookup(at) for at in range(index, index - (-length >> self._shift))]
        return length <= FAST_WRITE_BYTES and all(
            each >= FIRST_CHUNK_ENTRY and self._births.view[each] > self._floor for each in entries
        )

    return is_own_run


def _runs_in_place_whoever_shares_their_later_chunks(original):
    def is_own_run(self, index, entry, length):
        entries = [self.node.map.lookup(at) for at in range(index, index - (-length >> self._shift))]
        return length <= FAST_WRITE_BYTES and entries == list(range(entry, entry + len(entries)))

    return is_own_run


def _in_place_whatever_snapshots_there_are(original):
    def plan_chunk(self, plan, node, index, within, data, redirect):
        entry = node.map.lookup(index)
        if entry >= FIRST_CHUNK_ENTRY and not redirect:
            plan.write((entry << self._shift) + within, [data])
        else:
            original(self, plan, node, index, within, data, redirect)

    return plan_chunk


def _own_epoch_only(original):
    async def drained(self):
        self.before = None
        await original(self)

    return drained


def _seal_without_flush(original):
    async def seal(self, flip):
        await flip.epoch.drained()
        await self._core.make_room(reserved=True)
        self._core.log(RecordType.SNAPSHOT_SEAL, layout.NODE_ID.pack(flip.snapshot.node_id))

    return seal


def _unsealed_counts_as_sealed(original):
    def drop_unsealed(family):
        for node in family.nodes.values():
            node.flags &= ~NodeFlag.UNSEALED

    return drop_unsealed


def _merge_does_not_wait(original):
    async def sync_deletes(self):
        self.deleted_seq = 0

    return sync_deletes


def _release_before_it_is_durable(original):
    return lambda self, durable_seq, oldest_operation: original(self, NEVER_USED, oldest_operation)


def _release_under_its_users(original):
    return lambda self, durable_seq, oldest_operation: original(self, durable_seq, None)


def _punch_when_freed(original):
    def defer(self, seq, last_operation, chunks):
        for chunk in chunks:
            self._file.punch(chunk * self._chunk_bytes, self._chunk_bytes)
        original(self, seq, last_operation, chunks)

    return defer


def _every_free_chunk_reads_zero(original):
    return lambda self, *, whole: (original(self, whole=whole)[0], True)


def _free_chunks_are_zero_at_open(original):
    def init(self, *arguments, **named):
        original(self, *arguments, **named)
        self._blank, self._dirty = self._dirty, self._blank

    return init


def _file_is_not_cut_at_open(original):
    def truncate(self, size):
        if size >= self.size():
            original(self, size)

    return truncate


def _no_new_incarnation(original):
    def journal(*arguments, incarnation, **named):
        return original(*arguments, incarnation=max(1, incarnation - 1), **named)

    return journal


def _any_predecessor(original):
    def parse_record(ring, offset, seq, incarnation, previous):
        if offset + layout.RECORD_HEADER.size <= len(ring):
            previous = layout.RECORD_HEADER.unpack_from(ring, offset)[9]
        return original(ring, offset, seq, incarnation, previous)

    return parse_record


def _soft_records_count_after_power_loss(original):
    return lambda file, superblock, loader, *, trusted: original(file, superblock, loader, trusted=True)


def _soft_records_never_count(original):
    return lambda file, superblock, loader, *, trusted: original(file, superblock, loader, trusted=False)


def _commit_counts_to_its_own_place(original):
    def last_covered(records):
        return max((record.seq for record, _ in records if record.type == RecordType.COMMIT), default=0)

    return last_covered


def _journal_space_free_at_capture(original):
    def capture(self):
        captured = original(self)
        self._core.journal.head = captured.position
        return captured

    return capture


def _atomic_writes_in_place(original):
    def plan(self, node, offset, data, *, redirect=False):
        return original(self, node, offset, data)

    return plan


def _a_record_for_each_chunk(original):
    def publish(self, *change):
        original(self, *change)
        self.end_pass()

    return publish


def _failure_is_forgotten(original):
    def fail(self, cause):
        if isinstance(cause, StoreFailed):  # closing
            return original(self, cause)
        return StoreFailed(str(cause))

    return fail


def _overlapping_writes_do_not_wait(original):
    return lambda self, first, last: []


def _kill_frees_what_snapshots_see(original):
    def kill(self, node, chunk):
        floor, node.floor = node.floor, 0
        try:
            original(self, node, chunk)
        finally:
            node.floor = floor

    return kill


def _each_sync_for_itself(original):
    return lambda self: self.file.sync_data()


def _holes_are_zero(original):
    def init(self, *arguments, **named):
        original(self, *arguments, **{**named, "holes_read_zero": True})

    return init


MUTATIONS: dict[str, Mutation] = {
    "encrypted-holes-are-not-zero": Mutation(
        "no chunk of an encrypted file is taken for zero because it is a hole",
        ((Allocator, "__init__", _holes_are_zero),),
    ),
    # Flush and commit
    "data-sync-before-commit": Mutation(
        "data and soft records are durable before the commit record that vouches for them",
        left_out(Core, "_sync_data_before_commit"),
    ),
    "sync-of-commit-record": Mutation(
        "the commit record is durable before the flush returns",
        left_out(Core, "_sync_commit_record"),
    ),
    "commit-covers-captured-set": Mutation(
        "a commit record covers what was captured before the data sync, nothing later",
        ((Core, "_write_commit_record", _commit_covers_everything),),
    ),
    "flush-without-room-for-a-commit": Mutation(
        "a flush whose COMMIT finds no room is answered after a checkpoint",
        ((Core, "_checkpoint_without_commit", at_once),),
    ),
    "recovery-stops-at-covers": Mutation(
        "replay after power loss stops at what the last commit covers, not at its place",
        ((recovery, "_last_covered", _commit_counts_to_its_own_place),),
    ),
    "no-sync-succeeds-after-a-failed-one": Mutation(
        "of two syncs at the same time neither vouches for what the other one has lost",
        ((Core, "sync", _each_sync_for_itself),),
    ),
    "sync-of-in-place-writes": Mutation(
        "a flush without map changes still syncs the data",
        ((Core, "_commit_group", _flush_without_first_sync_if_map_is_durable),),
    ),
    "group-flush-join": Mutation(
        "a flush joins only a group whose data sync has not started",
        ((Core, "flush", _flush_joins_the_running_group),),
    ),
    "sticky-failure": Mutation(
        "after a failed sync nothing is promised until the file is reopened",
        ((Core, "fail", _failure_is_forgotten),),
    ),
    "failure-is-journaled": Mutation(
        "a failed sync is told to the next opening on the same boot",
        left_out(Journal, "mark_failed"),
    ),
    "cache-dropped-after-failure": Mutation(
        "after a failed sync the file is read from the medium again",
        left_out(recovery, "_drop_cache"),
    ),
    "boot-distrusted-before-the-drop": Mutation(
        "no later opening of the same boot believes the soft records of a failed store",
        ((recovery, "heal_slots", _boot_is_believed),),
    ),
    # Writing
    "record-before-acknowledgement": Mutation(
        "a changed map is journaled before the write is acknowledged",
        left_out(NativeHead, "end_pass"),
    ),
    "publish-after-pwrite": Mutation(
        "a mapping is published after its data was written",
        ((NativeHead, "_write_piece", _publish_before_the_data_is_written),),
    ),
    "one-writer-per-chunk": Mutation(
        "writes to a chunk with one in flight wait",
        ((NativeHead, "_overlapping", _overlapping_writes_do_not_wait),),
    ),
    "in-place-rule": Mutation(
        "in place only where no snapshot sees the chunk",
        ((Planner, "_plan_chunk", _in_place_whatever_snapshots_there_are),),
    ),
    "in-place-rule-fast-tier": Mutation(
        "a flip ends in-place writing of the fast tier at once",
        ((NativeHead, "refresh", _fast_tier_keeps_its_first_floor),),
    ),
    "in-place-rule-of-bursts": Mutation(
        "a burst writes in place only where a write alone would",
        ((NativeHead, "try_write_each", _bursts_in_place_whatever_snapshots_there_are),),
    ),
    "in-place-rule-of-runs": Mutation(
        "a write over several chunks is in place only where they all are the head's own",
        ((NativeHead, "_is_own_run", _runs_in_place_whoever_shares_their_later_chunks),),
    ),
    "runs-are-adjacent": Mutation(
        "a write over several chunks is in place only where they are adjacent in the file, too",
        ((NativeHead, "_is_own_run", _runs_in_place_wherever_their_later_chunks_are),),
    ),
    "atomic-writes-redirect": Mutation(
        "an atomic write goes to new chunks, whoever may write in place",
        ((Planner, "plan", _atomic_writes_in_place),),
    ),
    "atomic-writes-in-one-record": Mutation(
        "one map record publishes all chunks of an atomic write",
        ((Core, "publish", _a_record_for_each_chunk), (Core, "publish_partial", _a_record_for_each_chunk)),
    ),
    # Snapshots
    "seal-waits-for-old-epoch": Mutation(
        "a snapshot is sealed when its epoch has no write in flight",
        ((Epoch, "drained", at_once),),
    ),
    "seal-waits-for-older-epochs": Mutation(
        "a snapshot is sealed when earlier epochs have no write in flight either",
        ((Epoch, "drained", _own_epoch_only),),
    ),
    "seal-is-flushed": Mutation(
        "a snapshot is durable when its call returns",
        ((NativeStore, "seal", _seal_without_flush),),
    ),
    # Freeing
    "kill-rule": Mutation(
        "what an older snapshot sees goes to the deadlist, not to the free chunks",
        ((Family, "_kill", _kill_frees_what_snapshots_see),),
    ),
    "freed-waits-for-durability": Mutation(
        "a freed chunk is reused only when the record that freed it is durable",
        ((Allocator, "release", _release_before_it_is_durable),),
    ),
    "freed-waits-for-its-users": Mutation(
        "a freed chunk is reused only when reads and writes in flight have ended",
        ((Allocator, "release", _release_under_its_users),),
    ),
    "punch-after-durable": Mutation(
        "a freed chunk is punched only when the record that freed it is durable",
        ((Allocator, "defer", _punch_when_freed),),
    ),
    "merge-after-durable-delete": Mutation(
        "a deleted snapshot is merged away only when its deletion is durable",
        ((Housekeeper, "_sync_deletes_before_merge", _merge_does_not_wait),),
    ),
    "reclaim-before-merge": Mutation(
        "no node is merged while the map of another is being reclaimed",
        ((Housekeeper, "_reclaim_before_merge", at_once),),
    ),
    "zero-fill": Mutation(
        "a partial write to a chunk of unknown content zeroes the rest",
        ((Allocator, "take", _every_free_chunk_reads_zero),),
    ),
    "free-is-unknown-at-open": Mutation(
        "after opening no free chunk is assumed to be zero",
        ((Allocator, "__init__", _free_chunks_are_zero_at_open),),
    ),
    "cut-at-open": Mutation(
        "opening cuts the file at its durable end",
        ((SimBlockFile, "truncate", _file_is_not_cut_at_open),),
    ),
    **SHARING,
    **PARTIALS,
    **SPACE,
    **DIGESTS,
    **NOTES,
    **ROT,
    **FLATTEN,
    **GROUPS,
    **MAPS,
    **TREES,
    # Checkpoint
    "pages-before-superblock": Mutation(
        "pages and data are durable before a superblock refers to them",
        left_out(Checkpointer, "_sync_pages_before_superblock"),
    ),
    "slots-one-after-the-other": Mutation(
        "the first superblock slot is durable before the second is overwritten",
        left_out(Checkpointer, "_sync_first_superblock"),
    ),
    "reuse-after-both-slots": Mutation(
        "both slots are durable before old pages and journal space are reused",
        left_out(Checkpointer, "_sync_second_superblock"),
    ),
    "journal-space-after-superblock": Mutation(
        "journal space is freed after the checkpoint, not at its start",
        ((Checkpointer, "_capture", _journal_space_free_at_capture),),
    ),
    # Recovery
    "soft-records-after-kill": Mutation(
        "on the same boot every valid record is replayed",
        ((recovery, "_replay", _soft_records_never_count),),
    ),
    "no-soft-records-after-power-loss": Mutation(
        "on another boot records that no commit covers are ignored",
        ((recovery, "_replay", _soft_records_count_after_power_loss),),
    ),
    "incarnation": Mutation(
        "each opening for writing has a new incarnation, so that ignored records stay void",
        ((file_module, "Journal", _no_new_incarnation),),
    ),
    "directory-sync": Mutation(
        "a created file's name is durable when the creation returns",
        left_out(SimFileSystem, "sync_directory"),
    ),
}
"""What is taken away, by name."""

DIRECTED: dict[str, Callable[[], None]] = {
    "in-place-rule-of-runs": a_write_over_an_own_chunk_and_a_shared_one,
    "masks-in-the-checkpoint": a_mask_that_grows_between_two_checkpoints,
    "queued-partials-stand-alone": a_base_that_is_freed_before_its_partial_chunk,
    "mark-is-journaled": a_bad_chunk_through_kill_and_power_loss,
    "marks-in-the-checkpoint": a_bad_chunk_through_kill_and_power_loss,
    "bad-is-refused": a_bad_chunk_through_kill_and_power_loss,
    "bad-is-refused-at-once": a_bad_chunk_through_kill_and_power_loss,
    "the-medium-is-asked": bad_memory_of_the_host,
    "repair-by-digest": a_repair_from_a_copy_that_differs,
    "digest-dropped-while-made": a_chunk_freed_while_it_is_digested,
    "thaw-spares-digests": a_digested_chunk_loses_its_last_slot,
    "digest-of-sealed-snapshots": a_snapshot_digested_over_a_slow_write,
    "atomic-writes-in-one-record": an_atomic_write_ended_anywhere,
    "freed-waits-for-its-users": a_slow_reader_of_a_freed_chunk,
    "seal-waits-for-older-epochs": two_flips_over_a_slow_write,
    "what-was-read-is-synced": a_superblock_that_only_the_page_cache_has,
    "slots-are-healed": a_superblock_that_only_the_page_cache_has,
    "merge-after-durable-delete": a_merge_before_the_deletion_is_durable,
    "reclaim-before-merge": a_chunk_reused_while_a_node_is_reclaimed,
    "reuse-after-both-slots": a_first_slot_that_rots_after_the_next_checkpoint_began,
    "expiry-takes-its-time": a_hold_and_a_step_of_the_wall_clock,
    "slots-one-after-the-other": both_superblock_slots_torn,
    "journal-space-after-superblock": a_journal_overrun_during_a_checkpoint,
    "failure-is-journaled": a_failed_sync_and_a_reopening_on_the_same_boot,
    "cache-dropped-after-failure": a_failed_sync_and_a_reopening_on_the_same_boot,
    "boot-distrusted-before-the-drop": a_failed_sync_and_a_reopening_on_the_same_boot,
    "shared-is-frozen-at-open": a_shared_chunk_written_after_opening,
    "thaw-after-durable": a_share_that_comes_back,
    "thaw-waits-for-its-users": a_slow_reader_of_a_shared_chunk,
    "thaw-by-its-own-ticket": a_chunk_shared_again_while_it_thaws,
    "source-asked-for-each-batch": a_source_deleted_while_it_is_shared,
    **DIRECTED_SPACE,
    **DIRECTED_FLATTEN,
    **DIRECTED_GROUPS,
    "leaves-are-verified": a_rotten_leaf,
    "scrub-goes-to-the-end": a_snapshot_that_is_larger_than_its_volume_rots,
    "no-kill-tears-a-sector": an_acknowledged_write_rots_before_a_restart,
    "late-writes-have-their-chain": two_writes_and_a_flip_before_the_map_is_loaded,
    "captured-tables-do-not-change": a_table_that_changes_while_it_is_written,
    "flush-without-room-for-a-commit": a_flush_without_room_for_its_commit,
    "no-sync-succeeds-after-a-failed-one": two_syncs_at_once_of_which_one_fails,
}
"""Where chance needs more than thousands of crashes to meet the race: the scenario that plays it."""

REDUNDANT: dict[str, Mutation] = {
    "unsealed-is-dropped": Mutation(
        "a snapshot without its seal is dropped at open: what it would hold is legal, since the writes that it misses"
        " were not acknowledged at its instant; dropping it keeps a snapshot that nobody was told of from appearing",
        ((recovery, "_drop_unsealed", _unsealed_counts_as_sealed),),
    ),
    "predecessor-checksum": Mutation(
        "a record names its predecessor's checksum: a second line behind incarnation and sequence number, which never"
        " repeat within a file's life",
        ((layout, "parse_record", _any_predecessor),),
    ),
}
"""Steps that the simulation cannot miss, because another step makes them unnecessary; each says which."""
