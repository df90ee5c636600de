"""The classes of all namespaces: compiled from ``schema/`` by pywbem's MOF compiler, resolved, and kept on disk.

*Resolved* (DSP0004 5.6.3): a class has what it inherits, too: properties, methods and their parameters, and of each
qualifier whose flavor is ToSubclass. ``class_origin`` is where an element was first declared; ``propagated`` says that
this class neither declares nor overrides it. pywbem's compiler leaves this to the repository, and also
``embedded_object`` of properties and parameters, which follows from the qualifiers EmbeddedInstance and EmbeddedObject.

What ``get`` returns is shared: it is never changed, only copied.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
from importlib import resources
from typing import TYPE_CHECKING, Any

import pywbem
from pywbem import (
    CIM_ERR_NOT_FOUND,
    CIMClass,
    CIMError,
    CIMMethod,
    CIMParameter,
    CIMProperty,
    CIMQualifier,
    CIMQualifierDeclaration,
    NocaseDict,
)

from cim_facade.instances import Shape
from cim_facade.namespaces import ALIASES, SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

CACHE_NAME = "cim-classes.cache"


class SchemaError(Exception):
    """The MOF is wrong: a programmer's mistake, with the class and what is the matter."""


class ClassRepository:
    """See the module. Names of namespaces and classes are taken in any case."""

    def __init__(
        self, classes: Mapping[str, Iterable[CIMClass]], qualifiers: Mapping[str, Iterable[CIMQualifierDeclaration]]
    ) -> None:
        """Both by namespace; the classes are resolved, superclasses first."""
        self._classes = {ns: {each.classname.lower(): each for each in found} for ns, found in classes.items()}
        self._qualifiers = {ns: {each.name.lower(): each for each in found} for ns, found in qualifiers.items()}
        self._shapes: dict[tuple[str, str], Shape] = {}
        self._children: dict[str, dict[str, list[str]]] = {}
        self._ancestors: dict[str, dict[str, list[str]]] = {}
        for namespace, found in self._classes.items():
            children = self._children[namespace] = {}
            ancestors = self._ancestors[namespace] = {}
            for name, each in found.items():
                base = (each.superclass or "").lower()
                children.setdefault(base, []).append(each.classname)
                ancestors[name] = [found[base].classname, *ancestors[base]] if base else []

    @property
    def namespaces(self) -> list[str]:
        return list(self._classes)

    def namespace(self, name: str) -> str | None:
        """The namespace that answers to a name; None: none does."""
        name = name.strip("/").lower()
        name = ALIASES.get(name, name)
        return name if name in self._classes else None

    def get(self, namespace: str, name: str) -> CIMClass | None:
        return self._classes[namespace.lower()].get(name.lower())

    def shape(self, namespace: str, name: str) -> Shape:
        """How instances of a class are made. Raises KeyError: there is no such class."""
        where = (namespace.lower(), name.lower())
        if where not in self._shapes:
            self._shapes[where] = Shape(self._classes[where[0]][where[1]])
        return self._shapes[where]

    def all(self, namespace: str) -> list[CIMClass]:
        return list(self._classes[namespace.lower()].values())

    def subclasses(self, namespace: str, name: str | None, *, deep: bool) -> list[str]:
        """Names of the direct subclasses, or (``deep``) of all below; None: of the classes without superclass."""
        children = self._children[namespace.lower()]
        found = list(children.get((name or "").lower(), ()))
        if deep:
            for child in found:  # grows while it is gone through
                found += children.get(child.lower(), ())
        return found

    def superclasses(self, namespace: str, name: str) -> list[str]:
        """Nearest first."""
        return self._ancestors[namespace.lower()].get(name.lower(), [])

    def is_a(self, namespace: str, name: str, base: str) -> bool:
        """Whether class ``name`` is there and is ``base``, or a subclass of it."""
        ancestors = self._ancestors[namespace.lower()].get(name.lower())
        if ancestors is None:
            return False
        base = base.lower()
        return name.lower() == base or any(each.lower() == base for each in ancestors)

    def qualifiers(self, namespace: str) -> list[CIMQualifierDeclaration]:
        return list(self._qualifiers[namespace.lower()].values())

    def qualifier(self, namespace: str, name: str) -> CIMQualifierDeclaration | None:
        return self._qualifiers[namespace.lower()].get(name.lower())


