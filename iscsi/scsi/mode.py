"""MODE SENSE and MODE SELECT (SPC-4 sections 6.9 to 6.12) and the parameters behind them.

One set of parameters is shared by all nexuses and lost at a restart (nothing is savable). Changeable: LBPERE of the
Read-Write Error Recovery page (where there are thresholds), WCE of the Caching page, D_SENSE and SWP of the Control
page. A page is built from the parameters, and its changeable mask is what MODE SELECT accepts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iscsi.scsi import thresholds
from iscsi.scsi.command import ScsiResult
from iscsi.scsi.sense import Asc, illegal_request, invalid_cdb_field, invalid_parameter

if TYPE_CHECKING:
    from iscsi.scsi.command import ScsiCommand
    from iscsi.scsi.lun import LogicalUnit, Nexus

_CURRENT, _CHANGEABLE, _DEFAULT, _SAVED = range(4)  # page control, SPC-4 table 145
_ERROR_RECOVERY, _CACHING, _CONTROL, _EXCEPTIONS, _ALL_PAGES = 0x01, 0x08, 0x0A, 0x1C, 0x3F
_PAGES = (_ERROR_RECOVERY, _CACHING, _CONTROL, _EXCEPTIONS)
_SPF = 0x40
_PROVISIONING = 0x02  # subpage of 1Ch, of units that have thresholds
_ALL_SUBPAGES = 0xFF

_LBPERE = 0x80  # byte 7 of the Read-Write Error Recovery page, SBC-3 section 6.5.8
_WCE = 0x04  # byte 2 of the Caching page, SBC-3 table 177
_D_SENSE = 0x04  # byte 2 of the Control page, SPC-4 table 409
_SWP = 0x08  # byte 4 of the Control page
_UNRESTRICTED_REORDERING = 0x10  # byte 3 of the Control page: a host orders its commands by waiting
_BUSY_TIMEOUT = 0xFFFF  # bytes 8, 9 of the Control page: no limit
_MAX_PARAMETER_LIST = 255  # five pages and a block descriptor are 92 bytes


class ModeParameters:
    """The changeable parameters of one logical unit."""

    __slots__ = (
        "_default_write_cache",
        "_thresholds",
        "descriptor_sense",
        "software_write_protect",
        "threshold_reports",
        "write_cache",
    )

    def __init__(self, *, write_cache: bool, thresholds: bool = False) -> None:
        self._default_write_cache = write_cache
        self._thresholds = thresholds
        self.reset()

    def reset(self) -> None:
        """Back to the defaults."""
        self.write_cache = self._default_write_cache
        self.descriptor_sense = False
        self.threshold_reports = self._thresholds
        """Whether hosts are told of thresholds (LBPERE)."""
        self.software_write_protect = False

    def default(self) -> ModeParameters:
        return ModeParameters(write_cache=self._default_write_cache, thresholds=self._thresholds)

    def page(self, code: int) -> bytearray:
        """A mode page with its two-byte header."""
        length = 0x12 if code == _CACHING else 0x0A
        page = bytearray(2 + length)
        page[0:2] = code, length
        if code == _ERROR_RECOVERY:
            page[7] = _LBPERE if self.threshold_reports else 0
        elif code == _CACHING:
            page[2] = _WCE if self.write_cache else 0
        elif code == _CONTROL:
            page[2] = _D_SENSE if self.descriptor_sense else 0
            page[3] = _UNRESTRICTED_REORDERING
            page[4] = _SWP if self.software_write_protect else 0
            page[8:10] = _BUSY_TIMEOUT.to_bytes(2, "big")
        return page

    def apply(self, page: bytes | memoryview) -> bool:
        """Take a page over that ``check_page`` passed. True when something changed."""
        before = self._values()
        if page[0] == _ERROR_RECOVERY:
            self.threshold_reports = bool(page[7] & _LBPERE)
        elif page[0] == _CACHING:
            self.write_cache = bool(page[2] & _WCE)
        elif page[0] == _CONTROL:
            self.descriptor_sense = bool(page[2] & _D_SENSE)
            self.software_write_protect = bool(page[4] & _SWP)
        return before != self._values()

    def _values(self) -> tuple[bool, ...]:
        return self.threshold_reports, self.write_cache, self.descriptor_sense, self.software_write_protect


def _changeable(lu: LogicalUnit, code: int) -> bytearray:
    """The page with a 1 in every bit that MODE SELECT may change."""
    length = 0x12 if code == _CACHING else 0x0A
    page = bytearray(2 + length)
    page[0:2] = code, length
    if code == _ERROR_RECOVERY:
        page[7] = _LBPERE if lu.resources is not None else 0
    elif code == _CACHING:
        page[2] = _WCE
    elif code == _CONTROL:
        page[2] = _D_SENSE
        page[4] = _SWP
    return page


def _pages(lu: LogicalUnit, page_control: int, code: int, subpage: int) -> bytes:
    codes = _PAGES if code == _ALL_PAGES else (code,)
    parameters = lu.mode.default() if page_control == _DEFAULT else lu.mode
    found = b""
    for each in codes:
        if subpage in (0, _ALL_SUBPAGES):
            found += _changeable(lu, each) if page_control == _CHANGEABLE else parameters.page(each)
        if each == _EXCEPTIONS and subpage and lu.resources is not None:
            found += thresholds.mode_page(lu.resources, changeable=page_control == _CHANGEABLE)
    return found


def _block_descriptor(lu: LogicalUnit, *, long: bool) -> bytes:
    """SBC-3 section 6.5.2: number of blocks and their length."""
    if long:
        return lu.blocks.to_bytes(8, "big") + bytes(4) + lu.logical_block.to_bytes(4, "big")
    return min(lu.blocks, 0xFFFFFFFF).to_bytes(4, "big") + b"\0" + lu.logical_block.to_bytes(3, "big")


def _device_specific(lu: LogicalUnit) -> int:
    """SBC-3 section 6.5.1: WP, and DPOFUA = 1."""
    return 0x10 | (0x80 if lu.shows_protection else 0)


async def mode_sense_6(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    pages = _requested_pages(lu, command.cdb)
    descriptor = b"" if command.cdb[1] & 0x08 else _block_descriptor(lu, long=False)
    length = 3 + len(descriptor) + len(pages)
    header = bytes((length, 0, _device_specific(lu), len(descriptor)))
    return ScsiResult(data_in=(header + descriptor + pages)[: command.cdb[4]])


async def mode_sense_10(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    cdb = command.cdb
    pages = _requested_pages(lu, cdb)
    long = bool(cdb[1] & 0x10)
    descriptor = b"" if cdb[1] & 0x08 else _block_descriptor(lu, long=long)
    length = 6 + len(descriptor) + len(pages)
    header = length.to_bytes(2, "big") + bytes((0, _device_specific(lu), 1 if long and descriptor else 0, 0))
    header += len(descriptor).to_bytes(2, "big")
    allocation = int.from_bytes(cdb[7:9], "big")
    return ScsiResult(data_in=(header + descriptor + pages)[:allocation])


def _requested_pages(lu: LogicalUnit, cdb: bytes) -> bytes:
    page_control, code, subpage = cdb[2] >> 6, cdb[2] & 0x3F, cdb[3]
    if page_control == _SAVED:
        raise illegal_request(Asc.SAVING_PARAMETERS_NOT_SUPPORTED)
    if code not in (*_PAGES, _ALL_PAGES):
        raise invalid_cdb_field(2, 5)
    provisioning = lu.resources is not None and (code, subpage) == (_EXCEPTIONS, _PROVISIONING)
    if subpage not in (0, _ALL_SUBPAGES) and not provisioning:
        raise invalid_cdb_field(3)
    return _pages(lu, page_control, code, subpage)


def parameter_list_length_6(lu: LogicalUnit, cdb: bytes) -> int:
    return cdb[4]


def parameter_list_length_10(lu: LogicalUnit, cdb: bytes) -> int:
    return int.from_bytes(cdb[7:9], "big")


async def mode_select_6(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    return await _select(lu, nexus, command, command.cdb[4], header=4)


async def mode_select_10(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    return await _select(lu, nexus, command, int.from_bytes(command.cdb[7:9], "big"), header=8)


async def _select(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand, length: int, *, header: int) -> ScsiResult:
    """All or nothing: every page is checked before the first is applied.

    Whoever switches the write cache off may rely on what was written before: it is flushed before the answer.
    """
    if not command.cdb[1] & 0x10:  # PF: pages of the standard's format
        raise invalid_cdb_field(1, 4)
    if length == 0:
        return ScsiResult()
    data = command.data_out[:length]
    if not header <= length <= _MAX_PARAMETER_LIST or len(data) < length:
        raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
    descriptor = data[3] if header == 4 else int.from_bytes(data[6:8], "big")
    _check_block_descriptor(lu, data, header, descriptor)
    at = header + descriptor
    pages = []
    while at < length:
        pages.append(_checked_page(lu, data, at))
        at += len(pages[-1])
    cached = lu.mode.write_cache
    changed = [lu.mode.apply(page) for page in pages if not page[0] & _SPF]
    if any(changed):
        lu.establish_unit_attention(Asc.MODE_PARAMETERS_CHANGED, by=nexus)
        lu.refresh_all()
    if cached and not lu.mode.write_cache:
        await lu.device.flush()
    return ScsiResult()


def _check_block_descriptor(lu: LogicalUnit, data: memoryview, at: int, length: int) -> None:
    """Nothing in it can be changed: a descriptor must repeat the block length and the capacity, or 0 for it."""
    long = at == 8 and bool(data[4] & 1)
    if length not in (0, 16 if long else 8):
        raise invalid_parameter(3 if at == 4 else 6)
    if at + length > len(data):
        raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
    if not length:
        return
    count = int.from_bytes(data[at : at + (8 if long else 4)], "big")
    block = int.from_bytes(data[at + length - (4 if long else 3) : at + length], "big")
    if count not in (0, lu.blocks, min(lu.blocks, 0xFFFFFFFF)):
        raise invalid_parameter(at)
    if block != lu.logical_block:
        raise invalid_parameter(at + length - (4 if long else 3))


def _checked_page(lu: LogicalUnit, data: memoryview, at: int) -> memoryview:
    """The page at ``at``, its unchangeable bits being what they are."""
    code = data[at] & 0x3F
    if code not in _PAGES or (data[at] & _SPF and (code != _EXCEPTIONS or lu.resources is None)):
        raise invalid_parameter(at, 5)
    if data[at] & _SPF and lu.resources is not None:
        current = thresholds.mode_page(lu.resources, changeable=False)
        mask, header = bytearray(len(current)), 4
    else:
        current, mask, header = lu.mode.page(code), _changeable(lu, code), 2
    if at + header > len(data):
        raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
    for index in range(1, header):
        if data[at + index] != current[index]:
            raise invalid_parameter(at + index)
    if at + len(current) > len(data):
        raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
    page = data[at : at + len(current)]
    for index in range(header, len(current)):
        wrong = (page[index] ^ current[index]) & ~mask[index]
        if wrong:
            raise invalid_parameter(at + index, wrong.bit_length() - 1)
    return page
