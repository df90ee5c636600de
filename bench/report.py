"""Rows of a bench beside peers: what was measured, what was wanted, and both as text, Markdown and JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SUBJECT, FLOOR = "twinvol", "floor"
SCHEMA = 1
IDLE_CPUS = 0.15
"""CPUs at work before the start, above which others were busy on the machine: such figures are a look, no result."""


@dataclass(frozen=True, slots=True)
class Goal:
    """Something that the project holds itself to: ``measured`` at least ``wanted``, or at most.

    ``against``: the peer of a ratio; empty when ``measured`` is in the row's unit. ``floor``: the same of the system
    calls alone (``floor.c``): a goal beyond it cannot be reached on that machine by any target that uses them.
    """

    against: str
    wanted: float
    measured: float
    at_most: bool = False
    spread: tuple[float, float] | None = None
    floor: float | None = None

    @property
    def reached(self) -> bool:
        return self._is_met_by(self.measured)

    def _is_met_by(self, value: float) -> bool:
        return value <= self.wanted if self.at_most else value >= self.wanted

    def text(self, *, name: bool = True) -> str:
        """``3.41x of tgtd (>= 3)``; when lost with NOT REACHED, and what the floor has, behind it.

        ``name``: whether to say of whom.
        """
        whose = f"x of {self.against}" if self.against and name else "x" if self.against else ""
        sense = "<=" if self.at_most else ">="
        text = f"{self.measured:.2f}{whose} ({sense} {self.wanted:g})"
        if self.reached:
            return text
        if self.floor is None:
            return f"{text} NOT REACHED"
        return f"{text} NOT REACHED; the floor: {self.floor:.2f}{'' if self._is_met_by(self.floor) else ', neither'}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``values`` by who was measured, in ``unit``; medians. ``cpu_us``: of the server, per I/O.

    ``error``: it could not be measured; then there is nothing else.
    """

    name: str
    unit: str = ""
    values: dict[str, float] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    cpu_us: dict[str, float] = field(default_factory=dict)
    client_us: float | None = None
    latency_us: dict[str, dict[str, float]] = field(default_factory=dict)
    error: str = ""

    @property
    def reached(self) -> bool:
        return not self.error and all(goal.reached for goal in self.goals)

    def goal(self, against: str) -> Goal | None:
        return next((goal for goal in self.goals if goal.against == against), None)


def to_json(head: Mapping[str, Any], rows: Iterable[Row], rounds: Mapping[str, Any]) -> str:
    """The result file. ``head``: machine and settings; ``rounds``: every round of a row, on one line."""
    document = {"bench": "side_by_side", "schema": SCHEMA, **head, "rows": [asdict(row) for row in rows]}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(results)}" for name, results in rounds.items())
    return json.dumps(document, indent=1).removesuffix("\n}") + f',\n "rounds": {{\n{lines}\n }}\n}}\n'


def from_json(text: str) -> tuple[dict[str, Any], list[Row]]:
    """Head and rows of a result file. Raises ValueError for something else."""
    document = json.loads(text)
    if not isinstance(document, dict) or (document.get("bench"), document.get("schema")) != ("side_by_side", SCHEMA):
        raise ValueError(f"this is no result of bench.side_by_side of schema {SCHEMA}")
    rows = []
    for fields in document.pop("rows"):
        goals = [Goal(**{**goal, "spread": tuple(goal["spread"] or ()) or None}) for goal in fields.pop("goals")]
        rows.append(Row(**fields, goals=goals))
    return document, rows


def number(value: float) -> str:
    """Three digits, or whole: 0.241, 4.21, 17.5, 1,335, 172,801."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


def line(row: Row) -> str:
    """One row as text."""
    if row.error:
        return f"{row.name:42} NOT MEASURED: {row.error}"
    values = "  ".join(f"{who} {number(value)}" for who, value in row.values.items())
    goals = ", ".join(goal.text() for goal in row.goals)
    cpu = "; CPU us/IO " + " / ".join(map(number, row.cpu_us.values())) if row.cpu_us else ""
    client = f", client {row.client_us:.1f}" if row.client_us is not None else ""
    text = f"{row.name:42} {values} {row.unit}{cpu}{client}"
    return f"{text}\n{'':42} {goals}" if goals else text


def machine_text(head: Mapping[str, Any]) -> str:
    """One sentence about where and when."""
    machine, settings = head["machine"], head["settings"]
    others = float(machine["busy_cpus"])
    busy = f"; not idle: others kept {others:.1f} CPUs busy before the start" if others > IDLE_CPUS else ""
    return (
        f"{machine['cpu']}, {machine['cpus']} CPUs, Linux {machine['kernel']}, {machine['filesystem']}, "
        f"Python {machine['python']}, {machine['tgtd']}; commit {machine['commit']}, {str(machine['date'])[:10]}; "
        f"{settings['rounds']} rounds of {settings['seconds']:g} s, {settings['size_bytes'] / 2**30:g} GiB{busy}"
    )


def _cells(row: Row, peers: tuple[str, str]) -> list[str]:
    name = row.name + (f" ({row.unit})" if row.unit else "")
    if row.error:
        return [name, f"not measured: {row.error}", "", ""]
    own = number(row.values[SUBJECT]) if SUBJECT in row.values else ""
    if not own:
        own = ", ".join(f"{who} {number(value)}" for who, value in row.values.items())
    cells = [name, own]
    for peer in peers:
        goal = row.goal(peer)
        bold = "" if goal is None or goal.reached else "**"
        cells.append("" if goal is None else f"{bold}{goal.text(name=False)}{bold}")
    for goal in row.goals:
        if goal.against not in peers:
            bold = "" if goal.reached else "**"
            cells[2] = f"{cells[2]} {bold}{goal.text()}{bold}".strip()
    return cells


def markdown(head: Mapping[str, Any], rows: Iterable[Row], plot: str) -> str:
    """The table for people. ``plot``: file name of the picture beside it."""
    peers = ("tgtd", "tgtd tuned")
    rows = list(rows)
    lines = [
        "# twinvol beside tgtd",
        "",
        "Made by `python -m bench.side_by_side`; what the rows mean is in [README.md](README.md).",
        "",
        f"{machine_text(head)}.",
        "",
        f"![The same as a plot]({plot})",
        "",
        "| | twinvol | to tgtd's defaults, or to itself | to tgtd tuned |",
        "|---|---|---|---|",
        *("| " + " | ".join(_cells(row, peers)) + " |" for row in rows),
        "",
        "| server CPU per I/O, us | twinvol | tgtd | tgtd tuned | floor | client | p50 / p99 / p99.9 of twinvol, us |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if not all(peer in row.cpu_us for peer in peers):
            continue
        own = row.latency_us.get(SUBJECT, {})
        latency = " / ".join(number(own[name]) for name in ("p50", "p99", "p99.9") if name in own)
        costs = [number(row.cpu_us[who]) if who in row.cpu_us else "" for who in (SUBJECT, *peers, FLOOR)]
        client = "" if row.client_us is None else number(row.client_us)
        lines.append("| " + " | ".join([row.name, *costs, client, latency]) + " |")
    missed = [row.name for row in rows if not row.reached]
    lines += ["", "Every wanted figure was reached." if not missed else f"Not reached: {'; '.join(missed)}.", ""]
    return "\n".join(lines)
