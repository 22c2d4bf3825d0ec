"""Prompts of `tinker-async sample`: from the command line, a file of lines, or JSON lines.

The rule: a file is read as it is used, so that it may be of any length; what is wrong is told
with the number of its line.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import click
import msgspec

_FORM = 'a line is "text", {"prompt": "text"} or {"tokens": [1, 2]}'


class Prompt(msgspec.Struct, frozen=True):
    """What to continue: a text, or token ids."""

    index: int
    """Its number, from 0."""
    text: str | None = None
    tokens: list[int] | None = None
    extra: dict[str, Any] = {}
    """The other fields of its line, which come back with the result."""


def prompts_of(file: IO[str], *, as_json: bool) -> Iterator[Prompt]:
    """Read prompts, one in a line; empty lines are none.

    Args:
        file: Open for reading.
        as_json: Whether lines are JSON; otherwise each is a text.

    Raises:
        click.UsageError: A line is not of the form.
    """
    index = 0
    for number, line in enumerate(file, start=1):
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        yield _from_json(text, index, number) if as_json else Prompt(index, text)
        index += 1


def _from_json(line: str, index: int, number: int) -> Prompt:
    try:
        found: Any = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise click.UsageError(f"line {number} is not JSON ({error}): {_FORM}") from error
    if isinstance(found, str):
        return Prompt(index, found)
    if not isinstance(found, dict):
        raise click.UsageError(f"line {number} is no prompt: {_FORM}")
    text, tokens = found.pop("prompt", None), found.pop("tokens", None)
    if isinstance(text, str) and tokens is None:
        return Prompt(index, text, extra=found)
    if text is None and _are_tokens(tokens):
        return Prompt(index, tokens=tokens, extra=found)
    raise click.UsageError(f"line {number} is no prompt: {_FORM}")


def _are_tokens(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(token) is int and 0 <= token < 1 << 31 for token in value)
    )
