"""Deadlines: one limit for all of a call, on every public call, and what it leaves behind."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import numpy as np
import pytest
from support.scripted import Call, ScriptedServer, promise_body
from support.trained import Steps, broken, failure, never, trainer_of

from tinker_async import (
    AdamParams,
    APIFuture,
    Datum,
    InvalidInputError,
    ModelInput,
    RequestTimeoutError,
    RetryPolicy,
    Session,
    TinkerError,
)
from tinker_async.background.deadlines import Deadlines
from tinker_async.data.results import ForwardBackwardOutput
from tinker_async.data.tensors import TensorData
from tinker_async.wire.training import encode_forward_backward_output

SOON_S = 0.05
PATH = "tinker://s1:train:0/weights/a"

CALLS: dict[str, tuple[str, Callable[[Session], Awaitable[Any]]]] = {
    "get_server_capabilities": (
        "get_server_capabilities",
        lambda session: session.get_server_capabilities(timeout=SOON_S),
    ),
    "create_lora_training_client": (
        "create_model",
        lambda session: session.create_lora_training_client("m", timeout=SOON_S),
    ),
    "create_training_client_from_state": (
        "load_weights",
        lambda session: session.create_training_client_from_state(PATH, timeout=SOON_S),
    ),
    "create_training_client_from_state_with_optimizer": (
        "load_weights",
        lambda session: session.create_training_client_from_state_with_optimizer(
            PATH, timeout=SOON_S
        ),
    ),
    "create_sampling_client": (
        "create_sampling_session",
        lambda session: session.create_sampling_client(base_model="m", timeout=SOON_S),
    ),
    "get_training_run": (
        "training_runs/x",
        lambda session: session.rest.get_training_run("x", timeout=SOON_S),
    ),
    "list_training_runs": (
        "training_runs",
        lambda session: anext(session.rest.list_training_runs(timeout=SOON_S)),
    ),
    "list_checkpoints": (
        "checkpoints",
        lambda session: anext(session.rest.list_checkpoints(timeout=SOON_S)),
    ),
    "delete_checkpoint_from_tinker_path": (
        "training_runs/s1:train:0/checkpoints/weights/a",
        lambda session: session.rest.delete_checkpoint_from_tinker_path(PATH, timeout=SOON_S),
    ),
    "get_weights_info_by_tinker_path": (
        "weights_info",
        lambda session: session.rest.get_weights_info_by_tinker_path(PATH, timeout=SOON_S),
    ),
}


@pytest.mark.parametrize("operation", CALLS)
async def test_every_coroutine_ends_within_its_timeout_and_tells_what_is_known(
    server: ScriptedServer, session: Session, operation: str
) -> None:
    """A server that accepts a request and says nothing: a typed error with the facts."""
    endpoint, call = CALLS[operation]
    server.on(endpoint, never)
    with anyio.fail_after(5):
        async with session:
            with pytest.raises(RequestTimeoutError, match=operation) as caught:
                await call(session)

    assert (operation, 1, None) == (
        caught.value.operation,
        caught.value.attempts,
        caught.value.request_id,
    )
    assert len(server.seen(endpoint)) == 1


async def test_the_clients_own_questions_end_within_their_timeout(
    server: ScriptedServer, session: Session
) -> None:
    """`get_info` and `get_tokenizer`."""
    Steps(server)
    server.on("get_info", never)
    with anyio.fail_after(5):
        async with session:
            trainer = await trainer_of(session)
            with pytest.raises(RequestTimeoutError, match="get_info"):
                await trainer.get_info(timeout=SOON_S)
            with pytest.raises(RequestTimeoutError, match="get_tokenizer"):
                await trainer.get_tokenizer(timeout=SOON_S)


async def test_the_deadline_covers_repetitions_and_polls(
    server: ScriptedServer, session: Session
) -> None:
    """A server that keeps failing is given up when the time is over, not when the policy says."""
    server.on("get_server_capabilities", lambda _: failure(503))
    server.on("retrieve_future", lambda _: failure(408))
    with anyio.fail_after(5):
        async with session:
            with pytest.raises(RequestTimeoutError):
                await session.get_server_capabilities(timeout=SOON_S)
            with pytest.raises(RequestTimeoutError, match="after it was accepted") as caught:
                await session.create_lora_training_client("m", timeout=SOON_S)

    assert caught.value.request_id == "r1"


async def test_the_sessions_default_holds_for_calls_that_say_nothing(
    server: ScriptedServer,
) -> None:
    """Coroutines and operations; None lifts it: that one outlives a later one with the default."""
    steps, release = Steps(server), anyio.Event()

    async def late(_: Call) -> Any:
        await release.wait()
        return {}

    server.on("get_info", late)
    steps.results["r2"] = steps.results["r3"] = late
    with anyio.fail_after(5):
        async with Session(server.url, "tml-x", timeout=4 * SOON_S) as session:
            trainer = await trainer_of(session)
            patient = trainer.optim_step(AdamParams(), timeout=None)
            hasty = trainer.optim_step(AdamParams())
            with pytest.raises(RequestTimeoutError):
                await trainer.get_info()
            with pytest.raises(RequestTimeoutError):
                await hasty
            assert not patient.done
            release.set()
            await patient


@pytest.mark.parametrize("limit_s", [0, -1, float("nan")])
async def test_a_timeout_that_cannot_be_is_refused_at_once(
    server: ScriptedServer, session: Session, limit_s: float
) -> None:
    """`field` is `timeout`; nothing is sent, and no number used."""
    steps = Steps(server)
    with pytest.raises(InvalidInputError) as caught:
        Session(server.url, "tml-x", timeout=limit_s)
    assert caught.value.field == "timeout"
    with anyio.fail_after(5):
        async with session:
            trainer = await trainer_of(session)
            with pytest.raises(InvalidInputError):
                await session.rest.get_training_run("x", timeout=limit_s)
            with pytest.raises(InvalidInputError):
                trainer.optim_step(AdamParams(), timeout=limit_s)
            await trainer.optim_step(AdamParams())

    assert steps.seq_ids == [1]
    assert server.seen("training_runs/x") == []


async def test_an_operation_whose_time_is_over_before_it_is_sent_is_withdrawn(
    server: ScriptedServer, session: Session
) -> None:
    """It never reaches the server, and the next one gets its number."""
    steps, release = Steps(server), anyio.Event()

    async def slow(call: Call) -> Any:
        await release.wait()
        return steps.accept(call)

    server.on("optim_step", slow)
    with anyio.fail_after(5):
        async with session:
            trainer = await trainer_of(session)
            first = trainer.optim_step(AdamParams())
            second = trainer.optim_step(AdamParams(learning_rate=0.25), timeout=SOON_S)
            third = trainer.optim_step(AdamParams(learning_rate=0.5))
            with pytest.raises(RequestTimeoutError, match="never ran") as caught:
                await second
            release.set()
            await first
            await third

    assert (0, "optim_step") == (caught.value.attempts, caught.value.operation)
    assert steps.seq_ids == [1, 2]
    rates = [call.json["adam_params"]["learning_rate"] for call in server.seen("optim_step")]
    assert rates == [1e-4, 0.5]


async def test_an_operation_whose_time_is_over_while_it_is_sent_is_delivered_all_the_same(
    server: ScriptedServer, session: Session
) -> None:
    """Its number is used up, nothing is poisoned, and its result is not asked for."""
    steps, release = Steps(server), anyio.Event()

    async def slow(call: Call) -> Any:
        await release.wait()
        return steps.accept(call)

    server.on("optim_step", slow)
    with anyio.fail_after(5):
        async with session:
            trainer = await trainer_of(session)
            first = trainer.optim_step(AdamParams(), timeout=SOON_S)
            with pytest.raises(RequestTimeoutError, match="being sent") as caught:
                await first
            release.set()
            await trainer.optim_step(AdamParams())

    assert caught.value.attempts == 1
    assert steps.seq_ids == [1, 2]
    assert (0, 1) == (steps.polls("r2"), steps.polls("r3"))


async def test_leaving_the_block_waits_for_what_is_being_sent(
    server: ScriptedServer, session: Session
) -> None:
    """Also when nobody waits for it any more."""
    steps, release = Steps(server), anyio.Event()
    said_goodbye_before: list[bool] = []

    async def slow(call: Call) -> Any:
        await release.wait()
        said_goodbye_before.append(bool(server.seen("sessions/s1/finish")))
        return steps.accept(call)

    server.on("optim_step", slow)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group, session:
            trainer = await trainer_of(session)
            first = trainer.optim_step(AdamParams(), timeout=SOON_S)
            with pytest.raises(RequestTimeoutError):
                await first

            async def let_go() -> None:
                await anyio.wait_all_tasks_blocked()
                release.set()

            group.start_soon(let_go)

    assert steps.seq_ids == [1]
    assert said_goodbye_before == [False]


async def test_an_accepted_operation_whose_time_is_over_is_no_longer_polled(
    server: ScriptedServer, session: Session
) -> None:
    """The poll under way is given up; the server goes on, and so does the queue."""
    steps = Steps(server)
    given_up = anyio.Event()

    async def hold(_: Call) -> Any:
        try:
            await anyio.sleep_forever()
        finally:
            given_up.set()

    steps.results["r2"] = hold
    with anyio.fail_after(5):
        async with session:
            trainer = await trainer_of(session)
            with pytest.raises(RequestTimeoutError, match="goes on") as caught:
                await trainer.optim_step(AdamParams(), timeout=SOON_S)
            await trainer.optim_step(AdamParams())
            assert session.statistics().lanes["s1:train:0"].unsettled == 0

    assert (caught.value.request_id, caught.value.attempts) == ("r2", 1)
    assert caught.value.silent_s is not None
    assert (1, 1) == (steps.polls("r2"), steps.polls("r3"))


async def test_a_custom_loss_whose_time_is_over_lets_the_queue_go_on(
    server: ScriptedServer, session: Session
) -> None:
    """It waits for its forward pass in its turn: the turn ends, without a gap."""
    steps = Steps(server)
    server.on("forward_backward", lambda _: server.promise())
    steps.results["r2"] = never
    datum = Datum(ModelInput.from_ints([1]), {"target_tokens": np.asarray([1])})
    with anyio.fail_after(5):
        async with session:
            trainer = await trainer_of(session)
            custom = trainer.forward_backward_custom(
                [datum], lambda _, logprobs: (logprobs[0].sum(), {}), timeout=SOON_S
            )
            step = trainer.optim_step(AdamParams())
            with pytest.raises(RequestTimeoutError, match="forward_backward_custom"):
                await custom
            await step

    assert steps.seq_ids == [2]


async def test_a_custom_loss_whose_time_is_over_in_the_users_code_sends_no_backward_pass(
    server: ScriptedServer, session: Session
) -> None:
    """The thread is let finish; what it computed is not sent, and the queue goes on."""
    steps, hurry = Steps(server), threading.Event()
    logprobs = {"logprobs": TensorData.from_numpy(np.asarray([-1.0], np.float32))}
    output = ForwardBackwardOutput("ArrayRecord", [logprobs], {"loss:sum": 1.0})
    server.on("forward_backward", lambda _: server.promise())
    steps.results["r2"] = lambda _: promise_body(encode_forward_backward_output(output))
    datum = Datum(ModelInput.from_ints([1]), {"target_tokens": np.asarray([1])})

    def loss(_: Any, found: Any) -> Any:
        hurry.wait(5)
        return found[0].sum(), {}

    with anyio.fail_after(10):
        async with session:
            trainer = await trainer_of(session)
            custom = trainer.forward_backward_custom([datum], loss, timeout=SOON_S)
            with pytest.raises(RequestTimeoutError):
                await custom
            hurry.set()
            await trainer.optim_step(AdamParams())

    assert len(server.seen("forward_backward")) == 1
    assert steps.seq_ids == [2]


async def test_an_operation_has_its_own_policy(server: ScriptedServer, session: Session) -> None:
    """Requests and polls; the session's would go on for minutes."""
    steps = Steps(server)
    once = RetryPolicy(max_attempts=1)
    steps.results["r2"] = lambda _: failure(503)
    with anyio.fail_after(5):
        async with session:
            trainer = await trainer_of(session)
            with pytest.raises(TinkerError, match="503"):
                await trainer.optim_step(AdamParams(), retry=once)
            server.on("optim_step", broken)
            with pytest.raises(TinkerError):
                await trainer.optim_step(AdamParams(), retry=once)

    assert (1, 2) == (steps.polls("r2"), len(server.seen("optim_step")))


