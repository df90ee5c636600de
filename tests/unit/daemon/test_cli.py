"""The command line: names, flags, JSON fields and exit codes that other programs rely on."""

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from engine import errors
from engine.errors_json import ERRORS
from engine.jobs import Job
from tests.support.engine import PREFIX, opened
from twinvol.api.frames import DaemonUnreachable
from twinvol.api.server import ApiServer, bind
from twinvol.cli import cli
from twinvol.cli.command import SCHEMA, duration, instant, size, size_text
from twinvol.cli.exit_codes import exit_code_for, exit_code_for_job

MIB = 1 << 20


class Shell:
    """Runs commands against a pool that is served in this process."""

    def __init__(self, pool: Path, engine) -> None:
        self.pool = pool
        self.engine = engine

    async def text(self, *arguments: str) -> tuple[int, str]:
        done = await asyncio.to_thread(CliRunner().invoke, cli, [*arguments, "--pool", str(self.pool)])
        return done.exit_code, done.output

    async def json(self, *arguments: str) -> tuple[int, dict]:
        done = await asyncio.to_thread(CliRunner().invoke, cli, [*arguments, "--json", "--pool", str(self.pool)])
        if not done.stdout:
            return done.exit_code, {}
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert all(line["schema"] == SCHEMA for line in lines), done.output
        return done.exit_code, lines[-1]

    async def ok(self, *arguments: str) -> dict:
        code, answer = await self.json(*arguments)
        assert code == 0, answer
        return answer


@asynccontextmanager
async def shell_on(pool: Path):
    async with opened(pool) as engine:
        server = ApiServer(engine.api)
        await server.start(bind(pool))
        try:
            yield Shell(pool, engine)
        finally:
            await server.close()


@pytest.fixture
async def shell(tmp_path: Path):
    async with shell_on(tmp_path / "pool") as shell:
        yield shell


@pytest.mark.parametrize(
    ("text", "value"), [("512", 512), ("4K", 4096), ("4k", 4096), ("1G", 1 << 30), ("1T", 1 << 40), ("2M", 2 << 20)]
)
def test_sizes(text, value):
    assert size(text) == value


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5G", "1KB", "1 G", "0x10", "\u0661", "9" * 5000])
def test_texts_that_are_no_sizes(text):
    with pytest.raises(click.BadParameter):
        size(text)


def test_sizes_for_people():
    assert [size_text(value) for value in (0, 512, 4096, 3 << 29, 1 << 50)] == [
        "0 B",
        "512 B",
        "4.0 KiB",
        "1.5 GiB",
        "1024.0 TiB",
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.EngineError("x"), 1),
        (errors.OutOfSpace("x"), 1),
        (errors.InvalidArgument("x"), 2),
        (errors.NotFound("volume", "x"), 3),
        (errors.AlreadyExists("volume", "x"), 4),
        (errors.InUse("x"), 4),
        (errors.InvalidState("x", "y", "z"), 5),
        (errors.NotSupported("x"), 6),
        (errors.PermissionDenied("x"), 7),
        (errors.TimedOut("x"), 8),
        (errors.IntegrityError("x", 0, 1, "a", "b"), 9),
        (errors.StoreCorrupt("x", "y"), 9),
        (DaemonUnreachable("x"), 20),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_codes(error, code):
    assert exit_code_for(error) == code
    if type(error).__name__ in ERRORS:
        assert exit_code_for_job(type(error).__name__) == code


async def test_volume_create_with_expose_answers_what_other_programs_need(shell):
    answer = await shell.ok("volume", "create", "disk", "--size", "64M", "--expose")
    assert {key: answer[key] for key in ("name", "size_bytes", "target", "lun")} == {
        "name": "disk",
        "size_bytes": 64 * MIB,
        "target": f"{PREFIX}:disk",
        "lun": 0,
    }
    assert len(answer["serial"]) == 16
    assert (await shell.ok("volume", "show", "disk")) == answer
    assert (await shell.ok("volume", "list"))["volumes"] == [
        {key: value for key, value in answer.items() if key != "schema"}
    ]


