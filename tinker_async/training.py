"""`TrainingClient`: the operations of one model, queued in the order they are called.

Methods check and plan their arguments at once (bad input raises here), queue the
operation and return an `APIFuture` without waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller, Endpoint, decode_json
from tinker_async.api.progress import DEFAULT, Progress, Timeout, within
from tinker_async.api.promises import PATH as RETRIEVE_PATH
from tinker_async.api.retry import RetryPolicy
from tinker_async.background.custom_loss import CustomLossOperation
from tinker_async.background.saves import SaveOperation
from tinker_async.background.training_queue import (
    Lane,
    Operation,
    RequestsOperation,
    TrainingRequest,
)
from tinker_async.data.datum import Datum
from tinker_async.data.params import AdamParams, LossFnType
from tinker_async.data.paths import CheckpointPath, parse_path
from tinker_async.data.results import (
    ForwardBackwardOutput,
    GetInfoResponse,
    LoadWeightsResponse,
    OptimStepResponse,
    SaveWeightsForSamplerResponse,
    SaveWeightsResponse,
)
from tinker_async.errors import InvalidInputError, ResponseError
from tinker_async.futures import APIFuture
from tinker_async.losses import CustomLossFn, needs_torch
from tinker_async.plan.checks import check_not_empty, check_training_call
from tinker_async.plan.chunks import chunk_data
from tinker_async.plan.merging import merge_outputs
from tinker_async.sampling import SamplingClient
from tinker_async.tokenizer import load_tokenizer
from tinker_async.transport import Buffer
from tinker_async.wire import json as wire_json
from tinker_async.wire import training as wire_training
from tinker_async.wire.messages import (
    ClientConfigResponse,
    LoadWeightsRequest,
    ModelRequest,
    OptimStepRequest,
    SaveWeightsForSamplerRequest,
    SaveWeightsForSamplerResult,
    SaveWeightsRequest,
)
from tinker_async.wire.promises import PromiseResult
from tinker_async.wire.protobuf import DecodeError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LossConfig: TypeAlias = "Mapping[str, float | str] | None"

_SHORTEST_TTL_S = 3600


class TrainStepResponse(msgspec.Struct, frozen=True):
    """Result of `train_step`."""

    forward_backward: ForwardBackwardOutput
    optim_step: OptimStepResponse

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of both parts."""
        return {**self.forward_backward.metrics, **(self.optim_step.metrics or {})}


