"""``twinvol demo``."""

from __future__ import annotations

import asyncio
import sys

import click

from twinvol.cli.command import Output, json_option


@click.command()
@json_option
def cli(as_json: bool) -> None:
    """The main job end to end on temporary files: serve, snapshot, clone, mirror, verify, kill -9, verify again.

    Takes less than a minute and needs no root. Ends with 0 only if everything held.
    """
    from twinvol import demo  # slow: the engine, the initiator and rich
    from twinvol.demo_screen import Screen

    screen = Screen(quiet=as_json)
    result = asyncio.run(demo.run(screen))
    if as_json:
        Output(json=True).object(result)
    sys.exit(0 if result["ok"] else 1)
