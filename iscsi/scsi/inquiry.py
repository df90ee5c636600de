"""What INQUIRY returns: standard data (SPC-4 section 6.6.2) and vital product data (SPC-4 7.8, SBC-3 6.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iscsi.scsi import limits, thresholds
from iscsi.scsi.third_party_page import third_party_copy

if TYPE_CHECKING:
    from collections.abc import Callable

    from iscsi.scsi.lun import LogicalUnit, Nexus

_NO_SUCH_UNIT = 0x7F
"""Peripheral qualifier 3h, device type 1Fh: no logical unit can be here."""

_STANDARD_LENGTH = 96
_SPC_4 = 0x06
_VERSION_DESCRIPTORS = (0x00A0, 0x0460, 0x04C0, 0x0960)  # SAM-5, SPC-4, SBC-3, iSCSI (SPC-4 table 144)
_BINARY, _UTF8 = 1, 3  # code sets, SPC-4 table 28
_UNIT, _PORT, _DEVICE = 0x00, 0x10, 0x20  # associations, in the place they have in byte 1 of a designator
_NAA, _RELATIVE_PORT, _PORT_GROUP, _NAME_STRING = 3, 4, 5, 8  # designator types, SPC-4 table 589
_ISCSI = 0x50  # protocol identifier 5h, in its place in byte 0
_PIV = 0x80


def standard_inquiry(lu: LogicalUnit) -> bytes:
    data = bytearray(_STANDARD_LENGTH)
    data[1] = 0x80 if lu.removable else 0
    data[2] = _SPC_4
    data[3] = 0x12  # HISUP, response data format 2
    data[4] = _STANDARD_LENGTH - 5
    data[5] = 0x38  # 3PC; TPGS = 11b: implicit and explicit asymmetric access
    data[6] = 0x10  # MULTIP
    data[7] = 0x02  # CMDQUE
    identity = lu.identity
    data[8:16] = identity.vendor.encode("ascii").ljust(8)
    data[16:32] = identity.product.encode("ascii").ljust(16)
    data[32:36] = identity.revision.encode("ascii").ljust(4)
    for index, version in enumerate(_VERSION_DESCRIPTORS):
        data[58 + 2 * index : 60 + 2 * index] = version.to_bytes(2, "big")
    return bytes(data)


def absent_inquiry() -> bytes:
    """Standard data of a LUN to which nothing is mapped."""
    data = bytearray(36)
    data[0] = _NO_SUCH_UNIT
    data[2] = _SPC_4
    data[3] = 0x12
    data[4] = len(data) - 5
    data[8:36] = b" " * 28
    return bytes(data)


def vital_product_data(lu: LogicalUnit, nexus: Nexus, page: int) -> bytes | None:
    """A whole VPD page, or None if there is no such page."""
    build = _VPD_PAGES.get(page)
    if build is None:
        return None
    payload = build(lu, nexus)
    return bytes((0, page)) + len(payload).to_bytes(2, "big") + payload


def _designator(code_set: int, association: int, kind: int, value: bytes) -> bytes:
    if association == _UNIT:
        return bytes((code_set, kind, 0, len(value))) + value
    return bytes((_ISCSI | code_set, _PIV | association | kind, 0, len(value))) + value


def _name_string(name: str) -> bytes:
    """SPC-4 section 7.8.5.11: UTF-8, ended by a NUL, filled with NULs to a multiple of four bytes."""
    value = name.encode() + b"\0"
    return value.ljust(-(-len(value) // 4) * 4, b"\0")


def _device_identification(lu: LogicalUnit, nexus: Nexus) -> bytes:
    """The unit is named by its NAA identifier alone.

    A T10 vendor ID or a SCSI name string beside it would come before a *locally assigned* NAA identifier in sg3-utils'
    udev rules (1.46) and in multipath-tools (0.9), and after it in systemd's scsi_id: one disk with two names.
    """
    identity, it_nexus = lu.identity, nexus.it_nexus
    return b"".join(
        (
            _designator(_BINARY, _UNIT, _NAA, identity.naa.to_bytes(8, "big")),
            _designator(_BINARY, _PORT, _RELATIVE_PORT, lu.access.relative_port(it_nexus).to_bytes(4, "big")),
            _designator(_BINARY, _PORT, _PORT_GROUP, nexus.port_group.number.to_bytes(4, "big")),
            _designator(_UTF8, _PORT, _NAME_STRING, _name_string(it_nexus.target_port)),
            _designator(_UTF8, _DEVICE, _NAME_STRING, _name_string(it_nexus.target_name)),
        )
    )


def _block_limits(lu: LogicalUnit) -> bytes:
    """SBC-3 section 6.6.3; atomic lengths: SBC-4."""
    data = bytearray(60)
    shift = lu.block_shift
    data[0] = 0x01  # WSNZ: WRITE SAME with 0 blocks is refused
    data[1] = limits.MAX_COMPARE_AND_WRITE_BLOCKS
    data[2:4] = (lu.physical_block >> shift).to_bytes(2, "big")
    data[4:8] = (limits.MAX_TRANSFER_BYTES >> shift).to_bytes(4, "big")
    data[8:12] = (limits.OPTIMAL_TRANSFER_BYTES >> shift).to_bytes(4, "big")
    if lu.thin:
        data[16:20] = limits.MAX_UNMAP_BLOCKS.to_bytes(4, "big")
        data[20:24] = limits.MAX_UNMAP_DESCRIPTORS.to_bytes(4, "big")
        data[24:28] = (lu.physical_block >> shift).to_bytes(4, "big")
        data[28:32] = (0x80000000).to_bytes(4, "big")  # UGAVALID, alignment 0
    data[32:40] = limits.MAX_WRITE_SAME_BLOCKS.to_bytes(8, "big")
    data[40:44] = lu.max_atomic_blocks.to_bytes(4, "big")  # any alignment, any length up to it, no boundary
    return bytes(data)


def _provisioning(lu: LogicalUnit) -> bytes:
    """SBC-3 section 6.6.4: LBPU, LBPWS, LBPWS10, LBPRZ; thin. SBC-4: the threshold set and percentage."""
    if not lu.thin:
        return bytes(4)
    if lu.resources is None:
        return bytes((0, 0xE4, 0x02, 0))
    return bytes((thresholds.exponent(lu), 0xE4, 0x02, thresholds.RANGE_PERCENT))


def _serial_number(lu: LogicalUnit, _nexus: Nexus) -> bytes:
    return lu.identity.serial.encode("ascii")


def _extended_inquiry(_lu: LogicalUnit, _nexus: Nexus) -> bytes:
    """SPC-4 section 7.8.7: HEADSUP, ORDSUP, SIMPSUP; V_SUP, a volatile cache. No protection, no microcode."""
    return bytes((0, 0x07, 0x01)) + bytes(57)


def _characteristics(lu: LogicalUnit, _nexus: Nexus) -> bytes:
    """SBC-3 section 6.6.2: MEDIUM ROTATION RATE 0001h, does not rotate; WABEREQ 01b: block erase leaves it readable."""
    return bytes((0, 1, 0, 0x40 if lu.sanitizer is not None else 0)) + bytes(56)


_VPD_PAGES: dict[int, Callable[[LogicalUnit, Nexus], bytes]] = {
    0x00: lambda lu, nexus: bytes(_VPD_PAGES),
    0x80: _serial_number,
    0x83: _device_identification,
    0x86: _extended_inquiry,
    0x87: lambda lu, nexus: b"\x3f\xff\x00\x00",  # SPC-4 section 7.8.12: all mode pages are shared by all nexuses
    0x8F: lambda lu, nexus: third_party_copy(lu),
    0xB0: lambda lu, nexus: _block_limits(lu),
    0xB1: _characteristics,
    0xB2: lambda lu, nexus: _provisioning(lu),
}
