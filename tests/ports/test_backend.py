"""The backend over a sampling client: six methods, and no claim of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from tinker_async import (
    APIStatusError,
    InvalidInputError,
    ModelInput,
    SamplingParams,
    Session,
    SessionClosedError,
)
from tinker_async.ports import Backend, CompletionRequest, SamplingBackend
from tinker_async.testing import FakeService

PROMPT = ModelInput.from_ints([1, 2, 3])
PARAMS = SamplingParams(max_tokens=4, seed=1)


@pytest.fixture
async def session() -> AsyncGenerator[Session]:
    async with FakeService().session() as session:
        yield session


async def base_model(session: Session) -> str:
    name = (await session.get_server_capabilities()).supported_models[0].model_name
    assert name is not None
    return name


async def test_completions_are_those_of_the_sampling_client(session: Session) -> None:
    """Tokens, log-probs, stop reason; streamed ones are the same."""
    model = await base_model(session)
    backend: Backend = SamplingBackend(session, base_model=model)
    await backend.initialise()
    await backend.initialise()
    request = CompletionRequest(PROMPT, PARAMS, num_samples=2)
    completions = await backend.complete(request)
    sampler = await session.create_sampling_client(base_model=model)
    response = await sampler.sample(PROMPT, PARAMS, 2)

    assert [tuple(one.tokens.tolist()) for one in response.sequences] == [
        one.tokens for one in completions
    ]
    assert [one.stop_reason for one in response.sequences] == [
        one.stop_reason for one in completions
    ]
    assert completions == [one async for one in backend.stream(request)]
    assert completions[0].text is None


async def test_only_what_the_server_reports_is_claimed(session: Session) -> None:
    """Its models; nothing of tools, sight or prices, and no tokens one by one."""
    found = await SamplingBackend(session, base_model="any").capabilities()
    reported = (await session.get_server_capabilities()).supported_models

    assert [model.model_name for model in reported] == [model.name for model in found.models]
    assert [model.max_context_length for model in reported] == [
        model.context_length for model in found.models
    ]
    assert (False, None, None, None) == (
        *(found.streaming, found.tools, found.vision),
        found.cost_per_token,
    )


async def test_health_and_metrics_are_figures(session: Session) -> None:
    """Of the session, and of the backend's own work; failures count too."""
    backend = SamplingBackend(session, base_model=await base_model(session))
    with pytest.raises(SessionClosedError, match="initialise"):
        await backend.complete(CompletionRequest(PROMPT, PARAMS))
    await backend.initialise()
    await backend.complete(CompletionRequest(PROMPT, PARAMS, num_samples=2, timeout_s=5))
    with pytest.raises(InvalidInputError):
        await backend.complete(CompletionRequest(ModelInput.empty(), PARAMS))
    metrics, health = backend.metrics(), await backend.health()

    assert (3, 2, 2, 0) == (
        *(metrics.requests, metrics.failures, metrics.completions),
        metrics.in_flight,
    )
    assert 1 <= metrics.completion_tokens <= 8
    assert (True, "ok", session.session_id) == (
        *(health.ok, health.state),
        health.details["session_id"],
    )


async def test_an_unknown_model_is_the_servers_own_error(session: Session) -> None:
    """At initialise, not at the first completion."""
    with pytest.raises(APIStatusError):
        await SamplingBackend(session, base_model="no/such").initialise()
    with pytest.raises(InvalidInputError):
        await SamplingBackend(session).initialise()
