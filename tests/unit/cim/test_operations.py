"""What the operations answer where DSP0200 leaves a choice, where pywbem's mock departs from it, and every error."""

import asyncio
import contextlib

import pytest
import pywbem
from pywbem import (
    CIM_ERR_ACCESS_DENIED,
    CIM_ERR_CONTINUATION_ON_ERROR_NOT_SUPPORTED,
    CIM_ERR_INVALID_CLASS,
    CIM_ERR_INVALID_ENUMERATION_CONTEXT,
    CIM_ERR_INVALID_NAMESPACE,
    CIM_ERR_INVALID_PARAMETER,
    CIM_ERR_INVALID_QUERY,
    CIM_ERR_METHOD_NOT_AVAILABLE,
    CIM_ERR_METHOD_NOT_FOUND,
    CIM_ERR_NOT_FOUND,
    CIM_ERR_NOT_SUPPORTED,
    CIM_ERR_QUERY_LANGUAGE_NOT_SUPPORTED,
    CIMClassName,
    CIMError,
    CIMInstance,
    CIMInstanceName,
    Uint8,
    Uint16,
    Uint64,
)

from cim_facade import cimxml
from tests.support import cim

SERVICE = CIMInstanceName("T_Service", {"Name": "svc"}, namespace=cim.NS)
SYSTEM = CIMInstanceName("T_System", {"Name": "one"}, namespace=cim.NS)


def disk(number=1, **keys):
    return CIMInstanceName("T_Disk", {"SystemName": "one", "Number": Uint16(number), **keys}, namespace=cim.NS)


@contextlib.asynccontextmanager
async def talking():
    """``ask(operation, ...)``: what a client is answered."""
    async with cim.served(cim.facade()) as (address, _):
        connection = cim.client(address)

        async def ask(operation, *arguments, **options):
            return await asyncio.to_thread(getattr(connection, operation), *arguments, **options)

        yield ask
        connection.close()


async def answered(operation, *arguments, **options):
    async with talking() as ask:
        return await ask(operation, *arguments, **options)


async def refused(code, operation, *arguments, **options):
    with pytest.raises(CIMError) as caught:
        await answered(operation, *arguments, **options)
    assert caught.value.status_code == code
    return caught.value.status_description


