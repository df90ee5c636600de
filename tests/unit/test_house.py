"""The house's small rules that no linter states."""

import re
from pathlib import Path

import click
import pytest

from engine.units import align_down, align_up
from twinvol.cli import cli

ROOT = Path(__file__).parents[2]
MEASURED = "side_by_side"  # written by ``python -m bench.side_by_side``
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_alignment_helpers_round_to_whole_units():
    assert (align_down(65537, 65536), align_up(65537, 65536), align_up(65536, 65536)) == (
        65536,
        131072,
        65536,
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page):
    """Tests, scenarios, modules, decisions and links: a page that names what is gone sends its reader astray."""
    text = page.read_text()
    here = {path.name for folder in ("tests", "bench") for path in (ROOT / folder).glob("**/*") if path.is_file()}
    named = set(re.findall(r"\btest_[a-z0-9_]+\.py\b", text)) | set(re.findall(r"`scenarios/(\w+\.sh)`", text))
    assert named - here == set()
    modules = re.findall(r"`((?:bench|docs|engine|iscsi|tests|twinvol)/[\w./-]+\.\w+)`", text)
    assert [name for name in modules if not (ROOT / name).exists()] == []
    decisions = set(re.findall(r"\bdecisions/(\d{4})\b", text))
    assert decisions - {path.name[:4] for path in ROOT.glob("docs/decisions/*.md")} == set()
    links = set(re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text))
    assert [link for link in links if not (page.parent / link).exists() and Path(link).stem != MEASURED] == []


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found += commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return found


def test_every_command_that_a_page_names_exists():
    known = {words[:length] for words in commands(cli) for length in (1, 2, 3)}
    groups = {words[:-1] for words in commands(cli) if len(words) > 1}
    wrong = []
    for page in PAGES:
        for line in re.findall(r"\btwinvol ((?:[a-z]+ ?){1,3})", page.read_text()):
            words = tuple(line.split())
            if words[:1] in groups and words[:2] not in known:
                wrong.append(f"{page.name}: twinvol {line}")
    assert wrong == []


def test_the_page_about_the_command_line_lists_every_command():
    page = (ROOT / "docs/command-line.md").read_text()
    block = page.partition("## Commands\n")[2].partition("\n## ")[0]
    listed = set()
    for line in block.split("\n"):
        first, *others = line.removeprefix("    twinvol ").split(" | ")
        *noun, verb = first.split() or [""]
        listed |= {(*noun, each) for each in (verb, *others)}
    assert listed - {("",)} == set(commands(cli))
