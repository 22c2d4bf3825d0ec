"""Pages of the Tinker service's web console.

They are addresses of that service alone: other servers, the embedded one too, have no console.
"""

from __future__ import annotations

import urllib.parse

from tinker_async.data.paths import parse_path

_CONSOLE = "https://tinker.thinkingmachines.ai"


def session_page(session_id: str) -> str:
    """Return the page of a session."""
    return f"{_CONSOLE}/sessions/{session_id}"


def training_run_page(training_run_id: str) -> str:
    """Return the page of a training run."""
    return f"{_CONSOLE}/training_runs/{training_run_id}"


def checkpoint_page(tinker_path: str) -> str:
    """Return the page of a checkpoint.

    Raises:
        InvalidInputError: Not a checkpoint's path.
    """
    parsed = parse_path(tinker_path, field="tinker_path")
    run, checkpoint = _quoted(parsed.training_run_id), _quoted(parsed.checkpoint_id)
    return f"{_CONSOLE}/checkpoints/{run}/{checkpoint}"


def playground_page(tinker_path: str) -> str:
    """Return the page where one can talk to a checkpoint."""
    return f"{_CONSOLE}/playground?mode=checkpoint&checkpoint={_quoted(tinker_path)}"


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")