@pytest.mark.parametrize(
    ("code", "operation", "arguments", "options"),
    [
        (CIM_ERR_INVALID_NAMESPACE, "EnumerateClassNames", ["root/none"], {}),
        (CIM_ERR_NOT_FOUND, "GetClass", ["T_None"], {}),
        (CIM_ERR_INVALID_CLASS, "EnumerateClassNames", [], {"ClassName": "T_None"}),
        (CIM_ERR_INVALID_CLASS, "EnumerateClasses", [], {"ClassName": "T_None"}),
        (CIM_ERR_INVALID_CLASS, "EnumerateInstances", ["T_None"], {}),
        (CIM_ERR_INVALID_CLASS, "EnumerateInstanceNames", ["T_None"], {}),
        (CIM_ERR_NOT_FOUND, "GetQualifier", ["None"], {}),
        (CIM_ERR_INVALID_CLASS, "GetInstance", [CIMInstanceName("T_None", {"a": "b"})], {}),
        (CIM_ERR_NOT_FOUND, "GetInstance", [disk(99)], {}),
        (CIM_ERR_NOT_FOUND, "GetInstance", [CIMInstanceName("T_Device", disk().keybindings)], {}),
        (CIM_ERR_INVALID_PARAMETER, "GetInstance", [disk(1, Extra="x")], {}),
        (CIM_ERR_INVALID_PARAMETER, "GetInstance", [CIMInstanceName("T_Disk", {"Number": Uint16(1)})], {}),
        (CIM_ERR_NOT_FOUND, "GetInstance", [CIMInstanceName("T_Disk", {"SystemName": "one", "Number": "1"})], {}),
        (CIM_ERR_NOT_FOUND, "Associators", [disk(99)], {}),
        (CIM_ERR_NOT_FOUND, "ReferenceNames", [disk(99)], {}),
        (CIM_ERR_INVALID_PARAMETER, "Associators", [CIMInstanceName("T_None", {"a": "b"})], {}),
        (CIM_ERR_INVALID_PARAMETER, "Associators", [disk()], {"AssocClass": "T_None"}),
        (CIM_ERR_INVALID_PARAMETER, "AssociatorNames", [disk()], {"ResultClass": "T_None"}),
        (CIM_ERR_INVALID_PARAMETER, "References", [disk()], {"ResultClass": "T_None"}),
        (CIM_ERR_INVALID_PARAMETER, "Associators", ["T_None"], {}),
        (CIM_ERR_INVALID_QUERY, "OpenEnumerateInstances", ["T_Disk"],
         {"FilterQueryLanguage": "DMTF:FQL", "FilterQuery": "Weight > 3"}),
        (CIM_ERR_INVALID_QUERY, "OpenReferenceInstancePaths", [disk()],
         {"FilterQueryLanguage": "DMTF:FQL", "FilterQuery": ""}),
        (CIM_ERR_QUERY_LANGUAGE_NOT_SUPPORTED, "OpenEnumerateInstancePaths", ["T_Disk"],
         {"FilterQueryLanguage": "DMTF:CQL", "FilterQuery": "Size > 3"}),
        (CIM_ERR_INVALID_PARAMETER, "OpenEnumerateInstances", ["T_Disk"], {"FilterQuery": "Size > 3"}),
        (CIM_ERR_INVALID_PARAMETER, "OpenAssociatorInstances", [disk()], {"FilterQueryLanguage": "DMTF:FQL"}),
        (CIM_ERR_CONTINUATION_ON_ERROR_NOT_SUPPORTED, "OpenEnumerateInstances", ["T_Disk"], {"ContinueOnError": True}),
        (CIM_ERR_INVALID_CLASS, "OpenEnumerateInstancePaths", ["T_None"], {"MaxObjectCount": 1}),
        (CIM_ERR_NOT_FOUND, "OpenAssociatorInstances", [disk(99)], {"MaxObjectCount": 1}),
        (CIM_ERR_INVALID_ENUMERATION_CONTEXT, "PullInstancePaths", [("none", cim.NS), 1], {}),
        (CIM_ERR_INVALID_ENUMERATION_CONTEXT, "CloseEnumeration", [("none", cim.NS)], {}),
        (CIM_ERR_NOT_SUPPORTED, "ExecQuery", ["WQL", "select * from T_Disk"], {}),
        (CIM_ERR_NOT_SUPPORTED, "OpenQueryInstances", ["DMTF:CQL", "x"], {}),
        (CIM_ERR_NOT_SUPPORTED, "DeleteClass", ["T_Disk"], {}),
        (CIM_ERR_NOT_SUPPORTED, "DeleteQualifier", ["Key"], {}),
        (CIM_ERR_NOT_SUPPORTED, "CreateInstance", [CIMInstance("T_Element")], {}),
        (CIM_ERR_NOT_FOUND, "DeleteInstance", [disk(99)], {}),
    ],
    ids=str,
)  # fmt: skip
async def test_errors(code, operation, arguments, options):
    assert await refused(code, operation, *arguments, **options)


