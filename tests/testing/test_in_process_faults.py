"""Each fault without a socket: the error that a real connection would have made of it."""

from __future__ import annotations

import anyio
import pytest

from tinker_async import ConnectError, ProtocolError, RequestTimeoutError, TinkerError
from tinker_async.testing import FakeService, faults
from tinker_async.transport import Request, Response

NEW_SESSION = b'{"tags":[],"user_metadata":null,"sdk_version":"0.38.0","type":"create_session"}'


async def create(service: FakeService, *, silence_s: float | None = 0.1) -> Response:
    request = Request("POST", "/api/v1/create_session", (), (NEW_SESSION,))
    with anyio.fail_after(5):
        return await service.transport().request(request, silence_s=silence_s)


@pytest.mark.parametrize(
    ("fault", "error", "done"),
    [
        (faults.Refuse(), ConnectError, False),
        (faults.Reset("before"), ProtocolError, False),
        (faults.Reset("within"), ProtocolError, False),
        (faults.Reset("after"), ProtocolError, False),
        (faults.RstStream(8), ProtocolError, False),
        (faults.RstStream(7), ConnectError, False),
        (faults.GoAway(processed=False), ConnectError, False),
        (faults.FlowStall(), RequestTimeoutError, False),
        (faults.Stall(), RequestTimeoutError, False),
        (faults.Stall(commit=True), RequestTimeoutError, True),
        (faults.Trickle(pause_s=10), RequestTimeoutError, True),
        (faults.Truncate(), ProtocolError, True),
        (faults.DropReply(), ProtocolError, True),
    ],
    ids=str,
)
async def test_what_breaks_the_way_is_a_transport_error(
    service: FakeService, fault: faults.Fault, error: type[TinkerError], done: bool
) -> None:
    """And the work is done, or not, as the fault says."""
    service.faults.on("create_session", fault)
    with pytest.raises(error) as caught:
        await create(service)

    assert type(caught.value) is error
    assert int(done) == len(service.state.sessions)
    assert ["lost"] == [entry.outcome for entry in service.ledger.entries]


@pytest.mark.parametrize(
    "fault",
    [
        faults.GoAway(processed=True),
        faults.Trickle(chunk_bytes=5, pause_s=0.01),
        faults.Stall(seconds=0.02),
        faults.HugeBody(1000),
    ],
    ids=str,
)
async def test_what_only_delays_gives_the_answer(service: FakeService, fault: faults.Fault) -> None:
    """A trickle is no silence, however long it takes."""
    service.faults.on("create_session", fault)
    response = await create(service, silence_s=0.05)

    assert 200 == response.status
    assert b"s1" in bytes(response.body)
    assert ["answered"] == [entry.outcome for entry in service.ledger.entries]


@pytest.mark.parametrize("fault", [faults.Refuse(), faults.TlsDrop()], ids=str)
async def test_a_connection_that_fails_leaves_no_request(
    service: FakeService, fault: faults.Fault
) -> None:
    """The next request makes a new one; a connection that broke is made anew too."""
    service.faults.on("connect", fault, occurrence=(1, 3))
    service.faults.on("create_session", faults.Reset(), occurrence=2)
    transport = service.transport()
    request = Request("POST", "/api/v1/create_session", (), (NEW_SESSION,))
    ends: list[type[TinkerError] | None] = []
    for _ in range(5):
        try:
            await transport.request(request)
        except TinkerError as error:
            ends.append(type(error))
        else:
            ends.append(None)

    assert [ConnectError, None, ProtocolError, ConnectError, None] == ends
    assert 3 == len(service.ledger.entries)
    assert 4 == service.ledger.connections


async def test_an_abandoned_request_is_lost(service: FakeService) -> None:
    service.faults.on("create_session", faults.Stall())
    with anyio.move_on_after(0.05):
        await create(service, silence_s=None)

    assert ["lost"] == [entry.outcome for entry in service.ledger.entries]
    assert [] == service.ledger.pending()
