"""The replicas of a pool by their names: shown, and told what to do.

Which there are is in ``engine.replica_table``, the mirrors that run in ``engine.replica_runs``, new ones in
``engine.replica_making``, and mirrored groups in ``engine.replica_groups``, whose members are replicas here as well.

A replica that is here for a source at a peer (``engine.peers.incoming``) is shown, too; what is done with it is said at
its source, but for ``detach``.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.copy_job import CopyControl
from engine.copy_state import CopyState
from engine.errors import EngineError, IntegrityError, InvalidState, NotSupported, PeerUnreachable
from engine.peers.rate import check_rate
from engine.pool_space import SpaceState
from engine.replica_info import arriving_info, info_at_rest, single_info, trouble
from engine.replica_making import ReplicaMaking
from engine.replica_runs import ReplicaRuns
from engine.replica_table import GROUP_KEY, POLICY_KEY, policy_of, require_single
from engine.units import GIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.api import ReplicaInfo
    from engine.catalog_peers import PeerTargetRow
    from engine.copy_job import CopyProgress
    from engine.jobs import Job
    from engine.mirror import Mirror
    from engine.mirror_group import GroupMirror
    from engine.pool import Pool
    from engine.volume import Volume

PROGRESS_INTERVAL_S = 0.2

TEND_INTERVAL_S = 10.0
"""How often it is looked at what mirrors hold back: sums over the maps of their points."""

HELD_BACK_SHARE, HELD_BACK_MIN_BYTES = 0.25, 1 * GIB


def held_back_bytes_max(size_bytes: int) -> int:
    """What the common point of a mirror may hold back of its source's space: a quarter of its size, at least 1 GiB."""
    return max(HELD_BACK_MIN_BYTES, int(size_bytes * HELD_BACK_SHARE))


