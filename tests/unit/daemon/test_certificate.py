"""The certificate of the TLS listeners: made, renewed, replaced while it is served, and never left half changed."""

import asyncio
import contextlib
import datetime
import errno
import os
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from engine.errors import InvalidArgument, NotFound, PermissionDenied
from twinvol import certificate
from twinvol.certificate import CA, CA_KEY, CERTIFICATE, FOLDER, KEY, ServerCertificate

DAY = datetime.timedelta(days=1)
AT = "127.0.0.1:0"


def foreign(folder, names=("array.example",), begins=-DAY, ends=90 * DAY, password=None):
    """A certificate of somebody else's making, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "other")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
    )
    if names:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(each) for each in names])
        builder = builder.add_extension(alternatives, critical=False)
    made = builder.sign(key, hashes.SHA256())
    encryption = (
        serialization.BestAvailableEncryption(password) if password is not None else serialization.NoEncryption()
    )
    folder.mkdir(exist_ok=True)
    paths = folder / "other.crt", folder / "other.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].touch(0o600)
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    return paths


def shown_by(context, trusted):
    """The certificate that a client gets, who trusts what is in a file and calls the server localhost."""
    client = ssl.create_default_context(cafile=trusted)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    back, forth = ssl.MemoryBIO(), ssl.MemoryBIO()
    serving = context.wrap_bio(into, out, server_side=True)
    asking = client.wrap_bio(back, forth, server_hostname="localhost")
    for _ in range(4):
        for end, source, sink in ((asking, forth, into), (serving, out, back)):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
            sink.write(source.read())
    return asking.getpeercert()


def test_who_trusts_the_authority_trusts_what_it_signs_and_renews(tmp_path):
    first = shown_by(certificate.server_context(tmp_path, AT), tmp_path / FOLDER / CA)
    assert ("DNS", "localhost") in first["subjectAltName"]
    kept = (tmp_path / FOLDER / CA).read_bytes()
    certificate.renew(tmp_path, ["array.example", "192.0.2.10"])
    second = shown_by(certificate.server_context(tmp_path, AT), tmp_path / FOLDER / CA)
    assert (tmp_path / FOLDER / CA).read_bytes() == kept
    assert second["serialNumber"] != first["serialNumber"]
    assert set(second["subjectAltName"]) == {
        *first["subjectAltName"],
        ("DNS", "array.example"),
        ("IP Address", "192.0.2.10"),
    }
    info = certificate.show(tmp_path)
    assert info.own
    assert {"array.example", "192.0.2.10", "localhost"} <= set(info.names)
    for name in (KEY, CA_KEY):
        assert stat.S_IMODE((tmp_path / FOLDER / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["", "a b", "-" * 64, "a..b", "x" * 254, "ü.example", "http://a"])
def test_names_that_none_can_have(tmp_path, name):
    with pytest.raises(InvalidArgument):
        certificate.renew(tmp_path, [name])


async def test_a_certificate_is_renewed_in_its_last_third(tmp_path, monkeypatch):
    monkeypatch.setattr(certificate, "LIFETIME", 100 * DAY)
    certificate.server_context(tmp_path, AT)
    before = certificate.show(tmp_path)
    certificate.server_context(tmp_path, AT)
    assert certificate.show(tmp_path) == before
    monkeypatch.setattr(certificate, "LIFETIME", 301 * DAY)  # a third of which is longer than what is left
    serving = ServerCertificate(tmp_path, AT)
    await serving.context()
    after = certificate.show(tmp_path)
    assert after.sha256 != before.sha256
    assert after.names == before.names
    assert after.not_after > before.not_after


async def test_one_that_is_replaced_is_served_at_once_and_a_bad_one_never(tmp_path, caplog):
    serving = ServerCertificate(tmp_path, AT)
    first = await serving.context()
    assert await serving.context() is first
    made, key = foreign(tmp_path / "other")
    certificate.replace(tmp_path, made, key)
    second = await serving.context()
    assert second is not first
    assert await serving.context() is second
    info = certificate.show(tmp_path)
    assert (info.own, info.names) == (False, ["array.example"])
    (tmp_path / FOLDER / CERTIFICATE).write_text("half a file")  # by other means than the command
    assert await serving.context() is second
    assert "stays the one before" in caplog.text
    certificate.renew(tmp_path, [])
    assert await serving.context() is not second
    assert certificate.show(tmp_path).own


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (InvalidArgument, {"begins": DAY}),
        (InvalidArgument, {"begins": -2 * DAY, "ends": -DAY}),
        (InvalidArgument, {"names": ()}),
        (InvalidArgument, {"password": b"secret"}),
    ],
)
def test_what_nobody_can_serve_is_refused_and_changes_nothing(tmp_path, error, options):
    certificate.server_context(tmp_path, AT)
    before = {path.name: path.read_bytes() for path in (tmp_path / FOLDER).iterdir()}
    made, key = foreign(tmp_path / "other", **options)
    with pytest.raises(error):
        certificate.replace(tmp_path, made, key)
    assert {path.name: path.read_bytes() for path in (tmp_path / FOLDER).iterdir()} == before


def test_files_that_do_not_belong_together_or_are_not_there(tmp_path):
    certificate.server_context(tmp_path, AT)
    before = certificate.show(tmp_path)
    made, key = foreign(tmp_path / "one")
    _, other = foreign(tmp_path / "two")
    with pytest.raises(InvalidArgument):
        certificate.replace(tmp_path, made, other)
    with pytest.raises(InvalidArgument):
        certificate.replace(tmp_path, key, key)
    with pytest.raises(NotFound):
        certificate.replace(tmp_path, made, tmp_path / "nothing")
    key.chmod(0o644)
    with pytest.raises(PermissionDenied):
        certificate.replace(tmp_path, made, key)
    assert certificate.show(tmp_path) == before


@pytest.mark.parametrize("steps", range(2))
def test_a_crash_while_replacing_leaves_the_old_pair_or_the_new_one(tmp_path, monkeypatch, steps):
    certificate.server_context(tmp_path, AT)
    before = certificate.show(tmp_path).sha256
    made, key = foreign(tmp_path / "other")
    done, rename = [], Path.replace

    def crashing(path, target):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(target)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", crashing)
    with pytest.raises(KeyboardInterrupt):
        certificate.replace(tmp_path, made, key)
    monkeypatch.undo()
    certificate.server_context(tmp_path, AT)
    assert (certificate.show(tmp_path).sha256 == before) == (steps == 0)


@pytest.mark.parametrize("second", range(8))
@pytest.mark.parametrize("first", range(8))
def test_two_crashes_while_replacing_leave_a_pair(tmp_path, monkeypatch, first, second):
    """Between any two changes of names: the second meets what the first has left."""
    certificate.server_context(tmp_path, AT)
    certificates = [foreign(tmp_path / "a"), foreign(tmp_path / "b")]
    known = {certificate.show(tmp_path).sha256}
    for (made, key), steps in zip(certificates, (first, second), strict=True):
        known.add(x509.load_pem_x509_certificate(made.read_bytes()).fingerprint(hashes.SHA256()).hex())
        with monkeypatch.context() as crashing:
            left = iter(range(steps))
            for name in ("replace", "unlink"):
                crashing.setattr(Path, name, until_crash(left, getattr(Path, name)))
            crashing.setattr(certificate.os, "open", until_crash(left, os.open, of_files_made=True))
            with contextlib.suppress(KeyboardInterrupt):
                certificate.replace(tmp_path, made, key)
    certificate.server_context(tmp_path, AT)
    assert certificate.show(tmp_path).sha256 in known


def until_crash(left, function, *, of_files_made=False):
    def step(*arguments, **named):
        if not of_files_made or arguments[1] & os.O_CREAT:
            try:
                next(left)
            except StopIteration:
                raise KeyboardInterrupt from None
        return function(*arguments, **named)

    return step


@pytest.mark.parametrize("why", ["no room", "no key"])
async def test_what_cannot_be_renewed_is_served_and_said(tmp_path, monkeypatch, caplog, why):
    monkeypatch.setattr(certificate, "LIFETIME", 30 * DAY)
    certificate.server_context(tmp_path, AT)
    before = certificate.show(tmp_path).sha256
    monkeypatch.setattr(certificate, "LIFETIME", 396 * DAY)  # it is in its last third
    if why == "no key":
        (tmp_path / FOLDER / CA_KEY).rename(tmp_path / "kept elsewhere")
    else:
        monkeypatch.setattr(certificate, "_write", full)
    context = await ServerCertificate(tmp_path, AT).context()
    assert shown_by(context, tmp_path / FOLDER / CA)
    assert certificate.show(tmp_path).sha256 == before
    assert "is not renewed" in caplog.text


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_connections_at_the_same_time_load_it_once(tmp_path):
    serving = ServerCertificate(tmp_path, AT)
    first = await serving.context()
    assert {id(each) for each in await asyncio.gather(*(serving.context() for _ in range(5)))} == {id(first)}


def test_a_pair_of_before_goes_on(tmp_path):
    """Self-signed, and no authority beside it."""
    made, key = foreign(tmp_path / FOLDER, names=("localhost",))
    made.rename(tmp_path / FOLDER / CERTIFICATE)
    key.rename(tmp_path / FOLDER / KEY)
    certificate.server_context(tmp_path, AT)
    assert not certificate.show(tmp_path).own