async def test_without_deadlines_there_is_no_task_for_them(
    server: ScriptedServer, session: Session
) -> None:
    """The first one starts it, later ones share it."""
    Steps(server)

    def keepers() -> int:
        return sum("Deadlines" in (task.name or "") for task in anyio.get_running_tasks())

    with anyio.fail_after(5):
        async with session:
            trainer = await trainer_of(session)
            await trainer.optim_step(AdamParams())
            assert keepers() == 0
            await trainer.optim_step(AdamParams(), timeout=60)
            await trainer.optim_step(AdamParams(), timeout=30)
            assert keepers() == 1


async def test_futures_fail_in_the_order_of_their_deadlines() -> None:
    """Whatever the order in which they came; settled ones are left alone."""
    order: list[str] = []
    async with anyio.create_task_group() as tasks:
        deadlines = Deadlines(tasks)
        futures: dict[str, APIFuture[int]] = {}
        for name, limit_s in (("late", 60), ("soon", 0.05), ("done", 0.04), ("middle", 0.1)):
            future: APIFuture[int] = APIFuture(name)
            future.on_settled(lambda settled: order.append(settled.operation))
            deadlines.add(future, limit_s)
            futures[name] = future
            await anyio.wait_all_tasks_blocked()  # the keeper waits for the first, then for others
        futures["done"].resolve(1)
        deadlines.discard(futures["done"])
        with anyio.fail_after(5), pytest.raises(RequestTimeoutError):
            await futures["middle"]
        tasks.cancel_scope.cancel()

    assert order == ["done", "soon", "middle"]
    assert await futures["done"] == 1


async def test_a_settled_future_is_not_kept_for_its_deadline() -> None:
    """Nor its result: a deadline of an hour does not hold memory for an hour."""
    async with anyio.create_task_group() as tasks:
        deadlines = Deadlines(tasks)
        future: APIFuture[Datum] = APIFuture("op")
        result = Datum(ModelInput.from_ints([1]), {"target_tokens": np.asarray([1])})
        kept = weakref.ref(result.loss_fn_inputs["target_tokens"].data)
        deadlines.add(future, 3600)
        future.resolve(result)
        deadlines.discard(future)
        del future, result
        gc.collect()
        assert kept() is None
        for _ in range(1000):
            one: APIFuture[int] = APIFuture("op")
            deadlines.add(one, 3600)
            deadlines.discard(one)
        assert len(deadlines) < 200
        tasks.cancel_scope.cancel()
