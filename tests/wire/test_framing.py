"""Framing with padding and digests, and hypothesis over the codecs."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi.wire.bhs import Pdu
from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import RejectReason
from iscsi.wire.pdu import REQUESTS, RESPONSES, Framer, decode
from iscsi.wire.requests import NopOut, ScsiCommandPdu
from iscsi.wire.text_keys import parse_text, serialize_text

u32 = st.integers(0, 0xFFFFFFFF)
framers = st.builds(Framer, st.booleans(), st.booleans(), st.just(4096))
BOTH = Framer(header_digest=True, data_digest=True, max_data_segment=4096)


def pdus(kind: type[Pdu]) -> st.SearchStrategy[Pdu]:
    """Any PDU of a type, its fields within their widths."""
    widths = {
        "lun": st.integers(0, (1 << 64) - 1),
        "isid": st.binary(min_size=6, max_size=6),
        "cdb": st.one_of(st.binary(min_size=16, max_size=16), st.binary(min_size=17, max_size=64)),
        "data": st.binary(max_size=40),
        "bidirectional_read_length": st.none() | u32,
        **dict.fromkeys(("csg", "nsg"), st.integers(0, 3)),
        **dict.fromkeys(("attribute",), st.integers(0, 7)),
        **dict.fromkeys(("kind",), st.integers(0, 15)),
        **dict.fromkeys(("function", "reason"), st.integers(0, 127)),
        **dict.fromkeys(("response", "event", "vendor_code", "version_max", "version_min"), st.integers(0, 255)),
        **dict.fromkeys(("version_active",), st.integers(0, 255)),
        **dict.fromkeys(("tsih", "cid", "time2wait", "time2retain"), st.integers(0, 65535)),
        **dict.fromkeys(("parameter1", "parameter2", "parameter3"), st.integers(0, 65535)),
    }
    if kind.__name__ == "LoginResponse":
        widths["status"] = st.integers(0, 65535)
    elif kind.__name__ == "DataIn":
        widths["status"] = st.none() | st.integers(0, 255)
        widths["flags"] = st.sampled_from([0, 2, 4])
    else:
        widths["status"] = st.integers(0, 255)
        widths["flags"] = st.sampled_from([0, 2, 4, 8, 16, 26])
    fields = {}
    for field in dataclasses.fields(kind):
        fields[field.name] = widths.get(field.name, st.booleans() if field.type == "bool" else u32)
    return st.builds(kind, **fields)


any_pdu = st.one_of([pdus(kind) for kind in (*REQUESTS.values(), *RESPONSES.values())])


@given(st.lists(any_pdu, max_size=4), framers)
def test_pdus_come_back_from_a_stream(sent, framer):
    stream = b"".join(framer.encode(pdu) for pdu in sent)
    view, offset, received = memoryview(stream), 0, []
    while (frame := framer.next(view, offset)) is not None:
        assert frame.data_digest_ok
        received.append({**REQUESTS, **RESPONSES}[frame.opcode].parse(frame.bhs, frame.ahs, frame.data))
        offset = frame.end
    assert offset == len(stream)
    assert received == sent


@given(any_pdu, framers, st.data())
def test_a_part_of_a_pdu_is_never_one(pdu, framer, data):
    wire = framer.encode(pdu)
    length = data.draw(st.integers(0, len(wire) - 1))
    assert framer.next(memoryview(wire)[:length]) is None


@given(any_pdu, st.data())
def test_with_digests_no_flipped_bit_passes(pdu, data):
    wire = bytearray(BOTH.encode(pdu))
    bit = data.draw(st.integers(0, len(wire) * 8 - 1))
    wire[bit // 8] ^= 1 << bit % 8
    try:
        frame = BOTH.next(memoryview(wire))
    except ProtocolError:
        return
    assert frame is None or not frame.data_digest_ok


def test_a_wrong_data_digest_is_rejected_and_a_wrong_header_digest_ends_the_connection():
    wire = bytearray(BOTH.encode(NopOut(1, 2, 3, data=b"12345")))
    wire[-1] ^= 1
    with pytest.raises(ProtocolError) as error:
        decode(BOTH.next(memoryview(wire)), REQUESTS)
    assert error.value.answer is RejectReason.DATA_DIGEST_ERROR
    wire[0] ^= 0x40
    with pytest.raises(ProtocolError) as error:
        BOTH.next(memoryview(wire))
    assert error.value.answer is None


def test_literal_bytes_with_padding_and_digests():
    wire = BOTH.encode(NopOut(1, 2, 3, data=b"12345"))
    assert len(wire) == 48 + 4 + 8 + 4
    assert wire[52:60] == b"12345\0\0\0"
    # The digests were computed bit by bit from the polynomial 0x1edc6f41, not with the library that the codec uses.
    assert wire[48:52].hex() == "c3f8044b"
    assert wire[60:].hex() == "ab3ac9a0"


def test_the_segment_limit_is_the_receivers():
    wire = Framer().encode(NopOut(1, 2, 3, data=bytes(513)))
    assert Framer(max_data_segment=513).next(memoryview(wire)) is not None
    with pytest.raises(ProtocolError):
        Framer(max_data_segment=512).next(memoryview(wire)[:48])


@given(st.binary(min_size=48, max_size=400), framers)
def test_garbage_is_decoded_or_is_a_protocol_error(garbage, framer):
    for kinds in (REQUESTS, RESPONSES):
        try:
            frame = framer.next(memoryview(garbage))
            if frame is not None:
                assert isinstance(decode(frame, kinds), Pdu)
        except ProtocolError:
            pass


def test_an_extended_cdb_keeps_its_length():
    pdu = ScsiCommandPdu(1, 0, bytes(range(19)), 2, 3)
    frame = Framer().next(memoryview(Framer().encode(pdu)))
    assert len(frame.ahs) == 8
    assert decode(frame, REQUESTS).cdb == bytes(range(19))


keys = st.text("ABCxyz012.-+@_#", min_size=1, max_size=63)
values = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(st.dictionaries(keys, values, max_size=20))
def test_text_comes_back_in_order(pairs):
    assert list(parse_text(serialize_text(pairs)).items()) == list(pairs.items())


@given(st.binary(max_size=100))
def test_garbage_text_is_read_or_is_a_protocol_error(garbage):
    with contextlib.suppress(ProtocolError):
        assert isinstance(parse_text(garbage), dict)


@pytest.mark.parametrize(
    "text",
    [
        b"novalue\0",
        b"=x\0",
        b"a b=x\0",
        b"A=1\0A=2\0",
        b"A=\xff\0",
        b"A" * 64 + b"=\0",
        b"A=" + bytes(1) * 8191,
        b"".join(b"K%d=\0" % n for n in range(65)),
    ],
    ids=["no equals", "no key", "space", "twice", "no utf-8", "long key", "long text", "many keys"],
)
def test_text_that_is_refused(text):
    with pytest.raises(ProtocolError):
        parse_text(text)


def test_literal_text():
    assert parse_text(b"SendTargets=All\0\0\0") == {"SendTargets": "All"}
    assert parse_text(b"A=b=c") == {"A": "b=c"}
    assert serialize_text([("TargetName", "x"), ("TargetName", "y")]) == b"TargetName=x\0TargetName=y\0"
