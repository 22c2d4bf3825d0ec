"""What cannot be right is refused here, with its place, and nothing is sent for it."""

from __future__ import annotations

from typing import Any

import anyio
import numpy as np
import pytest
from support.scripted import Call, ScriptedServer
from support.trained import Steps, broken, failure, never, trainer_of

from tinker_async import Datum, InvalidInputError, ModelInput, ResponseError, Session
from tinker_async.background.training_queue import RequestsOperation
from tinker_async.data.params import AdamParams, SamplingParams
from tinker_async.plan.checks import check_sample_length

PATH = "tinker://s1:train:0/weights/a"


def datum(length: int, weight: float = 1.0) -> Datum:
    tokens = np.arange(length)
    weights = np.full(length, weight, np.float32)
    return Datum(ModelInput.from_ints(tokens), {"target_tokens": tokens, "weights": weights})


def capable(server: ScriptedServer, length: int | None = 8) -> None:
    models = [{"model_name": "m", "max_context_length": length}]
    server.on("get_server_capabilities", lambda _: {"supported_models": models})


async def test_a_datum_beyond_the_models_context_is_refused(
    server: ScriptedServer, session: Session
) -> None:
    """In every operation that takes data; one that just fits goes through."""
    Steps(server)
    capable(server)
    server.on("forward_backward", lambda _: failure(400, "it came through"))
    with anyio.fail_after(5):
        async with session:
            trainer = await trainer_of(session)
            data = [datum(8), datum(9)]
            for call in (
                lambda: trainer.forward(data, "cross_entropy"),
                lambda: trainer.forward_backward(data, "cross_entropy"),
                lambda: trainer.train_step(data, "cross_entropy", AdamParams()),
                lambda: trainer.forward_backward_custom(data, lambda *_: None),  # type: ignore[arg-type]  # never called
            ):
                with pytest.raises(InvalidInputError, match=r"9 tokens.*takes 8") as caught:
                    call()
                assert caught.value.field == "data[1].model_input"
            assert server.seen("forward_backward") == []
            with pytest.raises(Exception, match="it came through"):
                await trainer.forward([datum(8)], "cross_entropy")


async def test_arguments_of_another_kind_are_refused_with_their_name(
    server: ScriptedServer, session: Session
) -> None:
    """A list in place of a prompt, say; nothing is sent for any of them."""
    Steps(server)
    number: Any = 5
    text: Any = "x"
    prompt = ModelInput.from_ints([1])
    with anyio.fail_after(5):
        async with session:
            trainer = await trainer_of(session)
            sampler = await session.create_sampling_client(base_model="m")
            sent = len(server.calls)
            for field, call in (
                ("base_model", lambda: session.create_lora_training_client(number)),
                ("base_model", lambda: session.create_lora_training_client("two\nlines")),
                ("base_model", lambda: session.create_sampling_client(base_model="")),
                ("model_path", lambda: session.create_sampling_client(number)),
                ("prompt", lambda: sampler.sample([1, 2])),  # type: ignore[arg-type]  # that is the point
                ("prompt", lambda: sampler.compute_logprobs(number)),
                ("sampling_params", lambda: sampler.sample(prompt, number)),
                ("num_samples", lambda: sampler.sample(prompt, None, text)),
                ("topk_prompt_logprobs", lambda: sampler.sample(prompt, topk_prompt_logprobs=text)),
                ("timeout", lambda: sampler.sample(prompt, timeout=text)),
                ("data", lambda: trainer.forward(number, "cross_entropy")),
                ("data[1]", lambda: trainer.forward([datum(3), number], "cross_entropy")),
                ("ttl_seconds", lambda: trainer.save_state("a", ttl_seconds=text)),
            ):
                with pytest.raises(InvalidInputError) as caught:
                    await call()
                assert field == caught.value.field
    assert sent == len([one for one in server.calls if "finish" not in one.path])


async def test_the_server_is_asked_once_for_all_clients(
    server: ScriptedServer, session: Session
) -> None:
    """Also when they are made at the same time."""
    Steps(server)

    async def late(_: Call) -> Any:
        while len(server.seen("retrieve_future")) < 3:
            await anyio.wait_all_tasks_blocked()
        await anyio.wait_all_tasks_blocked()
        return {"supported_models": []}

    server.on("get_server_capabilities", late)
    with anyio.fail_after(5):
        async with session:
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(session.create_lora_training_client, "m")
            await trainer_of(session)

    assert len(server.seen("get_server_capabilities")) == 1


