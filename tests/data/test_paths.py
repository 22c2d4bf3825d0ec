"""Checkpoint paths."""

from __future__ import annotations

from typing import Any

import pytest

from tinker_async.data.paths import parse_path
from tinker_async.errors import InvalidInputError


@pytest.mark.parametrize(
    ("path", "checkpoint_type", "checkpoint_id"),
    [
        ("tinker://s:train:0/weights/a", "training", "weights/a"),
        ("tinker://run/sampler_weights/b.1", "sampler", "sampler_weights/b.1"),
        ("tinker://run/external_weights/c", "external", "external_weights/c"),
        ("tinker:///weights/a", "training", "weights/a"),
    ],
)
def test_a_path_has_its_parts_and_prints_as_itself(
    path: str, checkpoint_type: Any, checkpoint_id: str
) -> None:
    """Run, kind and name; the run id is not judged."""
    parsed = parse_path(path, expect=checkpoint_type)

    assert (checkpoint_type, checkpoint_id) == (parsed.checkpoint_type, parsed.checkpoint_id)
    assert path == str(parsed)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "weights/a",
        "http://run/weights/a",
        "tinker://run/weights",
        "tinker://run/weights/",
        "tinker://run/weights/a/b",
        "tinker://run/other/a",
        "TINKER://run/weights/a",
    ],
)
def test_what_is_no_checkpoint_path_is_refused(path: str) -> None:
    """The error names the argument and shows the right form."""
    with pytest.raises(InvalidInputError, match="tinker://<training run>") as caught:
        parse_path(path, field="model_path")
    assert caught.value.field == "model_path"


def test_a_path_of_the_wrong_kind_says_where_to_get_the_right_one() -> None:
    """Weights for training do not sample."""
    with pytest.raises(InvalidInputError, match="save_weights_for_sampler") as caught:
        parse_path("tinker://run/weights/a", expect="sampler")
    assert caught.value.field == "path"
