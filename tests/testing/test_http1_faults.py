"""Each fault over HTTP/1.1, as a client sees it that knows nothing but bytes."""

from __future__ import annotations

import datetime as dt
from email.utils import parsedate_to_datetime

import anyio
import msgspec
import pytest
from testing.raw import BODY, PATH, Heard, connected, exchange, listen, request_bytes

from tinker_async.testing import FakeService, faults

ENDPOINT = "client/config"
CREATE = "/api/v1/create_session"
NEW_SESSION = b'{"tags":[],"user_metadata":null,"sdk_version":"0.38.0","type":"create_session"}'


async def create(service: FakeService, fault: faults.Fault, **options: float) -> Heard:
    """Ask for a session under a fault."""
    service.faults.on("create_session", fault)
    async with service.serve() as url:
        return await exchange(url, CREATE, NEW_SESSION, **options)


async def test_without_a_fault_the_answer_comes(service: FakeService) -> None:
    async with service.serve() as url:
        heard = await exchange(url)

    assert (200, "whole") == (heard.status, heard.end)
    assert heard.json["parallel_fwdbwd_chunks"] is True
    assert ["answered"] == [entry.outcome for entry in service.ledger.entries]


async def test_refused_connections_end_before_a_byte(service: FakeService) -> None:
    """Only the connections that the script names."""
    service.faults.on("connect", faults.Refuse(), occurrence=(1, 3))
    async with service.serve() as url:
        heard = [await exchange(url) for _ in range(4)]

    assert ["reset", "whole", "reset", "whole"] == [one.end for one in heard]
    assert [b"", b""] == [heard[0].data, heard[2].data]
    assert 2 == service.ledger.count(ENDPOINT)


async def test_a_refused_request_ends_without_an_answer(service: FakeService) -> None:
    heard = await create(service, faults.Refuse())

    assert heard.data == b""
    assert heard.end in {"eof", "reset"}  # the system makes it a reset if bytes were left unread
    assert {} == service.state.sessions


async def test_reset_before_the_body_needs_no_body(service: FakeService) -> None:
    """It comes while the client still sends."""
    service.faults.on("create_session", faults.Reset("before"))
    async with service.serve() as url, await connected(url) as stream:
        await stream.send(request_bytes(CREATE, b"", announce=1000))
        heard = await listen(stream)

    assert ("reset", b"") == (heard.end, heard.data)
    assert {} == service.state.sessions


async def test_reset_within_the_body_comes_at_its_half(service: FakeService) -> None:
    service.faults.on("create_session", faults.Reset("within"))
    async with service.serve() as url, await connected(url) as stream:
        await stream.send(request_bytes(CREATE, b"x" * 499, announce=1000))
        early = await listen(stream, for_s=0.1)
        await stream.send(b"x")
        heard = await listen(stream)

    assert "silence" == early.end
    assert ("reset", b"") == (heard.end, heard.data)
    assert {} == service.state.sessions


async def test_reset_after_the_body_comes_after_it_and_nothing_was_done(
    service: FakeService,
) -> None:
    service.faults.on("create_session", faults.Reset("after"))
    async with service.serve() as url, await connected(url) as stream:
        await stream.send(request_bytes(CREATE, NEW_SESSION[:-1], announce=len(NEW_SESSION)))
        early = await listen(stream, for_s=0.1)
        await stream.send(NEW_SESSION[-1:])
        heard = await listen(stream)

    assert "silence" == early.end
    assert ("reset", b"") == (heard.end, heard.data)
    assert {} == service.state.sessions
    assert ["lost"] == [entry.outcome for entry in service.ledger.entries]


async def test_a_dropped_reply_comes_after_the_work(service: FakeService) -> None:
    heard = await create(service, faults.DropReply())

    assert ("reset", b"") == (heard.end, heard.data)
    assert ["s1"] == list(service.state.sessions)
    assert ["lost"] == [entry.outcome for entry in service.ledger.entries]


