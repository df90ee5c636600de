"""The one transition table of copies (``engine.copy_state``) as docs/replication.md has it.

python -m tests.support.transition_table       writes it there
"""

from __future__ import annotations

from pathlib import Path

from engine.copy_state import TRANSITIONS, CopyEvent, CopyState, label

DOCUMENT = Path(__file__).parents[2] / "docs" / "replication.md"
BEGIN, END = "<!-- transitions -->\n", "<!-- end of transitions -->\n"


def rendered() -> str:
    """A diagram, and the table behind it: from a state, by what happens, to a state with its ProgressStatus."""
    edges: dict[tuple[CopyState, CopyState], list[CopyEvent]] = {}
    for (state, event), (to, _) in TRANSITIONS.items():
        edges.setdefault((state, to), []).append(event)
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [
        f"    {label(state)} --> {label(to)}: {', '.join(event.value for event in events)}"
        for (state, to), events in edges.items()
    ]
    lines += ["```", "", "| CopyState | what happens | CopyState | ProgressStatus |", "|---|---|---|---|"]
    lines += [
        f"| {label(state)} | {event.value} | {label(to)} | {label(progress)} |"
        for (state, event), (to, progress) in TRANSITIONS.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + rendered() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