async def test_snapshots_clones_and_rollback(shell):
    await shell.ok("volume", "create", "disk", "--size", "1M")
    snapshot = await shell.ok("snapshot", "create", "disk", "one", "--expose")
    assert (snapshot["target"], snapshot["lun"]) == (f"{PREFIX}:disk.snap.one", 0)
    clone = await shell.ok("clone", "create", "disk@one", "copy", "--expose")
    assert (clone["target"], clone["origin"]) == (f"{PREFIX}:copy", "disk@one")
    assert [each["name"] for each in (await shell.ok("clone", "list"))["clones"]] == ["copy"]
    assert [each["name"] for each in (await shell.ok("snapshot", "list", "disk"))["snapshots"]] == ["one"]
    await shell.engine.pool.volume("disk").write(0, memoryview(b"x" * 512))
    diff = await shell.ok("snapshot", "diff", "disk", "one")
    assert (diff["changed_bytes"], diff["extents"]) == (65536, [{"offset": 0, "length": 65536, "state": "data"}])
    await shell.ok("snapshot", "rollback", "disk", "one")
    assert (await shell.ok("snapshot", "diff", "disk", "one"))["extents"] == []
    assert (await shell.json("snapshot", "delete", "disk", "one"))[0] == 4
    await shell.ok("volume", "delete", "copy")
    await shell.ok("snapshot", "delete", "disk", "one")


async def test_deletions_are_tried_dry_and_done_by_ranges(shell):
    await shell.ok("volume", "create", "disk", "--size", "1M")
    for number in range(4):
        await shell.engine.pool.volume("disk").write(0, memoryview(bytes([number]) * 65536))
        await shell.ok("snapshot", "create", "disk", f"s{number}")
    answer = await shell.ok("snapshot", "delete", "disk", "s0%s2", "--dry-run")
    names = ["s0", "s1", "s2"]
    assert answer == {
        "schema": 1,
        "volume": "disk",
        "snapshots": names,
        "freed_bytes": 3 * 65536,
        "removed_file_bytes": None,
    }
    assert (await shell.ok("volume", "delete", "disk", "--force", "--dry-run"))["freed_bytes"] == 4 * 65536
    assert (await shell.json("snapshot", "delete", "disk", "s3", "s9"))[0] == 3
    assert len((await shell.ok("snapshot", "list", "disk"))["snapshots"]) == 4
    await shell.ok("snapshot", "delete", "disk", "s0%s1", "s2")
    (left,) = (await shell.ok("snapshot", "list", "disk"))["snapshots"]
    assert (left["name"], left["reclaimable_bytes"]) == ("s3", 0)


async def test_targets(shell):
    await shell.ok("volume", "create", "disk", "--size", "1M")
    await shell.ok("target", "create", "t")
    answer = await shell.ok("target", "lun", "add", "t", "disk", "--lun", "3")
    assert [lun["lun"] for lun in answer["luns"]] == [3]
    await shell.ok("target", "lun", "mask", "t", "3", "iqn.2026-11.org.example:a")
    answer = await shell.ok("target", "bind", "t", "2")
    assert (answer["portals"], answer["luns"][0]["initiators"]) == (["127.0.0.2:3260"], ["iqn.2026-11.org.example:a"])
    assert (await shell.ok("target", "lun", "mask", "t", "3", "--all"))["luns"][0]["initiators"] == []
    assert len((await shell.ok("target", "bind", "t", "--all"))["portals"]) == 2
    assert (await shell.json("target", "bind", "t", "9"))[0] == 2
    assert (await shell.json("target", "bind", "t"))[0] == 2
    await shell.ok("target", "acl", "add", "t", "iqn.2026-11.org.example:a", "iqn.2026-11.org.example:b")
    answer = await shell.ok("target", "acl", "remove", "t", "iqn.2026-11.org.example:a")
    assert answer["initiators"] == ["iqn.2026-11.org.example:b"]
    shell.engine.exports.log_in(f"{PREFIX}:t")
    assert len((await shell.ok("target", "sessions"))["sessions"]) == 1
    paused = await shell.ok("target", "pause", "t", "--timeout", "600")
    assert (paused["state"], paused["resumes_at"] is not None) == ("paused", True)
    assert (await shell.ok("target", "resume", "t"))["state"] == "ok"
    assert (await shell.json("target", "resume", "t"))[0] == 5
    assert (await shell.json("target", "pause", "t", "--timeout", "0"))[0] == 2
    assert (await shell.json("target", "commands", "t"))[0] == 5
    assert (await shell.ok("target", "record", "t", "on", "--last", "50"))["recorded"] == 50
    assert (await shell.ok("target", "commands", "t"))["commands"] == []
    assert (await shell.json("target", "record", "t", "on", "--last", "1001"))[0] == 2
    assert (await shell.ok("target", "record", "t", "off"))["recorded"] == 0
    assert (await shell.json("target", "delete", "t"))[0] == 4
    await shell.ok("target", "delete", "t", "--force")
    assert (await shell.ok("target", "list"))["targets"] == []


