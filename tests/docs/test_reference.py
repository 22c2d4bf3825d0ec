"""The reference pages say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs.markdown import generated_parts
from docs.reference_pages import REFERENCE, parts

import tinker_async

REMEDY = "python tests/docs/reference_pages.py writes it anew"


@pytest.mark.parametrize("page", parts(), ids=lambda page: page.name)
def test_generated_parts_are_those_of_the_code(page: Path) -> None:
    """Docstrings, options and names as they are now."""
    assert parts()[page] == generated_parts(page), REMEDY


def test_every_error_has_a_line_that_says_what_to_do() -> None:
    """And no line is about an error that does not exist."""
    text = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    table = text.partition("## What to do")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \|(.+)\|$", table, re.MULTILINE)
    named = [name for first, _ in rows for name in re.findall(r"`(\w+)`", first)]
    errors = {
        name
        for name in tinker_async.__all__
        if isinstance(value := getattr(tinker_async, name), type)
        and issubclass(value, tinker_async.TinkerError)
    }

    assert sorted(named) == sorted(errors)
    assert all(len(remedy.split()) > 3 for _, remedy in rows)


def test_every_public_name_is_in_the_index() -> None:
    """Once, in one of its tables."""
    text = (REFERENCE / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^(?:\| `(\w+)` \||### (\w+)$)", text, re.MULTILINE)
    names = [row or heading for row, heading in listed]

    assert {*tinker_async.__all__} <= {*names}


def test_what_the_engine_page_says_of_defaults_is_what_the_engine_does() -> None:
    """Numbers that a reader would copy."""
    from tinker_async.local.engine.adapters import ALPHA
    from tinker_async.local.engine.losses import make_loss
    from tinker_async.local.models import BUILT_IN, SUPPORTED_FAMILIES
    from tinker_async.local.server.limits import Limits

    text = (REFERENCE / "engine.md").read_text(encoding="utf-8")
    said = set(re.findall(r"`([\w.-]+ = [\d.]+)`", text))
    losses = {
        f"{key} = {value:g}"
        for name in ("ppo", "cispo", "dro")
        for key, value in make_loss(name, {}).config.items()
    }

    limits = Limits()
    assert said == losses | {
        f"alpha = {ALPHA}",
        f"hold_s = {limits.hold_s:g}",
        f"silence_s = {limits.silence_s:g}",
        f"gap_s = {limits.gap_s:g}",
        f"ephemeral_snapshots = {limits.ephemeral_snapshots}",
        f"sequences_per_sample = {limits.sequences_per_sample}",
    }
    assert all(f"`{name}`" in text for name in (*SUPPORTED_FAMILIES, *BUILT_IN))