@pytest.mark.parametrize("commit", [False, True])
async def test_a_stall_never_answers(service: FakeService, commit: bool) -> None:
    """And is noticed to be over when the client leaves."""
    heard = await create(service, faults.Stall(commit=commit), for_s=0.2)

    assert ("silence", b"") == (heard.end, heard.data)
    assert int(commit) == len(service.state.sessions)
    assert ["lost"] == [entry.outcome for entry in service.ledger.entries]


async def test_a_client_that_leaves_ends_its_stall(service: FakeService) -> None:
    """Long before the server is closed."""
    service.faults.on(ENDPOINT, faults.Stall())
    async with service.serve() as url:
        await exchange(url, for_s=0.1)
        with anyio.fail_after(5):
            while service.ledger.open_connections:  # noqa: ASYNC110  # the ledger has no event
                await anyio.sleep(0.01)

    assert ["lost"] == [entry.outcome for entry in service.ledger.entries]


async def test_a_stall_with_an_end_answers_then(service: FakeService) -> None:
    heard = await create(service, faults.Stall(seconds=0.3), for_s=0.1)
    assert "silence" == heard.end

    async with service.serve() as url:
        late = await exchange(url, CREATE, NEW_SESSION)
    assert ("whole", 200) == (late.end, late.status)


async def test_a_trickle_comes_byte_by_byte(service: FakeService) -> None:
    """The whole answer in the end."""
    service.faults.on("create_session", faults.Trickle(chunk_bytes=1, pause_s=0.01))
    pieces: list[bytes] = []
    async with service.serve() as url, await connected(url) as stream:
        await stream.send(request_bytes(CREATE, NEW_SESSION))
        with anyio.fail_after(5):
            while not b"".join(pieces).endswith(b"}"):
                pieces.append(await stream.receive())

    body = b"".join(pieces).partition(b"\r\n\r\n")[2]
    assert "s1" == msgspec.json.decode(body)["session_id"]
    assert len(pieces) > len(body) / 2


async def test_a_truncated_answer_is_shorter_than_it_says(service: FakeService) -> None:
    heard = await create(service, faults.Truncate(keep=0.5))

    assert "eof" == heard.end
    assert int(heard.headers["content-length"]) // 2 == len(heard.body)
    assert ["s1"] == list(service.state.sessions)


@pytest.mark.parametrize("status", [400, 402, 404, 409, 410, 425, 500, 503, 529])
async def test_a_status_is_answered_and_nothing_done(service: FakeService, status: int) -> None:
    heard = await create(service, faults.Status(status, "because"))

    assert (status, {"detail": "because"}) == (heard.status, heard.json)
    assert {} == service.state.sessions


async def test_a_status_after_the_work_leaves_it_done(service: FakeService) -> None:
    heard = await create(service, faults.Status(500, commit=True))

    assert 500 == heard.status
    assert ["s1"] == list(service.state.sessions)


@pytest.mark.parametrize(("verdict", "text"), [(True, "true"), (False, "false")])
async def test_the_servers_verdict_is_a_header(
    service: FakeService, verdict: bool, text: str
) -> None:
    heard = await create(service, faults.Status(500, should_retry=verdict))

    assert text == heard.headers["x-should-retry"]


async def test_retry_after_has_every_form(service: FakeService) -> None:
    heard = {}
    async with service.serve() as url:
        for form in ("ms", "seconds", "date", "absent", "garbage"):
            rule = service.faults.on(ENDPOINT, faults.TooMany(2.5, form))
            heard[form] = await exchange(url)
            rule.remove()

    assert {429} == {one.status for one in heard.values()}
    assert "2500" == heard["ms"].headers["retry-after-ms"]
    assert "2.5" == heard["seconds"].headers["retry-after"]
    when = parsedate_to_datetime(heard["date"].headers["retry-after"])
    assert abs(when - dt.datetime.now(dt.UTC)) < dt.timedelta(seconds=60)
    assert not any(name.startswith("retry-after") for name in heard["absent"].headers)
    assert not heard["garbage"].headers["retry-after"].isdigit()


