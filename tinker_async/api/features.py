"""What a server can do: found once, from its config or from its first answers, and remembered.

The rule: nothing is asked only to find out, and what is not missing costs a request nothing.
A feature counts as missing when the server said so; until then it is used.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

import msgspec

from tinker_async.errors import APIStatusError, UnsupportedByServerError
from tinker_async.logs import log

LearnedFrom: TypeAlias = Literal["config", "answer"]

_DETAIL_LIMIT = 300


class Feature(enum.StrEnum):
    """What not every server has."""

    # How a session speaks with it. Where one is missing, another way is taken.
    CLIENT_CONFIG = "client_config"
    DYNAMIC_CONFIG = "dynamic_config"
    PROTOBUF_TRAINING = "protobuf_training"
    JSON_TRAINING = "json_training"
    COMPRESSION = "compression"
    SPARSE_TENSORS = "sparse_tensors"
    CREATE_BY_LOAD = "create_by_load"
    WEIGHTS_ONLY_LOADING = "weights_only_loading"
    SIZED_RESULTS = "sized_results"
    SEQUENCE_IDS = "sequence_ids"
    MAX_TOKENS_DEFAULT = "max_tokens_default"
    CANCEL = "cancel"
    SESSION_POLLER = "session_poller"
    SAMPLER_JOINING = "sampler_joining"
    UPLOADED_LOSSES = "uploaded_losses"
    # What a call asks for. Where one is missing, the call fails.
    OTHER_OPTIMIZERS = "other_optimizers"
    ADAM_EXTRAS = "adam_extras"
    INFLIGHT_SAMPLERS = "inflight_samplers"
    STABILITY_INFO = "stability_info"
    TOPK_PROMPT_LOGPROBS = "topk_prompt_logprobs"
    TOPK_SAMPLE_LOGPROBS = "topk_sample_logprobs"
    TARGET_PROMPT_LOGPROBS = "target_prompt_logprobs"
    PROMPT_ALT_TOKENS = "prompt_alt_tokens"
    PROMPT_LOGPROBS_LAST_N = "prompt_logprobs_last_n"
    PROVENANCE = "provenance"
    PROJECTS = "projects"
    DISPLAY_NAMES = "display_names"
    ACCESS_TOKENS = "access_tokens"
    CHECKPOINT_METADATA = "checkpoint_metadata"
    CHECKPOINT_TTL = "checkpoint_ttl"
    OVERWRITING = "overwriting"
    ENCRYPTION = "encryption"
    # Endpoints of their own.
    EXTERNAL_WEIGHTS = "external_weights"
    UNLOADING = "unloading"
    CHECKPOINT_LISTING = "checkpoint_listing"
    CHECKPOINT_DELETION = "checkpoint_deletion"
    PUBLISHING = "publishing"
    COPYING = "copying"
    SESSION_LISTING = "session_listing"
    SESSION_SEARCH = "session_search"
    SESSION_DETAILS = "session_details"
    SESSION_FINISHING = "session_finishing"
    TRACES = "traces"
    BILLING = "billing"
    AUDIT = "audit"
    API_KEYS = "api_keys"
    KEY_REVOCATION = "key_revocation"


class FeatureSupport(msgspec.Struct, frozen=True):
    """Whether a server has a feature, and how that is known."""

    supported: bool | None = None
    """None: not known so far."""
    learned_from: LearnedFrom | None = None
    """`config`: the server's config says it; `answer`: what it answered to a request does."""
    detail: str = ""
    """What the server answered, where something is missing."""


class ServerFeatures(msgspec.Struct, frozen=True):
    """What is known of a server at one moment: `features[Feature.CANCEL].supported`."""

    known: Mapping[Feature, FeatureSupport]
    """What was learned so far."""

    def __getitem__(self, feature: Feature | str) -> FeatureSupport:
        """What is known of one feature."""
        return self.known.get(Feature(feature), _UNKNOWN)

    @property
    def missing(self) -> tuple[Feature, ...]:
        """The features that the server is known not to have."""
        return tuple(one for one in Feature if self[one].supported is False)


class Server(msgspec.Struct, frozen=True):
    """The server of a session."""

    base_url: str
    features: ServerFeatures


_UNKNOWN = FeatureSupport()

