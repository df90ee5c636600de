"""The audit log: what is in it, what never is, and that it stays within its bounds."""

import asyncio
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from pywbem import CIMError, CIMInstance, CIMInstanceName, WBEMConnection

from cim_facade import audit, auditing, cimxml
from cim_facade.audit import AuditLog
from cim_facade.context import User
from tests.support import cim
from tests.unit.cim.test_server import NAMESPACE, body_of

SECRET = "correct-horse-battery"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


async def asked(facade, body, user=cim.ADMIN):
    request = cimxml.parse(body)
    return "".join([piece async for piece in facade.answer(request, user, "localhost")])


def recorded(path, instances=None):
    made = cim.facade(instances)
    made.audit = AuditLog(path)
    return made


def call(method, parameters=""):
    key = '<KEYBINDING NAME="Name"><KEYVALUE>svc</KEYVALUE></KEYBINDING>'
    target = f'<INSTANCENAME CLASSNAME="T_Service">{key}</INSTANCENAME>'
    path = f"<LOCALINSTANCEPATH>{NAMESPACE}{target}</LOCALINSTANCEPATH>"
    return body_of(f'<METHODCALL NAME="{method}">{path}{parameters}</METHODCALL>')


async def test_a_change_is_there_before_it_is_done_and_its_answer_behind_it(path):
    facade = recorded(path)
    await asked(facade, call("Act", '<PARAMVALUE NAME="Text"><VALUE>hello</VALUE></PARAMVALUE>'))
    begun, ended = lines(path)
    assert begun["event"] == "asked"
    assert (begun["user"], begun["operation"], begun["namespace"]) == ("joe", "Act", "root/test")
    assert begun["parameters"] == {"Text": "hello"}
    assert "T_Service" in begun["target"]
    assert (ended["event"], ended["id"], ended["return_value"]) == ("answered", begun["id"], 4096)
    assert "hello" in ended["outputs"]["Told"]
    (shown,) = AuditLog(path).last(10)
    assert (shown["user"], shown["operation"], shown["result"]) == ("joe", "Act", "4096")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_what_reads_and_what_readers_are_refused_is_not_recorded(path):
    facade = recorded(path)
    await asked(facade, call("GetName"))
    await asked(facade, body_of(f'<IMETHODCALL NAME="EnumerateClassNames">{NAMESPACE}</IMETHODCALL>'))
    with pytest.raises(CIMError):
        await asked(facade, call("Act"), cim.READER)
    assert not path.exists()


async def test_a_refused_change_has_its_error(path):
    with pytest.raises(CIMError):
        await asked(recorded(path), call("Act", '<PARAMVALUE NAME="Nothing"><VALUE>1</VALUE></PARAMVALUE>'))
    (shown,) = AuditLog(path).last(1)
    assert shown["result"].startswith("CIM error 4: ")


async def test_instances_that_are_made_changed_and_deleted(path, monkeypatch):
    facade = recorded(path)
    async with cim.served(facade) as (address, _):
        client: WBEMConnection = cim.client(address)
        made = CIMInstance("T_Tape", {"SystemName": "one", "Number": cim.pywbem.Uint16(7), "ElementName": "first"})

        def change():
            where = client.CreateInstance(made)
            found = client.GetInstance(where)
            found["ElementName"] = "second"
            client.ModifyInstance(found, PropertyList=["ElementName"])
            client.DeleteInstance(where)

        await asyncio.to_thread(change)
    created, modified, deleted = AuditLog(path).last(10)
    assert created["operation"] == "CreateInstance"
    assert created["user"] == "(loopback)"
    assert created["address"] == "127.0.0.1"
    assert created["parameters"]["NewInstance"]["ElementName"] == "first"
    assert "T_Tape" in created["outputs"]["InstanceName"]
    assert modified["parameters"]["ModifiedInstance"]["instance"]["ElementName"] == "second"
    assert "Number=7" in modified["parameters"]["ModifiedInstance"]["path"]
    assert deleted["parameters"] == {"InstanceName": "T_Tape.SystemName=one,Number=7"}
    assert {each["result"] for each in (created, modified, deleted)} == {"done"}


EMBEDDED = (
    f'<INSTANCE CLASSNAME="T_Setting"><PROPERTY NAME="Secret" TYPE="string"><VALUE>{SECRET}</VALUE></PROPERTY>'
    '<PROPERTY NAME="InstanceID" TYPE="string"><VALUE>s</VALUE></PROPERTY></INSTANCE>'
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("password", SECRET),
        ("NewPassword", SECRET),
        ("SharedSecret", SECRET),
        ("Setting", EMBEDDED.replace("<", "&lt;")),
        ("Setting", ("<INSTANCE broken " + SECRET).replace("<", "&lt;")),
        ("Destination", f"https://user:{SECRET}@listener.example:5990/a?b=c@d"),
    ],
)
async def test_no_secret_is_recorded(path, name, value):
    with pytest.raises(CIMError):
        await asked(recorded(path), call("Act", f'<PARAMVALUE NAME="{name}"><VALUE>{value}</VALUE></PARAMVALUE>'))
    assert SECRET not in path.read_text()
    assert name in lines(path)[0]["parameters"]


