"""What capabilities say of actions is what methods do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cim_facade.methods.operating import OPERATIONS
from cim_facade.namespaces import STORAGE
from cim_facade.value_maps import NEW_OPERATIONS
from tests.support.cim_array import CONFIGURATION, REPLICATION, array, classes, registry

if TYPE_CHECKING:
    from pathlib import Path

NOTHING = ("not_supported", "refused")
"""Handlers of methods that answer Not Supported whatever they are given."""


def is_done(service: str, method: str) -> bool:
    handler = registry().method(classes(), STORAGE, service, method)
    return handler is not None and handler.__name__ not in NOTHING


@pytest.mark.parametrize("name", ["SupportedAsynchronousActions", "SupportedSynchronousActions"])
async def test_actions_of_the_replication_service(tmp_path: Path, name: str) -> None:
    """Each number is that of a method."""
    async with array(tmp_path / "pool") as front:
        (found,) = await front.all("MSISCSITARGET_ReplicationServiceCapabilities")
    declared = classes().get(STORAGE, found.classname).properties[name].qualifiers
    methods = dict(zip(map(int, declared["ValueMap"].value), declared["Values"].value, strict=True))
    done = {number for number, method in methods.items() if is_done(REPLICATION, method)}
    assert set(found[name]) <= done
    if name == "SupportedSynchronousActions":
        assert set(found[name]) == done


async def test_what_copy_services_say(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        (copies,) = await front.all("MSISCSITARGET_StorageReplicationCapabilities")
        (volumes,) = await front.all("MSISCSITARGET_StorageConfigurationCapabilities")
    assert copies["SupportedModifyOperations"] == [
        old for old, new in NEW_OPERATIONS.items() if any(new in done for done in OPERATIONS.values())
    ]
    assert volumes["SupportedCopyTypes"] == [2, 3, 4, 5]
    pools = {2: "CreateOrModifyStoragePool", 3: "DeleteStoragePool", 11: "ScsiScan", 14: "RequestUsageChange"}
    for number, method in pools.items():
        assert not is_done(CONFIGURATION, method)
        assert number not in volumes["SupportedSynchronousActions"]
