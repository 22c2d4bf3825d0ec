"""`tinker-async checkpoint`: a module per command, loaded when it is called."""

from __future__ import annotations

import click

from tinker_async.cli.lazy import LazyGroup

_COMMANDS = {
    "copy": "Copy checkpoints into a project.",
    "delete": "Delete checkpoints for good.",
    "download": "Download a checkpoint into a folder.",
    "info": "Show one checkpoint.",
    "list": "List checkpoints of a run, or of all runs.",
    "publish": "Let everybody read checkpoints.",
    "push-hf": "Upload a checkpoint to the Hugging Face Hub.",
    "save": "Save a checkpoint once more, under another name or for another use.",
    "set-ttl": "Let checkpoints expire, or keep them.",
    "unpublish": "Let only their owner read checkpoints again.",
}


@click.group(cls=LazyGroup, lazy=_COMMANDS, package="tinker_async.cli.checkpoint")
def checkpoint() -> None:
    """List, inspect, download and manage checkpoints."""
