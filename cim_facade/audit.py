"""The audit log: who changed what, when, from where, and what came of it. One JSON object in a line of a file.

A change has two lines with the same ``id``: ``asked``, written before it is begun, and ``answered``. What has no answer
was under way when the process ended. ``done`` is a change that was made by a command on the pool's files.

Rules: what was asked is in the file before it happens. No secret is: parameters and properties that are named like
one, and what stands before the @ of a URL, are left out. The file is its owner's (mode 0600), and what is kept is
bounded: ``KEPT`` older files of ``MAX_FILE_BYTES``. Only administrators can write to it by asking; what readers are
refused is in the ordinary log, or they could push out what it holds. Writers of all processes take turns by a lock.
A line is safe from the end of the process; the power of the machine may take the last seconds.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pwd
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AUDIT_NAME = "wbem-audit.jsonl"
MAX_FILE_BYTES = 8 << 20
KEPT = 3
MAX_LINE_BYTES = 16 << 10


class AuditLog:
    """The file ``path`` and the older ones beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, record: dict[str, Any]) -> None:
        """One line; blocks. ``at`` is added. Raises OSError."""
        record = {"at": datetime.datetime.now(datetime.UTC).isoformat(), **record}
        line = json.dumps(record)
        if len(line) > MAX_LINE_BYTES:
            left_out = {each: f"(of {len(line)} bytes)" for each in ("parameters", "outputs") if each in record}
            line = json.dumps(record | left_out)
        with self._opened() as descriptor:
            size = os.fstat(descriptor).st_size
            data = f"{line}\n".encode()
            written = os.write(descriptor, data)
            if written < len(data):
                os.ftruncate(descriptor, size)  # or the next one would be on the same line
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def done_by_command(self, operation: str, target: str) -> None:
        """A change that a command has made; blocks. Raises OSError."""
        self.append({"event": "done", "user": _own_name(), "address": "", "operation": operation, "target": target})

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The file to write to, locked; a new one if it is full."""
        while True:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if not self._is_current(descriptor):
                    continue  # somebody was faster
                if os.fstat(descriptor).st_size >= MAX_FILE_BYTES:
                    self._rotate()
                    continue
                yield descriptor
                return
            finally:
                os.close(descriptor)

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def _rotate(self) -> None:
        for number in range(KEPT, 0, -1):
            newer = self._older(number - 1)
            if newer.exists():
                newer.replace(self._older(number))

    def _older(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path

    def last(self, count: int) -> list[dict[str, Any]]:
        """The last ``count`` changes, oldest first, each with its answer. Blocks; reads backwards as far as needed."""
        found: list[dict[str, Any]] = []
        answers: dict[str, dict[str, Any]] = {}
        for number in range(KEPT + 1):
            try:
                lines = self._older(number).read_bytes().splitlines()
            except FileNotFoundError:
                continue
            for line in reversed(lines):
                record = _parsed(line)
                if record.get("event") == "answered":
                    answers[record.get("id", "")] = record
                elif record.get("event") in ("asked", "done"):
                    found.append(_joined(record, answers))
                if len(found) >= count:
                    return found[::-1]
        return found[::-1]


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:  # half a line, on a disk that was full
        return {}
    return record if isinstance(record, dict) else {}


def _joined(record: dict[str, Any], answers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    shown = {name: value for name, value in record.items() if name not in ("id", "event")}
    if record["event"] == "done":
        return shown | {"result": "done", "answered_at": record["at"]}
    answer = answers.pop(record["id"], None)
    if answer is None:
        return shown | {"result": "no answer", "answered_at": None}
    rest = {name: value for name, value in answer.items() if name not in ("id", "event", "at")}
    if "error" in rest:
        result = f"CIM error {rest['cim_error']}: {rest['error']}" if "cim_error" in rest else str(rest["error"])
    else:
        result = str(rest.get("return_value", "done"))
    return shown | {"result": result, "answered_at": answer["at"], "outputs": rest.get("outputs", {})}


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
