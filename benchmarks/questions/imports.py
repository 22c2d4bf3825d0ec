"""What does importing a client cost, and how many modules does it load?

All that a program needs to open a session, train and sample: `import tinker` loads it at once;
here the names load their modules when they are used, so they are used. Each client in an
environment of its own with nothing but its own dependencies. CPU of a fresh process with its bytecode
cached, less that of the bare interpreter; modules likewise. "All extras": the same in the
environment of `make`, where dependencies of ours find optional libraries (rich, trio) and load them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks.harness import OFFICIAL, Bench, Figures, run_json
from benchmarks.questions.installed_size import installed
from benchmarks.rows import Row, Target, column

_ALL = "import tinker_async as ta; [getattr(ta, name) for name in ta.__all__]"
_NAMES = "import tinker_async as ta; ta.Session, ta.SamplingClient, ta.TrainingClient, ta.Datum"
_MEASURED = """
import resource, sys
def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
before, modules = cpu(), len(sys.modules)
{statement}
print('{{"cpu_ms": %f, "modules": %d}}' % (1e3 * (cpu() - before), len(sys.modules) - modules))
"""


def _import(python: str, statement: str) -> Figures:
    # Of this package the source here is measured, whatever is installed; its bytecode is cached
    # also where the caller's environment says otherwise.
    return run_json(
        [python, "-c", _MEASURED.format(statement=statement)], {"PYTHONDONTWRITEBYTECODE": ""}
    )


def ask(bench: Bench) -> list[Row]:
    python = str(installed() / "bin" / "python")
    variants: dict[str, Callable[[], Figures]] = {
        "asyncio": lambda: _import(python, _NAMES),
        "every public name": lambda: _import(python, _ALL),
        "all extras": lambda: _import(sys.executable, _NAMES),
        "numpy alone": lambda: _import(python, "import numpy"),
    }
    if bench.has_official:
        variants[OFFICIAL] = lambda: _import(str(bench.official_python), "import tinker")
    for variant in variants.values():
        variant()  # writes the bytecode
    found = bench.interleave(variants, bench.scaled(2 * bench.runs, least=bench.runs))
    targets = {
        "cpu_ms": (Target("at_most_times", 0.4), Target("at_most_times", 0.2)),
        "modules": (Target("at_most", 320), None),
    }
    return [
        Row(
            name=f"import_{figure}",
            table="client",
            what=what,
            unit=unit,
            runs=column(found, figure),
            question="imports",
            must=targets[figure][0],
            aim=targets[figure][1],
            note="Session, SamplingClient, TrainingClient and Datum used",
        )
        for figure, what, unit in (
            ("cpu_ms", "import, CPU", "ms"),
            ("modules", "import, modules", ""),
        )
    ]
