"""What users give: checks of types and ranges, each with a sentence that shows the right form.

The rule: whatever is given, of whatever type, the answer is the value or an `InvalidInputError`
that names the argument. Nothing is converted that could be a slip, such as a text for a flag.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from numbers import Integral, Real
from typing import Any, TypeVar

from tinker_async.errors import InvalidInputError

T = TypeVar("T")

_SHOWN = 100


def shown(value: object) -> str:
    """Return a value as an error shows it: not more than a line of it."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # the user's own class: its name will do
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def wrong(field: str, says: str, hint: str | None = None) -> InvalidInputError:
    """Make the error of an argument."""
    return InvalidInputError(f"{field}: {says}", field=field, hint=hint)


def flag(value: object, field: str) -> bool:
    """Return a switch: True or False, or numpy's."""
    if isinstance(value, bool):
        return value
    if type(value).__name__ in ("bool", "bool_") and type(value).__module__ == "numpy":
        return bool(value)
    raise wrong(field, f"must be True or False, got {shown(value)}")


def whole(value: object, field: str, *, least: int | None = None) -> int:
    """Return a whole number."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
        if least is None or number >= least:
            return number
    bound = "" if least is None else f" of at least {least}"
    raise wrong(field, f"must be a whole number{bound}, got {shown(value)}")


def number(value: object, field: str, *, least: float | None = None) -> float:
    """Return a number that is not NaN; infinity is one."""
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # a whole number that no float can be
            found = float(value)
            if found >= least if least is not None else not math.isnan(found):
                return found
    bound = "" if least is None else f" of at least {least:g}"
    raise wrong(field, f"must be a number{bound}, got {shown(value)}")


def text(value: object, field: str, *, hint: str | None = None) -> str:
    """Return a text."""
    if not isinstance(value, str):
        raise wrong(field, f"must be a text, got {shown(value)}", hint)
    return value


def secret_text(value: object, field: str) -> str:
    """Return a text that no error may show."""
    if not isinstance(value, str):
        raise wrong(field, f"must be a text, got {type(value).__name__}")
    return value


def texts(value: object, field: str) -> dict[str, str] | None:
    """Return texts by name, as metadata are; None if there are none."""
    if value is None:
        return None
    form = 'the form is {"stage": "sft"}'
    if not isinstance(value, Mapping):
        raise wrong(field, f"must be texts by name, got {shown(value)}", form)
    for key, one in value.items():
        if not isinstance(key, str) or not isinstance(one, str):
            raise InvalidInputError(
                f"{field}: keys and values are texts, got {shown(key)}: {shown(one)}",
                field=f"{field}[{shown(key)}]",
                hint=form,
            )
    return dict(value) or None


def path(value: object, field: str) -> str:
    """Return the path of a file or folder of this machine."""
    if isinstance(value, (str, os.PathLike)):
        found = os.fspath(value)
        if isinstance(found, str) and found and "\0" not in found:
            return found
    raise wrong(
        field, f"must be the path of a folder or file, got {shown(value)}", 'such as "my-adapter"'
    )


def function(value: object, field: str, form: str) -> Callable[..., Any]:
    """Return what can be called; `form` says how."""
    if not callable(value):
        raise wrong(field, f"must be a function, got {shown(value)}", f"the form is {form}")
    return value


def one_of(value: object, kinds: type[T], field: str, hint: str) -> T:
    """Return an instance of a class; the hint says where one is to be had."""
    if not isinstance(value, kinds):
        raise wrong(field, f"must be a {kinds.__name__}, got {shown(value)}", hint)
    return value
