"""Users: their file, and what proves who somebody is."""

import asyncio
import base64
import json
import stat
import threading

import pytest

from cim_facade import auth
from cim_facade.auth import Overloaded, Users, UsersFile, parse_basic
from engine.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "users.json"
    UsersFile(made).add("joe", "admin", "correct horse")
    return made


async def test_a_user_is_known_by_the_password_alone(path):
    users = Users(path)
    assert await users.role("joe", "correct horse") == "admin"
    assert await users.role("joe", "correct horse") == "admin"
    assert await users.role("joe", "correct hors") is None
    assert await users.role("Joe", "correct horse") is None
    assert await users.role("", "") is None
    assert await users.role("joe", "x" * 100_000) is None


async def test_a_running_server_sees_changes_of_the_file(path):
    users = Users(path)
    assert await users.role("joe", "correct horse") == "admin"
    UsersFile(path).add("ann", "reader", "battery staple")
    assert await users.role("ann", "battery staple") == "reader"
    UsersFile(path).remove("joe")
    assert await users.role("joe", "correct horse") is None
    path.unlink()
    assert await users.role("ann", "battery staple") is None


async def test_who_logs_in_while_another_is_added_gets_in(path, monkeypatch):
    users = Users(path)
    derive, under_way, go_on = auth._derive, threading.Event(), threading.Event()

    def held(password, salt):
        under_way.set()
        go_on.wait()
        return derive(password, salt)

    UsersFile(path).add("ann", "reader", "battery staple")
    monkeypatch.setattr(auth, "_derive", held)
    login = asyncio.create_task(users.role("joe", "correct horse"))
    await asyncio.to_thread(under_way.wait)
    UsersFile(path).remove("ann")
    other = asyncio.create_task(users.role("ann", "battery staple"))
    await asyncio.sleep(0)  # it has read the file
    go_on.set()
    assert await login == "admin"
    assert await other is None


async def test_a_password_of_256_umlauts(path):
    UsersFile(path).add("ute", "reader", "ü" * 256)
    assert await Users(path).role("ute", "ü" * 256) == "reader"
    assert await Users(path).role("ute", "ü" * 257) is None


def test_the_file_holds_no_password_and_is_its_owners(path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "correct horse" not in path.read_text()
    path.chmod(0o640)
    with pytest.raises(PermissionDenied, match="0640"):
        UsersFile(path).read()
    with pytest.raises(PermissionDenied):
        UsersFile(path).add("ann", "reader", "battery staple")


@pytest.mark.parametrize(
    ("name", "role", "password"),
    [
        ("", "admin", "long enough"),
        ("a:b", "admin", "long enough"),
        ("a" * 65, "admin", "long enough"),
        ("ann", "root", "long enough"),
        ("ann", "admin", "short"),
        ("ann", "admin", "x" * 257),
    ],
)
def test_what_no_user_can_be(path, name, role, password):
    before = path.read_bytes()
    with pytest.raises(InvalidArgument):
        UsersFile(path).add(name, role, password)
    assert path.read_bytes() == before


def test_names_are_taken_once(path):
    with pytest.raises(AlreadyExists):
        UsersFile(path).add("joe", "reader", "long enough")
    with pytest.raises(NotFound):
        UsersFile(path).remove("ann")


def changed(path, **fields):
    document = json.loads(path.read_text())
    document["users"][0] |= fields
    return json.dumps(document)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: "",
        lambda path: "[]",
        lambda path: '{"schema": 2, "users": []}',
        lambda path: changed(path, role="root"),
        lambda path: changed(path, salt="zz"),
        lambda path: changed(path, n=1 << 30),
        lambda path: changed(path, surprise=1),
        lambda path: "[" * 100_000,
    ],
)
async def test_a_file_that_is_not_understood_lets_nobody_in(path, spoil):
    users = Users(path)
    assert await users.role("joe", "correct horse") == "admin"
    path.write_text(spoil(path))
    for _ in range(2):
        with pytest.raises(InvalidArgument):
            await users.role("joe", "correct horse")


async def test_only_so_many_guesses_wait(path, monkeypatch):
    """The others are told at once; a known user is not delayed by them."""
    users = Users(path)
    assert await users.role("joe", "correct horse") == "admin"
    begun = []
    held = asyncio.Event()

    async def slow(function, *arguments):
        begun.append(arguments)
        await held.wait()
        return function(*arguments)

    monkeypatch.setattr(auth.asyncio, "to_thread", slow)
    guesses = [asyncio.create_task(users.role("joe", f"guess {n}")) for n in range(auth.MAX_WAITING + 5)]
    for _ in range(10):  # turns of the loop
        await asyncio.sleep(0)
    assert sum(guess.done() for guess in guesses) == 5
    assert len(begun) == auth.MAX_VERIFYING
    assert await users.role("joe", "correct horse") == "admin"
    held.set()
    results = await asyncio.gather(*guesses, return_exceptions=True)
    assert sum(isinstance(result, Overloaded) for result in results) == 5
    assert results.count(None) == auth.MAX_WAITING


def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (basic("joe:a:b"), ("joe", "a:b")),
        (basic("joe:ü").replace("Basic", "bAsIc"), ("joe", "ü")),
        (basic(":"), ("", "")),
        (basic("joe"), None),
        ("Basic !!!!", None),
        ("Basic " + base64.b64encode(b"\xff:\xff").decode(), None),
        ("Bearer abc", None),
        ("", None),
        ("Basic", None),
    ],
)
def test_authorization_headers(header, wanted):
    assert parse_basic(header) == wanted
