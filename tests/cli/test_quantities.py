"""Times and sizes as people give and read them; selections of checkpoints; sums of usage."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinker_async as ta
from tinker_async.cli.checkpoint.adapter_files import Patterns
from tinker_async.cli.checkpoint.choosing import Filters
from tinker_async.cli.output import Measure, text_of
from tinker_async.cli.quantities import Duration, Moment, age, ago, amount
from tinker_async.cli.usage_report import add_up, plot, short, spans

NOW = datetime(2026, 7, 13, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3600", 3600), ("90m", 5400), ("12h", 43_200), ("7d", 604_800), ("2w", 1_209_600)],
)
def test_a_time_is_given_with_a_unit(text: str, seconds: int) -> None:
    """Seconds without one."""
    assert timedelta(seconds=seconds) == Duration().convert(text, None, None)


@pytest.mark.parametrize("text", ["", "-1h", "1.5h", "7 days", "1y", "h", "\u0661h", "9999999999s"])
def test_what_is_no_time_is_refused_with_the_form(text: str) -> None:
    """Whatever the digits of other scripts are worth."""
    with pytest.raises(click.BadParameter, match="the form is 3600, 90m, 12h, 7d or 2w"):
        Duration().convert(text, None, None)


def test_a_moment_without_a_zone_is_in_utc() -> None:
    """A day is its first moment."""
    assert datetime(2026, 7, 13, tzinfo=UTC) == Moment().convert("2026-07-13", None, None)
    east = Moment().convert("2026-07-13T02:00+02:00", None, None)
    assert datetime(2026, 7, 13, tzinfo=UTC) == east


@pytest.mark.parametrize(
    ("passed", "words"),
    [
        (timedelta(0), "now"),
        (timedelta(seconds=1), "1 second ago"),
        (timedelta(seconds=119), "1 minute ago"),
        (timedelta(hours=47), "1 day ago"),
        (timedelta(days=400), "1 year ago"),
        (timedelta(days=-3, seconds=-5), "in 3 days"),
    ],
)
def test_an_age_is_said_in_its_largest_unit(passed: timedelta, words: str) -> None:
    """Also one that is still to come."""
    assert words == ago(passed)


def test_people_read_words_and_programs_the_value() -> None:
    """Ages and sizes alike."""
    assert ("6.2 kB", "6208") == (text_of(amount(6208)), text_of(amount(6208), shown=False))
    time = age(NOW)
    assert isinstance(time, Measure)
    assert "2026-07-13T12:00:00Z" == text_of(time, shown=False)
    assert time.words.endswith(("ago", "now")) or time.words.startswith("in ")
    assert (None, None) == (age(None), amount(None))


# Selections


def checkpoint(run: str, name: str, kind: str, hours_old: float | None) -> ta.Checkpoint:
    time = None if hours_old is None else NOW - timedelta(hours=hours_old)
    folder = {"training": "weights", "sampler": "sampler_weights"}[kind]
    path = f"tinker://{run}/{folder}/{name}"
    return ta.Checkpoint(f"{folder}/{name}", kind, time, path)


LISTED = [
    checkpoint("r1", "a", "training", 30),
    checkpoint("r1", "b", "training", 20),
    checkpoint("r1", "c", "training", 10),
    checkpoint("r1", "a", "sampler", 30),
    checkpoint("r2", "z", "training", 40),
    checkpoint("r2", "unknown", "training", None),
]


def names(filters: Filters) -> list[str]:
    return [one.tinker_path.removeprefix("tinker://") for one in filters.select(LISTED, NOW)]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (Filters(kind="sampler"), ["r1/sampler_weights/a"]),
        (
            Filters(older_than=timedelta(hours=25)),
            ["r2/weights/z", "r1/weights/a", "r1/sampler_weights/a"],
        ),
        (Filters(keep_last=1), ["r1/weights/b", "r1/weights/a"]),
        (Filters(keep_last=2), ["r1/weights/a"]),
        (Filters(keep_last=1, older_than=timedelta(hours=25)), ["r1/weights/a"]),
        (Filters(keep_last=3), []),
    ],
)
def test_a_selection_takes_what_all_its_filters_mean(filters: Filters, found: list[str]) -> None:
    """The newest of each run and kind are kept; what has no age is never old."""
    assert sorted(found) == sorted(names(filters))


def test_keeping_none_selects_all_that_have_a_time() -> None:
    """Newest first."""
    assert "r1/weights/c" == names(Filters(keep_last=0))[0]
    assert len(LISTED) - 1 == len(names(Filters(keep_last=0)))


@given(
    keep=st.integers(0, 4),
    listed=st.lists(
        st.tuples(
            st.sampled_from("ab"), st.sampled_from(["training", "sampler"]), st.integers(0, 9)
        )
    ),
)
def test_at_least_as_many_as_are_to_be_kept_are_left(
    keep: int, listed: list[tuple[str, str, int]]
) -> None:
    """Of each run and kind, and none that is left is older than one that goes."""
    checkpoints = [
        checkpoint(run, str(number), kind, hours)
        for number, (run, kind, hours) in enumerate(listed)
    ]
    gone = {one.tinker_path for one in Filters(keep_last=keep).select(checkpoints, NOW)}
    for group in {(run, kind) for run, kind, _ in listed}:
        mine = [
            (one, hours)
            for one, (run, kind, hours) in zip(checkpoints, listed, strict=True)
            if (run, kind) == group
        ]
        left = [hours for one, hours in mine if one.tinker_path not in gone]
        assert min(keep, len(mine)) == len(left)
        assert all(hours >= max(left, default=0) for one, hours in mine if one.tinker_path in gone)


def test_only_what_belongs_to_an_adapter_is_uploaded() -> None:
    """Optimizer state and a server's own notes stay behind; patterns of the user go before."""
    files = ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "x.json"]

    assert files[:2] == Patterns().choose(files)
    assert ["x.json"] == Patterns(allow=["x*"]).choose(files)
    assert files[:1] == Patterns(ignore=["*.safetensors"]).choose(files)


