"""``twinvol demo`` is the first thing that people see."""

import json

import pytest

from tests.support.daemon import twinvol


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_demo_holds_all_its_checks_in_under_a_minute():
    done = twinvol("demo", "--json", timeout_s=170)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["ok"]
    assert len(result["checks"]) >= 14
    assert all(check["ok"] for check in result["checks"])
    roots = {copy["name"]: copy["root"] for copy in result["copies"]}
    assert roots["disk@before"] == roots["clone"] == roots["linked"]
    assert roots["twin"] != roots["clone"]
