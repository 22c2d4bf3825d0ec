"""Completions behind six methods, for programs that speak to many kinds of backends.

The rule: a backend claims what its server reports, and nothing else; what is not known is None.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.to_thread
import msgspec

from tinker_async.api.progress import DEFAULT, Progress, Timeout, check_timeout
from tinker_async.data.model_input import ModelInput
from tinker_async.data.params import SamplingParams
from tinker_async.errors import SessionClosedError
from tinker_async.sampling import SamplingClient
from tinker_async.session import Session

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class CompletionRequest(msgspec.Struct, frozen=True, eq=False):
    """What is to be completed, and how.

    Args:
        prompt: Tokens, or text, which needs the extra `tokenizers`.
        sampling_params: How to draw.
        num_samples: How many completions.
        timeout_s: Seconds for all of it; None is the session's.
    """

    prompt: ModelInput | str
    sampling_params: SamplingParams = msgspec.field(default_factory=SamplingParams)
    num_samples: int = 1
    timeout_s: float | None = None


class Completion(msgspec.Struct, frozen=True):
    """One completion."""

    tokens: tuple[int, ...]
    stop_reason: str
    text: str | None = None
    """Where the prompt was text."""
    logprobs: tuple[float, ...] | None = None
    """Of the tokens; None when the server reported none."""


class ModelReport(msgspec.Struct, frozen=True):
    """What a server says of a model."""

    name: str
    context_length: int | None = None
    trainable: bool | None = None
    sampleable: bool | None = None


class BackendCapabilities(msgspec.Struct, frozen=True):
    """What a backend can do, as far as its server says; None is not known."""

    models: tuple[ModelReport, ...]
    streaming: bool = False
    """Whether tokens come one by one; `stream` works without it, with whole completions."""
    tools: bool | None = None
    vision: bool | None = None
    training: bool | None = None
    cost_per_token: float | None = None


class BackendHealth(msgspec.Struct, frozen=True):
    """How a backend is doing."""

    ok: bool
    state: str
    details: dict[str, Any]


class BackendMetrics(msgspec.Struct, frozen=True):
    """What a backend has done since it was made."""

    requests: int = 0
    failures: int = 0
    completions: int = 0
    completion_tokens: int = 0
    in_flight: int = 0
    seconds: float = 0.0
    """Of all requests together."""


class Backend(Protocol):
    """What any backend does."""

    async def initialise(self) -> None:
        """Get ready; once, before all others."""
        ...

    async def complete(self, request: CompletionRequest) -> list[Completion]:
        """Return the completions of a prompt."""
        ...

    def stream(self, request: CompletionRequest) -> AsyncIterator[Completion]:
        """Give completions, or parts of them, as they come."""
        ...

    async def capabilities(self) -> BackendCapabilities:
        """Return what it can do."""
        ...

    async def health(self) -> BackendHealth:
        """Return how it is doing."""
        ...

    def metrics(self) -> BackendMetrics:
        """Return what it has done."""
        ...


class SamplingBackend:
    """A backend over a session's sampling client; valid inside the session's block.

    Cancelling a call cancels it on the server. Errors are those of `SamplingClient.sample`.

    Args:
        session: An open one.
        base_model: What to sample from,
        model_path: or a checkpoint for samplers.
    """

    def __init__(
        self, session: Session, *, base_model: str | None = None, model_path: str | None = None
    ) -> None:
        self._session = session
        self._base_model = base_model
        self._model_path = model_path
        self._sampler: SamplingClient | None = None
        self._tokenizer: Tokenizer | None = None
        self._tokenizing = anyio.CapacityLimiter(1)
        """For encoding and decoding text: one worker thread."""
        self._metrics = BackendMetrics()

    async def initialise(self) -> None:
        """Make the sampling client; a second time does nothing.

        Raises:
            InvalidInputError: Neither base model nor path is given, or both.
            BadRequestError, NotFoundError: The server does not have it.
        """
        if self._sampler is None:
            self._sampler = await self._session.create_sampling_client(
                self._model_path, self._base_model
            )

    async def complete(self, request: CompletionRequest) -> list[Completion]:
        """Return the completions of a prompt.

        Raises:
            SessionClosedError: It was not initialised, or the session is over.
            MissingExtraError: The prompt is text, and `tokenizers` is not installed.
            RequestTimeoutError: `timeout_s` is over.
        """
        self._count(in_flight=1, requests=1)
        began_s = anyio.current_time()
        try:
            completions = await self._completed(request)
        except BaseException:
            self._count(failures=1)
            raise
        finally:
            self._count(in_flight=-1, seconds=anyio.current_time() - began_s)
        tokens = sum(len(one.tokens) for one in completions)
        self._count(completions=len(completions), completion_tokens=tokens)
        return completions

    async def stream(self, request: CompletionRequest) -> AsyncIterator[Completion]:
        """Give the completions of a prompt, each whole. Errors: as `complete`."""
        for completion in await self.complete(request):
            yield completion

    async def capabilities(self) -> BackendCapabilities:
        """Return what the server says that it has."""
        found = (await self._session.get_server_capabilities()).supported_models
        models = tuple(
            ModelReport(
                name=model.model_name,
                context_length=model.max_context_length,
                trainable=model.trainable,
                sampleable=model.sampleable,
            )
            for model in found
            if model.model_name is not None
        )
        known = [model.trainable for model in models if model.trainable is not None]
        return BackendCapabilities(models=models, training=any(known) if known else None)

    async def health(self) -> BackendHealth:
        """Return how the session is doing; asks nobody."""
        found = self._session.health()
        details: dict[str, Any] = msgspec.to_builtins(found)
        return BackendHealth(ok=found.state == "ok", state=found.state, details=details)

    def metrics(self) -> BackendMetrics:
        """Return what was done so far."""
        return self._metrics

    async def _completed(self, request: CompletionRequest) -> list[Completion]:
        if self._sampler is None:
            raise SessionClosedError(
                "the backend is not initialised", hint="await backend.initialise() first"
            )
        prompt, tokenizer = request.prompt, None
        left_s = _counting_down(request.timeout_s)
        if isinstance(prompt, str):
            tokenizer = await self._loaded_tokenizer(self._sampler, left_s())
            encoded = await self._in_thread(tokenizer.encode, prompt)
            prompt = ModelInput.from_ints(encoded.ids)
        response = await self._sampler.sample(
            prompt, request.sampling_params, request.num_samples, timeout=left_s()
        )
        rows = [one.tokens.tolist() for one in response.sequences]
        texts: list[str | None] = [None] * len(rows)
        if tokenizer is not None:
            texts = await self._in_thread(tokenizer.decode_batch, rows)
        return [
            Completion(
                tuple(tokens),
                one.stop_reason,
                text,
                None if one.logprobs is None else tuple(one.logprobs.tolist()),
            )
            for one, tokens, text in zip(response.sequences, rows, texts, strict=True)
        ]

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await anyio.to_thread.run_sync(function, *arguments, limiter=self._tokenizing)

    async def _loaded_tokenizer(self, sampler: SamplingClient, timeout: Timeout) -> Tokenizer:  # noqa: ASYNC109  # handed on
        if self._tokenizer is None:
            self._tokenizer = await sampler.get_tokenizer(timeout=timeout)
        return self._tokenizer

    def _count(self, **more: float) -> None:
        new: dict[str, Any] = {name: getattr(self._metrics, name) + n for name, n in more.items()}
        self._metrics = msgspec.structs.replace(self._metrics, **new)


def _counting_down(timeout_s: float | None) -> Callable[[], Timeout]:
    """Return what tells how much of a time is left, as the clients' `timeout`.

    Raises:
        InvalidInputError: It is not above zero.
    """
    limit_s = check_timeout(timeout_s, field="timeout_s")
    if limit_s is None:
        return lambda: DEFAULT
    ends_s = anyio.current_time() + limit_s

    def left_s() -> float:
        left = ends_s - anyio.current_time()
        if left <= 0:
            raise Progress("complete").timed_out(limit_s, "give it more time")
        return left

    return left_s
