"""What `sample` and `chat` share: which weights, how to draw, and text to tokens and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tinker_async.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    import tinker_async as ta
    from tinker_async.cli.templates import ChatFormat

T = TypeVar("T")
_SHOWN = 10


class Drawing:
    """The options of a command that samples."""

    def __init__(self, **options: Any) -> None:
        self.base_model: str | None = options["base_model"]
        self.model_path: str | None = options["model_path"]
        self.folder: str | None = options["tokenizer"]
        self.max_tokens: int = options["max_tokens"]
        self._params = {
            name: options[name]
            for name in ("max_tokens", "temperature", "top_p", "top_k", "seed")
            if options[name] is not None
        }
        if self.base_model is not None and self.model_path is not None:
            raise click.UsageError("give --base-model or --model-path, not both")

    def params(self, stop: Sequence[str | int] | None = None, **more: Any) -> ta.SamplingParams:
        """Return how to draw."""
        import tinker_async as ta  # noqa: PLC0415  # `--help` shall not load the client

        return ta.SamplingParams(stop=list(stop) if stop else None, **{**self._params, **more})

    async def sampler(self, session: ta.Session) -> ta.SamplingClient:
        """Return the sampler that the options name; without any, of the server's only model."""
        if self.model_path is None and self.base_model is None:
            self.base_model = await _only_model(session)
        return await session.create_sampling_client(self.model_path, self.base_model)

    async def tokenizer(self, sampler: ta.SamplingClient) -> Tokenizer:
        """Return the model's tokenizer.

        Raises:
            ConfigError: There is none to be found; the hint names the option.
        """
        try:
            return await sampler.get_tokenizer(self.folder)
        except ConfigError as error:
            if "folder=" not in (error.hint or ""):
                raise
            hint = "name a folder that has its tokenizer.json: --tokenizer FOLDER"
            raise ConfigError(error.message, hint=hint) from error

    async def chat_format(self, sampler: ta.SamplingClient, tokenizer: Tokenizer) -> ChatFormat:
        """Return how conversations are written for the model."""
        import anyio.to_thread  # noqa: PLC0415  # as above

        from tinker_async.cli.templates import (  # noqa: PLC0415  # as above
            chat_format,
            files_from_hub,
            files_in,
        )
        from tinker_async.tokenizer import hub_id  # noqa: PLC0415  # as above

        if self.folder is not None:
            files = files_in(Path(self.folder))
        else:
            name = hub_id(await sampler.get_base_model(), None)
            files = {}
            if "/" in name:  # names without an owner are a server's own
                files = await anyio.to_thread.run_sync(files_from_hub, name, abandon_on_cancel=True)
        return chat_format(tokenizer, files)


async def _only_model(session: ta.Session) -> str:
    found = (await session.get_server_capabilities()).supported_models
    names = [model.model_name for model in found if model.model_name]
    if len(names) == 1:
        return names[0]
    listed = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    raise click.UsageError(
        "give --base-model NAME or --model-path tinker://..."
        + (f"; the server has {listed}" if names else "")
    )


_OPTIONS = (
    click.option("--base-model", metavar="NAME", help="The model to sample from."),
    click.option(
        "--model-path", metavar="PATH", help="Or a checkpoint: tinker://.../sampler_weights/NAME."
    ),
    click.option(
        "--tokenizer",
        type=click.Path(exists=True),
        metavar="FOLDER",
        help="Folder of the tokenizer. Default: the server's, else the model's on Hugging Face.",
    ),
    click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True),
    click.option("--temperature", type=click.FloatRange(min=0), help="0 is greedy."),
    click.option("--top-p", type=click.FloatRange(min=0, max=1, min_open=True)),
    click.option("--top-k", type=click.IntRange(min=1)),
    click.option("--seed", type=click.IntRange(min=0), help="Makes samples repeatable."),
)
_NAMES = (
    *("base_model", "model_path", "tokenizer", "max_tokens", "temperature", "top_p", "top_k"),
    "seed",
)


def drawing_options(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command the options of sampling, as its argument `drawing`."""

    @wraps(command)
    def with_drawing(*args: Any, **kwargs: Any) -> T:
        drawing = Drawing(**{name: kwargs.pop(name) for name in _NAMES})
        return command(*args, drawing=drawing, **kwargs)

    for option in reversed(_OPTIONS):
        with_drawing = option(with_drawing)
    return with_drawing
