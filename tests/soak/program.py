"""A training program as a user writes it: it keeps its own place, and goes on from its checkpoint.

Reinforcement by groups: snapshot, samples, rewards, one step. What a step trains on depends on
the samples of its snapshot, so one wrong or missing sample shows in the final weights.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from tinker_async import (
    AdamParams,
    Datum,
    GoneError,
    ModelInput,
    ModelPoisonedError,
    PromiseLostError,
    SampleResponse,
    SampleTask,
    SamplingParams,
    Session,
    SessionLostError,
    TrainingClient,
)

TEXT = list(b"The quick brown fox jumps over the lazy dog.")
ADAM = AdamParams(learning_rate=1e-2)
MOST_LIVES = 10
TOKENS = 4


class Work(msgspec.Struct, frozen=True):
    """How much there is to do."""

    steps: int
    group: int
    """Samples for each step."""
    every: int
    """Steps between checkpoints."""
    model: str = "toy"
    supervised: bool = False
    """Train on text: for a model whose samples depend on what is sampled beside them."""


class Notes(msgspec.Struct):
    """What the program keeps outside of the server."""

    step: int
    """Steps done, which is also its place in the data."""
    chance: Any
    """State of the source of chance."""
    path: str | None
    """The checkpoint of this place; None at the start."""


class Program:
    """Runs the work to its end, in as many sessions as that takes."""

    def __init__(
        self,
        work: Work,
        session: Callable[[], Session],
        *,
        got: Callable[[str], None] = lambda _: None,
        stepped: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._work = work
        self._session = session
        self._got = got
        self._stepped = stepped
        self._notes = Notes(0, random.Random(7).getstate(), None)
        self.lives = 0
        """Sessions so far."""
        self.steps_run = 0
        """Steps, those that were done again included."""
        self.ended_by: list[str] = []
        """What ended each life but the last."""

    async def run(self) -> str:
        """Return the path of the final checkpoint."""
        path: str | None = None
        while path is None:
            self.lives += 1
            try:
                async with self._session() as session:
                    path = await self._live(session)
            except* (SessionLostError, PromiseLostError, GoneError, ModelPoisonedError) as lost:
                self.ended_by.append(_names(lost))
                if self.lives == MOST_LIVES:
                    raise
        return path

    async def _live(self, session: Session) -> str:
        notes, work = self._notes, self._work
        if notes.path is None:
            trainer = await session.create_lora_training_client(work.model, rank=4, seed=3)
        else:
            make = session.create_training_client_from_state_with_optimizer
            trainer = await make(notes.path)
        chance = random.Random()
        chance.setstate(notes.chance)
        for step in range(notes.step, work.steps):
            await self._step(trainer, step, chance)
            self._stepped(step + 1)
            if (step + 1) % work.every == 0:
                saved = await trainer.save_state(f"step-{step + 1:06}")
                self._notes = Notes(step + 1, chance.getstate(), saved.path)
        return (await trainer.save_state("end")).path

    async def _step(self, trainer: TrainingClient, step: int, chance: random.Random) -> None:
        self.steps_run += 1
        sampler = await trainer.save_weights_and_get_sampling_client()
        at = step % (len(TEXT) - 8)
        prompt = ModelInput.from_ints(TEXT[at : at + 2])
        tasks = [
            SampleTask(
                prompt, SamplingParams(max_tokens=TOKENS, seed=chance.randrange(2**31), stop=[])
            )
            for _ in range(self._work.group)
        ]
        responses: dict[int, SampleResponse] = {}
        async with sampler.map(tasks, max_in_flight=32) as outcomes:
            async for outcome in outcomes:
                response = outcome.result()
                self._got(response.sequences[0].sequence_id or "")
                responses[outcome.index] = response
        if self._work.supervised:
            data = [_text(at + 1), _text(at)]
        else:
            data = [_graded(prompt, responses[index]) for index in sorted(responses)]
        loss = "cross_entropy" if self._work.supervised else "importance_sampling"
        forward = trainer.forward_backward(data, loss)
        stepped = trainer.optim_step(ADAM)
        await forward
        await stepped


def _text(at: int) -> Datum:
    tokens = TEXT[at : at + 8]
    return Datum(ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})


def _graded(prompt: ModelInput, response: SampleResponse) -> Datum:
    (sequence,) = response.sequences
    assert sequence.logprobs is not None
    tokens = np.concatenate([prompt.to_numpy(), sequence.tokens])
    ahead = len(tokens) - 1 - len(sequence.tokens)
    reward = float(np.mean(sequence.tokens < 128))
    return Datum(
        ModelInput.from_ints(tokens[:-1]),
        {
            "target_tokens": tokens[1:].astype(np.int64),
            "logprobs": np.concatenate([np.zeros(ahead, np.float32), sequence.logprobs]),
            "advantages": np.asarray(
                [0.0] * ahead + [reward - 0.5] * len(sequence.tokens), dtype=np.float32
            ),
        },
    )


def _names(group: BaseExceptionGroup[BaseException]) -> str:
    found = set()
    for one in group.exceptions:
        found |= {_names(one)} if isinstance(one, BaseExceptionGroup) else {type(one).__name__}
    return ", ".join(sorted(found))
