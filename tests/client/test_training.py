"""The training queue: order, numbers, refusals, losses, and what the user gets back."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
import numpy as np
import pytest
from support.scripted import Answer, Call, ScriptedServer, promise_body

from tinker_async import (
    AdamParams,
    BadRequestError,
    Datum,
    InvalidInputError,
    ModelInput,
    ModelPoisonedError,
    OperationWithdrawnError,
    ProtocolError,
    RequestFailedError,
    ResponseError,
    RetryPolicy,
    Session,
    SessionClosedError,
    TrainingClient,
)
from tinker_async.data.results import ForwardBackwardOutput
from tinker_async.data.tensors import TensorData
from tinker_async.testing import FakeService
from tinker_async.wire.training import decode_forward_backward, encode_forward_backward_output


def datum(*tokens: int) -> Datum:
    return Datum(
        ModelInput.from_ints(tokens),
        {"target_tokens": np.asarray(tokens, np.int64), "weights": np.ones(len(tokens))},
    )


class Trained:
    """Makes the scripted server keep promises of training requests, and notes their order."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.order: list[tuple[str, int]] = []
        self.results: dict[str, Any] = {}
        server.on("forward_backward", self.forward_backward)
        server.on("optim_step", self.optim_step)
        server.on("retrieve_future", self.retrieve)

    def forward_backward(self, call: Call) -> Any:
        body = decode_forward_backward(call.body)
        self.order.append(("forward" if body.forward_only else "forward_backward", body.seq_id))
        promise = self.server.promise()
        self.results[promise["request_id"]] = ForwardBackwardOutput(
            loss_fn_output_type="ArrayRecord",
            loss_fn_outputs=[
                {"logprobs": TensorData.from_numpy(-item.model_input.to_numpy().astype(np.float32))}
                for item in body.data
            ],
            metrics={
                "loss:sum": float(
                    sum(
                        (
                            item.model_input.to_numpy() * item.loss_fn_inputs["weights"].to_numpy()
                        ).sum()
                        for item in body.data
                    )
                )
            },
        )
        return promise

    def optim_step(self, call: Call) -> Any:
        self.order.append(("optim_step", call.json["seq_id"]))
        promise = self.server.promise()
        self.results[promise["request_id"]] = {"metrics": {"lr": 0.5}}
        return promise

    def retrieve(self, call: Call) -> Any:
        result = self.results.get(call.json["request_id"], {"model_id": "s1:train:0"})
        if isinstance(result, ForwardBackwardOutput):
            assert "application/x-protobuf" in call.headers["accept"]
            return promise_body(encode_forward_backward_output(result))
        return result


@pytest.fixture
def trained(server: ScriptedServer) -> Trained:
    """The scripted server, training."""
    return Trained(server)


async def create(session: Session) -> TrainingClient:
    return await session.create_lora_training_client("m", rank=4, seed=7)


async def test_operations_reach_the_server_in_call_order_with_gapless_numbers(
    session: Session, trained: Trained
) -> None:
    """Nothing is awaited in between; results belong to their calls."""
    with anyio.fail_after(5):
        async with session:
            trainer = await create(session)
            futures: list[Any] = []
            for n in range(1, 6):
                futures.append(trainer.forward_backward([datum(n)], "cross_entropy"))
                futures.append(trainer.optim_step(AdamParams()))
            assert not any(future.done for future in futures)
            losses = [(await f).metrics["loss:sum"] for f in futures[::2]]

    assert losses == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert list(range(1, 11)) == [seq for _, seq in trained.order]
    assert [name for name, _ in trained.order] == ["forward_backward", "optim_step"] * 5


async def test_the_model_is_created_as_asked(session: Session, trained: Trained) -> None:
    """LoRA settings travel; fields at their default that older servers lack do not."""
    with anyio.fail_after(5):
        async with session:
            trainer = await create(session)
            assert trainer.model_id == "s1:train:0"

    (call,) = trained.server.seen("create_model")
    assert call.json == {
        "type": "create_model",
        "session_id": "s1",
        "model_seq_id": 0,
        "base_model": "m",
        "lora_config": {"rank": 4, "seed": 7},
    }


