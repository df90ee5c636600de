"""A mirror of one volume: ``engine.mirror_operations`` with the rounds and the stream of one source."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from engine import proof
from engine.copy_state import CopyEvent, CopyMode, CopyState, ProgressStatus
from engine.errors import InvalidState
from engine.links import LivePoint, MirrorLink
from engine.mirror_operations import MirrorOperations
from engine.mirror_record import MirrorPolicy
from engine.mirror_round import Rounds
from engine.mirror_stream import MirrorStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
    from pathlib import Path

    from engine.copy_job import CopyControl
    from engine.files import StoreEnv
    from engine.links import Ack, LinkState
    from engine.mirror_record import MirrorRecord, RecoveryPoint
    from engine.mirror_round import Shipped
    from engine.stores import Extent, Frozen
    from engine.volume import Volume


def _nobody() -> Collection[str]:
    return ()


class Mirror(MirrorOperations[Rounds, MirrorLink, MirrorStream]):
    """A mirror of one volume.

    Args:
        source: the volume that hosts write.
        link: to the target.
        ledger_path: where the ledger of a round is kept.
        in_use: GUIDs of recovery points of the target that somebody reads; those stay.
        prefix: of the names of the source's recovery points; by default it follows from ``name``.
    """

    def __init__(
        self,
        name: str,
        source: Volume,
        link: MirrorLink,
        env: StoreEnv,
        ledger_path: Path,
        *,
        record: MirrorRecord,
        save: Callable[[MirrorRecord], Awaitable[None]],
        tell: Callable[[str, str], None],
        mode: CopyMode = CopyMode.SYNCHRONOUS,
        policy: MirrorPolicy | None = None,
        in_use: Callable[[], Collection[str]] = _nobody,
        prefix: str | None = None,
    ) -> None:
        policy = policy or MirrorPolicy()

        async def saved() -> None:
            await save(record)

        rounds = Rounds(
            name, source, link, env, ledger_path, policy, record=record, save=saved, in_use=in_use, prefix=prefix
        )
        super().__init__(name, link, rounds, env, record=record, save=saved, tell=tell, mode=mode, policy=policy)
        self.source = source

    async def verify(self, software: str, *, control: CopyControl | None = None) -> proof.Proof:
        """Compare a recovery point of the source with the same one of the target, by hash tree.

        While synchronized both sides take a new one at the same place in the stream; else the last common point is
        compared. The mirror breaks when they differ.

        Raises:
            InvalidState: there is no common point yet.
        """
        async with self._pinned_point() as guid:
            point = self._rounds.source_point(guid)
            if point is None:
                raise InvalidState(self._what, self._standing.text(), "a completed first copy")
            sides = self.source.name, point, self.link
            document, differing = await compared(self.name, guid, sides, self._env, software, control)
        if differing:
            await self._mismatch(document, differing)
        return document

    def source_point(self, guid: str | None) -> Frozen | None:
        """A recovery point of the source."""
        return self._rounds.source_point(guid)

    @contextlib.contextmanager
    def pinned(self, guid: str | None) -> Iterator[None]:
        """Inside, that recovery point stays on both sides."""
        held = set() if guid is None else {guid} - self._rounds.pinned
        self._rounds.pinned |= held
        try:
            yield
        finally:
            self._rounds.pinned -= held

    @contextlib.asynccontextmanager
    async def held_still(self) -> AsyncIterator[bool]:
        """Inside, the mirror does not begin, and takes no common point by itself. Yields whether it is at rest."""
        async with self._lock:
            yield self.is_at_rest

    @contextlib.asynccontextmanager
    async def restoring(self, reason: str) -> AsyncIterator[Rounds]:
        """Inside, the mirror rests, and the caller gives the source what the target holds; ``restored`` when it has.
        Else it is Fractured afterwards. That it rests is on record first: after a crash the target is not overwritten
        by what was to be replaced.
        """
        if self._standing.state is not CopyState.FRACTURED:
            await self._rest(CopyEvent.FRACTURE, "fractured")
        async with self._lock:
            self._standing.turn(CopyEvent.RESTORE, reason)
            try:
                yield self._rounds
            finally:
                if self._standing.progress is ProgressStatus.RESTORING:
                    self._standing.turn(CopyEvent.GIVE_UP, "the source was not restored, and is as it was", "warning")

    async def restored(self, point: RecoveryPoint) -> None:
        """Within ``restoring``: the source is that recovery point of the target, which both sides count from now on."""
        self._record.wanted, self._record.reason = "restored", f"the source was restored to recovery point {point.guid}"
        await self._rounds.restored(point)
        self._standing.turn(CopyEvent.RESTORED, self._record.reason)

    def _is_replaced(self) -> bool:
        return self.source.fence_reason is not None

    async def _round(self, state: LinkState, *, stream: bool) -> Shipped:
        return await self._rounds.run(state, self._new_stream if stream else None)

    def _hold_hosts(self, reason: str) -> None:
        self.source.hold_writes(self.name, f"replica {self.name}: {reason}")

    def _let_hosts_go(self) -> None:
        self.source.let_writes_go(self.name)

    async def _is_current(self, state: LinkState) -> bool:
        return await self._rounds.is_current(state)

    async def _mark_point(self, stream: MirrorStream, *, release: bool) -> None:
        await self._rounds.mark(stream, release=release)

    def _new_stream(self, ack: Ack) -> MirrorStream:
        self._stream = MirrorStream(
            self.source,
            self.link,
            ack,
            budget_s=self._detect_s,
            demote=self._demoted,
            queue_bytes=self.policy.queue_bytes,
            allowance=None if self._lost_rounds < self.policy.unpaced_rounds else self._rounds.allowance,
        )
        return self._stream


async def compared(
    name: str,
    guid: str,
    sides: tuple[str, Frozen, MirrorLink],
    env: StoreEnv,
    software: str,
    control: CopyControl | None,
) -> tuple[proof.Proof, list[Extent]]:
    """A recovery point of a source, of that name, and the same one of its target, compared by hash tree."""
    source_name, point, link = sides
    target = await link.point(guid)
    unverified: list[Extent] = []
    try:
        trees = [await proof.tree_of(side, control=control, mover=env.mover) for side in (point, target)]
    finally:
        if isinstance(target, LivePoint):
            unverified = await target.end()
    ours = source_name, guid, point.created_at, trees[0]
    theirs = link.target_name, guid, point.created_at, trees[1]
    now = env.clock.time()
    return proof.compare(name, ours, theirs, checked_at=now, software=software, unverified=unverified)
