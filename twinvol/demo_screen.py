"""What the demo shows: a line for each step, with a progress bar while it runs on a terminal."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import TaskID

NAME_WIDTH = 38


class Step:
    """A running step. ``detail`` is shown when it has ended."""

    def __init__(self, bar: Progress | None, task: TaskID | None) -> None:
        self.detail = ""
        self._bar = bar
        self._task = task
        self._began = time.monotonic()
        self._ended: float | None = None

    @property
    def seconds(self) -> float:
        return (self._ended or time.monotonic()) - self._began

    def advance(self, count: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, count)

    def show(self, done: int, total: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total or None)

    def end(self) -> None:
        self._ended = time.monotonic()


class Screen:
    """``quiet``: nothing at all, for ``--json``."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(quiet=quiet, highlight=False)
        self._quiet = quiet

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Step]:
        """A step that takes a while; it gets its line when it has succeeded."""
        if self._quiet or not self._console.is_terminal:
            step = Step(None, None)
            yield step
        else:
            columns = (
                TextColumn("  ... {task.description}"),
                BarColumn(bar_width=24),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
            )
            with Progress(*columns, console=self._console, transient=True) as bar:
                step = Step(bar, bar.add_task(name.ljust(NAME_WIDTH - 6), total=total))
                yield step
        step.end()
        self.line(name, step.detail, step.seconds)

    def line(self, name: str, detail: str, seconds: float | None = None) -> None:
        took = "" if seconds is None else f"{seconds:7.2f} s"
        self._console.print(f"  [green]ok[/]  {name:<{NAME_WIDTH}} {took:>9}  {detail}", soft_wrap=True)

    def summary(self, result: dict[str, Any]) -> None:
        """The copies with their roots, the checks, and the verdict."""
        copies = Table("copy", "made", "size", box=None, pad_edge=False, header_style="bold")
        copies.add_column("root of its hash tree", no_wrap=True, min_width=32)
        for copy in result["copies"]:
            size = f"{copy['bytes'] / 2**20:.0f} MiB" if copy["bytes"] else "shared"
            copies.add_row(copy["name"], copy["made"], size, copy["root"])
        self._console.print()
        self._console.print(copies)
        self._console.print()
        held = sum(check["ok"] for check in result["checks"])
        if result["ok"]:
            self._console.print(f"[bold green]All {held} checks held[/] in {result['seconds']:.1f} s.")
        else:
            self._console.print(
                f"[bold red]FAILED[/] after {held} checks that held: {result['failure']}", soft_wrap=True
            )
