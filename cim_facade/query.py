"""Queries of indication filters (DMTF:CQL of DSP0202 and WQL, in part) and of enumerations (DMTF:FQL of DSP0212, in
part): text to a test of instances. Pure.

    query      SELECT (* | NAME {, NAME}) FROM CLASS [WHERE condition]              CQL and WQL; FQL: condition alone
    condition  AND, OR, NOT and parentheses over
               operand (= <> < <= > >=) operand      WQL also: !=
               operand IS [NOT] NULL                  operand ISA CLASS              not in FQL: ISA
               ANY property[*] (= <> ...) operand     EVERY property[*] ...
    operand    property, or a literal: 'text', "text", 12, 0x1F, 1.5, TRUE, FALSE
    property   NAME, CLASS::NAME, property[3], property.property (of an embedded instance)

Anything else is refused with the position of what is not understood; so is a property or class that there is not, and
a literal that a property's type cannot be compared with. NULL is as in SQL: a comparison with it is neither true nor
false, and what is not true does not match. An array that is compared with = to a single value is so if any element is,
which is how SMI-S clients write it (``OperationalStatus=17``).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from pywbem import (
    CIM_ERR_INVALID_QUERY,
    CIM_ERR_QUERY_LANGUAGE_NOT_SUPPORTED,
    CIMDateTime,
    CIMError,
    CIMInstance,
    CIMInstanceName,
)

MAX_QUERY = 8192
"""Characters of a query."""

MAX_TERMS = 256
MAX_DEPTH = 32
MAX_CHAIN = 4
MAX_DIGITS = 64
"""Of a whole number; the largest that CIM has is of 20."""

CQL, WQL, FQL = "DMTF:CQL", "WQL", "DMTF:FQL"

LANGUAGES = {"dmtf:cql": CQL, "cql": CQL, "cim:cql": CQL, "wql": WQL, "wql1": WQL}
"""Of filters, as clients spell them."""

Verdict = bool | None
Test = Callable[[CIMInstance], Verdict]
"""None: neither true nor false."""


class Schema(Protocol):
    """What a query's names are looked up in."""

    def kinds(self, path: tuple[Step, ...]) -> set[str] | None:
        """The CIM types that the property at ``path`` may have; empty: there is no such property; None: it cannot be
        told. An array's type ends with ``[]``; ``object`` is an embedded instance."""
        ...

    def is_class(self, name: str) -> bool: ...

    def is_a(self, instance: CIMInstance, class_name: str) -> bool: ...


class Step(NamedTuple):
    """One property of a chain. ``of``: the class that CLASS::NAME says. ``element``: one of an array's, by number."""

    name: str
    of: str | None = None
    element: int | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """``select``: names of properties; None: all. ``isa``: classes that embedded instances are asked to be."""

    from_class: str
    select: tuple[str, ...] | None
    test: Test
    isa: frozenset[str]

    def matches(self, instance: CIMInstance) -> bool:
        return self.test(instance) is True


def parse_filter(language: str, text: str, schema_of: Callable[[str], Schema | None]) -> Query:
    """The query of an indication filter. ``schema_of`` an indication class; None: it is none.

    Raises CIMError, CIM_ERR_QUERY_LANGUAGE_NOT_SUPPORTED or CIM_ERR_INVALID_QUERY.
    """
    known = LANGUAGES.get(language.lower())
    if known is None:
        raise CIMError(
            CIM_ERR_QUERY_LANGUAGE_NOT_SUPPORTED, f"query language {language[:64]!r} is none of {CQL}, {WQL}"
        )
    return _Parser(known, text).statement(schema_of)


def parse_condition(language: str, text: str, schema: Schema) -> Callable[[CIMInstance], bool]:
    """The filter query of an enumeration. Raises as ``parse_filter``."""
    if language.lower() != FQL.lower():
        raise CIMError(CIM_ERR_QUERY_LANGUAGE_NOT_SUPPORTED, f"filter query language {language[:64]!r} is not {FQL}")
    test = _Parser(FQL, text).whole_condition(schema)
    return lambda instance: test(instance) is True


