"""What the rows of the parity page may name, and whether it exists: here, in this code.

A counterpart is a name below `tinker_async`; `name(argument)`; `cli: command --option`;
`env: VARIABLE`; `METHOD /path` of an endpoint; or `page: path` below `docs/`.
"""

from __future__ import annotations

import dis
import functools
import importlib
import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from docs.markdown import ROOT

import tinker_async
from tinker_async.api.calls import Endpoint
from tinker_async.credentials.secret import Secret
from tinker_async.local.server.app import ROUTES

PACKAGE = Path(tinker_async.__file__).parent
API = "/api/v1"
SAMPLES: dict[str, tuple[Any, ...]] = {
    "str": ("X",),
    "str | None": ("X", None),
    "int": (1,),
    "bool": (True, False),
    "Secret": (Secret("X"),),
}
"""Arguments for the functions that make endpoints, by annotation."""


def exists(counterpart: str) -> bool:
    """Whether there is such a thing."""
    kind, _, rest = counterpart.partition(": ")
    if rest:
        return _LOOK_UP[kind](rest)
    if counterpart.partition(" ")[2].startswith("/"):
        return counterpart in {*client_endpoints(), *server_endpoints()}
    match = re.fullmatch(r"([\w.]+)(?:\((\w+)\))?", counterpart)
    if match is None:
        return False
    value = resolve(match[1])
    return value is not None and (match[2] is None or match[2] in _parameters(value))


def resolve(name: str) -> Any:
    """Return what a name below `tinker_async` is; None if there is no such thing."""
    parts = name.split(".")
    for length in range(len(parts), -1, -1):
        try:
            value: Any = importlib.import_module(".".join(("tinker_async", *parts[:length])))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if value is None:
                break
            value = _attribute(value, part)
        return value
    return None


def _attribute(value: Any, name: str) -> Any:
    if inspect.isclass(value) and not hasattr(value, name):
        fields = [
            annotation for base in value.__mro__ for annotation in inspect.get_annotations(base)
        ]
        return name if name in fields or name in _set_on_self(value) else None
    found = getattr(value, name, None)
    return name if found is None and hasattr(value, name) else found


def _set_on_self(cls: type) -> set[str]:
    """Attributes that only `__init__` makes."""
    makers = [vars(base).get("__init__") for base in cls.__mro__]
    return {
        step.argval
        for maker in makers
        if inspect.isfunction(maker)
        for step in dis.get_instructions(inspect.unwrap(maker))
        if step.opname == "STORE_ATTR"
    }


def _parameters(value: Any) -> set[str]:
    try:
        return set(inspect.signature(value).parameters)
    except (TypeError, ValueError):
        return set()


# Endpoints


@functools.cache
def client_endpoints() -> frozenset[str]:
    """Return the endpoints that our client may ask, as `METHOD /path`."""
    found = set()
    for path in sorted((PACKAGE / "api").glob("*.py")):
        module = importlib.import_module(f"tinker_async.api.{path.stem}")
        for value in vars(module).values():
            if isinstance(value, Endpoint):
                found.add(_row(value))
            elif inspect.isfunction(value) and value.__module__ == module.__name__:
                found |= {_row(endpoint) for endpoint in _made(value)}
    return frozenset(found)


def _made(function: Any) -> Iterator[Endpoint]:
    if inspect.get_annotations(function).get("return") != "Endpoint":
        return
    parameters = inspect.signature(function).parameters.values()
    choices = [
        (parameter.default,)
        if parameter.default is not parameter.empty
        else SAMPLES[str(parameter.annotation)]
        for parameter in parameters
    ]
    names = [parameter.name for parameter in parameters]
    for values in itertools.product(*choices):
        given = dict(zip(names, values, strict=True))
        bound = inspect.signature(function).bind_partial()
        bound.arguments.update(given)
        yield function(*bound.args, **bound.kwargs)


def _row(endpoint: Endpoint) -> str:
    path = endpoint.path.partition("?")[0].removeprefix(API)
    return f"{endpoint.method} {re.sub(r'(?<=/)X(?=/|$)', '{}', path)}"


@functools.cache
def server_endpoints() -> frozenset[str]:
    """Return the endpoints of the embedded server, as `METHOD /path`."""
    return frozenset(f"{method} {_general(path)}" for method, path, _ in ROUTES)


def _general(path: str) -> str:
    """A checkpoint's id has two parts there."""
    return re.sub(r"{[^}]*}", "{}", path).replace("/checkpoints/{}/{}", "/checkpoints/{}")


# The command line and the environment


def command_names(command: click.Command, *path: str) -> list[str]:
    """Return the commands below, and each option and argument after its command."""
    context = click.Context(command, info_name=path[-1] if path else "main")
    found = [" ".join(path)] if path else []
    found += [" ".join((*path, name)) for one in command.params for name in _spelled(one)]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                found += command_names(child, *path, name)
    return found


def _spelled(parameter: click.Parameter) -> list[str]:
    """An argument's name, or all long names of an option."""
    if isinstance(parameter, click.Argument):
        return [(parameter.name or "").upper()]
    return [name for name in (*parameter.opts, *parameter.secondary_opts) if name[:2] == "--"]


@functools.cache
def commands() -> frozenset[str]:
    """Return the commands of `tinker-async` with their options."""
    from tinker_async.cli import main

    return frozenset(command_names(main))


@functools.cache
def _sources() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))


_LOOK_UP: dict[str, Callable[[str], bool]] = {
    "cli": lambda name: name in commands(),
    "env": lambda name: f'"{name}"' in _sources(),
    "page": lambda name: (ROOT / "docs" / name).is_file(),
}
