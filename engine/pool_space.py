"""The pool's limits on space: a quota for its files, and a reserve that it leaves free on the host's file system.

New chunks are granted while the files take less than the quota and the host has more than the reserve; then writers
that need new chunks get OutOfSpace (to SCSI 07/27/07), early: there is still room for what must go on. The reserve
is for metadata: checkpoints, deletions, discards and snapshots on a pool whose writers were stopped. Nothing asks for
it; it is what payload may not use.

Limits hold for what the host says (blocks of the files, free blocks of the file system), measured in a worker every
``_BUSY_S`` while space is being taken, every ``_IDLE_S`` otherwise (others fill the disk, too), and before anybody is
refused. Between two measurements grants count as used whether they are or not, so that all volumes together keep the
limits; at a new one unspent grants are void. What may pass a limit nevertheless: metadata; writes in flight at the
moment of a measurement; and a chunk of which only a part was written so far may still be filled.

``state``: ok; low from ``warn_percent`` of what may be used; full when next to nothing is left. Each has its
hysteresis, so that a pool at the edge tells once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING

from engine.errors import EngineError, InvalidArgument, OutOfSpace
from engine.units import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.files import HostSpace, Workers

log = logging.getLogger(__name__)

DEFAULT_RESERVE_BYTES = 256 * MIB
DEFAULT_RESERVE_SHARE = 64
"""The reserve, unless it is set: a 64th of the file system, at most 256 MiB."""
DEFAULT_WARN_PERCENT = 80
_CLEAR_PERCENT = 5
"""A pool is low until it is so much below the warning."""
_FULL_BYTES = 256 * KIB
"""With less than this left (a chunk of the largest size) a pool is full, and until it has ``_AGAIN_BYTES`` again, or a
50th of what may be used."""
_AGAIN_BYTES = 16 * MIB
_SHARE = 8
"""One grant is at most this part of what is left: with little left nobody holds what others need."""
_BUSY_S = 1.0
_IDLE_S = 5.0


class SpaceState(StrEnum):
    """How full the pool is."""

    OK = "ok"
    LOW = "low"
    FULL = "full"


class SpaceEvent(Enum):
    """What a subscriber is told."""

    LOW = "low"  # from now on there is less left than the warning says
    LIMITS = "limits"  # others hold


@dataclass(frozen=True, slots=True)
class SpaceLimits:
    """``quota_bytes``: None for none. ``reserve_bytes``: None for the default. As the catalogue has them."""

    quota_bytes: int | None = None
    reserve_bytes: int | None = None
    warn_percent: int = DEFAULT_WARN_PERCENT

    def check(self) -> SpaceLimits:
        """Itself. Raises InvalidArgument."""
        if self.quota_bytes is not None and not 0 < self.quota_bytes < 1 << 62:
            raise InvalidArgument("a quota is more than 0 bytes; none lets the pool use all but the reserve")
        if self.reserve_bytes is not None and not 0 <= self.reserve_bytes < 1 << 62:
            raise InvalidArgument("a reserve is 0 bytes or more")
        if not 1 <= self.warn_percent <= 100:
            raise InvalidArgument("a warning is given at 1 to 100 percent; at 100 only when the pool is full")
        return self


class PoolSpace:
    """See the module; ``engine.room.Room`` for all stores of a pool.

    Args:
        measure: what the host says, in a worker.
        tell: called at each change of ``state`` with what there is to say.
    """

    def __init__(
        self,
        limits: SpaceLimits,
        workers: Workers,
        measure: Callable[[], HostSpace],
        tell: Callable[[SpaceState, str], Awaitable[None]],
    ) -> None:
        self.limits = limits
        self.state = SpaceState.OK
        self.epoch = 0
        self.host: HostSpace | None = None
        """What the last measurement said."""
        self._workers = workers
        self._measure = measure
        self._tell = tell
        self._given = 0
        """Bytes granted that ``host`` may not show yet."""
        self._measuring = asyncio.Lock()
        self._begun = self._ended = 0
        """Numbers of the last measurement that has begun, and of the last that has ended."""
        self._watch: asyncio.Task[None] | None = None
        self._subscribers: list[Callable[[SpaceEvent], None]] = []

    async def start(self) -> None:
        """Measure, and go on doing so until ``stop``. Raises MediumError: the host does not say."""
        await self.measure()
        self._watch = asyncio.create_task(self._keep_measuring(), name="pool space")

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch

    def subscribe(self, subscriber: Callable[[SpaceEvent], None]) -> None:
        """Have it told of events, in the loop, at once."""
        self._subscribers.append(subscriber)

    def _publish(self, event: SpaceEvent) -> None:
        for subscriber in self._subscribers:
            subscriber(event)

    # --- what it says -----------------------------------------------------------------------------------------

    @property
    def reserve_bytes(self) -> int:
        """The one that holds."""
        if self.limits.reserve_bytes is not None:
            return self.limits.reserve_bytes
        total = self.host.total_bytes if self.host else 0
        return min(DEFAULT_RESERVE_BYTES, total // DEFAULT_RESERVE_SHARE)

    @property
    def left_bytes(self) -> int:
        """What volumes may still take; 0 or less: nothing."""
        if self.host is None:
            return 0
        left = self.host.free_bytes - self.reserve_bytes
        if self.limits.quota_bytes is not None:
            left = min(left, self.limits.quota_bytes - self.host.used_bytes)
        return left - self._given

    @property
    def left_percent(self) -> int:
        """Of what the pool has and may have."""
        return 100 * max(0, self.left_bytes) // self._usable_bytes if self._usable_bytes else 0

    @property
    def threshold_percent(self) -> int:
        """With less than this left the pool is low."""
        return 100 - self.limits.warn_percent

    @property
    def _usable_bytes(self) -> int:
        """What the pool has and may have."""
        return max(0, self.left_bytes) + self._given + (self.host.used_bytes if self.host else 0)

    def refusal(self, path: object, /) -> OutOfSpace:
        host, quota = self.host, self.limits.quota_bytes
        if host is not None and quota is not None and quota - host.used_bytes < host.free_bytes - self.reserve_bytes:
            why = f"the pool's quota of {quota} bytes is used up"
        else:
            free = host.free_bytes if host else 0
            why = f"the host has {free} bytes left, of which the pool's reserve is {self.reserve_bytes}"
        return OutOfSpace(
            f"{path}: {why}; delete snapshots or volumes, discard, or change the limits (twinvol pool set)"
        )

    def require(self, wanted: int, what: object) -> None:
        """Raises OutOfSpace unless so much is left."""
        if self.left_bytes < wanted:
            raise self.refusal(what)

    # --- what stores ask --------------------------------------------------------------------------------------

    def grant(self, wanted: int, unit: int, /) -> int:
        left = self.left_bytes
        given = min(wanted, max(unit, left // _SHARE)) // unit * unit
        if given > left:
            return 0
        self._given += given
        return given

    async def measure(self) -> bool:
        """All who wait share the next measurement. Without an answer of the host the last one stands."""
        number = self._begun + 1
        async with self._measuring:
            if self._ended < number:
                await self._measure_once()
        return self.left_bytes >= _FULL_BYTES

    async def _measure_once(self) -> None:
        self._begun += 1
        self.epoch += 1  # what was granted and not spent is void; what was spent is seen, or in flight
        before = self._given
        try:
            self.host = await self._workers.run(self._measure)
        except EngineError as error:
            if self.host is None:
                raise
            log.warning("how much space there is cannot be measured: %s", error)
        else:
            self._given -= before
        self._ended = self._begun
        await self._judge()

    async def set_limits(self, limits: SpaceLimits) -> None:
        """They hold from now on."""
        self.limits = limits.check()
        self._publish(SpaceEvent.LIMITS)
        await self.measure()

    # --- watching ---------------------------------------------------------------------------------------------

    async def _keep_measuring(self) -> None:
        while True:
            quiet = not self._given and self.state is SpaceState.OK
            for _ in range(round(_IDLE_S / _BUSY_S) if quiet else 1):
                await asyncio.sleep(_BUSY_S)
                if self._given:
                    break
            await self.measure()

    async def _judge(self) -> None:
        assert self.host is not None
        left, usable = max(0, self.left_bytes), self._usable_bytes
        percent = 100 * (usable - left) // usable if usable else 100
        full_until = min(_AGAIN_BYTES, usable // 50) if self.state is SpaceState.FULL else _FULL_BYTES
        low_from = self.limits.warn_percent - (_CLEAR_PERCENT if self.state is not SpaceState.OK else 0)
        if left < max(full_until, _FULL_BYTES):
            state = SpaceState.FULL
        else:
            state = SpaceState.LOW if percent >= max(1, low_from) else SpaceState.OK
        if state is self.state:
            return
        crossed, self.state = self.state is SpaceState.OK, state
        if crossed:
            self._publish(SpaceEvent.LOW)
        text = f"{percent}% of {usable} bytes that may be used are used, {left} are left"
        await self._tell(state, text)
