"""Every public name of the official package that is installed, read from the package itself."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MODULES = ("tinker", "tinker.types", "tinker.auth")
ALSO = (
    "tinker.lib.api_future_impl.QueueState",
    "tinker.lib.api_future_impl.QueueStateObserver",
    "tinker.lib.retry_handler.RetryConfig",
    "tinker.lib.telemetry.Telemetry",
    "tinker.types.topk_logprobs.TopkLogprobs",
)
"""Not exported, but arguments, results or bases of what is."""

PYDANTIC = {"model_config"}
"""Said in the body of a model, and no field of it."""
VERBS = {"get", "post", "put", "delete"}
API = "/api/v1"


@functools.cache
def objects() -> Mapping[str, Any]:
    """Return classes, functions and values by their names, without the modules before them."""
    found: dict[str, Any] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        public = getattr(module, "__all__", None) or _imported(module)
        prefix = "auth." if name == "tinker.auth" else ""
        found |= {prefix + one: getattr(module, one) for one in public}
    for path in ALSO:
        home, _, name = path.rpartition(".")
        found[name] = getattr(importlib.import_module(home), name)
    return {name: value for name, value in found.items() if not inspect.ismodule(value)}


def _imported(module: Any) -> list[str]:
    """The names of a module that only imports: those whose home is another module."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    ]


def members(cls: type) -> list[str]:
    """Return fields, methods and properties: of the class, and of bases that have no row."""
    listed = {id(value) for value in objects().values()}
    names: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "tinker" and (
            base is cls or id(base) not in listed
        ):
            names |= {*vars(base), *inspect.get_annotations(base)}
    return sorted(name for name in names if not name.startswith("_") and name not in PYDANTIC)


def bases(name: str) -> list[str]:
    """Return the names of a class's bases that have rows of their own."""
    by_id = {id(value): other for other, value in objects().items()}
    value = objects()[name]
    return [by_id[id(base)] for base in value.__mro__[1:] if id(base) in by_id]


@functools.cache
def names() -> list[str]:
    """Return `Name` and `Name.member`, each once."""
    found = []
    for name, value in sorted(objects().items()):
        found.append(name)
        if inspect.isclass(value):
            found += [f"{name}.{member}" for member in members(value)]
    return found


# What is in no namespace


def _trees() -> Iterator[ast.AST]:
    folder = Path(inspect.getfile(importlib.import_module("tinker"))).parent
    for path in sorted(folder.rglob("*.py")):
        if not path.stem.endswith("_test"):
            yield ast.parse(path.read_text(encoding="utf-8"))


def _calls() -> Iterator[tuple[str, list[str]]]:
    """Each call with the texts among its arguments; what is put into a text is `{}`."""
    for tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield node.func.attr, [_text(one) for one in node.args]


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            _text(part) if isinstance(part, ast.Constant) else "{}" for part in node.values
        )
    return ""


@functools.cache
def endpoints() -> list[str]:
    """Return `METHOD /path` below the prefix for each request that is made somewhere."""
    found = set()
    for name, texts in _calls():
        paths = [text for text in texts if text.startswith(API)]
        verb = texts[0].lower() if name == "_request" else name.lstrip("_")
        if paths and verb in VERBS:
            found.add(f"{verb.upper()} {paths[0].removeprefix(API)}")
    return sorted(found)


@functools.cache
def variables() -> list[str]:
    """Return the environment variables that are read."""
    mine = ("TINKER_", "CLOUDFLARE_")
    return sorted(
        {
            texts[0]
            for name, texts in _calls()
            if name == "get" and texts and texts[0].startswith(mine)
        }
    )


def commands() -> list[str]:
    """Return `command`, `command subcommand` and those with an option or argument after them."""
    from docs.parity.ours import command_names
    from tinker.cli.__main__ import main_cli

    return command_names(main_cli)
