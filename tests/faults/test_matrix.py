"""Every public call meets every kind of fault, once and every time, on asyncio and on trio.

Each cell ends within its deadline as `reasons` says it must, and leaves nothing behind. A call
with a request of a kind that none before it had, or with code of its own, meets each fault there
is; the others, whose requests are sent by the same code, one fault of each group.
"""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from docs.reference_pages import members_of
from faults.calls import Call
from faults.cells import Cell, cells_of, run_cell
from faults.reasons import CASES, ONE_OF_EACH, Case
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
    "Session.durable_training": "is many requests: see `test_durable`",
}


ON_THEIR_OWN = {
    "Session.create_training_client_from_state": "has an older way to go",
    "TrainingClient.train_step": "is two requests with one result",
    "SamplingClient.sample_group": "is several samples",
}
"""Calls with code of their own around their requests."""


def in_full(calls: tuple[Call, ...]) -> set[str]:
    """Calls with code of their own, or a request of a kind that none before them had."""
    seen, found = set[Any](), set[str]()
    for call in calls:
        kinds = {(stage.kind, stage.of, stage.protobuf) for stage in call.stages}
        if kinds - seen or call.name in ON_THEIR_OWN:
            found.add(str(call))
        seen |= kinds
    return found


IN_FULL = {str(call) for call in ALL_CALLS} if "ALL_FAULTS" in os.environ else in_full(ALL_CALLS)
"""`make fuzz` has every call in full."""


def cases_of(call: Call) -> tuple[Case, ...]:
    return CASES if str(call) in IN_FULL else ONE_OF_EACH


def cells_on(backend: str, call: Call) -> list[Cell]:
    """What lasts is ended by the policy, whose code is the same on trio, and has been there."""
    cells = cells_of(call, cases_of(call))
    if backend == "trio" and str(call) not in IN_FULL:
        return [cell for cell in cells if not cell.always]
    return cells


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
    for cell in cells_on(anyio_backend[0], call):
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
            cases = cases_of(call)
            met = [cell for cell in cells_of(call, cases) if cell.stage == stage]
            assert len(met) > 1.7 * (len(cases) - 5), (call, stage)
            assert {case.group for case in cases} == {case.group for case in CASES}
    assert len(ON_THEIR_OWN) + 8 <= len(IN_FULL) <= len(ALL_CALLS) / 3
