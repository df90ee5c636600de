"""What the engine asks of whoever shows its volumes to initiators; ``twinvol/wiring.py`` has it for iSCSI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engine.access_state import AccessState
    from engine.api import CommandInfo, DeviceIoInfo, SessionInfo
    from engine.catalog import LunRow
    from engine.chap import ChapSecrets
    from engine.stores import Frozen
    from engine.volume import Volume

StateKeeper = Callable[[str, "Mapping[int, AccessState]", Callable[[], Awaitable[None]]], Awaitable[None]]


class Exports(Protocol):
    """The iSCSI side. Methods take effect at once; those that end sessions return when none of them can still
    touch a device."""

    def portals(self) -> list[tuple[str, int]]:
        """Addresses that accept logins, as HOST:PORT, each with the tag of its portal group."""
        ...

    def sessions(self, target: str | None = None) -> Iterable[SessionInfo]:
        """Of one target or all, with all that is known of them: 0.1 ms for each."""
        ...

    def holders(self) -> list[tuple[str, str]]:
        """Target and initiator of each session; cheap."""
        ...

    def add_target(
        self, name: str, initiators: Sequence[str], portal_groups: Sequence[int], port_group: int
    ) -> None: ...
    async def remove_target(self, name: str) -> None: ...
    async def set_access(self, target: str, initiators: Sequence[str]) -> None: ...
    def set_chap(self, target: str | None, secrets: ChapSecrets | None) -> None:
        """What logins to a target, or (None) discovery, have to prove; None: nothing. Holds from the next login on."""
        ...

    def record(self, target: str, last: int) -> None: ...
    def commands(self, target: str) -> list[CommandInfo] | None:
        """The recorded commands; None while none are recorded."""
        ...

    def io(self) -> dict[str, DeviceIoInfo]:
        """By volume id or snapshot GUID; ``volume`` and ``snapshot`` are left to the caller."""
        ...

    async def pause_target(self, name: str) -> None:
        """Hold the target's commands; returns when those that were running are over, and what they had begun."""
        ...

    def resume_target(self, name: str) -> None: ...
    async def set_portal_groups(self, target: str, portal_groups: Sequence[int]) -> None: ...
    def add_volume(self, lun: LunRow, volume: Volume, state: AccessState) -> None:
        """Show a volume under the identity of ``lun.device_id``."""
        ...

    def add_snapshot(self, lun: LunRow, snapshot: Frozen, state: AccessState) -> None: ...
    def keep_access_states(self, keeper: StateKeeper) -> None:
        """What initiators ask for goes to ``keeper``: a device, states by target port group, and what applies them."""
        ...

    async def set_access_states(self, device_id: str, states: Mapping[int, AccessState]) -> None:
        """Put target port groups into states. Returns when no write through one that left an active state runs."""
        ...

    async def set_mask(self, target: str, lun: int, initiators: Sequence[str]) -> None: ...
    async def remove_lun(self, target: str, lun: int) -> None: ...
    def restore_reservations(self, documents: Mapping[str, str]) -> None:
        """What devices, by volume id or snapshot GUID, had saved; called before any of them is shown."""
        ...

    def forget(self, device_id: str) -> None:
        """The device is deleted, and was withdrawn before: its persistent reservations end."""
        ...
