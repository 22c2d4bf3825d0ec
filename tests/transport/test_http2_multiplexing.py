"""HTTP/2: many requests on few connections, in both directions, none in another's way."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from itertools import pairwise

import anyio
import h2.events
import h2.settings
import pytest
from transport.asking import BOUND_S, until
from transport.http2_peer import Peer, echo, http2_server

from tinker_async.transport import Request, Response, TrafficClass
from tinker_async.transport.http2 import KeepAlive
from tinker_async.transport.opening import OpenTransport, open_transport

Codes = h2.settings.SettingCodes


def post(body: bytes = b"", traffic: TrafficClass = TrafficClass.SAMPLING) -> Request:
    return Request("POST", "/base/echo?x=1", ((b"x-key", b"value"),), (body,), traffic)


async def test_a_request_arrives_as_it_was_given_and_so_does_its_response() -> None:
    """Pseudo-headers are right, headers HTTP/2 forbids are left out, buffers are joined."""
    arrived: dict[bytes, bytes] = {}
    body = b""

    async def script(peer: Peer) -> None:
        nonlocal body
        stream_id = await peer.request()
        arrived.update(peer.headers(stream_id))
        body = bytes(peer.bodies[stream_id])
        await peer.answer(stream_id, b"answer", headers=((b"x-a", b"1"), (b"x-a", b"2")))
        await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with http2_server(script) as server, open_transport(server.url, http2=True) as t:
            parts = (b"one ", memoryview(b"two "), bytearray(b"three"), b"")
            headers = ((b"host", b"elsewhere"), (b"connection", b"close"), (b"x-key", b"value"))
            response = await t.request(Request("POST", "/base/echo?x=1", headers, parts))

    assert {
        b":method": b"POST",
        b":scheme": b"http",
        b":authority": b"127.0.0.1:%d" % server.port,
        b":path": b"/base/echo?x=1",
        b"x-key": b"value",
        b"content-length": b"13",
    } == arrived
    assert b"one two three" == body
    assert (200, b"answer") == (response.status, response.body)
    assert ((b"x-a", b"1"), (b"x-a", b"2")) == response.headers


async def test_five_megabytes_pass_both_ways_through_small_windows() -> None:
    """Flow control is obeyed for uploads and kept open for downloads, on stream and connection."""
    body = os.urandom(5 << 20)
    cuts = [0, 1, 1, 70_000, 70_001, 3 << 20, len(body)]
    parts = [memoryview(body)[a:b] for a, b in pairwise(cuts)]

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(echo, settings={Codes.INITIAL_WINDOW_SIZE: 20_000}) as server,
            open_transport(server.url, http2=True) as t,
        ):
            response = await t.request(Request("POST", "/", (), parts))

    assert body == response.body


async def test_downloads_far_beyond_the_connection_window_do_not_stall() -> None:
    """What was received is acknowledged, also for responses that were abandoned."""
    chunk = bytes(1 << 20)

    async def script(peer: Peer) -> None:
        while True:
            await peer.answer(await peer.request(), chunk * 30)

    with anyio.fail_after(BOUND_S):
        async with http2_server(script) as server, open_transport(server.url, http2=True) as t:
            for _ in range(3):  # 90 MB, above 64 MiB
                assert len(chunk) * 30 == len((await t.request(post())).body)


async def test_two_thousand_requests_share_few_connections() -> None:
    """The peer's limit of streams holds at every moment, and all requests are answered."""
    most: Counter[Peer] = Counter()

    async def script(peer: Peer) -> None:
        now = 0
        while True:
            event = await peer.event()
            if isinstance(event, h2.events.RequestReceived):
                now += 1
                most[peer] = max(most[peer], now)
            elif isinstance(event, h2.events.StreamEnded):
                stream_id = event.stream_id or 0
                await peer.answer(stream_id, bytes(peer.bodies.pop(stream_id, b"")))
                now -= 1

    answers: list[bytes] = []

    async def ask(t: OpenTransport, number: int) -> None:
        answers.append(bytes((await t.request(post(b"%d" % number))).body))

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script, settings={Codes.MAX_CONCURRENT_STREAMS: 100}) as server,
            open_transport(server.url, http2=True, max_connections=4) as t,
            anyio.create_task_group() as tasks,
        ):
            for number in range(2000):
                tasks.start_soon(ask, t, number)

    assert {b"%d" % number for number in range(2000)} == set(answers)
    assert 2000 == len(answers)
    assert max(most.values()) <= 100
    assert 4 == len(server.peers)


