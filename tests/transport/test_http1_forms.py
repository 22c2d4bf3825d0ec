"""HTTP/1.1 on the wire: every form of response, what ends a connection, and what is written."""

from __future__ import annotations

import os
from typing import Any

import anyio
import anyio.abc
import pytest
from transport.asking import BOUND_S
from transport.http1_peer import Wire, echo, http1_server

from tinker_async.errors import ProtocolError
from tinker_async.transport import Request, TrafficClass, http1
from tinker_async.transport.opening import open_transport
from tinker_async.transport.origin import parse_origin
from tinker_async.transport.tasks import LastingTasks


def post(body: bytes = b"") -> Request:
    return Request("POST", "/call", (), (body,), TrafficClass.SAMPLING)


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (ANSWER + b"\r\nhi", b"hi"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER + b"\r\nhi", b"hi"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", b"hi"),
        (b"HTTP/1.1 204 Nothing\r\n\r\n", b""),
    ],
    ids=["length", "interim", "chunks", "none"],
)
@pytest.mark.parametrize("pieces", [1, 1000])
async def test_a_response_in_any_form_leaves_its_connection_for_the_next(
    answer: bytes, expected: bytes, pieces: int
) -> None:
    """In one segment, or byte by byte."""

    async def script(wire: Wire) -> None:
        while True:
            await wire.request()
            size = -(-len(answer) // pieces)
            for start in range(0, len(answer), size):
                await wire.send(answer[start : start + size])

    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, open_transport(server.url) as t:
            for _ in range(3):
                assert expected == (await t.request(post(), silence_s=BOUND_S)).body
    assert 1 == server.connections


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER + b"Connection: close\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        ANSWER + b"\r\nhi" + ANSWER + b"\r\nno",
    ],
    ids=["close", "1.0", "two answers"],
)
async def test_a_connection_that_may_not_be_used_again_is_closed(answer: bytes) -> None:
    """The server said so, or sent more than it was asked for."""

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(answer)
        await wire.gone()

    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, open_transport(server.url) as t:
            for _ in range(3):
                assert b"hi" == (await t.request(post())).body
                assert 0 == t.statistics().connections
    assert 3 == server.connections


async def test_a_body_without_length_ends_with_its_connection() -> None:
    """As HTTP/1.0 had it."""

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\n\r\n")
        await wire.send(b"all there is")

    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, open_transport(server.url) as t:
            assert b"all there is" == (await t.request(post())).body
            assert 0 == t.statistics().connections


async def test_the_answer_to_a_head_request_has_no_body() -> None:
    """Its length is that of the body a GET would have; the connection goes on."""

    async def script(wire: Wire) -> None:
        while True:
            await wire.request()
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")

    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, open_transport(server.url) as t:
            for _ in range(2):
                assert b"" == (await t.request(Request("HEAD", "/", ()))).body
    assert 1 == server.connections


async def test_bytes_that_come_while_a_connection_is_idle_end_it() -> None:
    """They answer nothing that was asked; the next request has a connection of its own."""
    sent = anyio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.answer(b"%d" % wire.number)
        if not wire.number:
            await answered.wait()
            await wire.send(b"HTTP/1.1 408 Too Late\r\nContent-Length: 0\r\n\r\n")
            sent.set()
        await wire.gone()

    answered = anyio.Event()
    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, open_transport(server.url) as t:
            assert b"0" == (await t.request(post())).body
            answered.set()
            await sent.wait()
            assert b"1" == (await t.request(post())).body


async def test_a_request_that_is_no_http_is_refused_before_it_is_sent() -> None:
    """A line end in a header could be another request."""

    async def script(wire: Wire) -> None:
        await echo(wire)

    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, open_transport(server.url) as t:
            with pytest.raises(ProtocolError, match="is not valid HTTP"):
                await t.request(Request("POST", "/", ((b"a", b"b\r\nc: d"),)))
            assert 0 == server.connections
            assert b"fine" == (await t.request(post(b"fine"))).body


class Recorder(anyio.abc.ByteStream):
    """A stream that keeps what is written to it, as it was given."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self.stream = stream
        self.written: list[Any] = []

    @property
    def extra_attributes(self) -> Any:
        return self.stream.extra_attributes

    async def send(self, item: Any) -> None:
        self.written.append(item)
        await self.stream.send(item)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self.stream.receive(max_bytes)

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def aclose(self) -> None:
        await self.stream.aclose()


async def test_a_small_request_is_one_write_and_a_large_body_is_not_copied() -> None:
    """Head and body leave together; views of the caller's buffer go to the socket."""
    streams: list[Recorder] = []

    async def dial() -> anyio.abc.ByteStream:
        streams.append(Recorder(await anyio.connect_tcp("127.0.0.1", server.port)))
        return streams[0]

    body = os.urandom(1 << 20)
    with anyio.fail_after(BOUND_S):
        async with http1_server(echo) as server, anyio.create_task_group() as tasks:
            line = http1.Http1Line(
                parse_origin(server.url), dial, LastingTasks(tasks), max_connections=1
            )
            small = Request("POST", "/", (), (body[:60_000], memoryview(b"two")))
            assert body[:60_000] + b"two" == (await line.request(small)).body
            assert 1 == len(streams[0].written)
            assert body == (await line.request(Request("POST", "/", (), (body,)))).body
            await line.close()
    views = streams[0].written[2:]
    assert {id(body)} == {id(view.obj) for view in views}
    assert len(body) == sum(view.nbytes for view in views)


class CutOff(Recorder):
    """A stream that can be read, but of which the first write was the last."""

    async def send(self, item: Any) -> None:
        if self.written:
            raise anyio.BrokenResourceError
        await super().send(item)


async def test_an_answer_is_read_also_when_the_rest_of_the_upload_cannot_be_written() -> None:
    """The server said why it wants no more; the connection is of no further use."""

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await wire.gone()

    async def dial() -> anyio.abc.ByteStream:
        return CutOff(await anyio.connect_tcp("127.0.0.1", server.port))

    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, anyio.create_task_group() as tasks:
            line = http1.Http1Line(
                parse_origin(server.url), dial, LastingTasks(tasks), max_connections=1
            )
            response = await line.request(post(bytes(1 << 20)))
            assert (413, b"big") == (response.status, response.body)
            assert 0 == line.statistics().connections
