"""One sample request on its way, and one row: a sequence being drawn for it.

Owns what a request asked for and what has been drawn; knows nothing of batches or slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tinker_async.data.results import SampledSequence, SampleResponse, TopkLogprobs
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.choosing import Choice, Uniforms
from tinker_async.local.engine.jobs import ModelCard, Result, Sample
from tinker_async.local.engine.prompt_scores import PromptScores, check_scores, wants_scores
from tinker_async.local.engine.stopping import StopRule, StopRules


@dataclass(eq=False)
class Request:
    """A `Sample` job, checked against the model. Make it with `checked_request`."""

    job: Sample
    adapter: str
    done: Callable[[Result], None]
    rule: StopRule
    prompt: Tensor  # int64 (P,)
    max_new_tokens: int
    scores: PromptScores | None
    read_tokens: int = 0
    """how much of the prompt is in the cache"""
    first_logits: Tensor | None = None  # float32 (vocab,): every sample starts from them
    started: int = 0
    finished: dict[int, SampledSequence] = field(default_factory=dict)

    @property
    def final_tokens(self) -> int:
        """The most cache columns that one of its rows can take."""
        return len(self.prompt) + self.max_new_tokens

    @property
    def all_started(self) -> bool:
        """Whether every sample has its row, or had it."""
        return self.started == self.job.num_samples

    @property
    def all_finished(self) -> bool:
        """Whether every sample is complete."""
        return len(self.finished) == self.job.num_samples

    def start(self) -> Row:
        """Begin the next sample."""
        seed = self.job.params.seed
        row = Row(self, self.started, Uniforms(None if seed is None else seed + self.started))
        self.started += 1
        return row

    def response(self) -> SampleResponse:
        """Return the result; all samples must be finished."""
        response = SampleResponse([self.finished[index] for index in range(self.job.num_samples)])
        return self.scores.fill(response) if self.scores else response


@dataclass(eq=False)
class Row:
    """One sample being drawn: number `index` of its request."""

    request: Request
    index: int
    uniforms: Uniforms
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_ids: list[list[int]] = field(default_factory=list)
    top_logprobs: list[list[float]] = field(default_factory=list)

    def append(self, choice: Choice, place: int) -> None:
        """Take row `place` of a choice."""
        self.tokens.append(choice.tokens[place])
        self.logprobs.append(choice.logprobs[place])
        top = self.request.job.topk_sample_logprobs
        if top:
            self.top_ids.append(choice.top_ids[place][:top])
            self.top_logprobs.append(choice.top_logprobs[place][:top])

    def stop_reason(self) -> str | None:
        """Why the sample is complete, or None while it is not."""
        if self.request.rule.ends(self.tokens):
            return "stop"
        return "length" if len(self.tokens) >= self.request.max_new_tokens else None

    def sequence(self, stop_reason: str) -> SampledSequence:
        """Return what was drawn."""
        top = None
        if self.top_ids:
            top = TopkLogprobs(
                np.array(self.top_ids, dtype=np.int32),
                np.array(self.top_logprobs, dtype=np.float32),
            )
        return SampledSequence(
            tokens=np.array(self.tokens, dtype=np.int32),
            logprobs=np.array(self.logprobs, dtype=np.float32),
            stop_reason=stop_reason,
            topk_logprobs=top,
        )


def checked_request(
    job: Sample,
    adapter: str,
    done: Callable[[Result], None],
    *,
    card: ModelCard,
    rules: StopRules,
) -> Request:
    """Check a job against the model.

    `max_tokens` None, or more than fits, becomes what the context leaves after the prompt.

    Raises:
        InvalidInputError: The request cannot be right for this model; `field` says what.
    """
    _check_prompt(job, card)
    _check(job.num_samples >= 1, "num_samples", "must be at least 1")
    for name in ("topk_prompt_logprobs", "topk_sample_logprobs"):
        in_range = 0 <= getattr(job, name) <= card.vocab_size
        _check(in_range, name, f"must be between 0 and {card.vocab_size}, the vocabulary's size")
    check_scores(job, card)
    prompt = torch.from_numpy(job.prompt.astype(np.int64))
    room = card.max_context_length - len(prompt)
    return Request(
        job=job,
        adapter=adapter,
        done=done,
        rule=rules.rule(job.params.stop),
        prompt=prompt,
        max_new_tokens=min(job.params.max_tokens or room, room),
        scores=PromptScores(prompt, job) if wants_scores(job) else None,
    )


def _check_prompt(job: Sample, card: ModelCard) -> None:
    length, limit = job.prompt.size, card.max_context_length
    _check(job.prompt.ndim == 1 and length > 0, "prompt", "must have at least one token")
    _check(
        length < limit,
        "prompt",
        f"has {length} tokens, which leaves no room in the context of {limit} tokens",
    )
    low, high = int(job.prompt.min()), int(job.prompt.max())
    _check(
        low >= 0 and high < card.vocab_size,
        "prompt",
        f"token {low if low < 0 else high} is not in the vocabulary of {card.vocab_size} tokens",
    )


def _check(holds: bool, name: str, says: str) -> None:
    if not holds:
        raise InvalidInputError(f"{name}: {says}", field=name)
