"""Operational keys: offers, answers, results."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi.negotiation import (
    KEYS,
    Offerer,
    Responder,
    SessionParameters,
    Wishes,
    answer_in_full_feature_phase,
    parse_number,
)
from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import LoginStatus, RejectReason


def respond(*offers, discovery=False):
    """What is answered to ``offers``, but for our own declaration, and what holds then."""
    responder = Responder(discovery=discovery)
    *answers, own = responder.answer(offers)
    assert own == ("MaxRecvDataSegmentLength", "262144")
    return dict(answers), responder.parameters()


@pytest.mark.parametrize(
    ("key", "offer", "answer"),
    [
        ("HeaderDigest", "CRC32C,None", "CRC32C"),
        ("HeaderDigest", "None,CRC32C", "None"),
        ("DataDigest", "MD5,None", "None"),
        ("DataDigest", "MD5", "Reject"),
        ("MaxConnections", "8", "1"),
        ("InitialR2T", "No", "No"),
        ("InitialR2T", "Yes", "Yes"),
        ("InitialR2T", "maybe", "Reject"),
        ("ImmediateData", "Yes", "Yes"),
        ("ImmediateData", "No", "No"),
        ("MaxBurstLength", "16776192", "1048576"),
        ("MaxBurstLength", "0x1000", "4096"),
        ("MaxBurstLength", "511", "Reject"),
        ("MaxBurstLength", "16777216", "Reject"),
        ("FirstBurstLength", "262144", "262144"),
        ("FirstBurstLength", "1000000", "262144"),
        ("DefaultTime2Wait", "2", "2"),
        ("DefaultTime2Retain", "20", "0"),
        ("MaxOutstandingR2T", "1", "1"),
        ("MaxOutstandingR2T", "65535", "8"),
        ("MaxOutstandingR2T", "0", "Reject"),
        ("DataPDUInOrder", "No", "Yes"),
        ("DataSequenceInOrder", "Yes", "Yes"),
        ("ErrorRecoveryLevel", "2", "0"),
        ("ErrorRecoveryLevel", "3", "Reject"),
        ("TaskReporting", "FastAbort,RFC3720", "RFC3720"),
        ("iSCSIProtocolLevel", "2", "1"),
        ("IFMarker", "Yes", "No"),
        ("OFMarkInt", "2048~8192", "Reject"),
        ("X-com.example.thing", "1", "NotUnderstood"),
        ("AuthMethodd", "1", "NotUnderstood"),
    ],
)
def test_each_rule(key, offer, answer):
    assert respond((key, offer))[0] == {key: answer}


@pytest.mark.parametrize("pair", [("MaxRecvDataSegmentLength", "65536"), ("X-odd", "NotUnderstood")])
def test_declarations_and_refusals_get_no_answer(pair):
    assert respond(pair)[0] == {}


def test_the_peers_declaration_limits_what_we_send():
    assert respond(("MaxRecvDataSegmentLength", "65536"))[1].max_send_data_segment_length == 65536


def test_defaults_hold_for_what_was_not_negotiated():
    assert respond()[1] == dataclasses.replace(SessionParameters(), max_recv_data_segment_length=262_144)


@pytest.mark.parametrize("order", [1, -1])
def test_the_first_burst_never_exceeds_the_burst(order):
    offers = [("MaxBurstLength", "65536"), ("FirstBurstLength", "262144")][::order]
    answers, parameters = respond(*offers)
    assert answers == {"MaxBurstLength": "65536", "FirstBurstLength": "65536"}
    assert parameters.first_burst_length == 65536
    assert respond(("MaxBurstLength", "4096"))[1].first_burst_length == 4096


def test_keys_without_meaning_in_discovery_are_irrelevant():
    answers, parameters = respond(("InitialR2T", "No"), ("HeaderDigest", "CRC32C"), discovery=True)
    assert answers == {"InitialR2T": "Irrelevant", "HeaderDigest": "CRC32C"}
    assert parameters.initial_r2t


def test_a_second_offer_is_an_error():
    responder = Responder(discovery=False)
    responder.answer([("ImmediateData", "Yes")])
    with pytest.raises(ProtocolError) as error:
        responder.answer([("ImmediateData", "Yes")])
    assert error.value.answer is LoginStatus.INITIATOR_ERROR


def refused(*texts, operational=True, session=None):
    """The status that the last of these texts gets."""
    responder = Responder(discovery=False, session=session)
    for text in texts[:-1]:
        responder.answer(text, operational=operational)
    with pytest.raises(ProtocolError) as error:
        responder.answer(texts[-1], operational=operational)
    return error.value.answer


@pytest.mark.parametrize("key", sorted(KEYS))
def test_each_key_comes_once_and_in_the_operational_stage(key):
    offer = (key, {"MaxRecvDataSegmentLength": "512", "MaxBurstLength": "512"}.get(key, "1"))
    assert refused([offer], [offer]) is LoginStatus.INITIATOR_ERROR
    assert refused([offer], operational=False) is LoginStatus.INITIATOR_ERROR


@pytest.mark.parametrize(
    "offer",
    [
        ("TargetAlias", "a"),
        ("TargetAddress", "10.0.0.1:3260,1"),
        ("TargetPortalGroupTag", "1"),
        ("SendTargets", "All"),
        ("MaxRecvDataSegmentLength", "511"),
        ("MaxRecvDataSegmentLength", "16777216"),
        ("MaxRecvDataSegmentLength", "Reject"),
    ],
)
def test_what_an_initiator_may_not_say_in_login(offer):
    assert refused([offer]) is LoginStatus.INITIATOR_ERROR


def test_an_alias_is_declared_once_and_unknown_keys_are_not_understood_in_both_stages():
    assert refused([("InitiatorAlias", "a")], [("InitiatorAlias", "b")]) is LoginStatus.INITIATOR_ERROR
    responder = Responder(discovery=False)
    assert responder.answer([("X-a", "1"), ("InitiatorAlias", "a")], operational=False) == [("X-a", "NotUnderstood")]


def test_another_connection_negotiates_what_is_its_own_and_keeps_the_sessions():
    session = SessionParameters(data_digest=True, max_burst_length=100_000, initial_r2t=False, default_time2wait=0)
    responder = Responder(discovery=False, session=session)
    responder.answer([("HeaderDigest", "CRC32C"), ("MaxRecvDataSegmentLength", "65536")])
    expected = dataclasses.replace(
        session,
        header_digest=True,
        data_digest=False,
        max_send_data_segment_length=65536,
        max_recv_data_segment_length=262_144,
    )
    assert responder.parameters() == expected
    of_the_session = sorted(key.name for key in KEYS.values() if not key.of_connection)
    assert len(of_the_session) == len(KEYS) - 3
    for key in of_the_session:
        assert refused([(key, "1")], session=session) is LoginStatus.INITIATOR_ERROR


def test_full_feature_phase_changes_one_thing_only():
    before = SessionParameters()
    answers, after = answer_in_full_feature_phase(
        before, {"MaxRecvDataSegmentLength": "1024", "X-a": "", "SendTargets": "All", "IFMarker": "Yes"}
    )
    assert answers == [("X-a", "NotUnderstood"), ("IFMarker", "No")]
    assert after.max_send_data_segment_length == 1024
    assert answer_in_full_feature_phase(before, {"InitiatorAlias": "another"}) == ([], before)
    assert answer_in_full_feature_phase(before, {"MaxRecvDataSegmentLength": "1"}) == (
        [("MaxRecvDataSegmentLength", "Reject")],
        before,
    )


@pytest.mark.parametrize("key", ["MaxBurstLength", "HeaderDigest", "InitiatorName", "SessionType", "TargetAlias"])
def test_what_belongs_to_login_is_rejected_in_full_feature_phase(key):
    with pytest.raises(ProtocolError) as error:
        answer_in_full_feature_phase(SessionParameters(), {key: "512"})
    assert error.value.answer is RejectReason.PROTOCOL_ERROR


@pytest.mark.parametrize("text", ["", "-1", "+1", "01", "00", " 1", "1 ", "1_0", "0x", "٣", "1" * 20])
def test_what_is_no_number(text):
    assert parse_number(text, 0, 1 << 40) is None


wishes = st.builds(
    Wishes,
    header_digest=st.sampled_from(["None", "CRC32C", "CRC32C,None", "None,CRC32C"]),
    data_digest=st.sampled_from(["None", "CRC32C", "CRC32C,None", "None,CRC32C"]),
    initial_r2t=st.booleans(),
    immediate_data=st.booleans(),
    max_recv_data_segment_length=st.integers(512, 0xFFFFFF),
    max_burst_length=st.integers(512, 0xFFFFFF),
    first_burst_length=st.integers(512, 0xFFFFFF),
    max_outstanding_r2t=st.integers(1, 65535),
)


@given(wishes, st.booleans())
def test_both_sides_end_with_the_same_parameters(wish, discovery):
    offerer, responder = Offerer(wish, discovery=discovery), Responder(discovery=discovery)
    offerer.accept(dict(responder.answer(offerer.offers())))
    ours, theirs = offerer.parameters(), responder.parameters()
    assert ours.max_send_data_segment_length == theirs.max_recv_data_segment_length == 262_144
    assert theirs.max_send_data_segment_length == ours.max_recv_data_segment_length == wish.max_recv_data_segment_length
    for name in SessionParameters.__slots__:
        if "data_segment" not in name:
            assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize(
    "answer",
    [
        ("HeaderDigest", "MD5"),
        ("MaxBurstLength", "2000000"),
        ("MaxBurstLength", "1"),
        ("MaxBurstLength", "many"),
        ("ImmediateData", "Perhaps"),
        ("MaxOutstandingR2T", "9"),
        ("MaxRecvDataSegmentLength", "1"),
    ],
)
def test_an_initiator_refuses_answers_that_its_offer_does_not_allow(answer):
    with pytest.raises(ProtocolError):
        Offerer(Wishes(), discovery=False).accept(dict([answer]))


@given(st.sampled_from(sorted(KEYS)), st.text(max_size=12))
def test_any_value_of_any_key_is_answered(key, value):
    if key == "MaxRecvDataSegmentLength" and parse_number(value, 512, 0xFFFFFF) is None:
        assert refused([(key, value)]) is LoginStatus.INITIATOR_ERROR, "what is declared cannot be rejected"
        return
    answers, parameters = respond((key, value))
    assert isinstance(parameters, SessionParameters)
    assert set(answers) <= {key}
