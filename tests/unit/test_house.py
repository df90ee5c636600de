"""The house's small rules that no linter states."""

from engine.units import align_down, align_up


def test_alignment_helpers_round_to_whole_units():
    assert (align_down(65537, 65536), align_up(65537, 65536), align_up(65536, 65536)) == (
        65536,
        131072,
        65536,
    )
