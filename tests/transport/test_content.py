"""Content-encodings that nobody asked for are undone, within bounds."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinker_async.errors import ResponseError
from tinker_async.transport.content import decoded

PLAIN = b"some text, " * 500


def raw_deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (b"gzip", gzip.compress(PLAIN, mtime=0)),
        (b"X-GZIP", gzip.compress(PLAIN, mtime=0)),
        (b"gzip", gzip.compress(PLAIN[:100], mtime=0) + gzip.compress(PLAIN[100:], mtime=0)),
        (b"deflate", zlib.compress(PLAIN)),
        (b"deflate", raw_deflate(PLAIN)),
        (b"identity", PLAIN),
        (b"deflate, gzip", gzip.compress(zlib.compress(PLAIN), mtime=0)),
        (b"gzip, identity", gzip.compress(PLAIN, mtime=0)),
    ],
)
def test_known_encodings_come_out_plain(coding: bytes, body: bytes) -> None:
    """Members, spellings and stacks of encodings included."""
    assert PLAIN == decoded(((b"content-encoding", coding),), body, endpoint="/x")
    view = memoryview(body)
    assert PLAIN == bytes(decoded(((b"content-encoding", coding),), view, endpoint="/x"))


def test_without_an_encoding_the_body_is_not_copied() -> None:
    """The usual case costs nothing."""
    body = bytearray(b"body")
    assert body is decoded(((b"content-type", b"x"),), body, endpoint="/x")


@pytest.mark.parametrize(
    ("coding", "body", "words"),
    [
        (b"gzip", gzip.compress(PLAIN, mtime=0)[:-12], "ends too early"),
        (b"gzip", b"not gzip", "broken"),
        (b"deflate", b"\x78\x9cnot deflate", "broken"),
        (b"br", b"x", "content-encoding 'br'"),
    ],
)
def test_what_cannot_be_undone_is_an_error_that_names_the_endpoint(
    coding: bytes, body: bytes, words: str
) -> None:
    """The caller learns which answer it was."""
    with pytest.raises(ResponseError, match=words) as caught:
        decoded(((b"content-encoding", coding),), body, endpoint="/api/x")
    assert "/api/x" == caught.value.endpoint


def test_a_small_body_cannot_blow_up() -> None:
    """The bound holds for what comes out, over all members."""
    bomb = gzip.compress(bytes(1 << 20))
    headers = ((b"content-encoding", b"gzip"),)
    with pytest.raises(ResponseError, match="larger than 1048575"):
        decoded(headers, bomb, endpoint="/x", most=(1 << 20) - 1)
    with pytest.raises(ResponseError, match="larger"):
        decoded(headers, bomb * 3, endpoint="/x", most=2 << 20)
    assert 1 << 20 == len(decoded(headers, bomb, endpoint="/x", most=1 << 20))


def test_a_body_of_very_many_members_is_refused() -> None:
    """Following each copies the rest: 60,000 empty ones would hold the event loop for seconds."""
    headers = ((b"content-encoding", b"gzip"),)
    member = gzip.compress(b"", mtime=0)
    assert b"" == decoded(headers, member * 100, endpoint="/x")
    with pytest.raises(ResponseError, match="more than 100 members"):
        decoded(headers, member * 60_000, endpoint="/x")


@given(st.binary(max_size=2000))
def test_any_body_survives_every_encoding(body: bytes) -> None:
    """Round trip."""
    for coding, sent in (
        (b"gzip", gzip.compress(body, mtime=0)),
        (b"deflate", zlib.compress(body)),
    ):
        assert body == decoded(((b"content-encoding", coding),), sent, endpoint="/x")
