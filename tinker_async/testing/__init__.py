"""The kit with which users test their own training loops: `FakeService`, faults, a ledger.

Needs no extra: no torch, no network. Names are loaded when they are used, since every run
of pytest loads this package for the fixtures in `testing.plugin`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinker_async.testing import faults
    from tinker_async.testing.ledger import Entry, Executed, Ledger, SampleLine
    from tinker_async.testing.script import FaultScript, Rule
    from tinker_async.testing.service import FakeService
    from tinker_async.testing.virtual_time import run_in_virtual_time, virtual_time_backend

__all__ = (
    "Entry",
    "Executed",
    "FakeService",
    "FaultScript",
    "Ledger",
    "Rule",
    "SampleLine",
    "faults",
    "run_in_virtual_time",
    "virtual_time_backend",
)

_HOME_OF = {
    "Entry": "ledger",
    "Executed": "ledger",
    "FakeService": "service",
    "FaultScript": "script",
    "Ledger": "ledger",
    "Rule": "script",
    "SampleLine": "ledger",
    "run_in_virtual_time": "virtual_time",
    "virtual_time_backend": "virtual_time",
}


def __getattr__(name: str) -> Any:
    if name == "faults":
        return importlib.import_module("tinker_async.testing.faults")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"tinker_async.testing.{_HOME_OF[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
