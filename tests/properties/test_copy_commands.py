"""Third-party copy commands with any bytes in them: refused or done, never a failure of ours, never out of bounds.

Parameter lists are made of the right parts with some bytes changed, so that most get past the first checks.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.scsi.command import ScsiCommand, Status
from iscsi.scsi.sense import SenseKey
from tests.support.scsi_host import sense_of
from tests.unit.scsi.test_extended_copy import SOURCE_NAA, TARGET_NAA, Pair, cscd, parameters, segment
from tests.unit.scsi.test_token_copy import ZERO_TOKEN, Array, populate_list, write_list

NUMBER = st.one_of(st.integers(0, 3), st.integers(0, 1300), st.integers(0, (1 << 64) - 1))
INDEX = st.sampled_from((0, 1, 2, 0xC000, 0xFFFF))
SEGMENTS = st.lists(st.tuples(INDEX, INDEX, st.integers(0, 0xFFFF), NUMBER, NUMBER), max_size=5)
RANGES = st.lists(st.tuples(NUMBER, st.integers(0, 5000)), max_size=5)
CHANGES = st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=4)


@st.composite
def parameter_lists(draw) -> tuple[int, bytes]:
    """Service action and parameter list."""
    action = draw(st.sampled_from((0x00, 0x10, 0x11)))
    if action == 0x00:
        segments = [segment(*each) for each in draw(SEGMENTS)]
        data = parameters(*segments, cscds=(cscd(SOURCE_NAA), cscd(TARGET_NAA)), list_id=draw(st.integers(0, 2)))
    elif action == 0x10:
        data = populate_list(*draw(RANGES), flags=draw(st.integers(0, 3)), timeout=draw(st.integers(0, 700)))
    else:
        data = write_list(ZERO_TOKEN, *draw(RANGES), flags=draw(st.integers(0, 3)), offset=draw(NUMBER))
    changed = bytearray(data)
    for at, value in draw(CHANGES):
        if at < len(changed):
            changed[at] = value
    return action, bytes(changed[: draw(st.integers(0, len(changed)))] if draw(st.booleans()) else changed)


def assert_well_formed(result) -> None:
    assert result.status in (Status.GOOD, Status.CHECK_CONDITION, Status.TASK_SET_FULL)
    assert (result.status == Status.CHECK_CONDITION) == bool(result.sense)
    assert sense_of(result)[0] is not SenseKey.HARDWARE_ERROR


@settings(max_examples=300, deadline=None)
@given(st.lists(parameter_lists(), max_size=4), st.booleans())
async def test_any_parameter_list_is_done_or_refused(lists, on_volumes):
    if on_volumes:
        array = Array()
        host, manager = array.source, array.manager
    else:
        pair = Pair(blocks=1300)
        host, manager = pair.host, pair.source.copy_manager
    for number, (action, data) in enumerate(lists):
        cdb = bytes((0x83, action, 0, 0, 0, 0, 0, 0, 0, number % 2)) if action else bytes((0x83,)) + bytes(9)
        cdb += len(data).to_bytes(4, "big") + bytes(2)
        assert_well_formed(await host.lu.execute(host.nexus, ScsiCommand(cdb, memoryview(data), 0)))
        for question in (0x00, 0x01, 0x04, 0x05, 0x07):
            cdb = bytes((0x84, question, 0, 0, 0, number % 2, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0))
            assert_well_formed(await host.lu.execute(host.nexus, ScsiCommand(cdb, memoryview(b""), 1024)))
    for operation in manager.in_background():
        await operation.finished.wait()
    await manager.close()
