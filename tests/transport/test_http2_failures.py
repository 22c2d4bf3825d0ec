"""HTTP/2: each way a server can fail a request, and which error that becomes."""

from __future__ import annotations

import random
from collections import Counter

import anyio
import h2.events
import h2.settings
import pytest
from h2.errors import ErrorCodes
from transport.asking import BOUND_S, Asked, until
from transport.http1_peer import http1_server
from transport.http2_peer import Peer, echo, http2_server

from tinker_async.errors import (
    ConnectError,
    ProtocolError,
    RequestTimeoutError,
    ResponseError,
    SessionClosedError,
    TinkerError,
)
from tinker_async.transport import Request, TrafficClass, content, http2
from tinker_async.transport.http2 import KeepAlive
from tinker_async.transport.opening import OpenTransport, open_transport

Codes = h2.settings.SettingCodes


def post(body: bytes = b"", traffic: TrafficClass = TrafficClass.SAMPLING) -> Request:
    return Request("POST", "/call", (), (body,), traffic)


async def test_goaway_lets_what_is_below_it_finish_and_repeats_what_is_above() -> None:
    """The first request is answered on the old connection, the second on a new one."""
    served: list[tuple[int, bytes]] = []

    async def script(peer: Peer) -> None:
        number = len(server.peers)
        first = await peer.request()
        if number == 1:
            await peer.request()
            peer.h2.close_connection(last_stream_id=first)
            await peer.flush()
            # The library will not send on a connection that it has closed: answer by hand.
            await both_know.wait()
            block = peer.h2.encoder.encode([(b":status", b"200")])
            await peer.stream.send(
                len(block).to_bytes(3, "big") + b"\x01\x05" + first.to_bytes(4, "big") + block
            )
            await peer.gone()
        else:
            served.append((number, bytes(peer.bodies[first])))
            await peer.answer(first, b"second")
            both_know.set()
            await peer.gone()

    both_know = anyio.Event()
    below, above = Asked(), Asked()
    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script) as server,
            open_transport(server.url, http2=True) as t,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(below.ask, t, post(b"below"))
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(above.ask, t, post(b"above"))
            await below.ended.wait()
            await above.ended.wait()
            await until(lambda: t.statistics().connections <= 1)

    assert [(2, b"above")] == served
    assert below.response is not None
    assert 200 == below.response.status
    assert above.response is not None
    assert b"second" == above.response.body


async def test_a_place_on_a_connection_that_ends_at_once_is_taken_elsewhere() -> None:
    """An answer and GOAWAY arrive together: who was next in line goes to a new connection."""

    async def script(peer: Peer) -> None:
        first = await peer.request()
        await queued.wait()
        peer.h2.send_headers(first, [(b":status", b"200")], end_stream=True)
        peer.h2.close_connection(last_stream_id=2**31 - 1)
        await peer.flush()
        await peer.gone()

    queued = anyio.Event()
    first, second = Asked(), Asked()
    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script, settings={Codes.MAX_CONCURRENT_STREAMS: 1}) as server,
            open_transport(server.url, http2=True, max_connections=1) as t,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(first.ask, t, post())
            await until(lambda: bool(t.statistics().in_flight[TrafficClass.SAMPLING]))
            tasks.start_soon(second.ask, t, post())
            await until(lambda: bool(t.statistics().waiting[TrafficClass.SAMPLING]))
            queued.set()
            await second.ended.wait()
            statistics = t.statistics()
    assert first.response is not None
    assert second.response is not None
    assert (2, 2) == (statistics.connections_opened, statistics.requests_started)


async def test_goaway_because_of_an_error_fails_what_is_above_it_as_unprocessed() -> None:
    """A server that turned us away is not asked again at once: that is for the retry policy."""

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM, last_stream_id=0)
        await peer.flush()
        await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with http2_server(script) as server, open_transport(server.url, http2=True) as t:
            with pytest.raises(ConnectError, match="ENHANCE_YOUR_CALM"):
                await t.request(post())
            assert 1 == len(server.peers)


