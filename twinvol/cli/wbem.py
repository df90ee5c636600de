"""``twinvol wbem``: who may use the CIM facade, and with what certificate it is served.

Works on the pool's files; a running daemon reads them again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cim_facade.audit import AUDIT_NAME, AuditLog
from cim_facade.auth import MAX_PASSWORD, ROLES, USERS_NAME, UsersFile
from engine.errors import EngineError, InvalidArgument
from engine.secret_files import read_secret
from twinvol.cli.command import Output, fail, json_option, pool_option

_CATALOG = "catalog.sqlite"  # engine.pool_folder.CATALOG_NAME, whose import takes longer than all of this

MAX_SHOWN = 100_000

_LONGEST_LINE = 4 * MAX_PASSWORD + 2


@click.group()
def cli() -> None:
    """The CIM (WBEM) facade: serve --wbem."""


@cli.group()
def user() -> None:
    """Who may use it: an admin everything, a reader what changes nothing. Without users nobody may."""


@user.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True)
@click.option(
    "--password-file",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Holds the password; - for stdin. Else it is asked for.",
)
@pool_option
@json_option
def add(pool: Path, as_json: bool, name: str, role: str, password_file: str | None) -> None:
    """Add a user with a password of 8-256 characters."""
    output = Output(as_json)
    try:
        _users(pool).add(name, role, _password(name, password_file))
        _recorded(pool, "user add", f"{name} ({role})")
    except EngineError as error:
        fail(output, error)
    output.object({"name": name, "role": role}, f"{name} may use the CIM facade as {role}")


@user.command("password")
@click.argument("name")
@click.option(
    "--password-file",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Holds the new password; - for stdin. Else it is asked for.",
)
@pool_option
@json_option
def password_(pool: Path, as_json: bool, name: str, password_file: str | None) -> None:
    """Give a user a new password, at once. Ends lock-outs, as each change of users does."""
    output = Output(as_json)
    try:
        _users(pool).set_password(name, _password(name, password_file))
        _recorded(pool, "user password", name)
    except EngineError as error:
        fail(output, error)
    output.done(f"{name} has a new password")


@user.command("list")
@pool_option
@json_option
def list_(pool: Path, as_json: bool) -> None:
    """All users."""
    output = Output(as_json)
    try:
        accounts: list[dict[str, Any]] = [
            {"name": each.name, "role": each.role} for each in _users(pool).read().values()
        ]
    except EngineError as error:
        fail(output, error)
    output.list("users", accounts, ["name", "role"])


@user.command()
@click.argument("name")
@pool_option
@json_option
def remove(pool: Path, as_json: bool, name: str) -> None:
    """Remove a user, at once."""
    output = Output(as_json)
    try:
        _users(pool).remove(name)
        _recorded(pool, "user remove", name)
    except EngineError as error:
        fail(output, error)
    output.done(f"{name} may not use the CIM facade any more")


@cli.group()
def certificate() -> None:
    """What it is served with. Clients trust POOL/tls/ca.crt, or what signed a certificate of your own."""


@certificate.command("show")
@pool_option
@json_option
def show(pool: Path, as_json: bool) -> None:
    """The certificate that is served."""
    from twinvol import certificate as made  # cryptography takes as long as the rest of a command

    output = Output(as_json)
    try:
        output.object(made.show(_pool(pool)))
    except EngineError as error:
        fail(output, error)


@certificate.command()
@click.option("--name", "names", multiple=True, help="A DNS name or an address that clients use, besides those before.")
@pool_option
@json_option
def renew(pool: Path, as_json: bool, names: tuple[str, ...]) -> None:
    """Make a new one of the pool's own authority. Who trusts the authority goes on; it holds at once."""
    from twinvol import certificate as made

    output = Output(as_json)
    try:
        made.renew(_pool(pool), names)
        info = made.show(pool)
        _recorded(pool, "certificate renew", info.sha256)
        output.object(info)
    except EngineError as error:
        fail(output, error)


@certificate.command()
@click.option(
    "--certificate", "file", type=click.Path(path_type=Path), required=True, help="PEM, its signers behind it."
)
@click.option(
    "--key", type=click.Path(path_type=Path), required=True, help="PEM, not encrypted, nobody else's to read."
)
@pool_option
@json_option
def replace(pool: Path, as_json: bool, file: Path, key: Path) -> None:
    """Serve with a certificate of your own authority, at once. ``renew`` goes back to the pool's."""
    from twinvol import certificate as made

    output = Output(as_json)
    try:
        made.replace(_pool(pool), file, key)
        info = made.show(pool)
        _recorded(pool, "certificate replace", info.sha256)
        output.object(info)
    except EngineError as error:
        fail(output, error)


@cli.group()
def audit() -> None:
    """What was changed through the CIM facade, or in its users and certificate."""


@audit.command("show")
@click.option("--last", type=click.IntRange(1, MAX_SHOWN), default=20, show_default=True, help="How many changes.")
@pool_option
@json_option
def show_audit(pool: Path, as_json: bool, last: int) -> None:
    """The last changes: who, from where, what, and what came of it. Times are UTC."""
    output = Output(as_json)
    try:
        found = AuditLog(_pool(pool) / AUDIT_NAME).last(last)
    except EngineError as error:
        fail(output, error)
    output.list("changes", found, ["at", "user", "address", "operation", "target", "result"])


def _recorded(pool: Path, operation: str, target: str) -> None:
    """In the audit log, behind the change."""
    try:
        AuditLog(pool / AUDIT_NAME).done_by_command(operation, target)
    except OSError as error:
        click.echo(f"done, but not in the audit log: {error}", err=True)


def _users(pool: Path) -> UsersFile:
    return UsersFile(_pool(pool) / USERS_NAME)


def _pool(pool: Path) -> Path:
    if not (pool / _CATALOG).exists():
        raise InvalidArgument(f"{pool} is no pool; the first serve makes one")
    return pool


def _password(name: str, file: str | None) -> str:
    if file == "-":
        try:
            return sys.stdin.buffer.readline(_LONGEST_LINE).decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise InvalidArgument("the password is not UTF-8") from None
    if file is not None:
        return read_secret(Path(file))
    if not sys.stdin.isatty():
        raise click.UsageError(f"no terminal to ask for the password of {name}; give it in a file, or - for stdin")
    return str(click.prompt(f"Password of {name}", hide_input=True, confirmation_prompt=True))
