"""No endpoint is left out: of the requests that are compared, and of the answers that are accepted."""

from __future__ import annotations

import pytest

pytest.importorskip("tinker", reason="the official client is in the extra `judge`")

from docs.parity import official, ours
from official.endpoints import ACCEPTED, COMPARED, endpoint_of

OURS_ALONE = {
    "GET /tokenizers/{}": "of the embedded server: `get_tokenizer` without a network",
    "GET /training_runs/{}/checkpoints/{}/archive": "of 0.4.1: the official client dropped it",
    "POST /unload_model": "of 0.4.1: the official client dropped it",
    "POST /forward": "of servers without protobuf",
}
"""What 0.38.0 does not ask, so that there is nothing to compare with."""


def test_each_request_of_our_client_is_compared() -> None:
    """A new endpoint in `tinker_async.api` needs a row."""
    compared = {one for rows in COMPARED.values() for one in rows}

    assert compared == ours.client_endpoints() - OURS_ALONE.keys()


def test_each_request_of_the_official_client_is_compared() -> None:
    """None of them is left out."""
    compared = {one for rows in COMPARED.values() for one in rows}

    assert compared == {*official.endpoints()}


def test_each_answer_to_the_official_client_is_accepted() -> None:
    """By what it asks: a new endpoint of it needs a row."""
    accepted = {one for rows in ACCEPTED.values() for one in rows}

    assert {*official.endpoints()} == accepted
    assert accepted <= ours.server_endpoints()


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/api/v1/sessions/search", "POST /sessions/search"),
        ("GET", "/api/v1/sessions/s1?access_scope=owned", "GET /sessions/{}"),
        ("DELETE", "/api/v1/training_runs/a:b/checkpoints/weights/x",
         "DELETE /training_runs/{}/checkpoints/{}"),
        ("PUT", "/api/v1/training_runs/r/checkpoints/weights/x/ttl",
         "PUT /training_runs/{}/checkpoints/{}/ttl"),
        ("GET", "/api/v1/nothing", "GET /nothing"),
    ],
)  # fmt: skip
def test_requests_are_counted_for_their_endpoint(method: str, path: str, expected: str) -> None:
    assert expected == endpoint_of(method, path)
