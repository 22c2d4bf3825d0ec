"""Every public call that may wait, with the requests that it sends.

The rule: a public method without a row here fails a test.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from faults.reasons import Kind, Stage

from tinker_async import (
    AdamParams,
    ConfigError,
    Datum,
    ModelInput,
    SamplingClient,
    SamplingParams,
    Session,
    TrainingClient,
)
from tinker_async.testing import FakeService
from tinker_async.tokenizer import _from_hub
from tinker_async.wire.messages import ClientConfigResponse

TEXT = list(b"Tinker")
PROMPT = ModelInput.from_ints(TEXT[:1])
PARAMS = SamplingParams(max_tokens=2)
DATA = [
    Datum(
        ModelInput.from_ints(TEXT[:-1]),
        {"target_tokens": TEXT[1:], "weights": [1.0] * (len(TEXT) - 1)},
    )
]
ADAM = AdamParams()
BASE_MODEL = "the toy"
"""With a space: no hub is asked for a tokenizer of this name."""


class World:
    """What calls are made on."""

    def __init__(self, service: FakeService, session: Session) -> None:
        self.service = service
        self.session = session
        self.trainer: TrainingClient
        self.sampler: SamplingClient
        self.path = ""

    async def add_trainer(self) -> None:
        """Make a training client."""
        self.trainer = await self.session.create_lora_training_client(BASE_MODEL, rank=8)

    async def add_trainer_and_torch(self) -> None:
        """The first use takes long, and virtual time does not wait for threads."""
        import torch

        torch.autograd.backward(torch.ones(1, requires_grad=True).sum())
        await self.add_trainer()

    async def add_sampler(self) -> None:
        """Make a sampling client of the base model."""
        self.sampler = await self.session.create_sampling_client(base_model=BASE_MODEL)

    async def add_snapshot(self) -> None:
        """Make a sampling client that does not know its base model."""
        await self.add_trainer()
        self.sampler = await self.trainer.save_weights_and_get_sampling_client()

    async def add_trainer_and_tokenizers(self) -> None:
        """As with torch."""
        _load_tokenizers()
        await self.add_trainer()

    async def add_snapshot_and_tokenizers(self) -> None:
        """As with torch."""
        _load_tokenizers()
        await self.add_snapshot()

    async def add_checkpoint(self) -> None:
        """Save a checkpoint."""
        await self.add_trainer()
        self.path = (await self.trainer.save_state("before")).path


@functools.cache
def _load_tokenizers() -> None:
    with contextlib.suppress(ConfigError):
        _from_hub(BASE_MODEL)


def service_with_joins() -> FakeService:
    """Return a server that numbers the clients of a sampler."""
    config = ClientConfigResponse(parallel_fwdbwd_chunks=True, sample_join_sampling_session=True)
    return FakeService(base_models=(BASE_MODEL,), config=config)


class Call(msgspec.Struct, frozen=True):
    """One public call.

    `run` gets the number of the call in its cell, for names that must not repeat.
    """

    name: str
    stages: tuple[Stage, ...]
    run: Callable[[World, int], Awaitable[Any]]
    prepare: Callable[[World], Awaitable[None]] | None = None
    operation: str = ""
    """How its errors name it; default as it is called."""
    note: str = ""
    """Which of several ways of one method."""
    patience_s: float = 0.0
    """For the worker thread that it needs."""

    @property
    def method(self) -> str:
        """Its last name."""
        return self.operation or self.name.partition(".")[2]

    def __str__(self) -> str:
        return f"{self.name} {self.note}".strip()


def _lane(endpoint: str, effect: str = "", *, protobuf: bool = False) -> tuple[Stage, ...]:
    effect = effect or endpoint
    return (
        Stage(endpoint, "lane", effect),
        Stage("retrieve_future", "poll", effect, protobuf),
    )


def _ask(endpoint: str) -> tuple[Stage, ...]:
    return (_about(endpoint, "ask"),)


def _about(endpoint: str, kind: Kind) -> Stage:
    return Stage(endpoint, kind, names_session=endpoint in {"get_info", "join_sampling_session"})


_CAPABILITIES = _about("get_server_capabilities", "quiet")
_FORWARD = _lane("forward_backward", "forward", protobuf=True)
_FORWARD_BACKWARD = _lane("forward_backward", protobuf=True)
_LOADED = (
    Stage("load_weights", "make", "load_weights"),
    Stage("retrieve_future", "poll", "load_weights", of="make"),
    _about("get_info", "quiet"),
)
_SAMPLED = (
    Stage("asample", "draw", "sample"),
    Stage("retrieve_future", "poll", "sample", protobuf=True, of="draw"),
)


def _save(endpoint: str) -> tuple[Stage, ...]:
    return (Stage(endpoint, "save", endpoint), Stage("retrieve_future", "poll", endpoint))


async def _listed(items: Any) -> list[Any]:
    return [item async for item in items]


async def _mapped(world: World, number: int) -> Any:
    async with world.sampler.map([PROMPT]) as outcomes:
        async for outcome in outcomes:
            return outcome.result()
    raise AssertionError(f"no outcome of the {number}. call")


async def _custom(world: World, number: int) -> Any:
    def loss(data: Sequence[Datum], logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
        return -sum(one.sum() for one in logprobs), {"number": float(number)}

    return await world.trainer.forward_backward_custom(DATA, loss)


async def _states(world: World, number: int) -> Any:
    future = world.trainer.optim_step(ADAM)
    async for state in future.queue_states():
        assert state.state
    return await future


async def _awaited(future: Awaitable[Any]) -> Any:
    return await future


CALLS: tuple[Call, ...] = (
    # Session
    Call(
        "Session.get_server_capabilities",
        _ask("get_server_capabilities"),
        lambda world, _: world.session.get_server_capabilities(),
    ),
    Call(
        "Session.create_lora_training_client",
        (
            Stage("create_model", "make", "create_model"),
            Stage("retrieve_future", "poll", "create_model", of="make"),
            _CAPABILITIES,
        ),
        lambda world, _: world.session.create_lora_training_client(BASE_MODEL, rank=8),
    ),
    Call(
        "Session.create_training_client_from_state",
        _LOADED,
        lambda world, _: world.session.create_training_client_from_state(world.path),
        World.add_checkpoint,
    ),
    Call(
        "Session.create_training_client_from_state_with_optimizer",
        _LOADED,
        lambda world, _: world.session.create_training_client_from_state_with_optimizer(world.path),
        World.add_checkpoint,
    ),
    Call(
        "Session.create_sampling_client",
        (Stage("create_sampling_session", "make"), _about("sampler", "quiet")),
        lambda world, _: world.session.create_sampling_client(model_path=world.path),
        World.add_checkpoint,
    ),
    Call(
        "Session.create_sampling_client_from_handle",
        _ask("join_sampling_session"),
        lambda world, _: world.session.create_sampling_client_from_handle(world.sampler.handle()),
        World.add_snapshot,
        note="(snapshot)",
    ),
    Call(
        "Session.create_sampling_client_from_handle",
        (Stage("create_sampling_session", "make"),),
        lambda world, _: world.session.create_sampling_client_from_handle(world.sampler.handle()),
        World.add_sampler,
        note="(base model)",
    ),
    # TrainingClient
    Call(
        "TrainingClient.forward",
        _FORWARD,
        lambda world, _: world.trainer.forward(DATA, "cross_entropy"),
        World.add_trainer,
    ),
    Call(
        "TrainingClient.forward_backward",
        _FORWARD_BACKWARD,
        lambda world, _: world.trainer.forward_backward(DATA, "cross_entropy"),
        World.add_trainer,
    ),
    Call(
        "TrainingClient.forward_backward_custom",
        (msgspec.structs.replace(_FORWARD[0], more=1), _FORWARD[1]),
        _custom,
        World.add_trainer_and_torch,
        patience_s=0.001,
    ),
    Call(
        "TrainingClient.optim_step",
        _lane("optim_step"),
        lambda world, _: world.trainer.optim_step(ADAM),
        World.add_trainer,
    ),
    Call(
        "TrainingClient.train_step",
        (
            _FORWARD_BACKWARD[0],
            Stage("optim_step", "lane", "optim_step"),
            Stage("retrieve_future", "poll", "optim_step", protobuf=True),
        ),
        lambda world, _: world.trainer.train_step(DATA, "cross_entropy", ADAM),
        World.add_trainer,
    ),
    Call(
        "TrainingClient.save_state",
        _save("save_weights"),
        lambda world, number: world.trainer.save_state(f"name-{number}"),
        World.add_trainer,
    ),
    Call(
        "TrainingClient.save_weights_for_sampler",
        _save("save_weights_for_sampler"),
        lambda world, number: world.trainer.save_weights_for_sampler(f"name-{number}"),
        World.add_trainer,
    ),
    Call(
        "TrainingClient.save_weights_and_get_sampling_client",
        _lane("save_weights_for_sampler"),
        lambda world, _: world.trainer.save_weights_and_get_sampling_client(),
        World.add_trainer,
    ),
    Call(
        "TrainingClient.load_state",
        _lane("load_weights"),
        lambda world, _: world.trainer.load_state(world.path),
        World.add_checkpoint,
    ),
    Call(
        "TrainingClient.load_state_with_optimizer",
        _lane("load_weights"),
        lambda world, _: world.trainer.load_state_with_optimizer(world.path),
        World.add_checkpoint,
    ),
    Call(
        "TrainingClient.get_info",
        _ask("get_info"),
        lambda world, _: world.trainer.get_info(),
        World.add_trainer,
    ),
    Call(
        "TrainingClient.get_tokenizer",
        (_about("get_info", "ask"), _about("tokenizer", "file")),
        lambda world, _: world.trainer.get_tokenizer(),
        World.add_trainer_and_tokenizers,
        patience_s=0.001,
    ),
    # SamplingClient
    Call(
        "SamplingClient.sample",
        _SAMPLED,
        lambda world, _: world.sampler.sample(PROMPT, PARAMS),
        World.add_sampler,
    ),
    Call(
        "SamplingClient.submit_sample",
        _SAMPLED,
        lambda world, _: world.sampler.submit_sample(PROMPT, PARAMS),
        World.add_sampler,
    ),
    Call("SamplingClient.map", _SAMPLED, _mapped, World.add_sampler, "sample"),
    Call(
        "SamplingClient.sample_group",
        _SAMPLED,
        lambda world, _: world.sampler.sample_group(PROMPT, 1, PARAMS),
        World.add_sampler,
    ),
    Call(
        "SamplingClient.compute_logprobs",
        _SAMPLED,
        lambda world, _: world.sampler.compute_logprobs(PROMPT),
        World.add_sampler,
    ),
    Call(
        "SamplingClient.get_base_model",
        _ask("sampler"),
        lambda world, _: world.sampler.get_base_model(),
        World.add_snapshot,
    ),
    Call(
        "SamplingClient.get_tokenizer",
        (_about("sampler", "ask"), _about("tokenizer", "file")),
        lambda world, _: world.sampler.get_tokenizer(),
        World.add_snapshot_and_tokenizers,
        patience_s=0.001,
    ),
    # RestClient
    Call(
        "RestClient.get_training_run",
        _ask("training_run"),
        lambda world, _: world.session.rest.get_training_run(world.trainer.model_id),
        World.add_trainer,
    ),
    Call(
        "RestClient.list_training_runs",
        _ask("training_runs"),
        lambda world, _: _listed(world.session.rest.list_training_runs()),
        World.add_trainer,
    ),
    Call(
        "RestClient.list_checkpoints",
        _ask("checkpoints"),
        lambda world, _: _listed(world.session.rest.list_checkpoints()),
        World.add_checkpoint,
    ),
    Call(
        "RestClient.list_checkpoints",
        _ask("run_checkpoints"),
        lambda world, _: _listed(world.session.rest.list_checkpoints(world.trainer.model_id)),
        World.add_checkpoint,
        note="(of a run)",
    ),
    Call(
        "RestClient.delete_checkpoint_from_tinker_path",
        (_about("delete_checkpoint", "delete"),),
        lambda world, _: world.session.rest.delete_checkpoint_from_tinker_path(world.path),
        World.add_checkpoint,
    ),
    Call(
        "RestClient.get_weights_info_by_tinker_path",
        _ask("weights_info"),
        lambda world, _: world.session.rest.get_weights_info_by_tinker_path(world.path),
        World.add_checkpoint,
    ),
    # APIFuture
    Call(
        "APIFuture.result",
        _lane("optim_step"),
        lambda world, _: world.trainer.optim_step(ADAM).result(),
        World.add_trainer,
        "optim_step",
    ),
    Call("APIFuture.queue_states", _lane("optim_step"), _states, World.add_trainer, "optim_step"),
)