async def test_ways_to_a_disk(shell):
    await shell.ok("volume", "create", "disk", "--size", "1M", "--expose")
    await shell.ok("replica", "create", "disk", "copy", "--mode", "sync")
    for name, volume, options in (("second", "disk", []), ("far", "copy", ["--standby"])):
        await shell.ok("target", "create", name)
        await shell.ok("target", "lun", "add", name, volume, *options)
    answer = await shell.ok("target", "alua", "set", "second", "unavailable", "--lun", "0")
    assert answer["luns"][0]["access"] == "unavailable"
    await shell.ok("target", "alua", "activate", "second")
    ways = (await shell.ok("target", "alua", "show", "far"))["ways"]
    assert [(way["port_group"], way["volume"], way["access"], way["standby"]) for way in ways] == [
        (1, "disk", "standby", False),
        (2, "disk", "active-optimized", False),
        (3, "copy", "standby", True),
    ]
    assert len({way["serial"] for way in ways}) == 1
    assert (await shell.json("target", "alua", "set", "far", "active-optimized"))[0] == 5
    assert (await shell.json("target", "alua", "activate", "far"))[0] == 5
    assert (await shell.json("target", "alua", "set", "second", "standby", "--lun", "7"))[0] == 3
    assert (await shell.json("target", "lun", "add", "second", "copy", "--standby"))[0] == 2
    assert (await shell.json("replica", "detach", "copy"))[0] == 4


async def test_full_clones_and_raw_images(shell, tmp_path: Path):
    await shell.ok("volume", "create", "disk", "--size", "4M")
    await shell.engine.pool.volume("disk").write(MIB, memoryview(b"x" * 4096))
    clone = await shell.ok("clone", "create", "disk", "copy", "--full", "--expose")
    assert (clone["name"], clone["target"], clone["origin"], clone["state"]) == ("copy", f"{PREFIX}:copy", None, "ok")
    image = tmp_path / "image"
    exported = await shell.ok("volume", "export", "copy", "--to", str(image))
    root = await shell.ok("volume", "root", "disk")
    assert clone["root"] == exported["root"] == root["root"]
    assert image.read_bytes()[MIB : MIB + 4096] == b"x" * 4096
    assert (await shell.json("volume", "export", "copy", "--to", str(image)))[0] == 4
    imported = await shell.ok("volume", "import", "again", "--from", str(image), "--expose")
    assert (imported["target"], imported["root"]) == (f"{PREFIX}:again", root["root"])
    assert (await shell.text("volume", "root", "again"))[1].strip() == root["root"]
    job = await shell.ok("clone", "create", "disk", "third", "--full", "--no-wait")
    assert job.keys() == {"schema", "job"}
    assert (await shell.ok("job", "wait", str(job["job"])))["state"] == "Completed"


