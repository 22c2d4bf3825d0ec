"""How a conversation is written for a model: by its chat template, in ChatML, or plainly.

The rule: a template is a stranger's program. It runs in jinja's sandbox, and one that fails is
an error with its name, not a crash.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tinker_async.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Message = Mapping[str, str]
"""`role` (system, user or assistant) and `content`."""

_CHATML = ("<|im_start|>", "<|im_end|>")
_NAMES = {"user": "User", "assistant": "Assistant", "system": "System"}
_FILES = ("chat_template.jinja", "tokenizer_config.json")
_PROBE = "zq-answer-qz"


class ChatFormat(NamedTuple):
    """How conversations are written."""

    name: str
    """`template`, `ChatML` or `plain`."""
    write: Callable[[Sequence[Message]], str]
    """Returns the text of a conversation, up to where the answer begins."""
    stop: list[int] | list[str] | None
    """Tokens or texts that end an answer; None leaves it to the model."""

    def answer(self, text: str) -> str:
        """Return a sampled text without the text that ended it."""
        ends = [text.find(one) for one in self.stop or () if isinstance(one, str) and one in text]
        return (text[: min(ends)] if ends else text).strip()


PLAIN_STOP = ["\nUser:"]


def chat_format(tokenizer: Tokenizer, files: Mapping[str, str]) -> ChatFormat:
    """Return the format for a model.

    Args:
        tokenizer: Of the model: its special tokens tell whether it speaks ChatML.
        files: The texts of `chat_template.jinja` and `tokenizer_config.json`, if there are any.

    Raises:
        ConfigError: The template is broken.
    """
    found = _template(files)
    if found is not None:
        template, variables = found
        write = _renderer(template, variables)
        return ChatFormat("template", write, _turn_end(write, tokenizer))
    ids = [tokenizer.token_to_id(token) for token in _CHATML]
    if ids[0] is not None and ids[1] is not None:
        return ChatFormat("ChatML", _chatml, [ids[1]])
    return plain_format()


def plain_format() -> ChatFormat:
    """Return the format for a model that has none: a script of a play."""
    return ChatFormat("plain", _plain, PLAIN_STOP)


def files_in(folder: Path) -> dict[str, str]:
    """Return what a folder has of a model's template files."""
    paths = {name: folder / name for name in _FILES}
    return {
        name: path.read_text(encoding="utf-8", errors="replace")
        for name, path in paths.items()
        if path.is_file()
    }


def files_from_hub(name: str) -> dict[str, str]:
    """Return what the local Hugging Face cache, or the hub, has of a model's template files.

    A model that is not there, or that nobody can be asked about, has none.
    """
    try:
        from huggingface_hub import hf_hub_download  # noqa: PLC0415  # comes with `tokenizers`
    except ImportError:
        return {}
    found = {}
    for file in _FILES:
        try:
            path = Path(hf_hub_download(name, file))
        except Exception:  # noqa: BLE001, S112  # the library raises what its parts do; there is another way
            continue
        found[file] = path.read_text(encoding="utf-8", errors="replace")
    return found


def _template(files: Mapping[str, str]) -> tuple[str, dict[str, Any]] | None:
    """Return the template, and the names of special tokens that it may use."""
    try:
        config = json.loads(files.get("tokenizer_config.json") or "{}")
    except ValueError:
        config = {}
    config = config if isinstance(config, dict) else {}
    text = files.get("chat_template.jinja") or config.get("chat_template")
    if isinstance(text, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in text if isinstance(one, dict)}
        text = named.get("default")
    if not isinstance(text, str) or not text:
        return None
    variables = {name: _content(value) for name, value in config.items() if name.endswith("_token")}
    return text, {name: value for name, value in variables.items() if value is not None}


def _content(value: object) -> str | None:
    """A special token is a string, or an object around it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _renderer(text: str, variables: dict[str, Any]) -> Callable[[Sequence[Message]], str]:
    try:
        from jinja2 import TemplateError  # noqa: PLC0415  # extra `cli`
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415  # as above
    except ImportError as error:
        raise ConfigError(
            "the model's chat template needs jinja2", hint="pip install 'tinker-async[cli]'"
        ) from error

    def refuse(reason: str) -> None:
        raise TemplateError(reason)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.now(UTC).strftime(form),
    }

    def write(messages: Sequence[Message]) -> str:
        try:
            template = environment.from_string(text)
            return template.render(
                messages=[dict(one) for one in messages], add_generation_prompt=True, **variables
            )
        except Exception as error:  # the template's own: any of Python's, and jinja's
            raise ConfigError(
                f"the model's chat template fails: {error}", hint="go without: --plain"
            ) from error

    return write


def _turn_end(write: Callable[[Sequence[Message]], str], tokenizer: Tokenizer) -> list[int] | None:
    """Return the special token that follows an answer in a conversation that goes on."""
    user = {"role": "user", "content": "?"}
    try:
        text = write([user, {"role": "assistant", "content": _PROBE}, user])
    except ConfigError:
        return None
    after = text.partition(_PROBE)[2]
    added = tokenizer.get_added_tokens_decoder().items()
    places = {
        after.find(token.content): number
        for number, token in added
        if token.special and token.content in after
    }
    return [places[min(places)]] if places else None


def _chatml(messages: Sequence[Message]) -> str:
    begin, end = _CHATML
    turns = (f"{begin}{one['role']}\n{one['content']}{end}\n" for one in messages)
    return "".join(turns) + f"{begin}assistant\n"


def _plain(messages: Sequence[Message]) -> str:
    turns = (f"{_NAMES[one['role']]}: {one['content']}\n" for one in messages)
    return "".join(turns) + "Assistant:"
