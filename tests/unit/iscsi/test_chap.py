"""CHAP at the target: whole logins as literal keys with RFC 1994 responses computed apart, and everything refused.

Identifier 5Ah and challenges of 00h 01h ... come from the injected source of randomness.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi.chap import (
    MAX_BINARY_BYTES,
    Algorithm,
    ChapAccess,
    ChapIdentity,
    TargetChap,
    decode_binary,
    encode_binary,
    response,
)
from iscsi.login import TargetLogin
from iscsi.negotiation import SessionParameters, answer_in_full_feature_phase
from iscsi.target import Target, TargetRegistry
from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import LoginStatus, RejectReason
from iscsi.wire.pdu import Framer
from iscsi.wire.requests import LoginRequest
from iscsi.wire.text_keys import parse_text, serialize_text

TARGET = "iqn.2026-11.org.twinvol:disk"
INITIATOR = "iqn.1993-08.org.debian:01:abc"
NAMES = {"InitiatorName": INITIATOR, "TargetName": TARGET}
DISCOVERY = {"InitiatorName": INITIATOR, "SessionType": "Discovery"}
SECRET, MUTUAL_SECRET = b"correct horse 1", b"battery staple 2"
ACCESS = ChapAccess({"alice": SECRET, "bob": b"another secret 3"}, ChapIdentity("disk", MUTUAL_SECRET))
BLANK = LoginRequest(isid=bytes.fromhex("00023d000001"), tsih=0, itt=5, cid=1, cmd_sn=9, exp_stat_sn=3, csg=0)
IDENTIFIER = 0x5A
CHALLENGE = "0x000102030405060708090a0b0c0d0e0f"  # as long as an MD5 digest


def known_bytes(length: int) -> bytes:
    """The source of randomness: one byte is the identifier, more are a challenge."""
    return bytes((IDENTIFIER,)) if length == 1 else bytes(range(length))


class Host:
    """An initiator as far as login goes."""

    def __init__(self, access: ChapAccess | None = ACCESS, discovery: ChapAccess | None = None) -> None:
        registry = TargetRegistry()
        target = Target(TARGET)
        target.chap = access
        registry.add(target)
        registry.discovery_chap = discovery
        self.login = TargetLogin(registry, find_session=lambda tsih: None, random_bytes=known_bytes)

    def send(self, pairs=(), *, csg=0, nsg=None, **fields):
        """One request; its response, or None when the login waits to be granted."""
        data = serialize_text(pairs) if not isinstance(pairs, bytes) else pairs
        request = dataclasses.replace(BLANK, csg=csg, nsg=nsg or 0, transit=nsg is not None, data=data, **fields)
        frame = Framer().next(memoryview(Framer().encode(request)))
        assert frame is not None
        return self.login.receive(frame)

    def says(self, *args, **kwargs) -> dict[str, str]:
        """The keys of a successful response."""
        answer = self.send(*args, **kwargs)
        assert answer.status == 0, self.login.why
        return parse_text(answer.data)

    def refused(self, *args, **kwargs) -> LoginStatus:
        """The status of the refusal that this request gets."""
        answer = self.send(*args, **kwargs)
        assert self.login.failed
        assert (answer.transit, answer.data, answer.tsih) == (False, b"", 0)
        return LoginStatus(answer.status)

    def challenged(self, algorithms="5", names=NAMES) -> Host:
        """With a challenge on the table."""
        self.says({**names, "AuthMethod": "CHAP"})
        self.says({"CHAP_A": algorithms})
        return self


def proof(secret: bytes, challenge: bytes = bytes(range(16)), identifier: int = IDENTIFIER) -> str:
    return "0x" + hashlib.md5(bytes((identifier,)) + secret + challenge).hexdigest()


# -- logins that succeed


def test_a_whole_login_in_literal_bytes():
    """The third text's response: printf '\\x5acorrect horse 1\\x00\\x01...\\x0f' | md5sum."""
    host = Host()
    first = host.send(b"InitiatorName=i\0TargetName=iqn.2026-11.org.twinvol:disk\0AuthMethod=CHAP,None\0", nsg=1)
    assert first.data == b"TargetPortalGroupTag=1\0AuthMethod=CHAP\0"
    assert (first.status, first.csg, first.transit) == (0, 0, False), "it asked to go on, and may not yet"
    second = host.send(b"CHAP_A=5\0")
    assert second.data == b"CHAP_A=5\0CHAP_I=90\0CHAP_C=0x000102030405060708090a0b0c0d0e0f\0"
    third = host.send(b"CHAP_N=alice\0CHAP_R=0x1ec605d562394e7c4d8f43f99fb9b39c\0", nsg=1)
    assert (third.status, third.transit, third.nsg, third.data) == (0, True, 1, b"")
    assert host.send(b"", csg=1, nsg=3) is None
    assert host.login.outcome.target.name == TARGET


