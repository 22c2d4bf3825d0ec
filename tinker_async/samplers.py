"""The samplers of one session: makes them, numbers them, and opens those of other processes.

A sampler's requests are told apart by their numbers, so no two clients of a sampler may ever
use the same ones: each takes them from a stretch that nobody else has.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
from tinker_async.api.capabilities import PATIENCE_S, ContextLengths
from tinker_async.api.progress import Progress, Timeout, within
from tinker_async.api.retry import RetryPolicy
from tinker_async.background.draws import Submissions
from tinker_async.background.sampling_pool import SamplingPool
from tinker_async.background.session_poller import CLIENT_STRETCH, Pollers
from tinker_async.data import given
from tinker_async.data.handles import SamplerHandle
from tinker_async.data.paths import parse_sampler_path
from tinker_async.errors import ConfigError, InvalidInputError, TinkerError
from tinker_async.logs import log
from tinker_async.plan.checks import check_base_model
from tinker_async.sampling import SamplingClient
from tinker_async.wire.messages import (
    ClientConfigResponse,
    CreateSamplingSessionRequest,
    CreateSamplingSessionResponse,
    JoinSamplingSessionRequest,
    JoinSamplingSessionResponse,
)

_CLIENTS = 1_000_000_000
"""So the highest number stays below 2**63."""


class Samplers:
    """Makes the sampling clients of one session."""

    def __init__(
        self,
        session_id: str,
        *,
        base_url: str,
        caller: Caller,
        limits: ClientConfigResponse,
        policy: RetryPolicy,
        is_open: Callable[[], Any],
        most: int | None = None,
        context_lengths: ContextLengths | None = None,
    ) -> None:
        self._session_id = session_id
        self._base_url = base_url
        self._caller = caller
        self.pool = SamplingPool(caller, limits, most=most)
        """What all samplers of the session share."""
        self.pollers = Pollers(
            caller,
            wanted=limits.sample_use_retrieve_futures,
            on_missing=self.pool.mind_the_limit,
        )
        """What tells them of samples that are done, if the server wants it so."""
        self.submissions = Submissions()
        """The samples that the session waits for itself."""
        self._policy = policy
        self._joins = limits.sample_join_sampling_session
        self._is_open = is_open
        self._context_lengths = context_lengths
        self._next = 0

    def next_number(self) -> int:
        """Return the number of the session's next sampler, snapshots included."""
        number, self._next = self._next, self._next + 1
        return number

    def client(
        self,
        sampling_session_id: str,
        base_model: str | None = None,
        model_path: str | None = None,
        *,
        first_seq_id: int = 0,
    ) -> SamplingClient:
        """Return a client of a sampler that exists."""
        client = SamplingClient(
            SamplerHandle(self._base_url, sampling_session_id, base_model, model_path),
            caller=self._caller,
            pool=self.pool,
            submissions=self.submissions,
            policy=self._policy,
            is_open=self._is_open,
            first_seq_id=first_seq_id,
            poller=self.pollers.of(sampling_session_id, first_seq_id),
        )
        client.check_inputs = self._context_lengths is not None
        return client

    async def create(
        self,
        model_path: str | None,
        base_model: str | None,
        *,
        timeout: Timeout,  # noqa: ASYNC109  # the public method's argument, as it is
        retry: RetryPolicy | None,
        operation: str = "create_sampling_client",
    ) -> SamplingClient:
        """As `Session.create_sampling_client`; `operation` is the public method's name."""
        if (model_path is None) == (base_model is None):
            raise InvalidInputError("give either model_path or base_model", field="model_path")
        if model_path is None:
            check_base_model(base_model)
        elif self._context_lengths is not None or not isinstance(model_path, str):
            parse_sampler_path(model_path, field="model_path")
        progress = Progress(operation)
        work = partial(self._create, model_path, base_model, retry, progress)
        return await within(self._caller.limit_of(timeout, retry), progress, work)

    async def _create(
        self,
        model_path: str | None,
        base_model: str | None,
        policy: RetryPolicy | None,
        progress: Progress,
    ) -> SamplingClient:
        request = CreateSamplingSessionRequest(
            session_id=self._session_id,
            sampling_session_seq_id=self.next_number(),
            base_model=base_model,
            model_path=model_path,
        )
        created = await self._caller.call_json(
            endpoints.CREATE_SAMPLING_SESSION,
            request,
            answer=CreateSamplingSessionResponse,
            policy=policy,
            progress=progress,
        )
        client = self.client(created.sampling_session_id, base_model, model_path)
        if self._context_lengths is not None and await self._context_lengths.any_known():
            await self._learn_context_length(client, self._context_lengths, policy)
        return client

    async def _learn_context_length(
        self, client: SamplingClient, lengths: ContextLengths, policy: RetryPolicy | None
    ) -> None:
        """Which model a checkpoint is of, only the server knows; it is remembered."""
        try:
            base_model = await client.get_base_model(timeout=PATIENCE_S, retry=policy)
        except TinkerError as error:
            log.info("context_length_not_known", error=type(error).__name__)
        else:
            client.context_length = await lengths.of(base_model)

    async def open(
        self,
        handle: SamplerHandle,
        *,
        timeout: Timeout,  # noqa: ASYNC109  # the public method's argument, as it is
        retry: RetryPolicy | None,
    ) -> SamplingClient:
        """As `Session.create_sampling_client_from_handle`."""
        given.one_of(
            handle,
            SamplerHandle,
            "handle",
            "that of SamplingClient.handle(), or from_json of its text",
        )
        if handle.base_url != self._base_url:
            raise ConfigError(
                f"the sampler is of {handle.base_url}, and this session is with {self._base_url}",
                hint="open the session with base_url=handle.base_url; if both are the same server, "
                "give the handle this session's address with msgspec.structs.replace",
            )
        operation = "create_sampling_client_from_handle"
        if handle.base_model is not None or handle.model_path is not None:
            return await self.create(
                handle.model_path,
                handle.base_model,
                timeout=timeout,
                retry=retry,
                operation=operation,
            )
        progress = Progress(operation)
        work = partial(self._first_of_a_free_stretch, handle.sampling_session_id, retry, progress)
        first_seq_id = await within(self._caller.limit_of(timeout, retry), progress, work)
        return self.client(handle.sampling_session_id, first_seq_id=first_seq_id)

    async def _first_of_a_free_stretch(
        self, sampling_session_id: str, policy: RetryPolicy | None, progress: Progress
    ) -> int:
        """Return the number of the first sample of one more client of a snapshot."""
        if self._joins:
            joined = await self._caller.call_json(
                endpoints.JOIN_SAMPLING_SESSION,
                JoinSamplingSessionRequest(sampling_session_id=sampling_session_id),
                answer=JoinSamplingSessionResponse,
                policy=policy,
                progress=progress,
            )
            return CLIENT_STRETCH * joined.client_counter
        import secrets  # noqa: PLC0415 - it is rarely needed, and loads OpenSSL

        # Nobody hands out stretches, so draw one, and a place in its first half. Not with
        # `random`: workers are often seeded alike.
        return CLIENT_STRETCH * (1 + secrets.randbelow(_CLIENTS)) + secrets.randbelow(
            CLIENT_STRETCH // 2
        )
