"""`checkpoint list|info|delete|publish|unpublish|set-ttl|copy|save`: one, several, selected."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from cli.conftest import KEY, TIMEOUT_S
from cli.seeding import Seeded, seed
from cli.terminal import Terminal, interrupt

from tinker_async.testing import FakeService, faults

if TYPE_CHECKING:
    from cli.conftest import Cli


@pytest.fixture
def seeded(url: str) -> Seeded:
    return seed(url, KEY)


def left(service: FakeService) -> list[str]:
    return list(service.state.checkpoints)


def weights(service: FakeService, path: str) -> dict[int, bytes]:
    return {token: row.tobytes() for token, row in service.weights_of(path).items()}


# Looking


def test_checkpoints_are_listed_newest_first_of_all_and_of_a_run(cli: Cli, seeded: Seeded) -> None:
    """The same fields; sizes and times exact where no person looks."""
    found = cli.json("checkpoint", "list")

    assert seeded.paths[::-1] == [one["tinker_path"] for one in found]
    assert found == cli.json("checkpoint", "list", "--run", seeded.run)
    first = cli.ask("checkpoint", "list").stdout.splitlines()[0].split("\t")
    assert [seeded.external, "external", str(found[0]["size_bytes"])] == first[:3]
    assert found[0]["time"] == first[3]


def test_a_list_is_of_a_kind_of_an_age_and_of_a_length(cli: Cli, seeded: Seeded) -> None:
    """Filters go together; what is left out by the limit is said."""
    for of in ((), ("--run", seeded.run)):
        training = cli.json("checkpoint", "list", *of, "--kind", "training")
        assert seeded.training[::-1] == [one["tinker_path"] for one in training]
        assert [] == cli.json("checkpoint", "list", *of, "--older-than", "5000w")
        two = cli.ask("checkpoint", "list", *of, "--older-than", "1d", "--limit", "2")
        assert seeded.paths[:-3:-1] == [line.split("\t")[0] for line in two.stdout.splitlines()]
        assert "--limit 0" in two.stderr
        assert 5 == len(cli.json("checkpoint", "list", *of, "--limit", "0"))


def test_a_checkpoint_is_shown_with_what_it_was_trained_on(cli: Cli, seeded: Seeded) -> None:
    """Both answers, whole, as JSON; the plain facts as lines."""
    found = cli.json("checkpoint", "info", seeded.sampler)

    assert (seeded.sampler, "sampler") == (
        found["checkpoint"]["tinker_path"],
        found["checkpoint"]["checkpoint_type"],
    )
    assert ("toy", 4) == (found["weights"]["base_model"], found["weights"]["lora_rank"])
    text = cli.ask("checkpoint", "info", seeded.sampler).stdout
    assert "Base model\ttoy" in text
    assert "Expires\tnever" in text


def test_a_server_that_does_not_describe_weights_still_shows_a_checkpoint(
    cli: Cli, seeded: Seeded, service: FakeService
) -> None:
    """As older ones; a server that fails is an error."""
    rule = service.faults.on("weights_info", faults.Status(404))
    assert cli.json("checkpoint", "info", seeded.sampler)["weights"] is None
    rule.remove()
    service.faults.on("weights_info", faults.Status(401))
    assert 3 == cli.ask("checkpoint", "info", seeded.sampler).exit_code


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("info", "tinker://s1:train:0/weights/none"), 5, "there is no checkpoint"),
        (("info", "s1"), 2, "is not a checkpoint path"),
        (("list", "--run", "s9:train:0"), 5, "no training run"),
        (("list", "--kind", "good"), 2, "'training', 'sampler', 'external'"),
        (("list", "--older-than", "soon"), 2, "the form is 3600, 90m"),
        (("delete", "--yes"), 2, "give paths of checkpoints, or select some"),
        (("delete", "nonsense", "--yes"), 2, "is not a checkpoint path"),
        (("delete", "tinker://a/weights/b", "--run", "a", "--yes"), 2, "not both"),
        (("delete", "tinker://a/weights/b", "--keep-last", "0", "--yes"), 2, "not both"),
        (("delete", "--run", "s9:train:0", "--yes"), 5, "no training run"),
        (("delete", "--keep-last", "-1", "--yes"), 2, "x>=0"),
        (("publish", "tinker://s1:train:0/weights/none", "--yes"), 5, "no checkpoint"),
        (("unpublish", "tinker://s1:train:0/weights/a"), 6, "private already"),
        (("set-ttl", "tinker://s1:train:0/weights/a"), 2, "give one of --ttl and --remove"),
        (("set-ttl", "tinker://s1:train:0/weights/a", "--ttl", "1d", "--remove"), 2, "give one"),
        (("set-ttl", "tinker://s1:train:0/weights/a", "--ttl", "5m"), 2, "the least is 3600"),
        (("copy", "tinker://s1:train:0/weights/a"), 2, "--project"),
        (("copy", "tinker://s1:train:0/weights/a", "--project", "elsewhere"), 4, "elsewhere"),
        (("save", "s1:train:0", "--name", "a/b"), 2, "is no name of a checkpoint"),
        (("save", "s1:train:0", "--name", ".."), 2, "is no name of a checkpoint"),
        (("save", "s9:train:0", "--name", "b"), 5, "no training run"),
        (("save", "tinker://s1:train:0/sampler_weights/s", "--name", "b"), 2, "not for training"),
        (("save", "tinker://s1:train:0/weights/none", "--name", "b"), 5, "none"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code_and_changes_nothing(
    cli: Cli, service: FakeService, seeded: Seeded, words: tuple[str, ...], code: int, said: str
) -> None:
    """On stderr."""
    before = left(service)
    result = cli.ask("checkpoint", *words)

    assert code == result.exit_code, result.output
    assert said in result.stderr
    assert before == left(service)


def test_people_see_a_table_with_sizes_and_ages(cli: Cli, seeded: Seeded) -> None:
    """In words, with a head."""
    terminal = Terminal(cli, "checkpoint", "list", "--kind", "sampler", shows_output=True)

    assert 0 == terminal.end()[0]
    head, row = (
        next(line for line in terminal.seen.splitlines() if start in line)
        for start in ("Checkpoint", seeded.sampler)
    )
    assert all(name in head for name in ("Kind", "Size", "Saved", "Expires", "Public"))
    assert "2.1 kB" in row
    assert " days ago" in row


# Deleting


def test_several_checkpoints_are_deleted_and_told_of(
    cli: Cli, seeded: Seeded, service: FakeService
) -> None:
    """Each once, also if it is named twice."""
    a, b, c = seeded.training
    result = cli.ask("checkpoint", "delete", a, b, a, "--yes")

    assert 0 == result.exit_code
    assert {f"deleted\t{a}", f"deleted\t{b}"} == set(result.stdout.splitlines())
    assert [c, seeded.sampler, seeded.external] == left(service)


@pytest.mark.parametrize(
    "words", [("delete",), ("publish",), ("unpublish", "--run"), ("set-ttl", "--remove", "--run")]
)
def test_without_a_terminal_it_refuses_before_it_connects(
    cli: Cli, seeded: Seeded, service: FakeService, words: tuple[str, ...]
) -> None:
    """Nobody is asked who is not there, and silence is no consent."""
    requests = len(service.ledger.entries)
    named = seeded.run if words[-1] == "--run" else seeded.training[0]
    result = cli.ask("checkpoint", *words, named, input="y\n")

    assert (2, "") == (result.exit_code, result.stdout)
    assert "--yes" in result.stderr
    assert requests == len(service.ledger.entries)
    assert seeded.paths == left(service)


def test_a_dry_run_shows_what_would_go_and_changes_nothing(
    cli: Cli, seeded: Seeded, service: FakeService
) -> None:
    """It does not ask; what is not there is told with its code."""
    result = cli.ask("checkpoint", "delete", "--run", seeded.run, "--keep-last", "1", "--dry-run")
    assert 0 == result.exit_code
    shown = [line.split("\t")[:2] for line in result.stdout.splitlines()]
    assert [["would be deleted", path] for path in seeded.training[1::-1]] == shown

    gone = f"tinker://{seeded.run}/weights/none"
    rows = cli.json("checkpoint", "delete", seeded.sampler, gone, "--dry-run", exit_code=5)
    assert [(seeded.sampler, "would be deleted"), (gone, "not found")] == [
        (row["tinker_path"], row["outcome"]) for row in rows
    ]
    assert seeded.paths == left(service)
    assert not [one for one in service.ledger.entries if one.method == "DELETE"]


def test_a_selection_of_all_runs_deletes_what_it_means(
    cli: Cli, service: FakeService, url: str
) -> None:
    """The newest of each run and kind stays."""
    one, two = seed(url, KEY), seed(url, KEY)
    rows = cli.json("checkpoint", "delete", "--keep-last", "2", "--yes")

    assert {one.training[0], two.training[0]} == {row["tinker_path"] for row in rows}
    assert {"deleted"} == {row["outcome"] for row in rows}
    assert {*one.paths[1:], *two.paths[1:]} == {*left(service)}


def test_a_selection_of_runs_and_of_a_kind_deletes_only_of_these(
    cli: Cli, service: FakeService, url: str
) -> None:
    """Runs may be several."""
    one, two, other = (seed(url, KEY) for _ in range(3))
    cli.json(
        "checkpoint", "delete", "--run", one.run, "--run", two.run, "--kind", "sampler", "--yes"
    )

    assert {*one.paths, *two.paths, *other.paths} - {one.sampler, two.sampler} == {*left(service)}


def test_a_selection_by_time_takes_what_was_saved_on_its_side(cli: Cli, seeded: Seeded) -> None:
    """Neither side has the checkpoint of that very time; kinds go by the names in paths, too."""
    listed = cli.json("checkpoint", "list", "--run", seeded.run)
    saved = {one["tinker_path"]: one["time"] for one in listed}
    middle = saved[seeded.training[1]]

    def meant(*options: str) -> set[str]:
        rows = cli.json("checkpoint", "delete", "--dry-run", "--run", seeded.run, *options)
        return {row["tinker_path"] for row in rows}

    assert {path for path, time in saved.items() if time < middle} == meant("--before", middle)
    assert {path for path, time in saved.items() if time > middle} == meant("--after", middle)
    assert {seeded.training[2]} == meant("--after", middle, "--type", "weights")
    assert {seeded.sampler} == meant("--type", "sampler_weights")
    assert {seeded.external} == meant("--kind", "external_weights")


def test_nothing_selected_is_no_error(cli: Cli, seeded: Seeded, service: FakeService) -> None:
    """And is said."""
    words = ("checkpoint", "delete", "--run", seeded.run, "--older-than", "5000w", "--yes")

    assert [] == cli.json(*words)
    assert "no checkpoint is meant" in cli.ask(*words).stderr
    assert seeded.paths == left(service)


def test_one_failure_does_not_keep_the_others_from_being_deleted(
    cli: Cli, seeded: Seeded, service: FakeService
) -> None:
    """Its own outcome and exit code; the reason is on stderr with its path."""
    gone = f"tinker://{seeded.run}/weights/none"
    words = ("checkpoint", "delete", seeded.training[0], gone, seeded.training[1], "--yes")
    result = cli.ask(*words, "--json")
    assert 5 == result.exit_code
    assert f"error: {gone}: " in result.stderr

    rows = _rows(result.stdout)
    assert ["deleted", "failed", "deleted"] == [row["outcome"] for row in rows]
    assert "NotFoundError" == rows[1]["error"]["type"]
    assert "none" in rows[1]["error"]["message"]
    assert seeded.paths[2:] == left(service)


def _rows(text: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(text)
    return rows


def test_a_refused_credential_ends_it_all(cli: Cli, url: str, service: FakeService) -> None:
    """What all of them would meet is not tried for each."""
    paths = [path for _ in range(4) for path in seed(url, KEY).paths]
    service.faults.on("delete_checkpoint", faults.Status(401))
    rows = cli.json("checkpoint", "delete", *paths, "--yes", exit_code=3)

    outcomes = [row["outcome"] for row in rows]
    assert {"failed", "not tried"} == set(outcomes)
    assert 8 >= outcomes.count("failed")
    assert paths == [row["tinker_path"] for row in rows]
    assert {*paths} == {*left(service)}


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_on_a_terminal_it_shows_what_will_go_and_asks(
    cli: Cli, seeded: Seeded, service: FakeService, typed: str, code: int
) -> None:
    """Sizes and ages in words; only a yes deletes."""
    terminal = Terminal(cli, "checkpoint", "delete", "--run", seeded.run, "--kind", "training")
    terminal.until("[y/N]: ")
    assert "Delete 3 checkpoints of 18.6 kB for good?" in terminal.seen
    assert "6.2 kB" in terminal.seen
    assert " days ago" in terminal.seen

    found, output = terminal.answer(typed)
    assert code == found
    expected = seeded.paths if code else seeded.paths[3:]
    assert expected == left(service)
    assert (0 if code else 3) == output.count("deleted\t")


def test_ctrl_c_at_the_question_deletes_nothing(
    cli: Cli, seeded: Seeded, service: FakeService
) -> None:
    """130, as everywhere."""
    terminal = Terminal(cli, "checkpoint", "delete", seeded.sampler)
    terminal.until("[y/N]: ")
    interrupt(terminal.process)

    assert 130 == terminal.end()[0]
    assert seeded.paths == left(service)


# Changing


def test_publishing_and_taking_it_back(cli: Cli, seeded: Seeded, service: FakeService) -> None:
    """Publishing asks; taking it back of named ones does not."""
    both = seeded.training[:2]
    assert 0 == cli.ask("checkpoint", "publish", *both, "--yes").exit_code
    assert [True, True] == [service.state.checkpoints[path].public for path in both]

    result = cli.ask("checkpoint", "unpublish", *both)
    assert 0 == result.exit_code
    assert 2 == result.stdout.count("unpublished\t")
    assert [False, False] == [service.state.checkpoints[path].public for path in both]


def test_a_time_to_live_is_set_and_removed(cli: Cli, seeded: Seeded, service: FakeService) -> None:
    """Of named ones without a question."""
    record = service.state.checkpoints[seeded.sampler]

    rows = cli.json("checkpoint", "set-ttl", seeded.sampler, "--ttl", "7d")
    assert ["set to expire"] == [row["outcome"] for row in rows]
    assert record.expires_at is not None
    lifetime = record.expires_at - record.time
    assert (7, True) == (lifetime.days, lifetime.total_seconds() < 7.1 * 86_400)
    assert 0 == cli.ask("checkpoint", "set-ttl", seeded.sampler, "--remove").exit_code
    assert record.expires_at is None


def test_what_is_wrong_with_all_is_said_once(cli: Cli, url: str, service: FakeService) -> None:
    """A time that no server takes is not tried for every one."""
    paths = [path for _ in range(4) for path in seed(url, KEY).paths]
    rows = cli.json("checkpoint", "set-ttl", *paths, "--ttl", "5m", exit_code=2)

    assert "not tried" == rows[-1]["outcome"]
    assert not [one for one in service.ledger.entries if one.endpoint == "ttl"]


def test_copies_are_made_and_their_paths_told(
    cli: Cli, seeded: Seeded, service: FakeService
) -> None:
    """The project may come from the environment."""
    cli.env["TINKER_PROJECT_ID"] = "project-other"
    rows = cli.json("checkpoint", "copy", *seeded.training[:2], "--ttl", "1d")

    copies = [row["result"] for row in rows]
    assert {*copies} == {*left(service)} - {*seeded.paths}
    assert all(service.state.checkpoints[copy].expires_at is not None for copy in copies)
    [line] = cli.ask("checkpoint", "copy", seeded.sampler).stdout.splitlines()
    assert ["copied", seeded.sampler] == line.split("\t")[:2]
    assert line.split("\t")[2] in left(service)


def test_the_token_for_a_copy_comes_from_the_environment_and_is_not_shown(
    cli: Cli, seeded: Seeded
) -> None:
    """Other users of the machine can read a command line."""
    cli.env |= {"TINKER_WEIGHTS_ACCESS_TOKEN": "bad token", "TINKER_PROJECT_ID": "project-other"}
    result = cli.ask("checkpoint", "copy", seeded.sampler)

    assert 2 == result.exit_code
    assert "weights_access_token" in result.stderr
    assert "bad token" not in result.output


@pytest.mark.parametrize(
    ("kind", "folder"),
    [("training", "weights"), ("sampler", "sampler_weights"), ("external", "external_weights")],
)
def test_a_checkpoint_is_saved_once_more_for_another_use(
    cli: Cli, seeded: Seeded, service: FakeService, kind: str, folder: str
) -> None:
    """In a new run, with the same weights; the session that it took is over."""
    saved = cli.json("checkpoint", "save", seeded.training[0], "--name", "b", "--as", kind)

    path = saved["tinker_path"]
    assert path.endswith(f"/{folder}/b")
    assert weights(service, seeded.training[0]) == weights(service, path)
    if kind == "training":  # it goes on where the other was
        old, new = (service.state.checkpoints[one].state for one in (seeded.training[0], path))
        assert (1, old.steps) == (new.steps, new.steps)
    session = list(service.state.sessions.values())[-1]
    assert ("success", "checkpoint save") == (session.ended, session.display_name)


def test_a_run_stands_for_its_newest_training_checkpoint(
    cli: Cli, seeded: Seeded, service: FakeService
) -> None:
    """Of a run that has none nothing is saved."""
    output = cli.ask("checkpoint", "save", seeded.run, "--name", "b", "--ttl", "2h").stdout
    path = output.rstrip("\n").split("\t")[1]
    assert service.state.checkpoints[path].expires_at is not None
    old, new, saved = (weights(service, one) for one in (*seeded.training[::2], path))
    assert new == saved
    assert old != saved

    cli.json("checkpoint", "delete", *seeded.training, "--yes")
    none = cli.ask("checkpoint", "save", seeded.run, "--name", "c")
    assert 5 == none.exit_code
    assert "has no training checkpoint" in none.stderr


def test_a_real_process_deletes_and_tells(cli: Cli, seeded: Seeded, service: FakeService) -> None:
    """As a script calls it."""
    with cli.process(
        "checkpoint", "delete", seeded.sampler, "--yes", stderr=subprocess.PIPE
    ) as child:
        output, errors = child.communicate(timeout=TIMEOUT_S)

    assert (0, f"deleted\t{seeded.sampler}\n", "") == (child.returncode, output, errors)
    assert seeded.sampler not in left(service)
