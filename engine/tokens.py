"""Tokens for offloaded copies: each stands for ranges of a volume as they were at one instant.

Whoever has a token may write what it stands for to wherever he may write, on any volume of this process; so it cannot
be guessed. A token of a live volume keeps a hidden snapshot of it, one of a snapshot just names that. How its holder
carries it (the 512 bytes of a ROD token, for SCSI) is the business of whoever has it made: ``represent``.

Invariants:

* At most ``MAX_TOKENS`` exist, and ``MAX_TOKENS_PER_OWNER`` of one owner: making one more ends the one that the
  owner has not used for longest.
* A token ends when it was not used for its inactivity timeout, at the latest after ``LIFETIME_S``; so does the space
  that its snapshot pins. One in use ends when its last user is through.
* Why a token ended is remembered for as long again as it could have lived.
* Tokens live in memory: after a restart they are unknown, and the pool drops their snapshots when it opens.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import hmac
import logging
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import EngineError, InUse, NotSupported, TokenFault, TokenInvalid
from engine.names import TOKEN_PREFIX
from engine.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from engine.files import Clock
    from engine.stores import BlockDevice, Extent, Frozen, VolumeStore

log = logging.getLogger(__name__)


MAX_TOKENS = 256
MAX_TOKENS_PER_OWNER = 64
MAX_REMEMBERED = 4096
"""Ended tokens whose reason is remembered at most."""

DEFAULT_INACTIVITY_S = 60
MAX_INACTIVITY_S = 600
LIFETIME_S = 3600

_SECRET_BYTES = 256


@dataclass(eq=False, slots=True)
class Token:
    """See the module.

    ``identifier``: 64 bits, of no other token. ``secret``: random. ``ranges`` of ``point``, in the token's order.
    """

    identifier: int
    secret: bytes
    owner: str
    point: BlockDevice
    ranges: tuple[Extent, ...]
    inactivity_s: float
    ends_at: float
    used_at: float
    representation: bytes = b""
    users: int = 0
    snapshot: tuple[VolumeStore, Frozen] | None = None
    """What to remove when the token ends."""
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = sum(extent.length for extent in self.ranges)

    def deadline(self) -> float:
        return self.ends_at if self.users else min(self.ends_at, self.used_at + self.inactivity_s)

    def read_from(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(offset of the point, bytes) of the pieces that ``length`` bytes from ``offset`` of the token lie in."""
        for extent in self.ranges:
            if length <= 0:
                return
            if offset < extent.length:
                step = min(length, extent.length - offset)
                yield extent.offset + offset, step
                length -= step
                offset = 0
            else:
                offset -= extent.length


@dataclass(frozen=True, slots=True)
class _Ended:
    digest: bytes
    fault: TokenFault
    forget_at: float


