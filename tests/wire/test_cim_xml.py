"""CIM-XML as it goes over the wire: requests as clients send them, answers to the letter, and what is refused.

The requests of pywbem are those of pywbem 1.9.1, the ones of wbemcli as sblim's wbemcli 1.6.3 sends them.
"""

import pytest
from pywbem import (
    CIM_ERR_INVALID_PARAMETER,
    CIM_ERR_NOT_FOUND,
    CIMClassName,
    CIMDateTime,
    CIMError,
    CIMInstance,
    CIMInstanceName,
    CIMParameter,
    CIMProperty,
    Uint8,
    Uint16,
)

from cim_facade import answers, cimxml
from cim_facade.cimxml import RequestError
from tests.support import cim

NAMESPACE = '<LOCALNAMESPACEPATH><NAMESPACE NAME="root"/><NAMESPACE NAME="test"/></LOCALNAMESPACEPATH>'


def document(call: str, head: str = '<?xml version="1.0" encoding="utf-8" ?>\n') -> bytes:
    return (
        f'{head}<CIM CIMVERSION="2.0" DTDVERSION="2.0"><MESSAGE ID="1001" PROTOCOLVERSION="1.0"><SIMPLEREQ>{call}'
        "</SIMPLEREQ></MESSAGE></CIM>"
    ).encode()


def intrinsic(name: str, *params: str) -> bytes:
    return document(f'<IMETHODCALL NAME="{name}">{NAMESPACE}{"".join(params)}</IMETHODCALL>')


DISK = (
    '<INSTANCENAME CLASSNAME="T_Disk"><KEYBINDING NAME="SystemName"><KEYVALUE VALUETYPE="string">one</KEYVALUE>'
    '</KEYBINDING><KEYBINDING NAME="Number"><KEYVALUE VALUETYPE="numeric" TYPE="uint16">3</KEYVALUE></KEYBINDING>'
    "</INSTANCENAME>"
)
DISK_PATH = CIMInstanceName("T_Disk", {"SystemName": "one", "Number": Uint16(3)})
SERVICE = (
    f'<LOCALINSTANCEPATH>{NAMESPACE}<INSTANCENAME CLASSNAME="T_Service"><KEYBINDING NAME="Name">'
    '<KEYVALUE VALUETYPE="string" TYPE="string">svc</KEYVALUE></KEYBINDING></INSTANCENAME></LOCALINSTANCEPATH>'
)


def invoked(*params: str) -> cimxml.Request:
    return cimxml.parse(document(f'<METHODCALL NAME="Act">{SERVICE}{"".join(params)}</METHODCALL>'))


def given(*params: str):
    """The one parameter, in the type that T_Service.Act declares."""
    [(name, parameter)] = invoked(*params).params.items()
    return cimxml.parameter_value(parameter, cim.CLASSES.get(cim.NS, "T_Service").methods["Act"].parameters[name])


def test_an_intrinsic_call():
    request = cimxml.parse(
        intrinsic(
            "GetInstance",
            f'<IPARAMVALUE NAME="InstanceName">{DISK}</IPARAMVALUE>',
            '<IPARAMVALUE NAME="LocalOnly"><VALUE>FALSE</VALUE></IPARAMVALUE>',
            '<IPARAMVALUE NAME="PropertyList"><VALUE.ARRAY><VALUE>A</VALUE><VALUE/></VALUE.ARRAY></IPARAMVALUE>',
            '<IPARAMVALUE NAME="Role"/>',
        )
    )
    assert (request.message_id, request.namespace, request.name, request.extrinsic) == (
        "1001",
        "root/test",
        "GetInstance",
        False,
    )
    assert cimxml.instance_name(request.params["instancename"].element) == DISK_PATH
    assert cimxml.value(request.params["localonly"].element, "boolean") is False
    assert cimxml.value(request.params["propertylist"].element, "string", array=True) == ["A", ""]
    assert request.params["role"].element is None


def test_wbemclis_document_is_the_same_but_for_its_head():
    head = '<?xml version="1.0" encoding="utf-8"?>\n'
    call = f'<IMETHODCALL NAME="EnumerateClassNames">{NAMESPACE}</IMETHODCALL>'
    assert cimxml.parse(document(call, head).replace(b"1001", b"4711")).message_id == "4711"


