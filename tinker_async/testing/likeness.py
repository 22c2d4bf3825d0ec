"""How servers of other kinds and ages differ from the service, as data: `FakeService(like=...)`.

What is in the tables was seen of these servers, or is in the models of the official client of
their time. The rule: no code here; `testing.disguise` carries it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from tinker_async.errors import ConfigError

Fields = Mapping[str, frozenset[str]]
"""By endpoint, or by endpoint and field (`optim_step.adam_params`), the fields that are known."""


Archives = Literal["signed", "bare", "file"]
"""Where archives are: at a signed address; of samplers alone, by the bare name; or in a folder."""


class Likeness(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What is different about a kind of server."""

    name: str
    absent: frozenset[str] = frozenset()
    """Endpoints, by the names of the ledger, that are answered as any unknown path."""
    config: Mapping[str, Any] | None = None
    """What `client/config` answers; None is the fake's own answer."""
    ids: Mapping[str, str] = {}
    """Forms of ids: `session`, `model`, `sampler`, `request`; of `session`, `n` and `hex`."""
    statuses: Mapping[str, int] = {}
    """Of successful answers, by endpoint."""
    known_fields: Fields | None = None
    """What strict bodies may have; None ignores what is unknown."""
    training: Literal["both", "json", "protobuf"] = "both"
    """Forms of `forward_backward` bodies that are taken."""
    wrong_form: tuple[int, str] = (415, "unsupported media type")
    """What a body of another form is answered."""
    crashes: bool = False
    """Whether that is a crash: an answer in plain text, after which the connection is closed."""
    dense_only: bool = False
    json_results: bool = False
    """Whether results are JSON, whatever was asked for."""
    sequence_ids: bool = True
    promise_model_id: bool = True
    promise_extra: Mapping[str, str] = {}
    create_by_load: tuple[int, str] | None = None
    """How it is refused; None allows it."""
    load_first_only: bool = False
    """Whether weights are loaded only by a model's first request."""
    hold_s: float | None = None
    """How long a poll is held; None is the fake's own."""
    held_out: Literal["try_again", "408"] = "try_again"
    """What a poll is answered that was held in vain."""
    failures: Mapping[str, int] | None = None
    """Statuses by which failed operations are told, by category; None tells them by `error`."""
    strict_order: bool = False
    """Whether a request must have the next number exactly, and a failed one does not count."""
    max_tokens: tuple[int, str] | None = None
    """How a sample without `max_tokens` is refused."""
    bare_stop: tuple[int, str] | None = None
    """How a bare stop string is refused."""
    metrics: Literal["as they are", "none", "strange"] = "as they are"
    """`strange` names have no colon, or two; and there is no `loss:sum`."""
    scores_first_token: bool = True
    """Whether prompt log-probs have an entry (null) for the first token."""
    bare_checkpoint_ids: bool = False
    archives: Archives = "signed"
    sampler_paths_without_kind: bool = False
    idle_s: float | None = None
    """Idle HTTP/1.1 connections are closed after so long, in seconds."""


def _fields(**known: str) -> Fields:
    return {
        name.replace("__", "."): frozenset(fields.split()) | {"type"}
        for name, fields in known.items()
    }


_RECENT = frozenset({
    "client/dynamic_config", "finish", "ttl", "session_project", "search_sessions",
    "trace_export", "copy_weights", "save_weights_external", "external_weights_urls",
    "retrieve_futures", "cancel_future", "join_sampling_session", "create_custom_loss",
    "billing_usage", "storage_usage", "audit", "auth/apikey/me", "revoke_api_key", "tokenizer",
    "file",
})  # fmt: skip
"""What no server but the service has."""

SKYRL_0_3 = Likeness(
    name="skyrl-0.3.0",
    absent=_RECENT
    | {"auth/token", "sessions", "session", "checkpoints", "publish"},
    config={"pjwt_auth_enabled": False},
    ids={
        "session": "session_{hex}",
        "model": "model_{hex}",
        "sampler": "sampling_{hex}",
        "request": "{n}",
    },
    training="json",
    wrong_form=(500, "Internal Server Error"),
    crashes=True,
    dense_only=True,
    json_results=True,
    sequence_ids=False,
    promise_model_id=False,
    promise_extra={"status": "pending"},
    create_by_load=(422, "[{'type': 'missing', 'loc': ['body', 'model_id'], 'msg': 'Field required'}]"),
    load_first_only=True,
    hold_s=300.0,
    held_out="408",
    failures={"user": 400, "server": 400, "unknown": 400},
    max_tokens=(400, "max_tokens is currently required"),
    bare_stop=(422, "[{'loc': ['body', 'sampling_params', 'stop'], 'msg': 'Input should be a valid list'}]"),
    metrics="none",
    scores_first_token=False,
    bare_checkpoint_ids=True,
    archives="bare",
    sampler_paths_without_kind=True,
    idle_s=5.0,
)  # fmt: skip
"""SkyRL 0.3.0 with its JAX backend."""

