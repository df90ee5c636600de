"""AES-256-XTS between store and file: a vector of the standard, and any piece read or written alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from engine.tvol.cipher import EncryptedFile
from engine.tvol.layout_encryption import UNIT_BYTES
from tests.support.sim_files import SimFileSystem

SECTOR = 512
SIZE = 5 * UNIT_BYTES
KEY = bytes.fromhex(
    "2718281828459045235360287471352662497757247093699959574966967627"
    "3141592653589793238462643383279502884197169399375105820974944592"
)


@pytest.fixture
def plain():
    return SimFileSystem(random.Random(1)).create(Path("/data"))


def read(file, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    file.read_into((memoryview(buffer),), offset)
    return bytes(buffer)


def test_a_vector_of_ieee_1619(plain):
    """Annex B, XTS-AES-256, vector 10: data unit ff, the bytes 00 to ff twice."""
    EncryptedFile(plain, KEY).write((memoryview(bytes(range(256)) * 2),), 0xFF * UNIT_BYTES)
    written = read(plain, 0xFF * UNIT_BYTES, SECTOR)
    assert written[:64].hex() == (
        "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"
        "5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd"
    )


@pytest.mark.parametrize("seed", range(5))
def test_any_sectors_are_written_and_read_alone(plain, seed: int):
    rng = random.Random(seed)
    file, expected = EncryptedFile(plain, KEY), bytearray(SIZE)
    file.write((memoryview(bytes(SIZE)),), 0)
    for _ in range(60):
        start = rng.randrange(SIZE // SECTOR)
        sectors = rng.randint(1, min(40, SIZE // SECTOR - start))
        if rng.random() < 0.5:
            data = rng.randbytes(sectors * SECTOR)
            cut = rng.randrange(sectors + 1) * SECTOR
            file.write((memoryview(data)[:cut], memoryview(data)[cut:]), start * SECTOR)
            expected[start * SECTOR : (start + sectors) * SECTOR] = data
        else:
            view = memoryview(bytearray(sectors * SECTOR))
            assert file.read_now(view, start * SECTOR)
            assert view == expected[start * SECTOR : (start + sectors) * SECTOR]
    assert read(file, 0, SIZE) == expected
    assert not any(read(plain, at, SECTOR) == expected[at : at + SECTOR] for at in range(0, SIZE, SECTOR))


def test_equal_sectors_of_one_unit_and_of_two_do_not_look_alike(plain):
    file = EncryptedFile(plain, KEY)
    file.write((memoryview(bytes(2 * UNIT_BYTES)),), 0)
    blocks = [read(plain, at, 16) for at in range(0, 2 * UNIT_BYTES, 16)]
    assert len(set(blocks)) == len(blocks)


def test_the_callers_bytes_are_left_alone_and_the_descriptor_goes_with_its_key(plain):
    data = bytearray(b"x" * SECTOR)
    file = EncryptedFile(plain, KEY)
    file.write((memoryview(data),), 0)
    assert data == b"x" * SECTOR
    assert (file.fileno(), file.key) == (plain.fileno(), KEY)
    assert plain.key is None
