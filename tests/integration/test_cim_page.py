"""docs/cim.md's first steps, run as they stand; only the port, and where programs are, is replaced."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cim_facade.providers.interop import PROFILES
from tests.support.clients import pywbemcli
from tests.support.daemon import PROGRAM, ROOT, Daemon
from tests.support.ports import free_address
from tests.support.wbem import Wbem, clean_environment

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = re.compile(r"<!-- run: (?P<where>[a-z ]+) -->\n```(?:sh|python)\n(?P<text>.*?)```", re.DOTALL)
SERVE = "twinvol serve --iscsi 0.0.0.0:3260 --wbem 0.0.0.0:5989 --pool pool"
URL = "https://localhost:5989"


def blocks() -> list[tuple[str, str]]:
    """(where, text) of each block that is marked as one to be run, in order."""
    text = (ROOT / "docs" / "cim.md").read_text(encoding="utf-8")
    return [(match["where"], match["text"]) for match in BLOCK.finditer(text)]


def test_every_shell_block_is_one_that_is_run():
    text = (ROOT / "docs" / "cim.md").read_text(encoding="utf-8")
    assert text.count("```sh\n") + text.count("```python\n") == len(blocks())
    assert [where for where, _ in blocks()][:2] == ["in the background", "here"]


@pytest.mark.client("pywbemcli")
def test_the_first_steps_work_as_they_are_written(tmp_path: Path):
    program, client = shlex.join(PROGRAM), pywbemcli()
    assert client is not None
    (_, serve), *rest = blocks()
    assert serve.strip() == SERVE
    with Daemon.start(tmp_path / "pool", "--wbem", "127.0.0.1:0") as daemon:
        served = Wbem(daemon)
        served.wait()
        (tmp_path / "examples").symlink_to(ROOT / "examples")
        lines = ["set -eu", f'twinvol() {{ {program} "$@"; }}', f'pywbemcli() {{ {shlex.quote(client)} "$@"; }}']
        lines.append(f'python() {{ {shlex.quote(sys.executable)} "$@"; }}')
        port, listener = served.address.rpartition(":")[2], free_address().rpartition(":")[2]
        for number, (where, text) in enumerate(rest):
            own = text.replace(URL, f"https://localhost:{port}").replace("5990", listener)
            if where == "python":
                (tmp_path / f"block{number}.py").write_text(own)
                own = f"python block{number}.py\n"
            lines += [f"echo '=== {number}'", own]
        run = subprocess.run(
            ["sh", "-c", "\n".join(lines)],
            cwd=tmp_path,
            env=clean_environment() | {"PYTHONPATH": str(ROOT), "PYWBEMCLI_TERMWIDTH": "200", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert run.returncode == 0, (run.stdout[-3000:], run.stderr)
        assert "ReturnValue=5" not in run.stdout
        for each in PROFILES.values():
            assert run.stdout.count(each.name) >= 2, each.name  # profile list, profile centralinsts
        assert "CopyState 4, Mode 2" in run.stdout
        replicas = {each["name"]: each for each in daemon.run("replica", "list")["replicas"]}
        assert {each["source"] for each in replicas.values()} == {"ledger", "orders"}
        names = {each["name"] for each in daemon.run("snapshot", "list", "ledger")["snapshots"]}
        assert {"monday", "ledger-nightly"} <= names
        assert [each["volume"] for target in daemon.run("target", "list")["targets"] for each in target["luns"]] == [
            "ledger"
        ]