def test_a_mutual_login_in_literal_bytes():
    """The target's response: printf '\\x07battery staple 2\\xa1\\xb2\\xc3\\xd4' | md5sum."""
    host = Host().challenged()
    answer = host.send(b"CHAP_N=alice\0CHAP_R=0x1ec605d562394e7c4d8f43f99fb9b39c\0CHAP_I=7\0CHAP_C=0xa1b2c3d4\0", nsg=1)
    assert (answer.status, answer.transit) == (0, True)
    assert answer.data == b"CHAP_N=disk\0CHAP_R=0x758b170d4de558858e3e514641fdd196\0"


def _segment(text: bytes) -> bytes:
    """A data segment's length as the header has it, the rest of ``text`` being what follows the header."""
    return len(text).to_bytes(3, "big")


def test_every_byte_of_a_mutual_login_with_sha_256():
    """Alice's: printf '\\x5acorrect horse 1\\x00\\x01...\\x1f' | sha256sum; the target's of 07h and a1b2c3d4h."""
    isid, tags = "00023d000001", "0000 00000005 0001 0000 00000009"  # ISID; TSIH, ITT, CID, reserved, CmdSN
    proof_of_alice = b"0xd2b90adc1fc9a4d86e0a8d2b282d0110172e23e36e7bd33263dddc59494f6e0e"
    challenge = b"0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
    asked_and_answered = [
        # Flags: CSG 0; CSG 0; T, CSG 0, NSG 1; T, CSG 1, NSG 3. ExpStatSN follows CmdSN.
        (
            ("43000000 00", b"InitiatorName=i\0TargetName=" + TARGET.encode() + b"\0AuthMethod=CHAP\0", "00000003"),
            ("23000000 00", b"TargetPortalGroupTag=1\0AuthMethod=CHAP\0", "00000003"),
        ),
        (
            ("43000000 00", b"CHAP_A=5,7\0", "00000004"),
            ("23000000 00", b"CHAP_A=7\0CHAP_I=90\0CHAP_C=" + challenge + b"\0", "00000004"),
        ),
        (
            ("43810000 00", b"CHAP_N=alice\0CHAP_R=" + proof_of_alice + b"\0CHAP_I=7\0CHAP_C=0xa1b2c3d4\0", "00000005"),
            (
                "23810000 00",
                b"CHAP_N=disk\0CHAP_R=0x2ab8c40d8167073fb2c9108f140bea7a7a549ac8e89a8520033d640404910835\0",
                "00000005",
            ),
        ),
    ]
    login = Host().login
    for (start, text, exp_stat_sn), (answer_start, answer, stat_sn) in asked_and_answered:
        sent = bytes.fromhex(start) + _segment(text) + bytes.fromhex(isid + tags + exp_stat_sn) + bytes(16)
        wanted = bytes.fromhex(answer_start) + _segment(answer)
        wanted += bytes.fromhex(f"{isid} 0000 00000005 00000000 {stat_sn} 00000009 00000009 0000") + bytes(10)
        frame = Framer().next(memoryview(sent + text + bytes(-len(text) % 4)))
        assert frame is not None
        assert Framer().encode(login.receive(frame)) == wanted + answer + bytes(-len(answer) % 4)


@pytest.mark.parametrize(
    ("algorithm", "answer"),
    [
        (Algorithm.MD5, "1ec605d562394e7c4d8f43f99fb9b39c"),
        (Algorithm.SHA1, "85f8a98eb916f8f2fec205c07ae30d3858cd3d71"),
        (Algorithm.SHA256, "d2b90adc1fc9a4d86e0a8d2b282d0110172e23e36e7bd33263dddc59494f6e0e"),
        (Algorithm.SHA3_256, "7c3775d5876be78ec1ee13ea939f57efc31b117da3d89793e8925427b81e9d65"),
    ],
)
def test_each_algorithm_by_its_vector(algorithm, answer):
    host = Host(dataclasses.replace(ACCESS, algorithms={algorithm})).challenged(str(int(algorithm)))
    assert host.says({"CHAP_N": "alice", "CHAP_R": "0x" + answer}, nsg=1) == {}
    assert host.send(csg=1, nsg=3) is None


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("5", "5"),
        ("5,7", "7"),
        ("7,5", "7"),
        ("5,8,7,6", "8"),
        ("0x7,5", "7"),
        ("6,5", "5"),
        ("99,MD5,,5", "5"),
        ("5" + ",99" * 200, "5"),
    ],
)
def test_the_strongest_algorithm_in_common_is_chosen(offered, chosen):
    host = Host()
    host.says({**NAMES, "AuthMethod": "CHAP"})
    assert host.says({"CHAP_A": offered})["CHAP_A"] == chosen