def test_an_extrinsic_call_on_an_instance_and_on_a_class():
    on_instance = invoked()
    assert on_instance.target == CIMInstanceName("T_Service", {"Name": "svc"}, namespace="root/test")
    path = f'<LOCALCLASSPATH>{NAMESPACE}<CLASSNAME NAME="T_Service"/></LOCALCLASSPATH>'
    on_class = cimxml.parse(document(f'<METHODCALL NAME="Reset">{path}</METHODCALL>'))
    assert on_class.target == CIMClassName("T_Service", namespace="root/test")
    assert on_class.namespace == "root/test"


@pytest.mark.parametrize(
    ("xml", "wanted"),
    [
        ('<PARAMVALUE NAME="Text" PARAMTYPE="string"><VALUE>a &lt;b&gt; &#13;c</VALUE></PARAMVALUE>', "a <b> \rc"),
        ('<PARAMVALUE NAME="Text" PARAMTYPE="string"><VALUE></VALUE></PARAMVALUE>', ""),
        ('<PARAMVALUE NAME="Text" PARAMTYPE="string"/>', None),
        ('<PARAMVALUE NAME="small"><VALUE> 255 </VALUE></PARAMVALUE>', 255),
        ('<PARAMVALUE NAME="Small" PARAMTYPE="string"><VALUE>0xfF</VALUE></PARAMVALUE>', 255),
        ('<PARAMVALUE NAME="Large"><VALUE>-9223372036854775808</VALUE></PARAMVALUE>', -(2**63)),
        ('<PARAMVALUE NAME="Flag"><VALUE>True</VALUE></PARAMVALUE>', True),
        ('<PARAMVALUE NAME="Part"><VALUE>1.5E3</VALUE></PARAMVALUE>', 1500.0),
        ('<PARAMVALUE NAME="Letter"><VALUE>é</VALUE></PARAMVALUE>', "é"),
        (
            '<PARAMVALUE NAME="When"><VALUE>00000000000015.000000:000</VALUE></PARAMVALUE>',
            CIMDateTime("00000000000015.000000:000"),
        ),
        ('<PARAMVALUE NAME="Numbers"><VALUE.ARRAY/></PARAMVALUE>', []),
        (
            '<PARAMVALUE NAME="Numbers"><VALUE.ARRAY><VALUE>1</VALUE><VALUE.NULL/></VALUE.ARRAY></PARAMVALUE>',
            [1, None],
        ),
        (f'<PARAMVALUE NAME="Device"><VALUE.REFERENCE>{DISK}</VALUE.REFERENCE></PARAMVALUE>', DISK_PATH),
        (
            '<PARAMVALUE NAME="Device"><VALUE.REFERENCE><INSTANCEPATH><NAMESPACEPATH><HOST>whoever:5989</HOST>'
            f"{NAMESPACE}</NAMESPACEPATH>{DISK}</INSTANCEPATH></VALUE.REFERENCE></PARAMVALUE>",
            CIMInstanceName("T_Disk", DISK_PATH.keybindings, namespace="root/test"),
        ),
        (
            '<PARAMVALUE NAME="Disks" PARAMTYPE="reference"><VALUE.REFARRAY><VALUE.REFERENCE><LOCALINSTANCEPATH>'
            f"{NAMESPACE}{DISK}</LOCALINSTANCEPATH></VALUE.REFERENCE><VALUE.NULL/></VALUE.REFARRAY></PARAMVALUE>",
            [CIMInstanceName("T_Disk", DISK_PATH.keybindings, namespace="root/test"), None],
        ),
        (
            '<PARAMVALUE NAME="Setting" PARAMTYPE="string" EmbeddedObject="instance"><VALUE>&lt;INSTANCE CLASSNAME='
            '"T_Setting"&gt;&lt;PROPERTY NAME="Level" TYPE="uint8"&gt;&lt;VALUE&gt;7&lt;/VALUE&gt;&lt;/PROPERTY&gt;'
            "&lt;/INSTANCE&gt;</VALUE></PARAMVALUE>",
            CIMInstance("T_Setting", {"Level": Uint8(7)}),
        ),
        (  # pywbemcli 1.4 sends the XML as a string that is not said to be an instance
            '<PARAMVALUE NAME="Setting" PARAMTYPE="string"><VALUE><![CDATA[<INSTANCE CLASSNAME="T_Setting"/>]]></VALUE>'
            "</PARAMVALUE>",
            CIMInstance("T_Setting"),
        ),
    ],
)
def test_values_of_parameters(xml, wanted):
    assert given(xml) == wanted


