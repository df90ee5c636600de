"""Peers: the pools that copies can go to, as systems, and the access points by which a client names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cim_facade import elements
from cim_facade.namespaces import STORAGE
from cim_facade.provider import Provider
from cim_facade.providers.shared import OK, State
from cim_facade.providers.synchronizations import point_in_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pywbem import CIMInstance

    from cim_facade.context import View
    from cim_facade.provider import Keys
    from engine.api import PeerInfo

NAMED_BY_UUID = "Other"


def _state(peer: PeerInfo) -> State:
    if elements.is_reachable(peer):
        return OK
    return State(13, 15, "Lost Comm", enabled=6, reason=peer.reason or None)


class PeerSystem(Provider):
    """A peer, as far as this pool knows it: its name here, and where it is."""

    class_name = elements.PEER_SYSTEM_CLASS

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        for peer in await elements.peers(view):
            path = await elements.peer_system_path(view, peer.name)
            yield view.make(
                STORAGE,
                self.class_name,
                **path.keybindings,
                NameFormat=NAMED_BY_UUID,
                ElementName=peer.name,
                Description=f"another twinvol, trusted since its pairing by the certificate {peer.fingerprint}",
                Dedicated=[3, 15],  # Storage, Block Server
                OtherIdentifyingInfo=[peer.fingerprint],
                IdentifyingDescriptions=["SHA-256 of its certificate"],
                InstallDate=point_in_time(peer.added_at),
                **_state(peer).enabled_properties(),
            )

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        async for instance in self.instances(view):
            if instance.path.keybindings == keys:
                return instance
        return None


class RemoteServiceAccessPoint(Provider):
    """Stands for a peer: what TargetAccessPoint refers to."""

    class_name = elements.ACCESS_POINT_CLASS

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        for peer in await elements.peers(view):
            scope = (await view.paths()).scope(self.class_name)
            yield view.make(
                STORAGE,
                self.class_name,
                **scope,
                Name=peer.name,
                ElementName=peer.name,
                AccessInfo=peer.address,
                InfoFormat=2 if peer.address is not None else None,
                EnabledState=_state(peer).enabled,
            )

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        name = (await view.paths()).scoped_key(self.class_name, "Name", keys)
        async for instance in self.instances(view):
            if instance["Name"] == name:
                return instance
        return None


PROVIDERS: tuple[Provider, ...] = (PeerSystem(), RemoteServiceAccessPoint())
