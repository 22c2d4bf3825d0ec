"""Runs as servers list them: whatever fields one leaves out, its corrupted runs can be found."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from support.wire_values import quick

from tinker_async.data.records import TrainingRun

NEEDED = {
    "training_run_id": "r",
    "base_model": "b",
    "model_owner": "o",
    "is_lora": True,
}
CHECKPOINT = {
    "checkpoint_id": "c",
    "checkpoint_type": "training",
    "time": "2026-01-01T00:00:00Z",
    "tinker_path": "tinker://r/weights/c",
}
TIMES: st.SearchStrategy[Any] = st.sampled_from(
    ["2026-01-02T03:04:05+00:00", "2026-01-02", "bad", "", None, 1767225600, 1767225600000, []]
)
MORE: dict[str, st.SearchStrategy[Any]] = {
    "corrupted": st.sampled_from([True, False, None]),
    "lora_rank": st.none() | st.integers(1, 64),
    "last_checkpoint": st.none() | st.just(CHECKPOINT),
    "last_sampler_checkpoint": st.none() | st.just(CHECKPOINT),
    "user_metadata": st.none() | st.just({"a": "b"}),
    "something_new": st.integers(),
}


@quick
@given(TIMES, st.fixed_dictionaries({}, optional=MORE))
def test_any_subset_of_keys_makes_a_run(time: Any, more: dict[str, Any]) -> None:
    """`corrupted` is a bool, true only where the server says so; a time is aware, or None."""
    raw = {**NEEDED, "last_request_time": time, **more}
    run = msgspec.json.decode(msgspec.json.encode(raw), type=TrainingRun)

    assert (more.get("corrupted") is True) is run.corrupted
    readable = time not in ("bad", "", None, [])
    assert readable is isinstance(run.last_request_time, datetime)
    assert run.last_request_time is None or run.last_request_time.tzinfo is not None
    assert more.get("lora_rank") == run.lora_rank
    assert (more.get("last_checkpoint") is None) is (run.last_checkpoint is None)
