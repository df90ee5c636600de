"""The CIM facade as real clients use it: pywbem over HTTPS, pywbemcli, sblim's wbemcli, and a request by hand."""

from __future__ import annotations

import base64
import hashlib
import http.client
import importlib.metadata
import json
import ssl
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import pywbem
from pywbem import CIM_ERR_ACCESS_DENIED, CIM_ERR_INVALID_NAMESPACE, CIMError, Uint16

from tests.support import wbem
from tests.support.daemon import ROOT, twinvol
from tests.support.wbem import NAMESPACE, Wbem, serving
from tests.unit.daemon.test_certificate import foreign

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VOLUME = "MSISCSITARGET_StorageVolume"
REPLICATION = "MSISCSITARGET_ReplicationService"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wbem]:
    for made in serving(tmp_path_factory.mktemp("wbem") / "pool"):
        made.daemon.run("volume", "create", "first", "--size", "1G", "--expose")
        made.daemon.run("volume", "create", "second", "--size", "64M")
        yield made


@pytest.fixture(autouse=True)
def _own_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)


def url_of(path: pywbem.CIMInstanceName) -> str:
    """A path as command lines take it: CLASS.key="value",..."""
    bare = path.copy()
    bare.host = bare.namespace = None
    return bare.to_wbem_uri().lstrip("/:")


def volume(connection: pywbem.WBEMConnection, name: str) -> pywbem.CIMInstance:
    [found] = [each for each in connection.EnumerateInstances(VOLUME) if each["ElementName"] == name]
    return found


def test_pywbem_over_https_walks_from_the_system_to_a_volume(served: Wbem):
    connection = served.connection()
    [system] = connection.EnumerateInstanceNames("CIM_ComputerSystem")
    volumes = connection.Associators(system, AssocClass="CIM_SystemDevice", ResultClass="CIM_StorageVolume")
    assert {"first", "second"} <= {each["ElementName"] for each in volumes}
    [first] = [each for each in volumes if each["ElementName"] == "first"]
    assert first["BlockSize"] * first["NumberOfBlocks"] == 1 << 30
    pulled = list(connection.IterEnumerateInstances(VOLUME, MaxObjectCount=1))
    assert {each.path.to_wbem_uri() for each in pulled} >= {each.path.to_wbem_uri() for each in volumes}
    for each in connection.ReferenceNames(first.path):
        assert connection.GetInstance(each).classname == each.classname


def test_a_password_that_is_wrong_and_a_reader(served: Wbem):
    with pytest.raises(pywbem.AuthError):
        served.connection(password="wrong-horse").EnumerateClassNames()
    reader = served.connection(wbem.READER, wbem.READER_PASSWORD)
    [service] = reader.EnumerateInstanceNames("MSISCSITARGET_ReplicationService")
    with pytest.raises(CIMError) as refused:
        reader.InvokeMethod("CreateElementReplica", service, SyncType=Uint16(7))
    assert refused.value.status_code == CIM_ERR_ACCESS_DENIED


def test_who_does_not_trust_the_certificate_sends_nothing(served: Wbem):
    with pytest.raises(pywbem.ConnectionError, match="CERTIFICATE"):
        pywbem.WBEMConnection(f"https://{served.address}", (wbem.USER, wbem.PASSWORD)).EnumerateClassNames()


def test_loopback_http_is_an_administrators(served: Wbem):
    connection = pywbem.WBEMConnection(
        f"http://{served.plain_address}", default_namespace="Root/CIMv2/Storage/iScsiTarget"
    )
    assert connection.EnumerateInstanceNames(VOLUME)
    with pytest.raises(CIMError) as refused:
        connection.EnumerateClassNames(namespace="root/none")
    assert refused.value.status_code == CIM_ERR_INVALID_NAMESPACE


def test_the_server_says_what_it_is(served: Wbem):
    server = pywbem.WBEMServer(served.connection(namespace="interop"))
    assert set(server.namespaces) == {NAMESPACE, "root/microsoft/windows/storage/sm", "interop"}
    assert server.brand == "twinvol"
    assert server.version == importlib.metadata.version("twinvol")
    assert server.interop_ns == "interop"
    for namespace in ("interop", "root/interop", "ROOT/Interop"):
        (manager,) = served.connection(namespace=namespace).EnumerateInstances("CIM_ObjectManager")
        assert manager["Name"] == server.cimom_inst["Name"]


