"""``twinvol target chap``: users and secrets, which come from files, stdin or a hidden prompt, never from arguments."""

from __future__ import annotations

import asyncio
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.errors import EngineError
from engine.secret_files import SECRET_FILE_MAX_BYTES, read_secret, write_secret
from twinvol.cli.command import Output, fail, json_option, with_api

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.api import ChapInfo, EngineApi

GENERATED_BYTES = 12
"""96 random bits, as RFC 7143 section 9.2.1 wants at least; 16 characters, the most that Windows takes."""

_CHANGED = "; from the next login on, sessions that are there stay"

_FILE = click.Path(dir_okay=False, allow_dash=True)


@click.group()
def cli() -> None:
    """Who must prove who they are. Without CHAP users, nobody must. Changes hold from the next login on."""


def _whose(function: Callable[..., Any]) -> Callable[..., Any]:
    """``TARGET`` or ``--discovery``: the callback gets ``target``, None for discovery."""

    def callback(context: click.Context, _: click.Parameter, discovery: bool) -> None:
        if discovery == (context.params.get("target") is not None):
            raise click.UsageError("say either a TARGET or --discovery")

    option = click.option(
        "--discovery", is_flag=True, expose_value=False, callback=callback, help="Of discovery, instead of a target."
    )
    return click.argument("target", required=False, is_eager=True)(option(function))


@cli.command("set")
@_whose
@click.option("--user", help="Initiators log in as this user; one more, or one with a new secret.")
@click.option("--secret-file", type=_FILE, help="Holds the user's secret; - for stdin. Else it is asked for.")
@click.option("--mutual-user", help="What the target calls itself to initiators that want it proven.")
@click.option("--mutual-secret-file", type=_FILE, help="Holds the target's own secret; - for stdin.")
@with_api
async def set_(
    api: EngineApi,
    output: Output,
    target: str | None,
    user: str | None,
    secret_file: str | None,
    mutual_user: str | None,
    mutual_secret_file: str | None,
) -> None:
    """Require CHAP, or change a user. A secret has 12-255 bytes (Windows: 12-16)."""
    if user is None and mutual_user is None:
        raise click.UsageError("say --user, --mutual-user or both")
    for name, file, option in ((user, secret_file, "user"), (mutual_user, mutual_secret_file, "mutual-user")):
        if name is None and file is not None:
            raise click.UsageError(f"a secret without --{option}")
    if secret_file == mutual_secret_file == "-":
        raise click.UsageError("stdin holds one secret; give the other in a file")
    info = await api.target_chap_set(
        target,
        user=user,
        secret=await _secret(user, secret_file),
        mutual_user=mutual_user,
        mutual_secret=await _secret(mutual_user, mutual_secret_file),
    )
    output.object(info, _text(target, info) + _CHANGED)


@cli.command()
@_whose
@with_api
async def show(api: EngineApi, output: Output, target: str | None) -> None:
    """Whether CHAP is required, and as whom."""
    info = await api.target_chap_show(target)
    output.object(info, "\n".join([_text(target, info), *info.reasons]))


@cli.command()
@_whose
@click.option("--user", help="This user; not the last one.")
@click.option("--mutual", is_flag=True, help="The target's own user and secret.")
@with_api
async def remove(api: EngineApi, output: Output, target: str | None, user: str | None, mutual: bool) -> None:
    """Remove a user or the mutual one; with neither named all, so that CHAP is required no longer."""
    info = await api.target_chap_remove(target, user=user, mutual=mutual)
    output.object(info, _text(target, info) + _CHANGED)


@cli.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--pool", hidden=True, help="Taken as by every command; not needed.")
@json_option
def generate(file: Path, pool: str | None, as_json: bool) -> None:
    """Write a new random secret to FILE, mode 0600. Needs no daemon."""
    output = Output(as_json)
    try:
        write_secret(file, secrets.token_urlsafe(GENERATED_BYTES))
    except EngineError as error:
        fail(output, error)
    output.object({"file": str(file)}, f"{file} holds a new secret")


async def _secret(name: str | None, file: str | None) -> str | None:
    """The secret of ``name`` from its file, stdin or a prompt."""
    if name is None:
        return None
    if file == "-":
        text: str = await asyncio.to_thread(sys.stdin.readline, SECRET_FILE_MAX_BYTES)
        return text.rstrip("\r\n")
    if file is not None:
        return await asyncio.to_thread(read_secret, Path(file))
    if not _is_terminal():
        raise click.UsageError(f"no terminal to ask for the secret of {name}; give it in a file, or - for stdin")
    prompt = f"CHAP secret of {name}"
    return await asyncio.to_thread(lambda: str(click.prompt(prompt, hide_input=True, confirmation_prompt=True)))


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _text(target: str | None, info: ChapInfo) -> str:
    owner = "discovery" if target is None else f"target {target}"
    if not info.required:
        return f"{owner} requires no CHAP"
    mutual = f", mutual as {info.mutual_user}" if info.mutual_user is not None else ""
    return f"{owner} requires CHAP of {', '.join(info.users)}{mutual}"