def test_binary_values_come_in_hex_and_base64_and_a_number_in_both_bases():
    md5 = bytes.fromhex("1ec605d562394e7c4d8f43f99fb9b39c")
    for answer in ("0X" + md5.hex().upper(), "0bHsYF1WI5TnxNj0P5n7mznA==", "0BHsYF1WI5TnxNj0P5n7mznA=="):
        said = Host().challenged().says({"CHAP_N": "alice", "CHAP_R": answer, "CHAP_I": "0x07", "CHAP_C": "0bobLD1A=="})
        assert said == {"CHAP_N": "disk", "CHAP_R": "0x758b170d4de558858e3e514641fdd196"}


def test_a_name_is_text_even_if_it_looks_like_a_binary_value():
    host = Host(ChapAccess({"0x616c696365": SECRET})).challenged()
    assert host.says({"CHAP_N": "0x616c696365", "CHAP_R": proof(SECRET)}, nsg=1) == {}


def test_each_user_has_a_secret_of_its_own():
    assert Host().challenged().says({"CHAP_N": "bob", "CHAP_R": proof(b"another secret 3")}) == {}
    crossed = Host().challenged().refused({"CHAP_N": "bob", "CHAP_R": proof(SECRET)})
    assert crossed is LoginStatus.AUTHENTICATION_FAILURE


def test_the_longest_challenge_is_answered():
    challenge = bytes(1024)
    keys = {"CHAP_N": "alice", "CHAP_R": proof(SECRET), "CHAP_I": "255", "CHAP_C": encode_binary(challenge)}
    assert Host().challenged().says(keys)["CHAP_R"] == proof(MUTUAL_SECRET, challenge, 255)


def test_the_exchange_may_be_cut_into_continued_requests_and_end_without_haste():
    host = Host()
    host.says({**NAMES, "AuthMethod": "CHAP"})
    host.says(b"CHAP_", continued=True)
    host.says(b"A=5\0")
    host.says({"CHAP_N": "alice", "CHAP_R": proof(SECRET)})
    assert host.send({}, nsg=1).transit
    assert host.send({}, csg=1, nsg=3) is None


def test_a_login_may_go_from_chap_to_full_feature_phase():
    assert Host().challenged().send({"CHAP_N": "alice", "CHAP_R": proof(SECRET)}, nsg=3) is None


def test_an_initiator_may_begin_without_a_method():
    host = Host()
    assert host.says(NAMES) == {"TargetPortalGroupTag": "1"}
    assert host.says({"AuthMethod": "KRB5,CHAP,None"}) == {"AuthMethod": "CHAP"}


OTHER_HOST = "iqn.2026-11.example:other"


@pytest.mark.parametrize(
    ("user", "initiator", "status"),
    [
        ("alice", INITIATOR, LoginStatus.SUCCESS),
        (OTHER_HOST, OTHER_HOST, LoginStatus.SUCCESS),
        (OTHER_HOST, OTHER_HOST.upper(), LoginStatus.SUCCESS),
        ("IQN.2026-11.Example:Spelled", "iqn.2026-11.example:spelled", LoginStatus.SUCCESS),
        (OTHER_HOST, INITIATOR, LoginStatus.AUTHORIZATION_FAILURE),
        ("alice", OTHER_HOST, LoginStatus.AUTHORIZATION_FAILURE),
        ("alice", "iqn.2026-11.example:spelled", LoginStatus.AUTHORIZATION_FAILURE),
        ("IQN.2026-11.Example:Spelled", OTHER_HOST, LoginStatus.AUTHORIZATION_FAILURE),
    ],
)
def test_a_user_named_after_an_initiator_and_that_initiator_go_together(user, initiator, status):
    access = ChapAccess(dict.fromkeys(("alice", OTHER_HOST, "IQN.2026-11.Example:Spelled"), SECRET))
    host = Host(access).challenged(names={**NAMES, "InitiatorName": initiator})
    answer = host.send({"CHAP_N": user, "CHAP_R": proof(SECRET)}, nsg=1)
    assert answer.status == status, host.login.why
    wrong = Host(access).challenged(names={**NAMES, "InitiatorName": initiator})
    assert wrong.refused({"CHAP_N": user, "CHAP_R": proof(b"wrong")}) is LoginStatus.AUTHENTICATION_FAILURE


