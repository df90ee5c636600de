"""The class repository: resolution as DSP0004 says, and the cache."""

import pickle

import pytest

from cim_facade import namespaces, repository
from cim_facade.repository import ClassRepository, SchemaError, compile_schema

QUALIFIERS = """
Qualifier Key : boolean = false, Scope(property, reference), Flavor(DisableOverride, ToSubclass);
Qualifier Abstract : boolean = false, Scope(class, association, indication), Flavor(Restricted);
Qualifier Override : string, Scope(property, method, reference), Flavor(EnableOverride, Restricted);
Qualifier MaxLen : uint32, Scope(property, method, parameter), Flavor(EnableOverride, ToSubclass);
Qualifier EmbeddedInstance : string, Scope(property, method, parameter), Flavor(EnableOverride, ToSubclass);
"""
BASE = """
[Abstract] class T_Base { [Key, MaxLen(8)] string Id; uint8 Number = 5; uint32 Act(uint8 N); };
"""
DERIVED = """
class T_Derived : T_Base {
    [Override("Number"), MaxLen(3)] uint8 Number = 6;
    string Own;
    uint32 Take([EmbeddedInstance("T_Base")] string Embedded);
};
class T_Last : T_Derived { };
"""


def compiled(*sources: str) -> ClassRepository:
    named = {f"f{number}": source for number, source in enumerate((QUALIFIERS, *sources))}
    return ClassRepository(*compile_schema(named, {"ns": tuple(named)}))


def test_a_class_has_what_it_inherits_with_its_origin():
    found = compiled(BASE, DERIVED).get("NS", "t_last")
    assert [(p.name, p.class_origin, p.propagated) for p in found.properties.values()] == [
        ("Id", "T_Base", True),
        ("Number", "T_Base", True),
        ("Own", "T_Derived", True),
    ]
    assert [m.name for m in found.methods.values()] == ["Act", "Take"]
    assert found.properties["Number"].value == 6
    assert found.properties["Id"].qualifiers["Key"].propagated


def test_an_overridden_property_is_local_and_keeps_what_is_inherited_to_it():
    number = compiled(BASE, DERIVED).get("ns", "T_Derived").properties["Number"]
    assert (number.class_origin, number.propagated, number.value) == ("T_Base", False, 6)
    assert number.qualifiers["MaxLen"].value == 3


def test_restricted_qualifiers_are_not_inherited():
    classes = compiled(BASE, DERIVED)
    assert "Abstract" in classes.get("ns", "T_Base").qualifiers
    assert "Abstract" not in classes.get("ns", "T_Derived").qualifiers
    assert "Override" not in classes.get("ns", "T_Last").properties["Number"].qualifiers


def test_an_embedded_instance_is_known_as_one():
    take = compiled(BASE, DERIVED).get("ns", "T_Last").methods["Take"]
    assert take.parameters["Embedded"].embedded_object == "instance"


def test_relations_between_classes():
    classes = compiled(BASE, DERIVED)
    assert classes.subclasses("ns", None, deep=False) == ["T_Base"]
    assert classes.subclasses("ns", "t_base", deep=False) == ["T_Derived"]
    assert classes.subclasses("ns", "T_Base", deep=True) == ["T_Derived", "T_Last"]
    assert classes.superclasses("ns", "T_Last") == ["T_Derived", "T_Base"]
    assert classes.is_a("ns", "t_last", "T_BASE")
    assert not classes.is_a("ns", "T_Base", "T_Last")
    assert not classes.is_a("ns", "T_None", "T_None")


@pytest.mark.parametrize(
    "mof",
    [
        "class T_X : T_None { };",
        "class T_X : T_Base { uint8 Number; };",
        'class T_X : T_Base { [Override("Number")] string Number; };',
        "[Abstract] class T_X : T_Base { T_None REF R; };",
        "[Nowhere] class T_X { };",
        "class T_Base { };",
        "class T_X {",
    ],
)
def test_wrong_mof_is_refused(mof):
    with pytest.raises(SchemaError):
        compiled(BASE, mof)


def test_the_products_classes_compile_once_and_come_back_from_the_cache(tmp_path):
    cache = tmp_path / "classes"
    made = repository.load(cache)
    written = cache.read_bytes()
    again = repository.load(cache)
    assert cache.read_bytes() == written
    assert made.namespaces == list(namespaces.SCHEMA)
    for namespace in made.namespaces:
        assert again.all(namespace) == made.all(namespace)
        assert again.qualifiers(namespace) == made.qualifiers(namespace)


def test_a_spoilt_cache_is_made_again(tmp_path):
    cache = tmp_path / "classes"
    repository.load(cache)
    good = cache.read_bytes()
    for spoilt in (b"", good[:50], good[:-1] + b"\0", b"x" * len(good)):
        cache.write_bytes(spoilt)
        assert repository.load(cache).all(namespaces.INTEROP)
        assert cache.read_bytes() == good


class Evil:
    def __reduce__(self):
        return (print, ("run from the cache",))


def test_a_cache_cannot_run_code(tmp_path, capsys):
    cache = tmp_path / "classes"
    key = repository._content_key(repository.schema_sources())
    repository._to_cache(cache, key, ({"ns": [Evil()]}, {}))
    assert repository._from_cache(cache, key) is None
    assert capsys.readouterr().out == ""
    with pytest.raises(pickle.UnpicklingError):
        repository._Unpickler(__import__("io").BytesIO(pickle.dumps(Evil()))).load()


def test_other_names_of_a_namespace():
    classes = repository.load()
    assert classes.namespace("Root/CIMv2/Storage/iScsiTarget") == namespaces.STORAGE
    assert classes.namespace("/root/interop/") == namespaces.INTEROP
    assert classes.namespace("root/cimv2") is None
