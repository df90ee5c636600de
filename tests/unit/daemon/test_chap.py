"""CHAP users as an administrator has them: API, files, command line, and real logins against what was set."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from engine.api import ChapInfo
from engine.chap import MAX_USERS
from engine.errors import AlreadyExists, InvalidArgument, NotFound, OutOfSpace, PermissionDenied
from engine.secret_files import SECRET_FILE_MAX_BYTES, read_secret, write_secret
from iscsi.initiator import (
    ChapCredentials,
    ChapIdentity,
    ConnectionLost,
    LoginRefused,
    TargetNotAuthentic,
    connect,
    discover,
)
from iscsi.wire.opcodes import LoginStatus
from tests.support.engine import PREFIX, Engine, opened
from tests.unit.daemon.test_cli import shell_on
from tests.unit.daemon.test_wiring import HOST, serving
from twinvol.cli import cli

TARGET = f"{PREFIX}:t"
SECRET, OTHER, MUTUAL = "correct horse 1", "another secret 2", "battery staple 3"
MIB = 1 << 20


@pytest.fixture
async def engine(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.target_create("t")
        yield engine


@pytest.fixture
async def shell(tmp_path: Path):
    async with shell_on(tmp_path / "pool") as shell:
        await shell.engine.api.target_create("t")
        yield shell


def secret_files(pool: Path) -> list[Path]:
    return sorted((pool / "secrets").glob("*"))


def shown(engine: Engine, target: str | None = TARGET):
    """What logins would be checked against."""
    secrets = engine.exports.chap.get(target)
    return None if secrets is None else (dict(secrets.users), secrets.mutual)


async def test_users_and_a_mutual_secret_take_effect_and_are_told_by_name_only(engine):
    assert await engine.api.target_chap_show("t") == ChapInfo(required=False, users=[], mutual_user=None, reasons=[])
    assert shown(engine) is None
    await engine.api.target_chap_set("t", user="bob", secret=OTHER)
    info = await engine.api.target_chap_set("t", user="alice", secret=SECRET, mutual_user="array", mutual_secret=MUTUAL)
    assert info == ChapInfo(required=True, users=["alice", "bob"], mutual_user="array", reasons=[])
    assert shown(engine) == ({"alice": SECRET, "bob": OTHER}, ("array", MUTUAL))
    assert (await engine.api.target_show("t")).chap == info
    assert shown(engine, None) is None


async def test_discovery_is_apart(engine):
    await engine.api.target_chap_set(None, user="finder", secret=SECRET)
    assert shown(engine, None) == ({"finder": SECRET}, None)
    assert shown(engine) is None
    assert (await engine.api.target_chap_show(None)).users == ["finder"]
    await engine.api.target_chap_remove(None)
    assert shown(engine, None) is None
    assert secret_files(engine.pool.path) == []


async def test_a_new_secret_replaces_the_old_file(engine):
    await engine.api.target_chap_set("t", user="alice", secret=SECRET, mutual_user="array", mutual_secret=MUTUAL)
    before = secret_files(engine.pool.path)
    await engine.api.target_chap_set("t", user="alice", secret=OTHER)
    after = secret_files(engine.pool.path)
    assert shown(engine) == ({"alice": OTHER}, ("array", MUTUAL))
    assert len(before) == len(after) == 2
    assert len(set(before) & set(after)) == 1
    await engine.api.target_chap_set("t", mutual_user="renamed", mutual_secret=SECRET)
    assert shown(engine) == ({"alice": OTHER}, ("renamed", SECRET))


async def test_secrets_are_in_private_files_and_nowhere_else(engine, caplog):
    with caplog.at_level(logging.DEBUG):
        await engine.api.target_chap_set("t", user="alice", secret=SECRET)
        await engine.api.target_show("t")
    (file,) = secret_files(engine.pool.path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert file.read_text() == SECRET
    assert SECRET not in caplog.text
    others = [path for path in engine.pool.path.rglob("*") if path.is_file() and path != file]
    assert others
    assert all(SECRET.encode() not in path.read_bytes() for path in others)
    assert SECRET not in repr(engine.exports.chap)


async def test_they_survive_a_restart_and_go_with_the_target(tmp_path):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.volume_create("v", MIB, expose=True)
        await engine.api.target_create("t")
        for target in ("v", "t", None):
            await engine.api.target_chap_set(target, user="alice", secret=SECRET)
    (tmp_path / "pool/secrets/left-by-a-crash.secret").write_text("unknown to the catalogue")
    async with opened(tmp_path / "pool") as engine:
        assert len(secret_files(engine.pool.path)) == 3
        assert shown(engine) == shown(engine, None) == shown(engine, f"{PREFIX}:v") == ({"alice": SECRET}, None)
        await engine.api.target_delete("t")
        assert len(secret_files(engine.pool.path)) == 2
        await engine.api.volume_delete("v")
        assert len(secret_files(engine.pool.path)) == 1
        await engine.api.target_create("t")
        assert not (await engine.api.target_show("t")).chap.required


@pytest.mark.parametrize("spoil", ["readable", "missing", "empty", "long", "binary"])
async def test_a_secret_that_cannot_be_used_locks_its_user_out_and_nobody_in(tmp_path, spoil):
    async with opened(tmp_path / "pool") as engine:
        await engine.api.target_create("t")
        await engine.api.target_chap_set("t", user="alice", secret=SECRET)
        (file,) = secret_files(engine.pool.path)
    match spoil:
        case "readable":
            file.chmod(0o640)
        case "missing":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
        case "long":
            file.write_bytes(b"x" * (SECRET_FILE_MAX_BYTES + 1))
        case "binary":
            file.write_bytes(b"\xff" * 16)
    async with opened(tmp_path / "pool") as engine:
        assert shown(engine) == ({}, None), "CHAP is required, and no user has a secret"
        (reason,) = (await engine.api.target_show("t")).chap.reasons
        assert "alice is locked out" in reason
        assert ("chmod 600" in reason) is (spoil == "readable")
        status = await engine.api.status()
        assert status.health == "degraded"
        assert any(TARGET in line and "alice" in line for line in status.reasons)
        await engine.api.target_chap_set("t", user="alice", secret=OTHER)
        assert shown(engine) == ({"alice": OTHER}, None)
        assert (await engine.api.status()).health == "ok"


@pytest.mark.parametrize(
    "secret",
    ["", "short", "elevenbytes", "x" * 256, "ä" * 128, " a leading blank", "trailing blank ", "two\nlines here"],
)
async def test_secrets_that_may_not_be(engine, secret):
    with pytest.raises(InvalidArgument) as refused:
        await engine.api.target_chap_set("t", user="alice", secret=secret)
    assert not secret or secret not in str(refused.value)
    assert shown(engine) is None
    assert secret_files(engine.pool.path) == []


@pytest.mark.parametrize("secret", ["twelve bytes", "x" * 255, "sixteen bytes 16", "ähnlich schön"])
async def test_secrets_that_may_be(engine, secret):
    await engine.api.target_chap_set("t", user="alice", secret=secret)
    assert shown(engine) == ({"alice": secret}, None)


@pytest.mark.parametrize("name", ["", " ", "a\n", "a\0b", "x" * 256, " a"])
async def test_names_that_may_not_be(engine, name):
    with pytest.raises(InvalidArgument):
        await engine.api.target_chap_set("t", user=name, secret=SECRET)
    with pytest.raises(InvalidArgument):
        await engine.api.target_chap_set("t", user="alice", secret=SECRET, mutual_user=name, mutual_secret=MUTUAL)
    assert shown(engine) is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"user": "alice"},
        {"secret": SECRET},
        {"mutual_user": "array", "mutual_secret": MUTUAL},
        {"user": "alice", "secret": SECRET, "mutual_user": "array"},
    ],
)
async def test_what_belongs_together(engine, options):
    with pytest.raises(InvalidArgument):
        await engine.api.target_chap_set("t", **options)
    assert shown(engine) is None


async def test_no_secret_serves_both_directions_anywhere_in_the_pool(engine):
    await engine.api.target_create("u")
    with pytest.raises(InvalidArgument, match=r"9\.2\.1"):
        await engine.api.target_chap_set("t", user="alice", secret=SECRET, mutual_user="array", mutual_secret=SECRET)
    await engine.api.target_chap_set("t", user="alice", secret=SECRET, mutual_user="array", mutual_secret=MUTUAL)
    with pytest.raises(InvalidArgument, match=r"9\.2\.1"):
        await engine.api.target_chap_set("u", user="bob", secret=MUTUAL)
    with pytest.raises(InvalidArgument, match=r"9\.2\.1"):
        await engine.api.target_chap_set(None, user="b", secret=OTHER, mutual_user="array", mutual_secret=SECRET)
    await engine.api.target_chap_set("u", user="bob", secret=SECRET, mutual_user="array", mutual_secret=MUTUAL)


async def test_the_last_user_goes_only_on_purpose(engine):
    await engine.api.target_chap_set("t", user="alice", secret=SECRET, mutual_user="array", mutual_secret=MUTUAL)
    await engine.api.target_chap_set("t", user="bob", secret=OTHER)
    with pytest.raises(NotFound):
        await engine.api.target_chap_remove("t", user="array")
    await engine.api.target_chap_remove("t", user="bob")
    with pytest.raises(InvalidArgument, match="last CHAP user"):
        await engine.api.target_chap_remove("t", user="alice")
    assert (await engine.api.target_chap_remove("t", mutual=True)).mutual_user is None
    with pytest.raises(NotFound):
        await engine.api.target_chap_remove("t", mutual=True)
    assert not (await engine.api.target_chap_remove("t")).required
    assert shown(engine) is None
    assert secret_files(engine.pool.path) == []
    with pytest.raises(NotFound):
        await engine.api.target_chap_remove("t")


async def test_users_are_bounded(engine):
    for number in range(MAX_USERS):
        await engine.api.target_chap_set("t", user=f"user-{number:02}", secret=SECRET)
    with pytest.raises(InvalidArgument):
        await engine.api.target_chap_set("t", user="one-more", secret=SECRET)
    await engine.api.target_chap_set("t", user="user-00", secret=OTHER)


async def test_an_unknown_target(engine):
    for call in (
        engine.api.target_chap_show("x"),
        engine.api.target_chap_set("x", user="alice", secret=SECRET),
        engine.api.target_chap_remove("x"),
    ):
        with pytest.raises(NotFound):
            await call


# -- logins


def credentials(user: str, secret: str, mutual: tuple[str, str] | None = None) -> ChapCredentials:
    target = None if mutual is None else ChapIdentity(mutual[0], mutual[1].encode())
    return ChapCredentials(ChapIdentity(user, secret.encode()), target)


@pytest.fixture
async def array(tmp_path: Path):
    async with serving(tmp_path / "pool") as array:
        await array.api.volume_create("t", 4 * MIB, expose=True)
        yield array


async def refused(attempt) -> None:
    with pytest.raises(LoginRefused) as error:
        await attempt
    assert error.value.status == LoginStatus.AUTHENTICATION_FAILURE


async def test_logins_must_prove_themselves_and_others_stay(array):
    async with await connect(array.portal, TARGET) as before:
        await array.api.target_chap_set("t", user="alice", secret=SECRET)
        await before.write(0, b"x" * 4096)
        await refused(connect(array.portal, TARGET))
        await refused(connect(array.portal, TARGET, chap=credentials("alice", OTHER)))
        await refused(connect(array.portal, TARGET, chap=credentials("alice", SECRET, ("array", MUTUAL))))
        async with await connect(array.portal, TARGET, chap=credentials("alice", SECRET)) as disk:
            assert await disk.read(0, 4096) == b"x" * 4096
            assert [session.chap_user for session in await array.api.session_list()] == [None, "alice"]
        await array.api.target_chap_set("t", mutual_user="array", mutual_secret=MUTUAL)
        async with await connect(array.portal, TARGET, chap=credentials("alice", SECRET, ("array", MUTUAL))) as disk:
            assert await disk.read(0, 4096) == b"x" * 4096
            assert [session.chap_user for session in await array.api.session_list()] == [None, "alice"]
        with pytest.raises(TargetNotAuthentic):
            await connect(array.portal, TARGET, chap=credentials("alice", SECRET, ("array", OTHER)))
        await before.write(0, b"y" * 4096)
    await array.api.target_chap_remove("t")
    async with await connect(array.portal, TARGET):
        pass


async def test_a_stranger_cannot_take_a_session_over(array):
    """Name and ISID of a session replace it (RFC 7143 section 6.3.5), but only for who proves himself."""
    await array.api.target_chap_set("t", user="alice", secret=SECRET)
    isid = bytes.fromhex("80a1b2c3d4e5")
    async with await connect(array.portal, TARGET, isid=isid, chap=credentials("alice", SECRET)) as mine:
        for chap in (None, credentials("alice", OTHER), credentials("mallory", SECRET)):
            await refused(connect(array.portal, TARGET, isid=isid, chap=chap))
        await mine.write(0, b"still here".ljust(512))
        async with await connect(array.portal, TARGET, isid=isid, chap=credentials("alice", SECRET)) as again:
            assert (await again.read(0, 512)).startswith(b"still here")
            with pytest.raises(ConnectionLost):
                await mine.read(0, 512)


async def test_a_change_that_the_catalogue_does_not_take_changes_nothing(engine, monkeypatch):
    await engine.api.target_chap_set("t", user="alice", secret=SECRET)
    before = secret_files(engine.pool.path)

    async def full(*_: object) -> None:
        raise OutOfSpace("no room")

    with monkeypatch.context() as patch:
        patch.setattr(engine.pool.catalog, "set_chap", full)
        for attempt in (
            engine.api.target_chap_set("t", user="alice", secret=OTHER),
            engine.api.target_chap_set("t", user="bob", secret=OTHER),
            engine.api.target_chap_remove("t"),
        ):
            with pytest.raises(OutOfSpace):
                await attempt
    assert shown(engine) == ({"alice": SECRET}, None)
    assert (await engine.api.target_chap_show("t")).users == ["alice"]
    assert set(before) <= set(secret_files(engine.pool.path))


async def test_discovery_asks_for_its_own_users(array):
    await array.api.target_chap_set("t", user="alice", secret=SECRET)
    (found,) = await discover(array.portal)
    await array.api.target_chap_set(None, user="finder", secret=OTHER)
    await refused(discover(array.portal))
    await refused(discover(array.portal, chap=credentials("alice", SECRET)))
    assert await discover(array.portal, chap=credentials("finder", OTHER)) == [found]
    await refused(connect(array.portal, TARGET, chap=credentials("finder", OTHER)))


async def test_a_refused_login_is_one_line_of_the_log(array, caplog):
    await array.api.target_chap_set("t", user="alice", secret=SECRET)
    with caplog.at_level(logging.INFO, "iscsi"):
        await refused(connect(array.portal, TARGET, initiator_name=HOST, chap=credentials("alice", OTHER)))
    (line,) = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert line.startswith("login from 127.0.0.1:")
    assert line.endswith(f"refused: {HOST} to {TARGET}, AUTHENTICATION_FAILURE: wrong secret of CHAP user 'alice'")
    assert SECRET not in caplog.text
    assert OTHER not in caplog.text


# -- secret files


def test_a_secret_file_is_private_and_overwrites_nothing(tmp_path):
    path = tmp_path / "secret"
    old = os.umask(0)
    try:
        write_secret(path, SECRET)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == read_secret(path) == SECRET
    with pytest.raises(AlreadyExists):
        write_secret(path, OTHER)
    assert read_secret(path) == SECRET


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_line_end_is_no_part_of_a_secret(tmp_path, end):
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_bytes((SECRET + end).encode())
    assert read_secret(path) == SECRET


def test_what_others_may_read_is_no_secret(tmp_path):
    path = tmp_path / "secret"
    write_secret(path, SECRET)
    for mode in (0o644, 0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(PermissionDenied, match=f"chmod 600 {path}"):
            read_secret(path)
    path.chmod(0o400)
    assert read_secret(path) == SECRET
    with pytest.raises(NotFound):
        read_secret(tmp_path / "none")


# -- the command line


async def test_set_show_remove_on_the_command_line(shell, tmp_path):
    write_secret(tmp_path / "alice", SECRET)
    write_secret(tmp_path / "array", MUTUAL)
    answer = await shell.ok(
        *("target", "chap", "set", "t", "--user", "alice", "--secret-file", str(tmp_path / "alice")),
        *("--mutual-user", "array", "--mutual-secret-file", str(tmp_path / "array")),
    )
    said = {"schema": 1, "required": True, "users": ["alice"], "mutual_user": "array", "reasons": []}
    assert answer == said == await shell.ok("target", "chap", "show", "t")
    target = await shell.ok("target", "show", "t")
    assert {"schema": 1, **target["chap"]} == said
    code, text = await shell.text("target", "show", "t")
    assert (code, "CHAP users: alice, mutual as array" in text) == (0, True)
    for output in (json.dumps(answer), json.dumps(target), text):
        assert SECRET not in output
        assert MUTUAL not in output
    assert (await shell.text("target", "chap", "remove", "t"))[1] == (
        "target t requires no CHAP; from the next login on, sessions that are there stay\n"
    )


async def test_discovery_on_the_command_line(shell, tmp_path):
    write_secret(tmp_path / "s", SECRET)
    await shell.ok("target", "chap", "set", "--discovery", "--user", "finder", "--secret-file", str(tmp_path / "s"))
    assert shown(shell.engine, None) == ({"finder": SECRET}, None)
    assert (await shell.ok("target", "chap", "show", "--discovery"))["users"] == ["finder"]
    await shell.ok("target", "chap", "remove", "--discovery")
    assert shown(shell.engine, None) is None


async def test_a_secret_from_stdin(shell):
    arguments = ["target", "chap", "set", "t", "--user", "alice", "--secret-file", "-", "--pool", str(shell.pool)]
    done = await _invoke(arguments, SECRET + "\n")
    assert done.exit_code == 0, done.output
    assert shown(shell.engine) == ({"alice": SECRET}, None)
    assert SECRET not in done.output


async def test_a_secret_asked_for_on_a_terminal(shell, monkeypatch):
    asked = []

    def prompt(text, **options):
        asked.append((text, options["hide_input"], options["confirmation_prompt"]))
        return SECRET

    monkeypatch.setattr(click, "prompt", prompt)
    monkeypatch.setattr("twinvol.cli.chap._is_terminal", lambda: True)
    done = await _invoke(["target", "chap", "set", "t", "--user", "alice", "--pool", str(shell.pool)], "")
    assert done.exit_code == 0, done.output
    assert asked == [("CHAP secret of alice", True, True)]
    assert shown(shell.engine) == ({"alice": SECRET}, None)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["t"], 2),
        (["t", "--user", "alice"], 2),
        (["--user", "alice", "--secret-file", "{good}"], 2),
        (["t", "--discovery", "--user", "alice", "--secret-file", "{good}"], 2),
        (["t", "--secret-file", "{good}"], 2),
        (["t", "--user", "a", "--secret-file", "-", "--mutual-user", "m", "--mutual-secret-file", "-"], 2),
        (["t", "--user", "alice", "--secret-file", "{none}"], 3),
        (["t", "--user", "alice", "--secret-file", "{open}"], 7),
        (["t", "--user", "alice", "--secret-file", "{short}"], 2),
        (["x", "--user", "alice", "--secret-file", "{good}"], 3),
    ],
)
async def test_what_the_command_line_refuses(shell, tmp_path, arguments, code):
    files = {name: str(tmp_path / name) for name in ("good", "none", "open", "short")}
    write_secret(Path(files["good"]), SECRET)
    write_secret(Path(files["short"]), "short")
    write_secret(Path(files["open"]), SECRET)
    os.chmod(files["open"], 0o644)  # noqa: PTH101
    said, output = await shell.text("target", "chap", "set", *(each.format(**files) for each in arguments))
    assert said == code, output
    assert SECRET not in output
    assert "Traceback" not in output
    assert shown(shell.engine) is None


async def test_generate_makes_a_secret_that_set_takes(shell, tmp_path):
    path = tmp_path / "new"
    done = await _invoke(["target", "chap", "generate", str(path), "--json"], "")
    assert json.loads(done.output) == {"schema": 1, "file": str(path)}
    assert len(read_secret(path)) == 16
    await shell.ok("target", "chap", "set", "t", "--user", "alice", "--secret-file", str(path))
    assert shown(shell.engine) == ({"alice": read_secret(path)}, None)


async def _invoke(arguments: list[str], stdin: str):
    return await asyncio.to_thread(CliRunner().invoke, cli, arguments, input=stdin)