def load(cache: Path | None = None) -> ClassRepository:
    """The product's classes. ``cache``: a file to take them from, if it was made of the same MOF, else to keep them in.

    Compiling takes a second or two, the file a tenth of one.
    """
    sources = schema_sources()
    if cache is None:
        return ClassRepository(*compile_schema(sources))
    key = _content_key(sources)
    kept = _from_cache(cache, key)
    if kept is None:
        kept = compile_schema(sources)
        _to_cache(cache, key, kept)
    return ClassRepository(*kept)


def schema_sources() -> dict[str, str]:
    """The MOF files by name, in the order in which they are compiled."""
    files = dict.fromkeys(name for names in SCHEMA.values() for name in names)
    folder = resources.files("cim_facade.schema")
    return {name: (folder / f"{name}.mof").read_text(encoding="utf-8") for name in files}


Compiled = tuple[dict[str, list[CIMClass]], dict[str, list[CIMQualifierDeclaration]]]


def compile_schema(sources: Mapping[str, str], schema: Mapping[str, Iterable[str]] = SCHEMA) -> Compiled:
    """Resolved classes and qualifier declarations of each namespace. Raises SchemaError."""
    collected = collect(sources)
    classes, qualifiers = {}, {}
    for namespace, files in schema.items():
        declared = NocaseDict((each.name, each) for name in files for each in collected.qualifiers[name])
        resolved = NocaseDict()
        for each in (each for name in files for each in collected.classes[name]):
            resolved[each.classname] = _resolve(each, resolved, declared)
        for each in resolved.values():
            _check_references(each, resolved)
        classes[namespace] = list(resolved.values())
        qualifiers[namespace] = list(declared.values())
    return classes, qualifiers


def collect(sources: Mapping[str, str]) -> Collected:
    """What each file declares, by the file's name. Raises SchemaError."""
    collected = Collected()
    compiler = pywbem.MOFCompiler(collected, log_func=None)
    for name, mof in sources.items():
        collected.begin(name)
        try:
            compiler.compile_string(mof, "", filename=None)
        except pywbem.MOFCompileError as error:
            raise SchemaError(f"{name}.mof: {error.get_err_msg()}") from error
    return collected


class Collected(pywbem.BaseRepositoryConnection):  # type: ignore[misc]  # pywbem has no types
    """What the compiler makes of each file; it sees all of them as one namespace."""

    default_namespace = ""
    conn_id = None

    def __init__(self) -> None:
        self.classes: dict[str, list[CIMClass]] = {}
        self.qualifiers: dict[str, list[CIMQualifierDeclaration]] = {}
        self._by_name = NocaseDict()
        self._declared = NocaseDict()
        self._file = ""

    def begin(self, file: str) -> None:
        self._file = file
        self.classes[file] = []
        self.qualifiers[file] = []

    def CreateClass(self, NewClass: CIMClass, namespace: str | None = None) -> None:
        if NewClass.classname in self._by_name:
            raise SchemaError(f"{NewClass.classname} is declared twice")
        self._by_name[NewClass.classname] = NewClass
        self.classes[self._file].append(NewClass)

    def GetClass(self, ClassName: str, **_: Any) -> CIMClass:
        try:
            return self._by_name[ClassName]
        except KeyError:
            raise CIMError(CIM_ERR_NOT_FOUND, ClassName) from None

    def SetQualifier(self, QualifierDeclaration: CIMQualifierDeclaration, namespace: str | None = None) -> None:
        scopes = QualifierDeclaration.scopes
        anywhere = scopes.pop("ANY", False)  # is MOF's; in CIM-XML each scope is said (DSP0201 5.2.2.1)
        for scope in scopes:
            scopes[scope] = bool(scopes[scope] or anywhere)
        self._declared[QualifierDeclaration.name] = QualifierDeclaration
        self.qualifiers[self._file].append(QualifierDeclaration)

    def GetQualifier(self, QualifierName: str, **_: Any) -> CIMQualifierDeclaration:
        try:
            return self._declared[QualifierName]
        except KeyError:
            raise CIMError(CIM_ERR_NOT_FOUND, QualifierName) from None

    def EnumerateQualifiers(self, **_: Any) -> list[CIMQualifierDeclaration]:
        return list(self._declared.values())

    def _unused(self, *_: Any, **__: Any) -> None:
        raise SchemaError("the schema has classes and qualifiers only")

    EnumerateInstanceNames = CreateInstance = ModifyInstance = DeleteInstance = _unused
    ModifyClass = DeleteClass = DeleteQualifier = _unused


