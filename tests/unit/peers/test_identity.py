"""A pool's key and certificate, and the codes by which peers are enrolled."""

from __future__ import annotations

import base64
import socket
import ssl
import stat
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidArgument, PermissionDenied
from engine.peers.identity import (
    CURRENT,
    Identity,
    check_certificate,
    client_context,
    enrolment_context,
    fingerprint_of,
    server_context,
)
from engine.peers.invitation import Invitation, secret_hash

if TYPE_CHECKING:
    from pathlib import Path


def _identity(folder: Path, name: str) -> Identity:
    (folder / name).mkdir()
    return Identity.make(folder / name / "peers" / CURRENT)


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[bytes | None, bytes | None]:
    """The certificates that server and client have seen. Raises what either raises."""
    ours, theirs = socket.socketpair()
    seen: list[bytes | None] = []
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            with server.wrap_socket(ours, server_side=True) as wrapped:
                seen.append(wrapped.getpeercert(binary_form=True))
                wrapped.sendall(b"x")
        except OSError as error:
            failed.append(error)
            ours.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(theirs) as wrapped:
            mine = wrapped.getpeercert(binary_form=True)
            if wrapped.recv(1) != b"x":
                raise ssl.SSLError("refused")
    finally:
        theirs.close()
        thread.join()
    if failed:
        raise failed[0]
    return seen[0], mine


def test_the_key_is_its_owners_alone(tmp_path: Path) -> None:
    identity = _identity(tmp_path, "a")
    assert stat.S_IMODE(identity.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(identity.path.parent.stat().st_mode) == 0o700
    assert "PRIVATE" not in identity.certificate
    assert Identity.load(identity.path) == identity
    identity.path.chmod(0o644)
    with pytest.raises(PermissionDenied):
        Identity.load(identity.path)


def test_both_sides_see_the_pinned_certificate(tmp_path: Path) -> None:
    a, b = _identity(tmp_path, "a"), _identity(tmp_path, "b")
    at_server, at_client = _handshake(server_context(a, b.certificate), client_context(b, a.certificate))
    assert at_server is not None
    assert at_client is not None
    assert fingerprint_of(at_server) == b.fingerprint
    assert fingerprint_of(at_client) == a.fingerprint


def test_a_certificate_that_is_not_pinned_does_not_get_in(tmp_path: Path) -> None:
    a, b, stranger = (_identity(tmp_path, name) for name in "abc")
    with pytest.raises(OSError, match=r"."):
        _handshake(server_context(a, b.certificate), client_context(stranger, a.certificate))
    with pytest.raises(OSError, match=r"."):
        _handshake(server_context(stranger, b.certificate), client_context(b, a.certificate))


def test_without_a_certificate_one_is_let_in_and_known_as_nobody(tmp_path: Path) -> None:
    a, b = _identity(tmp_path, "a"), _identity(tmp_path, "b")
    at_server, at_client = _handshake(server_context(a, b.certificate), enrolment_context())
    assert at_server is None
    assert fingerprint_of(at_client or b"") == a.fingerprint


def test_nothing_older_than_tls_1_3_is_spoken(tmp_path: Path) -> None:
    a = _identity(tmp_path, "a")
    old = enrolment_context()
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    with pytest.raises(OSError, match=r"."):
        _handshake(server_context(a, ""), old)


def test_only_a_certificate_is_a_certificate(tmp_path: Path) -> None:
    a, b = _identity(tmp_path, "a"), _identity(tmp_path, "b")
    assert check_certificate(a.certificate) == a.fingerprint
    for bad in ("", "x", a.certificate[:-40], a.certificate + b.certificate, a.certificate + "x" * 4000):
        with pytest.raises(InvalidArgument):
            check_certificate(bad)


CODE = Invitation("storage.example:3270", "ab" * 32, bytes(range(16))).code()


def test_a_code_says_where_and_whom_and_carries_a_secret() -> None:
    assert Invitation.parse(f" {CODE}\n") == Invitation("storage.example:3270", "ab" * 32, bytes(range(16)))
    body = base64.urlsafe_b64decode(CODE.removeprefix("tv1.") + "==")
    assert body[:32] == b"\xab" * 32
    assert body[32:48] == bytes(range(16))
    assert body[48:-4] == b"storage.example:3270"


@given(st.integers(0, len(CODE) - 1), st.characters())
def test_a_code_with_a_wrong_character_is_refused_and_not_repeated(at: int, character: str) -> None:
    spoilt = CODE[:at] + character + CODE[at + 1 :]
    try:
        parsed = Invitation.parse(spoilt)
    except InvalidArgument as error:
        told = str(error)
    else:
        assert parsed == Invitation.parse(CODE)
        return
    assert spoilt not in told
    assert spoilt[4:30] not in told


def test_a_secret_is_kept_as_its_hash_and_never_shown() -> None:
    invitation = Invitation.make("h:1", "cd" * 32)
    assert invitation.secret.hex() not in secret_hash(invitation.secret)
    assert repr(invitation.secret) not in repr(invitation)
    assert invitation.secret != Invitation.make("h:1", "cd" * 32).secret
