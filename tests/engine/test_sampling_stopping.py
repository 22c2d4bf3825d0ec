"""Stop rules: end tokens, stop tokens, and strings that span tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.jobs import ModelCard
from tinker_async.local.engine.stopping import StopRules
from tinker_async.local.tiny import build_tiny

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

EOS = 2
CARD = ModelCard(
    name="tiny",
    architecture="LlamaForCausalLM",
    vocab_size=259,
    max_context_length=2048,
    eos_token_ids=(EOS,),
)


def tokens_of(text: str) -> list[int]:
    """The byte tokenizer's tokens: three special ones, then one for each byte."""
    return [3 + byte for byte in text.encode()]


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> StopRules:
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny("tiny-llama", folder)
    return StopRules(CARD, folder)


def length_until_stop(
    rules: StopRules, stop: str | Sequence[str | int] | None, tokens: list[int]
) -> int | None:
    """How many tokens come out before the rule ends the sample; None if it never does."""
    rule = rules.rule(stop)
    return next((n for n in range(1, len(tokens) + 1) if rule.ends(tokens[:n])), None)


def test_without_stops_the_models_end_token_ends_and_stays(rules: StopRules) -> None:
    """None ends at EOS, which is counted."""
    assert length_until_stop(rules, None, [9, 9, EOS, 9]) == 3


def test_an_empty_list_disables_every_stop(rules: StopRules) -> None:
    """Not even EOS ends the sample."""
    assert length_until_stop(rules, [], [9, EOS, 9]) is None


@pytest.mark.parametrize("stop", ["\n", ["x", "\n"], [13]])
def test_explicit_stops_end_at_their_token_or_at_the_end_token(
    rules: StopRules, stop: str | list[str] | list[int]
) -> None:
    """A string, one of several strings, or a token id; and EOS beside them."""
    tokens = tokens_of("ab\n\nc")
    assert tokens[2] == 13
    assert length_until_stop(rules, stop, tokens) == 3
    assert length_until_stop(rules, stop, [9, EOS, *tokens]) == 2


def test_a_stop_string_may_span_many_tokens(rules: StopRules) -> None:
    """The token that completes the match is the last, however far back it began."""
    stop = "the end of a rather long story, told in bytes"
    before = "x" * 100 + "the end of a rather "
    assert length_until_stop(rules, stop, tokens_of(before + stop + "!!")) == len(before + stop)


def test_a_stop_string_of_wide_characters_is_found_at_its_last_byte(rules: StopRules) -> None:
    """A character that takes several tokens counts only when whole."""
    text = "añb→€🙂 tail"
    stop = "→€🙂"
    assert length_until_stop(rules, stop, tokens_of(text)) == len("añb→€🙂".encode())


def test_special_tokens_are_text_too(rules: StopRules) -> None:
    """A stop string can name a special token that is not the model's end token."""
    assert length_until_stop(rules, "<|im_start|>", [9, 9, 1, 9]) == 3


@pytest.mark.parametrize("stop", ["", ["a", ""], [259], [-1]])
def test_impossible_stops_are_refused(rules: StopRules, stop: str | list[str] | list[int]) -> None:
    """Empty strings and tokens outside the vocabulary name the field `stop`."""
    with pytest.raises(InvalidInputError, match="stop") as caught:
        rules.rule(stop)
    assert caught.value.field == "stop"


def test_strings_need_a_tokenizer(tmp_path: Path) -> None:
    """Without tokenizer.json tokens still work, strings are refused with a way out."""
    rules = StopRules(CARD, tmp_path)
    assert rules.rule([5]).ends([5])
    with pytest.raises(InvalidInputError, match="stop token ids") as caught:
        rules.rule("x")
    assert caught.value.field == "stop"
