"""The initiator's CHAP: literal exchanges, against the target's machine, and against targets that cheat."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidArgument
from iscsi.chap import Algorithm, ChapAccess, ChapIdentity
from iscsi.initiator import ChapCredentials, InitiatorError, LoginRefused, TargetNotAuthentic, Wishes
from iscsi.initiator.chap import InitiatorChap
from iscsi.initiator.login import InitiatorLogin
from iscsi.login import TargetLogin
from iscsi.target import Target, TargetRegistry
from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import LoginStatus
from iscsi.wire.pdu import Framer
from iscsi.wire.responses import LoginResponse
from iscsi.wire.text_keys import serialize_text

INITIATOR, TARGET = "iqn.2026-11.example:host", "iqn.2026-11.org.twinvol:disk"
ISID = bytes.fromhex("800000000001")
ALICE, ARRAY = ChapIdentity("alice", b"correct horse 1"), ChapIdentity("array", b"battery staple 2")
ONE_WAY, MUTUAL = ChapCredentials(ALICE), ChapCredentials(ALICE, ARRAY)
ACCESS = ChapAccess({"alice": ALICE.secret}, ARRAY)


def known_bytes(length: int) -> bytes:
    """Identifier 07h, challenge A1h A2h ..."""
    return b"\x07" if length == 1 else bytes(range(0xA1, 0xA1 + length))


def login(chap: ChapCredentials | None, target: str | None = TARGET) -> InitiatorLogin:
    return InitiatorLogin(INITIATOR, target, ISID, Wishes(), chap, known_bytes)


def join(ours: InitiatorLogin, access: ChapAccess | None, discovery: ChapAccess | None = None) -> TargetLogin:
    """Carry a login through with a target machine at the other end."""
    registry = TargetRegistry()
    target = Target(TARGET)
    target.chap = access
    registry.add(target)
    registry.discovery_chap = discovery
    theirs = TargetLogin(registry, lambda _: False)
    request = ours.first()
    while request is not None:
        frame = Framer().next(memoryview(Framer().encode(request)))
        assert frame is not None
        request = ours.receive(theirs.receive(frame) or theirs.grant(7, request.cmd_sn + 31))
    return theirs


def say(ours: InitiatorLogin, data: bytes, **fields) -> bytes:
    """The text that we answer to the target's."""
    request = ours.receive(LoginResponse(ISID, 0, 0, stat_sn=5, csg=0, data=data, **fields))
    assert request is not None
    return request.data


# -- exchanges


def test_an_exchange_in_literal_bytes():
    """Ours: printf '\\x5acorrect horse 1\\x00\\x01...\\x0f' | md5sum, the target's the same of 07h and a1h ... b0h."""
    ours = login(MUTUAL)
    first = ours.first()
    assert (first.csg, first.transit) == (0, False)
    assert first.data.endswith(b"AuthMethod=CHAP\0")
    assert say(ours, b"AuthMethod=CHAP\0") == b"CHAP_A=8,5,7\0"
    challenge = b"CHAP_A=5\0CHAP_I=90\0CHAP_C=0x000102030405060708090a0b0c0d0e0f\0"
    request = ours.receive(LoginResponse(ISID, 0, 0, stat_sn=5, csg=0, data=challenge))
    assert request.data == (
        b"CHAP_N=alice\0CHAP_R=0x1ec605d562394e7c4d8f43f99fb9b39c\0"
        b"CHAP_I=7\0CHAP_C=0xa1a2a3a4a5a6a7a8a9aaabacadaeafb0\0"
    )
    assert (request.transit, request.nsg) == (True, 1)
    proof = b"CHAP_N=array\0CHAP_R=0x6fa3c9466ff0b9d49a530b757012b330\0"
    assert b"MaxBurstLength=" in say(ours, proof, transit=True, nsg=1)


@pytest.mark.parametrize("algorithm", sorted(Algorithm))
@pytest.mark.parametrize("credentials", [ONE_WAY, MUTUAL], ids=["one way", "mutual"])
def test_two_machines_agree(credentials, algorithm):
    access = dataclasses.replace(ACCESS, algorithms={algorithm})
    if algorithm is Algorithm.SHA1:
        with pytest.raises(LoginRefused):
            join(login(credentials), access)
        return
    assert join(login(credentials), access).outcome is not None
    assert join(login(credentials, None), None, discovery=access).outcome is not None


def test_credentials_are_not_in_the_way_of_a_target_that_wants_none():
    assert join(login(ONE_WAY), None).outcome is not None


@pytest.mark.parametrize(
    "own", [ChapIdentity("alice", b"something else"), ChapIdentity("mallory", ALICE.secret)], ids=["secret", "user"]
)
def test_wrong_credentials_are_refused(own):
    with pytest.raises(LoginRefused) as refused:
        join(login(ChapCredentials(own, ARRAY)), ACCESS)
    assert refused.value.status == LoginStatus.AUTHENTICATION_FAILURE


def test_no_credentials_are_refused():
    with pytest.raises(LoginRefused) as refused:
        join(login(None), ACCESS)
    assert refused.value.status == LoginStatus.AUTHENTICATION_FAILURE


@pytest.mark.parametrize(
    "target", [ChapIdentity("array", b"something else"), ChapIdentity("other", ARRAY.secret)], ids=["secret", "name"]
)
def test_a_target_that_is_another_is_left(target):
    with pytest.raises(TargetNotAuthentic):
        join(login(ChapCredentials(ALICE, target)), ACCESS)


