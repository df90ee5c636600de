"""Answers are what pywbem's own ``tocimxml`` writes, and what is written is read again as it was."""

import re
import string
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st
from pywbem import (
    CIMDateTime,
    CIMInstance,
    CIMInstanceName,
    CIMParameter,
    CIMProperty,
    Real32,
    Real64,
    Sint8,
    Sint64,
    Uint8,
    Uint64,
)

from cim_facade import answers, cimxml

names = st.text(string.ascii_letters + "_", min_size=1, max_size=8)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="￾￿") | st.sampled_from("\n\t<&>\"'"))
namespaces = st.lists(names, min_size=1, max_size=3).map("/".join)

INTERVALS = st.timedeltas(timedelta(0), timedelta(days=99_999_999))

scalars = st.one_of(
    st.tuples(st.just("string"), texts),
    st.tuples(st.just("boolean"), st.booleans()),
    st.tuples(st.just("uint8"), st.integers(0, 255).map(Uint8)),
    st.tuples(st.just("sint8"), st.integers(-128, 127).map(Sint8)),
    st.tuples(st.just("uint64"), st.integers(0, 2**64 - 1).map(Uint64)),
    st.tuples(st.just("sint64"), st.integers(-(2**63), 2**63 - 1).map(Sint64)),
    st.tuples(st.just("real32"), st.floats(width=32).map(Real32)),
    st.tuples(st.just("real64"), st.floats().map(Real64)),
    st.tuples(st.just("datetime"), st.datetimes().map(CIMDateTime)),
    st.tuples(st.just("datetime"), INTERVALS.map(CIMDateTime)),
)


def keyed(values):
    keys = st.dictionaries(names, values, min_size=1, max_size=3)
    return st.builds(CIMInstanceName, names, keys.map(unique), namespace=st.none() | namespaces)


def unique(found):
    """Names are equal in any case."""
    return {name.lower(): each for name, each in found.items()}


key_values = st.one_of(texts, st.booleans(), st.integers(0, 255).map(Uint8), st.integers(-(2**63), 2**63 - 1))
paths = st.recursive(keyed(key_values), lambda inner: keyed(key_values | inner), max_leaves=4)


@st.composite
def properties(draw, instances):
    name = draw(names)
    kind = draw(st.sampled_from(["scalar", "null", "array", "reference", "embedded"]))
    if kind == "reference":
        return CIMProperty(name, draw(paths | st.none()), type="reference")
    if kind == "embedded":
        inner = draw(instances)
        return CIMProperty(name, inner, embedded_object="instance")
    cim_type, value = draw(scalars)
    if kind == "array":
        same = scalars.filter(lambda pair: pair[0] == cim_type).map(lambda pair: pair[1])
        return CIMProperty(name, draw(st.lists(same | st.none(), max_size=3)), type=cim_type, is_array=True)
    return CIMProperty(name, None if kind == "null" else value, type=cim_type)


def of_properties(instances):
    made = st.lists(properties(instances), max_size=5)
    return st.builds(lambda name, found: CIMInstance(name, {each.name.lower(): each for each in found}), names, made)


leaves = st.builds(CIMInstance, names)
instances = st.recursive(leaves, of_properties, max_leaves=3)


def same(one, other):
    """Whether two documents have the same elements, in embedded instances too."""

    def shape(element):
        text = element.text
        if text.startswith("<INSTANCE "):
            text = shape(cimxml.tree(text.encode()))
        return element.name, element.attributes, text, [shape(child) for child in element.children]

    return shape(cimxml.tree(one.encode())) == shape(cimxml.tree(other.encode()))


@given(instances)
def test_instances_are_written_as_pywbem_writes_them(instance):
    assert same(answers.instance(instance), instance.tocimxmlstr())


@given(paths)
def test_paths_are_written_as_pywbem_writes_them(path):
    bare = path.copy()
    bare.namespace = None
    assert answers.instance_name(path) == bare.tocimxmlstr()
    whole = path.copy()
    whole.namespace, whole.host = "root/a", "host:5989"
    assert answers.instance_path(whole, "host:5989") == whole.tocimxmlstr()


@given(names, properties(instances))
def test_output_parameters_are_written_as_pywbem_writes_them(name, value):
    made = CIMParameter(
        name, value.type, value=value.value, is_array=value.is_array, embedded_object=value.embedded_object
    )
    written = answers.method_result(0, "uint32", [made])
    head = '<RETURNVALUE PARAMTYPE="uint32"><VALUE>0</VALUE></RETURNVALUE>'
    assert written.startswith(head)
    assert same(written.removeprefix(head), made.tocimxmlstr(as_value=True))


@given(instances)
def test_an_instance_is_read_as_it_was_written(instance):
    read = cimxml.instance(cimxml.tree(answers.instance(instance).encode()))
    assert answers.instance(read) == answers.instance(instance)


@given(paths)
def test_a_path_is_read_as_it_was_written(path):
    assert cimxml.instance_name(cimxml.tree(answers.instance_name(path).encode())).keybindings == path.keybindings


@given(st.text())
def test_any_text_arrives(text):
    """A carriage return stays one; what XML cannot carry is replaced, never sent."""
    wanted = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)
    written = answers.instance(CIMInstance("C", {"P": CIMProperty("P", text)}))
    assert cimxml.instance(cimxml.tree(written.encode()))["P"] == wanted
