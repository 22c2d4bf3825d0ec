"""`run`, `model`, `session` and `usage`: what is on the server, for people and programs."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from cli.conftest import KEY
from cli.seeding import Seeded, seed
from cli.terminal import Terminal

from tinker_async.testing import FakeService, faults

if TYPE_CHECKING:
    from cli.conftest import Cli, Serve

DAY = ("--from", "2026-01-01", "--to", "2026-01-02")
"""The fake server's day."""


@pytest.fixture
def seeded(url: str) -> Seeded:
    return seed(url, KEY)


# run


def test_runs_are_listed_with_their_last_checkpoint(cli: Cli, seeded: Seeded) -> None:
    """All fields as JSON; a line with tabs in a pipe."""
    [run] = cli.json("run", "list")
    assert (seeded.run, "toy", 4) == (run["training_run_id"], run["base_model"], run["lora_rank"])
    assert seeded.training[-1] == run["last_checkpoint"]["tinker_path"]

    [line] = cli.ask("run", "list").stdout.splitlines()
    assert [seeded.run, "toy", "rank 4"] == line.split("\t")[:3]
    assert ["ok", "weights/c"] == line.split("\t")[4:]


def test_corrupted_runs_are_marked_and_can_be_listed_alone(
    cli: Cli, service: FakeService, url: str
) -> None:
    """The mark is a word, not a colour."""
    broken, fine = seed(url, KEY).run, seed(url, KEY).run
    service.corrupt(broken)

    lines = cli.ask("run", "list").stdout.splitlines()
    assert {broken: "CORRUPTED", fine: "ok"} == {
        line.split("\t")[0]: line.split("\t")[4] for line in lines
    }
    assert [broken] == [run["training_run_id"] for run in cli.json("run", "list", "--corrupted")]


def test_a_listing_that_goes_on_says_so(cli: Cli, url: str) -> None:
    """On stderr; 0 is all, and what is all says nothing."""
    runs = [seed(url, KEY).run for _ in range(2)][::-1]

    shown = cli.ask("run", "list", "--limit", "1", "--json")
    assert runs[0] in shown.stdout
    assert runs[1] not in shown.stdout
    assert "--limit 0" in shown.stderr
    both = cli.ask("run", "list", "--limit", "2")
    assert runs == [line.split("\t")[0] for line in both.stdout.splitlines()]
    assert "" == both.stderr
    assert runs == [run["training_run_id"] for run in cli.json("run", "list", "--limit", "0")]


def test_runs_of_a_project_and_of_others_are_asked_for(
    cli: Cli, seeded: Seeded, service: FakeService
) -> None:
    """Both filters are the server's."""
    assert [] == cli.json("run", "list", "--project", "project-other")
    cli.json("run", "list", "--access-scope", "accessible")

    targets = [e.path for e in service.ledger.entries if e.endpoint == "training_runs"]
    assert "project_id=project-other" in targets[-2]
    assert "access_scope=accessible" in targets[-1]


