"""Damaged small things: headers, paths, handles and addresses."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
from fuzz.harness import fuzz
from fuzz.mutations import damaged, damaged_json

from tinker_async.api.calls import error_of
from tinker_async.api.retry import parse_retry_after
from tinker_async.config import resolve_config
from tinker_async.credentials import tokens
from tinker_async.credentials.secret import Secret
from tinker_async.credentials.stored import CredentialStore, StoredKey
from tinker_async.data.handles import SamplerHandle
from tinker_async.data.paths import parse_path
from tinker_async.errors import APIStatusError, ConfigError, InvalidInputError
from tinker_async.transport import Response

NOW = datetime(2026, 11, 22, tzinfo=UTC)
PAUSES = [
    *(b"0", b"3", b"1.5", b"-1", b"1e3", b"1e400", b"nan", b"inf", b"1_0", b" 7 ", b"0x10", b""),
    *(b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT", b"Sun, 06 Nov 1994"),
    *(b"Sun Nov  6 08:49:37 1994", b"Sun, 22 Nov 2026 00:00:30 +0200", b"22 Nov 2026 00:00 -9999"),
    *(b"Sun, 22 Nov 99999999999 00:00:30 GMT", b"Mon, 31 Feb 2026 25:61:61 GMT", b"1 Jan 1 0:0:0"),
    *(b"31 Dec 9999 23:59:59 -2359", b"1" * 5000, b"\xff\xfe", b"1 Jan 10000000000 00:00:00 +0000"),
]
"""Values of `retry-after`, good and bad."""


def test_damaged_retry_after_is_a_pause_or_nothing() -> None:
    """Whatever a server writes there, it is seconds (not negative, finite) or is ignored."""

    def read(value: bytes) -> None:
        for pair in ((None, value), (value, None), (value, b"3")):
            pause_s = parse_retry_after(*pair, now=NOW)
            assert pause_s is None or 0 <= pause_s < float("inf")

    fuzz(
        "retry-after",
        lambda rng: damaged(rng, rng.choice(PAUSES), PAUSES) if rng.random() < 0.8 else _date(rng),
        read,
        cases=4000,
        allowed=(),
    )


def _date(rng: Random) -> bytes:
    """A date whose parts are numbers of any size."""
    numbers = (0, 1, 6, 29, 31, 60, 61, 99, 1994, 2026, 9999, 10_000, 2**31, 2**63, 10**19, -1)
    day, year, hour, minute, second = (rng.choice(numbers) for _ in range(5))
    month = rng.choice(("Jan", "Feb", "Dec", "Foo"))
    zone = rng.choice(("GMT", "+0000", "-2359", "+9999", "-99999999", "EST", "", "+1e9"))
    return f"Sun, {day} {month} {year} {hour}:{minute}:{second} {zone}".encode()


REFUSALS = [
    b'{"detail":"no"}',
    b'{"detail":[{"loc":["body"],"msg":"missing"}]}',
    b'{"message":{"a":1}}',
    b'{"error":null,"detail":""}',
    b"<html>502 Bad Gateway</html>",
    b"",
]


def test_damaged_refusals_are_status_errors() -> None:
    """An error status is a typed error whatever its body is: the text is for people only."""

    def read(body: bytes) -> None:
        for status in (400, 429, 503):
            response = Response(status, ((b"retry-after", body[:40]),), body)
            error = error_of(response, "/api/v1/x")
            assert isinstance(error, APIStatusError)
            assert len(error.detail) <= 2000
            str(error)

    fuzz(
        "refusal",
        lambda rng: (
            damaged_json(rng, rng.choice(REFUSALS[:4]), REFUSALS)
            if rng.random() < 0.8
            else damaged(rng, rng.choice(REFUSALS), REFUSALS)
        ),
        read,
        cases=3000,
        allowed=(),
    )


PATHS = [b"tinker://run-1/weights/a", b"tinker://r/sampler_weights/0001", b"tinker://", b"/a/b/c"]


def test_damaged_checkpoint_paths_are_refused() -> None:
    """A text is a checkpoint's path or an InvalidInputError."""

    def read(body: bytes) -> None:
        text = body.decode("utf-8", "surrogateescape")
        for expect in (None, "training"):
            parsed = parse_path(text, expect=expect)
            assert text == str(parsed)

    fuzz(
        "path",
        lambda rng: damaged(rng, rng.choice(PATHS), PATHS),
        read,
        cases=2000,
        allowed=(InvalidInputError,),
    )


