"""kill -9 in the middle of management: what was acknowledged is there, what was under way is there or is not.

Random operations go to a real daemon until it is killed at a random moment; then every volume file is checked, the
daemon starts again, and volumes, snapshots, sizes and targets are compared with a model. ROUNDS and SEED come from the
environment for longer runs: TWINVOL_KILL_ROUNDS=200 pytest tests/unit/daemon/test_management_kill9.py
"""

import asyncio
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import EngineError
from engine.tvol.check import check_file
from tests.support.daemon import Daemon
from twinvol.api.client import open_api
from twinvol.api.frames import DaemonUnreachable

MIB = 1 << 20
ROUNDS = int(os.environ.get("TWINVOL_KILL_ROUNDS", "4"))
SEED = int(os.environ.get("TWINVOL_KILL_SEED", "1"))
NAMES = [f"v{number}" for number in range(6)]
POINTS = ["a", "b", "c"]
PREFIX = "iqn.2026-11.org.twinvol"


@dataclass
class Model:
    """Acknowledged: volumes with their sizes, their snapshots, whether exposed. ``unsure``: volumes whose last
    operation was under way."""

    sizes: dict[str, int] = field(default_factory=dict)
    points: set[tuple[str, str]] = field(default_factory=set)
    exposed: dict[str, bool] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)


class Run:
    """Operations on one daemon until it is gone. Each volume is handled by one task, so the model has no races."""

    def __init__(self, model: Model, rng: random.Random) -> None:
        self.model = model
        self.rng = rng
        self.done = 0

    async def handle(self, api, name: str) -> None:
        while True:
            operation = self.rng.choice([self.create, self.delete, self.snapshot, self.forget, self.resize, self.copy])
            try:
                await operation(api, name)
                self.done += 1
            except EngineError:
                continue  # refused: the model has not changed
            except DaemonUnreachable:
                self.model.unsure.add(name)
                return

    async def create(self, api, name: str) -> None:
        expose = self.rng.random() < 0.5
        info = await api.volume_create(name, self.rng.randrange(1, 9) * MIB, expose=expose)
        self.model.sizes[name] = info.size_bytes
        self.model.exposed[name] = expose

    async def delete(self, api, name: str) -> None:
        await api.volume_delete(name, force=True)
        del self.model.sizes[name]
        self.model.exposed.pop(name, None)
        self.model.points = {key for key in self.model.points if key[0] != name}

    async def snapshot(self, api, name: str) -> None:
        point = self.rng.choice(POINTS)
        await api.snapshot_create(name, point, expose=self.rng.random() < 0.3)
        self.model.points.add((name, point))

    async def forget(self, api, name: str) -> None:
        point = self.rng.choice(POINTS)
        await api.snapshot_delete(name, point)
        self.model.points.discard((name, point))

    async def resize(self, api, name: str) -> None:
        info = await api.volume_resize(name, self.rng.randrange(1, 9) * MIB, shrink=True)
        self.model.sizes[name] = info.size_bytes

    async def copy(self, api, name: str) -> None:
        job = await api.clone_copy(name, None, f"{name}-copy")
        while job.state_number == 4:
            job = await api.job_wait(job.job, after_version=job.version)
        await api.volume_delete(f"{name}-copy")


async def until_killed(daemon: Daemon, run: Run, delay_s: float) -> None:
    async with open_api(daemon.pool) as api:
        tasks = [asyncio.create_task(run.handle(api, name)) for name in NAMES]
        asyncio.get_running_loop().call_later(delay_s, daemon.process.kill)
        await asyncio.gather(*tasks)


async def compare(daemon: Daemon, model: Model) -> None:
    """Hold the daemon against the model; what was under way is taken over as it is."""
    async with open_api(daemon.pool) as api:
        status = await api.status()
        assert status.health == "ok", status.reasons
        volumes = {info.name: info for info in await api.volume_list()}
        for name in status.interrupted_copies:
            await api.volume_delete(name)
        for name in [name for name in volumes if name.endswith("-copy")]:
            await api.volume_delete(name)
        targets = {target.name: target for target in await api.target_list()}
        assert all(target.luns for target in targets.values()), "a target without its LUN"
        for name in NAMES:
            points = {info.name for info in await api.snapshot_list(name)} if name in volumes else set()
            if name in model.unsure:
                model.points = {key for key in model.points if key[0] != name} | {(name, point) for point in points}
                model.sizes.pop(name, None)
                if name in volumes:
                    model.sizes[name] = volumes[name].size_bytes
                    model.exposed[name] = f"{PREFIX}:{name}" in targets
                continue
            assert (name in volumes) == (name in model.sizes), name
            if name in volumes:
                assert volumes[name].size_bytes == model.sizes[name]
                assert (f"{PREFIX}:{name}" in targets) == model.exposed[name]
            assert points == {point for volume, point in model.points if volume == name}
        model.unsure.clear()


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path):
    rng = random.Random(SEED)
    model = Model()
    pool = tmp_path / "pool"
    done = 0
    for number in range(ROUNDS):
        with Daemon.start(pool) as daemon:
            asyncio.run(compare(daemon, model))
            run = Run(model, rng)
            asyncio.run(until_killed(daemon, run, rng.uniform(0.05, 1.0)))
            daemon.process.wait()
            done += run.done
        for file in (pool / "volumes").glob("*.tvol"):
            report = check_file(file)
            assert not report.damaged, (number, report.findings)
    with Daemon.start(pool) as daemon:
        asyncio.run(compare(daemon, model))
    assert done