async def test_a_server_that_always_goes_away_is_given_up_on() -> None:
    """Repeating what was not processed is bounded."""

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.h2.close_connection(last_stream_id=0)
        await peer.flush()
        await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with http2_server(script) as server, open_transport(server.url, http2=True) as t:
            with pytest.raises(ConnectError, match="not processed"):
                await t.request(post())
            assert 3 == len(server.peers)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (ErrorCodes.REFUSED_STREAM, ConnectError),
        (ErrorCodes.INTERNAL_ERROR, ProtocolError),
        (ErrorCodes.NO_ERROR, ProtocolError),
        (0xBEEF, ProtocolError),
    ],
)
async def test_a_reset_stream_fails_its_request_alone(
    code: int, expected: type[TinkerError]
) -> None:
    """Only REFUSED_STREAM promises that nothing was processed; the connection goes on."""

    async def script(peer: Peer) -> None:
        held = await peer.request()
        peer.h2.reset_stream(await peer.request(), code)
        await peer.answer(held, b"held")
        await peer.gone()

    held = Asked()
    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script) as server,
            open_transport(server.url, http2=True) as t,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(held.ask, t, post())
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(expected) as caught:
                await t.request(post())
            await held.ended.wait()
    assert expected is type(caught.value)
    assert held.response is not None
    assert 1 == len(server.peers)


async def test_a_closed_connection_fails_its_requests_and_is_replaced() -> None:
    """What was sent may have been processed; the next request gets a new connection."""

    async def script(peer: Peer) -> None:
        stream_id = await peer.request()
        if len(server.peers) > 1:
            await peer.answer(stream_id, b"again")
            await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with http2_server(script) as server, open_transport(server.url, http2=True) as t:
            with pytest.raises(ProtocolError, match="closed the connection"):
                await t.request(post())
            assert b"again" == (await t.request(post())).body


async def test_garbage_from_a_server_fails_what_is_in_flight() -> None:
    """Bytes that are not HTTP/2 end the connection with an error that says so."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.stream.send(b"\xff" * 100)
        await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with http2_server(script) as server, open_transport(server.url, http2=True) as t:
            with pytest.raises(ProtocolError, match="broke the rules of HTTP"):
                await t.request(post())


async def test_a_server_without_http2_is_found_out_before_anything_is_sent() -> None:
    """Prior knowledge that is wrong is a `ConnectError`."""

    async def refuse(wire: object) -> None:
        await wire.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")  # type: ignore[attr-defined]

    with anyio.fail_after(BOUND_S):
        async with http1_server(refuse) as server, open_transport(server.url, http2=True) as t:
            with pytest.raises(ConnectError, match="does not speak HTTP/2"):
                await t.request(post())


async def test_a_server_that_accepts_but_never_speaks_is_a_connect_error() -> None:
    """The connect timeout covers the wait for the server's settings."""

    async def mute(_: object) -> None:
        await anyio.sleep_forever()

    with anyio.fail_after(BOUND_S):
        async with (
            http1_server(mute) as server,
            open_transport(server.url, http2=True, connect_timeout_s=0.05) as t,
        ):
            with pytest.raises(ConnectError, match="no HTTP/2 settings"):
                await t.request(post())
            assert 0 == t.statistics().connections


@pytest.mark.parametrize("promised", [b"0", b"3", b"5"])
async def test_an_answer_of_another_length_than_promised_is_broken(promised: bytes) -> None:
    """RFC 9113, 8.1.1: a proxy that cuts an answer short must not pass for its end."""

    async def script(peer: Peer) -> None:
        headers = ((b"content-length", promised),)
        await peer.answer(await peer.request(), b"four", headers=headers)
        await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with http2_server(script) as server, open_transport(server.url, http2=True) as t:
            with pytest.raises(
                ProtocolError, match=f"promised {promised.decode()} bytes .* sent 4"
            ):
                await t.request(post())


async def test_silence_is_a_timeout_of_that_request_alone() -> None:
    """The peer learns of it (RST_STREAM), and the other request goes on."""
    reset = anyio.Event()

    async def script(peer: Peer) -> None:
        held = await peer.request()
        await peer.until(h2.events.StreamReset)
        reset.set()
        await peer.answer(held)
        await peer.gone()

    held = Asked()
    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script) as server,
            open_transport(server.url, http2=True) as t,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(held.ask, t, post())
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(RequestTimeoutError, match=r"silent for 0\.03 s"):
                await t.request(post(), silence_s=0.03)
            await reset.wait()
            await held.ended.wait()
    assert held.response is not None


async def test_a_stalled_upload_counts_as_silence() -> None:
    """A server that never opens its window is silent too."""

    async def script(peer: Peer) -> None:
        await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script, acks=False) as server,
            open_transport(server.url, http2=True) as t,
        ):
            with pytest.raises(RequestTimeoutError):
                await t.request(post(bytes(100_000)), silence_s=0.03)


