"""What one command may ask for: told in VPD page B0h, checked by the handlers."""

from __future__ import annotations

from engine.units import MIB

MAX_TRANSFER_BYTES = 8 * MIB
"""Longest data transfer of one command; bounds what a gathering task holds."""

OPTIMAL_TRANSFER_BYTES = 1 * MIB
"""Above this a transfer gains nothing more."""

MAX_COMPARE_AND_WRITE_BLOCKS = 255
"""All that the CDB's byte can say."""

MAX_UNMAP_BLOCKS = 1 << 20
"""Of one UNMAP command; also a bound of its duration."""

MAX_UNMAP_DESCRIPTORS = 256
"""A parameter list of 4 KiB; libiscsi's suite reads the field as a signed number and tries it out."""

MAX_WRITE_SAME_BLOCKS = 1 << 15
"""16 MiB of 512-byte blocks, which bounds the command's duration when the block is not zero. From 65,536 on libiscsi's
suite would move as many blocks by one WRITE(16), whatever the maximum transfer length."""

PIECE_BYTES = 1 * MIB
"""VERIFY and WRITE SAME work in pieces of this, so that they hold no more memory."""
