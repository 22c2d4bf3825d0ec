"""What all commands share: exit codes, output for people, pipes and programs, and lazy loading."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pty
import re
import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner
from docs.markdown import ROOT

import tinker_async as ta
from tinker_async import errors
from tinker_async.cli import exits, main, version
from tinker_async.cli.output import Column, Output, iso, printable, size

if TYPE_CHECKING:
    from cli.conftest import Cli

ROWS: list[dict[str, Any]] = [
    {
        "name": "a\tb",
        "n": 1,
        "at": datetime(2026, 1, 2, 3, 4, 5, 999, tzinfo=UTC),
        "tags": ["x", "y"],
    },
    {"name": "[bold]\x07z", "n": None, "at": None, "tags": []},
]
COLUMNS = [
    Column("Name", lambda row: row["name"]),
    Column("N", lambda row: row["n"], right=True),
    Column("At", lambda row: row["at"]),
    Column("Tags", lambda row: row["tags"]),
]


# Exit codes


def error_classes() -> list[type[errors.TinkerError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [cls for cls in found if issubclass(cls, errors.TinkerError)]


@pytest.mark.parametrize("cls", error_classes())
def test_every_error_has_an_exit_code_with_a_meaning(cls: type[errors.TinkerError]) -> None:
    """Only those that no command can meet have the code of the rest."""
    code = exits.exit_code(cls.__new__(cls))

    assert code in exits.MEANINGS
    # A new error fails here: give it a row in the table of `exits`.
    assert (code == exits.OTHER) == (cls in (errors.TinkerError, errors.OperationWithdrawnError))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ta.ConfigError("x"), 2),
        (ta.MissingExtraError("x"), 2),
        (ta.AuthenticationError("x", status=401), 3),
        (ta.PermissionDeniedError("x", status=403), 4),
        (ta.NotFoundError("x", status=404), 5),
        (ta.ConflictError("x", status=409), 6),
        (ta.ConnectError("x"), 7),
        (ta.RequestTimeoutError("x"), 7),
        (ta.InternalServerError("x", status=500), 8),
        (ta.APIStatusError("x", status=418), 8),
        (ta.SessionLostError("x"), 9),
        (ta.DiskError("x", path="p", reason="full"), 10),
    ],
)
def test_errors_of_a_kind_share_a_code(error: ta.TinkerError, code: int) -> None:
    """The documented ones."""
    assert code == exits.exit_code(error)


@pytest.mark.parametrize("nested", [False, True])
def test_an_error_is_one_line_a_hint_and_a_code(
    nested: bool, monkeypatch: pytest.MonkeyPatch, alone: Cli
) -> None:
    """Alone or out of task groups; what a server says in it steers no terminal."""
    error: Exception = ta.NotFoundError("no \x1b[2Jrun\nhere", status=404, hint="look")
    raise_in(monkeypatch, ExceptionGroup("a", [ExceptionGroup("b", [error])]) if nested else error)

    result = alone("version")
    assert (5, "") == (result.exit_code, result.stdout)
    assert "error: no  [2Jrun here\nhint: look\n" == result.stderr


@pytest.mark.parametrize(
    "interrupt", [KeyboardInterrupt(), BaseExceptionGroup("t", [KeyboardInterrupt()])]
)
def test_ctrl_c_has_a_code_of_its_own(
    interrupt: BaseException, monkeypatch: pytest.MonkeyPatch, alone: Cli
) -> None:
    """130, as shells have it; trio may raise it in a group."""
    raise_in(monkeypatch, interrupt)

    result = alone("version")
    assert (130, "") == (result.exit_code, result.stdout)
    assert "Aborted!" in result.stderr


def test_a_defect_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch, alone: Cli) -> None:
    """What is no error of the library leaves as it is, with its traceback."""
    raise_in(monkeypatch, ExceptionGroup("t", [ZeroDivisionError()]))
    with pytest.raises(ExceptionGroup):
        alone("version")


def raise_in(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    found = main.get_command(click.Context(main), "version")
    assert found is not None
    monkeypatch.setattr(found, "callback", fail)


def test_the_documented_exit_codes_are_those_of_the_code() -> None:
    """Each with its meaning."""
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    table = page.partition("## Exit codes")[2].partition("<!--")[0]
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", table, re.MULTILINE)
    assert list(exits.MEANINGS.items()) == [(int(code), meaning) for code, meaning in rows]


# Versions


def test_the_extras_are_those_of_the_package() -> None:
    """What `version` looks for is what pyproject.toml installs; the developers' extras aside."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = tomllib.loads(text)["project"]["optional-dependencies"]
    libraries = {
        name: {re.split(r"[\[<>=]", one)[0] for one in lines if not one.startswith("tinker-async")}
        for name, lines in declared.items()
        if name not in ("dev", "judge")
    }
    assert libraries == {name: {*names} for name, names in version.EXTRAS.items()}
    core = tomllib.loads(text)["project"]["dependencies"]
    assert {*version.CORE} == {re.split(r"[<>=]", one)[0] for one in core}


