"""Creates the environments of the compared servers and of the official clients that each works with.

`python -m benchmarks.rivals.environments NAME` makes `.venv-NAME` in this checkout, or in
`$BENCHMARK_RIVALS`, from exact versions, and needs nothing but Python itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

_TYPED_DICT = """\
import typing, typing_extensions; typing.TypedDict = typing_extensions.TypedDict
"""
"""SkyRL's models are refused by pydantic on Python 3.11 without it."""

_NO_GPU = """\
# torch's CPU build has no counters of a GPU's memory, and TuFT resets them in each forward.
import importlib.abc
import importlib.util
import sys


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch.cuda":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            module.reset_peak_memory_stats = lambda device=None: None

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
"""


@dataclass(frozen=True)
class Recipe:
    """What is installed, within the versions of `NAME.txt`, and what mends it.

    `alone` comes without its dependencies, where these cannot be had on a CPU. `mend` is a module
    that every interpreter of the environment runs when it starts. With `borrows` the packages of
    the environment that makes this one are seen, too, behind its own: only what is missing there
    is installed, whatever its version.
    """

    requirements: tuple[str, ...]
    alone: tuple[str, ...] = ()
    mend: str = ""
    borrows: bool = False


RECIPES = {
    "skyrl": Recipe(("torch==2.13.0", "skyrl[tinker,jax]==0.3.0", "uv"), mend=_TYPED_DICT),
    "tuft": Recipe(
        (
            "torch==2.13.0", "tinker==0.25.0", "transformers", "peft", "accelerate", "ray",
            "fastapi", "uvicorn[standard]", "typer", "psutil", "omegaconf", "nvidia-ml-py",
            "opentelemetry-sdk", "opentelemetry-exporter-otlp",
            "opentelemetry-instrumentation-fastapi", "opentelemetry-instrumentation-logging",
        ),
        alone=("tuft==0.2.2",),  # it requires vllm and another torch, for a GPU
        mend=_NO_GPU,
    ),
    "official-0.24.1": Recipe(("tinker==0.24.1", "numpy")),
    "official-0.25.0": Recipe(("tinker==0.25.0", "numpy")),
    "compat-0.4.1": Recipe(("tinker==0.4.1", "torch"), borrows=True),
    "compat-0.16.1": Recipe(("tinker==0.16.1", "torch"), borrows=True),
    "compat-0.24.1": Recipe(("tinker==0.24.1", "torch"), borrows=True),
    "compat-0.25.0": Recipe(("tinker==0.25.0", "torch"), borrows=True),
}  # fmt: skip


def folder(name: str) -> Path:
    """Return where an environment is, or would be."""
    return Path(os.environ.get("BENCHMARK_RIVALS", ROOT)).absolute() / f".venv-{name}"


def python(name: str) -> str:
    return str(folder(name) / "bin" / "python")


def present(*names: str) -> bool:
    """Whether these environments are there and complete."""
    return all((folder(name) / ".ready").exists() for name in names)


def make(name: str) -> None:
    """Create an environment from nothing.

    Raises:
        subprocess.CalledProcessError: An installation failed; pip has said why.
    """
    recipe, target = RECIPES[name], folder(name)
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(target)], check=True)
    (packages,) = target.glob("lib/python*/site-packages")
    if recipe.borrows:
        ours = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (packages / "zz_borrowed.pth").write_text(ours, encoding="utf-8")
    install = [python(name), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    if recipe.alone:
        subprocess.run([*install, "--no-deps", *recipe.alone], check=True)
    versions = HERE / f"{name}.txt"
    pinned = ["--constraint", str(versions)] if versions.exists() else []
    subprocess.run([*install, *pinned, *recipe.requirements], check=True)
    if recipe.mend:
        (packages / "mend_rival.py").write_text(recipe.mend, encoding="utf-8")
        (packages / "mend_rival.pth").write_text("import mend_rival\n", encoding="utf-8")
    (target / ".ready").touch()


if __name__ == "__main__":
    for asked in sys.argv[1:]:
        make(asked)
