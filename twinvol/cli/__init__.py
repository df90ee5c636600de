"""The command line: one module per noun, loaded when its noun is used (start-up is part of every script's time)."""

from __future__ import annotations

import importlib

import click

from twinvol import __version__

_NOUNS = {
    "demo": "The main job end to end, on temporary files.",
    "serve": "Serve a pool in the foreground.",
    "status": "How the pool is.",
    "pool": "The pool's limits on space.",
    "volume": "Volumes.",
    "snapshot": "Snapshots of volumes.",
    "clone": "Writable copies.",
    "group": "Volumes that are frozen together, at one instant.",
    "replica": "Mirrors of volumes.",
    "peer": "Other twinvols, for replicas there and here.",
    "proof": "Proof documents of replicas.",
    "target": "iSCSI targets, LUNs, access lists and sessions.",
    "wbem": "Users, certificate and audit log of the CIM facade.",
    "job": "Long work.",
    "check": "Verify a volume file.",
}
"""Each has a module of its name here with a command ``cli``."""


class _Lazy(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_NOUNS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _NOUNS:
            return None
        command: click.Command = importlib.import_module(f"twinvol.cli.{cmd_name}").cli
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_NOUNS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version=__version__, prog_name="twinvol")
def cli() -> None:
    """Block storage with a built-in iSCSI target: volumes, snapshots, clones and mirrors."""