async def test_a_dead_peer_is_found_by_ping() -> None:
    """With something in flight and no answer to PING, the connection is given up."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await anyio.sleep_forever()  # reads nothing any more, so no PING is answered

    rules = KeepAlive(quiet_s=0.03, answer_s=0.06)
    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script) as server,
            open_transport(server.url, http2=True, keep_alive=rules) as t,
        ):
            with pytest.raises(ProtocolError, match="has not answered"):
                await t.request(post())


async def test_a_quiet_peer_that_answers_pings_is_waited_for() -> None:
    """A held poll outlives many times the silence after which a PING is sent."""

    async def script(peer: Peer) -> None:
        held = await peer.request()
        for _ in range(3):
            await peer.until(h2.events.PingReceived)
        await peer.answer(held, b"late")
        await peer.gone()

    rules = KeepAlive(quiet_s=0.01, answer_s=0.3)
    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script) as server,
            open_transport(server.url, http2=True, keep_alive=rules) as t,
        ):
            assert b"late" == (await t.request(post())).body


async def test_informational_responses_and_trailers_do_not_disturb() -> None:
    """100 and 103 are skipped, trailers are dropped."""

    async def script(peer: Peer) -> None:
        stream_id = await peer.request()
        peer.h2.send_headers(stream_id, [(b":status", b"103"), (b"link", b"</x>")])
        peer.h2.send_headers(stream_id, [(b":status", b"200"), (b"x-a", b"1")])
        peer.h2.send_data(stream_id, b"body")
        peer.h2.send_headers(stream_id, [(b"x-checksum", b"1")], end_stream=True)
        await peer.flush()
        await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with http2_server(script) as server, open_transport(server.url, http2=True) as t:
            response = await t.request(post())
    assert (200, ((b"x-a", b"1"),), b"body") == (response.status, response.headers, response.body)


async def test_large_headers_pass_in_both_directions() -> None:
    """Header blocks above the frame size travel in CONTINUATION frames."""
    value = b"v" * 20_000
    got: list[bytes] = []

    async def script(peer: Peer) -> None:
        peer.h2.decoder.max_header_list_size = 1 << 20
        stream_id = await peer.request()
        got.append(peer.headers(stream_id)[b"x-large"])
        await peer.answer(stream_id, headers=((b"x-large", value), (b"x-more", value)))
        await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with http2_server(script) as server, open_transport(server.url, http2=True) as t:
            response = await t.request(Request("GET", "/", ((b"x-large", value),)))
    assert [value] == got
    assert value == response.header(b"x-more")


@pytest.mark.parametrize("length", [b"nonsense", b"-4", b"9" * 30])
async def test_a_content_length_that_is_no_number_is_tolerated(length: bytes) -> None:
    """The frames say where a body ends."""

    async def script(peer: Peer) -> None:
        stream_id = await peer.request()
        await peer.answer(stream_id, b"body", headers=((b"content-length", length),))
        await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with http2_server(script) as server, open_transport(server.url, http2=True) as t:
            assert b"body" == (await t.request(post())).body


async def test_an_answer_before_the_end_of_the_upload_counts() -> None:
    """The rest of the body is not sent, the peer is told, the connection goes on."""
    codes: list[object] = []

    async def script(peer: Peer) -> None:
        stream_id = (await peer.until(h2.events.RequestReceived)).stream_id or 0
        await peer.answer(stream_id, b"enough")
        codes.append((await peer.until(h2.events.StreamReset)).error_code)
        peer.h2.increment_flow_control_window(100_000)
        await peer.answer(await peer.request(), b"next")
        await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script, acks=False) as server,
            open_transport(server.url, http2=True) as t,
        ):
            assert b"enough" == (await t.request(post(bytes(300_000)))).body
            assert b"next" == (await t.request(post(b"small"))).body
    assert [ErrorCodes.NO_ERROR] == codes
    assert 1 == len(server.peers)


async def test_a_body_above_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request fails as soon as the bound is passed; others go on."""
    monkeypatch.setattr(http2, "MAX_BODY_BYTES", 1000)

    async def script(peer: Peer) -> None:
        await peer.answer(await peer.request(), bytes(5000))
        await peer.answer(await peer.request(), bytes(1000))
        await peer.gone()

    with anyio.fail_after(BOUND_S):
        async with http2_server(script) as server, open_transport(server.url, http2=True) as t:
            with pytest.raises(ResponseError, match="larger than 1000 bytes"):
                await t.request(post())
            assert 1000 == len((await t.request(post())).body)
    assert content.MAX_BODY_BYTES == 1 << 30


