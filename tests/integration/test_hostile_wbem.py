"""All kinds of hostile WBEM clients at once beside a good one; ``hostile_wbem`` has the long form, with figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.integration.hostile_wbem import KINDS, Site
from tests.support.wbem import serving

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

ANSWERS = {
    "passwords": {"401", "429", "503"},
    "slow": {"401", "408", "429", "503"},
    "huge": {"200", "400", "413", "503"},
    "deep": {"400", "503"},
    "unread": set(),
}
MOST_MIB = 600


def test_a_good_client_is_answered_beside_hostile_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    for served in serving(tmp_path / "pool"):
        site = Site(served)
        row = site.round(list(KINDS), 2, slow_of_address=20)
        assert row.wrong == []
        assert row.logins
        assert set(row.told) == set(ANSWERS)
        for kind, told in row.told.items():
            said = {each for each in told if each.isdigit()}  # else how a connection ended
            assert said <= ANSWERS[kind], kind
        assert row.rss_mib < MOST_MIB
        assert site.round([], 0).wrong == []
