"""Two training loops to copy: supervised fine-tuning and reinforcement learning.

Only the public API is used, so they run on any server that speaks the protocol; what
they need to know about the model is its tokenizer and its chat format.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import numpy as np
import numpy.typing as npt

import tinker_async as ta

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STOP = "<|im_end|>"
NO_ANSWER_REWARD = -0.5


def chat_prompt(question: str) -> str:
    """Return the question in ChatML, up to where the answer begins."""
    return f"<|im_start|>user\n{question}{STOP}\n<|im_start|>assistant\n"


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return token ids; `<|im_start|>` and `<|im_end|>` are one token each."""
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


# Supervised


def supervised_datum(tokenizer: Tokenizer, question: str, answer: str) -> ta.Datum:
    """Make an example whose loss counts the answer and its end token, not the question."""
    prompt = encode(tokenizer, chat_prompt(question))
    reply = encode(tokenizer, answer + STOP)
    tokens = prompt + reply
    return ta.Datum(
        model_input=ta.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tokens[1:],  # position t predicts the token after it
            "weights": [0.0] * (len(prompt) - 1) + [1.0] * len(reply),
        },
    )


def batches(data: Sequence[ta.Datum], size: int, count: int, seed: int) -> Iterator[list[ta.Datum]]:
    """Yield `count` batches; every epoch uses each datum once, in a new order."""
    shuffle = random.Random(seed).shuffle  # noqa: S311  # an order, not a secret
    left: list[ta.Datum] = []
    for _ in range(count):
        while len(left) < size:
            epoch = list(data)
            shuffle(epoch)
            left += epoch
        yield left[:size]
        left = left[size:]


async def fine_tune(
    trainer: ta.TrainingClient,
    data: Sequence[ta.Datum],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    on_step: Callable[[float], None],
) -> list[float]:
    """Train with cross-entropy; return the loss per trained token of each step.

    All steps are queued at once and run in that order, so the server never waits for
    us between them.
    """
    adam = ta.AdamParams(learning_rate=learning_rate)
    queued = []
    for batch in batches(data, batch_size, steps, seed):
        tokens = sum(float(datum.loss_fn_inputs["weights"].data.sum()) for datum in batch)
        step = trainer.forward_backward(batch, "cross_entropy")
        queued.append((tokens, step, trainer.optim_step(adam)))
    losses = []
    for tokens, step, optim in queued:
        output = await step
        await optim
        losses.append(output.metrics["loss:sum"] / tokens)
        on_step(losses[-1])
    return losses


# Sampling


async def ask(
    sampler: ta.SamplingClient,
    tokenizer: Tokenizer,
    questions: Sequence[str],
    *,
    max_tokens: int,
) -> dict[str, str]:
    """Answer all questions at once, greedily."""
    greedy = ta.SamplingParams(max_tokens=max_tokens, temperature=0.0, stop=[STOP])
    answers: dict[str, str] = {}

    async def answer(question: str) -> None:
        prompt = ta.ModelInput.from_ints(encode(tokenizer, chat_prompt(question)))
        response = await sampler.sample(prompt, greedy)
        answers[question] = tokenizer.decode(response.sequences[0].tokens.tolist()).strip()

    async with anyio.create_task_group() as tasks:
        for question in questions:
            tasks.start_soon(answer, question)
    return {question: answers[question] for question in questions}


# Reinforcement


@dataclass(frozen=True)
class Rollout:
    """One sampled answer with what it earned."""

    prompt: list[int]
    tokens: list[int]
    logprobs: npt.NDArray[np.float32]
    """of the sampler, one for each token"""
    reward: float
    advantage: float


def brevity_reward(length: int, max_tokens: int, *, stopped: bool) -> float:
    """Reward short answers: 1 - length / limit, the end token counted in.

    Being cut off at the limit gets -0.5, and so does ending at once: with a reward for
    silence, silence is what the model learns.
    """
    return 1.0 - length / max_tokens if stopped and length > 1 else NO_ANSWER_REWARD