def test_an_example_program_goes_from_the_url_to_a_finished_mirror(served: Wbem, tmp_path: Path):
    """By associations alone, over HTTPS."""
    password = tmp_path / "password"
    password.write_text(wbem.PASSWORD + "\n")
    given = [f"https://{served.address}", "--user", wbem.USER, "--password-file", password]
    command = [sys.executable, ROOT / "examples" / "wbem_mirror.py", *given, "--ca-certs", served.certificate]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=wbem.clean_environment()
    )
    assert run.returncode == 0, run.stderr
    assert "CopyState 4, Mode 2" in run.stdout
    (replica,) = served.daemon.run("replica", "list")["replicas"]
    assert (replica["source"], replica["mode"], replica["copy_state"]) == ("ledger", "sync", "Synchronized")


def test_m_post(served: Wbem):
    """RFC 2774, as DSP0200 7.2.2 lets a client begin."""
    space = "".join(f'<NAMESPACE NAME="{part}"/>' for part in NAMESPACE.split("/"))
    body = (
        '<CIM CIMVERSION="2.0" DTDVERSION="2.0"><MESSAGE ID="1" PROTOCOLVERSION="1.0"><SIMPLEREQ><IMETHODCALL '
        f'NAME="EnumerateClassNames"><LOCALNAMESPACEPATH>{space}</LOCALNAMESPACEPATH></IMETHODCALL></SIMPLEREQ>'
        "</MESSAGE></CIM>"
    )
    host, port = served.address.split(":")
    trusting = ssl.create_default_context(cafile=served.certificate)
    connection = http.client.HTTPSConnection(host, int(port), context=trusting, timeout=30)
    token = base64.b64encode(f"{wbem.USER}:{wbem.PASSWORD}".encode()).decode()
    headers = {
        "Content-Type": 'application/xml; charset="utf-8"',
        "Authorization": f"Basic {token}",
        "Man": "http://www.dmtf.org/cim/mapping/http/v1.0 ; ns=73",
        "73-CIMOperation": "MethodCall",
        "73-CIMMethod": "EnumerateClassNames",
        "73-CIMObject": NAMESPACE.replace("/", "%2F"),
    }
    connection.request("M-POST", "/cimom", body, headers)
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("73-CIMOperation"), answer.getheader("Ext")) == (200, "MethodResponse", "")
    assert b"CLASSNAME" in answer.read()
    connection.request("M-POST", "/cimom", body, headers | {"Man": "other"})
    assert connection.getresponse().status == 510
    connection.close()


def test_users_come_and_go_while_it_serves(served: Wbem):
    pool = ["--json", "--pool", str(served.daemon.pool)]
    wbem.add_user(served.daemon.pool, "eve", "admin", "long enough")
    listed = json.loads(twinvol("wbem", "user", "list", *pool).stdout)["users"]
    assert [(each["name"], each["role"]) for each in listed] == [("joe", "admin"), ("ann", "reader"), ("eve", "admin")]
    assert served.connection("eve", "long enough").EnumerateClassNames()
    assert twinvol("wbem", "user", "password", "eve", "--password-file", "/dev/null", *pool).returncode == 2
    assert twinvol("wbem", "user", "remove", "eve", *pool).returncode == 0
    with pytest.raises(pywbem.AuthError):
        served.connection("eve", "long enough").EnumerateClassNames()
    assert twinvol("wbem", "user", "remove", "eve", *pool).returncode == 3
    assert (
        twinvol("wbem", "user", "add", "joe", "--role", "admin", "--password-file", "/dev/null", *pool).returncode == 2
    )


