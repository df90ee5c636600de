"""Texts in peers' messages."""

import pytest

from engine.peers.frames import FrameError, decode_json, text_of


@pytest.mark.parametrize("text", [r"\ud800", r"secret\udfff", "x" * 256])
def test_a_text_that_nothing_can_keep_ends_the_connection(text):
    """Half a character was an internal error at the first file or hash that it came to, and its text in the log."""
    message = decode_json(f'{{"password": "{text}"}}'.encode())
    with pytest.raises(FrameError) as refused:
        text_of(message, "password")
    assert "secret" not in str(refused.value)


def test_a_whole_character_beyond_16_bits_is_one():
    assert text_of(decode_json(rb'{"a": "\ud83d\ude00"}'), "a") == "\N{GRINNING FACE}"