def test_a_run_is_shown_by_its_id_and_by_a_path(cli: Cli, seeded: Seeded) -> None:
    """The same run."""
    run = cli.json("run", "info", seeded.run)

    assert seeded.run == run["training_run_id"]
    assert run == cli.json("run", "info", seeded.sampler)
    text = cli.ask("run", "info", seeded.run).stdout
    assert f"Last sampler checkpoint\t{seeded.sampler}" in text
    assert "Status\tok" in text


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("run", "info", "s9:train:0"), 5, "no training run 's9:train:0'"),
        (("run", "info", "a b"), 2, "is not the id of a training run"),
        (("run", "info", "tinker://x/nonsense"), 2, "is not a checkpoint path"),
        (("run", "list", "--access-scope", "everything"), 2, "'owned', 'accessible'"),
        (("session", "info", "s9"), 5, "no session 's9'"),
        (("session", "info", "a/b"), 2, "is not the id of a session"),
        (("session", "trace", "s9"), 5, "no session 's9'"),
        (("session", "search", "--metadata", "novalue"), 2, "is not KEY=VALUE"),
        (("session", "search", "--owner", "own", "--owner", "tml:user:x"), 2, "stand alone"),
        (("model", "info", "to"), 5, "is it toy?"),
        (("model", "info", "nothing-like-it"), 5, "`model list` shows all"),
        (("usage", "--days", "3", "--from", "2026-01-01"), 2, "not both"),
        (("usage", "--from", "2026-01-02", "--to", "2026-01-01"), 2, "is not before"),
        (("usage", "--from", "2026-01-01T00:30Z"), 2, "is no full hour"),
        (("usage", "--from", "yesterday"), 2, "the form is 2026-07-13T08:00:00Z"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(
    cli: Cli, words: tuple[str, ...], code: int, said: str
) -> None:
    """On stderr alone, in plain and in JSON mode."""
    for form in ((), ("--json",)):
        result = cli.ask(*words, *form)
        assert (code, "") == (result.exit_code, result.stdout)
        assert said in result.stderr


# model


def test_models_are_listed_and_shown(cli: Cli, serve: Serve) -> None:
    """By name; a part of it filters, in upper or lower case."""
    with serve(FakeService(api_key=KEY, base_models=("Zeta-8B", "alpha-1b"))) as url:
        cli.use(url)
        models = cli.json("model", "list")
        assert ["Zeta-8B", "alpha-1b"] == [model["model_name"] for model in models]
        assert ["Zeta-8B"] == [model["model_name"] for model in cli.json("model", "list", "zeta")]
        assert [] == cli.json("model", "list", "nothing")
        assert 8192 == cli.json("model", "info", "alpha-1b")["max_context_length"]
        assert "Trainable\tyes" in cli.ask("model", "info", "alpha-1b").stdout


# session


def test_sessions_are_listed_with_what_they_have_made(cli: Cli, seeded: Seeded) -> None:
    """Newest first; the ids alone need one request."""
    [session] = cli.json("session", "list")

    assert (seeded.session_id, "Alpha one") == (session["session_id"], session["display_name"])
    assert [seeded.run] == session["training_run_ids"]
    assert {"who": "me"} == session["user_metadata"]
    assert [seeded.session_id] == cli.ask("session", "list", "--ids").stdout.split()
    assert session == cli.json("session", "info", seeded.session_id)


def test_a_session_that_goes_while_it_is_listed_is_listed_by_its_id(
    cli: Cli, seeded: Seeded, service: FakeService
) -> None:
    """One that cannot be read does not break the list."""
    service.faults.on("session", faults.Status(404))

    [session] = cli.json("session", "list")
    assert (seeded.session_id, None) == (session["session_id"], session["training_run_ids"])


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ((), True),
        (("ONE", "alpha"), True),
        (("beta",), False),
        (("--metadata", "who=me"), True),
        (("--metadata", "who=you"), False),
        (("--status", "finished"), True),
        (("--status", "success"), True),
        (("--status", "errored"), False),
        (("--status", "active", "--status", "failed"), False),
        (("--project", "project-fake"), True),
        (("--project", "project-other"), False),
        (("--owner", "accessible"), True),
        (("--owner", "tml:user:nobody"), False),
        (("--owner", "tml:user:fake", "--owner", "tml:user:other"), True),
    ],
)
def test_a_search_finds_by_each_of_its_filters(
    cli: Cli, seeded: Seeded, words: tuple[str, ...], *, found: bool
) -> None:
    """Words of the name, metadata, status, project and owner."""
    sessions = cli.json("session", "search", *words)

    assert [seeded.session_id] * found == [session["session_id"] for session in sessions]


def test_a_search_by_id_and_its_columns(cli: Cli, seeded: Seeded) -> None:
    """How it ended, and how much it stores, in bytes for programs."""
    line = cli.ask("session", "search", "--id", seeded.session_id).stdout
    [session] = cli.json("session", "search", "--id", seeded.session_id)

    assert "finished (success)" == line.split("\t")[3]
    assert str(session["checkpoint_storage_bytes"]) == line.rstrip("\n").split("\t")[7]
    assert 5 == session["checkpoints_count"]


