"""``twinvol serve``."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import click

from engine.errors import EngineError
from twinvol import config
from twinvol.cli.command import Output, fail, pool_option


@click.command()
@click.option(
    "--iscsi",
    multiple=True,
    metavar="HOST:PORT[,TAG]",
    help=f"A portal, and its portal group if not 1. Repeatable. Default {config.DEFAULT_ISCSI}.",
)
@click.option("--api", metavar="HOST:PORT", help="HTTP API and metrics.")
@click.option("--config", "config_file", type=click.Path(dir_okay=False, path_type=Path), help="Settings in TOML.")
@click.option("--wbem", metavar="HOST:PORT", help="CIM-XML over HTTPS (5989), for the users of: twinvol wbem user.")
@click.option("--wbem-http", metavar="HOST:PORT", help="CIM-XML without TLS or password; a loopback address.")
@click.option("--peer", metavar="HOST:PORT", help="Where other twinvols connect.")
@pool_option
def cli(
    pool: Path,
    iscsi: tuple[str, ...],
    api: str | None,
    config_file: Path | None,
    wbem: str | None,
    wbem_http: str | None,
    peer: str | None,
) -> None:
    """Serve a pool in the foreground, making it in a missing or empty folder.

    Prints one line of JSON when iSCSI can serve a login. SIGTERM stops it cleanly.
    """
    try:
        settings = config.Settings() if config_file is None else config.load(config_file)
        if iscsi:
            settings = replace(settings, iscsi=iscsi)
        if api is not None:
            settings = replace(settings, api=api)
        if wbem is not None:
            settings = replace(settings, wbem=wbem)
        if wbem_http is not None:
            settings = replace(settings, wbem_http=wbem_http)
        if peer is not None:
            settings = replace(settings, peer=peer)
        settings.check()

        gc.disable()  # what is imported stays, and looking through it for garbage takes 20 of 270 ms
        from twinvol import daemon, logs  # slow: numpy, structlog; a refusal does without

        gc.freeze()
        gc.enable()

        logs.configure("data")
        daemon.run(pool.absolute(), settings)
    except EngineError as error:
        fail(Output(json=False), error)
