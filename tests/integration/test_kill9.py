"""``kill -9`` of the daemon under write load: the file checks clean, and every acknowledged write is there.

The load generator keeps the account in a file of its own (``bench/loadgen.c``). The daemon is killed once a random
number of further writes was acknowledged, with up to 32 more in flight; the page cache outlives the process, so
whatever was acknowledged has to be read back by the next daemon, flushed or not.

``TWINVOL_KILL9_ROUNDS`` (5) sets the number of rounds, ``TWINVOL_KILL9_SEED`` their course; ``make kill9`` runs 200.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bench.loadgen import OK, TARGET_LOST, Loadgen, finish
from tests.support.daemon import ROOT, CommandFailed, Daemon, twinvol
from tests.support.generations import Ledger, wait_until

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = int(os.environ.get("TWINVOL_KILL9_ROUNDS", "5"))
SEED = int(os.environ.get("TWINVOL_KILL9_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
SIZE = "64M"
RUN_LIMIT_S = 60

pytestmark = [pytest.mark.client("loadgen"), pytest.mark.slow, pytest.mark.timeout(300 + 15 * ROUNDS)]


def replay(test: str) -> str:
    variables = f"TWINVOL_KILL9_SEED={SEED} TWINVOL_KILL9_ROUNDS={ROUNDS}"
    return f"replay: {variables} .venv/bin/pytest tests/integration/test_kill9.py -k {test}"


def check_files(pool: Path) -> None:
    """``twinvol check`` on every volume file of a pool that nobody has open."""
    for path in sorted(pool.rglob("*.tvol")):
        checked = twinvol("check", str(path))
        assert checked.returncode == 0, f"{path.name}: exit {checked.returncode}\n{checked.stdout}{checked.stderr}"


def test_every_acknowledged_write_survives(loadgen_program: Path, tmp_path: Path):
    print(replay("acknowledged"))
    rng = random.Random(SEED)
    pool = tmp_path / "pool"
    ledger = Ledger(tmp_path / "ledger")
    with Daemon.start(pool) as daemon:
        target = daemon.volume("disk", SIZE).split("/", 3)[3]
    for number in range(ROUNDS):
        with Daemon.start(pool) as daemon:
            generator = Loadgen(loadgen_program, f"iscsi://{daemon.portal}/{target}", ledger.path)
            verified = generator.run("verify")
            assert verified.code == OK, f"round {number}: {verified.explain()}"
            before = ledger.acknowledged()
            writer = generator.start(
                "write",
                block=rng.choice((4096, 4096, 16384, 65536, 262144)),
                pattern=rng.choice(("random", "seq", "mixed", "mixed")),
                depth=rng.choice((1, 8, 32)),
                flush_every=rng.choice((0, 0, 7, 100)),
                seconds=RUN_LIMIT_S,
                seed=rng.randrange(1 << 30),
            )
            wanted = before + rng.randrange(1, 20000)
            wait_until(lambda wanted=wanted: ledger.acknowledged() >= wanted, "writes acknowledged")
            daemon.kill()
            outcome = finish(writer)
            assert outcome.code == TARGET_LOST, f"round {number}: {outcome.explain()}"
        check_files(pool)
        print(f"round {number + 1} of {ROUNDS}: {ledger.acknowledged() - before} granules acknowledged, then killed")
    with Daemon.start(pool) as daemon:
        verified = Loadgen(loadgen_program, f"iscsi://{daemon.portal}/{target}", ledger.path).run("verify")
        assert verified.code == OK, verified.explain()
    assert ledger.acknowledged() > 0


@dataclass
class TreeWork:
    """What a client had asked of the snapshot tree, and been told, when the daemon was killed."""

    daemon: Daemon
    ledger: Ledger
    folder: Path
    rng: random.Random
    prefix: str
    made: dict[str, Ledger] = field(default_factory=dict)  # snapshots whose creation was acknowledged
    gone: set[str] = field(default_factory=set)  # ... and whose deletion was
    asked: set[str] = field(default_factory=set)  # names of which a deletion was begun: may be there or not
    clones: dict[str, str] = field(default_factory=dict)  # clone -> snapshot, acknowledged
    steps: int = 0
    unexpected: Exception | None = None

    def run(self) -> None:
        """Snapshots, clones and deletions one after another, until the daemon is gone."""
        try:
            while True:
                self._step()
                self.steps += 1
        except CommandFailed as error:
            if self.daemon.process.poll() is None:
                self.unexpected = error
        except Exception as error:
            self.unexpected = error

    def _step(self) -> None:
        name = f"{self.prefix}{self.steps}"
        deletable = sorted(set(self.made) - self.asked - set(self.clones.values()))
        kind = self.rng.choice(("snapshot", "snapshot", "clone", "delete"))
        if kind == "delete" and deletable:
            victim = self.rng.choice(deletable)
            self.asked.add(victim)
            self.daemon.run("snapshot", "delete", "disk", victim)
            self.gone.add(victim)
        elif kind == "clone" and deletable:
            source = self.rng.choice(deletable)
            self.daemon.run("clone", "create", f"disk@{source}", name)
            self.clones[name] = source
        else:
            before = self.ledger.read()
            self.daemon.run("snapshot", "create", "disk", name)
            copy = Ledger(self.folder / f"{name}.ledger")
            copy.between(before, self.ledger.read())
            self.made[name] = copy


def test_snapshots_and_clones_survive_and_hold_what_they_froze(loadgen_program: Path, tmp_path: Path):
    print(replay("snapshots"))
    rng = random.Random(SEED + 1)
    pool = tmp_path / "pool"
    ledger = Ledger(tmp_path / "ledger")
    kept: dict[str, Ledger] = {}
    clones: dict[str, str] = {}
    with Daemon.start(pool) as daemon:
        target = daemon.volume("disk", SIZE).split("/", 3)[3]
        filled = Loadgen(loadgen_program, f"iscsi://{daemon.portal}/{target}", ledger.path).run("fill")
        assert filled.code == OK, filled.explain()
    for number in range(max(2, ROUNDS // 2)):
        with Daemon.start(pool) as daemon:
            generator = Loadgen(loadgen_program, f"iscsi://{daemon.portal}/{target}", ledger.path)
            writer = generator.start("write", block=4096, depth=8, seconds=RUN_LIMIT_S, seed=rng.randrange(1 << 30))
            work = TreeWork(daemon, ledger, tmp_path, rng, f"r{number}-", made=dict(kept), clones=dict(clones))
            client = threading.Thread(target=work.run)
            client.start()
            steps = rng.randrange(2, 7)
            wait_until(lambda work=work, steps=steps: work.steps >= steps or work.unexpected is not None, "steps done")
            start = ledger.acknowledged()
            more = rng.randrange(1, 8000)
            wait_until(lambda start=start, more=more: ledger.acknowledged() >= start + more, "writes go on")
            daemon.kill()
            client.join()
            outcome = finish(writer)
            assert outcome.code == TARGET_LOST, outcome.explain()
            assert work.unexpected is None, repr(work.unexpected)
        check_files(pool)
        kept = {name: copy for name, copy in work.made.items() if name not in work.asked}
        clones = work.clones
        with Daemon.start(pool) as daemon:
            _verify_tree(daemon, loadgen_program, target, ledger, work, rng)
        print(f"round {number + 1}: {work.steps} steps, {len(kept)} snapshots and {len(clones)} clones kept")


def _verify_tree(
    daemon: Daemon, program: Path, target: str, ledger: Ledger, work: TreeWork, rng: random.Random
) -> None:
    """The volume, its acknowledged snapshots and clones, and the absence of what was acknowledged as deleted."""
    current = Loadgen(program, f"iscsi://{daemon.portal}/{target}", ledger.path).run("verify")
    assert current.code == OK, current.explain()
    listed = {snapshot["name"] for snapshot in daemon.run("snapshot", "list", "disk")["snapshots"]}
    assert set(work.made) - work.asked <= listed
    assert not listed & work.gone
    volumes = {volume["name"] for volume in daemon.run("volume", "list")["volumes"]}
    assert set(work.clones) <= volumes
    # A clone of an acknowledged snapshot reads as it did when it was taken: checked through a fresh one.
    names = sorted(set(work.made) - work.asked)
    for name in rng.sample(names, min(2, len(names))):
        url = daemon.url(daemon.run("clone", "create", f"disk@{name}", f"look-{name}", "--expose"))
        seen = Loadgen(program, url, work.made[name].path).run("verify")
        assert seen.code == OK, f"snapshot {name}: {seen.explain()}"
        daemon.run("volume", "delete", f"look-{name}")


def test_a_daemon_that_was_killed_while_it_started_starts_again(loadgen_program: Path, tmp_path: Path):
    """Kill at random moments of the start itself: recovery may be interrupted any number of times."""
    rng = random.Random(SEED + 2)
    pool = tmp_path / "pool"
    ledger = Ledger(tmp_path / "ledger")
    with Daemon.start(pool) as daemon:
        target = daemon.volume("disk", SIZE).split("/", 3)[3]
        generator = Loadgen(loadgen_program, f"iscsi://{daemon.portal}/{target}", ledger.path)
        writer = generator.start("write", block=4096, depth=32, seconds=RUN_LIMIT_S)
        wait_until(lambda: ledger.acknowledged() > 5000, "writes acknowledged")
        daemon.kill()
        finish(writer)
    for _ in range(4):
        quiet = subprocess.DEVNULL
        starting = subprocess.Popen(Daemon.command(pool), cwd=ROOT, stdin=quiet, stdout=quiet, stderr=quiet)
        with pytest.raises(subprocess.TimeoutExpired):
            starting.wait(rng.uniform(0.1, 0.8))
        starting.kill()
        starting.wait()
    check_files(pool)
    with Daemon.start(pool) as daemon:
        verified = Loadgen(loadgen_program, f"iscsi://{daemon.portal}/{target}", ledger.path).run("verify")
        assert verified.code == OK, verified.explain()
    assert np.all(ledger.read()[:, 1] <= ledger.read()[:, 0])