async def test_a_large_batch_is_cut_and_its_results_merged(
    session: Session, trained: Trained
) -> None:
    """By the server's limits, in order, as one result."""
    trained.server.on("client/config", lambda _: {"fwdbwd_max_chunk_len": 2})
    with anyio.fail_after(5):
        async with session:
            trainer = await create(session)
            output = await trainer.forward([datum(n) for n in (1, 2, 3, 4, 5)], "cross_entropy")

    assert trained.order == [("forward", 1), ("forward", 2), ("forward", 3)]
    assert output.metrics["loss:sum"] == 15.0
    assert [item["logprobs"].tolist() for item in output.loss_fn_outputs] == [
        [-1.0],
        [-2.0],
        [-3.0],
        [-4.0],
        [-5.0],
    ]


async def test_a_train_step_is_one_operation(session: Session, trained: Trained) -> None:
    """Both requests, one result, nothing in between."""
    with anyio.fail_after(5):
        async with session:
            trainer = await create(session)
            step = await trainer.train_step([datum(3)], "cross_entropy", AdamParams())

    assert step.metrics == {"loss:sum": 3.0, "lr": 0.5}
    assert trained.order == [("forward_backward", 1), ("optim_step", 2)]


async def test_a_withdrawn_operation_was_never_sent_and_leaves_no_gap(
    session: Session, trained: Trained
) -> None:
    """The next operation gets its number."""
    release = anyio.Event()

    async def slow(call: Call) -> Any:
        await release.wait()
        return trained.forward_backward(call)

    trained.server.on("forward_backward", slow)
    with anyio.fail_after(5):
        async with session:
            trainer = await create(session)
            first = trainer.forward_backward([datum(1)], "cross_entropy")
            second = trainer.optim_step(AdamParams())
            third = trainer.optim_step(AdamParams(learning_rate=0.25))
            await anyio.wait_all_tasks_blocked()
            assert not first.cancel()
            assert second.cancel()
            release.set()
            await third
            with pytest.raises(OperationWithdrawnError):
                await second

    assert trained.order == [("forward_backward", 1), ("optim_step", 2)]
    (call,) = trained.server.seen("optim_step")
    assert call.json["adam_params"]["learning_rate"] == 0.25


async def test_a_refused_request_gives_its_number_to_the_next(
    session: Session, trained: Trained
) -> None:
    """The server never took it, so nothing is missing from its order."""
    refused: list[Call] = []

    def refuse_first(call: Call) -> Any:
        if not refused:
            refused.append(call)
            return 400, {}, b'{"detail":"loss_fn: unknown"}'
        return trained.forward_backward(call)

    trained.server.on("forward_backward", refuse_first)
    with anyio.fail_after(5):
        async with session:
            trainer = await create(session)
            bad = trainer.forward_backward([datum(1)], "no_such_loss")
            good = trainer.forward_backward([datum(2)], "cross_entropy")
            with pytest.raises(BadRequestError, match="loss_fn: unknown"):
                await bad
            assert (await good).metrics["loss:sum"] == 2.0

    assert trained.order == [("forward_backward", 1)]


async def test_a_repeated_request_keeps_its_number(server: ScriptedServer) -> None:
    """After a 503 the same number is sent again, with the same body."""
    trained = Trained(server)
    attempts: list[Call] = []

    def fail_once(call: Call) -> Any:
        attempts.append(call)
        return (503, {}, b"busy") if len(attempts) == 1 else trained.optim_step(call)

    server.on("optim_step", fail_once)
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=RetryPolicy(base_s=0.001)) as session:
            trainer = await create(session)
            await trainer.optim_step(AdamParams())

    assert len(attempts) == 2
    assert attempts[0].body == attempts[1].body


async def test_a_lost_request_poisons_the_model_and_only_it(server: ScriptedServer) -> None:
    """Delivery in doubt: later operations fail at once, naming the first loss."""
    trained = Trained(server)

    async def vanish(_: Call) -> Answer:
        raise anyio.EndOfStream

    server.on("optim_step", vanish)
    policy = RetryPolicy(max_attempts=2, base_s=0.001)
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", retry=policy) as session:
            trainer, other = await create(session), await create(session)
            lost = trainer.optim_step(AdamParams())
            queued = trainer.forward_backward([datum(1)], "cross_entropy")
            with pytest.raises(ProtocolError) as first:
                await lost
            with pytest.raises(ModelPoisonedError) as caught:
                await queued
            assert first.value is caught.value.__cause__
            with pytest.raises(ModelPoisonedError, match="checkpoint"):
                trainer.forward_backward([datum(1)], "cross_entropy")
            await other.forward_backward([datum(1)], "cross_entropy")

    assert len(server.seen("optim_step")) == 2
    assert trained.order == [("forward_backward", 1)]


