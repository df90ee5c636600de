"""``twinvol demo --serve``: what a WBEM client finds there, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pywbem

from tests.support.daemon import PROGRAM, ROOT
from tests.support.wbem import NAMESPACE, clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

DOWN_S = 60.0


@contextmanager
def demo(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """One whose temporary files are in ``folder``; killed at the end if it is still there."""
    environment = clean_environment() | {"TMPDIR": str(folder)}
    command = [*PROGRAM, "demo", "--serve", "--json"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(DOWN_S)


def ready(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    facts: dict[str, Any] = json.loads(process.stdout.readline())
    return facts


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def arguments_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.timeout(240)
def test_a_client_walks_from_the_url_through_all_that_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with demo(tmp_path) as process:
        facts = ready(process)
        password = Path(facts["password_file"]).read_text(encoding="utf-8").strip()
        login = facts["user"], password
        client = pywbem.WBEMConnection(
            facts["url"], login, default_namespace=NAMESPACE, ca_certs=facts["ca_certs"], timeout=60
        )
        server = pywbem.WBEMServer(client)
        assert NAMESPACE in server.namespaces
        [array] = server.get_selected_profiles(registered_org="SNIA", registered_name="Array")
        conforming = client.AssociatorNames(array.path, AssocClass="CIM_ElementConformsToProfile")
        [system] = [path for path in conforming if path.classname == "MSFTSM_ComputerSystem"]
        devices = client.Associators(system, AssocClass="CIM_SystemDevice", ResultClass="CIM_StorageVolume")
        assert {"orders", "home", "empty"} <= {each["Caption"] for each in devices}
        copies = client.EnumerateInstances("CIM_Synchronized")
        kinds = Counter((each["SyncType"], each["Mode"]) for each in copies)
        assert {(6, 2), (6, 3), (6, 4), (7, None), (8, None)} <= set(kinds), kinds
        for copy in copies:
            assert client.GetInstance(copy["SystemElement"])
            assert client.GetInstance(copy["SyncedElement"])
        groups = client.EnumerateInstances("CIM_ReplicationGroup")
        assert client.EnumerateInstanceNames("CIM_GroupSynchronized")
        assert any(client.AssociatorNames(group.path, AssocClass="CIM_OrderedMemberOfCollection") for group in groups)
        assert client.EnumerateInstances("CIM_ConcreteJob")
        assert client.EnumerateInstances("MSISCSITARGET_PeerSystem")
        assert client.EnumerateInstances("MSISCSITARGET_SCSIProtocolController")
        # The password is nobody's argument, and in no log.
        for pid in (process.pid, *facts["pids"]):
            assert password.encode() not in arguments_of(pid)
        for log in Path(facts["pool"]).parent.glob("*.log"):
            assert password not in log.read_text(encoding="utf-8", errors="replace")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DOWN_S) == 0
        assert not any(map(is_alive, facts["pids"]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(240)
def test_told_to_stop_before_it_is_ready_it_leaves_nothing(tmp_path: Path):
    with demo(tmp_path) as process:
        while not list(tmp_path.glob("*/array.log")):  # its daemons are being started
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(DOWN_S) == 0
    assert list(tmp_path.iterdir()) == []
