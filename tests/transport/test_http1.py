"""HTTP/1.1: reuse, waiting, failures and cancellation under our own line."""

from __future__ import annotations

import gzip
import os
import zlib
from functools import partial

import anyio
import anyio.abc
import pytest
from transport.asking import BOUND_S, Asked, until
from transport.http1_peer import Wire, echo, http1_server

from tinker_async.errors import (
    ConnectError,
    ProtocolError,
    RequestTimeoutError,
    ResponseError,
    SessionClosedError,
)
from tinker_async.transport import Request, TrafficClass, http1
from tinker_async.transport.opening import OpenTransport, open_transport
from tinker_async.transport.origin import parse_origin
from tinker_async.transport.tasks import LastingTasks


def post(body: bytes = b"", traffic: TrafficClass = TrafficClass.SAMPLING) -> Request:
    return Request("POST", "/base/call?x=1", ((b"x-key", b"value"),), (body,), traffic)


async def test_a_request_arrives_as_it_was_given_and_so_does_its_response() -> None:
    """Host and length are ours to say; buffers are joined; header names come back lower-case."""
    got: list[tuple[bytes, bytes]] = []

    async def script(wire: Wire) -> None:
        got.append(await wire.request())
        await wire.answer(b"answer", b"X-A: 1", b"X-A: 2")
        await wire.gone()

    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, open_transport(server.url) as t:
            parts = (b"one ", memoryview(b"two "), bytearray(b"three"), b"")
            headers = ((b"host", b"elsewhere"), (b"x-key", b"value"))
            response = await t.request(Request("POST", "/base/call?x=1", headers, parts))
    head, body = got[0]
    assert [
        b"POST /base/call?x=1 HTTP/1.1",
        b"content-length: 13",
        b"host: 127.0.0.1:%d" % server.port,
        b"x-key: value",
    ] == [head.split(b"\r\n")[0], *sorted(line.lower() for line in head.split(b"\r\n")[1:])]
    assert b"one two three" == body
    assert (200, b"answer") == (response.status, response.body)
    assert ((b"x-a", b"1"), (b"x-a", b"2")) == response.headers[1:]