async def test_an_unreadable_promise_poisons_the_model(session: Session, trained: Trained) -> None:
    """The server took the request: its number must not be given to another."""
    trained.server.on("optim_step", lambda _: (200, {}, b"<html>"))
    with anyio.fail_after(5):
        async with session:
            trainer = await create(session)
            with pytest.raises(ResponseError, match="optim_step"):
                await trainer.optim_step(AdamParams())
            with pytest.raises(ModelPoisonedError):
                trainer.optim_step(AdamParams())

    assert 1 == len(trained.server.seen("optim_step"))


async def test_a_failed_operation_is_typed_and_later_ones_go_on(
    session: Session, trained: Trained
) -> None:
    """The server's text and category; the session survives."""
    with anyio.fail_after(5):
        async with session:
            trainer = await create(session)

            def retrieve(call: Call) -> Any:
                if call.json["request_id"] == "r2":
                    return {"error": "no gradients", "category": "user"}
                return trained.retrieve(call)

            trained.server.on("retrieve_future", retrieve)
            failing = trainer.optim_step(AdamParams())
            working = trainer.forward_backward([datum(1)], "cross_entropy")
            with pytest.raises(RequestFailedError, match="no gradients") as caught:
                await failing
            await working

    assert (caught.value.category, caught.value.request_id) == ("user", "r2")


async def test_a_failure_nobody_awaited_leaves_the_block(
    session: Session, trained: Trained
) -> None:
    """Errors never pass silently; awaited ones are not raised again."""
    trained.server.on("optim_step", lambda _: (400, {}, b'{"detail":"bad"}'))
    with anyio.fail_after(5), pytest.raises(BadRequestError, match="bad"):
        async with session:
            trainer = await create(session)
            trainer.optim_step(AdamParams())


async def test_a_failing_custom_loss_nobody_awaited_leaves_the_block(
    session: Session, trained: Trained
) -> None:
    """Also what is none of our errors, and several as a group."""

    def loss(data: Any, logprobs: Any) -> Any:
        raise KeyError("mine")

    with anyio.fail_after(10), pytest.raises(ExceptionGroup) as caught:
        async with session:
            trainer = await create(session)
            for _ in range(2):
                trainer.forward_backward_custom([datum(1)], loss)
    assert [KeyError, KeyError] == [type(error) for error in caught.value.exceptions]


async def test_leaving_the_block_waits_for_what_was_queued(
    session: Session, trained: Trained
) -> None:
    """A normal end loses nothing."""
    with anyio.fail_after(5):
        async with session:
            trainer = await create(session)
            futures = [trainer.optim_step(AdamParams()) for _ in range(3)]
    assert all(future.done for future in futures)
    assert len(trained.order) == 3


async def test_an_exception_in_the_block_ends_what_was_queued(
    session: Session, trained: Trained
) -> None:
    """Waiters outside the block are released; nothing more can be queued."""
    with anyio.fail_after(5):
        with pytest.raises(ValueError, match="mine"):
            async with session:
                trainer = await create(session)
                trained.server.on("retrieve_future", lambda _: anyio.sleep_forever())
                future = trainer.optim_step(AdamParams())
                await anyio.wait_all_tasks_blocked()
                raise ValueError("mine")
        with pytest.raises(SessionClosedError):
            await future
        with pytest.raises(SessionClosedError):
            trainer.optim_step(AdamParams())


async def test_bad_input_raises_at_the_call_and_sends_nothing(
    session: Session, trained: Trained
) -> None:
    """The field is named; the queue is untouched."""
    with anyio.fail_after(5):
        async with session:
            trainer = await create(session)
            with pytest.raises(InvalidInputError) as caught:
                trainer.forward_backward([], "cross_entropy")
            assert caught.value.field == "data"
            with pytest.raises(InvalidInputError):
                trainer.save_state("a/b")
            with pytest.raises(InvalidInputError):
                trainer.save_state("a", ttl_seconds=5)
            with pytest.raises(InvalidInputError, match="save_state"):
                trainer.load_state("tinker://r/sampler_weights/x")
            with pytest.raises(InvalidInputError, match="tinker://"):
                await session.create_training_client_from_state("/tmp/x")
            with pytest.raises(InvalidInputError):
                await session.create_lora_training_client("m", rank=0)

    assert trained.order == []


