"""The parts of the reference that are made from the code.

Run as a program it writes them: python tests/docs/reference_pages.py
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import click
from docs.markdown import ROOT, replace_generated

import tinker_async
from docs import fault_tables
from tinker_async import TinkerError

REFERENCE = ROOT / "docs" / "reference"
COLUMNS = 80

CLIENTS = ("Session", "TrainingClient", "SamplingClient", "RestClient", "APIFuture")
HIDDEN_METHODS = {"resolve", "fail", "on_settled", "while_wanted", "note_queue_state"}
"""Public for the parts of the session, not for users."""


def parts() -> dict[Path, dict[str, str]]:
    """Return the text of each generated part, by page and name."""
    return {
        REFERENCE / "errors.md": {"tree": _error_tree(), "errors": _error_list()},
        REFERENCE / "cli.md": {"help": _help()},
        REFERENCE / "faults.md": fault_tables.parts(),
        REFERENCE / "api.md": {
            "clients": "".join(map(_client, CLIENTS)),
            "data": _names(_is_data),
            "errors": _names(_is_error),
        },
    }


# Errors


def _error_tree() -> str:
    lines = [_tree_line(cls, depth) for cls, depth in _family(TinkerError, 0)]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def _family(cls: type[TinkerError], depth: int) -> Iterator[tuple[type[TinkerError], int]]:
    yield cls, depth
    for child in cls.__subclasses__():
        if child.__module__ == TinkerError.__module__:
            yield from _family(child, depth + 1)


def _tree_line(cls: type[TinkerError], depth: int) -> str:
    builtin = [base.__name__ for base in cls.__bases__ if not issubclass(base, TinkerError)]
    also = f"  (also {', '.join(builtin)})" if builtin and cls is not TinkerError else ""
    again = "  *" if cls.retryable else ""
    return "    " * depth + cls.__name__ + again + also


def _error_list() -> str:
    entries = []
    for cls, _ in _family(TinkerError, 0):
        facts = [
            name for name in inspect.get_annotations(cls) if name not in ("retryable", "_advice")
        ]
        attributes = f"Attributes: {', '.join(f'`{name}`' for name in facts)}. " if facts else ""
        entries.append(f"**`{cls.__name__}`**: {_prose(cls)} {attributes}".rstrip() + "\n")
    return "\n".join(entries)


def _prose(value: object) -> str:
    """The whole docstring up to `Args:`, as one paragraph."""
    text = (inspect.getdoc(value) or "").partition("\nArgs:")[0].partition("\nRaises:")[0]
    return " ".join(text.split())


# Command line


def _help() -> str:
    from click.testing import CliRunner

    from tinker_async.cli import main

    texts = []
    for words in commands_of(main):
        result = CliRunner().invoke(
            main, [*words, "--help"], prog_name="tinker-async", terminal_width=COLUMNS
        )
        name = " ".join(("tinker-async", *words))
        texts.append(f"## {name}\n\n```text\n{result.output}```\n")
    return "\n".join(texts)


def commands_of(command: click.Command, *words: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of a command, and of all those below it."""
    yield words
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from commands_of(below, *words, name)


# Names


def _client(name: str) -> str:
    cls = getattr(tinker_async, name)
    rows = [
        f"| `{_call(member, value)}` | {_first_line(value)} |"
        for member, value in members_of(cls).items()
        if not member.startswith("_") and member not in HIDDEN_METHODS and _is_documented(value)
    ]
    return f"### {name}\n\n{_first_line(cls)}\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n\n"


def members_of(cls: type) -> dict[str, Any]:
    """Return what a class has of its own, and from the parts that it is put together from."""
    own = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == "tinker_async"]
    return {name: value for base in reversed(own) for name, value in vars(base).items()}


def _is_documented(value: object) -> bool:
    return isinstance(value, (property, classmethod)) or inspect.isfunction(value)


def _call(member: str, value: Any) -> str:
    if isinstance(value, property):
        return member
    function = value.__func__ if isinstance(value, classmethod) else value
    parameters = [name for name in inspect.signature(function).parameters if name not in _IMPLIED]
    call = f"{member}({', '.join(parameters)})"
    returns = str(inspect.get_annotations(function).get("return", ""))
    if inspect.isasyncgenfunction(function) or returns.startswith("AsyncIterator["):
        return f"async for ... in {call}"
    return f"await {call}" if inspect.iscoroutinefunction(function) else call


_IMPLIED = {"self", "cls"}


def _first_line(value: object) -> str:
    return " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, TinkerError)


def _is_data(value: object) -> bool:
    return not _is_error(value) and getattr(value, "__name__", "") not in CLIENTS


def _names(belongs: Callable[[object], bool]) -> str:
    rows = []
    for name in sorted(tinker_async.__all__, key=str.lower):
        value = getattr(tinker_async, name)
        if belongs(value):
            documented = isinstance(value, type) or inspect.isfunction(value)
            says = _first_line(value) if documented else _VALUES[name]
            rows.append(f"| `{name}` | {says} |")
    return "| | |\n|---|---|\n" + "\n".join(rows) + "\n"


_VALUES = {
    "CheckpointType": "What a checkpoint serves for: `training`, `sampler` or `external`.",
    "CustomLossInputRank": "Rank of an input of a custom loss: 0, 1 or 2.",
    "ModelInputChunk": "Any of the chunks that a `ModelInput` is made of.",
    "OptimParams": "Parameters of an optimizer's step: `AdamParams`, `DimuonParams`, or a mapping.",
    "OptimizerConfig": "A model's optimizer: one of the configs, or a mapping with a `type`.",
    "PerDatumLossFn": "The loss of one datum, for `Session.create_custom_loss`.",
    "ProvenanceSpans": "Consecutive spans that cover one field of a `Datum`.",
    "SamplingClientKind": "`snapshot` or `inflight`: which weights a sampler has.",
    "Event": "Any of the events that a session tells of.",
    "LossFnType": "The names of losses that the protocol knows; a server may know more.",
    "__version__": "The version of this package.",
}

if __name__ == "__main__":
    written = parts()
    if importlib.util.find_spec("tinker") is not None:  # the extra `judge`
        from docs.parity import page as parity

        written[REFERENCE / "parity.md"] = parity.parts()
    for page, texts in written.items():
        replace_generated(page, texts)
