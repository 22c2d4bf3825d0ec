"""Our HTTP/1.1 messages beside `h11`: what we accept means the same there."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinker_async.transport.http1_messages import (
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    BadMessageError,
    RequestHeads,
    ResponseHeads,
    ResponseReader,
)

MOST = 10_000
Answer = tuple[int, list[tuple[bytes, bytes]], bytes, bool]
"""Status, headers, body, and whether the connection may be used again."""


def ours(
    data: bytes, cuts: list[int], *, method: str = "POST", heads: ResponseHeads | None = None
) -> Answer | str:
    """What the reader makes of bytes that arrive in pieces, and then end."""
    reader = ResponseReader(heads or ResponseHeads(), bodiless=method == "HEAD", most=MOST)
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    whole = False
    try:
        for start, end in pairwise(edges):
            if whole:
                # As the line does it: bytes that come later are found on the idle connection.
                reader.reusable = False
                break
            whole = reader.feed(data[start:end])
    except BadMessageError as error:
        return f"refused: {error}"
    except OverflowError:
        return "too large"
    if not whole and not reader.finish():
        return "cut off"
    headers = [  # h11 writes it so
        (name, value.lower() if name == b"transfer-encoding" else value)
        for name, value in reader.head.headers
    ]
    return reader.head.status, headers, reader.body, reader.reusable


def theirs(data: bytes, *, method: str = "POST") -> Answer | str:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method=method, target="/", headers=[("host", "here")]))
    connection.send(h11.EndOfMessage())
    try:
        connection.receive_data(data)
        status, headers, body, ended = 0, [], b"", False
        fed_end = False
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA and not fed_end:
                fed_end = True
                connection.receive_data(b"")
            elif isinstance(event, h11.Response):
                status, headers = event.status_code, list(event.headers)
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                ended = True
                break
            elif not isinstance(event, h11.InformationalResponse):
                break
    except h11.ProtocolError as error:
        return f"refused: {error}"
    if not ended:
        return "cut off"
    reusable = connection.their_state is h11.DONE and not connection.trailing_data[0]
    return status, headers, body, reusable


names = st.sampled_from([b"Date", b"x-a", b"X-B", b"Server", b"Content-Type"])
values = st.sampled_from([b"", b"a", b"two words", b"tab\tin it", b"\xe9\xff", b'a,b;c="d:e"'])
fields = st.lists(st.tuples(names, values), max_size=4)
spaces = st.sampled_from([b"", b" ", b"\t ", b"  "])
cuts = st.lists(st.integers(0, 2000), max_size=6)
methods = st.sampled_from(["POST", "POST", "HEAD"])


@st.composite
def heads(draw: Any, status: int, framing: list[tuple[bytes, bytes]], version: bytes) -> bytes:
    reason = draw(st.sampled_from([b"", b" ", b" OK", b" Not Found", b" caf\xe9"]))
    lines = [b"HTTP/1.%b %d%b" % (version, status, reason)]
    all_fields = draw(st.permutations([*draw(fields), *framing]))
    for name, value in all_fields:
        lines.append(b"%b:%b%b%b" % (name, draw(spaces), value, draw(spaces)))
    return b"\r\n".join([*lines, b"", b""])


@st.composite
def responses(draw: Any) -> tuple[bytes, str]:
    """A response after RFC 9112, and the method that it answers."""
    method = draw(methods)
    status = draw(st.sampled_from([200, 200, 200, 201, 204, 304, 404, 500, 599]))
    version = draw(st.sampled_from([b"1", b"1", b"1", b"0"]))
    body = draw(st.binary(max_size=300))
    kinds = ["length", "close"] if version == b"0" else ["length", "close", "chunks", "chunks"]
    kind = draw(st.sampled_from(kinds))
    framing = []
    if kind == "length":
        framing.append(
            (draw(st.sampled_from([b"Content-Length", b"content-length"])), b"%d" % len(body))
        )
    if kind == "chunks":
        framing.append((b"Transfer-Encoding", draw(st.sampled_from([b"chunked", b"Chunked"]))))
    token = draw(st.sampled_from([None, None, b"close", b"keep-alive", b"x, Close"]))
    if token is not None:
        framing.append((b"Connection", token))
    data = b""
    for interim in draw(st.lists(st.sampled_from([100, 102, 103]), max_size=2)):
        data += draw(heads(interim, [], b"1"))
    data += draw(heads(status, framing, version))
    if method == "HEAD" or status in (204, 304):
        return data, method
    return data + (draw(chunked(body)) if kind == "chunks" else body), method


@st.composite
def chunked(draw: Any, body: bytes) -> bytes:
    data = b""
    while body:
        size = draw(st.integers(1, len(body)))
        extension = draw(st.sampled_from([b"", b"", b";a", b';a=b;c="d e"']))
        digits = draw(st.sampled_from([b"%x", b"%X", b"0%x"])) % size
        data += digits + extension + b"\r\n" + body[:size] + b"\r\n"
        body = body[size:]
    last: bytes = draw(st.sampled_from([b"0", b"000", b"0;last"]))
    trailers = b"".join(b"%b: %b\r\n" % pair for pair in draw(fields))
    return data + last + b"\r\n" + trailers + b"\r\n"


@settings(max_examples=400, deadline=None)
@given(responses(), cuts)
def test_a_response_by_the_rules_is_read_as_h11_reads_it(
    response: tuple[bytes, str], cuts: list[int]
) -> None:
    """Status, headers, body; cut anywhere. A connection we keep is one that h11 keeps."""
    data, method = response
    expected = theirs(data, method=method)
    found = ours(data, cuts, method=method)

    assert not isinstance(found, str), (found, data)
    assert expected[:3] == found[:3]
    assert expected[3] or not found[3]


NASTY = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"0", b"1", b"5", b"f", b"-", b"+", b"_", b"\x0b",
    b"\x7f", b"\r\n ", b"\r\n\t", b"\r\n\r\n", b"\r\n0\r\n\r\n", b"Content-Length: 3\r\n",
    b"content-length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
    b"chunked", b"Connection: close\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 \r\n\r\n", b"HTTP/1.0",
]  # fmt: skip


@st.composite
def mangled(draw: Any) -> tuple[bytes, str]:
    data, method = draw(responses())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.sampled_from([0, 0, 1, 2, 5]))
        data = data[:at] + draw(st.sampled_from([b"", *NASTY])) + data[at + gone :]
    return data, method


@settings(max_examples=800, deadline=None)
@given(mangled(), cuts)
def test_what_we_accept_of_a_broken_response_h11_reads_alike(
    response: tuple[bytes, str], cuts: list[int]
) -> None:
    """Else it is refused: never another meaning, never another exception."""
    data, method = response
    found = ours(data, cuts, method=method)
    if isinstance(found, str):
        return
    expected = theirs(data, method=method)

    assert not isinstance(expected, str), (expected, data)
    assert expected[:3] == found[:3]
    assert expected[3] or not found[3]


@settings(max_examples=300, deadline=None)
@given(st.one_of(responses(), mangled()))
def test_where_the_bytes_are_cut_makes_no_difference(response: tuple[bytes, str]) -> None:
    """Byte by byte, or at once: the same answer, or a refusal both times."""
    data, method = response
    at_once = ours(data, [], method=method)
    one_by_one = ours(data, list(range(len(data))), method=method)
    if isinstance(at_once, str):
        assert isinstance(one_by_one, str)
    else:
        assert at_once[:3] == one_by_one[:3]


@settings(max_examples=200, deadline=None)
@given(st.lists(responses(), min_size=1, max_size=5))
def test_heads_that_were_seen_before_say_the_same_again(
    answers: list[tuple[bytes, str]],
) -> None:
    """The memory of heads is shared by all connections and changes nothing."""
    heads = ResponseHeads()
    for data, method in (*answers, *answers):
        assert ours(data, [], method=method) == ours(data, [], method=method, heads=heads)


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        OK + b"content-length: 3\r\ncontent-length: 5\r\n\r\nhello",
        OK + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        OK + b"content-length: 5, 5\r\n\r\nhello",
        OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        OK + b"transfer-encoding: identity\r\n\r\n",
        OK + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"content-length: +5\r\n\r\nhello",
        OK + b"content-length: -5\r\n\r\nhello",
        OK + b"content-length: 0x5\r\n\r\nhello",
        OK + b"content-length: 5_0\r\n\r\nhello",
        OK + b"content-length: \xb2\r\n\r\nhello",
        OK + b"content-length:\r\n\r\nhello",
        OK + b"content-length: 99999999999999999999\r\n\r\nhello",
        OK + b"content-length : 5\r\n\r\nhello",
        OK + b"x-a: 1\r\n content-length: 5\r\n\r\nhello",
        OK + b" content-length: 5\r\n\r\nhello",
        OK + b"x-a: 1\ncontent-length: 5\r\n\r\nhello",
        OK + b"x-a: 1\rcontent-length: 5\r\n\r\nhello",
        OK + b"x-a: \0\r\ncontent-length: 5\r\n\r\nhello",
        OK + b"content-length\r\n\r\nhello",
        OK + b": 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello",
        b"HTTP/2 200\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 2000 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 20 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1  200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 099 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"http/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n",
        CHUNKED + b" 5\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"-1\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"5;a\0\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"5\nhello\r\n0\r\n\r\n",
        CHUNKED + b"5\r\nhello0\r\n\r\n",
        CHUNKED + b"5\r\nhelloXX0\r\n\r\n",
        CHUNKED + b"5\r\nhello\n0\r\n\r\n",
        CHUNKED + b"4\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"1" + b"0" * 15 + b"\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"0\r\nno trailer\r\n\r\n",
        CHUNKED + b"0\r\nx-a: 1\r\n folded\r\n\r\n",
        CHUNKED + b"5;" + b"x" * 5000 + b"\r\nhello\r\n0\r\n\r\n",
    ],
)  # fmt: skip
def test_ambiguous_framing_is_refused(data: bytes) -> None:
    """Whatever two readers could take differently; at once and byte by byte."""
    for cuts in ([], list(range(len(data)))):
        found = ours(data, cuts)
        assert isinstance(found, str)
        assert found.startswith("refused")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (OK + b"content-length: 2\r\n\r\nhi", (b"hi", True)),
        (OK + b"content-length: 2\r\n\r\nhi!", (b"hi", False)),
        (OK + b"content-length: 0\r\n\r\n", (b"", True)),
        (OK + b"content-length: 002\r\n\r\nhi", (b"hi", True)),
        (OK + b"content-length: 2\r\nconnection: close\r\n\r\nhi", (b"hi", False)),
        (OK + b"content-length: 2\r\nconnection: a, CLOSE\r\n\r\nhi", (b"hi", False)),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", (b"hi", False)),
        (OK + b"\r\nhi", (b"hi", False)),
        (CHUNKED + b"2\r\nhi\r\n0\r\n\r\n", (b"hi", True)),
        (CHUNKED + b"2\r\nhi\r\n0\r\nx: y\r\n\r\n!", (b"hi", False)),
        (b"HTTP/1.1 204 No\r\n\r\n", (b"", True)),
        (b"HTTP/1.1 304 No\r\ncontent-length: 9\r\n\r\n", (b"", True)),
        (b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 103 \r\nx: y\r\n\r\n" + OK + b"content-length: 2\r\n\r\nhi", (b"hi", True)),
    ],
)  # fmt: skip
def test_the_end_of_a_body_and_the_fate_of_its_connection(
    data: bytes, expected: tuple[bytes, bool]
) -> None:
    """By length, in chunks, up to the end, or none at all."""
    found = ours(data, [])
    assert not isinstance(found, str)
    assert expected == found[2:]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (OK + b"x: " + b"a" * MAX_HEAD_BYTES, "refused: the head is larger"),
        (OK + b"x: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n", "refused: the head is larger"),
        (OK + b"x: y\r\n" * (MAX_FIELDS + 1) + b"\r\n", "refused: there are more than"),
        (OK + b"content-length: %d\r\n\r\n" % (MOST + 1), "too large"),
        (OK + b"\r\n" + bytes(MOST + 1), "too large"),
        (CHUNKED + b"%x\r\n" % (MOST + 1), "too large"),
        (CHUNKED + b"1388\r\n" + bytes(5000) + b"\r\n1389\r\n", "too large"),
        (CHUNKED + b"0\r\n" + b"x: %b\r\n" % (b"a" * 4000) * 17, "refused: the trailers are larger"),
    ],
)  # fmt: skip
def test_nothing_grows_without_bound(data: bytes, expected: str) -> None:
    """Heads, their fields, bodies and trailers; refused as soon as it is known."""
    found = ours(data, [])
    assert isinstance(found, str)
    assert found.startswith(expected)


@pytest.mark.parametrize("data", [b"SSH-2.0-x", b"\x16\x03\x01", b"HTTP/1.1 200 OK\n", b"HTTQ"])
def test_what_can_become_no_response_is_refused_before_its_end(data: bytes) -> None:
    """A server of another protocol waits for us, perhaps for ever."""
    reader = ResponseReader(ResponseHeads(), bodiless=False, most=MOST)
    with pytest.raises(BadMessageError):
        reader.feed(data)


# Requests


request_names = st.sampled_from(
    [b"x-a", b"X-B", b"accept", b"host", b"Content-Length", b"connection"]
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["GET", "POST", "DELETE", "PUT"]),
    st.sampled_from(["/", "/a/b?c=d&e=%20", "/x"]),
    st.lists(st.tuples(request_names, values.filter(lambda v: v == v.strip())), max_size=5),
    st.integers(0, 500),
)
@example("POST", "/", [(b"transfer-encoding", b"chunked")], 0)
def test_a_head_that_we_write_is_read_by_h11_as_it_was_meant(
    method: str, path: str, headers: list[tuple[bytes, bytes]], size: int
) -> None:
    """Host and length are ours alone; the second time from memory."""
    heads = RequestHeads(b"here:80")
    for _ in range(2):
        server = h11.Connection(h11.SERVER)
        server.receive_data(heads.head(method, path, tuple(headers), size) + bytes(size))
        request = server.next_event()
        assert isinstance(request, h11.Request)
        assert (method.encode(), path.encode()) == (request.method, request.target)
        kept = [
            (name.lower(), value)
            for name, value in headers
            if name.lower() not in {b"host", b"content-length", b"connection", b"transfer-encoding"}
        ]
        length = [(b"content-length", b"%d" % size)] if size or method in ("POST", "PUT") else []
        assert [(b"host", b"here:80"), *kept, *length] == list(request.headers)
        body = b""
        while isinstance(event := server.next_event(), h11.Data):
            body += event.data
        assert bytes(size) == body
        assert isinstance(event, h11.EndOfMessage)


@pytest.mark.parametrize(
    ("method", "path", "header"),
    [
        ("POST", "/ HTTP/1.1\r\nx: y", (b"a", b"b")),
        ("POST", "/a b", (b"a", b"b")),
        ("POST", "/\xe9", (b"a", b"b")),
        ("POST", "", (b"a", b"b")),
        ("PO ST", "/", (b"a", b"b")),
        ("POST", "/", (b"a", b"b\r\nc: d")),
        ("POST", "/", (b"a", b"b\nc: d")),
        ("POST", "/", (b"a", b"b\0")),
        ("POST", "/", (b"a: b\r\nc", b"d")),
        ("POST", "/", (b"a ", b"b")),
        ("POST", "/", (b"", b"b")),
    ],
)
def test_a_request_cannot_smuggle_another(
    method: str, path: str, header: tuple[bytes, bytes]
) -> None:
    """Line ends and blanks have no place in its parts; values are not repeated in the error."""
    with pytest.raises(BadMessageError) as caught:
        RequestHeads(b"here").head(method, path, (header,), 0)
    assert "c: d" not in str(caught.value)
