"""README's first steps, run as they stand: the target's commands here, the initiator's in the virtual machine.

Only what has to differ is replaced: the example address, the port and the pool's place. ``sudo`` is a function in the
guest, where everything runs as root. The second machine is another daemon here.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.integration import vm_host
from tests.integration.vm import run_scenario
from tests.support.clients import pywbemcli
from tests.support.daemon import PROGRAM, ROOT, Daemon
from tests.support.ports import free_address
from tests.support.wbem import clean_environment

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = re.compile(r"<!-- run: (?P<where>[a-z, ]+) -->\n```sh\n(?P<lines>.*?)```", re.DOTALL)
EXAMPLE_PORTAL = "192.0.2.10:3260"


def readme_blocks() -> list[tuple[str, list[str]]]:
    """(where, lines) of each block that README marks as one to be run, in order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [(match["where"], match["lines"].strip().splitlines()) for match in BLOCK.finditer(text)]


def test_readme_shows_the_two_commands_and_every_shell_block_is_one_that_is_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "```sh\nmake demo\nmake test\n```" in text
    assert text.count("```sh") == len(readme_blocks()) + 1
    places = {where for where, _ in readme_blocks()}
    background = {f"{where}, in the background" for where in ("target", "first", "second")}
    assert places == {"target", "initiator", "first", "second"} | background


@pytest.mark.client("initiator-vm")
@pytest.mark.slow
@pytest.mark.timeout(420)
def test_the_first_steps_work_as_they_are_written(tmp_path: Path):
    portal, pool = free_address(), tmp_path / "pool"
    program = shlex.join(PROGRAM)
    scenario = ["#!/bin/sh", "# README's first steps.", ". /scenario/lib.sh", 'sudo() { "$@"; }']
    host_commands: list[str] = []
    try:
        for number, (where, lines) in enumerate(readme_blocks()):
            if where.startswith(("first", "second")):
                continue  # the next test's
            if where == "target, in the background":
                (line,) = lines
                assert line == ".venv/bin/twinvol serve --iscsi 0.0.0.0:3260 --pool pool"
                vm_host.run("start", pool, portal)
            elif where == "target":
                script = tmp_path / f"target{number}.sh"
                own = "\n".join(lines).replace(".venv/bin/twinvol", program).replace("POOL=pool", f"POOL={pool}")
                header = f"set -eu\ncd {ROOT}\nexport TWINVOL_POOL={pool}\n"
                script.write_text(header + own + "\n", encoding="utf-8")
                host_commands += ["--host-cmd", f"step{number}=sh {script} 2>&1"]
                scenario.append(f'must "block {number} of README, on the target" host step{number}')
            else:
                for line in lines:
                    own = line.replace(EXAMPLE_PORTAL, portal)
                    if re.match(r"[A-Z]+=", own):
                        scenario += [own, f'must "a disk at that path" until_true 20 test -b "${own.split("=")[0]}"']
                    else:
                        scenario.append(f"must {shlex.quote(line)} eval {shlex.quote(own)}")
                    if line.startswith("cat "):
                        scenario.append(f'check "the clone has what was there" equal "$({own})" "as it was"')
        path = tmp_path / "readme.sh"
        path.write_text("\n".join(scenario) + "\n", encoding="utf-8")
        summary = run_scenario(str(path), portal, tmp_path, "--target", "iqn.2026-11.org.twinvol:data", *host_commands)
        assert summary["checks_passed"] >= 20
        listed = subprocess.run(
            [sys.executable, "-m", "twinvol", "replica", "show", "data-copy", "--json", "--pool", str(pool)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert '"Synchronized"' in listed.stdout
    finally:
        vm_host.run("kill", pool)


@pytest.mark.client("pywbemcli")
def test_the_second_machine_works_as_it_is_written(tmp_path: Path):
    """Both machines are here: each has a folder of its own, where its commands run."""
    client = pywbemcli()
    assert client is not None
    environment = clean_environment() | {"PYTHONPATH": str(ROOT), "TWINVOL_POOL": "pool"}
    machines: dict[str, Daemon] = {}
    answers = []
    with contextlib.ExitStack() as stack:
        for where, lines in readme_blocks():
            name, _, background = where.partition(", ")
            if name not in ("first", "second"):
                continue
            folder = tmp_path / name
            if background:
                folder.mkdir()
                (line,) = lines
                serves, options = line.split(" serve ")
                assert serves == ".venv/bin/twinvol"
                wanted = [re.sub(r"0\.0\.0\.0:\d+", "127.0.0.1:0", each) for each in options.split()]
                assert wanted[:2] == ["--iscsi", "127.0.0.1:0"]
                assert wanted[-2:] == ["--pool", "pool"]
                machines[name] = stack.enter_context(Daemon.start(folder / "pool", *wanted[2:-2]))
                continue
            first = machines["first"].ready
            script = "\n".join(lines).replace(".venv/bin/twinvol", shlex.join(PROGRAM))
            script = script.replace("192.0.2.10:3270", first["peer"]).replace("localhost:5989", first["wbem"])
            script = script.replace("pywbemcli ", f"{shlex.quote(client)} ")
            done = subprocess.run(
                ["sh", "-euc", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
            answers.append(done.stdout)
            code = folder / "code"
            if code.exists() and not (tmp_path / "second" / "code").exists():
                shutil.copy(code, tmp_path / "second")
        assert '"orders"' in answers[-1]
        (mirror,) = machines["second"].run("replica", "list")["replicas"]
        assert (mirror["source"], mirror["peer"]) == ("orders-far", "first"), mirror