# Usage


def event(day: int, info: object, **facts: object) -> ta.BillingUsageEvent:
    start = datetime(2026, 7, day, 5, tzinfo=UTC)
    known = {"bucket_start": start, "bucket_end": start + timedelta(hours=1)}
    return ta.BillingUsageEvent(**known, event_info=info, **facts)  # type: ignore[arg-type]  # made from parts


EVENTS = [
    event(1, ta.TrainingBillingEvent(1000), base_model="m", estimated_cost_usd=0.5),
    event(1, ta.SamplingPrefillBillingEvent(cached=True, token_count=30), base_model="m"),
    event(3, ta.SamplingPrefillBillingEvent(cached=False, token_count=20), base_model="m"),
    event(3, ta.SamplingSampleBillingEvent(200), base_model="other"),
    event(3, ta.StorageBillingEvent(1.5), estimated_cost_usd=0.25),
    event(3, ta.UnknownVariant("newer", {"token_count": 9})),
]


def test_usage_is_added_up_by_group() -> None:
    """Most tokens first; kinds that are not known are not guessed at."""
    model, other, none = add_up(EVENTS, "model")

    assert ("m", 1000, 30, 20, 0.5) == (
        model.group,
        model.training,
        model.cached,
        model.prefill,
        model.cost_usd,
    )
    assert ("other", 200, None) == (other.group, other.sampled, other.cost_usd)
    assert ("", 1.5, 0.25, 0) == (none.group, none.gigabyte_hours, none.cost_usd, none.tokens)
    assert ["2026-07-01", "2026-07-03"] == [one.group for one in add_up(EVENTS, "day")]


@pytest.mark.parametrize("blocks", [True, False])
def test_the_plot_has_a_bar_for_every_day(*, blocks: bool) -> None:
    """The longest fills the width; a day without use has none, one with little has a mark."""
    start, end = datetime(2026, 7, 1, tzinfo=UTC), datetime(2026, 7, 4, tzinfo=UTC)
    few = event(2, ta.SamplingSampleBillingEvent(1), base_model="m")
    lines = plot([*EVENTS, few], start, end, width=10, blocks=blocks)

    full = "█" if blocks else "#"
    assert ["Wed 01 Jul", "Thu 02 Jul", "Fri 03 Jul"] == [line[:10] for line in lines]
    assert (10, "1.0k") == (lines[0].count(full), lines[0].split()[-1])
    assert lines[1][12:22].strip()
    assert 2 == lines[2].count(full)
    assert all(line[12:22].strip() == "" for line in plot([], start, end, width=10, blocks=blocks))


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (999.6, "1.0k"), (12_345, "12.3k"), (4.5e6, "4.5M"), (2e12, "2.0T")],
)
def test_a_number_is_shown_in_a_few_characters(count: float, text: str) -> None:
    """With one decimal."""
    assert text == short(count)


def test_a_time_is_cut_into_what_a_server_answers_for() -> None:
    """Parts that touch and make up the whole."""
    start, end = NOW, NOW + timedelta(days=30)
    parts = spans(start, end)

    assert (start, end) == (parts[0][0], parts[-1][1])
    assert all(last == first for (_, last), (first, _) in pairwise(parts))
    assert max(last - first for first, last in parts) == timedelta(days=14)