HANDLES = [
    b'{"type":"sampler_handle","base_url":"http://h:1/x","sampling_session_id":"s","base_model":"m"}',
    (
        b'{"type":"sampler_handle","base_url":"https://[::1]:8000","sampling_session_id":"s",'
        b'"model_path":"tinker://r/sampler_weights/a"}'
    ),
    b'{"base_url":"http://[","sampling_session_id":"s"}',
    b'{"base_url":"http://u:p@h","sampling_session_id":"s"}',
]


def test_damaged_handles_are_refused() -> None:
    """The JSON of a handle is a handle, which can be written again, or an InvalidInputError."""

    def read(body: bytes) -> None:
        handle = SamplerHandle.from_json(body)
        assert handle == SamplerHandle.from_json(handle.to_json())

    fuzz(
        "handle",
        lambda rng: damaged_json(rng, rng.choice(HANDLES), HANDLES),
        read,
        cases=3000,
        allowed=(InvalidInputError,),
    )


URLS = [
    *(b"http://h", b"https://h:443/a/b", b"http://[::1]:80", b"http://[", b"http://h:99999"),
    *(b"http://h:port", b"ftp://h", b"//h", b"", b"http://u:p@h", b"http://h?q#f", b"http://h/../"),
]


@pytest.mark.parametrize("key", ["tml-test", "x\n", "é"])
def test_damaged_addresses_are_refused(key: str) -> None:
    """A base URL can be connected to, or it is a ConfigError."""

    def read(body: bytes) -> None:
        text = body.decode("utf-8", "surrogateescape")
        config = resolve_config(text, key, environ={})
        assert config.base_path == "" or config.base_path.startswith("/")
        repr(config)
        SamplerHandle(base_url=text, sampling_session_id="s")

    fuzz(
        f"url-{len(key)}",
        lambda rng: damaged(rng, rng.choice(URLS), URLS),
        read,
        cases=700,
        allowed=(ConfigError, InvalidInputError),
    )


@pytest.mark.parametrize("url", ["http://[", "http://[::1", "//[x]@"])
def test_a_handle_of_no_address_is_refused(url: str) -> None:
    """A base_url that is none is an InvalidInputError that names the field."""
    with pytest.raises(InvalidInputError) as caught:
        SamplerHandle(base_url=url, sampling_session_id="s")
    assert caught.value.field == "base_url"


CLAIMS = [
    b'{"exp":4102444800,"iat":1,"sub":"u","org_id":"o","email":"a@b","iss":"passport-x"}',
    b'{"exp":1e999,"iat":-1e999}',
    b'{"exp":null,"iat":[],"sub":{}}',
]


def test_damaged_tokens_are_read_as_far_as_they_can_be() -> None:
    """A token is for the server to judge: what cannot be read of it is taken as not said."""

    def read(body: bytes) -> None:
        parts = (b"eyJh", base64.urlsafe_b64encode(body).rstrip(b"="), b"")
        for token in (b".".join(parts).decode(), body.decode("latin-1")):
            assert isinstance(tokens.claims_of(token), dict)
            left_s = tokens.left_of(token, now=1e9)
            assert 0 <= tokens.usable_of(left_s) or left_s < 0
            for seconds in (tokens.expiry_of(token), tokens.lifetime_of(token)):
                assert seconds is None or isinstance(seconds, float)

    fuzz(
        "token",
        lambda rng: damaged_json(rng, rng.choice(CLAIMS), CLAIMS),
        read,
        cases=3000,
        allowed=(),
    )


STORED = [
    (
        b'{"version":1,"default":"7","keys":{"7":{"type":"manual","key":"tml-hidden","name":"n",'
        b'"note":"x","details":{"org_details":{"name":"o"},"user_details":{"email":"e"}}}}}'
    ),
    b'{"version":1,"keys":{}}',
    b'{"keys":null,"default":7}',
]


def test_a_damaged_file_of_credentials_is_refused_without_its_content(tmp_path: Path) -> None:
    """It is read, or a ConfigError that names it; a key can be added only to what can be read."""
    store = CredentialStore(tmp_path / "credentials.json")

    def read(body: bytes) -> None:
        Path(store.path).write_bytes(body)
        try:
            repr([store.default(), *store.list_keys()])
            store.add(StoredKey("8", Secret("tml-new"), "new"))
        except ConfigError as error:
            if "hidden" in str(error):
                raise AssertionError(str(error)) from error
            raise
        found = store.default()
        assert found is not None
        assert "8" == found.key_id

    fuzz(
        "credentials",
        lambda rng: damaged_json(rng, rng.choice(STORED), STORED),
        read,
        cases=600,
        allowed=(ConfigError,),
    )
