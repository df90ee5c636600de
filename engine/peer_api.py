"""The operations on peers in the data process: a part of ``engine.local_api.LocalApi``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.api import PeerInfo, PeerInvitation
from engine.api_part import ApiPart
from engine.errors import InUse, NotFound, TimedOut
from engine.peers.frames import optional_text
from engine.peers.identity import check_certificate
from engine.peers.invitation import LIFETIME_S
from engine.peers.serving import MAX_CREDENTIAL_CHARS

if TYPE_CHECKING:
    from engine.peers.registry import Peers

AUTHENTICATE_S = 30.0
"""For a peer to look at one password behind those of others; somebody waits for it with a request of his own."""


class PeerOperations(ApiPart):
    """See the module. ``_peers``: None where nobody serves peers."""

    _peers: Peers | None

    async def peer_invite(
        self, *, name: str | None = None, address: str | None = None, lifetime_s: float = LIFETIME_S
    ) -> PeerInvitation:
        code, expires_at = await self._require_peers().invite(name, address, lifetime_s)
        await self._event("peers", "an invitation was made" + ("" if name is None else f" for {name}"))
        return PeerInvitation(code=code, expires_at=expires_at)

    async def peer_add(self, name: str, code: str, *, address: str | None = None) -> PeerInfo:
        await self._require_peers().add(name, code, address)
        await self._event(f"peer {name}", "enrolled")
        return self._peer_info(name)

    async def peer_list(self) -> list[PeerInfo]:
        return [self._peer_info(row.name) for row in self._require_peers().rows()]

    async def peer_remove(self, name: str, *, force: bool = False) -> None:
        peers = self._require_peers()
        peers.row(name)
        there = self._replicas.table.at_peer(name)
        if there and not force:
            raise InUse(f"replicas are at peer {name} ({', '.join(there[:8])}); detach them first, or use --force")
        await peers.remove(name, force=force)
        await self._event(f"peer {name}", "removed", "warning")

    async def peer_ping(self, name: str) -> float:
        return await self._require_peers().client(name).ping()

    async def peer_authenticate(self, name: str, username: str, password: str) -> str | None:
        client = self._require_peers().client(name)
        if max(len(username), len(password)) > MAX_CREDENTIAL_CHARS:
            return None
        try:
            async with asyncio.timeout(AUTHENTICATE_S):
                answer = await client.request("authenticate", username=username, password=password)
        except TimeoutError:
            raise TimedOut(f"peer {name} has not said within {AUTHENTICATE_S:.0f} s who that is") from None
        return optional_text(answer, "role", 16)

    async def peer_rotate(self) -> str:
        fingerprint = await self._require_peers().rotate()
        await self._event("peers", f"this pool's certificate is being replaced by {fingerprint}")
        return fingerprint

    async def peer_limit(self, name: str, rate_bytes_s: int) -> PeerInfo:
        await self._require_peers().limit(name, rate_bytes_s)
        return self._peer_info(name)

    async def peer_key(self, name: str, key_source: str | None) -> PeerInfo:
        await self._require_peers().set_key(name, key_source)
        return self._peer_info(name)

    async def peer_offer(self, name: str, volume: str, *, withdraw: bool = False) -> PeerInfo:
        self._require_peers().row(name)
        await self._replicas.incoming.offer(name, self._pool.volume(volume), withdraw=withdraw)
        await self._event(f"volume {volume}", f"{'no longer ' if withdraw else ''}offered to peer {name}")
        return self._peer_info(name)

    def _require_peers(self) -> Peers:
        if self._peers is None:
            raise NotFound("part of this daemon", "peers")
        return self._peers

    def _peer_info(self, name: str) -> PeerInfo:
        peers = self._require_peers()
        row = peers.row(name)
        connected, served, reason = peers.standing(name)
        return PeerInfo(
            name=name,
            address=row.address,
            fingerprint=check_certificate(row.certificate),
            connected=connected,
            connects_to_us=served,
            added_at=row.added_at,
            rate_bytes_s=row.rate_bytes_s,
            key_source=row.key_source,
            offers=self._replicas.incoming.offered(name),
            sent_bytes=peers.sent_bytes(name),
            replicas=self._replicas.table.at_peer(name),
            replicas_here=[target.name for target in self._replicas.incoming.of_peer(name)],
            reason=reason,
        )
