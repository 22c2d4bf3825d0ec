"""Every public call meets every fault, once and every time, on asyncio and on trio.

Each cell ends within its deadline as `reasons` says it must, and leaves nothing behind.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from docs.reference_pages import members_of
from faults.calls import Call
from faults.cells import Cell, cells_of, run_cell
from faults.reasons import CASES
from faults.rest_calls import ALL_CALLS
from faults.virtual_asyncio import virtual_backends

import tinker_async as ta
from tinker_async.testing import faults

CLIENTS = (ta.Session, ta.TrainingClient, ta.SamplingClient, ta.RestClient, ta.APIFuture)
WAITS = ("APIFuture[", "AsyncIterator[", "AbstractAsyncContextManager[")
"""How the results of methods look that do not wait themselves, but let their users wait."""
ELSEWHERE = {
    "Fault": "the base of all",
    "Random": "one of the others, by a draw: see the soak",
    "TlsDrop": "only at `connect`: see `test_connections`",
}


ELSEWHERE_CALLED = {
    "RestClient.download_checkpoint": "bytes of other hosts: see tests/download",
    "Session.durable_training": "its requests are a TrainingClient's: see tests/durable",
}


def backends_of(calls: tuple[Call, ...]) -> list[Any]:
    return [
        pytest.param(call, backend, id=f"{call}-{backend[0]}")
        for call in calls
        for backend in virtual_backends(call.patience_s)
    ]


@pytest.mark.parametrize(("call", "anyio_backend"), backends_of(ALL_CALLS))
async def test_a_call_comes_through_every_fault_as_documented(
    call: Call, anyio_backend: Any
) -> None:
    """In virtual time: result or documented error, attempts, effects, and what comes next."""
    wrong = []
    for cell in cells_of(call, CASES):
        try:
            await run_cell(cell)
        except Exception as error:  # noqa: BLE001  # each cell has its own line
            wrong.append(_report(cell, error))
    assert wrong == [], "\n".join(["", *wrong])


def _report(cell: Cell, error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = (str(error).splitlines() or [""])[0] or place.line
    return f"{cell}: {type(error).__name__}: {said} ({place.name}:{place.lineno})"


def waiting_methods() -> Iterator[str]:
    for client in CLIENTS:
        for name, value in members_of(client).items():
            if name.startswith("_") or not inspect.isfunction(value):
                continue
            returns = str(inspect.get_annotations(value).get("return", ""))
            if inspect.iscoroutinefunction(value) or returns.startswith(WAITS):
                yield f"{client.__name__}.{name}"


def test_every_public_call_that_may_wait_has_a_row() -> None:
    """A new method without one fails here; so does a row without a method."""
    assert {call.name for call in ALL_CALLS} == {*waiting_methods()} - {*ELSEWHERE_CALLED}
    assert len(ALL_CALLS) > 60


def test_every_fault_has_its_cases() -> None:
    """A new fault without one fails here."""
    kinds = {type(case.fault).__name__ for case in CASES}

    assert kinds | {*ELSEWHERE} == {*faults.__all__}
    assert not kinds & {*ELSEWHERE}


def test_every_request_of_a_call_is_met_by_most_faults() -> None:
    """The matrix is not empty by mistake."""
    for call in ALL_CALLS:
        for stage in call.stages:
            met = [cell for cell in cells_of(call, CASES) if cell.stage == stage]
            assert len(met) > 1.7 * (len(CASES) - 5), (call, stage)
