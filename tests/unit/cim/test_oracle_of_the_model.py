"""The product's own classes and instances in pywbem's mock, against the facade over HTTPS: the same answers.

``test_oracle.py`` has the operations in all their options, over a small world; this is the whole model, over a pool
with one of everything. What leads to interop is left out: the mock ends with a KeyError at another namespace.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import pywbem_mock
from pywbem import CIMError, CIMInstance

from cim_facade import repository
from cim_facade.namespaces import INTEROP, SCHEMA, STORAGE, STORAGE_MANAGEMENT
from cim_facade.registry import whole_registry
from tests.support.cim_array import behind_the_facade, classes
from tests.support.cim_model import Model
from tests.support.engine import opened
from tests.unit.cim.test_model import befriend, furnish
from tests.unit.cim.test_oracle import plain

if TYPE_CHECKING:
    from pathlib import Path

    from pywbem import CIMInstanceName, WBEMConnection

AROUND = {
    "MSISCSITARGET_ReplicationService",
    "MSISCSITARGET_SCSIProtocolController",
    "MSISCSITARGET_StorageVolume",
    "MSFT_SMStorageVolume",
    "MSFT_SMReplicationGroup",
}
"""Classes of which one instance's neighbours are asked for: the mock goes through everything for each."""

MOVING = {"ElapsedTime", "RemainingManagedSpace", "TotalManagedSpace", "SpaceConsumed", "RPO", "PercentComplete"}
"""Properties that are other ones a moment later."""


def mock_of(namespace: str, instances: list[CIMInstance]) -> pywbem_mock.FakedWBEMConnection:
    mock = pywbem_mock.FakedWBEMConnection(default_namespace=namespace)
    sources = repository.schema_sources()
    mock.compile_mof_string(sources["qualifiers"], namespace=namespace)
    declared = repository.collect(sources)
    mock.add_cimobjects([each for name in SCHEMA[namespace] for each in declared.classes[name]], namespace=namespace)
    mock.add_cimobjects(instances, namespace=namespace)
    return mock


def stays(instance: CIMInstance) -> bool:
    """Whether all that it refers to is in its own namespace."""
    return f"{INTEROP}:" not in str(plain(instance))


def still(answer: Any) -> Any:
    """``plain``, without what moves, and what leads to interop."""
    if isinstance(answer, list):
        found = [still(each) for each in answer]
        return sorted((each for each in found if f"{INTEROP}:" not in str(each)), key=repr)
    if isinstance(answer, CIMInstance):
        copy = answer.copy()
        for name in MOVING & set(copy.properties):
            del copy.properties[name]
        return plain(copy)
    return plain(answer)


def answers(client: WBEMConnection, paths: list[CIMInstanceName]) -> list[Any]:
    """What a client hears of all classes, and of what is around one instance of each."""

    def asked(operation: str, *arguments: Any, **options: Any) -> Any:
        try:
            return still(getattr(client, operation)(*arguments, **options))
        except CIMError as error:
            return error.status_code

    found = []
    for path in paths:
        names = {"classname": path.classname, "of": path.to_wbem_uri(format="canonical")}
        found.append([names, asked("EnumerateInstances", path.classname)])
        found.append([names, asked("GetInstance", path.copy())])
        if path.classname in AROUND:
            found.append([names, asked("References", path.copy())])
            found.append([names, asked("AssociatorNames", path.copy())])
    return found


@pytest.mark.parametrize("namespace", [STORAGE, STORAGE_MANAGEMENT])
async def test_the_whole_model_as_the_mock_has_it(tmp_path: Path, namespace: str) -> None:
    async with (
        opened(tmp_path / "pool", peer="127.0.0.1:0") as engine,
        opened(tmp_path / "other", peer="127.0.0.1:0") as other,
        behind_the_facade(engine) as made,
    ):
        await furnish(engine)
        await befriend(engine, other)
        everything = await Model(engine.api, classes(), whole_registry(), namespace).everything()
        instances = [each for each in everything if stays(each)]
        for each in instances:
            classes().shape(namespace, each.classname).complete(each)
        one_of_each = list({each.classname: each.path for each in instances}.values())
        assert len(one_of_each) > 10
        made.client.default_namespace = namespace
        here = await asyncio.to_thread(answers, made.client, one_of_each)
        there = await asyncio.to_thread(lambda: answers(mock_of(namespace, instances), one_of_each))
        for ours, mocks in zip(here, there, strict=True):
            assert ours == mocks