# --- tokens -----------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""\s+
    | (?P<name>[A-Za-z_\u0080-\uffef][A-Za-z0-9_\u0080-\uffef]*)
    | (?P<real>[+-]?\d+\.\d+(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<hex>[+-]?0[xX][0-9A-Fa-f]+(?![\w.]))
    | (?P<integer>[+-]?\d+(?![\w.]))
    | (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    | (?P<sign><=|>=|<>|!=|::|[=<>().,*\[\]])
    """,
    re.VERBOSE | re.DOTALL,
)

_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}

KEYWORDS = frozenset(
    ["select", "from", "where", "and", "or", "not", "isa", "is", "null", "true", "false", "any", "every", "like"]
)


class _Token(NamedTuple):
    kind: str
    text: str
    at: int

    @property
    def word(self) -> str:
        """In lower case; of what is no name, empty."""
        return self.text.lower() if self.kind == "name" else ""


def _tokens(text: str) -> list[_Token]:
    if len(text) > MAX_QUERY:
        raise _invalid(f"it has more than {MAX_QUERY} characters", MAX_QUERY)
    found, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _invalid(f"{text[at : at + 20]!r} is not understood", at)
        if match.lastgroup in ("integer", "hex") and len(match[0]) > MAX_DIGITS:
            raise _invalid(f"a number of more than {MAX_DIGITS} digits", at)
        if match.lastgroup is not None:
            found.append(_Token(match.lastgroup, match[0], at))
        at = match.end()
    return [*found, _Token("end", "", len(text))]


def _invalid(what: str, at: int) -> CIMError:
    return CIMError(CIM_ERR_INVALID_QUERY, f"at character {at + 1} of the query: {what}")


# --- the parser -------------------------------------------------------------------------------------------------


class _Operand(NamedTuple):
    """``path``: None of a literal, which is ``value``. ``kinds``: the types that it may have; None: any."""

    at: int
    path: tuple[Step, ...] | None
    value: Any
    kinds: set[str] | None

    def read(self) -> Callable[[CIMInstance], Any]:
        if self.path is None:
            value = self.value
            return lambda _: value
        path = self.path
        return lambda instance: _value_at(instance, path)


@dataclass(slots=True)
class _Parser:
    language: str
    text: str
    tokens: list[_Token] = field(init=False)
    position: int = 0
    terms: int = 0
    depth: int = 0
    schema: Schema | None = None
    from_class: str = ""
    isa: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.tokens = _tokens(self.text)

    # --- reading tokens

    @property
    def next(self) -> _Token:
        return self.tokens[self.position]

    def take(self) -> _Token:
        token = self.next
        self.position += token.kind != "end"
        return token

    def has(self, *words: str) -> bool:
        """Take one of these, if it is next."""
        if self.next.word in words or (self.next.kind == "sign" and self.next.text in words):
            self.position += 1
            return True
        return False

    def expect(self, word: str) -> None:
        if not self.has(word):
            raise self.error(f"{word.upper()} is expected")

    def error(self, what: str, token: _Token | None = None) -> CIMError:
        token = self.next if token is None else token
        found = "the end" if token.kind == "end" else repr(token.text[:40])
        return _invalid(f"{what}, not {found}", token.at)

    def name(self, what: str) -> _Token:
        token = self.next
        if token.kind != "name" or token.word in KEYWORDS:
            raise self.error(f"{what} is expected")
        return self.take()

    # --- statements

    def statement(self, schema_of: Callable[[str], Schema | None]) -> Query:
        self.expect("select")
        selected: list[_Token] | None = None
        if not self.has("*"):
            selected = [self.name("* or a property")]
            while self.has(","):
                selected.append(self.name("a property"))
            if self.next.text in (".", "::", "["):
                raise self.error("properties of embedded instances are not selected by themselves: FROM is expected")
        self.expect("from")
        from_class = self.name("an indication class")
        self.from_class = from_class.text
        self.schema = schema_of(from_class.text)
        if self.schema is None:
            raise _invalid(f"there is no indication class {from_class.text}", from_class.at)
        for token in selected or ():
            if self.schema.kinds((Step(token.text),)) == set():
                raise _invalid(f"{from_class.text} has no property {token.text}", token.at)
        test: Test = _true
        if self.has("where"):
            test = self.condition()
        if self.next.kind != "end":
            raise self.error("the end is expected")
        names = None if selected is None else tuple(token.text for token in selected)
        return Query(from_class.text, names, test, frozenset(self.isa))

    def whole_condition(self, schema: Schema) -> Test:
        self.schema = schema
        test = self.condition()
        if self.next.kind != "end":
            raise self.error("the end is expected")
        return test

    # --- conditions

    def condition(self) -> Test:
        tests = [self.conjunction()]
        while self.has("or"):
            tests.append(self.conjunction())
        return tests[0] if len(tests) == 1 else _any_of(tests)

    def conjunction(self) -> Test:
        tests = [self.negation()]
        while self.has("and"):
            tests.append(self.negation())
        return tests[0] if len(tests) == 1 else _all_of(tests)

    def negation(self) -> Test:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"the query is nested more than {MAX_DEPTH} deep")
        if self.has("not"):
            inner = self.negation()
            found: Test = lambda instance: _not(inner(instance))  # noqa: E731
        elif self.has("("):
            found = self.condition()
            self.expect(")")
        else:
            found = self.predicate()
        self.depth -= 1
        return found

    def predicate(self) -> Test:
        self.terms += 1
        if self.terms > MAX_TERMS:
            raise self.error(f"the query has more than {MAX_TERMS} comparisons")
        if self.next.word in ("any", "every"):
            return self.quantified()
        left = self.operand()
        if self.has("is"):
            negated = self.has("not")
            self.expect("null")
            read = left.read()
            return lambda instance: (read(instance) is None) is not negated
        if self.next.word == "isa" and self.language != FQL:
            return self.isa_test(left)
        sign = self.comparison()
        if self.next.word == "null":
            raise self.error("IS NULL asks for NULL; a value is expected")
        return self.compared(left, sign, self.operand())

    def isa_test(self, left: _Operand) -> Test:
        assert self.schema is not None
        schema = self.schema
        if left.path is None or (left.kinds is not None and "object" not in left.kinds):
            raise _invalid("ISA is asked of an embedded instance", left.at)
        self.expect("isa")
        token = self.name("a class")
        if not schema.is_class(token.text):
            raise _invalid(f"there is no class {token.text}", token.at)
        read, class_name = left.read(), token.text
        self.isa.add(class_name)

        def test(instance: CIMInstance) -> Verdict:
            value = read(instance)
            return schema.is_a(value, class_name) if isinstance(value, CIMInstance) else None

        return test

    def quantified(self) -> Test:
        every = self.take().word == "every"
        left = self.operand()
        self.expect("[")
        self.expect("*")
        self.expect("]")
        if left.kinds is not None and not any(kind.endswith("[]") for kind in left.kinds):
            raise _invalid("ANY and EVERY are asked of an array", left.at)
        sign = self.comparison()
        right = self.operand()
        element = left._replace(kinds=None if left.kinds is None else {kind.removesuffix("[]") for kind in left.kinds})
        self.check(element, sign, right)
        read, wanted, compare = left.read(), right.read(), _COMPARISONS[sign]

        def test(instance: CIMInstance) -> Verdict:
            values = read(instance)
            if not isinstance(values, list):
                return None
            found = [_compare(value, compare, wanted(instance)) for value in values]
            return _conjunction(found) if every else _not(_conjunction([_not(each) for each in found]))

        return test

    def comparison(self) -> str:
        token = self.next
        sign = "<>" if token.text == "!=" and self.language == WQL else token.text
        if token.kind != "sign" or sign not in _COMPARISONS:
            if token.word == "like":
                raise self.error("LIKE is not supported; a comparison is expected")
            raise self.error("a comparison (=, <>, <, <=, >, >=) is expected")
        self.take()
        return sign

    def compared(self, left: _Operand, sign: str, right: _Operand) -> Test:
        if left.path is None and right.path is None:
            raise _invalid("two literals are compared", left.at)
        self.check(left, sign, right)
        one, other, compare = left.read(), right.read(), _COMPARISONS[sign]
        return lambda instance: _compare(one(instance), compare, other(instance))

    def check(self, left: _Operand, sign: str, right: _Operand) -> None:
        """That the two can be compared. Raises CIMError."""
        if left.kinds is None or right.kinds is None:
            return
        if not any(_comparable(one, sign, other) for one in left.kinds for other in right.kinds):
            one, other = (" or ".join(sorted(each.kinds or ())) for each in (left, right))
            raise _invalid(f"{one} and {other} cannot be compared by {sign}", left.at)

    # --- operands

    def operand(self) -> _Operand:
        token = self.next
        if token.kind in ("integer", "hex"):
            self.take()
            return _Operand(token.at, None, int(token.text, 0 if token.kind == "hex" else 10), {"integer"})
        if token.kind == "real":
            self.take()
            return _Operand(token.at, None, float(token.text), {"real64"})
        if token.kind == "string":
            self.take()
            text = _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[1]), token.text[1:-1])
            return _Operand(token.at, None, text, {"literal"})
        if token.word in ("true", "false"):
            self.take()
            return _Operand(token.at, None, token.word == "true", {"boolean"})
        return self.property()

    def property(self) -> _Operand:
        assert self.schema is not None
        first = self.next
        path = [self.step()]
        if path[0] == Step(path[0].name) and path[0].name.lower() == self.from_class.lower() and self.has("."):
            path = [self.step()]  # the class of FROM may be written before a property
        while self.has("."):
            path.append(self.step())
            if len(path) > MAX_CHAIN:
                raise _invalid(f"a chain of more than {MAX_CHAIN} properties", first.at)
        steps = tuple(path)
        kinds = self.schema.kinds(steps)
        if kinds is not None and not kinds:
            written = ".".join(step.name if step.of is None else f"{step.of}::{step.name}" for step in steps)
            raise _invalid(f"there is no property {written}", first.at)
        return _Operand(first.at, steps, None, kinds)

    def step(self) -> Step:
        token = self.name("a property or a value")
        of = None
        if self.has("::"):
            of, token = token.text, self.name("a property")
        index = None
        if self.next.text == "[" and self.tokens[self.position + 1].kind == "integer":
            self.take()
            number = self.take()
            index = int(number.text)
            if not 0 <= index < 1 << 16:
                raise _invalid("an index is 0 to 65535", number.at)
            self.expect("]")
        return Step(token.text, of, index)


# --- evaluation -------------------------------------------------------------------------------------------------

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _true(_: CIMInstance) -> Verdict:
    return True


def _not(verdict: Verdict) -> Verdict:
    return None if verdict is None else not verdict


def _conjunction(verdicts: list[Verdict]) -> Verdict:
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _all_of(tests: list[Test]) -> Test:
    def test(instance: CIMInstance) -> Verdict:
        unknown = False
        for each in tests:
            verdict = each(instance)
            if verdict is False:
                return False
            unknown |= verdict is None
        return None if unknown else True

    return test


def _any_of(tests: list[Test]) -> Test:
    def test(instance: CIMInstance) -> Verdict:
        unknown = False
        for each in tests:
            verdict = each(instance)
            if verdict:
                return True
            unknown |= verdict is None
        return None if unknown else False

    return test


def _value_at(instance: Any, path: tuple[Step, ...]) -> Any:
    """None: it is NULL, or what it is of has no such property."""
    for step in path:
        if not isinstance(instance, CIMInstance):
            return None
        found = instance.properties.get(step.name)
        instance = None if found is None else found.value
        if step.element is not None:
            instance = instance[step.element] if isinstance(instance, list) and step.element < len(instance) else None
    return instance


def _compare(one: Any, compare: Callable[[Any, Any], bool], other: Any) -> Verdict:
    if one is None or other is None:
        return None
    if isinstance(one, list) is not isinstance(other, list):
        values, single = (one, other) if isinstance(one, list) else (other, one)
        if compare is operator.eq:
            return _not(_conjunction([_not(_compare(value, operator.eq, single)) for value in values]))
        if compare is operator.ne:
            return _conjunction([_compare(value, operator.ne, single) for value in values])
        return None
    if isinstance(one, CIMDateTime) or isinstance(other, CIMDateTime):
        return _compare_times(one, compare, other)
    if _class_of(one) is not _class_of(other):
        return None
    if isinstance(one, CIMInstanceName) and compare not in (operator.eq, operator.ne):
        return None
    return bool(compare(one, other))


def _compare_times(one: Any, compare: Callable[[Any, Any], bool], other: Any) -> Verdict:
    try:
        first, second = (each if isinstance(each, CIMDateTime) else CIMDateTime(each) for each in (one, other))
        if first.is_interval:
            return None if not second.is_interval else bool(compare(first.timedelta, second.timedelta))
        return None if second.is_interval else bool(compare(first.datetime, second.datetime))
    except (ValueError, TypeError):  # a text that is no time
        return None


def _class_of(value: Any) -> type:
    """What values of are compared with each other."""
    if isinstance(value, bool):
        return bool
    for kind in (int, float):
        if isinstance(value, kind):
            return float
    return str if isinstance(value, str) else type(value)


_NUMBERS = frozenset(
    ["integer", "real32", "real64", *(f"{sign}int{bits}" for sign in "us" for bits in (8, 16, 32, 64))]
)
_TEXTS = frozenset(["string", "char16", "literal"])
_EQUAL_ONLY = frozenset(["boolean", "reference"])


def _comparable(one: str, sign: str, other: str) -> bool:
    """Of two types: whether values of them are compared by ``sign``."""
    if one.endswith("[]") or other.endswith("[]"):
        bare = one.removesuffix("[]"), other.removesuffix("[]")
        return sign in ("=", "<>") and _comparable(bare[0], sign, bare[1])
    for kinds in (_NUMBERS, _TEXTS, frozenset(["datetime", "literal"])):
        if one in kinds and other in kinds:
            return True
    return one == other and one in _EQUAL_ONLY and sign in ("=", "<>")


def kind_of(declared: Any) -> str:
    """The type of a declared property as ``Schema.kinds`` has it."""
    kind = "object" if declared.embedded_object is not None else str(declared.type)
    return f"{kind}[]" if declared.is_array else kind
