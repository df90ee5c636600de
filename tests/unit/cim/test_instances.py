"""Making instances that fit their class."""

import pytest
from pywbem import CIMInstanceName, Uint16

from cim_facade import namespaces, repository

NS = namespaces.STORAGE
CLASSES = repository.load()


def test_values_have_the_types_of_the_class_and_the_path_has_all_keys():
    shape = CLASSES.shape(NS, "CIM_ComputerSystem")
    made = shape.make(NS, {"CreationClassName": "CIM_ComputerSystem", "Name": "a", "OperationalStatus": [2, 5]})
    assert made["OperationalStatus"] == [2, 5]
    assert type(made["OperationalStatus"][0]) is Uint16
    assert made.path.to_wbem_uri() == f'/{NS}:CIM_ComputerSystem.CreationClassName="CIM_ComputerSystem",Name="a"'
    assert shape.path(NS, {"Name": "a", "CreationClassName": "CIM_ComputerSystem"}) == made.path


def test_what_nothing_is_said_of_has_the_default_or_is_null():
    shape = CLASSES.shape(NS, "CIM_ComputerSystem")
    made = shape.make(NS, {"CreationClassName": "CIM_ComputerSystem", "Name": "a"})
    shape.complete(made)
    assert list(made.properties.keys()) != []
    assert {name.lower() for name in made.properties} == {
        name.lower() for name in CLASSES.get(NS, "CIM_ComputerSystem").properties
    }
    assert made["EnabledState"] == 5
    assert made["Caption"] is None
    assert made.properties["OperationalStatus"].is_array


def test_references_are_values():
    system = CIMInstanceName("CIM_ComputerSystem", {"CreationClassName": "x", "Name": "y"}, namespace=NS)
    service = CIMInstanceName("CIM_Service", {"Name": "y"}, namespace=NS)
    made = CLASSES.shape(NS, "CIM_HostedService").make(NS, {"Antecedent": system, "Dependent": service})
    assert made.path.keybindings["Antecedent"] == system


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"Nothing": 1}, AssertionError),
        ({"Name": "a"}, KeyError),
        ({"CreationClassName": "x", "Name": "y", "EnabledState": 65536}, ValueError),
    ],
)
def test_a_providers_mistakes_show(values, error):
    with pytest.raises(error):
        CLASSES.shape(NS, "CIM_ComputerSystem").make(NS, values)