async def test_replicas(shell, tmp_path: Path):
    await shell.ok("volume", "create", "disk", "--size", "4M")
    replica = await shell.ok("replica", "create", "disk", "rep", "--mode", "sync")
    fields = {"name": "rep", "source": "disk", "target": "rep", "mode": "sync", "copy_state": "Synchronized"}
    assert fields.items() <= replica.items()
    shown = await shell.ok("replica", "show", "rep")
    assert shown["sync_type"] == "Mirror"
    numbers = {key: shown[key] for key in ("percent_synced", "lag_seconds", "lag_bytes", "rpo_seconds", "peer")}
    assert list(numbers.values()) == [100, 0.0, 0, None, None]
    assert (shown["progress_status"], shown["reason"]) == ("Completed", "")
    assert [each["name"] for each in (await shell.ok("replica", "list"))["replicas"]] == ["rep"]
    assert (await shell.ok("replica", "verify", "rep"))["identical"] is True
    out = tmp_path / "proof.json"
    proof = await shell.ok("replica", "proof", "rep", "--out", str(out))
    assert json.loads(out.read_text())["source"]["root"] == proof["root"]
    assert (await shell.ok("proof", "check", str(out), "--volume", "rep"))["holds"] is True
    await shell.ok("volume", "export", "disk", "--to", str(tmp_path / "image"))
    assert (await shell.ok("proof", "check", str(out), "--image", str(tmp_path / "image")))["holds"] is True
    (tmp_path / "image").write_bytes(b"x" * 4 * MIB)
    assert (await shell.json("proof", "check", str(out), "--image", str(tmp_path / "image")))[0] == 9
    assert (await shell.json("proof", "check", str(tmp_path / "image"), "--volume", "rep"))[0] == 2
    assert (await shell.json("proof", "check", str(out)))[0] == 2
    assert (await shell.json("proof", "check", str(tmp_path / "no"), "--volume", "rep"))[0] == 3
    assert (await shell.ok("replica", "fracture", "rep"))["copy_state"] == "Fractured"
    assert (await shell.ok("replica", "resync", "rep"))["copy_state"] == "Synchronized"
    assert (await shell.ok("replica", "pause", "rep"))["copy_state"] == "Suspended"
    code, text = await shell.text("replica", "resume", "rep")
    assert (code, text.splitlines()[-1]) == (0, "replica rep: Synchronized")
    assert (await shell.json("replica", "resume", "rep"))[0] == 5
    await shell.ok("replica", "detach", "rep")
    await shell.ok("replica", "attach", "disk", "rep", "--mode", "sync", "--name", "pair")
    assert (await shell.json("replica", "create", "disk", "r2", "--mode", "sync", "--peer", "p"))[0] == 3
    assert (await shell.json("volume", "delete", "disk"))[0] == 4


async def test_asynchronous_and_adaptive_replicas(shell):
    await shell.ok("volume", "create", "disk", "--size", "4M")
    terms = ["--rpo", "10m", "--points", "3", "--points-age", "1d"]
    replica = await shell.ok("replica", "create", "disk", "rep", "--mode", "async", *terms)
    assert (replica["mode"], replica["copy_state"], replica["rpo_seconds"]) == ("async", "Synchronized", 600.0)
    shown = await shell.ok("replica", "show", "rep")
    assert (shown["exact"], shown["promise"], shown["points"]) == (False, "kept", 1)
    assert shown["lag_seconds"] >= 0
    point = (await shell.ok("replica", "points", "rep"))["points"][0]
    exposed = await shell.ok("replica", "expose", "rep")
    assert (exposed["guid"], exposed["lun"]) == (point["guid"], 0)
    assert exposed["target"].endswith(f".{point['guid']}")
    assert (await shell.json("replica", "detach", "rep"))[0] == 4
    assert (await shell.ok("replica", "unexpose", "rep", point["guid"]))["target"] is None
    assert (await shell.json("replica", "unexpose", "rep", point["guid"]))[0] == 3
    await shell.ok("replica", "detach", "rep")
    adaptive = [
        "--mode",
        "adaptive",
        "--rpo",
        "10m",
        "--latency-budget",
        "5000",
        "--backlog",
        "8M",
        "--hold-down",
        "5s",
    ]
    pair = await shell.ok("replica", "attach", "disk", "rep", *adaptive)
    assert (pair["exact"], pair["latency_budget_seconds"], pair["switches"]) == (True, 5.0, 1)
    assert (await shell.json("replica", "create", "disk", "r2", "--mode", "sync", "--rpo", "5s"))[0] == 2
    assert (await shell.json("replica", "create", "disk", "r2", "--mode", "async", "--rpo", "0s"))[0] == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["volume", "show", "nothing"], 3),
        (["volume", "create", "disk", "--size", "1M"], 4),
        (["volume", "create", "Bad", "--size", "1M"], 2),
        (["volume", "create", "v", "--size", "1Q"], 2),
        (["volume", "create", "v", "--size", "511"], 2),
        (["volume", "create", "v"], 2),
        (["volume", "nothing"], 2),
        (["nothing"], 2),
        (["snapshot", "rollback", "disk", "nothing"], 3),
        (["clone", "create", "disk@", "v"], 2),
        (["target", "show", "iqn.bad"], 2),
        (["job", "wait", "4711"], 3),
    ],
    ids=str,
)
async def test_refusals_end_with_their_code_and_say_why(shell, arguments, code):
    await shell.ok("volume", "create", "disk", "--size", "1M")
    got, output = await shell.text(*arguments)
    assert got == code
    assert output.strip()


