"""The conversation of `tinker-async chat`: what was said, and what is left out when it is long.

The rule: a question whose answer failed or was stopped is taken back, so that what was said is
always question and answer in turn.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import tinker_async as ta
from tinker_async.cli.templates import plain_format

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tinker_async.cli.connection import Connection
    from tinker_async.cli.drawing import Drawing
    from tinker_async.cli.templates import ChatFormat


class Conversation:
    """Questions and answers with one sampler."""

    def __init__(
        self,
        sampler: ta.SamplingClient,
        tokenizer: Tokenizer,
        form: ChatFormat,
        drawing: Drawing,
        *,
        model: str,
        system: str | None,
    ) -> None:
        self.model = model
        self.form = form
        self.left_out = 0
        """Turns of the past that the last question had no room for."""
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._drawing = drawing
        self._system = [{"role": "system", "content": system}] if system is not None else []
        self._said: list[dict[str, str]] = []

    def reset(self) -> None:
        """Forget what was said."""
        self._said.clear()

    async def ask(self, question: str) -> dict[str, Any]:
        """Return the answer, which from then on counts as said.

        Raises:
            TinkerError: It could not be drawn; the question counts as not asked.
        """
        asked = [*self._said, {"role": "user", "content": question}]
        prompt = self._fitting(asked)
        params = self._drawing.params(self.form.stop)
        response = await self._sampler.sample(ta.ModelInput.from_ints(prompt), params)
        drawn = response.sequences[0]
        text = self.form.answer(self._tokenizer.decode(drawn.tokens.tolist()))
        self._said = [*asked, {"role": "assistant", "content": text}]
        return {
            "role": "assistant",
            "content": text,
            "stop_reason": drawn.stop_reason,
            "prompt_tokens": len(prompt),
            "tokens": len(drawn.tokens),
        }

    def _fitting(self, asked: list[dict[str, str]]) -> list[int]:
        """Return the prompt's tokens, without the oldest turns where all are too long."""
        room = self._sampler.context_length
        for first in range(0, len(asked), 2):
            text = self.form.write([*self._system, *asked[first:]])
            special = self.form.name == "plain"
            tokens = list(self._tokenizer.encode(text, add_special_tokens=special).ids)
            self.left_out = first // 2
            if room is None or len(tokens) + self._drawing.max_tokens <= room:
                break
        return tokens


@asynccontextmanager
async def conversing(
    connection: Connection, drawing: Drawing, *, system: str | None, plain: bool
) -> AsyncIterator[Conversation]:
    """Open a session, and begin a conversation in it."""
    async with connection.session() as session:
        sampler = await drawing.sampler(session)
        tokenizer = await drawing.tokenizer(sampler)
        form = plain_format() if plain else await drawing.chat_format(sampler, tokenizer)
        model = drawing.model_path or drawing.base_model or ""
        yield Conversation(sampler, tokenizer, form, drawing, model=model, system=system)
