"""HTTP/2: silence is noticed by the connection's watcher, for each request by its own limit."""

from __future__ import annotations

from functools import partial

import anyio
import h2.events
import h2.settings
import pytest
from h2.errors import ErrorCodes
from transport.asking import BOUND_S, Asked
from transport.http2_peer import Peer, http2_server

from tinker_async.errors import RequestTimeoutError
from tinker_async.transport import Request, TrafficClass
from tinker_async.transport.http2 import KeepAlive
from tinker_async.transport.opening import OpenTransport, open_transport

Codes = h2.settings.SettingCodes
NEVER = KeepAlive(quiet_s=1000.0, answer_s=1000.0)
"""The watcher looks at nothing of itself within a test: only what requests ask for wakes it."""


def post(body: bytes = b"") -> Request:
    return Request("POST", "/call", (), (body,), TrafficClass.POLLING)


async def test_a_short_limit_strikes_while_longer_ones_wait() -> None:
    """The watcher sleeps for the longest first and is woken by each shorter one."""
    codes: list[object] = []

    async def script(peer: Peer) -> None:
        held = [await peer.request() for _ in range(2)]
        codes.extend([(await peer.until(h2.events.StreamReset)).error_code for _ in range(2)])
        for stream_id in held:
            await peer.answer(stream_id, b"held")
        await peer.gone()

    answers: list[bytes] = []

    async def hold(t: OpenTransport, silence_s: float | None) -> None:
        answers.append(bytes((await t.request(post(), silence_s=silence_s)).body))

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script) as server,
            open_transport(server.url, http2=True, keep_alive=NEVER) as t,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(hold, t, 500.0)
            tasks.start_soon(hold, t, None)
            await anyio.wait_all_tasks_blocked()
            for silence_s in (0.06, 0.03):
                with pytest.raises(RequestTimeoutError, match=f"silent for {silence_s:g} s"):
                    await t.request(post(), silence_s=silence_s)

    assert [b"held"] * 2 == answers
    assert [ErrorCodes.CANCEL] * 2 == codes
    assert 1 == len(server.peers)


async def test_a_hundred_silent_requests_each_get_an_error_of_their_own() -> None:
    """One look ends them all; their places are free again."""

    async def script(peer: Peer) -> None:
        while True:
            stream_id = await peer.request()
            if bytes(peer.bodies.get(stream_id, b"")) == b"last":
                await peer.answer(stream_id, b"last")

    errors: list[RequestTimeoutError] = []

    async def ask(t: OpenTransport, silence_s: float) -> None:
        with pytest.raises(RequestTimeoutError) as caught:
            await t.request(post(), silence_s=silence_s)
        errors.append(caught.value)

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script, settings={Codes.MAX_CONCURRENT_STREAMS: 200}) as server,
            open_transport(server.url, http2=True, keep_alive=NEVER) as t,
        ):
            async with anyio.create_task_group() as tasks:
                for number in range(100):
                    tasks.start_soon(ask, t, 0.02 + number / 1000)
            assert {0} == set(t.statistics().in_flight.values())
            assert b"last" == (await t.request(post(b"last"), silence_s=5.0)).body
    assert 100 == len({id(error) for error in errors})


async def test_a_slow_download_is_not_silence() -> None:
    """Each piece of a body starts the clock anew."""

    async def script(peer: Peer) -> None:
        stream_id = await peer.request()
        peer.h2.send_headers(stream_id, [(b":status", b"200")])
        for _ in range(30):
            peer.h2.send_data(stream_id, b"piece")
            await peer.flush()
            await anyio.sleep(0.02)  # 0.6 s in all
        peer.h2.end_stream(stream_id)
        await peer.flush()
        await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script) as server,
            open_transport(server.url, http2=True, keep_alive=NEVER) as t,
        ):
            assert b"piece" * 30 == (await t.request(post(), silence_s=0.4)).body


async def test_a_body_that_stops_in_the_middle_is_silence() -> None:
    """Headers and half a body came, then nothing."""

    async def script(peer: Peer) -> None:
        stream_id = await peer.request()
        peer.h2.send_headers(stream_id, [(b":status", b"200")])
        peer.h2.send_data(stream_id, b"half")
        await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script) as server,
            open_transport(server.url, http2=True, keep_alive=NEVER) as t,
        ):
            with pytest.raises(RequestTimeoutError):
                await t.request(post(), silence_s=0.05)


async def test_a_request_that_cannot_be_written_is_silent_too() -> None:
    """The socket is full of another one's body; the limit still holds, if later."""

    async def script(peer: Peer) -> None:
        peer.h2.increment_flow_control_window(1 << 30)
        await peer.flush()
        await peer.until(h2.events.RequestReceived)
        await anyio.sleep_forever()  # reads nothing any more

    upload = Asked()
    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script, settings={Codes.INITIAL_WINDOW_SIZE: 1 << 30}) as server,
            open_transport(
                server.url, http2=True, keep_alive=KeepAlive(quiet_s=1000.0, answer_s=0.15)
            ) as t,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(upload.ask, t, post(bytes(64 << 20)))
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(RequestTimeoutError):
                await t.request(post(b"small"), silence_s=0.03)
            upload.scope.cancel()


async def test_a_request_that_was_cancelled_is_not_struck_by_its_limit() -> None:
    """The peer hears of it once, and the next request on the connection is served."""
    resets = 0
    arrived = anyio.Event()

    async def script(peer: Peer) -> None:
        nonlocal resets
        await peer.request()
        arrived.set()
        while True:
            event = await peer.event()
            resets += isinstance(event, h2.events.StreamReset)
            if isinstance(event, h2.events.StreamEnded):
                await anyio.sleep(0.6)  # past the limit of the one that was cancelled
                await peer.answer(event.stream_id or 0, b"next")

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script) as server,
            open_transport(server.url, http2=True, keep_alive=NEVER) as t,
        ):
            async with anyio.create_task_group() as group:
                group.start_soon(partial(t.request, post(), silence_s=0.5))
                await arrived.wait()
                group.cancel_scope.cancel()
            assert b"next" == (await t.request(post(), silence_s=5.0)).body
    assert 1 == resets


@pytest.mark.parametrize("size", [0, 100, 4096, 65_536])
async def test_a_peer_may_change_its_header_table_between_requests(size: int) -> None:
    """What was remembered for a connection is forgotten when the peer forgets it."""
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        for number in range(9):
            if number in (3, 6):
                peer.h2.update_settings({Codes.HEADER_TABLE_SIZE: size if number == 3 else 4096})
            stream_id = await peer.request()
            seen.append(peer.headers(stream_id)[b"x-key"])
            await peer.answer(stream_id, b"", headers=((b"x-number", b"%d" % (number % 3)),))
        await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with http2_server(script) as server, open_transport(server.url, http2=True) as t:
            for number in range(9):
                response = await t.request(Request("POST", "/call", ((b"x-key", b"value"),)))
                assert b"%d" % (number % 3) == response.header(b"x-number")
    assert [b"value"] * 9 == seen
