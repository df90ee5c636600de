"""ExposePaths, HidePaths and their company in any order: refused calls change nothing, and what the views say that an
initiator sees is what the targets show it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from cim_facade.namespaces import STORAGE
from tests.support.cim_array import MIB, Array, array, registry

if TYPE_CHECKING:
    from pathlib import Path

    from pywbem import CIMInstance

CONTROLLERS = "MSISCSITARGET_ControllerConfigurationService"
HOSTS = [f"iqn.2026-11.org.example:host{number}" for number in range(3)]
STEPS = 80


async def shown_by_targets(front: Array) -> set[tuple[str, str, int, str]]:
    """Initiator, target, LUN, volume: by the engine's lists."""
    seen = set()
    for target in await front.api.target_list():
        for host in HOSTS:
            if target.initiators and host not in target.initiators:
                continue
            for lun in target.luns:
                if not lun.initiators or host in lun.initiators:
                    seen.add((host, target.name, lun.lun, lun.volume_id))
    return seen


async def instances(front: Array, class_name: str) -> list[CIMInstance]:
    provider = registry().of(STORAGE, class_name)
    assert provider is not None
    return [instance async for instance in provider.instances(front.view())]


async def shown_by_views(front: Array) -> set[tuple[str, str, int, str]]:
    """The same, by the associations."""
    subjects: dict[Any, set[str]] = {}
    for each in await instances(front, "MSISCSITARGET_AuthorizedSubject"):
        name = each["PrivilegedElement"].keybindings["InstanceID"].partition(":initiator:")[2]
        subjects.setdefault(each["Privilege"], set()).update(HOSTS if name == "any" else {name})
    admitted: dict[Any, set[str]] = {}
    for each in await instances(front, "MSISCSITARGET_AuthorizedTarget"):
        admitted.setdefault(each["TargetElement"], set()).update(subjects.get(each["Privilege"], ()))
    names = {each.path: each["Name"] for each in await instances(front, "MSISCSITARGET_SCSIProtocolController")}
    seen = set()
    for each in await instances(front, "MSISCSITARGET_ProtocolControllerForUnit"):
        view = each["Antecedent"]
        volume = each["Dependent"].keybindings["DeviceID"]
        seen |= {(host, names[view], int(each["DeviceNumber"], 16), volume) for host in admitted[view]}
    return seen


def some(chance: random.Random, values: list[Any], most: int) -> list[Any] | None:
    return (
        chance.sample(values, chance.randint(1, min(most, len(values)))) if values and chance.random() < 0.8 else None
    )


async def step(front: Array, chance: random.Random, names: list[str]) -> tuple[str, int]:
    """One call with parameters that often make sense."""
    views = [each.path for each in await instances(front, "MSISCSITARGET_SCSIProtocolController")]
    targets = [info.name for info in await front.api.target_list()]
    method = chance.choice(["ExposePaths"] * 4 + ["HidePaths"] * 3 + ["ExposeDefaultLUs", "HideDefaultLUs"])
    into = [chance.choice(views)] if views and chance.random() < (0.5 if "Expose" in method else 0.95) else None
    given: dict[str, Any] = {"ProtocolControllers": into}
    if chance.random() < 0.7 or into is None:
        given["LUNames"] = some(chance, names, 2 if "Expose" in method else 1)
    if "Expose" in method and given.get("LUNames"):
        given["DeviceAccesses"] = [2] * len(given["LUNames"])
        if chance.random() < 0.4:
            given["DeviceNumbers"] = [f"{chance.randrange(6):x}" for _ in given["LUNames"]]
    if "Default" not in method and (not given.get("LUNames") or into is None):
        given["InitiatorPortIDs"] = (
            [""] if chance.random() < 0.1 else some(chance, HOSTS, 2 if "Expose" in method else 1)
        )
    if into is None and targets and chance.random() < 0.4:
        given["TargetPortIDs"] = [f"{chance.choice(targets)},t,0x000{chance.randint(1, 2)}"]
    return method, await front.handled(CONTROLLERS, method, **given)


@pytest.mark.parametrize("seed", range(3))
async def test_any_order(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    async with array(tmp_path / "pool") as front:
        names = [(await front.api.volume_create(f"v{number}", MIB)).naa.upper() for number in range(3)]
        codes: dict[str, set[int]] = {}
        for _ in range(STEPS):
            before = await front.api.target_list(), await front.api.initiator_list()
            method, code = await step(front, chance, names)
            codes.setdefault(method, set()).add(code)
            if code != 0:
                assert (await front.api.target_list(), await front.api.initiator_list()) == before, (method, code)
            assert await shown_by_views(front) == await shown_by_targets(front), method
        assert 0 in codes["ExposePaths"] & codes["HidePaths"]
        assert len(set().union(*codes.values())) > 3
