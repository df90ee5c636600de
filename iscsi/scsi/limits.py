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

MAX_WRITE_SAME_BLOCKS = 1 << 20
"""512 MiB of 512-byte blocks: some tenths of a second when the block is not zero."""

PIECE_BYTES = 1 * MIB
"""Long commands (VERIFY, WRITE SAME) work in pieces of this, so that they hold no more memory."""
