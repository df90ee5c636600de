"""Sanitize: a volume is made to hold nothing of what it ever held (the operations of SBC-3 section 4.11).

*Block erase* discards everything; *overwrite* writes a pattern over everything, once or several times. Both end with
the store's purge: chunks that were freed earlier, or by this, are given back to the host or overwritten, durably. What
the host's file system and its disks keep of blocks given back is theirs and not promised.

What it does not touch it must not pretend to have erased: while anything else keeps data of the volume (a snapshot,
also one of the engine's own, a linked clone, a staging area, a mirror) an operation is refused, and one that finds such
a thing at its end has failed.

An operation is recorded before it begins and forgotten when it is done. One that the daemon's end interrupts begins
again when the volume is opened; one that failed stays failed until another succeeds, or until its initiator gives it up
where it had reserved that right (``unrestricted_exit``).
"""

from __future__ import annotations

import asyncio
import enum
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from engine.errors import EngineError, InvalidState, StoreCorrupt
from engine.stores import ExtentState
from engine.units import GIB, MIB

if TYPE_CHECKING:
    from engine.stores import BlockDevice

log = logging.getLogger(__name__)

SPREAD_S = 6.0
"""An overwrite is spread over so long at least: that of a small volume does not come as a burst that holds up others,
and hosts that look every few seconds see it (docs/decisions/0007)."""

_WRITE_BYTES = MIB
_FLUSH_BYTES = 64 * MIB
"""Unsynced bytes at most."""
_ERASE_BYTES = GIB


class SanitizeMethod(enum.Enum):
    """How the data goes."""

    BLOCK_ERASE = "block erase"
    OVERWRITE = "overwrite"


