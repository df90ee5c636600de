"""Encryption at rest: the two keys of a family, and where the outer one comes from.

All payload of a volume file is encrypted by AES-256 in XTS mode (IEEE 1619, ``engine.tvol.cipher``) with one *data
key*, made at random when the file is made and never changed. It lies in the file, wrapped (RFC 3394) by a *wrapping
key*, which scrypt (RFC 7914) derives from the content of a key file or of a systemd credential. So a new passphrase
rewrites one small record, and whoever has the file and not the key has nothing.

    file:/path         the file's bytes; mode 0600
    credential:NAME    $CREDENTIALS_DIRECTORY/NAME (systemd.exec(5), LoadCredential=)

What it covers, and what not: see docs/decisions/0021.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import EngineError, InvalidArgument, Locked, NotSupported
from engine.secret_files import read_secret_bytes
from engine.tvol.layout_encryption import MAX_SOURCE_BYTES, SALT_BYTES, EncryptionRecord

KEY_BYTES = 64
"""Two AES-256 keys: one for the data, one for the tweak."""
MIN_SECRET_BYTES = 16
SCRYPT_LOG2_N, SCRYPT_R, SCRYPT_P = 15, 8, 1
"""32 MiB and about 0.1 s for each guess, and for each opening of a file."""
_SCRYPT_MEMORY = 160 << 20

FILE, CREDENTIAL = "file:", "credential:"


@dataclass(frozen=True, slots=True)
class Encryption:
    """The encryption of an open file."""

    record: EncryptionRecord
    key: bytes = field(repr=False)


def begin(source: str) -> Encryption:
    """A new data key, wrapped by the key at ``source``. Blocks for the derivation. Raises as ``_secret``."""
    return _wrapped(secrets.token_bytes(KEY_BYTES), source)


def rewrap(encryption: Encryption, source: str) -> Encryption:
    """The same data key, wrapped by the key at ``source``. Blocks, and raises, as ``begin``."""
    return _wrapped(encryption.key, source)


def unlock(record: EncryptionRecord) -> Encryption:
    """The data key of a file. Blocks for the derivation. Raises Locked: there is no key, or it is another one."""
    from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

    try:
        key = aes_key_unwrap(_derived(record), record.wrapped_key)
    except InvalidUnwrap:
        raise Locked(f"{record.source} does not hold the key of this volume file") from None
    except EngineError as error:
        raise Locked(f"encrypted, and no key: {error}") from error
    return Encryption(record, key)


def check_source(source: str) -> None:
    """Raises InvalidArgument unless ``source`` is the name of a place for a key."""
    kind = next((kind for kind in (FILE, CREDENTIAL) if source.startswith(kind)), None)
    name = source.removeprefix(kind or "")
    if kind is None or not name or len(source.encode()) > MAX_SOURCE_BYTES:
        raise InvalidArgument(f"{source!r} is no key source: file:/path or credential:NAME")
    if kind == FILE and not Path(name).is_absolute():
        raise InvalidArgument(f"key file {name!r} has no absolute path")
    if kind == CREDENTIAL and ("/" in name or name in (".", "..")):
        raise InvalidArgument(f"{name!r} is no name of a credential")


def _wrapped(key: bytes, source: str) -> Encryption:
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap

    check_source(source)
    salt = secrets.token_bytes(SALT_BYTES)
    bare = EncryptionRecord(salt, SCRYPT_LOG2_N, SCRYPT_R, SCRYPT_P, b"", source)
    wrapped = aes_key_wrap(_derived(bare), key)
    return Encryption(EncryptionRecord(salt, SCRYPT_LOG2_N, SCRYPT_R, SCRYPT_P, wrapped, source), key)


def _derived(record: EncryptionRecord) -> bytes:
    n = 1 << record.log2_n
    secret = _secret(record.source)
    return hashlib.scrypt(secret, salt=record.salt, n=n, r=record.r, p=record.p, maxmem=_SCRYPT_MEMORY, dklen=32)


def _secret(source: str) -> bytes:
    """What is at ``source``.

    Raises:
        NotFound: nothing is there.
        PermissionDenied: it may not be read, or others than its owner may read it.
        InvalidArgument: it is too short or too long for a key.
        NotSupported: a credential, and the daemon was not started with credentials.
    """
    check_source(source)
    if source.startswith(FILE):
        path = Path(source.removeprefix(FILE))
    else:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise NotSupported(f"{source}: this daemon has no credentials (systemd's LoadCredential= gives them)")
        path = Path(folder) / source.removeprefix(CREDENTIAL)
    secret = read_secret_bytes(path)
    if len(secret) < MIN_SECRET_BYTES:
        raise InvalidArgument(f"the key in {path} has {len(secret)} bytes; {MIN_SECRET_BYTES} are the least")
    return secret