def test_one_secret_for_both_directions_is_no_credentials():
    with pytest.raises(InvalidArgument, match=r"9\.2\.1"):
        ChapCredentials(ALICE, ChapIdentity("array", ALICE.secret))


def test_credentials_hide_their_secrets():
    assert "horse" not in repr(MUTUAL)


# -- targets that cheat

CHALLENGE = b"CHAP_A=5\0CHAP_I=90\0CHAP_C=0x000102030405060708090a0b0c0d0e0f\0"


@pytest.mark.parametrize("text", [b"AuthMethod=None\0", b"AuthMethod=Reject\0", b"", b"AuthMethod=CHAP\0CHAP_A=5\0"])
@pytest.mark.parametrize("fields", [{}, {"transit": True, "nsg": 1}], ids=["stays", "goes on"])
def test_mutual_chap_cannot_be_avoided_by_the_target(text, fields):
    ours = login(MUTUAL)
    ours.first()
    with pytest.raises((TargetNotAuthentic, ProtocolError)):
        say(ours, text, **fields)


@pytest.mark.parametrize("text", [b"AuthMethod=KRB5\0", b"AuthMethod=CHAP\0CHAP_A=5\0", CHALLENGE])
def test_a_method_that_was_not_offered(text):
    ours = login(ONE_WAY)
    ours.first()
    with pytest.raises(ProtocolError):
        say(ours, text)
    ours = login(None)
    ours.first()
    with pytest.raises(ProtocolError):
        say(ours, text)


def test_a_target_that_goes_on_before_the_exchange_is_over():
    ours = login(ONE_WAY)
    ours.first()
    with pytest.raises(ProtocolError):
        say(ours, b"AuthMethod=CHAP\0", transit=True, nsg=1)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"CHAP_A=5\0",
        b"CHAP_A=6\0CHAP_I=1\0CHAP_C=0x01\0",
        b"CHAP_A=8,7\0CHAP_I=1\0CHAP_C=0x01\0",
        b"CHAP_A=Reject\0CHAP_I=1\0CHAP_C=0x01\0",
        b"CHAP_A=5\0CHAP_I=256\0CHAP_C=0x01\0",
        b"CHAP_A=5\0CHAP_I=1\0CHAP_C=\0",
        b"CHAP_A=5\0CHAP_I=1\0CHAP_C=0x0\0",
        CHALLENGE + b"CHAP_N=array\0",
    ],
)
def test_a_challenge_that_is_none(text):
    ours = login(MUTUAL)
    ours.first()
    say(ours, b"AuthMethod=CHAP\0")
    with pytest.raises(ProtocolError):
        say(ours, text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"CHAP_N=array\0",
        b"CHAP_R=0x00\0",
        b"CHAP_N=array\0CHAP_R=0x00\0",
        b"CHAP_N=array\0CHAP_R=nothing\0",
        b"CHAP_N=alice\0CHAP_R=0x1ec605d562394e7c4d8f43f99fb9b39c\0",
        b"CHAP_N=array\0CHAP_R=0x1ec605d562394e7c4d8f43f99fb9b39c\0",
        b"CHAP_N=array\0CHAP_R=0x6fa3c9466ff0b9d49a530b757012b330\0CHAP_I=1\0",
    ],
)
def test_a_proof_that_is_none(text):
    ours = login(MUTUAL)
    ours.first()
    say(ours, b"AuthMethod=CHAP\0")
    say(ours, CHALLENGE)
    with pytest.raises((TargetNotAuthentic, ProtocolError)):
        say(ours, text, transit=True, nsg=1)


def test_a_target_that_knows_our_challenge_beforehand():
    ours = login(MUTUAL)
    ours.first()
    say(ours, b"AuthMethod=CHAP\0")
    with pytest.raises(TargetNotAuthentic):
        say(ours, b"CHAP_A=5\0CHAP_I=1\0CHAP_C=0x" + known_bytes(16).hex().encode() + b"\0")


def test_a_one_way_login_takes_no_proof_that_it_did_not_ask_for():
    ours = login(ONE_WAY)
    ours.first()
    say(ours, b"AuthMethod=CHAP\0")
    say(ours, CHALLENGE)
    with pytest.raises(ProtocolError):
        say(ours, b"CHAP_N=array\0CHAP_R=0x00\0")


_VALUES = st.one_of(st.text(max_size=10), st.sampled_from(["5", "7", "90", "CHAP", "None", "0x0102", "array"]))
_TEXTS = st.dictionaries(st.sampled_from(["AuthMethod", "CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R"]), _VALUES)


@given(st.lists(st.tuples(_TEXTS, st.booleans()), max_size=5))
def test_no_target_without_the_secret_is_believed(texts):
    ours = login(MUTUAL)
    ours.first()
    with contextlib.suppress(InitiatorError, ProtocolError):
        for pairs, transit in texts:
            text = serialize_text(pairs)
            request = ours.receive(LoginResponse(ISID, 0, 0, csg=0, nsg=int(transit), transit=transit, data=text))
            assert request is not None
            assert request.csg == 0, "still in the security stage"


def test_each_exchange_has_a_challenge_of_its_own():
    seen = set()
    for _ in range(20):
        ours = InitiatorLogin(INITIATOR, TARGET, ISID, Wishes(), MUTUAL)
        ours.first()
        say(ours, b"AuthMethod=CHAP\0")
        seen.add(say(ours, CHALLENGE))
    assert len(seen) == 20
    assert InitiatorChap(ONE_WAY, known_bytes).first() == {"CHAP_A": "8,5,7"}
