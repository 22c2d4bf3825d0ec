"""The main job on the embedded engine: train, sample, save, restore."""

from __future__ import annotations

from typing import Any

import anyio
import numpy as np
import pytest
import torch
from support.embedded_engine import Engine

from tinker_async import (
    AdamParams,
    BadRequestError,
    Datum,
    InvalidInputError,
    ModelInput,
    NotFoundError,
    RequestFailedError,
    SamplingParams,
    Session,
    TensorData,
    TrainingClient,
)

SECRET = list(range(40, 56))
ADAM = AdamParams(learning_rate=1e-2)


def datum(tokens: list[int], **inputs: Any) -> Datum:
    return Datum(ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:], **inputs})


async def memorise(trainer: TrainingClient, steps: int = 40) -> list[float]:
    data = [datum(SECRET)]
    results = [trainer.train_step(data, "cross_entropy", ADAM) for _ in range(steps)]
    return [(await result).metrics["loss:sum"] for result in results]


async def recall(session: Session, sampler: Any) -> list[int]:
    response = await sampler.sample(
        ModelInput.from_ints(SECRET[:1]),
        SamplingParams(max_tokens=len(SECRET) - 1, temperature=0, stop=[]),
    )
    return [int(token) for token in response.sequences[0].tokens]


@pytest.mark.parametrize("http2", [True, False], ids=["h2c", "http1"])
async def test_a_sequence_is_memorised_recalled_saved_and_restored(
    engine: Engine, http2: bool
) -> None:
    """Losses fall, greedy sampling recites, checkpoints continue bit for bit."""
    with anyio.fail_after(120):
        async with engine.session(http2=http2) as session:
            trainer = await session.create_lora_training_client(engine.model, rank=8, seed=1)
            losses = await memorise(trainer)
            assert losses[-1] < 0.1 * losses[0]

            snapshot = await trainer.save_weights_and_get_sampling_client()
            assert SECRET[1:] == await recall(session, snapshot)

            state = await trainer.save_state("main", overwrite=True)
            weights = await trainer.save_weights_for_sampler("main-s")
            onward = await memorise(trainer, 3)

            restored = await session.create_training_client_from_state_with_optimizer(state.path)
            assert onward == await memorise(restored, 3)
            fresh = await session.create_training_client_from_state(state.path)
            first, *later = await memorise(fresh, 3)
            assert first == onward[0]
            assert later != onward[1:]

            assert SECRET[1:] == await recall(session, snapshot)
            from_path = await session.create_sampling_client(model_path=weights.path)
            assert SECRET[1:] == await recall(session, from_path)
            assert engine.model == await from_path.get_base_model()


async def test_sampler_and_trainer_agree(engine: Engine) -> None:
    """Log-probs of sampled tokens, of the prompt, and of the trainer's forward pass."""
    with anyio.fail_after(60):
        async with engine.session() as session:
            trainer = await session.create_lora_training_client(engine.model, rank=8, seed=2)
            await memorise(trainer, 10)
            sampler = await trainer.save_weights_and_get_sampling_client()
            prompt = ModelInput.from_ints([5, 6, 7])
            response = await sampler.sample(
                prompt,
                SamplingParams(max_tokens=20, seed=3, stop=[]),
                num_samples=3,
                topk_sample_logprobs=2,
            )
            for sequence in response.sequences:
                tokens = [5, 6, 7, *sequence.tokens.tolist()]
                output = await trainer.forward([datum(tokens)], "cross_entropy")
                trained = output.loss_fn_outputs[0]["logprobs"].to_numpy()
                assert sequence.logprobs is not None
                np.testing.assert_allclose(trained[2:], sequence.logprobs, atol=1e-3)
                computed = await sampler.compute_logprobs(ModelInput.from_ints(tokens))
                assert np.isnan(computed[0])
                np.testing.assert_allclose(trained, computed[1:], atol=1e-3)
                assert sequence.topk_logprobs is not None
                assert sequence.topk_logprobs.token_ids.shape == (20, 2)


async def test_seeds_repeat_and_differ_by_sample(engine: Engine) -> None:
    """Sample i of a request uses seed + i."""
    with anyio.fail_after(60):
        async with engine.session() as session:
            sampler = await session.create_sampling_client(base_model=engine.model)

            async def draw(seed: int, count: int) -> list[list[int]]:
                response = await sampler.sample(
                    ModelInput.from_ints([9]),
                    SamplingParams(max_tokens=12, seed=seed, stop=[]),
                    num_samples=count,
                )
                return [sequence.tokens.tolist() for sequence in response.sequences]

            three = await draw(100, 3)
            assert three == await draw(100, 3)
            assert [three[1]] == await draw(101, 1)
            assert three[0] != three[1]


