"""The narrow races: the store keeps its promise in them, and without the rule they are caught."""

import pytest

from tests.simulation.directed_flatten import (
    a_large_chunk_that_is_equal_in_one_half,
    a_large_chunk_that_is_zero_in_its_first_half,
    a_large_chunk_that_is_zero_in_its_second_half,
    a_write_in_place_to_what_is_being_copied,
    a_write_over_what_is_being_copied,
)
from tests.simulation.mutations import DIRECTED, MUTATIONS
from tests.support.volume_oracle import Violation


@pytest.mark.parametrize("name", sorted(DIRECTED))
def test_a_narrow_race_keeps_the_promise(name):
    DIRECTED[name]()


@pytest.mark.parametrize("scene", [a_write_over_what_is_being_copied, a_write_in_place_to_what_is_being_copied])
def test_a_copy_of_what_is_inherited_replaces_no_write(scene):
    scene()


LARGE_CHUNKS = [
    a_large_chunk_that_is_equal_in_one_half,
    a_large_chunk_that_is_zero_in_its_first_half,
    a_large_chunk_that_is_zero_in_its_second_half,
]


@pytest.mark.parametrize("scene", LARGE_CHUNKS)
def test_a_copy_has_all_of_a_chunk_that_is_larger_than_a_part(scene):
    scene()


@pytest.mark.parametrize("scene", LARGE_CHUNKS)
def test_parts_that_end_inside_of_a_chunk_are_caught(scene):
    with MUTATIONS["units-lie-in-one-part"].applied(), pytest.raises(Violation):
        scene()


@pytest.mark.parametrize("name", sorted(DIRECTED))
def test_without_its_rule_the_race_is_lost(name):
    with MUTATIONS[name].applied(), pytest.raises(Violation):
        DIRECTED[name]()
