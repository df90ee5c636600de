"""The bench beside tgtd runs to its end and measures every row; rounds this short say nothing about speed."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from bench.machine import two_cores
from bench.report import from_json
from bench.side_by_side import SUBJECT
from bench.targets import why_no_tgtd
from tests.support.daemon import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 32 << 20


@pytest.mark.client("loadgen")
@pytest.mark.client("tgtd")
@pytest.mark.slow
def test_every_row_is_measured(tmp_path: Path):
    if reason := why_no_tgtd() or (None if two_cores() else "needs two cores"):
        pytest.skip(reason)
    command = [sys.executable, "-m", "bench.side_by_side", "--rounds", "1", "--seconds", "0.05"]
    command += ["--size", str(SIZE), "--work", str(tmp_path), "--out", str(tmp_path / "out")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert run.returncode == 0, run.stdout + run.stderr
    head, rows = from_json((tmp_path / "out" / "side_by_side.json").read_text(encoding="utf-8"))
    assert [row.error for row in rows if row.error] == []
    assert sum(SUBJECT in row.values for row in rows) == 14  # 9 workloads, the CPU of two of them twice, ready
    assert len(rows) == 22
    assert head["settings"]["size_bytes"] == SIZE
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"side_by_side.{kind}" for kind in ("json", "md", "svg")
    }
