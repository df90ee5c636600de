"""Objects of root/microsoft/windows/storage/sm: ObjectIds made and read, and what they stand for.

An ObjectId is ``twinvol:POOL:KIND:ID``, as the InstanceIDs of the other namespace (``paths``); KIND and ID:

==============  ========================================================================================
system, pool    the pool's own; ``capabilities`` likewise
volume          DeviceID of a volume or snapshot
job             the number of the engine's job
group           the GUID of a group
peer-system     ``NAME:FINGERPRINT`` of a peer, the first 16 digits; ``local`` for this pool
peer-volume     DeviceID of the target of a copy here
peer-remote     the name of the replica whose target, or source, is at a peer
peer-group      the GUID of a target group
==============  ========================================================================================

A peer's fingerprint is in its key so that a client who knows the peer by an older one is told that what it knows is out
of date (return code 40003), and does not send copies to somebody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pywbem import CIMInstanceName

from cim_facade import elements, synchronizations
from cim_facade.namespaces import STORAGE_MANAGEMENT
from cim_facade.paths import POOL_ID, device_id, read_device_id
from cim_facade.value_maps import SyncType

if TYPE_CHECKING:
    from cim_facade.context import View
    from cim_facade.elements import Element, Group
    from cim_facade.synchronizations import Copy
    from engine.api import PeerInfo

SYSTEM, POOL, VOLUME, JOB, GROUP, CAPABILITIES = "system", "pool", "volume", "job", "group", "capabilities"
PEER_SYSTEM, PEER_VOLUME, PEER_REMOTE, PEER_GROUP = "peer-system", "peer-volume", "peer-remote", "peer-group"

CLASSES = {
    SYSTEM: "MSFT_SMSystem",
    POOL: "MSFT_SMPool",
    VOLUME: "MSFT_SMStorageVolume",
    JOB: "MSFT_SMJob",
    GROUP: "MSFT_SMReplicationGroup",
    CAPABILITIES: "MSFT_SMReplicationCapabilities",
    PEER_SYSTEM: "MSFT_SMReplicaPeer",
    PEER_VOLUME: "MSFT_SMReplicaPeer",
    PEER_REMOTE: "MSFT_SMReplicaPeer",
    PEER_GROUP: "MSFT_SMReplicaPeer",
}

LOCAL = "local"
FINGERPRINT_DIGITS = 16


class PeerSystem(NamedTuple):
    """Where copies go: ``peer`` None is here. ``current``: the key has the fingerprint that the peer has now."""

    peer: PeerInfo | None
    current: bool = True


async def path(view: View, kind: str, identity: object) -> CIMInstanceName:
    object_id = (await view.paths()).instance_id(kind, identity)
    return CIMInstanceName(CLASSES[kind], {"ObjectId": object_id}, namespace=STORAGE_MANAGEMENT)


async def read(view: View, of: CIMInstanceName | None, *kinds: str) -> tuple[str, str] | None:
    """Kind and ID of a path, if it is of one of these kinds."""
    if of is None or len(of.keybindings) != 1:
        return None
    text = of.keybindings.get("ObjectId")
    paths = await view.paths()
    for kind in kinds:
        prefix = paths.instance_id(kind, "")
        if isinstance(text, str) and text.startswith(prefix) and of.classname.lower() == CLASSES[kind].lower():
            return kind, text[len(prefix) :]
    return None


# --- volumes ----------------------------------------------------------------------------------------------------


async def volume_path(view: View, element: Element) -> CIMInstanceName:
    guid = None if element.snapshot is None else element.snapshot.guid
    return await path(view, VOLUME, device_id(element.volume.volume_id, guid))


async def find_volume(view: View, of: CIMInstanceName | None) -> Element | None:
    found = await read(view, of, VOLUME)
    return None if found is None else await volume_with(view, found[1])


async def volume_with(view: View, text: str) -> Element | None:
    """By its DeviceID."""
    key = read_device_id(text)
    if key is None or device_id(*key) != text:
        return None
    return await elements.by_key(view, key.volume_id, key.snapshot_guid)


async def source_volume_path(view: View, copy: Copy) -> CIMInstanceName:
    return await path(view, VOLUME, device_id(copy.source, copy.source_guid))


def target_device_id(copy: Copy) -> str:
    """Of a target that is here."""
    if copy.sync_type is SyncType.SNAPSHOT:
        return device_id(copy.source, copy.target)
    return copy.target


# --- peers ------------------------------------------------------------------------------------------------------


def peer_key(peer: PeerInfo) -> str:
    return f"{peer.name}:{peer.fingerprint[:FINGERPRINT_DIGITS]}"


async def target_peer_path(view: View, copy: Copy) -> CIMInstanceName:
    """Of the replica peer that a copy's target is."""
    if copy.is_remote:
        return await path(view, PEER_REMOTE, copy.replica)
    return await path(view, PEER_VOLUME, target_device_id(copy))


async def peer_system(view: View, text: str) -> PeerSystem | None:
    """By the ID of a ``peer-system``."""
    if text == LOCAL:
        return PeerSystem(None)
    name = text.partition(":")[0]
    for peer in await elements.peers(view):
        if peer.name == name:
            return PeerSystem(peer, current=peer_key(peer) == text)
    return None


async def copy_of_peer(view: View, kind: str, text: str) -> Copy | None:
    """The copy whose target a replica peer is."""
    if kind == PEER_REMOTE:
        found = [copy for copy in await synchronizations.mirrors(view) if copy.is_remote and copy.replica == text]
        return found[0] if found else None
    element = await volume_with(view, text)
    if element is None:
        return None
    if element.snapshot is not None:
        return synchronizations.of_snapshot(element.volume, element.snapshot)
    return await synchronizations.copy_into(view, element.identity)


# --- pools and groups -------------------------------------------------------------------------------------------


async def is_pool(view: View, of: CIMInstanceName) -> bool:
    return await read(view, of, POOL) == (POOL, POOL_ID)


async def find_group(view: View, of: CIMInstanceName | None) -> Group | None:
    found = await read(view, of, GROUP)
    if found is None:
        return None
    return next((group for group in await elements.groups(view) if group.guid == found[1]), None)