# -- where it is required, and where not


@pytest.mark.parametrize(
    ("keys", "stages"),
    [
        ({}, {"csg": 1, "nsg": 3}),
        ({}, {"csg": 1}),
        ({}, {"csg": 0, "nsg": 1}),
        ({}, {"csg": 0, "nsg": 3}),
        ({"AuthMethod": "None"}, {"csg": 0, "nsg": 1}),
        ({"AuthMethod": "None"}, {"csg": 0}),
        ({"AuthMethod": "KRB5,SRP"}, {"csg": 0}),
        ({"AuthMethod": "chap"}, {"csg": 0}),
        ({"AuthMethod": ""}, {"csg": 0}),
    ],
)
@pytest.mark.parametrize("names", [NAMES, DISCOVERY], ids=["normal", "discovery"])
def test_chap_cannot_be_avoided(names, keys, stages):
    host = Host(ACCESS, discovery=ACCESS)
    assert host.refused({**names, **keys}, **stages) is LoginStatus.AUTHENTICATION_FAILURE


def test_discovery_has_users_of_its_own():
    access = ChapAccess({"finder": b"a secret to find by"})
    good = {"CHAP_N": "finder", "CHAP_R": proof(b"a secret to find by")}
    assert Host(ACCESS, discovery=access).challenged(names=DISCOVERY).send(good, nsg=3) is None
    alice = {"CHAP_N": "alice", "CHAP_R": proof(SECRET)}
    refused = Host(ACCESS, discovery=access).challenged(names=DISCOVERY).refused(alice)
    assert refused is LoginStatus.AUTHENTICATION_FAILURE
    assert Host(ACCESS).send({**DISCOVERY, "AuthMethod": "CHAP,None"}, nsg=3) is None
    assert Host(None, discovery=access).send({**NAMES, "AuthMethod": "None"}, nsg=3) is None


def test_a_target_without_chap_takes_none_and_refuses_who_insists():
    assert Host(None).says({**NAMES, "AuthMethod": "CHAP,None"}, nsg=1)["AuthMethod"] == "None"
    assert Host(None).refused({**NAMES, "AuthMethod": "CHAP"}) is LoginStatus.AUTHENTICATION_FAILURE
    assert Host(None).refused({**NAMES, "AuthMethod": "None", "CHAP_A": "5"}) is LoginStatus.INITIATOR_ERROR


def test_a_target_whose_secrets_are_lost_admits_nobody():
    host = Host(ChapAccess({})).challenged()
    assert host.refused({"CHAP_N": "alice", "CHAP_R": proof(SECRET)}) is LoginStatus.AUTHENTICATION_FAILURE


# -- refusals


def test_an_unknown_user_and_a_wrong_secret_get_the_same_answer():
    wrong = Host().challenged().send({"CHAP_N": "alice", "CHAP_R": proof(b"wrong")}, nsg=1)
    unknown = Host().challenged().send({"CHAP_N": "mallory", "CHAP_R": proof(SECRET)}, nsg=1)
    assert wrong == unknown
    assert wrong.status == LoginStatus.AUTHENTICATION_FAILURE


def test_an_unknown_user_costs_the_same_work(monkeypatch):
    def work(keys: dict[str, str], access: ChapAccess = ACCESS) -> list[tuple[int, int]]:
        done: list[tuple[int, int]] = []

        def counted(algorithm, identifier, secret, challenge):
            done.append((int(algorithm), len(challenge)))
            return response(algorithm, identifier, secret, challenge)

        host = Host(access).challenged()
        monkeypatch.setattr("iscsi.chap.response", counted)
        host.refused(keys)
        monkeypatch.undo()
        return done

    wrong = work({"CHAP_N": "alice", "CHAP_R": proof(b"wrong")})
    assert wrong == work({"CHAP_N": "mallory", "CHAP_R": proof(b"wrong")})
    assert wrong == work({"CHAP_N": "alice", "CHAP_R": "0x00"}, ChapAccess({"alice": SECRET}))
    assert len(wrong) == 2


