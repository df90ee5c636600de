"""The certificate of the management process's TLS listeners, kept in the pool and replaced while it serves.

    POOL/tls/ca.crt       the pool's own authority, which clients trust (``--ca-certs``)
    POOL/tls/ca.key       mode 0600
    POOL/tls/server.crt   the certificate and what signed it; of the own authority, or one of your own
    POOL/tls/server.key   mode 0600

Made at the first start. A certificate of the own authority is renewed in its last third, so clients are told to trust
once and nothing ends on a day that nobody remembers; one of your own is yours, and the log says when its end is near.

Rules: a key and its certificate are written under other names and tried, then the key takes its name, then the
certificate; whoever finds the second without the first does the last step. All who change or read the pair hold the
folder's lock. What is there and cannot be used leaves in use what was loaded before.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import fcntl
import ipaddress
import logging
import os
import socket
import ssl
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from engine.errors import EngineError, InvalidArgument, NotFound, PermissionDenied

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

FOLDER, KEY, CERTIFICATE, CA_KEY, CA = "tls", "server.key", "server.crt", "ca.key", "ca.crt"
LIFETIME = datetime.timedelta(days=396)
CA_LIFETIME = datetime.timedelta(days=3650)
WARNED_BEFORE = datetime.timedelta(days=30)
"""Its end, of a certificate that is not renewed here."""

LOOK_AGAIN_S = 86_400.0
MAX_PEM_BYTES = 256 << 10
MAX_NAMES = 100


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """What is served. ``own``: signed by the pool's authority, the file ``authority``, and renewed by itself.

    Times are ISO 8601; ``sha256`` is the fingerprint in hexadecimal digits.
    """

    subject: str
    issuer: str
    names: list[str]
    not_before: str
    not_after: str
    sha256: str
    own: bool
    authority: str


class ServerCertificate:
    """For the listeners: ``context`` is what the next connection is served with. Changes of the files hold at once."""

    def __init__(self, pool: Path, listening_at: str) -> None:
        self._folder = pool / FOLDER
        self._listening_at = listening_at
        self._context: ssl.SSLContext | None = None
        self._seen: object = None
        self._looked = 0.0

    async def context(self) -> ssl.SSLContext:
        """Raises EngineError: there never was a certificate that can be used."""
        seen = _versions(self._folder)
        if self._context is not None and seen == self._seen and time.monotonic() - self._looked < LOOK_AGAIN_S:
            return self._context
        self._looked, self._seen = time.monotonic(), seen
        try:
            self._context, self._seen = await asyncio.to_thread(_current, self._folder, self._listening_at)
        except (EngineError, OSError) as error:
            if self._context is None:
                raise
            log.error("the certificate stays the one before: %s", error)
        else:
            log.info("serving with %s", self._folder / CERTIFICATE)
        assert self._context is not None
        return self._context


def server_context(pool: Path, listening_at: str) -> ssl.SSLContext:
    """TLS 1.2 or 1.3 with the pool's certificate, made for this machine's names and the host of ``listening_at`` where
    there is none, and renewed where it is time. Blocks. Raises PermissionDenied, InvalidArgument."""
    return _current(pool / FOLDER, listening_at)[0]


def _current(folder: Path, listening_at: str) -> tuple[ssl.SSLContext, object]:
    """``server_context``, and the versions of the files that it is of."""
    folder.mkdir(mode=0o700, exist_ok=True)
    with _locked(folder):
        key, certificate = folder / KEY, folder / CERTIFICATE
        if not key.exists() and not certificate.exists():
            _issue(folder, _machine_names(listening_at))
            log.info("made %s; give %s to clients as what they trust", certificate, folder / CA)
        else:
            _keep(folder)
        return _loaded(certificate, key), _versions(folder)


def show(pool: Path) -> CertificateInfo:
    """What is served. Raises NotFound, InvalidArgument."""
    folder = pool / FOLDER
    leaf = _leaf(folder / CERTIFICATE)
    return CertificateInfo(
        subject=leaf.subject.rfc4514_string(),
        issuer=leaf.issuer.rfc4514_string(),
        names=[str(each.value) for each in _names_in(leaf)],
        not_before=leaf.not_valid_before_utc.isoformat(),
        not_after=leaf.not_valid_after_utc.isoformat(),
        sha256=leaf.fingerprint(hashes.SHA256()).hex(),
        own=_is_own(folder, leaf),
        authority=str(folder / CA),
    )


def renew(pool: Path, names: Sequence[str]) -> None:
    """A new certificate of the pool's authority, for the names of the one before, this machine's, and ``names``, which
    are DNS names and addresses. Raises InvalidArgument."""
    folder = pool / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    added = [_name(each) for each in names]
    with _locked(folder):
        try:
            before = _names_in(_leaf(folder / CERTIFICATE))
        except (NotFound, InvalidArgument):  # this is how it is mended
            before = []
        _issue(folder, list(dict.fromkeys([*before, *_machine_names("127.0.0.1:0"), *added])))


def replace(pool: Path, certificate: Path, key: Path) -> None:
    """Serve with a certificate (and what signed it, behind it in the file) and a key of somebody else's making.

    Raises NotFound, PermissionDenied: others may read the key; InvalidArgument: they do not belong together, are
    encrypted, too weak, not valid now, or name nobody.
    """
    content, secret = _read(certificate), _read(key)
    if key.stat().st_mode & 0o077:
        raise PermissionDenied(f"{key} may be read by others: chmod 600 {key}, and have it replaced if they could")
    leaf = _leaf(certificate)
    if not leaf.not_valid_before_utc <= _now() <= leaf.not_valid_after_utc:
        begin, end = leaf.not_valid_before_utc.isoformat(), leaf.not_valid_after_utc.isoformat()
        raise InvalidArgument(f"{certificate} is valid from {begin} to {end}")
    if not _names_in(leaf):
        raise InvalidArgument(f"{certificate} has no subject alternative name; no client would take it for a server's")
    folder = pool / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    with _locked(folder):
        _put(folder, content, secret)


# --- making


def _keep(folder: Path) -> None:
    """Renew the certificate if it is the pool's own and in its last third; else say when it ends soon.

    What keeps it from being renewed (no room, an authority's key that is kept elsewhere) is said, and keeps nobody from
    being served with what there is.
    """
    try:
        leaf = _leaf(folder / CERTIFICATE)
    except (NotFound, InvalidArgument):  # whoever loads it says so
        return
    left = leaf.not_valid_after_utc - _now()
    if _is_own(folder, leaf):
        if left < LIFETIME / 3:
            try:
                _issue(folder, _names_in(leaf))
            except (EngineError, OSError) as error:
                ends = leaf.not_valid_after_utc.isoformat()
                log.error("%s, which ends at %s, is not renewed: %s", folder / CERTIFICATE, ends, error)
            else:
                log.info("renewed %s", folder / CERTIFICATE)
    elif left < WARNED_BEFORE:
        log.warning("the certificate %s ends at %s", folder / CERTIFICATE, leaf.not_valid_after_utc.isoformat())


def _issue(folder: Path, names: Sequence[x509.GeneralName]) -> None:
    """A new key, and a certificate of the pool's authority, which is made if there is none."""

    if len(names) > MAX_NAMES:
        raise InvalidArgument(f"a certificate has at most {MAX_NAMES} names")
    authority, signing = _authority(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    ends = min(_now() + LIFETIME, authority.not_valid_after_utc)
    leaf = (
        _builder(_common_name(f"twinvol at {socket.gethostname()}"), authority.subject, key.public_key(), ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(signing, hashes.SHA256())
    )
    _put(folder, _pem(leaf) + _pem(authority), _secret(key))


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The pool's own. Both files or none: the certificate comes second, and a key alone is made again."""

    if (folder / CA).exists():
        try:
            signing = serialization.load_pem_private_key(_read(folder / CA_KEY), None)
            authority = x509.load_pem_x509_certificate(_read(folder / CA))
        except (ValueError, TypeError) as error:
            raise InvalidArgument(f"{folder / CA} and {folder / CA_KEY} are not understood: {error}") from error
        if not isinstance(signing, ec.EllipticCurvePrivateKey):
            raise InvalidArgument(f"{folder / CA_KEY} is no key of an authority that was made here")
        if authority.not_valid_after_utc > _now() and authority.public_key() == signing.public_key():
            return authority, signing
        log.warning("%s is over; there is a new one, which clients have to trust", folder / CA)
    key = ec.generate_private_key(ec.SECP256R1())
    name = _common_name(f"twinvol {os.urandom(4).hex()} at {socket.gethostname()}")  # no two pools' are the same
    certificate = (
        _builder(name, name, key.public_key(), _now() + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(_unfinished(folder / CA_KEY), _secret(key), 0o600)
    _write(_unfinished(folder / CA), _pem(certificate), 0o644)
    for name_of in (CA_KEY, CA):
        _sync(folder)
        _unfinished(folder / name_of).replace(folder / name_of)
    return certificate, key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, ends: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - datetime.timedelta(days=1))
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _machine_names(listening_at: str) -> list[x509.GeneralName]:
    """What clients may call this machine."""

    host = listening_at.rpartition(":")[0].strip("[]")
    names = sorted({"localhost", socket.gethostname(), socket.getfqdn()})
    found: list[x509.GeneralName] = [x509.DNSName(name) for name in names if name.isascii()]
    found += [x509.IPAddress(ipaddress.ip_address(each)) for each in ("127.0.0.1", "::1")]
    address = ipaddress.ip_address(host)
    if not address.is_unspecified and x509.IPAddress(address) not in found:
        found.append(x509.IPAddress(address))
    return found


def _name(text: str) -> x509.GeneralName:
    """A DNS name or an address."""

    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        labels = text.removeprefix("*.").split(".")
        if len(text) > 253 or not all(
            each.replace("-", "a").isalnum() and each.isascii() and 0 < len(each) < 64 for each in labels
        ):
            raise InvalidArgument(f"{text!r} is neither a DNS name nor an address") from None
        return x509.DNSName(text)


# --- the files


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone in it, behind the last step of whoever was interrupted."""
    guard = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if _unfinished(folder / CERTIFICATE).exists() and not _unfinished(folder / KEY).exists():  # a crash
            _unfinished(folder / CERTIFICATE).replace(folder / CERTIFICATE)
            os.fsync(guard)
        yield
    finally:
        os.close(guard)


def _put(folder: Path, certificate: bytes, key: bytes) -> None:
    """Both, as the module says. Raises InvalidArgument: they cannot be used; then nothing has changed."""
    new_key, new_certificate = _unfinished(folder / KEY), _unfinished(folder / CERTIFICATE)
    new_certificate.unlink(missing_ok=True)  # of before a crash; it would count without its key
    _write(new_key, key, 0o600)
    _write(new_certificate, certificate, 0o644)
    try:
        _loaded(new_certificate, new_key)
    except EngineError:
        new_certificate.unlink()
        new_key.unlink()
        raise
    for new in (new_key, new_certificate):
        _sync(folder)
        new.replace(new.with_suffix(""))
    _sync(folder)


def _loaded(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if key.stat().st_mode & 0o077:
            raise PermissionDenied(f"{key} may be read by others: chmod 600 {key}, and replace it")
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as error:  # no file, no PEM, or a key of another certificate
        raise InvalidArgument(f"{certificate} and {key} cannot be used: {error}") from error
    return context


def _no_password() -> bytes:
    """An encrypted key would otherwise be asked for on the terminal."""
    return b""


def _versions(folder: Path) -> object:
    found: list[tuple[int, ...] | None] = []
    for name in (KEY, CERTIFICATE):
        try:
            status = (folder / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_ino, status.st_size, stat.S_IMODE(status.st_mode)))
    return found


def _leaf(path: Path) -> x509.Certificate:
    """The first certificate of a file. Raises NotFound, InvalidArgument."""

    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise InvalidArgument(f"{path} has no certificate in PEM: {error}") from error


def _names_in(leaf: x509.Certificate) -> list[x509.GeneralName]:

    try:
        return list(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []
    except ValueError as error:
        raise InvalidArgument(f"the certificate has names that are not understood: {error}") from error


def _is_own(folder: Path, leaf: x509.Certificate) -> bool:

    try:
        leaf.verify_directly_issued_by(_leaf(folder / CA))
    except (EngineError, InvalidSignature, ValueError, TypeError):
        return False
    return True


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PEM_BYTES + 1)
    except OSError as error:
        raise NotFound("file", f"{path} ({error.strerror})") from error
    if len(content) > MAX_PEM_BYTES:
        raise InvalidArgument(f"{path} is longer than {MAX_PEM_BYTES} bytes")
    return content


def _write(path: Path, content: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)  # it may have another mode
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _common_name(text: str) -> x509.Name:

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _pem(certificate: x509.Certificate) -> bytes:

    return certificate.public_bytes(serialization.Encoding.PEM)


def _secret(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
