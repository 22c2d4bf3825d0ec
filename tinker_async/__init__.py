"""Structured-concurrency SDK for the Tinker fine-tuning API.

Everything public is imported from here; each name loads its module on first use, so
that `import tinker_async` is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinker_async.api.retry import RetryPolicy
    from tinker_async.background.health import SessionHealth, SessionStatistics
    from tinker_async.data.datum import Datum
    from tinker_async.data.handles import SamplerHandle
    from tinker_async.data.model_input import EncodedTextChunk, ModelInput
    from tinker_async.data.params import AdamParams, LoraConfig, LossFnType, SamplingParams
    from tinker_async.data.paths import CheckpointPath, parse_path
    from tinker_async.data.results import (
        Checkpoint,
        ForwardBackwardOutput,
        GetInfoResponse,
        GetServerCapabilitiesResponse,
        LoadWeightsResponse,
        OptimStepResponse,
        SampledSequence,
        SampleResponse,
        SaveWeightsForSamplerResponse,
        SaveWeightsResponse,
        SupportedModel,
        TopkLogprobs,
        TrainingRun,
        WeightsInfoResponse,
    )
    from tinker_async.data.tensors import TensorData
    from tinker_async.errors import (
        APIStatusError,
        AuthenticationError,
        BadRequestError,
        BillingError,
        ConfigError,
        ConflictError,
        ConnectError,
        EngineStartError,
        GoneError,
        InternalServerError,
        InvalidInputError,
        MissingExtraError,
        ModelPoisonedError,
        NotFoundError,
        OperationWithdrawnError,
        OverloadedError,
        PermissionDeniedError,
        PromiseLostError,
        ProtocolError,
        RateLimitError,
        RequestFailedError,
        RequestTimeoutError,
        ResponseError,
        SessionClosedError,
        SessionLostError,
        TinkerError,
        TransportError,
        UnprocessableEntityError,
    )
    from tinker_async.events import (
        AttemptFailed,
        BillingPaused,
        Event,
        EventStream,
        HeartbeatMissed,
        ModelPoisoned,
        QueueStateChanged,
        SubmissionsPaused,
    )
    from tinker_async.futures import APIFuture, QueueState
    from tinker_async.many_samples import SampleOutcome, SampleOutcomes, SampleTask
    from tinker_async.rest import RestClient
    from tinker_async.sampling import SamplingClient
    from tinker_async.session import Session
    from tinker_async.training import TrainingClient, TrainStepResponse

_HOMES = {
    "api.retry": ("RetryPolicy",),
    "background.health": ("SessionHealth", "SessionStatistics"),
    "data.datum": ("Datum",),
    "data.handles": ("SamplerHandle",),
    "data.model_input": ("EncodedTextChunk", "ModelInput"),
    "data.params": ("AdamParams", "LoraConfig", "LossFnType", "SamplingParams"),
    "data.paths": ("CheckpointPath", "parse_path"),
    "data.results": (
        "Checkpoint",
        "ForwardBackwardOutput",
        "GetInfoResponse",
        "GetServerCapabilitiesResponse",
        "LoadWeightsResponse",
        "OptimStepResponse",
        "SampleResponse",
        "SampledSequence",
        "SaveWeightsForSamplerResponse",
        "SaveWeightsResponse",
        "SupportedModel",
        "TopkLogprobs",
        "TrainingRun",
        "WeightsInfoResponse",
    ),
    "data.tensors": ("TensorData",),
    "errors": (
        "APIStatusError",
        "AuthenticationError",
        "BadRequestError",
        "BillingError",
        "ConfigError",
        "ConflictError",
        "ConnectError",
        "EngineStartError",
        "GoneError",
        "InternalServerError",
        "InvalidInputError",
        "MissingExtraError",
        "ModelPoisonedError",
        "NotFoundError",
        "OperationWithdrawnError",
        "OverloadedError",
        "PermissionDeniedError",
        "PromiseLostError",
        "ProtocolError",
        "RateLimitError",
        "RequestFailedError",
        "RequestTimeoutError",
        "ResponseError",
        "SessionClosedError",
        "SessionLostError",
        "TinkerError",
        "TransportError",
        "UnprocessableEntityError",
    ),
    "events": (
        "AttemptFailed",
        "BillingPaused",
        "Event",
        "EventStream",
        "HeartbeatMissed",
        "ModelPoisoned",
        "QueueStateChanged",
        "SubmissionsPaused",
    ),
    "futures": ("APIFuture", "QueueState"),
    "many_samples": ("SampleOutcome", "SampleOutcomes", "SampleTask"),
    "rest": ("RestClient",),
    "sampling": ("SamplingClient",),
    "session": ("Session",),
    "training": ("TrainStepResponse", "TrainingClient"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = (
    "APIFuture",
    "APIStatusError",
    "AdamParams",
    "AttemptFailed",
    "AuthenticationError",
    "BadRequestError",
    "BillingError",
    "BillingPaused",
    "Checkpoint",
    "CheckpointPath",
    "ConfigError",
    "ConflictError",
    "ConnectError",
    "Datum",
    "EncodedTextChunk",
    "EngineStartError",
    "Event",
    "EventStream",
    "ForwardBackwardOutput",
    "GetInfoResponse",
    "GetServerCapabilitiesResponse",
    "GoneError",
    "HeartbeatMissed",
    "InternalServerError",
    "InvalidInputError",
    "LoadWeightsResponse",
    "LoraConfig",
    "LossFnType",
    "MissingExtraError",
    "ModelInput",
    "ModelPoisoned",
    "ModelPoisonedError",
    "NotFoundError",
    "OperationWithdrawnError",
    "OptimStepResponse",
    "OverloadedError",
    "PermissionDeniedError",
    "PromiseLostError",
    "ProtocolError",
    "QueueState",
    "QueueStateChanged",
    "RateLimitError",
    "RequestFailedError",
    "RequestTimeoutError",
    "ResponseError",
    "RestClient",
    "RetryPolicy",
    "SampleOutcome",
    "SampleOutcomes",
    "SampleResponse",
    "SampleTask",
    "SampledSequence",
    "SamplerHandle",
    "SamplingClient",
    "SamplingParams",
    "SaveWeightsForSamplerResponse",
    "SaveWeightsResponse",
    "Session",
    "SessionClosedError",
    "SessionHealth",
    "SessionLostError",
    "SessionStatistics",
    "SubmissionsPaused",
    "SupportedModel",
    "TensorData",
    "TinkerError",
    "TopkLogprobs",
    "TrainStepResponse",
    "TrainingClient",
    "TrainingRun",
    "TransportError",
    "UnprocessableEntityError",
    "WeightsInfoResponse",
    "__version__",
    "parse_path",
)


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