@pytest.mark.parametrize("size", [0, 1, 262_144, 262_145, 5 << 20])
async def test_bodies_of_every_size_pass_both_ways(size: int) -> None:
    """Also those that are cut and joined on their way."""
    body = os.urandom(size)
    parts = [memoryview(body)[: size // 3], memoryview(body)[size // 3 :]]
    with anyio.fail_after(BOUND_S):
        async with http1_server(echo) as server, open_transport(server.url) as t:
            assert body == (await t.request(Request("POST", "/", (), parts))).body


async def test_connections_are_reused_and_the_last_used_first() -> None:
    """Three at once open three connections; one after the other uses a single one of them."""
    third = anyio.Event()
    served: list[int] = []

    async def script(wire: Wire) -> None:
        await wire.request()
        if wire.number == 2:
            third.set()
        await third.wait()
        await wire.answer()
        while True:
            await wire.request()
            served.append(wire.number)
            await wire.answer()

    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, open_transport(server.url) as t:
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(t.request, post())
            for _ in range(4):
                await t.request(post())
            statistics = t.statistics()
    assert 1 == len(set(served))
    assert (3, 3, 7) == (
        statistics.connections,
        statistics.connections_opened,
        statistics.requests_started,
    )


async def test_the_line_is_first_come_first_served_within_its_bound() -> None:
    """Never more connections than allowed; those in line go in order."""
    order: list[int] = []

    async def ask(t: OpenTransport, number: int) -> None:
        await t.request(post(b"%d" % number))
        order.append(number)

    with anyio.fail_after(BOUND_S):
        async with (
            http1_server(echo) as server,
            open_transport(server.url, max_connections=1) as t,
            anyio.create_task_group() as tasks,
        ):
            for number in range(20):
                tasks.start_soon(ask, t, number)
                await anyio.lowlevel.checkpoint()
    assert 1 == server.connections
    assert sorted(order) == order


async def test_held_polls_leave_connections_for_others() -> None:
    """With eight connections, polls take six at most; a heartbeat gets the very last."""
    release = anyio.Event()

    async def script(wire: Wire) -> None:
        while True:
            _, body = await wire.request()
            if body == b"held":
                await release.wait()
            await wire.answer(body)

    with anyio.fail_after(BOUND_S):
        async with (
            http1_server(script) as server,
            open_transport(server.url, max_connections=8) as t,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(20):
                tasks.start_soon(t.request, post(b"held", TrafficClass.POLLING))
            await until(lambda: t.statistics().waiting[TrafficClass.POLLING] >= 14)
            assert b"quick" == (await t.request(post(b"quick"))).body
            for _ in range(3):
                tasks.start_soon(t.request, post(b"held", TrafficClass.TRAINING))
            await until(lambda: t.statistics().waiting[TrafficClass.TRAINING] >= 2)
            assert b"beat" == (await t.request(post(b"beat", TrafficClass.SESSION))).body
            assert {"polling": 6, "training": 1, "sampling": 0, "session": 0} == {
                traffic.value: number for traffic, number in t.statistics().in_flight.items()
            }
            release.set()


async def test_a_connection_the_server_closed_while_idle_is_replaced_silently() -> None:
    """The common stale connection costs nothing but a new one."""
    closed = anyio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.answer(b"%d" % wire.number)
        if wire.number == 0:
            await wire.stream.aclose()
            closed.set()
        else:
            await wire.gone()

    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, open_transport(server.url) as t:
            assert b"0" == (await t.request(post())).body
            await closed.wait()
            assert b"1" == (await t.request(post())).body


async def test_a_reused_connection_that_ends_without_an_answer_is_in_doubt() -> None:
    """The server may have processed the request: not a `ConnectError`, and not repeated."""
    requests = 0

    async def script(wire: Wire) -> None:
        nonlocal requests
        await wire.request()
        await wire.answer()
        await wire.request()
        requests += 1

    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, open_transport(server.url) as t:
            await t.request(post())
            with pytest.raises(ProtocolError):
                await t.request(post())
    assert 1 == requests


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff\xfe garbage \r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["nothing", "garbage", "truncated", "truncated chunk", "bad chunk"],
)
async def test_broken_answers_are_protocol_errors_and_close_the_connection(answer: bytes) -> None:
    """Each names the server, keeps its cause, and leaves the transport usable."""

    async def script(wire: Wire) -> None:
        await wire.request()
        if wire.number:
            await wire.answer(b"fine")
            await wire.gone()
        else:
            await wire.send(answer)

    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, open_transport(server.url) as t:
            with pytest.raises(ProtocolError, match=f"127.0.0.1:{server.port}") as caught:
                await t.request(post())
            assert caught.value.__cause__ is not None
            assert b"fine" == (await t.request(post())).body
            assert 1 == t.statistics().connections


async def test_silence_is_a_timeout_before_and_within_the_body() -> None:
    """`silence_s` bounds each wait for bytes; the connection is closed."""

    async def script(wire: Wire) -> None:
        await wire.request()
        if wire.number:
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await wire.gone()

    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, open_transport(server.url) as t:
            for _ in range(2):
                with pytest.raises(RequestTimeoutError, match=r"silent for 0\.03 s"):
                    await t.request(post(), silence_s=0.03)
            assert 0 == t.statistics().connections
    assert 2 == server.connections


async def test_a_server_that_does_not_read_the_body_is_silent_too() -> None:
    """The write stalls once the socket's buffers are full."""

    async def script(_: Wire) -> None:
        await anyio.sleep_forever()

    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, open_transport(server.url) as t:
            with pytest.raises(RequestTimeoutError):
                await t.request(post(bytes(32 << 20)), silence_s=0.1)


async def test_a_slow_download_is_not_silence() -> None:
    """The limit is for each wait, not for all of them."""

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n")
        for _ in range(30):
            await anyio.sleep(0.02)  # 0.6 s in all
            await wire.send(b".")
        await wire.gone()

    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, open_transport(server.url) as t:
            assert b"." * 30 == (await t.request(post(), silence_s=0.3)).body


async def test_the_silence_of_one_request_is_not_that_of_another() -> None:
    """Each has its own bound or none."""
    timed_out = anyio.Event()

    async def script(wire: Wire) -> None:
        _, body = await wire.request()
        if body == b"patient":
            await timed_out.wait()
            await wire.answer(b"late")
        await wire.gone()

    with anyio.fail_after(BOUND_S):
        async with (
            http1_server(script) as server,
            open_transport(server.url) as t,
            anyio.create_task_group() as tasks,
        ):
            patient = [Asked(), Asked()]
            tasks.start_soon(patient[0].ask, t, post(b"patient"))
            tasks.start_soon(partial(patient[1].ask, t, post(b"patient"), silence_s=BOUND_S))
            await until(lambda: server.connections == 2)
            for _ in range(2):
                with pytest.raises(RequestTimeoutError):
                    await t.request(post(b"hasty"), silence_s=0.03)
            timed_out.set()
            for one in patient:
                await one.ended.wait()
                assert one.response is not None
            assert 2 == t.statistics().connections


@pytest.mark.parametrize("state", ["headers", "body", "uploading"])
async def test_a_cancelled_request_closes_its_connection_alone(state: str) -> None:
    """The server sees the end, the place is free again, the transport goes on."""
    reached = anyio.Event()
    gone = anyio.Event()

    async def script(wire: Wire) -> None:
        if wire.number:
            await echo(wire)
        if state == "uploading":
            await wire.head()
            reached.set()
            await upload.ended.wait()  # reading nothing, so that the client is stuck
        else:
            await wire.request()
            if state == "body":
                await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            reached.set()
        await wire.gone()
        gone.set()

    upload = Asked()
    with anyio.fail_after(BOUND_S):
        async with (
            http1_server(script) as server,
            open_transport(server.url, max_connections=1) as t,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(upload.ask, t, post(bytes(32 << 20 if state == "uploading" else 10)))
            await reached.wait()
            await anyio.wait_all_tasks_blocked()
            upload.scope.cancel()
            await upload.ended.wait()
            await gone.wait()
            assert b"next" == (await t.request(post(b"next"))).body
            assert {0} == set(t.statistics().in_flight.values())
    assert upload.response is None


async def test_requests_cancelled_in_line_do_not_hold_up_those_behind() -> None:
    """Also one that was called at the instant of its cancellation."""
    release = anyio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await release.wait()
        await wire.answer()
        await echo(wire)

    asked = [Asked() for _ in range(4)]
    with anyio.fail_after(BOUND_S):
        async with (
            http1_server(script) as server,
            open_transport(server.url, max_connections=1) as t,
            anyio.create_task_group() as tasks,
        ):
            for number, one in enumerate(asked):
                tasks.start_soon(one.ask, t, post(b"body"))
                while t.statistics().waiting[TrafficClass.SAMPLING] < number:
                    await anyio.lowlevel.checkpoint()

            async def cancel_the_one_called() -> None:
                await asked[0].ended.wait()
                asked[2].scope.cancel()

            tasks.start_soon(cancel_the_one_called)
            asked[1].scope.cancel()
            await asked[1].ended.wait()
            release.set()
            for one in asked:
                await one.ended.wait()
            statistics = t.statistics()
    assert asked[3].response is not None
    assert {0} == set(statistics.in_flight.values()) | set(statistics.waiting.values())


async def test_a_place_handed_to_a_cancelled_request_passes_to_the_next() -> None:
    """Cancelled first, then called, both before it could take a step."""
    refuse = anyio.Event()

    async def dial() -> anyio.abc.ByteStream:
        await refuse.wait()
        raise ConnectError("nothing there")

    asked = [Asked() for _ in range(3)]
    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as tasks:
            line = http1.Http1Line(
                parse_origin("http://127.0.0.1:1"), dial, LastingTasks(tasks), max_connections=1
            )
            for one in asked:
                tasks.start_soon(one.ask, line, post())
                await anyio.wait_all_tasks_blocked()
            refuse.set()
            asked[1].scope.cancel()
    assert isinstance(asked[2].error, ConnectError)
    assert {0} == set(line.statistics().in_flight.values())


async def test_leaving_the_block_fails_what_is_in_flight_and_in_line() -> None:
    """Requests of other tasks end with `SessionClosedError`, and so do later ones."""

    async def script(wire: Wire) -> None:
        await wire.gone()

    flying, waiting = Asked(), Asked()
    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, anyio.create_task_group() as tasks:
            async with open_transport(server.url, max_connections=1) as t:
                tasks.start_soon(flying.ask, t, post())
                await until(lambda: bool(t.statistics().connections))
                tasks.start_soon(waiting.ask, t, post())
                await until(lambda: bool(t.statistics().waiting[TrafficClass.SAMPLING]))
            await flying.ended.wait()
            await waiting.ended.wait()
            with pytest.raises(SessionClosedError):
                await t.request(post())
    assert isinstance(flying.error, SessionClosedError)
    assert isinstance(waiting.error, SessionClosedError)


async def test_leaving_the_block_ends_an_upload_that_nobody_reads() -> None:
    """What is stuck in a write does not hold up the end."""
    reached = anyio.Event()

    async def script(wire: Wire) -> None:
        await wire.head()
        reached.set()
        await anyio.sleep_forever()

    upload = Asked()
    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, anyio.create_task_group() as tasks:
            async with open_transport(server.url) as t:
                tasks.start_soon(upload.ask, t, post(bytes(32 << 20)))
                await reached.wait()
                await anyio.wait_all_tasks_blocked()
            await upload.ended.wait()
    assert isinstance(upload.error, SessionClosedError)


async def test_a_body_above_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is closed in the middle of the body; the transport goes on."""
    monkeypatch.setattr(http1, "MAX_BODY_BYTES", 1000)

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.answer(bytes(5000 if wire.number == 0 else 1000))
        await wire.gone()

    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, open_transport(server.url) as t:
            with pytest.raises(ResponseError, match="larger than 1000 bytes"):
                await t.request(post())
            assert 1000 == len((await t.request(post())).body)


async def test_a_content_encoding_nobody_asked_for_is_undone() -> None:
    """gzip and deflate bodies come out plain."""
    plain = b"plain text " * 1000
    sent = [(b"gzip", gzip.compress(plain)), (b"deflate", zlib.compress(plain))]

    async def script(wire: Wire) -> None:
        for name, body in sent:
            await wire.request()
            await wire.answer(body, b"Content-Encoding: " + name)
        await wire.gone()

    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, open_transport(server.url) as t:
            for _ in sent:
                assert plain == (await t.request(post())).body


async def test_an_early_answer_to_an_upload_is_returned() -> None:
    """A server that refuses a body unread has its answer heard."""

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(
            b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig"
        )
        await wire.gone()

    with anyio.fail_after(BOUND_S):
        async with http1_server(script) as server, open_transport(server.url) as t:
            response = await t.request(post(bytes(1 << 20)))
            assert (413, b"big") == (response.status, response.body)
            assert 0 == t.statistics().connections


async def test_nothing_listening_is_a_connect_error_that_says_so() -> None:
    """Refused means: certainly not sent. Each request of a burst gets an error of its own."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    await listener.aclose()
    with anyio.fail_after(BOUND_S):
        for http2 in (False, True):
            asked = [Asked() for _ in range(3)]
            async with open_transport(f"http://127.0.0.1:{port}", http2=http2) as t:
                async with anyio.create_task_group() as tasks:
                    for one in asked:
                        tasks.start_soon(one.ask, t, post())
                for one in asked:
                    assert isinstance(one.error, ConnectError)
                    assert f"nothing listens on 127.0.0.1:{port}" in str(one.error)
                assert 3 == len({id(one.error) for one in asked})