class Replicas(ReplicaRuns):
    """See the module. ``software`` is named in proofs. ``making``: new ones."""

    def __init__(self, pool: Pool, *, software: str) -> None:
        super().__init__(pool)
        self.software = software
        self.making = ReplicaMaking(self)
        self._tend_at = float("-inf")

    # --- looking ------------------------------------------------------------------------------------------------------

    def all(self) -> list[ReplicaInfo]:
        return [self.info(name) for name in sorted({*self.table.rows, *(row.name for row in self.incoming.all())})]

    def reasons(self) -> list[str]:
        """One line for each replica that does not do what it is for, and was not told so by its owner."""
        lines = [] if self.without_peers is None else [f"peers are not served: {self.without_peers}"]
        lines += [f"replica {name} does not run: {why}" for name, why in self._idle.items()]
        for name, mirror in self._mirrors.items():
            lines += trouble(f"replica {name}", mirror)
        return lines + self.groups.reasons()

    def info(self, name: str) -> ReplicaInfo:
        """Raises NotFound."""
        arriving = self.incoming.named(name)
        if arriving is not None:
            return self._arriving_info(arriving)
        row, mirror = self.table.row(name), self._mirrors.get(name)
        if GROUP_KEY in row.state:
            info = self.groups.member_info(row)
        elif mirror is None:
            info = info_at_rest(row.mode, row.peer, self._idle.get(name, ""))
            info = replace(
                info, name=name, source=self.table.name_of(row.source_id), target=self.table.target_name(row)
            )
        else:
            info = single_info(mirror, row.mode, row.peer, self.disks.link(name))
            info = replace(info, rate_bytes_s=policy_of(row).rate_bytes_s)
        target_id = row.target_id if row.peer is None and row.disk is None else None
        return replace(info, source_id=row.source_id, target_id=target_id)

    def _arriving_info(self, row: PeerTargetRow) -> ReplicaInfo:
        """As its source said last, if that is there."""
        replica = self.incoming.replica_of(row)
        connected = self._peers is not None and self._peers.is_served(row.peer)
        report = replica.report if replica is not None and connected else {}
        reason = f"peer {row.peer}, where its source is, is not connected"
        if replica is None:
            reason = "its volume is not served"
        elif report:
            reason = str(report["reason"])
        target, points = self.table.name_of(row.volume_id), self.points(row.name)
        info = arriving_info(row, target, report, reason, points, self._pool.env.clock.time())
        group = self.incoming.group_of(row.replica_id)
        info = info if group is None else replace(info, group=group.name)
        return info if replica is None else replace(info, since=replica.reported_at)

    # --- changing -----------------------------------------------------------------------------------------------------

    async def fracture(self, name: str) -> ReplicaInfo:
        mirror = self.running(name)
        await mirror.fracture()
        self.protect(name)
        await self._release_disk(name)
        if self.outgoing.link(name) is not None:
            with contextlib.suppress(PeerUnreachable):  # then it is told when it is there again
                await self.outgoing.report(name, fractured=True)
        return self.info(name)

    async def pause(self, name: str) -> ReplicaInfo:
        await self.running(name).suspend()
        return self.info(name)

    async def resume(self, name: str) -> Job:
        mirror = self.running(name)
        await mirror.resume()
        return await self.synchronizing(mirror, "resume")

    async def resync(self, name: str) -> Job:
        """Bring the target up to date by what changed. What was written to a fractured target is lost."""
        mirror = self.running(name)
        if self.outgoing.link(name) is not None:
            await self.outgoing.report(name, fractured=False)
        elif self.table.rows[name].disk is not None:
            if mirror.standing.state is CopyState.FRACTURED:
                await self._release_disk(name)
        else:
            target = self._pool.by_id(self.table.rows[name].target_id)
            target.set_read_only(True)
            target.content_owner = name
        try:
            await mirror.resync()
        finally:
            self.protect(name)
        return await self.synchronizing(mirror, "resync")

    async def limit(self, name: str, rate_bytes_s: int) -> ReplicaInfo:
        """See ``EngineApi.replica_limit``."""
        self.running(name)
        row, link = self.table.rows[name], self.outgoing.link(name)
        if link is None:
            raise NotSupported(f"replica {name} is not at a peer: nothing of it is sent anywhere")
        check_rate(rate_bytes_s)
        limited = replace(policy_of(row), rate_bytes_s=rate_bytes_s)
        await self.table.put(replace(row, state=row.state | {POLICY_KEY: limited.serialize()}))
        link.bucket.rate_bytes_s = rate_bytes_s
        return self.info(name)

    @contextlib.asynccontextmanager
    async def resizing(self, volume: Volume) -> AsyncIterator[None]:
        """Inside, the volume may be resized. Its replicas stand aside and get the size with the next round.

        Raises InUse: it is the target of a replica.
        """
        self.table.require_no_replica(volume)
        async with contextlib.AsyncExitStack() as stack:
            for mirror in self.mirrors_of(volume):
                await stack.enter_async_context(mirror.interrupted("its source is resized"))
            yield

    async def tend(self) -> None:
        """To be called now and then: no mirror holds back more of its source's space than it may, and none at all
        while the pool is short of space."""
        if self._peers is not None:
            await self.makings.tend(self._peers)
        now = self._pool.env.clock.boottime()
        if now < self._tend_at:
            return
        self._tend_at = now + TEND_INTERVAL_S
        short = self._pool.space.state is not SpaceState.OK
        for mirror in list(self._mirrors.values()):
            await mirror.thin(0 if short else held_back_bytes_max(mirror.source.size_bytes))
        for group in self.groups.running():
            await group.thin(0 if short else held_back_bytes_max(sum(m.source.size_bytes for m in group.members)))

    async def detach(self, name: str, *, superseded: bool = False) -> None:
        """End the relation; the target stays as it is, a volume of its own. ``superseded``: it is decided that the
        source is the disk no more."""
        arriving = self.incoming.named(name)
        if arriving is not None:
            await self.incoming.detach(arriving)
            return
        row = self.table.row(name)
        require_single(row)
        self._require_undecided(name)
        in_doubt = row.peer is not None and self._is_fenced(row) and not self.is_cleared(row.target_id)
        if in_doubt and not superseded:
            raise InvalidState(
                f"replica {name}",
                "in doubt about who is the disk",
                f"twinvol replica resolve {name} --serve or --yield",
            )
        mirror, link = self._mirrors.get(name), self.outgoing.link(name)
        if link is not None and not link.client.is_connected:
            link.given_up = True
        self.disks.let_be(name)
        if mirror is not None:
            await mirror.detach()
        if link is not None:
            self.outgoing.remove(name)
            with contextlib.suppress(EngineError):  # its volume stays protected there until it is detached there, too
                await link.ask("detach", connection=None)
        elif row.peer is not None and superseded:
            with contextlib.suppress(EngineError):
                await self.peers_of(row.peer).client(row.peer).request("detach", replica=row.target_id)
        await self._pool.catalog.remove_mirror(name)
        self._mirrors.pop(name, None)
        self._idle.pop(name, None)
        self.table.forgotten(name)
        if row.disk is not None:
            await self.disks.remove(name)
            await self.disks.forget(row.disk)

    async def verify(self, name: str) -> Job:
        """Compare both sides by hash tree. The job's result has the ``proof`` document."""
        mirror = self.running(name)

        async def work(job: Job) -> dict[str, Any]:
            document = await mirror.verify(self.software, control=_reporting(job))
            if not document.identical:
                raise IntegrityError(
                    f"replica {name}", 0, document.differing_bytes, document.source.root, document.target.root
                )
            return {
                "identical": True,
                "root": document.source.root,
                "size_bytes": document.size_bytes,
                "unverified_bytes": document.unverified_bytes,
                "proof": document.serialize(),
            }

        return await self._pool.jobs.start("verify", name, work)

    async def _release_disk(self, name: str) -> None:
        """Its users may write to it, or have."""
        link = self.disks.link(name)
        if link is not None:
            await link.release()

    async def synchronizing(self, mirror: Mirror | GroupMirror, kind: str) -> Job:
        """A job that ends when ``mirror`` is synchronized, or at rest in another state."""

        async def work(job: Job) -> dict[str, Any]:
            waiting = asyncio.create_task(mirror.wait_synchronized())
            try:
                while not waiting.done():
                    await asyncio.wait([waiting], timeout=PROGRESS_INTERVAL_S)
                    job.progress(*mirror.figures.progress_bytes)
                waiting.result()
            finally:
                waiting.cancel()
            return {
                "replica": mirror.name,
                "rounds": mirror.figures.rounds,
                "written_bytes": mirror.figures.written_bytes,
            }

        return await self._pool.jobs.start(kind, mirror.name, work)


def _reporting(job: Job) -> CopyControl:
    def report(progress: CopyProgress) -> None:
        job.progress(progress.done_bytes, progress.total_bytes)

    return CopyControl(on_progress=report)
