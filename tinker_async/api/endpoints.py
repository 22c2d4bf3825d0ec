"""The endpoints, as constants: path, traffic class, and what travels."""

from __future__ import annotations

import urllib.parse

from tinker_async.api.calls import PROTOBUF, Endpoint
from tinker_async.transport import TrafficClass

_V1 = "/api/v1"
_TRAINING = TrafficClass.TRAINING

CLIENT_CONFIG = Endpoint(f"{_V1}/client/config")
DYNAMIC_CONFIG = Endpoint(f"{_V1}/client/dynamic_config", silence_s=10.0)
CREATE_SESSION = Endpoint(f"{_V1}/create_session")
HEARTBEAT = Endpoint(f"{_V1}/session_heartbeat", silence_s=10.0)
CAPABILITIES = Endpoint(f"{_V1}/get_server_capabilities", method="GET")
CREATE_MODEL = Endpoint(f"{_V1}/create_model", traffic=_TRAINING)
GET_INFO = Endpoint(f"{_V1}/get_info", traffic=_TRAINING)
FORWARD_BACKWARD = Endpoint(f"{_V1}/forward_backward", traffic=_TRAINING, content_type=PROTOBUF)
FORWARD_BACKWARD_ZSTD = Endpoint(
    FORWARD_BACKWARD.path,
    traffic=_TRAINING,
    content_type=PROTOBUF,
    extra_headers=((b"content-encoding", b"zstd"),),
)
OPTIM_STEP = Endpoint(f"{_V1}/optim_step", traffic=_TRAINING)
SAVE_WEIGHTS = Endpoint(f"{_V1}/save_weights", traffic=_TRAINING)
LOAD_WEIGHTS = Endpoint(f"{_V1}/load_weights", traffic=_TRAINING)
SAVE_WEIGHTS_FOR_SAMPLER = Endpoint(f"{_V1}/save_weights_for_sampler", traffic=_TRAINING)
WEIGHTS_INFO = Endpoint(f"{_V1}/weights_info")
CREATE_SAMPLING_SESSION = Endpoint(f"{_V1}/create_sampling_session")
JOIN_SAMPLING_SESSION = Endpoint(f"{_V1}/join_sampling_session")
SAMPLE = Endpoint(
    f"{_V1}/asample",
    traffic=TrafficClass.SAMPLING,
    extra_headers=((b"x-tinker-sampling-backpressure", b"1"),),
)
CANCEL_FUTURE = Endpoint(f"{_V1}/cancel_future", traffic=TrafficClass.POLLING, silence_s=30.0)


def finish(session_id: str) -> Endpoint:
    """Say how a session ended."""
    return Endpoint(f"{_V1}/sessions/{segment(session_id)}/finish", silence_s=5.0)


def sampler(sampling_session_id: str) -> Endpoint:
    """Describe a sampling session."""
    return Endpoint(f"{_V1}/samplers/{segment(sampling_session_id)}", method="GET")


def tokenizer(model_name: str) -> Endpoint:
    """The tokenizer file of a model (embedded server only)."""
    return Endpoint(f"{_V1}/tokenizers/{segment(model_name, safe='/:')}", method="GET")


def training_run(run_id: str) -> Endpoint:
    """Describe a training run."""
    return Endpoint(f"{_V1}/training_runs/{segment(run_id)}", method="GET")


def checkpoints(run_id: str | None, *, limit: int, offset: int) -> Endpoint:
    """List checkpoints: of one run, or (with pages) of the user."""
    if run_id is not None:
        return Endpoint(f"{_V1}/training_runs/{segment(run_id)}/checkpoints", method="GET")
    return Endpoint(f"{_V1}/checkpoints?limit={limit}&offset={offset}", method="GET")


def training_runs(*, limit: int, offset: int) -> Endpoint:
    """List training runs."""
    return Endpoint(f"{_V1}/training_runs?limit={limit}&offset={offset}", method="GET")


def delete_checkpoint(run_id: str, checkpoint_id: str) -> Endpoint:
    """Delete a checkpoint; its id keeps its slash."""
    run, checkpoint = segment(run_id), segment(checkpoint_id, safe=":/")
    return Endpoint(f"{_V1}/training_runs/{run}/checkpoints/{checkpoint}", method="DELETE")


def segment(text: str, *, safe: str = ":") -> str:
    """Quote an id for a path; the colons of ids stay as they are."""
    return urllib.parse.quote(text, safe=safe)