async def test_errors_in_json_have_type_and_code(shell):
    code, answer = await shell.json("volume", "show", "nothing")
    assert (code, answer["exit_code"], answer["error"]["type"]) == (3, 3, "NotFound")


async def test_status_ends_with_10_when_degraded(tmp_path: Path):
    pool = tmp_path / "pool"
    async with shell_on(pool) as shell:
        await shell.ok("volume", "create", "disk", "--size", "1M", "--expose")
        await shell.ok("snapshot", "create", "disk", "one")
        answer = await shell.ok("status", "--tree")
        assert (answer["health"], answer["volumes"]) == ("ok", 1)
        assert answer["volume_tree"][0]["snapshot_list"][0]["name"] == "one"
        code, text = await shell.text("status", "--tree")
        assert code == 0
        assert "@one" in text
    (pool / "volumes" / "disk.tvol").unlink()
    async with shell_on(pool) as shell:
        code, answer = await shell.json("status")
        assert (code, answer["health"]) == (10, "degraded")
        code, text = await shell.text("status", "--tree")
        assert code == 10
        assert "damaged" in text


async def test_job_wait_ends_with_the_jobs_code(shell):
    async def bad(job: Job):
        job.progress(100, 1000)
        raise errors.IntegrityError("disk", 0, 512, "aa", "bb")

    async def good(job: Job):
        job.progress(1000, 1000)
        return {"root": "abc"}

    jobs = shell.engine.pool.jobs
    failed, done = await jobs.start("copy", "disk", bad), await jobs.start("copy", "disk", good)
    code, answer = await shell.json("job", "wait", str(failed.job_id))
    assert (code, answer["exit_code"], answer["error"]) == (9, 9, "IntegrityError")
    answer = await shell.ok("job", "wait", str(done.job_id), "--progress")
    assert (answer["root"], answer["state"], answer["state_number"]) == ("abc", "Completed", 7)
    assert [job["state"] for job in (await shell.ok("job", "list"))["jobs"]] == ["Exception", "Completed"]
    assert (await shell.json("job", "cancel", str(done.job_id)))[0] == 5


async def test_a_pool_without_a_daemon_ends_with_20_and_says_how_to_start_one(tmp_path: Path):
    code, output = await Shell(tmp_path, None).text("volume", "list")
    assert code == 20
    assert f"twinvol serve --pool {tmp_path}" in output


def test_the_pool_may_come_from_the_environment_and_must_come_from_somewhere(tmp_path: Path):
    runner = CliRunner()
    assert runner.invoke(cli, ["volume", "list"]).exit_code == 2
    assert runner.invoke(cli, ["volume", "list"], env={"TWINVOL_POOL": str(tmp_path)}).exit_code == 20


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.org:0"])
def test_cim_without_tls_is_for_this_machine_only(tmp_path: Path, address):
    done = CliRunner().invoke(cli, ["serve", "--wbem-http", address, "--pool", str(tmp_path / "pool")])
    assert (done.exit_code, "loopback" in done.output) == (2, True)
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize("address", ["3260", ":3260", "host:", "host:x", "::1:3260", "host:70000"])
def test_bad_addresses_are_refused(tmp_path: Path, address):
    done = CliRunner().invoke(cli, ["serve", "--iscsi", address, "--pool", str(tmp_path / "pool")])
    assert done.exit_code == 2
    assert not (tmp_path / "pool").exists()


def test_every_command_takes_json_and_pool_and_has_help():
    def walk(command, path):
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                yield from walk(command.get_command(context, name), [*path, name])
        else:
            yield path, command

    commands = {" ".join(path): command for path, command in walk(cli, [])}
    assert "volume create" in commands
    for path, command in commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert command.help, path
        # serve answers with its ready line; demo makes a pool of its own.
        assert "--json" in options or path == "serve", path
        assert "--pool" in options or path == "demo", path


