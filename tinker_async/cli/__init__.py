"""The command line: a module per command, loaded when it is called.

`tinker-async --help` imports neither torch nor transformers; errors of the library are
one line and a hint, with exit code 2 for a wrong setting and 1 for the rest.
"""

from __future__ import annotations

import importlib
import sys

try:
    import click
except ImportError:
    sys.exit("error: the command line needs click\nhint: pip install 'tinker-async[cli]'")

from tinker_async.errors import ConfigError, TinkerError

_COMMANDS = {
    "bench": "Measure a server: samples and steps per second, latencies.",
    "demo": "Fine-tune a small model on this machine and look at what changed.",
    "serve": "Serve the embedded engine to any client of the protocol.",
}
"""Each is an attribute of the same name in the module of the same name."""


class _LazyGroup(click.Group):
    """Knows the names of the commands without importing them."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except TinkerError as error:
            report(error)
            sys.exit(2 if isinstance(error, ConfigError) else 1)


def report(error: TinkerError) -> None:
    """Print an error for people: one line, and the hint."""
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tinker-async")
def main() -> None:
    """Fine-tune language models through the Tinker API, or on this machine."""
