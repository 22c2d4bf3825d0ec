"""What a sample may report of its prompt besides log-probs: checked before, and held to after.

A server that is older than one of these ignores it and answers without: that is said as an error,
since an answer that lacks what was asked for is not what the caller wanted.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from tinker_async.data.model_input import ModelInput
from tinker_async.data.results import SampleResponse
from tinker_async.data.tensors import TensorData, TensorLike
from tinker_async.errors import InvalidInputError, ResponseError

_BYTES_PER_TOKEN = 10
_ENDPOINT = "/api/v1/asample"


class PromptScores(msgspec.Struct, frozen=True, omit_defaults=True):
    """The arguments of `sample` that few calls use; fields are those of its request."""

    target_prompt_logprobs: TensorData | None = None
    prompt_alt_tokens_k: int = 0
    prompt_logprobs_last_n: int | None = None

    @property
    def nbytes(self) -> int:
        """About how many bytes they add to a request."""
        target = self.target_prompt_logprobs
        return 0 if target is None else _BYTES_PER_TOKEN * target.nbytes // 8

    def fields(self) -> dict[str, Any]:
        """Return the fields of the request that are not at their default."""
        return {
            name: value
            for name, value, default in zip(
                self.__struct_fields__,
                msgspec.structs.astuple(self),
                self.__struct_defaults__,
                strict=True,
            )
            if value is not default and value != default
        }

    def check_response(self, response: SampleResponse) -> SampleResponse:
        """Return the response, if the server did what was asked of it.

        Raises:
            ResponseError: It did not.
        """
        if self.target_prompt_logprobs is not None and response.target_prompt_logprobs is None:
            raise _ignored("target_prompt_logprobs", "returned none")
        if self.prompt_alt_tokens_k and response.prompt_alt_tokens is None:
            raise _ignored("prompt_alt_tokens_k", "returned no prompt_alt_tokens")
        last_n, scored = self.prompt_logprobs_last_n, response.prompt_logprobs
        if last_n is not None and scored is not None and not np.isnan(scored[:-last_n]).all():
            raise _ignored("prompt_logprobs_last_n", "scored the tokens before, too")
        return response


def _ignored(field: str, what: str) -> ResponseError:
    return ResponseError(
        f"{field} was asked for, but the server {what}",
        endpoint=_ENDPOINT,
        hint="the server may be older than this feature",
    )


def prompt_scores(
    prompt: ModelInput,
    target_prompt_logprobs: TensorLike | None,
    prompt_alt_tokens_k: int,
    prompt_logprobs_last_n: int | None,
    *,
    include_prompt_logprobs: bool,
    check: bool,
) -> PromptScores:
    """Return these arguments of `sample`, checked if `check`.

    Raises:
        InvalidInputError: One of them cannot be right.
    """
    target = _target(target_prompt_logprobs)
    if check:
        if prompt_logprobs_last_n is not None:
            _check_last_n(prompt, prompt_logprobs_last_n, include=include_prompt_logprobs)
        if type(prompt_alt_tokens_k) is not int or prompt_alt_tokens_k < 0:
            raise InvalidInputError(
                f"prompt_alt_tokens_k: must be 0 or more, got {prompt_alt_tokens_k!r}",
                field="prompt_alt_tokens_k",
            )
        if target is not None:
            _check_target(target, prompt)
    return PromptScores(target, prompt_alt_tokens_k, prompt_logprobs_last_n)


def _target(given: TensorLike | None) -> TensorData | None:
    if given is None or isinstance(given, TensorData):
        return given
    field = "target_prompt_logprobs"
    if isinstance(given, (list, tuple)):
        try:
            given = np.asarray(given)
        except ValueError as error:
            raise InvalidInputError(f"{field}: lists must be rectangular", field=field) from error
    # No key of `loss_fn_inputs`: nothing is left out, since the reader's pad is -1 here, not 0.
    return TensorData.from_value(field, given)


def _check_target(target: TensorData, prompt: ModelInput) -> None:
    field = "target_prompt_logprobs"
    if target.dtype != "int64":
        raise InvalidInputError(
            f"{field}: must be token ids (int64), got {target.dtype}", field=field
        )
    shape = target.dense_shape
    if len(shape) != 2:
        raise InvalidInputError(
            f"{field}: must be of shape [prompt length - 1, K], got {list(shape)}",
            field=field,
            hint="row i is about position i + 1; the first has nothing before it",
        )
    length = prompt.text_length
    if length >= 0 and shape[0] != length - 1:
        raise InvalidInputError(
            f"{field}: has {shape[0]} rows for a prompt of {length} tokens, not {length - 1}",
            field=field,
            hint="row i is about position i + 1; the first has nothing before it",
        )
    if target.data.size == 0 or int(target.data.max()) < 0:
        raise InvalidInputError(f"{field}: names no token id", field=field)
    if int(target.data.min()) < -1:
        raise InvalidInputError(
            f"{field}: ids are from 0, or -1 for nothing, got {int(target.data.min())}",
            field=field,
        )


def _check_last_n(prompt: ModelInput, last_n: int, *, include: bool) -> None:
    field = "prompt_logprobs_last_n"
    if not include:
        raise InvalidInputError(
            f"{field}: is about the prompt's log-probs, which were not asked for",
            field=field,
            hint="set include_prompt_logprobs=True",
        )
    length = prompt.text_length
    highest = length - 1 if length >= 0 else None
    if type(last_n) is not int or last_n < 1 or (highest is not None and last_n > highest):
        upto = "" if highest is None else f" and at most {highest}, the prompt's length less one"
        raise InvalidInputError(f"{field}: must be at least 1{upto}, got {last_n!r}", field=field)
