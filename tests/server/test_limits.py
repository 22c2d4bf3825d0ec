"""The server's limits, as they are given on the command line."""

from __future__ import annotations

import msgspec
import pytest

from tinker_async.errors import ConfigError
from tinker_async.local.server.limits import Limits, read_limits


def test_limits_are_read_by_name() -> None:
    """The others keep their defaults."""
    given = {"gap_s": "0.5", "samples_waiting": "10"}
    assert msgspec.structs.replace(Limits(), gap_s=0.5, samples_waiting=10) == read_limits(given)
    assert Limits() == read_limits({})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("no_such", "1", "no limit 'no_such' .*hold_s, silence_s"),
        ("samples_waiting", "many", "samples_waiting"),
        ("samples_waiting", "0.5", "samples_waiting"),
        ("samples_waiting", "", "samples_waiting"),
        ("samples_waiting", "0", "samples_waiting must be a positive number, got 0"),
        ("gap_s", "-1", "gap_s must be a positive number, got -1"),
        ("gap_s", "inf", "gap_s"),
        ("gap_s", "nan", "gap_s"),
        ("body_bytes", "9" * 30, "body_bytes"),
    ],
)
def test_a_limit_that_cannot_be_right_is_refused(name: str, value: str, says: str) -> None:
    """With its name, and which there are."""
    with pytest.raises(ConfigError, match=says):
        read_limits({name: value})
