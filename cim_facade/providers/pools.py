"""The two pools: what volumes are made of, and the file system of the host that this comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cim_facade.paths import POOL_CLASS, POOL_ID, PRIMORDIAL_ID, VOLUME_CLASS
from cim_facade.provider import End
from cim_facade.providers.shared import OK, ByInstanceId, Links, State
from cim_facade.providers.volumes import disk_paths, find_disk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pywbem import CIMInstanceName

    from cim_facade.context import View

_STATES = {
    "ok": OK,
    "low": State(3, 10, "Degraded", reason="Little space is left"),
    "full": State(6, 20, "Error", reason="Writes that need new space are refused"),
}


class StoragePool(ByInstanceId):
    class_name = POOL_CLASS
    kind = "pool"

    async def identities(self, view: View) -> list[str]:
        return [POOL_ID, PRIMORDIAL_ID]

    async def properties(self, view: View, identity: str) -> dict[str, Any] | None:
        if identity not in (POOL_ID, PRIMORDIAL_ID):
            return None
        space, pool = await view.pool_space(), await view.pool_identity()
        properties = {"PoolID": identity, "Name": identity, "SystemName": pool.pool_id, "ClientSettableUsage": []}
        if identity == PRIMORDIAL_ID:
            return (
                properties
                | OK.properties()
                | {
                    "ElementName": "Host file system",
                    "Primordial": True,
                    "TotalManagedSpace": space.host_total_bytes,
                    "RemainingManagedSpace": space.host_free_bytes,
                    "Usage": 3,  # Reserved for ComputerSystem
                }
            )
        return (
            properties
            | _STATES[space.state].properties()
            | {
                "ElementName": pool.path.rstrip("/").rpartition("/")[2],
                "Primordial": False,
                "TotalManagedSpace": space.used_bytes + space.left_bytes,
                "RemainingManagedSpace": space.left_bytes,
                "LowSpaceWarningThreshold": 100 - space.warn_percent,
                "Usage": 2,  # Unrestricted
            }
        )


class AllocatedFromStoragePool(Links):
    """From the primordial pool to the other, and from that to all volumes and snapshots."""

    class_name = "MSISCSITARGET_AllocatedFromStoragePool"
    ends = (End("Antecedent", "CIM_StoragePool"), End("Dependent", "CIM_LogicalElement"))

    async def follow(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        paths = await view.paths()
        pool = paths.identity("pool", path.keybindings)
        if pool == PRIMORDIAL_ID:
            yield paths.pool()
        elif pool == POOL_ID:
            await view.all_allocated()  # all at once
            async for found in disk_paths(view):
                yield found

    async def trace(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        paths = await view.paths()
        if path == paths.pool():
            yield paths.pool(PRIMORDIAL_ID)
        elif path.classname == VOLUME_CLASS and await find_disk(view, path.keybindings) is not None:
            yield paths.pool()

    async def values(self, view: View, first: CIMInstanceName, second: CIMInstanceName) -> dict[str, Any]:
        if second.classname == POOL_CLASS:
            return {"SpaceConsumed": (await view.pool_space()).used_bytes}
        key = (await view.paths()).volume_key(second.keybindings)
        assert key is not None, "it was found by this key"
        if key.snapshot_guid is None:
            return {"SpaceConsumed": await view.allocated(key.volume_id)}
        snapshot = await view.snapshot(key.volume_id, key.snapshot_guid)
        return {"SpaceConsumed": 0 if snapshot is None else snapshot.unique_bytes}


PROVIDERS = (StoragePool(), AllocatedFromStoragePool())
