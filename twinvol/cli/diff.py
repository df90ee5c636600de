"""Changed and allocated extents, for ``snapshot diff`` and ``volume diff``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from engine.errors import InvalidArgument
from twinvol.cli.command import SCHEMA, Output, as_json, size_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from engine.api import DiffInfo, EngineApi

COLLECTED_MAX = 200_000
"""Extents that fit into one JSON answer; more are told line by line."""


def diff_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--digests`` and ``--progress``."""
    text = "With --json: a line for each extent as it is found, then one that ends them."
    function = click.option("--progress", is_flag=True, help=text)(function)
    text = "With the xxh3_128 of each 64 KiB of data, which is read for it."
    return click.option("--digests", is_flag=True, help=text)(function)


async def pages(
    api: EngineApi, volume: str, older: str | None, newer: str | None, *, digests: bool
) -> AsyncIterator[DiffInfo]:
    """A diff in pages, all about one instant."""
    page = await api.snapshot_diff(volume, older, newer, digests=digests)
    yield page
    while page.next_offset is not None:
        page = await api.snapshot_diff(volume, older, newer, offset=page.next_offset, digests=digests, point=page.point)
        yield page


async def print_diff(
    api: EngineApi, output: Output, volume: str, older: str | None, newer: str | None, *, digests: bool, lines: bool
) -> None:
    """Tell a diff; with ``lines``, or for people, in bounded memory."""
    count = changed = size = 0
    collected: list[dict[str, Any]] = []
    async for page in pages(api, volume, older, newer, digests=digests):
        count, changed, size = count + len(page.extents), changed + page.changed_bytes, page.size_bytes
        for extent in page.extents:
            fields = as_json(extent)
            if extent.digests is None:
                del fields["digests"]
            if output.json and not lines:
                collected.append(fields)
            elif output.json:
                output.line({"schema": SCHEMA, "event": "extent", **fields})
            else:
                click.echo(f"{extent.offset:>16} {extent.length:>14}  {extent.state}")
                for digest in extent.digests or ():
                    click.echo(f"{'':33}{digest}")
        if len(collected) > COLLECTED_MAX:
            raise InvalidArgument(f"there are more than {COLLECTED_MAX} extents; take them with --json --progress")
    if not output.json:
        click.echo(f"{count} extents, {size_text(changed)}")
        return
    ends = {"volume": volume, "older": older, "newer": newer, "size_bytes": size, "changed_bytes": changed}
    if lines:
        output.line({"schema": SCHEMA, "event": "end", **ends, "count": count})
    else:
        output.line({"schema": SCHEMA, **ends, "extents": collected})
