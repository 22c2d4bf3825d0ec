"""The command line: a module per command, loaded when it is called.

`tinker-async --help` imports click and the names of the errors, nothing else. Errors of the
library are one line and a hint, with an exit code by their kind (`cli.exits`).
"""

from __future__ import annotations

import sys

try:
    import click
except ImportError:
    sys.exit("error: the command line needs click\nhint: pip install 'tinker-async[cli]'")

from tinker_async import __version__
from tinker_async.cli.exits import INTERRUPTED, exit_code, first_error, report
from tinker_async.cli.lazy import LazyGroup
from tinker_async.errors import TinkerError

_COMMANDS = {
    "auth": "Store, check and forget the credential.",
    "bench": "Measure a server: samples and steps per second, latencies.",
    "chat": "Talk with a model.",
    "checkpoint": "List, inspect, download and manage checkpoints.",
    "completion": "Print what completes commands in your shell.",
    "config": "Show the settings in force, and where each comes from.",
    "demo": "Fine-tune a small model on this machine and look at what changed.",
    "doctor": "Find what is wrong between here and the server.",
    "model": "List the models of the server.",
    "recover": "Go on with a corrupted run from one of its checkpoints.",
    "run": "List, inspect and watch training runs.",
    "sample": "Sample from a model or a checkpoint.",
    "serve": "Serve the embedded engine to any client of the protocol.",
    "session": "List, search and inspect sessions.",
    "usage": "Show what the account used and stores.",
    "version": "Show the versions of what is installed.",
}
"""Each is an attribute of the same name in the module of the same name."""


class _Main(LazyGroup):
    """Ends with the exit code of the error."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (TinkerError, KeyboardInterrupt, click.Abort, BaseExceptionGroup) as raised:
            error = first_error(raised)
            if isinstance(error, KeyboardInterrupt):
                click.echo("\nAborted!", err=True)
                sys.exit(INTERRUPTED)
            if isinstance(error, TinkerError):
                report(error)
                sys.exit(exit_code(error))
            raise


@click.group(cls=_Main, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="tinker-async")
def main() -> None:
    """Fine-tune language models through the Tinker API, or on this machine."""
