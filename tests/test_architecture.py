"""The layers: which part may import which, what is heavy, and what an import must not do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import tinker_async

PACKAGE = Path(tinker_async.__file__).parent

BELOW_API = {"transport", "wire", "config", "credentials", "data", "errors", "proxies"}
BELOW_BACKGROUND = BELOW_API | {
    *("api", "api.progress", "events", "futures", "logs", "plan", "losses"),
}
CLIENTS = BELOW_BACKGROUND | {"background", "tokenizer"}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "lone_errors": {"errors"},
    "logs": set(),
    "data": {"errors"},
    "config": {"credentials", "errors", "proxies"},
    "credentials": {"errors"},
    "plan": {"data", "errors"},
    "proxies": {"credentials", "errors"},
    "losses": {"data", "errors"},
    "loss_graphs": {"data", "errors"},
    "loss_tracing": {"data", "errors"},
    "wire": {"data", "errors"},
    "transport": {"errors", "proxies"},
    "events": {"logs"},
    "api": BELOW_API | {"api.progress", "events", "logs"},
    "api.progress": {"errors"},
    "futures": {"api.progress", "errors"},
    "tokenizer": {"api", "api.progress", "errors"},
    "background": BELOW_BACKGROUND,
    "download": {"api", "api.progress", "config", "data", "errors", "lone_errors", "logs"}
    | {"proxies", "transport"},
    "rest": BELOW_API | {"api", "api.progress", "background", "download", "events"},
    "many_samples": {"data", "errors", "lone_errors"},
    "sampling": CLIENTS | {"many_samples"},
    "training": CLIENTS | {"sampling"},
    "samplers": CLIENTS | {"sampling"},
    "trainers": CLIENTS | {"samplers", "training"},
    "custom_losses": CLIENTS | {"loss_tracing"},
    "parts": CLIENTS | {"custom_losses", "samplers", "trainers"},
    "creation": CLIENTS | {"parts", "sampling", "trainers", "training"},
    "renewal": CLIENTS | {"lone_errors", "parts"},
    "durable": CLIENTS
    | {"custom_losses", "lone_errors", "parts", "renewal", "rest", "sampling", "trainers"}
    | {"training"},
    "ports": {
        *("api.progress", "data", "durable", "errors", "logs", "lone_errors"),
        *("sampling", "session"),
    },
    "session": CLIENTS
    | {
        "creation",
        "durable",
        "parts",
        "renewal",
        "trainers",
        "sampling",
        "training",
        "rest",
        "local.process",
        "lone_errors",
    },
    "local.engine": {"data", "errors", "local.models", "loss_graphs"},
    "local.server": {"wire", "data", "errors", "local.engine", "loss_graphs"},
    "local.cache": {"errors"},
    "local.fetch": {"errors", "local.cache"},
    "local.tiny": set(),
    "local.gguf_header": {"errors"},
    "local.convert": {"errors", "local.cache", "local.gguf_header", "local.tiny"},
    "local.models": {"errors", "local.cache", "local.convert", "local.fetch", "local.tiny"},
    "local.serving": {"errors", "local.engine", "local.models", "local.server"},
    "local.process": {"errors", "lone_errors", "local.server"},
    "cli": {"", "api", "config", "credentials", "errors", "local.cache", "local.serving", "proxies"}
    | {"download", "durable", "tokenizer", "transport"},
    "testing": {"data", "errors", "lone_errors", "loss_graphs", "session", "transport", "wire"},
    "": set(BELOW_BACKGROUND)
    | {
        "background",
        "download",
        "durable",
        "many_samples",
        "rest",
        "sampling",
        "session",
        "training",
    },
}
"""Each part with the parts it may import; `""` is `tinker_async` itself."""

NO_TORCH_IN_ENGINE = {"__init__", "failures", "jobs", "stopping", "thread"}
"""Modules of the engine that the server imports, which is not to load torch."""

LIBRARY_HOMES: dict[str, set[str]] = {
    "h2": {"transport", "testing.http2_server"},
    "hpack": set(),
    "h11": set(),
    "httpcore": {"download.fetch", "download.network"},
    "starlette": {"local.server"},
    "hypercorn": {"local.server.hosting"},
    "sqlite3": {"local.server"},
    "torch": {"local.engine"},
    "transformers": {"local.engine"},
    "peft": {"local.engine"},
    "safetensors": {"local.engine"},
    "tokenizers": set(),
    "gguf": set(),
    "zstandard": {"local.server"},
    "click": {"cli"},
    "rich": {"cli"},
    "huggingface_hub": set(),
    "matplotlib": set(),
    "asyncio": set(),
    "trio": set(),
    "pytest": {"testing.plugin"},
    "uvloop": set(),
    "requests": set(),
    "httpx": set(),
    "tinker": set(),
    "pydantic": set(),
}
"""Where a library may be imported at the top of a module."""

LAZY_HOMES: dict[str, set[str]] = {
    "torch": {
        *("losses", "loss_graphs", "loss_tracing", "data.tensors", "local.engine.thread"),
    },
    "tokenizers": {"tokenizer", "local.engine.stopping", "local.convert", "local.tiny"},
    "safetensors": {"local.convert", "local.models", "local.tiny"},
    "gguf": {"local.convert"},
    "hypercorn": {"local.server.hosting"},
    "zstandard": {
        "background.compression",
        "local.server",
        "testing.exchange",
        "transport.content",
    },
    "asyncio": {"transport.waiting"},
    "trio": {"testing.virtual_time", "transport.waiting"},
    "huggingface_hub": {"cli.checkpoint.hub", "cli.templates"},
    "matplotlib": {"cli.demo_report"},
}
"""Where it may be imported inside a function besides."""

HEAVY = {
    *("torch", "transformers", "tokenizers", "peft", "click", "rich", "starlette", "hypercorn"),
    *("asyncio", "trio", "ssl", "h2", "hpack", "httpcore", "structlog", "logging", "hashlib"),
}
"""What a program may have installed and does not pay for until it asks."""


class Import(msgspec.Struct, frozen=True):
    """One import statement's one target."""

    module: str
    target: str
    line: int
    top: bool
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def module_name(path: Path) -> str:
    """`session`, `wire.json`, or the empty string for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name: str, path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    stack: list[tuple[ast.AST, bool, bool]] = [(tree, True, False)]
    while stack:
        node, top, typing_only = stack.pop()
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: imports are absolute"
            targets = [_resolved(node.module or "", alias.name) for alias in node.names]
        for target in targets:
            yield Import(name, target, node.lineno, top=top, typing_only=typing_only)  # type: ignore[attr-defined]  # import nodes have it
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        stack += [
            (child, top and not inside, typing_only or for_types)
            for child in ast.iter_child_nodes(node)
        ]


def _resolved(module: str, name: str) -> str:
    """`from package import module` names a module; `from module import name` its module."""
    if module.partition(".")[0] == "tinker_async":
        path = PACKAGE.joinpath(*module.split(".")[1:], name)
        if path.with_suffix(".py").exists() or path.is_dir():
            return f"{module}.{name}"
    return module


ALL_IMPORTS = [one for name, path in modules().items() for one in imports_of(name, path)]
OWN = [one for one in ALL_IMPORTS if one.target.partition(".")[0] == "tinker_async"]
FOREIGN = [one for one in ALL_IMPORTS if one.target.partition(".")[0] != "tinker_async"]


def may_import(part: str, target: str) -> bool:
    return target == part or target in MAY_IMPORT[part]


def part_of(module: str) -> str:
    """The part that a module belongs to: the longest name in the table."""
    module = module.removeprefix("tinker_async").removeprefix(".")
    candidates = [part for part in MAY_IMPORT if part and _within(module, {part})]
    if candidates:
        return max(candidates, key=len)
    assert module in ("", "local"), f"{module} belongs to no part: add it to MAY_IMPORT"
    return ""


def _within(module: str, homes: set[str]) -> bool:
    return any(module == home or module.startswith(f"{home}.") for home in homes)


def test_the_table_of_parts_has_no_cycle() -> None:
    """Parts can be put in a line in which imports go one way only (lazy ones of the CLI aside)."""
    left = {part: set(below) for part, below in MAY_IMPORT.items()}
    left["local.engine"].discard("local.models")  # only `check_architecture`, a pure function
    while left:
        free = {part for part, below in left.items() if not below & left.keys()}
        assert free, f"a cycle among {sorted(left)}"
        left = {part: below for part, below in left.items() if part not in free}


def test_imports_go_only_down_the_layers() -> None:
    """Also those inside functions and those for types."""
    upward = [str(one) for one in OWN if not may_import(part_of(one.module), part_of(one.target))]

    assert upward == []


def test_every_part_of_the_table_exists() -> None:
    """A part that was renamed does not keep its rights."""
    assert set(MAY_IMPORT) == {part_of(name) for name in modules()}


def test_only_session_and_cli_reach_into_local_and_only_when_asked() -> None:
    """The embedded engine is an extra: no module above it needs it at import."""
    reaching = [
        one
        for one in OWN
        if one.target.startswith("tinker_async.local") and not one.module.startswith("local")
    ]

    assert {"cli.config", "cli.serve", "session"} == {one.module for one in reaching}
    assert not [str(one) for one in reaching if one.top]


def test_libraries_are_imported_only_where_they_belong() -> None:
    """HTTP in the transport, torch in the engine, the event loops nowhere."""
    astray = [
        str(one)
        for one in FOREIGN
        if not one.typing_only
        and (library := one.target.partition(".")[0]) in LIBRARY_HOMES
        and not _within(one.module, LIBRARY_HOMES[library])
        and not (not one.top and _within(one.module, LAZY_HOMES.get(library, set())))
    ]

    assert astray == []


@pytest.mark.parametrize("part", ["errors", "config", "data", "wire", "plan", "losses", "proxies"])
def test_pure_parts_do_no_input_or_output(part: str) -> None:
    """No sockets, files, threads, clocks or event loops."""
    forbidden = {"anyio", "socket", "ssl", "select", "threading", "subprocess", "pathlib", "time"}
    found = [
        str(one)
        for one in FOREIGN
        if part_of(one.module) == part and one.target.partition(".")[0] in forbidden
    ]

    assert found == []


def test_async_server_code_and_torch_code_share_no_module() -> None:
    """The engine does not know an event loop, the server does not know torch."""
    engine_uses = {
        one.target.partition(".")[0] for one in FOREIGN if _within(one.module, {"local.engine"})
    }
    assert "anyio" not in engine_uses

    light = {f"local.engine.{name}" for name in NO_TORCH_IN_ENGINE} | {"local.engine"}
    engine_modules = {
        one.target.removeprefix("tinker_async.")
        for one in OWN
        if not _within(one.module, {"local.engine"}) and "local.engine" in one.target
    }
    assert engine_modules <= light
    torch_at_import = {
        one.module
        for one in FOREIGN
        if one.top and not one.typing_only and one.target.partition(".")[0] == "torch"
    }
    assert not torch_at_import & light


def test_no_module_is_longer_than_600_lines() -> None:
    """A module that needs more has two ideas in it."""
    lengths = {
        name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()
    }

    assert {name: length for name, length in lengths.items() if length > 600} == {}


def test_every_module_says_what_it_owns_and_annotates_lazily() -> None:
    """A docstring, then `from __future__ import annotations` before anything else."""
    wrong = []
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        lazily = "from __future__ import annotations" in text
        if not ast.get_docstring(tree) or (len(tree.body) > 1 and not lazily):
            wrong.append(name)

    assert wrong == []


# What is public


def test_all_names_and_lazy_names_are_the_same() -> None:
    """`__all__`, the table of homes and the imports for type checkers agree."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    for_types = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    public = {*tinker_async.__all__} - {"__version__"}

    assert public == set(tinker_async._HOME_OF)
    assert public == for_types
    assert len(tinker_async.__all__) == len(set(tinker_async.__all__))