def _resolve(declared: CIMClass, resolved: NocaseDict, declarations: NocaseDict) -> CIMClass:
    """``declared`` with what it inherits from its superclass in ``resolved``."""
    base = None
    if declared.superclass:
        base = resolved.get(declared.superclass)
        if base is None:
            raise SchemaError(f"{declared.classname}: its superclass {declared.superclass} is not in its namespace")
    name = declared.classname
    return CIMClass(
        name,
        superclass=None if base is None else base.classname,
        properties=_members(declared.properties, {} if base is None else base.properties, name, declarations),
        methods=_members(declared.methods, {} if base is None else base.methods, name, declarations),
        qualifiers=_qualifiers(declared.qualifiers, {} if base is None else base.qualifiers, name, declarations),
    )


def _members(own: NocaseDict, inherited: NocaseDict, class_name: str, declarations: NocaseDict) -> list[Any]:
    """Properties or methods: the inherited ones first, overridden or not; then what is new."""
    members = []
    for name, member in inherited.items():
        if name in own:
            if "Override" not in own[name].qualifiers:
                raise SchemaError(f"{class_name}.{name} is declared again without Override")
            members.append(_member(own[name], member, class_name, declarations))
            members[-1].class_origin = member.class_origin
            continue
        copy = member.copy()
        copy.propagated = True
        copy.qualifiers = [_propagated(each) for each in copy.qualifiers.values() if each.tosubclass]
        members.append(copy)
    for name, member in own.items():
        if name not in inherited:
            members.append(_member(member, None, class_name, declarations))
            members[-1].class_origin = class_name
    return members


def _member(
    own: CIMProperty | CIMMethod, inherited: CIMProperty | CIMMethod | None, class_name: str, declarations: NocaseDict
) -> CIMProperty | CIMMethod:
    """A property or method that ``class_name`` declares, perhaps overriding an inherited one."""
    where = f"{class_name}.{own.name}"
    member = own.copy()
    member.propagated = False
    base = {} if inherited is None else inherited.qualifiers
    member.qualifiers = _qualifiers(own.qualifiers, base, where, declarations)
    if isinstance(member, CIMMethod):
        if inherited is not None and inherited.return_type != own.return_type:
            raise SchemaError(f"{where} overrides a method of another type")
        parameters = {} if inherited is None else inherited.parameters
        member.parameters = [
            _parameter(each, parameters.get(each.name), where, declarations) for each in own.parameters.values()
        ]
        return member
    if inherited is not None and (inherited.type, inherited.is_array) != (own.type, own.is_array):
        raise SchemaError(f"{where} overrides a property of another type")
    member.embedded_object = _embedded(member)
    return member


def _parameter(own: CIMParameter, inherited: CIMParameter | None, where: str, declarations: NocaseDict) -> CIMParameter:
    parameter = own.copy()
    base = {} if inherited is None else inherited.qualifiers
    parameter.qualifiers = _qualifiers(own.qualifiers, base, f"{where}({own.name})", declarations)
    parameter.embedded_object = _embedded(parameter)
    return parameter


