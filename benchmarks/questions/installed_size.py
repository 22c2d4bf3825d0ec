"""How large is an installation without extras, and how many packages is it?

`pip install .` into an empty environment, kept until the package's dependencies change. Sizes of
all files of the environment's packages without pip, bytecode included, on both sides.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import OFFICIAL, ROOT, Bench, BenchmarkFailedError
from benchmarks.rows import Row, at_most

_MARK = "measured.json"


def ask(bench: Bench) -> list[Row]:
    figures = {"asyncio": _size(installed())}
    if bench.has_official:
        figures[OFFICIAL] = _size(bench.official_python.parent.parent)
    return [
        Row(
            name=f"installed_{figure}",
            table="client",
            what=what,
            unit=unit,
            runs={who: [found[figure]] for who, found in figures.items()},
            question="installed_size",
            must=at_most(most),
            aim=aim,
            note=f"numpy alone: {figures['asyncio']['numpy_mb']:.0f} MB",
        )
        for figure, what, unit, most, aim in (
            ("mb", "installed size without extras", "MB", 95.0,
             at_most(round(figures["asyncio"]["numpy_mb"] + 10, 1))),
            ("packages", "installed packages without extras", "", 15.0, None),
        )
    ]  # fmt: skip


def installed() -> Path:
    """Return an environment with this package and no extras; make it if need be."""
    folder = ROOT / "build" / "bench-installed"
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    mark = folder / _MARK
    if mark.exists() and json.loads(mark.read_text(encoding="utf-8"))["of"] == digest:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    python = folder / "bin" / "python"
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", str(ROOT)],
    ):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=folder.parent
        )
        if done.returncode:
            raise BenchmarkFailedError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    mark.write_text(json.dumps({"of": digest}), encoding="utf-8")
    return folder


def _size(folder: Path) -> dict[str, float]:
    packages = next(folder.glob("lib/python*/site-packages"))
    total = numpy = 0
    for path in packages.rglob("*"):
        top = path.relative_to(packages).parts[0]
        if path.is_symlink() or not path.is_file() or _is_tool(top):
            continue
        size = path.stat().st_size
        total += size
        numpy += size if top.startswith("numpy") else 0
    count = sum(not _is_tool(path.name) for path in packages.glob("*.dist-info"))
    return {"mb": total / 1e6, "packages": float(count), "numpy_mb": numpy / 1e6}


def _is_tool(name: str) -> bool:
    return name.split("-", maxsplit=1)[0] in {
        "pip",
        "setuptools",
        "wheel",
        "_distutils_hack",
        "pkg_resources",
    }
