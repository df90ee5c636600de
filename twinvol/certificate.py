"""The certificate of the management process's TLS listeners: made at the first start, kept in the pool.

    POOL/tls/server.key   mode 0600
    POOL/tls/server.crt   self-signed; what a client is given to trust (``--ca-certs``), or one of your own

Put a key and a certificate of your own there, under these names, and they are used.
"""

from __future__ import annotations

import datetime
import ipaddress
import logging
import os
import socket
import ssl
from typing import TYPE_CHECKING

from engine.errors import InvalidArgument, PermissionDenied

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography import x509

log = logging.getLogger(__name__)

FOLDER, KEY, CERTIFICATE = "tls", "server.key", "server.crt"
LIFETIME = datetime.timedelta(days=3650)


def server_context(pool: Path, listening_at: str) -> ssl.SSLContext:
    """TLS 1.2 or 1.3 with the pool's certificate, made for this machine's names and the host of ``listening_at`` where
    there is none. Blocks. Raises PermissionDenied, InvalidArgument."""
    folder = pool / FOLDER
    key, certificate = folder / KEY, folder / CERTIFICATE
    unfinished = _unfinished(certificate)
    if not key.exists() and not certificate.exists():
        _make(folder, listening_at)
    elif not certificate.exists() and unfinished.exists():  # a crash between the last two steps of _make
        unfinished.replace(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if key.stat().st_mode & 0o077:
            raise PermissionDenied(f"{key} may be read by others: chmod 600 {key}, and replace it")
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:  # no file, no PEM, or a key of another certificate
        raise InvalidArgument(f"{certificate} and {key} cannot be used: {error}") from error
    return context


def _make(folder: Path, listening_at: str) -> None:
    """Both are written under other names, then the key appears, then the certificate: what a crash leaves is made
    again, or has the last step still to be done."""
    from cryptography import x509  # slow
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"twinvol at {socket.gethostname()}"[:64])])
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,  # of itself: who checks strictly looks for it in what is trusted (RFC 5280 4.2.1.3)
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(listening_at)), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    folder.mkdir(mode=0o700, exist_ok=True)
    _write(_unfinished(folder / KEY), secret, 0o600)
    _write(_unfinished(folder / CERTIFICATE), certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    for path in (folder / KEY, folder / CERTIFICATE):
        _unfinished(path).replace(path)
    log.info("made %s; give it to clients as what they trust", folder / CERTIFICATE)


def _names(listening_at: str) -> list[x509.GeneralName]:
    """What clients may call this machine."""
    from cryptography import x509

    host = listening_at.rpartition(":")[0].strip("[]")
    found: list[x509.GeneralName] = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    found.append(x509.IPAddress(ipaddress.ip_address("::1")))
    names = {socket.gethostname(), socket.getfqdn()}
    found += [x509.DNSName(name) for name in sorted(names) if name.isascii() and name != "localhost"]
    address = ipaddress.ip_address(host)
    if not address.is_unspecified and x509.IPAddress(address) not in found:
        found.append(x509.IPAddress(address))
    return found


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _write(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