@pytest.mark.parametrize(
    ("code", "method", "target", "params"),
    [
        (CIM_ERR_METHOD_NOT_FOUND, "Nothing", SERVICE, {}),
        (CIM_ERR_METHOD_NOT_AVAILABLE, "Missing", SERVICE, {}),
        (CIM_ERR_NOT_FOUND, "Act", CIMInstanceName("T_Service", {"Name": "x"}), {}),
        (CIM_ERR_NOT_FOUND, "Act", CIMInstanceName("T_None", {"Name": "x"}), {}),
        (CIM_ERR_INVALID_PARAMETER, "Act", CIMClassName("T_Service"), {}),
        (CIM_ERR_INVALID_PARAMETER, "Act", SERVICE, {"Nothing": "x"}),
        (CIM_ERR_INVALID_PARAMETER, "Act", SERVICE, {"Small": Uint16(256)}),
        (CIM_ERR_INVALID_PARAMETER, "Act", SERVICE, {"Small": [Uint8(1)]}),
        (CIM_ERR_INVALID_PARAMETER, "Act", SERVICE, {"Numbers": Uint16(1)}),
        (CIM_ERR_INVALID_PARAMETER, "Act", SERVICE, {"Device": "T_Disk"}),
        (CIM_ERR_INVALID_PARAMETER, "Act", SERVICE, {"Text": disk()}),
        (CIM_ERR_INVALID_PARAMETER, "Act", SERVICE, {"Device": SYSTEM}),
        (CIM_ERR_INVALID_PARAMETER, "Act", SERVICE, {"Device": CIMInstanceName("T_None", {"a": "b"})}),
        (CIM_ERR_INVALID_PARAMETER, "Act", SERVICE, {"Disks": [disk(), CIMInstanceName("T_Tape", disk().keybindings)]}),
        (CIM_ERR_INVALID_PARAMETER, "Act", SERVICE,
         {"Device": CIMInstanceName("T_Disk", disk().keybindings, namespace="root/none")}),
        (CIM_ERR_INVALID_PARAMETER, "Act", SERVICE,
         {"Device": CIMInstanceName("T_Disk", disk().keybindings, namespace="root/other")}),
        (CIM_ERR_INVALID_PARAMETER, "Act", SERVICE, {"Told": "an output"}),
        (CIM_ERR_INVALID_PARAMETER, "Act", SERVICE, {"Setting": CIMInstance("T_System", {"Name": "x"})}),
        (CIM_ERR_INVALID_PARAMETER, "Act", SERVICE, {"Setting": CIMInstance("T_None")}),
        (CIM_ERR_INVALID_PARAMETER, "Act", SERVICE, {"Setting": CIMInstance("T_Setting", {"Nothing": "x"})}),
        (CIM_ERR_INVALID_PARAMETER, "Act", SERVICE, {"Setting": CIMInstance("T_Setting", {"Level": "x"})}),
        (CIM_ERR_INVALID_PARAMETER, "Act", SERVICE, {"Setting": "<INSTANCE"}),
    ],
    ids=str,
)  # fmt: skip
async def test_what_is_wrong_with_an_invocation(code, method, target, params):
    await refused(code, "InvokeMethod", method, target, **params)


async def test_an_invocation_gives_and_takes_everything():
    setting = CIMInstance("T_Setting", {"InstanceID": "x", "Level": Uint8(3)})
    value, outputs = await answered(
        "InvokeMethod",
        "act",
        SERVICE,
        Small=Uint8(1),
        Disks=[disk(1), disk(2)],
        Setting=setting,
        Kept=disk(3),
        Text=None,
    )
    assert value == 4096
    assert list(outputs) == ["Kept", "Told", "Found", "Made"]
    assert outputs["Kept"] == disk(3)
    assert outputs["Found"] == [disk(1), disk(2)]
    assert outputs["Made"]["Level"] == 3
    assert "Text=None" in outputs["Told"]
    assert "Flag" not in outputs["Told"]


async def test_an_output_that_has_no_value_is_left_out():
    """pywbemcli 1.4.1 ends with a traceback at a reference that is NULL."""
    _, outputs = await answered("InvokeMethod", "Act", SERVICE)
    assert "Kept" not in outputs
    assert "Found" not in outputs


async def test_static_methods_are_invoked_on_the_class():
    assert await answered("InvokeMethod", "Reset", CIMClassName("T_Service", namespace=cim.NS)) == (0, {})


async def test_properties_that_nothing_is_said_of_are_there():
    found = await answered("GetInstance", disk())
    assert {name.lower() for name in found.properties} == {
        name.lower() for name in cim.CLASSES.get(cim.NS, "T_Disk").properties
    }
    assert (found["Size"], found["Made"]) == (2**64 - 1, None)


