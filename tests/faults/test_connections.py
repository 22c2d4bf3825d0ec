"""Faults before there is a session, of connections, and those that only sockets have."""

from __future__ import annotations

import pickle
from typing import Any

import anyio
import pytest
from faults.calls import ADAM, BASE_MODEL, DATA, PARAMS, PROMPT, World
from faults.cells import POLICY
from faults.reasons import ATTEMPTS, CASES, Case
from faults.virtual_asyncio import virtual_backends

from tinker_async import (
    APIStatusError,
    ConnectError,
    ProtocolError,
    RetryPolicy,
    SamplingParams,
    Session,
    TinkerError,
)
from tinker_async.testing import FakeService, faults
from tinker_async.testing.faults import Fault

VIRTUAL = pytest.mark.parametrize("anyio_backend", virtual_backends(), ids=["asyncio", "trio"])
QUESTIONS = ("client/config", "client/dynamic_config", "create_session")
OPENING = [case for case in CASES if case.fault.fits("create_session")]


@VIRTUAL
@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("endpoint", QUESTIONS)
async def test_a_session_is_opened_or_says_why_not(
    endpoint: str, always: bool, anyio_backend: Any
) -> None:
    """Each fault at each of the first three questions."""
    for case in OPENING:
        service = FakeService()
        rule = service.faults.on(endpoint, case.fault, times=None if always else 1)
        error: TinkerError | None = None
        began = anyio.current_time()
        try:
            async with service.session(retry=POLICY, billing_pause_s=12.0) as session:
                rule.remove()
                await session.get_server_capabilities()
        except TinkerError as failure:
            error = failure
        name = f"{case} at {endpoint}"
        assert opening_error(endpoint, case, always=always) is (error and type(error)), name
        assert anyio.current_time() - began < 300, name
        assert service.ledger.pending() == [], name
        if error is not None:
            assert error.operation == "Session", name
            assert error.hint, name
            assert error.attempts == service.ledger.count(endpoint), name
            assert type(pickle.loads(pickle.dumps(error))) is type(error)


def opening_error(endpoint: str, case: Case, *, always: bool) -> type[TinkerError] | None:
    if isinstance(case.fault, faults.WrongContentType):
        return None  # a label
    if getattr(case.fault, "status", 0) == 404 and endpoint != "create_session":
        return None  # such a server has no settings
    repeated = case.repeated or case.group == "billing"  # `billing_pause_s` is given
    return case.error if always or not repeated else None


@VIRTUAL
@pytest.mark.parametrize("fault", [faults.Refuse(), faults.TlsDrop()], ids=str)
async def test_a_server_that_takes_no_connection_is_told_in_seconds(
    fault: Fault, anyio_backend: Any
) -> None:
    """Once: the next attempt connects. Always: ConnectError, and nothing was sent."""
    service = FakeService()
    service.faults.on("connect", fault, times=1)
    async with service.session(retry=POLICY):
        pass

    service = FakeService()
    service.faults.on("connect", fault)
    began = anyio.current_time()
    with pytest.raises(ConnectError) as caught:
        async with service.session():
            pytest.fail("it was entered")
    assert anyio.current_time() - began < 5
    assert caught.value.attempts == ATTEMPTS == service.ledger.connections
    assert service.ledger.entries == []


@VIRTUAL
async def test_an_abandoned_sample_is_told_of_though_the_block_ends_at_once(
    anyio_backend: Any,
) -> None:
    """The last words of a session: known requests, and those whose answer was cut off."""
    service = FakeService(sample_s=1000)
    service.faults.on("asample", faults.Stall(seconds=5, commit=True), occurrence=2)
    async with service.session() as session:
        sampler = await session.create_sampling_client(base_model="toy")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sampler.sample, PROMPT, PARAMS)
            tasks.start_soon(sampler.sample, PROMPT, PARAMS)
            await anyio.sleep(1)
            tasks.cancel_scope.cancel()

    assert sorted(service.ledger.cancels()) == sorted(
        line.request_id for line in service.ledger.samples
    )
    assert [1, 1] == [line.cancelled for line in service.ledger.samples]


# Over sockets


