"""What the documentation shows works: its Python runs, its commands are understood, its links lead somewhere.

A block of Python follows `<!-- run -->`, `<!-- run: slow -->` or `<!-- file: name.py -->`. The blocks of a
page run in order and share their names, in an empty folder that holds the files of the page.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sartor.cli import parse

ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]}
GUIDES = sorted(page for page in PAGES if not page.startswith("docs/methods/"))  # those of methods show fragments, too

BLOCK = re.compile(
    r"^(?:<!-- *(?P<mark>[^>]*?) *-->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what the comment above it says, and where it is."""

    language: str
    mark: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    text = PAGES[page].read_text(encoding="utf-8")
    return [
        Block(m["language"], m["mark"] or "", m["text"], text.count("\n", 0, m.start("text")) + 1)
        for m in BLOCK.finditer(text)
    ]


def with_mark(mark: str) -> list[str]:
    return [page for page in sorted(PAGES) if any(block.mark == mark for block in blocks(page))]


def run_page(page: str, folder: Path, marks: set[str]) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        kind, _, name = block.mark.partition(": ")
        if kind == "file":
            (folder / name).write_text(block.text, encoding="utf-8")
        elif block.mark in marks:
            # Blank lines in front, so that a traceback names the line of the page.
            exec(compile("\n" * (block.line - 1) + block.text, str(PAGES[page]), "exec"), names)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty folder to work in; what a page imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.mark.parametrize("page", with_mark("run"))
def test_python_of_a_page_runs(page: str, folder: Path) -> None:
    run_page(page, folder, {"run"})


@pytest.mark.slow
@pytest.mark.parametrize("page", with_mark("run: slow"))
def test_long_python_of_a_page_runs(page: str, folder: Path) -> None:
    run_page(page, folder, {"run", "run: slow"})


@pytest.mark.parametrize("page", GUIDES)
def test_every_block_of_python_is_checked(page: str) -> None:
    python = [block for block in blocks(page) if block.language == "python"]
    assert not [f"{page}:{block.line}" for block in python if not block.mark.startswith(("run", "file: "))]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_commands_are_understood(page: str) -> None:
    shell = "\n".join(block.text for block in blocks(page) if block.language == "sh").replace("\\\n", " ")
    for line in shell.splitlines():
        if line.startswith("sartor "):
            parse(shlex.split(line, comments=True)[1:])


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = PAGES[page].read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert file.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), f"{page} links to {target}"