async def test_queue_states_have_both_forms(service: FakeService) -> None:
    """A 408 may come without any body, too."""
    body = b'{"request_id":"r1"}'
    path = "/api/v1/retrieve_future"
    heard = []
    async with service.serve() as url:
        for fault in (
            faults.QueueState("paused_capacity", "full"),
            faults.QueueState("paused_rate_limit", "slow", status=408),
            faults.QueueState(None, status=408),
        ):
            rule = service.faults.on("retrieve_future", fault)
            heard.append(await exchange(url, path, body))
            rule.remove()

    assert [200, 408, 408] == [one.status for one in heard]
    state = {"queue_state": "paused_capacity", "queue_state_reason": "full"}
    assert {"type": "try_again", "request_id": "r1", **state} == heard[0].json
    assert {
        "queue_state": "paused_rate_limit",
        "queue_state_reason": "slow",
    } == heard[1].json
    assert b"" == heard[2].body


async def test_bad_answers_are_bad(service: FakeService) -> None:
    """Under a right length; the work is done."""
    heard = {}
    async with service.serve() as url:
        for fault in (
            faults.BadJson(),
            faults.BadProtobuf(),
            faults.WrongContentType(),
            faults.WrongType("session_id", 17),
            faults.HugeBody(100_000),
        ):
            rule = service.faults.on("create_session", fault)
            heard[str(fault)] = await exchange(url, CREATE, NEW_SESSION)
            rule.remove()

    assert {"whole"} == {one.end for one in heard.values()}
    with pytest.raises(msgspec.DecodeError):
        _ = heard["BadJson"].json
    assert "application/x-protobuf" == heard["BadProtobuf"].headers["content-type"]
    assert "text/html" == heard["WrongContentType"].headers["content-type"]
    assert 17 == heard["WrongType"].json["session_id"]
    assert "s5" == heard["HugeBody"].json["session_id"]
    assert len(heard["HugeBody"].body) > 100_000
    assert 5 == len(service.state.sessions)


async def test_flow_stall_takes_no_body(service: FakeService) -> None:
    heard = await create(service, faults.FlowStall(), for_s=0.2)

    assert ("silence", b"") == (heard.end, heard.data)
    assert {} == service.state.sessions


@pytest.mark.parametrize("processed", [False, True])
async def test_going_away_closes_the_connection(service: FakeService, processed: bool) -> None:
    """After the answer, or without one."""
    service.faults.on("create_session", faults.GoAway(processed=processed))
    async with service.serve() as url, await connected(url) as stream:
        await stream.send(request_bytes(CREATE, NEW_SESSION))
        heard = await listen(stream)
        rest = await listen(stream)

    assert int(processed) == len(service.state.sessions)
    assert ("whole" if processed else rest.end) == heard.end
    assert rest.end in {"eof", "reset"}
    assert processed == (heard.data != b"" and heard.headers["connection"] == "close")


async def test_a_dead_session_stays_dead(service: FakeService) -> None:
    service.faults.on("session_heartbeat", faults.EndsSession(), occurrence=2)
    beat = b'{"session_id":"s1","type":"session_heartbeat"}'
    async with service.serve() as url:
        await exchange(url, CREATE, NEW_SESSION)
        heard = [await exchange(url, "/api/v1/session_heartbeat", beat) for _ in range(4)]

    assert [200, 410, 410, 410] == [one.status for one in heard]


async def test_several_requests_share_a_connection(service: FakeService) -> None:
    async with service.serve() as url, await connected(url) as stream:
        for _ in range(3):
            await stream.send(request_bytes())
            assert 200 == (await listen(stream)).status

    assert 1 == service.ledger.connections
    assert 0 == service.ledger.open_connections


async def test_chunked_bodies_are_read(service: FakeService) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    async with service.serve() as url, await connected(url) as stream:
        await stream.send(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))
        heard = await listen(stream)

    assert 200 == heard.status
    assert [len(BODY)] == [entry.body_bytes for entry in service.ledger.entries]


async def test_what_is_no_http_is_a_400(service: FakeService) -> None:
    async with service.serve() as url, await connected(url) as stream:
        await stream.send(b"hello\r\n\r\n")
        heard = await listen(stream)

    assert 400 == heard.status
