"""What an answer to `retrieve_future` says."""

from __future__ import annotations

import pytest

from tinker_async.wire.promises import (
    CompleteMetadata,
    Failed,
    PromiseAnswer,
    PromiseResult,
    TryAgain,
    parse_promise_answer,
    parse_timeout_answer,
)
from tinker_async.wire.protobuf import DecodeError

JSON = b"application/json"


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b'{"type":"try_again","request_id":"r"}', TryAgain()),
        (
            b'{"type":"try_again","queue_state":"paused_capacity","queue_state_reason":"full"}',
            TryAgain("paused_capacity", "full"),
        ),
        (b'{"type":"try_again","queue_state":"newer"}', TryAgain("newer")),
        (b'{"type":"try_again","queue_state":7}', TryAgain()),
        (b'{"type":"try_again","error":"e","status":"complete_metadata"}', TryAgain()),
        (
            b'{"status":"complete_metadata","response_payload_size":12}',
            CompleteMetadata(12),
        ),
        (
            b'{"status":"complete_metadata","response_payload_size":0,"error":"e"}',
            CompleteMetadata(0),
        ),
        (b'{"error":"boom","category":"user"}', Failed("boom", "user")),
        (b'{"error":"boom","category":"server"}', Failed("boom", "server")),
        (b'{"error":"boom","category":"newer"}', Failed("boom", "unknown")),
        (b'{"error":"boom","category":["user"]}', Failed("boom", "unknown")),
        (b'{"error":"boom"}', Failed("boom", "unknown")),
        (b'{"error":null}', Failed("null", "unknown")),
        (b'{"error":{"code":1}}', Failed('{"code":1}', "unknown")),
    ],
)
def test_an_answer_that_is_no_result_is_told_apart(body: bytes, answer: PromiseAnswer) -> None:
    """Not yet comes before metadata, metadata before failure, as in the official client."""
    assert answer == parse_promise_answer(body, JSON)


@pytest.mark.parametrize(
    "body",
    [b"{}", b'{"type":"sample","sequences":[]}', b'{"metrics":{"error":1}}', b'{"status":3}'],
)
def test_everything_else_that_is_an_object_is_the_result(body: bytes) -> None:
    """The result's own bytes are handed on, not decoded."""
    answer = parse_promise_answer(body, JSON)

    assert PromiseResult(body, is_protobuf=False) == answer
    assert isinstance(answer, PromiseResult)
    assert answer.body is body


@pytest.mark.parametrize(
    "content_type", [b"application/x-protobuf", b"Application/X-Protobuf; charset=x"]
)
def test_protobuf_is_told_by_its_content_type_alone(content_type: bytes) -> None:
    """No look is taken at a body that is not JSON."""
    body = b'{"type":"try_again"}'

    assert PromiseResult(body, is_protobuf=True) == parse_promise_answer(body, content_type)


@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b"[]",
        b"3",
        b'"text"',
        b"",
        b"\x0a\x01",
        b'{"status":"complete_metadata"}',
        b'{"status":"complete_metadata","response_payload_size":-1}',
        b'{"status":"complete_metadata","response_payload_size":true}',
        b'{"type":"sample"',
    ],
)
def test_what_is_not_an_answer_is_refused(body: bytes) -> None:
    """null, other JSON and no JSON are DecodeErrors, never a result."""
    with pytest.raises(DecodeError):
        parse_promise_answer(body, None)


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b'{"queue_state":"active","queue_state_reason":"r"}', TryAgain("active", "r")),
        (b'{"detail":"timeout"}', TryAgain(detail="timeout")),
        (b"<html>", TryAgain()),
        (b"null", TryAgain()),
        (b"", TryAgain()),
    ],
)
def test_a_timeout_says_not_yet_whatever_its_body(body: bytes, answer: TryAgain) -> None:
    """The queue state is read where there is one."""
    assert answer == parse_timeout_answer(body)