async def test_restoring_falls_back_to_create_and_load_on_older_servers(
    session: Session, trained: Trained
) -> None:
    """Where creation by load is refused: look up, create, load under number 1."""

    def load(call: Call) -> Any:
        if "session_id" in call.json:
            return 422, {}, b'{"detail":"model_id: field required"}'
        trained.order.append(("load", call.json["seq_id"]))
        return trained.server.promise()

    trained.server.on("load_weights", load)
    trained.server.on(
        "weights_info",
        lambda _: {"base_model": "old", "is_lora": True, "lora_rank": 8, "train_mlp": False},
    )
    path = "tinker://run/weights/a"
    with anyio.fail_after(5):
        async with session:
            trainer = await session.create_training_client_from_state_with_optimizer(path)
            await trainer.optim_step(AdamParams())

    (created,) = trained.server.seen("create_model")
    assert created.json["lora_config"] == {"rank": 8, "train_mlp": False}
    first, second = trained.server.seen("load_weights")
    assert {
        "type": "load_weights",
        "path": path,
        "optimizer": True,
        "session_id": "s1",
        "model_seq_id": 0,
    } == first.json
    assert (second.json["model_id"], second.json["optimizer"]) == ("s1:train:0", True)
    assert trained.order == [("load", 1), ("optim_step", 2)]


async def test_a_custom_loss_trains_on_its_own_gradient(session: Session, trained: Trained) -> None:
    """Forward, the loss here, backward with minus its gradient; later operations wait."""
    import torch

    sent: list[Any] = []
    plain = trained.forward_backward

    def record(call: Call) -> Any:
        sent.append(decode_forward_backward(call.body))
        return plain(call)

    trained.server.on("forward_backward", record)

    def loss(data: Any, logprobs: list[torch.Tensor]) -> Any:
        assert len(data) == 2
        return sum((p * p).sum() for p in logprobs), {"mine": 5}

    with anyio.fail_after(10):
        async with session:
            trainer = await create(session)
            custom = trainer.forward_backward_custom([datum(1, 2), datum(3)], loss)
            optim = trainer.optim_step(AdamParams())
            output = await custom
            await optim

    assert trained.order == [("forward", 1), ("forward_backward", 2), ("optim_step", 3)]
    zeros = [item.loss_fn_inputs["weights"].tolist() for item in sent[0].data]
    assert zeros == [[0.0, 0.0], [0.0]]
    weights = [item.loss_fn_inputs["weights"].tolist() for item in sent[1].data]
    assert weights == [[2.0, 4.0], [6.0]]  # p = -token, d(p^2)/dp = 2p, w = -2p
    assert output.metrics == {"loss:sum": 14.0, "surrogate_loss:sum": 28.0, "mine": 5.0}


async def test_a_failing_custom_loss_leaves_as_itself_and_no_gap(
    session: Session, trained: Trained
) -> None:
    """The user's exception reaches the one who awaits; training goes on."""

    def loss(data: Any, logprobs: Any) -> Any:
        raise ZeroDivisionError("mine")

    def constant(data: Any, logprobs: Any) -> Any:
        return logprobs[0].detach().sum(), {}

    with anyio.fail_after(10):
        async with session:
            trainer = await create(session)
            with pytest.raises(ZeroDivisionError, match="mine"):
                await trainer.forward_backward_custom([datum(1)], loss)
            with pytest.raises(InvalidInputError, match="scalar"):
                await trainer.forward_backward_custom([datum(1)], constant)
            await trainer.optim_step(AdamParams())

    assert trained.order == [("forward", 1), ("forward", 2), ("optim_step", 3)]


