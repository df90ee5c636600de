"""The initiator's login machine against the target's, and against a target that misbehaves."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi.initiator.errors import LoginRefused
from iscsi.initiator.login import InitiatorLogin
from iscsi.login import SessionType, TargetLogin
from iscsi.negotiation import Wishes
from iscsi.target import Target, TargetRegistry
from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import LoginStatus
from iscsi.wire.pdu import Framer
from iscsi.wire.responses import LoginResponse

INITIATOR = "iqn.2026-11.example:host"
TARGET = "iqn.2026-11.org.twinvol:disk"
ISID = bytes.fromhex("800000000001")


def initiator(target: str | None = TARGET, wishes: Wishes | None = None) -> InitiatorLogin:
    return InitiatorLogin(INITIATOR, target, ISID, wishes or Wishes())


def join(ours: InitiatorLogin) -> TargetLogin:
    """Carry a login through with a target machine at the other end."""
    registry = TargetRegistry()
    registry.add(Target(TARGET))
    theirs = TargetLogin(registry, lambda _: False)
    request = ours.first()
    while request is not None:
        frame = Framer().next(memoryview(Framer().encode(request)))
        response = theirs.receive(frame)
        request = ours.receive(response or theirs.grant(7, request.cmd_sn + 31))
    return theirs


@pytest.mark.parametrize("digest", ["None", "CRC32C", "CRC32C,None"])
def test_two_machines_agree(digest):
    ours = initiator(wishes=Wishes(header_digest=digest, data_digest=digest, max_burst_length=65536))
    outcome = join(ours).outcome
    assert outcome is not None
    assert (outcome.initiator_name, outcome.isid, outcome.session_type) == (INITIATOR, ISID, SessionType.NORMAL)
    mine, other = ours.parameters(), outcome.parameters
    assert mine.header_digest is other.header_digest is (digest != "None")
    assert mine.max_burst_length == other.max_burst_length == 65536
    assert mine.first_burst_length == other.first_burst_length == 65536
    assert (ours.tsih, ours.max_cmd_sn, ours.exp_stat_sn) == (7, 32, outcome.stat_sn)


def test_discovery():
    ours = initiator(None)
    outcome = join(ours).outcome
    assert outcome is not None
    assert outcome.session_type is SessionType.DISCOVERY


def test_a_refusal_has_its_status():
    with pytest.raises(LoginRefused) as error:
        join(initiator(TARGET + "x"))
    assert error.value.status == LoginStatus.NOT_FOUND
    assert "NOT_FOUND" in str(error.value)


def test_a_redirection_tells_where_to():
    ours = initiator()
    ours.first()
    moved = LoginStatus.TARGET_MOVED_TEMPORARILY
    with pytest.raises(LoginRefused) as error:
        ours.receive(LoginResponse(ISID, 0, 0, status=moved, data=b"TargetAddress=192.0.2.1:3260,1\0"))
    assert error.value.address == "192.0.2.1:3260,1"


GOOD = LoginResponse(ISID, 0, 0, stat_sn=5, csg=0, nsg=1, transit=True)


def test_a_target_may_take_its_time():
    ours = initiator()
    ours.first()
    request = ours.receive(dataclasses.replace(GOOD, transit=False, nsg=0, data=b"AuthMethod=None\0"))
    assert (request.csg, request.nsg, request.transit, request.data, request.exp_stat_sn) == (0, 1, True, b"", 6)
    request = ours.receive(dataclasses.replace(GOOD, transit=False, nsg=0, continued=True, data=b"TargetAlias=a"))
    assert (request.transit, request.data) == (False, b"")
    request = ours.receive(dataclasses.replace(GOOD, data=b"b\0"))
    assert request.csg == 1
    assert b"MaxBurstLength=" in request.data
    assert ours.receive(LoginResponse(ISID, 9, 0, csg=1, nsg=3, transit=True)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"isid": bytes(6)},
        {"itt": 1},
        {"csg": 1},
        {"nsg": 0},
        {"nsg": 2},
        {"nsg": 3, "tsih": 0},
        {"data": b"AuthMethod=CHAP\0"},
        {"data": b"MaxBurstLength=1\0"},
        {"data": b"garbage\0"},
    ],
    ids=str,
)
def test_a_target_that_breaks_the_rules(changes):
    ours = initiator()
    ours.first()
    with pytest.raises(ProtocolError):
        ours.receive(dataclasses.replace(GOOD, **changes))


@pytest.mark.parametrize("answer", [{"transit": False}, {"transit": False, "continued": True, "data": bytes(4096)}])
def test_a_login_without_end_is_given_up(answer):
    ours = initiator()
    ours.first()
    with pytest.raises(ProtocolError):  # noqa: PT012 - the loop is what is tested
        while True:
            ours.receive(dataclasses.replace(GOOD, **answer))


@given(
    st.binary(max_size=60), st.integers(0, 3), st.integers(0, 3), st.booleans(), st.sampled_from([0, 0x0101, 0x0300])
)
def test_any_response_is_taken_or_is_an_error_of_the_peer(data, csg, nsg, transit, status):
    ours = initiator()
    ours.first()
    response = LoginResponse(ISID, 1, 0, csg=csg, nsg=nsg, transit=transit, status=status, data=data)
    with contextlib.suppress(ProtocolError, LoginRefused):
        ours.receive(response)
