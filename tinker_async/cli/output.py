"""What commands print: tables for people, tabs for pipes, one JSON document with `--json`.

The rule: stdout has the result and nothing else, so that it can be read by a program; progress,
notes and errors go to stderr. Text from servers and models steers no terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import click

T = TypeVar("T")


class Column(NamedTuple):
    """A column of a table, or a line about one thing."""

    title: str
    value: Callable[[Any], object]
    """Takes it from the row; see `text_of` for how it is shown."""
    right: bool = False
    """Whether it is set to the right, as numbers are."""


class Measure(NamedTuple):
    """A value that people are shown in words, and programs as it is."""

    exact: object
    words: str


class Output:
    """Prints results in the form that was asked for.

    Args:
        as_json: One JSON document.
        terminal: Whether people look at it; default whether stdout is a terminal.
    """

    def __init__(self, *, as_json: bool = False, terminal: bool | None = None) -> None:
        self.as_json = as_json
        self.terminal = sys.stdout.isatty() if terminal is None else terminal

    def document(self, value: object) -> None:
        """Print a value as an indented JSON document: structs, aware datetimes, numpy-free."""
        import msgspec  # noqa: PLC0415  # `--help` and `version` shall not load it

        text = msgspec.json.format(msgspec.json.encode(value), indent=2)
        click.echo(text.decode())

    def line(self, value: object) -> None:
        """Print a value as JSON on one line, and at once: for results that come one by one."""
        import msgspec  # noqa: PLC0415  # as above

        click.echo(msgspec.json.encode(value).decode())
        sys.stdout.flush()

    def table(self, rows: Iterable[Any], columns: Sequence[Column], *, empty: str = "") -> None:
        """Print a list: a JSON array of the rows, a table, or lines of values and tabs.

        Args:
            rows: Structs, or what JSON has.
            columns: What a table shows of each; JSON has all of it.
            empty: Said on stderr if there are none, and people look.
        """
        rows = list(rows)
        if self.as_json:
            self.document(rows)
        elif not self.terminal:
            for row in rows:
                click.echo("\t".join(_cell(column, row, shown=False) for column in columns))
        elif rows:
            self._rich_table(rows, columns)
        elif empty:
            self.note(empty)

    def record(self, value: Any, fields: Sequence[Column]) -> None:
        """Print one thing: a JSON object, or a line for each field that is not None."""
        if self.as_json:
            self.document(value)
            return
        filled = [field for field in fields if field.value(value) is not None]
        width = max((len(field.title) for field in filled), default=0)
        for field in filled:
            cell = _cell(field, value, shown=self.terminal)
            if self.terminal:
                click.echo(f"{click.style(field.title.ljust(width), bold=True)}  {cell}")
            else:
                click.echo(f"{field.title}\t{cell}")

    def text(self, text: str) -> None:
        """Print a line, not with `--json`, which has the same in its document."""
        if not self.as_json:
            click.echo(printable(text) if self.terminal else text)

    def note(self, text: str) -> None:
        """Print a line on stderr."""
        click.echo(printable(text), err=True)

    def _rich_table(self, rows: list[Any], columns: Sequence[Column]) -> None:
        from rich.box import SIMPLE_HEAD  # noqa: PLC0415  # only terminals need it
        from rich.console import Console  # noqa: PLC0415  # as above
        from rich.table import Table  # noqa: PLC0415  # as above
        from rich.text import Text  # noqa: PLC0415  # as above

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            justify = "right" if column.right else "left"
            table.add_column(column.title, justify=justify, overflow="fold")  # type: ignore[arg-type]  # its own literal type
        for row in rows:
            # As Text: square brackets in names are no markup.
            table.add_row(*(Text(_cell(column, row, shown=True)) for column in columns))
        Console(highlight=False).print(table)


def _cell(column: Column, row: Any, *, shown: bool) -> str:
    value = column.value(row)
    text = text_of(value, shown=shown)
    return " ".join(text.splitlines()) if shown else _escaped(text)


def text_of(value: object, *, shown: bool = True) -> str:
    """Return a value as a cell has it.

    Times are ISO 8601 in UTC, to the second; for people None is a dash and lists have commas.
    """
    if value is None:
        return "-" if shown else ""
    if isinstance(value, Measure):
        return value.words if shown else text_of(value.exact, shown=False)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        value = [f"{key}={text_of(one)}" for key, one in value.items()]
    text = ", ".join(map(text_of, value)) if isinstance(value, (list, tuple)) else str(value)
    return printable(text) if shown else text


def iso(time: datetime) -> str:
    """Return a time as ISO 8601 in UTC, to the second: `2026-11-22T10:15:00Z`."""
    aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def size(count_bytes: float | None) -> str | None:
    """Return a number of bytes for people: `1.5 GB`, in powers of 1000."""
    if count_bytes is None:
        return None
    for unit in ("B", "kB", "MB", "GB"):
        if count_bytes < 1000:
            return f"{count_bytes:.0f} {unit}" if unit == "B" else f"{count_bytes:.1f} {unit}"
        count_bytes /= 1000
    return f"{count_bytes:.1f} TB"


def printable(text: str) -> str:
    """Return a text without what steers a terminal; line ends and tabs stay."""
    return "".join(
        one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}" for one in text
    )


def _escaped(text: str) -> str:
    """One line with no tab: what separates values is in none of them."""
    for character, escape in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(character, escape)
    return text


def output_options(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command `--json`, as its argument `out`, an `Output`."""

    @wraps(command)
    def with_output(*args: Any, as_json: bool, **kwargs: Any) -> T:
        return command(*args, out=Output(as_json=as_json), **kwargs)

    option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    return option(with_output)
