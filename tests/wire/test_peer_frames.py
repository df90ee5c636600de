"""Frames between peers: literal bytes, round trips, spoilt ones."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.hash_tree import LEAF_BYTES, leaf_digests
from engine.links import Ack, MirrorWrite
from engine.peers.frames import (
    BULK_TO_TARGET,
    HELLO_ONLY,
    MAX_HELLO_BYTES,
    TO_SOURCE,
    TO_TARGET,
    Frame,
    FrameDecoder,
    FrameError,
    FrameType,
    Kind,
    decode_json,
    encode,
    parse_preamble,
    preamble,
)
from engine.peers.strips import Strip, decode_want, encode_piece, encode_want, parse_piece
from engine.peers.writes import (
    decode_ack,
    decode_apply,
    decode_ordered,
    encode_ack,
    encode_apply,
    encode_ordered,
)
from engine.volume import ChangeKind

REPLICA = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
DATA = bytes(range(256)) * 2
WRITE = MirrorWrite(5, ChangeKind.DATA, 0x1000, 512, DATA, fua=True)
APPLY = bytes.fromhex(
    "00112233445566778899aabbccddeeff 0000000000000007"  # replica, connection
    "0000000000000005 0000000000001000 00000200 00 01 00000200"  # sequence, offset, length, DATA, FUA, data bytes
    + leaf_digests(memoryview(DATA)).hex()
    + DATA.hex()
)


def _frames(wire: bytes, allowed: frozenset[FrameType]) -> list[Frame]:
    decoder = FrameDecoder(allowed)
    decoder.receive(wire)
    return list(decoder.frames())


def test_the_preamble_is_eight_bytes() -> None:
    assert preamble(Kind.CONTROL) == b"TVPEER\x01C"
    assert parse_preamble(b"TVPEER\x01B") is Kind.BULK
    for bad in (b"GET / HT", b"TVPEER\x02C", b"TVPEER\x01X"):
        with pytest.raises(FrameError):
            parse_preamble(bad)


def test_a_frame_is_a_header_of_sixteen_bytes_and_its_payload() -> None:
    wire = bytes.fromhex("5456 01 02 00000002 0000000000000009") + b"{}"
    assert encode(FrameType.REQUEST, 9, b"{}") == wire
    assert _frames(wire, TO_TARGET) == [Frame(FrameType.REQUEST, 9, b"{}")]


def test_a_write_is_literal_bytes() -> None:
    assert encode_apply(REPLICA, 7, WRITE) == APPLY
    replica, connection, write = decode_apply(APPLY)
    assert (replica, connection) == (REPLICA, 7)
    assert write == WRITE
    assert bytes(write.data or b"") == DATA


def test_a_write_whose_bytes_changed_on_the_way_is_refused() -> None:
    for at in (len(APPLY) - 1, len(APPLY) - 512, 24 + 26):
        spoilt = bytearray(APPLY)
        spoilt[at] ^= 1
        with pytest.raises(FrameError):
            decode_apply(bytes(spoilt))


def test_every_truncated_write_is_refused() -> None:
    for end in range(len(APPLY)):
        with pytest.raises(FrameError):
            decode_apply(APPLY[:end])
    with pytest.raises(FrameError):
        decode_apply(APPLY + b"\0")


def test_an_acknowledgement_carries_incarnation_and_connection() -> None:
    wire = bytes.fromhex("0000000000000003 0000000000000007")
    assert encode_ack(Ack(3, 7)) == wire
    assert decode_ack(wire) == Ack(3, 7)
    with pytest.raises(FrameError):
        decode_ack(wire[:-1])


@pytest.mark.parametrize(
    "wire",
    [
        b"GET / HTTP/1.1\r\n",
        bytes.fromhex("5456 02 02 00000000 0000000000000000"),  # another version
        bytes.fromhex("5456 01 c8 00000000 0000000000000000"),  # an unknown type
        bytes.fromhex("5456 01 04 00000000 0000000000000000"),  # a type of the other direction
        bytes.fromhex("5456 01 02 ffffffff 0000000000000000"),  # endless
    ],
)
def test_a_bad_header_is_refused_before_its_payload_comes(wire: bytes) -> None:
    with pytest.raises(FrameError):
        _frames(wire, TO_TARGET)


def test_a_bad_header_in_the_middle_is_the_same_error() -> None:
    decoder = FrameDecoder(TO_TARGET)
    decoder.receive(encode(FrameType.PING) + b"garbage, and more of it")
    with pytest.raises(FrameError):
        list(decoder.frames())


def test_a_stranger_can_make_this_side_hold_no_more_than_one_hello() -> None:
    with pytest.raises(FrameError):
        _frames(encode(FrameType.HELLO)[:4] + (MAX_HELLO_BYTES + 1).to_bytes(4, "big") + bytes(8), HELLO_ONLY)
    decoder = FrameDecoder(HELLO_ONLY)
    decoder.receive(encode(FrameType.HELLO, 0, bytes(MAX_HELLO_BYTES))[:-1])
    assert list(decoder.frames()) == []
    assert decoder.held_bytes < MAX_HELLO_BYTES + 16


def test_what_may_come_can_change_between_two_frames_of_one_receive() -> None:
    decoder = FrameDecoder(HELLO_ONLY)
    decoder.receive(encode(FrameType.HELLO, 0, b"{}") + encode(FrameType.PING))
    kinds = []
    for frame in decoder.frames():
        kinds.append(frame.type)
        decoder.allowed = TO_TARGET
    assert kinds == [FrameType.HELLO, FrameType.PING]


def test_messages_are_one_json_object() -> None:
    assert decode_json(b'{"op":"flush"}') == {"op": "flush"}
    for bad in (b"", b"[]", b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(FrameError):
            decode_json(bad)


frames = st.builds(
    Frame, st.sampled_from(sorted(TO_SOURCE - {FrameType.PONG, FrameType.ACK})), st.integers(0, 2**64 - 1), st.binary()
)


@given(st.lists(frames, max_size=5), st.lists(st.integers(1, 40), min_size=1))
def test_however_the_bytes_are_cut_the_frames_are_the_same(sent: list[Frame], cuts: list[int]) -> None:
    wire = b"".join(encode(frame.type, frame.request, frame.payload) for frame in sent)
    decoder, received, at, turn = FrameDecoder(TO_SOURCE), [], 0, 0
    while at < len(wire):
        size = cuts[turn % len(cuts)]
        decoder.receive(wire[at : at + size])
        received += decoder.frames()
        at, turn = at + size, turn + 1
    assert received == sent
    assert decoder.held_bytes == 0


def _write(sequence: int, offset: int, kind: ChangeKind, sectors: int, fua: bool, atomic: bool) -> MirrorWrite:
    data = bytes([sequence % 256]) * (512 * sectors) if kind is ChangeKind.DATA else None
    return MirrorWrite(sequence, kind, offset * 512, 512 * sectors, data, fua, atomic)


writes = st.builds(
    _write,
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**40),
    st.sampled_from(ChangeKind),
    st.integers(1, 300),
    st.booleans(),
    st.booleans(),
)


@given(st.lists(writes, max_size=4))
def test_writes_survive_the_way(sent: list[MirrorWrite]) -> None:
    assert decode_ordered(encode_ordered(REPLICA, 3, sent)) == (REPLICA, 3, sent)
    for write in sent:
        assert decode_apply(encode_apply(REPLICA, 4, write)) == (REPLICA, 4, write)


def test_a_strip_is_literal_bytes() -> None:
    strip = Strip(REPLICA, 7, LEAF_BYTES, 2 * LEAF_BYTES)
    wire = bytes.fromhex("00112233445566778899aabbccddeeff 0000000000000007 0000000000010000 00020000 00")
    assert strip.serialize() == wire
    assert Strip.parse(wire) == strip
    compared = Strip(REPLICA, 7, LEAF_BYTES, LEAF_BYTES + 512, bytes(range(32)))
    assert Strip.parse(compared.serialize()) == compared
    for end in range(len(wire)):
        with pytest.raises(FrameError):
            Strip.parse(wire[:end])


def test_pieces_stay_within_their_strip() -> None:
    strip = Strip(REPLICA, 7, LEAF_BYTES, LEAF_BYTES + 512)
    head = encode_piece(2 * LEAF_BYTES, 512, bytes(16))
    assert parse_piece(head, len(head) + 512, strip) == (2 * LEAF_BYTES, 512)
    for offset, length in ((0, 512), (LEAF_BYTES, 512), (2 * LEAF_BYTES, 1024), (LEAF_BYTES + 1, 512)):
        head = encode_piece(offset, length, bytes(16))
        with pytest.raises(FrameError):
            parse_piece(head, len(head) + length, strip)
    with pytest.raises(FrameError):
        parse_piece(head, len(head) + 511, strip)


@given(st.lists(st.sampled_from((None, b"", b"d")), min_size=1, max_size=64), st.integers(1, 128))
def test_the_wanted_leaves_are_told_with_what_is_there(kinds: list[bytes | None], sectors: int) -> None:
    """The last leaf may be short, and has fewer blocks then."""
    length = (len(kinds) - 1) * LEAF_BYTES + sectors * 512
    wants: list[bytes | None] = [kind and kind * 256 for kind in kinds]
    if wants[-1]:
        wants[-1] = wants[-1][: -(-sectors * 512 // 4096) * 16]
    payload = encode_want(wants)
    assert decode_want(payload, length) == wants
    for broken in (payload[:-1], payload + b"x", b""):
        with pytest.raises(FrameError):
            decode_want(broken, length)


def test_answers_about_leaves_that_were_not_asked_for_are_refused() -> None:
    assert encode_want([None, b"", b"d" * 32]) == b"\x06\x04" + b"d" * 32
    assert decode_want(b"\x01\x00", LEAF_BYTES) == [b""]
    for payload in (b"\x02\x00", b"\x00\x01", b"\x01"):
        with pytest.raises(FrameError):
            decode_want(payload, LEAF_BYTES)


def test_pieces_of_blocks_have_a_place_only_where_the_target_was_asked() -> None:
    blind, asked = Strip(REPLICA, 7, 0, LEAF_BYTES), Strip(REPLICA, 7, 0, LEAF_BYTES, bytes(16))
    head = encode_piece(4096, 8192, bytes(16))
    assert parse_piece(head, len(head) + 8192, asked) == (4096, 8192)
    with pytest.raises(FrameError):
        parse_piece(head, len(head) + 8192, blind)
    for offset, length in ((512, 4096), (4096, 4096 + 512)):
        head = encode_piece(offset, length, bytes(16))
        with pytest.raises(FrameError):
            parse_piece(head, len(head) + length, asked)


def test_bulk_frames_have_no_place_on_the_control_connection() -> None:
    for kind in BULK_TO_TARGET:
        with pytest.raises(FrameError):
            _frames(encode(kind), TO_TARGET)
