"""CRC32C vectors of RFC 7143 appendix B.4 (RFC 3720 B.4)."""

import pytest

from iscsi.wire.digest import crc32c, digest

VECTORS = [
    (bytes(32), "aa36918a"),
    (b"\xff" * 32, "43aba862"),
    (bytes(range(32)), "4e79dd46"),
    (bytes(range(31, -1, -1)), "5cdb3f11"),
    (
        bytes.fromhex("01c00000000000000000000000000000140000000000040000000014000000182800000000000000")
        + bytes.fromhex("0200000000000000"),
        "563a96d9",
    ),
]


@pytest.mark.parametrize(("data", "expected"), VECTORS)
def test_digest_bytes_are_those_of_the_rfc(data, expected):
    assert digest(data).hex() == expected


def test_every_kind_of_buffer_is_taken():
    data = bytes(range(256))
    writable = bytearray(data)
    views = [data, writable, memoryview(writable), memoryview(data), memoryview(writable).toreadonly()]
    assert {crc32c(view) for view in views} == {crc32c(data)}
