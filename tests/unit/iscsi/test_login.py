"""The target's login machine, driven by PDUs only."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi.login import MAX_REQUESTS, SessionType, TargetLogin
from iscsi.session import Session
from iscsi.target import Target, TargetRegistry
from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import LoginStatus, Stage
from iscsi.wire.pdu import DEFAULT_MAX_DATA_SEGMENT, Framer
from iscsi.wire.requests import LoginRequest, NopOut
from iscsi.wire.responses import LoginResponse
from iscsi.wire.text_keys import parse_text, serialize_text
from tests.support.iscsi_link import Link

TARGET = "iqn.2026-11.org.twinvol:disk"
CLOSED = "iqn.2026-11.org.twinvol:closed"
INITIATOR = "iqn.1993-08.org.debian:01:abc"
NAMES = {"InitiatorName": INITIATOR, "TargetName": TARGET}
KNOWN_TSIH = 77  # of a session of the same initiator port, with connection 5
BLANK = LoginRequest(isid=bytes.fromhex("00023d000001"), tsih=0, itt=5, cid=1, cmd_sn=9, exp_stat_sn=3, csg=0)


def frame_of(pdu):
    frame = Framer().next(memoryview(Framer().encode(pdu)))
    assert frame is not None
    return frame


class Host:
    """An initiator as far as login goes."""

    def __init__(self):
        registry = TargetRegistry()
        registry.add(Target(TARGET, alias="a disk"))
        link = Link(registry)
        link.connection.cid = 5
        session = Session(
            link.connection,
            initiator_name=INITIATOR,
            isid=BLANK.isid,
            tsih=KNOWN_TSIH,
            target=registry.find(TARGET),
            portal_group=1,
            exp_cmd_sn=100,
        )
        registry.add(Target(CLOSED, initiators=[]))
        self.login = TargetLogin(registry, find_session={KNOWN_TSIH: session}.get)

    def send(self, pairs=(), *, csg, nsg=None, **fields):
        data = serialize_text(pairs) if not isinstance(pairs, bytes) else pairs
        request = dataclasses.replace(BLANK, csg=csg, nsg=nsg or 0, transit=nsg is not None, data=data, **fields)
        return self.login.receive(frame_of(request))

    def refused(self, *args, **kwargs):
        """The status of the refusal that this request gets."""
        response = self.send(*args, **kwargs)
        assert self.login.failed
        assert not response.transit
        return LoginStatus(response.status)


def answers(response):
    return parse_text(response.data)


def test_a_login_through_both_stages():
    host = Host()
    first = host.send({**NAMES, "SessionType": "Normal", "AuthMethod": "CHAP,None"}, csg=0, nsg=1)
    assert answers(first) == {"TargetPortalGroupTag": "1", "TargetAlias": "a disk", "AuthMethod": "None"}
    assert (first.status, first.csg, first.nsg, first.transit) == (0, 0, 1, True)
    assert (first.isid, first.tsih, first.itt, first.stat_sn, first.exp_cmd_sn) == (BLANK.isid, 0, 5, 3, 9)
    assert host.send({"MaxBurstLength": "16776192", "HeaderDigest": "CRC32C,None", "X-odd": "1"}, csg=1, nsg=3) is None
    outcome = host.login.outcome
    assert outcome.session_type is SessionType.NORMAL
    assert (outcome.initiator_name, outcome.target.name, outcome.cid) == (INITIATOR, TARGET, 1)
    assert (outcome.exp_cmd_sn, outcome.stat_sn) == (9, 5)
    assert outcome.parameters.max_burst_length == 1_048_576
    assert outcome.parameters.header_digest
    assert not outcome.parameters.data_digest
    assert outcome.parameters.max_recv_data_segment_length == 262_144
    final = host.login.grant(tsih=6, max_cmd_sn=9 + 127)
    assert (final.tsih, final.stat_sn, final.csg, final.nsg, final.transit) == (6, 4, 1, 3, True)
    assert (final.exp_cmd_sn, final.max_cmd_sn) == (9, 136)
    assert answers(final) == {
        "MaxBurstLength": "1048576",
        "HeaderDigest": "CRC32C",
        "X-odd": "NotUnderstood",
        "MaxRecvDataSegmentLength": "262144",
    }


def test_a_login_may_skip_security_or_the_operational_stage():
    host = Host()
    assert host.send(NAMES, csg=1, nsg=3) is None
    assert host.login.outcome.parameters.max_recv_data_segment_length == 262_144
    host = Host()
    assert host.send({**NAMES, "AuthMethod": "None"}, csg=0, nsg=3) is None
    assert host.login.outcome.parameters.max_recv_data_segment_length == 8192, "nothing could be declared"


def test_a_login_without_haste_stays_in_its_stage():
    host = Host()
    for csg, pairs in [(0, NAMES), (0, {"AuthMethod": "None"})]:
        response = host.send(pairs, csg=csg)
        assert (response.csg, response.transit, host.login.outcome) == (0, False, None)
    assert host.send({}, csg=0, nsg=1).transit
    assert not host.send({"ImmediateData": "Yes"}, csg=1).transit
    assert host.send({}, csg=1, nsg=3) is None


def test_discovery_needs_no_target():
    host = Host()
    pairs = {"InitiatorName": INITIATOR, "SessionType": "Discovery", "MaxBurstLength": "512", "DefaultTime2Wait": "2"}
    assert host.send(pairs, csg=1, nsg=3) is None
    assert host.login.outcome.session_type is SessionType.DISCOVERY
    assert host.login.outcome.target is None
    said = answers(host.login.grant(1, 1))
    assert said == {"MaxBurstLength": "Irrelevant", "DefaultTime2Wait": "2", "MaxRecvDataSegmentLength": "262144"}


def test_text_in_several_pdus_is_read_as_one():
    host = Host()
    text = serialize_text({**NAMES, "ImmediateData": "No"})
    for piece in (text[:10], text[10:51]):
        response = host.send(piece, csg=1, continued=True)
        assert (response.data, response.transit, response.status) == (b"", False, 0)
    assert host.send(text[51:], csg=1, nsg=3) is None
    assert not host.login.outcome.parameters.immediate_data


@pytest.mark.parametrize(
    ("pairs", "status"),
    [
        ({"TargetName": TARGET}, LoginStatus.MISSING_PARAMETER),
        ({"InitiatorName": INITIATOR}, LoginStatus.MISSING_PARAMETER),
        ({**NAMES, "TargetName": TARGET + "x"}, LoginStatus.NOT_FOUND),
        ({**NAMES, "TargetName": CLOSED}, LoginStatus.AUTHORIZATION_FAILURE),
        ({**NAMES, "SessionType": "Boot"}, LoginStatus.SESSION_TYPE_NOT_SUPPORTED),
        ({**NAMES, "InitiatorName": "a" * 224}, LoginStatus.INITIATOR_ERROR),
        ({**NAMES, "InitiatorAlias": "a" * 256}, LoginStatus.INITIATOR_ERROR),
        ({**NAMES, "AuthMethod": "CHAP"}, LoginStatus.AUTHENTICATION_FAILURE),
        (b"InitiatorName", LoginStatus.INITIATOR_ERROR),
        (b"A=\xff\0", LoginStatus.INITIATOR_ERROR),
    ],
)
def test_refusals_for_what_the_first_text_says(pairs, status):
    assert Host().refused(pairs, csg=0, nsg=1) is status


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"version_min": 1, "version_max": 1}, LoginStatus.UNSUPPORTED_VERSION),
        ({"tsih": KNOWN_TSIH}, LoginStatus.TOO_MANY_CONNECTIONS),
        ({"tsih": KNOWN_TSIH + 1}, LoginStatus.SESSION_DOES_NOT_EXIST),
        ({"tsih": KNOWN_TSIH, "cid": 5, "isid": bytes(6)}, LoginStatus.SESSION_DOES_NOT_EXIST),
        ({"csg": 2}, LoginStatus.INITIATOR_ERROR),
        ({"csg": 3}, LoginStatus.INITIATOR_ERROR),
        ({"nsg": 2}, LoginStatus.INITIATOR_ERROR),
        ({"continued": True}, LoginStatus.INITIATOR_ERROR),
    ],
)
def test_refusals_for_what_the_header_says(fields, status):
    assert Host().refused(NAMES, **{"csg": 0, "nsg": 1, **fields}) is status


@pytest.mark.parametrize(
    "second",
    [
        {"csg": 0},
        {"csg": 1, "tsih": KNOWN_TSIH},
        {"csg": 1, "cid": 2},
        {"csg": 1, "isid": bytes(6)},
        {"csg": 1, "nsg": 1},
        {"csg": 1, "pairs": {"AuthMethod": "None"}},
    ],
)
def test_what_may_not_change_during_login(second):
    host = Host()
    assert host.send(NAMES, csg=0, nsg=1).status == 0
    assert host.refused(second.pop("pairs", ()), **second) is LoginStatus.INITIATOR_ERROR


def test_a_login_may_take_the_place_of_its_sessions_connection():
    host = Host()
    first = host.send(NAMES, csg=0, nsg=1, tsih=KNOWN_TSIH, cid=5)
    assert (first.status, first.tsih, first.exp_cmd_sn) == (0, KNOWN_TSIH, 100), "the session's numbering goes on"
    assert host.send({"DataDigest": "CRC32C"}, csg=1, nsg=3, tsih=KNOWN_TSIH, cid=5) is None
    assert host.login.outcome.tsih == KNOWN_TSIH
    host = Host()
    again = {**NAMES, "MaxBurstLength": "512"}
    assert host.refused(again, csg=1, nsg=3, tsih=KNOWN_TSIH, cid=5) is LoginStatus.INITIATOR_ERROR


@pytest.mark.parametrize("key", ["InitiatorName", "TargetName", "SessionType", "TargetAlias", "SendTargets"])
def test_what_a_later_text_may_not_say(key):
    host = Host()
    host.send(NAMES, csg=0)
    assert host.refused({key: NAMES.get(key, "Normal")}, csg=0) is LoginStatus.INITIATOR_ERROR


def test_operational_keys_have_no_place_in_the_security_stage():
    assert Host().refused({**NAMES, "ImmediateData": "No"}, csg=0) is LoginStatus.INITIATOR_ERROR


def test_a_key_is_negotiated_once():
    host = Host()
    host.send({**NAMES, "ImmediateData": "No"}, csg=1)
    assert host.refused({"ImmediateData": "Yes"}, csg=1) is LoginStatus.INITIATOR_ERROR


def test_another_pdu_ends_it():
    nop = frame_of(NopOut(1, 2, 3))
    with pytest.raises(ProtocolError) as error:
        Host().login.receive(nop)
    assert error.value.answer is None
    host = Host()
    host.send(NAMES, csg=0)
    assert host.login.receive(nop).status == LoginStatus.INVALID_DURING_LOGIN
    assert host.login.failed


def test_the_text_of_a_login_is_bounded():
    host = Host()
    host.send(b"a" * 8192, csg=0, continued=True)
    assert host.refused(b"a", csg=0, continued=True) is LoginStatus.INITIATOR_ERROR


def test_the_requests_of_a_login_are_bounded():
    host = Host()
    host.send(NAMES, csg=0)
    for _ in range(MAX_REQUESTS - 1):
        assert host.send({}, csg=0).status == 0
    assert host.refused({}, csg=0) is LoginStatus.INITIATOR_ERROR


def test_the_longest_answer_fits_one_pdu():
    host = Host()
    response = host.send({**NAMES, **{f"X-{n:061}": "" for n in range(62)}}, csg=1)
    assert response.status == 0
    assert len(response.data) <= DEFAULT_MAX_DATA_SEGMENT


def test_the_caller_may_refuse_at_the_end():
    host = Host()
    host.send(NAMES, csg=1, nsg=3)
    assert host.login.refuse(LoginStatus.OUT_OF_RESOURCES).status == LoginStatus.OUT_OF_RESOURCES
    assert host.login.failed


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*list(Stage), 2]),
            st.sampled_from([None, 0, 1, 2, 3]),
            st.booleans(),
            st.one_of(
                st.binary(max_size=60),
                st.just(serialize_text(NAMES)),
                st.dictionaries(st.sampled_from(["AuthMethod", "MaxBurstLength", "X"]), st.text(max_size=5)).map(
                    serialize_text
                ),
            ),
        ),
        max_size=6,
    )
)
def test_whatever_comes_is_answered_or_closes(requests):
    host = Host()
    for csg, nsg, continued, text in requests:
        response = host.send(text, csg=csg, nsg=nsg, continued=continued)
        if host.login.outcome is not None:
            assert response is None
            assert host.login.grant(1, 2).transit
            return
        assert isinstance(response, LoginResponse)
        response.check()
        assert (response.status != 0) is host.login.failed
        if host.login.failed:
            return
