"""`tinker-async completion`: the script that lets a shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_PROGRAM, _VARIABLE = "tinker-async", "_TINKER_ASYNC_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands and options in SHELL.

    \b
    bash   eval "$(tinker-async completion bash)"     in ~/.bashrc
    zsh    eval "$(tinker-async completion zsh)"      in ~/.zshrc, after compinit
    fish   tinker-async completion fish > ~/.config/fish/completions/tinker-async.fish
    """  # noqa: D301  # click's mark: leave these lines as they are
    script = get_completion_class(shell)
    if script is None:
        raise click.UsageError(f"no completion for {shell}")
    command = context.find_root().command
    click.echo(script(command, {}, _PROGRAM, _VARIABLE).source())
