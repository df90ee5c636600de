"""CIM-XML: any request is answered with a document that is well-formed, or refused by ``RequestError`` or ``CIMError``.

Two kinds of damage: spoilt bytes, which mostly die in expat; and well-formed documents whose elements, names, types and
values were swapped, dropped, repeated or nested, which reach the mapping and the operations.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING
from xml.parsers import expat

from pywbem import CIMError

from cim_facade import answers, cimxml
from cim_facade.cimxml import Element, RequestError
from cim_facade.dispatch import OPERATIONS
from tests.fuzz.mutations import mutate
from tests.support import cim

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

_WORDS = [
    *("", "0", "1", "-1", "256", "0x10", "1e400", "true", "FALSE", "uint8", "string", "reference", "datetime"),
    *("T_Disk", "T_System", "T_Copy", "T_None", "one", "root", "Antecedent", "Dependent", "instance", "numeric"),
    *("20260101000000.000000+000", "00000000000015.000000:000", "]]>", "<&>\"'", "\r\n", "a" * 300, "\u00e9" * 40),
]

_NAMESPACE = '<LOCALNAMESPACEPATH><NAMESPACE NAME="root"/><NAMESPACE NAME="test"/></LOCALNAMESPACEPATH>'
_DISK = answers.instance_name(cim.world()[3].path)
_SERVICE = answers.instance_name(cim.world()[-1].path)
_INSTANCE = answers.instance(cim.world()[2])
_VALUES = {
    "ClassName": '<CLASSNAME NAME="T_Element"/>',
    "AssocClass": '<CLASSNAME NAME="T_Dependency"/>',
    "ResultClass": '<CLASSNAME NAME="T_Element"/>',
    "InstanceName": _DISK,
    "ObjectName": _DISK,
    "Role": "<VALUE>Antecedent</VALUE>",
    "ResultRole": "<VALUE>Dependent</VALUE>",
    "QualifierName": "<VALUE>Key</VALUE>",
    "PropertyList": "<VALUE.ARRAY><VALUE>Size</VALUE></VALUE.ARRAY>",
    "OperationTimeout": "<VALUE>10</VALUE>",
    "MaxObjectCount": "<VALUE>3</VALUE>",
    "EnumerationContext": "<VALUE>x</VALUE>",
    "NewInstance": _INSTANCE,
    "ModifiedInstance": f"<VALUE.NAMEDINSTANCE>{_DISK}{_INSTANCE}</VALUE.NAMEDINSTANCE>",
}
_ACT = "".join(
    f'<PARAMVALUE NAME="{name}">{value}</PARAMVALUE>'
    for name, value in {
        "Text": "<VALUE>t</VALUE>",
        "Small": "<VALUE>3</VALUE>",
        "Flag": "<VALUE>true</VALUE>",
        "When": "<VALUE>00000000000015.000000:000</VALUE>",
        "Device": f"<VALUE.REFERENCE>{_DISK}</VALUE.REFERENCE>",
        "Disks": f"<VALUE.REFARRAY><VALUE.REFERENCE>{_DISK}</VALUE.REFERENCE></VALUE.REFARRAY>",
        "Numbers": "<VALUE.ARRAY><VALUE>1</VALUE><VALUE.NULL/></VALUE.ARRAY>",
        "Setting": '<VALUE>&lt;INSTANCE CLASSNAME="T_Setting"/&gt;</VALUE>',
    }.items()
)


@functools.cache
def _documents() -> list[bytes]:
    """A request of each kind."""
    calls = [
        f'<METHODCALL NAME="Act"><LOCALINSTANCEPATH>{_NAMESPACE}{_SERVICE}</LOCALINSTANCEPATH>{_ACT}</METHODCALL>',
        f'<METHODCALL NAME="Reset"><LOCALCLASSPATH>{_NAMESPACE}<CLASSNAME NAME="T_Service"/></LOCALCLASSPATH>'
        "</METHODCALL>",
    ]
    for name, operation in OPERATIONS.items():
        names = [*operation.required, *operation.optional]
        given = "".join(
            f'<IPARAMVALUE NAME="{each}">{_VALUES.get(each, "<VALUE>false</VALUE>")}</IPARAMVALUE>'
            for each in names
            if not each.startswith("Filter")
        )
        calls.append(f'<IMETHODCALL NAME="{name}">{_NAMESPACE}{given}</IMETHODCALL>')
    head, tail = (
        '<CIM CIMVERSION="2.0" DTDVERSION="2.0"><MESSAGE ID="1" PROTOCOLVERSION="1.0"><SIMPLEREQ>',
        "</SIMPLEREQ>",
    )
    return [f"{head}{call}{tail}</MESSAGE></CIM>".encode() for call in calls]


def _all(element: Element) -> Iterator[Element]:
    yield element
    for child in element.children:
        yield from _all(child)


def _written(element: Element) -> str:
    attributes = "".join(f' {name}="{answers.escape(value)}"' for name, value in element.attributes.items())
    inner = answers.escape(element.text) + "".join(map(_written, element.children))
    return f"<{element.name}{attributes}>{inner}</{element.name}>"


def _change(root: Element, chance: random.Random) -> None:
    """One change of the tree."""
    elements = list(_all(root))
    one, other = chance.choice(elements), chance.choice(elements)
    match chance.randrange(7):
        case 0:
            one.name = other.name
        case 1:
            one.texts = [chance.choice(_WORDS)]
        case 2 if one.attributes:
            one.attributes[chance.choice(list(one.attributes))] = chance.choice(_WORDS)
        case 3 if one.attributes:
            del one.attributes[chance.choice(list(one.attributes))]
        case 4 if one.children:
            one.children.pop(chance.randrange(len(one.children)))
        case 5 if one.children:
            one.children.append(chance.choice(one.children))
        case _ if other not in _all(one) and one not in _all(other):
            one.children.append(other)


async def cim_requests(chance: random.Random) -> None:
    document = chance.choice(_documents())
    if chance.random() < 0.3:
        document = mutate(document, chance)
    else:
        root = cimxml.tree(document)
        for _ in range(chance.randrange(1, 5)):
            _change(root, chance)
        document = _written(root).encode()
    user = chance.choice([cim.ADMIN, cim.READER])
    facade = cim.facade()
    try:
        request = cimxml.parse(document)
        answer = answers.begin(request.message_id, request.name, extrinsic=request.extrinsic)
        async for piece in facade.answer(request, user, "host:5989"):
            answer += piece
        answer += answers.end(extrinsic=request.extrinsic)
    except RequestError:
        return
    except CIMError as error:
        answer = answers.error(error)
    finally:
        await facade.enumerations.close_all()
    expat.ParserCreate().Parse(answer.encode(), True)