async def test_holds_views_schedules_and_pruning(shell):
    await shell.ok("volume", "create", "disk", "--size", "1M")
    made = await shell.ok("snapshot", "create", "disk", "one", "--description", "gold")
    assert (made["description"], made["scheduled"], made["holds"], made["parent"]) == ("gold", False, [], None)
    held = await shell.ok("snapshot", "hold", "disk", "one", "backup", "--for", "2h")
    (hold,) = held["holds"]
    assert hold["owner"] == "backup"
    assert hold["expires_at"] == pytest.approx(hold["held_at"] + 7200, abs=60)
    assert (await shell.json("snapshot", "delete", "disk", "one", "--force"))[0] == 4
    code, text = await shell.text("snapshot", "list", "disk")
    assert code == 0
    assert all(word in text for word in ("BRANCH", "hand", "backup", "gold"))
    await shell.ok("snapshot", "release", "disk", "one", "backup")
    assert (await shell.json("snapshot", "release", "disk", "one", "backup"))[0] == 3
    both = ("--for", "2h", "--until", "2030-01-01T00:00")
    assert (await shell.text("snapshot", "hold", "disk", "one", "backup", *both))[0] == 2
    view = await shell.ok("snapshot", "expose", "disk", "one", "--writable")
    assert (view["view_target"], view["view_lun"], view["target"]) == (f"{PREFIX}:disk.view.one", 0, None)
    await shell.ok("snapshot", "unexpose", "disk", "one", "--writable")
    schedule = await shell.ok(
        "snapshot", "schedule", "set", "disk", "--every", "1d", "--keep-last", "2", "--weekly", "3"
    )
    assert (schedule["interval_s"], schedule["keep_last"], schedule["weekly"]) == (86400, 2, 3)
    assert [each["volume"] for each in (await shell.ok("snapshot", "schedule", "list"))["schedules"]] == ["disk"]
    plan = await shell.ok("snapshot", "prune", "disk", "--dry-run")
    assert [(each["name"], each["stays"], each["reasons"]) for each in plan["snapshots"]] == [
        ("one", True, ["made by hand"])
    ]
    await shell.ok("snapshot", "schedule", "remove", "disk")
    assert (await shell.json("snapshot", "prune", "disk"))[0] == 2


async def test_a_branch_is_deleted_as_a_whole(shell):
    await shell.ok("volume", "create", "disk", "--size", "1M")
    for name in ("a", "b", "c"):
        await shell.ok("snapshot", "create", "disk", name)
    await shell.ok("snapshot", "rollback", "disk", "a")
    assert (await shell.text("snapshot", "delete", "disk", "a", "--branch"))[0] == 2
    await shell.ok("snapshot", "delete", "disk", "b", "--branch")
    assert [each["name"] for each in (await shell.ok("snapshot", "list", "disk"))["snapshots"]] == ["a"]


async def test_a_diff_is_one_object_or_lines_that_end(shell):
    await shell.ok("volume", "create", "disk", "--size", "1M")
    await shell.engine.pool.volume("disk").write(0, memoryview(b"x" * 512))
    await shell.ok("snapshot", "create", "disk", "one")
    await shell.engine.pool.volume("disk").discard(0, 65536)
    whole = await shell.ok("volume", "diff", "disk@one", "--digests")
    (extent,) = whole["extents"]
    assert (extent["offset"], extent["length"], extent["state"], len(extent["digests"])) == (0, 65536, "data", 1)
    assert (await shell.ok("volume", "diff", "disk"))["extents"] == []
    end = await shell.ok("volume", "diff", "disk", "--from", "one", "--progress")
    assert (end["event"], end["count"], end["size_bytes"], end["changed_bytes"]) == ("end", 1, 1 << 20, 65536)
    code, text = await shell.text("snapshot", "diff", "disk", "one")
    assert (code, text.split()[:3]) == (0, ["0", "65536", "hole"])


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("12h", 43200), ("7d", 604800), ("2w", 1209600)]
)
def test_durations(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "7", "d", "0d", "-1d", "1.5h", "1y", "999999w", "9" * 400 + "s", "9" * 5000 + "s"]
)
def test_texts_that_are_no_durations(text):
    with pytest.raises(click.BadParameter):
        duration(text)


async def test_an_expiry_that_no_calendar_has_is_shown_all_the_same(shell):
    await shell.ok("volume", "create", "disk", "--size", "1M")
    await shell.ok("snapshot", "create", "disk", "one")
    await shell.engine.api.snapshot_expose("disk", "one", writable=True, expires_at=1e15)
    code, text = await shell.text("snapshot", "show", "disk", "one")
    assert (code, "1000000000000000 s after 1970" in text) == (0, True), text


def test_instants():
    assert instant("1970-01-02T00:00") == 86400
    assert instant("1970-01-02T01:00+01:00") == 86400
    with pytest.raises(click.BadParameter):
        instant("tomorrow")
