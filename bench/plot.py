"""A result file as a picture: ``python -m bench.plot RESULT.json`` writes the SVG and the Markdown beside it.

Three panels: rates relative to tgtd, server CPU relative to tgtd, and what is held against a limit. Plain SVG 1.1 with
a ground of its own, so it reads alike on a light and on a dark page; no scripts, no fonts but the viewer's sans-serif.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from bench.report import FLOOR, SUBJECT, Row, from_json, machine_text, markdown, number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WIDTH, MARGIN = 1000, 24
BARS_LEFT, BARS_RIGHT = 440, 860
"""Names are left of the bars, figures right of them."""
BAR, PITCH_ONE, PITCH_TWO = 11, 28, 40
INK, SOFT, GRID, GROUND = "#1f2328", "#59636e", "#d8dee4", "#ffffff"
BLUE, LIGHT_BLUE, GREEN, RED = "#2864b4", "#8db4e2", "#3b8257", "#b3261e"
PEERS = (("tgtd", "tgtd's defaults", BLUE), ("tgtd tuned", "tgtd tuned", LIGHT_BLUE))


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: how long, what is written behind it, where its goal and the floor are."""

    value: float
    label: str
    colour: str
    wanted: float | None = None
    reached: bool = True
    floor: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A name, a smaller note under it, and its bars."""

    name: str
    note: str
    bars: Sequence[Bar]


class Canvas:
    """SVG elements, and how far down they reach."""

    def __init__(self) -> None:
        self._elements: list[str] = []
        self.y = float(MARGIN)

    def text(self, x: float, y: float, text: str, *, size: int = 13, colour: str = INK, bold: bool = False) -> None:
        weight = ' font-weight="600"' if bold else ""
        self._elements.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}"{weight}>{escape(text)}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self._elements.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" fill="{colour}"/>'
        )

    def rule(self, x: float, top: float, bottom: float, colour: str, *, width: float = 1, dash: str = "") -> None:
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self._elements.append(
            f'<line x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{bottom:.1f}" stroke="{colour}" '
            f'stroke-width="{width:g}"{dashes}/>'
        )

    def document(self, title: str) -> str:
        height = self.y + MARGIN
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
            f'viewBox="0 0 {WIDTH} {height:.0f}" role="img" font-family="system-ui, Helvetica, Arial, sans-serif">\n'
            f"<title>{escape(title)}</title>\n"
            f'<rect width="{WIDTH}" height="{height:.0f}" rx="8" fill="{GROUND}"/>\n'
            + "\n".join(self._elements)
            + "\n</svg>\n"
        )


def _legend(canvas: Canvas) -> None:
    """The peers' colours and the goals' mark, on the line that the canvas has reached."""
    x = float(BARS_LEFT)
    for _, title, colour in PEERS:
        canvas.box(x, canvas.y - 9, 12, 10, colour)
        canvas.text(x + 17, canvas.y, f"against {title}", size=12, colour=SOFT)
        x += 90 + 6.6 * len(title)
    canvas.rule(x + 3, canvas.y - 10, canvas.y + 2, INK, width=2)
    canvas.text(x + 10, canvas.y, "wanted", size=12, colour=SOFT)
    canvas.rule(x + 63, canvas.y - 10, canvas.y + 2, RED, width=2)
    canvas.text(x + 70, canvas.y, "the floor", size=12, colour=SOFT)


def _panel(canvas: Canvas, title: str, note: str, lines: Sequence[Line], *, legend: bool = True) -> None:
    """One panel of horizontal bars from a common zero, with a dashed line at 1."""
    if not lines:
        return
    longest = max(max(bar.value, bar.wanted or 0, bar.floor or 0) for line in lines for bar in line.bars)
    step = next(s for s in (0.25, 0.5, 1, 2, 5, 10, 50, 1e3, 1e9) if longest / s <= 8)
    limit = step * (int(longest / step) + 1)
    scale = (BARS_RIGHT - BARS_LEFT) / limit
    canvas.y += 34
    canvas.text(MARGIN, canvas.y, title, size=16, bold=True)
    canvas.y += 18
    canvas.text(MARGIN, canvas.y, note, size=12, colour=SOFT)
    if legend:
        _legend(canvas)
    canvas.y += 14
    top = canvas.y
    bottom = top + sum(PITCH_TWO if len(line.bars) > 1 else PITCH_ONE for line in lines)
    for tick in range(int(limit / step) + 1):
        x = BARS_LEFT + tick * step * scale
        canvas.rule(x, top, bottom, GRID)
        canvas.text(x - 4 * len(f"{tick * step:g}x") + 2, bottom + 14, f"{tick * step:g}x", size=11, colour=SOFT)
    canvas.rule(BARS_LEFT + scale, top, bottom, SOFT, dash="4 3")
    for line in lines:
        _bars(canvas, line, scale)
    canvas.y += 18


def _bars(canvas: Canvas, line: Line, scale: float) -> None:
    pitch = PITCH_TWO if len(line.bars) > 1 else PITCH_ONE
    middle = canvas.y + pitch / 2
    canvas.text(MARGIN, middle - 2 if line.note else middle + 4, line.name)
    if line.note:
        canvas.text(MARGIN, middle + 12, line.note, size=11, colour=SOFT)
    y = middle - len(line.bars) * (BAR + 2) / 2 + 1
    for bar in line.bars:
        width = bar.value * scale
        canvas.box(BARS_LEFT, y, width, BAR, bar.colour)
        end = width
        if bar.wanted is not None:
            canvas.rule(BARS_LEFT + bar.wanted * scale, y - 1, y + BAR + 1, INK, width=2)
            end = max(end, bar.wanted * scale + 2)
        if bar.floor is not None:
            canvas.rule(BARS_LEFT + bar.floor * scale, y - 1, y + BAR + 1, RED, width=2)
            end = max(end, bar.floor * scale + 2)
        label = bar.label if bar.reached else f"{bar.label}, not reached"
        canvas.box(BARS_LEFT + end + 4, y, 5.8 * len(label), BAR, GROUND)  # so that no line runs through letters
        canvas.text(BARS_LEFT + end + 6, y + BAR - 2, label, size=11, colour=INK if bar.reached else RED)
        y += BAR + 2
    canvas.y += pitch


def _beside_peers(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.unit == "IO/s" and all(peer in row.values for peer, _, _ in PEERS)]


def _rate_lines(rows: Sequence[Row]) -> list[Line]:
    lines = []
    for row in _beside_peers(rows):
        bars = [
            Bar(goal.measured, f"{goal.measured:.2f}x", colour, goal.wanted, goal.reached, goal.floor)
            for peer, _, colour in PEERS
            if (goal := row.goal(peer)) is not None
        ]
        others = " and ".join(number(row.values[peer]) for peer, _, _ in PEERS)
        lines.append(Line(row.name, f"{number(row.values[SUBJECT])} a second, tgtd {others}", bars))
    return lines


def _cpu_lines(rows: Sequence[Row]) -> list[Line]:
    judged = {row.name.removeprefix("server CPU per I/O, "): row for row in rows if row.unit == "us"}
    lines = []
    for row in _beside_peers(rows):
        own = row.cpu_us[SUBJECT]
        bars = []
        for peer, _, colour in PEERS:
            goal = judged[row.name].goal(peer) if row.name in judged else None
            ratio = goal.measured if goal else own / max(row.cpu_us[peer], 1e-9)
            least = row.cpu_us[FLOOR] / max(row.cpu_us[peer], 1e-9) if FLOOR in row.cpu_us else None
            wanted = goal.wanted if goal else None
            bars.append(Bar(ratio, f"{ratio:.2f}x", colour, wanted, goal is None or goal.reached, least))
        others = " and ".join(number(row.cpu_us[peer]) for peer, _, _ in PEERS)
        lines.append(Line(row.name, f"{number(own)} us, tgtd {others} us", bars))
    return lines


def _limit_lines(rows: Sequence[Row]) -> list[Line]:
    """What is no ratio to a peer, as a share of what is allowed."""
    lines = []
    for row in rows:
        for goal in row.goals:
            if goal.against in [peer for peer, _, _ in PEERS]:
                continue
            share = goal.measured / goal.wanted if goal.at_most else goal.wanted / max(goal.measured, 1e-9)
            unit = "x" if goal.against else f" {row.unit}"
            sense = "at most" if goal.at_most else "at least"
            label = f"{number(goal.measured)}{unit}, {sense} {goal.wanted:g}{unit}"
            lines.append(Line(row.name, "", [Bar(share, label, GREEN if goal.reached else RED)]))
    return lines


def svg(head: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The picture. Rows that could not be measured are named at its end."""
    canvas = Canvas()
    canvas.text(MARGIN, canvas.y + 12, "twinvol beside tgtd", size=22, bold=True)
    canvas.y += 16
    for part in textwrap.wrap(machine_text(head), 145):
        canvas.y += 17
        canvas.text(MARGIN, canvas.y, part, size=12, colour=SOFT)
    medians = "medians of paired rounds"
    _panel(canvas, "I/O rate relative to tgtd: longer is better", medians, _rate_lines(rows))
    _panel(canvas, "Server CPU per I/O relative to tgtd: shorter is better", medians, _cpu_lines(rows))
    limits = "twinvol's share of what is allowed; 1x is the limit"
    _panel(canvas, "Held against a limit: shorter is better", limits, _limit_lines(rows), legend=False)
    for row in rows:
        if row.error:
            canvas.y += 18
            canvas.text(MARGIN, canvas.y, f"Not measured: {row.name}: {row.error[:100]}", size=12, colour=RED)
    return canvas.document("twinvol beside tgtd: rates and server CPU per I/O")


def main() -> int:
    """Render a stored result again; 0, or 2 for a file that is none."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("result", type=Path, help="JSON file of bench.side_by_side")
    result: Path = parser.parse_args().result
    try:
        head, rows = from_json(result.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"bench: {result}: {error}", file=sys.stderr)
        return 2
    picture = result.with_suffix(".svg")
    picture.write_text(svg(head, rows), encoding="utf-8")
    result.with_suffix(".md").write_text(markdown(head, rows, picture.name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