class TrainingClient:
    """Trains one model. Made by a session; valid inside its block.

    Operations run on the server in call order, whoever awaits them and when. A batch
    is cut by the server's limits and its results are merged. Every method raises
    `SessionClosedError` after the block and `ModelPoisonedError` after a lost request.

    All operations take `timeout` (seconds from the call to the result; default the session's)
    and `retry` (a policy of their own). When the time is over, the future fails with
    `RequestTimeoutError`. An operation that was not sent is thereby withdrawn; one that was sent
    is not taken back, and leaves no gap: the error's hint says which.
    """

    def __init__(
        self,
        lane: Lane,
        *,
        caller: Caller,
        limits: ClientConfigResponse,
        next_sampler: Callable[[], int],
        make_sampler: Callable[[str, str | None, str | None], SamplingClient],
        check_inputs: bool = True,
    ) -> None:
        self._lane = lane
        self._caller = caller
        self._limits = limits
        self._next_sampler = next_sampler
        self._make_sampler = make_sampler
        self._check_inputs = check_inputs
        self.context_length: int | None = None
        """The most tokens that a datum may have; None where the server does not say."""
        self._info: GetInfoResponse | None = None

    @property
    def model_id(self) -> str:
        """The server's id of the model; also the id of its training run."""
        return self._lane.model_id

    # Gradients

    def forward(
        self,
        data: Sequence[Datum],
        loss_fn: LossFnType | str,
        loss_fn_config: LossConfig = None,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        """Compute the loss and the log-probs of the targets, without gradients.

        Args and errors: as `forward_backward`.
        """
        requests = self._forward_backward(data, loss_fn, loss_fn_config, forward_only=True)
        return self._queue("forward", requests, merge_outputs, timeout, retry)

    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: LossFnType | str,
        loss_fn_config: LossConfig = None,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        """Compute the loss, and add its gradients to those of the next `optim_step`.

        The loss is the sum over tokens and data, not a mean; `metrics["loss:sum"]` has
        it. `loss_fn_outputs[i]["logprobs"]` is float32 with the shape of the i-th
        datum's `target_tokens`.

        Args:
            data: At least one datum; kept by reference until it is sent.
            loss_fn: `cross_entropy`, `importance_sampling`, `ppo`, `cispo`, `dro`, or
                a name that the server knows.
            loss_fn_config: Settings of the loss, such as `clip_low_threshold`.
            timeout: As for all operations of this client.
            retry: As for all operations of this client.

        Raises:
            InvalidInputError: At once, when the data cannot be right.
            RequestFailedError: From the future, when the server refuses the data.
        """
        requests = self._forward_backward(data, loss_fn, loss_fn_config, forward_only=False)
        return self._queue("forward_backward", requests, merge_outputs, timeout, retry)

    def forward_backward_custom(
        self,
        data: Sequence[Datum],
        loss_fn: CustomLossFn,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        """Compute gradients of a loss of your own, written in torch (extra `torch`).

        The server computes log-probs, `loss_fn` runs here in a worker thread, and its
        gradient goes back as the weights of a cross-entropy, which has the same
        gradient. Later operations of this model wait for all of it.

        Args:
            data: As for `forward_backward`; `target_tokens` is required.
            loss_fn: Called with the data and a list of float32 tensors of log-probs
                (one per datum, in the shape of its `target_tokens`, requiring grad);
                returns the scalar loss and a dict of metrics.
            timeout: As for all operations of this client.
            retry: As for all operations of this client.

        Raises:
            InvalidInputError: At once, when the data cannot be right.
            MissingExtraError: At once, when torch is not installed.
            InvalidInputError: From the future, when the loss is no scalar or does not
                depend on all log-probs. What `loss_fn` raises leaves unchanged.
        """
        self._check(data, "cross_entropy", None)
        needs_torch()
        operation = CustomLossOperation(data, loss_fn, self._plan_cross_entropy, retry)
        return self._submit(operation, timeout)

    def optim_step(
        self,
        adam_params: AdamParams,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[OptimStepResponse]:
        """Apply the gathered gradients with AdamW and clear them."""
        return self._queue("optim_step", [self._optim_step(adam_params)], _only, timeout, retry)

    def train_step(
        self,
        data: Sequence[Datum],
        loss_fn: LossFnType | str,
        adam_params: AdamParams,
        loss_fn_config: LossConfig = None,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[TrainStepResponse]:
        """`forward_backward` and `optim_step` as one operation with one result.

        Nothing can come between the two. Errors: as `forward_backward`.
        """
        requests = self._forward_backward(data, loss_fn, loss_fn_config, forward_only=False)
        requests.append(self._optim_step(adam_params))
        return self._queue("train_step", requests, _train_step, timeout, retry)

    def _optim_step(self, adam_params: AdamParams) -> TrainingRequest:
        body = partial(OptimStepRequest, model_id=self.model_id, adam_params=adam_params)
        return _json_request(endpoints.OPTIM_STEP, body, OptimStepResponse)

    def _forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: LossConfig,
        *,
        forward_only: bool,
    ) -> list[TrainingRequest]:
        self._check(data, loss_fn, loss_fn_config)
        chunks = chunk_data(
            data,
            max_len=self._limits.fwdbwd_max_chunk_len,
            max_bytes=self._limits.fwdbwd_max_chunk_bytes_count,
        )

        def build(chunk: Sequence[Datum], seq_id: int) -> Sequence[Buffer]:
            return wire_training.encode_forward_backward(
                model_id=self.model_id,
                seq_id=seq_id,
                data=chunk,
                loss_fn=loss_fn,
                loss_fn_config=loss_fn_config,
                forward_only=forward_only,
            )

        return [
            TrainingRequest(
                endpoint=endpoints.FORWARD_BACKWARD,
                compressed=endpoints.FORWARD_BACKWARD_ZSTD,
                build=partial(build, chunk),
                decode=decode_forward_backward_output,
                protobuf_result=True,
            )
            for chunk in chunks
        ]

    def _check(self, data: Sequence[Datum], loss_fn: str, loss_fn_config: LossConfig) -> None:
        if self._check_inputs:
            check_training_call(data, loss_fn, loss_fn_config, longest=self.context_length)
        else:
            check_not_empty(data)

    def _plan_cross_entropy(
        self, data: Sequence[Datum], forward_only: bool
    ) -> list[TrainingRequest]:
        return self._forward_backward(data, "cross_entropy", None, forward_only=forward_only)

    # Weights

    def save_state(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
        user_metadata: Mapping[str, str] | None = None,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[SaveWeightsResponse]:
        """Save weights and optimizer; the result's `path` resumes training.

        A save whose reply was lost is looked up: it is there once, and its path is the result.

        Args:
            name: Of the checkpoint; letters, digits, `.`, `_` and `-`.
            ttl_seconds: Delete it after so long (at least 3600); None keeps it.
            overwrite: Replace a checkpoint of this name.
            user_metadata: Kept with the checkpoint.
            timeout: As for all operations of this client.
            retry: As for all operations of this client.

        Raises:
            ConflictError: From the future, when there is a checkpoint of this name. Some servers
                tell it as RequestFailedError.
        """
        if self._check_inputs:
            _check_save(name, ttl_seconds)

        body = partial(
            SaveWeightsRequest,
            model_id=self.model_id,
            path=name,
            ttl_seconds=ttl_seconds,
            overwrite=overwrite,
            user_metadata=dict(user_metadata) if user_metadata else None,
        )
        operation: SaveOperation[SaveWeightsResponse] = SaveOperation(
            "save_state",
            _json_request(endpoints.SAVE_WEIGHTS, body, SaveWeightsResponse),
            CheckpointPath(self.model_id, "weights", name),
            SaveWeightsResponse,
            conflict_hint="pass overwrite=True, or choose another name",
            policy=retry,
        )
        return self._submit(operation, timeout)

    def load_state(
        self,
        path: str,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[LoadWeightsResponse]:
        """Load weights into this model, with a fresh optimizer.

        Servers may permit this only as a model's first operation; prefer
        `Session.create_training_client_from_state`.
        """
        request = self._load(path, optimizer=False)
        return self._queue("load_state", [request], _only, timeout, retry)

    def load_state_with_optimizer(
        self,
        path: str,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[LoadWeightsResponse]:
        """Load weights and optimizer state into this model; otherwise as `load_state`."""
        request = self._load(path, optimizer=True)
        return self._queue("load_state_with_optimizer", [request], _only, timeout, retry)

    def _load(self, path: str, *, optimizer: bool) -> TrainingRequest:
        if self._check_inputs:
            parse_path(path, expect="training")
        body = partial(LoadWeightsRequest, path=path, optimizer=optimizer, model_id=self.model_id)
        return _json_request(endpoints.LOAD_WEIGHTS, body, LoadWeightsResponse)

    def save_weights_for_sampler(
        self,
        name: str,
        ttl_seconds: int | None = None,
        user_metadata: Mapping[str, str] | None = None,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[SaveWeightsForSamplerResponse]:
        """Save the weights alone; the result's `path` makes sampling clients.

        Args and errors: as `save_state`.
        """
        if self._check_inputs:
            _check_save(name, ttl_seconds)

        body = partial(
            SaveWeightsForSamplerRequest,
            model_id=self.model_id,
            path=name,
            ttl_seconds=ttl_seconds,
            user_metadata=dict(user_metadata) if user_metadata else None,
        )
        operation: SaveOperation[SaveWeightsForSamplerResponse] = SaveOperation(
            "save_weights_for_sampler",
            _json_request(endpoints.SAVE_WEIGHTS_FOR_SAMPLER, body, SaveWeightsForSamplerResponse),
            CheckpointPath(self.model_id, "sampler_weights", name),
            SaveWeightsForSamplerResponse,
            conflict_hint="choose another name",
            policy=retry,
        )
        return self._submit(operation, timeout)

    def save_weights_and_get_sampling_client(
        self,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[SamplingClient]:
        """Snapshot the weights as they are at this point of the queue, to sample from.

        The snapshot has no name and lives with the session; later training does not
        change it.
        """

        def body(seq_id: int) -> SaveWeightsForSamplerRequest:
            return SaveWeightsForSamplerRequest(
                model_id=self.model_id, sampling_session_seq_id=self._next_sampler(), seq_id=seq_id
            )

        def make(results: list[SaveWeightsForSamplerResult]) -> SamplingClient:
            sampling_session_id = results[0].sampling_session_id
            if sampling_session_id is None:
                raise ResponseError(
                    "the server saved the weights but named no sampling session",
                    endpoint=endpoints.SAVE_WEIGHTS_FOR_SAMPLER.path,
                )
            return self._make_sampler(sampling_session_id, None, None)

        request = _json_request(
            endpoints.SAVE_WEIGHTS_FOR_SAMPLER, body, SaveWeightsForSamplerResult
        )
        name = "save_weights_and_get_sampling_client"
        return self._queue(name, [request], make, timeout, retry)

    # What it is

    async def get_info(
        self,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> GetInfoResponse:
        """Return what the model is; asked once, then remembered."""
        if self._info is None:
            self._info = await self._caller.ask(
                "get_info",
                endpoints.GET_INFO,
                ModelRequest(model_id=self.model_id),
                answer=GetInfoResponse,
                timeout=timeout,
                retry=retry,
            )
        return self._info

    async def get_tokenizer(
        self,
        folder: str | PathLike[str] | None = None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> Tokenizer:
        """Return the model's tokenizer (extra `tokenizers`).

        Args:
            folder: Read `tokenizer.json` there. None asks the server, which works with
                the embedded one, and then the Hugging Face cache and hub.
            timeout: Seconds for all of it; default the session's.
            retry: When to repeat; default the session's policy.

        Raises:
            ConfigError: It was found nowhere; the message says where it was sought.
            MissingExtraError: The `tokenizers` library is not installed.
        """
        progress = Progress("get_tokenizer")

        async def work() -> Tokenizer:
            if folder is not None:
                return await load_tokenizer(self._caller, "", folder=folder)
            data = (await self.get_info(timeout=None, retry=retry)).model_data
            return await load_tokenizer(
                self._caller,
                data.model_name or "",
                tokenizer_id=data.tokenizer_id,
                policy=retry,
                progress=progress,
            )

        return await within(self._caller.limit_of(timeout), progress, work)

    def _queue(
        self,
        name: str,
        requests: list[TrainingRequest],
        merge: Callable[[list[Any]], Any],
        timeout: Timeout,
        retry: RetryPolicy | None,
    ) -> APIFuture[Any]:
        return self._submit(RequestsOperation(name, requests, merge, retry), timeout)

    def _submit(self, operation: Operation, timeout: Timeout) -> APIFuture[Any]:
        self._lane.submit(operation, timeout)
        return operation.future

    def __repr__(self) -> str:
        return f"<TrainingClient {self._lane!r}>"


def decode_forward_backward_output(result: PromiseResult) -> ForwardBackwardOutput:
    """Decode a result in either form."""
    try:
        if result.is_protobuf:
            return wire_training.decode_forward_backward_output(result.body)
        return wire_json.forward_backward_output_from_json(result.body)
    except DecodeError as error:
        raise ResponseError(
            f"the result of forward_backward was not understood: {error}", endpoint=RETRIEVE_PATH
        ) from error


def _json_request(
    endpoint: Endpoint, body: Callable[..., msgspec.Struct], answer: type[Any]
) -> TrainingRequest:
    """Make the request of `body(seq_id=...)`, whose result is an `answer`."""

    def build(seq_id: int) -> Sequence[Buffer]:
        return (wire_json.encode(body(seq_id=seq_id)),)

    def decode(result: PromiseResult) -> Any:
        return decode_json(result.body, answer, endpoint.path)

    return TrainingRequest(endpoint=endpoint, build=build, decode=decode)


def _only(results: list[Any]) -> Any:
    return results[0]


def _train_step(results: list[Any]) -> TrainStepResponse:
    return TrainStepResponse(forward_backward=merge_outputs(results[:-1]), optim_step=results[-1])


def _check_save(name: str, ttl_seconds: int | None) -> None:
    if not name or "/" in name:
        raise InvalidInputError(
            f"name: {name!r} cannot name a checkpoint",
            field="name",
            hint="use letters, digits, '.', '_' and '-'",
        )
    if ttl_seconds is not None and ttl_seconds < _SHORTEST_TTL_S:
        raise InvalidInputError(
            f"ttl_seconds: must be at least {_SHORTEST_TTL_S}, got {ttl_seconds}",
            field="ttl_seconds",
        )