def group_rollouts(
    prompt: list[int], sequences: Sequence[ta.SampledSequence], max_tokens: int
) -> list[Rollout]:
    """Score the samples of one prompt; the advantage is the reward above the group's mean."""
    rewards = [
        brevity_reward(len(one.tokens), max_tokens, stopped=one.stop_reason == "stop")
        for one in sequences
    ]
    mean = sum(rewards) / len(rewards)
    rollouts = []
    for one, reward in zip(sequences, rewards, strict=True):
        if one.logprobs is None:
            raise ValueError("the server sent no log-probs, which importance sampling needs")
        tokens = [int(token) for token in one.tokens]
        rollouts.append(Rollout(prompt, tokens, one.logprobs, reward, reward - mean))
    return rollouts


def rollout_datum(rollout: Rollout) -> ta.Datum:
    """Make the training example: advantage 0 on the prompt, so that only the answer counts."""
    tokens = rollout.prompt + rollout.tokens
    before = len(rollout.prompt) - 1
    return ta.Datum(
        model_input=ta.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tokens[1:],
            "logprobs": [0.0] * before + rollout.logprobs.tolist(),
            "advantages": [0.0] * before + [rollout.advantage] * len(rollout.tokens),
        },
    )


def logprob_gap(rollouts: Sequence[Rollout], output: ta.ForwardBackwardOutput) -> float:
    """Return the largest difference, over tokens, between the sampler's and the trainer's log-probs."""
    gap = 0.0
    for rollout, found in zip(rollouts, output.loss_fn_outputs, strict=True):
        trainer = found["logprobs"].to_numpy()[len(rollout.prompt) - 1 :]
        gap = max(gap, float(np.abs(trainer - rollout.logprobs).max()))
    return gap


async def roll_out(
    sampler: ta.SamplingClient,
    prompts: Sequence[list[int]],
    *,
    group_size: int,
    max_tokens: int,
    seed: int,
) -> list[Rollout]:
    """Sample `group_size` answers to each prompt, all in flight together."""
    groups: dict[int, list[Rollout]] = {}

    async def sample(number: int, prompt: list[int]) -> None:
        params = ta.SamplingParams(
            max_tokens=max_tokens, stop=[STOP], seed=seed + number * group_size
        )
        response = await sampler.sample(
            ta.ModelInput.from_ints(prompt), params, num_samples=group_size
        )
        groups[number] = group_rollouts(prompt, response.sequences, max_tokens)

    async with anyio.create_task_group() as tasks:
        for number, prompt in enumerate(prompts):
            tasks.start_soon(sample, number, prompt)
    return [rollout for number in range(len(prompts)) for rollout in groups[number]]


@dataclass(frozen=True)
class Round:
    """What one round of reinforcement gave, as means over its samples."""

    reward: float
    length_tokens: float
    logprob_gap: float


async def reinforce(
    trainer: ta.TrainingClient,
    prompts: Sequence[list[int]],
    *,
    rounds: int,
    group_size: int,
    max_tokens: int,
    learning_rate: float,
    seed: int,
    on_round: Callable[[Round], None],
) -> list[Round]:
    """Train on policy for short answers: each round samples from the weights as they are now.

    The learning rate falls linearly towards zero. With a constant one the answers become
    shorter and shorter until there are none, and none of them is rewarded.
    """
    done: list[Round] = []
    for number in range(rounds):
        adam = ta.AdamParams(learning_rate=learning_rate * (1 - number / rounds))
        sampler = await trainer.save_weights_and_get_sampling_client()
        rollouts = await roll_out(
            sampler,
            prompts,
            group_size=group_size,
            max_tokens=max_tokens,
            seed=seed + number * group_size * len(prompts),  # no two samples share a seed
        )
        data = [rollout_datum(rollout) for rollout in rollouts]
        step = trainer.forward_backward(data, "importance_sampling")
        optim = trainer.optim_step(adam)
        output = await step
        await optim
        done.append(
            Round(
                reward=sum(rollout.reward for rollout in rollouts) / len(rollouts),
                length_tokens=sum(len(rollout.tokens) for rollout in rollouts) / len(rollouts),
                logprob_gap=logprob_gap(rollouts, output),
            )
        )
        on_round(done[-1])
    return done
