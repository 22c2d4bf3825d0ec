"""Bodies of clients that leave out what has its default: the `type` of a chunk, too.

The official client of the 0.4 era does. The rule: only a body that could not be read is looked
at, so that nobody else pays for it.
"""

from __future__ import annotations

from typing import Any, TypeVar

from tinker_async.wire import json
from tinker_async.wire.table import Buffer, DecodeError

T = TypeVar("T")

_TELLING = {
    "location": "image_asset_pointer",
    "dmel": "dmel",
    "data": "image",
    "tokens": "encoded_text",
}
"""The field that tells a kind of chunk, in this order: the images of old had `tokens`, too."""


def decode(body: Buffer, type_: type[T]) -> T:
    """Return the JSON in `body` as an object of the type, as `wire.json.decode` does.

    Raises:
        DecodeError: Not JSON, or not of this type; the message has the path of the field.
    """
    try:
        return json.decode(body, type_)
    except DecodeError as error:
        if "missing required field `type`" not in str(error) or ".chunks[" not in str(error):
            raise
    found = json.decode(body, dict[str, Any])
    _name_chunks(found)
    return json.decode(json.encode(found), type_)


def _name_chunks(body: dict[str, Any]) -> None:
    inputs = [body.get("prompt")]
    for name in ("forward_backward_input", "forward_input"):
        given = body.get(name)
        data = given.get("data") if isinstance(given, dict) else None
        if isinstance(data, list):
            inputs += [one.get("model_input") for one in data if isinstance(one, dict)]
    for one in inputs:
        chunks = one.get("chunks") if isinstance(one, dict) else None
        for chunk in chunks if isinstance(chunks, list) else ():
            if isinstance(chunk, dict) and "type" not in chunk:
                chunk["type"] = next((_TELLING[name] for name in _TELLING if name in chunk), "")
