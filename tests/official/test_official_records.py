"""Every record of the embedded server through the genuine official client's management calls.

One conversation is held (`records.py`), in a process of its own; each test looks at a part of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from official.endpoints import ACCEPTED, endpoint_of
from server.processes import start_server

CONVERSATION = Path(__file__).with_name("records.py")
BOUND_S = 300


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the official client was told."""
    pytest.importorskip("tinker", reason="the official client is in the extra `judge`")
    with start_server(tmp_path_factory.mktemp("records") / "data") as server:
        process = subprocess.run(
            [sys.executable, str(CONVERSATION), server.url, server.api_key],
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
            env={**os.environ, "TINKER_TELEMETRY": "0", "OMP_NUM_THREADS": "1"},
        )
        assert process.returncode == 0, process.stderr
    result: dict[str, Any] = json.loads(process.stdout)
    return result


def test_it_was_content_with_the_answers(told: dict[str, Any]) -> None:
    """To each request of this list, and more."""
    assert {*ACCEPTED["test_official_records"]} <= {endpoint_of(*one) for one in told["answered"]}


def test_sessions_are_listed_and_described(told: dict[str, Any]) -> None:
    assert [told["session"]] == told["sessions"]
    assert [told["model"]] == told["got"]["training_run_ids"]
    assert [f"{told['session']}:sample:0"] == told["got"]["sampler_ids"]
    assert {"team": "a"} == told["got"]["user_metadata"]
    assert told["got"]["display_name"] == "The night run"
    assert told["sampler"] == told["base_of_sampler"]


def test_sessions_are_found_by_what_they_are(told: dict[str, Any]) -> None:
    """By words of the name, project, metadata and state; with what they store."""
    [session] = told["search"]
    assert told["session"] == session["session_id"]
    assert ({"type": "active"}, "proj-b", 3) == (
        session["status"],
        session["project_id"],
        session["checkpoints_count"],
    )
    assert session["checkpoint_storage_bytes"] == sum(size for _, _, size in told["listed"])
    assert [told["model"]] == told["runs_of_b"]


def test_a_finished_session_tells_how_it_ended(told: dict[str, Any]) -> None:
    assert [[told["session"], "errored", "as an example"]] == told["finished"]


def test_the_trace_has_what_the_engine_did(told: dict[str, Any]) -> None:
    """In the format that Perfetto opens, one track for the model and one for the sampler."""
    events = told["trace"]["traceEvents"]
    names = [event["name"] for event in events if event["ph"] in "Xb"]
    assert names == [
        *("create_model", "forward_backward", "optim_step", "save_weights", "save_weights"),
        *("save_weights_for_sampler", "save_weights_for_sampler", "sample"),
    ]
    assert all(event["dur"] >= 0 for event in events if event["ph"] == "X")


def test_checkpoints_of_all_kinds_are_listed_newest_first(told: dict[str, Any]) -> None:
    assert [
        ["external_weights/x1", "external"],
        ["sampler_weights/p1", "sampler"],
        ["weights/s1", "training"],
    ] == [row[:2] for row in told["listed"]]
    assert told["state"] == told["state2"]
    assert told["page"] == [3, [False, False]]
    assert told["public"]["weights/s1"] == [True, True]
    assert told["run"]["corrupted"] is False
    assert told["run"]["user_metadata"] == {"run": "one"}
    assert (told["info"]["lora_rank"], told["info"]["base_model"]) == (4, "tiny-llama")


def test_a_copy_is_a_checkpoint_of_its_own(told: dict[str, Any]) -> None:
    """In another run, of the same kind and name; deleting it leaves the original."""
    assert told["copied"] != told["state"]
    assert told["copied"].endswith("/weights/s1")
    assert told["copy_of_rank"] == 4
    assert "404" in told["gone"]
    assert told["stored"] == {"proj-b": 3}


def test_downloads_are_whole_and_can_be_resumed(told: dict[str, Any]) -> None:
    """External files by signed addresses, the archive by a redirection."""
    size = next(size for name, _, size in told["listed"] if name == "external_weights/x1")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(told["urls"])
    assert size == sum(told["urls"].values())
    assert told["urls_expire_later"]
    assert told["archive"] == [302, True]
    assert told["resumed"] == [206, True]
    assert "adapter_model.safetensors" in told["members"]
    assert "age_encryption_recipients" in told["no_age"]


def test_usage_is_what_was_used(told: dict[str, Any]) -> None:
    """Eight tokens trained, five prefilled, those drawn; four saves and what they take up."""
    mine = [event for session, project, event in told["usage"] if session == told["session"]]
    counted = {
        (event["type"], event.get("cached")): event.get("token_count", event.get("count"))
        for event in mine
    }
    storage = [event["gigabyte_hours"] for event in mine if event["type"] == "storage"]
    assert counted.pop(("storage", None)) is None
    assert counted == {
        ("training", None): 8,
        ("sampling_prefill", False): 5,
        ("sampling_sample", None): told["drawn"],
        ("checkpoint", None): 4,
    }
    assert sum(storage) > 0
    assert told["billed"][told["session"]] == {"team": "a"}


def test_the_audit_log_tells_who_did_what(told: dict[str, Any]) -> None:
    events = [event for event, path in told["audit"] if path == told["state"]]
    assert events[:4] == [
        *("checkpoint_saved", "checkpoint_saved", "checkpoint_overwritten"),
        "checkpoint_published",
    ]
    assert ["checkpoint_deleted", told["copied"]] in told["audit"]
    assert told["projects"] == ["project_session_assigned"]
    assert told["long_ago"] == []


def test_the_key_can_be_described_exchanged_and_ended(told: dict[str, Any]) -> None:
    """A token is as good as the key, and over with it."""
    assert told["key"] == "local"
    assert told["whoami"] == {
        "user_urn": "tml:user:local",
        "org_urn": "tml:organization:local",
        "email": None,
    }
    assert told["session"] in told["by_token"]
    assert told["afterwards"] == [401, 401]