def test_references_and_arrays_are_recorded_in_words(path):
    key = '<KEYBINDING NAME="Name"><KEYVALUE>a</KEYVALUE></KEYBINDING>'
    reference = f'<VALUE.REFERENCE><INSTANCENAME CLASSNAME="T_Disk">{key}</INSTANCENAME></VALUE.REFERENCE>'
    within = f'<KEYBINDING NAME="End">{reference}</KEYBINDING>'
    outer = f'<VALUE.REFERENCE><INSTANCENAME CLASSNAME="T_Copy">{within}</INSTANCENAME></VALUE.REFERENCE>'
    numbers = "".join(f"<VALUE>{number}</VALUE>" for number in range(100))
    parameters = "".join(
        f'<PARAMVALUE NAME="{name}">{value}</PARAMVALUE>'
        for name, value in {
            "Device": reference,
            "Kept": outer,
            "Disks": f"<VALUE.REFARRAY>{reference * 2}</VALUE.REFARRAY>",
            "Numbers": f"<VALUE.ARRAY>{numbers}</VALUE.ARRAY>",
            "Text": f"<VALUE>{'x' * 10_000}</VALUE>",
            "Flag": "",
        }.items()
    )
    told = auditing.what_is_asked(cimxml.parse(call("Act", parameters)))["parameters"]
    assert told["Device"] == "T_Disk.Name=a"
    assert told["Kept"] == "T_Copy.End=T_Disk.Name=a"
    assert told["Disks"] == ["T_Disk.Name=a"] * 2
    assert told["Numbers"][-2:] == ["63", "(100 in all)"]
    assert told["Text"] == "x" * 256 + "..."
    assert told["Flag"] is None


def test_instances_within_instances_are_recorded_as_deep_as_they_are_understood():
    """Each level is read anew: 400 of them in 2 MiB took seconds, and more frames than there are."""
    text = "<INSTANCE CLASSNAME='T'/>"
    for _ in range(200):
        within = text.replace("&", "&amp;").replace("<", "&lt;")
        text = f"<INSTANCE CLASSNAME='T'><PROPERTY NAME='p' TYPE='string'><VALUE>{within}</VALUE></PROPERTY></INSTANCE>"
    told = auditing._embedded(text, 1)
    for _ in range(cimxml.MAX_EMBEDDED_DEPTH):
        told = told["p"]
    assert told == "(embedded too deep)"


def test_a_line_is_bounded_and_so_are_the_files(path, monkeypatch):
    monkeypatch.setattr(audit, "MAX_FILE_BYTES", 50_000)
    log = AuditLog(path)
    for number in range(100):
        log.append(
            {"event": "done", "operation": str(number), "parameters": {"a": "x" * (20_000 if number % 2 else 5000)}}
        )
    files = sorted(path.parent.iterdir())
    assert [each.name for each in files] == [path.name, *(f"{path.name}.{n}" for n in range(1, audit.KEPT + 1))]
    assert all(each.stat().st_size < 50_000 + audit.MAX_LINE_BYTES for each in files)
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o600 for each in files)
    assert [each["operation"] for each in log.last(5)] == ["95", "96", "97", "98", "99"]
    assert 20 < len(log.last(1000)) < 100


def test_an_answer_with_long_outputs_is_bounded(path):
    log = AuditLog(path)
    log.append({"id": "1", "event": "asked", "user": "joe", "operation": "Act", "target": "t"})
    log.append({"id": "1", "event": "answered", "return_value": 0, "outputs": {"a": ["x" * 1000] * 64}})
    assert all(len(line) <= audit.MAX_LINE_BYTES for line in path.read_text().splitlines())
    (shown,) = log.last(1)
    assert shown["result"] == "0"


def test_half_a_line_on_a_full_disk_does_not_take_the_next_one_with_it(path, monkeypatch):
    log, write = AuditLog(path), os.write
    log.append({"event": "done", "operation": "first"})
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:9]))
    with pytest.raises(OSError, match="No space"):
        log.append({"event": "done", "operation": "lost"})
    monkeypatch.undo()
    log.append({"event": "done", "operation": "last"})
    assert [each["operation"] for each in log.last(5)] == ["first", "last"]


def _append(path, count):
    log = AuditLog(path)
    for number in range(count):
        log.append({"event": "done", "operation": str(number)})


def test_who_writes_at_the_same_time_loses_nothing(path, monkeypatch):
    """Each line opens the file anew, so that threads stand for processes."""
    monkeypatch.setattr(audit, "MAX_FILE_BYTES", 20_000)
    with ThreadPoolExecutor(3) as writers:
        list(writers.map(_append, [path] * 3, [200] * 3))
    assert len(AuditLog(path).last(1000)) == 600


def test_what_has_no_answer_and_what_is_half_a_line(path):
    AuditLog(path).append({"id": "1", "event": "asked", "user": "joe", "operation": "Act", "target": "t"})
    with path.open("a") as file:
        file.write('{"event": "ans\n[]\n')
    (shown,) = AuditLog(path).last(5)
    assert shown["result"] == "no answer"


async def test_a_log_that_cannot_be_written_keeps_nobody_from_working(path, caplog):
    path.mkdir()
    assert "RETURNVALUE" in await asked(recorded(path), call("Act"))
    assert "not in the audit log" in caplog.text


def test_results_in_words():
    path = CIMInstanceName("T_Disk", {"Name": "a"}, namespace="root/test")
    assert auditing.told_value([path, None, 5, True]) == ['/root/test:T_Disk.Name="a"', None, 5, True]
    assert auditing.told_value(CIMInstance("T_Disk")) == {"class": "T_Disk"}
    assert User("", administrator=True, secure=True).login.address == "here"
