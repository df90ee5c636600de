"""Volumes that were asked for at peers, and whose mirrors the catalogue has not taken (yet).

A replica at a peer is made in two places. What is asked for is recorded here first, durably, under the id that the
mirror is to have; the row of the mirror takes the record's place in one transaction (``Catalog.put_mirror``). What is
recorded and has no mirror when the daemon starts, or whose making failed, is *abandoned*: the peer is told, as soon as
it is there and until it has answered, and deletes a volume that never was a whole copy. So neither a full disk nor a
crash here, nor an answer that is lost, leaves a volume there that nobody knows of.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from engine.errors import EngineError, NotFound

if TYPE_CHECKING:
    from engine.catalog_peers import PeerTables
    from engine.peers.registry import Peers

log = logging.getLogger(__name__)


class PeerMakings:
    """See the module. ``abandoned``: replica id -> peer."""

    def __init__(self, tables: PeerTables) -> None:
        self.abandoned: dict[str, str] = {}
        self._tables = tables

    async def restore(self) -> None:
        self.abandoned = await self._tables.makings()

    async def begin(self, replica_id: str, peer: str) -> None:
        """Durable when it returns: now the peer may be asked."""
        await self._tables.begin_making(replica_id, peer)

    def failed(self, replica_id: str, peer: str) -> None:
        """No mirror comes of it."""
        self.abandoned[replica_id] = peer

    async def tend(self, peers: Peers) -> None:
        """Tell those peers that are connected."""
        for replica_id, peer in list(self.abandoned.items()):
            try:
                if not peers.has_client(peer):
                    continue
                await peers.client(peer).request("abandon", replica=replica_id)
            except NotFound:
                pass  # it is no peer any more: what is there is its administrator's
            except EngineError as error:
                log.warning("peer %s keeps a volume that was made for nothing, for now: %s", peer, error)
                continue
            await self._tables.end_making(replica_id)
            self.abandoned.pop(replica_id, None)