def test_the_certificate_is_replaced_while_it_serves(served: Wbem, tmp_path: Path):
    """Connections that are open go on; new ones get the new one."""
    pool = ["--json", "--pool", str(served.daemon.pool)]

    def fingerprint() -> str:
        pem = ssl.get_server_certificate(tuple(served.address.split(":")), timeout=30)
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()

    before = json.loads(twinvol("wbem", "certificate", "show", *pool).stdout)
    assert (before["sha256"], before["own"]) == (fingerprint(), True)
    going_on = served.connection()
    assert going_on.EnumerateClassNames()
    made, key = foreign(tmp_path, names=("localhost",))
    replaced = twinvol("wbem", "certificate", "replace", "--certificate", str(made), "--key", str(key), *pool)
    assert replaced.returncode == 0, replaced.stderr
    assert json.loads(replaced.stdout)["sha256"] == fingerprint() != before["sha256"]
    assert going_on.EnumerateClassNames()
    with pytest.raises(pywbem.ConnectionError, match="CERTIFICATE"):
        served.connection().EnumerateClassNames()
    renewed = json.loads(twinvol("wbem", "certificate", "renew", "--name", "array.example", *pool).stdout)
    assert {"localhost", "array.example"} <= set(renewed["names"])
    assert renewed["sha256"] == fingerprint()
    assert (twinvol("wbem", "certificate", "renew", "--name", "a b", *pool).returncode) == 2
    assert served.connection().EnumerateClassNames()


def test_changes_are_in_the_audit_log(served: Wbem):
    """Who, from where, what, and what came of it; what reads is not there."""
    connection = served.connection()
    [service] = connection.EnumerateInstanceNames("MSISCSITARGET_StorageConfigurationService")
    given = {"ElementName": "audited", "ElementType": Uint16(2), "Size": pywbem.Uint64(1 << 20)}
    code, made = connection.InvokeMethod("CreateOrModifyElementFromStoragePool", service, **given)
    assert code == 0
    assert connection.InvokeMethod("ReturnToStoragePool", service, TheElement=made["TheElement"])[0] == 0
    pool = ["--json", "--pool", str(served.daemon.pool)]
    created, returned = json.loads(twinvol("wbem", "audit", "show", "--last", "2", *pool).stdout)["changes"]
    assert (created["user"], created["address"], created["result"]) == (wbem.USER, "127.0.0.1", "0")
    assert created["parameters"] == {"ElementName": "audited", "ElementType": "2", "Size": str(1 << 20)}
    assert made["TheElement"]["DeviceID"] in created["outputs"]["TheElement"]
    assert returned["operation"] == "ReturnToStoragePool"
    assert made["TheElement"]["DeviceID"] in returned["parameters"]["TheElement"]
    log = served.daemon.pool / "wbem-audit.jsonl"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert wbem.PASSWORD not in log.read_text()
    operations = [each["operation"] for each in json.loads(twinvol("wbem", "audit", "show", *pool).stdout)["changes"]]
    assert "user add" in operations
    assert not any(each.startswith(("Enumerate", "Get")) for each in operations)


