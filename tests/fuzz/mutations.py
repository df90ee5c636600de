"""Valid bytes, spoilt a little: a deterministic function of its random generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

NUMBERS = (b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\1\0")
BOUNDARIES = (*NUMBERS, b"=", b"\0=\0")


def mutate(data: bytes, chance: random.Random) -> bytes:
    """``data`` with up to eight changes; one time in ten as it is, one time in twenty something else altogether."""
    dice = chance.random()
    if dice < 0.05:
        return chance.randbytes(chance.randrange(200))
    changes = 0 if dice < 0.15 else chance.randrange(1, 9)
    spoilt = bytearray(data)
    for _ in range(changes):
        _change(spoilt, chance)
    return bytes(spoilt)


def _change(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data) + 1)
    end = min(len(data), at + chance.choice((1, 1, 2, 4, 8, 48)))
    match chance.randrange(6):
        case 0 if at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        case 1 if at < len(data):
            data[at] = chance.randrange(256)
        case 2:
            value = chance.choice(BOUNDARIES)
            data[at : at + len(value)] = value
        case 3:
            del data[at:end]
        case 4:
            data[at:at] = data[at:end]
        case _:
            data[at:at] = chance.randbytes(chance.randrange(1, 9))
