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
        self.trainers: list[TrainingClient] = []
        self.sampler: SamplingClient
        self.path = ""
        self.paths: list[str] = []
        """One for each call, where it changes what it is called with."""
        self.other = ""
        """A session that is not ours."""

    async def add_trainer(self) -> None:
        """Make a training client."""
        self.trainer = await self.session.create_lora_training_client(BASE_MODEL, rank=8)

    async def add_trainer_and_torch(self) -> None:
        """The first use takes long, and virtual time does not wait for threads."""
        import torch

        torch.autograd.backward(torch.ones(1, requires_grad=True).sum())
        await self.add_trainer()

    async def add_trainer_and_tracing(self) -> None:
        """As with torch."""
        from tinker_async.loss_tracing import trace_loss

        trace_loss(lambda logprobs: (logprobs.sum(), {}), {"logprobs": 1}, "")
        await self.add_trainer()

    async def add_trainers(self) -> None:
        """Make a training client for each call."""
        for _ in range(2):
            await self.add_trainer()
            self.trainers.append(self.trainer)

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

    async def add_checkpoints(self) -> None:
        """Save a checkpoint for each call."""
        await self.add_trainer()
        self.paths = [(await self.trainer.save_state(name)).path for name in "abc"]

    async def add_public_checkpoints(self) -> None:
        """As before, for everybody."""
        await self.add_checkpoints()
        for path in self.paths:
            self.service.state.checkpoint(path).public = True

    async def add_external_checkpoint(self) -> None:
        """Save a checkpoint of files."""
        await self.add_trainer()
        model = self.service.state.models[self.trainer.model_id]
        record = self.service.state.save(model, "external_weights", "files", overwrite=False)
        self.path = str(record.path)

    async def add_session(self) -> None:
        """Let somebody else have a session, whose trace is ready."""
        session = self.service.state.open_session({})
        session.trace_asked = 1
        self.other = session.id


@functools.cache
def _load_tokenizers() -> None:
    with contextlib.suppress(ConfigError):
        _from_hub(BASE_MODEL)


def service_for(*, polls_together: bool) -> FakeService:
    """Return a server that numbers the clients of a sampler."""
    config = ClientConfigResponse(
        parallel_fwdbwd_chunks=True,
        sample_join_sampling_session=True,
        custom_loss_server_side=True,
        sample_use_retrieve_futures=polls_together,
    )
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
    polls_together: bool = False
    """Whether the server turns the session poller on."""

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


def ask(endpoint: str, *, more: int = 0) -> tuple[Stage, ...]:
    """One request, whose answer is the result; `more` follow if it goes well."""
    return (msgspec.structs.replace(about(endpoint, "ask"), more=more),)


def about(endpoint: str, kind: Kind) -> Stage:
    """One request of a kind."""
    return Stage(endpoint, kind, names_session=endpoint in {"get_info", "join_sampling_session"})


_CAPABILITIES = about("get_server_capabilities", "quiet")
_FORWARD = _lane("forward_backward", "forward", protobuf=True)
_FORWARD_BACKWARD = _lane("forward_backward", protobuf=True)
_LOADED = (
    Stage("load_weights", "make", "load_weights"),
    Stage("retrieve_future", "poll", "load_weights", of="make"),
    about("get_info", "quiet"),
)
_SAMPLED = (
    Stage("asample", "draw", "sample"),
    Stage("retrieve_future", "poll", "sample", protobuf=True, of="draw"),
)


def _save(endpoint: str) -> tuple[Stage, ...]:
    return (Stage(endpoint, "save", endpoint), Stage("retrieve_future", "poll", endpoint))


async def _mapped(world: World, number: int) -> Any:
    async with world.sampler.map([PROMPT]) as outcomes:
        async for outcome in outcomes:
            return outcome.result()
    raise AssertionError(f"no outcome of the {number}. call")


async def _custom(world: World, number: int) -> Any:
    def loss(data: Sequence[Datum], logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
        return -sum(one.sum() for one in logprobs), {"number": float(number)}

    return await world.trainer.forward_backward_custom(DATA, loss)


async def _custom_loss(world: World, number: int) -> Any:
    return await world.session.create_custom_loss(
        lambda logprobs: (logprobs.sum() * number, {}), {"logprobs": 1}
    )


async def _unloaded(world: World, number: int) -> Any:
    world.trainer = world.trainers[number - 1]
    return await world.trainer.unload_model()


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
        ask("get_server_capabilities"),
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
        (Stage("create_sampling_session", "make"), about("sampler", "quiet")),
        lambda world, _: world.session.create_sampling_client(model_path=world.path),
        World.add_checkpoint,
    ),
    Call(
        "Session.create_sampling_client_from_handle",
        ask("join_sampling_session"),
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
    Call(
        "Session.create_custom_loss",
        (
            Stage("create_custom_loss", "make"),
            Stage("retrieve_future", "poll", None, of="make"),
        ),
        _custom_loss,
        World.add_trainer_and_tracing,
        patience_s=0.001,
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
        "TrainingClient.save_weights_external",
        _save("save_weights_external"),
        lambda world, number: world.trainer.save_weights_external(f"name-{number}"),
        World.add_trainer,
    ),
    Call(
        "TrainingClient.create_sampling_client",
        (Stage("create_sampling_session", "make"), about("sampler", "quiet")),
        lambda world, _: world.trainer.create_sampling_client(world.path),
        World.add_checkpoint,
    ),
    Call(
        "TrainingClient.unload_model",
        (
            Stage("unload_model", "make", "unload_model"),
            Stage("retrieve_future", "poll", "unload_model", of="make"),
        ),
        _unloaded,
        World.add_trainers,
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
        ask("get_info"),
        lambda world, _: world.trainer.get_info(),
        World.add_trainer,
    ),
    Call(
        "TrainingClient.get_tokenizer",
        (about("get_info", "ask"), about("tokenizer", "file")),
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
        "SamplingClient.sample",
        (*_SAMPLED, Stage("retrieve_futures", "told", "sample")),
        lambda world, _: world.sampler.sample(PROMPT, PARAMS),
        World.add_sampler,
        note="(session poller)",
        polls_together=True,
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
        ask("sampler"),
        lambda world, _: world.sampler.get_base_model(),
        World.add_snapshot,
    ),
    Call(
        "SamplingClient.get_tokenizer",
        (about("sampler", "ask"), about("tokenizer", "file")),
        lambda world, _: world.sampler.get_tokenizer(),
        World.add_snapshot_and_tokenizers,
        patience_s=0.001,
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