@pytest.mark.parametrize(
    "xml",
    [
        '<PARAMVALUE NAME="Small"><VALUE>256</VALUE></PARAMVALUE>',
        '<PARAMVALUE NAME="Small"><VALUE>1_0</VALUE></PARAMVALUE>',
        '<PARAMVALUE NAME="Small"><VALUE>\uff11</VALUE></PARAMVALUE>',
        '<PARAMVALUE NAME="Small"><VALUE></VALUE></PARAMVALUE>',
        f'<PARAMVALUE NAME="Large"><VALUE>{"9" * 10000}</VALUE></PARAMVALUE>',
        '<PARAMVALUE NAME="Flag"><VALUE>yes</VALUE></PARAMVALUE>',
        '<PARAMVALUE NAME="When"><VALUE>today</VALUE></PARAMVALUE>',
        '<PARAMVALUE NAME="Part"><VALUE>1e</VALUE></PARAMVALUE>',
        '<PARAMVALUE NAME="Letter"><VALUE>ab</VALUE></PARAMVALUE>',
        '<PARAMVALUE NAME="Small"><VALUE.ARRAY><VALUE>1</VALUE></VALUE.ARRAY></PARAMVALUE>',
        '<PARAMVALUE NAME="Numbers"><VALUE>1</VALUE></PARAMVALUE>',
        '<PARAMVALUE NAME="Device"><VALUE>x</VALUE></PARAMVALUE>',
        f'<PARAMVALUE NAME="Text"><VALUE.REFERENCE>{DISK}</VALUE.REFERENCE></PARAMVALUE>',
        f'<PARAMVALUE NAME="Disks"><VALUE.REFERENCE>{DISK}</VALUE.REFERENCE></PARAMVALUE>',
        '<PARAMVALUE NAME="Text" EmbeddedObject="instance"><VALUE>x</VALUE></PARAMVALUE>',
        '<PARAMVALUE NAME="Setting"><VALUE>no XML</VALUE></PARAMVALUE>',
        '<PARAMVALUE NAME="Setting"><VALUE>&lt;CLASS NAME="C"/&gt;</VALUE></PARAMVALUE>',
        '<PARAMVALUE NAME="Setting"><VALUE>&lt;!DOCTYPE a&gt;&lt;INSTANCE CLASSNAME="a"/&gt;</VALUE></PARAMVALUE>',
    ],
)
def test_values_of_another_type_are_refused(xml):
    with pytest.raises(CIMError) as refused:
        given(xml)
    assert refused.value.status_code == CIM_ERR_INVALID_PARAMETER


