"""Whether a checkpoint may be loaded, and whether what was loaded is what was saved.

Before: its path, what the server says of it, and how that goes with the run. After: a few
log-probs tell whether the weights came back, and the losses of the first replayed steps whether
the optimizer did. The rule: an objection is a value, for there is another checkpoint to try; what
is raised says that the server could not be asked, which is no checkpoint's fault.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
from tinker_async.api.features import says_no_endpoint
from tinker_async.api.retry import RetryPolicy
from tinker_async.data.datum import Datum
from tinker_async.data.model_input import EncodedTextChunk, ModelInput
from tinker_async.data.paths import CheckpointPath, parse_path
from tinker_async.data.records import Checkpoint, CheckpointsListResponse, WeightsInfoResponse
from tinker_async.data.results import ForwardBackwardOutput
from tinker_async.errors import (
    APIStatusError,
    InvalidInputError,
    ResponseError,
    UnsupportedByServerError,
)
from tinker_async.futures import APIFuture
from tinker_async.logs import log
from tinker_async.wire.messages import WeightsInfoRequest

Fault: TypeAlias = Literal[
    "path", "kind", "missing", "base_model", "rank", "optimizer", "expired", "empty", "weights"
]

TOLERANCE = 1e-3
"""Most that a log-prob may differ after a load: other machines round otherwise. On one CPU it is 0."""
_MOST_TOKENS = 64
_CLIENT_FAULTS = (400, 403, 404, 410, 422)


class Objection(msgspec.Struct, frozen=True):
    """Why a checkpoint is not to be used."""

    path: str
    fault: Fault
    """`path`: it is none. `kind`: not for training. `missing`: the server does not have it or
    does not give it. `base_model`, `rank`, `optimizer`: of another model. `expired`, `empty`:
    it is or is about to be gone. `weights`: what was loaded is not what was saved."""
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint must go together with."""

    base_model: str
    rank: int
    optimizer: str | None = None
    """The family (`adamw`) whose state is to be restored; None if none is."""


async def objection_to(
    path: str,
    wanted: Wanted,
    *,
    caller: Caller,
    now: datetime,
    policy: RetryPolicy | None = None,
    listed: Checkpoint | None = None,
) -> Objection | None:
    """Return why a checkpoint should not be loaded; None if nothing speaks against it.

    What a server does not say is not held against the checkpoint.

    Args:
        path: The checkpoint.
        wanted: What it is for.
        caller: What reaches the server.
        now: The time of day, aware.
        policy: When to repeat.
        listed: As its run's listing has it; None asks for that.

    Raises:
        TinkerError: The server cannot be asked.
    """
    try:
        parsed = parse_path(path)
    except InvalidInputError as error:
        return Objection(path, "path", error.message)
    if parsed.checkpoint_type != "training":
        return Objection(path, "kind", f"it is a checkpoint for {parsed.checkpoint_type}")
    info = await _info(path, caller, policy)
    if isinstance(info, Objection):
        return info
    found = _mismatch(path, info, wanted) if info is not None else None
    if found is None:
        if listed is None:
            listed = await _listed(parsed, caller, policy)
        found = _leaving(path, listed, now) if listed is not None else None
    return found


async def _info(
    path: str, caller: Caller, policy: RetryPolicy | None
) -> WeightsInfoResponse | Objection | None:
    try:
        return await caller.call_json(
            endpoints.WEIGHTS_INFO,
            WeightsInfoRequest(tinker_path=path),
            answer=WeightsInfoResponse,
            policy=policy,
        )
    except UnsupportedByServerError:
        return None
    except APIStatusError as error:
        if says_no_endpoint(error):
            return None
        if error.status in _CLIENT_FAULTS:
            return Objection(path, "missing", error.detail or error.message)
        raise


async def _listed(
    path: CheckpointPath, caller: Caller, policy: RetryPolicy | None
) -> Checkpoint | None:
    """Return the checkpoint as the run's listing has it; None where there is no such listing."""
    endpoint = endpoints.checkpoints(path.training_run_id, limit=0, offset=0)
    try:
        page = await caller.call_json(endpoint, answer=CheckpointsListResponse, policy=policy)
    except (APIStatusError, ResponseError, UnsupportedByServerError) as error:
        if isinstance(error, APIStatusError) and error.status not in _CLIENT_FAULTS:
            raise
        log.info("checkpoint_not_listed", path=str(path), error=type(error).__name__)
        return None
    own = (one for one in page.checkpoints if one.tinker_path == str(path))
    return next(own, None)