async def test_top_k_prompt_log_probs_are_ordered_and_include_the_prompt(engine: Engine) -> None:
    """Position 0 has none; others have k pairs, best first."""
    with anyio.fail_after(60):
        async with engine.session() as session:
            sampler = await session.create_sampling_client(base_model=engine.model)
            response = await sampler.sample(
                ModelInput.from_ints([1, 2, 3]),
                SamplingParams(max_tokens=1),
                include_prompt_logprobs=True,
                topk_prompt_logprobs=259,
            )
    assert response.prompt_logprobs is not None
    assert response.topk_prompt_logprobs is not None
    none, second, third = response.topk_prompt_logprobs.tolist()
    assert none is None
    for row, token, value in ((second, 2, 1), (third, 3, 2)):
        assert row is not None
        logprobs = [pair[1] for pair in row]
        assert sorted(logprobs, reverse=True) == logprobs
        assert dict(row)[token] == pytest.approx(response.prompt_logprobs[value], abs=1e-5)


def _minus_sum(_: Any, logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    return -torch.cat(logprobs).sum(), {}


async def test_a_custom_loss_equals_the_built_in_one(engine: Engine) -> None:
    """-sum(p) written in torch has the gradient of cross_entropy: the same next weights."""
    with anyio.fail_after(60):
        async with engine.session() as session:
            losses = []
            for custom in (False, True):
                trainer = await session.create_lora_training_client(engine.model, rank=4, seed=5)
                for _ in range(2):
                    if custom:
                        trainer.forward_backward_custom([datum(SECRET)], _minus_sum)
                    else:
                        trainer.forward_backward([datum(SECRET)], "cross_entropy")
                    trainer.optim_step(ADAM)
                output = await trainer.forward([datum(SECRET)], "cross_entropy")
                losses.append(output.metrics["loss:sum"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


async def test_distributions_as_targets_travel_dense_and_sparse(engine: Engine) -> None:
    """(N, K) targets with all weight on the first choice are the plain loss, CSR or not."""
    n, k = len(SECRET) - 1, 8
    targets = np.zeros((n, k), np.int64)
    targets[:, 0] = SECRET[1:]
    weights = np.zeros((n, k), np.float32)
    weights[:, 0] = 1
    dense = {
        "target_tokens": TensorData(data=targets, dtype="int64", shape=(n, k)),
        "weights": TensorData(data=weights, dtype="float32", shape=(n, k)),
    }
    sparse = datum(SECRET, target_tokens=targets, weights=weights)
    assert sparse.loss_fn_inputs["target_tokens"].is_sparse
    with anyio.fail_after(60):
        async with engine.session() as session:
            trainer = await session.create_lora_training_client(engine.model, rank=4)
            plain = await trainer.forward([datum(SECRET)], "cross_entropy")
            for case in (sparse, datum(SECRET, **dense)):
                output = await trainer.forward([case], "cross_entropy")
                assert plain.metrics["loss:sum"] == pytest.approx(output.metrics["loss:sum"])
                assert (n, k) == output.loss_fn_outputs[0]["logprobs"].dense_shape


async def test_checkpoints_are_listed_and_deleted(engine: Engine) -> None:
    """By run and by account; a deleted one cannot be loaded."""
    with anyio.fail_after(60):
        async with engine.session() as session:
            trainer = await session.create_lora_training_client(engine.model, rank=4)
            saved = await trainer.save_state("listed", user_metadata={"k": "v"})
            await trainer.save_weights_for_sampler("listed")
            mine = [item async for item in session.rest.list_checkpoints(trainer.model_id)]
            assert {"training", "sampler"} == {item.checkpoint_type for item in mine}
            everything = [item.tinker_path async for item in session.rest.list_checkpoints()]
            assert saved.path in everything
            info = await session.rest.get_weights_info_by_tinker_path(saved.path)
            assert (engine.model, 4) == (info.base_model, info.lora_rank)
            assert not (await session.rest.get_training_run(trainer.model_id)).corrupted

            await session.rest.delete_checkpoint_from_tinker_path(saved.path)
            with pytest.raises(NotFoundError):
                await session.rest.delete_checkpoint_from_tinker_path(saved.path)
            with pytest.raises((NotFoundError, RequestFailedError, BadRequestError)):
                await session.create_training_client_from_state(saved.path)


async def test_the_tokenizer_comes_from_the_server(engine: Engine) -> None:
    """Bytes to ids and back, without a hub."""
    with anyio.fail_after(60):
        async with engine.session() as session:
            trainer = await session.create_lora_training_client(engine.model, rank=1)
            tokenizer = await trainer.get_tokenizer()
            ids = tokenizer.encode("grüß").ids
            assert tokenizer.decode(ids) == "grüß"
            sampler = await session.create_sampling_client(base_model=engine.model)
            assert ids == (await sampler.get_tokenizer()).encode("grüß").ids


BAD_DATA: list[tuple[str, Datum, str, Any, str]] = [
    ("token out of range", datum([1, 2, 99_999]), "cross_entropy", None, "target_tokens"),
    ("input out of range", datum([99_999, 2, 3]), "cross_entropy", None, "model_input"),
    ("beyond the context", datum([1] * 2051), "cross_entropy", None, "2048"),
    ("unknown loss", datum([1, 2]), "no_such_loss", None, "no_such_loss"),
]


@pytest.mark.parametrize(
    ("data", "loss_fn", "config", "says"),
    [case[1:] for case in BAD_DATA],
    ids=[case[0] for case in BAD_DATA],
)
async def test_bad_data_is_the_users_error_and_training_goes_on(
    engine: Engine, data: Datum, loss_fn: str, config: Any, says: str
) -> None:
    """Typed, naming the field; the model's gradients are untouched. The server's own checks."""
    with anyio.fail_after(60):
        async with engine.session(check_inputs=False) as session:
            trainer = await session.create_lora_training_client(engine.model, rank=4, seed=1)
            before = await trainer.forward([datum(SECRET)], "cross_entropy")
            bad = trainer.forward_backward([data], loss_fn, config)
            with pytest.raises((RequestFailedError, BadRequestError), match=says) as caught:
                await bad
            assert getattr(caught.value, "category", "user") == "user"
            after = await trainer.forward([datum(SECRET)], "cross_entropy")
            assert before.metrics == after.metrics


async def test_what_the_server_does_not_have_is_named(engine: Engine) -> None:
    """Base model, checkpoint, kind of checkpoint, prompt."""
    with anyio.fail_after(60):
        async with engine.session() as session:
            with pytest.raises(BadRequestError, match=engine.model):
                await session.create_lora_training_client("gpt-17")
            with pytest.raises((NotFoundError, RequestFailedError, BadRequestError)):
                await session.create_training_client_from_state("tinker://nobody/weights/x")
            with pytest.raises((NotFoundError, BadRequestError)):
                await session.create_sampling_client(model_path="tinker://nobody/sampler_weights/x")
            with pytest.raises(InvalidInputError, match="save_state"):
                await session.create_training_client_from_state("tinker://r/sampler_weights/x")
            sampler = await session.create_sampling_client(base_model=engine.model)
            with pytest.raises(InvalidInputError, match="2048"):
                await sampler.sample(ModelInput.from_ints([1] * 3000))
            sampler.check_inputs = False
            with pytest.raises((RequestFailedError, BadRequestError), match="2048"):
                await sampler.sample(ModelInput.from_ints([1] * 3000))
            with pytest.raises((RequestFailedError, BadRequestError), match="prompt"):
                await sampler.sample(ModelInput.from_ints([70_000]))
            await sampler.sample(ModelInput.from_ints([1]), SamplingParams(max_tokens=1))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_two_thousand_samples_at_once_are_all_answered(engine: Engine) -> None:
    """Each once, over few connections; nothing stays open or in line."""
    answers: dict[int, list[int]] = {}

    async def one(sampler: Any, index: int) -> None:
        response = await sampler.sample(
            ModelInput.from_ints([index % 256]), SamplingParams(max_tokens=1, seed=index, stop=[])
        )
        answers[index] = response.sequences[0].tokens.tolist()

    with anyio.fail_after(240):
        async with engine.session() as session:
            sampler = await session.create_sampling_client(base_model=engine.model)
            async with anyio.create_task_group() as group:
                for index in range(2000):
                    group.start_soon(one, sampler, index)
            statistics = session.statistics()

    assert len(answers) == 2000
    assert {1} == {len(tokens) for tokens in answers.values()}
    assert statistics.transport.connections <= 64
    assert (
        statistics.sampling.samples.in_use,
        statistics.sampling.samples.waiting,
    ) == (0, 0)
