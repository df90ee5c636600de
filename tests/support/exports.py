"""The iscsi side of an ``Exposure`` for tests without a network: remembers what is shown, and who is logged in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.api import CommandInfo, DeviceIoInfo, SessionInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.access_state import AccessState
    from engine.catalog import LunRow
    from engine.chap import ChapSecrets
    from engine.exports import StateKeeper


class MemoryExports:
    """``shown`` maps target to LUN to device; ``access`` and ``groups`` target to its lists, ``masks`` target and LUN
    to who sees it, ``chap`` target (None: discovery) to its secrets; ``logged_in`` is set by tests.

    ``forgotten``: devices whose reservations ended with them. ``states``: by device and target port group;
    ``steps``: how they changed since.
    """

    def __init__(self) -> None:
        self.shown: dict[str, dict[int, Any]] = {}
        self.access: dict[str, tuple[str, ...]] = {}
        self.paused: set[str] = set()
        self.recorded: dict[str, int] = {}
        self.groups: dict[str, tuple[int, ...]] = {}
        self.masks: dict[tuple[str, int], tuple[str, ...]] = {}
        self.chap: dict[str | None, ChapSecrets | None] = {}
        self.logged_in: list[SessionInfo] = []
        self.forgotten: list[str] = []
        self.port_groups: dict[str, int] = {}
        self.states: dict[tuple[str, int], AccessState] = {}
        self.steps: list[tuple[str, dict[int, AccessState]]] = []

    def log_in(self, target: str, initiator: str = "iqn.2026-11.org.example:host") -> None:
        self.logged_in.append(SessionInfo(target, 1, initiator, "40000137ffff", 1, "127.0.0.1:40000", 0, 0, 0, 0))

    def portals(self) -> list[tuple[str, int]]:
        return [("127.0.0.1:3260", 1), ("127.0.0.2:3260", 2)]

    def sessions(self, target: str | None = None) -> list[SessionInfo]:
        return [session for session in self.logged_in if target in (None, session.target)]

    def holders(self) -> list[tuple[str, str]]:
        return [(session.target, session.initiator) for session in self.logged_in]

    def add_target(self, name: str, initiators: Sequence[str], portal_groups: Sequence[int], port_group: int) -> None:
        self.port_groups[name] = port_group
        self.shown[name] = {}
        self.access[name] = tuple(initiators)
        self.groups[name] = tuple(portal_groups)

    async def remove_target(self, name: str) -> None:
        del self.shown[name]
        self.logged_in = [session for session in self.logged_in if session.target != name]

    async def set_access(self, target: str, initiators: Sequence[str]) -> None:
        self.access[target] = tuple(initiators)

    def set_chap(self, target: str | None, secrets: ChapSecrets | None) -> None:
        self.chap[target] = secrets

    def record(self, target: str, last: int) -> None:
        self.recorded[target] = last

    def commands(self, target: str) -> list[CommandInfo] | None:
        return [] if self.recorded.get(target) else None

    def io(self) -> dict[str, DeviceIoInfo]:
        return {}

    async def pause_target(self, name: str) -> None:
        self.paused.add(name)

    def resume_target(self, name: str) -> None:
        self.paused.discard(name)

    async def set_portal_groups(self, target: str, portal_groups: Sequence[int]) -> None:
        self.groups[target] = tuple(portal_groups)

    def add_volume(self, lun: LunRow, volume: Any, state: AccessState) -> None:
        self.shown[lun.target][lun.lun] = volume
        self.masks[lun.target, lun.lun] = tuple(lun.initiators)
        self.states[lun.device_id, self.port_groups[lun.target]] = state

    add_snapshot = add_volume

    def keep_access_states(self, keeper: StateKeeper) -> None:
        self.keeper = keeper

    async def set_access_states(self, device_id: str, states: Mapping[int, AccessState]) -> None:
        self.steps.append((device_id, dict(states)))
        self.states.update({(device_id, number): state for number, state in states.items()})

    async def set_mask(self, target: str, lun: int, initiators: Sequence[str]) -> None:
        self.masks[target, lun] = tuple(initiators)

    def restore_reservations(self, documents: Mapping[str, str]) -> None:
        self.reservations = dict(documents)

    def forget(self, device_id: str) -> None:
        self.forgotten.append(device_id)

    async def remove_lun(self, target: str, lun: int) -> None:
        del self.shown[target][lun]
