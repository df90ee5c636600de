"""What all commands share: ``--json`` and ``--pool``, the connection, errors and exit codes, and printing."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from engine.errors import EngineError
from twinvol.api.frames import DaemonUnreachable
from twinvol.cli.exit_codes import exit_code_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

SCHEMA = 1
"""Version of the JSON answers. It changes when a field goes or changes its meaning, not when one is added."""

MAX_DIGITS = 20
"""Of a number on the command line."""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}


def size(text: str) -> int:
    """Bytes, or with K, M, G, T, P powers of 1024: 512, 4K, 1G."""
    upper = text.strip().upper()
    digits, unit = (upper[:-1], upper[-1]) if upper and upper[-1] in _UNITS else (upper, "")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > MAX_DIGITS:
        raise click.BadParameter(f"{text!r} is no size; say bytes, or a number with K, M, G or T: 512, 4K, 1G")
    return int(digits) * _UNITS[unit]


MAX_SECONDS = 1000 * 365 * 86_400
"""Of a duration: what is further away is no date that anybody can show."""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def duration(text: str) -> float:
    """Seconds from 90s, 30m, 12h, 7d, 2w."""
    digits, unit = text[:-1], text[-1:]
    if unit not in _SECONDS or not (
        digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS and int(digits)
    ):
        raise click.BadParameter(f"{text!r} is no time; say a number with s, m, h, d or w: 30m, 12h, 7d")
    seconds = int(digits) * _SECONDS[unit]
    if seconds > MAX_SECONDS:
        raise click.BadParameter(f"{text!r} is longer than 1000 years")
    return float(seconds)


def instant(text: str) -> float:
    """Seconds since the epoch from ISO 8601: 2027-01-31T12:00, 2027-01-31T12:00+01:00; UTC without an offset."""
    import datetime

    try:
        parsed = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no instant; say 2027-01-31T12:00 or 2027-01-31T12:00+01:00") from None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.UTC)).timestamp()


def volume_point(text: str) -> tuple[str, str | None]:
    """VOLUME or VOLUME@SNAPSHOT."""
    volume, at, snapshot = text.partition("@")
    if not volume or (at and not snapshot):
        raise click.BadParameter(f"{text!r} is neither VOLUME nor VOLUME@SNAPSHOT")
    return volume, snapshot or None


@dataclass(frozen=True, slots=True)
class Output:
    """How a command answers: ``json`` for programs, else text for people."""

    json: bool

    def object(self, value: Any, text: str | None = None) -> None:
        """One object. ``text``: what people get; without it all fields, one a line."""
        fields = as_json(value)
        if self.json:
            self.line({"schema": SCHEMA, **fields})
        elif text is not None:
            click.echo(text)
        else:
            width = max(map(len, fields), default=0)
            for key, field in fields.items():
                click.echo(f"{key:<{width}}  {_cell(key, field)}")

    def list(self, key: str, values: Sequence[Any], columns: Sequence[str]) -> None:
        """A list of objects under ``key``; people get the named columns."""
        rows = [as_json(value) for value in values]
        if self.json:
            self.line({"schema": SCHEMA, key: rows})
            return
        table = [[column.removesuffix("_bytes").upper() for column in columns]]
        table += [[_cell(column, row[column]) for column in columns] for row in rows]
        widths = [max(len(line[index]) for line in table) for index in range(len(columns))]
        for line in table:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())

    def done(self, text: str) -> None:
        """The command did what was asked, and there is nothing to show."""
        self.object({"done": True}, text)

    def line(self, message: Mapping[str, Any]) -> None:
        """One line of JSON, at once."""
        click.echo(json.dumps(message))
        sys.stdout.flush()


def as_json(value: Any) -> dict[str, Any]:
    """A dataclass or mapping as JSON fields."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else dict(value)  # type: ignore[arg-type]


def size_text(size_bytes: float) -> str:
    """A size for people: 4.0 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size_bytes) < 1024 or unit == "TiB":
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    raise AssertionError


def time_text(seconds: float) -> str:
    """An instant for people, local time."""
    import datetime

    try:
        return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")
    except (ValueError, OverflowError, OSError):  # another program may have said any number
        return f"{seconds:.0f} s after 1970"


def _cell(key: str, value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("_bytes"):
        return size_text(value)
    if key.endswith("_at"):
        return time_text(value)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def fail(output: Output, error: Exception) -> NoReturn:
    """Say what went wrong and end with its exit code."""
    code = exit_code_for(error)
    click.echo(f"twinvol: {error}", err=True)
    if output.json:
        output.line(
            {"schema": SCHEMA, "error": {"type": type(error).__name__, "message": str(error)}, "exit_code": code}
        )
    sys.exit(code)


def pool_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--pool DIR``, or TWINVOL_POOL."""
    return click.option(
        "--pool",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="TWINVOL_POOL",
        required=True,
        show_envvar=True,
        help="The pool's folder.",
    )(function)


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")(function)


def with_api(function: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make a coroutine ``(api, output, **arguments)`` the body of a command that talks to the pool's daemon."""

    @functools.wraps(function)
    def body(pool: Path, as_json: bool, **arguments: Any) -> None:
        output = Output(as_json)

        async def run() -> None:
            from twinvol.api.client import open_api  # slow: pydantic; --help does without

            async with open_api(pool) as api:
                await function(api, output, **arguments)

        try:
            asyncio.run(run())
        except (EngineError, DaemonUnreachable) as error:
            fail(output, error)
        except KeyboardInterrupt:
            sys.exit(130)

    return json_option(pool_option(body))
