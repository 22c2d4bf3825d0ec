"""What a training client sends: its arguments checked, cut into requests, and made bodies.

Rule: whatever is wrong with the arguments raises here, before anything is queued.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import msgspec

from tinker_async.api import endpoints
from tinker_async.api.calls import Endpoint, decode_json
from tinker_async.api.features import Feature, FeatureBook
from tinker_async.api.promises import PATH as RETRIEVE_PATH
from tinker_async.api.retry import RetryPolicy
from tinker_async.background.saves import SaveOperation
from tinker_async.background.training_forms import Batch, check_fits_json
from tinker_async.background.training_queue import TrainingRequest
from tinker_async.data import given
from tinker_async.data.datum import Datum
from tinker_async.data.optimizers import OptimParams, check_params_fit, params_to_send
from tinker_async.data.params import SamplingClientKind
from tinker_async.data.paths import CheckpointPath, parse_path
from tinker_async.data.results import (
    ForwardBackwardOutput,
    LoadWeightsResponse,
    OptimStepResponse,
    SaveWeightsExternalResponse,
    SaveWeightsForSamplerResponse,
    SaveWeightsResponse,
)
from tinker_async.errors import InvalidInputError, ResponseError
from tinker_async.plan.checks import check_not_empty, check_training_call
from tinker_async.plan.chunks import chunk_data
from tinker_async.plan.saves import check_recipients, check_save
from tinker_async.transport import Buffer
from tinker_async.wire import json as wire_json
from tinker_async.wire import training as wire_training
from tinker_async.wire.messages import (
    ClientConfigResponse,
    LoadWeightsRequest,
    OptimStepRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    SaveWeightsForSamplerResult,
    SaveWeightsRequest,
)
from tinker_async.wire.promises import PromiseResult
from tinker_async.wire.protobuf import DecodeError

LossConfig: TypeAlias = "Mapping[str, float | str] | None"
Metadata: TypeAlias = "Mapping[str, str] | None"


class TrainingRequests:
    """Makes the requests of one model.

    Args:
        model_id: The server's id of it.
        limits: Where batches are cut.
        features: What the server is known to lack.
        optimizer: The family of the model's optimizer; None where it is not known.
        check_inputs: Whether arguments are checked.
    """

    def __init__(
        self,
        model_id: str,
        limits: ClientConfigResponse,
        features: FeatureBook,
        *,
        optimizer: str | None = None,
        check_inputs: bool = True,
    ) -> None:
        self.model_id = model_id
        self.context_length: int | None = None
        """The most tokens that a datum may have; None where the server does not say."""
        self.check_inputs = check_inputs
        self._optimizer = optimizer
        self._limits = limits
        self._features = features

    # Gradients

    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: LossConfig,
        *,
        forward_only: bool,
    ) -> list[TrainingRequest]:
        """Return the requests of a batch.

        Raises:
            InvalidInputError: The data cannot be right.
        """
        self.check(data, loss_fn, loss_fn_config)
        if Feature.PROTOBUF_TRAINING in self._features.missing:
            check_fits_json(data)
        chunks = chunk_data(
            data,
            max_len=self._limits.fwdbwd_max_chunk_len,
            max_bytes=self._limits.fwdbwd_max_chunk_bytes_count,
        )

        batches = (
            Batch(self.model_id, chunk, loss_fn, loss_fn_config, forward_only) for chunk in chunks
        )
        return [
            TrainingRequest(
                endpoint=endpoints.FORWARD_BACKWARD,
                compressed=endpoints.FORWARD_BACKWARD_ZSTD,
                build=batch.protobuf_body,
                batch=batch,
                decode=decode_forward_backward_output,
                protobuf_result=True,
            )
            for batch in batches
        ]

    def check(self, data: Sequence[Datum], loss_fn: str, loss_fn_config: LossConfig) -> None:
        """Check a batch.

        Raises:
            InvalidInputError: The data cannot be right.
        """
        if self.check_inputs:
            check_training_call(data, loss_fn, loss_fn_config, longest=self.context_length)
        else:
            check_not_empty(data)

    def cross_entropy(self, data: Sequence[Datum], forward_only: bool) -> list[TrainingRequest]:
        """Return the requests of a batch for the loss that custom losses are made of."""
        return self.forward_backward(data, "cross_entropy", None, forward_only=forward_only)

    def optim_step(self, params: OptimParams) -> TrainingRequest:
        """Return the request of a step.

        Raises:
            InvalidInputError: They are no parameters, or those of another optimizer.
        """
        if self.check_inputs and self._optimizer is not None:
            check_params_fit(params, self._optimizer)
        adam, other = params_to_send(params)
        if other is not None:
            self._features.require(Feature.OTHER_OPTIMIZERS)
        elif adam is not None and (adam.weight_decay or adam.grad_clip_norm):
            self._features.require(Feature.ADAM_EXTRAS)
        body = partial(
            OptimStepRequest, model_id=self.model_id, adam_params=adam, optimizer_params=other
        )
        return json_request(endpoints.OPTIM_STEP, body, OptimStepResponse)

    # Weights

    def load(
        self, path: str, *, optimizer: bool, weights_access_token: str | None
    ) -> TrainingRequest:
        """Return the request that loads a checkpoint.

        Raises:
            InvalidInputError: Not the path of a checkpoint for training.
        """
        if self.check_inputs:
            parse_path(path, expect="training")
        if weights_access_token is not None:
            given.secret_text(weights_access_token, "weights_access_token")
            self._features.require(Feature.ACCESS_TOKENS)
        if not optimizer:
            self._features.require(Feature.WEIGHTS_ONLY_LOADING)
        body = partial(
            LoadWeightsRequest,
            path=path,
            model_id=self.model_id,
            weights_access_token=weights_access_token,
        )
        request = json_request(
            endpoints.LOAD_WEIGHTS, partial(body, optimizer=optimizer), LoadWeightsResponse
        )
        if not optimizer:
            return request
        older = json_request(endpoints.LOAD_WEIGHTS, body, LoadWeightsResponse)
        return msgspec.structs.replace(request, older=older)

    def save_state(
        self,
        name: str,
        ttl_seconds: int | None,
        user_metadata: Metadata,
        *,
        overwrite: bool,
        policy: RetryPolicy | None,
    ) -> SaveOperation[SaveWeightsResponse]:
        """Return the save of weights and optimizer.

        Raises:
            InvalidInputError: Name, time to live or metadata cannot be right.
        """
        if self.check_inputs:
            check_save(name, ttl_seconds, user_metadata)
        given.flag(overwrite, "overwrite")
        self._require_for_save(ttl_seconds, user_metadata)
        if overwrite:
            self._features.require(Feature.OVERWRITING)
        body = partial(
            SaveWeightsRequest,
            model_id=self.model_id,
            path=name,
            ttl_seconds=ttl_seconds,
            overwrite=overwrite,
            user_metadata=dict(user_metadata) if user_metadata else None,
        )
        return SaveOperation(
            "save_state",
            json_request(endpoints.SAVE_WEIGHTS, body, SaveWeightsResponse),
            CheckpointPath(self.model_id, "weights", name),
            SaveWeightsResponse,
            conflict_hint="pass overwrite=True, or choose another name",
            policy=policy,
        )

    def save_for_sampler(
        self,
        name: str,
        ttl_seconds: int | None,
        user_metadata: Metadata,
        *,
        policy: RetryPolicy | None,
    ) -> SaveOperation[SaveWeightsForSamplerResponse]:
        """Return the save of the weights alone.

        Raises:
            InvalidInputError: As in `save_state`.
        """
        if self.check_inputs:
            check_save(name, ttl_seconds, user_metadata)
        self._require_for_save(ttl_seconds, user_metadata)
        body = partial(
            SaveWeightsForSamplerRequest,
            model_id=self.model_id,
            path=name,
            ttl_seconds=ttl_seconds,
            user_metadata=dict(user_metadata) if user_metadata else None,
        )
        return SaveOperation(
            "save_weights_for_sampler",
            json_request(endpoints.SAVE_WEIGHTS_FOR_SAMPLER, body, SaveWeightsForSamplerResponse),
            CheckpointPath(self.model_id, "sampler_weights", name),
            SaveWeightsForSamplerResponse,
            conflict_hint="choose another name",
            policy=policy,
        )

    def save_external(
        self,
        name: str,
        ttl_seconds: int | None,
        recipients: Sequence[str] | None,
        *,
        policy: RetryPolicy | None,
    ) -> SaveOperation[SaveWeightsExternalResponse]:
        """Return the save in a form for other programs.

        Raises:
            InvalidInputError: As in `save_state`; or the recipients are none.
        """
        if self.check_inputs:
            check_save(name, ttl_seconds, None)
            check_recipients(recipients)
        self._features.require(Feature.EXTERNAL_WEIGHTS)
        self._require_for_save(ttl_seconds, None)
        if recipients:
            self._features.require(Feature.ENCRYPTION)
        body = partial(
            SaveWeightsExternalRequest,
            model_id=self.model_id,
            path=name,
            ttl_seconds=ttl_seconds,
            age_encryption_recipients=list(recipients) if recipients else None,
        )
        return SaveOperation(
            "save_weights_external",
            json_request(endpoints.SAVE_WEIGHTS_EXTERNAL, body, SaveWeightsExternalResponse),
            CheckpointPath(self.model_id, "external_weights", name),
            SaveWeightsExternalResponse,
            conflict_hint="choose another name",
            policy=policy,
        )

    def _require_for_save(self, ttl_seconds: int | None, user_metadata: Metadata) -> None:
        if ttl_seconds is not None:
            self._features.require(Feature.CHECKPOINT_TTL)
        if user_metadata:
            self._features.require(Feature.CHECKPOINT_METADATA)

    def snapshot(self, kind: SamplingClientKind, next_number: Callable[[], int]) -> TrainingRequest:
        """Return the request of a sampler of the weights as they are.

        Raises:
            InvalidInputError: There is no such kind.
        """
        if kind not in ("snapshot", "inflight"):
            raise InvalidInputError(
                f"kind: must be snapshot or inflight, got {kind!r}", field="kind"
            )

        if kind == "inflight":
            self._features.require(Feature.INFLIGHT_SAMPLERS)

        def body(seq_id: int) -> SaveWeightsForSamplerRequest:
            return SaveWeightsForSamplerRequest(
                model_id=self.model_id,
                sampling_session_seq_id=next_number(),
                seq_id=seq_id,
                kind=kind,
            )

        return json_request(endpoints.SAVE_WEIGHTS_FOR_SAMPLER, body, SaveWeightsForSamplerResult)


def json_request(
    endpoint: Endpoint, body: Callable[..., msgspec.Struct], answer: type[Any]
) -> TrainingRequest:
    """Return the request of `body(seq_id=...)`, whose result is an `answer`."""

    def build(seq_id: int) -> Sequence[Buffer]:
        return (wire_json.encode(body(seq_id=seq_id)),)

    def decode(result: PromiseResult) -> Any:
        return decode_json(result.body, answer, endpoint.path)

    return TrainingRequest(endpoint=endpoint, build=build, decode=decode)


def decode_forward_backward_output(result: PromiseResult) -> ForwardBackwardOutput:
    """Decode a result in either form.

    Raises:
        ResponseError: It is in neither.
    """
    try:
        if result.is_protobuf:
            return wire_training.decode_forward_backward_output(result.body)
        return wire_json.forward_backward_output_from_json(result.body)
    except DecodeError as error:
        raise ResponseError(
            f"the result of forward_backward was not understood: {error}", endpoint=RETRIEVE_PATH
        ) from error
