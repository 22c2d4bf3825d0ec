"""What a durable run tells: as events of its session, and in the log."""

from __future__ import annotations

import pickle
from typing import Any

import msgspec
import pytest
import structlog

import tinker_async as ta
from tinker_async import DurableEvent, LedgerError, RecoveryExhaustedError, SupersededError
from tinker_async.durable import events as durable_events
from tinker_async.durable.events import _NAMES, tell
from tinker_async.events import Events

REQUIRED = {
    *("detected", "poll_error", "started", "checkpoint_selected", "client_created"),
    *("completed", "failed", "exhausted", "superseded", "cancelled", "resumed"),
}
VALUES: dict[Any, Any] = {int: 1, float: 0.5, str: "text"}


def sample(kind: type[DurableEvent]) -> DurableEvent:
    """An event with a value in each field."""
    values: dict[str, Any] = {
        field.name: field.default
        if field.default is not msgspec.NODEFAULT
        else VALUES.get(field.type)
        for field in msgspec.structs.fields(kind)
    }
    return kind(**values)


def test_the_names_of_recoveries_are_those_that_are_required() -> None:
    """R9: eight, and the three that were missing."""
    told = {name.removeprefix("recovery_") for name in _NAMES.values() if "recovery" in name}

    assert REQUIRED == told
    own = {one for one in vars(durable_events).values() if isinstance(one, type)}
    assert {one for one in own if issubclass(one, DurableEvent)} - {DurableEvent} == set(_NAMES)
    assert all(getattr(ta, kind.__name__) is kind for kind in _NAMES)


@pytest.mark.parametrize("kind", _NAMES, ids=lambda kind: kind.__name__)
def test_each_event_reaches_listeners_and_the_log(kind: type[DurableEvent]) -> None:
    """Once each, with all its fields."""
    heard: list[object] = []
    event = sample(kind)
    with structlog.testing.capture_logs() as logs:
        tell(Events(heard.append), event)

    assert [event] == heard
    (line,) = logs
    assert _NAMES[kind] == line["event"]
    assert len(kind.__struct_fields__) == len(line) - 2
    assert ("error" if kind is ta.RecoveryExhausted else line["log_level"]) == line["log_level"]


@pytest.mark.parametrize(
    "error",
    [
        LedgerError("m", path="p", reason="in_use"),
        SupersededError("m", generation=1, current=2),
        RecoveryExhaustedError("m", run_id="r", attempts=3, history=("a", "b")),
    ],
)
def test_the_errors_keep_their_facts_on_their_way_to_other_processes(error: ta.TinkerError) -> None:
    """And have a hint."""
    again = pickle.loads(pickle.dumps(error))

    assert (type(error), str(error), error.__dict__.keys()) == (
        *(type(again), str(again)),
        again.__dict__.keys(),
    )
    assert error.hint
    assert again.attempts == error.attempts