def test_every_public_name_resolves_and_is_listed() -> None:
    """Also for `dir`."""
    missing = [name for name in tinker_async.__all__ if getattr(tinker_async, name, None) is None]

    assert missing == []
    assert {*tinker_async.__all__} <= {*dir(tinker_async)}


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As with any module; `hasattr` works."""
    assert not hasattr(tinker_async, "ServiceClient")


def test_every_error_of_the_library_is_public() -> None:
    """Whoever can meet an error can name it."""
    from tinker_async import errors

    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.TinkerError)
    }

    assert defined <= set(tinker_async.__all__)


# What an import does


def fresh(code: str) -> str:
    """Run code in a new interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_but_the_standard_library() -> None:
    """Names are loaded when they are used."""
    code = """
import sys
before = set(sys.modules)
import tinker_async
names = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(names - set(sys.stdlib_module_names)))
"""
    assert fresh(code) == "['tinker_async']\n"


@pytest.mark.parametrize("code", ["tinker_async.Session", "from tinker_async import *"])
def test_using_public_names_loads_nothing_heavy(code: str) -> None:
    """No torch, no tokenizers, no server, no command line library; no HTTP before a session."""
    found = fresh(f"import tinker_async, sys\n{code}\nprint(sorted({HEAVY!r} & set(sys.modules)))")

    assert found == "[]\n"


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["demo", "--help"]])
def test_the_help_of_the_command_line_loads_no_model_library(arguments: list[str]) -> None:
    """It answers at once."""
    code = f"""
import contextlib, io
from tinker_async.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main({arguments!r})
import sys
print(sorted({{"torch", "transformers", "peft", "starlette", "hypercorn", "matplotlib"}} & set(sys.modules)))
"""
    assert fresh(code) == "[]\n"


def test_importing_starts_no_thread_and_no_event_loop() -> None:
    """Nothing hidden: the caller's loop is the only one."""
    code = """
import threading, sys
from tinker_async import *
import asyncio
try:
    asyncio.get_running_loop()
except RuntimeError:
    print(threading.active_count(), "no loop")
"""
    assert fresh(code) == "1 no loop\n"
