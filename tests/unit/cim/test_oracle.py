"""The operations against pywbem's mock with the same classes and instances: the same answers, over the wire.

Where the two differ on purpose, or where the mock departs from DSP0200, ``test_operations.py`` says what is right here.
"""

import asyncio
import itertools

import pytest
from pywbem import CIMClassName, CIMError, CIMInstance, CIMInstanceName

from cim_facade import namespaces, repository
from tests.support import cim

WORLD = cim.world()
MOCK = cim.mock(WORLD)
CLASS_NAMES = sorted(each.classname for each in cim.CLASSES.all(cim.NS))
PATHS = [each.path for each in WORLD]


def plain(answer):
    """An answer without order and hosts, which are each server's own, and with NULL where the mock leaves out."""
    if isinstance(answer, list):
        return sorted((plain(each) for each in answer), key=repr)
    if isinstance(answer, tuple):
        return tuple(plain(each) for each in answer)
    if isinstance(answer, CIMInstance):
        values = {
            name.lower(): (p.type, plain(p.value)) for name, p in answer.properties.items() if p.value is not None
        }
        return answer.classname, plain(answer.path), sorted(values.items(), key=repr)
    if isinstance(answer, CIMInstanceName | CIMClassName):
        path = answer.copy()
        path.host = None
        return path.to_wbem_uri(format="canonical")
    return answer


async def both(operation, *arguments, **options):
    """What the server and the mock answer: results, or the code of the error."""

    def ask(connection):
        try:
            return plain(getattr(connection, operation)(*arguments, **options))
        except CIMError as error:
            return error.status_code

    async with cim.served(cim.facade([each.copy() for each in WORLD])) as (address, _):
        here = await asyncio.to_thread(ask, cim.client(address))
    return here, ask(MOCK)


@pytest.mark.parametrize("name", [*CLASS_NAMES, "t_DISK", "T_None"])
async def test_instances_of_a_class(name):
    for operation, options in (
        ("EnumerateInstanceNames", {}),
        ("EnumerateInstances", {}),
        ("EnumerateInstances", {"DeepInheritance": False}),
        ("EnumerateInstances", {"PropertyList": ["size", "Nothing", "ElementName"]}),
        ("EnumerateInstances", {"PropertyList": []}),
    ):
        here, there = await both(operation, name, **options)
        assert here == there, (operation, options)


@pytest.mark.parametrize("path", PATHS, ids=str)
async def test_an_instance_and_what_is_around_it(path):
    for operation, options in (
        ("GetInstance", {}),
        ("GetInstance", {"PropertyList": ["ElementName", "Bay"]}),
        ("References", {}),
        ("ReferenceNames", {"Role": "antecedent"}),
        ("Associators", {"PropertyList": ["ElementName"]}),
        ("AssociatorNames", {"ResultRole": "Dependent"}),
    ):
        here, there = await both(operation, path.copy(), **options)
        assert here == there, (operation, options)


FILTERS = list(
    itertools.product(
        (None, "T_Dependency", "T_Copy", "T_SystemDevice"),
        (None, "T_Element", "T_Disk", "T_Tape", "T_System"),
        (None, "Antecedent", "dependent", "Nothing"),
        (None, "Antecedent", "Dependent"),
    )
)


async def test_all_filters_of_associations():
    disk = PATHS[4]

    def ask(connection):
        found = []
        for assoc_class, result_class, role, result_role in FILTERS:
            names = connection.AssociatorNames(
                disk.copy(), AssocClass=assoc_class, ResultClass=result_class, Role=role, ResultRole=result_role
            )
            found.append(plain(names))
            found.append(plain(connection.ReferenceNames(disk.copy(), ResultClass=assoc_class, Role=role)))
        return found

    async with cim.served(cim.facade()) as (address, _):
        here = await asyncio.to_thread(ask, cim.client(address))
    assert here == ask(MOCK)


@pytest.mark.parametrize("name", [*CLASS_NAMES, "T_None", None])
async def test_names_of_classes(name):
    for deep in (False, True, None):
        here, there = await both("EnumerateClassNames", ClassName=name, DeepInheritance=deep)
        assert here == there


@pytest.mark.parametrize("local", [True, False])
async def test_classes(local):
    """Class-level qualifiers are left out: the mock passes on none of them, not even Association."""
    options = {"LocalOnly": local, "IncludeQualifiers": False, "IncludeClassOrigin": True}

    def ask(connection):
        return [connection.GetClass(name, **options) for name in CLASS_NAMES]

    async with cim.served(cim.facade()) as (address, _):
        here = await asyncio.to_thread(ask, cim.client(address))
    for mine, other in zip(here, ask(MOCK), strict=True):
        for members in ("properties", "methods"):
            ours = {name: (each.class_origin, each.name) for name, each in getattr(mine, members).items()}
            theirs = {name: (each.class_origin, each.name) for name, each in getattr(other, members).items()}
            if local:  # the mock takes what a class overrides for inherited
                ours = {name: each for name, each in ours.items() if each[0] == mine.classname}
            assert ours == theirs


async def test_qualifiers():
    here, there = await both("EnumerateQualifiers")
    assert {each.name: (each.type, each.value) for each in here} == {
        each.name: (each.type, each.value) for each in there
    }


async def test_pulled_enumerations():
    def ask(connection):
        found = []
        for most in (1, 2, 100):
            found.append(plain(list(connection.IterEnumerateInstances("T_Element", MaxObjectCount=most))))
            found.append(plain(list(connection.IterEnumerateInstancePaths("T_Device", MaxObjectCount=most))))
            found.append(plain(list(connection.IterAssociatorInstances(PATHS[4].copy(), MaxObjectCount=most))))
            found.append(plain(list(connection.IterAssociatorInstancePaths(PATHS[4].copy(), MaxObjectCount=most))))
            found.append(plain(list(connection.IterReferenceInstances(PATHS[4].copy(), MaxObjectCount=most))))
            found.append(plain(list(connection.IterReferenceInstancePaths(PATHS[4].copy(), MaxObjectCount=most))))
        return found

    async with cim.served(cim.facade()) as (address, _):
        here = await asyncio.to_thread(ask, cim.client(address, use_pull_operations=True))
    assert here == ask(MOCK)


def test_the_products_classes_are_legal_to_pywbems_mock_too():
    """Each namespace compiles there, and every class has the same members from the same origins."""
    classes = repository.load()
    declared = repository.collect(repository.schema_sources())
    for namespace, files in namespaces.SCHEMA.items():
        connection = cim.pywbem_mock.FakedWBEMConnection(default_namespace=namespace)
        connection.compile_mof_string(repository.schema_sources()["qualifiers"], namespace=namespace)
        connection.add_cimobjects([each for name in files for each in declared.classes[name]], namespace=namespace)
        for mine in classes.all(namespace):
            other = connection.GetClass(mine.classname, LocalOnly=False, IncludeClassOrigin=True)
            for members in ("properties", "methods"):
                ours, theirs = getattr(mine, members), getattr(other, members)
                assert {n.lower(): e.class_origin for n, e in ours.items()} == {
                    n.lower(): e.class_origin for n, e in theirs.items()
                }, mine.classname
            keys = {n for n, e in mine.properties.items() if "Key" in e.qualifiers}
            assert keys == {n for n, e in other.properties.items() if "Key" in e.qualifiers}
