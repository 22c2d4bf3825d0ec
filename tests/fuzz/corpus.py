"""Real messages of every kind: what the decoders read when nothing is wrong."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from support.wire_values import finite_datums, outputs, requests, samples

from tinker_async.data.datum import Datum
from tinker_async.data.model_input import ModelInput
from tinker_async.data.tensors import TensorData
from tinker_async.wire.json import encode, sample_response_to_json
from tinker_async.wire.sampling import encode_sample_response
from tinker_async.wire.training import encode_forward_backward, encode_forward_backward_output

T = TypeVar("T")

_EACH = 40


def drawn(strategy: st.SearchStrategy[T], count: int = _EACH) -> list[T]:
    """Return values of a strategy, the same in every run."""
    found: list[T] = []

    @seed(1)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(value=strategy)
    def collect(value: T) -> None:
        found.append(value)

    collect()
    return found


def _joined(parts: Any) -> bytes:
    return b"".join(parts)


SPARSE = TensorData.from_value("target_tokens", np.eye(12, dtype=np.int64))
DATUM = Datum(
    ModelInput.from_ints(list(range(12))), {"target_tokens": SPARSE, "weights": [1.0] * 12}
)


@functools.cache
def binary_requests() -> list[bytes]:
    """`forward_backward`, protobuf."""
    real = {"model_id": "s:train:0", "seq_id": 3, "data": [DATUM] * 3, "loss_fn": "ppo"}
    real |= {"loss_fn_config": {"eps": 0.2, "mode": "x"}, "forward_only": False}
    return [_joined(encode_forward_backward(**r)) for r in [real, *drawn(requests)]]


@functools.cache
def binary_outputs() -> list[bytes]:
    """Results of `forward_backward`, protobuf."""
    return [_joined(encode_forward_backward_output(output)) for output in drawn(outputs())]


@functools.cache
def binary_samples() -> list[bytes]:
    """Results of `asample`, protobuf."""
    return [_joined(encode_sample_response(response)) for response in drawn(samples)]


@functools.cache
def json_outputs() -> list[bytes]:
    """Results of `forward_backward`, JSON."""
    return [encode(output) for output in drawn(outputs())]


@functools.cache
def json_samples() -> list[bytes]:
    """Results of `asample`, JSON."""
    return [sample_response_to_json(response) for response in drawn(samples)]


@functools.cache
def json_datums() -> list[bytes]:
    """Training data, JSON."""
    return [encode(datum) for datum in [DATUM, *drawn(finite_datums)]]


PROMISE_ANSWERS = (
    b'{"type":"try_again","request_id":"r1","queue_state":"active","queue_state_reason":null}',
    b'{"type":"try_again","queue_state":"paused_capacity","queue_state_reason":"no room"}',
    b'{"error":"it failed","category":"user"}',
    b'{"error":{"detail":["a",1,null]},"category":7}',
    b'{"status":"complete_metadata","response_payload_size":123456}',
    b'{"metrics":{"lr":0.1},"type":"optim_step"}',
    b'{"path":"tinker://run/weights/a","type":"save_weights"}',
)

_CHECKPOINT = (
    b'{"checkpoint_id":"weights/a","checkpoint_type":"training","time":"2026-01-02T03:04:05Z",'
    b'"tinker_path":"tinker://run/weights/a","size_bytes":5,"public":false,'
    b'"expires_at":"2026-02-02T03:04:05.5+02:00","user_metadata":{"a":"b"}}'
)
_SAMPLE = (
    b'{"type":"sample","prompt":{"chunks":[{"type":"encoded_text","tokens":[1,2,3]},'
    b'{"type":"image","data":"YWI=","format":"png"},{"type":"dmel","dmel":"AAEF"},'
    b'{"type":"image_asset_pointer","location":"l","format":"jpeg","expected_tokens":3}]},'
    b'"sampling_params":{"max_tokens":4,"seed":1,"stop":["a"],"temperature":0.5,"top_k":3,'
    b'"top_p":0.9},"num_samples":2,"sampling_session_id":"s:sample:0","seq_id":1,'
    b'"prompt_logprobs":true,"topk_prompt_logprobs":2,"prompt_alt_tokens_k":1,'
    b'"target_prompt_logprobs":{"data":[1,-1],"dtype":"int64","shape":[2,1]}}'
)
_RUN = (
    b'{"training_run_id":"run","base_model":"m","model_owner":"o","is_lora":true,'
    b'"last_request_time":"2026-01-02T03:04:05Z","corrupted":false,"lora_rank":8,'
    b'"last_checkpoint":' + _CHECKPOINT + b',"user_metadata":{"k":"v"}}'
)
_FORWARD = b'{"data":[' + encode(DATUM) + b'],"loss_fn":"ppo","loss_fn_config":{"a":1.5,"b":"x"}}'

MESSAGES: dict[str, bytes] = {
    "ClientConfigRequest": b'{"sdk_version":"0.38.0"}',
    "ClientConfigResponse": b'{"pjwt_auth_enabled":false,"fwdbwd_max_chunk_len":8,'
    b'"sample_max_concurrent_requests":5,"parallel_fwdbwd_chunks":true}',
    "DynamicConfigResponse": b'{"refresh_interval_sec":300,"sample_cancel_enabled":true}',
    "CreateSessionRequest": b'{"type":"create_session","tags":["a"],"user_metadata":{"a":[1]},'
    b'"sdk_version":"0.38.0","project_id":"p"}',
    "CreateSessionResponse": b'{"type":"create_session","session_id":"s","info_message":"hi"}',
    "SessionHeartbeatRequest": b'{"type":"session_heartbeat","session_id":"s"}',
    "FinishSessionRequest": b'{"reason":{"type":"success"},"detail":null}',
    "UntypedAPIFuture": b'{"request_id":"r","model_id":"m","sample_sequence_ids":["a","b"]}',
    "RetrieveFutureRequest": b'{"request_id":"r","allow_metadata_only":true}',
    "CreateModelRequest": b'{"type":"create_model","session_id":"s","model_seq_id":0,'
    b'"base_model":"tiny","lora_config":{"rank":4,"seed":1},"user_metadata":{"a":1}}',
    "CreateModelResponse": b'{"type":"create_model","model_id":"s:train:0"}',
    "ModelRequest": b'{"model_id":"m","type":"get_info"}',
    "ForwardBackwardRequest": b'{"model_id":"m","seq_id":1,"forward_backward_input":'
    + _FORWARD
    + b"}",
    "ForwardRequest": b'{"model_id":"m","seq_id":1,"forward_input":' + _FORWARD + b"}",
    "OptimStepRequest": b'{"type":"optim_step","model_id":"m","seq_id":2,"adam_params":'
    b'{"learning_rate":0.1,"beta1":0.9,"beta2":0.95,"eps":1e-12,"weight_decay":0.0}}',
    "SaveWeightsRequest": b'{"type":"save_weights","model_id":"m","path":"a","seq_id":3,'
    b'"ttl_seconds":60,"overwrite":true,"user_metadata":{"a":"b"}}',
    "LoadWeightsRequest": b'{"type":"load_weights","path":"tinker://run/weights/a",'
    b'"optimizer":true,"session_id":"s","model_seq_id":1}',
    "SaveWeightsForSamplerRequest": b'{"type":"save_weights_for_sampler","model_id":"m",'
    b'"sampling_session_seq_id":1,"seq_id":4,"ttl_seconds":5}',
    "SaveWeightsExternalRequest": b'{"type":"save_weights_external","model_id":"m","path":"a",'
    b'"seq_id":4,"ttl_seconds":5,"age_encryption_recipients":["age1q"]}',
    "CreateCustomLossRequest": b'{"type":"create_custom_loss","session_id":"s",'
    b'"custom_loss_seq_id":0,"name":"f","inputs":[{"name":"logprobs","rank":1}],"graph":'
    b'{"format":1,"nodes":[{"op":"placeholder","name":"logprobs","target":"logprobs"},'
    b'{"op":"call_method","name":"sum_1","target":"sum","args":[{"ref":"logprobs"}]},'
    b'{"op":"output","name":"output","target":"output","args":'
    b'[{"tuple":[{"ref":"sum_1"},{"dict":{}}]}],"kwargs":{}}]}}',
    "CreateCustomLossResponse": b'{"type":"create_custom_loss","loss_id":"s:loss:0"}',
    "SaveWeightsForSamplerResult": b'{"path":"tinker://run/sampler_weights/a"}',
    "CreateSamplingSessionRequest": b'{"type":"create_sampling_session","session_id":"s",'
    b'"sampling_session_seq_id":0,"base_model":"tiny"}',
    "CreateSamplingSessionResponse": b'{"type":"create_sampling_session",'
    b'"sampling_session_id":"s:sample:0"}',
    "JoinSamplingSessionRequest": b'{"type":"join_sampling_session","sampling_session_id":"s"}',
    "JoinSamplingSessionResponse": b'{"client_counter":3}',
    "SampleRequest": _SAMPLE,
    "TryAgainResponse": b'{"type":"try_again","request_id":"r","queue_state":"active"}',
    "FailedResponse": b'{"error":"no","category":"user"}',
    "WeightsInfoRequest": b'{"tinker_path":"tinker://run/weights/a"}',
    "AuthTokenResponse": b'{"jwt":"eyJhbGciOiJub25lIn0.eyJleHAiOjQxMDI0NDQ4MDB9.c2ln"}',
    "TelemetrySendRequest": b'{"events":[{"event":"SESSION_START","severity":"INFO"}],'
    b'"platform":"Linux","sdk_version":"0.38.0","session_id":"s","process_uuid":"u"}',
    "RetrieveFuturesRequest": b'{"target":{"type":"sampling_session","sampling_session_id":"s",'
    b'"cloned_sampler_id":2},"prev_cursor":5,"retrieved_request_ids":["r1"],"timeout":30.0}',
    "RetrieveFuturesResponse": b'{"completions":[{"request_id":"r1","state":"finished",'
    b'"response_payload_uncompressed_size":99},{"request_id":"r2","state":"failed"}],"cursor":7}',
    "CheckpointTtlRequest": b'{"ttl_seconds":3600}',
    "SessionProjectRequest": b'{"project_id":"p"}',
    "CopyWeightsRequest": b'{"source_path":"tinker://run/weights/a","destination_project_id":"p",'
    b'"ttl_seconds":60,"weights_access_token":"t"}',
    "CopyWeightsResponse": b'{"tinker_path":"tinker://run2/weights/a"}',
    "TraceExportResponse": b'{"status":"ready","url":"http://127.0.0.1:9/t","error":null}',
    "ApiKeyResponse": b'{"key_id":7,"name":"n","note":"","details":{"org_details":{"name":"o"},'
    b'"user_details":{"email":"a@b"}}}',
}
"""A body for each struct of `wire.messages` that is not only a part, by its name."""

RESULTS: dict[str, bytes] = {
    "GetServerCapabilitiesResponse": b'{"supported_models":[{"model_name":"m",'
    b'"max_context_length":32768,"trainable":true}]}',
    "GetInfoResponse": b'{"model_id":"m","model_data":{"arch":"a","model_name":"n"},'
    b'"is_lora":true,"lora_rank":4,"optimizer_config":{"type":"adamw"}}',
    "OptimStepResponse": b'{"metrics":{"lr":0.5}}',
    "SaveWeightsResponse": b'{"path":"tinker://run/weights/a"}',
    "LoadWeightsResponse": b'{"path":"tinker://run/weights/a","model_id":"m"}',
    "SaveWeightsForSamplerResponse": b'{"path":"tinker://run/sampler_weights/a"}',
    "SaveWeightsExternalResponse": b'{"path":"tinker://run/external_weights/a","size_bytes":5}',
    "UnloadModelResponse": b'{"model_id":"m","type":"unload_model"}',
}
"""The same for the results of `data.results` that the client reads."""

_FAILED = (
    b'{"type":"failed","category":"user","message":"no","reason":'
    b'{"type":"request","request_id":"r","request_type":"Sample"}}'
)
_SUMMARY = (
    b'{"session_id":"s","created_at":"2026-01-02T03:04:05Z","owner":"u","project_id":"p",'
    b'"status":' + _FAILED + b',"checkpoints_count":2,"display_name":"d","user_metadata":{"a":"b"},'
    b'"checkpoint_storage_bytes":5}'
)
_BUCKET = b'"bucket_start":"2026-01-02T03:00:00Z","bucket_end":"2026-01-02T04:00:00Z"'

RECORDS: dict[str, bytes] = {
    "TrainingRun": _RUN,
    "Checkpoint": _CHECKPOINT,
    "CheckpointsListResponse": b'{"checkpoints":['
    + _CHECKPOINT
    + b'],"cursor":{"offset":0,"limit":1,"total_count":9}}',
    "TrainingRunsResponse": b'{"training_runs":['
    + _RUN
    + b'],"cursor":{"offset":0,"limit":1,"total_count":9}}',
    "WeightsInfoResponse": b'{"base_model":"m","is_lora":true,"lora_rank":4}',
    "GetSamplerResponse": b'{"sampler_id":"s","base_model":"m","model_path":null}',
    "ExternalWeightsUrlsResponse": b'{"urls":{"a.safetensors":"http://127.0.0.1:9/a"},'
    b'"expires":"2026-02-02T03:04:05Z"}',
    "ListSessionsResponse": b'{"sessions":["s1","s2"]}',
    "GetSessionResponse": b'{"training_run_ids":["s:train:0"],"sampler_ids":["s:sample:0"],'
    b'"user_metadata":{"a":"b"},"display_name":"d"}',
    "SessionSearchRequest": b'{"session_id":"s","project_ids":["p"],"user_metadata":{"a":"b"},'
    b'"display_name":"d","owner":{"type":"user","owner_urns":["u"]},"statuses":[{"type":"active"},'
    b'{"type":"client_finished","reasons":["success"]}],"limit":5,"cursor":'
    b'{"last_created_at":"2026-01-02T03:04:05Z","last_session_id":"s"}}',
    "SessionSearchResponse": b'{"sessions":['
    + _SUMMARY
    + b'],"next_cursor":{"last_created_at":"2026-01-02T03:04:05Z","last_session_id":"s"}}',
    "BillingUsageResponse": b'{"data":[{'
    + _BUCKET
    + b',"event_info":{"type":"training","token_count":5},"base_model":"m","user_id":"u",'
    b'"estimated_cost_usd":0.5},{' + _BUCKET + b',"event_info":{"type":"storage",'
    b'"gigabyte_hours":1.5,"free":true}}],"sessions":{"s":{"user_metadata":{"a":"b"}}},'
    b'"cost_data_through":"2026-01-02T03:04:05Z"}',
    "CurrentCheckpointStorageUsageResponse": b'{"data":[{"checkpoint_count":1,"size_bytes":5,'
    b'"size_gigabytes":0.1,"project_id":"p","estimated_monthly_cost_usd":0.5}],'
    b'"effective_rate_usd_per_gigabyte_month":0.1}',
    "AuditLogResponse": b'{"entries":[{"timestamp":"2026-01-02T03:04:05Z","event":"delete",'
    b'"event_details":{"a":[1,null]},"model_id":"m","tinker_path":"tinker://run/weights/a"}]}',
    "HealthResponse": b'{"status":"ok"}',
}
"""The same for the records of runs, checkpoints, sessions and the account."""
