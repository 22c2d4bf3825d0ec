"""Every argument of the public surface, with values that it may not be of: for the sweep.

The rule: which calls there are is read from the classes, so that a new argument is swept without a
row; only what a good call needs is written down here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import tinker_async as ta
from tinker_async.testing import FakeService

BAD: dict[str, Any] = {
    "None": None,
    "5": 5,
    "'x'": "x",
    "[]": [],
    "{}": {},
    "nan": float("nan"),
    "-1": -1,
    "object()": object(),
}
_LISTS = ("TokensLike", "TensorLike", "object", "Any")
"""Names that stand for several types."""
_KINDS: dict[str, tuple[str, ...]] = {
    "None": ("None", "Timeout", "LossConfig", *_LISTS),
    "5": ("int", "float", "Timeout", *_LISTS),
    "'x'": (
        *("str", "PathLike", "Literal", "LossFnType", "SamplingClientKind", "Sequence", "Requests"),
        *("DType", "ImageFormat", "Mode", "Strategy", "CheckpointType", *_LISTS),
    ),
    "[]": ("Sequence", "list", "tuple", "NDArray", "Requests", "ProvenanceSpans", *_LISTS),
    "{}": ("Mapping", "dict", "OptimizerConfig", "OptimParams", "LossConfig", *_LISTS),
    "nan": ("float", "Timeout", *_LISTS),
    "-1": ("int", "float", "Timeout", *_LISTS),
    "object()": _LISTS,
}
"""What an annotation has that such a value may be of. Then it may be refused, and need not be."""
PROMPT = ta.ModelInput.from_ints([1, 2, 3])
DATUM = ta.Datum(PROMPT, {"target_tokens": [2, 3, 4], "weights": [1.0, 1.0, 1.0]})


def may_be(annotation: str, bad: str) -> bool:
    """Whether a value may be of the annotated type, as far as the names in it say."""
    outer, before = annotation, ""
    while outer != before:  # what is in brackets is of the elements
        outer, before = re.sub(r"\[[^\[\]]*\]", "", outer), outer
    return bool({*re.findall(r"\w+", outer)} & {*_KINDS[bad]})


class Slot(msgspec.Struct, frozen=True, eq=False):
    """One argument of one call."""

    name: str
    """`Class.method(argument)`."""
    annotation: str
    call: Callable[[Any], Any]
    """Make the call, with this for the argument and what is right for all others."""

    def refuses(self, bad: str) -> bool:
        """Whether the value has to be refused."""
        return not may_be(self.annotation, bad)


def slots_of(
    owner: str, function: Callable[..., Any], good: Mapping[str, Any], skip: tuple[str, ...] = ()
) -> Iterator[Slot]:
    """Return the arguments of a call; `good` has what is right for those that must be given."""
    for name, parameter in inspect.signature(function).parameters.items():
        if name in skip or name in {"self", "cls"}:
            continue
        given = {
            other: good[other]
            for other, one in inspect.signature(function).parameters.items()
            if other != name
            and other not in {"self", "cls"}
            and (one.default is inspect.Parameter.empty or other in good)
        }
        annotation = parameter.annotation
        text = annotation if isinstance(annotation, str) else str(annotation)
        yield Slot(f"{owner}({name})", text, partial(_call, function, name, given))


def _call(function: Callable[..., Any], name: str, given: Mapping[str, Any], value: Any) -> Any:
    return function(**given, **{name: value})


# The clients


class Scene:
    """Clients with a service, in process, and what is right to call them with."""

    def __init__(self, service: FakeService, session: ta.Session, folder: Path) -> None:
        self.service = service
        self.session = session
        self.folder = folder
        self.trainer: ta.TrainingClient
        self.sampler: ta.SamplingClient
        self.path = ""
        self.sampler_path = ""

    async def prepare(self) -> None:
        """Make one of everything."""
        session = self.session
        self.service.state.sessions[session.session_id].trace_asked = 1  # or it takes 5 s
        self.trainer = await session.create_lora_training_client("toy", rank=4)
        self.sampler = await session.create_sampling_client(base_model="toy")
        self.path = (await self.trainer.save_state("kept")).path
        self.sampler_path = (await self.trainer.save_weights_for_sampler("kept")).path

    def client(self, owner: type) -> Any:
        """The client of a class."""
        return {
            ta.Session: self.session,
            ta.TrainingClient: self.trainer,
            ta.SamplingClient: self.sampler,
            ta.RestClient: self.session.rest,
        }[owner]

    def good(self, method: str) -> dict[str, Any]:
        """What is right for the arguments of a method, by their names."""
        run = self.trainer.model_id
        found: dict[str, Any] = {
            "base_model": "toy",
            "path": self.path,
            "tinker_path": self.path,
            "model_path": self.sampler_path,
            "training_run_id": run,
            "checkpoint_id": "weights/kept",
            "session_id": self.session.session_id,
            "sampler_id": self.sampler.sampling_session_id,
            "project_id": "project-fake",
            "destination_project_id": "project-fake",
            "handle": self.sampler.handle(),
            "run_dir": str(self.folder / "run"),
            "to": str(self.folder / "to"),
            "name": "x",
            "data": [DATUM],
            "loss_fn": "cross_entropy",
            "optim_params": ta.AdamParams(),
            "fn": lambda logprobs: (logprobs.sum(), {}),
            "input_ranks": {"logprobs": 1},
            "prompt": PROMPT,
            "n": 1,
            "requests": [PROMPT],
            "ttl_seconds": 3600,
            "starting_on": "2026-01-01T00:00:00Z",
            "ending_before": "2026-01-02T00:00:00Z",
            "api_key": "tml-of-nobody",
        }
        known = {*inspect.signature(getattr(ta_method_owner(method), method)).parameters}
        wanted = {name: value for name, value in found.items() if name in known}
        for name in _LEFT_OUT.get(method, ()):
            wanted.pop(name, None)
        return wanted | _ALSO.get(method, {})


_LEFT_OUT: dict[str, tuple[str, ...]] = {
    "create_sampling_client": ("base_model",),
    "create_training_client_from_state": ("base_model",),
    "create_training_client_from_state_with_optimizer": ("base_model",),
    "list_training_runs": ("project_id",),
    "list_training_runs_page": ("project_id",),
    "get_current_checkpoint_storage_usage": ("project_id",),
}
_ALSO: dict[str, dict[str, Any]] = {
    "forward_backward_custom": {"loss_fn": lambda _, logprobs: (logprobs[0].sum(), {})},
}
CLIENTS = (ta.Session, ta.TrainingClient, ta.SamplingClient, ta.RestClient)
NOT_CALLED = {
    "local": "it starts a process: see its arguments below",
    "connect": "it connects elsewhere: see its arguments below",
}


def ta_method_owner(method: str) -> type:
    """The class that has a method."""
    return next(owner for owner in CLIENTS if hasattr(owner, method))


def methods_of(owner: type) -> list[str]:
    """The public methods of a client that take any argument."""
    return [
        name
        for name, value in inspect.getmembers(owner, inspect.isroutine)
        if not name.startswith("_")
        and name not in NOT_CALLED
        and len(inspect.signature(value).parameters) > 1
    ]


# What is made without a server

SPAN = ta.PromptProvenanceSpan(sequence_id="a", length=3)
ONE = np.ones(1, np.float32)
INPUTS: dict[type, dict[str, Any]] = {
    ta.ModelInput: {"chunks": [*PROMPT.chunks]},
    ta.EncodedTextChunk: {"tokens": [1]},
    ta.ImageChunk: {"data": b"x", "format": "png"},
    ta.ImageAssetPointerChunk: {"format": "png", "location": "a"},
    ta.DmelChunk: {"dmel": b"x"},
    ta.Datum: {"model_input": PROMPT},
    ta.TensorData: {"data": ONE, "dtype": "float32"},
    ta.SamplingParams: {},
    ta.AdamParams: {},
    ta.AdamOptimizerConfig: {},
    ta.LoraConfig: {},
    ta.DimuonParams: {"learning_rate": 0.1},
    ta.DimuonOptimizerConfig: {},
    ta.PromptProvenanceSpan: {"sequence_id": "a", "length": 3},
    ta.SampledProvenanceSpan: {"sequence_id": "a", "length": 3},
    ta.SamplerHandle: {"base_url": "http://x", "sampling_session_id": "s"},
    ta.SessionSearchRequest: {},
    ta.SessionSearchCursor: {"last_created_at": "2026-01-01", "last_session_id": "s"},
    ta.UserSearchOwner: {"owner_urns": ["a"]},
    ta.ClientFinishedSessionStatusQuery: {},
    ta.RetryPolicy: {},
    ta.CheckpointPolicy: {},
    ta.RecoveryPolicy: {},
}
FUNCTIONS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "ModelInput.from_ints": (ta.ModelInput.from_ints, {}),
    "ModelInput.append": (PROMPT.append, {}),
    "ModelInput.append_int": (PROMPT.append_int, {}),
    "TensorData.from_numpy": (ta.TensorData.from_numpy, {}),
    "TensorData.from_value": (ta.TensorData.from_value, {"key": "weights", "value": [1.0]}),
    "TensorData.compressed": (ta.TensorData.from_numpy(ONE).compressed, {}),
    "TensorData.to_numpy": (ta.TensorData.from_numpy(ONE).to_numpy, {}),
    "TensorData.tolist": (ta.TensorData.from_numpy(ONE).tolist, {}),
    "TensorData.from_torch": (ta.TensorData.from_torch, {}),
    "TensorData.from_torch_sparse": (ta.TensorData.from_torch_sparse, {"tensor": None}),
    "Datum.with_provenance": (
        DATUM.with_provenance,
        {"model_input": [SPAN], "loss_fn_inputs": [SPAN]},
    ),
    "SamplerHandle.from_json": (ta.SamplerHandle.from_json, {}),
    "parse_path": (ta.parse_path, {"path": "tinker://a/weights/b"}),
    "Session": (ta.Session, {"base_url": "http://x", "api_key": "tml-x"}),
    "Session.local": (ta.Session.local, {}),
    "RestClient.connect": (ta.RestClient.connect, {"base_url": "http://x", "api_key": "tml-x"}),
}
FREE: dict[str, tuple[str, ...]] = {
    "parse_path": ("field",),
}
"""Arguments that only name something in errors."""
GIVEN_BY_SERVERS = (
    *("data.results", "data.records", "data.usage", "data.sessions", "data.identity"),
    *("data.tolerant", "data.custom_loss", "data.paths", "events", "background.health"),
    *("durable.events", "durable.records", "durable.report", "download.records"),
    *("api.features", "futures", "many_samples", "training", "ports"),
)
"""Modules whose records the library makes itself."""


def input_slots() -> Iterator[Slot]:
    """The fields of all structs that users make."""
    for cls, good in INPUTS.items():
        annotations = {
            name: text
            for base in reversed(cls.__mro__)
            for name, text in inspect.get_annotations(base).items()
        }
        for field in cls.__struct_fields__:  # type: ignore[attr-defined]  # each is a struct
            given = {name: value for name, value in good.items() if name != field}
            call = partial(_call, cls, field, given)
            yield Slot(f"{cls.__name__}({field})", str(annotations[field]), call)


def function_slots() -> Iterator[Slot]:
    """The arguments of what needs no server."""
    for name, (function, good) in FUNCTIONS.items():
        yield from slots_of(name, function, good, FREE.get(name, ()))