TUFT_0_2 = Likeness(
    name="tuft-0.2.2",
    absent=_RECENT | {"forward", "auth/token"},
    config={
        "pjwt_auth_enabled": False,
        "parallel_fwdbwd_chunks": False,
        "sample_max_concurrent_requests": 2000,
    },
    statuses={
        "create_session": 201,
        "create_sampling_session": 201,
        **dict.fromkeys(
            (
                *("create_model", "forward_backward", "optim_step", "save_weights"),
                *("load_weights", "save_weights_for_sampler", "asample", "unload_model"),
            ),
            202,
        ),
    },
    known_fields=_fields(
        create_session="tags user_metadata sdk_version project_id",
        session_heartbeat="session_id",
        create_model="session_id model_seq_id base_model user_metadata lora_config",
        get_info="model_id",
        optim_step="model_id seq_id adam_params",
        save_weights="model_id path seq_id ttl_seconds overwrite",
        save_weights_for_sampler="model_id path sampling_session_seq_id seq_id ttl_seconds",
        load_weights="path optimizer model_id seq_id session_id model_seq_id base_model "
        "user_metadata weights_access_token",
        create_sampling_session="session_id sampling_session_seq_id base_model model_path",
        asample="prompt sampling_params num_samples sampling_session_id seq_id base_model "
        "model_path prompt_logprobs topk_prompt_logprobs",
        retrieve_future="request_id allow_metadata_only",
    ),
    training="protobuf",
    wrong_form=(415, "Expected application/x-protobuf"),
    sequence_ids=False,
    create_by_load=(400, "Missing model_id"),
    hold_s=120.0,
    failures={"user": 400, "server": 422, "unknown": 409},
    strict_order=True,
    bare_checkpoint_ids=True,
    archives="file",
    idle_s=5.0,
)
"""TuFT 0.2.2, whose bodies are those of the official client 0.25."""

TINKER_0_4 = Likeness(
    name="tinker-0.4",
    absent=_RECENT
    | {
        *("client/config", "auth/token", "sessions", "session", "sampler", "weights_info"),
    },
    known_fields=_fields(
        create_session="tags user_metadata sdk_version",
        session_heartbeat="session_id",
        create_model="session_id model_seq_id base_model user_metadata lora_config",
        get_info="model_id",
        forward="model_id seq_id forward_input",
        forward_backward="model_id seq_id forward_backward_input",
        optim_step="model_id seq_id adam_params",
        optim_step__adam_params="learning_rate beta1 beta2 eps",
        save_weights="model_id path seq_id",
        save_weights_for_sampler="model_id path sampling_session_seq_id seq_id",
        load_weights="path model_id seq_id",
        create_sampling_session="session_id sampling_session_seq_id base_model model_path",
        asample="prompt sampling_params num_samples sampling_session_id seq_id base_model "
        "model_path prompt_logprobs topk_prompt_logprobs",
        retrieve_future="request_id",
    ),
    training="json",
    wrong_form=(422, "[{'type': 'model_attributes_type', 'loc': ['body'], 'msg': 'Input should be a valid object'}]"),
    dense_only=True,
    json_results=True,
    sequence_ids=False,
    create_by_load=(422, "[{'type': 'missing', 'loc': ['body', 'model_id'], 'msg': 'Field required'}]"),
    metrics="strange",
)  # fmt: skip
"""A server of the time of the official client 0.4, built on that client's models."""

LIKENESSES = {one.name: one for one in (SKYRL_0_3, TUFT_0_2, TINKER_0_4)}


def likeness_of(like: str | Likeness | None) -> Likeness | None:
    """Return a likeness by its name.

    Raises:
        ConfigError: There is none of this name.
    """
    if like is None or isinstance(like, Likeness):
        return like
    if like not in LIKENESSES:
        raise ConfigError(
            f"there is no server like {like!r}", hint=f"known: {', '.join(sorted(LIKENESSES))}"
        )
    return LIKENESSES[like]
