"""Work in the background of one open file: merging deleted nodes, freeing their chunks, punching, growing the reserve.

All of it is resumable: what is to be done follows from the state (deleted nodes, the reclaim queue, dirty chunks), and
each step is one journal record. Deleting is O(1) for the caller; this is where its cost goes, in bounded steps.

A deleted node is merged only when its DELETE is durable: the merge lowers its child's floor, so that the child may
write in place to what the deleted node sees; after a power loss that node must not come back, nor another child of it
that has left (SEPARATE).

No node is merged while another is being reclaimed. The map of that one still names what it inherited; a merge may give
its older relatives' chunks to somebody who frees and reuses them, and their new births would look like its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from engine.errors import EngineError, StoreFailed
from engine.tvol import layout
from engine.tvol.layout import RecordType
from engine.tvol.pages import MARGIN
from engine.tvol.tree import RECLAIM_STEP_CHUNKS

if TYPE_CHECKING:
    from engine.tvol.core import Core
    from engine.tvol.nodes import Node

_LOG = logging.getLogger(__name__)

RECLAIM_STEPS = 1
"""Steps (of 2048 chunks of the queue, 0.03 ms, or a leaf, 0.06 ms) in one record and one turn of the loop, which others
wait for."""
RECLAIM_RECORDS, RECLAIM_PAUSE_S = 2, 0.001
"""After so many records the loop is the hosts' for so long: few I/Os meet a step, and 2.6 million chunks a second still
come back."""

GROW_RETRY_S = 1.0
"""On a full disk the reserve is tried again after this time, not with every pass."""


class Housekeeper:
    """Runs when something is to be done; owned by the store."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._stopped = False
        self.deleted_seq = core.durable_seq
        """The last record that marked nodes as deleted, or took a child from one (SEPARATE)."""
        self._grow_at = 0.0
        core.on_work = self.wake

    def wake(self) -> None:
        """There may be something to do."""
        self._again = True
        if self._task is None and not self._stopped and not self._core.failed:
            self._task = asyncio.create_task(self._run(), name=f"housekeeping {self._core.path.name}")

    async def stop(self) -> None:
        """End after the step that is running; what is left is done at the next open."""
        self._stopped = True
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def idle(self) -> None:
        """Wait until nothing is left to do."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            while self._again:
                self._again = False
                await self._grow_reserve()
                await self._merge()
                await self._reclaim()
                await self._core.punch_all()
        except StoreFailed:
            _LOG.error("%s: background work ends: the store has failed", self._core.path)
        except EngineError as error:
            _LOG.warning("%s: background work is put off: %s", self._core.path, error)
        finally:
            self._task = None

    async def _grow_reserve(self) -> None:
        clock = self._core.env.clock
        if self._core.pages.headroom() >= 2 * MARGIN or clock.monotonic() < self._grow_at:
            return
        if not await self._core.grow_pages(2 * MARGIN):
            self._grow_at = clock.monotonic() + GROW_RETRY_S

    def _mergeable(self) -> Node | None:
        return next((node for node in self._core.family.deleted.values() if len(node.children) < 2), None)

    async def _merge(self) -> None:
        core = self._core
        while self._mergeable() is not None:
            if core.durable_seq < self.deleted_seq:
                await self._sync_deletes_before_merge()
            await self._reclaim_before_merge()
            await core.make_room(pages=self._merge_pages(), reserved=True)
            node = self._mergeable()
            if node is not None and core.durable_seq >= self.deleted_seq:
                core.log(RecordType.MERGE, layout.NODE_ID.pack(node.id))
            await asyncio.sleep(0)

    def _merge_pages(self) -> int:
        """The next checkpoint rewrites the child's deadlist, and the queue."""
        node = self._mergeable()
        words = sum(n.dead.words() for n in (node, *node.children)) if node else 0
        return 8 + 2 * words // layout.WORDS_PER_PAGE

    async def _sync_deletes_before_merge(self) -> None:
        await self._core.flush()

    async def _reclaim_before_merge(self) -> None:
        if self._core.family.reclaiming:
            await self._reclaim()

    async def _read_leaves(self, node: Node) -> int:
        """Have the next leaves that are the node's own in memory; how many steps can be taken then."""
        maps, family = self._core.maps, self._core.family
        await maps.load(node)
        wanted: list[int] = []
        at = node.map.count
        while len(wanted) < RECLAIM_STEPS and (at := family.own_leaf_from_end(node, at)) >= 0:
            wanted.append(at)
        await maps.make_resident(node, wanted)
        return max(1, len(wanted))

    async def _reclaim(self) -> None:
        core, family = self._core, self._core.family
        records = 0
        while family.reclaim or family.reclaiming:
            if family.reclaim:
                steps = min(RECLAIM_STEPS, -(-len(family.reclaim) // RECLAIM_STEP_CHUNKS))
            else:
                steps = await self._read_leaves(family.reclaiming[0])
            await core.make_room(reserved=True)
            core.log(RecordType.RECLAIM, layout.RECLAIM.pack(steps))
            records += 1
            await asyncio.sleep(0 if records % RECLAIM_RECORDS else RECLAIM_PAUSE_S)
        if records:
            await core.flush()  # the chunks come back only when the records that freed them are durable
