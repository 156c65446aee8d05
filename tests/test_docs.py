"""Commands of README and docs are taken by their parsers; messages and tests that docs name are there."""

import argparse
import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from jobs import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "cluster").rglob("*.md"))]
COMMAND = re.compile(r"\s*(\$ )?([A-Z_]+=\S+ )*(\.venv/bin/)?tips-ray [a-z]+( |$)")


def _commands(page: Path) -> Iterator[str]:
    """Lines of code blocks that run `tips-ray`, joined where they go on."""
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if COMMAND.match(line):
                yield line.strip()


def _words(line: str) -> list[str]:
    """Words after `tips-ray`, up to a pipe, a redirection or a comment."""
    words = shlex.split(line, comments=True)
    start = next(place for place, word in enumerate(words) if word.endswith("tips-ray")) + 1
    end = next((place for place, word in enumerate(words) if word in ("|", ">", "&&", "&", ";")), len(words))
    return words[start:end]


def test_some_commands_are_found():
    assert sum(1 for page in PAGES for _ in _commands(page)) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_taken_by_their_parsers(page, capsys):
    for line in _commands(page):
        command, *words = _words(line)
        assert command in cli.COMMANDS, line
        _parse(command, words, line)


def _parse(command: str, words: list[str], line: str) -> None:
    job = importlib.import_module(f"jobs.{command}")
    parser = argparse.ArgumentParser(exit_on_error=False)
    job.add_arguments(parser)
    own, after = cli.split(words) if getattr(job, "TAKES_COMMAND", False) else (words, [])
    try:
        parser.parse_intermixed_args(own)
    except (argparse.ArgumentError, SystemExit) as error:
        raise AssertionError(f"{line}: {error}") from None
    if after:
        _parse(after[0], after[1:], line)


TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"
MESSAGES = re.findall(r"^\| `([^`]+)` \|", TROUBLESHOOTING.read_text(), re.MULTILINE)
LEAST_CHARACTERS = 12


@cache
def _literals() -> str:
    """Texts of the sources, one a line; values inside of them are NUL characters."""
    files = [path for folder in ("tips_ray", "jobs", "cluster", "tuning") for path in (ROOT / folder).rglob("*.py")]
    return "\n".join(text for path in files for text in _texts(ast.parse(path.read_text())))


def _texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_messages_to_look_for_are_found():
    assert len(MESSAGES) > 30 and len(set(MESSAGES)) == len(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_troubleshooting_page_is_in_the_sources(message):
    longest = max(message.split("..."), key=len).strip()
    assert len(longest) >= LEAST_CHARACTERS and longest in _literals(), longest


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_that_a_page_names_are_there(page):
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text()):
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_to_a_file_and_its_heading(page):
    for target, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not heading or heading in _headings(file), f"{target}#{heading}"


def _headings(page: Path) -> set[str]:
    """Anchors as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