class SanitizeState(enum.Enum):
    """Whether the volume can be used."""

    NONE = "none"
    RUNNING = "running"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SanitizeOrder:
    """What was asked for. ``unrestricted_exit``: a failure may be left by ``Sanitizer.give_up``.

    Of an overwrite: ``pattern``, a power of two of bytes up to 1 MiB, is repeated over the volume in each of the
    ``passes``; with ``invert`` every other pass writes its complement, the last one the pattern itself.
    """

    method: SanitizeMethod
    pattern: bytes = b""
    passes: int = 1
    invert: bool = False
    unrestricted_exit: bool = False

    def patterns(self) -> list[bytes]:
        """What each pass writes."""
        complement = bytes(byte ^ 0xFF for byte in self.pattern)
        last = self.passes - 1
        return [complement if self.invert and (last - number) % 2 else self.pattern for number in range(self.passes)]

    def to_json(self, *, failed: bool) -> str:
        """As the catalogue keeps it."""
        fields = {
            "method": self.method.value,
            "pattern": self.pattern.hex(),
            "passes": self.passes,
            "invert": self.invert,
            "unrestricted_exit": self.unrestricted_exit,
            "failed": failed,
        }
        return json.dumps(fields)

    @classmethod
    def from_json(cls, record: str) -> tuple[Self, bool]:
        """The order, and whether it has failed. Raises StoreCorrupt."""
        try:
            fields = json.loads(record)
            order = cls(
                SanitizeMethod(fields["method"]),
                bytes.fromhex(fields["pattern"]),
                int(fields["passes"]),
                bool(fields["invert"]),
                bool(fields["unrestricted_exit"]),
            )
            return order, bool(fields["failed"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreCorrupt("the catalogue", f"a sanitize operation is not readable: {error}") from error


class SanitizeHost(Protocol):
    """What an operation needs from around the volume."""

    def require_alone(self) -> None:
        """Raises InvalidState, naming it, while anything else keeps data of the volume."""
        ...

    async def purge(self) -> None:
        """Nothing that the volume freed can be read from its file when it returns."""
        ...

    async def record(self, record: str | None) -> None:
        """Keep this durably for ``Sanitizer.resume``; None: there is nothing to resume."""
        ...

    async def tell(self, severity: str, text: str) -> None:
        """Something that an administrator wants to know later."""
        ...

    def changed(self) -> None:
        """The state is another one: whoever serves the volume looks again."""
        ...


class Sanitizer:
    """The sanitize operations of one volume, one at a time. ``name``: for the log."""

    def __init__(self, device: BlockDevice, host: SanitizeHost, *, name: str = "", spread_s: float = SPREAD_S) -> None:
        self._device = device
        self._name = name
        self._host = host
        self._spread_s = spread_s
        self._task: asyncio.Task[None] | None = None
        self._order: SanitizeOrder | None = None
        self._recording = asyncio.Lock()  # around each change of state and its record: no two interleave
        self.state = SanitizeState.NONE
        self.progress = 0.0
        """Of the operation that runs: 0 to 1."""

    @property
    def may_give_up(self) -> bool:
        """Whether ``give_up`` would be granted."""
        return self._order is None or self._order.unrestricted_exit

    @property
    def restricted(self) -> bool:
        """Whether an operation has failed that only another success, restricted as well, ends."""
        return self.state is SanitizeState.FAILED and not self.may_give_up

    async def start(self, order: SanitizeOrder) -> None:
        """Begin; ``finished`` tells the end. Nothing else may be writing.

        Raises InvalidState: something else keeps data of the volume, or an operation runs.
        """
        async with self._recording:
            if self.state is SanitizeState.RUNNING:
                raise InvalidState(f"volume {self._name}", "being sanitized", "not being sanitized")
            self._host.require_alone()
            before = self.state
            self._set(SanitizeState.RUNNING)
            try:
                await self._host.record(order.to_json(failed=False))
            except BaseException:
                self._set(before)
                raise
            self._begin(order)
        await self._tell("warning", f"{order.method.value} begins")

    def resume(self, record: str) -> None:
        """Take up what an earlier process had recorded. What cannot be read counts as failed: it began, after all."""
        try:
            order, failed = SanitizeOrder.from_json(record)
        except StoreCorrupt as error:
            log.error("volume %s waits for another sanitize operation: %s", self._name, error)
            self._set(SanitizeState.FAILED)
            return
        if failed:
            self._order = order
            self._set(SanitizeState.FAILED)
        else:
            log.info("volume %s: %s goes on, from its beginning", self._name, order.method.value)
            self._set(SanitizeState.RUNNING)
            self._begin(order)

    async def give_up(self) -> None:
        """Use the volume again although the last operation has failed; without a failure there is nothing to do.

        Raises InvalidState: the operation did not reserve that right.
        """
        async with self._recording:
            if self.state is not SanitizeState.FAILED:
                return
            if not self.may_give_up:
                raise InvalidState("the volume", "one whose sanitizing failed in restricted mode", "another success")
            await self._host.record(None)
            self._order = None
            self._set(SanitizeState.NONE)

    async def finished(self, timeout_s: float | None = None) -> None:
        """Wait for the end of the operation that runs, whatever its outcome, or until the time has passed."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout_s)

    async def stop(self) -> None:
        """Interrupt the operation; ``resume`` begins it again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    # --- inside -------------------------------------------------------------------------------------------------

    def _set(self, state: SanitizeState) -> None:
        self.state = state
        self.progress = 0.0
        self._host.changed()

    def _begin(self, order: SanitizeOrder) -> None:
        self._order = order
        self._task = asyncio.create_task(self._run(order), name="sanitize")

    async def _run(self, order: SanitizeOrder) -> None:
        try:
            await self._host.purge()
            if order.method is SanitizeMethod.BLOCK_ERASE:
                await self._erase()
            else:
                await self._overwrite(order.patterns())
            await self._device.flush()
            await self._host.purge()
            self._host.require_alone()
            await self._host.record(None)
        except Exception as error:
            trace = not isinstance(error, EngineError)  # then it is a fault of ours
            log.error("volume %s: %s has failed: %s", self._name, order.method.value, error, exc_info=trace)
            # Recorded before anybody can begin another, whose record would otherwise be overwritten by this one.
            try:
                await self._host.record(order.to_json(failed=True))
            except EngineError as unrecorded:
                log.error("that cannot be recorded, so it begins again with the pool's next opening: %s", unrecorded)
            self._set(SanitizeState.FAILED)
            await self._tell("error", f"{order.method.value} has failed: {error}")
        else:
            self._order = None
            self._set(SanitizeState.NONE)
            await self._tell("info", f"{order.method.value} is done")

    async def _tell(self, severity: str, text: str) -> None:
        """What cannot be told has happened all the same."""
        try:
            await self._host.tell(severity, text)
        except EngineError as error:
            log.error("event not recorded (%s): %s", error, text)

    async def _erase(self) -> None:
        size = self._device.size_bytes
        for at in range(0, size, _ERASE_BYTES):
            await self._device.discard(at, min(_ERASE_BYTES, size - at))
            self.progress = at / size

    async def _overwrite(self, patterns: list[bytes]) -> None:
        size = self._device.size_bytes
        clock = asyncio.get_running_loop().time
        begun = clock()
        for number, pattern in enumerate(patterns):
            data = memoryview(pattern * (_WRITE_BYTES // len(pattern)))
            only_data = not pattern.strip(b"\0")
            for at in range(0, size, _WRITE_BYTES):
                length = min(_WRITE_BYTES, size - at)
                if not only_data or await self._holds_data(at, length):
                    await self._device.write(at, data[:length])
                if not (at + length) % _FLUSH_BYTES:
                    await self._device.flush()
                self.progress = (number + (at + length) / size) / len(patterns)
                await asyncio.sleep(begun + self.progress * self._spread_s - clock())
            await self._device.flush()

    async def _holds_data(self, at: int, length: int) -> bool:
        """Zeroes need not be written where nothing is: it reads zero, and takes no space."""
        return any(extent.state is ExtentState.DATA for extent in await self._device.extents(at, length))


@runtime_checkable
class Sanitizable(Protocol):
    """A device that may have a sanitizer."""

    @property
    def sanitizer(self) -> Sanitizer | None: ...