async def test_fifty_held_polls_do_not_hold_up_another_request() -> None:
    """The server releases the polls only after the other request has its answer."""
    order: list[str] = []
    release = anyio.Event()
    held = anyio.Event()

    async def script(peer: Peer) -> None:
        polls: list[int] = []
        while len(polls) < 50:
            polls.append(await peer.request())
        held.set()
        await peer.answer(await peer.request(), b"quick")
        await release.wait()
        for stream_id in polls:
            await peer.answer(stream_id, b"poll")
        await peer.gone()

    async def poll(t: OpenTransport) -> None:
        await t.request(post(traffic=TrafficClass.POLLING))
        order.append("poll")

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script) as server,
            open_transport(server.url, http2=True) as t,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(50):
                tasks.start_soon(poll, t)
            await held.wait()
            answer = await t.request(post(traffic=TrafficClass.TRAINING))
            order.append("quick")
            release.set()

    assert b"quick" == answer.body
    assert ["quick"] + ["poll"] * 50 == order
    assert 1 == len(server.peers)


async def test_a_large_upload_does_not_hold_up_another_request() -> None:
    """While one body waits for its window, others pass it on the same connection."""
    body = bytes(200_000)

    async def script(peer: Peer) -> None:
        big = (await peer.until(h2.events.RequestReceived)).stream_id or 0
        small = await peer.request()
        await peer.answer(small, b"small")
        peer.acks = True
        peer.h2.increment_flow_control_window(len(body), big)
        peer.h2.increment_flow_control_window(len(body))
        await peer.until(h2.events.StreamEnded, stream_id=big)
        await peer.answer(big, b"%d" % len(peer.bodies[big]))
        await peer.gone()

    answers: list[bytes] = []

    async def upload(t: OpenTransport) -> None:
        answers.append(bytes((await t.request(post(body))).body))

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(
                script, settings={Codes.INITIAL_WINDOW_SIZE: 10_000}, acks=False
            ) as server,
            open_transport(server.url, http2=True) as t,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(upload, t)
            await anyio.wait_all_tasks_blocked()
            answers.append(bytes((await t.request(post(b"x"))).body))

    assert [b"small", b"200000"] == answers


async def test_an_upload_goes_on_when_the_peer_raises_the_window_of_all_streams() -> None:
    """SETTINGS_INITIAL_WINDOW_SIZE counts for streams that wait already."""
    body = os.urandom(50_000)

    async def script(peer: Peer) -> None:
        await peer.until(h2.events.DataReceived)
        peer.h2.update_settings({Codes.INITIAL_WINDOW_SIZE: 60_000})
        stream_id = await peer.request()
        await peer.answer(stream_id, bytes(peer.bodies[stream_id]))
        await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(
                script, settings={Codes.INITIAL_WINDOW_SIZE: 10_000}, acks=False
            ) as server,
            open_transport(server.url, http2=True) as t,
        ):
            assert body == (await t.request(post(body))).body


async def test_a_slow_upload_is_not_silence() -> None:
    """As long as the peer takes bytes now and then, `silence_s` does not strike."""
    body = os.urandom(40_000)

    async def script(peer: Peer) -> None:
        stream_id = (await peer.until(h2.events.DataReceived)).stream_id or 0
        while len(peer.bodies[stream_id]) < len(body):
            peer.h2.increment_flow_control_window(1000, stream_id)
            await anyio.sleep(0.02)  # 0.6 s in all
            await peer.until(h2.events.DataReceived)
        await peer.answer(stream_id)
        await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(
                script, settings={Codes.INITIAL_WINDOW_SIZE: 10_000}, acks=False
            ) as server,
            open_transport(server.url, http2=True) as t,
        ):
            assert 200 == (await t.request(post(body), silence_s=0.4)).status


async def test_polls_leave_room_for_submissions_and_both_for_the_session() -> None:
    """With ten streams, polls stop short of the limit, and a heartbeat gets the last one."""
    arrived: Counter[bytes] = Counter()
    release = anyio.Event()

    async def script(peer: Peer) -> None:
        waiting: list[int] = []
        with anyio.move_on_after(BOUND_S):
            while True:
                stream_id = await peer.request()
                kind = bytes(peer.bodies[stream_id])
                arrived[kind] += 1
                if kind == b"session":
                    await peer.answer(stream_id)
                    break
                waiting.append(stream_id)
        await release.wait()
        for stream_id in waiting:
            await peer.answer(stream_id)
        await echo(peer)

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script, settings={Codes.MAX_CONCURRENT_STREAMS: 10}) as server,
            open_transport(server.url, http2=True, max_connections=1) as t,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(40):
                tasks.start_soon(t.request, post(b"poll", TrafficClass.POLLING))
            await until(lambda: t.statistics().in_flight[TrafficClass.POLLING] >= 7)
            await anyio.wait_all_tasks_blocked()
            assert 7 == t.statistics().in_flight[TrafficClass.POLLING]
            for _ in range(20):
                tasks.start_soon(t.request, post(b"sample", TrafficClass.SAMPLING))
            await anyio.wait_all_tasks_blocked()
            statistics = t.statistics()
            assert (7, 2) == (
                statistics.in_flight[TrafficClass.POLLING],
                statistics.in_flight[TrafficClass.SAMPLING],
            )
            assert (33, 18) == (
                statistics.waiting[TrafficClass.POLLING],
                statistics.waiting[TrafficClass.SAMPLING],
            )
            await t.request(post(b"session", TrafficClass.SESSION))
            assert {b"poll": 7, b"sample": 2, b"session": 1} == arrived
            release.set()

    assert 1 == len(server.peers)


