"""Where keys come from, and what a wrong one does."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from engine.encryption import begin, check_source, rewrap, unlock
from engine.errors import EngineError, InvalidArgument, Locked, NotFound, NotSupported, PermissionDenied
from engine.tvol.layout import LayoutError
from engine.tvol.layout_encryption import EncryptionRecord

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_bytes(bytes(range(200, 232)))
    return path


def test_the_data_key_comes_back_with_the_key_and_only_with_it(key_file: Path):
    made = begin(f"file:{key_file}")
    record = EncryptionRecord.parse(made.record.serialize())
    assert record == made.record
    assert unlock(record).key == made.key
    assert made.key not in made.record.serialize()
    key_file.write_bytes(b"another key of enough bytes")
    with pytest.raises(Locked, match="does not hold the key"):
        unlock(record)
    key_file.chmod(0o640)
    with pytest.raises(Locked, match="chmod 600"):
        unlock(record)
    key_file.unlink()
    with pytest.raises(Locked, match="no secret file"):
        unlock(record)


def test_another_key_for_the_same_data(key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = begin(f"file:{key_file}")
    (tmp_path / "new").touch(0o600)
    (tmp_path / "new").write_text("correct horse battery staple\n", encoding="utf-8")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    again = rewrap(made, "credential:new")
    key_file.unlink()
    assert unlock(again.record).key == made.key
    assert again.record.salt != made.record.salt
    assert repr(made.key) not in repr(again)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("", InvalidArgument),
        ("/key", InvalidArgument),
        ("file:", InvalidArgument),
        ("file:key", InvalidArgument),
        ("credential:../key", InvalidArgument),
        ("file:/" + "x" * 1024, InvalidArgument),
        ("file:/nowhere/key", NotFound),
        ("credential:key", NotSupported),
    ],
)
def test_sources_that_make_no_sense(source: str, error: type[EngineError], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    if error is InvalidArgument:
        with pytest.raises(InvalidArgument):
            check_source(source)
    with pytest.raises(error):
        begin(source)


def test_a_key_that_is_too_short_or_that_others_may_read(key_file: Path):
    key_file.write_bytes(b"fifteen bytes..\n")
    with pytest.raises(InvalidArgument, match="15 bytes; 16 are the least"):
        begin(f"file:{key_file}")
    key_file.write_bytes(bytes(32))
    key_file.chmod(0o644)
    with pytest.raises(PermissionDenied):
        begin(f"file:{key_file}")


def test_a_record_that_asks_for_too_much_memory_or_for_another_cipher_is_refused(key_file: Path):
    record = begin(f"file:{key_file}").record
    for wrong in (
        dataclasses.replace(record, log2_n=30).serialize(),
        b"\2" + record.serialize()[1:],
        record.serialize() + b"\0",
        record.serialize()[:50],
    ):
        with pytest.raises(LayoutError):
            EncryptionRecord.parse(wrong)
