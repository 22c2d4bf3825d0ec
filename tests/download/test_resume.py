"""What an answer means for what is on the disk: pure decisions."""

from __future__ import annotations

import base64
import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinker_async.download.content import fault_of_header
from tinker_async.download.resume import (
    OVERLAP_BYTES,
    Append,
    Ask,
    FromStart,
    Version,
    Void,
    Whole,
    meaning_of,
)

HAVE = 3 * OVERLAP_BYTES
AT = HAVE - OVERLAP_BYTES
TOTAL = 10 * OVERLAP_BYTES
KNOWN = Version('"v1"', TOTAL)
ASK = Ask(HAVE, KNOWN)


def span(first: int, last: int, total: int | str = TOTAL) -> str:
    return f"bytes {first}-{last}/{total}"


def test_nothing_on_disk_asks_for_all() -> None:
    """No range: the plainest request there is."""
    assert {} == Ask(0, Version()).headers()


def test_going_on_asks_for_a_little_that_is_there_and_only_of_that_version() -> None:
    """A weak or missing ETag is no condition."""
    assert {"range": f"bytes={AT}-", "if-range": '"v1"'} == ASK.headers()
    assert {"range": "bytes=0-"} == Ask(5, Version()).headers()


def test_a_fitting_range_is_appended() -> None:
    """With all that is known of the version."""
    headers = {"content-range": span(AT, TOTAL - 1), "etag": '"v1"'}

    assert Append(KNOWN, TOTAL - AT) == meaning_of(ASK, 206, headers)
    assert Append(KNOWN, TOTAL - AT) == meaning_of(
        ASK, 206, {"content-range": span(AT, TOTAL - 1, "*")}
    )


def test_a_whole_file_replaces_what_there_is() -> None:
    """The host ignores ranges, or has another version."""
    headers = {"content-length": "7", "etag": '"v2"'}

    assert FromStart(Version('"v2"', 7)) == meaning_of(ASK, 200, headers)


@pytest.mark.parametrize("etag", ['W/"weak"', "", "bare", '"', '"a"b"', '"nl\n"'])
def test_weak_and_malformed_etags_are_none(etag: str) -> None:
    """They do not promise equal bytes."""
    assert FromStart(Version(None, None)) == meaning_of(ASK, 200, {"etag": etag})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-range": "bytes 0-1/x"},
        {"content-range": span(AT + 1, TOTAL - 1)},
        {"content-range": span(0, TOTAL - 1)},
        {"content-range": span(AT, AT - 1)},
        {"content-range": span(AT, TOTAL)},
        {"content-range": span(AT, TOTAL - 1, TOTAL + 5)},
        {"content-range": span(AT, TOTAL - 1), "etag": '"v2"'},
        {"content-range": span(AT, TOTAL - 1), "content-length": "5"},
        {"content-range": span(AT, AT, AT + 1)},
        {"content-range": span(AT, TOTAL - 1), "content-encoding": "gzip"},
        {"content-type": "multipart/byteranges; boundary=x"},
    ],
    ids=str,
)
def test_ranges_that_do_not_fit_void_everything(headers: dict[str, str]) -> None:
    """Other starts, totals, versions, and contradictions."""
    assert isinstance(meaning_of(ASK, 206, headers), Void)


def test_a_range_that_nobody_asked_for_is_void() -> None:
    """A 206 to a plain request."""
    assert isinstance(meaning_of(Ask(0, Version()), 206, {"content-range": "bytes 0-9/10"}), Void)


def test_an_unsatisfiable_range_of_a_whole_file_is_its_end() -> None:
    """Only where all sizes agree."""
    whole = Ask(TOTAL, KNOWN)

    assert Whole() == meaning_of(whole, 416, {"content-range": f"bytes */{TOTAL}"})
    assert isinstance(meaning_of(whole, 416, {}), Void)
    assert isinstance(meaning_of(whole, 416, {"content-range": "bytes */5"}), Void)
    assert isinstance(meaning_of(ASK, 416, {"content-range": f"bytes */{HAVE}"}), Void)


@pytest.mark.parametrize("status", [204, 302, 304, 400, 403, 404, 412, 429, 500, 503])
def test_other_statuses_are_the_callers_business(status: int) -> None:
    """They say nothing of the bytes."""
    assert meaning_of(ASK, status, {}) is None


@pytest.mark.parametrize("coding", ["gzip", "br", "GZIP", "deflate, gzip"])
def test_a_compressed_answer_is_void(coding: str) -> None:
    """It was not asked for, its length is another, and it may be a bomb."""
    assert isinstance(meaning_of(ASK, 200, {"content-encoding": coding}), Void)
    assert isinstance(
        meaning_of(ASK, 200, {"content-encoding": "identity", "content-length": "1"}), FromStart
    )


def test_digests_are_read_in_three_spellings() -> None:
    """And a multi-part checksum of a storage service is none."""
    digest = hashlib.sha256(b"x")
    text = base64.b64encode(digest.digest()).decode()
    for headers in (
        {"repr-digest": f"sha-512=:aaaa:, sha-256=:{text}:"},
        {"digest": f"SHA-256={text}"},
        {"x-amz-checksum-sha256": text},
    ):
        found = meaning_of(ASK, 200, headers)
        assert isinstance(found, FromStart)
        assert digest.hexdigest() == found.version.sha256
    composite = meaning_of(ASK, 200, {"x-amz-checksum-sha256": f"{text}-3"})
    assert isinstance(composite, FromStart)
    assert composite.version.sha256 is None


HEADER = st.text(st.sampled_from('bytes 0123456789-/*"Wv:=,abc\u00b2'), max_size=30)


@given(
    status=st.sampled_from([200, 206, 416]),
    headers=st.dictionaries(
        st.sampled_from(["content-range", "etag", "content-length", "repr-digest", "digest"]),
        HEADER,
    ),
    have=st.integers(0, 1 << 40),
    total=st.none() | st.integers(0, 1 << 40),
)
def test_whatever_headers_say_there_is_a_meaning_and_appends_fit(
    status: int, headers: dict[str, str], have: int, total: int | None
) -> None:
    """No exception; and nothing is appended that begins elsewhere or ends beyond the total."""
    ask = Ask(have, Version(total_bytes=total))
    meaning = meaning_of(ask, status, headers)

    assert meaning is not None
    if isinstance(meaning, Append):
        known = meaning.version.total_bytes
        assert have > 0
        assert known is None or (meaning.length_bytes or 0) + ask.offset <= known
        assert total in (None, known)


def header_of(tensors: dict[str, object]) -> bytes:
    return msgspec.json.encode(tensors)


def test_a_safetensors_file_says_itself_how_long_it_is() -> None:
    """Too short, too long, and cut in the header."""
    header = header_of(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
        }
    )
    size = 8 + len(header) + 12

    assert fault_of_header(len(header), header, size) is None
    assert fault_of_header(2, b"{}", 10) is None
    assert "describes" in str(fault_of_header(len(header), header, size - 1))
    assert "describes" in str(fault_of_header(len(header), header, size + 1))
    assert "ends in its header" in str(fault_of_header(len(header), header[:-1], size))
    assert "ends in its header" in str(fault_of_header(0, b"", 0))


@given(st.binary(max_size=200))
def test_noise_in_a_header_is_a_fault_and_no_exception(header: bytes) -> None:
    """Deep nesting too."""
    fault_of_header(len(header), header, 1000)
    assert fault_of_header(20_000, b'{"a":' + b"[" * 20_000, 30_000) is not None