SOCKETS: dict[str, Fault] = {
    "refused": faults.Refuse(),
    "reset before": faults.Reset(when="before"),
    "reset within": faults.Reset(when="within"),
    "reset after": faults.Reset(when="after"),
    "dropped": faults.DropReply(),
    "truncated": faults.Truncate(keep=0.5),
    "trickled": faults.Trickle(chunk_bytes=50),
    "go away": faults.GoAway(processed=False),
    "go away after": faults.GoAway(processed=True),
    "stream reset": faults.RstStream(code=8),
    "stream refused": faults.RstStream(code=7),
}
FAST = RetryPolicy(max_attempts=ATTEMPTS, base_s=0.001, max_s=0.002)


async def loop_of(session: Session) -> None:
    """A bit of everything."""
    world = World(FakeService(), session)
    trainer = await session.create_lora_training_client(BASE_MODEL, rank=8)
    step = trainer.forward_backward(DATA, "cross_entropy")
    optim = trainer.optim_step(ADAM)
    await step
    await optim
    world.path = (await trainer.save_state("a")).path
    sampler = await trainer.save_weights_and_get_sampling_client()
    assert (await sampler.sample(PROMPT, SamplingParams(max_tokens=2))).sequences
    await session.rest.get_weights_info_by_tinker_path(world.path)


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
@pytest.mark.parametrize("fault", SOCKETS.values(), ids=SOCKETS)
async def test_a_loop_over_a_socket_survives_each_fault_once_everywhere(
    fault: Fault, http2: bool
) -> None:
    """The first request of each endpoint meets it: no gap, nothing twice, nothing left open."""
    service = FakeService(base_models=(BASE_MODEL,))
    for endpoint in (*QUESTIONS, *LOOP):
        service.faults.on(endpoint, fault, occurrence=1)
    with anyio.fail_after(20):
        async with (
            service.serve() as url,
            Session(url, "tml-x", retry=FAST, http2=http2) as session,
        ):
            await loop_of(session)
    (run,) = {one.model_id for one in service.ledger.executed}
    assert service.ledger.gaps(run) == []
    assert [
        "forward_backward",
        "optim_step",
        "save_weights",
        "save_weights_for_sampler",
    ] == service.ledger.order(run)
    assert service.ledger.samples_answered_once() or not isinstance(fault, faults.Trickle)
    assert (0, []) == (service.ledger.open_connections, service.ledger.pending())


LOOP = (
    "create_model",
    "forward_backward",
    "optim_step",
    "save_weights",
    "save_weights_for_sampler",
    "asample",
    "retrieve_future",
    "weights_info",
)


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
@pytest.mark.parametrize("fault", SOCKETS.values(), ids=SOCKETS)
async def test_a_fault_that_does_not_end_over_a_socket_ends_the_call(
    fault: Fault, http2: bool
) -> None:
    """By the policy's count, as in process: the error's class says whether it was sent."""
    service = FakeService(base_models=(BASE_MODEL,))
    with anyio.fail_after(20):
        async with (
            service.serve() as url,
            Session(url, "tml-x", retry=FAST, http2=http2) as session,
        ):
            rule = service.faults.on("weights_info", fault)
            found = await outcome_of(session)
            sent = service.ledger.count("weights_info")
            rule.remove()
            assert isinstance(await outcome_of(session), APIStatusError)  # there is no such run

    if fault.harmless and fault != faults.GoAway(processed=False):
        assert (1, True) == (sent, isinstance(found, APIStatusError))
        return
    assert isinstance(found, (ConnectError, ProtocolError))
    # What a polite GOAWAY names as not processed moves to the next connection, up to twice.
    moves = 3 if http2 and isinstance(fault, faults.GoAway) else 1
    assert (ATTEMPTS, moves * ATTEMPTS) == (found.attempts, sent)
    assert found.hint
    assert (0, []) == (service.ledger.open_connections, service.ledger.pending())


async def outcome_of(session: Session) -> TinkerError | None:
    try:
        await session.rest.get_weights_info_by_tinker_path("tinker://r/weights/w")
    except TinkerError as error:
        return error
    return None
