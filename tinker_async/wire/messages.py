"""JSON bodies of the protocol, for both sides: what the client writes, the server reads.

Field names are the wire's. Requests leave out optional fields that have their
default, since older servers refuse fields they do not know. Responses ignore unknown fields.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec

from tinker_async.data.custom_loss import CustomLossGraph, CustomLossInput
from tinker_async.data.datum import Datum
from tinker_async.data.model_input import ModelInput
from tinker_async.data.params import AdamParams, LoraConfig, SamplingParams
from tinker_async.data.tensors import TensorData

_Limit: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
"""Larger ones are no limits and no times, and Python's numbers have no end."""


class ClientConfigRequest(msgspec.Struct, frozen=True):
    sdk_version: str


class ClientConfigResponse(msgspec.Struct, frozen=True):
    """Limits and switches that the server sets; every field is optional."""

    pjwt_auth_enabled: bool = False
    credential_default_source: str = "api_key"
    sample_dispatch_bytes_semaphore_size: _Limit = 10_485_760
    inflight_response_bytes_semaphore_size: _Limit = 52_428_800
    parallel_fwdbwd_chunks: bool = False
    """Absent means serial: only a server that says so reorders by `seq_id`."""
    proto_compress_fwdbwd: bool = False
    fwdbwd_max_chunk_len: _Limit = 1024
    fwdbwd_max_chunk_bytes_count: _Limit = 5_000_000
    fwdbwd_dispatch_bytes_semaphore_size: _Limit = 50_000_000
    billing_exception_max_pause_duration_sec: _Limit = 3600
    sample_no_retries: bool = False
    sample_enable_stuck_detection: bool = True
    sample_max_concurrent_requests: _Limit = 2000
    use_pyqwest_transport: bool = True
    sample_use_retrieve_futures: bool = False
    custom_loss_server_side: bool = False
    sample_join_sampling_session: bool = False


class AuthTokenResponse(msgspec.Struct, frozen=True):
    jwt: str


class TelemetrySendRequest(msgspec.Struct, frozen=True):
    events: list[msgspec.Raw]
    platform: str
    sdk_version: str
    session_id: str
    process_uuid: str
    """One for all sessions of an operating system's process."""


class DynamicConfigResponse(msgspec.Struct, frozen=True):
    refresh_interval_sec: _Limit = 300
    sample_cancel_enabled: bool = False
    sample_cancel_max_batch_size: _Limit = 64


class CreateSessionRequest(msgspec.Struct, frozen=True, tag="create_session"):
    tags: list[str]
    user_metadata: dict[str, Any] | None
    sdk_version: str
    project_id: str | msgspec.UnsetType | None = msgspec.UNSET
    display_name: str | msgspec.UnsetType | None = msgspec.UNSET


class CreateSessionResponse(msgspec.Struct, frozen=True, tag="create_session"):
    session_id: str
    info_message: str | None = None
    warning_message: str | None = None
    error_message: str | None = None


class SessionHeartbeatRequest(msgspec.Struct, frozen=True, tag="session_heartbeat"):
    session_id: str


class FinishReason(msgspec.Struct, frozen=True):
    type: str
    """`success`, `errored` or `interrupted`"""


class FinishSessionRequest(msgspec.Struct, frozen=True):
    reason: FinishReason
    detail: str | None = None


class UntypedAPIFuture(msgspec.Struct, frozen=True, gc=False):
    """A promise: what most operations answer at once."""

    request_id: str
    model_id: str | None = None
    sample_sequence_ids: list[str] | None = None


