"""libiscsi's own test suite, one test at a time, against four LUNs of one daemon, all four at once.

``conformance.json`` beside this file is what was reached; a test that does worse now fails this one. After a change for
the better ``python -m tests.integration.test_conformance`` writes it anew, and the table of docs/protocol-support.md.

A verdict is the harness's result, but for two kinds of failures that are no fault of the target: ``defect``, which the
harness marks as the tool's own, and ``refused``: on the write-protected LUN a write was answered with DATA PROTECT,
which is what that LUN is for, and the test wanted it to succeed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import CONFORMANCE
from tests.support.daemon import ROOT, Daemon

BASELINE = Path(__file__).with_name("conformance.json")
PAGE = ROOT / "docs" / "protocol-support.md"
TABLE_BEGINS, TABLE_ENDS = "<!-- conformance table -->\n", "<!-- end of the conformance table -->\n"

LUNS: dict[str, tuple[str, ...]] = {
    "default": (),
    "512n": ("--physical-block", "512"),
    "removable": ("--removable",),
    "write-protected": ("--read-only",),
}
"""How the volume behind each is made."""
PEERS = {"tgt-thin": "default", "tgt-thin-512n": "512n", "tgt-removable": "removable"}
"""The peer's measured LUNs, and ours that are made alike."""
PASSED_AT_LEAST = {"default": 205, "512n": 200, "removable": 220, "write-protected": 125}

VERDICTS = ("passed", "defect", "refused", "skipped", "failed", "timeout", "crashed", "error", "notrun")
"""From good to bad; from the fifth on they are the target's."""
BAD = VERDICTS[4:]
WRITE_PROTECTED = ("WRITE_PROTECTED", "(0x07)/(0x2700)", "DATA PROTECTION")
WANT_WRITES = {
    "SCSI.ExtendedCopy.ValidTgtDescr",
    "SCSI.ReceiveCopyResults.CopyStatus",
    "SCSI.Sanitize.Reset",
    "SCSI.Write10.Async",
    "iSCSI.iSCSITMF.AbortTaskSimpleAsync",
    "iSCSI.iSCSITMF.LUNResetSimpleAsync",
}
"""Tests that write without saying what the write was answered with. The last two abort their write, and pass if they
are in time: their baseline is ``refused``."""

Verdicts = dict[str, str]


def run_suite(url: str, report: Path) -> dict[str, Any]:
    """All of it against one LUN; the harness's report."""
    done = subprocess.run(
        [str(CONFORMANCE), url, "--multipath", url, "--allow-sanitize", "--quiet", "--json", str(report)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr
    result: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return result


def run_on_all_luns(daemon: Daemon, work: Path) -> dict[str, dict[str, Any]]:
    """The reports by LUN. The tests mostly wait, so the four runs hardly take longer than one."""
    urls = {lun: daemon.volume(lun, "100M", *options) for lun, options in LUNS.items()}
    with ThreadPoolExecutor(len(urls)) as pool:
        runs = {lun: pool.submit(run_suite, url, work / f"{lun}.json") for lun, url in urls.items()}
        return {lun: run.result() for lun, run in runs.items()}


def verdict(lun: str, name: str, test: dict[str, Any]) -> str:
    told = " ".join(test.get("reasons", ()))
    wants_a_write = name in WANT_WRITES or any(word in told for word in WRITE_PROTECTED)
    if test["result"] == "failed" and lun == "write-protected" and wants_a_write:
        return "refused"
    if test["result"] == "failed" and test.get("tool_defect"):
        return "defect"
    return str(test["result"])


def verdicts(lun: str, report: dict[str, Any]) -> Verdicts:
    return {name: verdict(lun, name, test) for name, test in report["tests"].items()}


@pytest.mark.client("iscsi-conformance")
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_fails_and_nothing_got_worse(daemon: Daemon, tmp_path: Path):
    baseline: dict[str, Verdicts] = json.loads(BASELINE.read_text(encoding="utf-8"))["luns"]
    for lun, report in run_on_all_luns(daemon, tmp_path).items():
        now, tests = verdicts(lun, report), report["tests"]
        assert {name: tests[name] for name, each in now.items() if each in BAD} == {}, lun
        worse = {name for name, was in baseline[lun].items() if VERDICTS.index(now[name]) > VERDICTS.index(was)}
        assert {name: tests[name] for name in worse} == {}, lun
        assert Counter(now.values())["passed"] >= PASSED_AT_LEAST[lun]
    assert daemon.process.poll() is None


# The table


def cell(results: Verdicts) -> str:
    """Passed / failed, crashed or hung / skipped; refused and defective ones are behind a plus."""
    count = Counter(results.values())
    excused = count["defect"] + count["refused"]
    failed = sum(count[bad] for bad in BAD)
    return f"{count['passed']} / {failed}{f'+{excused}' if excused else ''} / {count['skipped']}"


def rows_of(columns: dict[str, Verdicts]) -> list[str]:
    """One row for each suite, and the sums."""
    suites: dict[str, list[str]] = {}
    for name in next(iter(columns.values())):
        suites.setdefault(name.split(".")[1], []).append(name)
    suites["**all**"] = list(next(iter(columns.values())))
    rows = []
    for suite, names in suites.items():
        cells = [cell({name: results.get(name, "notrun") for name in names}) for results in columns.values()]
        rows.append(f"| {suite} | {len(names)} | {' | '.join(cells)} |")
    return rows


def table(luns: dict[str, Verdicts]) -> str:
    columns = dict(luns)
    for peer in PEERS:
        report = json.loads((CONFORMANCE.parent / "baselines" / f"{peer}.json").read_text(encoding="utf-8"))
        columns[peer] = verdicts(PEERS[peer], report)
    head = f"| suite | tests | {' | '.join(columns)} |"
    return "\n".join([head, f"|---|---:|{'---|' * len(columns)}", *rows_of(columns)]) + "\n"


def write_table(luns: dict[str, Verdicts]) -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(TABLE_BEGINS)
    _, _, after = rest.partition(TABLE_ENDS)
    PAGE.write_text(f"{before}{TABLE_BEGINS}{table(luns)}{TABLE_ENDS}{after}", encoding="utf-8")


def main() -> None:
    """Write the baseline and the table anew."""
    with tempfile.TemporaryDirectory() as work, Daemon.start(Path(work) / "pool") as daemon:
        reports = run_on_all_luns(daemon, Path(work))
    luns = {lun: verdicts(lun, report) for lun, report in reports.items()}
    for lun, report in reports.items():
        print(lun, dict(Counter(luns[lun].values())))
        for name, test in report["tests"].items():
            if luns[lun][name] in (*BAD, "skipped"):
                print(f"  {luns[lun][name]} {name}: {test.get('reasons')}")
    baseline = {"tool": reports["default"]["tool"], "luns": luns}
    BASELINE.write_text(json.dumps(baseline, indent=1) + "\n", encoding="utf-8")
    write_table(luns)


if __name__ == "__main__":
    sys.exit(main())