def test_the_address_of_a_trace_stands_alone(
    cli: Cli, seeded: Seeded, service: FakeService
) -> None:
    """So that $(...) can use it."""
    service.state.sessions[seeded.session_id].trace_asked = 1  # it is built
    address = f"https://traces.invalid/{seeded.session_id}.pftrace?signature=fake"

    assert f"{address}\n" == cli.ask("session", "trace", seeded.session_id, "--url-only").stdout
    assert address == cli.json("session", "trace", seeded.session_id, "--url-only")["url"]


# usage


def test_usage_is_added_up_for_people_and_given_whole_to_programs(cli: Cli, seeded: Seeded) -> None:
    """Tokens, checkpoints, and what is stored."""
    found = cli.json("usage", *DAY)
    assert "2026-01-01T00:00:00Z" == found["starting_on"]
    assert {"training", "checkpoint"} == {one["event_info"]["type"] for one in found["usage"]}
    assert [5] == [item["checkpoint_count"] for item in found["storage"]["data"]]
    assert {"who": "me"} == found["sessions"][seeded.session_id]["user_metadata"]

    assert ["toy", "6", "", "", "", "5", "", ""] == _cells(cli.ask("usage", *DAY).stdout)
    by_session = cli.ask("usage", *DAY, "--by", "session").stdout
    assert seeded.session_id == _cells(by_session)[0]


def _cells(text: str) -> list[str]:
    return text.removesuffix("\n").split("\t")


def test_usage_of_a_project_is_of_that_alone(cli: Cli, seeded: Seeded) -> None:
    """Of what is stored, too."""
    found = cli.json("usage", *DAY, "--project", "project-other")

    assert ([], [], {}) == (found["usage"], found["storage"]["data"], found["sessions"])


def test_a_long_time_is_asked_for_in_parts(cli: Cli, seeded: Seeded, service: FakeService) -> None:
    """A server answers for 14 days at once."""
    cli.json("usage", "--from", "2025-12-01", "--to", "2026-01-02")

    asked = [e.path for e in service.ledger.entries if e.endpoint == "billing_usage"]
    assert 3 == len(asked)
    assert "starting_on=2025-12-29" in asked[-1]


def test_usage_without_the_right_to_see_it_has_its_exit_code(
    cli: Cli, service: FakeService
) -> None:
    """4: the credential is good, but not for this."""
    service.faults.on("billing_usage", faults.Status(403))

    result = cli.ask("usage")
    assert 4 == result.exit_code
    assert "403" in result.stderr


def test_people_see_bars_by_day_and_what_is_stored(cli: Cli, seeded: Seeded) -> None:
    """A day without use has no bar."""
    days = ("--from", "2025-12-31", "--to", "2026-01-02")
    terminal = Terminal(cli, "usage", *days, shows_output=True)

    assert 0 == terminal.end()[0]
    lines = terminal.seen.splitlines()
    none, some = (
        next(line for line in lines if day in line) for day in ("Wed 31 Dec", "Thu 01 Jan")
    )
    assert ["Wed", "31", "Dec", "0"] == none.split()
    assert "6" == some.split()[-1]
    assert "\N{FULL BLOCK}" * 40 in some
    stored = terminal.seen.partition("Stored now")[2]
    assert "project-fake" in stored
    assert " kB" in stored


# Loading


@pytest.mark.parametrize(
    "words",
    [
        ("checkpoint",),
        *(("checkpoint", name) for name in ("delete", "download", "push-hf", "save")),
        *((name,) for name in ("model", "recover", "run", "session", "usage")),
        *(("session", "trace"), ("run", "watch")),
    ],
)
def test_the_help_of_a_noun_loads_neither_client_nor_tables(words: tuple[str, ...]) -> None:
    """It answers at once."""
    heavy = {"anyio", "asyncio", "h2", "httpcore", "huggingface_hub", "msgspec", "numpy", "rich"}
    code = f"""
import contextlib, io, sys
from tinker_async.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main({[*words, "--help"]!r})
print(sorted({heavy!r} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    assert ("[]\n", "") == (done.stdout, done.stderr)
