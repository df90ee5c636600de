"""Other pools that this one trusts. See ``engine.api``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class PeerInvitation:
    """``code``: a secret until it is used."""

    code: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """Another twinvol. ``address``: where it listens; None: it only connects to us. ``fingerprint``: SHA-256 of its
    certificate. ``connected``: we are, to it; ``connects_to_us``: it is, to us. ``rate_bytes_s``: what copies send it
    at most; 0: no limit. ``sent_bytes``: to it, by mirrors, since the start. ``replicas``: of volumes here, at the
    peer; ``replicas_here``: of volumes there. ``reason``: why we are not connected.
    """

    name: str
    address: str | None
    fingerprint: str
    connected: bool
    connects_to_us: bool
    added_at: float
    rate_bytes_s: int
    key_source: str | None
    offers: list[str]
    sent_bytes: int
    replicas: list[str]
    replicas_here: list[str]
    reason: str


class PeerApi(Protocol):
    """See ``engine.api``."""

    async def peer_invite(
        self, *, name: str | None = None, address: str | None = None, lifetime_s: float = 3600.0
    ) -> PeerInvitation:
        """A one-time code by which another pool becomes a peer, called ``name`` here (by default after its
        certificate). ``address``: where it finds us, by default where we listen. Raises InvalidState: we do not.
        """
        ...

    async def peer_add(self, name: str, code: str, *, address: str | None = None) -> PeerInfo:
        """Become the peer of the pool that made the code; each trusts the other from now on.

        Raises PermissionDenied: the code was used or has expired, or somebody else answers. PeerUnreachable.
        """
        ...

    async def peer_list(self) -> list[PeerInfo]: ...

    async def peer_remove(self, name: str, *, force: bool = False) -> None:
        """Trust a peer no longer. Raises InUse: there are replicas (``force``: they break)."""
        ...

    async def peer_ping(self, name: str) -> float:
        """Seconds until it answered. Raises PeerUnreachable."""
        ...

    async def peer_authenticate(self, name: str, username: str, password: str) -> str | None:
        """The role, admin or reader, that a peer's own users file gives to who has this password there; None: nobody.

        Raises PeerUnreachable, TimedOut, NotSupported (an older peer), PermissionDenied (too many wrong ones from us).
        """
        ...

    async def peer_rotate(self) -> str:
        """Begin to replace our key and certificate; ends by itself once all peers know. The new fingerprint."""
        ...

    async def peer_limit(self, name: str, rate_bytes_s: int) -> PeerInfo:
        """What copies send to a peer at most, in bytes a second, at least 1 MiB; 0: no limit. Stays."""
        ...

    async def peer_key(self, name: str, key_source: str | None) -> PeerInfo:
        """Replicas of a peer's encrypted volumes are made here with data keys of their own, wrapped by the key at
        ``key_source`` (``file:/path`` or ``credential:NAME``); None: they are refused again. Those that are there keep
        theirs."""
        ...

    async def peer_offer(self, name: str, volume: str, *, withdraw: bool = False) -> PeerInfo:
        """A peer may attach a volume of this pool as the replica of one of its own, which overwrites it. ``withdraw``:
        not any more. Raises NotFound."""
        ...
