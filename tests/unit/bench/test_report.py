"""A stored result of ``bench.side_by_side`` as JSON, text, Markdown and SVG."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.plot import svg
from bench.report import Goal, Row, from_json, line, markdown, number, to_json
from bench.rounds import alternate, paired, pooled_latency, user_us

STORED = Path(__file__).with_name("data") / "side_by_side.json"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def stored():
    return from_json(STORED.read_text(encoding="utf-8"))


def boxes(picture: str) -> list[tuple[str, float, float, float, float]]:
    """Each text with left, top, right, bottom; a letter of a sans-serif is about 0.52 of its size wide."""
    found = []
    for text in ElementTree.fromstring(picture).iter(f"{SVG}text"):
        x, y, size = (float(text.attrib[name]) for name in ("x", "y", "font-size"))
        assert text.text
        found.append((text.text, x, y - 0.75 * size, x + 0.52 * size * len(text.text), y + 0.2 * size))
    return found


def test_the_picture_shows_every_row_and_no_text_lies_on_another(stored):
    head, rows = stored
    picture = svg(head, rows)
    root = ElementTree.fromstring(picture)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    texts = boxes(picture)
    shown = " ".join(text for text, *_ in texts)
    for row in rows:
        for goal in row.goals if not row.error else ():
            assert f"{goal.measured:.2f}x" in shown or number(goal.measured) in shown, row.name
    assert 'Not measured: idle sessions: idle sessions: loadgen ended with 3: None <refused> & "gone"' in shown
    for text, left, top, right, bottom in texts:
        assert min(left, top, width - right, height - bottom) >= 0, text
    for (a, *box_a), (b, *box_b) in combinations(texts, 2):
        apart = box_a[2] <= box_b[0] or box_b[2] <= box_a[0] or box_a[3] <= box_b[1] or box_b[3] <= box_a[1]
        assert apart, f"{a!r} and {b!r}"


def test_bars_are_as_long_as_their_ratios(stored):
    head, rows = stored
    goals = [row.goals[0] for row in rows if row.unit == "IO/s" and "tgtd" in row.values]
    bars = [
        float(box.attrib["width"])
        for box in ElementTree.fromstring(svg(head, rows)).iter(f"{SVG}rect")
        if box.attrib.get("height") == "11.0" and box.attrib["fill"] == "#2864b4"
    ][: len(goals)]
    for goal, bar in zip(goals, bars, strict=True):
        assert bar / goal.measured == pytest.approx(bars[0] / goals[0].measured, rel=0.01)


def test_the_markdown_table_has_every_row_and_marks_what_was_lost(stored):
    head, rows = stored
    text = markdown(head, rows, "side_by_side.svg")
    lines = {cells[1].strip(): cells for cells in (line.split("|") for line in text.splitlines() if line[:1] == "|")}
    for row in rows:
        name = f"{row.name} ({row.unit})" if row.unit else row.name
        assert len(lines[name]) == 6, name
        lost = any(not goal.reached for goal in row.goals)
        assert ("NOT REACHED" in "".join(lines[name])) == lost, name
    assert re.search(r"Not reached: .*idle sessions", text)


def test_json_comes_back_as_it_was(stored):
    head, rows = stored
    text = to_json(
        {"machine": head["machine"], "settings": head["settings"]}, rows, {"a row": {"twinvol": [{"iops": 1}]}}
    )
    again_head, again = from_json(text)
    assert again == rows
    assert again_head["rounds"] == {"a row": {"twinvol": [{"iops": 1}]}}
    assert json.loads(to_json({}, [], {}))["rows"] == []
    for wrong in ("[]", '{"bench": "copy_engine"}', '{"bench": "side_by_side", "schema": 0, "rows": []}', "{"):
        with pytest.raises(ValueError, match=r"side_by_side|Expecting"):
            from_json(wrong)


def test_the_command_renders_a_stored_result(tmp_path: Path):
    result = tmp_path / "some.json"
    result.write_bytes(STORED.read_bytes())
    command = [sys.executable, "-m", "bench.plot"]
    subprocess.run([*command, str(result)], check=True)
    assert ElementTree.parse(tmp_path / "some.svg").getroot().tag == f"{SVG}svg"
    assert "](some.svg)" in (tmp_path / "some.md").read_text(encoding="utf-8")
    refused = subprocess.run([*command, str(tmp_path / "none.json")], check=False, capture_output=True, text=True)
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)


@pytest.mark.parametrize(
    ("goal", "reached", "text"),
    [
        (Goal("tgtd", 3.0, 3.0), True, "3.00x of tgtd (>= 3)"),
        (Goal("tgtd", 3.0, 2.99), False, "2.99x of tgtd (>= 3) NOT REACHED"),
        (Goal("without", 1.3, 1.31, at_most=True), False, "1.31x of without (<= 1.3) NOT REACHED"),
        (Goal("", 0.3, 0.24, at_most=True), True, "0.24 (<= 0.3)"),
        (Goal("tgtd", 3.0, 2.9, floor=3.5), False, "2.90x of tgtd (>= 3) NOT REACHED; the floor: 3.50"),
        (Goal("tgtd", 4.5, 2.6, floor=2.9), False, "2.60x of tgtd (>= 4.5) NOT REACHED; the floor: 2.90, neither"),
        (Goal("tgtd", 0.2, 0.3, True, floor=0.19), False, "0.30x of tgtd (<= 0.2) NOT REACHED; the floor: 0.19"),
    ],
)
def test_goals(goal: Goal, reached: bool, text: str):
    assert (goal.reached, goal.text()) == (reached, text)
    assert text in line(Row("a row", "IO/s", {"twinvol": 1.0}, [goal]))
    assert Row("a row", goals=[goal]).reached is reached
    assert not Row("a row", error="gone").reached


def test_contenders_take_turns_and_pairs_are_of_one_round():
    calls = []

    def contender(name, rates):
        def run(number):
            calls.append((number, name))
            return {"iops": rates[number]}

        return run

    results = alternate({"a": contender("a", [4, 9, 8]), "b": contender("b", [2, 3, 8])}, 3)
    assert calls == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]
    assert paired(*([f["iops"] for f in results[who]] for who in "ab")) == (2.0, (1.0, 3.0))


def test_percentiles_are_of_all_rounds_together():
    slow = {"histogram_us": [[10.0, 1], [500.0, 99]], "latency_us": {"max": 700.0}}
    fast = {"histogram_us": [[10.0, 900]], "latency_us": {"max": 12.0}}
    assert pooled_latency([slow, fast]) == {"max": 700.0, "p50": 10.0, "p99": 500.0, "p99.9": 500.0}
    assert user_us([{"server_user_s": 0.5, "ios": 300_000}, {"server_user_s": 0.7, "ios": 500_000}]) == 1.5
