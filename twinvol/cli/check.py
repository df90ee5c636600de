"""``twinvol check``. Needs no daemon: it reads the file itself."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from engine.errors import EngineError
from twinvol.cli.command import Output, fail, json_option
from twinvol.cli.exit_codes import ExitCode


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--pool", hidden=True, help="Taken as by every command; the file says all.")
@click.option("--data", is_flag=True, help="Also read all data that has a digest, and compare.")
@click.option("--repair", is_flag=True, help="Mend a copy, and put it in place if it is clean then; see the manual.")
@json_option
def cli(file: Path, pool: str | None, data: bool, repair: bool, as_json: bool) -> None:
    """Verify every structure of a volume file. Ends with 0 when clean, 9 when damaged, 4 while in use."""
    from engine.tvol.check import check_file  # slow: numpy

    output = Output(as_json)
    if repair:
        _repair(output, file)
    try:
        report = check_file(file, data=data)
    except EngineError as error:
        fail(output, error)
    state = "damaged" if report.damaged else "clean"
    findings = [
        {"severity": finding.severity.value, "where": finding.where, "reason": finding.reason}
        for finding in report.findings
    ]
    lines = [f"{each['severity']}: {each['where']}: {each['reason']}" for each in findings]
    lines.append(f"{file}: {state}" + (", with a journal to replay" if report.replayable else ""))
    output.object(
        {
            "file": report.path,
            "state": state,
            "replayable": report.replayable,
            "findings": findings,
            "findings_left_out": report.findings_left_out,
            "counts": report.counts,
        },
        "\n".join(lines),
    )
    if report.damaged:
        sys.exit(ExitCode.MISMATCH)


def _repair(output: Output, file: Path) -> None:
    """Raises nothing and returns when the file may be checked; what cannot be mended ends the command."""
    import asyncio

    from engine.files import ThreadWorkers, real_env
    from engine.tvol.repair import repair_file

    workers = ThreadWorkers(2)
    env = dataclasses.replace(real_env(1), workers=workers, copier=None)
    try:
        repaired = asyncio.run(repair_file(env, file))
    except EngineError as error:
        fail(output, error)
    finally:
        workers.close()
    if repaired is None:
        click.echo(f"{file}: nothing to repair", err=True)
        return
    for line in repaired.mended or ["the journal was replayed, and both superblock slots written anew"]:
        click.echo(f"mended: {line}", err=True)
    click.echo(f"the damaged file is {repaired.original}; delete it when all is well", err=True)
