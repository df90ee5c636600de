"""Methods of the interop namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pywbem import CIM_ERR_SERVER_LIMITS_EXCEEDED, CIMError

from cim_facade.providers.interop import CONFORMING

if TYPE_CHECKING:
    from pywbem import CIMInstanceName

    from cim_facade.context import View
    from cim_facade.provider import MethodHandler, Parameters

MAX_CENTRAL = 10_000
"""Paths in one answer, which is made as a whole. The association, which is sent as it is found, has no such limit."""


async def get_central_instances(view: View, path: CIMInstanceName, params: Parameters) -> tuple[int, dict[str, Any]]:
    """What conforms to the profile (DSP1033 1.1): the same as at the other ends of CIM_ElementConformsToProfile."""
    found: list[CIMInstanceName] = []
    for association in CONFORMING:
        async for each in association.references(view, path, association.ends[0].role):
            found.append(each[association.ends[1].role])
            if len(found) > MAX_CENTRAL:
                raise CIMError(CIM_ERR_SERVER_LIMITS_EXCEEDED, "too many; follow CIM_ElementConformsToProfile")
            await view.breathe()
    return 0, {"CentralInstances": found}


METHODS: dict[tuple[str, str], MethodHandler] = {
    ("CIM_RegisteredProfile", "GetCentralInstances"): get_central_instances,
}