async def test_a_checkpoints_model_is_looked_up(server: ScriptedServer, session: Session) -> None:
    """By `get_info`, which is then remembered."""
    Steps(server)
    capable(server)
    server.on("load_weights", lambda _: server.promise())
    info = {"model_id": "s1:train:0", "model_data": {"model_name": "m"}}
    server.on("get_info", lambda _: info)
    with anyio.fail_after(5):
        async with session:
            trainer = await session.create_training_client_from_state(PATH)
            with pytest.raises(InvalidInputError):
                trainer.forward([datum(9)], "cross_entropy")
            await trainer.get_info()

    assert len(server.seen("get_info")) == 1


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: failure(404),
        lambda _: failure(500),
        broken,
        lambda _: {"supported_models": "none of these"},
        lambda _: {"supported_models": [{"model_name": "m"}]},
        lambda _: {},
    ],
    ids=["404", "500", "hangs up", "nonsense", "no length", "nothing"],
)
async def test_a_server_that_does_not_tell_lengths_is_no_reason_to_fail(
    server: ScriptedServer, session: Session, answer: Any
) -> None:
    """It is asked one time, and data go as they are."""
    steps = Steps(server)
    server.on("get_server_capabilities", answer)
    server.on("forward_backward", lambda _: failure(400, "it came through"))
    with anyio.fail_after(5):
        async with session:
            for _ in range(2):
                trainer = await trainer_of(session)
            with pytest.raises(Exception, match="it came through"):
                await trainer.forward([datum(9)], "cross_entropy")

    assert len(server.seen("get_server_capabilities")) == 1
    assert steps.seq_ids == []


async def test_a_server_that_is_slow_to_tell_is_not_waited_for(
    server: ScriptedServer, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is there already."""
    monkeypatch.setattr("tinker_async.api.capabilities.PATIENCE_S", 0.05)
    Steps(server)
    server.on("get_server_capabilities", never)
    with anyio.fail_after(5):
        async with session:
            assert (await trainer_of(session)).context_length is None


async def test_checks_can_be_turned_off(server: ScriptedServer) -> None:
    """Then data go as they are, the names of checkpoints too, and nothing more is asked."""
    Steps(server)
    capable(server)
    server.on("forward_backward", lambda _: failure(400, "it came through"))
    server.on("save_weights", lambda _: failure(400, "it came through"))
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", check_inputs=False) as session:
            trainer = await trainer_of(session)
            for bad in (datum(9), datum(2, float("nan"))):
                with pytest.raises(Exception, match="it came through"):
                    await trainer.forward([bad], "cross_entropy")
            with pytest.raises(Exception, match="it came through"):
                await trainer.save_state("a/b")
            with pytest.raises(InvalidInputError, match="empty"):
                trainer.forward([], "cross_entropy")

    assert server.seen("get_server_capabilities") == []


async def test_what_cannot_be_encoded_is_its_callers_error(server: ScriptedServer) -> None:
    """Checked or not: the future fails, no number is used, and the queue goes on."""
    steps = Steps(server)
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", check_inputs=False) as session:
            trainer = await trainer_of(session)
            bad: Any = {"loss": object()}
            with pytest.raises(InvalidInputError, match="could not be encoded") as caught:
                await trainer.forward([datum(2)], "cross_entropy", bad)
            await trainer.optim_step(AdamParams())

    assert caught.value.__cause__ is not None
    assert steps.seq_ids == [1]


async def test_a_result_that_stumbles_fails_its_operation_alone(
    server: ScriptedServer, session: Session
) -> None:
    """A fault of ours in decoding or merging is a ResponseError with its cause; the rest goes on."""
    Steps(server)

    def merge(_: list[Any]) -> Any:
        raise KeyError("ours")

    with anyio.fail_after(5):
        async with session:
            trainer = await trainer_of(session)
            request = trainer._requests.optim_step(AdamParams())
            operation: RequestsOperation[Any] = RequestsOperation("op", [request], merge)
            trainer._lane.submit(operation)
            with pytest.raises(ResponseError, match="KeyError") as caught:
                await operation.future
            await trainer.optim_step(AdamParams())

    assert isinstance(caught.value.__cause__, KeyError)
    assert ("op", "r2") == (caught.value.operation, caught.value.request_id)


@pytest.mark.parametrize(
    ("prompt", "most", "longest", "field"),
    [
        (8, None, 8, None),
        (9, None, 8, "prompt"),
        (5, 3, 8, None),
        (5, 4, 8, "sampling_params.max_tokens"),
        (900, 900, None, None),
    ],
)
def test_a_prompt_and_what_follows_fit_into_the_context(
    prompt: int, most: int | None, longest: int | None, field: str | None
) -> None:
    """The field says which of the two is too long; without a known length all passes."""
    if field is None:
        check_sample_length(prompt, most, longest)
        return
    with pytest.raises(InvalidInputError) as caught:
        check_sample_length(prompt, most, longest)
    assert field == caught.value.field


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_parameters_are_finite_and_in_range(value: float) -> None:
    """When they are made."""
    for name in ("learning_rate", "eps", "weight_decay", "grad_clip_norm", "beta1", "beta2"):
        with pytest.raises(InvalidInputError) as caught:
            AdamParams(**{name: value})
        assert name == caught.value.field
    for name in ("temperature", "top_p"):
        given: dict[str, Any] = {name: value}
        with pytest.raises(InvalidInputError) as caught:
            SamplingParams(**given)
        assert name == caught.value.field
