"""Groups of commands: such as know names without importing, and such as know official names.

The rule: what runs nothing loads nothing. Only the module of the command that is called, or
whose own help is asked for, is imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click
from click.shell_completion import CompletionItem


class LazyGroup(click.Group):
    """A group whose commands are loaded when they are called.

    Args:
        *args: As for `click.Group`.
        lazy: What each command is for, by its name. It is the attribute of that name (`_` for
            each `-`), or with `_command` after it, of the module of that name in `package`.
        package: Where the modules are.
        **kwargs: As for `click.Group`.
    """

    def __init__(
        self,
        *args: Any,
        lazy: Mapping[str, str],
        package: str = "tinker_async.cli",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy
        self._package = package

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names, in alphabetical order."""
        return sorted(self._lazy)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of that name."""
        if cmd_name not in self._lazy:
            return None
        name = cmd_name.replace("-", "_")
        module = vars(importlib.import_module(f"{self._package}.{name}"))
        command: click.Command = module.get(f"{name}_command") or module[name]
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin so, from the table alone."""
        found = [
            CompletionItem(name, help=text)
            for name, text in sorted(self._lazy.items())
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands of the help, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(self._lazy.items()))


class PortedGroup(click.Group):
    """A group that takes the official command line's names, too. Its help has only our own.

    Args:
        *args: As for `click.Group`.
        ported: Our name of a command, by the official one.
        **kwargs: As for `click.Group`.
    """

    def __init__(self, *args: Any, ported: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ported = ported

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by either of its names."""
        return super().get_command(ctx, self._ported.get(cmd_name, cmd_name))
