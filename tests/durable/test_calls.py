"""What a caller of a durable training has: futures, losses and questions that outlive a run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import anyio
import pytest
from cancellation.scene import QUICK
from durable.program import batch
from durable.toy_training import ADAM, Ear, recovery, train, training

import tinker_async as ta
from tinker_async import CheckpointPolicy, InvalidInputError, SupersededError
from tinker_async.testing import FakeService, faults
from tinker_async.wire.messages import ClientConfigResponse

EVERY_2 = CheckpointPolicy(save_every=2)
UPLOADS = ClientConfigResponse(parallel_fwdbwd_chunks=True, custom_loss_server_side=True)


async def test_states_of_the_queue_are_told_across_a_recovery(tmp_path: Path) -> None:
    """Those of the lost run, then those of the next one, each once; the end is the result."""
    service, ear = FakeService(hold_s=0.005), Ear()

    def told(event: object) -> None:
        if isinstance(event, ta.RecoveryResumed):
            service.pause("paused_rate_limit", reason="the next run")
        ear(event)

    with anyio.fail_after(20):
        async with (
            service.session(retry=QUICK, on_event=told) as session,
            training(session, tmp_path) as trainer,
        ):
            service.pause(reason="the first run")
            waiting = trainer.forward_backward(batch(random.Random(3)), "cross_entropy")
            states = waiting.queue_states()
            first = await anext(states)
            service.faults.on("forward_backward", faults.BadJson(), times=1)
            trainer.forward(batch(random.Random(3)), "cross_entropy")
            await ear.until("Started")
            service.resume()
            last = await anext(states)
            service.resume()
            result = await waiting
            rest = [state.state async for state in states]

    assert ("paused_capacity", "the first run") == (first.state, first.reason)
    assert ("paused_rate_limit", "the next run") == (last.state, last.reason)
    assert "loss:sum" in result.metrics
    assert ["active"] == rest


@pytest.mark.usefixtures("fast_beats")
@pytest.mark.parametrize("uploads", [True, False], ids=["server", "client"])
async def test_a_traced_loss_goes_on_in_a_renewed_session(tmp_path: Path, *, uploads: bool) -> None:
    """One that was used, one that is used for the first time, twice over; traced only once."""
    pytest.importorskip("torch")
    config = UPLOADS if uploads else ClientConfigResponse(parallel_fwdbwd_chunks=True)
    service, calls = FakeService(hold_s=0.01, config=config), []

    def total(logprobs: Any) -> Any:
        calls.append(logprobs)
        return -logprobs.sum(), {"custom/total:sum": -logprobs.sum()}

    def squares(logprobs: Any) -> Any:
        calls.append(logprobs)
        return (logprobs * logprobs).sum(), {}

    data = batch(random.Random(3))
    with anyio.fail_after(20):
        async with (
            service.session(retry=QUICK) as session,
            training(session, tmp_path, checkpoints=EVERY_2) as trainer,
        ):
            used = await session.create_custom_loss(total, {"logprobs": 1})
            unused = await session.create_custom_loss(squares, {"logprobs": 1})
            first = await trainer.forward_backward_custom(data, used)
            traced = len(calls)
            for times in (1, 2):
                lost = session.session_id
                service.end_session(lost)
                await trainer.forward_backward(data, "cross_entropy")
                assert lost != session.session_id
                again = await trainer.forward_backward_custom(data, used)
                assert first.metrics == again.metrics
                if times == 2:
                    await trainer.forward_backward_custom(data, unused)
            await trainer.optim_step(ADAM)

    if uploads:
        assert traced == len(calls)
        assert 6 == service.ledger.count("create_custom_loss")


@pytest.mark.usefixtures("fast_beats")
async def test_a_loss_that_nobody_used_is_no_reason_to_fail(tmp_path: Path) -> None:
    """A server that does not take it any more can be trained on all the same."""
    pytest.importorskip("torch")
    service = FakeService(hold_s=0.01, config=UPLOADS)
    with anyio.fail_after(20):
        async with (
            service.session(retry=QUICK) as session,
            training(session, tmp_path, checkpoints=EVERY_2) as trainer,
        ):
            handle = await session.create_custom_loss(
                lambda logprobs: (logprobs.sum(), {}), {"logprobs": 1}
            )
            service.faults.on("create_custom_loss", faults.Status(400))

            def befall(step: int) -> None:
                if step == 3:
                    service.end_session(session.session_id)

            await train(trainer, 6, befall)
            with pytest.raises(InvalidInputError, match="was made in the session"):
                trainer.forward_backward_custom(batch(random.Random(3)), handle)


async def test_a_call_of_the_replaced_client_is_refused_and_told(tmp_path: Path) -> None:
    """Whatever the durable training itself asks for meanwhile is no such call."""
    service, ear = FakeService(hold_s=0.01), Ear()
    with anyio.fail_after(20):
        async with (
            service.session(retry=QUICK, on_event=ear) as session,
            training(session, tmp_path, checkpoints=EVERY_2) as trainer,
        ):
            old = trainer.client
            results = []

            def befall(step: int) -> None:
                if step == 3:
                    service.corrupt(trainer.model_id)
                results.append(trainer.forward(batch(random.Random(step)), "cross_entropy"))

            await train(trainer, 6, befall)
            assert "Superseded" not in ear.names
            with pytest.raises(SupersededError):
                old.optim_step(ADAM)

    told = ear.only(ta.RecoverySuperseded)
    assert (old.model_id, "optim_step", 1, 2) == (
        *(told.run_id, told.operation),
        *(told.generation, told.current),
    )


@pytest.mark.parametrize("noticed", [True, False])
async def test_questions_in_a_recovery_are_answered_by_the_next_run(
    tmp_path: Path, *, noticed: bool
) -> None:
    """What is in no queue waits, too: for the run, and for the session. It may be what finds out."""
    service, ear = FakeService(hold_s=0.01), Ear()
    with anyio.fail_after(20):
        async with (
            service.session(retry=QUICK, on_event=ear) as session,
            training(session, tmp_path, checkpoints=EVERY_2) as trainer,
        ):
            await train(trainer, 2)
            path = (await trainer.save_weights_for_sampler("sampler")).path
            old = trainer.model_id
            service.end_session(session.session_id)
            if noticed:
                trainer.forward(batch(random.Random(3)), "cross_entropy")
                await ear.until("Detected")
            sampler = await trainer.create_sampling_client(path)
            assert old != trainer.model_id == (await trainer.get_info()).model_id
            params = ta.SamplingParams(max_tokens=2, seed=1, stop=[])
            found = await sampler.sample(ta.ModelInput.from_ints([1, 2]), params)

    assert 1 == len(found.sequences)
    assert "Completed" in ear.names


async def test_a_question_with_an_answer_of_its_own_is_no_loss(tmp_path: Path) -> None:
    """What the server says of a path, of this run or of another one, is for who asked."""
    service, ear = FakeService(hold_s=0.01), Ear()
    service.faults.on("create_sampling_session", faults.Status(410), times=1)
    with anyio.fail_after(20):
        async with (
            service.session(retry=QUICK, on_event=ear) as session,
            training(session, tmp_path, checkpoints=EVERY_2) as trainer,
        ):
            path = (await trainer.save_weights_for_sampler("sampler")).path
            with pytest.raises(ta.GoneError):
                await trainer.create_sampling_client(path)
            with pytest.raises(ta.NotFoundError):
                await trainer.create_sampling_client(path + "-not")
            await trainer.create_sampling_client(path)

    assert [] == ear.names


async def test_a_question_to_a_run_that_is_given_up_is_an_error(tmp_path: Path) -> None:
    """It does not wait for ever, whoever asks."""
    service, ear = FakeService(hold_s=0.01), Ear()
    asked: list[ta.TinkerError] = []
    with anyio.fail_after(20):
        async with (
            service.session(retry=QUICK, on_event=ear) as session,
            anyio.create_task_group() as tasks,
        ):

            async def ask(trainer: ta.DurableTrainingClient) -> None:
                await ear.until("Detected")
                with pytest.raises(ta.RecoveryExhaustedError) as caught:
                    await trainer.get_info()
                asked.append(caught.value)

            with pytest.raises(ta.RecoveryExhaustedError) as left:
                async with training(
                    session, tmp_path, checkpoints=EVERY_2, recovery=recovery(fallback=0)
                ) as trainer:
                    tasks.start_soon(ask, trainer)
                    await train(trainer, 2)
                    await trainer.checkpoint()
                    service.faults.on("load_weights", faults.Status(404))
                    service.corrupt(trainer.model_id)
                    await trainer.forward(batch(random.Random(3)), "cross_entropy")

    assert [left.value] == asked


async def test_a_wrong_call_in_a_recovery_fails_alone(tmp_path: Path) -> None:
    """At once where it can be seen, and else its own future."""
    service, ear = FakeService(hold_s=0.01), Ear()
    with anyio.fail_after(20):
        async with (
            service.session(retry=QUICK, on_event=ear) as session,
            training(session, tmp_path, recovery=recovery(max_attempts=1)) as trainer,
        ):
            service.corrupt(trainer.model_id)
            lost = trainer.forward_backward(batch(random.Random(3)), "cross_entropy")
            await ear.until("Started")
            with pytest.raises(InvalidInputError):
                trainer.forward_backward([], "cross_entropy")
            wrong = trainer.forward_backward(batch(random.Random(3)), "no_such_loss")
            await lost
            with pytest.raises(ta.RequestFailedError):
                await wrong
            await trainer.optim_step(ADAM)

    assert "Superseded" not in ear.names


async def test_a_loss_of_another_program_is_refused_alone(tmp_path: Path) -> None:
    """In a recovery it can be seen only by the next run; that goes on."""
    pytest.importorskip("torch")
    service, ear = FakeService(hold_s=0.01, config=UPLOADS), Ear()
    with anyio.fail_after(20):
        async with (
            service.session(retry=QUICK) as other,
            service.session(retry=QUICK, on_event=ear) as session,
            training(session, tmp_path, recovery=recovery(max_attempts=1)) as trainer,
        ):
            theirs = await other.create_custom_loss(
                lambda logprobs: (logprobs.sum(), {}), {"logprobs": 1}
            )
            data = batch(random.Random(3))
            with pytest.raises(InvalidInputError):
                trainer.forward_backward_custom(data, theirs)
            service.corrupt(trainer.model_id)
            lost = trainer.forward_backward(data, "cross_entropy")
            await ear.until("Started")
            wrong = trainer.forward_backward_custom(data, theirs)
            await lost
            with pytest.raises(InvalidInputError, match="was made in the session"):
                await wrong
            await trainer.optim_step(ADAM)

    assert 1 == ear.names.count("Completed")