class Tokens:
    """All tokens of a process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tokens: dict[int, Token] = {}
        self._ended: dict[int, _Ended] = {}
        self._making: collections.Counter[str] = collections.Counter()  # by owner: what ``issue`` is about to add
        self._last = secrets.randbits(63)
        self._timer: asyncio.TimerHandle | None = None
        self._removals: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tokens)

    async def issue(
        self,
        device: BlockDevice,
        ranges: Sequence[Extent],
        *,
        owner: str,
        inactivity_s: float,
        represent: Callable[[Token], bytes],
    ) -> Token:
        """Make a token for ``ranges`` of a volume or snapshot as they are now.

        Raises:
            NotSupported: the device cannot be frozen.
            InUse: too many tokens of others exist.
            OutOfSpace, StoreFailed: no snapshot can be made.
        """
        self._make_room(owner)
        self._last += 1
        identifier = self._last
        self._making[owner] += 1
        try:
            point, snapshot = await _freeze(device, f"{TOKEN_PREFIX}{identifier:016x}")
        finally:
            self._making[owner] -= 1
            self._making += collections.Counter()  # drops those that are at 0
        now = self._clock.boottime()
        token = Token(
            identifier=identifier,
            secret=secrets.token_bytes(_SECRET_BYTES),
            owner=owner,
            point=point,
            ranges=tuple(ranges),
            inactivity_s=inactivity_s,
            ends_at=now + LIFETIME_S,
            used_at=now,
            snapshot=snapshot,
        )
        token.representation = represent(token)
        self._tokens[identifier] = token
        self._schedule()
        return token

    def redeem(self, identifier: int, representation: bytes) -> Token:
        """The token of that identifier, if it was handed out as exactly these bytes. Raises TokenInvalid."""
        self._end_the_expired()
        token = self._tokens.get(identifier)
        if token is not None:
            if hmac.compare_digest(token.representation, representation):
                return token
            raise TokenInvalid(TokenFault.UNKNOWN)
        ended = self._ended.get(identifier)
        if ended is not None and hmac.compare_digest(ended.digest, _digest(representation)):
            raise TokenInvalid(ended.fault)
        raise TokenInvalid(TokenFault.UNKNOWN)

    @contextlib.contextmanager
    def using(self, token: Token) -> Iterator[None]:
        """Inside, the token's data stays, even if the token ends."""
        token.users += 1
        try:
            yield
        finally:
            token.users -= 1
            token.used_at = self._clock.boottime()
            if not token.users and token.identifier not in self._tokens:
                self._remove(token)
            self._schedule()

    def delete(self, token: Token) -> None:
        """Its user needs it no more."""
        self._end(token, TokenFault.DELETED)

    def cancel(self, token: Token) -> None:
        """Its data is gone."""
        self._end(token, TokenFault.CANCELLED)

    async def close(self) -> None:
        """End all tokens and remove their snapshots. Nobody uses one any more."""
        for token in list(self._tokens.values()):
            self._end(token, TokenFault.CANCELLED)
        if self._timer is not None:
            self._timer.cancel()
        await self.settled()

    async def settled(self) -> None:
        """Wait until the snapshots of the tokens that have ended are removed."""
        while self._removals:
            await asyncio.wait(list(self._removals))

    # --- inside -----------------------------------------------------------------------------------------------

    def _make_room(self, owner: str) -> None:
        self._end_the_expired()
        own = [token for token in self._tokens.values() if token.owner == owner]
        idle = sorted((token for token in own if not token.users), key=lambda token: token.used_at)
        of_owner, of_all = len(own) + self._making[owner], len(self._tokens) + self._making.total()
        if of_owner >= MAX_TOKENS_PER_OWNER or of_all >= MAX_TOKENS:
            if not idle:
                raise InUse(f"{len(self._tokens)} tokens for offloaded copies exist already; try again later")
            self._end(idle[0], TokenFault.CANCELLED)

    def _end_the_expired(self) -> None:
        now = self._clock.boottime()
        for token in [token for token in self._tokens.values() if token.deadline() <= now]:
            self._end(token, TokenFault.EXPIRED)
        for identifier in [identifier for identifier, ended in self._ended.items() if ended.forget_at <= now]:
            del self._ended[identifier]

    def _end(self, token: Token, fault: TokenFault) -> None:
        if self._tokens.pop(token.identifier, None) is None:
            return
        while len(self._ended) >= MAX_REMEMBERED:
            del self._ended[next(iter(self._ended))]
        forget_at = self._clock.boottime() + LIFETIME_S
        self._ended[token.identifier] = _Ended(_digest(token.representation), fault, forget_at)
        if not token.users:
            self._remove(token)

    def _remove(self, token: Token) -> None:
        """Remove the snapshot in the background."""
        if token.snapshot is None:
            return
        store, snapshot = token.snapshot
        token.snapshot = None
        task = asyncio.create_task(_remove_snapshot(store, snapshot), name=f"remove {snapshot.name}")
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)

    def _schedule(self) -> None:
        """Wake up when the next token expires."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._tokens:
            delay = min(token.deadline() for token in self._tokens.values()) - self._clock.boottime()
            self._timer = asyncio.get_running_loop().call_later(max(delay, 0), self._wake)

    def _wake(self) -> None:
        self._end_the_expired()
        self._schedule()


async def _freeze(device: BlockDevice, name: str) -> tuple[BlockDevice, tuple[VolumeStore, Frozen] | None]:
    """The device as it is now, and what has to be removed later."""
    if isinstance(device, Volume):
        device.require_usable()
        store = device.head.store
        snapshot = await store.snapshot(device.head, name, hidden=True)
        return snapshot, (store, snapshot)
    if device.read_only:  # a snapshot itself
        return device, None
    raise NotSupported("this device has no snapshots")


async def _remove_snapshot(store: VolumeStore, snapshot: Frozen) -> None:
    try:
        await store.delete_snapshot(snapshot)
    except EngineError as error:  # it went with its volume; or it stays until the pool is opened the next time
        log.info("snapshot %s of a token: %s", snapshot.name, error)


def _digest(representation: bytes) -> bytes:
    return hashlib.sha256(representation).digest()
