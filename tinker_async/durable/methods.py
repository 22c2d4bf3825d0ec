"""The methods of `TrainingClient`, as a durable training has them.

The rule: each has the name, the arguments and the result of its namesake, and does one thing:
it puts the call down with its arguments.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

from tinker_async.api.progress import DEFAULT, Timeout
from tinker_async.api.retry import RetryPolicy
from tinker_async.background.training_requests import LossConfig
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
from tinker_async.durable.operations import OperationKind
from tinker_async.errors import InvalidInputError
from tinker_async.futures import APIFuture
from tinker_async.losses import CustomLossFn
from tinker_async.sampling import SamplingClient
from tinker_async.training import TrainingClient, TrainStepResponse

if TYPE_CHECKING:
    from tokenizers import Tokenizer

T = TypeVar("T")


class TrainingMethods:
    """`TrainingClient`'s methods, over `_call`; see there for what they do."""

    @property
    def client(self) -> TrainingClient:
        """The client of the present run. After a recovery it raises `SupersededError`."""
        raise NotImplementedError

    def _call(
        self,
        kind: OperationKind,
        arguments: Mapping[str, Any],
        data: Sequence[Datum] | None = None,
    ) -> APIFuture[Any]:
        raise NotImplementedError

    async def _asked(self, ask: Callable[[TrainingClient], Awaitable[T]]) -> T:
        """Ask the present run for something that is in no queue; in a recovery, the next one."""
        raise NotImplementedError

    def forward(
        self,
        data: Sequence[Datum],
        loss_fn: LossFnType | str,
        loss_fn_config: LossConfig = None,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        """As `TrainingClient.forward`."""
        rest = {"loss_fn": loss_fn, "loss_fn_config": loss_fn_config}
        return self._call("forward", {**rest, "timeout": timeout, "retry": retry}, data)

    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: LossFnType | str,
        loss_fn_config: LossConfig = None,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        """As `TrainingClient.forward_backward`; leave the data as they are: see `copy_data`."""
        rest = {"loss_fn": loss_fn, "loss_fn_config": loss_fn_config}
        return self._call("forward_backward", {**rest, "timeout": timeout, "retry": retry}, data)

    def forward_backward_custom(
        self,
        data: Sequence[Datum],
        loss_fn: CustomLossFn | LossHandle,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        """As `TrainingClient.forward_backward_custom`; called again when a run is repeated."""
        arguments = {"loss_fn": loss_fn, "timeout": timeout, "retry": retry}
        return self._call("forward_backward_custom", arguments, data)

    def optim_step(
        self,
        optim_params: OptimParams | None = None,
        *,
        adam_params: AdamParams | None = None,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[OptimStepResponse]:
        """As `TrainingClient.optim_step`."""
        rest = {"optim_params": optim_params, "adam_params": adam_params}
        return self._call("optim_step", {**rest, "timeout": timeout, "retry": retry})

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
        """As `TrainingClient.train_step`."""
        rest = {"loss_fn": loss_fn, "optim_params": optim_params, "loss_fn_config": loss_fn_config}
        return self._call("train_step", {**rest, "timeout": timeout, "retry": retry}, data)

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
        """As `TrainingClient.save_state`: a checkpoint of your own, which is never deleted here."""
        rest = {"name": name, "ttl_seconds": ttl_seconds, "overwrite": overwrite}
        more = {"user_metadata": user_metadata, "timeout": timeout, "retry": retry}
        return self._call("save_state", {**rest, **more})

    def load_state(
        self,
        path: str,
        weights_access_token: str | None = None,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[LoadWeightsResponse]:
        """As `TrainingClient.load_state`."""
        rest = {"path": path, "weights_access_token": weights_access_token}
        return self._call("load_state", {**rest, "timeout": timeout, "retry": retry})

    def load_state_with_optimizer(
        self,
        path: str,
        weights_access_token: str | None = None,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[LoadWeightsResponse]:
        """As `TrainingClient.load_state_with_optimizer`."""
        rest = {"path": path, "weights_access_token": weights_access_token}
        return self._call("load_state_with_optimizer", {**rest, "timeout": timeout, "retry": retry})

    def save_weights_for_sampler(
        self,
        name: str,
        ttl_seconds: int | None = None,
        user_metadata: Mapping[str, str] | None = None,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[SaveWeightsForSamplerResponse]:
        """As `TrainingClient.save_weights_for_sampler`."""
        rest = {"name": name, "ttl_seconds": ttl_seconds, "user_metadata": user_metadata}
        return self._call("save_weights_for_sampler", {**rest, "timeout": timeout, "retry": retry})

    def save_weights_external(
        self,
        name: str,
        ttl_seconds: int | None = None,
        age_encryption_recipients: Sequence[str] | None = None,
        *,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[SaveWeightsExternalResponse]:
        """As `TrainingClient.save_weights_external`."""
        rest = {"name": name, "ttl_seconds": ttl_seconds}
        more = {"age_encryption_recipients": age_encryption_recipients}
        arguments = {**rest, **more, "timeout": timeout, "retry": retry}
        return self._call("save_weights_external", arguments)

    def save_weights_and_get_sampling_client(
        self,
        *,
        kind: SamplingClientKind = "snapshot",
        record_stability_info: bool = False,
        timeout: Timeout = DEFAULT,
        retry: RetryPolicy | None = None,
    ) -> APIFuture[SamplingClient]:
        """As `TrainingClient.save_weights_and_get_sampling_client`; it lives with its session."""
        rest = {"kind": kind, "record_stability_info": record_stability_info}
        arguments = {**rest, "timeout": timeout, "retry": retry}
        return self._call("save_weights_and_get_sampling_client", arguments)

    def unload_model(
        self, *, timeout: Timeout = DEFAULT, retry: RetryPolicy | None = None
    ) -> APIFuture[UnloadModelResponse]:
        """As `TrainingClient.unload_model`."""
        return self._call("unload_model", {"timeout": timeout, "retry": retry})

    async def create_sampling_client(
        self,
        model_path: str,
        *,
        record_stability_info: bool = False,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> SamplingClient:
        """As `TrainingClient.create_sampling_client`; it lives with its session."""

        async def ask(client: TrainingClient) -> SamplingClient:
            return await client.create_sampling_client(
                model_path,
                record_stability_info=record_stability_info,
                timeout=timeout,
                retry=retry,
            )

        return await self._asked(ask)

    @property
    def model_id(self) -> str:
        """The server's id of the present run; another one after a recovery."""
        return self.client.model_id

    @property
    def context_length(self) -> int | None:
        """As `TrainingClient.context_length`."""
        return self.client.context_length

    def get_console_url(self) -> str:
        """As `TrainingClient.get_console_url`, of the present run."""
        return self.client.get_console_url()

    async def get_info(
        self,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> GetInfoResponse:
        """As `TrainingClient.get_info`, of the present run."""
        return await self._asked(lambda client: client.get_info(timeout=timeout, retry=retry))

    async def get_tokenizer(
        self,
        folder: str | PathLike[str] | None = None,
        *,
        timeout: Timeout = DEFAULT,  # noqa: ASYNC109  # the official name
        retry: RetryPolicy | None = None,
    ) -> Tokenizer:
        """As `TrainingClient.get_tokenizer`."""
        return await self._asked(
            lambda client: client.get_tokenizer(folder, timeout=timeout, retry=retry)
        )


def check_steps(total: int) -> int:
    """Return a number of steps.

    Raises:
        InvalidInputError: It is none.
    """
    if isinstance(total, bool) or not isinstance(total, int) or total < 0:
        raise InvalidInputError(f"total: must be a whole number, got {total!r}", field="total")
    return total