async def test_saving_and_snapshots_are_operations_of_the_queue(
    session: Session, trained: Trained
) -> None:
    """Names and numbers travel; samplers share one counter in the session."""
    answers = {
        "save_weights": {"path": "tinker://s1:train:0/weights/a"},
        "save_weights_for_sampler": {"path": "tinker://s1:train:0/sampler_weights/b"},
    }

    def save(call: Call) -> Any:
        promise = trained.server.promise()
        name = call.path.rpartition("/")[2]
        trained.order.append((name, call.json["seq_id"]))
        ephemeral = "sampling_session_seq_id" in call.json
        trained.results[promise["request_id"]] = (
            {"sampling_session_id": f"s1:sample:{call.json['sampling_session_seq_id']}"}
            if ephemeral
            else answers[name]
        )
        return promise

    trained.server.on("save_weights", save)
    trained.server.on("save_weights_for_sampler", save)
    with anyio.fail_after(5):
        async with session:
            trainer = await create(session)
            saved = trainer.save_state("a", overwrite=True, ttl_seconds=3600)
            snapshot = trainer.save_weights_and_get_sampling_client()
            named = trainer.save_weights_for_sampler("b", user_metadata={"k": "v"})
            again = trainer.save_weights_and_get_sampling_client()
            assert answers["save_weights"]["path"] == (await saved).path
            assert answers["save_weights_for_sampler"]["path"] == (await named).path
            assert (await snapshot).sampling_session_id == "s1:sample:0"
            assert (await again).sampling_session_id == "s1:sample:1"

    assert [seq for _, seq in trained.order] == [1, 2, 3, 4]
    (state,) = trained.server.seen("save_weights")
    assert state.json == {
        "type": "save_weights",
        "model_id": "s1:train:0",
        "path": "a",
        "seq_id": 1,
        "ttl_seconds": 3600,
        "overwrite": True,
    }
    _, body, _ = trained.server.seen("save_weights_for_sampler")
    assert (body.json["path"], body.json["user_metadata"]) == ("b", {"k": "v"})


async def test_json_results_are_read_too(session: Session, trained: Trained) -> None:
    """A server that ignores Accept is understood."""

    def retrieve(call: Call) -> Any:
        if call.json["request_id"] == "r1":
            return {"model_id": "s1:train:0"}
        return {
            "loss_fn_output_type": "scalar",
            "loss_fn_outputs": [{"logprobs": {"data": [-1.5], "dtype": "float32", "shape": [1]}}],
            "metrics": {"total_loss:sum": 2.0},
        }

    trained.server.on("retrieve_future", retrieve)
    with anyio.fail_after(5):
        async with session:
            trainer = await create(session)
            output = await trainer.forward([datum(1)], "cross_entropy")

    assert output.loss_fn_outputs[0]["logprobs"].tolist() == [-1.5]
    assert output.metrics == {"total_loss:sum": 2.0}


async def test_not_yet_answers_are_polled_again_and_show_the_queue_state(
    session: Session, trained: Trained
) -> None:
    """try_again, 408 and 500 are not the end; the future tells what the server said."""
    answers: list[Any] = [
        (408, {}, b""),
        {"type": "try_again", "request_id": "r2", "queue_state": "paused_capacity"},
        (500, {"retry-after-ms": "1"}, b"oops"),
        (408, {}, b'{"queue_state": "paused_rate_limit", "queue_state_reason": "busy"}'),
    ]

    def retrieve(call: Call) -> Any:
        if call.json["request_id"] == "r2" and answers:
            return answers.pop(0)
        return trained.retrieve(call)

    trained.server.on("retrieve_future", retrieve)
    with anyio.fail_after(5):
        async with session:
            trainer = await create(session)
            future = trainer.optim_step(AdamParams())
            assert (await future).metrics == {"lr": 0.5}

    assert answers == []
    assert (future.queue_state, future.queue_state_reason) == ("active", None)


@pytest.mark.parametrize("status", [400, 403, 409, 413, 422])
async def test_servers_that_fail_operations_by_status_are_understood(
    session: Session, trained: Trained, status: int
) -> None:
    """The detail becomes the error's text; it is not asked again."""

    def retrieve(call: Call) -> Any:
        if call.json["request_id"] == "r1":
            return {"model_id": "s1:train:0"}
        return status, {}, msgspec.json.encode({"detail": "rank too large"})

    trained.server.on("retrieve_future", retrieve)
    with anyio.fail_after(5):
        async with session:
            trainer = await create(session)
            with pytest.raises(RequestFailedError, match="rank too large"):
                await trainer.optim_step(AdamParams())

    assert len(trained.server.seen("retrieve_future")) == 2


async def test_a_large_result_is_sent_when_it_has_room() -> None:
    """The server says how large it is, and sends it when it is asked for again."""
    datum = Datum(ModelInput.from_ints([5, 6]), {"target_tokens": [6, 7]})
    results, polls = [], []
    for inline_bytes in (None, 1):
        service = FakeService(inline_bytes=inline_bytes)
        with anyio.fail_after(10):
            async with service.session() as session:
                trainer = await session.create_lora_training_client("toy", rank=4)
                before = service.ledger.count("retrieve_future")
                results.append((await trainer.forward_backward([datum], "cross_entropy")).metrics)
                polls.append(service.ledger.count("retrieve_future") - before)

    assert results[0] == results[1]
    assert [1, 2] == polls
