import itertools

import pytest

from engine.copy_state import TRANSITIONS, CopyEvent, CopyState, ProgressStatus, after, label
from engine.errors import InvalidState
from tests.support.transition_table import BEGIN, DOCUMENT, END, rendered


@pytest.mark.parametrize(("state", "event"), list(itertools.product(CopyState, CopyEvent)))
def test_every_event_is_in_the_table_or_refused(state, event):
    if (state, event) in TRANSITIONS:
        assert after(state, event, "replica r") == TRANSITIONS[state, event]
    else:
        with pytest.raises(InvalidState, match="replica r is"):
            after(state, event, "replica r")


def test_every_state_of_the_table_can_be_reached_from_the_first_and_left():
    reached = {CopyState.INITIALIZED}
    for _ in CopyState:
        reached |= {to for (state, _), (to, _) in TRANSITIONS.items() if state in reached}
    assert reached == {state for state, _ in TRANSITIONS} | {to for to, _ in TRANSITIONS.values()}
    assert all(any(state is left for left, _ in TRANSITIONS) for state in reached), "no dead end"


def test_the_numbers_are_the_dmtf_ones():
    """CIM_Synchronized, schema 2.49."""
    numbers = {"INITIALIZED": 2, "UNSYNCHRONIZED": 3, "SYNCHRONIZED": 4, "BROKEN": 5, "FRACTURED": 6, "SUSPENDED": 9}
    assert {name: CopyState[name].value for name in numbers} == numbers
    assert (ProgressStatus.COMPLETED, ProgressStatus.RESYNCING, ProgressStatus.REQUIRES_RESYNC) == (2, 7, 18)
    assert label(CopyState.NOT_APPLICABLE) == "Not Applicable"
    assert label(ProgressStatus.REQUIRES_RESYNC) == "Requires resync"


def test_the_document_has_the_table():
    """``python -m tests.support.transition_table`` writes it."""
    assert BEGIN + rendered() + END in DOCUMENT.read_text()
