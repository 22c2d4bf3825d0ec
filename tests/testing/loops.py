"""A training loop as a user writes it, and what it found."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinker_async import AdamParams, Datum, ModelInput, SamplingParams, Session, TrainingClient

TEXT = list(b"The quick brown fox")
PROMPT = ModelInput.from_ints(TEXT[:1])
ADAM = AdamParams(learning_rate=2e-2)
DATUM = Datum(
    ModelInput.from_ints(TEXT[:-1]),
    {"target_tokens": TEXT[1:], "weights": [1.0] * (len(TEXT) - 1)},
)


async def step(trainer: TrainingClient, datum: Datum = DATUM) -> float:
    """One step; the loss before it."""
    forward = trainer.forward_backward([datum], "cross_entropy")
    optim = trainer.optim_step(ADAM)
    loss = (await forward).metrics["loss:sum"]
    await optim
    return loss


async def reinforce(session: Session, *, steps: int = 3, group: int = 4) -> dict[str, Any]:
    """Sample, reward, train: importance sampling towards low bytes."""
    trainer = await session.create_lora_training_client("toy", rank=8)
    found: dict[str, Any] = {"rewards": [], "tokens": [], "model_id": trainer.model_id}
    for number in range(steps):
        sampler = await trainer.save_weights_and_get_sampling_client()
        data = []
        rewards = []
        for index in range(group):
            params = SamplingParams(max_tokens=5, stop=[], seed=100 * number + index)
            response = await sampler.sample(PROMPT, params)
            (sequence,) = response.sequences
            assert sequence.logprobs is not None
            reward = float(np.mean(sequence.tokens < 64))
            tokens = np.concatenate([PROMPT.to_numpy(), sequence.tokens])
            rewards.append(reward)
            found["tokens"].append(sequence.tokens.tolist())
            data.append(
                Datum(
                    ModelInput.from_ints(tokens[:-1]),
                    {
                        "target_tokens": sequence.tokens.astype(np.int64),
                        "logprobs": sequence.logprobs,
                        "advantages": np.full(5, reward - 0.25, dtype=np.float32),
                    },
                )
            )
        forward = trainer.forward_backward(data, "importance_sampling")
        optim = trainer.optim_step(ADAM)
        await forward
        await optim
        found["rewards"].append(float(np.mean(rewards)))
    found["path"] = (await trainer.save_state("end")).path
    return found
