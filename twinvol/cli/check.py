"""``twinvol check``. Needs no daemon: it reads the file itself."""

from __future__ import annotations

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
@json_option
def cli(file: Path, pool: str | None, data: bool, as_json: bool) -> None:
    """Verify every structure of a volume file. Ends with 0 when clean, 9 when damaged, 4 while in use."""
    from engine.tvol.check import check_file  # slow: numpy

    output = Output(as_json)
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