def test_an_unknown_user_cannot_know_the_decoy():
    """With a source of randomness that he knows, he would; what is tested is that no user stands behind it."""
    decoy = bytes(range(16))
    refused = Host().challenged().refused({"CHAP_N": "mallory", "CHAP_R": proof(decoy)})
    assert refused is LoginStatus.AUTHENTICATION_FAILURE


@pytest.mark.parametrize(
    "keys",
    [
        {"CHAP_R": proof(SECRET)[:-2]},
        {"CHAP_R": proof(SECRET) + "00"},
        {"CHAP_R": "0x" + "00" * MAX_BINARY_BYTES},
        {"CHAP_N": "Alice"},
        {"CHAP_N": "alice "},
        {"CHAP_I": "1", "CHAP_C": CHALLENGE},
    ],
    ids=["short", "long", "longest", "case", "blank", "our challenge reflected"],
)
def test_what_proves_nothing_is_an_authentication_failure(keys):
    asked = {"CHAP_N": "alice", "CHAP_R": proof(SECRET), **keys}
    assert Host().challenged().refused(asked, nsg=1) is LoginStatus.AUTHENTICATION_FAILURE


def test_no_algorithm_in_common():
    host = Host()
    host.says({**NAMES, "AuthMethod": "CHAP"})
    assert host.refused({"CHAP_A": "6"}) is LoginStatus.AUTHENTICATION_FAILURE


def test_mutual_chap_without_a_secret_of_the_target():
    asked = {"CHAP_N": "alice", "CHAP_R": proof(SECRET), "CHAP_I": "1", "CHAP_C": "0x01"}
    refused = Host(ChapAccess({"alice": SECRET})).challenged().refused(asked)
    assert refused is LoginStatus.AUTHENTICATION_FAILURE


def test_one_secret_in_both_directions():
    access = ChapAccess({"alice": SECRET}, ChapIdentity("disk", SECRET))
    refused = Host(access).challenged().refused({"CHAP_N": "alice", "CHAP_R": proof(SECRET)})
    assert refused is LoginStatus.AUTHENTICATION_FAILURE


def test_the_target_proves_nothing_to_a_stranger():
    asked = {"CHAP_N": "alice", "CHAP_R": proof(b"wrong"), "CHAP_I": "1", "CHAP_C": "0x01"}
    assert Host().challenged().refused(asked) is LoginStatus.AUTHENTICATION_FAILURE


GOOD = {"CHAP_N": "alice", "CHAP_R": proof(SECRET)}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"CHAP_N": "alice"},
        {"CHAP_R": proof(SECRET)},
        {**GOOD, "CHAP_I": "1"},
        {**GOOD, "CHAP_C": "0x01"},
        {**GOOD, "CHAP_A": "5"},
        {"CHAP_A": "5"},
        {**GOOD, "AuthMethod": "CHAP"},
        {**GOOD, "CHAP_N": ""},
        {**GOOD, "CHAP_N": "a" * 256},
        {**GOOD, "CHAP_R": ""},
        {**GOOD, "CHAP_R": "0x"},
        {**GOOD, "CHAP_R": "0b"},
        {**GOOD, "CHAP_R": "0x123"},
        {**GOOD, "CHAP_R": "0x12 34"},
        {**GOOD, "CHAP_R": "0xzz"},
        {**GOOD, "CHAP_R": "0b###="},
        {**GOOD, "CHAP_R": "1ec605d5"},
        {**GOOD, "CHAP_R": "0x" + "00" * 1025},
        {**GOOD, "CHAP_I": "256", "CHAP_C": "0x01"},
        {**GOOD, "CHAP_I": "-1", "CHAP_C": "0x01"},
        {**GOOD, "CHAP_I": "", "CHAP_C": "0x01"},
        {**GOOD, "CHAP_I": "1", "CHAP_C": "0x"},
        {**GOOD, "CHAP_I": "1", "CHAP_C": "0x" + "00" * 1025},
        {**GOOD, "CHAP_I": "1", "CHAP_C": "0b" + "AAAA" * 342},
        b"CHAP_N=alice\0CHAP_N=bob\0CHAP_R=0x00\0",
    ],
)
def test_what_breaks_the_exchange_is_an_initiator_error(keys):
    assert Host().challenged().refused(keys, nsg=1) is LoginStatus.INITIATOR_ERROR


