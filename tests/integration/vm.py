"""Running one scenario of the initiator VM against a portal on this machine."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.clients import INITIATOR_VM
from tests.support.daemon import ROOT

if TYPE_CHECKING:
    from pathlib import Path

GUEST_TIMEOUT_S = 300


def run_scenario(scenario: str, portal: str, work: Path, *options: str) -> dict[str, Any]:
    """Run one scenario (a name, or the path of a script) to its end; its summary.

    Fails the test with the failed checks and the end of the guest's console. Once more where the guest raced with
    itself: its udev still reads a disk that the scenario logs out from, which the kernel log then shows.
    """
    summary, console, said = _run(scenario, portal, work, options)
    if summary.get("failed_checks") == [_KERNEL_LOG_CHECK] and "device offline error" in console:
        summary, console, said = _run(scenario, portal, work, options)
    if summary.get("status") != "passed":
        pytest.fail(
            f"scenario {scenario}: {summary.get('status')} {summary.get('reason')}; failed checks:"
            f" {summary.get('failed_checks')}\n{said[-3000:]}\n--- console ends ---\n{console[-4000:]}"
        )
    assert summary["checks_passed"] > 0
    return summary


_KERNEL_LOG_CHECK = "no digest errors or dropped connections in the kernel log"


def _run(scenario: str, portal: str, work: Path, options: tuple[str, ...]) -> tuple[dict[str, Any], str, str]:
    """One run: summary, console log, what was said on stderr."""
    log = work / "guest.console"
    command = [str(INITIATOR_VM), "--no-skip", "--portal", portal, "--log", str(log)]
    command += ["--timeout", str(GUEST_TIMEOUT_S), *options, scenario]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1:] or ["{}"]
    summary: dict[str, Any] = json.loads(last[0])
    console = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    assert (done.returncode == 0) == (summary.get("status") == "passed"), done.stderr
    return summary, console, done.stderr
