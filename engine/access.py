"""In which asymmetric access state each target offers each disk.

Decided here, kept in the catalogue, applied by ``Exports``. The ports of a target are one target port group, with a
number of its own in the pool. A *device* is a disk as initiators know it, by the volume id or snapshot GUID that its
identity follows from; a state belongs to a target and a device. Changes, an initiator's (explicit) and the operator's
(implicit), are made one after another, and each is durable before it takes effect.

Invariants:

* A standby path of a replica, which has its source's identity, is never active: of two volumes under one identity
  only one takes reads and writes.
* A device that is withheld is unavailable everywhere, whatever is asked for, until it is released (REPLICATION
  section 6: a volume whose replica may have been promoted). That is not kept: whoever withholds does so at each start,
  before the device is shown.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from engine.access_state import AccessState
from engine.errors import InvalidState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from engine.catalog import LunRow, TargetRow
    from engine.exports import Exports
    from engine.pool import Pool

log = logging.getLogger(__name__)

Place = tuple[str, str]
"""A target's name and a device's id."""


class AccessStates:
    """See the module. ``targets``: those of the pool, as they are now."""

    def __init__(self, pool: Pool, exports: Exports, targets: Callable[[], Iterable[TargetRow]]) -> None:
        self._pool = pool
        self._exports = exports
        self._targets = targets
        self._states: dict[Place, AccessState] = {}
        self._withheld: dict[str, str] = {}
        self._lock = asyncio.Lock()

    async def restore(self) -> None:
        """Called before any device is shown."""
        self._states = await self._pool.catalog.access_states()
        self._exports.keep_access_states(self._asked)

    def of(self, lun: LunRow) -> AccessState:
        """The state in which a LUN is offered."""
        if lun.device_id in self._withheld:
            return AccessState.UNAVAILABLE
        return self._states.get((lun.target, lun.device_id), lun.initial_state)

    def reasons(self) -> list[str]:
        """One line for each device that is withheld."""
        return [f"{device_id} is withheld: {why}" for device_id, why in self._withheld.items()]

    async def set(self, luns: Sequence[LunRow], state: AccessState) -> None:
        """The operator's change. Raises InvalidState: a LUN cannot be in that state."""
        async with self._lock:
            shown = {(each.target, each.device_id) for row in self._targets() for each in row.luns}
            still = [lun for lun in luns if (lun.target, lun.device_id) in shown]  # one may have gone meanwhile
            await self._change([(lun, state) for lun in still])

    async def activate(self, luns: Sequence[LunRow]) -> None:
        """Make these LUNs the only active ways to their disks: in one step, so that no host sees two or none for long.

        Raises InvalidState: one is the standby path of a replica.
        """
        async with self._lock:
            chosen = {(lun.target, lun.device_id) for lun in luns}
            devices = {lun.device_id for lun in luns}
            changes = []
            for lun in (lun for row in self._targets() for lun in row.luns if lun.device_id in devices):
                if (lun.target, lun.device_id) in chosen:
                    changes.append((lun, AccessState.ACTIVE_OPTIMIZED))
                elif self._states.get((lun.target, lun.device_id), lun.initial_state).is_active:
                    changes.append((lun, AccessState.STANDBY))
            await self._change(changes)

    async def withhold(self, device_id: str, why: str) -> None:
        """Offer a device as unavailable until ``release``. Returns when nothing writes to it any more."""
        async with self._lock:
            self._withheld[device_id] = why
            await self._reapply(device_id)

    async def release(self, device_id: str) -> None:
        """Offer it again in the states that it has."""
        async with self._lock:
            self._withheld.pop(device_id, None)
            await self._reapply(device_id)

    async def renewed(self, device_id: str) -> None:
        """The LUNs of a device are others than before, and the catalogue has forgotten the states that they had."""
        async with self._lock:
            for place in [place for place in self._states if place[1] == device_id]:
                del self._states[place]
            await self._reapply(device_id)

    async def forget(self, lun: LunRow) -> None:
        """The target shows the device no longer."""
        async with self._lock:
            if self._states.pop((lun.target, lun.device_id), None) is not None:
                await self._pool.catalog.forget_access_state(lun.target, lun.device_id)

    # --- inside -----------------------------------------------------------------------------------------------

    async def _asked(
        self, device_id: str, states: Mapping[int, AccessState], apply: Callable[[], Awaitable[None]]
    ) -> None:
        """An initiator's change, by number of the target port group. Raises InvalidState: it cannot be."""
        async with self._lock:
            if device_id in self._withheld:
                raise InvalidState(f"device {device_id}", f"withheld: {self._withheld[device_id]}", "its release")
            await self._save(
                [
                    (lun, states[row.port_group])
                    for row in self._targets()
                    for lun in row.luns
                    if row.port_group in states and lun.device_id == device_id
                ]
            )
            await apply()

    async def _change(self, changes: Sequence[tuple[LunRow, AccessState]]) -> None:
        await self._save(changes)
        for device_id in {lun.device_id for lun, _ in changes}:
            await self._reapply(device_id)

    async def _save(self, changes: Sequence[tuple[LunRow, AccessState]]) -> None:
        for lun, state in changes:
            if lun.standby_of is not None and state.is_active:
                raise InvalidState(
                    f"LUN {lun.lun} of target {lun.target}",
                    "the standby path of a replica, with the identity of its source",
                    "a failover to become active",
                )
        states = {(lun.target, lun.device_id): state for lun, state in changes}
        await self._pool.catalog.set_access_states(states)
        self._states.update(states)
        for (target, device_id), state in states.items():
            log.info("target %s offers %s as %s", target, device_id, state.label)

    async def _reapply(self, device_id: str) -> None:
        numbers = {
            row.port_group: self.of(lun) for row in self._targets() for lun in row.luns if lun.device_id == device_id
        }
        await self._exports.set_access_states(device_id, numbers)
