"""The narrow races: the store keeps its promise in them, and without the rule they are caught."""

import pytest

from tests.simulation.mutations import DIRECTED, MUTATIONS
from tests.support.volume_oracle import Violation


@pytest.mark.parametrize("name", sorted(DIRECTED))
def test_a_narrow_race_keeps_the_promise(name):
    DIRECTED[name]()


@pytest.mark.parametrize("name", sorted(DIRECTED))
def test_without_its_rule_the_race_is_lost(name):
    with MUTATIONS[name].applied(), pytest.raises(Violation):
        DIRECTED[name]()
