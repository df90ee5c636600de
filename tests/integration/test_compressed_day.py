"""The short form of ``compressed_day``: a few hours with a kill -9 in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.compressed_day import Day, folders
from tests.support.counting_listener import CountingListener

if TYPE_CHECKING:
    from tests.integration.compressed_day import Hour

JOBS, SUBSCRIPTIONS = 45, 20


@pytest.mark.timeout(240)
async def test_memory_and_handles_stay_bounded_over_jobs_and_restarts(monkeypatch: pytest.MonkeyPatch):
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    async with folders() as (pool, probes), CountingListener() as listener:
        day = Day(pool, probes, JOBS, listener, SUBSCRIPTIONS, hours=3, stopped=(), killed=(2,))
        await day.run()
    assert listener.told.total() == 3 * SUBSCRIPTIONS
    assert [[hour.number for hour in life] for life in day.lives] == [[1, 2], [3]]
    assert sum(day.done[kind] for kind in ("clone", "clone by CIM", "root", "snapshot", "verify", "resume")) == JOBS
    assert all(_processes(hour) == ["data", "management"] for life in day.lives for hour in life)


def _processes(hour: Hour) -> list[str]:
    return [each.what for each in hour.processes]
