"""Questions before what cannot be undone.

The rule: nobody is asked who is not there. Without a terminal the command refuses, and `--yes`
answers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import click

T = TypeVar("T")


def check_terminal(*, dry_run: bool = True) -> None:
    """Refuse to go on where there will be a question and nobody to answer it.

    Args:
        dry_run: Whether the command has `--dry-run`.

    Raises:
        click.UsageError: There is no terminal to ask on.
    """
    if not sys.stdin.isatty():
        instead = ", or --dry-run to see what it would do" if dry_run else ""
        raise click.UsageError(
            f"this asks before, and there is no terminal to ask on: give --yes{instead}"
        )


def agree(question: str) -> None:
    """Go on if the answer is yes.

    Raises:
        click.Abort: The answer is no.
    """
    click.confirm(question, abort=True, err=True)


def yes_option(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command `--yes`, as its argument `yes`."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask.")(command)


def dry_run_option(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command `--dry-run`, as its argument `dry_run`."""
    return click.option(
        "--dry-run", is_flag=True, help="Show what would be done, and change nothing."
    )(command)