async def test_local_only_and_qualifiers_are_nothing_for_instances():
    found = await answered("GetInstance", disk(), LocalOnly=True, IncludeQualifiers=True)
    assert "Caption" in found.properties
    assert not found.properties["Size"].qualifiers


async def test_class_origin_of_instances():
    found = await answered("GetInstance", disk(), IncludeClassOrigin=True)
    assert found.properties["Serial"].class_origin == "T_Disk"
    assert found.properties["ElementName"].class_origin == "T_Element"
    assert (await answered("GetInstance", disk())).properties["Serial"].class_origin is None


async def test_what_a_class_overrides_is_its_own():
    found = await answered("GetClass", "T_Device", LocalOnly=True, IncludeClassOrigin=True)
    assert list(found.properties) == ["ElementName", "SystemName", "Number", "Size", "Ready", "Made"]
    assert found.properties["ElementName"].class_origin == "T_Element"
    bare = await answered("GetClass", "T_Device", LocalOnly=False, IncludeQualifiers=False, PropertyList=["size"])
    assert (list(bare.properties), list(bare.methods), list(bare.qualifiers)) == (["Size"], ["Resize"], [])


async def test_a_class_without_qualifiers_leaves_the_class_as_it_was():
    before = [each.copy() for each in cim.CLASSES.all(cim.NS)]
    await answered("EnumerateClasses", DeepInheritance=True, LocalOnly=False, IncludeQualifiers=False)
    after = cim.CLASSES.all(cim.NS)
    assert [each.tocimxmlstr() for each in after] == [each.tocimxmlstr() for each in before]
    assert "Out" in cim.CLASSES.get(cim.NS, "T_Service").methods["Act"].parameters["Told"].qualifiers


async def test_associations_of_classes():
    async with talking() as ask:
        found = await ask("AssociatorNames", "T_Disk")
        assert sorted(path.classname for path in found) == ["T_Disk", "T_Element", "T_System"]
        found = await ask("AssociatorNames", "T_Disk", AssocClass="T_Copy", Role="antecedent")
        assert [path.classname for path in found] == ["T_Disk"]
        found = await ask("AssociatorNames", "T_Tape", ResultClass="T_System", ResultRole="Antecedent")
        assert [path.classname for path in found] == ["T_System"]
        found = await ask("ReferenceNames", "T_System")
        assert [path.classname for path in found] == ["T_Dependency", "T_SystemDevice"]
        [(path, of)] = await ask("References", "T_Tape", ResultClass="T_SystemDevice", PropertyList=["Bay"])
        assert (path.classname, list(of.properties)) == ("T_SystemDevice", ["Bay"])


async def test_a_key_without_its_name_is_the_only_one():
    """DSP0201 5.4.3.2.2; pywbem does not send it."""
    facade = cim.facade()
    body = (
        '<CIM CIMVERSION="2.0" DTDVERSION="2.0"><MESSAGE ID="1" PROTOCOLVERSION="1.0"><SIMPLEREQ>'
        '<IMETHODCALL NAME="GetInstance"><LOCALNAMESPACEPATH><NAMESPACE NAME="root"/><NAMESPACE NAME="test"/>'
        '</LOCALNAMESPACEPATH><IPARAMVALUE NAME="InstanceName"><INSTANCENAME CLASSNAME="T_System">'
        "<KEYVALUE>one</KEYVALUE></INSTANCENAME></IPARAMVALUE></IMETHODCALL></SIMPLEREQ></MESSAGE></CIM>"
    )
    answer = "".join([piece async for piece in facade.answer(cimxml.parse(body.encode()), cim.ADMIN, "h")])
    assert '<PROPERTY NAME="Name" TYPE="string"><VALUE>one</VALUE>' in answer


async def test_instances_are_made_changed_and_deleted_where_the_provider_does():
    async with talking() as ask:
        path = await ask("CreateInstance", CIMInstance("T_Tape", {"SystemName": "one", "Number": Uint16(9)}))
        changed = CIMInstance("T_Tape", {"Caption": "c", "Size": Uint64(5)}, path=path)
        await ask("ModifyInstance", changed, PropertyList=["caption"])
        found = await ask("GetInstance", path)
        assert (found["Caption"], found["Size"]) == ("c", 512)
        await ask("DeleteInstance", path)
        with pytest.raises(CIMError):
            await ask("GetInstance", path)


