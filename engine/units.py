"""Units and alignment helpers. Bare ``offset`` and ``length`` always mean bytes."""

SECTOR_SIZE = 512
"""Smallest unit of a write, in bytes; every extent is a whole number of sectors."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

CHUNK_SIZES = (64 * KIB, 256 * KIB)
"""Selectable chunk sizes of a volume file, in bytes; the first is the default."""


def align_down(value: int, unit: int) -> int:
    """The largest multiple of ``unit`` that is not above ``value``."""
    return value - value % unit


def align_up(value: int, unit: int) -> int:
    """The smallest multiple of ``unit`` that is not below ``value``."""
    return -(-value // unit) * unit
