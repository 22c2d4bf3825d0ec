"""The states of random generators as JSON, so that a program can go on with the same numbers.

Known are `random.Random` (and the module), numpy's `Generator` and `RandomState`, and torch's
`Generator`. The rule: a state goes back only into a generator of the same kind.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from tinker_async.errors import InvalidInputError

RandomStates: TypeAlias = dict[str, Any]
"""By name: `kind`, and `state` as text."""


def kind_of(generator: object, name: str) -> str:
    """Return what kind of generator this is.

    Raises:
        InvalidInputError: None that is known; `field` is the name.
    """
    if hasattr(generator, "getstate") and hasattr(generator, "setstate"):
        return "python"
    bits = getattr(generator, "bit_generator", None)
    if bits is not None:
        return f"numpy.{type(bits).__name__}"
    if isinstance(generator, np.random.RandomState):
        return "numpy.RandomState"
    if type(generator).__module__.startswith("torch") and hasattr(generator, "set_state"):
        return f"torch.{generator.device.type}"  # type: ignore[attr-defined]  # torch stays unimported
    raise InvalidInputError(
        f"{name}: {type(generator).__name__} is no random generator that is known",
        field=name,
        hint="random.Random, numpy.random.Generator, numpy.random.RandomState or torch.Generator",
    )


class Captured:
    """The states of some generators at the moment of its making.

    Raises:
        InvalidInputError: Something is no generator.
    """

    __slots__ = ("_states",)

    def __init__(self, generators: Mapping[str, Any]) -> None:
        self._states = [_captured(generator, name) for name, generator in generators.items()]

    def to_json(self) -> RandomStates:
        """Return them by name. That takes longer than to have them: do it for what is kept."""
        return {
            name: {"kind": kind, "state": _text(kind, state)} for name, kind, state in self._states
        }


def capture(generators: Mapping[str, Any]) -> RandomStates:
    """Return the present states, by name; drawing on changes nothing in them.

    Raises:
        InvalidInputError: Something is no generator.
    """
    return Captured(generators).to_json()


def restore(generators: Mapping[str, Any], states: Mapping[str, Any]) -> tuple[str, ...]:
    """Put states back; all that is wrong is said before the first generator is touched.

    Returns:
        The names of generators that have no state on record: they are as they were.

    Raises:
        InvalidInputError: A state is of another kind of generator, or damaged; `field` is the name.
    """
    known = {name: one for name, one in generators.items() if name in states}
    ready = [(name, one, _checked(one, states[name], name)) for name, one in known.items()]
    for name, generator, state in ready:
        _put_back(generator, state, name)
    return tuple(name for name in generators if name not in states)


def _captured(generator: Any, name: str) -> tuple[str, str, Any]:
    """Return name, kind and state: an object of its own, in which drawing on changes nothing."""
    kind = kind_of(generator, name)
    if kind == "python":
        return name, kind, generator.getstate()
    if kind == "numpy.RandomState":
        return name, kind, generator.get_state(legacy=False)
    if kind.startswith("numpy."):
        return name, kind, generator.bit_generator.state
    return name, kind, generator.get_state()


def _text(kind: str, state: Any) -> str:
    if kind.startswith("torch."):
        return base64.b64encode(state.numpy().tobytes()).decode("ascii")
    return json.dumps(state, default=_plain)


def _plain(value: Any) -> Any:
    """Arrays and numbers of numpy, as JSON; numpy takes lists where it gave arrays."""
    return value.tolist()


def _checked(generator: Any, record: Any, name: str) -> Any:
    kind = kind_of(generator, name)
    was = record.get("kind") if isinstance(record, dict) else None
    if was != kind:
        raise InvalidInputError(
            f"{name}: the state on record is of {was}, but this is a generator of {kind}",
            field=name,
            hint="register the same generators under the same names as when the run began",
        )
    try:
        if kind.startswith("torch."):
            state = np.frombuffer(base64.b64decode(record["state"]), dtype=np.uint8)
            if state.size != generator.get_state().numel():
                raise ValueError(f"it has {state.size} bytes")  # noqa: TRY301  # told as one error
            return state
        return json.loads(record["state"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{name}: the state on record is damaged: {error}", field=name
        ) from error


def _put_back(generator: Any, state: Any, name: str) -> None:
    try:
        if isinstance(state, np.ndarray):
            memory = generator.get_state()
            memory.numpy()[:] = state
            generator.set_state(memory)
        elif kind_of(generator, name) == "python":
            version, numbers, gauss = state
            generator.setstate((version, tuple(numbers), gauss))
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(_arrays(state))
        else:
            generator.bit_generator.state = _arrays(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(
            f"{name}: the state on record does not fit: {error}", field=name
        ) from error


def _arrays(state: Any) -> Any:
    """Lists in numpy's nested states as the arrays that they were."""
    if isinstance(state, dict):
        return {key: _arrays(value) for key, value in state.items()}
    return np.array(state, dtype=np.uint64) if isinstance(state, list) else state
