"""``twinvol demo``."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click

from twinvol.cli.command import Output, fail, json_option


@click.command()
@click.option("--serve", is_flag=True, help="Serve an array for WBEM clients instead, until Ctrl-C.")
@click.option("--wbem", metavar="HOST:PORT", help="With --serve: where. Default 127.0.0.1, any port.")
@json_option
def cli(serve: bool, wbem: str | None, as_json: bool) -> None:
    """The main job end to end on temporary files: serve, snapshot, clone, mirror, verify, kill -9, verify again.

    Takes less than a minute and needs no root. Ends with 0 only if everything held.

    With --serve: an array with volumes, snapshots, clones, mirrors in all modes, a group, a peer and jobs, to try WBEM
    clients on. Prints its URL, a user and the password (with --json one object, and where the password is), and removes
    everything on Ctrl-C or SIGTERM.
    """
    output = Output(as_json)
    if serve:
        _serve(output, wbem)
        return
    if wbem is not None:
        raise click.UsageError("--wbem goes with --serve")
    from twinvol import demo  # slow: the engine, the initiator and rich
    from twinvol.demo_screen import Screen

    screen = Screen(quiet=as_json)
    result = asyncio.run(demo.run(screen))
    if as_json:
        output.object(result)
    sys.exit(0 if result["ok"] else 1)


def _serve(output: Output, wbem: str | None) -> None:
    from twinvol import demo_array  # slow, as above
    from twinvol.demo import DemoFailed

    if not output.json:
        click.echo("making an array: a few seconds ...", err=True)

    def ready(facts: dict[str, Any], password: str) -> None:
        if output.json:
            output.object(facts)
            return
        said = password if sys.stdout.isatty() else f"in {facts['password_file']}"
        click.echo(
            f"URL       {facts['url']}\n"
            f"user      {facts['user']}\n"
            f"password  {said}\n"
            f"trust     {facts['ca_certs']}\n"
            f"iSCSI     {', '.join(facts['iscsi'])}\n"
            f"pool      {facts['pool']} (TWINVOL_POOL; its peer's: {facts['peer_pool']})\n"
            "Ctrl-C ends it and removes everything."
        )

    try:
        asyncio.run(demo_array.serve(wbem or demo_array.LOOPBACK, ready))
    except DemoFailed as error:
        fail(output, error)
