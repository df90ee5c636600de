"""Strangers cannot fill the log: what connections that never log in cause is bounded, and what is left out is told."""

from __future__ import annotations

import logging

from iscsi.session import SessionTable
from iscsi.stranger_log import MAX_LINES_PER_TICK, StrangerLog
from tests.support.iscsi_link import INITIATOR, Link, make_registry, make_unit
from tests.support.memory_device import MemoryDevice


def messages(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_lines_are_written_as_they_are_until_there_are_too_many(caplog):
    log = StrangerLog()
    with caplog.at_level(logging.INFO, "iscsi"):
        for number in range(MAX_LINES_PER_TICK + 7):
            log.write(logging.INFO, "line %d", number)
        assert messages(caplog) == [f"line {number}" for number in range(MAX_LINES_PER_TICK)]
        log.tick()
        log.write(logging.WARNING, "again")
        log.tick()
    left_out, again = caplog.records[MAX_LINES_PER_TICK:]
    assert left_out.getMessage() == "7 more lines about connections that were not logged in are left out"
    assert (again.getMessage(), again.levelno) == ("again", logging.WARNING)


def test_a_thousand_refused_logins_and_a_thousand_pieces_of_garbage_are_few_lines(caplog):
    registry, table = make_registry(make_unit(MemoryDevice(4096))), SessionTable()
    with caplog.at_level(logging.DEBUG):
        for _ in range(1000):
            stranger = Link(registry, table)
            names = {"InitiatorName": INITIATOR, "TargetName": "iqn.2026-11.org.example:none"}
            stranger.feed(stranger.framer.encode(stranger.login_request(names)))
            assert stranger.connection.closing
            Link(registry, table).feed(b"\x1f" + bytes(47))
        assert len(caplog.records) == MAX_LINES_PER_TICK
        table.strangers.tick()
    assert messages(caplog)[-1].startswith(f"{2000 - MAX_LINES_PER_TICK} more lines")
