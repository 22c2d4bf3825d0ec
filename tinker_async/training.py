"""`TrainingClient`: the operations of one model, queued in the order they are called.

Methods check and plan their arguments at once (bad input raises here), queue the
operation and return an `APIFuture` without waiting.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import msgspec

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
from tinker_async.api.features import Feature
from tinker_async.api.progress import DEFAULT, Progress, Timeout, within
from tinker_async.api.retry import RetryPolicy, check_policy
from tinker_async.background.custom_loss import CustomLossOperation
from tinker_async.background.training_queue import (
    Lane,
    Operation,
    RequestsOperation,
    TrainingRequest,
)
from tinker_async.background.training_requests import LossConfig, TrainingRequests
from tinker_async.background.unloading import UnloadOperation
from tinker_async.data import given
from tinker_async.data.console_urls import training_run_page
from tinker_async.data.custom_loss import LossHandle
from tinker_async.data.datum import Datum
from tinker_async.data.optimizers import OptimParams
from tinker_async.data.params import AdamParams, LossFnType, SamplingClientKind
from tinker_async.data.results import (
    ForwardBackwardOutput,
    GetInfoResponse,
    LoadWeightsResponse,
    OptimStepResponse,
    SaveWeightsExternalResponse,
    SaveWeightsForSamplerResponse,
    SaveWeightsResponse,
    UnloadModelResponse,
)
from tinker_async.errors import InvalidInputError, ResponseError
from tinker_async.futures import APIFuture
from tinker_async.losses import CustomLossFn, custom_loss_inputs, handle_loss, needs_torch
from tinker_async.plan.checks import check_custom_loss, check_not_empty
from tinker_async.plan.merging import merge_outputs
from tinker_async.sampling import SamplingClient
from tinker_async.tokenizer import load_tokenizer
from tinker_async.wire.messages import (
    ClientConfigResponse,
    ModelRequest,
    SaveWeightsForSamplerResult,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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
        session_id: str,
        limits: ClientConfigResponse,
        next_sampler: Callable[[], int],
        make_sampler: Callable[[str, str | None, str | None], SamplingClient],
        create_sampler: Callable[..., Awaitable[SamplingClient]],
        optimizer: str | None = None,
        check_inputs: bool = True,
    ) -> None:
        self._lane = lane
        self._caller = caller
        self._session_id = session_id
        self._next_sampler = next_sampler
        self._make_sampler = make_sampler
        self._create_sampler = create_sampler
        self._requests = TrainingRequests(
            lane.model_id, limits, caller.features, optimizer=optimizer, check_inputs=check_inputs
        )
        self._info: GetInfoResponse | None = None

    @property
    def model_id(self) -> str:
        """The server's id of the model; also the id of its training run."""
        return self._lane.model_id

    @property
    def context_length(self) -> int | None:
        """The most tokens that a datum may have; None where the server does not say."""
        return self._requests.context_length

    @context_length.setter
    def context_length(self, tokens: int | None) -> None:
        self._requests.context_length = tokens

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
        requests = self._requests.forward_backward(data, loss_fn, loss_fn_config, forward_only=True)
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
            loss_fn: `cross_entropy`, `importance_sampling`, `ppo`, `cispo`, `dro`, or any other
                name: it is passed on, and a server that does not know it says so.
            loss_fn_config: Settings of the loss, such as `clip_low_threshold`: numbers and texts.
            timeout: As for all operations of this client.
            retry: As for all operations of this client.

        Raises:
            InvalidInputError: At once, when the data cannot be right.
            RequestFailedError: From the future, when the server refuses the data.
        """
        requests = self._requests.forward_backward(
            data, loss_fn, loss_fn_config, forward_only=False
        )
        return self._queue("forward_backward", requests, merge_outputs, timeout, retry)

    def forward_backward_custom(
        self,
        data: Sequence[Datum],
        loss_fn: CustomLossFn | LossHandle,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        """Compute gradients of a loss of your own, written in torch (extra `torch`).

        The server computes log-probs, `loss_fn` runs here in a worker thread, and its
        gradient goes back as the weights of a cross-entropy, which has the same
        gradient. Later operations of this model wait for all of it.

        A handle that a server has (`loss_id`) runs there, in one pass and without torch here.

        Args:
            data: As for `forward_backward`; `target_tokens` is required.
            loss_fn: Called with the data and a list of float32 tensors of log-probs
                (one per datum, in the shape of its `target_tokens`, requiring grad);
                returns the scalar loss and a dict of metrics. Or the handle of
                `Session.create_custom_loss`.
            timeout: As for all operations of this client.
            retry: As for all operations of this client.

        Raises:
            InvalidInputError: At once, when the data cannot be right.
            MissingExtraError: At once, when torch is not installed.
            InvalidInputError: From the future, when the loss is no scalar or does not
                depend on all log-probs. What `loss_fn` raises leaves unchanged.
        """
        check_not_empty(data)
        if isinstance(loss_fn, LossHandle):
            check_custom_loss(loss_fn, data, self._session_id)
            if loss_fn.loss_id is not None:
                config = {"loss_id": loss_fn.loss_id}
                requests = self._requests.forward_backward(
                    data, "custom", config, forward_only=False
                )
                name = "forward_backward_custom"
                return self._queue(name, requests, merge_outputs, timeout, retry)
            loss_fn = handle_loss(loss_fn)
        given.function(loss_fn, "loss_fn", "loss_fn(data, logprobs), or a LossHandle")
        self._requests.check(custom_loss_inputs(data), "cross_entropy", None)
        needs_torch()
        operation = CustomLossOperation(data, loss_fn, self._requests.cross_entropy, retry)
        return self._submit(operation, timeout, retry)

    def optim_step(
        self,
        optim_params: OptimParams | None = None,
        *,
        adam_params: AdamParams | None = None,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[OptimStepResponse]:
        """Apply the gathered gradients with the model's optimizer and clear them.

        Args:
            optim_params: `AdamParams`, unless the model was made with another optimizer:
                `DimuonParams`, or for a family that is not known here a mapping with a `type`.
            adam_params: Another name for it.
            timeout: As for all operations of this client.
            retry: As for all operations of this client.

        Raises:
            InvalidInputError: At once, when they are not the parameters of the model's optimizer.
        """
        params = optim_params if adam_params is None else adam_params
        if params is None or (optim_params is not None and adam_params is not None):
            raise InvalidInputError("optim_params: give the parameters, once", field="optim_params")
        return self._queue("optim_step", [self._requests.optim_step(params)], _only, timeout, retry)

    def train_step(
        self,
        data: Sequence[Datum],
        loss_fn: LossFnType | str,
        optim_params: OptimParams,
        loss_fn_config: LossConfig = None,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[TrainStepResponse]:
        """`forward_backward` and `optim_step` as one operation with one result.

        Nothing can come between the two. Arguments and errors: as `forward_backward` and
        `optim_step`.
        """
        requests = self._requests.forward_backward(
            data, loss_fn, loss_fn_config, forward_only=False
        )
        requests.append(self._requests.optim_step(optim_params))
        return self._queue("train_step", requests, _train_step, timeout, retry)

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
        operation = self._requests.save_state(
            name, ttl_seconds, user_metadata, overwrite=overwrite, policy=retry
        )
        return self._submit(operation, timeout, retry)

    def load_state(
        self,
        path: str,
        weights_access_token: str | None = None,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[LoadWeightsResponse]:
        """Load weights into this model, with a fresh optimizer.

        Servers may permit this only as a model's first operation; prefer
        `Session.create_training_client_from_state`.

        Args:
            path: Of a checkpoint of `save_state`.
            weights_access_token: Grants access to a checkpoint of another account.
            timeout: As for all operations of this client.
            retry: As for all operations of this client.
        """
        request = self._requests.load(
            path, optimizer=False, weights_access_token=weights_access_token
        )
        return self._queue("load_state", [request], _only, timeout, retry)

    def load_state_with_optimizer(
        self,
        path: str,
        weights_access_token: str | None = None,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[LoadWeightsResponse]:
        """Load weights and optimizer state into this model; otherwise as `load_state`."""
        request = self._requests.load(
            path, optimizer=True, weights_access_token=weights_access_token
        )
        return self._queue("load_state_with_optimizer", [request], _only, timeout, retry)

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
        operation = self._requests.save_for_sampler(name, ttl_seconds, user_metadata, policy=retry)
        return self._submit(operation, timeout, retry)

    def save_weights_external(
        self,
        name: str,
        ttl_seconds: int | None = None,
        age_encryption_recipients: Sequence[str] | None = None,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[SaveWeightsExternalResponse]:
        """Save the weights in a form for other programs (such as Hugging Face's).

        Args:
            name: As for `save_state`.
            ttl_seconds: As for `save_state`.
            age_encryption_recipients: Encrypt every file to these public keys (`age1...` or SSH,
                at most 10); None leaves them readable.
            timeout: As for all operations of this client.
            retry: As for all operations of this client.

        Errors: as `save_state`.
        """
        operation = self._requests.save_external(
            name, ttl_seconds, age_encryption_recipients, policy=retry
        )
        return self._submit(operation, timeout, retry)

    def save_weights_and_get_sampling_client(
        self,
        *,
        kind: SamplingClientKind = "snapshot",
        record_stability_info: bool = False,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[SamplingClient]:
        """Snapshot the weights as they are at this point of the queue, to sample from.

        The snapshot has no name and lives with the session; later training does not
        change it.

        Args:
            kind: `inflight` instead publishes the weights to all inflight samplers of this
                model, those of before and the new one: each uses them, or newer ones, as soon as
                they have spread.
            record_stability_info: Let the server keep of each sample what training with
                `stable_reinforce` needs; data refer to it by `Datum.with_provenance`.
            timeout: As for all operations of this client.
            retry: As for all operations of this client.

        Raises:
            InvalidInputError: At once, when there is no such kind.
        """

        def make(results: list[SaveWeightsForSamplerResult]) -> SamplingClient:
            sampling_session_id = results[0].sampling_session_id
            if sampling_session_id is None:
                raise ResponseError(
                    "the server saved the weights but named no sampling session",
                    endpoint=endpoints.SAVE_WEIGHTS_FOR_SAMPLER.path,
                )
            client = self._make_sampler(sampling_session_id, None, None)
            client.record_stability_info = record_stability_info
            return client

        given.flag(record_stability_info, "record_stability_info")
        request = self._requests.snapshot(kind, self._next_sampler)
        name = "save_weights_and_get_sampling_client"
        return self._queue(name, [request], make, timeout, retry)

    async def create_sampling_client(
        self,
        model_path: str,
        *,
        record_stability_info: bool = False,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> SamplingClient:
        """Make a client that samples from saved weights; as `Session.create_sampling_client`."""
        given.flag(record_stability_info, "record_stability_info")
        client = await self._create_sampler(model_path, None, timeout=timeout, retry=retry)
        client.record_stability_info = record_stability_info
        return client

    def unload_model(
        self, *, timeout: Timeout = DEFAULT, retry: RetryPolicy | None = None
    ) -> APIFuture[UnloadModelResponse]:
        """Free the model on the server, after all that was queued before.

        Its checkpoints and samplers stay. What is queued later fails with the server's answer
        that there is no such model.
        """
        self._caller.features.require(Feature.UNLOADING)
        return self._submit(UnloadOperation(retry), timeout, retry)

    # What it is

    def get_console_url(self) -> str:
        """Return the run's page in the Tinker service's web console."""
        return training_run_page(self.model_id)

    async def get_info(
        self,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> GetInfoResponse:
        """Return what the model is; asked once, then remembered."""
        self._caller.limit_of(timeout, retry)
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
        if folder is not None:
            given.path(folder, "folder")

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

        return await within(self._caller.limit_of(timeout, retry), progress, work)

    def _queue(
        self,
        name: str,
        requests: list[TrainingRequest],
        merge: Callable[[list[Any]], Any],
        timeout: Timeout,
        retry: RetryPolicy | None,
    ) -> APIFuture[Any]:
        return self._submit(RequestsOperation(name, requests, merge, retry), timeout, retry)

    def _submit(
        self, operation: Operation, timeout: Timeout, retry: RetryPolicy | None
    ) -> APIFuture[Any]:
        check_policy(retry)
        self._lane.submit(operation, timeout)
        return operation.future

    def __repr__(self) -> str:
        return f"<TrainingClient {self._lane!r}>"


def _only(results: list[Any]) -> Any:
    return results[0]


def _train_step(results: list[Any]) -> TrainStepResponse:
    return TrainStepResponse(forward_backward=merge_outputs(results[:-1]), optim_step=results[-1])
