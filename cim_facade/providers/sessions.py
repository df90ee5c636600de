"""Sessions of initiators and their connections: one of each, since a session has one connection here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cim_facade.paths import PORT_CLASS
from cim_facade.provider import End
from cim_facade.providers.shared import OK, ByInstanceId, Links
from cim_facade.providers.targets import find_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pywbem import CIMInstanceName

    from cim_facade.context import View
    from engine.api import SessionInfo

SESSION_CLASS = "MSISCSITARGET_iSCSISession"
CONNECTION_CLASS = "MSISCSITARGET_iSCSIConnection"


async def find_session(view: View, identity: str | None) -> SessionInfo | None:
    return None if identity is None else (await view.sessions()).get(identity)


class ISCSISession(ByInstanceId):
    class_name = SESSION_CLASS
    kind = "session"

    async def identities(self, view: View) -> list[str]:
        return list(await view.sessions())

    async def properties(self, view: View, identity: str) -> dict[str, Any] | None:
        session = await find_session(view, identity)
        if session is None:
            return None
        return {
            "ElementName": f"{session.initiator} at {session.target}",
            "Name": identity,
            "SystemName": (await view.pool_identity()).pool_id,
            "AggregationBehavior": 3,  # Combined In Parallel
            "Directionality": 2,  # Bi-Directional
            "SessionType": 3,  # Normal
            "TSIH": session.tsih,
            "EndPointName": session.initiator,
            "CurrentConnections": 1,
            "InitialR2T": session.initial_r2t,
            "ImmediateData": session.immediate_data,
            "MaxUnsolicitedFirstDataBurstLength": session.first_burst_bytes,
            "MaxDataBurstLength": session.max_burst_bytes,
            "DataSequenceInOrder": True,
            "DataPDUInOrder": True,
            "ErrorRecoveryLevel": 0,
            "MaxConnectionsPerSession": 1,
            **OK.enabled_properties(),
        }


class ISCSIConnection(ByInstanceId):
    class_name = CONNECTION_CLASS
    kind = "connection"

    async def identities(self, view: View) -> list[str]:
        return list(await view.sessions())

    async def properties(self, view: View, identity: str) -> dict[str, Any] | None:
        session = await find_session(view, identity)
        if session is None:
            return None
        return {
            "ElementName": f"{session.address} to {session.portal}",
            "Name": identity,
            "SystemName": (await view.pool_identity()).pool_id,
            "AggregationBehavior": 2,  # No Lower-Level Composition
            "Directionality": 2,  # Bi-Directional
            "MaxReceiveDataSegmentLength": session.max_recv_data_segment_bytes,
            "MaxTransmitDataSegmentLength": session.max_send_data_segment_bytes,
            "HeaderDigestMethod": 3 if session.header_digest else 2,  # CRC32C, No Digest
            "DataDigestMethod": 3 if session.data_digest else 2,
            "ReceivingMarkers": False,
            "SendingMarkers": False,
            "AuthenticationMethodUsed": 4 if session.chap_user else 2,  # CHAP, No Authentication
            **OK.enabled_properties(),
        }


class EndpointOfNetworkPipe(Links):
    """From each port to the sessions that came through it."""

    class_name = "MSISCSITARGET_EndpointOfNetworkPipe"
    ends = (End("Antecedent", "CIM_ProtocolEndpoint"), End("Dependent", "CIM_NetworkPipe"))

    async def follow(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        if path.classname != PORT_CLASS:
            return
        paths = await view.paths()
        key = paths.port_key(path.keybindings)
        if key is None or await find_port(view, key) is None:
            return
        for identity, session in (await view.sessions()).items():
            if (session.target, session.portal_group) == key:
                yield paths.by_id(SESSION_CLASS, "session", identity)

    async def trace(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        if path.classname != SESSION_CLASS:
            return
        paths = await view.paths()
        session = await find_session(view, paths.identity("session", path.keybindings))
        if session is None:
            return
        port = paths.port(session.target, session.portal_group)
        if await find_port(view, paths.port_key(port.keybindings)) is not None:
            yield port

    async def values(self, view: View, first: CIMInstanceName, second: CIMInstanceName) -> dict[str, Any]:
        return {"SourceOrSink": 3}  # Sink


class NetworkPipeComposition(Links):
    """From each session to its connection."""

    class_name = "MSISCSITARGET_NetworkPipeComposition"
    ends = (End("GroupComponent", "CIM_NetworkPipe"), End("PartComponent", "CIM_NetworkPipe"))

    async def follow(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        paths = await view.paths()
        identity = paths.identity("session", path.keybindings)
        if await find_session(view, identity) is not None:
            yield paths.by_id(CONNECTION_CLASS, "connection", identity)

    async def trace(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        paths = await view.paths()
        identity = paths.identity("connection", path.keybindings)
        if await find_session(view, identity) is not None:
            yield paths.by_id(SESSION_CLASS, "session", identity)


PROVIDERS = (ISCSISession(), ISCSIConnection(), EndpointOfNetworkPipe(), NetworkPipeComposition())
