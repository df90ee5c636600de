"""Persistent reservations under arbitrary commands of several initiators, and a power loss at any moment.

Checked after every step: what SPC-4 section 5.13 says of the state; that what is kept is what would be needed after a
power loss now, no more and no less; that nothing which was answered with GOOD is lost by one, and that a power loss
while a change is being saved leaves the state before or after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi.scsi.command import ScsiCommand, Status
from iscsi.scsi.reservations import PersistentReservations, Reservations
from tests.support.scsi_host import Host, disk

if TYPE_CHECKING:
    from iscsi.scsi.lun import LogicalUnit

HOSTS = 3
APTPL, ALL_TG_PT = 0x01, 0x04


class PowerLoss(Exception):
    """The machine is gone in the middle of a save."""


class Shelf:
    """What is durable. ``cut``: lose power at the next save, before (False) or after (True) it has become durable."""

    def __init__(self) -> None:
        self.document: str | None = None
        self.cut: bool | None = None

    async def save(self, document: str | None) -> None:
        if self.cut is not False:
            self.document = document
        if self.cut is not None:
            raise PowerLoss


@st.composite
def commands(draw) -> tuple[int, bytes, bytes]:
    """A host's number, a CDB and its data: few keys, so that they often fit."""
    action, kind = draw(st.integers(0, 6)), draw(st.sampled_from((1, 3, 5, 6, 7, 8)))
    key, other = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    flags = draw(st.sampled_from((0, APTPL, APTPL, APTPL | ALL_TG_PT)))
    data = key.to_bytes(8, "big") + other.to_bytes(8, "big") + bytes((0, 0, 0, 0, flags, 0, 0, 0))
    return draw(st.integers(0, HOSTS - 1)), bytes((0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0)), data


def powered_on(shelf: Shelf) -> list[Host]:
    lu = disk(reservations=Reservations(shelf.document, shelf.save))
    return [Host(lu, number) for number in range(HOSTS)]


def check(lu: LogicalUnit, shelf: Shelf) -> None:
    state = lu.reservations.persistent
    if state.type is not None:
        assert state.registrations
        assert (state.holder is None) == state.type.all_registrants
        assert state.holder is None or state.holder in state.registrations
    assert 0 not in state.registrations.values()
    kept = None if shelf.document is None else PersistentReservations.parse(shelf.document)
    if state.through_power_loss and state.registrations:
        assert kept is not None
        assert (kept.registrations, kept.type, kept.holder) == (state.registrations, state.type, state.holder)
    else:
        assert kept is None


@settings(max_examples=200)
@given(
    steps=st.lists(st.one_of(commands(), st.just("power loss")), max_size=40),
    last=commands(),
    durable=st.booleans(),
)
async def test_what_is_kept_is_what_counts(steps, last, durable):
    shelf = Shelf()
    hosts = powered_on(shelf)
    for step in steps:
        if step == "power loss":
            before = hosts[0].lu.reservations.persistent
            hosts = powered_on(shelf)
            after = hosts[0].lu.reservations.persistent
            if before.through_power_loss:
                assert (after.registrations, after.type, after.holder) == (
                    before.registrations,
                    before.type,
                    before.holder,
                )
            else:
                assert not after.registrations
            assert after.generation == 0
        else:
            number, cdb, data = step
            host = hosts[number]
            while host.nexus.take_unit_attention():
                pass
            generation = host.lu.reservations.persistent.generation
            result = await host.lu.execute(host.nexus, ScsiCommand(cdb, memoryview(data), 0))
            assert result.status in (Status.GOOD, Status.RESERVATION_CONFLICT, Status.CHECK_CONDITION)
            grown = host.lu.reservations.persistent.generation - generation
            assert grown in ((0, 1) if result.status == Status.GOOD else (0,))
        check(hosts[0].lu, shelf)
    await lose_power_during(hosts, shelf, last, durable=durable)


async def lose_power_during(hosts: list[Host], shelf: Shelf, last: tuple[int, bytes, bytes], *, durable: bool) -> None:
    before = shelf.document
    number, cdb, data = last
    host = hosts[number]
    while host.nexus.take_unit_attention():
        pass
    shelf.cut = durable
    result = await host.lu.execute(host.nexus, ScsiCommand(cdb, memoryview(data), 0))
    shelf.cut = None
    if not durable:
        assert shelf.document == before
    if result.status == Status.GOOD:  # nothing was to be saved
        assert shelf.document == before
    check(powered_on(shelf)[0].lu, shelf)