@pytest.mark.client("pywbemcli")
def test_pywbemcli(served: Wbem):
    first = url_of(volume(served.connection(), "first").path)
    [service] = served.connection().EnumerateInstanceNames("MSISCSITARGET_ReplicationService")

    def done(*arguments: str, namespace: str = NAMESPACE) -> str:
        run = served.pywbemcli(*arguments, namespace=namespace)
        assert run.returncode == 0, (arguments, run.stdout, run.stderr)
        return run.stdout

    assert "CIM_ManagedElement" in done("class", "enumerate", "--no")
    assert "uint64 BlockSize" in done("class", "get", VOLUME)
    table = done("-o", "table", "instance", "enumerate", VOLUME, "--pl", "DeviceID,ElementName")
    assert '"first"' in table
    assert '"second"' in table
    assert 'ElementName = "first"' in done("instance", "get", first)
    assert "MSFTSM_ComputerSystem" in done("instance", "associators", first, "--ac", "CIM_SystemDevice", "--no")
    assert "MSISCSITARGET_SystemDevice" in done("instance", "shrub", first)
    assert VOLUME in done("instance", "count", VOLUME)
    assert f"{NAMESPACE}" in done("namespace", "list", namespace="interop")
    assert "twinvol" in done("server", "info", namespace="interop")
    source = f"/{NAMESPACE}:{first}"
    options = ["-p", "SyncType=7", "-p", "ElementName=by pywbemcli", "-p", f"SourceElement={source}"]
    answer = done("instance", "invokemethod", f"{REPLICATION}.?", "CreateElementReplica", *options)
    assert "ReturnValue=0" in answer or "ReturnValue=4096" in answer
    assert "by pywbemcli" in done("-o", "table", "instance", "enumerate", VOLUME, "--pl", "ElementName")
    assert "Replication Services" in done("profile", "list", namespace="interop")
    assert "MSFTSM_ComputerSystem" in done(
        "instance", "associators", url_of(service), "--ac", "CIM_HostedService", "--no"
    )
    options = ["-p", "SyncType=8", "-p", f"SourceElement={source}"]
    assert "ReturnValue=4096" in done("instance", "invokemethod", f"{REPLICATION}.?", "CreateElementReplica", *options)
    job = url_of(served.connection().EnumerateInstanceNames("CIM_ConcreteJob")[-1])
    shown = done("instance", "get", job, "--pl", "JobState,PercentComplete,ErrorCode")
    assert "ErrorCode = 0" in shown
    second = f"/{NAMESPACE}:{url_of(volume(served.connection(), 'second').path)}"
    several = ",".join(path.replace(",", "\\,") for path in (source, second))
    options = ["-p", "SyncType=7", "-p", f"SourceElements={several}", "-p", "ElementNames=one,two"]
    answer = done("instance", "invokemethod", f"{REPLICATION}.?", "CreateListReplica", *options)
    assert "ReturnValue=0" in answer
    assert "TargetElements" in answer


@pytest.mark.client("wbemcli")
def test_wbemcli(served: Wbem):
    """All but CreateListReplica: wbemcli sends an array of references as XML that is not well-formed."""
    second = url_of(volume(served.connection(), "second").path)
    [service] = served.connection().EnumerateInstanceNames("MSISCSITARGET_ReplicationService")

    def done(*arguments: str, on: str = "", namespace: str = NAMESPACE) -> str:
        run = served.wbemcli(*arguments, on=on, namespace=namespace)
        assert run.returncode == 0, (arguments, run.stdout, run.stderr)
        return run.stdout

    assert ":CIM_ManagedElement" in done("ecn")
    assert VOLUME in done("ein", on=":CIM_StorageVolume")
    assert '-ElementName="second"' in done("ei", on=f":{VOLUME}")
    assert "-BlockSize=" in done("gc", on=f":{VOLUME}")
    assert '-ElementName="second"' in done("gi", on=f":{second}")
    assert "MSFTSM_ComputerSystem" in done("ain", "-ac", "CIM_SystemDevice", on=f":{second}")
    assert "MSISCSITARGET_StoragePool" in done("ai", "-arc", "CIM_StoragePool", on=f":{second}")
    assert "MSISCSITARGET_SystemDevice" in done("rin", on=f":{second}")
    assert "-PartComponent=" in done("ri", "-arc", "CIM_SystemDevice", on=f":{second}")
    assert "MSFTSM_Namespace" in done("ein", on=":CIM_Namespace", namespace="interop")
    source = f"{served.address}/{NAMESPACE}:{second}"
    call = f"CreateElementReplica.SyncType=7,ElementName=bywbemcli,SourceElement={source}"
    answer = done("cm", call, on=f":{url_of(service)}")
    assert "CreateElementReplica:" in answer
    assert "bywbemcli" in done("ei", on=f":{VOLUME}")
    assert '-RegisteredName="Replication Services"' in done("ei", on=":CIM_RegisteredProfile", namespace="interop")
    assert "MSFTSM_ComputerSystem" in done("ain", "-ac", "CIM_HostedService", on=f":{url_of(service)}")
    clone = f"CreateElementReplica.SyncType=8,ElementName=clonedbywbemcli,SourceElement={source}"
    assert "4096" in done("cm", clone, on=f":{url_of(service)}")
    job = url_of(served.connection().EnumerateInstanceNames("CIM_ConcreteJob")[-1])
    assert "-ErrorCode=0" in done("gi", on=f":{job}")
