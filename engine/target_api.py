"""The operations on targets and their sessions in the data process: a part of ``engine.local_api.LocalApi``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.access_state import AccessState
from engine.api_part import ApiPart
from engine.errors import InvalidArgument

if TYPE_CHECKING:
    from engine.api import ChapInfo, CommandInfo, DeviceIoInfo, SessionInfo, TargetInfo


SESSIONS_PER_TURN = 16
"""Sessions that are described in one turn of the loop: 2 ms."""

TARGETS_PER_TURN = 32
"""Targets, likewise."""


class TargetOperations(ApiPart):
    """See the module."""

    async def target_create(
        self, name: str, *, initiators: list[str] | None = None, portal_groups: list[int] | None = None
    ) -> TargetInfo:
        return await self._exposure.create(name, initiators or (), portal_groups or ())

    async def target_bind(self, target: str, *, portal_groups: list[int]) -> TargetInfo:
        return await self._exposure.bind(target, portal_groups)

    async def target_list(self) -> list[TargetInfo]:
        found = []
        for info in self._exposure.targets():
            found.append(info)
            if not len(found) % TARGETS_PER_TURN:
                await asyncio.sleep(0)  # the data path goes on meanwhile
        return found

    async def target_show(self, name: str) -> TargetInfo:
        return self._exposure.target(name)

    async def target_delete(self, name: str, *, force: bool = False) -> None:
        await self._exposure.delete(name, force=force)

    async def target_lun_add(
        self,
        target: str,
        volume: str,
        *,
        snapshot: str | None = None,
        lun: int | None = None,
        initiators: list[str] | None = None,
        standby: bool = False,
    ) -> TargetInfo:
        shown = self._pool.volume(volume)
        frozen = None if snapshot is None else self._pool.snapshot(shown, snapshot)
        if standby and frozen is not None:
            raise InvalidArgument("a snapshot is no path to its volume: a standby path is a replica's")
        if frozen is None and not standby:
            self._replicas.table.require_steady(shown)
        source = self._replicas.table.source_of(shown) if standby else None
        if standby and self._exposure.target(target).port_group in self._replicas.table.port_groups_elsewhere():
            raise InvalidArgument(
                f"target {target} has the target port group of one that shows the disk at the peer; initiators take the"
                " two for one: make another target for this path"
            )
        return await self._exposure.add_lun(target, shown, frozen, lun, initiators or (), source)

    async def target_lun_remove(self, target: str, lun: int, *, force: bool = False) -> TargetInfo:
        return await self._exposure.remove_lun(target, lun, force=force)

    async def target_lun_mask(self, target: str, lun: int, *, initiators: list[str]) -> TargetInfo:
        return await self._exposure.mask_lun(target, lun, initiators)

    async def target_access_state(self, target: str, state: str, *, lun: int | None = None) -> TargetInfo:
        info = await self._exposure.set_access_state(target, lun, AccessState.of(state))
        await self._event(f"target {info.name}", f"{'all LUNs' if lun is None else f'LUN {lun}'} set to {state}")
        return info

    async def target_activate(self, target: str, *, lun: int | None = None) -> TargetInfo:
        info = await self._exposure.activate(target, lun)
        await self._event(
            f"target {info.name}", "made the active way to its LUNs" if lun is None else f"LUN {lun} activated"
        )
        return info

    async def target_access(
        self, target: str, *, add: list[str], remove: list[str], admit_all: bool = False
    ) -> TargetInfo:
        return await self._exposure.change_access(target, add, remove, admit_all=admit_all)

    async def target_pause(self, name: str, *, timeout_s: float = 20.0) -> TargetInfo:
        info = await self._exposure.pause(name, timeout_s)
        await self._event(f"target {info.name}", f"paused for at most {timeout_s:g} s")
        return info

    async def target_resume(self, name: str) -> TargetInfo:
        info = self._exposure.resume(name)
        await self._event(f"target {info.name}", "resumed")
        return info

    async def target_chap_show(self, target: str | None) -> ChapInfo:
        return self._exposure.chap(target)

    async def target_chap_set(
        self,
        target: str | None,
        *,
        user: str | None = None,
        secret: str | None = None,
        mutual_user: str | None = None,
        mutual_secret: str | None = None,
    ) -> ChapInfo:
        info = await self._exposure.set_chap(target, _pair(user, secret), _pair(mutual_user, mutual_secret))
        named = " and ".join(name for name in (user, mutual_user) if name is not None)
        await self._event(_chap_subject(target), f"CHAP secret of {named} set")
        return info

    async def target_chap_remove(
        self, target: str | None, *, user: str | None = None, mutual: bool = False
    ) -> ChapInfo:
        info = await self._exposure.remove_chap(target, user, mutual=mutual)
        named = " and ".join(name for name in (user, "its own" if mutual else None) if name is not None)
        await self._event(_chap_subject(target), f"CHAP user {named} removed" if named else "CHAP switched off")
        return info

    async def target_record(self, name: str, last: int) -> TargetInfo:
        return self._exposure.record(name, last)

    async def command_list(self, target: str, *, tsih: int | None = None) -> list[CommandInfo]:
        return self._exposure.commands(target, tsih)

    async def io_list(self) -> list[DeviceIoInfo]:
        return self._exposure.io()

    async def session_list(self, target: str | None = None) -> list[SessionInfo]:
        found = []
        for session in self._exposure.sessions(target):
            found.append(session)
            if not len(found) % SESSIONS_PER_TURN:
                await asyncio.sleep(0)  # the data path goes on meanwhile
        return found


def _chap_subject(target: str | None) -> str:
    return "discovery" if target is None else f"target {target}"


def _pair(name: str | None, secret: str | None) -> tuple[str, str] | None:
    """A CHAP name with its secret, or neither. Raises InvalidArgument."""
    if name is None and secret is None:
        return None
    if name is None or secret is None:
        raise InvalidArgument("a CHAP name and its secret come together")
    return name, secret
