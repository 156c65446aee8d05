"""Every command of README and docs is one that its own parser takes."""

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
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
