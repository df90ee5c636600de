"""What a sanitizer needs from around its volume, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import EngineError, InvalidState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class SanitizeHost:
    """``kept_by``: what else keeps data of the volume. ``error``: what purging raises. ``gate``: what it waits for.
    ``records`` are kept in order; while ``recording`` is set, keeping one waits for it."""

    def __init__(self) -> None:
        self.kept_by: str | None = None
        self.error: EngineError | None = None
        self.gate: asyncio.Event | None = None
        self.recording: asyncio.Event | None = None
        self.purges = 0
        self.records: list[str | None] = []
        self.events: list[tuple[str, str]] = []
        self.on_change: Callable[[], None] = lambda: None

    def require_alone(self) -> None:
        if self.kept_by is not None:
            raise InvalidState("the volume", f"shared with {self.kept_by}", "alone")

    async def purge(self) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.purges += 1

    async def record(self, record: str | None) -> None:
        if self.recording is not None:
            await self.recording.wait()
        self.records.append(record)

    async def tell(self, severity: str, text: str) -> None:
        self.events.append((severity, text))

    def changed(self) -> None:
        self.on_change()
