"""Every public name of the official package and of Tinkex has a counterpart, or a reason for none."""

from __future__ import annotations

import pytest
from docs.markdown import ROOT, generated_parts

pytest.importorskip("tinker", reason="the official client is in the extra `judge`")

from docs.parity import official, ours, page, rows

PAGE = ROOT / "docs" / "reference" / "parity.md"
EVERY = [
    *rows.names(),
    *rows.endpoints(),
    *rows.variables(),
    *rows.commands(),
    *(row for _, found in rows.tinkex() for row in found),
]


def test_every_name_has_a_row() -> None:
    """Classes, members, functions, values, endpoints, variables, commands and options."""
    undecided = [row.name for row in EVERY if not row.decided]

    assert undecided == [], (
        "say in tests/docs/parity/*.toml what stands in its place, or why nothing"
    )
    assert len(EVERY) > 1300


def test_every_counterpart_exists() -> None:
    """As a name to import, an argument, an endpoint, a command, a variable or a page."""
    assert {row.name: row.missing for row in EVERY if row.missing} == {}


def test_no_row_is_about_a_name_that_is_no_more() -> None:
    assert rows.unused() == []


def test_reasons_are_sentences() -> None:
    """Short ones, that say more than no."""
    bare = [row.name for row in EVERY if not row.counterparts and len(row.note.split()) < 4]
    long = [row.name for row in EVERY if len(row.note) > 110]

    assert (bare, long) == ([], [])


def test_the_page_is_that_of_the_rows() -> None:
    """`python tests/docs/reference_pages.py` writes it anew."""
    assert page.parts() == generated_parts(PAGE)


def test_the_official_package_is_the_one_the_page_is_about() -> None:
    import tinker

    assert "0.38.0" == tinker.__version__
    assert {
        "ServiceClient",
        "ServiceClient.close",
        "Checkpoint.public",
        "auth.get_tinker_token",
    } <= {*official.names()}
    assert {"POST /retrieve_futures", "DELETE /auth/apikey/me", "PUT /sessions/{}/project"} <= {
        *official.endpoints()
    }
    assert {"TINKER_CREDENTIAL_CMD", "TINKER_PROJECT_ID"} <= {*official.variables()}
    assert {"run list --columns", "checkpoint delete CHECKPOINT_PATHS"} <= {*official.commands()}


@pytest.mark.parametrize(
    "name",
    [
        *("Nothing", "Session.nothing", "Session(nothing)", "data.results.Nothing", "no.module"),
        *("cli: nothing", "cli: run list --nothing", "env: NOTHING", "page: nothing.md"),
        *("GET /nothing", "session.", "Checkpoint.nothing", "APIStatusError.nothing"),
    ],
)
def test_what_does_not_exist_is_seen(name: str) -> None:
    """Otherwise the tests above could not fail."""
    assert not ours.exists(name)


@pytest.mark.parametrize(
    "name",
    [
        *("Session", "Session.create_sampling_client", "Session(proxy)", "data.tensors.DType"),
        *("cli: run list --json", "env: TINKER_API_KEY", "page: tutorial.md", "GET /sessions/{}"),
        *("APIStatusError.status", "TinkerError.message", "Checkpoint.public"),
    ],
)
def test_what_exists_is_found(name: str) -> None:
    assert ours.exists(name)
