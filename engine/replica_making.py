"""New replicas: of a volume here, at a peer, or on a disk of elsewhere.

Invariants:

* What is asked of a peer or a disk is asked first, and the row follows: of what is refused, nothing is left anywhere
  (what a peer made for nothing goes by ``engine.peers.makings``).
* Whether a new one may be is asked again in the step that records it: other requests come while a peer or a disk is
  asked (``ReplicaTable.add``).
* The mirror begins when it is on record. From then on it is ended like any other one.
"""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Any

from engine.catalog import MirrorRow
from engine.copy_state import CopyMode
from engine.errors import EngineError, InvalidArgument, NotSupported
from engine.mirror_record import MirrorPolicy, MirrorRecord
from engine.replica_table import POLICY_KEY

if TYPE_CHECKING:
    from engine.disk_targets import DiskSecrets
    from engine.jobs import Job
    from engine.mirror_terms import MirrorTerms
    from engine.replicas import Replicas
    from engine.volume import Volume


def require_unlimited(name: str, terms: MirrorTerms) -> None:
    """Raises NotSupported: only what is sent to a peer can be limited."""
    if terms.rate_bytes_s:
        raise NotSupported(f"replica {name} is not at a peer: nothing of it is sent anywhere")


class ReplicaMaking:
    """See the module."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._table = replicas.table
        self._disks = replicas.disks

    async def here(self, name: str, source: Volume, target: Volume, terms: MirrorTerms) -> Job:
        """Make ``target`` a mirror of ``source``; what it held is lost. The job ends when synchronized.

        Raises AlreadyExists, InUse (the target is an end of another replica), InvalidArgument (sizes differ).
        """
        self._table.require_new(name)
        if source is target:
            raise InvalidArgument(f"volume {source.name} cannot be a replica of itself")
        self._table.require_free(target, "make it a target")
        self._table.require_no_target(source)
        if source.size_bytes != target.size_bytes:
            raise InvalidArgument(
                f"volume {target.name} has {target.size_bytes} bytes, the source {source.size_bytes}: resize it first"
            )
        require_unlimited(name, terms)
        row = MirrorRow(name, source.volume_id, target.volume_id, terms.mode, _new_state(terms))
        target.content_owner = name
        try:
            await self._table.add(row, source)
        except BaseException:
            target.content_owner = None
            raise
        mirror = self._replicas.local_mirror(row, source, target)
        try:
            await mirror.start()
            return await self._replicas.synchronizing(mirror, "replica")
        except BaseException:
            with contextlib.suppress(EngineError):  # the first error is the one to report
                await self._replicas.detach(name)
            raise

    async def at_peer(
        self,
        name: str,
        source: Volume,
        peer: str,
        terms: MirrorTerms,
        *,
        existing: str | None = None,
    ) -> Job:
        """Make a volume ``name`` at a peer, and mirror ``source`` to it. The job ends when synchronized.

        ``existing``: mirror it to that volume of the peer's instead, which was offered to us (``peer offer``).

        Raises AlreadyExists, NotFound (no such peer), PeerUnreachable, and what the peer answers.
        """
        self._table.require_new(name)
        peers = self._replicas.peers_of(peer)
        self._table.require_no_target(source)
        replica_id = await self._replicas.create_at_peer(name, source, peer, terms.mode, existing=existing)
        row = MirrorRow(name, source.volume_id, replica_id, terms.mode, _new_state(terms), peer)
        try:
            await self._table.add(row, source)
        except BaseException:
            self._replicas.makings.failed(replica_id, peer)
            raise
        mirror = self._replicas.remote_mirror(row, source, peers)
        await mirror.start()
        return await self._replicas.synchronizing(mirror, "replica")

    async def on_disk(self, name: str, source: Volume, url: str, secrets: DiskSecrets, terms: MirrorTerms) -> Job:
        """Keep a disk of elsewhere a mirror of ``source``; what it held is lost. The job ends when synchronized.

        Raises AlreadyExists, InUse, InvalidArgument (too small, or a volume of this pool), NotSupported (adaptive), and
        what keeps the disk from being opened: PeerUnreachable, PermissionDenied.
        """
        self._table.require_new(name)
        self._table.require_no_target(source)
        if terms.copy_mode is CopyMode.ADAPTIVE:
            raise NotSupported(
                "an adaptive mirror is consistent at every moment, which a disk without snapshots is not"
            )
        require_unlimited(name, terms)
        disk = await self._disks.row(url, secrets)
        row = MirrorRow(name, source.volume_id, str(uuid.uuid4()), terms.mode, _new_state(terms), disk=disk)
        link = None
        try:
            link = await self._disks.link_to(row, source)
            await self._disks.require_fit(link, source)
            await self._table.add(row, source)
        except BaseException:
            if link is not None:
                await link.close()
            await self._disks.forget(disk)
            raise
        mirror = self._replicas.disk_mirror(row, source, link)
        await mirror.start()
        return await self._replicas.synchronizing(mirror, "replica")


def _new_state(terms: MirrorTerms) -> dict[str, Any]:
    return MirrorRecord().serialize() | {POLICY_KEY: MirrorPolicy.of(terms).serialize()}
