"""The faults that HTTP/2 has a way of its own for, frame by frame."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import h2.events
import h2.exceptions
import msgspec
import pytest
from testing.raw import BODY, PATH, H2Client, connected

from tinker_async.testing import FakeService, faults

ENDPOINT = "client/config"


@asynccontextmanager
async def client_of(service: FakeService) -> AsyncIterator[H2Client]:
    async with service.serve() as url, await connected(url) as stream:
        client = H2Client(stream)
        await client.start()
        yield client


async def until_closed(client: H2Client) -> bytes:
    """Read all the server still sends; the client of `h2` looks at nothing after GOAWAY."""
    raw = b""
    with anyio.fail_after(5), suppress(anyio.EndOfStream):
        while True:
            raw += await client.stream.receive()
    return raw


def goaway(last_id: int) -> bytes:
    """The frame, without an error."""
    return b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + last_id.to_bytes(4, "big") + bytes(4)


async def test_streams_are_answered_at_the_same_time(service: FakeService) -> None:
    """A held one does not keep the others."""
    service.faults.on(ENDPOINT, faults.Stall(), occurrence=1)
    async with client_of(service) as client:
        held, other = await client.ask(), await client.ask()
        await client.send_body(held)
        await client.send_body(other)
        await client.until_over(other)

        assert 200 == client.status_of(other)
        assert msgspec.json.decode(client.body_of(other))["parallel_fwdbwd_chunks"] is True
        assert not client.seen(h2.events.ResponseReceived, held)
    assert ["lost", "answered"] == [entry.outcome for entry in service.ledger.entries]


@pytest.mark.parametrize(
    ("fault", "code"), [(faults.Refuse(), 7), (faults.RstStream(8), 8), (faults.RstStream(2), 2)]
)
async def test_a_stream_is_reset_alone(
    service: FakeService, fault: faults.Fault, code: int
) -> None:
    """With the code of the fault; the connection goes on."""
    service.faults.on(ENDPOINT, fault, occurrence=1)
    async with client_of(service) as client:
        first = await client.ask()
        await client.until_over(first)
        second = await client.ask()
        await client.send_body(second)
        await client.until_over(second)

        assert [code] == [event.error_code for event in client.seen(h2.events.StreamReset, first)]
        assert 200 == client.status_of(second)


async def test_goaway_names_the_request_as_not_processed(service: FakeService) -> None:
    """Those before it are still answered; then the connection ends."""
    service.faults.on(ENDPOINT, faults.Stall(seconds=0.1), occurrence=1)
    service.faults.on(ENDPOINT, faults.GoAway(processed=False), occurrence=2)
    async with client_of(service) as client:
        first = await client.ask()
        await client.send_body(first)
        second = await client.ask()
        assert second > first
        raw = await until_closed(client)

    assert goaway(first) in raw
    assert raw.index(goaway(first)) < raw.index(b"parallel_fwdbwd_chunks")
    assert ["answered", "lost"] == [entry.outcome for entry in service.ledger.entries]


async def test_goaway_after_a_processed_request_still_answers_it(service: FakeService) -> None:
    service.faults.on(ENDPOINT, faults.GoAway(processed=True))
    async with client_of(service) as client:
        stream_id = await client.ask()
        await client.send_body(stream_id)
        raw = await until_closed(client)

    assert raw.index(goaway(stream_id)) < raw.index(b"parallel_fwdbwd_chunks")
    assert ["answered"] == [entry.outcome for entry in service.ledger.entries]


async def test_a_stalled_flow_gives_no_window(service: FakeService) -> None:
    """To that stream only."""
    service.faults.on(ENDPOINT, faults.FlowStall(), occurrence=1)
    async with client_of(service) as client:
        stalled, free = await client.ask(), await client.ask()
        with anyio.move_on_after(0.2):
            while not client.end:
                await client.step()
        with pytest.raises(h2.exceptions.FlowControlError):
            await client.send_body(stalled)
        await client.send_body(free)
        await client.until_over(free)

        assert 0 == client.h2.local_flow_control_window(stalled)
        assert 200 == client.status_of(free)


@pytest.mark.parametrize("when", ["before", "within", "after"])
async def test_a_reset_ends_the_connection_with_all_its_streams(
    service: FakeService, when: str
) -> None:
    service.faults.on(ENDPOINT, faults.Stall(), occurrence=1)
    service.faults.on(ENDPOINT, faults.Reset(when), occurrence=2)  # type: ignore[arg-type]
    async with client_of(service) as client:
        first = await client.ask()
        await client.send_body(first)
        second = await client.ask()
        if when != "before":
            half = len(BODY) // 2
            client.h2.send_data(second, BODY[: half if when == "within" else len(BODY)])
            if when == "after":
                client.h2.end_stream(second)
            await client.flush()
        await client.until_over(second)

    assert "reset" == client.end
    assert ["lost", "lost"] == [entry.outcome for entry in service.ledger.entries]
    assert [200, None] != [entry.status for entry in service.ledger.entries]


async def test_a_dropped_reply_resets_after_the_work(service: FakeService) -> None:
    service.faults.on("create_session", faults.DropReply())
    body = b'{"tags":[],"user_metadata":null,"sdk_version":"0","type":"create_session"}'
    async with client_of(service) as client:
        stream_id = await client.ask("/api/v1/create_session", body)
        await client.send_body(stream_id, body)
        await client.until_over(stream_id)

    assert "reset" == client.end
    assert ["s1"] == list(service.state.sessions)


async def test_a_truncated_answer_is_shorter_than_it_says(service: FakeService) -> None:
    """A client has to compare: `h2` does, and breaks off."""
    service.faults.on(ENDPOINT, faults.Truncate(0.5))
    async with client_of(service) as client:
        stream_id = await client.ask()
        await client.send_body(stream_id)
        with pytest.raises(h2.exceptions.InvalidBodyLengthError):
            await client.until_over(stream_id)


async def test_a_trickle_comes_in_many_frames(service: FakeService) -> None:
    service.faults.on(ENDPOINT, faults.Trickle(chunk_bytes=10))
    async with client_of(service) as client:
        stream_id = await client.ask()
        await client.send_body(stream_id)
        await client.until_over(stream_id)

    body = client.body_of(stream_id)
    assert msgspec.json.decode(body)["parallel_fwdbwd_chunks"] is True
    frames = client.seen(h2.events.DataReceived, stream_id)
    assert {10} == {len(event.data) for event in frames if event.data} - {len(body) % 10}


async def test_a_huge_answer_keeps_to_the_clients_window(service: FakeService) -> None:
    service.faults.on(ENDPOINT, faults.HugeBody(300_000))
    async with client_of(service) as client:
        stream_id = await client.ask()
        await client.send_body(stream_id)
        before = 0
        with anyio.move_on_after(0.2):
            while True:
                await client.step()
                before = len(client.body_of(stream_id))
        assert 65_535 == before

        client.h2.increment_flow_control_window(1 << 20)
        client.h2.increment_flow_control_window(1 << 20, stream_id)
        await client.flush()
        await client.until_over(stream_id)
    assert 300_000 < len(client.body_of(stream_id))


async def test_a_stream_that_the_client_resets_is_over(service: FakeService) -> None:
    """Its request counts as lost; the connection goes on."""
    service.faults.on(ENDPOINT, faults.Stall(), occurrence=1)
    async with client_of(service) as client:
        first = await client.ask()
        await client.send_body(first)
        client.h2.reset_stream(first)
        second = await client.ask(PATH)
        await client.send_body(second)
        await client.until_over(second)

        assert 200 == client.status_of(second)
        assert ["lost", "answered"] == [entry.outcome for entry in service.ledger.entries]
