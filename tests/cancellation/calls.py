"""Every public call, as a row of the sweep: made in a scene, with the value that it should have.

The rule: what the row returns is the same each time that the call is not cancelled. A connection is
HTTP/2's for every row; HTTP/1.1's, where a cancelled request takes its connection with it, for one
row of each way of asking, and for those whose trouble is one of connections.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import anyio
import msgspec
from cancellation.scene import DATUM, PARAMS, PROMPT, TWO_WAYS, WAYS, Scene

from tinker_async import AdamParams, Feature, SampleResponse, SampleTask
from tinker_async.testing import faults

Make: TypeAlias = Callable[[Scene], Awaitable[Any]]
Arrange: TypeAlias = Callable[[Scene], AbstractContextManager[None]]


class Row(msgspec.Struct, frozen=True):
    """A public call."""

    names: tuple[str, ...]
    """The public names that it calls: `Class.method`."""
    make: Make
    arrange: Arrange
    """What goes wrong on its way, afresh for each call."""
    variant: str = ""
    keeps: tuple[str, ...] = ()
    """Tasks that may be left, cancelled or not: the lane of a model that the row makes first."""
    polls_together: bool = False
    """Whether the server turns the session poller on."""
    ways: tuple[str, ...] = TWO_WAYS
    """Over what it is called."""
    durable: bool = False
    """Whether the scene has a durable training."""

    def __str__(self) -> str:
        return f"{self.names[0]} {self.variant}".strip()


ROWS: list[Row] = []


def nothing(_: Scene) -> AbstractContextManager[None]:
    return nullcontext()


def call(
    *names: str,
    variant: str = "",
    arrange: Arrange = nothing,
    keeps: tuple[str, ...] = (),
    ways: tuple[str, ...] = TWO_WAYS,
    durable: bool = False,
) -> Callable[[Make], Make]:
    """Add a row."""

    def add(make: Make) -> Make:
        row = Row(names, make, arrange, variant, keeps, ways=ways, durable=durable)
        ROWS.append(row)
        return make

    return add


def also(make: Make, variant: str, arrange: Arrange, *, ways: tuple[str, ...] = TWO_WAYS) -> None:
    """Add a row that meets trouble on its way."""
    first = next(row for row in ROWS if row.make is make)
    ROWS.append(msgspec.structs.replace(first, variant=variant, arrange=arrange, ways=ways))


def polled_together(make: Make) -> None:
    """Add a row with the session poller."""
    rows = [row for row in ROWS if row.make is make]
    variant = f"{rows[0].variant} with the session poller".strip()
    ROWS.append(msgspec.structs.replace(rows[0], variant=variant, polls_together=True))


def trouble(**endpoints: tuple[faults.Fault, ...]) -> Arrange:
    """Let the next requests of some endpoints fail, as long as a block lasts."""

    @contextmanager
    def arranged(scene: Scene) -> Iterator[None]:
        script = scene.service.faults
        rules = [
            script.on(endpoint, fault, occurrence=1)
            for endpoint, several in endpoints.items()
            for fault in several
        ]
        try:
            yield
        finally:
            for rule in rules:
                rule.remove()

    return arranged


def tokens(response: SampleResponse) -> list[list[int]]:
    return [sequence.tokens.tolist() for sequence in response.sequences]


# Session


@call("Session.get_server_capabilities", ways=WAYS)
async def get_server_capabilities(scene: Scene) -> Any:
    return await scene.session.get_server_capabilities()


@call("Session.create_lora_training_client", ways=WAYS)
async def create_lora_training_client(scene: Scene) -> Any:
    return type(await scene.session.create_lora_training_client("toy", rank=4))


@call("Session.create_training_client_from_state")
async def create_training_client_from_state(scene: Scene) -> Any:
    return type(await scene.session.create_training_client_from_state(scene.path))


@call("Session.create_training_client_from_state_with_optimizer")
async def create_training_client_from_state_with_optimizer(scene: Scene) -> Any:
    session = scene.session
    return type(await session.create_training_client_from_state_with_optimizer(scene.path))


@contextmanager
def cannot_create_by_load(scene: Scene) -> Iterator[None]:
    """As a server that refuses it, and a session that does not know that yet."""
    features = scene.session._open_parts().caller.features
    features.learn(Feature.CREATE_BY_LOAD, True)
    with trouble(load_weights=(faults.Status(422),))(scene):
        yield


also(create_training_client_from_state, "the older way", cannot_create_by_load)


@call("Session.create_custom_loss")
async def create_custom_loss(scene: Scene) -> Any:
    def loss(logprobs: Any) -> Any:
        return logprobs.sum() * scene.loss_number(), {}

    return (await scene.session.create_custom_loss(loss, {"logprobs": 1})).name


@call("Session.create_sampling_client")
async def create_sampling_client(scene: Scene) -> Any:
    return (await scene.session.create_sampling_client(scene.sampler_path)).model_path


@call("Session.create_sampling_client_from_handle")
async def create_sampling_client_from_handle(scene: Scene) -> Any:
    handle = scene.sampler.handle()
    return type(await scene.session.create_sampling_client_from_handle(handle))


@call(
    "Session.events",
    "EventStream.__anext__",
    arrange=trouble(get_server_capabilities=(faults.Status(503),)),
)
async def events(scene: Scene) -> Any:
    with scene.session.events() as stream:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scene.session.get_server_capabilities)
            event = await anext(stream)
        return type(event).__name__


# TrainingClient


@call("TrainingClient.forward", "APIFuture.__await__", ways=WAYS)
async def forward(scene: Scene) -> Any:
    return (await scene.trainer.forward([DATUM], "cross_entropy")).metrics


@call("TrainingClient.forward_backward", "APIFuture.result", ways=WAYS)
async def forward_backward(scene: Scene) -> Any:
    future = scene.trainer.forward_backward([DATUM], "cross_entropy")
    return (await future.result(timeout=30)).metrics


also(
    forward_backward,
    "with its answer lost",
    trouble(forward_backward=(faults.DropReply(),)),
    ways=WAYS,
)


@call("TrainingClient.forward_backward_custom")
async def forward_backward_custom(scene: Scene) -> Any:
    def loss(_: Any, logprobs: Any) -> Any:
        return -sum(one.sum() for one in logprobs), {"n": 1.0}

    return (await scene.trainer.forward_backward_custom([DATUM], loss)).metrics["n"]


@call("TrainingClient.optim_step")
async def optim_step(scene: Scene) -> Any:
    return type(await scene.trainer.optim_step(AdamParams(learning_rate=0.0)))


@call("TrainingClient.train_step")
async def train_step(scene: Scene) -> Any:
    still = AdamParams(learning_rate=0.0)
    return (await scene.trainer.train_step([DATUM], "cross_entropy", still)).metrics["loss:sum"]


@call("TrainingClient.save_state", ways=WAYS)
async def save_state(scene: Scene) -> Any:
    name = scene.new_name()
    return (await scene.trainer.save_state(name)).path.endswith(f"/{name}")


also(save_state, "with its answer lost", trouble(save_weights=(faults.DropReply(),)))


@call("TrainingClient.load_state")
async def load_state(scene: Scene) -> Any:
    return type(await scene.trainer.load_state(scene.path))


@call("TrainingClient.load_state_with_optimizer")
async def load_state_with_optimizer(scene: Scene) -> Any:
    return type(await scene.trainer.load_state_with_optimizer(scene.path))


@call("TrainingClient.save_weights_for_sampler")
async def save_weights_for_sampler(scene: Scene) -> Any:
    name = scene.new_name()
    return (await scene.trainer.save_weights_for_sampler(name)).path.endswith(f"/{name}")


@call("TrainingClient.save_weights_external")
async def save_weights_external(scene: Scene) -> Any:
    name = scene.new_name()
    return (await scene.trainer.save_weights_external(name)).path.endswith(f"/{name}")


@call("TrainingClient.create_sampling_client")
async def trainers_sampling_client(scene: Scene) -> Any:
    return (await scene.trainer.create_sampling_client(scene.sampler_path)).model_path


@call("TrainingClient.unload_model", keeps=("Lane.run",))
async def unload_model(scene: Scene) -> Any:
    trainer = await scene.session.create_lora_training_client("toy", rank=4)
    return (await trainer.unload_model()).model_id == trainer.model_id


@call("TrainingClient.save_weights_and_get_sampling_client")
async def save_weights_and_get_sampling_client(scene: Scene) -> Any:
    return type(await scene.trainer.save_weights_and_get_sampling_client())


@call("TrainingClient.get_info")
async def get_info(scene: Scene) -> Any:
    scene.trainer._info = None  # it is asked once; here each time
    return (await scene.trainer.get_info()).model_data.model_name


@call("TrainingClient.get_tokenizer")
async def get_trainers_tokenizer(scene: Scene) -> Any:
    scene.trainer._info = None
    return (await scene.trainer.get_tokenizer()).encode("ab").ids


@call(
    "APIFuture.queue_states",
    arrange=trouble(retrieve_future=(faults.QueueState("paused_capacity"),)),
)
async def queue_states(scene: Scene) -> Any:
    future = scene.trainer.forward([DATUM], "cross_entropy")
    states = [state.state async for state in future.queue_states()]
    await future
    return states


# SamplingClient


@call("SamplingClient.sample", ways=WAYS)
async def sample(scene: Scene) -> Any:
    return tokens(await scene.sampler.sample(PROMPT, PARAMS, 2))


also(sample, "after 429", trouble(asample=(faults.TooMany(0.005, form="ms"),)))
also(sample, "after 503", trouble(asample=(faults.Status(503, commit=True),)))
also(sample, "with its answer lost", trouble(asample=(faults.DropReply(),)), ways=WAYS)
also(sample, "answered late", trouble(asample=(faults.Stall(0.002, commit=True),)), ways=WAYS)
also(sample, "taken late", trouble(asample=(faults.Stall(0.002),)))
also(
    sample,
    "whose queue is paused",
    trouble(retrieve_future=(faults.QueueState("paused_capacity"),)),
)
also(sample, "whose result is lost", trouble(retrieve_future=(faults.Truncate(),)), ways=WAYS)
also(sample, "whose promise is lost", trouble(retrieve_future=(faults.Status(410),)))
also(sample, "polled again", trouble(retrieve_future=(faults.Status(503), faults.Stall(0.002))))


polled_together(sample)


@call("SamplingClient.sample", variant="within a time")
async def sample_within(scene: Scene) -> Any:
    return tokens(await scene.sampler.sample(PROMPT, PARAMS, timeout=60))


@call("SamplingClient.submit_sample", ways=WAYS)
async def submit_sample(scene: Scene) -> Any:
    return tokens(await scene.sampler.submit_sample(PROMPT, PARAMS))


polled_together(submit_sample)


@call("SamplingClient.sample_group")
async def sample_group(scene: Scene) -> Any:
    return [tokens(one) for one in await scene.counted.sample_group(PROMPT, 3, PARAMS)]


also(
    sample_group,
    "with failures",
    trouble(asample=(faults.Status(503, commit=True), faults.TooMany(0.005, form="ms"))),
)


polled_together(sample_group)


@call("SamplingClient.map", "SampleOutcomes.__anext__", ways=WAYS)
async def map_(scene: Scene) -> Any:
    requests = [SampleTask(PROMPT, PARAMS, tag=number) for number in range(3)]
    async with scene.counted.map(requests, max_in_flight=2) as outcomes:
        return sorted([(one.index, tokens(one.result())) async for one in outcomes])


also(map_, "with failures", trouble(asample=(faults.DropReply(),)))


@call("SamplingClient.compute_logprobs")
async def compute_logprobs(scene: Scene) -> Any:
    return (await scene.sampler.compute_logprobs(PROMPT))[1:].tolist()


@call("SamplingClient.get_base_model")
async def get_base_model(scene: Scene) -> Any:
    scene.sampler._base_model = None
    return await scene.sampler.get_base_model()


@call("SamplingClient.get_tokenizer")
async def get_samplers_tokenizer(scene: Scene) -> Any:
    return (await scene.sampler.get_tokenizer(timeout=60)).encode("ab").ids