_OF_FIELD = {
    "optimizer_config": Feature.OTHER_OPTIMIZERS,
    "optimizer_params": Feature.OTHER_OPTIMIZERS,
    "weight_decay": Feature.ADAM_EXTRAS,
    "grad_clip_norm": Feature.ADAM_EXTRAS,
    "kind": Feature.INFLIGHT_SAMPLERS,
    "record_stability_info": Feature.STABILITY_INFO,
    "topk_prompt_logprobs": Feature.TOPK_PROMPT_LOGPROBS,
    "topk_sample_logprobs": Feature.TOPK_SAMPLE_LOGPROBS,
    "target_prompt_logprobs": Feature.TARGET_PROMPT_LOGPROBS,
    "prompt_alt_tokens_k": Feature.PROMPT_ALT_TOKENS,
    "prompt_logprobs_last_n": Feature.PROMPT_LOGPROBS_LAST_N,
    "project_id": Feature.PROJECTS,
    "display_name": Feature.DISPLAY_NAMES,
    "weights_access_token": Feature.ACCESS_TOKENS,
    "ttl_seconds": Feature.CHECKPOINT_TTL,
    "overwrite": Feature.OVERWRITING,
    "age_encryption_recipients": Feature.ENCRYPTION,
}
"""Fields that are sent only when somebody asks for what they stand for."""
_OF_LOADS = {"optimizer": Feature.WEIGHTS_ONLY_LOADING}
_OF_SAVES = {"user_metadata": Feature.CHECKPOINT_METADATA}
"""As above, of the saves alone: other requests had the field from the start."""
_UNKNOWN_FIELD = re.compile(
    r"extra_forbidden|extra (inputs|fields)|not permitted|not allowed"
    r"|(unknown|unexpected|unrecogni[sz]ed)\b.{0,20}\b(field|key|argument|property|parameter)",
    re.IGNORECASE,
)
_NO_ROUTE = re.compile(r"^(not found\.?|404 page not found|method not allowed|)$", re.IGNORECASE)


class FeatureBook:
    """What one session has learned of its server."""

    def __init__(self) -> None:
        self.missing: set[Feature] = set()
        """Empty with most servers: who looks for something to be missing begins here."""
        self._known: dict[Feature, FeatureSupport] = {}

    def view(self) -> ServerFeatures:
        """Return what is known now."""
        return ServerFeatures(dict(self._known))

    def known(self, feature: Feature) -> bool | None:
        """Whether the server has a feature; None while that is not known."""
        return self._known.get(feature, _UNKNOWN).supported

    def learn(
        self,
        feature: Feature,
        supported: bool,
        *,
        learned_from: LearnedFrom = "answer",
        detail: str = "",
    ) -> None:
        """Remember something of the server; what its answers say beats its config."""
        before = self._known.get(feature, _UNKNOWN)
        if before.supported is supported or (
            before.learned_from == "answer" and learned_from == "config"
        ):
            return
        self._known[feature] = FeatureSupport(supported, learned_from, detail[:_DETAIL_LIMIT])
        if supported:
            self.missing.discard(feature)
        else:
            self.missing.add(feature)
        if not supported and learned_from == "answer":
            log.info("server_lacks", feature=feature.value, learned_from=learned_from)

    def require(self, feature: Feature) -> None:
        """Refuse what the server is known not to have.

        Raises:
            UnsupportedByServerError: Nothing was sent.
        """
        if feature in self.missing:
            raise unsupported(feature, self._known[feature].detail)

    def require_all(self, features: Iterable[Feature]) -> None:
        """As `require`, for each of them."""
        for feature in features:
            self.require(feature)

    def refused(
        self, error: APIStatusError, *, endpoint: str, feature: Feature | None, body: bytes
    ) -> UnsupportedByServerError | None:
        """Return the error that a refusal stands for, if it says that the server lacks something.

        Args:
            error: The refusal.
            endpoint: The path it came from.
            feature: What the endpoint as a whole stands for.
            body: The request's JSON.
        """
        found = feature if says_no_endpoint(error) else None
        if found is None and error.status in (400, 422):
            found = _unknown_field(error.detail, endpoint, body)
        if found is None:
            return None
        self.learn(found, False, detail=error.message)
        return unsupported(found, error.message)


def says_no_endpoint(error: APIStatusError) -> bool:
    """Whether an error means that there is no such endpoint, not that there is no such thing."""
    if error.status in (405, 501):
        return True
    return error.status == 404 and _NO_ROUTE.match(error.detail.strip()) is not None


def unsupported(feature: Feature, detail: str) -> UnsupportedByServerError:
    """Make the error of a call that needs a feature."""
    said = f": {detail}" if detail else ""
    return UnsupportedByServerError(
        f"this server does not have {feature.value.replace('_', ' ')}{said}", feature=feature.value
    )


def _unknown_field(detail: str, endpoint: str, body: bytes) -> Feature | None:
    """Return the feature of an unknown field that a refusal names and the request has."""
    if _UNKNOWN_FIELD.search(detail) is None:
        return None
    fields = _OF_FIELD
    if "/save_weights" in endpoint:
        fields = {**fields, **_OF_SAVES}
    elif endpoint.endswith("/load_weights"):
        fields = {**fields, **_OF_LOADS}
    for name, feature in fields.items():
        if re.search(rf"\b{name}\b", detail) and f'"{name}"'.encode() in body:
            return feature
    return None
