"""What the sanitizer of a pool's volume needs of the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import InvalidState
from engine.stores import PurgingStore

if TYPE_CHECKING:
    from engine.catalog import Catalog
    from engine.files import StoreEnv
    from engine.volume import Volume


class VolumeSanitizeHost:
    """Fulfils ``engine.sanitize.SanitizeHost``."""

    def __init__(self, volume: Volume, catalog: Catalog, env: StoreEnv) -> None:
        self._volume = volume
        self._catalog = catalog
        self._env = env

    def require_alone(self) -> None:
        volume, store = self._volume, self._volume.head.store
        assert isinstance(store, PurgingStore)
        keepers = [*store.keepers(volume.head)]
        if store.staging(volume.volume_id) is not None or volume.taps:
            keepers.append("a mirror")
        if keepers:
            raise InvalidState(f"volume {volume.name}", f"shared with {keepers[0]}", "the only one that keeps its data")

    async def purge(self) -> None:
        store = self._volume.head.store
        assert isinstance(store, PurgingStore)
        await store.purge()

    async def record(self, record: str | None) -> None:
        await self._catalog.put_sanitization(self._volume.volume_id, record)

    async def tell(self, severity: str, text: str) -> None:
        await self._catalog.add_event(self._env.clock.time(), severity, f"volume {self._volume.name}", text)

    def changed(self) -> None:
        self._volume.sanitize_changed()


async def stop_sanitizing(volume: Volume) -> None:
    if volume.sanitizer is not None:
        await volume.sanitizer.stop()
