"""Users: their file, and what proves who somebody is."""

import asyncio
import base64
import json
import stat
import threading

import pytest

from cim_facade import auth, guesses
from cim_facade.auth import LockedOut, Login, Overloaded, Users, UsersFile, parse_basic
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
        ("ann", "admin", "long\0enough"),
        ("ann", "admin", "long enough\udcff"),
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


class Held:
    """Verifying takes until it is let go."""

    def __init__(self, monkeypatch):
        self.begun = []
        self._go_on = asyncio.Event()
        monkeypatch.setattr(auth.asyncio, "to_thread", self._slow)

    async def _slow(self, function, *arguments):
        self.begun.append(arguments[0])
        await self._go_on.wait()
        return function(*arguments)

    async def settled(self):
        for _ in range(10):  # turns of the loop
            await asyncio.sleep(0)

    def let_go(self):
        self._go_on.set()


async def test_only_so_many_guesses_of_a_place_wait(path, monkeypatch):
    """The others are told at once; who is known on his connection is not delayed by them, nor locked out."""
    users, login = Users(path), Login("192.0.2.1")
    assert await users.role("joe", "correct horse", login) == "admin"
    held = Held(monkeypatch)
    most = guesses.MAX_SEATS_OF_PLACE + 1  # one is being looked at
    tries = [asyncio.create_task(users.role("joe", f"guess {n}", Login("192.0.2.1"))) for n in range(most + 5)]
    await held.settled()
    assert sum(each.done() for each in tries) == 5
    assert len(held.begun) == 1
    assert await users.role("joe", "correct horse", login) == "admin"
    held.let_go()
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(result, Overloaded) for result in results) == 5
    assert results.count(None) == most
    for _ in range(guesses.OF_NAME_HERE - most):
        assert await users.role("joe", "one more", Login("192.0.2.1")) is None
    with pytest.raises(LockedOut):
        await users.role("joe", "correct horse", Login("192.0.2.1"))
    assert await users.role("joe", "correct horse", login) == "admin"


async def test_a_first_login_elsewhere_is_next_though_a_place_has_sent_many(path, monkeypatch):
    users = Users(path)
    held = Held(monkeypatch)
    tries = [asyncio.create_task(users.role("eve", f"guess {n}", Login("192.0.2.1"))) for n in range(32)]
    await held.settled()
    first = asyncio.create_task(users.role("joe", "correct horse", Login("192.0.2.2")))
    await held.settled()
    held.let_go()
    assert await first == "admin"
    assert held.begun.index("correct horse") <= 2  # one under way, one whose turn it is
    await asyncio.gather(*tries, return_exceptions=True)


async def test_connections_that_begin_at_the_same_time_prove_themselves_once(path, monkeypatch):
    users = Users(path)
    held = Held(monkeypatch)
    logins = [asyncio.create_task(users.role("joe", "correct horse", Login("192.0.2.1"))) for _ in range(50)]
    await held.settled()
    held.let_go()
    assert await asyncio.gather(*logins) == ["admin"] * 50
    assert held.begun == ["correct horse"]


async def test_who_leaves_while_waiting_leaves_no_trace(path, monkeypatch):
    users = Users(path)
    held = Held(monkeypatch)
    asked = asyncio.create_task(users.role("joe", "correct horse", Login("192.0.2.1")))
    left = asyncio.create_task(users.role("joe", "wrong horse", Login("192.0.2.2")))
    await held.settled()
    left.cancel()
    held.let_go()
    assert await asked == "admin"
    with pytest.raises(asyncio.CancelledError):
        await left
    assert await users.role("joe", "correct horse", Login("192.0.2.2")) == "admin"


async def test_a_change_of_users_ends_lock_outs(path):
    users = Users(path)
    for _ in range(guesses.OF_NAME_HERE):
        assert await users.role("joe", "wrong horse") is None
    with pytest.raises(LockedOut):
        await users.role("joe", "correct horse")
    UsersFile(path).set_password("joe", "battery staple")
    assert await users.role("joe", "correct horse") is None
    assert await users.role("joe", "battery staple") == "admin"
    with pytest.raises(NotFound):
        UsersFile(path).set_password("ann", "battery staple")
    with pytest.raises(InvalidArgument):
        UsersFile(path).set_password("joe", "short")


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
        (basic("joe\0x:a"), None),  # joe, whose password begins with x and a NUL, would be known by another name
        (basic("joe:a\nb"), None),
        ("Bearer abc", None),
        ("", None),
        ("Basic", None),
    ],
)
def test_authorization_headers(header, wanted):
    assert parse_basic(header) == wanted