def test_instances_embedded_in_each_other_have_an_end():
    text = '<INSTANCE CLASSNAME="T_Setting"/>'
    for _ in range(10):
        text = (
            '<INSTANCE CLASSNAME="T_Setting"><PROPERTY NAME="P" TYPE="string" EmbeddedObject="instance"><VALUE>'
            f"{answers.escape(text)}</VALUE></PROPERTY></INSTANCE>"
        )
    with pytest.raises(CIMError, match="deep"):
        cimxml.embedded_instance(text)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "request-not-well-formed"),
        (intrinsic("GetClass")[:-4], "request-not-well-formed"),
        (intrinsic("GetClass") + b"<more/>", "request-not-well-formed"),
        (intrinsic("Get&nothing;Class"), "request-not-well-formed"),
        (intrinsic("GetClass").replace(b"root", b"ro\x00t"), "request-not-well-formed"),
        (intrinsic("GetClass").replace(b"root", b"ro\xe4t"), "request-not-well-formed"),
        (b"<HTML/>", "request-not-valid"),
        (b'<!DOCTYPE CIM><CIM CIMVERSION="2.0" DTDVERSION="2.0"/>', "request-not-valid"),
        (b'<!DOCTYPE CIM SYSTEM "http://127.0.0.1/x.dtd"><CIM/>', "request-not-valid"),
        (b'<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><CIM>&c;</CIM>', "request-not-valid"),
        (b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><CIM>&b;</CIM>', "request-not-valid"),
        (b"<?php x?><CIM/>", "request-not-valid"),
        (intrinsic("GetClass").replace(b'CIMVERSION="2.0"', b'CIMVERSION="3.0"'), "unsupported-cim-version"),
        (intrinsic("GetClass").replace(b'DTDVERSION="2.0"', b'DTDVERSION="9"'), "unsupported-dtd-version"),
        (
            intrinsic("GetClass").replace(b'PROTOCOLVERSION="1.0"', b'PROTOCOLVERSION="2.0"'),
            "unsupported-protocol-version",
        ),
        (intrinsic("GetClass").replace(b"SIMPLEREQ", b"MULTIREQ"), "multiple-requests-unsupported"),
        (intrinsic("GetClass").replace(b"SIMPLEREQ", b"SIMPLEEXPREQ"), "unsupported-operation"),
        (intrinsic("GetClass").replace(b' ID="1001"', b""), "request-not-valid"),
        (document("<IMETHODCALL NAME='x'/>"), "request-not-valid"),
        (document("<METHODCALL NAME='x'/>"), "request-not-valid"),
        (document(f"<METHODCALL NAME='x'>{NAMESPACE}</METHODCALL>"), "request-not-valid"),
        (document("<IMETHODCALL NAME='x'><LOCALNAMESPACEPATH/></IMETHODCALL>"), "request-not-valid"),
        (document("<IMETHODCALL/><IMETHODCALL/>"), "request-not-valid"),
        (intrinsic("GetClass", "<PARAMVALUE NAME='x'/>"), "request-not-valid"),
        (intrinsic("GetClass", "<IPARAMVALUE NAME='x'><VALUE/><VALUE/></IPARAMVALUE>"), "request-not-valid"),
        (intrinsic("GetClass", "<IPARAMVALUE NAME='x'>text<VALUE/></IPARAMVALUE>"), "request-not-valid"),
        (b"<CIM>" * 100, "request-not-valid"),
        (b"<CIM>" + b"<a/>" * cimxml.MAX_ELEMENTS + b"</CIM>", "request-not-valid"),
        (b"<CIM " + b" ".join(b"a%d='1'" % n for n in range(100)) + b"/>", "request-not-valid"),
        (b" " * (cimxml.MAX_REQUEST_BYTES + 1), "request-not-valid"),
    ],
)
def test_what_is_no_request(data, kind):
    with pytest.raises(RequestError) as refused:
        cimxml.parse(data)
    assert refused.value.kind == kind


def test_a_parameter_or_key_that_is_given_twice():
    twice = '<IPARAMVALUE NAME="a"/><IPARAMVALUE NAME="A"/>'
    with pytest.raises(CIMError, match="twice"):
        cimxml.parse(intrinsic("GetClass", twice))
    keys = DISK.replace("SystemName", "number")
    with pytest.raises(CIMError, match="twice"):
        cimxml.instance_name(cimxml.tree(keys.encode()))


def test_keys_in_all_their_forms():
    unnamed = '<INSTANCENAME CLASSNAME="C"><KEYVALUE>v</KEYVALUE></INSTANCENAME>'
    assert cimxml.instance_name(cimxml.tree(unnamed.encode())).keybindings[""] == "v"
    mixed = (
        '<INSTANCENAME CLASSNAME="C"><KEYBINDING NAME="b"><KEYVALUE VALUETYPE="boolean">true</KEYVALUE></KEYBINDING>'
        '<KEYBINDING NAME="n"><KEYVALUE VALUETYPE="numeric">-5</KEYVALUE></KEYBINDING>'
        f'<KEYBINDING NAME="r"><VALUE.REFERENCE>{DISK}</VALUE.REFERENCE></KEYBINDING></INSTANCENAME>'
    )
    assert dict(cimxml.instance_name(cimxml.tree(mixed.encode())).keybindings) == {"b": True, "n": -5, "r": DISK_PATH}


# --- answers


def test_an_answer_to_the_letter():
    assert answers.begin("10&1", "GetInstance", extrinsic=False) + answers.end(extrinsic=False) == (
        '<?xml version="1.0" encoding="utf-8" ?>\n<CIM CIMVERSION="2.0" DTDVERSION="2.0">'
        '<MESSAGE ID="10&amp;1" PROTOCOLVERSION="1.0"><SIMPLERSP><IMETHODRESPONSE NAME="GetInstance">'
        "</IMETHODRESPONSE></SIMPLERSP></MESSAGE></CIM>\n"
    )


def test_an_error_to_the_letter():
    assert answers.error(CIMError(CIM_ERR_NOT_FOUND, 'no "x"\x00')) == (
        '<ERROR CODE="6" DESCRIPTION="no &quot;x&quot;\ufffd"></ERROR>'
    )


