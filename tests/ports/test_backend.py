"""The backend over a sampling client: six methods, and no claim of its own."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator

import anyio
import pytest

from tinker_async import (
    APIStatusError,
    InvalidInputError,
    MissingExtraError,
    ModelInput,
    RequestTimeoutError,
    SamplingParams,
    Session,
    SessionClosedError,
)
from tinker_async.ports import Backend, CompletionRequest, SamplingBackend
from tinker_async.testing import FakeService, faults

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


async def test_text_is_completed_by_text(session: Session) -> None:
    """With the tokenizer of the sampler's model: the tokens are those of the text, and so are the draws."""
    model = await base_model(session)
    backend = SamplingBackend(session, base_model=model)
    await backend.initialise()
    sampler = await session.create_sampling_client(base_model=model)
    tokenizer = await sampler.get_tokenizer()
    asked = ModelInput.from_ints(tokenizer.encode("Ask.").ids)
    by_text = await backend.complete(CompletionRequest("Ask.", PARAMS, num_samples=2))
    by_tokens = await backend.complete(CompletionRequest(asked, PARAMS, num_samples=2))

    assert [(one.tokens, one.logprobs) for one in by_tokens] == [
        (one.tokens, one.logprobs) for one in by_text
    ]
    assert [tokenizer.decode(list(one.tokens)) for one in by_tokens] == [
        one.text for one in by_text
    ]
    assert any(one.text for one in by_text)
    streamed = backend.stream(CompletionRequest("Ask.", PARAMS, num_samples=2))
    assert by_text == [one async for one in streamed]


async def test_text_needs_the_library_of_tokenizers(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens do not; the error says what to install, and counts as a failure."""
    backend = SamplingBackend(session, base_model=await base_model(session))
    await backend.initialise()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match="tokenizers"):
        await backend.complete(CompletionRequest("Ask.", PARAMS))
    await backend.complete(CompletionRequest(PROMPT, PARAMS))

    assert (2, 1, 0) == (
        *(backend.metrics().requests, backend.metrics().failures),
        backend.metrics().in_flight,
    )


async def test_the_time_of_a_request_is_for_its_tokenizer_too() -> None:
    """A server that is silent about it ends the request as one about the sample would."""
    service = FakeService()
    async with service.session() as session:
        backend = SamplingBackend(session, base_model=await base_model(session))
        await backend.initialise()
        service.faults.on("tokenizer", faults.Stall())
        with anyio.fail_after(5), pytest.raises(RequestTimeoutError):
            await backend.complete(CompletionRequest("Ask.", PARAMS, timeout_s=0.01))


async def test_a_time_that_is_over_before_the_sample_is_told_as_such(session: Session) -> None:
    """Not as a wrong argument; one that never was a time is."""
    backend = SamplingBackend(session, base_model=await base_model(session))
    await backend.initialise()
    with pytest.raises(RequestTimeoutError):
        await backend.complete(CompletionRequest(PROMPT, PARAMS, timeout_s=1e-9))
    with pytest.raises(InvalidInputError) as caught:
        await backend.complete(CompletionRequest(PROMPT, PARAMS, timeout_s=0))

    assert "timeout_s" == caught.value.field


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