@pytest.mark.parametrize("keys", [{}, GOOD, {"CHAP_I": "1"}, {"CHAP_A": "5", "CHAP_I": "1"}])
def test_the_algorithms_come_first(keys):
    host = Host()
    host.says({**NAMES, "AuthMethod": "CHAP"})
    assert host.refused(keys) is LoginStatus.INITIATOR_ERROR


def test_chap_keys_before_the_method_or_after_the_end():
    assert Host().refused({**NAMES, "CHAP_A": "5"}) is LoginStatus.INITIATOR_ERROR
    assert Host().refused({**NAMES, "AuthMethod": "CHAP", "CHAP_A": "5"}) is LoginStatus.INITIATOR_ERROR
    host = Host().challenged()
    host.says(GOOD)
    assert host.refused(GOOD) is LoginStatus.INITIATOR_ERROR


def test_what_the_log_says_of_a_refusal_names_everybody_and_no_secret():
    host = Host().challenged()
    host.refused({"CHAP_N": "alice\x1b[2J", "CHAP_R": proof(b"a wrong secret")})
    assert host.login.why == (f"{INITIATOR} to {TARGET}, AUTHENTICATION_FAILURE: no CHAP user 'alice\\x1b[2J'")
    assert "secret" not in repr(ACCESS)


def test_security_keys_have_no_place_in_full_feature_phase():
    for key in ("AuthMethod", "CHAP_A", "CHAP_R"):
        with pytest.raises(ProtocolError) as error:
            answer_in_full_feature_phase(SessionParameters(), {key: "x"})
        assert error.value.answer is RejectReason.PROTOCOL_ERROR


# -- properties


@given(st.binary(min_size=1, max_size=MAX_BINARY_BYTES))
def test_binary_values_round_trip(value):
    assert decode_binary("CHAP_C", encode_binary(value)) == value


@given(st.one_of(st.text(max_size=40), st.text("0123456789abcdefABCDEFxXbB+/= ", max_size=40)))
def test_any_text_is_a_binary_value_or_an_error_of_the_peer(text):
    with contextlib.suppress(ProtocolError):
        assert 1 <= len(decode_binary("CHAP_R", text)) <= MAX_BINARY_BYTES


@given(
    st.sampled_from(Algorithm),
    st.binary(min_size=12, max_size=255),
    st.binary(min_size=12, max_size=255),
    st.binary(min_size=33, max_size=33),
)
def test_the_right_secret_and_no_other_is_admitted(algorithm, secret, tried, randomness):
    def random_bytes(length):
        return randomness[:1] if length == 1 else randomness[1 : 1 + length]

    chap = TargetChap(ChapAccess({"user": secret}, algorithms={algorithm}), random_bytes)
    asked = dict(chap.answer({"CHAP_A": str(int(algorithm))}))
    given_response = response(algorithm, int(asked["CHAP_I"]), tried, decode_binary("CHAP_C", asked["CHAP_C"]))
    keys = {"CHAP_N": "user", "CHAP_R": encode_binary(given_response)}
    if tried == secret:
        assert chap.answer(keys) == []
    else:
        with pytest.raises(ProtocolError) as error:
            chap.answer(keys)
        assert error.value.answer is LoginStatus.AUTHENTICATION_FAILURE
    assert chap.done is (tried == secret)


_VALUES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["5", "alice", "CHAP", "CHAP,None", "None", "0x00", proof(b"wrong"), CHALLENGE]),
)
_TEXTS = st.dictionaries(st.sampled_from(["AuthMethod", "CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R"]), _VALUES)


@given(st.lists(st.tuples(_TEXTS, st.sampled_from([0, 1]), st.sampled_from([None, 1, 3])), max_size=6))
def test_nobody_without_the_secret_gets_in(texts):
    host = Host()
    names = NAMES
    for pairs, csg, nsg in texts:
        answer = host.send({**names, **pairs}, csg=csg, nsg=nsg)
        names = {}
        assert host.login.outcome is None
        assert answer is not None
        assert not answer.transit
        if host.login.failed:
            return


def test_challenges_differ_from_login_to_login():
    seen = set()
    for _ in range(20):
        registry = TargetRegistry()
        target = Target(TARGET)
        target.chap = ACCESS
        registry.add(target)
        host = Host()
        host.login = TargetLogin(registry, find_session=lambda tsih: None)
        host.says({**NAMES, "AuthMethod": "CHAP"})
        seen.add(host.says({"CHAP_A": "7"})["CHAP_C"])
    assert len(seen) == 20
