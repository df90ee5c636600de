"""Who a pool is to its peers: a key, a self-signed certificate that goes with it, and TLS by pinned certificates.

    POOL/peers/identity.pem   key and certificate in one file, mode 0600, replaced by a rename
    POOL/peers/next.pem       while a rotation waits for peers to hear of it (``engine.peers.registry``)

A peer is whoever proves to have the key of a certificate that was pinned when it was enrolled. Nobody signs for
anybody: names and dates in a certificate mean nothing here, so it has none that could be wrong (RFC 5280 section
4.1.2.5 has the value for "no expiration"). Trust ends by removing the pin.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import secrets
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from engine.errors import InvalidArgument
from engine.files import translate
from engine.peers.frames import MAX_HELLO_BYTES
from engine.secret_files import read_secret, sync_folder, write_secret

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = "peers"
CURRENT, NEXT = "identity.pem", "next.pem"

_BEGIN = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_END = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)

MAX_CERTIFICATE_BYTES = MAX_HELLO_BYTES // 4
"""Of a peer's certificate; ours has about 400."""


def fingerprint_of(certificate_der: bytes) -> str:
    """SHA-256 of a certificate, in hexadecimal: what is pinned."""
    return hashlib.sha256(certificate_der).hexdigest()


def same(one: str, other: str) -> bool:
    """Whether two fingerprints are equal, in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())


def check_certificate(pem: str) -> str:
    """The fingerprint of a certificate that a peer has sent. Raises InvalidArgument: it is none of ours.

    Only what TLS will be given is looked at: it parses, is alone, and is not a certificate that could vouch for others.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ValueError, x509.ExtensionNotFound, ssl.SSLError) as error:
        raise InvalidArgument(f"a peer's certificate is none that can be pinned: {error}") from None
    if len(pem) > MAX_CERTIFICATE_BYTES or pem.count("BEGIN") != 1 or authority:
        raise InvalidArgument("a peer's certificate is none that can be pinned")
    return fingerprint_of(certificate.public_bytes(serialization.Encoding.DER))


@dataclass(frozen=True, slots=True)
class Identity:
    """A key and its certificate. ``path``: the file with both; ``certificate``: the public part, as PEM."""

    path: Path
    certificate: str
    fingerprint: str

    @classmethod
    def make(cls, path: Path) -> Identity:
        """A new one at ``path``, durable on return. Blocks. Raises AlreadyExists, PermissionDenied, OutOfSpace."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"twinvol {secrets.token_hex(8)}")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_BEGIN)
            .not_valid_after(_END)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        public = certificate.public_bytes(serialization.Encoding.PEM).decode()
        folder = path.parent
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            sync_folder(folder.parent)
        except OSError as error:
            raise translate(error, f"making {folder}") from error
        scratch = path.with_suffix(".new")
        scratch.unlink(missing_ok=True)
        write_secret(scratch, secret + public)
        _rename(scratch, path)
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Blocks. Raises NotFound, PermissionDenied (others may read it), InvalidArgument (it is damaged)."""
        text = read_secret(path)
        begin = text.find("-----BEGIN CERTIFICATE-----")
        if begin < 0:
            raise InvalidArgument(f"{path} holds no certificate")
        public = text[begin:].strip() + "\n"
        return cls(path, public, check_certificate(public))

    def become(self, path: Path) -> Identity:
        """Move it to ``path``, replacing what is there, durably. Blocks."""
        _rename(self.path, path)
        return Identity(path, self.certificate, self.fingerprint)


def client_context(identity: Identity, pinned: str) -> ssl.SSLContext:
    """For connections to the peer with the ``pinned`` certificate (PEM; may be several), proving who we are."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, identity)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=pinned)
    return context


def enrolment_context() -> ssl.SSLContext:
    """For a connection whose other side is known by its fingerprint only: the caller compares that, then speaks."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, None)
    context.verify_mode = ssl.CERT_NONE
    return context


def server_context(identity: Identity, pinned: str) -> ssl.SSLContext:
    """For connections from peers: one that shows a certificate has one of the ``pinned`` ones (PEM, one behind the
    other). One that shows none may enrol, and nothing else; the caller sees to that."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0  # no connection goes on with an old one's session: pins are asked each time
    if pinned:
        context.load_verify_locations(cadata=pinned)
    return context


def _context(protocol: int, identity: Identity | None) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    if identity is not None:
        try:
            context.load_cert_chain(identity.path)
        except (OSError, ssl.SSLError) as error:
            raise InvalidArgument(f"{identity.path} cannot be used: {error}") from error
    return context


def _rename(old: Path, new: Path) -> None:
    try:
        old.replace(new)
        sync_folder(new.parent)
    except OSError as error:
        raise translate(error, f"writing {new}") from error
