"""`tinker-async bench` measures a server through the public client, within its bounds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from tinker_async.cli import main

if TYPE_CHECKING:
    from .conftest import Stub


def bench(stub: Stub, *arguments: str) -> Any:
    url = f"http://127.0.0.1:{stub.plain}"
    command = ["bench", "--url", url, "--api-key", "tml-key", *arguments]
    return CliRunner().invoke(main, command, catch_exceptions=False)


def test_it_reports_samples_and_steps_as_json(stub: Stub) -> None:
    """Of the first model that the server names."""
    found = json.loads(bench(stub, "--samples", "8", "--steps", "3", "--json").stdout)
    assert found["model"] == "stub"
    assert [8, True] == [found["sampling"]["done"], found["sampling"]["complete"]]
    assert [3, True] == [found["training"]["done"], found["training"]["complete"]]
    assert 0 < found["sampling"]["p50_ms"] <= found["sampling"]["p99_ms"]
    assert found["sampling"]["tokens_per_s"] > found["sampling"]["per_s"]


def test_it_speaks_to_people_without_json(stub: Stub) -> None:
    result = bench(stub, "--samples", "2", "--steps", "0", "--http2")
    assert "samples/s" in result.stdout
    assert "steps/s" not in result.stdout


def test_it_stops_when_its_time_is_over(stub: Stub) -> None:
    """A model that takes a minute for a sample ends with what was done: nothing."""
    slow = ("--model", "stub-4-tokens-60000-ms", "--timeout", "1", "--steps", "0", "--json")
    result = bench(stub, *slow)
    assert result.exit_code == 0
    assert {"done": 0, "complete": False} == json.loads(result.stdout)["sampling"]


def test_a_server_that_is_not_there_is_one_line_and_a_hint() -> None:
    result = CliRunner().invoke(
        main, ["bench", "--url", "http://127.0.0.1:1", "--api-key", "tml-key"]
    )
    assert result.exit_code == 7
    assert "error: nothing listens on 127.0.0.1:1" in result.stderr
    assert "hint: " in result.stderr
