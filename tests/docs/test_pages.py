"""The documentation is true: its programs run, its commands exist, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import groupby, takewhile
from pathlib import Path

import pytest
from docs.markdown import ROOT, blocks, pages
from server.processes import start_server

COMMAND_LINE = ROOT / "docs" / "how-to" / "command-line.md"
RUNBOOK = ROOT / "docs" / "how-to" / "durable-training.md"
"""Its program is run by `test_runbook.py`."""
PROGRAMS = [
    page for page in pages() if blocks(page, "python") and page not in (COMMAND_LINE, RUNBOOK)
]
SHELL = ("sh", "bash", "console", "shell")
OTHER_PROGRAMS = {"cd", "curl", "cut", "git", "jq", "ls"}
"""Commands that are not ours to check."""
LINK = re.compile(r"\[[^\]]+\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The embedded engine with the tiny model, as the environment names a server."""
    with start_server(tmp_path_factory.mktemp("engine")) as running:
        yield environment_of(running.url, running.api_key)
        assert running.stop() == 0


def environment_of(url: str, api_key: str) -> dict[str, str]:
    """Return what names a server to a client."""
    return {"TINKER_BASE_URL": url, "TINKER_API_KEY": api_key}


@pytest.mark.parametrize("page", PROGRAMS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_programs_of_a_page_run(page: Path, server: dict[str, str], tmp_path: Path) -> None:
    """All Python blocks in order, as one program, with no other server than the tiny one."""
    run_program(page, server, tmp_path)


def run_program(page: Path, server: dict[str, str], tmp_path: Path) -> str:
    """Run a page's program in a folder; return what it printed."""
    runner = Path(__file__).with_name("run_page.py")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(runner), str(page)],
        cwd=tmp_path,
        env={**os.environ, **server, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    return done.stdout


def test_the_examples_of_the_command_line_run(server: dict[str, str], tmp_path: Path) -> None:
    """Its page's program, then its `sh` blocks in order, as one script, with the tiny server."""
    run_program(COMMAND_LINE, server, tmp_path)
    script = "\n".join(block.text for block in blocks(COMMAND_LINE, "sh"))
    program = tmp_path / "bin" / "tinker-async"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tinker_async.cli "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, **server, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment["PATH"] = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert 0 == done.returncode, done.stdout + done.stderr
    assert script.count("tinker-async ") > 10


def commands() -> Iterator[tuple[str, list[str]]]:
    """Where, and the words of each command of the shell blocks."""
    for page in pages():
        for block in blocks(page, *SHELL):
            text = block.text.replace("\\\n", " ")
            for line in text.splitlines():
                for words in _commands_in(line.removeprefix("$ ")):
                    yield f"{page.relative_to(ROOT)}:{block.line}", words


def _commands_in(line: str) -> Iterator[list[str]]:
    """The words of each part of a pipe, without variables before and files after."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>")
    lexer.whitespace_split = True
    for is_pipe, group in groupby(lexer, "|".__eq__):
        words = [] if is_pipe else list(takewhile(">".__ne__, group))
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]
        if words:
            yield words


def test_the_commands_of_the_pages_exist() -> None:
    """Targets of make, commands and options of the CLI, extras of the package."""
    wrong = [f"{where}: {' '.join(words)}" for where, words in commands() if not exists(words)]

    assert wrong == []
    assert len(list(commands())) > 10


def exists(words: list[str]) -> bool:
    name, *rest = words
    if name == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        return {word for word in rest if "=" not in word} <= targets
    if name == "tinker-async":
        return _cli_accepts(rest)
    if name == "pip":
        return rest[0] == "install" and _extras_exist(rest[1:])
    if name in {"python", "python3"}:
        return (ROOT / rest[0]).is_file() or rest[0] in {"-m", "-c"}
    if name == "export":
        return all("=" in word for word in rest)
    return name in OTHER_PROGRAMS


def _cli_accepts(words: list[str]) -> bool:
    import click

    from tinker_async.cli import main

    command: click.Command = main
    words = list(words)
    while words and isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words[0])
        if found is None:
            break
        command, words = found, words[1:]
    if isinstance(command, click.Group):
        return words in (["--help"], ["--version"])
    known = {"--help"}
    for parameter in command.params:
        known.update(parameter.opts, parameter.secondary_opts)
    return {word for word in words if word.startswith("-")} <= known


def _extras_exist(words: list[str]) -> bool:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = [
        extra.strip()
        for word in words
        for group in re.findall(r"\[([^\]]+)\]", word)
        for extra in group.split(",")
    ]
    return set(named) <= set(extras)


def test_links_between_pages_lead_somewhere() -> None:
    """To a file of the project, and to a heading that it has."""
    broken = [
        f"{page.relative_to(ROOT)}: {target}#{heading}"
        for page in pages()
        for target, heading in LINK.findall(page.read_text(encoding="utf-8"))
        if not _leads_somewhere(page, target, heading)
    ]

    assert broken == []


def _leads_somewhere(page: Path, target: str, heading: str) -> bool:
    file = (page.parent / target).resolve() if target else page
    if not file.exists() or not heading:
        return file.exists()
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return heading in {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


def test_every_page_is_reached_from_the_readme() -> None:
    """No page that nobody finds."""
    reached, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        found = LINK.findall(page.read_text(encoding="utf-8"))
        left += [(page.parent / target).resolve() for target, _ in found if target]

    assert set(pages()) <= reached


def test_fenced_blocks_name_their_language() -> None:
    """A block without one would escape the checks above."""
    known = {"python", "text", "json", "yaml", "toml", "diff", *SHELL}
    unknown = [
        f"{page.relative_to(ROOT)}: {fence!r}"
        for page in pages()
        for fence in re.findall(r"^`{3,}(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)[::2]
        if fence not in known
    ]

    assert unknown == []
