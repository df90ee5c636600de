"""libiscsi's own test suite, one test at a time, against a default LUN.

``conformance.json`` beside this file is the result that was reached; a test that did better there than now fails
this one. After a change for the better: ``python -m tests.integration.test_conformance`` writes it anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import CONFORMANCE
from tests.support.daemon import Daemon

BASELINE = Path(__file__).with_name("conformance.json")
PASSED_AT_LEAST = 120
NEVER = ("timeout", "crashed", "error", "notrun")


def run_suite(daemon: Daemon, work: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """Run all of it on a new LUN; exit code, its JSON report, what it printed."""
    url = daemon.volume("conformance", "100M")
    report = work / "result.json"
    done = subprocess.run(
        [str(CONFORMANCE), url, "--multipath", url, "--allow-sanitize", "--json", str(report), *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr
    result: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return done.returncode, result, done.stdout + done.stderr


def results_of(report: dict[str, Any]) -> dict[str, str]:
    return {name: test["result"] for name, test in report["tests"].items()}


@pytest.mark.client("iscsi-conformance")
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_suite_runs_to_its_end_and_nothing_got_worse(daemon: Daemon, tmp_path: Path):
    code, report, output = run_suite(daemon, tmp_path, "--compare", str(BASELINE), "--gate", "regressions")
    results = results_of(report)
    counts = Counter(results.values())
    print(output)
    assert {name: result for name, result in results.items() if result in NEVER} == {}
    assert counts["passed"] >= PASSED_AT_LEAST, counts
    assert code == 0, output
    assert daemon.process.poll() is None


def main() -> None:
    """Write the baseline anew."""
    with tempfile.TemporaryDirectory() as work, Daemon.start(Path(work) / "pool") as daemon:
        _, report, output = run_suite(daemon, Path(work))
    print(output)
    baseline = {
        "target": {"label": "tests/integration/conformance.json"},
        "tool": report["tool"],
        "summary": report["summary"],
        "tests": {name: {"result": result} for name, result in results_of(report).items()},
    }
    BASELINE.write_text(json.dumps(baseline, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