def test_objects_with_their_paths_to_the_letter():
    path = CIMInstanceName("T_Disk", {"Number": Uint16(3)}, namespace="root/test")
    instance = CIMInstance("T_Disk", {"Size": CIMProperty("Size", None, type="uint64")}, path=path)
    name = '<INSTANCENAME CLASSNAME="T_Disk"><KEYBINDING NAME="Number"><KEYVALUE VALUETYPE="numeric" TYPE="uint16">3'
    name += "</KEYVALUE></KEYBINDING></INSTANCENAME>"
    whole = f"<INSTANCEPATH><NAMESPACEPATH><HOST>h:1</HOST>{NAMESPACE}</NAMESPACEPATH>{name}</INSTANCEPATH>"
    body = '<INSTANCE CLASSNAME="T_Disk"><PROPERTY NAME="Size" TYPE="uint64"></PROPERTY></INSTANCE>'
    assert answers.named_instance(instance) == f"<VALUE.NAMEDINSTANCE>{name}{body}</VALUE.NAMEDINSTANCE>"
    assert (
        answers.instance_with_path(instance, "h:1") == f"<VALUE.INSTANCEWITHPATH>{whole}{body}</VALUE.INSTANCEWITHPATH>"
    )
    assert answers.object_with_path(instance, "h:1") == f"<VALUE.OBJECTWITHPATH>{whole}{body}</VALUE.OBJECTWITHPATH>"
    assert answers.object_path(path, "h:1") == f"<OBJECTPATH>{whole}</OBJECTPATH>"
    assert answers.object_path(CIMClassName("C", namespace="root/test"), "h:1") == (
        f"<OBJECTPATH><CLASSPATH><NAMESPACEPATH><HOST>h:1</HOST>{NAMESPACE}</NAMESPACEPATH>"
        '<CLASSNAME NAME="C"/></CLASSPATH></OBJECTPATH>'
    )


def test_a_methods_result_to_the_letter():
    outputs = [
        CIMParameter("Job", "reference", reference_class="T_Job", value=None),
        CIMParameter("N", "uint8", is_array=True, value=[Uint8(1), None]),
        CIMParameter(
            "R", "reference", is_array=True, value=[CIMInstanceName("C", {"k": "v"}, namespace="root/test"), None]
        ),
    ]
    assert answers.method_result(Uint16(4096), "uint32", outputs) == (
        '<RETURNVALUE PARAMTYPE="uint32"><VALUE>4096</VALUE></RETURNVALUE>'
        '<PARAMVALUE NAME="Job" PARAMTYPE="reference"></PARAMVALUE>'
        '<PARAMVALUE NAME="N" PARAMTYPE="uint8"><VALUE.ARRAY><VALUE>1</VALUE><VALUE.NULL/></VALUE.ARRAY></PARAMVALUE>'
        f'<PARAMVALUE NAME="R" PARAMTYPE="reference"><VALUE.REFARRAY><VALUE.REFERENCE><LOCALINSTANCEPATH>{NAMESPACE}'
        '<INSTANCENAME CLASSNAME="C"><KEYBINDING NAME="k"><KEYVALUE VALUETYPE="string" TYPE="string">v</KEYVALUE>'
        "</KEYBINDING></INSTANCENAME></LOCALINSTANCEPATH></VALUE.REFERENCE><VALUE.NULL/></VALUE.REFARRAY></PARAMVALUE>"
    )


def test_the_state_of_a_pull_to_the_letter():
    assert answers.pull_state("c<1", end_of_sequence=False) == (
        '<PARAMVALUE NAME="EndOfSequence" PARAMTYPE="boolean"><VALUE>FALSE</VALUE></PARAMVALUE>'
        '<PARAMVALUE NAME="EnumerationContext" PARAMTYPE="string"><VALUE>c&lt;1</VALUE></PARAMVALUE>'
    )
    assert answers.pull_state(None, end_of_sequence=True).endswith('PARAMTYPE="string"></PARAMVALUE>')


def test_looking_for_keys_given_twice_is_linear():
    """Two megabytes of keys held the loop for seven seconds."""
    lowered = 0

    class Name(str):
        __slots__ = ()

        def lower(self):
            nonlocal lowered
            lowered += 1
            return super().lower()

    value = cimxml.Element("KEYVALUE", {}, texts=["x"])
    keys = [cimxml.Element("KEYBINDING", {"NAME": Name(f"K{number}")}, [value]) for number in range(1000)]
    cimxml.instance_name(cimxml.Element("INSTANCENAME", {"CLASSNAME": "C"}, keys))
    assert lowered <= 10 * len(keys)
