"""One file's part in a group operation: snapshots that wait for a decision taken elsewhere.

A group snapshot is crash-atomic over several files (STORE section 4). Each file promises first and is told later:

1. ``flip``: the instant, of all members in one callback of the loop (``ready_to_flip`` says that nothing can stop it);
2. ``prepare``: when the old epochs have no write left, one GROUP_PREPARE record for all members in this file, flushed.
   From here on the snapshots survive whatever happens, and nobody sees them;
3. elsewhere one transaction decides (``engine.group_instant``);
4. ``accept``: sealed like any other snapshot; or ``drop``.

At open a snapshot that was flipped and not prepared is dropped, as any other without its seal. A prepared one is kept:
``prepared`` names those that nobody has decided on, and whoever knows the decision says ``accept`` or ``drop``.

``replace_content`` is the second half of a rollback, done once however often it is asked for: the caller has kept what
the head holds, and the head's place in the tree says whether it is still to be done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import EngineError, InvalidArgument, InvalidState
from engine.tvol import layout
from engine.tvol.layout import NodeFlag, RecordType
from engine.tvol.store import NativeFlip, NativeStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.stores import Flip, Frozen, Head
    from engine.tvol.device import NativeSnapshot

FLIP_RECORD_BYTES = layout.record_length(layout.SNAPSHOT_BEGIN.size + 2 * (2 + layout.MAX_NAME_BYTES))
"""More than any SNAPSHOT_BEGIN record takes."""


class GroupingStore(NativeStore):
    """See the module. Fulfils ``engine.stores.GroupStore``."""

    def ready_to_flip(self, members: int) -> bool:
        """Whether ``members`` calls of ``flip`` in this step of the loop find the room that they need."""
        core = self._core
        return not core.failed and core.ready_for_tree_record(
            members * self._tree_pages(), record_bytes=members * FLIP_RECORD_BYTES
        )

    async def prepare_flips(self, members: int) -> None:
        """Return when ``ready_to_flip`` is true, as far as nobody else takes the room. Raises OutOfSpace, StoreFailed.

        Raises InvalidArgument: the journal is too small for so many members at once.
        """
        core = self._core
        record_bytes = members * FLIP_RECORD_BYTES
        if not core.journal.can_ever_hold(record_bytes):
            raise InvalidArgument(f"{core.path}: its journal is too small for {members} snapshots at one instant")
        await core.make_room(pages=members * self._tree_pages(), record_bytes=record_bytes, reserved=True)

    async def prepare(self, flips: Sequence[Flip]) -> None:
        """Wait for the old epochs' writes and promise the snapshots: durable when it returns, and seen by nobody.

        Raises StoreFailed, OutOfSpace; the caller drops them then.
        """
        own = [self._flip(flip) for flip in flips]
        for flip in own:
            await self._old_epoch_has_ended(flip)
        payload = b"".join(layout.NODE_ID.pack(flip.snapshot.node_id) for flip in own)
        await self._core.make_room(record_bytes=layout.record_length(len(payload)), reserved=True)
        self._core.log(RecordType.GROUP_PREPARE, payload)
        await self._sync_promises()

    async def _old_epoch_has_ended(self, flip: NativeFlip) -> None:
        await flip.epoch.drained()

    async def _sync_promises(self) -> None:
        """The data of the old epochs, and the record that promises it, are durable before anybody relies on it."""
        await self._core.flush()

    def prepared(self) -> list[NativeSnapshot]:
        """Promised snapshots that nobody has decided on."""
        return [s for s in self._snapshots.values() if s.node.flags & NodeFlag.PREPARED]

    async def accept(self, snapshots: Sequence[Frozen]) -> None:
        """Seal promised snapshots: from now on they are like all others.

        Not flushed: the promise is durable, and so is the decision. Raises NotFound, StoreFailed, OutOfSpace.
        """
        found = [self._promised(snapshot) for snapshot in snapshots]
        await self._core.make_room(record_bytes=len(found) * layout.RECORD_UNIT, reserved=True)
        for snapshot in found:
            self._core.log(RecordType.SNAPSHOT_SEAL, layout.NODE_ID.pack(snapshot.node_id))
            self._tell(snapshot, "created")

    async def drop(self, snapshots: Sequence[Frozen]) -> None:
        """Remove snapshots that were flipped or promised, and not accepted, durably. Raises StoreFailed.

        It waits for the writes of their epochs: what they write is published there, and reaches the volume through it.
        """
        undecided = NodeFlag.UNSEALED | NodeFlag.PREPARED
        found = [self._snapshot(snapshot) for snapshot in snapshots]
        for snapshot in found:
            await self._late_writes_have_ended(snapshot)
        assert all(snapshot.node.flags & undecided for snapshot in found)
        if found:
            self._delete(list(found))  # small, and takes no pages: it fits always
        await self._core.flush()
        self._housekeeper.wake()

    async def _late_writes_have_ended(self, snapshot: NativeSnapshot) -> None:
        node = snapshot.node
        if node.flags & NodeFlag.UNSEALED:
            while node.children:  # one: nobody clones what is not sealed
                node = node.children[0]
            head = self._heads.get(node.id)
            if head is not None:  # else its content was replaced, when no write was left
                await head.earlier_epochs_drained()

    async def replace_content(self, head: Head, to: Frozen, kept: Frozen) -> None:
        """See ``engine.stores.GroupStore``. Raises InvalidArgument, NotFound, StoreFailed."""
        found, core = self._volume(head), self._core
        target, before = self._sealed_snapshot(to), self._sealed_snapshot(kept)
        if target.volume_id != found.volume_id:
            raise InvalidArgument(f"{to.name!r} is not a snapshot of {found.name!r}")
        try:
            await found.drained()
            await core.make_room(pages=self._tree_pages(), reserved=True)
            node = found.node
            if node.parent is before.node and not node.own and not node.dead.buckets:
                core.log(RecordType.ROLLBACK, layout.ROLLBACK.pack(node.id, target.node_id))
            await core.flush()
        except EngineError as error:
            raise core.fail(error) from error

    def _flip(self, flip: Flip) -> NativeFlip:
        assert isinstance(flip, NativeFlip)
        assert self._snapshot(flip.snapshot)
        return flip

    def _promised(self, snapshot: Frozen) -> NativeSnapshot:
        found = self._snapshot(snapshot)
        if not found.node.flags & NodeFlag.PREPARED:
            raise InvalidState(f"snapshot {found.name!r}", "not promised", "a promised one")
        return found