def _mismatch(path: str, info: WeightsInfoResponse, wanted: Wanted) -> Objection | None:
    if info.base_model != wanted.base_model:
        return Objection(
            path, "base_model", f"it is of {info.base_model}, the run of {wanted.base_model}"
        )
    if not info.is_lora or (info.lora_rank is not None and info.lora_rank != wanted.rank):
        return Objection(path, "rank", f"its rank is {info.lora_rank}, the run's {wanted.rank}")
    family = info.optimizer_config.get("type")
    if wanted.optimizer is not None and family is not None and family != wanted.optimizer:
        return Objection(
            path, "optimizer", f"its optimizer is {family}, the run's {wanted.optimizer}"
        )
    return None


def _leaving(path: str, listed: Checkpoint, now: datetime) -> Objection | None:
    if listed.expires_at is not None and listed.expires_at <= now:
        return Objection(path, "expired", f"it expired at {listed.expires_at.isoformat()}")
    if listed.size_bytes == 0:
        return Objection(path, "empty", "it has no bytes")
    return None


# After a load


class Scores(Protocol):
    """What a probe needs of a training client."""

    def forward(self, data: Sequence[Datum], loss_fn: str) -> APIFuture[ForwardBackwardOutput]:
        """Compute log-probs without gradients."""
        ...


class Probe(msgspec.Struct, frozen=True):
    """A few tokens whose log-probs tell one set of weights from another. JSON, to be kept."""

    tokens: tuple[int, ...]
    targets: tuple[int, ...]

    @classmethod
    def of(cls, data: Sequence[Datum], most_tokens: int = _MOST_TOKENS) -> Probe | None:
        """Make a probe of a batch: of the first datum that is text with one target a token.

        It is of the run's own data, since that is where training moves log-probs most.
        """
        for datum in data:
            tokens, targets = _text(datum.model_input), _targets(datum)
            if tokens and targets is not None and len(targets) == len(tokens):
                return cls(tuple(tokens[:most_tokens]), tuple(targets[:most_tokens]))
        return None

    def ask(self, trainer: Scores) -> APIFuture[ForwardBackwardOutput]:
        """Queue the probe: the weights are those of this place in the queue. See `fingerprint`."""
        inputs: dict[str, Sequence[Any]] = {
            "target_tokens": list(self.targets),
            "weights": [1.0] * len(self.targets),
        }
        datum = Datum(ModelInput.from_ints(list(self.tokens)), inputs)
        return trainer.forward([datum], "cross_entropy")


def _text(model_input: ModelInput) -> list[int]:
    if all(isinstance(chunk, EncodedTextChunk) for chunk in model_input.chunks):
        return model_input.to_ints()
    return []


def _targets(datum: Datum) -> list[int] | None:
    targets: Any = datum.loss_fn_inputs.get("target_tokens")
    if targets is None or targets.is_sparse or len(targets.dense_shape) != 1:
        return None
    found: list[int] = targets.tolist()
    return found


def fingerprint(answer: ForwardBackwardOutput) -> tuple[float, ...]:
    """Return the log-probs of a probe, exactly as the server gave them (float32).

    Raises:
        ResponseError: There are none.
    """
    outputs = answer.loss_fn_outputs
    logprobs = outputs[0].get("logprobs") if outputs else None
    if logprobs is None:
        raise ResponseError(
            "the server gave no log-probs of the probe", endpoint=endpoints.FORWARD_BACKWARD.path
        )
    return tuple(float(value) for value in logprobs.to_numpy().ravel())


def largest_difference(recorded: Sequence[float], found: Sequence[float]) -> float:
    """Return the largest difference of two rows of numbers; infinite if they do not match.

    For fingerprints, and for the losses of replayed steps against the recorded ones. The loss of
    the first replayed step depends on the weights alone; that of the step after its `optim_step`
    depends on the optimizer's state as well.
    """
    if len(recorded) != len(found):
        return math.inf
    largest = 0.0
    for old, new in zip(recorded, found, strict=True):
        if old == new or (math.isnan(old) and math.isnan(new)):
            continue
        difference = abs(old - new)
        if not difference < math.inf:
            return math.inf
        largest = max(largest, difference)
    return largest


def weights_objection(
    path: str,
    recorded: Sequence[float],
    found: Sequence[float],
    *,
    tolerance: float = TOLERANCE,
) -> Objection | None:
    """Return an objection if a fingerprint after a load is not the one of the save."""
    difference = largest_difference(recorded, found)
    if difference <= tolerance:
        return None
    return Objection(
        path, "weights", f"log-probs differ by {difference:g} from those recorded at the save"
    )
