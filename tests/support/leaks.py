"""A part of pytest: fails each test that lets an API key out.

Every key of the tests begins with `tml-`. After a test, all that it and its processes
printed and logged is searched for one; the library's errors are as they are made, and what
ends a test (warnings are errors here) is too. The rule: what may show a key is listed here,
with its reason.
"""

from __future__ import annotations

import functools
import logging
import pickle
import re
from collections.abc import Generator
from typing import Any

import pytest

from tinker_async import errors

KEY = re.compile(r"tml-[A-Za-z0-9_-]+")
MEANT = re.compile(
    # `tinker-async serve` without --api-key makes a key, and its user has to learn it.
    r"^API key: tml-[A-Za-z0-9_-]+$",
    re.MULTILINE,
)

_found: list[str] = []
"""Where the running test has let a key out."""


def search(where: str, text: str) -> None:
    """Note a key in a text."""
    if "tml-" not in text:
        return
    hit = KEY.search(MEANT.sub("", text))
    if hit is not None:
        around = text[max(0, text.find(hit[0]) - 150) : text.find(hit[0]) + 150]
        _found.append(f"{where} has the key {hit[0]!r}: ...{around}...")


class _Ears(logging.Handler):
    """Hears every record that reaches the root logger."""

    def emit(self, record: logging.LogRecord) -> None:
        search(f"the log of {record.name}", f"{record.getMessage()} {record.__dict__}")


_make = errors.TinkerError.__init__


@functools.wraps(_make)
def _make_and_search(self: errors.TinkerError, message: str, **facts: Any) -> None:
    _make(self, message, **facts)
    search(f"the message of {type(self).__name__}", f"{self}")
    if any("tml-" in value for value in facts.values() if isinstance(value, str)):
        search(f"a fact of {type(self).__name__}", f"{facts}")


def pytest_configure() -> None:
    """Begin to listen."""
    logging.getLogger().addHandler(_Ears(0))
    errors.TinkerError.__init__ = _make_and_search  # type: ignore[method-assign]  # every error passes here


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Search what a test has printed and raised; fail it if there is a key in that."""
    report = yield
    error = call.excinfo.value if call.excinfo is not None else None
    if error is not None:
        search(f"the error {type(error).__name__}", f"{error!r} {vars(error)}")
    if isinstance(error, errors.TinkerError):
        search(f"the pickled {type(error).__name__}", str(pickle.dumps(error)))
    if report.when == "teardown":
        for name, text in report.sections:
            search(name, text)
        if _found and item.get_closest_marker("xfail") is None:
            report.outcome = "failed"
            report.longrepr = "\n".join([f"{item.nodeid} let an API key out:", *_found])
        _found.clear()
    return report