async def test_a_connection_out_of_stream_ids_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are not reused: after the last one a new connection takes over."""
    monkeypatch.setattr(http2, "LAST_STREAM_ID", 5)
    with anyio.fail_after(BOUND_S):
        async with http2_server(echo) as server, open_transport(server.url, http2=True) as t:
            for number in range(7):
                assert b"%d" % number == (await t.request(post(b"%d" % number))).body
            assert 3 == len(server.peers)


async def test_leaving_the_block_fails_what_is_in_flight_and_in_line() -> None:
    """Requests of other tasks end with `SessionClosedError`, and so do later ones."""

    async def script(peer: Peer) -> None:
        await peer.gone()

    flying, waiting = Asked(), Asked()
    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script, settings={Codes.MAX_CONCURRENT_STREAMS: 1}) as server,
            anyio.create_task_group() as tasks,
        ):
            async with open_transport(server.url, http2=True, max_connections=1) as t:
                tasks.start_soon(flying.ask, t, post())
                await until(lambda: bool(t.statistics().in_flight[TrafficClass.SAMPLING]))
                tasks.start_soon(waiting.ask, t, post())
                await until(lambda: bool(t.statistics().waiting[TrafficClass.SAMPLING]))
            await flying.ended.wait()
            await waiting.ended.wait()
            with pytest.raises(SessionClosedError):
                await t.request(post())
    assert isinstance(flying.error, SessionClosedError)
    assert isinstance(waiting.error, SessionClosedError)


async def test_a_request_cancelled_under_way_tells_the_peer_and_nobody_else() -> None:
    """Waiting for headers and in the middle of the body alike: RST_STREAM(CANCEL)."""
    codes: list[object] = []
    half = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        second = await peer.request()
        peer.h2.send_headers(second, [(b":status", b"200")])
        peer.h2.send_data(second, b"half")
        await peer.flush()
        other = await peer.request()
        half.set()
        for _ in range(2):
            reset = await peer.until(h2.events.StreamReset)
            codes.append(reset.error_code)
        await peer.answer(other, b"other")
        await echo(peer)

    asked = [Asked() for _ in range(3)]
    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script) as server,
            open_transport(server.url, http2=True) as t,
            anyio.create_task_group() as tasks,
        ):
            for one in asked:
                tasks.start_soon(one.ask, t, post())
                await anyio.wait_all_tasks_blocked()
            await half.wait()
            asked[0].scope.cancel()
            asked[1].scope.cancel()
            for one in asked:
                await one.ended.wait()
            assert 0 == t.statistics().in_flight[TrafficClass.SAMPLING]
            assert b"after" == (await t.request(post(b"after"))).body
    assert [ErrorCodes.CANCEL] * 2 == codes
    assert asked[0].response is asked[1].response is None
    assert asked[2].response is not None
    assert 1 == len(server.peers)


async def test_an_upload_cancelled_under_a_closed_window_leaves_the_connection_whole() -> None:
    """Half a body was sent; what follows on the connection is read rightly by the peer."""
    bodies: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.until(h2.events.DataReceived)
        stalled.set()
        await peer.until(h2.events.StreamReset)
        peer.acks = True
        peer.h2.increment_flow_control_window(1 << 20)
        stream_id = await peer.request()
        bodies.append(bytes(peer.bodies[stream_id]))
        await peer.answer(stream_id)
        await peer.gone()

    stalled = anyio.Event()
    upload = Asked()
    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script, acks=False) as server,
            open_transport(server.url, http2=True) as t,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(upload.ask, t, post(bytes(500_000)))
            await stalled.wait()
            upload.scope.cancel()
            await upload.ended.wait()
            await t.request(post(b"y" * 100_000))
    assert [b"y" * 100_000] == bodies
    assert 1 == len(server.peers)


async def test_a_request_cancelled_in_line_or_while_connecting_costs_no_place() -> None:
    """The connection that it asked for serves the next one; nothing stays taken."""
    release = anyio.Event()

    async def script(peer: Peer) -> None:
        first = await peer.request()
        await release.wait()
        await peer.answer(first)
        await echo(peer)

    early, flying, waiting, last = Asked(), Asked(), Asked(), Asked()
    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script, settings={Codes.MAX_CONCURRENT_STREAMS: 1}) as server,
            open_transport(server.url, http2=True, max_connections=1) as t,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(early.ask, t, post())
            await until(lambda: bool(t.statistics().connecting))
            early.scope.cancel()
            await early.ended.wait()
            tasks.start_soon(flying.ask, t, post())
            await until(lambda: bool(t.statistics().in_flight[TrafficClass.SAMPLING]))
            for one in (waiting, last):
                tasks.start_soon(one.ask, t, post(b"last"))
                await anyio.wait_all_tasks_blocked()
            waiting.scope.cancel()
            await waiting.ended.wait()
            release.set()
            await last.ended.wait()
            statistics = t.statistics()
    assert {0} == set(statistics.in_flight.values()) | set(statistics.waiting.values())
    assert last.response is not None
    assert b"last" == last.response.body
    assert 2 == statistics.requests_started
    assert 1 == len(server.peers)


def waiting(t: OpenTransport) -> list[TrafficClass]:
    """Return the class of each request in line."""
    return [kind for kind, number in t.statistics().waiting.items() for _ in range(number)]


async def test_a_place_handed_to_a_cancelled_request_passes_to_the_next() -> None:
    """Called and cancelled in the same instant: the place is not lost."""
    release = anyio.Event()

    async def script(peer: Peer) -> None:
        first = await peer.request()
        await release.wait()
        await peer.answer(first)
        await echo(peer)

    flying, called, last = Asked(), Asked(), Asked()
    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script, settings={Codes.MAX_CONCURRENT_STREAMS: 1}) as server,
            open_transport(server.url, http2=True, max_connections=1) as t,
            anyio.create_task_group() as tasks,
        ):
            for number, one in enumerate((flying, called, last)):
                tasks.start_soon(one.ask, t, post(b"last"))
                while sum(t.statistics().in_flight.values()) + len(waiting(t)) <= number:
                    await anyio.lowlevel.checkpoint()

            async def cancel_at_once() -> None:
                # Runs between the answer's arrival and the called request's next step.
                await flying.ended.wait()
                called.scope.cancel()

            tasks.start_soon(cancel_at_once)
            await anyio.wait_all_tasks_blocked()
            release.set()
            await called.ended.wait()
            await last.ended.wait()
            assert {0} == set(t.statistics().in_flight.values())
    assert last.response is not None


async def test_cancelling_everything_at_once_leaves_nothing_behind() -> None:
    """A hundred requests in every state are cancelled; the transport serves the next."""

    async def script(peer: Peer) -> None:
        while True:
            stream_id = await peer.request()
            if b"next" == bytes(peer.bodies.get(stream_id, b"")):
                await peer.answer(stream_id, b"done")

    with anyio.fail_after(BOUND_S):
        async with (
            http2_server(script, settings={Codes.MAX_CONCURRENT_STREAMS: 20}) as server,
            open_transport(server.url, http2=True, max_connections=2) as t,
        ):
            for rounds in range(5):
                async with anyio.create_task_group() as tasks:
                    for size in range(100):
                        tasks.start_soon(t.request, post(bytes(size * 1000)))
                    for _ in range(rounds * 3):
                        await anyio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
            assert b"done" == (await t.request(post(b"next"))).body
            statistics = t.statistics()
            assert {0} == set(statistics.in_flight.values()) | set(statistics.waiting.values())


async def test_whatever_a_server_sends_a_request_ends_in_a_response_or_an_error_of_ours() -> None:
    """Good frames with random damage: nothing foreign comes out, and nothing hangs."""
    damage = random.Random(20)

    def damaged(answer: bytes) -> bytes:
        data = bytearray(answer)
        for _ in range(damage.randint(1, 5)):
            at = damage.randrange(len(data))
            kind = damage.randrange(3)
            if kind == 0:
                data[at] = damage.randrange(256)
            elif kind == 1:
                del data[at : at + damage.randint(1, 9)]
            else:
                data[at:at] = damage.randbytes(damage.randint(1, 12))
        return bytes(data)

    async def script(peer: Peer) -> None:
        stream_id = await peer.request()
        peer.h2.send_headers(stream_id, [(b":status", b"103")])
        peer.h2.send_headers(stream_id, [(b":status", b"200"), (b"x-a", b"value")])
        peer.h2.send_data(stream_id, b"body" * 10)
        peer.h2.ping(b"12345678")
        peer.h2.increment_flow_control_window(100)
        peer.h2.end_stream(stream_id)
        await peer.stream.send(damaged(peer.h2.data_to_send()))

    endings: Counter[str] = Counter()
    with anyio.fail_after(BOUND_S):
        async with http2_server(script) as server, open_transport(server.url, http2=True) as t:
            for _ in range(80):
                asked = Asked()
                await asked.ask(t, post())
                endings[type(asked.response or asked.error).__name__] += 1
            await until(lambda: not t.statistics().connections)
    assert {"Response", "ProtocolError"} <= set(endings)
    assert 80 == endings.total()