class RetrieveFutureRequest(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    request_id: str
    allow_metadata_only: bool = False


class FuturesTarget(msgspec.Struct, frozen=True, tag="sampling_session"):
    """Whose promises one poll watches."""

    sampling_session_id: str
    cloned_sampler_id: int = 0
    """Which client of the sampler: its `seq_id // 10**9`."""


class RetrieveFuturesRequest(msgspec.Struct, frozen=True):
    """The session poller's: what is done after a cursor, of all samples of a sampler."""

    target: FuturesTarget
    prev_cursor: int
    retrieved_request_ids: list[str]
    """Whose results are fetched."""
    timeout: float | msgspec.UnsetType | None = msgspec.UNSET
    """Seconds to hold it; absent leaves it to the server, 0 has it answered at once."""


class FutureCompletion(msgspec.Struct, frozen=True, gc=False):
    request_id: str
    state: str = "finished"
    """`finished` or `failed`"""
    response_payload_uncompressed_size: int | None = None


class RetrieveFuturesResponse(msgspec.Struct, frozen=True):
    completions: list[FutureCompletion]
    cursor: int


class CreateModelRequest(msgspec.Struct, frozen=True, omit_defaults=True, tag="create_model"):
    session_id: str
    model_seq_id: int
    base_model: str
    lora_config: LoraConfig | None = None
    user_metadata: dict[str, Any] | None = None
    optimizer_config: dict[str, Any] | None = None


class CreateModelResponse(msgspec.Struct, frozen=True, tag="create_model"):
    model_id: str | None = None
    """Some servers say it in the promise alone."""


class ModelRequest(msgspec.Struct, frozen=True):
    """Body of `get_info` (and of `unload_model`)."""

    model_id: str
    type: str = "get_info"


class ForwardBackwardInput(msgspec.Struct, frozen=True, omit_defaults=True):
    data: list[Datum]
    loss_fn: str
    loss_fn_config: dict[str, float | str] | None = None


class ForwardBackwardRequest(msgspec.Struct, frozen=True):
    """JSON form of `forward_backward`, for servers of the 0.4 era."""

    model_id: str
    seq_id: int
    forward_backward_input: ForwardBackwardInput


class ForwardRequest(msgspec.Struct, frozen=True):
    """JSON form of `forward`, for servers of the 0.4 era."""

    model_id: str
    seq_id: int
    forward_input: ForwardBackwardInput


class OptimStepRequest(msgspec.Struct, frozen=True, omit_defaults=True, tag="optim_step"):
    """With `adam_params`, or with `optimizer_params` (and their `type`) for any other family."""

    model_id: str
    seq_id: int
    adam_params: AdamParams | None = None
    optimizer_params: dict[str, Any] | None = None


class CreateCustomLossRequest(msgspec.Struct, frozen=True, tag="create_custom_loss"):
    session_id: str
    custom_loss_seq_id: int
    name: str
    inputs: list[CustomLossInput]
    graph: CustomLossGraph


class CreateCustomLossResponse(msgspec.Struct, frozen=True, tag="create_custom_loss"):
    loss_id: str


class SaveWeightsRequest(msgspec.Struct, frozen=True, omit_defaults=True, tag="save_weights"):
    model_id: str
    path: str | None = None
    """The checkpoint's name."""
    seq_id: int | None = None
    ttl_seconds: int | None = None
    overwrite: bool = False
    user_metadata: dict[str, str] | None = None


class LoadWeightsRequest(msgspec.Struct, frozen=True, omit_defaults=True, tag="load_weights"):
    path: str
    optimizer: bool | None = None
    model_id: str | None = None
    seq_id: int | None = None
    session_id: str | None = None
    model_seq_id: int | None = None
    base_model: str | None = None
    user_metadata: dict[str, Any] | None = None
    optimizer_config: dict[str, Any] | None = None
    weights_access_token: str | None = None


class SaveWeightsForSamplerRequest(
    msgspec.Struct, frozen=True, omit_defaults=True, tag="save_weights_for_sampler"
):
    model_id: str
    path: str | None = None
    sampling_session_seq_id: int | None = None
    seq_id: int | None = None
    kind: str = "snapshot"
    ttl_seconds: int | None = None
    user_metadata: dict[str, str] | None = None


class SaveWeightsExternalRequest(
    msgspec.Struct, frozen=True, omit_defaults=True, tag="save_weights_external"
):
    model_id: str
    path: str
    """The checkpoint's name."""
    seq_id: int | None = None
    ttl_seconds: int | None = None
    age_encryption_recipients: list[str] | None = None


class SaveWeightsForSamplerResult(msgspec.Struct, frozen=True):
    """A named save has `path`, an ephemeral one `sampling_session_id`; never both."""

    path: str | None = None
    sampling_session_id: str | None = None
    type: str = "save_weights_for_sampler"


class CreateSamplingSessionRequest(
    msgspec.Struct, frozen=True, omit_defaults=True, tag="create_sampling_session"
):
    session_id: str
    sampling_session_seq_id: int
    base_model: str | None = None
    model_path: str | None = None


class CreateSamplingSessionResponse(msgspec.Struct, frozen=True, tag="create_sampling_session"):
    sampling_session_id: str


class JoinSamplingSessionRequest(msgspec.Struct, frozen=True, tag="join_sampling_session"):
    sampling_session_id: str


class JoinSamplingSessionResponse(msgspec.Struct, frozen=True):
    client_counter: int
    """Unique among the clients of the sampler; 0 is the one that made it."""


class SampleRequest(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag="sample"):
    prompt: ModelInput
    sampling_params: SamplingParams
    num_samples: int = msgspec.field(default=1)
    sampling_session_id: str | None = None
    seq_id: int | None = None
    base_model: str | None = None
    model_path: str | None = None
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: TensorData | None = None
    prompt_alt_tokens_k: int = 0
    prompt_logprobs_last_n: int | None = None
    record_stability_info: bool | None = None


class TryAgainResponse(msgspec.Struct, frozen=True, tag="try_again"):
    request_id: str
    queue_state: str = "active"
    queue_state_reason: str | None = None


class FailedResponse(msgspec.Struct, frozen=True):
    """A promise that failed: HTTP 200 with `error`."""

    error: str
    category: str = "unknown"


class WeightsInfoRequest(msgspec.Struct, frozen=True):
    tinker_path: str


class CheckpointTtlRequest(msgspec.Struct, frozen=True):
    ttl_seconds: int | None
    """None: it does not expire any more."""


class SessionProjectRequest(msgspec.Struct, frozen=True):
    project_id: str


class CopyWeightsRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """Either with a project, or with a session and the number of a model in it."""

    source_path: str
    destination_project_id: str | None = None
    session_id: str | None = None
    model_seq_id: int | None = None
    ttl_seconds: int | None = None
    weights_access_token: str | None = None


class CopyWeightsResponse(msgspec.Struct, frozen=True):
    tinker_path: str


class TraceExportResponse(msgspec.Struct, frozen=True):
    status: str
    """`pending`, `ready` or `failed`"""
    url: str | None = None
    error: str | None = None


class NamedResponse(msgspec.Struct, frozen=True):
    name: str | None = None


class UserDetailsResponse(msgspec.Struct, frozen=True):
    email: str | None = None


class ApiKeyDetailsResponse(msgspec.Struct, frozen=True):
    org_details: NamedResponse | None = None
    user_details: UserDetailsResponse | None = None


class ApiKeyResponse(msgspec.Struct, frozen=True):
    """What the server says of the API key that is sent."""

    key_id: int | str | None = None
    name: str | None = None
    note: str | None = None
    details: ApiKeyDetailsResponse | None = None
