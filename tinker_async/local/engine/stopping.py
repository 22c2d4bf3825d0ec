"""When a sample ends: the model's end tokens, stop tokens, and stop strings.

The token that ends a sample, or completes a stop string, stays in the output. A string
is looked for in the generated text only, never across the end of the prompt.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.jobs import ModelCard

_CONTEXT_TOKENS = 4
"""Tokens before the earliest possible match: decoders may trim the first token's space,
and the window may begin inside a character."""


class Tokenizer(Protocol):
    """The part of `tokenizers.Tokenizer` that is used."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Turn tokens into text."""
        ...


class StopRules:
    """Reads the `stop` of a request, for one model.

    Args:
        card: The model's vocabulary and end tokens.
        folder: Where `tokenizer.json` is; read when the first stop string comes.
    """

    def __init__(self, card: ModelCard, folder: Path) -> None:
        self._card = card
        self._folder = folder

    def rule(self, stop: str | Sequence[str | int] | None) -> StopRule:
        """Return the rule for one request.

        None ends at the model's end tokens; an empty list never ends before the length
        limit; anything else ends at the given stops and at the model's end tokens.

        Raises:
            InvalidInputError: A stop string is empty, a stop token is not in the vocabulary,
                or the model has no tokenizer to find strings with.
        """
        eos = frozenset(self._card.eos_token_ids)
        if stop is None:
            return StopRule(eos)
        items = [stop] if isinstance(stop, str) else list(stop)
        if not items:
            return StopRule(frozenset())
        strings = tuple(item for item in items if isinstance(item, str))
        tokens = frozenset(item for item in items if isinstance(item, int))
        self._check(strings, tokens)
        return StopRule(tokens | eos, strings, self._tokenizer if strings else None)

    def _check(self, strings: tuple[str, ...], tokens: frozenset[int]) -> None:
        if "" in strings:
            raise InvalidInputError("stop: a stop string must not be empty", field="stop")
        size = self._card.vocab_size
        for token in tokens:
            if not 0 <= token < size:
                raise InvalidInputError(
                    f"stop: token {token} is not in the vocabulary of {size} tokens", field="stop"
                )

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        path = self._folder / "tokenizer.json"
        if not path.is_file():
            raise InvalidInputError(
                f"stop: {self._card.name} has no tokenizer.json, so stop strings cannot be found",
                field="stop",
                hint="give stop token ids instead",
            )
        from tokenizers import Tokenizer as FileTokenizer  # noqa: PLC0415  # loaded on use

        loaded: Tokenizer = FileTokenizer.from_file(str(path))
        return loaded


class StopRule:
    """What ends the samples of one request. Immutable, shared by them."""

    def __init__(
        self,
        tokens: frozenset[int],
        strings: tuple[str, ...] = (),
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self._tokens = tokens
        self._strings = strings
        self._tokenizer = tokenizer
        # A character takes at most as many tokens as it has bytes.
        longest = max((len(text.encode()) for text in strings), default=0)
        self._window = longest + _CONTEXT_TOKENS

    def ends(self, tokens: Sequence[int]) -> bool:
        """Whether the last of the tokens generated so far ends the sample.

        It is taken as given that none before it did.
        """
        if tokens[-1] in self._tokens:
            return True
        if self._tokenizer is None:
            return False
        text = self._tokenizer.decode(tokens[-self._window :], skip_special_tokens=False)
        return any(string in text for string in self._strings)
