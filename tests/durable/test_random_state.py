"""Random generators go on with the numbers that they would have given."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tinker_async import InvalidInputError
from tinker_async.durable.random_state import capture, restore

Make = Callable[[int], Any]
Draw = Callable[[Any], list[float]]


def _numpy(bits: Any) -> tuple[Make, Draw]:
    return lambda seed: np.random.Generator(bits(seed)), lambda rng: rng.normal(size=3).tolist()


KINDS: dict[str, tuple[Make, Draw]] = {
    "python": (random.Random, lambda rng: [rng.random(), rng.gauss(0, 1)]),
    "pcg64": _numpy(np.random.PCG64),
    "mt19937": _numpy(np.random.MT19937),
    "philox": _numpy(np.random.Philox),
    "sfc64": _numpy(np.random.SFC64),
    "legacy": (np.random.RandomState, lambda rng: rng.normal(size=3).tolist()),
    "torch": (
        lambda seed: torch.Generator().manual_seed(seed),
        lambda rng: torch.rand(3, generator=rng).tolist(),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_generator_draws_the_same_numbers(kind: str) -> None:
    """From JSON, in the middle of its life, and looking at it changed nothing."""
    make, draw = KINDS[kind]
    first, untouched = make(1), make(1)
    for _ in range(7):
        draw(first), draw(untouched)
    states = json.loads(json.dumps(capture({"rng": first})))
    expected = draw(untouched)

    assert expected == draw(first)
    again = make(2)
    assert () == restore({"rng": again}, states)
    assert expected == draw(again)


def test_the_module_random_can_be_registered() -> None:
    """Programs that use it need no change."""
    before = random.getstate()
    try:
        states = capture({"random": random})
        expected = random.random()
        random.seed(3)
        restore({"random": random}, states)
        assert expected == random.random()
    finally:
        random.setstate(before)


def test_a_generator_without_a_state_is_named() -> None:
    """It was registered since; it is as it was."""
    states = capture({"old": random.Random(1)})
    rng = random.Random(5)

    assert ("new",) == restore({"old": random.Random(2), "new": rng}, states)
    assert random.Random(5).random() == rng.random()


def test_another_kind_of_generator_is_refused_before_any_is_touched() -> None:
    """The program was changed: going on would not be what it was."""
    states = capture({"a": random.Random(1), "b": np.random.default_rng(1)})
    a, b = random.Random(2), np.random.Generator(np.random.MT19937(2))

    with pytest.raises(InvalidInputError, match="but this is a generator of") as caught:
        restore({"a": a, "b": b}, states)
    assert "b" == caught.value.field
    assert random.Random(2).random() == a.random()


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("python", "[3, [1, 2], null]"),
        ("python", "{"),
        ("numpy.PCG64", "[]"),
        ("numpy.PCG64", '{"bit_generator": "MT19937"}'),
        ("torch.cpu", "AAAA"),
        ("torch.cpu", None),
    ],
)
def test_a_damaged_state_is_told_as_such(kind: str, state: object) -> None:
    """With the generator's name."""
    generators: dict[str, Any] = {
        "python": random.Random(1),
        "numpy.PCG64": np.random.default_rng(1),
        "torch.cpu": torch.Generator(),
    }
    with pytest.raises(InvalidInputError, match="rng: the state on record"):
        restore({"rng": generators[kind]}, {"rng": {"kind": kind, "state": state}})


def test_what_is_no_generator_cannot_be_registered() -> None:
    """The error says what can."""
    with pytest.raises(InvalidInputError, match="no random generator that is known"):
        capture({"rng": object()})