async def test_a_further_connection_is_opened_before_the_streams_are_used_up() -> None:
    """At three quarters of the limit a second connection is made, and used afterwards."""
    second = anyio.Event()
    arrived: list[tuple[Peer, int]] = []
    all_arrived = anyio.Event()

    async def script(peer: Peer) -> None:
        if len(server.peers) == 2:
            second.set()
        async with anyio.create_task_group() as tasks:

            async def answer(stream_id: int) -> None:
                await all_arrived.wait()
                await peer.answer(stream_id)

            while True:
                stream_id = await peer.request()
                arrived.append((peer, stream_id))
                tasks.start_soon(answer, stream_id)
                if len(arrived) == 12:
                    all_arrived.set()

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script, settings={Codes.MAX_CONCURRENT_STREAMS: 8}) as server,
            open_transport(server.url, http2=True) as t,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(6):
                tasks.start_soon(t.request, post())
            await second.wait()
            assert 6 == t.statistics().in_flight[TrafficClass.SAMPLING]
            for _ in range(6):
                tasks.start_soon(t.request, post())

    assert {7, 5} == set(Counter(peer for peer, _ in arrived).values())


async def test_the_limit_of_streams_may_change_while_the_connection_lives() -> None:
    """A raised MAX_CONCURRENT_STREAMS lets those in line start at once."""
    raised = anyio.Event()

    async def script(peer: Peer) -> None:
        first = await peer.request()
        await raised.wait()
        peer.h2.update_settings({Codes.MAX_CONCURRENT_STREAMS: 10})
        others = [await peer.request() for _ in range(4)]
        for stream_id in (first, *others):
            await peer.answer(stream_id)
        await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script, settings={Codes.MAX_CONCURRENT_STREAMS: 1}) as server,
            open_transport(server.url, http2=True, max_connections=1) as t,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(5):
                tasks.start_soon(t.request, post(traffic=TrafficClass.TRAINING))
            await until(lambda: t.statistics().waiting[TrafficClass.TRAINING] >= 4)
            raised.set()


def connected(t: OpenTransport, number: int) -> bool:
    return t.statistics().connections == number


async def test_one_stream_per_connection_still_leaves_a_connection_for_submissions() -> None:
    """Where no stream can be kept back on a connection, whole connections are."""

    async def script(peer: Peer) -> None:
        stream_id = await peer.request()
        if peer.bodies[stream_id] == b"poll":
            await anyio.sleep_forever()
        await peer.answer(stream_id, b"done")
        await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script, settings={Codes.MAX_CONCURRENT_STREAMS: 1}) as server,
            open_transport(server.url, http2=True, max_connections=4) as t,
            anyio.create_task_group() as tasks,
        ):
            for number in range(1, 4):
                tasks.start_soon(t.request, post(b"poll", TrafficClass.POLLING))
                # Each one taken makes a spare connection.
                await until(partial(connected, t, number + 1))
            tasks.start_soon(t.request, post(b"poll", TrafficClass.POLLING))
            await until(lambda: t.statistics().waiting[TrafficClass.POLLING] == 1)
            assert b"done" == (await t.request(post(b"sample"))).body
            assert 3 == t.statistics().in_flight[TrafficClass.POLLING]
            tasks.cancel_scope.cancel()
    assert 4 == len(server.peers)


async def test_a_spare_connection_without_work_is_closed() -> None:
    """One connection stays; those that a burst left over go after a while."""
    ended = anyio.Event()
    release = anyio.Event()

    async def script(peer: Peer) -> None:
        try:
            first = await peer.request()
            if len(server.peers) == 2:
                release.set()
            await release.wait()
            await peer.answer(first)
            while True:
                await peer.answer(await peer.request())
        finally:
            ended.set()

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script, settings={Codes.MAX_CONCURRENT_STREAMS: 1}) as server,
            open_transport(
                server.url,
                http2=True,
                max_connections=2,
                keep_alive=KeepAlive(answer_s=0.03, idle_s=0.05),
            ) as t,
        ):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(t.request, post())
                tasks.start_soon(t.request, post())
            await ended.wait()
            await until(lambda: t.statistics().connections <= 1)
            assert 200 == (await t.request(post())).status


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 65_535, 65_536, 300_001])
async def test_bodies_around_every_limit_arrive_whole(size: int) -> None:
    """Sizes at the edges of frame, window and batch come back as they were sent."""
    body = os.urandom(size)
    response: Response | None = None
    with anyio.fail_after(BOUND_S):
        async with http2_server(echo) as server, open_transport(server.url, http2=True) as t:
            response = await t.request(post(body))
    assert body == response.body
