"""LUN fields (SAM-5 section 4.7)."""

import pytest

from iscsi.wire.lun import MAX_LUN, decode_lun, encode_lun


@pytest.mark.parametrize(
    ("lun", "field"),
    [
        (0, "0000000000000000"),
        (1, "0001000000000000"),
        (255, "00ff000000000000"),
        (256, "4100000000000000"),
        (MAX_LUN, "7fff000000000000"),
    ],
)
def test_sent_form(lun, field):
    assert encode_lun(lun) == int(field, 16)
    assert decode_lun(int(field, 16)) == lun


def test_a_small_lun_is_understood_in_flat_form():
    assert decode_lun(0x4005 << 48) == 5


@pytest.mark.parametrize("field", ["0100000000000000", "8000000000000000", "c101000000000000", "0000000100000000"])
def test_other_forms_address_nothing(field):
    assert decode_lun(int(field, 16)) is None


@pytest.mark.parametrize("lun", [-1, MAX_LUN + 1])
def test_out_of_range_is_our_own_mistake(lun):
    with pytest.raises(ValueError, match="not within"):
        encode_lun(lun)