def _qualifiers(own: NocaseDict, inherited: NocaseDict, where: str, declarations: NocaseDict) -> list[CIMQualifier]:
    """With flavors from their declarations, and those inherited whose flavor is ToSubclass."""
    found = []
    for name, qualifier in own.items():
        declaration = declarations.get(name)
        if declaration is None or declaration.type != qualifier.type:
            raise SchemaError(f"{where}: qualifier {name} is not declared, or with another type")
        copy = qualifier.copy()
        copy.propagated = False
        for flavor in ("tosubclass", "overridable", "translatable"):
            if getattr(copy, flavor) is None:
                setattr(copy, flavor, getattr(declaration, flavor))
        base = inherited.get(name)
        if base is not None and base.tosubclass and not base.overridable and base.value != copy.value:
            raise SchemaError(f"{where}: qualifier {name} cannot be overridden")
        found.append(copy)
    found += [_propagated(each) for name, each in inherited.items() if each.tosubclass and name not in own]
    return found


def _propagated(qualifier: CIMQualifier) -> CIMQualifier:
    copy = qualifier.copy()
    copy.propagated = True
    return copy


def _embedded(element: CIMProperty | CIMParameter) -> str | None:
    if "EmbeddedInstance" in element.qualifiers:
        return "instance"
    return "object" if "EmbeddedObject" in element.qualifiers else None


def _check_references(each: CIMClass, resolved: NocaseDict) -> None:
    """Everything that a class names is in its namespace."""
    elements = list(each.properties.values())
    for method in each.methods.values():
        elements += method.parameters.values()
    for element in elements:
        named = element.reference_class
        if "EmbeddedInstance" in element.qualifiers:
            named = element.qualifiers["EmbeddedInstance"].value
        if named is not None and named not in resolved:
            raise SchemaError(f"{each.classname}: {element.name} names class {named}, which is not in its namespace")


def _content_key(sources: Mapping[str, str]) -> bytes:
    digest = hashlib.sha256(pywbem.__version__.encode())
    digest.update(resources.files("cim_facade").joinpath("repository.py").read_bytes())
    for name, mof in sources.items():
        digest.update(f"\0{name}\0{mof}".encode())
    digest.update(repr(SCHEMA).encode())
    return digest.digest()


class _Unpickler(pickle.Unpickler):
    """Makes pywbem's objects and nothing else, whatever the file says."""

    ALLOWED_MODULES = ("pywbem._cim_obj", "pywbem._cim_types", "nocasedict._nocasedict", "pywbem._nocasedict")

    def find_class(self, module: str, name: str) -> Any:
        if module in self.ALLOWED_MODULES and not name.startswith("_") and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type):
                return found
        if (module, name) in (("collections", "OrderedDict"), ("copyreg", "_reconstructor"), ("builtins", "object")):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a class")


def _from_cache(cache: Path, key: bytes) -> Compiled | None:
    try:
        content = cache.read_bytes()
    except OSError:
        return None
    digest, data = content[len(key) : len(key) + 32], content[len(key) + 32 :]
    if not content.startswith(key) or hashlib.sha256(data).digest() != digest:
        return None
    try:
        kept: Compiled = _Unpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, AttributeError, ImportError, TypeError, ValueError, EOFError) as error:
        log.warning("%s is not understood and made again: %s", cache, error)
        return None
    return kept


def _to_cache(cache: Path, key: bytes, compiled: Compiled) -> None:
    """A cache that cannot be written costs time, nothing else."""
    data = pickle.dumps(compiled, protocol=5)
    unfinished = cache.with_suffix(".new")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key + hashlib.sha256(data).digest() + data)
        unfinished.replace(cache)
    except OSError as error:
        log.warning("the compiled classes cannot be kept in %s: %s", cache, error)
