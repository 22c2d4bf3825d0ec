"""`tinker-async version`: what is installed. Loads none of it."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import Any

import click

import tinker_async
from tinker_async.cli.output import Column, Output, output_options

CORE = ("anyio", "certifi", "h2", "httpcore", "msgspec", "numpy", "structlog")
EXTRAS = {
    "cli": ("click", "jinja2", "rich"),
    "demo": ("matplotlib",),
    "hf": ("huggingface_hub",),
    "local": (
        *("click", "gguf", "hypercorn", "peft", "safetensors", "starlette", "tokenizers"),
        *("torch", "transformers", "zstandard"),
    ),
    "tokenizers": ("tokenizers",),
    "torch": ("torch",),
    "zstd": ("zstandard",),
}
"""The libraries that each extra brings."""
EVENT_LOOPS = ("trio", "uvloop")


@click.command()
@output_options
def version(out: Output) -> None:
    """Show the versions of this package, of Python, and of the libraries that it uses.

    An extra that lacks a library cannot be used; `pip install 'tinker-async[EXTRA]'` installs it.
    """
    out.record(found(), COLUMNS)


def found() -> dict[str, Any]:
    """Return all versions; None is what is not installed."""
    implementation = platform.python_implementation()
    return {
        "tinker_async": tinker_async.__version__,
        "python": f"{platform.python_version()} ({implementation})",
        "executable": sys.executable,
        "platform": platform.platform(),
        "libraries": _versions(CORE),
        "extras": {
            name: {"complete": all(versions.values()), "libraries": versions}
            for name, versions in ((name, _versions(EXTRAS[name])) for name in EXTRAS)
        },
        "event_loops": {"asyncio": platform.python_version(), **_versions(EVENT_LOOPS)},
    }


def _versions(names: tuple[str, ...]) -> dict[str, str | None]:
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _listed(versions: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {number or '(missing)'}" for name, number in versions.items())


def _extra(name: str) -> Column:
    return Column(f"extra {name}", lambda all_: _listed(all_["extras"][name]["libraries"]))


COLUMNS = (
    Column("tinker-async", lambda all_: all_["tinker_async"]),
    Column("Python", lambda all_: all_["python"]),
    Column("executable", lambda all_: all_["executable"]),
    Column("platform", lambda all_: all_["platform"]),
    Column("libraries", lambda all_: _listed(all_["libraries"])),
    *(_extra(name) for name in EXTRAS),
    Column("event loops", lambda all_: _listed(all_["event_loops"])),
)
