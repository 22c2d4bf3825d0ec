"""The work of `tinker-async sample`: prompts in, samples out as they come.

The rule: prompts are taken from their source only when it is their turn, and nothing is held
that has been handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import tinker_async as ta
from tinker_async.cli.prompts import Prompt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tinker_async.cli.connection import Connection
    from tinker_async.cli.drawing import Drawing
    from tinker_async.cli.templates import ChatFormat

Done = Callable[[Prompt, list[dict[str, Any]]], None]
Failed = Callable[[Prompt, ta.TinkerError], None]


class Job:
    """What to draw."""

    def __init__(
        self, *, prompts: Iterator[Prompt], drawing: Drawing, in_flight: int, **options: Any
    ) -> None:
        self.prompts = prompts
        self.drawing = drawing
        self.in_flight = in_flight
        self.num_samples: int = options["num_samples"]
        self.stop: tuple[str, ...] = options["stop"]
        self.system: str | None = options["system"]
        self.chat: bool = options["chat"] or self.system is not None
        self.ids: bool = options["ids"]


class _Texts:
    """Text to tokens and back; without a tokenizer, tokens alone."""

    def __init__(
        self,
        tokenizer: Tokenizer | None = None,
        form: ChatFormat | None = None,
        system: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._form = form
        self._before = [{"role": "system", "content": system}] if system is not None else []

    @property
    def stop(self) -> list[int] | list[str] | None:
        """What ends an answer in the chat format."""
        return self._form.stop if self._form is not None else None

    def tokens(self, prompt: Prompt) -> list[int]:
        """Return a prompt's tokens."""
        if prompt.tokens is not None:
            return prompt.tokens
        if self._tokenizer is None:
            raise ta.ConfigError(
                f"prompt {prompt.index} is text, which --ids cannot encode",
                hint='give {"tokens": [...]} in a file, or leave --ids out',
            )
        if self._form is None:
            return list(self._tokenizer.encode(prompt.text or "").ids)
        text = self._form.write([*self._before, {"role": "user", "content": prompt.text or ""}])
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def result(self, sequence: ta.SampledSequence) -> dict[str, Any]:
        """Return a sample as it is printed."""
        tokens = sequence.tokens.tolist()
        found: dict[str, Any] = {"stop_reason": sequence.stop_reason, "tokens": tokens}
        if self._tokenizer is not None:
            text = self._tokenizer.decode(tokens)
            found["text"] = text if self._form is None else self._form.answer(text)
        if sequence.logprobs is not None:
            found["logprobs"] = sequence.logprobs.tolist()
        return found


async def draw(connection: Connection, job: Job, done: Done, failed: Failed) -> None:
    """Draw all samples; `done` and `failed` are called as each prompt ends.

    Raises:
        ConfigError, UsageError: A prompt cannot be read; what is under way is given up.
    """
    async with connection.session() as session:
        sampler = await job.drawing.sampler(session)
        texts = await _texts(job, sampler)
        params = job.drawing.params(job.stop or texts.stop)
        tasks = (
            ta.SampleTask(
                ta.ModelInput.from_ints(texts.tokens(prompt)), params, job.num_samples, tag=prompt
            )
            for prompt in job.prompts
        )
        async with sampler.map(tasks, max_in_flight=job.in_flight) as outcomes:
            async for outcome in outcomes:
                prompt = cast("Prompt", outcome.task.tag)
                if outcome.error is not None:
                    failed(prompt, outcome.error)
                else:
                    done(prompt, [texts.result(one) for one in outcome.result().sequences])


async def _texts(job: Job, sampler: ta.SamplingClient) -> _Texts:
    if job.ids:
        return _Texts()
    tokenizer = await job.drawing.tokenizer(sampler)
    form = await job.drawing.chat_format(sampler, tokenizer) if job.chat else None
    return _Texts(tokenizer, form, job.system)