def test_versions_say_what_is_missing(alone: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extra without one of its libraries is not complete."""
    monkeypatch.setitem(version.EXTRAS, "local", ("click", "no-such-library"))
    found = json.loads(alone("version", "--json").stdout)

    assert ta.__version__ == found["tinker_async"]
    assert found["extras"]["local"]["complete"] is False
    assert found["extras"]["cli"]["complete"] is True
    assert found["libraries"]["anyio"] == importlib.metadata.version("anyio")
    assert "no-such-library (missing)" in alone("version").stdout


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_options(shell: str, alone: Cli) -> None:
    """By click's own protocol; the script itself names the variable that asks for it."""
    script = alone("completion", shell)
    assert (0, True) == (script.exit_code, "_TINKER_ASYNC_COMPLETE" in script.stdout)

    def completed(words: str) -> str:
        alone.env |= {
            "_TINKER_ASYNC_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": words.rpartition(" ")[2] if shell == "fish" else str(words.count(" ")),
        }
        return CliRunner().invoke(main, env=alone.env, prog_name="tinker-async").stdout

    assert "doctor" in completed("tinker-async do")
    assert "--no-sample" in completed("tinker-async doctor --no")


# Output


def test_json_is_one_document_with_all_of_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    """Not only the columns of the table."""
    Output(as_json=True).table([*ROWS], COLUMNS[:1])
    Output(as_json=True).note("n")

    found = capsys.readouterr()
    assert [1, None] == [row["n"] for row in json.loads(found.out)]
    assert "2026-01-02T03:04:05.000999Z" == json.loads(found.out)[0]["at"]
    assert "n\n" == found.err


def test_an_empty_list_is_an_empty_array(capsys: pytest.CaptureFixture[str]) -> None:
    """For programs; people are told, pipes get nothing."""
    Output(as_json=True).table([], COLUMNS, empty="nothing")
    Output(terminal=False).table([], COLUMNS, empty="nothing")
    Output(terminal=True).table([], COLUMNS, empty="nothing")

    assert ("[]\n", "nothing\n") == capsys.readouterr()


def test_pipes_get_a_line_for_each_row_and_a_tab_between_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No header; a tab in a value is written so that it is none."""
    Output(terminal=False).table(ROWS, COLUMNS)

    lines = capsys.readouterr().out.splitlines()
    assert ["a\\tb", "1", "2026-01-02T03:04:05Z", "x, y"] == lines[0].split("\t")
    assert ["[bold]\x07z", "", "", ""] == lines[1].split("\t")


def test_people_get_a_table_that_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Names are neither markup nor escape sequences."""
    Output(terminal=True).table(ROWS, COLUMNS)

    text = capsys.readouterr().out
    assert all(column.title in text for column in COLUMNS)
    assert "[bold]\N{REPLACEMENT CHARACTER}z" in text


def test_a_record_leaves_out_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each field."""
    Output(terminal=False).record(ROWS[1], COLUMNS)
    Output(terminal=True).record(ROWS[0] | {"name": "x"}, COLUMNS)
    Output(as_json=True).record({"name": "x"}, COLUMNS)

    text = capsys.readouterr().out
    assert text.startswith("Name\t[bold]\x07z\nTags\t\n")
    assert click.unstyle(text).endswith(
        'Name  x\nN     1\nAt    2026-01-02T03:04:05Z\nTags  x, y\n{\n  "name": "x"\n}\n'
    )


def test_values_have_forms_that_people_know() -> None:
    """Times in UTC to the second, sizes in powers of 1000."""
    there = timezone(timedelta(hours=2))
    assert "2026-01-02T01:04:05Z" == iso(datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=there))
    assert ["0 B", "999 B", "1.5 kB", "2.0 GB", "1000.0 TB", None] == [
        size(count) for count in (0, 999, 1500, 2_000_000_000, 10**15, None)
    ]
    assert "a\tb\n\N{REPLACEMENT CHARACTER}" == printable("a\tb\n\x07")


# As a user has it


def test_a_terminal_gets_a_table_and_a_pipe_gets_none(alone: Cli) -> None:
    """A real one: what decides is where stdout leads."""
    ours, theirs = pty.openpty()
    with alone.process("version", stdout=theirs) as child:
        os.close(theirs)
        text = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # Linux's end of a terminal that nobody holds
                break
            if not part:
                break
            text += part
    os.close(ours)
    assert b"\x1b[1m" in text
    with alone.process("version") as child:
        assert child.stdout is not None
        assert "tinker-async\t" == child.stdout.readline()[:13]


def test_a_reader_that_leaves_is_no_traceback(alone: Cli) -> None:
    """`| head` ends quietly."""
    with alone.process("completion", "bash", stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert "Traceback" not in child.stderr.read()


@pytest.mark.parametrize("arguments", [["--help"], ["version"], ["completion", "zsh"]])
def test_what_needs_no_server_loads_no_client(arguments: list[str]) -> None:
    """click and the standard library: it answers at once."""
    code = f"""
import contextlib, io, sys
from tinker_async.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main({arguments!r})
heavy = {{"anyio", "asyncio", "msgspec", "numpy", "rich", "ssl", "trio", "torch", "transformers"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "[]\n" == done.stdout


def test_the_list_of_commands_is_the_modules() -> None:
    """Each name of the help can be loaded, and has a help of its own."""
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        assert name == command.name
        assert command.help
    assert main.get_command(context, "nonsense") is None


@pytest.mark.parametrize(
    ("group", "official", "name"),
    [("auth", "whoami", "status"), ("session", "export-trace", "trace")],
)
def test_names_of_the_official_command_line_are_understood(
    group: str, official: str, name: str
) -> None:
    """They are the same command, and its help has one of them."""
    context = click.Context(main)
    found = main.get_command(context, group)
    assert isinstance(found, click.Group)
    assert found.get_command(context, name) is found.get_command(context, official)
    assert name in found.list_commands(context)
    assert official not in found.list_commands(context)


def test_examples_in_a_help_have_a_line_each(alone: Cli) -> None:
    """They are not run together, and no mark of click is left in them."""
    for words, first in (
        (("checkpoint", "delete"), "  checkpoint delete tinker://RUN/weights/0001"),
        (("completion",), '  bash   eval "$(tinker-async completion bash)"'),
    ):
        shown = alone(*words, "--help").stdout
        assert "\\b" not in shown
        assert [one for one in shown.splitlines() if one.startswith(first)]
