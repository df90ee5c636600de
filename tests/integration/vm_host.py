"""What the initiator VM's scenarios have done on this machine: ``python -m tests.integration.vm_host VERB POOL ...``.

    kill POOL                       kill -9 of the daemon that ``start`` left running
    start POOL HOST:PORT [OPTION...]  start it again; ends when it is ready, leaves it running
    snapshot POOL VOLUME NUMBER     snapshot VOLUME, exposed; prints SNAP_TARGET= and SNAP_LUN= for the guest
    group POOL GROUP NUMBER         snapshot GROUP, exposed; prints SNAP_TARGET_1=, SNAP_LUN_1= and so on by member
    state POOL REPLICA              how a mirror is; prints STATE= and LAG= in seconds
    plan POOL REPLICA               until when it is complete; prints AGE_AT_KILL=, seconds before the last kill

The daemon's pid is in ``POOL.pid``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.daemon import PROGRAM, ROOT, twinvol
from tests.support.processes import has_ended


def pid_file(pool: Path) -> Path:
    return pool.with_name(pool.name + ".pid")


def killed_file(pool: Path) -> Path:
    """When a daemon of this folder was killed last: of all pools in it."""
    return pool.with_name("killed")


def start(pool: Path, portal: str, *options: str) -> None:
    """Leave a daemon running; SystemExit with the end of its log when it does not become ready."""
    log_path = pool.with_name(pool.name + ".log")
    command = [*PROGRAM, "serve", "--iscsi", portal, *options, "--pool", str(pool)]
    with log_path.open("a", encoding="utf-8") as log:
        daemon = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # not the harness's to stop
        )
    pid_file(pool).write_text(str(daemon.pid), encoding="ascii")
    assert daemon.stdout is not None
    line = daemon.stdout.readline()
    if not line or json.loads(line)["event"] != "ready":
        sys.exit(f"the daemon did not become ready: {log_path.read_text(encoding='utf-8')[-2000:]}")


def kill(pool: Path) -> None:
    """SIGKILL, and wait until it is gone. Nothing to do when no daemon was started."""
    if not pid_file(pool).exists():
        return
    pid = int(pid_file(pool).read_text(encoding="ascii"))
    pid_file(pool).unlink()
    killed_file(pool).write_text(str(time.time()), encoding="ascii")
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    while not has_ended(pid):  # not this process's child, so it cannot be waited for
        time.sleep(0.01)


def snapshot(pool: Path, volume: str, number: str) -> None:
    made = twinvol("snapshot", "create", volume, f"vm{number}", "--expose", "--json", "--pool", str(pool))
    if made.returncode != 0:
        sys.exit(f"snapshot create: {made.stderr}")
    answer = json.loads(made.stdout)
    print(f"SNAP_TARGET={answer['target']}\nSNAP_LUN={answer['lun']}")


def group(pool: Path, name: str, number: str) -> None:
    made = twinvol("group", "snapshot", name, f"vm{number}", "--expose", "--json", "--pool", str(pool))
    if made.returncode != 0:
        sys.exit(f"group snapshot: {made.stderr}")
    for count, member in enumerate(json.loads(made.stdout)["members"], 1):
        print(f"SNAP_TARGET_{count}={member['target']}\nSNAP_LUN_{count}={member['lun']}")


def state(pool: Path, replica: str) -> None:
    shown = _answer("replica", "show", replica, pool=pool)
    print(f"STATE={shown['copy_state']}\nLAG={shown['lag_seconds']}")


def plan(pool: Path, replica: str) -> None:
    until = _answer("replica", "failover", replica, "--plan", pool=pool)["complete_until"]
    print(f"AGE_AT_KILL={float(killed_file(pool).read_text(encoding='ascii')) - until:.3f}")


def _answer(*arguments: str, pool: Path) -> dict[str, Any]:
    done = twinvol(*arguments, "--json", "--pool", str(pool))
    if done.returncode != 0:
        sys.exit(f"{' '.join(arguments)}: {done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def run(verb: str, *arguments: str | Path) -> None:
    """One verb in a process of its own, as the guest's scenarios have it run."""
    command = [sys.executable, "-m", "tests.integration.vm_host", verb, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def main() -> None:
    verb, pool, *rest = sys.argv[1:]
    verbs = {"start": start, "kill": kill, "snapshot": snapshot, "group": group, "state": state, "plan": plan}
    verbs[verb](Path(pool), *rest)


if __name__ == "__main__":
    main()
