"""What a token says of itself, read without trusting a byte of it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tinker_async.credentials.tokens import claims_of, expiry_of, left_of, lifetime_of, usable_of


def token(claims: Any) -> str:
    texts = [json.dumps(part).encode() for part in ({"alg": "none"}, claims)]
    parts = [base64.urlsafe_b64encode(text).rstrip(b"=") for text in texts]
    return b".".join([*parts, b"s"]).decode()


def test_claims_are_read_whatever_their_length() -> None:
    """Base64 without padding, in the alphabet of URLs."""
    for text in ("", "a", "ab", "abc", "????>>>>"):
        assert {"email": text} == claims_of(token({"email": text}))


@pytest.mark.parametrize(
    "text",
    ["", "eyJ", "eyJ.", "eyJ.é.x", "eyJ.!!!!.x", "eyJ.AAAA.x", token([1]), token("x"), "..."],
)
def test_what_is_no_token_says_nothing(text: str) -> None:
    """No exception, whatever the bytes."""
    assert {} == claims_of(text)
    assert expiry_of(text) is None
    assert lifetime_of(text) is None


@pytest.mark.parametrize("times", [{"exp": "1"}, {"exp": True}, {"exp": None}, {"exp": 1e300}])
def test_a_time_that_is_none_is_not_there(times: dict[str, Any]) -> None:
    """Of any other type or of no sensible size."""
    assert expiry_of(token({"iat": 0, **times})) is None
    assert lifetime_of(token({"iat": 0, **times})) is None


def test_a_token_is_used_until_a_minute_before_its_end() -> None:
    """Or for three quarters of its time, when that is short."""
    assert 3540 == usable_of(left_of(token({"iat": 1000, "exp": 4600}), now=1000))
    assert 75 == usable_of(left_of(token({"iat": 1000, "exp": 1100}), now=1000))
    assert 540 == usable_of(left_of(token({"exp": 1600}), now=1000))


@pytest.mark.parametrize("now", [-1e6, 0, 4601, 1e9])
def test_a_clock_that_is_wrong_does_not_cost_a_token_per_request(now: float) -> None:
    """The token's own two times tell how long it lasts."""
    assert 3600 == left_of(token({"iat": 1000, "exp": 4600}), now=now)


def test_a_token_without_an_end_is_looked_at_again_soon() -> None:
    """It says nothing: a minute or two."""
    assert 60 <= usable_of(left_of("eyJx", now=0)) <= 120
