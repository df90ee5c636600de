"""Indications of a real daemon: made by pywbemcli, received by pywbem's WBEMListener, over ends of both processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import pywbem
from pywbem import CIMInstance, Uint32

from cim_facade.namespaces import STORAGE
from tests.support.daemon import Daemon
from tests.support.listener import Listener
from tests.support.wbem import Wbem, serving

QUERY = "SELECT * FROM CIM_InstCreation WHERE SourceInstance ISA CIM_StorageVolume"


@pytest.fixture(autouse=True)
def _own_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)


def management_of(daemon: Daemon) -> int:
    """The process that delivers: the daemon's child with that module."""
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
    [found] = [int(each) for each in children if b"twinvol.management" in Path(f"/proc/{each}/cmdline").read_bytes()]
    return found


def hurry(connection: pywbem.WBEMConnection) -> None:
    """Try again after a second."""
    [path] = connection.EnumerateInstanceNames("CIM_IndicationService", namespace="interop")
    changed = CIMInstance(path.classname, {"DeliveryRetryInterval": Uint32(1)})
    changed.path = path
    connection.ModifyInstance(changed, PropertyList=["DeliveryRetryInterval"])


@pytest.mark.client("pywbemcli")
def test_subscriptions_by_pywbemcli_outlive_both_processes(tmp_path: Path):
    listener = Listener()
    for served in serving(tmp_path / "pool"):
        subscribe(served, listener)
        listener.start()
        served.daemon.run("volume", "create", "first", "--size", "64M")
        first = listener.next()
        assert first["SourceInstance"]["ElementName"] == "first"

        os.kill(management_of(served.daemon), signal.SIGKILL)  # the one that delivers; it is started again
        served.daemon.run("volume", "create", "second", "--size", "64M")
        second = following(listener, first)
        assert second["SourceInstance"]["ElementName"] == "second"

        listener.stop()
        served.daemon.run("volume", "create", "third", "--size", "64M")  # recorded: its event is, which comes after
        served.daemon.kill()
    with Daemon.start(tmp_path / "pool", "--wbem", "127.0.0.1:0", "--wbem-http", "127.0.0.1:0") as daemon:
        with listener:
            assert following(listener, second)["SourceInstance"]["ElementName"] == "third"
        remove(Wbem(daemon))


def following(listener: Listener, last: CIMInstance) -> CIMInstance:
    """The next one; what comes again, because it was not recorded as delivered, comes under its number."""
    found = listener.next(lambda each: each["SequenceNumber"] > last["SequenceNumber"])
    assert found["SequenceContext"] == last["SequenceContext"]
    assert found["SequenceNumber"] == last["SequenceNumber"] + 1
    return found


def done(served: Wbem, *arguments: str) -> str:
    run = served.pywbemcli(*arguments, namespace="interop")
    assert run.returncode == 0, (arguments, run.stdout, run.stderr)
    return run.stdout


def subscribe(served: Wbem, listener: Listener) -> None:
    hurry(served.connection())
    done(served, "subscription", "add-destination", "here", "-l", listener.url)
    done(
        served, "subscription", "add-filter", "made", "-q", QUERY, "--query-language", "DMTF:CQL",
        "--source-namespaces", STORAGE,
    )  # fmt: skip
    done(served, "subscription", "add-subscription", "here", "made")
    assert listener.url in done(served, "subscription", "list-destinations")


def remove(served: Wbem) -> None:
    done(served, "subscription", "remove-subscription", "here", "made", "--remove-associated-instances")
    for class_name in ("CIM_IndicationSubscription", "CIM_ListenerDestination"):
        assert served.connection().EnumerateInstanceNames(class_name, namespace="interop") == []