@pytest.mark.parametrize("name", ["CreateInstance", "ModifyInstance", "DeleteInstance"])
async def test_readers_change_nothing(name):
    facade = cim.facade()
    request = cimxml.Request("1", cim.NS, name, False, None, {})
    with pytest.raises(CIMError) as caught:
        async for _ in facade.answer(request, cim.READER, "h"):
            pass
    assert caught.value.status_code == CIM_ERR_ACCESS_DENIED


async def test_readers_call_what_only_reads():
    facade = cim.facade()

    async def invoked(name):
        request = cimxml.Request("1", cim.NS, name, True, SERVICE.copy(), {})
        return "".join([piece async for piece in facade.answer(request, cim.READER, "h")])

    assert "<VALUE>svc</VALUE>" in await invoked("GetName")
    with pytest.raises(CIMError) as caught:
        await invoked("Act")
    assert caught.value.status_code == CIM_ERR_ACCESS_DENIED


def test_every_operation_of_pywbems_client_is_known():
    """Or is one of those that are not supported on purpose."""
    from cim_facade.dispatch import OPERATIONS

    left_out = {"ExecQuery", "OpenQueryInstances", "PullInstances", "ExportIndication", "InvokeMethod"}
    left_out |= {"CreateClass", "ModifyClass", "DeleteClass", "SetQualifier", "DeleteQualifier"}
    verbs = ("Enumerate", "Get", "Create", "Modify", "Delete", "Associator", "Reference", "Open", "Pull", "Close")
    client = {name for name in dir(pywbem.WBEMConnection) if name.startswith(verbs)}
    assert client - left_out == set(OPERATIONS)


async def test_filtered_enumerations():
    """Of instances and paths, from classes and by associations; the condition may ask what is not in PropertyList."""
    async with talking() as ask:

        async def numbers(operation, *arguments, query, **options):
            options |= {"FilterQueryLanguage": "DMTF:FQL", "FilterQuery": query, "MaxObjectCount": 100}
            result = await ask(operation, *arguments, **options)
            assert result.eos
            if operation.endswith("Paths"):
                return [path["Number"] for path in result.paths]
            return [each.path["Number"] for each in result.instances]

        assert await numbers("OpenEnumerateInstances", "T_Disk", query="Number > 2 AND Ready = TRUE") == [4, 6]
        assert await numbers("OpenEnumerateInstancePaths", "T_Device", query="Serial = 'serial 3'") == [3]
        system = {"AssocClass": "T_SystemDevice", "ResultClass": "T_Disk"}
        assert await numbers("OpenAssociatorInstances", SYSTEM, query="NOT Number < 5", **system) == [5, 6]
        assert await numbers("OpenAssociatorInstancePaths", SYSTEM, query="Setting IS NOT NULL", **system) == [0]
        found = await ask(
            "OpenEnumerateInstances", "T_Disk", FilterQueryLanguage="dmtf:fql", FilterQuery="Number = 1",
            PropertyList=["Serial"], MaxObjectCount=9,
        )  # fmt: skip
        assert [dict(each) for each in found.instances] == [{"Serial": "serial 1"}]
        references = await ask(
            "OpenReferenceInstances", disk(1), ResultClass="T_Copy", MaxObjectCount=9,
            FilterQueryLanguage="DMTF:FQL", FilterQuery="State = 4",
        )  # fmt: skip
        assert len(references.instances) == 2
        open_one = await ask(
            "OpenEnumerateInstances", "T_Disk", FilterQueryLanguage="DMTF:FQL", FilterQuery="Number <> 0",
            MaxObjectCount=1,
        )  # fmt: skip
        assert not open_one.eos
        rest = await ask("PullInstancesWithPath", open_one.context, 100)
        assert [each.path["Number"] for each in rest.instances] == [2, 3, 4, 5, 6]
