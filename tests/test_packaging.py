"""What `pip` installs: the wheel has what it needs, works without the checkout, and says what it is."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

import tinker_async

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """`[project]` of `pyproject.toml`."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found: dict[str, Any] = content["project"]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as `pip` builds it: the build backend is fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel"]
    command += ["--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """The wheel's `METADATA`."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def from_wheel(wheel: Path, code: str) -> str:
    """Run code with the wheel alone: no checkout, but what is installed besides."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=wheel.parent,
        env={**os.environ, "PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_every_module_and_nothing_else(wheel: Path) -> None:
    """No tests, no caches; the marker for type checkers is there."""
    package = Path(tinker_async.__file__).parent
    sources = {
        f"tinker_async/{path.relative_to(package).as_posix()}"
        for path in [*package.rglob("*.py"), package / "py.typed"]
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}

    assert packed == sources


def test_the_wheel_says_what_pyproject_says(metadata: Message, project: dict[str, Any]) -> None:
    """Version, Python, licence, extras, description."""
    assert metadata["Name"] == "tinker-async"
    assert metadata["Version"] == project["version"] == tinker_async.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    assert metadata.get_payload().startswith("# tinker-async")  # type: ignore[union-attr]  # a plain text


def test_the_demo_extra_has_all_that_users_may_need(project: dict[str, Any]) -> None:
    """One extra to run everything; what `make demo` installs."""
    (others,) = [one for one in project["optional-dependencies"]["demo"] if "tinker-async[" in one]
    named = set(others.partition("[")[2].rstrip("]").split(","))

    assert named == set(project["optional-dependencies"]) - {"demo", "dev", "judge"}


def test_the_wheel_works_without_the_checkout(wheel: Path) -> None:
    """All public names resolve, from the wheel."""
    code = """
import json, tinker_async
missing = [name for name in tinker_async.__all__ if not hasattr(tinker_async, name)]
print(json.dumps([missing, tinker_async.__file__]))
"""
    missing, file = json.loads(from_wheel(wheel, code))

    assert missing == []
    assert Path(file).is_relative_to(wheel)


def test_the_command_of_the_wheel_tells_its_version(wheel: Path, project: dict[str, Any]) -> None:
    """The entry point exists and runs."""
    code = """
from importlib.metadata import distribution
(command,) = distribution("tinker-async").entry_points.select(group="console_scripts")
print(command.group, command.name, flush=True)
command.load()(["--version"], prog_name=command.name)
"""
    said = from_wheel(wheel, code)

    assert said == f"console_scripts tinker-async\ntinker-async, version {project['version']}\n"


def test_a_required_dependency_is_really_needed(project: dict[str, Any]) -> None:
    """What every user installs is what the client imports, no more and no less."""
    named = {one.partition(">")[0] for one in project["dependencies"]}
    package = Path(tinker_async.__file__).parent
    text = "\n".join(
        path.read_text(encoding="utf-8")
        for path in package.rglob("*.py")
        if path.relative_to(package).parts[0] not in {"local", "cli"}
    )

    assert {name for name in named if f"import {name}" in text or f"from {name}" in text} == named
    assert all(importlib.util.find_spec(name) for name in named)
