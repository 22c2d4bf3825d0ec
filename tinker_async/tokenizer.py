"""Finding and loading a model's tokenizer, off the event loop.

Sought in this order: a folder the user names, the server itself (the embedded one
has it), the local Hugging Face cache, the hub.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from tinker_async.api import endpoints
from tinker_async.api.calls import Caller
from tinker_async.api.progress import Progress
from tinker_async.api.retry import RetryPolicy
from tinker_async.errors import APIStatusError, ConfigError, MissingExtraError, ResponseError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LLAMA3 = "thinkingmachineslabinc/meta-llama-3-instruct-tokenizer"


async def load_tokenizer(
    caller: Caller,
    model_name: str,
    *,
    tokenizer_id: str | None = None,
    folder: str | PathLike[str] | None = None,
    policy: RetryPolicy | None = None,
    progress: Progress | None = None,
) -> Tokenizer:
    """Load a tokenizer in a worker thread.

    A server that answers, but not with a tokenizer, is not asked again: others may have it.

    Raises:
        TransportError: The server could not be asked.
        ConfigError: It was not found; the message says where it was sought.
        ResponseError: What the server sent is no tokenizer.
        MissingExtraError: The `tokenizers` library is not installed.
    """
    _check_installed()
    if folder is not None:
        return await anyio.to_thread.run_sync(_from_folder, folder)
    try:
        response = await caller.call(
            endpoints.tokenizer(model_name),
            policy=policy,
            never_repeat=(APIStatusError,),
            progress=progress,
        )
    except APIStatusError:
        name = hub_id(model_name, tokenizer_id)
        return await anyio.to_thread.run_sync(_from_hub, name, abandon_on_cancel=True)
    endpoint = endpoints.tokenizer(model_name).path
    return await anyio.to_thread.run_sync(_from_server, bytes(response.body), endpoint)


def hub_id(model_name: str, tokenizer_id: str | None) -> str:
    """Return the Hugging Face id of a model's tokenizer.

    A given id wins; Llama 3 has a public copy; of names with two slashes the first
    two parts count; what follows a colon does not.
    """
    if tokenizer_id:
        return tokenizer_id.partition(":")[0]
    name = model_name.partition(":")[0]
    if name.startswith("meta-llama/Llama-3"):
        return _LLAMA3
    return "/".join(name.split("/")[:2])


def _check_installed() -> None:
    try:
        import tokenizers  # noqa: F401, PLC0415  # an optional extra, loaded on use
    except ImportError as error:
        raise MissingExtraError(
            "get_tokenizer needs the tokenizers library",
            hint="pip install 'tinker-async[tokenizers]'",
        ) from error


def _from_bytes(data: bytes) -> Tokenizer:
    from tokenizers import Tokenizer  # noqa: PLC0415  # an optional extra, loaded on use

    try:
        return Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises bare Exception for all failures
        raise ValueError(f"not a tokenizer's file: {error}") from error


def _from_server(data: bytes, endpoint: str) -> Tokenizer:
    try:
        return _from_bytes(data)
    except ValueError as error:
        raise ResponseError(
            f"the tokenizer that the server sent is {error}",
            endpoint=endpoint,
            hint="pass folder= with a tokenizer.json",
        ) from error


def _from_folder(path: str | PathLike[str]) -> Tokenizer:
    from pathlib import Path  # noqa: PLC0415  # for the few who have a folder

    folder = Path(path)
    file = folder / "tokenizer.json" if folder.is_dir() else folder
    try:
        return _from_bytes(file.read_bytes())
    except ValueError as error:
        raise ConfigError(f"folder: {file} is {error}") from error
    except OSError as error:
        raise ConfigError(
            f"folder: no tokenizer.json in {folder}",
            hint="name a folder that has one, or the file itself",
        ) from error


def _from_hub(name: str) -> Tokenizer:
    from tokenizers import Tokenizer  # noqa: PLC0415  # an optional extra, loaded on use

    try:
        return Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises bare Exception for all failures
        raise ConfigError(
            f"no tokenizer for {name!r}: the server has none, nor the local cache, and the hub "
            f"did not give one",
            hint="pass folder= with a tokenizer.json",
        ) from error
