"""What one command may ask for: told in VPD page B0h, checked by the handlers."""

from __future__ import annotations

from engine.units import GIB, MIB

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

# Third-party copies (SPC-4 section 5.17, SBC-3); told in VPD page 8Fh.

MAX_CSCD_DESCRIPTORS = 16
MAX_SEGMENT_DESCRIPTORS = 64
MAX_DESCRIPTOR_LIST_BYTES = MAX_CSCD_DESCRIPTORS * 32 + MAX_SEGMENT_DESCRIPTORS * 28
"""Of one EXTENDED COPY: a block to block segment descriptor has 28 bytes."""

MAX_SEGMENT_BLOCKS = 0xFFFF
"""All that a block to block segment descriptor can say."""

MAX_COPIES = 16
"""Copy operations of one initiator in progress; one more is answered with TASK SET FULL."""

MAX_COPIES_OF_ALL = 256
"""Of all initiators together."""

MAX_KNOWN_COPIES = 64
"""Copy operations that are remembered for one nexus, by their list identifiers."""

MAX_RANGE_DESCRIPTORS = 128
"""Of POPULATE TOKEN and WRITE USING TOKEN."""

MAX_TOKEN_TRANSFER_BYTES = 4 * GIB
"""Of one POPULATE TOKEN or WRITE USING TOKEN: where data has to be moved, some seconds' work."""
